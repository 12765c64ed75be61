"""What an Agent does with its spool: it is filled, read, mended where it is damaged, and its lanes are taken up in their turn.

1. What a salvage could not read is counted once, when it is found; what of it is on its way to a Server is brought back.
2. An error of the disk's is a problem, and what it kept from being done is tried again; only damage is mended, and that seldom.
3. Of the lanes that are on disk so many are worked on at once; the others wait there.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from taba.agent.books import Books
from taba.agent.history import History
from taba.agent.lanes import MAX_RUN_BATCHES, HeldBatch, Lane, Outgoing
from taba.agent.outbox import EncodedBatch, Outbox, Table, encode_table
from taba.agent.schedule import Schedule
from taba.agent.spool import Spool, SpoolFull, is_damage
from taba.batch import BatchId, SentBatch

MAX_LANES = 32_768  # some 1 KiB each; an Agent's own streams have one a bucket, posted events with a key one a bucket and key
MAX_SPOOL_LANES = 1024  # lanes of the spool that are worked on at once; the others wait on disk
SPOOL_ROWS = MAX_RUN_BATCHES  # batches that a lane knows ahead of the spool; a run under way is among them
HEAL_SECONDS = 60.0  # between two tries to mend a spool: each writes all of it anew


class Backlog(Books):
    """The spool's side of a Keeper. `_now` is its owner's last tick."""

    def __init__(self, outbox: Outbox, spool: Spool, history: History, now: float):
        super().__init__(spool, history, Schedule())
        self.outbox = outbox
        self.lanes: dict[tuple[bytes, int], Lane] = {}
        self._cursor: tuple[bytes, int] | None = None
        self._activated = now
        self._salvage = ""  # of the spool's, the last of which the lost batches are counted
        self._stuck: list[Lane] = []  # that could not be loaded from the spool
        self._healed = -HEAL_SECONDS  # when it was tried last
        self._now = now

    def queue(self, lane: Lane, now: float) -> None:
        """The owner's: put a lane in the schedule when it has something to send."""
        raise NotImplementedError

    # --- in ---

    def _spool(self, batches: Sequence[EncodedBatch], table: Table | None = None) -> None:
        """Keep batches, and a table that the outbox has no room for, in the spool. Raises SpoolFull."""
        journal = None if table is None else (self.outbox.id, encode_table(table))
        try:
            self.spool.add(batches, journal)
        except SpoolFull as error:
            if error.is_disk:
                self.spool_problem = f"{error}"
            if not (error.is_damaged and self._heal(sqlite3.DatabaseError(f"{error}"))):
                raise
            self.spool.add(batches, journal)
        self.spool_problem = None

    # --- out ---

    def _read_spooled(self, id: BatchId) -> bytes | None:
        try:
            return self.spool.read(id)
        except sqlite3.Error as error:
            if not is_damage(error) or not self._heal(error):
                raise
        return self.spool.read(id)

    def _load(self, lane: Lane) -> None:
        while lane.more and not lane.pending:
            try:
                rows = self.spool.rows(lane.stream, lane.bucket, lane.loaded, SPOOL_ROWS)
            except sqlite3.Error as error:
                if self._heal(error):
                    continue
                self._stuck.append(lane)  # tried again in a second
                return
            batches = [HeldBatch(row) for row in rows if row.id not in self._settling]  # dropped, but not yet removed
            lane.load(batches, rows[-1].id.number if rows else 0, len(rows) == SPOOL_ROWS)

    def _activate(self, now: float) -> None:
        """Take up lanes of the spool until enough are worked on. Walks the spool once a second at the most."""
        self._activated = now
        stuck, self._stuck = self._stuck, []
        for lane in stuck:
            if self.lanes.get((lane.stream, lane.bucket)) is lane:
                self.queue(lane, now)
        turns = MAX_SPOOL_LANES
        while len(self.schedule.backlog) < MAX_SPOOL_LANES and len(self.lanes) < MAX_LANES and self.spool.batches and turns:
            turns -= 1
            try:
                key = self.spool.next_lane(self._cursor)
            except sqlite3.Error as error:
                self._heal(error)  # and the next time it is looked at again
                break
            self._cursor = key
            if key is None:
                break
            if key not in self.lanes:
                lane = self.lanes[key] = Lane(*key, self, True)
                self.queue(lane, now)

    # --- what is done with ---

    def _forget_spooled(self) -> None:
        if not self._to_forget:
            return
        self._flush_history()
        try:
            self.spool.forget([BatchId(stream, bucket, number) for (stream, bucket), number in self._to_forget.items()])
        except sqlite3.Error as error:  # tried again
            self._heal(error)
        else:
            self._to_forget.clear()
            self.spool_problem = None

    def _give_up_spooled(self) -> None:
        """Forget the spool's batches that are acknowledged: what is not goes before them."""
        while self._spool_retained:
            lane, batch = self._spool_retained.popleft()
            self.given_up += lane.give_up_through(batch)
        self._forget_spooled()

    def _discard_settled(self) -> None:
        """Remove from the spool what the last table says was dropped."""
        if self._settling:
            self._flush_history()
            try:
                self.spool.discard(self._settling)
            except sqlite3.Error as error:  # named by the next tables, too, until it is done
                self._heal(error)
            else:
                self._settling.clear()
                self.spool_problem = None

    # --- damage ---

    def _heal(self, error: sqlite3.Error) -> bool:
        """What to do about an error of the spool's: mend it where it is damaged. True: try again."""
        self.spool_problem = f"{error}"
        if not is_damage(error) or self._now - self._healed < HEAL_SECONDS:
            return False
        self._healed = self._now
        try:
            self.spool.heal(f"{error}")
        except (OSError, sqlite3.Error) as failure:
            self.spool_problem = f"{error}; and it cannot be mended: {failure}"
            return False
        self.spool_problem = None
        self._count_lost(set(self._settling))
        return True

    def _count_lost(self, settled: set[BatchId]) -> None:
        """Count what a salvage of the spool could not read, once. What of it is under way to a Server is brought back."""
        if not self.spool.salvage or self.spool.salvage == self._salvage:
            return
        self._salvage = self.spool.salvage
        under_way: list[EncodedBatch] = []
        for id, events in self.spool.lost.items():
            if id in settled or id.number <= self._to_forget.get(id[:2], 0):
                continue
            lane = self.lanes.get(id[:2])
            if lane is not None and id.number <= lane.loaded:
                found = lane.lose(id.number)
                if isinstance(found, Outgoing) and isinstance(found.entry, SentBatch) and found.batch is not None:
                    under_way.append(EncodedBatch(id, found.batch.created, events, found.entry.batch, found.batch.key))
                if not isinstance(found, HeldBatch):
                    continue  # done with, or it may be applied yet
            self.unreadable.pop(id, None)
            self._counted.append(id)
            self.dropped["spool_corrupt"] += events
        self._is_dirty = True
        if under_way:
            try:
                self.spool.restore(under_way)
            except (sqlite3.Error, SpoolFull) as error:  # should they not be applied either, they are counted when they are read back
                self.spool_problem = f"{error}"

    # --- lanes ---

    def _lane(self, id: BatchId) -> Lane:
        stream, bucket, _ = id
        lane = self.lanes.get((stream, bucket))
        if lane is None:
            lane = self.lanes[stream, bucket] = Lane(stream, bucket, self)
        return lane
