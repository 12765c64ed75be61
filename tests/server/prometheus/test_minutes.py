"""A Prometheus that scrapes a Server and an Agent for minutes, while a program records and each of the two is killed and started again."""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import pairwise

import pytest

from tests.needs import needs_program
from tests.patience import PATIENCE_SECONDS
from tests.server.prometheus.test_clients import PrometheusCase, samples, vector

SECONDS = 120
RECORDS = """
import sys, time
from taba import client
hits, ends, recorded = client.counter("minutes_hits"), time.monotonic() + float(sys.argv[1]), 0
while time.monotonic() < ends:
    hits.inc()
    recorded += 1
    time.sleep(0.02)
told = client.stats()
assert not told["dropped"], told
print(recorded)
"""
EVENTS = 'minutes_hits_events_total{job="%s"}'


@pytest.mark.real
class Minutes(PrometheusCase):
    def test_no_scrape_shows_less_than_before_but_after_the_agents_start_and_the_last_shows_all(self) -> None:
        needs_program("prometheus")
        self.services.start_server()
        self.services.start_agent()
        prometheus = self.start_prometheus("minutes.*", server=self.services.server_port, agent=self.services.agent_port)
        recorder = subprocess.Popen(
            [sys.executable, "-c", RECORDS, str(SECONDS)], env=self.services.environ, stdout=subprocess.PIPE, text=True
        )
        self.addCleanup(recorder.wait)
        self.addCleanup(recorder.kill)
        began = time.monotonic()
        killed = {"server": 0, "agent": 0}
        for at, names in ((0.2, ("server",)), (0.4, ("agent",)), (0.6, ("server", "agent")), (0.8, ("agent", "server"))):
            time.sleep(max(0.0, began + at * SECONDS - time.monotonic()))
            for name in names:
                self.until(lambda name=name: samples(prometheus, EVENTS % name))  # type: ignore[misc]
                getattr(self.services, f"kill_{name}")()
                killed[name] += 1
                self.until(lambda name=name: list(vector(prometheus, f'up{{job="{name}"}}', time.time()).values()) == [0.0])  # type: ignore[misc]
                getattr(self.services, f"start_{name}")()
                self.until(lambda name=name: list(vector(prometheus, f'up{{job="{name}"}}', time.time()).values()) == [1.0])  # type: ignore[misc]
        told, _ = recorder.communicate(timeout=SECONDS + PATIENCE_SECONDS)
        self.assertEqual(recorder.returncode, 0)
        recorded = float(told)

        # a Server has no past of its own to lose: one curve, through all that was killed
        self.until(lambda: samples(prometheus, EVENTS % "server")[-1][1] == recorded)
        seen = [value for _, value in samples(prometheus, EVENTS % "server")]
        self.assertEqual(seen, sorted(seen))
        self.until(lambda: list(vector(self.services.server_url, "minutes_hits_events_total", time.time()).values()) == [recorded])

        # an Agent tells what it drained since it began: as often as it began anew, and never more than there was
        seen = [value for _, value in samples(prometheus, EVENTS % "agent")]
        resets = [place for place, (before, after) in enumerate(pairwise(seen)) if after < before]
        self.assertLessEqual(len(resets), killed["agent"])
        self.assertGreater(len(resets), 0)
        increase = sum(after - before if after >= before else after for before, after in pairwise(seen))
        self.assertGreater(increase, 0)
        self.assertLessEqual(increase + seen[0], recorded)
