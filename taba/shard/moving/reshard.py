"""Re-sharding a store that is in use: shards are added, drained or evened out, and what others left half-done is ended.

Each round looks at all owner keys first, so whatever happened before (a mover that died, another that is at work, a
store that was away) a repeated call goes on from there; when nothing is left to do it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from twisted.internet.task import deferLater

from taba.errors import ConfigurationError, StoreUnavailable, TabaError
from taba.shard.atlas import LEARN_SECONDS, Atlas
from taba.shard.buckets import BucketMap, lots, make_token, target_of, with_shard, without_shard
from taba.shard.maps import add_shard, change_map, newest_map
from taba.shard.moving.move import Moved, Moving, forget, move, undo
from taba.shard.moving.mover import GROUP_BUCKETS, Mover, Watcher, mover_of
from taba.shard.moving.plan import Move, plan_even, plan_weighed
from taba.shard.moving.steps import Occupied, Overtaken
from taba.shard.moving.survey import Survey, survey
from taba.shard.servers.gather import gather
from taba.shard.servers.pool import Pool
from taba.shard.servers.url import Address

MOST_STALLS = 12  # rounds in which nothing was achieved; then what stands in the way is said
STALL_SECONDS = 1.0  # between such rounds: longer, together, than a mover that died is waited for
WEIGHED_KEYS = 1000  # whose size is asked at a time

Planner = Callable[[BucketMap], Sequence[Move]]


class Progress(NamedTuple):
    """How far a re-sharding is: buckets that are done and that were planned, and bytes copied."""

    done: int
    total: int
    bytes: int


class Reshard:
    """Re-shards the store behind `atlas`, which is connected. `rate`: bytes per second; `report` is called as it goes on."""

    def __init__(
        self,
        atlas: Atlas,
        reactor: Any,
        rate: float | None = None,
        report: Callable[[Progress], None] | None = None,
        watch: Watcher | None = None,
    ):
        self.moved: list[Moved] = []
        self._atlas, self._reactor, self._report = atlas, reactor, report
        self._own: dict[str, Pool] = {}
        self._total = 0
        self._bytes = 0
        self._mover = Mover(pools_of(atlas), reactor, rate, watch, self._copied)

    async def add(self, addresses: Sequence[Address], is_dry: bool = False) -> list[Move]:
        """Make the servers at `addresses` shards, and even out the buckets; the moves that this took, or would take.

        Raises ConfigurationError for a server that cannot be a shard, StoreUnavailable when something stays away.
        """
        map = await self._map()
        for address in addresses:
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
        others = [shard.name for shard in map.shards if shard.name != name]
        if len(others) == len(map.shards):
            raise ConfigurationError("--drain", name, f"takes one of {', '.join(others)}")
        if not others:
            raise ConfigurationError("--drain", name, "takes a shard that is not the only one")

        def plan(map: BucketMap) -> Sequence[Move]:
            holders = [shard.name for shard in map.shards if shard.name != name]
            return [move for move in plan_even(map, holders) if move.source == name]

        if is_dry:
            return list(plan(map))
        moves = await self._until_done(plan, avoid=name)
        await change_map(self._mover.pools, lambda map: without_shard(map, name))
        return moves

    async def rebalance(self, weights: Mapping[int, float] | None = None, is_dry: bool = False) -> list[Move]:
        """Even out the shards: by the number of their buckets, or by what `weights` says that each bucket weighs."""
        plan: Planner = _plan_all
        map = await self._map()
        if weights is not None:
            planned = plan_weighed(map, [shard.name for shard in map.shards], weights)

            def plan(map: BucketMap) -> Sequence[Move]:
                # planned once: weights change while buckets move, and a plan that follows them would never end
                return [move for move in planned if map.shard_of(move.bucket) == move.source]

        return list(plan(map)) if is_dry else await self._until_done(plan)

    async def abort(self) -> list[Moved]:
        """Undo the moves that are under way and whose movers are gone; finish those whose target is open."""
        await self._mover.start()
        try:
            await self._rounds(
                lambda found, _, busy: {
                    bucket: undo(bucket, source) for bucket, (source, _) in found.under_way().items() if bucket not in busy
                }
            )
        finally:
            await self._mover.stop()
        return self.moved

    async def give_up(self) -> None:
        """Undo what this very object has under way, after its work was cancelled; finish where a target is open already."""
        map = await self._map()
        found = (await survey(self._mover.pools, map.buckets)).under_way()
        own = {bucket: undo(bucket, source) for bucket, (source, token) in found.items() if mover_of(token) == self._mover.id}
        await self._mover.run(own)

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

    async def _until_done(self, plan: Planner, avoid: str = "") -> list[Move]:
        moves: dict[int, Move] = {}

        def movings(found: Survey, map: BucketMap, busy: set[int]) -> dict[int, Moving]:
            begun: dict[int, Moving] = {}
            for bucket, (source, token) in found.under_way().items():
                target = target_of(token)
                if bucket not in busy:
                    is_wanted = target != avoid and target in self._mover.pools
                    begun[bucket] = self._move(bucket, source, target) if is_wanted else undo(bucket, source)
            if begun:
                return begun  # what is under way comes first: no bucket stays sealed for longer than it must
            planned = {move.bucket: move for move in plan(map) if move.bucket not in busy}
            moves.update(planned)
            return {bucket: self._move(*move) for bucket, move in planned.items()}

        await self._mover.start()
        try:
            await self._rounds(movings)
        finally:
            await self._mover.stop()
        return list(moves.values())

    def _move(self, bucket: int, source: str, target: str) -> Moving:
        return move(bucket, source, target, make_token(target, self._mover.next_token()))

    async def _rounds(self, movings: Callable[[Survey, BucketMap, set[int]], Mapping[int, Moving]]) -> None:
        stalls, epoch = 0, 0
        standing: list[TabaError] = []  # in the way, when we last tried
        busy: set[int] = set()  # in the hands of other movers, when we last asked
        while True:
            errors: list[TabaError] = []
            try:
                map = await self._map()
                found = await survey(self._mover.pools, map.buckets)
                tasks = {bucket: forget(bucket, shard) for bucket, shard in found.strays() if bucket not in found.under_way()}
                tasks.update(movings(found, map, busy))
                if not tasks and not busy:
                    return
                self._total = max(self._total, len(self.moved) + len(tasks))
                before, busy = len(self.moved), set()
                for bucket, answer in (await self._mover.run(dict(islice(tasks.items(), GROUP_BUCKETS)))).items():
                    if isinstance(answer, Occupied):
                        busy.add(bucket)
                    if isinstance(answer, TabaError):
                        errors.append(answer)
                    elif isinstance(answer, Exception):
                        raise answer
                    elif answer.how != "nothing":
                        self.moved.append(answer)
                        self._tell()
                if len(self.moved) > before or map.epoch > epoch:  # by us or by another
                    stalls, epoch = 0, map.epoch
                    continue
            except StoreUnavailable as error:
                errors.append(error)
            standing = errors or standing
            stalls += 1
            if stalls > MOST_STALLS:
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
    return plan_even(map, [shard.name for shard in map.shards])


async def current_pools(atlas: Atlas) -> dict[str, Pool]:
    """`pools_of`, after a look at the newest map: whoever has nothing to do with a bucket does not notice that it moves."""
    await atlas.learn(LEARN_SECONDS)
    return pools_of(atlas)


def pools_of(atlas: Atlas) -> dict[str, Pool]:
    """The shards of the newest map that `atlas` knows, by name. Raises ConfigurationError where a cluster does this itself."""
    pools = {shard.name: atlas.pool_of(shard.name) for shard in atlas.map.shards}
    found = {name: pool for name, pool in pools.items() if isinstance(pool, Pool)}
    if len(found) < len(pools):
        raise ConfigurationError("--store", atlas.url, "takes plain or Sentinel shards: a cluster moves its slots itself")
    return found
