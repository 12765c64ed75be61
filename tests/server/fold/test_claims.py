"""Idempotency-Keys that a Server remembers: so many of a Client, so many Clients of a bucket; of more the oldest go, or nobody new."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taba.batch import KeyPart
from taba.server.fold import posts
from taba.server.fold.posts import MAX_KEYS, MAX_KEYS_HERE, Posts, TooManyKeys, claim


def part(number: int, bucket: int = 0) -> KeyPart:
    return KeyPart(bucket.to_bytes(8, "big") + number.to_bytes(8, "big"), b"d" * 16, 1)


class Hashes:
    """A Router whose buckets each have one hash; a transaction is one call."""

    def __init__(self, buckets: int):
        self.buckets = buckets
        self.kept: dict[int, dict[bytes, bytes]] = {}

    async def transact(self, bucket: int, reads: Sequence[Any], update: Callable[[Sequence[Any]], Any], seconds: float) -> Any:
        (_, _, field), _ = reads
        there = self.kept.setdefault(bucket, {})
        writes = update([there.get(field), len(there)])
        for _, _, name, content in writes.commands:
            there[name] = content
        return writes.result


class Claims(SynchronousTestCase):
    def setUp(self) -> None:
        self.drawn = 0

    def posts(self, buckets: int) -> Posts:
        def draw(size: int) -> bytes:
            self.drawn += 1
            return self.drawn.to_bytes(size, "big")

        return Posts(cast(Any, Hashes(buckets)), cast(Any, SimpleNamespace()), lambda: 5, draw, Clock())

    def claim(self, posts: Posts, number: int, bucket: int = 0, client: str = "web/1") -> bytes:
        stream: Deferred[bytes] = ensureDeferred(posts.claim(part(number, bucket), client))
        return self.successResultOf(stream)

    def test_a_client_has_so_many_in_a_bucket_and_of_one_more_the_oldest_is_forgotten(self) -> None:
        self.patch(posts, "MAX_KEYS", 6)
        here = self.posts(2)
        first = [self.claim(here, number) for number in range(3)]  # the bound: its part of those in all buckets
        self.assertEqual([self.claim(here, number) for number in range(3)], first)
        other = self.claim(here, 0, 1), self.claim(here, 0, 0, "web/2")
        self.claim(here, 3)  # one past it
        self.assertEqual([self.claim(here, number) for number in (1, 2)], first[1:])
        self.assertNotIn(self.claim(here, 0), first)  # it counts anew …
        self.assertNotEqual(self.claim(here, 1), first[1])  # … and has the place of the next
        self.assertEqual((self.claim(here, 0, 1), self.claim(here, 0, 0, "web/2")), other)  # other buckets' and Clients' are theirs

    def test_a_bucket_has_no_more_of_one_client_however_few_buckets_there_are(self) -> None:
        kept: bytes | None = None
        for number in range(MAX_KEYS_HERE):
            kept = (kept or b"") + claim(None, part(number), number.to_bytes(16, "big"), 5, MAX_KEYS_HERE)[0]
        for number in (0, MAX_KEYS_HERE - 1):
            self.assertEqual(claim(kept, part(number), b"n" * 16, 5, MAX_KEYS_HERE), (kept, number.to_bytes(16, "big")))
        after, stream = claim(kept, part(MAX_KEYS_HERE), b"n" * 16, 5, MAX_KEYS_HERE)
        self.assertEqual((stream, len(after)), (b"n" * 16, len(kept or b"")))
        self.assertEqual(claim(after, part(1), b"m" * 16, 5, MAX_KEYS_HERE)[1], (1).to_bytes(16, "big"))
        self.assertEqual(claim(after, part(0), b"m" * 16, 5, MAX_KEYS_HERE)[1], b"m" * 16)
        asked: list[int] = []

        def spied(kept: bytes | None, part: KeyPart, drawn: bytes, age: int, most: int) -> tuple[bytes, bytes]:
            asked.append(most)
            return claim(kept, part, drawn, age, most)

        self.patch(posts, "claim", spied)
        for buckets in (1, MAX_KEYS // MAX_KEYS_HERE, MAX_KEYS // MAX_KEYS_HERE + 1, MAX_KEYS, 2 * MAX_KEYS):
            self.claim(self.posts(buckets), 0)
        self.assertEqual(asked, [MAX_KEYS_HERE, MAX_KEYS_HERE, 3972, 1, 1])

    def test_of_so_many_clients_keys_are_kept_in_a_bucket_and_who_comes_then_hears_so(self) -> None:
        self.patch(posts, "MAX_POSTERS", 2)
        here = self.posts(1)
        streams = [self.claim(here, 0, client=f"web/{number}") for number in range(2)]  # the bound
        late: Deferred[bytes] = ensureDeferred(here.claim(part(0), "web/2"))  # one past it
        self.failureResultOf(late, TooManyKeys)
        self.claim(here, 1, client="web/1")  # who is there goes on
        self.assertEqual([self.claim(here, 0, client=f"web/{number}") for number in range(2)], streams)
