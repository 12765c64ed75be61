"""What a middleware does for each request, in as few calls as can be: in pure Python what the C accelerator has under the same names.

    meter = PORTS.Meter(in_flight, made, failed)
    began = meter.begin()
    meter.end(began, "GET", "/cart", 200, received=0, sent=17)

`in_flight` is an UpDown. `made(method, route, status)` gives the four Tabs of such requests: their number, their seconds, the bytes of
their bodies and of their responses'; those that it keeps in `series` it is not asked for again. `failed(route, error)` is told what a
route's own function raised, or that it gave neither a text nor None, which ends no request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any, Protocol

Made = Callable[[Any, Any, Any], "tuple[Any, Any, Any, Any]"]
Failed = Callable[[Any, BaseException], object]
MAX_DIGITS = 15  # of a length: a petabyte, and a number that a float holds exactly; what says more is no length, but a stranger's whim
FILES = ("http.response.pathsend", "http.response.zerocopysend")  # extensions by which a server sends a file itself


class Owner(Protocol):
    """Who is told what is rare of a Reply."""

    def failed(self, reply: Any, error: BaseException) -> None:
        """The application's body raised this."""

    def stopped(self, reply: Any, error: BaseException | None) -> None:
        """The server is done with it before its end, or the body's own close() raised this."""


class Meter:
    """Measures the requests of one application."""

    __slots__ = ("_failed", "_in_flight", "_made", "series")

    def __init__(self, in_flight: Any, made: Made, failed: Failed):
        self._in_flight, self._made, self._failed = in_flight, made, failed
        self.series: dict[tuple[Any, Any, Any], tuple[Any, Any, Any, Any]] = {}

    def begin(self) -> float:
        """One more is under way; the clock for end()."""
        self._in_flight.inc()  # first: it finds out whether this process was forked, before which no request of its own began
        return perf_counter()

    def end(self, began: float, method: Any, route: Any, status: Any, received: int, sent: int) -> None:
        """One is over. `received` (0 for no body) and `sent` are -1 where nobody knows."""
        if not self.is_of_parent(began):
            self._in_flight.dec()
            self._measure(began, method, route, status, received, sent)

    def exchange(self, route: Callable[[Any, str], Any], scope: Any, receive: Any, send: Any) -> Exchange:
        """One more, over ASGI, is under way; `route(scope, root)` tells the template of the route that took it."""
        return Exchange(self, route, scope, receive, send)

    def reply(self, route: Callable[[Any], Any], environ: dict[str, Any], start_response: Callable[..., Any], owner: Owner) -> Reply:
        """One more, over WSGI, is under way; `route(environ)` tells the template of the route that takes it."""
        return Reply(self, route, environ, start_response, owner)

    def is_of_parent(self, began: float) -> bool:
        """Whether a request began before this process was forked: whatever becomes of it here, it is its parent's."""
        return began < float(self._in_flight.born)

    def _measure(self, began: float, method: Any, route: Any, status: Any, received: int, sent: int) -> None:
        requests, seconds, of_received, of_sent = self.series.get((method, route, status)) or self._made(method, route, status)
        requests.inc()
        seconds.record(perf_counter() - began)
        if received > 0:
            of_received.record(received)
        if sent >= 0:
            of_sent.record(sent)


class Exchange:
    """One request over ASGI: `receive` and `send` in place of the server's, and what went by there."""

    __slots__ = ("_began", "_meter", "_receive", "_received", "_root", "_route", "_scope", "_send", "_sent", "is_gone", "is_over", "status")

    def __init__(self, meter: Meter, route: Callable[[Any, str], Any], scope: Any, receive: Any, send: Any):
        self._meter, self._route, self._scope, self._receive, self._send = meter, route, scope, receive, send
        self._root = scope.get("root_path") or ""
        self.status: Any = 0
        self._received = self._sent = 0
        self.is_over = self.is_gone = False
        self._began = meter.begin()

    def route(self) -> Any:
        """The template of the route that took it, or None; what that raises is counted, and is none of the application's."""
        try:
            return text_or_none(self._route(self._scope, self._root))
        except Exception as error:
            self._meter._failed(None, error)
            return None

    def end(self, instead: Any) -> None:
        """It is over, with this status where the application gave none."""
        if not self.is_over:
            self.status = self.status or instead
            self._end()

    def _end(self) -> None:
        self.is_over = True
        meter = self._meter
        if meter.is_of_parent(self._began):
            return
        meter._in_flight.dec()
        meter._measure(self._began, self._scope["method"], self.route(), self.status, self._received, self._sent)

    async def receive(self) -> Any:
        """As the server's."""
        message = await self._receive()
        kind = message["type"]
        if kind == "http.request":
            if body := message.get("body"):
                self._received += len(body)
        elif kind == "http.disconnect":
            self.is_gone = True
        return message

    async def send(self, message: Any) -> None:
        """As the server's."""
        is_last = is_start = False
        kind, before = message["type"], self.status
        if kind == "http.response.body":
            if body := message.get("body"):
                self._sent += len(body)
            is_last = not message.get("more_body")
        elif kind == "http.response.start":
            self.status, is_start = message["status"], True
        elif kind in FILES:
            self._sent = -1  # the server knows how much it was
        try:
            await self._send(message)
        except OSError:
            self.is_gone = True  # so says a server: what the application makes of it is no failure of its own
            raise
        except Exception:
            if is_start:
                self.status = before  # the server did not take it
            raise
        if is_last and not self.is_over and not self.is_gone:
            self._end()  # what the application does behind it makes nobody wait


