"""Stores that share a server and a database, each with a prefix of its own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase, TestCase

from taba.shard.buckets import owner_key
from taba.shard.moving.check import check
from taba.shard.moving.reshard import Reshard, current_pools
from taba.shard.router import Router
from taba.shard.servers.prefix import from_the_wire, on_the_wire, with_prefix
from taba.shard.servers.url import parse_store
from taba.shard.transaction import Writes
from tests.shard.pieces import connect
from tests.stores import borrow
from tests.topologies import Cluster
from tests.valkey import EphemeralValkey

BUCKETS = 8
KEY = b"taba:{7}:key:a"


class WireTests(SynchronousTestCase):
    def test_keys_are_changed_and_values_that_look_like_keys_are_not(self) -> None:
        for command, wire in (
            ((b"GET", KEY), (b"GET", b"x:{7}:key:a")),
            ((b"set", KEY, KEY, b"PX", b"1"), (b"set", b"x:{7}:key:a", KEY, b"PX", b"1")),
            ((b"HSET", KEY, KEY, KEY), (b"HSET", b"x:{7}:key:a", KEY, KEY)),
            ((b"SADD", b"taba:{7}:dirty", KEY), (b"SADD", b"x:{7}:dirty", KEY)),
            ((b"MGET", KEY, b"taba:map"), (b"MGET", b"x:{7}:key:a", b"x:map")),
            ((b"WATCH", KEY, KEY), (b"WATCH", b"x:{7}:key:a", b"x:{7}:key:a")),
            ((b"RENAME", KEY, KEY), (b"RENAME", b"x:{7}:key:a", b"x:{7}:key:a")),
            ((b"MEMORY", b"USAGE", KEY), (b"MEMORY", b"USAGE", b"x:{7}:key:a")),
            ((b"PING",), (b"PING",)),
            ((b"ECHO", KEY), (b"ECHO", KEY)),
            ((b"SCAN", b"0", b"MATCH", b"x:*"), (b"SCAN", b"0", b"MATCH", b"x:*")),
            ((b"GET", b"tabarnak"), (b"GET", b"tabarnak")),
        ):
            self.assertEqual(with_prefix([command], "x"), [wire])

    @given(st.binary(max_size=9), st.sampled_from(["x", "taba", "taba2", "a.b_c-d"]))
    @example(b"", "x")
    def test_a_key_comes_back_from_the_wire_as_it_was(self, rest: bytes, prefix: str) -> None:
        self.assertEqual(from_the_wire(on_the_wire(b"taba:" + rest, prefix), prefix), b"taba:" + rest)


class SharedTests(TestCase):
    timeout = 300

    async def router(self, url: str) -> Router:
        return await connect(self, url, BUCKETS)

    def valkey(self) -> EphemeralValkey:
        valkey = borrow(self, tcp=True, appendfsync="no")
        return valkey

    async def use(self, router: Any, value: str) -> None:
        await router.mset({f"n{number}": value for number in range(20)})
        await router.together(lambda r: [r.hset("h", {"a": value}), r.sadd("s", value), r.zadd("z", {value: 1.5}), r.rpush("l", value)])
        async with router.lock("job", ttl=30):
            self.assertEqual(await router.incr("counter"), 1)
        first, second = router.key("one", 3), router.key("two", 3)
        await router.transact(3, [(b"MGET", first, second)], lambda _: Writes([(b"SET", first, first), (b"RENAME", first, second)]))
        self.assertEqual(await router.read(3, [(b"GET", second)]), [first])  # a value that looks like a key stays one

    async def all_is_there(self, router: Any, value: str) -> None:
        text = value.encode()
        self.assertEqual(await router.mget([f"n{number}" for number in range(20)]), [text] * 20)
        self.assertEqual([await router.hgetall("h"), await router.smembers("s"), await router.lrange("l")], [{b"a": text}, {text}, [text]])
        self.assertEqual(await router.zrange("z"), [(text, 1.5)])
        self.assertEqual(len([name async for name in router.names()]), 25)

    async def test_two_stores_share_a_server_and_neither_sees_the_other_whatever_moves(self) -> None:
        first, second = self.valkey(), self.valkey()
        url = f"{first.url}?prefix=shop"
        shop, usual = await self.router(url), await self.router(first.url)
        self.assertNotEqual(shop.store_id, usual.store_id)
        await self.use(shop, "shop")
        await self.use(usual, "usual")
        await self.all_is_there(shop, "shop")
        await self.all_is_there(usual, "usual")
        self.assertEqual(await shop.delete("l"), 1)
        await shop.rpush("l", "shop")
        for new in (f"{second.url}?prefix=shop", f"{second.url}?prefix=other"):  # of one server, two shards
            work = Reshard((await self.router(url)).atlas, reactor)
            await work.add(parse_store(new).addresses)
            await work.close()
        await self.all_is_there(shop, "shop")
        await self.all_is_there(usual, "usual")
        fresh = await self.router(url)
        self.assertEqual([len(fresh.map.owned_by(shard.name)) for shard in fresh.map.shards], [3, 3, 2])
        self.assertEqual(await check(await current_pools(fresh.atlas), reactor), [])
        kept = {key.partition(b":")[0] for key in second.call("KEYS", "*")}
        self.assertEqual(kept, {b"shop", b"other"})
        self.assertEqual(await usual.delete("counter"), 1)
        self.assertEqual(await shop.incr("counter"), 2)

    @pytest.mark.real
    async def test_on_a_cluster_too(self) -> None:
        cluster = Cluster(replicas=False)
        self.addCleanup(cluster.remove)
        shop, usual = await self.router(f"{cluster.url}?prefix=shop"), await self.router(cluster.url)
        await self.use(shop, "shop")
        await self.use(usual, "usual")
        await self.all_is_there(shop, "shop")
        await self.all_is_there(await self.router(f"{cluster.url}?prefix=shop"), "shop")
        self.assertEqual(cluster.holder(owner_key(0)).call("EXISTS", "shop:{0}:owner", "taba:{0}:owner"), 2)
