"""What maps and owner keys can say that does not fit, and what becomes of it."""

from __future__ import annotations

from typing import Any
from unittest import mock

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taba.errors import StoreUnavailable
from taba.shard.atlas import NotHere
from taba.shard.buckets import (
    INITIALISED_KEY,
    MAP_KEY,
    STORE_KEY,
    SUCCEEDS_KEY,
    BucketMap,
    Owner,
    decode_owner,
    decode_record,
    encode_owner,
    first_map,
    owner_key,
    prefix_of,
    with_shard,
)
from taba.shard.maps import newest_map, restore_records
from taba.shard.memory.router import MemoryRouter
from taba.shard.memory.server import MemoryServer
from taba.shard.moving import check as check_module
from taba.shard.moving.check import Disagreement, check, compare, resolve, standing
from taba.shard.moving.survey import Survey
from taba.shard.transaction import Writes
from tests.shard.pieces import ask

MAP = first_map("id", ["redis://a:1", "redis://b:1"], 4)


def said(**owners: list[Owner | None]) -> Survey:
    return Survey(owners)


def as_made() -> dict[str, list[Owner | None]]:
    one, two = Owner("open", 1, "s1"), Owner("open", 1, "s2")
    return {"s1": [one, one, None, None], "s2": [None, None, two, two]}


def resolved(owners: dict[str, list[Owner | None]], bucket: int, **keys: int) -> dict[str, Owner]:
    return resolve(MAP, bucket, {name: said[bucket] for name, said in owners.items()}, keys)


