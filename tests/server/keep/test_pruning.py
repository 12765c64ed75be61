"""The job that forgets: what it takes, what it merges and keeps, and what a fall of the store leaves."""

from __future__ import annotations

import time
from typing import Any

import pytest
from twisted.internet.task import deferLater

from taba.bounds import DAY
from taba.names import RETIRED_CLIENT
from taba.server import keys, service
from taba.server.fold.marks import MARK_MINUTES
from taba.server.fold.posts import HOURS, Taken
from taba.server.keep.pruning import RETIRED_TIMES
from taba.shard import Writes

from ..running import asynchronous, encoded, reactor, together
from ..samples import Sum, column, lookup_of
from ..test_http import total
from .cases import FORGET_SECONDS, OLD_MINUTES, A, B, C, KeepingCase, Worn


class Pruning(KeepingCase):
    @asynchronous
    async def test_idle_states_are_merged_so_that_totals_never_fall_and_others_deleted(self) -> None:
        server = await self.start()
        clients = [f"web/{n}" for n in range(6)]
        counters = [
            column(A, "CounterGroup", [float(n + 1)] * 10, client=client, times=[time.time()] * 10) for n, client in enumerate(clients)
        ]
        gauges = [column(B, "Gauge", [1.0], client=client) for client in clients]
        await self.send(server, encoded(1, 3, 1, [*counters, *gauges]))
        before = (await self.get(server, f"/v1/aggregates?name={A}"))[A]
        await self.age(server, FORGET_SECONDS + 60, *clients[:4])
        dry = await self.done(server, "/v1/prune?dry_run=1")
        self.assertEqual(len(await self.get(server, f"/v1/clients?name={A}")), 6)
        self.assertEqual(len(dry["found"]), 8)
        self.assertIn({"tab": A, "client": "web/0", "action": "merge"}, dry["found"])
        self.assertIn({"tab": B, "client": "web/3", "action": "delete"}, dry["found"])
        self.assertIn("4 States would be deleted, 4 would be merged", dry["message"])
        record = await self.done(server, "/v1/prune")
        self.assertIn("4 States deleted, 4 merged", record["message"])
        self.assertEqual(await self.get(server, f"/v1/clients?name={A}"), [RETIRED_CLIENT, "web/4", "web/5"])
        self.assertEqual(await self.get(server, f"/v1/clients?name={B}"), ["web/4", "web/5"])
        self.assertEqual((await self.get(server, f"/v1/aggregates?name={A}"))[A]["pct"], before["pct"])
        # those that follow are merged into what is there
        await self.age(server, FORGET_SECONDS + 60, "web/4")
        await self.done(server, "/v1/prune")
        self.assertEqual((await self.get(server, f"/v1/aggregates?name={A}"))[A]["pct"], before["pct"])
        self.assertEqual(await self.get(server, "/v1/clients"), [RETIRED_CLIENT, "web/5"])

    @asynchronous
    async def test_what_was_touched_a_minute_too_late_to_be_forgotten_stays(self) -> None:
        server = await self.start()
        await self.send(server, encoded(1, 3, 1, [column(A, "Gauge", [1.0], client="web/1"), column(A, "Gauge", [1.0], client="web/2")]))
        await self.age(server, FORGET_SECONDS - 60, "web/1")
        await self.age(server, FORGET_SECONDS, "web/2")
        await self.done(server, "/v1/prune")
        self.assertEqual(await self.get(server, "/v1/clients"), ["web/1"])

    @asynchronous
    async def test_what_was_folded_before_the_stores_age_was_known_is_idle_from_the_next_look_on(self) -> None:
        server = await self.start()
        await self.send(server, encoded(1, 3, 1, [column(A, "Gauge", [1.0], client="web/1"), column(B, "CounterGroup", [1.0])]))

        def unknown(replies: Any) -> Writes:
            pairs = zip(replies[0][::2], replies[0][1::2], strict=True)
            frames = {
                field: keys.frame(keys.unframe(content).version, keys.UNKNOWN_AGE) + content[keys.FRAME_BYTES :] for field, content in pairs
            }
            return Writes([(b"HSET", keys.states(3), *(item for pair in frames.items() for item in pair))])

        await server.router.transact(3, [(b"HGETALL", keys.states(3))], unknown)
        before = await self.get(server, "/v1/projections")
        await self.done(server, "/v1/prune")
        self.assertEqual(await self.get(server, "/v1/projections"), before)
        (pairs,) = await server.router.read(3, [(b"HVALS", keys.states(3))])
        self.assertEqual({keys.unframe(content).age for content in pairs}, {OLD_MINUTES})

    @asynchronous
    async def test_what_its_handler_calls_prunable_goes_and_what_fails_stays(self) -> None:
        self.patch(service, "find_safely", lambda: lookup_of(Worn(), Sum()))
        server = await self.start()
        columns = [column(A, "Worn", [word], client=f"web/{n}") for n, word in enumerate(["done", "a", "unmergeable", "b"])]
        await self.send(server, encoded(1, 3, 1, [*columns, column(B, "Worn", ["x"], client="web/7"), column(C, "Sum", [1.0])]))
        await self.age(server, FORGET_SECONDS + 60, "web/2", "web/7")
        await self.age(server, DAY - 60, "web/0")
        await self.done(server, "/v1/prune")
        self.assertIn("web/0", await self.get(server, f"/v1/clients?name={A}"))
        await self.age(server, DAY, "web/0")
        self.patch(server.age, "disagreement", "the clocks differ")
        self.patch(server.age, "look", self.leave)
        self.assertIn(
            "no Handler was asked what has nothing more to say, since the clocks differ", (await self.done(server, "/v1/prune"))["message"]
        )
        self.assertIn("web/0", await self.get(server, f"/v1/clients?name={A}"))
        server.age.disagreement = None
        record = await self.done(server, "/v1/prune")
        self.assertIn("1 of Type Worn left as they are: ValueError: unmergeable", record["message"])
        self.assertEqual(await self.get(server, f"/v1/clients?name={A}"), ["web/1", "web/2", "web/3"])
        self.assertEqual(await self.get(server, f"/v1/projections?name={B}"), {B: {RETIRED_CLIENT: {"words": ["x"]}}})

    async def leave(self) -> None:
        """Nothing."""

    @asynchronous
    async def test_marks_and_keys_of_posts_that_nobody_touched_for_long_go_and_others_stay(self) -> None:
        server = await self.start()
        await self.send(server, encoded(1, 3, 1, [total(A, [1.0])]), encoded(2, 3, 1, [total(A, [1.0])]))
        for key in ("old", "new"):
            await self.post(server, [{"tab": A, "type": "TotalsCounter", "value": 1}], key)
        [marks, posted] = await server.router.read(3, [(b"HGETALL", keys.marks(3)), (b"HGETALL", keys.posted(3))])
        self.assertEqual((len(marks), len(posted)), (4, 4))
        old = (OLD_MINUTES - MARK_MINUTES).to_bytes(4, "little")
        for name, pairs in ((keys.marks(3), marks), (keys.posted(3), posted)):
            self.valkey.call("HSET", name, pairs[0], pairs[1][:-4] + old)
        age = server.age() or 0
        over, going_on = Taken({age // 60 - HOURS: 2}), Taken({age // 60 - HOURS: 2, age // 60 - HOURS + 1: 1})
        self.valkey.call("HSET", keys.posters(3), b"over", over.encode(), b"goingon", going_on.encode())
        await self.done(server, "/v1/prune")
        left = await server.router.read(3, [(b"HKEYS", keys.marks(3)), (b"HKEYS", keys.posted(3)), (b"HGET", keys.posters(3), b"over")])
        self.assertEqual(left, [[marks[2]], [posted[2]], None])
        self.assertIsNotNone((await server.router.read(3, [(b"HGET", keys.posters(3), b"goingon")]))[0])

    @asynchronous
    async def test_a_tab_that_only_retired_clients_have_is_forgotten_much_later(self) -> None:
        server = await self.start()
        await self.send(
            server, encoded(1, 3, 1, [total(A, [1.0], client="web/1"), total(B, [1.0], client="web/1"), total(B, [1.0], client="web/2")])
        )
        await self.age(server, FORGET_SECONDS + 60, "web/1")
        await self.done(server, "/v1/prune")
        await self.age(server, RETIRED_TIMES * FORGET_SECONDS - DAY, RETIRED_CLIENT)
        await self.done(server, "/v1/prune")
        self.assertEqual(await self.get(server, "/v1/names"), sorted([A, B]))
        await self.age(server, RETIRED_TIMES * FORGET_SECONDS + 60, RETIRED_CLIENT)
        await self.done(server, "/v1/prune")
        self.assertEqual(await self.get(server, "/v1/names"), [B])
        self.assertEqual((await self.get(server, f"/v1/aggregates?name={B}"))[B]["count"], 2)

    @pytest.mark.real
    @asynchronous
    async def test_totals_are_exact_while_events_flow_and_clients_vanish(self) -> None:
        server, other = await self.start(), await self.start()
        sent = 0
        turn: int | None = 0

        async def sender(stream: int) -> None:
            nonlocal sent
            number = 1
            while turn is not None:
                client = f"web/{turn}/{number % 7}"  # those of the turn before vanish, while those of this one may be pruned and come again
                [verdict] = await self.send(server if number % 2 else other, encoded(stream, 3, number, [total(A, [1.0], client=client)]))
                if verdict.word == "applied":
                    number, sent = number + 1, sent + 1

        async def prune(asked: Any) -> None:
            clients = await self.get(server, f"/v1/clients?name={A}")
            await self.age(server, FORGET_SECONDS + 60, *[client for client in clients if client != RETIRED_CLIENT])
            await self.done(asked, "/v1/prune")

        async def count() -> int:
            return int((await self.get(server, f"/v1/aggregates?name={A}"))[A]["count"])

        async def pruner() -> None:
            nonlocal turn
            last = 0
            for place in range(5):
                before = sent
                while sent < before + 20:  # by both, and several of each Client
                    await deferLater(reactor, 0.01)
                turn = place + 1
                await prune(server if place % 2 else other)
                counted = await count()
                self.assertGreaterEqual(counted, last)
                last = counted
            turn = None

        await together([sender(1), sender(2), pruner()])
        self.assertEqual(await count(), sent)
        self.assertIn(RETIRED_CLIENT, await self.get(server, "/v1/clients"))  # of the turns that were over
        await prune(server)
        self.assertEqual((await count(), await self.get(server, "/v1/clients")), (sent, [RETIRED_CLIENT]))


class Falling(KeepingCase):
    """No query shows less than there is, at whatever moment of it a job merges Clients."""

    @asynchronous
    async def test_totals_never_fall_for_a_query_between_whose_reads_clients_are_merged(self) -> None:
        server = await self.start()
        for retired in (False, True):
            clients = [f"web/{retired}/{n}" for n in range(3)]
            await self.send(server, encoded(1 + retired, 3, 1, [total(A, [20.0], client=client) for client in clients]))
            await self.age(server, FORGET_SECONDS + 10, *clients)
            question = "/v1/superaggregate" if retired else "/v1/aggregates"
            whole = 60.0 * (1 + retired)

            def shown(answer: Any, retired: bool = retired) -> float:
                return float(answer["total"] if retired else answer[A]["total"])

            self.assertEqual(shown(await self.get(server, question)), whole)
            original = server.query._chooser._clients_of

            async def merging(tabs: Any, wanted: Any, original: Any = original) -> Any:
                found = await original(tabs, wanted)
                self.assertIn("3 merged", (await self.done(server, "/v1/prune"))["message"])
                return found

            self.patch(server.query._chooser, "_clients_of", merging)
            during = shown(await self.get(server, question))
            self.patch(server.query._chooser, "_clients_of", original)
            self.assertEqual((during, shown(await self.get(server, question))), (whole, whole))
            self.assertEqual(await self.get(server, "/v1/clients"), [RETIRED_CLIENT])

    @asynchronous
    async def test_a_question_about_clients_has_nothing_of_those_that_were_not_asked_for(self) -> None:
        server = await self.start()
        await self.send(server, encoded(1, 3, 1, [total(A, [20.0], client=client) for client in ("web/1", "web/2")]))
        await self.age(server, FORGET_SECONDS + 10, "web/1")
        await self.done(server, "/v1/prune")
        self.assertEqual((await self.get(server, "/v1/aggregates?client=web/2"))[A]["total"], 20)
        self.assertEqual((await self.get(server, "/v1/aggregates?client=_retired"))[A]["total"], 20)
        self.assertEqual((await self.get(server, "/v1/aggregates"))[A]["total"], 40)
