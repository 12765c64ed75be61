"""P2, never in the way: a record call neither waits nor raises, whatever the state of the rest, and starts nothing in the application."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .job import ShortJob

# records more than the ring holds, then says what became of it and of its process
RECORD = """
import json, os, sys, threading
from taba import client
hits = client.counter("hits")
for number in range(200_000):
    hits.inc()
child = os.fork()
if not child:
    hits.inc()
    os._exit(0 if client.stats()["recorded"] + client.stats()["dropped"] == 1 else 1)  # its own ring, its own counts
assert os.waitpid(child, 0)[1] == 0
stats = client.stats()
children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
print(json.dumps([stats["recorded"], stats["dropped"], len(os.listdir("/proc/self/task")), threading.active_count(), children]))
"""


@pytest.mark.takes(seconds=15)
class NeverInTheWay(ShortJob):
    def check_it_records(self) -> None:
        """200,000 records into a ring of 2,048 places end, each counted, with no thread or process beside."""
        done = self.services.run("-c", RECORD, TABA_RING_BYTES="65536")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        recorded, dropped, tasks, threads, children = json.loads(done.stdout)
        self.assertEqual(recorded + dropped, 200_000)
        self.assertGreater(recorded, 0)
        self.assertEqual((tasks, threads, children), (1, 1, []))

    def test_with_no_agent_an_agent_that_hangs_and_no_server_records_end_and_are_counted(self) -> None:
        self.check_it_records()
        self.services.start_agent()
        self.check_it_records()
        self.services.pause("agent")
        self.check_it_records()
        self.services.resume("agent")

    def test_a_client_that_began_before_the_agent_needs_nothing_done(self) -> None:
        self.services.environ["TABA_RING_BYTES"] = str(1 << 20)
        self.run_recorders(8_000)
        self.assertTrue(list(Path("/dev/shm").glob(f"taba.{self.services.agent}.*")))
        self.services.start_server()
        self.services.start_agent()
        self.assert_exact(8_000)
