"""docs/handlers.md says truly what the past looks like, its picture is the one that is drawn, and its example is a Handler."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from twisted.trial.unittest import SynchronousTestCase

from taba.handlers import Events, counter_group, percentile_group
from taba.handlers.shape import check_shape
from tests.documents import blocks

DOCS = Path(__file__).resolve().parents[2] / "docs"


def drawing() -> Any:
    specification = importlib.util.spec_from_file_location("past", DOCS / "pictures" / "past.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["past"] = module
    specification.loader.exec_module(module)
    return module


class PastTests(SynchronousTestCase):
    @pytest.mark.real
    def test_the_picture_and_the_figures_are_what_the_types_know(self) -> None:
        past, text = drawing(), (DOCS / "handlers.md").read_text()
        self.assertEqual((DOCS / "pictures" / "past.svg").read_text(), past.svg())
        one, ten, hour, day = past.peaks(counter_group.CounterGroup())
        self.assertIn(
            f"at most {one}/s in the last minute, {ten}/s\nin the first ten minutes, {hour}/s within the hour and {day}/s within the day",
            text,
        )
        self.assertIn("a PercentileGroup {}/s, {}/s, {}/s and {}/s".format(*past.peaks(percentile_group.PercentileGroup())), text)

    def test_the_widths_are_those_of_the_slots(self) -> None:
        text = (DOCS / "handlers.md").read_text()
        for name, ladder in (("CounterGroup, Cumulative", counter_group.LADDER), ("PercentileGroup", percentile_group.LADDER)):
            row = next(line for line in text.splitlines() if line.startswith(f"| {name} | ") and " s |" in line)
            seconds = {"s": 1, "min": 60, "h": 3600}
            widths = [int(cell.split()[0]) * seconds[cell.split()[1]] for cell in row.split(" | ")[1:5]]
            self.assertEqual(widths, ladder.widths.tolist(), name)

    def test_the_handler_that_it_shows_is_one(self) -> None:
        [example] = [block for block in blocks((DOCS / "handlers.md").read_text()) if block.language == "python"]
        found: dict[str, Any] = {"__name__": "longest"}
        exec(compile("\n" * (example.line - 1) + example.code, "docs/handlers.md", "exec"), found)
        longest = found["Longest"]()
        check_shape(longest)
        state = longest.fold(longest.load(longest.dump(longest.new_state())), Events([1.0, 2.0], ["abc", "a"]), 3.0)
        projections = [longest.project(of, 3.0) for of in (state, "ab")]
        self.assertEqual(longest.aggregate(projections), {"longest": "abc"})

    @pytest.mark.real
    def test_no_event_is_missing_from_the_lines(self) -> None:
        past = drawing()
        for _, later in past.AGES:
            self.assertAlmostEqual(float(past.known(counter_group.CounterGroup(), later).sum()), float(past.rates().sum()), 6)
