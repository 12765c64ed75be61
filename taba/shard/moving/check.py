"""Finds maps and owner keys that disagree; and mends them, when told to.

Mending never removes content: where two shards say that they have a bucket, the one that does not keep it keeps its keys,
which nobody reads any more, until the bucket arrives there again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from taba.errors import StoreUnavailable
from taba.shard.buckets import MAP_KEY, BucketMap, MalformedMap, Owner, decode_map, decode_owner, encode_owner, owner_key, with_owner
from taba.shard.maps import ASK_SECONDS, change_map, newest_map
from taba.shard.moving.mover import Mover, mover_of, sign_key
from taba.shard.moving.survey import Survey, survey
from taba.shard.servers.gather import gather
from taba.shard.servers.pool import Pool


class Disagreement(NamedTuple):
    """`text` says what is wrong. `shard` is to have `bucket`, and `losers` are not; without a shard, nothing is to be mended here."""

    text: str
    bucket: int = -1
    shard: str = ""
    losers: tuple[str, ...] = ()


def compare(map: BucketMap, told: Mapping[str, BucketMap | None], found: Survey) -> list[Disagreement]:
    """What in `found` and in the maps that the shards have (`told`, None: unreadable) does not fit the newest `map`. Pure."""
    wrong: list[Disagreement] = []
    for name, one in told.items():
        if one is None:
            wrong.append(Disagreement(f"shard {name} has no map that can be read"))
        elif one != map:
            wrong.append(Disagreement(f"shard {name} has a map of epoch {one.epoch}; the newest has {map.epoch}"))
    under_way = found.under_way()
    for bucket in range(map.buckets):
        said = {name: owners[bucket] for name, owners in found.owners.items()}
        open_at = {name: owner for name, owner in said.items() if owner is not None and owner.state == "open"}
        by_map = map.shard_of(bucket)
        if len(open_at) > 1:
            # the higher epoch moved last; of equal ones, the one that readers were led to
            best = max(open_at, key=lambda name: (open_at[name].epoch, name == by_map))
            losers = tuple(name for name in open_at if name != best)
            wrong.append(Disagreement(f"bucket {bucket} is open on {' and '.join(sorted(open_at))}", bucket, best, losers))
        elif not open_at and bucket not in under_way:
            wrong.append(Disagreement(f"bucket {bucket} is open nowhere; by the map it belongs to {by_map}", bucket, by_map))
        elif open_at and by_map not in open_at and bucket not in under_way:
            (holder,) = open_at
            wrong.append(Disagreement(f"bucket {bucket} is open on {holder}; by the map it belongs to {by_map}", bucket, holder))
    return wrong


def standing(found: Survey, alive: set[str]) -> list[Disagreement]:
    """The moves that are under way, and whose mover gives no sign of life. Pure."""
    return [
        Disagreement(f"bucket {bucket} is on its way from {source}, and nobody moves it: repeat the taba reshard, or --abort it")
        for bucket, (source, token) in sorted(found.under_way().items())
        if mover_of(token) not in alive
    ] + [
        Disagreement(f"bucket {bucket} was to arrive at {shard}, and never left: taba reshard --abort removes what is there")
        for bucket, shard in found.strays()
    ]


async def check(pools: Mapping[str, Pool], repair: bool = False) -> list[Disagreement]:
    """What is wrong with the store whose shards are `pools`, by name; with `repair`, what of it can be mended is mended.

    Raises StoreUnavailable when a shard does not answer: what it has is then not known.
    """
    known = dict(pools)
    map = await newest_map(list(known.values()))
    unknown = [shard.name for shard in map.shards if shard.name not in known]
    if unknown:
        raise StoreUnavailable(f"shard {', '.join(unknown)} was added just now; check again")
    found = await survey(known, map.buckets)
    answers = await gather([pool.execute([(b"GET", MAP_KEY)], ASK_SECONDS) for pool in known.values()])
    told: dict[str, BucketMap | None] = {}
    for name, answer in zip(known, answers, strict=True):
        if isinstance(answer, Exception):
            raise answer
        told[name] = _map(answer[0])
    movers = {mover_of(token) for _, token in found.under_way().values()}
    alive = {mover for mover in movers if await _is_alive(known, mover)}
    wrong = compare(map, told, found) + standing(found, alive)
    if repair:
        for one in wrong:
            if one.shard:
                await _mend(known, one, map)
        await change_map(known, lambda newest: newest)
    return wrong


async def _mend(pools: dict[str, Pool], wrong: Disagreement, map: BucketMap) -> None:
    epoch = 0
    for pool in pools.values():
        [content] = await pool.execute([(b"GET", owner_key(wrong.bucket))])
        owner = _owner(content)
        epoch = max(epoch, owner.epoch if owner else 0)
    shard = wrong.shard
    if not wrong.losers and "nowhere" in wrong.text:
        # whoever has most of it; the map where nobody has anything
        mover = Mover(pools, None)
        sizes = {name: len((await mover.keys(name, [wrong.bucket]))[wrong.bucket]) for name in pools}
        if max(sizes.values()) > sizes[shard]:
            shard = max(sizes, key=lambda name: sizes[name])
    # the losers first: for no moment may two that we have seen be open
    for name in wrong.losers:
        await _set_owner(pools[name], wrong.bucket, Owner("moved", epoch + 1, shard), only_open=True)
    await _set_owner(pools[shard], wrong.bucket, Owner("open", epoch + 1, shard), only_open=bool(wrong.losers))
    await change_map(pools, lambda newest: with_owner(newest, wrong.bucket, shard))


async def _set_owner(pool: Pool, bucket: int, owner: Owner, only_open: bool) -> None:
    key = owner_key(bucket)
    async with pool.connection() as connection:
        [content] = await connection.watch([key], [(b"GET", key)])
        there = _owner(content)
        is_open = there is not None and there.state == "open"
        if (only_open and not is_open) or (there is not None and there.token):
            raise StoreUnavailable(f"bucket {bucket}: changed meanwhile on {pool.address.text}; check again")
        if not (is_open and owner.state == "open") and await connection.commit([(b"SET", key, encode_owner(owner))]) is None:
            raise StoreUnavailable(f"bucket {bucket}: changed meanwhile on {pool.address.text}; check again")


async def _is_alive(pools: Mapping[str, Pool], mover: str) -> bool:
    answers = await gather([pool.execute([(b"EXISTS", sign_key(mover))], ASK_SECONDS) for pool in pools.values()])
    return any(isinstance(answer, list) and answer[0] == 1 for answer in answers)


def _map(content: object) -> BucketMap | None:
    try:
        return decode_map(content) if isinstance(content, bytes) else None
    except MalformedMap:
        return None


def _owner(content: object) -> Owner | None:
    try:
        return decode_owner(content) if isinstance(content, bytes) else None
    except MalformedMap:
        return None
