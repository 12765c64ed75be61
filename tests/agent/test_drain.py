"""Columns into batches: nothing lost, bounds kept."""

from __future__ import annotations

import os
import struct
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.agent import drain, gathering
from taba.agent.encoding import LONGEST_NAMES, encode, unpack
from taba.agent.entries import Tab
from taba.agent.native import NATIVE
from taba.agent.reader import Reading
from taba.agent.tallies import Sorted, tally_of
from taba.batch import MAX_LIST_VALUES, Column, decode_batch, encode_batch
from taba.bounds import MAX_BATCH_BYTES, MAX_BATCH_COLUMNS
from taba.names import bucket_of
from tests.agent.moments import at
from tests.examples import examples

from ..pieces import pack, values_of


def column(tab: str, values: bytes | list[Any], client: str = "web/1") -> Column:
    events = len(values) // 8 if isinstance(values, bytes) else len(values)
    return Column(client, tab, "Buffer", struct.pack(f"<{events}d", *range(events)), values)


PIECE_EVENTS = (MAX_BATCH_BYTES - LONGEST_NAMES) // 17


class EncodeTests(SynchronousTestCase):
    def check(self, columns: dict[int, list[Column]]) -> int:
        batches = encode(pack(columns), b"s" * 16, {1: 7}, at(5.0))
        expected: dict[tuple[int, str], list[Any]] = {}
        found: dict[tuple[int, str], list[Any]] = {}
        for bucket, some in columns.items():
            for one in some:
                expected.setdefault((bucket, one.tab), []).extend(zip(memoryview(one.times).cast("d"), values_of(one), strict=True))
        last = {1: 7}
        for batch in batches:
            self.assertLessEqual(len(batch.content), MAX_BATCH_BYTES)
            decoded = decode_batch(bytes(batch.content))
            self.assertLessEqual(len(decoded.columns), MAX_BATCH_COLUMNS)
            self.assertEqual(decoded.number, last.get(decoded.bucket, 0) + 1)
            last[decoded.bucket] = decoded.number
            self.assertEqual(batch.events, sum(one.events for one in decoded.columns if isinstance(one, Column)))
            for whole in decoded.columns:
                assert isinstance(whole, Column), whole
                pairs = zip(memoryview(whole.times).cast("d"), values_of(whole), strict=True)
                found.setdefault((decoded.bucket, whole.tab), []).extend(pairs)
        self.assertEqual(found, expected)
        return len(batches)

    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(1, 3), st.booleans(), st.integers(0, 30_000)), max_size=40))
    @examples(30)
    def test_every_event_is_in_one_batch_and_each_batch_within_the_bounds(self, shapes: list[tuple[int, int, int, bool, int]]) -> None:
        columns: dict[int, list[Column]] = {}
        for bucket, tab, events, is_list, length in shapes:
            values: Any = ["x" * length] * events if is_list else bytes(8 * events)
            columns.setdefault(bucket, []).append(column(f"tab{tab}", values))
        self.check(columns)

    @given(
        st.lists(
            st.tuples(
                st.integers(0, 300),
                st.booleans(),
                st.text(st.characters(exclude_characters="\0"), max_size=300),
                st.sampled_from(("A", "B" * 40, "C" * 64)),
            ),
            min_size=1,
            max_size=40,
        ),
        st.integers(0, 65_535),
        st.integers(0, 2**40),
    )
    @examples(60)
    def test_a_batch_is_byte_for_byte_what_the_codec_gives(self, shapes: list[Any], bucket: int, number: int) -> None:
        columns = [
            Column(name[:9] or "c", name, type, os.urandom(24 * events), [name, 1.5, None] * events if is_list else os.urandom(24 * events))
            for events, is_list, name, type in ((events // 3, *rest) for events, *rest in shapes)
        ]
        pieces = pack({bucket: columns})
        self.assertEqual(unpack(pieces[bucket]), columns)
        for native in (None, NATIVE):
            (batch,) = encode(pieces, b"s" * 16, {bucket: number}, at(1.5), native=native)
            self.assertEqual(batch.content, encode_batch(b"s" * 16, bucket, number + 1, columns))

    def test_long_columns_are_byte_for_byte_what_the_codec_gives(self) -> None:
        for events in (31, 32, 2047, 2048, 8191, 8192, 60_000):
            columns = [column("a", os.urandom(8 * events))]
            (batch,) = encode(pack({1: columns}), b"s" * 16, {}, at(1.5))
            self.assertEqual(batch.content, encode_batch(b"s" * 16, 1, 1, columns))

    def test_a_thousand_columns_are_one_batch_and_one_more_two(self) -> None:
        columns = [column(f"tab{number}", bytes(8)) for number in range(MAX_BATCH_COLUMNS)]
        self.assertEqual(self.check({1: columns}), 1)
        self.assertEqual(self.check({1: [*columns, column("more", bytes(8))]}), 2)

    def test_a_column_of_more_than_a_batch_is_cut(self) -> None:
        self.assertEqual(self.check({1: [column("a", bytes(8 * PIECE_EVENTS))]}), 1)
        self.assertEqual(self.check({1: [column("a", bytes(8 * 2 * PIECE_EVENTS))]}), 2)

    def test_as_many_values_in_lists_as_a_batch_may_have_are_one_batch_and_one_more_two(self) -> None:
        half = column("a", ["x"] * (MAX_LIST_VALUES // 2))
        self.assertEqual(self.check({1: [half, half._replace(tab="b")]}), 1)
        self.assertEqual(self.check({1: [half, half._replace(tab="b"), column("c", ["x"])]}), 2)

    def test_long_values_in_a_list_are_cut_where_the_estimate_misses(self) -> None:
        self.assertGreater(self.check({1: [column("a", ["x" * 30_000] * 100)]}), 2)


class FakeRing:
    """A ring of which one reading is known."""

    def __init__(self, number: int, tabs: list[Tab | None], events: list[tuple[int, Any]]):
        self.client, self.name, self.directory, self.places = f"web/{number}", str(number), tabs, None
        self.names: Any = SimpleNamespace(untold={}, leads=None, client=self.client)
        self.is_blocked, self.byte_tail = False, 0
        self.seen = (number % 3) * len(events) // 2  # nothing, or not all, or what there is
        words = np.zeros((len(events), 2))
        boxed, is_boxed = np.empty(len(events), object), np.zeros(len(events), bool)
        for place, (_, value) in enumerate(events):
            words[place] = number * 1000.0 + place, value if isinstance(value, float) else 0.0
            if not isinstance(value, float):
                boxed[place], is_boxed[place] = value, True
        some = is_boxed.any()
        places = np.array([tab for tab, _ in events], np.uint32)
        values = words[:, 1].view(np.uint64)
        self.reading = Reading(places, words[:, 0], values, boxed if some else None, is_boxed if some else None, [], 0, False)

    def read(self, *limits: Any) -> Reading:
        return self.reading


class Draining(SynchronousTestCase):
    """What a drain of several rings gives, beside what each ring has."""

    TABS = (
        Tab("a", "Buffer"),
        Tab("b", "Buffer"),
        Tab("c", "CounterGroup"),
        None,
        Tab("d", "CounterGroup"),
        Tab("up", "UpDown", cell=64),
    )
    VALUES = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(["x", None, [1, [2]]])

    @given(
        st.lists(st.lists(st.tuples(st.integers(0, 5), VALUES), max_size=12), min_size=1, max_size=5),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.sets(st.integers(0, 4)),
    )
    @examples(100)
    def test_each_column_has_its_ring_s_events_in_their_order_and_all_are_accounted_for(
        self, rings: list[list[tuple[int, Any]]], is_wide: bool, is_many: bool, is_native: bool, spent: set[int]
    ) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if is_many:
                patch.setattr(gathering, "NARROW", 1)
            if is_wide:
                patch.setattr(gathering, "WIDE", 0)
            fakes: list[Any] = [FakeRing(number, list(self.TABS), events) for number, events in enumerate(rings)]
            one_drain = drain.Drain(8, native=NATIVE if is_native else None)
            if is_many:
                one_drain._rows = gathering.Rows(2)
            drained = one_drain.run([(ring, False) for ring in fakes], spent=frozenset(f"web/{number}" for number in spent))
        expected: dict[tuple[str, str], list[Any]] = {}
        summed: dict[str, list[float]] = {}
        unknown = held = 0
        for number, events in enumerate(rings):
            for place, (index, value) in enumerate(events):
                tab = self.TABS[index]
                if tab is None:
                    unknown += 1
                elif tab.cell is not None and isinstance(value, float):
                    summed.setdefault(f"web/{number}", []).append(value)
                elif number in spent:
                    held += 1
                else:
                    expected.setdefault((f"web/{number}", tab.name), []).append((number * 1000.0 + place, value))
        found: dict[tuple[str, str], list[Any]] = {}
        for batch in encode(drained.packed, b"s" * 16, {}, at(5.0)):
            decoded = decode_batch(bytes(batch.content))
            self.assertEqual(batch.events, sum(one.events for one in decoded.columns))
            for one in decoded.columns:
                assert isinstance(one, Column), one
                self.assertEqual(bucket_of(one.tab, 8), decoded.bucket)
                self.assertNotIn((one.client, one.tab), found)
                found[one.client, one.tab] = list(zip(memoryview(one.times).cast("d"), values_of(one), strict=True))
        self.assertEqual(found, expected)
        self.assertEqual({one.ring.client: one.events for one in drained.added}, {client: len(some) for client, some in summed.items()})
        self.assertEqual((drained.malformed, drained.held_back.total()), (unknown, held))
        self.assertEqual(sum(int(one.counts.sum()) for one in drained.tallies), sum(map(len, rings)))

    @given(
        st.lists(st.lists(st.tuples(st.integers(0, 5), VALUES), max_size=12), min_size=1, max_size=6),
        st.integers(1, 40),
        st.sets(st.integers(0, 5)),
    )
    @examples(60)
    def test_what_is_sorted_in_lots_is_what_is_sorted_as_one(self, rings: list[list[tuple[int, Any]]], lot: int, spent: set[int]) -> None:
        found = []
        for most, native in ((lot, None), (lot, NATIVE), (sum(map(len, rings)) + 1, None)):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(drain, "LOT_EVENTS", most)
                fakes: list[Any] = [FakeRing(number, list(self.TABS), events) for number, events in enumerate(rings)]
                drained = drain.Drain(8, native=native).run(
                    [(ring, False) for ring in fakes], spent=frozenset(f"web/{number}" for number in spent)
                )
            columns = {bucket: sorted(map(repr, unpack(sections))) for bucket, sections in drained.packed.items()}
            added = sorted((one.ring.name, one.place, one.total, one.events, one.time) for one in drained.added)
            tallies = [tally_of(one) for one in drained.tallies if isinstance(one, Sorted)]
            sums = {
                (tally.rings[of].name, place): (events, total)
                for tally in tallies
                for of, place, events, total in zip(*(some.tolist() for some in tally[1:5]), strict=True)
            }
            lost = {client: +reasons for client, reasons in drained.lost.items()}
            found.append((columns, added, sums, lost, drained.found, drained.malformed, drained.held_back, drained.taken))
            self.assertLessEqual(max((int(one.counts.sum()) for one in drained.tallies), default=0), max(most, *map(len, rings), 0))
        self.assertEqual(*found[::2])
        self.assertEqual(*found[1:])
