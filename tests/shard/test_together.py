"""Transactions of several buckets of one server as one: what is done, what leaves, and that each is done once whatever happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred, succeed
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from taba.shard import together
from taba.shard.buckets import lease_key, owner_key, prefix_of
from taba.shard.memory.router import MemoryConnection, MemoryRouter
from taba.shard.memory.server import MemoryServer
from taba.shard.router import Router
from taba.shard.servers.connection import Command, ConnectionGone, TransactionRefused
from taba.shard.servers.url import parse_store
from taba.shard.transaction import BucketBusy, More, Writes
from tests.stores import borrow

BUCKETS = together.MOST_BUCKETS + 1

Work = tuple[list[Command], Callable[[list[Any]], Any]]


def sum_of(bucket: int) -> bytes:
    return prefix_of(bucket) + b"sum"


def adding(bucket: int, by: int = 1) -> Work:
    """Reads and update that add to the sum of the bucket, once: a key says when it was done."""
    done = prefix_of(bucket) + b"done"

    def update(replies: list[Any]) -> Writes:
        total = int(replies[0] or 0)
        if replies[1] is not None:
            return Writes([], total)
        return Writes([(b"SET", sum_of(bucket), b"%d" % (total + by)), (b"SET", done, b"1")], total + by)

    return [(b"GET", sum_of(bucket)), (b"GET", done)], update


def writing(writes: Writes) -> Work:
    return [], lambda _: writes


class TogetherTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.server = MemoryServer(self.clock)
        self.router = MemoryRouter([self.server], BUCKETS, self.clock)
        self.successResultOf(ensureDeferred(self.router.connect()))
        self.committed: list[list[Command]] = []
        real = MemoryConnection.commit

        async def commit(connection: Any, commands: Any, seconds: float = 4.0) -> Any:
            self.committed.append(list(commands))
            return await real(connection, commands, seconds)

        self.patch(MemoryConnection, "commit", commit)

    def begin(self, work: dict[int, Work]) -> Deferred[dict[int, Any]]:
        return ensureDeferred(self.router.transact_each(work))

    def sums(self, buckets: range) -> list[Any]:
        return [self.server.run((b"GET", sum_of(bucket))) for bucket in buckets]

    def test_buckets_of_one_server_are_written_in_one_transaction_up_to_the_bound(self) -> None:
        most = range(together.MOST_BUCKETS)
        results = self.successResultOf(self.begin({bucket: adding(bucket, bucket + 1) for bucket in reversed(most)}))
        self.assertEqual(results, {bucket: bucket + 1 for bucket in most})
        self.assertEqual(list(results), list(reversed(most)))
        self.assertEqual(len(self.committed), 1)
        self.committed.clear()
        self.successResultOf(self.begin({bucket: adding(bucket) for bucket in range(BUCKETS)}))
        self.assertEqual(len(self.committed), 2)
        self.assertEqual(self.sums(range(BUCKETS)), [b"%d" % (bucket + 1) for bucket in most] + [b"1"])
        self.assertEqual(self.router.uses[0], 2)
        self.assertEqual(self.successResultOf(self.begin({})), {})

    def test_no_more_bytes_are_written_together_than_the_bound_and_always_those_of_one(self) -> None:
        for over, transactions in ((0, 1), (1, 2)):
            self.committed.clear()
            fixed = sum(len(argument) for bucket in (0, 1) for argument in (b"SET", sum_of(bucket)))
            half = (together.MOST_BYTES - fixed) // 2
            sizes = (half, together.MOST_BYTES - fixed - half + over)
            work: dict[int, Work] = {}
            for bucket in (0, 1):
                writes = Writes([(b"SET", sum_of(bucket), b"x" * sizes[bucket])], bucket)
                work[bucket] = writing(writes)
            results = self.successResultOf(self.begin(work))
            self.assertEqual((results, len(self.committed)), ({0: 0, 1: 1}, transactions))
        large = Writes([(b"SET", sum_of(0), b"x" * (together.MOST_BYTES + 1))], "large")
        self.assertEqual(self.successResultOf(self.begin({0: ([], lambda _: large), 1: adding(1)}))[0], "large")

    def test_one_that_is_sealed_leaves_and_is_done_when_it_is_open(self) -> None:
        self.server.run((b"SET", owner_key(1), b"sealed:1:s2.token"))
        working = self.begin({bucket: adding(bucket) for bucket in range(3)})
        self.assertEqual(self.sums(range(3)), [b"1", None, b"1"])
        self.assertNoResult(working)
        self.server.run((b"SET", owner_key(1), b"open:1:s1"))
        self.clock.pump([0.05] * 20)
        self.assertEqual(self.successResultOf(working), {0: 1, 1: 1, 2: 1})

    def test_one_whose_lease_another_holds_is_busy_and_one_that_raises_or_is_refused_says_so(self) -> None:
        self.server.run((b"SET", lease_key(1), b"another:1"))
        self.server.run((b"HSET", sum_of(2), b"a", b"1"))

        def raises(_: list[Any]) -> Writes:
            raise KeyError("a fault of the update")

        foreign = Writes([(b"SET", sum_of(0), b"x")])
        work = {**{bucket: adding(bucket) for bucket in range(7)}, 3: ([], raises), 4: writing(foreign)}
        results = self.successResultOf(self.begin(work))
        self.assertEqual({bucket: results[bucket] for bucket in (0, 5, 6)}, {0: 1, 5: 1, 6: 1})
        kinds = {bucket: type(results[bucket]) for bucket in (1, 2, 3, 4)}
        self.assertEqual(kinds, {1: BucketBusy, 2: TransactionRefused, 3: KeyError, 4: ValueError})
        self.assertIn("bucket 2: redis://memory-1:6379: WRONGTYPE", str(results[2]))
        self.assertEqual(self.sums(range(2)), [b"1", None])

    def test_what_cannot_be_sent_harms_no_other(self) -> None:
        wrongs: list[tuple[Any, type[Exception]]] = [((b"SET", "sum", b"1"), TypeError), ((b"SET", 5, b"1"), AttributeError)]
        for number, (wrong, kind) in enumerate(wrongs, 1):
            work = {0: adding(0), 1: writing(Writes([wrong])), 2: writing(Writes([(b"INCR", sum_of(2))]))}
            results = self.successResultOf(self.begin(work))
            self.assertEqual((results[0], type(results[1]), results[2]), (1, kind, None))
            self.assertEqual(self.server.run((b"GET", sum_of(2))), b"%d" % number)

    def test_updates_may_wait_and_ask_for_more_all_at_the_same_time(self) -> None:
        waiting: list[Deferred[Any]] = [Deferred(), Deferred()]

        def later(bucket: int) -> Work:
            more = More([(b"GET", sum_of(bucket))], lambda replies: Writes([(b"SET", sum_of(bucket), b"new")], replies))
            return [], lambda _: waiting[bucket].addCallback(lambda _: more)

        self.server.run((b"SET", sum_of(1), b"old"))
        working = self.begin({0: later(0), 1: later(1), 2: adding(2)})
        waiting[1].callback(None)
        self.assertEqual(self.sums(range(3)), [None, b"old", None])  # the slowest decides when
        waiting[0].callback(None)
        self.assertEqual(self.successResultOf(working), {0: [None], 1: [b"old"], 2: 1})
        self.assertEqual(len(self.committed), 1)

    def test_names_in_buckets_that_others_hold_are_written_when_those_are_free_all_at_once(self) -> None:
        names = {f"name.{number}": str(number) for number in range(20)}
        held = {self.router.bucket_of(name) for name in names}
        self.assertGreater(len(held), 10)
        for bucket in held:
            self.server.run((b"SET", lease_key(bucket), b"another:1"))  # who died
        working = ensureDeferred(self.router.mset(names))
        self.clock.pump([0.01] * 520)  # abandoned after 5 s, not 5 s each
        self.successResultOf(working)
        self.assertEqual(self.successResultOf(ensureDeferred(self.router.mget(list(names)))), [value.encode() for value in names.values()])

    def test_a_bucket_that_moves_has_its_writes_noted(self) -> None:
        self.server.run((b"SET", owner_key(1), b"open:1:s1:moving:s2.token"))
        self.successResultOf(self.begin({0: adding(0), 1: adding(1)}))
        self.assertEqual([self.server.run((b"SCARD", prefix_of(bucket) + b"dirty")) for bucket in (0, 1)], [0, 2])

    def test_what_is_written_for_replicas_to_be_waited_for_is_noted_too(self) -> None:
        self.router._who.wait_replicas = 1
        self.addCleanup(setattr, self.router._who, "wait_replicas", 0)
        self.patch(together, "wait_for_replicas", lambda *_: succeed(None))
        for bucket in (0, 1):
            self.server.run((b"SET", owner_key(bucket), b"open:1:s1:moving:s2.token"))
        self.successResultOf(self.begin({0: writing(Writes([])), 1: writing(Writes([]))}))
        noted: Any = self.server.run((b"SMEMBERS", prefix_of(0) + b"dirty"))
        self.assertEqual((len(self.committed), self.committed[0][0][1]), (1, prefix_of(0) + b"waited"))
        self.assertEqual(len(noted), 1)
        self.assertIn(b"waited", min(noted))

    @given(
        st.sets(st.integers(0, 4), max_size=3),
        st.sampled_from(["none", "conflict", "lost before", "lost after"]),
        st.sets(st.integers(0, 4), min_size=1),
    )
    def test_each_is_done_once_whatever_befalls_them(self, moving: set[int], fault: str, wanted: set[int]) -> None:
        self.setUp()
        for bucket in moving:
            self.server.run((b"SET", owner_key(bucket), b"open:1:s1:moving:s2.token"))
        real = MemoryConnection.commit
        left = [fault]

        async def commit(connection: Any, commands: Any, seconds: float = 4.0) -> Any:
            fault, left[0] = left[0], "none"
            if fault == "conflict":
                self.server.run((b"SET", sum_of(min(wanted)), b"41"))
            if fault == "lost before":
                raise ConnectionGone("before")
            done = await real(connection, commands, seconds)
            if fault == "lost after":
                raise ConnectionGone("after")
            return done

        with patch.object(MemoryConnection, "commit", commit):
            working = self.begin({bucket: adding(bucket) for bucket in wanted})
            self.clock.pump([0.1] * 20)
        first = 42 if fault == "conflict" else 1
        expected = {bucket: first if bucket == min(wanted) else 1 for bucket in wanted}
        self.assertEqual(self.successResultOf(working), expected)
        self.assertEqual(self.sums(range(5)), [b"%d" % expected[bucket] if bucket in wanted else None for bucket in range(5)])

    def test_many_names_are_set_in_a_transaction_or_two(self) -> None:
        names = {f"name.{number}": str(number) for number in range(1000)}
        self.successResultOf(ensureDeferred(self.router.mset(names)))
        self.assertEqual(len([one for one in self.committed if len(one) > 100]), 1)
        self.assertEqual(self.successResultOf(ensureDeferred(self.router.mget(list(names)))), [value.encode() for value in names.values()])


class OnServersTests(TestCase):
    timeout = 120

    async def test_each_server_has_its_own_transaction_and_one_that_is_away_holds_up_nobody(self) -> None:
        valkeys = [borrow(self) for _ in range(2)]
        router = Router(parse_store(",".join(valkey.url for valkey in valkeys)), 4, reactor)
        self.addCleanup(lambda: ensureDeferred(router.close()))
        await router.connect()
        self.assertEqual(await router.transact_each({bucket: adding(bucket) for bucket in range(4)}), dict.fromkeys(range(4), 1))
        none: Any = None
        wrong = await router.transact_each({0: adding(0), 2: writing(Writes([(b"SET", sum_of(2), none)])), 3: adding(3)})
        self.assertEqual((wrong[0], type(wrong[2]), wrong[3]), (1, TypeError, 1))
        self.assertEqual([valkey.call("GET", sum_of(bucket)) for valkey, bucket in zip(valkeys, (1, 3), strict=True)], [b"1", b"1"])
        valkeys[1].pause()
        try:
            working = ensureDeferred(
                router.transact_each({bucket: writing(Writes([(b"SET", sum_of(bucket), b"2")])) for bucket in range(4)})
            )
            while valkeys[0].call("GET", sum_of(1)) != b"2":
                await deferLater(reactor, 0.01)
            self.assertFalse(working.called)
        finally:
            valkeys[1].resume()
        self.assertEqual(await working, dict.fromkeys(range(4)))
        self.assertEqual(valkeys[1].call("GET", sum_of(3)), b"2")
