"""Batches and envelopes: bytes in, values out. Written by Agents (and for `POST /v1/events`), read by Servers.

1. A batch is encoded once; (stream, bucket, number) is its identity, and its bytes never change.
2. What may change when it is sent again travels beside it in the envelope: `follows`, the number before it, and the `nonce` under which
   its stream is open; beside posted events with a key also which part of which post they are.
3. What is wrong with a whole batch is MalformedBatch; what is wrong with a field or with values in a list is that column's own `error`, and
   lengths that do not add up are their section's. What is of a version that is not read here is UnknownVersion: nothing is wrong with it,
   and it is never refused.

A batch is msgpack `[5, stream, bucket, number, [events, section, events, section, …], meanings]`. A section has columns of one Type; it is
a bin with its number of events before it, so that its extent is known when it does not decode. In it is msgpack
`[type, fields, counts, times, values]`: `fields` a list with a bin for each column, Tab, NUL and Client, as the store names the State;
`counts` how many rows each has, little-endian uint32 bytes; `times` those of all columns one after the other, little-endian float64 bytes;
`values` likewise or, of columns in which one is not a float, a list with a bin for each column: its values' msgpack, one after the other.
Where the events that columns stand for are not their rows, their numbers are a sixth item, uint32 bytes: 0 for what Agents record
themselves. A Type that is `absolute` gets rows `[ring id, position, sum]`: what
one process has added up to a position of its ring, so that neither loss nor repetition nor order does harm; at RING_ENDED the process is
dead, at RING_GONE nothing of that ring is still to come.

A section of States that were folded at the edge is msgpack `[type, fields, counts, least, greatest, dumps, edge]`: `counts` how many
events each stands for, as above; `least` and `greatest` the times of the first and the last of these, float64 bytes; `dumps` a list with
a bin for each column, which the Type's Handler made in its version `edge`.

`meanings` is a bin, empty or with msgpack `[[tab, unit, description], …]`: what
applications say that Tabs mean, each said once a stream, and again where it changes. One that does not decode is counted, and harms no
Event.

An envelope is `{"v": 2, "agent", "host", "now": the sender's Unix time, "store": the id of the store that the sender knows or nil,
"entries": [entry, …]}`. An entry is a batch `{"batch", "follows", "nonce", "key"?}`, or a header without
body `{"do": "open" | "mark" | "end", "stream", "bucket", "nonce"?}`. The answer is `{"verdicts": [[word, detail, why], …],
"store_age": minutes or nil}`, one verdict an entry, in order.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, groupby, islice
from operator import itemgetter
from typing import Any, NamedTuple, cast

import msgpack

from taba import names, versions
from taba.bounds import (
    MAX_BATCH_BYTES,
    MAX_BATCH_COLUMNS,
    MAX_BUCKETS,
    MAX_ENVELOPE_BATCHES,
    MAX_ENVELOPE_BYTES,
    MAX_TIME,
    MAX_VALUE_BYTES,
    KiB,
)
from taba.counting import BAD, OBJECT_BYTES, measure_values, plain_reader, unpack_counted, unpack_list
from taba.errors import MalformedBatch, NoVerdicts, UnknownVersion
from taba.steps import finish

BATCH_VERSION = 5  # of what is described above; which of them are read and written: taba.versions
ENVELOPE_VERSION = 2
VERDICTS_HEADER = "Taba-Verdicts"  # its presence says that the answer is a Server's own, not a proxy's
CONTENT_TYPE = "application/msgpack"

STREAM_BYTES = 16
NONCE_BYTES = 8  # a stream id has 128 bits of its own: a nonce tells two openings of one stream apart
KEY_BYTES = 36  # of a KeyPart
MAX_BATCH_EVENTS = MAX_BATCH_COLUMNS * MAX_BATCH_BYTES  # that a batch stands for: a column for so many as a batch has bytes

MAX_DUMP_BYTES = MAX_VALUE_BYTES  # of a State that was folded at the edge: wherever the largest value has room, it has
DUMP_MADE = 8  # a fold makes so many bytes of one of a dump: of a bin's count of one byte a number of eight
MAX_EDGE_VERSION = 65_535
MAX_LIST_VALUES = 16_384  # values that are no floats, of all columns of a batch: each becomes an object of Python's
MAX_LIST_BYTES = 64 * KiB  # that these take, lists in them and all: made, each byte may be an object of 64, and a fold walks them
READ_BYTES = 64 * KiB  # of fields that are new, or made of sections, between two looks at the time: of the longest names some 5 ms
COLUMN_OBJECT_BYTES = 512  # of a decoded column, beside its times and values
MAX_FIELDS = 16  # of an envelope or an entry, known here or not
MAX_BATCH_MEANINGS = 1000  # as many as Tabs of a batch
MAX_CACHED_IDS = 10_000  # client ids and Types whose form is known to be right
MAX_CACHED_NAMES = 131_072  # names of Tabs likewise: all of a large site's …
MAX_CACHED_NAME = 256  # … of at most so many characters, which bounds the cache to some 50 MiB
MAX_CACHED_FIELDS = 65_536  # pairs of both likewise, in each of two generations: some 20 MiB beside the names, 40 at the most
MAX_STORE_ID = 64  # characters
MAX_STORE_AGE = 2**32 - 2  # minutes: eight thousand years

APPLIED = "applied"  # detail: the mark
LATER = "later"  # detail: seconds; why: a sentence, or nothing
GAP = "gap"  # detail: the mark; why: one of the next three
REFUSED = "refused"  # detail: the reason
OPEN = "open"  # detail: the nonce; why: the mark
MARK = "mark"  # detail: the mark
ENDED = "ended"  # detail: 0

NUMBER = "number"  # the mark is another than the one that the batch follows
NONCE = "nonce"  # the stream was opened anew since
NOT_OPEN = "not open"  # the bucket knows nothing of the stream

END = "end"
DOES = (OPEN, MARK, END)


# why a column is not read
BAD_COLUMN = "bad_column"
NOT_COVERED = "not_covered"  # by the token of whoever sent it

RING_ENDED = 2**62  # positions beyond those of any record
RING_GONE = RING_ENDED + 1


class Packed:
    """Values of which some hold others, of which each is within its bounds: as their msgpack, one after the other.

    They are made only for what needs them, a fold: what lies in a queue as lists in lists is walked by each collection of garbage.
    """

    __slots__ = ("content", "count")

    def __init__(self, content: bytes, count: int):
        self.content, self.count = content, count

    def values(self) -> list[Any]:
        """Make them."""
        return unpack_list(self.content, self.count)


class AtEdge(NamedTuple):
    """A fresh State to which Events were folded at the edge: the version of what its Handler made, that, and the time of the last one."""

    edge: int
    dump: bytes
    until: float


class Column(NamedTuple):
    """The Events of one (Client, Tab, Type) in one batch.

    `times` are n little-endian float64 Unix seconds; `values` n little-endian float64, or a list of n msgpack values, or these Packed.
    Of Events that were folded at the edge `times` is that of the first one alone, and `stands_for` how many they are.
    """

    client: str
    tab: str
    type: str
    times: bytes
    values: bytes | list[Any] | Packed | AtEdge
    stands_for: int | None = None

    def made(self) -> bytes | list[Any]:
        """Its values, all made; of Events that were folded at the edge there are none."""
        assert not isinstance(self.values, AtEdge)
        return self.values.values() if isinstance(self.values, Packed) else self.values

    def opened(self) -> Column:
        """The same, and its values are made."""
        return self._replace(values=self.made()) if isinstance(self.values, Packed) else self

    @property
    def events(self) -> int:
        return len(self.times) // 8

    @property
    def weight(self) -> int:
        """How many recorded Events this accounts for."""
        return len(self.times) // 8 if self.stands_for is None else self.stands_for


class Block:
    """Columns of one section of which nothing is amiss, all of floats, as arrays: who looks at one has it made.

    `states` are Client and Tab of each, `tabs` the latter, `fields` what the store calls these, `counts` how many rows each has.
    """

    __slots__ = ("counts", "fields", "states", "tabs", "times", "type", "values")

    def __init__(
        self, type: str, fields: Sequence[bytes], states: Sequence[tuple[str, str]], counts: Sequence[int], times: bytes, values: bytes
    ):
        self.type, self.fields, self.states, self.counts, self.times, self.values = type, fields, states, counts, times, values
        self.tabs: list[str] = list(map(_TAB_OF, states))

    def __len__(self) -> int:
        return len(self.fields)

    def columns(self) -> list[Column]:
        """Make them."""
        found, start, make = [], 0, cast(Any, tuple.__new__)
        for (client, tab), count in zip(self.states, self.counts, strict=True):
            end = start + 8 * count
            found.append(make(Column, (client, tab, self.type, self.times[start:end], self.values[start:end], None)))
            start = end
        return found


_TAB_OF = itemgetter(1)


class BadColumn(NamedTuple):
    """A column or a section that does not decode, or that its sender may not send: what is wrong with it, what was there, how many Events
    its sender says that it holds, and the reason under which they are dead letters; and its Client, where it decodes."""

    error: str
    content: bytes
    events: int
    reason: str = BAD_COLUMN
    client: str = ""


Part = Block | Sequence[Column | BadColumn]


class Columns(Sequence[Column | BadColumn]):
    """The columns of a batch in their order, as parts of them came."""

    __slots__ = ("parts",)

    def __init__(self, parts: Sequence[Part]):
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[Column | BadColumn]:
        return chain.from_iterable(map(columns_of, self.parts))

    def __getitem__(self, place: Any) -> Any:
        return list(self)[place]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))


def parts_of(columns: Sequence[Column | BadColumn]) -> Sequence[Part]:
    """These columns, as blocks where they came so."""
    return columns.parts if isinstance(columns, Columns) else (columns,)


def columns_of(part: Part) -> Sequence[Column | BadColumn]:
    """The columns of a part, one by one."""
    return part.columns() if isinstance(part, Block) else part


class BatchId(NamedTuple):
    """What a batch is known by, from the drain to the mark: numbers count from 1 in each bucket of a stream."""

    stream: bytes
    bucket: int
    number: int


class Meaning(NamedTuple):
    """What an application says that a Tab is: "" where it says nothing."""

    tab: str
    unit: str
    description: str


class Batch(NamedTuple):
    """One decoded batch. `bad_meanings`: how many did not decode; `made_bytes`: what a fold makes of it takes so many, about."""

    stream: bytes
    bucket: int
    number: int
    columns: Sequence[Column | BadColumn]
    meanings: tuple[Meaning, ...] = ()
    bad_meanings: int = 0
    made_bytes: int = 0

    @property
    def id(self) -> BatchId:
        return BatchId(self.stream, self.bucket, self.number)

    @property
    def fields(self) -> set[bytes]:
        """The names of the States that it touches."""
        found: set[bytes] = set()
        for part in parts_of(self.columns):
            its = part.fields if isinstance(part, Block) else [field_of(one.tab, one.client) for one in part if isinstance(one, Column)]
            found.update(its)
        return found

    @property
    def types(self) -> set[str]:
        """The Types of its columns."""
        found: set[str] = set()
        for part in parts_of(self.columns):
            found |= {part.type} if isinstance(part, Block) else {column.type for column in part if isinstance(column, Column)}
        return found


class KeyPart(NamedTuple):
    """Which part of which post with an Idempotency-Key a batch is: the key's id, the digest of the request, and from 1 on its place among
    the request's batches in this bucket."""

    key: bytes
    digest: bytes
    lot: int

    def encode(self) -> bytes:
        return self.key + self.digest + self.lot.to_bytes(4, "big")

    @staticmethod
    def decode(content: bytes) -> KeyPart:
        """The inverse of `encode`, of as many bytes as that gives."""
        return KeyPart(content[:16], content[16:32], int.from_bytes(content[32:], "big"))


