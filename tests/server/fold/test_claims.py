"""Idempotency-Keys that a Server remembers: so many of a Client, so many Clients of a bucket; of more the oldest go, or nobody new."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taba.batch import APPLIED, KeyPart, Verdict
from taba.bounds import MiB
from taba.errors import StoreUnavailable
from taba.server import keys
from taba.server.fold import posts
from taba.server.fold.cycle import WaitingBatch
from taba.server.fold.ingest import MAX_LINE_BYTES, NO_ROOM, SLOW_SECONDS
from taba.server.fold.posts import KEY_MINUTES, MAX_KEYS, MAX_KEYS_HERE, MAX_POSTERS, PosterHasMany, Posts, TooManyKeys, claim


def part(number: int, bucket: int = 0) -> KeyPart:
    return KeyPart(bucket.to_bytes(8, "big") + number.to_bytes(8, "big"), b"d" * 16, 1)


class Hashes:
    """A Router whose buckets each have one hash; a transaction is one call."""

    def __init__(self, buckets: int):
        self.buckets = buckets
        self.kept: dict[int, dict[bytes, bytes]] = {}
        self.taken: dict[int, dict[bytes, bytes]] = {}

    async def transact(self, bucket: int, reads: Sequence[Any], update: Callable[[Sequence[Any]], Any], seconds: float) -> Any:
        (_, _, field), _, (_, _, poster) = reads
        there, taken = self.kept.setdefault(bucket, {}), self.taken.setdefault(bucket, {})
        writes = update([there.get(field), len(there), taken.get(poster)])
        for _, key, name, content in writes.commands:
            (taken if key == keys.posters(bucket) else there)[name] = content
        return writes.result


class Slow(Hashes):
    """One whose transactions end when the test says so."""

    def __init__(self, buckets: int):
        super().__init__(buckets)
        self.under_way: list[tuple[int, Deferred[None]]] = []

    async def transact(self, bucket: int, reads: Sequence[Any], update: Callable[[Sequence[Any]], Any], seconds: float) -> Any:
        done: Deferred[None] = Deferred()
        self.under_way.append((bucket, done))
        await done
        return await super().transact(bucket, reads, update, seconds)


class Claims(SynchronousTestCase):
    def setUp(self) -> None:
        self.drawn = 0
        self.age = 5

    def posts(self, buckets: int, hashes: Hashes | None = None) -> Posts:
        def draw(size: int) -> bytes:
            self.drawn += 1
            return self.drawn.to_bytes(size, "big")

        return Posts(cast(Any, hashes or Hashes(buckets)), cast(Any, SimpleNamespace()), lambda: self.age, draw, Clock())

    def claim(self, posts: Posts, number: int, bucket: int = 0, client: str = "web/1", poster: str = "") -> bytes:
        stream: Deferred[bytes] = ensureDeferred(posts.claim(part(number, bucket), client, poster))
        return self.successResultOf(stream)

    def refused(self, posts: Posts, client: str, poster: str) -> type[Exception]:
        stream: Deferred[bytes] = ensureDeferred(posts.claim(part(0), client, poster))
        return type(cast(Exception, self.failureResultOf(stream).value))

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

    def test_who_floods_under_anothers_client_pushes_out_its_own_and_each_key_of_the_other_counts_once_to_its_share(self) -> None:
        self.patch(posts, "MAX_KEYS", 40)
        here = self.posts(2)  # 20 of a Client in each
        good = [self.claim(here, number, poster="good") for number in range(8)]
        for number in range(100, 300):
            self.claim(here, number, poster="flood")
            if number % 50 == 0:
                self.assertEqual([self.claim(here, one, poster="good, with a new token") for one in range(8)], good)
        self.assertEqual([self.claim(here, one, poster="good") for one in range(8)], good)
        latest = [self.claim(here, number, poster="flood") for number in range(288, 300)]
        self.assertEqual([self.claim(here, number) for number in range(288, 300)], latest)
        more = [self.claim(here, number, poster="good") for number in range(8, 10)]  # as many as the other has: its own go from then on
        self.assertEqual([self.claim(here, one, poster="good") for one in (*range(8), 8, 9)], [*good, *more])
        self.claim(here, 10, poster="good")
        self.assertNotEqual(self.claim(here, 0, poster="good"), good[0])

    def test_where_fewer_have_room_than_before_the_new_key_stays(self) -> None:
        for most in (1, 2, 3):
            kept: bytes | None = None
            for number, poster in enumerate((b"a", b"b", b"a", b"c", b"b")):
                kept, _ = claim(kept, part(number), b"%d" % number * 16, 5, 9, poster)
            for poster in (b"a", b"b", b"c", b"d"):
                fewer, stream = claim(kept, part(9), b"n" * 16, 5, most, poster)
                self.assertEqual(len(fewer), most * posts._RECORD.size)
                self.assertEqual(claim(fewer, part(9), b"m" * 16, 5, most, poster), (fewer, stream), (most, poster))

    def test_what_a_server_of_before_wrote_is_nobodys_and_a_stores_age_is_told_for_ever(self) -> None:
        before = posts._RECORD.pack(part(0).key, part(0).digest, b"s" * 16, 7)
        self.assertEqual(claim(before, part(0), b"n" * 16, 5, 2, b"\xff" * 8), (before, b"s" * 16))  # by a Server that was ahead
        kept, _ = claim(before, part(1), b"n" * 16, 8, 2, b"\xff" * 8)
        self.assertEqual(claim(kept, part(0), b"m" * 16, 8, 2), (kept, b"s" * 16))
        for age in (posts._AGES - 1, posts._AGES, 5 * posts._AGES + 3):
            kept, _ = claim(None, part(0), b"s" * 16, age, 2, b"\xff" * 8)
            for later, is_known in ((KEY_MINUTES - 1, True), (KEY_MINUTES, False)):
                self.assertEqual(claim(kept, part(0), b"n" * 16, age + later, 2)[1] == b"s" * 16, is_known)
                self.assertEqual(posts.is_over(kept, age + later), not is_known)

    def test_keys_of_one_bucket_are_written_one_after_the_other_and_who_waits_too_long_comes_again(self) -> None:
        hashes, clock = Slow(2), Clock()
        here = Posts(cast(Any, hashes), cast(Any, SimpleNamespace()), lambda: 5, lambda size: bytes(size), clock)
        claims = [ensureDeferred(here.claim(part(number, bucket), "web/1")) for number, bucket in ((0, 0), (1, 0), (2, 1), (3, 0))]
        self.assertEqual([bucket for bucket, _ in hashes.under_way], [0, 1])
        hashes.under_way[0][1].callback(None)
        self.assertEqual([bucket for bucket, _ in hashes.under_way], [0, 1, 0])
        clock.advance(posts.CLAIM_SECONDS)
        self.failureResultOf(claims[3], StoreUnavailable)
        for _, done in hashes.under_way[1:]:
            done.callback(None)
        for claimed in claims[:3]:
            self.successResultOf(claimed)
        self.assertEqual(here._claiming, {})

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

        def spied(kept: bytes | None, part: KeyPart, drawn: bytes, age: int, most: int, poster: bytes) -> tuple[bytes, bytes]:
            asked.append(most)
            return claim(kept, part, drawn, age, most, poster)

        self.patch(posts, "claim", spied)
        for buckets in (1, MAX_KEYS // MAX_KEYS_HERE, MAX_KEYS // MAX_KEYS_HERE + 1, MAX_KEYS, 2 * MAX_KEYS):
            self.claim(self.posts(buckets), 0)
        self.assertEqual(asked, [MAX_KEYS_HERE, MAX_KEYS_HERE, 3972, 1, 1])

    def test_of_so_many_clients_keys_are_kept_in_a_bucket_and_who_comes_then_hears_so(self) -> None:
        self.patch(posts, "MAX_POSTERS", 2)
        here = self.posts(1)
        streams = [self.claim(here, 0, client=f"web/{number}", poster=f"{number}") for number in range(2)]  # the bound
        self.assertIs(self.refused(here, "web/2", "2"), TooManyKeys)  # one past it
        self.claim(here, 1, client="web/1")  # who is there goes on
        self.assertEqual([self.claim(here, 0, client=f"web/{number}") for number in range(2)], streams)

    def flood(self, clients: int, most: int) -> None:
        hashes = Hashes(1)
        here = self.posts(1, hashes)
        good = [self.claim(here, number, client="web/1", poster="token good") for number in range(3)]
        taken = 0
        for number in range(clients):
            if number == clients // 2:
                here = self.posts(1, hashes)  # as after a restart, or at another Server
            if taken < most // 2:
                self.claim(here, 0, client=f"flood/{number}", poster="token stranger")
                taken += 1
            else:
                self.assertIs(self.refused(here, f"flood/{number}", "token stranger"), PosterHasMany)
        self.claim(here, 1, client="flood/0", poster="token stranger")  # what it has goes on
        self.assertEqual([self.claim(here, number, client="web/1", poster="token good") for number in range(3)], good)
        for number in range(most // 8):  # and there is room for new ones of others
            self.claim(here, 0, client=f"job/{number}", poster="token other")
        self.assertEqual(len(hashes.kept[0]), 1 + taken + most // 8)

    def test_a_poster_that_invents_clients_takes_room_while_as_much_is_free_and_others_keep_theirs(self) -> None:
        self.patch(posts, "MAX_POSTERS", 41)
        self.flood(100, 41)

    @pytest.mark.real
    def test_a_poster_with_a_hundred_thousand_clients_leaves_others_theirs(self) -> None:
        self.flood(100_000, MAX_POSTERS)

    def test_what_a_poster_took_is_given_back_when_its_records_have_gone_and_no_sooner(self) -> None:
        self.patch(posts, "MAX_POSTERS", 8)
        hashes = Hashes(1)
        here = self.posts(1, hashes)
        for number in range(4):
            self.claim(here, 0, client=f"web/{number}", poster="a")
        self.age += KEY_MINUTES - 60
        self.claim(here, 1, client="web/0", poster="a")  # of which the room is that of a later hour now, and no second one
        self.assertIs(self.refused(here, "web/4", "a"), PosterHasMany)
        self.age += 59  # the day of the first is not over yet
        self.assertIs(self.refused(here, "web/4", "a"), PosterHasMany)
        self.age += 61  # the hour after it: one is left
        self.assertEqual(posts.Taken.read(next(iter(hashes.taken[0].values())), self.age).clients, 1)
        for field in [field for field, kept in hashes.kept[0].items() if posts.is_over(kept, self.age)]:
            del hashes.kept[0][field]  # as pruning does
        for number in range(4, 7):
            self.claim(here, 0, client=f"web/{number}", poster="a")
        self.assertIs(self.refused(here, "web/7", "a"), PosterHasMany)

    def test_who_keeps_anothers_client_alive_pays_for_it(self) -> None:
        self.patch(posts, "MAX_POSTERS", 4)
        here = self.posts(1)
        for number in range(2):
            self.claim(here, 0, client=f"web/{number}", poster="a")
        self.age += 60
        for number in range(2):
            self.claim(here, 1, client=f"web/{number}", poster="b")
        self.assertIs(self.refused(here, "web/2", "b"), PosterHasMany)
        self.claim(here, 0, client="web/2", poster="c")

    def test_records_of_before_that_do_not_say_whose_room_they_are_in_are_read_and_written_on(self) -> None:
        hashes = Hashes(1)
        here = self.posts(1, hashes)
        first = self.claim(here, 0, poster="a")
        ((field, kept),) = hashes.kept[0].items()
        hashes.kept[0][field], hashes.taken[0] = kept[: -posts.POSTER_BYTES], {}
        self.assertEqual(self.claim(here, 0, poster="a"), first)
        self.age += 60
        self.claim(here, 1, poster="a")
        self.assertEqual((self.claim(here, 0, poster="b"), len(hashes.taken[0])), (first, 1))


class Lines:
    """An Ingest of one line that takes so many bytes, and folds what it took at once; `others` have some of it for so many seconds."""

    def __init__(self, clock: Clock, others: int, seconds: float):
        self._clock, self._others, self._until = clock, others, seconds
        self.numbers: list[int] = []

    async def submit(self, batches: Sequence[WaitingBatch], seconds: float) -> list[Verdict]:
        room = MAX_LINE_BYTES - (self._others if self._clock.seconds() < self._until else 0)
        verdicts = []
        for item in batches:
            room -= item.size + item.batch.made_bytes
            if room >= 0:
                self.numbers.append(item.batch.number)
            verdicts.append(Verdict(APPLIED, item.batch.number) if room >= 0 else NO_ROOM)
        return verdicts


class Large(SynchronousTestCase):
    """A post that is more than a line takes at once."""

    def folds(self, others: int, seconds: float, stream: bytes | None) -> tuple[bool | None, list[int]]:
        clock, lots = Clock(), 40
        lines = Lines(clock, others, seconds)
        here = Posts(cast(Any, Hashes(1)), cast(Any, lines), lambda: 5, lambda size: bytes(size), clock)
        posted = cast(Any, SimpleNamespace(accepted=lots, lots={0: [[]] * lots}, made={0: [1 * MiB] * lots}))
        outcome: list[bool] = []
        ensureDeferred(here.fold(posted, stream, 0.0)).addCallback(outcome.append)
        clock.pump([SLOW_SECONDS] * int(2 * posts.POST_SECONDS / SLOW_SECONDS))
        return outcome[0], lines.numbers

    def test_it_goes_in_parts_and_waits_for_room_that_others_have_and_each_part_is_folded_once(self) -> None:
        for stream in (None, b"s" * 16):
            self.assertEqual(self.folds(0, 0.0, stream), (True, [*range(1, 41)]))
            is_folded, numbers = self.folds(MAX_LINE_BYTES - 2 * MiB, 2.0, stream)
            self.assertEqual((is_folded, len(numbers), numbers), (True, 40, sorted(set(numbers))))
            self.assertFalse(self.folds(MAX_LINE_BYTES, 60.0, stream)[0])
