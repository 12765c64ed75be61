"""Cumulative: increases of a running total, whoever forwards it and however often."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.handlers import Events
from taba.handlers.cumulative import Cumulative
from tests.examples import examples

NOW = 1_763_850_120.0
handler = Cumulative()


def fold(state: Any, *events: tuple[float, Any], now: float = NOW) -> Any:
    return handler.fold(state, Events([time for time, _ in events], [value for _, value in events]), now)


class CumulativeTests(SynchronousTestCase):
    def total(self, state: Any) -> float:
        [total] = handler.history([state], NOW).ever.total
        return float(total)

    @given(st.lists(st.tuples(st.integers(0, 50), st.booleans(), st.integers(0, 3)), max_size=30))
    @examples(100)
    def test_it_adds_up_to_what_was_counted_however_often_a_total_is_sent(self, steps: list[tuple[int, bool, int]]) -> None:
        state, counted, running, start = handler.new_state(), 0, 0, NOW - 9000
        for place, (more, restarts, repeats) in enumerate(steps):
            if restarts:
                running, start = 0, NOW - 8000 + place
            running, counted = running + more, counted + more
            for repeat in range(1 + repeats):
                state = fold(state, (NOW - 3000 + 60 * place + repeat, [running, start]))
        self.assertEqual(self.total(state), counted)
        self.assertEqual(handler.project(state, NOW)["1d"]["total"], counted)

    def test_a_fall_is_a_new_beginning(self) -> None:
        state = fold(handler.new_state(), (NOW - 30, 10.0), (NOW - 20, 12.0), (NOW - 10, 5.0), (NOW - 5, 6.0))
        self.assertEqual(self.total(state), 10 + 2 + 5 + 1)

    def test_what_comes_late_is_in_what_came_before_and_counted(self) -> None:
        state = fold(fold(handler.new_state(), (NOW - 10, [20, 1.0])), (NOW - 20, [10, 1.0]), (NOW - 15, [15, 1.0]))
        self.assertEqual(self.total(state), 20)
        self.assertEqual(handler.detail(state, NOW)["late"], 2)
        self.assertNotIn("late", handler.project(state, NOW))

    def test_a_time_kept_beyond_now_yields(self) -> None:
        state = fold(handler.new_state(), (NOW + 40 * 86_400, [20, 1.0]), now=NOW + 40 * 86_400)
        state = fold(state, (NOW - 5, [25, 1.0]))
        self.assertEqual(self.total(state), 25)
        self.assertEqual(self.total(fold(state, (NOW - 4, [26, 1.0]))), 26)

    def test_it_is_shown_as_a_counter_group_without_percentiles(self) -> None:
        projection = handler.project(fold(handler.new_state(), (NOW, [7, 1.0])), NOW)
        self.assertEqual(projection["1m"], {"count": 1, "total": 7, "average": 7})
        aggregate = handler.aggregate([projection, projection])
        self.assertEqual([key for key in aggregate if key[0] != "_"], ["1m", "10m", "1h", "1d"])
        self.assertEqual(aggregate["1d"], {"count": 2, "total": 14, "average": 7})
