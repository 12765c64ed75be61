"""Batches, envelopes and verdicts, as bytes."""

from __future__ import annotations

import contextlib
import math
import struct
import sys
from typing import Any

import msgpack
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba import batch
from taba.batch import (
    END,
    KEY_BYTES,
    MARK,
    MAX_BATCH_MEANINGS,
    MAX_DUMP_BYTES,
    MAX_LIST_VALUES,
    MAX_STORE_AGE,
    MAX_STORE_ID,
    NONCE_BYTES,
    OPEN,
    AtEdge,
    BadColumn,
    Column,
    Envelope,
    EnvelopeAnswer,
    Header,
    Meaning,
    SentBatch,
    Verdict,
)
from taba.bounds import MAX_BATCH_BYTES, MAX_BATCH_COLUMNS, MAX_ENVELOPE_BATCHES, MAX_TIME
from taba.errors import MalformedBatch, NoVerdicts, UnknownVersion
from taba.steps import finish

STREAM = bytes(range(16))
NONCE = b"n" * NONCE_BYTES
FLOATS = struct.pack("<2d", 1.0, 2.0)


def column(tab: Any = "bids_won", times: Any = FLOATS, values: Any = FLOATS) -> Column:
    return Column("web/1", tab, "CounterGroup", times, values)


def body(*sections: tuple[Any, Any]) -> list[Any]:
    return [part for pair in sections for part in pair]


def counts(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


FIELD = b"bids_won\0web/1"
SECTION: list[Any] = ["CounterGroup", [FIELD], counts(2), FLOATS, FLOATS]  # what stands for `column()`


def section(**changes: Any) -> list[Any]:
    """That, but for what is given; `stands_for` is a sixth item."""
    names = ("type", "fields", "counts", "times", "values", "stands_for")
    changed = [changes.get(name, old) for name, old in zip(names, SECTION, strict=False)]
    return [*changed, changes["stands_for"]] if "stands_for" in changes else changed


def states(rows: list[dict[str, Any]]) -> list[Any]:
    """A section of States of version 3 that were folded at the edge."""
    fields, numbers, least, greatest, dumps = ([row[name] for row in rows] for name in ("fields", "counts", "least", "greatest", "dumps"))
    floats = [struct.pack(f"<{len(rows)}d", *some) for some in (least, greatest)]
    return ["CounterGroup", fields, counts(*numbers), *floats, dumps, 3]


def pack(*values: Any) -> bytes:
    return b"".join(map(msgpack.packb, values))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=3) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=20,
)


