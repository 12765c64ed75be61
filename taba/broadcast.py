"""The same thing said to many at once, over HTTP, as server-sent events.

1. What is said is made once and compressed once, whoever hears it. Compressed, it is deflate blocks that refer to nothing before them:
   so they are of use to a listener that missed what was said before.
2. Whoever has more to take than its transport will hold misses what is said meanwhile. Nothing is kept for it.
3. What is said holds for itself: nobody needs to have heard anything else. The number of an event tells who missed some.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any, Protocol, TypeAlias

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

LEVEL = 3
COMPRESSED_AT_ONCE = 131_072  # bytes, some 3 ms
MAX_SUMMED = 1_048_576  # bytes of one thing that are summed for its listeners, some 1 ms; for further ones it is reckoned
AT_ONCE = 100  # listeners that are told before others have a turn: some 1 ms

_GZIP_HEAD = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_LAST_BLOCK = b"\x03\x00"
_POLYNOMIAL = 0xEDB88320  # of CRC-32
_Tables: TypeAlias = "Sequence[array[int]]"  # a matrix of 32 × 32 bits: by byte of a vector what each of its values comes to


class Said:
    """One thing, as bytes, and as deflate blocks for those that take gzip."""

    def __init__(self, text: str):
        self.plain = text.encode()
        self.size = len(self.plain)
        self._blocks: bytes | None = None
        self._chunks: dict[bool, bytes] = {}
        self._summed = 0  # bytes, for listeners that each have a checksum of their own
        self._own: int | None = None
        self._tables: _Tables | None = None

    def checksum(self, before: int) -> int:
        """The CRC-32 of what had `before`, and of this after it: what a gzip file ends with.

        Each listener has heard something else before, so each has its own. They differ by a function of `before` that is linear and the
        same for all: it stands in tables, so that a thousand listeners do not have a thousand times the bytes gone through.
        """
        if self._tables is None:
            self._summed += len(self.plain)
            if self._summed <= MAX_SUMMED:
                return zlib.crc32(self.plain, before)
            self._own, self._tables = zlib.crc32(self.plain), _tables(_after_zeros(len(self.plain)))
        assert self._own is not None
        first, second, third, fourth = self._tables
        return self._own ^ first[before & 255] ^ second[before >> 8 & 255] ^ third[before >> 16 & 255] ^ fourth[before >> 24]

    @property
    def blocks(self) -> bytes:
        if self._blocks is None:
            for _ in self._compressing():
                pass
        assert self._blocks is not None
        return self._blocks

    def chunk(self, is_compressed: bool) -> bytes:
        """The same as a chunk of HTTP: made once, for all that hear it."""
        found = self._chunks.get(is_compressed)
        if found is None:
            content = self.blocks if is_compressed else self.plain
            found = self._chunks[is_compressed] = b"%x\r\n%b\r\n" % (len(content), content)
        return found

    async def compress(self, breathe: Callable[[], Awaitable[None]]) -> None:
        """Make `blocks`; others have a turn (`breathe`) between some of them."""
        for _ in self._compressing():
            await breathe()

    def _compressing(self) -> Iterator[None]:
        compressor = zlib.compressobj(LEVEL, wbits=-zlib.MAX_WBITS)
        found: list[bytes] = []
        for start in range(0, len(self.plain), COMPRESSED_AT_ONCE):
            found.append(compressor.compress(self.plain[start : start + COMPRESSED_AT_ONCE]))
            yield
        self._blocks = b"".join([*found, compressor.flush(zlib.Z_FULL_FLUSH)])


def _after_zeros(many: int) -> list[int]:
    """By bit of a CRC-32 what so many bytes of zeros after it make of it: a matrix, as zlib's crc32_combine has it."""
    found = [1 << bit for bit in range(32)]
    for place in range(many.bit_length()):
        if many >> place & 1:
            found = _applied(_after_power(place), found)
    return found


@cache
def _after_power(place: int) -> _Tables:
    """The same of 2 ** `place` bytes: the same for all that is ever said, some 4 KiB for each of the few places there are."""
    if place:
        before = _after_power(place - 1)
        return _tables(_applied(before, [row[1 << bit] for row in before for bit in range(8)]))
    # one bit: the lowest leaves, and takes the polynomial with it
    step = [_POLYNOMIAL, *(1 << bit for bit in range(31))]
    for _ in range(3):
        step = _applied(_tables(step), step)
    return _tables(step)


