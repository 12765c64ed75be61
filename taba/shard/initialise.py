"""What a store says of itself, and how a new one is made: once, whoever comes first, however many come at once.

On every shard stand `taba:store` (which store, which shard of it), `taba:map`, an owner key for each bucket that it
owns, and, once all shards have those, `taba:initialised`. Every step sets only what is missing, in a transaction that
WATCHes `taba:initialised`: so two that come at once write the same, one that died is finished by the next, and one
that slept until the store was in use does nothing. In a cluster these keys lie on many nodes, and no transaction spans
them; there the map, which comes after all owner keys, stands for `taba:initialised` too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import attrs

from taba.bounds import DEFAULT_BUCKETS
from taba.errors import ConfigurationError, StoreUnavailable
from taba.shard.buckets import (
    INITIALISED_KEY,
    MAP_KEY,
    STORE_KEY,
    SUCCEEDS_KEY,
    BucketMap,
    MalformedMap,
    OtherVersion,
    Owner,
    StoreRecord,
    decode_map,
    decode_record,
    encode_map,
    encode_owner,
    encode_record,
    first_map,
    owner_key,
    rank,
)
from taba.shard.servers.cluster import ClusterPool, ShardPool
from taba.shard.servers.connection import Command, ErrorReply, Reply, raise_for
from taba.shard.servers.gather import gather
from taba.shard.servers.pool import Pool
from taba.shard.servers.prefix import USUAL

ASK_SECONDS = 1.0  # for a connection, and for its answer, when a shard is asked what it is: one that is away must not hold up the others


MIN_SERVER = (6, 2)  # SMISMEMBER, ZMSCORE and ZRANDMEMBER; what is newer (WAITAOF, 7.2) is done without where it is not there


class StoreLost(StoreUnavailable):
    """What was a store is empty, or has lost what says that it is one; nothing is made there unasked."""


class Testimony(NamedTuple):
    """What one server says: its record and its map, None where it has none, and the id of the store that it was initialised for.

    `succeeds`: the stores that it follows.
    """

    record: StoreRecord | None
    map: BucketMap | None
    initialised: str | None
    succeeds: frozenset[str] = frozenset()

    @property
    def is_initialised(self) -> bool:
        """Nothing is made where something is missing: it was there."""
        return bool(self.initialised) or (self.record is not None and self.record.is_whole)


class Learned(NamedTuple):
    """A store as its shards describe it: the newest map, and which of `pools` (by position) is which shard."""

    map: BucketMap
    names: dict[int, str]
    problems: list[str]
    succeeds: frozenset[str] = frozenset()


async def learn(
    pools: Sequence[ShardPool], buckets: int | None, new_id: Callable[[], str] | None, seconds: float, option: str = "--store"
) -> Learned:
    """What the servers behind `pools` say; a store that is new is initialised first, with `buckets` or the default.

    Without `new_id` none is made: StoreLost where none is.

    Raises ConfigurationError when they are not the shards of one store or it has another number of buckets,
    StoreUnavailable when too few answer to know.
    """
    answers = await gather([_ask(pool, seconds) for pool in pools])
    heard: dict[int, Testimony] = {}
    for number, answer in enumerate(answers):
        if isinstance(answer, Testimony):
            heard[number] = answer
        elif not isinstance(answer, StoreUnavailable):
            raise answer
    away = [str(answer) for answer in answers if isinstance(answer, StoreUnavailable)]
    if not heard:
        raise StoreUnavailable("; ".join(away)[:1000])
    if not any(testimony.is_initialised for testimony in heard.values()):
        if new_id is None:
            shown = ",".join(pool.address.text for pool in pools)
            raise StoreLost(f"{shown}: is no store, or has lost what it held" + ("" if not away else ": " + "; ".join(away)[:1000]))
        for number, testimony in heard.items():
            # the record is written before the map, or with it; a cluster, where each lies on a node of its own, is looked at below
            if testimony.map is not None and testimony.record is None and not isinstance(pools[number], ClusterPool):
                raise StoreLost(_lost_record(pools[number], testimony.map))
        if away:
            raise StoreUnavailable("a new store is made only when all of its shards are there: " + "; ".join(away)[:1000])
        await _initialise(pools, heard, buckets or DEFAULT_BUCKETS, new_id, seconds, option)
        return await learn(pools, buckets, new_id, seconds, option)
    return _compare(pools, heard, buckets, option)


def _lost_record(pool: ShardPool, map: BucketMap) -> str:
    cure = "taba check --repair, with --store naming another of its shards"
    if len(map.shards) == 1:  # there is none that could tell; with this key the map counts again, and the rest can be mended
        key = pool.address.prefix + INITIALISED_KEY.decode().removeprefix(USUAL)
        cure = f"it is the only one: SET {key} {map.store} there, then taba check --repair"
    return f"{pool.address.text}: is a shard of store {map.store} and has lost what says so: {cure}"


async def _ask(pool: ShardPool, seconds: float) -> Testimony:
    reads = [(b"GET", STORE_KEY), (b"GET", MAP_KEY), (b"GET", INITIALISED_KEY), (b"GET", SUCCEEDS_KEY)]
    replies = await pool.execute(reads, min(seconds, ASK_SECONDS), min(seconds, ASK_SECONDS))
    return _testimony(pool, replies)


def _testimony(pool: ShardPool, replies: Sequence[Reply]) -> Testimony:
    for reply in replies:
        if isinstance(reply, ErrorReply):
            raise_for(reply, pool.address.text)
    record, map, initialised, *more = replies
    succeeds = more[0] if more and isinstance(more[0], bytes) else b""
    try:
        return Testimony(
            decode_record(record) if isinstance(record, bytes) else None,
            decode_map(map) if isinstance(map, bytes) else None,
            initialised.decode() if isinstance(initialised, bytes) else None,
            frozenset(succeeds.decode().split()),
        )
    except OtherVersion as error:
        raise ConfigurationError("--store", pool.address.text, f"takes a store of this version of Taba; there is {error}") from None
    except (MalformedMap, UnicodeDecodeError) as error:
        raise StoreUnavailable(f"{pool.address.text}: {error}") from None


def _compare(pools: Sequence[ShardPool], heard: dict[int, Testimony], buckets: int | None, option: str) -> Learned:
    ids = {testimony.initialised or (testimony.record.store if testimony.record else "") for testimony in heard.values()} - {""}
    shown = ",".join(pool.address.text for pool in pools)
    if len(ids) > 1:
        raise ConfigurationError(option, shown, f"takes the shards of one store; these belong to {len(ids)}")
    maps = [testimony.map for testimony in heard.values() if testimony.map is not None and testimony.map.store in ids]
    if not maps:
        raise StoreUnavailable(f"{shown}: the store was initialised, and its map is gone")
    map = max(maps, key=rank)
    if buckets is not None and map.buckets != buckets:
        raise ConfigurationError("--buckets", buckets, f"takes {map.buckets}, the number that this store was first used with")
    names: dict[int, str] = {}
    problems = []
    for number, testimony in heard.items():
        text = pools[number].address.text
        if testimony.record is None:
            problems.append(f"{text} is no shard of this store: it is empty, or has lost what it held")
        elif testimony.record.shard in names.values():
            raise ConfigurationError(option, shown, f"takes each server once; {text} is named twice")
        else:
            names[number] = testimony.record.shard
    succeeds = frozenset().union(*[testimony.succeeds for testimony in heard.values()])
    return Learned(map, names, problems, succeeds)


async def _initialise(
    pools: Sequence[ShardPool], heard: dict[int, Testimony], buckets: int, new_id: Callable[[], str], seconds: float, option: str
) -> None:
    shown = ",".join(pool.address.text for pool in pools)
    for pool in pools:
        if isinstance(pool, ClusterPool):
            await _refuse_remains(pool, heard, buckets, seconds)
    records = [testimony.record for testimony in heard.values() if testimony.record is not None]
    if not records:
        # all who come at once ask the same server first, whatever the order of their URLs: its answer is the plan
        anchor = min(pools, key=lambda pool: pool.address.text)
        urls = tuple(pool.address.text for pool in pools)
        proposal = StoreRecord(new_id(), buckets, f"s{urls.index(anchor.address.text) + 1}", urls)
        replies = await anchor.execute([(b"SET", STORE_KEY, encode_record(proposal), b"NX"), (b"GET", STORE_KEY)], seconds, seconds)
        record = _testimony(anchor, [replies[1], None, None]).record
        if record is None:
            raise StoreUnavailable(f"{anchor.address.text}: does not keep what is written: {replies[0]!r}")
        records = [record]
    plan = records[0]
    if any(record.store != plan.store for record in records):
        raise ConfigurationError(option, shown, "takes the shards of one store; these belong to several")
    by_url = {pool.address.text: pool for pool in pools}
    missing = [url for url in plan.urls if url not in by_url]
    if missing and not isinstance(pools[0], ClusterPool):
        others = ", ".join(missing)
        raise StoreUnavailable(f"this store was begun with {others} too, and is not finished: name all of its shards in {option}")
    map = attrs.evolve(first_map(plan.store, plan.urls, plan.buckets), version=plan.version)
    for shard in map.shards:
        record = plan._replace(shard=shard.name, is_whole=False)
        await _furnish(by_url.get(shard.url, pools[0]), map, record, seconds, option, shown)
    for pool in by_url.values():
        if pool.address.text in plan.urls or isinstance(pool, ClusterPool):
            finished: list[Command] = [(b"SET", INITIALISED_KEY, plan.store.encode(), b"NX")]
            if isinstance(pool, ClusterPool):
                finished.append((b"SET", STORE_KEY, encode_record(plan._replace(is_whole=True))))
            for reply in await pool.execute(finished, seconds, seconds):
                if isinstance(reply, ErrorReply):
                    raise_for(reply, pool.address.text)


async def _refuse_remains(pool: ClusterPool, heard: dict[int, Testimony], buckets: int, seconds: float) -> None:
    """Raises StoreLost for a cluster where buckets have been in use: a node that lost its keys is never taken for a new one."""
    record = next((testimony.record for testimony in heard.values() if testimony.record is not None), None)
    keys = [owner_key(bucket) for bucket in range(record.buckets if record is not None else buckets)]
    replies = await pool.execute([(b"GET", key) for key in keys], seconds, seconds)
    found = sum(isinstance(reply, bytes) for reply in replies)
    if found and record is None:
        # somebody may have begun since we heard that there is no record, which is written before the first owner key
        [record_now] = await pool.execute([(b"GET", STORE_KEY)], seconds, seconds)
        if isinstance(record_now, bytes):
            raise StoreUnavailable(f"{pool.address.text}: another process is making this store at this moment")
    # what is begun and not finished has a record, and owner keys as they are made
    if found and (record is None or any(isinstance(reply, bytes) and not reply.startswith(b"open:1:") for reply in replies)):
        raise StoreLost(
            f"{pool.address.text}: has {found} buckets of a store, and has lost what says which: restore it, or empty all nodes"
        )


async def _furnish(pool: ShardPool, map: BucketMap, record: StoreRecord, seconds: float, option: str, shown: str) -> None:
    content = encode_owner(Owner("open", 1, record.shard))
    owners: list[Command] = [(b"SET", owner_key(bucket), content, b"NX") for bucket in map.owned_by(record.shard)]
    if isinstance(pool, ClusterPool):
        known_map, initialised = await pool.execute([(b"GET", MAP_KEY), (b"GET", INITIALISED_KEY)], seconds, seconds)
        if known_map is None and initialised is None:
            set_map: Command = (b"SET", MAP_KEY, encode_map(map), b"NX")
            for step in (owners, [set_map]):
                for reply in await pool.execute(step, seconds, seconds):
                    if isinstance(reply, ErrorReply):
                        raise_for(reply, pool.address.text)
        return
    async with pool.connection(seconds) as connection:
        there, initialised = await connection.watch([STORE_KEY, INITIALISED_KEY], [(b"GET", STORE_KEY), (b"GET", INITIALISED_KEY)], seconds)
        if initialised is not None:
            return  # somebody else has finished meanwhile
        if there is not None:
            known = _testimony(pool, [there, None, None]).record
            assert known is not None
            if known.store != record.store:
                raise ConfigurationError(option, shown, f"takes the shards of one store; {pool.address.text} belongs to another")
            if known.shard != record.shard:
                raise ConfigurationError(option, shown, f"takes each server once; {pool.address.text} is named twice")
        commands = [(b"SET", STORE_KEY, encode_record(record), b"NX"), *owners, (b"SET", MAP_KEY, encode_map(map), b"NX")]
        if await connection.commit(commands, seconds) is None:
            raise StoreUnavailable(f"{pool.address.text}: another process is making this store at this moment")


def version_of(told: Reply) -> tuple[int, ...] | None:
    """The version of Redis that a server says it is, or is compatible with; None where it does not say."""
    text = told.decode(errors="replace") if isinstance(told, bytes) else ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == "redis_version" and all(part.isdigit() for part in value.strip().split(".")):
            return tuple(map(int, value.strip().split(".")))
    return None


async def settings_problems(pool: Pool, seconds: float, option: str = "--store", has_failover: bool = False) -> list[str]:
    """Sentences on what in this server's settings may lose acknowledged events. Eviction is refused: ConfigurationError."""
    text = pool.address.text
    [about] = await pool.execute([(b"INFO", b"server")], min(seconds, ASK_SECONDS), min(seconds, ASK_SECONDS))
    version = version_of(about)
    if version is not None and version < MIN_SERVER:
        raise ConfigurationError(option, text, f"takes Redis 6.2 or newer, or Valkey 7.2 or newer; this is {'.'.join(map(str, version))}")
    asked = (b"appendonly", b"appendfsync", b"maxmemory", b"maxmemory-policy", b"min-replicas-to-write")
    replies = await pool.execute([(b"CONFIG", b"GET", name) for name in asked], min(seconds, ASK_SECONDS), min(seconds, ASK_SECONDS))
    found: dict[str, str] = {}
    for name, reply in zip(asked, replies, strict=True):
        if isinstance(reply, list) and len(reply) == 2 and all(isinstance(part, bytes) for part in reply):
            found[name.decode()] = reply[1].decode(errors="replace")
    if not found.keys() >= {"appendonly", "appendfsync", "maxmemory", "maxmemory-policy"}:
        return [f"{text} does not show its settings (CONFIG GET), so nobody knows whether it keeps what it acknowledged"]
    problems = []
    policy, sync = found["maxmemory-policy"], found["appendfsync"]
    if policy != "noeviction":
        if found["maxmemory"] != "0":
            raise ConfigurationError(option, text, f"takes a store that evicts nothing: maxmemory-policy noeviction, not {policy}")
        problems.append(f"{text} would evict ({policy}) if it had a maxmemory: set maxmemory-policy noeviction")
    if found["appendonly"] != "yes":
        problems.append(f"{text} keeps no append-only file: when it dies, acknowledged events are lost (set appendonly yes)")
    elif sync != "always":
        problems.append(f"{text} syncs its file {sync}: when it dies, the last acknowledged events may be lost (set appendfsync always)")
    if has_failover and found.get("min-replicas-to-write", "0") == "0":
        problems.append(f"{text} takes writes that no replica gets: a failover may lose acknowledged events (set min-replicas-to-write 1)")
    return problems
