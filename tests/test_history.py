"""One curve for all that is asked about the past, against the raw events: any time, however wide the slots have become."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.codes import codes_of, estimates_of, uppers_of
from taba.handlers import Events, Ever, History
from taba.handlers.counter_group import CounterGroup
from taba.handlers.percentile_group import PercentileGroup
from taba.history import MAX_POINTS, curve, heat_map, increases, joined, number, points, quantiles, resample
from tests.examples import examples

NOW = 1_763_850_123.0
counter, percentile = CounterGroup(), PercentileGroup()

ages = st.one_of(st.floats(0, 50), st.floats(0, 4000), st.floats(0, 90_000), st.integers(0, 9000).map(float))
recorded = st.lists(st.tuples(ages, st.integers(-5, 50).map(float)), max_size=60)
clients = st.lists(recorded, min_size=1, max_size=3)


def state_of(handler: Any, recorded: list[tuple[float, float]]) -> Any:
    """Recorded and folded bit by bit over the day, so that slots of every width are there."""
    state = handler.new_state()
    for time, value in sorted((NOW - age, value) for age, value in recorded):
        state = handler.fold(state, Events([time], [value]), time)
    return state


def one(history: Any, times: Any, total: int = 1, groups: list[int] | None = None) -> tuple[Any, Any]:
    states = len(history.ever.count)
    return curve(history, np.array(groups or [0] * states), total, times)


class CurveTests(SynchronousTestCase):
    @given(clients, st.lists(st.floats(0, 90_000), max_size=20), st.sampled_from([0.0, 3.0, 700.0, 20_000.0]))
    @examples(100)
    def test_it_is_exact_at_borders_and_nowhere_off_by_more_than_the_slots_it_passes_through(
        self, several: list[list[tuple[float, float]]], asked: list[float], later: float
    ) -> None:
        now = NOW + later
        events = [(NOW - age, value) for recorded in several for age, value in recorded]
        for handler in (counter, percentile):
            history = handler.history([state_of(handler, recorded) for recorded in several], now)
            starts, ends = np.asarray(history.start, dtype=float), np.asarray(history.end, dtype=float)
            known = [time for time in {*(now - age for age in asked), *starts.tolist(), *ends.tolist(), now} if time >= history.since]
            times = sorted(known)
            counts, totals = one(history, times)
            self.assertTrue((np.diff(counts[0]) >= 0).all())
            for time, count, total in zip(times, counts[0].tolist(), totals[0].tolist(), strict=True):
                # the slot that is not over ends at now, whatever it will become
                before = [value for at, value in events if (at < time if time < now else True)]
                passes = (starts < time) & (time < ends)
                slack = np.asarray(history.count)[passes].sum()
                self.assertLessEqual(abs(count - len(before)), slack)
                if not slack:
                    self.assertEqual(count, len(before))
                    self.assertAlmostEqual(total, sum(before), 6)
            self.assertEqual(one(history, [now])[0][0, 0], len(events))

    @given(clients, st.floats(0, 20_000), st.sampled_from([5.0, 15.0, 61.0, 900.0]))
    @examples(60)
    def test_merged_clients_have_the_sum_of_their_curves_and_groups_share_nothing(
        self, several: list[list[tuple[float, float]]], end: float, step: float
    ) -> None:
        times = points(NOW - end - 20 * step, NOW - end, step)
        for handler in (counter, percentile):
            states = [state_of(handler, recorded) for recorded in several]
            history = handler.history(states, NOW)
            apart = curve(history, np.arange(len(states)), len(states), times)
            together = one(history, times)
            alone = [one(handler.history([state], NOW), times) for state in states]
            for place in (0, 1):
                np.testing.assert_allclose(apart[place].sum(axis=0), together[place][0], rtol=1e-12, atol=1e-7)
                for row, lines in enumerate(alone):
                    np.testing.assert_allclose(apart[place][row], lines[place][0], rtol=1e-12, atol=1e-7)

    def test_a_steady_rate_is_steady_in_ranges_that_end_in_the_past(self) -> None:
        state, start = counter.new_state(), NOW // 900 * 900 - 7200
        for minute in range(120):  # a fold a minute: what a slot holds does not depend on how often one folds
            stamps = [start + 60 * minute + second + 0.5 for second in range(60) for _ in range(2)]
            state = counter.fold(state, Events(stamps, [1.0, 3.0] * 60), stamps[-1])
        now = start + 7200.0
        history = counter.history([state], now)
        for end in (now, now - 60, now - 900, now - 3600):
            times = points(end - 45, end, 15)
            steps = resample(history, np.array([0]), 1, times, 15)
            np.testing.assert_allclose(steps.count[0], [30] * 4)
            np.testing.assert_allclose(steps.total[0], [60] * 4)

    def test_what_lies_before_the_day_is_not_known_and_level(self) -> None:
        for handler in (counter, percentile):
            state = handler.fold(handler.new_state(), Events([NOW - 200_000, NOW], [1.0, 1.0]), NOW)
            history = handler.history([state], NOW)
            self.assertEqual(one(history, [NOW - 300_000, NOW - 3600, NOW])[0].tolist(), [[1, 1, 2]])
            grown, _ = increases(history, np.array([0]), 1, np.array([history.since - 1, history.since]), np.array([NOW, NOW]))
            self.assertTrue(math.isnan(grown[0, 0]))
            self.assertEqual(grown[0, 1], 1)

    def test_it_never_falls_however_small_the_steps(self) -> None:
        rng = np.random.default_rng(1)
        several = [[(float(age), 1.0) for age in rng.uniform(0, 80_000, 200)] for _ in range(3)]
        history = counter.history([state_of(counter, recorded) for recorded in several], NOW)
        times = np.linspace(NOW - 5000, NOW, MAX_POINTS)
        self.assertTrue((np.diff(one(history, times)[0]) >= 0).all())

    def test_a_sum_beyond_all_floats_spoils_its_own_group_alone(self) -> None:
        big = counter.fold(counter.new_state(), Events([NOW - 10, NOW - 9], [1e308, 1e308]), NOW)
        history = counter.history([big, counter.fold(counter.new_state(), Events([NOW - 10], [2.0]), NOW)], NOW)
        counts, totals = curve(history, np.array([0, 1]), 2, [NOW - 60, NOW])
        self.assertEqual((counts.tolist(), totals[1].tolist()), ([[0, 2], [0, 1]], [0, 2]))
        self.assertEqual(self.flushWarnings(), [])

    @given(
        st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40), st.integers(0, 12), st.integers(1, 9)), max_size=12),
        st.lists(st.integers(0, 200), min_size=1, max_size=12),
    )
    @examples(150)
    def test_slots_of_any_widths_that_overlap_are_summed(self, slots: list[tuple[int, int, int, int]], quarters: list[int]) -> None:
        history = History(
            since=0.0,
            row=[row for row, *_ in slots],
            start=[start for _, start, _, _ in slots],
            end=[start + width for _, start, width, _ in slots],
            count=[count for *_, count in slots],
            total=[float(count) for *_, count in slots],
            ever=Ever(count=[sum(count for row, *_, count in slots if row == own) for own in range(3)], total=[0.0] * 3),
        )
        times = sorted(quarter / 4 for quarter in quarters)
        found, _ = curve(history, np.arange(3), 3, times)
        for row in range(3):
            model = [
                sum(
                    count * (min(max((time - start) / width, 0), 1) if width else float(time >= start))
                    for of, start, width, count in slots
                    if of == row
                )
                for time in times
            ]
            np.testing.assert_allclose(found[row], model, atol=1e-9)


class StepTests(SynchronousTestCase):
    def test_steps_of_whole_slots_are_exact(self) -> None:
        end = 1_763_850_600.0  # a multiple of every width up to 10 minutes
        events = Events([end - age for age in (1, 4, 6, 11, 14, 16, 44)], [2.0] * 7)
        for handler in (counter, percentile):
            steps = resample(
                handler.history([handler.fold(handler.new_state(), events, end)], end), np.array([0]), 1, points(end - 45, end, 15), 15
            )
            self.assertEqual(steps.count.tolist(), [[0, 1, 1, 5]])
            self.assertEqual(steps.total.tolist(), [[0, 2, 2, 10]])

    def test_percentiles_of_each_step_are_those_of_the_values_in_its_slots(self) -> None:
        end = 1_763_850_600.0
        stamps = [end - 115 + place % 50 for place in range(1000)] + [end - 10]
        state = percentile.fold(percentile.new_state(), Events(stamps, [*map(float, range(1000)), 7.0]), end)
        steps = resample(percentile.history([state], end), np.array([0]), 1, [end - 60, end], 60)
        assert steps.low is not None and steps.high is not None and steps.codes is not None and steps.heat is not None
        self.assertEqual((steps.low.tolist(), steps.high.tolist()), ([[0, 7]], [[999, 7]]))
        self.assertEqual(steps.heat.sum(axis=2).tolist(), [[1000, 1]])
        found = quantiles(steps.codes, steps.heat, [0.0, 0.5, 0.9, 1.0])
        np.testing.assert_allclose(found[0, 0], [0, 499, 899, 999], rtol=0.01)
        np.testing.assert_allclose(found[0, 1], [7] * 4, rtol=0.01)

    @given(clients, st.floats(0, 4000), st.sampled_from([15.0, 61.0, 900.0]))
    @examples(60)
    def test_a_heat_map_adds_up_to_the_counts(self, several: list[list[tuple[float, float]]], end: float, step: float) -> None:
        history = percentile.history([state_of(percentile, recorded) for recorded in several], NOW)
        times, groups = points(NOW - end - 9 * step, NOW - end, step), np.array([place % 2 for place in range(len(several))])
        steps = resample(history, groups, 2, times, step)
        assert steps.heat is not None
        np.testing.assert_allclose(steps.heat.sum(axis=2), steps.count, atol=1e-9)
        self.assertTrue((steps.heat >= 0).all())

    @given(clients, st.lists(st.tuples(st.floats(0, 90_000), st.floats(0, 4000)), min_size=1, max_size=5))
    @examples(60)
    def test_a_heat_map_of_any_intervals_is_what_each_slot_by_itself_has_in_them(
        self, several: list[list[tuple[float, float]]], spans: list[tuple[float, float]]
    ) -> None:
        history = percentile.history([state_of(percentile, recorded) for recorded in several], NOW)
        groups = np.array([place % 3 for place in range(len(several))])
        begins, ends = np.array([NOW - age for age, _ in spans]), np.array([NOW - age + length for age, length in spans])
        codes, heat = heat_map(history, groups, 3, begins, ends)
        wanted: dict[tuple[int, int, int], float] = {}
        bins = iter(zip(history.codes, history.counts, strict=True))  # type: ignore[arg-type]
        for row, start, end, size in zip(history.row, history.start, history.end, history.bins, strict=True):  # type: ignore[arg-type]
            for code, count in [next(bins) for _ in range(int(size))]:
                for place, (begin, until) in enumerate(zip(begins, ends, strict=True)):
                    share = max(0.0, min(until, end) - max(begin, start)) / (end - start) if end > start else float(begin < start <= until)
                    key = int(groups[int(row)]), place, int(code)
                    wanted[key] = wanted.get(key, 0.0) + share * float(count)
        known = [place for place, begin in enumerate(begins) if begin >= history.since]
        found = {
            (group, place, int(code)): heat[group, place, at] for group in range(3) for place in known for at, code in enumerate(codes)
        }
        for key in {key for key in wanted if key[1] in known} | set(found):
            self.assertAlmostEqual(found.get(key, 0.0), wanted.get(key, 0.0), places=6)
        self.assertTrue(np.isnan(np.delete(heat, known, axis=1)).all())

    def test_what_is_empty_or_unknown_has_no_value(self) -> None:
        history = percentile.history([percentile.new_state()], NOW)
        steps = resample(history, np.array([0]), 1, [NOW - 90_000, NOW], 60)
        assert steps.low is not None and steps.heat is not None and steps.codes is not None
        np.testing.assert_equal(steps.count, [[np.nan, 0]])
        self.assertTrue(np.isnan(steps.low).all())
        self.assertTrue(np.isnan(quantiles(steps.codes, steps.heat, [0.5])).all())
        state = percentile.fold(percentile.new_state(), Events([NOW], [1.0]), NOW)
        codes, heat = heat_map(
            percentile.history([state], NOW), np.array([0]), 1, np.array([NOW - 90_000, NOW - 60]), np.array([NOW, NOW - 5])
        )
        self.assertTrue(np.isnan(quantiles(codes, heat, [0.5])).all())

    def test_points_are_bounded_and_a_step_goes_somewhere(self) -> None:
        self.assertEqual(points(0, 10, 5), [0, 5, 10])
        self.assertEqual(points(0, 9.9, 5), [0, 5])
        self.assertEqual(points(5, 0, 5), [])
        self.assertEqual(len(points(1, MAX_POINTS, 1)), MAX_POINTS)
        self.assertRaises(ValueError, points, 0, MAX_POINTS, 1)
        for step in (0, -1, math.nan, 1e-310, 5e-324, -5e-324, -math.inf, math.inf):
            self.assertRaises(ValueError, points, 0, 3600, step)
        self.assertEqual(points(7, 7, 5e-324), [7])
        for start, end in ((0, math.inf), (-math.inf, 0), (math.nan, 1), (0, math.nan), (-1e308, 1e308), (-math.inf, math.inf)):
            self.assertRaises(ValueError, points, start, end, 1)
        # 2^40 seconds are told to a quarter of a millisecond, and so small a step ends where it began
        self.assertRaisesRegex(ValueError, "goes nowhere", points, 2.0**40 - 0.001, 2.0**40, 1e-5)

    def test_groups_are_numbered_by_their_first(self) -> None:
        groups, names = number(["b", "a", "b", "c"])
        self.assertEqual((groups.tolist(), names), ([0, 1, 0, 2], ["b", "a", "c"]))


class SlotTests(SynchronousTestCase):
    @given(clients)
    @examples(60)
    def test_joined_slots_hold_what_all_clients_slots_hold(self, several: list[list[tuple[float, float]]]) -> None:
        for handler in (counter, percentile):
            history = handler.history([state_of(handler, recorded) for recorded in several], NOW)
            [slots] = joined(history, np.zeros(len(several), dtype=np.int64), 1)
            self.assertEqual(
                [(slot.start, slot.end) for slot in slots], sorted({*zip(map(float, history.start), map(float, history.end), strict=True)})
            )
            self.assertEqual(sum(slot.count for slot in slots), sum(history.count))
            for slot in slots:
                if slot.bins is not None:
                    self.assertEqual(sum(count for _, count in slot.bins), slot.count)

    @given(st.lists(st.floats(-1e9, 1e9).map(lambda value: value if abs(value) > 1e-9 else 0.0), min_size=1, max_size=50))
    def test_a_value_lies_in_its_bin(self, values: list[float]) -> None:
        array = np.array(values)
        codes = codes_of(array)
        uppers = uppers_of(codes)
        self.assertTrue((array <= uppers + 1e-9 * np.abs(uppers)).all())
        self.assertTrue((np.abs(estimates_of(codes) - array) <= 0.01 * np.abs(array) + 1e-140).all())
        order = np.unique(codes)
        self.assertTrue((np.diff(uppers_of(order)) > 0).all())
        self.assertTrue((estimates_of(order) <= uppers_of(order)).all())
