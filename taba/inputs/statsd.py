"""StatsD and DogStatsD without I/O: bytes in, what is to be recorded out.

1. A line is `NAME:VALUE[:VALUE…]|TYPE[|@RATE][|#TAG,…][|T<seconds>]`; other fields, such as a container's id, are passed over.
2. Nothing raises for what comes in. What is not understood is counted under a reason, and one example of it is kept.
3. What reads a line costs in proportion to its length. What was learned of a name and its fields is remembered, and found by both at once.
4. Nothing hangs on how lines are packed: the sums of a text are those of its lines, one at a time.
5. An Event's place among those of a packet hangs on the packet alone, and on nothing that was heard before: of what was begun before a
   process was killed, the next one knows no more. Where what was heard before leaves nothing to record, the place is there all the same.

| line | Type | Event |
| --- | --- | --- |
| `c` with `@r` | CounterGroup | the value ÷ r |
| `ms` (÷ 1000), `h`, `d` with `@r` | PercentileGroup | `[value, 1/r]`; what 1/r has beyond a whole number is carried to the Tab's next |
| `g`; `+n`, `-n` | Gauge | the value; the last one, and so much more |
| `s` | Cardinality | the text |
| `_e`, `_sc` | none | events, and service checks that say another thing than before, are notes (`taba.inputs.notes`), and counted |
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable
from math import isfinite
from typing import Any, NamedTuple

from taba.bounds import MAX_TIME, MiB
from taba.desk import COUNTS, PLACE
from taba.inputs.notes import Checks, said
from taba.inputs.tabs import tab_name

MAX_LINE_BYTES = 8192  # a line has one Tab: a name, 16 tags and some values; the same holds where lines come without packets
MAX_REMEMBERED_BYTES = 512  # of a name and its fields together: longer ones are read anew each time
MAX_REMEMBERED = 50_000  # names with their fields, of all origins together; with one more all are learned again
MAX_TABS = 100_000  # of all origins together; then all of it begins anew, as if the process had
MAX_NAMES = 32 * MiB  # characters of these Tabs' names together: a name of a stranger's is up to 8,000, and is held several times
LEAST_RATE = 1e-9  # one event of this rate stands for a billion, and no pair's number is beyond a float's whole ones
EXAMPLE_BYTES = 200

RecordEvent = Callable[[Any, "float | None"], object]  # a Tab's record(value, time)
Event = tuple[RecordEvent, Any, "float | None"]


def passed_over(value: Any, time: float | None) -> None:
    """The record() of a place where nothing is to be recorded."""


_SMALL = {b"%d" % number: float(number) for number in range(1000)}  # what most values are: found at once
_SHORT = 32  # digits of a value that needs no look at whether it is finite
_NUMBER = re.compile(rb"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?").fullmatch
_TYPES = {
    b"c": "CounterGroup",
    b"ms": "PercentileGroup",
    b"h": "PercentileGroup",
    b"d": "PercentileGroup",
    b"g": "Gauge",
    b"s": "Cardinality",
}
_LINES, _EVENTS, _BAD_VALUE = PLACE["lines"], PLACE["events"], PLACE["bad_value"]


class Tab:
    """A Tab, and what is carried from one of its values to the next: a gauge's value, or a part of an event."""

    __slots__ = ("carried", "record")

    def __init__(self, record: RecordEvent):
        self.record = record
        self.carried: float | None = None


class Meant(NamedTuple):
    """What a name and its fields mean: the Tab, by what its values are divided, and the rate where it makes pairs (else 1; 0: a text)."""

    tab: Tab
    kind: bytes
    divisor: float
    rate: float
    time: float | None


class Known(NamedTuple):
    """What is remembered of a name and its fields: of one number that has no sign, all that is to be done with it."""

    record: RecordEvent | None  # None where that takes more
    divisor: float
    gauge: Tab | None  # which carries it
    meant: Meant


