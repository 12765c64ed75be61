"""What CounterGroup and PercentileGroup do in C they do with arrays as well, to the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock
from unittest.mock import Mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from taba.codes import codes_of
from taba.handlers import Events, counter_group, percentile_group
from taba.handlers.counter_group import JOURNAL_SLOTS, CounterGroup
from taba.handlers.folded import FoldedDumps
from taba.handlers.percentile_group import PercentileGroup
from taba.handlers.sketch import codes_in
from taba.server.keys import Framed, frame
from taba.server.work.folding import fold_type
from taba.server.work.rows import Folded, Work

NOW = 1_700_000_000.0
COUNTERS, PERCENTILES = CounterGroup(), PercentileGroup()
ABSENT = Framed(0, 0, b"")
LOG_GAMMA = np.log((1 + 0.00995) / (1 - 0.00995))
# eighths, so that no sum is rounded; and far apart, so that sketches collapse
VALUES = st.one_of(st.integers(-80, 80).map(lambda eighths: eighths / 8), st.sampled_from([1e-30, 1e30, -1e30, 2.0**40, 0.0]))
AGES = st.one_of(st.integers(0, 90), st.integers(-20_000, 200_000), st.sampled_from([0, 4, 5, 60, 600, 3600, 86_400, 90_000]))
EVENTS = st.lists(st.tuples(AGES, VALUES), min_size=1, max_size=40)
EDGE = st.lists(st.tuples(st.integers(-40, 240), VALUES), min_size=1, max_size=60)  # in quarters of a second
ROUNDS = st.lists(st.tuples(st.integers(0, 4000), st.lists(EVENTS, min_size=3, max_size=3)), min_size=1, max_size=6)


def folded(states: Sequence[Framed], parts: Sequence[Sequence[Framed]], columns: Any, now: float, handler: Any = COUNTERS) -> Folded:
    steps = fold_type(handler, True, Work(states, columns), now)
    try:
        wanted = next(steps)
        while True:
            wanted = steps.send({row: list(parts[row]) for row in wanted})
    except StopIteration as stop:
        result: Folded = stop.value
        return result


def columns_of(rows: Sequence[Sequence[tuple[int, float]]], now: float) -> list[tuple[int, bytes, bytes]]:
    return [
        (row, np.array([now - ago for ago, _ in events]).tobytes(), np.array([value for _, value in events]).tobytes())
        for row, events in enumerate(rows)
    ]


def folds_of_none(part: Any) -> list[str]:
    """Which of what a Handler's part in C has to leave alone it folds; and of what it folds, that which it leaves."""
    row, one = np.zeros(1, np.int64), np.ones(1)
    odd = np.frombuffer(bytes(9), np.uint8)[1:].view(np.float64)  # does not begin where a word may
    left: dict[str, tuple[Any, ...]] = {
        "a row behind all": ([b""], row + 1, one, one, NOW, 0, b"", row),
        "a row before all": ([b""], row - 1, one, one, NOW, 0, b"", row),
        "a State without an Event": ([b"", b""], row, one, one, NOW, 0, b"", row),
        "fewer times": ([b""], row, one[:0], one, NOW, 0, b"", row),
        "no bytes": ([None], row, one, one, NOW, 0, b"", row),
        "a code that is none": ([b""], row, one, one, NOW, 0, b"", row + 40_000),
        "times out of place": ([b""], row, odd, one, NOW, 0, b"", row),
    }
    folds = [what for what, given in left.items() if part.fold(*given) is not None]
    return folds if part.fold([b""], row, one, one, NOW, 0, b"", row) is not None else [*folds, "what is ordinary"]


