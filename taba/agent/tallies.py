"""What this host recorded since its Agent began, by Tab: sums for whoever scrapes the Agent. No promise rests on them.

1. Summed is what adds up without a Handler: values of the Types in ADDITIVE. What a drain was given is summed
   in one go and counted once it is published, whatever becomes of it then.
2. A ring's sums are a block of columns beside its directory: what a drain adds is numpy's for all rings at once, and nothing for a ring
   that held nothing. Once a ring is gone its sums are kept by Tab, for so many, some in each turn of the loop.
3. A Tab of which a part was dropped is shown no more: no sum ever falls.
4. A restart is a reset: `since` is the Agent's own start, and every counter says so (`_created`).
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

from taba.agent.arenas import zeros
from taba.agent.native import NATIVE
from taba.agent.reader import Ring
from taba.codes import Floats, Ints
from taba.exposition import Exposed, Point, gauge, is_tabas
from taba.handlers.lookup import MAX_TIMES
from taba.matching import Matcher
from taba.meanings import unit_of
from taba.names import parse_name
from taba.series import (
    ADDITIVE,
    COUNT,
    COUNTER,
    DISTRIBUTION,
    EVENTS,
    FIGURES,
    GAUGE,
    NET,
    SUM,
    SUMMARY,
    TOTAL,
    family_of,
    labels_shown,
    plain,
    word_of,
)

MAX_GONE = 50_000  # Tabs of rings that are gone, some 15 MB
MAX_CUT = 200_000  # Tabs that are known to lack a part, some 15 MB; with more, only those that were kept are known to be whole
SLICE_TABS = 500  # looked at between two looks at the time, some 2 ms
LOT_POINTS = 1000  # of one family, written between two looks at the time, some 10 ms
SORTED_TABS = 2000  # put in order between two looks at the time, some 2 ms
MOVED_PART = 64  # of what waits to be kept this part is at each tick, and SLICE_TABS at least: however many rings end at once …
MOST_MOVED = 8 * SLICE_TABS  # … and so many at the most, some 8 ms
SPARE_PLACES = 4096  # of columns, that no ring needs and that are left
FEW_PLACES = 1 << 16  # room for which columns are copied as they grow …
MANY_PLACES = 1 << 22  # … and so much is reserved beyond: 96 MiB, of which the host gives what is used; a copy of half would take 0.1 s
CLOSED_PLACES = 1 << 15  # that are copied at each tick where columns close their ranks: 3 ms
CREATED = "_created"

Key: TypeAlias = tuple[str, str]  # a Tab's name and Type
_Part: TypeAlias = tuple[Sequence[Any], Floats, "Ints | None"]  # a directory, its columns, the places in them; None: wherever something is
_Item = TypeVar("_Item")


class Tally(NamedTuple):
    """What a drain adds: of the Tabs at `places` of the directories of the rings that `of` numbers how many values, what they sum up to,
    and the least of each; None where none is negative. `beyond`: how many values are not among them, for with them a sum were beyond all
    floats.
    """

    rings: Sequence[Ring]
    of: Ints
    places: Ints
    counts: Ints
    totals: Floats
    least: Floats | None
    beyond: int = 0


class Sorted(NamedTuple):
    """The values of a drain, Tab by Tab: `counts` of them at each of `places` of the rings that `of` numbers, no place twice. Of `values`
    those that `is_boxed` are in `boxed`; both are None where all are floats."""

    rings: Sequence[Ring]
    of: Ints
    places: Ints
    counts: Ints
    values: Floats
    boxed: Any = None
    is_boxed: Any = None


class _Tab(NamedTuple):
    events: float
    total: float
    least: float
    unit: str


class _Ended(NamedTuple):
    """What is left of a ring that is gone: its directory, its columns, and the places in them that are still to be kept."""

    directory: Sequence[Any]
    sums: Floats
    places: Ints


def tally_of(found: Sorted, native: Any = NATIVE) -> Tally:
    """What these values come to. `native`: what sums up plain ones, if anything."""
    rings, of, places, counts, values, boxed, is_boxed = found
    if is_boxed is None and native is not None and (summed := _summed(counts, values, native)) is not None:
        return Tally(rings, of, places, counts, *summed)
    starts = np.cumsum(counts) - counts
    good = None if is_boxed is None else ~is_boxed
    with np.errstate(over="ignore", invalid="ignore"):
        totals = np.add.reduceat(values if good is None else np.where(good, values, 0.0), starts)
        if not np.isfinite(totals).all():  # NaN and infinities are recorded nowhere
            finite = np.isfinite(values)
            good = finite if good is None else good & finite
            totals = np.add.reduceat(np.where(good, values, 0.0), starts)
    numbers = values if good is None else np.where(good, values, 0.0)
    least = np.minimum.reduceat(numbers, starts) if numbers.min() < 0 else None
    counted = counts if good is None else np.add.reduceat(good, starts, dtype=np.int64)
    beyond = 0
    if is_boxed is not None:
        counted, totals = np.array(counted), np.array(totals)
        least = np.zeros(len(starts)) if least is None else least
        for at in np.flatnonzero(np.add.reduceat(is_boxed, starts, dtype=np.int64)).tolist():
            tab = rings[of[at]].directory[places[at]]
            if tab is None or tab.type not in ADDITIVE:
                continue
            here = slice(starts[at], starts[at] + counts[at])
            for value in boxed[here][is_boxed[here]]:
                times, amount = _amount(value)
                total = float(totals[at]) + times * amount
                if not math.isfinite(total):
                    beyond += times
                    continue
                counted[at] += times
                totals[at] = total
                least[at] = min(least[at], amount)
    return Tally(rings, of, places, counted, totals, least, beyond)


def _summed(counts: Ints, values: Floats, native: Any) -> tuple[Floats, Floats | None] | None:
    """What the values of each Tab sum up to, and the least of them where one is negative; None where a value or a sum is not finite."""
    totals, least = np.empty((2, len(counts)))
    if not native.sum_up(np.concatenate(([0], np.cumsum(counts))), values, totals, least):
        return None
    return totals, least if least.min() < 0 else None


def _amount(value: Any) -> tuple[int, float]:
    """(how many times, the value) of one that is no float: a whole number, or a pair; (0, 0) for what its Handler refuses."""
    times: Any = 1
    if isinstance(value, (list, tuple)) and len(value) == 2:
        value, times = value
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    is_whole = isinstance(times, (int, float)) and not isinstance(times, bool) and 1 <= times <= MAX_TIMES and times == int(times)
    if not (is_number and is_whole):
        return 0, 0.0
    try:
        amount = float(value)
    except OverflowError:
        return 0, 0.0
    return (int(times), amount) if math.isfinite(amount) else (0, 0.0)


class Tallies:
    """The sums. `since`: Unix seconds."""

    def __init__(self, since: float = 0.0):
        self.since = since
        self.left_out = 0
        """Values of Tabs for which there was no room, of rings that are gone."""
        self.beyond = 0
        """Values with which a sum were beyond all floats: they are in none."""
        self.is_asked = False
        """Whether anybody asked for sums."""
        self._sums: Floats = np.zeros((3, 0))  # counts, totals and least of all rings; never moved within, so that who reads them may wait
        self._blocks: dict[Ring, tuple[int, int]] = {}  # where in them each ring's begin, and how many
        self._used = 0
        self._closing: _Closing | None = None
        self._ended: deque[_Ended] = deque()
        self._waiting = 0  # places of those
        self._gone: dict[Key, _Tab] = {}
        self._cut: set[int] = set()  # hashes of the Tabs that lack a part

    @property
    def kept(self) -> int:
        """How many Tabs of rings that are gone are kept."""
        return len(self._gone)

    @property
    def cut(self) -> int:
        """How many Tabs are shown no more, for a part of them had no room; from MAX_CUT on there are others."""
        return len(self._cut)

    def add(self, drained: Iterable[Sorted | Tally]) -> None:
        """What these drains gave was published."""
        for one in drained:
            self._sum(one if isinstance(one, Tally) else tally_of(one))

    def _start(self, ring: Ring) -> int:
        """Where the columns of a ring begin, which have room for all of its directory."""
        start, room = self._blocks.get(ring, (0, -1))
        size = len(ring.directory)
        if size <= room:
            return start
        begin, room = self._used, max(size, 2 * room)
        self._used += room
        if self._used > self._sums.shape[1]:
            self._sums = _grown(self._sums, begin, self._used)
        if ring in self._blocks:
            length = self._blocks[ring][1]
            self._sums[:, begin : begin + length] = self._sums[:, start : start + length]
        self._blocks[ring] = begin, room
        if self._closing is not None:
            self._closing.take(ring, room)
        return begin

    def _sum(self, tally: Tally) -> None:
        """Add it to the columns."""
        all_here = where = np.array([self._start(ring) for ring in tally.rings])[tally.of] + tally.places
        counts, totals, least = self._sums
        counted, low = tally.counts, tally.least
        with np.errstate(over="ignore", invalid="ignore"):
            summed = totals[where] + tally.totals
        good = np.isfinite(summed)
        if not good.all():  # for ever, if it were taken
            self.beyond += sum(int(counted[at]) for at in _additive(tally, np.flatnonzero(~good)))
            where, counted, summed, low = where[good], counted[good], summed[good], None if low is None else low[good]
        self.beyond += tally.beyond
        counts[where] += counted
        totals[where] = summed
        if low is not None:
            least[where] = np.minimum(least[where], low)
        if self._closing is not None:  # also where it was copied already
            starts = np.array([self._closing.blocks[ring][0] for ring in tally.rings])
            self._closing.sums[:, starts[tally.of] + tally.places] = self._sums[:, all_here]

    def keep(self, rings: Iterable[Ring]) -> None:
        """`rings` are open; of all others the sums are kept by Tab: `move_some` sees to that."""
        if self._blocks.keys() <= (there := set(rings)):
            return
        for ring in [ring for ring in self._blocks if ring not in there]:
            start, room = self._blocks.pop(ring)
            if self._closing is not None:
                self._closing.let_go(ring)
            sums = self._sums[:, start : start + room].copy()
            places = np.flatnonzero(sums[0])
            if len(places):
                self._ended.append(_Ended(ring.directory, sums, places))
                self._waiting += len(places)
        if self._closing is None and self._used > 2 * sum(room for _, room in self._blocks.values()) + SPARE_PLACES:
            self._closing = _Closing(self._blocks)
            if self._closing.used <= FEW_PLACES:
                self._close_ranks(FEW_PLACES)

    def _close_ranks(self, most: int) -> None:
        """Give back what the columns have room for and no ring needs, once all of these are copied; so many now."""
        closing = self._closing
        if closing is not None and closing.copy(self._sums, self._blocks, most):
            self._sums, self._blocks, self._used, self._closing = closing.sums, closing.blocks, closing.used, None

    def move_some(self) -> None:
        """Keep by Tab some of what waits for that, and close ranks: to be called at each tick."""
        self._close_ranks(CLOSED_PLACES)
        most = min(MOST_MOVED, max(SLICE_TABS, self._waiting // MOVED_PART))
        while self._ended and most:
            ended = self._ended.popleft()
            here, rest = ended.places[:most], ended.places[most:]
            for key, tab in _tabs_of(ended.directory, ended.sums, here):
                if key in self._gone or len(self._gone) < MAX_GONE:
                    self._gone[key] = _joined(self._gone.get(key), tab)
                else:
                    self.left_out += int(tab.events)
                    if len(self._cut) < MAX_CUT:
                        self._cut.add(hash(key))
            self._waiting -= len(here)
            most -= len(here)
            if len(rest):
                self._ended.appendleft(ended._replace(places=rest))

    def _is_whole(self, key: Key) -> bool:
        """Whether no part of a Tab was dropped; of some nobody knows, once there were too many."""
        return key in self._gone or (len(self._cut) < MAX_CUT and hash(key) not in self._cut)

    async def families(self, matches: Matcher, breathe: Callable[[], Awaitable[None]]) -> list[Exposed]:
        """The families of all Tabs whose whole name matches; of two with one series the first in canonical order stays."""
        self.is_asked = True
        found: dict[Key, _Tab] = {}
        for place, (key, tab) in enumerate(self._all()):
            if place % SLICE_TABS == 0:
                await breathe()
            if matches(key[0]):
                found[key] = _joined(found.get(key), tab)
        families: dict[str, Exposed] = {}
        points: dict[str, list[Point]] = {}
        taken: set[Any] = set()
        left_out = 0
        async for key, tab in _in_order(found.items(), breathe):
            name, type = key
            if not self._is_whole(key):
                left_out += 1
                continue
            base, labels = parse_name(name)
            shown = labels_shown(labels)
            for exposed in _exposed(base, shown, type, tab, self.since):
                series = exposed.name, tuple(sorted(shown.items()))
                known = families.setdefault(exposed.name, exposed)
                if series in taken or known.kind != exposed.kind or is_tabas(exposed.name):
                    left_out += 1
                    continue
                taken.add(series)
                points.setdefault(exposed.name, []).extend(exposed.points)
        help = "Series of this scrape that have the name and labels of another or a name of Taba's own, and Tabs that lack a part."
        answer = [families[name]._replace(points=its) async for name, its in _in_order(points.items(), breathe)]
        return [*answer, gauge("taba_scrape_left_out", help, left_out)]

    def _all(self) -> Iterable[tuple[Key, _Tab]]:
        """All that is summed, as of now: who goes through it may wait in between, whatever ends meanwhile, for that is in it once."""
        parts: list[_Part] = [(one.directory, one.sums, one.places) for one in self._ended]
        parts += [(ring.directory, self._sums[:, start : start + room], None) for ring, (start, room) in self._blocks.items()]
        return _listed([*self._gone.items()], parts)


class _Closing:
    """Columns without gaps that are to take the place of others, with which they are filled from tick to tick: until then both are added
    to. `blocks` as those have them."""

    def __init__(self, blocks: Mapping[Ring, tuple[int, int]]):
        self.blocks: dict[Ring, tuple[int, int]] = {}
        self.used = 0
        self._left: dict[Ring, int] = {}  # how many places of each are copied, where not all are
        self.sums: Floats = _grown(np.zeros((3, 0)), 0, sum(room for _, room in blocks.values()))
        for ring, (_, room) in blocks.items():
            self.take(ring, room)

    def take(self, ring: Ring, room: int) -> None:
        """Have a block of so many places for this ring, instead of the one that it may have."""
        begin, self.used = self.used, self.used + room
        if self.used > self.sums.shape[1]:
            self.sums = _grown(self.sums, begin, self.used)
        self.blocks[ring] = begin, room
        self._left[ring] = 0

    def let_go(self, ring: Ring) -> None:
        """This ring is gone."""
        self.blocks.pop(ring)
        self._left.pop(ring, None)

    def copy(self, sums: Floats, blocks: Mapping[Ring, tuple[int, int]], most: int) -> bool:
        """Copy so many places; whether all are."""
        while self._left and most > 0:
            ring, done = next(iter(self._left.items()))
            start, room = blocks[ring]
            begin, count = self.blocks[ring][0], min(most, room - done)
            self.sums[:, begin + done : begin + done + count] = sums[:, start + done : start + done + count]
            most -= count
            self._left[ring] = done + count
            if done + count == room:
                del self._left[ring]
        return not self._left


def _additive(tally: Tally, bad: Ints) -> Iterable[int]:
    """Of the Tabs of this tally those of `bad` whose Type adds up."""
    for at in bad.tolist():
        tab = tally.rings[tally.of[at]].directory[tally.places[at]]
        if tab is not None and tab.type in ADDITIVE:
            yield at


def _listed(gone: list[tuple[Key, _Tab]], parts: Iterable[_Part]) -> Iterable[tuple[Key, _Tab]]:
    yield from gone
    for directory, sums, places in parts:
        yield from _tabs_of(directory, sums, np.flatnonzero(sums[0]) if places is None else places)


async def _in_order(items: Iterable[_Item], breathe: Callable[[], Awaitable[None]]) -> AsyncIterator[_Item]:
    """`items` sorted, no more than some of them between two looks at the time."""
    left, runs = iter(items), []
    while run := sorted(islice(left, SORTED_TABS)):  # type: ignore[type-var]
        runs.append(run)
        await breathe()
    for place, item in enumerate(heapq.merge(*runs)):  # type: ignore[type-var]
        if place % SLICE_TABS == 0:
            await breathe()
        yield item


def lots_of(family: Exposed, is_grouped: bool) -> Iterable[tuple[Exposed, bool]]:
    """A family in lots of some 10 ms to write, each with whether it is more of the one before. `is_grouped`: in the format that has no
    `_created` of a counter, which is a gauge there, all lines of one name in a row.
    """
    parts = [family]
    if is_grouped and any(point.name.endswith(CREATED) for point in family.points):
        since = [point for point in family.points if point.name.endswith(CREATED)]
        parts = [
            family._replace(points=[point for point in family.points if not point.name.endswith(CREATED)]),
            Exposed(family.name.removesuffix("_total") + CREATED, GAUGE, family.help, since),
        ]
    for part in parts:
        for start in range(0, max(1, len(part.points)), LOT_POINTS):
            yield part._replace(points=part.points[start : start + LOT_POINTS]), start > 0


def _grown(columns: Floats, used: int, needed: int) -> Floats:
    """Columns with room for `needed` places, with the first `used` as they are."""
    room = max(needed, 2 * columns.shape[1])
    if room > FEW_PLACES:
        room = max(MANY_PLACES, room)
    grown: Floats = zeros(len(columns), room) if room > FEW_PLACES else np.zeros((len(columns), room))
    grown[:, :used] = columns[:, :used]
    return grown


def _tabs_of(directory: Sequence[Any], sums: Floats, places: Ints) -> Iterable[tuple[Key, _Tab]]:
    """The Tabs at these places of a ring's directory, of Types that add up."""
    counts, totals, lows = sums
    for place in places.tolist():
        tab = directory[place] if place < len(directory) else None
        if tab is not None and tab.type in ADDITIVE:
            unit = tab.meaning.unit if tab.meaning is not None else ""
            yield (tab.name, tab.type), _Tab(float(counts[place]), float(totals[place]), float(lows[place]), unit)


