"""What all shards say about all buckets; and the map, changed on all shards by compare-and-set.

The first shard of the newest map decides between two that change the map at once; the others follow it. A shard that is
away keeps an old map, which harms nobody: owner keys decide, and the newest map that anybody has is the one that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from taba.errors import ConfigurationError, StoreUnavailable
from taba.shard.buckets import (
    INITIALISED_KEY,
    MAP_KEY,
    STORE_KEY,
    BucketMap,
    MalformedMap,
    Owner,
    decode_map,
    decode_owner,
    decode_record,
    encode_map,
    encode_record,
    owner_key,
    with_shard,
)
from taba.shard.cluster import ShardPool
from taba.shard.connection import Command, Reply, raise_for
from taba.shard.gather import gather
from taba.shard.initialise import settings_problems
from taba.shard.pool import Pool
from taba.shard.steps import lots

ASKED_OWNERS = 10_000  # in one command
MOST_CHANGES = 50  # tries to change the map, each lost to somebody who changed it at the same moment
ASK_SECONDS = 5.0


class Survey(NamedTuple):
    """`owners[shard][bucket]`: what the owner key there says, None where it is missing or says nothing that we can read."""

    owners: dict[str, list[Owner | None]]

    def under_way(self) -> dict[int, tuple[str, str]]:
        """bucket → (source, token) of each move that has marked its source and has not ended."""
        return {
            bucket: (shard, owner.token)
            for shard, owners in self.owners.items()
            for bucket, owner in enumerate(owners)
            if owner is not None and owner.state in ("open", "sealed") and owner.token
        }

    def strays(self) -> list[tuple[int, str]]:
        """(bucket, shard) where a move has marked its target, and no source has that move's mark."""
        marked = {(bucket, token) for bucket, (_, token) in self.under_way().items()}
        return [
            (bucket, shard)
            for shard, owners in self.owners.items()
            for bucket, owner in enumerate(owners)
            if owner is not None and owner.state == "arriving" and (bucket, owner.token) not in marked
        ]


async def survey(pools: dict[str, Pool], buckets: int) -> Survey:
    """Ask the shards `pools` by name. Raises StoreUnavailable when one does not answer."""
    answers = await gather([_owners(pool, buckets) for pool in pools.values()])
    found: dict[str, list[Owner | None]] = {}
    for name, answer in zip(pools, answers, strict=True):
        if isinstance(answer, Exception):
            raise answer
        found[name] = answer
    return Survey(found)


async def _owners(pool: Pool, buckets: int) -> list[Owner | None]:
    keys = [owner_key(bucket) for bucket in range(buckets)]
    replies = await pool.execute([(b"MGET", *lot) for lot in lots(keys, ASKED_OWNERS)], ASK_SECONDS)
    return [_owner(content) for reply in replies for content in _checked(pool, reply)]


def _owner(content: bytes | None) -> Owner | None:
    try:
        return None if content is None else decode_owner(content)
    except MalformedMap:
        return None


def _checked(pool: Pool, reply: Reply) -> list[bytes | None]:
    if isinstance(reply, Exception):
        raise_for(reply, pool.address.text)
    assert isinstance(reply, list)
    return reply


# --- the map ---


async def newest_map(pools: Sequence[Pool]) -> BucketMap:
    """The newest map that any of `pools` has. Raises StoreUnavailable when none has one."""
    answers = await gather([pool.execute([(b"GET", MAP_KEY)], ASK_SECONDS) for pool in pools])
    maps = []
    for answer in answers:
        if isinstance(answer, list) and isinstance(answer[0], bytes):
            with suppress(MalformedMap):  # `taba check` reports it
                maps.append(decode_map(answer[0]))
    if not maps:
        raise StoreUnavailable("no shard tells the map")
    return max(maps, key=lambda map: map.epoch)


async def newer_map(pools: Sequence[ShardPool], map: BucketMap, seconds: float) -> BucketMap:
    """The newest map of the same store that `pools` know of; `map` itself where that is none of theirs."""
    answers = await gather([pool.execute([(b"GET", MAP_KEY)], seconds, seconds) for pool in pools])
    for answer in answers:
        if isinstance(answer, list) and isinstance(answer[0], bytes):
            try:
                told = decode_map(answer[0])
            except MalformedMap:
                continue  # `taba check` reports it
            if told.store == map.store and told.epoch > map.epoch:
                map = told
    return map


async def change_map(pools: dict[str, Pool], change: Callable[[BucketMap], BucketMap]) -> BucketMap:
    """Make `change(newest map)` the map on all shards; where it gives the same map, see that all shards have it.

    Raises StoreUnavailable when the first shard of the map does not answer, or all tries were lost.
    """
    for _ in range(MOST_CHANGES):
        map = await newest_map(list(pools.values()))
        wanted = change(map)
        first = pools.get(map.shards[0].name)
        if first is None:
            raise StoreUnavailable(f"shard {map.shards[0].name} is not known")
        if wanted is not map and not await _set_map(first, wanted, map.epoch):
            continue
        others = await gather([_set_map(pool, wanted, wanted.epoch - 1) for pool in pools.values()])
        for other in others:
            if isinstance(other, Exception) and not isinstance(other, StoreUnavailable):
                raise other
        return wanted
    raise StoreUnavailable("the map is changed by others all the time")


async def _set_map(pool: Pool, map: BucketMap, most: int) -> bool:
    """Whether `pool` took `map`; not where an epoch beyond `most` is there (none counts as 0), or somebody was faster."""
    async with pool.connection() as connection:
        [content] = await connection.watch([MAP_KEY], [(b"GET", MAP_KEY)])
        try:
            epoch = decode_map(content).epoch if isinstance(content, bytes) else 0
        except MalformedMap:
            epoch = 0
        return epoch <= most and await connection.commit([(b"SET", MAP_KEY, encode_map(map))]) is not None


async def add_shard(pools: dict[str, Pool], new: Pool, option: str = "--add") -> str:
    """Make the server behind `new` a shard without buckets, if it is none yet; its name.

    Raises ConfigurationError for a server that belongs to another store, or evicts.
    """
    url = new.address.text
    known = next(iter(pools.values()))
    [there, _], [ours, our_id] = [
        [reply if isinstance(reply, bytes) else None for reply in await pool.execute([(b"GET", STORE_KEY), (b"GET", INITIALISED_KEY)])]
        for pool in (new, known)
    ]
    if ours is None or our_id is None:
        raise StoreUnavailable(f"{known.address.text}: is no shard of a store")
    record = decode_record(ours)
    if there is not None and decode_record(there).store != record.store:
        raise ConfigurationError(option, url, "takes a server that is empty; this one belongs to another store")
    for problem in await settings_problems(new, ASK_SECONDS, option):
        del problem  # said by every Server's status; eviction is refused
    while True:
        map = await newest_map(list(pools.values()))
        wanted = with_shard(map, url)
        [name] = [shard.name for shard in wanted.shards if shard.url == url]
        # the record first: who reads the map may ask this server at once
        commands: list[Command] = [(b"SET", STORE_KEY, encode_record(record._replace(shard=name))), (b"SET", INITIALISED_KEY, our_id)]
        async with new.connection() as connection:
            [content] = await connection.watch([STORE_KEY], [(b"GET", STORE_KEY)])
            if content != there or await connection.commit(commands) is None:
                raise StoreUnavailable(f"{url}: another process makes it a shard at this moment")
        there = encode_record(record._replace(shard=name))
        done = await change_map({**pools, name: new}, lambda newest: with_shard(newest, url))
        if any(shard == (name, url) for shard in done.shards):
            return name
