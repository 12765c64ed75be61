"""Batches and envelopes: bytes in, values out. Written by Agents (and for `POST /v1/events`), read by Servers.

1. A batch is encoded once; (stream, bucket, number) is its identity, and its bytes never change.
2. `follows`, the number before it, travels beside a batch in the envelope, because a replay may change it.
3. What is wrong with a whole batch is MalformedBatch; what is wrong with a column is that column's own `error`.

A batch is msgpack `[1, stream, bucket, number, created, [column, …]]`; without the last item it is a probe, which asks
for its verdict only. A column is `[client, tab, type, times, values]`: times are little-endian float64 bytes, values
likewise or, where one is not a float, a list. An envelope is `{"v": 1, "agent": …, "host": …, "batches": [[follows, batch], …]}`,
its answer `{"verdicts": [[word, detail], …]}` in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

import msgpack

from taba import names
from taba.bounds import MAX_BATCH_BYTES, MAX_BATCH_COLUMNS, MAX_BUCKETS, MAX_ENVELOPE_BATCHES, MAX_ENVELOPE_BYTES
from taba.errors import MalformedBatch

BATCH_VERSION = 1
ENVELOPE_VERSION = 1
VERDICTS_HEADER = "Taba-Verdicts"  # its presence says that the answer is a Server's own, not a proxy's
CONTENT_TYPE = "application/msgpack"

MAX_CACHED_IDS = 10_000  # client ids and Types whose form is known to be right
MAX_CACHED_NAMES = 131_072  # names of Tabs likewise: all of a large site's …
MAX_CACHED_NAME = 256  # … of at most so many characters, which bounds the cache to some 50 MiB

APPLIED = "applied"  # detail: the mark
LATER = "later"  # detail: seconds
GAP = "gap"  # detail: the mark
REFUSED = "refused"  # detail: the reason


class Column(NamedTuple):
    """The Events of one (Client, Tab, Type) in one batch.

    `times` are n little-endian float64 Unix seconds; `values` n little-endian float64, or a list of n msgpack values.
    """

    client: str
    tab: str
    type: str
    times: bytes
    values: bytes | list[Any]

    @property
    def events(self) -> int:
        return len(self.times) // 8


class BadColumn(NamedTuple):
    """A column that does not decode: what is wrong with it, and what was there."""

    error: str
    content: Any


class BatchId(NamedTuple):
    """What a batch is known by, from the drain to the mark: numbers count from 1 in each bucket of a stream."""

    stream: bytes
    bucket: int
    number: int


class Batch(NamedTuple):
    """One decoded batch. `columns` is None in a probe. `created` is the Agent's Unix time when it was encoded."""

    stream: bytes
    bucket: int
    number: int
    created: float
    columns: list[Column | BadColumn] | None

    @property
    def id(self) -> BatchId:
        return BatchId(self.stream, self.bucket, self.number)


class Verdict(NamedTuple):
    """What became of one batch: `applied` (mark), `later` (seconds), `gap` (mark) or `refused` (reason)."""

    word: str
    detail: int | float | str


def encode_batch(stream: bytes, bucket: int, number: int, created: float, columns: Sequence[Column] | None) -> bytes:
    """The bytes of a batch, or with None for columns of a probe. The caller keeps the bounds."""
    header: list[Any] = [BATCH_VERSION, stream, bucket, number, created]
    return cast(bytes, msgpack.packb(header if columns is None else [*header, columns]))


def decode_batch(content: bytes) -> Batch:
    """The batch in `content`. Raises MalformedBatch where its identity cannot be trusted."""
    if len(content) > MAX_BATCH_BYTES:
        raise MalformedBatch(f"a batch of {len(content)} bytes; at most {MAX_BATCH_BYTES}")
    fields = _unpack(content, "batch")
    if not isinstance(fields, list) or not fields or fields[0] != BATCH_VERSION or len(fields) not in (5, 6):
        raise MalformedBatch("no batch of a known version")
    _, stream, bucket, number, created, *rest = fields
    if not isinstance(stream, bytes) or len(stream) != 16:
        raise MalformedBatch("a stream id takes 16 bytes")
    if type(bucket) is not int or not 0 <= bucket < MAX_BUCKETS:
        raise MalformedBatch(f"bucket {bucket!r}")
    if type(number) is not int or not 1 <= number < 2**63:
        raise MalformedBatch(f"batch number {number!r}")
    if type(created) is not float or not 0 <= created < 2**40:
        raise MalformedBatch(f"batch created at {created!r}")
    if not rest:
        return Batch(stream, bucket, number, created, None)
    if not isinstance(rest[0], list) or len(rest[0]) > MAX_BATCH_COLUMNS:
        raise MalformedBatch(f"a batch takes a list of at most {MAX_BATCH_COLUMNS} columns")
    return Batch(stream, bucket, number, created, [_column(fields) for fields in rest[0]])


