"""`/api/v1/…`: the HTTP API of Prometheus as Grafana, promtool and vmalert call it.

1. Parameters stand in a URL, in the form of a POST, or in both; what is not known is ignored, as Prometheus does.
2. An answer is `{"status": "success", "data": …, "infos": […], "warnings": […]}`; what cannot be answered is an error that says why: 400
   for what is no question, 422 for what Taba does not answer, 503 while it cannot.
3. Whatever takes long is done in slices between which others have their turn, the text of an answer too.
"""

from __future__ import annotations

import json
import math
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from taba import __version__
from taba.calls import Answer, Call, HTTPError
from taba.codes import Floats, uppers_of
from taba.errors import StoreUnavailable
from taba.history import points
from taba.places import ASKER, Crowded, Places
from taba.routes import FORM, JSON, Parameter, Route
from taba.series import BUCKET, DEFAULT_BOUNDS, FIGURES, HISTOGRAM, NET, TEXT, bound_text, number_text, plain
from taba.server.ask.choosing import QueryRefused
from taba.server.ask.filters import Filter
from taba.server.ask.query import Query
from taba.server.notes import Notes
from taba.server.prometheus.asked import (
    END,
    LABEL,
    LE,
    LIMIT,
    MATCH,
    MAX_FORM_BYTES,
    METRIC,
    QUERY,
    START,
    STEP,
    TIME,
    Asked,
    BadRequest,
    fields_of,
)
from taba.server.prometheus.catalogue import Catalogue, Catalogues, Series
from taba.server.prometheus.evaluate import Scalar, Value, evaluate
from taba.server.prometheus.leaf import Leaf
from taba.server.prometheus.reading import NOTES, SeriesReading, noted
from taba.server.prometheus.syntax import EQUAL, Matcher, Node, Selector, check, nodes_of
from taba.server.prometheus.told import Told
from taba.server.prometheus.vectors import NAME, Labels, Refused, Vector
from taba.server.prometheus.wanted import Wanted
from taba.server.work.patterns import PatternRefused
from taba.tokens import READ
from taba.turns import in_order, in_slices
from taba.web import sliced

TRUNCATED = "results truncated due to limit"  # as Prometheus says it
MAX_PARSED = 200  # texts whose nodes are kept: those of a few dashboards
MAX_SELECTORS = 20  # of match[]
MAX_QUESTIONS = 10  # evaluated at the same time: each holds MAX_VALUES values at the most, and what is made of them
MAX_WAITING = 200  # for that: the panels of a few dashboards
MAX_LISTED = 100_000  # series of one answer, some 20 MiB
SLICE_SPREADS = 10  # distributions, of which each has hundreds of bins
SLICE_SHOWN = 5000  # series of which it is seen whether they are shown between two, likewise
SLICE_VALUES = 400  # written between two looks at the time, some 4 ms
API_VERSION = "2.55.0"  # of Prometheus, whose API this is as far as it goes: what Grafana looks at


class _Said(NamedTuple):
    """What an answer is made of."""

    pieces: AsyncIterator[str]
    told: Told


T = TypeVar("T")
Serve = Callable[[Asked], Awaitable[_Said]]


class Parses:
    """What texts of PromQL mean: parsed in another process, and kept."""

    def __init__(self, parse: Callable[[str], Awaitable[list[Any]]]):
        self._parse = parse
        self._kept: OrderedDict[str, list[Node]] = OrderedDict()

    async def nodes(self, text: str) -> list[Node]:
        """Raises BadRequest for what is no PromQL, and Crowded."""
        kept = self._kept.get(text)
        if kept is None:
            try:
                check(text)
                kept = nodes_of(await self._parse(text))
            except (ValueError, PatternRefused) as error:
                raise BadRequest(str(error)) from None
            self._kept[text] = kept
            if len(self._kept) > MAX_PARSED:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(text)
        return kept


