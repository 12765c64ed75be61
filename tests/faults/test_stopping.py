"""SIGTERM to Server and Agent while events flow: what is under way is decided, the rest is kept, and everything counts once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.services import Services

PATIENCE = 90.0  # seconds for whatever comes in the end
RECORDS = """
import select, sys, time
from taba import client
client.start("load/1")
hits = client.tab("hits", type="TotalsCounter")
count = 0
print("begun", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    for _ in range(200):
        hits.record(1.0)
    count += 200
    time.sleep(0.01)
stats = client.stats()
print(count, stats["dropped"], flush=True)
"""


@pytest.mark.real
class Stopping(SynchronousTestCase):
    def setUp(self) -> None:
        self.services = Services()
        self.addCleanup(self.services.stop)

    def terminate(self, name: str) -> None:
        """SIGTERM, and all that it is given is its own bound and a machine's slowness."""
        child = self.services._child(name)
        child.process.terminate()
        self.assertIn(child.process.wait(PATIENCE), (0, -signal.SIGTERM), child.log.read_text(errors="replace")[-2000:])
        self.services.children.remove(child)

    def count(self) -> Any:
        return self.services.query.aggregates(name="hits").get("hits", {}).get("count", 0)

    def until(self, least: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.count() < least:
            self.assertLess(time.monotonic(), deadline, self.count())
            time.sleep(0.05)

    def test_server_and_agent_stop_under_load_and_everything_counts_once(self) -> None:
        self.services.start_server()
        self.services.start_agent()
        load = subprocess.Popen(
            [sys.executable, "-c", RECORDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.services.environ
        )
        assert load.stdout is not None and load.stdin is not None
        for last in (load.stdout.close, load.stdin.close, load.wait, load.kill):
            self.addCleanup(last)
        self.assertEqual(load.stdout.readline(), "begun\n")
        self.until(1)
        before = self.count()
        self.terminate("server")  # what it has under way is decided; the Agent keeps the rest, …
        self.terminate("agent")  # … also over its own end
        self.services.start_agent()
        self.services.start_server()
        self.until(before + 1)
        load.stdin.write("enough\n")
        load.stdin.flush()
        recorded, dropped = map(int, load.stdout.readline().split())
        self.until(recorded - dropped)
        self.assertEqual(self.count(), recorded - dropped)
