"""HTTP as Server and Agent speak it: requests in, JSON or text out, nothing for strangers. What a peer may hold: `taba.connections`.

What a route takes and who may ask it is defined in a table (`taba.routes`). Browsers reach loopback from any page, so on loopback a
foreign Host (DNS rebinding) or Origin (cross-site request) is refused; and a request that changes something has the very Origin that it
asks, or none: other programs of this host serve pages, too.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qsl, urlsplit

from twisted.internet import defer
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http, resource, server
from zope.interface import implementer

from taba.bounds import MAX_ENVELOPE_BYTES, KiB
from taba.broadcast import Broadcast, Listener
from taba.errors import MalformedBatch, StoreUnavailable
from taba.guard import Guard, Refused
from taba.nesting import no_constant
from taba.options import is_loopback
from taba.routes import Found, Parameter, Route, Table
from taba.tokens import ANY, EVERYTHING, Grant

MAX_BODY_BYTES = MAX_ENVELOPE_BYTES  # the largest thing that anyone may send, after decompression
MAX_FORM_FIELDS = 100  # of a form; a login has one
MAX_LISTEN_SECONDS = 3600.0  # to a broadcast; who goes on listening asks anew, with a token that is still known
MAX_STREAMS = 32  # answers that are being sent slice by slice at once
SLICE_BYTES = 64 * KiB  # of such an answer, written at a time: what a peer that does not read may cost
LEAST_GZIP_BYTES = KiB  # a smaller answer fits in a packet as it is
MOST_GZIP_BYTES = 256 * KiB  # of an answer that is compressed in one go, some 3 ms; larger ones are streams, or go as they are
GZIP_LEVEL = 3  # of JSON nearly as small as the highest, in a third of the time
GZIP_WBITS = 31  # of zlib: gzip, and the largest window
MAX_MEMBERS = 256  # that a body of gzip may consist of; who compresses block by block has one for each
ETAG_BYTES = 12

MAX_JSON_BYTES = 64 * KiB  # of a body that is read in one go; an empty list is two of them, and 64 of memory
INFLATE_BYTES = 256 * KiB  # of a body, inflated between two looks at the time and at the room that is left

log = Logger()


class HTTPError(Exception):
    """An answer other than success: a status, a short `error` for programs and a `detail` for people."""

    def __init__(self, status: int, error: str, detail: str, headers: Mapping[str, str] | None = None):
        super().__init__(f"{status} {error}: {detail}")
        self.status, self.error, self.detail, self.headers = status, error, detail, headers or {}


class Answer(NamedTuple):
    """What a route gives back; `text` is its rendering for people.

    `content` is what JSON can say, or with a `content_type` bytes, or an asynchronous iterator of bytes: a stream, of which the next slice
    is made only when the peer has taken enough of those before; or a Broadcast, which the peer hears until its end.
    `is_joined`: slices that come to less than SLICE_BYTES are sent as one.
    """

    content: Any
    status: int = 200
    text: Callable[[], str] | None = None
    content_type: str = "application/json"
    headers: Mapping[str, str | Sequence[str]] = {}
    is_joined: bool = False


class Call:
    """One request, as routes see it."""

    def __init__(self, request: http.Request, grant: Grant = EVERYTHING, found: Found | None = None):
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
        self.values: dict[str, Any] = {} if found is None else self._read(*found)
        """The parameters that the route defines, by name, as `Parameter.read` gives them."""

    def _read(self, route: Route, in_path: Mapping[str, str]) -> dict[str, Any]:
        in_query = [parameter for parameter in route.parameters if parameter.name not in in_path]
        unknown = sorted(set(self.arguments) - {parameter.name for parameter in in_query})
        if unknown and not route.is_lenient:
            takes = ", ".join(parameter.name for parameter in in_query) or "none"
            raise HTTPError(400, "bad_request", f"no parameter {unknown[0][:100]!r} here; there are: {takes}")
        try:
            return {
                parameter.name: parameter.read(
                    [in_path[parameter.name]] if parameter.name in in_path else self._values(parameter, route.is_lenient)
                )
                for parameter in route.parameters
            }
        except ValueError as error:
            raise HTTPError(400, "bad_request", str(error)) from None

    def _values(self, parameter: Parameter, is_lenient: bool) -> list[str]:
        values = self.many(parameter.name)
        return values if parameter.repeatable or not is_lenient else values[:1]

    def header(self, name: str) -> str | None:
        """The last value of a header, or None."""
        return self._request.getHeader(name)

    def once(self, name: str) -> str | None:
        """The value of a header that changes what is done, or None. Raises HTTPError 400 where it stands more than once."""
        values = self._request.requestHeaders.getRawHeaders(name) or []
        if len(values) > 1:
            raise HTTPError(400, "bad_request", f"the header {name} stands {len(values)} times; once at most")
        return values[0] if values else None

    @property
    def is_over_tls(self) -> bool:
        """Whether it came here by TLS itself; what ended TLS before us does not count."""
        return bool(self._request.isSecure())

    def many(self, name: str) -> list[str]:
        """All values of a repeatable parameter."""
        return self.arguments.get(name, [])

    async def breathe(self) -> None:
        """Let others have a turn where long requests have taken theirs; have this before each piece of some 10 ms of work."""
        await cast(Any, self._request.channel).site.turns.breathe()

    async def in_turns(self, steps: Generator[int, None, Any]) -> Any:
        """What `steps` returns: work of which each yields how many bytes it has made. Raises HTTPError 503 where there is no room."""
        try:
            while True:
                await self.breathe()
                self._take_room(next(steps))
        except StopIteration as end:
            return end.value

    def listen(self) -> None:
        """Take a listener's place before it is known what there is to hear. Raises HTTPError 503 where too many listen."""
        _take_place(self._request.channel)

    def _take_room(self, size: int) -> None:
        if not cast(Any, self._request.channel).take_room(size):
            raise HTTPError(503, "full", "too much is being received at once; try again in a moment", {"retry-after": "1"})

    async def body(self) -> bytes:
        """The body, decompressed (gzip or deflate). Raises HTTPError 400, 413 or 415, and 503 where there is no room for it."""
        content = cast(bytes, self._request.content.read())  # type: ignore[union-attr]
        encoding = (self.once("content-encoding") or "identity").lower()
        if encoding == "identity":
            return content
        if encoding not in ("gzip", "deflate"):
            raise HTTPError(415, "unsupported_encoding", f"Content-Encoding {encoding!r}; takes gzip or deflate")
        return cast(bytes, await self.in_turns(inflate(content, GZIP_WBITS if encoding == "gzip" else 15, MAX_BODY_BYTES)))

    async def json(self) -> Any:
        """The body as JSON. Raises HTTPError 400, and 413 where it takes more than MAX_JSON_BYTES."""
        content = await self.body()
        if len(content) > MAX_JSON_BYTES:
            raise HTTPError(413, "too_large", f"JSON takes at most {MAX_JSON_BYTES} bytes here")
        try:
            return json.loads(content, parse_constant=no_constant)
        except (ValueError, RecursionError) as error:
            raise HTTPError(400, "bad_request", f"the body is not JSON: {error}"[:200]) from None

    async def form(self) -> dict[str, str]:
        """The body as a form: each field once. Raises HTTPError 400."""
        try:
            text = (await self.body()).decode()
            if not text:
                return {}  # Python 3.10 takes nothing for a bad field
            pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True, max_num_fields=MAX_FORM_FIELDS, errors="strict")
        except ValueError as error:  # UnicodeDecodeError is one
            raise HTTPError(400, "bad_request", f"the body is no form: {error}"[:200]) from None
        fields = dict(pairs)
        if len(fields) < len(pairs):
            raise HTTPError(400, "bad_request", "a field of the form stands more than once")
        return fields

    @property
    def wants_text(self) -> bool:
        """Whether `Accept` asks for text rather than JSON."""
        accept = (self.header("accept") or "").lower()
        return _quality(accept, "text/plain") > _quality(accept, "application/json")