def _applied(tables: _Tables, columns: Iterable[int]) -> list[int]:
    """What a matrix of bits makes of each of `columns`."""
    first, second, third, fourth = tables
    return [first[one & 255] ^ second[one >> 8 & 255] ^ third[one >> 16 & 255] ^ fourth[one >> 24] for one in columns]


def _tables(columns: Sequence[int]) -> _Tables:
    """A matrix, by byte of a vector: what each of that byte's values comes to."""
    found = []
    for start in range(0, 32, 8):
        table = array("I", [0])
        for column in columns[start : start + 8]:
            table.extend([value ^ column for value in table])
        found.append(table)
    return found


def event(content: str, name: str = "", number: int | None = None) -> Said:
    """A server-sent event. `content` has no line breaks."""
    return Said(
        (f"id: {number}\n" if number is not None else "") + (f"event: {name}\n" if name else "") + f"data: {content}\n\n",
    )


class IsGate(Protocol):
    """What says whether a peer has more to take than its transport will hold."""

    @property
    def is_shut(self) -> bool: ...


class Listener:
    """One request that hears a broadcast until its end: `ended` fires then, or fails. `missed`: how often it had too much to take."""

    def __init__(self, request: Any, gate: IsGate, takes_gzip: bool):
        self._request, self._gate, self._takes_gzip = request, gate, takes_gzip
        self._checksum = self._size = 0
        self._has_begun = False
        self.missed = 0
        self.ended: Deferred[None] = Deferred()

    def hear(self, said: Said) -> None:
        """Write it, or miss it."""
        if self._gate.is_shut:
            self.missed += 1
        elif self._has_begun and self._request.chunked:
            takes_gzip = self._takes_gzip
            if takes_gzip:
                self._checksum, self._size = said.checksum(self._checksum), self._size + said.size
            self._request.channel.send_now(said.chunk(takes_gzip))
        else:
            self._write(said)

    def end(self) -> None:
        """It has listened for long enough."""
        if not self.ended.called:
            self.ended.callback(None)

    def finish(self, said: Said | None) -> None:
        """Write the last, whatever is still to be taken, and what a gzip file ends with."""
        if said is not None:
            self._write(said)
        if self._takes_gzip:
            tail = _LAST_BLOCK + struct.pack("<II", self._checksum, self._size & 0xFFFF_FFFF)
            self._send(tail if self._has_begun else _GZIP_HEAD + tail)

    def _write(self, said: Said) -> None:
        if self._takes_gzip:
            self._checksum, self._size = said.checksum(self._checksum), self._size + said.size
        head = _GZIP_HEAD if self._takes_gzip and not self._has_begun else b""
        self._has_begun = True
        self._send(head + (said.blocks if self._takes_gzip else said.plain))

    def _send(self, content: bytes) -> None:
        self._request.channel.answering(self._request, len(content))  # so long has the peer for these
        self._request.write(content)


class Broadcast:
    """Who listens now. `last` is what whoever joins hears first."""

    def __init__(self) -> None:
        self.listeners: dict[Listener, None] = {}
        self.last: Said | None = None
        self.goodbye: Said | None = None
        self.missed = 0  # by those that have left
        self.has_ended = False

    def join(self, listener: Listener) -> None:
        """Hear what is said from now on, and first the last of before. Where all is over, that is what it hears."""
        if self.has_ended:
            listener.end()
            return
        self.listeners[listener] = None
        if self.last is not None:
            listener.hear(self.last)

    def leave(self, listener: Listener) -> None:
        """Hear no more."""
        if listener in self.listeners:
            del self.listeners[listener]
            self.missed += listener.missed

    async def say(self, said: Said, breathe: Callable[[], Awaitable[None]]) -> None:
        """Tell all; others have a turn (`breathe`) between some of them."""
        await said.compress(breathe)  # who joins meanwhile hears what was said before, and this with all others
        self.last = said
        await self.murmur(said, breathe)

    async def murmur(self, said: Said, breathe: Callable[[], Awaitable[None]]) -> None:
        """Tell all that are there what nobody needs to hear who joins later."""
        for place, listener in enumerate(list(self.listeners), start=1):
            if listener in self.listeners:  # some left meanwhile
                listener.hear(said)
            if place % AT_ONCE == 0:
                await breathe()

    def end(self, goodbye: Said) -> None:
        """All hear this, and then no more."""
        self.has_ended, self.goodbye = True, goodbye
        for listener in list(self.listeners):
            listener.end()

    def fail(self, failure: Failure) -> None:
        """Nothing more can be said: all are cut off, so that nobody takes silence for peace."""
        self.has_ended = True
        for listener in list(self.listeners):
            listener.ended.errback(failure)
