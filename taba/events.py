"""The JSON of `POST /v1/events`, on Server and Agent alike: text in, columns per bucket out.

`{"client": …, "events": [{"tab", "type", "value", "time"?, "labels"?}, …]}`. Each event is accepted or rejected by itself.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack

from taba import names
from taba.batch import Column
from taba.bounds import MAX_EXACT_INT, MAX_TIME, MAX_VALUE_BYTES

MAX_POSTED_EVENTS = 10_000  # in one request; who has more has a ring
MAX_KEY_CHARACTERS = 255  # of an Idempotency-Key


class Rejection(NamedTuple):
    """An event that was not taken: its place in the request, from 0, and the reason."""

    place: int
    reason: str


class Posted(NamedTuple):
    """What a request holds: `columns` per bucket, how many events were accepted, and the rejections in order."""

    columns: dict[int, list[Column]]
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
    series: dict[tuple[str, str], tuple[list[float], list[Any]]] = {}
    rejected: list[Rejection] = []
    for index, event in enumerate(events):
        try:
            tab, type, time, value = _read_event(event, now)
        except ValueError as error:
            rejected.append(Rejection(index, str(error)))
        else:
            times, values = series.setdefault((tab, type), ([], []))
            times.append(time)
            values.append(value)
    columns: dict[int, list[Column]] = {}
    for (tab, type), (times, values) in series.items():
        column = Column(client, tab, type, struct.pack(f"<{len(times)}d", *times), pack_values(values))
        columns.setdefault(names.bucket_of(tab, buckets), []).append(column)
    return Posted(columns, len(events) - len(rejected), rejected)


def pack_values(values: Sequence[Any]) -> bytes | list[Any]:
    """A column's values: float64 bytes where every one is a number that a float holds exactly, else a list of them all."""
    if all(type(value) is float or (type(value) is int and abs(value) <= MAX_EXACT_INT) for value in values):
        return struct.pack(f"<{len(values)}d", *values)
    return list(values)


def stream_of(key: str) -> bytes:
    """The stream id of an Idempotency-Key: its BLAKE2b-128. Raises ValueError for a key that is none."""
    if not 1 <= len(key) <= MAX_KEY_CHARACTERS:
        raise ValueError(f"Idempotency-Key: takes 1 to {MAX_KEY_CHARACTERS} characters")
    return hashlib.blake2b(key.encode(), digest_size=16).digest()


def _read_event(event: Any, now: float) -> tuple[str, str, float, Any]:
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
    if size > MAX_VALUE_BYTES:
        raise ValueError(f"value: takes at most {MAX_VALUE_BYTES} bytes of msgpack")
    return tab, names.check_type(event["type"]), float(time), value
