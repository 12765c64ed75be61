"""What the Agent holds between rings and Servers: outbox and spool, the lanes of their batches, and the totals.

1. What is published is either acknowledged and forgotten, or counted under a reason; nothing leaves in another way.
2. Room is made in this order: what is acknowledged is given up; then everything moves, unchanged, to the spool, and a new stream begins.
   A move begins when three quarters of the outbox are not acknowledged, or when behind a batch that waits more is retained, or more lanes
   are known, than may be, and goes on a little at each tick: from the oldest group on, so that of each lane the spool has the first
   batches, and the outbox the others.
3. Where the memory has no room at all, what is fresh goes into the spool, with the table that tells where it came from.
4. The table is complete at every publish. Totals that changed are published before anything else is sent, and before bytes are released.

The keeper knows no socket and no clock. `now` is monotonic seconds, `moment` what age is told by; both are passed in.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from zlib import crc32

from taba.agent import backlog
from taba.agent.ages import Moment
from taba.agent.backlog import SPOOL_ROWS, Backlog
from taba.agent.books import Books, id_of
from taba.agent.fairness import RESERVE_SHARE, Rest
from taba.agent.groups import Groups
from taba.agent.history import History
from taba.agent.lanes import (
    PROBE_SLACK_SECONDS,
    HeldBatch,
    Lane,
    Unreadable,
)
from taba.agent.outbox import (
    Covered,
    EncodedBatch,
    Outbox,
    OutboxCorrupt,
    OutboxFull,
    StoredBatch,
    Table,
    TableFull,
    checksum,
    encode_table,
    group_bytes,
)
from taba.agent.schedule import Schedule
from taba.agent.spool import ROW_BYTES, Spool, SpoolFull
from taba.batch import BATCH_VERSION, BatchId, KeyPart
from taba.bounds import DAY, MAX_BATCH_BYTES, MAX_BUCKETS, STREAM_DAYS, KiB, MiB

MAX_PENDING_BATCHES = 65_536  # in the outbox, whatever their bytes: some 0.5 KiB each beside them. With more all moves to the spool
MOVE_BATCHES = 512  # at once, likewise: of 300 bytes each, so many take as long as a megabyte of large ones
MOVE_SHARE = 0.75  # of the outbox that no Server took yet: from then on all moves to the spool, faster than most load can come
MOVE_BYTES = 1 * MiB  # of batches that move to the spool in one transaction: for so long the loop waits for the disk, 20 to 50 ms
SPARE_SHARE = 64  # of the outbox this part is left by drains for posts: 1 MiB of the default
KEYED_STREAMS = 4  # at a time, of posts with keys: of so many posters each has one; of more several share one
BATCH_SHARE = 8  # of the outbox a batch takes this part at the most
MIN_BATCH_BYTES = 64 * KiB  # but never less: the largest event with the longest names fits


class Keeper:
    """Outbox, spool and lanes of one Agent. Before anything else, once, what an earlier one left is taken up (recovery.py).

    `new_stream` gives the random id of a new stream.
    """

    def __init__(self, outbox: Outbox, spool: Spool, history: History, new_stream: Callable[[], bytes], now: float, moment: Moment):
        self.outbox, self.spool, self.history = outbox, spool, history
        self.schedule = Schedule()
        self.lanes: dict[tuple[bytes, int], Lane] = {}
        self.books = Books(self, history, self.schedule)
        self.groups = Groups(outbox, history, self.books, self.lanes)
        self.backlog = Backlog(spool, self.books, self.schedule, self.lanes, self.groups, self.queue, now)
        self._new_stream = new_stream
        self.version = BATCH_VERSION  # in which batches are written: the owner's, who knows what Servers read
        self.before_publish: Callable[[], None] = lambda: None  # the owner's: see that the outbox is where it should be
        self.is_homeless = False  # the owner's: it is not, and nobody would find what is published there: all goes into the spool
        self.moves = 0  # to the spool
        self._moving = 0  # groups that begin before this position move to the spool
        self._spooled_stream: bytes | None = None  # fresh batches of this stream went into the spool
        self.born = moment
        self._over: dict[Lane, None] = {}  # lanes of a stream that takes no more, which have nothing left: the next tick ends them
        self._is_torn = False  # of what was published last not all is known here: the next Agent finds it, this one does nothing more
        self.is_outbox_new = not outbox.table.sequence  # the one before it is gone, with what it knew
        self.keys: list[KeyPart] = []  # of posts that an earlier Agent left; it may not have remembered the last of them
        self.begin_stream(moment)

    def lane_of(self, id: BatchId) -> Lane:
        """The lane of a batch, made where there is none."""
        stream, bucket, _ = id
        return self.lanes.get((stream, bucket)) or self.backlog.begin_lane(stream, bucket)

    def begin_stream(self, moment: Moment) -> None:
        """From now on fresh batches belong to a new stream, numbered from 1 in each bucket."""
        self.stream = self._new_stream()
        self.numbers: dict[int, int] = {}
        self._end_keyed_streams()
        self._stream_began = moment
        self._over.update((lane, None) for lane in self.lanes.values() if lane.is_idle and not lane.queued)

    def keyed_stream(self, poster: str) -> tuple[bytes, dict[int, int]]:
        """The stream of what `poster` posts with keys, and its last number in each bucket.

        What a Server has no room for waits, maybe for a day, and what follows it in its lane with it: that is the poster's own.
        """
        place = self._posters.get(poster)
        if place is None:
            place = len(self._posters)
            if place < KEYED_STREAMS:
                self._posters[poster] = place
            else:
                place = crc32(poster.encode()) % KEYED_STREAMS
        if place == len(self._keyed):
            self._keyed[self._new_stream()] = {}
        return list(self._keyed.items())[place]

    def _end_keyed_streams(self) -> None:
        self._posters: dict[str, int] = {}
        self._keyed: dict[bytes, dict[int, int]] = {}  # by stream, as `numbers`

    def _takes_more(self, stream: bytes) -> bool:
        return stream == self.stream or stream in self._keyed

    # --- in ---

    @property
    def batch_bytes(self) -> int:
        """How large a batch may be, as full as the memory is now."""
        return max(MIN_BATCH_BYTES, min(MAX_BATCH_BYTES, self.outbox.limit // BATCH_SHARE))

    @property
    def spare_bytes(self) -> int:
        """What drains leave of the room for what is posted, which nobody waits for in turns."""
        return self.outbox.limit // SPARE_SHARE

    @property
    def group_bytes(self) -> int:
        """How large a group should be at the most, as full as the memory is now."""
        half = self.outbox.limit // 2
        return half if half >= 2 * MIN_BATCH_BYTES else MOVE_BYTES  # for the spool

    def is_ready(self, needed: int, now: float, moment: Moment) -> bool:
        """Whether `make_room` for so many bytes has nothing left to move; else a little moves, which is enough for one turn.

        Others may publish before the next turn: what is to be published is encoded anew then.
        """
        self.before_publish()  # what lies where nobody finds it goes first
        if self.is_homeless:
            books = self.books
            is_little = books.pending_bytes <= MOVE_BYTES and books.pending_batches <= MOVE_BATCHES  # the rest takes one turn
            return is_little or not self._move_some(now, moment)
        if needed > self.outbox.free:
            self._release(needed)
        return needed <= self.outbox.free or not self._move_some(now, moment)

    def make_room(self, batches: Sequence[EncodedBatch], now: float, moment: Moment) -> bool:
        """Make room for these batches; False when there is none to be had: the events are the caller's to drop.

        Where the stream is another one afterwards, they are to be encoded anew. It takes long where `is_ready` was not true before.
        """
        if self.is_homeless:
            self.spool_all(now, moment)
            return self._fits_in_spool(batches)
        needed = group_bytes(batches)
        if needed > self.outbox.free:
            self._release(needed)
        while needed > self.outbox.free:
            if not self._move_some(now, moment):
                break
        if needed <= self.outbox.free:
            if self._spooled_stream == self.stream:
                self.begin_stream(moment)  # of each lane the spool has the first batches, not the last
            return True
        return self._fits_in_spool(batches)

    def _fits_in_spool(self, batches: Sequence[EncodedBatch]) -> bool:
        return not self.groups and sum(len(batch.content) + ROW_BYTES for batch in batches) <= self.spool.free

    def publish(
        self,
        batches: Sequence[EncodedBatch],
        now: float,
        covered: Iterable[Covered] | None = None,
        recorded: int = 0,
        dropped: Mapping[str, int] | None = None,
    ) -> None:
        """Publish batches and totals as one step, in the outbox or, where that has no room, in the spool.

        Raises TableFull or SpoolFull, having changed nothing, when there is no room. `covered` are all ranges that no tail has
        passed when this returns; None leaves them. Batches of this keeper's own stream count its numbers.
        """
        self._refuse_torn()
        self.before_publish()
        ranges = self.books.covered if covered is None else tuple(covered)
        if batches:
            self.books.newest = batches[0].created
        table = self.books.table(ranges, self.books.recorded + recorded, self.books.totals_with(dropped), self.backlog.salvage)
        try:
            if self.is_homeless:
                raise OutboxFull("nobody would find it there")
            if group_bytes(batches) > self.outbox.free:
                raise OutboxFull("no room for the batches")
            self._publish_in_outbox(table, batches, now)
        except TableFull:
            raise
        except OutboxFull:
            if batches:  # nor for their table, maybe: all goes to the spool, and what is fresh behind it
                self.spool_all(now, batches[0].created)
                # the totals again: the spool may have been mended on the way, and what was lost there is in them now
                table = self.books.table(ranges, self.books.recorded + recorded, self.books.totals_with(dropped), self.backlog.salvage)
                self._publish_in_spool(table, batches, now)
            else:
                self._journal(table)
        self.books.recorded = table.recorded
        self.books.dropped, self.books.covered = self.books.totals_with(dropped), ranges
        self._is_torn = False
        self._published(table)

    def _refuse_torn(self) -> None:
        """Raise OutboxCorrupt where an earlier publish failed in its middle, for want of memory, say: its numbers would be given again."""
        if self._is_torn:
            raise OutboxCorrupt("a publish failed in its middle: restart this Agent, which has all that was published then")

    def _publish_in_outbox(self, table: Table, batches: Sequence[EncodedBatch], now: float) -> None:
        found = self.outbox.append(table, batches)
        self._is_torn = True  # until what follows is done
        if not batches:
            return
        group = self.groups.begin(found)
        own, numbers, lanes, hold, put = self.stream, self.numbers, self.lanes, self.groups.hold, self.schedule.put
        for stored in found.batches:
            id = stored[0]
            stream, bucket, number = id
            if stream == own:
                numbers[bucket] = number
            elif stream in self._keyed:
                self._keyed[stream][bucket] = number
            lane = lanes.get((stream, bucket)) or self.lane_of(id)
            hold(group, stored, lane)
            if not (lane.queued or lane.sent):
                put(lane, now) if lane.pending else self.queue(lane, now)

    def _publish_in_spool(self, table: Table, batches: Sequence[EncodedBatch], now: float) -> None:
        if self.groups:
            raise SpoolFull("nothing fresh goes into the spool before what is in the outbox")
        self._journal(table, batches)
        self._spooled_stream = self.stream
        for stream, bucket, number in (batch.id for batch in batches):
            if stream == self.stream:
                self.numbers[bucket] = number
            elif stream in self._keyed:
                self._keyed[stream][bucket] = number
            lane = self.lanes.get((stream, bucket))
            if lane is not None:  # others are taken up in their turn
                lane.more = True
                self.queue(lane, now)

    def _journal(self, table: Table, batches: Sequence[EncodedBatch] = ()) -> None:
        """Keep batches in the spool, with the table, which the outbox has, too, where it has room for that. Raises SpoolFull."""
        self.backlog.add(batches, (self.outbox.id, encode_table(table)))
        self._is_torn = bool(batches)  # until the caller has done what follows
        if not self.is_homeless:
            with contextlib.suppress(OutboxFull):
                self.outbox.append(table, ())  # damage to the spool's file may take the other one

    def _published(self, table: Table) -> None:
        """A table is where a kill does not reach it."""
        self.books.sequence = table.sequence
        self.books.told = frozenset(table.settled)
        # what was lost in a spool that was mended while this table was written is in the next one's totals
        self.books.is_dirty = not self.books.settling.keys() <= self.books.told
        for id in self.books.counted:
            self.history.note(id, 0)
        self.books.counted.clear()
        if self.spool.salvage and table.salvage == self.spool.salvage:
            try:
                self.spool.counted()
            except sqlite3.Error as error:  # its name keeps it from being counted again
                self.books.spool_problem = f"{error}"
        if self.spool.is_doubted:
            try:
                self.spool.trust()
            except sqlite3.Error as error:  # with the next one
                self.books.spool_problem = f"{error}"
        for id in table.settled:
            batch = self.books.settling[id]
            if batch is None:
                continue
            if batch.flag >= self.outbox.released:  # of the spool's, too: a move has left it in both places
                self.outbox.settle(batch.flag)
            if batch.group is not None:
                del self.books.settling[id]
        self.backlog.discard_settled()

    def older_buckets(self) -> Container[int]:
        """Those to which something of a stream before this one may still go, or in which such a stream may be open."""
        if self.spool.batches or self.backlog.has_unasked:
            return range(MAX_BUCKETS)
        older = self.books.openings.buckets_of_others((self.stream, *self._keyed))
        return older.union(lane.bucket for lane in self.lanes.values() if not (self._takes_more(lane.stream) or lane.is_idle))

    def waiting_buckets(self) -> Container[int]:
        """Those in which something is still to be applied."""
        if self.spool.batches or self.backlog.has_unasked:
            return range(MAX_BUCKETS)
        return {lane.bucket for lane in self.lanes.values() if lane.pending or lane.more}

    def left_open(self, stream: bytes, buckets: Iterable[int]) -> None:
        """An earlier Agent may have left this stream open in these buckets: it is ended, unless the outbox or the spool told of it."""
        if stream == self.stream or not self.is_outbox_new:
            return
        can_ask = True
        for bucket in buckets:
            if (stream, bucket) in self.lanes:
                continue
            try:
                if can_ask and self.spool.last(stream, bucket):
                    continue
            except sqlite3.Error as error:  # nobody knows: it stays open until the spool can be read, which is tried each second, …
                self.books.spool_problem, can_ask = f"{error}", False
            lane = self.backlog.begin_lane(stream, bucket, not can_ask)
            if not self.books.openings.is_open(stream, bucket):
                self.books.openings.open(stream, bucket)
                self.books.openings.end(stream, bucket)  # or it is ended already, and the lost outbox alone knew
                self.books.is_dirty = True
            if can_ask:
                self.queue(lane, self.backlog.now)
            else:
                self.backlog.stuck.append(lane)  # … and what that has of it is sent before it is ended

    def is_known(self, stream: bytes) -> bool:
        """Whether something of this stream is here, or it may be open somewhere."""
        if self._takes_more(stream) or stream in self.books.openings or self.spool.batches or self.backlog.has_unasked:
            return True
        return any(lane.stream == stream for lane in self.lanes.values())

    # --- out ---

    def queue(self, lane: Lane, now: float) -> None:
        """Put a lane in the schedule when it has something to send: call after whatever changed the lane."""
        if lane.queued or lane.sent:
            return
        if lane.pending:  # nearly always, of what was just published
            self.schedule.put(lane, now)
            return
        if lane.more:
            self.backlog.load(lane)
        if lane.is_idle and not self._takes_more(lane.stream):
            key = lane.stream, lane.bucket
            if key in self.books.to_forget or key in self.books.found or lane.in_outbox > self.outbox.released:
                # first outbox and disk let go of what is folded: found there after a kill, once its mark is gone, it would fold again
                self._over[lane] = None
                return
            if self.books.openings.is_open(lane.stream, lane.bucket):
                lane.ending = True
            else:
                self.lanes.pop((lane.stream, lane.bucket), None)
                skip = self.books.skips.get((lane.stream, lane.bucket))
                if skip is not None:  # no batch follows any more that would tell the Server of it
                    self.books.skipping(lane, None)
                    if skip.batches:
                        self.books.lost(lane, skip, now)
                return
        if lane.has_turn:
            self.schedule.put(lane, now)

    def read(self, lane: Lane, batch: HeldBatch) -> bytes | None:
        """The bytes of a batch; None where something wrote over them, or the spool's row is gone or torn, and the outbox has them no more.
        Raises Unreadable where the disk does not say."""
        if batch.group is not None:
            found = self.outbox.read(batch.position, batch.length)
            return found if checksum(found) == batch.crc else None
        id = id_of(lane, batch)
        try:
            content = self.backlog.read(id)
        except sqlite3.Error as error:
            self.books.unreadable[id] = f"{error}"
            raise Unreadable(f"{error}") from None
        self.books.unreadable.pop(id, None)
        return self.groups.copy(batch) if content is None and lane.in_outbox > self.outbox.released else content

    def keep_aside(self, lane: Lane, batch: HeldBatch, reason: str) -> None:
        """Keep the bytes of a batch that was given up, or what is left of them. Raises Unreadable and sqlite3.Error."""
        id = id_of(lane, batch)
        content = (
            self.outbox.read(batch.position, batch.length) if batch.group is not None else self.read(lane, batch) or self.spool.torn(id)
        )
        if content is not None:
            self.spool.keep_aside(id, reason, content)

    def tick(self, now: float, moment: Moment) -> None:
        """Time passed: wake lanes, ask for probes, release what is forgotten, take up more of the spool, renew the stream."""
        is_second = self.backlog.tick(now)
        if is_second:
            self.backlog.look_again()
        over, self._over = self._over, {}
        for lane in (*over, *self.schedule.wake(now)):
            self.queue(lane, now)
        for lane in self.schedule.probes(now):
            if self.lanes.get((lane.stream, lane.bucket)) is not lane:
                continue
            due = lane.probe_due(now)
            if due is not None:
                self.schedule.watch(lane, due if due > now else now + PROBE_SLACK_SECONDS)  # asked for; look again, should no verdict come
            self.queue(lane, now)
        if len(self.lanes) >= backlog.MAX_LANES:
            self._bound_lanes(now)
        if self.books.spool_retained or self.books.retains_too_much:
            self._bound_retained()
        self._release(0)
        self.backlog.forget()
        if self._moving > self.outbox.released or self._is_overfull or self._is_stuck:
            self._move_some(now, moment)
            self._bound_retained()  # what is retained behind the last that waited
        if is_second or self.backlog.is_activating:
            self.backlog.activate(now)
        if moment.since(self._stream_began) > STREAM_DAYS * DAY:
            self.begin_stream(moment)
        if self._is_torn or self.books.is_dirty:
            self.settle_totals()
        if is_second:
            self.backlog.discard_settled()
            if self.books.history_problem:  # nothing may be forgotten for long
                self.books.flush_history()

    def settle_totals(self) -> None:
        """Publish totals that changed since the last publish: before anything else is sent. Raises SpoolFull where that cannot be."""
        self._refuse_torn()
        if not self.books.is_dirty:
            return
        self.before_publish()
        table = self.books.table(self.books.covered, self.books.recorded, self.books.dropped, self.backlog.salvage)
        try:
            if self.is_homeless:
                raise OutboxFull("nobody would find it there")
            self.outbox.append(table, ())
        except OutboxFull:
            self._journal(table)
        self._published(table)

    @property
    def _is_stuck(self) -> bool:
        """Whether behind a batch that waits more is retained, or more lanes are known, than may be: its oldest goes first."""
        return self.groups.is_stuck and (self.books.retains_too_much or len(self.lanes) > backlog.MAX_LANES)

    @property
    def _is_overfull(self) -> bool:
        return 0 < self.books.pending_bytes > self.outbox.limit * MOVE_SHARE or self.books.pending_batches > MAX_PENDING_BATCHES

    @property
    def holds_backlog(self) -> bool:
        """As the books say it."""
        return self.books.holds_backlog

    @property
    def reserve(self) -> int:
        """The last bytes of the spool, which Clients share."""
        return self.spool.bound // RESERVE_SHARE

    @property
    def rest(self) -> Rest:
        """What there is for what comes."""
        is_spooling = self._is_overfull or self._spooled_stream == self.stream
        room = max(0, self.spool.free) + max(0, self.outbox.limit - self.books.pending_bytes)
        return Rest(is_spooling, self.spool.free - self.books.pending_bytes, room, self.reserve, self.books.acknowledged_bytes)

    def are_busy(self, last: int) -> bool:
        """Whether Servers have applied less than half of what was published the last so many times."""
        return self.groups.are_busy(last)

    @property
    def unacknowledged(self) -> int:
        """Batches in the outbox that no Server has acknowledged."""
        return self.groups.unacknowledged

    @property
    def waiting_on_disk(self) -> int:
        """Batches in the spool that no Server has acknowledged."""
        return max(0, int(self.spool.batches) - len(self.books.spool_retained))

    def oldest(self, moment: Moment) -> float | None:
        """Seconds since the oldest batch was made that no Server has acknowledged; None where the disk alone knows it."""
        waiting = [lane.pending for lane in self.lanes.values() if lane.pending]
        if sum(map(len, waiting)) < self.unacknowledged + self.waiting_on_disk:
            return None
        return max((moment.since(pending[0].created) for pending in waiting), default=0.0)

    # --- room ---

    def _release(self, needed: int) -> None:
        """Release groups from the tail on: those that are forgotten, and for `needed` bytes those that are acknowledged too."""
        self._release_to(self.groups.give_up_done(needed))

    def _release_to(self, end: int) -> None:
        if end > self.outbox.released:
            self.settle_totals()
            self.books.flush_history()
            self.outbox.release(end)

    def _bound_retained(self) -> None:
        self._release_to(self.groups.give_up_retained())
        while self.books.spool_retained:
            lane, batch = self.books.spool_retained[0]
            if lane.retains(batch) and not self.books.retains_too_much:
                break
            self.books.given_up += lane.give_up_through(batch)  # with what the outbox has of the lane before it: a lane forgets in order
            self.books.spool_retained.popleft()

    def _bound_lanes(self, now: float) -> None:
        if self._keyed:
            self._end_keyed_streams()
            self._over.update((lane, None) for lane in self.lanes.values() if lane.is_idle and not lane.queued)
        for lane in list(self.lanes.values()):  # the oldest first
            if len(self.lanes) <= backlog.MAX_LANES // 2:
                break
            if lane.stream != self.stream and not (lane.pending or lane.sent or lane.more or lane.queued):
                self.books.given_up += len(lane.retained)
                lane.give_up_retained()
                self.queue(lane, now)

    def _move_some(self, now: float, moment: Moment) -> bool:
        """Move a little from the outbox to the spool; False when nothing can be moved. Begins a move where none is under way."""
        if self._moving <= self.outbox.released:
            if not self.groups:
                return False
            self._moving = self.outbox.head
            self.moves += 1
            self.begin_stream(moment)
        moving, before = self._next_to_move(), self.outbox.released
        needed = sum(stored.length + ROW_BYTES for stored, _ in moving)
        if needed > self.spool.free:
            self.backlog.give_up()
            if needed > self.spool.free:
                return False  # before anything is read: it may be so at every drain
        batches = [
            EncodedBatch(stored.id, stored.created, stored.events, self.outbox.read(stored.position, stored.length), stored.key, stored.crc)
            for stored, _ in moving
        ]
        if batches:
            try:
                self.backlog.add(batches)
            except SpoolFull:
                return False
        # a kill from here on finds them in both places: the spool's count
        for _, batch in moving:
            self.groups.moved(batch)
        self._release_to(end := self.groups.give_up_moved(self._moving))
        if self._moving <= self.outbox.released:
            self._moved(now)
        return bool(moving) or end > before

    @property
    def why_full(self) -> str:
        """The reason for which is dropped what there is no room for: the spool's bound is reached, or its disk takes nothing."""
        return "spool_full" if self.books.spool_problem is None else "no_disk"

    @property
    def holds_any(self) -> bool:
        """Whether anything is in the outbox that would go with it."""
        return bool(self.groups)

    def spool_some(self, now: float, moment: Moment) -> bool:
        """Move a little to the spool, for the outbox does not outlive this process. Returns whether there is more that moves."""
        return bool(self.groups) and self._move_some(now, moment) and bool(self.groups)

    def spool_all(self, now: float, moment: Moment) -> None:
        """Move everything to the spool, at once and as far as that has room: for what is little, or where there are no turns any more."""
        while self.groups and self._move_some(now, moment):
            pass

    def _next_to_move(self) -> list[tuple[StoredBatch, HeldBatch]]:
        """The first batches that wait in the groups that move: MOVE_BYTES of them and MOVE_BATCHES, or one."""
        moving: list[tuple[StoredBatch, HeldBatch]] = []
        room = MOVE_BYTES
        for stored, batch in self.groups.waiting(self._moving):
            room -= stored.length
            if moving and room < 0:
                break
            moving.append((stored, batch))
            if room <= 0 or len(moving) >= MOVE_BATCHES:
                break
        return moving

    def _moved(self, now: float) -> None:
        """All of a move is in the spool: its lanes are the spool's now, and know of it no more than others do."""
        for key, lane in list(self.lanes.items()):
            if lane.pending and lane.pending[-1].group is None:
                lane.moved_to_spool(SPOOL_ROWS)
                if not (lane.sent or lane.retained or lane.skip or lane.doubt):
                    del self.lanes[key]  # the spool brings it back in its turn
        for lane in self.schedule.empty():
            if self.lanes.get((lane.stream, lane.bucket)) is lane:
                self.queue(lane, now)
