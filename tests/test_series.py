"""What Tabs are called elsewhere."""

from __future__ import annotations

import math
import re

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.handlers.lookup import find_handlers
from taba.series import (
    BUCKET,
    COUNT,
    DISTRIBUTION,
    EVENTS,
    FIGURES,
    LATEST,
    NET,
    SUM,
    TOTAL,
    VALUE,
    family_of,
    labels_shown,
    number_text,
    plain,
    word_of,
)
from taba.server.prometheus.evaluate import AGGREGATIONS, FUNCTIONS
from tests.examples import examples
from tests.services import ROOT


class NamesOfSeries(SynchronousTestCase):
    def test_unit_and_total_are_appended_where_they_are_missing(self) -> None:
        for base, unit, figure, expected in [
            ("bids_won", None, TOTAL, "bids_won_total"),
            ("bids_total", None, TOTAL, "bids_total"),
            ("bids_total", None, EVENTS, "bids_events_total"),
            ("sent", "bytes", TOTAL, "sent_bytes_total"),
            ("sent_bytes_total", "bytes", TOTAL, "sent_bytes_total"),
            ("sent", "bytes", EVENTS, "sent_events_total"),
            ("sent", "1", TOTAL, "sent_total"),
            ("sent", "bytes", NET, "sent_bytes_sum"),
            ("wait", "seconds", DISTRIBUTION, "wait_seconds"),
            ("wait_seconds", "seconds", DISTRIBUTION, "wait_seconds"),
            ("speed", "bytes per second", VALUE, "speed_bytes_per_second"),
            ("depth", "", LATEST, "depth"),
            ("bytes", "bytes", TOTAL, "bytes_total"),
            # whatever divides words in a Tab's name
            ("jobs.seconds", "seconds", DISTRIBUTION, "jobs.seconds"),
            ("disk/bytes", "bytes", TOTAL, "disk/bytes_total"),
            ("disk-bytes.total", "bytes", TOTAL, "disk-bytes_total"),
            ("bids.total", None, EVENTS, "bids_events_total"),
            ("milliseconds", "seconds", DISTRIBUTION, "milliseconds_seconds"),
            ("subtotal", None, TOTAL, "subtotal_total"),
        ]:
            self.assertEqual(family_of(base, unit, figure), expected, (base, unit, figure))

    def test_characters_that_prometheus_did_not_use_to_take_become_underscores(self) -> None:
        self.assertEqual([plain(name) for name in ("a.b-c", "a:b", "9x", "ä")], ["a_b_c", "a:b", "_9x", "_"])
        self.assertEqual([word_of(unit) for unit in (None, "1", "%", "°C", "s")], ["", "", "", "C", "s"])

    def test_a_label_of_a_name_that_is_taken_is_exported(self) -> None:
        self.assertEqual(labels_shown({"client": "a", "x": "b"}), {"exported_client": "a", "x": "b"})
        self.assertEqual(labels_shown({"client": "a", "exported_client": "b"}), {"exported_client": "a", "exported_exported_client": "b"})
        self.assertEqual(labels_shown({"value": "a"}, ("value",)), {"exported_value": "a"})

    @given(st.floats())
    @examples(50)
    def test_a_number_is_written_so_that_it_is_read_as_it_was(self, number: float) -> None:
        text = number_text(number)
        self.assertTrue(float(text) == number or (math.isnan(number) and text == "NaN"))
        self.assertEqual([number_text(value) for value in (1.0, math.inf, -math.inf, 0.5)], ["1", "+Inf", "-Inf", "0.5"])

    def test_every_figure_that_a_handler_shows_is_defined(self) -> None:
        lookup = find_handlers({})
        shown = {type: lookup.get(type).shown for type in lookup.types if lookup.own(type)}  # type: ignore[union-attr]
        self.assertEqual([type for type, figures in shown.items() if figures is None], [])
        self.assertEqual({figure for figures in shown.values() for figure in figures or ()} - set(FIGURES), set())


class Documents(SynchronousTestCase):
    def test_every_figure_function_and_aggregation_is_in_the_docs(self) -> None:
        text = (ROOT / "docs" / "prometheus.md").read_text()
        words = {word for part in re.findall(r"`([^`\n]+)`", text) for word in re.findall(r"\w+", part)}
        self.assertEqual(sorted(set(FUNCTIONS) - words), [])
        self.assertEqual(sorted(set(AGGREGATIONS) - words), [])
        suffixes = {"x" + figure.suffix for figure in FIGURES.values()} | {"x" + part for part in (BUCKET, COUNT, SUM)}
        self.assertEqual(sorted(suffixes - words), [])
        lookup = find_handlers({})
        self.assertEqual([type for type in lookup.types if lookup.own(type) and type not in text], [])
