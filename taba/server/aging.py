"""The store's age: the minutes that have passed for it, counted by its Servers' monotonic clocks. By it alone anything is forgotten.

1. It is a counter in the store. A Server raises it by one after it has seen it unchanged for a minute, under WATCH: so it never runs
   faster than time, however many Servers there are and whatever their clocks and the store's say. While no Server is there it stands.
2. What is stamped with it is as old as the difference says, or younger; a difference below 0 (the store went back in time) is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from taba.batch import MAX_STORE_AGE
from taba.server import keys
from taba.server.router import IsRouter
from taba.shard import Writes

BUCKET = 0  # where the counter lies
MINUTE_SECONDS = 60.0
LOOK_SECONDS = 5.0  # between two looks at it


class Watch:
    """Whether a counter has stood still for a minute. Pure; `now` is monotonic."""

    def __init__(self) -> None:
        self._seen: tuple[int, float] | None = None

    def is_due(self, age: int, now: float) -> bool:
        """The counter was `age` just `now`: whether it has been so, at every look, for a minute."""
        if self._seen is None or self._seen[0] != age:
            self._seen = (age, now)
        return now - self._seen[1] >= MINUTE_SECONDS


class StoreAge:
    """The age of the store, as this Server knows it. `value` is None until it was read once."""

    def __init__(self, router: IsRouter, seconds: Callable[[], float]):
        self.value: int | None = None
        self._router, self._seconds = router, seconds
        self._watch = Watch()

    def __call__(self) -> int | None:
        """The age in minutes, or None."""
        return self.value

    async def look(self) -> None:
        """Read the counter, and raise it where that is due; make it where there is none. Raises StoreUnavailable."""

        def update(replies: Sequence[Any]) -> Writes:
            age = read_age(replies[0])
            if age is None:
                return Writes([(b"SET", keys.age(BUCKET), b"0")], 0)
            # a try whose outcome nobody knew finds what it wrote, and that has not stood for a minute
            if age < MAX_STORE_AGE and self._watch.is_due(age, self._seconds()):
                return Writes([(b"SET", keys.age(BUCKET), b"%d" % (age + 1))], age + 1)
            return Writes([], age)

        self.value = await self._router.transact(BUCKET, [(b"GET", keys.age(BUCKET))], update)


def read_age(content: bytes | None) -> int | None:
    """The age in `content`; None where there is none. ValueError for what is no age: nobody may forget anything then."""
    if content is None:
        return None
    if not content.isdigit() or int(content) > MAX_STORE_AGE:
        raise ValueError(f"the store's age is no number: {content[:40]!r}")
    return int(content)


def passed(since: int, age: int | None) -> int:
    """Minutes that passed between two ages of a store; 0 where it went back in time, or the second is not known."""
    return 0 if age is None else max(0, age - since)
