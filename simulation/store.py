"""The store as Servers reach it: each write of theirs is delivered, carried out and answered as an event of its own, or is not.

1. What is carried out, and when, is decided on delivery: others come between a WATCH and its EXEC.
2. A connection that is cut may be cut before or after what was sent on it was carried out; who waits never knows.
3. What a store has acknowledged it keeps, unless it is told to go back in time, or its replica, which lags, takes its place: that is what
   Agents keep batches for.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Collection, Sequence
from random import Random
from typing import Any, NamedTuple
from zlib import crc32

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from simulation.clockwork import Clockwork, Process
from taba.errors import StoreUnavailable
from taba.server import keys
from taba.shard.memory.router import MemoryConnection
from taba.shard.memory.server import MemoryServer
from taba.shard.servers.connection import REPLY_SECONDS, Command, Connection, ConnectionGone, ErrorReply, Reply, Transactions
from taba.shard.servers.pool import Pool
from taba.shard.servers.url import Address

FIRST_SECONDS = 0.0002
LAST_SECONDS = 0.004
LATE_SECONDS = 8.0  # the most when it answers late: longer than a cycle has
PAST_SECONDS = 1.0  # between two of its pasts
MAX_PASTS = 40
CUT_SECONDS = 0.5  # between two tries of what is sent where nobody is reached
REPLICA = "replica:6379"
REPLICA_SECONDS = 0.002  # that its replica is behind, where nothing is wrong

# by a server whose disk takes nothing more
_ANSWERED_ALWAYS = frozenset(
    b"PING ECHO INFO TIME CONFIG GET STRLEN EXISTS MGET PTTL HGET HMGET HGETALL HKEYS HVALS HLEN HEXISTS SMEMBERS SCARD SISMEMBER"
    b" SMISMEMBER ZRANGEBYLEX ZRANDMEMBER LRANGE LLEN LINDEX WATCH UNWATCH MULTI EXEC"
    b" SCAN HSCAN SSCAN ZSCAN GETRANGE MEMORY WAIT TYPE ZRANGE".split()
)

# by a server that has reached its `maxmemory`, and evicts nothing: what may need more; what removes, expires or renames it carries out
_REFUSED_FULL = frozenset(
    b"SET SETEX PSETEX SETNX GETSET MSET APPEND SETRANGE INCR INCRBY INCRBYFLOAT DECR DECRBY HSET HSETNX HMSET HINCRBY HINCRBYFLOAT LPUSH"
    b" RPUSH LPUSHX RPUSHX LSET LINSERT SADD SMOVE ZADD ZINCRBY COPY RESTORE".split()
)


class _Clock:
    """The clock of the store's host, which may be set; for what expires, and for TIME."""

    def __init__(self, world: Clockwork):
        self.world, self.skew = world, 0.0

    def seconds(self) -> float:
        return self.world.unix + self.skew


class Server(MemoryServer):
    """A server that remembers which keys were changed since somebody looked."""

    def __init__(self, clock: Any, random: Random):
        super().__init__(clock, random)
        self.touched: set[bytes] = set()

    def _touch(self, key: bytes) -> None:
        self._changes += 1
        self._versions[key] = self._changes
        self.touched.add(key)


class Image(NamedTuple):
    """What keys were after a change, on its way to the replica, which has it `at` a time."""

    at: float
    offset: int
    content: dict[bytes, tuple[Any, float | None]]


