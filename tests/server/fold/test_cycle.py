"""The fold cycle: marks, States, dead letters, decided without any I/O."""

from __future__ import annotations

import json
import math
import struct
from random import Random
from typing import Any

import msgpack
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.batch import BadColumn, decode_batch
from taba.bounds import MAX_TIME, MAX_VALUE_BYTES, MAX_VALUE_DEPTH
from taba.handlers.lookup import shown
from taba.server import keys
from taba.server.fold.burying import MAX_MISSING_TYPES
from taba.server.fold.cycle import Cycle, WaitingBatch
from taba.server.fold.deadletters import MAX_DEAD_LETTER_VALUE, MAX_DEAD_LETTERS, decode_dead_letter, describe
from taba.server.fold.marks import Mark, decode_mark
from taba.server.work import applying
from tests.examples import examples

from ..samples import AGE, BUCKETS, NONCE, MemoryStore, Spilling, Sum, Words, batch, column, lookup_of, tab_in

LOOKUP = lookup_of(Sum(), Spilling(), Words())
A, B = tab_in(0, 0), tab_in(0, 1)


def words(outcome: Any) -> list[tuple[Any, ...]]:
    return [tuple(verdict) if verdict.why != "" else tuple(verdict[:2]) for verdict in outcome.verdicts]


def _uint32s(numbers: list[int]) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def sum_of(store: MemoryStore, tab: str = A, client: str = "web/1") -> tuple[int, float] | None:
    content = store.keys.get(keys.states(0), {}).get(keys.state_field(tab, client))
    return content and struct.unpack("<qd", content[keys.FRAME_BYTES :])


class Marks(SynchronousTestCase):
    def setUp(self) -> None:
        self.store = MemoryStore()

    def test_a_batch_is_folded_once_however_often_it_comes(self) -> None:
        one = batch(1, 1, [column(A, "Sum", [2.0, 3.0])])
        self.assertEqual(words(self.store.cycle(LOOKUP, [one])), [("applied", 1)])
        before = self.store.keys
        again = self.store.cycle(LOOKUP, [one, one], now=2000.0)
        self.assertEqual((words(again), again.commands), ([("applied", 1), ("applied", 1)], []))
        self.assertEqual(self.store.keys, before)
        self.assertEqual(sum_of(self.store), (2, 5.0))

    def test_a_batch_that_comes_twice_in_one_cycle_is_folded_once(self) -> None:
        one = batch(1, 1, [column(A, "Sum", [2.0, 3.0])])
        self.assertEqual(words(self.store.cycle(LOOKUP, [one, one])), [("applied", 1), ("applied", 1)])
        self.assertEqual(sum_of(self.store), (2, 5.0))

    def test_consecutive_batches_of_one_stream_are_folded_in_one_cycle(self) -> None:
        lot = [batch(1, number, [column(A, "Sum", [float(number)])]) for number in (1, 2, 3)]
        self.assertEqual(words(self.store.cycle(LOOKUP, lot)), [("applied", 1), ("applied", 2), ("applied", 3)])
        self.assertEqual(sum_of(self.store), (3, 6.0))
        self.assertEqual(decode_mark(self.store.keys[keys.marks(0)][bytes([1]) * 16]), Mark(NONCE, 3, AGE))

    def test_a_batch_that_does_not_follow_the_mark_is_a_gap_and_harms_no_other_stream(self) -> None:
        outcome = self.store.cycle(LOOKUP, [batch(1, 3, [column(A, "Sum", [1.0])]), batch(2, 1, [column(A, "Sum", [1.0])])])
        self.assertEqual(words(outcome), [("gap", 0, "number"), ("applied", 1)])
        self.assertEqual(sum_of(self.store), (1, 1.0))
        skipping = batch(1, 3, [column(A, "Sum", [1.0])], follows=0)
        self.assertEqual(words(self.store.cycle(LOOKUP, [skipping])), [("applied", 3)])

    @examples(100)
    @given(st.integers(0, 2**32))
    def test_any_order_and_repetition_of_batches_gives_the_same_states(self, seed: int) -> None:
        random = Random(seed)
        streams = {
            stream: [
                batch(stream, number, [column(random.choice([A, B]), "Sum", [1.0] * random.randint(1, 3))])
                for number in range(1, random.randint(1, 5) + 1)
            ]
            for stream in range(1, 4)
        }
        store, other = MemoryStore(), MemoryStore()
        other.cycle(LOOKUP, [item for lot in streams.values() for item in lot])
        left = {stream: list(lot) for stream, lot in streams.items()}
        applied: list[Any] = []
        while any(left.values()):
            cycle = []
            for _ in range(random.randint(1, 4)):
                stream = random.choice(sorted(left))
                if applied and random.random() < 0.5:
                    cycle.append(random.choice(applied))  # comes again
                elif left[stream]:
                    # now and then too early: a gap, and it is sent again
                    cycle.append(left[stream][min(len(left[stream]) - 1, random.randint(0, 1))])
            for item, verdict in zip(cycle, store.cycle(LOOKUP, cycle).verdicts if cycle else (), strict=True):
                lot = left[item.batch.stream[0]]
                if verdict.word == "applied" and item in lot:
                    lot.remove(item)
                    applied.append(item)
        self.assertEqual(store.keys, other.keys)


