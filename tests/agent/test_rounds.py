"""Where a drain cannot take all, drains go round all rings once: each ring's Events go together, as far as they may."""

from __future__ import annotations

from taba.agent import drain, pump, rounds
from tests.agent.moments import at
from tests.agent.producers import Producer
from tests.agent.world import AGENT, World, WorldCase


def pause_of(world: World) -> float:
    return world.pump.rounds.pause(world.pump.looks.has_records)


class RoundsCase(WorldCase):
    def made(self, rings: int, events: int, larger: int = 0) -> World:
        """So many rings, of which so many are larger, and drains of so many events; what there was before is drained."""
        world = self.world()
        sizes = [262_144] * larger + [65_536] * (rings - 2 - larger)
        world.producers += [Producer(AGENT, f"web/more{number}", size, world.shm) for number, size in enumerate(sizes)]
        world.tick()
        world.pump._events = events
        self.patch(pump, "MAX_DRAIN_EVENTS", events)
        return world

    def record(self, world: World, *counts: int) -> None:
        for producer, count in zip(world.producers, counts, strict=True):
            for number in range(count):
                producer.record(producer.tab("tab"), float(number))

    def one(self, world: World) -> tuple[list[int], bool]:
        before = [producer.tail for producer in world.producers]
        is_cut = world.pump.drain(world.now, at(world.now))
        return [producer.tail - was for producer, was in zip(world.producers, before, strict=True)], is_cut


class Rounds(RoundsCase):
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

    def test_who_has_little_room_left_and_much_less_waiting_is_read_between_two_drains_of_a_round_which_goes_on(self) -> None:
        self.patch(pump, "NEAR_EVENTS", 1500)
        self.patch(drain, "MIN_SHARE", 8192)
        world = self.made(5, 5000, larger=3)
        small, _, *full = world.producers
        self.record(world, 0, 0, 5000, 5000, 5000)
        found = []
        for number in range(6):
            if number in (1, 3):
                self.record(world, 1100, 0, 0, 0, 0)
            world.pump._is_filling(world.now, 4)
            before = small.tail
            found.append((sum(self.one(world)[0]), small.tail - before))
        self.assertEqual(found, [(5000, 0), (1100, 1100), (5000, 0), (1100, 1100), (5000, 0), (0, 0)])
        self.assertEqual([producer.tail for producer in (small, *full)], [2200, 5000, 5000, 5000])

    def test_where_all_rings_fill_alike_none_is_read_before_its_turn_however_full_they_are(self) -> None:
        self.patch(pump, "NEAR_EVENTS", 1500)
        world = self.made(4, 3000)
        self.record(world, 1100, 1500, 1500, 1300)
        found = []
        for _ in range(2):
            self.assertTrue(world.pump._is_filling(world.now, 4))
            found.append(sum(self.one(world)[0]))
        self.assertEqual(found, [3000, 2400])

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
        self.patch(rounds, "DRAIN_COLUMNS", 10)
        world = self.made(4, 60)
        self.record(world, 25, 25, 25, 25)
        world.pump._is_filling(world.now, 4)  # a look, which finds them
        while world.pump.drain(world.now, at(world.now)):
            pass
        self.assertEqual(world.pump.rounds.columns, 5)  # one of a ring that was read in two parts
        self.assertEqual(pause_of(world), 0.5)
        self.record(world, 1, 0, 0, 0)
        world.pump.drain(world.now, at(world.now))
        self.assertEqual((world.pump.rounds.columns, pause_of(world)), (1, rounds.DRAIN_SECONDS))
        world.pump.rounds.columns = 10**9
        self.assertEqual(pause_of(world), rounds.FULL_DRAIN_SECONDS)

    def test_a_round_of_more_columns_is_followed_later_only_where_they_have_several_events_each(self) -> None:
        self.patch(rounds, "DRAIN_COLUMNS", 2)  # a second: two seconds of these four columns are not too long
        world = self.made(4, 60)
        for events, pause in ((1, 1.0), (2, 1.0), (3, 1.5), (20, 2.0)):
            self.record(world, events, events, events, events)
            world.pump._is_filling(world.now, 4)
            while world.pump.drain(world.now, at(world.now)):
                pass
            self.assertEqual((world.pump.rounds.columns >= 4, pause_of(world)), (True, pause), events)

    def test_while_servers_lag_wide_rounds_are_further_apart_and_narrow_ones_as_far_as_ever(self) -> None:
        for columns, expected in ((4, 2.5), (100, 1.5)):
            self.patch(rounds, "DRAIN_COLUMNS", 2 if columns == 4 else 100)
            world = self.made(4, 600)
            self.record(world, 20, 20, 20, 20)
            world.tick()
            began = world.now
            self.assertTrue(world.keeper.are_busy(1))  # nobody took any
            self.record(world, 1, 1, 1, 1)
            recorded = world.keeper.books.recorded
            while world.keeper.books.recorded == recorded:
                self.assertLess(world.now, began + 5.0)
                world.now += world.pump.tick(world.now, at(world.now))
            self.assertLess(abs(world.now - began - expected), 2.5 * pump.TICK_SECONDS, columns)


