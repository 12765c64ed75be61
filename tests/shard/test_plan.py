"""Plans: even, total, and moving as little as can be."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.shard.buckets import (
    BucketMap,
    MalformedMap,
    Shard,
    decode_map,
    encode_map,
    first_map,
    with_draining,
    with_owner,
    with_shard,
    without_shard,
)
from taba.shard.moving.plan import Move, plan_even, plan_weighed


def apply(map: BucketMap, moves: list[Move]) -> BucketMap:
    for move in moves:
        assert map.shard_of(move.bucket) == move.source
        map = with_owner(map, move.bucket, move.target, map.epochs[move.bucket] + 1)
    return map


@st.composite
def maps(draw: st.DrawFn) -> BucketMap:
    count = draw(st.integers(1, 6))
    shards = tuple(Shard(f"s{n}", f"redis://host:{n}") for n in range(1, count + 1))
    owners = draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=60))
    return BucketMap("id", draw(st.integers(1, 9)), shards, tuple(owners))


class PlanTests(SynchronousTestCase):
    @given(maps(), st.data())
    def test_an_even_plan_is_even_and_moves_least(self, map: BucketMap, data: st.DataObject) -> None:
        names = [shard.name for shard in map.shards]
        holders = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
        moves = plan_even(map, holders)
        after = apply(map, moves)
        held = [len(after.owned_by(name)) for name in holders]
        self.assertEqual(sum(held), map.buckets)
        self.assertLessEqual(max(held) - min(held), 1)
        self.assertEqual(max(Counter(move.bucket for move in moves).values(), default=1), 1)
        base, extra = divmod(map.buckets, len(holders))
        sizes = sorted((len(map.owned_by(name)) for name in holders), reverse=True)
        kept = sum(min(size, base + (place < extra)) for place, size in enumerate(sizes))
        self.assertEqual(len(moves), map.buckets - kept)
        self.assertEqual(plan_even(after, holders), [])

    @given(maps(), st.data())
    def test_a_weighed_plan_never_makes_it_worse_and_ends(self, map: BucketMap, data: st.DataObject) -> None:
        names = [shard.name for shard in map.shards]
        weights = data.draw(st.dictionaries(st.integers(0, map.buckets - 1), st.floats(0, 1e9)))

        def loads(map: BucketMap) -> list[float]:
            return [sum(weights.get(bucket, 0.0) for bucket in map.owned_by(name)) for name in names]

        moves = plan_weighed(map, names, weights)
        after = apply(map, moves)
        self.assertLessEqual(max(loads(after)), max(loads(map)) * (1 + 1e-9))
        self.assertEqual(max(Counter(move.bucket for move in moves).values(), default=1), 1)

    def test_one_heavy_bucket_has_a_shard_for_itself(self) -> None:
        map = first_map("id", ["redis://a:1", "redis://b:1"], 8)
        weights = {0: 100.0, 1: 10.0, 2: 10.0, 3: 10.0, 4: 1.0}
        after = apply(map, plan_weighed(map, ["s1", "s2"], weights))
        self.assertEqual([bucket for bucket in after.owned_by(after.shard_of(0)) if bucket in weights], [0])

    def test_nobody_to_hold_the_buckets_is_an_error(self) -> None:
        with self.assertRaises(ValueError):
            plan_even(first_map("id", ["redis://a:1"], 8), [])


class MapTests(SynchronousTestCase):
    def test_names_are_never_given_twice(self) -> None:
        map = first_map("id", ["redis://a:1", "redis://b:1"], 4)
        for bucket in map.owned_by("s2"):
            map = with_owner(map, bucket, "s1", map.epochs[bucket] + 1)
        map = with_shard(without_shard(map, "s2"), "redis://c:1")
        self.assertEqual([shard.name for shard in map.shards], ["s1", "s3"])
        self.assertEqual(decode_map(encode_map(map)), map)
        self.assertIs(with_shard(map, "redis://c:1"), map)

    def test_a_shard_with_buckets_is_not_taken_out(self) -> None:
        map = first_map("id", ["redis://a:1", "redis://b:1"], 4)
        with self.assertRaises(MalformedMap):
            without_shard(map, "s1")
        self.assertIs(without_shard(map, "s7"), map)

    def test_each_change_is_a_newer_map(self) -> None:
        map = first_map("id", ["redis://a:1", "redis://b:1"], 4)
        moved = with_owner(map, 0, "s2", 2)
        self.assertEqual((moved.epoch, moved.shard_of(0), moved.owned_by("s1")), (2, "s2", [1]))
        self.assertIs(with_owner(moved, 0, "s2", 2), moved)
        with self.assertRaises(KeyError):
            with_owner(map, 0, "s9", 2)

    def test_what_is_published_late_changes_nothing(self) -> None:
        map = with_owner(first_map("id", ["redis://a:1", "redis://b:1", "redis://c:1"], 6), 0, "s2", 2)
        map = with_owner(map, 0, "s3", 3)
        for late, epoch in (("s2", 2), ("s1", 1), ("s2", 3), ("s1", 3)):
            self.assertIs(with_owner(map, 0, late, epoch), map)
        self.assertEqual(with_owner(map, 0, "s1", 4).shard_of(0), "s1")

    def test_a_shard_that_is_drained_is_no_holder_whoever_plans(self) -> None:
        map = first_map("id", ["redis://a:1", "redis://b:1", "redis://c:1"], 9)
        drained = with_draining(map, "s2", True)
        self.assertEqual((drained.holders, drained.epoch), (["s1", "s3"], 2))
        self.assertIs(with_draining(drained, "s2", True), drained)
        self.assertIs(with_draining(map, "s9", True), map)
        self.assertEqual({move.source for move in plan_even(drained, drained.holders)}, {"s2"})
        self.assertEqual(decode_map(encode_map(drained)), drained)
        self.assertEqual(with_draining(drained, "s2", False).draining, ())
        for bucket in drained.owned_by("s2"):
            drained = with_owner(drained, bucket, "s1", 2)
        self.assertEqual(without_shard(drained, "s2").draining, ())
