"""The outbox: where an Agent keeps batches that are not yet forgotten, in shared memory, so that a killed Agent finds them again.

1. A drain becomes one group. Its bytes and its table are written first; one aligned 8-byte store of `published` makes
   both count, or neither.
2. A table is complete: covered ranges that no ring's tail has passed, rings that were counted as retired, totals.
3. Positions of group bytes only grow (modulo the area's size when they are read or written); `released` follows `published`.

This is the format, over anything that reads, writes and stores words (`Memory`); the real memory is `taba.agent.segment`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import msgpack

from taba.batch import BatchId
from taba.bounds import MAX_BATCH_BYTES, MiB
from taba.errors import TabaError

MAGIC = b"TabaOutb"
VERSION = 1
PAGE = 4096
DEFAULT_OUTBOX_BYTES = 64 * MiB  # a second of the fastest drain, or a minute of a busy host's batches
MIN_OUTBOX_BYTES = 4 * MiB  # the largest batch, and a table of a thousand rings, several times over
MAX_OUTBOX_BYTES = 4096 * MiB  # lengths and offsets are checked against it
TABLE_SHARE = 16  # a table slot takes this part of the segment

PUBLISHED = 128  # offsets in the header; each word on cache lines of its own
RELEASED = 256
_HEAD = struct.Struct("<8sIIQQ")  # magic, version, pid of the holder, size, table slot bytes
_TABLE = struct.Struct("<II")  # length, crc32
_GROUP = struct.Struct("<4sIQII")  # magic, batches, length of the whole, crc32 of the index, 0
_INDEX = struct.Struct("<16sIIQdII")  # stream, bucket, length, number, created, events, crc32
_GROUP_MAGIC = b"GRUP"


class OutboxCorrupt(TabaError):
    """The segment holds no outbox that this version reads."""


class OutboxFull(TabaError):
    """The group or its table does not fit now."""


class Memory(Protocol):
    """What an outbox lies in."""

    size: int

    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, offset: int, content: bytes) -> None: ...
    def load(self, offset: int) -> int: ...
    def store(self, offset: int, word: int) -> None: ...


class Covered(NamedTuple):
    """Records `start` … `end` of a ring that a published group holds; `byte_end` is where their bytes end in the byte ring."""

    ring: bytes
    start: int
    end: int
    byte_end: int


class Table(NamedTuple):
    """What an Agent must know after a restart, as of one publish.

    `retired`: rings whose drop counts are in the totals, but that may still exist. `settled`: batches in unreleased
    groups that were dropped and counted, so that they are not sent, or counted, again.
    """

    covered: tuple[Covered, ...] = ()
    retired: tuple[bytes, ...] = ()
    settled: tuple[BatchId, ...] = ()
    recorded: int = 0
    dropped: tuple[tuple[str, int], ...] = ()


class EncodedBatch(NamedTuple):
    """A batch with its bytes, on its way into outbox or spool."""

    id: BatchId
    created: float
    events: int
    content: bytes


class StoredBatch(NamedTuple):
    """A batch in outbox or spool, without its bytes. `position` is where these are in the outbox; of the spool, its row."""

    id: BatchId
    created: float
    events: int
    length: int
    crc: int
    position: int


class StoredGroup(NamedTuple):
    """A published group. `end` is what `release` takes to give it, and all before it, up."""

    start: int
    end: int
    batches: tuple[StoredBatch, ...]


def group_bytes(batches: Sequence[EncodedBatch]) -> int:
    """What `append` needs for these batches."""
    if not batches:
        return 0
    return _align(_GROUP.size + _INDEX.size * len(batches) + sum(len(batch.content) for batch in batches))


class Outbox:
    """The outbox in `memory`. Raises OutboxCorrupt when that holds something else; call `format` first on zeroed memory."""

    def __init__(self, memory: Memory):
        self._memory = memory
        magic, version, _, size, slot = _HEAD.unpack(memory.read(0, _HEAD.size))
        if magic != MAGIC or version != VERSION:
            raise OutboxCorrupt("no outbox of a known version")
        if size != memory.size or not MIN_OUTBOX_BYTES // 16 <= size <= MAX_OUTBOX_BYTES or slot != size // TABLE_SHARE:
            raise OutboxCorrupt(f"its sizes ({size}, {slot}) do not fit a segment of {memory.size} bytes")
        self._slot_bytes = slot
        self._area = PAGE + 2 * slot
        self.capacity: int = (memory.size - self._area) // 8 * 8
        published = memory.load(PUBLISHED)
        self.head, self._slot = published >> 1, published & 1
        self.released = memory.load(RELEASED)
        if not 0 <= self.head - self.released <= self.capacity or self.head % 8 or self.released % 8:
            raise OutboxCorrupt(f"its positions ({self.released}, {self.head}) are impossible")
        self.table = self._read_table()

    @staticmethod
    def format(memory: Memory, pid: int = 0) -> None:
        """Make an empty outbox of zeroed memory. The magic comes last: a kill before it leaves memory to be formatted again."""
        slot = memory.size // TABLE_SHARE
        content = msgpack.packb(Table())
        memory.write(PAGE, _TABLE.pack(len(content), zlib.crc32(content)) + content)
        memory.store(PUBLISHED, 0)
        memory.store(RELEASED, 0)
        memory.write(8, _HEAD.pack(MAGIC, VERSION, pid, memory.size, slot)[8:])
        memory.write(0, MAGIC)

    @property
    def used(self) -> int:
        return self.head - self.released

    @property
    def free(self) -> int:
        return self.capacity - self.used

    def append(self, table: Table, batches: Sequence[EncodedBatch]) -> StoredGroup:
        """Publish `batches` as one group, with `table`: after this returns both count; a kill before leaves neither.

        Without batches only the table changes. Raises OutboxFull, having changed nothing, when either does not fit.
        """
        content = msgpack.packb(table)
        if _TABLE.size + len(content) > self._slot_bytes:
            raise OutboxFull(f"a table of {len(content)} bytes")
        total = group_bytes(batches)
        if total > self.free:
            raise OutboxFull(f"a group of {total} bytes; {self.free} are free")
        start = self.head
        stored = []
        if batches:
            position = start + _GROUP.size + _INDEX.size * len(batches)
            index = []
            for batch in batches:
                crc, length = zlib.crc32(batch.content), len(batch.content)
                stream, bucket, number = batch.id
                index.append(_INDEX.pack(stream, bucket, length, number, batch.created, batch.events, crc))
                stored.append(StoredBatch(batch.id, batch.created, batch.events, length, crc, position))
                position += length
            joined = b"".join(index)
            header = _GROUP.pack(_GROUP_MAGIC, len(batches), total, zlib.crc32(joined), 0)
            self._write(start, b"".join((header, joined, *(batch.content for batch in batches))))
        slot = 1 - self._slot
        self._memory.write(PAGE + slot * self._slot_bytes, _TABLE.pack(len(content), zlib.crc32(content)) + content)
        self._memory.store(PUBLISHED, (start + total) << 1 | slot)  # from here on it counts
        self.head, self._slot, self.table = start + total, slot, table
        return StoredGroup(start, start + total, tuple(stored))

    def read(self, position: int, length: int) -> bytes:
        """`length` bytes from `position`. The caller took both from a StoredBatch that is not yet released."""
        offset = position % self.capacity
        first = min(length, self.capacity - offset)
        content = self._memory.read(self._area + offset, first)
        return content if first == length else content + self._memory.read(self._area, length - first)

    def release(self, position: int) -> None:
        """Give up all groups that end at or before `position`. Never goes back."""
        if self.released < position <= self.head:
            self._memory.store(RELEASED, position)
            self.released = position

    def groups(self) -> Iterator[StoredGroup]:
        """The groups that are published and not released, in order. Raises OutboxCorrupt at one that does not hold together."""
        position = self.released
        while position < self.head:
            magic, batches, total, crc, _ = _GROUP.unpack(self.read(position, _GROUP.size))
            index_bytes = batches * _INDEX.size
            if magic != _GROUP_MAGIC or total % 8 or not _GROUP.size + index_bytes <= total <= self.head - position:
                raise OutboxCorrupt(f"the group at {position} of {self.head}")
            index = self.read(position + _GROUP.size, index_bytes)
            if zlib.crc32(index) != crc:
                raise OutboxCorrupt(f"the index of the group at {position} of {self.head}")
            at = position + _GROUP.size + index_bytes
            stored = []
            for stream, bucket, length, number, created, events, content_crc in _INDEX.iter_unpack(index):
                if length > MAX_BATCH_BYTES or at + length > position + total:
                    raise OutboxCorrupt(f"a batch of {length} bytes in the group at {position}")
                stored.append(StoredBatch(BatchId(stream, bucket, number), created, events, length, content_crc, at))
                at += length
            yield StoredGroup(position, position + total, tuple(stored))
            position += total

    def _write(self, position: int, content: bytes) -> None:
        offset = position % self.capacity
        first = min(len(content), self.capacity - offset)
        self._memory.write(self._area + offset, content[:first] if first < len(content) else content)
        if first < len(content):
            self._memory.write(self._area, content[first:])

    def _read_table(self) -> Table:
        offset = PAGE + self._slot * self._slot_bytes
        length, crc = _TABLE.unpack(self._memory.read(offset, _TABLE.size))
        if length > self._slot_bytes - _TABLE.size:
            raise OutboxCorrupt(f"a table of {length} bytes")
        content = self._memory.read(offset + _TABLE.size, length)
        if zlib.crc32(content) != crc:
            raise OutboxCorrupt("the table's checksum")
        try:
            covered, retired, settled, recorded, dropped = msgpack.unpackb(content)
            return Table(
                tuple(Covered(*fields) for fields in covered),
                tuple(retired),
                tuple(BatchId(*fields) for fields in settled),
                recorded,
                tuple(tuple(fields) for fields in dropped),
            )
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise OutboxCorrupt(f"the table: {error}") from None


def _align(length: int) -> int:
    return (length + 7) // 8 * 8
