"""Caps on Tabs and Clients of a bucket: what is beyond is a dead letter, and who sent it is named."""

from __future__ import annotations

from collections import Counter
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from taba.names import bucket_of
from taba.server import status as statuses
from taba.server.fold.bounds import MAX_STREAMS
from taba.server.fold.deadletters import MAX_DEAD_LETTERS
from taba.server.fold.ingest import MAX_LINE_BYTES, MAX_WAITING_BYTES
from taba.server.fold.posts import MAX_KEYS, MAX_POSTERS
from taba.server.notes import MAX_NOTES
from taba.server.page.boards import MAX_BOARDS
from taba.server.work.patterns import MAX_PATTERNS, PLACES_OF_ASKER

from .running import BUCKETS, ServerCase, asynchronous


class Capped(ServerCase):
    @asynchronous
    async def test_who_sends_ever_new_names_is_named_and_the_others_go_on(self) -> None:
        server = await self.start(max_tabs="3", max_clients="4")
        good = [{"tab": f"good{n}", "type": "TotalsCounter", "value": 1} for n in range(3)]
        self.assertEqual((await self.post(server, good)).status, 200)
        names = [{"tab": "request", "labels": {"id": str(n)}, "type": "TotalsCounter", "value": 1} for n in range(200)]
        self.assertEqual((await self.post(server, names, client="web/2")).status, 200)
        self.assertEqual((await self.post(server, good)).status, 200)
        for n in range(8):
            self.assertEqual((await self.post(server, good[:1], client=f"pod/{n}")).status, 200)
        self.assertEqual((await self.get(server, "/v1/projections?name=good0"))["good0"]["web/1"]["total"], 2)
        status = await self.get(server, "/v1/status")
        dead = status["dead_letters_by_reason"]
        self.assertGreater(dead["too_many_tabs"], 100)
        self.assertGreaterEqual(dead["too_many_clients"], 4)
        self.assertEqual(status["folded"] + sum(dead.values()), 3 + 200 + 3 + 8)
        self.assertEqual((status["caps"]["bucket_tabs"], status["caps"]["bucket_clients"]), (3, 4))
        [tabs] = [problem for problem in status["problems"] if "takes 3 Tabs" in problem]
        self.assertIn(f"{dead['too_many_tabs']} events found no room", tabs)
        self.assertIn("request by web/2", tabs)
        [clients] = [problem for problem in status["problems"] if "takes 4 Clients" in problem]
        self.assertIn("good0 by pod/", clients)

    @asynchronous
    async def test_all_buckets_together_take_as_many_as_they_may_and_the_status_shows_how_many_there_are(self) -> None:
        server = await self.start(max_all_tabs="5", max_all_clients="7")
        names = [{"tab": f"tab{n}", "type": "TotalsCounter", "value": 1} for n in range(6)]
        for name in names:  # one after the other: cycles of several buckets at once each have the same room
            self.assertEqual((await self.post(server, [name])).status, 200)
        status = await self.get(server, "/v1/status")
        self.assertEqual((status["in_all"]["tabs"], status["dead_letters_by_reason"]), (5, {"too_many_tabs": 1}))
        for n in range(8):
            self.assertEqual((await self.post(server, names[:1], client=f"pod/{n}")).status, 200)
        status = await self.get(server, "/v1/status")
        self.assertEqual(status["in_all"]["tabs"], 5)
        self.assertEqual(status["folded"] + sum(status["dead_letters_by_reason"].values()), 6 + 8)
        self.assertLessEqual(status["in_all"]["clients"], 7)
        self.assertGreaterEqual(status["dead_letters_by_reason"].get("too_many_clients", 0), 1)
        self.assertEqual((status["in_all"]["streams"], status["in_all"]["posters"]), (0, 0))
        self.assertGreater(status["in_all"]["keyed_streams"], 0)  # what is posted without a key has one for each Server
        self.assertEqual((status["caps"]["bucket_streams"], status["caps"]["bucket_posters"]), (MAX_STREAMS, MAX_POSTERS))
        self.assertEqual((status["caps"]["all_tabs"], status["caps"]["all_clients"]), (5, 7))
        [said] = [problem for problem in status["problems"] if "all buckets together take 5 Tabs" in problem]
        self.assertIn("by web/1 (1): ", said)
        [said] = [problem for problem in status["problems"] if "all buckets together take 7 Clients" in problem]
        self.assertIn("by pod/", said)

    @asynchronous
    async def test_whatever_has_a_bound_is_shown_with_it(self) -> None:
        self.patch(statuses, "COUNTS_SECONDS", 0.0)
        self.patch(statuses, "HELD_SECONDS", 0.0)
        server = await self.start()
        before = await self.get(server, "/v1/status")
        shown = ("keyed_streams", "posters", "dead_letters", "boards", "notes")
        self.assertEqual([before["in_all"][name] for name in shown], [0] * 5)
        self.assertEqual(before["waiting"], {"bytes": 0, "lines": 0, "greatest_line_bytes": 0})
        strange = [{"tab": f"tab{n}", "type": "Nowhere", "value": n} for n in range(3)]
        self.assertEqual((await self.post(server, strange, key="k")).status, 200)
        self.assertEqual((await self.ask(server, "/v1/notes", "POST", b'{"text": "deploy"}')).status, 200)
        self.assertEqual((await self.ask(server, "/v1/boards/mine", "PUT", b'{"tabs": ["a"]}')).status, 200)
        after = await self.get(server, "/v1/status")
        used = {name: after["in_all"][name] for name in shown}
        self.assertEqual(used, {"keyed_streams": used["keyed_streams"], "posters": 1, "dead_letters": 3, "boards": 1, "notes": 1})
        self.assertGreater(used["keyed_streams"], 0)
        bounds = {"client_keys": MAX_KEYS, "bucket_dead_letters": MAX_DEAD_LETTERS, "boards": MAX_BOARDS, "notes": MAX_NOTES}
        bounds |= {"line_bytes": MAX_LINE_BYTES, "waiting_bytes": MAX_WAITING_BYTES}
        self.assertEqual({name: after["caps"][name] for name in bounds}, bounds)
        held = after["held"]
        of_store = ("tabs", "clients", "boards", "notes", "bucket_tabs", "bucket_clients", "bucket_streams", "bucket_posters")
        of_process = ("waiting_bytes", "line_bytes", "receiving_bytes", "connections", "newcomers", "listeners", "streams_sent")
        of_askers = {"reading_bytes", "streams_sent", "live_questions", "promql", "scrapes", "patterns", "apart"}
        self.assertEqual(set(held), {*of_store, "bucket_dead_letters", *of_process, *of_askers})
        self.assertEqual({what for what, one in held.items() if "each" in one}, of_askers)
        fullest = max(Counter(bucket_of(f"tab{n}", BUCKETS) for n in range(3)).values())  # an entry for each bucket's
        self.assertEqual(held["bucket_dead_letters"], {"count": fullest, "most": MAX_DEAD_LETTERS})
        self.assertEqual(held["bucket_posters"], {"count": 1, "most": MAX_POSTERS})
        self.assertEqual((held["boards"], held["notes"]), ({"count": 1, "most": MAX_BOARDS}, {"count": 1, "most": MAX_NOTES}))
        self.assertGreaterEqual(held["connections"]["count"] + held["newcomers"]["count"], 1)  # that which asks
        self.assertEqual(held["patterns"], {"count": 0, "most": MAX_PATTERNS, "greatest": 0, "each": PLACES_OF_ASKER, "displaced": 0})
        self.assertEqual({what for what, one in held.items() if "displaced" in one}, {"patterns", "promql", "scrapes"})
        self.assertEqual(set(held["streams_sent"]), {"count", "most", "greatest", "each"})
        families = text_string_to_metric_families((await self.ask(server, "/metrics")).text)
        scraped = {(sample.name, sample.labels.get("what")): sample.value for family in families for sample in family.samples}
        for what, one in held.items():
            self.assertEqual(scraped["taba_held_most", what], one["most"])
            self.assertEqual(scraped.get(("taba_held_each", what)), one.get("each"))
        self.assertEqual((scraped["taba_held", "bucket_posters"], scraped["taba_held", "notes"]), (1, 1))

    @asynchronous
    async def test_how_much_a_bucket_has_is_asked_where_its_counts_changed_and_of_all_once_it_is_old(self) -> None:
        server = await self.start()
        asked: list[int] = []
        sizes_of = statuses._sizes_of

        def counted(bucket: int) -> Any:
            asked.append(bucket)
            return sizes_of(bucket)

        self.patch(statuses, "_sizes_of", counted)
        self.patch(statuses, "COUNTS_SECONDS", 0.0)
        self.patch(statuses, "HELD_SECONDS", 1e9)
        await self.get(server, "/v1/status")
        asked.clear()
        await self.post(server, [{"tab": "one", "type": "TotalsCounter", "value": 1}])
        told = await self.get(server, "/v1/status")
        self.assertEqual((told["in_all"]["tabs"], told["in_all"]["clients"]), (1, 1))
        self.assertEqual(asked, [bucket_of("one", BUCKETS)])
        await self.get(server, "/v1/status")
        self.assertEqual(len(asked), 1)
        self.patch(statuses, "HELD_SECONDS", 0.0)
        await self.get(server, "/v1/status")
        self.assertEqual(len(asked), 1 + BUCKETS)
