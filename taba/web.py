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
from collections.abc import AsyncIterator, Iterable
from hashlib import blake2b
from typing import Any
from urllib.parse import urlsplit

from twisted.internet import defer
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http, resource, server
from zope.interface import implementer

from taba.bounds import KiB
from taba.broadcast import Broadcast, Listener
from taba.calls import GZIP_WBITS, Answer, Call, HTTPError, quality, take_place
from taba.errors import MalformedBatch, StoreUnavailable
from taba.guard import Guard, Refused
from taba.options import is_loopback
from taba.places import ASKER, Crowded, Places
from taba.routes import Found, Route, Table
from taba.tokens import ANY, EVERYTHING, NOBODY, Grant

MAX_LISTEN_SECONDS = 3600.0  # to a broadcast; who goes on listening asks anew, with a token that is still known
MAX_STREAMS = 32  # answers that are being sent slice by slice at once …
STREAMS_OF_ASKER = MAX_STREAMS // 2  # … to one asker
SLICE_BYTES = 64 * KiB  # of such an answer, written at a time: what a peer that does not read may cost
LEAST_GZIP_BYTES = KiB  # a smaller answer fits in a packet as it is
MOST_GZIP_BYTES = 256 * KiB  # of an answer that is compressed in one go, some 3 ms; larger ones are streams, or go as they are
GZIP_LEVEL = 3  # of JSON nearly as small as the highest, in a third of the time
ETAG_BYTES = 12


log = Logger()


class Api(resource.Resource):
    """The routes of a service. `guard` says who may ask what; without one everybody may ask everything."""

    isLeaf = True

    def __init__(self, routes: Iterable[Route], guard: Guard | None = None):
        super().__init__()
        self.table = Table(routes)
        self.guard = guard
        self.errors: Counter[str] = Counter()  # of this program, by route and kind: the log has the first of each
        self.streams = Places("large answers that are being sent", MAX_STREAMS, STREAMS_OF_ASKER)
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
        grant = NOBODY
        try:
            _check_origin(request)
            grant = self._admit(request, found)
            if found is None:
                raise self._missed(path)
            ASKER.set(request.poster)
            call = Call(request, grant, found.read)
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
            answer = refusal(HTTPError(503, "store_unavailable", grant.scope.why(str(error))))
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
            await request.channel.site.turns.breathe()  # of many streams each makes a slice: others have their turns between them
            more = await anext(slices, None)
            if more is None:
                return answer._replace(content=b"".join(joined), text=None)
            joined.append(more)
        asker = request.poster
        try:
            self.streams.take_now(asker)
        except Crowded as error:
            raise HTTPError(503, "full", str(error)) from None
        try:
            first = b"".join(joined)
            if not joined:
                await request.channel.site.turns.breathe()
                first = await anext(slices, b"")
            _begin(request, answer, answer.content_type)
            compressor = _compressor(request)
            if request.method == b"HEAD":
                request.channel.answering(request, 0)
            else:
                gate = Sluice()
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
            self.streams.give_back(asker)
        return answer._replace(content=None)

    async def _listen(self, request: Any, answer: Answer, broadcast: Broadcast) -> None:
        """Have the peer hear a broadcast until its end, or until it goes. Raises HTTPError where too many listen."""
        take_place(request.channel)
        _begin(request, answer, answer.content_type)
        request.setHeader("x-accel-buffering", "no")  # a proxy hands on what comes when it comes
        takes_gzip = _compressor(request) is not None
        if request.method == b"HEAD":
            request.channel.answering(request, 0)
            request.finish()
            return
        gate = Sluice()
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
        if self.guard is None or not self.guard.is_closed:
            return EVERYTHING
        if not self.guard.needs_token(wanted):
            return NOBODY
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
class Sluice:
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
    if quality((request.getHeader("accept-encoding") or "").lower(), "gzip") <= 0:
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


async def _send_slices(request: Any, first: bytes, slices: AsyncIterator[bytes], gate: Sluice, compressor: Any) -> None:
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
            # a peer that takes all at once must not have the process for itself, nor must many of them together
            await request.channel.pause(0.0)
            await request.channel.site.turns.breathe()
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


def header_problem(request: http.Request) -> str | None:
    """What is wrong with the headers of a request, if anything is: routes read them as text, and where its body ends is said once."""
    for name, values in request.requestHeaders.getAllRawHeaders():
        if len(values) > 1 and name.lower() == b"transfer-encoding":
            return "it has more than one Transfer-Encoding: a proxy before this may see its end elsewhere"
        for value in values:
            try:
                value.decode()
            except UnicodeDecodeError:
                return f"the header {name[:100].decode('ascii', 'replace')} is no UTF-8 text"
    return None