def _take_place(channel: Any) -> None:
    """Count a connection among those that listen. Raises HTTPError where too many do."""
    if not channel.site.listen(channel):
        most = channel.site.max_listeners
        raise HTTPError(503, "full", f"{most} connections listen already; try again in a moment", {"retry-after": "5"})


def inflate(content: bytes, wbits: int, most: int) -> Generator[int, None, bytes]:
    """Returns what `content` decompresses to, at most `most` bytes; yields how many came with each step. Raises HTTPError 400 or 413.

    Of gzip several may stand one after the other, and are one: nothing of what was sent is left out in silence.
    """
    decompressor = zlib.decompressobj(wbits=wbits)
    whole = bytearray()
    members, place = 1, 0
    rest = b""  # of what was read of `content`
    is_drained = True  # zlib holds back nothing that it could give
    while True:
        if not rest:
            rest = content[place : place + INFLATE_BYTES]
            place += len(rest)
        if decompressor.eof:
            if not rest:
                return bytes(whole)
            members += 1
            if members > (most_members := MAX_MEMBERS if wbits == GZIP_WBITS else 1):
                raise HTTPError(400, "bad_request", f"a body takes at most {most_members} compressed parts, and nothing behind them")
            decompressor = zlib.decompressobj(wbits=wbits)
        elif not rest and is_drained:
            raise HTTPError(400, "bad_request", "the compressed body is cut off")
        try:
            # bounded while decompressing: a bomb of a few KiB would fill the memory otherwise
            piece = decompressor.decompress(rest, INFLATE_BYTES)
        except zlib.error as error:
            raise HTTPError(400, "bad_request", f"the body does not decompress: {error}") from None
        rest = decompressor.unused_data if decompressor.eof else decompressor.unconsumed_tail
        is_drained = len(piece) < INFLATE_BYTES
        if len(whole) + len(piece) > most:
            raise HTTPError(413, "too_large", f"the body is larger than {most} bytes when decompressed")
        whole += piece
        yield len(piece)