class Seats:
    """How many questions are evaluated at the same time, and how many wait for that; of both one asker has half."""

    def __init__(self, what: str = "questions in PromQL", questions: int = MAX_QUESTIONS, waiting: int = MAX_WAITING) -> None:
        most = questions + waiting
        self.places = Places(f"{what} that wait or are being answered", most, most // 2, questions, questions // 2)

    async def within(self, work: Callable[[], Awaitable[T]]) -> T:
        """What `work` comes to, once there is a seat for it. Raises Crowded."""
        asker = ASKER.get()
        await self.places.take(asker)
        try:
            return await work()
        finally:
            self.places.give_back(asker)


class PrometheusApi:
    """The routes. `parse` and `rewrite` are done in another process; `now` is Unix seconds."""

    def __init__(
        self,
        query: Query,
        catalogues: Catalogues,
        parse: Callable[[str], Awaitable[list[Any]]],
        rewrite: Callable[[str, str, Sequence[str]], Awaitable[list[str | None]]],
        now: Callable[[], float],
        notes: Notes,
    ):
        self._query, self._catalogues, self._now, self._notes = query, catalogues, now, notes
        self._parses, self._rewrite, self.seats = Parses(parse), rewrite, Seats()

    def routes(self) -> list[Route]:
        """The definitions."""
        asked: list[tuple[str, Serve, str, tuple[Parameter, ...], bool]] = [
            ("query", self.instant, "what an expression is at one time", (QUERY, TIME, LIMIT, LE), True),
            ("query_range", self.range, "what an expression is at each step", (QUERY, START, END, STEP, LIMIT, LE), True),
            ("labels", self.labels, "the names of labels", (MATCH, START, END, LIMIT), True),
            ("label/{name}/values", self.values, "the values of a label", (LABEL, MATCH, START, END, LIMIT), False),
            ("series", self.series, "the series that selectors mean", (MATCH, START, END, LIMIT), True),
            ("metadata", self.metadata, "type, help and unit of each name", (METRIC, LIMIT), False),
            ("status/buildinfo", self.buildinfo, "whose API this is", (), False),
            ("rules", self.rules, "no rules: vmalert or Prometheus have them", (), False),
            ("alerts", self.alerts, "no alerts: vmalert or Prometheus have them", (), False),
            ("query_exemplars", self.exemplars, "no exemplars", (QUERY, START, END), True),
        ]
        found = []
        for name, serve, answer, parameters, also_post in asked:
            path, served = f"/api/v1/{name}", self._served(serve, parameters)
            found.append(Route("GET", path, served, answer, READ, parameters, produces=(JSON,), is_lenient=True))
            if also_post:
                found.append(Route("POST", path, served, answer, READ, parameters, body=FORM, produces=(JSON,), is_lenient=True))
        return found

    def _served(self, serve: Serve, parameters: Sequence[Parameter]) -> Callable[[Call], Awaitable[Answer]]:
        async def served(call: Call) -> Answer:
            try:
                form = await call.body()
                if len(form) > MAX_FORM_BYTES:
                    raise HTTPError(413, "too_large", f"a form takes at most {MAX_FORM_BYTES} bytes, not {len(form)}")
                said = await serve(Asked(parameters, call.values, await call.in_turns(fields_of(form))))
            except (BadRequest, HTTPError) as error:
                status = error.status if isinstance(error, HTTPError) else 400
                return _failed(status, "bad_data", error.detail if isinstance(error, HTTPError) else str(error))
            except (Refused, QueryRefused) as error:
                return _failed(422, "execution", str(error))
            except Crowded as error:
                return _failed(503, "unavailable", str(error))._replace(headers={"retry-after": "1"})
            except StoreUnavailable as error:
                return _failed(503, "unavailable", str(error))
            return Answer(sliced(_whole(said)), content_type=JSON, is_joined=True)

        return served

    # --- expressions ---

    async def instant(self, asked: Asked) -> _Said:
        """One time."""
        nodes = await self._parses.nodes(asked.text(QUERY))
        now = self._now()
        times = np.array([asked.time(TIME, now)])
        value, told = await self._evaluated(nodes, times, asked, now)
        return _Said(self._instant(value, float(times[0]), asked.limit(), told), told)

    async def range(self, asked: Asked) -> _Said:
        """Many times."""
        nodes = await self._parses.nodes(asked.text(QUERY))
        start, end, step = asked.time(START), asked.time(END), asked.duration(STEP)
        if end < start:
            raise BadRequest("end= is before start=")
        try:
            times = np.array(points(start, end, step))
        except ValueError as error:
            raise BadRequest(f"{error}; take a longer step") from None
        value, told = await self._evaluated(nodes, times, asked, self._now())
        if isinstance(value, str):
            raise BadRequest("a text has no range")
        return _Said(self._range(value, times, asked.limit(), told), told)

    async def _evaluated(self, nodes: Sequence[Node], times: Floats, asked: Asked, now: float) -> tuple[Value, Told]:
        return await self.seats.within(lambda: self._evaluate(nodes, times, asked, now))

    async def _evaluate(self, nodes: Sequence[Node], times: Floats, asked: Asked, now: float) -> tuple[Value, Told]:
        told = Told()
        reads = any(isinstance(node, Selector) for node in nodes)
        catalogue = await self._catalogues.look() if reads else Catalogue({}, (), {}, {}, ())
        reading = SeriesReading(self._query, catalogue, times, now, told, asked.bounds())
        return await evaluate(nodes, times, _Asking(reading, self._query, self._rewrite, self._notes, times)), told

    async def _instant(self, value: Value, time: float, limit: int | None, told: Told) -> AsyncIterator[str]:
        if not isinstance(value, Vector):
            kind, text = ("string", value) if isinstance(value, str) else ("scalar", number_text(float(value.values[0])))
            yield f'{{"resultType":"{kind}","result":[{_time(time)},{_json(text)}]}}'
            return
        yield '{"resultType":"vector","result":['
        rows = np.flatnonzero(value.there[:, 0]).tolist()
        if limit is not None and len(rows) > limit:
            rows = rows[:limit]
            told.warn(TRUNCATED)
        for place, row in enumerate(rows):
            comma = "," if place else ""
            if value.spread is None:
                sample = f'"value":[{_time(time)},{_json(number_text(float(value.values[row, 0])))}]'
            else:
                sample = f'"histogram":[{_time(time)},{_histogram(value, row, 0)}]'
            yield f'{comma}{{"metric":{_json(_metric(value.labels[row]))},{sample}}}'
            if place % SLICE_VALUES == SLICE_VALUES - 1:
                await self._query.turns.breathe()
        yield "]}"

    async def _range(self, value: Vector | Scalar, times: Floats, limit: int | None, told: Told) -> AsyncIterator[str]:
        if isinstance(value, Scalar):
            value = Vector([{}], value.values[None, :], np.ones((1, len(times)), dtype=np.bool_))
        stamps = [_time(time) for time in times.tolist()]
        yield '{"resultType":"matrix","result":['
        written = 0
        for shown, row in enumerate(np.flatnonzero(value.there.any(axis=1)).tolist()):
            if shown == limit:
                told.warn(TRUNCATED)
                break
            at = np.flatnonzero(value.there[row])
            kind = "values" if value.spread is None else "histograms"
            yield f'{"," if shown else ""}{{"metric":{_json(_metric(value.labels[row]))},"{kind}":['
            size = SLICE_VALUES if value.spread is None else SLICE_SPREADS
            for start in range(0, len(at), size):
                some = at[start : start + size]
                if value.spread is None:
                    texts = [f'"{number_text(number)}"' for number in value.values[row, some].tolist()]
                else:
                    texts = [_histogram(value, row, place) for place in some.tolist()]
                yield ("," if start else "") + ",".join(f"[{stamps[at]},{text}]" for at, text in zip(some.tolist(), texts, strict=True))
                written += len(some)
                if written >= size:
                    written = 0
                    await self._query.turns.breathe()
            yield "]}"
        yield "]}"

    # --- what there is ---

    async def labels(self, asked: Asked) -> _Said:
        """The names of all labels."""
        asked.check_times()
        told = Told()
        names: set[str] = {NAME}
        for place, series in enumerate(await self._selected(asked.many(MATCH), told)):
            if place % SLICE_VALUES == SLICE_VALUES - 1:
                await self._query.turns.breathe()
            names.update(series.labels)
            if series.figure:
                about = FIGURES[series.figure]
                names.add("client")
                names.update(about.labels if about.kind != HISTOGRAM or series.part == BUCKET else ())
        return _Said(self._listed(_limited(await in_order(names, self._query.turns.breathe), asked.limit(), told)), told)

    async def values(self, asked: Asked) -> _Said:
        """The values of a label."""
        asked.check_times()
        told = Told()
        name = _label_name(asked.text(LABEL))
        selectors = asked.many(MATCH)
        found: set[str] = set()
        if name == "client" and not selectors:
            found = set((await self._query.clients(Filter())).names)
        else:
            chosen = await self._selected(selectors, told)
            if name == "client":
                tabs: set[str] = set()
                async for some in in_slices(chosen, SLICE_VALUES, self._query.turns.breathe):
                    tabs.update(series.tab for series in some)
                async for _, clients in self._query.clients_of(await in_order(tabs, self._query.turns.breathe)):
                    found.update(clients)
            elif name == "le":
                async for some in in_slices(chosen, SLICE_VALUES, self._query.turns.breathe):
                    if any(series.part == BUCKET for series in some):
                        found = {bound_text(bound) for bound in (*DEFAULT_BOUNDS, math.inf)}
                        break
            else:
                async for some in in_slices(chosen, SLICE_VALUES, self._query.turns.breathe):
                    found.update(plain(series.name) if name == NAME else series.labels.get(name, "") for series in some)
                found.discard("")
        return _Said(self._listed(_limited(await in_order(found, self._query.turns.breathe), asked.limit(), told)), told)

    async def series(self, asked: Asked) -> _Said:
        """The series that selectors mean: over all Clients, or each Client's where a selector asks for Clients."""
        asked.check_times()
        told = Told()
        if not asked.many(MATCH):
            raise BadRequest("takes match[]= at least once")
        found: dict[Any, Labels] = {}
        limit = min(asked.limit() or MAX_LISTED, MAX_LISTED)
        selectors = self._few(asked.many(MATCH))
        reading = SeriesReading(self._query, await self._catalogues.look(), np.zeros(0), self._now(), told)
        for matchers in [(await self._selector(text)).matchers for text in selectors]:
            wanted = Wanted(self._query, matchers)
            by_tab: dict[str, list[Series]] = {}  # of what is each Client's
            for place, one in enumerate(await self._shown(reading, matchers)):
                if wanted.is_about_clients or (one.figure and FIGURES[one.figure].by_client):
                    by_tab.setdefault(one.tab, []).append(one)
                elif len(found) <= limit:
                    labels = {NAME: plain(one.name), **one.labels}
                    found.setdefault(tuple(sorted(labels.items())), labels)
                if place % SLICE_VALUES == SLICE_VALUES - 1:
                    await self._query.turns.breathe()
            if wanted.refuses_each or len(found) > limit or not by_tab:
                continue
            async for tab, clients in self._query.clients_of(await in_order(by_tab, self._query.turns.breathe)):
                accepts = await wanted.clients(clients)
                for place, client in enumerate(client for client in clients if accepts.get(client, True)):
                    for one in by_tab[tab]:
                        labels = {NAME: plain(one.name), **one.labels, "client": client}
                        found.setdefault(tuple(sorted(labels.items())), labels)
                    if place % SLICE_VALUES == SLICE_VALUES - 1:
                        await self._query.turns.breathe()
                    if len(found) > limit:
                        break
                if len(found) > limit:
                    break
        rows: list[Labels] = []
        async for some in in_slices(await in_order(found, self._query.turns.breathe), SLICE_VALUES, self._query.turns.breathe):
            rows += [found.pop(key) for key in some]
        if len(rows) > limit:
            rows = rows[:limit]
            told.warn(TRUNCATED)
        return _Said(self._listed(rows), told)

    async def _selected(self, selectors: Sequence[str], told: Told) -> list[Series]:
        """The series that any of the selectors means; all where there is none. What only States tell is there for whoever names it."""
        self._few(selectors)
        catalogue = await self._catalogues.look()
        reading = SeriesReading(self._query, catalogue, np.zeros(0), self._now(), told)
        found: dict[Any, Series] = {}
        for matchers in [(await self._selector(text)).matchers for text in selectors] or [()]:
            for place, series in enumerate(await self._shown(reading, matchers)):
                key = (series.tab, series.name, series.part if series.figure else tuple(sorted(series.labels.items())))
                found.setdefault(key, series)
                if place % SLICE_VALUES == SLICE_VALUES - 1:
                    await self._query.turns.breathe()
        return list(found.values())

    @staticmethod
    def _few(selectors: Sequence[str]) -> Sequence[str]:
        if len(selectors) > MAX_SELECTORS:
            raise BadRequest(f"match[]= stands {len(selectors)} times; at most {MAX_SELECTORS}")
        return selectors

    async def _shown(self, reading: SeriesReading, matchers: Sequence[Matcher]) -> list[Series]:
        """The series that are meant; of those of which only States tell whether they are there, what is asked for by name."""
        is_named = any(matcher.name == NAME and matcher.op == EQUAL for matcher in matchers)
        chosen = await reading.chosen(matchers)
        if not is_named:
            before, chosen = chosen, []
            async for some in in_slices(before, SLICE_SHOWN, self._query.turns.breathe):
                chosen += [series for series in some if series.figure not in (NET, TEXT)]
        return await reading.named(chosen, matchers)

    async def _selector(self, text: str) -> Selector:
        nodes = await self._parses.nodes(text)
        if len(nodes) != 1 or not isinstance(nodes[0], Selector) or nodes[0].range is not None:
            raise BadRequest(f"match[]={text[:100]!r}: takes a selector of series")
        return nodes[0]

    async def metadata(self, asked: Asked) -> _Said:
        """Type, help and unit."""
        told = Told()
        wanted = asked.optional(METRIC)
        catalogue = await self._catalogues.look()
        chosen = dict(catalogue.families)
        if wanted:
            everything = [*catalogue.families.items(), *catalogue.others.items()]
            chosen = {}
            async for some in in_slices(everything, SLICE_VALUES, self._query.turns.breathe):
                chosen.update((name, family) for name, family in some if wanted in (name, family.name))
        names = _limited(await in_order(chosen, self._query.turns.breathe), asked.limit(), told)

        async def pieces() -> AsyncIterator[str]:
            yield "{"
            for place, name in enumerate(names):
                family = chosen[name]
                about = [{"type": family.kind, "help": family.help, "unit": family.unit}]
                yield f"{',' if place else ''}{_json(name)}:{_json(about)}"
                if place % SLICE_VALUES == SLICE_VALUES - 1:
                    await self._query.turns.breathe()
            yield "}"

        return _Said(pieces(), told)

    async def buildinfo(self, asked: Asked) -> _Said:
        """What Grafana looks at to know what it may ask."""
        about = {"version": API_VERSION, "revision": f"taba {__version__}", "branch": "", "buildUser": "", "buildDate": "", "goVersion": ""}
        return _Said(_at_once({**about, "application": "taba"}), Told())

    async def rules(self, asked: Asked) -> _Said:
        """None."""
        return _Said(_at_once({"groups": []}), Told())

    async def alerts(self, asked: Asked) -> _Said:
        """None."""
        return _Said(_at_once({"alerts": []}), Told())

    async def exemplars(self, asked: Asked) -> _Said:
        """None."""
        return _Said(_at_once([]), Told())

    async def _listed(self, items: Sequence[Any]) -> AsyncIterator[str]:
        yield "["
        for place, item in enumerate(items):
            yield ("," if place else "") + _json(item)
            if place % SLICE_VALUES == SLICE_VALUES - 1:
                await self._query.turns.breathe()
        yield "]"


class _Asking:
    """What one question needs of others."""

    def __init__(
        self,
        reading: SeriesReading,
        query: Query,
        rewrite: Callable[[str, str, Sequence[str]], Awaitable[list[str | None]]],
        notes: Notes,
        times: Floats,
    ):
        self._reading, self._query, self._rewrite, self._notes, self._times = reading, query, rewrite, notes, times

    async def read(self, leaf: Leaf) -> Vector:
        if (EQUAL, NAME, NOTES) in leaf.matchers:
            if len(leaf.matchers) > 1 or leaf.function is not None or leaf.offset or leaf.sums:
                raise Refused(f"{NOTES} is asked for as it is: no labels, no range, no offset, no sum")
            return noted([(note.time, note.text) for note in await self._notes.list()], self._times, self._reading.ceiling)
        return await self._reading.read(leaf)

    async def breathe(self) -> None:
        await self._query.turns.breathe()

    async def rewrite(self, pattern: str, template: str, texts: Sequence[str]) -> list[str | None]:
        try:
            return await self._rewrite(pattern, template, texts)
        except PatternRefused as error:
            raise Refused(str(error)) from None


def _limited(items: list[Any], limit: int | None, told: Told) -> list[Any]:
    most = min(limit or MAX_LISTED, MAX_LISTED)
    if len(items) > most:
        told.warn(TRUNCATED)
    return items[:most]


def _label_name(text: str) -> str:
    """A label's name as it is: Prometheus 3 writes what is no plain one as U__…, with _hex_ for each other character."""
    if not text.startswith("U__"):
        return text
    return re.sub(r"__|_([0-9a-fA-F]{1,6})_", lambda part: "_" if part[0] == "__" else chr(min(int(part[1], 16), 0x10FFFF)), text[3:])


def _metric(labels: Labels) -> Labels:
    return {name: value for name, value in labels.items() if value}


def _time(time: float) -> str:
    """A time as JSON, to the millisecond."""
    rounded = round(time, 3)
    return str(int(rounded)) if rounded == int(rounded) else repr(rounded)


def _json(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def _histogram(vector: Vector, row: int, place: int) -> str:
    """One distribution as Prometheus writes a native histogram: [how its bounds count, from, to, how many]."""
    spread = vector.distributions("")
    heat = spread.heat[row, place]
    used = np.flatnonzero(heat)
    codes = spread.codes[used]
    lower, upper = -uppers_of(-codes), uppers_of(codes)
    buckets = [
        [3 if code == 0 else 0 if code > 0 else 1, number_text(low), number_text(high), number_text(count)]
        for code, low, high, count in zip(codes.tolist(), lower.tolist(), upper.tolist(), heat[used].tolist(), strict=True)
    ]
    figures = {"count": number_text(float(spread.count[row, place])), "sum": number_text(float(spread.total[row, place]))}
    return _json({**figures, "buckets": buckets})


async def _at_once(content: Any) -> AsyncIterator[str]:
    yield _json(content)


async def _whole(said: _Said) -> AsyncIterator[str]:
    yield '{"status":"success","data":'
    async for piece in said.pieces:
        yield piece
    for what, sentences in (("warnings", said.told.warnings), ("infos", said.told.infos)):
        if sentences:
            yield f',"{what}":{_json(list(sentences))}'
    yield "}\n"


def _failed(status: int, kind: str, sentence: str) -> Answer:
    return Answer({"status": "error", "errorType": kind, "error": sentence}, status)
