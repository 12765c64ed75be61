"""What is taken apart in C of an envelope, and of batches, is found by Python as well; and what C leaves alone is, too."""

from __future__ import annotations

import math
import struct
from random import Random
from typing import Any, cast
from unittest import mock

import msgpack
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from taba.batch import (
    AtEdge,
    Block,
    Column,
    Header,
    SentBatch,
    decode_envelope,
    decoded_sections,
    encode_batch,
    encode_envelope,
    envelope,
    plain_batch,
    reading,
    reading_batch,
)
from taba.batch.columns import MAX_LIST_BYTES, MAX_LIST_VALUES
from taba.bounds import MAX_BATCH_COLUMNS, MAX_BUCKETS
from taba.errors import TabaError
from taba.steps import finish
from tests.examples import examples

from .test_sections import columns

STREAM, NONCE = bytes(range(16)), b"12345678"
ODD = [0, 1, 0x7F, 0x80, 0x83, 0x90, 0xC0, 0xC4, 0xC5, 0xC6, 0xCB, 0xCC, 0xCD, 0xCF, 0xD9, 0xDE, 0xDC, 0xFF]


def column(tab: str, type: str, values: Any, client: str, times: list[float]) -> Column:
    floats = isinstance(values, list) and all(isinstance(value, float) for value in values)
    packed = struct.pack(f"<{len(values)}d", *values) if floats else values
    return Column(client, tab, type, struct.pack(f"<{len(times)}d", *times), packed)


def told(read: Any, content: bytes) -> Any:
    try:
        return read(content)
    except TabaError as error:
        return f"{type(error).__name__}: {error}"


def spoiled(random: Random, content: bytes) -> bytes:
    """The same with some other bytes, most of them near the beginning; or cut off, or with more behind."""
    bad = bytearray(content)
    for _ in range(random.randint(0, 3)):
        bad[random.randrange(min(len(bad), random.choice([8, 40, 120, 10_000])))] = random.choice(ODD)
    del bad[len(bad) - random.choice([0, 0, 0, 1, 8]) :]
    return bytes(bad) + random.choice([b"", b"", b"", b"\0"])


class EnvelopesTests(SynchronousTestCase):
    def setUp(self) -> None:
        if envelope._part is None:
            raise SkipTest("_entries is not built: needs a compiler")

    def in_python(self, content: bytes) -> Any:
        with mock.patch.object(envelope, "_part", None):
            return told(decode_envelope, content)

    def entries(self, random: Random) -> list[Any]:
        found: list[Any] = [SentBatch(random.randbytes(random.choice([0, 9, 300])), random.randrange(2**63), NONCE) for _ in range(3)]
        if random.random() < 0.2:
            found.append(random.choice([Header("open", STREAM, 1), SentBatch(b"batch", 1, NONCE, bytes(36)), SentBatch(b"", 0, b"short")]))
        return found

    @examples(150)
    @given(st.integers(0, 2**32))
    def test_whatever_bytes_there_are_python_finds_the_same(self, seed: int) -> None:
        random = Random(seed)
        store = random.choice([None, "store", "s" * 64, "s" * 65])
        agent = random.choice(["agent", "ä" * 200, "a" * 256])
        good = encode_envelope(
            agent, "host", random.choice([1.5, -1.0, float("nan")]), store, self.entries(random), random.choice([2, 2, 2, 3])
        )
        for content in (good, spoiled(random, good)):
            found = told(decode_envelope, content)
            self.assertEqual(repr(found), repr(self.in_python(content)))

    def test_what_an_agent_sends_is_taken_apart_in_c(self) -> None:
        entries = [SentBatch(b"x" * size, size, NONCE) for size in (0, 255, 256, 70_000)]
        content = encode_envelope("agent", "host", 1.5, None, entries)
        found = envelope._part.read(content, (2,), 4, SentBatch)
        self.assertEqual(found, ("agent", "host", 1.5, None, entries))
        self.assertEqual({type(entry) for entry in found[4]}, {SentBatch})
        self.assertIsNone(envelope._part.read(content, (2,), 3, SentBatch))
        self.assertIsNone(envelope._part.read(content, (3,), 4, SentBatch))
        for end in range(200):
            self.assertIsNone(envelope._part.read(content[:end], (2,), 4, SentBatch))

    def test_the_order_of_names_is_the_senders(self) -> None:
        entry = {"nonce": NONCE, "follows": 3, "batch": b"b"}
        fields = {"v": 2, "entries": [entry], "store": None, "now": 1.0, "host": "h", "agent": "a"}
        expected = ("a", "h", 1.0, None, [SentBatch(b"b", 3, NONCE)])
        self.assertEqual(envelope._part.read(msgpack.packb(fields), (2,), 4, SentBatch), expected)
        for odd in ({**fields, "more": 1}, {**fields, "now": 1}, {**fields, "store": b"s"}, {**fields, "v": "2"}):
            self.assertIsNone(envelope._part.read(msgpack.packb(odd), (2,), 4, SentBatch))
            self.assertEqual(repr(told(decode_envelope, msgpack.packb(odd))), repr(self.in_python(msgpack.packb(odd))))

    def test_what_is_no_bytes_raises(self) -> None:
        for given_ in ((), ("text", (2,), 4, SentBatch), (msgpack.packb({"v": 2}), (2,), "4", SentBatch)):
            with self.assertRaises(TypeError):
                envelope._part.read(*given_)


