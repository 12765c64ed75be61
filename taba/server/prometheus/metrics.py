"""`/metrics` of a Server: its own health, and, where `match=` asks for them, Tabs as they are now.

1. All-time figures alone are scraped: whoever scrapes makes rates of them.
2. Tabs are read as PromQL reads them, as of one instant, lot by lot while they are sent; what one lot holds is all that a scrape holds.
   A lot is some thousand samples, or all of one Tab: of a Gauge one for each Client.
3. However much a lot is, it is sorted and written piece by piece, and others are served between two.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from heapq import merge
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from taba import __version__
from taba.bounds import MAX_PATTERN
from taba.calls import Answer, Call, HTTPError
from taba.exposition import UNKNOWN, Exposed, NotInstalled, Point, Writer, counter, gauge, of_process, writer_for
from taba.places import Crowded
from taba.routes import LINES, Parameter, Route
from taba.series import BUCKET, COUNT, COUNTER, FIGURES, GAUGE, HISTOGRAM, NET, SUM, TEXT, plain, word_of
from taba.server.ask.choosing import QueryRefused
from taba.server.ask.query import Query
from taba.server.prometheus.api import Seats
from taba.server.prometheus.asked import LE, bounds_of
from taba.server.prometheus.catalogue import Catalogue, Catalogues, Series
from taba.server.prometheus.leaf import Leaf
from taba.server.prometheus.reading import SeriesReading
from taba.server.prometheus.told import Told
from taba.server.prometheus.vectors import NAME, Refused, Vector, without
from taba.server.status import Status
from taba.tokens import READ
from taba.turns import in_order, in_slices
from taba.web import SLICE_BYTES

LOT_ROWS = 4000  # samples read at a time, some 4 MB: 2,000 CounterGroups, 235 distributions with their buckets, or one Tab that has more
WRITE_ROWS = 1000  # samples written at a time, some 10 ms
MAX_READ = 4  # lots that are read at the same time, of however many scrapes
MAX_WAITING = 64  # scrapes that wait for that; more than are sent at once
OWN = "of its Handler"  # stands for the families of Tabs that show samples, whose names only States tell: no name has a blank
SLICE_ROWS = 200  # sorted to families between two looks at the time, some 3 ms
OPENMETRICS = "application/openmetrics-text"

_PLACES = {BUCKET: 0, COUNT: 1, SUM: 2}  # of what a histogram's family has, among those of one series

MATCH = Parameter("match", "A regular expression that a Tab's whole name matches: these Tabs, too.")


class _Lot(NamedTuple):
    """Series that are read together. `family`: where they are a part of one alone."""

    series: Sequence[Series]
    family: str | None = None


class Metrics:
    """The route. `now`: Unix seconds."""

    def __init__(self, query: Query, catalogues: Catalogues, status: Status, now: Callable[[], float]):
        self._query, self._catalogues, self._status, self._now = query, catalogues, status, now
        self.seats = Seats("lots of Tabs to scrape", MAX_READ, MAX_WAITING)

    def routes(self) -> list[Route]:
        """The definition."""
        answer = "the Server's health as Prometheus scrapes it, and with match= Tabs"
        return [Route("GET", "/metrics", self.metrics, answer, READ, (MATCH, LE), produces=(LINES, OPENMETRICS), is_lenient=True)]

    async def metrics(self, call: Call) -> Answer:
        """Text, or OpenMetrics, as Accept says."""
        try:
            writer = writer_for(call.header("accept") or "")
            families = [*_health(await self._status.describe()), *of_process()]
        except NotInstalled as error:
            raise HTTPError(501, "not_installed", str(error)) from None
        pattern = call.values["match"]
        if pattern is None:
            return Answer(b"".join(map(writer.write, families)) + writer.end, content_type=writer.content_type)
        try:
            scraped = self._scraped(writer, await self._chosen(pattern), bounds_of(call.values["le"]))
            first = await anext(scraped)  # what cannot be answered is said before anything is sent
        except (QueryRefused, ValueError) as error:
            raise HTTPError(400, "bad_request", str(error)) from None
        except Crowded as error:
            raise HTTPError(503, "full", str(error)) from None

        async def slices() -> AsyncIterator[bytes]:
            waiting = [*map(writer.write, families), first]
            size = sum(map(len, waiting))
            async for piece in scraped:
                waiting.append(piece)
                size += len(piece)
                if size >= SLICE_BYTES:
                    yield b"".join(waiting)
                    waiting, size = [], 0
            yield b"".join(waiting) + writer.end

        return Answer(slices(), content_type=writer.content_type, is_joined=True)

    async def _chosen(self, pattern: str) -> tuple[Catalogue, list[Series]]:
        """The series of the Tabs whose names match. Raises QueryRefused and Crowded."""
        if len(pattern) > MAX_PATTERN:
            raise QueryRefused(f"match= takes at most {MAX_PATTERN} characters, not {len(pattern)}")
        catalogue = await self._catalogues.look()
        every: dict[tuple[str, str], Series] = {}  # each stands under its name as it is, and under the plain one
        for number, of_name in enumerate(catalogue.by_name.values()):
            every.update(((series.tab, series.name), series) for series in of_name)
            if number % SLICE_ROWS == 0:
                await self._query.turns.breathe()
        shown = [*every.values(), *catalogue.own]
        tabs: set[str] = set()
        async for some in in_slices(shown, SLICE_ROWS, self._query.turns.breathe):
            tabs.update(series.tab for series in some)
        matching = set(await self._query.match(pattern, await in_order(tabs, self._query.turns.breathe)))
        found: list[Series] = []
        async for some in in_slices(shown, SLICE_ROWS, self._query.turns.breathe):
            found += [series for series in some if series.tab in matching and _is_scraped(series)]
        return catalogue, found

    async def _scraped(self, writer: Writer, found: tuple[Catalogue, Sequence[Series]], bounds: Sequence[float]) -> AsyncIterator[bytes]:
        """The families of the series, lot by lot: a lot is gone before the next is read, and nothing is read for a peer that does not."""
        catalogue, chosen = found
        told = Told()
        now = self._now()
        written: set[str] = set()
        leaf = Leaf((), 0.0, None, 0.0, keeps_first=True)
        reading = SeriesReading(self._query, catalogue, np.array([now]), now, told, bounds)
        waiting = [lot async for lot in self._lots(chosen, len(bounds) + 1)][::-1]
        while waiting:
            lot = waiting.pop()
            reading.ceiling.free()
            left_out = told.left_out
            try:
                vector = await self.seats.within(partial(reading.read_chosen, lot.series, leaf))
            except Refused:
                parts = _parts(lot)  # too much at once, or one of them is what it should not be
                told.left_out = left_out  # what was left out of it is so again when it is read again
                if not parts:
                    told.left_out += len(lot.series)
                waiting += reversed(parts)
                continue
            for family in await self._families(vector, catalogue, told.kinds):
                is_more = family.name in written
                if is_more and lot.family != family.name:
                    told.left_out += len(family.points)  # of a Type of one's own, which says late what it is called
                    continue
                written.add(family.name)
                for start in range(0, len(family.points), WRITE_ROWS):
                    some = family._replace(points=family.points[start : start + WRITE_ROWS])
                    yield writer.write(some, is_more or start > 0)
                    await self._query.turns.breathe()
        help = "What of this scrape could not be read, or has the name and labels of another."
        yield writer.write(gauge("taba_scrape_left_out", help, told.left_out))

    async def _lots(self, chosen: Sequence[Series], buckets: int) -> AsyncIterator[_Lot]:
        """Lots of some LOT_ROWS samples, in which each family is whole; of a larger family one part after the other.

        Families that Tabs share are in one lot, so that a Tab is read once for all that it shows. No Tab is divided: of one that alone has
        more, each family is a lot.
        """
        breathe = self._query.turns.breathe
        of_clients: set[str] = set()
        async for slice in in_slices(chosen, SLICE_ROWS, breathe):
            of_clients.update(series.tab for series in slice if series.figure and FIGURES[series.figure].by_client)
        clients: dict[str, int] = {}
        async for tab, of_tab in self._query.clients_of(await in_order(of_clients, breathe)):
            clients[tab] = len(of_tab)

        def size_of(some: Sequence[Series]) -> int:
            return sum(_rows_of(series, buckets, clients) for series in some)

        by_family: dict[str, list[Series]] = {}
        sizes: dict[str, int] = {}
        first_of: dict[str, str] = {}  # Tab → the first of its families
        together: dict[str, str] = {}  # family → one that is in the same lot; itself for the first

        def root(family: str) -> str:
            while together[family] != family:
                together[family] = family = together[together[family]]
            return family

        for place, series in enumerate(chosen):
            family = _stem(series)
            by_family.setdefault(family, []).append(series)
            sizes[family] = sizes.get(family, 0) + _rows_of(series, buckets, clients)
            together.setdefault(family, family)
            first = first_of.setdefault(series.tab, family)
            if first != family and (one := root(family)) != (other := root(first)):
                together[max(one, other)] = min(one, other)
            if place % SLICE_ROWS == SLICE_ROWS - 1:
                await self._query.turns.breathe()
        groups: dict[str, list[str]] = {}
        async for families in in_slices(await in_order(by_family, breathe), SLICE_ROWS, breathe):
            for family in families:
                groups.setdefault(root(family), []).append(family)
        lot: list[Series] = []
        rows = 0
        for number, families in enumerate(groups.values()):
            if number % SLICE_ROWS == SLICE_ROWS - 1:
                await breathe()
            of_group = [series for family in families for series in by_family[family]]
            size = sum(sizes[family] for family in families)
            if lot and rows + size > LOT_ROWS:
                yield _Lot(lot)
                lot, rows = [], 0
            if size <= LOT_ROWS or any(not series.figure for series in of_group):
                lot += of_group
                rows += size
                continue
            for family in families:
                by_tab: dict[str, list[Series]] = {}
                async for slice in in_slices(by_family[family], SLICE_ROWS, breathe):
                    for series in slice:
                        by_tab.setdefault(series.tab, []).append(series)
                some: list[Series] = []
                of_some = 0
                for place, of_tab in enumerate(await in_order(by_tab, breathe)):
                    if place % SLICE_ROWS == SLICE_ROWS - 1:
                        await breathe()
                    of_one = by_tab[of_tab]
                    size = max(1, size_of(of_one))
                    if some and of_some + size > LOT_ROWS:
                        yield _Lot(some, family)
                        await self._query.turns.breathe()
                        some, of_some = [], 0
                    some += of_one
                    of_some += size
                yield _Lot(some, family)
        if lot:
            yield _Lot(lot)

    async def _families(self, vector: Vector, catalogue: Catalogue, kinds: Mapping[str, str]) -> list[Exposed]:
        """The rows of a vector by family; of a histogram the buckets of each series together, then its count and sum."""
        rows: dict[str, list[tuple[Any, Point]]] = {}
        about: dict[str, tuple[str, str, str]] = {}
        family_of: dict[str, str] = {}
        values, there = vector.values[:, 0].tolist(), vector.there[:, 0].tolist()
        for number, labels in enumerate(vector.labels):
            if number % SLICE_ROWS == 0:
                await self._query.turns.breathe()
            if not there[number]:
                continue
            name = labels[NAME]
            family = family_of.get(name)
            if family is None:
                family = family_of[name] = _family(name, catalogue, kinds, about)
            own = dict(labels)
            del own[NAME]
            suffix = name[len(family) :]
            rest = without(own, ("le",)) if suffix else own
            bound = float(own["le"]) if suffix == BUCKET else 0.0
            order = (tuple(sorted(rest.items())), _PLACES.get(suffix, 0), bound)
            rows.setdefault(family, []).append((order, Point(name, own, values[number])))
        found = []
        for number, family in enumerate(sorted(rows)):
            if number % SLICE_ROWS == 0:
                await self._query.turns.breathe()
            kind, help, unit = about[family]
            found.append(Exposed(family, kind, help, await self._in_order(rows.pop(family)), unit))
        return found

    async def _in_order(self, rows: list[tuple[Any, Point]]) -> list[Point]:
        """The points, sorted by what stands before each; many in pieces, with a turn between two."""
        pieces = []
        for start in range(0, len(rows), WRITE_ROWS):
            pieces.append(sorted(rows[start : start + WRITE_ROWS], key=itemgetter(0)))
            await self._query.turns.breathe()
        points: list[Point] = []
        for number, (_, point) in enumerate(merge(*pieces, key=itemgetter(0))):
            if number % WRITE_ROWS == WRITE_ROWS - 1:
                await self._query.turns.breathe()
            points.append(point)
        return points


def _stem(series: Series) -> str:
    """The family of a series; of one whose name only States tell, what stands for all of that Tab's."""
    return plain(series.name.removesuffix(series.part)) if series.figure else f"{plain(series.name)} {OWN}"