class Readers:
    """What the readers of one process remember together, and count."""

    def __init__(self, tab: Callable[[str, str, str, str], RecordEvent], note: RecordEvent, max_tabs: int = MAX_TABS):
        """`tab` gives the record() of (origin, name, Type, unit); `note` is that of notes: of a text and its time."""
        self._tab, self.note, self._max_tabs = tab, note, max_tabs
        self.checks = Checks()
        self.counts = array("Q", bytes(8 * len(COUNTS)))
        self.example = b""  # of the lines that were not understood: the last one's beginning
        self._readers: dict[str, Reader] = {}
        self.remembered = self.tabs = self.characters = 0

    def reader(self, origin: str) -> Reader:
        """The reader of what comes from there: the same each time."""
        found = self._readers.get(origin)
        if found is None:
            found = self._readers[origin] = Reader(origin, self)
        return found

    @property
    def is_full(self) -> bool:
        """Whether there are as many Tabs as there may be, or as long ones: once what was read is recorded, all is to begin anew."""
        return self.tabs >= self._max_tabs or self.characters >= MAX_NAMES

    def drop(self, origin: str) -> Reader | None:
        """Nothing more comes from there, or from a new one of that name. Who read it, if anybody, and may `forget`."""
        reader = self._readers.pop(origin, None)
        if reader is not None:
            self.remembered -= len(reader.known)
            self.tabs -= len(reader.tabs)
            self.characters -= sum(len(name) for name, _ in reader.tabs)
            self.counts[PLACE["parts_forgotten"]] += sum(1 for tab in reader.tabs.values() if tab.carried)
        return reader

    def drop_all(self) -> list[Reader]:
        """Begin anew. Those who read, and may `forget`."""
        return [reader for origin in list(self._readers) if (reader := self.drop(origin)) is not None]

    def tab(self, reader: Reader, name: str, type: str, unit: str) -> Tab:
        """The Tab of this reader's: the same each time."""
        key = (name, type)
        tab = reader.tabs.get(key)
        if tab is None:
            tab = reader.tabs[key] = Tab(self._tab(reader.origin, name, type, unit))
            self.tabs += 1
            self.characters += len(name)
        return tab

    def remember(self, reader: Reader, key: tuple[bytes, bytes], meant: Meant) -> None:
        """Find it at once the next time."""
        if self.remembered >= MAX_REMEMBERED:
            for one in self._readers.values():
                one.known.clear()
            self.remembered = 0
        is_simple = meant.rate == 1.0
        reader.known[key] = Known(meant.tab.record if is_simple else None, meant.divisor, meant.tab if meant.kind == b"g" else None, meant)
        self.remembered += 1