class Parts(RoundsCase):
    """A wide round is drained in parts, each of some of the rings."""

    def begun(self, rings: int = 4, parts: int = 2) -> World:
        """A round of these rings has been, which had so many columns that the next one is drained in so many parts."""
        self.patch(rounds, "PART_COLUMNS", rings // parts)
        world = self.made(rings, 6_000)
        self.record(world, *[1] * rings)
        world.tick()
        self.settle(world)
        self.assertEqual(world.pump.rounds.columns, rings)
        return world

    def settle(self, world: World) -> None:
        while world.send():  # else Servers lag
            pass

    def read_next(self, world: World, within: float = 5.0) -> tuple[list[int], float]:
        """What the next drain that reads any takes of each ring, and how long it took to come."""
        before, began = [producer.tail for producer in world.producers], world.now
        while [producer.tail for producer in world.producers] == before:
            self.assertLess(world.now, began + within)
            world.now += max(0.001, world.pump.tick(world.now, at(world.now)))
        self.settle(world)
        return [producer.tail - was for producer, was in zip(world.producers, before, strict=True)], world.now - began

    def test_each_part_has_some_of_the_rings_and_each_ring_its_part_of_a_round_whose_pause_is_as_ever(self) -> None:
        world = self.begun()
        self.record(world, 5, 5, 5, 5)
        taken, waits = zip(*[self.read_next(world) for _ in range(2)], strict=True)
        self.assertEqual(sorted(taken[0]), [0, 0, 5, 5])
        self.assertEqual([one + other for one, other in zip(*taken, strict=True)], [5, 5, 5, 5])
        self.assertLess(abs(waits[1] - rounds.DRAIN_SECONDS / 2), 2 * pump.TICK_SECONDS)
        self.record(world, 2, 2, 2, 2)
        again = [self.read_next(world)[0] for _ in range(2)]
        self.assertEqual(
            [[place for place, count in enumerate(one) if count] for one in again], [[p for p, n in enumerate(one) if n] for one in taken]
        )
        self.assertEqual(world.pump.rounds.columns, 4)

    def test_a_round_of_fewer_columns_is_followed_by_one_in_one_part(self) -> None:
        world = self.begun()
        self.record(world, 1, 0, 0, 0)
        self.read_next(world)
        for _ in range(3):
            self.record(world, 1, 1, 0, 0)
            taken, _ = self.read_next(world)
        self.assertEqual((taken, world.pump.rounds.parts), ([1, 1, 0, 0], 1))

    def test_a_round_in_one_part_comes_after_one_in_parts_as_soon_as_its_next_part_would(self) -> None:
        found = rounds.Rounds()
        for parts, wait in ((1, 1.0), (4, 0.25), (4, 0.25), (1, 0.25), (1, 1.0)):
            self.assertEqual(found.wait(parts, False, False), wait * rounds.IDLE_DRAIN_SECONDS)
            found.begin(parts, ())

    def test_a_round_has_as_many_parts_as_there_are_lots_of_its_rings(self) -> None:
        found = rounds.Rounds()
        found.columns = 10 * rounds.PART_COLUMNS
        for rings in range(1, 30):
            parts = found.parts_of_next(True, rings)
            each = -(-rings // parts)
            self.assertEqual((parts, parts <= rounds.MOST_PARTS), (-(-rings // each), True), rings)
        self.assertEqual([found.parts_of_next(True, rings) for rings in (0, 1, 4, 5, 7, 100)], [1, 1, 4, 3, 4, 4])
        found.columns = 2 * rounds.PART_COLUMNS - 1
        self.assertEqual(found.parts_of_next(True, 100), 1)

    def test_with_another_ring_there_the_next_drain_is_of_all(self) -> None:
        world = self.begun()
        self.record(world, 5, 5, 5, 5)
        self.read_next(world)
        world.producers.append(Producer(AGENT, "web/other", 65_536, world.shm))
        self.record(world, 1, 1, 1, 1, 1)
        self.read_next(world)
        self.assertEqual([producer.tail for producer in world.producers], [producer.head for producer in world.producers])

    def test_a_drain_that_somebody_asks_for_is_of_all_rings(self) -> None:
        world = self.begun()
        self.record(world, 5, 5, 5, 5)
        self.read_next(world)
        self.record(world, 1, 1, 1, 1)
        self.assertFalse(world.pump.drain_now(world.now, at(world.now)))
        self.assertEqual([producer.tail for producer in world.producers], [7, 7, 7, 7])

    def test_a_ring_that_fills_is_read_though_it_is_not_its_turn_yet(self) -> None:
        world = self.begun(rings=4, parts=4)
        self.record(world, 1, 1, 1, 1)
        self.read_next(world)
        began = world.now
        self.record(world, 600, 600, 600, 600)
        for _ in range(4):
            self.read_next(world)
        self.assertLess(world.now - began, rounds.DRAIN_SECONDS / 4)
        self.assertEqual(sum(producer.tail for producer in world.producers), 4 * 602)
