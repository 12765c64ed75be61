"""The ring's producer in pure Python: what the C accelerator does, in the same layout, without a compiler.

How a record is written whole or not at all, with threads and signals about:

1. A position is reserved by one step of an iterator over free positions, which is atomic under the GIL. It is the step of a `for` loop,
   not a call: between it and the commit nothing runs (neither another thread nor a signal handler) on CPython 3.11 and later.
2. The clock is read and the value prepared before the reservation.
3. The commit word is one aligned 8-byte store. x86-64 shows stores in order; elsewhere, and in a build without the GIL, every record
   passes through the lock instead of the fast path.
4. What is rare (a new chunk of positions, values in the byte ring, full rings) happens under a lock that the thread may hold already,
   because it is in a signal handler: then the event is dropped as `reentrant`, never waited for.
"""

from __future__ import annotations

import math
import mmap
import operator
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic
from time import time as now
from typing import Any

from taba import ring
from taba.bounds import MAX_EXACT_INT, MAX_TIME, MAX_VALUE_BYTES
from taba.client.encode import Refused, encode
from taba.client.timing import time as _time

CHUNK = 1024  # positions offered at once, at most: often enough for a look at the ring, rarely enough to cost nothing
LOOK_EVERY = 1.0  # seconds between two looks at a full ring
MAX_TRIES = 4

# what attend() is told instead of a drop reason
NO_PLACE = -1
RETIRED = -2
HALF_FULL = -3

_REASON = {reason: place for place, reason in enumerate(ring.DROP_REASONS)}
_RING_FULL, _BYTES_FULL = _REASON["ring_full"], _REASON["bytes_full"]
_DIRECTORY_FULL, _REENTRANT = _REASON["directory_full"], _REASON["reentrant"]
_TAIL, _BYTE_TAIL, _RETIRED, _DROPS = (
    offset // 8 for offset in (ring.TAIL_OFFSET, ring.BYTE_TAIL_OFFSET, ring.RETIRED_OFFSET, ring.DROPS_OFFSET)
)
_BUILT_IN = frozenset((type(None), bool, int, float, str, bytes, list, tuple, dict))  # no code of theirs is called
_MADV_WIPEONFORK = 18
_IS_ORDERED = os.uname().machine == "x86_64" and getattr(sys, "_is_gil_enabled", lambda: True)()

Chunk = tuple[Iterator[int], int, Any, Any, Any, Any]
_NO_CHUNK: Chunk = (iter(()), 0, None, None, None, (1,))


