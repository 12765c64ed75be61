"""One ring, read: records out, the tail moved when they are safe. Everything in the segment is hostile.

1. Commit words are read first, payload by a second read: what the first read found committed is whole in the second.
2. A hole (a reservation that its writer has not committed) is read past; the tail stops at it while the process lives.
   What is read beyond the tail is a covered range, which the outbox's table remembers; there are at most MAX_COVERED a ring.
   One producer commits in order: of a ring that says to be the accelerator's the last committed record is looked for by halves, and
   what is before it is read once. A ring of which that turns out to be untrue is read as all others from then on.
3. `read` changes nothing. `settle` makes what was read count, once the outbox has it; until then a kill loses nothing.

All access is by `pread` and `pwrite`: a segment that its owner truncates raises MalformedRing here and kills nobody.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from taba import ring as layouts
from taba.agent.admission import Admission
from taba.agent.arenas import Arena
from taba.agent.directory import MAX_FRESH_TABS, NO_TAB, Directory
from taba.agent.entries import Tab
from taba.agent.native import NATIVE
from taba.agent.outbox import Covered
from taba.codes import Floats
from taba.counting import unpack_counted
from taba.ring import BYTE_POSITION_BITS, BYTE_POSITION_MASK, FLAG_BYTES, FLAG_SKIP, RECORD_BYTES, Layout, MalformedRing, RingHeader

MAX_COVERED = 64  # ranges a ring: more threads than that were never interrupted at once
BEHIND_RECORDS = 16_384  # that are read at once of a ring whose names are not all read: behind the next new one nothing can be used
FEW_RECORDS = 8  # that tell whether there is anything new: more threads than that are not interrupted at once
SMALL_LOOK = 48  # records that a look reads next: of hundreds of rings most have fewer new ones
FIRST_LOOK = 256  # records that a look reads first
FIRST_CHUNK = 256  # records; an idle ring costs one read of 6 KiB
MAX_CHUNK = 4096  # records whose commit words are looked at by one read: fits a second-level cache, and most of it is there
LAP_OFFSET = layouts.COMMIT_OFFSET + 4  # in a record: its own half of the commit word
LOOKED_RECORDS = 2**17  # of one ring, by one look: of how much more there is is looked at when these were read
LOOKS = 2**19  # of all rings together: 12 MiB, as many as a drain takes, some 5 ms
FINDS = 2**18  # records of dead rings, by one drain, in which there is nothing: 6 MiB
RUN_FINDS = 64  # of these a run behind a hole stands for, which takes a read of its own
TURN_VALUES = 16_384  # values that are no floats, in one turn: each is made by itself
MAX_POSITION = 2**62  # a tail beyond this is no tail: at 100 million records a second it takes 1,400 years

Words: TypeAlias = NDArray[np.uint64]
_TAILS = struct.Struct("<QQ")
_U64 = np.dtype("<u8")
_U32 = np.dtype("<u4")
_F64 = np.dtype("<f8")


class Reading(NamedTuple):
    """What one read found. The arrays are valid until the next read with the same Scratch.

    `tabs` are indexes in the ring's directory, `values` the value words; `boxed` holds the decoded value where `is_boxed`, and is
    None where every value is a float. `ranges` are the records that this covers, `malformed` the events in them that are none.
    """

    tabs: NDArray[np.uint32]
    times: Floats
    values: Words
    boxed: NDArray[np.object_] | None
    is_boxed: NDArray[np.bool_] | None
    ranges: list[Covered]
    malformed: int
    is_cut: bool  # the limit ended it; there is more
    refused: int = 0  # events of so many Tabs that there is not even a sum for them
    counted: tuple[Any, Any] | None = None  # the Tabs that have an event here, in order, and how many each; then the records are in Scratch


class Fill(NamedTuple):
    """What waits in a ring, and the room for it: records and bytes of values beyond what was read. A look, for deciding when to read.

    `head` and `byte_head` only grow: what was written since an earlier look is the difference.
    """

    records: int
    record_room: int
    bytes: int
    byte_room: int
    head: int
    byte_head: int
    is_cut: bool = False  # there was more than one look looks at

    @property
    def waiting(self) -> int:
        """How many records there may be to read."""
        return self.record_room if self.is_cut else self.records


class Scratch:
    """Buffers that all rings' reads share, so that a drain touches the same memory again and again. `native`: what counts, if anything.

    Records are read behind the first `begin`, which stay.
    """

    def __init__(self, native: Any = NATIVE) -> None:
        self.native = native
        self.begin = 0
        self._numbers: list[Any] = [np.zeros(0, np.uint32), np.zeros(0, np.uint32), np.zeros(0, np.int64)]
        self.fresh_tabs = MAX_FRESH_TABS  # that may still be read of directories before the next drain
        self.looks, self.finds, self.values = LOOKS, FINDS, TURN_VALUES  # what is left of each
        self.commits = bytearray(MAX_CHUNK * RECORD_BYTES)
        self._arena = Arena(MAX_CHUNK * RECORD_BYTES)

    @property
    def records(self) -> memoryview:
        """All of them."""
        return self._arena.view

    def begin_drain(self) -> None:
        """What was read before is needed no more."""
        self._arena.begin()

    def fit(self, records: int) -> memoryview:
        """Have room for so many records; what is returned has them behind the first `begin`."""
        end, begin = (self.begin + records) * RECORD_BYTES, self.begin * RECORD_BYTES
        if len(self.records) < end:
            grown = Arena(max(end, 2 * begin))
            grown.view[:begin] = self.records[:begin]
            self._arena = grown
        self._arena.reach(end)
        return self.records

    def here(self, records: int) -> memoryview:
        """So many records behind the first `begin`."""
        return self.records[self.begin * RECORD_BYTES : (self.begin + records) * RECORD_BYTES]

    def count(self, records: int, pieces: tuple[tuple[int, int | None], ...], known: int) -> tuple[Any, Any] | None:
        """The Tabs of so many records behind `begin`, in order, and how many each has; None where one is not plain, or has no place below
        `known`. `pieces`: (how many of them, their lap, or None) one after the other."""
        if known > len(self._numbers[0]):
            room = max(known, 2 * len(self._numbers[0]))
            self._numbers = [np.zeros(room, np.uint32), np.empty(room, np.uint32), np.empty(room, np.int64)]
        counts, tabs, many = self._numbers
        found = self.native.count(self.here(records), pieces, known, counts, tabs, many)
        return None if found < 0 else (tabs[:found].copy(), many[:found].copy())


class Ring:
    """A ring that is being read. Raises MalformedRing (here and in `read`) for what is none, OSError where it cannot be read.

    `covered` are the ranges that an earlier Agent's table names for rings; those of this one are never read again.
    """

    NO_PLACE, NO_FILL = (-1,) * 7, Fill(0, 0, 0, 0, 0, 0)  # of no ring, a `place_to_look` and how full it is

    def __init__(self, fd: int, name: str, covered: Iterable[Covered] = (), admission: Admission | None = None):
        self.fd, self.name = fd, name
        self.is_blocked = False  # the last read ended before an event of a Tab whose name was not read yet
        page = os.pread(fd, layouts.HEADER_BYTES, 0)
        self.header: RingHeader = layouts.parse_header(page, os.fstat(fd).st_size)
        self.where: Layout = layouts.layout(self.header.size)
        self.is_ordered = self.header.is_accelerated  # its records are committed one after the other, as far as is known
        # the id alone would let one ring name another's
        self.key = hashlib.blake2b(self.header.ring_id + name.encode(), digest_size=16).digest()
        self.tail, self.byte_tail = self.header.tail, self.header.byte_tail
        if max(self.tail, self.byte_tail) > MAX_POSITION:
            raise MalformedRing(f"tails {self.tail} and {self.byte_tail}")
        self.names = Directory(fd, self.where, self.header.client, admission or Admission())
        self.places: Any = None  # the drain's, beside `directory`: what it needs of each Tab
        self.covered: list[Covered] = []
        self.recorded = 0
        self.sums: dict[int, Any] = {}  # `taba.agent.sums`: of Tabs that heal, by index in the directory
        self.summed = 0  # entries of the directory that `sums` knows
        self.is_settled = False  # of none of `sums` there was anything to tell at the last drain
        self.owes = -1  # events owed, as last seen; not yet
        self._looked = self._head = self._byte_head = 0
        self._dead_end: int | None = None  # of a dead ring that was looked through to its end: nothing is committed from there on
        self._found = 0  # how far the last search came, where it was cut short
        self._barren = 0  # of a dead ring: before this there is nothing beyond what is covered
        self._still: tuple[int, int, bytes, Fill] | None = None  # a look that found nothing: the tail, where it read what, and what it said
        mine = sorted(found for found in covered if found.ring == self.key and found.end > self.tail)
        if mine:
            self.covered = [Covered(self.key, max(found.start, self.tail), found.end, found.byte_end) for found in mine]
            self.is_ordered = False  # it was not, so far
            self._advance()

    @property
    def client(self) -> str:
        return self.header.client

    @property
    def directory(self) -> list[Tab | None]:
        """Its Tabs by place, as far as they were read."""
        return self.names.entries

    @property
    def frontier(self) -> int:
        """The first record beyond all that was read."""
        return self.covered[-1].end if self.covered else self.tail

    @property
    def place_to_look(self) -> tuple[int, ...]:
        """What the C part needs to see whether anything is new: as `glance` of `_drain.c` has it."""
        if self.covered:  # there are holes
            return (self.fd, 0, -1, 0, 1, 0, 0)
        where = self.where
        position = max(self._looked, self.tail)
        return (self.fd, where.record_offset, where.records, position, self.tail + where.records, self.byte_tail, where.byte_ring_bytes)

    def sees(self, fresh: int, byte_end: int) -> Fill:
        """How full the ring is, where `glance` saw so many records more from `place_to_look` on, and values that end so many bytes behind
        the tail."""
        self._looked = max(self._looked, self.tail) + fresh
        self._head = max(self._head, self._looked)
        self._byte_head = max(self._byte_head, self.byte_tail + byte_end)
        if fresh:
            self._still = None
        return self._fill()

    def _fill(self, is_cut: bool = False) -> Fill:
        frontier, byte_frontier = self.frontier, self.byte_tail
        if self.covered:
            byte_frontier = max(byte_frontier, self.covered[-1].byte_end)
        room, byte_room = self.tail + self.where.records - frontier, self.byte_tail + self.where.byte_ring_bytes - byte_frontier
        return Fill(self._head - frontier, room, self._byte_head - byte_frontier, byte_room, self._head, self._byte_head, is_cut)

    def look(self, scratch: Scratch) -> Fill:
        """How full the ring is: looks at the records that were committed since the last look, each once."""
        if self._still is not None:  # nearly always, of a ring that is idle: a commit word that is stored is another one
            tail, offset, content, fill = self._still
            if tail == self.tail and not self.covered and os.pread(self.fd, len(content), offset) == content:
                return fill
            self._still = None
        frontier, end = self.frontier, self.tail + self.where.records
        seen: bytes | None = None
        byte_frontier = max(self.byte_tail, self.covered[-1].byte_end) if self.covered else self.byte_tail
        position = self._looked = max(self._looked, frontier)
        self._head, self._byte_head = max(self._head, frontier), max(self._byte_head, byte_frontier)
        chunk, most, is_cut = FIRST_LOOK, position + LOOKED_RECORDS, False
        if position < end:  # most looks at most rings end here
            stop = min(position + FEW_RECORDS, end, position + self._to_wrap(position))
            view = memoryview(scratch.commits)[: (stop - position) * RECORD_BYTES]
            self._pread_into(view, self._record_offset(position))
            if layouts.lap_of(position, self.where.records) not in view.cast("I")[5::6].tolist():
                end, seen = position, bytes(view)
            elif few := self._few_floats(scratch, position, end):
                self._head, self._looked, end = max(self._head, position + few), position + few, position
        while position < end:
            if position >= most or scratch.looks <= 0:
                is_cut = True
                break
            stop = min(position + chunk, end, position + self._to_wrap(position))
            scratch.looks -= stop - position
            chunk = min(chunk * 4, MAX_CHUNK)  # of hundreds of rings that have some hundreds each LOOKS has all
            view = memoryview(scratch.commits)[: (stop - position) * RECORD_BYTES]
            self._pread_into(view, self._record_offset(position))
            halves = np.frombuffer(view, _U32).reshape(-1, 6)
            fresh = halves[:, 5] == np.uint32(layouts.lap_of(position, self.where.records))
            here = np.flatnonzero(fresh)
            if not len(here):
                break
            self._head = max(self._head, position + int(here[-1]) + 1)
            flags = halves[here, 4] >> np.uint32(layouts.FLAGS_SHIFT)
            boxed = here[(flags & np.uint32(FLAG_BYTES | FLAG_SKIP)) == np.uint32(FLAG_BYTES)]
            if len(boxed):
                words = np.frombuffer(view, _U64).reshape(-1, 3)[boxed, 1]
                ends = ((words - np.uint64(self.byte_tail & BYTE_POSITION_MASK)) & np.uint64(BYTE_POSITION_MASK)) + (
                    words >> np.uint64(BYTE_POSITION_BITS)
                )
                ends = ends[ends <= self.where.byte_ring_bytes]  # others are hostile, and nobody's fill
                if len(ends):
                    self._byte_head = max(self._byte_head, self.byte_tail + int(ends.max()))
            if len(here) < len(fresh):  # a hole, or the end; from there the next look goes on
                if position == self._looked:
                    self._looked += int(fresh.argmin())
                if not fresh[-1]:
                    break
            elif position == self._looked:
                self._looked = stop
            position = stop
        fill = self._fill(is_cut)
        if seen is not None and position == self.tail:
            self._still = self.tail, self._record_offset(position), seen, fill
        return fill

    def _few_floats(self, scratch: Scratch, position: int, end: int) -> int:
        """How many new records there are from here on, all of them floats, without a hole and with no more behind; 0 where it is not so
        plain: then it takes arrays."""
        stop = min(position + SMALL_LOOK, end, position + self._to_wrap(position))
        view = memoryview(scratch.commits)[: (stop - position) * RECORD_BYTES]
        self._pread_into(view, self._record_offset(position))
        words, lap = view.cast("I"), layouts.lap_of(position, self.where.records)
        laps = words[5::6].tolist()
        few = laps.count(lap)
        if not few or few + FEW_RECORDS > len(laps) or laps[:few].count(lap) != few:
            return 0
        return few if max(words[4 : 6 * few : 6].tolist()) <= layouts.TAB_MASK else 0

    def read(self, scratch: Scratch, limit: int, byte_limit: int, dead: bool = False) -> Reading | None:
        """Up to `limit` records (and `byte_limit` bytes of other values) that were not read before; None when there are none.

        With `dead` (no process maps it any more) the whole ring is looked through, and holes, which nobody will ever fill, are covered
        with what is behind them: so none is left out, however many holes there are.
        """
        runs, is_cut = self._find_runs(scratch, min(limit, BEHIND_RECORDS) if self.names.is_behind else limit, dead)
        if not runs:
            if dead and is_cut:  # nothing yet: it is looked through further by the next
                self.is_blocked = False
                return Reading(np.zeros(0, np.uint32), np.zeros(0), np.zeros(0, np.uint64), None, None, [], 0, True)
            return None
        total = sum(end - start for start, end in runs)
        scratch.fit(total)
        buffer = scratch.here(total)
        at = 0
        laps: list[tuple[int, int | None]] = []
        for start, end in runs:
            for low, high in self._pieces(start, end):
                length = (high - low) * RECORD_BYTES
                self._pread_into(buffer[at : at + length], self._record_offset(low))
                at += length
                laps.append((high - low, layouts.lap_of(low, self.where.records)))
        words = np.frombuffer(buffer, _U64, 3 * total).reshape(total, 3)
        halves = np.frombuffer(buffer, _U32, 6 * total).reshape(total, 6)
        counted = None
        if scratch.native is not None and self.names.leads is None:
            counted = scratch.count(total, tuple(laps), len(self.directory))
        if counted is not None:  # nearly always: no flags, and all names are known
            self.is_blocked = False
            ranges = [Covered(self.key, start, end, 0) for start, end in runs]
            reading = Reading(halves[:, 4], words.view(_F64)[:, 0], words[:, 1], None, None, ranges, 0, is_cut, counted=counted)
            return self._whole(reading) if dead else reading
        low_half = np.ascontiguousarray(halves[:, 4])
        if not self._is_confirmed(runs, halves[:, 5]):
            if not self.is_ordered:
                raise MalformedRing("a commit word changed after it was stored")
            self.is_ordered = False
            return self.read(scratch, limit, byte_limit, dead)
        tabs, flags, greatest = low_half, low_half, int(low_half.max())
        has_flags = greatest > layouts.TAB_MASK
        if has_flags:
            flags, tabs = low_half >> np.uint32(layouts.FLAGS_SHIFT), low_half & np.uint32(layouts.TAB_MASK)
            greatest = int(tabs.max())
        self.is_blocked = False
        if greatest >= len(self.directory):
            scratch.fresh_tabs -= self.names.read(scratch.fresh_tabs)
            if self.names.is_behind and len(unread := np.flatnonzero(tabs >= len(self.directory))):
                cut, self.is_blocked = int(unread[0]), True  # its turn comes when its name is read
                runs, words, tabs, flags, is_cut = _cut_runs(runs, cut), words[:cut], tabs[:cut], flags[:cut], True
                if not cut:
                    return Reading(tabs, words.view(_F64)[:, 0], words[:, 1], None, None, [], 0, True)
        times = words.view(_F64)[:, 0]
        if not has_flags:
            ranges = [Covered(self.key, start, end, 0) for start, end in runs]
            reading = self._known(tabs, times, words[:, 1], None, None, ranges, 0, is_cut)
        else:
            reading = self._read_flagged(runs, tabs, flags, times, words[:, 1], byte_limit, is_cut, scratch.values)
            if reading.is_boxed is not None:
                scratch.values -= int(reading.is_boxed.sum())
        return self._whole(reading) if dead else reading

    def _whole(self, reading: Reading) -> Reading:
        # all before the last run's end was looked through
        byte_end = max(found.byte_end for found in reading.ranges)
        return reading._replace(ranges=[Covered(self.key, self.tail, reading.ranges[-1].end, byte_end)])

    def settle(self, reading: Reading) -> None:
        """What was read is safe: never read it again, and move the tail over what has no hole."""
        self.covered = _merge([*self.covered, *reading.ranges])
        self.recorded += len(reading.tabs)
        self._advance()

    def covered_after(self, reading: Reading | None) -> int:
        """How many records are covered: before the tail, in ranges beyond it, and in this reading. It only grows."""
        ranges = _merge([*self.covered, *(reading.ranges if reading is not None else ())])
        end, count = self.tail, self.tail
        for found in ranges:
            count += max(0, found.end - max(found.start, end))
            end = max(end, found.end)
        return count

    def read_owes(self) -> int:
        """How many events are owed in all cells together."""
        return int.from_bytes(os.pread(self.fd, 8, layouts.OWES_OFFSET), "little")

    def read_cell(self, offset: int) -> layouts.Cell:
        """The cell at an offset that a Tab of the directory has."""
        words = os.pread(self.fd, layouts.CELL_BYTES, offset)
        if len(words) != layouts.CELL_BYTES:
            raise MalformedRing("truncated")
        return layouts.parse_cell(words)

    def write_sum(self, offset: int, copy: int, found: layouts.Sum) -> None:
        """Write one of the two copies of the cell at `offset`."""
        os.pwrite(self.fd, layouts.encode_sum(found), offset + layouts.SUM_OFFSETS[copy])

    def drops(self) -> dict[str, int]:
        """The producer's own counts of events that it dropped, by reason."""
        offset, length = layouts.drops_range(self.where.size)
        words = os.pread(self.fd, length, offset)
        if len(words) != length:
            raise MalformedRing("truncated")
        # a hostile count must not end the totals' being numbers
        return {reason: min(count, 2**53) for reason, count in layouts.parse_drops(words).items()}

    def had_no_place(self) -> bool:
        """Of a ring that only counts: whether some process found no place in it, nor in another, to count in."""
        return not self.where.records and os.pread(self.fd, 8, layouts.NO_PLACE_OFFSET) != bytes(8)

    def retire(self) -> None:
        """Tell a producer, if there is one after all, that nobody reads this ring any more."""
        os.pwrite(self.fd, (1).to_bytes(8, "little"), layouts.RETIRED_OFFSET)

    def close(self) -> None:
        """Let go of it."""
        self.names.close()
        if self.places is not None:
            self.places.close()
        os.close(self.fd)

    # --- finding ---

    def _find_runs(self, scratch: Scratch, limit: int, dead: bool) -> tuple[list[tuple[int, int]], bool]:
        """Runs of committed records, holes first; and whether the limit ended the search."""
        runs: list[tuple[int, int]] = []
        position, taken, self._found = self.tail, 0, MAX_POSITION
        most = self.where.records if dead else MAX_COVERED - len(self.covered)
        for found in self.covered:
            taken = self._look(scratch, max(position, self._barren), found.start, limit, taken, runs, most, True)
            position = found.end
        seen = min(self._looked, position + limit - taken)
        if seen > position and self._add_run(runs, position, seen, most):  # the last look found no hole before this
            taken, position = taken + seen - position, seen
        if not dead:
            self._dead_end, self._barren = None, 0
        position = max(position, self._barren)
        stop = self.tail + self.where.records if self._dead_end is None else self._dead_end
        taken = self._look(scratch, position, stop, limit, taken, runs, most, dead)
        is_cut = taken >= limit > 0
        if dead and self._found < MAX_POSITION:
            is_cut = True
            if not runs:
                self._barren = self._found
        elif dead and taken < limit and len(runs) < most and self._dead_end is None:
            # nobody writes there any more: it is not looked through again with each turn that its names take
            self._dead_end = runs[-1][1] if runs else self.tail
        return runs, is_cut

    def _look(
        self, scratch: Scratch, position: int, stop: int, limit: int, taken: int, runs: list[tuple[int, int]], most: int, dead: bool
    ) -> int:
        chunk, may_leap, before, known = FIRST_CHUNK, self.is_ordered and not dead, taken, len(runs)
        while position < stop and taken < limit:
            if dead:  # a hole of any length, and any number of them
                scratch.finds += taken - before - RUN_FINDS * (len(runs) - known)
                before, known = taken, len(runs)
                if scratch.finds <= 0:
                    self._found = min(self._found, position)
                    break
                scratch.finds -= min(chunk, stop - position)
            if may_leap and chunk > FIRST_CHUNK:  # the first chunk was full
                may_leap, chunk = False, FIRST_CHUNK
                ahead = self._leap(position, min(stop, position + limit - taken))
                if ahead > position:
                    if not self._add_run(runs, position, ahead, most):
                        return taken
                    taken, position = taken + ahead - position, ahead
                continue
            end = min(position + chunk, stop, position + self._to_wrap(position))
            chunk = min(chunk * 4, MAX_CHUNK)
            view = memoryview(scratch.commits)[: (end - position) * RECORD_BYTES]
            self._pread_into(view, self._record_offset(position))
            lap = layouts.lap_of(position, self.where.records)
            if scratch.native is not None:
                first, last = scratch.native.leading(view, lap)
                if first == last:  # no hole, or what is behind it is all of it
                    low = min(first, limit - taken)
                    if low and not self._add_run(runs, position, position + low, most):
                        return taken
                    taken += low
                    if first < end - position and not dead:
                        break
                    position = end
                    continue
            laps = np.frombuffer(view, _U32).reshape(-1, 6)[:, 5]
            fresh = laps == np.uint32(lap)
            if fresh.all():
                last = min(end, position + limit - taken)
                taken += last - position
                if not self._add_run(runs, position, last, most):
                    return taken - (last - position)
            elif fresh.any():
                edges = np.flatnonzero(np.diff(np.concatenate(([0], fresh.view(np.int8), [0]))))
                for low, high in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
                    high = min(high, low + limit - taken)
                    if high <= low or not self._add_run(runs, position + low, position + high, most):
                        return taken
                    taken += high - low
                if not (dead or fresh[-1]):
                    break
            elif not dead:
                break
            position = end
        return taken

    def _leap(self, position: int, stop: int) -> int:
        """Where the committed records from `position` on end, or up to FIRST_CHUNK before: of one producer, whose last one tells of all."""
        step, low, high = 2 * FIRST_CHUNK, position, stop
        while low + step < stop:
            if not self._is_fresh(low + step - 1):
                high = low + step - 1
                break
            low, step = low + step, 2 * step
        while high - low > FIRST_CHUNK:
            middle = (low + high) // 2
            if self._is_fresh(middle - 1):
                low = middle
            else:
                high = middle - 1
        return low

    def _is_fresh(self, position: int) -> bool:
        word = os.pread(self.fd, 4, self._record_offset(position) + LAP_OFFSET)
        if len(word) != 4:
            raise MalformedRing("truncated")
        return int.from_bytes(word, "little") == layouts.lap_of(position, self.where.records)

    def _add_run(self, runs: list[tuple[int, int]], start: int, end: int, most: int) -> bool:
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], end)
            return True
        if len(runs) >= most:
            # one more hole would be one too many; what adjoins makes none
            edges = {self.tail, *(found.end for found in self.covered)}
            if start not in edges and all(found.start != end for found in self.covered):
                return False
        runs.append((start, end))
        return True

    def _is_confirmed(self, runs: list[tuple[int, int]], laps: NDArray[np.uint32]) -> bool:
        """Whether all that was found committed is."""
        at = 0
        for start, end in runs:
            for low, high in self._pieces(start, end):
                if (laps[at : at + high - low] != np.uint32(layouts.lap_of(low, self.where.records))).any():
                    return False
                at += high - low
        return True

    # --- values that are no float ---

    def _read_flagged(
        self,
        runs: list[tuple[int, int]],
        tabs: NDArray[np.uint32],
        flags: NDArray[np.uint32],
        times: Floats,
        values: Words,
        byte_limit: int,
        is_cut: bool,
        value_limit: int,
    ) -> Reading:
        keep = (flags & np.uint32(FLAG_SKIP)) == 0
        is_boxed = keep & ((flags & np.uint32(FLAG_BYTES)) != 0)
        lengths = values >> np.uint64(BYTE_POSITION_BITS)
        ahead = (values - np.uint64(self.byte_tail & BYTE_POSITION_MASK)) & np.uint64(BYTE_POSITION_MASK)
        ends = ahead + lengths
        bad = is_boxed & ((lengths > self.where.max_value_bytes) | (ends > self.where.byte_ring_bytes))
        good = np.flatnonzero(is_boxed & ~bad)
        if len(good):
            # no more bytes at once than the limit, and no more values; always one
            beyond = np.flatnonzero(ends[good] > ahead[good].min() + np.uint64(byte_limit))
            most = min(len(good), max(1, value_limit), int(beyond[0]) if len(beyond) and beyond[0] > 0 else len(good))
            if most < len(good):
                cut = int(good[most])
                runs = _cut_runs(runs, cut)
                return self._read_flagged(runs, tabs[:cut], flags[:cut], times[:cut], values[:cut], 2**40, True, most)
        boxed = np.empty(len(tabs), np.object_)
        malformed = int(bad.sum())
        keep &= ~bad
        if len(good):
            first, last = int(ahead[good].min()), int(ends[good].max())
            content = self._read_bytes(self.byte_tail + first, last - first)
            starts = (ahead[good] - np.uint64(first)).tolist()
            for index, start, length in zip(good.tolist(), starts, lengths[good].tolist(), strict=True):
                try:
                    boxed[index] = unpack_counted(content[start : start + length])
                except ValueError:
                    malformed += 1
                    keep[index] = False
        ranges = []
        cuts = np.searchsorted(good, np.cumsum([0, *(end - start for start, end in runs)])).tolist()
        for (start, end), low, high in zip(runs, cuts, cuts[1:], strict=False):
            byte_end = self.byte_tail + int(ends[good[low:high]].max()) if low < high else 0
            ranges.append(Covered(self.key, start, end, byte_end))
        if keep.all():
            return self._known(tabs, times, values, boxed, is_boxed, ranges, malformed, is_cut)
        return self._known(tabs[keep], times[keep], values[keep], boxed[keep], is_boxed[keep], ranges, malformed, is_cut)

    def _read_bytes(self, position: int, length: int) -> bytes:
        size = self.where.byte_ring_bytes
        offset = position % size
        first = min(length, size - offset)
        content = os.pread(self.fd, first, self.where.byte_ring_offset + offset)
        if first < length:
            content += os.pread(self.fd, length - first, self.where.byte_ring_offset)
        if len(content) != length:
            raise MalformedRing("truncated")
        return content

    # --- the directory ---

    def _known(
        self,
        tabs: NDArray[np.uint32],
        times: Floats,
        values: Words,
        boxed: NDArray[np.object_] | None,
        is_boxed: NDArray[np.bool_] | None,
        ranges: list[Covered],
        malformed: int,
        is_cut: bool,
    ) -> Reading:
        """A Reading whose Tabs all stand in the directory, those that are summed up as the one that stands for them."""
        refused = 0
        if len(tabs) and int(tabs.max()) >= len(self.directory):
            unknown = tabs >= len(self.directory)
            refused = int((unknown & (tabs < self.names.published)).sum())  # named, but behind all that are looked at
            malformed += int(unknown.sum()) - refused
            tabs, times, values, boxed, is_boxed = _kept(~unknown, tabs, times, values, boxed, is_boxed)
        if self.names.leads is not None and len(tabs):
            tabs = self.names.leads[tabs]
            if (without := tabs == NO_TAB).any():
                refused += int(without.sum())
                tabs, times, values, boxed, is_boxed = _kept(~without, tabs, times, values, boxed, is_boxed)
        if is_boxed is not None and not is_boxed.any():
            boxed = is_boxed = None
        return Reading(tabs, times, values, boxed, is_boxed, ranges, malformed, is_cut, refused)

    # --- positions ---

    def _advance(self) -> None:
        moved = False
        while self.covered and self.covered[0].start <= self.tail:
            found = self.covered.pop(0)
            self.tail = max(self.tail, found.end)
            self.byte_tail = max(self.byte_tail, found.byte_end)
            moved = True
        if moved:
            os.pwrite(self.fd, _TAILS.pack(self.tail, self.byte_tail), layouts.TAIL_OFFSET)

    def _to_wrap(self, position: int) -> int:
        return self.where.records - position % self.where.records

    def _pieces(self, start: int, end: int) -> Iterable[tuple[int, int]]:
        while start < end:
            stop = min(end, start + self._to_wrap(start))
            yield start, stop
            start = stop

    def _record_offset(self, position: int) -> int:
        return self.where.record_offset + (position % self.where.records) * RECORD_BYTES

    def _pread_into(self, view: memoryview, offset: int) -> None:
        if os.preadv(self.fd, [view], offset) != len(view):
            raise MalformedRing("truncated")


