"""The outbox: where an Agent keeps batches that are not yet forgotten, in shared memory, so that a killed Agent finds them again.

1. A drain becomes one group. Its bytes and its table are written first; one aligned 8-byte store of `published` makes
   both count, or neither.
2. A table is complete: covered ranges that no ring's tail has passed, rings that were counted as retired, totals.
3. Positions of group bytes only grow (modulo the area's size when they are read or written); `released` follows `published`.

`Outbox` is the format, over anything that reads, writes and stores words (`Memory`); `Segment` is the real memory: the file
`taba-agent.<name>` of POSIX shared memory, locked for life. Group bytes go through `pread` and `pwrite`: what is mapped
counts as the Agent's memory, and of a mapping only the words in the header need to be one store.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import msgpack

from taba.bounds import MAX_BATCH_BYTES, MiB
from taba.errors import TabaError

SHM = "/dev/shm"
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


class AgentRunning(TabaError):
    """Another Agent of this name runs on this host."""


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

    `retired`: rings whose drop counts are in the totals, but that may still exist. `settled`: batches (stream, bucket, number)
    in unreleased groups that were dropped and counted, so that they are not sent, or counted, again.
    """

    covered: tuple[Covered, ...] = ()
    retired: tuple[bytes, ...] = ()
    settled: tuple[tuple[bytes, int, int], ...] = ()
    recorded: int = 0
    dropped: tuple[tuple[str, int], ...] = ()


class Fresh(NamedTuple):
    """A batch on its way into the outbox."""

    stream: bytes
    bucket: int
    number: int
    created: float
    events: int
    content: bytes


class Kept(NamedTuple):
    """A batch in the outbox: its identity, and where its bytes are."""

    stream: bytes
    bucket: int
    number: int
    created: float
    events: int
    crc: int
    position: int
    length: int


class KeptGroup(NamedTuple):
    """A published group. `end` is what `release` takes to give it, and all before it, up."""

    start: int
    end: int
    batches: tuple[Kept, ...]


def group_bytes(batches: Sequence[Fresh]) -> int:
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

    def append(self, table: Table, batches: Sequence[Fresh]) -> KeptGroup:
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
        kept = []
        if batches:
            position = start + _GROUP.size + _INDEX.size * len(batches)
            index = []
            for batch in batches:
                crc, length = zlib.crc32(batch.content), len(batch.content)
                index.append(_INDEX.pack(batch.stream, batch.bucket, length, batch.number, batch.created, batch.events, crc))
                kept.append(Kept(batch.stream, batch.bucket, batch.number, batch.created, batch.events, crc, position, length))
                position += length
            joined = b"".join(index)
            header = _GROUP.pack(_GROUP_MAGIC, len(batches), total, zlib.crc32(joined), 0)
            self._write(start, b"".join((header, joined, *(batch.content for batch in batches))))
        slot = 1 - self._slot
        self._memory.write(PAGE + slot * self._slot_bytes, _TABLE.pack(len(content), zlib.crc32(content)) + content)
        self._memory.store(PUBLISHED, (start + total) << 1 | slot)  # from here on it counts
        self.head, self._slot, self.table = start + total, slot, table
        return KeptGroup(start, start + total, tuple(kept))

    def read(self, position: int, length: int) -> bytes:
        """`length` bytes from `position`. The caller took both from a Kept that is not yet released."""
        offset = position % self.capacity
        first = min(length, self.capacity - offset)
        content = self._memory.read(self._area + offset, first)
        return content if first == length else content + self._memory.read(self._area, length - first)

    def release(self, position: int) -> None:
        """Give up all groups that end at or before `position`. Never goes back."""
        if self.released < position <= self.head:
            self._memory.store(RELEASED, position)
            self.released = position

    def groups(self) -> Iterator[KeptGroup]:
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
            kept = []
            for stream, bucket, length, number, created, events, content_crc in _INDEX.iter_unpack(index):
                if length > MAX_BATCH_BYTES or at + length > position + total:
                    raise OutboxCorrupt(f"a batch of {length} bytes in the group at {position}")
                kept.append(Kept(stream, bucket, number, created, events, content_crc, at, length))
                at += length
            yield KeptGroup(position, position + total, tuple(kept))
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
                tuple(tuple(fields) for fields in settled),
                recorded,
                tuple(tuple(fields) for fields in dropped),
            )
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise OutboxCorrupt(f"the table: {error}") from None


def _align(length: int) -> int:
    return (length + 7) // 8 * 8


