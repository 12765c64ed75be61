"""Rings, pump, outbox and spool together, killed between any two of their writes: every event reaches the store once."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import deque
from typing import Any
from unittest import mock

from hypothesis import event, given
from hypothesis import strategies as st

from taba import ring as layouts
from taba.agent import rounds
from taba.agent.ages import Moment
from taba.agent.lanes import RETAIN_SECONDS
from taba.agent.outbox import PAGE, Covered, OutboxCorrupt, OutboxFull
from taba.agent.pump import TICK_SECONDS
from taba.agent.rounds import DRAIN_SECONDS, WIDE_DRAIN_SECONDS
from taba.batch import LATER, BatchId, Verdict
from taba.client.segment import make_segment
from taba.names import bucket_of
from tests.agent.moments import at
from tests.agent.outboxes import Killed
from tests.agent.producers import Producer
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
PLENTY = 2 << 20
ROOMS = (PLENTY, 24 * PAGE, 18 * PAGE)  # 17 are had by an empty outbox


class Full(dict[int, int]):
    """No memory for one more."""

    def __setitem__(self, bucket: int, number: int) -> None:
        raise MemoryError


class KeeperTests(WorldCase):
    def test_whatever_fails_right_after_a_publish_nothing_is_read_once_more(self) -> None:
        def fails(*given: Any, **more: Any) -> None:
            raise MemoryError

        of_pump = ("pump._tell_clients", "pump.sums.spares", "pump.meanings.published", "pump.edge.published", "pump.tallies.add")
        for what in ("keeper._published", *of_pump):
            world = self.world()
            world.tick()
            world.record(40)
            owner, _, name = what.rpartition(".")
            room = {"keeper": world.keeper, "pump": world.pump}.get(owner) or getattr(world.pump, owner.removeprefix("pump."))
            with mock.patch.object(room, name, fails):
                self.assertRaises(MemoryError, world.tick)
            for _ in range(4):
                world.tick()
                world.send()
            self.assertEqual((world.store.folded, world.keeper.books.recorded, dict(world.keeper.books.totals())), (40, 40, {}), what)

    def _fill_numbers(self, world: World) -> None:
        """No stream of this Agent takes one more number."""
        begin = world.keeper.begin_stream

        def begin_full(moment: Moment) -> None:
            begin(moment)
            world.keeper.numbers = Full(world.keeper.numbers)

        world.keeper.begin_stream = begin_full  # type: ignore[method-assign]
        world.keeper.numbers = Full(world.keeper.numbers)

    def test_an_agent_whose_publish_fails_in_its_middle_does_nothing_more_and_the_next_one_has_all_of_it(self) -> None:
        for is_spooled in (False, True):
            world = self.world()
            world.record(20)
            world.tick()
            world.record(20)
            world.keeper.is_homeless = is_spooled  # what is fresh goes into the spool
            self._fill_numbers(world)
            self.assertRaises(MemoryError, world.tick)
            for _ in range(3):
                self.assertRaises(OutboxCorrupt, world.tick)
            world.die()
            world.born()
            for _ in range(4):
                world.tick()
                world.send()
            self.assertEqual((world.store.folded, world.keeper.books.recorded, dict(world.keeper.books.totals())), (40, 40, {}))

    def test_whatever_fails_beside_the_last_publish_of_a_ring_its_drops_are_counted_once(self) -> None:
        def fails(*given: Any, **more: Any) -> None:
            raise MemoryError

        for room, name in (("keeper", "publish"), ("keeper", "_publish_in_outbox"), ("sums", "ended"), ("sums", "spares")):
            world = self.world()
            world.tick()
            world.producers[0].drop("ring_full", 5)
            world.producers[0].die()
            with mock.patch.object(world.keeper if room == "keeper" else world.pump.sums, name, fails):
                self.assertRaises(MemoryError, world.tick)
            for _ in range(3):
                world.tick()
            self.assertEqual((dict(world.keeper.books.totals()), world.keeper.books.recorded), ({"ring_full": 5}, 5), name)
            self.assertEqual(list(world.rings.open), [world.producers[1].name])

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
        self.patch(rounds, "WIDE_BATCHES", 3)
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

    def test_rings_that_only_another_may_remove_are_named_until_he_did(self) -> None:
        for is_killed in (False, True):
            world = self.world()
            made = [Producer(AGENT, f"job/{number}", 65_536, world.shm) for number in range(3)]
            for producer in made:
                producer.record(producer.tab("bids_won"), 1.0)
                producer.die()
            with mock.patch("taba.agent.discover.os.unlink", side_effect=PermissionError(1, "Operation not permitted")):
                for _ in range(2):
                    world.tick()
            self.assertEqual((len(world.keeper.books.retired), world.keeper.books.recorded), (3, 3))
            if is_killed:
                world.die()
            for producer in made:
                os.unlink(producer.path)
            if is_killed:
                world.born()
            for _ in range(2):
                world.tick()
            self.assertEqual((world.keeper.books.retired, world.keeper.books.recorded), (set(), 3))
