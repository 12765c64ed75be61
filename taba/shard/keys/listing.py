"""All names, page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

from taba.shard.keys.amounts import whole
from taba.shard.keys.places import MAX_PAGE_NAMES, Text, bytes_of, end_of, names_key
from taba.shard.keys.writing import Writing
from taba.shard.servers.connection import Command

PAGE_BUCKETS = 16  # that one `scan` looks into at a time


class Page(NamedTuple):
    """Some names, and the cursor to go on from; None when there are no more."""

    names: list[bytes]
    cursor: bytes | None


class Listing(Writing):
    """All names, page by page."""

    async def scan(self, cursor: bytes | None = None, prefix: Text = b"", count: int = 1000) -> Page:
        """Up to about `count` names that begin with `prefix`, in an order of no meaning, and the cursor for the next.

        A name that is there from the first page to the last is in exactly one of them, whatever moves, fails over or is
        written meanwhile; the cursor is good for ever, on any Router with the same store.
        """
        if not 1 <= whole("a scan's count", count) <= MAX_PAGE_NAMES:
            raise ValueError(f"takes a count from 1 to {MAX_PAGE_NAMES}, not {count}")
        begin = bytes_of("a prefix", prefix)
        start, after = _parse_cursor(cursor, self.buckets)
        limit = max(count // PAGE_BUCKETS, PAGE_BUCKETS)
        looked = range(start, min(start + PAGE_BUCKETS, self.buckets))
        top = end_of(begin)
        reads: dict[int, list[Command]] = {}
        for bucket in looked:
            low = b"(" + after if bucket == start and after >= begin and after else b"[" + begin
            reads[bucket] = [(b"ZRANGEBYLEX", names_key(bucket), low, top, b"LIMIT", b"0", b"%d" % limit)]
        found = {bucket: reply for bucket, (reply,) in (await self.read_many(reads)).items()}
        page: dict[int, list[bytes]] = {}
        following: bytes | None = b"%d:" % (looked.stop) if looked.stop < self.buckets else None
        for bucket in looked:
            page[bucket] = found[bucket]
            if len(found[bucket]) == limit:
                following = b"%d:" % bucket + found[bucket][-1]
                break
        return Page(await self._still_there(page), following)

    async def names(self, prefix: Text = b"") -> AsyncIterator[bytes]:
        """All names that begin with `prefix`, page by page."""
        cursor: bytes | None = None
        while True:
            page = await self.scan(cursor, prefix)
            for name in page.names:
                yield name
            cursor = page.cursor
            if cursor is None:
                return


def _parse_cursor(cursor: bytes | None, buckets: int) -> tuple[int, bytes]:
    if cursor is None:
        return 0, b""
    if not isinstance(cursor, bytes):
        raise TypeError(f"a cursor is what a page has, bytes, not {type(cursor).__name__}: {cursor!r:.60}")
    number, colon, after = cursor.partition(b":")
    if not colon or not number.isdigit() or len(number) > 6 or int(number) >= buckets:
        raise ValueError(f"{cursor[:60]!r} is no cursor of this store")
    return int(number), after
