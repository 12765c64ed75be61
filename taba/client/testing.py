"""For tests of applications: what was recorded, without an Agent, a Server or shared memory.

    with testing.capture() as recorded:
        checkout(cart)
    assert recorded.total("orders", shop="main") == 1

The very code that records for an Agent does, into memory of this process alone, so Tabs that were made long before are captured as well,
from all threads. Captures may stand within each other: an event is in the innermost. Sums and Gauges begin at 0 in a capture, and are
after it as they were before it; what `client.stats()` counts begins anew with it. A forked child's events are not captured.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from taba import ring
from taba.client import process
from taba.client.producer import label_text
from taba.client.segment import Memory, Segment
from taba.names import parse_name

# Of address space, of which what is recorded takes some: room for 2,097,152 events, and 8 MiB of those that are no numbers, in one capture
CAPTURE_BYTES = 64 << 20
_READ_RECORDS = 4096  # at once
_RECORD = struct.Struct("<dQQ")
_FULL = ("ring_full", "bytes_full")


class Event(NamedTuple):
    """One recorded value of one Tab; `name` is its canonical text, `time` in Unix seconds."""

    name: str
    type: str
    value: Any
    time: float


class Captured:
    """What was recorded since capture() began, in that order (of one thread)."""

    def __init__(self) -> None:
        self._memories: list[_Captured] = []
        self._events: list[Event] = []
        self._dropped: dict[str, int] | None = None

    @property
    def events(self) -> list[Event]:
        """All events so far. Raises RuntimeError where there were more than a capture holds."""
        for memory in self._memories:
            self._events += memory.read()
        full = sum(self.dropped.get(reason, 0) for reason in _FULL)
        if full:
            raise RuntimeError(f"{full} events found no room in this capture, which holds {CAPTURE_BYTES // 32} of them")
        return list(self._events)

    @property
    def dropped(self) -> dict[str, int]:
        """What could not be recorded, by reason: as `dropped_by_reason` of client.stats()."""
        return process.producer.stats()["dropped_by_reason"] if self._dropped is None else self._dropped

    def names(self) -> list[str]:
        """The canonical names of the Tabs that recorded, sorted."""
        return sorted({event.name for event in self.events})

    def values(self, name: str, **labels: str | int | bool) -> list[Any]:
        """The values of a Tab. A base name means its Tabs with labels too; with `labels`, those of them that have these."""
        return [event.value for event in self.events if _is_meant(event.name, name, labels)]

    def total(self, name: str, **labels: str | int | bool) -> float:
        """The sum of these values, each of which is a number."""
        total: float = sum(self.values(name, **labels))
        return total

    def count(self, name: str, **labels: str | int | bool) -> int:
        """How many events these are."""
        return len(self.values(name, **labels))

    def last(self, name: str, **labels: str | int | bool) -> Any:
        """The last of these values, or None."""
        return (self.values(name, **labels) or [None])[-1]

    def read_functions(self) -> None:
        """Read now what Gauges were given by set_function(), which else a record does once a second."""
        process.producer.read_functions()

    def clear(self) -> None:
        """Forget what was recorded so far."""
        self.events  # noqa: B018  # read up to here
        self._events.clear()

    def _make(self, make: Callable[[int, int], Any] | None) -> Segment:
        memory = _Captured(make)
        self._memories.append(memory)
        return memory

    def _end(self) -> None:
        self._dropped = self.dropped
        for memory in self._memories:
            self._events += memory.read()
            memory.close()
        self._memories.clear()


@contextmanager
def capture() -> Iterator[Captured]:
    """Capture what this process records within the block."""
    producer, captured = process.producer, Captured()
    before = producer.remembered()
    outer = producer.divert(captured._make, afresh=True)
    try:
        yield captured
    finally:
        captured._end()
        now = producer.remembered()
        for tab in {**before, **now}:  # into this capture, which nobody reads any more
            was, is_now = before.get(tab, 0.0), now.get(tab, 0.0)
            tab.record(was - is_now if tab.is_healing else was)
        producer.divert(outer)


def capture_for(case: Any) -> Captured:
    """Capture until a unittest.TestCase ends: for its setUp(), or a test of it."""
    within = capture()
    captured = within.__enter__()
    case.addCleanup(within.__exit__, None, None, None)
    return captured


class _Captured(Segment):
    """A ring in memory of this process alone, and its reader."""

    def __init__(self, make: Callable[[int, int], Any] | None):
        self._descriptor = _memory()
        os.ftruncate(self._descriptor, CAPTURE_BYTES)
        where = ring.layout(CAPTURE_BYTES)
        super().__init__("captured", "", where, bytes(16), Memory(self._descriptor, CAPTURE_BYTES, make), (0, 0))
        self._position = 0
        self._tabs: list[ring.TabEntry] = []

    def is_named(self) -> bool:
        return True

    def discard(self) -> None:
        self.let_go()

    def close(self) -> None:
        os.close(self._descriptor)

    def read(self) -> list[Event]:
        """What is recorded and was not read."""
        events: list[Event] = []
        while True:
            first = self._position & (self.where.records - 1)
            most = min(_READ_RECORDS, self.where.records - self._position)
            content = os.pread(self._descriptor, most * _RECORD.size, self.where.record_offset + first * _RECORD.size)
            for time, word, commit in _RECORD.iter_unpack(content):
                tab, flags, lap = ring.split_commit(commit)
                if lap != 1:
                    return events  # nothing is recorded here yet: this ring is gone round once
                self._position += 1
                if flags & ring.FLAG_SKIP:
                    continue
                value: Any = struct.unpack("<d", word.to_bytes(8, "little"))[0]
                if flags & ring.FLAG_BYTES:
                    length, begin = ring.split_value(word)
                    value, _ = decode(os.pread(self._descriptor, length, self.where.byte_ring_offset + begin))
                name, type = self._tab(tab)
                events.append(Event(name, type, value, time))
            if not content:
                return events

    def _tab(self, id: int) -> tuple[str, str]:
        if id >= len(self._tabs):
            words = os.pread(self._descriptor, 16, ring.DIRECTORY_COUNT_OFFSET)
            count, used = ring.parse_directory_words(words, self.where)
            entries, _ = ring.parse_directory(os.pread(self._descriptor, used, ring.HEADER_BYTES), count)
            self._tabs = [entry for entry in entries if isinstance(entry, ring.TabEntry)]
        return self._tabs[id].name, self._tabs[id].type


def _memory() -> int:
    """A descriptor of a file that is nowhere."""
    try:
        return os.memfd_create("taba.captured")
    except (AttributeError, OSError):  # an old kernel or C library
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())


def _is_meant(tab: str, name: str, labels: dict[str, Any]) -> bool:
    if tab == name and not labels:
        return True
    base, own = parse_name(tab)
    if base != name:
        return False
    return all(own.get(key) == label_text(key, value) for key, value in labels.items())


# --- msgpack, as far as a record has it --------------------------------------------------------------------------------------------

_SIZED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
_NUMBERS = {
    0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


def decode(content: bytes, at: int = 0) -> tuple[Any, int]:
    """What taba.client.encode wrote at `at`: the value, and where it ends. Of what this process recorded alone: nothing is checked."""
    tag = content[at]
    at += 1
    if tag < 0x80 or tag >= 0xE0:
        return (tag if tag < 0x80 else tag - 0x100), at
    if tag in _CONSTANTS:
        return _CONSTANTS[tag], at
    if tag in _NUMBERS:
        form = struct.Struct(_NUMBERS[tag])
        return form.unpack_from(content, at)[0], at + form.size
    if tag in _SIZED:
        size = int.from_bytes(content[at : at + _SIZED[tag]], "big")
        at += _SIZED[tag]
    else:
        size = tag & (0x1F if tag >= 0xA0 else 0x0F)
    if 0xA0 <= tag < 0xC0 or 0xD9 <= tag <= 0xDB:
        return content[at : at + size].decode(), at + size
    if 0xC4 <= tag <= 0xC6:
        return content[at : at + size], at + size
    items = []
    is_map = tag < 0x90 or tag >= 0xDE
    for _ in range(size * (2 if is_map else 1)):
        item, at = decode(content, at)
        items.append(item)
    return (dict(zip(items[::2], items[1::2], strict=True)) if is_map else items), at
