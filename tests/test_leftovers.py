"""A run of tests fails that leaves something in shared memory, and what others have there is none of its business."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from taba.ring import SHM_DIRECTORY
from tests import leftovers
from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parent.parent
RECORDS = """
from taba import client

def test_records():
    client.counter("hits").inc()
"""


class Leftovers(SynchronousTestCase):
    def test_what_is_named_for_this_run_is_found_and_what_others_made_is_not(self) -> None:
        mine, other = (os.path.join(SHM_DIRECTORY, f"taba.{name}.{secrets.token_hex(8)}") for name in (leftovers.agent_name(), "t-run0"))
        for path in (mine, other):
            with open(path, "x"):
                self.addCleanup(os.unlink, path)
        self.assertIn(os.path.basename(mine), leftovers.left())
        self.assertNotIn(os.path.basename(other), leftovers.left())

    def test_a_run_whose_test_records_into_a_ring_fails_names_it_and_removes_it(self) -> None:
        directory = Path(self.mktemp()).resolve()
        directory.mkdir()
        (directory / "test_one.py").write_text(RECORDS)
        environ = {name: value for name, value in os.environ.items() if name != leftovers.VARIABLE and not name.startswith("PYTEST_")}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.conftest", str(directory / "test_one.py")]
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertIn("1 passed", done.stdout, done.stderr)
        [name] = [line for line in done.stdout.splitlines() if line.startswith("taba.")]
        self.assertFalse(os.path.exists(os.path.join(SHM_DIRECTORY, name)))
