"""The ring's producer in pure Python: what the C accelerator does, in the same layout, without a compiler.

How a record is written whole or not at all, with threads and signals about:

1. A position is reserved by one step of an iterator over free positions, which is atomic under the GIL. It is the step of a `for` loop,
   not a call: between it and the commit nothing runs (neither another thread nor a signal handler) on CPython 3.11 and later.
2. The clock is read and the value prepared before the reservation.
3. The commit word is one aligned 8-byte store. x86-64 shows stores in order; elsewhere, and in a build without the GIL, every record
   passes through the lock instead of the fast path.
4. What is rare (a new chunk of positions, values in the byte ring, full rings) happens under a lock that the thread may hold already,
   because it is in a signal handler: then the event is dropped as `reentrant`, never waited for. For another thread it waits, but for no
   more than WAIT_SECONDS.
5. A Tab that heals sums what it records, under the lock always: the sum and the ring never disagree. What finds no room is owed: added to
   the Tab's cell in the directory. A new ring's cell begins with the sum.
6. Nothing raises because of Taba: no memory, no stack, and modules that are gone at the interpreter's end drop the event. What a signal
   handler raises is the application's, and passes.
"""

from __future__ import annotations

import math
import mmap
import operator
import os
import sys
from _thread import RLock  # not threading's, which others replace
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from time import monotonic, sleep
from time import time as now
from typing import Any

from taba import ring
from taba.bounds import MAX_EXACT_INT, MAX_TIME, MAX_VALUE_BYTES
from taba.client.encode import Refused, encode
from taba.client.metering import Meter as Meter  # as the accelerator has it
from taba.client.timing import count_exceptions as _count_exceptions
from taba.client.timing import time as _time
from taba.client.timing import track as _track

CHUNK = 1024  # positions offered at once, at most: often enough for a look at the ring, rarely enough to cost nothing
LOOK_EVERY = 1.0  # seconds between two looks at a full ring
MAX_TRIES = 4
WAIT_SECONDS = 1.0  # for another thread that makes a ring: a thousand times as long as that takes; on a host with ten processes a core
# a tenth of it was too short. Then the event is dropped
FIRST_PAUSE, MOST_PAUSE = 0.0001, 0.01  # seconds between two looks whether a lock is free
READ_EVERY = 1.0  # seconds between two readings of what set_function() was given
MAX_LABELLED = 10_000  # sets of labels that a Tab finds again by itself; others are looked up by name

# what attend() is told instead of a drop reason
NO_PLACE = -1
RETIRED = -2
HALF_FULL = -3
DUE = -4  # what set_function() was given is to be read

