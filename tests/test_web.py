from __future__ import annotations

import gzip
import http.client
import random
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import defer, task
from twisted.trial.unittest import SynchronousTestCase

from taba import calls, connections, turns, web
from taba.calls import Answer, Call, quality
from taba.routes import FLAG, Parameter
from taba.steps import finish
from taba.web import Api
from tests.sites import Served, route


class Answers(Served):
    async def test_json_by_default_and_text_when_asked(self) -> None:
        status, content, _ = await self.ask("GET", "/echo?a=1&a=2")
        self.assertEqual((status, content), (200, {"size": 0, "arguments": {"a": ["1", "2"]}}))
        status, content, _ = await self.ask("GET", "/echo", Accept="text/plain")
        self.assertEqual((status, content), (200, "text\n"))

    async def test_accept_is_read_with_its_weights(self) -> None:
        for accept, is_text in [
            ("text/plain, application/json", False),
            ("application/json;q=0, text/plain", True),
            ("application/json;q=0.4, text/plain; q=0.5", True),
            ("application/json, text/plain; q=0.5", False),
            ("text/*", True),
            ("text/plain;q=0, */*", False),
            ("text/html, */*;q=0.8", False),
            ("*/*;q=0.1, text/plain;charset=utf-8", True),
            (";,q=;/", False),
        ]:
            _, content, _ = await self.ask("GET", "/echo", Accept=accept)
            self.assertEqual(content == "text\n", is_text, accept)

    async def test_a_method_that_is_not_there_names_those_that_are(self) -> None:
        _, _, answer = await self.ask("DELETE", "/echo")
        self.assertEqual((answer.status, answer.getheader("allow")), (405, "GET, HEAD, POST"))
        _, _, answer = await self.ask("GET", "/json")
        self.assertEqual((answer.status, answer.getheader("allow")), (405, "POST"))

    async def test_head_is_get_without_a_body(self) -> None:
        status, content, answer = await self.ask("HEAD", "/echo")
        self.assertEqual((status, content), (200, ""))
        self.assertGreater(int(answer.getheader("content-length")), 0)

    async def test_errors_are_json_with_their_status(self) -> None:
        for path, expected, error in [
            ("/nowhere", 404, "not_found"),
            ("/json", 405, "method_not_allowed"),
            ("/malformed", 400, "malformed"),
            ("/store", 503, "store_unavailable"),
            ("/teapot", 418, "teapot"),
            ("/picky?nmae=x", 400, "bad_request"),
            ("/picky?name=x&name=y", 400, "bad_request"),
            ("/echo?a=%ff", 400, "bad_request"),
            ("/echo?a", 400, "bad_request"),
            ("/echo?a=1&b", 400, "bad_request"),
        ]:
            status, content, answer = await self.ask("GET", path, Accept="text/plain")
            self.assertEqual((status, content["error"]), (expected, error), path)
            self.assertEqual(answer.getheader("retry-after"), "1" if expected == 503 else None)
            self.assertTrue(content["detail"])

    async def test_a_bug_is_logged_once_counted_and_answers_500_without_a_traceback(self) -> None:
        for _ in range(3):
            status, content, _ = await self.ask("GET", "/bug")
            self.assertEqual((status, content["error"]), (500, "internal"))
        self.assertEqual(self.site.resource.errors, {"GET /bug: KeyError": 3})
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.assertNotIn("Traceback", str(content))

    async def test_a_body_that_is_not_json_is_refused(self) -> None:
        for body in [b"", b"{", b"NaN", b"\xff", b"[" * 900]:
            status, content, _ = await self.ask("POST", "/json", body)
            self.assertEqual((status, content["error"]), (400, "bad_request"))


class Json(Served):
    async def test_as_many_bytes_as_the_bound_says_are_read_and_one_more_is_refused(self) -> None:
        self.patch(calls, "MAX_JSON_BYTES", 600)
        for length, expected in [(600, 200), (601, 413)]:
            status, _, _ = await self.ask("POST", "/json", b"[" + b" " * (length - 2) + b"]")
            self.assertEqual(status, expected, length)


