"""One ring as its producer in pure Python sees it: the views of its memory, and the positions that are free.

Positions are offered in chunks. All that the fast path needs of one is a tuple that a Tab finds with one look, and that is exchanged whole.
The fast path stores the commit word as the float of the same bits: an integer of more than 30 bits costs Python more to make, and to take
apart again, than all else of a store. A Tab keeps that float for a lap of the ring, by the lap's object.
"""

from __future__ import annotations

import operator
import os
import struct
import sys
from collections.abc import Iterator
from typing import Any

from taba import ring

CHUNK = 1024  # positions offered at once, at most: often enough for a look at the ring, rarely enough to cost nothing

_TAIL = ring.TAIL_OFFSET // 8
IS_ORDERED = os.uname().machine == "x86_64" and getattr(sys, "_is_gil_enabled", lambda: True)()
"""Whether stores are seen in their order without a lock."""

_UNSIGNED, _FLOAT = struct.Struct("=Q"), struct.Struct("=d")

Chunk = tuple[Iterator[int], int, Any, Any, Any, Any]
NOTHING_FREE: Iterator[int] = iter(())
NO_CHUNK: Chunk = (NOTHING_FREE, 0, None, None, None, (0,))  # a guard that lets nobody pass


class OwnRing:
    """One ring as its producer sees it. `chunk` is all that the fast path needs: (free, lap word, times, values, marks, guard).

    `drops` is the word at which its counts begin. `times`, `values` and `commits` are views that begin one word after the other, so that
    one index fits a record's three words; `marks` are the commit words, as floats.
    """

    __slots__ = (
        *("byte_head", "chunk", "commits", "content", "drops", "free", "lap", "marks", "next"),
        *("skipped", "times", "values", "where", "words"),
    )

    def __init__(self, where: ring.Layout | None = None, mapping: Any = None, counts: int = ring.DROPS_OFFSET):
        self.chunk: Chunk = NO_CHUNK
        self.free: Iterator[int] = iter(())
        self.lap = 0
        self.next = 0  # the first position after the chunk
        self.byte_head = 0
        self.skipped = 0
        if where is not None:
            self.where, self.drops = where, counts // 8
            self.content = memoryview(mapping)[: where.size]
            self.words = self.content.cast("Q")
            self.times = self.content.cast("d")
            self.values = self.times[1:]
            self.commits = self.words[2:]
            self.marks = self.times[2:]

    @property
    def position(self) -> int:
        """The position of the next record."""
        return self.next - operator.length_hint(self.free)

    def forget(self) -> None:
        """Hold no view any more."""
        del self.marks, self.commits, self.values, self.times, self.words, self.content

    def release(self) -> None:
        """Release all views, whoever holds them: in a forked child the frames of the parent's threads do, for ever."""
        for view in (self.marks, self.commits, self.values, self.times, self.words, self.content):
            view.release()
        self.forget()

    def refill(self, guard: Any, is_fast: bool) -> bool:
        """Offer the next chunk of free positions, also to the fast path; False where the ring is full."""
        where = self.where
        free = where.records - (self.next - self.words[_TAIL])
        if not 0 < free <= where.records:
            return False
        slot = self.next & (where.records - 1)
        count = min(free, where.records - slot, CHUNK, where.records // 8)
        first = where.record_offset // 8 + ring.RECORD_WORDS * slot
        lap = ring.commit_word(0, 0, ring.lap_of(self.next, where.records))
        if lap != self.lap:  # else the same object: Tabs look whether it is
            self.lap = lap
        self.next += count
        self.free = iter(range(first, first + ring.RECORD_WORDS * count, ring.RECORD_WORDS))
        if IS_ORDERED and is_fast:
            self.chunk = (self.free, self.lap, self.times, self.values, self.marks, guard)
        return True


def as_mark(commit: int) -> float:
    """The float with the bits of a commit word."""
    mark: float = _FLOAT.unpack(_UNSIGNED.pack(commit))[0]
    return mark


NO_RING = OwnRing()  # where a Tab is that has no place
NO_ROOM = OwnRing()  # where a Tab is that the directory has no room for
