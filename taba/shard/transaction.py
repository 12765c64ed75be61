"""One transaction on a bucket: WATCH and read in one write, decide, MULTI … EXEC in another; again until it is done.

A transaction whose outcome nobody knows is run again from its reads, never sent again. Why that is right: the caller's
`update` sees, in what it reads, whether it was applied before (Taba's: the mark of the batch's stream), and writes that
key. If the lost EXEC was carried out before the new reads, `update` sees it. If it is still on its way (a store that
was stopped and reads its sockets when it wakes), both transactions WATCH that key: the one that comes second, the old
or the new, is refused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from inspect import isawaitable
from itertools import repeat
from operator import itemgetter
from typing import Any, NamedTuple

from taba import parts
from taba.errors import StoreUnavailable
from taba.shard.atlas import Atlas, NotHere
from taba.shard.buckets import is_moving, lease_key, owner_key, prefix_of
from taba.shard.dirty import noting
from taba.shard.patience import SEALED_PAUSE_SECONDS, Deadline
from taba.shard.servers.cluster import ShardPool
from taba.shard.servers.connection import (
    REPLY_SECONDS,
    Command,
    Connection,
    ConnectionGone,
    Redirected,
    TransactionRefused,
    raise_for,
)
from taba.shard.servers.pool import CHECKOUT_SECONDS

TRANSACT_SECONDS = 20.0  # a transaction, with all its tries; an Agent waits for the verdict for longer
LEASE_AFTER_CONFLICTS = 3  # then this transaction is the slow one, and would starve
MOST_CONFLICTS = 12  # in one transaction; the lease makes so many impossible, unless it is taken from us each time
LEASE_SECONDS = 5.0  # longer than any cycle takes; a lease that stood unchanged for so long is nobody's any more
WAIT_SECONDS = 1.0  # for the replicas' acknowledgement, where the Router waits for it; a replica that lags more is as good as none
MOST_READ_ROUNDS = 8  # `More` in one try; a cycle takes two

_READS_OF_ONE_KEY = frozenset(
    b"GET STRLEN GETRANGE TYPE TTL PTTL HGET HMGET HGETALL HKEYS HVALS HLEN HEXISTS HSTRLEN HSCAN "
    b"SMEMBERS SCARD SISMEMBER SMISMEMBER SSCAN LRANGE LLEN LINDEX ZRANGEBYLEX ZRANDMEMBER ZCARD "
    b"ZSCORE ZMSCORE ZRANK ZRANGE ZREVRANGE ZRANGEBYSCORE".split()
)
_wire = parts.find("taba.shard.servers._wire")
_NAME_OF, _KEY_OF = itemgetter(0), itemgetter(1)  # of a command
_READS_OF_MANY_KEYS = frozenset(b"MGET EXISTS SUNION SINTER SDIFF".split())


class BucketBusy(StoreUnavailable):
    """Another process holds this bucket's lease, or wins every race for it; try later."""


class NotReplicated(StoreUnavailable):
    """It is done, with `result`, and too few replicas have it: a failover now would lose it.

    What counts, such as `incr`, is not to be done again: `Router.replicated` waits for the replicas.
    """

    def __init__(self, text: str, result: Any = None):
        super().__init__(text)
        self.result = result


class Writes(NamedTuple):
    """What an `update` decided: the commands between MULTI and EXEC, and what `transact` then returns."""

    commands: list[Command]
    result: Any = None


class More(NamedTuple):
    """An `update` needs more: `reads` under the same WATCH, then `update` is called with their replies."""

    reads: list[Command]
    update: Update


class MoreOfMany(NamedTuple):
    """An update of several buckets needs more, by bucket: `update` is called with their replies (see `joint`)."""

    reads: Mapping[int, Sequence[Command]]
    update: Callable[[dict[int, list[Any]]], Any]


Decision = Writes | More | Awaitable[Writes | More]
Update = Callable[[list[Any]], Decision]


