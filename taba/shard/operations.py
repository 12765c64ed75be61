"""Strings, counters, hashes, sets, lists and sorted sets by key, on whichever shard: what a Router offers to those who want no more.

1. A key `name` (text or bytes) is in the bucket that the published hash of its bytes says, as `taba:{bucket}:key:name`.
2. Every write is a transaction on its bucket: it WATCHes what it reads, the owner key too, and is done once. What it
   answers is computed from what it read; whether it was done, when nobody knows, from a key that it writes along.
3. Reads of many keys go to all shards at once, one round trip each, and come back in the order asked for. Each key is
   as it was at one moment; several keys, not of one bucket, need not be of one moment.
4. Values are bytes, in and out; text is written as UTF-8. Nothing is decoded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple

from twisted.internet.defer import CancelledError, Deferred, DeferredLock, ensureDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeout

from taba import names
from taba.bounds import MiB
from taba.errors import StoreUnavailable
from taba.shard import amounts
from taba.shard.buckets import prefix_of
from taba.shard.patience import Pauses, Standing
from taba.shard.servers.connection import Command
from taba.shard.servers.gather import gather
from taba.shard.transaction import BucketBusy, Update, Writes

MAX_NAME_BYTES = 1024  # names are kept twice, and listed
MAX_CONTENT_BYTES = 8 * MiB  # one value; a reply holds several, and every connection may have one
MAX_PAGE_NAMES = 10_000  # of one `scan`: 10 MiB of the longest names
PAGE_BUCKETS = 16  # that one `scan` looks into at a time
DONE_SECONDS = 120.0  # how long what a Router did last is remembered after it was seen unchanged; a write is tried for less
FEW_DOERS = 32  # Routers whose last write one bucket remembers without looking whether they still write
DONE_SWEEP_AFTER = 256  # writes of this Router; then it looks after those that write no more
TURN_SECONDS = 20.0  # how long a write waits for the writes of this Router to its bucket before it
BUSY_PAUSE_SECONDS = 0.01  # a transaction that needed the lease takes as long as one that did not
SWEEP_AFTER = 16  # new keys of this Router …
SWEPT_NAMES = 48  # … so many names are looked at: more than one dead one goes for each that comes, once a third are dead
THERE, MAYBE, GONE = "there", "maybe", "gone"  # a key after a write

Text = str | bytes
Decide = Callable[[bytes, list[Any]], tuple[list[Command], Any]]  # key, replies → commands, result


class Page(NamedTuple):
    """Some names, and the cursor to go on from; None when there are no more."""

    names: list[bytes]
    cursor: bytes | None


def _bytes_of(what: str, text: object) -> bytes:
    if isinstance(text, str):
        return text.encode()
    if isinstance(text, (bytes, bytearray, memoryview)):
        return bytes(text)
    raise TypeError(f"{what} is text or bytes, not {type(text).__name__}: {text!r:.60}")


def plain(text: Text) -> bytes:
    """The bytes of a value. TypeError for what is neither text nor bytes, ValueError for what is too long for one."""
    content = _bytes_of("a value", text)
    if len(content) > MAX_CONTENT_BYTES:
        raise ValueError(f"a value of {len(content)} bytes; at most {MAX_CONTENT_BYTES}")
    return content


def plain_name(name: Text) -> bytes:
    """The bytes of a name. TypeError for what is neither text nor bytes, ValueError for one that is empty or too long."""
    content = _bytes_of("a name", name)
    if not 1 <= len(content) <= MAX_NAME_BYTES:
        raise ValueError(f"a name takes 1 to {MAX_NAME_BYTES} bytes, not {len(content)}")
    return content


def bucket_of(name: Text, buckets: int) -> int:
    """The bucket of `name`: the first 8 bytes of BLAKE2b of its bytes, big endian, modulo `buckets`. As `taba.names.bucket_of`."""
    return names.bucket_of(plain_name(name), buckets)


def _names_key(bucket: int) -> bytes:
    return prefix_of(bucket) + b"names"  # a sorted set without scores: in the order of bytes, wherever and whenever it is read


def _done_key(bucket: int, doer: bytes) -> bytes:
    """The number of the last write that the Router `doer` made in the bucket: by it, it knows whether a write was made."""
    return prefix_of(bucket) + b"done:" + doer


def _doers_key(bucket: int) -> bytes:
    """A set: whose last writes the bucket remembers."""
    return prefix_of(bucket) + b"doers"


class _Write(NamedTuple):
    """One write by key: what it reads of its key, what it decides by that, and whether the key is there then."""

    name: bytes
    key: bytes
    reads: Sequence[Command]
    decide: Decide
    after: str


class Operations:
    """A Router's operations by key. All raise StoreUnavailable when the store does not answer in time (a write may then have
    been done), TransactionRefused for a key that holds something else, ValueError for what is no name or value."""

    def __init__(self, reactor: Any, pauses: Pauses, standing: Standing, counts: Counter[str], token: str):
        self.counts = counts
        self.standing = standing
        self._reactor = reactor
        self._pauses = pauses
        self._token = token
        self._tries = 0
        self._made = 0  # keys, since the last sweep
        self._done = 0  # writes, since we last looked after other Routers'
        self._turns: dict[int, tuple[DeferredLock, int]] = {}

    # what a Router has

    @property
    def buckets(self) -> int:
        raise NotImplementedError

    async def read_many(self, reads: Mapping[int, Sequence[Command]]) -> dict[int, list[Any]]:
        raise NotImplementedError

    async def read(self, bucket: int, reads: Sequence[Command]) -> list[Any]:
        raise NotImplementedError

    async def transact(self, bucket: int, reads: Sequence[Command], update: Update, seconds: float | None = None) -> Any:
        raise NotImplementedError

    async def transact_patiently(self, bucket: int, reads: Sequence[Command], update: Update) -> Any:
        """`transact`, and where another transaction holds the bucket's lease, again when that is over."""
        end = self._reactor.seconds() + TURN_SECONDS
        while True:
            try:
                return await self.transact(bucket, reads, update)
            except BucketBusy:
                if self._reactor.seconds() > end:
                    raise
                await self._pauses.wait(BUSY_PAUSE_SECONDS)

    # --- where a key is ---

    def bucket_of(self, name: Text) -> int:
        """The bucket of the key `name`."""
        return bucket_of(name, self.buckets)

    def key(self, name: Text, bucket: int | None = None) -> bytes:
        """`name` as the store has it, for `read` and `transact`; with `bucket`, in that one, beside others there."""
        return prefix_of(self.bucket_of(name) if bucket is None else bucket) + b"key:" + plain_name(name)

    # --- any key ---

    async def exists(self, name: Text) -> bool:
        return bool(await self._read(name, b"EXISTS"))

    async def delete(self, *names: Text) -> int:
        """How many of `names` were there; each goes in a transaction of its own."""
        removed = 0
        for name in names:
            removed += await self._write(name, [], lambda key, replies: ([(b"DEL", key)] if replies[0] else [], replies[0]), GONE)
        return removed

    async def expire(self, name: Text, seconds: float | None) -> bool:
        """Let the key go after `seconds`, or never with None; False when there is no such key."""
        stays = None if seconds is None else amounts.milliseconds(_what("expire", name), seconds)

        def decide(key: bytes, replies: list[Any]) -> tuple[list[Command], bool]:
            change = (b"PERSIST", key) if stays is None else (b"PEXPIRE", key, stays)
            return ([change] if replies[0] else []), bool(replies[0])

        return bool(await self._write(name, [], decide, MAYBE))

    async def ttl(self, name: Text) -> float | None:
        """Seconds until the key goes, `math.inf` where it never does; None when there is no such key."""
        left = int(await self._read(name, b"PTTL"))
        return None if left == -2 else math.inf if left == -1 else left / 1000

    async def type(self, name: Text) -> str | None:
        """What the key holds: string, hash, set, list or zset; None when there is no such key."""
        told: bytes = await self._read(name, b"TYPE")
        return None if told == b"none" else told.decode()

    # --- strings and counters ---

    async def get(self, name: Text) -> bytes | None:
        found: bytes | None = await self._read(name, b"GET")
        return found

    async def mget(self, names: Sequence[Text]) -> list[bytes | None]:
        """The values of `names`, in order; one round trip per shard."""
        return await self._read_each(names, b"GET")

    async def set(self, name: Text, value: Text, seconds: float | None = None, new: bool = False) -> bool:
        """Give `name` this value, for `seconds` or for ever. With `new` only where there was none; False when there was."""
        content = plain(value)
        stays = None if seconds is None else amounts.milliseconds(_what("set", name), seconds)

        def decide(key: bytes, replies: list[Any]) -> tuple[list[Command], bool]:
            if new and replies[0]:
                return [], False
            return [(b"SET", key, content) if stays is None else (b"SET", key, content, b"PX", stays)], True

        return bool(await self._write(name, [], decide))

    async def mset(self, values: Mapping[Text, Text] | Mapping[str, Text] | Mapping[bytes, Text]) -> None:
        """`set` of each; one transaction a bucket, all buckets at once."""
        await self.together(lambda within: [within.set(name, value) for name, value in values.items()])

    async def getdel(self, name: Text) -> bytes | None:
        """The value of `name`, which is removed."""

        def decide(key: bytes, replies: list[Any]) -> tuple[list[Command], bytes | None]:
            return ([(b"DEL", key)] if replies[0] else []), replies[1]

        found: bytes | None = await self._write(name, [(b"GET",)], decide, GONE)
        return found

    async def incr(self, name: Text, amount: int = 1) -> int:
        """Add to a counter, which begins at 0; the sum."""
        added = amounts.whole(_what("incr", name), amount)

        def decide(key: bytes, replies: list[Any]) -> tuple[list[Command], int]:
            return [(b"INCRBY", key, b"%d" % added)], amounts.whole_sum(f"{name!r}", replies[1], added)

        return int(await self._write(name, [(b"GET",)], decide))

    async def incrbyfloat(self, name: Text, amount: float) -> float:
        """Add to a number, which begins at 0; the sum, which is finite. It is written so that it reads back exactly."""
        added = amounts.finite(_what("incrbyfloat", name), amount)

        def decide(key: bytes, replies: list[Any]) -> tuple[list[Command], float]:
            total = amounts.finite_sum(f"{name!r}", replies[1], added)
            return [(b"SET", key, amounts.written(total), b"KEEPTTL")], total

        return float(await self._write(name, [(b"GET",)], decide))

    # --- hashes ---

    async def hget(self, name: Text, field: Text) -> bytes | None:
        found: bytes | None = await self._read(name, b"HGET", plain(field))
        return found

    async def hmget(self, name: Text, fields: Sequence[Text]) -> list[bytes | None]:
        return list(await self._read(name, b"HMGET", *map(plain, fields))) if fields else []

    async def hgetall(self, name: Text) -> dict[bytes, bytes]:
        return _pairs(await self._read(name, b"HGETALL"))

    async def hlen(self, name: Text) -> int:
        return int(await self._read(name, b"HLEN"))

    async def hkeys(self, name: Text) -> list[bytes]:
        return list(await self._read(name, b"HKEYS"))

    async def hgetall_many(self, names: Sequence[Text]) -> list[dict[bytes, bytes]]:
        """The whole hashes of `names`, in order; one round trip per shard."""
        return [_pairs(reply) for reply in await self._read_each(names, b"HGETALL")]

    async def hset(self, name: Text, fields: Mapping[Text, Text] | Mapping[str, Text] | Mapping[bytes, Text]) -> int:
        """Set fields; how many of them are new."""
        content = {plain(field): plain(value) for field, value in fields.items()}
        if not content:
            return 0

        def decide(key: bytes, replies: list[Any]) -> tuple[list[Command], int]:
            pairs = [part for pair in content.items() for part in pair]
            return [(b"HSET", key, *pairs)], replies[1].count(None)

        return int(await self._write(name, [(b"HMGET", *content)], decide))

    async def hdel(self, name: Text, *fields: Text) -> int:
        """Remove fields; how many were there."""
        content = list(dict.fromkeys(map(plain, fields)))
        if not content:
            return 0

        def decide(key: bytes, replies: list[Any]) -> tuple[list[Command], int]:
            found = [field for field, value in zip(content, replies[1], strict=True) if value is not None]
            return ([(b"HDEL", key, *found)] if found else []), len(found)

        return int(await self._write(name, [(b"HMGET", *content)], decide, MAYBE))

    async def hincrby(self, name: Text, field: Text, amount: int = 1) -> int:
        """Add to a counter in a hash; the sum."""
        part = plain(field)
        added = amounts.whole(_what("hincrby", name, field), amount)

        def decide(key: bytes, replies: list[Any]) -> tuple[list[Command], int]:
            return [(b"HINCRBY", key, part, b"%d" % added)], amounts.whole_sum(f"{field!r} of {name!r}", replies[1], added)

        return int(await self._write(name, [(b"HGET", part)], decide))

    # --- sets ---

    async def smembers(self, name: Text) -> frozenset[bytes]:
        return frozenset(await self._read(name, b"SMEMBERS"))

    async def smembers_many(self, names: Sequence[Text]) -> list[frozenset[bytes]]:
        """The sets of `names`, in order; one round trip per shard."""
        return [frozenset(reply) for reply in await self._read_each(names, b"SMEMBERS")]

    async def sismember(self, name: Text, member: Text) -> bool:
        return bool(await self._read(name, b"SISMEMBER", plain(member)))

    async def scard(self, name: Text) -> int:
        return int(await self._read(name, b"SCARD"))

    async def sadd(self, name: Text, *members: Text) -> int:
        """Add members; how many are new."""
        return await self._change_set(name, members, 0, b"SADD")

    async def srem(self, name: Text, *members: Text) -> int:
        """Remove members; how many were there."""
        return await self._change_set(name, members, 1, b"SREM")

    async def _change_set(self, name: Text, members: Sequence[Text], wanted: int, command: bytes) -> int:
        content = list(dict.fromkeys(map(plain, members)))
        if not content:
            return 0

        def decide(key: bytes, replies: list[Any]) -> tuple[list[Command], int]:
            changed = [member for member, there in zip(content, replies[1], strict=True) if there == wanted]
            return ([(command, key, *changed)] if changed else []), len(changed)

        return int(await self._write(name, [(b"SMISMEMBER", *content)], decide, MAYBE if command == b"SREM" else THERE))

    # --- lists ---

    async def lrange(self, name: Text, first: int = 0, last: int = -1) -> list[bytes]:
        """The elements from `first` to `last`, inclusive; negative ones count from the end."""
        return list(await self._read(name, b"LRANGE", _place("lrange", name, first), _place("lrange", name, last)))

    async def llen(self, name: Text) -> int:
        return int(await self._read(name, b"LLEN"))

    async def lindex(self, name: Text, index: int) -> bytes | None:
        """The element at `index`; a negative one counts from the end. None where there is none."""
        found: bytes | None = await self._read(name, b"LINDEX", _place("lindex", name, index))
        return found

    async def lpush(self, name: Text, *values: Text) -> int:
        """Put values before the first, one after the other; how many there are then."""
        return await self._push(name, values, b"LPUSH")

    async def rpush(self, name: Text, *values: Text) -> int:
        """Put values after the last; how many there are then."""
        return await self._push(name, values, b"RPUSH")

    async def lpop(self, name: Text, count: int = 1) -> list[bytes]:
        """Take up to `count` from the front, in order."""
        taken = _count("lpop", name, count)
        return await self._pop(name, 0, taken - 1, taken, -1)

    async def rpop(self, name: Text, count: int = 1) -> list[bytes]:
        """Take up to `count` from the end, the last one first."""
        taken = _count("rpop", name, count)
        return (await self._pop(name, -taken, -1, 0, -taken - 1))[::-1]

    async def ltrim(self, name: Text, first: int, last: int) -> None:
        """Keep only the elements from `first` to `last`, inclusive."""
        span = (_place("ltrim", name, first), _place("ltrim", name, last))

        def decide(key: bytes, replies: list[Any]) -> tuple[list[Command], None]:
            return [(b"LTRIM", key, *span)], None

        await self._write(name, [(b"LLEN",)], decide, MAYBE)

    async def _push(self, name: Text, values: Sequence[Text], command: bytes) -> int:
        content = list(map(plain, values))

        def decide(key: bytes, replies: list[Any]) -> tuple[list[Command], int]:
            return ([(command, key, *content)] if content else []), int(replies[1]) + len(content)

        return int(await self._write(name, [(b"LLEN",)], decide, THERE if content else MAYBE))

    async def _pop(self, name: Text, first: int, last: int, keep_first: int, keep_last: int) -> list[bytes]:
        def decide(key: bytes, replies: list[Any]) -> tuple[list[Command], list[bytes]]:
            trim = (b"LTRIM", key, b"%d" % keep_first, b"%d" % keep_last)
            return ([trim] if replies[1] else []), replies[1]

        return list(await self._write(name, [(b"LRANGE", b"%d" % first, b"%d" % last)], decide, MAYBE))

    # --- sorted sets ---

    async def zadd(self, name: Text, scores: Mapping[Text, float] | Mapping[str, float] | Mapping[bytes, float]) -> int:
        """Give members their scores; how many of them are new."""
        content = {plain(member): _score("zadd", name, member, score) for member, score in scores.items()}
        if not content:
            return 0

        def decide(key: bytes, replies: list[Any]) -> tuple[list[Command], int]:
            pairs = [part for member, score in content.items() for part in (score, member)]
            return [(b"ZADD", key, *pairs)], replies[1].count(None)

        return int(await self._write(name, [(b"ZMSCORE", *content)], decide))

    async def zincrby(self, name: Text, member: Text, amount: float) -> float:
        """Add to the score of a member, which begins at 0; the sum."""
        part = plain(member)
        added = amounts.finite(_what("zincrby", name, member), amount)

        def decide(key: bytes, replies: list[Any]) -> tuple[list[Command], float]:
            total = amounts.finite_sum(f"{member!r} of {name!r}", replies[1], added)
            return [(b"ZADD", key, amounts.written(total), part)], total

        return float(await self._write(name, [(b"ZSCORE", part)], decide))

    async def zrem(self, name: Text, *members: Text) -> int:
        """Remove members; how many were there."""
        content = list(dict.fromkeys(map(plain, members)))
        if not content:
            return 0

        def decide(key: bytes, replies: list[Any]) -> tuple[list[Command], int]:
            found = [member for member, score in zip(content, replies[1], strict=True) if score is not None]
            return ([(b"ZREM", key, *found)] if found else []), len(found)

        return int(await self._write(name, [(b"ZMSCORE", *content)], decide, MAYBE))

    async def zscore(self, name: Text, member: Text) -> float | None:
        found = await self._read(name, b"ZSCORE", plain(member))
        return None if found is None else float(found)

    async def zcard(self, name: Text) -> int:
        return int(await self._read(name, b"ZCARD"))

    async def zrank(self, name: Text, member: Text) -> int | None:
        """How many members come before `member`, by score and then by bytes; None where it is none."""
        found: int | None = await self._read(name, b"ZRANK", plain(member))
        return found

    async def zrange(self, name: Text, first: int = 0, last: int = -1, reverse: bool = False) -> list[tuple[bytes, float]]:
        """(member, score) from `first` to `last`, inclusive, by score; negative ones count from the end. `reverse`: highest first."""
        command = b"ZREVRANGE" if reverse else b"ZRANGE"
        span = (_place("zrange", name, first), _place("zrange", name, last))
        return _scored(await self._read(name, command, *span, b"WITHSCORES"))

    async def zrangebyscore(self, name: Text, low: float, high: float, count: int = MAX_PAGE_NAMES) -> list[tuple[bytes, float]]:
        """(member, score) of up to `count` members whose scores lie between `low` and `high`, inclusive; the lowest first.

        Raises ValueError for a `count` below 1: a server takes it for all there are.
        """
        limits = (b"LIMIT", b"0", b"%d" % _count("zrangebyscore", name, count))
        span = (amounts.written(amounts.fraction(_what("zrangebyscore", name), bound)) for bound in (low, high))
        return _scored(await self._read(name, b"ZRANGEBYSCORE", *span, b"WITHSCORES", *limits))

    # --- several writes at once ---

    async def together(self, make: Callable[[Operations], Sequence[Coroutine[Any, Any, Any]]]) -> list[Any]:
        """What the writes that `make` begins on its argument come to, in order: `together(lambda r: [r.set("a", "1"), r.incr("b")])`.

        One transaction a bucket, all buckets at once: what lies in one bucket is done as one, or not at all. Each name
        stands in one of them; reads have no place here. Raises for the first that fails; those of other buckets may be done.
        """
        lot = _Lot(self)
        failures: list[Exception] = []

        async def heard(one: Coroutine[Any, Any, Any]) -> Any:
            try:
                return await one
            except Exception as error:
                failures.append(error)

        begun = [ensureDeferred(heard(one)) for one in make(lot)]
        if failures:  # before anything was written
            for one in begun:
                one.cancel()
        else:
            await lot.write_all()
        results = [await one for one in begun]
        if failures:
            raise failures[0]
        return results

    # --- all names ---

    async def scan(self, cursor: bytes | None = None, prefix: Text = b"", count: int = 1000) -> Page:
        """Up to about `count` names that begin with `prefix`, in an order of no meaning, and the cursor for the next.

        A name that is there from the first page to the last is in exactly one of them, whatever moves, fails over or is
        written meanwhile; the cursor is good for ever, on any Router with the same store.
        """
        if not 1 <= count <= MAX_PAGE_NAMES:
            raise ValueError(f"takes a count from 1 to {MAX_PAGE_NAMES}, not {count}")
        begin = _bytes_of("a prefix", prefix)
        start, after = _parse_cursor(cursor, self.buckets)
        limit = max(count // PAGE_BUCKETS, PAGE_BUCKETS)
        looked = range(start, min(start + PAGE_BUCKETS, self.buckets))
        top = _end_of(begin)
        reads: dict[int, list[Command]] = {}
        for bucket in looked:
            low = b"(" + after if bucket == start and after >= begin and after else b"[" + begin
            reads[bucket] = [(b"ZRANGEBYLEX", _names_key(bucket), low, top, b"LIMIT", b"0", b"%d" % limit)]
        found = {bucket: reply for bucket, (reply,) in (await self.read_many(reads)).items()}
        page: dict[int, list[bytes]] = {}
        following: bytes | None = b"%d:" % (looked.stop) if looked.stop < self.buckets else None
        for bucket in looked:
            page[bucket] = found[bucket]
            if len(found[bucket]) == limit:
                following = b"%d:" % bucket + found[bucket][-1]
                break
        return Page(await self._still_there(page), following)

    async def names(self, prefix: Text = b"") -> AsyncIterator[bytes]:
        """All names that begin with `prefix`, page by page."""
        cursor: bytes | None = None
        while True:
            page = await self.scan(cursor, prefix)
            for name in page.names:
                yield name
            cursor = page.cursor
            if cursor is None:
                return

    async def _still_there(self, page: Mapping[int, list[bytes]]) -> list[bytes]:
        """The names of keys that have not expired or become empty; those that have are taken out of the list of names."""
        reads = {bucket: [(b"EXISTS", self.key(name, bucket)) for name in names] for bucket, names in page.items() if names}
        there: list[bytes] = []
        for bucket, replies in (await self.read_many(reads)).items():
            gone = [name for name, found in zip(page[bucket], replies, strict=True) if not found]
            there += [name for name, found in zip(page[bucket], replies, strict=True) if found]
            if gone:
                await self.transact_patiently(
                    bucket, [(b"EXISTS", self.key(name, bucket)) for name in gone], self._forgetting(bucket, gone)
                )
        return there

    def _forgetting(self, bucket: int, names: Sequence[bytes]) -> Callable[[list[Any]], Writes]:
        def update(replies: list[Any]) -> Writes:
            gone = [name for name, found in zip(names, replies, strict=True) if not found]
            return Writes([(b"ZREM", _names_key(bucket), *gone)] if gone else [])

        return update

    # --- one operation ---

    async def _read(self, name: Text, command: bytes, *arguments: bytes) -> Any:
        bucket = self.bucket_of(name)
        return (await self.read_many({bucket: [(command, self.key(name, bucket), *arguments)]}))[bucket][0]

    async def _read_each(self, names: Sequence[Text], command: bytes) -> list[Any]:
        places: list[tuple[int, int]] = []
        reads: dict[int, list[Command]] = {}
        for name in names:
            bucket = self.bucket_of(name)
            own = reads.setdefault(bucket, [])
            places.append((bucket, len(own)))
            own.append((command, self.key(name, bucket)))
        replies = await self.read_many(reads)
        return [replies[bucket][number] for bucket, number in places]

    async def _write(self, name: Text, reads: Sequence[Command], decide: Decide, after: str = THERE) -> Any:
        """Do what `decide` says, once, and return its result.

        `reads` have no key yet. `decide` gets the key and the replies: whether the key is there, then those to `reads`.
        `after`: whether the key is there then.
        """
        bucket = self.bucket_of(name)
        return (await self._write_all(bucket, [_Write(plain_name(name), self.key(name, bucket), reads, decide, after)]))[0]

    async def _write_all(self, bucket: int, writes: Sequence[_Write]) -> list[Any]:
        """Do what all of `writes`, on different keys of `bucket`, say, once; their results."""
        done = _done_key(bucket, self._token.encode())
        watched: list[Command] = [(b"GET", done)]
        for write in writes:
            watched += [(b"EXISTS", write.key), *((command[0], write.key, *command[1:]) for command in write.reads)]
        results: dict[int, list[Any]] = {}

        def update(replies: list[Any]) -> Writes:
            applied = int(replies[0] or 0)
            if applied in results:
                return Writes([], results[applied])  # an earlier try, whose answer was lost
            commands: list[Command] = []
            result: list[Any] = []
            place = 1
            for write in writes:
                own, place = replies[place : place + 1 + len(write.reads)], place + 1 + len(write.reads)
                wanted, one = write.decide(write.key, own)
                result.append(one)
                if not wanted:
                    continue
                commands += wanted
                if write.after == THERE and not own[0]:
                    commands.append((b"ZADD", _names_key(bucket), b"0", write.name))
                    self._made += 1
                elif write.after == GONE:
                    commands.append((b"ZREM", _names_key(bucket), write.name))
            if not commands:
                return Writes([], result)
            self._tries += 1
            results[self._tries] = result
            commands.append((b"SET", done, b"%d" % self._tries))
            if replies[0] is None:
                commands.append((b"SADD", _doers_key(bucket), self._token.encode()))
            self._done += 1
            return Writes(commands, result)

        lock = await self._take_turn(bucket)
        try:
            result: list[Any] = await self.transact_patiently(bucket, watched, update)
            if self._made >= SWEEP_AFTER:
                self._made = 0
                await self._sweep(bucket)
            if self._done >= DONE_SWEEP_AFTER:
                self._done = 0
                await self._sweep_doers(bucket)
            return result
        finally:
            self._end_turn(bucket, lock)

    async def _sweep(self, bucket: int) -> None:
        """Take out of the list of names what has expired: of some at random, so many that there are never more dead than living."""
        try:
            (names,) = await self.read(bucket, [(b"ZRANDMEMBER", _names_key(bucket), b"%d" % SWEPT_NAMES)])
            await self._still_there({bucket: names})
        except StoreUnavailable:
            self.counts["sweeps_left"] += 1  # what was asked for is done; the next one will

    async def _sweep_doers(self, bucket: int) -> None:
        """Forget what Routers did last that write no more: none of them is in the middle of a write that began so long ago."""
        try:
            (doers,) = await self.read(bucket, [(b"SMEMBERS", _doers_key(bucket))])
            others = [doer for doer in doers if doer != self._token.encode()] if len(doers) > FEW_DOERS else []
            said = await self.read(bucket, [(b"GET", _done_key(bucket, doer)) for doer in others])
            gone = [
                (doer, content)
                for doer, content in zip(others, said, strict=True)
                if self.standing.seconds((bucket, doer), content) >= DONE_SECONDS
            ]
            if not gone:
                return

            def forget(replies: list[Any]) -> Writes:
                same = [doer for (doer, content), now in zip(gone, replies, strict=True) if now == content]
                keys = [_done_key(bucket, doer) for doer in same]
                return Writes([(b"DEL", *keys), (b"SREM", _doers_key(bucket), *same)] if same else [])

            await self.transact(bucket, [(b"GET", _done_key(bucket, doer)) for doer, _ in gone], forget)
        except StoreUnavailable:
            self.counts["sweeps_left"] += 1  # what was asked for is done; the next one will

    async def _take_turn(self, bucket: int) -> DeferredLock:
        # one write of this Router to a bucket at a time: `done` is one key, and the others would only meet its WATCH
        lock, users = self._turns.get(bucket, (DeferredLock(), 0))
        self._turns[bucket] = (lock, users + 1)
        try:
            await lock.acquire().addTimeout(TURN_SECONDS, self._reactor)
        except (DeferredTimeout, CancelledError):
            self._leave(bucket)
            raise StoreUnavailable(f"bucket {bucket}: earlier writes are not done within {TURN_SECONDS:g} s") from None
        return lock

    def _end_turn(self, bucket: int, lock: DeferredLock) -> None:
        self._leave(bucket)
        lock.release()

    def _leave(self, bucket: int) -> None:
        lock, users = self._turns[bucket]
        if users == 1:
            del self._turns[bucket]
        else:
            self._turns[bucket] = (lock, users - 1)


class _Lot(Operations):
    """Takes the writes that are begun on it, until `write_all` hands them to `router`, bucket by bucket."""

    def __init__(self, router: Operations):
        self._router = router
        self._begun: dict[int, list[tuple[_Write, Deferred[Any]]]] = {}
        self._names: set[bytes] = set()

    @property
    def buckets(self) -> int:
        return self._router.buckets

    async def read_many(self, reads: Mapping[int, Sequence[Command]]) -> dict[int, list[Any]]:
        raise TypeError("together() takes writes; a read would not see them")

    async def _write(self, name: Text, reads: Sequence[Command], decide: Decide, after: str = THERE) -> Any:
        bucket, content = self.bucket_of(name), plain_name(name)
        if content in self._names:
            raise ValueError(f"together() takes each name once, and {content!r:.60} stands there twice")
        self._names.add(content)
        done: Deferred[Any] = Deferred()
        self._begun.setdefault(bucket, []).append((_Write(content, self.key(name, bucket), reads, decide, after), done))
        return await done

    async def write_all(self) -> None:
        """Carry out what was begun, and what that begins; each hears its own result."""
        while self._begun:
            begun, self._begun = self._begun, {}
            lots = list(begun.items())
            answers = await gather([self._router._write_all(bucket, [write for write, _ in own]) for bucket, own in lots])
            for (_, own), answer in zip(lots, answers, strict=True):
                for place, (_, done) in enumerate(own):
                    if isinstance(answer, Exception):
                        done.errback(answer)
                    else:
                        done.callback(answer[place])


def _what(operation: str, name: Text, part: Text | None = None) -> str:
    """An operation, as what is wrong with its arguments names it."""
    return f"{operation} of {name!r:.100}" if part is None else f"{operation} of {part!r:.100} in {name!r:.100}"


def _place(operation: str, name: Text, index: int) -> bytes:
    return b"%d" % amounts.whole(_what(operation, name), index)


def _count(operation: str, name: Text, count: int) -> int:
    if not 1 <= amounts.whole(_what(operation, name), count) < amounts.INT_LIMIT - 1:
        raise ValueError(f"{_what(operation, name)} takes a count from 1, not {count}")  # a server takes less for all there are
    return count


def _score(operation: str, name: Text, member: Text, score: float) -> bytes:
    return amounts.written(amounts.fraction(_what(operation, name, member), score))


def _scored(reply: Sequence[bytes]) -> list[tuple[bytes, float]]:
    return [(member, float(score)) for member, score in zip(reply[::2], reply[1::2], strict=True)]


def _pairs(reply: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(reply[::2], reply[1::2], strict=True))


def _parse_cursor(cursor: bytes | None, buckets: int) -> tuple[int, bytes]:
    if cursor is None:
        return 0, b""
    number, colon, after = cursor.partition(b":")
    if not colon or not number.isdigit() or len(number) > 6 or int(number) >= buckets:
        raise ValueError(f"{cursor[:60]!r} is no cursor of this store")
    return int(number), after


def _end_of(prefix: bytes) -> bytes:
    """The end of the range of names that begin with `prefix`, as ZRANGEBYLEX wants it."""
    shorter = prefix.rstrip(b"\xff")
    return b"(" + shorter[:-1] + bytes([shorter[-1] + 1]) if shorter else b"+"
