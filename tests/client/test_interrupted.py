"""Timers; and what is recorded from several threads, and from handlers of signals."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from typing import Any

from taba.client.timing import Timer
from tests.client.cases import ClientCase, both


@both
class TimerTests(ClientCase):
    def timed(self) -> tuple[Any, Timer]:
        tab = self.producer().tab("p", "PercentileGroup")
        return tab, tab.time()

    def test_a_block_is_timed_also_when_it_raises(self) -> None:
        tab, _ = self.timed()
        with tab.time():
            time.sleep(0.01)
        with self.assertRaises(KeyError), tab.time():
            raise KeyError
        values = [event.value for event in self.events()]
        self.assertEqual(len(values), 2)
        self.assertTrue(0.01 <= values[0] < 5)

    def test_functions_are_timed_also_when_they_raise_and_within_themselves(self) -> None:
        _, timer = self.timed()

        @timer
        def countdown(n: int) -> Any:
            """Docs."""
            if n == 0:
                raise KeyError
            return countdown(n - 1)

        self.assertRaises(KeyError, countdown, 2)
        self.assertEqual(countdown.__doc__, "Docs.")
        self.assertEqual(len(self.events()), 3)

    def test_coroutines_are_timed_until_they_end(self) -> None:
        _, timer = self.timed()

        @timer
        async def pause(fails: bool) -> int:
            await asyncio.sleep(0.02)
            if fails:
                raise KeyError
            return 7

        self.assertEqual(asyncio.run(pause(False)), 7)
        self.assertRaises(KeyError, lambda: asyncio.run(pause(True)))
        values = [event.value for event in self.events()]
        self.assertEqual(len(values), 2)
        self.assertTrue(all(value >= 0.02 for value in values))


@both
class ThreadTests(ClientCase):
    def test_four_threads_lose_nothing(self) -> None:
        producer = self.producer(TABA_RING_BYTES=str(1 << 18))
        tab, text = producer.tab("c", "CounterGroup"), producer.tab("b", "Buffer")
        tab.inc()
        reader = self.reader(producer)
        going = threading.Event()

        def record(number: int) -> None:
            going.wait()
            for i in range(10_000):
                tab.inc(number)
                if i % 50 == 0:
                    text.record(f"{number}:{i}" + "x" * (i % 100))

        threads = [threading.Thread(target=record, args=(number,)) for number in range(1, 5)]
        for thread in threads:
            thread.start()
        events = []
        going.set()
        while any(thread.is_alive() for thread in threads):
            events += reader.drain()
        events += reader.drain()
        stats = producer.stats()
        self.assertEqual(stats["recorded"], len(events))
        self.assertEqual(stats["recorded"] + stats["dropped"], 1 + 4 * 10_200)
        texts = [event.value for event in events if event.tab == "b"]
        for value in texts:
            number, rest = value.split(":")
            self.assertIn(number, "1234")
            self.assertEqual(rest.rstrip("x") + "x" * (int(rest.rstrip("x")) % 100), rest)
        self.assertEqual(len(set(texts)), len(texts))
        self.assertFalse(set(stats["dropped_by_reason"]) - {"ring_full", "bytes_full"})


@both
class SignalTests(ClientCase):
    def test_exceptions_from_signal_handlers_lose_no_completed_event(self) -> None:
        out = self.run_python(
            """
            import json, os, signal, sys, time
            from taba import client, ring
            from tests.client.reading import Reader, rings

            class Interrupted(Exception):
                pass

            armed = False

            def interrupt(number, frame):
                global armed
                if armed:
                    armed = False
                    raise Interrupted

            tab = client.tab("b", "Buffer")
            tab.record(1.0)
            reader = Reader(client.stats()["ring"])
            signal.signal(signal.SIGALRM, interrupt)
            completed, interrupts, read = 1, 0, 0
            deadline = time.monotonic() + 1.5
            while time.monotonic() < deadline:
                armed = True
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.0001 + 0.000001 * (interrupts % 50))
                    for _ in range(1000):
                        tab.record(2.0)
                        completed += 1
                        tab.record("text")
                        completed += 1
                    armed = False
                except Interrupted:
                    interrupts += 1
                read += len(reader.drain())
            holes = len(rings(os.environ["TABA_AGENT"])) > 1
            for name in rings(os.environ["TABA_AGENT"]):
                try:
                    read += len(Reader(name).drain(past_holes=True))
                except ring.MalformedRing:
                    pass  # interrupted while it was made
            print(json.dumps([completed, interrupts, read, client.stats()["dropped"], holes]))
            """,
            TABA_RING_BYTES=str(1 << 18),
        )
        completed, interrupts, read, dropped, holes = json.loads(out)
        self.assertGreater(interrupts, 20)
        # an interrupted record may have been completed just before the exception
        self.assertGreaterEqual(read + dropped, completed)
        self.assertLessEqual(read, completed + interrupts)
        if self.accelerated:
            self.assertFalse(holes)

    def test_a_signal_handler_may_record(self) -> None:
        producer = self.producer()
        tab, text = producer.tab("c", "CounterGroup"), producer.tab("b", "Buffer")
        handled = 0

        def record(number: int, frame: Any) -> None:
            nonlocal handled
            handled += 1
            tab.inc()
            text.record("from the handler")

        self.addCleanup(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, record))
        self.addCleanup(signal.setitimer, signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        for _ in range(5_000):
            tab.inc()
            text.record("from the loop")
            if handled > 100:
                break
        signal.setitimer(signal.ITIMER_REAL, 0)
        events = self.events()
        dropped = producer.stats()["dropped_by_reason"]
        loops = sum(event.value == "from the loop" for event in events)
        expected = 2 * loops + 2 * handled
        self.assertFalse(set(dropped) - {"reentrant", "bytes_full", "ring_full"})
        if "bytes_full" not in dropped and "ring_full" not in dropped:
            self.assertEqual(len(events) + producer.stats()["dropped"], expected)