def _quality(accept: str, kind: str) -> float:
    """How much an Accept header asks for `kind`: its q of the most specific range that has it, 0 where none has."""
    best, quality = 0, 0.0
    for part in accept.split(","):
        name, *parameters = (field.strip() for field in part.split(";"))
        rank = {kind: 3, kind.partition("/")[0] + "/*": 2, "*/*": 1, "*": 1}.get(name, 0)
        if rank > best:
            best, quality = rank, 1.0
            for parameter in parameters:
                if re.fullmatch(r"q=[01](\.[0-9]{0,3})?", parameter):
                    quality = float(parameter[2:])
    return quality


class Api(resource.Resource):
    """The routes of a service. `guard` says who may ask what; without one everybody may ask everything."""

    isLeaf = True

    def __init__(self, routes: Iterable[Route], guard: Guard | None = None):
        super().__init__()
        self.table = Table(routes)
        self.guard = guard
        self.errors: Counter[str] = Counter()  # of this program, by route and kind: the log has the first of each
        self.streams = 0
        """Answers that are being streamed."""

    def render(self, request: server.Request) -> int:
        answering = defer.ensureDeferred(self._answer(request))
        # a peer that goes away while its answer is made: nobody is left to be told
        request.notifyFinish().addErrback(lambda _: answering.cancel())
        answering.addErrback(lambda failure: failure.trap(defer.CancelledError))
        return server.NOT_DONE_YET

    async def _answer(self, request: Any) -> None:
        text = False
        path = request.path.decode("ascii", "replace")
        method = request.method.decode("ascii", "replace")
        found = self.table.find(method, path)
        try:
            _check_origin(request)
            grant = self._admit(request, found)
            if found is None:
                raise self._missed(path)
            call = Call(request, grant, found)
            text = call.wants_text
            answer = await found.route.serve(call)
            if isinstance(answer.content, Broadcast):
                await self._listen(request, answer, answer.content)
                return
            if isinstance(answer.content, AsyncIterator):
                answer = await self._stream(request, answer)
                if answer.content is None:
                    return  # it is sent
        except HTTPError as error:
            answer = refusal(error)
        except Refused as error:
            if error.wait_seconds:
                await request.channel.wait_refused(error.wait_seconds)
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
            self._note_bug(failure, found)
            answer = refusal(HTTPError(500, "internal", f"{type(failure.value).__name__}; the service's log says more"))
        if request.channel is not None:  # else its peer is gone, and what was cancelled for that said so in its own way
            _send(request, answer, text)

    def _note_bug(self, failure: Failure, found: Found | None) -> None:
        where = f"{found.route.method} {found.route.path}" if found is not None else "elsewhere"
        where = f"{where}: {type(failure.value).__name__}"
        self.errors[where] += 1
        if self.errors[where] == 1:  # no peer fills the log
            log.failure("{where}", failure=failure, where=where)

    async def _stream(self, request: Any, answer: Answer) -> Answer:
        """Send slice after slice, as the peer takes them; or, where all was joined to one, the answer that may be sent whole.

        What fails before the first slice is an answer, later ones cut the connection.
        """
        slices = answer.content
        joined: list[bytes] = []
        while answer.is_joined and sum(map(len, joined)) < SLICE_BYTES:
            more = await anext(slices, None)
            if more is None:
                return answer._replace(content=b"".join(joined), text=None)
            joined.append(more)
        if self.streams >= MAX_STREAMS:
            raise HTTPError(503, "full", f"{MAX_STREAMS} large answers are being sent; try again in a moment", {"retry-after": "1"})
        self.streams += 1
        try:
            first = b"".join(joined) if joined else await anext(slices, b"")
            _begin(request, answer, answer.content_type)
            compressor = _compressor(request)
            if request.method == b"HEAD":
                request.channel.answering(request, 0)
            else:
                gate = Gate()
                request.registerProducer(gate, True)
                try:
                    await _send_slices(request, first, slices, gate, compressor)
                except defer.CancelledError:
                    raise
                except Exception:
                    if request.channel is None:
                        raise defer.CancelledError() from None  # its peer is gone, and what was cancelled for that said so in its own way
                    self._note_bug(Failure(), None)
                    request.channel.cut()  # so that nobody takes what came for the whole
                    return answer._replace(content=None)
                finally:
                    if request.channel is not None:
                        request.unregisterProducer()
            request.finish()
        finally:
            self.streams -= 1
        return answer._replace(content=None)

    async def _listen(self, request: Any, answer: Answer, broadcast: Broadcast) -> None:
        """Have the peer hear a broadcast until its end, or until it goes. Raises HTTPError where too many listen."""
        _take_place(request.channel)
        _begin(request, answer, answer.content_type)
        request.setHeader("x-accel-buffering", "no")  # a proxy hands on what comes when it comes
        takes_gzip = _compressor(request) is not None
        if request.method == b"HEAD":
            request.channel.answering(request, 0)
            request.finish()
            return
        gate = Gate()
        request.registerProducer(gate, True)
        listener = Listener(request, gate, takes_gzip)
        over = request.channel.callLater(MAX_LISTEN_SECONDS, listener.end)
        try:
            broadcast.join(listener)
            await listener.ended
        except defer.CancelledError:
            raise
        except Exception:
            self._note_bug(Failure(), None)
            request.channel.cut()
            return
        finally:
            if over.active():
                over.cancel()
            broadcast.leave(listener)
            if request.channel is not None:
                request.unregisterProducer()
        listener.finish(broadcast.goodbye)
        request.finish()

    def _admit(self, request: Any, found: Found | None) -> Grant:
        """What whoever asks may do. Raises Refused where that is not this."""
        wanted = ANY if found is None else found.route.token
        if self.guard is None or not self.guard.needs_token(wanted):
            return EVERYTHING
        grant: Grant = request.identify()
        self.guard.admit(grant, wanted)
        self.guard.admit_bound(grant, found is not None and found.route.is_scoped, wanted)
        return grant

    def _missed(self, path: str) -> HTTPError:
        methods = self.table.methods(path)
        if not methods:
            return HTTPError(404, "not_found", f"nothing at {path[:200]}")
        allowed = ", ".join(methods)
        return HTTPError(405, "method_not_allowed", f"{path[:200]} takes {allowed}", {"allow": allowed})


