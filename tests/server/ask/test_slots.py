"""`/v1/slots`: what is known of the past, at its own widths; and Aggregates that are made without Projections."""

from __future__ import annotations

import time
from typing import Any

from taba.names import canonical_name
from taba.server.ask import query, states

from ..running import BUCKETS, ServerCase, asynchronous, encoded
from ..samples import column, tab_in

COUNTED, TIMED, PLAIN = tab_in(3, 0, BUCKETS), tab_in(3, 1, BUCKETS), tab_in(3, 2, BUCKETS)
CLIENTS = [f"web/{place}" for place in range(6)]


class Slots(ServerCase):
    async def filled(self) -> tuple[Any, float]:
        server, now = await self.start(), time.time()
        times = [now - 200_000, now - 3000, now - 1]
        columns = [column(tab, type, [1.0, 2.0, 4.0], client=client, times=times) for tab, type in
                   ((COUNTED, "CounterGroup"), (TIMED, "PercentileGroup"), (PLAIN, "TotalsCounter")) for client in CLIENTS]  # fmt: skip
        await self.send(server, encoded(1, 3, 1, columns))
        return server, now

    @asynchronous
    async def test_slots_of_all_clients_are_one_and_what_is_older_is_in_the_all_time_figures(self) -> None:
        server, now = await self.filled()
        answer = await self.get(server, f"/v1/slots?name={COUNTED}&name={TIMED}&name={PLAIN}&name=nowhere")
        self.assertEqual(set(answer), {COUNTED, TIMED, PLAIN})
        self.assertIn("keeps no slots", answer[PLAIN]["error"])
        for name in (COUNTED, TIMED):
            past = answer[name]
            self.assertEqual([(slot["count"], slot["total"]) for slot in past["slots"]], [(6, 12), (6, 24)])
            for slot, at in zip(past["slots"], (now - 3000, now - 1), strict=True):
                self.assertTrue(past["since"] <= slot["start"] <= at <= slot["end"] <= time.time() + 1)
            self.assertEqual((past["ever"]["count"], past["ever"]["total"], past["ever"]["low"], past["ever"]["high"]), (18, 42, 1, 4))
            self.assertEqual([count for _, count in past["ever"]["bins"]], [6, 6, 6])
        [first, second] = answer[TIMED]["slots"]
        self.assertEqual((first["low"], first["high"], [count for _, count in first["bins"]]), (2, 2, [6]))
        self.assertTrue(4 <= second["bins"][0][0] <= 4.1)
        self.assertNotIn("bins", answer[COUNTED]["slots"][0])
        of_one = await self.get(server, f"/v1/slots?name={COUNTED}&client=web/1")
        self.assertEqual([slot["count"] for slot in of_one[COUNTED]["slots"]], [1, 1])

    @asynchronous
    async def test_slots_are_bounded(self) -> None:
        server, _ = await self.filled()
        self.patch(query, "MAX_DETAILED", 18)
        self.assertEqual((await self.ask(server, "/v1/slots")).status, 200)
        self.patch(query, "MAX_DETAILED", 17)
        refused = await self.ask(server, "/v1/slots")
        self.assertEqual(refused.status, 400)
        self.assertIn("limit=", refused.json["detail"])
        self.assertEqual(list(await self.get(server, "/v1/slots?limit=1")), [min(COUNTED, TIMED, PLAIN)])

    @asynchronous
    async def test_slots_are_sent_some_tabs_at_a_time_and_a_tab_of_many_clients_is_read_in_slices(self) -> None:
        server, _ = await self.filled()
        whole = await self.get(server, "/v1/slots")
        self.assertEqual(list(whole), sorted((COUNTED, TIMED, PLAIN)))
        read: list[int] = []
        read_lot = states.States.read

        async def counted(asking: Any, lot: Any, *more: Any) -> Any:
            read.append(sum(len(part.clients) for part in lot))
            return await read_lot(asking, lot, *more)

        self.patch(states.States, "read", counted)
        self.patch(query, "SLICE_DETAILED", 1)
        for slice_states in (500, 4, 1):
            read.clear()
            for module in (query, states):
                self.patch(module, "SLICE_STATES", slice_states)
            found = await self.get(server, "/v1/slots")
            self.assertLessEqual(max(read), max(slice_states, len(CLIENTS)) if slice_states > 5 else slice_states)
            for name in (COUNTED, TIMED):
                self.assertEqual(found[name]["ever"], whole[name]["ever"])
                self.assertEqual([slot["count"] for slot in found[name]["slots"]], [slot["count"] for slot in whole[name]["slots"]])
            self.assertEqual(found[PLAIN], whole[PLAIN])

    @asynchronous
    async def test_aggregates_in_slices_are_those_of_the_projections(self) -> None:
        server, _ = await self.filled()
        for slice_states in (500, 6, 4, 1):
            for module in (query, states):
                self.patch(module, "SLICE_STATES", slice_states)
            answer = await self.get(server, f"/v1/aggregates?name={COUNTED}&name={TIMED}&name={PLAIN}")
            self.assertEqual((answer[COUNTED]["1h"], answer[COUNTED]["pct"]["count"]), ({"count": 12, "total": 36, "average": 3}, 18))
            self.assertEqual((answer[TIMED]["1m"]["count"], answer[TIMED]["1h"]["p50"], answer[PLAIN]["count"]), (6, 2, 18))
            whole = await self.get(server, f"/v1/superaggregate?name={TIMED}")
            self.assertEqual(answer[TIMED], whole)

    @asynchronous
    async def test_a_label_is_found_by_the_text_that_was_recorded_however_long(self) -> None:
        server, long = await self.start(), "x" * 300
        event = {"tab": "paged", "type": "CounterGroup", "value": 1, "labels": {"path": long}}
        await self.post(server, [event])
        found = await self.get(server, f"/v1/names?label=path:{long}")
        self.assertEqual(found, [canonical_name("paged", {"path": long})])
