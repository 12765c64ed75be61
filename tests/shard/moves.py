"""A move of a bucket for tests: what writes it meanwhile, what kills its mover, what must be true at the end."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from taba.shard.buckets import Owner, decode_owner, dirty_key, make_token, owner_key
from taba.shard.moving import mending
from taba.shard.moving.move import Moved, forget, move, tidy, undo
from taba.shard.moving.mover import Mover
from taba.shard.moving.steps import Step
from taba.shard.moving.survey import survey
from taba.shard.router import Router
from taba.shard.transaction import Writes
from tests.shard.pieces import ask, connect
from tests.stores import borrow

BUCKETS = 120
HALF = BUCKETS // 2
HOUR = 3600.0
LATER = 4_000_000_000_000  # Unix milliseconds; expires in 2096


class Killed(Exception):
    """The mover is gone."""


def key(bucket: int, name: str) -> bytes:
    return f"taba:{{{bucket}}}:{name}".encode()


def once(moving: Any) -> Callable[[], Any]:
    """For moves that need not begin anew."""
    left = [moving]
    return left.pop


def describe(request: Any) -> str:
    return f"{request.name} at {request.shard}" if isinstance(request, Step) else repr(request)


class Writer:
    """Writes one bucket without end, in every way that there is; knows what must be in it."""

    def __init__(self, router: Router, bucket: int, pause: float = 0.0):
        self.router, self.bucket, self.pause = router, bucket, pause
        self.random = random.Random(bucket)
        self.done = 0
        self.fields: dict[bytes, bytes] = {}
        self.members: set[bytes] = set()
        self.list: list[bytes] = []
        self.text: bytes | None = None
        self.is_stopped = False
        self.running: Deferred[None] | None = None

    def start(self) -> None:
        self.running = ensureDeferred(self._run())

    async def stop(self) -> None:
        self.is_stopped = True
        if self.running is not None:
            await self.running

    async def _run(self) -> None:
        while not self.is_stopped:
            await self.write()
            await deferLater(reactor, self.pause)

    async def write(self) -> None:
        number = self.done + 1
        field, member = (b"%d" % self.random.randrange(50) for _ in range(2))
        gone, emptied = self.random.random() < 0.3, self.random.random() < 0.1

        def update(replies: list[Any]) -> Writes:
            if int(replies[0] or 0) == number:
                return Writes([])  # an earlier try, whose answer was lost with its server
            if int(replies[0] or 0) != self.done:
                raise AssertionError(f"bucket {self.bucket}: the mark is {replies[0]}, not {self.done}")
            value = b"%d" % number
            commands = [
                (b"SET", key(self.bucket, "mark"), value, b"PXAT", b"%d" % LATER),
                (b"HINCRBY", key(self.bucket, "counts"), b"written", b"1"),
                (b"HDEL", key(self.bucket, "h"), field) if gone else (b"HSET", key(self.bucket, "h"), field, value),
                (b"SREM", key(self.bucket, "s"), member) if gone else (b"SADD", key(self.bucket, "s"), member),
                (b"LPUSH", key(self.bucket, "l"), value),
                (b"LTRIM", key(self.bucket, "l"), b"0", b"19"),
                (b"DEL", key(self.bucket, "t")) if emptied else (b"SET", key(self.bucket, "t"), value),
            ]
            return Writes(commands)

        await self.router.transact(self.bucket, [(b"GET", key(self.bucket, "mark"))], update)
        self.done = number
        value = b"%d" % number
        if gone:
            self.fields.pop(field, None)
            self.members.discard(member)
        else:
            self.fields[field] = value
            self.members.add(member)
        self.list = [value, *self.list][:20]
        self.text = None if emptied else value

    async def check(self, case: TestCase, router: Router, label: str) -> None:
        """What `router` reads is what was written."""
        names = ("mark", "h", "s", "l", "t", "counts")
        commands = (b"GET", b"HGETALL", b"SMEMBERS", b"LRANGE", b"GET", b"HGET")
        more = {"l": (b"0", b"-1"), "counts": (b"written",)}
        reads = [(command, key(self.bucket, name), *more.get(name, ())) for command, name in zip(commands, names, strict=True)]
        mark, fields, members, items, text, counted = await router.read(self.bucket, reads)
        case.assertEqual((mark, counted), (b"%d" % self.done if self.done else None,) * 2, label)
        case.assertEqual(dict(zip(fields[::2], fields[1::2], strict=True)), self.fields, label)
        case.assertEqual((set(members), items, text), (self.members, self.list, self.text), label)
        if self.done:
            [left] = await router.read(self.bucket, [(b"PTTL", key(self.bucket, "mark"))])
            case.assertGreater(left, 1_000_000_000, label)


class MoveCase(TestCase):
    timeout = 300
    ends: tuple[type[BaseException], ...] = ()  # of a move, besides being killed, after which another has its turn
    sync = "no"  # thousands of steps; what is synced is not what these tests are about

    async def prepare(self, shards: int = 2, buckets: int = BUCKETS) -> Router:
        # the movers here give no sign of life: a writer's Router that looked after what they leave would be one mover more
        self.patch(mending, "LOOK_SECONDS", HOUR)
        self.valkeys = [borrow(self, appendfsync=self.sync) for _ in range(shards)]
        self.router = await self.new_router(buckets)
        self.pools: dict[str, Any] = {shard.name: self.router.atlas.pool_of(shard.name) for shard in self.router.map.shards}
        return self.router

    async def new_router(self, buckets: int | None = None) -> Router:
        return await connect(self, ",".join(valkey.url for valkey in self.valkeys), buckets)

    def keep_writing(self, writer: Writer) -> None:
        """Until it is stopped, or the test is over, however that ends."""
        writer.start()
        self.addCleanup(lambda: ensureDeferred(writer.stop()))

    async def fill(self, bucket: int, fields: int = 100, size: int = 50) -> None:
        """Content of every type, large keys among them where `fields` or `size` are large."""
        value = b"v" * size
        commands = [
            (b"HSET", key(bucket, "states"), *[part for n in range(fields) for part in (b"f%d" % n, b"%d" % n + value)]),
            (b"SADD", key(bucket, "clients"), *[b"c%d" % n + value for n in range(fields)]),
            (b"RPUSH", key(bucket, "dead"), *[b"d%d" % n + value for n in range(fields)]),
            (b"ZADD", key(bucket, "scores"), b"1", b"a", b"2", b"b"),
            (b"SET", key(bucket, "text"), value * fields),
            (b"SET", key(bucket, "empty"), b""),
            (b"SET", key(bucket, "fleeting"), b"x", b"PX", b"100000"),
        ]
        await self.router.transact(bucket, [], lambda _: Writes(commands))

    async def content(self, shard: str, bucket: int) -> dict[bytes, Any]:
        """All keys of a bucket on a shard, with what is in them and whether they expire."""
        found = {}
        for one in (await Mover(self.pools, reactor).keys(shard, [bucket]))[bucket]:
            kind, ttl = await ask(self.pools[shard], b"TYPE", one), await ask(self.pools[shard], b"PTTL", one)
            whole: dict[bytes, tuple[bytes, ...]] = {b"hash": (b"HGETALL", one), b"set": (b"SMEMBERS", one), b"string": (b"GET", one)}
            whole[b"list"] = whole[b"zset"] = (b"LRANGE" if kind == b"list" else b"ZRANGE", one, b"0", b"-1")
            value = await ask(self.pools[shard], *whole[kind])
            if kind == b"hash":
                value = dict(zip(value[::2], value[1::2], strict=True))
            found[one] = (set(value) if kind == b"set" else value, ttl > 0)
        return found

    async def owners(self, bucket: int) -> dict[str, Owner | None]:
        found = {}
        for name, pool in self.pools.items():
            content = await ask(pool, b"GET", owner_key(bucket))
            found[name] = None if content is None else decode_owner(content)
        return found

    async def run_one(self, bucket: int, moving: Any, by: Mover | None = None, watch: Callable[[int, Any], Any] | None = None) -> Moved:
        carrier = by or Mover(self.pools, reactor, watch=watch, standing=self.router.atlas.standing)
        answer = (await carrier.run({bucket: moving if callable(moving) else once(moving)}))[bucket]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def token(self, target: str = "s2", by: Mover | None = None) -> str:
        return make_token(target, (by or Mover(self.pools, reactor)).next_token())

    async def end_what_is_left(self, watch: Callable[[int, Any], Any] | None = None, undoing: bool = False) -> list[Moved]:
        """As a new mover does: look at all owner keys, and finish, or undo, what is there."""
        ended = []
        for _ in range(3):
            found = await survey(self.pools, self.router.buckets)
            for bucket, (source, token) in found.under_way().items():
                target = token.rpartition(".")[0]
                moving = undo(bucket, source) if undoing else move(bucket, source, target, self.token(target))
                ended.append(await self.run_one(bucket, moving, watch=watch))
            for bucket, shard in found.strays():
                ended.append(await self.run_one(bucket, forget(bucket, shard), watch=watch))
            for bucket, shard in found.leavings():
                ended.append(await self.run_one(bucket, tidy(bucket, shard), watch=watch))
        return ended

    def told_at_last(self, result: Any, asleep: Deferred[str]) -> Any:
        """Whoever waits for a step at which it sleeps hears "" where it ended without."""
        if not asleep.called:
            asleep.callback("")
        return result

    async def check_settled(self, bucket: int, label: str) -> str:
        """Exactly one shard has the bucket open, and the others hold nothing of it; its name."""
        owners = await self.owners(bucket)
        ((holder, opened),) = ((name, owner) for name, owner in owners.items() if owner is not None and owner.state == "open")
        self.assertEqual(opened.moving, "", label)
        for name, owner in owners.items():
            if name != holder:
                self.assertIn(owner.state if owner else "moved", ("moved",), label)
                self.assertEqual((await Mover(self.pools, reactor).keys(name, [bucket]))[bucket], [], label)
        left = (await Mover(self.pools, reactor).keys(holder, [bucket]))[bucket]
        self.assertEqual([one for one in left if b":staging:" in one or one == dirty_key(bucket)], [], label)
        fresh = await self.new_router()
        self.assertEqual(fresh.map.shard_of(bucket), holder, label)
        await fresh.close()
        return holder
