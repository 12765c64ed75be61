"""P1, exactly once: kill -9 to any part, at any moment, any number of times, and every event that was recorded counts once."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest

from ..services import ROOT
from .job import Job


class ExactlyOnce(Job):
    def test_agent_server_and_store_are_each_killed_and_every_event_counts_once(self) -> None:
        self.services.start_server()
        self.services.start_agent()
        recorders = self.start_recorders(20_000, pause=0.1)
        self.until(lambda: self.services.query.status()["folded"])
        self.services.kill_agent()
        self.services.start_agent()
        self.services.kill_store()
        self.services.kill_server()
        self.services.start_server()
        self.end_recorders(recorders)
        self.assert_exact(20_000)
        self.assert_rings_are_gone()


@pytest.mark.real
class ExactlyOnceForLong(Job):
    def test_a_million_events_of_eight_processes_are_exact_while_the_agent_is_killed_twenty_times(self) -> None:
        self.services.start_server()
        self.services.start_agent()
        recorders = self.start_recorders(1_000_000, pause=0.15)
        for _ in range(20):
            time.sleep(0.25)  # it drains, sends or starts: wherever the kill finds it
            self.services.kill_agent()
            self.services.start_agent()
        self.end_recorders(recorders)
        self.assert_exact(1_000_000)
        self.assert_rings_are_gone()

    def test_agent_server_and_store_are_killed_in_turn_and_every_event_is_there_once(self) -> None:
        self.services.start_server()
        self.services.start_agent()
        recorders = self.start_recorders(200_000, pause=0.4)
        for turn in range(6):
            time.sleep(0.4)
            if turn % 3 == 0:
                self.services.kill_agent()
                self.services.start_agent()
            elif turn % 3 == 1:
                self.services.kill_server()
                self.services.start_server()
            else:
                self.services.kill_store()
        self.end_recorders(recorders)
        self.assert_exact(200_000)

    def test_everything_is_killed_and_started_again_in_another_order(self) -> None:
        self.services.start_server()
        self.services.start_agent()
        self.run_recorders(20_000)
        self.services.kill_server()
        self.services.kill_agent()
        self.services.start_agent()  # before the Server that it sends to
        self.services.start_server()
        self.assert_exact(20_000)

    def test_a_soak_of_a_minute_is_exact(self) -> None:
        command = [sys.executable, "-m", "tests.faults.soak", "--minutes", "1", "--rate", "20000"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertRegex(done.stdout, re.compile(r"^seed: \d+$.*^verdict: every event once, memory flat$", re.MULTILINE | re.DOTALL))