class Reply:
    """One request over WSGI: `start` in place of the server's start_response, itself in place of the body, and what went by there."""

    __slots__ = (
        "_began",
        "_body",
        "_meter",
        "_owner",
        "_route",
        "_start_response",
        "_write",
        "environ",
        "headers",
        "is_over",
        "route",
        "sent",
        "status",
    )

    def __init__(
        self, meter: Meter, route: Callable[[Any], Any], environ: dict[str, Any], start_response: Callable[..., Any], owner: Owner
    ):
        self._meter, self._route, self.environ, self._start_response, self._owner = meter, route, environ, start_response, owner
        # what it is before there is a response
        self.status: Any = 0
        self.route: Any = None
        self.headers: Any = ()
        self.sent = 0
        self.is_over = False
        self._began = meter.begin()

    def start(self, status: Any, headers: Any, exc_info: Any = None) -> Callable[[bytes], Any]:
        """As the server's start_response()."""
        self.route = self.asked()  # now: frameworks forget it at the end
        self._write = self._start_response(status, headers) if exc_info is None else self._start_response(status, headers, exc_info)
        self.status, self.headers = status, headers  # which the server took: with another one on its way it raises
        return self.written

    def asked(self) -> Any:
        """The template of the route that takes it, or None; what that raises is counted, and is none of the application's."""
        try:
            return text_or_none(self._route(self.environ))
        except Exception as error:
            self._meter._failed(None, error)
            return None

    def written(self, content: bytes) -> Any:
        """As the server's write()."""
        self.sent += len(content)
        return self._write(content)

    def answers(self, status: Any, route: Any) -> None:
        """What the server does instead of the application."""
        self.status, self.route = status, route

    def watch(self, body: Any) -> Any:
        """Itself, as this body on its way to the server."""
        self._body = body
        return self

    def end(self) -> None:
        """It is over."""
        if not self.is_over:
            self.is_over = True
            meter, environ = self._meter, self.environ
            if meter.is_of_parent(self._began):
                return
            meter._in_flight.dec()
            length = environ.get("CONTENT_LENGTH")
            received = length_of(length) if length else 0  # of a body in pieces nobody knows
            meter._measure(self._began, environ.get("REQUEST_METHOD", ""), self.route, self.status, received, self.sent)

    def __iter__(self) -> Iterator[bytes]:
        try:
            for content in self._body:
                self.sent += len(content)
                yield content
        except GeneratorExit:
            raise  # the server stopped: close() tells
        except BaseException as error:
            self._owner.failed(self, error)
            raise
        self.end()

    def close(self) -> None:
        """The server is done with it."""
        try:
            if hasattr(self._body, "close"):
                self._body.close()
        except BaseException as error:
            self._owner.stopped(self, error)
            raise
        if not self.is_over:
            self._owner.stopped(self, None)


def text_or_none(route: Any) -> str | None:
    """What a route's function gave. Raises TypeError for what no label can be made of."""
    if route is not None and not isinstance(route, str):
        raise TypeError(f"a route is a text or None, not {type(route).__name__}")
    return route


def length_of(text: Any) -> int:
    """What a Content-Length says; -1 where it says nothing that is a length."""
    try:
        return int(text) if len(text) <= MAX_DIGITS and text.isascii() and text.isdigit() else -1
    except (AttributeError, TypeError):
        return -1
