"""Reading rings: whole records only, holes, laps, values, and whatever a hostile producer writes."""

from __future__ import annotations

import errno
import os
import struct
import tempfile
from random import Random
from typing import Any
from unittest import mock

import msgpack
from hypothesis import given
from hypothesis import strategies as st

from taba import ring as layouts
from taba.agent import discover, search
from taba.agent import drain as draining
from taba.agent.discover import Rings
from taba.agent.drain import Drain, Drained
from taba.agent.encoding import unpack
from taba.agent.outbox import Covered
from taba.agent.reader import Ring
from taba.agent.scratch import MAX_CHUNK, Scratch
from taba.agent.search import MAX_COVERED
from taba.bounds import MAX_VALUE_DEPTH
from taba.counting import unpack_counted
from taba.ring import MalformedRing
from tests.agent.producers import Producer
from tests.agent.reading import AGENT, Case
from tests.examples import examples
from tests.pieces import values_of


def values(drained: Drained, client: str = "web/1") -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for pieces in drained.packed.values():
        for column in unpack(pieces):
            assert column.client == client
            found.setdefault(column.tab, []).extend(values_of(column))
    return found


class ReadingTests(Case):
    def test_floats_and_other_values_come_in_ring_order_over_many_laps(self) -> None:
        producer = self.producer()
        ring = self.open(producer)
        a, b = producer.tab("a"), producer.tab("b", "Buffer")
        expected: dict[str, list[Any]] = {"a": [], "b": []}
        found: dict[str, list[Any]] = {"a": [], "b": []}
        for number in range(5 * producer.where.records // 2):
            producer.record(a, float(number))
            expected["a"].append(float(number))
            if number % 10 == 0:
                value = [float(number), "x" * (number % 50), number, None, {"k": True}][number // 10 % 5]
                producer.record(b, value)
                expected["b"].append(value)
            if number % 500 == 499:
                for name, some in values(self.drain(ring)).items():
                    found[name] += some
        for name, some in values(self.drain(ring)).items():
            found[name] += some
        self.assertEqual(found, expected)
        self.assertEqual((producer.tail, producer.byte_tail), (producer.head, producer.byte_head))

    def test_what_one_ring_holds_is_not_lost_to_the_next_that_is_read(self) -> None:
        for events in (1, 2):
            for others in ([7.0], ["x", 8.0]):
                producers = [self.producer(), self.producer()]
                rings = [self.open(producer) for producer in producers]
                mine = [float(number) for number in range(events)]
                for producer, some in zip(producers, (mine, others), strict=True):
                    tab = producer.tab("a")
                    for value in some:
                        producer.record(tab, value)
                self.assertEqual(values(self.drain(*rings)), {"a": [*mine, *others]})

    def test_a_hole_is_read_past_and_the_tail_waits_for_it(self) -> None:
        producer = self.producer()
        ring = self.open(producer)
        tab = producer.tab("a")
        producer.record(tab, 1.0)
        hole = producer.reserve()
        producer.record(tab, "three")
        self.assertEqual(values(self.drain(ring)), {"a": [1.0, "three"]})
        self.assertEqual((producer.tail, producer.byte_tail), (1, 0))
        producer.record(tab, 4.0)
        self.assertEqual(values(self.drain(ring)), {"a": [4.0]})
        self.assertEqual(ring.covered, [Covered(ring.key, 2, 4, 6)])
        producer.commit(hole, tab, 0)
        self.assertEqual(values(self.drain(ring)), {"a": [0.0]})
        self.assertEqual((producer.tail, producer.byte_tail, ring.covered), (4, 6, []))
        self.assertEqual(self.drain(ring).readings, [])

    def test_a_ring_that_a_hole_has_filled_does_not_look_full_once_it_is_read(self) -> None:
        producer = self.producer()
        ring = self.open(producer)
        tab = producer.tab("a")
        producer.reserve()
        for number in range(producer.where.records - 1):
            producer.record(tab, float(number))
        scratch, records = Scratch(), producer.where.records
        self.assertEqual(ring.look(scratch)[:2], (records, records))
        self.assertEqual(self.drain(ring).found, records - 1)
        self.assertEqual(ring.look(scratch)[:2], (0, 0))

    def test_of_one_producer_the_last_record_is_found_wherever_it_is(self) -> None:
        producer = self.producer(size=2**17, flags=layouts.ACCELERATED)
        ring, tab, records = self.open(producer), producer.tab("a"), producer.where.records
        for count in (0, 1, 255, 256, 257, 511, 512, 513, 1000, 2049, records - 1, records, records):
            producer.record_many(tab, [1.0] * count)
            self.assertEqual((self.drain(ring).found, producer.tail), (count, producer.head))
        producer.record_many(tab, [1.0] * 3000)
        self.assertEqual([self.drain(ring, events=700).found for _ in range(5)], [700, 700, 700, 700, 200])

    def test_who_says_to_be_one_producer_and_is_not_is_read_as_all_others(self) -> None:
        for hole in (0, 5, 300, 700):
            producer = self.producer(f"web/{hole}", size=2**17, flags=layouts.ACCELERATED)
            ring, tab = self.open(producer), producer.tab("a")
            producer.record_many(tab, [1.0] * hole)
            position = producer.reserve()
            producer.record_many(tab, [1.0] * (1000 - hole))
            self.assertEqual((self.drain(ring).found, ring.tail), (1000, hole))
            producer.commit(position, tab, 0)
            self.assertEqual((self.drain(ring).found, ring.tail), (1, 1001))

    def test_a_look_tells_how_full_records_and_bytes_are_whatever_was_read_and_moved(self) -> None:
        producer = self.producer()
        ring, scratch, chance = self.open(producer), Scratch(), Random(1)
        a, b = producer.tab("a"), producer.tab("b", "Buffer")
        where = producer.where
        for _ in range(2000):
            if chance.random() < 0.02:
                self.drain(ring)
            elif producer.head - producer.tail < where.records - 20 and producer.byte_head - producer.byte_tail < 6000:
                for _ in range(chance.randrange(20)):
                    producer.record(a, 1.0)
                if chance.random() < 0.5:
                    producer.record(b, "x" * chance.randrange(800))
            fill = ring.look(scratch)
            self.assertEqual((fill.records, fill.record_room), (producer.head - producer.tail, where.records))
            self.assertEqual((fill.bytes, fill.byte_room), (producer.byte_head - producer.byte_tail, where.byte_ring_bytes))
            self.assertEqual((fill.head, fill.byte_head), (producer.head, producer.byte_head))

    def test_a_look_that_finds_few_new_floats_takes_no_arrays_and_one_that_finds_a_hole_sees_what_is_behind(self) -> None:
        producer = self.producer()
        ring, scratch, tab = self.open(producer), Scratch(), producer.tab("a")
        with mock.patch("taba.agent.search.np.frombuffer", side_effect=AssertionError):
            for few in (1, 7, 20, 3):
                producer.record_many(tab, [1.0] * few)
                self.assertEqual(ring.look(scratch).records, producer.head)
        for few, more in ((3, 1), (30, 10), (39, 3), (0, 5)):
            producer.record_many(tab, [1.0] * few)
            producer.reserve()
            producer.record_many(tab, [1.0] * more)
            self.assertEqual(ring.look(scratch).records, producer.head)
            self.assertEqual(ring.look(scratch).records, producer.head)

    def test_beyond_the_bound_of_holes_nothing_past_the_next_is_read_until_one_is_filled(self) -> None:
        producer = self.producer()
        ring = self.open(producer)
        tab = producer.tab("a")
        holes = []
        for number in range(MAX_COVERED + 5):
            holes.append(producer.reserve())
            producer.record(tab, float(number))
        found = values(self.drain(ring))["a"]
        self.assertEqual(len(found), MAX_COVERED)
        self.assertEqual((self.drain(ring).readings, len(ring.covered)), ([], MAX_COVERED))
        for hole in reversed(holes):
            producer.commit(hole, tab, 0, layouts.FLAG_SKIP)
            found += values(self.drain(ring)).get("a", [])
        self.assertEqual(sorted(found), [float(number) for number in range(MAX_COVERED + 5)])
        self.assertEqual(producer.tail, producer.head)

    def test_a_dead_ring_is_read_whole_whatever_its_holes(self) -> None:
        producer = self.producer()
        ring = self.open(producer)
        tab = producer.tab("a")
        for _ in range(1000):
            producer.reserve()
        producer.record(tab, 1.0)
        self.assertEqual(self.drain(ring).readings, [])
        self.assertEqual(values(self.drain(ring, dead=True)), {"a": [1.0]})

    def test_a_dead_ring_is_looked_through_to_its_end_once_and_what_it_has_is_all_read(self) -> None:
        producer = self.producer()
        ring = self.open(producer)
        producer.record(producer.tab("a"), 7.0)
        looked: list[int] = []
        look = ring._look

        def counted(scratch: Any, position: int, stop: int, *rest: Any) -> int:
            looked.append(stop - position)
            return look(scratch, position, stop, *rest)

        self.patch(ring, "_look", counted)
        scratch = Scratch()
        for limit, found in ((0, []), (1, [(0, 1)]), (9, [(0, 1)]), (9, [(0, 1)])):
            runs, _ = ring._find_runs(scratch, limit, True)
            self.assertEqual(runs, found)
        self.assertEqual(looked, [ring.where.records] * 3 + [1])
        ring._find_runs(scratch, 9, False)  # it lives: another look says so
        self.assertEqual(looked[-1], ring.where.records)

    def test_a_dead_ring_with_more_holes_than_a_table_names_is_read_whole_too(self) -> None:
        for read_before in (False, True):
            producer = self.producer()
            ring = self.open(producer)
            tab = producer.tab("a")
            expected: list[Any] = []
            for number in range(4 * MAX_COVERED):
                producer.reserve()
                expected += [float(number), f"text {number}"]
                producer.record(tab, expected[-2])
                producer.record(tab, expected[-1])
            found: list[Any] = []
            if read_before:  # while it lived
                found += values(self.drain(ring))["a"]
                self.assertEqual(len(ring.covered), MAX_COVERED)
            ranges = 0
            while (drained := self.drain(ring, dead=True, events=50)).readings:
                found += values(drained)["a"]
                ranges = max(ranges, len(drained.readings[0][1].ranges))
            self.assertEqual(sorted(map(str, found)), sorted(map(str, expected)))
            self.assertEqual((producer.tail, producer.byte_tail), (producer.head, producer.byte_head))
            self.assertEqual((ring.covered, ranges), ([], 1))

    @given(
        runs=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 60)), max_size=12),
        lived=st.integers(0, 8),
        finds=st.integers(1, 900),
        is_native=st.booleans(),
    )
    @examples(15)
    def test_of_a_dead_ring_one_drain_looks_through_a_part_and_all_of_it_is_read_in_the_end(
        self, runs: list[tuple[int, int]], lived: int, finds: int, is_native: bool
    ) -> None:
        self.patch(draining, "FINDS", finds)
        producer = self.producer()
        ring = self.open(producer)
        drain = Drain(8) if is_native else Drain(8, native=None)
        tab, expected, found, looked = producer.tab("a"), list[float](), list[float](), 0
        for number, (hole, records) in enumerate(runs):
            if number == lived:  # until now it was read while its process lived: ranges behind holes are covered
                drained = drain.run([(ring, False)])
                for _, reading in drained.readings:
                    ring.settle(reading)
                found += values(drained).get("a", [])
            hole, records = (min(count, ring.where.records - producer.head) for count in (hole, records))
            producer.head += hole
            records = min(records, ring.where.records - producer.head)
            for _ in range(records):
                expected.append(float(len(expected)))
                producer.record(tab, expected[-1])
        pread, steps = ring._pread_into, [0]

        def counted(view: memoryview, offset: int) -> None:
            steps[0] += len(view) // layouts.RECORD_BYTES
            pread(view, offset)

        self.patch(ring, "_pread_into", counted)
        while True:
            steps[0], looked = 0, looked + 1
            self.assertLess(looked, 100)
            drained = drain.run([(ring, True)])
            for _, reading in drained.readings:
                ring.settle(reading)
            now = values(drained).get("a", [])
            found += now
            # what is read is read twice, and of the last chunk, which is no larger than the fifth, it does not know before
            self.assertLess(steps[0], finds + 2 * len(now) + MAX_CHUNK)
            if drained.empty:
                break
            self.assertTrue(drained.readings)  # it is not to be taken for one that is empty
        self.assertEqual(sorted(found), expected)
        self.assertFalse(drained.is_cut)

    def test_a_look_looks_at_so_many_records_and_says_that_there_are_more(self) -> None:
        self.patch(search, "LOOKED_RECORDS", 300)
        producer = self.producer(size=1 << 20)
        ring, scratch = self.open(producer), Scratch()
        tab = producer.tab("a")
        for number in range(4000):
            producer.record(tab, float(number))
        found = []
        for _ in range(4):
            fill = ring.look(scratch)
            found.append((fill.records, fill.waiting, fill.is_cut))
        room = ring.where.records
        self.assertEqual(found[0], (found[0][0], room, True))
        self.assertTrue(300 <= found[0][0] < 4000, found)
        self.assertEqual(found[-1], (4000, 4000, False))
        scratch.looks = 0  # others have had all
        other = self.open(producer)
        self.assertEqual((other.look(scratch).records, other.look(scratch).is_cut), (0, True))

    def test_one_drain_takes_so_many_values_that_are_no_floats(self) -> None:
        self.patch(draining, "MAX_DRAIN_VALUES", 10)
        producers = [self.producer(), self.producer()]
        rings = [self.open(producer) for producer in producers]
        for producer in producers:
            tab = producer.tab("a")
            for number in range(15):
                producer.record(tab, f"text {number}")
                producer.record(tab, float(number))
        drain, found = Drain(8), []
        while True:
            drained = drain.run([(ring, False) for ring in rings])
            for ring, reading in drained.readings:
                ring.settle(reading)
            texts = sum(isinstance(value, str) for its in values(drained).values() for value in its)
            if not drained.readings:
                break
            found.append((texts, drained.is_cut))
        self.assertTrue(all(texts <= 10 for texts, _ in found), found)
        self.assertEqual(sum(texts for texts, _ in found), 30)
        self.assertEqual([is_cut for _, is_cut in found], [True] * (len(found) - 1) + [False])
        self.assertTrue(all(producer.tail == producer.head for producer in producers))

    def test_one_drain_takes_so_many_columns(self) -> None:
        self.patch(draining, "MAX_DRAIN_COLUMNS", 100)
        self.patch(draining, "MIN_SHARE", 10)
        producers = [self.producer(f"web/{number}", 1 << 20) for number in range(3)]
        rings = [self.open(producer) for producer in producers]
        for producer in producers:
            for number in range(250):
                producer.record(producer.tab(f"tab{number}"), 1.0)
            for _ in range(500):  # of one Tab there may be more
                producer.record(0, 1.0)
        for is_native in (True, False):
            drain, most = Drain(8) if is_native else Drain(8, native=None), 0
            for ring in rings:
                ring.names.read()
            while not all(producer.tail == producer.head for producer in producers):
                drained = drain.run([(ring, False) for ring in rings])
                for ring, reading in drained.readings:
                    ring.settle(reading)
                most = max(most, sum(len(tally.counts) for tally in drained.tallies))
            if is_native:
                self.assertTrue(100 <= most < 120, most)
                for producer in producers:
                    for number in range(250):
                        producer.record(producer.tab(f"tab{number}"), 1.0)

    def test_ranges_of_an_earlier_agents_table_are_never_read_again(self) -> None:
        producer = self.producer()
        ring = self.open(producer)
        tab = producer.tab("a")
        for number in range(10):
            producer.record(tab, float(number))
        producer.record(tab, "bytes")
        drained = Drain(8).run([(ring, False)])
        table = [covered for _, reading in drained.readings for covered in reading.ranges]  # published; killed before the tail moved
        self.assertEqual(producer.tail, 0)
        again = self.open(producer, [*table, Covered(b"another ring....", 0, 99, 0)])
        self.assertEqual((producer.tail, producer.byte_tail), (11, 6))
        producer.record(tab, 11.0)
        self.assertEqual(values(self.drain(again)), {"a": [11.0]})

    def test_a_limit_cuts_and_the_rest_comes_next(self) -> None:
        producer = self.producer()
        ring = self.open(producer)
        tab = producer.tab("a")
        for number in range(700):
            producer.record(tab, float(number))
        first = self.drain(ring, events=300)
        self.assertTrue(first.is_cut)
        rest = self.drain(ring)
        self.assertEqual(values(first)["a"] + values(rest)["a"], [float(number) for number in range(700)])

    def test_values_that_are_none_are_counted_and_harm_no_other(self) -> None:
        producer = self.producer()
        ring = self.open(producer)
        tab = producer.tab("a")
        bad = [b"\xc1", b"\x92\x01", b"\x01\x01", b"\xd4\x00\x00", b"\xa2\xff\xfe", b"", b"\x81\x90\x01"]
        bad.append(b"\x91" * (MAX_VALUE_DEPTH + 1) + b"\x01")
        for content in bad:
            producer.commit(producer.reserve(), tab, producer.put_bytes(content), layouts.FLAG_BYTES)
        producer.record(tab, "good")
        producer.commit(producer.reserve(), tab, layouts.value_word(1 << 20, producer.byte_head), layouts.FLAG_BYTES)
        producer.commit(producer.reserve(), 999, 0)
        producer.record(tab, 2.0)
        drained = self.drain(ring)
        self.assertEqual(values(drained), {"a": ["good", 2.0]})
        self.assertEqual((drained.malformed, drained.found), (len(bad) + 2, len(bad) + 4))
        self.assertEqual(producer.tail, producer.head)

    def test_nesting_at_the_bound_is_a_value(self) -> None:
        unpack_counted(b"\x91" * MAX_VALUE_DEPTH + b"\x01")
        self.assertRaises(ValueError, unpack_counted, b"\x91" * (MAX_VALUE_DEPTH + 1) + b"\x01")

    def test_a_truncated_segment_is_isolated(self) -> None:
        producer = self.producer()
        ring = self.open(producer)
        for _ in range(10):
            producer.record(producer.tab("a"), 1.0)
        os.truncate(producer.path, 5000)
        self.assertEqual([found for found, _ in self.drain(ring).broken], [ring])

    @given(
        st.lists(st.tuples(st.integers(0, 65_535), st.binary(min_size=1, max_size=32)), max_size=30),
        st.lists(st.tuples(st.integers(0, 2**24 - 1), st.integers(0, 255), st.integers(0, 2**64 - 1)), max_size=30),
        st.booleans(),
    )
    @examples(300)
    def test_hostile_bytes_harm_nobody(self, patches: list[tuple[int, bytes]], records: list[tuple[int, int, int]], dead: bool) -> None:
        producer = Producer(AGENT, "web/1", 65_536, self.directory)
        other = Producer(AGENT, "web/1", 65_536, self.directory)
        try:
            for place in range(4):
                producer.record(producer.tab(f"tab{place}"), [1.0, "text", [1], 2.0][place])
            other.record(other.tab("good"), 5.0)
            rings = [Ring(os.open(one.path, os.O_RDWR), one.name) for one in (producer, other)]
            self.opened += rings
            for tab, flags, word in records:
                producer.commit(producer.reserve(), tab, word, flags)
            for offset, content in patches:
                os.pwrite(producer.fd, content[: 65_536 - offset], offset)
            for _ in range(3):
                drained = Drain(8).run([(ring, dead) for ring in rings])
                for ring, reading in drained.readings:
                    ring.settle(reading)
            # and found anew, as after a restart
            try:
                fd = os.open(producer.path, os.O_RDWR)
                fresh = Ring(fd, producer.name)
            except MalformedRing:
                os.close(fd)
            else:
                self.opened.append(fresh)
                Drain(8).run([(fresh, dead)])
            self.assertEqual((other.tail, rings[1].recorded), (1, 1))
        finally:
            producer.remove()
            other.remove()
            for ring in self.opened:
                ring.close()
            self.opened.clear()

    @given(st.recursive(st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(), st.lists))
    @examples(100)
    def test_any_value_comes_back_as_it_was(self, value: Any) -> None:
        self.assertEqual(unpack_counted(msgpack.packb(value)), value)


