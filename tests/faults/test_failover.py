"""A store that fails over, with real processes: what replication lost is brought back by the Agent, to the last event."""

from __future__ import annotations

import re
from typing import Any

import pytest

from taba.shard.buckets import owner_key
from tests.patience import PATIENCE_SECONDS

from ..topologies import Cluster, SentinelTrio, wait_until
from .job import Job


def lag(master: Any) -> int:
    """Bytes that the primary has written and its replica has not acknowledged."""
    text = master.call("INFO", "replication").decode()
    written = re.search(r"master_repl_offset:(\d+)", text)
    acknowledged = re.search(r"slave0:.*?offset=(\d+)", text)
    assert written is not None and acknowledged is not None, text
    return int(written[1]) - int(acknowledged[1])


@pytest.mark.real
class SentinelJob(Job):
    def start(self, *options: str) -> SentinelTrio:
        trio = SentinelTrio(masters=2, replicas=1)
        self.addCleanup(trio.remove)
        self.services.start_server(*options, store=trio.url)
        self.services.start_agent()
        return trio

    def test_a_failover_that_lost_acknowledged_writes_loses_no_event(self) -> None:
        trio = self.start()
        recorders = self.start_recorders(100_000, pause=0.2)
        wait_until(lambda: (self.services.query.status()["folded"] or 0) > 5000)
        trio.settle()  # one that had nothing yet would be the loss of the store
        replica = trio.servers["m1"][1]
        replica.pause()  # it gets nothing more, and its primary does not wait for it
        master = trio.primary("m1")
        wait_until(lambda: lag(master) > 100_000)
        lost = lag(master)
        master.kill()
        replica.resume()
        wait_until(lambda: trio.primary("m1") is replica)
        self.assertGreater(lost, 10_000)
        for recorder in recorders:
            self.assertEqual(recorder.wait(PATIENCE_SECONDS), 0)
        self.assert_exact(100_000)

    def test_a_batch_that_no_replica_has_is_not_acknowledged_where_they_are_waited_for(self) -> None:
        trio = self.start("--wait-replicas", "1")
        recorders = self.start_recorders(20_000, pause=0.05)
        replica = trio.servers["m2"][1]
        wait_until(lambda: (self.services.query.status()["folded"] or 0) > 1000)
        replica.pause()
        wait_until(lambda: "replicas acknowledge" in str(self.services.query.status()), 20)
        replica.resume()
        for recorder in recorders:
            self.assertEqual(recorder.wait(PATIENCE_SECONDS), 0)
        self.assert_exact(20_000)


@pytest.mark.real
class ClusterJob(Job):
    def test_slots_move_and_a_primary_dies_and_every_event_is_there_once(self) -> None:
        cluster = Cluster()
        self.addCleanup(cluster.remove)
        self.services.start_server(store=cluster.url)
        self.services.start_agent()
        recorders = self.start_recorders(60_000, pause=0.1)
        wait_until(lambda: (self.services.query.status()["folded"] or 0) > 5000)
        for bucket in range(0, 512, 16):
            cluster.move(owner_key(bucket))
        cluster.settle()
        victim = cluster.holder(owner_key(1))
        replica = cluster.nodes[cluster.nodes.index(victim) + 3]
        victim.kill()
        wait_until(lambda: replica.call("ROLE")[0] == b"master")
        for recorder in recorders:
            self.assertEqual(recorder.wait(PATIENCE_SECONDS), 0)
        self.assert_exact(60_000)