@implementer(IPushProducer)
class Gate:
    """Shut while a peer has more to take than its transport will hold; whoever streams passes it between two slices."""

    def __init__(self) -> None:
        self._shut: defer.Deferred[None] | None = None

    def pauseProducing(self) -> None:
        """Shut it."""
        if self._shut is None:
            self._shut = defer.Deferred()

    def resumeProducing(self) -> None:
        """Open it."""
        shut, self._shut = self._shut, None
        if shut is not None and not shut.called:
            shut.callback(None)

    stopProducing = resumeProducing  # the connection is gone: whoever waits is cancelled for that

    @property
    def is_shut(self) -> bool:
        """Whether the peer has more to take."""
        return self._shut is not None

    async def passed(self) -> None:
        """Wait until it is open."""
        while self._shut is not None:
            await self._shut


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
    _begin(request, answer, content_type)
    if answer.status == 200 and request.method in (b"GET", b"HEAD"):
        etag = f'W/"{blake2b(content, digest_size=ETAG_BYTES).hexdigest()}"'
        request.setHeader("etag", etag)
        if etag in [known.strip() for known in (request.getHeader("if-none-match") or "").split(",")]:
            request.setResponseCode(304)
            request.channel.answering(request, 0)
            request.finish()
            return
    if LEAST_GZIP_BYTES <= len(content) <= MOST_GZIP_BYTES:
        compressor = _compressor(request)
        if compressor is not None:
            content = compressor.compress(content) + compressor.flush()
    request.setHeader("content-length", str(len(content)))
    request.channel.answering(request, len(content))
    if request.method != b"HEAD":
        request.write(content)
    request.finish()


