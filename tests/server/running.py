"""Real Servers on a real store, in this process, for tests; and a sender of envelopes."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from typing import Any

import treq
from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred, TimeoutError, ensureDeferred, gatherResults
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from twisted.web.client import HTTPConnectionPool

from taba import connections
from taba.batch import Entry, Verdict, decode_verdicts, encode_envelope
from taba.server.options import ServerOptions
from taba.server.service import Server
from tests.patience import PATIENCE_SECONDS

from ..stores import borrow
from ..streams import Streams, encoded

reactor: Any = installed
__all__ = ["BUCKETS", "LOCAL", "Answered", "ServerCase", "asynchronous", "encoded", "reactor", "together"]
LOCAL = "tcp:0:interface=127.0.0.1"
BUCKETS = 16


def asynchronous(method: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Deferred[None]]:
    """A test that is a coroutine, as trial takes it.

    Trial ends a test that takes too long by an errback of what it was given, and goes on to the cleanups: then the coroutine ends, too,
    for what it asks a Server again and again would keep that from stopping. The failure says where it was.
    """

    @wraps(method)
    def test(self: Any) -> Deferred[None]:
        running: Deferred[None] = ensureDeferred(method(self))  # type: ignore[arg-type]
        given: Deferred[None] = Deferred()
        late: list[Any] = []  # how the coroutine ended, where nobody waits for it any more
        running.addBoth(lambda result: late.append(result) if given.called else given.callback(result))

        def end(failure: Failure) -> Failure:
            if not running.called:
                running.cancel()
                places = "".join(one.getTraceback() for one in late if isinstance(one, Failure))
                return Failure(TimeoutError(f"{failure.getErrorMessage()}; it was here:\n{places}"))
            return failure

        return given.addErrback(end)

    return test


def options_of(**texts: str) -> ServerOptions:
    """Options as a command line gives them: a free port, BUCKETS buckets, and these."""
    options = ServerOptions({})
    given = {"listen": LOCAL, "buckets": str(BUCKETS), **texts}
    options.parseOptions([f"--{name.replace('_', '-')}={text}" for name, text in given.items()])
    return options


class Answered:
    """An answer, read whole."""

    def __init__(self, status: int, headers: Any, body: bytes):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()


class ServerCase(TestCase):
    """Tests with Servers of their own on one store of their own."""

    timeout = PATIENCE_SECONDS

    def setUp(self) -> None:
        self.valkey = borrow(self)
        self.pool = HTTPConnectionPool(reactor)
        self.pool.maxPersistentPerHost = 50
        self.streams = Streams()
        self.headers: dict[str, list[str]] = {}  # of envelopes
        self.patch(connections, "LINGER_SECONDS", 0.05)

    async def start(self, url: str | None = None, **texts: str) -> Server:
        """One more Server, once it is ready; `texts` are further options."""
        server = Server(options_of(store=url or self.valkey.url, **texts), reactor)
        server.startService()
        self.addCleanup(lambda: ensureDeferred(self.stop(server)))
        while not (server.router.is_ready and server.presence.url and server.age() is not None):
            await deferLater(reactor, 0.01)
        return server

    async def stop(self, server: Server) -> None:
        await self.pool.closeCachedConnections()
        while server.site.connections:
            await deferLater(reactor, 0.01)
        if server.running:
            await server.stopService()

    async def ask(self, server: Server, path: str, method: str = "GET", body: Any = None, headers: Any = None) -> Answered:
        url = f"{server.presence.url}{path}"
        response = await treq.request(method, url, data=body, headers=headers or {}, pool=self.pool, timeout=PATIENCE_SECONDS)
        return Answered(response.code, response.headers, await response.content())

    async def get(self, server: Server, path: str) -> Any:
        answered = await self.ask(server, path)
        self.assertEqual(answered.status, 200, answered.body)
        return answered.json

    async def send(self, server: Server, *entries: Entry) -> list[Verdict]:
        """Send an envelope, once the streams of its entries are open."""
        while headers := self.streams.headers(entries):
            self.streams.opened(headers, await self.send_raw(server, *headers))
        return await self.send_raw(server, *self.streams.with_nonces(entries))

    async def send_raw(self, server: Server, *entries: Entry) -> list[Verdict]:
        """Send an envelope as it is."""
        body = encode_envelope("test", "host", time.time(), None, entries)
        answered = await self.ask(server, "/v1/envelopes", "POST", body, self.headers)
        self.assertEqual(answered.status, 200, answered.body)
        self.assertEqual(answered.headers.getRawHeaders("Taba-Verdicts"), ["1"])
        return decode_verdicts(answered.body, len(entries)).verdicts

    async def post(self, server: Server, events: Sequence[Any], key: str | None = None, client: str = "web/1") -> Answered:
        body = json.dumps({"client": client, "events": events}).encode()
        return await self.ask(server, "/v1/events", "POST", body, {"Idempotency-Key": [key]} if key else {})

    async def all_bytes(self, server: Server) -> Any:
        """Every State in the store, byte for byte."""
        return await server.router.read_many({b: [(b"HGETALL", b"taba:{%d}:states" % b)] for b in range(BUCKETS)})


def together(coroutines: Sequence[Any]) -> Deferred[list[Any]]:
    return gatherResults([ensureDeferred(coroutine) for coroutine in coroutines], consumeErrors=True)
