"""One ring's segment, opened: what its header says, how far it was read, and the words beside the records. Everything in it is hostile.

All access is by `pread` and `pwrite`: a segment that its owner truncates raises MalformedRing here and kills nobody.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable

from taba import ring as layouts
from taba.agent import closing
from taba.agent.outbox import Covered
from taba.ring import RECORD_BYTES, Layout, MalformedRing, RingHeader

MAX_POSITION = 2**62  # a tail beyond this is no tail: at 100 million records a second it takes 1,400 years

_TAILS = struct.Struct("<QQ")


class Opened:
    """The ring behind `fd`. Raises MalformedRing for what is none, OSError where it cannot be read.

    `covered` are the ranges that an earlier Agent's table names for rings; those of this one are never read again.
    """

    def __init__(self, fd: int, name: str, covered: Iterable[Covered] = ()):
        self.fd, self.name = fd, name
        page = os.pread(fd, layouts.HEADER_BYTES, 0)
        self.header: RingHeader = layouts.parse_header(page, os.fstat(fd).st_size)
        self.where: Layout = layouts.layout(self.header.size)
        # the id alone would let one ring name another's
        self.key = hashlib.blake2b(self.header.ring_id + name.encode(), digest_size=16).digest()
        self.tail, self.byte_tail = self.header.tail, self.header.byte_tail
        if max(self.tail, self.byte_tail) > MAX_POSITION:
            raise MalformedRing(f"tails {self.tail} and {self.byte_tail}")
        mine = sorted(found for found in covered if found.ring == self.key and found.end > self.tail)
        self.covered = [Covered(self.key, max(found.start, self.tail), found.end, found.byte_end) for found in mine]
        self.was_covered = bool(mine)
        self.moves = 0  # how often what was read, or looked through, became another; what a look of all rings tells it is not among them
        self._advance()

    @property
    def client(self) -> str:
        return self.header.client

    @property
    def frontier(self) -> int:
        """The first record beyond all that was read."""
        return self.covered[-1].end if self.covered else self.tail

    def read_owes(self) -> int:
        """How many events are owed in all cells together."""
        return int.from_bytes(os.pread(self.fd, 8, layouts.OWES_OFFSET), "little")

    def read_cell(self, offset: int) -> layouts.Cell:
        """The cell at an offset that a Tab of the directory has."""
        words = os.pread(self.fd, layouts.CELL_BYTES, offset)
        if len(words) != layouts.CELL_BYTES:
            raise MalformedRing("truncated")
        return layouts.parse_cell(words)

    def write_sum(self, offset: int, copy: int, found: layouts.Sum) -> None:
        """Write one of the two copies of the cell at `offset`."""
        os.pwrite(self.fd, layouts.encode_sum(found), offset + layouts.SUM_OFFSETS[copy])

    def drops(self) -> dict[str, int]:
        """The producer's own counts of events that it dropped, by reason."""
        offset, length = layouts.drops_range(self.where.size)
        words = os.pread(self.fd, length, offset)
        if len(words) != length:
            raise MalformedRing("truncated")
        if words.count(0) == length:
            return {}  # nearly always, and of hundreds of rings each is asked once a second
        # a hostile count must not end the totals' being numbers
        return {reason: min(count, 2**53) for reason, count in layouts.parse_drops(words).items()}

    def had_no_place(self) -> bool:
        """Of a ring that only counts: whether some process found no place in it, nor in another, to count in."""
        return not self.where.records and os.pread(self.fd, 8, layouts.NO_PLACE_OFFSET) != bytes(8)

    def retire(self) -> None:
        """Tell a producer, if there is one after all, that nobody reads this ring any more."""
        os.pwrite(self.fd, (1).to_bytes(8, "little"), layouts.RETIRED_OFFSET)

    def close(self) -> None:
        """Let go of it."""
        closing.close(self.fd, self.where.size)

    # --- how far it was read ---

    def cover(self, ranges: Iterable[Covered]) -> None:
        """These are never read again: the tail moves over what has no hole."""
        self.moves += 1
        its = [*self.covered, *ranges]
        self.covered = its if len(its) == 1 else merge(its)  # nearly always one
        self._advance()

    def _advance(self) -> None:
        moved = False
        while self.covered and self.covered[0].start <= self.tail:
            _, _, end, byte_end = self.covered.pop(0)
            if end > self.tail:
                self.tail = end
            if byte_end > self.byte_tail:
                self.byte_tail = byte_end
            moved = True
        if moved:
            os.pwrite(self.fd, _TAILS.pack(self.tail, self.byte_tail), layouts.TAIL_OFFSET)

    # --- what is in it ---

    def read_bytes(self, position: int, length: int) -> bytes:
        """So many bytes of the byte ring from this position on."""
        size = self.where.byte_ring_bytes
        offset = position % size
        first = min(length, size - offset)
        content = os.pread(self.fd, first, self.where.byte_ring_offset + offset)
        if first < length:
            content += os.pread(self.fd, length - first, self.where.byte_ring_offset)
        if len(content) != length:
            raise MalformedRing("truncated")
        return content

    def _to_wrap(self, position: int) -> int:
        return self.where.records - position % self.where.records

    def _pieces(self, start: int, end: int) -> Iterable[tuple[int, int]]:
        while start < end:
            stop = min(end, start + self._to_wrap(start))
            yield start, stop
            start = stop

    def _record_offset(self, position: int) -> int:
        return self.where.record_offset + (position % self.where.records) * RECORD_BYTES

    def _pread_into(self, view: memoryview, offset: int) -> None:
        if os.preadv(self.fd, [view], offset) != len(view):
            raise MalformedRing("truncated")


def merge(ranges: list[Covered]) -> list[Covered]:
    """The same ranges in order, and those that meet as one."""
    merged: list[Covered] = []
    for found in sorted(ranges, key=lambda covered: covered.start):
        if merged and found.start <= merged[-1].end:
            before = merged[-1]
            merged[-1] = Covered(before.ring, before.start, max(before.end, found.end), max(before.byte_end, found.byte_end))
        else:
            merged.append(found)
    return merged
