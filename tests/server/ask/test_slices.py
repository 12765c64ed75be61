"""A Tab of more Clients than are read at a time: slice by slice, and as of one moment all the same."""

from __future__ import annotations

import math
from typing import Any
from urllib.parse import quote

from taba.names import RETIRED_CLIENT
from taba.server import keys
from taba.server.ask import overview, query, states
from taba.server.fold.cycle import bucket_of
from taba.server.prometheus import past, present
from taba.turns import Turns

from ..running import BUCKETS, ServerCase, asynchronous

TABS = {"sums": "TotalsCounter", "days": "CounterGroup"}
OTHERS = {"waits": "PercentileGroup", "loads": "Gauge", "kinds": "Cardinality"}
CLIENTS = [f"web/{number:02}" for number in range(30)]


class Slices(ServerCase):
    async def filled(self) -> Any:
        server = await self.start()
        for number, client in enumerate(CLIENTS):  # none has the State of another
            await self.post(server, [{"tab": tab, "type": type, "value": number} for tab, type in TABS.items()], client=client)
        for module in (query, states):
            self.patch(module, "SLICE_STATES", 4)
        return server

    def counted(self, answer: Any) -> list[int]:
        return [answer["sums"]["count"], answer["days"]["1d"]["count"]]

    def merge(self, tab: str, clients: list[str]) -> None:
        """One of `clients` after the other into `_retired`, as pruning does: here each has the State that `_retired` is to have."""
        of_bucket = keys.states(bucket_of(tab, BUCKETS)).decode()
        for client in clients:
            state = self.valkey.call("HGET", of_bucket, keys.state_field(tab, client))
            self.valkey.call("HSET", of_bucket, keys.state_field(tab, RETIRED_CLIENT), state)
            self.valkey.call("HDEL", of_bucket, keys.state_field(tab, client))

    def watch(self, server: Any, at: dict[int, list[str]], tab: str = "sums") -> list[int]:
        """How many States each read asks for; before the reads with the numbers in `at`, Clients are merged."""
        sizes: list[int] = []
        original = states.States.read

        async def read(asking: Any, lot: Any, *rest: Any) -> Any:
            if any(part.tab == tab for part in lot):
                self.merge(tab, at.get(len(sizes), []))
                sizes.append(sum(len(part.clients) for part in lot))
            return await original(asking, lot, *rest)

        self.patch(states.States, "read", read)
        return sizes

    @asynchronous
    async def test_no_more_than_a_slice_is_read_at_a_time_and_all_are_counted(self) -> None:
        server = await self.filled()
        sizes = self.watch(server, {})
        self.assertEqual(self.counted(await self.get(server, "/v1/aggregates")), [30, 30])
        self.assertEqual(sizes, [4] * 7 + [2])
        filtered = await self.get(server, "/v1/aggregates?client_match=web/[012].*")
        self.assertEqual(self.counted(filtered), [30, 30])
        some = await self.get(server, "/v1/superaggregate?name=sums&client_match=web/0.*")
        self.assertEqual(some["count"], 10)

    @asynchronous
    async def test_of_types_that_take_each_state_by_itself_others_have_their_turn_after_a_few(self) -> None:
        server = await self.start()
        texts = {"kinds": "Cardinality", "tops": "TopK", "lists": "Buffer"}
        for number, client in enumerate(CLIENTS):
            events = [{"tab": tab, "type": type, "value": f"text {number}"} for tab, type in texts.items()]
            await self.post(server, events, client=client)
        since = [0]  # States and Projections that were taken since others had their turn
        most = {"project": 0, "aggregate": 0}
        bench, breathe = server.query._bench, Turns.breathe

        def watch(what: str) -> None:
            original = getattr(bench, what)

            async def watched(type: str, items: Any, *rest: Any) -> Any:
                since[0] += len(items)
                most[what] = max(most[what], since[0])
                return await original(type, items, *rest)

            self.patch(bench, what, watched)

        async def counted(turns: Turns) -> None:
            await breathe(turns)
            since[0] = 0

        self.patch(Turns, "breathe", counted)
        for what in most:
            watch(what)
        found = await self.get(server, "/v1/aggregates")
        self.assertEqual(found["kinds"], {"distinct": len(CLIENTS)})
        self.assertEqual((len(found["tops"]["top"]), len(found["lists"]["values"])), (len(CLIENTS), len(CLIENTS)))
        self.assertEqual({tab: len(of) for tab, of in (await self.get(server, "/v1/projections")).items()}, dict.fromkeys(texts, 30))
        self.assertEqual((await self.get(server, "/v1/superaggregate?name=tops"))["top"], found["tops"]["top"])
        self.assertEqual(most, {"project": query.SLICE_EACH, "aggregate": query.SLICE_EACH})

    @asynchronous
    async def test_of_large_states_fewer_are_read_at_a_time_and_all_are_counted(self) -> None:
        server = await self.filled()
        for number, client in enumerate(CLIENTS):
            await self.post(server, [{"tab": "tops", "type": "TopK", "value": f"text {number}"}], client=client)
        for module in (query, states):
            self.patch(module, "SLICE_STATES", 3 * states.WEIGHT)
        self.patch(query, "SLICE_SHOWN", 3 * states.WEIGHT)
        self.patch(states, "LEAST_AT_ONCE", 3)
        for path in ("/v1/aggregates?name=tops", "/v1/projections?name=tops", "/v1/aggregates"):
            sizes = self.watch(server, {}, "tops")
            found = (await self.get(server, path))["tops"]
            self.assertEqual(len(found.get("top", found)), len(CLIENTS))
            self.assertEqual(sizes, [3] * 10, path)

    @asynchronous
    async def test_a_client_that_is_merged_between_two_slices_is_counted_once(self) -> None:
        server = await self.filled()
        before = len(CLIENTS)
        for client in (CLIENTS[0], CLIENTS[-1]):  # counted already, and not yet
            sizes = self.watch(server, {3: [client]})
            self.assertEqual(self.counted(await self.get(server, "/v1/aggregates")), [before, 30])
            self.assertEqual(sizes[:4], [4] * 4)
            self.assertGreater(len(sizes), 8)  # from the beginning again
            before -= 1  # `merge` keeps what the last one had

    @asynchronous
    async def test_of_a_tab_at_one_stroke_retired_is_read_only_where_somebody_has_gone_and_then_counted(self) -> None:
        server = await self.start()
        for number, client in enumerate(CLIENTS[:3]):
            await self.post(server, [{"tab": tab, "type": type, "value": number} for tab, type in TABS.items()], client=client)
        asked: list[int] = []

        async def read(path: str) -> Any:
            before = server.query.read["states"]
            answer = await self.get(server, path)
            asked.append(server.query.read["states"] - before)
            return answer

        self.assertEqual(self.counted(await read("/v1/aggregates")), [3, 3])
        self.assertEqual(asked, [6])
        self.watch(server, {0: [CLIENTS[1]]})  # its Clients are read by then
        self.assertEqual(self.counted(await read("/v1/aggregates")), [3, 3])
        self.assertEqual(asked, [6, 6 + 4])  # of the one Tab alone once more
        some = await read("/v1/projections?name=sums&client_match=web/.*")
        self.assertEqual(sorted(some["sums"]), [CLIENTS[0], CLIENTS[2]])

    @asynchronous
    async def test_where_clients_are_merged_all_the_time_they_are_read_at_one_stroke(self) -> None:
        server = await self.filled()
        self.patch(states, "MOST_MERGES", 1)
        sizes = self.watch(server, {1: [CLIENTS[0]]})
        self.assertEqual(self.counted(await self.get(server, "/v1/aggregates")), [30, 30])
        self.assertEqual(sizes, [4, 4, 30])

    @asynchronous
    async def test_what_was_merged_before_is_counted_with_the_last_slice(self) -> None:
        server = await self.filled()
        self.merge("sums", [CLIENTS[5]])
        self.assertEqual(self.counted(await self.get(server, "/v1/aggregates")), [30, 30])
        of_bucket = keys.states(bucket_of("sums", BUCKETS)).decode()
        self.valkey.call("HSET", of_bucket, keys.state_field("sums", RETIRED_CLIENT), b"broken")
        answer = await self.get(server, "/v1/aggregates")
        self.assertEqual(answer["sums"]["count"], 29)

    @asynchronous
    async def test_rows_and_promql_read_slices_and_come_to_the_same(self) -> None:
        server = await self.start()
        for number, client in enumerate(CLIENTS):
            events = [{"tab": tab, "type": type, "value": number} for tab, type in {**TABS, **OTHERS}.items()]
            await self.post(server, events, client=client)
        texts = [
            "sums_total",
            "days_total",
            'sum(days_total{client=~".+"})',
            "histogram_quantile(0.5,waits)",
            "sum(loads)",
            "kinds_distinct",
        ]

        # what is asked of a moment that is over has a part of the slot that was not over then, by how long ago that is
        self.patch(past, "NOW_SECONDS", math.inf)

        async def asked() -> Any:
            self.patch(overview, "ROW_SECONDS", 0.0)
            self.patch(overview, "QUIET_SECONDS", 0.0)
            rows = await self.get(server, "/v1/overview?sort=name")
            now = (await self.get(server, "/api/v1/query?query=time()"))["data"]["result"][0]
            answers = [(await self.get(server, f"/api/v1/query?time={now}&query={quote(text)}"))["data"]["result"] for text in texts]
            return (
                [{key: row[key] for key in ("name", "clients", "1h", "p50", "value")} for row in rows],
                [[(row["metric"], round(float(row["value"][1]), 6)) for row in answer] for answer in answers],
            )

        whole = await asked()
        self.assertEqual([len(answer) for answer in whole[1]], [1] * len(texts))
        for module in (query, states, past, present):
            self.patch(module, "SLICE_STATES", 4)
        for tab in (*TABS, *OTHERS):
            sizes = self.watch(server, {}, tab)
            self.assertEqual(await asked(), whole)
            self.assertLessEqual(max(sizes), 5, tab)  # with _retired

    @asynchronous
    async def test_where_the_past_of_one_slice_is_not_known_that_of_the_others_is_not_shown_for_it(self) -> None:
        server = await self.filled()
        self.patch(overview, "ROW_SECONDS", -1.0)
        self.patch(overview, "QUIET_SECONDS", -1.0)
        original, seen = server.query._bench.history, [0]

        async def history(*of: Any) -> Any:
            seen[0] += 1
            return "the sandbox is full" if seen[0] == 3 else await original(*of)

        for is_known in (True, False):
            if not is_known:
                self.patch(server.query._bench, "history", history)
            [row] = await self.get(server, "/v1/overview?name=days")
            self.assertEqual(row["clients"], len(CLIENTS))
            self.assertEqual((row["sparkline"] is not None, row["rate"] is not None), (is_known, True))
        self.assertGreater(seen[0], 3)

    @asynchronous
    async def test_of_a_tab_of_which_a_slice_comes_to_nothing_promql_has_no_part(self) -> None:
        server = await self.filled()
        for module in (past, present):
            self.patch(module, "SLICE_STATES", 4)
        for text, name in (("days_total", "history"), ("sums_total", "aggregate")):
            original, seen, is_broken = getattr(server.query._bench, name), [0], [False]

            async def once(*of: Any, original: Any = original, seen: Any = seen, is_broken: Any = is_broken) -> Any:
                seen[0] += 1
                return "the sandbox is full" if is_broken[0] and seen[0] == 3 else await original(*of)

            self.patch(server.query._bench, name, once)
            for is_broken[0] in (False, True):
                seen[0] = 0
                answer = await self.get(server, f"/api/v1/query?query={text}")
                self.assertEqual([row["value"][1] for row in answer["data"]["result"]], [] if is_broken[0] else ["435"], text)
                self.assertEqual("the sandbox is full" in str(answer.get("warnings")), is_broken[0], text)
                self.assertGreater(seen[0], 3)
