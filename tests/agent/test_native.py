"""The drain's C part beside numpy: equal bytes whatever is in a ring, and nothing that it takes on trust."""

from __future__ import annotations

import os
import struct
import zlib
from collections import Counter
from random import Random
from types import MappingProxyType
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SkipTest

from taba import ring as layouts
from taba.agent.drain import MAX_DRAIN_EVENTS, Drain
from taba.agent.edge import Edge
from taba.agent.encoding import WritingRoom, encode, unpack
from taba.agent.looks import Looks
from taba.agent.native import NATIVE
from taba.agent.outbox import EncodedBatch, Outbox, StoredBatch, Table
from taba.agent.scratch import Scratch
from taba.agent.search import FIRST_CHUNK
from taba.batch import BatchId, Meaning, Section, pack_bin
from taba.bounds import MAX_BATCH_COLUMNS
from taba.handlers.lookup import find_edges
from taba.ring import MalformedRing
from tests.agent.moments import at
from tests.agent.outboxes import formatted
from tests.agent.reading import Case
from tests.examples import examples

HANDLERS = find_edges()
U32, I64 = np.uint32, np.int64
NOTHING: MappingProxyType[int, Any] = MappingProxyType({})


class Native(Case):
    def setUp(self) -> None:
        if NATIVE is None:
            raise SkipTest("needs the Agent's C part: gcc when Taba is installed")
        super().setUp()

    def given(self, paths: list[str], native: Any, is_folding: bool, dead: bool, limits: list[int]) -> Any:
        """All that drains of these rings give, one after the other, until nothing is left or one turns out to be none."""
        from taba.agent.reader import Ring

        rings = [Ring(os.open(path, os.O_RDWR), os.path.basename(path)) for path in paths]
        self.opened += rings
        edge = Edge(HANDLERS, 2)
        edge.allow(edge.edges if is_folding else ())
        drain = Drain(4, edge, native)
        found: list[Any] = []
        for limit in limits:
            drained = drain.run([(ring, dead) for ring in rings], limit)
            batches = [batch.content for batch in encode(drained.packed, b"s" * 16, {}, at(1.0), native=native)]
            tallies = [[np.array(column).tolist() for column in one[1:5]] for one in drained.tallies]
            ranges = [reading.ranges for _, reading in drained.readings]
            said = drained.found, drained.malformed, drained.refused, drained.lost, drained.taken, drained.is_cut
            found.append((batches, tallies, ranges, said, [(ring.name, reason) for ring, reason in drained.broken]))
            for ring, reading in drained.readings:
                ring.settle(reading)
            rings = [ring for ring in rings if ring not in [other for other, _ in drained.broken]]
            found.append([(ring.tail, ring.byte_tail, ring.covered) for ring in rings])
        return found