class RowsTests(SynchronousTestCase):
    def setUp(self) -> None:
        if counter_group._rows is None:
            raise SkipTest("_rows is not built: needs a compiler")

    @settings(deadline=None)
    @given(ROUNDS)
    def test_a_fold_gives_the_bytes_that_arrays_give(self, rounds: list[tuple[int, list[list[tuple[int, float]]]]]) -> None:
        states, parts = [Framed(0, 0, b"")] * 3, [[Framed(0, 0, b"")]] * 3
        now = NOW
        for later, rows in rounds:
            now += later
            columns = columns_of(rows, now)
            ours = folded(states, parts, columns, now)
            with mock.patch.object(counter_group, "_rows", None):
                arrays = folded(states, parts, columns, now)
            self.assertEqual(ours, arrays)
            states = [Framed(1, 0, ours.states[row]) for row in range(3)]
            parts = [[Framed(1, 0, ours.parts[row][0])] if row in ours.parts else parts[row] for row in range(3)]

    def test_a_journal_spills_as_with_arrays(self) -> None:
        events = [[(5 * ago, 0.5 * row) for ago in range(JOURNAL_SLOTS + 8 - 8 * row, -1, -1)] for row in range(3)]
        states, parts = [Framed(0, 0, b"")] * 3, [[Framed(0, 0, b"")]] * 3
        ours = folded(states, parts, columns_of(events, NOW), NOW)
        with mock.patch.object(counter_group, "_rows", None):
            self.assertEqual(folded(states, parts, columns_of(events, NOW), NOW), ours)
        self.assertEqual(sorted(ours.parts), [0, 1])  # the third has fewer than spill with others

    def test_sums_are_rounded_as_with_arrays(self) -> None:
        chance = np.random.default_rng(5)
        for many in (1, 7, 8, 9, 23, 24, 129, 1000):
            for values in (
                chance.normal(size=many),
                chance.lognormal(0, 30, many),
                chance.choice([0.0, 5e-324, 1.7e308, -1.7e308], many),
            ):
                events = [*zip(chance.choice([0, 4, 11, 700], many).tolist(), values.tolist(), strict=True)]
                states, parts = [Framed(0, 0, b"")], [[Framed(0, 0, b"")]]
                for now in (NOW, NOW + 3):
                    ours = folded(states, parts, columns_of([events], now), now)
                    with mock.patch.object(counter_group, "_rows", None):
                        self.assertEqual(folded(states, parts, columns_of([events], now), now), ours)
                    states = [Framed(1, 0, ours.states[0])]

    def test_whatever_bytes_an_archive_has_they_do_what_they_do_with_arrays(self) -> None:
        columns = columns_of([[(30 * ago, 0.1 * ago) for ago in range(JOURNAL_SLOTS + 90, -1, -1)]], NOW)
        first = folded([Framed(0, 0, b"")], [[Framed(0, 0, b"")]], columns, NOW)
        state, good = [Framed(1, 0, first.states[0])], first.parts[0][0]
        chance = np.random.default_rng(9)
        for _ in range(60):
            bad = bytearray(good)
            for _ in range(int(chance.integers(1, 4))):
                bad[int(chance.integers(len(bad) if chance.random() < 0.5 else 24))] = int(chance.choice([0, 1, 7, 127, 128, 255]))
            content = bytes(bad[: int(chance.choice([len(bad), len(bad), len(bad) - 8, 16, 24]))])
            parts = [[Framed(1, 0, content)]]
            again = columns_of([[(30 * ago, 0.5) for ago in range(JOURNAL_SLOTS + 8, -1, -1)]], NOW + 9000)
            ours = folded(state, parts, again, NOW + 9000)
            with mock.patch.object(counter_group, "_rows", None):
                self.assertEqual(folded(state, parts, again, NOW + 9000), ours)

    def test_whatever_bytes_there_are_they_do_what_they_do_with_arrays(self) -> None:
        good = folded([Framed(0, 0, b"")], [[]], columns_of([[(5 * ago, float(ago)) for ago in range(20)]], NOW), NOW).states[0]
        chance = np.random.default_rng(7)
        for _ in range(60):
            bad = bytearray(good)
            for _ in range(int(chance.integers(1, 4))):
                bad[int(chance.integers(len(bad)))] = int(chance.choice([0, 1, 7, 127, 128, 255]))
            content = bytes(bad[: int(chance.choice([len(bad), len(bad), len(bad) - 8, 40, 48]))])
            states = [Framed(1, 0, content), Framed(1, 0, good)]
            columns = columns_of([[(0, 1.0)], [(0, 2.0)]], NOW)
            ours = folded(states, [[Framed(0, 0, b"")]] * 2, columns, NOW)
            with mock.patch.object(counter_group, "_rows", None):
                arrays = folded(states, [[Framed(0, 0, b"")]] * 2, columns, NOW)
            self.assertEqual((ours.failed, sorted(ours.states)), (arrays.failed, sorted(arrays.states)))
            self.assertEqual(ours.states.get(1), arrays.states.get(1))

    def test_a_frame_of_another_version_is_not_read(self) -> None:
        [good] = CounterGroup().dump_array(CounterGroup().load_array([b""]))
        row, one = np.zeros(1, np.int64), np.ones(1)
        plain = CounterGroup().fold_dumps([good], row, one * NOW, one, NOW)
        found = CounterGroup().fold_dumps([frame(1, 5) + good], row, one * NOW, one, NOW, 1)
        assert plain is not None and found is not None
        self.assertEqual(found.dumps, plain.dumps)
        for content in (frame(2, 5) + good, frame(257, 5) + good, frame(1, 5), b"\1\0"):
            self.assertIsNone(CounterGroup().fold_dumps([content], row, one * NOW, one, NOW, 1))

    def test_rows_that_are_none_and_columns_of_other_lengths_are_left_alone(self) -> None:
        self.assertEqual(folds_of_none(counter_group._rows), [])
        self.assertIsNone(counter_group._rows.spill([b""], [], NOW, 0))
        self.assertIsNone(counter_group._rows.spill([b""], [b"\0" * 17], NOW, 0))


