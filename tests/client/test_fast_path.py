"""What a record of pure Python takes at most, counted and not timed: calls, and steps of the interpreter; and the words that it stores."""

from __future__ import annotations

import os
import sys
from collections import Counter
from types import FrameType
from typing import Any
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from taba import ring
from taba.bounds import MIN_RING_BYTES
from taba.client import own_ring, pure
from tests.client.cases import ClientCase
from tests.examples import examples

MOST_STEPS = 75  # of the interpreter's, for record(1.0): 66 with CPython 3.11
TOOL = 4  # of sys.monitoring: one that nobody has a claim to
RECORDS = MIN_RING_BYTES // 32  # of the smallest ring


def steps_of(record: Any) -> int:
    """Steps of the interpreter within the code of a method that records, for one record(1.0)."""
    steps = 0

    def step(*_: Any) -> None:
        nonlocal steps
        steps += 1

    if sys.version_info >= (3, 12):
        seen = sys.monitoring
        seen.use_tool_id(TOOL, "steps")
        try:
            seen.register_callback(TOOL, seen.events.INSTRUCTION, step)
            seen.set_local_events(TOOL, record.__func__.__code__, seen.events.INSTRUCTION)
            record(1.0)
            seen.set_local_events(TOOL, record.__func__.__code__, 0)
        finally:
            seen.free_tool_id(TOOL)
        return steps

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            step()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        record(1.0)
    finally:
        sys.settrace(before)
    return steps


class FastPathTests(ClientCase):
    accelerated = False

    def setUp(self) -> None:
        super().setUp()
        if not own_ring.IS_ORDERED:
            self.skipTest("every record passes through the lock here")

    def test_a_record_is_one_call_that_reads_the_clock_and_no_more_steps_than_it_took(self) -> None:
        record = self.producer().tab("c", "CounterGroup").record
        for _ in range(3):
            record(1.0)
        called = Counter[str]()

        def profile(frame: FrameType, event: str, what: Any) -> None:
            if event in ("call", "c_call"):
                called[frame.f_code.co_name if event == "call" else what.__name__] += 1

        before = sys.getprofile()
        sys.setprofile(profile)
        try:
            record(1.0)
        finally:
            sys.setprofile(before)
        steps = steps_of(record)
        del called["setprofile"]
        self.assertEqual(called, {"record": 1, "time": 1})
        self.assertTrue(20 < steps <= MOST_STEPS, steps)
        self.assertEqual([event.value for event in self.events()], [1.0] * 5)

    def test_a_tab_makes_its_commit_word_once_a_lap(self) -> None:
        producer = self.producer(TABA_RING_BYTES=str(MIN_RING_BYTES))
        tabs = [producer.tab(name, "CounterGroup") for name in ("a", "b")]
        made: list[int] = []

        def as_mark(commit: int) -> float:
            made.append(commit)
            return own_ring.as_mark(commit)

        read = Counter[tuple[str, float]]()
        with mock.patch.object(pure, "as_mark", as_mark):
            for number in range(3 * RECORDS // 2):
                for tab in tabs:
                    tab.record(float(number))
                if number % 256 == 255:
                    read.update((event.tab, event.value) for event in self.events())
        read.update((event.tab, event.value) for event in self.events())
        self.assertEqual(read, {(name, float(number)): 1 for name in "ab" for number in range(3 * RECORDS // 2)})
        self.assertEqual(producer.stats()["dropped"], 0)
        self.assertEqual(len(made), len(set(made)), made)
        self.assertEqual({ring.split_commit(commit).lap for commit in made}, {1, 2, 3})

    def test_what_is_said_anew_of_a_tab_amid_a_lap_holds_for_its_next_record(self) -> None:
        producer = self.producer()
        tab = producer.tab("c", "CounterGroup")
        for _ in range(3):
            tab.record(1.0)
        producer.tab("c", "CounterGroup", unit="s")
        for _ in range(3):
            tab.record(1.0)
        reader = self.reader(producer)
        where = ring.layout(reader.header.size)
        with open(reader.path, "rb") as file:
            content = file.read()
        words = memoryview(content)[where.record_offset :].cast("Q")
        commits = [ring.split_commit(words[3 * slot + 2]).tab for slot in range(6)]
        self.assertEqual(commits, [0, 0, 0, 1, 1, 1])
        self.assertEqual([entry.unit for entry in reader.tabs()], ["", "s"])

    def test_a_child_that_c_code_forks_while_the_commit_word_is_made_has_a_ring_of_its_own(self) -> None:
        producer = self.producer()
        tab = producer.tab("c", "CounterGroup")
        tab.record(1.0)  # makes the ring; the next one makes the commit word
        parents = self.reader(producer)

        def as_mark(commit: int) -> float:
            producer._port._guard[0] = 0  # as the system does
            return own_ring.as_mark(commit)

        with mock.patch.object(pure, "as_mark", as_mark):
            tab.record(2.0)
        with open(parents.path, "rb") as file:
            content = file.read()
        where = ring.layout(len(content))
        words = memoryview(content)[where.record_offset :].cast("Q")
        self.assertEqual([ring.split_commit(words[3 * slot + 2]).lap for slot in range(2)], [1, 0])
        self.assertNotEqual(producer.stats()["ring"], os.path.basename(parents.path))
        self.assertEqual(producer.stats()["recorded"], 1)

    @examples(300)
    @given(st.integers(0, 2**64 - 1) | st.integers(0x7FF0 << 48, (0x7FF1 << 48) - 1))
    def test_a_commit_word_as_a_float_stores_the_same_bits(self, commit: int) -> None:
        words = memoryview(bytearray(8)).cast("Q")
        memoryview(words).cast("B").cast("d")[0] = own_ring.as_mark(commit)
        self.assertEqual(words[0], commit)
