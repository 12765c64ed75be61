"""Slots as charts and `?detail=1` show them.

1. A line has one value for each point t: what happened in the `step` seconds up to and including it. A slot that lies in several such
   intervals counts in each by its share of the time; a slot that is not over yet counts up to `end`.
2. What lies before the day that slots cover is not known: None.
3. In detail, a window has all its slots, the empty ones, too, each of the shape of the window, with its `time`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taba.handlers.ragged import Floats, Ints
from taba.handlers.samples import points
from taba.handlers.windows import WINDOWS, Ladder

_SPANS = tuple(WINDOWS.values())


class Line:
    """The points start, start + step, … end over some slots. Raises ValueError as `points` does."""

    def __init__(self, ladder: Ladder, starts: Ints, levels: Ints, start: float, end: float, step: float):
        self._times = np.array(points(start, end, step))
        begins = self._times - step
        widths = np.minimum(ladder.widths[levels].astype(np.float64), np.maximum(end - starts, 1e-3))
        until = np.clip((self._times[:, None] - starts) / widths, 0, 1)
        since = np.clip((begins[:, None] - starts) / widths, 0, 1)
        self._unknown = begins < ladder.oldest(end)
        self._shares = until - since

    def values(self, column: Iterable[Any]) -> list[Any]:
        """A column of one value for each point, with None where nothing is known."""
        return [None if unknown else value for value, unknown in zip(column, self._unknown.tolist(), strict=True)]

    def sums(self, amounts: NDArray[Any]) -> list[float | None]:
        """The sum of the slots' `amounts`, by their shares."""
        with np.errstate(over="ignore", invalid="ignore"):  # a sum beyond all floats is infinite
            return self.values(np.where(self._shares > 0, self._shares * amounts, 0.0).sum(axis=1).tolist())

    def sets(self) -> tuple[NDArray[np.bool_], Ints]:
        """(sets, which): the different sets of slots that points have a share in, a row each, and which of them is each point's."""
        masks = self._shares > 0
        if not len(masks):
            return masks, np.zeros(0, dtype=np.int64)
        changed = np.append([True], (masks[1:] != masks[:-1]).any(axis=1))
        return masks[changed], changed.cumsum() - 1


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
