"""Turns: long work in slices, between which others have theirs; and work that is done once for all that wait for it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from heapq import merge
from typing import Any, ClassVar, Generic, TypeVar
from weakref import WeakValueDictionary

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.python.failure import Failure

T = TypeVar("T")

TURN_SECONDS = 0.01  # of work before others have a turn: with a piece on top, and what else a loop has then, it stays far from 50 ms
SORTED_AT_ONCE = 1000  # items, between two looks at the time: tuples of tuples take some 5 µs each


class Turns:
    """Lets others have a turn where this process has worked on long things for TURN_SECONDS; of several of them one after the other.

    `clock`: the reactor. Whoever works in one process has one of them (`of`): of several each would let as much be done in one turn.
    """

    _of: ClassVar[WeakValueDictionary[int, Turns]] = WeakValueDictionary()  # by their clock's id: they keep it, who works by it keeps them

    @classmethod
    def of(cls, clock: Any) -> Turns:
        """The turns of all who work by this clock."""
        turns = cls._of.get(id(clock))
        if turns is None:
            turns = cls._of[id(clock)] = cls(clock)
        return turns

    def __init__(self, clock: Any):
        self._clock = clock
        self._began = -math.inf
        self._waiting: deque[Deferred[None]] = deque()

    def seconds(self) -> float:
        """By the clock."""
        return float(self._clock.seconds())

    @property
    def quiet_seconds(self) -> float:
        """For how long nothing has taken long here."""
        return 0.0 if self._waiting else float(self._clock.seconds() - self._began)

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


class SharedLook(Generic[T]):
    """Work that is the same for all that wait for it. It begins after they came; those that come meanwhile share the next time."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, T]]):
        self._work = work
        self._waiting: list[Deferred[T]] = []
        self._is_working = False

    async def done(self) -> T:
        """What it comes to. Raises what it raises. Who waits may be cancelled: the work goes on for the others."""
        waiting: Deferred[T] = Deferred()
        self._waiting.append(waiting)
        if not self._is_working:
            self._begin()
        return await waiting

    def _begin(self) -> None:
        asked, self._waiting = self._waiting, []
        self._is_working = True

        def answered(outcome: Any) -> None:
            self._is_working = False
            if self._waiting:
                self._begin()
            for waiting in asked:
                if not waiting.called:  # who asked may be gone
                    (waiting.errback if isinstance(outcome, Failure) else waiting.callback)(outcome)

        ensureDeferred(self._work()).addBoth(answered)


async def in_slices(items: Sequence[T], size: int, breathe: Callable[[], Awaitable[None]]) -> AsyncIterator[Sequence[T]]:
    """`items`, so many at a time; others have a turn (`breathe`) after each."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
        await breathe()


async def in_order(items: Iterable[Any], breathe: Callable[[], Awaitable[None]]) -> list[Any]:
    """As `sorted` does it; others have a turn (`breathe`) between parts of it."""
    unsorted = list(items)
    parts = []
    for start in range(0, len(unsorted), SORTED_AT_ONCE):
        parts.append(sorted(unsorted[start : start + SORTED_AT_ONCE]))
        await breathe()
    found = []
    for place, item in enumerate(merge(*parts), 1):
        found.append(item)
        if place % SORTED_AT_ONCE == 0:
            await breathe()
    return found
