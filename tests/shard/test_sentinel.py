"""Real sentinels: failovers under load are followed, replicas and stale sentinels are never believed, replicas are waited for."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, fail, succeed
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from taba.errors import StoreUnavailable
from taba.shard import reading, transaction
from taba.shard import router as router_module
from taba.shard.buckets import owner_key, prefix_of
from taba.shard.moving.check import check
from taba.shard.moving.reshard import current_pools
from taba.shard.router import Router
from taba.shard.servers.pool import Pool
from taba.shard.servers.sentinel import Sentinels, Succession, _parse
from taba.shard.servers.url import Address, parse_store
from taba.shard.transaction import NotReplicated, Writes
from tests.shard.load import JointLoad, Load, until
from tests.shard.pieces import connect
from tests.stores import borrow
from tests.topologies import SentinelTrio, wait_until
from tests.valkey import free_port

PATIENCE = 120.0  # seconds: what one step may take on a machine that has much else to do
BUCKETS = 4  # 0 and 1 on m1, 2 and 3 on m2


class ParseTests(SynchronousTestCase):
    def test_what_a_sentinel_answers(self) -> None:
        master = parse_store("rediss+sentinel://u:p@s1/?shards=m1").addresses[0]
        found = _parse(master, [[b"10.0.0.1", b"7000"], [b"name", b"m1", b"config-epoch", b"12"]])
        self.assertEqual(found, (12, Address(host="10.0.0.1", port=7000, tls=True, username="u", password="p")))
        replies: list[list[Any]] = [
            [None, []],
            [[b"h"], []],
            [[b"h", b"x"], []],
            [[b"h", b"1"], None],
            [b"h", b"1"],
            [ValueError("no"), []],
        ]
        for wrong in replies:
            with self.assertRaises(ValueError):
                _parse(master, wrong)


class SuccessionTests(SynchronousTestCase):
    """Whether what a master confirms is kept, by what three sentinels say: here each says what it is told to."""

    def ask(self, *said: Any, where: str = "redis://h:1") -> Succession:
        master = parse_store("redis+sentinel://s1,s2,s3/?shards=m1").addresses[0]
        sentinels = Sentinels(Clock(), master.via)
        for pool, one in zip(sentinels._pools, said, strict=True):
            self.patch(pool, "execute", lambda *_, one=one: fail(StoreUnavailable("away")) if one is None else succeed(one))
        found: Succession = self.successResultOf(ensureDeferred(sentinels.succession(master, where)))
        return found

    def sentinel(self, port: int = 1, epoch: int = 0, flags: str = "master", **replicas: str) -> Any:
        """What a sentinel says whose master is at h:`port`; a replica at rN:N has the flags that stand under rN."""
        described = [b"name", b"m1", b"config-epoch", b"%d" % epoch, b"flags", flags.encode(), b"down-after-milliseconds", b"1000"]
        told = [[b"ip", name.encode(), b"port", name[1:].encode(), b"flags", words.encode()] for name, words in replicas.items()]
        return [told, [b"h", b"%d" % port], described]

    def test_whoever_any_sentinel_might_promote_is_an_heir(self) -> None:
        found = self.ask(
            self.sentinel(r2="slave", r3="slave,s_down", r4="slave,s_down"),
            self.sentinel(r2="slave,s_down", r3="slave,disconnected", r4="slave,o_down"),
            self.sentinel(r2="slave", r3="slave,s_down", r4="s_down,slave,disconnected"),
        )
        self.assertEqual(found, (frozenset([("r2", 2), ("r3", 3)]), frozenset(["r4:4"]), ""))

    def test_one_that_is_being_promoted_is_an_heir_although_its_connections_were_cut(self) -> None:
        cut = self.sentinel(r2="slave,disconnected", r3="slave")
        self.assertIn(("r2", 2), self.ask(cut, cut, cut).heirs)

    def test_a_master_that_is_being_replaced_or_was_confirms_nothing(self) -> None:
        usual = self.sentinel(r2="slave")
        self.assertEqual(self.ask(usual, usual, usual).problem, "")
        self.assertIn("is replacing redis://h:1", self.ask(usual, self.sentinel(flags="master,failover_in_progress"), usual).problem)
        self.assertEqual(self.ask(usual, usual, self.sentinel(port=2, epoch=1)).problem, "redis://h:2 is the master now")
        self.assertEqual(self.ask(usual, usual, self.sentinel(port=2, epoch=1), where="redis://h:2").problem, "")

    def test_most_sentinels_must_answer(self) -> None:
        usual = self.sentinel(r2="slave")
        self.assertEqual(self.ask(usual, None, usual).problem, "")
        self.assertIn("1 of 3 sentinels answer", self.ask(usual, None, [None, None, None]).problem)
        self.failureResultOf(ensureDeferred(self.ask_nobody()), StoreUnavailable)

    async def ask_nobody(self) -> None:
        master = parse_store("redis+sentinel://s1/?shards=m1").addresses[0]
        sentinels = Sentinels(Clock(), master.via)
        self.patch(sentinels._pools[0], "execute", lambda *_: succeed([[], None, []]))
        await sentinels.succession(master, "redis://h:1")


class LocateTests(SynchronousTestCase):
    """Where a master is, by what three sentinels say."""

    def locate(self, *said: Any) -> Address:
        master = parse_store("redis+sentinel://s1,s2,s3/?shards=m1").addresses[0]
        sentinels = Sentinels(Clock(), master.via)
        for pool, one in zip(sentinels._pools, said, strict=True):
            self.patch(pool, "execute", lambda *_, one=one: fail(StoreUnavailable("away")) if one is None else succeed(one))
        found: Address = self.successResultOf(ensureDeferred(sentinels.locate(master)))
        return found

    def says(self, port: int, epoch: int) -> Any:
        return [[b"h", b"%d" % port], [b"name", b"m1", b"config-epoch", b"%d" % epoch]]

    def test_a_sentinel_that_was_cut_off_is_outvoted(self) -> None:
        stale, new = self.says(1, 6), self.says(2, 7)
        for said in ((stale, new, new), (new, stale, stale), (stale, None, new), (None, new, None)):
            self.assertEqual(self.locate(*said).port, 2)
        self.assertEqual(self.locate(stale, stale, None).port, 1)


class SentinelCase(TestCase):
    """Masters and replicas under sentinels, and failovers."""

    timeout = 900  # it only ends a hang: each wait has a bound of its own, and says what it saw

    async def prepare(self, masters: int = 2, replicas: int = 1, wait_replicas: int = 0, **settings: str) -> Router:
        self.trio = await deferToThread(lambda: SentinelTrio(masters, replicas, **settings))
        self.addCleanup(self.trio.remove)
        router = await self.connected(wait_replicas=wait_replicas)
        # a failover to a replica that has nothing yet is the loss of the store, and nobody goes on from there
        await deferToThread(self.trio.settle)
        return router

    async def connected(self, url: str = "", wait_replicas: int = 0) -> Router:
        return await connect(self, url or self.trio.url, BUCKETS, wait_replicas=wait_replicas)

    async def failed_over(self, since: int) -> None:
        """Return once m1 has failed over after the epoch `since`."""
        await deferToThread(self.trio.wait_failed_over, "m1", since)

    async def write(self, router: Router, bucket: int = 0, value: bytes = b"1") -> None:
        await router.transact(bucket, [], lambda _: Writes([(b"SET", prefix_of(bucket) + b"a", value)]), PATIENCE)


@pytest.mark.real
class FailoverTests(SentinelCase):
    async def ends(self, load: Load, router: Router) -> None:
        """Each step that was acknowledged is there once; what a failover took is brought back by who had written it."""
        await load.another_round()
        await load.stop()
        self.assertEqual(await load.sums(router), load.done)

    async def hand_over_under(self, load: Load) -> None:
        """Have another become m1's primary, while `load` has begun."""
        load.start()
        await load.until(20)
        since = self.trio.epoch("m1")
        await deferToThread(self.trio.hand_over, "m1")
        await self.failed_over(since)

    async def test_a_primary_killed_under_load_is_replaced_and_recovers_by_itself(self) -> None:
        router = await self.prepare()
        load = Load(self, [router], [0, 2])
        load.start()
        await load.until(50)
        since, victim = self.trio.epoch("m1"), self.trio.primary("m1")
        victim.kill()
        await self.failed_over(since)
        await load.until(50)
        self.assertEqual(await router.read(0, [(b"STRLEN", prefix_of(0) + b"none")]), [0])
        await self.ends(load, router)
        self.assertTrue(router.is_ready)
        print(f"{self.id()}: the longest step took {load.longest:.1f} s")

    async def test_a_failover_on_demand_is_followed(self) -> None:
        router = await self.prepare(masters=1)
        load = Load(self, [router], [0, 2])
        await self.hand_over_under(load)
        await load.until(50)
        await self.ends(load, router)

    async def test_a_failover_that_another_takes_back_is_followed_there_and_back(self) -> None:
        """So it goes on a busy machine: the new master stands still for longer than the sentinels wait, and they take the first again."""
        router = await self.prepare(masters=1)
        load = Load(self, [router], [0, 2])
        await self.hand_over_under(load)  # until then the first may take steps
        again, second = self.trio.epoch("m1"), self.trio.primary("m1")
        second.pause()
        await load.until(20)  # another one takes them
        second.resume()
        await self.failed_over(again)
        await load.until(50)
        await self.ends(load, router)

    async def test_a_primary_that_stops_and_wakes_as_a_replica_is_left(self) -> None:
        router = await self.prepare(masters=1)
        load = Load(self, [router], [0])
        load.start()
        await load.until(20)
        since, victim = self.trio.epoch("m1"), self.trio.primary("m1")
        victim.pause()  # every connection stays open, and nobody says goodbye
        await load.until(20)  # of whom another is the master now
        victim.resume()
        await load.until(50)
        await self.failed_over(since)
        await self.ends(load, router)

    async def test_a_server_that_says_that_it_is_a_replica_is_not_used(self) -> None:
        router = await self.prepare(masters=1)
        _, replica = self.trio.pair("m1")
        pool: Any = router.atlas.pool_of("s1")

        async def lies(_: Address) -> Address:
            return Address(host="127.0.0.1", port=replica.port)

        pool.sentinels.locate = lies
        # once a second the sentinels are asked: then the connections to the master are left
        await until(lambda: "a replica, where the sentinels say that m1 is" in pool.last_error)
        self.patch(reading, "READ_SECONDS", 0.5)
        with self.assertRaises(StoreUnavailable):
            await router.read(0, [(b"GET", prefix_of(0) + b"a")])

    async def test_a_write_that_a_replica_refuses_closes_the_connection(self) -> None:
        valkey = borrow(self)
        router = await self.connected(valkey.url)
        pool = router.atlas.pools[0]
        assert isinstance(pool, Pool)
        connection = next(iter(pool._open))
        valkey.call("REPLICAOF", "127.0.0.1", free_port())
        writing = ensureDeferred(router.transact(0, [], lambda _: Writes([(b"SET", prefix_of(0) + b"a", b"1")], "done"), PATIENCE))
        await until(lambda: not connection.is_open)
        self.assertFalse(writing.called)
        valkey.call("REPLICAOF", "NO", "ONE")
        self.assertEqual(await writing, "done")

    async def test_a_sentinel_that_is_away_is_not_waited_for(self) -> None:
        router = await self.prepare(masters=1)
        since = self.trio.epoch("m1")
        self.trio.sentinels[0].pause()
        self.trio.primary_by(1, "m1").kill()
        await self.write(router)  # by what the others name
        self.trio.sentinels[0].resume()
        await self.failed_over(since)  # it learns what the others know
        await self.write(router)

    async def test_only_one_of_the_sentinels_answers_at_the_start(self) -> None:
        await self.prepare(masters=1)
        port = self.trio.sentinels[0].port
        router = await self.connected(f"redis+sentinel://127.0.0.1:{port},127.0.0.1:{free_port()}/?shards=m1")
        self.assertEqual(await router.read(0, [(b"GET", prefix_of(0) + b"a")]), [None])

    async def test_a_master_that_no_sentinel_knows_is_said_so(self) -> None:
        await self.prepare(masters=1)
        router = Router(parse_store(self.trio.url.replace("=m1", "=other")), BUCKETS, reactor)
        self.addCleanup(lambda: ensureDeferred(router.close()))
        connecting = ensureDeferred(router.connect())
        connecting.addErrback(lambda failure: failure.trap(StoreUnavailable))
        await until(lambda: "No such master" in " ".join(router.problems))
        self.assertFalse(router.is_ready)
        await router.close()
        await connecting


