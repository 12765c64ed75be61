"""Transactions of several buckets of one server as one: one WATCH with all reads, one MULTI … EXEC. Where it does not work out, each alone.

1. What is done together is done under the same guards as alone: each bucket's owner key and lease are read and WATCHed.
2. A bucket whose guards say no leaves at once, and so does one whose update raises, or would make it too large; the others go on.
3. A conflict, a refusal or an outcome that nobody knows sends all of them to their own transactions, which begin with their reads: there
   each update sees whether its writes were made (see `transaction`). Together nothing is tried twice, so a bucket starves nobody.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeVar, cast

from taba.bounds import MiB
from taba.errors import StoreUnavailable, TabaError
from taba.shard.atlas import Atlas, NotHere
from taba.shard.buckets import BucketMap, guards_of, is_moving, prefix_of
from taba.shard.dirty import noting
from taba.shard.patience import Deadline
from taba.shard.servers.connection import REPLY_SECONDS, Command, Connection, ConnectionGone
from taba.shard.servers.gather import gather
from taba.shard.servers.pool import CHECKOUT_SECONDS, Pool
from taba.shard.transaction import (
    NotReplicated,
    Update,
    Who,
    Writes,
    decide,
    keys_read,
    measure_each,
    wait_for_replicas,
)

MOST_BUCKETS = 128  # in one transaction: its server does nothing else meanwhile
MOST_BYTES = 2 * MiB  # that one transaction writes, but always what its first bucket writes


T = TypeVar("T")


class BucketWork(NamedTuple):
    """What is to be done in one bucket: as `Router.transact` takes it; and the keys that its `reads` read."""

    bucket: int
    reads: Sequence[Command]
    update: Update
    keys: Sequence[bytes]


def work_of(bucket: int, reads: Sequence[Command], update: Update) -> BucketWork:
    """What is to be done in `bucket`. Raises ValueError for what is no read of it."""
    return BucketWork(bucket, reads, update, keys_read(bucket, reads))


Guarded = tuple[BucketWork, bytes, list[Any]]  # whose guards said yes, its owner key, and the replies to its reads


class SharedTransaction:
    """One transaction of the buckets of `parts`, all at the server `pool`; tried once."""

    def __init__(self, atlas: Atlas, who: Who, map: BucketMap, pool: Pool, parts: Sequence[BucketWork], deadline: Deadline):
        self._atlas = atlas
        self._who = who
        self._map = map
        self._pool = pool
        self._parts = parts
        self._deadline = deadline
        self._is_committing = False

    async def run(self) -> dict[int, Any]:
        """Bucket → what its update returned, where it was done, or NotReplicated; what is not in it is to be done alone."""
        try:
            async with self._pool.connection(min(self._deadline.left, CHECKOUT_SECONDS)) as connection:
                return await self._try(connection)
        except TabaError as error:
            if self._is_committing and isinstance(error, ConnectionGone):
                self._atlas.counts["unknown"] += 1
            self._atlas.counts["parted"] += 1
            return {}

    def _seconds(self) -> float:
        return min(self._deadline.left, REPLY_SECONDS)

    async def _try(self, connection: Connection) -> dict[int, Any]:
        if not self._atlas.is_certain:  # it was connected anew, and is perhaps another store's
            return {}
        guarded = await self._watch(connection)
        decisions = await self._decisions(connection, guarded)
        taken, commands = _taken(guarded, decisions)
        if not taken:
            return {}
        if self._who.wait_replicas and not commands:
            bucket, owner = next((part.bucket, owner) for part, owner, _ in guarded if part.bucket in taken)
            commands = [(b"SET", prefix_of(bucket) + b"waited", b"1")]  # as alone: WAIT waits for what is written
            commands += noting(bucket, commands) if is_moving(owner) else ()
        self._is_committing = True
        if await connection.commit(commands, self._seconds()) is None:
            self._atlas.counts["conflicts"] += 1
            return {}
        if self._who.wait_replicas:
            try:
                await wait_for_replicas(self._atlas, self._who, connection, self._deadline)
            except NotReplicated as error:
                return {bucket: _not_replicated(error, result) for bucket, result in taken.items()}
        return taken

    async def _decisions(self, connection: Connection, guarded: Sequence[Guarded]) -> Sequence[Any]:
        """For each of them Writes, or anything else where it is to be done alone."""
        return await self._deadline.not_counting(gather([self._decide(connection, part, own) for part, _, own in guarded]))

    async def _decide(self, connection: Connection, part: BucketWork, replies: list[Any]) -> Writes:
        # all wait at once, and none of that is the store's time: it is not counted here, once for each, but around all of them
        return await decide(connection, part.bucket, part.update(replies), lambda: REPLY_SECONDS, _as_it_is)

    async def _watch(self, connection: Connection) -> list[Guarded]:
        """Those whose guards say yes, with their owner keys and the replies to their reads."""
        buckets = [part.bucket for part in self._parts]
        reads: list[Command] = list(chain.from_iterable([part.reads for part in self._parts]))
        keys = list(chain.from_iterable(map(guards_of, buckets)))
        guards = (b"MGET", *keys)  # of all of them in one: they are on one server, and need not be of one slot
        keys += chain.from_iterable([part.keys for part in self._parts])
        replies: list[Any] = await connection.watch(keys, [guards, *reads], self._seconds())
        owners, leases = replies[0][::2], replies[0][1::2]
        # all as they were said to be the last time, which is so but for moves: else each is looked at
        is_known = leases.count(None) == len(leases) and self._atlas.are_open(self._map, buckets, owners)
        guarded = []
        end = 1
        for part, owner, lease in zip(self._parts, owners, leases, strict=True):
            start, end = end, end + len(part.reads)
            if is_known or self._may_write(part.bucket, owner, lease, connection.where):
                guarded.append((part, owner, replies[start:end]))
        return guarded

    def _may_write(self, bucket: int, owner: Any, lease: bytes | None, where: str) -> bool:
        """Whether the guards of `bucket` say yes."""
        try:
            self._atlas.check_owner(bucket, self._map.shard_of(bucket), owner, where)
        except (NotHere, StoreUnavailable):
            self._atlas.counts["parted"] += 1
            return False
        if lease is not None:
            self._atlas.counts["parted"] += 1  # its holder, or that it is abandoned, is found out alone
        return lease is None


def _taken(guarded: Sequence[Guarded], decisions: Sequence[Any]) -> tuple[dict[int, Any], list[Command]]:
    """What becomes of the buckets whose writes go together, and these."""
    deciding = [
        (part.bucket, owner, decision.commands, decision.result)
        for (part, owner, _), decision in zip(guarded, decisions, strict=True)
        if isinstance(decision, Writes)
    ]
    sizes = measure_each([bucket for bucket, _, _, _ in deciding], [own for _, _, own, _ in deciding])
    is_any_moving = is_moving(b" ".join([owner for _, owner, _, _ in deciding]))
    if not (is_any_moving or None in sizes) and sum(cast(list[int], sizes)) <= MOST_BYTES:  # as nearly always
        return {bucket: result for bucket, _, _, result in deciding}, list(chain.from_iterable([own for _, _, own, _ in deciding]))
    taken: dict[int, Any] = {}
    commands: list[Command] = []
    room = MOST_BYTES
    for (bucket, owner, own, result), size in zip(deciding, sizes, strict=True):
        if size is None:
            continue  # alone, its update says so again, to whoever asked for it
        if is_any_moving and is_moving(owner):
            notes = noting(bucket, own)
            own, size = [*own, *notes], size + sum([sum(map(len, note)) for note in notes])
        if size > room and taken:
            continue
        room -= size
        commands += own
        taken[bucket] = result
    return taken, commands


async def _as_it_is(work: Awaitable[T]) -> T:
    return await work


def _not_replicated(error: NotReplicated, result: Any) -> NotReplicated:
    own = NotReplicated(str(error))
    own.result = result
    return own