class Who:
    """Whose transactions they are: `token` was never used before. `wait_replicas`: how many replicas must have what is done."""

    def __init__(self, token: str, wait_replicas: int):
        self.wait_replicas = wait_replicas
        self._token = token
        self._leases = 0

    def next_lease(self) -> bytes:
        """What the next lease says; nobody's ever says the same."""
        self._leases += 1
        return f"{self._token}:{self._leases}".encode()


class Attempt:
    """One transaction, through all its tries."""

    def __init__(
        self, atlas: Atlas, who: Who, bucket: int, keys: list[bytes], reads: Sequence[Command], update: Update, deadline: Deadline
    ):
        self.atlas = atlas
        self.who = who
        self.bucket = bucket
        self.update = update
        self.deadline = deadline
        self.conflicts = 0
        self.is_committing = False
        self.held: bytes | None = None  # what our lease says, while we believe that we hold it
        self.is_lease_abandoned = False  # another's, which has stood unchanged for so long that it goes with our writes
        self.owner = owner_key(bucket)
        self.lease = lease_key(bucket)
        self.keys = [self.owner, self.lease, *keys]
        self.guards: list[Command] = [(b"MGET", self.owner, self.lease)]  # of one slot
        self.reads = [*self.guards, *reads]

    async def run(self) -> Any:
        try:
            return await self._run()
        finally:
            if self.held is not None:
                await self._release()

    async def _run(self) -> Any:
        counts = self.atlas.counts
        while True:
            try:
                done, result = await self._try()
                if done:
                    return result
                counts["conflicts"] += 1
                self.conflicts += 1
                if self.conflicts >= MOST_CONFLICTS:
                    counts["busy"] += 1
                    raise BucketBusy(f"bucket {self.bucket}: {self.conflicts} conflicts")
                await self.deadline.pause(BucketBusy(f"bucket {self.bucket}: still in conflict"))
            except NotHere as error:
                counts["retries"] += 1
                await self.deadline.pause(error, 0.0 if error.is_forwarded else SEALED_PAUSE_SECONDS if error.is_sealed else None)
                if not error.is_forwarded and self.deadline.is_time_to_look(error.is_sealed):
                    await self.atlas.refresh(self.deadline)
            except Redirected as error:
                counts["redirected"] += 1
                await self.deadline.pause(error, SEALED_PAUSE_SECONDS if error.is_settling else None)
                await self._look_again()
                self._pool().redirected(self.bucket, error.redirection)
            except (BucketBusy, NotReplicated):
                raise
            except StoreUnavailable as error:
                if self.is_committing and isinstance(error, ConnectionGone):
                    counts["unknown"] += 1
                counts["retries"] += 1
                await self.deadline.pause(error)  # then from the reads: see the rules above
                await self._look_again()

    def _seconds(self) -> float:
        return min(self.deadline.left, REPLY_SECONDS)

    def _pool(self) -> ShardPool:
        return self.atlas.pool_of(self.atlas.map.shard_of(self.bucket))

    async def _look_again(self) -> None:
        """Where a shard is many servers: which of them has the bucket now."""
        try:
            await self._pool().refresh(self.deadline.left)
        except StoreUnavailable:
            self.atlas.counts["retries"] += 1  # what is known stands; the next try will tell

    async def _try(self) -> tuple[bool, Any]:
        """(True, result) when it is done, (False, None) after a conflict."""
        self.is_committing = False
        map = await self.atlas.current_map(self.deadline)
        if self.bucket >= map.buckets:
            raise ValueError(f"bucket {self.bucket} of {map.buckets}")
        name = map.shard_of(self.bucket)
        server = self.atlas.pool_of(name).holding(self.bucket)
        async with server.connection(min(self.deadline.left, CHECKOUT_SECONDS)) as connection:
            if not self.atlas.is_certain:  # it was connected anew, and is perhaps another store's
                raise StoreUnavailable(f"{server.address.text}: it may be another store's")
            if self.conflicts >= LEASE_AFTER_CONFLICTS and not await self._take_lease(connection, name):
                return False, None
            guards, *replies = await watch(connection, self.bucket, self.keys, self.reads, self._seconds())
            self._check(name, guards, connection.where)
            decision = await self._decide(connection, self.update(replies))
            commands = decision.commands
            check_keys(self.bucket, commands)
            if self.who.wait_replicas and not commands:
                # what was read may be on no replica yet, and WAIT waits for what this connection wrote
                commands = [(b"SET", prefix_of(self.bucket) + b"waited", b"1")]
            if is_moving(guards[0]):
                commands = [*commands, *noting(self.bucket, commands)]
            if self.held is not None or self.is_lease_abandoned:
                commands = [*commands, (b"DEL", self.lease)]
            self.is_committing = True
            try:
                is_done = await connection.commit(commands, self._seconds()) is not None
            except TransactionRefused as error:
                raise _named(self.bucket, error) from None
            if not is_done:
                return False, None
            self.held = None
            if self.who.wait_replicas:
                try:
                    await wait_for_replicas(self.atlas, self.who, connection, self.deadline)
                except NotReplicated as error:
                    error.result = decision.result
                    raise
            return True, decision.result

    def _decide(self, connection: Connection, decision: Decision) -> Coroutine[Any, Any, Writes]:
        return decide(connection, self.bucket, decision, self._seconds, self.deadline.not_counting)

    def _check(self, name: str, guards: Any, where: str) -> None:
        owner, lease = guards
        self.atlas.check_owner(self.bucket, name, owner, where)
        self.is_lease_abandoned = False
        if lease == self.held:
            return
        self.held = None  # somebody else took it for abandoned; we go on without
        if lease is None:
            return
        if self.atlas.standing.seconds(self.lease, lease) < LEASE_SECONDS:
            self.atlas.counts["busy"] += 1
            raise BucketBusy(f"bucket {self.bucket}: another has its lease")
        self.is_lease_abandoned = True

    async def _take_lease(self, connection: Connection, name: str) -> bool:
        """Taking it refuses everyone who is in the middle of a transaction here: all WATCH it. False after a conflict.

        Each try takes it anew, under another number: so others see that its holder lives.
        """
        (guards,) = await connection.watch([self.owner, self.lease], self.guards, self._seconds())
        self._check(name, guards, connection.where)
        before, self.held = self.held, self.who.next_lease()  # from here on it may be ours, also when the answer is lost
        if await connection.commit([(b"SET", self.lease, self.held)], self._seconds()) is None:
            self.held = before
            return False
        self.atlas.counts["leases"] += 1
        return True

    async def _release(self) -> None:
        held, self.held = self.held, None
        try:
            async with self._pool().holding(self.bucket).connection(CHECKOUT_SECONDS) as connection:
                (found,) = await connection.watch([self.owner, self.lease], self.guards)
                if isinstance(found, list) and found[1] == held:
                    await connection.commit([(b"DEL", self.lease)])
        except StoreUnavailable:
            self.atlas.counts["leases_left"] += 1  # others see that it stands still