class FreshTests(SynchronousTestCase):
    """What is folded at the edge."""

    def setUp(self) -> None:
        if counter_group._rows is None or percentile_group._spreads is None:
            raise SkipTest("not built: needs a compiler")

    def both(self, columns: Sequence[Sequence[tuple[float, float]]]) -> tuple[list[Any], list[Any]]:
        """The dumps that C gives, and those of arrays; None where it left them alone."""
        starts = np.cumsum([0, *map(len, columns)])
        times, values = (np.array(column) for column in zip(*[pair for column in columns for pair in column], strict=True))
        in_c = [counter_group._rows.edge(starts, times, values), percentile_group._spreads.edge(starts, times, values)]
        with mock.patch.object(counter_group, "_rows", None), mock.patch.object(percentile_group, "_spreads", None):
            return in_c, [handler.edge_columns(starts, times, values) for handler in (COUNTERS, PERCENTILES)]

    @settings(deadline=None)
    @given(st.lists(st.lists(st.tuples(st.integers(0, 240), VALUES), min_size=1, max_size=60), min_size=1, max_size=6))
    def test_columns_give_the_bytes_that_arrays_give(self, columns: list[list[tuple[int, float]]]) -> None:
        # with pieces of slots, in any order; 1e30 and its like are no multiple of an eighth, and sums of them no sums
        near = [[(NOW + quarters / 4, value if abs(value) < 1e20 else 2.0**60) for quarters, value in column] for column in columns]
        ours, theirs = self.both(near)
        self.assertEqual(ours, theirs)

    def test_of_a_value_that_lies_where_a_bin_ends_numpy_decides(self) -> None:
        [edge] = np.flatnonzero([codes_of(np.array([1.0 + step / 10**4]))[0] for step in range(400)] == codes_of(np.array([1.01])) + 1)[:1]
        low, high = 1.0 + (edge - 1) / 10**4, 1.0 + edge / 10**4
        for _ in range(60):  # halves, until nothing is between them
            middle = (low + high) / 2
            low, high = (middle, high) if codes_of(np.array([middle]))[0] == codes_of(np.array([low]))[0] else (low, middle)
        row, now = np.zeros(1, np.int64), np.array([NOW])
        for value in (low, high):
            self.assertEqual(self.both([[(NOW, value)]])[0], [None, None])
            for part, handler in ((counter_group._rows, COUNTERS), (percentile_group._spreads, PERCENTILES)):
                given = ([b""], row, now, np.array([value]), NOW, 0, b"")
                self.assertIsNone(part.fold(*given, b""))
                told = handler.fold_dumps(*given)
                self.assertEqual(told.dumps if told else None, part.fold(*given, codes_of(np.array([value])))[0])
        self.assertIsNot(self.both([[(NOW, 1.0)]])[0][0], None)

    @settings(deadline=None)
    @given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
    def test_every_value_has_the_code_that_numpy_gives(self, values: list[float]) -> None:
        for value in values:
            [dump] = counter_group._rows.edge(np.arange(2), np.array([NOW]), np.array([value])) or [None]
            folded = counter_group._rows.fold([b""], np.zeros(1, np.int64), np.array([NOW]), np.array([value]), NOW, 0, b"", b"")
            self.assertEqual(folded and folded[0], None if dump is None else [dump])
            if dump is not None:
                self.assertEqual(codes_in(COUNTERS.load_array([dump]).bin_keys).tolist(), codes_of(np.array([value])).tolist(), value)

    def test_in_each_step_of_each_binade_the_code_is_numpys(self) -> None:
        steps = np.arange(64) / 64
        for exponent in (*range(-1022, 1024, 31), *range(-470, -464), *range(-12, 12), *range(464, 471), 1023):
            begins = np.ldexp(1 + steps, exponent)
            ends = np.exp(np.ceil(np.log(begins) / LOG_GAMMA) * LOG_GAMMA) if abs(exponent) < 460 else begins
            near = [side for edges in (begins, ends) for off in (0.0, 3e-16, 3e-9, 1e-3) for side in (edges * (1 - off), edges * (1 + off))]
            values = np.concatenate((*near, np.nextafter(begins, 0.0)))
            numbers = np.log(np.abs(values)) / LOG_GAMMA
            # what lies nearer to an edge numpy alone decides; ±1.0 it does not need to
            values = values[(np.abs(numbers - np.rint(numbers)) > 1e-7) & np.isfinite(values)]
            for sign in (1, -1):
                values = np.append(sign * values, 1.0)
                columns, times = np.arange(len(values) + 1), np.full(len(values), NOW)
                dumps = counter_group._rows.edge(columns, times, values)
                self.assertIsNotNone(dumps, exponent)
                self.assertEqual(codes_in(COUNTERS.load_array(dumps).bin_keys).tolist(), codes_of(values).tolist())

    def test_long_columns_give_the_bytes_that_arrays_give(self) -> None:
        chance = np.random.default_rng(3)
        for many in (24, 25, 26, 27, 63, 1001, 5000):
            for values in (chance.lognormal(0, 2, many), np.ones(many), 1.3 ** chance.integers(0, 20, many), -chance.lognormal(0, 9, many)):
                for span in (0.0, 3.0, 60.0):
                    times = NOW + 0.5 + np.sort(span * chance.random(many))
                    column = [*zip(times.tolist(), values.tolist(), strict=True)]
                    ours, theirs = self.both([column, column[:30]])
                    self.assertEqual(ours, theirs, (many, span))

    def test_what_is_no_number_and_starts_that_are_none_are_left_alone(self) -> None:
        one = np.ones(1)
        for edge in (counter_group._rows.edge, percentile_group._spreads.edge):
            self.assertEqual(len(edge(np.arange(2), one, one)), 1)
            for odd in (np.nan, np.inf, -np.inf):
                self.assertIsNone(edge(np.arange(2), one, one * odd))
                self.assertIsNone(edge(np.arange(2), one * odd, one))
        for handler in (COUNTERS, PERCENTILES):
            for odd in (np.nan, np.inf, -np.inf):
                self.assertIsNone(handler.fold_dumps([b""], np.zeros(1, np.int64), one * NOW, one * odd, NOW))
            for starts in ([], [0, 2], [0, 0], [-1, 1], [1, 0], [2**62, 2**63 - 1]):
                self.assertIsNone(edge(np.array(starts, np.int64), one, one), starts)
            self.assertIsNone(edge(np.arange(2), one, one[:0]))
            self.assertIsNone(edge(bytes(9), one, one))
            self.assertRaises(TypeError, edge, np.arange(2), one)


