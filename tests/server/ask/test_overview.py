"""Rows of what moves, by what the Servers folded in the last minute; and who holds how much."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taba import bounds, turns
from taba.server import rates
from taba.server.ask import overview
from taba.server.rates import Moving

from ..running import ServerCase, asynchronous

CLIENTS = [f"web/{number}" for number in range(5)]


def events(tab: str, type: str, values: list[Any], **labels: str) -> list[dict[str, Any]]:
    return [{"tab": tab, "type": type, "value": value, "labels": labels} for value in values]


class Movement(SynchronousTestCase):
    def test_counts_are_of_the_last_minute(self) -> None:
        clock = Clock()
        counted = Moving(clock.seconds)
        counted.note({"a": 3, "b": 1})
        clock.advance(30)
        counted.note({"a": 2})
        self.assertEqual(dict(counted.counts()), {"a": 5, "b": 1})
        clock.advance(rates.SPAN_SECONDS - 29)
        self.assertEqual(dict(counted.counts()), {"a": 2})
        clock.advance(rates.SPAN_SECONDS)
        self.assertEqual(dict(counted.counts()), {})

    def test_as_many_tabs_as_the_bound_and_one_past_it(self) -> None:
        self.patch(rates, "MAX_MOVING", 2)
        counted = Moving(Clock().seconds)
        counted.note({"a": 2, "b": 2, "c": 1})
        self.assertEqual(dict(counted.counts()), {"a": 2, "b": 2})
        self.patch(rates, "MAX_SAID", 1)
        self.assertEqual(len(counted.said()), 1)


class Rows(ServerCase):
    async def filled(self) -> Any:
        server = await self.start()
        for place, client in enumerate(CLIENTS):
            posted = (
                events("busy", "CounterGroup", [2.0] * 12, exchange="adx")
                + events("slow", "PercentileGroup", [float(place + 1)] * 6)
                + events("load", "Gauge", [10.0])
                + events("sum", "TotalsCounter", [1.0] * 2)
            )
            self.assertEqual((await self.post(server, posted, client=client)).json["rejected"], [])
        return server

    async def rows(self, server: Any, **asked: str) -> Any:
        return await self.get(server, "/v1/overview?" + urlencode(asked))

    @asynchronous
    async def test_what_moved_most_comes_first_with_its_figures(self) -> None:
        server = await self.filled()
        rows = await self.rows(server)
        self.assertEqual([row["name"] for row in rows], ['busy{exchange="adx"}', "slow", "sum", "load"])
        busy, slow, total, load = rows
        self.assertEqual((busy["moved"], busy["1m"], busy["1h"], busy["clients"], busy["rate"]), (60, 60, 60, 5, 1.0))
        self.assertEqual((len(busy["sparkline"]), busy["sparkline"][-1], busy["trend"]), (60, 60, 10.0))
        self.assertEqual((slow["max"], round(slow["p99"]), slow["unit"]), (5, 5, None))
        self.assertEqual((total["rate"], total["1m"], total["sparkline"], total["value"]), (10 / 60, None, None, 10))
        self.assertEqual((load["value"], load["max"], load["clients"]), (50, 10, 5))
        self.assertTrue((await self.ask(server, "/v1/overview", headers={"Accept": ["text/plain"]})).text.startswith("busy{"))

    @asynchronous
    async def test_rows_are_sorted_filtered_and_limited(self) -> None:
        server = await self.filled()
        names = sorted(['busy{exchange="adx"}', "load", "slow", "sum"])
        for asked, expected in (
            ({"sort": "name"}, names),
            ({"sort": "name", "limit": "2", "offset": "1"}, names[1:3]),
            ({"sort": "max"}, ["load", "slow"]),
            ({"sort": "p99", "limit": "1"}, ["slow"]),
            ({"name": "busy"}, names[:1]),
            ({"match": "s.*"}, ["slow", "sum"]),
            ({"limit": "1", "offset": "3"}, ["load"]),
            ({"offset": "4"}, []),
            ({"name": "nothing"}, []),
        ):
            found = [row["name"] for row in await self.rows(server, **asked)]
            self.assertEqual(found[: len(expected)] if asked.get("sort") == "max" else found, expected, asked)
        for path in ("sort=x", "limit=0", f"limit={bounds.MAX_ROWS + 1}", "offset=-1"):
            self.assertEqual((await self.ask(server, f"/v1/overview?{path}")).status, 400, path)
        self.assertEqual([row["clients"] for row in await self.rows(server, name="busy", client="web/[12]")], [])
        self.assertEqual([row["clients"] for row in await self.rows(server, name="busy", client_match="web/[12]")], [2])

    @asynchronous
    async def test_states_are_read_of_the_rows_that_are_asked_for_and_once_for_all_who_ask(self) -> None:
        server = await self.filled()
        read: list[str] = []
        original = server.query.summaries

        def summaries(asked: Any, *more: Any) -> Any:
            read.extend(asked.chosen.tabs)
            return original(asked, *more)

        self.patch(server.query, "summaries", summaries)
        await self.rows(server, limit="1")
        self.assertEqual(read, ['busy{exchange="adx"}'])
        for _ in range(3):
            await self.rows(server, limit="2")
        self.assertEqual(read, ['busy{exchange="adx"}', "slow"])
        self.patch(overview, "MAX_KEPT_ROWS", 1)
        self.patch(overview, "QUIET_SECONDS", -1.0)
        self.patch(overview, "ROW_SECONDS", -1.0)
        await self.rows(server)
        self.assertEqual((len(read), len(server.overview._kept)), (6, 1))

    @asynchronous
    async def test_another_server_ranks_by_what_the_first_one_says(self) -> None:
        server = await self.filled()
        other = await self.start()
        await server.presence.announce()
        other.presence._others = None
        self.assertEqual([row["moved"] for row in await self.rows(other)], [60, 30, 10, 5])

    @asynchronous
    async def test_what_only_dead_letters_know_is_a_row_that_says_so(self) -> None:
        server = await self.start()
        await self.post(server, events("odd", "Strange", [1]))
        [row] = await self.rows(server)
        self.assertIn("unknown_type", row["error"])
        self.assertEqual((row["1m"], row["clients"]), (None, 1))

    @asynchronous
    async def test_a_row_that_is_asked_for_by_its_whole_name_is_made_anew_once_something_was_folded(self) -> None:
        server = await self.filled()
        self.patch(overview, "ROW_SECONDS", -1.0)
        self.patch(overview, "QUIET_SECONDS", 1e9)
        name = 'busy{exchange="adx"}'
        await self.rows(server)
        self.assertEqual([row["1h"] for row in await self.rows(server, name=name)], [60])
        await self.post(server, events("busy", "CounterGroup", [2.0], exchange="adx"))
        self.assertEqual([row["1h"] for row in await self.rows(server, name=name)], [61])

    @asynchronous
    async def test_who_holds_the_greatest_and_the_least(self) -> None:
        server = await self.filled()
        for place, client in enumerate(CLIENTS):
            await self.post(server, events("held", "TotalsCounter", [1.0] * (place + 1)), client=client)
        one = (await self.get(server, "/v1/who?name=held&limit=2"))["held"]
        self.assertEqual((one["path"], one["clients"], one["total"], one["median"]), ("count", 5, 15, 3))
        self.assertEqual([item["client"] for item in one["greatest"]], ["web/4", "web/3"])
        self.assertEqual([item["client"] for item in one["least"]], ["web/0", "web/1"])
        self.assertEqual(one["greatest"][0]["share"], 5 / 15)
        self.assertAlmostEqual(one["skew"], 5 / 3)
        self.assertEqual((await self.get(server, "/v1/who?name=slow&path=1h.max&limit=1"))["slow"]["greatest"][0]["value"], 5)
        nothing = (await self.get(server, "/v1/who?name=slow&path=1h.nothing"))["slow"]
        self.assertEqual((nothing["path"], nothing["clients"], nothing["greatest"], nothing["skew"]), ("1h.nothing", 0, [], None))
        self.assertIn("no number at 1h.nothing; numbers are at 1m.count, ", nothing["error"])
        await self.post(server, events("texts", "Gauge", ["on"]) + events("names", "Buffer", ["on"]))
        texts = await self.get(server, "/v1/who?name=texts&name=names")
        self.assertIn("unless path= says it; numbers are at time", texts["texts"]["error"])
        self.assertIn("what it shows has no numbers by name", texts["names"]["error"])
        for bad in ("path=.", "limit=0", f"limit={bounds.MAX_WHO + 1}"):
            self.assertEqual((await self.ask(server, f"/v1/who?{bad}")).status, 400, bad)
        breathed: list[None] = []
        in_order = turns.in_order

        async def counted(items: Any, breathe: Any) -> Any:
            async def other() -> None:
                breathed.append(None)
                await breathe()

            return await in_order(items, other)

        self.patch(overview, "in_order", counted)
        self.patch(turns, "SORTED_AT_ONCE", 2)
        self.assertEqual((await self.get(server, "/v1/who?name=held&limit=2"))["held"], one)
        self.assertEqual(len(breathed), 3 + 2)  # five in parts of two, and put together two at a time
        self.patch(overview, "MAX_HELD", 5)
        self.assertEqual((await self.get(server, "/v1/who?name=held"))["held"]["clients"], 5)
        self.patch(overview, "MAX_HELD", 4)
        cut = (await self.get(server, "/v1/who?name=held"))["held"]
        self.assertEqual(cut["clients"], 4)
        self.assertIn("more than 4 Clients", cut["error"])

    @asynchronous
    async def test_figures_that_no_sum_holds_spoil_nothing_else(self) -> None:
        server = await self.start()
        for place, value in enumerate((1.7e308, 1.7e308, -1e-308)):
            await self.post(server, events("vast", "Gauge", [value]), client=CLIENTS[place])
        await self.post(server, events("load", "Gauge", [10.0]))
        found = await self.get(server, "/v1/who?name=vast&name=load&path=value")
        self.assertEqual((found["vast"]["total"], found["vast"]["clients"], found["vast"]["greatest"][0]["share"]), (None, 3, None))
        self.assertEqual(found["load"]["total"], 10.0)

    @asynchronous
    async def test_sorted_by_a_figure_no_offset_has_more_states_read_than_an_answer_may_have_rows(self) -> None:
        server = await self.filled()
        self.patch(overview, "MAX_SORTED", 1)
        self.patch(overview, "MAX_ROWS", 2)
        asked: list[int] = []
        summaries = server.query.summaries

        def counting(query: Any, *more: Any) -> Any:
            asked.append(len(query.chosen.tabs))
            return summaries(query, *more)

        self.patch(server.query, "summaries", counting)
        self.assertEqual(await self.get(server, "/v1/overview?sort=p99&offset=1000&limit=1"), [])
        self.assertEqual(asked, [2])
