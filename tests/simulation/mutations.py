"""Faults of Taba that a simulator must find: each takes one line of the real code away, or turns it round. For `test_mutations`.

python -m tests.simulation.mutations [NAME …] [--seed N] [--seeds K]     looks for the first seed that finds each
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from simulation.__main__ import prepare
from simulation.world import play
from taba.agent import discover, locks, segment
from taba.agent.dispatch import Dispatch
from taba.agent.drain import Drain
from taba.agent.keeper import Keeper
from taba.agent.lanes import Lane
from taba.agent.outbox import PAGE, PUBLISHED, Outbox
from taba.agent.pump import RingPump
from taba.agent.reader import Ring
from taba.agent.sums import Sums
from taba.batch import APPLIED, GAP, NOT_OPEN, OPEN, RING_ENDED, Verdict
from taba.client import pure
from taba.handlers import updown
from taba.server import aging
from taba.server.fold import cycle, ingest, marks
from taba.server.fold.marks import Mark, Marks
from taba.shard import transaction
from taba.shard.servers.connection import ConnectionGone, Transactions

Patch = Callable[[Callable[[Any, str, Any], None]], None]
ALL: dict[str, Patch] = {}


def mutation(function: Patch) -> Patch:
    ALL[function.__name__] = function
    return function


@contextlib.contextmanager
def applied(name: str) -> Iterator[None]:
    """Taba with this fault."""
    undo: list[tuple[Any, str, Any]] = []

    def put(where: Any, attribute: str, instead: Any) -> None:
        undo.append((where, attribute, where.__dict__[attribute]))
        setattr(where, attribute, instead)

    try:
        ALL[name](put)
        yield
    finally:
        for where, attribute, before in reversed(undo):
            setattr(where, attribute, before)


# --- the store


@mutation
def the_mark_is_written_after_the_states(put: Any) -> None:
    real = Transactions.commit

    async def commit(self: Any, commands: Any, seconds: float = 4.0) -> Any:
        later = [command for command in commands if command[1].endswith((b":marks", b":posted"))]
        done = await real(self, [command for command in commands if command not in later], seconds)
        if done is not None and later:
            await real(self, later, seconds)
        return done

    put(Transactions, "commit", commit)


@mutation
def a_mark_expires(put: Any) -> None:
    real = Transactions.commit

    async def commit(self: Any, commands: Any, seconds: float = 4.0) -> Any:
        keys = {command[1] for command in commands if command[1].endswith(b":marks")}
        return await real(self, [*commands, *((b"PEXPIRE", key, b"20000") for key in keys)], seconds)

    put(Transactions, "commit", commit)


@mutation
def nothing_is_watched(put: Any) -> None:
    async def watch(self: Any, keys: Any, reads: Any, seconds: float = 4.0) -> Any:
        replies = await self.execute(list(reads), seconds)
        for reply in replies:
            if isinstance(reply, Exception):
                self._refuse(reply)
        return replies

    put(Transactions, "watch", watch)


@mutation
def a_conflict_is_taken_for_done(put: Any) -> None:
    real = Transactions.commit

    async def commit(self: Any, commands: Any, seconds: float = 4.0) -> Any:
        return await real(self, commands, seconds) or []

    put(Transactions, "commit", commit)


@mutation
def an_unknown_outcome_is_taken_for_done(put: Any) -> None:
    real = Transactions.commit

    async def commit(self: Any, commands: Any, seconds: float = 4.0) -> Any:
        try:
            return await real(self, commands, seconds)
        except ConnectionGone:
            return []

    put(Transactions, "commit", commit)


@mutation
def an_unknown_outcome_is_sent_again_as_it_was(put: Any) -> None:
    real = transaction.Attempt._try

    async def again(self: Any) -> Any:
        try:
            return await real(self)
        except ConnectionGone:
            sent = getattr(self, "mutant_commands", None)
            if not self.is_committing or sent is None:
                raise
            async with self._pool().holding(self.bucket).connection(2.0) as connection:
                await connection.execute([(b"MULTI",), *sent, (b"EXEC",)], 4.0)
            return True, self.mutant_result

    decide = transaction.Attempt._decide

    async def remembering(self: Any, *arguments: Any) -> Any:
        decision = await decide(self, *arguments)
        self.mutant_commands, self.mutant_result = decision.commands, decision.result
        return decision

    put(transaction.Attempt, "_try", again)
    put(transaction.Attempt, "_decide", remembering)


@mutation
def the_stores_age_is_raised_by_each_server(put: Any) -> None:
    def is_due(self: Any, age: int, now: float) -> bool:
        if self._seen is None:
            self._seen = (age, now)
        is_due = now - self._seen[1] >= aging.MINUTE_SECONDS
        if is_due:
            self._seen = (age, now)
        return bool(is_due)

    put(aging.Watch, "is_due", is_due)


# --- marks


@mutation
def what_a_batch_follows_is_ignored(put: Any) -> None:
    real = Marks.fold

    def fold(self: Any, stream: bytes, number: int, follows: int, nonce: bytes) -> Any:
        mark = self._marks.get(stream)
        return real(self, stream, number, mark.number if mark is not None else follows, nonce)

    put(Marks, "fold", fold)


@mutation
def a_number_at_the_mark_is_folded_again(put: Any) -> None:
    real = Marks.fold

    def fold(self: Any, stream: bytes, number: int, follows: int, nonce: bytes) -> Any:
        mark = self._marks.get(stream)
        if mark is not None and number == mark.number and mark.nonce == nonce:
            return Verdict(APPLIED, number), True
        return real(self, stream, number, follows, nonce)

    put(Marks, "fold", fold)


@mutation
def a_batch_opens_its_stream_by_itself(put: Any) -> None:
    real = Marks.fold

    def fold(self: Any, stream: bytes, number: int, follows: int, nonce: bytes) -> Any:
        if self._marks.get(stream) is None and stream not in self._bad:
            self._marks[stream] = Mark(nonce, follows, self._age or 0)
        return real(self, stream, number, follows, nonce)

    put(Marks, "fold", fold)


@mutation
def a_nonce_is_not_compared(put: Any) -> None:
    put(marks, "_wrong", lambda mark, nonce: Verdict(GAP, 0, NOT_OPEN) if mark is None else None)


@mutation
def a_second_open_draws_a_second_nonce(put: Any) -> None:
    real = Marks._open

    def open(self: Any, stream: bytes, mark: Any, drawn: bytes) -> Any:
        if mark is not None:
            self._put(stream, Mark(drawn, 0, mark.age))
            return Verdict(OPEN, drawn, 0)
        return real(self, stream, mark, drawn)

    put(Marks, "_open", open)


@mutation
def a_refusal_of_the_store_is_an_applied(put: Any) -> None:
    put(ingest, "LATER", APPLIED)


@mutation
def events_of_a_cycle_beside_the_first_are_left_out(put: Any) -> None:
    real = cycle.Fold._judge

    def judge(self: Any, of: Any) -> Any:
        verdicts, accepted = real(self, of)
        return verdicts, accepted[:1]

    put(cycle.Fold, "_judge", judge)


# --- the Agent


@mutation
def tails_move_before_the_outbox_has_it(put: Any) -> None:
    real = Drain.run

    def run(self: Any, *arguments: Any) -> Any:
        drained = real(self, *arguments)
        for ring, reading in drained.readings:
            ring.settle(reading)
        return drained

    put(Drain, "run", run)
    put(RingPump, "_settle", lambda self, ring, reading: None)


@mutation
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


@mutation
def the_table_names_no_covered_ranges(put: Any) -> None:
    real = Keeper._table
    put(Keeper, "_table", lambda self, covered, recorded, dropped: real(self, (), recorded, dropped))


@mutation
def the_table_is_written_after_it_counts(put: Any) -> None:
    write, store = segment.Segment.write, segment.Segment.store

    def hold(self: Any, offset: int, content: bytes) -> None:
        if PAGE <= offset < PAGE + self.size // 8 and getattr(self, "is_mutant", False):
            self.held = [*getattr(self, "held", []), (offset, content)]
        else:
            write(self, offset, content)

    def publish(self: Any, offset: int, word: int) -> None:
        self.is_mutant = True
        store(self, offset, word)
        if offset == PUBLISHED:
            held, self.held = getattr(self, "held", []), []
            for place, content in held:
                write(self, place, content)

    put(segment.Segment, "write", hold)
    put(segment.Segment, "store", publish)


@mutation
def retired_rings_are_counted_again(put: Any) -> None:
    real = Keeper._table
    put(Keeper, "_table", lambda self, *arguments: real(self, *arguments)._replace(retired=()))


@mutation
def totals_begin_anew_with_each_agent(put: Any) -> None:
    real = Keeper._last_table
    put(Keeper, "_last_table", lambda self: real(self)._replace(recorded=0, dropped=()))


@mutation
def totals_are_published_late(put: Any) -> None:
    put(Keeper, "settle_totals", lambda self: None)


@mutation
def what_was_settled_is_not_remembered(put: Any) -> None:
    real = Keeper._table
    put(Keeper, "_table", lambda self, *arguments: real(self, *arguments)._replace(settled=()))
    put(Outbox, "settle", lambda self, flag: None)


@mutation
def retained_batches_are_forgotten_at_once(put: Any) -> None:
    real = Keeper.acknowledged

    def acknowledged(self: Any, lane: Any, batch: Any, now: float) -> None:
        real(self, lane, batch, now)
        if batch.group is not None:
            batch.group.unforgotten -= 1
            batch.group.retained -= batch.length
            self.retained_bytes -= batch.length
            batch.group.released = batch.group.unforgotten == 0

    put(Keeper, "acknowledged", acknowledged)


@mutation
def what_a_move_left_in_both_places_is_sent_from_both(put: Any) -> None:
    from taba.agent.spool import Spool

    real = Spool.last
    put(Spool, "last", lambda self, stream, bucket: 0 if sys._getframe(1).f_code.co_name == "recover" else real(self, stream, bucket))


@mutation
def all_of_a_run_is_applied_when_its_first_is(put: Any) -> None:
    real = Dispatch.answered

    def answered(self: Any, parcel: Any, verdicts: Any, now: float) -> None:
        if len({id(send.lane) for send in parcel.sends}) == 1 and verdicts and verdicts[0].word == APPLIED:
            verdicts = [Verdict(APPLIED, send.number) for send in parcel.sends]
        real(self, parcel, verdicts, now)

    put(Dispatch, "answered", answered)


@mutation
def later_is_taken_for_applied(put: Any) -> None:
    put(Lane, "later", lambda self, seconds, now: self.applied(self.sent[0].number, now))


@mutation
def no_answer_is_taken_for_applied(put: Any) -> None:
    real = Dispatch.failed

    def failed(self: Any, parcel: Any, problem: str, is_answer: bool, now: float) -> None:
        if "closed the connection" in problem and all(send.batch is not None for send in parcel.sends):
            self.answered(parcel, [Verdict(APPLIED, send.number) for send in parcel.sends], now)
        else:
            real(self, parcel, problem, is_answer, now)

    put(Dispatch, "failed", failed)


@mutation
def a_new_agent_sends_under_new_numbers(put: Any) -> None:
    real = Keeper.begin_stream

    def begin(self: Any, moment: Any) -> None:
        real(self, moment)
        self.stream = b"always the same!"

    put(Keeper, "begin_stream", begin)


@mutation
def two_agents_have_one_name(put: Any) -> None:
    real = locks.NameLock.__init__

    def lock(self: Any, path: str, name: str) -> None:
        real(self, f"{path}.{id(self)}", name)

    def take(self: Any) -> int:
        return os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)

    put(locks.NameLock, "__init__", lock)
    put(segment.Segment, "_lock", take)
    put(discover, "claim_ring", lambda fd: True)


@mutation
def a_dead_ring_is_retired_with_what_is_in_it(put: Any) -> None:
    real = RingPump._retire

    def retire(self: Any, dead: Any, drained: Any, now: float, moment: Any) -> None:
        rings = [ring for name, ring in self.rings.open.items() if discover.is_abandoned(ring.fd)]
        real(self, {**dead, **dict.fromkeys(rings, True)}, drained._replace(empty=[*drained.empty, *rings]), now, moment)

    put(RingPump, "_retire", retire)


@mutation
def a_live_ring_is_removed_when_it_is_empty(put: Any) -> None:
    put(RingPump, "_scan", _scan_all_dead(RingPump._scan))


def _scan_all_dead(real: Any) -> Any:
    def scan(self: Any, now: float) -> None:
        real(self, now)
        self._dead.update(self.rings.open)

    return scan


@mutation
def a_removed_outbox_is_not_noticed(put: Any) -> None:
    from taba.agent.home import Home

    put(Home, "keep_name", lambda self: False)


# --- what goes up and down


@mutation
def sums_travel_as_differences(put: Any) -> None:
    def fold(rings: Any, row: list[Any]) -> None:
        ring, position, total = row
        if position >= RING_ENDED:
            rings[ring] = [position, 0.0]
        else:
            before = rings.get(ring, [0, 0.0])
            rings[ring] = [position, before[1] + total]

    real = Sums._pack

    def pack(drain: Any, packed: Any, weights: Any, entry: Any, time_: float, row: list[Any], events: int) -> None:
        if row[1] < RING_ENDED:
            sent = _SENT.get((row[0], entry.tab), 0.0)
            _SENT[row[0], entry.tab] = row[2]
            row = [row[0], row[1], row[2] - sent]
        real(drain, packed, weights, entry, time_, row, events)

    _SENT.clear()
    put(updown, "_fold_absolute", fold)
    put(Sums, "_pack", staticmethod(pack))


_SENT: dict[tuple[bytes, str], float] = {}


@mutation
def an_ended_sum_goes_while_older_ones_are_on_their_way(put: Any) -> None:
    put(Keeper, "holds_older", lambda self, bucket: False)


@mutation
def an_older_sum_replaces_a_newer_one(put: Any) -> None:
    real = updown._fold_absolute

    def fold(rings: Any, row: list[Any]) -> None:
        rings.pop(row[0], None)
        real(rings, row)

    put(updown, "_fold_absolute", fold)


@mutation
def the_end_of_a_process_is_not_told(put: Any) -> None:
    put(Sums, "ending", lambda self, drain, ring, packed: ({}, 0))
    put(Sums, "overdue", lambda self, drain, rings, directory: ([], []))


# --- the client


@mutation
def a_commit_word_is_stored_before_the_value(put: Any) -> None:
    real = pure._Ring.refill

    def refill(self: Any, guard: Any) -> bool:
        done = real(self, guard)
        # the place of the record before: what a reader sees is committed, and not yet written
        if done and self.chunk[2] is not None:
            free, lap, times, values, commits, own = self.chunk
            self.chunk = (free, lap, times, _Late(values), commits, own)
        return done

    put(pure._Ring, "refill", refill)


class _Late:
    """Values that are stored one record later than they should be."""

    def __init__(self, view: Any):
        self._view, self._before = view, None

    def __setitem__(self, index: int, value: float) -> None:
        if self._before is not None:
            self._view[self._before[0]] = self._before[1]
        self._before = (index, value)

    def release(self) -> None:
        self._view.release()


@mutation
def a_full_ring_is_written_over(put: Any) -> None:
    put(pure, "_TAIL", pure._COUNT + 10_000) if False else None
    real = pure._Ring.refill

    def refill(self: Any, guard: Any) -> bool:
        tail = self.words[pure._TAIL]
        if self.next - tail >= self.where.records:
            self.words[pure._TAIL] = self.next - self.where.records // 2
        return real(self, guard)

    put(pure._Ring, "refill", refill)


def find(name: str, seed: int, seeds: int, **options: Any) -> tuple[int, str] | None:
    """The first of these seeds that finds the mutation, and how."""
    with applied(name):
        for number in range(seed, seed + seeds):
            result = play(number, **options)
            if result.error is not None:
                return number, result.error
    return None


def main(arguments: list[str]) -> int:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("names", nargs="*", metavar="NAME")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--seeds", type=int, default=10_000)
    options = made.parse_args(arguments)
    prepare()
    missed = 0
    for entry in options.names or ALL:
        name, _, pinned = entry.partition("=")
        began = time.monotonic()
        found = find(name, int(pinned) if pinned else options.seed, 1 if pinned else options.seeds)
        missed += found is None
        how = "NOT FOUND" if found is None else f"seed {found[0]}: {' '.join(found[1].split())[:110]}"
        print(f"{name}: {how} ({time.monotonic() - began:.1f} s)", flush=True)
    return 1 if missed else 0


__all__ = ["ALL", "applied", "find"]

if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(
            sys.executable, [sys.executable, "-m", "tests.simulation.mutations", *sys.argv[1:]], {**os.environ, "PYTHONHASHSEED": "0"}
        )
    sys.exit(main(sys.argv[1:]))
