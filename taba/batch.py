"""Batches and envelopes: bytes in, values out. Written by Agents (and for `POST /v1/events`), read by Servers.

1. A batch is encoded once; (stream, bucket, number) is its identity, and its bytes never change.
2. What may change when it is sent again travels beside it in the envelope: `follows`, the number before it, and the `nonce` under which
   its stream is open; beside posted events with a key also which part of which post they are.
3. What is wrong with a whole batch is MalformedBatch; what is wrong with a column is that column's own `error`. What is of a version
   that is not read here is UnknownVersion: nothing is wrong with it, and it is never refused.

A batch is msgpack `[3, stream, bucket, number, [events, column, events, column, …], meanings]`. A column is a bin with its number of
events before it, so that its extent is known when it does not decode; in it is msgpack `[client, tab, type, times, values]`: times are
little-endian float64 bytes, values likewise or, where one is not a float, a list. Where the events that it stands for are not its rows,
their number is a sixth field: 0 for what Agents record themselves. A Type that is `absolute` gets rows `[ring id, position, sum]`: what
one process has added up to a position of its ring, so that neither loss nor repetition nor order does harm; at RING_ENDED the process is
dead, at RING_GONE nothing of that ring is still to come. `meanings` is a bin, empty or with msgpack `[[tab, unit, description], …]`: what
applications say that Tabs mean, each said once a stream, and again where it changes. One that does not decode is counted, and harms no
Event.

An envelope is `{"v": 2, "agent", "host", "now": the sender's Unix time, "store": the id of the store that the sender knows or nil,
"entries": [entry, …]}`. An entry is a batch `{"batch", "follows", "nonce", "key"?}`, or a header without
body `{"do": "open" | "mark" | "end", "stream", "bucket", "nonce"?}`. The answer is `{"verdicts": [[word, detail, why], …],
"store_age": minutes or nil}`, one verdict an entry, in order.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple, cast

import msgpack

from taba import names, versions
from taba.bounds import (
    MAX_BATCH_BYTES,
    MAX_BATCH_COLUMNS,
    MAX_BUCKETS,
    MAX_ENVELOPE_BATCHES,
    MAX_ENVELOPE_BYTES,
    MAX_VALUE_BYTES,
    KiB,
)
from taba.counting import BAD, OBJECT_BYTES, measure_values, plain_reader, unpack_counted, unpack_list
from taba.errors import MalformedBatch, NoVerdicts, UnknownVersion
from taba.steps import finish

BATCH_VERSION = 3  # of what is described above; which of them are read and written: taba.versions
ENVELOPE_VERSION = 2
VERDICTS_HEADER = "Taba-Verdicts"  # its presence says that the answer is a Server's own, not a proxy's
CONTENT_TYPE = "application/msgpack"

STREAM_BYTES = 16
NONCE_BYTES = 8  # a stream id has 128 bits of its own: a nonce tells two openings of one stream apart
KEY_BYTES = 36  # of a KeyPart

MAX_LIST_VALUES = 16_384  # values that are no floats, of all columns of a batch: each becomes an object of Python's
MAX_LIST_BYTES = 64 * KiB  # that these take, lists in them and all: made, each byte may be an object of 64, and a fold walks them
READ_BYTES = 64 * KiB  # of columns, read between two looks at the time: of the longest names some 5 ms
COLUMN_OBJECT_BYTES = 512  # of a decoded column, beside its times and values
MAX_FIELDS = 16  # of an envelope or an entry, known here or not
MAX_BATCH_MEANINGS = 1000  # as many as Tabs of a batch
MAX_CACHED_IDS = 10_000  # client ids and Types whose form is known to be right
MAX_CACHED_NAMES = 131_072  # names of Tabs likewise: all of a large site's …
MAX_CACHED_NAME = 256  # … of at most so many characters, which bounds the cache to some 50 MiB
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


class Column(NamedTuple):
    """The Events of one (Client, Tab, Type) in one batch.

    `times` are n little-endian float64 Unix seconds; `values` n little-endian float64, or a list of n msgpack values, or these Packed.
    """

    client: str
    tab: str
    type: str
    times: bytes
    values: bytes | list[Any] | Packed
    stands_for: int | None = None

    def made(self) -> bytes | list[Any]:
        """Its values, all made."""
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


class BadColumn(NamedTuple):
    """A column that does not decode, or that its sender may not send: what is wrong with it, what was there, how many Events its sender
    says that it holds, and the reason under which they are dead letters; and its Client, where it decodes."""

    error: str
    content: bytes
    events: int
    reason: str = BAD_COLUMN
    client: str = ""


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
    columns: list[Column | BadColumn]
    meanings: tuple[Meaning, ...] = ()
    bad_meanings: int = 0
    made_bytes: int = 0

    @property
    def id(self) -> BatchId:
        return BatchId(self.stream, self.bucket, self.number)


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


class Sent(NamedTuple):
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


Entry = Sent | Header


class Verdict(NamedTuple):
    """What became of one entry; the words above say what `detail` and `why` are."""

    word: str
    detail: int | float | str | bytes
    why: str | int = ""


class Answer(NamedTuple):
    """The verdicts on an envelope's entries, in order, and the store's age in minutes, None where it is not known."""

    verdicts: list[Verdict]
    store_age: int | None


def encode_batch(
    stream: bytes,
    bucket: int,
    number: int,
    columns: Sequence[Column],
    meanings: Sequence[Meaning] = (),
    version: int = BATCH_VERSION,
) -> bytes:
    """The bytes of a batch. The caller keeps the bounds."""
    body: list[Any] = []
    for column in columns:
        body += (column.weight, encode_column(column))
    return cast(bytes, msgpack.packb([version, stream, bucket, number, body, encode_meanings(meanings)]))


def encode_column(column: Column) -> bytes:
    """What stands for it in a batch, before it is a bin."""
    fields = column if column.stands_for is not None else column[:5]
    if not isinstance(column.values, Packed):
        return cast(bytes, msgpack.packb(fields))
    packer = msgpack.Packer()
    head = (packer.pack_array_header(len(fields)), *map(packer.pack, fields[:4]), packer.pack_array_header(column.values.count))
    return b"".join((*head, column.values.content, *map(packer.pack, fields[5:])))


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
            raise MalformedBatch(f"a batch takes at most {MAX_BATCH_COLUMNS} columns, each after its number of events")
        body = list(islice(reader, items))
        packed_meanings = reader.unpack()
    except BAD as error:
        raise MalformedBatch(f"batch: {type(error).__name__}: {error}"[:200]) from None
    if len(body) != items or reader.tell() != len(content):
        raise MalformedBatch("a batch that is cut off, or more than one")
    if not isinstance(packed_meanings, bytes):
        raise MalformedBatch("a batch's meanings are a bin")
    columns = _Columns(len(content))
    unread = 0
    for events, packed in zip(body[::2], body[1::2], strict=True):
        if unread >= READ_BYTES:
            unread = 0
            yield columns.made_bytes
        if not isinstance(packed, bytes) or type(events) is not int or not 0 <= events <= MAX_BATCH_BYTES:
            raise MalformedBatch("a batch's columns are bins, each after its number of events")
        columns.read(packed, events)
        unread += len(packed)
    return Batch(stream, bucket, number, columns.found, *_meanings(packed_meanings), columns.made_bytes)


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
_check_client = lru_cache(MAX_CACHED_IDS)(names.check_sender)
_check_type = lru_cache(MAX_CACHED_IDS)(names.check_type)
_check_name = lru_cache(MAX_CACHED_NAMES)(names.check_tab)


_PLAIN_TYPES = {type(None), bool, int, float, str, bytes}
_BINS = (b"\xc4", b"\xc5", b"\xc6")  # first bytes of bins


class _Columns:
    """The columns of one batch as they are read; what they hold together stays within the bounds of a batch."""

    def __init__(self, size: int):
        self._size = size
        self._reader = plain_reader(size)
        self._room, self._room_bytes = MAX_LIST_VALUES, MAX_LIST_BYTES
        self.found: list[Column | BadColumn] = []
        self.made_bytes = 0

    def read(self, packed: bytes, events: int) -> None:
        """Take one more. What is wrong with it is its own matter."""
        self.made_bytes += COLUMN_OBJECT_BYTES + len(packed)
        try:
            self.found.append(self._column(packed, events))
        except BAD as error:
            self._reader = plain_reader(self._size)  # what is left in the other would be taken for the next
            what = str(error) if isinstance(error, ValueError) else f"column: {type(error).__name__}: {error}"
            self.found.append(BadColumn(what[:200], packed, events))

    def _column(self, packed: bytes, events: int) -> Column:
        reader = self._reader
        begin = reader.tell()
        reader.feed(packed)
        fields = reader.read_array_header()
        if fields not in (5, 6):
            raise ValueError("takes client, tab, type, times and values")
        client, tab, type, times = islice(reader, 4)
        if not isinstance(client, str) or not isinstance(tab, str) or not isinstance(type, str):
            raise ValueError("client, tab and type take text")
        _check_client(client)
        _check_type(type)
        if len(tab) <= MAX_CACHED_NAME:
            _check_name(tab)
        else:
            names.check_tab(tab)
        if not isinstance(times, bytes) or not times or len(times) % 8:
            raise ValueError("times take float64 bytes, as many as the column's number of events says")
        place = reader.tell() - begin
        values: Any
        if packed[place : place + 1] in _BINS:
            values = reader.unpack()
            if len(values) != len(times):
                raise ValueError("as many values as times")
        else:
            values, place = self._listed(packed, place, len(times) // 8)
            if place:  # they hold others: read without the reader, which begins anew behind them
                reader = self._reader = plain_reader(self._size)
                reader.feed(packed[place:])
                begin = -place
        stands_for = list(islice(reader, fields - 5))
        if len(stands_for) != fields - 5 or reader.tell() - begin != len(packed):
            raise ValueError("cut off, or more than one column")
        if stands_for != [events] if stands_for else len(times) != 8 * events:
            raise ValueError("times and stands_for take as many events as the column's number of events says")
        return Column(client, tab, type, times, values, *stands_for)

    def _listed(self, packed: bytes, place: int, count: int) -> tuple[list[Any] | Packed, int]:
        """The values of a list at `place`, within what the batch may hold; and where they end, 0 where the reader is there."""
        reader = self._reader
        if reader.read_array_header() != count:
            raise ValueError("values take float64 bytes or a list, as many as times")
        if count > self._room:
            raise ValueError(f"a batch takes at most {MAX_LIST_VALUES} values in lists")
        if len(packed) - place > self._room_bytes:
            raise ValueError(f"a batch takes at most {MAX_LIST_BYTES} bytes of values in lists")
        # also where it fails below: what it costs to find that out is the same
        self._room -= count
        self._room_bytes -= len(packed) - place
        header = {0xDC: 3, 0xDD: 5}.get(packed[place], 1)  # as it was written, which need not be the shortest
        end, objects = 0, count
        values: list[Any] | Packed
        try:
            values = list(islice(reader, count))
        except BAD:
            values = []
        if len(values) != count or not _PLAIN_TYPES.issuperset(map(type, values)):
            end, objects = measure_values(packed, place + header, count)
            values = Packed(packed[place + header : end], count)
            values.values()  # whatever else is wrong with one is wrong now
        elif len(packed) > MAX_VALUE_BYTES and any(isinstance(value, (str, bytes)) and len(value) > MAX_VALUE_BYTES for value in values):
            raise ValueError(f"a value takes at most {MAX_VALUE_BYTES} bytes")
        self.made_bytes += OBJECT_BYTES * objects
        return values, end


def encode_envelope(
    agent: str, host: str, now: float, store: str | None, entries: Sequence[Entry], version: int = ENVELOPE_VERSION
) -> bytes:
    """The bytes of an envelope. The caller keeps the bounds."""
    packed = [
        {"batch": entry.batch, "follows": entry.follows, "nonce": entry.nonce, **({"key": entry.key} if entry.key else {})}
        if isinstance(entry, Sent)
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
    return Sent(batch, follows, nonce, key)


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