# the same names come in every batch; a Server reads 100,000 columns a second
_check_client = lru_cache(MAX_CACHED_IDS)(names.check_client)
_check_type = lru_cache(MAX_CACHED_IDS)(names.check_type)
_check_name = lru_cache(MAX_CACHED_NAMES)(names.parse_name)


def _column(fields: Any) -> Column | BadColumn:
    if not isinstance(fields, list) or len(fields) != 5:
        return BadColumn("a column takes client, tab, type, times and values", fields)
    client, tab, type, times, values = fields
    try:
        if not isinstance(client, str) or not isinstance(tab, str) or not isinstance(type, str):
            raise ValueError("client, tab and type take text")
        _check_client(client)
        _check_type(type)
        if len(tab) <= MAX_CACHED_NAME:
            _check_name(tab)
        else:
            names.parse_name(tab)
    except ValueError as error:
        return BadColumn(str(error), fields)
    if not isinstance(times, bytes) or len(times) % 8 or not times:
        return BadColumn("times take float64 bytes", fields)
    if isinstance(values, bytes):
        if len(values) != len(times):
            return BadColumn("as many values as times", fields)
    elif not isinstance(values, list) or len(values) * 8 != len(times):
        return BadColumn("values take float64 bytes or a list, as many as times", fields)
    return Column(client, tab, type, times, values)


def encode_envelope(agent: str, host: str, batches: Sequence[tuple[int, bytes]]) -> bytes:
    """The bytes of an envelope with (follows, batch) pairs. The caller keeps the bounds."""
    return cast(bytes, msgpack.packb({"v": ENVELOPE_VERSION, "agent": agent, "host": host, "batches": batches}))


class Envelope(NamedTuple):
    """A decoded envelope; its batches are (follows, bytes) pairs."""

    agent: str
    host: str
    batches: list[tuple[int, bytes]]


def decode_envelope(content: bytes) -> Envelope:
    """The envelope in `content`. Raises MalformedBatch for what is none."""
    if len(content) > MAX_ENVELOPE_BYTES:
        raise MalformedBatch(f"an envelope of {len(content)} bytes; at most {MAX_ENVELOPE_BYTES}")
    fields = _unpack(content, "envelope")
    if not isinstance(fields, dict) or fields.get("v") != ENVELOPE_VERSION:
        raise MalformedBatch("no envelope of a known version")
    agent, host, batches = fields.get("agent"), fields.get("host"), fields.get("batches")
    if not isinstance(agent, str) or not isinstance(host, str) or len(host) > 255:
        raise MalformedBatch("an envelope names its Agent and host")
    if not isinstance(batches, list) or len(batches) > MAX_ENVELOPE_BATCHES:
        raise MalformedBatch(f"an envelope takes a list of at most {MAX_ENVELOPE_BATCHES} batches")
    pairs = []
    for pair in batches:
        if not isinstance(pair, list) or len(pair) != 2 or type(pair[0]) is not int or not isinstance(pair[1], bytes):
            raise MalformedBatch("an envelope's batches are [follows, bytes] pairs")
        pairs.append((pair[0], pair[1]))
    return Envelope(agent, host, pairs)


def encode_verdicts(verdicts: Sequence[Verdict]) -> bytes:
    """The body of the answer to an envelope."""
    return cast(bytes, msgpack.packb({"verdicts": verdicts}))


def decode_verdicts(content: bytes, batches: int) -> list[Verdict]:
    """The verdicts on an envelope of `batches` batches. Raises MalformedBatch for anything else."""
    fields = _unpack(content, "verdicts")
    verdicts = fields.get("verdicts") if isinstance(fields, dict) else None
    if not isinstance(verdicts, list) or len(verdicts) != batches:
        raise MalformedBatch(f"not the verdicts on {batches} batches")
    known: dict[str, tuple[type, ...]] = {APPLIED: (int,), LATER: (int, float), GAP: (int,), REFUSED: (str,)}
    for verdict in verdicts:
        if (
            not isinstance(verdict, list)
            or len(verdict) != 2
            or not isinstance(verdict[0], str)
            or verdict[0] not in known
            or not isinstance(verdict[1], known[verdict[0]])
        ):
            raise MalformedBatch(f"verdict {verdict!r}")
    return [Verdict(*verdict) for verdict in verdicts]


def _unpack(content: bytes, what: str) -> Any:
    # no single item can be longer than the whole, so msgpack's own limits (100 MiB and more) never matter
    size = len(content)
    try:
        return msgpack.unpackb(
            content, strict_map_key=False, max_bin_len=size, max_str_len=size, max_array_len=size, max_map_len=size, max_ext_len=0
        )
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:  # TypeError: a list as a key
        raise MalformedBatch(f"{what}: {type(error).__name__}: {error}"[:200]) from None