async def wait_for_replicas(atlas: Atlas, who: Who, connection: Connection, deadline: Deadline) -> None:
    """Raises NotReplicated unless as many replicas as `who` wants have what this connection wrote."""
    seconds = min(deadline.left, WAIT_SECONDS)
    # after EXEC: inside of MULTI it does not wait
    wait = (b"WAIT", b"%d" % who.wait_replicas, b"%d" % max(int(seconds * 1000), 1))
    (found,) = await connection.execute([wait], seconds + REPLY_SECONDS)
    if isinstance(found, Exception):
        raise_for(found, connection.where)
    atlas.kept_up(connection.where)
    if not isinstance(found, int) or found < who.wait_replicas:
        atlas.counts["unreplicated"] += 1
        problem = f"{connection.where}: {found!r} replicas acknowledge what is written, not {who.wait_replicas}"
        atlas.lagged(connection.where, problem)
        raise NotReplicated(problem)


async def decide(
    connection: Connection,
    bucket: int,
    decision: Decision,
    seconds: Callable[[], float],
    not_counting: Callable[[Awaitable[Any]], Awaitable[Any]],
) -> Writes:
    """What comes of what an `update` answered first. `seconds`: what the store may take; `not_counting` awaits what it waits for."""
    for _ in range(MOST_READ_ROUNDS):
        if isawaitable(decision):
            decision = await not_counting(decision)
        if isinstance(decision, Writes):
            return decision
        assert isinstance(decision, More)
        keys = keys_read(bucket, decision.reads) or [owner_key(bucket)]
        decision = decision.update(await watch(connection, bucket, keys, decision.reads, seconds()))
    raise ValueError(f"an update that asks for more than {MOST_READ_ROUNDS} times")


