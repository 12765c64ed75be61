"""HTTP as Server and Agent speak it: requests in, JSON or text out, nothing for strangers. What a peer may hold: `taba.connections`.

Each route names the kind of token that it takes; one that names none takes an administrator's. Browsers reach loopback from any page,
so on loopback a foreign Host (DNS rebinding) or Origin (cross-site request) is refused; and a request that changes something has the very
Origin that it asks, or none: other programs of this host serve pages, too.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

from twisted.internet import defer
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http, resource, server

from taba.bounds import MAX_ENVELOPE_BYTES
from taba.errors import MalformedBatch, StoreUnavailable
from taba.guard import FAILED_SECONDS, Guard, Refused
from taba.options import is_loopback
from taba.tokens import ADMIN, ANY, EVERYTHING, Grant

MAX_BODY_BYTES = MAX_ENVELOPE_BYTES  # the largest thing that anyone may send, after decompression

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

    def __init__(self, request: http.Request, grant: Grant = EVERYTHING):
        self._request = request
        self.grant = grant  # what whoever asks may do
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
    """The routes of a service: (method, path) → coroutine function of a Call that gives an Answer.

    `kinds` says which kind of token each takes, `guard` who has one; without a guard everybody may ask everything.
    """

    isLeaf = True

    def __init__(
        self,
        routes: Mapping[tuple[str, str], Route],
        kinds: Mapping[tuple[str, str], str] | None = None,
        guard: Guard | None = None,
    ):
        super().__init__()
        self.routes = dict(routes)
        self.guard = guard
        self.errors: Counter[str] = Counter()  # of this program, by route and kind: the log has the first of each
        self._kinds = dict(kinds or {})
        self.methods: dict[str, list[str]] = {}
        for method, path in self.routes:
            self.methods.setdefault(path, []).append(method)

    def render(self, request: server.Request) -> int:
        answering = defer.ensureDeferred(self._answer(request))
        # a peer that goes away while its answer is made: nobody is left to be told
        request.notifyFinish().addErrback(lambda _: answering.cancel())
        answering.addErrback(lambda failure: failure.trap(defer.CancelledError))
        return server.NOT_DONE_YET

    async def _answer(self, request: Any) -> None:
        text = False
        try:
            path = request.path.decode("ascii", "replace")
            method = request.method.decode("ascii", "replace")
            _check_origin(request)
            call = Call(request, self._admit(request, method, path))
            text = call.wants_text
            answer = await self._route(method, path)(call)
        except HTTPError as error:
            answer = refusal(error)
        except Refused as error:
            if error.is_stranger:
                await request.channel.pause(FAILED_SECONDS)
            answer = refusal(refused(error))
        except MalformedBatch as error:
            answer = refusal(HTTPError(400, "malformed", str(error)))
        except StoreUnavailable as error:
            answer = refusal(HTTPError(503, "store_unavailable", str(error)))
        except defer.CancelledError:
            raise
        except Exception:
            # one request's fault must not be the service's: the log has the traceback, the peer the fact
            failure = Failure()
            where = f"{method} {path if path in self.methods else '(elsewhere)'}: {type(failure.value).__name__}"
            self.errors[where] += 1
            if self.errors[where] == 1:  # no peer fills the log
                log.failure("{where}", failure=failure, where=where)
            answer = refusal(HTTPError(500, "internal", f"{type(failure.value).__name__}; the service's log says more"))
        _send(request, answer, text)

    def _admit(self, request: Any, method: str, path: str) -> Grant:
        """What whoever asks may do. Raises Refused where that is not this."""
        wanted = self._kinds.get(("GET" if method == "HEAD" else method, path), ADMIN) if path in self.methods else ANY
        if self.guard is None or not self.guard.needs_token(wanted):
            return EVERYTHING
        grant: Grant = request.identify()
        self.guard.admit(grant, wanted)
        return grant

    def _route(self, method: str, path: str) -> Route:
        methods = self.methods.get(path)
        if methods is None:
            raise HTTPError(404, "not_found", f"nothing at {path[:200]}")
        route: Route | None = self.routes.get(("GET" if method == "HEAD" else method, path))
        if route is None:
            allowed = ", ".join(sorted({*methods, "HEAD"} if "GET" in methods else methods))
            raise HTTPError(405, "method_not_allowed", f"{path} takes {allowed}", {"allow": allowed})
        return route


def refused(error: Refused) -> HTTPError:
    """The answer to whom the guard refused."""
    return HTTPError(error.status, error.error, error.detail, {"www-authenticate": error.challenge} if error.challenge else {})


def refusal(error: HTTPError) -> Answer:
    """The answer that carries an error: JSON `{"error", "detail"}`, whatever was asked for."""
    return Answer({"error": error.error, "detail": error.detail}, error.status, headers=error.headers)


def _send(request: Any, answer: Answer, text: bool) -> None:
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
    request.channel.answering(request, len(content))
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
