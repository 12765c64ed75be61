"""How deep a value is nested."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from taba.nesting import is_deeper


class Nesting(SynchronousTestCase):
    def test_at_the_bound_and_one_past_it(self) -> None:
        for value, most in ((17, 0), ([], 1), ([1], 1), ({"a": 1}, 1), ([[1], 2], 2), ({"a": {"b": []}}, 3), ({(1,): 2}, 2)):
            self.assertFalse(is_deeper(value, most), value)
            if most:
                self.assertTrue(is_deeper(value, most - 1), value)

    def test_what_is_deeper_than_anybody_can_recurse(self) -> None:
        value: Any = {}
        for _ in range(100_000):
            value = [value]
        self.assertTrue(is_deeper(value, 1000))
        while value:  # taken apart by hand: even its end would recurse
            [value] = value
