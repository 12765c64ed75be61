"""Mutations of what Servers do with the store: transactions, marks, the time of folds, and questions."""

from __future__ import annotations

from typing import Any, cast

from taba import batch
from taba.agent import keys
from taba.batch import APPLIED, OPEN, Verdict
from taba.server import aging, steady
from taba.server.ask.query import Query
from taba.server.fold import deciding, plain, posts, together
from taba.server.fold.marks import Mark, Marks, decode_mark, encode_mark
from taba.shard import transaction
from taba.shard.servers.connection import ConnectionGone, Transactions
from tests.simulation.mutations.listing import AGENT, BACK, LATE, STORE, beside, focused

# --- the store


@focused(STORE, seed=1)
def the_mark_is_written_after_the_states(put: Any) -> None:
    real = Transactions.commit

    async def commit(self: Any, commands: Any, seconds: float = 4.0) -> Any:
        later = [command for command in commands if command[1].endswith((b":marks", b":posted"))]
        done = await real(self, [command for command in commands if command not in later], seconds)
        if done is not None and later:
            await real(self, later, seconds)
        return done

    put(Transactions, "commit", commit)


@focused(STORE, 60.0, seed=1)
def a_mark_expires(put: Any) -> None:
    real = Transactions.commit

    async def commit(self: Any, commands: Any, seconds: float = 4.0) -> Any:
        keys = {command[1] for command in commands if command[1].endswith(b":marks")}
        return await real(self, [*commands, *((b"PEXPIRE", key, b"20000") for key in keys)], seconds)

    put(Transactions, "commit", commit)


@focused(STORE, seed=25)
def nothing_is_watched(put: Any) -> None:
    async def watch(self: Any, keys: Any, reads: Any, seconds: float = 4.0) -> Any:
        replies = await self.execute(list(reads), seconds)
        for reply in replies:
            if isinstance(reply, Exception):
                self._refuse(reply)
        return replies

    put(Transactions, "watch", watch)


@focused(STORE, seed=1)
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


@focused(STORE, 200.0, seed=9)
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


@focused(BACK, seed=1)
def what_a_batch_follows_is_ignored(put: Any) -> None:
    real = Marks.fold

    def fold(self: Any, stream: bytes, number: int, follows: int, nonce: bytes) -> Any:
        mark = self._marks.get(stream)
        return real(self, stream, number, mark.number if mark is not None else follows, nonce)

    put(Marks, "fold", fold)


@focused(LATE, seed=6)
def a_number_at_the_mark_is_folded_again(put: Any) -> None:
    real = Marks.fold

    def fold(self: Any, stream: bytes, number: int, follows: int, nonce: bytes) -> Any:
        mark = self._marks.get(stream)
        if mark is not None and number == mark.number and mark.nonce == nonce:
            return Verdict(APPLIED, number), True
        return real(self, stream, number, follows, nonce)

    put(Marks, "fold", fold)


@focused(LATE, 150.0, 0.1, seed=84)
def a_batch_opens_its_stream_by_itself(put: Any) -> None:
    real = Marks.fold

    def fold(self: Any, stream: bytes, number: int, follows: int, nonce: bytes) -> Any:
        if self._marks.get(stream) is None and stream not in self._bad:
            self._marks[stream] = Mark(nonce, follows, self._age or 0)
        return real(self, stream, number, follows, nonce)

    put(Marks, "fold", fold)


@focused(LATE, seed=1)
def a_second_open_begins_anew(put: Any) -> None:
    real = Marks._open

    def open(self: Any, header: Any, mark: Any, drawn: bytes) -> Any:
        if mark is not None:
            self._put(header.stream, Mark(drawn, 0, mark.age))
            return Verdict(OPEN, drawn, 0)
        return real(self, header, mark, drawn)

    put(Marks, "_open", open)


# of an envelope that a Server has in hand all the while that an Agent dies, and the next one asks
@beside(
    "tests.server.fold.test_marks.OpenStreams."
    "test_one_that_is_to_begin_anew_is_told_the_mark_and_nothing_that_was_sent_before_it_moves_that"
)
def a_second_open_answers_the_nonce_that_stands(put: Any) -> None:
    real = Marks._open
    put(Marks, "_open", lambda self, header, mark, drawn: real(self, header._replace(anew=False), mark, drawn))


@focused(AGENT, seed=2)
def events_of_a_cycle_beside_the_first_are_left_out(put: Any) -> None:
    real = deciding.Fold._judge

    def judge(self: Any, of: Any) -> Any:
        verdicts, accepted = real(self, of)
        return verdicts, accepted[:1]

    put(deciding.Fold, "_judge", judge)