class CheckTests(SynchronousTestCase):
    def compare(self, owners: dict[str, list[Owner | None]], told: BucketMap | None = MAP) -> list[Disagreement]:
        return compare(MAP, {"s1": MAP, "s2": told}, said(**owners))

    def test_a_store_as_it_was_made_is_right(self) -> None:
        self.assertEqual(self.compare(as_made()), [])

    def test_maps_that_are_old_or_unreadable_are_told(self) -> None:
        newest = attrs.evolve(MAP, epoch=2)
        [old] = compare(newest, {"s1": MAP, "s2": newest}, said(**as_made()))
        self.assertIn("s1 has a map of epoch 1; the newest has 2", old.text)
        [none] = self.compare(as_made(), None)
        self.assertIn("s2 has no map that can be read", none.text)

    def test_of_two_that_have_a_bucket_the_one_that_got_it_last_keeps_it(self) -> None:
        owners = as_made()
        owners["s2"][0] = Owner("open", 2, "s2")
        self.assertEqual(self.compare(owners), [Disagreement("bucket 0 is open on s1 and s2: taba check --repair", 0)])
        self.assertEqual(resolved(owners, 0), {"s1": Owner("moved", 3, "s2"), "s2": Owner("open", 3, "s2")})
        owners["s2"][0] = Owner("open", 1, "s2")
        self.assertEqual(resolved(owners, 0), {"s2": Owner("moved", 2, "s1"), "s1": Owner("open", 2, "s1")})
        owners["s1"][0] = Owner("open", 1, "s1", "s2.m-1")  # its mover is gone, and so is its seal
        owners["s2"][0] = Owner("open", 2, "s2")
        self.assertEqual(len(self.compare(owners)), 1)
        self.assertEqual(list(resolved(owners, 0)), ["s1", "s2"])

    def test_a_bucket_that_nobody_has_is_told(self) -> None:
        owners = as_made()
        owners["s1"][1] = None
        [gap] = self.compare(owners)
        self.assertEqual(gap.bucket, 1)
        self.assertEqual(resolved(owners, 1), {"s1": Owner("open", 2, "s1")})
        self.assertEqual(resolved(owners, 1, s2=7), {"s2": Owner("open", 2, "s2")})
        owners["s1"][1] = Owner("moved", 2, "s2")
        self.assertEqual(len(self.compare(owners)), 1)

    def test_who_has_all_of_a_bucket_keeps_it_and_not_who_has_a_copy_of_it(self) -> None:
        for whole in (Owner("sealed", 1, "s2.m-1"), Owner("moved", 2, "s2", "s2.m-1")):
            for other in (None, Owner("arriving", 2, "s2.m-1"), Owner("moved", 1, "s1")):
                owners = as_made()
                owners["s1"][1], owners["s2"][1] = whole, other
                changes = resolved(owners, 1, s2=1000)
                self.assertEqual([name for name, owner in changes.items() if owner.state == "open"], ["s1"], (whole, other))
        owners["s1"][1], owners["s2"][1] = Owner("moved", 2, "s2", "s2.m-1"), Owner("open", 2, "s2")
        self.assertEqual(list(resolved(owners, 1, s1=1000)), [])
        owners["s2"][1] = Owner("open", 1, "s2")  # as it was long ago
        self.assertEqual(resolved(owners, 1)["s1"].state, "open")
        owners["s1"][1], owners["s2"][1] = Owner("moved", 2, "s2", "s2.m-1", is_removing=True), None
        self.assertEqual(resolved(owners, 1, s1=1, s2=2)["s2"].state, "open")  # nobody has all of it

    def test_a_bucket_that_is_elsewhere_than_the_map_says_is_told(self) -> None:
        owners = as_made()
        owners["s1"][1], owners["s2"][1] = Owner("moved", 2, "s2"), Owner("open", 2, "s2")
        self.assertEqual([one.bucket for one in self.compare(owners)], [1])
        self.assertEqual(resolved(owners, 1), {})  # the map alone is wrong

    def test_what_is_on_its_way_is_no_disagreement_while_its_mover_lives(self) -> None:
        owners = as_made()
        owners["s1"][0], owners["s2"][0] = Owner("open", 1, "s1", "s2.m-1"), Owner("arriving", 2, "s2.m-1")
        owners["s1"][1], owners["s2"][1] = Owner("sealed", 1, "s2.m-2"), Owner("open", 2, "s2")
        self.assertEqual(self.compare(owners), [])
        self.assertEqual(standing(said(**owners), {"m"}), [])
        self.assertEqual(len(standing(said(**owners), set())), 2)

    def test_what_has_left_is_a_persons_only_where_a_move_may_not_end_it(self) -> None:
        def shown(there: Owner | None, is_removing: bool = False) -> str:
            owners = as_made()
            owners["s1"][1], owners["s2"][1] = Owner("moved", 2, "s2", "s2.m-1", is_removing), there
            [one] = standing(said(**owners), set())
            return one.text.rpartition(": ")[2]

        again, person = "repeat the taba reshard, or --abort it", "taba check --repair"
        self.assertEqual(shown(Owner("open", 2, "s2")), again)
        self.assertEqual(shown(Owner("open", 2, "s2"), True), again)
        self.assertEqual(shown(None), again)  # all of it is here
        self.assertEqual(shown(None, True), person)
        self.assertEqual(shown(Owner("open", 1, "s2")), person)  # as it was long ago
        self.assertEqual(shown(Owner("moved", 3, "s3"), True), again)  # it went on from there

    def test_what_never_left_is_told(self) -> None:
        owners = as_made()
        owners["s2"][0] = Owner("arriving", 2, "s2.m-1")
        [stray] = standing(said(**owners), {"other"})
        self.assertIn("bucket 0 was to arrive at s2", stray.text)

    def test_a_shard_that_repeats_what_another_says_has_nothing_open(self) -> None:
        owners = as_made()
        owners["s2"][0] = Owner("open", 1, "s1")  # the same server, under another name
        self.assertEqual(self.compare(owners), [])

    @given(st.data())
    def test_whatever_owner_keys_say_is_resolved_to_one_holder_with_nothing_left_to_say(self, draw: st.DataObject) -> None:
        states = st.builds(
            Owner,
            st.sampled_from(["open", "sealed", "moved", "arriving"]),
            st.integers(1, 5),
            st.sampled_from(["s1", "s2", "s3", "s2.m-1"]),
            st.sampled_from(["", "s2.m-1"]),
            st.booleans(),
        ).map(lambda owner: decode_owner(encode_owner(owner)))
        said = {name: draw.draw(st.none() | states) for name in ("s1", "s2", "s3")}
        keys = {name: draw.draw(st.integers(0, 3)) for name in said}
        map = with_shard(MAP, "redis://c:1")
        changes = resolve(map, 0, said, keys)
        after = {**said, **changes}
        self.assertEqual(len([one for name, one in after.items() if one and (one.state, one.name) == ("open", name)]), 1)
        self.assertEqual(resolve(map, 0, after, keys), {})


