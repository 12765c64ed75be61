"""From readings to batches: events grouped by bucket, Client, Tab and Type into columns, columns encoded into batches.

The work on events is numpy's; Python's loops are over columns, and do little for each: a column goes from its ring to its batch as
five pieces of msgpack (`Packed`), of which the first, client, Tab and Type, is made once a Tab. A drain changes nothing: the caller
publishes what it gives, and only then has the rings settle.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias, cast

import msgpack
import numpy as np

from taba.agent.ages import Moment
from taba.agent.directory import MAX_FRESH_TABS
from taba.agent.fairness import EVENT_BYTES, TAB_BYTES
from taba.agent.meanings import Telling
from taba.agent.outbox import EncodedBatch
from taba.agent.reader import Reading, Ring, Scratch
from taba.agent.tallies import Plain, Tally, tally_of
from taba.batch import (
    BATCH_VERSION,
    MAX_LIST_BYTES,
    MAX_LIST_VALUES,
    BatchId,
    Column,
    KeyPart,
    Meaning,
    encode_batch,
    encode_meanings,
)
from taba.bounds import MAX_BATCH_BYTES, MAX_BATCH_COLUMNS, KiB, MiB
from taba.names import bucket_of
from taba.ring import MalformedRing

MAX_DRAIN_EVENTS = 524_288  # all records of 16 rings of 1 MiB: 12 MiB to read, a tenth of a second to group
MAX_DRAIN_VALUE_BYTES = 8 * MiB  # of values that are no float, in one drain
MAX_DRAIN_RINGS = 256  # a table names each; the next drain begins where this one ended
MIN_SHARE = 2048  # events of one ring in a drain that cannot take all: the smallest ring whole
DRAIN_TABS = 4 * MAX_FRESH_TABS  # names that one drain reads of directories: 60 ms, of as many rings as name new ones
MAX_CACHED_BUCKETS = 65_536  # names whose bucket is remembered
COLUMN_BYTES = 44  # msgpack's own, the Type, and the lengths; names are added
HEADER_BYTES = 64  # of a batch
LIST_BYTES = 9  # what may stand behind a column's values: how many events it stands for
PIECES = 5  # of a column: its events and extent, client, Tab and Type; bin header; times; bin header; values (in a list: nothing, the list)
LONGEST_NAMES = 16 * KiB  # of a column: what a batch has no room for beside its events


Packed: TypeAlias = dict[int, list[bytes]]  # columns by bucket, PIECES each


def _bin_header(length: int) -> bytes:
    """What msgpack writes before so many bytes."""
    if length < 256:
        return b"\xc4" + length.to_bytes(1, "big")
    return b"\xc5" + length.to_bytes(2, "big") if length < 65_536 else b"\xc6" + length.to_bytes(4, "big")


_HEADERS = tuple(_bin_header(8 * events) for events in range(2048))  # of short columns, where each nanosecond is many events'
_COUNTS = tuple(cast(bytes, msgpack.packb(events)) for events in range(2048))
_EXTENTS = tuple(_bin_header(length) for length in range(4096))


class Added(NamedTuple):
    """What one reading adds to the sum of a Tab that heals."""

    ring: Ring
    place: int  # of the Tab in the ring's directory
    total: float
    events: int
    time: float  # of the last


class Drained(NamedTuple):
    """What one drain gives: columns by bucket, the readings to settle once they are safe, and what was found in the rings."""

    packed: Packed
    added: list[Added]  # to Tabs that heal
    readings: list[tuple[Ring, Reading]]
    found: int  # events in the rings, whatever became of them
    malformed: int  # of these, how many could not be read
    refused: int  # and of how many there is no Tab: their Clients have named too many
    lost: dict[str, Counter[str]]  # both, by client and reason
    held_back: Counter[str]  # events that were read and are not among the columns, of clients that were to be left out
    taken: Counter[str]  # bytes that the others take, about
    empty: list[Ring]  # rings that held nothing
    broken: list[tuple[Ring, str]]  # rings that turned out to be none
    tellings: list[Telling]  # Tabs with events here that were not told of yet
    tallies: list[Tally | Plain]  # what all of it comes to, by Tab
    is_cut: bool  # a limit ended it; there is more to read at once


class Drain:
    """Reads rings, fairly: none takes more than its share where not all of it can be had, and where one drain ends, for its limits, the
    next begins. `buckets` is the store's number of them."""

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

    def run(
        self,
        rings: Sequence[tuple[Ring, bool]],
        events: int = MAX_DRAIN_EVENTS,
        waiting: Iterable[int] = (),
        spent: frozenset[str] = frozenset(),
    ) -> Drained:
        """Read (ring, is dead) pairs: at most so many events. `waiting`: how many there are in each ring, as was seen last.

        What clients in `spent` recorded is read and left out, but for what goes up and down.
        """
        packed: Packed = defaultdict(list)
        added: list[Added] = []
        readings: list[tuple[Ring, Reading]] = []
        empty: list[Ring] = []
        broken: list[tuple[Ring, str]] = []
        tellings: list[Telling] = []
        tallies: list[Tally | Plain] = []
        total = unread = malformed = refused = 0
        lost: dict[str, Counter[str]] = defaultdict(Counter)
        held_back: Counter[str] = Counter()
        taken: Counter[str] = Counter()
        is_cut = False
        value_bytes = MAX_DRAIN_VALUE_BYTES
        self._scratch.fresh_tabs = DRAIN_TABS
        share = fair_share(waiting, events)
        begin = self._turn % len(rings) if rings else 0
        for ring, dead in (*rings[begin:], *rings[:begin]):
            if total >= events or len(readings) >= MAX_DRAIN_RINGS or value_bytes <= 0:
                is_cut = True
                break
            self._turn += 1
            if ring.is_blocked and self._scratch.fresh_tabs <= 0:
                is_cut = True  # the next drain begins with another one
                continue
            try:
                reading = ring.read(self._scratch, min(share, events - total), value_bytes, dead)
            except (MalformedRing, OSError) as error:
                broken.append((ring, str(error)))
                continue
            if reading is None:
                empty.append(ring)
                continue
            readings.append((ring, self._detached(reading)))
            places = self.places(ring)
            if ring.names.untold and ring.client not in spent:  # a Tab must be there to be told of
                tellings += _tellings(ring, reading, places)
            sums = len(added)
            if ring.client in spent:
                unknown = group(ring, reading, places, defaultdict(list), added, tallies)
                held_back[ring.client] += len(reading.tabs) - unknown - sum(found.events for found in added[sums:])
            else:
                unknown = group(ring, reading, places, packed, added, tallies)
            total += len(reading.tabs)
            unread += reading.malformed + reading.refused
            malformed += reading.malformed + unknown
            refused += reading.refused
            if reading.malformed or unknown or reading.refused:
                lost[ring.client].update({"malformed": reading.malformed + unknown, "too_many_tabs": reading.refused})
            length = max((found.byte_end - ring.byte_tail for found in reading.ranges if found.byte_end), default=0)
            value_bytes -= length
            taken[ring.client] += EVENT_BYTES * len(reading.tabs) + length + TAB_BYTES * min(len(reading.tabs), len(ring.directory))
            is_cut = is_cut or reading.is_cut
        if not is_cut:
            self._turn = begin
        elif self._scratch.fresh_tabs <= 0:
            self._turn = begin + 1  # so that whoever names very many is not always the first
        found = total + unread
        return Drained(packed, added, readings, found, malformed, refused, lost, held_back, taken, empty, broken, tellings, tallies, is_cut)

    def read_names(self, ring: Ring) -> None:
        """Take up new names of this ring's directory: of DRAIN_TABS those that this drain has not read."""
        self._scratch.fresh_tabs -= ring.names.read(self._scratch.fresh_tabs)

    def places(self, ring: Ring) -> list[tuple[int, bytes] | None]:
        """Bucket and first piece of each Tab in the ring's directory; None for one that is not to be forwarded."""
        if ring.places_of != self.buckets:
            ring.places_of, ring.places, ring.summed_places = self.buckets, [], {}
        for tab in ring.directory[len(ring.places) :]:
            if tab is not None and tab.is_overflow:
                place = ring.summed_places.get((tab.name, tab.type))
                if place is None:
                    piece = first_piece(ring.names.client, tab.name, tab.type)
                    place = ring.summed_places[tab.name, tab.type] = self.bucket(tab.name), piece
                ring.places.append(place)
            else:
                ring.places.append(None if tab is None else (self.bucket(tab.name), first_piece(ring.client, tab.name, tab.type)))
        return ring.places

    @staticmethod
    def _detached(reading: Reading) -> Reading:
        # what settling needs, without the arrays that the next reading overwrites
        empty = np.broadcast_to(np.uint32(0), len(reading.tabs))
        return reading._replace(tabs=empty, boxed=None, is_boxed=None)


