"""Rings, pump, outbox and spool together, killed between any two of their writes: every event reaches the store once."""

from __future__ import annotations

import os
import shutil
import tempfile
from random import Random
from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.agent import keeper as keeping
from taba.agent.discover import Rings
from taba.agent.keeper import Keeper
from taba.agent.lanes import MAX_RUN_BATCHES, RETAIN_SECONDS, Backoff
from taba.agent.outbox import Outbox
from taba.agent.pump import RingPump
from taba.agent.spool import Spool
from taba.batch import APPLIED, GAP
from tests.agent.producers import Producer
from tests.agent.servers import Store
from tests.agent.test_outbox import Killed, Memory

BUCKETS = 4
AGENT = "keeping"


# events, the write before which the Agent is killed, how much of that write is done (%), whether a client ends, whether batches go out
PHASES = st.lists(
    st.tuples(st.integers(0, 60), st.none() | st.integers(0, 9), st.integers(0, 100), st.booleans(), st.booleans()), min_size=1, max_size=12
)


class World:
    """A host with rings, a small outbox and a spool, and Agents that come and go."""

    def __init__(self, directory: str, spool_bytes: int = 1 << 30, outbox_bytes: int = 512 * 1024):
        self.directory = directory
        self.spool_bytes = spool_bytes
        self.store = Store()
        self.memory = Memory(outbox_bytes)
        Outbox.format(self.memory)
        self.now = 0.0
        self.producers = [Producer(AGENT, f"web/{number}", 65_536, directory) for number in range(2)]
        self.recorded = 0
        self.streams = 0
        self.born()

    def born(self) -> None:
        """An Agent starts on what there is."""
        self.spool = Spool(os.path.join(self.directory, "spool"), self.spool_bytes)
        self.keeper = Keeper(Outbox(self.memory), self.spool, self._stream, self.now, self.now)
        self.keeper.recover(self.now)
        self.rings = Rings(AGENT, self.directory)
        self.pump = RingPump(self.keeper, self.rings)
        self.pump.set_buckets(BUCKETS, self.now)

    def _stream(self) -> bytes:
        self.streams += 1
        return self.streams.to_bytes(16, "big")

    def die(self) -> None:
        self.memory.steps = None
        for ring in self.rings.open.values():
            ring.close()
        self.rings.open.clear()
        self.spool.close()

    def record(self, events: int) -> None:
        for number in range(events):
            producer = self.producers[number % 2]
            producer.record(producer.tab(f"tab{self.recorded % 5}"), float(self.recorded))
            self.recorded += 1

    def tick(self) -> None:
        self.now += 2.0
        self.pump.tick(self.now, self.now)
        self.keeper.tick(self.now, self.now)

    def send(self) -> int:
        """Every lane that may sends its run, and obeys."""
        backoff, sent = Backoff(Random(1)), 0
        for queue in (self.keeper.schedule.fresh, self.keeper.schedule.backlog):
            for _ in range(len(queue)):
                lane = queue.popleft()
                lane.queued = False
                for send in lane.next(self.now, self.now, MAX_RUN_BATCHES):
                    sent += 1
                    if send.batch is None:
                        mark = self.store.marks.get((lane.stream, lane.bucket), 0)
                        word, detail = (APPLIED, mark) if send.number <= mark else (GAP, mark)
                    else:
                        word, detail = self.store.fold(send.follows, send.content)  # type: ignore[assignment]
                    if lane.awaits(send):
                        if word == APPLIED:
                            lane.applied(int(detail), self.now)
                        else:
                            lane.gap(int(detail), self.now, backoff)
                self.keeper.queue(lane, self.now)
        return sent


