from __future__ import annotations

import gzip
import zlib

from taba import web
from tests.sites import Served


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

    async def test_a_bug_is_logged_once_counted_and_answers_500_without_a_traceback(self) -> None:
        for _ in range(3):
            status, content, _ = await self.ask("GET", "/bug")
            self.assertEqual((status, content["error"]), (500, "internal"))
        self.assertEqual(self.site.resource.errors, {"GET /bug: KeyError": 3})  # type: ignore[attr-defined]
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


class Decompression(Served):
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
