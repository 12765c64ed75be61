"""From readings to sections: events of a whole drain sorted by bucket, Type, Client and Tab.

Python's loops are over rings and sections; a column, which is a Tab of one ring, is an entry in arrays, and its field is made once a Tab.
A drain changes nothing: the caller publishes what it gives, and only then has the rings settle.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import numpy as np

from taba.agent.directory import MAX_FRESH_TABS
from taba.agent.edge import Edge
from taba.agent.encoding import SectionsByBucket
from taba.agent.fairness import EVENT_BYTES, TAB_BYTES
from taba.agent.gathering import LOT_EVENTS, Counted, Folded, Gathered, InOrder, Rows
from taba.agent.meanings import Telling
from taba.agent.native import NATIVE
from taba.agent.numbering import HEALS, HELD_BACK, NO_TAB, SUMMED, UNKNOWN, Numbers, Places
from taba.agent.reader import Reading, Ring
from taba.agent.scratch import FINDS, TURN_VALUES, Scratch
from taba.agent.sparse import MOST_TOGETHER, Read, few, read_together
from taba.agent.tallies import Sorted, Tally
from taba.batch import MAX_DUMP_BYTES, Section, field_of, pack_bin, pack_values
from taba.bounds import MAX_BATCH_BYTES, MiB
from taba.ring import MalformedRing
from taba.steps import finish

MAX_DRAIN_EVENTS = 524_288  # all records of 16 rings of 1 MiB: 12 MiB to read, a tenth of a second to group
MAX_DRAIN_VALUE_BYTES = 8 * MiB  # of values that are no float, in one drain
MAX_DRAIN_VALUES = 4 * TURN_VALUES  # likewise
MAX_DRAIN_RINGS = 512  # a table names each in some 46 bytes, of TABLE_BYTES; the next drain begins where this one ended
TURN_RINGS = 32  # that are read in one turn: 5 to 20 ms, as there are names and other values than floats in them
SPARSE_RINGS = 4  # that are read at once stand for one: they take a fourth or less
TURN_EVENTS = 2**17  # likewise: 5 ms to read, and with a lot that is full 10 to put in order
TURN_TABS = MAX_FRESH_TABS  # names that are read in one turn, of rings or beside drains: 6 ms where all are new, 12 on a slow machine
MIN_SHARE = 8192  # events of one ring in a drain that cannot take all: most rings whole, as each part of one costs by its Tabs
DRAIN_TABS = 4 * MAX_FRESH_TABS  # names that one drain reads of directories: 5 ms, or 20 where all are new
MAX_DRAIN_COLUMNS = 131_072  # of one drain: each takes as long as some dozen events
_NOTHING = np.broadcast_to(np.uint32(0), 2**30)  # of any length, it takes no memory


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
    may_wait: bool = False  # … but only in rings whose turn comes later: all that were to be read were read whole


class Drain:
    """Reads rings, fairly: none takes more than its share where not all of it can be had, and where one drain ends, for its limits, the
    next begins, which goes no further than to where the first of them began. `buckets` is the store's number of them; `edge` folds what
    goes as States."""

    def __init__(self, buckets: int, edge: Edge | None = None, native: Any = NATIVE):
        self.buckets = buckets
        self._edge = edge or Edge({})
        self._most_dump = MAX_DUMP_BYTES
        self._kinds = np.zeros(HELD_BACK + 1, np.int8)  # by number of a section what the edge knows its Type by
        self._scratch = Scratch(native)
        self._turn = self._ahead = 0
        self._rest = 0  # rings that are still to be read of a round that took more than one drain; 0: the next one begins anew
        self._left_some = False  # whether more is in those that were read of it
        self._rows = Rows() if native is None else Rows(0)
        self._numbers = Numbers(buckets)

    def begin_anew(self) -> None:
        """Nothing of the last drain was settled: the next one is of all rings again."""
        self._rest, self._left_some = 0, False

    def bucket(self, name: str) -> int:
        """The bucket of a Tab, remembered."""
        return self._numbers.bucket(name)

    def run(
        self,
        rings: Sequence[tuple[Ring, bool]],
        events: int = MAX_DRAIN_EVENTS,
        waiting: Iterable[int] = (),
        spent: frozenset[str] = frozenset(),
        batch_bytes: int = MAX_BATCH_BYTES,
        first: frozenset[Ring] = frozenset(),
        is_fresh: bool = False,
        most_rings: int = 0,
    ) -> Drained:
        """Read (ring, is dead) pairs: at most so many events. `waiting`: how many there are in each ring, as was seen last.

        What clients in `spent` recorded is read and left out, but for what goes up and down. `batch_bytes`: what a batch may take, of
        which a State that was folded at the edge takes no more than a part. Where there is any in `first`, these rings alone are read,
        whosever turn it is, and it stays so. `is_fresh`: all of them were looked at just now, and what came since may wait. `most_rings`:
        how many are read of those whose turn it is, 0 for all; the next drain goes on with the others.
        """
        return finish(self.steps(rings, events, waiting, spent, batch_bytes, first, is_fresh, most_rings))

    def steps(
        self,
        rings: Sequence[tuple[Ring, bool]],
        events: int = MAX_DRAIN_EVENTS,
        waiting: Iterable[int] = (),
        spent: frozenset[str] = frozenset(),
        batch_bytes: int = MAX_BATCH_BYTES,
        first: frozenset[Ring] = frozenset(),
        is_fresh: bool = False,
        most_rings: int = 0,
    ) -> Generator[None, None, Drained]:
        """The same in turns: yields after each of which others may have theirs, as long as all of these rings stay open. Whoever gives
        it up has changed nothing; one at a time is under way."""
        self._numbers.tidy()
        if self._numbers.is_full:
            self._numbers, self._kinds = Numbers(self.buckets), self._kinds[: HELD_BACK + 1]
        self._most_dump = min(MAX_DUMP_BYTES, batch_bytes // 2)
        self._rows.begin()
        self._scratch.begin_drain()
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
        scratch, columns = self._scratch, MAX_DRAIN_COLUMNS
        scratch.fresh_tabs, scratch.finds, scratch.values, values = DRAIN_TABS, FINDS, 0, MAX_DRAIN_VALUES
        self._edge.begin()
        share = fair_share(waiting, events)
        turn_rings, turn_events, turn_tabs, is_long = 0, 0, DRAIN_TABS, False
        begin = self._turn % len(rings) if rings else 0
        in_turn = (*rings[begin:], *rings[:begin])
        is_rest = 0 < self._rest < len(rings)
        if is_rest:
            in_turn = in_turn[: self._rest]
        rest = len(in_turn)
        if first:
            in_turn = tuple(pair for pair in rings if pair[0] in first)
        elif most_rings:
            in_turn = in_turn[:most_rings]
        done = tried = 0
        together: set[Ring] = set()  # of these rings, those that were read with an earlier one

        def next_lot() -> Iterator[None]:
            nonlocal gathered, malformed, turn_rings, turn_events, is_long
            if turn_rings > 1:
                turn_rings, turn_events, is_long = 1, total, True
                yield
            malformed += self._give(gathered, spent, packed, added, held_back, lost, tallies, taken)
            gathered = self._gather()
            turn_rings = TURN_RINGS  # that was a turn's work

        for place, (ring, dead) in enumerate(in_turn):
            if ring in together:
                self._turn += not first
                done += 1
                continue
            if total >= events or len(readings) >= MAX_DRAIN_RINGS or value_bytes <= 0 or values + scratch.values <= 0 or columns <= 0:
                break
            is_spent = scratch.values <= 0
            if is_spent:
                scratch.values = min(values, TURN_VALUES)
                values -= scratch.values
            is_spent = (is_spent and turn_rings > 0) or turn_tabs - scratch.fresh_tabs >= TURN_TABS
            if is_spent or turn_rings >= TURN_RINGS or total - turn_events >= TURN_EVENTS:
                turn_rings, turn_events, turn_tabs, is_long = 0, total, scratch.fresh_tabs, True
                yield
            if is_fresh and place >= tried:
                most = min(SPARSE_RINGS * (TURN_RINGS - turn_rings), MAX_DRAIN_RINGS - len(readings))
                here = in_turn[place : place + most]
                read, looked = self._read_together(gathered, here, min(share, events - total), columns, value_bytes, spent)
                tried = place + looked
                if read is not None:
                    readings += read.readings
                    together.update(other for other, _ in read.readings)
                    columns -= len(read.of)
                    for other, one in read.readings:
                        length = one.ranges[0].byte_end - other.byte_tail if one.ranges[0].byte_end else 0
                        value_bytes -= length
                        taken[other.client] += EVENT_BYTES * len(one.tabs) + length + TAB_BYTES * min(len(one.tabs), len(other.directory))
                    total += read.events
                    tellings += self._tellings_of(read)
                    turn_rings += len(read.readings) // SPARSE_RINGS
                    if ring in together:
                        turn_rings += 1
                        self._turn += not first
                        done += 1
                        continue
            turn_rings += 1
            self._turn += not first
            done += 1
            most = min(share, events - total)
            if len(ring.directory) > columns:  # each event may be of another Tab
                most = min(most, max(columns, MIN_SHARE))
            if (ring.is_blocked and scratch.fresh_tabs <= 0) or (dead and scratch.finds <= 0):
                is_cut = True  # the next drain begins with another one
                continue
            if gathered.events and gathered.events + min(most, ring.seen) > LOT_EVENTS:  # read where those are, it need not be moved there
                yield from next_lot()
            try:
                self._scratch.begin = gathered.begin
                reading = ring.read(scratch, most, value_bytes, dead, is_fresh)
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
                yield from next_lot()
                gathered.follow(reading)
            gathered.add(ring, reading, places, ring.client in spent)
            total += len(reading.tabs)
            columns -= min(len(reading.tabs), len(ring.directory)) if reading.counted is None else len(reading.counted[0])
            unread += reading.malformed + reading.refused
            malformed += reading.malformed
            refused += reading.refused
            if reading.malformed or reading.refused:
                lost[ring.client].update({"malformed": reading.malformed, "too_many_tabs": reading.refused})
            length = max((found.byte_end - ring.byte_tail for found in reading.ranges if found.byte_end), default=0)
            value_bytes -= length
            taken[ring.client] += EVENT_BYTES * len(reading.tabs) + length + TAB_BYTES * min(len(reading.tabs), len(ring.directory))
            if not first and reading.is_cut and len(reading.tabs) == most < share:  # the next drain goes on with it
                self._turn -= 1
                done -= 1
                break
            is_cut = is_cut or reading.is_cut
        rest -= done
        may_wait = False
        if first:
            is_cut = True  # the round that these were before goes on
        else:
            may_wait = done == len(in_turn) and rest > 0 and not is_cut
            is_cut = is_cut or (is_rest and self._left_some)  # in rings of this round
            self._rest, self._left_some = rest, rest > 0 and is_cut
            is_cut = is_cut or rest > 0
            if not is_cut and not is_rest:
                self._turn = begin
            elif is_cut and self._scratch.fresh_tabs <= 0:
                self._turn = begin + 1  # so that whoever names very many is not always the first
                self.begin_anew()
        found = total + unread
        scratch.fresh_tabs = min(scratch.fresh_tabs, TURN_TABS)  # for who looks at sums, all in one turn
        if is_long:
            yield
        malformed += self._give(gathered, spent, packed, added, held_back, lost, tallies, taken)
        if is_long:
            yield
        told = lost, held_back, taken, empty, broken, tellings, tallies
        return Drained(packed, added, readings, found, malformed, refused, *told, is_cut, may_wait)

    def _read_together(
        self, gathered: Gathered, pairs: Sequence[tuple[Ring, bool]], events: int, columns: int, value_bytes: int, spent: frozenset[str]
    ) -> tuple[Read | None, int]:
        """Read at once, and take, those of these rings that have few records, of so many events, columns and bytes of values in all; and
        at how many of them was looked for that."""
        scratch = self._scratch
        if not isinstance(gathered, Counted) or scratch.values <= 0:
            return None, len(pairs)
        rings, looked, left = [], 0, min(events - 1, columns, MOST_TOGETHER, LOT_EVENTS - gathered.events)
        for looked, (ring, dead) in enumerate(pairs, start=1):
            if dead or ring.client in spent:
                continue
            self.places(ring)
            if here := few(ring):
                if here > left:
                    looked = max(1, looked - 1)
                    break
                left -= here
                rings.append(ring)
        if not rings:
            return None, looked
        scratch.begin = gathered.begin
        read = read_together(rings, scratch, self._numbers.section_of, len(gathered.rings), value_bytes)
        if read is None or not read.events:
            return None, looked
        scratch.values -= read.boxes
        gathered.take(read)
        return read, looked

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

    def read_ahead(self, rings: Sequence[Ring]) -> list[tuple[Ring, str]]:
        """Take up new names of these rings, as many as a turn may, a part of each in turn. Returns those that turned out to be none."""
        left, broken = min(DRAIN_TABS, TURN_TABS), []
        begin = self._ahead % len(rings) if rings else 0
        for ring in (*rings[begin:], *rings[:begin]):
            if left <= 0:
                break
            self._ahead += 1
            try:
                left -= ring.names.read(left)
                self.places(ring)
            except (MalformedRing, OSError) as error:
                broken.append((ring, str(error)))
        return broken

    def read_names(self, ring: Ring) -> None:
        """Take up new names of this ring's directory: those that this drain has not read, of as many as a turn may."""
        self._scratch.fresh_tabs -= ring.names.read(self._scratch.fresh_tabs)

    def places(self, ring: Ring) -> Places:
        """What is known of the Tabs in the ring's directory, which is all of them."""
        places = ring.places
        if not isinstance(places, Places) or places.of is not self._numbers:
            places = ring.places = Places(self._numbers, (ring.client, ring.names.client))
        directory, leads = ring.directory, ring.names.leads
        if places.known < len(directory):
            number = self._numbers.number
            found = []
            for place in range(places.known, len(directory)):
                tab = directory[place]
                if tab is None or (tab.is_overflow and tab.cell is None and leads is not None and leads[place] != place):
                    found.append(NO_TAB)  # to be dropped, or those of another place come for it
                else:
                    found.append(number(tab) if tab.cell is None else HEALS)
            places.add(found)
        return places

    def _tellings_of(self, read: Read) -> Iterator[Telling]:
        """The same of rings that were read together."""
        start = 0
        for (ring, _), columns in zip(read.readings, read.columns, strict=True):
            if ring.names.untold:
                yield from self._tellings_at(ring, read.places[start : start + columns].tolist())
            start += columns

    def _tellings(self, ring: Ring, reading: Reading) -> Iterable[Telling]:
        """The Tabs of this reading that are not known to have been told of, as they stand in the directory."""
        return self._tellings_at(ring, np.flatnonzero(np.bincount(reading.tabs)).tolist() if len(reading.tabs) else ())

    def _tellings_at(self, ring: Ring, places: Iterable[int]) -> Iterator[Telling]:
        for index in places:
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
        edges = _edges(keys) + first
        fields = self._fields(tally.rings, tally.of, events.numbers, edges)
        counts, rows, sections = tally.counts.astype("<u4"), events.starts[edges], self._numbers.sections
        times, values = (memoryview(cast(Any, column.view(np.uint8))) for column in (events.times, tally.values))  # cut without a copy

        def listed(start: int, end: int) -> bytes:
            here = events.rows(start, end)
            its = _mixed(tally.values[here], tally.boxed[here], tally.is_boxed[here])
            bounds = (events.starts[start : end + 1] - here.start).tolist()
            return b"".join([pack_bin(pack_values(its[low:high])) for low, high in pairwise(bounds)])

        its_keys, native = events.keys[edges[:-1]].astype(np.int64), self._scratch.native
        if native is not None:
            native.cut_sections(packed, sections, its_keys, edges, rows, counts, times, values, fields, listed, Section)
            return
        begins, counted = pairwise(zip(edges.tolist(), (8 * rows).tolist(), strict=True)), counts.tobytes()
        for ((start, low), (end, high)), key, its in zip(begins, its_keys.tolist(), fields, strict=True):
            number, is_listed = divmod(key, 2)
            bucket, type = sections[number]
            content = listed(start, end) if is_listed else values[low:high]
            packed[bucket].append(Section(type, end - start, its, counted[4 * start : 4 * end], times[low:high], content, bool(is_listed)))

    def _kinds_of_sections(self) -> Any:
        """What the edge knows the Type of each section by."""
        known = len(self._kinds)
        sections = self._numbers.sections
        if known < len(sections):
            more = np.array([self._edge.kind(type) for _, type in sections[known:]], np.int8)
            self._kinds = np.concatenate((self._kinds, more))
        return self._kinds

    def _fields(self, rings: Sequence[Ring], of: Any, numbers: Any, edges: Any) -> list[bytes]:
        """The fields of columns of these Tabs, of the rings that `of` says, from each of `edges` to the next."""
        return self._numbers.fields([ring.places.clients for ring in rings], of, numbers, edges, self._scratch.native)

    def _pack_states(self, folded: Folded, packed: SectionsByBucket) -> None:
        """Add to `packed` what was folded."""
        edge, dumps, sections = folded.states.edge, folded.states.dumps, folded.sections
        counts, least, greatest = folded.tally.counts.astype("<u4"), folded.states.least, folded.states.greatest
        edges, native = _edges(sections), self._scratch.native
        its_fields = self._fields(folded.tally.rings, folded.tally.of, folded.numbers, edges)
        if native is not None:
            numbers = sections.astype(np.int64, copy=False)
            native.cut_states(packed, self._numbers.sections, numbers, edges, counts, least, greatest, dumps, its_fields, edge, Section)
            return
        for (start, end), fields in zip(pairwise(edges.tolist()), its_fields, strict=True):
            bucket, type = self._numbers.sections[int(sections[start])]
            bins = b"".join(map(pack_bin, dumps[start:end]))
            many, first, last = (column[start:end].tobytes() for column in (counts, least, greatest))
            packed[bucket].append(Section(type, end - start, fields, many, first, bins, edge=edge, until=last))

    @staticmethod
    def _detached(reading: Reading) -> Reading:
        # what settling needs, without the arrays that the next reading overwrites
        return reading._replace(tabs=_NOTHING[: len(reading.tabs)], boxed=None, is_boxed=None)


def _edges(numbers: Any) -> Any:
    """Where another number begins, from 0 to the end."""
    return np.concatenate(([0], np.flatnonzero(np.diff(numbers)) + 1, [len(numbers)]))


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
    return pack_values(numbers.tolist() if boxes is None else _mixed(numbers, *boxes))


def _mixed(numbers: Any, boxed: Any, is_boxed: Any) -> list[Any]:
    """These values, which are not all numbers."""
    return [box if mark else number for box, mark, number in zip(boxed.tolist(), is_boxed.tolist(), numbers.tolist(), strict=True)]
