"""Windows made of slots: which slot an event belongs to, when a slot becomes part of a wider one, and what a window covers.

1. An event lies in exactly one slot. Slots of level 0 are the finest; those of each level divide those of the next.
2. A slot widens to the next level once that wider slot lies wholly before the window that needed the finer ones, so no window ever
   needs to split one: what a window shows does not depend on when slots widened.
3. A window of W seconds at `now` covers every slot of its own level (or what widened beyond it) that ends after now − W: all of the
   last W seconds, and at most one slot more.
4. Whether an event is from the future is decided by slots: its slot begins after that of now. It is held to now's slot.
5. Slots widen, and leave a State, as of the earlier of now and the State's own newest slot (`Ladder.steady`): a Server whose clock is
   ahead takes nothing away.

Slots are named by their start in whole Unix seconds, a multiple of their width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from taba.codes import Floats, Ints

WINDOWS = {"1m": 60, "10m": 600, "1h": 3600, "1d": 86_400}  # seconds
_SPANS = np.array(list(WINDOWS.values()), dtype=np.int64)

# a slot that lies further ahead than this was made by a clock that was wrong, and is held to now; less is another Server's clock
MAX_AHEAD_SECONDS = 3600


class Held(NamedTuple):
    """Events' slots: `starts` of level 0; `ahead`, which events came from a slot after now's (or no time) and were held to that."""

    starts: Ints
    ahead: NDArray[np.bool_]


class Ladder:
    """Slots of four widths (seconds), one for each of WINDOWS."""

    def __init__(self, *widths: int):
        self.widths = np.array(widths, dtype=np.int64)
        self.levels = len(widths)

    def oldest(self, now: float) -> int:
        """The earliest time that a window still covers at `now`; what is older counts in all-time figures only."""
        width = int(self.widths[-1])
        return math.floor((now - WINDOWS["1d"]) / width) * width

    def gone(self, starts: Ints, now: Floats) -> NDArray[np.bool_]:
        """Which slots no window covers any more, each as of its own `now`."""
        width = self.widths[-1]
        gone: NDArray[np.bool_] = starts < np.floor((now - _SPANS[-1]) / width) * width
        return gone

    def steady(self, rows: Ints, starts: Ints, total: int, now: float) -> Floats:
        """For each of `total` rows the time as of which its slots widen and leave: the earlier of `now` and its newest slot.

        `rows` and `starts` of all slots, in the order of rows and, within them, of starts; `now` for a row that has none.
        """
        newest = np.full(total, np.inf)
        newest[rows] = starts  # of one row the last one stands
        steady: Floats = np.minimum(newest, now)
        return steady

    def hold(self, times: Floats, now: float) -> Held:
        """The slots of events at `times`. Slots before `oldest(now)` are the caller's to leave out."""
        width = int(self.widths[0])
        last = math.floor(max(now, 0.0) / width) * width
        ahead = ~(times < last + width)  # so written, NaN is held as well
        if ahead.any():
            times = np.where(ahead, last, times)
        # times long before 1970 have no number to spare, and no window
        return Held(np.floor(np.maximum(times, 0.0) / width).astype(np.int64) * width, ahead)

    def hold_slots(self, starts: Ints, now: float) -> Held:
        """As `hold`, for slots of level 0 that were made elsewhere."""
        last = math.floor(max(now, 0.0) / int(self.widths[0])) * int(self.widths[0])
        ahead = starts > last
        return Held(np.where(ahead, last, starts), ahead)

    def widen(self, starts: Ints, levels: Ints, now: Floats) -> tuple[Ints, Ints]:
        """(starts, levels) of slots after those that may have widened, each as of its own `now`."""
        for level in range(1, self.levels):
            width = self.widths[level]
            wide = starts // width * width
            levels = np.where((levels == level - 1) & (wide + width <= now - _SPANS[level - 1]), level, levels)
        width = self.widths[levels]
        return starts // width * width, levels

    def leaves(self, starts: Ints, now: Floats) -> NDArray[np.bool_]:
        """Which slots of level 0 may leave the main part: those that widen, and those ahead of the coming minute; as of their own `now`."""
        width = self.widths[1]
        left: NDArray[np.bool_] = (starts // width * width + width <= now - _SPANS[0]) | (starts > now + _SPANS[0])
        return left

    def covered(self, starts: Ints, levels: Ints, now: float) -> list[NDArray[np.bool_]]:
        """For each window, which slots it covers at `now`."""
        covers = []
        for level in range(self.levels):
            width = self.widths[np.maximum(levels, level)]
            covers.append(starts // width * width + width > now - _SPANS[level])
        return covers

    def ends(self, starts: Ints, levels: Ints, now: float) -> Floats:
        """Where what slots hold ends: with the slot, or at `now` for one that is not over."""
        ends: Floats = np.minimum(starts + self.widths[levels], np.maximum(now, starts))
        return ends