class SentBatch(NamedTuple):
    """A batch in an envelope, and what travels beside it. `key`: the bytes of a KeyPart."""

    batch: bytes
    follows: int
    nonce: bytes
    key: bytes = b""


class Header(NamedTuple):
    """A header without body: what to do with a stream in a bucket. `nonce` only to end what is open under that one, and no other."""

    do: str
    stream: bytes
    bucket: int
    nonce: bytes = b""


Entry = SentBatch | Header


class Verdict(NamedTuple):
    """What became of one entry; the words above say what `detail` and `why` are."""

    word: str
    detail: int | float | str | bytes
    why: str | int = ""


class Answer(NamedTuple):
    """The verdicts on an envelope's entries, in order, and the store's age in minutes, None where it is not known."""

    verdicts: list[Verdict]
    store_age: int | None


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


def field_of(tab: str, client: str) -> bytes:
    """The name of a State."""
    return f"{tab}\0{client}".encode()


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


def uint32s(content: bytes) -> tuple[int, ...]:
    """The numbers in it."""
    return struct.unpack(f"<{len(content) >> 2}I", content)


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


def encode_meanings(meanings: Sequence[Meaning]) -> bytes:
    """What stands for them in a batch, before it is a bin."""
    return cast(bytes, msgpack.packb(meanings)) if meanings else b""


