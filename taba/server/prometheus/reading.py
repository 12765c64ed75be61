"""What a selector comes to: the States of the Tabs that it means, as series over the steps of a question.

1. There is one curve; every function over a range is a difference on it. A window that reaches before the known day has no value, and
   neither has what lies in the future.
2. Without a matcher on `client` a series is over all Clients; with one, each Client has its own. What is each Client's has only those.
3. Of a Type without a past there is a sample where a step is within FRESH_SECONDS of now; elsewhere there is none, and a sentence says so.
4. `sum` right above a selector is done while reading: a hundred Tabs' distributions are never held side by side to be added up.
5. States are read lot by lot, and others have their turns between lots.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from taba.codes import Floats, Ints, codes_of, estimates_of
from taba.history import curves, grown, heat_map, number
from taba.names import ALIVE_TAB, ALIVE_TYPE
from taba.series import (
    BUCKET,
    COUNT,
    DEFAULT_BOUNDS,
    DISTINCT,
    DISTRIBUTION,
    EVENTS,
    FIGURES,
    HELD,
    HISTOGRAM,
    MAX_TOP,
    NET,
    SUM,
    TEXT,
    TOP,
    TOTAL,
    VALUE,
    bound_text,
    number_text,
    plain,
)
from taba.server.ask.filters import MAX_PATTERN, Filter
from taba.server.ask.query import SLICE_STATES, Query, Unanswered
from taba.server.prometheus.catalogue import Catalogue, Series, is_tabas
from taba.server.prometheus.syntax import EQUAL, MATCHES, UNEQUAL, UNMATCHED, Matcher
from taba.server.prometheus.vectors import NAME, Bools, Labels, Refused, Spread, Vector, grouped, key_of, without

FRESH_SECONDS = 300.0  # as far from now a value that has no past is shown, as Prometheus' look-back
NOW_SECONDS = 1.0  # as near to now is now: a question is under way, and so are events
IRATE_SECONDS = 15.0  # of which irate is the slope: the finest slots of a PercentileGroup
MAX_VALUES = 4_000_000  # of one question's selectors, series times steps, and bins where there are distributions: some 36 MB
ROW_VALUES = 50  # as which a series counts at least, for its labels: so there are at most 80,000
TOO_MANY = f"more than {MAX_VALUES} values of one question: take a longer step, fewer series, or sum() right around a selector"
STEPS_AT_ONCE = 250  # of distributions between two looks at the time; the slots of a day and 300 bins make that some 20 ms
LOT_VALUES = 100_000  # series times steps that are made at a time, some 10 ms
LOT_HEAT = 4_000  # … of distributions, of some 300 bins each
MAX_WARNINGS = 10  # Tabs that are named because they cannot be read
SLICE_LABELS = 500  # series whose labels are looked at between two looks at the time

NOTES = "taba_note"  # the name under which notes are asked for, as annotations

# what a Handler of somebody's own says it shows, its Projections need not have
BAD_PROJECTION = (AttributeError, KeyError, TypeError, ValueError)

RANGED = ("rate", "irate", "increase", "delta")
EXTREMES = ("avg_over_time", "max_over_time", "min_over_time")  # of which a sum is not that of all values together
OVER_TIME = ("sum_over_time", "count_over_time", "avg_over_time", "min_over_time", "max_over_time", "last_over_time")


class Leaf(NamedTuple):
    """A selector and what is right above it: a function over its range; `sums`: a sum of that, `by` these labels or `without` those."""

    matchers: tuple[Matcher, ...]
    offset: float
    function: str | None
    range: float
    sums: bool = False
    by: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    keeps_first: bool = False  # of several series with the same labels, instead of refusing the question


class Told:
    """What an answer says beside its figures."""

    def __init__(self) -> None:
        self.infos: dict[str, None] = {}
        self.warnings: dict[str, None] = {}
        self.unread = 0
        self.kinds: dict[str, str] = {}
        """Of the names of samples, as their Handlers say it."""

    def info(self, sentence: str) -> None:
        """Say so, once."""
        self.infos.setdefault(sentence)

    def warn(self, sentence: str) -> None:
        """Say so, once."""
        self.warnings.setdefault(sentence)

    def leave_out(self, tab: str, why: str) -> None:
        """Say that something of a Tab is left out; of many only of the first."""
        self.unread += 1
        if self.unread <= MAX_WARNINGS:
            self.warn(f"{tab}: {why}")
        elif self.unread == MAX_WARNINGS + 1:
            self.warn("… and more that cannot be read: /v1/projections names each")


class Room:
    """How much one question may hold: MAX_VALUES of all its selectors together."""

    def __init__(self) -> None:
        self._taken = 0

    def take(self, values: int) -> None:
        """So many more. Raises Refused."""
        self._taken += values
        if self._taken > MAX_VALUES:
            raise Refused(TOO_MANY)


class _Rows:
    """Series as they come; with `leaf.sums`, those of one group as one."""

    def __init__(self, leaf: Leaf, steps: int, room: Room):
        self._leaf, self._steps, self._room = leaf, steps, room
        self.doubles = 0
        """Series that another one's labels kept out."""
        self._rows: dict[Any, list[Any]] = {}  # of numbers: labels, values, there
        self._spreads: dict[Any, list[Any]] = {}  # labels, [(codes, heat)], count, total, there

    def _place(self, labels: Labels) -> tuple[Any, Labels]:
        if self._leaf.function is not None:
            labels = without(labels, (NAME,))
        if self._leaf.sums:
            labels = grouped(labels, self._leaf.by, self._leaf.without)
        return key_of(labels), labels

    def add(self, labels: Labels, values: Floats, there: Bools) -> None:
        """One series of numbers."""
        key, labels = self._place(labels)
        row = self._rows.get(key)
        if row is None:
            self._room.take(max(self._steps, ROW_VALUES))
            self._rows[key] = [labels, np.where(there, values, 0.0), there]
        elif self._leaf.sums:
            with np.errstate(invalid="ignore", over="ignore"):
                row[1] = row[1] + np.where(there, values, 0.0)
            row[2] = row[2] | there
        else:
            if (row[2] & there).any():
                if self._leaf.keeps_first:
                    self.doubles += 1
                    return
                raise Refused(f"several series have the same labels {dict(key)} once their names are gone: ask for one name at a time")
            row[1], row[2] = np.where(there, values, row[1]), row[2] | there

    def add_spread(self, labels: Labels, codes: Ints, heat: Floats, count: Floats, total: Floats, there: Bools) -> None:
        """One series of distributions; `heat` is (steps, codes)."""
        key, labels = self._place(labels)
        used = np.flatnonzero(heat.any(axis=0))
        codes, heat = codes[used], np.where(there[:, None], heat[:, used], 0.0)
        count, total = np.where(there, count, 0.0), np.where(there, total, 0.0)
        row = self._spreads.get(key)
        if row is None:
            self._room.take(max(heat.size, ROW_VALUES))
            self._spreads[key] = [labels, codes, heat, count, total, there]
            return
        if not self._leaf.sums:
            raise Refused(f"several distributions have the same labels {dict(key)} once their names are gone: ask for one name at a time")
        self._room.take(self._steps * len(np.setdiff1d(codes, row[1])))
        row[1], row[2] = _joined(row[1], row[2], codes, heat)
        row[3], row[4], row[5] = row[3] + count, row[4] + total, row[5] | there

    def vector(self) -> Vector:
        """All of them."""
        if self._rows and self._spreads:
            raise Refused("the selector means numbers and distributions: ask for one of them by its name and labels")
        if not self._spreads:
            rows = list(self._rows.values())
            if not rows:
                return Vector.empty(self._steps)
            return Vector([row[0] for row in rows], np.array([row[1] for row in rows]), np.array([row[2] for row in rows]))
        spreads = list(self._spreads.values())
        codes = np.unique(np.concatenate([row[1] for row in spreads]))
        self._room.take(len(spreads) * self._steps * len(codes))
        heat = np.zeros((len(spreads), self._steps, len(codes)))
        for place, row in enumerate(spreads):
            heat[place][:, np.searchsorted(codes, row[1])] = row[2]
        count, total, there = (np.array([row[at] for row in spreads]) for at in (3, 4, 5))
        return Vector([row[0] for row in spreads], np.zeros_like(count), there, Spread(codes, heat, count, total))