class Store:
    """One server of the store, and its replica once that is wanted."""

    def __init__(self, world: Clockwork, name: str, changed: Callable[[Store, set[bytes]], None], unreached: Collection[str] = ()):
        self.world, self.name, self._changed, self._unreached = world, name, changed, unreached
        self.clock = _Clock(world)
        self.server = Server(self.clock, Random(world.random.getrandbits(64)))
        self.is_up = True
        self.is_reading_only = False  # answers MISCONF to whoever writes
        self.is_full = False  # answers OOM to whoever writes what may need more memory
        self.lives = 0  # of its process: connections end with it
        self.cut_before = self.cut_after = self.late = 0.0  # shares of what is sent to it
        self.pasts: deque[tuple[float, Any]] | None = None
        self.lag = REPLICA_SECONDS  # of its replica
        self._replica: tuple[dict[bytes, Any], dict[bytes, float]] | None = None
        self._on_its_way: deque[Image] = deque()

    # --- its replica ---

    def follow(self) -> None:
        """Have a replica from now on, which is as this one is."""
        server = self.server
        self._replica = ({key: _copied(value) for key, value in server._values.items()}, dict(server._expires))
        self._on_its_way.clear()
        server.replicas = {REPLICA: server.offset}

    def settle(self) -> None:
        """After commands: what they changed is on its way to the replica, and the world looks at it."""
        server = self.server
        touched = server.touched
        if not touched:
            return
        if self._replica is not None:
            content = {key: (_copied(server._values.get(key)), server._expires.get(key)) for key in touched}
            last = self._on_its_way[-1].at if self._on_its_way else 0.0
            self._on_its_way.append(Image(max(last, self.world.now + self.lag), server.offset, content))
        server.touched = set()
        self._changed(self, touched)

    def replicate(self) -> None:
        """What has come to the replica by now is there."""
        if self._replica is None:
            return
        values, expires = self._replica
        while self._on_its_way and self._on_its_way[0].at <= self.world.now:
            image = self._on_its_way.popleft()
            for key, (value, end) in image.content.items():
                if value is None:
                    values.pop(key, None)
                    expires.pop(key, None)
                else:
                    values[key] = value
                    expires.pop(key, None)
                    if end is not None:
                        expires[key] = end
            self.server.replicas[REPLICA] = image.offset

    def waits(self, milliseconds: int) -> tuple[int, float]:
        """WAIT: how many replicas have all by the end of it, and how long that takes."""
        if self._replica is None:
            return 0, 0.0
        left = self._on_its_way[-1].at - self.world.now if self._on_its_way else 0.0
        return (1, max(left, 0.0)) if left <= milliseconds / 1000 else (0, milliseconds / 1000)

    def fail_over(self) -> int:
        """Its replica is the server now; how many changes it lacked."""
        assert self._replica is not None
        self.replicate()
        server = self.server
        lost = len(self._on_its_way)
        for image in self._on_its_way:
            for key in image.content:
                server._touch(key)
        server._values, server._expires = self._replica
        server.run_id, server.stream_id = server.new_id(), server.new_id()
        self.follow()
        self.settle()
        return lost

    # --- its past ---

    def remember(self) -> None:
        """Keep pasts from now on."""
        self.pasts = deque(maxlen=MAX_PASTS)
        self._keep_past()

    def _keep_past(self) -> None:
        assert self.pasts is not None
        self.world.later(PAST_SECONDS, None, self._keep_past)
        server = self.server
        if keys.age(0) not in server._values:
            return  # it is not furnished yet: one that is empty again is another store, and is not taken for this one
        values = {key: _copied(value) for key, value in server._values.items()}
        self.pasts.append((self.world.now, (values, dict(server._expires))))

    def go_back(self, seconds: float) -> float:
        """Be as it was so many seconds ago, or as far back as it knows; returns how far that is."""
        if not self.pasts:
            return 0.0
        when, (values, expires) = next((past for past in reversed(self.pasts) if past[0] <= self.world.now - seconds), self.pasts[0])
        server = self.server
        for key in {*server._values, *values}:
            server._touch(key)
        server._values = {key: _copied(value) for key, value in values.items()}
        server._expires = dict(expires)
        self.settle()
        while self.pasts and self.pasts[-1][0] > when:
            self.pasts.pop()
        return self.world.now - when

    def is_cut(self, process: Process) -> bool:
        """Whether this process reaches no store."""
        return bool(self._unreached) and process.name.partition("#")[0] in self._unreached

    def end_life(self) -> None:
        """Its process ends, or is another now: so do all connections to it."""
        self.lives += 1

    def seconds(self) -> float:
        """How long what is sent to it, or its answer, is on its way."""
        random = self.world.random
        if self.late and random.random() < self.late:
            self.world.fired["store answers late"] += 1
            return random.uniform(LAST_SECONDS, LATE_SECONDS)
        return random.uniform(FIRST_SECONDS, LAST_SECONDS)


def _copied(value: Any) -> Any:
    return value if value is None or isinstance(value, bytes) else copy.copy(value)


