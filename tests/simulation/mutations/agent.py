"""Mutations of the Agent, of what goes up and down, and of the client."""

from __future__ import annotations

import os
import sys
from typing import Any

from taba.agent import discover, history, locks, recovery, segment
from taba.agent.books import Books
from taba.agent.drain import Drain
from taba.agent.keeper import Keeper
from taba.agent.keys import Keys
from taba.agent.lanes import Lane
from taba.agent.openings import Openings
from taba.agent.outbox import PAGE, PUBLISHED, encode_table
from taba.agent.pump import RingPump
from taba.agent.reader import Ring
from taba.agent.register import Register
from taba.agent.spool import Spool
from taba.agent.sums import Ending, Sums
from taba.batch import MARK, NUMBER, RING_ENDED, BatchId, Header
from taba.client.own_ring import OwnRing
from taba.handlers import updown
from tests.simulation.mutations.listing import AGENT, BACK, CLIENT, HOME, MOVED, SPOOL, beside, focused

# --- the Agent


@focused("memory full,disk full,server cut off,kill agent,agent's fuse", 30.0, 1.0, seed=96)
def totals_are_published_late(put: Any) -> None:
    put(Keeper, "settle_totals", lambda self: None)


@focused(AGENT, seed=1)
def tails_move_before_the_outbox_has_it(put: Any) -> None:
    real = Drain.run

    def run(self: Any, *arguments: Any) -> Any:
        drained = real(self, *arguments)
        for ring, reading in drained.readings:
            ring.settle(reading)
        return drained

    put(Drain, "run", run)
    put(RingPump, "_settle", lambda self, ring, reading: None)


@focused(AGENT, seed=1)
def tails_do_not_move(put: Any) -> None:
    real = Ring._advance

    def advance(self: Any) -> None:
        held, self.fd = self.fd, os.open("/dev/null", os.O_WRONLY)
        try:
            real(self)
        finally:
            os.close(self.fd)
            self.fd = held

    put(Ring, "_advance", advance)


@focused(CLIENT, seed=29)
def the_table_names_no_covered_ranges(put: Any) -> None:
    real = Books.table
    put(Books, "table", lambda self, covered, *rest: real(self, (), *rest))


@focused(CLIENT, seed=61)
def the_table_is_written_after_it_counts(put: Any) -> None:
    write, store = segment.Segment.write, segment.Segment.store

    def hold(self: Any, offset: int, *parts: Any) -> None:
        if PAGE <= offset < PAGE + self.size // 8 and getattr(self, "is_mutant", False):
            self.held = [*getattr(self, "held", []), (offset, b"".join(parts))]
        else:
            write(self, offset, *parts)

    def publish(self: Any, offset: int, word: int) -> None:
        self.is_mutant = True
        store(self, offset, word)
        if offset == PUBLISHED:
            held, self.held = getattr(self, "held", []), []
            for place, content in held:
                write(self, place, content)

    put(segment.Segment, "write", hold)
    put(segment.Segment, "store", publish)


@focused(AGENT, seed=1)
def totals_begin_anew_with_each_agent(put: Any) -> None:
    real = recovery._last_table

    def last_table(keeper: Keeper) -> Any:
        table, is_last = real(keeper)
        return table._replace(recorded=0, dropped=()), is_last

    put(recovery, "_last_table", last_table)


@focused(BACK, seed=1)
def retained_batches_are_forgotten_at_once(put: Any) -> None:
    real = Books.acknowledged

    def acknowledged(self: Any, lane: Any, batch: Any, now: float) -> None:
        real(self, lane, batch, now)
        if batch.group is not None:
            batch.group.unforgotten -= 1
            batch.group.retained -= batch.length
            self.retained_bytes -= batch.length
            batch.group.released = batch.group.unforgotten == 0

    put(Books, "acknowledged", acknowledged)


@focused("store dies,kill agent", 40.0, seed=85)
def a_stream_ends_while_the_outbox_has_a_group_of_it(put: Any) -> None:
    real = Keeper.queue

    def queue(self: Any, lane: Any, now: float) -> None:
        if lane.is_idle:
            lane.in_outbox = 0
        real(self, lane, now)

    put(Keeper, "queue", queue)


@focused("store goes back,kill agent", 20.0, 0.3, seed=5)
def a_probe_under_the_wrong_nonce_lets_go_of_what_is_retained(put: Any) -> None:
    real = Lane.gap

    def gap(self: Any, mark: int, why: str, now: float, backoff: Any) -> None:
        if why != NUMBER and isinstance(self.sent[0].entry, Header) and self.sent[0].entry.do == MARK:
            self.give_up_retained()
        real(self, mark, why, now, backoff)

    put(Lane, "gap", gap)


def _spool_is_unknown_to(function: str) -> Any:
    """`Spool.last` that tells this function of the recovery of nothing."""
    real = Spool.last
    return lambda self, stream, bucket: 0 if sys._getframe(1).f_code.co_name == function else real(self, stream, bucket)


