"""The books of one Agent: what becomes of its batches, as their lanes say it, and what of that each table says.

1. A batch of a lane ends in exactly one count: acknowledged and forgotten, or given up under a reason.
2. What was counted is dirty until a table that says it was published. What was dropped is named until it is settled where it lies.
3. What was forgotten is noted in the history, so that a store that loses it later is not taken for one that lost events anew.

The books know no socket and no clock. They are handed the history, the schedule that is told when a lane is looked at again, and the
Shelf that has the bytes.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from taba.agent.ages import Moment
from taba.agent.history import History
from taba.agent.lanes import IN_OUTBOX, IN_SPOOL, MAX_HISTORY, PROBE_SLACK_SECONDS, RETAIN_SECONDS, HeldBatch, Lane, Skip, Unreadable
from taba.agent.openings import Openings
from taba.agent.outbox import Covered, OutboxFull, Skipped, Table
from taba.agent.schedule import Schedule
from taba.agent.spool import SpoolFull
from taba.batch import BatchId
from taba.bounds import MiB
from taba.plural import many

MAX_RETAINED_BYTES = 64 * MiB  # acknowledged batches that are kept for 60 s: given up first
MAX_RETAINED_BATCHES = 65_536  # likewise, acknowledged: the oldest are given up first
MAX_SETTLING = 256  # batches that were dropped and that no table names yet: with the 257th one is published
REFUSALS_SHOWN = 16
MAX_TOTAL = 2**63 - 1  # of a count: hostile rings say what they like, and with what no table can hold nothing could be published any more


class Refusal(NamedTuple):
    """A batch that was given up at `now`, and why; for people."""

    bucket: int
    events: int
    reason: str
    detail: str
    now: float


class Shelf(Protocol):
    """Where batches lie, and where a table is published that says what became of them."""

    def read(self, lane: Lane, batch: HeldBatch) -> bytes | None:
        """The bytes of a batch, as a Ledger gives them."""

    def keep_aside(self, lane: Lane, batch: HeldBatch, reason: str) -> None:
        """Keep the bytes of a batch that was given up, or what is left of them. Raises Unreadable and sqlite3.Error."""

    def settle_totals(self) -> None:
        """Publish totals that changed since the last publish. Raises SpoolFull where that cannot be."""


class Books:
    """The Ledger of one Agent's lanes."""

    def __init__(self, shelf: Shelf, history: History, schedule: Schedule):
        self._shelf, self._history, self._schedule = shelf, history, schedule
        self.spool_retained: deque[tuple[Lane, HeldBatch]] = deque()
        self.to_forget: dict[tuple[bytes, int], int] = {}
        self.retained_bytes = self.retained_batches = 0
        self.pending_bytes = self.pending_batches = 0  # of batches in the outbox that are not acknowledged
        self.recorded = 0  # events that were in rings or posted, and those that the clients of retired rings dropped
        self.dropped: Counter[str] = Counter()
        self.given_up = 0  # acknowledged batches that were forgotten before their time
        self.acknowledged_batches = self.acknowledged_bytes = 0  # since this Agent's start
        self.holes = 0  # gaps that a store showed and that nothing retained fills, since this Agent's start; counted or not
        self.lost_batches = 0  # ever, that a store lost and nobody had any more; of some nobody knows how many events they held
        self.spool_problem: str | None = None
        self.history_problem: str | None = None  # why what was forgotten could not be noted: it is tried again each second
        self.refusals: deque[Refusal] = deque(maxlen=REFUSALS_SHOWN)
        self.covered: tuple[Covered, ...] = ()
        self.retired: set[bytes] = set()
        self.openings = Openings()
        self.unreadable: dict[BatchId, str] = {}  # in the spool, and why they cannot be read now; of each lane one at the most
        self.settling: dict[BatchId, HeldBatch | None] = {}  # dropped and counted: the next table says so
        self.told: frozenset[BatchId] = frozenset()  # of these, what the last table says
        self.found: dict[tuple[bytes, int], dict[int, int]] = {}  # events of what the spool lost, and is not: it no longer says so soon
        self.skips: dict[tuple[bytes, int], Skip] = {}
        self.counted: list[BatchId] = []  # that a store lost: once a table has their count, the history says so
        self.newest: Moment | None = None  # when a batch was published last
        self.sequence = 0  # of the last table
        self.is_dirty = False  # totals changed since

    def totals(self) -> Counter[str]:
        """Events dropped, by reason: by this Agent, and by the clients of retired rings."""
        return self.dropped.copy()

    @property
    def holds_backlog(self) -> bool:
        """Whether so much of the spool was dropped that its disk does not remove that no more of it is sent before that is done."""
        return len(self.settling) >= MAX_SETTLING

    # --- what lanes say, and ask (Ledger) ---

    def read(self, lane: Lane, batch: HeldBatch) -> bytes | None:
        return self._shelf.read(lane, batch)

    def acknowledged(self, lane: Lane, batch: HeldBatch, now: float) -> None:
        """A Server has `batch`: it is retained from now on."""
        self.acknowledged_batches += 1
        self.acknowledged_bytes += batch.length
        if not lane.retained:
            self._schedule.watch(lane, now + RETAIN_SECONDS + PROBE_SLACK_SECONDS)
        if batch.group is None:
            self.unreadable.pop(id_of(lane, batch), None)  # its mark tells that the store has it: it is read no more
            self.spool_retained.append((lane, batch))
        else:
            batch.group.unacknowledged -= 1
            batch.group.retained += batch.length
            self.pending_bytes -= batch.length
            self.pending_batches -= 1
        self.retained_bytes += batch.length
        self.retained_batches += 1

    def brought_back(self, lane: Lane, batch: HeldBatch) -> None:
        """The store lost `batch`, which is retained: it is sent again."""
        if batch.group is not None:
            batch.group.unacknowledged += 1
            batch.group.retained -= batch.length
            self.pending_bytes += batch.length
            self.pending_batches += 1
        self.retained_bytes -= batch.length
        self.retained_batches -= 1

    def forgotten(self, lane: Lane, batch: HeldBatch) -> None:
        """`batch` is retained no longer: the mark still covered it."""
        self.retained_bytes -= batch.length
        self.retained_batches -= 1
        if batch.group is None:
            self._history.note(id_of(lane, batch), batch.events)
            self.to_forget[lane.stream, lane.bucket] = batch.number
        else:
            batch.group.unforgotten -= 1
            batch.group.retained -= batch.length

    def gave_up(self, lane: Lane, batch: HeldBatch, reason: str, detail: str, now: float) -> None:
        """`batch` is dropped for `reason`, its Events counted; what may be looked into by a person is kept aside."""
        self.refusals.append(Refusal(lane.bucket, batch.events, reason, detail[:200], now))
        if reason in ("refused", IN_OUTBOX[0], IN_SPOOL[0]):
            self._keep_aside(lane, batch, detail)
        if batch.group is not None:
            batch.group.unacknowledged -= 1
            batch.group.unforgotten -= 1
            self.pending_bytes -= batch.length
            self.pending_batches -= 1
        else:
            self.unreadable.pop(id_of(lane, batch), None)
            self._history.note(id_of(lane, batch), 0)
        self.dropped[reason] += batch.events
        self.settling[id_of(lane, batch)] = batch
        self.is_dirty = True
        if len(self.settling) >= MAX_SETTLING:
            with contextlib.suppress(OutboxFull, SpoolFull):  # nothing is sent before it is done: that raises again
                self._shelf.settle_totals()

    def _keep_aside(self, lane: Lane, batch: HeldBatch, detail: str) -> None:
        try:
            self._shelf.keep_aside(lane, batch, detail[:200])
        except (sqlite3.Error, Unreadable) as error:  # its bytes are lost to those who would look at them; it is counted all the same
            self.spool_problem = f"{error}"

    def opening(self, lane: Lane) -> None:
        # the table names it before the last of its batches is let go of: until then these name it
        self.openings.open(lane.stream, lane.bucket)
        self.is_dirty = True

    def ending(self, lane: Lane) -> None:
        self.is_dirty = self.openings.end(lane.stream, lane.bucket) or self.is_dirty

    def ended(self, lane: Lane) -> None:
        self.openings.ended(lane.stream, lane.bucket)
        self.is_dirty = True

    def recall(self, lane: Lane, numbers: Sequence[int]) -> Mapping[int, int]:
        try:
            found = self._history.find(lane.stream, lane.bucket, numbers)
            # counted already, and noted when that is published
            return {**found, **{id.number: 0 for id in self.counted if id.stream == lane.stream and id.bucket == lane.bucket}}
        except OSError as error:  # the batches are counted as lost; how many events they held nobody knows
            self.spool_problem = f"{error}"
            return {}

    def skipping(self, lane: Lane, skip: Skip | None) -> None:
        if skip is not None:
            self.skips[lane.stream, lane.bucket] = skip
        else:
            del self.skips[lane.stream, lane.bucket]
        self.is_dirty = True

    def lost(self, lane: Lane, skip: Skip, now: float) -> None:
        """What the store lost and nobody keeps is skipped: its Events are counted under gap."""
        detail = f"{many(skip.batches, 'batch')} that the store lost, not kept here"
        self.refusals.append(Refusal(lane.bucket, skip.events, "gap", detail, now))
        self.lost_batches += skip.batches
        if skip.events:
            self.dropped["gap"] += skip.events
        self.skips.pop((lane.stream, lane.bucket), None)
        first = max(skip.follows + 1, skip.number - MAX_HISTORY)
        self.counted += [BatchId(lane.stream, lane.bucket, number) for number in range(first, skip.number)]
        self.is_dirty = True

    def misses(self, lane: Lane) -> None:
        """The lane has nothing of what comes next after the mark: a hole."""
        self.holes += 1

    def settles_doubt(self, lane: Lane, mark: int) -> None:
        """Of what the spool lost of a lane the store has what `mark` covers; the rest is counted, as far as a table has room to name it."""
        for number in sorted(lane.doubt):
            if number <= mark:
                self.found.setdefault((lane.stream, lane.bucket), {})[number] = lane.doubt.pop(number)
                continue
            if self.holds_backlog:
                with contextlib.suppress(OutboxFull, SpoolFull):
                    self._shelf.settle_totals()
                if self.holds_backlog:
                    return  # the disk removes nothing: a table names no more of them, and the lane asks again
            id = BatchId(lane.stream, lane.bucket, number)
            self.dropped[IN_SPOOL[0]] += lane.doubt.pop(number)
            self.counted.append(id)
            self.settling[id] = None
            self.is_dirty = True

    def note_forgotten(self, id: BatchId, events: int) -> None:
        """Nothing is left here of a batch that a Server applied."""
        self._history.note(id, events)

    # --- what a table says ---

    def table(self, covered: tuple[Covered, ...], recorded: int, dropped: Counter[str], salvage: str) -> Table:
        """The next table, with these ranges and totals; `salvage` names the last of the spool's of which the losses are in them."""
        skipped = tuple(Skipped(BatchId(*key, skip.number), skip.follows, skip.batches, skip.events) for key, skip in self.skips.items())
        retired, totals = tuple(sorted(self.retired)), tuple(sorted((+dropped).items()))
        newest = None if self.newest is None else self.newest.fields()
        counts = self.sequence + 1, self.lost_batches, newest, salvage
        settled = tuple(self.settling)
        recorded = min(recorded, MAX_TOTAL)
        return Table(covered, retired, settled, recorded, totals, skipped, self.openings.fields(), *counts)

    def totals_with(self, dropped: Mapping[str, int] | None) -> Counter[str]:
        totals = self.dropped.copy()
        totals.update(dropped or {})
        for reason, events in totals.items():
            if events > MAX_TOTAL:
                totals[reason] = MAX_TOTAL
        return totals

    # --- what is retained ---

    def flush_history(self) -> None:
        try:
            self._history.flush()
        except OSError as error:  # should just these batches be lost by the store, nobody knows how many events that are
            self.history_problem = f"{error}"
        else:
            self.history_problem = None

    @property
    def retains_too_much(self) -> bool:
        return self.retained_bytes > MAX_RETAINED_BYTES or self.retained_batches > MAX_RETAINED_BATCHES


def id_of(lane: Lane, batch: HeldBatch) -> BatchId:
    """The BatchId of a batch that a lane holds."""
    return BatchId(lane.stream, lane.bucket, batch.number)
