"""What strangers send to cost more than it weighs: what is made of it is in proportion to what is accepted."""

from __future__ import annotations

import gc
import json
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import msgpack
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import defer
from twisted.internet.defer import ensureDeferred
from twisted.trial.unittest import SynchronousTestCase

from taba import batch, calls, counting, events, nesting
from taba.batch import MAX_LIST_BYTES, BadColumn, Column, SentBatch, reading
from taba.bounds import MAX_BATCH_BYTES, MAX_ENVELOPE_BYTES, MAX_VALUE_BYTES, MAX_VALUE_DEPTH, KiB, MiB
from taba.errors import MalformedBatch, NoVerdicts, UnknownVersion
from taba.server.fold import envelopes as envelopes_module
from taba.server.fold.envelopes import MAX_NOTED, SHOWN_SECONDS, Envelopes
from taba.steps import finish
from taba.tokens import Scope

SOME = MiB  # of a shape: what is made is in proportion
STREAM, NONCE = bytes(16), bytes(8)
TIMES = struct.pack("<d", 1.0)


def sent(content: bytes) -> bytes:
    return batch.encode_envelope("a", "h", 1.0, None, [SentBatch(content, 0, NONCE)])


GOOD = batch.encode_batch(STREAM, 5, 1, [Column("web/1", "x", "Buffer", TIMES * 2, ["text", [1, {"a": None}]])])
VERDICTS = batch.encode_verdicts([batch.Verdict("applied", 1)], 7)


