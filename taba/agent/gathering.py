"""Events of some readings, put in order: by bucket and Type, Client and Tab, within one column as they stood in the ring.

The work on events is the C part's, or numpy's; Python's loops are over rings. What is folded at the edge is taken from what is in order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taba.agent.arenas import Arena
from taba.agent.edge import Edge, EdgeLot, States
from taba.agent.fairness import EVENT_BYTES
from taba.agent.numbering import HELD_BACK, Places
from taba.agent.reader import Reading, Ring
from taba.agent.scratch import Scratch
from taba.agent.sparse import Read
from taba.agent.tallies import Sorted, Tally
from taba.ring import RECORD_BYTES, MalformedRing

LOT_EVENTS = 2**17  # that are sorted as one, of one ring or of several, 5 MiB: 16 rings that are a quarter full. More run out of caches
NARROW = 2**16  # keys of so many kinds are sorted by their digits
WIDE = 8  # so many times as many Tabs as events: then only those that there are are looked at
_RECORD = np.dtype([("time", "<f8"), ("value", "<u8"), ("tab", "<u4"), ("lap", "<u4")])


class InOrder(NamedTuple):
    """All events of a drain, column by column, and the columns by `keys`: twice the number of their section, and one more where they are
    lists. `starts` has the first row of each column, and behind the last the end; `numbers` are those of their Tabs."""

    tally: Sorted
    times: Any
    keys: Any
    starts: Any
    numbers: Any

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
            folded.append(Folded(states, keys[mine] >> 1, its, of_rings, self.numbers[mine]))
        return folded, self._of(kept)

    def _of(self, kept: Any) -> InOrder:
        """These columns alone."""
        tally = self.tally
        stay = np.repeat(kept, tally.counts) if kept.any() else np.zeros(0, np.intp)
        boxed, is_boxed = (None, None) if tally.is_boxed is None else (tally.boxed[stay], tally.is_boxed[stay])
        counts = tally.counts[kept]
        left = Sorted(tally.rings, tally.of[kept], tally.places[kept], counts, tally.values[stay], boxed, is_boxed)
        starts = np.concatenate(([0], np.cumsum(counts)))
        return InOrder(left, self.times[stay], self.keys[kept], starts, self.numbers[kept])

    def columns_of(self, number: int) -> tuple[int, int]:
        """Where the columns of a section begin and end."""
        begin, end = np.searchsorted(self.keys, (2 * number, 2 * number + 2)).tolist()
        return begin, end

    def rows(self, start: int, end: int) -> slice:
        """The rows of these columns."""
        return slice(int(self.starts[start]), int(self.starts[end]))

    def counted(self, number: int) -> Iterable[tuple[Ring, int]]:
        """How many rows of each ring are in a section."""
        begin, end = self.columns_of(number)
        for of in sorted(set(self.tally.of[begin:end].tolist())):
            mine = self.tally.of[begin:end] == of
            yield self.tally.rings[of], int(self.tally.counts[begin:end][mine].sum())


class Folded(NamedTuple):
    """Columns of one Type that were folded at the edge, in the order of `sections`, theirs. `saved`: of each ring how many bytes less they
    take, about; `numbers` are those of their Tabs."""

    states: States
    sections: NDArray[np.int64]
    tally: Tally
    saved: NDArray[np.int64]
    numbers: Any


class Rows:
    """Room for the events of a drain, which one after the other uses: fresh memory costs more than what is written to it."""

    def __init__(self, rows: int = LOT_EVENTS):
        self.room = rows
        self.columns = np.empty(rows, np.uint32)
        self.times, self.values = np.empty((2, rows))
        self.ranks = np.empty(rows, np.uint16)
        self.lots = 0  # of this drain, that were put in order
        self._in_order: list[Arena] = []

    def begin(self) -> None:
        """A drain begins."""
        self.lots = 0
        for room in self._in_order:
            room.begin()

    def grow(self, used: int, rows: int) -> None:
        """Have room for so many, with the `used` ones that are here."""
        fresh = Rows(max(rows, 2 * self.room))
        fresh.columns[:used], fresh.times[:used], fresh.values[:used] = self.columns[:used], self.times[:used], self.values[:used]
        self.room, self.columns, self.times, self.values, self.ranks = fresh.room, fresh.columns, fresh.times, fresh.values, fresh.ranks

    def in_order(self, events: int) -> tuple[Any, Any]:
        """Room for the times and values of one more lot, which hold until the next drain."""
        if self.lots == len(self._in_order):
            self._in_order.append(Arena(16 * LOT_EVENTS))
        if 16 * events > len(self._in_order[self.lots].view):
            self._in_order[self.lots] = Arena(16 * events)
        room = self._in_order[self.lots]
        self.lots += 1
        room.reach(16 * events)
        times, values = np.frombuffer(room.view, np.float64, 2 * events).reshape(2, events)
        return times, values


class Gathered:
    """What some readings of a drain hold, ring by ring, until all of it is put in order in one go."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.rings: list[Ring] = []
        self._columns = 0
        self._of: list[Any] = []  # by column: which ring, …
        self._places: list[Any] = []  # … which place in its directory, …
        self._numbers: list[Any] = []  # … the number of its Tab, …
        self._keys: list[Any] = []  # … that of its section, …
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
        numbers, keys = self._keys_of(places, present, is_spent)
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
        self._note(ring, present, numbers, keys, counts)
        self.events = end

    def _keys_of(self, places: Places, present: Any, is_spent: bool) -> tuple[Any, Any]:
        """Of these places of a ring the numbers of their Tabs, and the keys."""
        numbers = places.numbers[present]
        sections = places.of.section_of[numbers]
        if is_spent:
            sections = np.where(sections > HELD_BACK, np.int32(HELD_BACK), sections)
        return numbers, 2 * sections

    def _note(self, ring: Ring, present: Any, numbers: Any, keys: Any, counts: Any) -> None:
        self._of.append(np.full(len(present), len(self.rings)))
        self.rings.append(ring)
        self._places.append(present)
        self._numbers.append(numbers)
        self._keys.append(keys)
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
        numbers = np.concatenate(self._numbers)[by_section]
        return InOrder(Sorted(self.rings, of, places, counts, values, boxed, is_boxed), times, keys[by_section], starts, numbers)

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
        # where in `scratch` the records of each begin, how many they are, and whether they have their columns: else their Tabs tell
        self._readings: list[tuple[int, int, bool]] = []

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
            found = scratch.count(len(tabs), ((len(tabs), None),), len(ring.directory))
            if found is None:
                raise MalformedRing("an event of a Tab that it does not name")
            counted = found[:2]
        present, counts = counted
        numbers, keys = self._keys_of(places, present, is_spent)
        if reading.boxed is not None and reading.is_boxed is not None:
            keys[np.searchsorted(present, tabs[reading.is_boxed])] |= 1
            self._boxed.append((len(self._readings), reading.boxed, reading.is_boxed))
        self._readings.append((self.begin, len(tabs), False))
        self._note(ring, present, numbers, keys, counts)
        self.events = self.begin = self.begin + len(tabs)

    def take(self, read: Read) -> None:
        """Take what was read of several rings at once."""
        if read.boxed is not None:
            self._boxed.append((len(self._readings), read.boxed, read.is_boxed))
        self._readings.append((self.begin, read.events, True))
        self.rings += [ring for ring, _ in read.readings]
        self._of.append(read.of)
        self._places.append(read.places)
        self._numbers.append(read.numbers)
        self._keys.append(read.keys)
        self._counts.append(read.counts)
        self._columns += len(read.of)
        self.events = self.begin = self.begin + read.events

    def _in_order(self, by_section: Any, starts: Any) -> tuple[Any, Any, Any, Any]:
        begins = np.empty(self._columns, np.int64)
        begins[by_section] = starts[:-1]
        times, values = self._rows.in_order(self.events)
        boxed, is_boxed = (np.empty(self.events, np.object_), np.zeros(self.events, np.bool_)) if self._boxed else (None, None)
        others = {reading: (found, flags) for reading, found, flags in self._boxed}
        of_tabs = (int(present[-1]) for (*_, is_numbered), present in zip(self._readings, self._places, strict=True) if not is_numbered)
        cursors = np.empty(max(of_tabs, default=-1) + 1, np.int64)
        records, column, native = self._scratch.records, 0, self._scratch.native
        for number, ((begin, length, is_numbered), present) in enumerate(zip(self._readings, self._places, strict=True)):
            here = records[begin * RECORD_BYTES : (begin + length) * RECORD_BYTES]
            mine = begins[column : column + len(present)]
            column += len(present)
            where = np.empty(length, np.int64) if number in others else None
            if is_numbered:
                native.deal(here, mine, times, values, where)
            else:
                native.place(here, present, mine, cursors, times, values, where)
            if where is not None and boxed is not None and is_boxed is not None:
                boxed[where], is_boxed[where] = others[number]
        return times, values, boxed, is_boxed
