"""HTTP as Server and Agent speak it: bounded requests in, JSON or text out, nothing for strangers.

twisted.web bounds neither a body nor the time that a peer takes to send it; here every request has both bounds. Browsers
reach loopback from any page, so on loopback a foreign Host (DNS rebinding) or Origin (cross-site request) is refused; and a request
that changes something has the very Origin that it asks, or none: other programs of this host serve pages, too.
"""

from __future__ import annotations

import json
import re
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

from twisted.internet import defer
from twisted.internet.base import DelayedCall
from twisted.internet.protocol import connectionDone
from twisted.internet.tcp import Connection
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http, resource, server

from taba.bounds import MAX_ENVELOPE_BYTES, MiB
from taba.errors import MalformedBatch, StoreUnavailable
from taba.options import is_loopback

MAX_BODY_BYTES = MAX_ENVELOPE_BYTES  # the largest thing that anyone may send
MAX_REQUEST_SECONDS = 30.0  # for a peer to send one request whole
MAX_IDLE_SECONDS = 120.0  # for a kept-alive connection to say nothing
MAX_CONNECTIONS = 1024  # file descriptors, and MAX_BODY_BYTES for each in the worst case
LINGER_SECONDS = 2.0  # after an early refusal, so that a peer that still sends reads the answer rather than a reset
MAX_LINGER_BYTES = 64 * MiB
LOG_DATE_SECONDS = 1.0  # how old the date of a line in an access log may be

log = Logger()


class HTTPError(Exception):
    """An answer other than success: a status, a short `error` for programs and a `detail` for people."""

    def __init__(self, status: int, error: str, detail: str, headers: Mapping[str, str] | None = None):
        super().__init__(f"{status} {error}: {detail}")
        self.status, self.error, self.detail, self.headers = status, error, detail, headers or {}


class Answer(NamedTuple):
    """What a route gives back: JSON-able `content`, or bytes with a `content_type`; `text` is its rendering for people."""

    content: Any
    status: int = 200
    text: Callable[[], str] | None = None
    content_type: str = "application/json"
    headers: Mapping[str, str] = {}


