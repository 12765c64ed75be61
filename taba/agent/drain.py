"""From readings to batches: events of a whole drain sorted by bucket, Type, Client and Tab, and encoded as sections.

The work on events is numpy's: a sort for many rings. Python's loops are over rings and sections; a column, which is a Tab of one ring, is
an entry in arrays, and its field is made once a Tab. A drain changes nothing: the caller publishes what it gives, and only then has the
rings settle.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias, cast

import msgpack
import numpy as np
from numpy.typing import NDArray

from taba.agent.ages import Moment
from taba.agent.directory import MAX_FRESH_TABS
from taba.agent.edge import Edge, EdgeLot, States
from taba.agent.fairness import EVENT_BYTES, TAB_BYTES
from taba.agent.meanings import Telling
from taba.agent.native import NATIVE
from taba.agent.outbox import EncodedBatch
from taba.agent.reader import Reading, Ring, Scratch
from taba.agent.tallies import Sorted, Tally
from taba.batch import (
    BATCH_VERSION,
    MAX_DUMP_BYTES,
    MAX_LIST_BYTES,
    MAX_LIST_VALUES,
    AtEdge,
    BatchId,
    Column,
    KeyPart,
    Meaning,
    Section,
    encode_batch,
    encode_meanings,
    encode_sections,
    field_of,
    joined,
    pack_bin,
    pack_values,
    sections_of,
    uint32s,
)
from taba.bounds import MAX_BATCH_BYTES, MAX_BATCH_COLUMNS, KiB, MiB
from taba.counting import unpack_list
from taba.names import bucket_of
from taba.ring import RECORD_BYTES, MalformedRing

MAX_DRAIN_EVENTS = 524_288  # all records of 16 rings of 1 MiB: 12 MiB to read, a tenth of a second to group
MAX_DRAIN_VALUE_BYTES = 8 * MiB  # of values that are no float, in one drain
MAX_DRAIN_RINGS = 256  # a table names each; the next drain begins where this one ended
MIN_SHARE = 2048  # events of one ring in a drain that cannot take all: the smallest ring whole
DRAIN_TABS = 2 * MAX_FRESH_TABS  # names that one drain reads of directories: 8 ms, of as many rings as name new ones
LOT_EVENTS = 2**17  # that are sorted as one, of one ring or of several, 5 MiB: 16 rings that are a quarter full. More run out of caches
NARROW = 2**16  # keys of so many kinds are sorted by their digits
WIDE = 8  # so many times as many Tabs as events: then only those that there are are looked at
MAX_CACHED_BUCKETS = 65_536  # names whose bucket is remembered
COLUMN_BYTES = 44  # msgpack's own, the Type, and the lengths; names are added
HEADER_BYTES = 64  # of a batch
_RECORD = np.dtype([("time", "<f8"), ("value", "<u8"), ("tab", "<u4"), ("lap", "<u4")])
SECTION_BYTES = 128  # of a section, beside its columns: the Type, and lengths
MAX_SECTIONS = 262_144  # pairs of bucket and Type that are known by a number; with more they are numbered anew
LONGEST_NAMES = 16 * KiB  # of a column: what a batch has no room for beside its events


SectionsByBucket: TypeAlias = dict[int, list[Section]]  # by bucket

UNKNOWN, SUMMED, HELD_BACK = 0, 1, 2  # numbers of no section: events of no Tab, of Tabs that heal, and of clients that are left out


class Added(NamedTuple):
    """What one reading adds to the sum of a Tab that heals."""

    ring: Ring
    place: int  # of the Tab in the ring's directory
    total: float
    events: int
    time: float  # of the last


class Drained(NamedTuple):
    """What one drain gives: columns by bucket, the readings to settle once they are safe, and what was found in the rings. `packed` and
    `tallies` hold until the next."""

    packed: SectionsByBucket
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
    tallies: list[Sorted | Tally]  # what all of it comes to, by Tab
    is_cut: bool  # a limit ended it; there is more to read at once


class Places:
    """What a drain needs of the Tabs of a ring, beside its directory: of each the number of its section, and its field as a bin."""

    __slots__ = ("fields", "known", "numbering", "sections")

    def __init__(self, numbering: object):
        self.numbering = numbering  # of the Drain: after another one, these mean nothing
        self.known = 0
        self.sections = np.zeros(64, np.int32)
        self.fields = np.empty(64, np.object_)

    def fit(self, places: int) -> None:
        """Have room for so many."""
        if places > len(self.sections):
            more = max(places, 2 * len(self.sections)) - len(self.sections)
            self.sections = np.concatenate((self.sections, np.zeros(more, np.int32)))
            self.fields = np.concatenate((self.fields, np.empty(more, np.object_)))


class Drain:
    """Reads rings, fairly: none takes more than its share where not all of it can be had, and where one drain ends, for its limits, the
    next begins. `buckets` is the store's number of them; `edge` folds what goes as States."""

    def __init__(self, buckets: int, edge: Edge | None = None, native: Any = NATIVE):
        self.buckets = buckets
        self._edge = edge or Edge({})
        self._most_dump = MAX_DUMP_BYTES
        self._kinds = np.zeros(HELD_BACK + 1, np.int8)  # by number of a section what the edge knows its Type by
        self._scratch = Scratch(native)
        self._cache: dict[str, int] = {}
        self._turn = 0
        self._rows = Rows() if native is None else Rows(0)
        self._numbering = object()
        self._numbers: dict[tuple[int, str], int] = {}
        self._sections: list[tuple[int, str]] = [(0, "")] * (HELD_BACK + 1)

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
        batch_bytes: int = MAX_BATCH_BYTES,
    ) -> Drained:
        """Read (ring, is dead) pairs: at most so many events. `waiting`: how many there are in each ring, as was seen last.

        What clients in `spent` recorded is read and left out, but for what goes up and down. `batch_bytes`: what a batch may take, of
        which a State that was folded at the edge takes no more than a part.
        """
        if len(self._numbers) > MAX_SECTIONS:
            self._numbers, self._sections, self._numbering = {}, self._sections[: HELD_BACK + 1], object()
            self._kinds = self._kinds[: HELD_BACK + 1]
        self._most_dump = min(MAX_DUMP_BYTES, batch_bytes // 2)
        self._rows.lots = 0
        gathered = self._gather()
        packed: SectionsByBucket = defaultdict(list)
        added: list[Added] = []
        held_back: Counter[str] = Counter()
        tallies: list[Sorted | Tally] = []
        readings: list[tuple[Ring, Reading]] = []
        empty: list[Ring] = []
        broken: list[tuple[Ring, str]] = []
        tellings: list[Telling] = []
        total = unread = malformed = refused = 0
        lost: dict[str, Counter[str]] = defaultdict(Counter)
        taken: Counter[str] = Counter()
        is_cut = False
        value_bytes = MAX_DRAIN_VALUE_BYTES
        self._scratch.fresh_tabs = DRAIN_TABS
        self._edge.begin()
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
                self._scratch.begin = gathered.begin
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
                tellings += self._tellings(ring, reading)
            if gathered.events and gathered.events + len(reading.tabs) > LOT_EVENTS:
                malformed += self._give(gathered, spent, packed, added, held_back, lost, tallies, taken)
                gathered = self._gather()
                gathered.follow(reading)
            gathered.add(ring, reading, places, ring.client in spent)
            total += len(reading.tabs)
            unread += reading.malformed + reading.refused
            malformed += reading.malformed
            refused += reading.refused
            if reading.malformed or reading.refused:
                lost[ring.client].update({"malformed": reading.malformed, "too_many_tabs": reading.refused})
            length = max((found.byte_end - ring.byte_tail for found in reading.ranges if found.byte_end), default=0)
            value_bytes -= length
            taken[ring.client] += EVENT_BYTES * len(reading.tabs) + length + TAB_BYTES * min(len(reading.tabs), len(ring.directory))
            is_cut = is_cut or reading.is_cut
        if not is_cut:
            self._turn = begin
        elif self._scratch.fresh_tabs <= 0:
            self._turn = begin + 1  # so that whoever names very many is not always the first
        found = total + unread
        malformed += self._give(gathered, spent, packed, added, held_back, lost, tallies, taken)
        return Drained(packed, added, readings, found, malformed, refused, lost, held_back, taken, empty, broken, tellings, tallies, is_cut)

    def _gather(self) -> Gathered:
        return Gathered(self._rows) if self._scratch.native is None else Counted(self._rows, self._scratch)

    def _give(
        self,
        gathered: Gathered,
        spent: frozenset[str],
        packed: SectionsByBucket,
        added: list[Added],
        held_back: Counter[str],
        lost: dict[str, Counter[str]],
        tallies: list[Sorted | Tally],
        taken: Counter[str],
    ) -> int:
        """Add what was gathered to what the drain gives, folded or as it stands in order; returns how many events are of no Tab."""
        in_order = gathered.sort()
        if in_order is None:
            return 0
        folded, in_order = in_order.fold(self._edge, self._kinds_of_sections(), self._most_dump)
        for one in folded:
            tallies.append(one.tally)
            self._pack_states(one, packed)
            for ring, saved in zip(gathered.rings, one.saved.tolist(), strict=True):
                taken[ring.client] -= saved
        if not len(in_order.keys):
            return 0
        tallies.append(in_order.tally)
        unknown = 0
        for ring, count in in_order.counted(UNKNOWN):
            unknown += count
            lost[ring.client]["malformed"] += count
        for ring, count in in_order.counted(HELD_BACK):
            held_back[ring.client] += count
        self._sum_up(in_order, spent, packed, added, held_back)
        self._pack(in_order, packed)
        return unknown

    def read_names(self, ring: Ring) -> None:
        """Take up new names of this ring's directory: of DRAIN_TABS those that this drain has not read."""
        self._scratch.fresh_tabs -= ring.names.read(self._scratch.fresh_tabs)

    def places(self, ring: Ring) -> Places:
        """What is known of the Tabs in the ring's directory, which is all of them."""
        places = ring.places
        if not isinstance(places, Places) or places.numbering is not self._numbering:
            places = ring.places = Places(self._numbering)
        directory, leads = ring.directory, ring.names.leads
        if places.known < len(directory):
            places.fit(len(directory))
            for place in range(places.known, len(directory)):
                tab = directory[place]
                if tab is None or (tab.is_overflow and tab.cell is None and leads is not None and leads[place] != place):
                    continue  # UNKNOWN: to be dropped, or those of another place come for it
                if tab.cell is not None:
                    places.sections[place] = SUMMED
                    continue
                key = self.bucket(tab.name), tab.type
                number = self._numbers.get(key)
                if number is None:
                    number = self._numbers[key] = len(self._sections)
                    self._sections.append(key)
                places.sections[place] = number
                places.fields[place] = pack_bin(field_of(tab.name, ring.names.client if tab.is_overflow else ring.client))
            places.known = len(directory)
        return places

    def _tellings(self, ring: Ring, reading: Reading) -> Iterable[Telling]:
        """The Tabs of this reading that are not known to have been told of, as they stand in the directory."""
        for index in np.flatnonzero(np.bincount(reading.tabs)).tolist() if len(reading.tabs) else ():
            tab = ring.directory[index]
            if index in ring.names.untold and tab is not None:
                yield Telling(ring, index, self.bucket(tab.name), ring.names.untold[index])

    def _sum_up(
        self, events: InOrder, spent: frozenset[str], packed: SectionsByBucket, added: list[Added], held_back: Counter[str]
    ) -> None:
        """Sum the finite numbers of each Tab that heals; other values go as columns, and its Handler refuses them one by one."""
        for column in range(*events.columns_of(SUMMED)):
            ring, place = events.tally.rings[events.tally.of[column]], int(events.tally.places[column])
            tab = ring.directory[place]
            assert tab is not None
            here = events.rows(column, column + 1)
            numbers, stamps = events.tally.values[here], events.times[here]
            flags = None if events.tally.is_boxed is None else events.tally.is_boxed[here]
            good = np.isfinite(numbers) if flags is None else np.isfinite(numbers) & ~flags
            summed = numbers[good]
            if len(summed):
                added.append(Added(ring, place, float(summed.sum()), len(summed), float(stamps[good][-1])))
            if good.all():
                continue
            rest = ~good
            if ring.client in spent:
                held_back[ring.client] += int(rest.sum())
                continue
            boxes = None if flags is None else (events.tally.boxed[here][rest], flags[rest])
            # as floats they would be numbers that nothing may be summed with; in a list each stands by itself
            listed = pack_bin(_listed(numbers[rest], boxes))
            count = int(rest.sum()).to_bytes(4, "little")
            packed[self.bucket(tab.name)].append(
                Section(tab.type, 1, pack_bin(field_of(tab.name, ring.client)), count, stamps[rest].tobytes(), listed, True)
            )

    def _pack(self, events: InOrder, packed: SectionsByBucket) -> None:
        """Add to `packed` all that stands behind what is no section."""
        tally = events.tally
        first = events.columns_of(HELD_BACK)[1]
        keys = events.keys[first:]
        if not len(keys):
            return
        edges = [first, *(np.flatnonzero(np.diff(keys)) + 1 + first).tolist(), len(events.keys)]
        counts = tally.counts.astype("<u4").tobytes()
        times, values = (memoryview(cast(Any, column.view(np.uint8))) for column in (events.times, tally.values))  # cut without a copy
        fields = events.fields.tolist()
        rows = events.starts
        for start, end in pairwise(edges):
            number, is_listed = divmod(int(events.keys[start]), 2)
            bucket, type = self._sections[number]
            low, high = 8 * int(rows[start]), 8 * int(rows[end])
            content: bytes | memoryview
            if is_listed:
                of_columns = [_listed(tally.values[here], (tally.boxed[here], tally.is_boxed[here])) for here in events.each(start, end)]
                content = b"".join(map(pack_bin, of_columns))
            else:
                content = values[low:high]
            packed[bucket].append(
                Section(
                    type, end - start, b"".join(fields[start:end]), counts[4 * start : 4 * end], times[low:high], content, bool(is_listed)
                )
            )

    def _kinds_of_sections(self) -> Any:
        """What the edge knows the Type of each section by."""
        known = len(self._kinds)
        if known < len(self._sections):
            more = np.array([self._edge.kind(type) for _, type in self._sections[known:]], np.int8)
            self._kinds = np.concatenate((self._kinds, more))
        return self._kinds

    def _pack_states(self, folded: Folded, packed: SectionsByBucket) -> None:
        """Add to `packed` what was folded."""
        edge = folded.states.edge
        numbers, dumps, fields, native = folded.numbers, folded.states.dumps, folded.fields.tolist(), self._scratch.native
        counts, least, greatest = (
            column.tobytes() for column in (folded.tally.counts.astype("<u4"), folded.states.least, folded.states.greatest)
        )
        for start, end in pairwise([0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]):
            bucket, type = self._sections[int(numbers[start])]
            few, wide = slice(4 * start, 4 * end), slice(8 * start, 8 * end)
            bins = b"".join(map(pack_bin, dumps[start:end])) if native is None else native.join_bins(dumps, start, end)
            its = b"".join(fields[start:end]), counts[few], least[wide], bins
            packed[bucket].append(Section(type, end - start, *its, edge=edge, until=greatest[wide]))

    @staticmethod
    def _detached(reading: Reading) -> Reading:
        # what settling needs, without the arrays that the next reading overwrites
        empty = np.broadcast_to(np.uint32(0), len(reading.tabs))
        return reading._replace(tabs=empty, boxed=None, is_boxed=None)


class InOrder(NamedTuple):
    """All events of a drain, column by column, and the columns by `keys`: twice the number of their section, and one more where they are
    lists. `starts` has the first row of each column, and behind the last the end."""

    tally: Sorted
    times: Any
    keys: Any
    fields: Any
    starts: Any

    def fold(self, edge: Edge, kinds: Any, most: int) -> tuple[list[Folded], InOrder]:
        """What goes as States, of at most `most` bytes each, folded, and the rest. `kinds`: by the number of a section what the edge knows
        its Type by."""
        if not edge.is_folding:
            return [], self
        tally, keys = self.tally, self.keys
        rings, counts, of = tally.rings, tally.counts, tally.of
        of_columns = np.where(keys & 1, np.int8(0), kinds[keys >> 1])
        found = edge.fold(EdgeLot(self.starts, self.times, tally.values, counts, of_columns), most)
        if not found:
            return [], self
        folded: list[Folded] = []
        kept: Any = np.ones(len(keys), np.bool_)
        for states in found:
            mine = states.columns
            kept[mine] = False
            saved = EVENT_BYTES * counts[mine] - np.fromiter(map(len, states.dumps), np.int64, len(mine))
            of_rings = np.bincount(of[mine], weights=saved, minlength=len(rings)).astype(np.int64)
            its = Tally(rings, of[mine], tally.places[mine], counts[mine], states.totals, states.lows)
            folded.append(Folded(states, keys[mine] >> 1, self.fields[mine], its, of_rings))
        return folded, self._of(kept)

    def _of(self, kept: Any) -> InOrder:
        """These columns alone."""
        tally = self.tally
        stay = np.repeat(kept, tally.counts) if kept.any() else np.zeros(0, np.intp)
        boxed, is_boxed = (None, None) if tally.is_boxed is None else (tally.boxed[stay], tally.is_boxed[stay])
        counts = tally.counts[kept]
        left = Sorted(tally.rings, tally.of[kept], tally.places[kept], counts, tally.values[stay], boxed, is_boxed)
        return InOrder(left, self.times[stay], self.keys[kept], self.fields[kept], np.concatenate(([0], np.cumsum(counts))))

    def columns_of(self, number: int) -> tuple[int, int]:
        """Where the columns of a section begin and end."""
        begin, end = np.searchsorted(self.keys, (2 * number, 2 * number + 2)).tolist()
        return begin, end

    def rows(self, start: int, end: int) -> slice:
        """The rows of these columns."""
        return slice(int(self.starts[start]), int(self.starts[end]))

    def each(self, start: int, end: int) -> Iterable[slice]:
        """The rows of each of these columns."""
        return (self.rows(column, column + 1) for column in range(start, end))

    def counted(self, number: int) -> Iterable[tuple[Ring, int]]:
        """How many rows of each ring are in a section."""
        begin, end = self.columns_of(number)
        for of in sorted(set(self.tally.of[begin:end].tolist())):
            mine = self.tally.of[begin:end] == of
            yield self.tally.rings[of], int(self.tally.counts[begin:end][mine].sum())


class Folded(NamedTuple):
    """Columns of one Type that were folded at the edge, in the order of `numbers`, those of their sections. `saved`: of each ring how many
    bytes less they take, about."""

    states: States
    numbers: NDArray[np.int64]
    fields: Any
    tally: Tally
    saved: NDArray[np.int64]


class Rows:
    """Room for the events of a drain, which one after the other uses: fresh memory costs more than what is written to it."""

    def __init__(self, rows: int = LOT_EVENTS):
        self.room = rows
        self.columns = np.empty(rows, np.uint32)
        self.times, self.values = np.empty((2, rows))
        self.ranks = np.empty(rows, np.uint16)
        self.lots = 0  # of this drain, that were put in order
        self._in_order: list[Any] = []

    def grow(self, used: int, rows: int) -> None:
        """Have room for so many, with the `used` ones that are here."""
        fresh = Rows(max(rows, 2 * self.room))
        fresh.columns[:used], fresh.times[:used], fresh.values[:used] = self.columns[:used], self.times[:used], self.values[:used]
        self.room, self.columns, self.times, self.values, self.ranks = fresh.room, fresh.columns, fresh.times, fresh.values, fresh.ranks

    def in_order(self, events: int) -> tuple[Any, Any]:
        """Room for the times and values of one more lot, which hold until the next drain."""
        if self.lots == len(self._in_order):
            self._in_order.append(np.empty((2, 0)))
        if events > self._in_order[self.lots].shape[1]:
            self._in_order[self.lots] = np.empty((2, max(events, LOT_EVENTS)))
        times, values = self._in_order[self.lots]
        self.lots += 1
        return times[:events], values[:events]


class Gathered:
    """What some readings of a drain hold, ring by ring, until all of it is put in order in one go."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.rings: list[Ring] = []
        self._columns = 0
        self._of: list[Any] = []  # by column: which ring, …
        self._places: list[Any] = []  # … which place in its directory, …
        self._keys: list[Any] = []  # … the number of its section, …
        self._fields: list[Any] = []
        self._counts: list[Any] = []
        self._boxed: list[tuple[int, Any, Any]] = []  # of some readings where they begin, what is no float, and which these are
        self.events = 0
        self.begin = 0  # where in Scratch the next reading's records go

    def follow(self, reading: Reading) -> None:
        """This reading, which came behind those of another, is to be the first here."""

    def add(self, ring: Ring, reading: Reading, places: Places, is_spent: bool) -> None:
        """Take a reading, before the next one overwrites it."""
        tabs = reading.tabs
        if not len(tabs):
            return
        if int(tabs.max()) > WIDE * len(tabs):
            present, of_present, counts = np.unique(tabs, return_inverse=True, return_counts=True)
            inverse = of_present.astype(np.uint32)
        else:
            tabs = tabs.astype(np.intp)  # once, what counting and taking would each do
            counts = np.bincount(tabs)
            present = np.flatnonzero(counts).astype(np.uint32)
            columns = np.zeros(len(counts), np.uint32)
            columns[present] = np.arange(len(present), dtype=np.uint32)
            inverse, counts = columns.take(tabs), counts[present]
        keys = places.sections[present]
        if is_spent:
            keys = np.where(keys > HELD_BACK, np.int32(HELD_BACK), keys)
        keys = 2 * keys
        if reading.boxed is not None and reading.is_boxed is not None:
            keys += np.bincount(inverse, weights=reading.is_boxed, minlength=len(present)) > 0
            self._boxed.append((self.events, reading.boxed, reading.is_boxed))
        begin, end = self.events, self.events + len(tabs)
        rows = self._rows
        if end > rows.room:
            rows.grow(begin, end)
        np.add(inverse, self._columns, out=rows.columns[begin:end], casting="unsafe")
        rows.times[begin:end] = reading.times
        rows.values[begin:end] = reading.values.view(np.float64)
        self._note(ring, places, present, keys, counts)
        self.events = end

    def _note(self, ring: Ring, places: Places, present: Any, keys: Any, counts: Any) -> None:
        self._of.append(np.full(len(present), len(self.rings)))
        self.rings.append(ring)
        self._places.append(present)
        self._keys.append(keys)
        self._fields.append(places.fields[present])
        self._counts.append(counts)
        self._columns += len(present)

    def sort(self) -> InOrder | None:
        """All of it, in order: of one column that of its ring. None where there is nothing."""
        if not self.events:
            return None
        keys = np.concatenate(self._keys)
        # numpy's stable sort of 16-bit keys is a radix sort; of wider ones it is not
        by_section = np.argsort(keys.astype(np.uint16) if int(keys.max()) < NARROW else keys, kind="stable")
        counts = np.concatenate(self._counts)[by_section]
        starts = np.concatenate(([0], np.cumsum(counts)))
        times, values, boxed, is_boxed = self._in_order(by_section, starts)
        of, places = np.concatenate(self._of)[by_section], np.concatenate(self._places)[by_section]
        fields = np.concatenate(self._fields)[by_section]
        return InOrder(Sorted(self.rings, of, places, counts, values, boxed, is_boxed), times, keys[by_section], fields, starts)

    def _in_order(self, by_section: Any, starts: Any) -> tuple[Any, Any, Any, Any]:
        """(times, values, what is no float, which these are) in the order of these columns, of which each starts at one of `starts`."""
        rows, events = self._rows, self.events
        columns = rows.columns[:events]
        if self._columns <= NARROW:
            rank = np.empty(self._columns, np.uint16)
            rank[by_section] = np.arange(self._columns, dtype=np.uint16)
            order = np.argsort(rank.take(columns, out=rows.ranks[:events], mode="clip"), kind="stable")
        else:
            wide = np.empty(self._columns, np.uint64)
            wide[by_section] = np.arange(self._columns, dtype=np.uint64)
            packed = (wide[columns] << np.uint64(32)) | np.arange(events, dtype=np.uint64)
            packed.sort()
            order = (packed & np.uint64(0xFFFF_FFFF)).astype(np.int64)
        boxed = is_boxed = None
        if self._boxed:
            boxed, is_boxed = np.empty(events, np.object_), np.zeros(events, np.bool_)
            for begin, found, flags in self._boxed:
                boxed[begin : begin + len(found)], is_boxed[begin : begin + len(found)] = found, flags
            boxed, is_boxed = boxed[order], is_boxed[order]
        times, values = rows.in_order(events)
        rows.values[:events].take(order, out=values, mode="clip")
        rows.times[:events].take(order, out=times, mode="clip")
        return times, values, boxed, is_boxed


class Counted(Gathered):
    """The same by the C part: the records stay in `scratch` as they were read, and each goes to its place at once."""

    def __init__(self, rows: Rows, scratch: Scratch) -> None:
        super().__init__(rows)
        self._scratch = scratch
        self._readings: list[tuple[int, int]] = []  # where in `scratch` the records of each begin, and how many they are

    def follow(self, reading: Reading) -> None:
        if reading.counted is not None:
            records, begin, length = self._scratch.records, self._scratch.begin * RECORD_BYTES, len(reading.tabs) * RECORD_BYTES
            records[:length] = records[begin : begin + length]
        self._scratch.begin = 0

    def add(self, ring: Ring, reading: Reading, places: Places, is_spent: bool) -> None:
        tabs, scratch = reading.tabs, self._scratch
        if not len(tabs):
            return
        counted = reading.counted
        if counted is None:  # as it stands in arrays
            scratch.fit(len(tabs))
            records = np.frombuffer(scratch.here(len(tabs)), _RECORD)
            records["time"], records["value"], records["tab"] = reading.times, reading.values, tabs
            counted = scratch.count(len(tabs), ((len(tabs), None),), len(ring.directory))
            if counted is None:
                raise MalformedRing("an event of a Tab that it does not name")
        present, counts = counted
        sections = places.sections[present]
        if is_spent:
            sections = np.where(sections > HELD_BACK, np.int32(HELD_BACK), sections)
        keys: Any = 2 * sections
        if reading.boxed is not None and reading.is_boxed is not None:
            keys[np.searchsorted(present, np.unique(tabs[reading.is_boxed]))] += 1
            self._boxed.append((len(self._readings), reading.boxed, reading.is_boxed))
        self._readings.append((self.begin, len(tabs)))
        self._note(ring, places, present, keys, counts)
        self.events = self.begin = self.begin + len(tabs)

    def _in_order(self, by_section: Any, starts: Any) -> tuple[Any, Any, Any, Any]:
        begins = np.empty(self._columns, np.int64)
        begins[by_section] = starts[:-1]
        times, values = self._rows.in_order(self.events)
        boxed, is_boxed = (np.empty(self.events, np.object_), np.zeros(self.events, np.bool_)) if self._boxed else (None, None)
        others = {reading: (found, flags) for reading, found, flags in self._boxed}
        cursors = np.empty(max(int(present[-1]) for present in self._places) + 1, np.int64)
        records, column = memoryview(self._scratch.records), 0
        for number, ((begin, length), present) in enumerate(zip(self._readings, self._places, strict=True)):
            here = records[begin * RECORD_BYTES : (begin + length) * RECORD_BYTES]
            mine = begins[column : column + len(present)]
            column += len(present)
            where = np.empty(length, np.int64) if number in others else None
            self._scratch.native.place(here, present, mine, cursors, times, values, where)
            if where is not None and boxed is not None and is_boxed is not None:
                boxed[where], is_boxed[where] = others[number]
        return times, values, boxed, is_boxed


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


def _listed(numbers: Any, boxes: tuple[Any, Any] | None) -> bytes:
    """The msgpack of values one after the other, given which of them are something else than these numbers."""
    floats = numbers.tolist()
    if boxes is None:
        return pack_values(floats)
    return pack_values([box if mark else number for box, mark, number in zip(boxes[0], boxes[1].tolist(), floats, strict=True)])


def unpack(sections: Iterable[Section]) -> list[Column]:
    """The columns of one bucket's `sections`."""
    found = []
    for section in sections:
        fields = _bins(section.fields)
        if section.edge:
            until = np.frombuffer(section.until, "<f8").tolist()
            for place, (field, count, dump) in enumerate(zip(fields, uint32s(section.counts), _bins(section.values), strict=True)):
                tab, _, client = field.decode().partition("\0")
                first, state = bytes(section.times[8 * place : 8 * place + 8]), AtEdge(section.edge, dump, until[place])
                found.append(Column(client, tab, section.type, first, state, count))
            continue
        values = _bins(section.values) if section.is_listed else []
        weights: Sequence[int | None] = uint32s(section.stands_for) or (None,) * section.columns
        start = 0
        for place, (field, count, weight) in enumerate(zip(fields, uint32s(section.counts), weights, strict=True)):
            tab, _, client = field.decode().partition("\0")
            here = slice(8 * start, 8 * (start + count))
            its = unpack_list(values[place], count) if section.is_listed else bytes(section.values[here])
            found.append(Column(client, tab, section.type, bytes(section.times[here]), its, weight))
            start += count
    return found


def _bins(content: bytes | memoryview) -> list[bytes]:
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(content)
    return list(unpacker)


def absolute_section(client: str, tab: str, type: str, time: float, row: Any, events: int) -> Section:
    """The column of one absolute, which stands for so many events."""
    [section] = sections_of([Column(client, tab, type, np.float64(time).tobytes(), [row], events)])
    return section


def encode(
    packed: SectionsByBucket,
    stream: bytes,
    numbers: Mapping[int, int],
    created: Moment,
    most: int = MAX_BATCH_BYTES,
    weights: Mapping[int, int] = MappingProxyType({}),
    meanings: Mapping[int, Sequence[Meaning]] = MappingProxyType({}),
    version: int = BATCH_VERSION,
    native: Any = NATIVE,
) -> list[EncodedBatch]:
    """Batches of all columns, in the order of buckets, each within `most` bytes and MAX_BATCH_COLUMNS.

    `weights`: by bucket, how many more events its columns stand for than they have rows. `numbers` are the last numbers of this stream by
    bucket; the caller keeps count once the batches are published. A single event
    too large for a batch does not exist: values are bounded. Byte for byte what `encode_batch` gives for the same columns.
    `meanings`, of buckets that have columns here, go into the last batch of each, for a Tab must be there to be told of.
    """
    batches = []
    bounds = MAX_BATCH_COLUMNS, most - HEADER_BYTES, SECTION_BYTES, MAX_LIST_VALUES, MAX_LIST_BYTES
    for bucket in sorted(packed):
        number = numbers.get(bucket, 0)
        told = encode_meanings(meanings[bucket]) if bucket in meanings else b""
        if native is not None:
            made = native.encode(packed[bucket], version, stream, bucket, number + 1, told, bounds)
            if made is not None:
                events, content = made
                batches.append(EncodedBatch(BatchId(stream, bucket, number + 1), created, events + weights.get(bucket, 0), content))
                continue
        sections = joined(packed[bucket])
        columns = size = values = listed = events = 0
        for section in sections:
            columns += section.columns
            size += SECTION_BYTES + section.size
            events += section.weight if section.edge else len(section.times) >> 3
            if section.is_listed:
                values, listed = values + (len(section.times) >> 3), listed + len(section.values)
        fits = columns <= MAX_BATCH_COLUMNS and size + len(told) <= most - HEADER_BYTES
        if fits and values <= MAX_LIST_VALUES and listed <= MAX_LIST_BYTES:
            events += weights.get(bucket, 0)
            id = BatchId(stream, bucket, number + 1)
            batches.append(EncodedBatch(id, created, events, encode_sections(id, sections, told, version)))
            continue
        waiting = list(_split(unpack(sections), most))[::-1]
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


def _listed_bytes(part: Sequence[Column]) -> int:
    """What the lists of these columns take."""
    return sum(len(pack_values(column.values)) for column in part if isinstance(column.values, list))


def _split(columns: Iterable[Column], most: int) -> Iterable[list[Column]]:
    """Parts of `columns` that, by estimate, make batches within the bounds. A long column is cut."""
    part: list[Column] = []
    room, listed = most - HEADER_BYTES, 0
    for column in columns:
        for piece in _pieces(column, (most - LONGEST_NAMES) // 17):
            # values in a list count as if each were a float
            needed = COLUMN_BYTES + len(column.client) + len(column.tab) + len(column.type) + 17 * piece.events
            needed += len(column.values.dump) if isinstance(column.values, AtEdge) else 0
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
