from __future__ import annotations

import gzip
import http.client
import json
import socket
import zlib
from collections.abc import Callable
from typing import Any

from twisted.internet import defer, reactor, threads
from twisted.trial.unittest import TestCase

from taba import web
from taba.errors import MalformedBatch, StoreUnavailable
from taba.web import Answer, Api, Call, HTTPError

LIMIT = 1000


async def echo(call: Call) -> Answer:
    return Answer({"size": len(call.body()), "arguments": call.arguments}, text=lambda: "text\n")


async def picky(call: Call) -> Answer:
    call.only("name", "other")
    return Answer(call.one("name"))


async def posted(call: Call) -> Answer:
    return Answer(call.json())


def raising(error: Exception) -> Callable[[Call], Any]:
    async def route(call: Call) -> Answer:
        raise error

    return route


ROUTES = {
    ("GET", "/echo"): echo,
    ("POST", "/echo"): echo,
    ("GET", "/picky"): picky,
    ("POST", "/json"): posted,
    ("GET", "/malformed"): raising(MalformedBatch("bad")),
    ("GET", "/store"): raising(StoreUnavailable("away")),
    ("GET", "/bug"): raising(KeyError("x")),
    ("GET", "/teapot"): raising(HTTPError(418, "teapot", "short and stout")),
}


class Served(TestCase):
    """A real Site on loopback; requests are made from a thread with the standard library."""

    def setUp(self) -> None:
        self.site = web.make_site(Api(ROUTES), LIMIT)
        port = reactor.listenTCP(0, self.site, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.port = port.getHost().port
        self.addCleanup(port.stopListening)

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, Any]:
        def ask() -> tuple[int, Any, Any]:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
            try:
                connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
                answer = connection.getresponse()
                content = answer.read()
                kind = answer.getheader("content-type") or ""
                return answer.status, json.loads(content) if "json" in kind and content else content.decode(), answer
            finally:
                connection.close()

        return await threads.deferToThread(ask)

    async def say(self, *pieces: bytes) -> bytes:
        """Everything that the peer answers to raw bytes until it closes."""

        def say() -> bytes:
            with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
                for piece in pieces:
                    connection.sendall(piece)
                answer = b""
                while more := connection.recv(65536):
                    answer += more
                return answer

        return await threads.deferToThread(say)


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
            status, content, _ = await self.ask("GET", path, Accept="text/plain")
            self.assertEqual((status, content["error"]), (expected, error), path)
            self.assertTrue(content["detail"])

    async def test_a_bug_is_logged_and_answers_500_without_a_traceback(self) -> None:
        status, content, _ = await self.ask("GET", "/bug")
        self.assertEqual((status, content["error"]), (500, "internal"))
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.assertNotIn("Traceback", str(content))

    async def test_a_body_that_is_not_json_is_refused(self) -> None:
        for body in [b"", b"{", b"NaN", b"\xff", b"[" * 900]:
            status, content, _ = await self.ask("POST", "/json", body)
            self.assertEqual((status, content["error"]), (400, "bad_request"))


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
        ]:
            answer = await self.say(head)
            self.assertIn(b" %d " % expected, answer.splitlines()[0], head)


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

    async def test_headers_beyond_the_bound_are_refused_in_words(self) -> None:
        self.patch(web, "LINGER_SECONDS", 0.1)
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

    async def test_a_peer_that_drips_its_request_is_refused_in_time(self) -> None:
        self.patch(web, "MAX_REQUEST_SECONDS", 0.3)
        self.patch(web, "LINGER_SECONDS", 0.1)
        for head in [b"GET /ec", b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nx"]:
            answer = await self.say(head)
            self.assertIn(b" 408 ", answer.splitlines()[0])

    async def test_what_decompresses_beyond_the_bound_is_refused(self) -> None:
        self.patch(web, "MAX_BODY_BYTES", 5000)
        for encoding, compress in [("gzip", gzip.compress), ("deflate", zlib.compress)]:
            status, content, _ = await self.ask("POST", "/echo", compress(b"x" * 5000), Content_Encoding=encoding)
            self.assertEqual((status, content["size"]), (200, 5000))
            status, content, _ = await self.ask("POST", "/echo", compress(b"x" * 5001), Content_Encoding=encoding)
            self.assertEqual((status, content["error"]), (413, "too_large"))
            for bad in [b"", b"rubbish", compress(b"x" * 50)[:-3]]:
                status, _, _ = await self.ask("POST", "/echo", bad, Content_Encoding=encoding)
                self.assertEqual(status, 400)
        status, _, _ = await self.ask("POST", "/echo", b"x", Content_Encoding="br")
        self.assertEqual(status, 415)

    async def test_connections_beyond_the_bound_are_closed_and_counted(self) -> None:
        self.patch(web, "MAX_CONNECTIONS", 1)
        with socket.create_connection(("127.0.0.1", self.port)):
            await self.say_when(lambda: self.site.connections == 1)
            self.assertEqual(await self.say(), b"")
        self.assertEqual(self.site.refused, 1)
        await self.say_when(lambda: self.site.connections == 0)
        self.assertEqual((await self.ask("GET", "/echo"))[0], 200)

    async def say_when(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            waiting: defer.Deferred[None] = defer.Deferred()
            reactor.callLater(0.01, waiting.callback, None)  # type: ignore[attr-defined]
            await waiting
