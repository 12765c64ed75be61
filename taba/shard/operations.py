"""Strings, counters, hashes, sets, lists and sorted sets by key, on whichever shard: what a Router offers to those who want no more.

1. A key `name` (text or bytes) is in the bucket that the published hash of its bytes says, as `taba:{bucket}:key:name`.
2. Every write is a transaction on its bucket: it WATCHes what it reads, the owner key too, and is done once. What it
   answers is computed from what it read; whether it was done, when nobody knows, from a key that it writes along. The usual
   case of a single one is a script, which compares and writes the same in one round trip (see `keys.at_once`).
3. Reads of many keys go to all shards at once, one round trip each, and come back in the order asked for. Each key is
   as it was at one moment; several keys, not of one bucket, need not be of one moment.
4. Values are bytes, in and out; text is written as UTF-8. Nothing is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred

from taba.shard.keys.at_once import AtOnce
from taba.shard.keys.hashes import Hashes
from taba.shard.keys.listing import Listing
from taba.shard.keys.lists import Lists
from taba.shard.keys.places import Text, plain_name
from taba.shard.keys.sets import Sets
from taba.shard.keys.strings import Strings
from taba.shard.keys.writing import THERE, Decide, Write
from taba.shard.servers.connection import Command
from taba.shard.transaction import NotReplicated

NO_READS = "together() takes writes; a read would not see them"


class Operations(Strings, Hashes, Sets, Lists, Listing):
    """A Router's operations by key. All raise StoreUnavailable when the store does not answer in time (a write may then have
    been done), TransactionRefused for a key that holds something else, ValueError for what is no name or value."""

    async def together(self, make: Callable[[Operations], Sequence[Coroutine[Any, Any, Any]]]) -> list[Any]:
        """What the writes that `make` begins on its argument come to, in order: `together(lambda r: [r.set("a", "1"), r.incr("b")])`.

        One transaction a bucket, all buckets at once: what lies in one bucket is done as one, or not at all. Each name
        stands in one of them; reads have no place here. Raises for the first that fails; those of other buckets may be done.
        """
        lot = _Lot(self)
        failures: list[Exception] = []

        async def heard(one: Coroutine[Any, Any, Any]) -> Any:
            try:
                return await one
            except Exception as error:
                failures.append(error)

        begun = [ensureDeferred(heard(one)) for one in make(lot)]
        if failures:  # before anything was written
            for one in begun:
                one.cancel()
        else:
            try:
                await lot.write_all()
            except BaseException:  # cancelled: what was begun hears that too, and does not wait for ever
                for one in begun:
                    one.cancel()
                raise
        results = [await one for one in begun]
        if failures:
            raise failures[0]
        return results

    async def mset(self, values: Mapping[Text, Text] | Mapping[str, Text] | Mapping[bytes, Text]) -> None:
        """`set` of each; one transaction a bucket, all buckets at once."""
        await self.together(lambda within: [within.set(name, value) for name, value in values.items()])


class _Lot(Operations):
    """Takes the writes that are begun on it, until `write_all` hands them to `router`, bucket by bucket."""

    def __init__(self, router: Operations):
        self._router = router
        self._places = router._places
        self._begun: dict[int, list[tuple[Write, Deferred[Any]]]] = {}
        self._names: set[bytes] = set()

    @property
    def buckets(self) -> int:
        return self._router.buckets

    async def read_many(self, reads: Mapping[int, Sequence[Command]]) -> dict[int, list[Any]]:
        raise TypeError(NO_READS)

    async def read(self, bucket: int, reads: Sequence[Command]) -> list[Any]:
        raise TypeError(NO_READS)

    async def _write(self, name: Text, reads: Sequence[Command], decide: Decide, after: str = THERE, at_once: AtOnce | None = None) -> Any:
        bucket, content = self.bucket_of(name), plain_name(name)
        if content in self._names:
            raise ValueError(f"together() takes each name once, and {content!r:.60} stands there twice")
        self._names.add(content)
        done: Deferred[Any] = Deferred()
        self._begun.setdefault(bucket, []).append((Write(content, self.key(name, bucket), reads, decide, after), done))
        return await done

    async def write_all(self) -> None:
        """Carry out what was begun, and what that begins; each hears its own result."""
        while self._begun:
            begun, self._begun = self._begun, {}
            answers = await self._router._write_lots({bucket: [write for write, _ in own] for bucket, own in begun.items()})
            for bucket, own in begun.items():
                answer = answers[bucket]
                for place, (_, done) in enumerate(own):
                    if isinstance(answer, NotReplicated):
                        done.errback(NotReplicated(str(answer), answer.result[place]))
                    elif isinstance(answer, Exception):
                        done.errback(answer)
                    else:
                        done.callback(answer[place])
