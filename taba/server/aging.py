"""The store's age: the minutes that have passed for it, counted by its Servers' monotonic clocks. By it alone anything is forgotten.

1. It is a counter in the store. A Server raises it by one after it has seen it unchanged for a minute, under WATCH: so it never runs
   faster than time, however many Servers there are and whatever their clocks and the store's say. While no Server is there it stands.
2. What is stamped with it is as old as the difference says, or younger; a difference below 0 (the store went back in time) is 0.
3. Beside the counter stands the Unix time of when it was raised. It goes on by a minute each time: another time is taken only where the
   Server's clock and the store's agree on it, and where it is far off, only after an hour in which they did.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, Protocol

from taba.batch import MAX_STORE_AGE
from taba.server import keys
from taba.shard import Writes

BUCKET = 0  # where the counter lies
MINUTE_SECONDS = 60.0
LOOK_SECONDS = 5.0  # between two looks at it
AGREE_SECONDS = 300.0  # clocks that differ by no more agree
DOUBT_MINUTES = 60  # for which a time that is far off must stand before it is taken


class HasAge(Protocol):
    """What this needs of taba.shard.Router."""

    def transact(self, bucket: int, reads: Sequence[Any], update: Callable[[Any], Any]) -> Awaitable[Any]: ...
    def time(self, bucket: int) -> Awaitable[float]: ...


class Record(NamedTuple):
    """What stands in the store: its age in minutes, Unix time then, and for how many minutes Servers have said another time."""

    age: int
    wall: float
    doubts: int


class Watch:
    """Whether a counter has stood still for a minute. Pure; `now` is monotonic."""

    def __init__(self) -> None:
        self._seen: tuple[int, float] | None = None

    def is_due(self, age: int, now: float) -> bool:
        """The counter was `age` just `now`: whether it has been so, at every look, for a minute."""
        if self._seen is None or self._seen[0] != age:
            self._seen = (age, now)
        return now - self._seen[1] >= MINUTE_SECONDS


def raised(before: Record, wall: float, store_time: float | None) -> Record:
    """A minute later, by a Server whose clock says `wall` beside a store whose clock says `store_time`. Pure."""
    expected = before.wall + MINUTE_SECONDS
    if store_time is None or abs(wall - store_time) > AGREE_SECONDS:
        return Record(before.age + 1, expected, before.doubts)
    if abs(wall - expected) <= AGREE_SECONDS or before.doubts + 1 >= DOUBT_MINUTES:
        return Record(before.age + 1, wall, 0)
    return Record(before.age + 1, expected, before.doubts + 1)


class StoreAge:
    """The age of the store, as this Server knows it: None until it was read once. `seconds` is monotonic, `wall` this host's clock.

    `disagreement` says which clocks do not agree on Unix time; None where all do. `unreadable`: what there is and is no age.
    """

    def __init__(self, router: HasAge, seconds: Callable[[], float], wall: Callable[[], float]):
        self.record: Record | None = None
        self.store_time: float | None = None
        self._differing: str | None = None
        self.unreadable: str | None = None
        self.disagreement: str | None = "the store has not been asked yet"
        self._router, self._seconds, self._wall = router, seconds, wall
        self._watch = Watch()

    def __call__(self) -> int | None:
        """The age in minutes, or None."""
        return None if self.record is None else self.record.age

    @property
    def problems(self) -> list[str]:
        """What needs a person, in sentences."""
        if self.unreadable is not None:
            key = keys.age(BUCKET).decode()
            return [
                f"{self.unreadable}: Agents that begin must wait, and nothing is forgotten; delete {key} in the store, and it begins anew"
            ]
        # what was recorded may be old, where no Server was there for a while: nobody needs to do anything about that
        apart = self._differing
        return [f"{apart}: no Handler is asked what may be pruned until they agree; set them right (NTP)"] if apart else []

    async def look(self) -> None:
        """Read the counter, and raise it where that is due; make it where there is none. Raises StoreUnavailable."""
        self.store_time = store_time = await self._router.time(BUCKET)
        self._differing = differ(self._wall(), store_time)

        def update(replies: Sequence[Any]) -> Writes:
            record = read_record(replies[0])
            if record is None:
                record = Record(0, self._wall(), 0)
                return Writes([_written(record)], record)
            # a try whose outcome nobody knew finds what it wrote, and that has not stood for a minute
            if record.age < MAX_STORE_AGE and self._watch.is_due(record.age, self._seconds()):
                record = raised(record, self._wall(), store_time)
                return Writes([_written(record)], record)
            return Writes([], record)

        try:
            self.record = record = await self._router.transact(BUCKET, [(b"GET", keys.age(BUCKET))], update)
        except ValueError as error:
            self.record, self.unreadable = None, str(error)
            return
        self.unreadable = None
        self.disagreement = disagreement(self._wall(), store_time, record)


def disagreement(wall: float, store_time: float, record: Record) -> str | None:
    """Which of these do not agree on Unix time, in words; None where all do. Pure."""
    differing = differ(wall, store_time)
    if differing is not None:
        return differing
    off = wall - record.wall
    if not -AGREE_SECONDS <= off <= AGREE_SECONDS + MINUTE_SECONDS:
        return f"this host's clock is {off:.0f} s off from what Servers of this store went by until now"
    return None


def differ(wall: float, store_time: float) -> str | None:
    """That these clocks do not agree, in words; None where they do. Pure."""
    apart = abs(wall - store_time)
    return f"this host's clock and the store's differ by {apart:.0f} s" if apart > AGREE_SECONDS else None


def read_record(content: bytes | None) -> Record | None:
    """The record in `content`; None where there is none. ValueError for what is no record: nobody may forget anything then."""
    if content is None:
        return None
    fields = content.split()
    if len(fields) != 3 or not fields[0].isdigit() or int(fields[0]) > MAX_STORE_AGE or not fields[2].isdigit():
        raise ValueError(f"the store's age is no record: {content[:60]!r}")
    return Record(int(fields[0]), float(fields[1]), int(fields[2]))


def _written(record: Record) -> tuple[bytes, ...]:
    return (b"SET", keys.age(BUCKET), b"%d %.3f %d" % record)


def passed(since: int, age: int | None) -> int:
    """Minutes that passed between two ages of a store; 0 where it went back in time, or the second is not known."""
    return 0 if age is None else max(0, age - since)
