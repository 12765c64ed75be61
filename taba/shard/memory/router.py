"""The real Router over servers in memory. Only the wire is replaced: owner keys, leases, conflicts and retries are the Router's own code.

Nothing waits: with a `Clock` for reactor, what needs no retry has its result at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed

from taba.errors import StoreUnavailable
from taba.shard.memory.server import MemoryServer, refusal
from taba.shard.router import Router
from taba.shard.servers.connection import REPLY_SECONDS, Command, Connection, ErrorReply, Reply, Transactions
from taba.shard.servers.pool import Pool
from taba.shard.servers.url import Address, StoreURL


class MemoryConnection(Transactions):
    """A conversation with a MemoryServer: WATCH, MULTI and EXEC as a real server has them."""

    def __init__(self, server: MemoryServer, where: str):
        self.where = where
        self.is_watching = False
        self.is_open = True
        self._server = server
        self._watched: dict[bytes, int] = {}
        self._queue: list[Command] | None = None
        self._is_spoilt = False

    @property
    def is_idle(self) -> bool:
        return self.is_open and not self.is_watching

    def execute(self, commands: Sequence[Command], seconds: float = REPLY_SECONDS, quiet: float | None = None) -> Deferred[list[Reply]]:
        if self._server.is_away or not self.is_open:
            self.is_open = False
            return fail(StoreUnavailable(f"{self.where}: away"))
        return succeed([self._one(command) for command in commands])

    def abort(self, reason: str) -> None:
        self.is_open = False

    def _one(self, command: Command) -> Reply:
        name = command[0].upper()
        if name == b"EXEC":
            return self._exec()
        if name == b"MULTI":
            self._queue = []
            return b"OK"
        if self._queue is not None:
            refused = refusal(command)
            if refused is not None:
                self._is_spoilt = True
                return refused
            self._queue.append(command)
            return b"QUEUED"
        if name == b"WATCH":
            for key in command[1:]:
                self._watched.setdefault(key, self._server.version(key))
            return b"OK"
        if name == b"UNWATCH":
            self._watched.clear()
            return b"OK"
        return self._server.run(command)

    def _exec(self) -> Reply:
        queue, self._queue = self._queue, None
        watched, self._watched = self._watched, {}
        is_spoilt, self._is_spoilt = self._is_spoilt, False
        if queue is None:
            return ErrorReply("ERR EXEC without MULTI")
        if is_spoilt:
            return ErrorReply("EXECABORT Transaction discarded because of previous errors.")
        if any(self._server.version(key) != version for key, version in watched.items()):
            return None
        return [self._server.run(command) for command in queue]


class _MemoryPool(Pool):
    """As many connections as anybody wants."""

    def __init__(self, reactor: Any, address: Address, server: MemoryServer):
        super().__init__(reactor, address)
        self.server = server
        self.last_error = f"{address.text}: away"

    @property
    def is_connected(self) -> bool:
        return not self.server.is_away

    def start(self) -> None:
        """Nothing to do."""

    def idle(self) -> Connection | None:
        connection: Any = None if self.server.is_away else MemoryConnection(self.server, self.address.text)
        return connection  # type: ignore[no-any-return]  # has what a Connection has

    def take(self, seconds: float) -> Deferred[Connection]:
        connection = self.idle()
        return fail(StoreUnavailable(self.last_error)) if connection is None else succeed(connection)

    def release(self, connection: Connection) -> None:
        """It is not used again."""


class MemoryRouter(Router):
    """A Router over `servers`, which may be shared with other MemoryRouters: then it is the same store.

    Its URL names the first `named` of them, or all; the others it finds as the map names them.
    """

    def __init__(
        self,
        servers: Sequence[MemoryServer],
        buckets: int | None = None,
        reactor: Any = None,
        random: Random | None = None,
        named: int | None = None,
    ):
        self.servers = {f"memory-{number}": server for number, server in enumerate(servers, 1)}
        store = StoreURL(tuple(Address(host=name, port=6379) for name in self.servers)[:named])
        if reactor is None:
            from twisted.internet import reactor

        def new_pool(address: Address) -> Pool:
            return _MemoryPool(reactor, address, self.servers[address.host])

        super().__init__(store, buckets, reactor, random, new_pool=new_pool)
