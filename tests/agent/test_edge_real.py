"""Hot Tabs from a client to a Server: folded at the edge, counted there, and exact."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.patience import PATIENCE_SECONDS, until
from tests.services import Services

RECORDS = """
import sys
from taba import client
client.start("web/" + sys.argv[1])
tabs = client.counter("hits"), client.percentile("seconds"), client.tab("sums", type="TotalsCounter"), client.gauge("depth")
for number in range(4000):
    for tab in tabs:
        tab.record(float(number % 16))
assert not client.stats()["dropped"], client.stats()
"""


@pytest.mark.real
class HotTabs(SynchronousTestCase):
    def test_they_are_folded_before_they_travel_and_count_as_the_events_that_they_are(self) -> None:
        services = Services()
        self.addCleanup(services.stop)
        services.start_server()
        services.start_agent()
        agent = services.agent_query
        types = {"CounterGroup": 1, "PercentileCounter": 1, "PercentileGroup": 1, "TotalsCounter": 1}
        until(lambda: agent.status()["edge"]["types"] == types)
        for number in range(2):
            subprocess.run(
                [sys.executable, "-c", RECORDS, str(number)],
                env=services.environ,
                check=True,
                timeout=PATIENCE_SECONDS,
                capture_output=True,
            )
        recorded = 2 * 4 * 4000

        def folded() -> Any:
            status = services.query.status()
            return status if status["folded"] >= recorded else None

        status = until(folded)
        self.assertEqual((status["folded"], status["dead_letters"], status["dropped_by_reason"]), (recorded, 0, {}))
        total = 2 * 4000 * 7.5
        found = services.query.aggregates()
        self.assertEqual((found["hits"]["1d"]["count"], found["hits"]["1d"]["total"]), (8000, total))
        self.assertEqual((found["hits"]["pct"]["min"], found["hits"]["pct"]["max"]), (0, 15))
        self.assertEqual((found["seconds"]["1d"]["count"], found["seconds"]["1d"]["total"]), (8000, total))
        self.assertEqual((found["sums"]["count"], found["sums"]["total"]), (8000, total))
        self.assertEqual(found["depth"]["clients"], 2)
        at_edge = agent.status()["edge"]
        self.assertGreater(at_edge["events"], recorded // 2)  # the gauge's never are
        self.assertLessEqual(at_edge["events"], recorded * 3 // 4)
        self.assertLess(at_edge["states"], at_edge["events"] / 32)
        self.assertEqual(at_edge["failed"], {})
        self.assertLess(services.query.latency()["p50"], PATIENCE_SECONDS)
