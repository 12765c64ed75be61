"""Slots as `?detail=1` shows them: a window has all its slots, the empty ones, too, each of the shape of the window, with its `time`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taba.codes import Floats, Ints
from taba.handlers.windows import WINDOWS, Ladder

_SPANS = tuple(WINDOWS.values())


class WindowSlots:
    """The slots of one window (by its level) at `now`: of one width, without a gap."""

    def __init__(self, ladder: Ladder, starts: Ints, levels: Ints, now: float, level: int):
        self.width = int(ladder.widths[level])
        oldest = int((now - _SPANS[level]) // self.width) * self.width  # it ends after now − span
        self.times = list(range(oldest, int(now // self.width) * self.width + 1, self.width))
        self.covers = ladder.covered(starts, levels, now)[level]
        # by another Server's clock a slot may be ahead of now, or have widened early
        self.places = np.clip((starts[self.covers] - oldest) // self.width, 0, len(self.times) - 1)

    def sums(self, amounts: NDArray[Any]) -> Floats:
        """The sum of all slots' `amounts` in each slot of the window."""
        with np.errstate(over="ignore", invalid="ignore"):
            return np.bincount(self.places, weights=amounts[self.covers], minlength=len(self.times)).astype(np.float64)

    def shown(self, slots: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """What detail adds to the window."""
        return {"slot_seconds": self.width, "slots": [{"time": time, **slot} for time, slot in zip(self.times, slots, strict=True)]}


def aggregate_slots(windows: Sequence[Mapping[str, Any]], aggregate: Callable[[list[Any]], dict[str, Any]]) -> dict[str, Any]:
    """What detail adds to the Aggregate of `windows`; nothing where none of them has slots."""
    by_time: dict[int, list[Any]] = {}
    width = 0
    for window in windows:
        width = window.get("slot_seconds", width)
        for slot in window.get("slots", ()):
            by_time.setdefault(slot["time"], []).append(slot)
    if not by_time:
        return {}
    return {"slot_seconds": width, "slots": [{"time": time, **aggregate(by_time[time])} for time in sorted(by_time)]}