class DiscoverTests(Case):
    def test_rings_of_this_agent_alone_are_found_and_what_is_none_is_told_once(self) -> None:
        producer = self.producer()
        stranger = Producer("other", "web/1", 65_536, self.directory)
        self.addCleanup(stranger.remove)
        bad = os.path.join(self.directory, layouts.segment_name(AGENT, os.urandom(8)))
        self.addCleanup(os.unlink, bad)
        with open(bad, "wb") as file:
            file.write(b"x" * 70_000)
        rings = Rings(AGENT, self.directory)
        self.opened += rings.scan((), 1e10)
        self.assertEqual(list(rings.open), [producer.name])
        self.assertEqual(list(rings.problems), [os.path.basename(bad)])
        self.assertEqual(rings.scan((), 1e10), [])

    def test_a_ring_that_is_being_made_is_left_alone_and_one_whose_maker_died_is_removed(self) -> None:
        path = os.path.join(self.directory, layouts.segment_name(AGENT, os.urandom(8)))
        with open(path, "wb") as file:
            file.write(bytes(65_536))
            os.fchmod(file.fileno(), 0o600)
            made = os.fstat(file.fileno()).st_ctime
        rings = Rings(AGENT, self.directory)
        rings.scan((), made + 1.0)
        self.assertTrue(os.path.exists(path))
        rings.scan((), made + 10.0)
        self.assertFalse(os.path.exists(path))
        self.assertEqual(rings.problems, {})

    def test_a_ring_for_which_there_was_no_descriptor_is_read_once_there_is_one(self) -> None:
        producers = [self.producer(f"web/{number}") for number in range(2)]
        rings = Rings(AGENT, self.directory)
        refusing, real = True, os.open

        def open(path: str, flags: int, *mode: int) -> int:
            if refusing and path == producers[0].path:
                raise OSError(errno.EMFILE, "Too many open files")
            return real(path, flags, *mode)

        self.patch(os, "open", open)
        self.opened += rings.scan((), 1.0)
        self.assertEqual((list(rings.open), list(rings.problems)), ([producers[1].name], [producers[0].name]))
        refusing = False
        self.opened += rings.scan((), 2.0)
        self.assertEqual((set(rings.open), rings.problems), ({producer.name for producer in producers}, {}))

    def test_a_ring_too_many_is_read_once_there_is_a_place(self) -> None:
        self.patch(discover, "MAX_RINGS", 1)
        producers = [self.producer(f"web/{number}") for number in range(2)]
        rings = Rings(AGENT, self.directory)
        self.opened += rings.scan((), 1.0)
        (first,) = rings.open
        rings.remove(rings.open[first])
        self.opened = rings.scan((), 2.0)
        self.assertEqual((set(rings.open), rings.problems), ({producer.name for producer in producers} - {first}, {}))


def test_a_symlink_is_no_ring() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        os.symlink("/etc/passwd", os.path.join(directory, layouts.segment_name(AGENT, bytes(8))))
        rings = Rings(AGENT, directory)
        assert rings.scan((), 1.0) == [] and len(rings.problems) == 1


def test_the_scratch_grows_to_what_is_read() -> None:
    assert len(Scratch().fit(100_000)) == 100_000 * 24
    assert struct.calcsize("<dQQ") == 24
