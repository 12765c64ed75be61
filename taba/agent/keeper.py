"""What the Agent holds between rings and Servers: outbox and spool, the lanes of their batches, and the totals.

1. What is published is either acknowledged and forgotten, or counted under a reason; nothing leaves in another way.
2. Room is made in this order: what is acknowledged is given up; then everything moves, unchanged, to the spool, and a new stream begins.
3. The outbox's table is complete at every publish; before bytes are released, totals that changed are published.

The keeper knows no socket and no clock. `now` is monotonic seconds, `unix_now` Unix time; both are passed in.
"""

from __future__ import annotations

import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from taba.agent.lanes import MAX_RUN_BATCHES, PROBE_SLACK_SECONDS, RETAIN_SECONDS, Group, HeldBatch, Lane
from taba.agent.outbox import Covered, EncodedBatch, Outbox, Table
from taba.agent.schedule import Schedule
from taba.agent.spool import ROW_BYTES, Spool, SpoolFull
from taba.batch import BatchId
from taba.bounds import DAY, STREAM_DAYS, MiB

MAX_RETAINED_BYTES = 64 * MiB  # acknowledged batches that are kept for 60 s: given up first
MAX_LANES = 32_768  # some 1 KiB each; an Agent's own streams have one a bucket, posted events with a key one a bucket and key
MAX_SPOOL_LANES = 1024  # lanes of the spool that are worked on at once; the others wait on disk
SPOOL_ROWS = MAX_RUN_BATCHES  # batches that a lane knows ahead of the spool; a run under way is among them
MAX_SETTLED = 4096  # dropped batches that the table names while their groups are not released
REFUSALS_SHOWN = 16


class Refusal(NamedTuple):
    """A batch that was given up at `now`, and why; for people."""

    bucket: int
    events: int
    reason: str
    detail: str
    now: float


