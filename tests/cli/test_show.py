from __future__ import annotations

import io
from datetime import datetime
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from twisted.trial.unittest import SynchronousTestCase

from taba.cli import show

PERCENTILES = {key: 0.123456789 for key in ("count", "total", "min", "max", "p25", "p50", "p75", "p90", "p95", "p99", "p99.9")}


def drawn(content: Any, width: int = 100) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(content)
    return out.getvalue()


class Shapes(SynchronousTestCase):
    def test_windows_are_rows(self) -> None:
        text = drawn(show.tab("bids", {"1m": {"count": 1, "total": 1234567.0}, "1d": {"count": 2, "total": None}}))
        self.assertRegex(text, r"(?m)^bids$")
        self.assertRegex(text, r"count +total")
        self.assertRegex(text, r"1m +1 +1,234,567")
        self.assertRegex(text, r"1d +2 +–")

    def test_what_is_too_wide_for_the_terminal_stands_upright(self) -> None:
        windows = {window: PERCENTILES for window in ("1m", "10m", "1h", "1d")}
        self.assertRegex(drawn(show.shape(windows), 160), r"p25 +p50 +p75")
        narrow = drawn(show.shape(windows), 70)
        self.assertRegex(narrow, r"1m +10m +1h +1d")
        self.assertRegex(narrow, r"p99\.9 +0\.12346 +0\.12346 +0\.12346 +0\.12346")

    def test_rings_are_a_table_where_there_is_room_and_else_each_stands_under_its_client(self) -> None:
        ring = {"name": "taba.default." + "0" * 32, "client": "web/1", "pid": 2005, "bytes": 1_048_576, "accelerated": True, "recorded": 15}
        status = show.status("Agent", "http://127.0.0.1:8279", {"rings": [ring, {**ring, "client": "web/2"}]})
        self.assertRegex(drawn(status, 150), r"name +client +pid")
        narrow = drawn(status, 60)
        self.assertRegex(narrow, r"(?m)^ +client web/1 *$")
        self.assertIn("pid 2005,", " ".join(narrow.split()))
        self.assertLessEqual(max(map(len, narrow.splitlines())), 60)

    def test_sizes_durations_and_moments_are_such(self) -> None:
        at = 1_795_696_840.5
        told = {
            "child": {"memory_bytes": 2**31, "processor_seconds": 600},
            "bytes": 1536,
            "refused": 3,
            "rings": [{"client": "c", "bytes": 2048}],
        }
        text = drawn(show.status("Agent", "http://127.0.0.1:8279", told))
        for wanted in ("memory_bytes 2 GiB, processor_seconds 10 min", "1.5 KiB", "refused", "2 KiB"):
            self.assertIn(wanted, text)
        self.assertNotIn("1970", text)
        held = {
            "waiting_bytes": {"count": 2048, "most": 2**26},
            "patterns": {"count": 3, "most": 27, "greatest": 2, "each": 9, "displaced": 4},
        }
        text = drawn(show.status("Server", "u", {"held": held}))
        self.assertIn("held  waiting_bytes 2 KiB of 64 MiB, patterns 3 of 27 (one asker 2 of 9), 4 displaced", text)
        text = drawn(show.tab("words", {"values": [[at, "a"], [5, "b"]]}))
        self.assertIn(datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S  a"), text)
        self.assertRegex(text, r"(?m)^ +5  b *$")

    def test_a_name_is_neither_cut_nor_divided_and_what_is_long_goes_on_in_its_column(self) -> None:
        name, told = 'n{k="' + "x" * 60 + '"}', "words " * 30
        lines = list(show.named_lines(["tab", "type", "description"], [["short", "Gauge", told], [name, "Buffer", ""]], 60))
        self.assertEqual(lines.count(name), 1)
        self.assertTrue(all(cell_len(line) <= 60 for line in lines if line != name), lines)
        self.assertEqual(" ".join(line[lines[0].index("DESCRIPTION") :].strip() for line in lines[1:-2]).split(), told.split())
        self.assertEqual(list(show.named_lines(["tab", "type"], [["漢", "T"]], 79)), ["TAB  TYPE", "漢   T"])

    def test_any_shape_can_be_shown(self) -> None:
        shapes: tuple[Any, ...] = (
            {},
            None,
            5,
            "text",
            [1],
            {"values": [[1, "a"], [2, "b"]]},
            {"a": {}},
            {"a": {"b": {"c": 1}}},
            {"top": [["x", 3, 0]] * 50},
        )
        for content in shapes:
            self.assertTrue(drawn(show.shape(content)))

    def test_of_other_servers_it_is_shown_what_is_wrong_and_who_said_nothing(self) -> None:
        said = [["it burns", "\x1b[2J"], [], [], None]
        text = drawn(show.others([{"url": f"http://{n}", "problems": problems} for n, problems in enumerate(said)]))
        self.assertEqual(
            text.split("\n")[:5],
            [
                "4 other Servers",
                "  ! http://0: it burns",
                "  ! http://0: \\x1b[2J",
                "  http://3: has not said what is wrong there: ask it",
                "  no problems at 2",
            ],
        )

    def test_a_value_cannot_move_the_cursor(self) -> None:
        text = drawn(show.tab('a{b="\x1b[2J"}', {"value": "\x1b]0;title\x07\u202e", "\x9b31m": 1}))
        for character in "\x1b\x07\x9b\u202e":
            self.assertNotIn(character, text)
        self.assertIn("\\x1b[2J", text)

    def test_markup_is_text(self) -> None:
        self.assertIn("[red]x[/red]", drawn(show.shape({"value": "[red]x[/red]", "[b]": {"[i]": "[/i]"}})))
