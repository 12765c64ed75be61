"""What is there and cannot be answered stands in its place, with the reason; the others are answered."""

from __future__ import annotations

from typing import Any

from taba.handlers import Handler
from taba.server import service

from ..running import BUCKETS, ServerCase, asynchronous, encoded
from ..samples import Sum, Words, column, lookup_of, tab_in

A, B, C, D = (tab_in(3, number, BUCKETS) for number in range(4))


class Deep(Handler):
    """Its Projection is as deep as the number that came last."""

    type = "Deep"

    def new_state(self) -> Any:
        return 0

    def fold(self, state: Any, events: Any, now: float) -> Any:
        return int(events.values[-1])

    def project(self, state: Any, now: float) -> Any:
        if state == 13:
            raise ValueError("unlucky")
        deep: Any = 1
        for _ in range(state):
            deep = [deep]
        return {"deep": deep}

    def aggregate(self, projections: Any) -> Any:
        if len(projections) > 2:
            raise ValueError("too many")
        return projections[0]


class Unanswered(ServerCase):
    async def answers(self, *handlers: Handler, question: str = "") -> tuple[Any, Any]:
        self.patch(service, "find_safely", lambda: lookup_of(*handlers))
        server = await self.start()
        return await self.get(server, f"/v1/aggregates{question}"), await self.get(server, f"/v1/projections{question}")

    async def filled(self) -> None:
        self.patch(service, "find_safely", lambda: lookup_of(Sum(), Words(), Deep()))
        columns = [column(A, "Sum", [1.0]), column(B, "Words", ["a"]), column(C, "Deep", [13.0])]
        await self.send(await self.start(), encoded(1, 3, 1, columns))

    @asynchronous
    async def test_a_tab_whose_handler_is_missing_is_there_and_says_so(self) -> None:
        await self.filled()
        aggregates, projections = await self.answers(Sum(), Deep())
        self.assertEqual(aggregates[A], {"count": 1, "total": 1})
        self.assertEqual(aggregates[B], {"error": "no Handler of Type Words"})
        self.assertEqual(projections[B], {"web/1": {"error": "no Handler of Type Words"}})

    @asynchronous
    async def test_a_projection_that_raises_or_is_too_deep_spoils_only_itself(self) -> None:
        await self.filled()
        server = await self.start()
        await self.send(server, encoded(2, 3, 1, [column(C, "Deep", [value], client=f"web/{value:.0f}") for value in (2.0, 900.0)]))
        aggregates, projections = await self.get(server, "/v1/aggregates"), await self.get(server, "/v1/projections")
        self.assertEqual(projections[C]["web/2"], {"deep": [[1]]})
        self.assertIn("ValueError: unlucky", projections[C]["web/1"]["error"])
        self.assertIn("deep", projections[C]["web/900"]["error"])
        self.assertEqual(aggregates[C]["deep"], [[1]])
        self.assertIn("2 of 3 Clients left out: ", aggregates[C]["error"])
        self.assertEqual((aggregates[A]["count"], projections[B]["web/1"]), (1, {"words": ["a"]}))
        text = (await self.ask(server, "/v1/aggregates", headers={"Accept": ["text/plain"]})).text
        self.assertEqual([line.partition(": ")[0] for line in text.splitlines()], sorted([A, B, C]))
        self.assertIn("2 of 3 Clients left out", text)

    @asynchronous
    async def test_an_aggregate_that_raises_and_a_superaggregate_of_a_missing_type(self) -> None:
        await self.filled()
        server = await self.start()
        await self.send(server, encoded(2, 3, 1, [column(D, "Deep", [1.0], client=f"web/{n}") for n in range(3)]))
        self.assertIn("ValueError: too many", (await self.get(server, "/v1/aggregates"))[D]["error"])
        self.patch(service, "find_safely", lambda: lookup_of(Sum()))
        other = await self.start()
        self.assertEqual(await self.get(other, f"/v1/superaggregate?name={B}"), {"error": "no Handler of Type Words"})

    @asynchronous
    async def test_a_name_that_only_dead_letters_know_says_why_there_is_nothing(self) -> None:
        await self.filled()
        server = await self.start()
        await self.send(server, encoded(2, 3, 1, [column(D, "Words", ["bad"])]))
        for answer in (await self.get(server, f"/v1/aggregates?name={D}"), (await self.get(server, f"/v1/projections?name={D}"))):
            self.assertIn("handler_error: ValueError: bad", str(answer[D]))
        self.assertEqual(list(await self.get(server, "/v1/aggregates")), sorted([A, B, C, D]))
        self.assertEqual(await self.get(server, "/v1/names"), sorted([A, B, C]))
        self.assertEqual(await self.get(server, "/v1/aggregates?name=never_heard_of"), {})