SHARDS = ("s1", "s2", "s3")
GONE = "s9"  # a shard that is in no map any more


@st.composite
def contents(draw: st.DrawFn, shard: str) -> bytes | None:
    """What a failover, a backup or a dead mover may have left in a bucket's owner key on `shard`; None for nothing."""
    others = [one for one in SHARDS if one != shard]
    epoch = draw(st.integers(1, 4))
    aims = st.sampled_from([f"{one}.m-1" for one in (*others, GONE)])
    kinds = {
        "missing": st.none(),
        "unreadable": st.sampled_from([b"x", b"moved:2:s2:moving:s2.m-1"]),
        "open": st.builds(lambda token: encode_owner(Owner("open", epoch, shard, token)), st.just("") | aims),
        "sealed": st.builds(lambda token: encode_owner(Owner("sealed", epoch, token)), aims),
        "arriving": st.just(encode_owner(Owner("arriving", epoch, f"{shard}.m-1"))),
        "moved": st.builds(
            lambda to, has_keys, is_removing: encode_owner(
                Owner("moved", epoch, to, f"{to}.m-1" if has_keys else "", has_keys and is_removing)
            ),
            st.sampled_from([*others, GONE]),  # a shard that was drained since, and is in no map any more
            st.booleans(),
            st.booleans(),
        ),
    }
    return draw(kinds[draw(st.sampled_from(sorted(kinds)))])


class Mendable(SynchronousTestCase):
    """Whatever `check` shows is mended by `--repair`, at once; nothing that is right is changed."""

    def now(self, work: Any, clock: Clock) -> Any:
        done = ensureDeferred(work)
        for _ in range(400):  # half seconds, in which nobody gives a sign of life
            if done.called:
                break
            clock.advance(0.5)
        return self.successResultOf(done)

    @given(st.data())
    def test_all_that_owner_keys_maps_and_records_may_say_is_mended_at_once(self, draw: st.DataObject) -> None:
        clock = Clock()
        router = MemoryRouter([MemoryServer(clock) for _ in SHARDS], len(SHARDS), clock)
        self.now(router.connect(), clock)
        pools = {shard.name: router.atlas.pool_of(shard.name) for shard in router.map.shards}

        def do(name: str, *command: bytes) -> Any:
            return self.now(pools[name].execute([command]), clock)[0]

        for bucket in range(len(SHARDS)):
            for name in SHARDS:
                content = draw.draw(contents(name))
                do(name, *((b"DEL", owner_key(bucket)) if content is None else (b"SET", owner_key(bucket), content)))
                for number in range(draw.draw(st.integers(0, 2))):
                    do(name, b"SET", prefix_of(bucket) + b"key:%d" % number, b"1")
        for name, key in draw.draw(st.sets(st.tuples(st.sampled_from(SHARDS[1:]), st.sampled_from([STORE_KEY, MAP_KEY])))):
            do(name, b"DEL", key)
        shown = self.now(check(pools, clock, repair=True), clock)
        self.assertEqual(self.now(check(pools, clock), clock), [], shown)
        map = self.now(newest_map(list(pools.values())), clock)
        for bucket in range(len(SHARDS)):
            said = {name: do(name, b"GET", owner_key(bucket)) for name in SHARDS}
            owners = {name: decode_owner(content) for name, content in said.items() if content is not None}
            self.assertEqual([name for name, owner in owners.items() if owner.state == "open"], [map.shard_of(bucket)], said)
            self.assertEqual([owner for owner in owners.values() if owner.token], [], said)
        for name in SHARDS:
            self.assertEqual(decode_record(do(name, b"GET", STORE_KEY)).shard, name)


