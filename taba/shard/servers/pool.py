"""The connections to one server: bounded, kept up with back-off, handed out one user at a time, never for longer than a deadline.

Each place in the pool is a ClientService of Twisted, which reconnects. A connection comes back clean or not at all:
one with replies outstanding is closed, one with WATCHed keys hears UNWATCH, and its answer is awaited, first.

What waits for a connection has it in the order in which it came, but of several askers (`taba.places.ASKER`; what nobody asked for, such as
folds, is one) one after the other: who has many callers that wait is one that others' wait for.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from twisted.application.internet import ClientService, backoffPolicy
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, fail, gatherResults
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.ssl import optionsForClientTLS
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from taba.descriptors import NO_DESCRIPTORS, cure_of
from taba.errors import ConfigurationError, StoreUnavailable, TabaError
from taba.places import ASKER
from taba.shard.servers.asking import Asking
from taba.shard.servers.connection import REPLY_SECONDS, WORDS, Command, Connection, ErrorReply, Reply, raise_for
from taba.shard.servers.url import Address
from taba.tls import SendingTls, TlsFiles, tls_sentence

POOL_CONNECTIONS = 12  # per server and process: eight fold cycles wait for its disk at a time, and queries need no wait for them
CHECKOUT_SECONDS = 2.0  # how long a caller waits for a connection; a restarted store is back within it
CHECKOUT_WAITERS = 1000  # callers that wait for a connection; more are told at once that the store is busy
CONNECT_SECONDS = 5.0  # one try to connect
FIRST_RETRY_SECONDS = 0.05
LAST_RETRY_SECONDS = 2.0
UNWATCH_SECONDS = 2.0
UNIX_PATH_BYTES = 107  # what the kernel takes for the path of a unix socket

PARAMETERS = {"--tls-cert": "cert", "--tls-key": "key", "--cacert": "cacert"}  # of an address, for what is an option elsewhere

Greeting = Callable[[Connection], Awaitable[None]]

log = Logger()


@implementer(IStreamClientEndpoint)
class _DeepUNIXEndpoint:
    """A unix socket whose path may be longer than the kernel takes: reached through its directory, opened."""

    def __init__(self, reactor: Any, path: str):
        self._reactor = reactor
        self._path = path

    def connect(self, factory: Any) -> Deferred[Any]:
        if len(os.fsencode(self._path)) <= UNIX_PATH_BYTES:
            return self._connect(self._path, factory)
        try:
            directory = os.open(os.path.dirname(self._path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            failed: Deferred[Any] = Deferred()
            failed.errback(Failure())
            return failed

        def close(result: Any) -> Any:
            os.close(directory)
            return result

        short = f"/proc/self/fd/{directory}/{os.path.basename(self._path)}"
        return self._connect(short, factory).addBoth(close)

    def _connect(self, path: str, factory: Any) -> Deferred[Any]:
        connecting: Deferred[Any] = UNIXClientEndpoint(self._reactor, path, timeout=CONNECT_SECONDS).connect(factory)
        return connecting


def endpoint_of(reactor: Any, address: Address) -> Any:
    """The endpoint that connects to `address`, with TLS where it asks for it."""
    if address.path:
        return _DeepUNIXEndpoint(reactor, address.path)
    endpoint: Any = HostnameEndpoint(reactor, address.host, address.port, timeout=CONNECT_SECONDS)
    if not address.tls:
        return endpoint
    if not (address.certificate or address.authorities):
        return wrapClientTLS(optionsForClientTLS(address.host), endpoint)
    return _WithFiles(address, endpoint)


def check_files(address: Address) -> None:
    """Raises ConfigurationError, which names the part of the address, where the files that it names hold no certificates."""
    if address.certificate or address.authorities:
        _sending(address)


def _sending(address: Address) -> SendingTls:
    own = TlsFiles(Path(address.certificate), Path(address.key)) if address.certificate else None
    try:
        return SendingTls(Path(address.authorities) if address.authorities else None, own)
    except ConfigurationError as error:
        raise ConfigurationError("--store", f"?{PARAMETERS[error.option]}={error.value}", error.takes) from None


@implementer(IStreamClientEndpoint)
class _WithFiles:
    """TLS with the certificates that lie in files at the moment: each connection reads them, so that renewed ones hold."""

    def __init__(self, address: Address, endpoint: Any):
        self._address, self._endpoint = address, endpoint

    def connect(self, factory: Any) -> Deferred[Any]:
        try:
            creator = _sending(self._address).creatorForNetloc(self._address.host.encode(), self._address.port)
        except TabaError:
            return fail()  # as a server that is away: a file may be half written
        wrapped: Any = wrapClientTLS(creator, self._endpoint)
        connecting: Deferred[Any] = wrapped.connect(factory)
        return connecting


def authentication(address: Address) -> list[Command]:
    """What opens the server at `address` to us: nothing, where it has no password."""
    if not address.password:
        return []
    user = (address.username.encode(),) if address.username else ()
    return [(b"AUTH", *user, address.password.encode())]


@implementer(IStreamClientEndpoint)
class _Noting:
    """An endpoint that tells why it failed; ClientService only tries again."""

    def __init__(self, endpoint: Any, name: str, note: Callable[[Failure], None]):
        self._endpoint = endpoint
        self._name = name
        self._note = note

    def connect(self, factory: Any) -> Deferred[Any]:
        connecting: Deferred[Any] = self._endpoint.connect(factory)
        return connecting.addErrback(self._failed)

    def __repr__(self) -> str:
        return self._name  # in ClientService's log

    def _failed(self, failure: Failure) -> Failure:
        self._note(failure)
        return failure


class Checkout:
    """`async with pool.connection() as connection:`; the connection is the caller's alone inside."""

    def __init__(self, pool: Pool, seconds: float):
        self._pool = pool
        self._seconds = seconds
        self._connection: Connection | None = None

    async def __aenter__(self) -> Connection:
        self._connection = self._pool.idle() or await self._pool.take(self._seconds)
        return self._connection

    async def __aexit__(self, *_: object) -> None:
        connection, self._connection = self._connection, None
        assert connection is not None
        if connection.is_watching and connection.is_open:
            try:
                replies = await connection.execute([(b"UNWATCH",)], UNWATCH_SECONDS)
                connection.is_watching = isinstance(replies[0], Exception)
            except StoreUnavailable:
                pass  # the connection is closed with its WATCH, which is as good; the caller's own error goes on
        self._pool.release(connection)


