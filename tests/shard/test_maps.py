"""Maps that some shards have and others have not: what was decided and told to few, and what was decided twice."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest import mock

import attrs
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taba.errors import StoreUnavailable
from taba.shard import maps
from taba.shard.atlas import GONE_BACK_SECONDS
from taba.shard.buckets import (
    MAP_KEY,
    BucketMap,
    Owner,
    Shard,
    decode_map,
    encode_map,
    encode_owner,
    owner_key,
    rank,
    with_draining,
    with_owner,
    with_shard,
    without_shard,
)
from taba.shard.maps import change_map, newest_map
from taba.shard.memory.router import MemoryRouter
from taba.shard.memory.server import MemoryServer
from taba.shard.moving.check import check
from taba.shard.moving.mover import Mover
from taba.shard.moving.reshard import Reshard, current_shards
from taba.shard.moving.steps import Done, Step

BUCKETS = 4


class MapCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.servers = [MemoryServer(self.clock) for _ in range(3)]

    def now(self, work: Any) -> Any:
        done = ensureDeferred(work)
        self.clock.pump([0.5] * 60)
        return self.successResultOf(done)

    def router(self, named: int | None = None) -> MemoryRouter:
        """A new process's, whose --store names so many of the servers, or all."""
        router = MemoryRouter(self.servers, BUCKETS, self.clock, named=named)
        self.now(router.connect())
        return router

    def pools(self, router: MemoryRouter) -> dict[str, Any]:
        return {shard.name: router.atlas.pool_of(shard.name) for shard in router.map.shards}

    def put(self, map: BucketMap, *servers: int) -> None:
        for server in servers:
            self.servers[server].run((b"SET", MAP_KEY, encode_map(map)))

    def told(self) -> list[BucketMap]:
        contents: list[Any] = [server.run((b"GET", MAP_KEY)) for server in self.servers]
        return [decode_map(content) for content in contents if content is not None]


class LeftTests(MapCase):
    """A shard that is the first of the map takes itself out: that is decided at it."""

    def store(self) -> tuple[BucketMap, BucketMap]:
        """Two servers, the second of which is not in --store, has no bucket and comes first in the map; and the map without it."""
        map = with_shard(self.router(1).map, "redis://memory-2:6379")
        map = attrs.evolve(map, shards=map.shards[::-1], owners=(1,) * BUCKETS)
        record: Any = self.servers[0].run((b"GET", b"taba:store"))
        self.servers[1].run((b"SET", b"taba:store", record.replace(b'"s1"', b'"s2"')))
        self.servers[1].run((b"SET", b"taba:initialised", map.store.encode()))
        self.put(map, 0, 1)
        return map, without_shard(map, "s2")

    def test_what_it_alone_was_told_is_brought_to_the_others_by_whoever_looks_next_however_often_that_one_looked_before(self) -> None:
        _, left = self.store()
        self.put(left, 1)
        router = self.router(1)
        self.assertEqual(list(self.pools(router)), ["s1"])
        for _ in range(2):  # a Server looks at its map again and again, and has forgotten who told it
            self.now(router.atlas.learn(1.0))
        self.assertEqual(self.now(check(self.now(current_shards(router.atlas)), self.clock)), [])
        self.assertEqual([map.shards for map in self.told()], [left.shards] * 2)

    def test_what_is_remembered_and_nobody_tells_is_not_brought(self) -> None:
        map, left = self.store()
        self.put(left, 1)
        router = self.router(1)
        self.put(map, 1)  # it went back in time
        self.assertEqual(self.now(router.atlas.newest_told(1.0)), map)
        self.now(current_shards(router.atlas))
        self.assertEqual(self.told(), [map, map])

    def test_the_map_is_not_made_while_nobody_else_has_it(self) -> None:
        map, left = self.store()
        pools = self.pools(self.router(1))
        self.servers[0].is_away = True
        changing = ensureDeferred(change_map(pools, partial(without_shard, name="s2")))
        self.assertIn("memory-1", self.failureResultOf(changing, StoreUnavailable).getErrorMessage())
        self.servers[0].is_away = False
        self.assertEqual(self.told(), [map, left])
        self.assertEqual(self.now(change_map(pools, partial(without_shard, name="s2"))), left)
        self.assertEqual(self.told(), [left, left])


