"""Regular expressions of askers, and texts of PromQL, in child processes: whom a child works for next.

1. One asker has all children but one at the most (`taba.places`): who asks beside one that asks for what takes long, waits for no child.
2. A child that is free works for whom the fewest work; of those, for whom they have worked least of late; of those, for who came first.
   So a good one goes before whatever waits of one that asks for what takes long, again and again.
3. What took too long is refused for a while without being tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

from taba.errors import TabaError
from taba.places import ASKER, Places
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


class Patterns:
    """The children that match, and who waits for one. `lines`: PATTERN_CHILDREN of them."""

    def __init__(self, clock: Any, lines: Sequence[ChildLine]):
        self._clock = clock
        self.lines = tuple(lines)
        self._free = list(lines)
        what = "regular expressions that wait or are being matched"
        self.places = Places(what, MAX_PATTERNS, PLACES_OF_ASKER, len(self.lines), CHILDREN_OF_ASKER, self._worked_lately)
        self._lately: dict[str, tuple[float, float]] = {}  # by asker: seconds that children worked for it, as of when
        self._slow: dict[bytes, float] = {}  # by digest of what was asked: when it took too long

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
        await self.places.take(asker)
        line = self._free.pop()  # the one that was free last: it is likely to have its process
        asked.begin()
        line.began = self._clock.seconds()
        try:
            return await line.ask(MATCH_SECONDS, take, kind, *request)
        finally:
            self._note_worked(asker, self._clock.seconds() - line.began)
            self._free.append(line)
            self.places.give_back(asker)

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