class States(SynchronousTestCase):
    def setUp(self) -> None:
        self.store = MemoryStore()

    def test_what_a_cycle_writes(self) -> None:
        self.store.cycle(LOOKUP, [batch(1, 1, [column(A, "Sum", [1.0]), column(B, "Words", ["x"], client="web/2")])])
        self.assertEqual(self.store.keys[keys.tabs(0)], {A.encode(): b"Sum", B.encode(): b"Words"})
        self.assertEqual(self.store.keys[keys.clients(0)], {b"web/1", b"web/2"})
        self.assertEqual(self.store.keys[keys.clients_of(0, A.encode())], {b"web/1"})
        self.assertEqual(self.store.counts(), {"folded": 2})
        self.assertEqual(self.store.keys[keys.states(0)][keys.state_field(A, "web/1")][:6], struct.pack("<HI", 2, AGE))

    def test_the_events_of_a_client_come_in_order_over_batches(self) -> None:
        self.store.cycle(LOOKUP, [batch(1, 1, [column(A, "Words", ["a", 1.0])]), batch(1, 2, [column(A, "Words", [2.0, 3.0])])])
        self.store.cycle(LOOKUP, [batch(1, 3, [column(A, "Words", ["b"])])])
        [content] = self.store.keys[keys.states(0)].values()
        self.assertEqual(Words().load(content[6:]), ["a", 1.0, 2.0, 3.0, "b"])

    def test_a_state_of_an_older_version_is_upgraded(self) -> None:
        field = keys.state_field(A, "web/1")
        self.store.put(keys.tabs(0), {A.encode(): b"Sum"})
        self.store.put(keys.states(0), {field: keys.frame(1, 5) + struct.pack("<q", 7)})
        self.store.cycle(LOOKUP, [batch(1, 1, [column(A, "Sum", [4.0])])])
        self.assertEqual(sum_of(self.store), (8, 4.0))
        self.assertEqual(self.store.keys[keys.states(0)][field][:6], keys.frame(2, AGE))

    def test_a_state_that_is_upgraded_to_none_is_not_touched_and_what_comes_for_it_is_a_dead_letter(self) -> None:
        class Renamed(Words):
            version = 2

            def upgrade(self, content: bytes, version: int) -> Any:
                return None  # as where its author forgot what to return

            def fold(self, state: Any, events: Any, now: float) -> Any:
                return state

            def project(self, state: Any, now: float) -> Any:
                return {"words": len(state)}

        class Halved(Sum):
            def upgrade_parts(self, parts: Any, version: int) -> Any:
                return []

        for handler in (Renamed(), Halved()):
            with self.subTest(type=handler.type):
                self.setUp()
                field, content = keys.state_field(A, "web/1"), keys.frame(1, 5) + b"\x90".ljust(8, b"\0")
                self.store.put(keys.tabs(0), {A.encode(): handler.type.encode()})
                self.store.put(keys.states(0), {field: content})
                self.store.cycle(lookup_of(handler), [batch(1, 1, [column(A, handler.type, [4.0])])])
                self.assertEqual(self.store.keys[keys.states(0)][field], content)
                self.assertEqual(self.store.counts(), {"dead:handler_error": 1})

    def test_a_state_of_a_newer_version_is_not_touched(self) -> None:
        field, content = keys.state_field(A, "web/1"), keys.frame(3, 5) + b"whatever"
        self.store.put(keys.tabs(0), {A.encode(): b"Sum"})
        self.store.put(keys.states(0), {field: content})
        self.store.cycle(LOOKUP, [batch(1, 1, [column(A, "Sum", [4.0]), column(A, "Sum", [1.0], client="web/2")])])
        self.assertEqual(self.store.keys[keys.states(0)][field], content)
        self.assertEqual(sum_of(self.store, client="web/2"), (1, 1.0))
        self.assertEqual(self.store.counts(), {"folded": 1, "dead:newer_state": 1})

    def test_a_state_that_is_none_is_not_touched(self) -> None:
        field = keys.state_field(A, "web/1")
        self.store.put(keys.tabs(0), {A.encode(): b"Sum"})
        self.store.put(keys.states(0), {field: b"abc"})
        self.store.cycle(LOOKUP, [batch(1, 1, [column(A, "Sum", [4.0])])])
        self.assertEqual(self.store.keys[keys.states(0)], {field: b"abc"})
        self.assertEqual(self.store.counts(), {"dead:bad_state": 1})

    def test_further_parts_are_read_and_written_when_a_state_spills(self) -> None:
        for number in range(1, 12):
            columns = [column(A, "Spilling", [float(number)]), column(B, "Spilling", [100.0], client="web/2")]
            self.store.cycle(LOOKUP, [batch(1, number, columns[: 1 + number % 2])])
        handler, kept = Spilling(), self.store.keys[keys.states(0)]
        field = keys.state_field(A, "web/1")
        parts = [kept[name][6:] for name in keys.part_fields(field, 2)]
        [projection] = handler.project_array(handler.load_array([kept[field][6:]]), [parts], 0.0)
        self.assertEqual(projection, {"values": [float(number) for number in range(1, 12)]})
        even = keys.part_fields(keys.state_field(B, "web/2"), 2)
        self.assertIn(even[0], kept)
        self.assertNotIn(even[1], kept)  # empty parts are not kept