class MergedTests(SynchronousTestCase):
    """What was folded at the edge, added to States."""

    def setUp(self) -> None:
        if counter_group._rows is None or percentile_group._spreads is None:
            raise SkipTest("not built: needs a compiler")

    def merged(self, handler: Any, states: Sequence[Framed], edges: Sequence[bytes], now: float) -> Folded:
        """What C makes, which is what arrays make, or nothing."""
        work = Work(states, (), merges=list(enumerate(edges)))
        steps = [fold_type(handler, True, work, now)]
        with mock.patch.object(counter_group, "_rows", None), mock.patch.object(percentile_group, "_spreads", None):
            steps.append(fold_type(handler, True, work, now))
            theirs = self.finished(steps[1])
        ours = self.finished(steps[0])
        self.assertEqual(ours, theirs)
        return ours

    def finished(self, steps: Any) -> Folded:
        try:
            wanted = next(steps)
            while True:
                wanted = steps.send({row: [ABSENT] * self.further for row in wanted})
        except StopIteration as stop:
            result: Folded = stop.value
            return result

    @settings(deadline=None, max_examples=40)
    @given(st.lists(st.tuples(st.integers(-20, 4000), st.lists(EDGE, min_size=2, max_size=2)), min_size=1, max_size=4))
    def test_a_merge_gives_the_bytes_that_arrays_give(self, rounds: list[tuple[int, list[list[tuple[int, float]]]]]) -> None:
        for handler in (COUNTERS, PERCENTILES):
            self.further = handler.further_parts
            states, now = [ABSENT] * 2, NOW
            for later, columns in rounds:
                now += later
                times = [np.array([now - quarters / 4 for quarters, _ in column]) for column in columns]
                values = [np.array([value if abs(value) < 1e20 else 2.0**60 for _, value in column]) for column in columns]
                edges = [handler.edge_array(np.zeros(len(its), np.int64), its, of, 1)[0] for its, of in zip(times, values, strict=True)]
                self.assertEqual(handler.count_array(edges).tolist(), list(map(len, columns)))
                merged = self.merged(handler, states, edges, now)
                states = [Framed(handler.version, 0, merged.states[row]) for row in range(2)]

    def test_what_is_ordinary_is_left_to_no_array(self) -> None:
        for handler in (COUNTERS, PERCENTILES):
            [edge] = handler.edge_array(np.zeros(40, np.int64), NOW - np.arange(40) / 4, np.arange(0.5, 40.0), 1)
            [late] = handler.edge_array(np.zeros(4, np.int64), NOW - np.arange(4) / 4, np.arange(0.5, 4.0), 1)
            behind = NOW - 6  # of a clock that is: what comes is held
            for content, added, now in ((b"", edge, NOW), (edge, edge, NOW + 7), (edge, late, behind)):
                self.assertIsNotNone(handler.merge_dumps([content], [added], now))
            found = handler.merge_dumps([frame(1, 5) + edge], [edge], NOW, 1)
            assert found is not None
            self.assertEqual(handler.count_array(found.dumps).tolist(), [80])
            self.assertIsNone(handler.merge_dumps([frame(2, 5) + edge], [edge], NOW, 1))
            self.assertIsNone(handler.merge_dumps([b"", b""], [edge], NOW))
            self.assertIsNone(handler.merge_dumps([b""], [b""], NOW))

    def test_whatever_bytes_come_from_an_edge_they_do_what_they_do_with_arrays(self) -> None:
        chance = np.random.default_rng(11)
        for handler in (COUNTERS, PERCENTILES):
            self.further = handler.further_parts
            [good] = handler.edge_array(np.zeros(60, np.int64), NOW - np.arange(60) / 2, np.arange(60) / 8 - 3, 1)
            for _ in range(40):
                bad = bytearray(good)
                for _ in range(int(chance.integers(1, 4))):
                    bad[int(chance.integers(len(bad) if chance.random() < 0.5 else 48))] = int(chance.choice([0, 1, 7, 127, 128, 255]))
                content = bytes(bad[: int(chance.choice([len(bad), len(bad), len(bad) - 8, 40, 48]))])
                with mock.patch.object(counter_group, "_rows", None), mock.patch.object(percentile_group, "_spreads", None):
                    theirs = self.counted(handler, content)
                self.assertEqual(self.counted(handler, content), theirs)
                self.merged(handler, [Framed(handler.version, 0, good)] * 2, [content, good], NOW)

    def counted(self, handler: Any, content: bytes) -> Any:
        try:
            return handler.count_array([content]).tolist()
        except ValueError as error:
            return str(error)


