"""A disk that is really full, alone and beside other things that are: small file systems in a mount namespace, with spool and store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.patience import PATIENCE_SECONDS

from ..needs import needs_mounts
from ..services import ROOT

pytestmark = pytest.mark.real


@pytest.mark.takes(seconds=40)
class FullDisk(SynchronousTestCase):
    def run_in(self, what: str, more: str = "") -> tuple[dict[str, str], dict[str, Any]]:
        """What was said of it, and what became of the events; `more`: what else is mounted."""
        directory = tempfile.mkdtemp()
        self.addCleanup(os.rmdir, directory)
        mount = f"mount -t tmpfs -o size=24m tmpfs {directory} && {more} TMPDIR={directory} exec {sys.executable} -m tests.faults.full_disk"
        command = [*needs_mounts(), "sh", "-c", f"{mount} {what}"]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=6 * PATIENCE_SECONDS)
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout + done.stderr)
        said, books = map(json.loads, done.stdout.splitlines())
        self.assertIn("make room on its disk", said["spool"])
        self.assertGreater(books["folded"], 1000)
        return said, books["dropped"]

    def test_on_a_full_disk_it_is_said_and_every_event_is_folded_or_its_drop_counted(self) -> None:
        _, dropped = self.run_in("disk")
        self.assertLessEqual(set(dropped), {"no_disk"})

    def test_with_a_full_dev_shm_too_what_is_dropped_is_named_by_what_is_full(self) -> None:
        said, dropped = self.run_in("memory", "mount -t tmpfs -o size=64m tmpfs /dev/shm &&")
        self.assertIn("make room on that disk, and in /dev/shm", said["dropped"])
        self.assertRegex(said["late"], "No space left|no room for a ring in /dev/shm")
        self.assertGreater(dropped["no_disk"], 0)
        # its ring is full where the Agent cannot even count what it would drop
        self.assertLessEqual(set(dropped), {"no_disk", "ring_full", "bytes_full", "no_ring"})

    def test_with_a_full_table_of_descriptors_too_both_are_said_and_what_waits_in_rings_is_folded(self) -> None:
        said, dropped = self.run_in("table")
        self.assertIn("limit of descriptors", said["table"])
        self.assertGreater(dropped["no_disk"], 0)
        self.assertLessEqual(set(dropped), {"no_disk", "ring_full", "bytes_full"})
