"""`?detail=1`: the slots from which windows are made, of Projections and Aggregates; bounded."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from taba.handlers import Handler
from taba.server.ask import query
from taba.server.keys import Framed
from taba.server.work.projecting import AT_ONCE_BYTES, project_type

from ..running import BUCKETS, ServerCase, asynchronous, encoded
from ..samples import Sum, column, tab_in

GROUP, PLAIN = tab_in(3, 0, BUCKETS), tab_in(3, 1, BUCKETS)


class Detail(ServerCase):
    async def filled(self) -> Any:
        server = await self.start()
        columns = [column(GROUP, "CounterGroup", [1.0, 2.0], client=client, times=[time.time()] * 2) for client in ("web/1", "web/2")] + [
            column(PLAIN, "TotalsCounter", [1.0])
        ]
        await self.send(server, encoded(1, 3, 1, columns))
        return server

    @asynchronous
    async def test_projections_and_aggregates_show_their_slots_when_asked(self) -> None:
        server = await self.filled()
        for path in (f"/v1/aggregates?name={GROUP}", f"/v1/superaggregate?name={GROUP}", f"/v1/projections?name={GROUP}"):
            for detail in (False, True):
                answer = await self.get(server, path + ("&detail=1" if detail else "&detail=0"))
                if "superaggregate" not in path:
                    answer = answer[GROUP]
                window = answer["web/1"]["1m"] if "projections" in path else answer["1m"]
                self.assertEqual("slots" in window, detail, path)
                if detail:
                    self.assertEqual(sum(slot["count"] for slot in window["slots"]), window["count"])
                    self.assertEqual((window["count"], window["slot_seconds"]), (2 if "projections" in path else 4, 5))
        self.assertEqual((await self.get(server, f"/v1/aggregates?name={PLAIN}&detail=1"))[PLAIN]["count"], 1)

    @asynchronous
    async def test_answers_with_detail_are_bounded(self) -> None:
        server = await self.filled()
        self.patch(query, "MAX_DETAILED", 3)
        self.assertEqual((await self.ask(server, "/v1/projections?detail=1")).status, 200)
        self.patch(query, "MAX_DETAILED", 2)
        refused = await self.ask(server, "/v1/projections?detail=1")
        self.assertEqual(refused.status, 400)
        self.assertIn("2", refused.json["detail"])
        self.assertEqual((await self.ask(server, "/v1/projections")).status, 200)


class Showing(Handler):
    type = "Showing"

    def project(self, state: Any, now: float) -> Any:
        return {"sum": state}

    def detail(self, state: Any, now: float) -> Any:
        return {"sum": state, "slots": [state]}


class Projecting(ServerCase):
    def test_a_plain_handlers_detail_is_asked_for_where_it_has_one(self) -> None:
        handler = Showing()
        states = [[Framed(1, 0, handler.dump(7))]]
        self.assertEqual(project_type(handler, False, states, 1.0, True), [{"sum": 7, "slots": [7]}])
        self.assertEqual(project_type(handler, False, states, 1.0), [{"sum": 7}])

    def test_more_rows_than_are_projected_at_once_come_back_in_order(self) -> None:
        handler = Sum()
        count = 3 * AT_ONCE_BYTES // 16
        rows = np.arange(count)
        states = handler.fold_array(handler.load_array([b""] * count), rows, np.ones(count), rows + 100.0, 1.0)
        dumps = handler.dump_array(states)
        answers = project_type(handler, True, [[Framed(handler.version, 0, dump)] for dump in dumps], 1.0)
        self.assertEqual(answers, [{"count": 1, "total": row + 100.0} for row in range(count)])
