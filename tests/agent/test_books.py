"""The books alone: what lanes say comes to counts, and to a table that says so; nobody else is needed."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from taba.agent.books import MAX_RETAINED_BATCHES, MAX_RETAINED_BYTES, MAX_SETTLING, MAX_TOTAL, Books, id_of
from taba.agent.history import History
from taba.agent.lanes import Group, HeldBatch, Lane, Skip, Unreadable
from taba.agent.outbox import StoredBatch, decode_table, encode_table
from taba.agent.schedule import Schedule
from taba.agent.spool import SpoolFull
from taba.batch import BatchId

from .moments import at

STREAM = b"s" * 16


class Shelf:
    """Has the bytes that it is given, and publishes nothing but says that it was asked to."""

    def __init__(self) -> None:
        self.contents: dict[int, bytes] = {}
        self.aside: list[tuple[BatchId, str, bytes | None]] = []
        self.published = 0
        self.is_full = self.is_unreadable = False

    def read(self, lane: Lane, batch: HeldBatch) -> bytes | None:
        if self.is_unreadable:
            raise Unreadable("the disk has a bad moment")
        return self.contents.get(batch.number)

    def keep_aside(self, lane: Lane, batch: HeldBatch, reason: str) -> None:
        self.aside.append((id_of(lane, batch), reason, self.read(lane, batch)))

    def settle_totals(self) -> None:
        self.published += 1
        if self.is_full:
            raise SpoolFull("no room")


class Counting(SynchronousTestCase):
    def setUp(self) -> None:
        os.makedirs(folder := self.mktemp())
        self.shelf, self.schedule = Shelf(), Schedule()
        self.history = History(os.path.join(folder, "history"))
        self.addCleanup(self.history.close)
        self.books = Books(self.shelf, self.history, self.schedule)
        self.lane, self.group = Lane(STREAM, 5, self.books), Group(0, 1 << 20)

    def batch(self, number: int, events: int = 3, length: int = 100, in_spool: bool = False) -> HeldBatch:
        stored = StoredBatch(BatchId(STREAM, 5, number), at(0.0), events, length, 0, 0)
        return HeldBatch(stored, None if in_spool else self.group)

    def test_what_is_given_up_is_counted_under_its_reason_named_by_the_next_table_and_looked_at_by_people(self) -> None:
        self.shelf.contents[1] = b"bytes"
        self.books.gave_up(self.lane, self.batch(1), "refused", "no batch", 7.0)
        self.books.gave_up(self.lane, self.batch(2), "too_old", "", 8.0)
        self.assertEqual(self.books.totals(), {"refused": 3, "too_old": 3})
        self.assertEqual(self.shelf.aside, [(BatchId(STREAM, 5, 1), "no batch", b"bytes")])
        self.assertEqual([refusal.reason for refusal in self.books.refusals], ["refused", "too_old"])
        self.assertTrue(self.books.is_dirty)
        table = self.books.table((), self.books.recorded, self.books.totals(), "")
        self.assertEqual(table.settled, (BatchId(STREAM, 5, 1), BatchId(STREAM, 5, 2)))
        self.assertEqual(dict(table.dropped), {"refused": 3, "too_old": 3})

    def test_a_count_stays_at_its_bound(self) -> None:
        self.books.dropped = self.books.totals_with({"ring_full": MAX_TOTAL - 1})
        for more, total in ((1, MAX_TOTAL), (1, MAX_TOTAL), (2**64, MAX_TOTAL)):
            self.books.dropped = self.books.totals_with({"ring_full": more})
            table = self.books.table((), MAX_TOTAL - 1 + more, self.books.dropped, "")
            self.assertEqual((dict(table.dropped), table.recorded), ({"ring_full": total}, total))
            self.assertEqual(decode_table(encode_table(table)), table)

    def test_what_cannot_be_read_is_counted_all_the_same(self) -> None:
        self.shelf.is_unreadable = True
        self.books.gave_up(self.lane, self.batch(1), "refused", "no batch", 7.0)
        self.assertEqual((self.books.totals(), self.shelf.aside), ({"refused": 3}, []))
        self.assertIn("bad moment", str(self.books.spool_problem))

    def test_so_many_that_no_table_names_are_published_and_none_of_the_backlog_is_sent_where_that_cannot_be(self) -> None:
        self.shelf.is_full = True
        for number in range(1, MAX_SETTLING):
            self.books.gave_up(self.lane, self.batch(number), "too_old", "", 7.0)
        self.assertEqual((self.shelf.published, self.books.holds_backlog), (0, False))
        self.books.gave_up(self.lane, self.batch(MAX_SETTLING), "too_old", "", 7.0)
        self.assertEqual((self.shelf.published, self.books.holds_backlog), (1, True))

    def test_a_batch_is_waiting_retained_or_forgotten_and_its_bytes_with_it(self) -> None:
        batch = self.batch(1)
        self.books.pending_bytes, self.books.pending_batches = 100, 1
        self.books.acknowledged(self.lane, batch, 1.0)
        self.assertEqual((self.books.pending_bytes, self.books.retained_bytes, self.books.retained_batches), (0, 100, 1))
        self.books.brought_back(self.lane, batch)
        self.assertEqual((self.books.pending_bytes, self.books.retained_bytes, self.books.retained_batches), (100, 0, 0))
        self.books.acknowledged(self.lane, batch, 2.0)
        self.books.forgotten(self.lane, batch)
        self.assertEqual((self.books.pending_bytes, self.books.retained_bytes, self.books.retained_batches), (0, 0, 0))

    def test_too_much_is_retained_beyond_each_of_its_two_bounds(self) -> None:
        for name, most in (("retained_bytes", MAX_RETAINED_BYTES), ("retained_batches", MAX_RETAINED_BATCHES)):
            for amount, wanted in ((most, False), (most + 1, True)):
                setattr(self.books, name, amount)
                self.assertEqual(self.books.retains_too_much, wanted, (name, amount))
            setattr(self.books, name, 0)

    def test_what_the_spool_has_is_remembered_once_it_is_forgotten_and_what_a_store_lost_is_counted_once(self) -> None:
        self.books.forgotten(self.lane, self.batch(4, events=9, in_spool=True))
        self.books.flush_history()
        self.assertEqual(self.books.recall(self.lane, [3, 4]), {4: 9})
        self.books.skipping(self.lane, Skip(1, 4, 2, 10))
        self.books.lost(self.lane, Skip(1, 4, 2, 10), 1.0)
        self.assertEqual((self.books.totals(), self.books.lost_batches, self.books.skips), ({"gap": 10}, 2, {}))
        # they are counted: a gap that shows them again before a table says so counts none of their events
        self.assertEqual(self.books.recall(self.lane, [2, 3, 4]), {2: 0, 3: 0, 4: 9})
