"""What moves, in rows: one a Tab, ranked by how many Events the Servers folded in the last minute; and who holds how much of a Tab.

1. Which Tabs are rows is found without reading a State; States are read of the rows that are asked for, or, where they are sorted by a
   figure, of those that move most, MAX_SORTED of them unless more rows are asked for; and of no others.
2. A row is kept for ROW_SECONDS, for all that ask: however many look on, its States are read once. One of which nothing has been folded
   since is kept for QUIET_SECONDS at the most: its windows move on.
3. A row is made of what the Handler shows, by shape: nothing here knows a Type.
"""

from __future__ import annotations

import heapq
import math
import zlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple

from taba import paths
from taba.bounds import MAX_EXACT_INT, MAX_ROWS
from taba.handlers.lookup import shown
from taba.history import PastSteps
from taba.names import bucket_of
from taba.server.ask.answers import Aggregated, Asked, Unanswered
from taba.server.ask.choosing import Chosen
from taba.server.ask.filters import Filter
from taba.server.ask.query import QUIET_SECONDS, Query
from taba.turns import in_order, in_slices

ROW_SECONDS = 2.0
MAX_KEPT_ROWS = 5000  # of all questions, some KiB each
SLICE_MOVING = 5000  # names that are ranked by what moves between two looks at the time, some 2 ms
MAX_SORTED = 200  # Tabs that move most, of which the rows are chosen where they are sorted by what only States tell
STEPS, STEP_SECONDS = 60, 60.0  # of a sparkline: the last hour
SHORT_SECONDS, LONG_STEPS = 60.0, 10  # a trend is the rate of the last minute over that of the last ten
MOVES, NAME = "moves", "name"
FIGURES = ("rate", "trend", "1m", "1h", "p50", "p99", "max", "clients", "value")
SORTS = (MOVES, NAME, *FIGURES)
MAX_HELD = 100_000  # Clients of one Tab whose figures are compared: some 20 MB

MAX_OFFERED = 12  # places of figures that are named where none was meant

_SHARED = ("1h.count", "count", "value", "distinct", "sum")  # of which Clients have their shares, where nobody says which figure


class _Kept(NamedTuple):
    made: float  # by the monotonic clock
    folded: int  # of its bucket, then
    row: dict[str, Any]
    patience: float  # ½ … 1, the name's own: rows that were made at once are not all made anew at once


