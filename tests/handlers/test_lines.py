"""What exporters, charts and `?detail=1` show of windows: slots that add up to their window, lines that add up to what was recorded."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.handlers import Events, counter_group, percentile_group
from taba.handlers.counter_group import CounterGroup
from taba.handlers.lookup import find_handlers
from taba.handlers.percentile_counter import PercentileCounter
from taba.handlers.percentile_group import PercentileGroup
from taba.handlers.samples import MAX_POINTS, points
from taba.handlers.sketch import PERMILLES
from taba.handlers.totals_counter import TotalsCounter
from taba.handlers.windows import WINDOWS

NOW = 1_763_850_123.0
counter, percentile = CounterGroup(), PercentileGroup()

recorded = st.lists(
    st.tuples(st.one_of(st.floats(0, 50), st.floats(0, 4000), st.floats(0, 90_000)), st.integers(-5, 50).map(float)), max_size=60
)


def fold(handler: Any, events: list[tuple[float, float]], now: float = NOW, state: Any = None) -> Any:
    state = handler.new_state() if state is None else state
    return handler.fold(state, Events([time for time, _ in events], [value for _, value in events]), now)


def state_of(handler: Any, ages: list[tuple[float, float]]) -> Any:
    """Recorded and folded bit by bit over the day, so that slots of every width are there."""
    state, events = handler.new_state(), sorted((NOW - age, value) for age, value in ages)
    for time, value in events:
        state = fold(handler, [(time, value)], time, state)
    return state


class DetailTests(SynchronousTestCase):
    @given(recorded, st.sampled_from([0, 7, 100, 4000]))
    @settings(max_examples=60, deadline=None)
    def test_slots_are_without_gap_of_one_width_and_add_up_to_their_window(self, ages: list[tuple[float, float]], later: int) -> None:
        for handler, ladder in ((counter, counter_group.LADDER), (percentile, percentile_group.LADDER)):
            detail = handler.detail(state_of(handler, ages), NOW + later)
            for (name, span), width in zip(WINDOWS.items(), ladder.widths.tolist(), strict=True):
                window = detail[name]
                times = [slot["time"] for slot in window["slots"]]
                self.assertEqual(window["slot_seconds"], width)
                self.assertEqual(times, list(range(times[0], times[-1] + 1, width)))
                self.assertTrue(NOW + later - span - width < times[0] <= NOW + later - span < times[0] + width)
                self.assertTrue(times[-1] <= NOW + later < times[-1] + width)
                for key in ("count", "total"):
                    self.assertEqual(sum(slot[key] for slot in window["slots"]), window[key])
                model = [sum(1 for age, _ in ages if start <= NOW - age < start + width) for start in times]
                self.assertEqual([slot["count"] for slot in window["slots"]], model)

    def test_aggregates_of_details_have_the_slots_of_all_clients(self) -> None:
        for handler in (counter, percentile):
            states = [fold(handler, [(NOW - 20 * client, 1.0 + client), (NOW - 3000, 5.0)]) for client in range(3)]
            aggregate = handler.aggregate([handler.detail(state, NOW) for state in states])
            whole = handler.detail(handler.merge(states), NOW)
            for name in WINDOWS:
                self.assertEqual(aggregate[name], whole[name])
            plain = handler.aggregate([handler.project(state, NOW) for state in states])
            self.assertNotIn("slots", plain["1m"])


class SeriesTests(SynchronousTestCase):
    @given(recorded, st.sampled_from([15, 150, 900, 1800, 37]))
    @settings(max_examples=60, deadline=None)
    def test_a_line_adds_up_to_what_was_recorded_in_its_time(self, ages: list[tuple[float, float]], step: int) -> None:
        span = math.ceil(92_000 / step) * step
        for handler in (counter, percentile):
            state = state_of(handler, ages)
            lines = handler.series(state, NOW - span, NOW, step)
            project = handler.project(state, NOW)
            self.assertAlmostEqual(sum(count or 0 for count in lines["count"]), project["1d"]["count"], 6)
            self.assertAlmostEqual(sum(total or 0 for total in lines["total"]), project["1d"]["total"], 5)

    def test_steps_of_whole_slots_are_exact(self) -> None:
        end = 1_763_850_600.0  # a multiple of every width up to 10 minutes
        events = [(end - age, 2.0) for age in (1, 4, 6, 11, 14, 16, 44)]
        lines = counter.series(fold(counter, events, end), end - 45, end, 15)
        self.assertEqual(lines, {"count": [0, 1, 1, 5], "total": [0, 2, 2, 10], "average": [None, 2, 2, 2]})
        self.assertEqual(percentile.series(fold(percentile, events, end), end - 45, end, 15)["count"], [0, 1, 1, 5])

    def test_what_lies_before_the_day_is_not_known(self) -> None:
        for handler in (counter, percentile):
            lines = handler.series(fold(handler, [(NOW, 1.0)]), NOW - 2 * 86_400, NOW, 3600)
            self.assertEqual(lines["count"][:23], [None] * 23)
            self.assertEqual(lines["count"][-1], 1)
            self.assertEqual(lines["total"][30], 0)

    def test_percentiles_of_each_step_are_those_of_the_values_in_its_slots(self) -> None:
        end = 1_763_850_600.0
        events = [(end - 115 + place % 50, float(place)) for place in range(1000)] + [(end - 10, 7.0)]
        lines = percentile.series(fold(percentile, events, end), end - 60, end, 60)
        self.assertEqual((lines["min"], lines["max"], lines["p50"][1]), ([0, 7], [999, 7], 7))
        self.assertLessEqual(abs(lines["p90"][0] - 899), 9)
        self.assertEqual(set(lines), {"count", "total", "min", "max", *PERMILLES})

    def test_the_slot_that_is_not_over_counts_whole(self) -> None:
        lines = counter.series(fold(counter, [(NOW - 0.5, 3.0)]), NOW - 60, NOW, 60)
        self.assertEqual(lines["count"], [0, 1])

    def test_points_are_bounded_and_a_step_goes_somewhere(self) -> None:
        self.assertEqual(points(0, 10, 5), [0, 5, 10])
        self.assertEqual(points(0, 9.9, 5), [0, 5])
        self.assertEqual(points(5, 0, 5), [])
        self.assertEqual(len(points(1, MAX_POINTS, 1)), MAX_POINTS)
        self.assertRaises(ValueError, points, 0, MAX_POINTS, 1)
        for step in (0, -1, math.nan):
            self.assertRaises(ValueError, points, 0, 1, step)


class SampleTests(SynchronousTestCase):
    def shown(self, handler: Any, projection: Any) -> dict[str, float]:
        lines = {}
        for suffix, labels, value, _ in handler.samples(projection):
            lines[suffix + ",".join(f"{key}={text}" for key, text in labels.items())] = value
        return lines

    def test_a_counter_group_shows_a_summary_and_its_windows(self) -> None:
        projection = counter.project(fold(counter, [(NOW, 1.0), (NOW - 3000, 3.0)]), NOW)
        lines = self.shown(counter, projection)
        self.assertEqual((lines["_count"], lines["_sum"], lines["_min"], lines["_max"]), (2, 4.0, 1.0, 3.0))
        self.assertEqual((lines["_window_countwindow=1m"], lines["_window_sumwindow=1h"]), (1, 4.0))
        self.assertEqual(lines["quantile=0.999"], projection["pct"]["p99.9"])

    def test_what_has_no_value_has_no_sample(self) -> None:
        for handler in (counter, percentile, PercentileCounter(), TotalsCounter()):
            lines = self.shown(handler, handler.project(handler.new_state(), NOW))
            self.assertEqual({value for value in lines.values()}, {0}, handler.type)
        percentile_lines = self.shown(percentile, percentile.project(fold(percentile, [(NOW - 100, 2.0)]), NOW))
        self.assertNotIn("_windowwindow=1m,quantile=0.5", percentile_lines)
        self.assertEqual(percentile_lines["_windowwindow=10m,quantile=0.5"], 2.0)

    def test_gauges_show_numbers_alone(self) -> None:
        gauge = find_handlers().get("Gauge")
        states = [gauge.fold(None, Events([NOW], [value]), NOW) for value in (4, 8.0)]
        projections = [gauge.project(state, NOW) for state in states]
        self.assertEqual(self.shown(gauge, projections[0]), {"": 4})
        self.assertEqual(self.shown(gauge, gauge.aggregate(projections)), {"_clients": 2, "_sum": 12, "_average": 6, "_min": 4, "_max": 8})
        text = gauge.project(gauge.fold(None, Events([NOW], ["up"]), NOW), NOW)
        self.assertEqual(self.shown(gauge, text), {})
        self.assertEqual(self.shown(gauge, gauge.aggregate([text])), {"_clients": 1})
        self.assertEqual(gauge.series(states[0], NOW - 20, NOW + 10, 10), {"value": [None, None, 4, 4]})

    def test_every_type_but_those_without_figures_has_samples(self) -> None:
        lookup = find_handlers()
        self.assertEqual([type for type in lookup.types if lookup.own(type) and lookup.get(type).samples is None], ["Buffer", "Noop"])


class TallyTests(SynchronousTestCase):
    def test_detail_shows_what_was_refused_held_and_too_old_and_answers_without_it_do_not(self) -> None:
        events = [(NOW, math.nan), (NOW + 50, 1.0), (NOW - 200_000, 2.0), (NOW, math.inf)]
        expected = {"CounterGroup": {"refused": 2, "held": 1}, "PercentileGroup": {"refused": 2, "held": 1, "old": 1}}
        lookup = find_handlers()
        for type in ("CounterGroup", "PercentileGroup", "PercentileCounter", "TotalsCounter", "UpDown"):
            handler = lookup.get(type)
            details = [handler.detail(fold(handler, events), NOW), handler.detail(fold(handler, events), NOW)]
            counts = expected.get(type, {"refused": 2})
            for times, shown in ((1, details[0]), (2, handler.aggregate(details))):
                found = {name: shown[name] for name in ("refused", "held", "old") if name in shown}
                self.assertEqual(found, {name: times * count for name, count in counts.items()})
            plain = handler.aggregate([handler.project(fold(handler, events), NOW)] * 2)
            self.assertNotIn("refused", plain)
            self.assertEqual(plain["_refused"], 4)