class KeeperTests(SynchronousTestCase):
    def world(self, **arguments: Any) -> World:
        directory = tempfile.mkdtemp(dir="/dev/shm")
        self.addCleanup(shutil.rmtree, directory)
        world = World(directory, **arguments)
        self.addCleanup(lambda: [producer.die() for producer in world.producers] and None)
        self.addCleanup(world.die)
        return world

    def test_killed_within_a_move_to_the_spool_a_refused_batch_is_counted_once(self) -> None:
        world = self.world()
        world.record(40)
        world.tick()

        def kill(end: int) -> None:
            raise Killed

        world.keeper._release_to = kill  # type: ignore[method-assign]
        self.assertRaises(Killed, world.keeper._move_to_spool, world.now, world.now)
        world.die()
        world.born()
        self.assertEqual(world.spool.batches, world.keeper.unacknowledged)
        for _ in range(4):
            for queue in (world.keeper.schedule.fresh, world.keeper.schedule.backlog):
                for _ in range(len(queue)):
                    lane = queue.popleft()
                    lane.queued = False
                    for _ in lane.next(world.now, world.now, MAX_RUN_BATCHES):
                        lane.refused("no", world.now)
                    world.keeper.queue(lane, world.now)
            world.tick()
        self.assertEqual((world.keeper.recorded, world.keeper.totals(), world.spool.batches), (40, {"refused": 40}, 0))

    def test_what_moves_to_the_spool_is_not_given_up_and_what_was_acknowledged_is(self) -> None:
        world = self.world()
        world.record(40)
        world.tick()
        acknowledged = world.send()
        world.record(40)
        world.tick()
        moved = world.keeper.unacknowledged
        self.assertTrue(acknowledged and moved)
        world.keeper._move_to_spool(world.now, world.now)
        self.assertEqual((world.keeper.given_up, world.spool.batches, world.keeper.retained_bytes), (acknowledged, moved, 0))

    @given(PHASES)
    @settings(max_examples=150, deadline=None)
    def test_killed_between_any_two_writes_every_event_is_folded_once(self, phases: list[tuple[int, int | None, int, bool, bool]]) -> None:
        directory = tempfile.mkdtemp(dir="/dev/shm")
        world = World(directory)
        real = os.pwrite

        def pwrite(fd: int, content: bytes, offset: int) -> int:
            # the tail of a ring is a step, too
            if any(ring.fd == fd for ring in world.rings.open.values()) and world.memory._step():
                raise Killed
            return real(fd, content, offset)

        try:
            for events, kill, torn, ends, sends in phases:
                world.record(events)
                if ends:  # a client goes, and another comes
                    world.producers[events % 2].die()
                    world.producers[events % 2] = Producer(AGENT, f"web/{events}", 65_536, directory)
                world.memory.steps, world.memory.torn = kill, torn
                os.pwrite = pwrite
                try:
                    world.tick()
                    if sends:
                        world.send()
                        world.tick()
                except Killed:
                    event("killed")
                    os.pwrite = real
                    world.die()
                    world.born()
                finally:
                    os.pwrite = real
            world.memory.steps = None
            for _ in range(6):
                world.tick()
                world.send()
            left = [name for name in os.listdir(directory) if name.startswith("taba.")]
            self.assertEqual(len(left), 2)
            found = sorted(value for events in world.store.events.values() for value in events)
            self.assertEqual(found, [float(value) for value in range(world.recorded)])
            self.assertEqual((world.keeper.recorded, dict(world.keeper.totals())), (world.recorded, {}))
        finally:
            world.die()
            for producer in world.producers:
                producer.die()
            shutil.rmtree(directory)

    def test_what_is_acknowledged_is_given_up_first_and_then_all_moves_unchanged(self) -> None:
        world = self.world()
        world.record(1000)
        world.tick()
        world.send()
        self.assertEqual((world.store.folded, world.keeper.unacknowledged), (1000, 0))
        self.assertGreater(world.keeper.retained_bytes, 0)
        while not world.keeper.moves:
            world.record(2000)
            world.tick()
        self.assertGreater(world.keeper.given_up, 0)
        self.assertGreater(world.spool.batches, 0)
        self.assertEqual(world.store.folded, 1000)
        world.die()
        world.born()
        while world.store.folded < world.recorded:
            world.tick()
            self.assertTrue(world.send())
        self.assertEqual(world.store.folded, world.recorded)

    def test_a_kill_between_spool_and_release_leaves_both_and_counts_once(self) -> None:
        world = self.world()
        real = world.spool.add
        armed = []

        def add(batches: Any) -> None:
            real(batches)
            armed.append(world.spool.batches)
            world.memory.steps = 0

        self.patch(world.spool, "add", add)
        while not armed:
            world.record(2000)
            try:
                world.tick()
            except Killed:
                world.die()
                world.born()
        self.assertGreater(world.spool.batches, 0)
        for _ in range(80):
            world.tick()
            world.send()
        self.assertEqual((world.store.folded, world.spool.batches), (world.recorded, 0))

    def test_what_was_retained_for_its_time_is_forgotten_and_the_spool_empties(self) -> None:
        world = self.world()
        while not world.keeper.moves:
            world.record(2000)
            world.tick()
        for _ in range(int(3 * RETAIN_SECONDS)):
            world.tick()
            world.send()
        self.assertEqual((world.store.folded, world.spool.batches, world.keeper.outbox.used), (world.recorded, 0, 0))
        self.assertEqual(world.keeper.retained_bytes, 0)
        others = [lane for lane in world.keeper.lanes.values() if lane.stream != world.keeper.stream]
        self.assertEqual(others, [])

    def test_retained_batches_stay_within_their_bound(self) -> None:
        world = self.world()
        self.patch(keeping, "MAX_RETAINED_BYTES", 20_000)
        for _ in range(20):
            world.record(200)
            world.tick()
            world.send()
            world.keeper.tick(world.now, world.now)
            self.assertLessEqual(world.keeper.retained_bytes, 20_000)
        self.assertGreater(world.keeper.given_up, 0)
        self.assertEqual(world.store.folded, world.recorded)

    def test_beyond_the_spools_bound_the_newest_are_dropped_and_what_was_kept_is_sent(self) -> None:
        world = self.world(spool_bytes=1000)
        while not world.keeper.dropped["spool_full"]:
            world.record(2000)
            world.tick()
        dropped = world.keeper.dropped["spool_full"]
        self.assertEqual(world.keeper.recorded, world.recorded)
        for _ in range(10):
            world.tick()
            world.send()
        self.assertEqual(world.store.folded + dropped, world.recorded)

    def test_totals_and_drops_of_retired_rings_survive_every_restart(self) -> None:
        world = self.world()
        world.record(10)
        for producer in world.producers:
            producer.drop("ring_full", 5)
            producer.die()
        for _ in range(3):
            world.tick()
            world.die()
            world.born()
        self.assertEqual(world.keeper.totals(), {"ring_full": 10})
        self.assertEqual([name for name in os.listdir(world.directory) if name.startswith("taba.")], [])
        self.assertEqual(world.keeper.recorded, 20)  # what clients dropped was recorded, too

    def test_a_stream_takes_new_batches_for_six_days_only(self) -> None:
        world = self.world()
        world.tick()
        first = world.keeper.stream
        world.now += 6 * 86_400
        world.tick()
        self.assertNotEqual(world.keeper.stream, first)
