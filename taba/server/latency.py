"""How long it took from record to visible, over the last minute: a windowed histogram in memory. Pure: time is passed in.

Nothing here outlives the process, and nothing needs to: a restarted Server measures anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy

WINDOW_SECONDS = 60.0
SLICE_SECONDS = 5.0
LEAST_SECONDS = 1e-4  # what is faster counts as this
ACCURACY = 0.02  # relative, of a percentile
MOST_SAMPLES = 4_096  # Events of one cycle whose latency is measured
MOST_ADDED = 64  # cycles of which that is counted at once: some 2 MiB of samples at the most
MOST_SECONDS = 86_400.0  # events of older times were recorded elsewhere and brought here; they say nothing about this path

_GROWTH = numpy.log1p(2 * ACCURACY)
_BINS = int(numpy.log(MOST_SECONDS / LEAST_SECONDS) / _GROWTH) + 2


class Latency:
    """Seconds from the time of an Event to the end of the transaction that made it visible."""

    def __init__(self) -> None:
        self._slices: deque[tuple[float, Any]] = deque()
        # to the last slice, and not counted yet: of cycles that are small many are counted at once
        self._added: list[tuple[Any, float]] = []

    def add_all(self, times: Iterable[bytes], now: float) -> None:
        """Events of these times (float64, in pieces) became visible `now`: of many a sample counts."""
        found = numpy.frombuffer(b"".join(times), "<f8")
        step = len(found) // MOST_SAMPLES + 1
        self.add(found if step == 1 else found[::step].copy(), now)  # which keeps no more than it counts

    def add(self, times: Any, now: float) -> None:
        """Events of these times (float64 array) became visible `now`."""
        if not len(times):
            return
        if not self._slices or not 0 <= now - self._slices[-1][0] < SLICE_SECONDS:
            self._count()
            self._forget(now)
            if not self._slices or now - self._slices[-1][0] >= SLICE_SECONDS:
                self._slices.append((now, numpy.zeros(_BINS, dtype=numpy.int64)))
        self._added.append((times, now))
        if len(self._added) >= MOST_ADDED:
            self._count()

    def _count(self) -> None:
        """Have the last slice count what was added to it."""
        if not self._added:
            return
        seconds = numpy.concatenate([now - times for times, now in self._added])
        self._added = []
        seconds = numpy.maximum(seconds[seconds <= MOST_SECONDS], LEAST_SECONDS)
        bins = (numpy.log(seconds / LEAST_SECONDS) / _GROWTH).astype(numpy.int64)
        self._slices[-1][1][:] += numpy.bincount(bins, minlength=_BINS)

    def percentiles(self, now: float, seconds: float = WINDOW_SECONDS) -> dict[str, float | None]:
        """`p50`, `p95`, `p99` of the last `seconds`, a minute at the most, in whole slices of SLICE_SECONDS; each in seconds, None while
        nothing was folded in them."""
        self._count()
        self._forget(now)
        slices = (counts for began, counts in self._slices if began >= now - seconds)
        total = sum(slices, numpy.zeros(_BINS, dtype=numpy.int64)).cumsum()
        answer: dict[str, float | None] = {}
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
            if total[-1]:
                place = int(numpy.searchsorted(total, share * total[-1]))
                answer[name] = round(float(LEAST_SECONDS * numpy.exp((place + 0.5) * _GROWTH)), 6)
            else:
                answer[name] = None
        return answer

    def _forget(self, now: float) -> None:
        while self._slices and not now - WINDOW_SECONDS <= self._slices[0][0] <= now:
            self._slices.popleft()
