"""Marks: what is folded of a stream, and when, in a fold cycle and by themselves."""

from __future__ import annotations

import struct

from twisted.trial.unittest import SynchronousTestCase

from taba.batch import END, MARK, OPEN, KeyPart, Verdict
from taba.handlers.counter_group import CounterGroup
from taba.server import keys
from taba.server.fold.bounds import MAX_STREAMS
from taba.server.fold.cycle import WaitingBatch
from taba.server.fold.marks import ANY, FULL, MARK_MINUTES, NO_NONCE, Mark, Marks, decode_mark, encode_mark, stale

from ..samples import AGE, NONCE, MemoryStore, Sum, batch, column, header, lookup_of, tab_in

LOOKUP = lookup_of(Sum())
A = tab_in(0)
OTHER = b"o" * len(NONCE)


class CycleCase(SynchronousTestCase):
    """A store in which no stream is open."""

    def setUp(self) -> None:
        self.store = MemoryStore(open=False)

    def cycle(self, *items: WaitingBatch, age: int | None = AGE, streams: int = MAX_STREAMS) -> list[Verdict]:
        return self.store.cycle(LOOKUP, items, age=age, streams=streams).verdicts

    def one(self, stream: int, number: int, nonce: bytes = NONCE) -> WaitingBatch:
        return batch(stream, number, [column(A, "Sum", [1.0])])._replace(nonce=nonce)

    def mark(self, stream: int) -> Mark | None:
        return decode_mark(self.store.keys.get(keys.marks(0), {}).get(bytes([stream]) * 16))

    @property
    def folded(self) -> int:
        return self.store.counts().get("folded", 0)


class OpenStreams(CycleCase):
    def test_nothing_is_folded_of_a_stream_that_is_not_open(self) -> None:
        self.assertEqual(self.cycle(self.one(1, 1)), [Verdict("gap", 0, "not open")])
        self.assertEqual(self.cycle(header(MARK, 1)), [Verdict("gap", 0, "not open")])
        self.assertEqual((self.folded, self.store.keys), (0, {}))

    def test_opened_under_a_drawn_nonce_it_is_folded_under_that_one_alone(self) -> None:
        self.assertEqual(self.cycle(header(OPEN, 1)), [Verdict("open", NONCE, 0)])
        self.assertEqual(self.cycle(self.one(1, 1, OTHER), header(MARK, 1, OTHER)), [Verdict("gap", 0, "nonce")] * 2)
        self.assertEqual(self.cycle(self.one(1, 1)), [Verdict("applied", 1)])
        self.assertEqual((self.folded, self.mark(1)), (1, Mark(NONCE, 1, AGE)))

    def test_a_second_open_answers_the_nonce_and_the_mark_that_stand(self) -> None:
        self.cycle(header(OPEN, 1))
        self.cycle(self.one(1, 1))
        self.assertEqual(self.cycle(header(OPEN, 1, drawn=OTHER)), [Verdict("open", NONCE, 1)])
        self.assertEqual(self.cycle(header(OPEN, 2), header(OPEN, 2, drawn=OTHER)), [Verdict("open", NONCE, 0)] * 2)

    def test_one_that_is_to_begin_anew_is_told_the_mark_and_nothing_that_was_sent_before_it_moves_that(self) -> None:
        self.cycle(header(OPEN, 1))
        self.cycle(self.one(1, 1))
        late = self.one(1, 2)
        self.assertEqual(self.cycle(header(OPEN, 1, drawn=OTHER, anew=True), age=AGE + 1), [Verdict("open", OTHER, 1)])
        self.assertEqual(self.cycle(late), [Verdict("gap", 0, "nonce")])
        self.assertEqual((self.folded, self.mark(1)), (1, Mark(OTHER, 1, AGE + 1)))
        self.assertEqual(self.cycle(self.one(1, 2, OTHER)), [Verdict("applied", 2)])
        both = header(OPEN, 2, anew=True), header(OPEN, 2, drawn=OTHER, anew=True)
        self.assertEqual([verdict.word for verdict in self.cycle(*both, age=None, streams=2)], ["later", "later"])
        self.assertEqual(self.cycle(*both), [Verdict("open", NONCE, 0), Verdict("open", OTHER, 0)])
        self.assertEqual(self.cycle(header(OPEN, 2, anew=True), age=None), [Verdict("open", NONCE, 0)])  # no older than it was
        self.assertEqual(self.mark(2), Mark(NONCE, 0, AGE))

    def test_what_comes_late_after_the_end_is_not_folded_and_a_late_open_leaves_one_dead_entry(self) -> None:
        self.cycle(header(OPEN, 1))
        self.cycle(self.one(1, 1))
        self.assertEqual(self.cycle(header(END, 1)), [Verdict("ended", 0)])
        self.assertEqual(self.cycle(self.one(1, 1)), [Verdict("gap", 0, "not open")])
        self.assertEqual(self.cycle(header(OPEN, 1, drawn=OTHER)), [Verdict("open", OTHER, 0)])
        self.assertEqual(self.cycle(self.one(1, 1)), [Verdict("gap", 0, "nonce")])
        self.assertEqual((self.folded, self.mark(1)), (1, Mark(OTHER, 0, AGE)))

    def test_an_end_is_repeated_without_harm_and_ends_nothing_that_is_open_under_another_nonce(self) -> None:
        self.cycle(header(OPEN, 1))
        self.assertEqual(self.cycle(header(END, 1, OTHER)), [Verdict("ended", 0)])
        self.assertIsNotNone(self.mark(1))
        for nonce in (NONCE, NONCE, b""):
            self.assertEqual(self.cycle(header(END, 1, nonce)), [Verdict("ended", 0)])
            self.assertIsNone(self.mark(1))
        self.cycle(header(OPEN, 1))
        self.assertEqual(self.cycle(header(END, 1, b"")), [Verdict("ended", 0)])
        self.assertIsNone(self.mark(1))

    def test_open_batches_mark_and_end_may_come_in_one_cycle(self) -> None:
        found = self.cycle(header(OPEN, 1), self.one(1, 1), self.one(1, 2), header(MARK, 1), header(END, 1), self.one(1, 3))
        self.assertEqual([verdict.word for verdict in found], ["open", "applied", "applied", "mark", "ended", "gap"])
        self.assertEqual((self.folded, self.mark(1)), (2, None))

    def test_a_mark_that_cannot_be_read_has_its_stream_wait(self) -> None:
        self.store.put(keys.marks(0), {bytes([1]) * 16: b"torn"})
        for item in (self.one(1, 1), header(OPEN, 1), header(MARK, 1), header(END, 1)):
            self.assertEqual([verdict.word for verdict in self.cycle(item, header(OPEN, 2))], ["later", "open"])
        self.assertEqual((self.folded, self.store.keys[keys.marks(0)][bytes([1]) * 16]), (0, b"torn"))


