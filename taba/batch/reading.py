"""The bytes of a batch in, its columns out: what a stranger wrote, within the bounds that are set here, in steps."""

from __future__ import annotations

import struct
from collections.abc import Generator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, cast

import msgpack

from taba import names, versions
from taba.batch.columns import (
    MAX_BATCH_MEANINGS,
    MAX_CACHED_IDS,
    MAX_DUMP_BYTES,
    MAX_LIST_BYTES,
    MAX_LIST_VALUES,
    AtEdge,
    BadColumn,
    Batch,
    Block,
    Column,
    Columns,
    DecodedSection,
    Meaning,
    Packed,
    uint32s,
)
from taba.batch.identity import check_bucket, check_stream
from taba.bounds import MAX_BATCH_BYTES, MAX_BATCH_COLUMNS, MAX_BUCKETS, MAX_TIME, MAX_VALUE_BYTES, KiB
from taba.counting import BAD, OBJECT_BYTES, measure_values, plain_reader, unpack_counted
from taba.errors import MalformedBatch, UnknownVersion
from taba.lately import Lately
from taba.parts import find
from taba.steps import finish

MAX_BATCH_EVENTS = MAX_BATCH_COLUMNS * MAX_BATCH_BYTES  # that a batch stands for: a column for so many as a batch has bytes
DUMP_MADE = 8  # a fold makes so many bytes of one of a dump: of a bin's count of one byte a number of eight
MAX_EDGE_VERSION = 65_535
READ_BYTES = 64 * KiB  # of fields that are new, or made of sections, between two looks at the time: of the longest names some 5 ms
COLUMN_OBJECT_BYTES = 512  # of a decoded column, beside its times and values
MAX_CACHED_NAMES = 131_072  # names of Tabs likewise: all of a large site's …
MAX_CACHED_NAME = 256  # … of at most so many characters, which bounds the cache to some 50 MiB
MAX_CACHED_FIELDS = 65_536  # pairs of both likewise, in each of two generations: some 20 MiB beside the names, 40 at the most


def decode_batch(content: bytes) -> Batch:
    """The batch in `content`, all values made. Raises MalformedBatch where its identity cannot be trusted, UnknownVersion where it is not
    read here."""
    batch = plain_batch(content) or finish(reading_batch(content))
    return batch._replace(columns=[column.opened() if isinstance(column, Column) else column for column in batch.columns])


def plain_batch(content: bytes) -> Batch | None:
    """The batch in `content` where nothing is amiss in it, and it is read in one go; None for any other, and where C does not do it:
    `reading_batch` says what there is."""
    if _sections is None:
        return None
    batch: Any = _sections.read_batch(content, versions.HERE.batches, _BOUNDS, _NAMES, _FORMS)
    return _with_others(*batch) if type(batch) is tuple else batch


def _with_others(batch: Batch, columns: int) -> Batch | None:
    """The batch, of whose sections those that C left are read, which have at most so many columns; None where anything is amiss."""
    sections = _Sections(columns, batch.made_bytes)
    found: list[DecodedSection] = []
    for section in cast(Columns, batch.columns).sections:
        if type(section) is tuple:
            try:
                section = finish(sections.section(*section))
            except BAD:
                return None
            if not isinstance(section, Block) and BadColumn in map(_type_of, section):
                return None
        found.append(section)
    return batch._replace(columns=Columns(found), made_bytes=sections.made_bytes)


def reading_batch(content: bytes) -> Generator[int, None, Batch]:
    """As `decode_batch`, with values that hold others Packed, in steps of some 10 ms that each yield how many bytes were charged until
    then: what a fold makes of it is."""
    if len(content) > MAX_BATCH_BYTES:
        raise MalformedBatch(f"a batch of {len(content)} bytes; at most {MAX_BATCH_BYTES}")
    reader = plain_reader(len(content))
    reader.feed(content)
    try:
        fields = reader.read_array_header()
        version = reader.unpack() if fields else None
        if type(version) is not int:
            raise MalformedBatch("no batch")
        if version not in versions.HERE.batches:
            raise UnknownVersion("batch", version, versions.HERE.batches)
        if fields != 6:
            raise MalformedBatch(f"a batch of {fields} fields")
        stream, bucket, number = islice(reader, 3)
        check_stream(stream)
        check_bucket(bucket)
        if type(number) is not int or not 1 <= number < 2**63:
            raise MalformedBatch(f"batch number {number!r}"[:200])
        items = reader.read_array_header()
        if items % 2 or items > 2 * MAX_BATCH_COLUMNS:
            raise MalformedBatch(f"a batch takes at most {MAX_BATCH_COLUMNS} sections, each after its number of events")
        body = list(islice(reader, items))
        packed_meanings = reader.unpack()
    except BAD as error:
        raise MalformedBatch(f"batch: {type(error).__name__}: {error}"[:200]) from None
    if len(body) != items or reader.tell() != len(content):
        raise MalformedBatch("a batch that is cut off, or more than one")
    if not isinstance(packed_meanings, bytes):
        raise MalformedBatch("a batch's meanings are a bin")
    sections = _Sections()
    seen = total = 0
    for events, packed in zip(body[::2], body[1::2], strict=True):
        if sections.made_bytes - seen >= READ_BYTES:
            seen = sections.made_bytes
            yield seen
        if not isinstance(packed, bytes) or type(events) is not int or events < 0:
            raise MalformedBatch("a batch's sections are bins, each after its number of events")
        total += events
        if total > MAX_BATCH_EVENTS:  # what does not decode is counted as its sender says
            raise MalformedBatch(f"a batch stands for at most {MAX_BATCH_EVENTS} events")
        yield from sections.read(packed, events)
    return Batch(stream, bucket, number, Columns(sections.found), *_meanings(packed_meanings), sections.made_bytes)