def _joined(codes: Ints, heat: Floats, other: Ints, further: Floats) -> tuple[Ints, Floats]:
    both = np.union1d(codes, other)
    if len(both) > len(codes):
        wide = np.zeros((len(heat), len(both)))
        wide[:, np.searchsorted(both, codes)] = heat
        heat = wide
    heat[:, np.searchsorted(both, other)] += further
    return both, heat


def noted(notes: Iterable[tuple[float, str]], times: Floats, room: Room) -> Vector:
    """Notes as series, one a text: at the step that ends at or after a note's time its time, in milliseconds, as annotations take it.

    Of one time alone the notes of the FRESH_SECONDS before it. Raises Refused.
    """
    step = float(times[1] - times[0]) if len(times) > 1 else FRESH_SECONDS
    found: dict[str, tuple[Floats, Bools]] = {}
    for time, text in sorted(notes):
        at = (times - step < time) & (time <= times)
        if at.any():
            if text not in found:
                room.take(max(len(times), ROW_VALUES))
            values, there = found.get(text, (np.zeros(len(times)), np.zeros(len(times), dtype=np.bool_)))
            found[text] = np.where(at, time * 1000, values), there | at
    if not found:
        return Vector.empty(len(times))
    values, there = (np.array([row[at] for row in found.values()]) for at in (0, 1))
    return Vector([{NAME: NOTES, "text": text} for text in found], values, there.astype(np.bool_))


