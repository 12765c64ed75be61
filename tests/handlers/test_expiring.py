"""ExpiryGauge and Buffer: what holds for how long, what goes first, and what is no expiry."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.handlers import Events
from taba.handlers.buffer import MAX_BYTES, MAX_VALUES, Buffer
from taba.handlers.expiry_gauge import HOLD_SECONDS, ExpiryGauge
from tests.examples import examples

NOW = 1_763_850_120.0
LONG = "b" * 20_000  # three of them have room
gauge, buffer = ExpiryGauge(), Buffer()


def fold(handler: Any, *events: tuple[float, Any], now: float = NOW, state: Any = None) -> Any:
    state = handler.new_state() if state is None else state
    return handler.fold(state, Events([time for time, _ in events], [value for _, value in events]), now)


class ExpiryGaugeTests(SynchronousTestCase):
    def test_a_value_holds_for_its_seconds_from_its_time(self) -> None:
        state = fold(gauge, (NOW - 10, {"value": "up", "seconds": 30}))
        self.assertEqual(gauge.project(state, NOW + 19.9), {"value": "up", "time": NOW - 10})
        self.assertFalse(gauge.prunable(state, NOW + 19.9))
        self.assertEqual(gauge.project(state, NOW + 20), {"value": None, "time": None})
        self.assertTrue(gauge.prunable(state, NOW + 20))

    def test_any_other_value_holds_a_day(self) -> None:
        no_expiry = [{"value": 1}, *({"value": 1, "seconds": seconds} for seconds in ("long", math.nan, True))]
        for value in (17.0, "x", *no_expiry):
            state = fold(gauge, (NOW, value))
            self.assertEqual(gauge.project(state, NOW + HOLD_SECONDS - 1)["time"], NOW, value)
            self.assertTrue(gauge.prunable(state, NOW + HOLD_SECONDS))

    def test_the_last_value_by_time_stands_even_when_it_expires_first(self) -> None:
        state = fold(gauge, (NOW, {"value": 1, "seconds": 5}), (NOW - 1, {"value": 2, "seconds": 500}))
        self.assertEqual(gauge.project(state, NOW)["value"], 1)
        self.assertEqual(gauge.project(state, NOW + 6)["value"], None)

    def test_an_aggregate_counts_the_clients_whose_values_hold(self) -> None:
        states = [fold(gauge, (NOW, {"value": value, "seconds": seconds})) for value, seconds in ((1, 5), (2, 50), (2, 50))]
        aggregate = gauge.aggregate([gauge.project(state, NOW + 10) for state in states])
        self.assertEqual(aggregate, {"values": {"2": 2}, "clients": 2, "sum": 4, "average": 2, "min": 2, "max": 2})

    def test_an_event_from_the_future_is_held_to_now(self) -> None:
        state = fold(gauge, (NOW + 9999, {"value": 1, "seconds": 5}))
        self.assertEqual(gauge.project(state, NOW)["time"], NOW)
        self.assertEqual(gauge.project(fold(gauge, (NOW + 1, 2), now=NOW + 1, state=state), NOW + 1)["value"], 2)

    def test_a_time_kept_beyond_now_yields_to_any_newer_fold(self) -> None:
        for ahead in (0.001, 1.0, 40 * 86_400.0):
            state = fold(gauge, (NOW + ahead, {"value": "wrong", "seconds": 1e9}), now=NOW + ahead)
            self.assertEqual(gauge.project(fold(gauge, (NOW - 5, "right"), state=state), NOW)["value"], "right", ahead)
        state = fold(gauge, (NOW, "kept"))
        self.assertEqual(gauge.project(fold(gauge, (NOW - 5, "late"), state=state), NOW)["value"], "kept")


class BufferTests(SynchronousTestCase):
    def values(self, state: Any, now: float = NOW) -> list[Any]:
        return [value for _, value in buffer.project(state, now)["values"]]

    def test_values_are_shown_oldest_first_with_their_times_until_they_expire(self) -> None:
        state = fold(buffer, (NOW - 5, "late"), (NOW - 9, "early"), (NOW - 7, {"value": "brief", "seconds": 10}))
        self.assertEqual(buffer.project(state, NOW), {"values": [[NOW - 9, "early"], [NOW - 7, "brief"], [NOW - 5, "late"]]})
        self.assertEqual(self.values(state, NOW + 3), ["early", "late"])
        self.assertFalse(buffer.prunable(state, NOW + HOLD_SECONDS - 6))
        self.assertTrue(buffer.prunable(state, NOW + HOLD_SECONDS - 5))

    def test_at_the_bound_all_values_are_kept_and_one_past_it_the_oldest_goes(self) -> None:
        state = fold(buffer, *[(NOW - place, place) for place in range(MAX_VALUES)])
        self.assertEqual(len(self.values(state)), MAX_VALUES)
        state = fold(buffer, (NOW + 1, "new"), now=NOW + 1, state=state)
        self.assertEqual(self.values(state), [*range(MAX_VALUES - 2, -1, -1), "new"])

    def test_at_the_bound_of_bytes_the_latest_are_kept_and_at_least_one(self) -> None:
        half = "x" * (MAX_BYTES // 2 - 2)
        self.assertEqual(len(self.values(fold(buffer, (NOW - 1, half), (NOW, half)))), 2)
        self.assertEqual(self.values(fold(buffer, (NOW - 2, "old"), (NOW - 1, half), (NOW, half))), [half, half])
        self.assertEqual(self.values(fold(buffer, (NOW - 1, half), (NOW, half + "x"))), [half + "x"])
        self.assertEqual(self.values(fold(buffer, (NOW - 1, "old"), (NOW, 3 * half))), [3 * half])
        umlauts = "ä" * (MAX_BYTES // 4)
        self.assertEqual(len(self.values(fold(buffer, *[(NOW - place, umlauts) for place in range(3)]))), 1)

    @given(
        st.lists(
            st.tuples(st.integers(0, 500), st.sampled_from(["a", LONG, {"value": "c", "seconds": 100}])),
            max_size=150,
            unique_by=lambda event: event[0],
        ),
        st.lists(st.integers(0, 150), max_size=4),
    )
    @examples(100)
    def test_pieces_keep_what_the_whole_keeps(self, events: list[tuple[int, Any]], cuts: list[int]) -> None:
        pairs = [(NOW - age, value) for age, value in events]
        whole, pieces, last = fold(buffer, *pairs), buffer.new_state(), 0
        for cut in [*sorted(cuts), len(pairs)]:
            pieces = fold(buffer, *pairs[last:cut], state=pieces, now=NOW + cut)
            last = max(cut, last)
        self.assertTrue(pieces == whole, (pieces[0], whole[0], len(pieces[1]), len(whole[1])))  # their text would be long

    def test_values_of_one_time_are_kept_alike_however_they_were_folded(self) -> None:
        a, b, c, x = ((NOW - 20, "a" * 30_000), (NOW - 20, "b" * 30_000), (NOW - 20, "c" * 30_000), (NOW - 19, "x"))
        for events in ([a, b, c, x], [x, a, b, c], [a, x, (NOW - 20, "small"), b, c], [a, b, c, (NOW - 20, "small")]):
            whole = fold(buffer, *events)
            for cut in range(1, len(events)):
                pieces = fold(buffer, *events[cut:], state=fold(buffer, *events[:cut]))
                self.assertTrue(pieces == whole, [value[:1] for value in self.values(pieces)])
        self.assertEqual([value[0] for value in self.values(fold(buffer, a, b, c, x))], ["b", "c", "x"])

    def test_what_a_clock_far_ahead_kept_shuts_nothing_out(self) -> None:
        ahead = NOW + 40 * 86_400
        for kept in ([(ahead, "a")], [(ahead, LONG)] * 5, [(ahead, "a")] * (MAX_VALUES + 1)):
            state = fold(buffer, (NOW - 1, "right"), state=fold(buffer, *kept, now=ahead))
            self.assertEqual(len(self.values(state)), min(len(kept) + 1, len(state[1])))
            state = fold(buffer, *[(NOW + 1 + place, place) for place in range(MAX_VALUES)], now=NOW + MAX_VALUES, state=state)
            self.assertEqual(self.values(state), list(range(MAX_VALUES)))

    def test_an_aggregate_has_the_latest_of_all_clients(self) -> None:
        states = [fold(buffer, *[(NOW - 3 * place - client, f"{client}/{place}") for place in range(90)]) for client in range(3)]
        projections = [buffer.project(state, NOW) for state in states]
        aggregate = buffer.aggregate(projections)
        self.assertEqual(len(aggregate["values"]), MAX_VALUES)
        self.assertEqual([time for time, _ in aggregate["values"]], [NOW - age for age in range(99, -1, -1)])
        self.assertEqual(aggregate, buffer.aggregate(projections[::-1]))
        self.assertEqual(buffer.aggregate([buffer.project(buffer.new_state(), NOW)]), {"values": []})
