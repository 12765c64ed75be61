"""Connections of HTTP: what a peer may hold, and for how long. twisted.web bounds hardly any of it.

A connection is a newcomer until a request of it was admitted, and known from then on.

1. Newcomers have a hall of their own; when it is full, who has waited longest in it without a whole request leaves it. So idle
   connections, however many, lock nobody out, and what was served before is never cut to make room.
2. When as many are known as may be, each answer says `Connection: close`: whoever is served makes room, and newcomers are served all along.
3. Whoever listens to a broadcast has a place of another kind: however many do, Agents and questions have theirs.
4. Of the hall's places some are for this host alone, and one address has no more than its share.
5. Who comes while all in the hall are being served is told so; of these some are told at once, and who comes beyond them is cut.
6. A peer has seconds for its first byte, for a whole request, and for reading an answer.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, cast

from twisted.internet.base import DelayedCall
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.protocol import connectionDone
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure
from twisted.web import http, server

from taba.bounds import KiB, MiB
from taba.calls import MAX_BODY_BYTES, Body, HTTPError
from taba.cookies import token_shown
from taba.guard import Refused
from taba.options import is_loopback
from taba.places import ASKER
from taba.plural import many
from taba.sockets import bound_unsent, has_unsent, user_of
from taba.tokens import EVERYTHING, Grant
from taba.tries import RECENT_SECONDS, address_of
from taba.turns import Turns
from taba.web import Api, header_problem, refusal, refused

MAX_KNOWN = 768  # connections that are kept between requests
MAX_HALL = 224  # newcomers, who have not been served yet
LOCAL_HALL = 32  # of these for this host alone: its Agent, its proxy, whoever looks after it
MAX_HALL_OF_PEER = 64  # of one address
MAX_TOLD = 32  # newcomers for whom there is no room, that are being told; who comes beyond them is cut without a word
MAX_LISTENERS = 1000  # connections that hear broadcasts, some 60 KiB each
LEAST_LISTENERS = 16  # of which so many may be there although there are few descriptors
SPARE_DESCRIPTORS = 128  # for store, files and children
LEAST_SHARE = 1 / 16  # of the places above that is there however few descriptors are
FIRST_SECONDS = 10.0  # for the first byte of a connection, TLS handshake included
MAX_REQUEST_SECONDS = 30.0  # for a peer to send one request whole
MAX_IDLE_SECONDS = 120.0  # for a kept-alive connection to say nothing
ANSWER_SECONDS = 30.0  # for a peer to take an answer …
ANSWER_BYTES_PER_SECOND = 128 * KiB  # … and longer for a large one, at this rate
MAX_RECEIVING_BYTES = 256 * MiB  # of all bodies that are being received and read: 32 of the largest
LINGER_SECONDS = 2.0  # after an early refusal, so that a peer that still sends reads the answer rather than a reset
MAX_LINGER_BYTES = 64 * MiB
MAX_LENGTH_DIGITS = 15  # of a Content-Length: Python refuses to read thousands, in a traceback
LARGE_BODY_BYTES = 256 * KiB  # from here on a body is read …
READ_BYTES = 512 * KiB  # … so much at once: each turn of the reactor costs as much as 64 KiB, which it reads else
CHUNKS_BYTES = 4 * KiB  # of a chunked body, taken at once: where each chunk is a byte, some 15 ms
TLS_HANDSHAKE = b"\x16"  # the first byte of one


def make_site(api: Api, max_body_bytes: int = MAX_BODY_BYTES) -> BoundedSite:
    """A Site that bounds body, time and connections of its peers, and writes no access log."""
    return BoundedSite(api, max_body_bytes)


class BoundedSite(server.Site):
    """A Site of BoundedChannels. `refused` counts, by reason, whom it turned away or cut."""

    def __init__(self, api: Api, max_body_bytes: int):
        super().__init__(api, timeout=MAX_IDLE_SECONDS, requestFactory=BoundedRequest)
        self.protocol = BoundedChannel  # type: ignore[method-assign,assignment]
        self.displayTracebacks = False
        self.max_body_bytes = max_body_bytes
        self.guard = api.guard
        if self.guard is not None:
            self.guard.told.append(self._renew)
        self.is_closing = False
        self.known: set[BoundedChannel] = set()
        self.hall: dict[BoundedChannel, None] = {}  # in the order of coming
        self.listening: set[BoundedChannel] = set()
        self.told: set[BoundedChannel] = set()  # that there is no room
        self.max_listeners = MAX_LISTENERS
        self._share = 1.0  # of the other places, that this process has descriptors for
        self.ended = 0  # connections that are gone, since ever
        self.receiving = 0  # bytes of bodies, and of what is made of them, for which room is kept
        self.turns = Turns.of(self.reactor)
        self.refused: Counter[str] = Counter()
        self._crowded: dict[str, tuple[float, str]] = {}  # reason → when last, and what was done, why, and what to do

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self.known) + len(self.hall) + len(self.listening) + len(self.told)

    def bound_places(self, descriptors: int) -> None:
        """Have no more places than this process may have descriptors for: those of listeners are what the others leave."""
        left = descriptors - SPARE_DESCRIPTORS - MAX_TOLD
        self.max_listeners = max(LEAST_LISTENERS, min(MAX_LISTENERS, left - MAX_KNOWN - MAX_HALL))
        self._share = max(LEAST_SHARE, min(1.0, (left - self.max_listeners) / (MAX_KNOWN + MAX_HALL)))

    def places(self, most: int) -> int:
        """How many of `most` places there are here."""
        return int(most * self._share)

    @property
    def is_full(self) -> bool:
        """Whether who is served must make room."""
        return self.is_closing or len(self.known) >= self.places(MAX_KNOWN)

    def enter(self, channel: BoundedChannel) -> bool:
        """Take a newcomer into the hall, if need be in the place of another; whether it may stay."""
        peers = [other for other in self.hall if other.peer == channel.peer] if not channel.is_local else []
        strangers = sum(not other.is_local for other in self.hall)
        if len(peers) >= self.places(MAX_HALL_OF_PEER):
            has_room = self._cut_one(peers, "too_many_of_peer")
        elif not channel.is_local and strangers >= self.places(MAX_HALL) - self.places(LOCAL_HALL):
            has_room = self._cut_one([other for other in self.hall if not other.is_local], "hall_full")
        elif len(self.hall) >= self.places(MAX_HALL):
            has_room = self._cut_one(list(self.hall), "hall_full")
        else:
            has_room = True
        if has_room:
            self.hall[channel] = None
        return has_room

    def _cut_one(self, channels: list[BoundedChannel], reason: str) -> bool:
        """Cut the first that waits for nothing but its own peer; whether there was one."""
        waiting = next((channel for channel in channels if not channel.is_served), None)
        whose = f" of {channels[0].peer}" if reason == "too_many_of_peer" else ""
        most = self.places(MAX_HALL_OF_PEER if whose else MAX_HALL)
        if waiting is None:
            reason = "busy"
            sentence = f"turned away: as many as {most} newcomers{whose} waited for answers at once; ask less, or start further Servers"
        else:
            sentence = f"cut: more than {most} at once{whose} waited without a whole request; keep away who does that"
            del self.hall[waiting]
            waiting.cut()
        self.refused[reason] += 1
        self._crowded[reason] = cast(Any, self.reactor).seconds(), sentence
        return waiting is not None

    def admit(self, channel: BoundedChannel) -> bool:
        """A request of this connection is being served: it is known from now on. Whether it may stay after that."""
        if channel in self.listening:
            return False  # it has heard all that it came for when that ends
        if channel in self.known:
            return not self.is_full
        if self.is_full:
            return False
        if channel in self.hall:
            del self.hall[channel]
            self.known.add(channel)
        return True

    def tell(self, channel: BoundedChannel) -> bool:
        """Whether a newcomer for whom there is no room may stay until it has read so: it holds a descriptor until then."""
        if len(self.told) >= MAX_TOLD:
            return False
        self.told.add(channel)
        return True

    def listen(self, channel: BoundedChannel) -> bool:
        """A request of this connection hears a broadcast: its place is free for others. Whether it may."""
        if channel in self.listening:
            return True
        if len(self.listening) >= self.max_listeners:
            self.refused["listeners_full"] += 1
            return False
        self.leave(channel)
        self.listening.add(channel)
        return True

    def leave(self, channel: BoundedChannel) -> None:
        """This connection is gone."""
        self.listening.discard(channel)
        self.told.discard(channel)
        self.hall.pop(channel, None)
        self.known.discard(channel)

    def _renew(self) -> None:
        """Certificates are asked of other authorities: who comes again is asked anew. What is being answered is, and closed then."""
        for channel in [*self.known, *self.hall]:
            if not channel.is_served:
                channel.cut()

    def describe(self) -> dict[str, Any]:
        """What a status tells of this."""
        counts = {"connections": self.connections, "listeners": len(self.listening), "cut": dict(sorted(self.refused.items()))}
        return counts if self.guard is None else {**self.guard.describe(), **counts}

    def problems(self, unix_now: float) -> list[str]:
        """What needs a person, in sentences."""
        found = [] if self.guard is None else self.guard.problems(unix_now)
        for reason, (seconds, sentence) in self._crowded.items():
            if cast(Any, self.reactor).seconds() - seconds < RECENT_SECONDS:
                found.append(f"{many(self.refused[reason], 'connection was', 'connections were')} {sentence}")
        errors = cast(Api, self.resource).errors
        found += [f"{many(count, 'request')} failed: {what} (the log has the first)" for what, count in sorted(errors.items())]
        return found

    def _updateLogDateTime(self) -> None:
        """No access log, so no date of its lines: twisted.web would make one each second, of a time that is no date here."""

    def log(self, request: http.Request) -> None:
        """No access log: nothing here grows with the number of requests."""


class BoundedChannel(http.HTTPChannel):
    """One connection: a request is received whole within MAX_REQUEST_SECONDS and within the Site's bound, or refused."""

    site: BoundedSite
    peer = ""
    is_local = True
    _owner = ""
    _is_silent = True  # no byte has come yet
    _authorities = 0  # that were asked when its certificate was shown
    _deadline: DelayedCall | None = None  # for what the peer must send now
    _taking: DelayedCall | None = None  # for what it must read
    _lingering = -1  # bytes that may still be read and thrown away; -1: not refused
    _room = 0  # bytes of a body for which the Site keeps room
    _is_refused = False  # it waits to be told that nobody knows it
    _is_lost = False
    _unread: bytearray | None = None  # what came of a chunked body and is taken in turns; None where nothing waits

    def connectionMade(self) -> None:
        super().connectionMade()
        bound_unsent(self.transport)
        if self.site.guard is not None:
            self._authorities = self.site.guard.authorities
        self.peer = getattr(cast(Connection, self.transport).getPeer(), "host", None) or ""
        self.is_local = not self.peer or is_loopback(self.peer)
        if self.site.enter(self):
            self._deadline = self.callLater(FIRST_SECONDS, self._silent)
        elif self.site.tell(self):
            self._refuse(HTTPError(503, "full", "too many requests are being answered; try again in a moment"))
        else:
            self.cut()

    @property
    def owner(self) -> str:
        """Whose this connection is: of a socket of a file system the user, else the host; all addresses of loopback are this one."""
        if not self._owner:  # asked by each request, and the same as long as the connection is there
            user = user_of(self.transport)
            self._owner = f"uid {user}" if user is not None else "this host" if self.is_local else address_of(self.peer)
        return self._owner

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._is_lost = True
        self.site.ended += 1
        self.site.leave(self)
        self._give_room_back()
        self._stop_deadline()
        self._taken()
        super().connectionLost(reason)

    @property
    def is_served(self) -> bool:
        """Whether a request of it is there whole, and its answer, which is no refusal of a stranger, is not."""
        return bool(self._handlingRequest) and not self._is_refused

    @property
    def has_certificate(self) -> bool:
        """Whether it has shown one that authorities of now have signed."""
        shown = getattr(self.transport, "getPeerCertificate", lambda: None)()
        return shown is not None and self.site.guard is not None and not self._is_of_before

    @property
    def _is_of_before(self) -> bool:
        """Whether other authorities are asked by now than when it began."""
        return self.site.guard is not None and self._authorities != self.site.guard.authorities

    def cut(self) -> None:
        """Close at once."""
        cast(Connection, self.transport).abortConnection()

    # --- what comes in ---

    def dataReceived(self, data: bytes) -> None:
        if self._lingering >= 0:
            self._lingering -= len(data)
            if self._lingering < 0:
                self.cut()
            return
        if self._is_silent:
            self._is_silent = False
            self._stop_deadline()
            if data[:1] == TLS_HANDSHAKE and not self.isSecure():
                # it would wait for an answer until it is cut; so it hears at once that this is not what it speaks
                self._refuse(HTTPError(400, "bad_request", "this is TLS, and none is spoken here: ask http:"))
                return
        if self._deadline is None and not self._handlingRequest:
            self._deadline = self.callLater(MAX_REQUEST_SECONDS, self._too_slow)
        super().dataReceived(data)

    def lineReceived(self, line: bytes) -> None:
        if self._receivedHeaderSize > 0 and line[:1] in (b" ", b"\t"):
            # HTTPChannel would join it to the header before it (RFC 9112, 5.2)
            detail = "a header goes on in a next line: a proxy before this may see it otherwise; write it in one"
            self._refuse(HTTPError(400, "bad_request", detail))
        else:
            super().lineReceived(line)

    def _maybeChooseTransferDecoder(self, header: bytes, data: bytes) -> bool:
        if header == b"Content-Length" and len(data) > MAX_LENGTH_DIGITS:
            self.refuse_body()
            return False
        return bool(super()._maybeChooseTransferDecoder(header, data))

    def allHeadersReceived(self) -> None:
        if self._lingering >= 0:
            return
        request = cast(BoundedRequest, self.requests[-1])
        problem = header_problem(request)
        if problem is not None:
            self._refuse(HTTPError(400, "bad_request", problem))
        elif self.length == 0 or self._may_send_body(request):
            if self.length is not None and self.length > self.site.max_body_bytes:
                self.refuse_body()
            elif self.keep_room(self.length or 0):
                if self.length is not None and self.length >= LARGE_BODY_BYTES:
                    cast(Any, self.transport).bufferSize = READ_BYTES
                super().allHeadersReceived()

    def _may_send_body(self, request: BoundedRequest) -> bool:
        """Whether a body is read from this peer at all: not from one that nobody knows."""
        try:
            request.identify()
        except Refused as error:
            self._refuse(refused(error), error.wait_seconds)
            return False
        return True

    def keep_room(self, size: int) -> bool:
        """Have the Site keep room for so many bytes of a body; False, and refused, where it has none."""
        if not self.take_room(size):
            self._refuse(HTTPError(503, "full", "too much is being received at once; try again in a moment"))
            return False
        return True

    def take_room(self, size: int) -> bool:
        """Have the Site keep room for so many bytes more until the request is answered; whether it has any."""
        if self.site.receiving + size > MAX_RECEIVING_BYTES:
            return False
        self.site.receiving += size
        self._room += size
        return True

    def _give_room_back(self) -> None:
        self.site.receiving -= self._room
        self._room = 0

    def allContentReceived(self) -> None:
        vars(self.transport).pop("bufferSize", None)  # what is read else is small, and answers are written by the same bound
        if self._lingering < 0:
            self._stop_deadline()
            super().allContentReceived()

    def requestDone(self, request: http.Request) -> None:
        self._is_refused = False
        self._give_room_back()
        if self._buffer or self._dataBuffer:  # the next request is there already: many of them are one peer's, and others have their turns
            ensureDeferred(self._go_on(request))
        else:
            super().requestDone(request)

    async def _go_on(self, request: http.Request) -> None:
        ASKER.set(self.owner)
        await self.site.turns.breathe()
        if not self._is_lost:
            super().requestDone(request)

    def lineLengthExceeded(self, line: bytes) -> None:
        if self._receivedHeaderSize == 0:
            self._refuse(HTTPError(414, "too_large", f"a request line takes at most {self.MAX_LENGTH} bytes"))
        else:
            self._refuse_headers()

    def rawDataReceived(self, data: bytes) -> None:
        if self._lingering >= 0:
            return
        if self._unread is not None:
            self._unread += data
        elif len(data) > CHUNKS_BYTES and not self._handlingRequest and self.length is None:
            # of chunks that are a byte each, 64 KiB take a quarter of a second: others have their turns
            self._unread = bytearray(data)
            cast(Any, self._networkProducer).pauseProducing()
            ensureDeferred(self._read_on())
        else:
            self._take_raw(data)

    def _take_raw(self, data: bytes) -> None:
        """Take bytes of a body; a chunk that says that it is larger than what is left of the bound is refused before it comes."""
        super().rawDataReceived(data)
        decoder: Any = self._transferDecoder
        to_come = decoder.length if getattr(decoder, "state", None) == "BODY" else 0  # of a chunk
        if self._lingering < 0 and to_come > 0 and self.requests[-1].received + to_come > self.site.max_body_bytes:
            self.refuse_body()

    async def _read_on(self) -> None:
        """Take what came of a chunked body a piece at a time; what came behind it is for the next request."""
        ASKER.set(self.owner)
        unread, rest = cast(bytearray, self._unread), b""
        while unread:
            await self.site.turns.breathe()
            if self._lingering >= 0 or self._is_lost:
                break
            piece = bytes(unread[:CHUNKS_BYTES])
            del unread[:CHUNKS_BYTES]
            self._take_raw(piece)
            if self._transferDecoder is None:
                rest = bytes(unread)
                break
        self._unread = None
        if self._is_lost:
            return
        if not self._waitingForTransport:
            cast(Any, self._networkProducer).resumeProducing()
        if rest:
            super().dataReceived(rest)

    # --- what goes out ---

    def answering(self, request: BoundedRequest, size: int) -> None:
        """An answer of `size` bytes is about to be written: the peer has so long to take it."""
        has_no_place = request.is_known and (self.persistent or not request.startedWriting) and not self.site.admit(self)
        # of authorities of before it would be refused on this connection ever after
        if has_no_place or (self._is_of_before and not request.startedWriting):
            request.setHeader("connection", "close")
            self.persistent = False
        self._give_time(size)

    def send_now(self, content: bytes) -> None:
        """Send bytes of an answer that has begun: where none wait before them, with one system call, for a thousand listeners each second.

        The reactor would take three and a turn. What the kernel does not take waits as everything else, and the peer has its time for it.
        """
        transport = self.transport
        sent = 0
        if isinstance(transport, Connection) and not transport.TLS and not has_unsent(transport):
            try:
                sent = transport.socket.send(content)
            except OSError:
                sent = 0  # no room; or the connection is gone, which the reactor finds and tells
            if sent == len(content):
                if self._taking is not None:
                    self._taken()
                return
        self._give_time(len(content))
        cast(Connection, transport).write(content[sent:] if sent else content)

    async def wait_refused(self, seconds: float) -> None:
        """Let so long pass before a stranger is told that it is one; meanwhile its place is the first to be given to another."""
        self._is_refused = True
        await self.pause(seconds)

    def pause(self, seconds: float) -> Deferred[None]:
        """Fires after so long."""
        waiting: Deferred[None] = Deferred(lambda _: call.cancel())
        call = self.callLater(seconds, lambda: waiting.callback(None))
        return waiting

    def _give_time(self, size: int) -> None:
        seconds = ANSWER_SECONDS + size / ANSWER_BYTES_PER_SECOND
        if self._taking is not None and self._taking.active():
            self._taking.reset(seconds)  # of a thousand that listen each has one: to make it anew costs more than to write
        else:
            self._taking = self.callLater(seconds, self._not_taken)

    def resumeProducing(self) -> None:
        if self.persistent:
            self._taken()  # all is out
        super().resumeProducing()

    def _taken(self) -> None:
        if self._taking is not None and self._taking.active():
            self._taking.cancel()
        self._taking = None

    def _not_taken(self) -> None:
        self._taking = None
        if self._waitingForTransport or not self.persistent:
            self.site.refused["answer_not_read"] += 1
            self.cut()

    # --- refusals ---

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

    def _silent(self) -> None:
        self._deadline = None
        self.site.refused["silent"] += 1
        self.cut()

    def _too_slow(self) -> None:
        self._deadline = None
        self.site.refused["too_slow"] += 1
        self._refuse(HTTPError(408, "too_slow", f"a request is sent within {MAX_REQUEST_SECONDS:.0f} s"))

    def _refuse(self, error: HTTPError, after_seconds: float = 0.0) -> None:
        """Answer without a request, throw away what still comes, and close."""
        if self._lingering >= 0:
            return
        self._stop_deadline()
        self.setTimeout(None)
        self._lingering = MAX_LINGER_BYTES
        self.setRawMode()
        if after_seconds:
            self._deadline = self.callLater(after_seconds, lambda: self._say(error))
        else:
            self._say(error)

    def _say(self, error: HTTPError) -> None:
        body = json.dumps(refusal(error).content).encode()
        reason = http.RESPONSES.get(error.status, b"Request Header Fields Too Large" if error.status == 431 else b"")
        more = b"".join(b"%b: %b\r\n" % (name.encode(), value.encode()) for name, value in error.headers.items())
        cast(Connection, self.transport).write(
            b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%bConnection: close\r\n\r\n%b"
            % (error.status, reason, len(body), more, body)
        )
        self._deadline = self.callLater(LINGER_SECONDS, self._stop_lingering)

    def _stop_lingering(self) -> None:
        self._deadline = None
        self.persistent = False
        self._give_time(0)
        self.loseConnection()

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class BoundedRequest(server.Request):
    """A request whose chunked body is counted as it comes in."""

    channel: BoundedChannel
    received = 0
    _grant: Grant | None = None

    def identify(self) -> Grant:
        """What whoever asks may do. Raises Refused."""
        guard = self.channel.site.guard
        if self._grant is None:
            if guard is None or not guard.is_closed:
                self._grant = EVERYTHING
            else:
                self._grant = guard.identify(self._offered(), self.channel.has_certificate, self.channel.peer)
        return self._grant

    @property
    def poster(self) -> str:
        """Who asks, once identified: a token's bearer, else a user of this host by a socket of a file system, else a host."""
        guard = self.channel.site.guard
        name = None if guard is None else guard.name_of(self._offered())
        return self.channel.owner if name is None else name

    def _offered(self) -> list[str]:
        return self._values("authorization") or self._shown()

    def _shown(self) -> list[str]:
        """What a browser shows instead of an Authorization header."""
        headers = {name: self._values(name) for name in ("cookie", "origin", "host", "sec-fetch-site")}
        command = getattr(self.channel, "_command", None) or self.method  # the channel has it until the body is there, then the request
        token = token_shown(headers, command.decode("ascii", "replace"))
        return [] if token is None else [f"Bearer {token}"]

    def _values(self, name: str) -> list[str]:
        return [value.decode("utf-8", "replace") for value in self.requestHeaders.getRawHeaders(name.encode()) or ()]

    @property
    def is_known(self) -> bool:
        """Whether whoever asks has shown what it takes, where anything is asked for."""
        return self._grant is not None or self.channel.site.guard is None or not self.channel.site.guard.is_closed

    def gotLength(self, length: int | None) -> None:
        self.content = Body()

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        # a body that calls itself a form (urllib and curl do so by default) must not be read as more of the query
        self.requestHeaders.removeHeader(b"content-type")
        super().requestReceived(command, path, version)

    def handleContentChunk(self, data: bytes) -> None:
        self.received += len(data)
        if self.received > self.channel.site.max_body_bytes:
            self.channel.refuse_body()
        elif self.channel.length is not None or self.channel.keep_room(len(data)):
            super().handleContentChunk(data)
