"""The job that brings every State to its Handler's version, while Events flow: a fold that comes in between does the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from taba.plural import many
from taba.server import keys
from taba.server.keep.changing import Change, Kept, change, framed, walk
from taba.server.keep.jobs import Job
from taba.server.router import IsRouter
from taba.server.work.bench import Bench


class Upgrade:
    """`POST /v1/upgrade`."""

    def __init__(self, router: IsRouter, bench: Bench, now: Callable[[], float]):
        self._router, self._bench, self._now = router, bench, now

    async def __call__(self, job: Job) -> None:
        """Run the job."""
        upgraded = 0
        failed: dict[str, tuple[int, str]] = {}

        async def step(bucket: int) -> None:
            nonlocal upgraded
            async for lot in walk(self._router, self._bench, bucket):
                job.check()
                changes = await self._changes(lot, failed)
                upgraded += sum(await change(self._router, bucket, changes))
                job.message = f"{many(upgraded, 'State')} upgraded" + failures(failed)

        await job.over_buckets(self._router.buckets, step)
        job.message = f"{many(upgraded, 'State')} upgraded" + failures(failed)

    async def _changes(self, lot: Sequence[Kept], failed: dict[str, tuple[int, str]]) -> list[Change]:
        older: dict[str, list[tuple[Kept, list[keys.Framed]]]] = {}
        for kept in lot:
            try:
                parts = kept.parts
            except ValueError as error:
                count_failure(failed, kept.type, str(error))
                continue
            version = self._bench.get(kept.type).version  # type: ignore[union-attr]
            if parts[0].version > version:
                count_failure(failed, kept.type, f"version {parts[0].version} is newer than the Handler's, {version}")
            elif parts[0].version < version:
                older.setdefault(kept.type, []).append((kept, parts))
        changes = []
        for type, states in older.items():
            version = self._bench.get(type).version  # type: ignore[union-attr]
            answers: list[Any] = await self._bench.upgrade(type, [parts for _, parts in states], self._now())
            for (kept, parts), answer in zip(states, answers, strict=True):
                if isinstance(answer, str):
                    count_failure(failed, type, answer)
                    continue
                field = keys.state_field(kept.tab, kept.client)
                # when Events last came stays as it was: an upgrade keeps nothing from being forgotten
                written, emptied = framed(field, answer, version, parts[0].age)
                changes.append(Change(kept.tab, kept.contents, written, emptied))
        return changes


def count_failure(failed: dict[str, tuple[int, str]], type: str, why: str) -> None:
    """One more State of `type` that was left as it is; the first reason is shown."""
    count, first = failed.get(type, (0, why))
    failed[type] = (count + 1, first)


def failures(failed: dict[str, tuple[int, str]]) -> str:
    """What could not be done, for a job's message."""
    return "".join(f"; {count} of Type {type} left as they are: {why}" for type, (count, why) in sorted(failed.items()))