class BatchesTests(SynchronousTestCase):
    def setUp(self) -> None:
        if reading._sections is None:
            raise SkipTest("_sections is not built: needs a compiler")

    def same(self, content: bytes) -> bool:
        """Whether C takes it; then Python finds the same."""
        found = plain_batch(content)
        if found is None:
            return False
        for part in (reading._sections, None):
            with mock.patch.object(reading, "_sections", part):
                slow = finish(reading_batch(content))
            self.assertEqual(found, slow)
            self.assertEqual(hash(found[:3]), hash(slow[:3]))
            for ours, its in zip(decoded_sections(found.columns), decoded_sections(slow.columns), strict=True):
                self.assertEqual(type(ours), type(its))
                if not (isinstance(ours, Block) and isinstance(its, Block)):
                    continue
                for name in ("type", "fields", "counts", "times", "values", "moved", "places"):
                    self.assertEqual(getattr(ours, name), getattr(its, name), name)
        return True

    @examples(100)
    @given(st.integers(0, 2**32))
    def test_whatever_bytes_there_are_python_finds_the_same(self, seed: int) -> None:
        random = Random(seed)
        good = encode_batch(STREAM, random.choice([5, 5, MAX_BUCKETS - 1]), random.choice([1, 2**40, 2**63 - 1]), columns(random, 3))
        self.assertTrue(self.same(good))
        self.same(spoiled(random, good))

    def test_several_sections_are_one_batch(self) -> None:
        def section(type: str, tab: str, clients: int) -> list[Any]:
            counts, rows = struct.pack(f"<{clients}I", *[1] * clients), bytes(8 * clients)
            return [clients, msgpack.packb([type, [f"{tab}\0c{number}".encode() for number in range(clients)], counts, rows, rows])]

        def batch(*sections: Any, meanings: Any = b"") -> bytes:
            content: bytes = msgpack.packb([5, STREAM, 5, 1, [item for one in sections for item in one], meanings])
            return content

        self.assertTrue(self.same(batch()))
        self.assertTrue(self.same(batch(section("Gauge", "a", 1), section("UpDown", "b", 20), section("Gauge", "c", 1))))
        half = MAX_BATCH_COLUMNS // 2
        self.assertTrue(self.same(batch(section("Gauge", "a", half), section("UpDown", "b", half))))
        for odd in (
            batch(section("Gauge", "a", half), section("UpDown", "b", half + 1)),  # one column more than a batch has
            batch([2, section("Gauge", "a", 1)[1]]),  # not as many as it says
            batch(section("no type", "a", 1)),
            batch(section("Gauge", "no tab", 1)),
            batch(section("Gauge", "t" * 300, 1)),
            batch(section("Gauge", "a", 1), meanings=b"\x90"),
            batch(section("Gauge", "a", 1), meanings=None),
        ):
            self.assertFalse(self.same(odd))

    def test_sections_that_are_no_arrays_of_floats_are_read_beside_those_that_are(self) -> None:
        times = [1.0, 2.0]
        gauge = column("gauge", "Gauge", [1.0, 2.0], "a", times)
        texts = [column("texts", "Cardinality", ["x", 7], client, times) for client in "ab"]
        edge = column("edge", "CounterGroup", AtEdge(1, b"dump", 2.0), "a", times[:1])._replace(stands_for=40)
        bytes_ = column("nested", "Buffer", [b"bytes", None], "a", times)
        for several in ([*texts], [gauge, *texts], [*texts, edge, gauge], [bytes_, gauge]):
            self.assertTrue(self.same(encode_batch(STREAM, 5, 1, several)))
        half = MAX_BATCH_COLUMNS // 2
        many = [column(f"texts{number}", "Cardinality", ["x"], "a", [1.0]) for number in range(half)]
        self.assertTrue(self.same(encode_batch(STREAM, 5, 1, [gauge, *many])))
        for amiss in (
            edge._replace(values=AtEdge(1, b"dump", 0.5)),
            edge._replace(client="\n"),
            texts[0]._replace(values=["x" * 40_000, 1]),
        ):
            self.assertFalse(self.same(encode_batch(STREAM, 5, 1, [gauge, amiss])))
        large = [column(f"texts{number}", "Cardinality", ["x" * 30_000], "a", [1.0]) for number in range(2)]
        self.assertTrue(self.same(encode_batch(STREAM, 5, 1, [gauge, *large])))
        more = column("more", "Gauge", ["x" * 10_000], "a", [1.0])
        self.assertFalse(self.same(encode_batch(STREAM, 5, 1, [*large, more])))  # in steps

    def lists(self, several: list[Column]) -> bool:
        """Whether all of them are columns that C made; then Python finds the same, and the same values once all are made."""
        content = encode_batch(STREAM, 5, 1, several)
        batch = reading._sections.read_batch(content, (5,), reading._BOUNDS, reading._NAMES, reading._FORMS)
        if type(batch) is tuple:
            return False
        found, slow = plain_batch(content), finish(reading_batch(content))
        assert found is not None
        self.assertEqual(found.made_bytes, slow.made_bytes)
        for ours, its in zip(found.columns, slow.columns, strict=True):
            assert isinstance(ours, Column) and isinstance(its, Column)
            self.assertIs(type(ours.values), type(its.values))
            self.assertEqual(repr(ours.opened()), repr(its.opened()))
        return True

    def test_values_in_lists_are_made_in_c_as_python_makes_them(self) -> None:
        numbers = [
            0,
            127,
            128,
            255,
            256,
            2**16,
            2**32,
            2**53 + 1,
            2**64 - 1,
            -1,
            -32,
            -33,
            -128,
            -129,
            -(2**15) - 1,
            -(2**31) - 1,
            -(2**63),
        ]
        values = [*numbers, None, True, False, 1.5, -0.0, math.inf, "", "ä" * 31, "x" * 32, "x" * 300, "x" * 30_000, b"", b"x" * 300]
        for value in values:
            self.assertTrue(self.lists([column("a", "Buffer", [value, "b"], "web/1", [1.0, 2.0])]), repr(value)[:20])
        row = [bytes(16), 2**62, -2.5]
        absolutes = [column("a", "UpDown", [row], client, [1.0])._replace(stands_for=events) for client, events in (("b", 0), ("c", 3))]
        self.assertTrue(self.lists([column("a", "Gauge", [1.0], "b", [1.0]), *absolutes, column("c", "TopK", ["x"], "b", [1.0])]))
        self.assertTrue(self.lists([column("a", "UpDown", ["x"], "b", [1.0])._replace(stands_for=2)]))

    def test_what_is_amiss_in_a_list_is_found_by_python(self) -> None:
        for value in ([1], {"a": 1}, "x" * 40_000):
            self.assertFalse(self.lists([column("a", "Buffer", [value], "web/1", [1.0])]))
        for row in ([bytes(15), 1, 1.0], [bytes(16), -1, 1.0], [bytes(16), 1, 1], [bytes(16), 1], [bytes(16), 1, 1.0, 1]):
            self.assertFalse(self.lists([column("a", "UpDown", [row], "web/1", [1.0])._replace(stands_for=1)]))
        good = column("a", "Buffer", ["text"], "web/1", [1.0])
        packed = cast(Any, msgpack.unpackb(encode_batch(STREAM, 5, 1, [good])))
        events, section = packed[4]
        for spoilt in (
            section.replace(b"\xa4text", b"\xa4tex\xff"),
            section.replace(b"\xa4text", b"\xa5text"),
            section.replace(b"\xa4text", b"\xc1text"),
            section.replace(b"web/1", b"web 1"),
            section.replace(b"Buffer", b"Buf er"),
            section[:-1],
        ):
            packed[4] = [events, spoilt]
            self.assertFalse(self.same(cast(bytes, msgpack.packb(packed))))
        packed[4] = [2, section]
        self.assertFalse(self.same(cast(bytes, msgpack.packb(packed))))

    def test_lists_that_are_read_in_one_go_are_within_what_a_batch_may_hold(self) -> None:
        self.assertLessEqual(reading.READ_BYTES, MAX_LIST_BYTES)
        self.assertLessEqual(reading.READ_BYTES // 9, MAX_LIST_VALUES)  # each has eight bytes of time beside its own
        count = reading.READ_BYTES // 9
        for number, are_in_one in ((count - 20, True), (count, False)):
            content = encode_batch(STREAM, 5, 1, [column("a", "Buffer", [None] * number, "b", [1.0] * number)])
            self.assertEqual(self.same(content), are_in_one)

    def test_many_tabs_of_one_section_are_told_apart(self) -> None:
        names = [f"tab{number % 40}\0web/{number}".encode() for number in range(400)]
        rows = bytes(8 * len(names))
        packed = msgpack.packb(["Gauge", names, struct.pack(f"<{len(names)}I", *[1] * len(names)), rows, rows])
        self.assertTrue(self.same(msgpack.packb([5, STREAM, 5, 1, [len(names), packed], b""])))

    def test_what_is_no_batch_raises(self) -> None:
        for given_ in (
            (),
            ("text", (5,), reading._BOUNDS, reading._NAMES, reading._FORMS),
            (b"", (5,), (), reading._NAMES, reading._FORMS),
        ):
            with self.assertRaises(TypeError):
                reading._sections.read_batch(*given_)
