"""Where a drain cannot take all, drains go round all rings once: each ring's Events go together, as far as they may."""

from __future__ import annotations

from taba.agent import drain, pump
from tests.agent.moments import at
from tests.agent.producers import Producer
from tests.agent.world import AGENT, World, WorldCase


class Rounds(WorldCase):
    def made(self, rings: int, events: int) -> World:
        """So many rings, and drains of so many events; what there was before is drained."""
        world = self.world()
        world.producers += [Producer(AGENT, f"web/more{number}", 65_536, world.shm) for number in range(rings - 2)]
        world.tick()
        world.pump._events = events
        self.patch(pump, "MAX_DRAIN_EVENTS", events)
        return world

    def record(self, world: World, *counts: int) -> None:
        for producer, count in zip(world.producers, counts, strict=True):
            for number in range(count):
                producer.record(producer.tab("tab"), float(number))

    def drains(self, world: World) -> list[tuple[list[int], bool]]:
        """Drain as long as there is more at once: what each took of each ring, and what it said."""
        found: list[tuple[list[int], bool]] = []
        while len(found) < 20:
            before = [producer.tail for producer in world.producers]
            is_cut = world.pump.drain(world.now, at(world.now))
            found.append(([producer.tail - was for producer, was in zip(world.producers, before, strict=True)], is_cut))
            if not is_cut:
                break
        return found

    def test_each_ring_goes_whole_and_what_comes_into_those_that_were_read_waits_for_the_next_round(self) -> None:
        world = self.made(4, 60)
        self.record(world, 25, 25, 25, 25)
        first, is_cut = self.one(world)
        self.assertEqual((sorted(first), is_cut), ([0, 10, 25, 25], True))
        more = [5 * (place == first.index(25)) for place in range(4)]  # where all was read
        self.record(world, *more)
        second, is_cut = self.one(world)
        self.assertEqual(([one + other for one, other in zip(first, second, strict=True)], is_cut), ([25, 25, 25, 25], False))
        self.assertEqual(self.drains(world), [(more, False)])

    def one(self, world: World) -> tuple[list[int], bool]:
        before = [producer.tail for producer in world.producers]
        is_cut = world.pump.drain(world.now, at(world.now))
        return [producer.tail - was for producer, was in zip(world.producers, before, strict=True)], is_cut

    def test_who_has_little_room_left_and_least_waiting_is_read_between_two_drains_of_a_round_which_goes_on(self) -> None:
        self.patch(pump, "NEAR_EVENTS", 1500)
        self.patch(drain, "MIN_SHARE", 2048)
        world = self.made(4, 2000)
        full, small = world.producers[:3], world.producers[3]
        for producer in full:
            self.record(world, *[2000 * (one is producer) for one in world.producers])
        found = []
        for number in range(6):
            if number in (1, 3):
                self.record(world, 0, 0, 0, 1100)
            world.pump._is_filling(world.now, 4)
            before = small.tail
            found.append((sum(self.one(world)[0]), small.tail - before))
        self.assertEqual(found, [(2000, 0), (1100, 1100), (2000, 0), (1100, 1100), (2000, 0), (0, 0)])
        self.assertEqual([producer.tail for producer in world.producers], [2000, 2000, 2000, 2200])

    def test_who_has_more_than_its_share_goes_on_in_a_round_of_all(self) -> None:
        self.patch(drain, "MIN_SHARE", 20)
        world = self.made(3, 60)
        self.record(world, 100, 5, 5)
        world.pump._is_filling(world.now, 4)  # a look: how much waits in each
        (first, is_cut), *more = self.drains(world)
        self.assertEqual((first, is_cut), ([50, 5, 5], True))
        self.assertEqual([sum(counts) for counts in zip(first, *[counts for counts, _ in more], strict=True)], [100, 5, 5])
        self.assertFalse(more[-1][1])

    def test_a_drain_that_settled_nothing_is_followed_by_one_of_all_rings(self) -> None:
        world = self.made(4, 60)
        self.record(world, 25, 25, 25, 25)
        self.one(world)
        assert world.pump._drain is not None
        world.pump._drain.begin_anew()
        self.record(world, 3, 3, 3, 3)
        counts, is_cut = self.one(world)
        self.assertEqual((sum(counts), is_cut), (52, False))

    def test_after_a_round_of_many_columns_the_next_comes_later_by_as_many_as_all_its_drains_had(self) -> None:
        self.patch(pump, "DRAIN_COLUMNS", 10)
        world = self.made(4, 60)
        self.record(world, 25, 25, 25, 25)
        world.pump._is_filling(world.now, 4)  # a look, which finds them
        while world.pump.drain(world.now, at(world.now)):
            pass
        self.assertEqual(world.pump._columns, 5)  # one of a ring that was read in two parts
        self.assertEqual(world.pump._pause, 0.5)
        self.record(world, 1, 0, 0, 0)
        world.pump.drain(world.now, at(world.now))
        self.assertEqual((world.pump._columns, world.pump._pause), (1, pump.DRAIN_SECONDS))
        world.pump._columns = 10**9
        self.assertEqual(world.pump._pause, pump.FULL_DRAIN_SECONDS)

    def test_a_round_of_more_columns_is_followed_later_only_where_they_have_several_events_each(self) -> None:
        self.patch(pump, "DRAIN_COLUMNS", 2)  # a second: two seconds of these four columns are not too long
        world = self.made(4, 60)
        for events, pause in ((1, 1.0), (2, 1.0), (3, 1.5), (20, 2.0)):
            self.record(world, events, events, events, events)
            world.pump._is_filling(world.now, 4)
            while world.pump.drain(world.now, at(world.now)):
                pass
            self.assertEqual((world.pump._columns >= 4, world.pump._pause), (True, pause), events)

    def test_while_servers_lag_wide_rounds_are_further_apart_and_narrow_ones_as_far_as_ever(self) -> None:
        for columns, expected in ((4, 2.5), (100, 1.5)):
            self.patch(pump, "DRAIN_COLUMNS", 2 if columns == 4 else 100)
            world = self.made(4, 600)
            self.record(world, 20, 20, 20, 20)
            world.tick()
            began = world.now
            self.assertTrue(world.keeper.is_busy)  # nobody took any
            self.record(world, 1, 1, 1, 1)
            recorded = world.keeper.books.recorded
            while world.keeper.books.recorded == recorded:
                self.assertLess(world.now, began + 5.0)
                world.now += world.pump.tick(world.now, at(world.now))
            self.assertLess(abs(world.now - began - expected), 2.5 * pump.TICK_SECONDS, columns)
