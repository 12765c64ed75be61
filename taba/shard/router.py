"""The Router: reads (`reading`) and transactions on a bucket, wherever it is.

1. Nothing is believed about a bucket that its owner key, on the very shard, does not confirm: read after the data in
   every read, WATCHed by every transaction.
2. A transaction whose outcome nobody knows is run again from its reads, never sent again (see `transaction`).
3. Every wait has a deadline; what does not end in time is StoreUnavailable, and the caller may come again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, cast

from taba.errors import StoreUnavailable
from taba.shard import report
from taba.shard.atlas import Atlas, NewPool
from taba.shard.buckets import BucketMap, prefix_of, target_of
from taba.shard.initialise import ASK_SECONDS
from taba.shard.joint import MAX_JOINED, Joint, UpdateOfMany, parts_of
from taba.shard.keys.at_once import OLD, OTHER, AtOnce, command, in_full
from taba.shard.keys.places import Text
from taba.shard.keys.writing import Write
from taba.shard.lock import Lock
from taba.shard.moving.mending import Mender
from taba.shard.moving.survey import survey
from taba.shard.reading import READ_SECONDS, Reads
from taba.shard.report import ShardReport
from taba.shard.servers.asking import ASKED_AT_ONCE, Joiner
from taba.shard.servers.connection import REPLY_SECONDS, Command, Connection, ConnectionGone, Reply, raise_for
from taba.shard.servers.gather import gather
from taba.shard.servers.pool import CHECKOUT_SECONDS, POOL_CONNECTIONS, Pool
from taba.shard.servers.url import StoreURL
from taba.shard.together import MOST_BUCKETS, SharedTransaction, work_of
from taba.shard.transaction import (
    TRANSACT_SECONDS,
    Attempt,
    BucketBusy,
    More,
    NotReplicated,
    Update,
    Who,
    Writes,
    keys_read,
    wait_for_replicas,
)

__all__ = ["BucketBusy", "Command", "More", "Reply", "Router", "ShardReport", "Writes"]

SCRIPTS_AGAIN_SECONDS = 60.0  # until a server that refused a script is asked again: its user's rights may be corrected, or its version


class Router(Reads):
    """A store, by bucket; what it offers by key is in `Operations`, its reads in `Reads`.

    `start` it, `await connect()`, and `await close()` in the end.

    `store` must have addresses: an embedded one is started first, and its own `url` given. `buckets`: what the store
    must have, or is made with; None takes what it has, or the default. `wait_replicas`: a transaction is done once so many
    replicas have it, else NotReplicated. `away_seconds`: how long a read waits for a server that does not answer at all, or takes
    no connection; it may fail over meanwhile, or nobody may want to wait for it. `pinned`: the id of the store that it must be,
    or follow, and `pinned_at` where that was. `may_make`: where nothing is pinned, empty servers become a new store.
    All methods are for the reactor's thread.
    `counts` has: conflicts, leases, busy, unknown (outcomes of EXEC that nobody knew), retries, parted
    (what did not go together with others), not_at_once (writes by key that took a transaction after all), scripts_refused;
    `uses`: reads and transactions, by bucket.
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
        new_pool: NewPool | None = None,
        away_seconds: float = READ_SECONDS,
        pinned: str | None = None,
        pinned_at: str = "",
        may_make: bool = True,
    ):
        if not store.addresses:
            raise ValueError("an embedded store must run first; take the URL of its EmbeddedStore")
        if reactor is None:
            from twisted.internet import reactor
        atlas = Atlas(store, buckets, reactor, random or Random(), option, connections, new_pool, pinned, pinned_at, may_make)
        super().__init__(atlas, reactor, os.urandom(8).hex(), away_seconds)
        self.url = store.text
        self._who = Who(self._token, wait_replicas)
        self._mender = Mender(atlas)

    # --- the store as a whole ---

    @property
    def is_ready(self) -> bool:
        """The map is known and every shard is connected."""
        return self.atlas.is_ready

    @property
    def problems(self) -> list[str]:
        """What is wrong with the store, in sentences: shards that are away now, settings that may lose events, strangers."""
        return self.atlas.problems + self._mender.problems

    @property
    def map(self) -> BucketMap:
        """The map as last learned. Raises StoreUnavailable before `connect` has ended."""
        return self.atlas.map

    @property
    def store_id(self) -> str:
        return self.map.store

    def start(self) -> None:
        """Begin to connect, and go on trying for ever."""
        self.atlas.start()

    async def connect(self) -> None:
        """Wait until the store was reached and its map is known, however long that takes.

        Raises ConfigurationError when the store does not fit: another number of buckets, shards of several stores,
        an eviction policy; StoreUnavailable when the Router is closed meanwhile.
        """
        await self.atlas.connect()

    async def close(self) -> None:
        """Close all connections. Whoever still waits gets StoreUnavailable."""
        self._mender.stop()
        await self.atlas.close()

    def describe(self) -> dict[str, Any]:
        """The `store` of `/v1/status`."""
        known = self.atlas.known
        id, buckets = (known.store, known.buckets) if known else (None, None)
        version = known.version if known else None
        return {"url": self.url, "id": id, "buckets": buckets, "pinned": self.atlas.pinned, "version": version}

    async def look(self) -> None:
        """Look at the map and at all servers' settings again: whoever has nothing to do there does not notice what a person put right."""
        await self.atlas.refresh(self.atlas.deadline(READ_SECONDS))

    async def shards(self) -> list[ShardReport]:
        """What each shard holds and does now; of a cluster, what each of its primaries does."""
        return await report.shards(self.atlas, self.atlas.deadline(READ_SECONDS))

    async def moves(self) -> dict[int, tuple[str, str]]:
        """bucket → (the shard that it leaves, the one that it goes to), of those that are on their way now. Raises StoreUnavailable."""
        map = await self.atlas.current_map(self.atlas.deadline(READ_SECONDS))
        found = await survey({shard.name: self.atlas.pool_of(shard.name) for shard in map.shards}, map.buckets)
        return {bucket: (shard, target_of(token)) for bucket, (shard, token) in found.under_way().items()}

    async def time(self, bucket: int) -> float:
        """Unix time as the server says that has `bucket`. Raises StoreUnavailable."""
        deadline = self.atlas.deadline(READ_SECONDS)
        map = await self.atlas.current_map(deadline)
        server = self.atlas.pool_of(map.shard_of(bucket)).holding(bucket)
        [reply] = await server.execute([(b"TIME",)], deadline.left)
        if isinstance(reply, Exception):
            raise_for(reply, server.address.text)
        seconds, microseconds = cast(list[bytes], reply)
        return int(seconds) + int(microseconds) / 1_000_000

    # --- a write by key, at once ---

    async def _run_here(
        self, bucket: int, write: Write, how: AtOnce, before: int, number: int, began: float
    ) -> tuple[int, bytes, NotReplicated | None] | None:
        hand = self.atlas.hands.get(bucket) or self.atlas.at_hand(bucket)
        if hand is None or hand.server.scripts_from > began or hand.is_moving:
            return None  # a transaction notes what it writes where a bucket is being copied
        server = hand.server
        writing = server.writing
        is_waited_for = self._who.wait_replicas > 0  # over the connection that wrote: so none goes with others
        begins = self._begins.get(bucket) or self._beginning(bucket)
        asked = command(begins, write.key, hand.owner, before, number, write.after, write.name, how)
        failure = None
        try:
            connection = None if writing.under_way >= ASKED_AT_ONCE and not is_waited_for else server.idle()
            if connection is None and writing.under_way and not is_waited_for:
                size = sum(map(len, how.words))
                answer = await writing.join(Joiner(asked, None, True, began, REPLY_SECONDS, REPLY_SECONDS, size))
                if answer is None:
                    return None  # it was not sent
                reply = answer[0]
            else:
                if connection is None:
                    try:
                        connection = await server.take(CHECKOUT_SECONDS)
                    except StoreUnavailable:
                        return None  # nothing was sent; the transaction says why
                    if self.atlas.at_hand(bucket) != hand:
                        server.release(connection)
                        return None
                writing.under_way += 1
                try:
                    [reply] = await connection.execute((asked,), REPLY_SECONDS)
                    if is_waited_for and isinstance(reply, Exception) and str(reply).startswith("NOSCRIPT"):
                        [reply] = await connection.execute([in_full(asked)], REPLY_SECONDS)
                    if is_waited_for and isinstance(reply, list):
                        failure = await self._missing_replicas(connection, began)
                finally:
                    server.release(connection)
                    writing.go_on()
            if isinstance(reply, Exception) and str(reply).startswith("NOSCRIPT"):
                [reply] = await server.execute([in_full(asked)], max(began + REPLY_SECONDS - self._reactor.seconds(), 0.0))
        except StoreUnavailable as error:
            self.counts["unknown"] += isinstance(error, ConnectionGone)
            return None
        if not isinstance(reply, list):
            if reply != OTHER:
                self._refused(server, reply)
            return None
        self.uses[bucket] += 1
        return reply[0], reply[1], failure

    async def _missing_replicas(self, connection: Connection, began: float) -> NotReplicated | None:
        """Why what was written over `connection` is not safe yet."""
        try:
            deadline = self.atlas.deadline(began + REPLY_SECONDS - self._reactor.seconds())
            await wait_for_replicas(self.atlas, self._who, connection, deadline)
        except NotReplicated as error:
            return error
        return None

    def _refused(self, server: Pool, reply: Reply) -> None:
        """The script did nothing on `server`: where that will be so with others too, none goes there for a while."""
        word = str(reply).partition(" ")[0]
        if reply == OLD or word in ("NOPERM", "NOSCRIPT") or "unknown command" in str(reply):
            self.counts["scripts_refused"] += 1
            server.scripts_from = self._reactor.seconds() + SCRIPTS_AGAIN_SECONDS

    # --- transactions ---

    def place_of(self, bucket: int) -> str:
        """The server that has `bucket`, as far as we know, by its address; "" where nobody is known to."""
        hand = self.atlas.hands.get(bucket) or self.atlas.at_hand(bucket)
        if hand is not None:
            return hand.server.text
        known = self.atlas.known
        server = None if known is None or bucket >= known.buckets else self.atlas.server_of(known, bucket)
        return "" if server is None else server.address.text

    def reaches(self, bucket: int) -> bool:
        """Whether the store is known, and connected where `bucket` is."""
        known = self.atlas.known
        server = None if known is None or bucket >= known.buckets or not self.atlas.is_certain else self.atlas.server_of(known, bucket)
        return server is not None and server.is_connected

    async def probe(self, bucket: int, seconds: float) -> None:
        """Return where the server that has `bucket` takes writes; raises StoreUnavailable where it does not within `seconds`."""
        try:
            await self.transact(bucket, [], lambda _: Writes([(b"SET", prefix_of(bucket) + b"probe", b"1")]), seconds)
        except StoreUnavailable:
            # all its seconds may have gone in waiting for one that is dead: where a shard is many servers, the next probe asks whoever
            # has the bucket by then
            try:
                await self.atlas.pool_of(self.atlas.map.shard_of(bucket)).refresh(ASK_SECONDS)
            except StoreUnavailable:
                self.counts["retries"] += 1  # what is known stands
            raise

    async def transact(self, bucket: int, reads: Sequence[Command], update: Update, seconds: float | None = None) -> Any:
        """Read, decide, write, as if alone: what `update` returned as `Writes.result`, once its commands are in the store.

        `update` gets the replies to `reads` and returns Writes, More, or an awaitable of one; it may be called several
        times, each time with fresh replies, and must tell from them when its writes were made before. All keys are keys
        of `bucket`. Without commands it still makes sure that what was read held at one moment. `seconds`: for all
        of it, but what `update` has us wait for, which must bound itself; 20 by default.

        Raises BucketBusy when another holds the bucket's lease, StoreUnavailable when the store is away or time is up
        (then the writes may have been made), TransactionRefused when the store refuses a command, and whatever `update` raises.
        """
        keys = keys_read(bucket, reads)
        deadline = self.atlas.deadline(TRANSACT_SECONDS if seconds is None else seconds)
        result = await Attempt(self.atlas, self._who, bucket, keys, reads, update, deadline).run()
        self.uses[bucket] += 1
        return result

    async def transact_each(
        self, work: Mapping[int, tuple[Sequence[Command], Update]], seconds: float | None = None
    ) -> dict[int, Any | Exception]:
        """`transact` of many buckets at once: bucket → its result, an exception standing where it raised one.

        Buckets of one server are done in one transaction, up to 64 and 2 MiB of writes; of a Cluster, each in its own. One that
        is not open, or busy, leaves at once; where together it does not work out, each is done alone. Nothing is promised of
        several buckets together: each is done as one, or not at all.
        """
        parts = {bucket: work_of(bucket, reads, update) for bucket, (reads, update) in work.items()}
        deadline = self.atlas.deadline(TRANSACT_SECONDS if seconds is None else seconds)
        results: dict[int, Any | Exception] = {}
        try:
            map = await self.atlas.current_map(deadline)
        except StoreUnavailable as error:
            return dict.fromkeys(work, error)
        groups = []
        for server, buckets in self.atlas.by_server(map, work).items():
            if server is not None and self.atlas.is_whole(map, buckets[0], server):
                here = [parts[bucket] for bucket in buckets]
                lots = [here[start : start + MOST_BUCKETS] for start in range(0, len(here), MOST_BUCKETS)]
                groups += [SharedTransaction(self.atlas, self._who, map, server, lot, deadline) for lot in lots if len(lot) > 1]
        for answer in await gather([group.run() for group in groups]):
            if isinstance(answer, Exception):
                self.counts["parted"] += 1  # by what one of them would write: alone, its update says so again, and harms no other
            else:
                results.update(answer)
        self.uses.update(iter(results))
        left = [part for part in parts.values() if part.bucket not in results]
        answers = await gather([self.transact(part.bucket, part.reads, part.update, max(deadline.left, 0.0)) for part in left])
        results.update(zip((part.bucket for part in left), answers, strict=True))
        return {bucket: results[bucket] for bucket in work}

    def may_join(self, bucket: int) -> bool:
        """Whether `bucket` may be in one transaction with others of its server; not in a cluster, whose slots move one by one."""
        hand = self.atlas.hands.get(bucket) or self.atlas.at_hand(bucket)
        if hand is not None:
            return hand.is_whole
        known = self.atlas.known
        server = None if known is None or bucket >= known.buckets else self.atlas.server_of(known, bucket)
        return known is not None and server is not None and self.atlas.is_whole(known, bucket, server)

    async def transact_many(
        self, reads: Mapping[int, Sequence[Command]], update: UpdateOfMany, seconds: float | None = None
    ) -> dict[int, Any]:
        """`transact` for several buckets of one server at once, with one `update` for all, tried once: bucket → result, where it is done.

        `update` gets by bucket the replies, of those that are in it, and returns for each of these Writes, or none, or MoreOfMany, or an
        awaitable of either; what it raises, this raises. Who is not in the answer goes on alone, by `transact`: its guards said no, or
        another wrote meanwhile, or nobody knows what became of it. NotReplicated stands for the result where too few replicas have it.
        """
        parts = parts_of(reads)
        if not 0 < len(reads) <= MAX_JOINED:
            raise ValueError(f"a transaction over {len(reads)} buckets; 1 to {MAX_JOINED} may be in one")
        deadline = self.atlas.deadline(TRANSACT_SECONDS if seconds is None else seconds)
        map = await self.atlas.current_map(deadline)
        server, buckets = next(iter(self.atlas.by_server(map, reads).items()))
        if server is None or len(buckets) < 2 or not self.atlas.is_whole(map, buckets[0], server):
            return {}
        here = [parts[bucket] for bucket in buckets]
        results = await Joint(self.atlas, self._who, map, server, here, update, deadline).run()
        self.uses.update(iter(results))
        return results

    async def replicated(self, *names: Text) -> None:
        """Return once as many replicas as the Router waits for have all that was written to `names` before.

        Raises NotReplicated where they do not within a second: then call it again.
        """
        for bucket in dict.fromkeys(map(self.bucket_of, names)):
            await self.transact_patiently(bucket, [], lambda _: Writes([]))

    def lock(self, name: Text, ttl: float, wait: float = 0.0) -> Lock:
        """The lock `name`, to be held for at most `ttl` seconds at a time; another holder is waited for up to `wait` seconds."""
        return Lock(self, name, ttl, wait, self._reactor, self.atlas.random)
