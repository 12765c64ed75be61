"""Series of Types without a past, and the samples that a Type shows: as they are now."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import numpy as np

from taba.codes import Floats, codes_of
from taba.exposition import is_tabas
from taba.names import ALIVE_TAB, ALIVE_TYPE
from taba.series import (
    BUCKET,
    COUNT,
    DISTINCT,
    DISTRIBUTION,
    EVENTS,
    FIGURES,
    HELD,
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
from taba.server.ask.answers import Unanswered
from taba.server.ask.filters import Filter
from taba.server.ask.query import Query
from taba.server.ask.states import SLICE_STATES, Lot
from taba.server.prometheus.catalogue import Series
from taba.server.prometheus.leaf import FRESH_SECONDS, Leaf
from taba.server.prometheus.rows import Rows, labels_of
from taba.server.prometheus.syntax import Matcher
from taba.server.prometheus.told import Told
from taba.server.prometheus.vectors import NAME, Bools, Labels, Refused
from taba.server.prometheus.wanted import Wanted, is_meant
from taba.turns import in_order, in_slices

SLICE_SERIES = 1000  # that are looked at between two looks at the time, some milliseconds
# what a Handler of somebody's own says it shows, its Projections need not have
BAD_PROJECTION = (AttributeError, KeyError, TypeError, ValueError)


class Present:
    """Reads them, over the steps `times` of one question."""

    def __init__(self, query: Query, times: Floats, now: float, told: Told):
        self._query, self._times, self._now, self._told = query, times, now, told
        self._living: dict[str, bool] | None = None

    async def read(self, leaf: Leaf, chosen: Sequence[Series], wanted: Wanted, rows: Rows) -> None:
        """What they come to, into `rows`. Raises Refused, QueryRefused and StoreUnavailable."""
        fresh = np.abs(self._times - leaf.offset - self._now) <= FRESH_SECONDS
        if not fresh.all():
            self._told.info(f"{chosen[0].name} is known as it is now: there is none of it more than {FRESH_SECONDS:.0f} s from now")
        if not fresh.any():
            return
        by_tab: dict[str, list[Series]] = {}
        async for some in in_slices(chosen, SLICE_SERIES, self._query.turns.breathe):
            for series in some:
                by_tab.setdefault(series.tab, []).append(series)
        async for of_tab, projections in self._projections(by_tab, wanted):
            for series in of_tab:
                try:
                    await self._add_now(leaf, series, projections, wanted, fresh, rows)
                except Refused:
                    raise
                except BAD_PROJECTION as error:
                    self._leave_out_bad(series, error)

    async def samples(self, own: Sequence[Series], matchers: Sequence[Matcher]) -> AsyncIterator[tuple[Series, Labels]]:
        """(the Tab's, its labels) of each sample that is meant of Tabs that show samples. Raises as `read` does."""
        wanted = Wanted(self._query, matchers)
        async for [series], projections in self._projections({series.tab: [series] for series in own}, wanted):
            try:
                samples = await self._figures_now(series, projections, wanted)
            except BAD_PROJECTION as error:
                self._leave_out_bad(series, error)
                continue
            for labels, _ in samples:
                if await is_meant(self._query, matchers, labels):
                    yield series, labels

    async def _projections(
        self, by_tab: Mapping[str, Sequence[Series]], wanted: Wanted
    ) -> AsyncIterator[tuple[Sequence[Series], dict[str, Any]]]:
        """(its series, its Projections by Client that is meant) of each Tab.

        Of a Tab of many Clients what is each Client's comes part after part, and what is all Clients' as one Aggregate, for the Client "".
        """

        def of_each(series: Series) -> bool:
            return wanted.is_about_clients or (series.figure != "" and FIGURES[series.figure].by_client)

        for is_of_each in (True, False):
            some: dict[str, list[Series]] = {}
            async for names in in_slices(list(by_tab), SLICE_SERIES, self._query.turns.breathe):
                for tab in names:
                    if kept := [one for one in by_tab[tab] if of_each(one) == is_of_each]:
                        some[tab] = kept
            if not some:
                continue
            take = None if is_of_each else self._take
            tabs = await in_order(some, self._query.turns.breathe)
            async for lot in self._query.lots(tabs, lambda tab: by_tab[tab][0].type, wanted.filter, SLICE_STATES, take):
                for tab, of_tab in (await self._projected(lot, wanted)).items():
                    yield some[tab], of_tab
                    await self._query.turns.breathe()
                for tab, slices in lot.large.items():
                    pieces = {str(place): piece for place, of_slice in enumerate(slices) for piece in of_slice}
                    if pieces and all(piece is not None for piece in pieces.values()):  # without one the others are not the whole
                        yield some[tab], pieces
                        await self._query.turns.breathe()

    async def _projected(self, lot: Lot, wanted: Wanted) -> dict[str, dict[str, Any]]:
        """By Tab and Client that is meant its Projection; of what cannot be read it is told."""
        self._told.leave_out_unread(lot.unread)
        found: dict[str, dict[str, Any]] = {}
        for type, (owners, states) in lot.by_type.items():
            accepts = await wanted.clients([client for _, client in owners])
            for (tab, client), projection in zip(owners, await self._query.project(type, states), strict=True):
                if isinstance(projection, Unanswered):
                    self._told.leave_out(tab, projection.error)
                elif not wanted.is_about_clients or accepts[client]:
                    found.setdefault(tab, {})[client] = projection
        return found

    async def _take(self, lot: Lot) -> list[Any]:
        """What a slice of one Tab comes to, over its Clients: nothing where none of it can be read, None where it comes to nothing."""
        for tab, projections in (await self._projected(lot, Wanted(self._query, ()))).items():
            [type] = lot.by_type
            aggregate = await self._query.aggregate(type, list(projections.values()))
            if isinstance(aggregate, Unanswered):
                self._told.leave_out(tab, aggregate.error)
                return [None]
            return [aggregate]
        return []

    def _leave_out_bad(self, series: Series, error: Exception) -> None:
        why = f"{series.figure or 'samples'} of its Projection: {error.__class__.__name__}: {error}"[:200]
        self._told.leave_out(series.tab, why)

    async def _add_now(self, leaf: Leaf, series: Series, projections: Mapping[str, Any], wanted: Wanted, fresh: Bools, rows: Rows) -> None:
        if series.figure == DISTRIBUTION and not series.part:
            await self._add_spreads_now(series, projections, wanted, fresh, rows)
            return
        # what States tell beside names
        told = [matcher for matcher in leaf.matchers if not series.figure or (series.figure in (TEXT, TOP) and matcher.name == "value")]
        for labels, value in await self._figures_now(series, projections, wanted):
            if await is_meant(self._query, told, labels):
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

    async def _add_spreads_now(self, series: Series, projections: Mapping[str, Any], wanted: Wanted, fresh: Bools, rows: Rows) -> None:
        for client, projection in (await self._pieces(series, projections, wanted.is_about_clients)).items():
            pairs = np.asarray(list(projection["_bins"]), dtype=np.int64).reshape(-1, 2)
            codes, places = np.unique(pairs[:, 0], return_inverse=True)
            heat = np.tile(np.bincount(places, weights=pairs[:, 1].astype(np.float64), minlength=len(codes)), (len(fresh), 1)).astype(
                np.float64
            )
            count, total = (np.full(len(fresh), float(projection[name])) for name in ("count", "total"))
            rows.add_spread(labels_of(series, client), codes.astype(np.int64), heat, count, total, fresh)

    async def _figures_now(self, series: Series, projections: Mapping[str, Any], wanted: Wanted) -> list[tuple[Labels, float]]:
        """(labels, value) of a Tab's series that has no past."""
        by_client = series.figure != "" and FIGURES[series.figure].by_client
        pieces = await self._pieces(series, projections, by_client or wanted.is_about_clients)
        found: list[tuple[Labels, float]] = []
        living = await self._who_lives() if by_client else {}
        for client, projection in pieces.items():
            labels = labels_of(series, client)
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

    async def _who_lives(self) -> dict[str, bool]:
        """By Client whether it lives, of those of which Agents say so."""
        if self._living is None:
            self._living = {}
            async for lot in self._query.lots([ALIVE_TAB], lambda _: ALIVE_TYPE, Filter(), SLICE_STATES, None):
                for owners, states in lot.by_type.values():
                    for (_, client), projection in zip(owners, await self._query.project(ALIVE_TYPE, states), strict=True):
                        if isinstance(projection, dict) and projection["value"] is not None:
                            self._living[client] = bool(projection["value"])
        return self._living


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
