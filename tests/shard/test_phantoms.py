"""One server that is two shards, under two names: found out, and united without losing what either name was given."""

from __future__ import annotations

from functools import partial
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from taba.shard.buckets import Owner, encode_owner, owner_key, prefix_of, with_owner, with_shard
from taba.shard.maps import change_map
from taba.shard.moving.check import check
from taba.shard.moving.reshard import current_shards
from taba.shard.router import Router
from taba.shard.transaction import Writes
from tests.needs import needs_localhost
from tests.shard.pieces import connect
from tests.stores import borrow
from tests.valkey import EphemeralValkey

BUCKETS = 8


class PhantomTests(TestCase):
    timeout = 300

    async def router(self, url: str) -> Router:
        return await connect(self, url, BUCKETS)

    async def store(self, shards: int) -> tuple[list[EphemeralValkey], Router]:
        valkeys = [borrow(self, tcp=True, appendfsync="no") for _ in range(shards)]
        router = await self.router("redis://" + ",".join(f"127.0.0.1:{valkey.port}" for valkey in valkeys))
        for bucket in range(BUCKETS):
            await self.count(router, bucket)
        return valkeys, router

    async def count(self, router: Router, bucket: int) -> None:
        await router.transact(bucket, [], lambda _: Writes([(b"INCR", prefix_of(bucket) + b"n")]))

    async def sums(self, router: Router) -> list[Any]:
        replies = await router.read_many({bucket: [(b"GET", prefix_of(bucket) + b"n")] for bucket in range(BUCKETS)})
        return [int(reply or 0) for [reply] in replies.values()]

    async def give_another_name(self, valkey: EphemeralValkey, router: Router, name: str, buckets: range) -> None:
        """As `--add localhost` left it, before names were compared by what they lead to."""
        needs_localhost()
        pools: Any = await current_shards(router.atlas)
        await change_map(pools, partial(with_shard, url=f"redis://localhost:{valkey.port}"))
        for bucket in buckets:
            valkey.call("SET", owner_key(bucket), encode_owner(Owner("open", 3, name)))
            await change_map(pools, partial(with_owner, bucket=bucket, name=name, epoch=3))

    async def found_and_united(self, valkeys: list[EphemeralValkey], name: str, real: str, buckets: range) -> None:
        router = await self.router("redis://" + ",".join(f"127.0.0.1:{valkey.port}" for valkey in valkeys))
        self.assertEqual(set(map(router.map.shard_of, buckets)), {name})
        wrong = await check(await current_shards(router.atlas), reactor)
        says = f"shard {name} is the very server that is shard {real}, under another name: taba check --repair"
        self.assertIn(says, [one.text for one in wrong])
        await check(await current_shards(router.atlas), reactor, repair=True)
        self.assertEqual(await check(await current_shards(router.atlas), reactor), [])
        self.assertNotIn(name, [shard.name for shard in router.map.shards])
        for bucket in range(BUCKETS):
            await self.count(router, bucket)
        self.assertEqual(await self.sums(router), [2] * BUCKETS)
        self.assertEqual(await self.sums(await self.router(router.url)), [2] * BUCKETS)

    async def test_the_only_shard_under_another_name_with_half_of_its_buckets(self) -> None:
        valkeys, router = await self.store(1)
        await self.give_another_name(valkeys[0], router, "s2", range(4, 8))
        await self.found_and_united(valkeys, "s2", "s1", range(4, 8))

    async def test_one_of_two_under_another_name_with_all_of_its_buckets(self) -> None:
        valkeys, router = await self.store(2)
        await self.give_another_name(valkeys[1], router, "s3", range(4, 8))
        await self.found_and_united(valkeys, "s3", "s2", range(4, 8))

    async def test_a_name_that_was_given_no_bucket_yet(self) -> None:
        valkeys, router = await self.store(2)
        await self.give_another_name(valkeys[0], router, "s3", range(0))
        wrong = await check(await current_shards(router.atlas), reactor)
        self.assertEqual([one.text.partition(",")[0] for one in wrong], ["shard s3 is the very server that is shard s1"])
        await check(await current_shards(router.atlas), reactor, repair=True)
        self.assertEqual(await check(await current_shards(router.atlas), reactor), [])
        self.assertEqual(await self.sums(router), [1] * BUCKETS)