class Pool:
    """At most `size` connections to the server at `address`. `greet` says what belongs before first use; when it raises, the place
    tries again later. `is_awaited`: that nobody is there yet is normal, and whoever waits says what it came to; the log does not."""

    last_retry_seconds = LAST_RETRY_SECONDS

    def __init__(
        self,
        reactor: Any,
        address: Address,
        greet: Greeting | None = None,
        size: int = POOL_CONNECTIONS,
        random: Random | None = None,
        is_awaited: bool = False,
    ):
        self.address = address
        self.text = address.text
        self.size = size
        self.last_error = "not connected yet"
        self.scripts_from = 0.0  # when scripts may be sent to it, by the reactor's clock
        self.asking = Asking(self, reactor)
        self.writing = Asking(self, reactor)  # scripts that write, apart: their answers wait for the server's disk
        self._is_awaited = is_awaited
        self._logged = ""  # the reason that the log gave last, since a connection was up
        self._reactor = reactor
        self._random = random or Random()
        self._greet = greet
        self._services: list[ClientService] = []
        self._idle: list[Connection] = []
        self._waiters: dict[str, deque[Deferred[Connection]]] = {}  # by asker; whose turn it is comes first
        self._waiting = 0
        self._freed: deque[Connection] = deque()  # to be handed to them, while another is
        self._is_handing_out = False
        self._open: set[Connection] = set()
        self._is_closed = False

    @property
    def is_connected(self) -> bool:
        """At least one connection is up."""
        return bool(self._open)

    @property
    def connections(self) -> int:
        return len(self._open)

    @property
    def places(self) -> int:
        """Connections that are up or tried for."""
        return len(self._services)

    # --- as one of the forms that a shard may have (see `cluster` for one that is many servers) ---

    @property
    def servers(self) -> Sequence[Pool]:
        """The pools of the servers that the shard is made of."""
        return (self,)

    def holding(self, bucket: int) -> Pool:
        """The pool of the server that has `bucket`, if the shard has it."""
        return self

    def server_of(self, key: bytes) -> Pool:
        """The pool of the server that has `key`."""
        return self

    async def refresh(self, seconds: float) -> None:
        """Look again which server has which bucket."""

    def redirected(self, bucket: int, redirection: str) -> None:
        """A server said that it does not have `bucket`, with these words."""

    # --- life ---

    def start(self) -> None:
        """Begin with one place; more are opened as callers would wait. Raises ConfigurationError for files that hold no certificates."""
        check_files(self.address)
        if not self._services:
            self._add_place()

    async def close(self) -> None:
        """Close every connection; callers that wait, and later ones, get StoreUnavailable."""
        self._is_closed = True
        waiters, self._waiters, self._waiting = self._waiters, {}, 0
        for line in waiters.values():
            for waiter in line:
                waiter.errback(StoreUnavailable(f"{self.address.text}: closed"))
        for connection in list(self._open):
            connection.abort("closed")
        services, self._services = self._services, []
        await gatherResults([service.stopService() for service in services])

    def connection(self, seconds: float = CHECKOUT_SECONDS) -> Checkout:
        """A connection for the `async with` block, waited for no longer than `seconds`: then StoreUnavailable."""
        return Checkout(self, seconds)

    async def execute(
        self,
        commands: Sequence[Command],
        seconds: float = REPLY_SECONDS,
        checkout_seconds: float = CHECKOUT_SECONDS,
        quiet: float | None = None,
    ) -> list[Reply]:
        """`Connection.execute` on any connection. Not for WATCH or MULTI, which want one connection for longer."""
        connection = self.idle() or await self.take(checkout_seconds)
        try:
            return await connection.execute(commands, seconds, quiet)
        finally:
            self.release(connection)

    def idle(self) -> Connection | None:
        """A connection that is free now, for the caller alone until `release`; None where there is none."""
        while self._idle and not self._is_closed:
            connection = self._idle.pop()  # the one used last: the others' buffers stay cold, and may be closed
            if connection.is_idle:
                return connection
        return None

    # --- places ---

    def _add_place(self) -> None:
        factory: Any = Factory.forProtocol(lambda: Connection(self._reactor, self.address.text, self._lost, self.address.prefix))
        factory.noisy = False
        policy = backoffPolicy(FIRST_RETRY_SECONDS, self.last_retry_seconds, 1.7, lambda: self._random.uniform(0, FIRST_RETRY_SECONDS))
        # ClientService knows failures to connect; a server that lets us connect and turns us away is one too
        rejected = [0]

        def prepare(proxy: Any) -> None:
            # not here: ClientService has no state for a connection that is lost while it is being prepared
            self._reactor.callLater(0, lambda: ensureDeferred(self._welcome(proxy.itself(), rejected)))

        endpoint: Any = _Noting(self._endpoint(), self.address.text, self._note)
        service = ClientService(endpoint, factory, lambda tries: policy(max(tries, rejected[0])), self._reactor, prepare)
        self._services.append(service)
        service.startService()

    def _endpoint(self) -> Any:
        return endpoint_of(self._reactor, self.address)

    async def _introduce(self, connection: Connection) -> None:
        """Say who we are, and see that the server is what it should be; raises where it is not."""
        # a user that may not MULTI must be found out here: its commands would be carried out one by one
        chosen: list[Command] = [(b"SELECT", b"%d" % self.address.database)] if self.address.database else []
        hello = [*authentication(self.address), *chosen, (b"PING",), (b"MULTI",), (b"EXEC",)]
        for reply in await connection.execute(hello, CONNECT_SECONDS):
            if isinstance(reply, ErrorReply):
                raise_for(reply, connection.where)
        if self._greet is not None:
            await self._greet(connection)

    async def _welcome(self, connection: Connection, rejected: list[int]) -> None:
        try:
            await self._introduce(connection)
        except TabaError as error:  # the store's answer, or none: said to whoever waits for a connection, and tried again
            self._fail_with(str(error))
            rejected[0] += 1
            connection.abort("the store turned it away")
        else:
            rejected[0] = 0
            self._offer_new(connection)

    def _offer_new(self, connection: Connection) -> None:
        if self._is_closed:
            connection.abort("closed")
        elif connection.is_open:
            self._open.add(connection)
            self._logged = ""
            self.release(connection)

    def _note(self, failure: Failure) -> None:
        if failure.check(CancelledError, ConnectingCancelledError):
            return  # given up here, as what is closed is: what kept it from coming up was said before
        number = getattr(failure.value, "osError", None) or getattr(failure.value, "errno", None)  # Twisted's own errors, and others
        cure = f"; {cure_of(number, 'this process')}" if number in NO_DESCRIPTORS else ""
        self._fail_with(f"{self.address.text}: {tls_sentence(failure.value, WORDS) or failure.getErrorMessage()}{cure}")

    def _fail_with(self, why: str) -> None:
        self.last_error = why
        if why != self._logged and not self._is_awaited:  # ClientService's own lines say when it tries again, never why
            self._logged = why
            log.warn("no connection to the store: {why}", why=why)

    def _lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if not self._open and len(self._services) > 1 and not self._is_closed:
            self._reactor.callLater(0, self._keep_one_place)

    def _keep_one_place(self) -> None:
        # a server that is away gets one knock at a time, and one line in the log for it
        if not self._open and not self._is_closed:
            extra, self._services = self._services[1:], self._services[:1]
            for service in extra:
                service.stopService()

    # --- handing out ---

    def take(self, seconds: float) -> Deferred[Connection]:
        """A connection for the caller alone until `release`, waited for no longer than `seconds`: then StoreUnavailable."""
        taken: Deferred[Connection] = Deferred(self._forget_waiter)
        if self._is_closed:
            taken.errback(StoreUnavailable(f"{self.address.text}: closed"))
            return taken
        if (connection := self.idle()) is not None:
            taken.callback(connection)
            return taken
        if self._waiting >= CHECKOUT_WAITERS:
            taken.errback(StoreUnavailable(f"{self.address.text}: {CHECKOUT_WAITERS} callers wait for a connection already"))
            return taken
        self._waiters.setdefault(ASKER.get(), deque()).append(taken)
        self._waiting += 1
        if len(self._services) < self.size and (self._open or not self._services):
            self._add_place()  # only while the server is there: a server that is away gets one knock at a time
        timer = self._reactor.callLater(seconds, self._checkout_late, taken, seconds)

        def stop(result: Any) -> Any:
            if timer.active():
                timer.cancel()
            return result

        return taken.addBoth(stop)

    def _checkout_late(self, waiter: Deferred[Connection], seconds: float) -> None:
        self._forget_waiter(waiter)
        why = f"all {len(self._open)} connections are busy" if self._open else self.last_error
        waiter.errback(StoreUnavailable(f"{self.address.text}: no connection within {seconds:.3g} s: {why}"))

    def _forget_waiter(self, waiter: Deferred[Connection]) -> None:
        for asker, line in self._waiters.items():
            if waiter in line:
                line.remove(waiter)
                self._waiting -= 1
                if not line:
                    del self._waiters[asker]
                return

    def _next_waiter(self) -> Deferred[Connection]:
        """The first of the asker whose turn it is; the next one is another's, where others wait."""
        asker = next(iter(self._waiters))
        line = self._waiters.pop(asker)
        waiter = line.popleft()
        self._waiting -= 1
        if line:
            self._waiters[asker] = line
        return waiter

    def release(self, connection: Connection) -> None:
        """The caller of `idle` or `take` needs it no more; nothing is WATCHed on it."""
        if not connection.is_idle:
            connection.abort("its user left it in the middle of something")
            return
        if not self._waiters:
            self._idle.append(connection)
            return
        self._freed.append(connection)
        if self._is_handing_out:
            return  # who was given it does without: one inside the other, many of them would not fit on the stack
        self._is_handing_out = True
        try:
            while self._freed:
                freed = self._freed.popleft()
                if not self._waiters:
                    self._idle.append(freed)
                    continue
                self._next_waiter().callback(freed)
                if self._waiters and len(self._services) < self.size:
                    self._add_place()  # they came before the server was there
        finally:
            self._is_handing_out = False