def decode_batch(content: bytes) -> Batch:
    """The batch in `content`, all values made. Raises MalformedBatch where its identity cannot be trusted, UnknownVersion where it is not
    read here."""
    batch = finish(reading_batch(content))
    return batch._replace(columns=[column.opened() if isinstance(column, Column) else column for column in batch.columns])


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
        _check_stream(stream)
        _check_bucket(bucket)
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
_check_type = lru_cache(MAX_CACHED_IDS)(names.check_type)


@lru_cache(MAX_CACHED_IDS)
def _client(packed: bytes) -> str:
    return names.check_sender(packed.decode())


def _read_tab(packed: bytes) -> str:
    return names.check_tab(packed.decode())


_tab = lru_cache(MAX_CACHED_NAMES)(_read_tab)


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
            found = _client(client), _tab(tab) if len(tab) <= MAX_CACHED_NAME else _read_tab(tab)
        if len(field) <= MAX_CACHED_NAME:
            if len(self.young) >= self._most:
                self.old, self.young = self.young, {}
            self.young[field] = found
        return found


_FIELDS = Fields()
_PLAIN_TYPES = {type(None), bool, int, float, str, bytes}
_BINS = (b"\xc4", b"\xc5", b"\xc6")  # first bytes of bins
_BYTES = {bytes}


