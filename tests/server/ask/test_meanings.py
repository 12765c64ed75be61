"""`/v1/types?detail=1`: unit and description of Tabs."""

from __future__ import annotations

from typing import Any

import msgpack

from taba.batch import BATCH_VERSION, BatchId, Meaning, SentBatch, encode_batch, encode_sections, sections_of
from taba.names import bucket_of

from ..running import BUCKETS, ServerCase, asynchronous
from ..samples import column

NAMES = ("render_seconds", 'hits{a="b"}', "plain")


def saying(number: int, tab: str, *meanings: Any, stream: int = 1) -> SentBatch:
    content = encode_batch(bytes([stream]) * 16, bucket_of(tab, BUCKETS), number, [column(tab, "TotalsCounter", [1.0])], meanings)
    return SentBatch(content, number - 1, bytes(8))


class Types(ServerCase):
    @asynchronous
    async def test_what_was_said_is_shown_and_what_a_name_tells_where_nothing_was(self) -> None:
        server = await self.start()
        for place, (name, meaning) in enumerate(
            zip(NAMES, (Meaning(NAMES[0], "", "how long"), Meaning(NAMES[1], "1", ""), None), strict=True)
        ):
            await self.send(server, saying(1, name, *([meaning] if meaning else []), stream=place + 1))
        told = await self.get(server, "/v1/types?detail=1")
        self.assertEqual(
            told,
            {
                'hits{a="b"}': {"type": "TotalsCounter", "unit": "1", "description": None},
                "plain": {"type": "TotalsCounter", "unit": None, "description": None},
                "render_seconds": {"type": "TotalsCounter", "unit": "seconds", "description": "how long"},
            },
        )
        self.assertEqual(list(told), sorted(told))
        self.assertEqual(await self.get(server, "/v1/types"), dict.fromkeys(sorted(NAMES), "TotalsCounter"))
        self.assertEqual(list(await self.get(server, "/v1/types?detail=1&name=hits%7Ba%3D%22b%22%7D&name=other")), [NAMES[1]])
        text = await self.ask(server, "/v1/types?detail=1&name=plain", headers={"Accept": ["text/plain"]})
        self.assertEqual(text.text, 'plain: {"type": "TotalsCounter", "unit": null, "description": null}\n')
        self.assertEqual((await self.ask(server, "/v1/types?detail=2")).status, 400)

    @asynchronous
    async def test_it_is_forgotten_with_its_tab(self) -> None:
        server = await self.start()
        for route in ("tabs?name=plain", "clients?client=web%2F1"):
            stream = len(route)
            await self.send(server, saying(1, "plain", Meaning("plain", "s", "x"), stream=stream))
            self.assertEqual((await self.get(server, "/v1/types?detail=1"))["plain"]["unit"], "s")
            self.assertEqual((await self.ask(server, f"/v1/{route}", "DELETE")).status, 200)
            await self.send(server, saying(2, "plain", stream=stream))
            self.assertEqual(
                (await self.get(server, "/v1/types?detail=1"))["plain"], {"type": "TotalsCounter", "unit": None, "description": None}
            )

    @asynchronous
    async def test_what_breaks_the_rules_is_left_out_and_is_a_problem_and_loses_no_event(self) -> None:
        server = await self.start()
        bucket = bucket_of("plain", BUCKETS)
        [section] = sections_of([column("plain", "TotalsCounter", [1.0])])
        for number, meanings in enumerate(([["plain", "s\0", ""]], [["plain\0", "s", ""]], [["plain", "s", "x" * 401]], {"a": 1}), start=1):
            content = encode_sections(BatchId(b"m" * 16, bucket, number), [section], msgpack.packb(meanings), BATCH_VERSION)
            self.assertEqual((await self.send(server, SentBatch(content, number - 1, bytes(8))))[0].word, "applied")
        self.assertEqual((await self.get(server, "/v1/types?detail=1"))["plain"]["unit"], None)
        status = await self.get(server, "/v1/status")
        self.assertEqual((status["folded"], status["dead_letters"]), (4, 0))
        self.assertIn("4 units or descriptions of Tabs were left out", str(status["problems"]))

    @asynchronous
    async def test_status_names_the_versions_of_batches_and_of_dumps_folded_at_the_edge(self) -> None:
        server = await self.start()
        status = await self.get(server, "/v1/status")
        self.assertEqual(status["batch_versions"], [5])
        edges = {type: about["edge"] for type, about in status["handlers"].items()}
        for type in ("CounterGroup", "PercentileGroup", "TotalsCounter", "PercentileCounter"):
            self.assertEqual(edges.pop(type), 1, type)
        self.assertEqual(set(edges.values()), {None})