class Ages(CycleCase):
    def test_while_the_stores_age_is_not_known_nothing_is_opened_and_what_is_open_is_folded(self) -> None:
        self.assertEqual([verdict.word for verdict in self.cycle(header(OPEN, 1), age=None)], ["later"])
        self.cycle(header(OPEN, 1), age=7)
        self.assertEqual(self.cycle(self.one(1, 1), age=None), [Verdict("applied", 1)])
        self.assertEqual(self.mark(1), Mark(NONCE, 1, 7))

    def test_while_it_is_not_known_a_state_keeps_the_age_that_it_has_and_a_new_one_takes_that_of_none(self) -> None:
        store, lookup = MemoryStore(), lookup_of(CounterGroup())
        store.cycle(lookup, [batch(1, 1, [column(tab_in(0, 1), "CounterGroup", [1.0])])], age=7)
        columns = [column(tab_in(0, place), "CounterGroup", [1.0]) for place in range(3)]
        store.cycle(lookup, [batch(1, 2, columns, follows=1)], age=None)
        states = store.keys[keys.states(0)]
        ages = [keys.unframe(states[keys.state_field(one.tab, one.client)]).age for one in columns]
        self.assertEqual(ages, [keys.UNKNOWN_AGE, 7, keys.UNKNOWN_AGE])

    def test_a_mark_is_never_touched_earlier_than_it_was(self) -> None:
        self.cycle(header(OPEN, 1), age=7)
        self.cycle(self.one(1, 1), age=5)
        self.assertEqual(self.mark(1), Mark(NONCE, 1, 7))
        self.cycle(self.one(1, 2), age=9)
        self.assertEqual(self.mark(1), Mark(NONCE, 2, 9))

    def test_a_full_bucket_has_opens_wait_names_the_agent_and_folds_what_is_open(self) -> None:
        self.cycle(*(header(OPEN, stream) for stream in range(1, 4)), streams=3)
        self.cycle(header(END, 3), streams=3)
        outcome = self.store.cycle(LOOKUP, [header(OPEN, 4), header(OPEN, 5), header(OPEN, 1), self.one(2, 1)], streams=3)
        self.assertEqual([verdict.word for verdict in outcome.verdicts], ["open", "later", "open", "applied"])
        self.assertEqual((outcome.verdicts[1], outcome.turned_away), (FULL, ("web",)))
        self.assertEqual(sorted(self.store.keys[keys.marks(0)]), [bytes([stream]) * 16 for stream in (1, 2, 4)])

    def test_room_is_made_of_what_nobody_touched_for_fourteen_days_and_of_nothing_younger(self) -> None:
        self.cycle(header(OPEN, 1), header(OPEN, 2), age=0, streams=3)
        self.cycle(header(OPEN, 3), age=1, streams=3)
        self.assertEqual(self.cycle(header(OPEN, 4), age=MARK_MINUTES - 1, streams=3), [FULL])
        self.assertEqual(self.cycle(header(OPEN, 4), header(OPEN, 2), age=MARK_MINUTES, streams=3), [Verdict("open", NONCE, 0)] * 2)
        self.assertEqual(sorted(self.store.keys[keys.marks(0)]), [bytes([stream]) * 16 for stream in (2, 3, 4)])

    def test_stale_are_those_at_the_bound_and_what_is_no_mark_stays(self) -> None:
        pairs = [
            b"a",
            encode_mark(Mark(NONCE, 1, 10)),
            b"b",
            encode_mark(Mark(NONCE, 1, 11)),
            b"c",
            b"torn",
            b"d",
            encode_mark(Mark(NONCE, 1, 99)),
        ]
        self.assertEqual(stale(pairs, 20, 10), [b"a"])
        self.assertEqual(stale(pairs, 5, 10), [])  # the store went back in time


