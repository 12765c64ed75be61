"""How a store is made: once, the same for all who come, and never again; and what is refused."""

from __future__ import annotations

from typing import Any

import attrs
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from taba.errors import ConfigurationError, StoreUnavailable
from taba.shard import atlas, buckets, initialise, reading
from taba.shard.buckets import STORE_KEY, StoreRecord, encode_record
from taba.shard.initialise import StoreLost
from taba.shard.moving.check import check
from taba.shard.moving.reshard import Reshard, current_shards
from taba.shard.router import Router
from taba.shard.servers.cluster import ClusterPool
from taba.shard.servers.pool import Pool
from taba.shard.servers.url import parse_store
from tests.shard.load import until
from tests.stores import borrow
from tests.valkey import EphemeralValkey, free_port


class RemainsTests(SynchronousTestCase):
    """A cluster whose buckets have owners, and no record was heard of."""

    def refuse(self, record: bytes | None) -> Any:
        class Nodes(ClusterPool):
            async def execute(self, commands: Any, *_: Any) -> list[Any]:
                return [record if command[1] == STORE_KEY else b"open:1:s1" for command in commands]

        [address] = parse_store("redis+cluster://127.0.0.1:1").addresses
        nodes = Nodes(Clock(), address, lambda one: Pool(Clock(), one, size=0))
        return ensureDeferred(initialise._refuse_remains(nodes, {}, 4, 1.0))

    def test_what_lost_its_record_is_refused(self) -> None:
        self.failureResultOf(self.refuse(None), StoreLost)

    def test_what_another_has_begun_since_is_waited_for(self) -> None:
        record = encode_record(StoreRecord("store", 4, "s1", ("redis+cluster://127.0.0.1:1",)))
        self.failureResultOf(self.refuse(record), StoreUnavailable)


