"""Finds maps and owner keys that disagree; and mends them, when told to.

1. Whatever is shown can be mended, and says how: a move that nobody makes is undone, or finished where its target is
   open; then each bucket gets one shard that has it, the map follows, and a shard under two names becomes one.
2. Mending never removes content of a bucket: where two shards say that they have it, the one that does not keep it keeps
   its keys, which nobody reads any more, until the bucket arrives there again.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import attrs
from twisted.internet.task import deferLater

from taba.errors import StoreUnavailable, TabaError
from taba.shard.buckets import (
    MAP_KEY,
    BucketMap,
    MalformedMap,
    Owner,
    decode_map,
    encode_owner,
    owner_key,
    target_of,
    with_owner,
)
from taba.shard.maps import ASK_SECONDS, change_map, newest_map, restore_records, without_record
from taba.shard.moving.move import forget, tidy, undo
from taba.shard.moving.mover import ALIVE_SECONDS, IDENTITY_READS, SIGNS_KEY, Factory, Mover, identity_of, mover_of
from taba.shard.moving.states import LEAVING, REMOVING, SEALED, state_of
from taba.shard.moving.steps import is_content
from taba.shard.moving.survey import Survey, read_owner, survey
from taba.shard.patience import Standing
from taba.shard.servers.cluster import ClusterPool, ShardPool
from taba.shard.servers.gather import gather
from taba.shard.servers.pool import Pool

WATCH_SECONDS = 0.5  # between looks at movers' signs of life
MOST_TRIES = 5  # at one bucket's owner keys, each lost to somebody who changed them meanwhile
REPAIR = "taba check --repair"


class Disagreement(NamedTuple):
    """`text` says what is wrong, and what to do. `bucket` has it, or -1: a map, or a shard."""

    text: str
    bucket: int = -1


def compare(map: BucketMap, told: Mapping[str, BucketMap | None], found: Survey) -> list[Disagreement]:
    """What in `found` and in the maps that the shards have (`told`, None: unreadable) does not fit the newest `map`. Pure."""
    wrong: list[Disagreement] = []
    for name, one in told.items():
        if one is None:
            wrong.append(Disagreement(f"shard {name} has no map that can be read: {REPAIR}"))
        elif one != map:
            wrong.append(Disagreement(f"shard {name} has a map of epoch {one.epoch}; the newest has {map.epoch}: {REPAIR}"))
    wrong += [
        Disagreement(f"shard {shard} says of bucket {bucket} what cannot be read: {REPAIR}", bucket)
        for bucket, shard in sorted(found.unreadable)
    ]
    under_way = found.under_way()
    for bucket in range(map.buckets):
        if bucket in under_way:
            source, token = under_way[bucket]
            if found.open_at(bucket).keys() >= {source, target_of(token)}:
                wrong.append(Disagreement(f"bucket {bucket} is open on {source} and {target_of(token)}: {REPAIR}", bucket))
            continue
        by_map, opens = map.shard_of(bucket), found.open_at(bucket)
        if len(opens) > 1:
            wrong.append(Disagreement(f"bucket {bucket} is open on {' and '.join(sorted(opens))}: {REPAIR}", bucket))
        elif not opens:
            wrong.append(Disagreement(f"bucket {bucket} is open nowhere; by the map it belongs to {by_map}: {REPAIR}", bucket))
        elif by_map not in opens:
            [holder] = opens
            wrong.append(Disagreement(f"bucket {bucket} is open on {holder}; by the map it belongs to {by_map}: {REPAIR}", bucket))
        elif found.sealed_at(bucket):
            [holder] = opens
            wrong.append(Disagreement(f"bucket {bucket} is open on {holder}, and sealed elsewhere: {REPAIR}", bucket))
    return wrong


def standing(found: Survey, alive: set[str]) -> list[Disagreement]:
    """The moves that are under way, and whose mover gives no sign of life. Pure."""
    wrong = [
        Disagreement(
            f"bucket {bucket} is on its way from {source}, and nobody moves it: repeat the taba reshard, or taba reshard --abort", bucket
        )
        for bucket, (source, token) in sorted(found.under_way().items())
        if mover_of(token) not in alive
    ]
    wrong += [
        Disagreement(f"bucket {bucket} was to arrive at {shard}, and never left: taba reshard --abort removes what is there", bucket)
        for bucket, shard in found.strays()
        if mover_of(_token_at(found, shard, bucket)) not in alive
    ]
    for bucket, shard in found.leavings():
        if mover_of(_token_at(found, shard, bucket)) not in alive:
            what = f"bucket {bucket} has left {shard}, and its keys have not: repeat the taba reshard, or --abort it"
            if target := _lost_at(found, bucket, shard):
                what = f"bucket {bucket} has left {shard}, and {target} has lost it: {REPAIR}"
            wrong.append(Disagreement(what, bucket))
    return wrong


def _lost_at(found: Survey, bucket: int, source: str) -> str:
    """Where a bucket that has left `source` was lost so that no move may say what becomes of it: a part of it is gone at the source, or
    where it went it is open as it was before. "" where a move may, or it went on from there.
    """
    owner = found.owners[source][bucket]
    assert owner is not None
    there = found.owners.get(owner.name, [None] * (bucket + 1))[bucket]
    later = [
        one for name, owners in found.owners.items() if (one := owners[bucket]) is not None and one.epoch >= owner.epoch and name != source
    ]
    if any(one.epoch > owner.epoch or one.state in ("open", "sealed") for one in later):
        return ""
    return owner.name if owner.is_removing or (there is not None and there.state == "open") else ""


def _token_at(found: Survey, shard: str, bucket: int) -> str:
    owner = found.owners[shard][bucket]
    return owner.token if owner is not None else ""


def resolve(map: BucketMap, bucket: int, said: Mapping[str, Owner | None], keys: Mapping[str, int]) -> dict[str, Owner]:
    """What the owner keys of a bucket that no move has in hand are to say, of those that say otherwise; the new holder's last. Pure.

    `keys`: how much of it each shard has, staged copies not counted. Who has all of it since it moved last keeps it; where nobody
    says that he has, who has most of it.
    """
    opens = {name: owner for name, owner in said.items() if owner is not None and owner.state == "open" and owner.name == name}
    by_map = map.shard_of(bucket)
    whole = {name: owner for name, owner in said.items() if owner is not None and state_of(owner) in (SEALED, LEAVING)} | opens
    if whole:
        # of equal epochs, the one that is open, and that readers were led to
        best = max(whole, key=lambda name: (whole[name].epoch, name in opens, name == by_map, name))
    else:
        best = max(said, key=lambda name: (keys.get(name, 0), name == by_map, name))
    wrong = [name for name, owner in said.items() if name != best and owner is not None and owner.state != "moved"]
    is_open = best in opens and not opens[best].moving
    # who has left waits for where it went, or for whoever has the bucket since: under a later epoch
    left = [owner for name, owner in said.items() if name != best and state_of(owner) in (LEAVING, REMOVING) and owner is not None]
    is_last = is_open and all(opens[best].epoch >= owner.epoch + (owner.name != best) for owner in left)
    if is_last and not wrong and (by_map == best or map.epochs[bucket] < opens[best].epoch):
        return {}
    epoch = max([map.epochs[bucket], *(owner.epoch for owner in said.values() if owner is not None)]) + 1
    return {**{name: Owner("moved", epoch, best) for name in wrong}, best: Owner("open", epoch, best)}


async def check(pools: Mapping[str, ShardPool], reactor: Any, repair: bool = False, signs: Standing | None = None) -> list[Disagreement]:
    """What is wrong with the store whose shards are `pools`, by name; with `repair`, it is mended.

    Where a move is under way its mover is watched for ten seconds before it is taken for gone, beside what the shards take
    to answer; a repair looks again after each try. `signs`: what was seen of movers before. Raises StoreUnavailable when
    a shard does not answer: what it has is then not known.
    """
    known = dict(pools)
    signs = signs or Standing(reactor)
    left = await _look(known, signs, reactor)
    wrong = left.wrong
    tries = MOST_TRIES if repair else 0
    while left.wrong and tries:
        tries -= 1
        await _mend_all(known, left, signs, reactor)
        known = {name: pool for name, pool in known.items() if name not in left.phantoms}
        left = await _look(known, signs, reactor)  # what several had left of one bucket comes to light one by one
    return wrong


class _Look(NamedTuple):
    """A look at all shards: `phantoms` {second name of a server: its first}, the movers that are `alive`, and what is `wrong`."""

    phantoms: dict[str, str]
    map: BucketMap
    found: Survey
    alive: set[str]
    wrong: list[Disagreement]


async def _look(pools: dict[str, ShardPool], signs: Standing, reactor: Any) -> _Look:
    phantoms = await _phantoms(pools)
    map, found, wrong = await _compared(pools, phantoms)
    alive = await _living(pools, {mover_of(token) for token in _tokens(found)}, signs, reactor)
    return _Look(phantoms, map, found, alive, wrong + standing(found, alive))


async def _mend_all(pools: dict[str, ShardPool], seen: _Look, signs: Standing, reactor: Any) -> None:
    if seen.phantoms:
        await _unite(pools, seen.map, seen.phantoms)
        pools = {name: pool for name, pool in pools.items() if name not in seen.phantoms}
    for bucket, shard in seen.found.unreadable:
        await _forget(pools[shard].holding(bucket), owner_key(bucket))
    await _end_moves(pools, seen.found, seen.alive, signs, reactor)
    for bucket in sorted({one.bucket for one in seen.wrong if one.bucket >= 0}):
        await _mend(pools, bucket)
    await change_map(pools, lambda newest: newest)
    await restore_records(pools)


async def _compared(pools: dict[str, ShardPool], phantoms: Mapping[str, str]) -> tuple[BucketMap, Survey, list[Disagreement]]:
    map = await newest_map(list(pools.values()))
    unknown = [shard.name for shard in map.shards if shard.name not in pools]
    if unknown:
        raise StoreUnavailable(f"shard {', '.join(unknown)} was added just now; check again")
    found = await survey({name: pool for name, pool in pools.items() if name not in phantoms}, map.buckets)
    answers = await gather([pool.execute([(b"GET", MAP_KEY)], ASK_SECONDS) for pool in pools.values()])
    told: dict[str, BucketMap | None] = {}
    for name, answer in zip(pools, answers, strict=True):
        if isinstance(answer, Exception):
            raise answer
        told[name] = _map(answer[0])
    wrong = [Disagreement(f"shard {name} does not say any more which store it is of: {REPAIR}") for name in await without_record(pools)]
    wrong += [
        Disagreement(f"shard {phantom} is the very server that is shard {real}, under another name: {REPAIR}")
        for phantom, real in phantoms.items()
    ]
    return map, found, wrong + compare(map, told, found)


def _tokens(found: Survey) -> list[str]:
    left = [*found.strays(), *found.leavings()]
    return [token for _, token in found.under_way().values()] + [_token_at(found, shard, bucket) for bucket, shard in left]


# --- who moves ---


async def _living(pools: Mapping[str, ShardPool], movers: set[str], signs: Standing, reactor: Any) -> set[str]:
    """Those of `movers` that are seen to raise their sign; the others are watched for ten seconds."""
    alive: set[str] = set()
    left = set(movers)
    seen: dict[str, tuple[bytes | None, ...]] = {}
    while left:
        answers = await gather([pool.execute([(b"HGETALL", SIGNS_KEY)], ASK_SECONDS) for pool in pools.values()])
        said: dict[str, dict[str, bytes]] = {}
        for pool, answer in zip(pools.values(), answers, strict=True):
            if isinstance(answer, Exception):
                raise answer
            fields = answer[0] if isinstance(answer[0], list) else []
            pairs = zip(fields[::2], fields[1::2], strict=True)
            said[pool.address.text] = {mover.decode(errors="replace"): sign for mover, sign in pairs}
        for mover in list(left):
            now = tuple(there.get(mover) for there in said.values())
            stood = [signs.seconds((place, mover.encode()), there[mover]) for place, there in said.items() if mover in there]
            if seen.setdefault(mover, now) != now:
                alive.add(mover)
            if mover in alive or not stood or min(stood) >= ALIVE_SECONDS:
                left.discard(mover)
        if left:
            await deferLater(reactor, WATCH_SECONDS)
    return alive


async def _end_moves(pools: Mapping[str, ShardPool], found: Survey, alive: set[str], signs: Standing, reactor: Any) -> None:
    """Undo the moves whose movers are gone, or finish them; what remains afterwards is for `_mend`."""
    plain = {name: pool for name, pool in pools.items() if isinstance(pool, Pool)}
    ending: dict[int, Factory] = {bucket: partial(forget, bucket, shard) for bucket, shard in found.strays()}
    ending.update({bucket: partial(tidy, bucket, shard) for bucket, shard in found.leavings()})
    for bucket, (source, token) in found.under_way().items():
        if mover_of(token) not in alive and found.open_at(bucket).keys() != {source, target_of(token)}:
            ending[bucket] = partial(undo, bucket, source)
    if not ending:
        return
    mover = Mover(plain, reactor, standing=signs, without_replicas=True)
    await mover.start()
    try:
        for answer in (await mover.run(ending)).values():
            if isinstance(answer, Exception) and not isinstance(answer, TabaError):
                raise answer
    finally:
        await mover.stop()


# --- one bucket ---


async def _mend(pools: Mapping[str, ShardPool], bucket: int) -> None:
    key = owner_key(bucket)
    for _ in range(MOST_TRIES):
        map = await newest_map(list(pools.values()))
        contents = await _said(pools, key)
        said = {name: read_owner(content) for name, content in contents.items()}
        under_way = Survey({name: [owner] for name, owner in said.items()}).under_way()
        opens = [name for name, owner in said.items() if owner is not None and owner.state == "open"]
        shards = {shard.name for shard in map.shards}
        if under_way and len(opens) < 2 and all(target_of(token) in shards for _, token in under_way.values()):
            return  # its mover lives, or a shard is away that knows more; not where it goes to a shard that is none any more
        keys: dict[str, int] = {}
        if not opens:
            for name, pool in pools.items():
                found = (await Mover({name: pool.holding(bucket)}, None).keys(name, [bucket]))[bucket]
                keys[name] = sum(is_content(bucket, key) for key in found)
        changes = resolve(map, bucket, said, keys)
        # the losers first: for no moment may two that we have seen be open
        for name, owner in changes.items():
            if owner.state == "open" and await _said(pools, key) != contents:
                break  # a mover that woke may have opened it elsewhere meanwhile: begin anew with what is said now
            if not await _set_owner(pools[name].holding(bucket), key, contents[name], owner):
                break
            contents[name] = encode_owner(owner)
        else:
            [(holder, epoch)] = [(name, owner.epoch) for name, owner in {**said, **changes}.items() if owner and owner.state == "open"]
            await change_map(pools, partial(with_owner, bucket=bucket, name=holder, epoch=epoch))
            return
    raise StoreUnavailable(f"bucket {bucket}: others change it all the time; check again")


async def _said(pools: Mapping[str, ShardPool], key: bytes) -> dict[str, Any]:
    """What the owner key `key` holds on each shard."""
    contents: dict[str, Any] = {}
    for name, pool in pools.items():
        [contents[name]] = await pool.execute([(b"GET", key)], ASK_SECONDS)
    return contents


async def _forget(pool: Pool, key: bytes) -> None:
    """Remove an owner key that cannot be read: a missing one means no, as nobody could know that it does not."""
    async with pool.connection() as connection:
        [content] = await connection.watch([key], [(b"GET", key)])
        if content is not None and read_owner(content) is None:
            await connection.commit([(b"DEL", key)])  # where somebody wrote it meanwhile, the next look tells


async def _set_owner(pool: Pool, key: bytes, expected: Any, owner: Owner) -> bool:
    async with pool.connection() as connection:
        [content] = await connection.watch([key], [(b"GET", key)])
        return content == expected and await connection.commit([(b"SET", key, encode_owner(owner))]) is not None


# --- one server under two names ---


async def _phantoms(pools: Mapping[str, ShardPool]) -> dict[str, str]:
    """Shards whose server is another shard's too: {second name: first name}."""
    first: dict[str, str] = {}
    found: dict[str, str] = {}
    for name, pool in pools.items():
        if isinstance(pool, ClusterPool):
            continue
        run = identity_of(await pool.execute(IDENTITY_READS, ASK_SECONDS)).run
        run = f"{run}/{pool.address.database}/{pool.address.prefix}" if run else ""  # two databases of one server are two shards
        if run and first.setdefault(run, name) != name:
            found[name] = first[run]
    return found


