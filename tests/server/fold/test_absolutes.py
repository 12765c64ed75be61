"""Absolutes count the events that they stand for, whatever becomes of them; a value that only looks like one is a bad value."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from taba.batch import RING_ENDED, RING_GONE, Column
from taba.handlers.gauge import Gauge
from taba.handlers.updown import UpDown

from ..samples import MemoryStore, batch, column, lookup_of
from .test_pairs import A, projection

NOW = 1001.0
RING = bytes(16)


def absolute(position: int, total: float, events: int, type: str = "UpDown", ring: bytes = RING) -> Column:
    return column(A, type, [[ring, position, total]])._replace(stands_for=events)


class AbsoluteTests(SynchronousTestCase):
    def test_the_greatest_position_of_each_ring_stands_and_posted_deltas_beside_it(self) -> None:
        store = MemoryStore()
        columns = [absolute(5, 3.0, 5), absolute(2, 9.0, 2), column(A, "UpDown", [1.0, 2]), absolute(4, 0.5, 4, ring=b"r" * 16)]
        store.cycle(lookup_of(UpDown()), [batch(1, 1, columns)], now=NOW)
        self.assertEqual(projection(store, UpDown())["value"], 3.0 + 3.0 + 0.5)
        self.assertEqual(store.counts(), {"folded": 5 + 2 + 2 + 4})
        store.cycle(lookup_of(UpDown()), [batch(1, 2, [absolute(RING_ENDED, 0.0, 1), absolute(99, 7.0, 0)])], now=NOW)
        self.assertEqual(projection(store, UpDown())["value"], 3.5)
        store.cycle(lookup_of(UpDown()), [batch(1, 3, [absolute(RING_GONE, 0.0, 0)])], now=NOW)
        self.assertEqual(projection(store, UpDown())["value"], 3.5)
        self.assertEqual(store.counts(), {"folded": 14})

    def test_one_that_cannot_be_folded_is_a_dead_letter_of_all_its_events(self) -> None:
        for handlers, made, reason in (
            ([UpDown()], absolute(-1, 3.0, 7), "handler_error"),
            ([UpDown()], absolute(1, float("nan"), 7), "handler_error"),
            ([Gauge()], absolute(1, 3.0, 7), "unknown_type"),
            ([Gauge()], absolute(1, 3.0, 7, type="Gauge"), "bad_value"),
        ):
            store = MemoryStore()
            store.cycle(lookup_of(*handlers), [batch(1, 1, [made])], now=NOW)
            self.assertEqual(store.counts(), {f"dead:{reason}": 7}, reason)

    def test_a_value_that_looks_like_one_is_a_bad_value(self) -> None:
        store = MemoryStore()
        values: list[Any] = [1.0, [RING, 5, 3.0], "x", True, None, {"a": 1}]
        store.cycle(lookup_of(UpDown()), [batch(1, 1, [column(A, "UpDown", values)])], now=NOW)
        self.assertEqual(projection(store, UpDown())["value"], 1.0)
        self.assertEqual(store.counts(), {"folded": 1, "dead:bad_value": 5})