class Gone(SynchronousTestCase):
    def test_a_bucket_that_went_to_a_shard_that_is_in_no_map_is_said_and_repaired_and_who_ran_goes_on(self) -> None:
        key = prefix_of(0) + b"a"
        writes = Writes([(b"SET", key, b"1")])
        for has_keys in (False, True):
            clock = Clock()
            servers = [MemoryServer(clock) for _ in SHARDS]
            router = MemoryRouter(servers, len(SHARDS), clock)
            connecting = ensureDeferred(router.connect())
            self.successResultOf(connecting)
            self.successResultOf(ensureDeferred(router.transact(0, [], lambda _: writes)))
            owner = Owner("moved", 9, GONE, f"{GONE}.m-1" if has_keys else "")
            servers[0].run((b"SET", owner_key(0), encode_owner(owner)))
            reading = ensureDeferred(router.read(0, [(b"GET", key)]))
            clock.pump([0.1] * 100)
            self.assertIn(f"bucket 0 is moved ({GONE})", self.failureResultOf(reading, StoreUnavailable).getErrorMessage())
            pools = {shard.name: router.atlas.pool_of(shard.name) for shard in router.map.shards}
            checking = ensureDeferred(check(pools, clock, repair=True))
            clock.pump([0.5] * 60)
            self.assertEqual({one.bucket for one in self.successResultOf(checking)}, {0})
            reading = ensureDeferred(router.read(0, [(b"GET", key)]))
            clock.pump([0.1] * 20)
            self.assertEqual(self.successResultOf(reading), [b"1"])


class Records(SynchronousTestCase):
    def test_the_record_of_a_shard_comes_last_so_that_who_is_cut_before_is_finished_by_the_next(self) -> None:
        router = MemoryRouter([MemoryServer(Clock()) for _ in range(3)], 3, Clock())
        self.successResultOf(ensureDeferred(router.connect()))
        pools = {shard.name: router.atlas.pool_of(shard.name) for shard in router.map.shards}

        def do(name: str, *command: bytes) -> Any:
            return self.successResultOf(ensureDeferred(pools[name].execute([command])))[0]

        do("s1", b"SET", SUCCEEDS_KEY, b"another")
        record = do("s2", b"GET", STORE_KEY)
        names = (STORE_KEY, INITIALISED_KEY, SUCCEEDS_KEY)
        do("s2", b"DEL", *names)
        execute = pools["s2"].execute

        async def cut(commands: Any, *more: Any) -> Any:
            if commands[0][0] == b"SET":
                raise StoreUnavailable("cut")
            return await execute(commands, *more)

        with mock.patch.object(pools["s2"], "execute", cut):
            self.failureResultOf(ensureDeferred(restore_records(pools)), StoreUnavailable)
        self.successResultOf(ensureDeferred(restore_records(pools)))
        self.assertEqual(decode_record(do("s2", b"GET", STORE_KEY)), decode_record(record))
        self.assertEqual([do("s2", b"GET", name) for name in names[1:]], [router.map.store.encode(), b"another"])


