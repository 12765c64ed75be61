"""The outbox: where an Agent keeps batches that are not yet forgotten, in shared memory, so that a killed Agent finds them again.

1. A drain becomes one group. Its bytes and its table are written first; `published`, eight bytes that are written at
   once, makes both count, or neither.
2. A table is complete: covered ranges that no ring's tail has passed, rings that were counted as retired, totals.
3. Positions of group bytes only grow (modulo the area's size when they are read or written); `released` follows `published`.
4. The memory is sparse: a group's pages are had before anything is written, and given back when it is released. There is never a
   page with bytes of both ends, so that giving back cannot hurt.

This is the format, over anything that reads, writes and stores words (`Memory`); the real memory is `taba.agent.segment`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, Protocol, cast

import msgpack

from taba.agent.ages import Moment
from taba.agent.native import NATIVE
from taba.batch import KEY_BYTES, BatchId
from taba.bounds import MAX_BATCH_BYTES, KiB, MiB
from taba.errors import TabaError

MAGIC = b"TabaOutb"
VERSION = 8
PAGE = 4096
COPIED_BYTES = 1 * MiB  # at once, into memory that is made anew: page by page it takes three times as long
DEFAULT_OUTBOX_BYTES = 64 * MiB  # at the most: a second of the fastest drain, or a minute of a busy host's batches
MIN_OUTBOX_BYTES = 4 * MiB  # the largest batch, and a table of a thousand rings, several times over
MAX_OUTBOX_BYTES = 4096 * MiB  # lengths and offsets are checked against it
TABLE_SHARE = 16  # a table slot takes this part of the segment, at the most
TABLE_BYTES = 32 * KiB  # had from the beginning: the covered ranges of hundreds of rings, however full the memory is by then
SETTLED_BYTES = 8 * KiB  # of a slot, kept for what must be said of batches: 256 of them

PUBLISHED = 128  # offsets in the header; each word on cache lines of its own
RELEASED = 256
_HEAD = struct.Struct("<8sIIQQ16s")  # magic, version, pid of the holder, size, table slot bytes, id
_TABLE = struct.Struct("<II")  # length, crc32
_GROUP = struct.Struct("<4sIQII")  # magic, batches, length of the whole, crc32 of the index, 0
_INDEX = struct.Struct("<16sIIQdIIII36s")  # stream, bucket, length, number, created (3), events, crc32, KeyPart or zeros
_NO_KEY = bytes(KEY_BYTES)
_GROUP_MAGIC = b"GRUP"


class OutboxCorrupt(TabaError):
    """The segment holds no outbox that this version reads."""


class OtherVersion(TabaError):
    """What is here was written by another version of Taba: it is not misread, and not thrown away."""


class OutboxFull(TabaError):
    """The group or its table does not fit now."""


class TableFull(OutboxFull):
    """The table is larger than its place, and always will be: the caller must know less."""


class Memory(Protocol):
    """What an outbox lies in."""

    size: int

    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, offset: int, *parts: bytes | memoryview) -> None: ...
    def load(self, offset: int) -> int: ...
    def store(self, offset: int, word: int) -> None: ...

    def room(self) -> int:
        """How many bytes more may be reserved now."""

    def reserve(self, offset: int, length: int) -> None:
        """Have the pages of this range, so that writing there cannot fail. Raises OutboxFull where there are none to be had."""

    def punch(self, offset: int, length: int) -> None:
        """Give the pages of this range back; it reads as zeros."""


class Covered(NamedTuple):
    """Records `start` … `end` of a ring that a published group holds; `byte_end` is where their bytes end in the byte ring."""

    ring: bytes
    start: int
    end: int
    byte_end: int


class Skipped(NamedTuple):
    """A loss that counts once the batch `id` is applied: after the mark `follows`, `batches` batches with `events` events."""

    id: BatchId
    follows: int
    batches: int
    events: int


class Table(NamedTuple):
    """What an Agent must know after a restart, as of one publish.

    `retired`: rings whose drop counts are in the totals, but that may still exist. `settled`: batches that were dropped and counted
    since the publish before, so that they are not sent, or counted, again; `Outbox.settle` then says so beside the batch. `opened`:
    streams that may be open at the Servers, each with the set of its buckets (bit 0 of the first byte for bucket 0), and of those in
    which they may have been ended. `lost`: batches that a store lost, ever. `newest`: the moment of the last batch that was published.
    `salvage`: of the spool's, the one that counted what it lost.
    """

    covered: tuple[Covered, ...] = ()
    retired: tuple[bytes, ...] = ()
    settled: tuple[BatchId, ...] = ()
    recorded: int = 0
    dropped: tuple[tuple[str, int], ...] = ()
    skipped: tuple[Skipped, ...] = ()
    opened: tuple[tuple[bytes, bytes, bytes], ...] = ()
    sequence: int = 0  # one more at each publish: of two tables the later counts
    lost: int = 0
    newest: tuple[float, int, int] | None = None
    salvage: str = ""


def encode_table(table: Table) -> bytes:
    """Its bytes, as the outbox keeps them."""
    return cast(bytes, msgpack.packb(table))


def decode_table(content: bytes) -> Table:
    """The table in `content`. Raises ValueError for what is none."""
    try:
        covered, retired, settled, recorded, dropped, skipped, opened, sequence, lost, newest, salvage = msgpack.unpackb(content)
        return Table(
            tuple(Covered(*fields) for fields in covered),
            tuple(retired),
            tuple(BatchId(*fields) for fields in settled),
            recorded,
            tuple(tuple(fields) for fields in dropped),
            tuple(Skipped(BatchId(*id), *fields) for id, *fields in skipped),
            tuple(tuple(fields) for fields in opened),
            sequence,
            lost,
            None if newest is None else Moment.of_fields(*newest).fields(),
            salvage,
        )
    except (TypeError, msgpack.UnpackException) as error:
        raise ValueError(f"{error}") from None


class EncodedBatch(NamedTuple):
    """A batch with its bytes, on its way into outbox or spool: what is not bytes holds until the next drain.

    `key`: of posted events with a key, the bytes of their KeyPart. `crc`: of the bytes, where it is known.
    """

    id: BatchId
    created: Moment
    events: int
    content: bytes | memoryview
    key: bytes = b""
    crc: int | None = None


_CONTENT = itemgetter(EncodedBatch._fields.index("content"))


class StoredBatch(NamedTuple):
    """A batch in outbox or spool, without its bytes. `position` is where these are in the outbox; of the spool, its row.

    `flag` is where the outbox keeps that it was dropped and counted (`is_settled`).
    """

    id: BatchId
    created: Moment
    events: int
    length: int
    crc: int
    position: int
    flag: int = -1
    is_settled: bool = False
    key: bytes = b""


class StoredGroup(NamedTuple):
    """A published group. `end` is what `release` takes to give it, and all before it, up."""

    start: int
    end: int
    batches: tuple[StoredBatch, ...]


def checksum(content: bytes, native: Any = NATIVE) -> int:
    """The crc32 of these bytes, as quickly as it is to be had here."""
    found: int | None = native.checksum(content) if native is not None else None
    return zlib.crc32(content) if found is None else found


def group_bytes(batches: Sequence[EncodedBatch]) -> int:
    """What `append` needs for these batches."""
    if not batches:
        return 0
    return _align(_GROUP.size + (_INDEX.size + 1) * len(batches) + sum(map(len, map(_CONTENT, batches))))


class Outbox:
    """The outbox in `memory`; call `format` first on zeroed memory.

    Raises OutboxCorrupt when that holds something else, OtherVersion when it holds an outbox of another version. `native`: what writes
    the index of a group, if anything.
    """

    def __init__(self, memory: Memory, native: Any = NATIVE):
        self._memory, self._native = memory, native
        self._take_up()

    def _take_up(self) -> None:
        memory = self._memory
        if memory.size < PAGE:
            raise OutboxCorrupt(f"{memory.size} bytes")
        magic, version, _, size, slot, self.id = _HEAD.unpack(memory.read(0, _HEAD.size))
        if magic != MAGIC:
            raise OutboxCorrupt("no outbox")
        if version != VERSION:
            raise OtherVersion(f"is of format {version}; this version reads {VERSION}")
        if size != memory.size or size % PAGE or not MIN_OUTBOX_BYTES // 16 <= size <= MAX_OUTBOX_BYTES or slot != _slot_bytes(size):
            raise OutboxCorrupt(f"its sizes ({size}, {slot}) do not fit a segment of {memory.size} bytes")
        self._slot_bytes = slot
        self._area = PAGE + 2 * slot
        self._area_bytes: int = memory.size - self._area
        self.capacity = self._area_bytes - PAGE
        published = memory.load(PUBLISHED)
        self.head, self._slot = published >> 1, published & 1
        self.released: int = memory.load(RELEASED)
        if not 0 <= self.head - self.released <= self.capacity or self.head % 8 or self.released % 8:
            raise OutboxCorrupt(f"its positions ({self.released}, {self.head}) are impossible")
        self.table = self._read_table()
        self._reserved = self.head  # up to here its pages are had
        self._had = [min(TABLE_BYTES, slot)] * 2  # of each slot
        # a kill may have come between a reservation or a release and what belongs to it
        self._punch(_page_up(self.head), self.released // PAGE * PAGE + self._area_bytes)

    @staticmethod
    def format(memory: Memory, id: bytes, pid: int = 0) -> None:
        """Make an empty outbox of zeroed memory. The magic comes last: a kill before it leaves memory to be formatted again.

        Raises OutboxFull where there is no room even for an empty one.
        """
        slot = _slot_bytes(memory.size)
        memory.reserve(0, PAGE + min(TABLE_BYTES, slot))
        memory.reserve(PAGE + slot, min(TABLE_BYTES, slot))
        _write_head(memory, id, pid, Table(), 0, 0, 0)

    def write_head(self, pid: int) -> None:
        """Write again what tells that there is an outbox, and what it knows, where its memory was cut. Raises OutboxFull."""
        place = PAGE + self._slot * self._slot_bytes
        self._memory.reserve(0, PAGE)
        self._memory.reserve(place, _TABLE.size + len(encode_table(self.table)))
        self._had, self._reserved = [0, 0], self.head  # no other page is had any more
        _write_head(self._memory, self.id, pid, self.table, self.head, self._slot, self.released)

    def copy_to(self, memory: Memory) -> None:
        """Go on in zeroed `memory` of the same size. Raises OutboxFull, having changed nothing here, where that has no room."""
        self.format(memory, self.id, int.from_bytes(self._memory.read(12, 4), "little"))
        for begin in range(self.released // PAGE * PAGE, _page_up(self.head), COPIED_BYTES):
            for place, length in self._ranges(begin, min(begin + COPIED_BYTES, _page_up(self.head))):
                memory.reserve(self._area + place, length)
                memory.write(self._area + place, self._memory.read(self._area + place, length))
        memory.store(RELEASED, self.released)
        memory.store(PUBLISHED, self.head << 1)
        copy = Outbox(memory)
        copy.append(self.table, ())
        self.go_on_in(memory)

    def go_on_in(self, memory: Memory) -> None:
        """Have what is here in `memory`, which holds it all."""
        self._memory = memory
        self._take_up()

    @property
    def used(self) -> int:
        return self.head - self.released

    @property
    def free(self) -> int:
        """The bytes that a group may take now."""
        return int(max(0, min(self.capacity - self.used, self._reserved - self.head + self._memory.room())))

    @property
    def limit(self) -> int:
        """The bytes that all groups together may take, as full as the memory is now."""
        return self.used + self.free

    def append(self, table: Table, batches: Sequence[EncodedBatch]) -> StoredGroup:
        """Publish `batches` as one group, with `table`: after this returns both count; a kill before leaves neither.

        Without batches only the table changes. Raises OutboxFull, having changed nothing, when either does not fit; a table that
        settles nothing leaves room for what does.
        """
        written = encode_table(table)
        slot = 1 - self._slot
        table_bytes = _TABLE.size + len(written)
        if table_bytes > self._slot_bytes - (0 if table.settled else min(SETTLED_BYTES, self._slot_bytes // 4)):
            raise TableFull(f"a table of {len(written)} bytes")
        total = group_bytes(batches)
        if total and total > self.free:
            raise OutboxFull(f"a group of {total} bytes; {self.free} are free")
        if table_bytes > self._had[slot]:
            self._memory.reserve(PAGE + slot * self._slot_bytes, table_bytes)
            self._had[slot] = table_bytes
        start = self.head
        if start + total > self._reserved:
            for offset, length in self._ranges(self._reserved, start + total):
                self._memory.reserve(self._area + offset, length)
            self._reserved = start + total
        stored: list[StoredBatch] = []
        if batches:
            flag = start + _GROUP.size + _INDEX.size * len(batches)
            index, stored = self._index(batches, flag)
            header = _GROUP.pack(_GROUP_MAGIC, len(batches), total, zlib.crc32(index), 0)
            self._write(start, header, index, bytes(len(batches)), *map(_CONTENT, batches))
        self._memory.write(PAGE + slot * self._slot_bytes, _TABLE.pack(len(written), zlib.crc32(written)) + written)
        self._memory.store(PUBLISHED, (start + total) << 1 | slot)  # from here on it counts
        self.head, self._slot, self.table = start + total, slot, table
        return StoredGroup(start, start + total, tuple(stored))

    def _index(self, batches: Sequence[EncodedBatch], flag: int) -> tuple[bytes, list[StoredBatch]]:
        """The index of a group of these, and how they are stored: the flag of the first one is at `flag`, behind all of these its bytes."""
        position = flag + len(batches)
        if self._native is not None and isinstance(batches, list):
            made: tuple[bytes, list[StoredBatch]] | None = self._native.index_group(batches, flag, position, StoredBatch)
            if made is not None:  # else a checksum is still to be made
                return made
        stored = []
        index, moment, fields = [], None, (0.0, 0, 0)
        for place, (id, created, events, content, key, known) in enumerate(batches):
            length = len(content)
            crc = zlib.crc32(content) if known is None else known
            if created is not moment:
                moment, fields = created, created.fields()
            stream, bucket, number = id
            index.append(_INDEX.pack(stream, bucket, length, number, *fields, events, crc, key))
            stored.append(StoredBatch(id, created, events, length, crc, position, flag + place, False, key))
            position += length
        return b"".join(index), stored

    def read(self, position: int, length: int) -> bytes:
        """`length` bytes from `position`. The caller took both from a StoredBatch that is not yet released."""
        offset = position % self._area_bytes
        first = min(length, self._area_bytes - offset)
        content = self._memory.read(self._area + offset, first)
        return content if first == length else content + self._memory.read(self._area, length - first)

    def settle(self, flag: int) -> None:
        """Say beside a batch that it was dropped and counted. Call it once a published table says so, and before the next publish."""
        self._write(flag, b"\1")

    def release(self, position: int) -> None:
        """Give up all groups that end at or before `position`. Never goes back."""
        if self.released < position <= self.head:
            before, self.released = self.released, position
            self._memory.store(RELEASED, position)
            self._punch(before // PAGE * PAGE, position // PAGE * PAGE)

    def groups(self) -> Iterator[StoredGroup]:
        """The groups that are published and not released, in order. Raises OutboxCorrupt at one that does not hold together."""
        position = self.released
        while position < self.head:
            group = self.group(position)
            yield group
            position = group.end

    def group(self, position: int) -> StoredGroup:
        """The group that begins at `position`. Raises OutboxCorrupt where that does not hold together."""
        magic, batches, total, crc, _ = _GROUP.unpack(self.read(position, _GROUP.size))
        index_bytes = batches * _INDEX.size
        if not 0 < batches <= total:
            raise OutboxCorrupt(f"the group at {position} of {self.head}")
        if magic != _GROUP_MAGIC or total % 8 or not _GROUP.size + index_bytes + batches <= total <= self.head - position:
            raise OutboxCorrupt(f"the group at {position} of {self.head}")
        index = self.read(position + _GROUP.size, index_bytes)
        if zlib.crc32(index) != crc:
            raise OutboxCorrupt(f"the index of the group at {position} of {self.head}")
        flag = position + _GROUP.size + index_bytes
        at = flag + batches
        flags = self.read(flag, batches)
        stored = []
        for place, fields in enumerate(_INDEX.iter_unpack(index)):
            stream, bucket, length, number, seconds, boot, age, events, content_crc, key = fields
            if length > MAX_BATCH_BYTES or at + length > position + total:
                raise OutboxCorrupt(f"a batch of {length} bytes in the group at {position}")
            id = BatchId(stream, bucket, number)
            key = b"" if key == _NO_KEY else key
            created = Moment.of_fields(seconds, boot, age)
            stored.append(StoredBatch(id, created, events, length, content_crc, at, flag + place, flags[place] != 0, key))
            at += length
        return StoredGroup(position, position + total, tuple(stored))

    def _ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """(offset in the area, length) of what lies from `start` to `end`: two where it wraps."""
        while start < end:
            offset = start % self._area_bytes
            length = min(end - start, self._area_bytes - offset)
            yield offset, length
            start += length

    def _punch(self, start: int, end: int) -> None:
        for offset, length in self._ranges(start, end):
            self._memory.punch(self._area + offset, length)

    def _write(self, position: int, *parts: bytes | memoryview) -> None:
        total = sum(map(len, parts))
        ranges = list(self._ranges(position, position + total))
        if len(ranges) == 1:
            self._memory.write(self._area + ranges[0][0], *parts)
            return
        content = memoryview(b"".join(parts))
        for offset, length in ranges:
            self._memory.write(self._area + offset, content[:length])
            content = content[length:]

    def _read_table(self) -> Table:
        offset = PAGE + self._slot * self._slot_bytes
        length, crc = _TABLE.unpack(self._memory.read(offset, _TABLE.size))
        if length > self._slot_bytes - _TABLE.size:
            raise OutboxCorrupt(f"a table of {length} bytes")
        content = self._memory.read(offset + _TABLE.size, length)
        if zlib.crc32(content) != crc:
            raise OutboxCorrupt("the table's checksum")
        try:
            return decode_table(content)
        except ValueError as error:
            raise OutboxCorrupt(f"the table: {error}") from None


def _write_head(memory: Memory, id: bytes, pid: int, table: Table, head: int, place: int, released: int) -> None:
    slot, content = _slot_bytes(memory.size), encode_table(table)
    memory.write(PAGE + place * slot, _TABLE.pack(len(content), zlib.crc32(content)) + content)
    memory.store(PUBLISHED, head << 1 | place)
    memory.store(RELEASED, released)
    memory.write(8, _HEAD.pack(MAGIC, VERSION, pid, memory.size, slot, id)[8:])
    memory.write(0, MAGIC)


def _align(length: int) -> int:
    return (length + 7) // 8 * 8


def _page_up(position: int) -> int:
    return (position + PAGE - 1) // PAGE * PAGE


def _slot_bytes(size: int) -> int:
    return size // TABLE_SHARE // PAGE * PAGE
