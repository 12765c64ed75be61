"""For ASGI applications of any kind: HTTP, streams and websockets; what is neither passes untouched.

    application = Middleware(application, route=lambda scope, root: scope.get("my.router.template"))

`route(scope, root)` tells the template of the route that took a request, or None: asked at its end, of the scope that the application may
have added to; `root` is its `root_path` as it came. Without it all requests go under one name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from time import perf_counter
from typing import Any

from taba import client
from taba.frameworks.serving import FAILED, FAILURES, GONE, MAX_ROUTES, NO_STATUS, OTHER, UNMATCHED, Names, Serving

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Route = Callable[[Scope, str], "str | None"]

CODES = frozenset((1000, 1001, 1002, 1003, 1005, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014))  # others are an application's own
REJECTED = "rejected"  # a websocket that was not accepted


class Middleware:
    """Records what an application serves: see Serving for the Tabs of requests, Sockets for those of websockets."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], route: Route | None = None, *, name: str = "http"):
        self.app = app
        self._route = route or _none
        self._serving = Serving(name)
        self._exchange = self._serving.meter.exchange
        self._sockets = Sockets(name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await (self._socket(scope, receive, send) if scope["type"] == "websocket" else self.app(scope, receive, send))
            return
        exchange = self._exchange(self._route, scope, receive, send)
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except FAILURES as error:
            if not exchange.is_gone or exchange.is_over:
                self._serving.fail(exchange.route(), error)
                exchange.end(FAILED)
            raise
        except BaseException:
            exchange.is_gone = True  # the server gave it up, by whatever its event loop cancels with, or closed it
            raise
        finally:
            if not exchange.is_over:
                if exchange.is_gone:
                    self._serving.abort(exchange.route())
                exchange.end(GONE if exchange.is_gone else NO_STATUS)

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        serving, sockets = self._serving, self._sockets
        root = scope.get("root_path") or ""
        is_accepted = is_gone = False
        code: int | str = REJECTED
        got = gave = 0

        async def received_from() -> Any:
            nonlocal got, code, is_gone
            message = await receive()
            if message["type"] == "websocket.receive":
                got += 1
            elif message["type"] == "websocket.disconnect":
                is_gone, code = True, message.get("code") or 1005
            return message

        async def sent_to(message: Any) -> None:
            nonlocal gave, code, is_accepted, is_gone
            kind = message["type"]
            if kind == "websocket.send":
                gave += 1
            elif kind == "websocket.accept":
                is_accepted, code = True, 1006  # until somebody says another
            elif kind == "websocket.close" and is_accepted:
                code = message.get("code") or 1000
            try:
                await send(message)
            except OSError:
                is_gone = True  # as above
                raise

        sockets.begin()
        began = perf_counter()  # behind it, as in a Meter
        try:
            await self.app(scope, received_from, sent_to)
        except FAILURES as error:
            if not is_gone:
                code = 1011 if is_accepted else code
                serving.fail(serving.asked(self._route, scope, root), error)
            raise
        finally:
            sockets.end(perf_counter() - began, serving.asked(self._route, scope, root), code, got, gave)


class Sockets:
    """The Tabs of websockets."""

    def __init__(self, name: str):
        self._closed = client.counter(f"{name}_websockets", description="websockets that are over, by the code that closed them")
        self._seconds = client.percentile(f"{name}_websocket_seconds", description="how long websockets were open")
        self._messages = client.counter(f"{name}_websocket_messages", description="messages of websockets, by who sent them")
        in_flight = client.updown(f"{name}_websockets_in_flight", description="websockets that are open")
        self.begin, self._in_flight = in_flight.inc, in_flight
        self._routes = Names(MAX_ROUTES)

    def end(self, seconds: float, route: str | None, code: int | str, got: int, gave: int) -> None:
        """One is over, after so many messages either way; in a forked child it is its parent's."""
        if perf_counter() - seconds < self._in_flight.born:
            return
        self._in_flight.dec()
        name = UNMATCHED if route is None else self._routes.of(route) or "/"
        self._closed.labels(route=name, code=code if code == REJECTED or code in CODES else OTHER).inc()
        self._seconds.labels(route=name).observe(seconds)
        self._messages.labels(route=name, by="client").inc(got)
        self._messages.labels(route=name, by="server").inc(gave)


def _none(scope: Scope, root: str) -> None:
    return None