def _compressor(request: Any) -> Any:
    """What compresses the answer, whose headers then say so; None for a peer that does not take gzip."""
    request.setHeader("vary", "accept, accept-encoding")
    if _quality((request.getHeader("accept-encoding") or "").lower(), "gzip") <= 0:
        return None
    request.setHeader("content-encoding", "gzip")
    return zlib.compressobj(GZIP_LEVEL, wbits=GZIP_WBITS)


def _begin(request: Any, answer: Answer, content_type: str) -> None:
    request.setResponseCode(answer.status)
    for name, value in answer.headers.items():
        request.responseHeaders.setRawHeaders(name, [value] if isinstance(value, str) else list(value))
    request.setHeader("content-type", content_type)
    request.setHeader("cache-control", "private, no-cache")  # what is kept is asked for again, with its ETag
    request.setHeader("x-content-type-options", "nosniff")


async def sliced(pieces: AsyncIterator[str]) -> AsyncIterator[bytes]:
    """Pieces as slices of SLICE_BYTES. What is held while a reader has stopped reading is one of them, and the rest of a piece."""
    waiting: list[bytes] = []
    size = 0
    async for piece in pieces:
        waiting.append(piece.encode())
        size += len(waiting[-1])
        del piece
        while size >= SLICE_BYTES:
            whole = b"".join(waiting)
            content, rest = whole[:SLICE_BYTES], whole[SLICE_BYTES:]
            waiting, size = [rest], len(rest)
            del whole, rest
            yield content
    yield b"".join(waiting)


async def _send_slices(request: Any, first: bytes, slices: AsyncIterator[bytes], gate: Gate, compressor: Any) -> None:
    content: bytes | None = first
    while content is not None:
        for start in range(0, len(content), SLICE_BYTES):
            part = content[start : start + SLICE_BYTES]
            if compressor is not None:
                part = compressor.compress(part)
            if part:
                request.channel.answering(request, len(part))  # so long has the peer for these
                request.write(part)
                await gate.passed()
            # a peer that takes all at once must not have the process for itself
            await request.channel.pause(0.0)
        content = await anext(slices, None)
    if compressor is not None:
        request.write(compressor.flush())


def _check_origin(request: server.Request) -> None:
    """On loopback: only pages and programs that address this very host may ask."""
    if not is_loopback(getattr(request.getHost(), "host", "localhost")):
        return
    hosts = request.requestHeaders.getRawHeaders("host") or []
    if len(hosts) > 1 or (not hosts and request.clientproto == b"HTTP/1.1"):
        raise HTTPError(400, "bad_request", f"takes one Host header, not {len(hosts)}")
    asked = hosts[0].strip() if hosts else ""
    if _HOST.fullmatch(asked) is None:
        raise HTTPError(400, "bad_request", f"Host {asked[:100]!r} is no host")
    origin = request.getHeader("origin")
    if asked and not is_loopback(_host_of("//" + asked)):
        raise HTTPError(403, "forbidden", f"Host {asked[:100]!r} is not this host")
    if origin is None:
        return
    if not is_loopback(_host_of(origin)):
        raise HTTPError(403, "forbidden", f"Origin {origin[:100]!r} is not this host")
    if request.method not in (b"GET", b"HEAD") and _place_of(origin) != _place_of("http://" + asked):
        raise HTTPError(403, "forbidden", f"Origin {origin[:100]!r} is another address than the one asked; it may only read")


_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s@/?#\\:\[\],]*)(:[0-9]{0,5})?")  # with what a URL has before or behind, it would be another's


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