class RingsTests(Native):
    """The same bytes in two rings, one read with the C part and one without."""

    @given(
        st.integers(0, 2**32),
        st.lists(
            st.tuples(st.integers(0, 900), st.sampled_from(("plain", "holes", "values", "flags", "strange", "noise"))),
            min_size=1,
            max_size=3,
        ),
        st.booleans(),
        st.booleans(),
        st.lists(st.sampled_from((1, 7, 200, 1 << 20)), min_size=1, max_size=3),
    )
    @examples(40)
    def test_whatever_is_in_rings_gives_equal_bytes(
        self, seed: int, shapes: list[tuple[int, str]], is_folding: bool, dead: bool, limits: list[int]
    ) -> None:
        paths = self.twice(Random(seed), shapes)
        with_c = self.given(paths[0], NATIVE, is_folding, dead, limits)
        self.assertEqual(repr(with_c), repr(self.given(paths[1], None, is_folding, dead, limits)))  # NaN is not equal to itself

    @given(
        st.integers(0, 2**32),
        st.lists(st.tuples(st.integers(0, 90), st.sampled_from(("plain", "holes", "values", "flags", "strange", "noise"))), max_size=8),
        st.sampled_from((7, 200, 1 << 20)),
    )
    @examples(40)
    def test_rings_that_are_read_together_give_what_each_gives_by_itself(
        self, seed: int, shapes: list[tuple[int, str]], limit: int
    ) -> None:
        paths = self.twice(Random(seed), [(5, "plain")] * 3 + shapes)
        together, apart = Calls(NATIVE), Calls(NATIVE)
        found = self.all_of(paths[0], together, limit, is_fresh=True)
        self.assertEqual(repr(found), repr(self.all_of(paths[1], apart, limit, is_fresh=False)))
        self.assertEqual((together.of["gather"] > 0, apart.of["gather"]), (True, 0))

    def all_of(self, paths: list[str], native: Calls, limit: int, is_fresh: bool) -> Any:
        """All events of these rings, by column, and what else drains tell of them."""
        from taba.agent.reader import Ring

        rings = [Ring(os.open(path, os.O_RDWR), os.path.basename(path)) for path in paths]
        self.opened += rings
        drain, looks = Drain(4, native=native), Looks(Scratch())
        columns: dict[tuple[str, str, str], list[Any]] = {}
        told: Counter[Any] = Counter()
        for ring in rings:
            ring.names.read(5)
        for _ in range(1000):
            looks.look(rings)
            drained = drain.run([(ring, False) for ring in rings], limit, is_fresh=is_fresh)
            for column in (column for sections in drained.packed.values() for column in unpack(sections)):
                its = column.values
                assert isinstance(its, (bytes, list))
                floats = np.frombuffer(its).tolist() if isinstance(its, bytes) else its
                key = column.client, column.tab, column.type
                columns.setdefault(key, []).extend(zip(np.frombuffer(column.times).tolist(), floats, strict=True))
            told.update({"found": drained.found, "malformed": drained.malformed, "refused": drained.refused})
            told.update({(client, reason): count for client, lost in drained.lost.items() for reason, count in lost.items()})
            if limit > MAX_DRAIN_EVENTS:  # a Tab counts again in each drain that has a part of its events
                told.update(drained.taken)
            for ring, reading in drained.readings:
                ring.settle(reading)
            for ring, reason in drained.broken:
                told[ring.name, reason] += 1
                rings.remove(ring)
            if not drained.is_cut:
                break
        return sorted(columns.items()), sorted(told.items(), key=repr), [(ring.tail, ring.byte_tail, ring.covered) for ring in rings]

    def twice(self, chance: Random, shapes: list[tuple[int, str]]) -> list[list[str]]:
        """The paths of rings of these events and kinds, and of others that have the same in them."""
        paths: list[list[str]] = [[], []]
        for number, (events, kind) in enumerate(shapes):
            producer = self.producer(f"web/{number}", flags=chance.choice((0, layouts.ACCELERATED)))
            tabs = [producer.tab(f"t{place}", chance.choice(("CounterGroup", "Buffer", "PercentileGroup"))) for place in range(5)]
            tail = chance.choice((0, producer.where.records - events // 2, 5 * producer.where.records - 3))
            os.pwrite(producer.fd, struct.pack("<Q", tail), layouts.TAIL_OFFSET)
            producer.head = tail
            for _ in range(events):
                odd = chance.random() < 0.1
                tab = chance.randrange(1 << 24) if kind == "strange" and odd else chance.choice(tabs)
                time, value = 1000.0 + chance.random() * 30, chance.choice((0.0, 1.5, -2.5, 1e300, float("nan")))
                if kind == "flags" and odd:
                    producer.commit(producer.reserve(), tab, chance.getrandbits(64), chance.randrange(4), time)
                elif kind in ("flags", "values") and chance.random() < 0.1:
                    producer.record(tab, chance.choice(("x", None, [1, 2])), time)
                elif kind == "holes" and odd:
                    producer.reserve()
                else:
                    producer.record(tab, value, time)
            if kind == "noise":
                for _ in range(5):
                    at_byte = producer.where.record_offset + chance.randrange(producer.where.records * layouts.RECORD_BYTES - 64)
                    os.pwrite(producer.fd, chance.randbytes(chance.randrange(64)), at_byte)
            unique = os.urandom(8)
            for place in range(2):
                folder = os.path.join(self.directory, f"{place}")
                os.makedirs(folder, exist_ok=True)
                path = os.path.join(folder, layouts.segment_name("reading", unique))
                with open(producer.path, "rb") as made, open(path, "wb") as copy:
                    copy.write(made.read())
                paths[place].append(path)
        return paths


class Calls:
    """The C part, and how often what of it is called."""

    def __init__(self, native: Any):
        self._native = native
        self.of: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        self.of[name] += 1
        return getattr(self._native, name)


class ArgumentsTests(Native):
    """What it is given is checked, every size and every number."""

    def records(self, *tabs: int, lap: int = 7) -> bytes:
        return b"".join(struct.pack("<dQII", 1.0 + place, place, tab, lap) for place, tab in enumerate(tabs))

    def test_laps_lead_to_the_first_that_is_another(self) -> None:
        for laps, found in (((), (0, 0)), ((7, 7), (2, 2)), ((7, 6), (1, 1)), ((6, 7, 6), (0, 2)), ((6,), (0, 0))):
            content = b"".join(self.records(0, lap=lap) for lap in laps)
            self.assertEqual(NATIVE.leading(content, 7), found)
        self.assertRaises(ValueError, NATIVE.leading, bytes(25), 7)
        self.assertRaises(TypeError, NATIVE.leading, bytes(24), "7")
        self.assertRaises(TypeError, NATIVE.leading, bytes(24))

    def test_tabs_are_counted_and_what_is_not_plain_is_said_to_be_so(self) -> None:
        for known in (6, 1000):  # few names, and many
            counts, tabs, many = np.zeros(known, U32), np.zeros(9, U32), np.zeros(9, I64)
            content = self.records(5, 1, 5, 0, 5)
            self.assertEqual(NATIVE.count(content, ((2, 7), (3, None)), known, counts, tabs, many, None), 3)
            self.assertEqual((tabs[:3].tolist(), many[:3].tolist()), ([0, 1, 5], [1, 1, 3]))
            for odd in (self.records(1, known), self.records(1, 1 << 24), self.records(1) + self.records(1, lap=6)):
                self.assertEqual(NATIVE.count(odd, ((2, 7),), known, counts, tabs, many, None), -1)
            of_others: Any = ((4, 7),), ((6, 7),), ((-1, 7),), ()
            for pieces in of_others:
                self.assertRaises(ValueError, NATIVE.count, content, pieces, known, counts, tabs, many, None)
            none: Any = ((4, "7"),), (4,), ((4, 7, 7),)
            for pieces in none:
                self.assertRaises(TypeError, NATIVE.count, content, pieces, known, counts, tabs, many, None)
            self.assertFalse(counts.any(), "counts that were left behind")
            few = np.zeros(4, U32)
            for some in (
                (known + 1, counts, tabs, many),
                (known, counts, few, many),
                (known, counts, tabs, few.view(I64)),
                (-1, counts, tabs, many),
            ):
                self.assertRaises(ValueError, NATIVE.count, content, ((5, 7),), *some, None)
            self.assertRaises(ValueError, NATIVE.count, content[1:], ((5, 7),), known, counts, tabs, many, None)
        with self.assertRaises(ValueError):  # counts that somebody left behind
            NATIVE.count(content, ((5, 7),), 9, np.ones(9, U32), np.zeros(5, U32), np.zeros(5, I64), None)
        with self.assertRaises(BufferError):
            NATIVE.count(content, ((5, 7),), 6, bytes(24), np.zeros(9, U32), np.zeros(9, I64), None)

    def test_values_in_the_byte_ring_are_told_with_the_tabs_and_odd_ones_are_odd(self) -> None:
        def of(*words: tuple[int, int]) -> bytes:
            return b"".join(struct.pack("<dQII", 1.0, value, tab, 7) for tab, value in words)

        def word(begin: int, length: int) -> int:
            return layouts.value_word(length, begin)

        tail, longest, all_bytes, flag = 2**40 - 8, 64, 256, 1 << 24
        for known in (6, 1000):
            counts, tabs, many, boxes = np.zeros(known, U32), np.zeros(9, U32), np.zeros(9, I64), np.empty((3, 3), I64)
            boxes[0] = tail, longest, all_bytes
            content = of((5, 1), (1 | flag, word(tail + 4, 10)), (5, 2), (5 | flag, word(tail + 256 - 64, 64)))
            self.assertEqual(NATIVE.count(content, ((3, 7), (1, None)), known, counts, tabs, many, boxes), 2)
            self.assertEqual((tabs[:2].tolist(), many[:2].tolist()), ([1, 5], [1, 3]))
            self.assertEqual((boxes[0, 0], boxes[1:].tolist()), (2, [[1, 4, 10], [3, 192, 64]]))  # positions go on from 2 ** 40 at 0
            self.assertFalse(counts.any(), "counts that were left behind")
            for tab, value in (
                (1 | flag, word(tail, 65)),  # longer than one may be
                (1 | flag, word(tail + 200, 57)),  # beyond the ring
                (1 | flag, word(tail - 1, 1)),  # behind the tail
                (known | flag, word(tail, 1)),
                (1 | 2 * flag, 0),  # given back
                (1 | 3 * flag, word(tail, 1)),
            ):
                boxes[0] = tail, longest, all_bytes
                odd = of((5, 1), (1 | flag, word(tail, 1)), (tab, value))
                self.assertEqual(NATIVE.count(odd, ((3, 7),), known, counts, tabs, many, boxes), -1)
                self.assertFalse(counts.any(), "counts that were left behind")
            boxes[0] = tail, longest, all_bytes
            one = of((1 | flag, word(tail, 1)))
            self.assertEqual(NATIVE.count(3 * one, ((3, 7),), known, counts, tabs, many, boxes), -1)  # no room for more than two
            self.assertEqual(NATIVE.count(one, ((1, 6),), known, counts, tabs, many, boxes), -1)
            self.assertEqual(NATIVE.count(one, ((1, 7),), known, counts, tabs, many, None), -1)
            self.assertRaises(ValueError, NATIVE.count, one, ((1, 7),), known, counts, tabs, many, boxes[:0])
            self.assertRaises(ValueError, NATIVE.count, one, ((1, 7),), known, counts, tabs, many, np.zeros(2, I64))

    def test_records_go_to_their_places_and_nowhere_else(self) -> None:
        content, tabs, starts = self.records(5, 1, 5), np.array([1, 5], U32), np.array([0, 1])
        times, values, cursors, where = np.zeros(3), np.zeros(3), np.zeros(6, I64), np.zeros(3, I64)
        NATIVE.place(content, tabs, starts, cursors, times, values, where)
        self.assertEqual((times.tolist(), values.view(I64).tolist(), where.tolist()), ([2.0, 1.0, 3.0], [1, 0, 2], [1, 0, 2]))
        NATIVE.place(content, tabs, starts, cursors, times, values, None)
        for wrong in (
            (content, tabs, starts, cursors, times[:2], values[:2], None),
            (content, tabs, starts, cursors, times[:2], values, None),
            (content, tabs, starts, cursors[:5], times, values, None),
            (content, tabs, starts[:1], cursors, times, values, None),
            (content, tabs, np.array([0, -1]), cursors, times, values, None),
            (content, tabs, np.array([0, 2**62]), cursors, times, values, None),
            (content, tabs, starts, cursors, times, values, where[:2]),
            (self.records(6), tabs, starts, cursors, times, values, None),
            (content[:-1], tabs, starts, cursors, times, values, None),
        ):
            self.assertRaises(ValueError, NATIVE.place, *wrong)
        self.assertRaises(TypeError, NATIVE.place, content)

    def test_batches_are_the_same_in_a_room_and_in_one_that_is_too_small_and_what_is_too_much_is_cut(self) -> None:
        def section(bucket: int, columns: int) -> Section:
            return Section("Sum", columns, pack_bin(b"a\0b") * columns, b"\1\0\0\0" * columns, bytes(8 * columns), bytes(8 * columns))

        packed = {bucket: [section(bucket, columns)] for bucket, columns in ((3, 1), (7, 5), (9, MAX_BATCH_COLUMNS + 1), (11, 2))}
        numbers, weights, meanings = {7: 4}, {7: 3, 11: -1, 9: 0}, {7: [Meaning("a", "bytes", "")]}
        for told in ((numbers,), (numbers, weights), (numbers, weights, meanings)):
            self.same_in_every_room(packed, *told)

    def same_in_every_room(
        self, packed: Any, numbers: Any, weights: Any = MappingProxyType({}), meanings: Any = MappingProxyType({})
    ) -> None:
        beside = {"weights": weights, "meanings": meanings}
        expected = encode(packed, b"s" * 16, numbers, at(1.0), native=None, **beside)
        self.assertEqual([batch.id.number for batch in expected], [1, 5, 1, 2, 1])
        for size in (1, 200, 2**20):
            found = encode(packed, b"s" * 16, numbers, at(1.0), room=WritingRoom(size), **beside)
            crcs = [zlib.crc32(batch.content) for batch in expected]
            self.assertTrue(all(batch.crc in (None, crc) for batch, crc in zip(found, crcs, strict=True)))
            self.assertEqual([batch._replace(content=bytes(batch.content), crc=None) for batch in found], expected)

    def test_of_rings_that_are_read_together_only_what_is_plain_is_there(self) -> None:
        producer = self.producer()
        tabs = [producer.tab(f"t{place}") for place in range(3)]
        for place in (2, 0, 2):
            producer.record(tabs[place], 1.5, 7.0)
        producer.record(tabs[0], "abc")
        ring, where = self.open(producer), producer.where
        plain = [ring.fd, where.record_offset, where.records, 0, 4, 3, 0, 10, where.byte_ring_bytes]
        numbers, sections, slots = np.array([1, 1, 2], U32), np.array([0, 4, 5], np.int32), np.zeros(3, U32)

        def given(*rows: list[int], room: int = 20, boxes: int = 5, columns: int = 20) -> list[Any]:
            outs: list[Any] = [np.zeros(columns, of) for of in (I64, U32, U32, np.int32, I64)]
            rooms = bytearray(24 * room), slots, *outs, np.zeros((boxes, 4), I64), np.zeros(len(rows), I64)
            return [np.array(rows, I64), [numbers] * len(rows), sections, 9, *rooms]

        good = given(plain, [*plain[:4], 2, *plain[5:]])
        self.assertEqual(NATIVE.gather(*good), (4, 1))
        of, places, its, keys, counts, boxes, found = good[6:]
        self.assertEqual((found.tolist(), of[:4].tolist(), places[:4].tolist()), ([2, 2], [9, 9, 10, 10], [0, 2, 0, 2]))
        self.assertEqual((its[:4].tolist(), keys[:4].tolist(), counts[:4].tolist()), ([1, 2, 1, 2], [9, 10, 8, 10], [2, 2, 1, 1]))
        self.assertEqual((boxes[0].tolist(), slots.tolist()), ([9, 3, 0, 4], [0, 0, 0]))
        times, values, where_to = np.zeros(6), np.zeros(6), np.zeros(6, I64)
        NATIVE.deal(good[4][: 24 * 6], np.array([0, 2, 4, 5]), times, values, where_to)
        self.assertEqual((where_to.tolist(), values[[0, 2, 3, 4, 5]].tolist(), times[2]), ([2, 0, 3, 1, 5, 4], [1.5] * 5, 7.0))
        for records, cursors in ((5, [0, 1, 2, 3]), (6, [0, 2, 4]), (6, [0, 2, 4, 6]), (6, [0, 2, 4, -1])):
            self.assertRaises(ValueError, NATIVE.deal, good[4][: 24 * 6], np.array(cursors), times[:records], values, None)
        odd: list[tuple[int, int]] = [(0, -1), (0, 2**40), (2, 3), (2, 0), (3, -1), (3, 5), (4, 5), (4, 2**62), (5, 2), (7, 3), (8, 3)]
        for place, wrong in (*odd, (1, 2**40), (1, 2**62), (6, 8)):
            its_row = [*plain[:place], wrong, *plain[place + 1 :]]
            asked = given(its_row, plain)
            self.assertEqual((NATIVE.gather(*asked), asked[-1].tolist(), asked[6][:2].tolist()), ((2, 1), [-1, 2], [9, 9]), its_row)
            self.assertEqual(slots.tolist(), [0, 0, 0])
        few: list[tuple[dict[str, int], list[int]]] = [({"room": 3}, [-1]), ({"boxes": 0}, [-1]), ({"columns": 3}, [-1]), ({}, [2])]
        for room, told in few:
            asked = given(plain, **room)
            NATIVE.gather(*asked)
            self.assertEqual((asked[-1].tolist(), slots.tolist()), (told, [0, 0, 0]))
        beyond: list[tuple[int, Any, type[Exception]]] = [
            (0, good[0][:1], ValueError), (1, [numbers], ValueError), (1, (numbers,), TypeError), (1, [1, 1], TypeError),
            (1, [numbers[:2]] * 2, ValueError), (3, "1", TypeError), (4, bytes(24), BufferError), (4, bytearray(25), ValueError),
            (5, slots[:2], ValueError), (7, places[:3], ValueError), (10, counts[:3], ValueError), (12, found[:1], ValueError),
        ]  # fmt: skip
        for place, wrong_one, error in beyond:
            asked = list(good)
            asked[place] = wrong_one
            self.assertRaises(error, NATIVE.gather, *asked)
        self.assertRaises(TypeError, NATIVE.gather, *good[:-1])
        self.assertRaises(TypeError, NATIVE.deal, good[4])

    def test_what_is_no_section_of_a_bucket_makes_no_batch(self) -> None:
        common: tuple[Any, ...] = ([1], 0, {1: []}, 5, b"s" * 16, {}, at(1.0), (9, 9_000, 9, 9, 9))
        good: list[Any] = [*common, {}, {}, bytearray(200), 0, BatchId, EncodedBatch]
        [batch], end = NATIVE.encode_plain(*good)
        self.assertEqual((bytes(batch.content), type(batch), type(batch.id)), (bytes(good[10][:end]), EncodedBatch, BatchId))
        wrongs: list[tuple[int, Any, type[Exception]]] = [
            (0, [2], TypeError), (0, ["1"], TypeError), (0, [-1], OverflowError), (1, -1, ValueError), (2, {1: [()]}, TypeError),
            (5, {1: "a"}, TypeError), (8, {1: "a"}, TypeError), (8, None, TypeError), (9, [], TypeError), (10, bytes(200), BufferError),
            (11, 201, ValueError), (11, -1, ValueError), (12, int, TypeError),
        ]  # fmt: skip
        for place, wrong, error in wrongs:
            given = list(good)
            given[place] = wrong
            if wrong == [-1]:
                given[2] = {-1: []}
            self.assertRaises(error, NATIVE.encode_plain, *given)
        self.assertEqual(NATIVE.encode_plain(*good[:10], bytearray(3), 0, BatchId, EncodedBatch), ([], 0))
        self.assertEqual(NATIVE.encode_plain(*good[:9], {1: ()}, *good[10:]), ([], 0))

    def test_states_are_cut_where_another_bucket_or_type_begins_and_nothing_else_is(self) -> None:
        pairs, numbers, edges = [(7, "A"), (9, "B")], np.array([1, 1, 0], I64), np.array([0, 2, 3], I64)
        counts, least, greatest = np.array([32, 70_000, 40], U32), np.array([1.0, 2, 3]), np.array([4.0, 5, 6])
        dumps, fields = [b"", b"a" * 255, b"c" * 70_000], [b"x", b"y"]
        packed: dict[int, Any] = {7: ["before"]}
        good = packed, pairs, numbers, edges, counts, least, greatest, dumps, fields, 3, Section
        NATIVE.cut_states(*good)
        bins = list(map(pack_bin, dumps))
        first = Section("B", 2, b"x", struct.pack("<2I", 32, 70_000), struct.pack("<2d", 1, 2), bins[0] + bins[1], edge=3)
        second = Section("A", 1, b"y", struct.pack("<I", 40), struct.pack("<d", 3), bins[2], edge=3, until=struct.pack("<d", 6))
        self.assertEqual(packed, {7: ["before", second], 9: [first._replace(until=struct.pack("<2d", 4, 5))]})
        for place, wrong in (
            (2, numbers - 1),
            (2, numbers + 1),
            (2, numbers[1:]),
            (3, edges + 1),
            (3, edges - 1),
            (3, edges[1:]),
            (3, edges[:0]),
            (3, np.array([0, 0, 3], I64)),
            (4, counts[1:]),
            (5, least[1:]),
            (6, greatest[1:]),
            (7, dumps[1:]),
            (8, fields[1:]),
        ):
            self.assertRaises(ValueError, NATIVE.cut_states, {}, *good[1:place], wrong, *good[place + 1 :])
        for place, other in ((1, ["A"] * 2), (1, tuple(pairs)), (7, tuple(dumps)), (7, [b"", "a", b""]), (8, tuple(fields)), (10, None)):
            self.assertRaises(TypeError, NATIVE.cut_states, {}, *good[1:place], other, *good[place + 1 :])
        self.assertRaises(TypeError, NATIVE.cut_states, {7: (), 9: ()}, *good[1:])
        self.assertRaises(TypeError, NATIVE.cut_states, *good[:-1])

    def test_fields_are_joined_wherever_they_are_and_nothing_else_is(self) -> None:
        names, clients = ["a", "é" * 35_000, "", "c"], [(b"web/1", b"all"), (b"d" * 255, b"")]
        is_overflow = np.array([False, False, True, True])
        of, numbers, edges = np.array([1, 0, 0, 1], I64), np.array([1, 0, 2, 3], U32), np.array([0, 2, 2, 4], I64)
        fields = [f"{names[1]}\0".encode() + clients[1][0], b"a\0web/1", b"\0all", b"c\0"]
        expected = [b"".join(map(pack_bin, fields[:2])), b"", b"".join(map(pack_bin, fields[2:]))]
        self.assertEqual(NATIVE.join_fields(names, clients, is_overflow, of, numbers, edges), expected)
        self.assertEqual(NATIVE.join_fields(names, clients, is_overflow, of, numbers, edges[:1]), [])
        for wrong in (
            (names, clients, is_overflow, of + 1, numbers, edges),
            (names, clients, is_overflow, of - 2, numbers, edges),
            (names, clients, is_overflow, of, numbers + U32(3), edges),
            (names, clients, is_overflow[:3], of, numbers, edges),
            (names, clients, is_overflow, of, numbers, edges + 1),
            (names, clients, is_overflow, of, numbers, edges[::-1].copy()),
            (names, clients, is_overflow, of, numbers, edges - 1),
            (names, clients, is_overflow, of, numbers, edges[:0]),
            (names, clients, is_overflow, of, numbers[1:], edges),
            (["\ud800"] * 4, clients, is_overflow, of, numbers, edges),
        ):
            self.assertRaises(ValueError, NATIVE.join_fields, *wrong)
        others: Any = (
            (tuple(names), clients, is_overflow, of, numbers, edges),
            ([b"a"] * 4, clients, is_overflow, of, numbers, edges),
            (names, [b"a", b"b"], is_overflow, of, numbers, edges),
            (names, [("a", "b")] * 2, is_overflow, of, numbers, edges),
        )
        for other in others:
            self.assertRaises(TypeError, NATIVE.join_fields, *other)

    def test_sections_are_cut_where_they_end_and_nothing_else_is(self) -> None:
        pairs, keys, edges, rows = (
            [(7, "A"), (7, "B"), (9, "A")],
            np.array([0, 3, 4], I64),
            np.array([1, 2, 2, 4], I64),
            np.array([1, 3, 3, 5], I64),
        )
        counts, fields = np.array([9, 2, 1, 1], U32), [b"x", b"y", b"z"]
        times, values = (memoryview(struct.pack("<5d", *range(first, first + 5))) for first in (0, 10))
        listed: Any = lambda start, end: b"list %d %d" % (start, end)  # noqa: E731
        packed: dict[int, Any] = {7: ["before"]}
        good = packed, pairs, keys, edges, rows, counts, times, values, fields, listed, Section
        NATIVE.cut_sections(*good)
        first = Section("A", 1, b"x", struct.pack("<I", 2), struct.pack("<2d", 1, 2), struct.pack("<2d", 11, 12))
        second = Section("B", 0, b"y", b"", b"", b"list 2 2", True)
        third = Section("A", 2, b"z", struct.pack("<2I", 1, 1), struct.pack("<2d", 3, 4), struct.pack("<2d", 13, 14))
        self.assertEqual(packed, {7: ["before", first, second], 9: [third]})
        for place, wrong in (
            (1, pairs[:2]),
            (2, keys - 1),
            (2, keys[1:]),
            (3, edges + 1),
            (3, edges - 2),
            (3, edges[::-1].copy()),
            (4, rows + 1),
            (4, rows - 2),
            (4, rows[1:]),
            (7, values[8:]),
            (8, fields[1:]),
        ):
            self.assertRaises(ValueError, NATIVE.cut_sections, {}, *good[1:place], wrong, *good[place + 1 :])
        for place, other in ((1, ["A"] * 3), (6, bytes(40)), (9, None), (10, None), (8, tuple(fields)), (1, tuple(pairs))):
            self.assertRaises(TypeError, NATIVE.cut_sections, {}, *good[1:place], other, *good[place + 1 :])
        self.assertRaises(TypeError, NATIVE.cut_sections, {7: ()}, *good[1:])
        self.assertRaises(TypeError, NATIVE.cut_sections, {}, *good[1:-1])

    def test_a_batch_beyond_its_bounds_is_none_and_no_section_is_no_batch(self) -> None:
        section: Any = Section("A", 1, b"\xc4\x01a", struct.pack("<I", 1), bytes(8), bytes(8))
        bounds = 1, 1000, 128, 5, 1000
        self.assertEqual(NATIVE.encode([section], 5, b"s" * 16, 1, 1, b"", bounds, None, 0)[0], 1)
        self.assertIsNone(NATIVE.encode([section, section], 5, b"s" * 16, 1, 1, b"", bounds, None, 0))
        self.assertIsNone(NATIVE.encode([section], 5, b"s" * 16, 1, 1, bytes(1000), bounds, None, 0))
        self.assertIsNone(NATIVE.encode([section] * 65_537, 5, b"s" * 16, 1, 1, b"", bounds, None, 0))  # of Tabs that heal each is one
        for wrong in (
            None,
            (),
            tuple(section)[:9],
            section._replace(columns="1"),
            section._replace(columns=-1),
            section._replace(edge=-1),
            section._replace(fields="a"),
            section._replace(until=None),
            section._replace(type=b"A"),
            section._replace(type="A" * 300),
            section._replace(columns=2**33),
        ):
            with self.assertRaises((TypeError, ValueError, OverflowError)):
                NATIVE.encode([section, wrong], 5, b"s" * 16, 1, 1, b"", bounds, None, 0)
        self.assertRaises(TypeError, NATIVE.encode, (section,), 5, b"s" * 16, 1, 1, b"", bounds, None, 0)
        _, content, crc = NATIVE.encode([section], 5, b"s" * 16, 1, 1, b"", bounds, None, 0)
        room = bytearray(len(content) + 5)
        self.assertEqual(NATIVE.encode([section], 5, b"s" * 16, 1, 1, b"", bounds, room, 5), (1, len(content), crc))
        self.assertEqual(room, bytes(5) + content)
        self.assertEqual(NATIVE.encode([section], 5, b"s" * 16, 1, 1, b"", bounds, room, 6), (1, len(content), None))
        self.assertEqual(room, bytes(5) + content)
        for beyond in (-1, len(room) + 1):
            self.assertRaises(ValueError, NATIVE.encode, [section], 5, b"s" * 16, 1, 1, b"", bounds, room, beyond)
        self.assertRaises(BufferError, NATIVE.encode, [section], 5, b"s" * 16, 1, 1, b"", bounds, bytes(9), 0)

    def test_checksums_are_those_of_zlib(self) -> None:
        chance = Random(1)
        for length in (*range(560), 1000, 4096, 65_537):
            content = memoryview(chance.randbytes(length + 3))[chance.randrange(4) :]
            self.assertIn(NATIVE.checksum(content), (zlib.crc32(content), None))
        self.assertRaises(TypeError, NATIVE.checksum, "a")

    def test_what_has_no_room_has_it_elsewhere_and_what_was_given_stays(self) -> None:
        sections = {bucket: [Section("A", 1, b"\xc4\x01a", struct.pack("<I", 8), bytes([bucket] * 64), bytes(64))] for bucket in range(9)}
        room = WritingRoom(300)
        for _ in range(2):
            batches = encode(sections, b"s" * 16, {}, at(1.0), native=NATIVE, room=room)
            plain = encode(sections, b"s" * 16, {}, at(1.0), native=None)
            self.assertEqual([bytes(batch.content) for batch in batches], [batch.content for batch in plain])
            self.assertTrue({batch.crc for batch in batches} <= {None, *(zlib.crc32(batch.content) for batch in plain)})


class PublishingTests(Native):
    def test_a_groups_index_is_the_same_in_c_and_in_python(self) -> None:
        chance, written = Random(3), []
        moments = [at(1.0), at(2.5)]
        batches = [
            EncodedBatch(
                BatchId(chance.randbytes(16), chance.randrange(2**32), chance.randrange(2**64)),
                chance.choice(moments),
                chance.randrange(2**32),
                content if place % 2 else memoryview(content),
                chance.choice((b"", b"k" * 36)),
                chance.randrange(2**32),
            )
            for place, content in enumerate(chance.randbytes(chance.randrange(300)) for _ in range(50))
        ]
        for native in (None, NATIVE):
            memory, _ = formatted()
            outbox = Outbox(memory, native)
            found = outbox.append(Table(), batches)
            self.assertEqual([type(stored) for stored in found.batches], [StoredBatch] * 50)
            self.assertEqual(next(iter(outbox.groups())), found)
            written.append((found, bytes(memory.content)))
        self.assertEqual(written[0], written[1])

    def test_a_groups_index_takes_nothing_on_trust(self) -> None:
        good: Any = EncodedBatch(BatchId(b"s" * 16, 1, 1), at(1.0), 3, b"content", b"", 7)
        self.assertIsNone(NATIVE.index_group([good, good._replace(crc=None)], 0, 0, StoredBatch))
        id = good.id
        wrong: list[Any] = [
            7,
            good[:5],
            good._replace(id=id[:2]),
            good._replace(events=2**32),
            good._replace(events=-1),
            good._replace(crc="x"),
        ]
        wrong += [good._replace(id=BatchId(*other)) for other in ((b"s", -1, 1), (b"s", 2**32, 1), (b"s", 1, 2**64), ("s", 1, 1))]
        wrong += [
            good._replace(content=7),
            good._replace(key="x"),
            good._replace(created=None),
            good._replace(created=at(1.0)._replace(boot=-1)),
        ]
        for batch in wrong:
            with self.assertRaises((TypeError, ValueError, OverflowError, AttributeError), msg=repr(batch)):
                NATIVE.index_group([good, batch], 0, 0, StoredBatch)
        self.assertRaises(TypeError, NATIVE.index_group, [good], 0, 0, list)
        self.assertRaises(TypeError, NATIVE.index_group, (good,), 0, 0, StoredBatch)

    def test_where_records_end_is_found_in_one_call_as_piece_by_piece(self) -> None:
        producer = self.producer(size=2**16)
        ring, tab, records = self.open(producer), producer.tab("a"), producer.where.records
        where = ring.fd, ring.where.record_offset, records
        for more in (0, 1, 254, 1, 1, 300, 255, 257, 700, 3, records):  # over its end, too
            producer.record_many(tab, [1.0] * min(more, records - (producer.head - producer.tail)))
            for stop in (ring.tail, ring.tail + 100, ring.tail + 256, ring.tail + 300, ring.tail + records):
                self.assertEqual(NATIVE.follow(*where, ring.tail, stop), min(stop, producer.head), (producer.head, stop))
            for limit in (1, 255, 257, records):
                found = []
                for native in (None, NATIVE):
                    ring.is_ordered = True
                    found.append(ring._find_runs(Scratch(native), limit, False))
                self.assertEqual(found[0], found[1], (producer.head, limit))
                self.assertEqual(found[0][0], [(ring.tail, min(ring.tail + limit, producer.head))] if producer.head > ring.tail else [])
            if producer.head - producer.tail > records // 2:
                self.drain(ring)
        self.drain(ring)
        producer.record_many(tab, [1.0] * 20)
        hole = producer.reserve()
        producer.record_many(tab, [1.0] * 20)
        self.assertEqual(NATIVE.follow(*where, ring.tail, ring.tail + records), -1)
        found = [ring._find_runs(Scratch(native), records, False) for native in (None, NATIVE)]
        self.assertEqual(found, [([(ring.tail, ring.tail + 20), (ring.tail + 21, ring.tail + 41)], False)] * 2)
        producer.commit(hole, tab, 0)
        good = [*where, ring.tail, ring.tail + records]
        for place, value in ((0, -1), (0, 2**40), (2, 0), (2, 3), (3, -1), (4, ring.tail - 1), (4, 2**62)):
            with self.assertRaises(ValueError):
                NATIVE.follow(*good[:place], value, *good[place + 1 :])
        self.assertRaises(TypeError, NATIVE.follow, *good[:4])
        self.assertEqual(NATIVE.follow(good[0], -(2**40), *good[2:]), -1)
        os.ftruncate(ring.fd, 4096)
        self.assertEqual(NATIVE.follow(*good), -1)
        for native in (None, NATIVE):
            self.assertRaises(MalformedRing, ring._find_runs, Scratch(native), records, False)

    def test_the_last_committed_record_is_found_by_the_same_steps(self) -> None:
        producer = self.producer(size=2**16)
        ring, tab, records = self.open(producer), producer.tab("a"), producer.where.records
        for more in (1, 300, 211, 255, 1, 400):
            producer.record_many(tab, [1.0] * more)
            for stop in (producer.head, producer.head + 1, min(records, producer.head + 300), records):
                found = [ring._leap(Scratch(native), 0, stop) for native in (None, NATIVE)]
                self.assertEqual(found[0], found[1], (producer.head, stop))
                self.assertTrue(producer.head - FIRST_CHUNK <= found[1] <= producer.head)
        good = [ring.fd, ring.where.record_offset, records, 0, records, FIRST_CHUNK]
        for place, value in ((0, -1), (0, 2**40), (2, 0), (2, 3), (3, -1), (4, -1), (4, 2**62), (5, 0), (5, records + 1)):
            with self.assertRaises(ValueError):
                NATIVE.leap(*good[:place], value, *good[place + 1 :])
        self.assertRaises(TypeError, NATIVE.leap, *good[:5])
        os.ftruncate(ring.fd, 4096)
        for native in (None, NATIVE):
            self.assertRaises(MalformedRing, ring._leap, Scratch(native), 0, records)