class Call:
    """One request, as routes see it."""

    def __init__(self, request: http.Request):
        self._request = request
        self.arguments: dict[str, list[str]] = {}
        for part in re.split(b"[&;]", request.uri.partition(b"?")[2]):
            if part and b"=" not in part:  # what twisted.web leaves out: a filter without a value must not match everything
                raise HTTPError(400, "bad_request", f"the query has {part[:100].decode('ascii', 'replace')!r} without =")
        for key, values in (request.args or {}).items():
            try:
                self.arguments[key.decode()] = [value.decode() for value in values]
            except UnicodeDecodeError:
                raise HTTPError(400, "bad_request", "the query is not UTF-8") from None

    def header(self, name: str) -> str | None:
        """The last value of a header, or None."""
        return self._request.getHeader(name)

    def many(self, name: str) -> list[str]:
        """All values of a repeatable parameter."""
        return self.arguments.get(name, [])

    def one(self, name: str) -> str | None:
        """The value of a parameter that may stand once. Raises HTTPError 400 where it stands more often."""
        values = self.many(name)
        if len(values) > 1:
            raise HTTPError(400, "bad_request", f"{name}= stands {len(values)} times; once at most")
        return values[0] if values else None

    def only(self, *names: str) -> None:
        """Raises HTTPError 400 for a parameter that is none of `names`: a filter that is misspelt must not match everything."""
        unknown = sorted(set(self.arguments) - set(names))
        if unknown:
            takes = ", ".join(names) or "none"
            raise HTTPError(400, "bad_request", f"no parameter {unknown[0]!r} here; there are: {takes}")

    def body(self) -> bytes:
        """The body, decompressed (gzip or deflate). Raises HTTPError 400, 413 or 415."""
        content = cast(bytes, self._request.content.read())  # type: ignore[union-attr]
        encoding = (self.header("content-encoding") or "identity").lower()
        if encoding == "identity":
            return content
        if encoding not in ("gzip", "deflate"):
            raise HTTPError(415, "unsupported_encoding", f"Content-Encoding {encoding!r}; takes gzip or deflate")
        decompressor = zlib.decompressobj(wbits=31 if encoding == "gzip" else 15)
        try:
            # bounded while decompressing: a bomb of a few KiB would fill the memory otherwise
            content = decompressor.decompress(content, MAX_BODY_BYTES)
            beyond = decompressor.unconsumed_tail and decompressor.decompress(decompressor.unconsumed_tail, 1)
        except zlib.error as error:
            raise HTTPError(400, "bad_request", f"the body does not decompress: {error}") from None
        if beyond:
            raise HTTPError(413, "too_large", f"the body is larger than {MAX_BODY_BYTES} bytes when decompressed")
        if not decompressor.eof:
            raise HTTPError(400, "bad_request", "the compressed body is cut off")
        return content

    def json(self) -> Any:
        """The body as JSON. Raises HTTPError 400."""
        try:
            return json.loads(self.body(), parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise HTTPError(400, "bad_request", f"the body is not JSON: {error}"[:200]) from None

    @property
    def wants_text(self) -> bool:
        """Whether `Accept` asks for text rather than JSON."""
        accept = (self.header("accept") or "").lower()
        return _quality(accept, "text/plain") > _quality(accept, "application/json")


def _quality(accept: str, kind: str) -> float:
    """How much an Accept header asks for `kind`: its q of the most specific range that has it, 0 where none has."""
    best, quality = 0, 0.0
    for part in accept.split(","):
        name, *parameters = (field.strip() for field in part.split(";"))
        rank = {kind: 3, kind.partition("/")[0] + "/*": 2, "*/*": 1}.get(name, 0)
        if rank > best:
            best, quality = rank, 1.0
            for parameter in parameters:
                if re.fullmatch(r"q=[01](\.[0-9]{0,3})?", parameter):
                    quality = float(parameter[2:])
    return quality


Route = Callable[[Call], Awaitable[Answer]]


class Api(resource.Resource):
    """The routes of a service: (method, path) → coroutine function of a Call that gives an Answer."""

    isLeaf = True

    def __init__(self, routes: Mapping[tuple[str, str], Route]):
        super().__init__()
        self.routes = dict(routes)
        self.methods: dict[str, list[str]] = {}
        for method, path in self.routes:
            self.methods.setdefault(path, []).append(method)

    def render(self, request: server.Request) -> int:
        answering = defer.ensureDeferred(self._answer(request))
        # a peer that goes away while its answer is made: nobody is left to be told
        request.notifyFinish().addErrback(lambda _: answering.cancel())
        answering.addErrback(lambda failure: failure.trap(defer.CancelledError))
        return server.NOT_DONE_YET

    async def _answer(self, request: server.Request) -> None:
        text = False
        try:
            path = request.path.decode("ascii", "replace")
            method = request.method.decode("ascii", "replace")
            _check_origin(request)
            call = Call(request)
            text = call.wants_text
            answer = await self._route(method, path)(call)
        except HTTPError as error:
            answer = refusal(error)
        except MalformedBatch as error:
            answer = refusal(HTTPError(400, "malformed", str(error)))
        except StoreUnavailable as error:
            answer = refusal(HTTPError(503, "store_unavailable", str(error)))
        except defer.CancelledError:
            raise
        except Exception:
            # one request's fault must not be the service's: the log has the traceback, the peer the fact
            failure = Failure()
            log.failure("{method} {path} failed", failure=failure, method=request.method, path=request.path)
            answer = refusal(HTTPError(500, "internal", f"{type(failure.value).__name__}; the service's log says more"))
        _send(request, answer, text)

    def _route(self, method: str, path: str) -> Route:
        methods = self.methods.get(path)
        if methods is None:
            raise HTTPError(404, "not_found", f"nothing at {path[:200]}")
        route: Route | None = self.routes.get(("GET" if method == "HEAD" else method, path))
        if route is None:
            allowed = ", ".join(sorted({*methods, "HEAD"} if "GET" in methods else methods))
            raise HTTPError(405, "method_not_allowed", f"{path} takes {allowed}", {"allow": allowed})
        return route


def refusal(error: HTTPError) -> Answer:
    """The answer that carries an error: JSON `{"error", "detail"}`, whatever was asked for."""
    return Answer({"error": error.error, "detail": error.detail}, error.status, headers=error.headers)


def make_site(api: resource.Resource, max_body_bytes: int = MAX_BODY_BYTES) -> server.Site:
    """A Site that bounds body, time and connections of its peers, and writes no access log."""
    return BoundedSite(api, max_body_bytes)


class BoundedSite(server.Site):
    """A Site of BoundedChannels, MAX_CONNECTIONS at the most."""

    def __init__(self, api: resource.Resource, max_body_bytes: int):
        super().__init__(api, timeout=MAX_IDLE_SECONDS, requestFactory=BoundedRequest)
        self.protocol = BoundedChannel  # type: ignore[method-assign,assignment]
        self.displayTracebacks = False
        self.max_body_bytes = max_body_bytes
        self.connections = 0
        self.refused = 0

    def buildProtocol(self, addr: Any) -> Any:
        if self.connections >= MAX_CONNECTIONS:
            self.refused += 1
            return None
        return super().buildProtocol(addr)

    def _updateLogDateTime(self) -> None:
        # twisted.web takes it from the reactor, whose time is no date here
        self._logDateTime = http.datetimeToLogString(time.time())
        self._logDateTimeCall = cast(Any, self.reactor).callLater(LOG_DATE_SECONDS, self._updateLogDateTime)

    def log(self, request: http.Request) -> None:
        """No access log: nothing here grows with the number of requests."""


class BoundedChannel(http.HTTPChannel):
    """One connection: a request is received whole within MAX_REQUEST_SECONDS and within the Site's bound, or refused."""

    site: BoundedSite
    _deadline: DelayedCall | None = None
    _lingering = -1  # bytes that may still be read and thrown away; -1: not refused

    def connectionMade(self) -> None:
        super().connectionMade()
        self.site.connections += 1

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.site.connections -= 1
        self._stop_deadline()
        super().connectionLost(reason)

    def dataReceived(self, data: bytes) -> None:
        if self._lingering >= 0:
            self._lingering -= len(data)
            if self._lingering < 0:
                cast(Connection, self.transport).abortConnection()
            return
        if self._deadline is None and not self._handlingRequest:
            self._deadline = self.callLater(MAX_REQUEST_SECONDS, self._too_slow)
        super().dataReceived(data)

    def allHeadersReceived(self) -> None:
        super().allHeadersReceived()
        if self.length is not None and self.length > self.site.max_body_bytes:
            self.refuse_body()

    def allContentReceived(self) -> None:
        if self._lingering < 0:
            self._stop_deadline()
            super().allContentReceived()

    def lineLengthExceeded(self, line: bytes) -> None:
        if self._receivedHeaderSize == 0:
            self._refuse(HTTPError(414, "too_large", f"a request line takes at most {self.MAX_LENGTH} bytes"))
        else:
            self._refuse_headers()

    def _respondToBadRequestAndDisconnect(self) -> None:
        # called by HTTPChannel, which says nothing in the body
        if self._receivedHeaderSize > self.totalHeadersSize or self._receivedHeaderCount > self.maxHeaders:
            self._refuse_headers()
        else:
            self._refuse(HTTPError(400, "bad_request", "this is no HTTP request"))

    def _refuse_headers(self) -> None:
        takes = f"{self.totalHeadersSize} bytes and {self.maxHeaders} lines"
        self._refuse(HTTPError(431, "too_large", f"request line and headers take at most {takes}"))

    def refuse_body(self) -> None:
        """Answer 413 and close, without reading the rest."""
        self._refuse(HTTPError(413, "too_large", f"a body takes at most {self.site.max_body_bytes} bytes"))

    def _too_slow(self) -> None:
        self._deadline = None
        self._refuse(HTTPError(408, "too_slow", f"a request is sent within {MAX_REQUEST_SECONDS:.0f} s"))

    def _refuse(self, error: HTTPError) -> None:
        if self._lingering >= 0:
            return
        self._stop_deadline()
        self.setTimeout(None)
        body = json.dumps(refusal(error).content).encode()
        reason = http.RESPONSES.get(error.status, b"Request Header Fields Too Large" if error.status == 431 else b"")
        cast(Connection, self.transport).write(
            b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
            % (error.status, reason, len(body), body)
        )
        self._lingering = MAX_LINGER_BYTES
        self.setRawMode()
        self._deadline = self.callLater(LINGER_SECONDS, self._stop_lingering)

    def _stop_lingering(self) -> None:
        self._deadline = None
        self.loseConnection()

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def rawDataReceived(self, data: bytes) -> None:
        if self._lingering < 0:
            super().rawDataReceived(data)


class BoundedRequest(server.Request):
    """A request whose chunked body is counted as it comes in."""

    channel: BoundedChannel
    received = 0

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        # a body that calls itself a form (urllib and curl do so by default) must not be read as more of the query
        self.requestHeaders.removeHeader(b"content-type")
        super().requestReceived(command, path, version)

    def handleContentChunk(self, data: bytes) -> None:
        self.received += len(data)
        if self.received > self.channel.site.max_body_bytes:
            self.channel.refuse_body()
        else:
            super().handleContentChunk(data)


def _send(request: server.Request, answer: Answer, text: bool) -> None:
    if text and answer.text is not None:
        content, content_type = answer.text().encode(), "text/plain; charset=utf-8"
    elif isinstance(answer.content, bytes):
        content, content_type = answer.content, answer.content_type
    else:
        content, content_type = json.dumps(answer.content, ensure_ascii=False, allow_nan=False).encode() + b"\n", "application/json"
    request.setResponseCode(answer.status)
    for name, value in answer.headers.items():
        request.setHeader(name, value)
    request.setHeader("content-type", content_type)
    request.setHeader("content-length", str(len(content)))
    request.setHeader("cache-control", "no-store")
    request.setHeader("x-content-type-options", "nosniff")
    if request.method != b"HEAD":
        request.write(content)
    request.finish()


def _check_origin(request: server.Request) -> None:
    """On loopback: only pages and programs that address this very host may ask."""
    if not is_loopback(getattr(request.getHost(), "host", "localhost")):
        return
    hosts = request.requestHeaders.getRawHeaders("host") or []
    if len(hosts) > 1 or (not hosts and request.clientproto == b"HTTP/1.1"):
        raise HTTPError(400, "bad_request", f"takes one Host header, not {len(hosts)}")
    asked = hosts[0] if hosts else ""
    origin = request.getHeader("origin")
    if asked and not is_loopback(_host_of("//" + asked)):
        raise HTTPError(403, "forbidden", f"Host {asked[:100]!r} is not this host")
    if origin is None:
        return
    if not is_loopback(_host_of(origin)):
        raise HTTPError(403, "forbidden", f"Origin {origin[:100]!r} is not this host")
    if request.method not in (b"GET", b"HEAD") and _place_of(origin) != _place_of("http://" + asked):
        raise HTTPError(403, "forbidden", f"Origin {origin[:100]!r} is another address than the one asked; it may only read")


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _place_of(url: str) -> tuple[str, int]:
    """Host and port of a URL; of what is none, a place that nothing has."""
    try:
        parts = urlsplit(url)
        return (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(parts.scheme, -1)
    except ValueError:
        return "", -1


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON value")