class Overview:
    """Makes rows. `moving`: the counts of all Servers; `clock`: the reactor."""

    def __init__(self, query: Query, moving: Callable[[], Awaitable[Mapping[str, int]]], clock: Any, now: Callable[[], float]):
        self._query, self._moving, self._clock, self._now = query, moving, clock, now
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    def of(self, query: Query) -> Overview:
        """These rows, asked for by `query`."""
        other = copy(self)
        other._query = query
        return other

    async def rows(self, wanted: Filter, sort: str, limit: int, offset: int = 0) -> list[dict[str, Any]]:
        """At most `limit` rows after the first `offset`. Raises QueryRefused."""
        asked = await self._query.ask(wanted)
        moving = await self._moving()
        tabs = asked.chosen.tabs
        if sort == NAME:
            chosen: list[str] = list(tabs[offset : offset + limit])
        else:
            most = offset + limit if sort == MOVES else max(MAX_SORTED, min(offset + limit, MAX_ROWS))
            # names are sorted, and nlargest keeps the order of what is equal
            chosen = []
            async for some in in_slices(tabs, SLICE_MOVING, self._query.breathe):
                chosen = heapq.nlargest(most, [*chosen, *some], key=lambda tab: moving.get(tab, 0))
            if sort == MOVES:
                chosen = chosen[offset:]
        rows = await self._rows(asked, chosen, moving)
        if sort in FIGURES:
            rows.sort(key=lambda row: -math.inf if row.get(sort) is None else row[sort], reverse=True)
            rows = rows[offset : offset + limit]
        return rows

    async def who(self, asked: Asked, path: str | None, limit: int) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """By Tab which Clients hold the greatest and the least of the figure at `path`, each one's share of all, and how uneven that is."""
        tab: str | None = None
        used: str | None = None
        error: str | None = None
        found: list[tuple[float, str]] = []
        odd: Any = None  # the first Projection without that figure
        async for item in self._query.projections(asked):
            if item.tab != tab:
                if tab is not None:
                    yield tab, _shares(used or path, await self._ranked(found), limit, error or _why_none(path, found, odd))
                tab, used, error, found, odd = item.tab, None, None, [], None
            for client, projection in item.projections.items():
                if isinstance(projection, Unanswered):
                    error = error or projection.error
                    continue
                at = used or path or next((one for one in _SHARED if paths.first(projection, [one]) is not None), "")
                value = _finite(paths.first(projection, [at]) if at else None)
                if value is None:
                    odd = projection if odd is None else odd
                    continue
                if len(found) >= MAX_HELD:
                    error = f"more than {MAX_HELD:,} Clients: those after them are left out; client= or client_match= says which are meant"
                    continue
                used = at
                found.append((value, client))
        if tab is not None:
            yield tab, _shares(used or path, await self._ranked(found), limit, error or _why_none(path, found, odd))

    async def _ranked(self, found: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
        """The greatest first, of equal ones by Client: in turns, for there may be MAX_HELD."""
        ranked = await in_order(((-value, client) for value, client in found), self._query.breathe)
        return [(-negated, client) for negated, client in ranked]

    async def _rows(self, asked: Asked, tabs: Sequence[str], moving: Mapping[str, int]) -> list[dict[str, Any]]:
        buckets = {tab: bucket_of(tab, self._query.buckets) for tab in tabs}
        folded = await self._query.folded(set(buckets.values()))  # before anything is read
        now = self._clock.seconds()
        rows: dict[str, dict[str, Any]] = {}
        about_all = not asked.wanted.is_about_clients
        for tab in tabs if about_all else ():
            kept = self._kept.get(tab)
            if kept is not None:
                is_quiet = kept.folded == folded.get(buckets[tab])
                if now - kept.made < (QUIET_SECONDS * kept.patience if is_quiet else ROW_SECONDS):
                    rows[tab] = kept.row
        missing = [tab for tab in tabs if tab not in rows]
        if missing:
            chosen = Chosen(missing, asked.chosen.type_of, asked.chosen.dead)
            async for one in self._query.summaries(asked._replace(chosen=chosen), STEPS, STEP_SECONDS):
                row = rows[one.tab] = _row(one.tab, one.type, one.aggregated, one.clients, one.steps)
                if about_all and self._query.why_away(one.tab) is None:  # others may reach it
                    self._kept.pop(one.tab, None)
                    self._kept[one.tab] = _Kept(now, folded.get(buckets[one.tab], -1), row, _patience(one.tab))
                    if len(self._kept) > MAX_KEPT_ROWS:
                        self._kept.popitem(last=False)
        return [{**rows[tab], "moved": moving.get(tab, 0), **_rated(rows[tab], moving.get(tab, 0))} for tab in tabs if tab in rows]


def _patience(tab: str) -> float:
    return 0.5 + zlib.crc32(tab.encode()) / 2**33


def _row(tab: str, type: str, aggregated: Aggregated, clients: int, steps: PastSteps | None) -> dict[str, Any]:
    row: dict[str, Any] = {"name": tab, "type": type, "rate": None, "trend": None}
    row |= {key: paths.first(aggregated.aggregate, places) for key, places in paths.FIGURES.items()}
    row |= {"clients": clients, "sparkline": None}
    if steps is not None:
        counts = [None if math.isnan(count) else round(count, 3) for count in steps.count[0].tolist()]
        row["sparkline"] = counts
        known = [count for count in counts[-LONG_STEPS:] if count is not None]
        if row["1m"] is None:
            row["1m"] = counts[-1]
        if known and counts[-1] is not None:
            usual = sum(known) / len(known)
            row["rate"] = counts[-1] / SHORT_SECONDS
            row["trend"] = counts[-1] / usual if usual else None
    if aggregated.error is not None:
        row["error"] = aggregated.error
    return row


def _rated(row: Mapping[str, Any], moved: int) -> dict[str, Any]:
    """The rate of a Tab whose Type keeps no slots: of what the Servers have folded."""
    return {} if row["rate"] is not None else {"rate": moved / SHORT_SECONDS}


def _finite(value: float | None) -> float | None:
    """`value` as JSON has it, a whole one without a fraction; None where it is none, or beyond what a float holds."""
    try:
        if value is None or not math.isfinite(value):
            return None
        return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_EXACT_INT else value
    except OverflowError:
        return None


def _total(values: Sequence[float]) -> float | None:
    try:
        return _finite(math.fsum(values)) if values else None
    except OverflowError:
        return None


def _why_none(path: str | None, found: Sequence[Any], odd: Any) -> str | None:
    """Why no Client has a share, where none of those that were read has a number at `path`."""
    if found or odd is None:
        return None
    content = shown(odd)
    places = [place for place, value in paths.leaves(content) if paths.first(content, [place]) is not None]
    offered = ", ".join(places[:MAX_OFFERED]) + (", …" if len(places) > MAX_OFFERED else "")
    there = f"numbers are at {offered}" if places else "what it shows has no numbers by name"
    return f"no number at {path}; {there}" if path else f"nothing of which Clients have shares unless path= says it; {there}"


def _shares(path: str | None, found: Sequence[tuple[float, str]], limit: int, error: str | None) -> dict[str, Any]:
    """What `found` has, the greatest first."""
    values = [value for value, _ in found]
    total = _total(values)
    answer: dict[str, Any] = {"path": path, "clients": len(found), "total": total}
    middle = len(values) // 2
    median = None if not values else values[middle] if len(values) % 2 else values[middle - 1] / 2 + values[middle] / 2
    answer |= {"median": median, "skew": _finite(values[0] / median) if median else None}

    def listed(of: Sequence[tuple[float, str]]) -> list[dict[str, Any]]:
        return [{"client": client, "value": value, "share": _finite(value / total) if total else None} for value, client in of]

    answer |= {"greatest": listed(found[:limit]), "least": listed(found[::-1][:limit])}
    if error is not None:
        answer["error"] = error
    return answer
