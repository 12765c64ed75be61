"""Re-sharding a store that is in use: shards are added, drained or evened out, and what others left half-done is ended.

Each round looks at all owner keys first, so whatever happened before (a mover that died, another that is at work, a
store that was away) a repeated call goes on from there; when nothing is left to do it returns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import attrs
from twisted.internet.task import deferLater

from taba.errors import ConfigurationError, StoreUnavailable, TabaError
from taba.plural import many
from taba.shard.atlas import LEARN_SECONDS, Atlas
from taba.shard.buckets import BucketMap, lots, make_token, target_of, with_draining, with_shard, without_shard
from taba.shard.maps import add_shard, bring_map, change_map, newest_map, restore_records
from taba.shard.moving.move import Moved, forget, move, tidy, undo
from taba.shard.moving.mover import GROUP_BUCKETS, Factory, Mover, Watcher, mover_of
from taba.shard.moving.plan import Move, plan_even, plan_weighed
from taba.shard.moving.steps import Changed, Occupied, Outpaced, Overtaken
from taba.shard.moving.survey import Survey, survey
from taba.shard.servers.cluster import ShardPool
from taba.shard.servers.gather import gather
from taba.shard.servers.pool import Pool
from taba.shard.servers.sentinel import MasterPool
from taba.shard.servers.url import Address

MOST_STALLS = 12  # rounds in which nothing was achieved; then what stands in the way is said …
FAILOVER_SECONDS = 90.0  # … behind sentinels not before: by default they take a master for dead after 30 s, and then choose another
STALL_SECONDS = 1.0  # between such rounds: longer, together, than a mover that died is waited for
WEIGHED_KEYS = 1000  # whose size is asked at a time

Planner = Callable[[BucketMap], Sequence[Move]]


class Progress(NamedTuple):
    """How far a re-sharding is: buckets that are done and that were planned, and bytes copied."""

    done: int
    total: int
    bytes: int


class Reshard:
    """Re-shards the store behind `atlas`, which is connected. `rate`: bytes per second; `report` is called as it goes on.

    `without_replicas`: also where sentinels watch over servers that take writes which no replica has.
    """

    def __init__(
        self,
        atlas: Atlas,
        reactor: Any,
        rate: float | None = None,
        report: Callable[[Progress], None] | None = None,
        watch: Watcher | None = None,
        without_replicas: bool = False,
    ):
        self.moved: list[Moved] = []
        self._without_replicas = without_replicas
        self._atlas, self._reactor, self._report = atlas, reactor, report
        self._own: dict[str, Pool] = {}
        self._total = 0
        self._bytes = 0
        self._mover = Mover(pools_of(atlas), reactor, rate, watch, self._copied, atlas.standing, without_replicas)

    async def add(self, addresses: Sequence[Address], is_dry: bool = False) -> list[Move]:
        """Make the servers at `addresses` shards, and even out the buckets; the moves that this took, or would take.

        Raises ConfigurationError for a server that cannot be a shard, StoreUnavailable when something stays away.
        """
        map = await self._map()
        for address in addresses:
            known = next((shard.name for shard in map.shards if shard.url == address.text), "")
            if known in map.draining:
                raise ConfigurationError("--add", address.text, f"takes a shard that stays; {known} is being drained: --abort ends that")
            if is_dry:
                map = with_shard(map, address.text)
            elif all(shard.url != address.text for shard in map.shards):
                account = address if address.password else address.with_account_of(self._atlas.account)
                pool = self._atlas.new_pool(account)
                if not isinstance(pool, Pool):
                    raise ConfigurationError("--add", address.text, "takes a plain server, or masters of sentinels")
                pool.start()
                try:
                    name = await add_shard(self._mover.pools, pool)
                except BaseException:
                    await pool.close()
                    raise
                self._own[name] = pool
                map = await self._map()
        return list(_plan_all(map)) if is_dry else await self._until_done(_plan_all)

    async def drain(self, name: str, is_dry: bool = False) -> list[Move]:
        """Move all buckets of the shard `name` to the others, and take it out of the map.

        Raises ConfigurationError where there is no such shard, or no other.
        """
        map = await self._map()
        names = [shard.name for shard in map.shards]
        if name not in names:
            raise ConfigurationError("--drain", name, f"takes one of {', '.join(names)}")
        if not [one for one in map.holders if one != name]:
            raise ConfigurationError("--drain", name, "takes a shard that is not the only one that stays")

        def plan(map: BucketMap) -> Sequence[Move]:
            holders = [one for one in map.holders if one != name]
            if not is_dry and name not in map.draining:
                return []  # somebody ended it
            return [move for move in plan_even(map, holders) if move.source == name]

        if is_dry:
            return list(plan(map))
        await self._refuse_bare()
        # in the map, so that whoever else moves buckets at this time moves none to it
        await self._change_map(lambda map: with_draining(map, name, True))
        # in its own above all: from then on nothing arrives there, and what does already is found (see Mover)
        if name not in (await newest_map([self._mover.pools[name]])).draining:
            raise StoreUnavailable(f"shard {name} does not say that it is drained: it was away, or somebody ended that; come again")

        async def leave() -> None:
            if name not in (await self._map()).draining:
                raise StoreUnavailable(f"shard {name} is not drained any more: somebody ended that with --abort")
            await self._change_map(lambda map: without_shard(map, name))

        return await self._until_done(plan, leave)

    async def rebalance(self, weights: Mapping[int, float] | None = None, is_dry: bool = False) -> list[Move]:
        """Even out the shards: by the number of their buckets, or by what `weights` says that each bucket weighs."""
        plan: Planner = _plan_all
        map = await self._map()
        if weights is not None:
            planned = plan_weighed(map, map.holders, weights)

            def plan(map: BucketMap) -> Sequence[Move]:
                # planned once: weights change while buckets move, and a plan that follows them would never end
                return [move for move in planned if map.shard_of(move.bucket) == move.source and move.target in map.holders]

        return list(plan(map)) if is_dry else await self._until_done(plan)

    async def abort(self) -> list[Moved]:
        """Undo the moves that are under way and whose movers are gone; finish those whose target is open; drain nothing any more."""

        def undoing(found: Survey, _: BucketMap, busy: set[int]) -> dict[int, Factory]:
            return {bucket: partial(undo, bucket, source) for bucket, (source, _) in found.under_way().items() if bucket not in busy}

        try:
            await self._rounds(undoing)
            if (await self._map()).draining:
                await self._change_map(_undrained)
            found = await survey(self._mover.pools, (await self._map()).buckets)
        finally:
            await self._mover.stop()
        if odd := found.unsettled():
            shown = ", ".join(map(str, odd[:5])) + (" …" if len(odd) > 5 else "")
            told = many(len(odd), f"bucket ({shown}) is", f"buckets ({shown}) are")
            raise StoreUnavailable(
                f"{told} open nowhere, or twice, and {'nobody moves it' if len(odd) == 1 else 'nobody moves them'}: taba check --repair"
            )
        return self.moved

    async def give_up(self) -> None:
        """Undo what this very object has under way, after its work was cancelled; finish where a target is open, and what has left.

        All shards know the newest map then.
        """
        map = await self._map()
        found = await survey(self._mover.pools, map.buckets)
        own: dict[int, Factory] = {
            bucket: partial(undo, bucket, source)
            for bucket, (source, token) in found.under_way().items()
            if mover_of(token) == self._mover.id
        }
        for bucket, shard in found.leavings():
            owner = found.owners[shard][bucket]
            if owner is not None and mover_of(owner.moving) == self._mover.id:
                own[bucket] = partial(tidy, bucket, shard)
        for bucket, shard in found.strays():  # interrupted between the two: the target was marked, and the source was not
            owner = found.owners[shard][bucket]
            if owner is not None and mover_of(owner.token) == self._mover.id:
                own.setdefault(bucket, partial(forget, bucket, shard))
        await self._mover.run(own)
        # interrupted between the first shard of the map and the others: whoever looks would be told that they disagree
        await change_map(self._mover.pools, lambda map: map)

    async def close(self) -> None:
        """Close the connections that were opened here."""
        await gather([pool.close() for pool in self._own.values()])

    async def sizes(self) -> dict[int, float]:
        """What each bucket takes of its shard's memory, in bytes."""
        map = await self._map()
        found: dict[int, float] = {}
        for shard in map.shards:
            own = map.owned_by(shard.name)
            pool = self._mover.pools[shard.name]
            for bucket, keys in (await self._mover.keys(shard.name, own)).items() if own else ():
                found[bucket] = 0.0
                for lot in lots(keys, WEIGHED_KEYS):
                    replies = await pool.execute([(b"MEMORY", b"USAGE", key) for key in lot])
                    found[bucket] += sum(reply for reply in replies if isinstance(reply, int))
        return found

    # --- rounds ---

    async def _refuse_bare(self) -> None:
        """Raises ConfigurationError where sentinels may promote a replica that lacks what its primary acknowledged."""
        pools = {name: pool for name, pool in self._mover.pools.items() if isinstance(pool, MasterPool)}
        if self._without_replicas:
            return
        for name, pool in pools.items():
            [found] = await pool.execute([(b"CONFIG", b"GET", b"min-replicas-to-write")])
            if not isinstance(found, list) or len(found) != 2 or found[1] == b"0":
                raise ConfigurationError(
                    "taba reshard",
                    pool.address.text,
                    f"takes masters that write only with a replica: on {name}, set min-replicas-to-write 1 (a failover in the middle of "
                    "a move may lose what no replica has), or give --without-replicas",
                )

    async def _change_map(self, change: Callable[[BucketMap], BucketMap]) -> None:
        """Change the map on all shards, and see that it stays so whatever fails over."""
        for tries_left in reversed(range(MOST_STALLS)):
            try:
                seen = await self._mover.identities()
                await change_map(self._mover.pools, change)
                await self._mover.keep(seen)
                return
            except (StoreUnavailable, Changed):
                if not tries_left:
                    raise
            await deferLater(self._reactor, STALL_SECONDS)

    async def _until_done(self, plan: Planner, finish: Callable[[], Awaitable[None]] | None = None) -> list[Move]:
        moves: dict[int, Move] = {}
        await self._refuse_bare()

        def movings(found: Survey, map: BucketMap, busy: set[int]) -> dict[int, Factory]:
            begun: dict[int, Factory] = {}
            for bucket, (source, token) in found.under_way().items():
                target = target_of(token)
                if bucket not in busy:
                    is_wanted = target in map.holders and target in self._mover.pools
                    begun[bucket] = self._move(bucket, source, target) if is_wanted else partial(undo, bucket, source)
            if begun:
                return begun  # what is under way comes first: no bucket stays sealed for longer than it must
            planned = {move.bucket: move for move in plan(map) if move.bucket not in busy}
            moves.update(planned)
            return {bucket: self._move(*move) for bucket, move in planned.items()}

        try:
            await self._rounds(movings)
            if finish is not None:
                await finish()
        finally:
            await self._mover.stop()
        return list(moves.values())

    def _move(self, bucket: int, source: str, target: str) -> Factory:
        return lambda: move(bucket, source, target, make_token(target, self._mover.next_token()))

    async def _rounds(self, movings: Callable[[Survey, BucketMap, set[int]], Mapping[int, Factory]]) -> None:
        stalls = 0
        stalled_at = self._reactor.seconds()
        owners: tuple[int, ...] = ()
        standing: list[TabaError] = []  # in the way, when we last tried
        outpaced: dict[int, Outpaced] = {}  # whose writers were faster than we may copy
        busy: set[int] = set()  # in the hands of other movers, when we last asked
        failed: Counter[int] = Counter()  # how often each was tried in vain
        while True:
            errors: list[TabaError] = []
            try:
                map = await self._map()
                await self._mover.start()
                seen = await self._mover.identities()
                found = await survey(self._mover.pools, map.buckets)
                if not found.unsettled():  # else a shard may have lost more than that, and a person must know
                    await restore_records(self._mover.pools)
                tasks: dict[int, Factory] = {
                    bucket: partial(forget, bucket, shard) for bucket, shard in found.strays() if bucket not in found.under_way()
                }
                tasks.update({bucket: partial(tidy, bucket, shard) for bucket, shard in found.leavings()})
                tasks.update({bucket: make for bucket, make in movings(found, map, busy).items() if bucket not in outpaced})
                if not tasks and not busy:
                    if outpaced:
                        raise next(iter(outpaced.values()))
                    if self.moved:
                        # what a failover took back meanwhile is found in the next round: here, and nowhere later
                        await change_map(self._mover.pools, lambda map: map)
                        await self._mover.keep(seen)
                    return
                self._total = max(self._total, len(self.moved) + len(tasks))
                before, busy = len(self.moved), set()
                if len(tasks) > GROUP_BUCKETS:  # what was tried in vain has others before it, however many of it there are
                    tasks = dict(sorted(tasks.items(), key=lambda task: failed[task[0]]))
                for bucket, answer in (await self._mover.run(dict(islice(tasks.items(), GROUP_BUCKETS)))).items():
                    failed[bucket] += isinstance(answer, TabaError)
                    if isinstance(answer, Occupied):
                        busy.add(bucket)
                    if isinstance(answer, Outpaced):
                        outpaced[bucket] = answer  # left where it is: the same would become of the next try
                    elif isinstance(answer, TabaError):
                        errors.append(answer)
                    elif isinstance(answer, Exception):
                        raise answer
                    elif answer.how != "nothing":
                        self.moved.append(answer)
                        self._tell()
                if len(self.moved) > before or map.owners != owners:  # by us or by another
                    stalls, owners, stalled_at = 0, map.owners, self._reactor.seconds()
                    continue
            except (StoreUnavailable, Changed) as error:
                errors.append(error)
            standing = errors or standing
            stalls += 1
            patience = FAILOVER_SECONDS if any(isinstance(pool, MasterPool) for pool in self._mover.pools.values()) else 0.0
            if stalls > MOST_STALLS and self._reactor.seconds() - stalled_at >= patience:
                # a failure says more than that another is at work
                failures = [error for error in standing if not isinstance(error, (Occupied, Overtaken))]
                raise next(iter(failures + standing), StoreUnavailable("nothing moves, and nothing says why; taba check may"))
            await deferLater(self._reactor, STALL_SECONDS)

    async def _map(self) -> BucketMap:
        """The newest map; and connections to all of its shards, also to those that another process has just added."""
        self._mover.pools = {**await current_pools(self._atlas), **self._own}
        return await newest_map(list(self._mover.pools.values()))

    def _copied(self, size: int) -> None:
        self._bytes += size
        self._tell()

    def _tell(self) -> None:
        if self._report is not None:
            self._report(Progress(len(self.moved), self._total, self._bytes))


