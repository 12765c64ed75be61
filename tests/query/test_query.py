"""Query and AsyncQuery against a real Server, and against what is none."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, ClassVar

from twisted.internet import defer
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from taba.query import AsyncQuery, BadRequest, NotTaba, Query, QueryError, ServerUnavailable, questions
from tests.patience import PATIENCE_SECONDS
from tests.services import ROOT, Services

EVENTS: list[questions.Event] = [
    {"tab": "bids", "type": "CounterGroup", "value": 2, "time": 1.0},
    {"tab": "bids", "type": "CounterGroup", "value": 3},
    {"tab": "price", "type": "TotalsCounter", "value": 1.5, "labels": {"exchange": "adx", "side": "a"}},
    {"tab": "price", "type": "TotalsCounter", "value": 2.5, "labels": {"exchange": "adx", "side": "b"}},
    {"tab": "price", "type": "TotalsCounter", "value": 4, "labels": {"exchange": "rub", "side": "a"}},
]


class AgainstAServer(TestCase):
    """The same questions through both variants: they must agree."""

    services: ClassVar[Services]
    timeout = PATIENCE_SECONDS

    @classmethod
    def setUpClass(cls) -> None:
        cls.services = Services()
        cls.addClassCleanup(cls.services.stop)
        cls.services.start_server()
        query = cls.services.query
        assert query.post_events("web/1", EVENTS, key="one") == {"accepted": 5, "rejected": []}
        assert query.post_events("web/1", EVENTS, key="one") == {"accepted": 5, "rejected": []}  # the repetition counts nothing
        assert query.post_events("web/2", EVENTS[1:2])["accepted"] == 1

    async def ask(self, question: Callable[[Any], Any]) -> Any:
        """The answer through both."""
        plain = await deferToThread(question, self.services.query)
        other = await question(AsyncQuery(self.services.server_url))
        self.assertEqual(plain, other)
        return plain

    async def test_lists_are_sorted_and_filtered(self) -> None:
        prices = ['price{exchange="adx",side="a"}', 'price{exchange="adx",side="b"}', 'price{exchange="rub",side="a"}']
        self.assertEqual(await self.ask(lambda query: query.names()), ["bids", *prices])
        self.assertEqual(await self.ask(lambda query: query.names(match="pr.*", label={"side": "a"})), [prices[0], prices[2]])
        self.assertEqual(await self.ask(lambda query: query.names(client="web/2")), ["bids"])
        self.assertEqual(await self.ask(lambda query: query.clients()), ["web/1", "web/2"])
        self.assertEqual(await self.ask(lambda query: query.clients(name=prices)), ["web/1"])
        self.assertEqual(await self.ask(lambda query: query.types(name="bids")), {"bids": "CounterGroup"})
        self.assertEqual(await self.ask(lambda query: query.names(match="nothing")), [])

    async def test_a_tab_is_asked_for_whole_by_client_and_by_label(self) -> None:
        self.assertEqual((await self.ask(lambda query: query.aggregate("bids")))["pct"]["count"], 3)
        self.assertEqual((await self.ask(lambda query: query.aggregate("bids", client="web/2")))["pct"]["total"], 3)
        self.assertEqual((await self.ask(lambda query: query.aggregate("price", {"side": "b", "exchange": "adx"})))["total"], 2.5)
        self.assertIsNone(await self.ask(lambda query: query.aggregate("nothing")))
        projections = await self.ask(lambda query: query.projections(name="bids"))
        self.assertEqual({client: content["pct"]["total"] for client, content in projections["bids"].items()}, {"web/1": 5, "web/2": 3})

    async def test_tabs_are_grouped_and_taken_together(self) -> None:
        grouped = await self.ask(lambda query: query.aggregates(match="price.*", by="exchange"))
        self.assertEqual(
            {name: content["total"] for name, content in grouped.items()}, {'price{exchange="adx"}': 4, 'price{exchange="rub"}': 4}
        )
        self.assertEqual((await self.ask(lambda query: query.superaggregate(match="price.*")))["count"], 3)
        self.assertEqual(await self.ask(lambda query: query.superaggregate(match="nothing")), {})

    async def test_a_server_says_how_it_does(self) -> None:
        self.assertEqual((await self.ask(lambda query: query.status()))["folded"], 6)
        self.assertEqual(set(await self.ask(lambda query: query.latency())), {"p50", "p95", "p99"})
        self.assertEqual(set(await self.ask(lambda query: query.latency(seconds=5))), {"p50", "p95", "p99"})
        self.assertEqual(await self.ask(lambda query: query.dead_letters()), [])
        for answer in (await deferToThread(self.services.query.shards), await AsyncQuery(self.services.server_url).shards()):
            self.assertEqual([shard["name"] for shard in answer], ["s1"])

    async def test_what_changes_is_heard(self) -> None:
        plain, other = (
            self.services.query.stream(name=["bids", "heard"]),
            AsyncQuery(self.services.server_url).stream(name=["bids", "heard"]),
        )
        first = await deferToThread(next, plain)
        self.assertEqual(first["aggregates"], (await anext(other))["aggregates"])
        self.assertEqual(list(first["aggregates"]), ["bids"])
        await deferToThread(self.services.query.post_events, "web/1", [{"tab": "heard", "type": "TotalsCounter", "value": 7}])
        while "heard" not in (found := await deferToThread(next, plain))["aggregates"]:
            continue  # whatever else has changed
        while "heard" not in (await anext(other))["aggregates"]:
            continue
        self.assertEqual(found["aggregates"]["heard"]["total"], 7)
        plain.close()
        await other.aclose()
        await deferToThread(self.services.query.delete_tabs, "heard")

    async def test_a_question_that_breaks_a_rule_is_the_askers_fault(self) -> None:
        for question in (lambda query: query.names(match="("), lambda query: query.superaggregate(), lambda query: query.names(label="x")):
            with self.assertRaises(BadRequest) as plain:
                question(self.services.query)
            with self.assertRaises(BadRequest) as other:
                await question(AsyncQuery(self.services.server_url))
            self.assertEqual(str(plain.exception), str(other.exception))


class Stranger:
    """Something that listens, reads a request, says an answer (one after the other, the last again and again), and then waits or closes."""

    def __init__(self, *answers: bytes, close: bool = True):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.answers, self.close = list(answers), close
        self.open: list[socket.socket] = []
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self.socket.accept()
            except OSError:
                return
            peer.recv(65_536)
            peer.sendall(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
            if self.close:
                peer.close()
            else:
                self.open.append(peer)

    def stop(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        for peer in self.open:
            peer.close()
        self.thread.join(5)


class WithoutAServer(TestCase):
    timeout = PATIENCE_SECONDS

    async def both(self, error: type[QueryError], url: str, **options: Any) -> str:
        """The message with which both variants fail."""
        with self.assertRaises(error) as plain:
            await deferToThread(Query(url, **options).names)
        with self.assertRaises(error) as other:
            await AsyncQuery(url, **options).names()
        self.assertEqual(str(plain.exception), str(other.exception))
        return str(plain.exception)

    async def test_nobody_there_says_what_to_start(self) -> None:
        url = "http://127.0.0.1:9"
        message = await self.both(ServerUnavailable, url)
        self.assertEqual(message, f"no Server answers at {url} (connection refused); start one with: twistd -n taba-server")
        self.assertIn("twistd -n taba-agent", await self.both(ServerUnavailable, url, role="Agent"))

    async def test_a_page_of_somebody_else_is_not_an_answer(self) -> None:
        stranger = Stranger(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi")
        self.addCleanup(stranger.stop)
        await self.both(NotTaba, stranger.url)

    async def test_who_takes_what_can_be_reached_is_told_what_is_left_out(self) -> None:
        head = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTaba-Away: {"s2": {"buckets": "4-7", "why": "gone"}}\r\n'
        stranger = Stranger(head + b'Content-Length: 5\r\n\r\n["a"]')
        self.addCleanup(stranger.stop)
        told: list[str] = []
        self.assertEqual(await deferToThread(Query(stranger.url, away=told.append).names), ["a"])
        self.assertEqual(await AsyncQuery(stranger.url, away=told.append).names(), ["a"])
        self.assertEqual(told, ["left out is what is away: buckets 4-7 of shard s2 (gone)"] * 2)
        self.assertEqual(await deferToThread(Query(stranger.url).names), ["a"])

    async def test_a_peer_that_speaks_something_else_is_no_server(self) -> None:
        for answer in (b"nonsense\r\n\r\n", b"220 mail.example ESMTP\r\n", b"-ERR unknown command 'GET'\r\n"):
            stranger = Stranger(answer)
            self.addCleanup(stranger.stop)
            self.assertIn("does not speak HTTP", await self.both(NotTaba, stranger.url))

    async def test_https_where_http_is_spoken_says_so(self) -> None:
        stranger = Stranger(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        self.addCleanup(stranger.stop)
        url = stranger.url.replace("http:", "https:")
        for ask in (lambda: deferToThread(Query(url).names), lambda: defer.ensureDeferred(AsyncQuery(url).names())):
            with self.assertRaises(ServerUnavailable) as raised:
                await ask()
            self.assertIn(f"whether its address is {stranger.url}", str(raised.exception))

    async def test_a_peer_that_never_ends_its_answer_is_given_up(self) -> None:
        for answer in (b"", b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n["):
            stranger = Stranger(answer, close=False)
            self.addCleanup(stranger.stop)
            self.assertIn("within 0.3 s", await self.both(ServerUnavailable, stranger.url, timeout=0.3))

    async def test_an_answer_that_is_cut_off_is_no_answer(self) -> None:
        for answer in (b"", b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n["):
            stranger = Stranger(answer)
            self.addCleanup(stranger.stop)
            for ask in (
                lambda url=stranger.url: deferToThread(Query(url).names),
                lambda url=stranger.url: defer.ensureDeferred(AsyncQuery(url).names()),
            ):
                with self.assertRaises(ServerUnavailable):
                    await ask()


class Importing(SynchronousTestCase):
    def test_plain_code_needs_nothing_but_python(self) -> None:
        others = ("twisted", "treq", "msgpack", "numpy", "click")
        code = f"import sys, taba.query; taba.query.Query; print([m for m in {others} if m in sys.modules])"
        self.assertEqual(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout, "[]\n")
