"""Rings, pump, outbox and spool together, killed between any two of their writes: every event reaches the store once."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections import deque
from typing import Any
from unittest import mock

from hypothesis import event, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba import ring as layouts
from taba.agent import books, keeper, pump
from taba.agent.lanes import RETAIN_SECONDS
from taba.agent.outbox import PAGE, Covered, EncodedBatch, Outbox, OutboxFull
from taba.agent.pump import DRAIN_SECONDS, TICK_SECONDS, WIDE_DRAIN_SECONDS
from taba.agent.spool import SpoolFull
from taba.batch import LATER, BatchId, Column, Verdict, encode_batch
from taba.client.segment import make_segment
from taba.names import bucket_of
from tests.agent.moments import at
from tests.agent.producers import Producer
from tests.agent.test_outbox import Killed, Memory
from tests.agent.world import AGENT, BUCKETS, World, WorldCase
from tests.examples import examples

# events; the write before which the Agent is killed; how much of that write is done (%); whether a client ends; whether batches go
# out; which of them the Server refuses (one in so many); whether the memory is nearly full
PHASES = st.lists(
    st.tuples(
        st.integers(0, 60),
        st.none() | st.integers(0, 14),
        st.integers(0, 100),
        st.booleans(),
        st.booleans(),
        st.sampled_from((0, 0, 2, 3)),
        st.sampled_from((0, 0, 1, 2)),
    ),
    min_size=1,
    max_size=12,
)
COLUMN = Column("web/0", "bids_won", "CounterGroup", bytes(8), bytes(8))
PLENTY = 2 << 20
ROOMS = (PLENTY, 24 * PAGE, 18 * PAGE)  # 17 are had by an empty outbox


class KeeperTests(WorldCase):
    def test_killed_within_a_move_to_the_spool_a_refused_batch_is_counted_once(self) -> None:
        world = self.world()
        world.record(40)
        world.tick()

        def kill(end: int) -> None:
            raise Killed

        world.keeper._release_to = kill  # type: ignore[method-assign]
        self.assertRaises(Killed, world.move)
        world.die()
        world.born()
        self.assertEqual((world.spool.batches, world.keeper.unacknowledged), (3, 0))
        world.refuse = lambda id: True
        for _ in range(4):
            world.send()
            world.tick()
        self.assertEqual((world.keeper.books.recorded, world.keeper.books.totals(), world.spool.batches), (40, {"refused": 40}, 0))

    def test_bursts_that_nearly_fill_a_byte_ring_are_each_read_before_the_next_look_is_over(self) -> None:
        world = self.world(outbox_bytes=8 << 20)
        producer = Producer(AGENT, "web/9", 1 << 20, world.shm)
        world.producers.append(producer)
        world.tick()
        for burst in range(20):
            for number in range(60):  # 120 of 128 KiB
                self.assertLessEqual(producer.byte_head + 2003 - producer.byte_tail, producer.where.byte_ring_bytes, (burst, number))
                producer.record(producer.tab("words", "Buffer"), "x" * 2000)
            for _ in range(2):  # two looks come in 0.1 s
                world.now += TICK_SECONDS
                world.pump.tick(world.now, at(world.now))
            world.keeper.tick(world.now, at(world.now))
        self.assertEqual((world.keeper.books.recorded, world.keeper.books.totals()), (20 * 60, {}))

    def test_the_ring_of_a_process_that_died_is_read_and_gone_at_the_look_that_sees_it(self) -> None:
        world = self.world()
        world.tick()
        producer = world.producers[0]
        producer.record(producer.tab("bids_won"), 1.0)
        producer.die()
        other = Producer(AGENT, "web/9", 65_536, world.shm)  # something changed in the directory: the dead are looked for
        world.producers.append(other)
        for _ in range(3):
            world.now += TICK_SECONDS
            world.pump.tick(world.now, at(world.now))
        self.assertEqual((world.keeper.books.recorded, os.path.exists(producer.path)), (1, False))

    def test_what_moves_to_the_spool_is_not_given_up_and_what_was_acknowledged_is(self) -> None:
        world = self.world()
        world.record(40)
        world.tick()
        acknowledged = world.send()
        world.record(40)
        world.tick()
        moved = world.keeper.unacknowledged
        self.assertTrue(acknowledged and moved)
        world.move()
        self.assertEqual((world.keeper.books.given_up, world.spool.batches, world.keeper.books.retained_bytes), (acknowledged, moved, 0))

    def _account(self, world: World, kill: int, refused: set[int], is_spooled: bool) -> bool:
        """Three batches, of which some are refused, and a kill before the write `kill` from their sending on. Whether it came to that."""
        producer = world.producers[0]
        for value in range(3):
            producer.record(producer.tab("bids_won"), float(value))
            world.tick()
        if is_spooled:
            world.move()
        world.refuse = lambda id: id.number in refused
        world.memory.steps, killed = kill, False
        for _ in range(6):
            try:
                world.send()
                world.tick()
                world.now += 30.0
            except Killed:
                killed = True
                world.die()
                world.born()
                world.refuse = lambda id: False  # what was counted stays counted
        world.memory.steps = None
        for _ in range(3):
            world.send()
            world.tick()
        folded = len(world.store.events.get(("web/0", "bids_won"), []))
        counted = dict(world.keeper.books.totals())
        self.assertEqual((folded + counted.get("refused", 0), world.keeper.books.recorded), (3, 3), (kill, refused, counted))
        self.assertEqual(set(counted) - {"refused"}, set(), (kill, refused, is_spooled))
        self.assertEqual(counted.get("refused", 0), sum(world.refused.values()), (kill, refused))
        return killed

    def test_a_refused_batch_is_counted_wherever_a_kill_comes_between_its_verdict_and_the_next_one(self) -> None:
        for refused in ({1}, {3}, {1, 2}):
            for is_spooled in (False, True):
                self.kills(lambda world, kill, those=refused, where=is_spooled: self._account(world, kill, those, where), 5)  # type: ignore[misc]

    def test_with_memory_for_the_batches_and_not_for_their_table_all_goes_through_the_spool(self) -> None:
        world = self.world(outbox_bytes=4 << 20)
        orphans = [Covered(number.to_bytes(16, "big"), 0, 1, 0) for number in range(2000)]  # 40 KiB of table
        world.record(40)
        world.tick()
        self.assertGreater(world.keeper.unacknowledged, 0)
        reserve = world.memory.reserve

        def is_full(offset: int, length: int) -> None:
            if offset < world.keeper.outbox._area:
                raise OutboxFull("no memory for a table")
            reserve(offset, length)

        world.memory.reserve = is_full  # type: ignore[method-assign]
        world.pump._orphans = orphans
        self.patch(world.pump, "_scan", lambda now: None)  # which finds that nobody asks for them
        for _ in range(3):
            world.record(40)
            world.tick()
        self.assertEqual((world.keeper.books.totals(), world.keeper.books.recorded, world.keeper.holds_any), ({}, 160, False))
        world.die()
        world.born()
        self.assertEqual(set(orphans) - set(world.keeper.books.covered), set())
        for _ in range(6):
            world.tick()
            world.send()
        self.assertEqual((world.store.folded, world.keeper.books.recorded, world.keeper.books.totals()), (160, 160, {}))

    @given(PHASES)
    @examples(200)
    def test_killed_between_any_two_writes_every_event_is_folded_or_counted_once(self, phases: list[tuple[Any, ...]]) -> None:
        directory = tempfile.mkdtemp(dir="/dev/shm")
        world = World(directory)
        real = os.pwrite

        def pwrite(fd: int, content: Any, offset: int) -> int:
            # the tail of a ring is a step, too
            if any(ring.fd == fd for ring in world.rings.open.values()) and world.memory._step():
                raise Killed
            return real(fd, content, offset)

        try:
            for events, kill, torn, ends, sends, refused, room in phases:
                world.record(events)
                world.memory.pages = ROOMS[room]
                world.refuse = lambda id, part=refused: part > 0 and id.number % part == 0  # type: ignore[misc]
                if ends:  # a client goes, and another comes
                    world.producers[events % 2].die()
                    world.producers[events % 2] = Producer(AGENT, f"web/{events}", 65_536, directory)
                world.memory.steps, world.memory.torn = kill, torn
                os.pwrite = pwrite
                try:
                    world.tick()
                    if sends:
                        world.send()
                        world.send()
                        world.tick()
                except Killed:
                    event("killed")
                    os.pwrite = real
                    world.die()
                    world.born()
                finally:
                    os.pwrite = real
                if world.keeper._spooled_stream:
                    event("fresh into the spool")
            world.memory.steps = None
            world.memory.pages = PLENTY
            world.refuse = lambda id: False
            for _ in range(8):
                world.tick()
                world.send()
            left = [name for name in os.listdir(directory) if name.startswith("taba.")]
            self.assertEqual(len(left), 2)
            found = [value for events in world.store.events.values() for value in events]
            self.assertEqual(len(set(found)), len(found))
            refused = sum(world.refused.values())
            self.assertEqual(len(found) + refused, world.recorded)
            self.assertEqual((world.keeper.books.recorded, world.keeper.books.totals()["refused"]), (world.recorded, refused))
            self.assertEqual(sum(world.keeper.books.totals().values()), refused)
            retained = [batch for lane in world.keeper.lanes.values() for batch in lane.retained if not batch.is_gone]
            books = world.keeper.books
            self.assertEqual((books.retained_batches, books.retained_bytes), (len(retained), sum(b.length for b in retained)))
            self.assertEqual(world.keeper.books.pending_batches, world.keeper.unacknowledged)
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
        self.assertGreater(world.keeper.books.retained_bytes, 0)
        while not world.keeper.moves:
            world.record(2000)
            world.tick()
        self.assertGreater(world.keeper.books.given_up, 0)
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

        def add(batches: Any, journal: Any) -> None:
            real(batches, journal)
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
        self.assertEqual(world.keeper.books.retained_bytes, 0)
        others = [lane for lane in world.keeper.lanes.values() if lane.stream != world.keeper.stream]
        self.assertEqual(others, [])

    def test_retained_batches_stay_within_their_bound(self) -> None:
        world = self.world()
        self.patch(books, "MAX_RETAINED_BYTES", 20_000)
        for _ in range(20):
            world.record(200)
            world.tick()
            world.send()
            world.keeper.tick(world.now, at(world.now))
            self.assertLessEqual(world.keeper.books.retained_bytes, 20_000)
        self.assertGreater(world.keeper.books.given_up, 0)
        self.assertEqual(world.store.folded, world.recorded)

    def test_with_one_more_retained_than_may_be_what_waits_before_it_moves_to_the_spool(self) -> None:
        most, world = 20, self.world()
        self.patch(books, "MAX_RETAINED_BATCHES", most)
        waits = BatchId(world.keeper.stream, 1, 1)
        ids = [waits, *(BatchId(world.keeper.stream, 2, number) for number in range(1, most + 2))]
        for id in ids:
            if id == ids[-1]:
                self.assertEqual((world.keeper.books.retained_batches, world.keeper.moves, world.spool.batches), (most, 0, 0))
            batch = EncodedBatch(id, at(world.now), 1, encode_batch(*id, [COLUMN]))
            world.keeper.publish([batch], world.now, recorded=1)
            world.hold([waits])
            world.send()
            world.keeper.tick(world.now, at(world.now))
        self.assertEqual((world.keeper.moves, world.spool.batches, world.keeper.holds_any), (1, 1, False))
        self.assertEqual((world.keeper.books.retained_batches, world.keeper.books.given_up), (0, most + 1))
        world.hold([])
        for _ in range(4):
            world.tick()
            world.send()
        self.assertEqual((world.store.folded, world.keeper.books.totals()), (len(ids), {}))

    def test_what_came_while_a_move_went_on_is_retained_within_the_bound_once_the_last_that_waited_is_in_the_spool(self) -> None:
        most, world = 3, self.world()
        self.patch(books, "MAX_RETAINED_BATCHES", most)
        self.patch(keeper, "MOVE_BATCHES", 1)

        def publish(id: BatchId) -> None:
            world.keeper.publish([EncodedBatch(id, at(world.now), 1, encode_batch(*id, [COLUMN]))], world.now, recorded=1)

        first = world.keeper.stream
        waiting = [BatchId(first, 1, 1), BatchId(first, 1, 2)]
        world.hold(waiting)
        for id in (*waiting, *(BatchId(first, 2, number) for number in range(1, most + 2))):
            publish(id)
            world.send()
        world.keeper.tick(world.now, at(world.now))
        self.assertEqual((world.keeper.moves, world.spool.batches, world.keeper.groups.is_stuck), (1, 1, True))
        for number in range(1, 2 * most + 1):
            publish(BatchId(world.keeper.stream, 3, number))
            world.send()
        world.keeper.tick(world.now, at(world.now))
        self.assertEqual((world.spool.batches, world.keeper.books.retained_batches, world.keeper.moves), (2, most, 1))
        world.hold([])
        for _ in range(4):
            world.tick()
            world.send()
        self.assertEqual((world.store.folded, world.keeper.books.totals()), (2 + most + 1 + 2 * most, {}))

    def test_that_the_history_could_not_be_written_is_said_until_it_can_be(self) -> None:
        world = self.world()
        world.record(40)
        world.tick()
        world.send()
        keeper_ = world.keeper
        keeper_.history.note(BatchId(keeper_.stream, 1, 1), 1)
        with mock.patch.object(keeper_.history, "flush", side_effect=OSError(28, os.strerror(28))):
            keeper_.books.flush_history()
            keeper_.tick(world.now, at(world.now))
            self.assertIn(os.strerror(28), str(keeper_.books.history_problem))
        for _ in range(2):  # nothing else is to be noted
            world.now += 1.0
            keeper_.tick(world.now, at(world.now))
        self.assertEqual((keeper_.books.history_problem, keeper_.books.spool_problem), (None, None))

    def test_a_record_into_a_ring_that_was_idle_is_drained_at_the_next_look(self) -> None:
        world = self.world()
        world.record(1)
        world.tick()
        drains: list[float] = []
        drain = world.pump.drain

        def counting(now: float, moment: Any) -> bool:
            drains.append(now)
            return drain(now, moment)

        self.patch(world.pump, "drain", counting)
        for recorded in range(1, 4):
            world.send()  # else the Servers lag, and it waits for more
            idle = world.now + 3.3
            while world.now < idle:
                world.now += world.pump.tick(world.now, at(world.now))
            self.assertLessEqual(len(drains), 6)  # nothing is there to be drained, and once a second one looks nevertheless
            world.record(1)
            while world.keeper.books.recorded == recorded:
                self.assertLess(world.now, idle + DRAIN_SECONDS + 3 * TICK_SECONDS)
                world.now += world.pump.tick(world.now, at(world.now))
            drains.clear()

    def test_after_a_drain_of_many_batches_the_next_one_comes_later_unless_a_ring_fills(self) -> None:
        self.patch(pump, "WIDE_BATCHES", 3)
        tabs = list({bucket_of(tab, BUCKETS): tab for tab in map("pace_{}".format, range(100))}.values())
        world = self.world()

        def waited(buckets: int) -> float:
            """Seconds until what is recorded into Tabs of so many buckets is drained."""
            world.send()
            recorded, began = world.keeper.books.recorded, world.now
            for tab in tabs[:buckets]:
                world.producers[0].record(world.producers[0].tab(tab), 1.0)
            while world.keeper.books.recorded == recorded:
                self.assertLess(world.now, began + 5.0)
                world.now += world.pump.tick(world.now, at(world.now))
            return world.now - began

        waited(3)  # whatever there was before
        self.assertAlmostEqual(waited(3), WIDE_DRAIN_SECONDS, delta=1.1 * TICK_SECONDS)
        self.assertAlmostEqual(waited(2), WIDE_DRAIN_SECONDS, delta=1.1 * TICK_SECONDS)  # that one is narrow, the one before was not
        self.assertAlmostEqual(waited(3), DRAIN_SECONDS, delta=1.1 * TICK_SECONDS)
        world.send()
        tab, filled = world.producers[0].tab(tabs[0]), world.keeper.books.recorded
        for number in range(world.producers[0].where.records // 3):
            world.producers[0].record(tab, float(number))
        world.pump.tick(world.now, at(world.now))
        self.assertGreater(world.keeper.books.recorded, filled)

    def test_small_batches_move_to_the_spool_so_many_at_once(self) -> None:
        world = self.world()
        self.patch(keeper, "MOVE_BATCHES", 2)
        ids = [BatchId(world.keeper.stream, bucket, 1) for bucket in range(5)]
        world.keeper.publish([EncodedBatch(id, at(world.now), 1, encode_batch(*id, [COLUMN])) for id in ids], world.now, recorded=5)
        moved: list[int] = []
        while world.keeper._move_some(world.now, at(world.now)) and len(moved) < 9:
            moved.append(world.spool.batches)
            if not world.keeper.holds_any:
                break
        self.assertEqual(moved, [2, 4, 5])

    def _half_moved(self) -> World:
        """A group of which the outbox retains the first batch, the spool retains the second, of the same lane, and the third waits."""
        world = self.world()
        self.patch(keeper, "MOVE_BYTES", 1)
        stream = world.keeper.stream
        ids = [BatchId(stream, 1, 1), BatchId(stream, 1, 2), BatchId(stream, 2, 1)]
        batches = [EncodedBatch(id, at(world.now), 1, encode_batch(*id, [COLUMN])) for id in ids]
        world.keeper.publish(batches, world.now, recorded=3)
        world.hold(ids[1:])
        world.send()
        self.assertTrue(world.keeper._move_some(world.now, at(world.now)))
        world.hold(ids[2:])
        world.wait(2.0)
        for lane in world.keeper.schedule.wake(world.now):
            world.keeper.queue(lane, world.now)
        world.send()
        lane = world.keeper.lanes[ids[1][:2]]
        self.assertEqual([batch.group is None for batch in lane.retained], [False, True])
        self.assertEqual((world.keeper.unacknowledged, world.spool.batches), (1, 1))
        return world

    def test_what_the_spool_retains_behind_what_the_outbox_retains_of_its_lane_is_bounded_like_all_else(self) -> None:
        world = self._half_moved()
        self.patch(books, "MAX_RETAINED_BYTES", 0)
        world.keeper.tick(world.now, at(world.now))
        self.assertEqual((world.keeper.books.retained_batches, world.keeper.books.retained_bytes, world.keeper.books.given_up), (0, 0, 2))
        self.assertEqual(world.spool.batches, 1)  # what waited
        for _ in range(4):
            world.hold([])
            world.tick()
            world.send()
        self.assertEqual((world.store.folded, world.keeper.books.totals(), world.keeper.holds_any), (3, {}, False))

    def test_what_is_within_the_bound_is_retained_there(self) -> None:
        world = self._half_moved()
        world.keeper._bound_retained()
        self.assertEqual((world.keeper.books.retained_batches, world.keeper.books.given_up), (2, 0))
        self.assertEqual(len(world.keeper.books.spool_retained), 1)  # and is bounded the next time

    def test_a_full_spool_gives_up_what_it_retains_behind_what_the_outbox_retains_before_it_says_that_it_is_full(self) -> None:
        world = self._half_moved()
        world.spool.bound = world.spool.used
        self.assertTrue(world.keeper._move_some(world.now, at(world.now)))
        self.assertEqual((world.keeper.books.given_up, world.spool.batches, world.keeper.holds_any), (2, 1, False))

    def test_what_was_brought_back_is_not_given_up_as_if_it_were_retained(self) -> None:
        world = self._half_moved()
        (lane,) = [lane for lane in world.keeper.lanes.values() if lane.bucket == 1]
        lane.probing = True
        lane.next(world.now, at(world.now))
        lane.applied(1, world.now)  # the store has the first alone
        self.assertEqual([batch.number for batch in lane.pending], [2])
        world.keeper.backlog.give_up()
        self.assertEqual((world.spool.batches, world.keeper.books.given_up, [batch.number for batch in lane.retained]), (1, 0, [1]))

    def test_beyond_the_spools_bound_the_newest_are_dropped_and_what_was_kept_is_sent(self) -> None:
        world = self.world(spool_bytes=1000)
        while not world.keeper.books.dropped["spool_full"]:
            world.record(2000)
            world.tick()
        dropped = world.keeper.books.dropped["spool_full"]
        self.assertEqual(world.keeper.books.recorded, world.recorded)
        for _ in range(10):
            world.tick()
            world.send()
        self.assertEqual(world.store.folded + dropped, world.recorded)

    def page(self, events: int, directory: str) -> None:
        """A process that has no ring drops so many events, counts them where it can, and ends."""
        with mock.patch.object(layouts, "SHM_DIRECTORY", directory):
            segment = make_segment(AGENT, "web/8", flags=0, ring_bytes=65_536, shm_bytes=0, group=None, now=1.0, make=None)
        segment.words[segment.counts // 8 + layouts.DROP_REASONS.index("no_ring")] += events
        segment.let_go()

    def _count_in_pages(self, world: World, kill: int) -> bool:
        """A page is read, counted and removed; wherever a kill comes, other processes count before the next Agent. Whether it came."""
        self.page(3, world.shm)
        counted, killed, real = 3, False, os.pwrite

        def pwrite(fd: int, content: bytes, offset: int) -> int:
            if any(ring.fd == fd for ring in world.rings.open.values()) and world.memory._step():
                raise Killed
            return real(fd, content, offset)

        world.memory.steps = kill
        for _ in range(4):
            try:
                with mock.patch("os.pwrite", pwrite):
                    world.tick()
            except Killed:
                killed = True
                world.die()
                self.page(1, world.shm)
                counted += 1
                world.born()
        world.memory.steps = None
        for _ in range(3):
            world.tick()
        self.assertEqual((world.keeper.books.totals(), world.keeper.books.recorded), ({"no_ring": counted}, counted), kill)
        self.assertEqual(len([name for name in os.listdir(world.shm) if name.startswith("taba.")]), 2)  # the producers' rings
        return killed

    def test_what_is_counted_in_a_page_after_its_agent_was_killed_is_counted_wherever_the_kill_came(self) -> None:
        self.kills(self._count_in_pages, 4)

    def test_a_page_to_count_in_is_no_client_neither_living_nor_dead_nor_the_worst(self) -> None:
        world = self.world()
        with mock.patch.object(layouts, "SHM_DIRECTORY", world.shm):
            segment = make_segment(AGENT, "web/8", flags=0, ring_bytes=65_536, shm_bytes=0, group=None, now=1.0, make=None)
        segment.words[segment.counts // 8] += 9  # as ring_full, which others have, too
        world.producers[0].drop("ring_full", 1)
        world.tick()
        self.assertEqual((len(world.rings.open), world.pump.living()), (3, {"web/0", "web/1"}))
        self.assertEqual((dict(world.pump.live_drops()), world.pump.worst("ring_full")), ({"ring_full": 10}, ("web/0", 1)))
        segment.let_go()
        world.producers[1].die()
        for _ in range(3):
            world.tick()
        self.assertEqual((set(world.pump.deaths.values()), world.pump.living()), ({"web/1"}, {"web/0"}))
        self.assertEqual((len(world.rings.open), dict(world.keeper.books.totals())), (1, {"ring_full": 9}))

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
        self.assertEqual(world.keeper.books.totals(), {"ring_full": 10})
        self.assertEqual([name for name in os.listdir(world.directory) if name.startswith("taba.")], [])
        self.assertEqual(world.keeper.books.recorded, 20)  # what clients dropped was recorded, too

    def test_a_stream_takes_new_batches_for_six_days_only(self) -> None:
        world = self.world()
        world.tick()
        first = world.keeper.stream
        world.now += 6 * 86_400
        world.tick()
        self.assertNotEqual(world.keeper.stream, first)

    def test_a_stream_is_ended_once_the_outbox_has_nothing_of_it_also_behind_what_still_waits(self) -> None:
        for is_killed in (False, True):
            world = self.world()
            tabs: dict[int, str] = {bucket_of(tab, BUCKETS): tab for tab in (f"tab{number}" for number in range(100))}
            (held, first), (bucket, second) = list(tabs.items())[:2]
            producer = world.producers[0]
            for tab in (first, second):
                producer.record(producer.tab(tab), 1.0)
                world.tick()  # a group of its own
            stream = world.keeper.stream
            verdict = world._verdict
            none = Verdict(LATER, 1.0)
            world._verdict = lambda send, held=held, verdict=verdict, none=none: verdict(send) if send.lane.bucket != held else none  # type: ignore[misc,method-assign]
            world.send()
            world.keeper.begin_stream(at(world.now))
            for _ in range(int(RETAIN_SECONDS)):
                world.tick()
                world.send()
            self.assertEqual(world.keeper.lanes[stream, bucket].retained, deque())  # nobody would send it again …
            self.assertEqual(world.store.ended, [])  # … but for an Agent that finds it behind what waits
            if is_killed:
                world.die()
                world.born()
            world._verdict = verdict  # type: ignore[method-assign]
            for _ in range(2 * int(RETAIN_SECONDS)):
                world.tick()
                world.send()
            self.assertEqual(world.store.events, {("web/0", first): [1.0], ("web/0", second): [1.0]})
            self.assertEqual(sorted(world.store.ended), sorted([(stream, held), (stream, bucket)]))


class HomelessTests(SynchronousTestCase):
    """The outbox was removed, and there is no room for a new one: what is published there nobody would find."""

    def test_what_is_drained_meanwhile_goes_into_the_spool_at_once_and_outlives_the_agent_with_its_totals(self) -> None:
        directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, directory)
        world = World(directory)
        self.addCleanup(world.end_producers)
        for is_homeless in (False, True):
            world.keeper.is_homeless = is_homeless
            world.producers[0].record_many(world.producers[0].tab("a"), [1.0, 2.0])
            world.tick()
        self.assertEqual((world.keeper.unacknowledged, world.spool.batches), (0, 2))
        world.die()
        world.memory = Memory(512 * 1024)
        Outbox.format(world.memory, b"n" * 16)  # the next Agent finds no outbox of before
        world.born()
        self.assertEqual(world.keeper.books.recorded, 4)
        self.assertEqual(world.spool.batches, 2)
        world.die()

    def test_what_is_in_it_moves_a_piece_in_each_turn_beside_what_comes_and_is_counted_once_wherever_a_kill_comes(self) -> None:
        self.patch(keeper, "MOVE_BATCHES", 3)
        for turns in (None, 1, 3):
            directory = tempfile.mkdtemp()
            self.addCleanup(shutil.rmtree, directory)
            world = World(directory)
            self.addCleanup(world.end_producers)
            for _ in range(6):
                world.record(40)
                world.tick()
            waiting = world.keeper.unacknowledged
            self.assertGreater(waiting, 15)
            gone = [False]

            def keep_name(mine: keeper.Keeper = world.keeper, gone: list[bool] = gone) -> None:
                mine.is_homeless = gone[0]

            world.keeper.before_publish = keep_name
            gone[0] = True
            moved = [0]
            while world.keeper.holds_any and len(moved) - 1 != turns:
                world.record(10)
                keep_name()
                if not world.keeper.spool_some(world.now, at(world.now)):
                    world.tick()
                moved.append(int(world.spool.batches))
            each = [after - before for before, after in itertools.pairwise(moved)]
            if turns is None:
                self.assertLessEqual(max(each[:-1]), 3, moved)
                self.assertLessEqual(each[-1], 3 + 3 + 5, moved)  # the rest, and what came meanwhile
                self.assertGreater(len(each), 4)
            lost = 0 if turns is None else sum(batch.events for group in Outbox(world.memory).groups() for batch in group.batches)
            kept = sum(events for (events,) in world.spool._database.execute("SELECT events FROM batches"))
            in_rings = sum(producer.head - producer.tail for producer in world.producers)
            world.die()
            world.memory = Memory(512 * 1024)
            Outbox.format(world.memory, b"n" * 16)  # the next Agent finds no outbox of before
            world.born()
            for _ in range(40):
                world.tick()
                world.send()
            self.assertEqual(world.store.folded, kept + in_rings)
            self.assertEqual(len(times := [value for values in world.store.events.values() for value in values]), len(set(times)))
            if turns is None:
                self.assertEqual((world.store.folded, +world.keeper.books.dropped), (world.recorded, {}))
            else:
                self.assertGreater(lost, 0)
            world.die()

    def _mended(self, kill: int | None, batches: bool) -> bool:
        """The spool is found damaged while what is fresh, or a table alone, goes into it. Whether the kill came."""
        directory = tempfile.mkdtemp(dir="/dev/shm")
        self.addCleanup(shutil.rmtree, directory)
        world = World(directory)
        self.addCleanup(world.end_producers)
        for _ in range(12):
            world.record(50)
            world.tick()
        world.keeper.is_homeless = True
        world.record(10)
        world.tick()  # all is in the spool, with the totals
        world.spool._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with open(world.spool.path, "r+b") as file:
            file.seek(8 * PAGE)
            file.write(os.urandom(2 * PAGE))
        world.keeper.backlog.healed = -1e9
        damaged, real = [True], world.spool.add

        def add(batches: Any, journal: Any = None) -> None:
            if damaged:
                raise SpoolFull("the disk: database disk image is malformed", True, damaged.pop())
            real(batches, journal)

        world.spool.add = add  # type: ignore[method-assign]
        world.memory.steps, killed = kill, False
        try:
            if batches:
                world.record(10)
                world.tick()
            else:
                world.keeper.publish((), world.now, recorded=7, dropped={"spool_full": 7})
                world.recorded += 7
            self.assertEqual((bool(world.spool.lost), damaged), (True, []))
            world.keeper.settle_totals()
        except Killed:
            killed = True
        world.die()
        world.memory = Memory(512 * 1024)
        Outbox.format(world.memory, b"n" * 16)  # the next Agent finds no outbox of before
        world.born()
        for _ in range(60):
            world.tick()
            world.send()
            if not world.spool.batches and not world.spool.salvage:
                break
        totals = world.keeper.books.totals()
        self.assertGreater(totals["spool_corrupt"], 0)
        self.assertEqual((world.spool.batches, world.spool.salvage), (0, ""))
        self.assertEqual(world.store.folded + sum(totals.values()), world.keeper.books.recorded, (kill, totals))
        world.die()
        return killed

    def test_what_a_spool_lost_that_is_mended_within_a_publish_is_counted_once_wherever_a_kill_comes(self) -> None:
        self._mended(None, False)
        kill = 0
        while self._mended(kill, True):
            kill += 1
        self.assertGreaterEqual(kill, 3)