class Batches(SynchronousTestCase):
    def test_a_batch_reads_back_as_it_was_written(self) -> None:
        columns = [column(), column('a{b="c"}', values=["x", [1, None, b"y"]])]
        content = batch.encode_batch(STREAM, 5, 7, columns)
        self.assertEqual(batch.decode_batch(content)._replace(made_bytes=0), batch.Batch(STREAM, 5, 7, [*columns]))

    def test_a_bad_field_or_list_buries_its_column_alone(self) -> None:
        listed = [pack(1.0, "x"), pack(7, None)]
        fields = [
            b"taba.own\0web/1",
            b"a b\0web/1",
            b"\xff\0web/1",
            b"bids_won",
            b"bids_won\0",
            b"\0web/1",
            b"bids_won\0web/1\0more",
            b"bids_won\0_web",
            b"bids_won\0web 1",
            b"",
        ]
        lists = [
            b"",
            pack(1.0),
            pack(1.0, 2.0, 3.0),
            pack(1.0, 2.0)[:-1],
            b"\xc1\xc0",
            b"\xc0\xc7\x01\x05a",
            b"\xc0" + b"\x91" * 99 + b"\xc0",
        ]
        wrong = [(field, 1) for field in fields] + [(values, 0) for values in lists]
        for what, is_field in wrong:
            bad = {"fields": [FIELD, what, FIELD]} if is_field else {"fields": [FIELD] * 3}
            for values in (FLOATS * 3, [*listed, listed[0]]) if is_field else ([listed[0], what, listed[1]],):
                first, found, last = self.sections((6, section(**bad, counts=counts(2, 2, 2), times=FLOATS * 3, values=values))).columns
                self.assertEqual((type(first), type(last)), (Column, Column), (what, values))
                assert isinstance(found, BadColumn), what
                held = values[16:32] if isinstance(values, bytes) else values[1]
                self.assertEqual(found.events, 2)
                self.assertEqual(msgpack.unpackb(found.content), [bad["fields"][1], "CounterGroup", FLOATS, held])

    def test_a_section_whose_lengths_do_not_add_up_is_buried_whole_and_says_how_many_events_it_holds(self) -> None:
        sections: list[tuple[int, Any]] = [
            (3, SECTION),
            (2, section(times=b"123")),
            (2, section(times=FLOATS[:8])),
            (2, section(values=FLOATS[:8])),
            (2, section(values=7)),
            (2, section(values=[])),
            (2, section(values=[pack(1.0, 2.0)] * 2)),
            (2, section(values=["text"])),
            (2, section(values=[[1.0, 2.0]])),
            (2, section(counts=counts(1))),
            (2, section(counts=counts(2, 0), fields=[FIELD, FIELD])),
            (2, section(counts=counts(2)[:3])),
            (2, section(counts=[2])),
            (2, section(fields=[])),
            (2, section(fields=[FIELD, FIELD])),
            (2, section(fields=["text"])),
            (2, section(fields=FIELD)),
            (2, section(type="a b")),
            (2, section(type=b"CounterGroup")),
            (2, section(type=None)),
            (2, [1, 2]),
            (2, [*SECTION, counts(2), 7]),
            (2, "no section"),
            (0, section(counts=counts(0), times=b"", values=b"")),
            (0, section(fields=[], counts=b"", times=b"", values=b"")),
            (2, section(stands_for=counts(3))),
            (2, section(stands_for=None)),
            (2, section(stands_for=2)),
            (MAX_BATCH_BYTES + 1, section(stands_for=counts(MAX_BATCH_BYTES + 1))),
        ]
        bad = [(events, msgpack.packb(one)) for events, one in sections]
        bad += [(5, b""), (6, b"\xc1"), (7, msgpack.packb(SECTION)[:-1]), (2, msgpack.packb(SECTION) + b"x")]
        good, *others, last = self.sections((2, SECTION), *bad, (2, SECTION)).columns
        self.assertEqual((good, last), (column(), column()))
        self.assertEqual(len(others), len(bad))
        for other, (events, what) in zip(others, bad, strict=True):
            assert isinstance(other, BadColumn), (other, what)
            self.assertEqual((other.events, other.content), (events, what))

    def test_a_batch_has_a_thousand_columns_in_however_many_sections_and_of_one_more_its_section_is_buried(self) -> None:
        half = MAX_BATCH_COLUMNS // 2
        some, more = (
            section(fields=[FIELD] * of, counts=counts(*[1] * of), times=bytes(8 * of), values=bytes(8 * of)) for of in (half, half + 1)
        )
        self.assertEqual(len(self.sections((half, some), (half, some)).columns), MAX_BATCH_COLUMNS)
        first, *rest = reversed(self.sections((half, some), (half + 1, more)).columns)
        self.assertEqual((type(first), len(rest), {*map(type, rest)}), (BadColumn, half, {Column}))

    def test_fields_are_remembered_in_two_generations_of_so_many(self) -> None:
        fields = batch.Fields(2)
        names = [f"t{number}\0web/1".encode() for number in range(5)]
        for name in names:
            self.assertEqual(fields.find(name), ("web/1", name.partition(b"\0")[0].decode()))
        self.assertEqual((list(fields.young), list(fields.old)), (names[4:], names[2:4]))
        fields.find(names[2])  # an old one that comes again is young
        self.assertEqual((list(fields.young), list(fields.old)), ([names[4], names[2]], names[2:4]))
        for more, is_kept in ((0, True), (1, False)):
            long = b"t" * 50 + b'{a="' + b"x" * (batch.MAX_CACHED_NAME - 62 + more) + b'"}\0web/1'
            self.assertEqual(len(long), batch.MAX_CACHED_NAME + more)
            fields.find(long)
            self.assertEqual(long in fields.young, is_kept)

    @given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 3), st.booleans(), st.none() | st.integers(0, 9)), max_size=12))
    def test_columns_come_back_in_their_order_however_they_are_joined_to_sections(self, shapes: list[Any]) -> None:
        columns = [
            Column(f"web/{number}", "a", type, bytes(8 * rows), [number] * rows if is_listed else bytes(8 * rows), weight)
            for number, (type, rows, is_listed, weight) in enumerate(shapes)
        ]
        self.assertEqual(batch.decode_batch(batch.encode_batch(STREAM, 5, 7, columns)).columns, columns)
        self.assertEqual(sum(one.columns for one in batch.sections_of(columns)), len(columns))
        self.assertEqual(sum(one.weight for one in batch.sections_of(columns)), sum(one.weight for one in columns))

    def test_columns_of_a_section_whose_fields_are_known_cost_no_call_of_python_each(self) -> None:
        few, many = (
            batch.encode_batch(STREAM, 5, 7, [column(f"t{number}") for number in range(count)]) for count in (2, MAX_BATCH_COLUMNS)
        )
        calls = []
        for content in (few, many):
            batch.decode_batch(content)  # the fields are known from here on
            count = 0

            def see(frame: Any, event: str, argument: Any) -> None:
                nonlocal count
                count += event == "call" and "taba" in frame.f_code.co_filename

            before = sys.getprofile()
            sys.setprofile(see)
            try:
                finish(batch.reading_batch(content))
            finally:
                sys.setprofile(before)
            calls.append(count)
        self.assertGreater(calls[0], 5)
        self.assertLess(calls[1] - calls[0], 20)

    def sections(self, *sections: tuple[int, Any]) -> batch.Batch:
        packed = [(events, one if isinstance(one, bytes) else msgpack.packb(one)) for events, one in sections]
        return batch.decode_batch(msgpack.packb([5, STREAM, 5, 7, body(*packed), b""]))

    def test_a_column_that_stands_for_other_events_than_its_rows_says_how_many(self) -> None:
        for weight in (0, 1, 1000, MAX_BATCH_BYTES):
            absolute = column(times=bytes(8), values=[[bytes(16), 5, 1.0]])._replace(stands_for=weight)
            (found,) = batch.decode_batch(batch.encode_batch(STREAM, 5, 7, [absolute])).columns
            assert isinstance(found, Column)
            self.assertEqual((found, found.events, found.weight), (absolute, 1, weight))

    def test_states_that_were_folded_come_back_and_a_bad_one_buries_itself_alone(self) -> None:
        good: dict[str, Any] = {"fields": FIELD, "counts": 40, "least": 1.0, "greatest": 60.5, "dumps": b"a dump"}
        bad: list[dict[str, Any]] = [
            {"fields": b"bids_won"},
            {"fields": b"_own\0web/1"},
            {"least": 61.0},
            {"least": -1.0},
            {"least": math.nan},
            {"greatest": math.nan},
            {"greatest": 2.0 * MAX_TIME},
            {"dumps": b""},
            {"dumps": bytes(MAX_DUMP_BYTES + 1)},
        ]
        rows = [good, *({**good, **changes} for changes in bad), {**good, "greatest": MAX_TIME}, {**good, "dumps": bytes(MAX_DUMP_BYTES)}]
        first, *found, last, longest = self.sections((40 * len(rows), states(rows))).columns
        whole = Column("web/1", "bids_won", "CounterGroup", struct.pack("<d", 1.0), AtEdge(3, b"a dump", 60.5), 40)
        self.assertEqual(first, whole)
        assert isinstance(first, Column)
        self.assertEqual((first.weight, first.events), (40, 1))
        self.assertEqual(last, whole._replace(values=AtEdge(3, b"a dump", MAX_TIME)))
        self.assertEqual(longest, whole._replace(values=AtEdge(3, bytes(MAX_DUMP_BYTES), 60.5)))
        for one, changes in zip(found, bad, strict=True):
            assert isinstance(one, BadColumn), changes
            self.assertEqual(one.events, 40)
            field, type, least, greatest, dump, edge = msgpack.unpackb(one.content)
            expected = {**good, **changes}
            self.assertEqual((field, type, dump, edge), (expected["fields"], "CounterGroup", expected["dumps"], 3))
            self.assertEqual((least, greatest), tuple(struct.pack("<d", expected[name]) for name in ("least", "greatest")))

    def test_a_section_of_states_whose_lengths_do_not_add_up_is_buried_whole(self) -> None:
        row = {"fields": FIELD, "counts": 40, "least": 1.0, "greatest": 2.0, "dumps": b"a dump"}
        good = states([row, row])
        bad: list[Any] = []
        changed: dict[int, list[Any]] = {
            0: ["a b", 7],
            1: [[], [FIELD], [FIELD, "text"], FIELD],
            2: [counts(40), counts(40, 0), counts(40, 41), counts(80, MAX_BATCH_BYTES + 1), [40, 40]],
            3: [FLOATS[:8], None],
            4: [FLOATS[:8], FLOATS * 2, "text"],
            5: [[b"a dump"], [b"a dump", "text"], [b"a dump"] * 3, b"a dump", [[1], b"x"]],
            6: [0, 65_536, True, 1.0, None, b""],
        }
        for place, changes in changed.items():
            bad += [[*good[:place], change, *good[place + 1 :]] for change in changes]
        bad += [[*good, 1], good[:6]]
        packed = [msgpack.packb(one) for one in bad] + [msgpack.packb(good)[:-1], msgpack.packb(good) + b"x"]
        first, *others, last = self.sections((80, good), *((80, one) for one in packed), (80, good)).columns[1:-1]
        self.assertEqual((type(first), type(last)), (Column, Column))
        self.assertEqual(
            [(type(one), one.events, getattr(one, "content", None)) for one in others], [(BadColumn, 80, one) for one in packed]
        )
        self.assertEqual([type(one) for one in self.sections((79, good)).columns], [BadColumn])

    def test_states_and_events_are_cut_from_each_other_where_they_are_joined_to_sections(self) -> None:
        state = Column("web/1", "a", "CounterGroup", struct.pack("<d", 1.0), AtEdge(1, b"x", 2.0), 40)
        columns = [column("a"), state, state._replace(tab="b"), state._replace(values=AtEdge(2, b"y", 2.0)), column("c"), column("d")]
        self.assertEqual([one.columns for one in batch.sections_of(columns)], [1, 2, 1, 2])
        self.assertEqual([one.weight for one in batch.sections_of(columns)], [2, 80, 40, 4])
        content = batch.encode_batch(STREAM, 5, 7, columns)
        self.assertEqual(batch.decode_batch(content).columns, columns)
        self.assertEqual(batch.edges_of(content), {"CounterGroup": 2})
        self.assertEqual(batch.edges_of(batch.encode_batch(STREAM, 5, 7, [column(), column(values=["x", 1])], [Meaning("a", "s", "")])), {})
        both = [state, column("b", values=["x", 1]), state._replace(type="Other", values=AtEdge(9, b"z", 2.0))]
        self.assertEqual(batch.edges_of(batch.encode_batch(STREAM, 5, 7, both)), {"CounterGroup": 1, "Other": 9})

    def test_lists_hold_as_many_values_as_they_may_and_one_more_is_a_bad_column(self) -> None:
        half = MAX_LIST_VALUES // 2
        listed = [column(times=bytes(8 * half), values=[None] * half)] * 2
        decode = batch.decode_batch
        self.assertEqual([*map(type, decode(batch.encode_batch(STREAM, 5, 7, listed)).columns)], [Column, Column])
        more = [*listed, column(times=bytes(8), values=[None]), column()]
        self.assertEqual([*map(type, decode(batch.encode_batch(STREAM, 5, 7, more)).columns)], [Column, Column, BadColumn, Column])
        one = column(times=bytes(8 * (MAX_LIST_VALUES + 1)), values=[None] * (MAX_LIST_VALUES + 1))
        self.assertEqual([*map(type, decode(batch.encode_batch(STREAM, 5, 7, [one])).columns)], [BadColumn])

    def test_an_identity_that_cannot_be_trusted_is_refused(self) -> None:
        good: list[Any] = [5, STREAM, 5, 7, [], b""]
        batch.decode_batch(msgpack.packb(good))
        for place, bad in [
            (0, True),
            (0, "2"),
            (1, b"short"),
            (2, -1),
            (2, 65_536),
            (2, True),
            (3, 0),
            (3, "7"),
            (4, {}),
            (4, [1]),
            (4, [-1, b""]),
            (4, [True, b""]),
            (4, [1, "text"]),
            (4, body(*[(1, b"")] * (MAX_BATCH_COLUMNS + 1))),
            (4, body((batch.MAX_BATCH_EVENTS, b""), (1, b""))),
            (5, []),
            (5, "text"),
        ]:
            fields = list(good)
            fields[place] = bad
            self.assertRaises(MalformedBatch, batch.decode_batch, msgpack.packb(fields))
        batch.decode_batch(msgpack.packb([*good[:4], body(*[(1, b"")] * MAX_BATCH_COLUMNS), b""]))
        batch.decode_batch(msgpack.packb([*good[:4], body((batch.MAX_BATCH_EVENTS - 1, b""), (1, b"")), b""]))
        for content in [b"", b"\xc1", msgpack.packb(good)[:-1], msgpack.packb(good) + b"x", msgpack.packb({}), b"\x91" * 5000]:
            self.assertRaises(MalformedBatch, batch.decode_batch, content)

    def test_a_batch_of_another_version_is_told_from_what_is_no_batch(self) -> None:
        for version in (1, 2, 3, 4, 6, 2**40):
            with self.assertRaises(UnknownVersion) as caught:
                batch.decode_batch(msgpack.packb([version, "whatever", {}]))
            self.assertEqual((caught.exception.what, caught.exception.version), ("batch", version))

    def test_what_tabs_mean_comes_back_and_what_breaks_the_rules_is_left_out_and_counted(self) -> None:
        good = [Meaning("a", "s", ""), Meaning('b{c="d"}', "", "ü" * 400), Meaning("a", "x" * 64, "later")]
        found = batch.decode_batch(batch.encode_batch(STREAM, 5, 7, [column()], good))
        self.assertEqual((found.meanings, found.bad_meanings, len(found.columns)), (tuple(good), 0, 1))
        self.assertEqual(batch.decode_batch(batch.encode_batch(STREAM, 5, 7, [], good[:1])).columns, [])
        bad: list[Any] = [
            ["a", "s"],
            ["a", "s", "d", "e"],
            ["_a", "s", "d"],
            ["a\0b", "s", "d"],
            [b"a", "s", "d"],
            ["a", "s\0", "d"],
            ["a", "s" * 65, "d"],
            ["a", 1, "d"],
            ["a", "s", "d\0"],
            ["a", "s", "d" * 401],
            ["a", "s", None],
            "abc",
            7,
        ]
        found = batch.decode_batch(batch.encode_batch(STREAM, 5, 7, [column()], [good[0], *bad, good[1]]))
        self.assertEqual((found.meanings, found.bad_meanings, len(found.columns)), ((good[0], good[1]), len(bad), 1))
        for whole in (b"\xc1", msgpack.packb({}), msgpack.packb("a"), msgpack.packb([list(good[0])]) + b"x"):
            found = batch.decode_batch(msgpack.packb([5, STREAM, 5, 7, body((2, msgpack.packb(SECTION))), whole]))
            self.assertEqual((found.meanings, found.bad_meanings, len(found.columns)), ((), 1, 1))

    def test_a_batch_takes_a_thousand_meanings_and_of_one_more_none(self) -> None:
        for count, taken, bad in ((MAX_BATCH_MEANINGS, MAX_BATCH_MEANINGS, 0), (MAX_BATCH_MEANINGS + 1, 0, 1)):
            found = batch.decode_batch(batch.encode_batch(STREAM, 5, 7, [], [Meaning("a", "s", "")] * count))
            self.assertEqual((len(found.meanings), found.bad_meanings), (taken, bad))

    @given(st.lists(VALUES, min_size=1, max_size=20), st.none() | st.integers(0, 99))
    def test_packed_values_are_encoded_as_if_they_were_made(self, values: list[Any], stands_for: int | None) -> None:
        made = Column("a", "t", "Buffer", bytes(8 * len(values)), values, stands_for)
        packed = made._replace(values=batch.Packed(b"".join(map(msgpack.packb, values)), len(values)))
        self.assertEqual(batch.sections_of([packed]), batch.sections_of([made]))
        self.assertEqual(packed.opened(), made)
        self.assertEqual(batch.encode_batch(STREAM, 5, 1, [packed]), batch.encode_batch(STREAM, 5, 1, [made]))

    @given(st.binary(max_size=200))
    def test_any_bytes_are_a_batch_or_malformed(self, content: bytes) -> None:
        for decode in (batch.decode_batch, batch.decode_envelope, lambda c: batch.decode_verdicts(c, 1)):
            with contextlib.suppress(MalformedBatch, NoVerdicts):
                decode(content)


