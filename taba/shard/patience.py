"""Waiting: growing pauses between tries, up to a deadline; and how long something of others has stood still.

No server's clock decides here: whoever holds something raises a counter in it, and whoever saw it unchanged for long
enough, by a clock of its own, may take it for abandoned.
"""

from __future__ import annotations

from collections.abc import Awaitable, Hashable
from random import Random
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from taba.errors import StoreUnavailable

FIRST_PAUSE_SECONDS = 0.005  # between tries; doubled, jittered …
LAST_PAUSE_SECONDS = 0.5  # … up to this
LEAST_TRY_SECONDS = 0.1  # a try that has less ends for want of time, and says so instead of what kept those before it
SEALED_PAUSE_SECONDS = 0.01  # a sealed bucket opens within milliseconds, elsewhere
MOST_WATCHED = 100_000  # things of others that one process remembers; those that it looked at longest ago are seen anew
LOOK_AFTER_TRIES = 10  # on a sealed bucket; its mover may have died between publishing the map and telling the source


T = TypeVar("T")


class BucketAway(StoreUnavailable):
    """One bucket is sealed, or nobody is known to have it: its servers may be well."""


class Pauses:
    """Pauses between tries, which end with StoreUnavailable when whoever tries is closed."""

    def __init__(self, reactor: Any):
        self._reactor = reactor
        self._waiting: set[Deferred[None]] = set()
        self._is_closed = False

    async def wait(self, seconds: float) -> None:
        """Wait so long. Raises StoreUnavailable once `close` was called."""
        if self._is_closed:
            raise StoreUnavailable("closed")
        pause: Deferred[None] = deferLater(self._reactor, seconds)
        self._waiting.add(pause)
        try:
            await pause
        except CancelledError:
            if self._is_closed:
                raise StoreUnavailable("closed") from None
            raise
        finally:
            self._waiting.discard(pause)

    def close(self) -> None:
        """End all pauses, and those to come."""
        self._is_closed = True
        for pause in list(self._waiting):
            pause.cancel()


class Deadline:
    """How long there still is, and growing pauses between tries."""

    def __init__(self, reactor: Any, random: Random, seconds: float, pauses: Pauses):
        self._pauses = pauses
        self._reactor = reactor
        self._random = random
        self._end = reactor.seconds() + seconds
        self._pause = FIRST_PAUSE_SECONDS
        self._tries = 0

    @property
    def now(self) -> float:
        return float(self._reactor.seconds())

    @property
    def left(self) -> float:
        return float(max(self._end - self._reactor.seconds(), 0.0))

    async def not_counting(self, work: Awaitable[T]) -> T:
        """What `work` gives. Its time is the caller's own: what is left for the store is as much afterwards as before."""
        began = self.now
        try:
            return await work
        finally:
            self._end += self.now - began

    def is_time_to_look(self, is_sealed: bool) -> bool:
        """Whether to look for a newer map: where a bucket is sealed only now and then, for its owner key will say when it has moved."""
        self._tries += 1
        return not is_sealed or self._tries % LOOK_AFTER_TRIES == 0

    async def pause(self, error: Exception, seconds: float | None = None) -> None:
        """Wait before the next try; without `seconds`, longer each time. Raises `error` when there will be no time for one: it
        says more than that a try without time had no answer, and no connection is closed for that."""
        if seconds is None:
            seconds, self._pause = self._pause, min(self._pause * 2, LAST_PAUSE_SECONDS)
        seconds *= 0.5 + self._random.random()
        if self.left <= seconds + LEAST_TRY_SECONDS:
            raise error if isinstance(error, StoreUnavailable) else BucketAway(str(error))
        await self._pauses.wait(seconds)


class Standing:
    """How long things that others hold have stood unchanged, by our own clock, since we first saw them as they are.

    Whoever holds one writes something new into it again and again, never the same twice: so what is unchanged was not
    touched, also between two looks.
    """

    def __init__(self, reactor: Any):
        self._reactor = reactor
        self._seen: dict[Hashable, tuple[bytes | None, float]] = {}

    def seconds(self, what: Hashable, content: bytes | None) -> float:
        """How long `what` has had `content`: 0.0 when it is new to us."""
        now = float(self._reactor.seconds())
        known = self._seen.pop(what, None)
        since = known[1] if known is not None and known[0] == content else now
        self._seen[what] = (content, since)  # at the end: the first is the one that was looked at longest ago
        if len(self._seen) > MOST_WATCHED:
            del self._seen[next(iter(self._seen))]
        return now - since

    def forget(self, what: Hashable) -> None:
        """It is not there any more."""
        self._seen.pop(what, None)
