"""Memory that drains use again and again: fresh memory costs more than what is written to it.

1. Of an arena only those pages are had that were ever written to: however large it is, it takes what it holds.
2. Each REST_USES uses give back what none of them reached: a burst's memory is gone soon after the burst.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

from taba.agent.native import NATIVE
from taba.bounds import MiB

REST_USES = 64  # some sixteen seconds of drains
KEPT_BYTES = 2 * MiB  # that are free at the end of the heap: what a drain of 16,000 columns has beside its arenas
BLOCK_BYTES = 4 * MiB  # what is smaller is had of the heap; the C library itself gives back what is over 128 KiB


class Arena:
    """So many bytes, zeros at first. `view` is all of it, to be read and written."""

    def __init__(self, size: int):
        self._memory = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(self._memory)[:size]
        self._reached = self._uses = 0
        self._touched = 0  # up to here pages may be had

    def reach(self, end: int) -> None:
        """What is before `end` is being used."""
        if end > self._reached:
            self._reached = end

    def begin(self) -> None:
        """It is used anew: what was in it means nothing any more."""
        self._touched = max(self._touched, self._reached)
        self._uses += 1
        if self._uses < REST_USES:
            return
        begin = -(-self._reached // mmap.PAGESIZE) * mmap.PAGESIZE
        if begin < self._touched:
            self._memory.madvise(mmap.MADV_DONTNEED, begin)
        self._touched, self._reached, self._uses = self._reached, 0, 0


def zeros(rows: int, columns: int) -> Any:
    """An array of floats of this shape, all zeros, of which only the pages are had that are written to: numpy has large ones by the
    huge page."""
    memory = mmap.mmap(-1, max(1, 8 * rows * columns), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, np.float64, rows * columns).reshape(rows, columns)


def keep_heap(native: Any = NATIVE) -> None:
    """Have this process keep some of what it frees, for as long as it is: a drain's arrays are as large as the last one's."""
    if native is not None:  # else, as with a C library that cannot be told, it is given back and had again
        native.keep_heap(KEPT_BYTES, BLOCK_BYTES)
