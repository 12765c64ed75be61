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
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from taba.codes import Floats
from taba.series import DEFAULT_BOUNDS, FIGURES, HISTOGRAM, plain
from taba.server.ask.query import Query
from taba.server.prometheus.catalogue import Catalogue, Series
from taba.server.prometheus.leaf import FRESH_SECONDS, Leaf
from taba.server.prometheus.past import Past
from taba.server.prometheus.present import Present
from taba.server.prometheus.rows import ROW_VALUES, Ceiling, Rows
from taba.server.prometheus.syntax import EQUAL, Matcher
from taba.server.prometheus.told import Told
from taba.server.prometheus.vectors import NAME, Bools, Refused, Vector, key_of, without
from taba.server.prometheus.wanted import Wanted, accepted, gives, may_be, those
from taba.turns import in_order, in_slices

SLICE_SERIES = 500  # that are looked at between two looks at the time, some milliseconds

NOTES = "taba_note"  # the name under which notes are asked for, as annotations


def noted(notes: Iterable[tuple[float, str]], times: Floats, ceiling: Ceiling) -> Vector:
    """Notes as series, one a text: at the step that ends at or after a note's time its time, in milliseconds, as annotations take it.

    Of one time alone the notes of the FRESH_SECONDS before it. Raises Refused.
    """
    step = float(times[1] - times[0]) if len(times) > 1 else FRESH_SECONDS
    found: dict[str, tuple[Floats, Bools]] = {}
    for time, text in sorted(notes):
        at = (times - step < time) & (time <= times)
        if at.any():
            if text not in found:
                ceiling.take(max(len(times), ROW_VALUES))
            values, there = found.get(text, (np.zeros(len(times)), np.zeros(len(times), dtype=np.bool_)))
            found[text] = np.where(at, time * 1000, values), there | at
    if not found:
        return Vector.empty(len(times))
    values, there = (np.array([row[at] for row in found.values()]) for at in (0, 1))
    return Vector([{NAME: NOTES, "text": text} for text in found], values, there.astype(np.bool_))


class SeriesReading:
    """Reads what one question's selectors mean. `times`: of its steps; `bounds`: of buckets, but +Inf."""

    def __init__(self, query: Query, catalogue: Catalogue, times: Floats, now: float, told: Told, bounds: Sequence[float] = DEFAULT_BOUNDS):
        self._query, self._catalogue, self._times, self._now, self._told = query, catalogue, times, now, told
        self._bounds = (*(bound for bound in bounds if bound != math.inf), math.inf)
        self.ceiling = Ceiling()
        self._past, self._present = Past(query, times, now, told, self.ceiling), Present(query, times, now, told)

    async def read(self, leaf: Leaf) -> Vector:
        """The series of a selector. Raises Refused, QueryRefused and StoreUnavailable."""
        return await self.read_chosen(await self.chosen(leaf.matchers), leaf)

    async def read_chosen(self, chosen: Sequence[Series], leaf: Leaf) -> Vector:
        """The series that `chosen` names, of which the leaf's other matchers still tell some apart. Raises as `read` does."""
        rows = Rows(leaf, len(self._times), self.ceiling)
        wanted = Wanted(self._query, leaf.matchers)
        await wanted.look_at_bounds(self._bounds)
        past: list[Series] = []
        now: list[Series] = []
        has_past: dict[str, bool] = {}
        async for some in in_slices(chosen, SLICE_SERIES, self._query.turns.breathe):
            for series in some:
                if series.type not in has_past:
                    has_past[series.type] = self._query.type_has_past(series.type)
                (past if has_past[series.type] and series.figure else now).append(series)
        if leaf.function is not None and any(series.figure for series in now) and not past:
            raise Refused(
                f"{leaf.function} of {now[0].name}: Type {now[0].type} keeps no past: it is known as it is now; "
                "long histories are what scrapes /metrics"
            )
        if past:
            await self._past.read(leaf, past, wanted, rows)
        if leaf.function is not None:
            for series in [series for series in now if series.figure or not past][:1]:
                self._told.info(f"{series.name} has no past, and no {leaf.function}")
        elif now:
            await self._present.read(leaf, now, wanted, rows)
        self._told.left_out += rows.doubles
        return await rows.vector(self._query.turns.breathe)

    # --- which series ---

    async def chosen(self, matchers: Sequence[Matcher]) -> list[Series]:
        """The series whose names and own labels are meant, as far as names alone tell."""
        names = [matcher for matcher in matchers if matcher.name == NAME]
        found: list[Series] = []
        exact = next((matcher.value for matcher in names if matcher.op == EQUAL), None)
        if exact is not None:
            found = list(self._catalogue.by_name.get(exact, ()))
            async for some in in_slices(self._catalogue.own, SLICE_SERIES, self._query.turns.breathe):
                found += [series for series in some if may_be(series, exact)]
            rest = [matcher for matcher in names if not (matcher.op == EQUAL and matcher.value == exact)]
            for matcher in rest:
                if not (await accepted(self._query, matcher, [exact])).get(exact, False):
                    return []
        else:
            known = self._catalogue.names or await in_order(self._catalogue.by_name, self._query.turns.breathe)
            for matcher in names:
                known = await those(self._query, matcher, known)
            looked_at = 0
            for name in known:
                of_name = self._catalogue.by_name[name]
                for start in range(0, len(of_name), SLICE_SERIES):
                    some = of_name[start : start + SLICE_SERIES]
                    # the distribution itself is there for whoever names it; whoever looks for names finds its buckets, count and sum
                    found += [
                        series
                        for series in some
                        if plain(series.name) == name and (series.part or FIGURES[series.figure].kind != HISTOGRAM)
                    ]
                    looked_at += len(some)
                    if looked_at >= SLICE_SERIES:
                        looked_at = 0
                        await self._query.turns.breathe()
            found += self._catalogue.own
        for matcher in matchers:
            if matcher.name in (NAME, "client") or not found:
                continue
            values: set[str] = set()
            async for some in in_slices(found, SLICE_SERIES, self._query.turns.breathe):
                values.update(series.labels.get(matcher.name, "") for series in some)
            meant = set(await those(self._query, matcher, await in_order(values, self._query.turns.breathe)))
            before, found = found, []
            async for some in in_slices(before, SLICE_SERIES, self._query.turns.breathe):
                found += [
                    series
                    for series in some
                    if series.labels.get(matcher.name, "") in meant or (matcher.name not in series.labels and gives(series, matcher.name))
                ]
        return found

    async def named(self, chosen: Sequence[Series], matchers: Sequence[Matcher]) -> list[Series]:
        """`chosen`, and where names are asked for, in place of each Tab that shows samples those samples that are meant.

        What these are called only States tell. Raises as `read` does.
        """
        if all(matcher.name != NAME for matcher in matchers):
            return list(chosen)
        own: list[Series] = []
        async for some in in_slices(chosen, SLICE_SERIES, self._query.turns.breathe):
            own += [series for series in some if not series.figure]
        if not own:
            return list(chosen)
        found: dict[Any, Series] = {}
        async for some in in_slices(chosen, SLICE_SERIES, self._query.turns.breathe):
            found.update(((series.tab, series.name, series.part), series) for series in some if series.figure)
        async for series, labels in self._present.samples(own, matchers):
            rest = without(labels, (NAME, "client"))
            found[series.tab, labels[NAME], key_of(rest)] = series._replace(name=labels[NAME], labels=rest)
        return list(found.values())
