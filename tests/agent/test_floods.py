"""Real processes: one names Tabs without end, by caps that its Server tells; another one beside it loses nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.patience import PATIENCE_SECONDS, until
from tests.services import ROOT, SHM, Services

pytestmark = pytest.mark.real  # a Server, an Agent and two clients

# names so many Tabs, one event each, and goes
FLOOD = """
import sys
from taba import client
client.start("web/flood")
for number in range(int(sys.argv[1])):
    client.counter("clicks", labels={"user": str(number)}).inc()
assert client.stats()["dropped"] == 0, client.stats()
"""
# so many that each name has to be short for the directory to hold them
MILLION = FLOOD.replace(
    'client.counter("clicks", labels={"user": str(number)}).inc()', 'client.gauge("t", labels={"u": str(number)}).set(number)'
)
# records until its standard input ends, into a small ring; then tells how many
BESIDE = """
import select, sys
from taba import client
client.start("web/beside")
bids, count = client.counter("bids_won"), 0
while not select.select([sys.stdin], [], [], 0.002)[0]:
    bids.inc()
    count += 1
assert client.stats()["dropped"] == 0, client.stats()
print(count)
"""
# fills a large ring, with many Tabs, again and again until its standard input ends; then tells that it was full
FILL = """
import select, sys
from taba import client
client.start("web/flood")
tabs = [client.counter("clicks", labels={"user": f"{sys.argv[1]}-{number}"}) for number in range(5_000)]
while not select.select([sys.stdin], [], [], 0.05)[0]:
    full = client.stats()["dropped"]
    while client.stats()["dropped"] == full:
        for tab in tabs:
            tab.inc()
print(client.stats()["dropped"])
"""
MANY, OWN = 8_000, 100
MILLION_BYTES = 256 << 20  # of a ring whose directory, an eighth of it, holds as many


class Floods(SynchronousTestCase):
    def test_sums_stay_right_the_client_is_named_and_who_records_beside_it_loses_nothing(self) -> None:
        services = self._flooded(FLOOD, MANY, 64 << 20)
        sums = services.query.aggregates(name='clicks{overflow="true"}')
        self.assertEqual(sums['clicks{overflow="true"}']["1d"]["count"], MANY - OWN)
        self.assertEqual(len(services.query.names(name="clicks")), OWN + 1)

    def test_a_million_tabs_in_a_ring_cost_who_records_beside_it_nothing(self) -> None:
        room = os.statvfs(SHM)
        if room.f_bavail * room.f_frsize < 10 * MILLION_BYTES:
            raise SkipTest(f"needs {SHM} with {10 * MILLION_BYTES >> 20} MiB of room: a ring takes an eighth of it at most")
        services = self._flooded(MILLION, 1_000_000, MILLION_BYTES)
        [gauge] = services.query.aggregates(name='t{overflow="true"}').values()
        self.assertEqual((gauge["values"], gauge["clients"]), ({"999999": 1}, 1))  # the last one
        self.assertEqual(len(services.query.names(name="t")), OWN + 1)

    def _flooded(self, code: str, many: int, ring_bytes: int) -> Services:
        """Services where one has named so many Tabs, and all is folded; nothing was lost, by whomever, and who it was is said."""
        services = Services()
        self.addCleanup(services.stop)
        services.start_server("--max-client-tabs", str(OWN))
        services.start_agent()
        agent = services.agent_query
        until(lambda: agent.status()["caps"]["client_tabs"] == OWN, "the caps of the Server")
        environ = {**services.environ, "PYTHONPATH": str(ROOT)}
        beside = subprocess.Popen(
            [sys.executable, "-c", BESIDE],
            env={**environ, "TABA_RING_BYTES": "65536"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(beside.wait, 60)
        self.addCleanup(beside.kill)
        room = {"TABA_RING_BYTES": str(ring_bytes), "TABA_SHM_BYTES": str(10 * ring_bytes)}
        flood = subprocess.Popen([sys.executable, "-c", code, str(many)], env={**environ, **room})
        self.addCleanup(flood.wait, PATIENCE_SECONDS)
        self.addCleanup(flood.kill)
        self.assertEqual(flood.wait(PATIENCE_SECONDS), 0)
        told: set[str] = set()

        def is_drained() -> bool:
            ours: Any = agent.status()
            told.update(problem for problem in ours["problems"] if "web/flood" in problem)
            return ours["recorded"] >= many and [ring["client"] for ring in ours["rings"]] == ["web/beside"]

        until(is_drained, lambda: agent.status())
        recorded = int(beside.communicate("\n", timeout=PATIENCE_SECONDS)[0])
        self.assertEqual(beside.returncode, 0)

        def ended() -> Any:
            ours, theirs = agent.status(), services.query.status()
            return (ours, theirs) if not ours["rings_open"] and ours["recorded"] == theirs["folded"] else None

        ours, theirs = until(ended, lambda: (agent.status(), services.query.status()))
        self.assertEqual((ours["recorded"], ours["dropped_by_reason"], theirs["dead_letters"]), (many + recorded, {}, 0))
        self.assertTrue(any("more than 100 Tabs at once (--max-client-tabs)" in problem for problem in told), told)
        return services

    def test_beside_rings_that_are_always_full_a_small_one_is_read_before_it_is(self) -> None:
        services = Services()
        self.addCleanup(services.stop)
        services.start_server()
        services.start_agent()
        environ = {**services.environ, "PYTHONPATH": str(ROOT), "TABA_SHM_BYTES": str(1 << 28)}

        def start(code: str, ring_bytes: int, *arguments: str) -> subprocess.Popen[str]:
            more = {**environ, "TABA_RING_BYTES": str(ring_bytes)}
            process = subprocess.Popen([sys.executable, "-c", code, *arguments], env=more, stdin=-1, stdout=-1, text=True)
            self.addCleanup(process.wait, 60)
            self.addCleanup(process.kill)
            return process

        floods = [start(FILL, 32 << 20, str(number)) for number in range(3)]
        agent = services.agent_query
        # all of them were full
        until(lambda: agent.status()["dropped_by_reason"].get("ring_full", 0) >= 300_000, lambda: agent.status())
        beside = start(BESIDE.replace("bids.inc()", "[bids.inc() for _ in range(4)]").replace("+= 1", "+= 4"), 262_144)
        until(lambda: "web/beside" in [ring["client"] for ring in agent.status()["rings"]], lambda: agent.status())
        goal = agent.status()["recorded"] + 4_000_000  # from when it is there: what came before says nothing of it
        until(lambda: agent.status()["recorded"] >= goal, lambda: agent.status())
        recorded = int(beside.communicate("\n", timeout=PATIENCE_SECONDS)[0])  # it looks at its drops itself
        self.assertEqual(beside.returncode, 0)
        self.assertGreater(recorded, 0)
        self.assertTrue(all(int(flood.communicate("\n", timeout=PATIENCE_SECONDS)[0]) for flood in floods))
        until(lambda: self._counted(services) == recorded, lambda: (self._counted(services), recorded))

    def _counted(self, services: Services) -> int:
        aggregates: Any = services.query.aggregates(name="bids_won")
        count: int = aggregates.get("bids_won", {}).get("1d", {}).get("count", 0)
        return count
