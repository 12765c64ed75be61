"""The job that forgets: what its Handler calls prunable, and what nobody has touched for `--forget`.

1. Where a Handler has `merge`, idle States of a Tab become one with that of the Client `_retired`, in the transaction in which
   they go: the Tab's totals never fall. A Client is gone when the last of its States is.
2. What is idle is told by the store's age alone. Handlers, who know Unix time, are asked only where own clock, store and what was recorded
   there agree on it, and only for States that nobody has touched for a day of that age.
3. An Event that comes before that transaction keeps its State; one that comes after it begins a new one.
4. A Tab that is left with `_retired` alone is forgotten much later, so that Tabs that nobody records do not pile up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from taba.bounds import DAY
from taba.names import RETIRED_CLIENT
from taba.plural import many
from taba.server import keys
from taba.server.aging import StoreAge, passed
from taba.server.keep.changing import Change, Kept, change, framed, look, sweep, walk
from taba.server.keep.jobs import Job
from taba.server.keep.sweeping import sweep_marks, sweep_meanings
from taba.server.keep.upgrading import count_failure, failures
from taba.server.router import IsRouter
from taba.server.work.bench import Bench
from taba.server.work.knowing import further_parts

RETIRED_TIMES = 12  # as long as others `_retired` is kept in a Tab that has no other Client: about a year
ASK_MINUTES = int(DAY / 60)  # for which a State must be untouched before its Handler is asked whether it is prunable
PERIOD_SECONDS = 6 * 3600.0  # between two jobs of this kind that nobody asked for
MAX_TRIES = 3  # to merge States beside others that do; the next job finds what is left


class _Old(NamedTuple):
    kept: Kept
    parts: list[keys.Framed]


class Prune:
    """`POST /v1/prune`. With `dry_run=1` it only notes what would go: {"tab", "client", "action"}."""

    def __init__(self, router: IsRouter, bench: Bench, age: StoreAge, now: Callable[[], float], forget_seconds: float):
        self._router, self._bench, self._age, self._now = router, bench, age, now
        self._forget_minutes = forget_seconds / 60

    async def __call__(self, job: Job) -> None:
        """Run the job. While the store's age is not known, nothing is idle."""
        run = _Run(job, self._router, self._bench, self._age, self._now, self._forget_minutes)
        await job.over_buckets(self._router.buckets, run.bucket)
        run.tell()


