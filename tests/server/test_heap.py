"""That a Server does not have anew, page by page, what it freed."""

from __future__ import annotations

import platform
import subprocess
import sys

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from taba.server.heap import _plain
from tests.client.cases import ROOT
from tests.patience import PATIENCE_SECONDS

FREED = """
import sys
from resource import RUSAGE_SELF, getrusage
from taba.server.heap import keep_heap

if sys.argv[1] == "kept":
    keep_heap()
for _ in range(3):
    before = getrusage(RUSAGE_SELF).ru_minflt
    bodies = [bytes(65_536) * 64 for _ in range(4)]
    del bodies
    had = getrusage(RUSAGE_SELF).ru_minflt - before
print(had)
"""


class HeapTests(SynchronousTestCase):
    def faults(self, how: str) -> int:
        """How many pages a process has to be given that frees and has four bodies of 4 MiB again and again."""
        command = [sys.executable, "-c", FREED, how]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True)
        return int(run.stdout)

    def test_what_bodies_took_is_kept_for_the_next(self) -> None:
        if _plain is None or platform.libc_ver()[0] != "glibc":
            raise SkipTest("needs the Server's C part and a C library that can be told")
        self.assertGreater(self.faults("given back"), 300)
        self.assertLess(self.faults("kept"), 30)
