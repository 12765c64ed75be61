"""How many instructions the parts in C of a Server take for a batch, a column, a bucket, an event or a State: see tests/instructions.py."""

from __future__ import annotations

import pytest

from tests.instructions import Instructions

from .counted import CASES

# instructions of its own, and calls of Python and the C library
KNOWN: dict[str, tuple[float, float]] = {
    "entries, a batch": (253, 9),
    "sections, a column": (189.5, 6.775),
    "plan, a column": (61.6, 4.8),
    "plan, a column of few": (198.2, 11.75),
    "judge, a bucket": (492, 21),
    "gather, a bucket": (231, 13),
    "write, a bucket": (492, 18),
    "fold of rows, an event": (43.76, 0.02),
    "fold of rows, a State": (1288, 6),
    "merge of rows, a State": (7_114, 40),
    "windows of rows, a State": (2074, 21.1),
    "fold of spreads, an event": (55.66, 0.025),
    "fold of spreads, a State": (1379, 5),
    "merge of spreads, a State": (7_354, 33),
    "windows of spreads, a State": (13_490, 1.2),
    "gauges, a State": (200, 4),
    "expiring, a State": (212, 4),
    "updowns, a State": (177, 4),
    "wire's encode, a command": (481, 7),
    "wire's keys, a read": (37, 2),
    "wire's measure, a command": (113, 1),
    "writing, a row": (3182, 50.05),
}


@pytest.mark.real
class InstructionsTest(Instructions):
    def test_what_is_folded_takes_no_more_than_it_did(self) -> None:
        self.check(self.counted("tests.server.fold.counted", CASES), KNOWN)