class _Sections:
    """The sections of one batch as they are read; what they hold together stays within the bounds of a batch."""

    def __init__(self) -> None:
        self._reader: msgpack.Unpacker | None = None  # of values in lists
        self._columns, self._room, self._room_bytes = MAX_BATCH_COLUMNS, MAX_LIST_VALUES, MAX_LIST_BYTES
        self.found: list[Part] = []
        self.made_bytes = 0

    def read(self, packed: bytes, events: int) -> Generator[int, None, None]:
        """Take one more. What is wrong with it is its own matter."""
        self.made_bytes += COLUMN_OBJECT_BYTES + len(packed)
        try:
            self.found.append((yield from self._section(packed, events)))
        except BAD as error:
            self.found.append([BadColumn(_sentence("section", error), packed, events)])

    def _section(self, packed: bytes, events: int) -> Generator[int, None, Part]:
        reader = plain_reader(len(packed))
        reader.feed(packed)
        items = reader.read_array_header()
        if items not in (5, 6, 7):
            raise ValueError("a section takes type, fields, counts, times and values; or States that were folded at the edge")
        type = reader.unpack()
        if not isinstance(type, str):
            raise ValueError("a Type takes text")
        _check_type(type)
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
                return Block(type, fields, names, counts, times, values)
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


_type_of = type


