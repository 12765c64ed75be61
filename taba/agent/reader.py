"""One ring, read: records out, the tail moved when they are safe. Everything in the segment is hostile.

1. Commit words are read first (`taba.agent.search`), payload by a second read: what the first read found committed is whole in the second.
2. A hole (a reservation that its writer has not committed) is read past; the tail stops at it while the process lives.
   What is read beyond the tail is a covered range, which the outbox's table remembers; there are at most MAX_COVERED a ring.
3. `read` changes nothing. `settle` makes what was read count, once the outbox has it; until then a kill loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from taba import ring as layouts
from taba.agent.admission import Admission
from taba.agent.directory import NO_TAB, Directory
from taba.agent.entries import Tab
from taba.agent.opened import merge
from taba.agent.outbox import Covered
from taba.agent.scratch import Scratch
from taba.agent.search import Searched
from taba.codes import Floats
from taba.counting import unpack_counted
from taba.ring import BYTE_POSITION_BITS, BYTE_POSITION_MASK, FLAG_BYTES, FLAG_SKIP, RECORD_BYTES, MalformedRing

BEHIND_RECORDS = 16_384  # that are read at once of a ring whose names are not all read: behind the next new one nothing can be used

Words: TypeAlias = NDArray[np.uint64]
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


class Ring(Searched):
    """A ring that is being read. Raises MalformedRing (here and in `read`) for what is none, OSError where it cannot be read.

    `covered` are the ranges that an earlier Agent's table names for rings; those of this one are never read again.
    """

    def __init__(self, fd: int, name: str, covered: Iterable[Covered] = (), admission: Admission | None = None):
        super().__init__(fd, name, covered)
        self.is_blocked = False  # the last read ended before an event of a Tab whose name was not read yet
        self.names = Directory(fd, self.where, self.header.client, admission or Admission())
        self._of_bytes = self.where.max_value_bytes, self.where.byte_ring_bytes
        self.places: Any = None  # the drain's, beside `directory`: what it needs of each Tab
        self.recorded = 0
        self.sums: dict[int, Any] = {}  # `taba.agent.sums`: of Tabs that heal, by index in the directory
        self.summed = 0  # entries of the directory that `sums` knows
        self.are_noted = False  # the register names all of `sums`
        self.is_settled = False  # of none of `sums` but these, by place, there was anything to tell at the last drain
        self.unsettled: set[int] = set()
        self.telling: set[int] = set()  # of `sums` those of which owed events were published
        self.owes = -1  # events owed, as last seen; not yet

    @property
    def directory(self) -> list[Tab | None]:
        """Its Tabs by place, as far as they were read."""
        return self.names.entries

    def read(self, scratch: Scratch, limit: int, byte_limit: int, dead: bool = False, is_fresh: bool = False) -> Reading | None:
        """Up to `limit` records (and `byte_limit` bytes of other values) that were not read before; None when there are none.

        With `dead` (no process maps it any more) the whole ring is looked through, and holes, which nobody will ever fill, are covered
        with what is behind them: so none is left out, however many holes there are. With `is_fresh`, the last look, which was just
        now, told of all that is read: what came since waits for the next.
        """
        runs, is_cut = self._find_runs(scratch, min(limit, BEHIND_RECORDS) if self.names.is_behind else limit, dead, is_fresh)
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
            counted = scratch.count(total, tuple(laps), len(self.directory), (self.byte_tail & BYTE_POSITION_MASK, *self._of_bytes))
        if counted is not None:  # nearly always: all names are known, and values that are no floats lie where they should
            known, many, boxes = counted
            tabs, beside = halves[:, 4], None
            if len(boxes) and (beside := self._read_boxes(runs, total, boxes, byte_limit)) is not None:
                tabs[boxes[:, 0]] &= np.uint32(layouts.TAB_MASK)  # as all others are: what puts them in order knows no flags
            if beside is not None or not len(boxes):
                self.is_blocked = False
                scratch.values -= len(boxes)
                ranges, boxed, is_boxed = beside or ([Covered(self.key, start, end, 0) for start, end in runs], None, None)
                found = tabs, words.view(_F64)[:, 0], words[:, 1], boxed, is_boxed
                reading = Reading(*found, ranges, 0, is_cut, counted=(known, many))
                return self._whole(reading) if dead else reading
        low_half = np.ascontiguousarray(halves[:, 4])
        if not self._is_confirmed(runs, halves[:, 5]):
            if not self.is_ordered:
                raise MalformedRing("a commit word changed after it was stored")
            self.is_ordered, self.moves = False, self.moves + 1
            return self.read(scratch, limit, byte_limit, dead, is_fresh)
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

    @property
    def place_to_read(self) -> tuple[int, ...]:
        """What the C part needs to read what `seen_plainly` tells of: as `gather` of `_drain.c` has it."""
        where = self.where
        return (self.fd, where.record_offset, where.records, self.tail, self._looked, len(self.directory), self.byte_tail, *self._of_bytes)

    def settle(self, reading: Reading) -> None:
        """What was read is safe: never read it again, and move the tail over what has no hole."""
        self.recorded += len(reading.tabs)
        self.cover(reading.ranges)

    def covered_after(self, reading: Reading | None) -> int:
        """How many records are covered: before the tail, in ranges beyond it, and in this reading. It only grows."""
        ranges = merge([*self.covered, *(reading.ranges if reading is not None else ())])
        end, count = self.tail, self.tail
        for found in ranges:
            count += max(0, found.end - max(found.start, end))
            end = max(end, found.end)
        return count

    def close(self) -> None:
        """Let go of it."""
        self.names.close()
        if self.places is not None:
            self.places.close()
        super().close()

    # --- values that are no float ---

    def _read_boxes(
        self, runs: list[tuple[int, int]], total: int, boxes: Any, byte_limit: int
    ) -> tuple[list[Covered], NDArray[np.object_], NDArray[np.bool_]] | None:
        """What these runs of so many records cover, their values of these boxes (as `Scratch.count` has them), and which these are. None
        where they are more bytes than the limit, or one is no value: then each has to be looked at."""
        each = boxes.tolist()  # mostly few: as numbers of Python they are looked at in less time than numpy needs to begin
        first, last = min([begin for _, begin, _ in each]), max([begin + length for _, begin, length in each])
        if last - first > byte_limit:
            return None
        content = self.read_bytes(self.byte_tail + first, last - first)
        boxed, is_boxed = np.empty(total, np.object_), np.zeros(total, np.bool_)
        try:
            for row, begin, length in each:
                boxed[row] = unpack_counted(content[begin - first : begin - first + length])
        except ValueError:
            return None
        is_boxed[boxes[:, 0]] = True
        if len(runs) == 1:
            [(start, end)] = runs
            return [Covered(self.key, start, end, self.byte_tail + last)], boxed, is_boxed
        return self._ranges(runs, boxes[:, 0], boxes[:, 1] + boxes[:, 2]), boxed, is_boxed

    def _ranges(self, runs: list[tuple[int, int]], rows: Any, ends: Any) -> list[Covered]:
        """What these runs cover, of which these rows have values that end there behind the byte tail."""
        ranges = []
        cuts = np.searchsorted(rows, np.cumsum([0, *(end - start for start, end in runs)])).tolist()
        for (start, end), low, high in zip(runs, cuts, cuts[1:], strict=False):
            byte_end = self.byte_tail + int(ends[low:high].max()) if low < high else 0
            ranges.append(Covered(self.key, start, end, byte_end))
        return ranges

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
            content = self.read_bytes(self.byte_tail + first, last - first)
            starts = (ahead[good] - np.uint64(first)).tolist()
            for index, start, length in zip(good.tolist(), starts, lengths[good].tolist(), strict=True):
                try:
                    boxed[index] = unpack_counted(content[start : start + length])
                except ValueError:
                    malformed += 1
                    keep[index] = False
        ranges = self._ranges(runs, good, ends[good])
        if keep.all():
            return self._known(tabs, times, values, boxed, is_boxed, ranges, malformed, is_cut)
        return self._known(tabs[keep], times[keep], values[keep], boxed[keep], is_boxed[keep], ranges, malformed, is_cut)

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


def _cut_runs(runs: list[tuple[int, int]], records: int) -> list[tuple[int, int]]:
    """The first so many records of `runs`."""
    kept = []
    for start, end in runs:
        if records <= 0:
            break
        kept.append((start, min(end, start + records)))
        records -= end - start
    return kept
