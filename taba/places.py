"""Places for what only so much is done of at once: each who asks has a share, so that one who asks for ever more leaves the others theirs.

1. Of all places one asker (`ASKER`: a token's bearer, a user, an address) has `each` at the most: one that is alone leaves the
   rest free.
2. `at_once` of them are for what is being done, of which one asker has `at_once_each`; the rest wait for that. What is free goes to whom
   the fewest are done for; of those, to whom least was done for of late (`worked`); of those, to who came first. But who was passed
   over MAX_PASSED times by such as came later goes before them: of new askers, each with one thing, there may always be another.
3. Where all are taken, who has most gives up the last one of its that waits, for one that has less. What is being done goes on.
4. Bytes are shared by the same rule (`SharedBytes`), but that nobody waits for them.
5. Who is refused is told the bound, the share, and what it has of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from twisted.internet.defer import Deferred

from taba.errors import TabaError

MAX_PASSED = 8  # times that an asker lets one go first that came later, and for which as many are done
NOBODY = ""
ASKER: ContextVar[str] = ContextVar("asker", default=NOBODY)
"""Whose request is being answered (`taba.calls.Call.poster`), wherever that leads; NOBODY where nobody has asked, or all have."""


class Crowded(TabaError):
    """Too much is asked for of what there are only so many places for; ask again in a moment."""


class Share(NamedTuple):
    """What whoever has most has of its share."""

    greatest: int
    most: int


class Taker:
    """What one asker has of a SharedBytes."""

    __slots__ = ("asker", "has", "users")

    def __init__(self, asker: str):
        self.asker, self.has, self.users = asker, 0, 0


class SharedBytes:
    """`most` bytes, of which one asker has `each`. What comes first is taken in whatever its size, so that nothing is refused for ever."""

    def __init__(self, what: str, most: int, each: int):
        self._what, self.most, self.each = what, most, each
        self.held = 0
        """How much is taken."""
        self._takers: dict[str, Taker] = {}

    @property
    def share(self) -> Share:
        """Of who has most."""
        return Share(max((taker.has for taker in self._takers.values()), default=0), self.each)

    def enter(self, asker: str) -> Taker:
        """Who is to take something, until it leaves."""
        taker = self._takers.get(asker)
        if taker is None:
            taker = self._takers[asker] = Taker(asker)
        taker.users += 1
        return taker

    def leave(self, taker: Taker) -> None:
        """All that was taken is given back."""
        taker.users -= 1
        if not taker.users:
            del self._takers[taker.asker]

    def has_room(self, taker: Taker, size: int) -> bool:
        """Whether so much more may be taken."""
        held = self.held
        return not held or (held + size <= self.most and (not taker.has or taker.has + size <= self.each))

    def change(self, taker: Taker, size: int) -> None:
        """So much more is taken, or given back where it is negative."""
        self.held += size
        taker.has += size

    def refusal(self, taker: Taker, size: int) -> str:
        """Why so much is not taken."""
        if self.held + size > self.most:
            return f"{self.held} bytes {self._what}, and {self.most} are as many as may be, of which one sender has {self.each}"
        return f"{taker.has} bytes of yours {self._what}, and of {self.most} one sender has {self.each}"


class _Waiting:
    """One that waits."""

    def __init__(self, asker: str):
        self.asker = asker
        self.turn: Deferred[None] = Deferred()


class Places:
    """Places for `what` (a plural, as `answers that are being sent`), shared by askers.

    `most` of them, one asker `each`; `at_once` of them for what is being done, one asker `at_once_each`: all of them unless told otherwise.
    `worked`: how much was done for an asker of late.
    """

    def __init__(
        self,
        what: str,
        most: int,
        each: int,
        at_once: int | None = None,
        at_once_each: int | None = None,
        worked: Callable[[str], float] = lambda asker: 0.0,
    ):
        self._what, self.most, self.each, self._worked = what, most, each, worked
        self._at_once = most if at_once is None else at_once
        self._at_once_each = each if at_once_each is None else at_once_each
        self._waiting: list[_Waiting] = []  # in the order in which they came
        self.working: Counter[str] = Counter()
        """By asker, how many of its are being done."""
        self._held: Counter[str] = Counter()
        self._passed: Counter[str] = Counter()  # by asker that waits, how often one that came later went first
        self.displaced = 0
        """How many gave their place to another asker's."""

    @property
    def held(self) -> int:
        """How many places are taken."""
        return self._held.total()

    @property
    def waits(self) -> bool:
        """Whether some wait for the others, and may be displaced."""
        return self._at_once < self.most

    @property
    def share(self) -> Share:
        """Of who has most."""
        return Share(max(self._held.values(), default=0), self.each)

    async def take(self, asker: str) -> None:
        """Have a place, once it is this asker's turn; `give_back` it. Raises Crowded."""
        self._admit(asker)
        place = _Waiting(asker)
        self._waiting.append(place)
        self._held[asker] += 1
        self._serve()
        try:
            await place.turn
        finally:
            if place in self._waiting:  # who asked has gone
                self._leave(place)

    def take_now(self, asker: str) -> None:
        """Have a place at once, of those where nobody waits; `give_back` it. Raises Crowded."""
        self._admit(asker)
        self._held[asker] += 1
        self.working[asker] += 1

    @contextmanager
    def within(self, asker: str) -> Iterator[None]:
        """`take_now`, and `give_back` in the end."""
        self.take_now(asker)
        try:
            yield
        finally:
            self.give_back(asker)

    def give_back(self, asker: str) -> None:
        """What was done for this asker is over."""
        for counted in (self._held, self.working):
            counted[asker] -= 1
            if not counted[asker]:
                del counted[asker]
        self._serve()

    def _admit(self, asker: str) -> None:
        held = self._held.get(asker, 0)
        if held >= self.each:
            raise Crowded(f"{held} {self._what} are yours, and of {self.most} places one asker has {self.each}; ask again in a moment")
        if self.held >= self.most:
            self._displace(held)

    def _displace(self, held: int) -> None:
        """Have the last that waits of who has most give its place to one who has `held`. Raises Crowded where nobody has that many more."""
        last = max(self._waiting, key=lambda place: (self._held[place.asker], self._worked(place.asker)), default=None)
        if last is None or self._held[last.asker] <= held + 1:
            raise Crowded(f"{self.most} {self._what} are as many as may be, of which one asker has {self.each}; ask again in a moment")
        last = [place for place in self._waiting if place.asker == last.asker][-1]
        self._leave(last)
        self.displaced += 1
        last.turn.errback(Crowded(f"{self.most} {self._what} are as many as may be, and most of them yours; ask again in a moment"))

    def _leave(self, place: _Waiting) -> None:
        self._waits_no_more(place)
        self._held[place.asker] -= 1
        if not self._held[place.asker]:
            del self._held[place.asker]

    def _serve(self) -> None:
        while self._waiting and self.working.total() < self._at_once:
            able = [place for place in self._waiting if self.working[place.asker] < self._at_once_each]
            if not able:
                return
            place = self._next_of(able)
            self._waits_no_more(place)
            self.working[place.asker] += 1
            place.turn.callback(None)

    def _next_of(self, able: list[_Waiting]) -> _Waiting:
        """Who has what is free, of these, which are in the order in which they came."""
        fewest = min(self.working[place.asker] for place in able)
        first: dict[str, _Waiting] = {}  # of each asker
        for place in able:
            if self.working[place.asker] == fewest:
                first.setdefault(place.asker, place)
        overdue = (place for place in first.values() if self._passed[place.asker] >= MAX_PASSED)
        found = next(overdue, None) or min(first.values(), key=lambda place: self._worked(place.asker))
        for place in first.values():
            if place is found:
                break
            self._passed[place.asker] += 1
        self._passed.pop(found.asker, None)
        return found

    def _waits_no_more(self, place: _Waiting) -> None:
        self._waiting.remove(place)
        if all(other.asker != place.asker for other in self._waiting):
            self._passed.pop(place.asker, None)