class Segment:
    """The real memory of an outbox: `taba-agent.<name>` in POSIX shared memory, held by a lock for as long as it is open.

    Raises AgentRunning when another process holds it. Made with `outbox_bytes`, halved down to 4 MiB while there is not
    so much room; an existing one keeps its size. `problem` says what was found wrong and set aside.
    """

    def __init__(self, name: str, outbox_bytes: int = DEFAULT_OUTBOX_BYTES, directory: str = SHM):
        self.path = os.path.join(directory, f"taba-agent.{name}")
        self.problem: str | None = None
        self._fd = self._lock(name)
        try:
            self.size = self._prepare(outbox_bytes)
            self._map = mmap.mmap(self._fd, PAGE)
        except BaseException:
            os.close(self._fd)
            raise
        self._words = memoryview(self._map).cast("Q")
        os.pwrite(self._fd, struct.pack("<I", os.getpid()), 12)

    @property
    def is_there(self) -> bool:
        """Whether its name still leads to it: a cleaner, or logind's RemoveIPC, may have removed it."""
        try:
            return os.stat(self.path, follow_symlinks=False).st_ino == os.fstat(self._fd).st_ino
        except FileNotFoundError:
            return False

    def _lock(self, name: str) -> int:
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.stat(self.path, follow_symlinks=False).st_ino == os.fstat(fd).st_ino:
                    return fd
            except OSError as error:
                pid = os.pread(fd, 16, 0)[12:]
                os.close(fd)
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    holder = f"process {int.from_bytes(pid, 'little')}" if len(pid) == 4 and any(pid) else "another process"
                    raise AgentRunning(f"an Agent named {name!r} runs already: {holder} holds {self.path}") from None
                if error.errno != errno.ENOENT:
                    raise
                continue
            os.close(fd)  # somebody removed the name between open and lock: take the new file

    def _prepare(self, outbox_bytes: int) -> int:
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 8, 0) != bytes(8):  # a kill during `format` leaves no magic
            return size
        os.ftruncate(self._fd, 0)
        size = max(MIN_OUTBOX_BYTES, outbox_bytes // PAGE * PAGE)
        while True:
            try:
                os.posix_fallocate(self._fd, 0, size)  # a full tmpfs must fail here, not at a later write
                return size
            except OSError as error:
                if error.errno != errno.ENOSPC or size <= MIN_OUTBOX_BYTES:
                    raise
                os.ftruncate(self._fd, 0)
                size = max(MIN_OUTBOX_BYTES, size // 2 // PAGE * PAGE)

    def is_fresh(self) -> bool:
        """Whether nothing was ever kept here: it needs `Outbox.format`."""
        return os.pread(self._fd, 8, 0) == bytes(8)

    def set_aside(self, reason: str) -> str:
        """Rename what is here out of the way, its bytes kept, so that a new outbox can be made; returns the new path."""
        aside = f"{self.path}.corrupt"
        os.rename(self.path, aside)
        return aside

    def read(self, offset: int, length: int) -> bytes:
        content = os.pread(self._fd, length, offset)
        if len(content) != length:
            raise OutboxCorrupt(f"{self.path} was truncated")
        return content

    def write(self, offset: int, content: bytes) -> None:
        view = memoryview(content)
        while view:
            written = os.pwrite(self._fd, view, offset)
            view, offset = view[written:], offset + written

    def load(self, offset: int) -> int:
        return self._words[offset // 8]

    def store(self, offset: int, word: int) -> None:
        self._words[offset // 8] = word  # one aligned 8-byte store

    def close(self) -> None:
        """Let go of memory and lock. What is published stays for the next Agent."""
        self._words.release()
        self._map.close()
        os.close(self._fd)


def open_outbox(name: str, outbox_bytes: int = DEFAULT_OUTBOX_BYTES, directory: str = SHM) -> tuple[Outbox, Segment, str | None]:
    """The outbox of the Agent `name`, its segment, and what was found wrong there (then set aside, and a new one made).

    Raises AgentRunning, and OSError when there is no shared memory to be had.
    """
    problem = None
    segment = Segment(name, outbox_bytes, directory)
    if not segment.is_fresh():
        try:
            outbox = Outbox(segment)
            for _ in outbox.groups():
                pass
            return outbox, segment, None
        except OutboxCorrupt as error:
            aside = segment.set_aside(str(error))
            problem = f"the outbox was unreadable ({error}); it is kept as {aside}"
            segment.close()
            segment = Segment(name, outbox_bytes, directory)
    Outbox.format(segment, os.getpid())
    return Outbox(segment), segment, problem
