"""Where in a ring committed records are: how full it is, for who decides when to read, and the runs of them, for who reads.

Only commit words count here. One producer commits in order: of a ring that says to be the accelerator's the last committed record is
looked for by halves, and what is before it is read once. A ring of which that turns out to be untrue is read as all others from then on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from taba import ring as layouts
from taba.agent.opened import MAX_POSITION, Opened
from taba.agent.outbox import Covered
from taba.agent.scratch import MAX_CHUNK, Scratch
from taba.ring import BYTE_POSITION_BITS, BYTE_POSITION_MASK, FLAG_BYTES, FLAG_SKIP, RECORD_BYTES, MalformedRing

MAX_COVERED = 64  # ranges a ring: more threads than that were never interrupted at once
FEW_RECORDS = 8  # that tell whether there is anything new: more threads than that are not interrupted at once
SMALL_LOOK = 48  # records that a look reads next: of hundreds of rings most have fewer new ones
FIRST_LOOK = 256  # records that a look reads first
FIRST_CHUNK = 256  # records; an idle ring costs one read of 6 KiB
LAP_OFFSET = layouts.COMMIT_OFFSET + 4  # in a record: its own half of the commit word
LOOKED_RECORDS = 2**17  # of one ring, by one look: of how much more there is is looked at when these were read
RUN_FINDS = 64  # FINDS for which a run behind a hole stands, which takes a read of its own

_U64 = np.dtype("<u8")
_U32 = np.dtype("<u4")


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


class Searched(Opened):
    """A ring whose committed records are looked for."""

    NO_PLACE, NO_FILL = (-1,) * 8, Fill(0, 0, 0, 0, 0, 0)  # of no ring, a `place_to_look` and how full it is

    def __init__(self, fd: int, name: str, covered: Iterable[Covered] = ()):
        super().__init__(fd, name, covered)
        # its records are committed one after the other, as far as is known; they were not where an Agent found holes
        self.is_ordered = self.header.is_accelerated and not self.was_covered
        self._looked = self._head = self._byte_head = 0
        self._is_looked_through = False  # the last look came to the end of what was committed, and found no hole
        self._dead_end: int | None = None  # of a dead ring that was looked through to its end: nothing is committed from there on
        self._found = 0  # how far the last search came, where it was cut short
        self._barren = 0  # of a dead ring: before this there is nothing beyond what is covered
        self._still: tuple[int, int, bytes, Fill] | None = None  # a look that found nothing: the tail, where it read what, and what it said

    # --- how full it is ---

    @property
    def place_to_look(self) -> tuple[int, ...]:
        """What the C part needs to see whether anything is new: as `glance` of `_drain.c` has it."""
        if self.covered:  # there are holes
            return (self.fd, 0, -1, 0, 1, 0, 0, 0)
        where = self.where
        position, end = max(self._looked, self.tail), self.tail + where.records
        return (self.fd, where.record_offset, where.records, position, end, self.byte_tail, where.byte_ring_bytes, int(self.is_ordered))

    def sees(self, fresh: int, byte_end: int, is_cut: bool = False) -> Fill:
        """How full the ring is, where `glance` saw so many records more from `place_to_look` on, and values that end so many bytes behind
        the tail. `is_cut`: it ended there for its limit."""
        self.moves += 1
        self._is_looked_through = not (self.covered or is_cut)
        self._looked = max(self._looked, self.tail) + fresh
        self._head = max(self._head, self._looked)
        self._byte_head = max(self._byte_head, self.byte_tail + byte_end)
        if fresh:
            self._still = None
        return self._fill(is_cut)

    def sees_much(self, scratch: Scratch, part: int) -> Fill:
        """The same where `glance` saw that one of `part` parts is full: how far records go is looked for by halves, and whoever reads them
        looks through them. Of values beside them there may be more than this tells."""
        self.moves += 1
        self._is_looked_through, self._still = False, None
        self._head = max(self._head, self._leap(scratch, self.tail + self.where.records // part, self.tail + self.where.records))
        return self._fill()

    def saw(self, looked: int, head: int, byte_head: int) -> None:
        """The same where nothing else is new: it was looked through so far, and filled so far."""
        self._looked, self._head, self._byte_head, self._still, self._is_looked_through = looked, head, byte_head, None, True

    def _fill(self, is_cut: bool = False) -> Fill:
        frontier, byte_frontier = self.frontier, self.byte_tail
        if self.covered:
            byte_frontier = max(byte_frontier, self.covered[-1].byte_end)
        room, byte_room = self.tail + self.where.records - frontier, self.byte_tail + self.where.byte_ring_bytes - byte_frontier
        return Fill(self._head - frontier, room, self._byte_head - byte_frontier, byte_room, self._head, self._byte_head, is_cut)

    @property
    def seen_plainly(self) -> int:
        """How many records the last look found from the tail on, committed one after the other; 0 where there are holes, or may be more."""
        return 0 if self.covered or not self._is_looked_through else max(0, self._looked - self.tail)

    @property
    def seen(self) -> int:
        """How many records there may be from the tail on, as the last look saw it: to be prepared for, not to be relied on."""
        return max(0, self._head - self.tail)

    def look(self, scratch: Scratch) -> Fill:
        """How full the ring is: looks at the records that were committed since the last look, each once."""
        if self._still is not None:  # nearly always, of a ring that is idle: a commit word that is stored is another one
            tail, offset, content, fill = self._still
            if tail == self.tail and not self.covered and os.pread(self.fd, len(content), offset) == content:
                return fill
            self._still = None
        self.moves += 1
        self._is_looked_through = False
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

    # --- the runs ---

    def _find_runs(self, scratch: Scratch, limit: int, dead: bool, is_fresh: bool = False) -> tuple[list[tuple[int, int]], bool]:
        """Runs of committed records, holes first; and whether the limit ended the search. `is_fresh`: what came since the last look may
        wait for the next search."""
        runs: list[tuple[int, int]] = []
        position, taken, self._found = self.tail, 0, MAX_POSITION
        most = self.where.records if dead else MAX_COVERED - len(self.covered)
        for found in self.covered:
            taken = self._look(scratch, max(position, self._barren), found.start, limit, taken, runs, most, True)
            position = found.end
        seen = min(self._looked, position + limit - taken)
        if seen > position and self._add_run(runs, position, seen, most):  # the last look found no hole before this
            taken, position = taken + seen - position, seen
        if is_fresh and self._is_looked_through and not (dead or self.covered):
            return runs, taken >= limit > 0
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
        if may_leap and scratch.native is not None and position < stop and taken < limit:
            last = min(stop, position + limit - taken)
            end = scratch.native.follow(self.fd, self.where.record_offset, self.where.records, position, last)
            if end >= 0:  # else there is a hole, or one cannot be read: then it is looked for piece by piece
                is_taken = end > position and self._add_run(runs, position, end, most)
                return taken + end - position if is_taken else taken
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
                ahead = self._leap(scratch, position, min(stop, position + limit - taken))
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

    def _leap(self, scratch: Scratch, position: int, stop: int) -> int:
        """Where the committed records from `position` on end, or up to FIRST_CHUNK before: of one producer, whose last one tells of all."""
        if scratch.native is not None and self.where.records >= FIRST_CHUNK:
            found: int = scratch.native.leap(self.fd, self.where.record_offset, self.where.records, position, stop, FIRST_CHUNK)
            if found < 0:
                raise MalformedRing("truncated")
            return found
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
