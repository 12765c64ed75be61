"""Server-sent Aggregates: who listens hears what has changed, at the cost of one who asks once."""

from __future__ import annotations

import json
import socket
import zlib
from typing import Any
from unittest import mock
from urllib.parse import urlencode

import pytest
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.protocol import ClientCreator, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase

from taba import broadcast, connections, web
from taba.errors import StoreUnavailable
from taba.server.ask import live
from taba.server.ask.answering import dumped
from taba.server.ask.filters import Filter
from taba.server.service import Server

from ..running import ServerCase, asynchronous, reactor

HITS = [{"tab": "hits", "type": "TotalsCounter", "value": 1, "labels": {"page": page}} for page in "ab"]


class Hearing:
    """One peer that listens: what came so far."""

    def __init__(self, url: str, path: str, *headers: str):
        self.received = b""
        self.is_over = False
        self._head = "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()
        self._port = int(url.rpartition(":")[2])

    async def begin(self) -> Hearing:
        hearing = self

        class Peer(Protocol):
            def dataReceived(self, data: bytes) -> None:
                hearing.received += data

            def connectionLost(self, reason: Any = connectionDone) -> None:
                hearing.is_over = True

        self.peer: Any = await ClientCreator(reactor, Peer).connectTCP("127.0.0.1", self._port)
        self.peer.transport.write(self._head)
        return self

    @property
    def body(self) -> bytes:
        """What came in the chunks that are whole, decompressed."""
        head, _, rest = self.received.partition(b"\r\n\r\n")
        content = b""
        while b"\r\n" in rest:
            size, _, more = rest.partition(b"\r\n")
            length = int(size, 16)
            if len(more) < length + 2:
                break
            content, rest = content + more[:length], more[length + 2 :]
        if b"content-encoding: gzip" in head.lower():
            return zlib.decompressobj(wbits=31).decompress(content)
        return content

    @property
    def events(self) -> list[Any]:
        """The content of each event."""
        blocks = self.body.decode().split("\n\n")
        return [json.loads(line[6:]) for block in blocks for line in block.splitlines() if line.startswith("data: ")]

    async def until(self, is_so: Any) -> Any:
        """Wait until something holds of the events; gives the last."""
        while not (self.events and is_so(self.events)):
            if self.is_over:
                raise AssertionError(f"cut after {self.received!r}")
            await deferLater(reactor, 0.01)
        return self.events[-1]


