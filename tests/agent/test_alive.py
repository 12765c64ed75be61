"""Who lives is said of every ring's client: again and again while it lives, once when it is dead, and never counted."""

from __future__ import annotations

import shutil
import tempfile
from itertools import pairwise
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from taba.agent.alive import ALIVE, DEAD, HOLDS_SECONDS, REFRESH_SECONDS, Alive
from taba.agent.keeper import Keeper
from taba.agent.spool import ROW_BYTES
from taba.batch import Column, decode_batch
from taba.names import ALIVE_TAB, ALIVE_TYPE, bucket_of

from .moments import at
from .producers import Producer
from .test_sums import AGENT, BUCKETS, World
from .world import World as Keeping

NOON = 1_800_000_000.0


class Living(World):
    def born(self) -> None:
        super().born()
        self.alive = Alive(self.pump, lambda: NOON + self.now)

    def process(self, client: str = "web/1") -> Producer:
        producer = Producer(AGENT, client, 65_536, self.shm)
        producer.record(producer.tab("other"), 1.0)
        self.producers.append(producer)
        return producer

    def tick(self, seconds: float = 1.0) -> None:
        super().tick(seconds)
        self.alive.tick(self.now, at(self.now))

    def said(self) -> list[tuple[str, Any]]:
        """(client, value) of all that was said since the last look, which is applied then."""
        found = []
        for batch in self.batches():
            for column in batch.columns:
                if column.tab == ALIVE_TAB:  # type: ignore[union-attr]
                    assert column.type == ALIVE_TYPE and column.weight == 0, column  # type: ignore[union-attr]
                    found += [(column.client, value) for value in column.values]  # type: ignore[union-attr]
        return found