def fair_share(waiting: Iterable[int], events: int) -> int:
    """How many events of one ring a drain of so many takes, where these wait: who has few gets all, and the others the same."""
    left = events
    counts = sorted(count for count in waiting if count > 0)
    for place, count in enumerate(counts):
        share = left // (len(counts) - place)
        if count > share:
            return max(MIN_SHARE, share)
        left -= count
    return events


def _tellings(ring: Ring, reading: Reading, places: list[tuple[int, bytes] | None]) -> Iterable[Telling]:
    """The Tabs of this reading that are not known to have been told of, as they stand in the directory."""
    for index in np.flatnonzero(np.bincount(reading.tabs)).tolist() if len(reading.tabs) else ():
        place = places[index]
        if index in ring.names.untold and place is not None:
            yield Telling(ring, index, place[0], ring.names.untold[index])


def first_piece(client: str, tab: str, type: str) -> bytes:
    """A column's first piece, without what `extent` gives."""
    return b"\x95" + cast(bytes, msgpack.packb([client, tab, type]))[1:]


def extent(events: int, length: int) -> bytes:
    """What stands before a column of so many events that takes so many bytes: that it does."""
    count = _COUNTS[events] if events < len(_COUNTS) else cast(bytes, msgpack.packb(events))
    return count + (_EXTENTS[length] if length < len(_EXTENTS) else _bin_header(length))


