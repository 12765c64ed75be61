"""What WSGI and ASGI applications serve is recorded, however it ends, under bounded names."""

from __future__ import annotations

import asyncio
import io
from typing import Any
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

from twisted.trial.unittest import SynchronousTestCase

from taba import client
from taba.client import metering, process, pure, testing
from taba.client.producer import Producer
from taba.frameworks import asgi, serving, wsgi
from taba.names import parse_name


class Case(SynchronousTestCase):
    ports: Any = None  # what this process records with, if it is not that of its client

    def setUp(self) -> None:
        if self.ports is not None:
            self.patch(process, "producer", Producer(self.ports))
            self.patch(serving, "PORTS", self.ports)
        self.recorded = testing.capture_for(self)

    def in_flight(self, name: str = "http_requests_in_flight") -> float:
        return self.recorded.total(name)

    def requests(self) -> list[tuple[str, str, str]]:
        """(method, route, status) of each request, in order."""
        labels = [parse_name(event.name)[1] for event in self.recorded.events if event.name.startswith("http_requests{")]
        return [(each["method"], each["route"], each["status"]) for each in labels]


class WSGI(Case):
    def call(self, app: Any, method: str = "GET", read: int | None = None, checked: bool = True, **environ: Any) -> Any:
        """Serve one request as a server does; the status line and the body. `read`: chunks that the client waits for."""
        environ = {"REQUEST_METHOD": method, "QUERY_STRING": "", "SCRIPT_NAME": "", "PATH_INFO": "/", **environ}
        setup_testing_defaults(environ)
        began: list[Any] = []
        written: list[bytes] = []

        def start_response(status: str, headers: Any, error: Any = None) -> Any:
            began.append((status, headers))
            return written.append

        middleware = wsgi.Middleware(app, lambda environ: environ.get("route"))
        body = (validator(middleware) if checked else middleware)(environ, start_response)
        steps = iter(body)
        try:
            content = b"".join(steps) if read is None else b"".join(next(steps) for _ in range(read))
        finally:
            if hasattr(body, "close"):
                body.close()
        return began[-1][0], b"".join(written) + content

    def answer(self, body: Any, status: str = "200 OK") -> Any:
        def app(environ: Any, start_response: Any) -> Any:
            environ["route"] = "/cart/<id>"
            start_response(status, [("Content-Type", "text/plain"), ("Content-Length", "6")])
            return body() if callable(body) else body

        return app

    def test_a_request_is_counted_with_its_route_status_sizes_and_seconds(self) -> None:
        environ: dict[str, Any] = {"CONTENT_LENGTH": "10", "wsgi.input": io.BytesIO(b"x" * 10), "PATH_INFO": "/cart/17"}
        self.assertEqual(self.call(self.answer([b"abc", b"def"]), "POST", **environ), ("200 OK", b"abcdef"))
        self.assertEqual(self.requests(), [("POST", "/cart/<id>", "200")])
        self.assertEqual(self.recorded.values("http_request_bytes", route="/cart/<id>"), [10.0])
        self.assertEqual(self.recorded.values("http_response_bytes", route="/cart/<id>"), [6.0])
        self.assertEqual(self.recorded.count("http_request_seconds", method="POST"), 1)
        self.assertEqual((self.in_flight(), self.recorded.values("http_requests_in_flight")), (0, [1.0, -1.0]))
        self.assertFalse([name for name in self.recorded.names() if "17" in name])

    def test_a_stream_is_under_way_until_its_end(self) -> None:
        seen = []

        def stream() -> Any:
            for _ in range(3):
                seen.append(self.in_flight())
                yield b"ab"

        self.call(self.answer(stream))
        self.assertEqual((seen, self.in_flight()), ([1, 1, 1], 0))
        self.assertEqual(self.recorded.values("http_response_bytes"), [6.0])
        self.assertEqual(self.recorded.total("http_aborted"), 0)

    def test_a_client_that_goes_away_ends_it_and_closes_what_the_application_gave(self) -> None:
        closed = []

        class Stream:
            def __iter__(self) -> Any:
                return iter([b"ab"] * 3)

            def close(self) -> None:
                closed.append(1)

        self.call(self.answer(Stream), read=1, checked=False)
        self.assertEqual((closed, self.in_flight(), self.recorded.total("http_aborted", route="/cart/<id>")), ([1], 0, 1))
        self.assertEqual(self.recorded.values("http_response_bytes"), [2.0])
        self.call(self.answer(Stream), "HEAD", read=0, checked=False)
        self.assertEqual((closed, self.in_flight(), self.recorded.total("http_aborted")), ([1, 1], 0, 1))

    def test_exceptions_are_counted_and_pass_wherever_they_come_from(self) -> None:
        class Closing:
            def __iter__(self) -> Any:
                return iter([b"ab"])

            def close(self) -> None:
                raise OSError

        def broken(environ: Any, start_response: Any) -> Any:
            raise KeyError

        def half(environ: Any, start_response: Any) -> Any:
            start_response("200 OK", [("Content-Type", "text/plain")])
            raise LookupError

        def breaking() -> Any:
            yield b"ab"
            raise ValueError

        cases = [(broken, KeyError), (half, LookupError), (self.answer(breaking), ValueError), (self.answer(Closing), OSError)]
        for app, error in cases:
            self.assertRaises(error, self.call, app, checked=False)
            self.assertEqual((self.recorded.total("http_exceptions", exception=error.__name__), self.in_flight()), (1, 0))
        route = "/cart/<id>"
        found = [("GET", "(unmatched)", "500"), ("GET", "(unmatched)", "500"), ("GET", route, "200"), ("GET", route, "200")]
        self.assertEqual(self.requests(), found)

    def test_what_is_written_the_old_way_and_files_are_counted_too(self) -> None:
        def writes(environ: Any, start_response: Any) -> Any:
            start_response("201 Created", [("Content-Type", "text/plain")])(b"abc")
            return [b"de"]

        def file(environ: Any, start_response: Any) -> Any:
            start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])
            return environ["wsgi.file_wrapper"](io.BytesIO(b"abcdef"))

        self.assertEqual(self.call(writes, checked=False), ("201 Created", b"abcde"))
        kept = []

        class Wrapper(FileWrapper):
            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments)
                kept.append(self)

        environ = {"REQUEST_METHOD": "GET", "wsgi.file_wrapper": Wrapper}
        body = wsgi.Middleware(file)(environ, lambda *arguments: None)
        self.assertIs(body, kept[0])  # so that the server may send it as a file
        self.assertEqual(self.in_flight(), 1)
        body.close()  # type: ignore[attr-defined]
        self.assertTrue(kept[0].filelike.closed)
        self.assertEqual(self.recorded.values("http_response_bytes"), [5.0, 6.0])
        self.assertEqual(self.in_flight(), 0)

    def test_what_a_stranger_chooses_is_no_name(self) -> None:
        def odd(environ: Any, start_response: Any) -> Any:
            start_response(environ["status"], [("Content-Type", "text/plain")])
            return [b""]

        for method, status in (("BREW", "200 OK"), ("get", "99 Odd"), ("GET", "600 x"), ("GET", "abc"), ("GET", "")):
            self.call(odd, method, checked=False, status=status, CONTENT_LENGTH="ten")
        expected = [("(other)", "200"), ("(other)", "0"), ("GET", "0"), ("GET", "0"), ("GET", "0")]
        self.assertEqual([(method, status) for method, _, status in self.requests()], expected)
        self.assertEqual(self.recorded.values("http_request_bytes"), [])  # no length that anybody knows
        self.patch(serving, "MAX_ROUTES", 2)
        middleware = wsgi.Middleware(self.answer([b""]), lambda environ: environ["PATH_INFO"])
        for path in ("/1", "/2", "/3", "/4", "/1"):
            list(middleware({"REQUEST_METHOD": "GET", "PATH_INFO": path}, lambda *arguments: None))
        self.assertEqual([route for _, route, _ in self.requests()][-5:], ["/1", "/2", "(other)", "(other)", "/1"])

    def test_a_status_lines_text_takes_no_place_beyond_so_many_and_changes_nothing(self) -> None:
        self.patch(serving, "MAX_STATUSES", 2)

        def app(environ: Any, start_response: Any) -> Any:
            start_response(environ["its"], [])
            return [b"ab"]

        middleware = wsgi.Middleware(app)
        for text in ("200 OK", "404 No 1", "404 No 2", "404 No 3", "200 OK"):
            list(middleware({"its": text, "REQUEST_METHOD": "GET"}, lambda *arguments: None))
        self.assertEqual([status for _, _, status in self.requests()], ["200", "404", "404", "404", "200"])
        self.assertEqual(len(middleware._serving.meter.series), 2)

    def test_a_lying_length_is_none_and_the_longest_is(self) -> None:
        longest = "9" * metering.MAX_DIGITS
        for length in ("", "-1", "1e3", "\xb2", longest + "9", "9" * 5000, longest):
            self.call(self.answer([b""]), checked=False, CONTENT_LENGTH=length)
        self.assertEqual(self.recorded.values("http_request_bytes"), [float(longest)])
        self.assertEqual((len(self.requests()), self.in_flight()), (7, 0))

    def test_names_that_are_no_labels_as_they_are_break_no_request(self) -> None:
        for route in ("/\0", "/\udc80"):
            middleware = wsgi.Middleware(self.answer([b""]), lambda environ: environ["its"])
            list(middleware({"its": route, "REQUEST_METHOD": "GET"}, lambda *arguments: None))
        self.assertEqual([route for _, route, _ in self.requests()], ["/\\0", "/\\udc80"])

    def test_a_body_that_is_none_leaves_nothing_under_way(self) -> None:
        for body in ([None], [b"a", 1], (3,)):
            self.assertRaises(TypeError, self.call, self.answer(body), checked=False)
        self.assertRaises(TypeError, self.call, self.answer(None), checked=False)
        self.assertEqual((self.in_flight(), self.recorded.total("http_exceptions", exception="TypeError")), (0, 4))

    def test_the_status_is_the_one_that_the_server_took(self) -> None:
        seen: list[Any] = []

        def start_response(*arguments: Any) -> Any:
            if len(seen) == 1 and isinstance(arguments[-1], tuple):
                raise arguments[-1][1]
            seen.append(arguments)
            return None

        def app(environ: Any, start_response: Any) -> Any:
            start_response("200 OK", [], exc_info=None)  # as a name: not in the rules, and usual
            yield b"ab"
            try:
                raise KeyError
            except KeyError as error:
                start_response("503 Sorry", [], exc_info=(KeyError, error, None))

        body = wsgi.Middleware(app)({"REQUEST_METHOD": "GET"}, start_response)
        self.assertRaises(KeyError, list, body)
        self.assertEqual((seen, self.requests()), ([("200 OK", [])], [("GET", "(unmatched)", "200")]))

    def test_who_reads_no_more_than_was_promised_did_not_go_away(self) -> None:
        self.call(self.answer(lambda: iter([b"abc", b"def", b""])), read=2)
        self.assertEqual(self.recorded.total("http_aborted"), 0)
        self.call(self.answer(lambda: iter([b"abc", b"def"])), read=1)
        self.assertEqual((self.recorded.total("http_aborted"), self.in_flight()), (1, 0))


