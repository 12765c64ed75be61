"""What answers say is the same text, whether C or Python writes it."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from taba.handlers.lookup import shown
from taba.server.ask import answering
from taba.server.ask.answering import written


class Text(str):
    """A text of a kind of its own."""


class Whole(int):
    """A number of a kind of its own."""


class Real(float):
    """A fraction of a kind of its own, as numpy's are."""


PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats()
    | st.sampled_from([0.0, -0.0, 17.0, 2.0**63, -(2.0**63), 2.0**63 - 1024, 5e-324, 1.7976931348623157e308, 0.1, 1e22, 123456.789e3])
    | st.text(max_size=20)
)
ODD = (
    st.binary(max_size=8)
    | st.sampled_from([Text("of a kind"), Whole(17), Real(0.5), Real(17.0), Real(1e300), Real("nan")])
    | st.complex_numbers()
    | st.sets(st.integers(0, 9), max_size=1)
)
KEYS = st.text(max_size=6) | st.sampled_from(["_bins", "_", "p99.9"]) | st.binary(max_size=4) | st.integers(0, 9) | st.just(Text("_own"))
VALUES = st.recursive(
    PLAIN | ODD,
    lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=30,
)


def outcome(write: Any, value: Any) -> Any:
    try:
        return write(value, shown)
    except Exception as error:
        return type(error)


class Written(SynchronousTestCase):
    def setUp(self) -> None:
        if answering._write is answering.write_plainly:
            raise SkipTest("the part in C is not built: python setup.py build_ext --inplace")

    @given(VALUES)
    def test_c_and_python_write_the_same(self, value: Any) -> None:
        self.assertEqual(outcome(answering._write, value), outcome(answering.write_plainly, value))

    def test_what_is_often_there_is_written_each_time(self) -> None:
        fractions = [number / 7 for number in range(1, 400)] * 2
        self.assertEqual(written(fractions), answering.write_plainly(fractions, shown))

    def test_half_a_character_is_refused_and_not_written_as_something_else(self) -> None:
        self.assertRaises(UnicodeEncodeError, written, {"half": "\ud800"})

    def test_what_contains_itself_is_refused(self) -> None:
        endless: list[Any] = []
        endless.append(endless)
        self.assertRaises(RecursionError, written, endless)

    def test_fractions_of_other_kinds_are_written_as_fractions(self) -> None:
        self.assertEqual(written({"own": Real(0.5), "numpy": [np.float64(0.1), np.float64(17.0)]}), '{"own": 0.5, "numpy": [0.1, 17]}')

    def test_what_is_put_in_while_it_is_written_does_no_harm(self) -> None:
        class Meddling:
            def __str__(self) -> str:
                value.pop("second", None)
                value[5] = 1
                return "text"

        value: dict[Any, Any] = {"first": Meddling(), "second": 2}
        self.assertRaises(RuntimeError, written, value)

    def test_no_reference_is_kept(self) -> None:
        value = {"values": [object(), (math.pi, "text", b"bytes")], 1: {"_hidden": "x" * 1000}}
        item = value["values"]
        written(value)
        before = sys.getrefcount(value), sys.getrefcount(item)
        for _ in range(100):
            written(value)
        self.assertEqual((sys.getrefcount(value), sys.getrefcount(item)), before)