class InitialiseTests(TestCase):
    timeout = 300

    def valkeys(self, count: int, **settings: Any) -> list[EphemeralValkey]:
        return [borrow(self, **settings) for _ in range(count)]

    def router(self, *valkeys: EphemeralValkey, buckets: int | None = None, url: str | None = None) -> Router:
        router = Router(parse_store(url or ",".join(valkey.url for valkey in valkeys)), buckets, reactor)
        self.addCleanup(lambda: ensureDeferred(router.close()))
        return router

    def owners(self, valkey: EphemeralValkey, count: int) -> list[bytes]:
        """Which buckets have an owner key here, and what it says."""
        return [valkey.ask("GET", buckets.owner_key(bucket)) for bucket in range(count)]

    async def refused(self, router: Router) -> str:
        with self.assertRaises(ConfigurationError) as caught:
            await router.connect()
        return str(caught.exception)

    async def test_a_new_store_has_an_owner_for_every_bucket_and_one_only(self) -> None:
        valkeys = self.valkeys(3)
        router = self.router(*valkeys, buckets=10)
        await router.connect()
        self.assertTrue(router.is_ready)
        self.assertEqual(router.describe()["buckets"], 10)
        held = [self.owners(valkey, 10) for valkey in valkeys]
        for bucket in range(10):
            self.assertEqual(sorted(one[bucket] != b"$-1\r\n" for one in held), [False, False, True])
        for number, valkey in enumerate(valkeys, 1):
            self.assertIn(b"open:1:s%d" % number, b"".join(self.owners(valkey, 10)))
            self.assertIn(router.store_id.encode(), valkey.ask("GET", buckets.INITIALISED_KEY))

    async def test_without_a_number_a_new_store_gets_the_default_and_an_old_one_keeps_its_own(self) -> None:
        first, second = self.valkeys(2)
        router = self.router(first)
        await router.connect()
        self.assertEqual(router.buckets, 512)
        await self.router(second, buckets=7).connect()
        again = self.router(second)
        await again.connect()
        self.assertEqual(again.buckets, 7)

    async def test_many_that_come_at_once_agree_whatever_the_order_of_their_urls(self) -> None:
        valkeys = self.valkeys(3)
        routers = [self.router(*(valkeys[turn:] + valkeys[:turn])) for turn in (0, 1, 2, 0, 1, 2)]
        await gatherResults([ensureDeferred(router.connect()) for router in routers])
        self.assertEqual(len({router.store_id for router in routers}), 1)
        self.assertEqual(len({router.map for router in routers}), 1)

    async def test_a_store_that_one_left_half_made_is_finished_by_the_next(self) -> None:
        valkeys = self.valkeys(2)
        calls: list[int] = []
        original = initialise._furnish

        async def dies_after_the_first(*arguments: Any) -> None:
            if calls:
                raise StoreUnavailable("killed here")
            calls.append(1)
            await original(*arguments)

        self.patch(initialise, "_furnish", dies_after_the_first)
        pools = [Pool(reactor, parse_store(valkey.url).addresses[0]) for valkey in valkeys]
        for pool in pools:
            self.addCleanup(pool.close)
            pool.start()
        with self.assertRaises(StoreUnavailable):
            await initialise.learn(pools, 8, lambda: "dead", 5.0)
        self.patch(initialise, "_furnish", original)
        router = self.router(*reversed(valkeys))
        await router.connect()
        self.assertEqual((router.store_id, router.buckets), ("dead", 8))
        self.assertEqual(sum(b"open" in owner for valkey in valkeys for owner in self.owners(valkey, 8)), 8)

    async def test_one_that_slept_while_the_store_was_made_and_used_changes_nothing(self) -> None:
        (valkey,) = self.valkeys(1)
        await self.router(valkey, buckets=4).connect()
        valkey.ask("DEL", buckets.owner_key(2))  # given away, and forgotten: still no
        pool = Pool(reactor, parse_store(valkey.url).addresses[0])
        self.addCleanup(lambda: ensureDeferred(pool.close()))
        pool.start()
        map = buckets.first_map("late", [valkey.url], 4)
        await initialise._furnish(pool, map, buckets.StoreRecord("late", 4, "s1", (valkey.url,)), 5.0, "--store", "x")
        self.assertEqual(self.owners(valkey, 4)[2], b"$-1\r\n")
        await self.router(valkey).connect()
        self.assertEqual(self.owners(valkey, 4)[2], b"$-1\r\n")

    async def test_a_new_store_waits_until_all_of_its_shards_are_there(self) -> None:
        here, there = self.valkeys(2)
        there.kill()
        router = self.router(here, there)
        connecting = ensureDeferred(router.connect())
        await until(lambda: "a new store is made only when all" in " ".join(router.problems))
        self.assertFalse(connecting.called)
        self.assertEqual(here.ask("DBSIZE"), b":0\r\n")
        self.assertIn("away", router.problems[0])
        there.start()
        await connecting
        self.assertTrue(router.is_ready)
        self.assertEqual(router.problems, [])

    async def test_an_old_store_is_served_as_far_as_its_shards_are_there(self) -> None:
        here, there = self.valkeys(2)
        await self.router(here, there, buckets=4).connect()
        there.kill()
        router = self.router(here, there)
        await router.connect()
        self.assertFalse(router.is_ready)
        self.assertEqual(await router.read(0, [(b"GET", b"taba:{0}:x")]), [None])
        self.assertIn("away", router.problems[0])

    async def test_another_number_of_buckets_names_the_option_and_the_number_that_is_recorded(self) -> None:
        (valkey,) = self.valkeys(1)
        await self.router(valkey, buckets=8).connect()
        message = await self.refused(self.router(valkey, buckets=9))
        self.assertEqual(message, "--buckets: 9: takes 8, the number that this store was first used with")

    async def test_shards_of_two_stores_do_not_mix(self) -> None:
        one, two = self.valkeys(2)
        await self.router(one).connect()
        await self.router(two).connect()
        self.assertIn("one store", await self.refused(self.router(one, two)))

    async def test_one_server_under_two_names_is_found_out(self) -> None:
        valkey = borrow(self, tcp=True)
        url = f"redis://127.0.0.1:{valkey.port},127.1:{valkey.port}"
        self.assertIn("takes each server once", await self.refused(self.router(url=url)))

    async def test_a_server_that_is_no_shard_of_the_store_is_a_problem_and_not_used(self) -> None:
        one, stranger = self.valkeys(2)
        await self.router(one).connect()
        router = self.router(one, stranger)
        await router.connect()
        self.assertIn(f"{stranger.url} is no shard of this store", router.problems[0])
        self.assertEqual(stranger.ask("DBSIZE"), b":0\r\n")

    async def test_a_server_starts_while_the_store_is_away(self) -> None:
        (valkey,) = self.valkeys(1)
        valkey.kill()
        router = self.router(valkey)
        connecting = ensureDeferred(router.connect())
        await until(lambda: "away" in " ".join(router.problems))
        self.assertFalse(router.is_ready)
        with self.assertRaises(StoreUnavailable):
            router.map  # noqa: B018
        valkey.start()
        await connecting
        self.assertTrue(router.is_ready)

    async def test_nothing_listens_there_at_all(self) -> None:
        router = self.router(url=f"redis://127.0.0.1:{free_port()}")
        connecting = ensureDeferred(router.connect())
        await until(lambda: "refused" in " ".join(router.problems))
        await router.close()
        await self.assertFailure(connecting, StoreUnavailable)

    async def test_a_shard_that_lost_everything_is_not_made_anew_beside_the_others(self) -> None:
        one, two = self.valkeys(2)
        router = self.router(one, two, buckets=4)
        await router.connect()
        two.ask("FLUSHALL")
        short = self.patch(reading, "READ_SECONDS", 0.3)
        with self.assertRaises(StoreUnavailable):
            await router.read(3, [(b"GET", b"taba:{3}:a")])
        short.restore()
        await until(lambda: "has lost what it held" in " ".join(router.problems))
        self.assertEqual(await router.read(0, [(b"GET", b"taba:{0}:a")]), [None])
        self.assertEqual(two.ask("DBSIZE"), b":0\r\n")

    async def test_the_map_with_the_highest_epoch_stands(self) -> None:
        one, two = self.valkeys(2)
        first = self.router(one, two, buckets=4)
        await first.connect()
        newer = attrs.evolve(first.map, epoch=2, owners=(0, 0, 0, 1))
        two.ask("SET", buckets.MAP_KEY, buckets.encode_map(newer))
        router = self.router(one, two)
        await router.connect()
        self.assertEqual(router.map, newer)

    async def test_eviction_is_refused(self) -> None:
        (valkey,) = self.valkeys(1, maxmemory="100mb", maxmemory_policy="allkeys-lru")
        message = await self.refused(self.router(valkey))
        self.assertIn("maxmemory-policy noeviction, not allkeys-lru", message)
        self.assertTrue(message.startswith("--store: "))

    async def test_weaker_settings_work_and_are_problems(self) -> None:
        for settings, word in (
            ({"appendonly": "no"}, "append-only"),
            ({"appendfsync": "everysec"}, "everysec"),
            ({"maxmemory_policy": "allkeys-lfu"}, "evict"),
        ):
            (valkey,) = self.valkeys(1, **settings)
            router = self.router(valkey)
            await router.connect()
            self.assertEqual(len(router.problems), 1)
            self.assertIn(word, router.problems[0])

    async def test_two_stores_share_a_server_in_databases_of_their_own(self) -> None:
        valkey = borrow(self, tcp=True)
        first, second = self.router(url=valkey.url, buckets=4), self.router(url=f"{valkey.url}/3", buckets=8)
        await first.connect()
        await second.connect()
        await gatherResults([ensureDeferred(first.set("a", "1")), ensureDeferred(second.set("a", "2"))])
        self.assertEqual((await first.get("a"), await second.get("a"), first.buckets, second.buckets), (b"1", b"2", 4, 8))
        self.assertNotEqual(first.store_id, second.store_id)
        [one], [two] = await first.shards(), await second.shards()
        self.assertEqual((two.url, two.keys), (f"{valkey.url}/3", valkey.call("INFO", "keyspace").count(b"db3") and two.keys))
        self.assertNotEqual(one.keys, two.keys)
        work = Reshard(second.atlas, reactor)
        self.addCleanup(lambda: ensureDeferred(work.close()))
        self.assertEqual(len(await work.add(parse_store(f"{valkey.url}/4").addresses)), 4)  # another database of the same server
        self.assertEqual(await check(await current_shards(second.atlas), reactor), [])
        self.assertEqual(await second.get("a"), b"2")

    async def test_a_server_that_is_too_old_is_refused(self) -> None:
        said = {"6.0.16": (6, 0, 16), "6.2.0": (6, 2, 0), "7.2.4": (7, 2, 4), "unstable": None}
        for text, version in said.items():
            self.assertEqual(initialise.version_of(f"# Server\r\nredis_version:{text}\r\nx:1\r\n".encode()), version)
        (valkey,) = self.valkeys(1)
        self.patch(initialise, "MIN_SERVER", (99,))
        self.assertRegex(await self.refused(self.router(valkey)), r"takes Redis 6.2 or newer, or Valkey 7.2 or newer; this is 7\.\d+")

    async def test_settings_are_asked_once_a_minute_however_often_the_map_is_looked_at(self) -> None:
        (valkey,) = self.valkeys(1, appendfsync="everysec")
        router = self.router(valkey)
        await router.connect()
        asked = valkey.call("INFO", "commandstats").partition(b"cmdstat_config|get:calls=")[2].partition(b",")[0]
        for _ in range(5):
            await router.atlas.learn(5.0)
        self.assertEqual(valkey.call("INFO", "commandstats").partition(b"cmdstat_config|get:calls=")[2].partition(b",")[0], asked)
        self.assertEqual(len(router.problems), 1)
        valkey.call("CONFIG", "SET", "appendfsync", "always")
        self.patch(atlas, "SETTINGS_SECONDS", 0.0)
        await router.atlas.learn(5.0)
        self.assertEqual(router.problems, [])
        valkey.call("CONFIG", "SET", "maxmemory", "100mb", "maxmemory-policy", "allkeys-lru")
        await router.atlas.learn(5.0)  # one that begins to evict while it is served is said, and ends nobody
        self.assertIn("maxmemory-policy noeviction, not allkeys-lru", router.problems[0])

    async def test_a_good_store_has_no_problems(self) -> None:
        router = self.router(*self.valkeys(1))
        await router.connect()
        self.assertEqual(router.problems, [])