class _Run:
    def __init__(self, job: Job, router: IsRouter, bench: Bench, age: StoreAge, now: Callable[[], float], forget_minutes: float):
        self._job, self._router, self._bench = job, router, bench
        self._age, self._now, self._forget_minutes = age, now, forget_minutes
        self._deleted = self._merged = 0
        self._failed: dict[str, tuple[int, str]] = {}

    def tell(self) -> None:
        """How far the job is, in words."""
        would = "would be " if self._job.is_dry_run else ""
        self._job.message = f"{many(self._deleted, 'State')} {would}deleted, {self._merged} {would}merged into {RETIRED_CLIENT}" + failures(
            self._failed
        )
        if self._age.disagreement is not None:
            self._job.message += f"; no Handler was asked what has nothing more to say, since {self._age.disagreement}"

    async def bucket(self, bucket: int) -> None:
        """One step: all of a bucket."""
        async for lot in walk(self._router, self._bench, bucket):
            self._job.check()
            await self._lot(bucket, lot)
            self.tell()
        if not self._job.is_dry_run:
            await sweep(self._router, bucket)
            await sweep_marks(self._router, bucket, self._age())
            await sweep_meanings(self._router, bucket)

    async def _lot(self, bucket: int, lot: Sequence[Kept]) -> None:
        gone: list[_Old] = []
        last: list[_Old] = []
        to_merge: dict[str, list[_Old]] = {}
        by_type: dict[str, list[_Old]] = {}
        for kept in lot:
            try:
                parts = kept.parts
            except ValueError as error:
                count_failure(self._failed, kept.type, str(error))
                continue
            if parts[0].version <= self._bench.get(kept.type).version:  # type: ignore[union-attr]
                by_type.setdefault(kept.type, []).append(_Old(kept, parts))
        for type, states in by_type.items():
            answers = await self._prunable(type, states)
            for old, answer in zip(states, answers, strict=True):
                if isinstance(answer, str):
                    count_failure(self._failed, type, answer)
                elif answer:
                    gone.append(old)
                elif old.kept.client == RETIRED_CLIENT:
                    if await self._is_forgotten(bucket, old):
                        last.append(old)
                elif self._idle(old) >= self._forget_minutes:
                    if self._bench.can_merge(type):
                        to_merge.setdefault(old.kept.tab, []).append(old)
                    else:
                        gone.append(old)
        if self._job.is_dry_run:
            self._note([*gone, *last], to_merge)
            return
        await change(self._router, bucket, self._begun([old for states in by_type.values() for old in states]))
        deletions = [
            Change(kept.tab, kept.contents, emptied=list(kept.contents), gone=[kept.client], only_if_last=states is last)
            for states in (gone, last)
            for kept, _ in states
        ]
        self._deleted += sum(await change(self._router, bucket, deletions))
        for states in to_merge.values():
            await self._merge(bucket, states)

    def _begun(self, states: Sequence[_Old]) -> list[Change]:
        """What was folded while the store's age was not known is touched now: else it would never be idle."""
        age = self._age()
        if age is None:
            return []
        begun = [old.kept for old in states if old.parts[0].age == keys.UNKNOWN_AGE]
        return [Change(kept.tab, kept.contents, _of_age(kept.contents, age)) for kept in begun]

    def _idle(self, old: _Old) -> int:
        """For how many minutes of the store's age no Event has touched a State."""
        return passed(old.parts[0].age, self._age())

    async def _prunable(self, type: str, states: Sequence[_Old]) -> list[Any]:
        """Whether each State has nothing more to say; False for what the Handler is not asked."""
        idle = [self._idle(old) >= ASK_MINUTES for old in states]
        asked = [old.parts for old, is_idle in zip(states, idle, strict=True) if is_idle]
        if not asked or self._age.disagreement is not None:
            return [False] * len(states)
        answers = iter(await self._bench.prunable(type, asked, self._now()))
        return [next(answers) if is_idle else False for is_idle in idle]

    async def _is_forgotten(self, bucket: int, old: _Old) -> bool:
        """Whether `_retired` is all that is left of its Tab, and has been for long."""
        if self._idle(old) < RETIRED_TIMES * self._forget_minutes:
            return False
        [clients] = await self._router.read(bucket, [(b"SCARD", keys.clients_of(bucket, old.kept.tab.encode()))])
        return bool(clients == 1)

    async def _merge(self, bucket: int, states: list[_Old]) -> None:
        """Merge idle States of one Tab into its `_retired`: all that are still as they were, in one transaction."""
        first = states[0].kept
        for _ in range(MAX_TRIES):
            wanted = [(first.tab, first.type, client) for client in (RETIRED_CLIENT, *(kept.client for kept, _ in states))]
            there = {kept.client: kept for kept in await look(self._router, self._bench, bucket, wanted)}
            retired = there.pop(RETIRED_CLIENT, None)
            # what an Event has touched since the first look is not idle any more
            states = [old for old in states if old.kept == there.get(old.kept.client)]
            if not states:
                return
            one = await self._merging(states, retired)
            if one is None:
                return
            if all(await change(self._router, bucket, [one])):
                self._merged += len(states)
                return

    async def _merging(self, states: list[_Old], retired: Kept | None) -> Change | None:
        """The change that merges `states`; None where their Handler cannot."""
        first = states[0].kept
        parts = [old.parts for old in states]
        try:
            if retired is not None:
                parts.append(retired.parts)
            answer = await self._bench.merge(first.type, parts, self._now())
        except ValueError as error:
            answer = str(error)
        if isinstance(answer, str):
            for old in states:
                count_failure(self._failed, old.kept.type, answer)
            return None
        field = keys.state_field(first.tab, RETIRED_CLIENT)
        seen: dict[bytes, bytes | None] = {field: None}
        seen.update(dict.fromkeys(keys.part_fields(field, further_parts(self._bench, first.type))))
        if retired is not None:
            seen = dict(retired.contents)
        emptied: list[bytes] = []
        for kept, _ in states:
            seen.update(kept.contents)
            emptied += kept.contents
        version = self._bench.get(first.type).version  # type: ignore[union-attr]
        age = self._age()
        written, empty_parts = framed(field, answer, version, keys.UNKNOWN_AGE if age is None else age)
        come = [] if retired is not None else [RETIRED_CLIENT]
        return Change(first.tab, seen, written, [*emptied, *empty_parts], come, [kept.client for kept, _ in states])

    def _note(self, gone: Sequence[_Old], to_merge: dict[str, list[_Old]]) -> None:
        idle = [old for states in to_merge.values() for old in states]
        for action, states in (("delete", gone), ("merge", idle)):
            for kept, _ in states:
                self._job.note({"tab": kept.tab, "client": kept.client, "action": action})
        self._deleted += len(gone)
        self._merged += len(idle)


def _of_age(contents: Mapping[bytes, bytes | None], age: int) -> dict[bytes, bytes]:
    """The parts of a State, touched at this age of the store."""
    return {
        field: keys.frame(keys.unframe(content).version, age) + content[keys.FRAME_BYTES :]
        for field, content in contents.items()
        if content is not None
    }