class ASGI(Case):
    def call(self, app: Any, messages: Any = (), kind: str = "http", cancel: bool = False, **scope: Any) -> list[Any]:
        """Serve one connection; what the application sent. After the messages the client is gone."""
        sent: list[Any] = []

        async def serve() -> None:
            waiting = list(messages)

            async def receive() -> Any:
                if not waiting and cancel:
                    await asyncio.Event().wait()
                return waiting.pop(0) if waiting else {"type": f"{kind}.disconnect", "code": 1001}

            async def send(message: Any) -> None:
                sent.append(message)

            middleware = asgi.Middleware(app, lambda scope, root: scope.get("route"))
            task = asyncio.ensure_future(middleware({"type": kind, "method": "GET", **scope}, receive, send))
            if cancel:
                for _ in range(5):
                    await asyncio.sleep(0)
                task.cancel()
            await task

        asyncio.run(serve())
        return sent

    def test_a_request_is_counted_with_its_route_status_sizes_and_seconds(self) -> None:
        seen = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            scope["route"] = "/cart/{id}"
            while (await receive()).get("more_body"):
                pass
            await send({"type": "http.response.start", "status": 201, "headers": []})
            await send({"type": "http.response.body", "body": b"abc", "more_body": True})
            seen.append(self.in_flight())
            await send({"type": "http.response.body", "body": b"d"})
            seen.append(self.in_flight())  # work in the background makes nobody wait

        body = [{"type": "http.request", "body": b"xx", "more_body": True}, {"type": "http.request", "body": b"x"}]
        self.assertEqual(len(self.call(app, body)), 3)
        self.assertEqual(self.requests(), [("GET", "/cart/{id}", "201")])
        self.assertEqual(self.recorded.values("http_request_bytes"), [3.0])
        self.assertEqual(self.recorded.values("http_response_bytes"), [4.0])
        self.assertEqual((seen, self.recorded.count("http_request_seconds", route="/cart/{id}")), ([1, 0], 1))

    def test_exceptions_are_counted_and_pass(self) -> None:
        async def broken(scope: Any, receive: Any, send: Any) -> None:
            raise KeyError

        async def half(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            raise ValueError

        async def late(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body"})
            raise OSError

        for app, error in ((broken, KeyError), (half, ValueError), (late, OSError)):
            self.assertRaises(error, self.call, app)
            self.assertEqual((self.recorded.total("http_exceptions", exception=error.__name__), self.in_flight()), (1, 0))
        self.assertEqual([status for _, _, status in self.requests()], ["500", "200", "200"])

    def test_a_client_that_goes_away_and_a_task_that_is_given_up_are_told(self) -> None:
        async def waits(scope: Any, receive: Any, send: Any) -> None:
            await receive()

        async def streams(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await receive()

        async def nothing(scope: Any, receive: Any, send: Any) -> None:
            pass

        self.call(waits)
        self.call(streams)
        self.assertRaises(asyncio.CancelledError, self.call, waits, cancel=True)
        self.assertEqual(([status for _, _, status in self.requests()], self.recorded.total("http_aborted")), (["499", "200", "499"], 3))
        self.call(nothing)
        self.assertEqual((self.requests()[-1][2], self.recorded.total("http_aborted"), self.in_flight()), ("0", 3, 0))
        self.assertEqual(self.recorded.total("http_exceptions"), 0)

    def test_a_task_that_is_given_up_by_whatever_means_is_no_failure(self) -> None:
        class Cancelled(BaseException):
            """As other event loops than asyncio's have it."""

        async def waits(scope: Any, receive: Any, send: Any) -> None:
            await receive()

        class Forever:
            def __await__(self) -> Any:
                yield

        forever: Any = Forever
        ends: list[tuple[Any, Any]] = [
            (lambda serving: serving.throw(Cancelled()), Cancelled),
            (lambda serving: serving.close(), None),
            (lambda serving: serving.throw(KeyboardInterrupt()), KeyboardInterrupt),
        ]
        for kind in ("http", "websocket"):
            for end, error in ends:
                serving = asgi.Middleware(waits)({"type": kind, "method": "GET"}, forever, forever)
                serving.send(None)
                if error is None:
                    end(serving)
                else:
                    self.assertRaises(error, end, serving)
        self.assertEqual([status for _, _, status in self.requests()], ["499", "499", "500"])
        self.assertEqual((self.in_flight(), self.in_flight("http_websockets_in_flight")), (0, 0))
        self.assertEqual(self.recorded.total("http_exceptions"), self.recorded.total("http_exceptions", exception="KeyboardInterrupt"))

    def test_an_end_that_nobody_waits_for_is_told(self) -> None:
        async def answers(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"ab"})

        self.call(answers)
        found = (self.requests(), self.recorded.total("http_aborted"), self.in_flight())
        self.assertEqual(found, ([("GET", "(unmatched)", "200")], 1, 0))

    def test_of_a_file_that_the_server_sends_nobody_knows_the_size(self) -> None:
        for kind in ("http.response.pathsend", "http.response.zerocopysend"):

            async def sends(scope: Any, receive: Any, send: Any, kind: str = kind) -> None:
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": kind, "path": "/a", "file": 3})

            self.call(sends)
        self.assertEqual((len(self.requests()), self.recorded.count("http_response_bytes"), self.in_flight()), (2, 0, 0))

    def test_a_server_that_says_so_when_something_is_sent_to_who_is_gone_is_no_failure(self) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})

        async def receive() -> Any:
            return {"type": "http.request"}

        async def send(message: Any) -> None:
            raise BrokenPipeError

        served = asgi.Middleware(app)({"type": "http", "method": "GET"}, receive, send)
        self.assertRaises(BrokenPipeError, asyncio.run, served)
        self.assertEqual((self.recorded.total("http_aborted"), self.recorded.total("http_exceptions"), self.in_flight()), (1, 0, 0))

    def test_a_response_that_the_server_does_not_take_is_none(self) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": "wrong"})

        async def again(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 201, "headers": []})
            await send({"type": "http.response.start", "status": 302, "headers": "wrong"})

        async def receive() -> Any:
            return {"type": "http.request"}

        async def send(message: Any) -> None:
            if message["headers"] == "wrong":
                raise ValueError

        for one in (app, again):
            self.assertRaises(ValueError, asyncio.run, asgi.Middleware(one)({"type": "http", "method": "GET"}, receive, send))
        self.assertEqual([status for _, _, status in self.requests()], ["500", "201"])
        self.assertEqual((self.recorded.total("http_exceptions"), self.in_flight()), (2, 0))

    def test_websockets_are_counted_by_the_code_that_closed_them(self) -> None:
        async def echo(scope: Any, receive: Any, send: Any) -> None:
            scope["route"] = "/feed"
            await receive()
            await send({"type": "websocket.accept"})
            self.assertEqual(self.in_flight("http_websockets_in_flight"), 1)
            while (message := await receive())["type"] == "websocket.receive":
                await send({"type": "websocket.send", "text": message["text"]})
                await send({"type": "websocket.send", "text": message["text"]})

        async def reject(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "websocket.close", "code": 1008})

        async def closes(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close", "code": 4711})

        async def breaks(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "websocket.accept"})
            raise KeyError

        async def leaves(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "websocket.accept"})
            await receive()
            raise LookupError  # as Starlette does where a view does not expect it

        messages = [{"type": "websocket.connect"}, *[{"type": "websocket.receive", "text": "x"}] * 3]
        self.call(echo, messages, kind="websocket")
        self.call(reject, kind="websocket")
        self.call(closes, kind="websocket")
        self.assertRaises(KeyError, self.call, breaks, kind="websocket")
        self.assertRaises(LookupError, self.call, leaves, kind="websocket")
        self.assertEqual(self.recorded.total("http_exceptions"), 1)
        codes = [parse_name(event.name)[1]["code"] for event in self.recorded.events if event.name.startswith("http_websockets{")]
        self.assertEqual(codes, ["1001", "rejected", "(other)", "1011", "1001"])
        self.assertEqual(self.recorded.total("http_websocket_messages", route="/feed", by="client"), 3)
        self.assertEqual(self.recorded.total("http_websocket_messages", route="/feed", by="server"), 6)
        self.assertEqual((self.recorded.count("http_websocket_seconds"), self.in_flight("http_websockets_in_flight")), (5, 0))
        self.assertEqual(self.requests(), [])

    def test_lifespan_and_what_is_neither_pass_untouched(self) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            scope["seen"] = (receive, send)
            await send(await receive())

        before = self.recorded.events
        for kind in ("lifespan", "a.new.thing"):
            sent = self.call(app, [{"type": f"{kind}.startup"}], kind=kind)
            self.assertEqual(sent, [{"type": f"{kind}.startup"}])
        self.assertEqual(self.recorded.events, before)

    def test_a_route_that_raises_ends_no_request_and_no_socket_and_is_counted(self) -> None:
        def route(*of: Any) -> str:
            raise LookupError

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "websocket.accept"})

        async def receive() -> Any: ...

        async def send(message: Any) -> None: ...

        asyncio.run(asgi.Middleware(app, route)({"type": "websocket"}, receive, send))
        answers = wsgi.Middleware(lambda environ, start_response: (start_response("200 OK", []), [b"x"])[1], route)
        self.assertEqual(list(answers({"REQUEST_METHOD": "GET"}, lambda *arguments: None)), [b"x"])
        breaks = wsgi.Middleware(lambda environ, start_response: 1 / 0, route)  # type: ignore[arg-type, return-value]
        self.assertRaises(ZeroDivisionError, breaks, {"REQUEST_METHOD": "GET"}, lambda *arguments: None)
        self.assertEqual(self.recorded.total("http_exceptions", exception="LookupError", route="(unmatched)"), 3)
        self.assertEqual((self.in_flight(), self.in_flight("http_websockets_in_flight")), (0, 0))


class PureWSGI(WSGI):
    ports = pure


class PureASGI(ASGI):
    ports = pure


class Named(Case):
    def test_two_applications_in_one_process_have_names_of_their_own(self) -> None:
        for name in ("shop", "admin"):
            application = wsgi.Middleware(lambda environ, start_response: [b"x"], name=name)
            list(application({"REQUEST_METHOD": "GET"}, lambda *arguments: None))
        self.assertEqual((self.recorded.total("shop_requests"), self.recorded.total("admin_requests")), (1, 1))
        self.assertEqual(client.counter("shop_requests").type, "CounterGroup")
