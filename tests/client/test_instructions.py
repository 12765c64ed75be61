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
CODE = """
import sys
from itertools import repeat
from taba import client

counter, text = client.counter("c"), client.tab("t", "Noop")
if sys.argv[1] == "count":  # what makes the ring and the Tab's place in it is not counted
    counter.record(1.0)
else:
    counter.inc()
calls = {"number": (counter.record, (1.0,)), "count": (counter.inc, ()), "text": (text.record, ("x" * 200,))}
call, arguments = calls[sys.argv[1]]
for _ in repeat(None, int(sys.argv[2])):
    call(*arguments)
told = client.stats()
assert told["accelerated"], "the C part is not built"
assert not told["dropped"], told
"""


@pytest.mark.real
class InstructionsTest(ClientCase):
    accelerated = True

    def taken(self, case: str, function: str) -> float:
        """Instructions of one call within `function` and all that it calls."""
        needs_program("valgrind")
        command = ["valgrind", "--tool=callgrind", f"--toggle-collect={function}", "--callgrind-out-file=/dev/null"]
        settings = {**os.environ, **self.environment, "PYTHONPATH": ROOT, "PYTHONHASHSEED": "0", "TABA_PURE": "", "TABA_RING_BYTES": "4M"}
        run = subprocess.run(
            [*command, sys.executable, "-c", CODE, case, str(TIMES)], env=settings, capture_output=True, text=True, timeout=PATIENCE_SECONDS
        )
        self.assertEqual(run.returncode, 0, run.stderr)
        collected = re.search(r"Collected : (\d+)", run.stderr)
        assert collected is not None, run.stderr
        return int(collected[1]) / TIMES

    def test_a_number_takes_no_more_than_it_did(self) -> None:
        taken = self.taken("number", "tab_record")
        self.assertTrue(20 < taken <= MOST_RECORD, taken)

    def test_a_count_takes_no_more_than_it_did(self) -> None:
        taken = self.taken("count", "tab_inc")
        self.assertTrue(20 < taken <= MOST_INC, taken)

    def test_a_text_takes_no_more_than_it_did(self) -> None:
        taken = self.taken("text", "tab_record")
        self.assertTrue(50 < taken <= MOST_STRING, taken)