def _meanings(packed: bytes) -> tuple[tuple[Meaning, ...], int]:
    """Those that decode, and how many do not; where the whole does not, it counts as one."""
    if not packed:
        return (), 0
    try:
        listed = unpack_counted(packed, 2, 4 * MAX_BATCH_MEANINGS + 1)  # a list of three each
    except ValueError:
        return (), 1
    if not isinstance(listed, list):
        return (), 1
    good: list[Meaning] = []
    for fields in listed:
        if not isinstance(fields, list) or len(fields) != 3 or not isinstance(fields[0], str):
            continue
        try:
            names.parse_name(fields[0])
            good.append(Meaning(fields[0], names.check_unit(fields[1]), names.check_description(fields[2])))
        except ValueError:
            continue  # counted below
    return tuple(good), len(listed) - len(good)


# the same names come in every batch; a Server reads 100,000 columns a second
_good_types = Lately(names.check_type, MAX_CACHED_IDS // 2)


@lru_cache(MAX_CACHED_IDS)
def _client(packed: bytes) -> str:
    return names.check_sender(packed.decode())


def _read_tab(packed: bytes) -> str:
    return names.check_tab(packed.decode())


_tab = Lately(_read_tab, MAX_CACHED_NAMES // 2)


class Fields:
    """Names of States that came lately, taken apart: in two generations, so that none is forgotten while it comes."""

    def __init__(self, most: int = MAX_CACHED_FIELDS):
        self._most = most
        self.young: dict[bytes, tuple[str, str]] = {}
        self.old: dict[bytes, tuple[str, str]] = {}

    def find(self, field: bytes) -> tuple[str, str]:
        """Client and Tab of a field that is not young. Raises ValueError for what is none."""
        found = self.old.get(field)
        if found is None:
            tab, nul, client = field.partition(b"\0")
            if not nul or b"\0" in client:
                raise ValueError("a field takes Tab, one NUL and Client")
            found = _client(client), _tab[tab] if len(tab) <= MAX_CACHED_NAME else _read_tab(tab)
        if len(field) <= MAX_CACHED_NAME:
            if len(self.young) >= self._most:
                self.old, self.young = self.young, {}
            self.young[field] = found
        return found


_FIELDS = Fields()
_sections = find("taba.batch._sections")  # without it Python does it all
# what _sections.read_batch is told; lists that are read in one go are never more than a batch may have
_BOUNDS = (
    *(MAX_BATCH_BYTES, MAX_BATCH_COLUMNS, MAX_BATCH_EVENTS, READ_BYTES, COLUMN_OBJECT_BYTES, MAX_BUCKETS, MAX_CACHED_NAME),
    *(MAX_VALUE_BYTES, OBJECT_BYTES),
)
_NAMES = (_good_types, _tab, BAD)
_FORMS = (Batch, Columns, Block, Column, Packed)
_PLAIN_TYPES = {type(None), bool, int, float, str, bytes}
_BINS = (b"\xc4", b"\xc5", b"\xc6")  # first bytes of bins
_BYTES = {bytes}
_type_of = type


class _Sections:
    """The sections of one batch as they are read; what they hold together stays within the bounds of a batch."""

    def __init__(self, columns: int = MAX_BATCH_COLUMNS, made_bytes: int = 0) -> None:
        self._reader: msgpack.Unpacker | None = None  # of values in lists
        self._columns, self._room, self._room_bytes = columns, MAX_LIST_VALUES, MAX_LIST_BYTES
        self.found: list[DecodedSection] = []
        self.made_bytes = made_bytes

    def read(self, packed: bytes, events: int) -> Generator[int, None, None]:
        """Take one more. What is wrong with it is its own matter."""
        self.made_bytes += COLUMN_OBJECT_BYTES + len(packed)
        try:
            self.found.append((yield from self.section(packed, events)))
        except BAD as error:
            self.found.append([BadColumn(_sentence("section", error), packed, events)])

    def section(self, packed: bytes, events: int) -> Generator[int, None, DecodedSection]:
        """What is in one, which is charged already but for what its columns take."""
        block = yield from self._block(packed, events)
        if block is not None:
            return block
        reader = plain_reader(len(packed))
        reader.feed(packed)
        items = reader.read_array_header()
        if items not in (5, 6, 7):
            raise ValueError("a section takes type, fields, counts, times and values; or States that were folded at the edge")
        type = reader.unpack()
        if not isinstance(type, str):
            raise ValueError("a Type takes text")
        _good_types[type]
        columns = reader.read_array_header()
        if not 0 < columns <= self._columns:
            raise ValueError(f"a section takes columns, and a batch at most {MAX_BATCH_COLUMNS}")
        self._columns -= columns
        self.made_bytes += COLUMN_OBJECT_BYTES * (columns - 1)
        fields = list(islice(reader, columns))
        numbers, times = islice(reader, 2)
        if len(fields) != columns or not _BYTES.issuperset(map(_type_of, fields)):
            raise ValueError("fields take a bin for each column")
        counts = _numbers(numbers, columns)
        if items == 7:
            return (yield from self._states(type, fields, counts, times, reader, len(packed), events))
        if not isinstance(times, bytes) or 0 in counts or len(times) != 8 * sum(counts):
            raise ValueError("times take float64 bytes, as many as counts say, and a column at least one")
        values: Any = None
        parts: list[Any] = []
        place = reader.tell()
        if packed[place : place + 1] in _BINS:
            values = reader.unpack()
            if len(values) != len(times):
                raise ValueError("as many values as times")
        else:
            if reader.read_array_header() != columns:
                raise ValueError("values take float64 bytes, or a bin for each column")
            parts = list(islice(reader, columns))
            if len(parts) != columns or not _BYTES.issuperset(map(_type_of, parts)):
                raise ValueError("values take float64 bytes, or a bin for each column")
        weights: Sequence[int | None] = (None,) * columns
        if items == 6:
            weights = _numbers(reader.unpack(), columns)
        if reader.tell() != len(packed):
            raise ValueError("cut off, or more than one section")
        if events != (len(times) >> 3 if items == 5 else sum(weights)):  # type: ignore[arg-type]
            raise ValueError("a section stands for as many events as the number before it says")
        if values is not None and items == 5:
            names = yield from self._names(fields)
            if names is not None:
                return Block.of(type, fields, names, counts, times, values)
        found: list[Column | BadColumn] = []
        append, known = found.append, _FIELDS.young.get
        start = unread = 0
        make = cast(Any, tuple.__new__)
        for at, (field, count, weight) in enumerate(zip(fields, counts, weights, strict=True)):
            end = start + 8 * count
            named = known(field)
            try:
                if named is None:
                    unread += len(field)
                    named = _FIELDS.find(field)
                    known = _FIELDS.young.get
                its = values[start:end] if values is not None else self._listed(parts[at], count)
                append(make(Column, (named[0], named[1], type, times[start:end], its, weight)))
            except BAD as error:
                its = values[start:end] if values is not None else parts[at]
                content = cast(bytes, msgpack.packb([field, type, times[start:end], its]))
                append(BadColumn(_sentence("column", error), content, count if weight is None else weight))
            if unread >= READ_BYTES:
                unread = 0
                yield self.made_bytes
            start = end
        return found

    def _block(self, packed: bytes, events: int) -> Generator[int, None, Block | None]:
        """What a section has of which nothing is amiss, where C takes it apart; None where that is not to be had."""
        found = None if _sections is None else _sections.read(packed, self._columns)
        if found is None:
            return None
        type, fields, counts, times, values, tabs, moved, places = found
        if events != len(times) >> 3:
            return None
        unread = 0
        of_tab: dict[str, int] = {}
        try:
            _good_types[type]
            for tab, rows in zip(tabs, moved, strict=True):
                of_tab[_tab[tab] if len(tab) <= MAX_CACHED_NAME else _read_tab(tab)] = rows
                unread += len(tab)
                if unread >= READ_BYTES:
                    unread = 0
                    yield self.made_bytes
        except BAD:  # said, and counted, where the columns are taken one by one
            return None
        self._columns -= len(fields)
        self.made_bytes += COLUMN_OBJECT_BYTES * (len(fields) - 1)
        return Block(type, fields, counts, times, values, of_tab, places)

    def _names(self, fields: list[bytes]) -> Generator[int, None, list[tuple[str, str]] | None]:
        """Client and Tab of each; None where one is no field."""
        names: list[Any] = list(map(_FIELDS.young.get, fields))
        unread = 0
        if None in names:
            for at, named in enumerate(names):
                if named is None:
                    unread += len(fields[at])
                    try:
                        names[at] = _FIELDS.find(fields[at])
                    except BAD:  # said, and counted, where the columns are taken one by one
                        return None
                    if unread >= READ_BYTES:
                        unread = 0
                        yield self.made_bytes
        return names

    def _states(
        self, type: str, fields: list[bytes], counts: tuple[int, ...], times: Any, reader: Any, size: int, events: int
    ) -> Generator[int, None, list[Column | BadColumn]]:
        """What a section of States holds, given what it begins with."""
        columns = len(fields)
        until = reader.unpack()
        for ends in (times, until):
            if not isinstance(ends, bytes) or len(ends) != 8 * columns:
                raise ValueError("of each State the times of the first and the last event are float64 bytes")
        if 0 in counts or reader.read_array_header() != columns:
            raise ValueError("each State stands for events, and has a dump")
        dumps = list(islice(reader, columns))
        if len(dumps) != columns or not _BYTES.issuperset(map(_type_of, dumps)):
            raise ValueError("dumps take a bin for each column")
        edge = reader.unpack()
        if _type_of(edge) is not int or not 1 <= edge <= MAX_EDGE_VERSION:
            raise ValueError("the version of States that were folded at the edge is a whole number")
        if reader.tell() != size:
            raise ValueError("cut off, or more than one section")
        if events != sum(counts):
            raise ValueError("a section stands for as many events as the number before it says")
        self.made_bytes += DUMP_MADE * sum(map(len, dumps))
        found: list[Column | BadColumn] = []
        unread = 0
        firsts, lasts = struct.unpack(f"<{columns}d", times), struct.unpack(f"<{columns}d", until)
        for at, (field, count, dump) in enumerate(zip(fields, counts, dumps, strict=True)):
            first, named = times[8 * at : 8 * at + 8], _FIELDS.young.get(field)
            try:
                if named is None:
                    unread += len(field)
                    named = _FIELDS.find(field)
                if not 0 <= firsts[at] <= lasts[at] <= MAX_TIME:
                    raise ValueError("events that were folded have times from 0 to 2^40, and a first one")
                if not 0 < len(dump) <= MAX_DUMP_BYTES:
                    raise ValueError(f"a State that was folded at the edge takes at most {MAX_DUMP_BYTES} bytes")
                found.append(Column(named[0], named[1], type, first, AtEdge(edge, dump, lasts[at]), count))
            except BAD as error:
                content = cast(bytes, msgpack.packb([field, type, first, until[8 * at : 8 * at + 8], dump, edge]))
                found.append(BadColumn(_sentence("column", error), content, count))
            if unread >= READ_BYTES:
                unread = 0
                yield self.made_bytes
        return found

    def _listed(self, packed: bytes, count: int) -> list[Any] | Packed:
        """The values of a column, within what the batch may hold."""
        if count > self._room:
            raise ValueError(f"a batch takes at most {MAX_LIST_VALUES} values in lists")
        if len(packed) > self._room_bytes:
            raise ValueError(f"a batch takes at most {MAX_LIST_BYTES} bytes of values in lists")
        # also where it fails below: what it costs to find that out is the same
        self._room -= count
        self._room_bytes -= len(packed)
        reader, objects = self._reader or plain_reader(MAX_BATCH_BYTES), count
        self._reader = None  # what is left in one that fails would be taken for the next
        begin = reader.tell()
        reader.feed(packed)
        values: list[Any] | Packed
        try:
            values = list(islice(reader, count))
        except BAD:
            values = []
        if len(values) != count or not _PLAIN_TYPES.issuperset(map(_type_of, values)):
            end, objects = measure_values(packed, 0, count)
            values = Packed(packed, count)
            if end == len(packed):
                values.values()  # whatever else is wrong with one is wrong now
        else:
            end = reader.tell() - begin
            if end == len(packed):
                self._reader = reader
            if len(packed) > MAX_VALUE_BYTES and any(isinstance(value, (str, bytes)) and len(value) > MAX_VALUE_BYTES for value in values):
                raise ValueError(f"a value takes at most {MAX_VALUE_BYTES} bytes")
        if end != len(packed):
            raise ValueError("as many values as times")
        self.made_bytes += OBJECT_BYTES * objects
        return values


def _numbers(content: Any, columns: int) -> tuple[int, ...]:
    if not isinstance(content, bytes) or len(content) != 4 * columns:
        raise ValueError("numbers take uint32 bytes, one for each column")
    found = uint32s(content)
    if max(found) > MAX_BATCH_BYTES:
        raise ValueError(f"a column stands for at most {MAX_BATCH_BYTES} events")
    return found


def _sentence(what: str, error: BaseException) -> str:
    return (str(error) if isinstance(error, ValueError) else f"{what}: {type(error).__name__}: {error}")[:200]
