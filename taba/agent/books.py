"""The books of one Agent: what becomes of its batches, as their lanes say it, and what of that each table says.

1. A batch of a lane ends in exactly one count: acknowledged and forgotten, or given up under a reason.
2. What was counted is dirty until a table that says it was published. What was dropped is named until it is settled where it lies.
3. What was forgotten is noted in the history, so that a store that loses it later is not taken for one that lost events anew.

The books know no socket and no clock; where they publish, and what they read batches from, is their owner's.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from taba.agent.ages import Moment
from taba.agent.history import History
from taba.agent.lanes import MAX_HISTORY, PROBE_SLACK_SECONDS, RETAIN_SECONDS, HeldBatch, Lane, Skip, Unreadable
from taba.agent.openings import Openings
from taba.agent.outbox import Covered, OutboxFull, Skipped, Table
from taba.agent.schedule import Schedule
from taba.agent.spool import Spool, SpoolFull
from taba.batch import BatchId
from taba.bounds import MiB

MAX_RETAINED_BYTES = 64 * MiB  # acknowledged batches that are kept for 60 s: given up first
MAX_RETAINED_BATCHES = 65_536  # likewise, acknowledged: the oldest are given up first
MAX_SETTLING = 256  # batches that were dropped and that no table names yet: with the 257th one is published
REFUSALS_SHOWN = 16


class Refusal(NamedTuple):
    """A batch that was given up at `now`, and why; for people."""

    bucket: int
    events: int
    reason: str
    detail: str
    now: float


class Books:
    """A Ledger, but for what batches are read from."""

    def __init__(self, spool: Spool, history: History, schedule: Schedule):
        self.spool, self.history, self.schedule = spool, history, schedule
        self._spool_retained: deque[tuple[Lane, HeldBatch]] = deque()
        self._to_forget: dict[tuple[bytes, int], int] = {}
        self.retained_bytes = self.retained_batches = 0
        self._pending_bytes = self._pending_batches = 0  # of batches in the outbox that are not acknowledged
        self.recorded = 0  # events that were in rings or posted, and those that the clients of retired rings dropped
        self.dropped: Counter[str] = Counter()
        self.given_up = 0  # acknowledged batches that were forgotten before their time
        self.acknowledged_batches = self.acknowledged_bytes = 0  # since this Agent's start
        self.holes = 0  # gaps that a store showed and that nothing retained fills, since this Agent's start; counted or not
        self.lost_batches = 0  # ever, that a store lost and nobody had any more; of some nobody knows how many events they held
        self.spool_problem: str | None = None
        self.refusals: deque[Refusal] = deque(maxlen=REFUSALS_SHOWN)
        self.covered: tuple[Covered, ...] = ()
        self.retired: set[bytes] = set()
        self.openings = Openings()
        self.unreadable: dict[BatchId, str] = {}  # in the spool, and why they cannot be read now; of each lane one at the most
        self._settling: dict[BatchId, HeldBatch | None] = {}  # dropped and counted: the next table says so
        self._skips: dict[tuple[bytes, int], Skip] = {}
        self._counted: list[BatchId] = []  # that a store lost: once a table has their count, the history says so
        self._newest: Moment | None = None  # when a batch was published last
        self._sequence = 0  # of the last table
        self._is_dirty = False  # totals changed since

    def read(self, lane: Lane, batch: HeldBatch) -> bytes | None:
        """The owner's: the bytes of a batch, as a Ledger gives them."""
        raise NotImplementedError

    def settle_totals(self) -> None:
        """The owner's: publish totals that changed since the last publish. Raises SpoolFull where that cannot be."""
        raise NotImplementedError

    def totals(self) -> Counter[str]:
        """Events dropped, by reason: by this Agent, and by the clients of retired rings."""
        return self.dropped.copy()

    @property
    def holds_backlog(self) -> bool:
        """Whether so much of the spool was dropped that its disk does not remove that no more of it is sent before that is done."""
        return len(self._settling) >= MAX_SETTLING

    # --- what lanes say (Ledger) ---

    def acknowledged(self, lane: Lane, batch: HeldBatch, now: float) -> None:
        self.acknowledged_batches += 1
        self.acknowledged_bytes += batch.length
        if not lane.retained:
            self.schedule.watch(lane, now + RETAIN_SECONDS + PROBE_SLACK_SECONDS)
        if batch.group is None:
            self.unreadable.pop(id_of(lane, batch), None)  # its mark tells that the store has it: it is read no more
            self._spool_retained.append((lane, batch))
        else:
            batch.group.unacknowledged -= 1
            batch.group.retained += batch.length
            self._pending_bytes -= batch.length
            self._pending_batches -= 1
        self.retained_bytes += batch.length
        self.retained_batches += 1

    def brought_back(self, lane: Lane, batch: HeldBatch) -> None:
        if batch.group is not None:
            batch.group.unacknowledged += 1
            batch.group.retained -= batch.length
            self._pending_bytes += batch.length
            self._pending_batches += 1
        self.retained_bytes -= batch.length
        self.retained_batches -= 1

    def forgotten(self, lane: Lane, batch: HeldBatch) -> None:
        self.retained_bytes -= batch.length
        self.retained_batches -= 1
        if batch.group is None:
            self.history.note(id_of(lane, batch), batch.events)
            self._to_forget[lane.stream, lane.bucket] = batch.number
        else:
            batch.group.unforgotten -= 1
            batch.group.retained -= batch.length

    def gave_up(self, lane: Lane, batch: HeldBatch, reason: str, detail: str, now: float) -> None:
        self.refusals.append(Refusal(lane.bucket, batch.events, reason, detail[:200], now))
        if reason in ("refused", "spool_corrupt"):
            self._keep_aside(lane, batch, detail)
        if batch.group is not None:
            batch.group.unacknowledged -= 1
            batch.group.unforgotten -= 1
            self._pending_bytes -= batch.length
            self._pending_batches -= 1
        else:
            self.unreadable.pop(id_of(lane, batch), None)
            self.history.note(id_of(lane, batch), 0)
        self.dropped[reason] += batch.events
        self._settling[id_of(lane, batch)] = batch
        self._is_dirty = True
        if len(self._settling) >= MAX_SETTLING:
            with contextlib.suppress(OutboxFull, SpoolFull):  # nothing is sent before it is done: that raises again
                self.settle_totals()

    def _keep_aside(self, lane: Lane, batch: HeldBatch, detail: str) -> None:
        try:
            content = self.read(lane, batch) or self.spool.torn(id_of(lane, batch))
            if content is not None:
                self.spool.keep_aside(id_of(lane, batch), detail[:200], content)
        except (sqlite3.Error, Unreadable) as error:  # its bytes are lost to those who would look at them; it is counted all the same
            self.spool_problem = f"{error}"

    def opening(self, lane: Lane) -> None:
        # the table names it before the last of its batches is let go of: until then these name it
        self.openings.open(lane.stream, lane.bucket)
        self._is_dirty = True

    def ending(self, lane: Lane) -> None:
        self._is_dirty = self.openings.end(lane.stream, lane.bucket) or self._is_dirty

    def ended(self, lane: Lane) -> None:
        self.openings.ended(lane.stream, lane.bucket)
        self._is_dirty = True

    def recall(self, lane: Lane, numbers: Sequence[int]) -> Mapping[int, int]:
        try:
            found = self.history.find(lane.stream, lane.bucket, numbers)
            # counted already, and noted when that is published
            return {**found, **{id.number: 0 for id in self._counted if id.stream == lane.stream and id.bucket == lane.bucket}}
        except OSError as error:  # the batches are counted as lost; how many events they held nobody knows
            self.spool_problem = f"{error}"
            return {}

    def skipping(self, lane: Lane, skip: Skip | None) -> None:
        if skip is not None:
            self._skips[lane.stream, lane.bucket] = skip
        else:
            del self._skips[lane.stream, lane.bucket]
        self._is_dirty = True

    def lost(self, lane: Lane, skip: Skip, now: float) -> None:
        detail = f"{skip.batches} batches that the store lost and that were not kept"
        self.refusals.append(Refusal(lane.bucket, skip.events, "gap", detail, now))
        self.lost_batches += skip.batches
        if skip.events:
            self.dropped["gap"] += skip.events
        self._skips.pop((lane.stream, lane.bucket), None)
        first = max(skip.follows + 1, skip.number - MAX_HISTORY)
        self._counted += [BatchId(lane.stream, lane.bucket, number) for number in range(first, skip.number)]
        self._is_dirty = True

    def misses(self, lane: Lane) -> None:
        self.holes += 1

    # --- what a table says ---

    def _table(self, covered: tuple[Covered, ...], recorded: int, dropped: Counter[str]) -> Table:
        skipped = tuple(Skipped(BatchId(*key, skip.number), skip.follows, skip.batches, skip.events) for key, skip in self._skips.items())
        retired, totals = tuple(sorted(self.retired)), tuple(sorted((+dropped).items()))
        newest = None if self._newest is None else self._newest.fields()
        counts = self._sequence + 1, self.lost_batches, newest, self.spool.salvage
        settled = tuple(self._settling)
        return Table(covered, retired, settled, recorded, totals, skipped, self.openings.fields(), *counts)

    def _totals_with(self, dropped: Mapping[str, int] | None) -> Counter[str]:
        totals = self.dropped.copy()
        totals.update(dropped or {})
        return totals

    # --- what is retained ---

    def _flush_history(self) -> None:
        try:
            self.history.flush()
        except OSError as error:  # should just these batches be lost by the store, nobody knows how many events that are
            self.spool_problem = f"{error}"

    @property
    def _retains_too_much(self) -> bool:
        return self.retained_bytes > MAX_RETAINED_BYTES or self.retained_batches > MAX_RETAINED_BATCHES


def id_of(lane: Lane, batch: HeldBatch) -> BatchId:
    return BatchId(lane.stream, lane.bucket, batch.number)
