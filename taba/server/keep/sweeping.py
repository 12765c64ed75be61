"""What the job that forgets takes out of a bucket besides States: marks, and keys of posts, that nobody has touched for long, and what Tabs
mean that are not there, where that is too much."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from taba.server import keys
from taba.server.fold.bounds import MEANINGS_OF_ABSENT
from taba.server.fold.marks import MARK_MINUTES, POSTED_MINUTES, stale
from taba.server.fold.posts import Taken, is_over
from taba.server.keep.changing import MAX_ARGUMENTS
from taba.server.router import IsRouter
from taba.shard import Writes


async def sweep_marks(router: IsRouter, bucket: int, age: int | None) -> None:
    """Take out what is too old, at this age of the store in minutes; nothing where that is not known."""
    if age is None:
        return

    def update(replies: Sequence[Any]) -> Writes:
        found = [
            (keys.marks(bucket), stale(replies[0], age, MARK_MINUTES)),
            (keys.posted(bucket), stale(replies[1], age, POSTED_MINUTES)),
            (keys.posts(bucket), [field for field, kept in _pairs(replies[2]) if is_over(kept, age)]),
            (keys.posters(bucket), [field for field, kept in _pairs(replies[3]) if not Taken.read(kept, age).hours]),
        ]
        return Writes([(b"HDEL", key, *lot) for key, fields in found for lot in _lots(fields)])

    names = (keys.marks, keys.posted, keys.posts, keys.posters)
    await router.transact(bucket, [(b"HGETALL", name(bucket)) for name in names], update)


async def sweep_meanings(router: IsRouter, bucket: int) -> None:
    """Take out what Tabs mean that are not there, but for MEANINGS_OF_ABSENT of them."""

    def update(replies: Sequence[Any]) -> Writes:
        there = set(replies[1])
        absent = sorted({field.partition(b"\0")[0] for field in replies[0]} - there)[MEANINGS_OF_ABSENT:]
        fields = [field for tab in absent for field in keys.meaning_fields(tab)]
        return Writes([(b"HDEL", keys.meanings(bucket), *lot) for lot in _lots(fields)])

    await router.transact(bucket, [(b"HKEYS", keys.meanings(bucket)), (b"HKEYS", keys.tabs(bucket))], update)


def _pairs(reply: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Of what HGETALL answers."""
    return zip(reply[::2], reply[1::2], strict=True)


def _lots(fields: Sequence[bytes]) -> list[Sequence[bytes]]:
    return [fields[start : start + MAX_ARGUMENTS] for start in range(0, len(fields), MAX_ARGUMENTS)]
