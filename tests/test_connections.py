from __future__ import annotations

import errno
import json
import os
import socket
import ssl
import tempfile
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import defer, reactor, threads
from twisted.internet.task import Clock
from twisted.internet.tcp import Connection
from twisted.internet.testing import StringTransport
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from taba import connections
from taba import turns as turns_module
from taba.bounds import MiB
from taba.calls import Answer, Call
from taba.connections import LARGE_BODY_BYTES, READ_BYTES
from taba.options import is_loopback
from taba.query.questions import unreachable
from taba.turns import Turns
from taba.web import Api
from tests.examples import examples
from tests.sites import LIMIT, ROUTES, Served, read_all, route

GET = b"GET /echo HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST = b"GET /echo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class Bounds(Served):
    async def test_a_body_at_the_bound_is_read_and_one_byte_more_is_refused(self) -> None:
        status, content, _ = await self.ask("POST", "/echo", b"x" * LIMIT)
        self.assertEqual((status, content["size"]), (200, LIMIT))
        status, content, _ = await self.ask("POST", "/echo", b"x" * (LIMIT + 1))
        self.assertEqual((status, content["error"]), (413, "too_large"))

    async def test_a_chunked_body_is_counted_as_it_comes(self) -> None:
        head = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        good = await self.say(head, b"3e8\r\n" + b"x" * LIMIT + b"\r\n0\r\n\r\n")
        self.assertIn(b" 200 ", good.splitlines()[0])
        bad = await self.say(head, b"3e8\r\n" + b"x" * LIMIT + b"\r\n1\r\nx\r\n")
        self.assertIn(b" 413 ", bad.splitlines()[0])

    async def test_where_a_body_ends_is_said_in_one_way_or_the_request_is_refused_with_all_that_comes_behind_it(self) -> None:
        one, sized, chunked = b"0\r\n\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"
        whole = b"Transfer-Encoding: identity\r\n"
        for headers in (sized + chunked, chunked + sized, sized + sized, chunked + chunked, chunked + whole, whole + chunked):
            said = await self.say(b"POST /echo HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n" + one + LAST)
            self.assertEqual((said.count(b"HTTP/1.1 "), said[9:12]), (1, b"400"), (headers, said))
        said = await self.say(b"POST /echo HTTP/1.1\r\nHost: localhost\r\n" + chunked + b"\r\n" + one + LAST)
        self.assertEqual(said.count(b"HTTP/1.1 200"), 2, said)

    async def test_a_header_that_goes_on_in_a_next_line_is_refused_with_all_that_comes_behind_it(self) -> None:
        self.patch(connections, "LINGER_SECONDS", 0.05)
        length = b"X-A: a\r\n Content-Length: 5\r\n"
        for folded in (b"X-A: a\r\n b\r\n", b"Transfer-Encoding:\r\n\tchunked\r\n", b"X-A: a\r\n \r\n", b" X-A: a\r\n", length):
            for before in (b"GET /echo HTTP/1.1\r\n", GET + b"GET /echo HTTP/1.1\r\nHost: localhost\r\n"):
                said = await self.say(before + folded + b"\r\n" + LAST)
                served = before.count(b"GET") - 1
                self.assertEqual((said.count(b"HTTP/1.1 200"), said.count(b"HTTP/1.1 400")), (served, 1), (folded, said))
                self.assertIn(b"goes on in a next line", said)

    async def test_a_chunk_larger_than_what_is_left_of_the_bound_is_refused_before_it_comes(self) -> None:
        self.patch(connections, "LINGER_SECONDS", 0.05)
        self.patch(connections, "MAX_REQUEST_SECONDS", 1e6)  # so that nothing but its size refuses it
        head = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        most = b"%x\r\n" % LIMIT
        for size in (b"%x\r\n" % (LIMIT + 1), b"%x\r\n" % 2**64, b"f" * 1000 + b"\r\nx", b"1\r\nx\r\n" + most, b"1\r\nx\r\n" + most + b"x"):
            for first, then in ((head + size, b""), (head, size), (head + size[:-1], size[-1:])):
                said = await self.say(first, then)
                self.assertEqual((said.count(b"HTTP/1.1"), said[9:12]), (1, b"413"), (size, said))
        self.assertEqual((await self.say(head + b"f" * 1100))[9:12], b"400")
        self.assertEqual(self.flushLoggedErrors(), [])

    async def test_a_body_of_chunks_of_a_byte_each_is_taken_in_turns_with_all_that_stands_behind_it(self) -> None:
        self.patch(connections, "CHUNKS_BYTES", 64)
        head = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunked = head + b"1\r\nx\r\n" * LIMIT + b"0\r\n\r\n"
        for turn_seconds in (-1.0, 1e9):
            self.patch(turns_module, "TURN_SECONDS", turn_seconds)
            breaths = 0
            breathe = Turns.breathe

            async def counted(turns: Turns) -> None:
                nonlocal breaths
                breaths += 1
                await breathe(turns)  # noqa: B023  # it is the same each time

            self.patch(Turns, "breathe", counted)
            for cut in (1, len(head), len(head) + 70, len(chunked) - 2, len(chunked)):
                answered = await self.say(chunked[:cut], chunked[cut:] + 2 * chunked + LAST)
                self.assertEqual(answered.count(b"HTTP/1.1 200"), 4, (turn_seconds, cut))
                self.assertEqual(answered.count(b'"size": %d' % LIMIT), 3)
            self.assertGreaterEqual(breaths, 5 * 3 * (6 * LIMIT // 64 - 10))
            self.patch(connections, "LINGER_SECONDS", 0.05)
            for bad, status in ((b"1\r\nx\r\n" * (LIMIT + 1), 413), (b"1\r\nx\r\n" * 100 + b"y\r\n" + b"1\r\nx\r\n" * 100, 400)):
                answered = await self.say(head + bad)
                self.assertEqual((answered.count(b"HTTP/1.1"), answered.count(b"HTTP/1.1 %d" % status)), (1, 1))
            peer = self.connect()
            peer.sendall(head + b"1\r\nx\r\n" * 900)
            await self.until(lambda: self.site.connections == 1)
            peer.close()
            await self.until(lambda: self.site.connections == 0)
            self.patch(Turns, "breathe", breathe)
        self.assertEqual(self.flushLoggedErrors(), [])

    async def test_headers_beyond_the_bound_are_refused_in_words(self) -> None:
        self.patch(connections, "LINGER_SECONDS", 0.1)
        close = b"Host: localhost\r\nConnection: close\r\n\r\n"
        line = b"GET /echo?a=%b HTTP/1.1\r\n" % (b"x" * 20_000)
        fitting = b"GET /echo?a=%b HTTP/1.1\r\n" % (b"x" * 16_000)
        for head, status in [
            (fitting + close, 200),
            (line + close, 414),
            (line[:18_000], 414),
            (b"GET /echo HTTP/1.1\r\nX: %b\r\n" % (b"x" * 20_000) + close, 431),
            (b"GET /echo HTTP/1.1\r\n" + b"X: 1234567890\r\n" * 2000 + close, 431),
            (b"GET /echo HTTP/1.1\r\n" + b"X: 1\r\n" * 600 + close, 431),
            (b"GET /echo HTTP/1.1\r\nno header\r\n" + close, 400),
            (b"nonsense\r\n\r\n", 400),
        ]:
            answer = await self.say(head)
            self.assertIn(b" %d " % status, answer.splitlines()[0], head[:30])
            if status != 200:
                self.assertEqual(set(json.loads(answer.partition(b"\r\n\r\n")[2])), {"error", "detail"})

    async def test_a_refused_body_of_any_length_is_answered_before_it_is_sent(self) -> None:
        answer = await self.say(b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n", b"x" * 100_000)
        self.assertIn(b" 413 ", answer.splitlines()[0])

    async def test_who_speaks_tls_where_none_is_spoken_hears_so_at_once(self) -> None:
        self.patch(connections, "FIRST_SECONDS", 3600.0)
        self.patch(connections, "MAX_REQUEST_SECONDS", 3600.0)
        self.patch(connections, "LINGER_SECONDS", 0.1)
        answer = await self.say(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        self.assertIn(b" 400 ", answer.splitlines()[0])
        self.assertIn("none is spoken here: ask http:", json.loads(answer.partition(b"\r\n\r\n")[2])["detail"])

        def shake_hands() -> None:
            with socket.create_connection(("127.0.0.1", self.port), 60) as connection:
                ssl._create_unverified_context().wrap_socket(connection)

        with self.assertRaises(ssl.SSLError) as caught:
            await threads.deferToThread(shake_hands)
        said = str(unreachable("https://localhost:8280", "Server", caught.exception))
        self.assertIn("it speaks no TLS: check whether its address is http://localhost:8280", said)

    async def test_a_peer_that_drips_its_request_is_refused_in_time(self) -> None:
        self.patch(connections, "MAX_REQUEST_SECONDS", 0.3)
        self.patch(connections, "LINGER_SECONDS", 0.1)
        for head in [b"GET /ec", b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nx"]:
            answer = await self.say(head)
            self.assertIn(b" 408 ", answer.splitlines()[0])


class Places(Served):
    """`127.0.0.1` is this host; the other addresses of loopback play strangers."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(connections, "is_loopback", lambda host: host == "127.0.0.1")

    async def served(self, connection: socket.socket, request: bytes = GET) -> bytes:
        """The answer to one request on a connection that stays."""

        def ask() -> bytes:
            connection.sendall(request)
            answer = b""
            while b"\r\n\r\n{" not in answer or not answer.endswith(b"}\n"):
                more = connection.recv(65536)
                if not more:
                    break
                answer += more
            return answer

        return await threads.deferToThread(ask)

    async def idle(self, count: int, source: str = "127.0.0.2") -> list[socket.socket]:
        """So many connections that say nothing."""
        before = self.site.connections + sum(self.site.refused.values())
        made = [self.connect(source) for _ in range(count)]
        await self.until(lambda: self.site.connections + sum(self.site.refused.values()) >= before + count)
        return made

    async def test_idle_connections_however_many_lock_nobody_out(self) -> None:
        self.patch(connections, "MAX_HALL", 8)
        self.patch(connections, "LOCAL_HALL", 2)
        for source in ["127.0.0.2", "127.0.0.3", "127.0.0.1"]:
            await self.idle(20, source)
            self.assertLessEqual(self.site.connections, 8)
        for source in ["127.0.0.1", "127.0.0.2", "127.0.0.4"]:
            self.assertIn(b" 200 ", (await self.say(LAST, source=source)).splitlines()[0])
        self.assertGreater(self.site.refused["hall_full"], 40)

    async def test_who_was_served_is_not_cut_to_make_room(self) -> None:
        self.patch(connections, "MAX_HALL", 4)
        self.patch(connections, "LOCAL_HALL", 1)
        kept = self.connect("127.0.0.2")
        self.assertIn(b" 200 ", await self.served(kept))
        await self.idle(20)
        self.assertIn(b" 200 ", await self.served(kept))
        self.assertEqual(len(self.site.known), 1)

    async def test_who_waits_for_an_answer_is_not_cut_and_newcomers_beyond_that_are_told_so_as_long_as_few_are(self) -> None:
        waiting: list[defer.Deferred[Answer]] = []

        async def slow(call: Call) -> Answer:
            waiting.append(defer.Deferred())
            return await waiting[-1]

        self.serve(Api([route("GET", "/echo", slow)]))
        self.patch(connections, "MAX_HALL", 2)
        self.patch(connections, "LOCAL_HALL", 0)
        answers = [self.say(LAST), self.say(LAST)]
        running = [defer.ensureDeferred(answer) for answer in answers]
        await self.until(lambda: len(waiting) == 2)
        self.patch(connections, "MAX_TOLD", 2)
        self.patch(connections, "LINGER_SECONDS", 3600.0)
        told = await self.idle(2)
        self.assertIn(await self.say(LAST), (b"", b"(cut)"))
        self.assertEqual((self.site.connections, self.site.refused), (4, {"busy": 3}))
        for connection in told:
            said = (await threads.deferToThread(connection.recv, 65536)).decode()
            self.assertIn(" 503 ", said.splitlines()[0])
            self.assertIn("Retry-After: 1", said.title())
            self.assertIn("too many requests are being answered", said)
        [problem] = self.site.problems(0.0)
        self.assertIn("3 connections were turned away: as many as 2 newcomers waited for answers at once", problem)
        for connection in told:
            connection.close()
        await self.until(lambda: not self.site.told)
        for answer in waiting:
            answer.callback(Answer("late"))
        for one in running:
            self.assertIn(b" 200 ", await one)

    async def test_one_address_has_its_share_of_the_hall_and_takes_it_from_itself_alone(self) -> None:
        self.patch(connections, "MAX_HALL_OF_PEER", 3)
        [other] = await self.idle(1, "127.0.0.3")
        mine = await self.idle(4, "127.0.0.2")
        self.assertEqual((self.site.refused["too_many_of_peer"], self.site.connections), (1, 4))
        self.assertEqual(await threads.deferToThread(read_all, mine[0]), b"(cut)")
        self.assertIn(b" 200 ", await self.served(other))
        await self.idle(5, "127.0.0.1")  # this host's own are not counted
        self.assertEqual(self.site.refused["too_many_of_peer"], 1)

    async def test_places_of_the_hall_are_kept_for_this_host(self) -> None:
        self.patch(connections, "MAX_HALL", 5)
        self.patch(connections, "LOCAL_HALL", 2)
        mine = await self.idle(2, "127.0.0.1")
        await self.idle(10, "127.0.0.2")
        self.assertEqual(self.site.connections, 5)
        for connection in mine:
            self.assertIn(b" 200 ", await self.served(connection))

    def test_places_are_no_more_than_there_are_descriptors_for(self) -> None:
        of_all = (connections.MAX_KNOWN, connections.MAX_HALL, connections.LOCAL_HALL, connections.MAX_HALL_OF_PEER)
        enough = connections.SPARE_DESCRIPTORS + connections.MAX_TOLD + connections.LEAST_LISTENERS + sum(of_all[:2])
        for descriptors in (8192, enough, enough - 1, 1024, 512, 256):
            self.site.bound_places(descriptors)
            known, hall, local, of_peer = (self.site.places(most) for most in of_all)
            held = known + hall + connections.MAX_TOLD + self.site.max_listeners
            self.assertLessEqual(held, max(0, descriptors - connections.SPARE_DESCRIPTORS), descriptors)
            self.assertEqual((known, hall, local, of_peer) == of_all, descriptors >= enough)
            self.assertLess(local, hall)
        self.site.bound_places(64)  # nobody has so few; some are let in all the same
        self.assertGreater(min(self.site.places(most) for most in of_all), 0)

    async def test_when_as_many_are_known_as_may_be_answers_say_close(self) -> None:
        self.patch(connections, "MAX_KNOWN", 2)
        first, second, third = self.connect(), self.connect(), self.connect()
        self.assertNotIn(b"Connection: close", await self.served(first))
        self.assertNotIn(b"Connection: close", await self.served(second))
        answer = await self.served(third)
        self.assertIn(b" 200 ", answer)
        self.assertIn(b"Connection: close", answer)
        self.assertIn(b"Connection: close", await self.served(first))  # it makes room
        await self.until(lambda: len(self.site.known) == 1)
        self.assertNotIn(b"Connection: close", await self.served(self.connect()))

    async def test_a_peer_has_seconds_for_its_first_byte(self) -> None:
        self.patch(connections, "FIRST_SECONDS", 0.1)
        self.assertEqual(await self.say(), b"(cut)")
        self.assertEqual(self.site.refused, {"silent": 1})
        self.patch(connections, "FIRST_SECONDS", 1e6)
        await self.idle(1)
        self.assertEqual(self.site.connections, 1)

    async def test_an_answer_that_nobody_reads_does_not_stay(self) -> None:
        async def large(call: Call) -> Answer:
            return Answer(b"x" * 50_000_000, content_type="application/octet-stream")

        self.patch(connections, "ANSWER_SECONDS", 0.1)
        for request, rate in [(GET, 1e12), (LAST, 1e12)]:
            self.patch(connections, "ANSWER_BYTES_PER_SECOND", rate)
            self.serve(Api([route("GET", "/echo", large)]))
            connection = self.connect()
            connection.sendall(request)
            await self.until(lambda: bool(self.site.refused))
            await self.until(lambda: self.site.connections == 0)
            self.assertEqual(self.site.refused, {"answer_not_read": 1})

    async def test_an_answer_that_is_read_keeps_its_connection(self) -> None:
        self.patch(connections, "ANSWER_SECONDS", 0.05)
        connection = self.connect()
        self.assertIn(b" 200 ", await self.served(connection))
        waiting: defer.Deferred[None] = defer.Deferred()
        [channel] = self.site.known
        channel.callLater(0.2, lambda: waiting.callback(None))
        await waiting
        self.assertIn(b" 200 ", await self.served(connection))

    async def test_bodies_that_are_received_at_once_are_bounded_together(self) -> None:
        self.patch(connections, "MAX_RECEIVING_BYTES", 1500)
        self.patch(connections, "LINGER_SECONDS", 0.1)
        head = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        holding = self.connect()
        holding.sendall(head % 1000)
        await self.until(lambda: self.site.receiving == 1000)
        self.assertIn(b" 200 ", await self.say(head % 500, b"x" * 500))
        refused = await self.say(head % 501, b"x" * 501)
        self.assertIn(b" 503 ", refused)
        self.assertIn(b"retry-after: 1", refused)
        chunked = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.assertIn(b" 503 ", await self.say(chunked, b"1f5\r\n" + b"x" * 501 + b"\r\n0\r\n\r\n"))
        holding.close()
        await self.until(lambda: self.site.receiving == 0)

    async def test_a_large_body_takes_no_file(self) -> None:
        def full(*options: Any, **more: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        self.patch(tempfile, "TemporaryFile", full)
        self.site.max_body_bytes = MiB
        head = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        body = bytes(300_000)
        sent = await self.say(head + b"Content-Length: %d\r\n\r\n" % len(body), body)
        self.assertIn(b'"size": 300000', sent)
        chunked = await self.say(head + b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        self.assertIn(b'"size": 300000', chunked)

    async def test_a_large_body_is_read_in_large_pieces_and_nothing_else(self) -> None:
        self.site.max_body_bytes = MiB
        usual, connection = Connection.bufferSize, self.connect()
        for size, expected in ((LARGE_BODY_BYTES, READ_BYTES), (LARGE_BODY_BYTES - 1, usual)):
            connection.sendall(b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size)
            await self.until(lambda size=size: self.site.receiving == size)  # type: ignore[misc]
            [channel] = [*self.site.hall, *self.site.known]
            self.assertEqual(cast(Connection, channel.transport).bufferSize, expected)
            self.assertIn(b'"size": %d' % size, await self.served(connection, bytes(size)))
            self.assertEqual(cast(Connection, channel.transport).bufferSize, usual)

    async def test_a_site_that_closes_lets_everybody_go_with_the_answer(self) -> None:
        connection = self.connect()
        await self.served(connection)
        self.site.is_closing = True
        self.assertIn(b"Connection: close", await self.served(connection))


class Pipelines(Served):
    """Requests in one piece, one behind the other."""

    async def asked(self, count: int, body: bytes = b"", behind: bytes = b"") -> tuple[list[int], bytes]:
        """In which turn of the loop each was served, and all that was answered."""
        turns: list[int] = []
        ticking: list[Any] = []
        loop: Any = reactor
        turn = 0

        def next_turn() -> None:
            nonlocal turn
            turn += 1
            ticking[:] = [loop.callLater(0, next_turn)]

        async def noted(call: Call) -> Answer:
            turns.append(turn)
            return Answer({"size": len(await call.body())})

        self.serve(Api([route("POST", "/noted", noted)]))
        next_turn()
        head = b"POST /noted HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n" % len(body)
        try:
            return turns, await self.say((head + b"\r\n" + body) * (count - 1) + head + b"Connection: close\r\n\r\n" + body + behind)
        finally:
            ticking[0].cancel()

    async def test_others_have_their_turns_between_them(self) -> None:
        self.patch(turns_module, "TURN_SECONDS", -1.0)  # each is over at once
        for body in (b"", b"x" * 100):
            turns, answered = await self.asked(50, body)
            self.assertEqual(answered.count(b"HTTP/1.1 200"), 50)
            self.assertEqual(len(set(turns)), 50)

    async def test_as_many_as_fit_in_a_turn_are_served_in_it_each_in_its_order(self) -> None:
        self.patch(turns_module, "TURN_SECONDS", 1e9)
        turns, answered = await self.asked(50)
        self.assertLess(len(set(turns)), 10)
        self.assertEqual(answered.count(b"HTTP/1.1 200"), 50)

    async def test_what_is_none_behind_some_is_refused_once_and_what_comes_after_the_last_is_not_served(self) -> None:
        self.patch(connections, "LINGER_SECONDS", 0.05)
        self.patch(turns_module, "TURN_SECONDS", -1.0)
        turns, answered = await self.asked(5, behind=b"POST /noted HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3)
        self.assertEqual((len(turns), answered.count(b"HTTP/1.1 200")), (5, 5))
        answered = await self.say(b"POST /noted HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n" * 2 + b"nonsense\r\n\r\n")
        self.assertEqual((answered.count(b"HTTP/1.1 200"), answered.count(b"HTTP/1.1 400")), (2, 1))

    async def test_a_peer_that_goes_between_two_of_them_leaves_nothing_behind(self) -> None:
        self.patch(turns_module, "TURN_SECONDS", -1.0)
        peer = self.connect()
        peer.sendall(b"GET /echo HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200)
        await self.until(lambda: len(self.site.known) == 1)
        peer.close()
        await self.until(lambda: self.site.connections == 0)
        self.assertEqual(self.flushLoggedErrors(), [])


class Texts(Served):
    async def test_headers_that_are_no_text_are_refused(self) -> None:
        self.patch(connections, "LINGER_SECONDS", 0.1)
        for header in [b"Accept: \xff", b"Idempotency-Key: \xc3", b"X-Other: a\x80b", b"Host: \xff"]:
            answer = await self.say(b"POST /json HTTP/1.1\r\nHost: localhost\r\n" + header + b"\r\nContent-Length: 2\r\n\r\n{}")
            self.assertIn(b" 400 ", answer.splitlines()[0], header)
            self.assertIn(b"no UTF-8 text", answer)
        text = await self.say(LAST.replace(b"Connection", "X: \u00e4\r\nConnection".encode()))
        self.assertIn(b" 200 ", text.splitlines()[0])

    async def test_a_length_of_thousands_of_digits_is_too_large_and_nothing_else(self) -> None:
        self.patch(connections, "LINGER_SECONDS", 0.1)
        for digits in (connections.MAX_LENGTH_DIGITS + 1, 5000):
            answer = await self.say(b"POST /json HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * digits + b"\r\n\r\n")
            self.assertIn(b" 413 ", answer.splitlines()[0])


WORDS = [
    *(b"GET", b"POST", b"/echo", b"/json", b" ", b"HTTP/1.1", b"\r\n", b"\n", b":", b"Host: localhost", b"Content-Length: 3", b"?a=1&b"),
    *(b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"Connection: close", b"Cookie: a=b; c", b"Authorization: x", b"%ff"),
    *(b"0\r\n\r\n", b"3\r\nabc\r\n", b"\xff", b"\x00", b"{}", GET, LAST),
]
PIECES = st.lists(st.one_of(st.sampled_from(WORDS), st.binary(max_size=20)), max_size=40)


class Fuzz(Served):
    @examples(300)
    @given(PIECES, st.lists(st.integers(1, 60), max_size=5))
    def test_no_bytes_are_logged_as_an_error(self, pieces: list[bytes], cuts: list[int]) -> None:
        errors: list[Any] = []
        observe: Any = lambda event: errors.append(event) if event["log_level"] >= LogLevel.error else None  # noqa: E731
        globalLogPublisher.addObserver(observe)
        try:
            channel = connections.make_site(Api(ROUTES), LIMIT).buildProtocol(None)
            transport = StringTransport()
            channel.callLater = Clock().callLater
            content, start = b"".join(pieces), 0
            channel.makeConnection(transport)
            for cut in [*cuts, len(content)]:
                channel.dataReceived(content[start : start + cut])
                start += cut
        finally:
            globalLogPublisher.removeObserver(observe)
        self.assertEqual(errors, [])


class Owners(SynchronousTestCase):
    def test_a_connection_is_a_users_by_a_socket_of_a_file_system_else_a_hosts_of_which_loopback_is_one(self) -> None:
        site = connections.make_site(Api(ROUTES), LIMIT)
        for peer, expected in [
            ("127.0.0.1", "this host"),
            ("127.9.9.9", "this host"),
            ("::1", "this host"),
            ("10.0.0.1", "10.0.0.1"),
            ("fd00::5", "fd00::/64"),
        ]:
            channel = site.buildProtocol(None)
            channel.peer, channel.is_local = peer, is_loopback(peer)
            channel.transport = StringTransport()
            self.assertEqual([channel.owner, channel.owner], [expected] * 2)
        channel = site.buildProtocol(None)
        channel.transport = StringTransport()
        one, other = socket.socketpair(socket.AF_UNIX)
        self.addCleanup(one.close)
        self.addCleanup(other.close)
        channel.transport.socket = one
        self.assertEqual(channel.owner, f"uid {os.getuid()}")
