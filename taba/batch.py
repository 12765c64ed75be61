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

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

import msgpack

from taba import names
from taba.bounds import MAX_BATCH_BYTES, MAX_BATCH_COLUMNS, MAX_BUCKETS, MAX_ENVELOPE_BATCHES, MAX_ENVELOPE_BYTES
from taba.errors import MalformedBatch, NoVerdicts, UnknownVersion

BATCH_VERSION = 3
ENVELOPE_VERSION = 2
VERDICTS_HEADER = "Taba-Verdicts"  # its presence says that the answer is a Server's own, not a proxy's
CONTENT_TYPE = "application/msgpack"

STREAM_BYTES = 16
NONCE_BYTES = 8  # a stream id has 128 bits of its own: a nonce tells two openings of one stream apart
KEY_BYTES = 36  # of a KeyPart

MAX_LIST_VALUES = 65_536  # values that are no floats, of all columns of a batch: each becomes an object of Python's
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


RING_ENDED = 2**62  # positions beyond those of any record
RING_GONE = RING_ENDED + 1


class Column(NamedTuple):
    """The Events of one (Client, Tab, Type) in one batch.

    `times` are n little-endian float64 Unix seconds; `values` n little-endian float64, or a list of n msgpack values.
    """

    client: str
    tab: str
    type: str
    times: bytes
    values: bytes | list[Any]
    stands_for: int | None = None

    @property
    def events(self) -> int:
        return len(self.times) // 8

    @property
    def weight(self) -> int:
        """How many recorded Events this accounts for."""
        return len(self.times) // 8 if self.stands_for is None else self.stands_for


class BadColumn(NamedTuple):
    """A column that does not decode: what is wrong with it, what was there, and how many Events its sender says that it holds."""

    error: str
    content: bytes
    events: int


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
    """One decoded batch. `bad_meanings`: how many did not decode."""

    stream: bytes
    bucket: int
    number: int
    columns: list[Column | BadColumn]
    meanings: tuple[Meaning, ...] = ()
    bad_meanings: int = 0

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


def encode_batch(stream: bytes, bucket: int, number: int, columns: Sequence[Column], meanings: Sequence[Meaning] = ()) -> bytes:
    """The bytes of a batch. The caller keeps the bounds."""
    body: list[Any] = []
    for column in columns:
        body += (column.weight, msgpack.packb(column if column.stands_for is not None else column[:5]))
    return cast(bytes, msgpack.packb([BATCH_VERSION, stream, bucket, number, body, encode_meanings(meanings)]))


def encode_meanings(meanings: Sequence[Meaning]) -> bytes:
    """What stands for them in a batch, before it is a bin."""
    return cast(bytes, msgpack.packb(meanings)) if meanings else b""


def decode_batch(content: bytes) -> Batch:
    """The batch in `content`. Raises MalformedBatch where its identity cannot be trusted, UnknownVersion where it is not read here."""
    if len(content) > MAX_BATCH_BYTES:
        raise MalformedBatch(f"a batch of {len(content)} bytes; at most {MAX_BATCH_BYTES}")
    fields = _unpack(content, "batch")
    if not isinstance(fields, list) or not fields or type(fields[0]) is not int:
        raise MalformedBatch("no batch")
    if fields[0] != BATCH_VERSION:
        raise UnknownVersion("batch", fields[0], BATCH_VERSION)
    if len(fields) != 6:
        raise MalformedBatch(f"a batch of {len(fields)} fields")
    _, stream, bucket, number, body, packed_meanings = fields
    _check_stream(stream)
    _check_bucket(bucket)
    if type(number) is not int or not 1 <= number < 2**63:
        raise MalformedBatch(f"batch number {number!r}")
    if not isinstance(body, list) or len(body) % 2 or len(body) > 2 * MAX_BATCH_COLUMNS:
        raise MalformedBatch(f"a batch takes at most {MAX_BATCH_COLUMNS} columns, each after its number of events")
    if not isinstance(packed_meanings, bytes):
        raise MalformedBatch("a batch's meanings are a bin")
    columns: list[Column | BadColumn] = []
    room = MAX_LIST_VALUES
    for events, packed in zip(body[::2], body[1::2], strict=True):
        if not isinstance(packed, bytes) or type(events) is not int or not 0 <= events <= MAX_BATCH_BYTES:
            raise MalformedBatch("a batch's columns are bins, each after its number of events")
        column = _column(packed, events, room)
        if isinstance(column, Column) and isinstance(column.values, list):
            room -= column.events
        columns.append(column)
    return Batch(stream, bucket, number, columns, *_meanings(packed_meanings))


