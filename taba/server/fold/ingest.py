"""Takes batches in, gives verdicts back: what waits for one bucket, from all Agents, becomes one transaction after another.

1. A batch waits in its bucket's line. While a line's transaction is under way, what comes in waits for the next (group commit).
2. A verdict is `applied` only after EXEC. What is not decided when its envelope's time is up gets `later`; so does what finds
   a queue full, the bucket busy or the store away. `later` loses nothing: the sender keeps the batch.
3. Transactions of different buckets run side by side, up to a bound for each server of the store. A server that fails gets
   one probe at a time, and nothing else, until it takes writes: it holds up nobody whose buckets are elsewhere.
   What is in line when one starts goes into it together, as far as it may (taba/shard/joint.py): a bucket that cannot be in it, and
   each that was in one that came to nothing, goes on alone.
4. A Handler of others that takes longer than a cycle waits holds up its own Events alone: they get `later`, and find what it did.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, cast

from twisted.internet.defer import ensureDeferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from taba.batch import GAP, LATER, Batch, Block, Column, Verdict
from taba.batch.columns import Columns
from taba.bounds import MiB
from taba.errors import StoreUnavailable
from taba.places import ASKER, NOBODY
from taba.server import keys
from taba.server.fold.bounds import DEFAULT_BOUNDS, Bounds
from taba.server.fold.cycle import Outcome, WaitingBatch
from taba.server.fold.errands import Errands, advance
from taba.server.fold.excess import Excess
from taba.server.fold.in_all import InAll
from taba.server.fold.lines import PROBE_PAUSE_SECONDS, Gate, InLine, Line, Load, Submission, Taken, decide_all
from taba.server.fold.marks import BAD
from taba.server.fold.plain import PlainOutcome
from taba.server.fold.together import Alone, Together, advance_many
from taba.server.latency import Latency
from taba.server.rates import Moving
from taba.server.router import IsRouter
from taba.server.work.bench import Bench
from taba.server.work.sandbox import FOLD_SECONDS, HandlersAway, HandlerSlow
from taba.shard import MAX_JOINED, BucketAway, BucketBusy, NotReplicated
from taba.turns import Turns

MAX_WAITING_BYTES = 64 * MiB  # of batches in all lines of this process, with all that was made of them
MAX_LINE_BYTES = 16 * MiB  # of batches for one bucket, so that one slow bucket cannot fill the queue for all
MAX_FOREIGN_CYCLES = 3  # of them with Events for Handlers of others, which may hang: the rest of the lines go on beside them
MAX_CYCLES = 8  # transactions under way at a time on one server; the Router has more connections to each, and queries need some
CYCLE_SECONDS = 3.0  # of the store's for one transaction; FOLD_SECONDS for Handlers of others, which say nothing of it, come to that
PROBE_SECONDS = 2.0  # for a server that failed to take a write
ENVELOPE_SECONDS = 1.5  # to decide an envelope's batches; what takes longer must not hold up the others' verdicts
BUSY_SECONDS = 0.1  # `later` where another Server holds the bucket, or time was up
FULL_SECONDS = 0.5  # `later` where a queue is full
SLOW_SECONDS = 0.5  # `later` where a Handler takes long
NO_ROOM = Verdict(LATER, FULL_SECONDS)  # of such a batch nothing was folded
SLOW = "a Handler takes longer than a cycle waits for it, and goes on"  # why of such a verdict: nothing of the batch was folded
STOPS = "this Server stops"
AWAY_SECONDS = 1.0  # `later` where the store is away
FAILED_SECONDS = 60.0  # for which a bucket whose cycle this Server failed to do is in none with others
ERROR_SECONDS = 5.0  # `later` where this Server failed; its log says more
SAY_SECONDS = 60.0  # between two lines in the log on one Type whose Handler fails
DRAIN_SECONDS = 0.02  # between two looks at whether all cycles have ended
TURNED_AWAY_SECONDS = 120.0  # for which it is shown that an Agent could open no stream: it tries each half minute
MAX_TURNED_AWAY = 1000  # such Agents that are remembered
MAX_NAMED = 5  # of them in a sentence
MAX_SPARE_LINES = 1000  # some 800 KiB
CYCLE_FAILED, TOGETHER_FAILED, PLAIN_FAILED = "fold cycle", "fold cycle of several buckets", "fold cycle of what is ordinary"
HANDLERS_AWAY = "start of the process in which Handlers work"
_new_tuple = cast(Any, tuple.__new__)  # without the call of Python that a NamedTuple's own is: one for each batch

log = Logger()


class Ingest:
    """The lines of all buckets. `submit` is for routes; counts and latency are for status."""

    def __init__(
        self,
        router: IsRouter,
        bench: Bench,
        clock: Any,
        now: Callable[[], float],
        age: Callable[[], int | None],
        bounds: Bounds = DEFAULT_BOUNDS,
    ):
        self.latency = Latency()
        self.errors: Counter[str] = Counter()
        """Events that Handlers failed to fold, by Type, and cycles that failed, as `fold cycle`; since this process began."""
        self.cycles = 0
        self.moving = Moving(clock.seconds)
        self.tab_changes = 0
        """Cycles after which there were other Tabs than before, since this process began."""
        self._said: dict[str, float] = {}
        self.gaps = 0
        """Batches that followed a number which the store does not know: it went back in time, or lost what it had acknowledged."""
        self.unmarked = 0
        """Batches that were told `later` because the mark of their stream is none."""
        self.postponed = 0
        """Batches that were told `later` because the store was away or took no writes."""
        self.bad_meanings = 0
        """Units and descriptions of Tabs that did not decode, and were left out."""
        self.alone = 0
        """Buckets whose cycle began anew, by itself, because one over several was not to be had."""
        self.waiting_bytes = 0
        self._router, self._bench, self._clock, self._now = router, bench, clock, now
        self._turns = Turns.of(clock)
        self._breathe = self._turns.breathe
        self._age, self._bounds = age, bounds
        self._turned_away: dict[str, float] = {}
        self._excess = Excess(bounds, clock.seconds)
        self.in_all = InAll(bounds, clock.seconds)
        self._lines: dict[int, Line] = {}
        self._spare: list[Line] = []  # empty: a deque takes as long to make as all else that is done of a batch in line
        self._gates: dict[str, Gate] = {}
        # buckets whose cycle this Server failed to do, and when, the oldest first: they hold up no others again soon
        self._failed: dict[int, float] = {}
        self._held: list[Line] = []  # ready, but for a foreign cycle
        self._running = self._foreign = 0
        self._is_closed = False

    def waiting(self) -> dict[str, int]:
        """What waits to be folded by this process, in bytes: of all buckets, of how many, and of the one that has most."""
        sizes = [line.bytes for line in self._lines.values()]
        return {"bytes": self.waiting_bytes, "lines": len(sizes), "greatest_line_bytes": max(sizes, default=0)}

    async def submit(self, batches: Sequence[WaitingBatch], seconds: float = ENVELOPE_SECONDS) -> list[Verdict]:
        """The verdicts on `batches`, in order, within `seconds`. The caller has checked that their buckets exist."""
        submission = Submission(batches)
        if self._is_closed:
            return [Verdict(LATER, AWAY_SECONDS, STOPS)] * len(batches)
        turned_away: set[tuple[bytes, int]] = set()
        for place, item in enumerate(batches):
            batch = item.batch
            is_foreign, states = self._looks(batch)
            entry = _new_tuple(InLine, (submission, place, item, is_foreign, item.size + batch.made_bytes, states))
            # what follows a batch that is sent later would only be a gap
            if (turned_away and (batch.stream, batch.bucket) in turned_away) or not self._enqueue(batch.bucket, entry):
                turned_away.add((batch.stream, batch.bucket))
                entry.decide(NO_ROOM)
        self._start_cycles()
        if submission.undecided:
            deadline = self._clock.callLater(seconds, submission.give_up)
            try:
                await submission.decided
            finally:
                if deadline.active():
                    deadline.cancel()
                submission.abandoned = True
        return [verdict or Verdict(LATER, BUSY_SECONDS) for verdict in submission.verdicts]

    @property
    def problems(self) -> list[str]:
        """What somebody should look at, in sentences."""
        since = self._clock.seconds() - TURNED_AWAY_SECONDS
        agents = sorted(agent for agent, when in self._turned_away.items() if when > since)
        if not agents:
            return self._excess.problems
        named = ", ".join(agents[:MAX_NAMED]) + (", …" if len(agents) > MAX_NAMED else "")
        bound = self._bounds.streams
        return [
            *self._excess.problems,
            f"a bucket has {bound} open streams, as many as it may; these Agents must wait: {named}. Are their names made anew each time?",
        ]

    async def drain(self, seconds: float) -> None:
        """Begin no more cycles, tell what waits for one that it is later, and wait until those under way have ended, at most so long."""
        self._is_closed = True
        for line in self._lines.values():
            for entry in line.entries:
                entry.decide(Verdict(LATER, AWAY_SECONDS, STOPS))
        deadline = self._clock.seconds() + seconds
        while self._running and self._clock.seconds() < deadline:
            await deferLater(self._clock, DRAIN_SECONDS)

    def _enqueue(self, bucket: int, entry: InLine) -> bool:
        """Whether there was room."""
        size, line = entry[4], self._lines.get(bucket)
        if line is None:
            line = self._lines[bucket] = self._spare.pop() if self._spare else Line()
            line.bucket = bucket
        # an empty line takes any batch, so that no size is refused for ever
        if line.entries and (line.bytes + size > MAX_LINE_BYTES or self.waiting_bytes + size > MAX_WAITING_BYTES):
            return False
        line.entries.append(entry)
        line.bytes += size
        self.waiting_bytes += size
        if not (line.is_busy or line.is_ready):
            line.is_ready = True
            self._gate_of(bucket).ready.append(line)
        return True

    def _gate_of(self, bucket: int) -> Gate:
        name = self._router.place_of(bucket)
        gate = self._gates.get(name)
        if gate is None:
            gate = self._gates[name] = Gate(name)
        return gate

    def _looks(self, batch: Batch) -> tuple[bool, int]:
        """Whether it is foreign, and how many States it touches at the most."""
        dumping, columns = self._bench.dumping, batch.columns
        states, is_own = 0, True
        for part in columns.sections if isinstance(columns, Columns) else (columns,):
            if isinstance(part, Block):
                states += len(part.fields)
                is_own = is_own and dumping[part.type] is not None  # what folds dumps is Taba's own
            else:
                states += len(part)
                beside = self._bench.beside
                is_own = is_own and all([isinstance(column, Column) and beside[column.type] is not None for column in part])
        return not is_own and any(map(self._bench.may_hang, batch.types)), states

    def _start_cycles(self) -> None:
        for gate in list(self._gates.values()):
            if gate.is_away:
                self._turn_away(gate)
            while gate.ready and gate.running < MAX_CYCLES and not self._is_closed and not gate.is_away:
                self._start_cycle(gate)
            if not gate.ready and not gate.running and not gate.is_away and self._gates.get(gate.name) is gate:
                del self._gates[gate.name]  # unless a cycle that ended at once has

    def _start_cycle(self, gate: Gate) -> None:
        """Begin a cycle of the first line that is ready, with as many of those behind it as may be in one transaction with it."""
        taken: list[Taken] = []
        plainly = False
        load = Load()
        ready, may_join = gate.ready, self._may_join
        while ready and len(taken) < MAX_JOINED:
            line = ready[0]
            if line.entries and line.entries[0][0].abandoned:
                self._forget_abandoned(line)
            joins = may_join(line)
            if taken and line.entries and not joins:
                break
            entries = self._take(line, load, joins)
            if line.entries and not entries:
                if taken:
                    break
                self._held.append(ready.popleft())
                continue
            ready.popleft()
            was_alone, line.is_ready, line.is_alone = line.is_alone, False, False
            if not entries:
                del self._lines[line.bucket]
                continue
            line.is_busy = True
            if not taken:
                plainly = not was_alone and not self._failed_lately(line.bucket)  # of one; of several all are such as may join
            taken.append(_new_tuple(Taken, (line, entries, [entry[2] for entry in entries])))
            if not joins:
                break
        if not taken:
            return
        self._running += 1
        gate.running += 1
        self._foreign += taken[0].is_foreign
        ensureDeferred(self._cycle(gate, taken, plainly)).addErrback(
            lambda failure: log.failure("a fold cycle ended without its verdicts", failure=failure)
        )

    def _may_join(self, line: Line) -> bool:
        """Whether what is first in `line` may be in a transaction with other buckets."""
        if line.is_alone or not line.entries or line.entries[0].is_foreign:
            return False
        if self._failed and self._failed_lately(line.bucket):
            return False
        return self._router.may_join(line.bucket)

    def _failed_lately(self, bucket: int) -> bool:
        """Whether this Server failed to do a cycle of it within FAILED_SECONDS; what was before is forgotten."""
        while self._failed and self._clock.seconds() - next(iter(self._failed.values())) >= FAILED_SECONDS:
            del self._failed[next(iter(self._failed))]
        return bucket in self._failed

    def _turn_away(self, gate: Gate) -> None:
        """Have everything for a server that is away sent later, and see now and then whether it is back."""
        bucket = gate.ready[0].bucket if gate.ready else None
        while gate.ready:
            line = gate.ready.popleft()
            line.is_ready = False
            self.postponed += len(line.entries)
            for entry in line.entries:
                self.waiting_bytes -= entry.charged
                entry.decide(Verdict(LATER, AWAY_SECONDS))
            del self._lines[line.bucket]
        is_time = self._clock.seconds() - gate.probed >= PROBE_PAUSE_SECONDS
        if bucket is not None and not gate.is_probing and is_time and not self._is_closed:
            gate.is_probing = True
            ensureDeferred(self._probe(gate, bucket)).addErrback(lambda failure: log.failure("a probe failed", failure=failure))

    async def _probe(self, gate: Gate, bucket: int) -> None:
        try:
            await self._router.probe(bucket, PROBE_SECONDS)
            gate.is_away = False
        except (BucketBusy, BucketAway):
            gate.is_away = False  # the server answers; what it says of this bucket is another matter
        except StoreUnavailable:
            pass  # it is still away, and is asked again in a while
        finally:
            gate.is_probing, gate.probed = False, self._clock.seconds()
            self._start_cycles()

    def _forget_abandoned(self, line: Line) -> None:
        """Nobody waits for these: their senders come again."""
        while line.entries and line.entries[0].submission.abandoned:
            self._leave(line)

    def _leave(self, line: Line) -> InLine:
        entry = line.entries.popleft()
        line.bytes -= entry.charged
        self.waiting_bytes -= entry.charged
        return entry

    def _take(self, line: Line, load: Load, joins: bool) -> list[InLine]:
        """The line's entries for a cycle that has `load`: as many as that has room for, and where it is empty one; none that must wait as
        a foreign one, nor, where it `joins` others, a foreign one at all."""
        if joins and len(line.entries) == 1:  # as nearly all; no other touches the same
            [entry] = line.entries
            if entry[3] or not load.take(entry[2], entry[5]):
                return []
            line.entries.clear()
            line.bytes = 0
            self.waiting_bytes -= entry[4]
            return [entry]
        entries: list[InLine] = []
        states: set[bytes] = set()
        while line.entries:
            entry = line.entries[0]
            if not entry.submission.abandoned:
                if entry.is_foreign and (joins or self._foreign >= MAX_FOREIGN_CYCLES):
                    break
                if not entries and len(line.entries) == 1:  # no other touches the same
                    if not load.take(entry.waiting, entry.states):
                        break
                else:
                    touched = entry.waiting.batch.fields
                    if not load.take(entry.waiting, len(touched - states) if states else len(touched)):
                        break
                    states |= touched
                entries.append(entry)
            self._leave(line)
        return entries

    def _put_back(self, taken: Taken) -> None:
        """What was to be folded with other buckets comes first when its own goes on, alone."""
        line = taken.line
        self.alone += 1
        if self._is_closed:
            for entry in taken.entries:
                entry.decide(Verdict(LATER, AWAY_SECONDS, STOPS))
            return
        line.is_alone = True
        line.entries.extendleft(reversed(taken.entries))
        size = sum(entry.charged for entry in taken.entries)
        line.bytes += size
        self.waiting_bytes += size

    async def _cycle(self, gate: Gate, taken: list[Taken], plainly: bool) -> None:
        ASKER.set(NOBODY)  # what it folds is of several
        try:
            if len(taken) > 1:
                await self._decide_together(gate, taken)
            else:
                [(line, entries, waiting)] = taken
                decide_all(entries, await self._decide(gate, line.bucket, waiting, plainly))
        finally:
            self._running -= 1
            gate.running -= 1
            if taken[0].is_foreign:
                self._foreign -= 1
                held, self._held = self._held, []
                for one in held:
                    self._gate_of(one.bucket).ready.append(one)
            for line, _, _ in taken:
                line.is_busy = False
                if line.entries:
                    line.is_ready = True
                    self._gate_of(line.bucket).ready.append(line)
                else:
                    del self._lines[line.bucket]
                    if len(self._spare) < MAX_SPARE_LINES:
                        self._spare.append(line)
            self._start_cycles()

    async def _decide_together(self, gate: Gate, taken: list[Taken]) -> None:
        """The verdicts of several buckets, as far as one transaction has them; the rest goes on alone."""
        items = {line.bucket: waiting for line, _, waiting in taken}
        cycles = Together(items, self._router.buckets, self._bench)

        def fold(replies: Mapping[int, Sequence[Any]]) -> Any:
            steps = cycles.fold(replies, self._now(), self._age(), self._bounds, self.in_all.room())
            return advance_many(steps, None, self._breathe)

        outcomes: dict[int, Any] = {}
        try:
            if cycles.is_long:
                await self._breathe()
            outcomes = await self._router.transact_many(cycles.reads, fold, CYCLE_SECONDS)
        except StoreUnavailable:
            pass  # each alone finds out whether it was done, or what is away: `alone` counts them
        except Exception:
            log.failure("a fold cycle of {count} buckets failed, and each goes on alone", count=len(taken))
            self.errors[TOGETHER_FAILED] += 1
        done = [outcome for outcome in outcomes.values() if isinstance(outcome, Outcome)]
        if done:
            self.latency.add_all(chain.from_iterable([outcome.times for outcome in done]), self._now())
            self.moving.note(*[outcome.moved for outcome in done])
            self.cycles += 1
        entries: list[InLine] = []
        verdicts: list[Verdict] = []
        for one in taken:
            outcome = outcomes.get(one.line.bucket)
            if type(outcome) is PlainOutcome and len(one.entries) == len(outcome.verdicts):  # as nearly all
                entries += one.entries
                verdicts += outcome.verdicts
                continue
            if outcome is None:
                if any(entry.submission.abandoned for entry in one.entries):
                    # it took so long that nobody waits for what would find out alone why: a probe does, before more goes to this server
                    gate.is_away = True
                    self._gates[gate.name] = gate
                self._put_back(one)
                continue
            if isinstance(outcome, NotReplicated):
                self.postponed += len(one.entries)
                for entry in one.entries:
                    entry.decide(Verdict(LATER, AWAY_SECONDS))
                continue
            self._note(one.waiting, outcome)
            decide_all(one.entries, outcome.verdicts)
        decide_all(entries, verdicts)

    async def _decide(self, gate: Gate, bucket: int, items: list[WaitingBatch], plainly: bool = False) -> list[Verdict]:
        """The verdicts on what waits for one bucket. `plainly`: where that is ordinary it may go the short way, which finds no culprit."""
        cycle = Alone(bucket, items, self._router.buckets, self._bench, plainly)
        errands = Errands(self._bench, self._now, self._clock.seconds, FOLD_SECONDS, self._breathe)

        def fold(replies: Sequence[Any]) -> Any:
            return advance(cycle.fold(replies, self._now(), self._age(), self._bounds, self.in_all.room()), None, errands)

        try:
            if cycle.is_long:
                await self._breathe()
            outcome: Outcome = await self._router.transact(bucket, cycle.reads, fold, CYCLE_SECONDS)
        except BucketBusy:
            return [Verdict(LATER, BUSY_SECONDS)] * len(items)
        except (BucketAway, NotReplicated):
            self.postponed += len(items)
            return [Verdict(LATER, AWAY_SECONDS)] * len(items)
        except StoreUnavailable:
            self.postponed += len(items)
            gate.is_away = True
            self._gates[gate.name] = gate
            return [Verdict(LATER, AWAY_SECONDS)] * len(items)
        except HandlerSlow as slow:
            return await self._decide_others(gate, bucket, items, slow.type)
        except HandlersAway as failure:
            self.errors[HANDLERS_AWAY] += 1
            log.error("bucket {bucket}: {failure}", bucket=bucket, failure=failure)
            return [Verdict(LATER, AWAY_SECONDS)] * len(items)
        except Exception:
            log.failure("bucket {bucket}: a fold cycle failed", bucket=bucket)
            if cycle.is_ordinary:
                self.errors[PLAIN_FAILED] += 1
                return await self._decide(gate, bucket, items)
            self.errors[CYCLE_FAILED] += 1
            self._failed.pop(bucket, None)  # the oldest stands first
            self._failed[bucket] = self._clock.seconds()
            if len(items) == 1:
                return [Verdict(LATER, ERROR_SECONDS)]
            # one batch that this Server cannot fold must not hold up those it came with, other than what follows it
            verdicts: list[Verdict] = []
            failed: set[bytes] = set()
            for item in items:
                if item.batch.stream in failed:
                    verdicts.append(Verdict(LATER, ERROR_SECONDS))
                    continue
                verdicts += await self._decide(gate, bucket, [item])
                if verdicts[-1].word == LATER and item.nonce:
                    failed.add(item.batch.stream)
            return verdicts
        self.latency.add_all(outcome.times, self._now())
        self.moving.note(outcome.moved)
        self.cycles += 1
        if not isinstance(outcome, PlainOutcome):
            self._note(items, outcome)
        return outcome.verdicts

    def _note(self, items: list[WaitingBatch], outcome: Outcome) -> None:
        """Count what a cycle did beside folding Events, once it is done."""
        self._excess.note(outcome.beyond)
        self.in_all.made(*outcome.made)
        self.tab_changes += any(map(keys.is_tab_change, outcome.commands))
        if outcome.handler_errors:
            self.errors.update(outcome.handler_errors)
        if outcome.turned_away:
            self._note_turned_away(outcome.turned_away)
        self.bad_meanings += outcome.bad_meanings
        for type, detail in outcome.first_errors.items():
            self._say(type, outcome.handler_errors[type], detail)
        self.unmarked += sum([verdict is BAD for verdict in outcome.verdicts])
        self.gaps += sum([verdict.word == GAP and item.header is None for item, verdict in zip(items, outcome.verdicts, strict=True)])

    def _note_turned_away(self, agents: Sequence[str]) -> None:
        now = self._clock.seconds()
        if len(self._turned_away) >= MAX_TURNED_AWAY:  # those that are shown no more make room
            since = now - TURNED_AWAY_SECONDS
            self._turned_away = {agent: when for agent, when in self._turned_away.items() if when > since}
        for agent in agents:
            if agent in self._turned_away or len(self._turned_away) < MAX_TURNED_AWAY:
                self._turned_away[agent] = now

    async def _decide_others(self, gate: Gate, bucket: int, items: list[WaitingBatch], slow: str) -> list[Verdict]:
        """What has no Events of this Type is decided now; the rest, and what follows it in its stream, later."""
        verdicts: list[Verdict | None] = []
        late: set[bytes] = set()
        for item in items:
            columns = item.batch.columns
            is_late = item.batch.stream in late or any(isinstance(column, Column) and column.type == slow for column in columns)
            verdicts.append(Verdict(LATER, SLOW_SECONDS, SLOW) if is_late else None)
            if is_late and item.nonce:
                late.add(item.batch.stream)
        others = [item for item, verdict in zip(items, verdicts, strict=True) if verdict is None]
        if len(others) == len(items):
            return [Verdict(LATER, SLOW_SECONDS, SLOW)] * len(items)
        decided = iter(await self._decide(gate, bucket, others) if others else ())
        return [verdict or next(decided) for verdict in verdicts]

    def _say(self, type: str, events: int, detail: str) -> None:
        """What a Handler did wrong, for its author; not more often than anybody reads."""
        now = self._clock.seconds()
        if type not in self._said or now - self._said[type] >= SAY_SECONDS:
            self._said[type] = now
            log.error(
                "the Handler of Type {type} failed, {events} events are dead letters: {detail}", type=type, events=events, detail=detail
            )
