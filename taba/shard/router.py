"""The Router: reads and transactions on a bucket, wherever it is.

1. Nothing is believed about a bucket that its owner key, on the very shard, does not confirm: read after the data in
   every read, WATCHed by every transaction.
2. A transaction whose outcome nobody knows is run again from its reads, never sent again (see `transaction`).
3. Every wait has a deadline; what does not end in time is StoreUnavailable, and the caller may come again.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import Any

import attrs
from twisted.internet.defer import Deferred, ensureDeferred

from taba.errors import ConfigurationError, StoreUnavailable
from taba.shard.buckets import (
    STORE_KEY,
    BucketMap,
    MalformedMap,
    Shard,
    decode_owner,
    decode_record,
    owner_key,
)
from taba.shard.cluster import ClusterPool, ShardPool
from taba.shard.connection import REPLY_SECONDS, Command, Connection, Redirected, Reply, raise_for
from taba.shard.gather import gather
from taba.shard.initialise import ASK_SECONDS, learn, settings_problems
from taba.shard.lock import Lock
from taba.shard.operations import Operations, Text
from taba.shard.pool import CHECKOUT_SECONDS, POOL_CONNECTIONS, Pool
from taba.shard.sentinel import MasterPool, shared_sentinels
from taba.shard.survey import newer_map
from taba.shard.transaction import (
    LAST_PAUSE_SECONDS,
    SEALED_PAUSE_SECONDS,
    Attempt,
    BucketBusy,
    Deadline,
    More,
    NotHere,
    Update,
    Writes,
    keys_read,
)
from taba.shard.url import CLUSTER, SENTINEL, Address, StoreURL, parse_store

__all__ = ["BucketBusy", "Command", "More", "Reply", "Router", "ShardReport", "Writes"]

READ_SECONDS = 8.0  # a read, with all its waits; a person waits for the answer
TRANSACT_SECONDS = 20.0  # a transaction, with all its tries; an Agent waits for the verdict for longer
LAGGING_SECONDS = 30.0  # for which replicas that did not keep up are a problem, if nothing is heard of them
LEARN_SECONDS = 5.0  # one look at what the shards say of themselves


@attrs.frozen
class ShardReport:
    """One shard, for `/v1/shards`; keys, bytes and ops (per second) are None while it does not answer."""

    name: str
    url: str
    buckets: int
    keys: int | None
    bytes: int | None
    ops: int | None


class Router(Operations):
    """A store, by bucket; what it offers by key is in `Operations`. `start` it, `await connect()`, and `await close()` in the end.

    `store` must have addresses: an embedded one is started first, and its own `url` given. `buckets`: what the store
    must have, or is made with; None takes what it has, or the default. `wait_replicas`: a transaction is done once so many
    replicas have it, else NotReplicated. All methods are for the reactor's thread.
    `counts` has: conflicts, leases, busy, unknown (outcomes of EXEC that nobody knew), retries; `uses`: reads and
    transactions, by bucket.
    """

    def __init__(
        self,
        store: StoreURL,
        buckets: int | None = None,
        reactor: Any = None,
        random: Random | None = None,
        option: str = "--store",
        connections: int = POOL_CONNECTIONS,
        wait_replicas: int = 0,
    ):
        if not store.addresses:
            raise ValueError("an embedded store must run first; take the URL of its EmbeddedStore")
        if reactor is None:
            from twisted.internet import reactor
        super().__init__(reactor, os.urandom(8).hex())
        self.url = store.text
        self.counts: Counter[str] = Counter()
        self.uses: Counter[int] = Counter()
        self.wait_replicas = wait_replicas
        self._lagging: dict[str, tuple[float, str]] = {}  # server → when its replicas were waited for in vain, and what to say of it
        self._problems: list[str] = []
        self._wanted_buckets = buckets
        self._option = option
        self._random = random or Random()
        self._connections = connections
        self._leases = 0
        self._account = store.addresses[0]
        self._sentinels_of = shared_sentinels(reactor, self._random)
        self._pools = [self._new_pool(address) for address in store.addresses]
        self._by_name: dict[str, ShardPool] = {}
        self._map: BucketMap | None = None
        self._is_stale = True
        self._is_closed = False
        self._good_owners: dict[int, tuple[str, bytes]] = {}
        self._forwarded: dict[int, dict[str, tuple[int, str]]] = {}  # bucket → which shard said, of what epoch, where it went
        self._learning: list[Deferred[None]] | None = None

    # --- the store as a whole ---

    @property
    def is_ready(self) -> bool:
        """The map is known and every shard is connected."""
        return self._map is not None and not self._is_stale and all(pool.is_connected for pool in self._by_name.values())

    @property
    def problems(self) -> list[str]:
        """What is wrong with the store, in sentences: shards that are away now, settings that may lose events, strangers."""
        away = [f"shard {name} is away: {pool.last_error}" for name, pool in self._by_name.items() if not pool.is_connected]
        now = self._reactor.seconds()
        lagging = [problem for when, problem in self._lagging.values() if now - when < LAGGING_SECONDS]  # it may be no primary any more
        return away + lagging + self._problems

    @property
    def map(self) -> BucketMap:
        """The map as last learned. Raises StoreUnavailable before `connect` has ended."""
        if self._map is None:
            raise StoreUnavailable(f"{self.url}: not reached yet: {self._pools[0].last_error}")
        return self._map

    @property
    def buckets(self) -> int:
        return self.map.buckets

    @property
    def store_id(self) -> str:
        return self.map.store

    def start(self) -> None:
        """Begin to connect, and go on trying for ever."""
        for pool in self._pools:
            pool.start()

    async def connect(self) -> None:
        """Wait until the store was reached and its map is known, however long that takes.

        Raises ConfigurationError when the store does not fit: another number of buckets, shards of several stores,
        an eviction policy; StoreUnavailable when the Router is closed meanwhile.
        """
        self.start()
        while True:
            try:
                await self._learn(LEARN_SECONDS)
                return
            except StoreUnavailable as error:
                if self._is_closed:
                    raise
                self._problems = [f"the store is away: {error}"]
            await self._pauses.wait(LAST_PAUSE_SECONDS * (0.5 + self._random.random()))

    async def close(self) -> None:
        """Close all connections. Whoever still waits gets StoreUnavailable."""
        self._is_closed = True
        self._pauses.close()
        for pool in {id(pool): pool for pool in [*self._pools, *self._by_name.values()]}.values():
            await pool.close()

    def describe(self) -> dict[str, Any]:
        """The `store` of `/v1/status`."""
        known = self._map
        return {"url": self.url, "id": known.store if known else None, "buckets": known.buckets if known else None}

    async def shards(self) -> list[ShardReport]:
        """What each shard holds and does now; of a cluster, what each of its primaries does."""
        deadline = Deadline(self._reactor, self._random, READ_SECONDS, self._pauses)
        await self._refresh(deadline)  # whoever has nothing to do here does not notice that buckets move
        map = await self._current_map(deadline)
        held = Counter((map.shard_of(bucket), self._server_of(map, bucket)) for bucket in range(map.buckets))
        servers = [(shard.name, server) for shard in map.shards for server in self._pool_of(shard.name).servers]
        answers = await gather([server.execute([(b"INFO",)], deadline.left) for _, server in servers])
        reports = []
        for (name, server), answer in zip(servers, answers, strict=True):
            keys, size, ops = _figures(answer[0]) if isinstance(answer, list) else (None, None, None)
            shown = name if self._pool_of(name) is server else f"{name}/{server.address.host}:{server.address.port}"
            reports.append(ShardReport(shown, server.address.text, held[name, server], keys, size, ops))
        return reports

    # --- reading ---

    async def read(self, bucket: int, reads: Sequence[Command]) -> list[Any]:
        """The replies to `reads`, keys of `bucket`, in order; one round trip.

        Raises StoreUnavailable when they cannot be had in time, TransactionRefused when the store refuses one,
        ValueError for what is no read of this bucket.
        """
        return (await self.read_many({bucket: reads}))[bucket]

    async def read_many(self, reads: Mapping[int, Sequence[Command]]) -> dict[int, list[Any]]:
        """`read` of many buckets: bucket → replies; one round trip per shard, all shards at once."""
        for bucket, commands in reads.items():
            keys_read(bucket, commands)
        deadline = Deadline(self._reactor, self._random, READ_SECONDS, self._pauses)
        replies: dict[int, list[Any]] = {}
        left = dict(reads)
        while left:
            error: Exception | None = None
            by_server: dict[Pool | None, list[int]] = {}
            map = await self._current_map(deadline)
            for bucket in left:
                if bucket >= map.buckets:
                    raise ValueError(f"bucket {bucket} of {map.buckets}")
                by_server.setdefault(self._server_of(map, bucket), []).append(bucket)
            is_sealed = True
            if None in by_server:
                error, is_sealed = StoreUnavailable(self._where_of(map, by_server.pop(None)[0])), False
            answers = await gather(
                [
                    self._read_server(server, map, {bucket: left[bucket] for bucket in here}, deadline)
                    for server, here in by_server.items()
                    if server is not None
                ]
            )
            for answer in answers:
                if isinstance(answer, Exception):
                    if not isinstance(answer, StoreUnavailable):
                        raise answer
                    error, is_sealed = answer, False
                    continue
                for bucket, outcome in answer.items():
                    if isinstance(outcome, NotHere):
                        error, is_sealed = error or outcome, is_sealed and outcome.is_sealed
                    else:
                        replies[bucket] = outcome
                        del left[bucket]
            if error is not None and left:
                self.counts["retries"] += 1
                await deadline.pause(error, SEALED_PAUSE_SECONDS if is_sealed else None)
                # the owner keys said that the map is old, or a shard does not answer: the others may know a newer map
                if deadline.is_time_to_look(is_sealed):
                    await self._refresh(deadline)
                for answer in answers:
                    if isinstance(answer, dict):
                        self._believe(map, answer)
        self.uses.update(reads.keys())
        return {bucket: replies[bucket] for bucket in reads}

    async def _read_server(
        self, server: Pool, map: BucketMap, reads: Mapping[int, Sequence[Command]], deadline: Deadline
    ) -> dict[int, list[Any] | NotHere]:
        commands: list[Command] = []
        for bucket, own in reads.items():
            commands += own
            commands.append((b"GET", owner_key(bucket)))  # after the data: what was read was read while it was open here
        replies = await server.execute(commands, min(deadline.left, REPLY_SECONDS), min(deadline.left, CHECKOUT_SECONDS))
        outcomes: dict[int, list[Any] | NotHere] = {}
        start = 0
        for bucket, own in reads.items():
            end = start + len(own)
            try:
                self._check_owner(bucket, map.shard_of(bucket), replies[end])
                outcomes[bucket] = replies[start:end]
                for reply in replies[start:end]:
                    if isinstance(reply, Exception):
                        raise_for(reply, server.address.text)
            except NotHere as error:
                outcomes[bucket] = error
            except Redirected as error:
                outcomes[bucket] = NotHere(bucket, error.is_settling, str(error), error.redirection)
            start = end + 1
        return outcomes

    # --- transactions ---

    async def transact(self, bucket: int, reads: Sequence[Command], update: Update) -> Any:
        """Read, decide, write, as if alone: what `update` returned as `Writes.result`, once its commands are in the store.

        `update` gets the replies to `reads` and returns Writes, More, or an awaitable of one; it may be called several
        times, each time with fresh replies, and must tell from them when its writes were made before. All keys are keys
        of `bucket`. Without commands it still makes sure that what was read held at one moment.

        Raises BucketBusy when another holds the bucket's lease, StoreUnavailable when the store is away or time is up
        (then the writes may have been made), TransactionRefused when the store refuses a command, and whatever `update` raises.
        """
        keys = keys_read(bucket, reads)
        attempt = Attempt(self, bucket, keys, reads, update, Deadline(self._reactor, self._random, TRANSACT_SECONDS, self._pauses))
        return await attempt.run()

    def lock(self, name: Text, ttl: float, wait: float = 0.0) -> Lock:
        """The lock `name`, to be held for at most `ttl` seconds at a time; another holder is waited for up to `wait` seconds."""
        return Lock(self, name, ttl, wait, self._reactor, self._random)

    # --- the map ---

    def _new_pool(self, address: Address) -> ShardPool:
        if address.topology == CLUSTER:
            return ClusterPool(self._reactor, address, self._new_node, self._random)
        if address.topology == SENTINEL:
            sentinels = self._sentinels_of(address)
            return MasterPool(self._reactor, address, sentinels, self._greet, self._connections, self._random)
        return Pool(self._reactor, address, self._greet, self._connections, self._random)

    def _new_node(self, address: Address) -> Pool:
        # nothing of a store as a whole can be asked of one node
        return Pool(self._reactor, address, None, self._connections, self._random)

    def _pool_of(self, name: str) -> ShardPool:
        pool = self._by_name.get(name)
        if pool is None:
            raise StoreUnavailable(f"shard {name} is not known")
        return pool

    def _server_of(self, map: BucketMap, bucket: int) -> Pool | None:
        """The server that has `bucket`, as far as we know; None where nobody is known to."""
        try:
            return self._pool_of(map.shard_of(bucket)).holding(bucket)
        except StoreUnavailable:
            return None

    def _where_of(self, map: BucketMap, bucket: int) -> str:
        return f"bucket {bucket}: no server of shard {map.shard_of(bucket)} is known to have it"

    def _believe(self, map: BucketMap, outcomes: Mapping[int, list[Any] | NotHere]) -> None:
        """What servers said about where these buckets are, which may be newer than what others have heard."""
        for bucket, outcome in outcomes.items():
            if isinstance(outcome, NotHere) and outcome.redirection:
                self._pool_of(map.shard_of(bucket)).redirected(bucket, outcome.redirection)

    async def _greet(self, connection: Connection) -> None:
        # another store, or none, behind a known address: whoever was about to use it must look again
        replies = await connection.execute([(b"GET", STORE_KEY)])
        try:
            if isinstance(replies[0], Exception):
                raise_for(replies[0], connection.where)
        except Redirected:
            raise StoreUnavailable(f"{connection.where}: a node of a cluster, which takes redis+cluster://…") from None
        if self._map is None:
            return
        content = replies[0]
        try:
            known = decode_record(content).store if isinstance(content, bytes) else None
        except MalformedMap:
            known = None
        if known != self._map.store:
            self._is_stale = True

    async def _current_map(self, deadline: Deadline) -> BucketMap:
        while self._map is None or self._is_stale:
            try:
                await self._learn(deadline.left)
            except StoreUnavailable as error:
                await deadline.pause(error)
        return self._map

    async def _refresh(self, deadline: Deadline) -> None:
        try:
            await self._learn(min(deadline.left, LEARN_SECONDS))
        except StoreUnavailable:
            self.counts["retries"] += 1  # the old map stands; the next try will tell

    async def _learn(self, seconds: float) -> None:
        """Ask the shards; many callers at once share one look."""
        if self._learning is not None:
            mine: Deferred[None] = Deferred(lambda _: None)
            self._learning.append(mine)
            await mine
            return
        waiting: list[Deferred[None]] = []
        self._learning = waiting
        error: BaseException | None = None
        try:
            await self._learn_alone(min(seconds, LEARN_SECONDS))
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._learning = None
            for one in waiting:
                if one.called:
                    continue
                if error is None:
                    one.callback(None)
                else:
                    one.errback(error if isinstance(error, (StoreUnavailable, ConfigurationError)) else StoreUnavailable(str(error)))

    async def _learn_alone(self, seconds: float) -> None:
        for refreshed in await gather([pool.refresh(seconds) for pool in self._pools]):
            # one that does not tell holds up nobody: what is known of it stands
            if isinstance(refreshed, Exception) and not isinstance(refreshed, StoreUnavailable):
                raise refreshed
        learned = await learn(self._pools, self._wanted_buckets, lambda: os.urandom(16).hex(), seconds, self._option)
        there: dict[str, ShardPool] = {name: self._pools[number] for number, name in learned.names.items()}
        map = learned.map
        if self._map is not None and self._map.store == map.store and self._map.epoch > map.epoch:
            map = self._map
        before = self._by_name
        while True:
            by_name = {shard.name: there.get(shard.name) or self._mapped_pool(shard) for shard in map.shards}
            self._by_name = {**self._by_name, **by_name}
            # a shard that was drained stays behind in the past: those that it names may know better
            newer = await newer_map([pool for pool in by_name.values() if pool not in self._pools], map, min(seconds, ASK_SECONDS))
            if newer is map:
                break
            map = newer
        problems = list(learned.problems)
        servers = [(server, bool(pool.address.topology)) for pool in by_name.values() for server in pool.servers]
        settings = await gather([settings_problems(server, seconds, self._option, fails_over) for server, fails_over in servers])
        for answer in settings:
            if isinstance(answer, StoreUnavailable):
                continue  # `problems` tells for as long as it is true
            elif isinstance(answer, Exception):
                raise answer
            else:
                problems += answer
        passed, self._by_name = {**before, **self._by_name}, by_name
        self._dismiss(passed.values())
        self._map = self._corrected(map)
        self._good_owners.clear()
        self._problems = problems
        self._is_stale = False

    def _corrected(self, map: BucketMap) -> BucketMap:
        """`map`, where a shard that it names for a bucket has said where that went: the shard knows better."""
        places = {shard.name: place for place, shard in enumerate(map.shards)}
        owners = list(map.owners)
        for bucket, hops in list(self._forwarded.items()):
            if bucket >= map.buckets or map.shard_of(bucket) not in hops:
                del self._forwarded[bucket]
                continue
            epoch, name = 0, map.shard_of(bucket)
            while name in hops and hops[name][0] > epoch:
                epoch, name = hops[name]
            if name in places:
                owners[bucket] = places[name]
        return attrs.evolve(map, owners=tuple(owners)) if self._forwarded else map

    def _mapped_pool(self, shard: Shard) -> ShardPool:
        # a shard that the map names and --store does not: added later, or away; the user is the same for all shards
        known = self._by_name.get(shard.name)
        if known is not None and (known in self._pools or known.address.text == shard.url):
            return known
        for pool in self._pools:
            if pool.address.text == shard.url:
                return pool
        pool = self._new_pool(parse_store(shard.url).addresses[0].with_account_of(self._account))
        pool.start()
        return pool

    def _dismiss(self, pools: Iterable[ShardPool]) -> None:
        """Close those of `pools` that neither --store nor the map names any more."""
        wanted = {id(pool) for pool in [*self._pools, *self._by_name.values()]}
        for pool in pools:
            if id(pool) not in wanted:
                ensureDeferred(pool.close())

    def _check_owner(self, bucket: int, name: str, reply: Reply) -> None:
        """Raise NotHere unless `reply`, the owner key, says that the shard `name` has the bucket open."""
        if isinstance(reply, Exception):
            raise_for(reply, f"bucket {bucket}")
        if (name, reply) == self._good_owners.get(bucket):
            return
        if not isinstance(reply, bytes):
            raise NotHere(bucket, False, f"not on shard {name}")
        try:
            owner = decode_owner(reply)
        except MalformedMap as error:
            raise NotHere(bucket, False, str(error)) from None
        if owner.state == "moved":
            self._forwarded.setdefault(bucket, {})[name] = (owner.epoch, owner.name)
        if owner.state != "open" or owner.name != name:
            raise NotHere(bucket, owner.state == "sealed", f"{owner.state} ({owner.name}) on shard {name}")
        self._good_owners[bucket] = (name, reply)


def _figures(reply: Reply) -> tuple[int | None, int | None, int | None]:
    """(keys, bytes, operations per second) of an INFO reply."""
    if not isinstance(reply, bytes):
        return None, None, None
    lines = dict(line.partition(":")[::2] for line in reply.decode(errors="replace").splitlines() if ":" in line)
    keys = 0
    for name, value in lines.items():
        if name.startswith("db") and value.startswith("keys="):
            keys += int(value[5:].partition(",")[0])
    used, ops = lines.get("used_memory", ""), lines.get("instantaneous_ops_per_sec", "")
    return keys, int(used) if used.isdigit() else None, int(ops) if ops.isdigit() else None
