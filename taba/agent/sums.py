"""Tabs that heal: their events leave a ring as what its process has added up, so that what a process added goes when it dies.

1. A ring's sum of a Tab stands in the ring, in two copies, each with the number of records that it covers. The copy that a publish
   will make true is written before it, over the one that does not hold: whatever kills the Agent, one of the two fits what was published.
2. What is sent is the sum, never a difference: an absolute that is lost is made good by the next, and all are sent again where the
   Agent began, and where batches were given up.
3. The register, on disk, names each (ring, Tab) before its first absolute is sent. When the ring's process is dead, or its segment is
   gone, the Tab is sent as RING_ENDED; when nothing older is left that could still arrive, as RING_GONE, and once more when the batch
   of the first is retained no longer. It leaves the register once nothing of its bucket waits any more: a host that boots anew loses
   the outbox, and then all that is still there is sent again.
   What the register cannot name, since its disk is full, or it has too much that is ended, waits: it is added up in the ring, and its
   events count once they are sent.
4. The register names the streams, too. A host that boots anew knows from it which ones the lost outbox had open, and ends them: what
   of them is still on its way to a Server is folded as long as they are open, and would come after RING_GONE.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from math import isfinite
from typing import Any, NamedTuple

from taba.agent.drain import Added, Drain
from taba.agent.encoding import SectionsByBucket, absolute_section
from taba.agent.keeper import Keeper
from taba.agent.lanes import PROBE_SLACK_SECONDS, RETAIN_SECONDS
from taba.agent.outbox import Covered, EncodedBatch
from taba.agent.reader import Reading, Ring
from taba.agent.register import ENDED, GONE, SENT, Register, SentSum
from taba.batch import RING_ENDED, RING_GONE
from taba.bounds import MAX_EXACT_INT
from taba.ring import Cell, MalformedRing
from taba.ring import Sum as Copy

MAX_TOLD = 1 << 19  # owed events that one publish tells of one Tab; more wait for the next
MAX_ROWS = 1000  # of the register that are sent at once, or of a ring at its end beside one a Tab: a batch's columns
AGAIN_SECONDS = RETAIN_SECONDS + PROBE_SLACK_SECONDS  # until RING_GONE is sent once more: a store that went back in time may have lost it
MAX_RESTING = 10_000  # (ring, Tab)s that wait for that, some 5 MB; those beyond leave the register without


class Sum:
    """What is known of one Tab that heals, of one open ring."""

    __slots__ = ("cell", "copy", "is_dirty", "is_noted", "is_written", "key", "owed", "owed_events", "place", "told")

    def __init__(self, cell: int, place: int, copy: Copy, owed: float, owed_events: int, key: bytes, told: int, is_written: bool):
        self.cell = cell
        # owed events that were published, as the outbox's table has them: they have no records; less those that have, and wait
        self.key, self.told = key, told
        self.place, self.copy = place, copy  # the copy that holds
        self.owed, self.owed_events = owed, owed_events
        self.is_dirty = True  # not sent since this Agent began, or not sure to have arrived
        self.is_noted = False
        # the other copy is of a publish that came to nothing: the next one may cover as many records, but others, and is to write over it
        self.is_written = is_written


class Change(NamedTuple):
    """What a publish will make true of one Sum."""

    ring: Ring
    place: int  # in the ring's directory
    copy: Copy
    told: int
    events: int
    is_held: bool  # not sent: the register does not name it yet


class Pending(NamedTuple):
    """What goes into a publish beside the drain's own columns."""

    changes: list[Change]
    weights: dict[int, int]
    events: int


class Ending(NamedTuple):
    """What goes into the publish that a ring's process is dead, beside the weights: owed events that no absolute has told before."""

    weights: dict[int, int]
    named: list[SentSum]  # that are told of as ended, and are to be told of as gone
    told: int
    beyond: int  # that no column tells: there are more than MAX_ROWS columns stand for
    unknown: int  # of Tabs that have no sum: there were too many


