"""What is taken apart in C of a batch is found by Python as well, and what it leaves alone, too."""

from __future__ import annotations

import struct
from random import Random
from typing import Any
from unittest import mock

import msgpack
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from taba.batch import Batch, Block, Column, decode_batch, decoded_sections, encode_batch, reading, reading_batch
from taba.errors import MalformedBatch
from taba.steps import finish

STREAM = bytes(range(16))
CLIENTS = ("web/1", "a", "x" * 200, "_overflow", "Web-2.b:c@d+e_f")
TABS = ("bids", 'price{exchange="adx"}', 'name{text="a ä \\" b"}', "t" * 200)


def columns(chance: Random, most: int) -> list[Column]:
    pairs = [(client, tab) for tab in TABS for client in CLIENTS]
    found = []
    for client, tab in chance.sample(pairs, chance.randint(1, len(pairs))):
        count = chance.randint(1, most)
        times, values = [chance.uniform(0, 2e9) for _ in range(count)], [chance.gauss(0, 9) for _ in range(count)]
        found.append(Column(client, tab, "CounterGroup", struct.pack(f"<{count}d", *times), struct.pack(f"<{count}d", *values)))
    return found


def read(content: bytes) -> Any:
    try:
        return decode_batch(content)
    except MalformedBatch as error:
        return str(error)


class SectionsTests(SynchronousTestCase):
    def setUp(self) -> None:
        if reading._sections is None:
            raise SkipTest("_sections is not built: needs a compiler")

    def in_python(self, content: bytes) -> Any:
        with mock.patch.object(reading, "_sections", None):
            return read(content)

    def block(self, batch: Batch) -> Block:
        [part] = decoded_sections(batch.columns)
        assert isinstance(part, Block)
        return part

    def test_an_ordinary_section_is_taken_apart_in_c_to_what_python_finds(self) -> None:
        chance = Random(3)
        for number in range(20):
            content = encode_batch(STREAM, 5, number + 1, columns(chance, 1 + number % 3 * 200))
            self.assertEqual(read(content), self.in_python(content))
            ours = self.block(finish(reading_batch(content)))
            with mock.patch.object(reading, "_sections", None):
                arrays = self.block(finish(reading_batch(content)))
            for name in ("type", "fields", "counts", "times", "values", "moved", "places", "names"):
                self.assertEqual(getattr(ours, name), getattr(arrays, name), name)
            [packed] = msgpack.unpackb(content)[4][1::2]
            self.assertIsNotNone(reading._sections.read(packed, 1000))
            self.assertIsNone(reading._sections.read(packed, len(ours) - 1))

    def test_whatever_bytes_there_are_python_finds_the_same(self) -> None:
        chance = Random(4)
        unlike = 0
        for _ in range(400):
            content = encode_batch(STREAM, 5, 1, columns(chance, 3)[:4])
            good = read(content)
            [events, packed] = msgpack.unpackb(content)[4]
            bad = bytearray(packed)
            for _ in range(chance.randint(1, 3)):
                bad[chance.randrange(min(len(bad), chance.choice([20, 80, 10_000])))] = chance.choice([0, 1, 0x90, 0xC4, 0xD9, 0xFF, 0x5F])
            del bad[len(bad) - chance.choice([0, 0, 0, 1, 8]) :]
            again = msgpack.packb([*msgpack.unpackb(content)[:4], [events, bytes(bad)], b""])
            found = read(again)
            self.assertEqual(found, self.in_python(again))
            unlike += found != good and all(isinstance(column, Column) for column in found.columns)
        self.assertGreater(unlike, 9)  # not all of them are refused

    def test_who_may_be_no_client_is_left_to_python(self) -> None:
        for client in ("_x", "_overflow2", "taba.x", "", "a b", "x" * 201, "é", "a\0b"):
            field = f"bids\0{client}".encode()
            packed = msgpack.packb(["CounterGroup", [field], struct.pack("<I", 1), struct.pack("<d", 1.0), struct.pack("<d", 1.0)])
            self.assertIsNone(reading._sections.read(packed, 1))
            content = msgpack.packb([5, STREAM, 5, 1, [1, packed], b""])
            self.assertEqual(read(content), self.in_python(content))

    def test_what_is_no_section_is_left_to_python(self) -> None:
        good = msgpack.packb(["Gauge", [b"bids\0a"], struct.pack("<I", 1), bytes(8), bytes(8)])
        self.assertIsNotNone(reading._sections.read(good, 1))
        for end in range(len(good)):
            self.assertIsNone(reading._sections.read(good[:end], 1))
        for items in (
            ["Gauge", [b"bids\0a"], struct.pack("<I", 0), b"", b""],
            ["Gauge", [b"bids\0a"], struct.pack("<I", 2), bytes(8), bytes(8)],
            ["Gauge", [b"bids\0a"], struct.pack("<I", 2**32 - 1), bytes(8), bytes(8)],
            ["Gauge", [b"bids\0a"], struct.pack("<I", 1), bytes(8), [b"\xc0"]],
            ["Gauge", ["bids\0a"], struct.pack("<I", 1), bytes(8), bytes(8)],
            ["Gauge", [], b"", b"", b""],
            [b"Gauge", [b"bids\0a"], struct.pack("<I", 1), bytes(8), bytes(8)],
            ["G" * 65, [b"bids\0a"], struct.pack("<I", 1), bytes(8), bytes(8)],
            ["Gauge", [b"bids\0a"], struct.pack("<I", 1), bytes(8), bytes(8), struct.pack("<I", 1)],
        ):
            self.assertIsNone(reading._sections.read(msgpack.packb(items), 1))
        with self.assertRaises(TypeError):
            reading._sections.read("text", 1)
