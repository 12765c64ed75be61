"""What Gauge, ExpiryGauge and UpDown do in C they do in Python as well, to the same bytes."""

from __future__ import annotations

from typing import Any
from unittest import mock

import msgpack
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from taba.handlers import Events, gauge
from taba.handlers.expiry_gauge import ExpiryGauge
from taba.handlers.folded import InC
from taba.handlers.gauge import Gauge
from taba.handlers.updown import UpDown
from taba.server.keys import Kept, frame
from taba.server.work.folding import fold_type
from taba.server.work.rows import Work

NOW = 1_700_000_000.0
HANDLERS: tuple[Any, ...] = (Gauge(), ExpiryGauge(), UpDown())
NUMBERS = st.one_of(st.floats(), st.sampled_from([0.0, -0.0, 1.0, 2.0**60, np.inf, -np.inf, np.nan]))
TIMES = st.one_of(st.integers(-9, 9).map(lambda ahead: NOW + ahead), NUMBERS)
EVENTS = st.lists(st.tuples(TIMES, NUMBERS), min_size=1, max_size=12)


def fresh(handler: Any, state: Any) -> bytes:
    """Its dump, as Python makes it."""
    return bytes(handler.dump(handler.load(msgpack.packb(state))))


def in_python(handler: Any, dump: bytes, times: np.ndarray, values: np.ndarray) -> bytes:
    return bytes(handler.dump(handler.fold(handler.load(dump), Events(times, values), NOW)))  # type: ignore[arg-type]


class LatestTests(SynchronousTestCase):
    def setUp(self) -> None:
        if gauge._latest is None:
            raise SkipTest("_latest is not built: needs a compiler")

    @settings(deadline=None)
    @given(st.lists(EVENTS, min_size=1, max_size=4))
    def test_a_fold_gives_the_bytes_that_python_gives(self, rounds: list[list[tuple[float, float]]]) -> None:
        for handler in HANDLERS:
            dump = bytes(handler.dump(handler.new_state()))
            for events in rounds:
                times, values = (np.array(column, dtype=np.float64) for column in zip(*events, strict=True))
                found = handler.fold_dumps([frame(1, 7) + dump], np.zeros(len(times), np.int64), times, values, NOW, 1, frame(1, 8))
                dump = in_python(handler, dump, times, values)
                self.assertEqual(found.dumps, [frame(1, 8) + dump], handler.type)

    def test_rows_in_any_order_are_folded_each_to_its_own(self) -> None:
        rows, times, values = np.array([1, 0, 1, 0]), NOW + np.array([1.0, -2, -3, -1]), np.array([5.0, 6, 7, 8])
        for handler in HANDLERS:
            dumps = [bytes(handler.dump(handler.new_state()))] * 2
            found = handler.fold_dumps(dumps, rows, times, values, NOW)
            for row in range(2):
                mine = rows == row
                self.assertEqual(found.dumps[row], in_python(handler, dumps[row], times[mine], values[mine]))

    def test_values_of_other_kinds_are_kept_or_replaced(self) -> None:
        one = np.ones(1)
        for value in (None, True, False, 0, 127, -1, -32, 2.5):
            cases: tuple[tuple[Any, list[Any]], ...] = ((Gauge(), [value, NOW]), (ExpiryGauge(), [value, NOW, 3.0]))
            for handler, state in cases:
                dump = fresh(handler, state)
                for ago in (0.0, 1.0):
                    found = handler.fold_dumps([dump], np.zeros(1, np.int64), one * (NOW - ago), one, NOW)
                    assert found is not None
                    self.assertEqual(found.dumps, [in_python(handler, dump, one * (NOW - ago), one)])

    def test_what_is_out_of_the_ordinary_is_left_to_python(self) -> None:
        row, one = np.zeros(1, np.int64), np.ones(1)
        ring = {bytes(16): [3, 2.0]}
        cases: tuple[tuple[Any, tuple[Any, ...]], ...] = (
            (Gauge(), (["text", NOW], [1000, NOW], [1.0], [1.0, 1], [[1.0], NOW], "text", 5, {}, [1.0, NOW, 1.0])),
            (ExpiryGauge(), ([1.0, NOW], [1.0, NOW, 3], [1.0, 3, NOW], ["text", NOW, 3.0])),
            (UpDown(), ([1.0, 0, ring], [1.0, 127, ring], [1.0, 128, {}], [1.0, -1, {}], [1, 0, {}], [1.0, 0, []], None)),
        )
        for handler, states in cases:
            for state in states:
                self.assertIsNone(handler.fold_dumps([msgpack.packb(state)], row, one * NOW, one, NOW), state)
            good = bytes(handler.dump(handler.new_state()))
            for bad in (b"", good[:-1], good + b"\0", good[:-1] + b"\xc1"):
                self.assertIsNone(handler.fold_dumps([bad], row, one * NOW, one, NOW), bad)
            self.assertIsNone(handler.fold_dumps([frame(2, 7) + good], row, one * NOW, one, NOW, 1))
            self.assertIsNone(handler.fold_dumps([good], row[:0], one[:0], one[:0], NOW))
        full = fresh(UpDown(), [1.0, 127, {}])
        self.assertIsNone(UpDown().fold_dumps([full], row, one * NOW, one * np.nan, NOW))

    def test_a_cycle_folds_them_in_c_where_all_are_there_and_else_in_python(self) -> None:
        for handler in HANDLERS:
            dump = bytes(handler.dump(handler.new_state()))
            times, values = np.array([NOW - 2, NOW - 1]), np.array([3.0, 4.0])
            columns = [(row, times.tobytes(), values.tobytes()) for row in range(2)]
            work = Work(Kept([frame(1, 7) + dump] * 2), columns)
            with mock.patch.object(InC, "fold_dumps", autospec=True, side_effect=InC.fold_dumps) as in_c:
                [ours] = run(fold_type(handler, False, work, NOW))
                in_c.assert_called_once()
            with mock.patch.object(InC, "fold_dumps", return_value=None):
                [plain] = run(fold_type(handler, False, work, NOW))
            self.assertEqual(ours, plain)
            self.assertEqual(ours.states[1], in_python(handler, dump, times, values))


def run(steps: Any) -> list[Any]:
    """What a fold returns that needs nothing more."""
    try:
        next(steps)
    except StopIteration as stop:
        return [stop.value]
    return []