class _Ring:
    """One ring as its producer sees it. `chunk` is all that the fast path needs: (free, lap word, times, values, commits, guard).

    `times`, `values` and `commits` are views that begin one word after the other, so that one index fits a record's three words.
    """

    __slots__ = ("byte_head", "chunk", "commits", "content", "free", "lap", "next", "skipped", "times", "values", "where", "words")

    def __init__(self, where: ring.Layout | None = None, mapping: Any = None):
        self.chunk: Chunk = _NO_CHUNK
        self.free: Iterator[int] = iter(())
        self.lap = 0
        self.next = 0  # the first position after the chunk
        self.byte_head = 0
        self.skipped = 0
        if where is not None:
            self.where = where
            self.content = memoryview(mapping)
            self.words = self.content.cast("Q")
            self.times = self.content.cast("d")
            self.values = self.times[1:]
            self.commits = self.words[2:]

    @property
    def position(self) -> int:
        """The position of the next record."""
        return self.next - operator.length_hint(self.free)

    def forget(self) -> None:
        """Hold no view any more."""
        del self.commits, self.values, self.times, self.words, self.content

    def release(self) -> None:
        """Release all views, whoever holds them: in a forked child the frames of the parent's threads do, for ever."""
        for view in (self.commits, self.values, self.times, self.words, self.content):
            view.release()
        self.forget()

    def refill(self, guard: Any) -> bool:
        """Offer the next chunk of free positions; False where the ring is full."""
        where = self.where
        free = where.records - (self.next - self.words[_TAIL])
        if not 0 < free <= where.records:
            return False
        slot = self.next & (where.records - 1)
        count = min(free, where.records - slot, CHUNK, where.records // 8)
        first = where.record_offset // 8 + ring.RECORD_WORDS * slot
        self.lap = ring.commit_word(0, 0, ring.lap_of(self.next, where.records))
        self.next += count
        self.free = iter(range(first, first + ring.RECORD_WORDS * count, ring.RECORD_WORDS))
        if _IS_ORDERED:
            self.chunk = (self.free, self.lap, self.times, self.values, self.commits, guard)
        return True


_NO_RING = _Ring()  # where a Tab is that has no place
_NO_ROOM = _Ring()  # where a Tab is that the directory has no room for


class Port:
    """The producer's side of one ring after another; attend(tab, why) does what is rare. Same interface as the accelerator's."""

    def __init__(self, attend: Callable[[Any, int], bool]):
        self._attend = attend
        self._ring: _Ring | None = None
        self._guard_page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        try:
            self._guard_page.madvise(_MADV_WIPEONFORK)
            self._wipes = True
        except OSError:  # before Linux 4.14: only children that Python forked are told apart, by the after-fork hook
            self._wipes = False
        self._guard = memoryview(self._guard_page)
        self._start_afresh()

    def _start_afresh(self) -> None:
        self.lock = threading.RLock()  # also the Producer's: two would be taken in both orders
        self._busy = False
        self._looked = self._half_looked = -math.inf
        self._before = 0
        self._totals = [0] * ring.MAX_DROP_REASONS
        self._pending = [0] * ring.MAX_DROP_REASONS
        self._uncounted: deque[tuple[int, int]] = deque()
        self._counting = False
        self._guard[0] = 1

    # --- one ring after another

    def open(self, mapping: Any, record_offset: int, records: int, byte_ring_offset: int, byte_ring_bytes: int, max_value: int) -> None:
        """Record into this ring."""
        self.close()
        opened = _Ring(ring.layout(records * 32), mapping)
        for place, count in enumerate(self._pending):
            opened.words[_DROPS + place] = count
        self._pending = [0] * ring.MAX_DROP_REASONS
        self._ring = opened

    def close(self) -> None:
        """Leave the ring. It is unmapped when the last thread has left it."""
        with self.lock:
            left, self._ring = self._ring, None
            if left is not None:
                left.chunk = _NO_CHUNK
                self._before += left.position - left.skipped
                left.forget()  # the Tabs hold the ring until they get a place in the next

    def reset(self) -> None:
        """Leave the ring and forget all counts: a forked child begins."""
        left, self._ring = self._ring, None
        if left is not None:
            left.chunk = _NO_CHUNK
            left.release()
        self._start_afresh()

    def is_forked(self) -> bool:
        """Whether this process is a child that the after-fork hook has not seen."""
        return not self._guard[0]

    @property
    def is_open(self) -> bool:
        """Whether there is a ring."""
        return self._ring is not None

    @property
    def recorded(self) -> int:
        """Events recorded by this process."""
        current = self._ring
        return self._before + (current.position - current.skipped if current is not None else 0)

    @property
    def position(self) -> int:
        """The position of the next record in this ring."""
        return self._ring.position if self._ring is not None else 0

    def place(self, tab: Tab, id: int | None) -> None:
        """The Tab's id in this ring; None where the directory is full."""
        assert self._ring is not None
        tab._place = (_NO_ROOM, self._ring) if id is None else (self._ring, id)

    def has(self, tab: Tab) -> bool:
        """Whether the Tab has been given its place in this ring."""
        at, word = tab._place
        return self._ring is not None and (at is self._ring or (at is _NO_ROOM and word is self._ring))

    # --- counts

    def count(self, reason: int, times: int = 1) -> None:
        """Count drops, in the header where there is one; exact with threads and signal handlers."""
        self._uncounted.append((reason, times))
        with self.lock:
            if self._counting:
                return  # a signal handler within the loop below, which goes on
            self._counting = True
            try:
                while self._uncounted:
                    place, more = self._uncounted.popleft()
                    self._totals[place] += more
                    if self._ring is None:
                        self._pending[place] += more
                    else:
                        self._ring.words[_DROPS + place] += more
            finally:
                self._counting = False

    def totals(self) -> list[int]:
        """Drops of this process by reason."""
        return list(self._totals)

    # --- recording

    def time_of(self, given: Any) -> float | None:
        """`given` as Unix seconds; None, counted, for what is no number from 0 to MAX_TIME."""
        number = given if isinstance(given, (int, float)) else _as_number(given)
        if number is not None and number is not True and number is not False:
            seconds = _as_float(number)
            if seconds is not None and 0 <= seconds <= MAX_TIME:
                return seconds
        self.count(_REASON["bad_time"])
        return None

    def record_slowly(self, tab: Tab, seconds: float, value: float) -> None:
        """Record a float where the fast path found no free position."""
        with self.lock:
            if self._busy:
                self.count(_REENTRANT)
                return
            self._busy = True
            try:
                at = self._find_room(tab)
                if at is not None:
                    self._write(at, tab, seconds, value)
            finally:
                self._busy = False

    def record_bytes(self, tab: Tab, seconds: float, value: Any) -> None:
        """Record a value that is no float."""
        if type(value) not in _BUILT_IN:
            number = _as_number(value)
            if number is None:
                self.count(_REASON["value_type"])
                return
            if (small := _as_float(number)) is not None:
                tab.record(small, seconds)
                return
            value = number
        try:
            # the bound of the ring that there is; _write_bytes() looks again at that of the ring that takes it
            content = encode(value, self._ring.where.max_value_bytes if self._ring is not None else MAX_VALUE_BYTES)
        except Refused as refusal:
            self.count(_REASON[refusal.reason])
            return
        with self.lock:
            if self._busy:
                self.count(_REENTRANT)
                return
            self._busy = True
            try:
                self._write_bytes(tab, seconds, content)
            finally:
                self._busy = False

    def _write_bytes(self, tab: Tab, seconds: float, content: bytes) -> None:
        for _ in range(MAX_TRIES):
            at = self._find_room(tab)
            if at is None:
                return
            where, length, begin = at.where, len(content), at.byte_head
            if length > where.max_value_bytes:
                self.count(_REASON["value_too_large"])
                return
            if not 0 <= begin - at.words[_BYTE_TAIL] <= where.byte_ring_bytes - length:
                if self._look(tab, _BYTES_FULL):
                    continue
                return
            slot = begin & (where.byte_ring_bytes - 1)
            first = min(length, where.byte_ring_bytes - slot)
            offset = where.byte_ring_offset
            at.content[offset + slot : offset + slot + first] = content[:first]
            at.content[offset : offset + length - first] = content[first:]
            # the bytes of a record that is interrupted now are a gap, which the next value's release passes over
            at.byte_head = begin + length
            self._write(at, tab, seconds, None, ring.value_word(length, begin))
            return
        self.count(_BYTES_FULL)

    def _find_room(self, tab: Tab) -> _Ring | None:
        """The ring, with a free position in its chunk and a place for the Tab; None after a counted drop."""
        for _ in range(MAX_TRIES):
            at = self._ring
            if at is None or not self.has(tab) or not self._guard[0]:
                if not self._attend(tab, NO_PLACE):
                    return None
            elif at.words[_RETIRED]:
                if not self._attend(tab, RETIRED):
                    return None
            elif tab._place[0] is _NO_ROOM:
                self.count(_DIRECTORY_FULL)
                return None
            elif operator.length_hint(at.free):
                return at
            elif at.next - at.words[_TAIL] > at.where.records // 2 and monotonic() - self._half_looked >= LOOK_EVERY:
                self._half_looked = monotonic()
                # why is it so full? a hole is left behind before it costs an event
                if not self._attend(tab, HALF_FULL):
                    return None
            elif not at.refill(self._guard) and not self._look(tab, _RING_FULL):
                return None
        self.count(_RING_FULL)
        return None

    def _look(self, tab: Tab, reason: int) -> bool:
        """Whether to try again after a full ring: at most once a second somebody looks why. False: dropped and counted."""
        if self._look_is_due():
            return self._attend(tab, reason)
        self.count(reason)
        return False

    def _look_is_due(self) -> bool:
        if monotonic() - self._looked < LOOK_EVERY:
            return False
        self._looked = monotonic()
        return True

    def _write(self, at: _Ring, tab: Tab, seconds: float, value: float | None, value_word: int = 0) -> None:
        """Write a record at the next free position; taken by a thread on the fast path, the event is dropped as ring_full."""
        id = tab._place[1]
        index = -1
        flags = 0 if value is not None else ring.FLAG_BYTES
        while True:
            commit = id | flags << ring.FLAGS_SHIFT | at.lap
            try:
                for index in at.free:
                    at.times[index] = seconds
                    if value is not None:
                        at.values[index] = value
                    else:
                        at.words[index + 1] = value_word
                    if not _IS_ORDERED:
                        with self.lock:  # orders the stores above before the one below
                            pass
                    at.commits[index] = commit
                    return
            except BaseException:
                # a signal handler's exception: give the position back
                if index >= 0 and at.commits[index] != commit:
                    at.commits[index] = ring.FLAG_SKIP << ring.FLAGS_SHIFT | at.lap
                    at.skipped += 1
                raise
            if not at.refill(self._guard):  # threads on the fast path took the rest of the chunk
                self.count(_RING_FULL)
                return


def _as_float(value: Any) -> float | None:
    """A number that a float holds exactly, by its content (a subclass's methods are not called); None for any other value."""
    if isinstance(value, float):
        return float.__pos__(value)
    if isinstance(value, int) and value is not True and value is not False:
        whole = int.__int__(value)
        return float(whole) if -MAX_EXACT_INT <= whole <= MAX_EXACT_INT else None
    return None


def _as_number(value: Any) -> int | float | None:
    """What an object of another type says that it is as a number, such as numpy's scalars and Decimal; None where it says nothing."""
    kind = type(value)
    for method, convert in (("__index__", operator.index), ("__float__", float)):
        try:
            if hasattr(kind, method):
                number: int | float = convert(value)
                return number
        except Exception:
            continue  # its own code failed: the caller counts the drop
    return None


class Tab:
    """A named series of any Type."""

    __slots__ = ("_name", "_place", "_port", "_type")

    def __init__(self, port: Port, name: str, type: str):
        self._port = port
        self._name = name
        self._type = type
        self._place: tuple[_Ring, Any] = (_NO_RING, 0)

    @property
    def name(self) -> str:
        """The canonical name."""
        return self._name

    @property
    def type(self) -> str:
        """The Type."""
        return self._type

    def __repr__(self) -> str:
        return f"<Tab {self._type} {self._name}>"

    def record(self, value: Any, time: float | None = None) -> None:
        """Record one Event; time in Unix seconds, now if None. Never raises and never waits: what cannot be recorded is counted."""
        if time is None:
            seconds = now()
        else:
            given = self._port.time_of(time)
            if given is None:
                return
            seconds = given
        if type(value) is not float:
            number = _as_float(value)
            if number is None:
                self._port.record_bytes(self, seconds, value)
                return
            value = number
        at, id = self._place
        free, lap, times, values, commits, guard = at.chunk
        if guard[0]:
            for index in free:
                times[index] = seconds
                values[index] = value
                commits[index] = lap | id
                return
        self._port.record_slowly(self, seconds, value)


class Counter(Tab):
    """Counts."""

    __slots__ = ()

    def inc(self, n: Any = 1.0, time: float | None = None) -> None:
        """Count n."""
        self.record(n, time)


class Percentile(Tab):
    """Percentiles of values."""

    __slots__ = ()

    observe = Tab.record
    time = _time


class Gauge(Tab):
    """The last value."""

    __slots__ = ()

    set = Tab.record


class UpDown(Tab):
    """A number that goes up and down."""

    __slots__ = ()

    def inc(self, n: Any = 1.0, time: float | None = None) -> None:
        """n more."""
        self.record(n, time)

    def dec(self, n: Any = 1.0, time: float | None = None) -> None:
        """n fewer."""
        if isinstance(n, float):
            self.record(float.__neg__(n), time)
        elif isinstance(n, int) and n is not True and n is not False:
            self.record(int.__neg__(n), time)
        elif type(n) not in _BUILT_IN and (number := _as_number(n)) is not None:
            self.record(-number, time)
        else:
            self._port.count(_REASON["value_type"])
