"""Turns: long work in slices, between which others have theirs; and work that is done once for all that wait for it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from heapq import heappop, heappush, merge
from itertools import count
from typing import Any, ClassVar, Generic, TypeVar
from weakref import WeakValueDictionary

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.python.failure import Failure

from taba.places import ASKER, NOBODY

T = TypeVar("T")

TURN_SECONDS = 0.01  # of work before others have a turn: with a piece on top, and what else a loop has then, it stays far from 50 ms
MAX_WORKERS = 1000  # askers of whom it is remembered how much they have worked while others wait, the latest
SORTED_AT_ONCE = 1000  # items, between two looks at the time: tuples of tuples take some 5 µs each


class Turns:
    """Lets others have a turn where this process has worked on long things for TURN_SECONDS; of several askers that which has worked least.

    Each asker (`taba.places.ASKER`) has its own line: who asks one thing waits for a piece or two of another's, however many that one asks.
    Who comes anew has worked as much as who had the last turn, and a part of that one's turn: nobody saves up turns by keeping quiet, and
    however many come anew, one after the other, they do not always go before who was there.

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
        self._lines: dict[str, deque[Deferred[None]]] = {}  # by asker, what waits for a turn
        self._order: list[tuple[float, int, str]] = []  # a heap of those askers, by what they have worked, then by since when they wait
        self._worked: dict[str, float] = {}  # by asker, seconds, more than none of which it had when it came
        self._least = 0.0  # what who comes anew has worked: it grows with each turn, by the part that each would have had of it
        self._numbers = count()
        self._is_due = False

    def seconds(self) -> float:
        """By the clock."""
        return float(self._clock.seconds())

    @property
    def quiet_seconds(self) -> float:
        """For how long nothing has taken long here."""
        return 0.0 if self._lines else float(self._clock.seconds() - self._began)

    async def breathe(self) -> None:
        """Have this before each piece of work; a piece takes some 10 ms at the most."""
        if not self._lines and self._clock.seconds() - self._began <= TURN_SECONDS:
            return
        turn: Deferred[None] = Deferred()
        asker = ASKER.get()
        line = self._lines.get(asker)
        if line is None:
            line = self._lines[asker] = deque()
            self._worked[asker] = max(self._worked.get(asker, 0.0), self._least)
            self._line_up(asker)
        line.append(turn)
        if not self._is_due:
            self._is_due = True
            self._clock.callLater(0, self._next)
        await turn

    def _line_up(self, asker: str) -> None:
        heappush(self._order, (self._worked[asker], next(self._numbers), asker))

    def _next(self) -> None:
        self._began = began = self._clock.seconds()
        while self._order:
            worked, _, asker = heappop(self._order)
            self._least, share = max(self._least, worked), 1 / (len(self._lines) + 1)
            line = self._lines[asker]
            turn = line[0]
            if not turn.called:  # who waited may have gone
                turn.callback(None)
            line.popleft()
            now = self._clock.seconds()
            self._worked[asker] = self._worked.pop(asker) + now - began  # the last of them: who worked longest ago is forgotten first
            self._least += share * (now - began)
            if line:
                self._line_up(asker)
            else:
                del self._lines[asker]
                if len(self._worked) > MAX_WORKERS + len(self._lines):
                    del self._worked[next(other for other in self._worked if other not in self._lines)]
            if now - self._began > TURN_SECONDS:
                break
            began = now
        self._is_due = bool(self._order)
        if self._is_due:
            self._clock.callLater(0, self._next)
        else:  # nobody has waited for anybody
            self._worked.clear()
            self._least = 0.0


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

        ensureDeferred(self._look()).addBoth(answered)

    async def _look(self) -> T:
        ASKER.set(NOBODY)  # else it had the turns of who came first, of which there may be many, and all waited for them
        return await self._work()


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
