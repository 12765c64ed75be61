"""Carries out moves: several buckets of one group at a time, at a bounded rate, with signs of life for other movers.

1. Buckets of one group begin together, so that one walk over a shard's keys finds the keys of all of them.
2. A sign of life is a number that its mover raises; whoever saw it unchanged for long enough, by a clock of its own,
   takes that mover for gone.
3. Each step asks, in the same write as its WATCH, which server it talks to. One that is another, or that has become a
   replica and a primary again, has perhaps lost a part of what was done there: that bucket begins anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, cast

from twisted.internet.defer import Deferred, DeferredSemaphore, maybeDeferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from taba.errors import StoreUnavailable
from taba.shard.buckets import MAP_KEY, BucketMap, MalformedMap, decode_map, decode_owner, owner_key, rank, with_owner
from taba.shard.maps import change_map, newest_map
from taba.shard.moving.move import Moved, Moving
from taba.shard.moving.steps import Changed, Done, Everywhere, Look, LookEverywhere, Overtaken, Publish, Scan, Seen, Step
from taba.shard.patience import Standing
from taba.shard.servers.connection import Command, Connection, Reply, TransactionRefused, raise_for
from taba.shard.servers.gather import gather
from taba.shard.servers.pool import Pool
from taba.shard.servers.prefix import from_the_wire
from taba.shard.servers.sentinel import MasterPool, Succession

log = Logger()

GROUP_BUCKETS = 32  # that begin together; their writers note what they write until their turn comes
BUCKETS_AT_ONCE = 2  # of a group: one waits for the disk of its target while another is read
SCAN_COUNT = 1000  # keys that a shard walks over before it serves others again
ALIVE_SECONDS = 10.0  # a mover whose sign was seen unchanged for so long may be taken over from
SIGN_SECONDS = 2.0
CONFIRM_MILLISECONDS = 3000  # for replicas and files to confirm what they keep; a file that is synced every second takes two
ASK_AGAIN_SECONDS = 0.1  # between looks at which replicas have what was written
STEP_SECONDS = 10.0
MOST_CONFLICTS = 100  # of one step; only others that touch the owner key cause them
MOST_RESTARTS = 5  # of one bucket, because servers changed under it; then its next turn comes with the next round

SIGNS_KEY = b"taba:movers"  # a hash on every shard: mover → a number that it raises while it lives

Watcher = Callable[[int, Any], Any]
Factory = Callable[[], Moving]  # a move, from its beginning


def mover_of(token: str) -> str:
    """The id of the mover that made `token`."""
    return token.rpartition(".")[2].partition("-")[0]


class Mover:
    """Moves buckets between the shards `pools` (by name). `rate`: bytes per second, None for as fast as it goes.

    `without_replicas`: what no replica has counts as kept, also behind sentinels.
    `watch(bucket, request)` is called, and awaited, before each request of a move is carried out; `copied(bytes)` as copying goes on.
    """

    def __init__(
        self,
        pools: Mapping[str, Pool],
        reactor: Any,
        rate: float | None = None,
        watch: Watcher | None = None,
        copied: Callable[[int], None] | None = None,
        standing: Standing | None = None,
        without_replicas: bool = False,
    ):
        self.pools = dict(pools)
        self.id = os.urandom(8).hex()
        self.standing = standing or Standing(reactor)
        self._without_replicas = without_replicas
        self._reactor = reactor
        self._rate = rate
        self._watch = watch
        self._copied = copied
        self._tokens = 0
        self._free_at = 0.0
        self._met: dict[int, dict[str, Identity]] = {}  # bucket → which server each shard was when its move first met it
        self._unwanted: set[str] = set()  # replicas that the log was told of, which the sentinels would not promote
        self._signed: set[str] = set()  # shards that know that we live
        self._signing = LoopingCall(self._sign)
        self._signing.clock = reactor

    def next_token(self) -> str:
        """What is unique in the token of the next move."""
        self._tokens += 1
        return f"{self.id}-{self._tokens}"

    async def start(self) -> None:
        """Give the first sign of life; others follow until `stop`. Raises StoreUnavailable where a shard does not take it.

        May be called again, also where shards were added since.
        """
        await self._give_first_signs()
        if not self._signing.running:
            self._signing.start(SIGN_SECONDS, now=False)

    async def _give_first_signs(self) -> None:
        """Have each shard know that we live, before anything there says that we move it: without a sign others would take that over."""
        new = [name for name in self.pools if name not in self._signed]
        answers = await gather([self._checked(self.pools[name], [self._signal()]) for name in new])
        for name, answer in zip(new, answers, strict=True):
            if isinstance(answer, Exception):
                raise StoreUnavailable(f"shard {name} does not take the sign that this mover lives: {answer}") from None
            self._signed.add(name)

    async def stop(self) -> None:
        """No more signs of life: others need not wait."""
        if self._signing.running:
            self._signing.stop()
        await gather([self._forget_signs(pool) for pool in self.pools.values()])

    async def _forget_signs(self, pool: Pool) -> None:
        """Remove our sign, and those of movers that we have seen to be gone."""
        [signs] = await self._checked(pool, [(b"HGETALL", SIGNS_KEY)])
        gone = [
            mover
            for mover, sign in zip(signs[::2], signs[1::2], strict=True)
            if mover == self.id.encode() or self.standing.seconds((pool.address.text, mover), sign) >= ALIVE_SECONDS
        ]
        if gone:
            await self._checked(pool, [(b"HDEL", SIGNS_KEY, *gone)])

    async def run(self, movings: Mapping[int, Factory]) -> dict[int, Moved | Exception]:
        """Carry out one move for each bucket; what became of each. An exception of one leaves the others alone."""
        if self._signing.running:
            await self._give_first_signs()  # also to shards that were added since
        found: dict[int, Moved | Exception] = {}
        buckets = list(movings)
        for start in range(0, len(buckets), GROUP_BUCKETS):
            lot = buckets[start : start + GROUP_BUCKETS]
            group = _Group(self, lot)
            answers = await gather([group.carry_out(bucket, movings[bucket]) for bucket in lot])
            found.update(zip(lot, answers, strict=True))
        return found

    # --- one request ---

    async def perform(self, bucket: int, request: Any) -> Any:
        """Carry out anything but a Scan."""
        if isinstance(request, Look):
            return await self._look(bucket, request)
        if isinstance(request, LookEverywhere):
            answers: Any = await gather([self._look(bucket, Look(shard)) for shard in self.pools])
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
            seen = dict(zip(self.pools, answers, strict=True))
            return Everywhere(seen, (await newest_map(list(self.pools.values()))).epochs[bucket])
        if isinstance(request, Publish):
            await change_map(self.pools, lambda map: _with_owner(map, bucket, request))
            return None
        assert isinstance(request, Step)
        done = await self._step(bucket, request)
        if request.size:
            if self._copied is not None:
                self._copied(request.size)
            if self._rate and request.is_paced:
                await self._wait_for_rate(request.size)
        return done

    def forget_servers(self, bucket: int) -> None:
        """The move of `bucket` begins, or is over: it has met no server."""
        self._met.pop(bucket, None)

    async def watched(self, bucket: int, request: Any) -> None:
        if self._watch is not None:
            await maybeDeferred(self._watch, bucket, request)

    def _pool(self, shard: str) -> Pool:
        pool = self.pools.get(shard)
        if pool is None:
            raise StoreUnavailable(f"shard {shard} is not known")
        return pool

    async def _look(self, bucket: int, look: Look) -> Seen:
        pool = self._pool(look.shard)
        content, *said = await self._checked(pool, [(b"GET", owner_key(bucket)), *IDENTITY_READS])
        self._meet(bucket, look.shard, identity_of(said))
        if content is None:
            return Seen(None)
        try:
            mover = mover_of(decode_owner(content).token)
        except MalformedMap:
            return Seen(content)
        if not mover or mover == self.id:
            return Seen(content)
        [sign] = await self._checked(pool, [(b"HGET", SIGNS_KEY, mover.encode())])
        where = (pool.address.text, mover.encode())
        return Seen(content, sign is not None and self.standing.seconds(where, sign) < ALIVE_SECONDS)

    def _meet(self, bucket: int, shard: str, identity: Identity) -> None:
        """Raises Changed where the shard was another server before, in this move."""
        known = self._met.setdefault(bucket, {}).setdefault(shard, identity)
        if known != identity:
            raise Changed(f"bucket {bucket}: shard {shard} is another server now, or has another history")

    async def _step(self, bucket: int, step: Step) -> Done:
        pool = self._pool(step.shard)
        owner = owner_key(bucket)
        # whoever drains a shard has all maps say so, and then looks for what is on its way there: one of both sees the other, here or,
        # where a failover took that from one of the two shards, at the other
        watched = [owner, MAP_KEY] if step.goes_to else [owner]
        newest = [await newest_map(list(self.pools.values()))] if step.goes_to else []  # of one that was away the map is an old one
        reads: list[Command] = [*IDENTITY_READS, *((b"GET", key) for key in watched)]
        async with pool.connection() as connection:
            if step.is_read:
                # the servers first: what is read belongs to the history that they tell, or the owner key is another's
                replies = await connection.execute([*IDENTITY_READS, *step.commands, (b"GET", owner)], STEP_SECONDS)
                self._meet(bucket, step.shard, identity_of(_told(replies[: len(IDENTITY_READS)], pool)))
                [content] = _told(replies[-1:], pool)
                return Done(replies[len(IDENTITY_READS) : -1] if content == step.expects else None)
            for _ in range(MOST_CONFLICTS):
                told = await connection.watch(watched, reads, STEP_SECONDS)
                self._meet(bucket, step.shard, identity_of(told[: len(IDENTITY_READS)]))
                content, *maps = told[len(IDENTITY_READS) :]
                if content != step.expects:
                    return Done(None)
                if step.goes_to and not _takes_buckets(step.goes_to, [*newest, *_readable(maps)]):
                    raise Overtaken(f"bucket {bucket}: shard {step.goes_to} is drained by another, or was")
                commands = list(step.commands)
                if step.confirms:
                    commands.append(self._signal())  # a write, so that there is something to confirm
                done = await connection.commit(commands, STEP_SECONDS)
                if done is not None:
                    return Done(done, await self._confirm(bucket, step.shard, pool, connection) if step.confirms else "")
        raise StoreUnavailable(f"{pool.address.text}: bucket {bucket}: {MOST_CONFLICTS} conflicts")

    async def _confirm(self, bucket: int | None, shard: str, pool: Pool, connection: Connection) -> str:
        """Wait until what was written is kept by whatever may be the shard next; "" when it is, else what is missing."""
        wanted = await self._heirs(pool, connection.where)
        asked: list[Command] = [(b"INFO", b"replication"), (b"CONFIG", b"GET", b"appendonly"), (b"CONFIG", b"GET", b"appendfsync")]
        reply, *settings = await connection.execute(asked)
        replication = Replication.parse(reply)
        if wanted is not None and not wanted and not self._without_replicas:
            return "the sentinels know no replica that they would promote (taba reshard --without-replicas moves nevertheless)"
        keeps_file = settings[0] != [b"appendonly", b"no"]
        limit = b"%d" % CONFIRM_MILLISECONDS
        count = len(replication.replicas) if wanted is None else len(wanted)
        waits: list[Command] = [(b"WAIT", b"%d" % count, limit)] if count else []  # also makes replicas say at once what they have
        syncs = settings[1] != [b"appendfsync", b"no"]
        if keeps_file:
            waits.append((b"WAITAOF", b"1", b"0", limit if syncs else b"1"))  # one that never syncs never says so
        replies = await connection.execute(waits, STEP_SECONDS)
        if count:
            got = replies.pop(0)
            if wanted is None and (not isinstance(got, int) or got < count):
                return f"{got!r} of {count} replicas confirmed within {CONFIRM_MILLISECONDS} ms"
        if keeps_file:
            [got] = replies
            if isinstance(got, list) and got and got[0] == 0 and syncs:
                return f"its file was not written within {CONFIRM_MILLISECONDS} ms"
            if isinstance(got, Exception) and settings[1] != [b"appendfsync", b"always"]:
                # a server before 7.2 cannot tell when its file is written
                return "nobody knows when its file is written: set appendfsync always, or take a newer server"
        return await self._inherited(bucket, shard, pool, connection, replication.offset) if isinstance(pool, MasterPool) else ""

    async def _heirs(self, pool: Pool, where: str) -> frozenset[tuple[str, int]] | None:
        """The replicas that the sentinels would promote; None where there are no sentinels."""
        return (await self._succession(pool, where)).heirs if isinstance(pool, MasterPool) else None

    async def _succession(self, pool: MasterPool, where: str) -> Succession:
        found = await pool.sentinels.succession(pool.address, where)
        for name in found.others - self._unwanted:
            self._unwanted.add(name)
            log.warn("{shard}: the sentinels would not promote {name}: it is not waited for", shard=pool.address.text, name=name)
        return found

    async def _inherited(self, bucket: int | None, shard: str, pool: MasterPool, connection: Connection, offset: int) -> str:
        """Whether all replicas that the sentinels would promote have the primary's stream up to `offset`, as the primary says.

        The primary first, then the sentinels: a replica that the primary still has is not promoted yet, and one that is being
        promoted has left it. What the primary says counts only while the sentinels name it, and nobody is replacing it.
        """
        end = self._reactor.seconds() + CONFIRM_MILLISECONDS / 1000
        while True:
            said = await connection.execute(IDENTITY_READS)
            identity = identity_of(_told(said, pool))
            if bucket is not None:
                self._meet(bucket, shard, identity)
            replication = Replication.parse(said[1])
            wanted, _, problem = await self._succession(pool, connection.where)  # again: one that came meanwhile may be promoted too
            missing = [place for place in wanted if replication.replicas.get(place, -1) < offset]
            if not missing and not problem and (wanted or self._without_replicas):
                return ""
            if self._reactor.seconds() > end:
                if problem:
                    return problem
                shown = ", ".join(f"{host}:{port}" for host, port in missing) or "any replica"
                return f"{shown} did not confirm within {CONFIRM_MILLISECONDS} ms"
            await deferLater(self._reactor, ASK_AGAIN_SECONDS)

    async def _checked(self, pool: Pool, commands: Sequence[Command]) -> list[Any]:
        return _told(await pool.execute(commands, STEP_SECONDS), pool)

    async def identities(self) -> dict[str, Identity]:
        """Which server each shard is now. Raises StoreUnavailable where one does not say, or is a replica."""
        return {name: identity_of(await self._checked(pool, IDENTITY_READS)) for name, pool in self.pools.items()}

    async def keep(self, seen: Mapping[str, Identity]) -> None:
        """Return once every shard keeps what it was told: what was read of the servers `seen` before is true after a failover too.

        Raises Changed where a shard is another server by now, StoreUnavailable where one does not confirm.
        """
        for name, pool in self.pools.items():
            async with pool.connection() as connection:
                said = await connection.execute([*IDENTITY_READS, self._signal()], STEP_SECONDS)
                if identity_of(_told(said, pool)) != seen.get(name):
                    raise Changed(f"shard {name} is another server now, or has another history")
                if problem := await self._confirm(None, name, pool, connection):
                    raise StoreUnavailable(f"shard {name} does not confirm that it keeps what was moved: {problem}")
                if identity_of(_told(await connection.execute(IDENTITY_READS, STEP_SECONDS), pool)) != seen[name]:
                    raise Changed(f"shard {name} is another server now, or has another history")

    async def keys(self, shard: str, buckets: Sequence[int]) -> dict[int, list[bytes]]:
        """The keys of `buckets` on `shard`, without owner keys; one walk over all keys there."""
        pool = self._pool(shard)
        found: dict[int, set[bytes]] = {bucket: set() for bucket in buckets}
        prefix = pool.address.prefix
        pattern = prefix.encode() + (b":{%d}:*" % buckets[0] if len(buckets) == 1 else b":{*")
        cursor = b"0"
        while True:
            [[cursor, keys]] = await self._checked(pool, [(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", b"%d" % SCAN_COUNT)])
            for key in [from_the_wire(one, prefix) for one in keys]:
                number, brace, _ = key[6:].partition(b"}:")
                if brace and number.isdigit() and int(number) in found:
                    found[int(number)].add(key)
            if cursor == b"0":
                return {bucket: sorted(own - {owner_key(bucket)}) for bucket, own in found.items()}

    # --- time ---

    async def _wait_for_rate(self, size: int) -> None:
        assert self._rate
        now = self._reactor.seconds()
        self._free_at = max(self._free_at, now) + size / self._rate
        await deferLater(self._reactor, self._free_at - now)

    def _signal(self) -> Command:
        return (b"HINCRBY", SIGNS_KEY, self.id.encode(), b"1")

    async def _give_sign(self) -> None:
        await gather([pool.execute([self._signal()], SIGN_SECONDS) for pool in self.pools.values()])

    def _sign(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._give_sign())


class _Group:
    """Buckets that begin together: the first walk over keys waits until all of them have begun, or failed to."""

    def __init__(self, mover: Mover, buckets: Sequence[int]):
        self._mover = mover
        self._entering = set(buckets)
        self._waiting: list[tuple[int, Scan, Deferred[dict[str, list[bytes]]]]] = []
        self._places = DeferredSemaphore(BUCKETS_AT_ONCE)

    async def carry_out(self, bucket: int, make: Factory) -> Moved:
        for restart in range(MOST_RESTARTS + 1):
            self._mover.forget_servers(bucket)
            try:
                return await self._carry_out(bucket, make())
            except Changed:
                if restart == MOST_RESTARTS:
                    raise
            finally:
                self._mover.forget_servers(bucket)
                self._entering.discard(bucket)
                self._walk()
        raise AssertionError("the last restart returns or raises")

    async def _carry_out(self, bucket: int, moving: Moving) -> Moved:
        has_place = False
        answer: Any = None
        error: Exception | None = None
        try:
            while True:
                try:
                    request = moving.send(answer) if error is None else moving.throw(error)
                except StopIteration as stop:
                    return cast(Moved, stop.value)
                await self._mover.watched(bucket, request)
                answer, error = None, None
                try:
                    if isinstance(request, Scan):
                        answer = await self._scan(bucket, request)
                        if not has_place:
                            await self._places.acquire()
                            has_place = True
                    else:
                        answer = await self._mover.perform(bucket, request)
                except (StoreUnavailable, TransactionRefused) as raised:
                    error = raised  # the move's own business: it may have something to open again
        finally:
            moving.close()
            if has_place:
                self._places.release()

    def _scan(self, bucket: int, scan: Scan) -> Deferred[dict[str, list[bytes]]]:
        done: Deferred[dict[str, list[bytes]]] = Deferred()
        self._waiting.append((bucket, scan, done))
        self._entering.discard(bucket)
        self._walk()
        return done

    def _walk(self) -> None:
        if not self._entering and self._waiting:
            waiting, self._waiting = self._waiting, []
            Deferred.fromCoroutine(self._walk_for(waiting))

    async def _walk_for(self, waiting: Sequence[tuple[int, Scan, Deferred[dict[str, list[bytes]]]]]) -> None:
        shards = sorted({shard for _, scan, _ in waiting for shard in scan.shards})
        wanted = {shard: [bucket for bucket, scan, _ in waiting if shard in scan.shards] for shard in shards}
        answers = dict(zip(shards, await gather([self._mover.keys(shard, wanted[shard]) for shard in shards]), strict=True))
        for bucket, scan, done in waiting:
            keys: dict[str, list[bytes]] = {}
            error: Exception | None = None
            for shard in scan.shards:
                answer = answers[shard]
                if isinstance(answer, Exception):
                    error = answer
                else:
                    keys[shard] = answer[bucket]
            if error is None:
                done.callback(keys)
            else:
                done.errback(error)


# --- which server it is ---


class Identity(NamedTuple):
    """A server and its history: the id of its run, and that of the stream of writes that it is the primary of."""

    run: str
    stream: str


class Replication(NamedTuple):
    """What INFO replication says: how far the primary's stream is, and which replica has it how far."""

    offset: int
    replicas: dict[tuple[str, int], int]

    @classmethod
    def parse(cls, reply: Reply) -> Replication:
        fields = _fields(reply)
        replicas: dict[tuple[str, int], int] = {}
        for name, value in fields.items():
            if name.startswith("slave") and name[5:].isdigit():
                parts = dict(part.partition("=")[::2] for part in value.split(","))
                if parts.get("state") == "online" and parts.get("port", "").isdigit() and parts.get("offset", "").isdigit():
                    replicas[parts.get("ip", ""), int(parts["port"])] = int(parts["offset"])
        offset = fields.get("master_repl_offset", "")
        return cls(int(offset) if offset.isdigit() else 0, replicas)