@pytest.mark.real
class JointFailoverTests(SentinelCase):
    """A replica is promoted between the reads and the writes of a transaction over many buckets."""

    async def strikes(self, strike: Any) -> None:
        router = await self.prepare(masters=1, min_replicas_to_write="1")
        load = JointLoad(self, [router, await self.connected()], range(BUCKETS), writers=1)
        load.start()
        await load.until(50)
        since = self.trio.epoch("m1")
        joined = load.joined
        self.assertGreater(joined, 0)
        load.strike = lambda: deferToThread(strike)
        await until(lambda: load.strike is None)
        await self.failed_over(since)
        for server in self.trio.servers["m1"]:
            await deferToThread(server.start_again)  # without a replica the new one would take no writes
        await load.until(50)
        await load.another_round()
        await load.stop()
        self.assertGreater(load.joined, joined)
        fresh = await self.connected()
        self.assertEqual(await load.sums(fresh), load.done)
        self.assertEqual([one.text for one in await check(await current_pools(fresh.atlas), reactor)], [])

    async def test_a_planned_one_loses_and_doubles_nothing(self) -> None:
        await self.strikes(lambda: self.trio.hand_over("m1"))

    async def test_one_after_a_crash_loses_and_doubles_nothing(self) -> None:
        await self.strikes(lambda: self.trio.primary("m1").kill())


