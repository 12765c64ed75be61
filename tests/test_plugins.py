"""`twistd` and Taba's services, where what they need is not installed."""

from __future__ import annotations

import os
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from taba.installing import install_hint
from tests.services import ROOT

# the named distribution cannot be imported, as where its extra is not installed
TWISTD = """
import sys
sys.modules[sys.argv.pop(1)] = None
from twisted.scripts.twistd import run
run()
"""


class Plugins(SynchronousTestCase):
    def twistd(self, missing: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", TWISTD, missing, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        )

    def test_a_missing_extra_is_said_in_one_line(self) -> None:
        for missing in ("txredisapi", "numpy"):
            done = self.twistd(missing, "-n", "taba-server")
            self.assertEqual((done.returncode, done.stdout), (1, ""), missing)
            self.assertEqual(done.stderr, f"taba-server: needs {missing}: {install_hint('server')}\n")

    def test_the_list_of_services_needs_no_extra(self) -> None:
        done = self.twistd("txredisapi", "--help")
        self.assertEqual(done.returncode, 0)
        self.assertIn("taba-server", done.stdout)
        self.assertIn("taba-agent", done.stdout)