class GoneBackTests(MapCase):
    """A store that was restored to an older moment, under those who know a later map."""

    read = ((b"GET", b"taba:{0}:sum"),)

    def moved(self) -> tuple[MemoryRouter, BucketMap, BucketMap]:
        """A process that remembers bucket 0 where it was moved to, a store whose owner keys say that it never was; and both maps."""
        router = self.router()
        before = router.map
        contents = [server.run((b"GET", owner_key(0))) for server in self.servers]
        later = with_owner(before, 0, "s2", before.epoch + 1)
        self.put(later, 0, 1, 2)
        self.own(encode_owner(Owner("moved", later.epoch, "s2")), encode_owner(Owner("open", later.epoch, "s2")))
        self.assertEqual(self.now(router.read(0, self.read)), [None])
        self.now(router.atlas.learn(1.0))
        self.assertEqual(router.map, later)
        self.own(*contents)
        return router, before, later

    def own(self, *contents: Any) -> None:
        """What the owner key of bucket 0 says on each server."""
        for server, content in zip(self.servers, contents, strict=False):
            server.run((b"DEL", owner_key(0)) if content is None else (b"SET", owner_key(0), content))

    def test_what_all_shards_tell_is_followed_and_its_buckets_are_found_and_it_is_said_for_an_hour(self) -> None:
        router, before, later = self.moved()
        self.put(before, 0, 1, 2)
        self.assertEqual(self.now(router.read(0, self.read)), [None])
        self.assertEqual(router.map, before)
        [problem] = router.problems
        self.assertIn(f"went back in time, from number {later.epoch} to {before.epoch}, on all shards: of 1 bucket that", problem)
        self.now(router.atlas.learn(1.0))
        self.assertEqual((router.map, router.atlas.counts["maps_gone_back"]), (before, 1))
        self.clock.advance(GONE_BACK_SECONDS)
        self.assertEqual(router.problems, [])

    def test_while_one_is_away_or_tells_none_what_is_remembered_stands(self) -> None:
        router, before, later = self.moved()
        self.put(before, 0, 1, 2)
        self.servers[2].is_away = True
        self.now(router.atlas.learn(1.0))
        self.assertEqual(router.map, later)
        self.servers[2].is_away = False
        self.servers[2].run((b"DEL", MAP_KEY))
        self.now(router.atlas.learn(1.0))
        self.assertEqual(router.map, later)

    def test_while_one_tells_it_it_stands(self) -> None:
        router, before, later = self.moved()
        self.put(before, 0, 1)
        self.now(router.atlas.learn(1.0))
        self.assertEqual((router.map, router.problems), (later, []))

    def test_where_a_shard_had_said_that_a_bucket_went_to_one_that_has_it_no_more_it_is_asked_again(self) -> None:
        router = self.router()
        contents = [server.run((b"GET", owner_key(0))) for server in self.servers]
        epoch = router.map.epoch + 1  # the map does not say so yet
        self.own(encode_owner(Owner("moved", epoch, "s2")), encode_owner(Owner("open", epoch, "s2")))
        self.assertEqual(self.now(router.read(0, self.read)), [None])
        self.assertEqual(router.map.shard_of(0), "s2")
        self.own(*contents)
        self.assertEqual(self.now(router.read(0, self.read)), [None])
        self.assertEqual(router.map.shard_of(0), "s1")


class InterruptedTests(MapCase):
    def test_what_was_decided_and_told_to_one_when_its_mover_was_interrupted_is_told_to_all_as_it_gives_up(self) -> None:
        router = self.router()
        work = Reshard(router.atlas, self.clock)
        draining: Any = None
        tell = maps._set_map
        told: list[Any] = []

        async def tell_one(pool: Any, map: BucketMap, most: int) -> bool:
            if told:
                await Deferred()  # for ever, or until it is cancelled
            told.append(pool)
            return await tell(pool, map, most)

        with mock.patch.object(maps, "_set_map", tell_one):
            draining = ensureDeferred(work.drain("s2"))
        self.assertNoResult(draining)
        draining.cancel()
        self.failureResultOf(draining, CancelledError)
        self.assertEqual([map.draining for map in self.told()], [("s2",), (), ()])
        self.now(work.give_up())
        self.assertEqual([map.draining for map in self.told()], [("s2",)] * 3)
        self.assertEqual(self.now(check(self.now(current_shards(router.atlas)), self.clock)), [])