def _joined(one: _Tab | None, other: _Tab) -> _Tab:
    if one is None:
        return other
    return _Tab(one.events + other.events, one.total + other.total, min(one.least, other.least), one.unit or other.unit)


def _exposed(base: str, labels: dict[str, str], type: str, tab: _Tab, since: float) -> Iterable[Exposed]:
    """What a Tab is shown as, each family with its own points."""
    unit = tab.unit or unit_of(base)
    for figure in ADDITIVE[type]:
        if figure == TOTAL and tab.least < 0:
            figure = NET
        about = FIGURES[figure]
        name = plain(family_of(base, unit, figure))
        word = word_of(unit) if about.has_unit else ""
        if figure == DISTRIBUTION:
            points = [Point(name + COUNT, labels, tab.events), Point(name + SUM, labels, tab.total), Point(name + CREATED, labels, since)]
            yield Exposed(name, SUMMARY, about.help, points, word)
        elif about.kind == COUNTER:
            value = tab.events if figure == EVENTS else tab.total
            created = name.removesuffix("_total") + CREATED
            yield Exposed(name, COUNTER, about.help, [Point(name, labels, value), Point(created, labels, since)], word)
        else:
            yield Exposed(name, GAUGE, about.help, [Point(name, labels, tab.total)], word)
