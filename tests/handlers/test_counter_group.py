"""CounterGroup: windows against a model that keeps every event, sizes, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.handlers import Events
from taba.handlers.counter_group import JOURNAL_SLOTS, LADDER, CounterGroup
from taba.handlers.percentile_counter import PercentileCounter
from taba.handlers.percentile_group import PercentileGroup
from taba.handlers.ragged import MalformedRow
from taba.handlers.render import shown
from taba.handlers.totals_counter import TotalsCounter
from taba.handlers.windows import MAX_AHEAD_SECONDS, WINDOWS

NOW = 1_763_850_120.0
handler = CounterGroup()


def fold(state: list[bytes], events: list[tuple[float, float]], now: float) -> list[bytes]:
    return handler.fold(state, Events([time for time, _ in events], [value for _, value in events]), now)


def modelled(events: list[tuple[float, float]], now: float) -> dict[str, dict[str, Any]]:
    """The windows at `now`, from all events with their times as held."""
    windows = {}
    for (name, span), width in zip(WINDOWS.items(), LADDER.widths.tolist(), strict=True):
        inside = [value for time, value in events if math.floor(time / width) * width + width > now - span]
        windows[name] = {"count": len(inside), "total": sum(inside), "average": sum(inside) / len(inside) if inside else None}
    return windows


def windows_of(projection: dict[str, Any]) -> dict[str, Any]:
    return {name: projection[name] for name in WINDOWS}


class WindowTests(SynchronousTestCase):
    @given(
        st.lists(
            st.tuples(
                st.one_of(st.integers(0, 20), st.integers(0, 400), st.integers(0, 40_000)),  # seconds until this fold
                st.lists(
                    st.tuples(st.one_of(st.floats(-3, 30), st.floats(-30, 4000), st.floats(0, 100_000)), st.integers(-5, 50).map(float)),
                    max_size=30,
                ),
            ),
            max_size=12,
        ),
        st.one_of(st.integers(0, 100), st.integers(0, 100_000)),
    )
    def test_windows_are_those_of_a_model_that_keeps_every_event(
        self, folds: list[tuple[int, list[tuple[float, float]]]], later: int
    ) -> None:
        now, state, kept = NOW, handler.new_state(), []
        for wait, events in folds:
            now += wait
            events = [(now - age, value) for age, value in events]
            state = fold(state, events, now)
            kept += [(min(time, now), value) for time, value in events]
            self.assertEqual(windows_of(handler.project(state, now)), modelled(kept, now))
        projection = handler.project(state, now + later)
        self.assertEqual(windows_of(projection), modelled(kept, now + later))
        self.assertEqual((projection["pct"]["count"], projection["pct"]["total"]), (len(kept), sum(value for _, value in kept)))

    @pytest.mark.real
    def test_a_full_day_of_one_event_in_thirteen_seconds_is_exact_and_small(self) -> None:
        state, kept, mains, now = handler.new_state(), [], [], NOW
        for step in range(0, 91_000, 13):
            now = NOW + step
            events = [(now - 1.0, 1.5 * (step % 20) + 0.1)]
            state = fold(state, events, now)
            kept += events
            mains.append(len(state[0]))
        self.assertLessEqual(max(mains), 450)
        self.assertLessEqual(sum(len(part) + 6 for part in state), 2560)
        projection, model = handler.project(state, now), modelled(kept, now)
        for name in WINDOWS:
            self.assertEqual(projection[name]["count"], model[name]["count"])
            self.assertAlmostEqual(projection[name]["total"], model[name]["total"], 6)

    @pytest.mark.real
    def test_a_busy_day_stays_within_the_budget(self) -> None:
        rng, state, now = np.random.default_rng(3), handler.new_state(), NOW
        states = handler.load_array([b""])
        further = [b""]
        for step in range(0, 87_000, 5):
            now = NOW + step
            times = np.full(3000, now - 1.0)
            values = np.exp(rng.integers(0, 20, 3000) * 0.1)
            states = handler.fold_array(states, np.zeros(3000, dtype=np.int64), times, values, now)
            if len(handler.spilling(states)):
                [further] = handler.spill(states, np.array([0]), [further])
        state = handler.dump_array(states) + further
        self.assertLessEqual(sum(len(part) + 6 for part in state), 2560)
        self.assertEqual(handler.project(state, now)["pct"]["count"], 3000 * 17_400)

    def test_one_active_minute_takes_at_most_400_bytes(self) -> None:
        events = [(NOW - second / 10, math.exp(second % 20)) for second in range(600)]
        [main, archive] = fold(handler.new_state(), events, NOW)
        self.assertLessEqual(len(main) + 6, 400)
        self.assertEqual(archive, b"")

    def test_at_the_bound_the_journal_keeps_its_slots_and_one_past_it_spills(self) -> None:
        state = fold(handler.new_state(), [(NOW - 60 * slot, 1.0) for slot in range(JOURNAL_SLOTS)], NOW)
        self.assertEqual(state[1], b"")
        state = fold(state, [(NOW - 60 * JOURNAL_SLOTS, 1.0)], NOW)
        self.assertNotEqual(state[1], b"")
        self.assertEqual(handler.project(state, NOW)["1h"]["count"], JOURNAL_SLOTS + 1)

    def test_events_from_the_future_are_held_to_now_and_counted(self) -> None:
        state = fold(handler.new_state(), [(NOW + 10_000, 2.0), (math.inf, 3.0), (math.nan, 4.0), (NOW, 5.0)], NOW)
        projection = handler.project(state, NOW)
        self.assertEqual((projection["1m"]["count"], projection["_held"]), (4, 3))
        self.assertEqual(handler.project(state, NOW + 70)["1m"]["count"], 0)

    def test_events_older_than_the_windows_count_in_the_all_time_figures_alone(self) -> None:
        state = fold(handler.new_state(), [(NOW - 100_000, 2.0), (-math.inf, 3.0), (0.0, 4.0)], NOW)
        projection = handler.project(state, NOW)
        self.assertEqual((projection["1d"]["count"], projection["pct"]["count"], projection["pct"]["total"]), (0, 3, 9.0))

    def test_nan_and_infinities_are_refused_and_counted(self) -> None:
        projection = handler.project(fold(handler.new_state(), [(NOW, math.nan), (NOW, -math.inf), (NOW, 1.0)], NOW), NOW)
        self.assertEqual((projection["_refused"], projection["pct"]["count"], projection["1m"]["total"]), (2, 1, 1.0))

    def test_a_sum_beyond_all_floats_is_shown_as_no_value(self) -> None:
        state = fold(fold(handler.new_state(), [(NOW, 1e308)] * 3, NOW), [(NOW - 1, 1e308)] * 3, NOW)
        projection = shown(handler.aggregate([handler.project(state, NOW)]))
        self.assertEqual((projection["1m"]["count"], projection["1m"]["total"], projection["pct"]["total"]), (6, None, None))
        self.assertEqual(projection["pct"]["p50"], shown(1e308))
        self.assertEqual(self.flushWarnings(), [])

    @pytest.mark.real
    def test_a_pair_beyond_all_floats_is_shown_as_no_value(self) -> None:
        for of_type in (handler, PercentileGroup(), TotalsCounter(), PercentileCounter()):
            state = of_type.fold(of_type.new_state(), Events([NOW], [[1e308, 100]]), NOW)
            projection = shown(of_type.project(state, NOW))
            found = projection.get("pct", projection.get("1d", projection))
            self.assertEqual((found["count"], found["total"]), (100, None))
        self.assertEqual(self.flushWarnings(), [])

    def test_merged_states_of_a_day_show_what_the_clients_showed(self) -> None:
        rng, states = np.random.default_rng(4), []
        for client in range(4):
            state = handler.new_state()
            for step in range(200):
                now = NOW + 450 * step
                state = fold(state, [(now - float(rng.integers(0, 300)), float(rng.integers(0, 99)))], now + client)
            states.append(state)
        for later in (10, 400, 5000):
            aggregate = handler.aggregate([handler.project(state, now + later) for state in states])
            self.assertEqual(handler.aggregate([handler.project(handler.merge(states), now + later)]), aggregate)

    def test_what_is_no_number_is_an_error(self) -> None:
        for value in ("1", None, True, b"x", [1]):
            self.assertRaises(ValueError, handler.fold, handler.new_state(), Events([NOW], [value]), NOW)

    def test_a_server_whose_clock_is_ahead_takes_nothing_away(self) -> None:
        for lead in (7200.0, 40 * 86_400.0):
            state, whole = handler.new_state(), handler.new_state()
            for step in range(90):
                now = NOW + 960 * step
                events = [(now - 30.0 * place, 1.0 + place) for place in range(30)]
                state = fold(state, events, now + lead * (step % 3))
                whole = fold(whole, events, now)
            for later in (0, 400, 50_000):
                self.assertEqual(shown(handler.project(state, now + later)), shown(handler.project(whole, now + later)))
            self.assertLess(sum(map(len, state)), 2500)

    def test_a_clock_that_was_far_ahead_loses_nothing(self) -> None:
        ahead = NOW + 50 * 86_400
        state = fold(handler.new_state(), [(ahead - 100 * slot, 1.0) for slot in range(50)], ahead)
        state = fold(state, [(NOW, 1.0)], NOW)
        projection = handler.project(state, NOW)
        self.assertEqual(projection["pct"]["count"], 51)
        self.assertEqual(projection["1d"]["count"], 51)
        for step in range(100):
            state = fold(state, [(NOW + 60 * step, 1.0)], NOW + 60 * step)
        self.assertLess(sum(map(len, state)), 2500)
        self.assertEqual(handler.project(state, NOW + 6000)["pct"]["count"], 151)
        self.assertGreater(MAX_AHEAD_SECONDS, 60)

    def test_a_state_that_is_none_is_refused_by_row(self) -> None:
        [good, _] = fold(handler.new_state(), [(NOW, 1.0)], NOW)
        for bad in (good[:-8], good + bytes(8), b"x", bytes(48), b"\xff" * 48, good[:48] + bytes(8) + good[56:]):
            with self.assertRaises(MalformedRow) as caught:
                handler.load_array([good, b"", bad, good])
            self.assertEqual(caught.exception.row, 2, bad)

    def test_what_is_wrong_further_on_names_the_row_among_all(self) -> None:
        handler_states = handler.load_array([b""] * 5)
        with self.assertRaises(MalformedRow) as caught:
            handler.spill(handler_states, np.array([1, 4]), [[b"", b""], [bytes(8), b""]])
        self.assertEqual(caught.exception.row, 4)

    def test_whole_numbers_are_exact_up_to_2_to_the_53(self) -> None:
        big = float(2**52)
        state = fold(fold(handler.new_state(), [(NOW, big)], NOW), [(NOW, big - 1)], NOW)
        self.assertEqual(handler.project(state, NOW)["1m"]["total"], 2**53 - 1)

    def test_the_shape_is_the_documented_one(self) -> None:
        empty = handler.aggregate([handler.project(handler.new_state(), NOW)])
        self.assertEqual(empty["1m"], {"count": 0, "total": 0, "average": None})
        self.assertEqual([key for key in empty if not key.startswith("_")], ["1m", "10m", "1h", "1d", "pct"])
        pct = ["count", "total", "min", "max", "p25", "p50", "p75", "p90", "p95", "p99", "p99.9"]
        self.assertEqual([key for key in empty["pct"] if not key.startswith("_")], pct)
        one = handler.project(fold(handler.new_state(), [(NOW, 17.0)], NOW), NOW)
        self.assertEqual(handler.render(one).count("17"), 4 * 2 + 1 + 2 + 7)
        self.assertNotIn("17.", handler.render(one))

    @pytest.mark.real
    def test_a_fold_every_three_seconds_reads_and_writes_at_most_500_bytes(self) -> None:
        rng, main, further, now = np.random.default_rng(1), b"", [b""], NOW
        moved = folds = 0
        for wait in [30] * 2900 + [3] * 400:  # a full day, then what is measured
            now += wait
            states = handler.load_array([main])
            states = handler.fold_array(
                states, np.zeros(1, dtype=np.int64), np.array([now - 1.0]), np.exp(rng.integers(0, 20, 1) * 0.05), now
            )
            cost = len(main) + 6
            if len(handler.spilling(states)):
                cost += len(further[0]) + 6
                [further] = handler.spill(states, np.array([0]), [further])
            [main] = handler.dump_array(states)
            if wait == 3:
                moved, folds = moved + cost, folds + 1
        self.assertLessEqual(moved / folds, 500)