def _meanings(packed: bytes) -> tuple[tuple[Meaning, ...], int]:
    """Those that decode, and how many do not; where the whole does not, it counts as one."""
    if not packed:
        return (), 0
    try:
        listed = _unpack(packed, "meanings", MAX_BATCH_MEANINGS)
    except MalformedBatch:
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
_check_client = lru_cache(MAX_CACHED_IDS)(names.check_client)
_check_type = lru_cache(MAX_CACHED_IDS)(names.check_type)
_check_name = lru_cache(MAX_CACHED_NAMES)(names.check_tab)


def _column(packed: bytes, events: int, room: int) -> Column | BadColumn:
    try:
        fields = _unpack(packed, "column", MAX_LIST_VALUES)
        if not isinstance(fields, list) or len(fields) not in (5, 6):
            raise ValueError("a column takes client, tab, type, times and values")
        client, tab, type, times, values, *stands_for = fields
        if not isinstance(client, str) or not isinstance(tab, str) or not isinstance(type, str):
            raise ValueError("client, tab and type take text")
        _check_client(client)
        _check_type(type)
        if len(tab) <= MAX_CACHED_NAME:
            _check_name(tab)
        else:
            names.check_tab(tab)
        if stands_for and stands_for != [events]:
            raise ValueError("a column stands for as many events as its number of events says")
        if not isinstance(times, bytes) or not times or len(times) % 8 or (len(times) != 8 * events and not stands_for):
            raise ValueError("times take float64 bytes, as many as the column's number of events says")
        if isinstance(values, bytes):
            if len(values) != len(times):
                raise ValueError("as many values as times")
        elif not isinstance(values, list) or len(values) * 8 != len(times):
            raise ValueError("values take float64 bytes or a list, as many as times")
        elif len(values) > room:
            raise ValueError(f"a batch takes at most {MAX_LIST_VALUES} values in lists")
    except (ValueError, MalformedBatch) as error:
        return BadColumn(str(error), packed, events)
    return Column(client, tab, type, times, values, *stands_for)


def encode_envelope(agent: str, host: str, now: float, store: str | None, entries: Sequence[Entry]) -> bytes:
    """The bytes of an envelope. The caller keeps the bounds."""
    packed = [
        {"batch": entry.batch, "follows": entry.follows, "nonce": entry.nonce, **({"key": entry.key} if entry.key else {})}
        if isinstance(entry, Sent)
        else {"do": entry.do, "stream": entry.stream, "bucket": entry.bucket, **({"nonce": entry.nonce} if entry.nonce else {})}
        for entry in entries
    ]
    return cast(bytes, msgpack.packb({"v": ENVELOPE_VERSION, "agent": agent, "host": host, "now": now, "store": store, "entries": packed}))


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
    fields = _unpack(content, "envelope")
    if not isinstance(fields, dict) or type(fields.get("v")) is not int:
        raise MalformedBatch("no envelope")
    if fields["v"] != ENVELOPE_VERSION:
        raise UnknownVersion("envelope", fields["v"], ENVELOPE_VERSION)
    agent, host, now, store, entries = (fields.get(name) for name in ("agent", "host", "now", "store", "entries"))
    if not isinstance(agent, str) or not isinstance(host, str) or len(agent) > 255 or len(host) > 255:
        raise MalformedBatch("an envelope names its Agent and host")
    if not isinstance(now, float) or not 0 <= now < 2.0**40:
        raise MalformedBatch("an envelope tells its sender's Unix time")
    if store is not None and (not isinstance(store, str) or len(store) > MAX_STORE_ID):
        raise MalformedBatch("the id of a store is a text, or nil")
    if not isinstance(entries, list) or len(entries) > MAX_ENVELOPE_BATCHES:
        raise MalformedBatch(f"an envelope takes a list of at most {MAX_ENVELOPE_BATCHES} entries")
    return Envelope(agent, host, now, store, [_entry(entry) for entry in entries])


def _entry(fields: Any) -> Entry:
    if not isinstance(fields, dict):
        raise MalformedBatch("an entry of an envelope is a map")
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
        fields = _unpack(content, "verdicts")
    except MalformedBatch as error:
        raise NoVerdicts(str(error)) from None
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


def _unpack(content: bytes, what: str, most: int | None = None) -> Any:
    # no single item can be longer than the whole, so msgpack's own limits (100 MiB and more) never matter
    size = len(content)
    items = size if most is None else most
    try:
        return msgpack.unpackb(
            content, strict_map_key=False, max_bin_len=size, max_str_len=size, max_array_len=items, max_map_len=items, max_ext_len=0
        )
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:  # TypeError: a list as a key
        raise MalformedBatch(f"{what}: {type(error).__name__}: {error}"[:200]) from None