def group(
    ring: Ring, reading: Reading, places: list[tuple[int, bytes] | None], packed: Packed, added: list[Added], tallies: list[Tally | Plain]
) -> int:
    """Add one ring's events to `packed`, those that heal to `added`, and what all come to to `tallies`; returns how many were left out.

    Left out are those of Tabs that break the rules for names.
    """
    tabs = reading.tabs
    if not len(tabs):
        return 0
    counts = np.bincount(tabs)
    present = np.flatnonzero(counts)
    counts = counts[present]
    boxed, is_boxed = reading.boxed, reading.is_boxed
    if len(present) == 1:
        times, values = reading.times.tobytes(), reading.values.tobytes()
    else:
        # numpy's stable sort of 16-bit keys is a radix sort; of wider ones it is not
        keys = tabs.astype(np.uint16) if int(present[-1]) < 65_536 else tabs
        order = np.argsort(keys, kind="stable")
        times, values = reading.times[order].tobytes(), reading.values[order].tobytes()
        if boxed is not None and is_boxed is not None:
            boxed, is_boxed = boxed[order], is_boxed[order]
    if boxed is not None and is_boxed is not None:
        mixed = np.add.reduceat(is_boxed, np.cumsum(counts) - counts, dtype=np.int64).tolist()
    else:
        mixed = None
    floats = np.frombuffer(values, "<f8")  # which stay, whatever the next reading overwrites
    tallies.append(Plain(ring, present, counts, floats) if is_boxed is None else tally_of(ring, present, counts, floats, boxed, is_boxed))
    headers, short = _HEADERS, len(_HEADERS)
    unknown = start = 0
    for at, (index, count) in enumerate(zip(present.tolist(), counts.tolist(), strict=True)):
        end = start + 8 * count
        place = places[index]
        if place is None:
            unknown += count
        else:
            bucket, first = place
            tab = ring.directory[index]
            if tab is not None and tab.cell is not None:
                here = slice(start >> 3, end >> 3)
                flags = is_boxed[here] if is_boxed is not None else None
                boxes = boxed[here] if boxed is not None else None
                packed[bucket] += _sum_up(ring, index, first, times[start:end], values[start:end], boxes, flags, added)
                start = end
                continue
            header = headers[count] if count < short else _bin_header(8 * count)
            length = len(first) + len(header) + 8 * count
            if mixed is None or boxed is None or is_boxed is None or not mixed[at]:
                before = extent(count, length + len(header) + 8 * count)
                packed[bucket] += (before + first, header, times[start:end], header, values[start:end])
            else:
                listed = _listed(values[start:end], boxed[start >> 3 : end >> 3], is_boxed[start >> 3 : end >> 3])
                packed[bucket] += (extent(count, length + len(listed)) + first, header, times[start:end], b"", listed)
        start = end
    return unknown


