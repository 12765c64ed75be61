"""What moves: how many Events of each Tab were folded in the last minute, as the Servers that folded them counted.

Each Server counts for itself, and says with each sign of life which of its Tabs moved most (see taba.server.status.Presence).
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Mapping
from itertools import chain
from operator import itemgetter

SPAN_SECONDS = 60.0
STEP_SECONDS = 5.0  # by which the span moves on
MAX_MOVING = 50_000  # Tabs that are counted in one step; the Events of others are not
MAX_SAID = 200  # Tabs that a Server names to the others, some 12 KiB with each sign of life


class Moving:
    """This Server's own counts. `seconds` is a monotonic clock."""

    def __init__(self, seconds: Callable[[], float]):
        self._seconds = seconds
        self._step: dict[str, int] = {}
        self._began = seconds()
        self._steps: deque[tuple[float, dict[str, int]]] = deque()
        self._totals: Counter[str] = Counter()

    def note(self, *folded: Mapping[str, int]) -> None:
        """So many Events of these Tabs were folded."""
        self._move_on()
        step, totals = self._step, self._totals
        for tab, events in chain.from_iterable([its.items() for its in folded]):
            if tab in step:
                step[tab] += events
            elif len(step) < MAX_MOVING:
                step[tab] = events
            else:
                continue
            totals[tab] += events

    def counts(self) -> Mapping[str, int]:
        """Tab → Events of the last SPAN_SECONDS, to within STEP_SECONDS."""
        self._move_on()
        return self._totals

    def said(self) -> dict[str, int]:
        """What the other Servers are told: the Tabs that moved most."""
        return dict(heapq.nlargest(MAX_SAID, self.counts().items(), key=itemgetter(1)))

    def _move_on(self) -> None:
        now = self._seconds()
        if now - self._began >= STEP_SECONDS:
            self._steps.append((self._began, self._step))
            self._began, self._step = now, {}
        while self._steps and now - self._steps[0][0] > SPAN_SECONDS:
            for tab, events in self._steps.popleft()[1].items():
                left = self._totals[tab] - events
                if left > 0:
                    self._totals[tab] = left
                else:
                    del self._totals[tab]
