"""Dead letters: Events that were delivered but cannot be folded, as they are kept in their bucket.

One dead letter holds Events of one column that failed for one reason, so that a bucket's list is bounded in entries and bytes. A State that
was folded at the edge is one, whatever it stands for: its time is that of its first Event, its content what came.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgpack

from taba.batch import AtEdge, Column
from taba.bounds import MAX_VALUE_BYTES, MAX_VALUE_DEPTH, KiB
from taba.counting import BAD, is_nested_within
from taba.nesting import is_deeper
from taba.plural import many
from taba.server import keys
from taba.server.router import Command

MAX_DEAD_LETTERS = 1000  # entries of one bucket; older ones are dropped and counted
MAX_DEAD_LETTER_BYTES = 4 * KiB  # of Events in one entry, unless one alone is larger
MAX_DEAD_LETTER_VALUE = 2 * MAX_VALUE_BYTES  # a larger value is cut off: no client may send one

TOMBSTONE = b"\xc0"  # stands for a letter that goes; no letter is nil

_VERSION = 1
UNREADABLE = "unreadable"
_LEFT_OUT = "(what was there is too large or too deep to be kept)"
_TOO_DEEP = "(nested too deeply to be shown)"
_ID = re.compile(r"([0-9]{1,9})-([0-9a-f]{16})")
_EVENTS = MAX_DEAD_LETTER_BYTES // 16  # float64 times and values


class DeadLetter(NamedTuple):
    """Events of one column that were not folded, and why. `content` is what was there where it is no column (msgpack); beside `times`, the
    State to which they were folded at the edge."""

    time: float  # when it was refused
    reason: str
    detail: str
    client: str
    tab: str
    type: str
    events: int
    times: bytes
    values: bytes | list[Any]
    content: bytes = b""


def dead_letters_of(now: float, reason: str, detail: str, column: Column) -> Iterator[DeadLetter]:
    """`column` as dead letters, each within its bound; one that stands for other Events than its rows as one, to be read, not folded."""
    client, tab, type, times, values, stands_for = column
    if isinstance(values, AtEdge):
        yield DeadLetter(now, reason, detail, client, tab, type, column.weight, times, [], pack(list(values)))
        return
    values = column.made()
    if stands_for is not None:  # the next such column of its ring says all that this one says
        yield DeadLetter(now, reason, detail, client, tab, type, stands_for, b"", [], pack(list(column.opened())))
        return
    for start, end in _pieces(values):
        part = values[start:end] if isinstance(values, list) else values[8 * start : 8 * end]
        yield DeadLetter(now, reason, detail, client, tab, type, end - start, times[8 * start : 8 * end], part)


def _pieces(values: bytes | list[Any]) -> Iterator[tuple[int, int]]:
    if isinstance(values, bytes):
        count = len(values) >> 3
        for start in range(0, count, _EVENTS):
            yield start, min(start + _EVENTS, count)
        return
    start = size = 0
    for index, value in enumerate(values):
        # one that is not kept has a letter of its own, so that it takes no other with it
        value_bytes = MAX_DEAD_LETTER_VALUE if is_too_deep(value) else 8 + packed_bytes(value)
        if index > start and size + value_bytes > MAX_DEAD_LETTER_BYTES:
            yield start, index
            start, size = index, 0
        size += value_bytes
    if start < len(values):
        yield start, len(values)


def encode_dead_letter(letter: DeadLetter) -> bytes:
    """The bytes under which a dead letter is kept; a value or content beyond the bound is left out, and the detail says so."""
    is_deep = any(map(is_too_deep, letter.values)) if isinstance(letter.values, list) else False
    packed = b"" if is_deep else pack([_VERSION, *letter])
    if not 1 < len(packed) <= MAX_DEAD_LETTER_VALUE:
        # one for each time: of what is no column, `events` is what its sender says, and nothing of it need have come
        times = b"" if letter.content else letter.times
        values = [None] * (len(times) // 8)
        letter = letter._replace(times=times, values=values, content=b"", detail=f"{letter.detail} {_LEFT_OUT}")
        packed = pack([_VERSION, *letter])
    return packed


def decode_dead_letter(content: bytes) -> DeadLetter | None:
    """The dead letter in `content`; None for bytes that are none (of this version)."""
    try:
        version, *fields = msgpack.unpackb(content, strict_map_key=False)
    except BAD:
        return None
    if version != _VERSION or len(fields) != len(DeadLetter._fields):
        return None
    letter = DeadLetter(*fields)
    return letter if _is_sound(letter) else None


def _is_sound(letter: DeadLetter) -> bool:
    """Whether it has what whoever reads one relies on: what lies in a store may have been written by anybody, or be cut."""
    is_typed = type(letter.time) in (float, int) and type(letter.events) is int and type(letter.times) is type(letter.content) is bytes
    if not is_typed or not all(type(text) is str for text in letter[1:6]) or not math.isfinite(letter.time):
        return False
    if not 0 <= letter.events < 2**63 or len(letter.times) % 8 or type(letter.values) not in (bytes, list):
        return False
    if letter.content or not letter.times:
        return len(letter.times) <= 8
    return 8 * letter.events == len(letter.times) == (len(letter.values) if isinstance(letter.values, bytes) else 8 * len(letter.values))


class LetterId(NamedTuple):
    """What names one dead letter: its bucket, and a digest of its bytes. Letters of the same bytes are each as good as the other."""

    bucket: int
    digest: str

    def __str__(self) -> str:
        return f"{self.bucket}-{self.digest}"


def letter_id(bucket: int, content: bytes) -> LetterId:
    """The id of a dead letter as it is kept."""
    return LetterId(bucket, hashlib.blake2b(content, digest_size=8).hexdigest())


def read_letter_id(text: str, buckets: int) -> LetterId:
    """The id in `text`. Raises ValueError."""
    found = _ID.fullmatch(text)
    if found is None or int(found[1]) >= buckets:
        raise ValueError(f"{text[:40]!r} is no id of a dead letter: see /v1/dead-letters")
    return LetterId(int(found[1]), found[2])


class Address(NamedTuple):
    """What a dead letter says of itself before its Events."""

    reason: str
    detail: str
    client: str
    tab: str
    type: str


def address_of(content: bytes) -> Address | None:
    """The address of a dead letter, without its Events being read; None for bytes that are none (of this version)."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(content)
    try:
        if unpacker.read_array_header() != 1 + len(DeadLetter._fields) or unpacker.unpack() != _VERSION:
            return None
        unpacker.skip()  # its time
        fields = [unpacker.unpack() for _ in Address._fields]
    except BAD:
        return None
    return Address(*fields) if all(isinstance(field, str) for field in fields) else None


