"""What a drain costs, counted and not timed: system calls, bytes that are read, calls of Python. Bounds lie near what was counted; what
raises one of them on purpose raises its bound with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

from twisted.trial.unittest import SkipTest

from taba.agent import drain as drains
from taba.agent.admission import Admission
from taba.agent.ages import Moment
from taba.agent.drain import Drain, Drained
from taba.agent.encoding import encode
from taba.agent.gathering import Counted
from taba.agent.looks import Looks
from taba.agent.native import NATIVE
from taba.agent.reader import Reading, Ring
from taba.agent.scratch import Scratch
from taba.agent.search import FEW_RECORDS, FIRST_CHUNK
from taba.ring import ACCELERATED, RECORD_BYTES
from tests.agent.moments import at
from tests.agent.reading import Case
from tests.agent.world import World

NOW = Moment(0.0, 0, None)


class Costs(Case):
    def rings(self, rings: int, tabs: int, events: int, flags: int = 0) -> list[Ring]:
        """So many, each with so many events of so many Tabs; their names were read before."""
        found = []
        for number in range(rings):
            producer = self.producer(f"web/{number}", 2**20, flags)
            places = [producer.tab(f"t{tab}") for tab in range(tabs)]
            ring = self.open(producer)
            ring.names.read(tabs)
            for event in range(events):
                producer.record(places[event % tabs], float(event))
            found.append(ring)
        return found

    def calls(self, rings: int, tabs: int, events: int) -> int:
        """How many functions of Python are called to read, sort and encode what these hold, the second time."""
        found, drain = self.rings(rings, tabs, events), Drain(8)
        for ring in found:
            drain.places(ring)
        drained: list[Drained] = []

        def act() -> None:
            drained.append(drain.run([(ring, False) for ring in found]))
            encode(drained[0].packed, bytes(16), {}, NOW)

        count = self.counted(act)
        self.assertEqual(drained[0].found, rings * events)
        return count

    def counted(self, act: Callable[[], None]) -> int:
        """How many functions of Python are called in it."""
        count = 0

        def see(frame: FrameType, event: str, argument: Any) -> None:
            nonlocal count
            count += event == "call" and "/taba/" in frame.f_code.co_filename

        before = sys.getprofile()
        sys.setprofile(see)
        try:
            act()
        finally:
            sys.setprofile(before)
        return count

    def test_a_name_that_another_ring_has_takes_few_calls_of_python_and_is_there_once(self) -> None:
        drain, admission, calls = Drain(8), Admission(), []
        rings = []
        for number in range(3):
            producer = self.producer(f"web/{number}", 2**20)
            for tab in range(300):
                producer.tab(f"t{tab}")
            ring = Ring(os.open(producer.path, os.O_RDWR), producer.name, (), admission)
            self.opened.append(ring)
            rings.append(ring)

            def read(ring: Ring = ring) -> None:
                self.assertEqual(ring.names.read(), 300)
                drain.places(ring)

            calls.append(self.counted(read))
        self.assertLess(calls[1], 300 * 7)
        self.assertLess(calls[2], calls[0] / 2)
        self.assertIs(rings[0].directory[7], rings[2].directory[7])

    def test_neither_an_event_nor_a_tab_takes_a_call_of_python_and_a_ring_few(self) -> None:
        some = self.calls(2, 100, 200)
        self.assertLess(self.calls(2, 100, 2000) - some, 30)  # it looks on in larger steps
        self.assertLess(self.calls(2, 200, 200) - some, 10)
        self.assertLess((self.calls(6, 100, 200) - some) / 4, 41)

    def test_what_a_look_has_seen_is_put_in_order_where_it_is_read(self) -> None:
        if NATIVE is None:
            raise SkipTest("_drain is not built: needs a compiler")
        self.patch(drains, "LOT_EVENTS", 250)
        moved = []
        follow = Counted.follow

        def noting(gathered: Counted, reading: Reading) -> None:
            moved.append(len(reading.tabs))
            follow(gathered, reading)

        self.patch(Counted, "follow", noting)
        for is_seen in (False, True):
            rings, drain = self.rings(5, 10, 200), Drain(8)
            if is_seen:
                Looks(drain._scratch).look(rings)
            drained = drain.run([(ring, False) for ring in rings], is_fresh=is_seen)
            self.assertEqual([len(one.counts) for one in drained.tallies], [10] * 5)
            self.assertEqual(drained.found, 5 * 200)
            self.assertEqual(moved, [] if is_seen else [200] * 4)
            moved.clear()

    def noted(self, name: str) -> list[int]:
        """Sizes of what `os.NAME` reads or writes from now on."""
        sizes: list[int] = []
        call = getattr(os, name)

        def noting(*arguments: Any) -> Any:
            found = call(*arguments)
            sizes.append(found if isinstance(found, int) else len(found))
            return found

        self.patch(os, name, noting)
        return sizes

    def test_what_a_look_has_seen_is_read_once_more_and_not_looked_at_again(self) -> None:
        events, scratch = 8_000, Scratch()
        ring, other = self.rings(2, 10, events)
        self.assertEqual(ring.look(scratch).records, events)
        sizes = self.noted("preadv")
        reading = ring.read(scratch, events + 1, 2**20)
        assert reading is not None
        self.assertEqual(len(reading.tabs), events)
        self.assertLessEqual(sum(sizes), (events + FIRST_CHUNK) * RECORD_BYTES)
        sizes.clear()
        self.assertEqual(len(other.read(scratch, events + 1, 2**20).tabs), events)  # type: ignore[union-attr]
        self.assertGreater(sum(sizes), 2 * events * RECORD_BYTES)  # nobody looked: it does so itself

    def test_what_a_look_at_all_rings_saw_just_now_is_read_without_a_search_and_what_came_since_waits(self) -> None:
        if NATIVE is None:
            raise SkipTest("needs the Agent's C part: without it each ring looks at itself")
        producer, scratch, looks = self.producer(), Scratch(), Looks(Scratch())
        tab, ring = producer.tab("a"), self.open(producer)
        ring.names.read(1)
        looks.look([ring])
        for _ in range(3):
            producer.record_many(tab, [1.0] * 100)
            looks.look([ring])
            producer.record(tab, 2.0)
            sizes, probes = self.noted("preadv"), self.noted("pread")
            reading = ring.read(scratch, 1000, 2**20, is_fresh=True)
            assert reading is not None
            self.assertEqual((len(reading.tabs), sizes, probes), (100, [100 * RECORD_BYTES], []))
            ring.settle(reading)
            self.assertEqual(self.drain(ring).found, 1)
        hole = producer.reserve()
        producer.record_many(tab, [1.0] * 5)
        looks.look([ring])
        reading = ring.read(scratch, 1000, 2**20, is_fresh=True)
        assert reading is not None
        self.assertEqual((len(reading.tabs), reading.ranges[0].start), (5, hole + 1))  # behind a hole a search goes on

    def test_rings_that_have_few_records_are_read_in_one_call_and_take_few_of_python_each(self) -> None:
        if NATIVE is None:
            raise SkipTest("needs the Agent's C part: without it each ring is read by itself")
        costs = []
        for rings in (10, 40):
            found, drain, looks = self.rings(rings, 100, 20), Drain(8), Looks(Scratch())
            looks.look(found)
            for ring in found:
                drain.places(ring)
            sizes, pairs, drained = self.noted("preadv"), [(ring, False) for ring in found], list[Drained]()
            costs.append(self.counted(partial(_run, drain, pairs, drained)))
            self.assertEqual((drained[0].found, sizes), (rings * 20, []))
        self.assertLess(costs[1] - costs[0], 30 * 12)

    def test_of_one_producer_records_are_read_once_and_a_look_finds_the_last_by_halves(self) -> None:
        for events in (600, 20_000):
            [ring] = self.rings(1, 10, events, ACCELERATED)
            sizes, probes = self.noted("preadv"), self.noted("pread")
            self.assertEqual(len(ring.read(Scratch(), events + 1, 2**20).tabs), events)  # type: ignore[union-attr]
            self.assertLessEqual(sum(sizes), (events + 2 * FIRST_CHUNK) * RECORD_BYTES)
            self.assertLessEqual(len(probes), 14)

    def test_of_an_idle_ring_a_look_is_one_read_of_few_bytes_and_sees_what_comes(self) -> None:
        producer = self.producer()
        ring, scratch, tab = self.open(producer), Scratch(), producer.tab("a")
        for lap in range(3):
            nothing = ring.look(scratch)
            sizes, others = self.noted("pread"), self.noted("preadv")
            self.assertEqual([ring.look(scratch) for _ in range(5)], [nothing] * 5)
            self.assertEqual((sizes, others), ([FEW_RECORDS * RECORD_BYTES] * 5, []))
            producer.record_many(tab, [1.0] * producer.where.records)
            self.assertEqual((ring.look(scratch).records, nothing.records, lap), (producer.where.records, 0, lap))
            self.drain(ring)

    def test_a_ring_takes_so_many_system_calls_whatever_it_holds(self) -> None:
        for events in (200, 20_000):
            [ring] = self.rings(1, 10, events)
            ring.look(Scratch())
            calls = [self.noted(name) for name in ("pread", "preadv", "pwrite", "pwritev")]
            self.drain(ring)
            self.assertLessEqual(sum(map(len, calls)), 4)  # is there more, the records, the tail; one to spare where they wrap

    def test_a_ring_whose_sums_stand_still_is_passed_over_by_a_drain(self) -> None:
        world = World(self.directory)
        self.addCleanup(world.die)
        self.addCleanup(world.end_producers)
        producer = world.producers[0]
        busy = [producer.tab(f"busy{place}", "UpDown", has_cell=True) for place in range(20)]
        for tab in busy:
            producer.record(tab, 1.0)
        world.tick()

        def drain() -> None:
            world.record(2)
            world.now += 2.0
            world.pump.drain(world.now, at(world.now))

        for _ in range(6):  # until no name is new
            drain()
        ring = world.rings.open[producer.name]
        held, looked = dict(ring.sums), list[int]()
        self.patch(ring, "sums", Looked(held, looked))
        drain()
        self.assertEqual(looked, [])
        producer.record(busy[7], 1.0)
        drain()
        self.assertEqual((set(looked), held[busy[7]].copy.total), ({busy[7]}, 2.0))
        producer.owe(busy[3], 1.0)
        drain()
        looked.clear()
        drain()
        drain()
        self.assertEqual(set(looked), {busy[3]})  # for the table, which tells what of it was published


def _run(drain: Drain, pairs: list[tuple[Ring, bool]], drained: list[Drained]) -> None:
    drained.append(drain.run(pairs, is_fresh=True))


class Looked(dict[int, Any]):
    """Sums, and which of them were looked at."""

    def __init__(self, held: dict[int, Any], looked: list[int]):
        super().__init__(held)
        self._looked = looked

    def __getitem__(self, place: int) -> Any:
        self._looked.append(place)
        return super().__getitem__(place)

    def __iter__(self) -> Iterator[int]:
        self._looked += range(len(self))
        return super().__iter__()

    def items(self) -> Any:
        self._looked += range(len(self))
        return super().items()

    def values(self) -> Any:
        self._looked += range(len(self))
        return super().values()