def _kept(
    keep: NDArray[np.bool_],
    tabs: NDArray[np.uint32],
    times: Floats,
    values: Words,
    boxed: NDArray[np.object_] | None,
    is_boxed: NDArray[np.bool_] | None,
) -> tuple[NDArray[np.uint32], Floats, Words, NDArray[np.object_] | None, NDArray[np.bool_] | None]:
    """Of each array what is to be kept."""
    if boxed is not None and is_boxed is not None:
        boxed, is_boxed = boxed[keep], is_boxed[keep]
    return tabs[keep], times[keep], values[keep], boxed, is_boxed


def _merge(ranges: list[Covered]) -> list[Covered]:
    merged: list[Covered] = []
    for found in sorted(ranges, key=lambda covered: covered.start):
        if merged and found.start <= merged[-1].end:
            before = merged[-1]
            merged[-1] = Covered(before.ring, before.start, max(before.end, found.end), max(before.byte_end, found.byte_end))
        else:
            merged.append(found)
    return merged


def _cut_runs(runs: list[tuple[int, int]], records: int) -> list[tuple[int, int]]:
    """The first so many records of `runs`."""
    kept = []
    for start, end in runs:
        if records <= 0:
            break
        kept.append((start, min(end, start + records)))
        records -= end - start
    return kept
