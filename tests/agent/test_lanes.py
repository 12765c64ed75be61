"""A lane against a store that loses answers, refuses, says later, and goes back in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.agent.ages import Moment
from taba.agent.lanes import (
    FIRST_BACKOFF_SECONDS,
    MAX_BACKOFF_SECONDS,
    MAX_LATER_SECONDS,
    MAX_RUN_BATCHES,
    MAX_RUN_BYTES,
    RETAIN_SECONDS,
    Backoff,
    Group,
    HeldBatch,
    Lane,
    Skip,
    obey,
)
from taba.agent.outbox import StoredBatch
from taba.batch import END, NONCE_BYTES, NOT_OPEN, NUMBER, OPEN, BatchId, Header, SentBatch, Verdict
from taba.batch import NONCE as NONCE_WRONG
from taba.bounds import BATCH_DAYS, DAY
from tests.agent.moments import at
from tests.examples import examples

NONCE = b"n" * NONCE_BYTES
NOW = at(0.0)


class Recorder:
    """A Ledger that writes down what it is told."""

    def __init__(self) -> None:
        self.state: dict[int, str] = {}
        self.reasons: dict[int, str] = {}
        self.lost_batches = self.lost_events = self.missed = 0
        self.skip: Skip | None = None
        self.recalled: dict[int, int] = {}
        self.torn: set[int] = set()  # what cannot be read back
        self.is_open = False
        self.endings = 0

    def read(self, lane: Lane, batch: HeldBatch) -> bytes | None:
        return None if batch.number in self.torn else b"batch"

    def acknowledged(self, lane: Lane, batch: HeldBatch, now: float) -> None:
        assert self.state.get(batch.number, "pending") == "pending"
        self.state[batch.number] = "acknowledged"

    def brought_back(self, lane: Lane, batch: HeldBatch) -> None:
        assert self.state[batch.number] == "acknowledged"
        self.state[batch.number] = "pending"

    def forgotten(self, lane: Lane, batch: HeldBatch) -> None:
        assert self.state[batch.number] == "acknowledged"
        self.state[batch.number] = "forgotten"

    def gave_up(self, lane: Lane, batch: HeldBatch, reason: str, detail: str, now: float) -> None:
        assert self.state.get(batch.number, "pending") == "pending"
        self.state[batch.number] = "gave up"
        self.reasons[batch.number] = reason

    def opening(self, lane: Lane) -> None:
        self.is_open = True

    def ending(self, lane: Lane) -> None:
        self.endings += 1

    def ended(self, lane: Lane) -> None:
        self.is_open = False

    def recall(self, lane: Lane, numbers: Sequence[int]) -> Mapping[int, int]:
        return {number: self.recalled[number] for number in numbers if number in self.recalled}

    def skipping(self, lane: Lane, skip: Skip | None) -> None:
        self.skip = skip

    def settles_doubt(self, lane: Lane, mark: int) -> None:
        lane.doubt.clear()

    def misses(self, lane: Lane) -> None:
        self.missed += 1

    def lost(self, lane: Lane, skip: Skip, now: float) -> None:
        self.skip = None
        self.lost_batches += skip.batches
        self.lost_events += skip.events


def make_lane(is_open: bool = True) -> tuple[Lane, Recorder]:
    """A lane whose stream was just opened, or is not open."""
    recorder = Recorder()
    lane = Lane(b"s" * 16, 1, recorder)
    if is_open:
        lane.add(entry(1))
        lane.next(0.0, NOW)
        lane.opened(NONCE, 0, 0.0)
        lane.pending.clear()
        lane.highest = 0
    return lane, recorder


def entry(number: int, created: Moment = NOW) -> HeldBatch:
    group = Group(0, 100)
    group.unacknowledged = group.unforgotten = 1
    return HeldBatch(StoredBatch(BatchId(b"s" * 16, 1, number), created, number, 100, 0, 0), group)


STEPS = st.lists(
    st.one_of(
        st.just(("add", 0)),
        st.tuples(st.sampled_from(["send", "lose answer", "lose request", "later", "refuse"]), st.just(0)),
        st.tuples(st.just("back"), st.integers(0, 5)),
        st.tuples(st.just("wait"), st.integers(1, 80)),
    ),
    max_size=60,
)


class LaneTests(SynchronousTestCase):
    @given(STEPS)
    @examples(300)
    def test_each_batch_ends_folded_once_in_order_or_counted_whatever_the_store_does(self, steps: list[tuple[str, int]]) -> None:
        lane, recorder = make_lane()
        backoff = Backoff(Random(1))
        now, number = 0.0, 0
        store: list[int] = []  # numbers folded, in order

        def exchange(fate: str) -> bool:
            run = lane.next(now, NOW, 3)
            if not run:
                return False
            fated = min(1, len(run) - 1)  # what happens, happens to the second of a run
            for place, send in enumerate(run):
                mark = store[-1] if store else 0
                if fate == "lose request":
                    lane.failed(now, backoff)
                    break
                if place != fated or fate in ("send", "lose answer"):
                    if send.number > mark and send.follows == mark and send.batch is not None:
                        store.append(send.number)
                    if fate == "lose answer":
                        continue
                if not lane.awaits(send):
                    continue
                if place == fated and fate == "later":
                    lane.later(0.5, now)
                elif place == fated and fate == "refuse":
                    lane.refused("no", now)
                elif send.number <= (store[-1] if store else 0):
                    lane.applied(store[-1], now)
                else:
                    lane.gap(mark, NUMBER, now, backoff)
            if fate == "lose answer":
                lane.failed(now, backoff)
            return True

        for step, argument in steps:
            if step == "add":
                number += 1
                lane.add(entry(number))
            elif step == "back":
                del store[len(store) - min(argument, len(store)) :]
            elif step == "wait":
                now += argument
                lane.probe_due(now)
            else:
                exchange(step)
        for _ in range(10 * number + 20):
            now += 20.0
            lane.probe_due(now)
            exchange("send")
        self.assertEqual(store, sorted(set(store)))
        self.assertFalse(lane.pending)
        refused = {given for given, reason in recorder.reasons.items() if reason == "refused"}
        missing = set(range(1, number + 1)) - set(store) - refused
        # what is neither in the store nor refused was forgotten after its time, and the store lost it then
        self.assertTrue(all(recorder.state[lost] in ("forgotten", "acknowledged") for lost in missing), recorder.state)
        for lost in missing:
            self.assertNotEqual(recorder.state[lost], "pending")

    def test_an_acknowledged_batch_is_forgotten_when_the_mark_covers_it_at_that_age_and_not_before(self) -> None:
        lane, recorder = make_lane()
        for number, time in ((1, 0.0), (2, RETAIN_SECONDS - 0.1), (3, RETAIN_SECONDS + 0.1)):
            lane.add(entry(number))
            self.assertTrue(lane.next(time, NOW))
            lane.applied(number, time)
            self.assertEqual(recorder.state[1], "acknowledged" if number < 3 else "forgotten")
        self.assertEqual(recorder.state[2], "acknowledged")

    def test_what_is_retained_is_given_up_with_what_came_before_it_and_what_is_not_retained_is_not(self) -> None:
        lane, recorder = make_lane()
        batches = [entry(number) for number in range(1, 6)]
        for batch in batches:
            lane.add(batch)
            lane.next(0.0, NOW)
            lane.applied(batch.number, 0.0)
        lane.probing = True
        lane.next(0.0, NOW)
        lane.applied(4, 0.0)  # the store has lost the last
        self.assertEqual([lane.retains(batch) for batch in batches], [True] * 4 + [False])
        assert batches[0].group is not None
        batches[0].group.released = True
        self.assertEqual([lane.give_up_through(batches[number - 1]) for number in (5, 1, 3, 2)], [0, 0, 2, 0])
        self.assertEqual(recorder.state, {1: "acknowledged", 2: "forgotten", 3: "forgotten", 4: "acknowledged", 5: "pending"})
        self.assertEqual(([batch.number for batch in lane.retained], [batch.number for batch in lane.pending]), ([4], [5]))

    def test_an_idle_lane_probes_and_forgets(self) -> None:
        lane, recorder = make_lane()
        lane.add(entry(1))
        lane.next(0.0, NOW)
        lane.applied(1, 0.0)
        due = lane.probe_due(1.0)
        self.assertEqual(lane.next(1.0, NOW), [])
        assert due is not None
        lane.probe_due(due)
        (probe,) = lane.next(due, NOW)
        self.assertEqual((probe.batch, probe.number), (None, 1))
        lane.applied(1, due)
        self.assertEqual(recorder.state, {1: "forgotten"})
        self.assertTrue(lane.is_idle)

    def test_a_probe_of_a_store_that_went_back_brings_the_batches_back(self) -> None:
        lane, recorder = make_lane()
        for number in (1, 2, 3):
            lane.add(entry(number))
            lane.next(0.0, NOW)
            lane.applied(number, 0.0)
        lane.probe_due(100.0)
        lane.next(100.0, NOW)
        lane.gap(1, NUMBER, 100.0, Backoff(Random(1)))
        (send,) = lane.next(100.0, NOW)
        self.assertEqual((send.number, send.follows), (2, 1))
        self.assertEqual(recorder.state, {1: "forgotten", 2: "pending", 3: "pending"})

    def test_what_is_gone_is_skipped_and_its_loss_counted_when_the_next_is_applied(self) -> None:
        lane, recorder = make_lane()
        for number in (1, 2, 3):
            lane.add(entry(number))
            lane.next(0.0, NOW)
            lane.applied(number, 0.0)
        lane.give_up_retained()
        lane.add(entry(4))
        self.assertEqual(lane.next(1.0, NOW)[0].follows, 3)
        lane.gap(1, NUMBER, 1.0, Backoff(Random(1)))
        self.assertEqual(lane.next(1.0, NOW)[0].follows, 1)
        self.assertEqual(recorder.lost_batches, 0)
        lane.applied(4, 1.0)
        self.assertEqual((recorder.lost_batches, recorder.lost_events), (2, 2 + 3))

    def test_a_refused_batch_is_skipped_at_once_and_is_no_loss_besides(self) -> None:
        lane, recorder = make_lane()
        lane.add(entry(1))
        lane.add(entry(2))
        lane.next(0.0, NOW)
        lane.refused("no", 0.0)
        self.assertEqual(lane.next(0.0, NOW)[0].follows, 0)
        lane.applied(2, 0.0)
        self.assertEqual((recorder.reasons, recorder.lost_batches), ({1: "refused"}, 0))

    def test_a_batch_is_sent_at_seven_days_and_not_after(self) -> None:
        lane, recorder = make_lane()
        lane.add(entry(1, created=NOW))
        self.assertTrue(lane.next(0.0, at(BATCH_DAYS * DAY)))
        lane.unsent()
        self.assertEqual(lane.next(0.0, at(BATCH_DAYS * DAY + 1)), [])
        self.assertEqual(recorder.reasons, {1: "too_old"})

    def test_across_boots_a_batch_is_as_old_as_the_store_says_and_never_too_old_while_nobody_knows(self) -> None:
        minutes = int(BATCH_DAYS * DAY / 60)
        for born, age, is_sent in (
            (10, 10 + minutes, True),
            (10, 11 + minutes, False),
            (None, 10**6, True),
            (10, None, True),
            (10, 0, True),
        ):
            lane, recorder = make_lane()
            lane.add(entry(1, created=Moment(1e9, 7, born)))
            self.assertEqual(bool(lane.next(0.0, Moment(0.0, 8, age))), is_sent, (born, age))
            self.assertEqual(recorder.reasons, {} if is_sent else {1: "too_old"})

    def test_what_is_too_old_but_may_be_folded_is_dropped_only_where_the_mark_does_not_cover_it(self) -> None:
        for mark in (0, 1, 2):
            lane, recorder = make_lane()
            lane.add(entry(1))
            lane.add(entry(2))
            lane.next(0.0, NOW, 2)
            lane.unanswered()
            late = at(BATCH_DAYS * DAY + 1)
            (asked,) = lane.next(0.0, late)
            self.assertEqual(
                asked.entry, Header(OPEN, b"s" * 16, 1, anew=True)
            )  # of a mark that is only asked for nobody knows how long it holds
            lane.opened(b"another.", mark, 0.0)
            self.assertEqual(lane.next(0.0, late), [])
            self.assertEqual(recorder.reasons, dict.fromkeys(range(mark + 1, 3), "too_old"))

    def test_what_cannot_be_read_back_but_may_be_folded_is_dropped_only_where_the_mark_does_not_cover_it(self) -> None:
        for mark in (0, 1):
            lane, recorder = make_lane()
            lane.add(entry(1))
            lane.next(0.0, NOW)
            lane.unanswered()
            recorder.torn.add(1)
            (asked,) = lane.next(0.0, NOW)
            self.assertEqual((asked.entry, recorder.reasons), (Header(OPEN, b"s" * 16, 1, anew=True), {}))
            lane.opened(b"another.", mark, 0.0)
            self.assertEqual(lane.next(0.0, NOW), [])
            self.assertEqual(recorder.reasons, {} if mark else {1: "outbox_corrupt"})

    def test_a_stream_is_opened_before_its_first_batch_and_ended_when_nothing_is_left_and_nothing_comes(self) -> None:
        lane, recorder = make_lane(is_open=False)
        self.assertEqual(lane.next(0.0, NOW), [])
        lane.add(entry(1))
        (opening,) = lane.next(0.0, NOW)
        self.assertEqual((opening.entry, recorder.is_open), (Header(OPEN, b"s" * 16, 1, anew=True), True))
        lane.opened(NONCE, 0, 0.0)
        (send,) = lane.next(0.0, NOW)
        self.assertEqual(send.entry, SentBatch(b"batch", 0, NONCE))
        lane.applied(1, 0.0)
        lane.give_up_retained()
        self.assertEqual(lane.next(0.0, NOW), [])
        lane.ending = True
        (ending,) = lane.next(0.0, NOW)
        self.assertEqual(ending.entry, Header(END, b"s" * 16, 1, NONCE))
        lane.failed(0.0, Backoff(Random(1)))
        (again,) = lane.next(MAX_BACKOFF_SECONDS, NOW)
        self.assertEqual(again.entry, ending.entry)
        lane.ended(0.0)
        self.assertEqual((lane.next(0.0, NOW), recorder.is_open, lane.is_idle), ([], False, True))

    def test_what_an_earlier_agent_sent_and_was_applied_is_not_sent_again_once_the_stream_is_open(self) -> None:
        lane, recorder = make_lane(is_open=False)
        for number in (1, 2, 3):
            lane.add(entry(number))
        lane.next(0.0, NOW)
        lane.opened(NONCE, 2, 0.0)
        (send,) = lane.next(0.0, NOW, 3)
        self.assertEqual((send.number, send.follows, recorder.state), (3, 2, {1: "acknowledged", 2: "acknowledged"}))

    def test_where_the_store_knows_nothing_of_the_stream_any_more_it_is_opened_again_and_all_that_is_held_is_sent(self) -> None:
        for why in (NOT_OPEN, NONCE_WRONG):
            lane, recorder = make_lane()
            for number in (1, 2):
                lane.add(entry(number))
                lane.next(0.0, NOW)
                lane.applied(number, 0.0)
            lane.probe_due(100.0)
            lane.next(100.0, NOW)
            lane.gap(0, why, 100.0, Backoff(Random(1)))
            self.assertEqual(lane.next(100.0, NOW), [])  # not at once: it may go on for ever
            (opening,) = lane.next(101.0, NOW)
            self.assertEqual(opening.entry, Header(OPEN, b"s" * 16, 1, anew=True))
            lane.opened(b"o" * NONCE_BYTES, 0, 101.0)
            self.assertEqual([(send.number, send.follows) for send in lane.next(101.0, NOW, 3)], [(1, 0), (2, 1)])
            self.assertEqual(recorder.state, {1: "pending", 2: "pending"})

    def test_a_verdict_on_something_else_is_as_good_as_none(self) -> None:
        lane, recorder = make_lane()
        lane.add(entry(1))
        for verdict in (Verdict("open", NONCE, 1), Verdict("mark", 1), Verdict("ended", 0)):
            (send,) = lane.next(lane.not_before, NOW)
            obey(send, verdict, lane.not_before, Backoff(Random(1)))
        self.assertEqual((recorder.state, len(lane.pending)), ({}, 1))

    def test_batches_that_cannot_be_read_back_are_counted_and_the_next_is_sent_at_once(self) -> None:
        lane, recorder = make_lane()
        for number in range(1, 6):
            lane.add(entry(number))
        recorder.torn = {1, 2, 4}
        run = lane.next(0.0, NOW, 3)
        self.assertEqual([(send.number, send.follows) for send in run], [(3, 0)])
        lane.applied(3, 0.0)
        self.assertEqual([(send.number, send.follows) for send in lane.next(0.0, NOW, 3)], [(5, 3)])
        lane.applied(5, 0.0)
        self.assertEqual((recorder.reasons, recorder.lost_batches), (dict.fromkeys((1, 2, 4), "outbox_corrupt"), 0))

    def test_a_run_is_bounded_by_batches_and_by_bytes_and_each_follows_the_one_before(self) -> None:
        lane, _ = make_lane()
        for number in range(1, MAX_RUN_BATCHES + 2):
            lane.add(entry(number))
        run = lane.next(0.0, NOW, MAX_RUN_BATCHES)
        self.assertEqual([(send.number, send.follows) for send in run], [(number, number - 1) for number in range(1, MAX_RUN_BATCHES + 1)])
        lane.unsent()
        for one in lane.pending:
            one.length = MAX_RUN_BYTES // 2
        self.assertEqual(len(lane.next(0.0, NOW, MAX_RUN_BATCHES)), 2)
        lane.unsent()
        lane.pending[0].length += 1
        self.assertEqual(len(lane.next(0.0, NOW, MAX_RUN_BATCHES)), 1)

    def test_a_refusal_within_a_run_ends_it_without_delay(self) -> None:
        lane, recorder = make_lane()
        for number in (1, 2, 3):
            lane.add(entry(number))
        lane.next(0.0, NOW, 3)
        lane.applied(1, 0.0)
        lane.refused("no", 0.0)
        lane.gap(1, NUMBER, 0.0, Backoff(Random(1)))
        self.assertEqual(lane.next(0.0, NOW, 3)[0].follows, 1)
        lane.applied(3, 0.0)
        self.assertEqual((recorder.reasons, recorder.lost_batches), ({2: "refused"}, 0))

    def test_the_same_gap_again_is_not_answered_at_once(self) -> None:
        lane, _ = make_lane()
        lane.add(entry(1))
        lane.next(0.0, NOW)
        lane.gap(0, NUMBER, 0.0, Backoff(Random(1)))
        self.assertEqual(lane.next(0.0, NOW), [])
        self.assertTrue(lane.next(MAX_BACKOFF_SECONDS, NOW))

    def test_later_is_bounded_and_one_batch_is_under_way_at_a_time(self) -> None:
        lane, _ = make_lane()
        lane.add(entry(1))
        lane.add(entry(2))
        lane.next(0.0, NOW)
        self.assertEqual(lane.next(0.0, NOW), [])
        lane.later(1e9, 0.0)
        self.assertEqual(lane.next(MAX_LATER_SECONDS - 0.1, NOW), [])
        self.assertEqual(lane.next(MAX_LATER_SECONDS, NOW)[0].number, 1)
        lane.later(float("nan"), MAX_LATER_SECONDS)
        self.assertTrue(lane.next(2 * MAX_LATER_SECONDS, NOW))

    @given(st.integers(1, 1000))
    def test_backoff_doubles_with_jitter_up_to_its_cap(self, failures: int) -> None:
        delay = Backoff(Random(failures)).delay(failures)
        whole = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** min(failures - 1, 16))
        self.assertTrue(whole / 2 <= delay <= whole)