def _plan_all(map: BucketMap) -> Sequence[Move]:
    return plan_even(map, map.holders)


def _undrained(map: BucketMap) -> BucketMap:
    return attrs.evolve(map, epoch=map.epoch + 1, draining=()) if map.draining else map


async def current_pools(atlas: Atlas) -> dict[str, Pool]:
    """`pools_of`, after a look at the newest map: whoever has nothing to do with a bucket does not notice that it moves."""
    told = await atlas.newest_told(LEARN_SECONDS)
    pools = pools_of(atlas)
    await bring_map(pools, told)
    return pools


async def current_shards(atlas: Atlas) -> dict[str, ShardPool]:
    """`current_pools`, also where the shard is a cluster: for those who only look."""
    told = await atlas.newest_told(LEARN_SECONDS)
    pools = {shard.name: atlas.pool_of(shard.name) for shard in atlas.map.shards}
    await bring_map(pools, told)
    return pools


def pools_of(atlas: Atlas) -> dict[str, Pool]:
    """The shards of the newest map that `atlas` knows, by name. Raises ConfigurationError where a cluster does this itself."""
    pools = {shard.name: atlas.pool_of(shard.name) for shard in atlas.map.shards}
    found = {name: pool for name, pool in pools.items() if isinstance(pool, Pool)}
    if len(found) < len(pools):
        raise ConfigurationError("--store", atlas.url, "takes plain or Sentinel shards: a cluster moves its slots itself")
    return found
