"""Units and descriptions of Tabs: said with a Tab's events, once a stream, and again where a later ring says otherwise.

What is pending is decided before a publish and noted after it: what a kill or a full disk kept back is said with the next events.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from taba.agent.reader import Ring
from taba.batch import MAX_BATCH_MEANINGS, Meaning
from taba.bounds import KiB

MAX_SAID = 65_536  # Tabs whose meaning this stream is known to have said; beyond it some are said again
MAX_MEANINGS_BYTES = 32 * KiB  # of one bucket in one drain: two of the longest. What waits goes with the next events
MEANING_BYTES = 16  # msgpack's own


class Telling(NamedTuple):
    """One Tab of a ring whose events are in a drain, and which is not known to have been said."""

    ring: Ring
    place: int  # in the ring's directory
    bucket: int
    meaning: Meaning


class Meanings:
    """What one Agent's stream has said."""

    def __init__(self) -> None:
        self._stream = b""
        self._said: dict[str, Meaning] = {}

    def begin(self, stream: bytes, rings: Iterable[Ring]) -> None:
        """Batches go into this stream from now on; where that is another one, all is to be said again."""
        if stream == self._stream:
            return
        self._stream = stream
        self._said.clear()
        for ring in rings:
            ring.names.untold = {
                place: tab.meaning for place, tab in enumerate(ring.directory) if tab is not None and tab.meaning is not None
            }

    def forget(self) -> None:
        """Nothing is known to have been said: another store is there."""
        self._stream = b""

    def pending(self, tellings: Iterable[Telling]) -> tuple[dict[int, list[Meaning]], list[Telling]]:
        """What to say, by bucket, and which of `tellings` that makes true."""
        said: dict[str, Meaning] = {}
        sizes: dict[int, int] = {}
        fresh: dict[int, list[Meaning]] = {}
        true: list[Telling] = []
        for telling in tellings:
            meaning, bucket = telling.meaning, telling.bucket
            if said.get(meaning.tab, self._said.get(meaning.tab)) != meaning:
                size = sizes.get(bucket, 0) + MEANING_BYTES + sum(len(text.encode()) for text in meaning)
                of_bucket = fresh.setdefault(bucket, [])
                if size > MAX_MEANINGS_BYTES or len(of_bucket) == MAX_BATCH_MEANINGS:
                    continue
                sizes[bucket] = size
                of_bucket.append(meaning)
                said[meaning.tab] = meaning
            true.append(telling)
        return fresh, true

    def published(self, tellings: Iterable[Telling]) -> None:
        """These were said."""
        for ring, place, _, meaning in tellings:
            if meaning.tab not in self._said and len(self._said) >= MAX_SAID:
                self._said.clear()
            self._said[meaning.tab] = meaning
            ring.names.untold.pop(place, None)