async def _unite(pools: Mapping[str, ShardPool], map: BucketMap, phantoms: Mapping[str, str]) -> None:
    """Give the buckets of each phantom to the shard that its server is, and take it out of the map."""
    for phantom, real in phantoms.items():
        pool = pools[real]
        for bucket in range(map.buckets):
            [content] = await pool.execute([(b"GET", owner_key(bucket))], ASK_SECONDS)
            owner = read_owner(content)
            if owner is not None and owner.state == "open" and owner.name == phantom:
                await _set_owner(pool.holding(bucket), owner_key(bucket), content, Owner("open", owner.epoch + 1, real))
        await change_map(dict(pools), lambda newest, phantom=phantom, real=real: _without_phantom(newest, phantom, real))  # type: ignore[misc]


def _without_phantom(map: BucketMap, phantom: str, real: str) -> BucketMap:
    if all(shard.name != phantom for shard in map.shards):
        return map
    shards = tuple(shard for shard in map.shards if shard.name != phantom)
    places = {shard.name: place for place, shard in enumerate(shards)}
    names = [map.shard_of(bucket) for bucket in range(map.buckets)]
    owners = tuple(places[real if name == phantom else name] for name in names)
    epochs = tuple(epoch + (name == phantom) for name, epoch in zip(names, map.epochs, strict=True))
    draining = tuple(name for name in map.draining if name != phantom)
    return attrs.evolve(map, epoch=map.epoch + 1, shards=shards, owners=owners, epochs=epochs, draining=draining)


def _map(content: object) -> BucketMap | None:
    try:
        return decode_map(content) if isinstance(content, bytes) else None
    except MalformedMap:
        return None