class Sayings(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = Living()
        self.addCleanup(self.world.close)

    def said(self) -> list[tuple[str, Any]]:
        """What was said since the last look; all that was sent is applied then."""
        found = self.world.said()
        fresh, self._seen = found[getattr(self, "_seen", 0) :], len(found)
        for lane in self.world.keeper.lanes.values():
            lane.pending.clear()
        return fresh

    def test_it_is_said_at_once_and_anew_before_it_runs_out(self) -> None:
        self.world.process()
        times = []
        for _ in range(int(4 * HOLDS_SECONDS)):
            self.world.tick()
            times += [self.world.now] * len(self.said())
        self.assertEqual(times[0], 1.0)
        self.assertEqual({after - before for before, after in pairwise(times)}, {REFRESH_SECONDS})
        self.assertLess(REFRESH_SECONDS * 2, HOLDS_SECONDS)

    def test_a_death_is_said_once_within_two_looks_and_a_return_at_once(self) -> None:
        world = self.world
        process = world.process()
        world.tick()
        self.assertEqual(self.said(), [("web/1", ALIVE)])
        world.die(process)
        world.tick()
        world.tick()
        self.assertEqual(self.said(), [("web/1", DEAD)])
        for _ in range(40):
            world.tick()
        self.assertEqual(self.said(), [])
        world.process()
        world.tick()
        self.assertEqual(self.said(), [("web/1", ALIVE)])

    def test_a_client_of_several_processes_lives_until_the_last_is_dead(self) -> None:
        world = self.world
        first, second = world.process(), world.process()
        world.tick()
        world.die(first)
        world.tick()
        world.tick()
        self.assertEqual(self.said(), [("web/1", ALIVE)])
        world.die(second)
        world.tick()
        world.tick()
        self.assertEqual(self.said(), [("web/1", DEAD)])

    def test_who_died_while_no_agent_was_there_is_said_to_be_dead(self) -> None:
        world = self.world
        process, other = world.process(), world.process("web/2")
        world.tick()
        self.said()
        for ring in list(world.pump.rings.open.values()):
            ring.close()
        world.register.close()
        world.spool.close()
        world.die(process)
        world.born()
        world.tick()
        world.tick()
        self.assertEqual(self.said(), [("web/2", ALIVE), ("web/1", DEAD)])
        self.assertIn(other, world.producers)

    def test_a_ring_that_is_given_up_says_nothing_of_its_process(self) -> None:
        world = self.world
        world.process()
        world.tick()
        (ring,) = world.pump.rings.open.values()
        self.said()
        world.pump._isolate(ring, "a test")
        for _ in range(40):
            world.tick()
        self.assertEqual(self.said(), [])

    def test_while_nothing_is_applied_one_batch_of_it_waits_and_deaths_are_said(self) -> None:
        world = self.world
        process = world.process()
        world.process("web/2")
        for _ in range(100):
            world.tick()
        self.assertEqual(world.said(), [("web/1", ALIVE), ("web/2", ALIVE)])
        world.die(process)
        for _ in range(100):
            world.tick()
        self.assertEqual(world.said()[2:], [("web/1", DEAD)])
        self.said()
        world.tick()
        self.assertEqual(self.said(), [("web/2", ALIVE)])

    def test_it_is_in_no_count(self) -> None:
        world = self.world
        process = world.process()
        world.tick()
        world.die(process)
        world.tick()
        world.tick()
        self.assertEqual(len(world.said()), 2)
        self.assertEqual((world.keeper.recorded, dict(world.keeper.dropped)), (1, {}))
        stored = [stored for group in world.keeper.outbox.groups() for stored in group.batches]
        self.assertEqual(sum(one.events for one in stored), 1)
        for one in stored:
            batch = decode_batch(world.keeper.outbox.read(one.position, one.length))
            of_own = [column for column in batch.columns if column.tab == ALIVE_TAB]  # type: ignore[union-attr]
            if of_own:
                self.assertEqual((batch.bucket, one.events), (bucket_of(ALIVE_TAB, BUCKETS), 0))


class Backlog(SynchronousTestCase):
    """What waits in the spool says nothing of who lives now, and does not keep it from being said."""

    def setUp(self) -> None:
        directory = tempfile.mkdtemp(dir="/dev/shm")
        self.addCleanup(shutil.rmtree, directory)
        world = self.world = Keeping(directory)
        self.addCleanup(world.end_producers)
        self.addCleanup(world.die)
        self.alive = Alive(world.pump, lambda: NOON + world.now)
        self.tick(events=40)

    def tick(self, seconds: float = 2.0, events: int = 0, sends: bool = False) -> None:
        world = self.world
        for _ in range(int(seconds / 2)):  # a tick of the world's is two
            world.record(events)
            world.tick()
            self.alive.tick(world.now, at(world.now))
            if sends:
                world.send()

    def said(self) -> int:
        """How often it was said that web/0 lives, as far as Servers know."""
        return self.world.store.lives.count(("web/0", ALIVE))

    def waiting(self) -> int:
        """Batches that say who lives, of those that wait."""
        bucket, keeper = self.world.pump.bucket_of(ALIVE_TAB), self.world.keeper
        rows = [row.id for key in self.lanes() for row in keeper.spool.rows(*key, 0, 10_000)]
        contents = [keeper.spool.read(id) for id in rows]
        contents += [keeper.outbox.read(one.position, one.length) for group in keeper.outbox.groups() for one in group.batches]
        return sum(
            isinstance(column, Column) and column.tab == ALIVE_TAB
            for content in contents
            if content is not None and decode_batch(content).bucket == bucket
            for column in decode_batch(content).columns[:1]
        )

    def lanes(self) -> list[tuple[bytes, int]]:
        found: list[tuple[bytes, int]] = []
        while (key := self.world.spool.next_lane(found[-1] if found else None)) is not None:
            found.append(key)
        return found

    def test_while_it_drains_those_who_live_are_said_to_live_again_and_again(self) -> None:
        world = self.world
        self.assertEqual((self.said(), self.waiting()), (0, 1))
        world.move()
        self.patch(Keeper, "holds_backlog", True)  # however long it takes
        self.tick(2 * HOLDS_SECONDS, events=10, sends=True)
        self.assertGreater(world.spool.batches, 0)
        self.assertGreaterEqual(self.said(), 2 * HOLDS_SECONDS / REFRESH_SECONDS - 1)
        world.move()  # what was said last may be among what moves next
        before = self.said()
        self.tick(2 * HOLDS_SECONDS, events=10, sends=True)
        self.assertGreaterEqual(self.said() - before, 2 * HOLDS_SECONDS / REFRESH_SECONDS - 1)

    def test_without_a_server_a_move_to_the_spool_leaves_one_of_it_and_no_more(self) -> None:
        self.world.move()
        self.tick(4 * HOLDS_SECONDS)
        self.assertEqual(self.waiting(), 1)

    def test_where_all_goes_into_the_spool_it_is_waited_for_there(self) -> None:
        world = self.world
        world.keeper.is_homeless = True
        self.tick(2.0, events=10)
        self.alive._told.clear()
        self.tick(4 * HOLDS_SECONDS)
        self.assertLessEqual(self.waiting(), 3)
        before = self.said()
        self.tick(4 * HOLDS_SECONDS, sends=True)  # it comes in its turn, and is said anew then
        self.assertGreater(self.said() - before, HOLDS_SECONDS / REFRESH_SECONDS)
        self.assertLess(world.spool.used, 100 * ROW_BYTES)
