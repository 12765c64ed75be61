"""What exporters and `?detail=1` show of windows: slots that add up to their window."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.handlers import Events, counter_group, percentile_group
from taba.handlers.counter_group import CounterGroup
from taba.handlers.lookup import find_handlers
from taba.handlers.percentile_counter import PercentileCounter
from taba.handlers.percentile_group import PercentileGroup
from taba.handlers.totals_counter import TotalsCounter
from taba.handlers.windows import WINDOWS
from tests.examples import examples

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
    @examples(60)
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
        gauge: Any = find_handlers().get("Gauge")
        states = [gauge.fold(None, Events([NOW], [value]), NOW) for value in (4, 8.0)]
        projections = [gauge.project(state, NOW) for state in states]
        self.assertEqual(self.shown(gauge, projections[0]), {"": 4})
        self.assertEqual(self.shown(gauge, gauge.aggregate(projections)), {"_clients": 2, "_sum": 12, "_average": 6, "_min": 4, "_max": 8})
        text = gauge.project(gauge.fold(None, Events([NOW], ["up"]), NOW), NOW)
        self.assertEqual(self.shown(gauge, text), {})
        self.assertEqual(self.shown(gauge, gauge.aggregate([text])), {"_clients": 1})

    def test_every_type_but_those_without_figures_has_samples(self) -> None:
        lookup = find_handlers()
        shown = {type for type in lookup.types if getattr(lookup.get(type), "samples", None) is not None}
        self.assertEqual([type for type in lookup.types if lookup.own(type) and type not in shown], ["Buffer", "Noop"])


class TallyTests(SynchronousTestCase):
    def test_detail_shows_what_was_refused_held_and_too_old_and_answers_without_it_do_not(self) -> None:
        events = [(NOW, math.nan), (NOW + 50, 1.0), (NOW - 200_000, 2.0), (NOW, math.inf)]
        expected = {"CounterGroup": {"refused": 2, "held": 1}, "PercentileGroup": {"refused": 2, "held": 1, "old": 1}}
        lookup = find_handlers()
        for type in ("CounterGroup", "PercentileGroup", "PercentileCounter", "TotalsCounter", "UpDown"):
            handler: Any = lookup.get(type)
            details = [handler.detail(fold(handler, events), NOW), handler.detail(fold(handler, events), NOW)]
            counts = expected.get(type, {"refused": 2})
            for times, shown in ((1, details[0]), (2, handler.aggregate(details))):
                found = {name: shown[name] for name in ("refused", "held", "old") if name in shown}
                self.assertEqual(found, {name: times * count for name, count in counts.items()})
            plain = handler.aggregate([handler.project(fold(handler, events), NOW)] * 2)
            self.assertNotIn("refused", plain)
            self.assertEqual(plain["_refused"], 4)
