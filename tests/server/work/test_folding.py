"""Which Events are at fault, when a fold of many raises: those alone, and the State is that of the others."""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from typing import Any
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.handlers import ArrayHandler, Handler
from taba.handlers.cardinality import Cardinality
from taba.handlers.opaque import unpack_sketch
from taba.handlers.topk import TopK
from taba.server.keys import ABSENT, Framed
from taba.server.work import folding as module
from taba.server.work.applying import MANY_EVENTS
from taba.server.work.culprits import Turn
from taba.server.work.faults import MAX_DETAIL, sentence
from taba.server.work.folding import fold_type
from taba.server.work.pace import EVENTS, Pause
from taba.server.work.rows import NEWER_STATE, Folded, Work
from tests.examples import examples

from ..samples import Spilling, Sum


class Lengths(Handler):
    """The lengths of all values; half changed when one has none."""

    type = "Lengths"

    def new_state(self) -> Any:
        return []

    def fold(self, state: Any, events: Any, now: float) -> Any:
        for value in events.values:
            state.append(-1)
            state[-1] = len(value)
        return state


class Mixed(Handler):
    """The greatest value; it is two of them that cannot be compared, not one."""

    type = "Mixed"

    def new_state(self) -> Any:
        return ""

    def fold(self, state: Any, events: Any, now: float) -> Any:
        return max([state, *events.values])


class Never(Lengths):
    def fold(self, state: Any, events: Any, now: float) -> Any:
        raise ValueError(f"{len(events.values)}")


class Unreadable(Lengths):
    def load(self, content: bytes) -> Any:
        raise ValueError("unreadable")


def folded(
    handler: Handler, *rows: Sequence[Any], states: Sequence[Framed] = (), is_own: bool = False, in_lots: bool = False, **more: Any
) -> Folded:
    """Each row's values into a State of its own; `in_lots`: as a Handler of Taba's own that takes a while for each."""
    columns: list[Any] = []
    for row, values in enumerate(rows):
        packed: Any = list(values)
        if isinstance(handler, ArrayHandler):
            packed = struct.pack(f"<{len(values)}d", *values)
        columns.append((row, struct.pack(f"<{len(values)}d", *[1.0] * len(values)), packed))
    parts = {row: [ABSENT] * getattr(handler, "further_parts", 0) for row in range(len(rows))}
    work = Work(states or [ABSENT] * len(rows), columns)
    steps: Any = fold_type(handler, isinstance(handler, ArrayHandler), work, 1.0, is_own, **more)
    if in_lots:
        steps = module.fold_in_lots(handler, isinstance(handler, ArrayHandler), work, 1.0)
    sent: Any = None
    try:
        while True:
            need = steps.send(sent)
            sent = None if isinstance(need, Pause) else {row: parts[row] for row in need}
    except StopIteration as stop:
        answer: Folded = stop.value
        return answer


def spoiled(outcome: Folded, row: int = 0) -> list[int]:
    return sorted(place for _, places in outcome.spoiled.get(row, []) for place in places)


class Kinds(Handler):
    """The kinds of all times and values."""

    type = "Kinds"

    def new_state(self) -> Any:
        return []

    def fold(self, state: Any, events: Any, now: float) -> Any:
        return [*state, *[[time, type(time).__name__, value, type(value).__name__] for time, value in zip(*events, strict=True)]]


