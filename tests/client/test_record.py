"""What is recorded is read; what cannot be recorded is dropped and counted."""

from __future__ import annotations

import math
import os
import re
import time
from decimal import Decimal
from fractions import Fraction
from typing import Any
from unittest import mock

import msgpack
import numpy
from hypothesis import given
from hypothesis import strategies as st

from taba import bounds, ring
from taba.bounds import MAX_EXACT_INT, MAX_TIME, MAX_VALUE_BYTES, MAX_VALUE_DEPTH, MIN_RING_BYTES
from taba.client import encode, pure
from taba.client.producer import Producer
from tests.client.cases import ClientCase, accelerator, both
from tests.client.reading import rings
from tests.examples import examples
from tests.patience import PATIENCE_SECONDS

SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=9) | st.integers(-99, 99), inner, max_size=20)
)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


@both
class RecordTests(ClientCase):
    def test_each_way_to_record_is_an_event(self) -> None:
        producer = self.producer()
        producer.tab("c", "CounterGroup").inc()
        producer.tab("c", "CounterGroup").inc(5)
        producer.tab("p", "PercentileGroup").observe(2.5)
        producer.tab("g", "Gauge").set(17)
        producer.tab("u", "UpDown").inc()
        producer.tab("u", "UpDown").dec()
        producer.tab("u", "UpDown").dec(2.5)
        producer.tab("u", "UpDown").dec(3)
        producer.tab("b", "Buffer").record("nightly", time=1763850000.0)
        producer.tab("b", "Buffer").record("daily", 1763850000)
        producer.tab("c", "CounterGroup").inc(n=2, time=5.5)
        read = [(event.tab, event.type, event.value) for event in self.events(release=False)]
        self.assertEqual(
            read,
            [
                ("c", "CounterGroup", 1.0),
                ("c", "CounterGroup", 5.0),
                ("p", "PercentileGroup", 2.5),
                ("g", "Gauge", 17.0),
                ("u", "UpDown", 1.0),
                ("u", "UpDown", -1.0),
                ("u", "UpDown", -2.5),
                ("u", "UpDown", -3.0),
                ("b", "Buffer", "nightly"),
                ("b", "Buffer", "daily"),
                ("c", "CounterGroup", 2.0),
            ],
        )
        self.assertEqual([event.time for event in self.events()][-3:], [1763850000.0, 1763850000.0, 5.5])
        self.assertEqual(producer.stats()["recorded"], 11)
        self.assertEqual(producer.stats()["tabs"], 5)

    def test_the_time_is_now(self) -> None:
        before = time.time()
        self.producer().tab("c", "CounterGroup").inc()
        (event,) = self.events()
        # the coarse clock lags by its resolution, and more where another takes the processor's time
        self.assertTrue(before - 0.1 <= event.time <= time.time() + 1e-3)

    def test_the_header_says_who_records(self) -> None:
        producer = self.producer("web/{env:WORKER}", WORKER="3")
        with mock.patch.dict(os.environ, {"WORKER": "3"}):  # it is asked again when the ring is made
            producer.tab("c", "CounterGroup").inc()
        header = self.reader(producer).header
        self.assertEqual((header.client, header.pid, header.is_accelerated), ("web/3", os.getpid(), self.accelerated))
        self.assertEqual(header.size, 1 << 20)
        self.assertEqual(producer.stats()["client"], "web/3")
        self.assertEqual(producer.stats()["ring_bytes"], 1 << 20)
        self.assertEqual(producer.stats()["accelerated"], self.accelerated)

    def test_no_ring_is_made_before_the_first_record(self) -> None:
        producer = self.producer()
        tab = producer.tab("c", "CounterGroup")
        self.assertEqual(rings(self.agent), [])
        tab.inc()
        self.assertEqual(len(rings(self.agent)), 1)

    def test_the_same_tab_is_the_same_object_and_one_entry(self) -> None:
        producer = self.producer()
        for _ in range(3):
            producer.tab("c", "CounterGroup").inc()
        producer.tab("d", "Gauge").set(1)
        self.assertIs(producer.tab("c", "CounterGroup"), producer.tab("c", "CounterGroup"))
        self.assertEqual(self.reader(producer).tabs(), [ring.TabEntry("CounterGroup", "c"), ring.TabEntry("Gauge", "d")])

    def test_values_come_back(self) -> None:
        producer = self.producer()
        tab = producer.tab("b", "Buffer")

        @examples(150)
        @given(VALUES)
        def comes_back(value: Any) -> None:
            tab.record(value)
            (event,) = self.events()
            expected = value
            if type(value) is int and abs(value) <= MAX_EXACT_INT:
                expected = float(value)
                self.assertIs(type(event.value), float)
            self.assertEqual(event.value, expected)
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                self.assertEqual(encode.encode(value, 1 << 20), msgpack.packb(value))

        comes_back()
        self.assertEqual(producer.stats()["dropped"], 0)

    def test_whole_numbers_up_to_the_bound_travel_as_floats_and_larger_ones_whole(self) -> None:
        tab = self.producer().tab("b", "Buffer")
        values = [MAX_EXACT_INT, -MAX_EXACT_INT, MAX_EXACT_INT + 1, -MAX_EXACT_INT - 1, 2**64 - 1, -(2**63), 0, True, False]
        for value in values:
            tab.record(value)
        read = [event.value for event in self.events()]
        self.assertEqual(read, values)
        self.assertEqual([type(value) for value in read], [float, float, int, int, int, int, float, bool, bool])

    def test_floats_that_are_no_numbers_are_recorded_as_they_are(self) -> None:
        tab = self.producer().tab("b", "Buffer")
        for value in (math.nan, math.inf, -math.inf, -0.0):
            tab.record(value)
        values = [event.value for event in self.events()]
        self.assertTrue(math.isnan(values[0]))
        self.assertEqual(values[1:3], [math.inf, -math.inf])
        self.assertEqual(math.copysign(1, values[3]), -1)

    def test_numbers_of_a_subclass_are_recorded_by_content_without_calling_it(self) -> None:
        class Odd(float):
            def __float__(self) -> Any:
                raise AssertionError

            __pos__ = __neg__ = __float__

        class OddInt(int):
            def __int__(self) -> Any:
                raise AssertionError

            __index__ = __float__ = __neg__ = __int__

        producer = self.producer()
        tab = producer.tab("u", "UpDown")
        tab.record(Odd(1.5))
        tab.record(OddInt(3))
        tab.dec(Odd(1.5))
        tab.dec(OddInt(3))
        tab.record([Odd(1.5), OddInt(3), OddInt(2**60)])
        tab.record(1.0, time=OddInt(7))
        self.assertEqual([event.value for event in self.events()], [1.5, 3.0, -1.5, -3.0, [1.5, 3, 2**60], 1.0])

    def test_what_msgpack_cannot_say_is_a_counted_drop(self) -> None:
        class Text(str):
            pass

        producer = self.producer()
        tab = producer.tab("b", "Buffer")
        tab.record(1.0)
        bad = [object(), {1, 2}, 2**64, -(2**63) - 1, "\ud800", Text("x"), {(1, 2): 3}, [object()], {"a": {"b": 1j}}, bytearray(b"x")]
        for value in bad:
            tab.record(value)
        producer.tab("u", "UpDown").dec("x")
        self.assertEqual(producer.stats()["dropped_by_reason"], {"value_type": len(bad) + 1})
        self.assertEqual(self.reader(producer).header.drops, {"value_type": len(bad) + 1})
        self.assertEqual([event.value for event in self.events()], [1.0])

    def test_a_value_at_its_bound_is_recorded_and_one_past_it_dropped(self) -> None:
        for ring_bytes, most in ((1 << 20, MAX_VALUE_BYTES), (MIN_RING_BYTES, MIN_RING_BYTES // 32)):
            producer = self.producer(TABA_RING_BYTES=str(ring_bytes))
            tab = producer.tab("b", "Buffer")
            tab.record("x" * (most - 3))  # its length takes three bytes
            tab.record("x" * (most - 2))
            tab.record(b"x" * most)
            tab.record("ä" * most)
            tab.record([1.0] * most)
            self.assertEqual([event.value for event in self.reader(producer).drain()], ["x" * (most - 3)])
            self.assertEqual(producer.stats()["dropped_by_reason"], {"value_too_large": 4})

    def test_nesting_at_its_bound_is_recorded_and_one_past_it_dropped(self) -> None:
        producer = self.producer()
        tab = producer.tab("b", "Buffer")
        tab.record(nested(MAX_VALUE_DEPTH))
        tab.record(nested(MAX_VALUE_DEPTH + 1))
        endless: list[Any] = []
        endless.append(endless)
        tab.record(endless)
        self.assertEqual([event.value for event in self.events()], [nested(MAX_VALUE_DEPTH)])
        self.assertEqual(producer.stats()["dropped_by_reason"], {"value_too_large": 2})

    def test_a_time_at_its_bounds_is_recorded_and_one_past_them_a_counted_drop(self) -> None:
        producer = self.producer()
        tab = producer.tab("c", "CounterGroup")
        past = (-1, -1e-9, MAX_TIME * (1 + 2**-52), MAX_TIME + 1, 1e18, 2**70)
        for bad in (math.nan, math.inf, -math.inf, "now", True, 10**400, object(), numpy.float64("nan"), numpy.array([1, 2]), *past):
            tab.inc(time=bad)
            tab.record("x", bad)
        for good in (0, -0.0, MAX_TIME, int(MAX_TIME), numpy.int32(7), numpy.float32(1.5), Decimal("2.5")):
            tab.inc(time=good)
        self.assertEqual(producer.stats()["dropped_by_reason"], {"bad_time": 30})
        self.assertEqual([event.time for event in self.events()], [0.0, 0.0, MAX_TIME, MAX_TIME, 7.0, 1.5, 2.5])

    def test_what_says_that_it_is_a_number_is_recorded_as_one(self) -> None:
        producer = self.producer()
        tab = producer.tab("c", "UpDown")

        class Reentrant:
            def __float__(self) -> Any:
                tab.record(-1.0)
                return 8.0

        scalars = (numpy.int64(3), numpy.uint8(4), numpy.float32(1.5), numpy.float64(2.5), numpy.array(5.5), numpy.array(6))
        for number in (*scalars, Decimal("0.25"), Fraction(1, 2), Reentrant(), numpy.uint64(2**63)):
            tab.record(number)
        tab.dec(numpy.int64(3))
        tab.dec(Decimal("0.5"))
        tab.inc(numpy.float32(1.5))
        self.assertEqual(
            [event.value for event in self.events()], [3.0, 4.0, 1.5, 2.5, 5.5, 6.0, 0.25, 0.5, -1.0, 8.0, 2**63, -3.0, -0.5, 1.5]
        )
        self.assertEqual(producer.stats()["dropped"], 0)

    def test_what_fails_to_say_its_number_is_a_counted_drop_and_never_raises(self) -> None:
        class Failing:
            def __init__(self, *raised: Any) -> None:
                self.raised = raised

            def __index__(self) -> None:
                raise self.raised[0]

            def __float__(self) -> None:
                raise self.raised[-1]

        class Wrong:
            __index__ = None

            def __float__(self) -> Any:
                return "1"

        class Hiding(type):
            def __getattribute__(cls, name: str) -> None:
                raise RuntimeError(name)

        class Hidden(metaclass=Hiding):
            pass

        producer = self.producer()
        tab = producer.tab("c", "UpDown")
        tab.inc()
        bad = [Failing(TypeError()), Failing(ValueError(), MemoryError()), Wrong(), Hidden(), numpy.array([1, 2]), numpy.array("x")]
        for value in bad:
            tab.record(value)
            tab.dec(value)
        self.assertEqual(producer.stats()["dropped_by_reason"], {"value_type": 2 * len(bad)})
        for interrupting in (Failing(KeyboardInterrupt()), Failing(TypeError(), SystemExit())):
            # of a signal handler, say: not Taba's to keep
            self.assertRaises((KeyboardInterrupt, SystemExit), tab.record, interrupting)
            self.assertRaises((KeyboardInterrupt, SystemExit), tab.dec, interrupting)
            self.assertRaises((KeyboardInterrupt, SystemExit), tab.inc, 1, interrupting)
        tab.inc()
        self.assertEqual([event.value for event in self.events()], [1.0, 1.0])

    def test_wrong_arguments_are_a_type_error(self) -> None:
        tab = self.producer().tab("c", "CounterGroup")
        for call in (lambda: tab.record(), lambda: tab.record(1, 2, 3), lambda: tab.record(1, when=2), lambda: tab.record(1, value=2)):
            self.assertRaises(TypeError, call)
        self.assertRaises(AttributeError, getattr, tab, "observe")
        self.assertRaises(AttributeError, setattr, tab, "other", 1)

    def test_the_byte_ring_wraps(self) -> None:
        producer = self.producer(TABA_RING_BYTES=str(MIN_RING_BYTES))
        tab = producer.tab("b", "Buffer")
        tab.record(1.0)
        reader = self.reader(producer)
        for i in range(3000):
            value = chr(97 + i % 26) * (i % 800)
            tab.record(value)
            if i % 7 == 0:
                tab.record(float(i))
            read = [event.value for event in reader.drain() if isinstance(event.value, str)]
            self.assertEqual(read, [value])
        self.assertEqual(producer.stats()["dropped"], 0)

    def test_laps_go_on(self) -> None:
        producer = self.producer(TABA_RING_BYTES=str(MIN_RING_BYTES))
        tab = producer.tab("c", "CounterGroup")
        tab.inc()
        reader = self.reader(producer)
        count = len(reader.drain())
        for i in range(7):
            for _ in range(1500):
                tab.inc(i)
            count += len(reader.drain())
        self.assertEqual((count, producer.stats()["recorded"]), (10501, 10501))


@both
class FullRingTests(ClientCase):
    def full_ring(self, **environment: str) -> Any:
        producer = self.producer(TABA_RING_BYTES=str(MIN_RING_BYTES), **environment)
        tab = producer.tab("c", "CounterGroup")
        for _ in range(2048):
            tab.inc()
        self.assertEqual(producer.stats()["dropped"], 0)
        return producer, tab

    def test_a_full_ring_drops_and_counts(self) -> None:
        producer, tab = self.full_ring()
        for _ in range(100):
            tab.inc()
        reader = self.reader(producer)
        self.assertEqual(producer.stats()["dropped_by_reason"], {"ring_full": 100})
        self.assertEqual(reader.header.drops, {"ring_full": 100})
        self.assertEqual(len(reader.drain(most=48)), 48)
        for _ in range(50):
            tab.inc()
        self.assertEqual(producer.stats()["dropped_by_reason"], {"ring_full": 102})
        self.assertEqual(len(reader.drain()), 2048)

    def test_a_full_byte_ring_drops_values_but_not_floats(self) -> None:
        producer = self.producer(TABA_RING_BYTES=str(MIN_RING_BYTES))
        tab = producer.tab("b", "Buffer")
        for _ in range(9):
            tab.record("x" * 998)
        tab.record(1.0)
        self.assertEqual(producer.stats()["dropped_by_reason"], {"bytes_full": 1})
        self.assertEqual(len(self.reader(producer).drain()), 9)
        tab.record("x" * 998)
        self.assertEqual(len(self.events()), 1)

    def test_a_directory_that_is_full_drops_the_tabs_beyond_it(self) -> None:
        producer = self.producer(TABA_RING_BYTES=str(MIN_RING_BYTES))
        for i in range(200):
            producer.tab(f"{i:046d}", "Buffer").record(1.0)  # 8 + 6 + 46 bytes: 64 of them fit
        for i in range(200):
            producer.tab(f"{i:046d}", "Buffer").record(1.0)
        self.assertEqual(producer.stats()["dropped_by_reason"], {"directory_full": 272})
        self.assertEqual(producer.stats()["tabs"], 64)
        self.assertEqual(len(self.events()), 128)

    def test_a_retired_ring_is_left_and_what_is_unknown_counted(self) -> None:
        producer = self.producer()
        tab = producer.tab("c", "CounterGroup")
        tab.inc()
        first = self.reader(producer)
        first.drain()
        tab.inc()
        first.write(ring.RETIRED_OFFSET, 1)
        for _ in range(1100):
            tab.inc()
        self.assertEqual(len(rings(self.agent)), 2)
        second = self.reader(producer)
        self.assertNotEqual(first.path, second.path)
        unknown = producer.stats()["dropped_by_reason"]["unknown"]
        self.assertEqual(second.header.drops, {"unknown": unknown})
        self.assertEqual(len(second.drain()) + unknown, 1101)
        self.assertFalse(first.is_held())
        self.assertTrue(second.is_held())

    def test_a_full_ring_whose_name_is_gone_is_left(self) -> None:
        producer, tab = self.full_ring()
        os.unlink(self.reader(producer).path)
        tab.inc()
        self.assertEqual(producer.stats()["dropped_by_reason"], {"unknown": 2048})
        self.assertEqual([event.value for event in self.events()], [1.0])

    def test_a_ring_that_a_hole_filled_is_left_for_a_new_one(self) -> None:
        producer, tab = self.full_ring()
        reader = self.reader(producer)
        where = ring.layout(MIN_RING_BYTES)
        reader.write(where.record_offset + 16, 0)  # the first record was never committed
        tab.inc()  # the first look
        self.assertEqual(producer.stats()["dropped_by_reason"], {"ring_full": 1})
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(rings(self.agent)) == 1 and time.monotonic() < deadline:
            time.sleep(0.05)
            tab.inc()
        self.assertEqual(len(rings(self.agent)), 2)
        self.assertFalse(reader.is_held())
        self.assertEqual(len(reader.drain(past_holes=True)), 2047)
        self.assertNotIn("unknown", producer.stats()["dropped_by_reason"])

    def test_a_hole_is_left_before_it_costs_an_event(self) -> None:
        if self.accelerated:
            return  # leaves no holes
        producer = self.producer(TABA_RING_BYTES=str(MIN_RING_BYTES))
        tab = producer.tab("c", "CounterGroup")
        tab.inc()
        reader = self.reader(producer)
        reader.drain()
        next(producer._port._ring.free)  # reserved by who never came back
        for _ in range(1300):
            tab.inc()
        assert producer._hole is not None
        producer._hole = (1, producer._hole[1] - 1)  # seen; a second passes
        producer._port._half_looked -= 1
        for _ in range(1700):
            tab.inc()
        self.assertEqual(producer.stats()["dropped"], 0)
        self.assertEqual(len(rings(self.agent)), 2)
        self.assertEqual(len(self.events(past_holes=True)), 3000)

    def test_a_full_ring_of_a_slow_agent_is_kept(self) -> None:
        _, tab = self.full_ring()
        deadline = time.monotonic() + 1.3
        while time.monotonic() < deadline:
            tab.inc()
        self.assertEqual(len(rings(self.agent)), 1)


class AcceleratorTests(ClientCase):
    accelerated = True

    def test_it_writes_the_same_bytes_as_pure_python(self) -> None:
        contents = []
        for port in (accelerator, pure):
            producer = Producer(port)
            producer.start(None, {**self.environment, "TABA_RING_BYTES": str(MIN_RING_BYTES)})
            self.addCleanup(producer.stop)
            tab = producer.tab("b", "Buffer")
            for value in (1.0, "text", 2**60, [1, None, {"a": b"x"}]):
                tab.record(value, 7.0)
            reader = self.reader(producer)
            self.assertEqual(reader.header.is_accelerated, port is accelerator)
            contents.append(os.pread(reader.descriptor, MIN_RING_BYTES, ring.HEADER_BYTES))
        self.assertEqual(*contents)

    def test_every_number_of_the_accelerator_is_the_rings(self) -> None:
        for name, value in accelerator.LAYOUT.items():
            self.assertEqual(value, getattr(ring, name, getattr(bounds, name, None)), name)
        self.assertEqual(accelerator.REASONS, ring.DROP_REASONS)

    def test_no_number_of_the_layout_stands_outside_what_is_compared(self) -> None:
        with open(os.path.join(os.path.dirname(ring.__file__), "client", "_layout.h")) as file:
            defined = set(re.findall(r"NUMBER\(([A-Z_]+), [0-9]+\)", file.read()))
        self.assertEqual(defined | {"MAX_EXACT_INT", "MAX_TIME"}, set(accelerator.LAYOUT))
