"""P6, re-sharding without downtime: buckets move while events flow and queries are answered, and every event counts once."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taba.shard.buckets import decode_owner, make_token, owner_key, prefix_of
from taba.shard.memory.router import MemoryRouter
from taba.shard.memory.server import MemoryServer
from taba.shard.moving.move import Moved, move
from taba.shard.moving.mover import Mover
from taba.shard.patience import SEALED_PAUSE_SECONDS
from taba.shard.transaction import Writes
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


@pytest.mark.takes(seconds=15)
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


class Waiting(SynchronousTestCase):
    """In memory, by a clock that stands: who has an answer at once has waited for nothing. How long a seal stands is told in steps."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.servers = [MemoryServer(self.clock), MemoryServer(self.clock)]
        self.router = MemoryRouter(self.servers, 8, self.clock)
        self.successResultOf(ensureDeferred(self.router.connect()))
        self.addCleanup(lambda: self.successResultOf(ensureDeferred(self.router.close())))
        self.of: dict[str, Any] = {shard.name: self.router.atlas.pool_of(shard.name) for shard in self.router.map.shards}

    def write(self, bucket: int) -> Deferred[Any]:
        key = prefix_of(bucket) + b"count"

        def update(replies: list[Any]) -> Writes:
            return Writes([(b"SET", key, b"%d" % (int(replies[0] or 0) + 1))])

        return ensureDeferred(self.router.transact(bucket, [(b"GET", key)], update))

    def read(self, bucket: int) -> Deferred[Any]:
        return ensureDeferred(self.router.read(bucket, [(b"GET", prefix_of(bucket) + b"count")]))

    def is_sealed(self, source: str, bucket: int) -> bool:
        [content] = self.successResultOf(self.of[source].take(1.0).addCallback(lambda one: one.execute([(b"GET", owner_key(bucket))])))
        return decode_owner(content).state == "sealed"

    def move_one(self, states: int) -> tuple[int, int]:
        """Move a bucket of so many States, all others being written and read before each step; (steps, those for which it is sealed)."""
        bucket = 0
        source = self.router.map.shard_of(bucket)
        [target] = set(self.of) - {source}
        others = [other for other in range(8) if other != bucket]
        self.assertEqual({self.router.map.shard_of(other) for other in others}, set(self.of))
        filled = (b"HSET", prefix_of(bucket) + b"states", *(part for number in range(states) for part in (b"%d" % number, b"x" * 500)))
        self.successResultOf(ensureDeferred(self.router.transact(bucket, [], lambda _: Writes([filled]))))
        written = {other: int(self.successResultOf(self.read(other))[0] or 0) for other in (bucket, *others)}
        steps, sealed, waiting = 0, 0, list[Deferred[Any]]()

        def look(_: int, request: Any) -> None:
            nonlocal steps, sealed
            steps += 1
            for other in others:
                self.successResultOf(self.write(other))
                written[other] += 1
                self.assertEqual(self.successResultOf(self.read(other)), [b"%d" % written[other]])
            if not self.is_sealed(source, bucket):
                writing = self.write(bucket)
                self.clock.advance(0.0)  # who is told where it went asks there in the next turn
                self.successResultOf(writing)
                written[bucket] += 1
                return
            sealed += 1
            if not waiting:
                waiting.append(self.write(bucket))
            self.assertNoResult(waiting[0])

        mover = Mover(self.of, self.clock, watch=look)
        token = make_token(target, mover.next_token())
        moved = self.successResultOf(ensureDeferred(mover.run({bucket: lambda: move(bucket, source, target, token)})))[bucket]
        self.assertEqual((isinstance(moved, Moved) and moved.how, self.clock.seconds()), ("moved", 0.0), moved)
        self.clock.advance(1.5 * SEALED_PAUSE_SECONDS)  # the longest that a pause may be, for they vary
        self.successResultOf(waiting[0])  # a pause later the bucket's writer had its turn
        self.assertEqual(self.successResultOf(self.read(bucket)), [b"%d" % (written[bucket] + 1)])
        return steps, sealed

    def test_a_writer_to_the_bucket_waits_for_few_steps_however_large_it_is_and_nobody_else_waits(self) -> None:
        few, sealed_for_few = self.move_one(3)
        self.setUp()
        many, sealed_for_many = self.move_one(3000)
        self.assertGreater(many, few)
        self.assertEqual(sealed_for_many, sealed_for_few)
        self.assertLess(sealed_for_many, 20)


@pytest.mark.real
@pytest.mark.takes(seconds=25)
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
