"""From readings to batches: events grouped by bucket, Client, Tab and Type into columns, columns encoded into batches.

The work on events is numpy's; Python's loops are over columns. A drain changes nothing: the caller publishes what it gives,
and only then has the rings settle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from taba.agent.outbox import Fresh
from taba.agent.reader import Reading, Ring, Scratch, Tab
from taba.batch import Column, encode_batch
from taba.bounds import MAX_BATCH_BYTES, MAX_BATCH_COLUMNS, MiB
from taba.names import bucket_of
from taba.ring import MalformedRing

MAX_DRAIN_EVENTS = 524_288  # all records of 16 rings of 1 MiB: 12 MiB to read, a tenth of a second to group
MAX_DRAIN_VALUE_BYTES = 8 * MiB  # of values that are no float, in one drain
MAX_DRAIN_RINGS = 256  # a table names each; the next drain begins where this one ended
MAX_CACHED_BUCKETS = 65_536  # names whose bucket is remembered
COLUMN_BYTES = 32  # msgpack's own, the Type, and the lengths; names are added
HEADER_BYTES = 64  # of a batch
MAX_PIECE_EVENTS = (MAX_BATCH_BYTES - 16 * 1024) // 17  # of floats, in one batch, with the longest names


class Drained(NamedTuple):
    """What one drain gives: columns by bucket, the readings to settle once they are safe, and what was found in the rings."""

    columns: dict[int, list[Column]]
    readings: list[tuple[Ring, Reading]]
    found: int  # events in the rings, whatever became of them
    malformed: int  # of these, how many could not be read
    empty: list[Ring]  # rings that held nothing
    broken: list[tuple[Ring, str]]  # rings that turned out to be none
    is_cut: bool  # a limit ended it; there is more to read at once


class Drain:
    """Reads rings, fairly: where one drain ends, for its limits, the next begins. `buckets` is the store's number of them."""

    def __init__(self, buckets: int):
        self.buckets = buckets
        self._scratch = Scratch()
        self._cache: dict[str, int] = {}
        self._turn = 0

    def bucket(self, name: str) -> int:
        """The bucket of a Tab, remembered."""
        found = self._cache.get(name)
        if found is None:
            if len(self._cache) >= MAX_CACHED_BUCKETS:
                self._cache.clear()
            found = self._cache[name] = bucket_of(name, self.buckets)
        return found

    def run(self, rings: Sequence[tuple[Ring, bool]], events: int = MAX_DRAIN_EVENTS) -> Drained:
        """Read (ring, is dead) pairs: at most so many events."""
        columns: dict[int, list[Column]] = {}
        readings: list[tuple[Ring, Reading]] = []
        empty: list[Ring] = []
        broken: list[tuple[Ring, str]] = []
        total = unread = malformed = 0
        is_cut = False
        value_bytes = MAX_DRAIN_VALUE_BYTES
        begin = self._turn % len(rings) if rings else 0
        for ring, dead in (*rings[begin:], *rings[:begin]):
            if total >= events or len(readings) >= MAX_DRAIN_RINGS:
                is_cut = True
                break
            self._turn += 1
            try:
                reading = ring.read(self._scratch, events - total, value_bytes, dead)
            except (MalformedRing, OSError) as error:
                broken.append((ring, str(error)))
                continue
            if reading is None:
                empty.append(ring)
                continue
            readings.append((ring, self._detached(reading)))
            unknown = group(ring, reading, self.bucket, columns)
            total += len(reading.tabs)
            unread += reading.malformed
            malformed += reading.malformed + unknown
            is_cut = is_cut or reading.is_cut
        if not is_cut:
            self._turn = begin
        return Drained(columns, readings, total + unread, malformed, empty, broken, is_cut)

    @staticmethod
    def _detached(reading: Reading) -> Reading:
        # what settling needs, without the arrays that the next reading overwrites
        empty = np.broadcast_to(np.uint32(0), len(reading.tabs))
        return reading._replace(tabs=empty, boxed=None, is_boxed=None)


