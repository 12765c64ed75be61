"""The map as the shards have it: the newest that any of them tells, and changes to it, by compare-and-set on all of them.

The first shard of the newest map decides between two that change the map at once; the others follow it. A shard that is
away keeps an old map, which harms nobody: owner keys decide, and the newest map that anybody has is the one that counts.
Where the first shard took itself out, the map is made when one that stays has it, too: the first may be gone at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import attrs

from taba.errors import ConfigurationError, StoreUnavailable
from taba.shard.buckets import (
    INITIALISED_KEY,
    MAP_KEY,
    STORE_KEY,
    SUCCEEDS_KEY,
    BucketMap,
    MalformedMap,
    StoreRecord,
    decode_map,
    decode_record,
    encode_map,
    encode_record,
    rank,
    with_shard,
    with_version,
)
from taba.shard.initialise import settings_problems
from taba.shard.servers.cluster import ClusterPool, ShardPool
from taba.shard.servers.connection import Command, raise_for
from taba.shard.servers.gather import gather
from taba.shard.servers.pool import Pool

MOST_CHANGES = 50  # tries to change the map, each lost to somebody who changed it at the same moment
ASK_SECONDS = 5.0


async def newest_map(pools: Sequence[ShardPool]) -> BucketMap:
    """The newest map that any of `pools` has. Raises StoreUnavailable when none has one."""
    return max(await _told(pools), key=rank)


async def _told(pools: Sequence[ShardPool]) -> list[BucketMap]:
    answers = await gather([pool.execute([(b"GET", MAP_KEY)], ASK_SECONDS) for pool in pools])
    maps = []
    for answer in answers:
        if isinstance(answer, list) and isinstance(answer[0], bytes):
            with suppress(MalformedMap):  # `taba check` reports it
                maps.append(decode_map(answer[0]))
    if not maps:
        raise StoreUnavailable("no shard tells the map")
    return maps


async def newer_map(pools: Sequence[ShardPool], map: BucketMap, seconds: float) -> BucketMap:
    """The newest map of the same store that `pools` know of; `map` itself where that is none of theirs."""
    answers = await gather([pool.execute([(b"GET", MAP_KEY)], seconds, seconds) for pool in pools])
    for answer in answers:
        if isinstance(answer, list) and isinstance(answer[0], bytes):
            try:
                told = decode_map(answer[0])
            except MalformedMap:
                continue  # `taba check` reports it
            if told.store == map.store and rank(told) > rank(map):
                map = told
    return map


async def told_by_all(pools: Sequence[ShardPool], store: str, seconds: float) -> BucketMap | None:
    """The newest map of `store` that `pools` tell; None where one of them tells none: it may know a later one."""
    newest: BucketMap | None = None
    for answer in await gather([pool.execute([(b"GET", MAP_KEY)], seconds, seconds) for pool in pools]):
        if not isinstance(answer, list) or not isinstance(answer[0], bytes):
            return None
        try:
            told = decode_map(answer[0])
        except MalformedMap:
            return None
        if told.store == store and (newest is None or rank(told) > rank(newest)):
            newest = told
    return newest


async def change_map(pools: Mapping[str, ShardPool], change: Callable[[BucketMap], BucketMap]) -> BucketMap:
    """Make `change(newest map)` the map on all shards; where it gives the same map, see that all shards have it.

    Raises StoreUnavailable when the first shard of the map, or of the one that it becomes, does not answer, or all tries were lost.
    """
    for _ in range(MOST_CHANGES):
        told = await _told(list(pools.values()))
        map = max(told, key=rank)
        wanted = change(map)
        if wanted is map and any(one.epoch == map.epoch and one != map for one in told):
            wanted = attrs.evolve(map, epoch=map.epoch + 1)  # none takes a map for another of the same epoch
        first = pools.get(map.shards[0].name)
        if first is None:
            raise StoreUnavailable(f"shard {map.shards[0].name} is not known")
        if wanted is not map and not await _set_map(first, wanted, map.epoch):
            continue
        others = await gather([_set_map(pool, wanted, wanted.epoch - 1) for pool in pools.values()])
        for name, other in zip(pools, others, strict=True):
            if isinstance(other, Exception) and (name == wanted.shards[0].name or not isinstance(other, StoreUnavailable)):
                raise other
        return wanted
    raise StoreUnavailable("the map is changed by others all the time")


async def bring_map(pools: Mapping[str, ShardPool], map: BucketMap) -> None:
    """Bring `map`, which a server just told, to `pools`, its shards, where none of them has it.

    It was decided at a shard that it takes out, and whoever did that was killed before the others had it: they would name for ever a shard
    that there is not, and no change would be made any more.
    """
    newest = await newest_map(list(pools.values()))
    if newest.store == map.store and newest.epoch < map.epoch:
        for answer in await gather([_set_map(pool, map, map.epoch - 1) for pool in pools.values()]):
            if isinstance(answer, Exception) and not isinstance(answer, StoreUnavailable):
                raise answer


async def _set_map(pool: ShardPool, map: BucketMap, most: int) -> bool:
    """Whether `pool` took `map`; not where an epoch beyond `most` is there (none counts as 0), or somebody was faster."""
    async with pool.server_of(MAP_KEY).connection() as connection:
        [content] = await connection.watch([MAP_KEY], [(b"GET", MAP_KEY)])
        try:
            epoch = decode_map(content).epoch if isinstance(content, bytes) else 0
        except MalformedMap:
            epoch = 0
        return epoch <= most and await connection.commit([(b"SET", MAP_KEY, encode_map(map))]) is not None


async def add_shard(pools: dict[str, Pool], new: Pool, option: str = "--add") -> str:
    """Make the server behind `new` a shard without buckets, if it is none yet; its name. Several may do so at once.

    Raises ConfigurationError for a server that belongs to another store, or evicts.
    """
    url = new.address.text
    known = next(iter(pools.values()))
    ours, our_id = await known.execute([(b"GET", STORE_KEY), (b"GET", INITIALISED_KEY)])
    if not isinstance(ours, bytes) or not isinstance(our_id, bytes):
        raise StoreUnavailable(f"{known.address.text}: is no shard of a store")
    record = decode_record(ours)
    for name, pool in pools.items():
        if pool is not new and await run_of(pool) == await run_of(new):
            raise ConfigurationError(option, url, f"takes a server that is no shard yet; it is shard {name}, known as {pool.address.text}")
    for problem in await settings_problems(new, ASK_SECONDS, option):
        del problem  # said by every Server's status; eviction is refused
    for _ in range(MOST_CHANGES):
        async with new.connection() as connection:
            [there] = await connection.watch([STORE_KEY], [(b"GET", STORE_KEY)])
            if isinstance(there, bytes) and decode_record(there).store != record.store:
                raise ConfigurationError(option, url, "takes a server that is empty; this one belongs to another store")
            # the map after the WATCH: whoever knows a newer one writes its record first, and refuses ours
            wanted = with_shard(await newest_map(list(pools.values())), url)
            [name] = [shard.name for shard in wanted.shards if shard.url == url]
            content = encode_record(record._replace(shard=name))
            # the record before the map: who reads the map may ask this server at once
            if there != content and await connection.commit([(b"SET", STORE_KEY, content), (b"SET", INITIALISED_KEY, our_id)]) is None:
                continue
        done = await change_map({**pools, name: new}, lambda newest: with_shard(newest, url))
        if any(shard == (name, url) for shard in done.shards):
            return name
    raise StoreUnavailable(f"{url}: others change it all the time")


async def without_record(pools: Mapping[str, ShardPool]) -> list[str]:
    """Those of the shards `pools`, by name, that do not say which one of which store they are: a failover took that from them.

    Whoever knew such a shard alone would take it for a server that is new.
    """
    answers = await gather([pool.execute([(b"GET", STORE_KEY)], ASK_SECONDS) for pool in pools.values()])
    lost = []
    for (name, pool), answer in zip(pools.items(), answers, strict=True):
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer[0], Exception):
            raise_for(answer[0], pool.address.text)
        if answer[0] is None:
            lost.append(name)
    return lost


async def restore_records(pools: Mapping[str, ShardPool]) -> None:
    """Have each of the shards `pools`, by name, say again which one it is of which store. For those that have what else is theirs."""
    lost = await without_record(pools)
    if not lost:
        return
    map = await newest_map(list(pools.values()))
    answers = await gather([pool.execute([(b"GET", SUCCEEDS_KEY)], ASK_SECONDS) for pool in pools.values()])
    followed = [id for answer in answers if isinstance(answer, list) and isinstance(answer[0], bytes) for id in answer[0].split()]
    urls = tuple(shard.url for shard in map.shards)
    for name in lost:
        pool = pools[name]
        # before the record, whose lack is what is looked for: who is cut in between is finished by the next; in a cluster they lie on
        # other nodes
        others: list[Command] = [(b"SET", INITIALISED_KEY, map.store.encode(), b"NX")]
        if followed:
            others.append((b"SET", SUCCEEDS_KEY, b"\n".join(dict.fromkeys(followed)), b"NX"))
        for reply in await pool.execute(others, ASK_SECONDS):
            if isinstance(reply, Exception):
                raise_for(reply, pool.address.text)
        record = encode_record(StoreRecord(map.store, map.buckets, name, urls, isinstance(pool, ClusterPool), map.version))
        async with pool.server_of(STORE_KEY).connection() as connection:
            [there] = await connection.watch([STORE_KEY], [(b"GET", STORE_KEY)])
            if there is None and await connection.commit([(b"SET", STORE_KEY, record)]) is None:
                raise StoreUnavailable(f"{pool.address.text}: somebody else makes it a shard at this moment")


async def raise_version(pools: Mapping[str, ShardPool], version: int) -> None:
    """Have the store say that it is written in `version` from now on, unless it says a later one: the map first, then each shard's record.

    Whoever is ended in between has it done again. A Server that does not read `version` finds a map that is none for it.
    """
    await change_map(pools, lambda map: with_version(map, version))
    for pool in pools.values():
        async with pool.server_of(STORE_KEY).connection() as connection:
            for _ in range(MOST_CHANGES):
                [content] = await connection.watch([STORE_KEY], [(b"GET", STORE_KEY)])
                record = decode_record(content) if isinstance(content, bytes) else None
                if record is None or record.version >= version:  # one that lost it is mended by `taba check --repair`
                    break
                if await connection.commit([(b"SET", STORE_KEY, encode_record(record._replace(version=version)))]) is not None:
                    break
            else:
                raise StoreUnavailable(f"{pool.address.text}: others change its record all the time")


async def run_of(pool: Pool) -> str:
    """The id of the run of the server behind `pool`, its database and prefix: what two names of one shard share."""
    [told] = await pool.execute([(b"INFO", b"server")], ASK_SECONDS)
    if not isinstance(told, bytes):
        raise StoreUnavailable(f"{pool.address.text}: does not say which server it is: {told!r:.100}")
    lines = [line.partition(":")[2] for line in told.decode(errors="replace").splitlines() if line.startswith("run_id:")]
    return f"{lines[0]}/{pool.address.database}/{pool.address.prefix}" if lines else pool.address.text


async def succeed(pools: Sequence[ShardPool], ids: Sequence[str]) -> None:
    """Have the store behind `pools` say that it follows the stores `ids`, beside those that it followed before."""
    for pool in pools:
        async with pool.server_of(SUCCEEDS_KEY).connection() as connection:
            for _ in range(MOST_CHANGES):
                [said] = await connection.watch([SUCCEEDS_KEY], [(b"GET", SUCCEEDS_KEY)])
                all_ids = list(dict.fromkeys([*(said.decode().split() if isinstance(said, bytes) else []), *ids]))
                if await connection.commit([(b"SET", SUCCEEDS_KEY, "\n".join(all_ids).encode())]) is not None:
                    break
            else:
                raise StoreUnavailable(f"{pool.address.text}: others change which stores it follows, all the time")
