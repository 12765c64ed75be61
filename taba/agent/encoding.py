"""Batches of a drain's sections, and of posted events: what fits one goes as it stands, what does not is cut. Pure.

Of sections the C part makes a batch at once where there is one; what is cut is made of columns, in Python.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias, cast

import msgpack
import numpy as np

from taba.agent.ages import Moment
from taba.agent.arenas import Arena
from taba.agent.native import NATIVE
from taba.agent.outbox import EncodedBatch
from taba.batch import (
    BATCH_VERSION,
    MAX_LIST_BYTES,
    MAX_LIST_VALUES,
    AtEdge,
    BatchId,
    Column,
    KeyPart,
    Meaning,
    Section,
    encode_batch,
    encode_meanings,
    encode_sections,
    field_of,
    joined,
    pack_bin,
    pack_values,
    sections_of,
    uint32s,
)
from taba.bounds import MAX_BATCH_BYTES, MAX_BATCH_COLUMNS, KiB, MiB
from taba.counting import unpack_list

COLUMN_BYTES = 44  # msgpack's own, the Type, and the lengths; names are added
HEADER_BYTES = 64  # of a batch
SECTION_BYTES = 128  # of a section, beside its columns: the Type, and lengths
_ONE, _TIME = (1).to_bytes(4, "little"), struct.Struct("<d")
LONGEST_NAMES = 16 * KiB  # of a column: what a batch has no room for beside its events

SectionsByBucket: TypeAlias = dict[int, list[Section]]  # by bucket


def absolute_section(client: str, tab: str, type: str, time: float, row: list[Any], events: int) -> Section:
    """The column of one absolute, which stands for so many events: as `sections_of` gives it, for there may be thousands in a drain."""
    values = pack_bin(cast(bytes, msgpack.packb(row)))
    return Section(type, 1, pack_bin(field_of(tab, client)), _ONE, _TIME.pack(time), values, True, events.to_bytes(4, "little"))


class WritingRoom:
    """Memory of `room` bytes that batches are written in one after the other. What was given before `begin` holds no longer."""

    def __init__(self, room: int = 4 * MiB):
        self._arena = Arena(room)
        self._used = 0

    def begin(self) -> None:
        """All of it is free."""
        self._arena.begin()
        self._used = 0

    def written(self, native: Any, fields: tuple[Any, ...]) -> tuple[int, memoryview, int | None] | None:
        """What `native.encode` gives for these, its bytes as a view of this."""
        made = native.encode(*fields, self._arena.view, self._used)
        if made is None:
            return None
        if made[1] > len(self._arena.view) - self._used:  # what is there stays where it is, for who was given it
            self._arena, self._used = Arena(max(made[1], 2 * len(self._arena.view))), 0
            made = native.encode(*fields, self._arena.view, 0)
        events, length, crc = made
        begin, self._used = self._used, self._used + length
        self._arena.reach(self._used)
        return events, self._arena.view[begin : self._used], crc

    def written_plain(self, native: Any, fields: tuple[Any, ...]) -> list[EncodedBatch]:
        """The batches that `native.encode_plain` gives for these: as many as there is room for."""
        made: list[EncodedBatch]
        made, self._used = native.encode_plain(*fields, self._arena.view, self._used, BatchId, EncodedBatch)
        self._arena.reach(self._used)
        return made


def encode(
    packed: SectionsByBucket,
    stream: bytes,
    numbers: Mapping[int, int],
    created: Moment,
    most: int = MAX_BATCH_BYTES,
    weights: Mapping[int, int] = MappingProxyType({}),
    meanings: Mapping[int, Sequence[Meaning]] = MappingProxyType({}),
    version: int = BATCH_VERSION,
    native: Any = NATIVE,
    room: WritingRoom | None = None,
) -> list[EncodedBatch]:
    """Batches of all columns, in the order of buckets, each within `most` bytes and MAX_BATCH_COLUMNS.

    `weights`: by bucket, how many more events its columns stand for than they have rows. `numbers` are the last numbers of this stream by
    bucket; the caller keeps count once the batches are published. A single event
    too large for a batch does not exist: values are bounded. Byte for byte what `encode_batch` gives for the same columns.
    `meanings`, of buckets that have columns here, go into the last batch of each, for a Tab must be there to be told of.
    `room`: where most of the batches are written, as views that hold until it is used again; without it they are bytes.
    """
    batches: list[EncodedBatch] = []
    if room is not None:
        room.begin()
    bounds = MAX_BATCH_COLUMNS, most - HEADER_BYTES, SECTION_BYTES, MAX_LIST_VALUES, MAX_LIST_BYTES
    buckets = sorted(packed)
    beside = dict(weights), dict(meanings)
    left = 0  # of these the first that is still to be made
    while left < len(buckets):
        # nearly always: of most buckets nothing is said, and all they have is one batch
        if native is not None and room is not None and isinstance(numbers, dict):
            made = room.written_plain(native, (buckets, left, packed, version, stream, numbers, created, bounds, *beside))
            batches += made
            left += len(made)
            if left == len(buckets):
                break
        bucket = buckets[left]
        left += 1
        number = numbers.get(bucket, 0)
        told = encode_meanings(meanings[bucket]) if bucket in meanings else b""
        if native is not None:
            fields = packed[bucket], version, stream, bucket, number + 1, told, bounds
            one = native.encode(*fields, None, 0) if room is None else room.written(native, fields)
            if one is not None:
                events, content, crc = one
                id = BatchId(stream, bucket, number + 1)
                batches.append(EncodedBatch(id, created, events + weights.get(bucket, 0), content, b"", crc))
                continue
        sections = joined(packed[bucket])
        columns = size = values = listed = events = 0
        for section in sections:
            columns += section.columns
            size += SECTION_BYTES + section.size
            events += section.weight if section.edge else len(section.times) >> 3
            if section.is_listed:
                values, listed = values + (len(section.times) >> 3), listed + len(section.values)
        fits = columns <= MAX_BATCH_COLUMNS and size + len(told) <= most - HEADER_BYTES
        if fits and values <= MAX_LIST_VALUES and listed <= MAX_LIST_BYTES:
            events += weights.get(bucket, 0)
            id = BatchId(stream, bucket, number + 1)
            batches.append(EncodedBatch(id, created, events, encode_sections(id, sections, told, version)))
            continue
        waiting = list(_split(unpack(sections), most))[::-1]
        while waiting:
            part = waiting.pop()
            id = BatchId(stream, bucket, number + 1)
            content = encode_batch(*id, part, () if waiting else meanings.get(bucket, ()), version)
            if len(content) > most and not waiting and told and part:
                waiting += ([], part)  # they have a batch of their own
                continue
            # long values in lists, which the estimate does not see
            if len(content) > most or (len(content) > MAX_LIST_BYTES and _listed_bytes(part) > MAX_LIST_BYTES):
                waiting += _halves(part)
                continue
            number += 1
            events = sum([column.weight for column in part])
            batches.append(EncodedBatch(id, created, events, content))
    return batches


class PackedLot(NamedTuple):
    """What becomes one batch of posted events, but for its number: how many they are, and their sections."""

    events: int
    sections: list[Section]


def packing(lots: Mapping[int, Sequence[list[Column]]]) -> Generator[int, None, dict[int, list[PackedLot]]]:
    """Posted events by bucket, as `encode_lots` takes them; yields how many bytes were made, a lot after the other."""
    packed: dict[int, list[PackedLot]] = {}
    for bucket, its in lots.items():
        for lot in its:
            one = PackedLot(sum([column.events for column in lot]), sections_of(lot))
            packed.setdefault(bucket, []).append(one)
            yield sum([section.size for section in one.sections])
    return packed


def encode_lots(
    lots: Mapping[int, Sequence[PackedLot]],
    stream: bytes,
    numbers: Mapping[int, int],
    created: Moment,
    key: KeyPart | None = None,
    version: int = BATCH_VERSION,
) -> list[EncodedBatch]:
    """Batches of posted events: each lot is one, whatever it holds (see taba.events). `key`: of a request that has one."""
    batches = []
    for bucket in sorted(lots):
        for place, lot in enumerate(lots[bucket], start=1):
            id = BatchId(stream, bucket, numbers.get(bucket, 0) + place)
            part = b"" if key is None else key._replace(lot=place).encode()
            batches.append(EncodedBatch(id, created, lot.events, encode_sections(id, lot.sections, b"", version), part))
    return batches


def unpack(sections: Iterable[Section]) -> list[Column]:
    """The columns of one bucket's `sections`."""
    found = []
    for section in sections:
        fields = _bins(section.fields)
        if section.edge:
            until = np.frombuffer(section.until, "<f8").tolist()
            for place, (field, count, dump) in enumerate(zip(fields, uint32s(section.counts), _bins(section.values), strict=True)):
                tab, _, client = field.decode().partition("\0")
                first, state = bytes(section.times[8 * place : 8 * place + 8]), AtEdge(section.edge, dump, until[place])
                found.append(Column(client, tab, section.type, first, state, count))
            continue
        values = _bins(section.values) if section.is_listed else []
        weights: Sequence[int | None] = uint32s(section.stands_for) or (None,) * section.columns
        start = 0
        for place, (field, count, weight) in enumerate(zip(fields, uint32s(section.counts), weights, strict=True)):
            tab, _, client = field.decode().partition("\0")
            here = slice(8 * start, 8 * (start + count))
            its = unpack_list(values[place], count) if section.is_listed else bytes(section.values[here])
            found.append(Column(client, tab, section.type, bytes(section.times[here]), its, weight))
            start += count
    return found


