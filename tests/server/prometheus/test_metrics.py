"""`/metrics` of a Server, read by Prometheus' own parsers."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase

from taba.exposition import OF_PROCESS, Exposed, Point, Writer, of_process, writer_for
from taba.series import COUNTER
from taba.server import keys
from taba.server.fold.cycle import bucket_of
from taba.server.prometheus import metrics, rows
from taba.server.prometheus.catalogue import Series
from taba.server.prometheus.reading import SeriesReading

from ..running import BUCKETS, ServerCase, asynchronous
from .test_api import event

OPENMETRICS = {"Accept": ["application/openmetrics-text; version=1.0.0"]}


def samples(families: Any) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for family in families for sample in family.samples}


class Writing(SynchronousTestCase):
    def test_families_written_one_after_the_other_are_one_document(self) -> None:
        families = [
            Exposed("a_seconds_total", COUNTER, "Of a\nkind \\ .", [Point("a_seconds_total", {"x": 'say "hi"\n\\'}, 2.5)], "seconds"),
            Exposed("b", "gauge", "", [Point("b", {}, float("inf"))]),
            Exposed("c", "unknown", "", []),
        ]
        for accept, parse in (("", text_string_to_metric_families), (OPENMETRICS["Accept"][0], openmetrics.text_string_to_metric_families)):
            writer = writer_for(accept)
            text = (b"".join(map(writer.write, families)) + writer.end).decode()
            found = samples(parse(text))
            self.assertEqual(found, {("a_seconds_total", (("x", 'say "hi"\n\\'),)): 2.5, ("b", ()): float("inf")})
        for garbled in ("application/openmetrics-text; version=abc", "text/plain;version=x.y", ",;=,"):
            self.assertTrue(writer_for(garbled).write(families[1]))
        self.assertTrue(text.endswith("# EOF\n"))
        self.assertEqual(text.count("# EOF"), 1)
        self.assertIn("# UNIT a_seconds seconds", text)

    def test_more_of_a_family_has_no_head_whatever_its_labels_hold(self) -> None:
        first, more = (Exposed("b", "gauge", "help", [Point("b", {"x": label}, 1.0)]) for label in ("one", "two\r# no head\n# none"))
        writer = writer_for("")
        text = (writer.write(first) + writer.write(more, is_more=True)).decode()
        self.assertEqual(text.count("# "), 2 + 2)
        self.assertEqual(writer.write(more).endswith(writer.write(more, is_more=True)), True)


class Scrapes(ServerCase):
    @asynchronous
    async def test_no_tab_has_a_name_of_the_servers_own(self) -> None:
        self.assertEqual({family.name.removesuffix("_total") for family in of_process()} - set(OF_PROCESS), set())
        server = await self.start()
        tabs = ("taba_problems", "taba/of/tomorrow", "process_open_fds", "process.resident.memory_bytes")
        await self.post(server, [event(tab, "Gauge", 7) for tab in (*tabs, "tabard", "process_open")])
        await self.post(server, [event("process_cpu_seconds", "CounterGroup", 7), event("taba_workers", "PercentileGroup", 7)])
        for headers, parse in (({}, text_string_to_metric_families), (OPENMETRICS, openmetrics.text_string_to_metric_families)):
            answered = await self.ask(server, "/metrics?match=.*", headers=headers)
            families = list(parse(answered.text))
            names = [family.name for family in families]
            self.assertEqual(len(names), len(set(names)))
            found = [sample.value for family in families for sample in family.samples if family.name == "taba_problems"]
            self.assertEqual(len(found), 1)
            self.assertTrue({"tabard", "process_open"} <= set(names))
        [problem] = [text for text in (await self.get(server, "/v1/status"))["problems"] if "Prometheus" in text]
        self.assertRegex(problem, "^6 series")
        self.assertIn("taba/of/tomorrow as taba_of_tomorrow, which Taba itself has", problem)

    @asynchronous
    async def test_many_tabs_are_read_in_lots_and_no_family_is_torn(self) -> None:
        server = await self.start()
        for route in "abcde":
            await self.post(server, [event("hits", "CounterGroup", 2, route=route), event("wait", "PercentileGroup", 0.3, route=route)])
        await self.post(server, [event("hits_total", "CounterGroup", 3, route="f"), event("alone", "Gauge", 3)])
        path = "/metrics?match=hits.*%7Cwait.*%7Calone"

        async def scraped() -> Any:
            answered = await self.ask(server, path, headers=OPENMETRICS)
            return {
                found: value
                for found, value in samples(openmetrics.text_string_to_metric_families(answered.text)).items()
                if not found[0].startswith(("taba_", "process_"))
            }

        whole = await scraped()
        self.assertEqual(len(whole), 6 + 6 + 5 * 17 + 1)
        read: list[int] = []
        read_chosen = SeriesReading.read_chosen

        def counting(reading: SeriesReading, chosen: Any, leaf: Any) -> Any:
            read.append(len({series.tab for series in chosen}))
            return read_chosen(reading, chosen, leaf)

        self.patch(SeriesReading, "read_chosen", counting)
        for most, values, largest in ((1, 10**6, 1), (4, 10**6, 4), (13, 900, 7), (4000, 10**6, 12)):
            read.clear()
            self.patch(metrics, "LOT_ROWS", most)
            self.patch(rows, "MAX_VALUES", values)
            self.assertEqual(await scraped(), whole, most)
            self.assertEqual(max(read), largest)
        self.patch(rows, "MAX_VALUES", 600)  # not even one Tab's buckets
        lacking = (await self.ask(server, path)).text
        self.assertIn("taba_scrape_left_out 15.0", lacking)
        self.assertIn('hits_total{route="a"} 2.0', lacking)

    @asynchronous
    async def test_health_is_there_and_tabs_where_they_are_asked_for(self) -> None:
        server = await self.start()
        events = [
            event("hits", "CounterGroup", 2, route="/a"),
            event("wait_seconds", "PercentileGroup", 0.3),
            event("depth", "Gauge", 7),
            event("phase", "Gauge", "up"),
            event("balance", "CounterGroup", -1),
            event("other", "CounterGroup", 1),
            event("jobs", "TopK", "x"),
        ]
        await self.post(server, events)
        for headers, parse in (({}, text_string_to_metric_families), (OPENMETRICS, openmetrics.text_string_to_metric_families)):
            health = await self.ask(server, "/metrics", headers=headers)
            self.assertEqual(health.status, 200, health.text)
            found = samples(parse(health.text))
            self.assertEqual(found[("taba_problems", ())], len((await self.get(server, "/v1/status"))["problems"]))
            self.assertEqual(found[("taba_folded_events_total", ())], 7.0)
            self.assertIn(("process_resident_memory_bytes", ()), found)
            self.assertFalse([name for name, _ in found if name.startswith("hits")])
            answered = await self.ask(server, "/metrics?whatever=1&le=0.5&match=" + quote("(?!other).*"), headers=headers)
            self.assertEqual(answered.status, 200, answered.text)
            families = list(parse(answered.text))
            found = samples(families)
            kinds = {family.name: family.type for family in families}
            self.assertEqual((kinds["hits"], kinds["wait_seconds"], kinds["depth"]), ("counter", "histogram", "gauge"))
            client = ("client", "web/1")
            for name, labels, value in (
                ("hits_total", [("route", "/a")], 2.0),
                ("hits_events_total", [("route", "/a")], 1.0),
                ("wait_seconds_bucket", [("le", "0.5")], 1.0),
                ("wait_seconds_bucket", [("le", "+Inf")], 1.0),
                ("wait_seconds_sum", [], 0.3),
                ("depth", [client], 7.0),
                ("phase_info", [client, ("value", "up")], 1.0),
                ("balance_sum", [], -1.0),
                ("jobs_top", [("value", "x")], 1.0),
                ("taba_scrape_left_out", [], 0.0),
            ):
                self.assertEqual(found.get((name, tuple(labels))), value, name)
            self.assertFalse([name for name, _ in found if name.startswith(("other", "balance_total", "hits_sum"))])
        for bad in ("match=" + quote("("), "match=" + "x" * 1001, "match=x&le=x"):
            self.assertEqual((await self.ask(server, "/metrics?" + bad)).status, 400, bad)

    @asynchronous
    async def test_a_tab_of_many_clients_is_a_lot_and_written_piece_by_piece(self) -> None:
        server = await self.start()
        for number in range(7):
            gauges = [event(f"depth_{which}", "Gauge", number) for which in "abcd"]
            await self.post(server, [*gauges, event("hits", "CounterGroup", 1)], client=f"web/{number}")
        path = "/metrics?match=depth.*%7Chits"
        read: list[list[str]] = []
        written: list[int] = []
        read_chosen, write = SeriesReading.read_chosen, Writer.write

        def reading(of: SeriesReading, chosen: Any, leaf: Any) -> Any:
            read.append(sorted({series.tab for series in chosen}))
            return read_chosen(of, chosen, leaf)

        def writing(of: Writer, exposed: Exposed, is_more: bool = False) -> bytes:
            if exposed.name.startswith(("depth", "hits")):
                written.append(len(exposed.points))
            return write(of, exposed, is_more)

        whole = (await self.ask(server, path)).text
        self.assertEqual(whole.count("\ndepth_a{"), 7)
        self.patch(SeriesReading, "read_chosen", reading)
        self.patch(Writer, "write", writing)
        lots = [["depth_a", "depth_b"], ["depth_c", "depth_d"], ["hits"]]
        for rows_read, expected in ((14, lots), (13, [["depth_a"], ["depth_b"], ["depth_c"], ["depth_d", "hits"]])):
            self.patch(metrics, "LOT_ROWS", rows_read)
            for at_once in (1, 3, 6, 7, 8):
                self.patch(metrics, "WRITE_ROWS", at_once)
                read.clear()
                written.clear()
                text = (await self.ask(server, path)).text
                self.assertEqual(text[text.index("# HELP depth") :], whole[whole.index("# HELP depth") :])
                self.assertEqual(read, expected)
                self.assertEqual((sum(written), max(written) <= at_once), (4 * 7 + 2, True), written)

    @asynchronous
    async def test_what_is_left_out_of_a_lot_that_is_read_again_is_counted_once(self) -> None:
        server = await self.start()
        for route in "abcd":
            await self.post(server, [event("wait", "PercentileGroup", 0.3, route=route), event("hits", "CounterGroup", 2, route=route)])
        tab = 'hits{route="a"}'
        states = keys.states(bucket_of(tab, BUCKETS)).decode()
        self.valkey.call("HSET", states, keys.state_field(tab, "web/1"), b"x")

        async def left_out() -> str:
            [line] = [
                line for line in (await self.ask(server, "/metrics?match=hits.*")).text.splitlines() if line.startswith("taba_scrape_left")
            ]
            return line

        self.assertEqual(await left_out(), "taba_scrape_left_out 1.0")
        self.patch(rows, "ROW_VALUES", 100)
        self.patch(rows, "MAX_VALUES", 400)  # of 3 Tabs two series each
        self.assertEqual(await left_out(), "taba_scrape_left_out 2.0")  # each family is read by itself


class Parts(SynchronousTestCase):
    def test_a_lot_that_is_too_much_is_halved_until_it_is_one_tabs(self) -> None:
        lot = metrics._Lot([Series(f"hits_{number}_total", f"hits_{number % 3}", "CounterGroup", "count", {}) for number in range(9)])
        self.assertEqual([len(part.series) for part in metrics._parts(lot)], [4, 5])
        waiting, found = [lot], []
        while waiting:
            one = waiting.pop()
            parts = metrics._parts(one)
            self.assertIn(len(parts), (0, 2))
            found += [] if parts else [one]
            waiting += parts[::-1]
        self.assertEqual([series for one in found for series in one.series], list(lot.series))
        self.assertEqual([one.family for one in found], [f"hits_{number}_total" for number in range(9)])
        tabs = metrics._Lot([Series("hits_total", f"hits_{number}", "CounterGroup", "count", {}) for number in range(5)], "hits_total")
        self.assertEqual([(len(part.series), part.family) for part in metrics._parts(tabs)], [(2, "hits_total"), (3, "hits_total")])