def _numbers(content: Any, columns: int) -> tuple[int, ...]:
    if not isinstance(content, bytes) or len(content) != 4 * columns:
        raise ValueError("numbers take uint32 bytes, one for each column")
    found = uint32s(content)
    if max(found) > MAX_BATCH_BYTES:
        raise ValueError(f"a column stands for at most {MAX_BATCH_BYTES} events")
    return found


def _sentence(what: str, error: BaseException) -> str:
    return (str(error) if isinstance(error, ValueError) else f"{what}: {type(error).__name__}: {error}")[:200]


def encode_envelope(
    agent: str, host: str, now: float, store: str | None, entries: Sequence[Entry], version: int = ENVELOPE_VERSION
) -> bytes:
    """The bytes of an envelope. The caller keeps the bounds."""
    packed = [
        {"batch": entry.batch, "follows": entry.follows, "nonce": entry.nonce, **({"key": entry.key} if entry.key else {})}
        if isinstance(entry, SentBatch)
        else {"do": entry.do, "stream": entry.stream, "bucket": entry.bucket, **({"nonce": entry.nonce} if entry.nonce else {})}
        for entry in entries
    ]
    return cast(bytes, msgpack.packb({"v": version, "agent": agent, "host": host, "now": now, "store": store, "entries": packed}))


class Envelope(NamedTuple):
    """A decoded envelope. `now`: its sender's Unix time when it was sent; `store`: the id of the store that the sender knows."""

    agent: str
    host: str
    now: float
    store: str | None
    entries: list[Entry]


def decode_envelope(content: bytes) -> Envelope:
    """The envelope in `content`. Raises MalformedBatch for what is none, UnknownVersion for one that is not read here."""
    if len(content) > MAX_ENVELOPE_BYTES:
        raise MalformedBatch(f"an envelope of {len(content)} bytes; at most {MAX_ENVELOPE_BYTES}")
    reader = plain_reader(len(content))
    reader.feed(content)
    fields: dict[Any, Any] = {}
    try:
        for _ in range(_some_fields(reader)):
            name = reader.unpack()
            fields[name] = _entries(reader, fields) if name == "entries" else reader.unpack()
    except BAD as error:
        _check_version(fields)  # what is wrong may be what is new
        raise MalformedBatch(f"envelope: {type(error).__name__}: {error}"[:200]) from None
    _check_version(fields)
    if reader.tell() != len(content):
        raise MalformedBatch("more than an envelope")
    agent, host, now, store, entries = (fields.get(name) for name in ("agent", "host", "now", "store", "entries"))
    if not isinstance(agent, str) or not isinstance(host, str) or len(agent) > 255 or len(host) > 255:
        raise MalformedBatch("an envelope names its Agent and host")
    if not isinstance(now, float) or not 0 <= now < 2.0**40:
        raise MalformedBatch("an envelope tells its sender's Unix time")
    if store is not None and (not isinstance(store, str) or len(store) > MAX_STORE_ID):
        raise MalformedBatch("the id of a store is a text, or nil")
    if not isinstance(entries, list):
        raise MalformedBatch("an envelope has entries")
    return Envelope(agent, host, now, store, [_entry(entry) for entry in entries])


def _check_version(fields: dict[Any, Any]) -> None:
    version = fields.get("v")
    if type(version) is not int:
        raise MalformedBatch("no envelope")
    if version not in versions.HERE.envelopes:
        raise UnknownVersion("envelope", version, versions.HERE.envelopes)


def _some_fields(reader: Any) -> int:
    count: int = reader.read_map_header()
    if count > MAX_FIELDS:
        raise ValueError(f"a map of {count} fields")
    return count


def _entries(reader: Any, fields: dict[Any, Any]) -> list[dict[Any, Any]]:
    if "v" in fields:
        _check_version(fields)  # those of another version may be anything
    count = reader.read_array_header()
    if count > MAX_ENVELOPE_BATCHES:
        raise ValueError(f"an envelope takes a list of at most {MAX_ENVELOPE_BATCHES} entries")
    found = []
    for _ in range(count):
        size = _some_fields(reader)
        items = list(islice(reader, 2 * size))
        if len(items) != 2 * size:
            raise ValueError("cut off")
        found.append(dict(zip(items[::2], items[1::2], strict=True)))
    return found


