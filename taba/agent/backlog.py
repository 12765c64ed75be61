"""What an Agent does with its spool: it is filled, read, mended where it is damaged, and its lanes are taken up in their turn.

1. What a salvage could not read is counted once, as far as the store does not have it: its lane asks before anything of it is sent.
   What of it is on its way to a Server is brought back. Of more lanes than are known at once the others have their turn later.
2. An error of the disk's is a problem, and what it kept from being done is tried again; only damage is mended, and that seldom.
3. Of the lanes that are on disk so many are worked on at once; the others wait there.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from collections.abc import Callable, Sequence

from taba.agent.books import Books
from taba.agent.groups import Groups
from taba.agent.lanes import MAX_RUN_BATCHES, HeldBatch, Lane, Outgoing
from taba.agent.outbox import EncodedBatch
from taba.agent.schedule import Schedule
from taba.agent.spool import Spool, SpoolFull
from taba.agent.spooled import is_damage
from taba.batch import BatchId, SentBatch
from taba.bounds import MiB

MAX_LANES = 32_768  # some 1 KiB each; an Agent's own streams have one a bucket, posted events with a key one a bucket and key
MAX_SPOOL_LANES = 1024  # lanes of the spool that are worked on at once; the others wait on disk
TAKEN_UP_ROWS = 2048  # of the spool that one turn reads as it takes up lanes: 10 ms …
LANE_ROWS = 16  # … of which each lane takes as long as so many, beside its own
SPOOL_ROWS = MAX_RUN_BATCHES  # batches that a lane knows ahead of the spool; a run under way is among them
RESTORED_BYTES = 1 * MiB  # of batches that the spool has again, in one transaction
HEAL_SECONDS = 60.0  # between two tries to mend a spool: each writes all of it anew


class Backlog:
    """The spool at work. It is handed the lanes that are known here and the schedule of those that have something to send; `queue` puts one
    there. `now`, of its last tick, is the time by which it mends."""

    def __init__(
        self,
        spool: Spool,
        books: Books,
        schedule: Schedule,
        lanes: dict[tuple[bytes, int], Lane],
        groups: Groups,
        queue: Callable[[Lane, float], None],
        now: float,
    ):
        self._spool, self._books, self._schedule, self._lanes, self._queue = spool, books, schedule, lanes, queue
        self._groups = groups  # of the outbox
        self._cursor: tuple[bytes, int] | None = None
        self.activated = self.now = now
        self._turns = 0  # lanes of the spool that are still looked at for this second's
        self.salvage = ""  # of the spool's, the last of which the lost batches were counted without asking, by a version before
        self._lost: list[BatchId] = []  # that the spool lost, in order, …
        self._asked = 0  # … and of how many of these the lane is known by now
        self.stuck: list[Lane] = []  # that could not be loaded from the spool
        self.healed = -HEAL_SECONDS  # when it was tried last

    def tick(self, now: float) -> bool:
        """Time passed. Whether it is a second since lanes were taken up: then `activate` is due."""
        self.now = now
        return now - self.activated >= 1.0

    # --- in ---

    def add(self, batches: Sequence[EncodedBatch], journal: tuple[bytes, bytes] | None = None) -> None:
        """Keep batches in the spool, and an outbox's id with a table that it has no room for. Raises SpoolFull."""
        try:
            self._spool.add(batches, journal)
        except SpoolFull as error:
            if error.is_disk:
                self._books.spool_problem = f"{error}"
            if not (error.is_damaged and self.heal(sqlite3.DatabaseError(f"{error}"))):
                raise
            self._spool.add(batches, journal)
        self._books.spool_problem = None

    # --- out ---

    def read(self, id: BatchId) -> bytes | None:
        """The bytes of a batch; None where its row is gone or torn. Raises sqlite3.Error where the disk does not say."""
        try:
            return self._spool.read(id)
        except sqlite3.Error as error:
            if not is_damage(error) or not self.heal(error):
                raise
        return self._spool.read(id)

    def load(self, lane: Lane) -> None:
        """Give a lane its next batches; one that cannot be read waits among the stuck."""
        while lane.more and not lane.pending:
            try:
                rows = self._spool.rows(lane.stream, lane.bucket, lane.loaded, SPOOL_ROWS)
            except sqlite3.Error as error:
                if self.heal(error):
                    continue
                self.stuck.append(lane)  # tried again in a second
                return
            batches = [HeldBatch(row) for row in rows if row.id not in self._books.settling]  # dropped, but not yet removed
            lane.load(batches, rows[-1].id.number if rows else 0, len(rows) == SPOOL_ROWS)

    def look_again(self) -> None:
        """Where something could not be done: whether the spool is written again by now. What still fails says so itself when it is tried.

        To be called before all that is tried again is tried: some of what failed, as the keeping aside of bytes, never is.
        """
        if self._books.spool_problem is None:
            return
        try:
            self._spool.try_to_write()
        except sqlite3.Error as error:
            self.heal(error)
        else:
            self._books.spool_problem = None
            self.count_lost()  # what was found to be so once the disk had room

    @property
    def is_activating(self) -> bool:
        """Whether `activate` goes on with the next tick."""
        return self._turns > 0

    def activate(self, now: float) -> None:
        """Take up lanes of the spool until enough are worked on, so much in each turn. Walks the spool once a second at the most."""
        if not self.is_activating or self.tick(now):
            self.activated, self._turns = now, MAX_SPOOL_LANES
            self._ask_more()
            stuck, self.stuck = self.stuck, []
            for lane in stuck:
                if self._lanes.get((lane.stream, lane.bucket)) is lane:
                    self._queue(lane, now)
        left = TAKEN_UP_ROWS
        while len(self._schedule.backlog) < MAX_SPOOL_LANES and len(self._lanes) < MAX_LANES and self._spool.batches and self._turns:
            if left <= 0:
                return
            self._turns -= 1
            left -= LANE_ROWS
            try:
                key = self._spool.next_lane(self._cursor)
            except sqlite3.Error as error:
                self.heal(error)  # and the next time it is looked at again
                break
            self._cursor = key
            if key is None:
                break
            if key not in self._lanes:
                lane = self.begin_lane(*key, True)
                self._queue(lane, now)
                left -= len(lane.pending)
        self._turns = 0

    # --- what is done with ---

    def forget(self) -> None:
        """Remove from the spool what lanes have forgotten, and from what it lost what is not."""
        self._forget_found()
        if not self._books.to_forget:
            return
        self._books.flush_history()
        try:
            self._spool.forget([BatchId(stream, bucket, number) for (stream, bucket), number in self._books.to_forget.items()])
        except sqlite3.Error as error:  # tried again
            self.heal(error)
        else:
            self._books.to_forget.clear()
            self._books.spool_problem = None

    def _forget_found(self) -> None:
        books = self._books
        if not books.found:
            return
        found = [(BatchId(*key, number), events) for key, numbers in books.found.items() for number, events in numbers.items()]
        try:
            self._spool.found(id for id, _ in found)
        except sqlite3.Error as error:  # tried again; until then no lane of these is ended
            self.heal(error)
            return
        for id, events in found:
            if events:  # should the store lose it later, it counts as others do that are known no more
                books.note_forgotten(id, events)
        books.found.clear()

    def give_up(self) -> None:
        """Forget the spool's batches that are acknowledged: what is not goes before them."""
        while self._books.spool_retained:
            lane, batch = self._books.spool_retained.popleft()
            self._books.given_up += lane.give_up_through(batch)
        self.forget()

    def discard_settled(self) -> None:
        """Remove from the spool what the last table says was dropped."""
        if told := [id for id in self._books.settling if id in self._books.told]:
            self._books.flush_history()
            try:
                self._spool.discard(told)
            except sqlite3.Error as error:  # named by the next tables, too, until it is done
                self.heal(error)
            else:
                for id in told:
                    self._books.settling.pop(id, None)
                self._books.spool_problem = None

    # --- damage ---

    def heal(self, error: sqlite3.Error) -> bool:
        """What to do about an error of the spool's: mend it where it is damaged. True: try again."""
        self._books.spool_problem = f"{error}"
        if not is_damage(error) or self.now - self.healed < HEAL_SECONDS:
            return False
        self.healed = self.now
        try:
            self._spool.heal(f"{error}")
        except (OSError, sqlite3.Error) as failure:
            self._books.spool_problem = f"{error}; and it cannot be mended: {failure}"
            return False
        self._books.spool_problem = None
        self._books.is_dirty = True  # the table that was there may be among what could not be read
        self.count_lost()
        return True

    @property
    def has_unasked(self) -> bool:
        """Whether there are lanes of which the spool lost batches, and which are not known yet."""
        return self._asked < len(self._lost)

    def begin_lane(self, stream: bytes, bucket: int, more: bool = False) -> Lane:
        """Know a lane from now on, and what the spool lost of it: that is asked for before anything of it is sent."""
        lane = self._lanes[stream, bucket] = Lane(stream, bucket, self._books, more)
        if self.has_unasked:
            for place in range(bisect_left(self._lost, (stream, bucket, 0)), len(self._lost)):
                id = self._lost[place]
                if id[:2] != (stream, bucket):
                    break
                if self._is_in_doubt(id):
                    lane.lose(id.number, self._spool.lost[id])
        return lane

    def count_lost(self) -> None:
        """Have what a salvage of the spool could not read asked for, and counted where the store does not have it.

        What of it is under way to a Server, or in the outbox still, is brought back.
        """
        spool, books = self._spool, self._books
        if not spool.salvage or spool.salvage == self.salvage:
            return
        self.bring_back()
        self._lost, self._asked = sorted(spool.lost), 0
        under_way: list[EncodedBatch] = []
        for id in self._lost:
            lane = self._lanes.get(id[:2])
            if lane is None or not self._is_in_doubt(id):
                continue
            events = spool.lost[id]
            kept = lane.lose(id.number, events)
            if isinstance(kept, Outgoing) and isinstance(kept.entry, SentBatch) and kept.batch is not None:
                under_way.append(EncodedBatch(id, kept.batch.created, events, kept.entry.batch, kept.batch.key))
            elif isinstance(kept, HeldBatch) and kept.group is not None:
                books.found.setdefault(id[:2], {})[id.number] = 0
            if id.number in lane.doubt:
                books.unreadable.pop(id, None)
        self.stuck += [lane for lane in self._lanes.values() if lane.doubt]  # whoever called may have one of them in hand
        self._ask_more()
        if under_way:
            try:
                spool.restore(under_way)
            except (sqlite3.Error, SpoolFull) as error:  # should they not be applied either, they are counted when they are read back
                books.spool_problem = f"{error}"

    def bring_back(self) -> None:
        """Have the spool keep again what it lost and the outbox has still: in a move, or after one that a kill ended. What it does not take
        is lost."""
        some, its_bytes = list[EncodedBatch](), 0
        try:
            for batch in self._groups.copies(self._spool.lost) if self._spool.lost else ():
                some.append(batch)
                its_bytes += len(batch.content)
                if its_bytes > RESTORED_BYTES:
                    self._spool.restore(some)
                    some, its_bytes = [], 0
            if some:
                self._spool.restore(some)
        except (sqlite3.Error, SpoolFull) as error:
            self._books.spool_problem = f"{error}"

    def _ask_more(self) -> None:
        """Take up lanes of which the spool lost batches, as far as there is room for lanes."""
        while self.has_unasked and len(self._lanes) < MAX_LANES:
            id = self._lost[self._asked]
            if id[:2] not in self._lanes and self._is_in_doubt(id):
                self.stuck.append(self.begin_lane(*id[:2], True))
            self._asked += 1
        if not self.has_unasked:
            self._lost, self._asked = [], 0

    def _is_in_doubt(self, id: BatchId) -> bool:
        """Whether the spool lost this batch, and nobody knows what became of it."""
        books = self._books
        is_known = id in books.settling or id.number <= books.to_forget.get(id[:2], 0) or id.number in books.found.get(id[:2], ())
        return id in self._spool.lost and not is_known
