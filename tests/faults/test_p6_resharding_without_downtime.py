"""P6, re-sharding without downtime: buckets move while events flow and queries are answered, and every event counts once."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.patience import PATIENCE_SECONDS
from tests.stores import borrow
from tests.valkey import EphemeralValkey

from ..services import ROOT
from .job import Job, ShortJob


class Moves(Job):
    def store(self) -> EphemeralValkey:
        valkey = borrow(self, tcp=True)
        return valkey

    def reshard(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "taba.cli.main", "reshard", "--store", self.first.url, *arguments, "--json"]
        running = subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.services.environ,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.addCleanup(running.wait)
        self.addCleanup(running.kill)
        return running

    def finish(self, running: subprocess.Popen[str]) -> dict[str, int]:
        out, said = running.communicate(timeout=PATIENCE_SECONDS)
        self.assertEqual(running.returncode, 0, said)
        return dict(json.loads(out))

    def start(self, buckets: int) -> None:
        self.first, self.second = self.store(), self.store()
        self.services.start_server("--buckets", str(buckets), store=self.first.url)
        self.services.start_agent()


class Resharding(Moves):
    tabs = ShortJob.tabs

    def test_a_shard_is_added_while_events_flow_and_every_event_counts_once(self) -> None:
        self.start(16)
        recorders = self.start_recorders(20_000, pause=0.1)
        self.until(lambda: self.services.query.status()["folded"])
        running = self.reshard("--add", self.second.url)
        while running.poll() is None:
            self.services.query.aggregates(match="job.*")  # raises if it were not answered
        self.assertGreater(self.finish(running)["moved"], 0)
        self.end_recorders(recorders)
        self.assert_exact(20_000)
        self.assertEqual(len(self.services.query.shards()), 2)


@pytest.mark.real
class ReshardingForLong(Moves):
    def test_its_mover_and_the_agent_are_killed_again_and_again_and_it_ends_all_the_same(self) -> None:
        self.start(64)
        recorders = self.start_recorders(100_000, pause=0.3)
        self.until(lambda: self.services.query.status()["folded"])
        for turn in range(4):
            running = self.reshard("--add", self.second.url)
            try:
                running.wait(0.4 + 0.3 * turn)  # wherever in its way that is
            except subprocess.TimeoutExpired:
                running.kill()
            running.communicate()
            self.services.kill_agent()
            self.services.start_agent()
        self.finish(self.reshard("--add", self.second.url))
        self.end_recorders(recorders)
        self.assert_exact(100_000)
        self.assertEqual(sorted(shard["buckets"] for shard in self.services.query.shards()), [32, 32])
