"""SIGTERM to Server and Agent while events flow: what is under way is decided, the rest is kept, and everything counts once."""

from __future__ import annotations

import http.client
import signal
from typing import Any

import psutil
import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.patience import PATIENCE_SECONDS, until
from tests.services import Services

from .load import Load


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
        status = self.services.agent_query.status()
        return status["outbox"]["batches"] + status["spool"]["batches"]

    def expect(self, least: int) -> None:
        until(lambda: self.count() >= least, lambda: f"{self.count()} are folded, and {least} should be")

    def readiness(self, connection: http.client.HTTPConnection) -> tuple[int, str]:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def end(self, load: Load) -> None:
        """Everything that was recorded counts, once."""
        recorded = load.end()
        self.expect(recorded)
        until(lambda: not self.waiting(), "batches wait at the Agent")  # of which one might count twice
        self.assertEqual(self.count(), recorded)

    def test_readiness_goes_first_while_the_server_still_answers_and_finishes(self) -> None:
        self.services.start_server()
        self.services.start_agent()
        load = Load(self, self.services)
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
        load = Load(self, self.services)
        self.expect(1)
        before = self.count()
        self.terminate("server")  # what it has under way is decided; the Agent keeps the rest, …
        self.terminate("agent")  # … also over its own end
        self.services.start_agent()
        self.services.start_server()
        self.expect(before + 1)
        self.end(load)
