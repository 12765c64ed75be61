"""The job that folds dead letters again, once what was wrong is not wrong any more.

1. A letter goes in the transaction in which its Events are folded: they count once, whatever dies when.
2. What still cannot be folded stays a dead letter, of the time at which it became one, under the reason that holds now.
   A lot of which nothing can be folded, for the reasons of before, is left as it is.
3. Every Event is tried anew: what it did a moment ago, and that its Type is suspended, is no reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from typing import Any

from twisted.internet.task import deferLater

from taba.batch import Batch
from taba.plural import many
from taba.server import keys
from taba.server.ask.letters import place_of
from taba.server.fold.bounds import DEFAULT_BOUNDS, Bounds
from taba.server.fold.cycle import Cycle, Need, Outcome, WaitingBatch
from taba.server.fold.deadletters import (
    MAX_DEAD_LETTERS,
    TOMBSTONE,
    DeadLetter,
    LetterId,
    column_of,
    count_dead_letters,
    decode_dead_letter,
    encode_dead_letter,
    letter_id,
)
from taba.server.fold.deciding import Fold
from taba.server.fold.errands import Errands, advance
from taba.server.fold.in_all import InAll, Room
from taba.server.fold.ingest import SLOW_SECONDS
from taba.server.keep.jobs import Job
from taba.server.router import Command, IsRouter
from taba.server.work.bench import Bench
from taba.server.work.sandbox import FOLD_SECONDS, HandlerSlow
from taba.shard import More, Writes
from taba.turns import Turns

LOT_LETTERS = 100  # folded again in one transaction: some 400 KiB of Events, 6 MiB at the most, and at most as many States

ELSEWHERE = Outcome([], [], 0, {}, {}, ())  # the letter that was meant has moved, or is gone
_NO_STREAM = bytes(16)  # letters come from no stream, and move no mark


class Retry:
    """`POST /v1/retry`. `now` tells Unix seconds, `age` the store's minutes."""

    def __init__(
        self,
        router: IsRouter,
        bench: Bench,
        now: Callable[[], float],
        age: Callable[[], int | None],
        clock: Any,
        bounds: Bounds = DEFAULT_BOUNDS,
        in_all: InAll | None = None,
    ):
        self._in_all = in_all or InAll(bounds, clock.seconds)
        self._router, self._bench, self._now, self._age, self._clock, self._bounds = router, bench, now, age, clock, bounds
        self._turns = Turns.of(clock)

    async def __call__(self, job: Job) -> None:
        """Run the job."""
        self._bench.forget()  # once: what its lots find out, and the answers that other cycles wait for, hold
        folded, left = 0, 0

        async def step(bucket: int) -> None:
            nonlocal folded, left
            [length] = await self._router.read(bucket, [(b"LLEN", keys.dead_letters(bucket))])
            looked_at = kept = 0
            while looked_at < length:
                job.check()
                count = min(LOT_LETTERS, length - looked_at)
                outcome, stayed = await self._patiently(job, bucket, kept, count)
                folded += outcome.folded
                left += sum(outcome.dead.values())
                looked_at += count
                kept += stayed
                job.message = f"{many(folded, 'event')} folded, {left} still cannot be"

        await job.over_buckets(self._router.buckets, step)
        job.message = f"{many(folded, 'event')} folded, {left} still cannot be"

    async def _patiently(self, job: Job, bucket: int, kept: int, count: int) -> tuple[Outcome, int]:
        """`_lot`, again and again where Handlers take their time: each finds what the last has done."""
        while True:
            try:
                return await self._lot(bucket, kept, count)
            except HandlerSlow as slow:
                job.check()
                job.message = str(slow)
            await deferLater(self._clock, SLOW_SECONDS)

    async def one(self, id: LetterId) -> Outcome | None:
        """Fold one letter again; None where it is not there. Raises HandlerSlow: a later try finds what its Handler has done."""
        self._bench.forget()
        while (older := await place_of(self._router, id)) is not None:
            outcome, _ = await self._lot(id.bucket, older, 1, id)
            if outcome is not ELSEWHERE:
                return outcome
        return None

    async def _lot(self, bucket: int, kept: int, count: int, only: LetterId | None = None) -> tuple[Outcome, int]:
        """Fold `count` letters again, the oldest but `kept`; what came of it, and how many letters of them are left.

        `only`: what stands there, or nothing is done and the outcome is ELSEWHERE.
        """
        key = keys.dead_letters(bucket)
        chosen: list[bytes] = []

        def update(replies: Sequence[Any]) -> Writes | More:
            chosen[:], length = replies
            if only is not None and [letter_id(bucket, content) for content in chosen] != [only]:
                return Writes([], ELSEWHERE)
            letters = [decode_dead_letter(content) for content in chosen]
            # the oldest first, as they came
            columns = [column for letter in reversed(letters) if letter and (column := column_of(letter)) is not None]
            if not columns:
                dead = sum(letter.events for letter in letters if letter)
                return Writes([], Outcome([], [], 0, {"": dead}, {}, ()))
            waiting = WaitingBatch(0, Batch(_NO_STREAM, bucket, 1, list(columns)), sum(map(len, chosen)))
            cycle = Cycle(bucket, [waiting], self._router.buckets)
            errands = Errands(self._bench, self._now, self._clock.seconds, FOLD_SECONDS, self._turns.breathe, is_retry=True)

            def fold(replies: Sequence[Any]) -> Any:
                again = _FoldAgain(
                    cycle,
                    replies,
                    self._bench,
                    self._now(),
                    self._age(),
                    self._bounds,
                    self._in_all.room(),
                    kept,
                    letters,
                    len(chosen),
                    length,
                )
                return advance(again.run(), None, errands)

            return More(cycle.reads, fold)

        # from the tail, where the oldest are, and where nothing is added
        read: Command = (b"LRANGE", key, b"%d" % -(kept + count), b"%d" % -(kept + 1))
        outcome: Outcome = await self._router.transact(bucket, [read, (b"LLEN", key)], update)
        if not outcome.commands:
            return outcome, len(chosen)
        self._in_all.made(*outcome.made)
        came = sum(len(command) - 2 for command in outcome.commands if command[0] == b"RPUSH")
        gone = sum(command[0] == b"LSET" for command in outcome.commands)
        return outcome, len(chosen) - gone + came