@pytest.mark.real
class ReplicaTests(SentinelCase):
    async def test_a_primary_that_takes_writes_which_no_replica_gets_is_a_problem(self) -> None:
        router = await self.prepare(masters=1)
        self.assertIn("set min-replicas-to-write 1", " ".join(router.problems))

    async def test_a_primary_whose_replicas_are_away_refuses_writes_and_takes_them_again(self) -> None:
        router = await self.prepare(masters=1, min_replicas_to_write="1", min_replicas_max_lag="2")
        self.assertEqual(router.problems, [])
        master, replica = self.trio.pair("m1")
        replica.kill()
        await deferToThread(wait_until, lambda: "NOREPLICAS" in str(master.call("SET", "x", "1")), self.trio.seen)
        self.patch(router_module, "TRANSACT_SECONDS", 0.5)
        said = ""
        while "NOREPLICAS" not in said:  # where half a second is too little, it was not asked yet
            with self.assertRaises(StoreUnavailable) as caught:
                await router.transact(0, [], lambda _: Writes([(b"SET", prefix_of(0) + b"a", b"1")]))
            said = str(caught.exception)
        self.assertEqual(await router.read(0, [(b"GET", prefix_of(0) + b"a")]), [None])
        await deferToThread(replica.start)
        await self.write(router)

    async def test_done_means_that_the_replicas_have_it_where_they_are_waited_for(self) -> None:
        self.patch(transaction, "WAIT_SECONDS", PATIENCE)
        router = await self.prepare(masters=1, wait_replicas=1)
        _, replica = self.trio.pair("m1")
        self.assertEqual(replica.call("CONFIG", "GET", "replica-read-only")[1], b"yes")
        for number in range(20):
            await self.write(router, value=b"%d" % number)
            self.assertEqual(replica.call("GET", prefix_of(0) + b"a"), b"%d" % number)

    async def test_too_few_replicas_are_not_replicated_also_when_asked_again(self) -> None:
        router = await self.prepare(masters=1, wait_replicas=1)
        master, replica = self.trio.pair("m1")
        key = prefix_of(0) + b"mark"
        self.patch(transaction, "WAIT_SECONDS", 0.2)

        def once(replies: list[Any]) -> Writes:
            return Writes([] if replies[0] else [(b"SET", key, b"1")], "applied")

        replica.pause()
        for _ in range(2):  # the second finds it done, and may not say so either: no replica has it
            with self.assertRaises(NotReplicated):
                await router.transact(0, [(b"GET", key)], once, PATIENCE)
        self.assertEqual(router.counts["unreplicated"], 2)
        self.assertIn("replicas acknowledge", " ".join(router.problems))
        replica.resume()
        self.patch(transaction, "WAIT_SECONDS", PATIENCE)
        self.assertEqual(await router.transact(0, [(b"GET", key)], once, PATIENCE), "applied")
        self.assertNotIn("replicas acknowledge", " ".join(router.problems))
        self.assertEqual(master.call("GET", owner_key(0)), b"open:1:s1")

    async def test_what_all_replicas_had_survives_a_failover(self) -> None:
        # of several, sentinels may promote the one that has less, by what it told them a second ago: so all are waited for
        router = await self.prepare(masters=1, wait_replicas=2, replicas=2)
        load = Load(self, [router], [0, 1])
        load.start()
        await load.until(50)
        since, victim = self.trio.epoch("m1"), self.trio.primary("m1")
        victim.kill()
        await self.failed_over(since)
        await deferToThread(victim.start)  # and becomes the second replica
        await load.until(50)
        await load.another_round()
        await load.stop()
        self.assertEqual(await load.sums(router), load.done)
        self.assertEqual(load.gaps, 0)
