"""A real Cluster: slots that move under load, half moved slots, failovers, nodes that come and go. Every step counts once."""

from __future__ import annotations

from binascii import crc_hqx
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from taba.errors import ConfigurationError, StoreUnavailable
from taba.shard import reading
from taba.shard import router as router_module
from taba.shard.buckets import STORE_KEY, decode_record, owner_key, prefix_of
from taba.shard.moving.check import check
from taba.shard.router import Router
from taba.shard.servers.cluster import SLOTS, parse_slots, slot_of, slot_of_bucket
from taba.shard.servers.connection import ErrorReply, Redirected, TransactionRefused, raise_for
from taba.shard.servers.url import Address, parse_store
from taba.shard.transaction import Writes
from tests.shard.load import Load, until
from tests.shard.pieces import connect, note_commands
from tests.stores import borrow
from tests.topologies import Cluster
from tests.valkey import EphemeralValkey, free_port

BUCKETS = 64
HAND_OVERS = 10  # tries until one was the only change of primaries


class SlotTests(SynchronousTestCase):
    def test_slots_are_those_of_the_specification(self) -> None:
        self.assertEqual([slot_of(key) for key in (b"123456789", b"foo", b"a{foo}b", b"{foo}{bar}")], [12739, 12182, 12182, 12182])
        for whole in (b"{}foo", b"{foo", b"}foo{", b"foo{}{bar}"):
            self.assertEqual(slot_of(whole), crc_hqx(whole, 0) % SLOTS)

    @given(st.integers(0, 65_535))
    def test_every_key_of_a_bucket_is_in_the_buckets_slot(self, bucket: int) -> None:
        self.assertEqual({slot_of(prefix_of(bucket) + b"a"), slot_of(owner_key(bucket))}, {slot_of_bucket(bucket)})
        self.assertTrue(0 <= slot_of_bucket(bucket) < SLOTS)

    def test_what_a_node_says_of_the_slots_is_read_or_refused(self) -> None:
        asked = Address(host="asked", port=1)
        reply: Any = [
            [0, 5, [b"one", 7000, b"id", []], [b"two", 7001, b"id2"]],
            [6, 9, [None, 7002]],
            [10, 11, [b"?", 7003]],
            [12, 12, [b"", 4]],
        ]
        self.assertEqual(parse_slots(reply, asked), [(0, 5, "one", 7000), (6, 9, "asked", 7002), (12, 12, "asked", 4)])
        for wrong in (
            None,
            b"x",
            [1],
            [[0, SLOTS, [b"h", 1]]],
            [[5, 4, [b"h", 1]]],
            [[0, 1]],
            [[0, 1, [b"h", b"1"]]],
            [[0, 1, [b"\xff", 1]]],
        ):
            with self.assertRaises(ValueError):
                parse_slots(wrong, asked)

    def test_a_redirection_is_no_refusal(self) -> None:
        for text, is_settling in (("MOVED 1 h:1", False), ("ASK 1 h:1", True), ("TRYAGAIN Multiple keys", True)):
            with self.assertRaises(Redirected) as caught:
                raise_for(ErrorReply(text), "here")
            self.assertEqual(caught.exception.is_settling, is_settling)
        with self.assertRaises(TransactionRefused):
            raise_for(ErrorReply("CROSSSLOT Keys in request don't hash to the same slot"), "here")