class DeadLetters(SynchronousTestCase):
    def setUp(self) -> None:
        self.store = MemoryStore()

    def letters(self) -> list[Any]:
        return [decode_dead_letter(content) for content in self.store.keys.get(keys.dead_letters(0), [])]

    def test_each_reason_is_counted_and_harms_nobody_else(self) -> None:
        foreign = tab_in(1)
        columns = [
            column(A, "Sum", [1.0]),
            column(A, "Words", ["x"]),
            column(B, "Nowhere", [1.0, 2.0]),
            column(foreign, "Sum", [1.0]),
            BadColumn("odd", msgpack.packb(["web/1", A, "Sum", bytes(16), 7]), 2),
            column(A, "Sum", [2.0]),
        ]
        outcome = self.store.cycle(LOOKUP, [batch(1, 1, columns)])
        self.assertEqual(words(outcome), [("applied", 1)])
        self.assertEqual(sum_of(self.store), (2, 3.0))
        dead = {"dead:type_conflict": 1, "dead:unknown_type": 2, "dead:wrong_bucket": 1, "dead:bad_column": 2}
        self.assertEqual(self.store.counts(), {"folded": 2, **dead})
        self.assertEqual(self.store.keys[keys.tabs(0)], {A.encode(): b"Sum"})
        self.assertEqual(self.store.keys[keys.missing(0)], [b"Nowhere"])
        self.assertEqual([letter.reason for letter in self.letters()], ["bad_column", "wrong_bucket", "unknown_type", "type_conflict"])

    def test_when_an_array_fold_raises_only_the_culprits_fail(self) -> None:
        self.store.cycle(LOOKUP, [batch(1, 1, [column(A, "Sum", [1.0], client=f"web/{n}") for n in range(5)])])
        before = self.store.keys[keys.states(0)][keys.state_field(A, "web/3")]
        columns = [column(A, "Sum", [13.0 if n == 3 else 2.0], client=f"web/{n}") for n in range(5)]
        columns += [column(B, "Words", ["bad"]), column(B, "Words", ["good"], client="web/2")]
        outcome = self.store.cycle(LOOKUP, [batch(1, 2, columns)])
        self.assertEqual([sum_of(self.store, client=f"web/{n}") for n in range(5)], [(2, 3.0), (2, 3.0), (2, 3.0), (1, 1.0), (2, 3.0)])
        self.assertEqual(self.store.keys[keys.states(0)][keys.state_field(A, "web/3")], before)
        self.assertEqual(self.store.counts(), {"folded": 10, "dead:handler_error": 2})
        self.assertEqual(outcome.handler_errors, {"Sum": 1, "Words": 1})

    def test_when_a_spill_raises_only_the_culprits_fail(self) -> None:
        clients = [f"web/{n}" for n in range(4)]
        values = {"web/2": [14.0]}
        for number in range(1, 7):
            columns = [column(A, "Spilling", values.get(client, [1.0]), client=client) for client in clients]
            self.store.cycle(LOOKUP, [batch(1, number, columns)])
        self.assertEqual(self.store.counts(), {"folded": 22, "dead:handler_error": 2})

    def test_values_that_a_numeric_handler_does_not_take(self) -> None:
        values = [1, 2.5, "x", True, None, 2**70, 10**400, math.nan, math.inf, [1]]
        self.store.cycle(LOOKUP, [batch(1, 1, [column(A, "Sum", values)]), batch(1, 2, [column(A, "Sum", [math.nan, 1.0])])])
        self.assertEqual(sum_of(self.store), (4, 4.5 + 2.0**70))
        self.assertEqual(self.store.counts(), {"folded": 4, "dead:bad_value": 8})

    def test_times_that_are_none(self) -> None:
        self.store.cycle(LOOKUP, [batch(1, 1, [column(A, "Sum", [1.0, 2.0, 3.0], times=[math.nan, 1.0, math.inf])])])
        self.store.cycle(LOOKUP, [batch(1, 2, [column(B, "Words", ["a", "b"], times=[math.nan, 1.0])])])
        self.store.cycle(LOOKUP, [batch(1, 3, [column(B, "Words", ["a"], client="web/9", times=[math.nan])])])
        self.assertEqual(sum_of(self.store), (1, 2.0))
        self.assertEqual(self.store.counts(), {"folded": 2, "dead:bad_time": 4})
        times = [0.0, MAX_TIME, -1.0, MAX_TIME * (1 + 2**-52), 1e18]
        self.store.cycle(LOOKUP, [batch(1, 4, [column(A, "Sum", [1.0] * 5, times=times)])])
        self.assertEqual(self.store.counts(), {"folded": 4, "dead:bad_time": 7})
        self.assertNotIn(keys.state_field(B, "web/9"), self.store.keys[keys.states(0)])

    def test_a_value_at_its_bound_is_folded_and_one_past_it_is_not(self) -> None:
        fits, too_large = "x" * (MAX_VALUE_BYTES - 3), "x" * (MAX_VALUE_BYTES - 2)
        item = batch(1, 1, [column(A, "Words", [fits, too_large])])._replace(size=100_000)
        self.store.cycle(LOOKUP, [item])
        self.assertEqual(self.store.counts(), {"folded": 1, "dead:bad_value": 1})

    def test_a_value_that_is_nested_too_deeply_harms_nobody(self) -> None:
        deep: Any = []
        for _ in range(1500):
            deep = [deep]
        self.store.cycle(
            LOOKUP,
            [batch(1, 1, [column(A, "Words", ["a", deep]), BadColumn("odd", b"\x91" * 500 + b"\xc0", 1), column(B, "Nowhere", [deep])])],
        )
        self.assertEqual(self.store.counts(), {"folded": 1, "dead:bad_value": 1, "dead:bad_column": 1, "dead:unknown_type": 1})

    def test_what_is_no_column_takes_no_room_for_events_that_its_sender_only_claims(self) -> None:
        for number, size in enumerate((10, MAX_DEAD_LETTER_VALUE, 1_000_000), start=1):
            self.store.cycle(LOOKUP, [batch(1, number, [BadColumn("odd", bytes(size), 1_048_576)])])
            kept = self.store.keys[keys.dead_letters(0)][0]
            self.assertLess(len(kept), 200)
            letter = decode_dead_letter(kept)
            assert letter is not None
            self.assertEqual((letter.events, len(letter.content)), (1_048_576, size if size == 10 else 0))
            self.assertEqual(next(describe(0, letter))["events"], 1_048_576)
        self.assertEqual(self.store.counts(), {"dead:bad_column": 3 * 1_048_576})

    def test_a_state_at_its_bound_is_kept_and_one_past_it_is_not_written(self) -> None:
        self.patch(applying, "MAX_STATE_BYTES", 12)
        self.store.cycle(LOOKUP, [batch(1, 1, [column(A, "Words", ["x" * 10])])])
        [before] = self.store.keys[keys.states(0)].values()
        self.assertEqual(len(before), keys.FRAME_BYTES + 12)
        self.store.cycle(LOOKUP, [batch(1, 2, [column(A, "Words", ["x"])])])
        self.assertEqual(list(self.store.keys[keys.states(0)].values()), [before])
        self.assertEqual(self.store.counts(), {"folded": 1, "dead:state_too_large": 1})

    def test_the_list_of_missing_types_is_bounded(self) -> None:
        columns = [column(A, f"Nowhere{n}", [1.0]) for n in range(MAX_MISSING_TYPES + 1)]
        self.store.cycle(LOOKUP, [batch(1, 1, columns)])
        self.store.cycle(LOOKUP, [batch(1, 2, columns[:1])])
        self.assertEqual(len(self.store.keys[keys.missing(0)]), MAX_MISSING_TYPES)

    def test_a_missing_type_that_comes_all_the_time_pushes_no_other_out_of_their_list(self) -> None:
        self.store.cycle(LOOKUP, [batch(1, 1, [column(A, "Seldom", [1.0]), column(B, "Seldom", [1.0])])])
        for number in range(2, MAX_MISSING_TYPES + 2):
            self.store.cycle(LOOKUP, [batch(1, number, [column(A, "Often", [1.0])])])
        self.assertEqual(self.store.keys[keys.missing(0)], [b"Often", b"Seldom"])

    def test_the_list_is_bounded_and_what_it_drops_is_counted(self) -> None:
        columns = [column(A, "Nowhere", [1.0], client=f"web/{n}") for n in range(MAX_DEAD_LETTERS)]
        self.store.cycle(LOOKUP, [batch(1, 1, columns)])
        self.assertEqual(self.store.counts(), {"dead:unknown_type": MAX_DEAD_LETTERS})
        self.store.cycle(LOOKUP, [batch(1, 2, [column(A, "Nowhere", [1.0, 2.0])])])
        self.assertEqual(len(self.letters()), MAX_DEAD_LETTERS)
        # each Event is counted once: as a dead letter, or as one that was dropped
        self.assertEqual(self.store.counts(), {"dead:unknown_type": MAX_DEAD_LETTERS + 1, "dead_dropped": 1})
        self.store.cycle(LOOKUP, [batch(1, 3, [*columns, column(B, "Nowhere", [3.0])])])
        self.assertEqual(self.store.counts(), {"dead:unknown_type": MAX_DEAD_LETTERS, "dead_dropped": 1 + 1 + MAX_DEAD_LETTERS + 1})
        self.assertEqual(sum(letter.events for letter in self.letters()), MAX_DEAD_LETTERS)

    def test_what_is_pushed_out_leaves_the_count_of_its_own_reason(self) -> None:
        self.store.cycle(LOOKUP, [batch(1, 1, [column(A, "Sum", [1.0])])])
        self.store.cycle(LOOKUP, [batch(1, 2, [column(A, "Words", ["a", "b", "c"])])])
        columns = [column(B, "Nowhere", [1.0], client=f"web/{n}") for n in range(MAX_DEAD_LETTERS)]
        self.store.cycle(LOOKUP, [batch(1, 3, columns)])
        counts = self.store.counts()
        self.assertEqual((counts["dead:type_conflict"], counts["dead:unknown_type"], counts["dead_dropped"]), (0, MAX_DEAD_LETTERS, 3))

    def test_one_bad_event_makes_no_dead_letter_of_its_neighbours(self) -> None:
        outcome = self.store.cycle(LOOKUP, [batch(1, 1, [column(A, "Words", ["a", "bad", "b"]), column(A, "Words", ["c", "bad"])])])
        self.assertEqual((outcome.folded, outcome.dead, outcome.handler_errors), (3, {"handler_error": 2}, {"Words": 2}))
        [state] = self.store.keys[keys.states(0)].values()
        self.assertEqual(Words().load(state[keys.FRAME_BYTES :]), ["a", "b", "c"])
        self.assertEqual([letter.values for letter in self.letters()], [["bad"], ["bad"]])

    def test_a_value_that_is_nested_too_deeply_spoils_only_itself(self) -> None:
        for depth, dead in ((MAX_VALUE_DEPTH, 0), (MAX_VALUE_DEPTH + 1, 1), (500, 1), (2000, 1)):
            for type in ("Words", "Sum", "Nowhere"):
                store = MemoryStore()
                outcome = store.cycle(LOOKUP, [batch(1, 1, [column(A, type, [7.0, nested(depth), 8.0])])])
                letters = [decode_dead_letter(content) for content in store.keys.get(keys.dead_letters(0), [])]
                described = [event for letter in letters if letter for event in describe(0, letter)]
                json.dumps([shown(event) for event in described])
                self.assertEqual(sum(outcome.dead.values()) + outcome.folded, 3)
                if type == "Words":
                    self.assertEqual(outcome.dead.get("bad_value", 0), dead, depth)
                if type == "Nowhere":  # what came beside it is kept, and can be folded once there is a Handler
                    self.assertEqual(sorted(event["value"] for event in described if event["value"] in (7.0, 8.0)), [7.0, 8.0])

    def test_tabs_at_their_bound_are_folded_and_one_past_it_is_not(self) -> None:
        tabs = [tab_in(0, number) for number in range(4)]
        self.store.cycle(LOOKUP, [batch(1, 1, [column(tab, "Sum", [1.0]) for tab in tabs[:2]])], tabs=3)
        outcome = self.store.cycle(LOOKUP, [batch(1, 2, [column(tab, "Sum", [1.0, 2.0]) for tab in (*tabs, tabs[3])])], tabs=3)
        self.assertEqual((outcome.folded, outcome.dead), (6, {"too_many_tabs": 4}))
        self.assertEqual(set(self.store.keys[keys.tabs(0)]), {tab.encode() for tab in tabs[:3]})
        # those that are there take new Clients, and every Type of Event that they took
        self.store.cycle(LOOKUP, [batch(1, 3, [column(tabs[0], "Sum", [1.0], client="web/2")])], tabs=3)
        self.assertEqual(self.store.counts(), {"folded": 9, "dead:too_many_tabs": 4})

    def test_clients_at_their_bound_are_folded_and_one_past_it_is_not(self) -> None:
        columns = [column(tab, "Sum", [1.0], client=f"web/{n}") for n in range(4) for tab in (A, B)]
        outcome = self.store.cycle(LOOKUP, [batch(1, 1, columns)], clients=3)
        self.assertEqual((outcome.folded, outcome.dead), (6, {"too_many_clients": 2}))
        self.assertEqual(self.store.keys[keys.clients(0)], {b"web/0", b"web/1", b"web/2"})
        outcome = self.store.cycle(LOOKUP, [batch(1, 2, columns)], clients=3)
        self.assertEqual((outcome.folded, outcome.dead), (6, {"too_many_clients": 2}))
        self.assertEqual(self.store.keys[keys.clients_of(0, A.encode())], {b"web/0", b"web/1", b"web/2"})

    def test_a_long_column_is_kept_in_several_letters(self) -> None:
        self.store.cycle(LOOKUP, [batch(1, 1, [column(A, "Nowhere", [1.0] * 1000), column(B, "Nowhere", ["x" * 1000] * 10)])])
        self.assertEqual(sum(letter.events for letter in self.letters()), 1010)
        self.assertGreater(len(self.letters()), 5)


