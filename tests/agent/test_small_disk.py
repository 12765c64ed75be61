"""An Agent that starts while its disk is full, which is a tmpfs of its own in a mount namespace of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.needs import needs_mounts
from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]


class FullDisk(SynchronousTestCase):
    def run_in(self, scenario: str) -> None:
        mount = f"mount -t tmpfs -o size=4m tmpfs /mnt && exec {sys.executable} -m tests.agent.small_disk {scenario}"
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [*needs_mounts(), "sh", "-c", mount], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=PATIENCE_SECONDS
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    @pytest.mark.real
    def test_where_nothing_was_it_drains_and_sends_and_makes_its_spool_once_there_is_room(self) -> None:
        self.run_in("fresh")

    @pytest.mark.real
    def test_what_an_agent_of_before_left_is_read_and_sent_once_and_forgotten_once_there_is_room(self) -> None:
        self.run_in("left")

    @pytest.mark.real
    def test_where_it_cannot_know_what_was_left_it_ends_with_one_line_and_changes_nothing(self) -> None:
        self.run_in("torn")