class InPieces(SynchronousTestCase):
    """Many Events of one State are folded so many at a time: what comes of it is what it were at once."""

    def setUp(self) -> None:
        self.patch(module, "MOST_AT_ONCE", 1)  # so that a piece is EVENTS of one State

    def check(self, handler: Handler, *rows: Sequence[Any], **more: Any) -> Folded:
        whole, parted = folded(handler, *rows, is_own=True, **more), folded(handler, *rows, in_lots=True, **more)
        self.assertEqual((parted.states, parted.parts), (whole.states, whole.parts))
        self.assertEqual(parted.failed.keys(), whole.failed.keys())
        self.assertEqual([spoiled(parted, row) for row in range(len(rows))], [spoiled(whole, row) for row in range(len(rows))])
        return parted

    @examples(30)
    @given(st.lists(st.lists(st.sampled_from(["a", "bb", "ccc", 1, 2]), min_size=1, max_size=5 * EVENTS), min_size=1, max_size=4))
    def test_the_others_of_whatever_events_are_at_fault_are_folded(self, rows: list[list[Any]]) -> None:
        self.check(Lengths(), *rows)

    def test_further_parts_and_pieces_of_which_nothing_is_right_and_one_event_alone_behind_them(self) -> None:
        values = [float(number) for number in range(100, 101 + 5 * EVENTS)]
        found = folded(Spilling(), values, [1.0], [2.0] * 3 * EVENTS, in_lots=True)  # when it spills hangs on the pieces
        for row, expected in enumerate((values, [1.0], [2.0] * 3 * EVENTS)):
            kept = b"".join([*found.parts.get(row, []), found.states[row]])
            self.assertEqual(sorted(value for (value,) in struct.iter_unpack("<d", kept)), expected)
        self.assertEqual(self.check(Sum(), [1.0] * (EVENTS + 1)).states.keys(), {0})
        found = self.check(Lengths(), ["a"] * EVENTS + [1] * EVENTS + ["b"] * EVENTS + [1])
        self.assertEqual(spoiled(found), [*range(EVENTS, 2 * EVENTS), 3 * EVENTS])
        self.check(Lengths(), [1] * EVENTS + ["a"] * EVENTS)
        self.check(Lengths(), [1] * 3 * EVENTS)

    def test_where_a_state_cannot_be_read_its_row_fails_and_others_do_not(self) -> None:
        state = Framed(1, 0, b"\xff")
        found = self.check(Lengths(), ["a"] * 3 * EVENTS, ["b"] * 3 * EVENTS, ["c"], states=[state, ABSENT, ABSENT])
        self.assertEqual((set(found.failed), set(found.states)), ({0}, {1, 2}))
        newer = self.check(Lengths(), ["a"] * 3 * EVENTS, ["b"], states=[Framed(9, 0, b"x"), ABSENT])
        self.assertEqual(newer.failed[0].reason, NEWER_STATE)

    def test_sketches_of_pieces_are_those_of_the_whole(self) -> None:
        values = [f"value {number % 50}" for number in range(400)]
        for handler in (Cardinality(), TopK()):
            shown = [
                {key: value for key, value in handler.project(handler.load(found.states[0]), 1.0).items() if key != "_sketch"}
                for found in (folded(handler, values, is_own=True), folded(handler, values, in_lots=True))
            ]
            self.assertEqual(*shown)


class RunsOfOneRow(SynchronousTestCase):
    def test_events_of_several_runs_are_floats_in_their_order_however_many_a_run_has(self) -> None:
        for counts in ((1, 1, 1), (MANY_EVENTS, 1, MANY_EVENTS), (1, MANY_EVENTS)):
            numbers = [float(number) for number in range(sum(counts))]
            columns, start = [], 0
            for count in counts:
                packed = struct.pack(f"<{count}d", *numbers[start : start + count])
                columns += [(0, packed, packed), (1, struct.pack("<d", 0.0), struct.pack("<d", 0.0))]
                start += count
            steps = fold_type(Kinds(), False, Work([ABSENT, ABSENT], columns), 1.0)
            with self.assertRaises(StopIteration) as stopped:
                next(steps)
            outcome: Folded = stopped.exception.value
            self.assertEqual(Kinds().load(outcome.states[0]), [[number, "float", number, "float"] for number in numbers])
            self.assertEqual(len(Kinds().load(outcome.states[1])), len(counts))


class Sketches(SynchronousTestCase):
    def test_a_sketch_is_read_once_where_it_is_folded_and_one_that_is_none_fails_as_it_does_where_it_is_loaded(self) -> None:
        for handler in (Cardinality(), TopK()):
            good = Framed(handler.version, 0, folded(handler, ["a", "b"]).states[0])
            bad = good._replace(dump=good.dump[:-1] + b"?")
            kind = type(handler)
            module_of = sys.modules[kind.__module__]
            with mock.patch.object(module_of, "unpack_sketch", wraps=unpack_sketch) as read:
                outcome = folded(handler, ["c"], ["d"], states=[good, good], is_own=True)
            self.assertEqual((read.call_count, outcome.failed), (2, {}))
            lazily = folded(handler, ["c"], ["d"], states=[good, bad], is_own=True)
            with mock.patch.object(kind, "fold_checks", False):
                self.assertEqual(folded(handler, ["c"], ["d"], states=[good, bad], is_own=True), lazily)
            self.assertEqual(([*lazily.states], [*lazily.failed]), ([0], [1]))
            self.assertIn("no sketch", lazily.failed[1].detail)