def shapes(most: int) -> dict[str, bytes]:
    """Bytes of at most `most` that would become far more, or are no msgpack at all."""
    return {
        "lists in a list": b"\xdd" + (most - 5).to_bytes(4, "big") + b"\x90" * (most - 5),
        "lists of one in a list": b"\xdd" + (most // 2 - 5).to_bytes(4, "big") + b"\x91\xc0" * (most // 2 - 5),
        "a map of lists": b"\xdf" + (most // 4 - 5).to_bytes(4, "big") + b"\xa0\x90" * (most // 4 - 5) * 2,
        "a map of a million keys": msgpack.packb(dict.fromkeys(range(min(1_000_000, most // 6)), 0)),
        "nested deep": b"\x91" * min(100_000, most - 1) + b"\x90",
        "maps nested deep": b"\x81\xc0" * min(100_000, most // 2 - 1) + b"\x80",
        "one long key": b"\x81\xdb" + (most - 10).to_bytes(4, "big") + b"k" * (most - 10) + b"\xc0",
        "claims four billion": b"\xdd\xff\xff\xff\xff" + b"\xdd\xff\xff\xff\xff" * 900,
        "claims a map of four billion": b"\xdf\xff\xff\xff\xff\xa1v\x02",
        "a claim in each level": (b"\xdd" + (most - 1000).to_bytes(4, "big")) * 150,
        "claims many bytes": b"\xc6\xff\xff\xff\xff",
        "an extension": b"\xc7\x04\x05abcd",
        "a timestamp": b"\xd6\xff" + bytes(4),
        "a large extension": b"\xc9" + (most - 10).to_bytes(4, "big") + b"\x07" + b"x" * (most - 10),
        "never used": b"\xc1",
        "nothing": b"",
    }


class Costs(SynchronousTestCase):
    def costs(self, most: int, decode: Callable[[bytes], Any], content: bytes) -> Any:
        """What `decode` gives or raises, having taken at most 8 × `most` bytes."""
        tracemalloc.start()
        try:
            try:
                return decode(content)
            except (MalformedBatch, NoVerdicts, ValueError) as error:
                return error
            finally:
                self.assertLess(tracemalloc.get_traced_memory()[1], 8 * most)
        finally:
            tracemalloc.stop()

    def test_an_envelope_of_any_shape_costs_eight_times_its_bound_at_the_most(self) -> None:
        for name, content in shapes(SOME).items():
            for around in (b"%b", b"\x81\xa7entries%b", b"\x82\xa1v\x02\xa7entries\x91%b", b"\x81\xa1x%b"):
                found = self.costs(SOME, batch.decode_envelope, (around % content)[:SOME])
                self.assertIsInstance(found, MalformedBatch, name)

    def test_a_batch_of_any_shape_costs_eight_times_what_it_may_take_at_the_most(self) -> None:
        head = b"\x96\x04\xc4\x10" + STREAM + b"\x05\x01"
        for name, content in shapes(MAX_BATCH_BYTES - 100).items():
            for around in (b"%b", head + b"%b", head + b"\x92\x01%b\xc4\x00", head + b"\x90%b"):
                found = self.costs(MAX_ENVELOPE_BYTES, batch.decode_batch, around % content)
                self.assertIsInstance(found, MalformedBatch, (name, around))

    def test_a_section_of_any_shape_is_buried_or_within_its_bound(self) -> None:
        field, one = b"x\0web/1", (1).to_bytes(4, "little")
        head, rest = msgpack.packb("Buffer"), b"".join(map(msgpack.packb, ([field], one, TIMES)))
        good = msgpack.packb(("T", [field], one, TIMES, TIMES))
        for name, content in shapes(900 * KiB).items():
            listed = b"\x91" + batch.pack_bin(content)
            for around in (content, b"\x95" + content, b"\x95" + head + content, b"\x95" + head + b"\x91" + content):
                self.check_section(around, good, name)
            for around in (b"\x95%b%b", b"\x95%b%b\x91", b"\x96%b%b\x91\xc4\x01\xc0"):
                self.check_section(around % (head, rest) + content, good, name)
            self.check_section(b"\x95" + head + rest + listed, good, name)

    def check_section(self, packed: bytes, good: bytes, name: str) -> None:
        whole = msgpack.packb([5, STREAM, 5, 1, [1, packed, 1, good], b""])
        found = self.costs(MAX_ENVELOPE_BYTES, batch.decode_batch, whole)
        self.assertEqual([*map(type, found.columns)], [BadColumn, Column], (name, packed[:40]))

    def test_meanings_and_verdicts_of_any_shape_cost_what_they_may(self) -> None:
        for name, content in shapes(900 * KiB).items():
            found = self.costs(MAX_ENVELOPE_BYTES, batch.decode_batch, msgpack.packb([5, STREAM, 5, 1, [], content]))
            self.assertEqual(found.meanings, (), name)
            for around in (b"%b", b"\x82\xa8verdicts%b", b"\x81\xa8verdicts\x91%b"):
                found = self.costs(MAX_ENVELOPE_BYTES, lambda answer: batch.decode_verdicts(answer, 1), around % content)
                self.assertIsInstance(found, NoVerdicts, name)

    def test_posted_events_of_any_shape_cost_eight_times_their_bound_at_the_most(self) -> None:
        most = SOME - 100
        for name, body in {
            "lists": b"[" + b"[]," * (most // 3) + b"1]",
            "lists as events": b'{"client": "a", "events": [' + b"[]," * (most // 3) + b"1]}",
            "lists in a value": b'{"client": "a", "events": [{"tab": "x", "type": "T", "value": [' + b"[]," * (most // 3 - 50) + b"1]}]}",
            "nested deep": b'{"client": "a", "events": [' + b"[" * (most // 2),
            "a long key": b'{"' + b"k" * most + b'": 1}',
            "a long text beyond Latin": b'{"client": "a", "events": ["' + "\U0001f600".encode() * (most // 4 - 10) + b'"]}',
            "space": b'{"client": "a", "events": [' + b" " * (4 * most) + b"]}",
            "keys": b'{"client": "a", "events": [{' + b",".join(b'"%x":0' % n for n in range(80_000)) + b"}]}",
            "no text": b"\xff" * most,
        }.items():
            found = self.costs(SOME, lambda content: events.read_events(content, 1.0, 8), body)
            if name == "a long text beyond Latin":  # as many characters as an event may take: it is read, and no event
                self.assertEqual((found.accepted, [one.place for one in found.rejected]), (0, [0]))
            else:
                self.assertIsInstance(found, ValueError, name)

    def test_values_of_posted_events_are_made_of_as_many_objects_as_the_bound_says_and_not_one_more(self) -> None:
        self.patch(events, "MAX_POSTED_OBJECTS", 100)
        for count, is_read in [(49, True), (50, False)]:
            event = {"tab": "x", "type": "Buffer", "value": [0] * count}
            body = json.dumps({"client": "a", "events": [event, event]}).encode()
            if is_read:
                self.assertEqual(events.read_events(body, 1.0, 8).accepted, 2)
            else:
                self.assertRaises(ValueError, events.read_events, body, 1.0, 8)

    def test_a_few_bytes_that_inflate_to_much_are_inflated_step_by_step_and_no_further_than_the_bound(self) -> None:
        body = zlib.compress(b"\xdd\x00\x7f\xff\xf0" + b"\x90" * (8 * MiB - 16), 9)
        self.assertLess(len(body), 16 * KiB)
        steps = calls.inflate(body, 15, MAX_ENVELOPE_BYTES)
        sizes = [size for size in steps]
        self.assertEqual(sum(sizes), 8 * MiB - 11)
        self.assertLessEqual(max(sizes), calls.INFLATE_BYTES)
        bomb = zlib.compress(bytes(16 * MiB), 9)
        tracemalloc.start()
        try:
            error = self.assertRaises(calls.HTTPError, finish, calls.inflate(bomb, 15, MAX_ENVELOPE_BYTES))
            self.assertLess(tracemalloc.get_traced_memory()[1], 3 * MAX_ENVELOPE_BYTES)
        finally:
            tracemalloc.stop()
        self.assertEqual(error.status, 413)
        for cut in (b"", body[:1], body[:-1]):
            self.assertEqual(self.assertRaises(calls.HTTPError, finish, calls.inflate(cut, 15, MAX_ENVELOPE_BYTES)).status, 400)


class Cut(SynchronousTestCase):
    def test_what_is_cut_off_anywhere_is_said_to_be_and_nothing_else_happens(self) -> None:
        envelope = sent(GOOD)
        for end in range(len(envelope)):
            self.assertRaises(MalformedBatch, batch.decode_envelope, envelope[:end])
        for end in range(len(GOOD)):
            self.assertRaises(MalformedBatch, batch.decode_batch, GOOD[:end])
        for end in range(len(VERDICTS)):
            self.assertRaises(NoVerdicts, batch.decode_verdicts, VERDICTS[:end], 1)
        body = json.dumps(
            {"client": "a", "events": [{"tab": "x", "type": "T", "value": [1, "é", {"a": 2.5}]}]}, ensure_ascii=False
        ).encode()
        for end in range(len(body)):
            self.assertRaises(ValueError, events.read_events, body[:end], 1.0, 8)
        self.assertEqual(events.read_events(body, 1.0, 8).accepted, 1)

    def test_what_stands_behind_it_makes_it_none(self) -> None:
        self.assertRaises(MalformedBatch, batch.decode_envelope, sent(GOOD) + b"\xc0")
        self.assertRaises(MalformedBatch, batch.decode_batch, GOOD + b"\xc0")
        self.assertRaises(ValueError, events.read_events, b'{"client": "a", "events": []} 1', 1.0, 8)


class Listed(SynchronousTestCase):
    """Values in lists, within what a batch may hold of them."""

    def column(self, *values: Any) -> bytes:
        return batch.encode_batch(STREAM, 5, 1, [Column("web/1", "x", "Buffer", TIMES * len(values), list(values)), other()])

    def kinds(self, content: bytes) -> list[Any]:
        return [*map(type, batch.decode_batch(content).columns)]

    def test_lists_take_as_many_bytes_as_the_bound_says_and_one_more_is_a_bad_column(self) -> None:
        text = "x" * (8 * KiB - 3)  # with its header 8 KiB
        fit = [text] * (MAX_LIST_BYTES // (8 * KiB) - 1)
        spare = MAX_LIST_BYTES - len(batch.pack_values(fit)) - 3
        self.assertEqual(self.kinds(self.column(*fit, "x" * spare)), [Column, Column])
        self.assertEqual(self.kinds(self.column(*fit, "x" * (spare + 1))), [BadColumn, Column])

    def test_a_value_takes_as_many_bytes_and_is_nested_as_deep_as_it_may(self) -> None:
        def nested(depth: int) -> Any:
            return [nested(depth - 1)] if depth else 1

        for good, bad in [
            ("x" * MAX_VALUE_BYTES, "x" * (MAX_VALUE_BYTES + 1)),
            (["x" * (MAX_VALUE_BYTES - 4)], ["x" * (MAX_VALUE_BYTES - 3)]),
            (nested(MAX_VALUE_DEPTH), nested(MAX_VALUE_DEPTH + 1)),
        ]:
            self.assertEqual(self.kinds(self.column(good)), [Column, Column])
            self.assertEqual(self.kinds(self.column(bad)), [BadColumn, Column])
            self.assertEqual(self.kinds(self.column(1, good, "")), [Column, Column])

    def test_a_column_behind_a_bad_one_and_behind_one_with_lists_in_lists_is_read(self) -> None:
        absolute = Column("web/1", "y", "UpDown", TIMES, [[bytes(16), 5, 1.0]], 7)
        firsts: list[list[Any]] = [[1, [2]], [None, "x"], [{}]]
        for first in firsts:
            column = Column("web/1", "x", "Buffer", TIMES * len(first), first)
            content = batch.encode_batch(STREAM, 5, 1, [column, absolute, column, other()])
            self.assertEqual(batch.decode_batch(content).columns, [column, absolute, column, other()])

    def test_columns_that_fail_are_charged_like_those_that_do_not(self) -> None:
        """Finding out that the last of many values is none costs as much as making them."""
        self.patch(reading, "MAX_LIST_BYTES", 256 * KiB)  # so that it is their number that counts
        count = batch.MAX_LIST_VALUES // 2
        bad = [Column("web/1", "x", "Buffer", TIMES * count, [*[None] * (count - 1), ["x" * MAX_VALUE_BYTES]])] * 3
        fit = Column("web/1", "y", "Buffer", TIMES, [None])
        kinds = self.kinds(batch.encode_batch(STREAM, 5, 1, [bad[0], fit, other()]))
        self.assertEqual(kinds, [BadColumn, Column, Column])
        kinds = self.kinds(batch.encode_batch(STREAM, 5, 1, [*bad[:2], fit, other()]))
        self.assertEqual(kinds, [BadColumn, BadColumn, BadColumn, Column])

    def test_a_value_that_is_too_large_is_looked_at_no_further_than_it_may_be_large(self) -> None:
        large: list[Any] = [[[[]] * 10_000] * 20, {n: [[]] * 10_000 for n in range(20)}, ["x" * 200_000], "x" * 200_000]
        for value in large:
            packed = msgpack.packb([1, value, 2])
            broken = packed[: MAX_VALUE_BYTES + 200] + b"\xc1" * (len(packed) - MAX_VALUE_BYTES - 200)
            with self.assertRaisesRegex(ValueError, f"a value takes at most {MAX_VALUE_BYTES} bytes"):
                counting.measure_values(broken, 1, 3)
        for size in (MAX_VALUE_BYTES - 3, MAX_VALUE_BYTES - 2):  # with its header one of the bound, and one past it
            packed = msgpack.packb([1, "x" * size, [2]])
            if size == MAX_VALUE_BYTES - 3:
                self.assertEqual(counting.measure_values(packed, 1, 3)[0], len(packed))
                self.assertEqual(counting.unpack_list(packed[1:], 3), [1, "x" * size, [2]])
            else:
                self.assertRaises(ValueError, counting.measure_values, packed, 1, 3)

    def test_what_waits_to_be_folded_is_no_objects_that_a_collection_of_garbage_walks(self) -> None:
        content = self.column([[]] * 20_000)
        body = b'{"client": "a", "events": [%b]}' % b",".join([b'{"tab": "t", "type": "Buffer", "value": [%b[]]}' % (b"[]," * 9000)] * 4)
        before = len(gc.get_objects())
        kept = [finish(batch.reading_batch(content)) for _ in range(5)]
        posted = finish(events.reading(body, 1.0, 8, False))
        self.assertLess(len(gc.get_objects()) - before, 1000)
        self.assertEqual((len(kept), posted.accepted), (5, 4))
        self.assertGreater(sum(made for of_bucket in posted.made.values() for made in of_bucket), 64 * 4 * 9000)

    def test_what_is_made_is_charged(self) -> None:
        few, many = batch.decode_batch(self.column("x" * 20_000)), batch.decode_batch(self.column([[]] * 20_000))
        self.assertLess(few.made_bytes, 30_000)
        self.assertGreater(many.made_bytes, 64 * 20_000)
        maps = batch.decode_batch(self.column([{1: 1}] * 1000))
        self.assertGreater(maps.made_bytes, 200 * 1000)


def other() -> Column:
    return Column("web/1", "other", "T", TIMES, TIMES)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=40)
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=5), inner, max_size=18),
)


class Measured(SynchronousTestCase):
    @given(VALUES)
    def test_what_is_measured_is_what_is_made(self, value: Any) -> None:
        content = msgpack.packb(value)
        for use in (content, content + b"\x90"):
            end, weight = counting.measure(use, 0, 100)
            self.assertEqual((end, weight), (len(content), weigh(value)))
        depth = next(depth for depth in range(100) if not nesting.is_deeper(value, depth))
        counting.measure(content, 0, depth)
        if depth:
            self.assertRaises(ValueError, counting.measure, content, 0, depth - 1)
        self.assertEqual(counting.unpack_counted(content, 100), value)
        for cut in range(len(content)):
            self.assertRaises(ValueError, counting.measure, content[:cut])

    @given(st.binary(max_size=60))
    def test_any_bytes_are_measured_or_refused_as_they_are_read(self, content: bytes) -> None:
        try:
            end, _ = counting.measure(content)
        except ValueError:
            return
        try:
            value = msgpack.unpackb(content[:end], strict_map_key=False, raw=True)
        except TypeError:
            return  # a list as a key
        self.assertFalse(nesting.is_deeper(value))

    def test_no_more_is_looked_at_than_may_be(self) -> None:
        self.assertEqual(counting.measure(msgpack.packb([[1], [2]]), 0, 9, 5), (5, 5))
        self.assertRaises(ValueError, counting.measure, msgpack.packb([[1], [2], [3]]), 0, 9, 5)


def weigh(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + (counting.MAP_OBJECTS if value else 0) + sum(weigh(key) + weigh(inner) for key, inner in value.items())
    return 1 + sum(map(weigh, value)) if isinstance(value, list) else 1


class Waits:
    """An ingest, a router and posts of a Server that decides nothing until it is told to."""

    buckets = 8
    problems: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.seen: list[int] = []

    async def submit(self, waiting: Any, seconds: float = 0.0) -> list[batch.Verdict]:
        self.seen += [item.charged for item in waiting]
        self.parts = [item.part for item in waiting]
        return [batch.Verdict("applied", item.batch.number) for item in waiting]

    async def claim(self, part: batch.KeyPart, client: str, poster: str) -> bytes:
        return client.encode().ljust(16)


class Read(SynchronousTestCase):
    """Envelopes as they are read."""

    def make(self) -> tuple[Envelopes, Waits]:
        waits: Any = Waits()
        return Envelopes(waits, waits, waits, bytes, lambda: 0.0, lambda *_: None, lambda _: True), waits

    def envelope(self, batches: int) -> batch.Envelope:
        values: list[Any] = [[[]] * 20_000]
        column = Column("web/1", "x", "Buffer", TIMES, values)
        entries = [SentBatch(batch.encode_batch(STREAM, 5, n + 1, [column]), n, NONCE) for n in range(batches)]
        return batch.decode_envelope(batch.encode_envelope("a", "h", 1.0, None, entries))

    def test_what_comes_now_is_shown_whatever_versions_senders_make_up(self) -> None:
        now = [0.0]
        waits: Any = Waits()
        envelopes = Envelopes(waits, waits, waits, bytes, lambda: now[0], lambda *_: None, lambda _: False)
        for version in range(2 * MAX_NOTED):
            envelopes.note_version(UnknownVersion("batch", 100 + version, [2]))
        shown = envelopes.problems
        self.assertEqual(len(shown), MAX_NOTED)
        self.successResultOf(ensureDeferred(envelopes.decide(batch.Envelope("a", "h", 1.0, "other", []))))
        self.assertEqual(len(envelopes.problems), MAX_NOTED + 1)
        now[0] += SHOWN_SECONDS
        self.assertEqual(envelopes.problems, [])
        envelopes.note_version(UnknownVersion("batch", 99, [2]))
        self.assertIn("99", " ".join(envelopes.problems))

    def test_others_have_their_turn_between_batches_that_are_made_of_much(self) -> None:
        envelopes, _ = self.make()
        breaths = []

        async def breathe() -> None:
            breaths.append(1)

        self.successResultOf(ensureDeferred(envelopes.decide(self.envelope(6), breathe)))
        self.assertEqual(len(breaths), 6)

    def test_a_batch_of_long_columns_is_read_in_turns_and_what_is_half_read_counts_so_that_few_are_at_once(self) -> None:
        lists = Column("web/1", "x", "Buffer", TIMES, [[[]] * 20_000])
        long = [Column("web/1", f"y{n}", "T", TIMES * 5000, TIMES * 5000) for n in range(4)]
        content = batch.encode_batch(STREAM, 5, 1, [lists, *long], [batch.Meaning("x", "s", "")])  # with which none is read in one go
        most = batch.decode_batch(content).made_bytes
        self.patch(envelopes_module, "MAX_WAITING_BYTES", 2 * most)
        envelopes, _ = self.make()
        waiting: list[defer.Deferred[None]] = []

        def breathe() -> defer.Deferred[None]:
            waiting.append(defer.Deferred())
            return waiting[-1]

        deciding = [
            ensureDeferred(envelopes.decide(batch.Envelope("a", "h", 1.0, None, [SentBatch(content, 0, NONCE)]), breathe)) for _ in range(9)
        ]
        turns = 0
        while waiting:
            waiting.pop(0).callback(None)
            turns += 1
        words = [self.successResultOf(one)[0].word for one in deciding]
        self.assertEqual(set(words), {"applied", "later"})
        self.assertTrue(1 <= words.count("applied") <= 3, words)
        self.assertGreaterEqual(turns, 9 + words.count("applied"))
        self.assertEqual((envelopes.reading.held, envelopes.reading.share.greatest), (0, 0))

    def test_one_sender_has_half_of_what_is_read_and_another_is_read_beside_it(self) -> None:
        envelopes, waits = self.make()
        self.successResultOf(ensureDeferred(envelopes.decide(self.envelope(1))))
        size = waits.seen[0]
        envelopes.reading.most, envelopes.reading.each = 5 * size, 2 * size
        deciding: list[defer.Deferred[Any]] = []
        decided = waits.submit

        async def submit(items: Any) -> Any:
            deciding.append(defer.Deferred())
            await deciding[-1]
            return await decided(items)

        self.patch(waits, "submit", submit)
        many = ensureDeferred(envelopes.decide(self.envelope(4), sender="many"))
        good = ensureDeferred(envelopes.decide(self.envelope(1), sender="good"))
        self.assertEqual((envelopes.reading.held, envelopes.reading.share), (3 * size, (2 * size, 2 * size)))
        for one in deciding:
            one.callback(None)
        verdicts = self.successResultOf(many)
        self.assertEqual([verdict.word for verdict in verdicts], ["applied"] * 2 + ["later"] * 2)
        self.assertIn("bytes of yours wait in envelopes", verdicts[-1].why)
        self.assertEqual([verdict.word for verdict in self.successResultOf(good)], ["applied"])
        self.assertEqual((envelopes.reading.held, envelopes.reading.share.greatest), (0, 0))

    def test_a_post_is_its_client_s_also_where_nothing_of_it_may_be_sent(self) -> None:
        envelopes, waits = self.make()
        part = batch.KeyPart(bytes(16), bytes(16), 0)
        scope = Scope((), ("a.",))
        for tabs in (["b"], ["a.b"], ["b", "a.b"]):
            columns = [Column("web", tab, "T", TIMES, TIMES) for tab in tabs]
            entry = SentBatch(batch.encode_batch(STREAM, 5, 1, columns), 0, NONCE, part.encode())
            envelope = batch.Envelope("a", "h", 1.0, None, [entry])
            self.successResultOf(ensureDeferred(envelopes.decide(envelope, scope=scope)))
            self.assertEqual([one.key for one in waits.parts], [b"web".ljust(16)])

    def test_what_is_made_counts_until_it_is_decided_and_what_has_no_room_is_later_in_its_order(self) -> None:
        envelopes, waits = self.make()
        [verdict] = self.successResultOf(ensureDeferred(envelopes.decide(self.envelope(1))))
        self.assertEqual(verdict.word, "applied")
        self.assertGreater(waits.seen[0], 64 * 20_000)
        envelopes.reading.most = envelopes.reading.each = 2 * waits.seen[0] + 20_200
        verdicts = self.successResultOf(ensureDeferred(envelopes.decide(self.envelope(5))))
        self.assertEqual([verdict.word for verdict in verdicts], ["applied"] * 3 + ["later"] * 2)
        again = self.successResultOf(ensureDeferred(envelopes.decide(self.envelope(2))))
        self.assertEqual([verdict.word for verdict in again], ["applied"] * 2)