async def watch(connection: Connection, bucket: int, keys: Sequence[bytes], reads: Sequence[Command], seconds: float) -> list[Any]:
    """`Connection.watch`; a refusal names the bucket."""
    try:
        return await connection.watch(keys, reads, seconds)
    except TransactionRefused as error:
        raise _named(bucket, error) from None


def _named(bucket: int, refusal: TransactionRefused) -> TransactionRefused:
    """What the server says, and the bucket beside the server."""
    return TransactionRefused(f"bucket {bucket}: {refusal}")


def keys_read(bucket: int, reads: Sequence[Command]) -> list[bytes]:
    """The keys that `reads` read. ValueError for a command that is no read, or a key of another bucket."""
    prefix = prefix_of(bucket)
    if _wire is not None:
        found: list[bytes] | None = _wire.keys(reads, prefix, _READS_OF_ONE_KEY)
        if found is not None:
            return found
    if len(reads) == 1 and reads[0][0] in _READS_OF_ONE_KEY and len(reads[0]) > 1 and reads[0][1].startswith(prefix):
        return [reads[0][1]]
    if _READS_OF_ONE_KEY.issuperset(map(_NAME_OF, reads)) and min(map(len, reads), default=0) > 1:  # nearly all are such
        keys = list(map(_KEY_OF, reads))
        if all(map(bytes.startswith, keys, repeat(prefix))):
            return keys
    keys = []
    for command in reads:
        name = command[0]
        if name not in _READS_OF_ONE_KEY:
            name = name.upper()
        if name in _READS_OF_ONE_KEY and len(command) > 1:
            keys.append(command[1])
        elif name in _READS_OF_MANY_KEYS and len(command) > 1:
            keys += command[1:]
        else:
            raise ValueError(f"{name!r} is no read of keys")
    for key in keys:
        if not key.startswith(prefix):
            raise ValueError(f"{key!r} is no key of bucket {bucket}")
    return keys


def keys_read_each(reads: Mapping[int, Sequence[Command]]) -> list[list[bytes]]:
    """`keys_read` of each of these, by bucket."""
    if _wire is not None:
        found: list[list[bytes]] | None = _wire.keys_each(list(reads.values()), list(map(prefix_of, reads)), _READS_OF_ONE_KEY)
        if found is not None:
            return found
    return [keys_read(bucket, its) for bucket, its in reads.items()]


def check_keys(bucket: int, commands: Sequence[Command]) -> None:
    """ValueError unless the first key of each of `commands` is a key of `bucket`; so nothing without a key passes either."""
    prefix = prefix_of(bucket)
    for command in commands:
        if len(command) < 2 or not command[1].startswith(prefix):
            raise ValueError(f"{command[:2]!r} writes no key of bucket {bucket}")


def measure(bucket: int, commands: Sequence[Command]) -> int:
    """How many bytes `commands` hold. Raises as `check_keys`."""
    if _wire is not None:
        found: int | None = _wire.measure(commands, prefix_of(bucket))
        if found is not None:
            return found
    check_keys(bucket, commands)
    return sum([sum(map(len, command)) for command in commands])


def measure_each(buckets: Sequence[int], commands: Sequence[Sequence[Command]]) -> list[int | None]:
    """`measure` of the commands of each of these; None where that raises ValueError."""
    if _wire is not None:
        found: list[int | None] | None = _wire.measure_each(list(commands), list(map(prefix_of, buckets)))
        if found is not None:
            return found
    return list(map(_measure_or_none, buckets, commands))


def _measure_or_none(bucket: int, commands: Sequence[Command]) -> int | None:
    try:
        return measure(bucket, commands)
    except ValueError:
        return None
