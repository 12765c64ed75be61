"""Events that are posted: the records of their Idempotency-Keys, and the streams in which they are folded.

1. A key's record lies in the bucket of Client and key, and is written before any part of its post is folded: it has the digest of the
   request, so that another request under the same key is known wherever its parts lie, and the stream that was drawn for the post.
2. A record goes after a day of the store's age, or when its Client has too many: then the key counts anew, in another stream.
3. Posts without a key share one stream of this process, which has one writer: a mark in each bucket, not one a post.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import Any

from taba.batch import Batch, KeyPart
from taba.bounds import DAY
from taba.errors import StoreUnavailable, TabaError
from taba.events import LOT_BYTES, Posted
from taba.server import keys
from taba.server.fold.cycle import Waiting
from taba.server.router import IsRouter
from taba.shard import Writes

CLAIM_SECONDS = 1.5  # for the record of a key; where its shard is away, the poster hears so soon
KEY_MINUTES = int(DAY / 60)  # a key is remembered for so long
MAX_KEYS = 131_072  # of one Client, in all buckets: three every two seconds …
MAX_KEYS_HERE = 4096  # … and in one: 200 KiB, which each post of this Client reads and writes there
MAX_POSTERS = 10_000  # Clients that have keys in one bucket; of more, posts must wait until keys of others have gone

_RECORD = struct.Struct("<16s16s16sI")  # key, digest of its request, stream, age of the store


class OtherRequest(TabaError):
    """Another request under an Idempotency-Key that is known."""


class TooManyKeys(StoreUnavailable):
    """So many Clients have posted with keys within a day that no more are remembered; try later."""


def claim(kept: bytes | None, part: KeyPart, drawn: bytes, age: int, most: int) -> tuple[bytes, bytes]:
    """A Client's records with that of `part` among them, and the stream of its post: `drawn` where the key is new. Pure.

    Raises OtherRequest where the key is known for another request.
    """
    records = list(_RECORD.iter_unpack(kept[: len(kept) // _RECORD.size * _RECORD.size])) if kept else []
    records = [record for record in records if age - record[3] < KEY_MINUTES]
    for key, digest, stream, _ in records:
        if key == part.key:
            if digest != part.digest:
                raise OtherRequest("another request came under this Idempotency-Key before; take a new key for new events")
            return kept or b"", stream
    records = [*records[max(0, len(records) + 1 - most) :], (part.key, part.digest, drawn, age)]
    return b"".join(_RECORD.pack(*record) for record in records), drawn


def is_over(kept: bytes, age: int) -> bool:
    """Whether all records of a Client have gone."""
    return all(age - since >= KEY_MINUTES for *_, since in _RECORD.iter_unpack(kept[: len(kept) // _RECORD.size * _RECORD.size]))


class Posts:
    """The posts that come to this Server. `draw` gives so many random bytes."""

    def __init__(self, router: IsRouter, age: Callable[[], int | None], draw: Callable[[int], bytes]):
        self._router, self._age, self._draw = router, age, draw
        self._stream = draw(16)
        self._numbers: dict[int, int] = {}

    async def claim(self, part: KeyPart, client: str) -> bytes:
        """The stream of the post with this key. Raises OtherRequest, or StoreUnavailable where nobody can tell now."""
        buckets = self._router.buckets
        bucket = int.from_bytes(part.key[:8], "big") % buckets
        name, field = keys.posts(bucket), hashlib.blake2b(client.encode(), digest_size=8).digest()
        drawn, most = self._draw(16), min(MAX_KEYS_HERE, -(-MAX_KEYS // buckets))

        def update(replies: Sequence[Any]) -> Writes:
            age = self._age()
            if age is None:
                raise StoreUnavailable("the store's age is not known to this Server yet")
            kept, posters = replies
            if kept is None and posters >= MAX_POSTERS:
                raise TooManyKeys(f"{posters} Clients have posted with an Idempotency-Key within a day: no more are remembered")
            records, stream = claim(kept, part, drawn, age, most)
            return Writes([] if records == kept else [(b"HSET", name, field, records)], stream)

        stream: bytes = await self._router.transact(bucket, [(b"HGET", name, field), (b"HLEN", name)], update, CLAIM_SECONDS)
        return stream

    def waiting(self, posted: Posted, stream: bytes | None) -> list[Waiting]:
        """The batches of a post, in the stream of its key, or with None in this process's own."""
        waiting = []
        for bucket, lots in posted.lots.items():
            first = 1 if stream else self._numbers.get(bucket, 0) + 1
            for number, lot in enumerate(lots, start=first):
                waiting.append(Waiting(number - 1, Batch(stream or self._stream, bucket, number, [*lot]), LOT_BYTES))
                if stream is None:
                    self._numbers[bucket] = number
        return waiting
