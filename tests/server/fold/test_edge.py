"""States that an Agent folded: merged in the cycle and transaction of events, counted as the events that they are, or one dead letter."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from math import inf, nan
from random import Random
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from taba.batch import MAX_DUMP_BYTES, AtEdge, Column, decode_batch, encode_batch
from taba.handlers import counter_group
from taba.handlers.counter_group import CounterGroup
from taba.handlers.gauge import Gauge
from taba.handlers.percentile_counter import PercentileCounter
from taba.handlers.percentile_group import PercentileGroup
from taba.handlers.totals_counter import TotalsCounter
from taba.server import keys
from taba.server.fold.deadletters import column_of, dead_letters_of, decode_dead_letter, describe, encode_dead_letter, shown_of
from tests.examples import examples
from tests.pieces import at_edge

from ..samples import BUCKETS, MemoryStore, Sum, batch, column, lookup_of, tab_in

COUNTERS, TOTALS = CounterGroup(), TotalsCounter()
HANDLERS: dict[str, Any] = {one.type: one for one in (COUNTERS, TOTALS, PercentileGroup(), PercentileCounter())}
LOOKUP = lookup_of(*HANDLERS.values(), Gauge(), Sum())
A, B = tab_in(0, 0), tab_in(0, 1)


class Picky(TotalsCounter):
    """Raises for all of an array at a State of 13, and at an event of 13."""

    type = "Picky"

    def merge_array(self, states: Any, rows: Any, dumps: Sequence[bytes], now: float) -> Any:
        if any(struct.unpack_from("<qd", dump)[1] == 13 for dump in dumps):
            raise ZeroDivisionError("13")
        return super().merge_array(states, rows, dumps, now)

    def fold_array(self, states: Any, rows: Any, times: Any, values: Any, now: float) -> Any:
        if now == 1001.0 and (values == 13).any():
            raise ZeroDivisionError("13")
        return super().fold_array(states, rows, times, values, now)


def told(column: Column, **changes: Any) -> Column:
    """`column` with another version, dump or last time."""
    assert isinstance(column.values, AtEdge)
    return column._replace(values=column.values._replace(**changes))


def projection(store: MemoryStore, handler: Any, tab: str = A, client: str = "web/1") -> Any:
    content = store.keys.get(keys.states(0), {}).get(keys.state_field(tab, client))
    return None if content is None else handler.project([content[keys.FRAME_BYTES :], *[b""] * handler.further_parts], 1001.0)


class Merging(SynchronousTestCase):
    def setUp(self) -> None:
        self.store = MemoryStore()

    def letters(self, store: MemoryStore | None = None) -> list[Any]:
        return [decode_dead_letter(content) for content in (store or self.store).keys.get(keys.dead_letters(0), [])]

    def test_what_has_only_events_needs_no_arrays_because_others_are_merged(self) -> None:
        if counter_group._rows is None:
            raise SkipTest("_rows is not built: needs a compiler")
        loaded: list[int] = []
        load = CounterGroup.load_array

        def counting(handler: CounterGroup, dumps: Sequence[bytes]) -> Any:
            loaded.append(len(dumps))
            return load(handler, dumps)

        self.patch(CounterGroup, "load_array", counting)
        clients = [f"web/{number}" for number in range(40)]
        for number in (1, 2):  # States that are new, and that are there
            events = [column(A, "CounterGroup", [2.0, 3.0], client) for client in clients]
            merges = [at_edge(A, COUNTERS, [4.0] * 7, "web/1"), at_edge(B, COUNTERS, [5.0] * 7)]
            outcome = self.store.cycle(LOOKUP, [batch(1, number, [*events, *merges])])
            self.assertEqual((outcome.folded, outcome.dead), (94, {}))
        self.assertEqual({*loaded}, {2})  # also for looking how many events they are of
        counts = [projection(self.store, COUNTERS, A, client)["pct"]["count"] for client in clients]
        self.assertEqual((counts, projection(self.store, COUNTERS, B)["pct"]["count"]), ([4, 18, *[4] * 38], 14))

    def test_states_and_events_of_one_row_count_together_and_are_as_many_as_their_events(self) -> None:
        for type, handler in HANDLERS.items():
            store, other = MemoryStore(), MemoryStore()
            times = [999.0, 1000.0, 940.0, 1000.5]
            columns = [at_edge(A, handler, [1.0, 5.0, 2.0, 2.0], times=times), column(A, type, [3.0]), at_edge(A, handler, [4.0] * 7)]
            outcome = store.cycle(LOOKUP, [batch(1, 1, columns), batch(2, 1, [at_edge(A, handler, [9.0, 9.0])])])
            self.assertEqual((outcome.folded, outcome.dead, dict(outcome.moved)), (14, {}, {A: 14}), type)
            self.assertEqual(sorted(struct.unpack("<4d", b"".join(outcome.times))), [940.0, 1000.0, 1000.0, 1000.0])
            events = [column(A, type, [1.0, 5.0, 2.0, 2.0], times=times), column(A, type, [3.0] + [4.0] * 7 + [9.0, 9.0])]
            other.cycle(LOOKUP, [batch(1, 1, events)])
            self.assertEqual(projection(store, handler), projection(other, handler), type)
            self.assertEqual(store.counts(), other.counts())

    def test_what_is_not_merged_here_is_one_dead_letter_of_as_many_events_as_it_stands_for(self) -> None:
        good, gauge = at_edge(A, COUNTERS, [1.0] * 5), at_edge(B, TOTALS, [2.0] * 9)._replace(type="Gauge")
        own = at_edge(tab_in(0, 2), TOTALS, [1.0] * 3)._replace(type="Sum")
        nobody = at_edge(tab_in(0, 3), TOTALS, [1.0] * 4)._replace(type="Nobody")
        elsewhere = at_edge(tab_in(1), COUNTERS, [1.0] * 6)
        outcome = self.store.cycle(LOOKUP, [batch(1, 1, [told(good, edge=7), gauge, own, nobody, elsewhere, good])])
        self.assertEqual((outcome.folded, outcome.dead), (5, {"unknown_edge": 5 + 9 + 3, "unknown_type": 4, "wrong_bucket": 6}))
        self.assertEqual(sorted(letter.events for letter in self.letters()), [3, 4, 5, 6, 9])
        self.assertEqual(self.store.counts(), {"folded": 5, "dead:unknown_edge": 17, "dead:unknown_type": 4, "dead:wrong_bucket": 6})
        self.assertIn("State of version 7, and version 1 is merged here", {letter.detail[-60:] for letter in self.letters()}.__repr__())

    def test_a_handler_of_others_is_never_given_one(self) -> None:
        outcome = self.store.cycle(lookup_of(COUNTERS, own=False), [batch(1, 1, [at_edge(A, COUNTERS, [1.0] * 5)])])
        self.assertEqual((outcome.folded, outcome.dead), (0, {"unknown_edge": 5}))

    def test_a_state_of_other_events_than_it_is_said_to_be_or_that_is_none_is_a_bad_column_and_harms_none_beside_it(self) -> None:
        for handler in HANDLERS.values():
            store = MemoryStore()
            good = at_edge(A, handler, [1.0] * 5)
            assert isinstance(good.values, AtEdge)
            dump = good.values.dump
            bad = [good._replace(stands_for=4), good._replace(stands_for=6), told(good, dump=dump[:-8]), told(good, dump=b"x")]
            bad += [told(good, dump=handler.dump_array(handler.load_array([b""]))[0]), told(good, dump=bytes(len(dump)))]
            outcome = store.cycle(LOOKUP, [batch(1, 1, [bad[0], good, *bad[1:], good, column(A, handler.type, [2.0])])])
            self.assertEqual((outcome.folded, outcome.dead), (11, {"bad_column": 30}), handler.type)
            self.assertEqual(len(self.letters(store)), len(bad))

    def test_no_state_has_counts_that_wrap_to_those_that_it_is_said_to_have_nor_sums_or_extremes_that_no_event_has(self) -> None:
        wraps = np.array([2**62] * 4 + [5])  # which sum up to 5, where a number has 64 bits

        def wrap_bins(states: Any) -> None:
            bins = getattr(states, "journal", states)
            setattr(bins, "counts" if hasattr(bins, "counts") else "bin_counts", wraps)

        def wrap_slots(states: Any) -> None:
            states.slot_counts = wraps

        def extreme(name: str, value: float) -> Callable[[Any], None]:
            def change(states: Any) -> None:
                if hasattr(states, "journal"):
                    getattr(states.journal, name + "s")[-1] = value
                else:
                    getattr(states, "head", states)[name][0] = value

            return change

        def sum_up(value: float, is_slot: bool) -> Callable[[Any], None]:
            def change(states: Any) -> None:
                if is_slot:
                    (states.journal.totals if hasattr(states, "journal") else states.slot_totals)[-1] = value
                elif hasattr(states, "journal"):
                    states.total[0] = value
                else:
                    getattr(states, "head", states)["total"][0] = value

            return change

        extremes = [extreme("low", -inf), extreme("high", inf), extreme("low", nan), extreme("high", nan)]
        for handler in HANDLERS.values():
            good = at_edge(A, handler, [1.0, 2.0, 4.0, 8.0, 16.0], times=[1000.0, 980.0, 960.0, 940.0, 945.0])
            assert isinstance(good.values, AtEdge)
            whose = (False, True) if handler.further_parts else (False,)
            totals = [sum_up(value, is_slot) for value in (inf, -inf, nan) for is_slot in whose]
            changes = [*extremes, *totals, *([] if handler is TOTALS else [wrap_bins]), *([wrap_slots] if handler is COUNTERS else [])]
            for change in changes:
                states = handler.load_array([good.values.dump])
                change(states)
                store = MemoryStore()
                outcome = store.cycle(LOOKUP, [batch(1, 1, [told(good, dump=handler.dump_array(states)[0]), good])])
                self.assertEqual((outcome.folded, outcome.dead), (5, {"bad_column": 5}), (handler.type, changes.index(change)))

    @examples(60)
    @given(st.integers(0, 2**32))
    def test_whatever_bytes_a_dump_has_it_is_folded_or_a_dead_letter(self, seed: int) -> None:
        random = Random(seed)
        handler = random.choice(list(HANDLERS.values()))
        good = at_edge(A, handler, [random.choice([1.0, -3.0, 0.0, 1e300]) for _ in range(random.randint(1, 40))])
        assert isinstance(good.values, AtEdge)
        dump = bytearray(good.values.dump)
        for _ in range(random.randint(0, 3)):
            dump[random.randrange(len(dump))] = random.randrange(256)
        columns = [told(good, dump=bytes(dump)), at_edge(B, handler, [1.0] * 3)]
        outcome = MemoryStore().cycle(LOOKUP, [batch(1, 1, columns)])
        self.assertEqual(outcome.folded + sum(outcome.dead.values()), good.weight + 3)
        self.assertGreaterEqual(outcome.folded, 3)

    def test_a_merge_that_raises_buries_the_culprit_alone_and_it_is_merged_again_when_that_is_mended(self) -> None:
        picky = Picky()
        lookup = lookup_of(picky)
        values: list[list[float]] = [[1.0], [13.0], [2.0, 2.0], [6.0, 7.0], [3.0]]
        columns = [at_edge(A, picky, some) for some in values] + [column(A, "Picky", [13.0, 4.0]), at_edge(B, picky, [5.0])]
        outcome = self.store.cycle(lookup, [batch(1, 1, columns)])
        self.assertEqual((outcome.folded, outcome.dead), (6, {"handler_error": 4}))
        self.assertEqual(outcome.handler_errors, {"Picky": 4})
        self.assertEqual([projection(self.store, picky, tab)["total"] for tab in (A, B)], [1 + 4 + 3 + 4, 5])
        again = [found for letter in self.letters() if (found := column_of(letter)) is not None]
        self.assertEqual(sorted(one.weight for one in again), [1, 1, 2])

    def test_several_buckets_at_once_merge_as_each_alone(self) -> None:
        picky = Picky()
        lookup = lookup_of(picky, COUNTERS)
        waiting = {}
        for bucket in range(BUCKETS):
            tabs = [tab_in(bucket, number) for number in range(2)]
            columns = [at_edge(tabs[0], picky, [13.0 if bucket == 1 else 2.0]), at_edge(tabs[1], COUNTERS, [1.0] * 9)]
            columns += [told(columns[1], dump=b"x") if bucket == 2 else columns[1], column(tabs[0], "Picky", [1.0])]
            waiting[bucket] = [batch(1, 1, columns, bucket=bucket)]
        store, other = MemoryStore(), MemoryStore()
        outcomes = store.together(lookup, waiting)
        for bucket, its in waiting.items():
            alone = other.cycle(lookup, its, bucket)
            self.assertEqual((outcomes[bucket].folded, outcomes[bucket].dead), (alone.folded, alone.dead))
        self.assertEqual([outcomes[bucket].folded for bucket in range(BUCKETS)], [20, 19, 11, 20])
        self.assertEqual(store.keys, other.keys)


class Letters(SynchronousTestCase):
    def test_a_state_comes_back_from_its_letter_and_is_shown_as_one_line(self) -> None:
        whole = at_edge('a{b="c"}', COUNTERS, [1.0] * 5, times=[1000.0, 1000.0, 1000.5, 1000.0, 1000.0])
        assert isinstance(whole.values, AtEdge)
        largest = told(whole._replace(tab="t" * 200, client="c" * 200), dump=bytes(MAX_DUMP_BYTES))
        for one in (whole, largest):
            [letter] = dead_letters_of(7.0, "unknown_edge", "why", one)
            back = decode_dead_letter(encode_dead_letter(letter))
            assert back is not None
            self.assertEqual((column_of(back), back.events, shown_of(back)), (one, 5, 1))
            [shown] = describe(0, back)
            self.assertEqual((shown["events"], shown["time"], shown["tab"], shown["client"]), (5, 1000.0, one.tab, one.client))
            json.dumps(shown)
        [shown] = describe(0, next(iter(dead_letters_of(7.0, "unknown_edge", "why", whole))))
        says = f"5 events until 1000.500, folded by an Agent in version 1, {len(whole.values.dump)} bytes"
        self.assertEqual(shown["content"], says)

    def test_what_is_left_out_of_a_letter_or_is_no_state_is_not_folded(self) -> None:
        whole = at_edge(A, COUNTERS, [1.0] * 5)
        [letter] = dead_letters_of(7.0, "unknown_edge", "why", told(whole, dump=bytes(70_000)))
        back = decode_dead_letter(encode_dead_letter(letter))
        assert back is not None
        self.assertEqual((column_of(back), back.events), (None, 5))
        self.assertEqual([one["events"] for one in describe(0, back)], [5])
        for content in (b"\xc1", b"\x90", b"\x93\x01\x02\x03", b"\x93\xa1x\xc4\x00\xcb" + bytes(8)):
            odd = letter._replace(content=content)
            self.assertEqual((column_of(odd), len(list(describe(0, odd)))), (None, 1))

    def test_a_batch_of_states_reads_back_as_it_was_written(self) -> None:
        columns = [at_edge(A, COUNTERS, [1.0] * 5), column(A, "CounterGroup", [1.0])]
        columns += [at_edge(B, TOTALS, [2.0, 3.0]), at_edge(A, TOTALS, [1.0])]
        self.assertEqual(decode_batch(encode_batch(bytes(16), 0, 1, columns)).columns, columns)
