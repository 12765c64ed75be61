"""What is folded at the edge, counted in C beside numpy: the same to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from taba.handlers import fresh
from tests.examples import examples

VALUES = st.floats(-1e290, 1e290) | st.sampled_from((0.0, -0.0, 1.0, -1.0, 5e-324, 1e290))


class Counting(SynchronousTestCase):
    def setUp(self) -> None:
        if fresh.NATIVE is None:
            raise SkipTest("needs the C part of the Handlers: gcc when Taba is installed")

    @given(st.lists(st.tuples(st.integers(0, 5), VALUES), min_size=1, max_size=200), st.booleans())
    @examples(100)
    def test_figures_and_bins_are_those_of_numpy(self, events: list[tuple[int, float]], is_in_order: bool) -> None:
        events = [*enumerate([1.0] * 6), *events]  # each row has one at least
        if is_in_order:
            events.sort(key=lambda event: event[0])
        rows, values = np.array([row for row, _ in events]), np.array([value for _, value in events])
        found: list[Any] = []
        for native in (fresh.NATIVE, None):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(fresh, "NATIVE", native)
                figures = fresh.figures_of(rows, values, 6)
                found.append([column.tobytes() for column in (*figures.values(), *fresh.bins_of(rows, values, 6))])
        self.assertEqual(*found)

    def test_every_number_and_every_size_is_checked(self) -> None:
        rows, values, many = np.array([0, 1]), np.ones(2), np.zeros(2, np.int64)
        self.assertEqual(fresh.NATIVE.bins(rows[::-1].copy(), many, many.copy(), many.copy()), -1)
        for wrong in (rows - 1, rows + 1, rows[:1]):
            self.assertRaises(ValueError, fresh.NATIVE.figures, wrong, values, values.copy(), values.copy(), values.copy())
        self.assertRaises(ValueError, fresh.NATIVE.figures, rows, values, values.copy(), values[:1].copy(), values.copy())
        self.assertRaises(BufferError, fresh.NATIVE.figures, rows, values, bytes(16), values.copy(), values.copy())
        for code in (-32_769, 32_768, 2**62, -(2**63)):
            self.assertRaises(ValueError, fresh.NATIVE.bins, rows, np.full(2, code), many.copy(), many.copy())
        for row in (-1, 2**40):
            self.assertRaises(ValueError, fresh.NATIVE.bins, np.full(2, row), many, many.copy(), many.copy())
        for sizes in ((1, 2, 2), (2, 1, 2), (2, 2, 1)):
            arrays = [np.zeros(size, np.int64) for size in sizes]
            self.assertRaises(ValueError, fresh.NATIVE.bins, rows, *arrays)
        self.assertRaises(ValueError, fresh.NATIVE.bins, bytes(9), bytes(9), many, many)
        self.assertRaises(TypeError, fresh.NATIVE.bins, rows)