class Culprits(SynchronousTestCase):
    def test_one_bad_event_is_dead_and_its_neighbours_are_folded(self) -> None:
        outcome = folded(Lengths(), ["nightly", 5, "x"], ["a"])
        self.assertEqual([Lengths().load(outcome.states[row]) for row in (0, 1)], [[7, 1], [1]])
        self.assertEqual((spoiled(outcome), outcome.failed), ([1], {}))
        [(failure, _)] = outcome.spoiled[0]
        self.assertRegex(failure.detail, r"TypeError: .*int.* \(.*test_folding.py:\d+, in fold\)")

    def test_a_bad_event_first_last_and_alone(self) -> None:
        self.assertEqual(spoiled(folded(Lengths(), [5, "x"])), [0])
        self.assertEqual(spoiled(folded(Lengths(), ["x", 5])), [1])
        alone = folded(Lengths(), [5])
        self.assertEqual((alone.states, list(alone.failed)), ({}, [0]))

    def test_where_two_do_not_agree_the_later_one_goes(self) -> None:
        outcome = folded(Mixed(), ["a", 5, "b"])
        self.assertEqual((Mixed().load(outcome.states[0]), spoiled(outcome)), ("b", [1]))

    @given(st.lists(st.one_of(st.text(max_size=3), st.integers()), min_size=1, max_size=40), st.booleans())
    def test_the_state_is_that_of_the_good_events_alone(self, values: list[Any], singly: bool) -> None:
        outcome = folded(Lengths(), values, turn=Turn(lambda place: None, lambda: False) if singly else None)
        good = [len(value) for value in values if isinstance(value, str)]
        self.assertEqual(Lengths().load(outcome.states[0]) if 0 in outcome.states else [], good)
        bad = [place for place, value in enumerate(values) if not isinstance(value, str)]
        if len(values) > 1:
            self.assertEqual(spoiled(outcome), bad)
        self.assertEqual(0 in outcome.failed, not good)

    @given(st.lists(st.lists(st.sampled_from([1.0, 2.0, 13.0]), min_size=1, max_size=12), min_size=1, max_size=5))
    def test_an_array_handler_loses_only_the_culprits(self, rows: list[list[float]]) -> None:
        outcome = folded(Sum(), *rows)
        for row, values in enumerate(rows):
            good = [value for value in values if value != 13]
            count, total = struct.unpack("<qd", outcome.states.get(row, bytes(16)))
            self.assertEqual((count, total), (len(good), sum(good)))
            if len(values) > 1:
                self.assertEqual(spoiled(outcome, row), [place for place, value in enumerate(values) if value == 13])

    @given(st.lists(st.sampled_from([1.0, 2.0, 3.0, 13.0]), min_size=2, max_size=30))
    def test_further_parts_are_those_of_the_good_events_too(self, values: list[float]) -> None:
        outcome = folded(Spilling(), values)
        parts = [outcome.states.get(0, b""), *outcome.parts.get(0, [])]
        kept = sorted(value for part in parts for (value,) in struct.iter_unpack("<d", part))
        self.assertEqual(kept, sorted(value for value in values if value != 13))

    def test_parts_of_all_rows_that_are_looked_at_are_read_at_once(self) -> None:
        # a cycle that reads more often than a few times is given up, and its batch would be sent for ever
        row = struct.pack("<5d", 1.0, 14.0, 2.0, 3.0, 4.0)
        work = Work([ABSENT] * 20, [(place, struct.pack("<5d", *[1.0] * 5), row) for place in range(20)])
        steps, rounds, sent = fold_type(Spilling(), True, work, 1.0), 0, None
        try:
            while True:
                sent = {wanted: [ABSENT] * 2 for wanted in steps.send(sent)}  # type: ignore[arg-type]
                rounds += 1
        except StopIteration as stop:
            self.assertEqual(sorted(stop.value.spoiled), list(range(20)))
        self.assertLessEqual(rounds, 2)

    def test_a_handler_that_always_raises_is_not_asked_for_ever(self) -> None:
        self.patch(module, "MAX_TRIES", 10)
        outcome = folded(Never(), ["x"] * 100)
        self.assertEqual((spoiled(outcome), list(outcome.failed)), (list(range(100)), [0]))

    def test_as_many_culprits_as_the_bound_lets_be_found(self) -> None:
        values: list[Any] = ["x"] * 8
        values[3] = 5
        for tries, lost in ((3, 1), (2, 2)):  # three runs are cut in two: of 8, of 4, of 2
            self.patch(module, "MAX_TRIES", tries)
            outcome = folded(Lengths(), values)
            self.assertEqual(len(spoiled(outcome)), lost)
            self.assertEqual(len(Lengths().load(outcome.states[0])), 8 - lost)

    def test_a_state_that_cannot_be_read_is_not_the_fault_of_its_events_and_costs_one_look(self) -> None:
        begun: list[int] = []
        outcome = folded(Unreadable(), ["a", "b"], states=[Framed(1, 1, b"x")], turn=Turn(begun.append, lambda: False))
        self.assertEqual((outcome.states, outcome.spoiled, begun), ({}, {}, []))
        self.assertIn("unreadable", outcome.failed[0].detail)


class Sentences(SynchronousTestCase):
    def test_a_sentence_is_one_bounded_line(self) -> None:
        try:
            raise ValueError("x\n" * 1000)
        except ValueError as error:
            said = sentence(error)
        self.assertNotIn("\n", said)
        self.assertLessEqual(len(said), MAX_DETAIL)
        self.assertRegex(said, r"\(.*test_folding.py:\d+, in test_a_sentence_is_one_bounded_line\)$")

    def test_an_exception_without_traceback_or_text(self) -> None:
        class Silent(Exception):
            def __str__(self) -> str:
                raise ValueError

        self.assertEqual(sentence(ValueError("x")), "ValueError: x")
        self.assertEqual(sentence(Silent()), "Silent: (its text raises)")