def _bins(content: bytes | memoryview) -> list[bytes]:
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(content)
    return list(unpacker)


def _listed_bytes(part: Sequence[Column]) -> int:
    """What the lists of these columns take."""
    return sum(len(pack_values(column.values)) for column in part if isinstance(column.values, list))


def _split(columns: Iterable[Column], most: int) -> Iterable[list[Column]]:
    """Parts of `columns` that, by estimate, make batches within the bounds. A long column is cut."""
    part: list[Column] = []
    room, listed = most - HEADER_BYTES, 0
    for column in columns:
        for piece in _pieces(column, (most - LONGEST_NAMES) // 17):
            # values in a list count as if each were a float
            needed = COLUMN_BYTES + len(column.client) + len(column.tab) + len(column.type) + 17 * piece.events
            needed += len(column.values.dump) if isinstance(column.values, AtEdge) else 0
            in_list = piece.events if isinstance(piece.values, list) else 0
            if part and (needed > room or len(part) == MAX_BATCH_COLUMNS or listed + in_list > MAX_LIST_VALUES):
                yield part
                part, room, listed = [], most - HEADER_BYTES, 0
            part.append(piece)
            room -= needed
            listed += in_list
    if part:
        yield part


def _pieces(column: Column, most: int) -> Iterable[Column]:
    if column.events <= most:
        yield column
        return
    for start in range(0, column.events, most):
        yield _slice(column, start, min(start + most, column.events))


def _halves(part: list[Column]) -> list[list[Column]]:
    """The second half of a part, and the first: what is popped first comes last."""
    if len(part) > 1:
        return [part[len(part) // 2 :], part[: len(part) // 2]]
    half = part[0].events // 2
    return [[_slice(part[0], half, part[0].events)], [_slice(part[0], 0, half)]]


def _slice(column: Column, start: int, end: int) -> Column:
    values = column.made()
    values = values[8 * start : 8 * end] if isinstance(values, bytes) else values[start:end]
    return column._replace(times=column.times[8 * start : 8 * end], values=values)
