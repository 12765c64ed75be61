"""Whose turn it is: the lanes that may send, those that wait, and those whose mark a probe must read. `now` is passed in."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator

from taba.agent.lanes import Lane


class Schedule:
    """Queues of lanes. A lane stands in at most one of `fresh`, `backlog` and those that wait: `queued` says whether it does.

    Whoever takes a lane out of `fresh` or `backlog` sets `queued` to False.
    """

    def __init__(self) -> None:
        self.fresh: deque[Lane] = deque()  # lanes of the outbox that have something to send
        self.backlog: deque[Lane] = deque()  # lanes of the spool
        self._waiting: list[tuple[float, int, Lane]] = []
        self._probes: list[tuple[float, int, Lane]] = []
        self._sequence = 0  # lanes do not compare

    @property
    def has_turns(self) -> bool:
        """Whether any lane may send now."""
        return bool(self.fresh or self.backlog)

    def put(self, lane: Lane, now: float) -> None:
        """Have a lane, which stands in no queue, take its turn: now or when it may."""
        lane.queued = True
        if lane.not_before > now:
            heapq.heappush(self._waiting, (lane.not_before, self._next(), lane))
        else:
            first = lane.pending[0] if lane.pending else lane.retained[0] if lane.retained else None
            queue = self.fresh if first is not None and first.group is not None else self.backlog
            queue.append(lane)

    def wake(self, now: float) -> Iterator[Lane]:
        """The lanes that waited until now; they stand in no queue any more."""
        while self._waiting and self._waiting[0][0] <= now:
            lane = heapq.heappop(self._waiting)[2]
            lane.queued = False
            yield lane

    def watch(self, lane: Lane, due: float) -> None:
        """Have `probes` give this lane at `due`."""
        heapq.heappush(self._probes, (due, self._next(), lane))

    def probes(self, now: float) -> Iterator[Lane]:
        """The lanes that were to be watched until now."""
        while self._probes and self._probes[0][0] <= now:
            yield heapq.heappop(self._probes)[2]

    def empty(self) -> list[Lane]:
        """Take all lanes out of all queues, and return them: where they belong may have changed."""
        lanes = [*self.fresh, *self.backlog, *(lane for _, _, lane in self._waiting)]
        self.fresh.clear()
        self.backlog.clear()
        self._waiting.clear()
        for lane in lanes:
            lane.queued = False
        return lanes

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence
