"""P3, nothing lost while the store is away: the Agent spools to disk, bounded, and catches up by itself."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from taba.agent.outbox import MIN_OUTBOX_BYTES
from tests.patience import PATIENCE_SECONDS

from .gate import Gate
from .job import Job, ShortJob

FRESH = """
from taba import client
client.start("web/2")
fresh = client.tab("fresh", type="TotalsCounter")
for number in range(10):
    fresh.record(1)
"""


@pytest.mark.takes(seconds=15)
class NothingLost(ShortJob):
    def test_recorded_while_there_is_no_server_is_folded_once_there_is_one(self) -> None:
        self.services.start_server()  # an Agent that never met one does not know the buckets
        self.services.start_agent()
        self.run_recorders(8_000)
        self.wait_for(8_000)
        self.services.kill_server()
        for path in self.reports.iterdir():
            path.rename(self.services.directory / f"first-{path.name}")
        self.run_recorders(8_000)
        self.services.start_server()
        for path in self.services.directory.glob("first-*.json"):
            path.rename(self.reports / path.name)
        self.assertEqual(self.wait_for(16_000)["folded"], 16_000)


@pytest.mark.real
@pytest.mark.takes(seconds=40)
class NothingLostForLong(Job):
    def agent_accounts(self) -> tuple[int, int]:
        status = self.services.agent_query.status()
        return status["recorded"], sum(status["dropped_by_reason"].values())

    def test_what_the_outbox_cannot_hold_is_on_disk_and_survives_the_agent_and_its_memory(self) -> None:
        self.services.start_server()
        self.services.start_agent()
        self.record_texts("web/1", 1)
        self.wait_for(1)
        self.services.kill_server()
        self.record_texts("web/1", 60_000)  # 120 MB, twice what the outbox holds
        spool = next((self.services.directory / "spool").glob("*.spool"))
        self.until(lambda: self.spooled(spool) > 1 << 20, "nothing is on disk")
        self.services.kill_agent()
        self.services.start_agent()
        self.services.start_server()
        self.assertEqual(self.wait_for(60_001)["folded"], 60_001)

    def test_beyond_the_bound_the_newest_are_dropped_and_counted(self) -> None:
        self.services.start_server()
        self.services.start_agent("--spool-bytes", str(16 << 20))
        self.record_texts("web/1", 1)
        self.wait_for(1)
        self.services.kill_server()
        self.record_texts("web/1", 80_000)
        self.until(lambda: self.agent_accounts()[1] > 0, "nothing was dropped")
        self.services.start_server()
        self.until(lambda: self.agent_accounts()[0] == 80_001, "not all is drained")
        dropped = self.agent_accounts()[1]  # and no more, now that there is a Server
        self.assertEqual(self.wait_for(80_001 - dropped)["folded"], 80_001 - dropped)

    def test_after_an_outage_what_is_fresh_is_folded_beside_the_backlog_and_not_behind_it(self) -> None:
        """Envelopes go through a gate one by one, so that it counts how many went before, and not how quick anything is."""
        self.services.start_server()
        gate = Gate(self.services.server_port)
        self.addCleanup(gate.close)
        self.services.server_url = gate.url
        self.services.start_agent("--outbox-bytes", str(MIN_OUTBOX_BYTES))
        self.record_texts("web/1", 1)
        self.wait_for(1)
        gate.shut()
        self.record_texts("web/1", 9_000)  # 18 MB: most of it goes to the disk
        self.until(lambda: self.agent_accounts()[0] == 9_001 and self.spool_batches() > 10, "it is not on disk")
        backlog = self.spool_batches()
        done = self.services.run("-c", FRESH, timeout=PATIENCE_SECONDS)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.until(lambda: self.agent_accounts()[0] == 9_011, "what is fresh is not drained")
        while "fresh" not in self.services.query.names():
            passed = gate.passed
            gate.let_through()
            self.until(lambda passed=passed: gate.passed > passed, "no envelope comes")  # type: ignore[misc]
        self.assertGreater(self.spool_batches(), backlog // 2)
        gate.open()
        self.assertEqual(self.wait_for(9_011)["folded"], 9_011)
        self.assertEqual(self.services.query.aggregates(name="fresh")["fresh"]["total"], 10)
        self.assertEqual(self.agent_accounts()[1], 0)

    def spool_batches(self) -> int:
        return int(self.services.agent_query.status()["spool"]["batches"])

    def spooled(self, path: Path) -> int:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            return int(connection.execute("PRAGMA page_count").fetchone()[0] * 4096)
