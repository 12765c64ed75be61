"""The newest dead letters of all buckets, lot by lot: which those are is found first, without any being kept."""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

from taba.server import keys
from taba.server.fold.deadletters import LetterId, decode_dead_letter, describe, letter_id, shown_of, unreadable
from taba.server.router import IsReader

LOT_LETTERS = 50  # read at a time: some 200 KiB, 3 MiB at the most


class _Position(NamedTuple):
    refused: float  # when it became one
    bucket: int
    from_end: int  # its place in the bucket's list: what comes meanwhile comes in at the other end
    events: int


async def newest_letters(router: IsReader, most: int, breathe: Callable[[], Awaitable[None]]) -> AsyncIterator[dict[str, Any]]:
    """The Events of the newest dead letters, newest first, `most` at the most. What comes or goes meanwhile may be missing."""
    places = await _places(router, most, breathe)
    shown = 0
    for start in range(0, len(places), LOT_LETTERS):
        lot = places[start : start + LOT_LETTERS]
        asked: dict[int, list[Any]] = {}
        for place in lot:
            span = b"%d" % place.from_end
            asked.setdefault(place.bucket, []).append((b"LRANGE", keys.dead_letters(place.bucket), span, span))
        replies = {bucket: iter(found) for bucket, found in (await router.read_many(asked)).items()}
        for place in lot:
            for content in next(replies[place.bucket]):
                letter, id = decode_dead_letter(content), str(letter_id(place.bucket, content))
                for event in describe(place.bucket, letter) if letter is not None else [unreadable(place.bucket, content)]:
                    if shown == most:
                        return
                    shown += 1
                    yield {"id": id, **event}
        await breathe()


async def place_of(router: IsReader, id: LetterId) -> int | None:
    """How many letters of its bucket are older than one; None where it is not there."""
    key = keys.dead_letters(id.bucket)
    [length] = (await router.read_many({id.bucket: [(b"LLEN", key)]}))[id.bucket]
    for start in range(0, length, LOT_LETTERS):
        span = (b"%d" % -(start + LOT_LETTERS), b"%d" % -(start + 1))
        [contents] = (await router.read_many({id.bucket: [(b"LRANGE", key, *span)]}))[id.bucket]
        for older, content in enumerate(reversed(contents), start=start):
            if letter_id(id.bucket, content) == id:
                return older
    return None


async def _places(router: IsReader, most: int, breathe: Callable[[], Awaitable[None]]) -> list[_Position]:
    lengths = await router.read_many({b: [(b"LLEN", keys.dead_letters(b))] for b in range(router.buckets)})
    newest: list[_Position] = []
    for bucket, [length] in lengths.items():
        start = events = 0
        while start < min(length, most) and events < most:
            span = (b"%d" % (start - length), b"%d" % (min(start + LOT_LETTERS, length) - 1 - length))
            [contents] = (await router.read_many({bucket: [(b"LRANGE", keys.dead_letters(bucket), *span)]}))[bucket]
            for place, content in enumerate(contents, start=start - length):
                letter = decode_dead_letter(content)
                refused, count = (letter.time, shown_of(letter)) if letter is not None else (0.0, 1)
                newest.append(_Position(refused, bucket, place, count))
                events += count
            start += LOT_LETTERS
            await breathe()
        if len(newest) > 2 * most:
            newest = heapq.nlargest(most, newest)
    return heapq.nlargest(most, newest, key=lambda place: place.refused)
