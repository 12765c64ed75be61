"""The outbox's groups that are not yet released, and what of each is still waited for: pure counts, beside the bytes in the outbox.

1. A group is given up from the oldest on, and only once all of its batches are acknowledged, forgotten, or elsewhere.
2. What is given up is noted in the history as its batches were counted; the outbox releases it when its owner says so.
3. Of what moved to the spool the outbox has a copy until it releases the group: whatever the spool loses meanwhile is not lost.
4. Where something wrote over a group's index, lanes know of its batches what is needed: it goes its way, and the others theirs. Whether
   their bytes are what was written the batches tell themselves, to whoever reads them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Iterator, Mapping
from itertools import islice

from taba.agent.books import Books
from taba.agent.history import History
from taba.agent.lanes import Group, HeldBatch, Lane
from taba.agent.outbox import EncodedBatch, Outbox, OutboxCorrupt, StoredBatch, StoredGroup, checksum
from taba.batch import BatchId


class Groups:
    """The groups in `outbox`, oldest first. Whatever gives one up returns the position to which the outbox may be released, then."""

    def __init__(self, outbox: Outbox, history: History, books: Books, lanes: Mapping[tuple[bytes, int], Lane]):
        self._outbox, self._history, self._books, self._lanes = outbox, history, books, lanes
        self._groups: deque[Group] = deque()
        self.damaged = 0  # whose index something wrote over

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def is_stuck(self) -> bool:
        """Whether the oldest waits for a Server: those behind it wait with it."""
        return bool(self._groups) and self._groups[0].unacknowledged > 0

    def are_busy(self, last: int) -> bool:
        """Whether Servers have applied less than half of what was published the last so many times."""
        if not self._books.pending_batches:
            return False
        groups = [*islice(reversed(self._groups), last)]
        return 2 * sum([group.unacknowledged for group in groups]) > sum([len(group.held) for group in groups])

    @property
    def unacknowledged(self) -> int:
        """Batches that no Server has acknowledged."""
        return sum(group.unacknowledged for group in self._groups)

    def begin(self, found: StoredGroup) -> Group:
        """One more, of which nothing is held yet."""
        group = Group(found.start, found.end)
        self._groups.append(group)
        return group

    def hold(self, group: Group, stored: StoredBatch, lane: Lane) -> None:
        """The next batch of a group, which waits in its lane unless that knows it is done with."""
        batch = HeldBatch(stored, group)
        lane.in_outbox = group.end
        if not lane.add(batch):
            group.held.append(None)
            return
        group.held.append(batch)
        group.unacknowledged += 1
        group.unforgotten += 1
        self._books.pending_bytes += batch.length
        self._books.pending_batches += 1

    def give_up_done(self, needed: int) -> int:
        """Give up those that are forgotten, and for `needed` bytes those that are acknowledged, too."""
        end = self._outbox.released
        while self._groups:
            group = self._groups[0]
            # how much is free is asked of the kernel: nearly always nobody needs any
            if group.unforgotten and (not needed or group.unacknowledged or self._outbox.free + end - self._outbox.released >= needed):
                break
            end = self._give_up_oldest()
        return end

    def give_up_retained(self) -> int:
        """Give up the oldest that are acknowledged, as long as too much is retained."""
        end = self._outbox.released
        while self._books.retains_too_much and self._groups and not self._groups[0].unacknowledged:
            end = self._give_up_oldest()
        return end

    def give_up_moved(self, before: int) -> int:
        """Give up those that begin before this position and of which nothing waits any more."""
        end = self._outbox.released
        while self._groups and self._groups[0].start < before and not self._groups[0].unacknowledged:
            end = self._give_up_oldest()
        return end

    def _give_up_oldest(self) -> int:
        group = self._groups.popleft()
        for stored, batch in self._batches(group):
            if batch is None or batch.group is group:  # else it is in the spool
                is_counted = stored.is_settled or (batch is not None and batch.is_dropped)
                self._history.note(stored.id, 0 if is_counted else stored.events)
        group.released = True
        self._books.given_up += group.unforgotten
        self._books.retained_bytes -= group.retained
        self._books.retained_batches -= group.unforgotten
        return group.end

    def waiting(self, before: int) -> Iterator[tuple[StoredBatch, HeldBatch]]:
        """What waits in the groups that begin before this position, and how it is stored."""
        for group in self._groups:
            if group.start >= before:
                return
            if not group.unacknowledged:
                continue
            for stored, batch in self._batches(group):
                if batch is not None and batch.is_pending and batch.group is not None:
                    yield stored, batch

    def _batches(self, group: Group) -> Iterable[tuple[StoredBatch, HeldBatch | None]]:
        """The batches of a group, as they are stored, and as they are held."""
        try:
            return zip(self._outbox.group(group.start).batches, group.held, strict=True)
        except OutboxCorrupt:
            self._note_damage(group)
            return list(self._as_lanes_know(group))

    def _note_damage(self, group: Group) -> None:
        if not group.is_damaged:
            group.is_damaged = True
            self.damaged += 1

    def _as_lanes_know(self, group: Group) -> Iterator[tuple[StoredBatch, HeldBatch]]:
        """Those of them that wait or are retained; of the others nobody asks any more, but for a store that went back in time."""
        held = {id(batch) for batch in group.held if batch is not None}
        for (stream, bucket), lane in self._lanes.items():
            for batch in (*lane.retained, *lane.pending):
                if id(batch) in held:
                    told = batch.created, batch.events, batch.length, batch.crc, batch.position, batch.flag, batch.is_dropped, batch.key
                    yield StoredBatch(BatchId(stream, bucket, batch.number), *told), batch

    def moved(self, batch: HeldBatch) -> None:
        """This one is in the spool now, whose it is; what becomes of it is said beside it here, too, until the group is given up."""
        group = batch.group
        assert group is not None
        group.unacknowledged -= 1
        group.unforgotten -= 1
        self._books.pending_bytes -= batch.length
        self._books.pending_batches -= 1
        batch.group, batch.position = None, -1

    def copies(self, lost: Container[BatchId]) -> Iterator[EncodedBatch]:
        """What of these waits in the spool, and is here still as it was written."""
        for group in self._groups:
            for stored, batch in self._in_both(group):
                if batch.is_pending and stored.id in lost and (content := self._whole(stored)) is not None:
                    yield EncodedBatch(stored.id, stored.created, stored.events, content, stored.key)

    def copy(self, of: HeldBatch) -> bytes | None:
        """The bytes of one that is in the spool; None where they are not here any more, or not as they were written."""
        for group in self._groups:
            if of in group.held:
                return next((self._whole(stored) for stored, batch in self._in_both(group) if batch is of), None)
        return None

    def _in_both(self, group: Group) -> Iterator[tuple[StoredBatch, HeldBatch]]:
        try:
            found = self._outbox.group(group.start).batches
        except OutboxCorrupt:  # damaged as well: then it has nothing that is to be had, as where it was released
            return
        for stored, batch in zip(found, group.held, strict=True):
            if batch is not None and batch.group is None:
                yield stored, batch

    def _whole(self, stored: StoredBatch) -> bytes | None:
        content = self._outbox.read(stored.position, stored.length)
        return content if checksum(content) == stored.crc else None
