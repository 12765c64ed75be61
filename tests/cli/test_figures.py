"""Rows and figures as people read them."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from twisted.trial.unittest import SynchronousTestCase

from taba.cli.figures import ASCII_BLOCKS, NAME, OF_CLIENTS, OF_TABS, head, row, sparkline
from taba.cli.units import scaled

ROW: dict[str, Any] = {
    "name": "n",
    "rate": 1.0,
    "1h": 3,
    "p50": 0.0012,
    "p99": 2.0,
    "sparkline": [1.0] * 60,
    "clients": 300,
    "unit": "seconds",
}


class Figures(SynchronousTestCase):
    def test_times_are_times_and_sizes_are_sizes(self) -> None:
        for value, unit, shown in (
            (0.0012, "seconds", "1.2 ms"),
            (90.5, "seconds", "90.5 s"),
            (0, "seconds", "0 s"),
            (2.5e-7, "seconds", "250 ns"),
            (600, "seconds", "10 min"),
            (1023 * 1024, "bytes", "1023KiB"),
            (1536, "bytes", "1.5 KiB"),
            (12, "bytes", "12 B"),
            (0.05, "s", "50 ms"),
            (90.5, "ms", "90.5 ms"),
            (1500, "milliseconds", "1.5 s"),
            (3, "us", "3 us"),
            (3000, "\u00b5s", "3 ms"),
            (3, "ns", "3 ns"),
            (2048, "By", "2 KiB"),
            (0.123, "ratio", "12.3 %"),
            (12.3, "%", "12.3 %"),
            (0, "ratio", "0 %"),
            (1.25e-7, "ratio", "1e-05 %"),
            (12.3, "USD", "12.3"),
            (12_345, None, "12.3k"),
            (9_999, None, "9999"),
            (1.5e9, None, "1.5G"),
            (0.00001, None, "1e-05"),
            (1e300, None, "1e+300"),
            (1e300, "bytes", "1e+300"),
            (1e300, "seconds", "1e+300"),
            (-1e18, None, "-1e+18"),
            (None, None, "-"),
            (True, None, "-"),
        ):
            self.assertEqual(scaled(value, unit), shown)

    @given(st.floats(-1e15, 1e15), st.sampled_from([None, "seconds", "bytes", "ms", "ns", "B", "ratio", "%", "USD"]))
    def test_what_people_read_is_short(self, value: float, unit: str | None) -> None:
        self.assertLessEqual(len(scaled(value, unit).removeprefix("-")), 7)

    def test_a_row_has_its_columns_and_no_more(self) -> None:
        self.assertEqual(len(row(ROW)), 79)
        self.assertEqual(len(head()), 79)
        self.assertEqual(NAME + sum(column.width + 1 for column in OF_TABS if not column.least), 79)
        self.assertEqual((len(head(79, OF_CLIENTS, "CLIENT")), len(row(ROW, 79, False, OF_CLIENTS))), (79, 79))
        self.assertNotIn("1M", head(96))
        self.assertEqual(head(97).split(), ["NAME", "RATE", "1M", "1H", "P50", "P99", "MAX", "TREND", "CLIENTS"])
        self.assertTrue(head().endswith(" CLIENTS"))
        self.assertEqual((len(row(ROW, 120)), len(head(120))), (120, 120))
        self.assertEqual(len(row({**ROW, "name": "x" * 500})), 79)
        self.assertNotIn("\x1b", row({**ROW, "name": "x\x1b[2J"}))
        self.assertEqual(row({**ROW, "name": 'winning_bid_price{exchange="adx"}'})[:26], "winning_bid_price{adx}    ")
        codes = [row({**ROW, "name": f'page_hits_served{{code="{code}",page="/c}}\\"a"}}'})[:26] for code in (200, 500)]
        self.assertEqual(codes, ['page_hits_se…d{200,/c}\\"a}', 'page_hits_se…d{500,/c}\\"a}'])
        self.assertTrue(row({**ROW, "name": "x" * 500}, 79, True).isascii())
        self.assertIn("! why", row({"name": "n", "error": "why", "1h": None}))
        now = row({"name": "n", "1h": None, "value": 45, "rate": 1.0})
        self.assertEqual((len(now), now.split()), (79, ["n", "1", "=45", "-", "-", "-"]))

    def test_a_row_is_as_wide_as_the_screen_whatever_stands_in_it(self) -> None:
        texts = ('uni{k="漢字→🎉"}', "漢" * 40, "a" + "漢" * 40, "x\x1b[2J" * 9, "e\u0301" * 40)
        for text in texts:
            for is_ascii in (False, True):
                shown = row({**ROW, "name": text, "value": text, "1h": None}, 79, is_ascii)
                self.assertEqual(cell_len(shown), 79, text)
                of_client = row({"name": "web/1", "value": text}, 79, is_ascii, OF_CLIENTS)
                self.assertEqual(cell_len(of_client), 79, text)
                self.assertTrue((shown + of_client).isprintable() or "\u0301" in text, text)

    def test_a_sparkline_is_as_wide_as_it_may_be(self) -> None:
        self.assertEqual(sparkline([None] * 30 + [0.0] * 25 + [4.0] * 5, 12, True), "      _____#")
        self.assertEqual(sparkline([9, 1, 2, 3, 4], 12, True), "       #_.:-")
        self.assertEqual(len(sparkline([1.0] * 11, 12, True)), 12)
        self.assertEqual(sparkline([0.0] * 60, 12, True), ASCII_BLOCKS[0] * 12)
        self.assertEqual(sparkline(None, 12), "")
