"""The Unix time of folds and queries: it goes on by the monotonic clock, and follows a clock that is set only where others agree with it.

1. It is taken at start. A clock that differs a little is followed at once: by so little nothing is lost.
2. A step is followed where the store's clock, and the median of the clocks of those who send, agree with it; or after an hour in which it
   stood, with a problem shown.
3. It never begins before the last time that Servers recorded in the store, unless the store's clock agrees with this host's.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from taba.server.aging import AGREE_SECONDS

SLIGHT_SECONDS = 2.0  # what a clock may differ to be followed at once
DOUBT_SECONDS = 3600.0  # for which a step must stand
HEARD_SECONDS = 120.0  # for which it counts what a sender's clock said
MAX_SENDERS = 1000  # whose clocks are known


class SteadyClock:
    """Called, it tells Unix time. `wall` is this host's clock, `seconds` the monotonic one; `look` is to be called every few seconds."""

    def __init__(self, wall: Callable[[], float], seconds: Callable[[], float]):
        self._wall, self._seconds = wall, seconds
        self._offset = wall() - seconds()
        self._step: float | None = None  # since when this host's clock is off
        self._is_begun = False
        self._senders: dict[str, tuple[float, float]] = {}
        self.problem: str | None = None

    def __call__(self) -> float:
        return self._seconds() + self._offset

    def heard(self, sender: str, told: float) -> None:
        """A sender's clock says `told` now."""
        self._senders.pop(sender, None)
        if len(self._senders) >= MAX_SENDERS:
            del self._senders[next(iter(self._senders))]
        self._senders[sender] = (told - self._seconds(), self._seconds())

    @property
    def senders(self) -> int:
        """How many senders were heard of lately."""
        return sum(self._seconds() - heard <= HEARD_SECONDS for _, heard in self._senders.values())

    def look(self, store_time: float | None, recorded: float | None) -> None:
        """The store's clock says `store_time`, and Servers recorded `recorded` there; None where that is not known."""
        wall, seconds = self._wall(), self._seconds()
        if not self._is_begun and recorded is not None:
            self._is_begun = True
            if wall < recorded - AGREE_SECONDS and not self._agrees(wall, store_time):
                self._offset = recorded - seconds
        off = wall - self()
        if abs(off) <= SLIGHT_SECONDS:
            self._offset, self._step, self.problem = wall - seconds, None, None
            return
        if self._step is None:
            self._step = seconds
        if self._agrees(wall, store_time) and self._agrees(wall, self._of_senders(seconds)):
            self._offset, self._step, self.problem = wall - seconds, None, None
            return
        self.problem = f"this host's clock is {off:+.0f} s off from what this Server goes by, and others do not agree with it: set it right"
        if seconds - self._step >= DOUBT_SECONDS:
            self._offset, self._step = max(wall, recorded or 0.0) - seconds, None

    def _of_senders(self, seconds: float) -> float | None:
        """The median of what senders' clocks say now."""
        offsets = [offset for offset, heard in self._senders.values() if seconds - heard <= HEARD_SECONDS]
        return median(offsets) + seconds if offsets else None

    @staticmethod
    def _agrees(wall: float, other: float | None) -> bool:
        return other is not None and abs(wall - other) <= AGREE_SECONDS