class DrainedTests(MapCase):
    """A shard that was drained while whoever was to move a bucket to it stood still."""

    def step(self, router: MemoryRouter, shard: int) -> Any:
        """Have the bucket begin to go to s2: by the step there, or by that at the shard where it is. What came of it."""
        at = encode_owner(Owner("open", 1, "s1")) if shard == 0 else None
        self.servers[shard].run((b"DEL", owner_key(0)))
        if at is not None:
            self.servers[shard].run((b"SET", owner_key(0), at))
        mover = Mover(self.pools(router), self.clock)
        step = Step("arrive" if shard else "begin", f"s{shard + 1}", at, [(b"SET", owner_key(0), b"begun")], goes_to="s2")
        done = ensureDeferred(mover.perform(0, step))
        self.clock.pump([0.5] * 4)
        found: list[Any] = []
        done.addBoth(found.append)
        is_begun = self.servers[shard].run((b"GET", owner_key(0))) == b"begun"
        self.assertEqual(is_begun, found == [Done([b"OK"])])
        return found[0] if is_begun else f"{found[0].value}"

    def test_nothing_goes_to_it_whatever_the_mover_knew_and_whichever_shard_alone_says_so(self) -> None:
        router = self.router()
        drained = with_draining(router.map, "s2", True)
        empty = attrs.evolve(drained, owners=(0,) * BUCKETS)
        for map in (drained, without_shard(empty, "s2")):
            for shard in (0, 1):
                for those in ((0, 1, 2), (0,), (1,), (2,)):
                    self.put(router.map, 0, 1, 2)
                    self.put(map, *those)
                    self.assertEqual(self.step(router, shard), "bucket 0: shard s2 is drained by another, or was")
        self.put(router.map, 0, 1, 2)
        self.assertEqual([self.step(router, shard) for shard in (0, 1)], [Done([b"OK"])] * 2)

    def test_a_shard_that_was_away_when_it_was_added_gives_buckets_to_it(self) -> None:
        router = self.router()
        self.put(router.map, 0, 1, 2)
        older = attrs.evolve(without_shard(attrs.evolve(router.map, owners=(0,) * BUCKETS), "s2"), epoch=router.map.epoch - 1)
        self.put(older, 0)
        self.assertEqual(self.step(router, 0), Done([b"OK"]))

    def test_where_it_took_no_word_of_that_it_is_not_drained(self) -> None:
        router = self.router()
        set_map = maps._set_map

        async def tell(pool: Any, map: BucketMap, most: int) -> bool:
            if pool is router.atlas.pool_of("s2"):
                raise StoreUnavailable("away")
            return await set_map(pool, map, most)

        with mock.patch.object(maps, "_set_map", tell):
            draining = ensureDeferred(Reshard(router.atlas, self.clock).drain("s2"))
            self.clock.pump([0.5] * 60)
        self.assertIn("shard s2 does not say that it is drained", f"{self.failureResultOf(draining, StoreUnavailable).value}")


class TwiceTests(MapCase):
    """Two maps of one epoch: where the first shard lost what it had told a shard that was away when the next was decided."""

    def maps(self) -> tuple[MemoryRouter, BucketMap, BucketMap]:
        router = self.router()
        map = router.map
        one, two = with_owner(map, 0, "s2", 2), with_owner(map, 3, "s1", 3)
        self.assertEqual(one.epoch, two.epoch)
        return router, one, two

    def test_all_take_the_same_for_the_newer_whomever_they_ask_first(self) -> None:
        router, one, two = self.maps()
        self.put(one, 0, 2)
        self.put(two, 1)
        pools = list(self.pools(router).values())
        self.assertEqual(self.now(newest_map(pools)), self.now(newest_map(pools[::-1])))
        self.assertEqual(self.now(newest_map(pools)), two)
        for servers in (self.servers, self.servers[::-1]):
            self.servers = servers
            self.assertEqual(self.router().map.epochs, two.epochs)

    def test_the_one_that_knows_of_more_moves_is_the_newer_and_the_order_is_of_any_two(self) -> None:
        _, one, two = self.maps()
        other = attrs.evolve(two, shards=(*two.shards[:2], Shard("s3", "redis://elsewhere:1")))
        self.assertEqual(sorted([two, other, one], key=rank)[0], one)
        self.assertEqual(sorted([two, other], key=rank), sorted([other, two], key=rank))

    def test_a_repair_makes_one_of_them_on_all_shards(self) -> None:
        router = self.router()
        for name, servers in (("s2", (0, 2)), ("s3", (1,))):  # no bucket is where another says, so that no mending of one brings a new map
            self.put(with_draining(router.map, name, True), *servers)
        pools = self.pools(router)
        self.assertIn("epoch", " ".join(one.text for one in self.now(check(pools, self.clock, repair=True))))
        self.assertEqual(self.now(check(pools, self.clock)), [])
        self.assertEqual(len(set(map(encode_map, self.told()))), 1)

    def test_a_change_is_over_both(self) -> None:
        router, one, two = self.maps()
        self.put(one, 0, 2)
        self.put(two, 1)
        made = self.now(change_map(self.pools(router), partial(with_owner, bucket=1, name="s3", epoch=5)))
        self.assertEqual(self.told(), [made] * 3)
