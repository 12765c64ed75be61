"""The sketch: accurate, bounded, and the same whatever the order."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.codes import ACCURACY, codes_of, estimates_of
from taba.handlers.sketch import MAX_BINS, Sketch
from tests.examples import examples

finite = st.floats(allow_nan=False, allow_infinity=False)
values = st.lists(st.one_of(finite, st.floats(-1e6, 1e6), st.integers(-50, 50).map(float)), max_size=60)


def sketch_of(*several: list[float]) -> Sketch:
    sketch = Sketch()
    for some in several:
        sketch.add(some)
    return sketch


class SketchTests(SynchronousTestCase):
    def assert_accurate(self, recorded: np.ndarray) -> None:
        sketch = sketch_of(list(recorded))
        ordered = np.sort(recorded)
        for q in (0.01, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999):
            exact = ordered[math.floor(q * (len(ordered) - 1))]
            self.assertLessEqual(abs(sketch.quantile(q) - exact), ACCURACY * abs(exact), (q, exact))

    def test_quantiles_are_within_one_percent_over_seventeen_decades(self) -> None:
        rng = np.random.default_rng(7)
        self.assert_accurate(10 ** rng.uniform(-8, 9, 20_000))

    def test_quantiles_are_accurate_with_negative_values_and_zero(self) -> None:
        rng = np.random.default_rng(8)
        mixed = np.concatenate((10 ** rng.uniform(-4, 5, 5000), -(10 ** rng.uniform(-4, 5, 5000)), np.zeros(500)))
        self.assert_accurate(mixed)

    @given(st.one_of(st.floats(1e-140, 1e140), st.floats(-1e140, -1e-140), st.just(0.0), st.just(-0.0)))
    def test_every_value_is_estimated_within_one_percent(self, value: float) -> None:
        estimate = float(estimates_of(codes_of(np.array([value])))[0])
        self.assertLessEqual(abs(estimate - value), ACCURACY * abs(value))

    @given(values, values, values)
    @examples(150)
    def test_merging_is_associative_and_commutative_to_the_byte(self, a: list[float], b: list[float], c: list[float]) -> None:
        left = sketch_of(a)
        left.merge(sketch_of(b))
        left.merge(sketch_of(c))
        right = sketch_of(c)
        inner = sketch_of(b)
        inner.merge(sketch_of(a))
        right.merge(inner)
        self.assertEqual(left.dump(), right.dump())
        self.assertEqual(left.dump(), sketch_of(a + b + c).dump())
        self.assertEqual(left.dump(), sketch_of(list(reversed(a + b + c))).dump())
        self.assertEqual(Sketch.load(left.dump()).dump(), left.dump())

    @given(st.permutations([1e-100, 1e-60, 1e-30, 1e-20, 1.0, 1e20, 1e60, -1e-100, -1e80, -1.0]), st.integers(0, 10))
    def test_merging_is_exact_where_bins_collapse(self, spread: list[float], cut: int) -> None:
        pieces = sketch_of(spread[:cut])
        pieces.merge(sketch_of(spread[cut:]))
        self.assertEqual(pieces.dump(), sketch_of(sorted(spread)).dump())
        self.assertEqual(pieces.count, 10)

    def test_at_the_bound_every_key_has_its_bin_and_one_past_it_the_lowest_two_share(self) -> None:
        keys = np.arange(MAX_BINS)
        at = sketch_of(list(estimates_of(keys + 16_384)))
        self.assertEqual((at.bins, at.count), (MAX_BINS, MAX_BINS))
        past = sketch_of(list(estimates_of(np.arange(MAX_BINS + 1) + 16_384)))
        self.assertEqual((past.bins, past.count), (MAX_BINS, MAX_BINS + 1))
        self.assertAlmostEqual(past.quantile(0), float(estimates_of(np.array([16_385]))[0]))
        both = sketch_of(list(estimates_of(np.arange(5000) + 10_000)), list(-estimates_of(np.arange(5000) + 10_000)), [0.0])
        self.assertEqual((both.bins, both.count), (2 * MAX_BINS + 1, 10_001))

    def test_magnitudes_beyond_the_greatest_key_count_as_the_greatest(self) -> None:
        self.assertEqual(codes_of(np.array([1e300, 1e-300, -1e300, 5e-324])).tolist(), [32_767, 1, -32_767, 1])

    def test_nan_and_infinities_are_counted_and_not_recorded(self) -> None:
        sketch = sketch_of([1.0, math.nan, math.inf, -math.inf])
        self.assertEqual((sketch.count, sketch.refused), (1, 3))

    def test_an_empty_sketch_has_no_quantile(self) -> None:
        self.assertTrue(math.isnan(Sketch().quantile(0.5)))

    def test_a_quantile_outside_of_0_to_1_is_an_error(self) -> None:
        for q in (-0.01, 1.01, math.nan):
            self.assertRaises(ValueError, Sketch().quantile, q)

    @given(st.binary(max_size=40))
    def test_bytes_that_are_no_dump_are_refused_or_dump_the_same(self, content: bytes) -> None:
        try:
            sketch = Sketch.load(content)
        except ValueError:
            return
        self.assertEqual(sketch.count, Sketch.load(sketch.dump()).count)
