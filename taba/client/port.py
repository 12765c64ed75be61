"""The pure producer's Port: one ring after another, the counts beside it, and all of recording that is rare.

What is reserved, prepared and stored in which order is said in `taba/client/pure.py`.
"""

from __future__ import annotations

import math
import mmap
import operator
from _thread import RLock  # not threading's, which others replace
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any, Protocol, TypeGuard

from taba import ring
from taba.bounds import MAX_TIME, MAX_VALUE_BYTES
from taba.client.encode import Refused, encode
from taba.client.harmless import WAIT_SECONDS, acquire_within, is_foreign
from taba.client.numbers import BUILT_IN, as_float, as_number
from taba.client.own_ring import IS_ORDERED, NO_CHUNK, NO_ROOM, OwnRing

LOOK_EVERY = 1.0  # seconds between two looks at a full ring
MAX_TRIES = 4
READ_EVERY = 1.0  # seconds between two readings of what set_function() was given

# what attend() is told instead of a drop reason
NO_PLACE = -1
RETIRED = -2
HALF_FULL = -3
DUE = -4  # what set_function() was given is to be read

REASON = {reason: place for place, reason in enumerate(ring.DROP_REASONS)}
_RING_FULL, _BYTES_FULL = REASON["ring_full"], REASON["bytes_full"]
_DIRECTORY_FULL, _REENTRANT, _EXHAUSTED = REASON["directory_full"], REASON["reentrant"], REASON["exhausted"]
VALUE_TYPE, _VALUE_TOO_LARGE = REASON["value_type"], REASON["value_too_large"]
_TAIL, _BYTE_TAIL, _RETIRED = (offset // 8 for offset in (ring.TAIL_OFFSET, ring.BYTE_TAIL_OFFSET, ring.RETIRED_OFFSET))
_MADV_WIPEONFORK = 18
_COUNT, _USED = ring.DIRECTORY_COUNT_OFFSET // 8, ring.DIRECTORY_USED_OFFSET // 8


class Recording(Protocol):
    """A Tab, as its Port sees it."""

    is_healing: bool
    _place: tuple[OwnRing, Any]

    def record(self, value: Any, time: float | None = None) -> None: ...


class Changing(Recording, Protocol):
    """A Tab that goes by the number that it had."""

    _changes: deque[float]
    _is_changing: bool

    @property
    def net(self) -> float: ...


class Summing(Recording, Protocol):
    """A Tab that heals: it knows its sum, and where its cell is."""

    _cell: int
    _net: float

    @property
    def net(self) -> float: ...

    def add(self, value: float) -> None: ...


def sums(tab: Recording) -> TypeGuard[Summing]:
    """Whether this Tab heals."""
    return tab.is_healing


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
        self._ring: OwnRing | None = None
        self.life = 0
        self.born = 0.0  # when this process was found forked, in seconds of monotonic(), which is perf_counter() here; 0 where it was not
        self.exhausted = 0  # events that could not even be counted where they were dropped
        self._guard_page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # before Linux 4.14: only children that Python forked are told apart, by the after-fork hook
            self._guard_page.madvise(_MADV_WIPEONFORK)
        self._guard = memoryview(self._guard_page)
        self._start_afresh()

    def _start_afresh(self) -> None:
        self.lock = RLock()  # also the Producer's: two would be taken in both orders
        self._busy = False
        self._later: deque[tuple[Summing, float]] = deque()  # what signal handlers added while the lock was theirs
        self._looked = self._half_looked = -math.inf
        self._before = 0
        self._totals = [0] * ring.MAX_DROP_REASONS
        self._pending = [0] * ring.MAX_DROP_REASONS
        self._uncounted: deque[tuple[int, int]] = deque()
        self._counting = False
        self._is_orphan = False
        self.born = monotonic() if self.life else 0.0
        self.life += 1
        self._guard[0] = 1

    # --- one ring after another

    def open(self, mapping: Any, counts: int = ring.DROPS_OFFSET) -> None:
        """Record into this ring, whose counts lie at `counts`; into one without records, count only."""
        self.close()
        opened = OwnRing(ring.layout(len(memoryview(mapping))), mapping, counts)
        for place, count in enumerate(self._pending):
            opened.words[opened.drops + place] += count  # a place that only counts has what its earlier holders counted
        self._pending = [0] * ring.MAX_DROP_REASONS
        self._ring = opened

    def close(self) -> None:
        """Leave the ring. It is unmapped when the last thread has left it."""
        with self.lock:
            left, self._ring = self._ring, None
            if left is not None:
                left.chunk = NO_CHUNK
                self._before += left.position - left.skipped
                left.forget()  # the Tabs hold the ring until they get a place in the next

    def reset(self) -> None:
        """Leave the ring and forget all counts: a forked child begins."""
        if self._is_orphan:  # it has begun
            self._is_orphan = False
            return
        left, self._ring = self._ring, None
        if left is not None:
            left.chunk = NO_CHUNK
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

    def enter(self, tab: Recording, id: int, entry: bytes, position: int, has_cell: bool) -> None:
        """Publish the Tab's entry, and give it its place. Signal handlers meanwhile add nothing: the lock is held."""
        at = self._ring
        assert at is not None
        begin = ring.HEADER_BYTES + position
        at.content[begin : begin + len(entry)] = entry
        cell = (begin + ring.ENTRY_BYTES) // 8
        if has_cell and sums(tab):
            at.times[cell + ring.OWED_OFFSET // 8] = tab.net
            tab._cell = cell
        at.words[_USED] = position + len(entry)
        with self.lock:  # orders the stores above before the one below, where the processor does not
            at.words[_COUNT] = id + 1
        tab._place = (at, id)

    def refuse(self, tab: Recording) -> None:
        """The directory has no room for this Tab."""
        tab._place = (NO_ROOM, self._ring)

    def read_often(self, is_reading: bool) -> None:
        """Whether there are functions to read: attend(tab, DUE), once a second, from what records."""
        with self.lock:
            self._is_reading = is_reading
            if monotonic() - self._read_at >= READ_EVERY:
                self._read_at = monotonic()  # what is given is read by whoever gives it
            if is_reading and self._ring is not None:
                self._ring.chunk = NO_CHUNK

    def has(self, tab: Recording) -> bool:
        """Whether the Tab has been given its place in this ring, or been refused one."""
        at, word = tab._place
        return self._ring is not None and (at is self._ring or (at is NO_ROOM and word is self._ring))

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
        number = given if isinstance(given, (int, float)) else as_number(given)
        if number is not None and number is not True and number is not False:
            seconds = as_float(number)
            if seconds is not None and 0 <= seconds <= MAX_TIME:
                return seconds
        self.count(REASON["bad_time"])
        return None

    def record(self, tab: Recording, seconds: float, value: float | None, content: bytes = b"") -> None:
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
            if is_foreign is not None and is_foreign(error):
                raise
            self.exhausted += 1

    def record_any(self, tab: Recording, seconds: float, value: Any) -> None:
        """Record a value that is no float."""
        if type(value) not in BUILT_IN or (tab.is_healing and type(value) is int):
            number = None if tab.is_healing else as_number(value)  # what heals has looked for one
            if number is None:
                self.count(VALUE_TYPE)
                return
            if (small := as_float(number)) is not None:
                tab.record(small, seconds)
                return
            value = number
        try:
            # the bound of the ring that there is; _write_bytes() looks again at that of the ring that takes it
            most = self._ring.where.max_value_bytes if self._ring is not None else 0
            content = encode(value, most or MAX_VALUE_BYTES)
        except Refused as refusal:
            self.count(REASON[refusal.reason])
            return
        self.record(tab, seconds, None, content)

    def change(self, gauge: Changing, n: float, seconds: float) -> None:
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

    def _drop_later(self, tab: Recording, value: float | None, has_waited: bool = False) -> None:
        """The ring is somebody else's now, who does not come to an end in time: what is summed is owed by him, the rest is dropped."""
        if value is not None and sums(tab):
            self._later.append((tab, value))
        elif has_waited:
            self._uncounted.append((_REENTRANT, 1))  # whoever counts next counts this, too: for the same lock nobody waits twice
        else:
            self.count(_REENTRANT)

    def _drop(self, tab: Recording, value: float | None, reason: int) -> None:
        """No record was written: counted, or where the Tab sums, owed."""
        if value is None or not sums(tab) or not math.isfinite(value):
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

    def _write_bytes(self, tab: Recording, seconds: float, content: bytes) -> int | None:
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

    def _write(self, tab: Recording, seconds: float, value: float) -> int | None:
        at = self._find_room(tab)
        return at if isinstance(at, int) else self._commit(at, tab, seconds, value)

    def _find_room(self, tab: Recording) -> OwnRing | int:
        """The ring, with a free position in its chunk and a place for the Tab; else the reason for the drop."""
        for _ in range(MAX_TRIES):
            at = self._ring
            reason: int | None = None
            if at is None or not self.has(tab) or not at.where.records:
                reason = self._attend(tab, NO_PLACE)
            elif at.words[_RETIRED]:
                reason = self._attend(tab, RETIRED)
            elif tab._place[0] is NO_ROOM:
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

    def _look(self, tab: Recording, reason: int) -> int | None:
        """After a full ring: at most once a second somebody looks why. None: try again."""
        if monotonic() - self._looked < LOOK_EVERY:
            return reason
        self._looked = monotonic()
        return self._attend(tab, reason)

    def _commit(self, at: OwnRing, tab: Recording, seconds: float, value: float | None, value_word: int = 0) -> int | None:
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
                    if not IS_ORDERED:
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