class PostedEvents(CycleCase):
    def direct(self, number: int, stream: bytes = b"s" * 16) -> WaitingBatch:
        item = batch(1, number, [column(A, "Sum", [1.0])])
        return item._replace(nonce=b"", batch=item.batch._replace(stream=stream))

    def test_a_servers_own_stream_opens_itself_and_skips_what_it_never_gets(self) -> None:
        direct = [self.direct(number)._replace(follows=ANY) for number in (1, 1, 3)]
        self.assertEqual(self.cycle(*direct), [Verdict("applied", 1)] * 2 + [Verdict("applied", 3)])
        self.assertEqual((self.folded, list(self.store.keys[keys.posted(0)])), (2, [b"s" * 16]))
        self.assertNotIn(keys.marks(0), self.store.keys)

    def test_in_a_keys_stream_nothing_is_folded_before_what_comes_before_it(self) -> None:
        # else the mark would say of what was not folded, and is posted again, that it was applied
        for numbers in ((2,), (3, 2), (2, 3)):
            self.assertEqual({verdict.word for verdict in self.cycle(*map(self.direct, numbers))}, {"gap"})
        self.assertEqual(self.folded, 0)
        self.assertEqual(
            self.cycle(*map(self.direct, (1, 3, 2))), [Verdict("applied", 1), Verdict("gap", 1, "number"), Verdict("applied", 2)]
        )
        self.assertEqual(self.cycle(*map(self.direct, (1, 2, 3))), [Verdict("applied", 2)] * 2 + [Verdict("applied", 3)])
        self.assertEqual(self.folded, 3)

    def test_what_came_by_another_way_under_the_same_key_is_counted_and_not_folded_again(self) -> None:
        part = KeyPart(b"p" * 16, b"d" * 16, 1)
        self.cycle(header(OPEN, 1), header(OPEN, 2))
        self.assertEqual(self.cycle(self.one(1, 1)._replace(part=part)), [Verdict("applied", 1)])
        self.assertEqual(self.cycle(self.one(2, 1)._replace(part=part), self.direct(1, b"p" * 16)), [Verdict("applied", 1)] * 2)
        self.assertEqual(self.store.counts(), {"folded": 1, "known_key": 1})
        self.assertEqual(self.cycle(self.one(2, 1)._replace(part=part)), [Verdict("applied", 1)])
        self.assertEqual(self.store.counts(), {"folded": 1, "known_key": 1})
        self.assertEqual(self.cycle(self.one(2, 2)._replace(part=part._replace(lot=2))), [Verdict("applied", 2)])
        self.assertEqual(self.folded, 2)


class Bytes(SynchronousTestCase):
    def test_a_mark_reads_back_and_takes_twenty_bytes(self) -> None:
        for mark in (Mark(NONCE, 0, 0), Mark(NO_NONCE, 2**63, 2**32 - 1)):
            self.assertEqual(decode_mark(encode_mark(mark)), mark)
        self.assertEqual(len(encode_mark(Mark(NONCE, 1, 1))), struct.calcsize("<8sQI"))
        self.assertIsNone(decode_mark(None))
        self.assertRaises(ValueError, decode_mark, b"short")

    def test_what_is_read_only_is_not_written(self) -> None:
        marks = Marks({b"a": encode_mark(Mark(NONCE, 3, 1)), b"b": None}, 1)
        marks.fold(b"a", 2, 1, NONCE)
        marks.fold(b"a", 7, 6, NONCE)
        marks.fold(b"b", 1, 0, NONCE)
        self.assertEqual((marks.written(), marks.removed()), ({}, []))