_REASON = {reason: place for place, reason in enumerate(ring.DROP_REASONS)}
_RING_FULL, _BYTES_FULL = _REASON["ring_full"], _REASON["bytes_full"]
_DIRECTORY_FULL, _REENTRANT, _EXHAUSTED = _REASON["directory_full"], _REASON["reentrant"], _REASON["exhausted"]
_VALUE_TYPE, _VALUE_TOO_LARGE = _REASON["value_type"], _REASON["value_too_large"]
_TAIL, _BYTE_TAIL, _RETIRED = (offset // 8 for offset in (ring.TAIL_OFFSET, ring.BYTE_TAIL_OFFSET, ring.RETIRED_OFFSET))
_BUILT_IN = frozenset((type(None), bool, int, float, str, bytes, list, tuple, dict))  # no code of theirs is called
_MADV_WIPEONFORK = 18
_COUNT, _USED = ring.DIRECTORY_COUNT_OFFSET // 8, ring.DIRECTORY_USED_OFFSET // 8
_IS_ORDERED = os.uname().machine == "x86_64" and getattr(sys, "_is_gil_enabled", lambda: True)()

Chunk = tuple[Iterator[int], int, Any, Any, Any, Any]
_NO_CHUNK: Chunk = (iter(()), 0, None, None, None, (1,))


class _Ring:
    """One ring as its producer sees it. `chunk` is all that the fast path needs: (free, lap word, times, values, commits, guard).

    `drops` is the word at which its counts begin. `times`, `values` and `commits` are views that begin one word after the other, so that
    one index fits a record's three words.
    """

    __slots__ = ("byte_head", "chunk", "commits", "content", "drops", "free", "lap", "next", "skipped", "times", "values", "where", "words")

    def __init__(self, where: ring.Layout | None = None, mapping: Any = None, counts: int = ring.DROPS_OFFSET):
        self.chunk: Chunk = _NO_CHUNK
        self.free: Iterator[int] = iter(())
        self.lap = 0
        self.next = 0  # the first position after the chunk
        self.byte_head = 0
        self.skipped = 0
        if where is not None:
            self.where, self.drops = where, counts // 8
            self.content = memoryview(mapping)[: where.size]
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

    def refill(self, guard: Any, is_fast: bool) -> bool:
        """Offer the next chunk of free positions, also to the fast path; False where the ring is full."""
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
        if _IS_ORDERED and is_fast:
            self.chunk = (self.free, self.lap, self.times, self.values, self.commits, guard)
        return True


_NO_RING = _Ring()  # where a Tab is that has no place
_NO_ROOM = _Ring()  # where a Tab is that the directory has no room for


class Port:
    """The producer's side of one ring after another. Same interface as the accelerator's.

    attend(tab, why) does what is rare, and returns None to try again, or the reason for the drop; label(tab, labels) gives Tabs;
    follow(tab, function) keeps what set_function() is given.
    """

    def __init__(
        self,
        attend: Callable[[Any, int], int | None],
        label: Callable[[Any, dict[str, Any]], Any],
        follow: Callable[[Any, Callable[[], Any] | None], None],
    ):
        self._attend = attend
        self.label = label
        self.follow = follow
        self._read_at = -math.inf
        self._is_reading = False  # there are functions to read: no record takes the fast path, each looks whether it is time
        self._ring: _Ring | None = None
        self.life = 0
        self.exhausted = 0  # events that could not even be counted where they were dropped
        self._guard_page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # before Linux 4.14: only children that Python forked are told apart, by the after-fork hook
            self._guard_page.madvise(_MADV_WIPEONFORK)
        self._guard = memoryview(self._guard_page)
        self._start_afresh()

    def _start_afresh(self) -> None:
        self.lock = RLock()  # also the Producer's: two would be taken in both orders
        self._busy = False
        self._later: deque[tuple[UpDown, float]] = deque()  # what signal handlers added while the lock was theirs
        self._looked = self._half_looked = -math.inf
        self._before = 0
        self._totals = [0] * ring.MAX_DROP_REASONS
        self._pending = [0] * ring.MAX_DROP_REASONS
        self._uncounted: deque[tuple[int, int]] = deque()
        self._counting = False
        self._is_orphan = False
        self.life += 1
        self._guard[0] = 1

    # --- one ring after another

    def open(self, mapping: Any, counts: int = ring.DROPS_OFFSET) -> None:
        """Record into this ring, whose counts lie at `counts`; into one without records, count only."""
        self.close()
        opened = _Ring(ring.layout(len(memoryview(mapping))), mapping, counts)
        for place, count in enumerate(self._pending):
            opened.words[opened.drops + place] += count  # a place that only counts has what its earlier holders counted
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
        if self._is_orphan:  # it has begun
            self._is_orphan = False
            return
        left, self._ring = self._ring, None
        if left is not None:
            left.chunk = _NO_CHUNK
            left.release()
        self._start_afresh()

    def notice_fork(self) -> None:
        """In a forked child that no hook has told: leave the parent's ring. What is counted from now on is the child's."""
        if not self._guard[0]:
            self.reset()
            self._is_orphan = True

    def is_forked(self) -> bool:
        """Whether this process is a child that reset() has not heard of."""
        self.notice_fork()
        return self._is_orphan

    @property
    def is_open(self) -> bool:
        """Whether there is a ring that takes records."""
        return self._ring is not None and self._ring.where.records > 0

    @property
    def recorded(self) -> int:
        """Events recorded by this process."""
        self.notice_fork()
        current = self._ring
        return self._before + (current.position - current.skipped if current is not None else 0)

    @property
    def position(self) -> int:
        """The position of the next record in this ring."""
        return self._ring.position if self._ring is not None else 0

    def enter(self, tab: Tab, id: int, entry: bytes, position: int, has_cell: bool) -> None:
        """Publish the Tab's entry, and give it its place. Signal handlers meanwhile add nothing: the lock is held."""
        at = self._ring
        assert at is not None
        begin = ring.HEADER_BYTES + position
        at.content[begin : begin + len(entry)] = entry
        cell = (begin + ring.ENTRY_BYTES) // 8
        if has_cell and isinstance(tab, UpDown):
            at.times[cell + ring.OWED_OFFSET // 8] = tab.net
            tab._cell = cell
        at.words[_USED] = position + len(entry)
        with self.lock:  # orders the stores above before the one below, where the processor does not
            at.words[_COUNT] = id + 1
        tab._place = (at, id)

    def refuse(self, tab: Tab) -> None:
        """The directory has no room for this Tab."""
        tab._place = (_NO_ROOM, self._ring)

    def read_often(self, is_reading: bool) -> None:
        """Whether there are functions to read: attend(tab, DUE), once a second, from what records."""
        with self.lock:
            self._is_reading = is_reading
            if monotonic() - self._read_at >= READ_EVERY:
                self._read_at = monotonic()  # what is given is read by whoever gives it
            if is_reading and self._ring is not None:
                self._ring.chunk = _NO_CHUNK

    def has(self, tab: Tab) -> bool:
        """Whether the Tab has been given its place in this ring, or been refused one."""
        at, word = tab._place
        return self._ring is not None and (at is self._ring or (at is _NO_ROOM and word is self._ring))

    # --- counts

    def count(self, reason: int, times: int = 1) -> None:
        """Count drops, in the header where there is one; exact with threads and signal handlers."""
        self.notice_fork()
        self._uncounted.append((reason, times))
        held = self.lock._is_owned()  # type: ignore[attr-defined]
        try:
            if not (held or acquire_within(self.lock, WAIT_SECONDS)):
                return  # whoever counts next counts this, too
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
                        self._ring.words[self._ring.drops + place] += more
            finally:
                self._counting = False
        finally:
            if not held:
                try:  # noqa: SIM105  # no call before the release, at which a signal handler could raise
                    self.lock.release()
                except RuntimeError:
                    pass  # it was not to be had

    def totals(self) -> list[int]:
        """Drops of this process by reason."""
        self.notice_fork()
        self._count_exhausted()
        if self._uncounted:
            self.count(_REENTRANT, 0)  # with those that a thread could not wait to count
        return list(self._totals)

    def _count_exhausted(self) -> None:
        while self.exhausted > 0:
            self.exhausted -= 1
            self.count(_EXHAUSTED)

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

    def record(self, tab: Tab, seconds: float, value: float | None, content: bytes = b"") -> None:
        """Record a float, or the bytes of another value, where the fast path found no free position. Never raises because of Taba."""
        try:
            self.notice_fork()  # before the lock: a thread that held it is not in this process
            held = self.lock._is_owned()  # type: ignore[attr-defined]
            if self._is_reading and not held and monotonic() - self._read_at >= READ_EVERY:
                self._read_at = monotonic()
                self._attend(tab, DUE)  # no lock is held: it calls what is the application's
            try:
                if not (held or acquire_within(self.lock, WAIT_SECONDS)):
                    self._drop_later(tab, value, has_waited=True)
                    return
                if self._busy:
                    self._drop_later(tab, value)
                    return
                self._busy = True
                try:
                    reason = self._write_bytes(tab, seconds, content) if value is None else self._write(tab, seconds, value)
                    if reason is not None:
                        self._drop(tab, value, reason)
                finally:
                    self._busy = False
                    while self._later:
                        self._drop(*self._later.popleft(), _REENTRANT)
                if self.exhausted:
                    self._count_exhausted()
            finally:
                if not held:
                    try:  # noqa: SIM105  # no call before the release, at which a signal handler could raise
                        self.lock.release()
                    except RuntimeError:
                        pass  # it was not to be had
        except (MemoryError, RecursionError):
            self.exhausted += 1  # no call: there is no stack for one
        except Exception as error:
            if _is_foreign is not None and _is_foreign(error):
                raise
            self.exhausted += 1

    def record_any(self, tab: Tab, seconds: float, value: Any) -> None:
        """Record a value that is no float."""
        if type(value) not in _BUILT_IN or (tab.is_healing and type(value) is int):
            number = None if tab.is_healing else _as_number(value)  # what heals has looked for one
            if number is None:
                self.count(_VALUE_TYPE)
                return
            if (small := _as_float(number)) is not None:
                tab.record(small, seconds)
                return
            value = number
        try:
            # the bound of the ring that there is; _write_bytes() looks again at that of the ring that takes it
            most = self._ring.where.max_value_bytes if self._ring is not None else 0
            content = encode(value, most or MAX_VALUE_BYTES)
        except Refused as refusal:
            self.count(_REASON[refusal.reason])
            return
        self.record(tab, seconds, None, content)

    def change(self, gauge: Gauge, n: float, seconds: float) -> None:
        """Record what a Gauge is with n more: one after the other, with threads and signal handlers."""
        self.notice_fork()
        gauge._changes.append(n)
        held = self.lock._is_owned()  # type: ignore[attr-defined]
        try:
            if not (held or acquire_within(self.lock, WAIT_SECONDS)):
                return  # whoever changes it next adds this, too
            if gauge._is_changing:
                return  # a signal handler within the loop below, which goes on
            gauge._is_changing = True
            try:
                while gauge._changes:
                    gauge.record(gauge.net + gauge._changes.popleft(), seconds)
            finally:
                gauge._is_changing = False
        finally:
            if not held:
                try:  # noqa: SIM105  # no call before the release, at which a signal handler could raise
                    self.lock.release()
                except RuntimeError:
                    pass  # it was not to be had

    def _drop_later(self, tab: Tab, value: float | None, has_waited: bool = False) -> None:
        """The ring is somebody else's now, who does not come to an end in time: what is summed is owed by him, the rest is dropped."""
        if value is not None and isinstance(tab, UpDown):
            self._later.append((tab, value))
        elif has_waited:
            self._uncounted.append((_REENTRANT, 1))  # whoever counts next counts this, too: for the same lock nobody waits twice
        else:
            self.count(_REENTRANT)

    def _drop(self, tab: Tab, value: float | None, reason: int) -> None:
        """No record was written: counted, or where the Tab sums, owed."""
        if value is None or not isinstance(tab, UpDown) or not math.isfinite(value):
            self.count(reason)
            return
        tab.add(value)
        at = self._ring
        if at is None or tab._place[0] is not at or at.words[_RETIRED]:
            self.count(reason)
            return
        at.times[tab._cell + ring.OWED_OFFSET // 8] += value
        with self.lock:  # orders: whoever reads the count finds at least so many events in the sum
            pass
        at.words[tab._cell + ring.OWED_EVENTS_OFFSET // 8] += 1
        with self.lock:
            pass
        at.words[ring.OWES_OFFSET // 8] += 1
        self._before += 1

    def _write_bytes(self, tab: Tab, seconds: float, content: bytes) -> int | None:
        for _ in range(MAX_TRIES):
            at = self._find_room(tab)
            if isinstance(at, int):
                return at
            where, length, begin = at.where, len(content), at.byte_head
            if length > where.max_value_bytes:
                return _VALUE_TOO_LARGE
            if not 0 <= begin - at.words[_BYTE_TAIL] <= where.byte_ring_bytes - length:
                reason = self._look(tab, _BYTES_FULL)
                if reason is not None:
                    return reason
                continue
            slot = begin & (where.byte_ring_bytes - 1)
            first = min(length, where.byte_ring_bytes - slot)
            offset = where.byte_ring_offset
            at.content[offset + slot : offset + slot + first] = content[:first]
            at.content[offset : offset + length - first] = content[first:]
            # the bytes of a record that is interrupted now are a gap, which the next value's release passes over
            at.byte_head = begin + length
            return self._commit(at, tab, seconds, None, ring.value_word(length, begin))
        return _BYTES_FULL

    def _write(self, tab: Tab, seconds: float, value: float) -> int | None:
        at = self._find_room(tab)
        return at if isinstance(at, int) else self._commit(at, tab, seconds, value)

    def _find_room(self, tab: Tab) -> _Ring | int:
        """The ring, with a free position in its chunk and a place for the Tab; else the reason for the drop."""
        for _ in range(MAX_TRIES):
            at = self._ring
            reason: int | None = None
            if at is None or not self.has(tab) or not at.where.records:
                reason = self._attend(tab, NO_PLACE)
            elif at.words[_RETIRED]:
                reason = self._attend(tab, RETIRED)
            elif tab._place[0] is _NO_ROOM:
                return _DIRECTORY_FULL
            elif operator.length_hint(at.free):
                return at
            elif at.next - at.words[_TAIL] > at.where.records // 2 and monotonic() - self._half_looked >= LOOK_EVERY:
                self._half_looked = monotonic()
                # why is it so full? a hole is left behind before it costs an event
                reason = self._attend(tab, HALF_FULL)
            elif not at.refill(self._guard, not self._is_reading):
                reason = self._look(tab, _RING_FULL)
            if reason is not None:
                return reason
        return _RING_FULL

    def _look(self, tab: Tab, reason: int) -> int | None:
        """After a full ring: at most once a second somebody looks why. None: try again."""
        if monotonic() - self._looked < LOOK_EVERY:
            return reason
        self._looked = monotonic()
        return self._attend(tab, reason)

    def _commit(self, at: _Ring, tab: Tab, seconds: float, value: float | None, value_word: int = 0) -> int | None:
        """Write a record at the next free position; RING_FULL where threads on the fast path took the last."""
        id = tab._place[1]
        index = -1
        flags = 0 if value is not None else ring.FLAG_BYTES
        adds = value if value is not None and tab.is_healing and math.isfinite(value) else None
        if adds is not None:
            tab.add(0.0)  # type: ignore[attr-defined]  # this process's sum from here on
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
                    if adds is not None:
                        tab._net += adds  # type: ignore[attr-defined]  # and no step between it and the next
                    at.commits[index] = commit
                    return None
            except BaseException:
                # a signal handler's exception: give the position back
                if index >= 0 and at.commits[index] != commit:
                    at.commits[index] = ring.FLAG_SKIP << ring.FLAGS_SHIFT | at.lap
                    at.skipped += 1
                raise
            if not at.refill(self._guard, not self._is_reading):
                return _RING_FULL


def acquire_within(lock: Any, seconds: float) -> bool:
    """Whether the lock was taken within so long, by a clock that nobody sets.

    Its own wait goes by the wall clock where the C library has no sem_clockwait, or Python was built for an older one: set back by an hour
    meanwhile, it waits an hour.
    """
    if lock.acquire(False):
        return True
    deadline, pause = monotonic() + seconds, FIRST_PAUSE
    while monotonic() < deadline:
        sleep(pause)
        if lock.acquire(False):
            return True
        pause = min(2 * pause, MOST_PAUSE)
    return False


def _is_foreign(error: BaseException) -> bool:
    """Whether code that is not Taba's raised this: a signal handler, say, that ran between two steps of Taba's."""
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    return not str(trace.tb_frame.f_globals.get("__name__")).startswith("taba.")


def _as_float(value: Any) -> float | None:
    """A number that a float holds exactly, by its content (a subclass's methods are not called); None for any other value."""
    if isinstance(value, float):
        return float.__pos__(value)
    if isinstance(value, int) and value is not True and value is not False:
        whole = int.__int__(value)
        return float(whole) if -MAX_EXACT_INT <= whole <= MAX_EXACT_INT else None
    return None


def _as_sum(value: Any) -> float | None:
    """A number as a float, which may hold it less exactly; None for what is none, or beyond all floats."""
    number = value if type(value) in _BUILT_IN else _as_number(value)
    if not isinstance(number, (int, float)) or number is True or number is False:
        return None
    try:
        return float.__pos__(number) if isinstance(number, float) else float(int.__int__(number))
    except OverflowError:
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

    __slots__ = ("_labelled", "_name", "_place", "_port", "_type")
    is_healing = False

    def __init__(self, port: Port, name: str, type: str, is_coarse: bool = False, is_healing: bool = False):
        # the pure ring's events always carry the exact clock: reading it costs little beside the rest
        self._port = port
        self._name = name
        self._type = type
        self._place: tuple[_Ring, Any] = (_NO_RING, 0)
        self._labelled: dict[Any, Tab] = {}

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

    def labels(self, **labels: str | int | bool) -> Any:
        """The Tab of this name with these labels too; the same object each time."""
        key = (*labels.items(), *map(type, labels.values()))  # True is 1, and not the same text
        try:
            return self._labelled[key]
        except (KeyError, TypeError):  # TypeError: a value that cannot be a key, and no label either
            tab: Tab = self._port.label(self, labels)
            if len(self._labelled) < MAX_LABELLED:
                self._labelled[key] = tab
            return tab

    def record(self, value: Any, time: float | None = None) -> None:
        """Record one Event; time in Unix seconds, now if None. Never raises, waits for no process: what cannot be recorded is counted."""
        try:
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
                    self._port.record_any(self, seconds, value)
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
            self._port.record(self, seconds, value)
        except (MemoryError, RecursionError):
            self._port.exhausted += 1
        except Exception as error:
            # at the interpreter's end modules are empty; before it, only what is not Taba's comes here
            if _is_foreign is not None and _is_foreign(error):
                raise
            self._port.exhausted += 1


_record = Tab.record


class Counter(Tab):
    """Counts."""

    __slots__ = ()

    def inc(self, n: Any = 1.0, time: float | None = None) -> None:
        """Count n."""
        try:
            self.record(n, time)
        except RecursionError:  # no stack for the call
            self._port.exhausted += 1

    count_exceptions = _count_exceptions


class Percentile(Tab):
    """Percentiles of values."""

    __slots__ = ()

    observe = Tab.record
    time = _time


class Gauge(Tab):
    """The last value. inc() and dec() go by the number that this process set last, 0 before the first.

    Where one thread sets while another changes it, either may be the last that is read; what the next change goes by is right.
    """

    __slots__ = ("_changes", "_is_changing", "_last", "_last_life")

    def __init__(self, port: Port, name: str, type: str, is_coarse: bool = False, is_healing: bool = False):
        super().__init__(port, name, type)
        self._changes: deque[float] = deque()
        self._is_changing = False
        self._last: Any = 0.0
        self._last_life = 0  # the process that set it

    @property
    def net(self) -> float:
        """The number that this process set last."""
        if self._last_life != self._port.life:
            return 0.0
        number = _as_sum(self._last)
        return number if number is not None and math.isfinite(number) else 0.0

    def record(self, value: Any, time: float | None = None) -> None:
        """The value from now on. Never raises, waits for no process: what cannot be recorded is counted."""
        try:
            self._last, self._last_life = value, self._port.life
            _record(self, value, time)
        except RecursionError:
            self._port.exhausted += 1

    set = record

    def inc(self, n: Any = 1.0, time: float | None = None) -> None:
        """n more."""
        self._change(n, time, 1.0)

    def dec(self, n: Any = 1.0, time: float | None = None) -> None:
        """n less."""
        self._change(n, time, -1.0)

    def _change(self, n: Any, time: float | None, sign: float) -> None:
        try:
            number = _as_sum(n)
            if number is None:
                self._port.count(_VALUE_TYPE)
                return
            seconds = now() if time is None else self._port.time_of(time)
            if seconds is not None:
                self._port.change(self, sign * number, seconds)
        except (MemoryError, RecursionError):
            self._port.exhausted += 1
        except Exception as error:
            if _is_foreign is not None and _is_foreign(error):
                raise
            self._port.exhausted += 1

    def set_function(self, function: Callable[[], Any] | None) -> None:
        """What it returns is the value, read once a second while this process records; None for no function."""
        self._port.follow(self, function)


class UpDown(Tab):
    """A number that goes up and down, and heals: what this process added is gone when it dies."""

    __slots__ = ("_cell", "_net", "_net_life")
    is_healing = True

    def __init__(self, port: Port, name: str, type: str, is_coarse: bool = False, is_healing: bool = True):
        super().__init__(port, name, type)
        self._cell = 0  # in words, while `_place` is in the ring
        self._net = 0.0
        self._net_life = 0  # the process whose sum `_net` is

    @property
    def net(self) -> float:
        """The sum of what this process recorded."""
        return self._net if self._net_life == self._port.life else 0.0

    def add(self, value: float) -> None:
        """Add to the sum; the Port's lock is held."""
        self._net, self._net_life = self.net + value, self._port.life

    def record(self, value: Any, time: float | None = None) -> None:
        """Add one value; time in Unix seconds, now if None. Never raises, waits for no process: what cannot be recorded is counted."""
        try:
            port = self._port
            seconds = now() if time is None else port.time_of(time)
            if seconds is None:
                return
            number = _as_float(value)
            if number is None:
                number = _as_sum(value)
                if number is None:
                    port.record_any(self, seconds, value)
                    return
            port.record(self, seconds, number)
        except (MemoryError, RecursionError):
            self._port.exhausted += 1
        except Exception as error:
            if _is_foreign is not None and _is_foreign(error):
                raise
            self._port.exhausted += 1

    def inc(self, n: Any = 1.0, time: float | None = None) -> None:
        """n more."""
        try:
            self.record(n, time)
        except RecursionError:
            self._port.exhausted += 1

    def dec(self, n: Any = 1.0, time: float | None = None) -> None:
        """n fewer."""
        try:
            if isinstance(n, float):
                self.record(float.__neg__(n), time)
            elif isinstance(n, int) and n is not True and n is not False:
                self.record(int.__neg__(n), time)
            elif type(n) not in _BUILT_IN and (number := _as_number(n)) is not None:
                self.record(-number, time)
            else:
                self._port.count(_VALUE_TYPE)
        except RecursionError:
            self._port.exhausted += 1

    track = _track
