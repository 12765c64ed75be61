"""How many instructions the C part takes for a record: what a clock could only guess, valgrind counts, the same in each run."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.client.cases import ROOT, ClientCase
from tests.needs import needs_program
from tests.patience import PATIENCE_SECONDS

TIMES = 1_000  # they fit the ring: nothing drops, also where it takes an eighth of a container's 64 MiB
MOST_RECORD = 115  # instructions of record(1.0), the clock's included: 95 with gcc 12
MOST_INC = 100  # of inc(): 82
MOST_STRING = 360  # of a text of 200 bytes: 309
MOST_LABELS = 90  # of labels() with two labels that are known: 75
MOST_DROP = 205  # of record(1.0) that finds the ring full: 173
CODE = """
import sys
from itertools import repeat
from taba import client

counter, text = client.counter("c"), client.tab("t", "Noop")
if sys.argv[1] == "count":  # what makes the ring and the Tab's place in it is not counted
    counter.record(1.0)
else:
    counter.inc()
if sys.argv[1] == "drop":
    for _ in repeat(None, 3_000):  # a ring of 64 KiB holds 2,048
        counter.inc()
counter.labels(route="/x", status=200)
calls = {
    "number": (counter.record, (1.0,)), "count": (counter.inc, ()), "text": (text.record, ("x" * 200,)), "drop": (counter.record, (1.0,)),
    "labels": (lambda: counter.labels(route="/x", status=200), ()),
}
call, arguments = calls[sys.argv[1]]
times = int(sys.argv[2])
for _ in repeat(None, times):
    call(*arguments)
told = client.stats()
assert told["accelerated"], "the C part is not built"
assert (told["dropped"] > times // 2) == (sys.argv[1] == "drop"), told
"""


@pytest.mark.real
class InstructionsTest(ClientCase):
    accelerated = True

    def taken(self, case: str, function: str) -> float:
        """Instructions of one call within `function` and all that it calls."""
        return self.collected(case, function, TIMES) / TIMES

    def collected(self, case: str, function: str, times: int) -> int:
        """Instructions of so many calls."""
        needs_program("valgrind")
        command = ["valgrind", "--tool=callgrind", f"--toggle-collect={function}", "--callgrind-out-file=/dev/null"]
        ours = {"PYTHONPATH": ROOT, "PYTHONHASHSEED": "0", "TABA_PURE": "", "TABA_RING_BYTES": "64K" if case == "drop" else "4M"}
        run = subprocess.run(
            [*command, sys.executable, "-c", CODE, case, str(times)],
            env={**os.environ, **self.environment, **ours},
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        self.assertEqual(run.returncode, 0, run.stderr)
        collected = re.search(r"Collected : (\d+)", run.stderr)
        assert collected is not None, run.stderr
        return int(collected[1])

    def test_a_number_takes_no_more_than_it_did(self) -> None:
        taken = self.taken("number", "tab_record")
        self.assertTrue(20 < taken <= MOST_RECORD, taken)

    def test_a_count_takes_no_more_than_it_did(self) -> None:
        taken = self.taken("count", "tab_inc")
        self.assertTrue(20 < taken <= MOST_INC, taken)

    def test_a_text_takes_no_more_than_it_did(self) -> None:
        taken = self.taken("text", "tab_record")
        self.assertTrue(50 < taken <= MOST_STRING, taken)

    def test_labels_that_are_known_take_no_more_than_they_did(self) -> None:
        # the first call makes the Tab, in both
        taken = (self.collected("labels", "tab_labels", 2 * TIMES) - self.collected("labels", "tab_labels", TIMES)) / TIMES
        self.assertTrue(50 < taken <= MOST_LABELS, taken)

    def test_a_number_that_is_dropped_takes_no_more_than_it_did(self) -> None:
        taken = self.taken("drop", "tab_record")
        self.assertTrue(20 < taken <= MOST_DROP, taken)
