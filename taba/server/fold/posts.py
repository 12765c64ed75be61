"""Events that are posted: the records of their Idempotency-Keys, and the streams in which they are folded.

1. A key's record lies in the bucket of Client and key, and is written before any part of its post is folded: it has the digest of the
   request, so that another request under the same key is known wherever its parts lie, and the stream that was drawn for the post.
2. A record goes after a day of the store's age, or when its Client has too many: then the key counts anew, in another stream. Of several
   who post for one Client it is the oldest of whoever has most there: who floods under another's Client pushes out its own.
3. Whoever posts can invent Clients. So it is counted for how many Clients of a bucket a poster has taken room within a day, and it takes
   more while that is less than what is free: whatever one takes, as much is left to others, and no record is given up for another's.
4. Posts without a key share one stream of this process, which has one writer: a mark in each bucket, not one a post. A number that
   was not folded for certain is never sent again.
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from twisted.internet.defer import DeferredLock, TimeoutError
from twisted.internet.task import deferLater

from taba.batch import APPLIED, Batch, KeyPart, Verdict
from taba.bounds import DAY
from taba.errors import StoreUnavailable, TabaError
from taba.events import LOT_BYTES, Posted
from taba.plural import many
from taba.server import keys
from taba.server.fold.cycle import WaitingBatch
from taba.server.fold.ingest import MAX_LINE_BYTES, NO_ROOM, SLOW, SLOW_SECONDS, Ingest
from taba.server.fold.marks import ANY
from taba.server.router import IsRouter
from taba.shard import Command, Writes
from taba.turns import Turns

KEYS_SECONDS = 30.0  # `later` for what came under a key that there is no room for: that is over in an hour, or in a day
CLAIM_SECONDS = 1.5  # for the record of a key; where its shard is away, the poster hears so soon
MANY_EVENTS = 1000  # of one post, whose batches are put into their lines in a turn of their own
MAX_AT_ONCE_BYTES = MAX_LINE_BYTES // 2  # of one post, with what was made of it: lists in lists come to many times that
POST_SECONDS = 5.0  # for posted events to be folded; the poster waits
KEY_MINUTES = int(DAY / 60)  # a key is remembered for so long
MAX_KEYS = 131_072  # of one Client, in all buckets: three every two seconds …
MAX_KEYS_HERE = 4096  # … and in one: 200 KiB, which each post of this Client reads and writes there
MAX_UNFINISHED = 1000  # posts whose time is remembered: who sends again does so at once
MAX_POSTERS = 10_000  # Clients that have keys in one bucket; of more, posts must wait until keys of others have gone
SHOWN_SECONDS = 120.0  # for which it is shown who was refused
MAX_NAMED = 3  # of these
HOURS = int(DAY / 3600) + 1  # in which a record of the last day may have been written
POSTER_BYTES = 8  # of the digest by which whoever posts is known here

_RECORD = struct.Struct("<16s16s16sI")  # key, digest of its request, stream; the age of the store, and above it who posted
_AGES = 1 << 24  # minutes, before the store's age is 0 again there: 31 years
_WHO = 255  # posters that are told apart there, from 1 on; 0: nobody knows, for a Server of before wrote it
_TAKEN = struct.Struct("<II")  # an hour of the store's age, and for how many Clients, whose youngest record is of then, a poster took room


class OtherRequest(TabaError):
    """Another request under an Idempotency-Key that is known."""


class TooManyKeys(StoreUnavailable):
    """So many Clients have posted with keys within a day that no more are remembered; try later."""


class PosterHasMany(TooManyKeys):
    """Whoever posts has taken as much room for Clients as is left to others; try later."""


class Taken(NamedTuple):
    """For how many Clients of a bucket a poster took room: by the hour of the store's age in which they posted last."""

    hours: dict[int, int]

    @staticmethod
    def read(content: bytes | None, age: int) -> Taken:
        """What of it is not over at this age, in minutes."""
        pairs = _TAKEN.iter_unpack(content[: len(content) // _TAKEN.size * _TAKEN.size]) if content else ()
        return Taken({hour: count for hour, count in pairs if age // 60 - hour < HOURS})

    @property
    def clients(self) -> int:
        return sum(self.hours.values())

    def moved(self, before: int | None, after: int) -> Taken:
        """With one of the hour `before` less, where that is an hour, and one of `after` more."""
        hours = {**self.hours, after: self.hours.get(after, 0) + 1}
        if before in hours:
            hours[before] -= 1
        return Taken({hour: count for hour, count in hours.items() if count > 0})

    def encode(self) -> bytes:
        return b"".join(_TAKEN.pack(*pair) for pair in sorted(self.hours.items()))


def take_room(kept: bytes | None, poster: bytes, taken: Taken, clients: int, age: int) -> tuple[bytes, Taken]:
    """Whose room a Client's records are in once one more of `poster` is among them, and what that poster has taken then. Pure.

    `kept`: the records before, behind which stands whose room they are in, unless a Server of before wrote them last; `clients`: how many
    Clients the bucket has. Raises TooManyKeys where none is left for a Client that has no records of the last day.
    """
    size = len(kept) // _RECORD.size * _RECORD.size if kept else 0
    hour, whose = age // 60, kept[size : size + POSTER_BYTES] if kept else b""
    if kept is None or is_over(kept, age):
        free = MAX_POSTERS - clients + (kept is not None)
        if free <= 0:
            raise TooManyKeys(f"{clients} Clients have posted with an Idempotency-Key within a day: no more are remembered")
        if taken.clients >= free:
            had = many(taken.clients, "Client")
            raise PosterHasMany(f"whoever posts this did so with Idempotency-Keys of {had} within a day: {free} more are left to others")
        return poster, taken.moved(None, hour)
    before = (age - _minutes(_RECORD.unpack_from(kept, size - _RECORD.size)[3], age)) // 60
    if before == hour:  # it has the room of this hour, whoever took it
        return whose, taken
    return poster, taken.moved(before if whose == poster else None, hour)


def claim(kept: bytes | None, part: KeyPart, drawn: bytes, age: int, most: int, poster: bytes = b"") -> tuple[bytes, bytes]:
    """A Client's records with that of `part` among them, which `poster` (a digest) sends, and the stream of its post: `drawn` where the key
    is new. Pure.

    Raises OtherRequest where the key is known for another request.
    """
    records = [record for record in _records(kept or b"") if _minutes(record[3], age) < KEY_MINUTES]
    for key, digest, stream, _ in records:
        if key == part.key:
            if digest != part.digest:
                raise OtherRequest("another request came under this Idempotency-Key before; take a new key for new events")
            return kept or b"", stream
    who = 1 + poster[0] % _WHO if poster else 0
    records.append((part.key, part.digest, drawn, age % _AGES + who * _AGES))
    if len(records) > most:
        _forget(records, len(records) - most)
    return b"".join(_RECORD.pack(*record) for record in records), drawn


def _forget(records: list[tuple[bytes, bytes, bytes, int]], count: int) -> None:
    """So many go: each the oldest of whoever has most; never the last, whose post goes on."""
    of = Counter(when // _AGES for *_, when in records)
    less: Counter[int] = Counter()
    newest = records[-1][3] // _AGES
    for _ in range(count):
        who = max(of, key=lambda who: (of[who] > (who == newest), of[who]))
        of[who] -= 1
        less[who] += 1
    kept = []
    for record in records:
        who = record[3] // _AGES
        if less[who]:
            less[who] -= 1
        else:
            kept.append(record)
    records[:] = kept


def is_over(kept: bytes, age: int) -> bool:
    """Whether all records of a Client have gone."""
    return all(_minutes(when, age) >= KEY_MINUTES for *_, when in _records(kept))


def _records(kept: bytes) -> Iterator[tuple[bytes, bytes, bytes, int]]:
    """Of a Client, without what stands behind them."""
    return _RECORD.iter_unpack(kept[: len(kept) // _RECORD.size * _RECORD.size])


def _minutes(when: int, age: int) -> int:
    """How old a record is, or by how much a Server of another age was ahead, below 0."""
    return (age - when + _AGES // 2) % _AGES - _AGES // 2


class Posts:
    """The posts that come to this Server. `draw` gives so many random bytes."""

    def __init__(self, router: IsRouter, ingest: Ingest, age: Callable[[], int | None], draw: Callable[[int], bytes], clock: Any):
        self._router, self._ingest, self._age, self._draw, self._clock = router, ingest, age, draw, clock
        self._turns = Turns.of(clock)
        self._stream = draw(16)
        self._numbers: dict[int, int] = {}
        self._unfinished: dict[bytes, float] = {}  # by stream, when what was posted and not folded yet came first
        self._claiming: dict[int, DeferredLock] = {}  # by bucket, while the record of a key is written there
        self._refused: dict[str, float] = {}  # posters that had taken too much room, and when they were told so last

    async def claim(self, part: KeyPart, client: str, poster: str = "") -> bytes:
        """The stream of the post with this key, which `poster` sends. Raises OtherRequest, PosterHasMany, or StoreUnavailable where
        nobody can tell now."""
        buckets = self._router.buckets
        bucket = int.from_bytes(part.key[:8], "big") % buckets
        takers, name, field = keys.posters(bucket), keys.posts(bucket), hashlib.blake2b(client.encode(), digest_size=8).digest()
        mine = hashlib.blake2b(poster.encode(), digest_size=POSTER_BYTES).digest()
        drawn, most = self._draw(16), min(MAX_KEYS_HERE, -(-MAX_KEYS // buckets))

        def update(replies: Sequence[Any]) -> Writes:
            age = self._age()
            if age is None:
                raise StoreUnavailable("the store's age is not known to this Server yet")
            kept, clients, content = replies
            records, stream = claim(kept, part, drawn, age, most, mine)
            if records == kept:
                return Writes([], stream)
            taken = Taken.read(content, age)
            try:
                whose, now_taken = take_room(kept, mine, taken, clients, age)
            except PosterHasMany:
                self._note_refused(poster)
                raise
            writes: list[Command] = [(b"HSET", name, field, records + whose)]
            if now_taken != taken:
                writes.append((b"HSET", takers, mine, now_taken.encode()))
            return Writes(writes, stream)

        reads = [(b"HGET", name, field), (b"HLEN", name), (b"HGET", takers, mine)]
        end = self._clock.seconds() + CLAIM_SECONDS
        lock = self._claiming.setdefault(bucket, DeferredLock())  # one after the other: all write what the others watch
        if lock.locked:
            try:
                await lock.acquire().addTimeout(CLAIM_SECONDS, self._clock)
            except TimeoutError:
                raise StoreUnavailable("other keys of this bucket are being written; try again in a moment") from None
        else:
            await lock.acquire()
        try:
            stream: bytes = await self._router.transact(bucket, reads, update, end - self._clock.seconds())
            return stream
        finally:
            lock.release()
            if not lock.locked:
                self._claiming.pop(bucket, None)

    def _note_refused(self, poster: str) -> None:
        self._refused.pop(poster, None)
        self._refused[poster] = self._clock.seconds()
        if len(self._refused) > MAX_NAMED:
            del self._refused[next(iter(self._refused))]

    @property
    def problems(self) -> list[str]:
        """What somebody should look at, in sentences."""
        since = self._clock.seconds() - SHOWN_SECONDS
        return [
            f"{poster or 'somebody'} posts under Idempotency-Keys of ever new Clients, and has as much room for them as is left to others: "
            "further ones wait until a day has gone; if they are meant, give whoever posts tokens of their own"
            for poster, when in self._refused.items()
            if when > since
        ]

    def time_of(self, stream: bytes | None, now: float) -> float:
        """When events that have no time happened: where a post comes again that was not folded yet, when it first came, so that what
        Handlers have done of it is found again."""
        return now if stream is None else self._unfinished.get(stream, now)

    def _note(self, stream: bytes | None, now: float, is_folded: bool) -> bool:
        if stream is not None:
            since = self._unfinished.pop(stream, now)
            if not is_folded:
                self._unfinished[stream] = since
                if len(self._unfinished) > MAX_UNFINISHED:
                    del self._unfinished[next(iter(self._unfinished))]
        return is_folded

    async def fold(self, posted: Posted, stream: bytes | None, now: float) -> bool:
        """Fold a post that came `now`, in the stream of its key, or with None in this process's own: whether all of it was folded in time.

        Where a Handler takes long it is asked again: in a key's stream under the same numbers, in this process's under new ones.
        """
        end = self._clock.seconds() + POST_SECONDS
        if posted.accepted > MANY_EVENTS:
            await self._turns.breathe()
        waiting = self._waiting(posted, stream)
        while True:
            left = await self._submit(waiting, end)
            if not left:
                return self._note(stream, now, True)
            if not _is_slow(left, stream is not None) or self._clock.seconds() + SLOW_SECONDS >= end:
                return self._note(stream, now, False)
            await deferLater(self._clock, SLOW_SECONDS)
            waiting = [item if stream else self._renewed(item) for item, _ in left]

    async def _submit(self, waiting: Sequence[WaitingBatch], end: float) -> list[tuple[WaitingBatch, Verdict]]:
        """What was not folded, and why. As much goes into the lines at once as one line surely takes beside that of others."""
        begin = 0
        while begin < len(waiting):
            until, room = begin, MAX_AT_ONCE_BYTES
            while until < len(waiting) and (until == begin or room >= _size(waiting[until])):
                room -= _size(waiting[until])
                until += 1
            some = waiting[begin:until]
            verdicts = await self._ingest.submit(some, end - self._clock.seconds())
            left = [(item, verdict) for item, verdict in zip(some, verdicts, strict=True) if verdict.word != APPLIED]
            if left:
                return left + [(item, NO_ROOM) for item in waiting[until:]]
            begin = until
        return []

    def _waiting(self, posted: Posted, stream: bytes | None) -> list[WaitingBatch]:
        waiting = []
        for bucket, lots in posted.lots.items():
            for number, lot in enumerate(lots, start=1):
                made = posted.made[bucket][number - 1]
                item = WaitingBatch(number - 1, Batch(stream or self._stream, bucket, number, [*lot], made_bytes=made), LOT_BYTES)
                waiting.append(item if stream else self._renewed(item))
        return waiting

    def _renewed(self, item: WaitingBatch) -> WaitingBatch:
        """With the next number of this process's stream."""
        number = self._numbers[item.batch.bucket] = self._numbers.get(item.batch.bucket, 0) + 1
        return item._replace(follows=ANY, batch=item.batch._replace(number=number))


def _is_slow(left: Sequence[tuple[WaitingBatch, Verdict]], has_key: bool) -> bool:
    """Whether what was not folded may be sent again: without a key only where it is certain that nothing of it was folded."""
    again = [verdict.why == SLOW or verdict == NO_ROOM for _, verdict in left]
    return any(again) if has_key else all(again)


def _size(item: WaitingBatch) -> int:
    """What it takes in a line."""
    return item.size + item.batch.made_bytes
