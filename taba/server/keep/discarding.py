"""The job that gives dead letters up: those that are there when it looks at their bucket, for ever, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from taba.plural import many
from taba.server import keys
from taba.server.ask.letters import place_of
from taba.server.fold.deadletters import TOMBSTONE, LetterId, decode_dead_letter, letter_id
from taba.server.keep.jobs import Job
from taba.server.router import Command, IsRouter
from taba.shard import Writes

LOT_LETTERS = 200  # given up in one transaction: some 800 KiB are read for it, 13 MiB at the most
_DEAD = b"dead:"


class Discard:
    """`POST /v1/discard`."""

    def __init__(self, router: IsRouter):
        self._router = router

    async def __call__(self, job: Job) -> None:
        """Run the job."""
        gone = 0

        async def step(bucket: int) -> None:
            nonlocal gone
            [left] = await self._router.read(bucket, [(b"LLEN", keys.dead_letters(bucket))])
            while left > 0:
                job.check()
                count = min(LOT_LETTERS, left)
                gone += await self._lot(bucket, count)
                left -= count
                job.message = said(gone, job.is_dry_run)

        async def count(bucket: int) -> None:
            nonlocal gone
            job.check()
            [pairs] = await self._router.read(bucket, [(b"HGETALL", keys.counts(bucket))])
            gone += sum(_dead(pairs).values())
            job.message = said(gone, job.is_dry_run)

        await job.over_buckets(self._router.buckets, count if job.is_dry_run else step)
        job.message = said(gone, job.is_dry_run)

    async def one(self, id: LetterId) -> int | None:
        """Give one letter up; how many Events that were, None where it is not there."""
        key, counts = keys.dead_letters(id.bucket), keys.counts(id.bucket)

        def update(replies: Sequence[Any]) -> Writes:
            content, length, pairs = replies
            if content is None or letter_id(id.bucket, content) != id:
                return Writes([], None)
            letter = decode_dead_letter(content)
            by_reason = Counter({letter.reason.encode(): letter.events}) if letter is not None else Counter()
            by_reason = _dead(pairs) if length == 1 else by_reason  # all of them, whatever can be read of it
            commands: list[Command] = [(b"LSET", key, place, TOMBSTONE), (b"LREM", key, b"0", TOMBSTONE)]
            commands += _counted(counts, by_reason)
            return Writes(commands, sum(by_reason.values()))

        while (older := await place_of(self._router, id)) is not None:
            place = b"%d" % -(older + 1)
            reads: list[Command] = [(b"LINDEX", key, place), (b"LLEN", key), (b"HGETALL", counts)]
            events: int | None = await self._router.transact(id.bucket, reads, update)
            if events is not None:
                return events
        return None

    async def _lot(self, bucket: int, count: int) -> int:
        """Give up the oldest `count` letters; how many Events that were."""
        key = keys.dead_letters(bucket)

        def update(replies: Sequence[Any]) -> Writes:
            letters, length, pairs = replies
            if not letters:
                return Writes([], 0)
            if len(letters) == length:
                by_reason = _dead(pairs)  # all of them, whatever can be read of each
            else:
                by_reason = Counter()
                for letter in map(decode_dead_letter, letters):
                    if letter is not None:
                        by_reason[letter.reason.encode()] += letter.events
            events = sum(by_reason.values())
            counts = keys.counts(bucket)
            # new ones come in at the head
            commands: list[Command] = [(b"LTRIM", key, b"0", b"%d" % -(len(letters) + 1)), *_counted(counts, by_reason)]
            return Writes(commands, events)

        reads: list[Command] = [(b"LRANGE", key, b"%d" % -count, b"-1"), (b"LLEN", key), (b"HGETALL", keys.counts(bucket))]
        events: int = await self._router.transact(bucket, reads, update)
        return events


def _counted(counts: bytes, by_reason: Mapping[bytes, int]) -> list[Command]:
    """The commands that count Events of dead letters as given up."""
    commands: list[Command] = [(b"HINCRBY", counts, _DEAD + reason, b"%d" % -number) for reason, number in by_reason.items()]
    events = sum(by_reason.values())
    return [*commands, (b"HINCRBY", counts, keys.DISCARDED, b"%d" % events)] if events else commands


def said(events: int, is_dry_run: bool) -> str:
    """What came of it."""
    letters = many(events, "dead letter")
    return f"{letters} would be given up" if is_dry_run else f"{letters} given up"


def _dead(pairs: Sequence[bytes]) -> Counter[bytes]:
    """By reason the Events of a bucket's counts that are dead letters."""
    counted = zip(pairs[::2], pairs[1::2], strict=True)
    return Counter({name[len(_DEAD) :]: many for name, count in counted if name.startswith(_DEAD) and (many := keys.count_of(count))})