def column_of(letter: DeadLetter) -> Column | None:
    """The Events of a dead letter, to be folded; None where they were no column, or were not kept."""
    if not letter.times or letter.detail.endswith(_LEFT_OUT):
        return None
    if letter.content:
        state = _at_edge(letter)
        return None if state is None else Column(letter.client, letter.tab, letter.type, letter.times, state, letter.events)
    if not len(letter.times) == 8 * letter.events == (len(letter.values) if isinstance(letter.values, bytes) else 8 * len(letter.values)):
        return None
    return Column(letter.client, letter.tab, letter.type, letter.times, letter.values)


def _at_edge(letter: DeadLetter) -> AtEdge | None:
    """The State in the content of a letter that has times; None where there is none."""
    found = _unpacked(letter.content)
    if not isinstance(found, list) or len(found) != 3 or len(letter.times) != 8:
        return None
    edge, dump, until = found
    return AtEdge(edge, dump, until) if type(edge) is int and type(dump) is bytes and type(until) is float else None


def describe(bucket: int, letter: DeadLetter) -> Iterator[dict[str, Any]]:
    """The Events of a dead letter, one dictionary each, as `/v1/dead-letters` shows them; of those that were folded at the edge, one."""
    common = {"bucket": bucket, "reason": letter.reason, "detail": letter.detail, "refused": letter.time}
    state = _at_edge(letter) if letter.times and letter.content else None
    if state is not None:
        names = {"client": letter.client, "tab": letter.tab, "type": letter.type}
        [time] = struct.unpack("<d", letter.times)
        says = (
            f"{many(letter.events, 'event')} until {state.until:.3f}, folded by an Agent in version {state.edge}, {len(state.dump)} bytes"
        )
        yield {**common, **names, "events": letter.events, "time": time, "content": says}
        return
    if letter.content or not letter.times:
        content = _unpacked(letter.content)
        yield {**common, "events": letter.events, "content": _TOO_DEEP if is_deeper(content) else repr(content)[:1000]}
        return
    times = struct.unpack(f"<{letter.events}d", letter.times)
    values = struct.unpack(f"<{letter.events}d", letter.values) if isinstance(letter.values, bytes) else letter.values
    for time, value in zip(times, values, strict=True):
        value = _TOO_DEEP if is_deeper(value) else value
        yield {**common, "client": letter.client, "tab": letter.tab, "type": letter.type, "time": time, "value": value}


def shown_of(letter: DeadLetter) -> int:
    """How many dictionaries `describe` gives: one an Event, and one of what is no column or was folded at the edge."""
    return len(letter.times) // 8 or 1


def unreadable(bucket: int, content: bytes) -> dict[str, Any]:
    """An entry that is no dead letter of this version, as `/v1/dead-letters` shows it: it is kept, and not folded again."""
    detail = f"this is no dead letter that this version reads ({len(content)} bytes)"
    return {"bucket": bucket, "reason": UNREADABLE, "detail": detail, "refused": 0.0, "content": repr(content)[:1000]}


def _unpacked(content: bytes) -> Any:
    try:
        return msgpack.unpackb(content, strict_map_key=False)
    except BAD:
        return content


def count_dead_letters(bucket: int, by_reason: Mapping[str, int], dropped: int) -> list[Command]:
    """The commands that change the counts of Events that are dead letters now, and of those that were and were dropped.

    Each Event is in one of them: what came = folded + dead letters by reason + dropped.
    """
    counts = keys.counts(bucket)
    commands: list[Command] = [
        (b"HINCRBY", counts, b"dead:" + reason.encode(), b"%d" % events) for reason, events in by_reason.items() if events
    ]
    if dropped:
        commands.append((b"HINCRBY", counts, b"dead_dropped", b"%d" % dropped))
    return commands


def pack(content: Any) -> bytes:
    """msgpack of what came in as msgpack; nil for what is nested too deeply to be packed again."""
    try:
        packed: bytes = msgpack.packb(content)
    except (ValueError, OverflowError, RecursionError):
        return b"\xc0"
    return packed


def packed_bytes(value: Any) -> int:
    """The size of a value as msgpack; more than any bound for one that is nested too deeply to be packed."""
    packed = _packed_or_none(value)
    return 1 << 62 if packed is None else len(packed)


def is_too_deep(value: Any) -> bool:
    """Whether a value is nested deeper than one may be."""
    if not isinstance(value, (list, tuple, dict)):
        return False
    packed = _packed_or_none(value)
    return packed is None or not is_nested_within(packed, MAX_VALUE_DEPTH)


def _packed_or_none(value: Any) -> bytes | None:
    """A value as msgpack; None for one that is nested too deeply to be packed."""
    try:
        packed: bytes = msgpack.packb(value)
    except (ValueError, OverflowError, RecursionError):
        return None
    return packed
