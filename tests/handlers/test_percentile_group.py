"""PercentileGroup: windows against a model that keeps every event, and sizes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.bounds import KiB
from taba.codes import ACCURACY
from taba.handlers import Events, percentile_group
from taba.handlers.percentile_group import JOURNAL_SLOTS, LADDER, PercentileGroup
from taba.handlers.ragged import MalformedRow
from taba.handlers.render import shown
from taba.handlers.sketch import PERMILLES
from taba.handlers.windows import WINDOWS
from taba.server.work.renewing import MAX_STATE_BYTES

NOW = 1_763_850_120.0
handler = PercentileGroup()


def fold(state: list[bytes], events: list[tuple[float, float]], now: float) -> list[bytes]:
    return handler.fold(state, Events([time for time, _ in events], [value for _, value in events]), now)


class PercentileGroupTests(SynchronousTestCase):
    def assert_models(self, projection: dict[str, Any], events: list[tuple[float, float]], now: float) -> None:
        for (name, span), width in zip(WINDOWS.items(), LADDER.widths.tolist(), strict=True):
            inside = sorted(value for time, value in events if math.floor(time / width) * width + width > now - span)
            p = projection[name]
            self.assertEqual((p["count"], p["total"]), (len(inside), sum(inside)))
            self.assertEqual((p["min"], p["max"]), (inside[0], inside[-1]) if inside else (None, None))
            for key, permille in PERMILLES.items():
                if inside:
                    exact = inside[(len(inside) - 1) * permille // 1000]
                    self.assertLessEqual(abs(p[key] - exact), ACCURACY * abs(exact))
                else:
                    self.assertIsNone(p[key])

    @given(
        st.lists(
            st.tuples(
                st.one_of(st.integers(0, 60), st.integers(0, 900), st.integers(0, 40_000)),  # seconds until this fold
                st.lists(
                    st.tuples(
                        st.one_of(st.floats(-3, 30), st.floats(-30, 4000), st.floats(0, 100_000)), st.integers(-500, 5000).map(float)
                    ),
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
            self.assert_models(handler.project(state, now), kept, now)
        self.assert_models(handler.project(state, now + later), kept, now + later)

    def test_a_server_whose_clock_is_ahead_takes_nothing_away(self) -> None:
        for lead in (7200.0, 40 * 86_400.0):
            state, whole = handler.new_state(), handler.new_state()
            for step in range(90):
                now = NOW + 960 * step
                events = [(now - 30.0 * place, 1.0 + place % 5) for place in range(30)]
                state = fold(state, events, now + lead * (step % 3))
                whole = fold(whole, events, now)
            for later in (0, 400, 50_000):
                self.assertEqual(shown(handler.project(state, now + later)), shown(handler.project(whole, now + later)))
            self.assertLess(sum(map(len, state)), 6 * KiB)

    @pytest.mark.real
    def test_a_full_day_takes_at_most_6_kib(self) -> None:
        for events in (40, 4000):  # a cycle: every bin in every slot, its count in one byte or in two
            rng, further, now = np.random.default_rng(3), [b"", b""], NOW
            states = handler.load_array([b""])
            for step in range(0, 92_000, 15):
                now = NOW + step
                values = np.exp(np.concatenate((np.arange(20), rng.integers(0, 20, events - 20))) * 0.1)
                states = handler.fold_array(states, np.zeros(events, dtype=np.int64), np.full(events, now - 1.0), values, now)
                if len(handler.spilling(states)):
                    [further] = handler.spill(states, np.array([0]), [further])
            state = handler.dump_array(states) + further
            self.assertLessEqual(sum(len(part) + 6 for part in state), 6144, events)

    def test_at_the_bound_the_journal_keeps_its_slots_and_one_past_it_spills(self) -> None:
        state = fold(handler.new_state(), [(NOW - 150 * slot, 1.0) for slot in range(JOURNAL_SLOTS)], NOW)
        self.assertEqual(state[1], b"")
        state = fold(state, [(NOW - 150 * JOURNAL_SLOTS, 1.0)], NOW)
        self.assertNotEqual(state[1], b"")
        self.assertEqual(handler.project(state, NOW)["1h"]["count"], JOURNAL_SLOTS + 1)

    def test_events_from_the_future_before_the_windows_and_without_a_number_are_counted(self) -> None:
        state = fold(handler.new_state(), [(NOW + 50, 1.0), (NOW - 100_000, 2.0), (NOW, math.nan), (math.nan, 3.0)], NOW)
        projection = handler.project(state, NOW)
        self.assertEqual([projection[name] for name in ("_refused", "_held", "_old")], [1, 2, 1])
        self.assertEqual(projection["1m"]["count"], 2)

    def test_one_value_is_shown_exactly(self) -> None:
        projection = handler.project(fold(handler.new_state(), [(NOW, 12.34)], NOW), NOW)
        self.assertEqual({projection["1m"][name] for name in ("min", "max", "p25", "p50", "p99.9")}, {12.34})

    def test_a_state_that_is_none_is_refused_by_row(self) -> None:
        [good, *_] = fold(handler.new_state(), [(NOW, 1.5), (NOW, 2.0), (NOW - 40, 7.0)], NOW)
        odd = [good[:place] + b"\xff" + good[place + 1 :] for place in (12, 23, 36)]  # its mark, its count, the length of a column
        for bad in (good[:-8], good + bytes(8), b"x", bytes(32), b"\xff" * 32, *odd):
            with self.assertRaises(MalformedRow) as caught:
                handler.load_array([good, b"", bad, good])
            self.assertEqual(caught.exception.row, 2, bad)

    def test_what_is_wrong_further_on_names_the_row_among_all(self) -> None:
        handler_states = handler.load_array([b""] * 5)
        with self.assertRaises(MalformedRow) as caught:
            handler.spill(handler_states, np.array([1, 4]), [[b"", b""], [bytes(8), b""]])
        self.assertEqual(caught.exception.row, 4)
        self.patch(percentile_group, "LOT_BYTES", 1)
        state = handler.new_state()
        for step in range(60):
            state = fold(state, [(NOW - 3600 + 60 * step, 1.0)], NOW - 3600 + 60 * step)
        further = state[1:]
        self.assertTrue(further[0])
        for place in range(3):
            parts = [further] * 3
            parts[place] = [further[0] + bytes(8), further[1]]
            with self.assertRaises(MalformedRow) as caught:
                handler.aggregate_array(handler.load_array([b""] * 3), parts, np.zeros(3, dtype=np.int64), 1, NOW)
            self.assertEqual(caught.exception.row, place)

    @pytest.mark.real
    def test_a_day_of_nine_decades_and_the_widest_that_there_is_are_bounded(self) -> None:
        rng = np.random.default_rng(4)
        for decades, signs, most in ((9, [1.0], 160 * KiB), (260, [1.0, -1.0], MAX_STATE_BYTES)):
            further, now = [b"", b""], NOW
            states = handler.load_array([b""])
            for step in range(0, 92_000, 60):  # every key in every slot
                now = NOW + step
                values = 10 ** rng.uniform(-decades / 2, decades / 2, 4000) * rng.choice(signs, 4000)
                states = handler.fold_array(states, np.zeros(4000, dtype=np.int64), now - rng.uniform(0, 60, 4000), values, now)
                if len(handler.spilling(states)):
                    [further] = handler.spill(states, np.array([0]), [further])
            sizes = [len(part) for part in (*handler.dump_array(states), *further)]
            self.assertLessEqual(max(sizes), most, (decades, sizes))
