"""SIGTERM to Server and Agent while events flow: what is under way is decided, the rest is kept, and everything counts once."""

from __future__ import annotations

import http.client
import signal
import subprocess
import sys
from typing import Any

import psutil
import pytest
from twisted.trial.unittest import SynchronousTestCase

from taba.query import Query
from tests.services import Services

from .patience import PATIENCE_SECONDS, until

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
        self.assertIn(child.process.wait(PATIENCE_SECONDS), (0, -signal.SIGTERM), child.log.read_text(errors="replace")[-2000:])
        self.services.children.remove(child)

    def count(self) -> Any:
        return self.services.query.aggregates(name="hits").get("hits", {}).get("count", 0)

    def waiting(self) -> Any:
        status = Query(self.services.agent_url, role="Agent").status()
        return status["outbox"]["batches"] + status["spool"]["batches"]

    def expect(self, least: int) -> None:
        until(lambda: self.count() >= least, lambda: f"{self.count()} are folded, and {least} should be")

    def readiness(self, connection: http.client.HTTPConnection) -> tuple[int, str]:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def begin(self) -> subprocess.Popen[str]:
        load = subprocess.Popen(
            [sys.executable, "-c", RECORDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.services.environ
        )
        assert load.stdout is not None and load.stdin is not None
        for last in (load.stdout.close, load.stdin.close, load.wait, load.kill):
            self.addCleanup(last)
        self.assertEqual(load.stdout.readline(), "begun\n")
        return load

    def end(self, load: subprocess.Popen[str]) -> None:
        assert load.stdout is not None and load.stdin is not None
        load.stdin.write("enough\n")
        load.stdin.flush()
        recorded, dropped = map(int, load.stdout.readline().split())
        self.expect(recorded - dropped)
        until(lambda: not self.waiting(), "batches wait at the Agent")  # of which one might count twice
        self.assertEqual(self.count(), recorded - dropped)

    def test_readiness_goes_first_while_the_server_still_answers_and_finishes(self) -> None:
        self.services.start_server()
        self.services.start_agent()
        load = self.begin()
        self.expect(1)
        server = self.services._child("server")
        [store] = psutil.Process(server.process.pid).children()
        connection = http.client.HTTPConnection(f"127.0.0.1:{self.services.server_port}", timeout=PATIENCE_SECONDS)
        self.addCleanup(connection.close)
        self.assertEqual(self.readiness(connection)[0], 200)
        store.suspend()  # so that there is something to finish
        try:
            server.process.terminate()
            while (said := self.readiness(connection))[0] == 200:
                pass
            self.assertEqual(said[0], 503)
            self.assertIn("this Server stops", said[1])
            self.assertIsNone(server.process.poll())
        finally:
            store.resume()
        self.assertIn(server.process.wait(PATIENCE_SECONDS), (0, -signal.SIGTERM))
        self.services.children.remove(server)
        self.services.start_server()
        self.end(load)

    def test_server_and_agent_stop_under_load_and_everything_counts_once(self) -> None:
        self.services.start_server()
        self.services.start_agent()
        load = self.begin()
        self.expect(1)
        before = self.count()
        self.terminate("server")  # what it has under way is decided; the Agent keeps the rest, …
        self.terminate("agent")  # … also over its own end
        self.services.start_agent()
        self.services.start_server()
        self.expect(before + 1)
        self.end(load)
