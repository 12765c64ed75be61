"""Columns in, the bytes of a batch out: section by section, so that an Agent can make these from arrays."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple, cast

import msgpack

from taba.batch.columns import MAX_CACHED_IDS, AtEdge, Column, Meaning, Packed, field_of, uint32s
from taba.batch.identity import BatchId
from taba.counting import plain_reader

BATCH_VERSION = 5  # of what is described above; which of them are read and written: taba.versions


class Section(NamedTuple):
    """Columns of one Type as they are written: their fields as bins one after the other, the numbers of their rows, all times and values;
    with `is_listed` the values are bins, too, one for each column. `stands_for`: as `counts`, where that is another number. Times and
    values may be views of bytes: they are read once.

    With `edge` they are States that were folded at the edge, in that version: `counts` how many events they stand for, `times` those of the
    first of each, `until` those of the last, and `values` bins.
    """

    type: str
    columns: int
    fields: bytes
    counts: bytes
    times: bytes | memoryview
    values: bytes | memoryview
    is_listed: bool = False
    stands_for: bytes = b""
    edge: int = 0
    until: bytes = b""

    @property
    def weight(self) -> int:
        """How many recorded Events this accounts for."""
        if self.edge:
            return sum(uint32s(self.counts))
        return sum(uint32s(self.stands_for)) if self.stands_for else len(self.times) >> 3

    @property
    def kind(self) -> tuple[str, bool, bool, int]:
        """Sections of one kind can be one."""
        return self.type, self.is_listed, bool(self.stands_for), self.edge

    @property
    def size(self) -> int:
        """What its columns take, without what stands around them."""
        return sum(map(len, (self.fields, self.counts, self.times, self.values, self.stands_for, self.until)))

    def pieces(self) -> tuple[bytes | memoryview, ...]:
        """What stands for it in a batch: its events, and the bin."""
        columns = array_header(self.columns)
        if self.edge:
            head = b"".join((b"\x97", _packed_type(self.type), columns))
            parts: tuple[bytes | memoryview, ...] = (
                head,
                self.fields,
                bin_header(len(self.counts)),
                self.counts,
                bin_header(len(self.times)),
                self.times,
            )
            parts += (bin_header(len(self.until)), self.until, columns, self.values, cast(bytes, msgpack.packb(self.edge)))
            return (cast(bytes, msgpack.packb(self.weight)), bin_header(sum(map(len, parts))), *parts)
        values = columns if self.is_listed else bin_header(len(self.values))
        size = 5 + bool(self.stands_for)
        head = b"".join((bytes((0x90 | size,)), _packed_type(self.type), columns))
        parts = (head, self.fields, bin_header(len(self.counts)), self.counts, bin_header(len(self.times)), self.times)
        parts += (values, self.values)
        if self.stands_for:
            parts += (bin_header(len(self.stands_for)), self.stands_for)
        return (cast(bytes, msgpack.packb(self.weight)), bin_header(sum(map(len, parts))), *parts)


def joined(sections: Iterable[Section]) -> list[Section]:
    """The same columns in the same order, those of one kind that follow each other in one section."""
    found = []
    for _, some in groupby(sections, Section.kind.fget):  # type: ignore[attr-defined]
        alike = list(some)
        if len(alike) > 1:
            fields = b"".join([section.fields for section in alike])
            counts = b"".join([section.counts for section in alike])
            times = b"".join([section.times for section in alike])
            values = b"".join([section.values for section in alike])
            stands_for = b"".join([section.stands_for for section in alike])
            until = b"".join([section.until for section in alike])
            columns = sum([section.columns for section in alike])
            type, is_listed, edge = alike[0].type, alike[0].is_listed, alike[0].edge
            alike = [Section(type, columns, fields, counts, times, values, is_listed, stands_for, edge, until)]
        found += alike
    return found


def sections_of(columns: Iterable[Column]) -> list[Section]:
    """These columns as sections, in their order."""
    return joined(map(_section_of, columns))


def _section_of(column: Column) -> Section:
    field, count = pack_bin(field_of(column.tab, column.client)), column.events.to_bytes(4, "little")
    if isinstance(column.values, AtEdge):
        edge, dump, until = column.values
        count = column.weight.to_bytes(4, "little")
        return Section(column.type, 1, field, count, column.times, pack_bin(dump), edge=edge, until=struct.pack("<d", until))
    stands_for = b"" if column.stands_for is None else column.stands_for.to_bytes(4, "little")
    values, is_listed = column.values, not isinstance(column.values, bytes)
    if not isinstance(values, bytes):
        values = pack_bin(values.content if isinstance(values, Packed) else pack_values(values))
    return Section(column.type, 1, field, count, column.times, values, is_listed, stands_for)


def pack_values(values: Sequence[Any]) -> bytes:
    """Their msgpack, one after the other."""
    return cast(bytes, msgpack.packb(values))[len(array_header(len(values))) :]


def pack_bin(content: bytes) -> bytes:
    """The msgpack of it."""
    return bin_header(len(content)) + content


def bin_header(length: int) -> bytes:
    """What msgpack writes before so many bytes."""
    if length < 256:
        return b"\xc4" + length.to_bytes(1, "big")
    return b"\xc5" + length.to_bytes(2, "big") if length < 65_536 else b"\xc6" + length.to_bytes(4, "big")


def array_header(items: int) -> bytes:
    """What msgpack writes before so many items."""
    if items < 16:
        return bytes((0x90 | items,))
    return b"\xdc" + items.to_bytes(2, "big") if items < 65_536 else b"\xdd" + items.to_bytes(4, "big")


@lru_cache(MAX_CACHED_IDS)
def _packed_type(type: str) -> bytes:
    return cast(bytes, msgpack.packb(type))


def encode_batch(
    stream: bytes,
    bucket: int,
    number: int,
    columns: Iterable[Column],
    meanings: Sequence[Meaning] = (),
    version: int = BATCH_VERSION,
) -> bytes:
    """The bytes of a batch. The caller keeps the bounds."""
    return encode_sections(BatchId(stream, bucket, number), sections_of(columns), encode_meanings(meanings), version)


def encode_sections(id: BatchId, sections: Sequence[Section], meanings: bytes, version: int) -> bytes:
    """The bytes of a batch, given what `encode_meanings` gave."""
    head = b"".join((b"\x96", cast(bytes, msgpack.packb([version, *id]))[1:], array_header(2 * len(sections))))
    return b"".join((head, *[piece for section in sections for piece in section.pieces()], bin_header(len(meanings)), meanings))


def encode_meanings(meanings: Sequence[Meaning]) -> bytes:
    """What stands for them in a batch, before it is a bin."""
    return cast(bytes, msgpack.packb(meanings)) if meanings else b""


def edges_of(content: bytes) -> dict[str, int]:
    """Of which Types a batch that was written here has States, and in which versions these were folded at the edge. Of a batch of another
    version nothing is known: it has none."""
    reader = plain_reader(len(content))
    reader.feed(content)
    found: dict[str, int] = {}
    reader.read_array_header()
    if reader.unpack() != BATCH_VERSION:
        return found
    for _ in range(3):
        reader.skip()
    for _ in range(reader.read_array_header() // 2):
        reader.skip()
        packed = reader.unpack()
        section = plain_reader(len(packed))
        section.feed(packed)
        if section.read_array_header() == 7:
            type = section.unpack()
            for _ in range(section.read_array_header() + 3):
                section.skip()
            for _ in range(section.read_array_header()):
                section.skip()
            found[type] = section.unpack()
    return found
