"""Gauge: who wins, and how its Aggregate is bounded; and how anything is shown."""

from __future__ import annotations

import math

import numpy as np
from twisted.trial.unittest import SynchronousTestCase

from taba.handlers import Events
from taba.handlers.gauge import MAX_TEXT, MAX_VALUES, OTHERS, Gauge
from taba.handlers.render import as_json, render_text, shown
from taba.handlers.testing import events_of

NOW = 1000.0
handler = Gauge()


class GaugeTests(SynchronousTestCase):
    def last(self, times: list[float], values: list[object], state: object = None) -> object:
        return handler.project(handler.fold(state, Events(times, values), NOW), NOW)["value"]

    def test_the_last_value_by_time_wins_and_of_a_tie_the_one_recorded_later(self) -> None:
        self.assertEqual(self.last([5.0, 9.0, 7.0], ["a", "b", "c"]), "b")
        self.assertEqual(self.last([5.0, 9.0, 9.0], ["a", "b", "c"]), "c")
        self.assertEqual(self.last([5.0], ["a"], ["old", 5.0]), "a")
        self.assertEqual(self.last([4.0], ["a"], ["old", 5.0]), "old")

    def test_many_events_fold_as_few_do(self) -> None:
        rng = np.random.default_rng(1)
        for _ in range(50):
            times, values = rng.integers(990, 1010, 30).astype(float), rng.integers(0, 9, 30).astype(float)
            one = handler.fold(None, events_of(list(zip(times.tolist(), values.tolist(), strict=True))), NOW)
            other = None
            for time, value in zip(times.tolist(), values.tolist(), strict=True):
                other = handler.fold(other, Events([time], [value]), NOW)
            self.assertEqual(one, other)
            self.assertIs(type(one[0]), float)

    def test_an_event_from_the_future_shuts_nothing_out(self) -> None:
        state = handler.fold(None, Events([NOW + 10_000, math.nan], ["a", "b"]), NOW)
        self.assertEqual(state, ["b", NOW])
        self.assertEqual(handler.fold(state, Events([NOW + 1], ["c"]), NOW + 1), ["c", NOW + 1])

    def test_a_time_kept_beyond_now_yields_to_any_newer_fold(self) -> None:
        for ahead in (0.001, 1.0, 40 * 86_400.0):
            for times in ([NOW - 5], [NOW - 5.0 - place for place in range(20)]):
                state = handler.fold(None, Events([NOW + ahead], ["wrong"]), NOW + ahead)
                state = handler.fold(state, events_of([(time, float(number)) for number, time in enumerate(times)]), NOW)
                self.assertEqual(state, [0.0, NOW - 5])
        self.assertEqual(handler.fold(["kept", NOW], Events([NOW - 5], ["late"]), NOW), ["kept", NOW])

    def test_the_aggregate_of_numbers(self) -> None:
        aggregate = handler.aggregate([{"value": value, "time": 1.0} for value in (17.0, 17, 3.5)] + [{"value": None, "time": None}])
        self.assertEqual(
            shown(aggregate), {"values": {"17": 2, "3.5": 1}, "clients": 3, "sum": 37.5, "average": 12.5, "min": 3.5, "max": 17}
        )

    def test_the_aggregate_of_other_values_has_no_sum(self) -> None:
        aggregate = handler.aggregate([{"value": value, "time": 1.0} for value in ("up", "up", None, True, {"a": [1]}, 5)])
        self.assertEqual(aggregate["values"], {"up": 2, "5": 1, "null": 1, "true": 1, '{"a": [1]}': 1})
        self.assertEqual([aggregate[key] for key in ("clients", "sum", "average", "min", "max")], [6, None, None, None, None])

    def test_no_client_no_value(self) -> None:
        aggregate = handler.aggregate([handler.project(None, NOW)])
        self.assertEqual(aggregate, {"values": {}, "clients": 0, "sum": None, "average": None, "min": None, "max": None})

    def test_at_the_bound_all_values_are_told_apart_and_one_past_it_the_rest_is_counted(self) -> None:
        projections = [{"value": f"v{number:04}", "time": 1.0} for number in range(MAX_VALUES)]
        self.assertEqual(set(handler.aggregate(projections)["values"].values()), {1})
        aggregate = handler.aggregate([*projections, {"value": "v0001", "time": 1.0}, {"value": "w", "time": 1.0}])
        self.assertEqual((len(aggregate["values"]), aggregate["values"][OTHERS], aggregate["values"]["v0001"]), (MAX_VALUES + 1, 1, 2))
        again = handler.aggregate([aggregate, aggregate])
        self.assertEqual((again["values"][OTHERS], again["clients"]), (2, 2 * (MAX_VALUES + 2)))

    def test_a_long_value_is_cut_in_the_aggregate(self) -> None:
        for length, shown_as in ((MAX_TEXT, "x" * MAX_TEXT), (MAX_TEXT + 1, "x" * (MAX_TEXT - 1) + OTHERS)):
            self.assertEqual(list(handler.aggregate([{"value": "x" * length, "time": 1.0}])["values"]), [shown_as])

    def test_bytes_that_are_no_state_are_refused(self) -> None:
        for content in (b"", b"\x01", b"\x91\x01", b"\x92\x01\x01", b"\x92\x01"):
            self.assertRaises(ValueError, handler.load, content)


class ShownTests(SynchronousTestCase):
    def test_whole_numbers_have_no_fraction_and_hidden_keys_are_not_shown(self) -> None:
        self.assertEqual(
            shown({"a": 17.0, "_b": 1, "c": {"_d": 1, "e": [1.5, 2.0, math.nan]}, "f": True}),
            {"a": 17, "c": {"e": [1.5, 2, None]}, "f": True},
        )
        self.assertIs(type(shown(17.0)), int)
        self.assertIs(type(shown(2.0**70)), float)

    def test_text_rounds_fractions_to_six_digits(self) -> None:
        self.assertEqual(
            render_text({"a": 571.6400000001, "b": 0.000123456789, "c": 1234567.8, "d": None, "é": "ü"}),
            '{"a": 571.64, "b": 0.000123457, "c": 1234568, "d": null, "é": "ü"}',
        )

    def test_whatever_msgpack_carries_becomes_json(self) -> None:
        self.assertEqual(as_json({1: b"a\xff", "b": (1, math.inf)}), {"1": "a\\xff", "b": [1, "inf"]})
