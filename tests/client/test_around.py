"""Timers, trackers and counters of exceptions go around blocks and callables of every kind."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from typing import Any

from taba.client.timing import Timer
from tests.client.cases import ClientCase, both


def steps(n: Any) -> Any:
    """Docs."""
    got = []
    for number in range(n):
        got.append((yield number))
    return got


async def many(n: Any) -> Any:
    """Docs."""
    for number in range(n):
        yield number


async def later(n: Any) -> Any:
    """Docs."""
    await asyncio.sleep(0)
    return n


def now(n: Any) -> Any:
    """Docs."""
    return n


class Called:
    def __call__(self, n: Any) -> Any:
        return n


class CalledLater:
    async def __call__(self, n: Any) -> Any:
        return n


class CalledInSteps:
    def __call__(self, n: Any) -> Any:
        yield from range(n)


@both
class AroundTests(ClientCase):
    def setUp(self) -> None:
        super().setUp()
        producer = self.producer()
        self.seconds = producer.tab("seconds", "PercentileGroup")
        self.failed = producer.tab("failed", "CounterGroup")
        self.busy = producer.tab("busy", "UpDown")

    def recorded(self) -> Any:
        events = self.events()
        return [sum(event.tab == name for event in events) for name in ("seconds", "failed", "busy")]

    def all_around(self, function: Any) -> Any:
        return self.seconds.time()(self.failed.count_exceptions()(self.busy.track()(function)))

    def test_each_kind_of_callable_stays_of_its_kind_and_keeps_its_name(self) -> None:
        kinds = {
            now: None,
            later: inspect.iscoroutinefunction,
            steps: inspect.isgeneratorfunction,
            many: inspect.isasyncgenfunction,
        }
        for function, kind in kinds.items():
            decorated = self.all_around(function)
            self.assertEqual((decorated.__name__, decorated.__doc__), (function.__name__, "Docs."))
            self.assertEqual(inspect.signature(decorated), inspect.signature(function))
            if kind is not None:
                self.assertTrue(kind(decorated), function)

    def test_functions_of_every_kind_are_gone_around_once_a_call(self) -> None:
        async def all_of(generator: Any) -> Any:
            return [item async for item in generator]

        partial = functools.partial
        cases = [
            (now, lambda made: made(3), 3),
            (len, lambda made: made("abc"), 3),
            (partial(now, 3), lambda made: made(), 3),
            (Called(), lambda made: made(3), 3),
            (Called().__call__, lambda made: made(3), 3),
            (lambda n: n, lambda made: made(3), 3),
            (later, lambda made: asyncio.run(made(3)), 3),
            (partial(later, 3), lambda made: asyncio.run(made()), 3),
            (CalledLater(), lambda made: asyncio.run(made(3)), 3),
            (CalledLater().__call__, lambda made: asyncio.run(made(3)), 3),
            (steps, lambda made: list(made(3)), [0, 1, 2]),
            (partial(steps, 3), lambda made: list(made()), [0, 1, 2]),
            (CalledInSteps(), lambda made: list(made(3)), [0, 1, 2]),
            (many, lambda made: asyncio.run(all_of(made(3))), [0, 1, 2]),
        ]
        for function, call, expected in cases:
            decorated = self.all_around(function)
            self.assertEqual(self.recorded(), [0, 0, 0], function)  # nothing before it is called
            self.assertEqual(call(decorated), expected, function)
            self.assertEqual(self.recorded(), [1, 0, 2], function)

    def test_methods_class_methods_and_static_ones_in_either_order(self) -> None:
        timer: Timer = self.seconds.time()
        test = self

        class Shop:
            name = "shop"

            @timer
            def method(self, n: Any) -> Any:
                return self.name, n

            @timer
            @classmethod
            def outside(cls, n: Any) -> Any:
                return cls.name, n

            @classmethod
            @timer
            def inside(cls, n: Any) -> Any:
                return cls.name, n

            @timer
            @staticmethod
            def static(n: Any) -> Any:
                return "shop", n

            @timer
            async def later(self, n: Any) -> Any:
                return self.name, n

        shop = Shop()
        calls = [shop.method, Shop.outside, shop.outside, Shop.inside, shop.static, Shop.static, lambda n: asyncio.run(shop.later(n))]
        for call in calls:
            test.assertEqual(call(1), ("shop", 1))
        self.assertEqual(self.recorded(), [len(calls), 0, 0])
        self.assertEqual(self.busy.track()(shop.method)(2), ("shop", 2))
        self.assertEqual(self.recorded(), [1, 0, 2])

    def test_what_cannot_be_called_is_refused_at_once(self) -> None:
        for thing in (3, "name", None, property(now), object()):
            with self.assertRaisesRegex(TypeError, "can be called"):
                self.seconds.time()(thing)

    def test_a_generator_is_gone_around_until_its_end_and_takes_what_is_sent_and_thrown(self) -> None:
        decorated = self.all_around(steps)
        generator = decorated(3)
        self.assertEqual(next(generator), 0)
        self.assertEqual(self.recorded(), [0, 0, 1])
        self.assertEqual(generator.send("a"), 1)
        self.assertEqual(generator.send("b"), 2)
        with self.assertRaises(StopIteration) as stopped:
            generator.send("c")
        self.assertEqual(stopped.exception.value, ["a", "b", "c"])
        self.assertEqual(self.recorded(), [1, 0, 1])
        generator = decorated(3)
        next(generator)
        with self.assertRaises(KeyError):
            generator.throw(KeyError())
        self.assertEqual(self.recorded(), [1, 1, 2])
        generator = decorated(3)
        next(generator)
        generator.close()
        self.assertEqual(self.recorded(), [1, 0, 2])  # an end that its consumer chose is no exception

    def test_so_is_an_asynchronous_one(self) -> None:
        log: list[Any] = []

        @self.all_around
        async def parts() -> Any:
            try:
                while True:
                    try:
                        log.append((yield len(log)))
                    except LookupError:
                        log.append("caught")
            finally:
                await asyncio.sleep(0)
                log.append("closed")

        async def use() -> None:
            generator = parts()
            self.assertEqual(await generator.__anext__(), 0)
            self.assertEqual(await generator.asend("a"), 1)
            self.assertEqual(await generator.athrow(LookupError()), 2)
            self.assertEqual(self.recorded(), [0, 0, 1])
            await generator.aclose()
            self.assertEqual(log, ["a", "caught", "closed"])
            self.assertEqual(self.recorded(), [1, 0, 1])
            generator = parts()
            await generator.__anext__()
            with self.assertRaises(ZeroDivisionError):
                await generator.athrow(ZeroDivisionError())
            self.assertEqual(self.recorded(), [1, 1, 2])

        asyncio.run(use())

    def test_exceptions_are_counted_by_their_class_and_pass(self) -> None:
        def fail(error: Any) -> None:
            raise error

        for counting, counted, passed in (
            (self.failed.count_exceptions(), [KeyError(), ValueError(), StopIteration()], [KeyboardInterrupt(), SystemExit()]),
            (self.failed.count_exceptions(LookupError), [KeyError(), IndexError()], [ValueError(), OSError()]),
            (self.failed.count_exceptions((KeyError, OSError)), [KeyError(), FileNotFoundError()], [IndexError()]),
            (self.failed.count_exceptions(kinds=BaseException), [KeyboardInterrupt(), GeneratorExit()], []),
        ):
            for error in [*counted, *passed]:
                with self.assertRaises(type(error)) as caught, counting:
                    raise error
                self.assertIs(caught.exception, error)
                with self.assertRaises(type(error)) as caught:
                    counting(fail)(error)
                self.assertIs(caught.exception, error)
            self.assertEqual(self.recorded(), [0, 2 * len(counted), 0])
        with self.failed.count_exceptions():
            pass
        self.assertEqual(self.recorded(), [0, 0, 0])

    def test_what_is_no_class_of_exceptions_is_refused_at_once(self) -> None:
        for kinds in ("KeyError", KeyError(), (KeyError, 3), int, None):
            with self.assertRaisesRegex(TypeError, "class of exceptions"):
                self.failed.count_exceptions(kinds)
        self.assertRaises(TypeError, self.failed.count_exceptions, KeyError, OSError)

    def test_a_task_that_is_cancelled_is_no_exception_and_no_longer_under_way(self) -> None:
        @self.all_around
        async def wait() -> None:
            await asyncio.Event().wait()

        async def cancel() -> None:
            task = asyncio.ensure_future(wait())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])

        asyncio.run(cancel())
        self.assertEqual(self.recorded(), [1, 0, 2])
        self.assertEqual(self.busy.net, 0)

    def test_one_timer_in_several_threads_times_each_for_itself(self) -> None:
        timer, entered, leave = self.seconds.time(), threading.Event(), threading.Event()

        class Clock:
            def __init__(self) -> None:
                self.times = iter([0.0, 100.0, 101.0, 1000.0])

            def __call__(self) -> Any:
                return next(self.times)

        self.patch(__import__("taba.client.timing", fromlist=["x"]), "perf_counter", Clock())

        def long() -> None:
            with timer:
                entered.set()
                leave.wait(60)

        thread = threading.Thread(target=long)
        thread.start()
        self.assertTrue(entered.wait(60))
        with timer:
            pass
        leave.set()
        thread.join()
        self.assertEqual([event.value for event in self.events()], [1.0, 1000.0])
        self.assertEqual(timer._begun, [])
