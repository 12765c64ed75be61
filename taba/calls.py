"""One request as routes see it, and what they give back.

What a route defines of it is in its table (`taba.routes`); how it came, and goes back to its peer, in `taba.web`.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import lru_cache
from io import SEEK_END, BytesIO
from typing import Any, NamedTuple, cast

from twisted.web import http

from taba.bounds import MAX_ENVELOPE_BYTES, KiB
from taba.nesting import no_constant
from taba.tokens import EVERYTHING, Grant

MAX_BODY_BYTES = MAX_ENVELOPE_BYTES  # the largest thing that anyone may send, after decompression
MAX_RANGES = 100  # of an Accept header that are read, the first; browsers send ten. A header of commas would take 17 ms, three times
MAX_RANGE_FIELDS = 10  # of a range, its name among them
MAX_KEPT_ACCEPTS, MAX_KEPT_ACCEPT = 256, 256  # Accept headers whose qualities are remembered, and characters of one
GZIP_WBITS = 31  # of zlib: gzip, and the largest window
MAX_MEMBERS = 256  # that a body of gzip may consist of; who compresses block by block has one for each
MAX_JSON_BYTES = 64 * KiB  # of a body that is read in one go; an empty list is two of them, and 64 of memory
LEAST_PIECE = 4 * KiB  # of a body that is kept as it came in; smaller ones are put together …
MOST_SMALL = 64 * KiB  # … up to so many bytes
INFLATE_BYTES = 256 * KiB  # of a body, inflated between two looks at the time and at the room that is left


class HTTPError(Exception):
    """An answer other than success: a status, a short `error` for programs and a `detail` for people."""

    def __init__(self, status: int, error: str, detail: str, headers: Mapping[str, str] | None = None):
        super().__init__(f"{status} {error}: {detail}")
        self.status, self.error, self.detail = status, error, detail
        self.headers = {**({"retry-after": "1"} if status == 503 else {}), **(headers or {})}  # so that nobody has to guess


class Body(BytesIO):
    """A request's body while it comes in, in pieces.

    Not the file that twisted.web makes from 100 kB on: it is read whole all the same, room is kept for it while it is here, and a full disk
    refuses nothing. Nor one buffer, which grows by being copied; small pieces have one, as each takes more than its bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[bytes] = []

    def write(self, piece: Any) -> int:
        if len(piece) < LEAST_PIECE:
            super().write(piece)
            if self.tell() >= MOST_SMALL:
                self._end_small()
        else:
            self._end_small()
            self._pieces.append(bytes(piece))
        return len(piece)

    def take(self) -> bytes:
        """All that came; it is here no longer."""
        self._end_small()
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)

    def close(self) -> None:
        self._pieces = []
        super().close()

    def _end_small(self) -> None:
        self.seek(0, SEEK_END)  # twisted.web goes to its begin once the body is there
        if self.tell():
            self._pieces.append(self.getvalue())
            self.seek(0)
            self.truncate()


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
    """One request, as routes see it. `read` makes of what stands in its query what its route defines, and raises ValueError."""

    def __init__(
        self,
        request: http.Request,
        grant: Grant = EVERYTHING,
        read: Callable[[Mapping[str, list[str]]], dict[str, Any]] = lambda arguments: {},
    ):
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
        try:
            self.values = read(self.arguments)
            """The parameters that the route defines, by name, as `Parameter.read` gives them."""
        except ValueError as error:
            raise HTTPError(400, "bad_request", str(error)) from None

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

    @property
    def poster(self) -> str:
        """Who asks, as what is posted is accounted: by the token, where tokens are asked for, else by user or address."""
        return cast(str, cast(Any, self._request).poster)

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
        take_place(self._request.channel)

    def _take_room(self, size: int) -> None:
        if not cast(Any, self._request.channel).take_room(size):
            raise HTTPError(503, "full", "too much is being received at once; try again in a moment")

    async def body(self) -> bytes:
        """The body, decompressed (gzip or deflate). Raises HTTPError 400, 413 or 415, and 503 where there is no room for it."""
        content = cast(Body, self._request.content).take()
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

    @property
    def wants_text(self) -> bool:
        """Whether `Accept` asks for text rather than JSON."""
        accept = (self.header("accept") or "").lower()
        return quality(accept, "text/plain") > quality(accept, "application/json")


def take_place(channel: Any) -> None:
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


def quality(accept: str, kind: str) -> float:
    """How much an Accept header asks for `kind`: its q of the most specific range that has it, 0 where none has."""
    return (_kept_quality if len(accept) <= MAX_KEPT_ACCEPT else _quality)(accept, kind)


def _quality(accept: str, kind: str) -> float:
    best, quality = 0, 0.0
    for part in accept.split(",", MAX_RANGES)[:MAX_RANGES]:
        name, *parameters = (field.strip() for field in part.split(";", MAX_RANGE_FIELDS)[:MAX_RANGE_FIELDS])
        rank = {kind: 3, kind.partition("/")[0] + "/*": 2, "*/*": 1, "*": 1}.get(name, 0)
        if rank > best:
            best, quality = rank, 1.0
            for parameter in parameters:
                if re.fullmatch(r"q=[01](\.[0-9]{0,3})?", parameter):
                    quality = float(parameter[2:])
    return quality


_kept_quality = lru_cache(MAX_KEPT_ACCEPTS)(_quality)  # a program sends the same ones with each request