@beside(
    "tests.agent.test_manifest.CountedTests.test_what_a_server_had_applied_of_what_went_with_the_file_is_not_counted_wherever_a_kill_comes"
)
def what_the_spool_lost_is_counted_whoever_has_it(put: Any) -> None:
    real = Books.settles_doubt
    put(Books, "settles_doubt", lambda self, lane, mark: real(self, lane, 0))


# of an envelope that a Server has in hand while its Agent dies, and of a file that is gone in the same moment
@beside("tests.agent.test_manifest.CountedTests.test_what_a_server_has_in_hand_of_what_went_with_the_file_is_counted_and_never_folded")
def an_agent_opens_what_is_open_and_asks_for_no_other_nonce(put: Any) -> None:
    real = Lane._send_header

    def send(self: Any, what: str, number: int) -> None:
        real(self, what, number)
        sent = self.sent[-1]
        self.sent[-1] = sent._replace(entry=sent.entry._replace(anew=False))

    put(Lane, "_send_header", send)


@beside("tests.agent.test_gaps.GapTests.test_nor_where_the_last_table_was_in_a_spool_that_cannot_be_read")
def a_doubt_about_the_last_table_goes_with_the_agent_that_had_it(put: Any) -> None:
    real = recovery._last_table

    def last_table(keeper: Keeper) -> Any:
        keeper.spool.is_doubted = False
        return real(keeper)

    put(recovery, "_last_table", last_table)


@beside("tests.agent.test_history.HistoryTests.test_whichever_byte_of_a_record_is_damaged_it_is_none_and_the_others_are_whole")
def a_damaged_record_of_the_history_counts(put: Any) -> None:
    put(history, "_is_whole", lambda record: True)


@beside("tests.agent.test_database.KeysTests.test_no_byte_that_is_wrong_makes_another_request_of_a_known_one")
def a_damaged_key_is_another_request(put: Any) -> None:
    def digest(self: Any, key: bytes) -> bytes | None:
        row = self._database.execute("SELECT digest FROM keys WHERE key = ?", (key,)).fetchone()
        return None if row is None else bytes(row[0][:16])

    put(Keys, "digest", digest)


@focused(MOVED + ",spool spoilt", 40.0, 2.5, seed=153)
def what_a_move_left_in_both_places_is_sent_from_both(put: Any) -> None:
    put(Spool, "last", _spool_is_unknown_to("_take_groups"))


@focused(MOVED, 40.0, 2.5, seed=248)
def a_stream_ends_while_the_outbox_has_what_a_move_left_there(put: Any) -> None:
    put(Lane, "in_outbox", property(lambda self: 0, lambda self, end: None))


@focused("memory full,store fails over,replica lags,kill agent,messages lost", 40.0, 3.0, seed=53)
def what_was_left_out_is_forgotten_with_a_kill(put: Any) -> None:
    real = recovery._last_table
    put(recovery, "_last_table", lambda keeper: (real(keeper)[0]._replace(skipped=()), real(keeper)[1]))


@focused("memory full,kill agent,server cut off,spool spoilt", 30.0, 4.0, seed=1)
def what_a_spool_lost_is_told_in_its_file_alone(put: Any) -> None:
    def list_all(self: Any) -> None:
        found = self._database.execute("SELECT stream, bucket, number, events FROM batches")
        self._manifest.add((BatchId(*id), events) for *id, events in found.fetchall())

    put(Spool, "_list_all", list_all)


@beside("tests.agent.test_spooling.SpoolingTests.test_what_the_spool_lost_and_the_outbox_has_is_folded_wherever_a_kill_comes")
def what_a_spool_lost_stays_lost_where_it_is_there_again(put: Any) -> None:
    real = Spool.add

    def add(self: Any, *arguments: Any) -> None:
        lost, self.lost = self.lost, {}
        try:
            real(self, *arguments)
        finally:
            self.lost = lost

    put(Spool, "add", add)


@beside("tests.agent.test_spooling.DamagedTotalsTests.test_the_outbox_has_them_wherever_a_kill_comes")
def the_table_that_goes_into_the_spool_is_there_alone(put: Any) -> None:
    def journal(self: Any, table: Any, batches: Any = ()) -> None:
        self.backlog.add(batches, (self.outbox.id, encode_table(table)))
        self._is_torn = bool(batches)

    put(Keeper, "_journal", journal)


@focused(SPOOL, seed=1)
def what_the_spool_has_is_counted_as_lost(put: Any) -> None:
    put(Spool, "last", _spool_is_unknown_to("recover"))


@focused(AGENT, seed=1)
def a_new_agent_sends_under_new_numbers(put: Any) -> None:
    real = Keeper.begin_stream

    def begin(self: Any, moment: Any) -> None:
        real(self, moment)
        self.stream = b"always the same!"

    put(Keeper, "begin_stream", begin)