class Reader:
    """Reads what comes from one origin."""

    def __init__(self, origin: str, all_readers: Readers):
        self.origin, self._all = origin, all_readers
        self.known: dict[tuple[bytes, bytes], Known] = {}
        self.tabs: dict[tuple[str, str], Tab] = {}

    def forget(self, most: int) -> bool:
        """Once dropped: free so much of what is known. Whether that was all."""
        for known in (self.known, self.tabs):
            for _ in range(min(most, len(known))):
                known.popitem()
        return not self.known and not self.tabs

    def read(self, content: bytes) -> list[Event]:
        """The Events of a packet's lines, in order: whose record() takes which value and time. Never raises."""
        if b"\r" in content:
            content = content.replace(b"\r\n", b"\n").removesuffix(b"\r")
        found: list[Event] = []
        add, known, small, lines, no_events = found.append, self.known.get, _SMALL.get, 0, 0
        for line in content.split(b"\n"):
            head, _, fields = line.partition(b"|")
            name, _, text = head.partition(b":")
            one = known((name, fields))
            if one is None:
                if not line:
                    continue
                lines += 1
                no_events += self._learn(line, name, text, fields, found)
                continue
            lines += 1
            record, divisor, gauge, meant = one
            value = small(text)
            if value is None and len(text) <= _SHORT and text.replace(b".", b"", 1).isdigit():
                value = float(text)
            if value is None or record is None:
                no_events += self._values(meant, line, text, found)
                continue
            value /= divisor
            if gauge is not None:
                gauge.carried = value
            add((record, value, None))
        counts = self._all.counts
        counts[_LINES] += lines
        counts[_EVENTS] += len(found) - no_events
        return found

    def _learn(self, line: bytes, name: bytes, text: bytes, fields: bytes, found: list[Event]) -> int:
        """What a line says whose name and fields are not known; how many of its places are no Events."""
        if len(line) > MAX_LINE_BYTES:
            self._refuse("long_line", line)
            return 0
        if line[:1] == b"_" and line.startswith((b"_e{", b"_sc|")):
            return self._noted(line, found)
        meant = self._meant(line, name, fields)
        if isinstance(meant, str):
            self._refuse(meant, line)
            return 0
        if meant.time is None and len(name) + len(fields) <= MAX_REMEMBERED_BYTES:
            self._all.remember(self, (name, fields), meant)
        if meant.rate == 1.0 and meant.kind != b"g" and text.isdigit() and len(text) <= _SHORT:
            found.append((meant.tab.record, float(text) / meant.divisor, meant.time))
            return 0
        return self._values(meant, line, text, found)

    def _noted(self, line: bytes, found: list[Event]) -> int:
        one = said(line)
        if isinstance(one, str):
            self._refuse(one, line)
            return 0
        self._count("event" if one.check is None else "service_check")
        is_new = one.check is None or self._all.checks.is_new((self.origin, *one.check[0]), one.check[1])
        found.append((self._all.note if is_new else passed_over, one.text, one.time))
        return 1

    def _meant(self, line: bytes, name: bytes, fields: bytes) -> Meant | str:
        """What the name and the fields of a line mean; where nothing, the reason."""
        kind, *others = fields.split(b"|")
        if not name or b":" not in line or not kind:
            return "bad_line"
        if kind not in _TYPES:
            return "bad_type"
        rate, time, tags = 1.0, None, ""
        for field in others:
            first, rest = field[:1], field[1:]
            if first == b"@":
                given = float(rest) if _NUMBER(rest) else 0.0
                if not LEAST_RATE <= given <= 1:
                    return "bad_rate"
                rate = given
            elif first == b"T":
                if not rest.isdigit() or len(rest) > 15 or int(rest) > MAX_TIME:
                    return "bad_time"
                time = float(rest)
            elif first == b"#":
                try:
                    tags = rest.decode()
                except UnicodeDecodeError:
                    return "not_utf8"
        try:
            named = tab_name(name.decode(), [tag for tag in tags.split(",") if tag] if tags else (), "statsd")
        except UnicodeDecodeError:
            return "not_utf8"
        except ValueError:
            return "bad_name"
        if named.left_out or named.is_changed:
            self._count("tags_left_out", named.left_out)
            self._count("names_changed", named.is_changed)
        tab = self._all.tab(self, named.name, _TYPES[kind], "s" if kind == b"ms" else "")
        if kind == b"c":
            return Meant(tab, kind, rate, 1.0, time)
        if kind == b"s":
            return Meant(tab, kind, 1.0, 0.0, time)
        return Meant(tab, kind, 1000.0 if kind == b"ms" else 1.0, 1.0 if kind == b"g" else rate, time)

    def _values(self, meant: Meant, line: bytes, text: bytes, found: list[Event]) -> int:
        """The Events of a line's values; several are parted by colons, but those of a set, which are any text. How many places are none."""
        if len(line) > MAX_LINE_BYTES:  # of a name and fields that are known
            self._refuse("long_line", line)
            return 0
        tab, kind, divisor, rate, time = meant
        if kind == b"s":
            try:
                found.append((tab.record, text.decode(), time))
            except UnicodeDecodeError:
                self._refuse("not_utf8", line)
            return 0
        no_events = 0
        for one in text.split(b":"):
            value = float(one) / divisor if _NUMBER(one) else None
            if value is None or not isfinite(value):
                self._refuse("bad_value", line)
            elif kind == b"g":
                if one[:1] in b"+-":
                    if tab.carried is None:
                        self._count("gauges_from_zero")
                    value += tab.carried or 0.0
                    if not isfinite(value):
                        self._refuse("bad_value", line)
                        found.append((passed_over, None, None))
                        no_events += 1
                        continue
                tab.carried = value
                found.append((tab.record, value, time))
            elif rate == 1.0:
                found.append((tab.record, value, time))
            else:
                times = 1 / rate + (tab.carried or 0.0)
                tab.carried = times % 1
                found.append((tab.record, [value, int(times)] if times >= 2 else value, time))
        return no_events

    def _count(self, what: str, times: int = 1) -> None:
        self._all.counts[PLACE[what]] += times

    def _refuse(self, reason: str, line: bytes) -> None:
        self._all.counts[PLACE[reason]] += 1
        self._all.example = line[:EXAMPLE_BYTES]
