"""What an Agent's and a Server's status alone say at rest: recorded = folded + dead letters + dropped, whatever was killed meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.patience import PATIENCE_SECONDS
from tests.services import ROOT, Services

pytestmark = pytest.mark.real  # an Agent that is killed again and again

RECORD = """
import json, sys, time
from taba import client

client.start(sys.argv[1])
bids, odd = client.counter("bids_won"), client.tab("odd", type="NoSuchType")
for number in range(5000):
    bids.inc()
    if number % 50 == 0:
        odd.record(number)
        odd.record(object())
        bids.record("no number")
        time.sleep(0.02)
for number in range(50_000):  # more than the ring holds between two looks of its Agent
    bids.inc()
stats = client.stats()
# while the ring is full a value of no type is dropped for that
assert stats["dropped_by_reason"]["value_type"] > 0 and stats["dropped_by_reason"]["ring_full"] > 0, stats
print(json.dumps([stats["recorded"], stats["dropped"]]))
"""


class Accounts(SynchronousTestCase):
    def test_every_event_is_accounted_for_over_drops_dead_letters_and_kills(self) -> None:
        services = Services()
        self.addCleanup(services.stop)
        services.start_server()
        services.start_agent()
        environ = {**services.environ, "TABA_RING_BYTES": "65536", "PYTHONPATH": str(ROOT)}
        clients = [
            subprocess.Popen([sys.executable, "-c", RECORD, f"web/{number}"], env=environ, stdout=subprocess.PIPE, text=True)
            for number in range(2)
        ]
        for _ in range(3):
            time.sleep(0.3)
            services.kill_agent()
            services.start_agent()
        told = [json.loads(client.communicate(timeout=PATIENCE_SECONDS)[0]) for client in clients]
        self.assertEqual([client.returncode for client in clients], [0, 0])
        recorded, dropped = (sum(column) for column in zip(*told, strict=True))
        agent = services.agent_query
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            ours: Any = agent.status()
            theirs: Any = services.query.status()
            drops = sum(ours["dropped_by_reason"].values())
            if not ours["rings_open"] and ours["recorded"] == theirs["folded"] + theirs["dead_letters"] + drops:
                break
            self.assertLess(time.monotonic(), deadline, (ours, theirs, told))
            time.sleep(0.1)
        self.assertEqual((ours["recorded"], drops), (recorded + dropped, dropped))
        # of a Type that no Handler has, and texts for a counter: 200 each, less those that found the ring full
        self.assertTrue(0 < theirs["dead_letters"] <= 400, theirs)
        services.kill_agent()
        services.start_agent()
        ours = agent.status()
        self.assertEqual((ours["recorded"], sum(ours["dropped_by_reason"].values())), (recorded + dropped, dropped))