@focused(HOME, seed=1)
def two_agents_have_one_name(put: Any) -> None:
    real = locks.NameLock.__init__

    def lock(self: Any, path: str, name: str) -> None:
        real(self, f"{path}.{id(self)}", name)

    def take(self: Any) -> int:
        return os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)

    put(locks.NameLock, "__init__", lock)
    put(segment.Segment, "_lock", take)
    put(discover, "claim_ring", lambda fd: True)


@focused(CLIENT, seed=1)
def a_live_ring_is_removed_when_it_is_empty(put: Any) -> None:
    put(RingPump, "_scan", _scan_all_dead(RingPump._scan))


def _scan_all_dead(real: Any) -> Any:
    def scan(self: Any, now: float) -> None:
        real(self, now)
        self._dead.update(self.rings.open)

    return scan


@focused(HOME, seed=1)
def a_removed_outbox_is_not_noticed(put: Any) -> None:
    from taba.agent.home import Home

    put(Home, "keep_name", lambda self: False)


# no world: between two turns of a drain nothing looks at rings, what a turn itself finds to be none it leaves out, and after a hand-over
# there is no ring open to go on with; so none is closed there unless somebody comes who does it, as this test does
@beside(
    "tests.agent.test_turns.Turns.test_a_ring_that_turns_out_to_be_none_between_two_turns_is_neither_settled_nor_published_and_the_others_are"
)
def a_drain_goes_on_though_its_rings_were_closed(put: Any) -> None:
    put(RingPump, "give_up_drain", lambda self: None)


# --- what goes up and down


@focused("spool spoilt,memory full,server cut off,agent's fuse", 20.0, 1.5, seed=1)
def sums_travel_as_differences(put: Any) -> None:
    def fold(rings: Any, row: list[Any]) -> None:
        ring, position, total = row
        if position >= RING_ENDED:
            rings[ring] = [position, 0.0]
        else:
            before = rings.get(ring, [0, 0.0])
            rings[ring] = [position, before[1] + total]

    real = Sums._pack

    def pack(drain: Any, packed: Any, weights: Any, whose: Any, time_: float, row: list[Any], events: int) -> None:
        if row[1] < RING_ENDED:
            sent = _SENT.get((row[0], whose[1]), 0.0)
            _SENT[row[0], whose[1]] = row[2]
            row = [row[0], row[1], row[2] - sent]
        real(drain, packed, weights, whose, time_, row, events)

    _SENT.clear()
    put(updown, "_fold_absolute", fold)
    put(Sums, "_pack", staticmethod(pack))


_SENT: dict[tuple[bytes, str], float] = {}


@focused("kill client,server cut off,memory full,messages late", seed=13)
def an_ended_sum_goes_while_older_ones_are_on_their_way(put: Any) -> None:
    put(Keeper, "older_buckets", lambda self: ())


@focused("host boots,process stopped,messages late,messages repeated,server cut off,kill server", 40.0, seed=2)
def streams_of_a_lost_outbox_stay_open(put: Any) -> None:
    put(Keeper, "left_open", lambda self, stream, buckets: None)


@focused("host boots,kill agent,memory full,server cut off", 40.0, seed=1)
def what_a_lost_table_knew_to_be_ended_is_taken_for_open(put: Any) -> None:
    put(Openings, "doubt", lambda self: False)


@focused("host boots,disk full", 40.0, 1.0, seed=5)
def a_sum_is_sent_that_a_full_disk_does_not_name(put: Any) -> None:
    put(Register, "_set_aside", lambda self, file: None)
    put(Register, "has", lambda self, named: True)


@focused(CLIENT, seed=2)
def the_end_of_a_process_is_not_told(put: Any) -> None:
    put(Sums, "ending", lambda self, drain, ring, packed: Ending({}, [], 0, 0, 0))
    put(Sums, "overdue", lambda self, drain, rings, directory, now: ([], []))


# --- the client


@focused(CLIENT, seed=1)
def a_commit_word_is_stored_before_the_value(put: Any) -> None:
    real = OwnRing.refill

    def refill(self: Any, guard: Any, is_fast: bool) -> bool:
        done = real(self, guard, is_fast)
        # the place of the record before: what a reader sees is committed, and not yet written
        if done and self.chunk[2] is not None:
            free, lap, times, values, commits, own = self.chunk
            self.chunk = (free, lap, times, _Late(values), commits, own)
        return done

    put(OwnRing, "refill", refill)


class _Late:
    """Values that are stored one record later than they should be."""

    def __init__(self, view: Any):
        self._view = view
        self._before: tuple[int, float] | None = None

    def __setitem__(self, index: int, value: float) -> None:
        if self._before is not None:
            self._view[self._before[0]] = self._before[1]
        self._before = (index, value)

    def release(self) -> None:
        self._view.release()
