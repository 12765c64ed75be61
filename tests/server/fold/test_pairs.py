"""Pairs as values: so many times one value, and running totals; what is none is a bad value and harms nobody."""

from __future__ import annotations

import math
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from taba.handlers.counter_group import CounterGroup
from taba.handlers.cumulative import Cumulative
from taba.handlers.gauge import Gauge
from taba.handlers.numbers import MAX_TIMES
from taba.handlers.percentile_counter import PercentileCounter
from taba.handlers.percentile_group import PercentileGroup
from taba.handlers.totals_counter import TotalsCounter
from taba.handlers.updown import UpDown
from taba.server import keys

from ..samples import MemoryStore, batch, column, lookup_of, tab_in

A = tab_in(0, 0)
NOW = 1001.0


def projection(store: MemoryStore, handler: Any) -> Any:
    states = store.keys[keys.states(0)]
    field = keys.state_field(A, "web/1")
    parts = [keys.unframe(states.get(name)).dump for name in (field, *keys.part_fields(field, getattr(handler, "further_parts", 0)))]
    return handler.project(parts if hasattr(handler, "load_array") else handler.load(parts[0]), NOW)


class PairTests(SynchronousTestCase):
    def test_a_pair_means_the_value_so_many_times(self) -> None:
        for handler in (CounterGroup(), PercentileGroup(), TotalsCounter(), PercentileCounter()):
            store = MemoryStore()
            store.cycle(lookup_of(handler), [batch(1, 1, [column(A, handler.type, [2.0, [5.0, 3], 7, [1, 1]])])], now=NOW)
            store.cycle(
                lookup_of(handler), [batch(1, 2, [column(A, handler.type, [2.0]), column(A, handler.type, [[4, MAX_TIMES]])])], now=NOW
            )
            shown = projection(store, handler)
            shown = shown.get("pct", shown.get("1d", shown))
            self.assertEqual((shown["count"], shown["total"]), (7 + MAX_TIMES, 27 + 4 * MAX_TIMES), handler.type)
            self.assertEqual((shown["min"], shown["max"]), (1, 7))
            self.assertEqual(store.counts(), {"folded": 6})

    def test_what_is_no_pair_is_a_bad_value_and_its_neighbours_are_folded(self) -> None:
        bad = [[1, 0], [1, -1], [1, 1.5], [1, MAX_TIMES + 1], [1, True], [True, 1], ["x", 1], [1], [1, 2, 3], [], [[1, 1], 1], [1, None]]
        bad += [[math.nan, 1], [math.inf, 2], [1, math.nan], [10**400, 1], {"value": 1}]
        for handler in (CounterGroup(), PercentileGroup(), TotalsCounter(), PercentileCounter()):
            store = MemoryStore()
            store.cycle(lookup_of(handler), [batch(1, 1, [column(A, handler.type, [3.0, *bad, [2, 2]])])], now=NOW)
            self.assertEqual(store.counts(), {"folded": 2, "dead:bad_value": len(bad)}, handler.type)

    def test_elsewhere_a_pair_is_a_bad_value_or_a_value_like_any_other(self) -> None:
        store = MemoryStore()
        store.cycle(lookup_of(UpDown()), [batch(1, 1, [column(A, "UpDown", [3.0, [2, 2]])])], now=NOW)
        self.assertEqual(store.counts(), {"folded": 1, "dead:bad_value": 1})
        store = MemoryStore()
        store.cycle(lookup_of(Gauge()), [batch(1, 1, [column(A, "Gauge", [[2, 2]])])], now=NOW)
        self.assertEqual(projection(store, Gauge())["value"], [2, 2])

    def test_running_totals_add_their_increases(self) -> None:
        handler, store = Cumulative(), MemoryStore()
        totals: list[list[Any]] = [[[10, 5.0]], [[10, 5.0], [12, 5.0]], [[3, 990.0], [1, 990.0], [4, 990.0]], [7.0]]
        for number, values in enumerate(totals, 1):
            times = [900.0 + 10 * number + place for place in range(len(values))]
            store.cycle(lookup_of(handler), [batch(1, number, [column(A, "Cumulative", values, times=times)])], now=NOW)
        # 10; then 0 and 2; a new start: 3, after a fall 1 and 3; and a total of another start: 7
        self.assertEqual(projection(store, handler)["1h"]["total"], 10 + 2 + 3 + 1 + 3 + 7)
        store.cycle(
            lookup_of(handler), [batch(1, 9, [column(A, "Cumulative", [-1.0, [-1, 0], [1, -1], [math.nan, 1], "x"])], follows=4)], now=NOW
        )
        self.assertEqual(store.counts()["dead:bad_value"], 5)