class Sums:
    """The Tabs that heal, of all rings of one Agent."""

    def __init__(self, keeper: Keeper, register: Register):
        self._keeper = keeper
        self.register = register
        self._losses = 0
        self._going: set[SentSum] = set()  # RING_GONE was published, and may wait yet
        self._resting: dict[SentSum, float] = {}  # it arrived; when it is to be sent once more
        self._repeated: set[SentSum] = set()  # and was
        # RING_ENDED was published, and may be lost, with the outbox of a host that died, too: it is to be sent once more
        self._anew: set[SentSum] = set(register.ended)
        self._told = {found.ring: found.end for found in keeper.books.covered}

    def pending(
        self, drain: Drain, rings: Iterable[Ring], readings: dict[Ring, Reading], added: Iterable[Added], packed: SectionsByBucket
    ) -> tuple[Pending, list[tuple[Ring, str]]]:
        """Add the absolutes that are due to `packed`, and write their copies. Returns the rings that turned out to be none, too."""
        totals: dict[Ring, dict[int, Added]] = {}
        for found in added:
            totals.setdefault(found.ring, {})[found.place] = found
        changes: list[Change] = []
        weights: dict[int, int] = {}
        broken: list[tuple[Ring, str]] = []
        # where events were given up since the last look, or a store lost batches, absolutes may be among them: all are sent again
        losses = sum(self._keeper.books.dropped.values()) + self._keeper.books.holes
        is_anew, self._losses = losses != self._losses, losses
        if is_anew:
            self._anew |= self.register.ended - self._going - self._resting.keys()
        looked: list[Ring] = []
        for ring in rings:
            try:
                self._look(drain, ring)
            except (MalformedRing, OSError) as error:
                broken.append((ring, str(error)))
                continue
            if is_anew or not ring.is_settled or ring.unsettled or ring in totals:  # few rings at most drains
                looked.append(ring)
        can_send = self._name(looked)
        for ring in looked:
            try:
                its: dict[int, Added] = totals.get(ring, {})
                left: list[int] = []  # that are looked at once more by the next: what changes by this publish, or waits
                # few sums of a ring at most drains
                places = ring.sums if is_anew or not ring.is_settled else sorted(ring.unsettled.union(its))
                covered = ring.covered_after(readings.get(ring)) if ring.sums else 0
                # of Tabs that stand for others, in which something changes: a place, the time, events, and how many of these are owed
                summed: dict[tuple[str, str], list[Any]] = {}
                for index in places:
                    held, added_here, tab = ring.sums[index], its.get(index), ring.directory[index]
                    held.is_dirty = held.is_dirty or is_anew
                    owed_events = max(0, held.owed_events - held.told)
                    if added_here is None and not (owed_events or held.is_dirty or held.is_written):
                        continue
                    left.append(index)
                    change = None
                    if tab is not None and tab.is_overflow:  # all of these go into one column, which stands for so many at the most
                        change = summed.get((tab.name, tab.type))
                    owed_events = min(owed_events, MAX_TOLD - (0 if change is None else change[3]))
                    if added_here is None and not (owed_events or held.is_dirty or held.is_written):
                        continue
                    copy = Copy(covered, held.copy.total + (added_here.total if added_here else 0.0))
                    added_events = added_here.events if added_here else 0
                    if not (can_send and held.is_noted):
                        if added_here is not None or held.is_written:
                            self._write(ring, held, copy)
                            changes.append(Change(ring, index, copy, held.told - added_events, 0, True))
                        continue
                    events = added_events + owed_events
                    self._write(ring, held, copy)
                    changes.append(Change(ring, index, copy, held.told + owed_events, events, False))
                    if tab is not None and tab.is_overflow:
                        change = summed.setdefault((tab.name, tab.type), [index, 0.0, 0, 0])
                        change[1], change[2] = max(change[1], added_here.time if added_here else 0.0), change[2] + events
                        change[3] += owed_events
                        continue
                    row = [ring.header.ring_id, min(covered + held.owed_events, RING_ENDED - 1), copy.total + held.owed]
                    assert tab is not None
                    self._pack(
                        drain, packed, weights, (ring.client, tab.name, tab.type), added_here.time if added_here else 0.0, row, events
                    )
                if summed:
                    self._pack_summed(drain, packed, weights, ring, summed, covered, changes)
                ring.is_settled, ring.unsettled = True, set(left)
            except (MalformedRing, OSError) as error:
                broken.append((ring, str(error)))
        return Pending(changes, weights, sum(change.events for change in changes)), broken

    def _name(self, rings: Iterable[Ring]) -> bool:
        """Have the register name the sums of these rings, which are about to be sent; False where it does not name the stream."""
        unnoted = [ring for ring in rings if not ring.are_noted]
        fresh = [(held, self._entry(ring, index)) for ring in unnoted for index, held in ring.sums.items() if not held.is_noted]
        if unknown := [entry for _, entry in fresh if entry not in self.register.live]:
            self.register.note(SENT, unknown)
        for held, entry in fresh:
            held.is_noted = self.register.has(entry)
        for ring in unnoted:
            ring.are_noted = all(held.is_noted for held in ring.sums.values())
        if not any(ring.sums for ring in rings):
            return True
        self.register.begin(self._keeper.stream)
        return self.register.has(self._keeper.stream)

    def may_go(self, pending: Pending, batches: Sequence[EncodedBatch]) -> bool:
        """Whether what is pending may be published in these batches: their stream is named."""
        if not batches or all(change.is_held for change in pending.changes):
            return True
        stream = batches[0].id.stream  # all are of one
        self.register.begin(stream)
        return self.register.has(stream)

    def _pack_summed(
        self,
        drain: Drain,
        packed: SectionsByBucket,
        weights: dict[int, int],
        ring: Ring,
        summed: dict[tuple[str, str], list[Any]],
        covered: int,
        changes: Iterable[Change],
    ) -> None:
        """Add to `packed` what Tabs that stand for others are by now: of each all sums in the ring, those that do not change as well."""
        fresh = {change.place: change.copy for change in changes if change.ring is ring}
        totals: dict[tuple[str, str], list[Any]] = {key: [0.0, covered] for key in summed}
        for index, held in ring.sums.items():
            tab = ring.directory[index]
            if tab is None or not tab.is_overflow or (total := totals.get((tab.name, tab.type))) is None:
                continue
            total[0] += fresh.get(index, held.copy).total + held.owed
            total[1] += held.owed_events
        for key, (_, time, events, _) in summed.items():
            total, position = totals[key]
            row = [ring.header.ring_id, min(position, RING_ENDED - 1), total]
            self._pack(drain, packed, weights, (ring.client, *key), time, row, events)

    def spares(self, events: int) -> None:
        """So many events were given up that no absolute was among: none is sent again for them."""
        self._losses += events

    def published(self, pending: Pending, is_sent: bool) -> None:
        """The publish is made: the copies that were written hold. Where the batches were dropped, the sums go again."""
        for change in pending.changes:
            held = change.ring.sums[change.place]
            held.place, held.copy, held.told, held.is_written = 1 - held.place, change.copy, change.told, False
            held.is_dirty = change.is_held or not is_sent
            self._note_told(change.ring, change.place, change.told)

    def ending(self, drain: Drain, ring: Ring, packed: SectionsByBucket) -> Ending | None:
        """Add to `packed` that this ring's process is dead. None where not all of its Tabs are known yet."""
        weights: dict[int, int] = {}
        named: list[SentSum] = []
        told = beyond = known = 0
        self._look(drain, ring)
        if ring.owes and ring.names.is_behind:
            return None
        more = MAX_ROWS
        for index, held in ring.sums.items():
            left = max(0, held.owed_events - held.told)
            known += held.owed_events
            entry = self._entry(ring, index)
            # of what was never sent nothing can arrive: a register that is full need not name it
            is_named = self.register.knows(entry) or not self.register.is_full
            row = [ring.header.ring_id, RING_ENDED if is_named else RING_GONE, 0.0]
            if is_named:
                named.append(entry)
            key = entry.client, entry.tab, entry.type
            while True:  # a column stands for so many events at the most; to say a second time that it is ended does no harm
                events = min(left, MAX_TOLD)
                self._pack(drain, packed, weights, key, 0.0, row, events)
                told, left = told + events, left - events
                if not left or not more:
                    break
                more -= 1
            beyond += left
        owed = min(ring.owes, MAX_EXACT_INT) if ring.where.records else 0
        return Ending(weights, named, told, min(beyond, MAX_EXACT_INT), max(0, owed - known))

    def covered(self, rings: Iterable[Ring], pending: Pending | None = None) -> Iterator[Covered]:
        """How many owed events of each Tab were published, for the outbox's table."""
        told: dict[Ring, dict[int, int]] = {}
        for change in pending.changes if pending is not None else ():
            if change.told or change.place in change.ring.telling:
                told.setdefault(change.ring, {})[change.place] = change.told
        for ring in rings:
            its = told.get(ring, {})
            for index in sorted(ring.telling.union(its)):
                held = ring.sums[index]
                if count := its.get(index, held.told):
                    yield Covered(held.key, 0, count, 0)

    def ended(self, ending: Ending) -> None:
        """The publish that says so is made."""
        if ending.named:
            self.register.note(ENDED, ending.named)

    def sending(self, batches: Sequence[EncodedBatch]) -> None:
        """These, which have absolutes, are about to be published."""
        if batches:  # all of one stream
            self.register.begin(batches[0].id.stream)

    def take_up(self, drain: Drain) -> None:
        """Have ended what an earlier Agent may have left open and the keeper knows nothing of, since its outbox is new."""
        buckets = {drain.bucket(entry.tab) for entry in self.register.live | self.register.ended}
        for stream in self.register.streams:
            self._keeper.left_open(stream, buckets)

    def overdue(self, drain: Drain, rings: Iterable[Ring], directory: str, now: float) -> tuple[list[SentSum], list[SentSum]]:
        """What is to be sent as RING_ENDED because its segment is gone, and as RING_GONE because nothing older can arrive any more."""
        gone = [entry for entry, again in self._resting.items() if again <= now]
        left = self.register.ended - self._going - self._resting.keys()
        if left:
            older = self._keeper.older_buckets()
            gone += sorted(entry for entry in left if drain.bucket(entry.tab) not in older)
        self._anew &= left  # what is gone is ended, too
        lost = list(self._anew)
        if self.register.live:
            there = {ring.header.ring_id.hex() for ring in rings}
            lost += (
                entry
                for entry in self.register.live
                if entry.ring not in there and not os.path.exists(os.path.join(directory, entry.segment))
            )
        return sorted(lost)[:MAX_ROWS], gone[:MAX_ROWS]

    def told(self, word: str, entries: Sequence[SentSum]) -> None:
        """These were published as RING_ENDED, or as RING_GONE."""
        if word == GONE:
            self._repeated.update(entry for entry in entries if self._resting.pop(entry, None) is not None)
            self._going.update(entries)
        else:
            self._anew.difference_update(entries)
            self.register.note(word, entries)

    def forget(self, drain: Drain, now: float) -> None:
        """Take out of the register what was sent as RING_GONE, and waits no more, and streams of which nothing can be folded."""
        if self._going:
            waiting = self._keeper.waiting_buckets()
            arrived = sorted(entry for entry in self._going if drain.bucket(entry.tab) not in waiting)
            self._going.difference_update(arrived)
            gone = []
            for entry in arrived:
                if entry in self._repeated or len(self._resting) >= MAX_RESTING:
                    self._repeated.discard(entry)
                    gone.append(entry)
                else:
                    self._resting[entry] = now + AGAIN_SECONDS
            self.register.note(GONE, gone)
        self.register.over([stream for stream in self.register.streams if not self._keeper.is_known(stream)])

    def pack(self, drain: Drain, packed: SectionsByBucket, weights: dict[int, int], entries: Iterable[SentSum], position: int) -> None:
        """Add to `packed` that these are at RING_ENDED or RING_GONE."""
        for entry in entries:
            key = entry.client, entry.tab, entry.type
            self._pack(drain, packed, weights, key, 0.0, [bytes.fromhex(entry.ring), position, 0.0], 0)

    @staticmethod
    def _pack(
        drain: Drain, packed: SectionsByBucket, weights: dict[int, int], key: tuple[str, str, str], time: float, row: list[Any], events: int
    ) -> None:
        client, tab, type = key
        bucket = drain.bucket(tab)
        packed[bucket].append(absolute_section(client, tab, type, time, row, events))
        weights[bucket] = weights.get(bucket, 0) + events - 1

    def _look(self, drain: Drain, ring: Ring) -> None:
        """Take up new Tabs of the directory, as many as this drain may, and what is owed since the last look."""
        owes = ring.read_owes()
        is_changed, ring.owes = owes != ring.owes, owes
        # for the first time, too: an earlier Agent may have sent its sums; of a blocked ring the drain reads them, in its turn
        if is_changed or (ring.names.is_behind and not ring.is_blocked):
            drain.read_names(ring)
        if is_changed:
            ring.is_settled = False
            for held in ring.sums.values():
                cell = _checked(ring.read_cell(held.cell))
                held.owed, held.owed_events = cell.owed, max(held.owed_events, cell.owed_events)
        if ring.summed < len(ring.directory):
            ring.is_settled = ring.are_noted = False
            covered = ring.covered_after(None)
            for index in range(ring.summed, len(ring.directory)):
                tab = ring.directory[index]
                if tab is not None and tab.cell is not None:
                    cell = _checked(ring.read_cell(tab.cell))
                    key = hashlib.blake2b(ring.key + index.to_bytes(4, "big"), digest_size=16).digest()
                    told = self._told.get(key, 0)
                    place, copy = cell.sum_at(covered)
                    is_written = cell.sums[1 - place].covered > covered
                    ring.sums[index] = Sum(tab.cell, place, copy, cell.owed, cell.owed_events, key, told, is_written)
                    self._note_told(ring, index, told)
            ring.summed = len(ring.directory)

    @staticmethod
    def _write(ring: Ring, held: Sum, copy: Copy) -> None:
        """Write a copy that is to hold once the publish is made."""
        held.is_written = True
        ring.write_sum(held.cell, 1 - held.place, copy)

    @staticmethod
    def _note_told(ring: Ring, place: int, told: int) -> None:
        """So many owed events of this sum were published: of most none ever is, and for the table those are not gone through."""
        if told:
            ring.telling.add(place)
        else:
            ring.telling.discard(place)

    def _entry(self, ring: Ring, index: int) -> SentSum:
        tab = ring.directory[index]
        assert tab is not None
        return SentSum(ring.header.ring_id.hex(), ring.name, ring.client, tab.name, tab.type)


def _checked(cell: Cell) -> Cell:
    """The cell with numbers that are numbers, and counts that can be added up: whoever wrote it may be hostile."""
    sums = [Copy(copy.covered, copy.total if isfinite(copy.total) else 0.0) for copy in cell.sums]
    return Cell(cell.owed if isfinite(cell.owed) else 0.0, min(cell.owed_events, MAX_EXACT_INT), (sums[0], sums[1]))