class Envelopes(SynchronousTestCase):
    def test_an_envelope_reads_back_as_it_was_written(self) -> None:
        entries: list[SentBatch | Header] = [SentBatch(b"one", 0, NONCE), SentBatch(b"two", 6, NONCE, b"k" * KEY_BYTES)]
        entries += [Header(OPEN, STREAM, 3), Header(END, STREAM, 3, NONCE)]
        for store in (None, "4f2a"):
            content = batch.encode_envelope("default", "host", 12.5, store, entries)
            self.assertEqual(batch.decode_envelope(content), Envelope("default", "host", 12.5, store, entries))

    def test_as_many_entries_as_allowed_and_one_more(self) -> None:
        entries = [Header(MARK, STREAM, 1, NONCE)] * MAX_ENVELOPE_BATCHES
        batch.decode_envelope(batch.encode_envelope("a", "h", 0.0, None, entries))
        self.assertRaises(MalformedBatch, batch.decode_envelope, batch.encode_envelope("a", "h", 0.0, None, [*entries, entries[0]]))

    def test_what_is_no_envelope_is_malformed_and_one_of_another_version_is_told_from_it(self) -> None:
        good: dict[str, Any] = {"v": 2, "agent": "a", "host": "h", "now": 1.0, "store": None, "entries": []}
        batch.decode_envelope(msgpack.packb(good))
        sent: dict[str, Any] = {"batch": b"", "follows": 0, "nonce": NONCE}
        beside: list[dict[str, Any]] = [{"nonce": b"x"}, {"key": b"x"}, {"follows": -1}, {"follows": True}, {"batch": ""}]
        changes: tuple[dict[str, Any], ...] = (
            {"agent": 7},
            {"host": "h" * 256},
            {"agent": "a" * 256},
            {"now": 1},
            {"now": float("nan")},
            {"store": "x" * (MAX_STORE_ID + 1)},
            {"store": 7},
            {"entries": {}},
            *({"entries": [{**sent, **other}]} for other in beside),
            {"entries": [{"do": "open", "stream": b"x", "bucket": 1}]},
            {"entries": [{"do": "open", "stream": STREAM, "bucket": 65_536}]},
            {"entries": [{"do": "close", "stream": STREAM, "bucket": 1}]},
            {"entries": [{"do": "mark", "stream": STREAM, "bucket": 1, "nonce": b"x"}]},
            {"entries": [[0, b""]]},
        )
        for change in changes:
            self.assertRaises(MalformedBatch, batch.decode_envelope, msgpack.packb({**good, **change}))
        for version in (1, 3):
            self.assertRaises(UnknownVersion, batch.decode_envelope, msgpack.packb({"v": version}))

    def test_verdicts_read_back_and_others_are_refused(self) -> None:
        verdicts = [
            Verdict("applied", 3),
            Verdict("later", 0.5, "why"),
            Verdict("gap", 0, "not open"),
            Verdict("refused", "malformed"),
            Verdict("open", NONCE, 7),
            Verdict("mark", 7),
            Verdict("ended", 0),
        ]
        for age in (None, 0, MAX_STORE_AGE):
            content = batch.encode_verdicts(verdicts, age)
            self.assertEqual(batch.decode_verdicts(content, 7), EnvelopeAnswer(verdicts, age))
            self.assertRaises(NoVerdicts, batch.decode_verdicts, content, 6)
        for bad_age in (-1, 1.0, "1", True, MAX_STORE_AGE + 1):
            self.assertRaises(NoVerdicts, batch.decode_verdicts, msgpack.packb({"verdicts": [], "store_age": bad_age}), 0)
        for bad in [
            ["applied", 1],
            ["applied", "x", ""],
            ["applied", -1, ""],
            ["applied", True, ""],
            ["perhaps", 1, ""],
            "applied",
            [["x"], 1, ""],
            ["gap", 1, ""],
            ["gap", 1, "perhaps"],
            ["open", b"short", 1],
            ["open", NONCE, -1],
            ["open", NONCE, ""],
        ]:
            self.assertRaises(NoVerdicts, batch.decode_verdicts, msgpack.packb({"verdicts": [bad], "store_age": None}), 1)
