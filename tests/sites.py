"""A real Site on loopback, for tests of what it answers and of whom it bears."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet import reactor as installed
from twisted.internet import task, threads
from twisted.trial.unittest import TestCase

from taba import connections
from taba.calls import Answer, Call, HTTPError
from taba.errors import MalformedBatch, StoreUnavailable
from taba.guard import Guard
from taba.listening import Front
from taba.options import Listen
from taba.routes import Parameter, Route, Serve
from taba.tokens import ADMIN, OPEN, READ, WRITE
from taba.web import Api
from tests.patience import PATIENCE_SECONDS

reactor: Any = installed

LIMIT = 1000


async def echo(call: Call) -> Answer:
    return Answer({"size": len(await call.body()), "arguments": call.arguments}, text=lambda: "text\n")


async def picky(call: Call) -> Answer:
    return Answer(call.values["name"])


async def posted(call: Call) -> Answer:
    return Answer(await call.json())


def raising(error: Exception) -> Callable[[Call], Any]:
    async def route(call: Call) -> Answer:
        raise error

    return route


LETTERS = tuple(Parameter(name, "Any text.", repeatable=True) for name in "ab")


def route(method: str, path: str, serve: Serve, *parameters: Parameter, token: str = ADMIN) -> Route:
    return Route(method, path, serve, "", token, parameters)


ROUTES = [
    route("GET", "/echo", echo, *LETTERS, token=READ),
    route("POST", "/echo", echo, *LETTERS, token=WRITE),
    route("GET", "/picky", picky, Parameter("name", ""), Parameter("other", "")),
    route("POST", "/json", posted, token=WRITE),
    route("GET", "/malformed", raising(MalformedBatch("bad"))),
    route("GET", "/store", raising(StoreUnavailable("away"))),
    route("GET", "/bug", raising(KeyError("x"))),
    route("GET", "/teapot", raising(HTTPError(418, "teapot", "short and stout")), token=OPEN),
]


class Served(TestCase):
    """A real Site on loopback; requests are made from a thread with the standard library."""

    def setUp(self) -> None:
        self.serve(Api(ROUTES))

    def serve(self, api: Api) -> None:
        """Have these routes answer at `port`."""
        self.api = api
        self.site = connections.make_site(api, LIMIT)
        port = reactor.listenTCP(0, self.site, interface="127.0.0.1")
        self.port = port.getHost().port
        self.addCleanup(port.stopListening)

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, Any]:
        def ask() -> tuple[int, Any, Any]:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
            try:
                connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
                answer = connection.getresponse()
                content = answer.read()
                kind = answer.getheader("content-type") or ""
                return answer.status, json.loads(content) if "json" in kind and content else content.decode(), answer
            finally:
                connection.close()

        return await threads.deferToThread(ask)

    async def say(self, *pieces: bytes, source: str = "127.0.0.1") -> bytes:
        """Everything that the peer answers to raw bytes until it closes. `source`: the address from which they come."""

        def say() -> bytes:
            try:
                connection = self.connect(source)
            except ConnectionResetError:
                return b"(cut)"
            with connection:
                return read_all(connection, *pieces)

        return await threads.deferToThread(say)

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        """A connection that is closed with the test."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_SECONDS, source_address=(source, 0))
        self.addCleanup(connection.close)
        return connection

    async def wait(self, seconds: float) -> None:
        """Let the reactor go on for so long."""
        await task.deferLater(reactor, seconds)

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until it is."""
        while not is_so():
            await self.wait(0.01)


def open_front(listen: Listen, seconds: Callable[[], float]) -> Front:
    """A front on loopback that everybody there may use."""
    return Front(listen, Guard(None, None, listen, seconds))


def result_of(working: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns that waits for nobody."""
    try:
        working.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits for somebody")


def read_all(connection: socket.socket, *pieces: bytes) -> bytes:
    """What is answered to these pieces until the peer closes; with `(cut)` behind it where it cut the connection."""
    answer = b""
    try:
        for piece in pieces:
            connection.sendall(piece)
        while more := connection.recv(65536):
            answer += more
    except (ConnectionResetError, BrokenPipeError):
        return answer + b"(cut)"
    return answer
