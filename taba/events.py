"""The JSON of `POST /v1/events`, on Server and Agent alike: text in, the columns of each bucket's batches out.

`{"client": …, "events": [{"tab", "type", "value", "time"?, "labels"?}, …]}`. Each event is accepted or rejected by itself.

What is posted again under its Idempotency-Key, to whichever Server or Agent, must be cut into the same batches: their numbers are what
tells that it was applied. So there is one rule for that, here; a change to it would double what is repeated across an upgrade.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack

from taba import names
from taba.batch import Column, KeyPart
from taba.bounds import MAX_BATCH_COLUMNS, MAX_EXACT_INT, MAX_TIME, MAX_VALUE_BYTES, MAX_VALUE_DEPTH, KiB
from taba.nesting import is_deeper

MAX_POSTED_EVENTS = 10_000  # in one request; who has more has a ring
MAX_KEY_CHARACTERS = 255  # of an Idempotency-Key
LOT_BYTES = 512 * KiB  # a lot ends before it is larger; with the largest value and the longest name it is well within a batch
COLUMN_BYTES = 64  # of a column without its names, values and times


class Rejection(NamedTuple):
    """An event that was not taken: its place in the request, from 0, and the reason."""

    place: int
    reason: str


class Posted(NamedTuple):
    """What a request holds: its Client; for each bucket the columns of its batches 1, 2, …; how many events were accepted; the rejections
    in order."""

    client: str
    lots: dict[int, list[list[Column]]]
    accepted: int
    rejected: list[Rejection]


def read_events(content: Any, now: float, buckets: int) -> Posted:
    """The events of a decoded request; those without a time happened `now`. Raises ValueError for a request that is none."""
    if not isinstance(content, dict) or set(content) != {"client", "events"}:
        raise ValueError('takes {"client": …, "events": […]}')
    client = names.check_client(content["client"])
    events = content["events"]
    if not isinstance(events, list) or len(events) > MAX_POSTED_EVENTS:
        raise ValueError(f"events: takes a list of at most {MAX_POSTED_EVENTS}")
    lots: dict[int, list[_Lot]] = {}
    rejected: list[Rejection] = []
    for index, event in enumerate(events):
        try:
            tab, type, time, value, size = _read_event(event, now)
        except ValueError as error:
            rejected.append(Rejection(index, str(error)))
        else:
            of_bucket = lots.setdefault(names.bucket_of(tab, buckets), [_Lot()])
            if not of_bucket[-1].add(client, tab, type, time, value, size):
                of_bucket.append(_Lot())
                of_bucket[-1].add(client, tab, type, time, value, size)
    columns = {bucket: [lot.columns(client) for lot in of_bucket] for bucket, of_bucket in lots.items()}
    return Posted(client, columns, len(events) - len(rejected), rejected)


class _Lot:
    """The events of one batch, as they come."""

    def __init__(self) -> None:
        self.series: dict[tuple[str, str], tuple[list[float], list[Any]]] = {}
        self.bytes = 0

    def add(self, client: str, tab: str, type: str, time: float, value: Any, size: int) -> bool:
        """Take one more event, whose value takes `size` bytes; False where the lot has no room. An empty one takes any."""
        size = 8 + max(size, 9)
        if (tab, type) not in self.series:
            size += COLUMN_BYTES + len(client) + len(tab.encode()) + len(type)
        if self.series and (self.bytes + size > LOT_BYTES or len(self.series) == MAX_BATCH_COLUMNS):
            return False
        self.bytes += size
        times, values = self.series.setdefault((tab, type), ([], []))
        times.append(time)
        values.append(value)
        return True

    def columns(self, client: str) -> list[Column]:
        return [
            Column(client, tab, type, struct.pack(f"<{len(times)}d", *times), pack_values(values))
            for (tab, type), (times, values) in self.series.items()
        ]


def pack_values(values: Sequence[Any]) -> bytes | list[Any]:
    """A column's values: float64 bytes where every one is a number that a float holds exactly, else a list of them all."""
    if all(type(value) is float or (type(value) is int and abs(value) <= MAX_EXACT_INT) for value in values):
        return struct.pack(f"<{len(values)}d", *values)
    return list(values)


def key_part(client: str, key: str, request: Any) -> KeyPart:
    """What an Idempotency-Key of a Client is known by, and the digest of its request, decoded. ValueError for what is no key."""
    if not 1 <= len(key) <= MAX_KEY_CHARACTERS:
        raise ValueError(f"Idempotency-Key: takes 1 to {MAX_KEY_CHARACTERS} characters")
    text = json.dumps(request, sort_keys=True, separators=(",", ":"))  # the same events, however they are spaced
    return KeyPart(_digest(f"{client}\0{key}"), _digest(text), 0)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _read_event(event: Any, now: float) -> tuple[str, str, float, Any, int]:
    if not isinstance(event, dict) or not {"tab", "type", "value"} <= set(event) <= {"tab", "type", "value", "time", "labels"}:
        raise ValueError('an event takes {"tab", "type", "value", "time"?, "labels"?}')
    tab, labels, time, value = event["tab"], event.get("labels"), event.get("time"), event["value"]
    if not isinstance(tab, str):
        raise ValueError("tab: takes a text")
    if labels:
        if not isinstance(labels, dict):
            raise ValueError("labels: takes an object")
        tab = names.canonical_name(tab, labels)
    else:
        names.parse_name(tab)
    if time is None:
        time = now
    elif isinstance(time, bool) or not isinstance(time, (int, float)) or not 0 <= time <= MAX_TIME:  # so no NaN
        raise ValueError(f"time: takes Unix seconds from 0 to {MAX_TIME:.0f}")
    try:
        size = len(msgpack.packb(value))
    except (ValueError, OverflowError, TypeError, RecursionError) as error:
        raise ValueError(f"value: {error}"[:200]) from None
    if is_deeper(value):
        raise ValueError(f"value: takes lists and objects nested at most {MAX_VALUE_DEPTH} deep")
    if size > MAX_VALUE_BYTES:
        raise ValueError(f"value: takes at most {MAX_VALUE_BYTES} bytes of msgpack")
    return tab, names.check_type(event["type"]), float(time), value, size