def _rows_of(series: Series, buckets: int, clients: Mapping[str, int]) -> int:
    """How many samples it comes to at the most; what stands in the place of another series counts with that. `clients`: how many by Tab."""
    return 0 if series.figure in (NET, TEXT) else buckets if series.part == BUCKET else clients.get(series.tab, 1)


def _parts(lot: _Lot) -> list[_Lot]:
    """A lot in two: half of its families each, or of one family half of the Tabs; nothing where it is one Tab's already."""
    by_family: dict[str, list[Series]] = {}
    for series in lot.series:
        by_family.setdefault(_stem(series), []).append(series)
    if len(by_family) > 1:
        families = list(by_family)
        middle = len(families) // 2
        return [_of_families({family: by_family[family] for family in half}) for half in (families[:middle], families[middle:])]
    tabs = sorted({series.tab for series in lot.series})
    if len(tabs) < 2:
        return []
    first = set(tabs[: len(tabs) // 2])
    halves = ([series for series in lot.series if (series.tab in first) == is_first] for is_first in (True, False))
    return [_of_families(dict.fromkeys(by_family, half)) for half in halves]


def _of_families(by_family: Mapping[str, Sequence[Series]]) -> _Lot:
    """The lot of these series; of one family alone it may be a part."""
    family = next(iter(by_family)) if len(by_family) == 1 else OWN
    return _Lot([series for of_family in by_family.values() for series in of_family], None if OWN in family else family)


def _family(name: str, catalogue: Catalogue, kinds: Mapping[str, str], about: dict[str, tuple[str, str, str]]) -> str:
    """The family to which a name belongs; what is to be said of it is added to `about`."""
    found = next((series for series in catalogue.by_name.get(name, ()) if _is_scraped(series)), None)
    if found is None or name in kinds:
        kind = kinds.get(name, UNKNOWN)
        is_right = kind == GAUGE or (kind == COUNTER and name.endswith("_total"))
        about.setdefault(name, (kind if is_right else UNKNOWN, "What its Handler's samples show.", ""))
        return name
    family = plain(found.name.removesuffix(found.part))
    known = catalogue.families.get(family) or catalogue.others[family]
    about.setdefault(family, (known.kind, known.help, word_of(known.unit)))
    return family


def _is_scraped(series: Series) -> bool:
    """Whether it is a series of its own: a distribution is by its parts."""
    return not series.figure or bool(series.part) or FIGURES[series.figure].kind != HISTOGRAM


def _health(status: Mapping[str, Any]) -> list[Exposed]:
    """The Server's own health, from what `/v1/status` says. Whatever needs a person is counted in taba_problems."""
    latency = {rank: value for rank, value in status["latency"].items() if isinstance(value, (int, float))}
    handlers, held = status["handlers"], status["held"]
    about_this = {"version": __version__, "part": "server"}
    found = [
        Exposed("taba_build_info", GAUGE, "Which version this is.", [Point("taba_build_info", about_this, 1.0)]),
        counter("taba_folded_events_total", "Events that all Servers of the store folded, ever.", status["folded"]),
        gauge("taba_dead_letters", "Events that cannot be folded now, by reason.", status["dead_letters_by_reason"], "reason"),
        counter("taba_dropped_events_total", "Events that Servers gave up, by reason.", status["dropped_by_reason"], "reason"),
        counter(
            "taba_handler_errors_total",
            "Errors of Handlers since this Server began, by Type.",
            {type: about["errors"] for type, about in handlers.items()},
            "type",
        ),
        gauge("taba_visible_seconds", "Seconds from record to visible, lately, by quantile.", latency, "quantile"),
        gauge("taba_missing_types", "Types of Tabs for which there is no Handler.", len(status["types_missing"])),
        gauge("taba_problems", "Sentences of taba status: what needs a person.", len(status["problems"])),
        gauge("taba_workers", "Workers of this Server.", status["workers"]),
        gauge("taba_held", "How many there are of what has a bound.", {what: one["count"] for what, one in held.items()}, "what"),
        gauge("taba_held_most", "How many there may be.", {what: one["most"] for what, one in held.items()}, "what"),
        gauge("taba_held_greatest", "How many of them the asker has that has most.", _of_askers(held, "greatest"), "what"),
        gauge("taba_held_each", "How many one asker may have.", _of_askers(held, "each"), "what"),
        counter("taba_displaced_total", "How many gave up their place to an asker that had fewer.", _of_askers(held, "displaced"), "what"),
    ]
    age = status["store"].get("age")
    if age is not None:
        found.append(gauge("taba_store_age_minutes", "Minutes that passed for the store.", age))
    return found


def _of_askers(held: Mapping[str, Mapping[str, int]], which: str) -> dict[str, int]:
    return {what: one[which] for what, one in held.items() if which in one}