class Reading:
    """Reads what one question's selectors mean. `times`: of its steps; `bounds`: of buckets, but +Inf."""

    def __init__(self, query: Query, catalogue: Catalogue, times: Floats, now: float, told: Told, bounds: Sequence[float] = DEFAULT_BOUNDS):
        self._query, self._catalogue, self._times, self._now, self._told = query, catalogue, times, now, told
        self._bounds = (*(bound for bound in bounds if bound != math.inf), math.inf)
        self._living: dict[str, bool] | None = None
        self.room = Room()

    async def read(self, leaf: Leaf) -> Vector:
        """The series of a selector. Raises Refused, QueryRefused and StoreUnavailable."""
        return await self.read_chosen(await self.chosen(leaf.matchers), leaf)

    async def read_chosen(self, chosen: Sequence[Series], leaf: Leaf) -> Vector:
        """The series that `chosen` names, of which the leaf's other matchers still tell some apart. Raises as `read` does."""
        rows = _Rows(leaf, len(self._times), self.room)
        wanted = Wanted(self._query, leaf.matchers)
        await wanted.look_at_bounds(self._bounds)
        past: list[Series] = []
        now: list[Series] = []
        for series in chosen:
            (past if self._query.type_has_past(series.type) and series.figure else now).append(series)
        if leaf.function is not None and any(series.figure for series in now) and not past:
            raise Refused(
                f"{leaf.function} of {now[0].name}: Type {now[0].type} keeps no past: it is known as it is now; "
                "long histories are what scrapes /metrics"
            )
        if past:
            await self._read_past(leaf, past, wanted, rows)
        if leaf.function is not None:
            for series in [series for series in now if series.figure or not past][:1]:
                self._told.info(f"{series.name} has no past, and no {leaf.function}")
        elif now:
            await self._read_now(leaf, now, wanted, rows)
        self._told.unread += rows.doubles
        return rows.vector()

    # --- which series ---

    async def chosen(self, matchers: Sequence[Matcher]) -> list[Series]:
        """The series whose names and own labels are meant, as far as names alone tell."""
        names = [matcher for matcher in matchers if matcher.name == NAME]
        found: list[Series] = []
        exact = next((matcher.value for matcher in names if matcher.op == EQUAL), None)
        if exact is not None:
            found = list(self._catalogue.by_name.get(exact, ()))
            found += [series for series in self._catalogue.own if _may_be(series, exact)]
            rest = [matcher for matcher in names if not (matcher.op == EQUAL and matcher.value == exact)]
            for matcher in rest:
                if not (await self._accepted(matcher, [exact])).get(exact, False):
                    return []
        else:
            accepted = set(self._catalogue.by_name)
            for matcher in names:
                verdicts = await self._accepted(matcher, sorted(accepted))
                accepted = {name for name in accepted if verdicts[name]}
            for place, name in enumerate(sorted(accepted)):
                of_name = self._catalogue.by_name[name]
                # the distribution itself is there for whoever names it; whoever looks for names finds its buckets, count and sum
                found += [
                    series for series in of_name if plain(series.name) == name and (series.part or FIGURES[series.figure].kind != HISTOGRAM)
                ]
                if place % SLICE_LABELS == 0:
                    await self._query.turns.breathe()
            found += self._catalogue.own
        for matcher in matchers:
            if matcher.name in (NAME, "client") or not found:
                continue
            values = sorted({series.labels.get(matcher.name, "") for series in found})
            accepts = await self._accepted(matcher, values)
            found = [
                series
                for series in found
                if accepts[series.labels.get(matcher.name, "")] or (matcher.name not in series.labels and _gives(series, matcher.name))
            ]
            await self._query.turns.breathe()
        return found

    async def named(self, chosen: Sequence[Series], matchers: Sequence[Matcher]) -> list[Series]:
        """`chosen`, and where names are asked for, in place of each Tab that shows samples those samples that are meant.

        What these are called only States tell. Raises as `read` does.
        """
        own = [series for series in chosen if not series.figure]
        if not own or all(matcher.name != NAME for matcher in matchers):
            return list(chosen)
        found: dict[Any, Series] = {(series.tab, series.name, series.part): series for series in chosen if series.figure}
        wanted = Wanted(self._query, matchers)
        by_tab = {series.tab: [series] for series in own}
        async for [series], projections in self._projections(by_tab, wanted):
            try:
                samples = await self._figures_now(series, projections, wanted)
            except BAD_PROJECTION as error:
                self._leave_out_bad(series, error)
                continue
            for labels, _ in samples:
                if await self._is_meant(matchers, labels):
                    rest = without(labels, (NAME, "client"))
                    found[series.tab, labels[NAME], key_of(rest)] = series._replace(name=labels[NAME], labels=rest)
        return list(found.values())

    async def _accepted(self, matcher: Matcher, values: Sequence[str]) -> dict[str, bool]:
        return await accepted(self._query, matcher, values)

    # --- the past ---

    async def _read_past(self, leaf: Leaf, chosen: Sequence[Series], wanted: Wanted, rows: _Rows) -> None:
        by_tab: dict[str, list[Series]] = {}
        for series in chosen:
            by_tab.setdefault(series.tab, []).append(series)
        types = {series.tab: series.type for series in chosen}
        is_spread = any(series.figure == DISTRIBUTION and series.part in ("", BUCKET) for series in chosen)
        steps = max(1, len(self._times))
        most = max(1, min(SLICE_STATES, (LOT_HEAT if is_spread else LOT_VALUES) // steps))
        async for lot in self._query.lots(sorted(by_tab), types.__getitem__, wanted.filter, most):
            self._leave_out(lot.unread)
            for type, (owners, states) in lot.by_type.items():
                history = await self._query.history(type, states, self._now)
                if isinstance(history, Unanswered):
                    for tab in dict.fromkeys(tab for tab, _ in owners):
                        self._told.leave_out(tab, history.error)
                    continue
                accepts = await wanted.clients([client for _, client in owners])
                keys = [(tab, client if wanted.is_about_clients else "") for tab, client in owners]
                groups, names = number(keys)
                self._say_resolution(leaf, history)
                for place in range(max(len(by_tab[tab]) for tab, _ in names)):
                    # a Tab's first figure that is meant, then its second: mostly all have one and the same
                    figures: dict[tuple[str, str], list[int]] = {}
                    for at, (tab, client) in enumerate(names):
                        if place < len(by_tab[tab]) and (not wanted.is_about_clients or accepts[client]):
                            figures.setdefault((by_tab[tab][place].figure, by_tab[tab][place].part), []).append(at)
                    for (figure, part), some in figures.items():
                        about = [by_tab[names[at][0]][place] for at in some]
                        # States that are not meant count in a group of their own, that nobody looks at
                        renumbered = np.full(len(names), len(some), dtype=np.int64)
                        renumbered[some] = np.arange(len(some))
                        clients = [names[at][1] for at in some]
                        await self._add_past(leaf, history, renumbered[groups], about, clients, figure, part, wanted, rows)
                        await self._query.turns.breathe()

    async def _add_past(
        self,
        leaf: Leaf,
        history: Any,
        groups: Ints,
        about: Sequence[Series],
        clients: Sequence[str],
        figure: str,
        part: str,
        wanted: Wanted,
        rows: _Rows,
    ) -> None:
        labels = [_labels(series, client) for series, client in zip(about, clients, strict=True)]
        kept = range(len(about))
        if figure in (TOTAL, NET):
            negative = _is_negative(history, groups, len(about))
            kept = [at for at in kept if bool(negative[at]) == (figure == NET)]  # type: ignore[assignment]
            if not kept:
                return
        asked = self._times - leaf.offset
        since = asked - leaf.range
        until = asked.copy()
        if len(asked) and abs(asked[-1] - self._now) <= NOW_SECONDS:
            # the slot that is not over would give a part of itself for what was asked a moment ago; of the steps before the last this is
            # true, too, but then the same moment would count in several of them
            until[-1] = max(asked[-1], self._now)
        seconds = {"rate": leaf.range, "irate": min(leaf.range, IRATE_SECONDS)}.get(leaf.function or "")
        lasting = np.ones(len(asked)) if seconds is None else seconds + (until - asked)
        if leaf.function == "irate":
            since = np.maximum(since, asked - IRATE_SECONDS)
        known = (since if leaf.function is not None else until) >= history.since
        known &= until <= self._now + FRESH_SECONDS
        if figure == DISTRIBUTION and part == "":
            await self._add_spreads(leaf, history, groups, labels, since, until, lasting, known, rows)
            return
        columns: list[tuple[Any, Any]] = []
        names: list[Labels] = []
        if part == BUCKET:
            for bound in wanted.bounds:
                columns.append(_below(history, bound))
                names.append({"le": bound_text(bound)})
                await self._query.turns.breathe()
        else:
            ever = history.ever
            columns.append((history.total, ever.total) if figure in (TOTAL, NET) or part == SUM else (history.count, ever.count))
            names.append({})
        if not columns:
            return
        if len(kept) * len(columns) * len(until) > MAX_VALUES:
            raise Refused(TOO_MANY)
        lines = [line / lasting for line in await self._lines(leaf, history, groups, len(about) + 1, since, until, columns, figure)]
        for extra, of_column in zip(names, lines, strict=True):
            for place, at in enumerate(kept):
                rows.add({**labels[at], **extra}, of_column[at], known)
                if place % SLICE_LABELS == SLICE_LABELS - 1:
                    await self._query.turns.breathe()

    async def _lines(
        self, leaf: Leaf, history: Any, groups: Ints, total: int, since: Floats, until: Floats, columns: Sequence[Any], figure: str
    ) -> list[Floats]:
        """By column (groups, steps), some steps at a time."""
        function = leaf.function
        is_least = function == "min_over_time" and figure != NET  # what never falls is least where a range begins, and most where it ends
        is_point = function in (None, "last_over_time") or is_least or (function == "max_over_time" and figure != NET)
        if function in OVER_TIME and not is_point:
            raise Refused(
                f"{function} of a running total has no meaning here, where it has no samples: "
                "use increase or rate, or ask the distribution itself (x, not x_count)"
            )
        width = max(1, 2 * LOT_VALUES // (total * len(columns)))
        found: list[list[Floats]] = []
        for start in range(0, len(until), width):
            some = slice(start, start + width)
            if is_point:
                found.append(curves(history, groups, total, (since if is_least else until)[some], columns))
            else:
                found.append(grown(history, groups, total, since[some], until[some], columns))
            await self._query.turns.breathe()
        return [np.concatenate(parts, axis=1) for parts in zip(*found, strict=True)]

    async def _heat(self, history: Any, groups: Ints, total: int, begins: Floats, ends: Floats) -> tuple[Ints, Floats]:
        """As `heat_map`, some steps at a time. Raises Refused where that would be too much."""
        codes = np.unique(np.asarray(history.codes, dtype=np.int64))
        if (total - 1) * len(begins) * len(codes) > MAX_VALUES:
            raise Refused(TOO_MANY)
        heat = np.zeros((total, len(begins), len(codes)))
        for start in range(0, len(begins), STEPS_AT_ONCE):
            some = slice(start, start + STEPS_AT_ONCE)
            found, part = heat_map(history, groups, total, begins[some], ends[some])
            heat[:, some, np.searchsorted(codes, found)] = part
            await self._query.turns.breathe()
        return codes, heat

    async def _add_spreads(
        self,
        leaf: Leaf,
        history: Any,
        groups: Ints,
        labels: Sequence[Labels],
        since: Floats,
        until: Floats,
        lasting: Floats,
        known: Bools,
        rows: _Rows,
    ) -> None:
        if history.codes is None or history.ever.codes is None:
            raise Refused("a Type that says it shows distributions has a history without bins")
        merged = groups
        total = len(labels)
        if leaf.sums and leaf.function not in EXTREMES:
            # what adds up is one group from the start; a greatest or an average of each Tab is none of all their values
            numbers, found = number(key_of(grouped(of_one, leaf.by, leaf.without)) for of_one in labels)
            table = np.append(numbers, len(found))
            merged, labels = table[groups], [dict(key) for key in found]
            total = len(found)
        ever = history.ever
        columns = [(history.count, ever.count), (history.total, ever.total)]
        function = leaf.function
        if function is None:
            count, amount = curves(history, merged, total + 1, until, columns)
            codes, after = await self._heat(history, merged, total + 1, np.maximum(until, history.since), np.full(len(until), 1e300))
            codes, heat = _ever_less(ever, merged, total + 1, codes, after)
        elif function in RANGED or (function in OVER_TIME and function != "last_over_time"):
            count, amount = grown(history, merged, total + 1, since, until, columns)
            codes, heat = await self._heat(history, merged, total + 1, since, until)
        else:
            raise Refused(f"{function} of a distribution: ask for x as it is, or for its rate or increase")
        if function in OVER_TIME:
            with np.errstate(all="ignore"):
                for at, of_one in enumerate(labels):
                    values, filled = _figure_of(function or "", codes, heat[at], count[at], amount[at])
                    rows.add(of_one, values, known & filled)
            return
        for at, of_one in enumerate(labels):
            rows.add_spread(of_one, codes, heat[at] / lasting[:, None], count[at] / lasting, amount[at] / lasting, known)

    def _say_resolution(self, leaf: Leaf, history: Any) -> None:
        if leaf.function is None or not len(history.start) or not len(self._times):
            return
        start, end = np.asarray(history.start, dtype=np.float64), np.asarray(history.end, dtype=np.float64)
        first, last = self._times[0] - leaf.offset - leaf.range, self._times[-1] - leaf.offset
        widths = (end - start)[(end > first) & (start < last)]
        window = IRATE_SECONDS if leaf.function == "irate" else leaf.range
        if len(widths) and widths.max() > window:
            width = number_text(float(widths.max()))
            self._told.info(f"resolution {width} s: what is older is known by wider slots, and shown as their average")

    # --- what has no past ---

    async def _read_now(self, leaf: Leaf, chosen: Sequence[Series], wanted: Wanted, rows: _Rows) -> None:
        fresh = np.abs(self._times - leaf.offset - self._now) <= FRESH_SECONDS
        if not fresh.all():
            self._told.info(f"{chosen[0].name} is known as it is now: there is none of it more than {FRESH_SECONDS:.0f} s from now")
        if not fresh.any():
            return
        by_tab: dict[str, list[Series]] = {}
        for series in chosen:
            by_tab.setdefault(series.tab, []).append(series)
        async for of_tab, projections in self._projections(by_tab, wanted):
            for series in of_tab:
                try:
                    await self._add_now(leaf, series, projections, wanted, fresh, rows)
                except Refused:
                    raise
                except BAD_PROJECTION as error:
                    self._leave_out_bad(series, error)

    async def _projections(
        self, by_tab: Mapping[str, Sequence[Series]], wanted: Wanted
    ) -> AsyncIterator[tuple[Sequence[Series], dict[str, Any]]]:
        """(its series, its Projections by Client that is meant) of each Tab."""
        async for lot in self._query.lots(sorted(by_tab), lambda tab: by_tab[tab][0].type, wanted.filter, SLICE_STATES):
            self._leave_out(lot.unread)
            for type, (owners, states) in lot.by_type.items():
                accepts = await wanted.clients([client for _, client in owners])
                projections: dict[str, dict[str, Any]] = {}
                for (tab, client), projection in zip(owners, await self._query.project(type, states), strict=True):
                    if isinstance(projection, Unanswered):
                        self._told.leave_out(tab, projection.error)
                    elif not wanted.is_about_clients or accepts[client]:
                        projections.setdefault(tab, {})[client] = projection
                for tab, of_tab in projections.items():
                    yield by_tab[tab], of_tab
                    await self._query.turns.breathe()

    def _leave_out_bad(self, series: Series, error: Exception) -> None:
        why = f"{series.figure or 'samples'} of its Projection: {error.__class__.__name__}: {error}"[:200]
        self._told.leave_out(series.tab, why)

    async def _add_now(self, leaf: Leaf, series: Series, projections: Mapping[str, Any], wanted: Wanted, fresh: Bools, rows: _Rows) -> None:
        if series.figure == DISTRIBUTION and not series.part:
            await self._add_spreads_now(series, projections, wanted, fresh, rows)
            return
        # what States tell beside names
        told = [matcher for matcher in leaf.matchers if not series.figure or (series.figure in (TEXT, TOP) and matcher.name == "value")]
        for labels, value in await self._figures_now(series, projections, wanted):
            if await self._is_meant(told, labels):
                rows.add(labels, np.full(len(fresh), value), fresh)

    async def _pieces(self, series: Series, projections: Mapping[str, Any], by_client: bool) -> Mapping[str, Any]:
        """The Projections by Client, or "" and what they come to together; nothing where that cannot be."""
        if by_client:
            return projections
        if len(projections) == 1:
            return {"": next(iter(projections.values()))}
        aggregate = await self._query.aggregate(series.type, list(projections.values()))
        if isinstance(aggregate, Unanswered):
            self._told.leave_out(series.tab, aggregate.error)
            return {}
        return {"": aggregate}

    async def _add_spreads_now(self, series: Series, projections: Mapping[str, Any], wanted: Wanted, fresh: Bools, rows: _Rows) -> None:
        for client, projection in (await self._pieces(series, projections, wanted.is_about_clients)).items():
            pairs = np.asarray(list(projection["_bins"]), dtype=np.int64).reshape(-1, 2)
            codes, places = np.unique(pairs[:, 0], return_inverse=True)
            heat = np.tile(np.bincount(places, weights=pairs[:, 1].astype(np.float64), minlength=len(codes)), (len(fresh), 1)).astype(
                np.float64
            )
            count, total = (np.full(len(fresh), float(projection[name])) for name in ("count", "total"))
            rows.add_spread(_labels(series, client), codes.astype(np.int64), heat, count, total, fresh)

    async def _figures_now(self, series: Series, projections: Mapping[str, Any], wanted: Wanted) -> list[tuple[Labels, float]]:
        """(labels, value) of a Tab's series that has no past."""
        by_client = series.figure != "" and FIGURES[series.figure].by_client
        pieces = await self._pieces(series, projections, by_client or wanted.is_about_clients)
        found: list[tuple[Labels, float]] = []
        living = await self._who_lives() if by_client else {}
        for client, projection in pieces.items():
            labels = _labels(series, client)
            if by_client:
                if wanted.refuses_each or not _is_shown(projection, living.get(client), self._now, series.figure):
                    continue
                value = projection["value"]
                is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
                if is_number and series.figure != TEXT:
                    found.append((labels, float(value)))
                elif not is_number and series.figure == TEXT:
                    found.append(({**labels, "value": _text_of(value)}, 1.0))
                continue
            if not series.figure:
                [samples] = await self._query.samples(series.type, [projection])
                if isinstance(samples, Unanswered):
                    self._told.leave_out(series.tab, samples.error)
                    continue
                for suffix, extra, value, kind in samples:
                    name = plain(series.name + suffix)
                    if is_tabas(name):
                        self._told.leave_out(series.tab, f"it shows {name}, which is a name of Taba's own")
                        continue
                    self._told.kinds[name] = kind
                    found.append(({**labels, **extra, NAME: name}, value))
                continue
            found += [({**labels, **extra}, value) for extra, value in _now_of(series, projection, wanted.bounds)]
        return found

    async def _is_meant(self, matchers: Sequence[Matcher], labels: Labels) -> bool:
        for matcher in matchers:
            value = labels.get(matcher.name, "")
            if matcher.name == NAME and matcher.op == EQUAL:
                matcher = matcher._replace(value=plain(matcher.value))  # asked for as it is, shown plain
            if matcher.name != "client" and not (await self._accepted(matcher, [value]))[value]:
                return False
        return True

    async def _who_lives(self) -> dict[str, bool]:
        """By Client whether it lives, of those of which Agents say so."""
        if self._living is None:
            self._living = {}
            async for lot in self._query.lots([ALIVE_TAB], lambda _: ALIVE_TYPE, Filter(), SLICE_STATES):
                for owners, states in lot.by_type.values():
                    for (_, client), projection in zip(owners, await self._query.project(ALIVE_TYPE, states), strict=True):
                        if isinstance(projection, dict) and projection["value"] is not None:
                            self._living[client] = bool(projection["value"])
        return self._living

    def _leave_out(self, unread: Mapping[str, Mapping[str, Any]]) -> None:
        for tab, by_client in unread.items():
            for why in by_client.values():
                self._told.leave_out(tab, why.error)


class Wanted:
    """What matchers say of Clients, bounds and values, which no name tells."""

    def __init__(self, query: Query, matchers: Sequence[Matcher]):
        self._query, self._matchers = query, matchers
        about = [matcher for matcher in matchers if matcher.name == "client"]
        self._of_clients = [matcher for matcher in about if not (matcher.op == EQUAL and not matcher.value)]
        self.refuses_each = len(about) > len(self._of_clients)
        """client="" asks for what is no Client's."""
        self.is_about_clients = bool(self._of_clients)
        self.bounds: Sequence[float] = ()
        """Of the buckets that are meant."""
        self._verdicts: dict[str, bool] = {}
        exact = [matcher.value for matcher in self._of_clients if matcher.op == EQUAL]
        patterns = [matcher.value for matcher in self._of_clients if matcher.op == MATCHES and len(matcher.value) <= MAX_PATTERN]
        if exact:
            self.filter = Filter(clients=(exact[0],))
        elif patterns:
            self.filter = Filter(client_match=patterns[0])
        else:
            self.filter = Filter()

    async def clients(self, clients: Iterable[str]) -> Mapping[str, bool]:
        """Whether each Client is meant."""
        if not self.is_about_clients:
            return {}
        fresh = sorted({client for client in clients if client not in self._verdicts})
        verdicts = dict.fromkeys(fresh, not self.refuses_each)
        for matcher in self._of_clients:
            for client, is_meant in (await accepted(self._query, matcher, fresh)).items():
                verdicts[client] &= is_meant
        self._verdicts.update(verdicts)
        return self._verdicts

    async def look_at_bounds(self, bounds: Sequence[float]) -> None:
        """Leave out the buckets that are not meant. = and != compare numbers, for 1 and 1.0 are one bound."""
        for matcher in self._matchers:
            if matcher.name != "le":
                continue
            if matcher.op in (MATCHES, UNMATCHED):
                verdicts = await accepted(self._query, matcher, [bound_text(bound) for bound in bounds])
                bounds = [bound for bound in bounds if verdicts[bound_text(bound)]]
            else:
                bounds = [bound for bound in bounds if _is_bound(matcher.value, bound) == (matcher.op == EQUAL)]
        self.bounds = bounds


async def accepted(query: Query, matcher: Matcher, values: Sequence[str]) -> dict[str, bool]:
    """Whether a matcher accepts each of `values`."""
    if matcher.op in (EQUAL, UNEQUAL):
        return {value: (value == matcher.value) == (matcher.op == EQUAL) for value in values}
    if len(matcher.value) > MAX_PATTERN:
        raise Refused(f"{matcher.name}{matcher.op}: takes at most {MAX_PATTERN} characters, not {len(matcher.value)}")
    matching = set(await query.match(matcher.value, values))
    return {value: (value in matching) == (matcher.op == MATCHES) for value in values}


def _gives(series: Series, label: str) -> bool:
    """Whether a series has a label that only States, or bounds, tell."""
    if not series.figure:
        return True
    return label in FIGURES[series.figure].labels and (label != "le" or series.part == BUCKET)


def _may_be(series: Series, name: str) -> bool:
    """Whether a Tab that shows samples may have one of this name: what follows its own name is a suffix."""
    return name.startswith((series.name, plain(series.name)))


def _labels(series: Series, client: str) -> Labels:
    labels = {NAME: plain(series.name), **series.labels}
    return {**labels, "client": client} if client else labels


def _is_negative(history: Any, groups: Ints, total: int) -> Bools:
    """Whether any value of each group was negative, ever."""
    low = np.zeros(total + 1)
    if history.ever.low is not None:
        lows = np.asarray(history.ever.low, dtype=np.float64)
        np.minimum.at(low, groups, np.where(np.isnan(lows), 0.0, lows))
    found: Bools = low < 0
    return found


def _below(history: Any, bound: float) -> tuple[Any, Any]:
    """How many values of each slot, and of each State ever, lie in bins up to the one that holds `bound`."""
    ever = history.ever
    if math.isinf(bound):
        return history.count, ever.count
    if history.codes is None or ever.codes is None:
        raise Refused("a Type that says it shows distributions has a history without bins")
    last = int(codes_of(np.array([bound]))[0])
    found = []
    for figures, length in ((history, len(history.start)), (ever, len(ever.count))):
        bins = np.asarray(figures.bins, dtype=np.int64)
        weights = np.where(np.asarray(figures.codes, dtype=np.int64) <= last, np.asarray(figures.counts, dtype=np.float64), 0.0)
        found.append(np.bincount(np.arange(length).repeat(bins), weights=weights, minlength=length))
    return found[0], found[1]


def _ever_less(ever: Any, groups: Ints, total: int, codes: Ints, after: Floats) -> tuple[Ints, Floats]:
    """(codes, heat): all values ever of each group, less those `after` each step."""
    of = groups.repeat(np.asarray(ever.bins, dtype=np.int64))
    found, which = np.unique(np.asarray(ever.codes, dtype=np.int64), return_inverse=True)
    whole = np.bincount(of * len(found) + which, weights=np.asarray(ever.counts, dtype=np.float64), minlength=total * len(found))
    whole = whole.reshape(total, len(found))
    both = np.union1d(found, codes)
    heat = np.zeros((total, after.shape[1], len(both)))
    heat[:, :, np.searchsorted(both, found)] += whole[:, None, :]
    heat[:, :, np.searchsorted(both, codes)] -= np.nan_to_num(after)
    return both, np.maximum(heat, 0.0)


def _figure_of(function: str, codes: Ints, heat: Floats, count: Floats, total: Floats) -> tuple[Floats, Bools]:
    """A figure of the values recorded in each window, and whether it has one."""
    filled = count > 0
    if function == "count_over_time":
        return count, filled
    if function == "sum_over_time":
        return total, filled
    if function == "avg_over_time":
        return total / count, filled
    if not len(codes):
        return np.full(len(count), np.nan), filled
    has = heat > 0
    at = has.argmax(axis=1) if function == "min_over_time" else len(codes) - 1 - has[:, ::-1].argmax(axis=1)
    return estimates_of(codes)[at], filled & has.any(axis=1)


def _is_shown(projection: Any, lives: bool | None, now: float, figure: str) -> bool:
    """Whether a Client's value is shown: while it lives; where nobody says whether it does, for FRESH_SECONDS, or while it holds."""
    if projection["value"] is None or lives is False:
        return False
    if lives or figure == HELD:
        return True
    time = projection["time"]
    return time is not None and abs(now - time) <= FRESH_SECONDS


def _text_of(value: Any) -> str:
    return value if isinstance(value, str) else number_text(value) if isinstance(value, float) else str(value)


def _now_of(series: Series, projection: Mapping[str, Any], bounds: Sequence[float]) -> list[tuple[Labels, float]]:
    """(labels, value) of a figure of a Projection or Aggregate."""
    figure = series.figure
    if figure in (TOTAL, NET):
        is_negative = projection.get("min") is not None and projection["min"] < 0
        return [({}, float(projection["total"]))] if is_negative == (figure == NET) else []
    if figure == EVENTS or series.part == COUNT:
        return [({}, float(projection["count"]))]
    if series.part == SUM:
        return [({}, float(projection["total"]))]
    if figure == VALUE:
        return [({}, float(projection["value"]))]
    if figure == DISTINCT:
        return [({}, float(projection["distinct"]))]
    if figure == TOP:
        counts: dict[str, float] = {}
        for value, count, _ in projection["top"][:MAX_TOP]:
            text = _text_of(value)
            counts[text] = counts.get(text, 0.0) + count
        return [({"value": text}, count) for text, count in counts.items()]
    if series.part == BUCKET:
        pairs = np.asarray(list(projection["_bins"]), dtype=np.int64).reshape(-1, 2)
        found: list[tuple[Labels, float]] = []
        for bound in bounds:
            last = np.inf if math.isinf(bound) else int(codes_of(np.array([bound]))[0])
            found.append(({"le": bound_text(bound)}, float(pairs[pairs[:, 0] <= last, 1].sum())))
        return found
    raise ValueError(f"no figure {figure!r} of what is known now")


def _is_bound(text: str, bound: float) -> bool:
    try:
        return float(text) == bound
    except ValueError:
        return False
