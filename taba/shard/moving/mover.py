"""Carries out moves: several buckets of one group at a time, at a bounded rate, with signs of life for other movers.

Buckets of one group begin together, so that one walk over a shard's keys finds the keys of all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from twisted.internet.defer import Deferred, DeferredSemaphore, maybeDeferred
from twisted.internet.task import LoopingCall, deferLater

from taba.errors import StoreUnavailable
from taba.shard.buckets import MalformedMap, decode_owner, owner_key, with_owner
from taba.shard.maps import change_map
from taba.shard.moving.move import Moved, Moving
from taba.shard.moving.steps import Done, Look, Publish, Scan, Seen, Step
from taba.shard.servers.connection import Command, Connection, Reply, raise_for
from taba.shard.servers.gather import gather
from taba.shard.servers.pool import Pool

GROUP_BUCKETS = 32  # that begin together; their writers note what they write until their turn comes
BUCKETS_AT_ONCE = 2  # of a group: one waits for the disk of its target while another is read
SCAN_COUNT = 1000  # keys that a shard walks over before it serves others again
ALIVE_SECONDS = 10.0  # a mover that gave no sign for so long may be taken over from
SIGN_SECONDS = 2.0
CONFIRM_MILLISECONDS = 3000  # for replicas and files to confirm what they keep; a file that is synced every second takes two
STEP_SECONDS = 10.0
MOST_CONFLICTS = 100  # of one step; only others that touch the owner key cause them

Watcher = Callable[[int, Any], Any]


def sign_key(mover: str) -> bytes:
    """Where the mover with this id gives signs of life, on every shard."""
    return b"taba:mover:" + mover.encode()


def mover_of(token: str) -> str:
    """The id of the mover that made `token`."""
    return token.rpartition(".")[2].partition("-")[0]


class Mover:
    """Moves buckets between the shards `pools` (by name). `rate`: bytes per second, None for as fast as it goes.

    `watch(bucket, request)` is called, and awaited, before each request of a move is carried out; `copied(bytes)` as copying goes on.
    """

    def __init__(
        self,
        pools: Mapping[str, Pool],
        reactor: Any,
        rate: float | None = None,
        watch: Watcher | None = None,
        copied: Callable[[int], None] | None = None,
    ):
        self.pools = dict(pools)
        self.id = os.urandom(8).hex()
        self._reactor = reactor
        self._rate = rate
        self._watch = watch
        self._copied = copied
        self._tokens = 0
        self._free_at = 0.0
        self._sealed: set[int] = set()
        self._signing = LoopingCall(self._sign)
        self._signing.clock = reactor

    def next_token(self) -> str:
        """What is unique in the token of the next move."""
        self._tokens += 1
        return f"{self.id}-{self._tokens}"

    async def start(self) -> None:
        """Give the first sign of life; others follow until `stop`."""
        await self._give_sign()
        self._signing.start(SIGN_SECONDS, now=False)

    async def stop(self) -> None:
        """No more signs of life: others need not wait."""
        if self._signing.running:
            self._signing.stop()
        await gather([pool.execute([(b"DEL", sign_key(self.id))]) for pool in self.pools.values()])

    async def run(self, movings: Mapping[int, Moving]) -> dict[int, Moved | Exception]:
        """Carry out one move for each bucket; what became of each. An exception of one leaves the others alone."""
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
        if isinstance(request, Publish):
            await change_map(self.pools, lambda map: with_owner(map, bucket, request.shard))
            return None
        assert isinstance(request, Step)
        if request.name == "seal":
            self._sealed.add(bucket)
        done = await self._step(bucket, request)
        if request.size:
            if self._copied is not None:
                self._copied(request.size)
            if self._rate and bucket not in self._sealed:
                await self._wait_for_rate(request.size)
        return done

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
        [content] = await self._checked(pool, [(b"GET", owner_key(bucket))])
        if content is None:
            return Seen(None)
        try:
            mover = mover_of(decode_owner(content).token)
        except MalformedMap:
            return Seen(content)
        if not mover or mover == self.id:
            return Seen(content)
        [is_alive] = await self._checked(pool, [(b"EXISTS", sign_key(mover))])
        return Seen(content, bool(is_alive))

    async def _step(self, bucket: int, step: Step) -> Done:
        pool = self._pool(step.shard)
        owner = owner_key(bucket)
        async with pool.connection() as connection:
            if step.is_read:
                replies = await connection.execute([*step.commands, (b"GET", owner)], STEP_SECONDS)
                if isinstance(replies[-1], Exception):
                    raise_for(replies[-1], pool.address.text)
                return Done(replies[:-1] if replies[-1] == step.expects else None)
            for _ in range(MOST_CONFLICTS):
                [content] = await connection.watch([owner], [(b"GET", owner)], STEP_SECONDS)
                if content != step.expects:
                    return Done(None)
                commands = list(step.commands)
                if step.confirms:
                    commands.append(self._signal())  # a write, so that there is something to confirm
                done = await connection.commit(commands, STEP_SECONDS)
                if done is not None:
                    return Done(done, await self._confirm(connection) if step.confirms else "")
        raise StoreUnavailable(f"{pool.address.text}: bucket {bucket}: {MOST_CONFLICTS} conflicts")

    async def _confirm(self, connection: Connection) -> str:
        """Wait for what the server has to confirm the last write; "" when all did."""
        reply, *settings = await connection.execute(
            [(b"INFO", b"replication"), (b"CONFIG", b"GET", b"appendonly"), (b"CONFIG", b"GET", b"appendfsync")]
        )
        lines = reply.decode(errors="replace").splitlines() if isinstance(reply, bytes) else []
        replicas = sum(line.startswith("slave") and "state=online" in line for line in lines)
        keeps_file = settings[0] == [b"appendonly", b"yes"] and settings[1] != [b"appendfsync", b"no"]  # that one never tells
        limit = b"%d" % CONFIRM_MILLISECONDS
        asked: list[Command] = [(b"WAIT", b"%d" % replicas, limit)] if replicas else []
        if keeps_file:
            asked.append((b"WAITAOF", b"1", b"0", limit))
        replies = await connection.execute(asked, STEP_SECONDS)
        if replicas:
            got = replies.pop(0)
            if not isinstance(got, int) or got < replicas:
                return f"{got!r} of {replicas} replicas confirmed within {CONFIRM_MILLISECONDS} ms"
        if keeps_file:
            [got] = replies
            if isinstance(got, list) and got and got[0] == 0:
                return f"its file was not written within {CONFIRM_MILLISECONDS} ms"
            # an error: a server before 7.2 cannot tell; its own setting of appendfsync stands
        return ""

    async def _checked(self, pool: Pool, commands: Sequence[Command]) -> list[Any]:
        replies: list[Reply] = await pool.execute(commands, STEP_SECONDS)
        for reply in replies:
            if isinstance(reply, Exception):
                raise_for(reply, pool.address.text)
        return replies

    async def keys(self, shard: str, buckets: Sequence[int]) -> dict[int, list[bytes]]:
        """The keys of `buckets` on `shard`, without owner keys; one walk over all keys there."""
        pool = self._pool(shard)
        found: dict[int, set[bytes]] = {bucket: set() for bucket in buckets}
        pattern = b"taba:{%d}:*" % buckets[0] if len(buckets) == 1 else b"taba:{*"
        cursor = b"0"
        while True:
            [[cursor, keys]] = await self._checked(pool, [(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", b"%d" % SCAN_COUNT)])
            for key in keys:
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
        return (b"SET", sign_key(self.id), b"1", b"PX", b"%d" % int(ALIVE_SECONDS * 1000))

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

    async def carry_out(self, bucket: int, moving: Moving) -> Moved:
        has_place = False
        answer: Any = None
        try:
            while True:
                try:
                    request = moving.send(answer)
                except StopIteration as stop:
                    return cast(Moved, stop.value)
                await self._mover.watched(bucket, request)
                if isinstance(request, Scan):
                    answer = await self._scan(bucket, request)
                    if not has_place:
                        await self._places.acquire()
                        has_place = True
                else:
                    answer = await self._mover.perform(bucket, request)
        finally:
            moving.close()
            self._mover._sealed.discard(bucket)
            if has_place:
                self._places.release()
            self._entering.discard(bucket)
            self._walk()

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
