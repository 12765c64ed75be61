"""What this host recorded since its Agent began, by Tab: sums for whoever scrapes the Agent. No promise rests on them.

1. Summed is what adds up without a Handler: values of the Types in ADDITIVE. What a drain was given is summed
   in one go and counted once it is published, whatever becomes of it then.
2. A ring's sums are columns beside its directory; once it is gone they are kept by Tab, for so many.
3. A restart is a reset: `since` is the Agent's own start, and every counter says so (`_created`).
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taba.agent.reader import Ring
from taba.exposition import Exposed, Point, gauge, is_tabas
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
SLICE_TABS = 500  # looked at between two looks at the time, some 2 ms
CREATED = "_created"

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Tally(NamedTuple):
    """What one reading adds: of the Tabs at `places` of its ring's directory how many values, what they sum up to, and the least of each;
    None where none is negative.
    """

    ring: Ring
    places: Ints
    counts: Ints
    totals: Floats
    least: Floats | None


class Plain(NamedTuple):
    """A reading of floats alone, in the order of its Tabs, which is not summed yet: `counts` of them at each of `places`."""

    ring: Ring
    places: Ints
    counts: Ints
    values: Floats


class _Tab(NamedTuple):
    events: float
    total: float
    least: float
    unit: str


def tally_of(ring: Ring, places: Ints, counts: Ints, values: Floats, boxed: Any, is_boxed: Any) -> Tally:
    """Of a reading in the order of its Tabs: `counts` of them at `places`; `values`, of which those that `is_boxed` are in `boxed`."""
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
    if is_boxed is not None:
        counted, totals = np.array(counted), np.array(totals)
        least = np.zeros(len(starts)) if least is None else least
        for at in np.flatnonzero(np.add.reduceat(is_boxed, starts, dtype=np.int64)).tolist():
            tab = ring.directory[places[at]]
            if tab is None or tab.type not in ADDITIVE:
                continue
            here = slice(starts[at], starts[at] + counts[at])
            for value in boxed[here][is_boxed[here]]:
                times, amount = _amount(value)
                counted[at] += times
                totals[at] += times * amount
                least[at] = min(least[at], amount)
    return Tally(ring, places, counted, totals, least)


def tallies_of(plain: Sequence[Plain]) -> Iterable[Tally]:
    """What readings add, summed in one go: a few numpy operations for as many rings as there are, not for each."""
    if not plain:
        return
    whole = tally_of(
        plain[0].ring,
        np.concatenate([one.places for one in plain]),
        np.concatenate([one.counts for one in plain]),
        np.concatenate([one.values for one in plain]),
        None,
        None,
    )
    start = 0
    for one in plain:
        here = slice(start, start + len(one.places))
        yield Tally(one.ring, one.places, whole.counts[here], whole.totals[here], None if whole.least is None else whole.least[here])
        start = here.stop


def _amount(value: Any) -> tuple[int, float]:
    """(how many times, the value) of one that is no float: a whole number, or a pair; (0, 0) for what its Handler refuses."""
    times: Any = 1
    if isinstance(value, (list, tuple)) and len(value) == 2:
        value, times = value
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or isinstance(times, bool) or not isinstance(times, (int, float)) or not 1 <= times < 2**53 or times != int(times):
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
        """Values of Tabs for which there was no room."""
        self._rings: dict[Ring, list[Any]] = {}  # counts, totals, least
        self._gone: dict[tuple[str, str], _Tab] = {}

    def add(self, readings: Sequence[Tally | Plain]) -> None:
        """These readings were published."""
        tallies = [*(one for one in readings if isinstance(one, Tally)), *tallies_of([one for one in readings if isinstance(one, Plain)])]
        with np.errstate(over="ignore", invalid="ignore"):
            for ring, places, counts, totals, least in tallies:
                columns = self._rings.get(ring)
                size = len(ring.directory)
                if columns is None:
                    columns = self._rings[ring] = [np.zeros(size) for _ in range(3)]
                elif len(columns[0]) < size:
                    for at, column in enumerate(columns):
                        columns[at] = np.concatenate([column, np.zeros(max(size, 2 * len(column)) - len(column))])
                columns[0][places] += counts
                columns[1][places] += totals
                if least is not None:
                    columns[2][places] = np.minimum(columns[2][places], least)

    def keep(self, rings: Iterable[Ring]) -> None:
        """`rings` are open; of all others the sums are kept by Tab."""
        if self._rings.keys() <= (there := set(rings)):
            return
        for ring in [ring for ring in self._rings if ring not in there]:
            for key, tab in _tabs_of(ring, self._rings.pop(ring)):
                if key in self._gone or len(self._gone) < MAX_GONE:
                    self._gone[key] = _joined(self._gone.get(key), tab)
                else:
                    self.left_out += int(tab.events)

    async def families(self, matches: Matcher, breathe: Callable[[], Awaitable[None]]) -> list[Exposed]:
        """The families of all Tabs whose whole name matches; of two with one series the first in canonical order stays."""
        found: dict[tuple[str, str], _Tab] = {}
        place = 0
        async for key, tab in self._all():
            place += 1
            if place % SLICE_TABS == 0:
                await breathe()
            if matches(key[0]):
                found[key] = _joined(found.get(key), tab)
        families: dict[str, Exposed] = {}
        points: dict[str, list[Point]] = {}
        taken: set[Any] = set()
        left_out = 0
        for place, ((name, type), tab) in enumerate(sorted(found.items())):
            if place % SLICE_TABS == 0:
                await breathe()
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
        help = "Series of this scrape that have the name and labels of another, or a name of Taba's own."
        return [
            *(families[name]._replace(points=points[name]) for name in sorted(points)),
            gauge("taba_scrape_left_out", help, left_out),
        ]

    async def _all(self) -> AsyncIterator[tuple[tuple[str, str], _Tab]]:
        for item in list(self._gone.items()):
            yield item
        for ring, columns in list(self._rings.items()):
            for found in _tabs_of(ring, columns):
                yield found


def _tabs_of(ring: Ring, columns: Sequence[Floats]) -> Iterable[tuple[tuple[str, str], _Tab]]:
    """The Tabs of a ring of which something was counted, of Types that add up."""
    counts, totals, lows = columns
    for place in np.flatnonzero(counts).tolist():
        tab = ring.directory[place] if place < len(ring.directory) else None
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
