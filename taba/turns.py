"""Turns: long work in slices, between which others have theirs."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from twisted.internet.defer import Deferred

TURN_SECONDS = 0.02  # of work before others have a turn


class Turns:
    """Lets others have a turn where this process has worked on long things for TURN_SECONDS; of several of them one after the other.

    `clock`: the reactor.
    """

    def __init__(self, clock: Any):
        self._clock = clock
        self._began = -math.inf
        self._waiting: deque[Deferred[None]] = deque()

    async def breathe(self) -> None:
        """Have this before each piece of work; a piece takes some 10 ms at the most."""
        if not self._waiting and self._clock.seconds() - self._began <= TURN_SECONDS:
            return
        turn: Deferred[None] = Deferred()
        self._waiting.append(turn)
        if len(self._waiting) == 1:
            self._clock.callLater(0, self._next)
        await turn

    def _next(self) -> None:
        self._began = self._clock.seconds()
        while self._waiting:
            turn = self._waiting[0]
            if not turn.called:  # who waited may have gone
                turn.callback(None)
            self._waiting.popleft()
            if self._clock.seconds() - self._began > TURN_SECONDS:
                break
        if self._waiting:
            self._clock.callLater(0, self._next)
