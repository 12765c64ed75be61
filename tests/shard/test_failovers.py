"""Sentinels promote replicas in the middle of moves, as planned or because a primary died: nothing is lost, doubled or left behind."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any
from unittest import skipUnless

import pytest
from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from taba.errors import ConfigurationError, StoreUnavailable, TabaError
from taba.shard.buckets import prefix_of
from taba.shard.moving import reshard
from taba.shard.moving.check import check
from taba.shard.moving.reshard import Reshard, current_pools
from taba.shard.moving.steps import Step
from taba.shard.router import Router
from taba.shard.servers.url import parse_store
from tests.shard.load import Load
from tests.shard.pieces import always, connect
from tests.topologies import SentinelTrio


def find_redis() -> str:
    """A Redis 7, or "" where there is none."""
    found = shutil.which("redis-server")
    told = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout if found else ""
    return found if found and "Redis server v=7." in told else ""


BUCKETS = 8
HISTORY = 300  # fields of each bucket that nobody writes any more: what no writer would bring back
REST_SECONDS = 0.005  # of a writer after each step: a move has a writer in each bucket then, too, and a failover takes ten seconds of it
FAILOVER_SECONDS = 240.0  # that a machine may take for one, however busy it is

pytestmark = pytest.mark.real


class FailoverCase(TestCase):
    timeout = 900  # it only ends a hang: each wait has a bound of its own, and says what it saw
    binary = ""  # of another server than the usual

    async def prepare(self, replicas: int = 2, **settings: str) -> None:
        own = {"binary": self.binary} if self.binary else {}
        options = {"min_replicas_to_write": "1", "min_replicas_max_lag": "5", **settings, **own}
        self.trio = await deferToThread(lambda: SentinelTrio(masters=2, replicas=replicas, **options))
        self.addCleanup(self.trio.remove)
        self.since: dict[str, int] = {}  # the epoch of each master before it was struck
        self.one, self.two = (f"{self.trio.url.partition('/?')[0]}/?shards={name}" for name in ("m1", "m2"))
        first = await self.router(BUCKETS)
        for bucket in range(BUCKETS):
            fields = [part for n in range(HISTORY) for part in (b"f%d" % n, b"%d" % n * 20)]
            history = prefix_of(bucket) + b"history"
            await first.transact(bucket, [], always((b"HSET", history, *fields)))
        await deferToThread(self.trio.settle)  # nobody writes the history again: what a failover took of it would be gone
        self.routers = [first, await self.router()]
        self.load = Load(self, self.routers, list(range(BUCKETS)), rest=REST_SECONDS)
        self.load.start()
        await self.load.until(20)

    async def router(self, buckets: int | None = None) -> Router:
        return await connect(self, self.one, buckets)

    async def moving(self, watch: Any = None, **options: Any) -> None:
        """`taba reshard --add`: nobody repeats it, and nobody repairs anything."""
        self.patch(reshard, "FAILOVER_SECONDS", FAILOVER_SECONDS)
        work = Reshard((await self.router()).atlas, reactor, watch=watch, **options)
        try:
            await work.add(parse_store(self.two).addresses)
        finally:
            await work.close()

    async def check(self, failed_over: str = "") -> None:
        """All is there, and nothing else.

        What a master acknowledged and had not replicated when another was promoted in its place is lost with it: whoever wrote it brings it
        back, so the master must have changed, and all have written once more, before anyone counts.
        """
        if failed_over:
            await deferToThread(self.trio.wait_failed_over, failed_over, self.since[failed_over])
        await self.load.another_round()
        await self.load.stop()
        fresh = await self.router()
        self.assertEqual(await self.load.sums(fresh), self.load.done)
        wrong = await check(await current_pools(fresh.atlas), reactor)
        self.assertEqual([one.text for one in wrong], [])
        self.assertEqual({fresh.map.shard_of(bucket) for bucket in range(BUCKETS)}, {"s1", "s2"})
        for bucket in range(BUCKETS):
            [count, value] = await fresh.read(
                bucket, [(b"HLEN", prefix_of(bucket) + b"history"), (b"HGET", prefix_of(bucket) + b"history", b"f7")]
            )
            self.assertEqual((count, value), (HISTORY, b"7" * 20), bucket)

    async def interrupted(self, step: str, shard: str, master: str, strike: Any) -> None:
        """All moves, and at the first `step` on `shard` the `master` is struck."""
        await self.prepare()
        left = [1]

        def watch(_: int, request: Any) -> Any:
            if isinstance(request, Step) and (request.name, request.shard) == (step, shard) and left[0]:
                left[0] -= 1
                self.since[master] = self.trio.epoch(master)
                return deferToThread(strike, master)
            return None

        await self.moving(watch)
        self.assertEqual(left, [0])
        await self.check(master)

    async def fails_over_at(self, step: str, shard: str, master: str) -> None:
        await self.interrupted(step, shard, master, lambda name: self.trio.hand_over(name))

    async def crashes_at(self, step: str, shard: str, master: str) -> None:
        await self.interrupted(step, shard, master, lambda name: self.trio.primary(name).kill())


class PlannedTests(FailoverCase):
    async def test_the_target_is_handed_over_while_it_is_copied_to(self) -> None:
        await self.fails_over_at("stage", "s2", "m2")

    async def test_the_target_is_handed_over_as_the_bucket_opens_there(self) -> None:
        await self.fails_over_at("open", "s2", "m2")

    async def test_the_target_is_handed_over_before_it_confirms(self) -> None:
        await self.fails_over_at("confirm", "s2", "m2")

    async def test_the_source_is_handed_over_as_it_is_sealed(self) -> None:
        await self.fails_over_at("seal", "s1", "m1")

    async def test_the_source_is_handed_over_under_the_seal(self) -> None:
        await self.fails_over_at("open", "s2", "m1")

    async def test_the_source_is_handed_over_as_it_lets_go(self) -> None:
        await self.fails_over_at("leave", "s1", "m1")


class CrashTests(FailoverCase):
    async def test_the_target_dies_while_it_is_copied_to(self) -> None:
        await self.crashes_at("stage", "s2", "m2")

    async def test_the_target_dies_as_the_bucket_opens_there(self) -> None:
        await self.crashes_at("open", "s2", "m2")

    async def test_the_source_dies_under_the_seal(self) -> None:
        await self.crashes_at("open", "s2", "m1")


class WithoutReplicasTests(FailoverCase):
    async def test_masters_that_write_without_a_replica_are_refused_unless_told(self) -> None:
        await self.prepare(replicas=1, min_replicas_to_write="0")
        with self.assertRaisesRegex(ConfigurationError, "min-replicas-to-write 1.*--without-replicas"):
            await self.moving()
        await self.moving(without_replicas=True)
        await self.check()

    async def test_a_master_without_any_replica_moves_nothing_unless_told(self) -> None:
        await self.prepare(replicas=1)
        for name in ("m1", "m2"):
            for server in self.trio.servers[name][1:]:
                server.pause()
        self.patch(reshard, "FAILOVER_SECONDS", 0.0)
        few = self.patch(reshard, "MOST_STALLS", 1)
        work = Reshard((await self.router()).atlas, reactor)
        with self.assertRaises((StoreUnavailable, TabaError)):
            await work.add(parse_store(self.two).addresses)
        await work.close()
        for name in ("m1", "m2"):
            for server in self.trio.servers[name][1:]:
                server.resume()
        few.restore()
        await self.moving()
        await self.check()


REDIS = find_redis()


@skipUnless(REDIS, "no redis-server of version 7 on this machine: apt-get install redis-server")
class RedisTests(FailoverCase):
    """The same on Redis 7, which cannot say when its file is written (WAITAOF), and says the rest as Valkey does."""

    binary = REDIS

    async def test_the_target_is_handed_over_as_the_bucket_opens_there(self) -> None:
        await self.fails_over_at("open", "s2", "m2")

    async def test_the_source_dies_under_the_seal(self) -> None:
        await self.crashes_at("open", "s2", "m1")
