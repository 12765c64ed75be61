"""Series of Types that keep a past: differences on the one curve of what was recorded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from taba.codes import Floats, Ints, codes_of, estimates_of
from taba.history import curves, grown, heat_map, number, together
from taba.names import bucket_of
from taba.series import BUCKET, DISTRIBUTION, NET, SUM, TOTAL, bound_text, number_text
from taba.server.ask.answers import Unanswered
from taba.server.ask.query import Query
from taba.server.ask.states import SLICE_STATES, Lot
from taba.server.prometheus.catalogue import Series
from taba.server.prometheus.leaf import EXTREMES, FRESH_SECONDS, OVER_TIME, RANGED, Leaf
from taba.server.prometheus.rows import Ceiling, Rows, labels_of
from taba.server.prometheus.told import Told
from taba.server.prometheus.vectors import Bools, Labels, Refused, grouped, key_of
from taba.server.prometheus.wanted import Wanted
from taba.turns import in_order, in_slices

NOW_SECONDS = 1.0  # as near to now is now: a question is under way, and so are events
IRATE_SECONDS = 15.0  # of which irate is the slope: the finest slots of a PercentileGroup
STEPS_AT_ONCE = 250  # of distributions between two looks at the time; the slots of a day and 300 bins make that some 20 ms
LOT_VALUES = 100_000  # series times steps that are made at a time, some 10 ms
LOT_HEAT = 4_000  # … of distributions, of some 300 bins each
LOT_SPREADS = 100  # States whose distributions come to few: to be read takes some 5 ms
SLICE_ROWS = 500  # series whose rows are added between two looks at the time
SLICE_SERIES = 1000  # that are looked at likewise, some milliseconds


class Past:
    """Reads them, over the steps `times` of one question."""

    def __init__(self, query: Query, times: Floats, now: float, told: Told, ceiling: Ceiling):
        self._query, self._times, self._now, self._told, self._ceiling = query, times, now, told, ceiling

    async def read(self, leaf: Leaf, chosen: Sequence[Series], wanted: Wanted, rows: Rows) -> None:
        """What they come to, into `rows`. Raises Refused, QueryRefused and StoreUnavailable."""
        by_tab: dict[str, list[Series]] = {}
        is_spread = False
        async for some in in_slices(chosen, SLICE_SERIES, self._query.turns.breathe):
            for series in some:
                by_tab.setdefault(series.tab, []).append(series)
                is_spread |= series.figure == DISTRIBUTION and series.part in ("", BUCKET)
        steps = max(1, len(self._times))
        is_over_clients = not wanted.is_about_clients
        most = max(1, min(SLICE_STATES, (LOT_HEAT if is_spread else LOT_VALUES) // steps))
        if is_spread and is_over_clients and await self._are_few(leaf, chosen, most):
            most = max(most, LOT_SPREADS)  # however many States come to these few, what is made of them is as large
        if leaf.keeps_first:  # whoever asks sorts what comes: a bucket is read once, not with each lot
            by_bucket: dict[int, list[str]] = {}
            async for names in in_slices(list(by_tab), SLICE_SERIES, self._query.turns.breathe):
                for tab in names:
                    by_bucket.setdefault(bucket_of(tab, self._query.buckets), []).append(tab)
            tabs = [tab for bucket in sorted(by_bucket) for tab in by_bucket[bucket]]
        else:
            tabs = await in_order(by_tab, self._query.turns.breathe)

        def type_of(tab: str) -> str:
            return by_tab[tab][0].type

        async for lot in self._query.lots(tabs, type_of, wanted.filter, most, self._take if is_over_clients else None):
            self._told.leave_out_unread(lot.unread)
            for type, (owners, states) in lot.by_type.items():
                history = await self._history(type, states, dict.fromkeys(tab for tab, _ in owners))
                if history is not None:
                    await self._add(leaf, history, owners, by_tab, wanted, rows)
            for tab, slices in lot.large.items():
                histories = [history for of_slice in slices for history in of_slice]
                if histories and all(history is not None for history in histories):  # without one of them the others are not the whole
                    await self._add(leaf, together(histories), [(tab, "")], by_tab, wanted, rows)

    async def _are_few(self, leaf: Leaf, chosen: Sequence[Series], most: int) -> bool:
        """Whether these are distributions that are added up, to no more than `most`."""
        if not leaf.sums or leaf.function in EXTREMES:
            return False
        sums: set[Any] = set()
        for place, series in enumerate(chosen):
            if series.figure != DISTRIBUTION or series.part != "":
                return False
            sums.add(key_of(grouped(labels_of(series, ""), leaf.by, leaf.without)))
            if len(sums) > most:
                return False
            if place % SLICE_ROWS == SLICE_ROWS - 1:
                await self._query.turns.breathe()
        return True

    async def _history(self, type: str, states: Any, tabs: Iterable[str]) -> Any:
        """The history of States of these Tabs; None where there is none, which is told."""
        history = await self._query.history(type, states, self._now)
        if isinstance(history, Unanswered):
            for tab in tabs:
                self._told.leave_out(tab, history.error)
            return None
        return history

    async def _take(self, lot: Lot) -> list[Any]:
        """The history of a slice of one Tab, as that of one State: none where there are no States, None where it cannot be had."""
        self._told.leave_out_unread(lot.unread)
        for type, (owners, states) in lot.by_type.items():
            history = await self._history(type, states, [owners[0][0]])
            return [None if history is None else together([history])]
        return []

    async def _add(
        self,
        leaf: Leaf,
        history: Any,
        owners: Sequence[tuple[str, str]],
        by_tab: Mapping[str, Sequence[Series]],
        wanted: Wanted,
        rows: Rows,
    ) -> None:
        """What States of these Tabs and Clients come to."""
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
        rows: Rows,
    ) -> None:
        labels = [labels_of(series, client) for series, client in zip(about, clients, strict=True)]
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
        self._ceiling.look_at(len(kept) * len(columns) * len(until))
        lines = [line / lasting for line in await self._lines(leaf, history, groups, len(about) + 1, since, until, columns, figure)]
        for extra, of_column in zip(names, lines, strict=True):
            for place, at in enumerate(kept):
                rows.add({**labels[at], **extra}, of_column[at], known)
                if place % SLICE_ROWS == SLICE_ROWS - 1:
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
        self._ceiling.look_at((total - 1) * len(begins) * len(codes))
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
        rows: Rows,
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