def _sum_up(
    ring: Ring, index: int, first: bytes, times: bytes, values: bytes, boxed: Any, is_boxed: Any, added: list[Added]
) -> tuple[bytes, ...]:
    """Sum the finite numbers of one Tab; gives the column of its other values, which its Handler refuses one by one."""
    numbers, stamps = np.frombuffer(values, "<f8"), np.frombuffer(times, "<f8")
    good = np.isfinite(numbers) if is_boxed is None else np.isfinite(numbers) & ~is_boxed
    summed = numbers[good]
    if len(summed):
        added.append(Added(ring, index, float(summed.sum()), len(summed), float(stamps[good][-1])))
    if good.all():
        return ()
    rest = ~good
    content = stamps[rest].tobytes()
    boxes, flags = (boxed[rest], is_boxed[rest]) if is_boxed is not None else ([None] * int(rest.sum()), np.zeros(int(rest.sum()), bool))
    listed = _listed(numbers[rest].tobytes(), boxes, flags)
    header = _bin_header(len(content))
    before = extent(len(content) >> 3, len(first) + len(header) + len(content) + len(listed))
    return (before + first, header, content, b"", listed)


def _listed(words: bytes, boxed: Any, is_boxed: Any) -> bytes:
    floats = np.frombuffer(words, "<f8").tolist()
    mixed = [box if mark else number for box, mark, number in zip(boxed, is_boxed.tolist(), floats, strict=True)]
    return cast(bytes, msgpack.packb(mixed))


def unpack(pieces: Sequence[bytes]) -> list[Column]:
    """The columns of one bucket's `pieces`."""
    unpacker = msgpack.Unpacker(strict_map_key=False, max_buffer_size=0)
    unpacker.feed(b"".join(pieces))
    return [Column(*msgpack.unpackb(item, strict_map_key=False)) for item in unpacker if isinstance(item, bytes)]


def absolute_pieces(client: str, tab: str, type: str, time: float, row: Sequence[Any], events: int) -> tuple[bytes, ...]:
    """The column of one absolute, which stands for so many events."""
    first = b"\x96" + first_piece(client, tab, type)[1:]
    header, values = _bin_header(8), cast(bytes, msgpack.packb([row])) + cast(bytes, msgpack.packb(events))
    before = extent(events, len(first) + len(header) + 8 + len(values))
    return (before + first, header, np.float64(time).tobytes(), b"", values)


def encode(
    packed: Packed,
    stream: bytes,
    numbers: Mapping[int, int],
    created: Moment,
    most: int = MAX_BATCH_BYTES,
    weights: Mapping[int, int] = MappingProxyType({}),
    meanings: Mapping[int, Sequence[Meaning]] = MappingProxyType({}),
    version: int = BATCH_VERSION,
) -> list[EncodedBatch]:
    """Batches of all columns, in the order of buckets, each within `most` bytes and MAX_BATCH_COLUMNS.

    `weights`: by bucket, how many more events its columns stand for than they have rows. `numbers` are the last numbers of this stream by
    bucket; the caller keeps count once the batches are published. A single event
    too large for a batch does not exist: values are bounded. Byte for byte what `encode_batch` gives for the same columns.
    `meanings`, of buckets that have columns here, go into the last batch of each, for a Tab must be there to be told of.
    """
    batches = []
    for bucket in sorted(packed):
        number = numbers.get(bucket, 0)
        pieces = packed[bucket]
        columns = len(pieces) // PIECES
        told = encode_meanings(meanings.get(bucket, ()))
        fits = columns <= MAX_BATCH_COLUMNS and sum(map(len, pieces)) + len(told) <= most - HEADER_BYTES
        values, size = _listed_extent(pieces)
        if fits and values <= MAX_LIST_VALUES and size <= MAX_LIST_BYTES:
            events = (sum(map(len, pieces[2::PIECES])) >> 3) + weights.get(bucket, 0)
            id = BatchId(stream, bucket, number + 1)
            parts = _batch_header(id, columns, version), *pieces, _bin_header(len(told)), told
            batches.append(EncodedBatch(id, created, events, b"".join(parts)))
            continue
        waiting = list(_split(unpack(pieces), most))[::-1]
        while waiting:
            part = waiting.pop()
            id = BatchId(stream, bucket, number + 1)
            content = encode_batch(*id, part, () if waiting else meanings.get(bucket, ()), version)
            if len(content) > most and not waiting and told and part:
                waiting += ([], part)  # they have a batch of their own
                continue
            # long values in lists, which the estimate does not see
            if len(content) > most or (len(content) > MAX_LIST_BYTES and _listed_bytes(part) > MAX_LIST_BYTES):
                waiting += _halves(part)
                continue
            number += 1
            events = sum([column.weight for column in part])
            batches.append(EncodedBatch(id, created, events, content))
    return batches


