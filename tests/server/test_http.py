"""The Server over HTTP, with a real store behind it."""

from __future__ import annotations

import gzip
import time
import zlib
from typing import Any
from urllib.parse import quote

import msgpack
import treq
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import deferLater

from taba import turns as turning
from taba.batch import MARK, OPEN, Header, KeyPart, SentBatch, Verdict, decode_verdicts, encode_batch, encode_envelope
from taba.bounds import MAX_ENVELOPE_BYTES
from taba.errors import StoreUnavailable
from taba.names import bucket_of
from taba.server import status as status_module
from taba.server.ask import choosing, query, states
from taba.server.fold.ingest import AWAY_SECONDS, STOPS
from taba.server.fold.posts import Posts
from tests.patience import PATIENCE_SECONDS

from ..stores import borrow
from .running import BUCKETS, Answered, ServerCase, asynchronous, encoded, reactor, together
from .samples import column, tab_in


def total(tab: str, values: list[float], client: str = "web/1", type: str = "TotalsCounter") -> Any:
    return column(tab, type, values, client=client, times=[time.time()] * len(values))


A, B = tab_in(3, 0, BUCKETS), tab_in(3, 1, BUCKETS)


class Envelopes(ServerCase):
    @asynchronous
    async def test_what_an_agent_sends_is_there_to_be_asked(self) -> None:
        server = await self.start()
        first = encoded(1, 3, 1, [total(A, [1.0, 2.5]), total(A, [4.0], client="web/2"), total(B, [7.0])])
        verdicts = await self.send(server, first, encoded(1, 3, 2, [total(A, [1.5])]))
        self.assertEqual(verdicts, [Verdict("applied", 1), Verdict("applied", 2)])
        aggregates = await self.get(server, "/v1/aggregates")
        self.assertEqual(aggregates[A], {"count": 4, "total": 9, "average": 2.25, "min": 1, "max": 4})
        self.assertEqual((await self.get(server, f"/v1/projections?name={B}"))[B]["web/1"]["total"], 7)
        self.assertEqual(await self.get(server, "/v1/names"), sorted([A, B]))
        self.assertEqual(await self.get(server, "/v1/clients"), ["web/1", "web/2"])
        self.assertEqual(await self.get(server, "/v1/types"), {A: "TotalsCounter", B: "TotalsCounter"})
        status = await self.get(server, "/v1/status")
        self.assertEqual((status["folded"], status["dead_letters"], status["store"]["buckets"]), (5, 0, BUCKETS))
        latency = await self.get(server, "/v1/latency")
        self.assertTrue(0 < latency["p50"] <= latency["p95"] <= latency["p99"] < 10, latency)
        self.assertEqual((await self.get(server, "/v1/latency?seconds=60")), latency)
        for seconds in ("4", "61", "x"):
            self.assertEqual((await self.ask(server, f"/v1/latency?seconds={seconds}")).status, 400)

    @asynchronous
    async def test_a_dozen_envelopes_of_a_few_bytes_that_would_become_millions_of_lists_are_refused(self) -> None:
        server = await self.start()
        body = zlib.compress(b"\xdd\x00\x7f\xff\xf0" + b"\x90" * (MAX_ENVELOPE_BYTES - 16), 9)
        hostile = [self.ask(server, "/v1/envelopes", "POST", body, {"Content-Encoding": ["deflate"]}) for _ in range(12)]
        self.assertEqual({answered.status for answered in await together(hostile)}, {400})
        self.assertEqual(await self.send(server, encoded(1, 3, 1, [total(A, [1.0])])), [Verdict("applied", 1)])
        self.assertEqual(server.site.receiving, 0)

    @asynchronous
    async def test_an_envelope_sent_twice_at_once_and_later_to_one_server_and_to_two_changes_nothing(self) -> None:
        servers = [await self.start(), await self.start()]
        batches = [encoded(1, bucket, 1, [total(tab_in(bucket, 0, BUCKETS), [1.0, 2.0])]) for bucket in range(BUCKETS)]
        for verdicts in await together([self.send(server, *batches) for server in servers * 3]):
            self.assertEqual({verdict.word for verdict in verdicts} - {"later"}, {"applied"})
        while any(verdict.word == "later" for verdict in await self.send(servers[0], *batches)):
            pass
        before = await self.all_bytes(servers[0])
        self.assertEqual(sum(len(states) for [states] in before.values()), 2 * BUCKETS)
        for server in servers:
            self.assertEqual(set(await self.send(server, *batches)), {Verdict("applied", 1)})
        self.assertEqual(await self.all_bytes(servers[1]), before)
        counts = [aggregate["count"] for aggregate in (await self.get(servers[0], "/v1/aggregates")).values()]
        self.assertEqual(counts, [2] * BUCKETS)
        self.assertEqual((await self.get(servers[0], "/v1/status"))["folded"], 2 * BUCKETS)

    @asynchronous
    async def test_two_servers_fold_the_same_buckets_at_once_exactly(self) -> None:
        servers = [await self.start(), await self.start()]

        async def sender(stream: int) -> None:
            number = 1
            while number <= 20:
                batch = encoded(stream, 3, number, [total(A, [1.0] * 5, client=f"web/{stream % 2}"), total(B, [float(stream)])])
                [verdict] = await self.send(servers[(stream + number) % 2], batch)
                if verdict.word == "later":
                    await deferLater(reactor, min(float(verdict.detail), 0.05))
                else:
                    self.assertEqual(verdict, Verdict("applied", number))
                    number += 1

        await together([sender(stream) for stream in range(1, 7)])
        aggregates = await self.get(servers[0], "/v1/aggregates")
        self.assertEqual((aggregates[A]["count"], aggregates[A]["total"]), (600, 600))
        self.assertEqual((aggregates[B]["count"], aggregates[B]["total"]), (120, 20 * 21))

    @asynchronous
    async def test_every_event_counts_once_although_the_store_is_killed_again_and_again(self) -> None:
        servers = [await self.start(), await self.start()]
        killing = True

        async def sender(stream: int) -> int:
            number, server = 1, 0
            while killing or number <= 10:
                batch = encoded(stream, 3, number, [total(A, [1.0] * 5, client=f"web/{stream % 2}")])
                [verdict] = await self.send(servers[(stream + server) % 2], batch)
                if verdict == Verdict("applied", number):
                    number += 1
                else:
                    self.assertEqual(verdict.word, "later")
                    server += 1  # as an Agent does: another Server may have more luck
                    await deferLater(reactor, 0.02)
            return number - 1

        sending = together([sender(stream) for stream in range(1, 5)])
        for _ in range(4):
            await deferLater(reactor, 0.3)
            self.valkey.kill()
            self.valkey.start()
        await deferLater(reactor, 0.2)
        killing = False
        sent = sum(await sending)
        self.assertGreaterEqual(sent, 40)
        for server in servers:
            while (await self.ask(server, "/readyz")).status != 200:
                await deferLater(reactor, 0.05)
        self.assertEqual((await self.get(servers[0], "/v1/aggregates"))[A]["count"], 5 * sent)
        while (await self.get(servers[1], "/v1/status"))["folded"] != 5 * sent:  # what it counted last may be a second old, and is said
            await deferLater(reactor, 0.05)

    @asynchronous
    async def test_two_shards_are_one_store(self) -> None:
        stores = [borrow(self, tcp=True) for _ in range(2)]
        url = "redis://" + ",".join(f"127.0.0.1:{store.port}" for store in stores)
        servers = [await self.start(url), await self.start(url)]
        batches = [encoded(1, bucket, 1, [total(tab_in(bucket, 0, BUCKETS), [1.0])]) for bucket in range(BUCKETS)]
        self.assertEqual(set(await self.send(servers[0], *batches)), {Verdict("applied", 1)})
        self.assertEqual(len(await self.get(servers[1], "/v1/aggregates")), BUCKETS)
        self.assertEqual(sorted(shard["buckets"] for shard in await self.get(servers[0], "/v1/shards")), [BUCKETS // 2] * 2)
        self.assertEqual(await self.get(servers[1], "/v1/clients"), ["web/1"])

    @asynchronous
    async def test_a_gap_names_the_mark_and_a_probe_asks_for_it(self) -> None:
        server = await self.start()
        await self.send(server, encoded(1, 3, 1, [total(A, [1.0])]))
        verdicts = await self.send(server, encoded(1, 3, 3, [total(A, [1.0])]), Header(MARK, b"\x01" * 16, 3))
        self.assertEqual(verdicts, [Verdict("gap", 1, "number"), Verdict("mark", 1)])

    @asynchronous
    async def test_what_is_no_batch_is_refused_and_harms_no_other(self) -> None:
        server = await self.start()
        verdicts = await self.send(
            server,
            SentBatch(b"nonsense", 0, bytes(8)),
            encoded(1, 3, 1, [total(A, [1.0])]),
            encoded(1, BUCKETS, 1, [total(A, [1.0])]),
            SentBatch(msgpack.packb([5, b"x" * 16, 3, 0, [], b""]), 0, bytes(8)),
        )
        self.assertEqual([verdict.word for verdict in verdicts], ["refused", "applied", "refused", "refused"])
        self.assertEqual((await self.get(server, "/v1/aggregates"))[A]["count"], 1)

    @asynchronous
    async def test_what_follows_a_keyed_batch_in_its_lane_stays_behind_it_and_no_gap_is_seen(self) -> None:
        server, other = await self.start(), tab_in(4, 0, BUCKETS)
        keyed = encoded(1, 3, 1, [total(A, [1.0])])._replace(key=KeyPart(b"k" * 16, b"d" * 16, 1).encode())
        verdicts = await self.send(server, keyed, encoded(1, 3, 2, [total(A, [1.0])]), encoded(2, 4, 1, [total(other, [1.0])]))
        self.assertEqual(verdicts, [Verdict("applied", 1), Verdict("applied", 2), Verdict("applied", 1)])
        self.assertEqual((server.ingest.gaps, (await self.get(server, "/v1/aggregates"))[A]["count"]), (0, 2))

        async def away(*_: Any) -> Any:
            raise StoreUnavailable("the key's record is away")

        self.patch(Posts, "claim", away)
        keyed = encoded(1, 3, 3, [total(A, [1.0])])._replace(key=KeyPart(b"l" * 16, b"d" * 16, 1).encode())
        verdicts = await self.send(server, keyed, encoded(1, 3, 4, [total(A, [1.0])]), encoded(2, 4, 2, [total(other, [1.0])]))
        self.assertEqual([verdict.word for verdict in verdicts], ["later", "later", "applied"])
        self.assertEqual(server.ingest.gaps, 0)

    @asynchronous
    async def test_what_follows_one_that_is_not_taken_waits_and_no_gap_is_seen(self) -> None:
        server, other = await self.start(), tab_in(4, 0, BUCKETS)

        await self.send(server, encoded(1, 3, 1, [total(A, [1.0])]), encoded(2, 4, 1, [total(other, [1.0])]))
        follower = encoded(1, 3, 3, [total(A, [1.0])])
        nonce = self.streams.nonces[b"\1" * 16, 3]
        version = msgpack.packb([77, b"x" * 16, 3, 2, [], b""])
        for content, words in (
            (b"nonsense", ["refused", "later", "refused", "applied"]),
            (version, ["later", "later", "refused", "applied"]),
        ):
            entries = [
                *(SentBatch(content, 1, nonce), follower, SentBatch(b"nonsense", 3, nonce)),
                encoded(2, 4, 2, [total(other, [1.0])]),
            ]
            verdicts = await self.send(server, *entries)
            self.assertEqual([verdict.word for verdict in verdicts], words)
        self.assertEqual(verdicts[1], verdicts[0])  # it waits for as long
        self.assertEqual(server.ingest.gaps, 0)
        self.assertEqual(await self.send(server, follower._replace(follows=1)), [Verdict("applied", 3)])

    @asynchronous
    async def test_nor_is_one_behind_another_request_under_a_known_key(self) -> None:
        server = await self.start()

        def keyed(number: int, digest: bytes) -> SentBatch:
            return encoded(1, 3, number, [total(A, [1.0])])._replace(key=KeyPart(b"k" * 16, digest * 16, 1).encode())

        await self.send(server, keyed(1, b"d"))
        follower = encoded(1, 3, 3, [total(A, [1.0])])
        verdicts = await self.send(server, keyed(2, b"e"), follower)
        self.assertEqual([verdict.word for verdict in verdicts], ["refused", "later"])
        self.assertEqual(server.ingest.gaps, 0)
        self.assertEqual(await self.send(server, follower._replace(follows=1)), [Verdict("applied", 3)])

    @asynchronous
    async def test_a_batch_that_is_sent_again_moves_nothing(self) -> None:
        server = await self.start()
        batch = encoded(1, 3, 1, [total(A, [1.0, 2.0])])
        for _ in range(3):
            self.assertEqual(await self.send(server, batch), [Verdict("applied", 1)])
        self.assertEqual(dict(server.ingest.moving.counts()), {A: 2})

    @asynchronous
    async def test_what_is_for_another_store_and_what_is_of_another_version_waits_and_is_a_problem(self) -> None:
        server = await self.start()
        batch = encoded(1, 3, 1, [total(A, [1.0])])
        await self.send(server, Header(OPEN, bytes(16), 3))
        for store, word in (("91cc", "later"), (server.router.store_id, "gap")):
            body = encode_envelope("test", "host", 0.0, store, [batch])
            answer = decode_verdicts((await self.ask(server, "/v1/envelopes", "POST", body)).body, 1)
            self.assertEqual(answer.verdicts[0].word, word)
        [verdict] = await self.send(server, SentBatch(msgpack.packb([6, "of a later version"]), 0, bytes(8)))
        self.assertEqual(verdict.word, "later")
        self.assertEqual((await self.ask(server, "/v1/envelopes", "POST", msgpack.packb({"v": 3}))).status, 400)
        problems = str((await self.get(server, "/v1/status"))["problems"])
        for says in ("the Agent test sends to the store 91cc…", "batch version 6", "envelope version 3"):
            self.assertIn(says, problems)
        self.assertEqual((await self.get(server, "/v1/status"))["folded"], 0)

    @asynchronous
    async def test_a_column_that_is_none_is_a_dead_letter_and_not_its_batch(self) -> None:
        server = await self.start()
        columns = [total("bad name", [1.0], type="Gauge"), total(A, [3.0]), total(A, [1.0], type="Zork")]
        version, *id, body, meanings = msgpack.unpackb(encode_batch(b"s" * 16, 3, 1, columns))
        content = msgpack.packb([version, *id, [1, b"\xc1", *body], meanings])
        self.assertEqual(await self.send(server, SentBatch(content, 0, bytes(8))), [Verdict("applied", 1)])
        status = await self.get(server, "/v1/status")
        self.assertEqual(status["dead_letters_by_reason"], {"bad_column": 2, "type_conflict": 1})
        self.assertEqual(status["folded"], 1)
        [said] = [problem for problem in status["problems"] if "another Type" in problem]
        self.assertIn(f"{A}: Client web/1 records it as Zork; the Tab has Type TotalsCounter, of Client web/1.", said)
        letters = await self.get(server, "/v1/dead-letters")
        self.assertEqual({letter["reason"] for letter in letters}, {"bad_column", "type_conflict"})
        self.assertEqual(len(letters), 3)

    @asynchronous
    async def test_bodies_that_are_no_envelope_and_bodies_that_are_too_large(self) -> None:
        server = await self.start()
        for body in (b"", b"nonsense", msgpack.packb({"v": 9}), msgpack.packb([1]), b"\xc1" * 100, b"\x91" * 100_000):
            self.assertEqual((await self.ask(server, "/v1/envelopes", "POST", body)).status, 400, body[:20])
        answered = await self.ask(server, "/v1/envelopes", "POST", bytes(MAX_ENVELOPE_BYTES + 1))
        self.assertEqual((answered.status, answered.json["error"]), (413, "too_large"))
        bomb = gzip.compress(bytes(MAX_ENVELOPE_BYTES + 1))
        self.assertEqual((await self.ask(server, "/v1/envelopes", "POST", bomb, {"Content-Encoding": ["gzip"]})).status, 413)
        batch = encoded(1, 3, 1, [total(A, [1.0])])
        self.assertEqual(await self.send(server, batch), [Verdict("applied", 1)])
        good = gzip.compress(encode_envelope("test", "host", 0.0, None, self.streams.with_nonces([batch])))
        self.assertEqual((await self.ask(server, "/v1/envelopes", "POST", good, {"Content-Encoding": ["gzip"]})).status, 200)
        self.assertEqual((await self.get(server, "/v1/aggregates"))[A]["count"], 1)

    @asynchronous
    async def test_with_the_store_away_everything_is_later_and_nothing_is_lost(self) -> None:
        server = await self.start()
        await self.send(server, encoded(1, 3, 1, [total(A, [1.0])]))
        self.valkey.kill()
        batch = encoded(1, 3, 2, [total(A, [1.0])])
        [verdict] = await self.send(server, batch)
        self.assertEqual(verdict.word, "later")
        self.assertEqual((await self.ask(server, "/readyz")).status, 503)
        self.assertEqual((await self.ask(server, "/healthz")).status, 200)
        self.assertEqual((await self.ask(server, "/v1/names")).status, 503)
        self.assertEqual((await self.post(server, [{"tab": A, "type": "TotalsCounter", "value": 1}])).status, 503)
        self.assertIn("away", str((await self.get(server, "/v1/status"))["problems"]))
        self.valkey.start()
        while (await self.send(server, batch))[0] != Verdict("applied", 2):
            await deferLater(reactor, 0.05)
        self.assertEqual((await self.ask(server, "/readyz")).status, 200)

    @asynchronous
    async def test_a_server_that_stops_says_so_first_then_ends_what_is_under_way_and_listens_no_more_at_last(self) -> None:
        server, other = await self.start(), await self.start()
        url = server.presence.url or ""
        self.assertEqual((await self.send(server, encoded(1, 3, 1, [total(A, [1.0])])))[0].word, "applied")
        gate: Deferred[None] = Deferred()
        transact = server.router.transact

        async def held(bucket: int, *arguments: Any) -> Any:
            if bucket == 3:
                await gate
            return await transact(bucket, *arguments)

        self.patch(server.router, "transact", held)
        under_way = ensureDeferred(self.send(server, encoded(1, 3, 2, [total(A, [2.0])])))
        while not server.ingest._running:
            await deferLater(reactor, 0.01)
        waiting = ensureDeferred(self.send_raw(server, Header(MARK, bytes(16), 3)))
        while not any(line.entries for line in server.ingest._lines.values()):
            await deferLater(reactor, 0.01)
        stopping = server.stopService()

        async def asked(path: str, method: str = "GET", body: Any = None) -> Answered:
            response = await treq.request(method, f"{url}{path}", data=body, pool=self.pool, timeout=PATIENCE_SECONDS)
            return Answered(response.code, response.headers, await response.content())

        ready = await asked("/readyz")
        self.assertEqual((ready.status, ready.json["detail"]), (503, "this Server stops"))
        body = encode_envelope("test", "host", time.time(), None, [Header(MARK, bytes(16), 3)])
        late = await asked("/v1/envelopes", "POST", body)
        self.assertEqual(decode_verdicts(late.body, 1).verdicts, [Verdict("later", AWAY_SECONDS, STOPS)])
        gate.callback(None)
        self.assertEqual((await under_way)[0].word, "applied")
        self.assertEqual(await waiting, [Verdict("later", AWAY_SECONDS, STOPS)])
        await stopping
        with self.assertRaises(ConnectionRefusedError):
            await asked("/healthz")
        self.assertNotIn(url, [one["url"] for one in await self.get(other, "/v1/servers")])
        self.assertEqual((await self.get(other, "/v1/aggregates"))[A]["total"], 3.0)

    @asynchronous
    async def test_status_answers_soon_and_in_numbers_while_the_store_hangs_and_is_right_again_afterwards(self) -> None:
        server = await self.start()
        await self.send(server, encoded(1, 3, 1, [total(A, [1.0, 2.0])]))
        self.assertEqual((await self.get(server, "/v1/status"))["folded"], 2)
        fresh = await self.start()
        self.patch(status_module, "COUNTS_SECONDS", 0.0)  # what was read is not shown without a look
        self.valkey.pause()
        try:  # the store hangs until all have answered
            one, other, new = await together([self.get(of, "/v1/status") for of in (server, server, fresh)])
        finally:
            self.valkey.resume()
        for status in (one, other):
            self.assertEqual((status["folded"], status["dead_letters"]), (2, 0))
            self.assertRegex(str(status["problems"]), "store is away: .*within 1 s.* of [0-9]+ s ago")
        self.assertEqual((new["folded"], new["dead_letters"]), (0, 0))
        self.assertIn("not known yet", str(new["problems"]))
        batch = encoded(1, 3, 2, [total(A, [1.0])])
        while (await self.send(server, batch))[0] != Verdict("applied", 2):
            await deferLater(reactor, 0.05)
        for of in (server, fresh):
            while (status := await self.get(of, "/v1/status"))["problems"]:
                await deferLater(reactor, 0.05)
            self.assertEqual(status["folded"], 3)


class Events(ServerCase):
    @asynchronous
    async def test_posted_events_count_once_under_one_key(self) -> None:
        servers = [await self.start(), await self.start()]
        events = [{"tab": f"tab{n}", "type": "TotalsCounter", "value": n} for n in range(50)]
        events.append({"tab": "tab", "type": "TotalsCounter", "value": 1, "labels": {"b": "2", "a": "1"}})
        events.append({"tab": "sp ace", "type": "X", "value": 1})
        for server in servers * 2:
            answered = await self.post(server, events, key="once")
            self.assertEqual(answered.status, 200, answered.body)
            self.assertEqual(answered.json["accepted"], 51)
            self.assertEqual([rejection["index"] for rejection in answered.json["rejected"]], [51])
        aggregates = await self.get(servers[0], "/v1/aggregates")
        self.assertEqual({aggregate["count"] for aggregate in aggregates.values()}, {1})
        self.assertIn('tab{a="1",b="2"}', aggregates)
        await self.post(servers[0], events[:1])
        await self.post(servers[0], events[:1])
        self.assertEqual((await self.get(servers[1], "/v1/aggregates?name=tab0"))["tab0"]["count"], 3)

    @asynchronous
    async def test_a_body_that_calls_itself_a_form_is_read_all_the_same(self) -> None:
        server = await self.start()
        for kind in ("application/x-www-form-urlencoded", "multipart/form-data", "multipart/form-data; boundary=x", "x"):
            body = b'{"client": "web/1", "events": [{"tab": "t", "type": "TotalsCounter", "value": 1, "labels": {"a": "b=c&d=e"}}]}'
            answered = await self.ask(server, "/v1/events", "POST", body, {"Content-Type": [kind]})
            self.assertEqual((answered.status, answered.json), (200, {"accepted": 1, "rejected": []}), kind)

    @asynchronous
    async def test_bodies_that_are_none(self) -> None:
        server = await self.start()
        wrong = (b'{"client": "x y", "events": []}', b'{"client": "x", "events": 3}', b'{"client": 3, "events": []}')
        for body in (b"", b"[]", b"{", b"\xff", *wrong):
            answered = await self.ask(server, "/v1/events", "POST", body)
            self.assertEqual((answered.status, answered.json["error"]), (400, "bad_request"), body)
        self.assertEqual((await self.post(server, [], key="x" * 256)).status, 400)


class Questions(ServerCase):
    async def filled(self) -> Any:
        server = await self.start()
        events: list[Any] = [
            {"tab": "price", "type": "TotalsCounter", "value": value, "labels": {"exchange": exchange, "dc": dc}}
            for value, exchange, dc in ((1, "adx", "eu"), (2, "adx", "us"), (4, "rtb", "eu"))
        ]
        events += [{"tab": "hits", "type": "TotalsCounter", "value": 8}, {"tab": "load", "type": "UpDown", "value": 3}]
        await self.post(server, events)
        await self.post(server, [{"tab": "hits", "type": "TotalsCounter", "value": 16}], client="job/1")
        return server

    @asynchronous
    async def test_filters(self) -> None:
        server = await self.filled()

        async def names(question: str) -> Any:
            return [name.partition("{")[0] + str(name.count("{")) for name in await self.get(server, f"/v1/names?{question}")]

        self.assertEqual(await names(""), ["hits0", "load0", "price1", "price1", "price1"])
        self.assertEqual(await names("name=hits&name=nowhere"), ["hits0"])
        self.assertEqual(await names("match=h.*|l.*"), ["hits0", "load0"])
        self.assertEqual(await names("match=h"), [])
        self.assertEqual(await names("label=dc:eu"), ["price1", "price1"])
        self.assertEqual(await names("label=dc:eu&label=exchange:rtb"), ["price1"])
        self.assertEqual(await names("client=job/1"), ["hits0"])
        self.assertEqual(await names("client_match=j.*&name=load"), [])
        self.assertEqual(await self.get(server, "/v1/clients?name=hits"), ["job/1", "web/1"])
        self.assertEqual(await self.get(server, "/v1/clients?client_match=j.*"), ["job/1"])
        self.assertEqual(await self.get(server, "/v1/types?name=load"), {"load": "UpDown"})
        self.assertEqual((await self.get(server, "/v1/aggregates?name=hits"))["hits"]["total"], 24)
        self.assertEqual((await self.get(server, "/v1/aggregates?name=hits&client=job/1"))["hits"]["total"], 16)
        self.assertEqual(list((await self.get(server, "/v1/projections?name=hits&client_match=w.*"))["hits"]), ["web/1"])
        name = 'price{dc="us",exchange="adx"}'
        self.assertEqual((await self.get(server, f"/v1/aggregates?name={quote(name)}"))[name]["total"], 2)
        self.assertEqual(await self.get(server, "/v1/aggregates?name=nowhere"), {})
        self.assertEqual(await self.get(server, "/v1/projections?name=nowhere"), {})

    @asynchronous
    async def test_groups_and_the_superaggregate(self) -> None:
        server = await self.filled()
        grouped = await self.get(server, "/v1/aggregates?match=price.*&by=exchange")
        totals = {name: aggregate["total"] for name, aggregate in grouped.items()}
        self.assertEqual(totals, {'price{exchange="adx"}': 3, 'price{exchange="rtb"}': 4})
        grouped = await self.get(server, "/v1/aggregates?match=price.*&by=dc&by=exchange")
        self.assertEqual(len(grouped), 3)
        self.assertEqual((await self.get(server, "/v1/aggregates?match=price.*&by=nothing"))["price"]["total"], 7)
        self.assertEqual((await self.get(server, "/v1/superaggregate?match=price.*"))["total"], 7)
        self.assertEqual(await self.get(server, "/v1/superaggregate?name=nowhere"), {})
        answered = await self.ask(server, "/v1/superaggregate")
        self.assertEqual(answered.status, 400)
        self.assertIn("TotalsCounter, UpDown", answered.json["detail"])

    @asynchronous
    async def test_a_group_of_several_types_says_so_and_the_others_are_answered(self) -> None:
        server = await self.filled()
        await self.post(server, [{"tab": "price", "type": "UpDown", "value": 3, "labels": {"exchange": "rtb", "dc": "us"}}])
        grouped = await self.get(server, "/v1/aggregates?match=price.*&by=exchange")
        self.assertEqual(grouped['price{exchange="adx"}']["total"], 3)
        self.assertEqual(grouped['price{exchange="rtb"}'], {"error": "Types differ: TotalsCounter, UpDown"})
        text = (await self.ask(server, "/v1/aggregates?match=price.*&by=exchange", headers={"Accept": ["text/plain"]})).text
        self.assertEqual(text.splitlines()[1], 'price{exchange="rtb"}: {"error": "Types differ: TotalsCounter, UpDown"}')

    @asynchronous
    async def test_text_for_people(self) -> None:
        server = await self.filled()
        text = (await self.ask(server, "/v1/aggregates?match=hits|load", headers={"Accept": ["text/plain"]})).text
        self.assertEqual(text.splitlines()[1], 'load: {"value": 3}')
        self.assertTrue(text.startswith("hits: {"), text)
        text = (await self.ask(server, "/v1/projections?name=load", headers={"Accept": ["text/plain"]})).text
        self.assertEqual(text, 'load: {web/1: {"value": 3}}\n')
        self.assertEqual((await self.ask(server, "/v1/clients", headers={"Accept": ["text/plain"]})).text, "job/1\nweb/1\n")
        self.assertNotIn("None", (await self.ask(server, "/v1/latency", headers={"Accept": ["text/plain"]})).text)
        for path in ("/v1/status", "/v1/shards", "/v1/latency", "/v1/types", "/v1/names", "/v1/superaggregate?name=hits"):
            answered = await self.ask(server, path, headers={"Accept": ["text/plain"]})
            self.assertEqual((answered.status, answered.headers.getRawHeaders("content-type")), (200, ["text/plain; charset=utf-8"]), path)

    @asynchronous
    async def test_questions_that_break_the_rules(self) -> None:
        server = await self.start()
        for path, status in {
            "/v1/nowhere": 404,
            "/v1/names?nmae=x": 400,
            "/v1/names?match=(": 400,
            "/v1/names?match=a&match=b": 400,
            "/v1/names?label=dc": 400,
            "/v1/names?match=" + "a" * 1001: 400,
            "/v1/aggregates?detail=2": 400,
            "/v1/aggregates?by=": 400,
            "/v1/aggregates?by=BAD!": 400,
            "/v1/aggregates?" + "&".join(f"by=l{n}" for n in range(17)): 400,
            "/v1/aggregates?" + "&".join(f"by=l{n}" for n in range(16)): 200,
            "/v1/names?name": 400,
            "/v1/dead-letters?limit=0": 400,
            "/v1/envelopes": 405,
            "/v1/names?match=" + "a" * 1000: 200,
        }.items():
            answered = await self.ask(server, path)
            self.assertEqual(answered.status, status, path)
            if status != 200:
                self.assertEqual(set(answered.json), {"error", "detail"})
        self.assertEqual((await self.ask(server, "/v1/names", "DELETE")).status, 405)

    @asynchronous
    async def test_names_that_follow_no_rule_match_nothing(self) -> None:
        server = await self.start()
        self.assertEqual(await self.get(server, "/v1/names?name=" + quote('sp ace\n{"\0')), [])

    @asynchronous
    async def test_big_questions_in_small_slices_give_the_same_answers(self) -> None:
        server = await self.filled()
        questions = ["/v1/aggregates", "/v1/aggregates?match=p.*&by=dc", "/v1/projections"]
        questions += ["/v1/names?client=job/1", "/v1/clients?match=h.*"]
        before = [await self.get(server, question) for question in questions]
        self.patch(query, "SLICE_STATES", 1)
        self.patch(states, "SLICE_STATES", 1)
        self.patch(query, "SLICE_SHOWN", 1)
        self.patch(choosing, "FIRST_TABS", 2)
        self.patch(choosing, "SLICE_CLIENTS", 1)
        self.patch(turning, "TURN_SECONDS", -1.0)
        self.assertEqual([await self.get(server, question) for question in questions], before)

    @asynchronous
    async def test_states_that_cannot_be_read_are_left_out_said_and_counted(self) -> None:
        server = await self.filled()
        bucket = bucket_of("hits", BUCKETS)
        key = b"taba:{%d}:states" % bucket
        for content in (b"abc", b"\xff\xff\0\0\0\0newer"):
            self.valkey.ask("HSET", key, b"hits\0web/1", content)
            hits = (await self.get(server, "/v1/aggregates?name=hits"))["hits"]
            self.assertEqual((hits["total"], hits["error"].partition(":")[0]), (16, "1 of 2 Clients left out"))
        self.assertEqual((await self.get(server, "/v1/status"))["handlers"]["TotalsCounter"]["errors"], 2)

    @asynchronous
    async def test_dead_letters_are_listed_newest_first_up_to_a_limit(self) -> None:
        server = await self.start()
        for number in range(3):
            await self.post(server, [{"tab": f"tab{number}", "type": "Nowhere", "value": number}] * 2)
        letters = await self.get(server, "/v1/dead-letters")
        self.assertEqual([letter["value"] for letter in letters], [2, 2, 1, 1, 0, 0])
        self.assertEqual({letter["reason"] for letter in letters}, {"unknown_type"})
        self.assertEqual([letter["tab"] for letter in await self.get(server, "/v1/dead-letters?limit=3")], ["tab2", "tab2", "tab1"])
        status = await self.get(server, "/v1/status")
        self.assertEqual((status["dead_letters"], status["types_missing"]), (6, ["Nowhere"]))

    @asynchronous
    async def test_a_type_under_which_a_tab_of_another_was_recorded_is_not_missing(self) -> None:
        server = await self.start()
        for type in ("TotalsCounter", "Nowhere"):
            await self.post(server, [{"tab": "one", "type": type, "value": 1}])
        status = await self.get(server, "/v1/status")
        self.assertEqual((status["dead_letters_by_reason"], status["types_missing"]), ({"type_conflict": 1}, []))
        self.assertNotIn("no Handler of Type", str(status["problems"]))

    @asynchronous
    async def test_all_servers_know_each_other(self) -> None:
        servers = [await self.start(), await self.start()]
        await together([server.presence.announce() for server in servers])
        urls = sorted(str(server.presence.url) for server in servers)
        for server in servers:
            self.assertEqual([entry["url"] for entry in await self.get(server, "/v1/servers")], urls)
        shards = await self.get(servers[0], "/v1/shards")
        self.assertEqual([shard["buckets"] for shard in shards], [BUCKETS])
        gone = servers.pop()
        await gone.stopService()
        self.assertEqual([entry["url"] for entry in await self.get(servers[0], "/v1/servers")], [servers[0].presence.url])


def test_the_names_used_here_are_where_they_should_be() -> None:
    assert bucket_of(A, BUCKETS) == bucket_of(B, BUCKETS) == 3