class Saying(SynchronousTestCase):
    def test_what_is_long_is_compressed_in_turns_to_what_it_would_be_at_one_stroke(self) -> None:
        for length in (0, 1, 1000, 1001):
            text = "".join(chr(97 + place * place % 26) for place in range(length))
            turns = 0

            async def breathe() -> None:
                nonlocal turns
                turns += 1

            whole, said = broadcast.Said(text), broadcast.Said(text)
            expected = whole.blocks
            with mock.patch.object(broadcast, "COMPRESSED_AT_ONCE", 100):
                self.successResultOf(ensureDeferred(said.compress(breathe)))
            self.assertEqual(turns, -(-length // 100))
            self.assertEqual(zlib.decompressobj(wbits=-zlib.MAX_WBITS).decompress(said.blocks).decode(), text)
            self.assertEqual(zlib.decompressobj(wbits=-zlib.MAX_WBITS).decompress(expected).decode(), text)


class Listening(ServerCase):
    def setUp(self) -> None:
        super().setUp()
        self.patch(live, "EVERY_SECONDS", 0.05)
        self.patch(live, "COSTLY_SECONDS", 1e9)  # however slow this machine is
        self.hearings: list[Hearing] = []

    async def hear(self, server: Server, *headers: str, **asked: Any) -> Hearing:
        hearing = Hearing(str(server.presence.url), "/v1/stream?" + urlencode(asked or {"name": "hits"}, doseq=True), *headers)
        self.hearings.append(hearing)
        await hearing.begin()
        return hearing

    async def stop(self, server: Server) -> None:
        for hearing in self.hearings:
            hearing.peer.transport.abortConnection()
        await super().stop(server)

    @asynchronous
    async def test_the_first_event_is_what_is_there_and_the_next_what_has_changed(self) -> None:
        server = await self.start()
        await self.post(server, HITS)
        hearing = await self.hear(server)
        first = await hearing.until(len)
        self.assertEqual({name: one["count"] for name, one in first["aggregates"].items()}, {'hits{page="a"}': 1, 'hits{page="b"}': 1})
        self.assertEqual((first["every"], "error" in first), (0.1, False))  # as it is rounded
        self.assertIn(b"content-type: text/event-stream", hearing.received.lower())
        await self.post(server, HITS[:1])
        await hearing.until(lambda events: events[-1]["aggregates"]['hits{page="a"}']["count"] == 2)
        self.assertIn(b"id: 2\n", hearing.body)
        self.assertEqual(len(server.site.listening), 1)
        self.assertNotIn(next(iter(server.site.listening)), server.site.known)

    @asynchronous
    async def test_states_are_read_only_where_something_was_folded(self) -> None:
        server = await self.start()
        await self.post(server, HITS)
        read: list[str] = []
        original = type(server.query).aggregates

        def aggregates(query: Any, asked: Any) -> Any:
            read.extend(asked.chosen.tabs)
            return original(query, asked)

        self.patch(type(server.query), "aggregates", aggregates)
        hearing = await self.hear(server)
        await hearing.until(len)
        looks = [0]
        folded = type(server.query).folded

        async def counting(query: Any, buckets: Any) -> Any:
            looks[0] += 1
            return await folded(query, buckets)

        self.patch(type(server.query), "folded", counting)
        while looks[0] < 3:
            await deferLater(reactor, 0.01)
        self.assertEqual(sorted(read), ['hits{page="a"}', 'hits{page="b"}'])
        self.assertEqual(len(hearing.events), 1)
        await self.post(server, HITS[:1])
        await hearing.until(lambda events: len(events) == 2)
        self.assertEqual(sorted(read), ['hits{page="a"}', 'hits{page="a"}', 'hits{page="b"}'])
        self.patch(live, "QUIET_SECONDS", 0.0)  # windows move on where nothing happens
        while len(read) < 5:
            await deferLater(reactor, 0.01)

    @asynchronous
    async def test_a_further_tab_of_a_name_and_one_that_is_deleted_are_heard_of(self) -> None:
        self.patch(live, "CHOOSE_SECONDS", 0.1)
        server = await self.start()
        hearing = await self.hear(server)
        self.assertEqual((await hearing.until(len))["aggregates"], {})
        await self.post(server, HITS)
        await hearing.until(lambda events: len(events[-1]["aggregates"]) == 2)
        await self.ask(server, "/v1/tabs?" + urlencode({"name": 'hits{page="a"}'}), "DELETE")
        await hearing.until(lambda events: list(events[-1]["aggregates"]) == ['hits{page="b"}'])

    @asynchronous
    async def test_many_hear_the_same_that_is_made_and_compressed_once(self) -> None:
        server = await self.start()
        await self.post(server, HITS)
        made: list[str] = []
        original = broadcast.Said.__init__

        def making(said: Any, text: str) -> None:
            made.append(text)
            original(said, text)

        self.patch(broadcast.Said, "__init__", making)
        hearings = [await self.hear(server, *(["Accept-Encoding: gzip"] if place % 2 else [])) for place in range(6)]
        for hearing in hearings:
            await hearing.until(len)
        await self.post(server, HITS)
        for hearing in hearings:
            await hearing.until(lambda events: events[-1]["aggregates"]['hits{page="a"}']["count"] == 2)
        self.assertEqual(len(server.live.questions), 1)
        self.assertEqual(len(made), max(len(hearing.events) for hearing in hearings))
        self.assertLess(len(hearings[1].received), len(hearings[0].received))

    @asynchronous
    async def test_who_does_not_read_misses_events_and_has_nothing_kept_for_it(self) -> None:
        server = await self.start()
        await self.post(server, HITS)
        hearing = await self.hear(server)
        await hearing.until(len)
        [question] = server.live.questions.values()
        [listener] = question.broadcast.listeners
        gate: Any = listener._gate
        gate.pauseProducing()
        for _ in range(3):
            await self.post(server, HITS[:1])
            missed = listener.missed
            while listener.missed == missed:
                await deferLater(reactor, 0.01)
        self.assertEqual(len(hearing.events), 1)
        gate.resumeProducing()
        await self.post(server, HITS[:1])
        await hearing.until(lambda events: events[-1]["aggregates"]['hits{page="a"}']["count"] == 5)
        self.assertEqual(len(hearing.events), 2)

    @pytest.mark.real
    @asynchronous
    async def test_a_peer_that_reads_nothing_is_cut_in_the_end(self) -> None:
        server = await self.start()
        await self.post(server, [{"tab": f"t{n}", "type": "CounterGroup", "value": 1} for n in range(100)])
        await self.post(server, [{"tab": "text", "type": "Gauge", "value": "x" * 30_000}])
        self.patch(connections, "ANSWER_SECONDS", 0.5)
        self.patch(connections, "ANSWER_BYTES_PER_SECOND", 10**9)
        self.patch(live, "QUIET_SECONDS", 0.0)
        slow = socket.socket()
        self.addCleanup(slow.close)
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", int(str(server.presence.url).rpartition(":")[2])))
        slow.sendall(b"GET /v1/stream?name=* HTTP/1.1\r\nHost: localhost\r\n\r\n")
        number = 0
        while not server.site.refused["answer_not_read"]:
            number += 1
            await self.post(server, [{"tab": "text", "type": "Gauge", "value": f"{number}" + "x" * 30_000}])
        while server.site.listening:
            await deferLater(reactor, 0.01)

    @asynchronous
    async def test_as_many_connections_and_questions_as_the_bounds_and_one_past_them(self) -> None:
        server = await self.start()
        server.live.places.most = server.live.places.each = 2
        server.site.max_listeners = 2
        await (await self.hear(server)).until(len)
        second = await self.hear(server, name="other")
        await second.until(len)
        self.assertEqual((await self.ask(server, "/v1/stream?name=hits")).json["error"], "full")
        server.site.max_listeners = 3
        answered = await self.ask(server, "/v1/stream?name=third")
        self.assertEqual((answered.status, answered.json["error"]), (503, "full"))
        self.assertIn("2 different questions that are listened to are yours, and of 2 places one asker has 2", answered.json["detail"])
        held = (await self.get(server, "/v1/status"))["held"]["live_questions"]
        self.assertEqual(held, {"count": 2, "most": 2, "greatest": 2, "each": 2})
        second.peer.transport.abortConnection()
        while len(server.live.questions) > 1:  # what nobody hears any more is forgotten
            await deferLater(reactor, 0.01)
        third = await self.hear(server, name="third")
        await third.until(len)
        server.live.places.most = server.live.places.each = 3
        self.patch(live, "MAX_LIVE_TABS", 1)
        await self.post(server, HITS)
        for bad in ("name=hit*", "name=hits&client=x&match=(", "", "match=hits"):
            self.assertEqual((await self.ask(server, f"/v1/stream?{bad}")).status, 400, bad)
        self.assertEqual((await self.get(server, "/v1/status"))["listening"]["listeners"], 2)

    @asynchronous
    async def test_more_come_to_listen_at_once_than_newcomers_have_places_and_all_hear(self) -> None:
        server = await self.start()
        await self.post(server, HITS)
        self.patch(connections, "MAX_HALL", 4)
        self.patch(connections, "LOCAL_HALL", 0)
        hear = server.live.hear
        first: Deferred[None] = Deferred()

        async def slowly(wanted: Filter) -> broadcast.Broadcast:
            if not first.called:
                waiting: Deferred[None] = Deferred()
                first.chainDeferred(waiting)
                await waiting
            return await hear(wanted)

        self.patch(server.live, "hear", slowly)
        hearings = [await self.hear(server) for _ in range(20)]
        while len(server.site.listening) < 20:
            self.assertEqual(server.site.refused, {})
            await deferLater(reactor, 0.01)
        first.callback(None)
        for hearing in hearings:
            await hearing.until(len)

    @asynchronous
    async def test_an_event_has_a_bound_and_so_has_each_tab_in_it_and_what_has_no_room_says_so(self) -> None:
        server = await self.start()
        tabs = ("d0", "d1", "d2")
        await self.post(server, [{"tab": tab, "type": "Gauge", "value": tab} for tab in tabs])
        texts = await (await self.hear(server, name="d*")).until(lambda events: len(events[-1]["aggregates"]) == 3)
        lengths = [len(f"{dumped(tab)}: {dumped(texts['aggregates'][tab])}") for tab in tabs]
        self.assertEqual(len(set(lengths)), 1)
        for name, bound, those in (
            ("MAX_TAB_CHARS", lengths[0], []),
            ("MAX_TAB_CHARS", lengths[0] - 1, ["d0", "d1", "d2"]),
            ("MAX_EVENT_CHARS", 3 * lengths[0], []),
            ("MAX_EVENT_CHARS", 3 * lengths[0] - 1, ["d2"]),
            ("MAX_EVENT_CHARS", lengths[0] - 1, ["d0", "d1", "d2"]),
        ):
            with mock.patch.object(live, name, bound):
                # a question of its own each time
                hearing = await self.hear(server, name=["d?", f"{name}{bound}"])
                event = await hearing.until(lambda events: len(events[-1]["aggregates"]) == 3)
            self.assertEqual([tab for tab, one in event["aggregates"].items() if "error" in one], those, (name, bound))

    @asynchronous
    async def test_a_look_that_takes_long_is_the_cause_of_fewer_and_says_so(self) -> None:
        server = await self.start()
        await self.post(server, HITS)
        self.patch(live, "COSTLY_SECONDS", 1e-7)
        self.patch(live, "SLOWEST_SECONDS", 700.0)
        hearing = await self.hear(server)
        first = await hearing.until(len)
        [question] = server.live.questions.values()
        self.assertGreater(first["every"], 1)
        self.assertEqual(first["every"], round(question.every, 1))
        self.assertLessEqual(question.every, 700.0)

    @asynchronous
    async def test_a_store_that_goes_away_is_said_and_so_is_its_return(self) -> None:
        server = await self.start()
        await self.post(server, HITS)
        hearing = await self.hear(server, name='hits{page="a"}')
        await hearing.until(len)
        self.patch(live, "CHOOSE_SECONDS", 0.0)

        async def away(reads: Any, gone: Any = None) -> Any:
            if gone is None:
                raise StoreUnavailable("it is away")
            gone.update(dict.fromkeys(reads, "it is away"))
            return {}

        with mock.patch.object(server.router, "read_many", away):
            event = await hearing.until(lambda events: "error" in events[-1])
        self.assertIn("it is away", event["error"])
        self.assertIn("it is away", event["aggregates"]['hits{page="a"}']["error"])
        event = await hearing.until(lambda events: "error" not in events[-1])
        self.assertEqual(event["aggregates"]['hits{page="a"}']["count"], 1)

    @asynchronous
    async def test_of_what_goes_away_between_two_reads_of_a_look_no_text_is_kept(self) -> None:
        server = await self.start()
        await self.post(server, HITS)
        question = live._Question(Filter(names=("hits",)), server.query, server.router, reactor, reactor.seconds)
        original = server.router.read_many

        async def away(reads: Any, gone: Any = None) -> Any:
            if any(command[1].endswith(b":states") for commands in reads.values() for command in commands):
                gone.update(dict.fromkeys(reads, "it is away"))
                return {}
            return await original(reads, gone)

        with mock.patch.object(server.router, "read_many", away):
            await question.look(is_first=True)
        self.assertEqual(["it is away" in text for text in question._said[0]], [True, True])
        await question.look()
        self.assertEqual(["it is away" in text for text in question._said[0]], [False, False])

    @asynchronous
    async def test_a_server_that_stops_says_so_and_ends_what_it_sends_in_order(self) -> None:
        server = await self.start()
        await self.post(server, HITS)
        plain, packed = await self.hear(server), await self.hear(server, "Accept-Encoding: gzip")
        for hearing in (plain, packed):
            await hearing.until(len)
        await server.stopService()
        for hearing in (plain, packed):
            while not hearing.is_over:
                await deferLater(reactor, 0.01)
            self.assertTrue(hearing.received.endswith(b"0\r\n\r\n"))
            self.assertTrue(hearing.body.endswith(b'event: end\ndata: {"why": "this Server stops"}\n\n'))

    @asynchronous
    async def test_who_has_listened_for_long_asks_anew(self) -> None:
        self.patch(web, "MAX_LISTEN_SECONDS", 0.05)
        server = await self.start()
        hearing = await self.hear(server, "Accept-Encoding: gzip")
        while not hearing.is_over:
            await deferLater(reactor, 0.01)
        self.assertEqual(len(hearing.events), 1)
        self.assertTrue(hearing.received.endswith(b"0\r\n\r\n"))

    @asynchronous
    async def test_a_fault_while_it_looks_cuts_who_listens_and_is_counted(self) -> None:
        server = await self.start()
        hearing = await self.hear(server)
        await hearing.until(len)

        async def wrong(*_: Any) -> Any:
            raise KeyError("bug")

        self.patch(live._Question, "_aggregates", wrong)
        while not hearing.is_over:
            await deferLater(reactor, 0.01)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.assertEqual(sum(server.site.resource.errors.values()), 1)
        self.assertEqual(server.live.questions, {})