def encode_lots(
    lots: Mapping[int, Sequence[list[Column]]],
    stream: bytes,
    numbers: Mapping[int, int],
    created: Moment,
    key: KeyPart | None = None,
    version: int = BATCH_VERSION,
) -> list[EncodedBatch]:
    """Batches of posted events: each lot is one, whatever it holds (see taba.events). `key`: of a request that has one."""
    batches = []
    for bucket in sorted(lots):
        for place, lot in enumerate(lots[bucket], start=1):
            id = BatchId(stream, bucket, numbers.get(bucket, 0) + place)
            part = b"" if key is None else key._replace(lot=place).encode()
            batches.append(EncodedBatch(id, created, sum(column.events for column in lot), encode_batch(*id, lot, version=version), part))
    return batches


def _listed_extent(pieces: Sequence[bytes]) -> tuple[int, int]:
    """How many values stand in lists, and how many bytes these take."""
    if b"" not in pieces[3::PIECES]:
        return 0, 0
    listed = [
        (len(times) >> 3, len(values))
        for times, header, values in zip(pieces[2::PIECES], pieces[3::PIECES], pieces[4::PIECES], strict=True)
        if not header
    ]
    return sum(values for values, _ in listed), sum(size for _, size in listed)


def _listed_bytes(part: Sequence[Column]) -> int:
    """What the lists of these columns take, with the number that may stand behind each."""
    return sum(LIST_BYTES + len(msgpack.packb(column.values)) for column in part if isinstance(column.values, list))


def _batch_header(id: BatchId, columns: int, version: int) -> bytes:
    items = 2 * columns
    array = bytes((0x90 | items,)) if items < 16 else b"\xdc" + items.to_bytes(2, "big")
    return b"".join((b"\x96", cast(bytes, msgpack.packb([version, *id]))[1:], array))


def _split(columns: Iterable[Column], most: int) -> Iterable[list[Column]]:
    """Parts of `columns` that, by estimate, make batches within the bounds. A long column is cut."""
    part: list[Column] = []
    room, listed = most - HEADER_BYTES, 0
    for column in columns:
        for piece in _pieces(column, (most - LONGEST_NAMES) // 17):
            # values in a list count as if each were a float
            needed = COLUMN_BYTES + len(column.client) + len(column.tab) + len(column.type) + 17 * piece.events
            in_list = piece.events if isinstance(piece.values, list) else 0
            if part and (needed > room or len(part) == MAX_BATCH_COLUMNS or listed + in_list > MAX_LIST_VALUES):
                yield part
                part, room, listed = [], most - HEADER_BYTES, 0
            part.append(piece)
            room -= needed
            listed += in_list
    if part:
        yield part


def _pieces(column: Column, most: int) -> Iterable[Column]:
    if column.events <= most:
        yield column
        return
    for start in range(0, column.events, most):
        yield _slice(column, start, min(start + most, column.events))


def _halves(part: list[Column]) -> list[list[Column]]:
    """The second half of a part, and the first: what is popped first comes last."""
    if len(part) > 1:
        return [part[len(part) // 2 :], part[: len(part) // 2]]
    half = part[0].events // 2
    return [[_slice(part[0], half, part[0].events)], [_slice(part[0], 0, half)]]


def _slice(column: Column, start: int, end: int) -> Column:
    values = column.made()
    values = values[8 * start : 8 * end] if isinstance(values, bytes) else values[start:end]
    return column._replace(times=column.times[8 * start : 8 * end], values=values)
