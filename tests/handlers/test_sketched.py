"""Cardinality and TopK: how exact, how large, and what happens without the library that they need."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from twisted.trial.unittest import SynchronousTestCase

from taba.handlers import Events
from taba.handlers.cardinality import MAX_STATE_BYTES, STANDARD_ERROR, Cardinality
from taba.handlers.opaque import MAX_TEXT, identity
from taba.handlers.topk import CAPACITY, ERROR_SHARE, MAX_SAMPLES, MAX_SHOWN, TopK
from taba.installing import install_hint
from tests.patience import PATIENCE_SECONDS

NOW = 1_763_850_120.0
ROOT = Path(__file__).resolve().parents[2]
cardinality, topk = Cardinality(), TopK()


def fold(handler: Any, values: Any, state: Any = None) -> Any:
    return handler.fold(handler.new_state() if state is None else state, Events([NOW] * len(values), values), NOW)


class CardinalityTests(SynchronousTestCase):
    def distinct(self, *states: Any) -> int:
        return int(cardinality.aggregate([cardinality.project(state, NOW) for state in states])["distinct"])

    def test_few_values_are_counted_exactly(self) -> None:
        self.assertEqual(self.distinct(fold(cardinality, [])), 0)
        for count in (1, 7, 8, 100, 500):
            self.assertEqual(self.distinct(fold(cardinality, [str(place) for place in range(count)] * 3)), count)

    def test_many_values_are_counted_within_four_standard_errors_in_little_space(self) -> None:
        state = b""
        for start in range(0, 200_000, 20_000):
            state = fold(cardinality, [f"user/{place}" for place in range(start, start + 20_000)], state)
            self.assertLessEqual(abs(self.distinct(state) / (start + 20_000) - 1), 4 * STANDARD_ERROR)
        self.assertLessEqual(len(state), MAX_STATE_BYTES)

    def test_over_clients_it_is_the_union_whatever_the_order_of_values_and_clients(self) -> None:
        values = [str(place) for place in range(5000)]
        shuffled = random.Random(3).sample(values, len(values))
        pieces = [fold(cardinality, shuffled[start : start + 700]) for start in range(0, 5000, 700)]
        whole = self.distinct(fold(cardinality, values))
        self.assertEqual({self.distinct(*pieces), self.distinct(*pieces[::-1]), self.distinct(cardinality.merge(pieces))}, {whole})
        self.assertEqual(self.distinct(fold(cardinality, values), *pieces), whole)
        one = b""
        for start in range(0, 5000, 37):
            one = fold(cardinality, shuffled[start : start + 37], one)
        self.assertEqual(self.distinct(one), whole)

    def test_values_are_told_apart_by_their_json(self) -> None:
        self.assertEqual({identity(17), identity(17.0)}, {"17"})
        values = [17, 17.0, "17", b"17", True, 1, None, math.nan, math.inf, {"_a": 1}, {"_a": 2}]
        self.assertEqual(self.distinct(fold(cardinality, values)), 9)
        self.assertEqual(self.distinct(fold(cardinality, np.array([1.0, 2.0, 2.0, 0.5]))), 3)


class TopKTests(SynchronousTestCase):
    def test_up_to_its_capacity_counts_are_exact(self) -> None:
        values = [f"v{place}" for place in range(CAPACITY) for _ in range(1 + place % 7)]
        top = topk.project(fold(topk, values), NOW)["top"]
        self.assertEqual(len(top), MAX_SHOWN)
        self.assertEqual({(count, error) for _, count, error in top}, {(7, 0)})

    def test_beyond_its_capacity_every_count_is_within_its_error_and_the_most_frequent_are_there(self) -> None:
        values = np.random.default_rng(5).zipf(1.2, 200_000) % 100_000
        exact = dict(zip(*(column.tolist() for column in np.unique(values, return_counts=True)), strict=True))
        states = [fold(topk, values[start : start + 20_000].astype(float)) for start in range(0, 200_000, 20_000)]
        one = b""
        for start in range(0, 200_000, 5_000):
            one = fold(topk, [f"{value}" for value in values[start : start + 5_000].tolist()], one)
        for top in (topk.aggregate([topk.project(state, NOW) for state in states])["top"], topk.project(one, NOW)["top"]):
            for value, count, error in top:
                self.assertLessEqual(error, ERROR_SHARE * len(values))
                self.assertTrue(count - error <= exact[int(value)] <= count, (value, count, error, exact[int(value)]))
            self.assertEqual([int(value) for value, _, _ in top[:5]], sorted(exact, key=lambda value: -exact[value])[:5])

    def test_values_come_back_as_they_are(self) -> None:
        values = ["17", "17", "17", 17.0, 17, [1, {"b": 2}], None, None, None, None]
        self.assertEqual(topk.project(fold(topk, values), NOW)["top"], [[None, 4, 0], ["17", 3, 0], [17, 2, 0], [[1, {"b": 2}], 1, 0]])

    def test_a_long_text_is_cut_and_still_told_apart(self) -> None:
        short, one, other = "x" * (MAX_TEXT - 2), "x" * (MAX_TEXT - 1), "x" * MAX_TEXT
        top = topk.project(fold(topk, [short, one, one, other, other, other]), NOW)["top"]
        self.assertEqual([count for _, count, _ in top], [3, 2, 1])
        self.assertEqual(top[2][0], short)
        self.assertTrue(all(len(value) < MAX_TEXT and value.startswith("xxx") and "…" in value for value, _, _ in top[:2]))

    def test_samples_are_few_and_their_labels_differ(self) -> None:
        samples = topk.samples(topk.project(fold(topk, ["17", 17.0, *[f"v{place}" for place in range(30)]] * 2), NOW))
        self.assertLessEqual(len(samples), MAX_SAMPLES)
        self.assertEqual(len({sample.labels["value"] for sample in samples}), len(samples))


class LibraryTests(SynchronousTestCase):
    def test_bytes_that_are_no_sketch_never_reach_the_library(self) -> None:
        for handler in (cardinality, topk):
            good = fold(handler, ["a", "b"])
            for bad in (good[:-1], good + b"x", b"x", b"\0" * 40, good[:9] + bytes([good[9] ^ 1]) + good[10:]):
                self.assertRaises(ValueError, handler.load, bad)
                self.assertRaises(ValueError, handler.project, bad, NOW)

    def test_without_the_library_its_types_are_reported_with_the_cure_and_the_others_work(self) -> None:
        program = (
            "import sys, json; sys.modules['datasketches'] = None\n"
            "from taba.handlers.lookup import find_handlers\n"
            "lookup = find_handlers(); print(json.dumps([lookup.types, lookup.problems]))"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE_SECONDS)
        types, problems = json.loads(done.stdout)
        self.assertIn("Buffer", types)
        self.assertNotIn("TopK", types)
        self.assertNotIn("Cardinality", types)
        for type in ("Cardinality", "TopK"):
            [problem] = [problem for problem in problems if f":{type}" in problem]
            self.assertIn(install_hint("server"), problem)
