"""A store that fails over, with real processes: what replication lost is brought back by the Agent, to the last event."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from taba.shard.buckets import owner_key
from taba.shard.moving import reshard
from taba.shard.moving.reshard import Reshard
from taba.shard.moving.steps import Step
from taba.shard.servers.url import parse_store
from tests.patience import PATIENCE_SECONDS

from ..services import BUCKETS
from ..shard.pieces import connect
from ..topologies import Cluster, SentinelTrio, wait_until
from .job import Job, ShortJob

HISTORY = 60  # Tabs that were posted, not recorded
EVENTS = 16_000  # so many that each thread of each recorder has as many in either half


def lag(master: Any) -> int:
    """Bytes that the primary has written and its replica has not acknowledged."""
    text = master.call("INFO", "replication").decode()
    written = re.search(r"master_repl_offset:(\d+)", text)
    acknowledged = re.search(r"slave0:.*?offset=(\d+)", text)
    assert written is not None and acknowledged is not None, text
    return int(written[1]) - int(acknowledged[1])


@pytest.mark.real
@pytest.mark.takes(seconds=20)
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
        self.until(lambda: (self.services.query.status()["folded"] or 0) > 5000)
        trio.settle()  # one that had nothing yet would be the loss of the store
        master, replica = trio.pair("m1")
        replica.pause()  # it gets nothing more, and its primary does not wait for it
        wait_until(lambda: lag(master) > 100_000, lambda: f"the replica lags by {lag(master)} only\n{trio.seen()}")
        lost, since = lag(master), trio.epoch("m1")
        master.kill()
        replica.resume()
        trio.wait_failed_over("m1", since)
        self.assertGreater(lost, 10_000)
        for recorder in recorders:
            self.assertEqual(recorder.wait(PATIENCE_SECONDS), 0)
        self.assert_exact(100_000)

    def test_a_batch_that_no_replica_has_is_not_acknowledged_where_they_are_waited_for(self) -> None:
        trio = self.start("--wait-replicas", "1")
        recorders = self.start_recorders(20_000, pause=0.05)
        _, replica = trio.pair("m2")
        self.until(lambda: (self.services.query.status()["folded"] or 0) > 1000)
        replica.pause()
        self.until(lambda: "replicas acknowledge" in str(self.services.query.status()), "nobody says that no replica acknowledges")
        replica.resume()
        for recorder in recorders:
            self.assertEqual(recorder.wait(PATIENCE_SECONDS), 0)
        self.assert_exact(20_000)


@pytest.mark.real
@pytest.mark.takes(seconds=45)
class MovesThatFailOver(ShortJob):
    """Buckets move to another master while events flow; both masters are replaced under that, and nobody repeats or repairs anything."""

    timeout = 900  # two failovers, each after what a busy machine takes for one

    def prepare(self) -> None:
        self.trio = SentinelTrio(masters=2, replicas=2, min_replicas_to_write="1", min_replicas_max_lag="5")
        self.addCleanup(self.trio.remove)
        self.one, self.two = (f"{self.trio.url.partition('/?')[0]}/?shards={name}" for name in ("m1", "m2"))
        self.services.start_server(store=self.one)
        self.services.start_agent()
        # what no Agent has, and could bring back
        events = [{"tab": f"history_{n}", "type": "TotalsCounter", "value": float(n)} for n in range(HISTORY)]
        self.assertEqual(self.services.query.post_events("history/1", events)["accepted"], HISTORY)  # type: ignore[arg-type]
        self.started = self.services.directory / "started"
        self.recorders = self.start_recorders(EVENTS, 0.05, self.started)
        self.until(lambda: self.services.query.status()["folded"] > HISTORY)
        self.trio.settle()

    def finish(self) -> None:
        self.end_recorders(self.recorders)
        self.assert_exact(EVENTS, HISTORY)
        kept = self.services.query.aggregates(match="history_.*")
        self.assertEqual({name: shown["total"] for name, shown in kept.items()}, {f"history_{n}": n for n in range(HISTORY)})
        self.assertEqual(sorted(shard["buckets"] for shard in self.services.query.shards()), [BUCKETS // 2, BUCKETS // 2])
        checked = self.services.taba("check", "--store", self.one)
        self.assertEqual((checked.returncode, checked.stdout), (0, "all maps and owner keys agree\n"), checked.stderr)

    async def struck(self, strikes: dict[tuple[str, str], str], strike: Callable[[str], Any]) -> None:
        """All moves, and at the first step of each of `strikes`, (step, shard), the master named there is struck, and more is recorded."""
        await deferToThread(self.prepare)
        self.patch(reshard, "FAILOVER_SECONDS", PATIENCE_SECONDS)
        left = dict(strikes)

        def watch(bucket: int, request: Any) -> Any:
            place = (request.name, request.shard) if isinstance(request, Step) else None
            if place not in left:
                return None
            master = left.pop(place)
            self.started.touch()
            return deferToThread(strike, master)

        work = Reshard((await connect(self, self.one, None)).atlas, reactor, watch=watch)
        try:
            await work.add(parse_store(self.two).addresses)
        finally:
            await work.close()
        self.assertEqual(left, {})
        await deferToThread(self.finish)

    async def test_both_masters_are_handed_over_as_planned(self) -> None:
        await self.struck({("open", "s2"): "m2", ("leave", "s1"): "m1"}, lambda name: self.trio.hand_over(name))

    async def test_both_masters_crash(self) -> None:
        await self.struck({("stage", "s2"): "m2", ("open", "s2"): "m1"}, lambda name: self.trio.primary(name).kill())


@pytest.mark.real
class ClusterJob(Job):
    def test_slots_move_and_a_primary_dies_and_every_event_is_there_once(self) -> None:
        cluster = Cluster()
        self.addCleanup(cluster.remove)
        self.services.start_server(store=cluster.url)
        self.services.start_agent()
        recorders = self.start_recorders(60_000, pause=0.1)
        self.until(lambda: (self.services.query.status()["folded"] or 0) > 5000)
        for bucket in range(0, 512, 16):
            cluster.move(owner_key(bucket))
        cluster.settle()
        since = cluster.epoch(owner_key(1))
        cluster.holder(owner_key(1)).kill()
        cluster.wait_failed_over(owner_key(1), since)
        for recorder in recorders:
            self.assertEqual(recorder.wait(PATIENCE_SECONDS), 0)
        self.assert_exact(60_000)
