"""A Server and an Agent of which one is a version newer: everything waits, both say so, and once they agree everything counts once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from twisted.trial.unittest import SynchronousTestCase

from taba.batch import BATCH_VERSION
from taba.query import QueryError
from tests.processes import twistd
from tests.services import Services

SOONER = "import taba.server.fold.envelopes as envelopes; envelopes.VERSION_SECONDS = 5.0"  # else half a minute for an upgrade
PATIENCE = 90.0  # seconds for whatever comes in the end
RECORDS = """
from taba import client
client.start("web/1")
hits = client.tab("hits", type="TotalsCounter")
for _ in range(500):
    hits.record(1.0)
"""


@pytest.mark.real
class Versions(SynchronousTestCase):
    def setUp(self) -> None:
        self.services = Services()
        self.addCleanup(self.services.stop)
        self.agent = self.services.agent_query

    def start(self, name: str, newer: int) -> None:
        """Start it as one of a version that is `newer` by so much: only its number is another."""
        services = self.services
        if name == "server":
            port, store = services.server_port, f"embedded:{services.directory / 'store'}"
            options = ["--listen", f"tcp:{port}:interface=127.0.0.1", "--store", store]
        else:
            port = services.agent_port
            options = ["--agent", services.agent, "--server", services.server_url, "--listen", f"tcp:{port}:interface=127.0.0.1"]
            options += ["--spool", str(services.directory / "spool")]
        python, flag, code, *rest = twistd(f"taba-{name}", *options)
        pretends = f"import taba.batch; taba.batch.BATCH_VERSION = {BATCH_VERSION + newer}; {SOONER}; {code}"
        services._start(name, [python, flag, pretends, *rest], port)

    def record(self) -> None:
        done = self.services.run("-c", RECORDS)
        self.assertEqual(done.returncode, 0, done.stderr)

    def until(self, what: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                if answer := what():
                    return answer
            except QueryError as error:
                answer = error
            self.assertLess(time.monotonic(), deadline, str(answer))
            time.sleep(0.05)

    def count(self) -> int:
        return int(self.services.query.aggregates(name="hits").get("hits", {}).get("count", 0))

    def waits(self, server: int, agent: int) -> None:
        """With these versions nothing is folded, and both say why; with a Server of the Agent's everything is, once."""
        self.start("server", server)
        self.start("agent", agent)
        self.record()
        says = f"batch version {BATCH_VERSION + agent}; version {BATCH_VERSION + server} is read here: upgrade the older side"
        self.until(lambda: [one for one in self.services.query.status()["problems"] if says in one])
        self.until(lambda: [one for one in self.agent.status()["problems"] if says in one])
        self.assertEqual(self.count(), 0)
        self.assertEqual(self.services.query.status()["dead_letters"], 0)
        self.services.kill_server()
        self.start("server", agent)
        self.until(lambda: self.count() == 500)
        self.record()
        self.until(lambda: self.count() == 1000)
        self.assertEqual(self.agent.status()["dropped_by_reason"], {})

    def test_a_newer_server_lets_an_older_agent_wait(self) -> None:
        self.waits(server=1, agent=0)

    def test_an_older_server_lets_a_newer_agent_wait(self) -> None:
        self.waits(server=0, agent=1)