@focused("store late,store cut before,messages repeated,kill agent", 20.0, 1.5, types=("CounterGroup",) * 3, seed=43)
def what_waits_of_a_bucket_is_judged_by_its_first_batch(put: Any) -> None:
    real = plain.judge

    def judge(waiting: Any, plans: Any, replies: Any, age: int) -> Any:
        firsts = {bucket: its[:1] for bucket, its in waiting.items()}
        return [_moved_on(one, waiting[one.bucket]) for one in real(firsts, plans, replies, age)]

    put(together, "judge", judge)


def _moved_on(one: Any, waiting: Any) -> Any:
    """All that waits has the verdict of the first, and the mark is beyond the last."""
    stream, content = one.marks[:2]
    last = max(item.batch.number for item in waiting if item.batch.stream == stream)
    mark = encode_mark(cast(Mark, decode_mark(content))._replace(number=last))
    return one._replace(verdicts=one.verdicts * len(waiting), marks=[stream, mark])


@focused(STORE + ",kill server,messages repeated", seed=4)
def a_posts_key_is_not_remembered(put: Any) -> None:
    put(posts, "claim", lambda kept, part, drawn, *_: (b"", drawn))


@focused(STORE + ",kill server,messages repeated", seed=5)
def another_request_under_a_key_is_taken(put: Any) -> None:
    real = posts.claim

    def claim(kept: Any, part: Any, drawn: bytes, *more: Any) -> Any:
        records = list(posts._RECORD.iter_unpack(kept[: len(kept) // posts._RECORD.size * posts._RECORD.size])) if kept else []
        known = any(key == part.key and digest == part.digest for key, digest, _, _ in records)
        return real(kept if known else None, part, drawn, *more)

    put(posts, "claim", claim)


@focused(AGENT + ",memory full", seed=4)
def an_agent_forgets_the_keys_of_posts(put: Any) -> None:
    put(keys.Keys, "digest", lambda self, key: None)
    put(deciding.Fold, "_judge", _without_parts(deciding.Fold._judge))


def _without_parts(real: Any) -> Any:
    def judge(self: Any, of: Any) -> Any:
        self.cycle.waiting = [item._replace(part=None) for item in self.cycle.waiting]
        return real(self, of)

    return judge


@focused(STORE + ",kill server,messages repeated", seed=4)
def the_stream_of_a_key_is_ended_once_it_is_applied(put: Any) -> None:
    real = Marks.fold_posted

    def fold(self: Any, stream: bytes, *arguments: Any) -> Any:
        before = self._marks[stream] if stream not in self._bad else None
        found = real(self, stream, *arguments)
        if before is None and found[1]:
            self._touched.pop(stream)
        return found

    put(Marks, "fold_posted", fold)


@focused("clock stepped,store's clock stepped,process stopped", 60.0, 1.0, seed=1)
def the_time_of_folds_is_the_hosts_clock(put: Any) -> None:
    put(steady.SteadyClock, "__call__", lambda self: self._wall())


@focused(AGENT, seed=1)
def nested_values_are_cut_in_the_wrong_place(put: Any) -> None:
    real = batch.Packed.values

    def values(self: Any) -> Any:
        made = real(self)
        return made[1:] + made[:1] if len(made) < 2 else [made[1], *made[1:]]

    put(batch.Packed, "values", values)


# --- questions


@focused("kill server", seed=1)
def a_superaggregate_leaves_a_tab_out_now_and_then(put: Any) -> None:
    real, asked_before = Query.superaggregate, 0

    async def superaggregate(self: Any, asked: Any) -> Any:
        nonlocal asked_before
        asked_before += 1
        tabs = asked.chosen.tabs[: -(asked_before % 2) or None]
        return await real(self, asked._replace(chosen=asked.chosen._replace(tabs=tabs)))

    put(Query, "superaggregate", superaggregate)


@focused("kill server", seed=1)
def a_client_is_not_among_the_projections_now_and_then(put: Any) -> None:
    real, asked_before = Query.projections, 0

    async def projections(self: Any, asked: Any) -> Any:
        nonlocal asked_before
        asked_before += 1
        async for projected in real(self, asked):
            of = dict(projected.projections)
            if asked_before % 2 == 0 and len(of) > 1:
                of.popitem()
            yield projected._replace(projections=of)

    put(Query, "projections", projections)
