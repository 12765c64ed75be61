"""A ring's producer for tests, written from the layout alone: what it writes, and when, is the test's choice."""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Any

import msgpack

from taba import ring as layouts


class Producer:
    """A ring in `directory`, held by a flock until `die`. `time`s and values are the caller's."""

    def __init__(
        self,
        agent: str,
        client: str,
        size: int = 65_536,
        directory: str = layouts.SHM_DIRECTORY,
        unique: bytes | None = None,
        flags: int = 0,
    ):
        self.where = layouts.layout(size)
        self.name = layouts.segment_name(agent, unique or os.urandom(8))
        self.path = os.path.join(directory, self.name)
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self.fd, fcntl.LOCK_EX)
        os.posix_fallocate(self.fd, 0, size)
        os.pwrite(self.fd, layouts.encode_header(size, flags, os.getpid(), os.urandom(16), 1.0, client), 0)
        os.pwrite(self.fd, layouts.MAGIC.to_bytes(8, "little"), layouts.MAGIC_OFFSET)
        self.head = self.byte_head = 0
        self.cells: dict[int, int] = {}  # where a Tab's cell lies, if it has one
        self._tabs: dict[tuple[str, str], int] = {}
        self._used = 0

    def tab(self, name: str, type: str = "CounterGroup", has_cell: bool = False, unit: str = "", description: str = "") -> int:
        """The id of a Tab, put into the directory when it is new."""
        found = self._tabs.get((name, type))
        if found is None:
            found = self._tabs[name, type] = len(self._tabs)
            entry = layouts.encode_entry(type, name, unit, description, has_cell)
            self.cells[found] = self.where.directory_offset + self._used + layouts.ENTRY_BYTES
            os.pwrite(self.fd, entry, self.where.directory_offset + self._used)
            self._used += len(entry)
            os.pwrite(self.fd, struct.pack("<QQ", len(self._tabs), self._used), layouts.DIRECTORY_COUNT_OFFSET)
        return found

    def owe(self, tab: int, value: float) -> None:
        """One event that found the ring full."""
        cell = self.cells[tab]
        owed, events = struct.unpack("<dQ", os.pread(self.fd, 16, cell))
        os.pwrite(self.fd, struct.pack("<dQ", owed + value, events + 1), cell)
        (owes,) = struct.unpack("<Q", os.pread(self.fd, 8, layouts.OWES_OFFSET))
        os.pwrite(self.fd, struct.pack("<Q", owes + 1), layouts.OWES_OFFSET)

    def record(self, tab: int, value: Any, time: float = 1.0) -> None:
        """One committed record."""
        if isinstance(value, float):
            word, flags = struct.unpack("<Q", struct.pack("<d", value))[0], 0
        else:
            word, flags = self.put_bytes(msgpack.packb(value)), layouts.FLAG_BYTES
        self.commit(self.reserve(), tab, word, flags, time)

    def put_bytes(self, content: bytes) -> int:
        """The value word of `content`, put into the byte ring."""
        word = layouts.value_word(len(content), self.byte_head)
        offset = self.byte_head % self.where.byte_ring_bytes
        first = min(len(content), self.where.byte_ring_bytes - offset)
        os.pwrite(self.fd, content[:first], self.where.byte_ring_offset + offset)
        os.pwrite(self.fd, content[first:], self.where.byte_ring_offset)
        self.byte_head += len(content)
        return word

    def reserve(self) -> int:
        """The position of the next record: a hole, until `commit`."""
        self.head += 1
        return self.head - 1

    def commit(self, position: int, tab: int, word: int, flags: int = 0, time: float = 1.0) -> None:
        commit = layouts.commit_word(tab, flags, layouts.lap_of(position, self.where.records))
        offset = self.where.record_offset + position % self.where.records * layouts.RECORD_BYTES
        os.pwrite(self.fd, struct.pack("<dQ", time, word), offset)
        os.pwrite(self.fd, struct.pack("<Q", commit), offset + 16)

    def record_many(self, tab: int, values: list[float], time: float = 1.0) -> None:
        """Many committed floats, in few writes."""
        for value in values:
            self.record(tab, value, time)

    @property
    def tail(self) -> int:
        return int.from_bytes(os.pread(self.fd, 8, layouts.TAIL_OFFSET), "little")

    @property
    def byte_tail(self) -> int:
        return int.from_bytes(os.pread(self.fd, 8, layouts.BYTE_TAIL_OFFSET), "little")

    def drop(self, reason: str, count: int) -> None:
        """Set a drop count."""
        os.pwrite(self.fd, struct.pack("<Q", count), layouts.DROPS_OFFSET + 8 * layouts.DROP_REASONS.index(reason))

    def die(self) -> None:
        """The process ends: the lock is free."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def remove(self) -> None:
        """Whatever is left goes."""
        self.die()
        if os.path.exists(self.path):
            os.unlink(self.path)
