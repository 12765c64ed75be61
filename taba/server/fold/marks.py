"""Marks: how far each stream is applied in a bucket, and which streams are open there. Pure.

1. Nothing is folded of a stream that has no mark here, or has one under another nonce: only a header opens a stream, and the nonce that
   it is given is drawn anew. So what comes late, after the stream was ended or the store has forgotten it, is never folded twice.
   A second one is answered the nonce that stands; but where it asks for another, that is drawn, and the mark that it is told is final
   for all that was sent before it, whoever has that in hand.
2. A batch is folded when it follows the mark, and then the mark is its number; at or below the mark it was applied before.
3. Streams of posted events open themselves: those of a key, whose id was drawn when the key's record was written, and a Server's own,
   which has one writer and never sends a number again: what a batch of that one follows is not asked.
4. A mark says at which store age it was touched last, and never an earlier one than it said before.

The marks of open streams lie in one hash of the bucket, those of posted events in another.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

from taba.batch import APPLIED, ENDED, GAP, LATER, MARK, NONCE, NONCE_BYTES, NOT_OPEN, NUMBER, OPEN, Header, Verdict
from taba.bounds import DAY

MARK_MINUTES = int(14 * DAY / 60)  # untouched for so long it goes: a stream takes batches for 6 days, and none older than 7 is sent
POSTED_MINUTES = int(2 * DAY / 60)  # of posted events: twice as long as the record of a key stays
BAD_SECONDS = 30.0  # `later` where a mark cannot be read
FULL_SECONDS = 30.0  # `later` where no stream may be opened
UNKNOWN_SECONDS = 1.0  # `later` where the store's age is not known yet

_MARK = struct.Struct("<8sQI")
NO_NONCE = bytes(NONCE_BYTES)
ANY = -1  # what a batch follows whose stream may leave numbers out
FULL = Verdict(LATER, FULL_SECONDS, "this bucket has as many open streams as it may have")
BAD = Verdict(LATER, BAD_SECONDS, "the mark of this stream cannot be read, so nothing of it may be folded")


class Mark(NamedTuple):
    """A stream's entry: the nonce under which it is open, the number of the last batch that was applied, the store's age in minutes."""

    nonce: bytes
    number: int
    age: int


def encode_mark(mark: Mark) -> bytes:
    """Its bytes, as the bucket keeps them: little-endian nonce (8), number (uint64), age (uint32)."""
    return _MARK.pack(*mark)


def decode_mark(content: bytes | None) -> Mark | None:
    """The mark in `content`, None where there is none. ValueError for what is no mark: nothing of its stream may be folded then."""
    if content is None:
        return None
    if len(content) != _MARK.size:
        raise ValueError(f"a mark of {len(content)} bytes")
    return Mark._make(_MARK.unpack(content))


class Marks:
    """The marks of one hash as a cycle finds them, and as it leaves them. `age`: the store's, in minutes, None where it is not known.

    `room`: how many more streams may be opened.
    """

    def __init__(self, kept: Mapping[bytes, bytes | None], age: int | None, room: int = 0):
        self._marks: dict[bytes, Mark | None] = {}
        self._bad: set[bytes] = set()
        for stream, content in kept.items():
            try:
                self._marks[stream] = decode_mark(content)
            except ValueError:
                self._bad.add(stream)
        self._age, self._room = age, room
        self._touched: dict[bytes, None] = {}

    def written(self) -> dict[bytes, bytes]:
        """What is to be written."""
        if not self._touched:
            return {}
        return {stream: encode_mark(mark) for stream in self._touched if (mark := self._marks[stream]) is not None}

    def removed(self) -> list[bytes]:
        """The streams whose mark is to be removed."""
        return [stream for stream in self._touched if self._marks[stream] is None]

    def do(self, header: Header, drawn: bytes) -> Verdict:
        """Do what a header says. `drawn`: the nonce to open under."""
        if header.stream in self._bad:
            return BAD
        mark = self._marks[header.stream]
        if header.do == OPEN:
            return self._open(header, mark, drawn)
        if header.do == MARK:
            return _wrong(mark, header.nonce) or Verdict(MARK, cast(Mark, mark).number)
        if mark is not None and header.nonce in (b"", mark.nonce):
            self._marks[header.stream] = None
            self._touched[header.stream] = None
            self._room += 1
        return Verdict(ENDED, 0)

    def fold(self, stream: bytes, number: int, follows: int, nonce: bytes) -> tuple[Verdict, bool]:
        """The verdict on a batch of an open stream, and whether it is to be folded now."""
        if stream in self._bad:
            return BAD, False
        mark = self._marks[stream]
        wrong = _wrong(mark, nonce)
        if wrong is not None:
            return wrong, False
        mark = cast(Mark, mark)
        if number <= mark.number:
            return Verdict(APPLIED, mark.number), False
        if follows != mark.number:
            return Verdict(GAP, mark.number, NUMBER), False
        return self._apply(stream, mark, number), True

    def fold_posted(self, stream: bytes, number: int, follows: int = ANY) -> tuple[Verdict, bool]:
        """The verdict on a batch of posted events, whose stream opens itself, and whether it is to be folded now."""
        if stream in self._bad:
            return BAD, False
        mark = self._marks[stream] or Mark(NO_NONCE, 0, 0)
        if number <= mark.number:
            return Verdict(APPLIED, mark.number), False
        if follows > mark.number:  # it would take what came before it, and was not folded, for applied
            return Verdict(GAP, mark.number, NUMBER), False
        return self._apply(stream, mark, number), True

    def _open(self, header: Header, mark: Mark | None, drawn: bytes) -> Verdict:
        if mark is None:
            if self._age is None:
                return Verdict(LATER, UNKNOWN_SECONDS, "the store's age is not known to this Server yet")
            if self._room <= 0:
                return FULL
            self._room -= 1
            mark = self._put(header.stream, Mark(drawn, 0, self._age))
        elif header.anew:
            mark = self._put(header.stream, Mark(drawn, mark.number, max(mark.age, self._age or 0)))
        return Verdict(OPEN, mark.nonce, mark.number)

    def _apply(self, stream: bytes, mark: Mark, number: int) -> Verdict:
        self._put(stream, Mark(mark.nonce, number, max(mark.age, self._age or 0)))
        return Verdict(APPLIED, number)

    def _put(self, stream: bytes, mark: Mark) -> Mark:
        self._marks[stream] = mark
        self._touched[stream] = None
        return mark


def _wrong(mark: Mark | None, nonce: bytes) -> Verdict | None:
    if mark is None:
        return Verdict(GAP, 0, NOT_OPEN)
    return None if mark.nonce == nonce else Verdict(GAP, 0, NONCE)


def stale(pairs: Sequence[bytes], age: int, minutes: int) -> list[bytes]:
    """Of a whole hash of marks, as HGETALL gives it, the streams that nobody has touched for so many minutes."""
    found = []
    for stream, content in zip(pairs[::2], pairs[1::2], strict=True):
        try:
            mark = decode_mark(content)
        except ValueError:
            continue  # what it is nobody knows: it stays, and its stream is folded no more
        if mark is not None and age - mark.age >= minutes:
            found.append(stream)
    return found