class SpreadsTests(SynchronousTestCase):
    def setUp(self) -> None:
        if percentile_group._spreads is None:
            raise SkipTest("_spreads is not built: needs a compiler")

    def both(self, states: Sequence[Framed], parts: Sequence[Sequence[Framed]], columns: Any, now: float) -> tuple[Folded, Folded]:
        ours = folded(states, parts, columns, now, PERCENTILES)
        with mock.patch.object(percentile_group, "_spreads", None):
            return ours, folded(states, parts, columns, now, PERCENTILES)

    def assert_in_c(self, dump: bytes, events: Sequence[tuple[float, float]], now: float) -> None:
        """That it is not left to the arrays."""
        times, values = (np.array(column) for column in zip(*events, strict=True))
        self.assertIsNotNone(PERCENTILES.fold_dumps([dump], np.zeros(len(times), np.int64), times, values, now))

    @settings(deadline=None)
    @given(ROUNDS)
    def test_a_fold_gives_the_bytes_that_arrays_give(self, rounds: list[tuple[int, list[list[tuple[int, float]]]]]) -> None:
        states, parts = [ABSENT] * 3, [[ABSENT] * 2] * 3
        now = NOW
        for later, rows in rounds:
            now += later
            ours, arrays = self.both(states, parts, columns_of(rows, now), now)
            self.assertEqual(ours, arrays)
            self.assert_in_c(states[0].dump, [(now - ago, value) for ago, value in rows[0]], now)
            states = [Framed(2, 0, ours.states[row]) for row in range(3)]
            parts = [[Framed(2, 0, part) for part in ours.parts[row]] if row in ours.parts else parts[row] for row in range(3)]

    def test_events_of_slots_in_any_order_and_of_any_values_give_the_bytes_that_arrays_give(self) -> None:
        chance = np.random.default_rng(3)
        states = [ABSENT, ABSENT]
        for width in (1, 40, 400):  # seconds
            for count in (1, 7, 8, 130, 700):
                rows = [list(zip(chance.uniform(-5, width, count), chance.lognormal(0, 9, count), strict=True)) for _ in range(2)]
                ours, arrays = self.both(states, [[ABSENT] * 2] * 2, columns_of(rows, NOW), NOW)
                self.assertEqual(ours, arrays)
                self.assert_in_c(states[0].dump, [(NOW - ago, value) for ago, value in rows[0]], NOW)
                states = [Framed(2, 0, ours.states[row]) for row in range(2)]

    def test_whatever_bytes_there_are_they_do_what_they_do_with_arrays(self) -> None:
        events = [[(15 * ago, ago - 3.5 * place) for ago in range(15, -1, -1) for place in range(1 + ago % 3)]]
        good = folded([ABSENT], [[]], columns_of(events, NOW), NOW, PERCENTILES).states[0]
        columns = columns_of([[(0, 1.0)], [(0, 2.0)]], NOW)
        chance = np.random.default_rng(7)
        unlike = 0
        for _ in range(50):
            bad = bytearray(good)
            for _ in range(int(chance.integers(1, 4))):
                bad[int(chance.integers(len(bad)))] = int(chance.choice([0, 1, 7, 127, 128, 255]))
            content = bytes(bad[: int(chance.choice([len(bad), len(bad), len(bad) - 8, 40, 48]))])
            ours, arrays = self.both([Framed(2, 0, content), Framed(2, 0, good)], [[ABSENT] * 2] * 2, columns, NOW)
            self.assertEqual(ours, arrays)
            unlike += not ours.failed and content != good
        self.assertGreater(unlike, 5)  # not all of them are refused

    def filled(self) -> tuple[bytes, list[bytes]]:
        """A State whose journal is full, and the further parts of its last day."""
        ages = np.arange(90_000, 40, -97)
        state = PERCENTILES.fold(PERCENTILES.new_state(), Events((NOW - ages).tolist(), (ages % 1000 / 8).tolist()), NOW - 40)
        times, values = np.array([NOW - 15.0 * ago for ago in range(40)]), np.array([ago % 11.0 for ago in range(40)])
        found = PERCENTILES.fold_dumps([state[0]], np.zeros(40, np.int64), times, values, NOW)
        assert found is not None
        return found.dumps[0], state[1:]

    def spilled(self, dump: bytes, parts: list[bytes], now: float) -> Any:
        """(the main part, further parts) after a spill, or the reason why there is none."""
        states = FoldedDumps([dump], np.array([40]), now)
        try:
            return [*PERCENTILES.spill(states, np.zeros(1, np.int64), [parts]), states.dumps[0]]
        except ValueError as error:
            return str(error)

    def test_whatever_a_spill_finds_it_does_what_it_does_with_arrays(self) -> None:
        dump, parts = self.filled()
        chance = np.random.default_rng(5)
        spilled, done = percentile_group._spreads.spill, 0
        for turn in range(40):
            bad = [bytearray(dump), *map(bytearray, parts)]
            content = bad[int(chance.integers(3))]
            for _ in range(int(chance.integers(0, 4))):  # most of what is read is in the first bytes
                content[int(chance.integers(min(len(content), int(chance.choice([48, 10_000])))))] = int(
                    chance.choice([0, 1, 2, 127, 128, 255])
                )
            del content[len(content) - int(chance.choice([0, 0, 0, 8])) :]
            now = NOW + int(chance.choice([0, 30, 3000, 90_000, -7000]))
            one = [bytes(part) for part in bad]
            ours = self.spilled(one[0], one[1:], now)
            done += spilled([one[0]], [one[1]], [one[2]], now, 0) is not None
            with mock.patch.object(percentile_group, "_spreads", Mock(spill=lambda *_: None)):
                self.assertEqual(self.spilled(one[0], one[1:], now), ours, turn)
        self.assertGreater(done, 10)  # not all of them are left to the arrays

    def test_what_is_no_list_of_parts_spills_nothing(self) -> None:
        spill = percentile_group._spreads.spill
        self.assertEqual(len(spill([b""], [b""], [b""], NOW, 0)), 3)
        self.assertIsNone(spill([b""], [], [b""], NOW, 0))
        self.assertIsNone(spill([b""], [b""], [b"", b""], NOW, 0))
        self.assertIsNone(spill([b""], [b""], [None], NOW, 0))
        self.assertIsNone(spill([b""], [b"\0" * 17], [b""], NOW, 0))
        self.assertIsNone(spill([b""], [b""], [b"\0" * 24], NOW, 0))
        self.assertIsNone(spill([b""], [b""], [b""], np.inf, 0))

    def test_what_the_machine_decides_and_what_is_no_number_is_left_to_the_arrays(self) -> None:
        row, one = np.zeros(1, np.int64), np.ones(1)
        for value in (-0.0, np.nan, np.inf):
            self.assertIsNone(PERCENTILES.fold_dumps([b""], row, one * NOW, one * value, NOW))
        [zero] = PERCENTILES.dump_array(
            PERCENTILES.fold_array(PERCENTILES.load_array([b""]), row.repeat(2), one.repeat(2) * NOW, np.array([-0.0, 0.5]), NOW)
        )
        self.assertIsNone(PERCENTILES.fold_dumps([zero], row, one * NOW, one, NOW))
        self.assertIsNotNone(PERCENTILES.fold_dumps([zero], row, one * NOW + 30, one, NOW + 30))  # not its slot

    def test_rows_that_are_none_and_columns_of_other_lengths_are_left_alone(self) -> None:
        rows, row, one = percentile_group._spreads, np.zeros(1, np.int64), np.ones(1)
        self.assertEqual(folds_of_none(rows), [])
        self.assertIsNone(rows.fold([b""], row, one, one, np.nan, 0, b"", row))