class _FoldAgain(Fold):
    """A fold of dead letters: no mark moves, and those letters go whose Events were folded."""

    def __init__(
        self,
        cycle: Cycle,
        replies: Sequence[Any],
        bench: Bench,
        now: float,
        age: int | None,
        bounds: Bounds,
        in_all: Room,
        kept: int,
        letters: Sequence[DeadLetter | None],
        count: int,
        length: int,
    ):
        super().__init__(cycle, replies, bench, now, age, bounds, in_all)
        self._kept, self._letters, self._size, self._length = kept, letters, count, length

    def run(self) -> Generator[Need, Any, Outcome]:
        commands = yield from self.fold([0])
        shown = self.burial.by_reason
        dead = Counter(shown)
        left = [self._as_before(letter) for letter in self.burial.letters]
        before = [letter for letter in self._letters if letter is not None and column_of(letter) is not None]
        if not self.folded and len(left) == len(before) and all(letter in before for letter in left):
            return Outcome([], [], 0, shown, self.handler_errors, ())
        bucket = self.cycle.bucket
        key = keys.dead_letters(bucket)
        for place, old in enumerate(self._letters):
            if old is not None and column_of(old) is not None:
                commands.append((b"LSET", key, b"%d" % (place - self._kept - self._size), TOMBSTONE))
                dead[old.reason] -= old.events
        commands.append((b"LREM", key, b"0", TOMBSTONE))
        # the oldest at the tail, and where others came meanwhile or one letter has become several, no more than there may be
        gone = sum(command[0] == b"LSET" for command in commands)
        over = max(0, self._length - gone + len(left) - MAX_DEAD_LETTERS)
        dropped, left = left[:over], left[over:]
        for letter in dropped:
            dead[letter.reason] -= letter.events
        if left:
            commands.append((b"RPUSH", key, *[encode_dead_letter(letter) for letter in reversed(left)]))
        commands += count_dead_letters(bucket, dead, sum(letter.events for letter in dropped))
        if self.folded:
            commands.append((b"HINCRBY", keys.counts(bucket), b"folded", b"%d" % self.folded))
        made = self.newcomers.made_tabs, self.newcomers.made_clients
        return Outcome(commands, [], self.folded, shown, self.handler_errors, (), made=made)

    def _as_before(self, letter: DeadLetter) -> DeadLetter:
        """A letter that could not be folded again, with the time at which it became one."""
        column = column_of(letter)
        alike = [before for before in self._letters if before is not None and before[3:6] == letter[3:6]]
        for before in alike:
            if column_of(before) == column:
                return letter._replace(time=before.time)
        return letter._replace(time=min((before.time for before in alike), default=letter.time))  # one has become several