def group(ring: Ring, reading: Reading, bucket: Callable[[str], int], columns: dict[int, list[Column]]) -> int:
    """Add one ring's events to `columns`; returns how many belong to Tabs that break the rules for names, and were left out."""
    tabs = reading.tabs
    if not len(tabs):
        return 0
    counts = np.bincount(tabs)
    present = np.flatnonzero(counts)
    boxed, is_boxed = reading.boxed, reading.is_boxed
    if len(present) == 1:
        times, values = reading.times.tobytes(), reading.values.tobytes()
    else:
        # numpy's stable sort of 16-bit keys is a radix sort; of wider ones it is not
        keys = tabs.astype(np.uint16) if len(counts) <= 65_536 else tabs
        order = np.argsort(keys, kind="stable")
        times, values = reading.times[order].tobytes(), reading.values[order].tobytes()
        if boxed is not None and is_boxed is not None:
            boxed, is_boxed = boxed[order], is_boxed[order]
    client, directory = ring.client, ring.directory
    unknown = start = 0
    for index, count in zip(present.tolist(), counts[present].tolist(), strict=True):
        end = start + count
        tab: Tab | None = directory[index]
        if tab is None:
            unknown += count
        else:
            words = values[8 * start : 8 * end]
            column_values: bytes | list[Any] = words
            if is_boxed is not None and boxed is not None and is_boxed[start:end].any():
                floats = np.frombuffer(words, "<f8").tolist()
                marks = is_boxed[start:end].tolist()
                column_values = [box if mark else number for box, mark, number in zip(boxed[start:end], marks, floats, strict=True)]
            column = Column(client, tab.name, tab.type, times[8 * start : 8 * end], column_values)
            columns.setdefault(bucket(tab.name), []).append(column)
        start = end
    return unknown


def encode(columns: Mapping[int, list[Column]], stream: bytes, numbers: Mapping[int, int], created: float) -> list[Fresh]:
    """Batches of all `columns`, in the order of buckets, each within MAX_BATCH_BYTES and MAX_BATCH_COLUMNS.

    `numbers` are the last numbers of this stream by bucket; the caller keeps count once the batches are published. A single event
    too large for a batch does not exist: values are bounded.
    """
    batches = []
    for bucket in sorted(columns):
        number = numbers.get(bucket, 0)
        whole = columns[bucket]
        waiting = [whole] if _is_small(whole) else list(_split(whole))[::-1]
        while waiting:
            part = waiting.pop()
            content = encode_batch(stream, bucket, number + 1, created, part)
            if len(content) > MAX_BATCH_BYTES:  # long values in lists, which the estimate does not see
                waiting += _halves(part)
                continue
            number += 1
            events = sum([len(column.times) for column in part]) >> 3
            batches.append(Fresh(stream, bucket, number, created, events, content))
    return batches


def _is_small(columns: list[Column]) -> bool:
    """Whether `columns` make one batch, by the estimate of `_split`: so it is with most, and this takes a third of the time."""
    size = sum([len(client) + len(tab) + len(type) + 17 * (len(times) >> 3) for client, tab, type, times, _ in columns])
    return len(columns) <= MAX_BATCH_COLUMNS and size + COLUMN_BYTES * len(columns) <= MAX_BATCH_BYTES - HEADER_BYTES


def _split(columns: Iterable[Column]) -> Iterable[list[Column]]:
    """Parts of `columns` that, by estimate, make batches within the bounds. A long column is cut."""
    part: list[Column] = []
    room = MAX_BATCH_BYTES - HEADER_BYTES
    for column in columns:
        for piece in _pieces(column):
            # values in a list count as if each were a float
            needed = COLUMN_BYTES + len(column.client) + len(column.tab) + len(column.type) + 17 * piece.events
            if part and (needed > room or len(part) == MAX_BATCH_COLUMNS):
                yield part
                part, room = [], MAX_BATCH_BYTES - HEADER_BYTES
            part.append(piece)
            room -= needed
    if part:
        yield part


def _pieces(column: Column) -> Iterable[Column]:
    if column.events <= MAX_PIECE_EVENTS:
        yield column
        return
    for start in range(0, column.events, MAX_PIECE_EVENTS):
        yield _slice(column, start, min(start + MAX_PIECE_EVENTS, column.events))


def _halves(part: list[Column]) -> list[list[Column]]:
    """The second half of a part, and the first: what is popped first comes last."""
    if len(part) > 1:
        return [part[len(part) // 2 :], part[: len(part) // 2]]
    half = part[0].events // 2
    return [[_slice(part[0], half, part[0].events)], [_slice(part[0], 0, half)]]


def _slice(column: Column, start: int, end: int) -> Column:
    values = column.values[8 * start : 8 * end] if isinstance(column.values, bytes) else column.values[start:end]
    return column._replace(times=column.times[8 * start : 8 * end], values=values)