class Keeper:
    """Outbox, spool and lanes of one Agent. Call `recover` once, before anything else.

    `new_stream` gives the random id of a new stream.
    """

    def __init__(self, outbox: Outbox, spool: Spool, new_stream: Callable[[], bytes], now: float, unix_now: float):
        self.outbox, self.spool = outbox, spool
        self._new_stream = new_stream
        self.lanes: dict[tuple[bytes, int], Lane] = {}
        self.schedule = Schedule()
        self._groups: deque[Group] = deque()
        self._cursor: tuple[bytes, int] | None = None
        self._activated = now
        self._spool_retained: deque[tuple[Lane, HeldBatch]] = deque()
        self._to_forget: dict[tuple[bytes, int], int] = {}
        self.retained_bytes = 0
        self.recorded = 0  # events that were in rings or posted, and those that the clients of retired rings dropped
        self.dropped: Counter[str] = Counter()
        self.given_up = 0  # acknowledged batches that were forgotten before their time
        self.moves = 0  # to the spool
        self.spool_problem: str | None = None
        self.refusals: deque[Refusal] = deque(maxlen=REFUSALS_SHOWN)
        self.covered: tuple[Covered, ...] = ()
        self.retired: set[bytes] = set()
        self._settled: dict[BatchId, Group] = {}
        self._is_dirty = False
        self.begin_stream(unix_now)

    # --- start ---

    def recover(self, now: float) -> None:
        """Take up what an earlier Agent left: its batches go out again under their old identity."""
        table = self.outbox.table
        self.recorded, self.dropped = table.recorded, Counter(dict(table.dropped))
        self.covered, self.retired = table.covered, set(table.retired)
        settled = set(table.settled)
        for found in self.outbox.groups():
            group = Group(found.end, found.end - found.start, len(found.batches))
            self._groups.append(group)
            for stored in found.batches:
                if stored.id in settled:
                    self._settled[stored.id] = group
                    group.unacknowledged -= 1
                    group.unforgotten -= 1
                    continue
                lane = self._lane(stored.id, None)
                if not lane.add(HeldBatch(stored, group)):
                    group.unacknowledged -= 1
                    group.unforgotten -= 1
                self.queue(lane, now)
        self._activate(now)

    def begin_stream(self, unix_now: float) -> None:
        """From now on fresh batches belong to a new stream, numbered from 1 in each bucket."""
        self.stream = self._new_stream()
        self.numbers: dict[int, int] = {}
        self._stream_began = unix_now
        for lane in [lane for lane in self.lanes.values() if lane.is_idle and not lane.queued]:
            self._retire_lane(lane)

    # --- in ---

    def make_room(self, needed: int, now: float, unix_now: float) -> bool:
        """Make room for a group of so many bytes; False when there is none to be had: the events are the caller's to drop."""
        if needed > self.outbox.capacity:
            return False
        if needed <= self.outbox.free:
            return True
        self._release(needed)
        if needed <= self.outbox.free:
            return True
        return self._move_to_spool(now, unix_now)

    def publish(
        self,
        batches: Sequence[EncodedBatch],
        now: float,
        covered: Iterable[Covered] | None = None,
        recorded: int = 0,
        dropped: Mapping[str, int] | None = None,
    ) -> None:
        """Publish batches and totals as one step. Raises OutboxFull, having changed nothing, when there is no room.

        `covered` are all ranges that no tail has passed when this returns; None leaves them. Batches of this keeper's own
        stream count its numbers.
        """
        totals = self.dropped.copy()
        totals.update(dropped or {})
        ranges = self.covered if covered is None else tuple(covered)
        found = self.outbox.append(self._table(ranges, self.recorded + recorded, totals), batches)
        self.recorded += recorded
        self.dropped, self.covered, self._is_dirty = totals, ranges, False
        if not batches:
            return
        group = Group(found.end, found.end - found.start, len(found.batches))
        self._groups.append(group)
        for stored in found.batches:
            stream, bucket, number = stored.id
            own = stream == self.stream
            if own:
                self.numbers[bucket] = number
            lane = self._lane(stored.id, 0 if own and number == 1 else None)
            if not lane.add(HeldBatch(stored, group)):
                group.unacknowledged -= 1
                group.unforgotten -= 1
            self.queue(lane, now)

    def is_spooled(self, stream: bytes) -> bool:
        """Whether batches of this stream are in the spool: none may be added behind them."""
        following = self.spool.next_lane((stream, -1))
        return following is not None and following[0] == stream

    # --- out ---

    def queue(self, lane: Lane, now: float) -> None:
        """Put a lane in the schedule when it has something to send: call after whatever changed the lane."""
        if lane.queued or lane.sent:
            return
        if not lane.pending and lane.more:
            self._load(lane)
        if not lane.pending and not lane.probing:
            if lane.is_idle:
                self._retire_lane(lane)
            return
        self.schedule.put(lane, now)

    def read(self, lane: Lane, batch: HeldBatch) -> bytes | None:
        """The bytes of a batch; None where the spool's row is gone or torn."""
        if batch.group is None:
            return self.spool.read(_id(lane, batch))
        return self.outbox.read(batch.position, batch.length)

    def tick(self, now: float, unix_now: float) -> None:
        """Time passed: wake lanes, ask for probes, release what is forgotten, take up more of the spool, renew the stream."""
        for lane in self.schedule.wake(now):
            self.queue(lane, now)
        for lane in self.schedule.probes(now):
            if self.lanes.get((lane.stream, lane.bucket)) is not lane:
                continue
            due = lane.probe_due(now)
            if due is not None:
                self.schedule.watch(lane, due if due > now else now + PROBE_SLACK_SECONDS)  # asked for; look again, should no verdict come
            self.queue(lane, now)
        self._bound_lanes()
        self._bound_retained()
        self._release(0)
        self._forget_spooled()
        if now - self._activated >= 1.0:
            self._activate(now)
        if unix_now - self._stream_began > STREAM_DAYS * DAY:
            self.begin_stream(unix_now)

    def settle_totals(self) -> None:
        """Publish totals that changed since the last publish."""
        if self._is_dirty:
            self.outbox.append(self._table(self.covered, self.recorded, self.dropped), ())
            self._is_dirty = False

    def totals(self) -> Counter[str]:
        """Events dropped, by reason: by this Agent, and by the clients of retired rings."""
        totals = self.dropped.copy()
        totals.update(self.spool.dropped())
        return totals

    @property
    def is_busy(self) -> bool:
        """Whether Servers have applied less than half of what was published last."""
        return bool(self._groups) and 2 * self._groups[-1].unacknowledged > self._groups[-1].batches

    @property
    def unacknowledged(self) -> int:
        """Batches in the outbox that no Server has acknowledged."""
        return sum(group.unacknowledged for group in self._groups)

    # --- what lanes say (Ledger) ---

    def acknowledged(self, lane: Lane, batch: HeldBatch, now: float) -> None:
        if not lane.retained:
            self.schedule.watch(lane, now + RETAIN_SECONDS + PROBE_SLACK_SECONDS)
        if batch.group is None:
            self._spool_retained.append((lane, batch))
        else:
            batch.group.unacknowledged -= 1
            batch.group.retained += batch.length
        self.retained_bytes += batch.length

    def brought_back(self, lane: Lane, batch: HeldBatch) -> None:
        if batch.group is not None:
            batch.group.unacknowledged += 1
            batch.group.retained -= batch.length
        self.retained_bytes -= batch.length

    def forgotten(self, lane: Lane, batch: HeldBatch) -> None:
        self.retained_bytes -= batch.length
        if batch.group is None:
            self._to_forget[lane.stream, lane.bucket] = batch.number
        else:
            batch.group.unforgotten -= 1
            batch.group.retained -= batch.length

    def gave_up(self, lane: Lane, batch: HeldBatch, reason: str, detail: str, now: float) -> None:
        self.refusals.append(Refusal(lane.bucket, batch.events, reason, detail[:200], now))
        content = self.read(lane, batch)
        if batch.group is not None:
            batch.group.unacknowledged -= 1
            batch.group.unforgotten -= 1
            self.dropped[reason] += batch.events
            self._settled[_id(lane, batch)] = batch.group
            self._is_dirty = True
        try:
            if content is not None and reason == "refused":
                self.spool.keep_aside(_id(lane, batch), detail[:200], content)
            if batch.group is None:
                self.spool.drop(_id(lane, batch), batch.events, reason)
            elif self.spool.batches:  # a kill within a move left it in both places
                self.spool.discard(_id(lane, batch))
        except sqlite3.Error as error:  # the row stays: it is dropped, and counted, after the next start
            self.spool_problem = f"{error}"

    def lost(self, lane: Lane, batches: int, events: int, now: float) -> None:
        detail = f"{batches} batches that the store lost and that were not kept"
        self.refusals.append(Refusal(lane.bucket, events, "gap", detail, now))
        self.dropped["gap"] += events
        self._is_dirty = True

    # --- room ---

    def _table(self, covered: tuple[Covered, ...], recorded: int, dropped: Counter[str]) -> Table:
        settled = tuple(self._settled)[-MAX_SETTLED:]
        return Table(covered, tuple(sorted(self.retired)), settled, recorded, tuple(sorted((+dropped).items())))

    def _release(self, needed: int) -> None:
        """Release groups from the tail on: those that are forgotten, and for `needed` bytes those that are acknowledged too."""
        end = self.outbox.released
        while self._groups:
            group = self._groups[0]
            if group.unforgotten and (group.unacknowledged or self.outbox.capacity - (self.outbox.head - end) >= needed):
                break
            self._groups.popleft()
            self._give_up(group)
            end = group.end
        self._release_to(end)

    def _release_to(self, end: int) -> None:
        if end > self.outbox.released:
            self.settle_totals()  # while the table still names what was dropped from these groups
            self.outbox.release(end)
            self._settled = {id: group for id, group in self._settled.items() if not group.released}

    def _give_up(self, group: Group) -> None:
        group.released = True
        self.given_up += group.unforgotten
        self.retained_bytes -= group.retained

    def _bound_retained(self) -> None:
        end = self.outbox.released
        while self.retained_bytes > MAX_RETAINED_BYTES and self._groups and not self._groups[0].unacknowledged:
            group = self._groups.popleft()
            self._give_up(group)
            end = group.end
        self._release_to(end)
        while self._spool_retained:
            lane, batch = self._spool_retained[0]
            if lane.retained and lane.retained[0] is batch:
                if self.retained_bytes <= MAX_RETAINED_BYTES:
                    break
                self.given_up += 1
                lane.give_up_oldest()
            self._spool_retained.popleft()

    def _bound_lanes(self) -> None:
        if len(self.lanes) < MAX_LANES:
            return
        for lane in list(self.lanes.values()):  # the oldest first
            if len(self.lanes) <= MAX_LANES // 2:
                break
            if not (lane.pending or lane.sent or lane.more or lane.queued):
                self.given_up += len(lane.retained)
                lane.give_up_retained()
                self._retire_lane(lane)

    def _move_to_spool(self, now: float, unix_now: float) -> bool:
        moving = [lane for lane in self.lanes.values() if lane.pending and lane.pending[0].group is not None]
        needed = sum(batch.length + ROW_BYTES for lane in moving for batch in lane.pending)
        if needed > self.spool.free:
            self._give_up_spooled()
            if needed > self.spool.free:
                return False  # before anything is read: it may be so at every drain
        batches = [
            EncodedBatch(_id(lane, batch), batch.created, batch.events, self.outbox.read(batch.position, batch.length))
            for lane in moving
            for batch in lane.pending
        ]
        try:
            self.spool.add(batches)
        except SpoolFull:
            return False
        # a kill from here on finds them in both places: sent twice under one identity, folded once
        self.moves += 1
        given_up = self.given_up + sum(
            batch.group is not None and not batch.is_gone for lane in self.lanes.values() for batch in lane.retained
        )
        for lane in moving:
            lane.moved_to_spool(SPOOL_ROWS)
            if not lane.sent:
                del self.lanes[lane.stream, lane.bucket]  # the spool brings it back in its turn
        for lane in self.lanes.values():
            if any(batch.group is not None for batch in lane.retained):
                lane.give_up_retained()
        for group in self._groups:
            self._give_up(group)
        self._groups.clear()
        self.given_up = given_up  # what is in the spool now is not
        self._release_to(self.outbox.head)
        for lane in self.schedule.empty():
            if self.lanes.get((lane.stream, lane.bucket)) is lane:
                self.queue(lane, now)
        self.begin_stream(unix_now)
        return True

    def _give_up_spooled(self) -> None:
        """Forget the spool's batches that are acknowledged: what is not goes before them."""
        while self._spool_retained:
            lane, batch = self._spool_retained.popleft()
            if lane.retained and lane.retained[0] is batch:
                self.given_up += 1
                lane.give_up_oldest()
        self._forget_spooled()

    # --- the spool's lanes ---

    def _load(self, lane: Lane) -> None:
        try:
            rows = self.spool.rows(lane.stream, lane.bucket, lane.loaded, SPOOL_ROWS)
        except sqlite3.Error as error:  # nothing of this lane can be had before the next start
            self.spool_problem = f"{error}"
            lane.more = False
            return
        lane.load([HeldBatch(row) for row in rows], len(rows) == SPOOL_ROWS)

    def _activate(self, now: float) -> None:
        """Take up lanes of the spool until enough are worked on. Walks the spool once a second at the most."""
        self._activated = now
        turns = MAX_SPOOL_LANES
        while len(self.schedule.backlog) < MAX_SPOOL_LANES and len(self.lanes) < MAX_LANES and self.spool.batches and turns:
            turns -= 1
            try:
                key = self.spool.next_lane(self._cursor)
            except sqlite3.Error as error:
                self.spool_problem = f"{error}"
                break
            self._cursor = key
            if key is None:
                break
            if key not in self.lanes:
                lane = self.lanes[key] = Lane(*key, self, None, True)
                self.queue(lane, now)

    def _forget_spooled(self) -> None:
        if not self._to_forget:
            return
        try:
            self.spool.forget([BatchId(stream, bucket, number) for (stream, bucket), number in self._to_forget.items()])
        except sqlite3.Error as error:  # tried again
            self.spool_problem = f"{error}"
        else:
            self._to_forget.clear()
            self.spool_problem = None

    # --- lanes ---

    def _lane(self, id: BatchId, last: int | None) -> Lane:
        stream, bucket, _ = id
        lane = self.lanes.get((stream, bucket))
        if lane is None:
            lane = self.lanes[stream, bucket] = Lane(stream, bucket, self, last)
        return lane

    def _retire_lane(self, lane: Lane) -> None:
        if lane.stream != self.stream:  # of the own stream, the lane knows what the mark is
            self.lanes.pop((lane.stream, lane.bucket), None)


def _id(lane: Lane, batch: HeldBatch) -> BatchId:
    return BatchId(lane.stream, lane.bucket, batch.number)
