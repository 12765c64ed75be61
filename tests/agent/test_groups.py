"""The outbox's groups: which of them may be given up, up to which position, and what is noted of their batches then."""

from __future__ import annotations

import os
import shutil
import tempfile
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from taba.agent import books as of_books
from taba.agent.books import Books
from taba.agent.groups import Groups
from taba.agent.history import History
from taba.agent.lanes import RETAIN_SECONDS, Group, HeldBatch, Lane
from taba.agent.outbox import EncodedBatch, Outbox, Table
from taba.agent.schedule import Schedule
from taba.batch import BatchId
from tests.agent.moments import at
from tests.agent.outboxes import formatted

STREAM, BUCKET, EVENTS = b"s" * 16, 1, 3


class GroupsTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, directory)
        self.history = History(os.path.join(directory, "a.history"))
        self.addCleanup(self.history.close)
        self.memory, self.outbox = formatted()
        self.books = Books(self, self.history, Schedule())
        self.lane = Lane(STREAM, BUCKET, self.books)
        self.groups = Groups(self.outbox, self.history, self.books, {(STREAM, BUCKET): self.lane})

    def test_servers_are_busy_while_half_of_the_last_groups_together_is_not_applied(self) -> None:
        self.assertFalse(self.groups.are_busy(2))
        first, second = self.publish(1, 2, 3, 4), self.publish(5, 6)
        self.assertEqual((self.groups.are_busy(1), self.groups.are_busy(2)), (True, True))
        first.unacknowledged = 1
        self.assertEqual((self.groups.are_busy(1), self.groups.are_busy(2), self.groups.are_busy(9)), (True, False, False))
        first.unacknowledged, second.unacknowledged = 4, 0
        self.assertEqual((self.groups.are_busy(1), self.groups.are_busy(2)), (False, True))

    def test_how_much_is_free_is_asked_only_for_those_who_need_some(self) -> None:
        group = self.publish(1)
        group.unacknowledged = 0  # and it is retained
        asked: list[int] = []

        def free(outbox: Outbox) -> int:
            asked.append(1)
            return 0

        self.patch(Outbox, "free", property(free))
        self.assertEqual((self.groups.give_up_done(0), asked), (group.start, []))
        self.assertEqual((self.groups.give_up_done(1), asked), (group.end, [1]))

    # --- what the books ask for (Shelf) ---

    def read(self, lane: Lane, batch: HeldBatch) -> bytes:
        return self.outbox.read(batch.position, batch.length)

    def keep_aside(self, lane: Lane, batch: HeldBatch, reason: str) -> None:
        raise AssertionError("nothing is refused here")

    def settle_totals(self) -> None:
        pass

    # --- what happens to groups ---

    def publish(self, *numbers: int) -> Group:
        batches = [EncodedBatch(BatchId(STREAM, BUCKET, number), at(1.0), EVENTS, b"x" * 100) for number in numbers]
        found = self.outbox.append(Table(), batches)
        group = self.groups.begin(found)
        for stored in found.batches:
            self.groups.hold(group, stored, self.lane)
        return group

    def acknowledge(self, mark: int, now: float = 1.0) -> None:
        """The lane's batches up to this one are applied."""
        if self.lane.nonce is None:
            self.lane.next(now, at(now))
            self.lane.opened(b"n", 0, now)
        self.lane.next(now, at(now), 16)
        self.lane.applied(mark, now)
        self.lane.unsent()

    def forget(self, mark: int) -> None:
        """Those of them that were retained for their time are forgotten: a probe tells the mark."""
        now = 1.0 + 2 * RETAIN_SECONDS
        self.lane.probe_due(now)
        self.lane.next(now, at(1.0))
        self.lane.applied(mark, now)

    def noted(self) -> dict[int, int]:
        return dict(self.history.find(STREAM, BUCKET, range(20)))

    def test_a_group_waits_for_servers_until_each_of_its_batches_is_acknowledged(self) -> None:
        self.publish(1, 2)
        self.publish(3)
        self.assertEqual((len(self.groups), self.groups.unacknowledged, self.books.pending_batches), (2, 3, 3))
        self.assertTrue(self.groups.is_stuck and self.groups.are_busy(1))
        self.acknowledge(1)
        self.assertEqual((self.groups.unacknowledged, self.books.pending_batches, self.groups.is_stuck), (2, 2, True))
        self.acknowledge(2)
        self.assertEqual((self.groups.is_stuck, self.groups.are_busy(1)), (False, True))  # the last one has nothing applied
        self.acknowledge(3)
        self.assertEqual((self.groups.unacknowledged, self.groups.are_busy(1), self.books.pending_bytes), (0, False, 0))

    def test_half_of_the_last_group_applied_is_no_longer_busy(self) -> None:
        self.publish(1, 2)
        self.acknowledge(1)
        self.assertFalse(self.groups.are_busy(1))

    def test_without_need_what_is_forgotten_goes_and_what_is_acknowledged_stays(self) -> None:
        first, second = self.publish(1), self.publish(2)
        self.acknowledge(2)
        self.assertEqual(self.groups.give_up_done(0), self.outbox.released)
        self.forget(2)
        self.publish(3)
        self.assertEqual((self.groups.give_up_done(0), len(self.groups)), (second.end, 1))
        self.assertEqual((first.released, second.released, self.books.given_up), (True, True, 0))
        self.assertEqual(self.noted(), {1: EVENTS, 2: EVENTS})

    def test_for_room_the_oldest_that_are_acknowledged_go_as_far_as_it_takes_and_are_counted_as_given_up(self) -> None:
        first = self.publish(1)
        self.publish(2)
        self.publish(3)
        self.acknowledge(2)
        needed = self.outbox.free + first.end - first.start
        self.assertEqual((self.groups.give_up_done(needed), self.books.given_up), (first.end, 1))
        everything = self.outbox.free + self.outbox.used
        before = self.groups.give_up_done(everything)
        self.assertEqual((len(self.groups), self.groups.is_stuck, self.books.given_up), (1, True, 2))  # of what waits nothing goes
        self.assertEqual((self.groups.give_up_done(everything), before > first.end), (self.outbox.released, True))
        self.assertEqual((self.books.retained_batches, self.books.retained_bytes, self.noted()), (0, 0, {1: EVENTS, 2: EVENTS}))

    def test_beyond_the_bound_of_what_is_retained_the_oldest_go(self) -> None:
        groups = [self.publish(number) for number in range(1, 5)]
        self.acknowledge(3)
        with mock.patch.object(of_books, "MAX_RETAINED_BATCHES", 3):
            self.assertEqual(self.groups.give_up_retained(), self.outbox.released)  # at the bound
        with mock.patch.object(of_books, "MAX_RETAINED_BATCHES", 2):
            self.assertEqual(self.groups.give_up_retained(), groups[0].end)
        with mock.patch.object(of_books, "MAX_RETAINED_BATCHES", 0):
            self.assertEqual((self.groups.give_up_retained(), len(self.groups)), (groups[2].end, 1))

    def test_what_moved_is_the_spools_and_its_group_goes_once_nothing_of_it_waits(self) -> None:
        first, second, third = self.publish(1, 2), self.publish(3), self.publish(4)
        self.acknowledge(1)
        waiting = list(self.groups.waiting(third.start))
        self.assertEqual([stored.id.number for stored, _ in waiting], [2, 3])
        self.groups.moved(waiting[0][1])
        self.assertEqual((self.groups.give_up_moved(third.start), self.books.pending_batches), (first.end, 2))
        self.groups.moved(waiting[1][1])
        self.assertEqual((self.groups.give_up_moved(third.start), len(self.groups)), (second.end, 1))
        self.assertEqual(self.noted(), {1: EVENTS})  # of the others, whoever has them now says what became of them
        self.assertIsNone(waiting[0][1].group)

    def spoil(self, group: Group) -> None:
        """Something writes over all of a group."""
        self.outbox._write(group.start, bytes(group.end - group.start))

    def test_a_group_whose_index_is_spoilt_is_given_up_as_others_are_and_counted_once(self) -> None:
        first, second = self.publish(1, 2), self.publish(3)
        self.acknowledge(3)
        self.spoil(first)
        before = self.groups.give_up_done(self.outbox.free + self.outbox.used)
        self.assertEqual((before, len(self.groups), self.groups.damaged), (second.end, 0, 1))
        self.assertEqual((self.books.retained_batches, self.books.retained_bytes, self.books.given_up), (0, 0, 3))
        self.assertEqual(self.noted(), {1: EVENTS, 2: EVENTS, 3: EVENTS})

    def test_what_waits_in_one_moves_in_its_order_and_what_is_done_with_does_not(self) -> None:
        first, second = self.publish(1, 2, 3), self.publish(4)
        self.acknowledge(1)
        self.spoil(first)
        waiting = list(self.groups.waiting(second.end))
        self.assertEqual(
            [(stored.id, stored.events, stored.length) for stored, _ in waiting[:1]], [(BatchId(STREAM, BUCKET, 2), EVENTS, 100)]
        )
        self.assertEqual([stored.id.number for stored, _ in waiting], [2, 3, 4])
        for _, batch in waiting:
            self.groups.moved(batch)
        self.assertEqual((self.groups.give_up_moved(second.end), len(self.groups), self.groups.damaged), (second.end, 0, 1))
        self.assertEqual((self.books.pending_batches, self.books.retained_batches), (0, 0))

    def test_what_was_settled_is_noted_as_counted(self) -> None:
        group = self.publish(1)
        held = group.held[0]
        assert held is not None
        self.outbox.settle(held.flag)
        self.acknowledge(1)
        self.groups.give_up_done(self.outbox.free + 1)
        self.assertEqual(self.noted(), {1: 0})

    def test_a_batch_that_its_lane_had_before_is_not_waited_for(self) -> None:
        self.publish(5)
        group = self.publish(5, 6)
        self.assertEqual((group.held[0], group.unacknowledged, self.groups.unacknowledged), (None, 1, 2))