@pytest.mark.real  # a Cluster that changes under it
class ClusterTests(TestCase):
    timeout = 300
    cluster: Cluster

    @classmethod
    def setUpClass(cls) -> None:
        cls.cluster = Cluster(replicas=False)

    @classmethod
    def tearDownClass(cls) -> None:
        cls.cluster.remove()

    async def routers(self, count: int = 1, url: str = "") -> list[Router]:
        found = []
        for _ in range(count):
            found.append(await connect(self, url or self.cluster.url, BUCKETS))
        return found

    def setUp(self) -> None:
        self.cluster.flush()

    async def test_a_record_that_is_lost_is_said_and_repaired(self) -> None:
        (router,) = await self.routers()
        await router.set("kept", "1")
        holder = self.cluster.holder(STORE_KEY)
        record = decode_record(holder.call("GET", STORE_KEY))
        holder.call("DEL", STORE_KEY)
        pools = router.atlas.by_name
        [wrong] = await check(pools, reactor)
        self.assertEqual(wrong.text, "shard s1 does not say any more which store it is of: taba check --repair")
        self.assertEqual(await check(pools, reactor, repair=True), [wrong])
        self.assertEqual(decode_record(holder.call("GET", STORE_KEY)), record)
        self.assertEqual(await check(pools, reactor), [])
        (other,) = await self.routers()  # takes it for the store that it was
        self.assertEqual((other.store_id, await other.get("kept")), (router.store_id, b"1"))

    def places(self, bucket: int) -> tuple[Any, Any]:
        """Who has the slot of the bucket, and one who has not."""
        source = self.cluster.holder(owner_key(bucket))
        return source, next(node for node in self.cluster.primaries if node is not source)

    async def move(self, bucket: int, pause: float = 0.0) -> None:
        """Move the bucket's slot in the classic way, key by key."""
        slot = slot_of_bucket(bucket)
        source, target = self.places(bucket)
        self.cluster.begin_migration(slot, source, target)
        while True:
            while self.cluster.move_some(slot, source, target):
                await deferLater(reactor, pause)
            if self.cluster.end_migration(slot, source, target):
                return
            source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", self.cluster.identity(target))

    async def test_slots_migrated_under_load_count_every_step_once(self) -> None:
        routers = await self.routers(2)
        buckets = [0, 1, 2, 3]
        load = Load(self, routers, buckets)
        load.start()
        await load.until(50)
        for turn in range(12):
            await self.move(buckets[turn % 4], pause=0.005)
            await load.until(10)
        await load.stop()
        self.assertEqual(await load.sums(routers[0]), load.done)
        self.assertEqual((load.gaps, load.refused), (0, 0))
        self.assertGreater(sum(router.counts["redirected"] for router in routers), 0)

    async def test_slots_migrated_at_one_stroke_count_every_step_once(self) -> None:
        routers = await self.routers(2)
        load = Load(self, routers, [5, 6])
        load.start()
        await load.until(50)
        for bucket in (5, 6, 5):
            source, target = self.places(bucket)
            slot = slot_of_bucket(bucket)
            reply = source.call("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", self.cluster.identity(target))
            if isinstance(reply, Exception) or b"ERR" in bytes(reply):
                await load.stop()
                raise self.skipTest(f"this store has no such command: {reply}")
            await deferToThread(self.cluster.wait_held, owner_key(bucket), target)
            await load.until(10)
        await load.stop()
        self.assertEqual(await load.sums(routers[0]), load.done)
        self.assertEqual(load.gaps, 0)

    async def test_a_transaction_never_follows_ask(self) -> None:
        (router,) = await self.routers()
        load = Load(self, [router], [7])
        load.start()
        await load.until(3)
        await load.stop()
        slot = slot_of_bucket(7)
        source, target = self.places(7)
        self.cluster.begin_migration(slot, source, target)
        while b"mark" not in b"".join(target.call("CLUSTER", "GETKEYSINSLOT", slot, 100)):
            self.cluster.move_some(slot, source, target, 1)  # the mark is there, and the rest, perhaps, here
        writing = ensureDeferred(load._step(router, 7, "0-0", 99))
        reading = ensureDeferred(router.read(7, [(b"GET", prefix_of(7) + b"sum"), (b"GET", prefix_of(7) + b"none")]))
        await deferLater(reactor, 0.3)
        self.assertFalse(writing.called or reading.called)
        while self.cluster.move_some(slot, source, target):
            pass
        self.assertTrue(self.cluster.end_migration(slot, source, target))
        await writing
        await reading
        self.assertEqual(await router.read(7, [(b"GET", prefix_of(7) + b"mark:0-0")]), [b"99"])

    async def test_a_slot_that_does_not_settle_is_unavailable_within_the_deadline_and_its_neighbours_are_not(self) -> None:
        (router,) = await self.routers()
        slot = slot_of_bucket(8)
        source, target = self.places(8)
        self.cluster.begin_migration(slot, source, target)
        short = [self.patch(reading, "READ_SECONDS", 0.4), self.patch(router_module, "TRANSACT_SECONDS", 0.4)]
        with self.assertRaises(StoreUnavailable):
            await router.transact(8, [(b"GET", prefix_of(8) + b"none")], lambda _: Writes([(b"SET", prefix_of(8) + b"none", b"1")]))
        with self.assertRaises(StoreUnavailable):
            await router.read(8, [(b"GET", prefix_of(8) + b"none")])
        for patch in short:
            patch.restore()
        other = next(bucket for bucket in range(BUCKETS) if bucket != 8 and self.cluster.holder(owner_key(bucket)) is source)
        await router.transact(other, [], lambda _: Writes([(b"SET", prefix_of(other) + b"a", b"1")]))
        while self.cluster.move_some(slot, source, target):
            pass
        self.assertTrue(self.cluster.end_migration(slot, source, target))
        self.assertEqual(await router.read(8, [(b"GET", prefix_of(8) + b"none")]), [None])

    async def test_many_buckets_are_read_in_one_round_trip_per_node(self) -> None:
        (router,) = await self.routers()
        writes: list[Any] = []
        for server in router.atlas.pool_of("s1").servers:
            note_commands(server, writes)
        replies = await router.read_many({bucket: [(b"GET", prefix_of(bucket) + b"a")] for bucket in range(BUCKETS)})
        self.assertEqual(list(replies.items()), [(bucket, [None]) for bucket in range(BUCKETS)])
        self.assertEqual(len(writes), 3)
        self.assertEqual(sum(len(commands) for commands in writes), BUCKETS * 2)

    async def test_a_node_that_lost_its_keys_is_unavailable_and_not_taken_for_empty(self) -> None:
        (router,) = await self.routers()
        load = Load(self, [router], [9])
        load.start()
        await load.until(2)
        await load.stop()
        source, _ = self.places(9)
        source.call("FLUSHALL")
        self.patch(reading, "READ_SECONDS", 0.4)
        self.patch(router_module, "TRANSACT_SECONDS", 0.4)
        with self.assertRaises(StoreUnavailable):
            await load.sums(router)
        with self.assertRaises(StoreUnavailable):
            await load._step(router, 9, "0-0", 50)

    async def test_a_node_that_is_in_no_cluster_is_not_believed(self) -> None:
        lone = EphemeralValkey(tcp=True, cluster_enabled="yes", cluster_port=str(free_port()))
        self.addCleanup(lone.remove)
        (router,) = await self.routers(url=f"{self.cluster.url},127.0.0.1:{lone.port}")
        for _ in range(10):
            await router.atlas.pool_of("s1").refresh(1.0)
            self.assertTrue(router.is_ready)

    async def test_a_plain_server_is_no_cluster_and_a_clusters_node_no_plain_server(self) -> None:
        plain = borrow(self, tcp=True)
        router = Router(parse_store(f"redis+cluster://127.0.0.1:{plain.port}"), BUCKETS, reactor)
        self.addCleanup(lambda: ensureDeferred(router.close()))
        with self.assertRaises(ConfigurationError) as caught:
            await router.connect()
        self.assertIn("takes nodes of a cluster", str(caught.exception))
        url = next(f"redis://127.0.0.1:{node.port}" for node in self.cluster.primaries if node is not self.cluster.holder(STORE_KEY))
        other = Router(parse_store(url), BUCKETS, reactor)
        connecting = ensureDeferred(other.connect())
        connecting.addErrback(lambda failure: failure.trap(StoreUnavailable))
        await until(lambda: "which takes redis+cluster://" in " ".join(other.problems))
        await other.close()
        await connecting

    async def test_another_number_of_buckets_is_refused(self) -> None:
        await self.routers()
        other = Router(parse_store(self.cluster.url), BUCKETS + 1, reactor)
        self.addCleanup(lambda: ensureDeferred(other.close()))
        with self.assertRaises(ConfigurationError):
            await other.connect()

    async def test_many_that_come_at_once_agree(self) -> None:
        urls = [f"redis+cluster://127.0.0.1:{node.port}" for node in self.cluster.primaries]
        routers = [Router(parse_store(url), BUCKETS, reactor) for url in urls * 2]
        connecting = [ensureDeferred(router.connect()) for router in routers]
        for router, one in zip(routers, connecting, strict=True):
            self.addCleanup(router.close)
            await one
        self.assertEqual(len({router.store_id for router in routers}), 1)
        await routers[0].read_many({bucket: [(b"GET", prefix_of(bucket) + b"a")] for bucket in range(BUCKETS)})


