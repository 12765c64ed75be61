"""The examples of docs/frameworks.md run, and record what the page says."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.client.cases import ROOT
from tests.patience import PATIENCE_SECONDS

# in a process of its own: they instrument all of it
RUN = """
from pathlib import Path
from taba.client import testing
from taba.frameworks import vitals
from tests.documents import blocks
with testing.capture() as recorded:
    for block in blocks(Path("docs/frameworks.md").read_text()):
        assert block.language == "python", block
        exec(compile("\\n" * (block.line - 1) + block.code, "docs/frameworks.md", "exec"), {"__name__": "__main__"})
    vitals.unwatch()  # a collection at the end of the process would make a ring
for name in ("http_requests", "celery_tasks", "process_resident_bytes", "log_records"):
    print(name, recorded.count(name) > 0)
"""


@pytest.mark.real
class Examples(SynchronousTestCase):
    def test_they_run(self) -> None:
        command = [sys.executable, "-W", "ignore", "-c", RUN]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": ROOT}, capture_output=True, text=True, timeout=PATIENCE_SECONDS
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.count("True"), 4, done.stdout)
