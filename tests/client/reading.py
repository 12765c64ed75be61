"""A plain reader of rings, for tests: what an Agent does, with pread and pwrite and taba/ring.py, one ring at a time."""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Any, NamedTuple

import msgpack

from taba import ring


class Event(NamedTuple):
    tab: str
    type: str
    time: float
    value: Any


class Reader:
    """Reads one segment by its name."""

    def __init__(self, name: str):
        self.path = os.path.join(ring.SHM_DIRECTORY, name)
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self.descriptor)

    @property
    def header(self) -> ring.RingHeader:
        return ring.parse_header(os.pread(self.descriptor, ring.HEADER_BYTES, 0), os.fstat(self.descriptor).st_size)

    def tabs(self) -> list[Any]:
        header = self.header
        content = os.pread(self.descriptor, header.directory_used, ring.HEADER_BYTES)
        return ring.parse_directory(content, header.directory_count)[0]

    def cell(self, tab: str) -> ring.Cell:
        """The cell of a Tab that heals."""
        header = self.header
        content = os.pread(self.descriptor, header.directory_used, ring.HEADER_BYTES)
        entries = ring.parse_directory(content, header.directory_count)[0]
        (cell,) = [entry.cell for entry in entries if isinstance(entry, ring.TabEntry) and entry.name == tab and entry.cell is not None]
        return ring.parse_cell(content[cell : cell + ring.CELL_BYTES])

    def is_held(self) -> bool:
        """Whether a living process holds the ring's lock."""
        probe = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(probe, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(probe)
        return False

    def write(self, offset: int, word: int) -> None:
        os.pwrite(self.descriptor, word.to_bytes(8, "little"), offset)

    def drain(self, most: int = 1 << 40, release: bool = True, past_holes: bool = False) -> list[Event]:
        """What is committed after the tail, up to the first hole; with `past_holes` also what is beyond holes."""
        header = self.header
        where = ring.layout(header.size)
        tabs: list[Any] = []
        events = []
        position, byte_tail = header.tail, header.byte_tail
        for ahead in range(min(most, where.records)):
            here = header.tail + ahead
            offset = where.record_offset + ring.RECORD_BYTES * (here & (where.records - 1))
            commit = ring.split_commit(int.from_bytes(os.pread(self.descriptor, 8, offset + 16), "little"))
            if commit.lap != ring.lap_of(here, where.records):
                if past_holes:
                    continue
                break
            if commit.tab >= len(tabs):
                tabs = self.tabs()
            time, word = struct.unpack("<dQ", os.pread(self.descriptor, 16, offset))
            if not commit.flags & ring.FLAG_SKIP:
                value: Any = struct.unpack("<d", word.to_bytes(8, "little"))[0]
                if commit.flags & ring.FLAG_BYTES:
                    begin, length = place_value(word, byte_tail)
                    value = msgpack.unpackb(self._bytes(where, begin, length), strict_map_key=False)
                    byte_tail = begin + length
                events.append(Event(tabs[commit.tab].name, tabs[commit.tab].type, time, value))
            position = here + 1
        if release:
            self.write(ring.TAIL_OFFSET, position)
            self.write(ring.BYTE_TAIL_OFFSET, byte_tail)
        return events

    def _bytes(self, where: ring.Layout, begin: int, length: int) -> bytes:
        slot = begin & (where.byte_ring_bytes - 1)
        first = min(length, where.byte_ring_bytes - slot)
        return os.pread(self.descriptor, first, where.byte_ring_offset + slot) + os.pread(
            self.descriptor, length - first, where.byte_ring_offset
        )


def place_value(word: int, byte_tail: int) -> tuple[int, int]:
    """(byte position counted for ever, length) of a value word, read while `byte_tail` was released."""
    length, short = ring.split_value(word)
    return byte_tail + ((short - byte_tail) & ring.BYTE_POSITION_MASK), length


def rings(agent: str) -> list[str]:
    """The names of an Agent's segments."""
    return sorted(name for name in os.listdir(ring.SHM_DIRECTORY) if name.startswith(ring.segment_prefix(agent)))


def read_all(agent: str, **how: Any) -> list[Event]:
    """The events of all rings of an Agent."""
    events = []
    for name in rings(agent):
        reader = Reader(name)
        try:
            events += reader.drain(**how)
        finally:
            reader.close()
    return events
