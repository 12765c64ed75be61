"""`/api/v1` over HTTP, with a real store behind it."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import quote, urlencode

from taba.server.prometheus import api, catalogue, rows
from taba.server.prometheus.asked import MAX_FORM_BYTES
from taba.server.service import Server
from taba.server.work.patterns import PatternRefused

from ..running import ServerCase, asynchronous


def event(tab: str, type: str, value: Any, ago: float = 0.0, **labels: str) -> dict[str, Any]:
    return {"tab": tab, "type": type, "value": value, "time": time.time() - ago, "labels": labels}


class Asking(ServerCase):
    async def instant(self, server: Server, text: str, **more: Any) -> Any:
        """The data of an instant query as {labels: number}."""
        found = await self.get(server, "/api/v1/query?" + urlencode({"query": text, **more}))
        return {tuple(sorted(row["metric"].items())): float(row["value"][1]) for row in found["data"]["result"]}

    async def refused(self, server: Server, text: str, status: int = 422) -> str:
        answered = await self.ask(server, "/api/v1/query?query=" + quote(text))
        self.assertEqual((answered.status, answered.json["status"]), (status, "error"), (text, answered.text))
        sentence: str = answered.json["error"]
        return sentence


class Expressions(Asking):
    @asynchronous
    async def test_counters_are_one_over_all_clients_or_each_clients(self) -> None:
        server = await self.start()
        await self.post(server, [event("hits", "CounterGroup", 2, 30, route="/a"), event("hits", "CounterGroup", 3, 20, route="/b")])
        await self.post(server, [event("hits", "CounterGroup", 5, 10, route="/a")], client="web/2")
        name = ("__name__", "hits_total")
        whole = {(name, ("route", "/a")): 7.0, (name, ("route", "/b")): 3.0}
        self.assertEqual(await self.instant(server, "hits_total"), whole)
        self.assertEqual(await self.instant(server, 'hits_total{client=""}'), whole)
        self.assertEqual(await self.instant(server, 'hits_total{client="web/2"}'), {(name, ("client", "web/2"), ("route", "/a")): 5.0})
        for text, count in (('client=~"web/.*"', 3), ('client!="web/1"', 1), ('client=~"nobody"', 0), ('client=~".+",route="/a"', 2)):
            self.assertEqual(len(await self.instant(server, f"hits_total{{{text}}}")), count, text)
        # a first event counts, and nothing is extrapolated
        self.assertEqual(await self.instant(server, "sum(increase(hits_total[5m]))"), {(): 10.0})
        self.assertEqual(await self.instant(server, "sum(increase(hits_events_total[5m]))"), {(): 3.0})
        self.assertAlmostEqual((await self.instant(server, "sum(rate(hits_total[5m]))"))[()], 10 / 300)
        self.assertEqual(await self.instant(server, "sum by (route) (hits_total) > 5"), {(("route", "/a"),): 7.0})
        self.assertEqual(await self.instant(server, "sum(increase(hits_total[5m] offset 10m))"), {(): 0.0})
        self.assertEqual(await self.instant(server, "hits_total offset 2d"), {})
        self.assertEqual(await self.instant(server, "increase(hits_total[2d])"), {})

    @asynchronous
    async def test_every_type_has_its_series_as_they_are_now(self) -> None:
        server = await self.start()
        events = [
            event("depth", "Gauge", 7),
            event("phase", "Gauge", "starting"),
            event("held", "ExpiryGauge", {"value": 4, "seconds": 3000.0}, 1000),
            event("old", "Gauge", 1, 1000),
            event("busy", "UpDown", 2),
            event("jobs", "TopK", "nightly"),
            event("users", "Cardinality", "ada"),
            event("sizes", "TotalsCounter", 4),
            event("spent", "PercentileCounter", 4),
            event("sent", "Cumulative", [4, time.time() - 100]),
            event("balance", "CounterGroup", -4),
            event("words", "Buffer", "x"),
        ]
        self.assertEqual((await self.post(server, events)).status, 200)
        client = ("client", "web/1")
        for text, expected in (
            ("depth", {(("__name__", "depth"), client): 7.0}),
            ("phase_info", {(("__name__", "phase_info"), client, ("value", "starting")): 1.0}),
            ('phase_info{value=~"st.*"}', {(("__name__", "phase_info"), client, ("value", "starting")): 1.0}),
            ('phase_info{value="other"}', {}),
            ("phase", {}),
            ('depth{client=""}', {}),
            ("held", {(("__name__", "held"), client): 4.0}),
            ("old", {}),  # nobody says that its Client lives, and it is no longer fresh
            ("sum(busy)", {(): 2.0}),
            ("jobs_top", {(("__name__", "jobs_top"), ("value", "nightly")): 1.0}),
            ("users_distinct", {(("__name__", "users_distinct"),): 1.0}),
            ("sizes_total", {(("__name__", "sizes_total"),): 4.0}),
            ("sizes_events_total", {(("__name__", "sizes_events_total"),): 1.0}),
            ('spent_bucket{le="5.0"}', {(("__name__", "spent_bucket"), ("le", "5.0")): 1.0}),
            (
                'spent_bucket{le=~"2.5|1.0"}',
                {(("__name__", "spent_bucket"), ("le", "1.0")): 0.0, (("__name__", "spent_bucket"), ("le", "2.5")): 0.0},
            ),
            ("histogram_count(spent)", {(): 1.0}),
            ("sent_total", {(("__name__", "sent_total"),): 4.0}),
            ("balance_total", {}),
            ("balance_sum", {(("__name__", "balance_sum"),): -4.0}),
            ("words", {}),
            ("absent(words)", {(): 1.0}),
        ):
            self.assertEqual(await self.instant(server, text), expected, text)
        self.assertIn("keeps no past", await self.refused(server, "rate(depth[5m])"))
        found = await self.get(server, "/api/v1/query?query=depth&time=" + str(time.time() - 600))
        self.assertEqual(found["data"]["result"], [])
        self.assertIn("as it is now", found["infos"][0])

    @asynchronous
    async def test_distributions_are_asked_as_sketches_and_as_buckets(self) -> None:
        server = await self.start()
        values = [value / 100 for value in range(1, 101)]
        for client in ("web/1", "web/2"):
            await self.post(server, [event("http.wait_seconds", "PercentileGroup", value, 60) for value in values], client=client)
        p90 = await self.instant(server, "histogram_quantile(0.9, sum(rate(http_wait_seconds[5m])))")
        self.assertApproximates(p90[()], 0.9, 0.01)
        buckets = await self.instant(server, "histogram_quantile(0.9, sum by (le) (rate(http_wait_seconds_bucket[5m])))")
        self.assertApproximates(buckets[()], 0.9, 0.2)
        self.assertEqual(await self.instant(server, "sum(http_wait_seconds_count)"), {(): 200.0})
        self.assertEqual(await self.instant(server, '{"http.wait_seconds_count"}'), {(("__name__", "http_wait_seconds_count"),): 200.0})
        self.assertEqual(len(await self.instant(server, "http_wait_seconds_bucket")), 15)
        self.assertEqual(len(await self.instant(server, "http_wait_seconds_bucket", le="0.5")), 2)
        for text, expected in (
            ("histogram_count(http_wait_seconds)", 200.0),
            ("histogram_avg(rate(http_wait_seconds[5m]))", 0.505),
            ("count_over_time(http_wait_seconds[5m])", 200.0),
            ("avg_over_time(http_wait_seconds[5m])", 0.505),
            ('histogram_count(http_wait_seconds{client="web/1"})', 100.0),
            ("sum(increase(http_wait_seconds_sum[5m]))", 101.0),
        ):
            [found] = (await self.instant(server, text)).values()
            self.assertAlmostEqual(found, expected, places=6, msg=text)
        [most] = (await self.instant(server, "max_over_time(http_wait_seconds[5m])")).values()
        self.assertApproximates(most, 1.0, 0.01)
        answer = await self.get(server, "/api/v1/query?query=http_wait_seconds")
        histogram = answer["data"]["result"][0]["histogram"][1]
        self.assertEqual((histogram["count"], sum(float(bucket[3]) for bucket in histogram["buckets"])), ("200", 200.0))
        self.assertIn("distribution itself", await self.refused(server, "avg_over_time(http_wait_seconds_count[5m])"))
        self.assertIn("numbers, not distributions", await self.refused(server, "http_wait_seconds + 1"))

    @asynchronous
    async def test_a_range_has_a_point_for_each_step_and_says_how_fine_the_past_is(self) -> None:
        server = await self.start()
        now = time.time()
        await self.post(server, [event("hits", "CounterGroup", 1, ago) for ago in (60, 100, 7000)])
        asked = {"query": "sum(increase(hits_total[1m]))", "start": now - 6 * 3600, "end": now, "step": "15s"}
        found = await self.get(server, "/api/v1/query_range?" + urlencode(asked))
        [row] = found["data"]["result"]
        self.assertEqual((found["data"]["resultType"], len(row["values"])), ("matrix", 1441))
        self.assertEqual(sum(float(value) for _, value in row["values"][::4]), 3.0)  # windows that touch have every event once
        scalar = await self.get(server, "/api/v1/query_range?" + urlencode({**asked, "query": "1+1", "step": 3600}))
        self.assertEqual([value for _, value in scalar["data"]["result"][0]["values"]], ["2"] * 7)
        for wrong, word in (
            ({"step": "0"}, "step="),
            ({"step": "1"}, "11000"),
            ({"end": now - 7 * 3600}, "before"),
            ({"start": "yesterday"}, "start="),
            ({"query": ""}, "query="),
            ({"query": "abs("}, "parse"),
        ):
            answered = await self.ask(server, "/api/v1/query_range?" + urlencode({**asked, **wrong}))
            self.assertEqual((answered.status, answered.json["errorType"]), (400, "bad_data"), answered.text)
            self.assertIn(word, answered.json["error"])
        for garbled in ("9" * 5000 + "s", "1" * 400, "nan", "-5", "5x", "0001-01-01T00:00:00+23:59"):
            for name in ("step", "start"):
                if name == "start" and garbled == "-5":
                    continue  # a time, if an early one
                answered = await self.ask(server, "/api/v1/query_range?" + urlencode({**asked, name: garbled}))
                self.assertEqual(answered.status, 400, (name, garbled, answered.text))
        rfc = await self.ask(server, "/api/v1/query?query=1&time=2026-01-01T00:00:00.5Z")
        self.assertEqual(rfc.json["data"]["result"], [1767225600.5, "1"])

    @asynchronous
    async def test_what_would_take_too_much_is_refused_and_says_how_to_ask(self) -> None:
        server = await self.start()
        await self.post(server, [event("hits", "CounterGroup", 1, n=str(place)) for place in range(5)])
        self.assertIn("takes at most", await self.refused(server, "(" * 101 + "1" + ")" * 101, 400))
        self.assertIn("takes at most", await self.refused(server, "1" + "+1" * 501, 400))
        self.patch(api, "MAX_LISTED", 3)
        found = await self.get(server, "/api/v1/series?match[]=hits_total")
        self.assertEqual((len(found["data"]), found["warnings"]), (3, ["results truncated due to limit"]))
        self.patch(rows, "MAX_VALUES", 4 * rows.ROW_VALUES)
        self.assertIn("longer step", await self.refused(server, "hits_total"))
        self.assertEqual(await self.instant(server, "sum(hits_total)"), {(): 5.0})


class WhatThereIs(Asking):
    @asynchronous
    async def test_labels_values_series_and_metadata(self) -> None:
        server = await self.start()
        await self.post(server, [event("hits", "CounterGroup", 2, route="/a"), event("wait_seconds", "PercentileGroup", 2)])
        await self.post(server, [event("depth", "Gauge", 2, client="theirs")], client="web/2")

        async def told(path: str) -> Any:
            found = await self.get(server, "/api/v1/" + path)
            self.assertEqual(found["status"], "success")
            return found["data"]

        self.assertEqual(await told("labels"), ["__name__", "client", "exported_client", "le", "route"])
        self.assertEqual(await told("labels?match[]=hits_total"), ["__name__", "client", "route"])
        names = ["depth", "hits_events_total", "hits_total", "wait_seconds_bucket", "wait_seconds_count", "wait_seconds_sum"]
        self.assertEqual(await told("label/__name__/values"), names)
        self.assertEqual(await told("label/client/values"), ["web/1", "web/2"])
        self.assertEqual(await told("label/client/values?match[]=depth"), ["web/2"])
        self.assertEqual(await told("label/route/values"), ["/a"])
        self.assertEqual(await told("label/nothing/values"), [])
        self.assertEqual(await told("label/route/values?limit=1&start=1&end=2&whatever=x"), ["/a"])
        self.assertEqual(await told("series?match[]=hits_total"), [{"__name__": "hits_total", "route": "/a"}])
        of_client = await told("series?match[]=" + quote('{client="web/2"}'))
        self.assertEqual(of_client, [{"__name__": "depth", "client": "web/2", "exported_client": "theirs"}])
        metadata = await told("metadata")
        self.assertEqual(metadata["hits_total"], [{"type": "counter", "help": "Sum of all values ever.", "unit": ""}])
        self.assertEqual(metadata["wait_seconds"][0]["type"], "histogram")
        self.assertEqual(list(await told("metadata?metric=depth")), ["depth"])
        self.assertEqual(sorted(metadata), ["depth", "hits_events_total", "hits_total", "wait_seconds"])
        self.assertEqual(list(await told("metadata?metric=hits_sum")), ["hits_sum"])
        self.assertEqual(await told("rules"), {"groups": []})
        self.assertEqual(await told("alerts"), {"alerts": []})
        self.assertEqual(await told("query_exemplars?query=x"), [])
        self.assertTrue((await told("status/buildinfo"))["version"])
        for path in ("labels?end=x", "label/route/values?start=yesterday", "series?match[]=hits_total&start=1e99", "series"):
            self.assertEqual((await self.ask(server, f"/api/v1/{path}")).status, 400, path)
        self.assertEqual((await self.ask(server, "/api/v1/series?match[]=1")).status, 400)

    @asynchronous
    async def test_a_tab_that_came_is_there_at_once_and_two_of_one_name_are_a_problem(self) -> None:
        server = await self.start()
        self.assertEqual(await self.instant(server, "a_b_total"), {})
        await self.post(server, [event("a.b", "CounterGroup", 2)])
        self.assertEqual(len(await self.instant(server, "a_b_total")), 1)
        await self.post(server, [event("a/b", "CounterGroup", 5)])
        self.assertEqual(list((await self.instant(server, "a_b_total")).values()), [2.0])
        problems = (await self.get(server, "/v1/status"))["problems"]
        self.assertTrue(any("a/b as a_b_total, which a.b has" in problem for problem in problems), problems)

    @asynchronous
    async def test_more_tabs_than_names_are_kept_of_are_a_problem_and_one_less_is_none(self) -> None:
        server = await self.start()
        await self.post(server, [event("one", "Gauge", 1), event("two", "Gauge", 1)])
        for most, is_answered in ((1, False), (2, True)):
            self.patch(catalogue, "MAX_TABS", most)
            answered = await self.ask(server, "/api/v1/query?query=one")
            self.assertEqual(answered.status, 200 if is_answered else 422)
            problems = [text for text in (await self.get(server, "/v1/status"))["problems"] if "Prometheus' names" in text]
            self.assertEqual(len(problems), 0 if is_answered else 1)
            scraped = await self.ask(server, "/metrics?match=.*")
            self.assertEqual(scraped.status, 200 if is_answered else 400)

    @asynchronous
    async def test_what_is_listed_is_what_was_asked_for(self) -> None:
        server = await self.start()
        await self.post(server, [event("hits", "CounterGroup", 2), event("hit", "Buffer", "x"), event("depth", "Gauge", 2)])
        await self.post(server, [event("depth", "Gauge", 3), event("height", "Gauge", 3)], client="web/2")
        looks = 0
        clients_of = server.query.clients_of

        def counted(tabs: Any) -> Any:
            nonlocal looks
            looks += 1
            return clients_of(tabs)

        self.patch(server.query, "clients_of", counted)
        for text, names in (
            ('{__name__=~"hits.*"}', ["hits_events_total", "hits_total"]),
            ("hits_total", ["hits_total"]),
            ('{__name__=~".*t.*", client="web/2"}', ["depth", "height"]),
            ('{__name__=~".*th", client=~".*"}', ["depth", "depth"]),
            ('hits_total{client=""}', ["hits_total"]),
            ('depth{client=""}', []),
        ):
            found = await self.get(server, "/api/v1/series?match[]=" + quote(text))
            self.assertEqual(sorted(row["__name__"] for row in found["data"]), names, text)
            found = await self.get(server, "/api/v1/label/__name__/values?match[]=" + quote(text))
            self.assertNotIn("hit", found["data"], text)
        self.assertEqual(looks, 2)  # once for all Tabs of a selector
        for many, status in ((api.MAX_SELECTORS, 200), (api.MAX_SELECTORS + 1, 400)):
            for path in ("series", "labels", "label/x/values"):
                answered = await self.ask(server, f"/api/v1/{path}?" + "&".join(["match[]=depth"] * many))
                self.assertEqual(answered.status, status, (path, many))
        for step in ("1e-310", "5e-324", "nan", "inf", "-1", "0"):
            answered = await self.ask(server, f"/api/v1/query_range?query=1&start=0&end=3600&step={step}")
            self.assertEqual(answered.status, 400, (step, answered.text))

    @asynchronous
    async def test_what_grafanas_data_source_sends_is_answered(self) -> None:
        server = await self.start()
        now = int(time.time())
        await self.post(server, [event("hits", "CounterGroup", 2, 30, route="/a")])
        form = {"Content-Type": ["application/x-www-form-urlencoded"]}
        for path, body in (
            # the health check, and what kind of server it is
            ("/api/v1/query", {"query": "1+1", "time": "4"}),
            ("/api/v1/query_range", {"query": "sum(rate(hits_total[1m0s]))", "start": now - 3600, "end": now, "step": "15"}),
            (
                "/api/v1/query_range?timeout=30s",
                {"query": "hits_total", "start": f"{now - 60}.5", "end": now, "step": "15s", "stats": "all"},
            ),
            ("/api/v1/query", {"query": 'label_replace(hits_total, "x", "$1", "route", "(.*)")', "time": f"{now}.001"}),
            ("/api/v1/labels", {"start": now - 3600, "end": now, "match[]": '{__name__="hits_total"}', "limit": 40000}),
            ("/api/v1/series", [("match[]", "hits_total"), ("match[]", '{__name__=~".*events.*"}'), ("start", now), ("end", now)]),
            ("/api/v1/query_exemplars", {"query": "hits_total", "start": now - 60, "end": now}),
        ):
            answered = await self.ask(server, path, "POST", urlencode(body).encode(), form)
            self.assertEqual((answered.status, answered.json["status"]), (200, "success"), (path, answered.text))
        for path in (
            "status/buildinfo",
            "metadata?limit=40000",
            "rules",
            "alerts",
            f"label/__name__/values?start={now - 3600}&end={now}&limit=40000",
            "label/route/values?match%5B%5D=hits_total",
            "label/U__route/values",
            "query?query=1%2B1&query=2&time=4",
        ):
            answered = await self.ask(server, "/api/v1/" + path)
            self.assertEqual((answered.status, answered.json["status"]), (200, "success"), (path, answered.text))
        # parameters in the URL of a POST, and in its form
        answered = await self.ask(server, "/api/v1/query?query=1%2B1", "POST", b"time=4", form)
        self.assertEqual(answered.json["data"]["result"], [4, "2"])
        self.assertEqual((await self.ask(server, "/api/v1/query", "POST", b"\xff=%zz", form)).status, 400)
        room = MAX_FORM_BYTES - len(b"query=1&x=")
        for size, status in ((room, 200), (room + 1, 413)):
            answered = await self.ask(server, "/api/v1/query", "POST", b"query=1&x=" + b"y" * size, form)
            self.assertEqual(answered.status, status, answered.text)

    @asynchronous
    async def test_notes_are_annotations(self) -> None:
        server = await self.start()
        now = time.time()
        for text, ago in (("deploy 1.4", 100.0), ("deploy 1.5", 1000.0), ("deploy 1.4", 2000.0)):
            body = json.dumps({"text": text, "time": now - ago}).encode()
            self.assertLess((await self.ask(server, "/v1/notes", "POST", body)).status, 300)
        asked = {"query": "taba_note", "start": now - 3600, "end": now, "step": 60}
        found = await self.get(server, "/api/v1/query_range?" + urlencode(asked))
        rows = {row["metric"]["text"]: row["values"] for row in found["data"]["result"]}
        self.assertEqual({text: len(values) for text, values in rows.items()}, {"deploy 1.4": 2, "deploy 1.5": 1})
        [(at, milliseconds)] = rows["deploy 1.5"]
        self.assertAlmostEqual(float(milliseconds) / 1000, now - 1000, places=2)
        self.assertTrue(at - 60 < now - 1000 <= at)
        self.assertEqual(list(await self.instant(server, "count(taba_note)")), [()])
        self.assertIn("as it is", await self.refused(server, "rate(taba_note[5m])"))

    @asynchronous
    async def test_expressions_that_would_take_for_ever_or_end_their_process_harm_nobody(self) -> None:
        server = await self.start()
        await self.post(server, [event("hits", "CounterGroup", 2, route="a" * 60 + "!")])
        with self.assertRaises(PatternRefused):
            await server.sandbox.parse("abs(" * 8000)
        slow = '"(a+)+"'
        self.assertIn("takes too long", await self.refused(server, f'label_replace(hits_total, "x", "$1", "route", {slow})'))
        self.assertIn("no regular expression", await self.refused(server, 'label_replace(hits_total, "x", "$1", "route", "(")'))
        self.assertIn("illegal regex", await self.refused(server, 'hits_total{route=~"(?P<"}', 400))
        self.assertEqual(len(await self.instant(server, "hits_total")), 1)
