from __future__ import annotations

import contextlib
import struct
from typing import Any

import msgpack
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba import batch
from taba.batch import BadColumn, Column, Verdict
from taba.bounds import MAX_BATCH_COLUMNS, MAX_ENVELOPE_BATCHES
from taba.errors import MalformedBatch

STREAM = bytes(range(16))
FLOATS = struct.pack("<2d", 1.0, 2.0)


def column(tab: Any = "bids_won", times: Any = FLOATS, values: Any = FLOATS) -> Column:
    return Column("web/1", tab, "CounterGroup", times, values)


class Batches(SynchronousTestCase):
    def test_a_batch_reads_back_as_it_was_written(self) -> None:
        columns = [column(), column('a{b="c"}', values=["x", [1, None, b"y"]])]
        content = batch.encode_batch(STREAM, 5, 7, 12.5, columns)
        self.assertEqual(batch.decode_batch(content), batch.Batch(STREAM, 5, 7, 12.5, columns))

    def test_a_probe_has_an_identity_and_no_columns(self) -> None:
        self.assertIsNone(batch.decode_batch(batch.encode_batch(STREAM, 5, 7, 12.5, None)).columns)

    def test_a_bad_column_harms_itself_alone(self) -> None:
        bad = [
            column("taba.own"),
            column("a b"),
            column(7),
            column(times=b""),
            column(times=b"123"),
            column(values=FLOATS[:8]),
            column(values=[1]),
            column(values=7),
        ]
        content = batch.encode_batch(STREAM, 5, 7, 12.5, [column(), *bad])
        good, *others = batch.decode_batch(content).columns or []
        self.assertEqual(good, column())
        for other in others:
            self.assertIsInstance(other, BadColumn)

    def test_an_identity_that_cannot_be_trusted_is_refused(self) -> None:
        good: list[Any] = [1, STREAM, 5, 7, 12.5, []]
        batch.decode_batch(msgpack.packb(good))
        for place, bad in [
            (0, 2),
            (1, b"short"),
            (2, -1),
            (2, 65_536),
            (2, True),
            (3, 0),
            (3, "7"),
            (4, float("nan")),
            (5, {}),
            (5, [[]] * (MAX_BATCH_COLUMNS + 1)),
        ]:
            fields = list(good)
            fields[place] = bad
            self.assertRaises(MalformedBatch, batch.decode_batch, msgpack.packb(fields))
        batch.decode_batch(msgpack.packb([*good[:5], [[]] * MAX_BATCH_COLUMNS]))
        for content in [b"", b"\xc1", msgpack.packb(good)[:-1], msgpack.packb(good) + b"x", msgpack.packb({}), b"\x91" * 5000]:
            self.assertRaises(MalformedBatch, batch.decode_batch, content)

    @given(st.binary(max_size=200))
    def test_any_bytes_are_a_batch_or_malformed(self, content: bytes) -> None:
        for decode in (batch.decode_batch, batch.decode_envelope, lambda c: batch.decode_verdicts(c, 1)):
            with contextlib.suppress(MalformedBatch):
                decode(content)


class Envelopes(SynchronousTestCase):
    def test_an_envelope_reads_back_as_it_was_written(self) -> None:
        content = batch.encode_envelope("default", "host", [(0, b"one"), (6, b"two")])
        self.assertEqual(batch.decode_envelope(content), batch.Envelope("default", "host", [(0, b"one"), (6, b"two")]))

    def test_as_many_batches_as_allowed_and_one_more(self) -> None:
        batch.decode_envelope(batch.encode_envelope("a", "h", [(0, b"")] * MAX_ENVELOPE_BATCHES))
        self.assertRaises(MalformedBatch, batch.decode_envelope, batch.encode_envelope("a", "h", [(0, b"")] * (MAX_ENVELOPE_BATCHES + 1)))

    def test_verdicts_read_back_and_others_are_refused(self) -> None:
        verdicts = [Verdict("applied", 3), Verdict("later", 0.5), Verdict("gap", 0), Verdict("refused", "malformed")]
        content = batch.encode_verdicts(verdicts)
        self.assertEqual(batch.decode_verdicts(content, 4), verdicts)
        self.assertRaises(MalformedBatch, batch.decode_verdicts, content, 3)
        for bad in [["applied"], ["applied", "x"], ["perhaps", 1], "applied", [["x"], 1]]:
            self.assertRaises(MalformedBatch, batch.decode_verdicts, msgpack.packb({"verdicts": [bad]}), 1)
