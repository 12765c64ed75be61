"""Every Type that Taba ships with keeps the contract."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.handlers.buffer import Buffer
from taba.handlers.cardinality import Cardinality
from taba.handlers.counter_group import CounterGroup
from taba.handlers.cumulative import Cumulative
from taba.handlers.expiry_gauge import ExpiryGauge
from taba.handlers.gauge import Gauge
from taba.handlers.noop import Noop
from taba.handlers.percentile_counter import PercentileCounter
from taba.handlers.percentile_group import PercentileGroup
from taba.handlers.render import shown
from taba.handlers.testing import EXAMPLES, NOW, HandlerContract, events_of, numbers
from taba.handlers.topk import TopK
from taba.handlers.totals_counter import TotalsCounter
from taba.handlers.updown import UpDown
from tests.examples import share

pytestmark = pytest.mark.hypothesis  # the contract draws examples

anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63), st.floats(), st.text(max_size=9), st.binary(max_size=9)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(st.text(max_size=3), st.integers(0, 9)), inner, max_size=3)
    ),
    max_leaves=6,
)
expiring = st.one_of(
    anything, st.fixed_dictionaries({"value": anything, "seconds": st.one_of(st.integers(-5, 9000), st.floats(), st.just("x"))})
)


class Contract(HandlerContract):
    examples = share(EXAMPLES)


class CounterGroupTests(Contract, SynchronousTestCase):
    handler = CounterGroup()


sampled = st.one_of(numbers(), st.tuples(numbers().filter(math.isfinite), st.integers(1, 1000)).map(list))
running = st.one_of(
    st.floats(0, 1e6), st.tuples(st.one_of(st.integers(0, 50), st.floats(0, 1e6)), st.sampled_from([0, NOW - 9000, NOW - 50.5])).map(list)
)


class CounterGroupOfPairsTests(Contract, SynchronousTestCase):
    handler = CounterGroup()
    values = sampled


class PercentileGroupOfPairsTests(Contract, SynchronousTestCase):
    handler = PercentileGroup()
    values = sampled
    first_version = 2


class TotalsCounterOfPairsTests(Contract, SynchronousTestCase):
    handler = TotalsCounter()
    values = sampled


class PercentileCounterOfPairsTests(Contract, SynchronousTestCase):
    handler = PercentileCounter()
    values = sampled


class CumulativeTests(Contract, SynchronousTestCase):
    handler = Cumulative()
    values = running
    order_matters = True


class TotalsCounterTests(Contract, SynchronousTestCase):
    handler = TotalsCounter()


class UpDownTests(Contract, SynchronousTestCase):
    handler = UpDown()


class PercentileGroupTests(Contract, SynchronousTestCase):
    handler = PercentileGroup()
    first_version = 2


class PercentileCounterTests(Contract, SynchronousTestCase):
    handler = PercentileCounter()


class GaugeOfNumbersTests(Contract, SynchronousTestCase):
    handler = Gauge()
    values = st.one_of(st.integers(-1000, 1000).map(float), st.floats(-1e6, 1e6))
    by_time = True


class GaugeTests(Contract, SynchronousTestCase):
    handler = Gauge()
    values = anything
    by_time = True


class ExpiryGaugeTests(Contract, SynchronousTestCase):
    handler = ExpiryGauge()
    values = expiring
    by_time = True


class BufferTests(Contract, SynchronousTestCase):
    handler = Buffer()
    values = expiring
    by_time = True


class BufferOfNumbersTests(Contract, SynchronousTestCase):
    handler = Buffer()
    by_time = True


class BufferOfLongTextsTests(Contract, SynchronousTestCase):
    handler = Buffer()
    values = st.sampled_from(["a", "b" * 20_000, "c" * 30_000, "d" * 40_000, "e" * 70_000, {"value": "f" * 30_000, "seconds": 100}])
    by_time = True


class CardinalityTests(Contract, SynchronousTestCase):
    handler = Cardinality()
    values = anything


class CardinalityOfNumbersTests(Contract, SynchronousTestCase):
    handler = Cardinality()


class TopKTests(Contract, SynchronousTestCase):
    handler = TopK()
    values = anything


class TopKOfNumbersTests(Contract, SynchronousTestCase):
    handler = TopK()


class NoopTests(Contract, SynchronousTestCase):
    handler = Noop()


class WholeNumberTests(SynchronousTestCase):
    def test_counts_and_totals_of_whole_numbers_are_exact_in_pieces_and_over_clients(self) -> None:
        values = [float(value) for value in (2**52, 3, -7, 2**51, 1, 2**50 + 1)]
        handlers: tuple[tuple[Any, Callable[[Any], Any], Callable[[Any], Any]], ...] = (
            (TotalsCounter(), lambda shown: shown["total"], lambda shown: shown["count"]),
            (UpDown(), lambda shown: shown["value"], lambda shown: 12),
            (PercentileCounter(), lambda shown: shown["total"], lambda shown: shown["count"]),
            (CounterGroup(), lambda shown: shown["1d"]["total"], lambda shown: shown["pct"]["count"]),
            (PercentileGroup(), lambda shown: shown["1d"]["total"], lambda shown: shown["1h"]["count"]),
        )
        for handler, total, count in handlers:
            state = handler.new_state()
            for value in values:
                state = handler.fold(state, events_of([(NOW, value)]), NOW)
            whole = handler.fold(handler.new_state(), events_of([(NOW, value) for value in values]), NOW)
            found = shown(handler.aggregate([handler.project(state, NOW), handler.project(whole, NOW)]))
            self.assertEqual((total(found), count(found)), (2 * int(sum(map(int, values))), 12), handler.type)
            self.assertIs(type(total(found)), int)