class Meanwhile(SynchronousTestCase):
    """What somebody else does between what is read and what is written."""

    def test_what_a_third_shard_opens_while_the_losers_are_written_is_seen_before_the_holder_is(self) -> None:
        servers = [MemoryServer(Clock()) for _ in range(3)]
        router = MemoryRouter(servers, 3, Clock())
        self.successResultOf(ensureDeferred(router.connect()))
        pools = {shard.name: router.atlas.pool_of(shard.name) for shard in router.map.shards}
        key = owner_key(0)

        def owners() -> dict[str, Owner | None]:
            found = {name: self.successResultOf(ensureDeferred(ask(pool, b"GET", key))) for name, pool in pools.items()}
            return {name: decode_owner(content) if content else None for name, content in found.items()}

        def put(name: str, owner: Owner) -> None:
            self.successResultOf(ensureDeferred(pools[name].execute([(b"SET", key, encode_owner(owner))])))

        put("s1", Owner("open", 1, "s1"))
        put("s2", Owner("open", 2, "s2"))
        original = check_module._set_owner
        is_awake = [True]

        async def set_owner(pool: Any, key: bytes, expected: Any, owner: Owner) -> bool:
            done = await original(pool, key, expected, owner)
            if is_awake.pop() if is_awake else False:
                put("s3", Owner("open", 9, "s3"))
            return done

        self.patch(check_module, "_set_owner", set_owner)
        self.successResultOf(ensureDeferred(check_module._mend(pools, 0)))
        found = owners()
        self.assertEqual([name for name, owner in found.items() if owner is not None and owner.state == "open"], ["s3"], found)
        self.assertEqual(self.successResultOf(ensureDeferred(newest_map(list(pools.values())))).shard_of(0), "s3")


class Forwarded(SynchronousTestCase):
    def test_a_reply_that_says_of_all_its_buckets_that_they_moved_makes_the_map_anew_once(self) -> None:
        buckets = 64
        router = MemoryRouter([MemoryServer(Clock()), MemoryServer(Clock())], buckets, Clock())
        self.successResultOf(ensureDeferred(router.connect()))
        atlas = router.atlas
        with mock.patch.object(atlas, "_corrected", side_effect=atlas._corrected) as made:
            for bucket in atlas.map.owned_by("s1"):
                with self.assertRaises(NotHere) as caught:
                    atlas.check_owner(bucket, "s1", encode_owner(Owner("moved", 2, "s2")), "here")
                self.assertTrue(caught.exception.is_forwarded)
            self.assertEqual({atlas.map.shard_of(bucket) for bucket in range(buckets)}, {"s2"})
        self.assertEqual(made.call_count, 1)

    def test_a_bucket_that_moved_costs_each_router_a_few_commands_however_many_shards_there_are(self) -> None:
        clock = Clock()
        servers = [MemoryServer(clock) for _ in range(100)]
        routers = [MemoryRouter(servers, 200, clock) for _ in range(3)]
        for router in routers:
            self.successResultOf(ensureDeferred(router.connect()))
        self.successResultOf(ensureDeferred(routers[0].set("a", "x")))
        for router in routers:
            self.assertEqual(self.successResultOf(ensureDeferred(router.get("a"))), b"x")
        bucket = routers[0].bucket_of("a")
        source = routers[0].map.owners[bucket]
        target = (source + 7) % len(servers)
        name = routers[0].map.shards[target].name
        keys = [key for key in servers[source]._values if key.startswith(prefix_of(bucket))]
        for key in keys:
            servers[target]._values[key] = servers[source]._values.pop(key)
        servers[target].run((b"SET", owner_key(bucket), encode_owner(Owner("open", 2, name))))
        servers[source].run((b"SET", owner_key(bucket), encode_owner(Owner("moved", 2, name))))
        with mock.patch.object(MemoryServer, "run", autospec=True, side_effect=MemoryServer.run) as asked:
            reading = [ensureDeferred(router.get("a")) for router in routers]
            clock.pump([0.01] * 5)
            self.assertEqual([self.successResultOf(one) for one in reading], [b"x"] * len(routers))
        # the key and the owner key: as it was known, as it is found out that it is not there, and where it is
        self.assertLessEqual(asked.call_count, 6 * len(routers))