IDENTITY_READS: list[Command] = [(b"INFO", b"server"), (b"INFO", b"replication")]


def identity_of(replies: Sequence[Reply]) -> Identity:
    """Who answered IDENTITY_READS. Raises StoreUnavailable where it is no primary."""
    server, replication = _fields(replies[0]), _fields(replies[1])
    if replication.get("role", "master") != "master":
        raise StoreUnavailable("a replica now")
    return Identity(server.get("run_id", ""), replication.get("master_replid", ""))


def _fields(reply: Reply) -> dict[str, str]:
    text = reply.decode(errors="replace") if isinstance(reply, bytes) else ""
    return dict(line.partition(":")[::2] for line in text.splitlines() if ":" in line)


def _told(replies: list[Reply], pool: Pool) -> list[Any]:
    for reply in replies:
        if isinstance(reply, Exception):
            raise_for(reply, pool.address.text)
    return replies


def _takes_buckets(shard: str, maps: Sequence[BucketMap]) -> bool:
    """Whether buckets may go to the shard, by the newest of these maps."""
    return shard in max(maps, key=rank).holders


def _readable(contents: Sequence[Any]) -> list[BucketMap]:
    """The maps among these; `taba check` reports what is none."""
    maps = []
    for content in contents:
        if isinstance(content, bytes):
            with suppress(MalformedMap):
                maps.append(decode_map(content))
    return maps


def _with_owner(map: BucketMap, bucket: int, request: Publish) -> BucketMap:
    if request.epoch > map.epochs[bucket] and request.shard not in {shard.name for shard in map.shards}:
        # the shard that added it, or had it added, does not answer: what others have of the map is older
        raise StoreUnavailable(f"no shard that answers has a map with shard {request.shard}")
    return with_owner(map, bucket, request.shard, request.epoch)
