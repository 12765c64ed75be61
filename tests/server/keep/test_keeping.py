"""Deleting, pruning, upgrading and folding again: jobs over a real store, while Events flow."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from twisted.internet.task import deferLater

from taba.bounds import DAY
from taba.errors import StoreUnavailable, TabaError
from taba.names import RETIRED_CLIENT
from taba.server import keys, service
from taba.server.fold.deadletters import MAX_DEAD_LETTERS
from taba.server.fold.marks import MARK_MINUTES
from taba.server.keep import deleting, jobs, retrying
from taba.server.keep.pruning import FORGET_SECONDS, RETIRED_TIMES
from taba.server.service import Server
from taba.server.work.probing import find_safely
from taba.shard import Writes

from ..running import BUCKETS, ServerCase, asynchronous, encoded, reactor, together
from ..samples import Spilling, Sum, Words, column, lookup_of, tab_in
from ..test_http import total

A, B, C = (tab_in(3, number, BUCKETS) for number in range(3))
OTHER = tab_in(5, 0, BUCKETS)


class Worn(Words):
    """Words that are prunable once "done" is among them, and of which several States are one."""

    type = "Worn"

    def prunable(self, state: Any, now: float) -> bool:
        return "done" in state

    def merge(self, states: Any) -> Any:
        if any("unmergeable" in state for state in states):
            raise ValueError("unmergeable")
        return sorted(word for state in states for word in state)


OLD_MINUTES = 2 * RETIRED_TIMES * int(FORGET_SECONDS / 60)  # so old the store is


class KeepingCase(ServerCase):
    async def job(self, server: Server, path: str) -> Any:
        """Start a job, and wait for its end: its record."""
        answered = await self.ask(server, path, "POST")
        self.assertEqual(answered.status, 202, answered.body)
        while True:
            [record] = await self.get(server, f"/v1/jobs?id={answered.json['id']}")
            if record["state"] != "running":
                return record
            await deferLater(reactor, 0.01)

    async def done(self, server: Server, path: str) -> Any:
        record = await self.job(server, path)
        self.assertEqual((record["state"], record["done"], record["total"]), ("done", BUCKETS, BUCKETS), record)
        return record

    async def keys_left(self, server: Server) -> dict[bytes, Any]:
        """What is left of States and index in all buckets."""
        reads = {b: [(b"HKEYS", keys.states(b)), (b"HKEYS", keys.tabs(b)), (b"SMEMBERS", keys.clients(b))] for b in range(BUCKETS)}
        replies = await server.router.read_many(reads)
        return {
            name: sorted(one for of in replies.values() for one in of[place]) for place, name in enumerate((b"states", b"tabs", b"clients"))
        }

    async def start(self, url: str | None = None, **texts: str) -> Server:
        """A Server whose store is old enough to have forgotten much."""
        server = await super().start(url, **texts)
        self.valkey.call("SET", "taba:{0}:age", f"{OLD_MINUTES} {time.time():.3f} 0")
        await server.age.look()
        return server

    async def age(self, server: Server, seconds: float, *clients: str, bucket: int = 3) -> None:
        """Have the States of these Clients in a bucket be touched so long ago."""

        def update(replies: Any) -> Writes:
            pairs = dict(zip(replies[0][::2], replies[0][1::2], strict=True))
            old = {
                field: keys.frame(struct.unpack_from("<H", content)[0], OLD_MINUTES - int(seconds / 60)) + content[keys.FRAME_BYTES :]
                for field, content in pairs.items()
                if field.split(b"\0")[1].decode() in clients
            }
            return Writes([(b"HSET", keys.states(bucket), *(item for pair in old.items() for item in pair))] if old else [])

        await server.router.transact(bucket, [(b"HGETALL", keys.states(bucket))], update)


class Deleting(KeepingCase):
    @asynchronous
    async def test_a_tab_goes_with_all_parts_and_index_entries(self) -> None:
        server = await self.start()
        values = [float(n) for n in range(50)]
        times = [time.time() - 60 * n for n in range(50)]
        counters = [column(A, "CounterGroup", values, client=f"web/{n}", times=times) for n in range(5)]
        await self.send(server, encoded(1, 3, 1, [*counters, total(B, [1.0], client="web/1"), total(B, [1.0], client="web/9")]))
        await self.send(server, encoded(1, 5, 1, [total(OTHER, [1.0])]))
        answered = await self.ask(server, f"/v1/tabs?name={A}&name=nothing&name={OTHER}", "DELETE")
        self.assertEqual((answered.status, answered.json), (200, {"tabs": 2, "states": 6}))
        left = await self.keys_left(server)
        self.assertEqual(left[b"states"], [keys.state_field(B, "web/1"), keys.state_field(B, "web/9")])
        self.assertEqual((left[b"tabs"], left[b"clients"]), ([B.encode()], [b"web/1", b"web/9"]))
        self.assertEqual(await self.get(server, "/v1/names"), [B])
        await self.send(server, encoded(1, 3, 2, [column(A, "Gauge", [1.0], times=[1.0])]))
        self.assertEqual((await self.get(server, "/v1/types"))[A], "Gauge")  # the first Type stands no more

    @asynchronous
    async def test_a_client_goes_from_every_tab(self) -> None:
        server = await self.start()
        for bucket in (3, 5):
            tabs = [tab_in(bucket, number, BUCKETS) for number in range(3)]
            columns = [total(tab, [1.0], client=client) for tab in tabs for client in ("web/1", "web/2", "web/3")]
            await self.send(server, encoded(1, bucket, 1, [*columns, total(tab_in(bucket, 3, BUCKETS), [1.0], client="web/2")]))
        self.patch(deleting, "CHUNK_STATES", 4)
        answered = await self.ask(server, "/v1/clients?client=web/2&client=web/3&client=nobody", "DELETE")
        self.assertEqual(answered.json, {"clients": 2, "states": 14})
        self.assertEqual(await self.get(server, "/v1/clients"), ["web/1"])
        self.assertEqual(len(await self.get(server, "/v1/names")), 6)  # those with no other Client are gone
        self.assertEqual(len((await self.keys_left(server))[b"states"]), 6)

    @asynchronous
    async def test_chunks_at_their_bound_and_one_past_it(self) -> None:
        server = await self.start()
        for number, (clients, chunk) in enumerate(((4, 4), (5, 4), (9, 4)), start=1):
            self.patch(deleting, "CHUNK_STATES", chunk)
            await self.send(server, encoded(1, 3, number, [total(A, [1.0], client=f"web/{n}") for n in range(clients)]))
            answered = await self.ask(server, f"/v1/tabs?name={A}", "DELETE")
            self.assertEqual(answered.json, {"tabs": 1, "states": clients})
            self.assertEqual(set(map(len, (await self.keys_left(server)).values())), {0})

    @asynchronous
    async def test_a_tab_whose_type_has_no_handler_goes_too(self) -> None:
        self.patch(service, "find_safely", lambda: lookup_of(Spilling()))
        before = await self.start()
        for number in range(1, 8):
            columns = [column(tab, "Spilling", [float(number)], client=client) for tab in (A, B) for client in ("web/1", "web/2")]
            await self.send(before, encoded(1, 3, number, columns))
        self.patch(service, "find_safely", lambda: lookup_of(Sum()))
        after = await self.start()
        self.assertEqual(len((await self.keys_left(after))[b"states"]), 12)
        self.assertEqual((await self.ask(after, "/v1/clients?client=web/1", "DELETE")).json, {"clients": 1, "states": 2})
        self.assertEqual((await self.ask(after, f"/v1/tabs?name={A}", "DELETE")).json, {"tabs": 1, "states": 1})
        self.assertEqual({field.split(b"\0")[0] for field in (await self.keys_left(after))[b"states"]}, {B.encode()})
        self.assertEqual(len((await self.keys_left(after))[b"states"]), 3)

    @asynchronous
    async def test_nothing_never_means_everything_and_nothing_changes_by_get(self) -> None:
        server = await self.start()
        await self.send(server, encoded(1, 3, 1, [total(A, [1.0])]))
        for path in ("/v1/tabs", "/v1/clients", "/v1/tabs?match=.*", f"/v1/tabs?name={A}&label=a:b", f"/v1/clients?name={A}"):
            self.assertEqual((await self.ask(server, path, "DELETE")).status, 400, path)
        for path in ("/v1/tabs", "/v1/prune", "/v1/upgrade", "/v1/retry"):
            self.assertEqual((await self.ask(server, path)).status, 405, path)
        self.assertEqual((await self.ask(server, "/v1/prune?dry_run=yes", "POST")).status, 400)
        self.assertEqual((await self.ask(server, "/v1/upgrade?dry_run=1", "POST")).status, 400)
        self.assertEqual(await self.get(server, "/v1/names"), [A])


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
        await self.done(server, "/v1/prune")
        left = await server.router.read(3, [(b"HKEYS", keys.marks(3)), (b"HKEYS", keys.posted(3))])
        self.assertEqual(left, [[marks[2]], [posted[2]]])

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
        pruning = True

        async def sender(stream: int) -> None:
            nonlocal sent
            number = 1
            while pruning:
                client = f"web/{number % 7}"
                [verdict] = await self.send(server if number % 2 else other, encoded(stream, 3, number, [total(A, [1.0], client=client)]))
                if verdict.word == "applied":
                    number, sent = number + 1, sent + 1

        async def prune() -> None:
            nonlocal pruning
            turn = last = 0
            while turn < 12 or RETIRED_CLIENT not in await self.get(server, "/v1/clients"):  # an Event may always come between
                turn += 1
                await self.age(server, FORGET_SECONDS + 60, *[f"web/{n}" for n in range(7)])
                await self.done(server if turn % 2 else other, "/v1/prune")
                counted = (await self.get(server, f"/v1/aggregates?name={A}"))[A]["count"]
                self.assertGreaterEqual(counted, last)
                last = counted
            pruning = False

        await together([sender(1), sender(2), prune()])
        self.assertEqual((await self.get(server, f"/v1/aggregates?name={A}"))[A]["count"], sent)
        self.assertIn(RETIRED_CLIENT, await self.get(server, "/v1/clients"))


class Upgrading(KeepingCase):
    @asynchronous
    async def test_every_state_is_brought_to_its_handlers_version_while_events_flow(self) -> None:
        self.patch(service, "find_safely", lambda: lookup_of(Sum(), Words()))
        server = await self.start()
        fields = {keys.state_field(tab, f"web/{n}"): keys.frame(1, 7) + struct.pack("<q", n) for tab in (A, B) for n in range(150)}
        fields[keys.state_field(A, "web/x")] = keys.frame(3, 7) + b"newer"
        index: list[tuple[bytes, ...]] = [(b"HSET", keys.tabs(3), A.encode(), b"Sum", B.encode(), b"Sum")]
        for tab in (A, B):
            index.append((b"SADD", keys.clients_of(3, tab.encode()), *[b"web/%d" % n for n in range(150)]))
        index.append((b"SADD", keys.clients_of(3, A.encode()), b"web/x"))
        made = Writes([*index, (b"HSET", keys.states(3), *(item for pair in fields.items() for item in pair))])
        await server.router.transact(3, [(b"HLEN", keys.states(3))], lambda _: made)
        # a query upgrades on the fly
        self.assertEqual((await self.get(server, f"/v1/projections?name={A}"))[A]["web/7"], {"count": 7, "total": 0})
        number = 0

        async def send() -> None:
            nonlocal number
            for number in range(1, 40):
                await self.send(server, encoded(1, 3, number, [column(A, "Sum", [1.0], client=f"web/{n}") for n in range(10)]))

        record, _ = await together([self.done(server, "/v1/upgrade"), send()])
        self.assertIn("1 of Type Sum left as they are: version 3 is newer", record["message"])
        [[content]] = (await server.router.read_many({3: [(b"HGETALL", keys.states(3))]})).values()
        versions = {field: content[0] for field, content in zip(content[::2], content[1::2], strict=True)}
        self.assertEqual(versions.pop(keys.state_field(A, "web/x")), 3)
        self.assertEqual(set(versions.values()), {2})
        projections = (await self.get(server, f"/v1/projections?name={A}"))[A]
        applied = (await self.get(server, "/v1/status"))["folded"] // 10
        self.assertEqual([projections[f"web/{n}"]["count"] for n in (0, 9, 10, 149)], [applied, 9 + applied, 10, 149])
        self.assertIn("version 3", str(projections["web/x"]))
        self.assertIn("0 States upgraded", (await self.done(server, "/v1/upgrade"))["message"])


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

            async def merging(tabs: Any, original: Any = original) -> Any:
                found = await original(tabs)
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


class Retrying(KeepingCase):
    @asynchronous
    async def test_dead_letters_are_folded_once_their_cause_is_gone_and_others_left(self) -> None:
        self.patch(service, "find_safely", lambda: lookup_of(Sum()))
        before = await self.start()
        columns = [column(A, "Words", ["a", "b"]), column(B, "Sum", [1.0]), column(B, "Words", ["c"]), column(C, "Nowhere", [1.0])]
        await self.send(before, encoded(1, 3, 1, columns), encoded(1, 3, 2, [column(A, "Words", ["d"]), column(B, "Sum", ["no", 2])]))
        status = await self.get(before, "/v1/status")
        self.assertEqual(status["dead_letters_by_reason"], {"bad_value": 1, "type_conflict": 1, "unknown_type": 4})
        self.assertEqual((status["folded"], status["types_missing"]), (2, ["Nowhere", "Words"]))
        unfolded = await self.get(before, "/v1/dead-letters")
        self.assertIn("0 events folded, 6 still", (await self.done(before, "/v1/retry"))["message"])
        self.assertEqual(await self.get(before, "/v1/dead-letters"), unfolded)
        self.patch(service, "find_safely", lambda: lookup_of(Sum(), Words()))
        after = await self.start()
        record = await self.done(after, "/v1/retry")
        self.assertIn("3 events folded, 3 still", record["message"])
        status = await self.get(after, "/v1/status")
        self.assertEqual(status["dead_letters_by_reason"], {"bad_value": 1, "type_conflict": 1, "unknown_type": 1})
        self.assertEqual((status["folded"], status["dead_letters"]), (5, 3))
        self.assertEqual((await self.get(after, f"/v1/aggregates?name={A}"))[A], {"words": ["a", "b", "d"]})
        left = await self.get(after, "/v1/dead-letters")
        times = {(letter["tab"], letter["type"], str(letter["value"])): letter["refused"] for letter in unfolded}
        self.assertEqual(sorted(letter["reason"] for letter in left), ["bad_value", "type_conflict", "unknown_type"])
        for letter in left:
            self.assertEqual(letter["refused"], times[letter["tab"], letter["type"], str(letter["value"])])
        await self.ask(after, f"/v1/tabs?name={B}", "DELETE")
        self.assertIn("1 events folded", (await self.done(after, "/v1/retry"))["message"])  # the newest of B's Types stands now

    @asynchronous
    async def test_every_letter_counts_once_while_more_come_and_two_servers_retry(self) -> None:
        self.patch(retrying, "LOT_LETTERS", 7)
        self.patch(service, "find_safely", lambda: lookup_of(Words()))
        servers = [await self.start(), await self.start()]
        columns = [column(A, "Sum", [1.0, 2.0], client=f"web/{n}") for n in range(100)]
        await self.send(servers[0], encoded(1, 3, 1, [*columns, column(B, "Words", ["a"]), column(B, "Sum", [5.0])]))
        self.patch(service, "find_safely", lambda: lookup_of(Words(), Sum()))
        servers = [await self.start(), await self.start()]
        applied = 0

        async def send() -> None:
            nonlocal applied
            while applied < 20:
                [verdict] = await self.send(servers[0], encoded(2, 3, applied + 1, [column(A, "Sum", [1.0]), column(B, "Sum", [9.0])]))
                applied += verdict.word == "applied"

        retries = [retrying.Retry(server.router, server.bench, server.now, server.age, reactor) for server in servers]
        await together([*[retry(jobs.Job("x", "retry", 0.0, False, reactor)) for retry in retries], send()])
        await self.done(servers[0], "/v1/retry")
        status = await self.get(servers[0], "/v1/status")
        self.assertEqual((status["folded"], status["dead_letters_by_reason"]), (1 + 200 + 20, {"type_conflict": 1 + 20}))
        self.assertEqual((await self.get(servers[0], f"/v1/aggregates?name={A}"))[A], {"count": 220, "total": 320})
        self.assertEqual(len(await self.get(servers[0], "/v1/dead-letters")), 21)

    @asynchronous
    async def test_what_still_cannot_be_folded_has_the_reason_that_holds_now(self) -> None:
        self.patch(service, "find_safely", lambda: lookup_of(Sum()))
        before = await self.start()
        await self.send(before, encoded(1, 3, 1, [column(A, "Words", ["bad", "bad"])]))
        [one, other] = await self.get(before, "/v1/dead-letters")
        self.assertEqual((one["reason"], other["reason"]), ("unknown_type", "unknown_type"))
        self.patch(service, "find_safely", lambda: lookup_of(Words()))
        after = await self.start()
        for _ in range(2):
            await self.done(after, "/v1/retry")
            letters = await self.get(after, "/v1/dead-letters")
            self.assertEqual([(letter["reason"], letter["refused"]) for letter in letters], [("handler_error", one["refused"])] * 2)
            self.assertIn("ValueError: bad (", letters[0]["detail"])
            status = await self.get(after, "/v1/status")
            self.assertEqual((status["dead_letters_by_reason"], status["dropped_by_reason"]), ({"handler_error": 2}, {}))

    @asynchronous
    async def test_a_letter_that_becomes_several_pushes_out_no_more_than_is_counted(self) -> None:
        self.patch(retrying, "MAX_DEAD_LETTERS", 3)
        self.patch(service, "find_safely", lambda: lookup_of(Sum()))
        before = await self.start()
        columns = [column(A, "Words", ["bad"], client=f"web/{n}") for n in range(3)]
        await self.send(before, encoded(1, 3, 1, [*columns, column(B, "Words", [["bad"], "x", "bad"])]))
        self.patch(service, "find_safely", lambda: lookup_of(Words()))
        after = await self.start()
        await self.done(after, "/v1/retry")
        status = await self.get(after, "/v1/status")
        self.assertEqual(status["folded"] + status["dead_letters"] + sum(status["dropped_by_reason"].values()), 6)
        self.assertEqual(len(await self.get(after, "/v1/dead-letters")), status["dead_letters"])
        self.assertEqual((status["folded"], status["dead_letters"]), (2, 3))

    @asynchronous
    async def test_a_full_list_is_folded_whole(self) -> None:
        self.patch(service, "find_safely", lambda: lookup_of(Words()))
        before = await self.start()
        columns = [column(A, "Sum", [1.0], client=f"web/{n}") for n in range(MAX_DEAD_LETTERS)]
        await self.send(before, encoded(1, 3, 1, columns), encoded(1, 3, 2, [column(A, "Sum", [1.0])]))
        self.patch(service, "find_safely", lambda: lookup_of(Sum()))
        after = await self.start()
        await self.done(after, "/v1/retry")
        status = await self.get(after, "/v1/status")
        self.assertEqual((status["folded"], status["dead_letters"]), (MAX_DEAD_LETTERS, 0))
        self.assertEqual(status["dropped_by_reason"], {"dead_letters_full": 1})


class Jobs(KeepingCase):
    OLDER = '{"id": "%s", "kind": "prune", "state": "running", "done": 0, "total": 16, "started": 1.0, "message": "", "dry_run": false}'

    @asynchronous
    async def test_records_of_another_version_are_nobodys_jobs_and_hinder_none(self) -> None:
        server = await self.start()
        mine = await self.done(server, "/v1/upgrade")
        whole = json.loads(self.valkey.call("HGET", "taba:{0}:jobs", mine["id"]))
        strange = {
            "older": self.OLDER % "older",  # running, it says
            "newer": json.dumps({**whole, "v": jobs.RECORD_VERSION + 1, "id": "newer"}),
            "short": json.dumps({key: value for key, value in whole.items() if key != "age"}),
            "other": json.dumps({**whole, "age": "7", "id": "other"}),
            "list": "[]",
            "none": "x",
            "deep": "[" * 5000,
        }
        for id, record in strange.items():
            self.valkey.call("HSET", "taba:{0}:jobs", id, record)
        await server.jobs.look()
        self.assertEqual([record["id"] for record in await self.get(server, "/v1/jobs")], [mine["id"]])
        for id in strange:
            for method in ("GET", "DELETE"):
                answered = await self.ask(server, f"/v1/jobs?id={id}", method)
                self.assertEqual((answered.status, answered.json["error"]), (404, "unknown_job"), id)
        self.assertEqual((await self.done(server, "/v1/prune"))["state"], "done")
        self.assertEqual(int(self.valkey.call("HLEN", "taba:{0}:jobs")), 2 + len(strange))
        # beyond the bound they go, before any that is read
        self.patch(jobs, "MAX_RECORDS", 4)
        await self.done(server, "/v1/retry")
        self.assertEqual(int(self.valkey.call("HLEN", "taba:{0}:jobs")), 4)
        self.assertEqual(len(await self.get(server, "/v1/jobs")), 3)

    @asynchronous
    async def test_a_job_that_fails_is_a_problem_that_says_why_and_one_that_is_cancelled_is_none(self) -> None:
        server = await self.start()

        async def fail(job: jobs.Job) -> None:
            raise TabaError("the moon is full")

        server.jobs.register("upgrade", fail)
        await self.ask(server, "/v1/upgrade", "POST")
        while server.jobs._mine:
            await deferLater(reactor, 0.01)
        problems = [problem for problem in (await self.get(server, "/v1/status"))["problems"] if "jobs of the kind" in problem]
        self.assertEqual(len(problems), 1)
        self.assertIn("1 jobs of the kind upgrade failed lately, the last one: the moon is full", problems[0])

        async def wait(job: jobs.Job) -> None:
            while True:
                job.check()
                await deferLater(reactor, 0.01)

        server.jobs.register("prune", wait)
        started = (await self.ask(server, "/v1/prune", "POST")).json
        await self.ask(server, f"/v1/jobs?id={started['id']}", "DELETE")
        while server.jobs._mine:
            await deferLater(reactor, 0.01)
        self.assertEqual(list(server.jobs.failed), ["upgrade"])

    @asynchronous
    async def test_what_is_no_dead_letter_is_shown_as_such(self) -> None:
        server = await self.start()
        for content in ("x", "\x92\x09\x01"):
            self.valkey.call("RPUSH", "taba:{3}:dead", content)
        letters = await self.get(server, "/v1/dead-letters")
        self.assertEqual([(letter["reason"], letter["bucket"]) for letter in letters], [("unreadable", 3)] * 2)
        self.assertIn("0 events folded", (await self.done(server, "/v1/retry"))["message"])
        self.assertEqual(len(await self.get(server, "/v1/dead-letters")), 2)

    @asynchronous
    async def test_a_list_that_looks_like_an_absolute_is_a_bad_value_however_often_it_is_retried(self) -> None:
        # a client posts what an Agent alone may send: at first nobody knows the Type, then it takes no list, retried or not
        ring = ["0123456789abcdef", 2**40, 1e6]
        self.patch(service, "find_safely", lambda: lookup_of(Sum()))
        before = await self.start()
        await self.send(before, encoded(1, 3, 1, [column(A, "UpDown", [ring, 1.0])]))
        self.assertEqual((await self.get(before, "/v1/status"))["dead_letters_by_reason"], {"unknown_type": 2})
        self.patch(service, "find_safely", find_safely)
        after = await self.start()
        self.assertIn("1 events folded, 1 still", (await self.done(after, "/v1/retry"))["message"])
        for _ in range(2):
            self.assertEqual((await self.get(after, "/v1/status"))["dead_letters_by_reason"], {"bad_value": 1})
            self.assertEqual((await self.get(after, f"/v1/aggregates?name={A}"))[A], {"value": 1.0})
            self.assertIn("0 events folded, 1 still", (await self.done(after, "/v1/retry"))["message"])

    @asynchronous
    async def test_a_job_is_seen_from_every_server_and_one_of_a_kind_runs_at_a_time(self) -> None:
        servers = [await self.start(), await self.start()]
        held: list[Any] = []

        async def hold(job: jobs.Job) -> None:
            job.total = 3
            while not held:
                job.check()
                await deferLater(reactor, 0.01)

        self.patch(jobs, "SAY_SECONDS", 0.05)
        for server in servers:
            server.jobs.register("upgrade", hold)
        first = (await self.ask(servers[0], "/v1/upgrade", "POST")).json
        self.assertEqual((first["kind"], first["state"], first["done"]), ("upgrade", "running", 0))
        for server in servers:
            self.assertEqual((await self.ask(server, "/v1/upgrade", "POST")).json["id"], first["id"])
            [record] = await self.get(server, "/v1/jobs")
            self.assertEqual((record["id"], record["state"]), (first["id"], "running"))
        cancelled = await self.ask(servers[1], f"/v1/jobs?id={first['id']}", "DELETE")
        self.assertEqual(cancelled.json["state"], "cancelled")
        while servers[0].jobs._mine:
            await deferLater(reactor, 0.01)
        [record] = await self.get(servers[1], "/v1/jobs")
        self.assertEqual((record["state"], record["total"]), ("cancelled", 3))
        second = (await self.ask(servers[1], "/v1/upgrade", "POST")).json
        self.assertNotEqual(second["id"], first["id"])
        held.append(True)
        while (await self.get(servers[0], "/v1/jobs"))[0]["state"] != "done":
            await deferLater(reactor, 0.01)
        self.assertEqual((await self.ask(servers[0], "/v1/jobs?id=nonsense", "DELETE")).status, 404)
        self.assertEqual((await self.ask(servers[0], "/v1/jobs?id=nonsense")).status, 404)

    @asynchronous
    async def test_a_job_whose_server_is_gone_is_failed_and_can_be_started_again(self) -> None:
        servers = [await self.start(), await self.start()]

        async def never(job: jobs.Job) -> None:
            while True:
                await deferLater(reactor, 0.01)
                job.check()

        servers[0].jobs.register("upgrade", never)
        first = (await self.ask(servers[0], "/v1/upgrade", "POST")).json
        await self.stop(servers[0])
        [record] = await self.get(servers[1], "/v1/jobs")
        self.assertEqual((record["state"], record["message"]), ("failed", "its Server stopped"))
        # and one that could not say goodbye
        lost = {**record, "v": jobs.RECORD_VERSION, "state": "running", "server": "x", "age": OLD_MINUTES, "said": 1, "found": []}
        self.patch(jobs, "LOST_SECONDS", 0.2)
        await servers[1].router.transact(
            0, [], lambda _: Writes([(b"HSET", keys.jobs(0), first["id"].encode(), json.dumps(lost).encode())])
        )
        while (await self.get(servers[1], "/v1/jobs"))[0]["state"] == "running":
            await deferLater(reactor, 0.01)
        [record] = await self.get(servers[1], "/v1/jobs")
        self.assertEqual(record["state"], "failed")
        self.assertIn("its Server is gone", record["message"])
        self.assertEqual((await self.done(servers[1], "/v1/upgrade"))["state"], "done")

    @asynchronous
    async def test_a_dry_run_is_not_joined_by_the_job_itself(self) -> None:
        server = await self.start()

        async def hold(job: jobs.Job) -> None:
            while True:
                await deferLater(reactor, 0.01)
                job.check()

        server.jobs.register("prune", hold, has_dry_run=True)
        first = (await self.ask(server, "/v1/prune?dry_run=1", "POST")).json
        answered = await self.ask(server, "/v1/prune", "POST")
        self.assertEqual((answered.status, answered.json["error"]), (409, "conflict"))
        self.assertIn(first["id"], answered.json["detail"])
        await self.ask(server, f"/v1/jobs?id={quote(first['id'])}", "DELETE")

    @asynchronous
    async def test_a_check_notes_where_maps_and_owner_keys_disagree(self) -> None:
        server = await self.start()
        record = await self.job(server, "/v1/check")
        self.assertEqual((record["state"], record["message"], record["found"]), ("done", "all maps and owner keys agree", []))
        self.valkey.ask("DEL", "taba:{3}:owner")
        record = await self.job(server, "/v1/check")
        self.assertEqual((record["state"], len(record["found"])), ("done", 1))
        self.assertIn("bucket 3", record["found"][0]["problem"])

    @asynchronous
    async def test_a_job_that_fails_says_why_and_may_be_started_again(self) -> None:
        server = await self.start()
        failures = [StoreUnavailable("no shard"), ValueError("x" * 1000)]

        async def fail(job: jobs.Job) -> None:
            if failures:
                raise failures.pop(0)

        server.jobs.register("upgrade", fail)
        records = [await self.job(server, "/v1/upgrade") for _ in range(3)]
        self.flushLoggedErrors(ValueError)
        self.assertEqual([record["state"] for record in records], ["failed", "failed", "done"])
        self.assertIn("no shard", records[0]["message"])
        self.assertIn("ValueError", records[1]["message"])

    @asynchronous
    async def test_the_history_is_bounded(self) -> None:
        self.patch(jobs, "MAX_RECORDS", 3)
        server = await self.start()
        for _ in range(5):
            await self.done(server, "/v1/upgrade")
        self.assertEqual(len(await self.get(server, "/v1/jobs")), 3)

    @asynchronous
    async def test_the_periodic_job_runs_once_however_many_servers_look(self) -> None:
        self.patch(service, "PRUNE_LOOK_SECONDS", 0.05)
        servers = [await self.start() for _ in range(3)]
        looks = [0, 0, 0]
        for place, server in enumerate(servers):
            self.patch(server, "_begin_pruning", self.counted(server._begin_pruning, looks, place))
        while not (jobs := await self.get(servers[0], "/v1/jobs")) or jobs[0]["state"] != "done" or min(looks) < 3:
            await deferLater(reactor, 0.02)  # each looks again, and finds it done; the test's own bound ends this
        self.assertEqual([(job["kind"], job["state"]) for job in await self.get(servers[0], "/v1/jobs")], [("prune", "done")])

    @staticmethod
    def counted(function: Callable[[], None], counts: list[int], place: int) -> Callable[[], None]:
        def call() -> None:
            counts[place] += 1
            function()

        return call
