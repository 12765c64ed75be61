"""Which streams may be open in which buckets: what is to be ended once nothing of it is left. Pure.

1. A stream is open in a bucket from before its opening is sent until its end is answered; what may have been ended is told apart, for
   it may have no mark that could be asked for. So is what was open when a table was published of which nobody knows whether it is the last.
2. The outbox's table names the latest MAX_OPENED: a kill leaves no other open. Of more, what is open longest is not named: nobody ends
   it, and Servers forget it in time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

MAX_OPENED = 256  # streams that the table names: one each start, and each move to the spool; of 512 buckets 64 bytes each

Fields = tuple[bytes, bytes, bytes]  # a stream, the buckets in which it is open, and of these where it may have been ended


class Openings:
    """By stream, the set of its buckets as bits."""

    def __init__(self, fields: Iterable[Fields] = ()):
        self._open: dict[bytes, int] = {}
        self._ending: dict[bytes, int] = {}
        for stream, opened, ending in fields:
            self._open[stream] = int.from_bytes(opened, "little")
            if buckets := int.from_bytes(ending, "little"):
                self._ending[stream] = buckets

    def __contains__(self, stream: object) -> bool:
        return stream in self._open

    def __iter__(self) -> Iterator[bytes]:
        """Its streams, the oldest first."""
        return iter(self._open)

    def fields(self) -> tuple[Fields, ...]:
        """As the table names them."""
        named = list(self._open.items())[-MAX_OPENED:]
        return tuple((stream, _as_bytes(buckets), _as_bytes(self._ending.get(stream, 0))) for stream, buckets in named)

    def lanes(self) -> Iterator[tuple[bytes, int]]:
        """Each stream and bucket."""
        for stream, buckets in self._open.items():
            for bucket in _members(buckets):
                yield stream, bucket

    def is_open(self, stream: bytes, bucket: int) -> bool:
        return bool(self._open.get(stream, 0) >> bucket & 1)

    def is_ending(self, stream: bytes, bucket: int) -> bool:
        """Whether its end was sent, and not answered."""
        return bool(self._ending.get(stream, 0) >> bucket & 1)

    def buckets_of_others(self, streams: Collection[bytes]) -> set[int]:
        """Where any stream but these is open."""
        found = 0
        for other, buckets in self._open.items():
            found |= buckets if other not in streams else 0
        return set(_members(found))

    def open(self, stream: bytes, bucket: int) -> None:
        """Its opening is about to be sent."""
        self._open[stream] = self._open.get(stream, 0) | 1 << bucket
        _remove(self._ending, stream, bucket)

    def end(self, stream: bytes, bucket: int) -> bool:
        """Its end is about to be sent: whether that is for the first time."""
        before = self._ending.get(stream, 0)
        self._ending[stream] = before | 1 << bucket
        return not before >> bucket & 1

    def doubt(self) -> bool:
        """All may have been ended since: there was a later table, which is gone. Whether that is news of any."""
        doubted = dict(self._open)
        is_news, self._ending = doubted != self._ending, doubted
        return is_news

    def ended(self, stream: bytes, bucket: int) -> None:
        """Its end was answered."""
        _remove(self._open, stream, bucket)
        _remove(self._ending, stream, bucket)


def _members(buckets: int) -> Iterator[int]:
    return (bucket for bucket in range(buckets.bit_length()) if buckets >> bucket & 1)


def _remove(sets: dict[bytes, int], stream: bytes, bucket: int) -> None:
    """Take the bucket out of the stream's set; without the last of them the stream goes."""
    left = sets.pop(stream, 0) & ~(1 << bucket)
    if left:
        sets[stream] = left


def _as_bytes(buckets: int) -> bytes:
    return buckets.to_bytes((buckets.bit_length() + 7) // 8, "little")
