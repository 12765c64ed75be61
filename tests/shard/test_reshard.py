"""A store in use grows from one shard to four and shrinks to two: exact, whoever drives it, dies or comes too."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults, succeed
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from taba.errors import ConfigurationError, StoreUnavailable
from taba.shard import maps, reading
from taba.shard.buckets import INITIALISED_KEY, MAP_KEY, STORE_KEY, BucketMap, Owner, decode_map, decode_record, encode_owner, owner_key
from taba.shard.moving import mending, mover, reshard
from taba.shard.moving.check import check
from taba.shard.moving.mover import Mover
from taba.shard.moving.reshard import Progress, Reshard, current_shards
from taba.shard.moving.steps import MoveFailed, Occupied, Step
from taba.shard.moving.survey import survey
from taba.shard.router import Router
from taba.shard.servers.url import parse_store
from tests.shard.moves import Killed, Writer, key
from tests.shard.pieces import always, connect
from tests.stores import borrow
from tests.topologies import SentinelTrio
from tests.valkey import EphemeralValkey

BUCKETS = 12


class ReshardCase(TestCase):
    timeout = 300

    def valkey(self) -> EphemeralValkey:
        valkey = borrow(self, appendfsync="no")
        return valkey

    async def router(self, url: str) -> Router:
        return await connect(self, url, None)

    async def prepare(self, shards: int = 1) -> Router:
        self.patch(reshard, "STALL_SECONDS", 0.1)
        self.valkeys = [self.valkey() for _ in range(shards)]
        self.url = ",".join(valkey.url for valkey in self.valkeys)
        first = Router(parse_store(self.url), BUCKETS, reactor)
        self.addCleanup(lambda: ensureDeferred(first.close()))
        await first.connect()
        return first

    async def reshard(self, **options: Any) -> Reshard:
        """As `taba reshard` does: with connections of its own."""
        made = Reshard((await self.router(self.url)).atlas, reactor, **options)
        self.addCleanup(lambda: ensureDeferred(made.close()))
        return made

    async def add(self, *valkeys: EphemeralValkey, **options: Any) -> int:
        return len(await (await self.reshard(**options)).add([parse_store(valkey.url).addresses[0] for valkey in valkeys]))

    def start_writers(self, routers: list[Router]) -> list[Writer]:
        writers = [Writer(routers[bucket % len(routers)], bucket, 0.02) for bucket in range(BUCKETS)]
        for writer in writers:
            writer.start()
        return writers

    async def stop_writers(self, writers: list[Writer]) -> None:
        await gatherResults([ensureDeferred(writer.stop()) for writer in writers])
        router = await self.router(self.url)
        for writer in writers:
            self.assertGreater(writer.done, 0)
            await writer.check(self, router, f"bucket {writer.bucket}")

    async def held(self, router: Router) -> dict[str, int]:
        """How many buckets each shard of the newest map has, after checking that the shards themselves say the same."""
        fresh = await self.router(self.url)
        pools = {shard.name: fresh.atlas.pool_of(shard.name) for shard in fresh.map.shards}
        owners = (await survey(pools, BUCKETS)).owners
        for bucket in range(BUCKETS):
            holders = [name for name, said in owners.items() if (owner := said[bucket]) is not None and owner.state == "open"]
            self.assertEqual(holders, [fresh.map.shard_of(bucket)], f"bucket {bucket}")
        return {shard.name: len(fresh.map.owned_by(shard.name)) for shard in fresh.map.shards}


class ReshardTests(ReshardCase):
    @pytest.mark.real
    async def test_from_one_shard_to_four_and_back_to_two_nothing_is_lost_and_no_read_has_a_hole(self) -> None:
        first = await self.prepare()
        second = await self.router(self.url)
        writers = self.start_writers([first, second])
        while not all(writer.done for writer in writers):
            await deferLater(reactor, 0.01)
        reads, is_reading = [0], [True]

        async def read() -> None:
            before = {bucket: 0 for bucket in range(BUCKETS)}
            while is_reading[0]:
                answer = await second.read_many({bucket: [(b"GET", key(bucket, "mark"))] for bucket in range(BUCKETS)})
                for bucket, [mark] in answer.items():
                    self.assertGreaterEqual(int(mark or 0), before[bucket])  # what was there is there
                    before[bucket] = int(mark)
                reads[0] += 1
                await deferLater(reactor, 0.002)

        reading = ensureDeferred(read())
        added = [self.valkey() for _ in range(3)]
        self.assertEqual(await self.add(added[0]), BUCKETS // 2)
        self.assertEqual(await self.add(added[1], added[2]), BUCKETS // 2)
        self.assertEqual(await self.held(first), {f"s{number}": BUCKETS // 4 for number in (1, 2, 3, 4)})
        self.assertEqual(await self.add(*added), 0)  # a repeated call finds nothing to do
        await (await self.reshard()).drain("s1")
        await (await self.reshard()).drain("s3")
        self.assertEqual(await self.held(first), {"s2": BUCKETS // 2, "s4": BUCKETS // 2})
        is_reading[0] = False
        await reading
        self.assertGreater(reads[0], 5)
        await self.stop_writers(writers)
        self.assertEqual(self.valkeys[0].ask("EXISTS", key(0, "h"), key(0, "mark")), b":0\r\n")

    async def test_a_plan_that_is_only_shown_changes_nothing(self) -> None:
        router = await self.prepare()
        new = self.valkey()
        moves = await (await self.reshard()).add(parse_store(new.url).addresses, is_dry=True)
        self.assertEqual((len(moves), {move.target for move in moves}), (BUCKETS // 2, {"s2"}))
        self.assertEqual(new.ask("DBSIZE"), b":0\r\n")
        self.assertEqual(await self.held(router), {"s1": BUCKETS})
        with self.assertRaises(ConfigurationError):
            await (await self.reshard()).drain("s1", is_dry=True)

    async def test_what_cannot_be_a_shard_is_refused(self) -> None:
        await self.prepare()
        other = self.valkey()
        await self.router(other.url)  # another store
        with self.assertRaises(ConfigurationError) as caught:
            await self.add(other)
        self.assertIn("belongs to another store", str(caught.exception))
        evicting = borrow(self, maxmemory="100mb", maxmemory_policy="allkeys-lru")
        with self.assertRaises(ConfigurationError):
            await self.add(evicting)
        with self.assertRaises(ConfigurationError):
            await (await self.reshard()).drain("s9")

    async def test_one_that_died_is_resumed_by_a_repeated_call(self) -> None:
        self.patch(mover, "ALIVE_SECONDS", 0.3)
        self.patch(mover, "SIGN_SECONDS", 0.1)
        router = await self.prepare()
        writers = self.start_writers([router])
        new = self.valkey()
        for place in (3, 40, 80):
            left = [place]

            def watch(_: int, request: Any, left: Any = left) -> None:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed

            with self.assertRaises(Killed):
                await self.add(new, watch=watch)
        await self.add(new)
        self.assertEqual(await self.held(router), {"s1": BUCKETS // 2, "s2": BUCKETS // 2})
        await self.stop_writers(writers)

    @pytest.mark.real
    async def test_one_that_died_is_undone_by_abort(self) -> None:
        self.patch(mover, "ALIVE_SECONDS", 0.3)
        self.patch(mover, "SIGN_SECONDS", 0.1)
        router = await self.prepare()
        writers = self.start_writers([router])
        new = self.valkey()

        def watch(_: int, request: Any) -> None:
            if isinstance(request, Step) and request.name == "compare":
                raise Killed

        with self.assertRaises(Killed):
            await self.add(new, watch=watch)
        undone = await (await self.reshard()).abort()
        self.assertTrue({moved.how for moved in undone} >= {"undone"})
        self.assertEqual(sum((await self.held(router)).values()), BUCKETS)
        pools = {"s2": (await self.router(new.url)).atlas.pools[0]}
        self.assertEqual([one for found in (await survey(pools, BUCKETS)).owners["s2"] if (one := found) and one.state == "arriving"], [])
        self.assertEqual(await (await self.reshard()).abort(), [])
        await self.stop_writers(writers)

    async def test_a_target_that_a_failover_emptied_as_it_was_copied_to_is_a_shard_of_the_store_afterwards(self) -> None:
        router = await self.prepare()
        for bucket in range(BUCKETS):
            await router.transact(bucket, [], always((b"SET", key(bucket, "t"), b"%d" % bucket)))
        new = self.valkey()
        left = [1]

        def watch(_: int, request: Any) -> None:
            if isinstance(request, Step) and request.name == "stage" and left[0]:
                left[0] -= 1
                new.call("FLUSHALL")  # as of a replica that was promoted before it had anything

        await self.add(new, watch=watch)
        self.assertEqual((left, await self.held(router)), ([0], {"s1": BUCKETS // 2, "s2": BUCKETS // 2}))
        both = await self.router(f"{self.url},{new.url}")
        self.assertEqual([problem for problem in both.problems if "no shard of this store" in problem], [])
        self.assertEqual(await check(await current_shards(both.atlas), reactor), [])
        alone = await self.router(new.url)
        self.assertEqual(alone.store_id, router.store_id)
        for bucket in range(BUCKETS):
            self.assertEqual(await alone.read(bucket, [(b"GET", key(bucket, "t"))]), [b"%d" % bucket])

    async def test_a_shard_that_lost_what_says_whose_it_is_is_never_made_a_new_store_and_is_mended(self) -> None:
        router = await self.prepare(shards=3)
        two = self.valkeys[1]
        record = two.call("GET", STORE_KEY)
        for names in ((STORE_KEY, INITIALISED_KEY), (STORE_KEY,)):
            two.call("DEL", *names)
            if len(names) == 2:
                lost = f"--store: '?{re.escape(two.url)}'?: is a shard of store {router.store_id} and has lost what says so: taba check"
                with self.assertRaisesRegex(ConfigurationError, lost):
                    await self.router(two.url)
            [wrong] = await check(await current_shards((await self.router(self.url)).atlas), reactor, repair=True)
            self.assertEqual(wrong.text, "shard s2 does not say any more which store it is of: taba check --repair")
            self.assertEqual(await check(await current_shards((await self.router(self.url)).atlas), reactor), [])
            self.assertEqual(decode_record(two.call("GET", STORE_KEY)), decode_record(record))
            self.assertEqual(two.call("GET", INITIALISED_KEY).decode(), router.store_id)
            self.assertEqual((await self.router(two.url)).store_id, router.store_id)
        self.assertEqual(sum((await self.held(router)).values()), BUCKETS)

    async def test_the_only_shard_that_lost_what_says_whose_it_is_is_mended_as_the_refusal_says(self) -> None:
        router = await self.prepare(shards=1)
        [one] = self.valkeys
        record = one.call("GET", STORE_KEY)
        one.call("DEL", STORE_KEY, INITIALISED_KEY)
        with self.assertRaises(ConfigurationError) as refused:
            await self.router(one.url)
        cure = re.search(r"it is the only one: (SET \S+ \S+) there, then taba check --repair", str(refused.exception))
        assert cure is not None, str(refused.exception)
        one.call(*cure[1].split())
        again = await self.router(one.url)
        self.assertEqual(again.store_id, router.store_id)
        self.assertEqual(len(await check(await current_shards(again.atlas), reactor, repair=True)), 1)
        self.assertEqual(await check(await current_shards(again.atlas), reactor), [])
        self.assertEqual(decode_record(one.call("GET", STORE_KEY)), decode_record(record)._replace(is_whole=False))
        self.assertEqual(sum((await self.held(router)).values()), BUCKETS)

    async def test_that_a_shard_left_is_brought_to_the_others_where_whoever_decided_it_was_killed_there(self) -> None:
        await self.prepare(shards=3)
        told: list[BucketMap] = []
        tell = maps._set_map

        async def tell_one(pool: Any, map: BucketMap, most: int) -> bool:
            if all(shard.name != "s1" for shard in map.shards):
                if told:
                    raise Killed
                told.append(map)
            return await tell(pool, map, most)

        with self.assertRaises(Killed):
            self.patch(maps, "_set_map", tell_one)
            await (await self.reshard()).drain("s1")  # the first of the map, where changes of it are decided
        self.patch(maps, "_set_map", tell)
        left, stays = self.valkeys[0], self.valkeys[1]
        self.assertEqual([decode_map(one.call("GET", MAP_KEY)).epoch - told[0].epoch for one in (left, stays)], [0, -1])
        self.assertEqual(await check(await current_shards((await self.router(self.url)).atlas), reactor), [])
        self.assertEqual(decode_map(stays.call("GET", MAP_KEY)), told[0])
        self.assertEqual(await (await self.reshard()).rebalance(), [])
        self.assertGreater(await self.add(left), 0)  # and it may come again

    async def test_two_at_once_share_the_work(self) -> None:
        router = await self.prepare()
        writers = self.start_writers([router])
        new = self.valkey()
        second = deferLater(reactor, 0.2, lambda: ensureDeferred(self.add(new)))
        await self.add(new)
        await second
        self.assertEqual(await self.held(router), {"s1": BUCKETS // 2, "s2": BUCKETS // 2})
        await self.stop_writers(writers)

    async def test_a_mover_that_lives_is_not_undone(self) -> None:
        await self.prepare()
        new = self.valkey()
        asleep: Deferred[None] = Deferred()
        wake: Deferred[None] = Deferred()

        def watch(_: int, request: Any) -> Any:
            if isinstance(request, Step) and request.name == "open":
                if not asleep.called:
                    asleep.callback(None)
                return wake
            return None

        adding = ensureDeferred(self.add(new, watch=watch))
        await asleep
        self.patch(reshard, "MOST_STALLS", 2)
        with self.assertRaises(Occupied):
            await (await self.reshard()).abort()
        wake.callback(None)
        self.assertEqual(await adding, BUCKETS // 2)

    async def test_by_bytes_the_heavy_buckets_are_spread(self) -> None:
        router = await self.prepare(shards=2)
        for bucket in range(4):
            await router.transact(bucket, [], always((b"SET", key(bucket, "t"), b"x" * 1_000_000)))
        work = await self.reshard()
        moves = await work.rebalance(await work.sizes())
        self.assertEqual(len(moves), 2)
        map = (await self.router(self.url)).map
        self.assertEqual(sum(map.shard_of(bucket) == "s1" for bucket in range(4)), 2)
        self.assertEqual(len(await (await self.reshard()).rebalance()), 2)

    async def test_the_rate_is_kept_and_progress_is_told(self) -> None:
        router = await self.prepare()
        for bucket in range(4):
            await router.transact(bucket, [], always((b"SET", key(bucket, "t"), b"x" * 100_000)))
        told: list[Progress] = []
        started = time.monotonic()
        again = await self.reshard(rate=400_000.0, report=told.append)
        await again.add(parse_store(self.valkey().url).addresses)
        copied = told[-1].bytes
        self.assertGreaterEqual(time.monotonic() - started, copied / 400_000.0 * 0.9)
        self.assertEqual((told[-1].done, told[-1].total), (BUCKETS // 2, BUCKETS // 2))

    async def test_a_store_that_says_nonsense_about_a_bucket_is_left_alone(self) -> None:
        router = await self.prepare(shards=2)
        self.valkeys[0].ask("SET", owner_key(0), "what:is:this")
        self.patch(reshard, "MOST_STALLS", 1)
        with self.assertRaises(MoveFailed):
            await (await self.reshard()).drain("s1")
        self.assertEqual(self.valkeys[0].ask("GET", owner_key(0)), b"$12\r\nwhat:is:this\r\n")
        self.valkeys[0].ask("SET", owner_key(0), encode_owner(Owner("open", 1, "s1")))
        await (await self.reshard()).drain("s1")
        self.assertEqual(await self.held(router), {"s2": BUCKETS})

    async def test_what_fails_has_others_before_it_however_many_of_it_there_are(self) -> None:
        router = await self.prepare(shards=2)
        self.patch(reshard, "GROUP_BUCKETS", 2)
        self.patch(reshard, "MOST_STALLS", 1)
        spoilt = router.map.owned_by("s1")[:3]
        for bucket in spoilt:
            self.valkeys[0].ask("SET", owner_key(bucket), "what:is:this")
        with self.assertRaises(MoveFailed):
            await (await self.reshard()).drain("s1")
        self.assertEqual(list((await self.router(self.url)).map.owned_by("s1")), list(spoilt))


@pytest.mark.real
class SentinelReshardTests(ReshardCase):
    async def test_masters_of_sentinels_take_and_give_buckets_and_their_replicas_confirm(self) -> None:
        trio = SentinelTrio(masters=2, min_replicas_to_write="1")
        self.addCleanup(trio.remove)
        one, two = (f"{trio.url.partition('/?')[0]}/?shards={name}" for name in ("m1", "m2"))
        self.url = one
        first = Router(parse_store(one), BUCKETS, reactor)
        self.addCleanup(lambda: ensureDeferred(first.close()))
        await first.connect()
        writers = self.start_writers([first])
        while not all(writer.done for writer in writers):
            await deferLater(reactor, 0.01)
        added = await (await self.reshard()).add(parse_store(two).addresses)
        self.assertEqual(len(added), BUCKETS // 2)
        self.assertEqual(await self.held(first), {"s1": BUCKETS // 2, "s2": BUCKETS // 2})
        await (await self.reshard()).drain("s1")
        self.assertEqual(await self.held(first), {"s2": BUCKETS})
        await self.stop_writers(writers)

    async def test_a_replica_that_is_stopped_holds_the_seal_up_and_the_bucket_stays(self) -> None:
        self.patch(mover, "CONFIRM_MILLISECONDS", 300)
        self.patch(reshard, "MOST_STALLS", 1)
        self.patch(reshard, "STALL_SECONDS", 0.1)
        replica = borrow(self, tcp=True, appendfsync="no", repl_diskless_sync_delay="0")
        source = borrow(self, tcp=True, appendfsync="no", repl_diskless_sync_delay="0")
        self.url = source.url
        first = Router(parse_store(source.url), BUCKETS, reactor)
        self.addCleanup(lambda: ensureDeferred(first.close()))
        await first.connect()
        replica.ask("REPLICAOF", "127.0.0.1", source.port)
        while b"state=online" not in source.ask("INFO", "replication"):
            await deferLater(reactor, 0.02)
        replica.pause()
        with self.assertRaises(MoveFailed) as caught:
            await self.add(self.valkey())
        self.assertIn("0 of 1 replicas", str(caught.exception))
        self.assertEqual(await self.held(first), {"s1": BUCKETS, "s2": 0})
        replica.resume()


class OrphanTests(ReshardCase):
    """What dead movers leave behind is undone by whoever uses the store."""

    async def killed_at(self, step: str, most: int = 1) -> tuple[Router, EphemeralValkey, Mover]:
        self.patch(mover, "ALIVE_SECONDS", 1.5)
        self.patch(mending, "LOOK_SECONDS", 0.2)
        router = await self.prepare()
        for bucket in range(BUCKETS):
            await router.transact(bucket, [], always((b"SET", key(bucket, "t"), b"1")))
        new = self.valkey()
        dead: list[Mover] = []

        def watch(_: int, request: Any) -> None:
            if isinstance(request, Step) and request.name == step:
                raise Killed

        def killed() -> Deferred[None]:
            dead.append(work._mover)
            work._mover._signing.stop()
            return succeed(None)

        work = await self.reshard(watch=watch)
        self.patch(work._mover, "stop", killed)  # as kill -9
        with self.assertRaises(Killed):
            await work.add(parse_store(new.url).addresses)
        return router, new, dead[0]

    async def test_a_seal_whose_mover_died_is_undone_by_whoever_meets_it(self) -> None:
        router, _, _ = await self.killed_at("compare")
        fresh = await self.router(self.url)
        for bucket in range(BUCKETS):
            await fresh.transact(bucket, [], always((b"INCR", key(bucket, "n"))))
        while fresh.atlas.in_hand:
            await deferLater(reactor, 0.05)
        self.assertGreater(fresh.counts["mended"], 0)
        found = await survey({name: fresh.atlas.pool_of(name) for name in ("s1", "s2")}, BUCKETS)
        self.assertEqual((found.under_way(), found.unsettled()), ({}, []))
        self.assertEqual(await router.read(0, [(b"GET", key(0, "n"))]), [b"1"])

    async def test_a_bucket_that_is_open_at_its_target_is_finished(self) -> None:
        router, _, _ = await self.killed_at("leave")
        replies = await router.read_many({bucket: [(b"EXISTS", key(bucket, "t"))] for bucket in range(BUCKETS)})
        self.assertEqual(len(replies), BUCKETS)
        while router.atlas.in_hand:
            await deferLater(reactor, 0.05)
        fresh = await self.router(self.url)
        found = await survey({name: fresh.atlas.pool_of(name) for name in ("s1", "s2")}, BUCKETS)
        self.assertEqual(found.unsettled(), [])

    @pytest.mark.real
    async def test_a_seal_whose_target_cannot_be_asked_stands_and_is_a_problem(self) -> None:
        self.patch(mending, "FEW_LOOKS", 1)
        self.patch(reading, "READ_SECONDS", 2.0)
        router, new, _ = await self.killed_at("open")
        new.kill()
        with self.assertRaises(StoreUnavailable):
            await router.read_many({bucket: [(b"EXISTS", key(bucket, "t"))] for bucket in range(BUCKETS)})
        while not any("nobody moves them" in problem for problem in router.problems):
            await deferLater(reactor, 0.05)
        new.start()
        while router.atlas.in_hand:
            await deferLater(reactor, 0.05)
        self.assertEqual(router.problems, [problem for problem in router.problems if "nobody moves" not in problem])

    async def test_a_member_under_another_name_is_no_new_shard(self) -> None:
        valkey = borrow(self, tcp=True, appendfsync="no")
        self.url = valkey.url
        first = Router(parse_store(valkey.url), BUCKETS, reactor)
        self.addCleanup(lambda: ensureDeferred(first.close()))
        await first.connect()
        with self.assertRaisesRegex(ConfigurationError, "it is shard s1, known as redis://127.0.0.1"):
            await (await self.reshard()).add(parse_store(f"redis://127.1:{valkey.port}").addresses)
        self.assertEqual(await self.held(first), {"s1": BUCKETS})

    @pytest.mark.real
    async def test_two_movers_with_opposite_aims_agree(self) -> None:
        router = await self.prepare(shards=2)
        writers = self.start_writers([router])
        new = self.valkey()
        adding = ensureDeferred(self.add(new))
        await (await self.reshard()).drain("s1")
        await adding
        held = await self.held(router)
        self.assertEqual((held.get("s1", 0), sum(held.values())), (0, BUCKETS))
        await self.stop_writers(writers)

    async def test_abort_ends_a_drain_too(self) -> None:
        router = await self.prepare(shards=2)

        def watch(_: int, request: Any) -> None:
            if isinstance(request, Step) and request.name == "seal":
                raise Killed

        with self.assertRaises(Killed):
            await (await self.reshard(watch=watch)).drain("s1")
        self.assertEqual((await self.router(self.url)).map.draining, ("s1",))
        with self.assertRaisesRegex(ConfigurationError, "is being drained"):
            await (await self.reshard()).add([parse_store(self.valkeys[0].url).addresses[0]])
        await (await self.reshard()).abort()
        self.assertEqual((await self.router(self.url)).map.draining, ())
        self.assertEqual(sum((await self.held(router)).values()), BUCKETS)
