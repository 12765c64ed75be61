"""The JSON of `POST /v1/events`, on Server and Agent alike: text in, the columns of each bucket's batches out.

`{"client": …, "events": [{"tab", "type", "value", "time"?, "labels"?}, …]}`. Each event is accepted or rejected by itself.

1. What is posted again under its Idempotency-Key, to whichever Server or Agent, must be cut into the same batches: their numbers are what
   tells that it was applied. So there is one rule for that, here; a change to it would double what is repeated across an upgrade.
2. A request is read event by event, of its text a window at a time: others have their turns between them, what is rejected is gone at
   once, and what is kept is counted.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
import struct
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgpack

from taba import names
from taba.batch import MAX_LIST_BYTES, Column, KeyPart, Packed
from taba.bounds import MAX_BATCH_COLUMNS, MAX_EXACT_INT, MAX_TIME, MAX_VALUE_BYTES, MAX_VALUE_DEPTH, KiB
from taba.counting import OBJECT_BYTES, measure
from taba.nesting import is_deeper, no_constant
from taba.routes import JSON, Route, Serve
from taba.steps import finish
from taba.tokens import UNBOUND, WRITE, Scope

MAX_POSTED_EVENTS = 10_000  # in one request; who has more has a ring
MAX_KEY_CHARACTERS = 255  # of an Idempotency-Key
MAX_EVENT_CHARACTERS = 256 * KiB  # of the JSON of one: the largest value and the longest labels, each character of them escaped
MAX_POSTED_OBJECTS = 512 * KiB  # that the values of one request are made of, lists in lists and all: 32 MiB
WINDOW_BYTES = 64 * KiB  # of a request, read between two looks at the time
MAX_SPACE_CHARACTERS = 256 * KiB  # in a row: with what the largest event takes, all that is read before the next value
MAX_DEEP_CHARACTERS = 512 * KiB  # of one request, in events that no decoder takes: what these nest is walked here, at 50 times the cost
SLICE_NESTS = 10_000  # texts and brackets of an event that no decoder takes, some 5 ms
SLICE_EVENTS = 100  # read, or put into columns, between two looks at the time
EVENT_BYTES = 512  # of an event that was read, beside its value, about
LOT_BYTES = MAX_LIST_BYTES  # a lot ends before it is larger; with the largest value and the longest name it is well within a batch
COLUMN_BYTES = 64  # of a column without its names, values and times

EVENTS_ANSWER = '{"accepted": n, "rejected": [{"index", "reason"}, …]}'
EVENTS_SCHEMA = {
    "type": "object",
    "properties": {
        "client": {"type": "string", "pattern": r"^(?!taba\.|_)[A-Za-z0-9_./:@+-]{1,200}$"},
        "events": {
            "type": "array",
            "maxItems": MAX_POSTED_EVENTS,
            "items": {"description": '{"tab", "type", "value", "time"?, "labels"?}: each is accepted or rejected by itself.'},
        },
    },
    "required": ["client", "events"],
}

TOO_DEEP = f"value: takes lists and objects nested at most {MAX_VALUE_DEPTH} deep"
_SPACE = re.compile(r"[ \t\n\r]*")
# a text, in which brackets are none, or a bracket. One that does not end takes all that is left: wherever one begins something is found, so
# no character is looked at twice
_NESTS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
_DEEPER = {"[": 1, "{": 1, "]": -1, "}": -1}


def events_route(serve: Serve) -> Route:
    """The route by which Events are posted, to a Server or to an Agent."""
    return Route("POST", "/v1/events", serve, EVENTS_ANSWER, WRITE, body=JSON, body_schema=EVENTS_SCHEMA, is_scoped=True)


class NotCovered(ValueError):
    """The token is bound to other Clients or names."""


class Rejection(NamedTuple):
    """An event that was not taken: its place in the request, from 0, and the reason."""

    place: int
    reason: str


class Posted(NamedTuple):
    """What a request holds: its Client; for each bucket the columns of its batches 1, 2, …; how many events were accepted; the rejections
    in order; and the digest of it all, however it was written, and of what its token did not cover."""

    client: str
    lots: dict[int, list[list[Column]]]
    accepted: int
    rejected: list[Rejection]
    digest: bytes
    made: Mapping[int, list[int]] = {}  # of each batch, how many bytes it takes in memory, about


class _Event(NamedTuple):
    tab: str
    type: str
    time: float
    value: Any  # where it holds others, its msgpack
    size: int  # of its value as msgpack
    objects: int  # that its value is made of


class Naming(Protocol):
    """Under which names the events of one post go."""

    def sent_as(self, tab: str, type: str) -> tuple[str, str] | None:
        """The Client and the Tab that they go to; None where they go nowhere."""

    def refusal(self) -> str:
        """Why some go nowhere."""

    def close(self) -> None:
        """The post was read, or given up."""


def read_events(content: bytes, now: float, buckets: int) -> Posted:
    """The events of a request, all values made; those without a time happened `now`. Raises ValueError for a request that is none."""
    posted = finish(reading(content, now, buckets, True))
    lots = {bucket: [[column.opened() for column in lot] for lot in of_bucket] for bucket, of_bucket in posted.lots.items()}
    return posted._replace(lots=lots)


def reading(
    content: bytes,
    now: float,
    buckets: int,
    is_digested: bool,
    scope: Scope = UNBOUND,
    begin: Callable[[str, bytes], Naming | None] = lambda client, digest: None,
) -> Generator[int, None, Posted]:
    """As `read_events`, with values that hold others Packed, in steps of some 10 ms that each yield how many bytes they have charged: what
    is made of them at last takes these. Whether with a digest that is one.

    What is beyond `scope` is rejected; a Client that is raises NotCovered. `begin` is told Client and digest, and gives the names under
    which all goes: None where those are its own. It raises what it raises.
    """
    window = _Window(content)
    fields: dict[str, Any] = {}
    read = _Events(now, is_digested, scope)
    for name in window.items("{", "}", 2):
        if name in fields or name not in ("client", "events"):
            raise ValueError('takes {"client": …, "events": […]}')
        if name == "client":
            client = fields[name] = names.check_client(window.value())
            if not scope.covers_client(client):
                raise NotCovered(f"client: the token is bound to {scope.sentence()}")
            continue
        fields[name] = None
        weight = 0
        for place, _ in enumerate(window.items("[", "]", MAX_POSTED_EVENTS)):
            if window.is_due() or place % SLICE_EVENTS == 0:
                yield OBJECT_BYTES * (read.objects - weight)
                weight = read.objects
            event = yield from window.event()
            read.add(event, window.taken)
        yield OBJECT_BYTES * (read.objects - weight)
    window.end()
    if set(fields) != {"client", "events"}:
        raise ValueError('takes {"client": …, "events": […]}')
    client = fields["client"]
    digest = _digest(json.dumps(client) + read.digest.hexdigest())
    naming = begin(client, digest)
    try:
        lots = yield from _cutting(read, client, buckets, naming)
    finally:
        if naming is not None:
            naming.close()
    columns: dict[int, list[list[Column]]] = {}
    for bucket, of_bucket in lots.items():
        columns[bucket] = []
        for lot in of_bucket:
            columns[bucket].append(lot.columns())
            yield 0
    made = {bucket: [lot.made for lot in of_bucket] for bucket, of_bucket in lots.items()}
    return Posted(client, columns, len(read.accepted), sorted(read.rejected), digest, made)


def _cutting(read: _Events, client: str, buckets: int, naming: Naming | None) -> Generator[int, None, dict[int, list[_Lot]]]:
    """The lots of each bucket. What has no name to go to is rejected, too."""
    lots: dict[int, list[_Lot]] = {}
    refused: list[int] = []
    for number, (place, event) in enumerate(zip(read.places, read.accepted, strict=True)):
        if number % SLICE_EVENTS == 0:
            yield 0
        names_of = client, event.tab
        if naming is not None:
            found = naming.sent_as(event.tab, event.type)
            if found is None:
                refused.append(number)
                read.rejected.append(Rejection(place, naming.refusal()))
                continue
            names_of = found
        of_bucket = lots.setdefault(names.bucket_of(names_of[1], buckets), [_Lot()])
        if not of_bucket[-1].add(*names_of, event):
            of_bucket.append(_Lot())
            of_bucket[-1].add(*names_of, event)
    for number in reversed(refused):
        del read.accepted[number]
    return lots


class _TooDeep(NamedTuple):
    """What stands in place of an event that nests deeper than a decoder can."""

    text: str


class _Events:
    """The events of a request as they are read. `objects`: what is kept of them takes so many times OBJECT_BYTES, about."""

    def __init__(self, now: float, is_digested: bool, scope: Scope):
        self._now, self._is_digested, self._scope = now, is_digested, scope
        self._places = 0
        self.accepted: list[_Event] = []
        self.places: list[int] = []  # of those
        self.rejected: list[Rejection] = []
        self.digest = hashlib.blake2b(digest_size=16)
        self.objects = 0

    def add(self, event: Any, taken: Callable[[], str]) -> None:
        """Take one more, which was `taken` from this text, or reject it. Raises ValueError where what is kept becomes too much."""
        if self._is_digested:
            try:
                text = json.dumps(event, sort_keys=True, separators=(",", ":"))  # the same event, however it is spaced
            except RecursionError:
                text = json.dumps(taken())  # spaced like this, then
            for start in range(0, len(text), WINDOW_BYTES):  # escaped, of 256 Ki characters it is MiB: no second copy of them at once
                self.digest.update(text[start : start + WINDOW_BYTES].encode("ascii"))
            self.digest.update(b",")
        try:
            found = _read_event(event, self._now)
            objects = found.objects
            if not self._scope.covers_tab(found.tab):
                raise NotCovered(f"tab: the token is bound to {self._scope.sentence()}")
        except ValueError as error:
            self.rejected.append(Rejection(self._places, str(error)))
            objects = 0
            if isinstance(error, NotCovered):
                # asked again with a token that covers more, the same events make other batches under numbers that are applied
                self.digest.update(b"!")
        else:
            self.accepted.append(found)
            self.places.append(self._places)
        self._places += 1
        self.objects += objects + EVENT_BYTES // OBJECT_BYTES
        if self.objects - self._places * (EVENT_BYTES // OBJECT_BYTES) > MAX_POSTED_OBJECTS:
            raise ValueError(f"events: their values take at most {MAX_POSTED_OBJECTS} lists, objects and items")


class _Window:
    """JSON of which only a window is text at any time. Raises ValueError for what is none."""

    def __init__(self, content: bytes):
        self._content = content.removeprefix(codecs.BOM_UTF8)
        self._read = 0
        self._text, self._place = "", 0
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._scan: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder(parse_constant=no_constant).scan_once  # type: ignore[attr-defined]
        self._is_due = True
        self._passed = self._began = 0
        self._deep = 0  # characters of events that no decoder took

    def is_due(self) -> bool:
        """Whether a window was read since this was asked last, or values as long as one were taken: the last windows come at once."""
        due = self._is_due or self._passed >= WINDOW_BYTES
        if due:
            self._is_due, self._passed = False, 0
        return due

    def items(self, begin: str, end: str, most: int) -> Generator[str, None, None]:
        """Come to each item of a list, or to each value of an object, whose names are given; who iterates takes it with `value`."""
        if self._next() != begin:
            raise ValueError('takes {"client": …, "events": […]}')
        self._place += 1
        count = 0
        if self._next() == end:
            self._place += 1
            return
        while True:
            count += 1
            if count > most:
                raise ValueError(
                    f"events: takes a list of at most {MAX_POSTED_EVENTS}" if begin == "[" else "takes client and events alone"
                )
            name = ""
            if begin == "{":
                name = self.value()
                if not isinstance(name, str) or self._next() != ":":
                    raise ValueError("this is no JSON")
                self._place += 1
            yield name
            found = self._next()
            self._place += 1
            if found == end:
                return
            if found != ",":
                raise ValueError("this is no JSON")

    def event(self) -> Generator[int, None, Any]:
        """The value that comes next; a _TooDeep where it nests too deeply to be decoded: it spoils no other, and is passed in steps."""
        try:
            return self._value()
        except RecursionError:
            end = yield from self._after_brackets()
            self._passed += end - self._place
            self._deep += end - self._place
            self._place = end
            if self._deep > MAX_DEEP_CHARACTERS:
                raise ValueError(f"events: those that nest deeper than can be read take at most {MAX_DEEP_CHARACTERS} characters") from None
            return _TooDeep(self.taken())

    def taken(self) -> str:
        """The text of the value that was taken last."""
        return self._text[self._began : self._place]

    def _after_brackets(self) -> Generator[int, None, int]:
        """Where what begins here with a bracket ends, be it JSON or not."""
        depth = 0
        for count, found in enumerate(_NESTS.finditer(self._text, self._place), 1):
            depth += _DEEPER.get(found[0], 0)
            if depth == 0:
                return found.end()
            if count % SLICE_NESTS == 0:
                yield 0
        raise ValueError(
            "this is no JSON" if self._is_whole else f"an event takes at most {MAX_EVENT_CHARACTERS} characters of JSON, and is JSON"
        )

    def value(self) -> Any:
        """The value that comes next."""
        try:
            return self._value()
        except RecursionError:
            raise ValueError("this is nested too deeply to be read") from None

    def _value(self) -> Any:
        """The value that comes next. Raises RecursionError, and it is still to come, where it nests too deeply to be decoded."""
        self._next()
        self._began = self._place
        try:
            value, place = self._scan(self._text, self._place)
        except (StopIteration, ValueError) as error:
            if self._is_whole:
                missing = "a value is missing" if isinstance(error, StopIteration) else error
                raise ValueError(f"this is no JSON: {missing}"[:200]) from None
            place = len(self._text)
        if place == len(self._text) and not self._is_whole:
            raise ValueError(f"an event takes at most {MAX_EVENT_CHARACTERS} characters of JSON, and is JSON")
        self._passed += place - self._place
        self._place = place
        return value

    def end(self) -> None:
        """Make sure that nothing comes any more."""
        if self._next():
            raise ValueError("this is more than one JSON value")

    @property
    def _is_whole(self) -> bool:
        return self._read >= len(self._content)

    def _next(self) -> str:
        """The next character that is no space, with MAX_EVENT_CHARACTERS behind it where there are so many; "" at the end."""
        spaces = 0
        while True:
            space = _SPACE.match(self._text, self._place)
            end = space.end() if space is not None else self._place  # a pattern of * matches always
            spaces += end - self._place
            self._place = end
            if spaces > MAX_SPACE_CHARACTERS:
                raise ValueError(f"takes at most {MAX_SPACE_CHARACTERS} characters of space in a row")
            if self._is_whole or len(self._text) - self._place > MAX_EVENT_CHARACTERS:
                return self._text[self._place : self._place + 1]
            more = self._content[self._read : self._read + WINDOW_BYTES]
            self._read += len(more)
            try:
                decoded = self._decoder.decode(more, self._is_whole)
            except UnicodeDecodeError:
                raise ValueError("this is no UTF-8") from None
            self._text = self._text[self._place :] + decoded
            self._place = 0
            self._is_due = True


class _Lot:
    """The events of one batch, as they come."""

    def __init__(self) -> None:
        self.series: dict[tuple[str, str, str], tuple[list[float], list[Any]]] = {}
        self.bytes = self.made = 0

    def add(self, client: str, tab: str, event: _Event) -> bool:
        """Take one more event, of this Client and Tab; False where the lot has no room. An empty one takes any."""
        _, type, time, value, size, objects = event
        size = 8 + max(size, 9)
        if (client, tab, type) not in self.series:
            size += COLUMN_BYTES + len(client) + len(tab.encode()) + len(type)
        if self.series and (self.bytes + size > LOT_BYTES or len(self.series) == MAX_BATCH_COLUMNS):
            return False
        self.bytes += size
        self.made += size + OBJECT_BYTES * objects
        times, values = self.series.setdefault((client, tab, type), ([], []))
        times.append(time)
        values.append(value)
        return True

    def columns(self) -> list[Column]:
        return [
            Column(client, tab, type, struct.pack(f"<{len(times)}d", *times), column_values(values))
            for (client, tab, type), (times, values) in self.series.items()
        ]


def column_values(values: Sequence[Any]) -> bytes | list[Any] | Packed:
    """A column's values: float64 bytes where every one is a number that a float holds exactly, else a list of them all; where some hold
    others, whose msgpack stands for them, Packed."""
    if all(type(value) is float or (type(value) is int and abs(value) <= MAX_EXACT_INT) for value in values):
        return struct.pack(f"<{len(values)}d", *values)
    if any(type(value) is bytes for value in values):
        return Packed(b"".join(value if type(value) is bytes else msgpack.packb(value) for value in values), len(values))
    return list(values)


def key_part(client: str, key: str, digest: bytes) -> KeyPart:
    """What an Idempotency-Key of a Client is known by, and the digest of its request. ValueError for what is no key."""
    if not 1 <= len(key) <= MAX_KEY_CHARACTERS:
        raise ValueError(f"Idempotency-Key: takes 1 to {MAX_KEY_CHARACTERS} characters")
    return KeyPart(_digest(f"{client}\0{key}"), digest, 0)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _read_event(event: Any, now: float) -> _Event:
    if isinstance(event, _TooDeep):
        raise ValueError(TOO_DEEP)
    if not isinstance(event, dict) or not {"tab", "type", "value"} <= set(event) <= {"tab", "type", "value", "time", "labels"}:
        raise ValueError(TOO_DEEP if is_deeper(event) else 'an event takes {"tab", "type", "value", "time"?, "labels"?}')
    tab, labels, time, value = event["tab"], event.get("labels"), event.get("time"), event["value"]
    if not isinstance(tab, str):
        raise ValueError("tab: takes a text")
    if labels is not None and labels != {}:
        if is_deeper(labels):  # how deep a decoder goes depends on the Python
            raise ValueError(TOO_DEEP)
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
        packed = msgpack.packb(value)
    except (ValueError, OverflowError, TypeError, RecursionError) as error:
        raise ValueError(TOO_DEEP if is_deeper(value) else f"value: {error}"[:200]) from None
    size, objects = len(packed), 1
    if size > MAX_VALUE_BYTES:
        raise ValueError(f"value: takes at most {MAX_VALUE_BYTES} bytes of msgpack")
    if isinstance(value, (list, dict)):
        try:
            objects = measure(packed)[1]
        except ValueError:
            raise ValueError(TOO_DEEP) from None
        value = packed  # JSON has no bytes: what is some is of one that holds others
    return _Event(tab, names.check_type(event["type"]), float(time), value, size, objects)