class Strangers(Served):
    async def test_a_foreign_host_or_origin_is_refused_on_loopback(self) -> None:
        for headers in [{"Host": "evil.example"}, {"Host": "evil.example:80"}, {"Origin": "http://evil.example"}, {"Origin": "null"}]:
            status, content, _ = await self.ask("GET", "/echo", **headers)
            self.assertEqual((status, content["error"]), (403, "forbidden"), headers)
        for headers in [{"Host": "localhost:1"}, {"Host": "[::1]:5"}, {"Origin": "http://127.0.0.1:9"}, {"Origin": "http://localhost"}]:
            status, _, _ = await self.ask("GET", "/echo", **headers)
            self.assertEqual(status, 200, headers)

    async def test_a_page_of_another_address_may_read_and_change_nothing(self) -> None:
        here = f"127.0.0.1:{self.port}"
        for headers, expected in [
            ({"Origin": f"http://{here}"}, 200),
            ({"Origin": f"http://localhost:{self.port}", "Host": f"LocalHost:{self.port}"}, 200),
            ({}, 200),
            ({"Origin": f"http://localhost:{self.port}"}, 403),
            ({"Origin": f"http://127.0.0.1:{self.port + 1}"}, 403),
            ({"Origin": "http://127.0.0.1"}, 403),
            ({"Origin": "http://127.0.0.1:x"}, 403),
            ({"Origin": "null"}, 403),
        ]:
            status, _, _ = await self.ask("POST", "/json", b"{}", **headers)
            self.assertEqual(status, expected, headers)

    async def test_http_1_1_takes_one_host(self) -> None:
        for head, expected in [
            (b"GET /echo HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
            (b"GET /echo HTTP/1.1\r\nConnection: close\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
            (b"GET /echo HTTP/1.0\r\n\r\n", 200),
            *((b"GET /echo HTTP/1.1\r\nConnection: close\r\nHost: %b\r\n\r\n" % host, 400) for host in NO_HOSTS),
        ]:
            answer = await self.say(head)
            self.assertIn(b" %d " % expected, answer.splitlines()[0], head)


NO_HOSTS = [  # a program that takes the part that it knows for the whole would take each for this host
    b"localhost/evil.example",
    b"evil.example/localhost",
    b"localhost@evil.example",
    b"evil.example@localhost",
    b"localhost#evil.example",
    b"localhost?evil.example",
    b"localhost\\evil.example",
    b"localhost, evil.example",
    b"localhost evil.example",
    b"localhost:abc",
    b"localhost:123456",
    b"[::1",
    b"[::1]evil.example",
]


class Decompression(Served):
    async def test_what_is_inflated_takes_room_while_it_is_read_and_gives_it_back(self) -> None:
        self.patch(connections, "MAX_RECEIVING_BYTES", 400_000)
        small, large = zlib.compress(bytes(300_000)), zlib.compress(bytes(500_000))
        for body, expected in [(small, 200), (large, 503), (small, 200)]:
            status, _, _ = await self.ask("POST", "/echo", body, Content_Encoding="deflate")
            self.assertEqual(status, expected)
        await self.until(lambda: self.site.receiving == 0)

    async def test_what_decompresses_beyond_the_bound_is_refused(self) -> None:
        self.patch(calls, "MAX_BODY_BYTES", 5000)
        codings: list[tuple[str, Callable[[bytes], bytes]]] = [("gzip", gzip.compress), ("deflate", zlib.compress)]
        for encoding, compress in codings:
            status, content, _ = await self.ask("POST", "/echo", compress(b"x" * 5000), Content_Encoding=encoding)
            self.assertEqual((status, content["size"]), (200, 5000))
            status, content, _ = await self.ask("POST", "/echo", compress(b"x" * 5001), Content_Encoding=encoding)
            self.assertEqual((status, content["error"]), (413, "too_large"))
            for bad in [b"", b"rubbish", compress(b"x" * 50)[:-3]]:
                status, _, _ = await self.ask("POST", "/echo", bad, Content_Encoding=encoding)
                self.assertEqual(status, 400)
        status, _, _ = await self.ask("POST", "/echo", b"x", Content_Encoding="br")
        self.assertEqual(status, 415)
        head = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Encoding: gzip\r\nContent-Encoding: deflate\r\n"
        self.assertIn(b"stands 2 times", await self.say(head + b"Content-Length: 1\r\n\r\nx"))


def inflated(content: bytes, wbits: int = calls.GZIP_WBITS, most: int = 1 << 20) -> bytes:
    return finish(calls.inflate(content, wbits, most))


class Members(SynchronousTestCase):
    """Bodies of gzip that consist of several: what stands behind the first is as much a part of it."""

    @given(st.lists(st.binary(max_size=40) | st.integers(1, 600_000).map(bytes), min_size=1, max_size=5))
    def test_several_are_one(self, parts: list[bytes]) -> None:
        self.assertEqual(inflated(b"".join(map(gzip.compress, parts)), most=sum(map(len, parts))), b"".join(parts))

    def test_at_each_size_about_that_of_a_step_nothing_is_left(self) -> None:
        noise = random.Random(1).randbytes(calls.INFLATE_BYTES + 1)
        for size in (len(noise) - 2, len(noise) - 1, len(noise)):
            for content in (noise[:size], bytes(size)):
                self.assertEqual(inflated(gzip.compress(content, 1)), content)
                self.assertEqual(inflated(zlib.compress(content, 1), 15), content)
                self.assertRaises(calls.HTTPError, inflated, zlib.compress(content, 1)[:-1], 15)

    def test_what_is_none_behind_one_is_refused_and_not_left_out(self) -> None:
        for wbits, one in [(calls.GZIP_WBITS, gzip.compress(b"x")), (15, zlib.compress(b"x"))]:
            for behind in (b"\0", b"junk", one[:-1], zlib.compress(b"x")):
                error = self.assertRaises(calls.HTTPError, inflated, one + behind, wbits)
                self.assertEqual(error.status, 400, (wbits, behind))

    def test_as_many_as_the_bound_says_and_not_one_more_and_all_together_within_that_of_bytes(self) -> None:
        one = gzip.compress(b"x")
        self.assertEqual(inflated(one * calls.MAX_MEMBERS), b"x" * calls.MAX_MEMBERS)
        self.assertEqual(self.assertRaises(calls.HTTPError, inflated, one * (calls.MAX_MEMBERS + 1)).status, 400)
        self.assertEqual(inflated(one * 3, most=3), b"xxx")
        self.assertEqual(self.assertRaises(calls.HTTPError, inflated, one * 4, most=3).status, 413)


def counted(slices: int, size: int, made: list[int], fails_at: int = -1) -> Any:
    """A route whose answer is made slice by slice."""

    async def serve(call: Call) -> Answer:
        async def content() -> AsyncIterator[bytes]:
            for place in range(slices):
                if place == fails_at:
                    raise KeyError("slice")
                made.append(place)
                yield b"x" * size

        return Answer(content(), content_type="text/plain")

    return serve


class Streams(Served):
    async def test_slices_come_whole_and_in_order(self) -> None:
        made: list[int] = []
        self.serve(Api([route("GET", "/stream", counted(5, 200_000, made)), route("GET", "/nothing", counted(0, 1, made))]))
        status, content, answer = await self.ask("GET", "/stream")
        self.assertEqual((status, len(content), answer.getheader("content-length")), (200, 1_000_000, None))
        self.assertEqual((await self.ask("GET", "/nothing"))[:2], (200, ""))
        self.assertEqual((await self.ask("HEAD", "/stream"))[:2], (200, ""))
        await self.until(lambda: self.site.connections == 0)
        self.assertEqual(self.api.streams.held, 0)

    async def test_others_have_a_turn_between_two_slices_however_quickly_they_are_taken(self) -> None:
        turn = [0]

        def on() -> None:
            turn[0] += 1

        going = task.LoopingCall(on)
        going.start(0)
        self.addCleanup(going.stop)
        seen: list[int] = []

        async def serve(call: Call) -> Answer:
            async def content() -> AsyncIterator[bytes]:
                for _ in range(8):
                    seen.append(turn[0])
                    yield b"x" * 100

            return Answer(content(), content_type="text/plain")

        self.serve(Api([route("GET", "/stream", serve)]))
        self.assertEqual((await self.ask("GET", "/stream"))[:2], (200, "x" * 800))
        self.assertEqual(len(set(seen[1:])), 7)

    async def test_of_many_answers_at_once_no_more_slices_are_made_in_a_turn_than_of_one(self) -> None:
        self.patch(turns, "TURN_SECONDS", -1.0)  # each slice takes longer than a turn
        turn, made = [0], Counter[int]()

        def on() -> None:
            turn[0] += 1

        going = task.LoopingCall(on)
        going.start(0)
        self.addCleanup(going.stop)
        streams: list[defer.Deferred[None]] = []

        async def serve(call: Call) -> Answer:
            async def content() -> AsyncIterator[bytes]:
                yield b"x"
                own: defer.Deferred[None] = defer.Deferred()
                streams.append(own)
                if len(streams) == 6:
                    for waiting in streams:
                        waiting.callback(None)  # from here on all of them have slices to send
                await own
                for _ in range(20):
                    made[turn[0]] += 1
                    yield b"x" * 100

            return Answer(content(), content_type="text/plain")

        self.serve(Api([route("GET", "/stream", serve)]))
        answers = await defer.gatherResults([defer.ensureDeferred(self.ask("GET", "/stream")) for _ in range(6)])
        self.assertEqual([len(answer[1]) for answer in answers], [2001] * 6)
        _, *later = [made[at] for at in sorted(made)]  # in the first all of them begin
        self.assertLessEqual(max(later), 2)

    async def test_a_peer_that_does_not_read_has_nothing_made_for_it(self) -> None:
        made: list[int] = []
        self.serve(Api([route("GET", "/stream", counted(10_000, web.SLICE_BYTES, made))]))
        connection = self.connect()
        connection.sendall(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        seen = -1
        while seen != len(made) or not made:  # until no more is made
            seen = len(made)
            await self.wait(0.3)
        self.assertLess(len(made), 200)  # what the kernel holds for both sides, and little more
        connection.close()
        await self.until(lambda: self.site.connections == 0)
        self.assertEqual(self.api.streams.held, 0)

    async def test_what_fails_before_the_first_slice_is_an_error_and_later_cuts(self) -> None:
        self.serve(Api([route("GET", "/first", counted(3, 10, [], 0)), route("GET", "/later", counted(3, 10, [], 1))]))
        status, content, _ = await self.ask("GET", "/first")
        self.assertEqual((status, content["error"]), (500, "internal"))
        with self.assertRaises((http.client.IncompleteRead, ConnectionResetError)):
            await self.ask("GET", "/later")
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 2)
        self.assertEqual(self.api.streams.held, 0)

    async def test_as_many_as_the_bound_and_one_past_it(self) -> None:
        self.patch(web, "MAX_STREAMS", 1)
        held: list[defer.Deferred[None]] = []

        async def slow(call: Call) -> Answer:
            async def content() -> AsyncIterator[bytes]:
                yield b"a"
                held.append(defer.Deferred())
                await held[-1]
                yield b"b"

            return Answer(content(), content_type="text/plain")

        self.serve(Api([route("GET", "/slow", slow)]))
        first = defer.ensureDeferred(self.ask("GET", "/slow"))
        await self.until(lambda: bool(held))
        status, content, _ = await self.ask("GET", "/slow")
        self.assertEqual((status, content["error"]), (503, "full"))
        held[0].callback(None)
        self.assertEqual((await first)[:2], (200, "ab"))


class Accepted(SynchronousTestCase):
    """What of an Accept header is read."""

    def test_the_most_specific_range_says_it(self) -> None:
        self.assertEqual(quality("text/*;q=0.5, text/plain ; x=1 ; q=0.3, */*", "text/plain"), 0.3)
        self.assertEqual(quality("text/*;q=0.5, */*", "text/plain"), 0.5)
        before = calls._kept_quality.cache_info().misses
        for size in (calls.MAX_KEPT_ACCEPT, calls.MAX_KEPT_ACCEPT + 1):  # what is longer is not remembered
            self.assertEqual([quality("text/*;q=0.25".ljust(size), "text/plain")] * 2, [0.25] * 2)
        self.assertEqual(calls._kept_quality.cache_info().misses, before + 1)

    def test_so_many_ranges_and_so_many_of_their_fields_are_read(self) -> None:
        for most, separator, tail in ((calls.MAX_RANGES, ",", ",text/plain"), (calls.MAX_RANGE_FIELDS, ";", ";q=0.5")):
            head = "a" if separator == "," else "text/plain"
            at, past = (separator.join([head, *["b"] * (count - 2)]) + tail for count in (most, most + 1))
            expected = (1.0, 0.0) if separator == "," else (0.5, 1.0)
            self.assertEqual((quality(at, "text/plain"), quality(past, "text/plain")), expected)


class Taking(Served):
    """Parameters in paths."""

    async def test_a_part_of_a_path_is_a_parameter(self) -> None:
        async def board(call: Call) -> Answer:
            return Answer(call.values)

        name, big = Parameter("name", ""), Parameter("big", "", FLAG)
        self.serve(Api([route("GET", "/boards/{name}", board, name, big), route("GET", "/boards/all", board)]))
        self.assertEqual((await self.ask("GET", "/boards/my%20first%2Fone?big=1"))[1], {"name": "my first/one", "big": True})
        self.assertEqual((await self.ask("GET", "/boards/all"))[1], {})
        for path, expected in (("/boards/", 404), ("/boards/a/b", 404), ("/boards/%ff", 404), ("/boards/{name}?name=x", 400)):
            self.assertEqual((await self.ask("GET", path))[0], expected, path)
        self.assertEqual((await self.ask("PUT", "/boards/x"))[0], 405)