@pytest.mark.real
class FailoverTests(TestCase):
    timeout = 900  # it only ends a hang: each wait has a bound of its own, and says what it saw
    cluster: Cluster

    @classmethod
    def setUpClass(cls) -> None:
        cls.cluster = Cluster()

    @classmethod
    def tearDownClass(cls) -> None:
        cls.cluster.remove()

    async def prepare(self) -> Load:
        await deferToThread(self.cluster.settle)
        self.cluster.flush()
        self.router = Router(parse_store(self.cluster.url), BUCKETS, reactor)
        self.addCleanup(lambda: ensureDeferred(self.router.close()))
        await self.router.connect()
        await deferToThread(self.cluster.settle)  # a primary that dies before its replica has what was just made takes the store with it
        load = Load(self, [self.router], list(range(8)))
        load.start()
        await load.until(50)
        return load

    async def test_a_primary_killed_under_load_is_replaced_and_nothing_but_time_is_lost(self) -> None:
        load = await self.prepare()
        since, victim = self.cluster.epoch(owner_key(0)), self.cluster.holder(owner_key(0))
        victim.kill()
        self.addCleanup(victim.start_again)
        await load.until(50)
        await deferToThread(self.cluster.wait_failed_over, owner_key(0), since)
        await load.another_round()  # what it had acknowledged and not yet replicated is brought back by who wrote it
        await load.stop()
        self.assertEqual(await load.sums(self.router), load.done)
        self.assertTrue(self.router.is_ready, self.router.problems)
        self.assertIn("may lose acknowledged events", " ".join(self.router.problems))
        await deferToThread(victim.start)  # comes back as a replica
        await load.sums(self.router)

    async def test_a_failover_on_demand_under_load_loses_nothing(self) -> None:
        load = await self.prepare()
        for _ in range(HAND_OVERS):
            await load.another_round()  # what was lost before this is known
            gaps, elections = load.gaps, self.cluster.elections()
            await deferToThread(self.cluster.hand_over, owner_key(0))
            await load.until(50)
            await load.another_round()
            if self.cluster.elections() == elections + 1:
                break  # else the nodes of a busy machine held another one by themselves, which loses what it may
        else:
            self.fail(f"never one alone: {self.cluster.seen()}")
        self.assertEqual(load.gaps, gaps)
        await load.stop()
        self.assertEqual(await load.sums(self.router), load.done)
