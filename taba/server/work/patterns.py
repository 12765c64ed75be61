"""Regular expressions of askers, and texts of PromQL, in child processes: whom a child works for next.

1. One asker has all children but one at the most: who asks beside one that asks for what takes long, waits for no child.
2. A child that is free works for whom the fewest work; of those, for whom they have worked least of late; of those, for who came first.
   So a good one goes before whatever waits of one that asks for what takes long, again and again.
3. One asker has so many places; where all are taken, whoever has most gives one up for one that has less.
4. What took too long is refused for a while without being tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

from twisted.internet.defer import Deferred

from taba.calls import ASKER
from taba.errors import TabaError
from taba.server.work.asking import Asked, leavable
from taba.server.work.line import ChildDied, ChildLine, ChildNotStarted

MATCH_SECONDS = 1.0  # for one regular expression over all names
PATTERN_CHILDREN = 3  # that match them side by side …
CHILDREN_OF_ASKER = PATTERN_CHILDREN - 1  # … of which one asker has so many
PLACES_OF_ASKER = 9  # that wait or are being matched: each of its children has four before the last
MAX_PATTERNS = 27  # in all: three askers have all of theirs, before any gives one up
SLOW_PATTERN_SECONDS = 60.0  # for which one that took too long is refused without being tried, so that who repeats it holds up nobody …
MAX_SLOW_PATTERNS = 1000  # … of so many, the latest
LATELY_SECONDS = 60.0  # after which half of the time that children worked for an asker counts
MAX_ASKERS = 1000  # of whom that is remembered, the latest


class PatternRefused(TabaError):
    """This text is no regular expression, or one that cannot be matched in the time that it has."""


class Crowded(TabaError):
    """Too many ask for what a child process does, which takes one question at a time; ask again in a moment."""


class _Place:
    """One that waits for a child."""

    def __init__(self, asker: str):
        self.asker = asker
        self.turn: Deferred[ChildLine] = Deferred()


class Patterns:
    """The children that match, and who waits for one. `lines`: PATTERN_CHILDREN of them."""

    def __init__(self, clock: Any, lines: Sequence[ChildLine]):
        self._clock = clock
        self.lines = tuple(lines)
        self._free = list(lines)
        self._waiting: list[_Place] = []  # in the order in which they came
        self._working: Counter[str] = Counter()
        self._lately: dict[str, tuple[float, float]] = {}  # by asker: seconds that children worked for it, as of when
        self._slow: dict[bytes, float] = {}  # by digest of what was asked: when it took too long
        self.displaced = 0
        """How many gave their place to another asker's."""

    @property
    def held(self) -> int:
        """How many wait or are being matched."""
        return len(self._waiting) + len(self.lines) - len(self._free)

    async def ask(self, refusal: str, text: str, take: Callable[[Any], None], kind: str, *request: Any) -> Any:
        """What a child says last of this request, which is about `text`. Who leaves leaves it to end, once it is being matched.

        Raises PatternRefused with `refusal` for what takes longer than MATCH_SECONDS, and Crowded where there is no place for it.
        """
        key = blake2b(f"{kind} {text}".encode(errors="surrogatepass"), digest_size=16).digest()
        now = self._clock.seconds()
        since = self._slow.get(key)
        if since is not None and now - since < SLOW_PATTERN_SECONDS:
            again = f"it did not answer {now - since:.0f} s ago, and is not tried again for {SLOW_PATTERN_SECONDS:.0f} s"
            raise PatternRefused(f"{refusal}: {again}")
        asker = ASKER.get()

        async def matched(asked: Asked) -> Any:
            try:
                return await self._matched(asked, asker, take, kind, *request)
            except (ChildDied, ChildNotStarted) as died:
                if isinstance(died, ChildDied) and died.late:
                    self._note_slow(key)
                raise PatternRefused(f"{refusal}: {died}") from None

        return await leavable(matched)

    async def _matched(self, asked: Asked, asker: str, take: Callable[[Any], None], kind: str, *request: Any) -> Any:
        line = await self._turn_of(asker)
        asked.begin()
        line.began = self._clock.seconds()
        try:
            return await line.ask(MATCH_SECONDS, take, kind, *request)
        finally:
            self._note_worked(asker, self._clock.seconds() - line.began)
            self._working[asker] -= 1
            if not self._working[asker]:
                del self._working[asker]
            self._free.append(line)
            self._serve()

    async def _turn_of(self, asker: str) -> ChildLine:
        """A child's line, once it is the turn of this asker. Raises Crowded."""
        held = self._held_by(asker)
        if held >= PLACES_OF_ASKER:
            raise Crowded(f"{held} regular expressions of yours wait to be matched; ask again in a moment")
        if self.held >= MAX_PATTERNS:
            self._displace(held)
        place = _Place(asker)
        self._waiting.append(place)
        self._serve()
        try:
            return await place.turn
        finally:
            if place in self._waiting:  # who asked has gone
                self._waiting.remove(place)

    def _displace(self, held: int) -> None:
        """Have the last that waits of who has most give its place to one who has `held`. Raises Crowded where nobody has that many more."""
        last = max(self._waiting, key=lambda place: (self._held_by(place.asker), self._worked_lately(place.asker)), default=None)
        if last is None or self._held_by(last.asker) <= held + 1:
            raise Crowded(f"{MAX_PATTERNS} regular expressions wait to be matched; ask again in a moment")
        last = [place for place in self._waiting if place.asker == last.asker][-1]
        self._waiting.remove(last)
        self.displaced += 1
        last.turn.errback(Crowded("regular expressions of others wait, and many of yours; ask again in a moment"))

    def _serve(self) -> None:
        """Give each child that is free to whose turn it is."""
        while self._free:
            able = [place for place in self._waiting if self._working[place.asker] < CHILDREN_OF_ASKER]
            if not able:
                return
            place = min(able, key=lambda place: (self._working[place.asker], self._worked_lately(place.asker)))
            self._waiting.remove(place)
            self._working[place.asker] += 1
            place.turn.callback(self._free.pop())  # the one that was free last: it is likely to have its process

    def _held_by(self, asker: str) -> int:
        return self._working[asker] + sum(place.asker == asker for place in self._waiting)

    def _worked_lately(self, asker: str) -> float:
        """Seconds that children worked for it, of which half are left each LATELY_SECONDS."""
        seconds, then = self._lately.get(asker, (0.0, 0.0))
        return float(seconds * 0.5 ** ((self._clock.seconds() - then) / LATELY_SECONDS)) if seconds else 0.0

    def _note_worked(self, asker: str, seconds: float) -> None:
        worked = self._worked_lately(asker) + seconds
        self._lately.pop(asker, None)
        self._lately[asker] = worked, self._clock.seconds()
        while len(self._lately) > MAX_ASKERS:
            del self._lately[next(iter(self._lately))]

    def _note_slow(self, key: bytes) -> None:
        self._slow.pop(key, None)
        self._slow[key] = self._clock.seconds()
        while len(self._slow) > MAX_SLOW_PATTERNS:
            del self._slow[next(iter(self._slow))]
