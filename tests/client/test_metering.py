"""What middlewares record by: the same in C as in pure Python, whatever server, application and their awaitables are like."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import sys
import traceback
import types
import warnings
from collections import UserDict
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction
from http import HTTPStatus
from typing import Any

from taba.client import pure
from tests.client.cases import ClientCase, accelerator, both

START = {"type": "http.response.start", "status": 200, "headers": []}
BODY = {"type": "http.response.body", "body": b"ok"}
SCOPE = {"type": "http", "method": "GET", "path": "/"}


@types.coroutine
def pause(value: Any = None) -> Generator[Any, Any, Any]:
    """Awaited, it is one step on the way."""
    return (yield value)


class Awaitable:
    """What is awaited, and no coroutine."""

    def __init__(self, steps: Any):
        self._steps = steps

    def __await__(self) -> Any:
        return self._steps


@both
class MeteringTests(ClientCase):
    def setUp(self) -> None:
        super().setUp()
        producer = self.producer()
        self.failures: list[tuple[Any, type[BaseException]]] = []
        self.stops: list[Any] = []
        self.made = 0
        self.tabs = (*(producer.tab(name, "CounterGroup") for name in ("requests", "seconds", "received", "sent")),)
        self.in_flight = producer.tab("in_flight", "UpDown")
        ports: Any = accelerator if self.accelerated else pure
        self.meter = ports.Meter(self.in_flight, self.make, lambda route, error: self.failures.append((route, type(error))))

    def make(self, method: Any, route: Any, status: Any) -> Any:
        self.made += 1
        self.meter.series[method, route, status] = self.tabs
        return self.tabs

    def recorded(self) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for event in self.events():
            if event.tab != "seconds":
                found.setdefault(event.tab, []).append(event.value)
        return found

    def exchange(self, receive: Any = None, send: Any = None, scope: Any = SCOPE, route: Any = lambda scope, root: "/") -> Any:
        return self.meter.exchange(route, scope, receive, send)

    def run_steps(self, coroutine: Any) -> Any:
        """What a coroutine returns that waits for nothing."""
        while True:
            try:
                coroutine.send(None)
            except StopIteration as end:
                return end.value

    # --- a request by itself ---

    def test_a_request_is_one_of_those_under_way_and_then_counted_where_it_belongs(self) -> None:
        for received, sent in ((0, 5), (7, -1), (-1, 0)):
            self.meter.end(self.meter.begin(), "GET", "/", 200, received, sent)
        self.assertEqual(self.recorded(), {"in_flight": [1.0, -1.0] * 3, "requests": [1.0] * 3, "received": [7.0], "sent": [5.0, 0.0]})
        self.assertEqual((self.made, list(self.meter.series)), (1, [("GET", "/", 200)]))

    def test_what_a_forked_child_comes_to_the_end_of_is_its_parents(self) -> None:
        async def send(message: Any) -> None: ...

        for fork in (os.fork, ctypes.PyDLL(None).fork):
            began, track = self.meter.begin(), self.in_flight.track()
            exchange = self.exchange(send=send)
            reply = self.meter.reply(lambda environ: "/", {"REQUEST_METHOD": "GET"}, lambda *of: None, self)
            track.__enter__()
            self.assertEqual(self.in_flight.net, 4.0)
            child = fork()
            if child == 0:
                status = 1
                try:
                    self.meter.end(began, "GET", "/", 200, 0, 0)
                    self.run_steps(exchange.send(BODY))
                    reply.end()
                    track.__exit__(None, None, None)
                    ends = (self.in_flight.net, self.made, exchange.is_over, reply.is_over)
                    with track:
                        own = self.meter.begin()
                        under_way = self.in_flight.net
                        self.meter.end(own, "GET", "/", 200, 0, 0)
                    status = int((*ends, under_way, self.in_flight.net, self.made) != (0.0, 0, True, True, 2.0, 0.0, 1))
                finally:
                    os._exit(status)
            self.assertEqual(os.waitpid(child, 0)[1], 0)
            self.assertEqual((self.in_flight.net, self.made), (4.0, 0))
            track.__exit__(None, None, None)
            exchange.end(500)
            reply.end()
            self.meter.end(began, "GET", "/", 200, 0, 0)
            self.assertEqual((self.in_flight.net, self.made), (0.0, 3))
            self.meter.series.clear()
            self.made = 0

    def test_the_first_request_of_a_forked_child_is_its_own(self) -> None:
        async def send(message: Any) -> None: ...

        def over_asgi() -> None:
            self.run_steps(self.exchange(send=send).send(BODY))

        def over_wsgi() -> None:
            self.meter.reply(lambda environ: "/", {"REQUEST_METHOD": "GET"}, lambda *of: None, self).end()

        def by_hand() -> None:
            self.meter.end(self.meter.begin(), "GET", "/", 200, 0, 0)

        for fork in (os.fork, ctypes.PyDLL(None).fork):
            for first in (over_asgi, over_wsgi, by_hand):
                child = fork()
                if child == 0:
                    status = 1
                    try:
                        first()  # until then nothing here knows that this is a child
                        status = int((self.in_flight.net, self.made) != (0.0, 1))
                    finally:
                        os._exit(status)
                self.assertEqual(os.waitpid(child, 0)[1], 0, (fork, first))

    def test_what_is_no_series_and_what_cannot_be_a_key_is_an_error_of_whoever_gives_it(self) -> None:
        meter = type(self.meter)(self.in_flight, lambda *key: "four", print)
        for error, of in ((Exception, ("GET", "/", 200)), (TypeError, ("GET", [], 200))):
            self.assertRaises(error, meter.end, meter.begin(), *of, 0, 0)
        self.assertEqual(self.recorded(), {"in_flight": [1.0, -1.0] * 2})

    def test_what_it_is_made_of_may_be_named_and_what_it_has_not_is_refused(self) -> None:
        made = type(self.meter)(in_flight=self.in_flight, made=self.make, failed=print)
        made.end(made.begin(), "GET", "/", 200, 0, 0)
        self.assertEqual(self.made, 1)
        self.assertRaises(TypeError, type(self.meter), self.in_flight, self.make, print, more=1)

    # --- over ASGI ---

    def test_messages_pass_and_are_measured(self) -> None:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"abc", "more_body": False}

        async def send(message: Any) -> None:
            await pause()
            sent.append(message)

        exchange = self.exchange(receive, send)
        self.assertEqual(self.run_steps(exchange.receive())["body"], b"abc")
        for message in (START, BODY):
            self.assertIsNone(self.run_steps(exchange.send(message)))
        self.assertTrue(sent[0] is START and sent[1] is BODY)
        self.assertEqual((exchange.is_over, exchange.is_gone, exchange.status), (True, False, 200))
        exchange.end(0)
        self.assertEqual(self.recorded(), {"in_flight": [1.0, -1.0], "requests": [1.0], "received": [3.0], "sent": [2.0]})

    def test_messages_of_any_mapping_with_any_body_and_status_are_measured(self) -> None:
        async def send(message: Any) -> None: ...

        exchange = self.exchange(None, send, scope=UserDict(SCOPE))
        self.run_steps(exchange.send(UserDict({**START, "status": HTTPStatus.CREATED})))
        for body in (None, b"", memoryview(b"abc"), bytearray(b"de")):
            self.run_steps(exchange.send(UserDict({**BODY, "body": body, "more_body": True})))
        self.run_steps(exchange.send(UserDict({"type": "".join(("http.", "response.body"))})))
        self.assertEqual((self.recorded()["sent"], list(self.meter.series)), ([5.0], [("GET", "/", 201)]))

    def test_nothing_happens_before_it_is_awaited_and_nothing_twice(self) -> None:
        asked: list[Any] = []

        async def send(message: Any) -> None:
            asked.append(message)

        exchange = self.exchange(None, send)
        step = exchange.send(START)
        self.assertEqual((asked, exchange.status), ([], 0))
        self.run_steps(step)
        self.assertEqual((asked, exchange.status), ([START], 200))
        self.assertRaises(RuntimeError, step.send, None)
        never = exchange.send(BODY)
        never.close()
        self.assertRaises(RuntimeError, never.send, None)
        thrown = exchange.send(BODY)
        self.assertRaises(KeyError, thrown.throw, KeyError("k"))
        self.assertRaises(RuntimeError, thrown.send, None)
        self.assertEqual((asked, exchange.is_over), ([START], False))

    def test_it_is_a_coroutine_to_whoever_wants_one(self) -> None:
        async def receive() -> Any:
            await asyncio.sleep(0)
            return {"type": "http.request"}

        async def main() -> Any:
            exchange = self.exchange(receive)
            self.assertTrue(isinstance(exchange.receive(), Coroutine) or asyncio.iscoroutine(exchange.receive()))
            return await asyncio.gather(
                asyncio.create_task(exchange.receive()), asyncio.wait_for(exchange.receive(), 60), exchange.receive()
            )

        with self.silently():
            self.assertEqual(asyncio.run(main()), [{"type": "http.request"}] * 3)

    @contextmanager
    def silently(self) -> Iterator[None]:
        """Without a word of coroutines that nobody awaits."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
            gc.collect()

    def test_what_is_awaited_is_whatever_may_be(self) -> None:
        asked: list[Callable[[], Any]] = []
        exchange = self.exchange(lambda: asked.pop()())

        async def coroutine() -> Any:
            return {"type": "http.request", "body": b"a"}

        @types.coroutine
        def generator() -> Any:
            yield
            return {"type": "http.request", "body": b"b"}

        def future() -> Any:
            return Awaitable(coroutine().__await__())

        for give in (coroutine, generator, future, lambda: Awaitable(iter(()))):
            asked.append(give)
            try:
                self.run_steps(exchange.receive())
            except TypeError:  # what came to its end without a message
                self.assertEqual(len(asked), 0)
        for wrong in (lambda: None, lambda: 17, lambda: (each for each in ""), lambda: Awaitable(17)):
            asked.append(wrong)
            self.assertRaises(TypeError, self.run_steps, exchange.receive())
        exchange.end(499)
        self.assertEqual(self.recorded()["received"], [3.0])

    def test_what_is_thrown_in_comes_to_the_server_and_what_it_makes_of_it_back(self) -> None:
        seen: list[Any] = []

        async def receive() -> Any:
            try:
                await pause(1)
            except KeyError as error:
                seen.append(error)
                await pause(2)
            return {"type": "http.disconnect"}

        exchange = self.exchange(receive)
        step = exchange.receive()
        self.assertEqual(step.send(None), 1)
        self.assertEqual(step.throw(KeyError("k")), 2)
        end = self.assertRaises(StopIteration, step.send, None)
        self.assertEqual((end.value, len(seen), exchange.is_gone), ({"type": "http.disconnect"}, 1, True))
        for error in (asyncio.CancelledError(), ZeroDivisionError):
            step = exchange.receive()
            step.send(None)
            self.assertRaises(type(error) if isinstance(error, BaseException) else error, step.throw, error)

        async def ends() -> Any:
            try:
                await pause()
            except KeyError:
                return {"type": "http.request", "body": b"late"}

        exchange = self.exchange(ends)
        step = exchange.receive()
        step.send(None)
        self.assertEqual(self.assertRaises(StopIteration, step.throw, KeyError()).value["body"], b"late")

        exchange = self.exchange(lambda: Awaitable(iter((1, 2))))  # which takes nothing that is thrown
        step = exchange.receive()
        self.assertEqual(step.send(None), 1)
        self.assertRaises(LookupError, step.throw, LookupError())

    def test_who_closes_it_closes_the_servers(self) -> None:
        seen: list[str] = []

        async def send(message: Any) -> None:
            try:
                await pause()
            finally:
                seen.append("closed")

        exchange = self.exchange(None, send)
        step = exchange.send(BODY)
        step.send(None)
        step.close()
        step.close()
        self.assertEqual((seen, exchange.is_over), (["closed"], False))

    def test_what_the_server_raises_when_it_is_closed_is_heard_too(self) -> None:
        for error, is_gone, status in ((OSError, True, 200), (ValueError, False, 0)):

            async def send(message: Any, error: type[BaseException] = error) -> None:
                try:
                    await pause()
                finally:
                    raise error

            exchange = self.exchange(None, send)
            step = exchange.send(START)
            step.send(None)
            self.assertRaises(error, step.close)
            self.assertEqual((exchange.is_gone, exchange.status), (is_gone, status))

    def test_what_the_server_does_not_take_is_as_it_was_before(self) -> None:
        raised: list[BaseException] = []

        def at_once(message: Any) -> Any:
            raise raised.pop()

        async def later(message: Any) -> None:
            await pause()
            raise raised.pop()

        for send in (at_once, later):
            exchange = self.exchange(None, send)
            for error, is_gone, status in (
                (ValueError(), False, 0),
                (asyncio.CancelledError(), False, 200),
                (BrokenPipeError(), True, 200),
            ):
                raised.append(error)
                self.assertRaises(type(error), self.run_steps, exchange.send(START))
                self.assertEqual((exchange.is_gone, exchange.status), (is_gone, status))
            raised.append(OSError())
            self.assertRaises(OSError, self.run_steps, exchange.send(BODY))
            self.assertFalse(exchange.is_over)

    def test_messages_that_are_none_are_the_applications_errors(self) -> None:
        async def send(message: Any) -> None: ...

        async def receive() -> Any:
            return {}

        exchange = self.exchange(receive, send)
        for wrong in ({}, {"type": "http.response.start"}, {"type": "http.response.body", "body": 17}, 17, None):
            self.assertRaises((KeyError, TypeError), self.run_steps, exchange.send(wrong))
        self.assertRaises(KeyError, self.run_steps, exchange.receive())
        self.assertFalse(exchange.is_over)

    def test_a_route_that_raises_ends_no_request_and_is_counted(self) -> None:
        def route(*of: Any) -> Any:
            raise LookupError

        async def send(message: Any) -> None: ...

        self.run_steps(self.exchange(None, send, route=route).send(BODY))
        reply = self.meter.reply(route, {}, lambda *of: None, self)
        reply.start("200 OK", [])
        reply.end()
        self.assertEqual(self.failures, [(None, LookupError)] * 2)
        self.assertEqual(
            (self.recorded()["in_flight"], list(self.meter.series)), ([1.0, -1.0] * 2, [("GET", None, 0), ("", None, "200 OK")])
        )

        def ends(*of: Any) -> Any:
            raise KeyboardInterrupt

        self.assertRaises(KeyboardInterrupt, self.run_steps, self.exchange(None, send, route=ends).send(BODY))
        self.assertEqual(self.recorded()["in_flight"], [1.0, -1.0])

    def test_a_route_that_is_no_text_is_none_and_is_counted(self) -> None:
        async def send(message: Any) -> None: ...

        for told in (17, ["/"], b"/", object()):
            self.run_steps(self.exchange(None, send, route=lambda *of, told=told: told).send(BODY))
            reply = self.meter.reply(lambda *of, told=told: told, {}, lambda *of: None, self)
            reply.start("200 OK", [])
            reply.end()
            self.assertEqual((reply.route, self.failures), (None, [(None, TypeError)] * 2))
            self.failures.clear()
        self.assertEqual(list(self.meter.series), [("GET", None, 0), ("", None, "200 OK")])
        self.assertEqual(self.recorded()["in_flight"], [1.0, -1.0] * 8)

    # --- over WSGI ---

    def failed(self, reply: Any, error: BaseException) -> None:
        self.failures.append((reply.route, type(error)))
        reply.answers(500, reply.route)
        reply.end()

    def stopped(self, reply: Any, error: BaseException | None) -> None:
        self.stops.append(error)
        reply.end()

    def reply(self, **environ: Any) -> Any:
        return self.meter.reply(lambda environ: "/", {"REQUEST_METHOD": "GET", **environ}, lambda *of: self.stops.append, self)

    def test_a_body_passes_in_its_steps_and_is_measured_at_its_end(self) -> None:
        reply = self.reply(CONTENT_LENGTH="17")
        reply.start("200 OK", headers=[])(b"old")
        self.assertEqual(list(reply.watch(iter((b"ab", memoryview(b"cde"))))), [b"ab", b"cde"])
        reply.close()
        self.assertEqual((self.stops, reply.is_over, reply.sent), ([b"old"], True, 8))
        self.assertEqual(self.recorded(), {"in_flight": [1.0, -1.0], "requests": [1.0], "received": [17.0], "sent": [8.0]})

    def test_lengths_that_are_none_are_nothing(self) -> None:
        for length in ("", "-1", "1e3", "\xb2", "9" * 16, 17, None, "9" * 15):
            reply = self.reply(CONTENT_LENGTH=length)
            reply.start("200 OK", [], None)
            reply.end()
        self.assertEqual(self.recorded()["received"], [float("9" * 15)])

    def test_what_a_body_raises_passes_and_its_owner_is_told_first(self) -> None:
        def raises() -> Any:
            yield b"a"
            raise LookupError

        class Closing:
            def __iter__(self) -> Any:
                return iter((b"a",))

            def close(self) -> None:
                raise ValueError

        for body, error in ((raises(), LookupError), (17, TypeError), (iter((17,)), TypeError)):
            reply = self.reply()
            reply.start("200 OK", [])
            self.assertRaises(error, list, reply.watch(body))
            self.assertEqual((self.failures.pop(), reply.is_over), (("/", error), True))
        reply = self.reply()
        self.assertEqual(list(reply.watch(Closing())), [b"a"])
        self.assertRaises(ValueError, reply.close)
        self.assertEqual([type(error) for error in self.stops], [ValueError])
        reply = self.reply()
        reply.watch(iter(()))
        reply.close()
        self.assertEqual((self.stops[1:], reply.is_over), ([None], True))

    def test_what_a_body_raises_is_as_it_was_raised_whatever_the_server_is_at(self) -> None:
        def raises() -> Any:
            try:
                raise KeyError
            except KeyError:
                raise LookupError  # noqa: B904  # which happened while the KeyError was handled
            yield b""

        class Closing:
            def __iter__(self) -> Any:
                return iter(())

            def close(self) -> None:
                next(raises())

        for body, call in ((raises(), list), (Closing(), lambda reply: reply.close())):
            reply = self.reply()
            try:
                raise ZeroDivisionError
            except ZeroDivisionError as handled:
                error = self.assertRaises(LookupError, call, reply.watch(body))
                self.assertIs(type(error.__context__), KeyError)
                self.assertIs(error.__context__.__context__, handled)
            self.assertEqual(traceback.extract_tb(error.__traceback__)[-1].name, "raises")

    def test_a_body_that_is_in_itself_is_an_exception_and_no_end_of_the_process(self) -> None:
        reply = self.reply()
        reply.watch(reply)
        for call in (list, lambda reply: reply.close()):
            self.assertRaises(RecursionError, call, reply)
        self.assertTrue(reply.is_over)

    def test_a_wrong_call_is_a_type_error(self) -> None:
        reply = self.reply()
        wrong: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
            (reply.start, ()), (reply.start, ("200 OK",)), (reply.start, ("200 OK", [], None, 4)),
            (self.meter.end, (1.0,)), (self.meter.exchange, (1,)), (self.meter.reply, (1,)),
        ]  # fmt: skip
        for call, arguments in wrong:
            self.assertRaises(TypeError, call, *arguments)
        self.assertRaises(TypeError, reply.start, "200 OK", [], other=1)
        reply.end()

    # --- sums ---

    def test_a_total_is_its_records_sum_and_takes_what_a_float_may_be_added_to(self) -> None:
        if not self.accelerated:  # whoever uses it has one of his own then
            self.assertFalse(hasattr(pure, "Total"))
            return
        total = accelerator.Total(self.tabs[0])
        for amount in (1, 2.5, True, Fraction(1, 2), 2**60):
            total.inc(amount)
        for wrong in (None, "1", 1j, 10**400, Decimal(1)):
            self.assertRaises((TypeError, OverflowError), total.inc, wrong)
        self.assertEqual((total.value, self.recorded()["requests"]), (5.0 + 2**60, [1.0, 2.5, 1.0, 0.5, float(2**60)]))
        total.value = 0
        self.assertEqual(total.value, 0.0)
        self.assertRaises(TypeError, accelerator.Total, None)
        for kind in ("Exchange", "Reply", "Step"):
            self.assertRaises(TypeError, getattr(accelerator, kind))

    # --- what is left ---

    def test_nothing_is_left_of_requests_that_are_over_and_of_those_that_were_forgotten(self) -> None:
        async def receive() -> Any:
            return {"type": "http.request", "body": b"abc"}

        async def send(message: Any) -> None: ...

        def route(*of: Any) -> str:
            return "/"

        held: list[Any] = [self.meter, SCOPE, START, BODY, receive, send, route, self.tabs, *self.tabs, self.in_flight]

        def round() -> None:
            for _ in range(50):
                exchange = self.exchange(receive, send, route=route)
                for step in (exchange.receive(), exchange.send(START), exchange.send(BODY)):
                    self.run_steps(step)
                half = self.exchange(receive, send, scope={**SCOPE}, route=route)
                half_scope: Any = {"seen": (half.receive, half.send), **SCOPE}
                self.exchange(receive, send, scope=half_scope, route=route).send(BODY)
                half_scope["its"] = self.exchange(receive, send, scope=half_scope, route=route).send(BODY)
                reply = self.meter.reply(route, {"REQUEST_METHOD": "GET"}, lambda *of: None, self)
                reply.start("200 OK", [])
                list(reply.watch(iter((b"a",))))
                reply.close()
                mine: dict[str, Any] = {}
                mine["me"] = self.meter.reply(route, mine, lambda *of: None, self)

        def kept() -> int:
            return sum(type(each).__name__ in ("Exchange", "Step", "Reply") for each in gc.get_objects())

        with self.silently():
            round()
            gc.collect()
            kinds = kept()
            before = [sys.getrefcount(each) for each in held]
            round()
            gc.collect()
        self.assertEqual([sys.getrefcount(each) for each in held], before)
        self.assertEqual(kept(), kinds)


class MadeInC(ClientCase):
    accelerated = True

    def test_what_c_is_asked_to_make_of_a_word_that_it_does_not_know_is_refused(self) -> None:
        tab = self.producer().tab("x", "CounterGroup")
        self.assertEqual(accelerator.Total(tab=tab).value, 0.0)
        for make, given in ((accelerator.Total, (tab,)), (accelerator.Port, (print, print, print)), (accelerator.Mapping, (-1, 8))):
            self.assertRaises(TypeError, make, *given, more=1)
        self.assertRaises(TypeError, type(tab), print, "x", "CounterGroup", False, False, more=1)
