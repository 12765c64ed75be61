"""A disk that is really full: a small file system in a mount namespace, with spool and embedded store on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

import pytest
from twisted.trial.unittest import SynchronousTestCase

from ..needs import needs_mounts
from ..services import ROOT

pytestmark = pytest.mark.real


class FullDisk(SynchronousTestCase):
    def test_on_a_full_disk_it_is_said_and_every_event_is_folded_or_its_drop_counted(self) -> None:
        directory = tempfile.mkdtemp()
        self.addCleanup(os.rmdir, directory)
        mount = f"mount -t tmpfs -o size=24m tmpfs {directory} && TMPDIR={directory} exec {sys.executable} -m tests.faults.full_disk"
        alone = needs_mounts()
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([*alone, "sh", "-c", mount], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=1800)
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout + done.stderr)
        *said, books = done.stdout.splitlines()
        self.assertIn("make room on its disk", said[0])
        self.assertGreater(json.loads(books)["folded"], 1000)
