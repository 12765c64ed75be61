"""How full all rings are, seen in one go: the same as each ring sees itself, whatever is in it."""

from __future__ import annotations

import os
from random import Random
from typing import Any
from unittest import mock

import numpy as np

from taba.agent import looks as looks_module
from taba.agent.looks import HOLDS, Looks
from taba.agent.native import NATIVE
from taba.agent.reader import Ring
from taba.agent.scratch import LOOKS, Scratch
from taba.agent.search import FIRST_CHUNK, LOOKED_RECORDS
from taba.ring import ACCELERATED
from tests.agent.producers import Producer
from tests.agent.reading import Case

WAYS = (None, NATIVE) if NATIVE is not None else (None,)

RING = 2**17  # bytes: room for some thousand records


class LookingTests(Case):
    def seen(self, looks: Looks, rings: list[Ring]) -> list[list[int]]:
        self.assertEqual(looks.look(rings), [])
        found: list[list[int]] = looks._fills.tolist()
        self.assertEqual(looks.has_records, any(records for records, *_ in found))
        return found

    def fill_of(self, producer: Producer) -> list[int]:
        where = producer.where
        waiting = producer.head - producer.tail, where.records, producer.byte_head - producer.byte_tail, where.byte_ring_bytes
        return [*waiting, producer.head, producer.byte_head, 0]

    def test_all_rings_are_seen_as_they_are_over_many_laps(self) -> None:
        for native in WAYS:
            looks, chance = Looks(Scratch(), native), Random(1)
            producers = [self.producer(f"web/{number}") for number in range(5)]
            rings = [self.open(producer) for producer in producers]
            tabs = [(producer.tab("a"), producer.tab("b", "Buffer")) for producer in producers]
            for _ in range(1500):
                place = chance.randrange(5)
                producer, (plain, boxed) = producers[place], tabs[place]
                if chance.random() < 0.02:
                    self.drain(*chance.sample(rings, 3))
                elif producer.head - producer.tail < producer.where.records - 80 and producer.byte_head - producer.byte_tail < 6000:
                    producer.record_many(plain, [1.0] * chance.choice((0, 1, 5, 40, 47, 70)))
                    if chance.random() < 0.5:
                        producer.record(boxed, "x" * chance.randrange(800))
                self.assertEqual(self.seen(looks, rings), [self.fill_of(producer) for producer in producers])

    def test_holes_are_seen_past_and_a_full_ring_is_full(self) -> None:
        for native in WAYS:
            for few, more in ((3, 1), (30, 10), (39, 3), (0, 5), (297, 2), (300, 5), (303, 9)):  # a look reads 48, then 256 each time
                looks, producer = Looks(Scratch(), native), self.producer("web/1", RING)
                ring, tab = self.open(producer), producer.tab("a")
                producer.record_many(tab, [1.0] * few)
                hole = producer.reserve()
                producer.record_many(tab, [1.0] * more)
                self.assertEqual(self.seen(looks, [ring])[0][0], producer.head)
                self.drain(ring)
                self.assertEqual(self.seen(looks, [ring]), [list(ring.look(Scratch()))])
                producer.commit(hole, tab, 0)
                self.drain(ring)
                producer.record_many(tab, [1.0] * producer.where.records)
                for _ in range(2):
                    self.assertEqual(self.seen(looks, [ring]), [self.fill_of(producer)])
                    self.assertEqual(looks.waiting, [producer.where.records])

    def test_of_a_ring_in_which_nothing_was_new_less_is_read_first_and_all_is_seen(self) -> None:
        if NATIVE is None:
            return
        for many in (0, 1, 7, 8, 9, 47, 48, 49, 57, 300, 2500):
            producer = self.producer("web/1", RING)
            ring, tab = self.open(producer), producer.tab("a")
            producer.record_many(tab, [1.0] * many)
            asked, answers = np.array([ring.place_to_look], np.int64), []
            for hint in (0, 1, -1):
                seen = np.array([[hint, 5, 5]], np.int64)
                NATIVE.glance(asked, seen, 0)
                answers.append(seen.tolist())
            self.assertEqual(answers, [[[many, 0, 0]]] * 3)
        looks, producer = Looks(Scratch()), self.producer("web/2", RING)
        ring = self.open(producer)
        self.seen(looks, [ring])
        with mock.patch.object(looks, "_native") as native:
            native.glance.return_value = 0
            looks.look([ring])
        self.assertEqual(native.glance.call_args.args[1][0, 0], 0)  # it is told that nothing was new

    def test_what_is_plain_no_ring_looks_at_itself(self) -> None:
        if NATIVE is None:
            return
        producers = [self.producer(f"web/{number}") for number in range(3)]
        rings, looks = [self.open(producer) for producer in producers], Looks(Scratch())
        with mock.patch.object(Ring, "look", side_effect=AssertionError):
            for number in range(40):
                producers[0].record_many(producers[0].tab(f"a{number}"), [1.0] * 20)
                producers[1].record(producers[1].tab("b"), "text")
                seen = self.seen(looks, rings)
                self.assertEqual([fill[0] for fill in seen], [20 * number + 20, number + 1, 0])
                self.assertTrue(looks.has_records)
            many = self.producer("web/many", RING)
            rings.append(self.open(many))
            for number in range(1, 5):
                many.record_many(many.tab("c"), [1.0] * (200 * number))
                self.assertEqual(self.seen(looks, rings)[-1], self.fill_of(many))

    def test_some_hundred_records_in_each_of_hundreds_of_rings_are_all_seen_by_one_look(self) -> None:
        self.patch(looks_module, "LOOKS", LOOKS * 4 // 300)
        looks, producers = Looks(Scratch()), [self.producer(f"web/{number}") for number in range(4)]
        for producer in producers:
            producer.record_many(producer.tab("a"), [1.0] * 400)
        rings = [self.open(producer) for producer in producers]
        self.assertEqual(self.seen(looks, rings), [self.fill_of(producer) for producer in producers])
        self.assertFalse(looks.is_filling(1, 0.0))

    def test_what_many_record_at_once_is_looked_through_in_c_and_of_more_than_a_look_takes_the_next_one_goes_on(self) -> None:
        if NATIVE is None:
            return
        looks, chance = Looks(Scratch()), Random(2)
        producers = [self.producer(f"web/{number}", 2**23) for number in range(2)]
        rings = [self.open(producer) for producer in producers]
        records = producers[0].where.records
        with mock.patch.object(Ring, "look", side_effect=AssertionError):
            self.seen(looks, rings)
            for events in (30_000, LOOKED_RECORDS + 9_000, 100):
                producers[0].record_many(producers[0].tab("a"), [1.0] * events)
                producers[1].record(producers[1].tab("b", "Buffer"), "x" * chance.randrange(90))
                filled, other = self.seen(looks, rings)
                if events > LOOKED_RECORDS:  # there is more than it says, and it is drained at once
                    self.assertEqual((filled[-1], looks.waiting[0], looks.is_filling(1, 0.0)), (1, records, True))
                    self.assertLess(filled[0], producers[0].head)
                    filled, other = self.seen(looks, rings)
                self.assertEqual([filled, other], [self.fill_of(producer) for producer in producers])
        self.drain(*rings)
        self.assertEqual(self.seen(looks, rings), [self.fill_of(producer) for producer in producers])

    def test_of_a_ring_that_is_to_be_drained_at_once_nobody_counts_the_records_but_whoever_reads_them(self) -> None:
        if NATIVE is None:
            return
        looks, producers = Looks(Scratch()), [self.producer(f"web/{number}", RING, flags=ACCELERATED) for number in range(2)]
        rings, records = [self.open(producer) for producer in producers], producers[0].where.records
        self.seen(looks, rings)
        much, few = producers
        read = 0
        for events in (records // 4 - 1, records // 4, records // 2 + 7, records):
            much.record_many(much.tab("a"), [1.0] * events)
            few.record(few.tab("b", "Buffer"), "text")
            with mock.patch.object(Ring, "look", side_effect=AssertionError):
                self.assertEqual(looks.look(rings, 4), [])
            is_much = events >= records // 4
            self.assertEqual((looks.is_filling(4, 0.0), looks.waiting[1]), (is_much, 1))
            self.assertTrue(events - is_much * FIRST_CHUNK <= looks.waiting[0] <= events)
            self.assertTrue(looks.waiting[0] >= records // 4 or not is_much)
            read += self.drain(*rings).found
            self.assertEqual(self.seen(looks, rings), [self.fill_of(producer) for producer in producers])
        self.assertEqual(read, much.head + few.head)

    def test_a_ring_that_says_in_vain_that_its_records_are_in_order_is_read_whole_for_all_that(self) -> None:
        looks, producer = Looks(Scratch()), self.producer("web/1", RING, flags=ACCELERATED)
        ring, tab, records = self.open(producer), producer.tab("a"), producer.where.records
        producer.record_many(tab, [1.0] * 400)
        hole = producer.reserve()
        producer.record_many(tab, [1.0] * (records // 2))
        self.assertEqual(looks.look([ring], 4), [])
        self.assertTrue(looks.is_filling(4, 0.0))
        self.assertEqual((self.drain(ring).found, ring.is_ordered), (400 + records // 2, False))
        producer.commit(hole, tab, 0)
        producer.record_many(tab, [1.0] * (records // 2 - 401))
        self.assertEqual(looks.look([ring], 4), [])
        self.assertEqual(self.drain(ring).found, 1 + records // 2 - 401)
        self.assertEqual(ring.tail, producer.head)

    def test_of_a_ring_that_turns_out_to_be_none_it_is_told_and_of_others_all_the_same(self) -> None:
        for native in WAYS:
            looks = Looks(Scratch(), native)
            producers = [self.producer(f"web/{number}") for number in range(3)]
            rings = [self.open(producer) for producer in producers]
            self.seen(looks, rings)
            for producer in producers:
                producer.record_many(producer.tab("a"), [1.0] * 5)
            os.truncate(producers[1].path, 4096)
            self.assertEqual(looks.look(rings), [(rings[1], "truncated")])
            self.assertEqual(looks.waiting, [5, 0, 5])
            del rings[1]
            self.assertEqual([fill[0] for fill in self.seen(looks, rings)], [5, 5])

    def test_a_ring_is_filling_by_what_is_in_it_or_by_how_fast_that_grows(self) -> None:
        for native in WAYS:
            looks, producer, other = Looks(Scratch(), native), self.producer(), self.producer("web/2")
            tab, rings = producer.tab("a"), [self.open(other), self.open(producer)]
            records = producer.where.records
            self.assertFalse(looks.has_records and looks._rings)
            producer.record_many(tab, [1.0] * (records // 4 - 1))
            self.seen(looks, rings[1:])
            self.assertFalse(looks.is_filling(4, 100.0))  # for the first time: nobody knows how long it took
            producer.record_many(tab, [1.0])
            self.seen(looks, rings)  # with another one beside it
            self.assertTrue(looks.is_filling(4, 0.0))
            self.assertFalse(looks.is_filling(2, 1.0))
            producer.record_many(tab, [1.0] * 10)
            self.seen(looks, rings)
            needed = (HOLDS * records - records // 4 - 10) / 10
            self.assertEqual((looks.is_filling(2, needed - 1), looks.is_filling(2, needed + 1)), (False, True))
            self.seen(looks, rings)
            self.assertFalse(looks.is_filling(2, needed + 1))  # it grows no more

    def test_where_nothing_is_new_nothing_is_decided_anew(self) -> None:
        if NATIVE is None:
            return
        looks, producers = Looks(Scratch()), [self.producer(f"web/{number}") for number in range(3)]
        rings, tab = [self.open(producer) for producer in producers], producers[0].tab("a")
        producers[0].record_many(tab, [1.0] * 10)
        for _ in range(2):
            self.seen(looks, rings)
            self.assertFalse(looks.is_filling(4, 1.0))
        with mock.patch.object(np, "array", side_effect=AssertionError), mock.patch.object(looks, "_have_part") as decide:
            self.assertEqual((looks.look(rings), looks.is_filling(4, 1.0), looks.waiting), ([], False, [10, 0, 0]))
            decide.assert_not_called()
        producers[0].record_many(tab, [1.0] * (producers[0].where.records // 4))
        self.seen(looks, rings)
        self.assertTrue(looks.is_filling(4, 0.0))
        self.drain(*rings)
        self.seen(looks, rings)
        self.assertFalse(looks.is_filling(4, 0.0))

    def test_the_c_part_takes_nothing_on_trust(self) -> None:
        if NATIVE is None:
            return
        ring = self.open(self.producer())
        asked, seen = np.array([ring.place_to_look], np.int64), np.zeros((1, 3), np.int64)
        others = (asked, np.zeros((2, 3), np.int64)), (asked, np.zeros((1, 2), np.int64)), (asked[:, :7].copy(), seen)
        for wrong in (*others, (asked.astype(np.int32), seen), (asked,)):
            with self.assertRaises((TypeError, ValueError)):
                NATIVE.glance(*wrong, 4)
        for beside in ((), (4, 4), (2**70,), ("4",), (-1,), (257,)):
            with self.assertRaises((TypeError, OverflowError, ValueError)):
                NATIVE.glance(asked, seen, *beside)
        changes: list[tuple[int, int]] = [(0, -1), (1, 2**62), (1, -(2**62)), (2, 0), (2, 3), (2, -8), (3, -1)]
        for place, value in changes:
            hostile: Any = asked.copy()
            hostile[0, 4], hostile[0, place] = 2**62, value
            for part in (0, 4, 256):
                NATIVE.glance(hostile, seen, part)
                self.assertEqual(seen[0, 0], -1, (place, value))
