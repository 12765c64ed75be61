"""A small and a full /dev/shm, each a tmpfs of its own in a mount namespace of its own."""

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


class SmallMemory(SynchronousTestCase):
    def run_in(self, size: str, scenario: str) -> None:
        mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm && exec {sys.executable} -m tests.agent.small_shm {scenario}"
        alone = needs_mounts()
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([*alone, "sh", "-c", mount], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    @pytest.mark.real
    def test_with_64_mib_and_all_defaults_clients_can_record_whatever_the_agent_holds(self) -> None:
        self.run_in("64m", "defaults")

    @pytest.mark.real
    def test_with_2_mib_everything_arrives(self) -> None:
        self.run_in("2m", "tiny")

    @pytest.mark.real
    def test_full_while_it_runs_what_is_fresh_goes_through_the_spool_and_counts_once(self) -> None:
        self.run_in("2m", "full")

    def test_full_while_a_table_needs_more_than_its_first_pages_it_goes_through_the_spool_and_counts_once(self) -> None:
        self.run_in("8m", "table")

    def test_full_before_the_start_what_is_recorded_goes_through_the_spool_and_the_outbox_is_made_once_there_is_room(self) -> None:
        self.run_in("2m", "none")
