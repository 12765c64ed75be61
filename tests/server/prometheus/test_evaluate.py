"""What is made of series, once they are read: PromQL's arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.codes import codes_of
from taba.server.prometheus import vectors
from taba.server.prometheus.evaluate import Scalar, Value, evaluate
from taba.server.prometheus.leaf import Leaf
from taba.server.prometheus.syntax import Aggregation, flattened, nodes_of
from taba.server.prometheus.vectors import NAME, Refused, Spread, Vector, aggregated
from taba.server.work.child import expanded
from tests.examples import examples
from tests.sites import result_of

GONE = None  # no sample


def vector(*rows: tuple[dict[str, str], Sequence[float | None]]) -> Vector:
    values = [[math.nan if value is None else value for value in of_row] for _, of_row in rows]
    there = [[value is not None for value in of_row] for _, of_row in rows]
    return Vector([labels for labels, _ in rows], np.array(values, dtype=float), np.array(there, dtype=bool))


def summed(vector: Vector, leaf: Leaf) -> Vector:
    working = aggregated(Aggregation("sum", leaf.by, leaf.without, ()), vector, None)
    while True:
        try:
            next(working)
        except StopIteration as stop:
            found: Vector = stop.value
            return found


class Given:
    """Series by name, as if they were read."""

    def __init__(self, **series: Vector):
        self.series = series
        self.leaves: list[Leaf] = []
        self.turns = 0

    async def read(self, leaf: Leaf) -> Vector:
        self.leaves.append(leaf)
        [name] = [matcher.value for matcher in leaf.matchers if matcher.name == NAME]
        vector = self.series[name]
        return summed(vector, leaf) if leaf.sums else vector

    async def breathe(self) -> None:
        self.turns += 1

    async def rewrite(self, pattern: str, template: str, texts: Sequence[str]) -> list[str | None]:
        import re

        found = [re.fullmatch(pattern, text) for text in texts]
        return [None if match is None else expanded(match, template) for match in found]


def answer(text: str, given: Given | None = None, steps: int = 2) -> Value:
    value: Value = result_of(evaluate(nodes_of(flattened(text)), np.arange(steps, dtype=float) * 10, given or Given()))
    return value


def rows(value: Value) -> Any:
    """A Vector as {labels: values}."""
    assert isinstance(value, Vector), value
    return {
        tuple(sorted(labels.items())): [number if where else None for number, where in zip(of_row, there, strict=True)]
        for labels, of_row, there in zip(value.labels, value.values.tolist(), value.there.tolist(), strict=True)
        if any(there)
    }


A, B = {NAME: "x", "job": "a"}, {NAME: "x", "job": "b"}
X = vector((A, [1.0, 2.0]), (B, [10.0, GONE]))
Y = vector(({NAME: "y", "job": "a"}, [100.0, 200.0]), ({NAME: "y", "job": "c"}, [5.0, 5.0]))
GIVEN = Given(x=X, y=Y)
JOB_A, JOB_B = (("job", "a"),), (("job", "b"),)


class Operators(SynchronousTestCase):
    def test_numbers(self) -> None:
        for text, expected in (
            ("1+2*3", 7.0),
            ("-2^2", -4.0),
            ("2^3^2", 512.0),
            ("5%3", 2.0),
            ("-5%3", -2.0),
            ("1 > bool 2", 0.0),
            ("1/0", math.inf),
        ):
            value = answer(text)
            assert isinstance(value, Scalar)
            self.assertEqual(value.values.tolist(), [expected, expected], text)

    def test_arithmetic_drops_the_name_and_a_comparison_filters(self) -> None:
        self.assertEqual(rows(answer("x + 1", GIVEN)), {JOB_A: [2.0, 3.0], JOB_B: [11.0, GONE]})
        self.assertEqual(rows(answer("x > 1", GIVEN)), {tuple(sorted(A.items())): [GONE, 2.0], tuple(sorted(B.items())): [10.0, GONE]})
        self.assertEqual(rows(answer("1 < bool x", GIVEN)), {JOB_A: [0.0, 1.0], JOB_B: [1.0, GONE]})

    def test_two_vectors_meet_where_their_labels_do(self) -> None:
        self.assertEqual(rows(answer("y / x", GIVEN)), {JOB_A: [100.0, 100.0]})
        self.assertEqual(rows(answer("x and on(job) y", GIVEN)), {tuple(sorted(A.items())): [1.0, 2.0]})
        self.assertEqual(rows(answer("x unless on(job) y", GIVEN)), {tuple(sorted(B.items())): [10.0, GONE]})
        both = rows(answer("x or on(job) y", GIVEN))
        self.assertEqual(sorted(dict(key)["job"] for key in both), ["a", "b", "c"])

    def test_of_several_that_match_none_is_chosen(self) -> None:
        for text in ("x / on() y", "x / ignoring(job) y", "x * on() group_left y"):
            with self.assertRaisesRegex(Refused, "several series"):
                answer(text, GIVEN)
        one = Given(x=X, y=vector(({"version": "7"}, [2.0, 2.0])))
        found = rows(answer("x * on() group_left(version) y", one))
        self.assertEqual(found, {(("job", "a"), ("version", "7")): [2.0, 4.0], (("job", "b"), ("version", "7")): [20.0, GONE]})
        self.assertEqual(rows(answer("y * on() group_right(version) x", one)), found)

    def test_series_that_come_one_after_the_other_are_one(self) -> None:
        parted = Given(x=vector(({"pod": "1"}, [1.0, GONE]), ({"pod": "2"}, [GONE, 2.0])), y=vector(({}, [10.0, 10.0])))
        self.assertEqual(rows(answer("x + on() y", parted)), {(): [11.0, 12.0]})


class Aggregations(SynchronousTestCase):
    def test_each_over_what_is_there(self) -> None:
        for text, expected in (
            ("sum(y)", [105.0, 205.0]),
            ("avg(y)", [52.5, 102.5]),
            ("min(y)", [5.0, 5.0]),
            ("max(x)", [10.0, 2.0]),
            ("count(x)", [2.0, 1.0]),
            ("group(x)", [1.0, 1.0]),
            ("quantile(0.5, x)", [5.5, 2.0]),
            ("quantile(2, x)", [math.inf, math.inf]),
        ):
            self.assertEqual(rows(answer(text, GIVEN)), {(): expected}, text)
        self.assertEqual(rows(answer("sum by (job) (x)", GIVEN)), {JOB_A: [1.0, 2.0], JOB_B: [10.0, GONE]})
        self.assertEqual(rows(answer("sum without (job) (x)", GIVEN)), {(): [11.0, 2.0]})

    def test_the_most_keep_their_labels(self) -> None:
        self.assertEqual(rows(answer("topk(1, x)", GIVEN)), {tuple(sorted(A.items())): [GONE, 2.0], tuple(sorted(B.items())): [10.0, GONE]})
        self.assertEqual(rows(answer("bottomk(1, x)", GIVEN)), {tuple(sorted(A.items())): [1.0, 2.0]})
        self.assertEqual(rows(answer("topk(0, x)", GIVEN)), {})
        nan = Given(x=vector((A, [math.nan, math.nan]), (B, [1.0, 1.0])))
        self.assertEqual(rows(answer("topk(1, x)", nan)), {tuple(sorted(B.items())): [1.0, 1.0]})
        self.assertEqual(rows(answer("max(x)", nan)), {(): [1.0, 1.0]})

    def test_a_sum_right_above_a_selector_is_read_as_one(self) -> None:
        given = Given(x=vector(({}, [1.0, 1.0])))
        answer("sum by (job) ((rate(x[5m])))", given)
        answer("sum(x) + max(x)", given)
        told = sorted((leaf.function or "", leaf.range, leaf.sums, leaf.by) for leaf in given.leaves)
        self.assertEqual(told[-1], ("rate", 300.0, True, ("job",)))
        self.assertEqual([leaf[2] for leaf in told[:2]], [False, True])

    @given(st.lists(st.lists(st.none() | st.floats(-100, 100), min_size=3, max_size=3), min_size=1, max_size=6), st.floats(0, 1))
    @examples(60)
    def test_a_quantile_is_numpys(self, values: list[list[float | None]], rank: float) -> None:
        given = Given(x=vector(*(({"n": str(place)}, row) for place, row in enumerate(values))))
        found = rows(answer(f"quantile({rank!r}, x)", given, 3)).get((), [None] * 3)
        for step, value in enumerate(found):
            present = [row[step] for row in values if row[step] is not None]
            if not present:
                self.assertIsNone(value)
            else:
                self.assertAlmostEqual(value, float(np.quantile(np.array(present, dtype=float), rank)), places=6)


class Functions(SynchronousTestCase):
    def test_each(self) -> None:
        given = Given(x=vector(({}, [-1.5, 2.5])), none=vector(({}, [GONE, GONE])), y=Y)
        for text, expected in (
            ("abs(x)", [1.5, 2.5]),
            ("ceil(x)", [-1.0, 3.0]),
            ("floor(x)", [-2.0, 2.0]),
            ("round(x)", [-1.0, 3.0]),
            ("round(x, 0.5)", [-1.5, 2.5]),
            ("clamp(x, 0, 1)", [0.0, 1.0]),
            ("clamp_min(x, 0)", [0.0, 2.5]),
            ("clamp_max(x, 0)", [-1.5, 0.0]),
            ("timestamp(x)", [0.0, 10.0]),
            ("vector(time())", [0.0, 10.0]),
            ("absent(none)", [1.0, 1.0]),
            ("vector(scalar(x))", [-1.5, 2.5]),
            ("-x", [1.5, -2.5]),
            ("exp(x - x)", [1.0, 1.0]),
            ("round(x * 0 + 2.94, 0.1)", [2.9, 2.9]),  # not 2.9000000000000004
        ):
            self.assertEqual(rows(answer(text, given)), {(): expected}, text)
        self.assertEqual(rows(answer("clamp(x, 2, 1)", given)), {})
        self.assertEqual(rows(answer('absent(none{a="b", c=~"d"})', given)), {(("a", "b"),): [1.0, 1.0]})
        for text in ('absent((none{a="b"}))', 'absent(((none{a="b"})))'):  # brackets mean nothing
            self.assertEqual(rows(answer(text, given)), {(("a", "b"),): [1.0, 1.0]})
        for text in ("clamp(x, NaN, 1)", "clamp(x, 0, NaN)", "clamp_min(x, NaN)", "clamp_max(x, scalar(none))"):
            self.assertTrue(np.isnan(rows(answer(text, given))[()]).all(), text)
        several = answer("scalar(y)", given)
        assert isinstance(several, Scalar)
        self.assertTrue(np.isnan(several.values).all())

    def test_labels_are_replaced(self) -> None:
        found = rows(answer('label_replace(x, "kind", "<$1-${n}>", "job", "(?P<n>[ab])")', GIVEN))
        self.assertEqual(sorted(dict(key).get("kind", "") for key in found), ["<a-a>", "<b-b>"])
        with self.assertRaisesRegex(Refused, "same labels"):
            answer('label_replace(x, "job", "", "job", ".*")', GIVEN)
        renamed = rows(answer('label_replace(x, "__name__", "z", "job", ".*")', GIVEN))
        self.assertEqual([dict(key)["__name__"] for key in renamed], ["z", "z"])
        for target in ("", "1x", "~x", "a b"):
            with self.assertRaisesRegex(Refused, "no name of a label"):
                answer(f'label_replace(x, "{target}", "z", "job", ".*")', GIVEN)

    def test_what_is_not_answered_is_refused_with_a_sentence(self) -> None:
        for text, word in (
            ("predict_linear(x[5m], 3)", "predict_linear is not answered"),
            ("x[5m]", "functions only"),
            ("sort(x)", "sort is not answered"),
            ('count_values("v", x)', "count_values is not answered"),
            ("x[5m:1m]", "subqueries"),
            ("x atan2 y", "atan2 is not answered"),
            ("histogram_count(x)", "takes a distribution"),
            ("stddev(x)", "stddev is not answered"),
            ("topk(NaN, x)", "number of series, not NaN"),
            ("bottomk(-Inf, x)", "number of series, not -Inf"),
            ("+".join(["x"] * 51), "selectors"),
        ):
            with self.assertRaisesRegex(Refused, word):
                answer(text, GIVEN)


def spread(*of_rows: tuple[dict[str, str], list[float]]) -> Vector:
    """Distributions of these values, at two steps alike."""
    codes = np.unique(np.concatenate([codes_of(np.array(values)) for _, values in of_rows]))
    heat = np.array([[[(codes_of(np.array(values)) == code).sum() for code in codes]] * 2 for _, values in of_rows], dtype=float)
    count = heat.sum(axis=-1)
    total = np.array([[sum(values)] * 2 for _, values in of_rows])
    return Vector([labels for labels, _ in of_rows], np.zeros_like(count), count > 0, Spread(codes, heat, count, total))


class Distributions(SynchronousTestCase):
    def test_quantiles_are_within_one_percent_whatever_the_scale(self) -> None:
        values = [float(value) for value in range(1, 1001)]
        given = Given(x=spread(({"a": "1"}, values[:500]), ({"a": "2"}, values[500:])))
        for scale in ("", " / 300", " * 7"):
            for rank in (0.0, 0.5, 0.9, 0.99, 1.0):
                [found] = rows(answer(f"histogram_quantile({rank}, sum without (a) ((x{scale})))", given)).values()
                exact = max(1.0, rank * 1000)
                self.assertLessEqual(abs(found[0] - exact), 0.011 * exact, (scale, rank))

    def test_counts_sums_averages_and_shares(self) -> None:
        given = Given(x=spread(({}, [1.0, 2.0, 3.0, 10.0])))
        for text, expected in (
            ("histogram_count(x)", 4.0),
            ("histogram_sum(x)", 16.0),
            ("histogram_avg(x)", 4.0),
            ("histogram_fraction(-Inf, 5, x)", 0.75),
        ):
            self.assertEqual(rows(answer(text, given)), {(): [expected, expected]}, text)
        for text in ("x + 1", "max(x)", "abs(x)", "topk(1, x)"):
            with self.assertRaisesRegex(Refused, "distributions"):
                answer(text, given)
        self.assertEqual(rows(answer("count(x)", given)), {(): [1.0, 1.0]})

    def test_whatever_the_pieces_are_the_answer_is_the_same_and_others_have_turns_between_them(self) -> None:
        values = [float(value) for value in range(1, 60)]
        sketches = spread(({"a": "1"}, values[:9]), ({"a": "2"}, values), ({"a": "3"}, values[30:]))
        numbers = vector(*(({"a": str(place)}, [float(place), GONE if place == 1 else -2.5]) for place in range(4)))
        for text in (
            "abs(n)",
            "-n",
            "n > 1",
            "2 ^ n",
            "round(n, time())",
            "clamp(n, time() / 10, 2)",
            "histogram_quantile(0.5, x)",
            "histogram_quantile(time() / 10, x)",
            "histogram_quantile(time() - 5, x)",
            "histogram_quantile(0 / time(), x)",
            "histogram_fraction(time(), 20, x)",
            "histogram_count(x / 3)",
            "histogram_avg(x * time())",
            "histogram_fraction(0, 20, x / 0)",
        ):
            whole, pieces = (Given(x=sketches, n=numbers) for _ in range(2))
            expected = rows(answer(text, whole))
            with mock.patch.object(vectors, "PIECE_VALUES", 1):
                self.assertEqual(str(rows(answer(text, pieces))), str(expected), text)
            self.assertGreaterEqual(pieces.turns, whole.turns + 2, text)

    def test_of_nothing_there_is_nothing(self) -> None:
        given = Given(x=Vector.empty(2))
        asked = ("histogram_count(x)", "histogram_sum(x)", "histogram_avg(x)", "histogram_fraction(0, 1, x)", "histogram_quantile(0.5, x)")
        for text in (*asked, "sum(histogram_count(x))", "histogram_count(sum(x))"):
            self.assertEqual(rows(answer(text, given)), {}, text)
        for text in asked[:4]:
            with self.assertRaisesRegex(Refused, "takes a distribution"):
                answer(text, GIVEN)

    def test_buckets_are_reckoned_as_prometheus_does(self) -> None:
        # of Prometheus' own tests: 5 values up to 0.1, 3 more up to 0.2, 2 above
        buckets = vector(*(({NAME: "x_bucket", "le": le}, [count, count]) for le, count in (("0.1", 5.0), ("0.2", 8.0), ("+Inf", 10.0))))
        given = Given(x=buckets)
        for rank, expected in ((0.0, 0.0), (0.5, 0.1), (0.65, 0.15), (0.9, 0.2), (1.0, 0.2), (-1, -math.inf), (2, math.inf)):
            [found] = rows(answer(f"histogram_quantile({rank}, x)", given)).values()
            self.assertTrue(found[0] == expected or math.isclose(found[0], expected), (rank, found))
        lacking = Given(x=vector(({"le": "0.1"}, [1.0, 1.0])))
        [found] = rows(answer("histogram_quantile(0.5, x)", lacking)).values()
        self.assertTrue(math.isnan(found[0]))
