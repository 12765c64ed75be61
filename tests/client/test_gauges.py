"""A Gauge goes up and down by what its process set last, and follows functions; a name has one Type."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from taba import ring
from taba.client import producer as producers
from taba.client.own_ring import NO_CHUNK
from tests.client.cases import ClientCase, both
from tests.examples import examples

CHANGES = st.lists(
    st.tuples(st.sampled_from(["set", "inc", "dec", "record"]), st.integers(-1000, 1000) | st.floats(-1e6, 1e6)), max_size=30
)


@both
class GaugeTests(ClientCase):
    def gauge(self, name: Any = "g") -> Any:
        return self.producer().tab(name, "Gauge")

    def values(self) -> Any:
        return [event.value for event in self.events()]

    def test_it_goes_up_and_down_from_what_was_set_last_and_from_nothing(self) -> None:
        gauge = self.gauge()
        gauge.inc()
        gauge.set(10)
        gauge.inc(2.5)
        gauge.dec()
        gauge.dec(n=3, time=77.0)
        gauge.record(4)
        gauge.inc()
        events = self.events()
        self.assertEqual([event.value for event in events], [1.0, 10.0, 12.5, 11.5, 8.5, 4.0, 5.0])
        self.assertEqual(events[4].time, 77.0)

    def test_any_changes_come_to_what_they_say(self) -> None:
        producer = self.producer()
        made = iter(range(10_000))

        @examples(60)
        @given(CHANGES)
        def come_to(changes: Any) -> None:
            gauge, value, expected = producer.tab(f"g{next(made)}", "Gauge"), 0.0, []
            for how, n in changes:
                getattr(gauge, how)(n)
                value = value + n if how == "inc" else value - n if how == "dec" else float(n)
                expected.append(value)
            self.assertEqual(self.values(), expected)
            self.assertEqual(gauge.net, value)

        come_to()

    def test_numbers_of_other_types_change_it_and_what_is_none_is_a_counted_drop(self) -> None:
        producer = self.producer()
        gauge = producer.tab("g", "Gauge")
        gauge.inc(Decimal("1.5"))
        gauge.set(2**60)
        gauge.inc(2**60)
        for bad in ("1", None, True, [1], 10**400):
            gauge.inc(bad)
            gauge.dec(bad)
        gauge.inc(1, time="yesterday")
        self.assertEqual(self.values(), [1.5, 2**60, 2.0**61])
        self.assertEqual(producer.stats()["dropped_by_reason"], {"value_type": 10, "bad_time": 1})
        self.assertEqual(gauge.net, 2.0**61)

    def test_after_what_is_no_number_it_begins_at_nothing(self) -> None:
        gauge = self.gauge()
        for odd in ("draining", None, math.nan, math.inf, True):
            gauge.set(5)
            gauge.set(odd)
            gauge.inc()
            self.assertEqual(self.values()[-1], 1.0, odd)

    def test_after_what_is_beyond_all_floats_too(self) -> None:
        gauge = self.gauge()
        for beyond in (10**400, -(10**400), 1 << 1024):
            gauge.set(5)
            gauge.set(beyond)
            self.assertEqual(gauge.net, 0.0)
            gauge.inc()
            self.assertEqual(self.values()[-1], 1.0)

    def test_what_finds_no_room_changes_it_all_the_same(self) -> None:
        gauge = self.producer(TABA_RING_BYTES=str(1 << 16)).tab("g", "Gauge")
        records = ring.layout(1 << 16).records
        for _ in range(records + 5):
            gauge.inc()
        self.assertEqual(len(self.values()), records)
        gauge.inc()
        self.assertEqual(self.values(), [records + 6.0])

    def test_threads_lose_no_change(self) -> None:
        gauge = self.gauge()

        def change() -> None:
            for _ in range(500):
                gauge.inc(2)
                gauge.dec()

        threads = [threading.Thread(target=change) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        values = self.values()
        self.assertEqual((len(values), values[-1], gauge.net), (4000, 2000.0, 2000.0))

    def test_a_forked_child_begins_at_nothing(self) -> None:
        gauge = self.gauge()
        gauge.set(5)
        self.values()
        child = os.fork()
        if child == 0:
            gauge.inc()
            os._exit(0)
        os.waitpid(child, 0)
        gauge.inc()
        self.assertEqual(sorted(self.values()), [1.0, 6.0])

    def test_a_signal_handler_changes_it_too(self) -> None:
        gauge, handled = self.gauge(), []

        def change(number: Any, frame: Any) -> None:
            handled.append(1)
            gauge.inc(1000)

        before = signal.signal(signal.SIGALRM, change)
        self.addCleanup(signal.signal, signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        done = 0
        while len(handled) < 20:
            gauge.inc()
            done += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.assertEqual(gauge.net, done + 1000 * len(handled))


@both
class FunctionTests(ClientCase):
    def test_it_is_read_at_once_and_says_so(self) -> None:
        producer = self.producer()
        gauge = producer.tab("g", "Gauge")
        gauge.set_function(lambda: 7)
        self.assertEqual([(event.tab, event.value) for event in self.events()], [("g", 7.0)])
        self.assertEqual((producer.stats()["functions"], producer.stats()["function_problem"]), (1, None))
        gauge.set_function(None)
        gauge.set_function(None)
        self.assertEqual(producer.stats()["functions"], 0)

    def test_records_of_any_tab_read_it_once_a_second(self) -> None:
        out = self.run_python(
            """
            import json, os, time
            from taba import client
            from tests.client.reading import read_all

            calls = []
            def depth():
                calls.append(time.monotonic())
                return 5 + len(calls)

            client.gauge("depth").set_function(depth)
            other = client.counter("other")
            events = []
            while len(calls) < 2:
                for _ in range(100):
                    other.inc()
                    client.tab("text", type="Buffer").record("x")
                events += read_all(os.environ["TABA_AGENT"])
                time.sleep(0.001)
            client.gauge("depth").set_function(None)
            events += read_all(os.environ["TABA_AGENT"])
            values = [event.value for event in events if event.tab == "depth"]
            stats = client.stats()
            print(json.dumps([values, calls[1] - calls[0], stats["recorded"], len(events), stats["dropped"]]))
            """
        )
        values, gap, recorded, read, dropped = json.loads(out)
        self.assertEqual(values, [6, 7])
        self.assertEqual((recorded, dropped), (read, 0))
        self.assertGreaterEqual(gap, 0.9)  # never more often: a coarse clock tells the second

    def test_what_it_raises_is_counted_and_named_and_the_others_are_read(self) -> None:
        producer = self.producer()

        def broken() -> None:
            raise KeyError("secret")

        producer.tab("a", "Gauge").set_function(broken)
        producer.tab("b", "Gauge").set_function(lambda: 1)
        producer.tab("c", "Gauge").set_function(lambda: object())
        producer.read_functions()
        stats = producer.stats()
        self.assertEqual(stats["dropped_by_reason"], {"function_raised": 2, "value_type": 2})
        self.assertEqual(stats["function_problem"], "a: KeyError")
        self.assertEqual([event.tab for event in self.events()], ["b", "b"])

    def test_what_a_signal_handler_raises_meanwhile_is_the_applications(self) -> None:
        class Overdue(Exception):
            pass

        def interrupt(number: Any, frame: Any) -> None:
            raise Overdue

        before = signal.signal(signal.SIGUSR1, interrupt)
        self.addCleanup(signal.signal, signal.SIGUSR1, before)
        producer = self.producer()
        gauge = producer.tab("g", "Gauge")
        gauge.set_function(lambda: 1)

        def interrupted() -> Any:
            os.kill(os.getpid(), signal.SIGUSR1)
            return 2

        self.assertRaises(Overdue, gauge.set_function, interrupted)
        self.assertEqual(producer.stats()["dropped"], 0)

    def test_a_signal_handlers_exception_where_reading_begins_lets_others_read(self) -> None:
        producer = self.producer()
        calls: list[int] = []
        producer.tab("g", "Gauge").set_function(lambda: calls.append(1))
        real = producer._reading

        class Interrupted:
            """As a lock, with a signal right behind its acquire()."""

            def acquire(self, *how: Any) -> bool:
                real.acquire(*how)
                raise KeyboardInterrupt

            release = staticmethod(real.release)
            _is_owned = staticmethod(real._is_owned)  # type: ignore[attr-defined]

        producer._reading = Interrupted()  # type: ignore[assignment]
        self.assertRaises(KeyboardInterrupt, producer.read_functions)
        producer._reading = real
        threads = [threading.Thread(target=producer.read_functions) for _ in range(2)]
        for thread in threads:
            thread.start()
            thread.join(60)
        self.assertEqual(len(calls), 3)

    def test_one_that_records_and_one_that_forks_come_to_an_end(self) -> None:
        producer = self.producer()
        counter = producer.tab("c", "CounterGroup")

        def busy() -> Any:
            counter.inc()
            child = os.fork()
            if child == 0:
                counter.inc(10)
                os._exit(0)
            os.waitpid(child, 0)
            return 3

        producer.tab("g", "Gauge").set_function(busy)
        found = sorted((event.tab, event.value) for event in self.events())
        once = [("c", 1.0), ("c", 10.0), ("g", 3.0)]
        self.assertEqual(found, sorted(once * max(1, len(found) // len(once))))  # where a fork takes long, it is time to read it again

    def test_a_forked_child_reads_it_as_its_own(self) -> None:
        producer = self.producer()
        producer.tab("pid", "Gauge").set_function(os.getpid)
        child = os.fork()
        if child == 0:
            producer.read_functions()
            os._exit(0)
        os.waitpid(child, 0)
        self.assertEqual({event.value for event in self.events()}, {float(os.getpid()), float(child)})

    def test_while_it_is_read_no_other_thread_reads_it_or_waits(self) -> None:
        producer = self.producer()
        gauge, counter = producer.tab("g", "Gauge"), producer.tab("c", "CounterGroup")
        inside, leave, calls = threading.Event(), threading.Event(), []

        def slow() -> Any:
            calls.append(1)
            if len(calls) > 1:
                inside.set()
                leave.wait(60)
            return 1

        gauge.set_function(slow)
        thread = threading.Thread(target=producer.read_functions)
        thread.start()
        self.assertTrue(inside.wait(60))
        producer.read_functions()
        counter.inc()
        self.assertEqual(len(calls), 2)
        leave.set()
        thread.join()
        self.assertIn(("c", 1.0), [(event.tab, event.value) for event in self.events()])

    def test_as_many_as_a_process_may_have_and_one_more(self) -> None:
        producer = self.producer()
        self.patch(producers, "MAX_FUNCTIONS", 3)
        for number in range(3):
            producer.tab(f"g{number}", "Gauge").set_function(lambda: 1)
        producer.tab("g1", "Gauge").set_function(lambda: 2)  # another for one that has one
        with self.assertRaisesRegex(ValueError, "g3.*3 functions"):
            producer.tab("g3", "Gauge").set_function(lambda: 1)
        producer.tab("g0", "Gauge").set_function(None)
        producer.tab("g3", "Gauge").set_function(lambda: 1)
        with self.assertRaisesRegex(TypeError, "without arguments"):
            producer.tab("g3", "Gauge").set_function(3)
        self.assertEqual(producer.stats()["functions"], 3)

    def test_without_functions_records_take_the_fast_path_again(self) -> None:
        producer = self.producer()
        gauge = producer.tab("g", "Gauge")
        gauge.set_function(lambda: 1)
        gauge.set_function(None)
        for number in range(5000):
            gauge.set(number)
        self.assertEqual([event.value for event in self.events()], [1.0, *map(float, range(5000))])
        if not self.accelerated:
            self.assertIsNot(producer._port._ring.chunk, NO_CHUNK)


@both
class OneTypeTests(ClientCase):
    def test_a_name_has_one_type_in_whichever_order(self) -> None:
        producer = self.producer()
        producer.tab("x", "CounterGroup")
        producer.tab("y", "Gauge")
        for name, type, other in (("x", "Gauge", "CounterGroup"), ("y", "CounterGroup", "Gauge"), ("x", "Buffer", "CounterGroup")):
            with self.assertRaisesRegex(ValueError, f"'{name}'.*{other}.*{type}"):
                producer.tab(name, type)
        self.assertEqual(producer.tab("x", "CounterGroup").type, "CounterGroup")

    def test_so_do_labelled_ones(self) -> None:
        producer = self.producer()
        gauge = producer.tab('x{a="1"}', "Gauge")
        counter = producer.tab("x", "CounterGroup")  # each Tab is of its own Type
        with self.assertRaisesRegex(ValueError, "Gauge.*CounterGroup"):
            counter.labels(a=1)
        self.assertEqual(counter.labels(a=2).type, "CounterGroup")
        with self.assertRaisesRegex(ValueError, "CounterGroup.*Gauge"):
            producer.tab('x{a="2"}', "Gauge")
        self.assertEqual(gauge.labels(a=1), gauge)

    def test_whoever_records_what_others_chose_may_have_both(self) -> None:
        producer = self.producer()
        producer.tab("x", "CounterGroup", may_conflict=True).inc()
        producer.tab("x", "Gauge", may_conflict=True).set(2)
        self.assertEqual([(event.type, event.value) for event in self.events()], [("CounterGroup", 1.0), ("Gauge", 2.0)])
        self.assertIs(producer.tab("x", "Gauge", may_conflict=True), producer.tab("x", "Gauge", may_conflict=True))

    def test_what_is_refused_leaves_no_trace(self) -> None:
        producer = self.producer()
        producer.tab("x", "CounterGroup").inc()
        self.assertRaises(ValueError, producer.tab, "x", "UpDown", "seconds")
        producer.tab("x", "CounterGroup").inc()
        self.assertEqual(self.reader(producer).tabs(), [ring.TabEntry("CounterGroup", "x")])
