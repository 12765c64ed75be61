"""Which buckets move where. Pure; the same map gives the same plan.

A plan moves as little as it can: a bucket whose shard keeps it never moves, and none moves twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from taba.shard.buckets import BucketMap

TOLERANCE = 0.05  # by weight: a shard this near to the mean, as a share of it, is even


class Move(NamedTuple):
    bucket: int
    source: str
    target: str


def plan_even(map: BucketMap, holders: Sequence[str]) -> list[Move]:
    """The moves after which `holders` have all buckets, as many each as the others, or one more. ValueError without holders."""
    if not holders:
        raise ValueError("nobody would hold the buckets")
    own = {shard.name: map.owned_by(shard.name) for shard in map.shards}
    base, extra = divmod(map.buckets, len(holders))
    # who has most now may keep one more: that moves least
    by_size = sorted(holders, key=lambda name: -len(own.get(name, ())))
    quota = {name: base + (place < extra) for place, name in enumerate(by_size)}
    leaving = [(bucket, name) for name, buckets in own.items() for bucket in buckets[quota.get(name, 0) :]]
    moves = []
    for name in holders:
        for _ in range(quota[name] - min(len(own.get(name, ())), quota[name])):
            bucket, source = leaving.pop(0)
            moves.append(Move(bucket, source, name))
    return sorted(moves)


def plan_weighed(map: BucketMap, holders: Sequence[str], weights: Mapping[int, float]) -> list[Move]:
    """Moves from the heaviest shard to the lightest, until they are even or no single move makes them more so."""
    weight = {bucket: max(weights.get(bucket, 0.0), 0.0) for bucket in range(map.buckets)}
    left = {name: set(map.owned_by(name)) for name in holders}
    load = {name: sum(weight[bucket] for bucket in buckets) for name, buckets in left.items()}
    mean = sum(load.values()) / len(holders) if holders else 0.0
    moves: list[Move] = []
    while len(moves) < map.buckets and len(holders) > 1:
        heavy, light = max(holders, key=lambda name: load[name]), min(holders, key=lambda name: load[name])
        gap = load[heavy] - load[light]
        candidates = [bucket for bucket in left[heavy] if 0 < weight[bucket] < gap]
        if gap <= 2 * TOLERANCE * mean or not candidates:
            break
        bucket = min(candidates, key=lambda one: (abs(gap - 2 * weight[one]), one))
        left[heavy].discard(bucket)  # it does not move again
        load[heavy] -= weight[bucket]
        load[light] += weight[bucket]
        moves.append(Move(bucket, heavy, light))
    return moves