def nested(depth: int) -> Any:
    """A value so deep."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


class Anything(SynchronousTestCase):
    """Whatever an Agent may send, each Event is folded or a dead letter, and nothing raises."""

    values = st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=4,
    )
    floats = st.lists(st.floats(), min_size=1, max_size=4).map(lambda values: struct.pack(f"<{len(values)}d", *values))
    columns = st.tuples(
        st.sampled_from(["web/1", "web/2", "", "web 1"]),
        st.sampled_from([A, B, tab_in(1), "no name", "a\0b"]),
        st.integers(1, 4),
        st.lists(values, min_size=4, max_size=4),
        st.none() | st.integers(0, 5),
    )
    sections = st.tuples(
        st.sampled_from(["Sum", "Words", "Spilling", "Nowhere", "no type"]),
        st.lists(columns, min_size=1, max_size=4),
        st.booleans(),
        st.none() | st.integers(0, 4),
    )

    @examples(200)
    @given(st.lists(st.lists(sections | values, max_size=4), min_size=1, max_size=4), floats, floats)
    def test_is_folded_or_a_dead_letter(self, batches: list[list[Any]], times: bytes, numbers: bytes) -> None:
        store = MemoryStore()
        for number, sections in enumerate(batches, start=1):
            body: list[Any] = []
            for one in sections:
                if not isinstance(one, tuple):
                    body += (1, msgpack.packb(one))
                    continue
                type, columns, is_listed, spoilt = one
                rows = [shape[2] for shape in columns]
                fields = [f"{tab}\0{client}".encode() for client, tab, *_ in columns]
                content = [(four * sum(rows))[: 8 * sum(rows)] for four in (times * 4, numbers * 4)]
                lists = [b"".join(map(msgpack.packb, values[:count])) for _, _, count, values, _ in columns]
                weights = [count if weight is None else weight for _, _, count, _, weight in columns]
                has_weights = any(weight is not None for *_, weight in columns)
                section = [type, fields, _uint32s(rows), content[0], lists if is_listed else content[1]]
                section += [_uint32s(weights)] if has_weights else []
                if spoilt is not None:
                    section[spoilt] = section[spoilt][:-1]
                body += (sum(weights if has_weights else rows), msgpack.packb(section))
            content = msgpack.packb([5, bytes(16), 0, number, body, b""])
            decoded = decode_batch(content)
            counted = sum(store.counts().values())
            events = sum(one.events if isinstance(one, BadColumn) else one.weight for one in decoded.columns)
            outcome = store.cycle(LOOKUP, [WaitingBatch(number - 1, decoded, len(content), NONCE)])
            self.assertEqual(words(outcome), [("applied", number)])
            self.assertEqual(sum(store.counts().values()), counted + events)
        for content in store.keys.get(keys.dead_letters(0), []):
            letter = decode_dead_letter(content)
            assert letter is not None
            self.assertEqual(sum(event.get("events", 1) for event in describe(0, letter)), letter.events)
            json.dumps([shown(event) for event in describe(0, letter)], allow_nan=False)


class Reads(SynchronousTestCase):
    def test_a_cycle_reads_each_state_once(self) -> None:
        cycle = Cycle(0, [batch(1, 1, [column(A, "Sum", [1.0])] * 3), batch(2, 1, [column(A, "Sum", [1.0])])], BUCKETS)
        self.assertEqual([command[0] for command in cycle.reads], [b"HMGET", b"HMGET", b"HMGET"])
        self.assertEqual(cycle.reads[2][2:], (keys.state_field(A, "web/1"),))
