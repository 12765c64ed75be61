"""How many instructions the parts in C of an Agent take for an event, a column, a section or a batch: see tests/instructions.py."""

from __future__ import annotations

import pytest

from tests.agent.counted import CASES
from tests.instructions import Instructions

# instructions of its own, and calls of Python and the C library; up to `edge` of an event, then of a column, a section, a State, and from
# `encode` on of a section, a batch and an entry of an index
KNOWN: dict[str, tuple[float, float]] = {
    "leading": (7, 0),
    "count": (11.09, 0),
    "place": (22.05, 0),
    "checksum": (10.12, 0),
    "bins": (17.56, 0.005),
    "figures": (20, 0),
    "measure": (22.23, 0),
    "sum_up": (10.14, 0),
    "edge of rows": (86.08, 0.04),
    "edge of spreads": (86.67, 0.025),
    "join_fields": (115.8, 2.2),
    "cut_sections": (186, 13),
    "cut_states": (76.8, 3.8),
    "encode": (406.4, 22),
    "encode_plain": (1491, 49),
    "index_group": (234, 19),
}


@pytest.mark.real
class InstructionsTest(Instructions):
    def test_an_event_takes_no_more_than_it_did(self) -> None:
        self.check(self.counted("tests.agent.counted", CASES), KNOWN)