class StoreConnection(Transactions):
    """A conversation of one process with one server of the store."""

    def __init__(self, store: Store, process: Process, where: str):
        self.where = where
        self.is_watching = False
        self.is_open = True
        self._store, self._process = store, process
        self._life = store.lives
        self._session = MemoryConnection(store.server, where)
        self._waiting: dict[Deferred[list[Reply]], Any] = {}

    @property
    def is_idle(self) -> bool:
        return self.is_open and not self._waiting and not self.is_watching

    def itself(self) -> StoreConnection:
        return self

    def execute(self, commands: Sequence[Command], seconds: float = REPLY_SECONDS, quiet: float | None = None) -> Deferred[list[Reply]]:
        if not self.is_open:
            return fail(ConnectionGone(f"{self.where}: not connected"))
        if not commands:
            return succeed([])
        done: Deferred[list[Reply]] = Deferred(lambda _: self.abort("the caller gave up"))
        world, store = self._store.world, self._store
        world.awaited.append(done)
        if not self._process.is_alive:
            return done
        patience = seconds if quiet is None else min(seconds, quiet)
        self._waiting[done] = self._process.reactor.callLater(patience, self.abort, f"no reply within {patience:.3g} s")
        world.later(store.seconds(), None, self._arrive, list(commands), done)
        return done

    def _arrive(self, commands: list[Command], done: Deferred[list[Reply]]) -> None:
        store, world = self._store, self._store.world
        if store.is_cut(self._process):
            world.fired["no store reached"] += 1
            world.later(CUT_SECONDS, None, self._arrive, commands, done)  # it is sent again until it is there, whoever waits
            return
        if not store.is_up or store.lives != self._life:
            world.fired["store not there"] += 1
            world.later(0.0005, self._process, self.abort, "the connection was lost")
            return
        if store.cut_before and world.random.random() < store.cut_before:
            world.fired["store cut before"] += 1
            self._life = -1  # what comes after on this connection does not arrive
            world.later(store.seconds(), self._process, self.abort, "the connection was lost")
            return
        world.steps += 1
        world.digest = crc32(repr(world.now).encode(), world.digest)
        store.replicate()
        delay = 0.0
        replies: list[Reply] = []
        for command in commands:
            if command[0] == b"WAIT" and self._session._queue is None:
                count, seconds = store.waits(int(command[2]))
                replies.append(count)
                delay += seconds
            else:
                replies.append(self._one(command))
        store.settle()
        if store.cut_after and world.random.random() < store.cut_after:
            world.fired["store cut after"] += 1
            self._life = -1
            world.later(store.seconds(), self._process, self.abort, "the connection was lost")
            return
        world.later(delay + store.seconds(), self._process, self._answer, replies, done)

    def _one(self, command: Command) -> Reply:
        if self._store.is_reading_only and command[0].upper() not in _ANSWERED_ALWAYS:
            self._store.world.fired["store takes no writes"] += 1
            self._session._is_spoilt = self._session._queue is not None
            return ErrorReply("MISCONF Errors writing to the AOF file: No space left on device")
        if self._store.is_full and command[0].upper() in _REFUSED_FULL:
            self._store.world.fired["store has no memory"] += 1
            self._session._is_spoilt = self._session._queue is not None
            return ErrorReply("OOM command not allowed when used memory > 'maxmemory'.")
        return self._session._one(command)

    def _answer(self, replies: list[Reply], done: Deferred[list[Reply]]) -> None:
        if self._store.is_cut(self._process):
            self._store.world.later(CUT_SECONDS, self._process, self._answer, replies, done)
            return
        timer = self._waiting.pop(done, None)
        if timer is None:
            return
        if timer.active():
            timer.cancel()
        if self._store.lives != self._life:
            done.errback(Failure(ConnectionGone(f"{self.where}: the connection was lost")))
            self.abort("the connection was lost")
            return
        # a reply that comes is a step of whoever waits for it, and may be its last
        if self._process.write("the answer of the store"):
            return
        done.callback(replies)

    def abort(self, reason: str) -> None:
        """What was sent may arrive all the same: it lies in a socket."""
        if not self.is_open:
            return
        self.is_open = False
        waiting, self._waiting = self._waiting, {}
        for done, timer in waiting.items():
            if timer.active():
                timer.cancel()
            if not done.called:
                done.errback(Failure(ConnectionGone(f"{self.where}: {reason}")))


class StorePool(Pool):
    """The connections of one process to one server: as many as it wants, each kept for the next use."""

    def __init__(self, process: Process, address: Address, store: Store):
        super().__init__(process.reactor, address)
        self.store, self._process = store, process
        self.last_error = f"{address.text}: away"
        self._kept: list[StoreConnection] = []

    @property
    def is_connected(self) -> bool:
        return self.is_reached

    @property
    def is_reached(self) -> bool:
        return self.store.is_up and not self.store.is_cut(self._process)

    def start(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    def idle(self) -> Connection | None:
        while self._kept and self.is_reached:
            kept: Any = self._kept.pop()
            if kept.is_idle and kept._life == self.store.lives:
                return kept  # type: ignore[no-any-return]  # has what a Connection has
        return None

    def take(self, seconds: float) -> Deferred[Connection]:
        if not self.is_reached:
            if self.store.is_up:
                self.store.world.fired["no store reached"] += 1
            failed: Deferred[Any] = Deferred(lambda _: None)
            error = StoreUnavailable(self.last_error)
            patience = min(seconds, 0.05) if not self.store.is_up else seconds  # nobody refuses who is not reached
            self._process.reactor.callLater(patience, lambda: None if failed.called else failed.errback(Failure(error)))
            return failed
        if (kept := self.idle()) is not None:
            return succeed(kept)
        made: Any = StoreConnection(self.store, self._process, self.address.text)
        return succeed(made)

    def release(self, connection: Any) -> None:
        if connection.is_idle:
            self._kept.append(connection)
        else:
            connection.abort("its user left it in the middle of something")