def _entry(fields: dict[Any, Any]) -> Entry:
    if "do" in fields:
        do, stream, bucket, nonce = fields["do"], fields.get("stream"), fields.get("bucket"), fields.get("nonce", b"")
        if do not in DOES:
            raise MalformedBatch(f"a header takes {', '.join(DOES)}, not {do!r}"[:200])
        _check_stream(stream)
        _check_bucket(bucket)
        if not isinstance(nonce, bytes) or len(nonce) not in (0, NONCE_BYTES):
            raise MalformedBatch(f"a nonce takes {NONCE_BYTES} bytes")
        return Header(do, cast(bytes, stream), cast(int, bucket), nonce)
    batch, follows, nonce, key = fields.get("batch"), fields.get("follows"), fields.get("nonce", b""), fields.get("key", b"")
    if not isinstance(batch, bytes) or type(follows) is not int or not 0 <= follows < 2**63:
        raise MalformedBatch("an entry takes a batch and the number that it follows")
    if not isinstance(nonce, bytes) or not isinstance(key, bytes) or len(nonce) != NONCE_BYTES or len(key) not in (0, KEY_BYTES):
        raise MalformedBatch(f"beside a batch stands a nonce of {NONCE_BYTES} bytes, and for posted events a key's part of {KEY_BYTES}")
    return SentBatch(batch, follows, nonce, key)


def _check_stream(stream: Any) -> None:
    if not isinstance(stream, bytes) or len(stream) != STREAM_BYTES:
        raise MalformedBatch(f"a stream id takes {STREAM_BYTES} bytes")


def _check_bucket(bucket: Any) -> None:
    if type(bucket) is not int or not 0 <= bucket < MAX_BUCKETS:
        raise MalformedBatch(f"bucket {bucket!r}"[:200])


def encode_verdicts(verdicts: Sequence[Verdict], store_age: int | None) -> bytes:
    """The body of the answer to an envelope."""
    return cast(bytes, msgpack.packb({"verdicts": verdicts, "store_age": store_age}))


_DETAILS: dict[str, tuple[tuple[type, ...], type]] = {  # what a verdict's detail and why may be
    APPLIED: ((int,), str),
    LATER: ((int, float), str),
    GAP: ((int,), str),
    REFUSED: ((str,), str),
    OPEN: ((bytes,), int),
    MARK: ((int,), str),
    ENDED: ((int,), str),
}


def decode_verdicts(content: bytes, entries: int) -> Answer:
    """The answer to an envelope of so many entries. Raises NoVerdicts for anything else."""
    try:
        fields = unpack_counted(content, 3, 4 * entries + MAX_FIELDS)
    except ValueError as error:
        raise NoVerdicts(f"verdicts: {error}"[:200]) from None
    verdicts, age = (fields.get("verdicts"), fields.get("store_age")) if isinstance(fields, dict) else (None, None)
    if not isinstance(verdicts, list) or len(verdicts) != entries:
        raise NoVerdicts(f"not the verdicts on {entries} entries")
    if age is not None and (type(age) is not int or not 0 <= age <= MAX_STORE_AGE):
        raise NoVerdicts(f"store age {age!r}"[:200])
    for verdict in verdicts:
        if not isinstance(verdict, list) or len(verdict) != 3 or not isinstance(verdict[0], str) or verdict[0] not in _DETAILS:
            raise NoVerdicts(f"verdict {verdict!r}"[:200])
        word, detail, why = verdict
        details, whys = _DETAILS[word]
        if type(detail) not in details or type(why) is not whys or (isinstance(detail, int) and detail < 0):
            raise NoVerdicts(f"verdict {verdict!r}"[:200])
        if (word == GAP and why not in (NUMBER, NONCE, NOT_OPEN)) or (word == OPEN and (len(detail) != NONCE_BYTES or cast(int, why) < 0)):
            raise NoVerdicts(f"verdict {verdict!r}"[:200])
    return Answer([Verdict(*verdict) for verdict in verdicts], age)
