"""How many instructions the parts in C of an Agent and of a Server take for an event: what a clock could only guess, valgrind counts, the
same in each run. One function is counted at a time, in a process that imports no numpy."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.client.cases import ROOT
from tests.needs import needs_program
from tests.patience import PATIENCE_SECONDS

# with gcc 12, an event: looked for 7, counted 11, put in its place 19, its 24 bytes checked 10;
# its bin 25, its figures 20, folded with its bin found 120, measured 22, summed up 10; folded by a Server 55
EVENTS = 20_000
TABS = 100
CODE = """
import struct, sys, zlib
from array import array
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

def part(folder, name):  # without its package, which would import numpy: that takes valgrind a minute
    spec = PathFinder.find_spec(name, [folder])
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

which, events, tabs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
drain, fresh, rows = part("taba/agent", "_drain"), part("taba/handlers", "_fresh"), part("taba/handlers", "_rows")
zeros = [bytearray(8 * events) for _ in range(4)]
values, each = array("d", [1.5]) * events, events // tabs
in_order = array("q", [row for row in range(tabs) for _ in range(each)])
codes = array("q", [at % 20 for at in range(events)])
records = b"".join(struct.pack("<dQII", 1.0, at, at % tabs, 7) for at in range(events))
if which == "leading":
    assert drain.leading(records, 7) == (events, events)
elif which == "count":
    assert drain.count(records, ((events, 7),), tabs, bytearray(4 * tabs), bytearray(4 * tabs), bytearray(8 * tabs), None) == tabs
elif which == "place":
    starts = array("q", range(0, events, each))
    drain.place(records, array("I", range(tabs)), starts, bytearray(8 * tabs), zeros[0], zeros[1], None)
elif which == "checksum":
    assert drain.checksum(records) == zlib.crc32(records)
elif which == "bins":
    assert fresh.bins(in_order, codes, *zeros[:2]) == 20 * tabs
elif which == "figures":
    fresh.figures(in_order, values, *(bytearray(8 * tabs) for _ in range(3)))
elif which in ("edge", "measure", "sum_up"):
    starts, times = array("q", range(0, events + 1, each)), array("d", [1.7e9 + at % each / each * 9 for at in range(events)])
    values = array("d", [1.3 ** (at % 20) for at in range(events)])  # each column has all bins, and two slots
    figures = [bytearray(8 * tabs) for _ in range(4)]
    if which == "edge":
        assert len(rows.edge(starts, times, values)) == tabs
    elif which == "measure":
        drain.measure(starts, times, values, 1e12, 60.0, 1e290, bytearray(b"\\1" * tabs), *figures)
    else:
        assert drain.sum_up(starts, values, *figures[:2])
elif which == "fold":
    times = array("d", [1.7e9 + at % 3 for at in range(events)])
    assert rows.fold([b""] * tabs, in_order, times, values, 1.7e9 + 60, 0, b"", codes) is not None
else:  # one event for each of as many States, as they are in a store that is written to once a second
    each_once, first, second = array("q", range(events)), array("d", [1.7e9]) * events, array("d", [1.7e9 + 7]) * events
    dumps, _ = rows.fold([b""] * events, each_once, first, values, 1.7e9, 0, b"", codes)
    found = rows.fold(dumps, each_once, second, values, 1.7e9 + 7, 0, b"", codes)
    assert found is not None and found[1][0] == 2
"""


@pytest.mark.real
class InstructionsTest(SynchronousTestCase):
    def taken(self, case: str, function: str, times: int) -> float:
        """Instructions an event, within `function` and all that it calls."""
        needs_program("valgrind")
        command = ["valgrind", "--tool=callgrind", f"--toggle-collect={function}", "--callgrind-out-file=/dev/null"]
        settings = {**os.environ, "PYTHONHASHSEED": "0"}
        run = subprocess.run(
            [*command, sys.executable, "-c", CODE, case, str(times), str(TABS)],
            env=settings,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        self.assertEqual(run.returncode, 0, run.stderr)
        found = re.search(r"Collected : (\d+)", run.stderr)
        assert found is not None, run.stderr
        return int(found[1]) / times

    def test_an_event_that_is_drained_takes_no_more_than_it_did(self) -> None:
        for function, most in (("leading", 9), ("count", 13), ("place", 23), ("checksum", 12)):
            taken = self.taken(function, function, EVENTS)
            self.assertTrue(3 < taken <= most, (function, taken))

    def test_an_event_that_is_folded_at_the_edge_takes_no_more_than_it_did(self) -> None:
        for function, most in (("bins", 30), ("figures", 24), ("edge", 125), ("measure", 25), ("sum_up", 12)):
            taken = self.taken(function, function, EVENTS)
            self.assertTrue(5 < taken <= most, (function, taken))

    def test_an_event_that_a_server_folds_takes_no_more_than_it_did(self) -> None:
        taken = self.taken("fold", "fold", EVENTS)
        self.assertTrue(10 < taken <= 60, taken)

    def test_a_state_of_one_event_takes_no_more_than_it_did(self) -> None:
        taken = self.taken("states", "fold", 2000)
        self.assertTrue(500 < taken <= 2700, taken)  # 2360
