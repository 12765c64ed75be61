"""Operations by key where things go wrong: lost answers, a store that is away, a moved bucket; and where keys are."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from taba import names
from taba.errors import StoreUnavailable
from taba.shard import reading, transaction
from taba.shard import router as router_module
from taba.shard.buckets import lease_key, owner_key
from taba.shard.keys import writing
from taba.shard.keys.places import bucket_of, end_of
from taba.shard.memory.router import MemoryRouter
from taba.shard.memory.server import MemoryServer
from taba.shard.router import Router
from taba.shard.servers.connection import Connection
from tests.shard.pieces import connect
from tests.stores import borrow

BUCKETS = 4


class PlaceTests(SynchronousTestCase):
    def test_the_published_buckets(self) -> None:
        self.assertEqual(bucket_of("bids_won", 512), 483)
        self.assertEqual(bucket_of('winning_bid_price{exchange="adx"}', 512), 229)

    @given(st.text(min_size=1, max_size=50), st.integers(1, 65_536))
    def test_a_key_is_in_the_bucket_of_the_tab_of_that_name(self, name: str, buckets: int) -> None:
        self.assertEqual(bucket_of(name, buckets), names.bucket_of(name, buckets))
        self.assertEqual(bucket_of(name, buckets), bucket_of(name.encode(), buckets))

    @given(st.binary(max_size=5), st.binary(max_size=5))
    def test_the_range_of_a_prefix_has_what_begins_with_it_and_no_more(self, prefix: bytes, name: bytes) -> None:
        end = end_of(prefix)
        is_inside = name >= prefix and (end == b"+" or name < end[1:])
        self.assertEqual(is_inside, name.startswith(prefix))


class OperationsTests(TestCase):
    timeout = 300

    async def prepare(self, shards: int = 1) -> Router:
        self.valkeys = [borrow(self) for _ in range(shards)]
        self.valkey = self.valkeys[0]
        return await connect(self, ",".join(valkey.url for valkey in self.valkeys), BUCKETS)

    def stop_at_the_next_write(self) -> tuple[Any, list[bytes]]:
        """The store is stopped when it is sent, carries it out when it wakes, and nobody hears the answer."""
        stopped: list[bytes] = []
        original = Connection.execute

        def execute(connection: Any, commands: Any, *rest: Any) -> Any:
            first = commands[0][0]
            if not stopped and (first == b"EVALSHA" or (first == b"MULTI" and any(b":done:" in command[1] for command in commands[1:-1]))):
                stopped.append(first)
                self.valkey.pause()
                deferLater(reactor, 0.4, self.valkey.resume)
            return original(connection, commands, *rest)

        return self.patch(Connection, "execute", execute), stopped

    async def test_an_operation_whose_answer_is_lost_is_done_once(self) -> None:
        router = await self.prepare()
        self.patch(transaction, "REPLY_SECONDS", 0.2)
        self.patch(router_module, "REPLY_SECONDS", 0.2)
        self.patch(reading, "REPLY_SECONDS", 0.2)
        await router.rpush("list", "1", "2", "3")
        await router.sadd("set", "m")
        wanted: list[Any] = [1, 4, [b"1"], 1, 1, True, 2]
        actions = [
            lambda: router.incr("counter"),
            lambda: router.rpush("list", "4"),
            lambda: router.lpop("list"),
            lambda: router.sadd("set", "n"),
            lambda: router.srem("set", "m"),
            lambda: router.expire("set", 60),
            lambda: router.incr("counter"),
        ]
        ways = []
        for action, result in zip(actions, wanted, strict=True):
            await router.get("warm")
            patched, stopped = self.stop_at_the_next_write()
            try:
                self.assertEqual(await action(), result)
            finally:
                patched.restore()
            ways += stopped
        self.assertEqual(await router.get("counter"), b"2")
        self.assertEqual(await router.lrange("list"), [b"2", b"3", b"4"])
        self.assertEqual(await router.smembers("set"), frozenset([b"n"]))
        self.assertGreaterEqual(router.counts["unknown"], len(actions))
        self.assertEqual(set(ways), {b"EVALSHA", b"MULTI"})  # the first write to a bucket, and what answers values, are transactions

    async def test_a_lock_whose_answer_is_lost_is_ours(self) -> None:
        router = await self.prepare()
        self.patch(transaction, "REPLY_SECONDS", 0.2)
        lock = router.lock("job", ttl=600)
        for action in (lock.acquire, lock.extend, lock.release):
            await router.get("warm")
            doing = ensureDeferred(action())
            await deferLater(reactor, 0)
            self.valkey.pause()
            deferLater(reactor, 0.4, self.valkey.resume)
            await doing
        self.assertEqual(lock.fence, 1)
        self.assertEqual(await router.lock("job", ttl=1).acquire(), 2)

    async def test_a_store_that_is_away_is_unavailable_within_the_deadline_for_all_who_wait(self) -> None:
        router = await self.prepare()
        self.patch(router_module, "TRANSACT_SECONDS", 0.5)
        self.patch(reading, "READ_SECONDS", 0.5)
        self.patch(writing, "TURN_SECONDS", 0.7)
        self.valkey.kill()
        waiting: list[Deferred[Any]] = [ensureDeferred(router.incr("a")) for _ in range(20)]
        waiting.append(ensureDeferred(router.get("a")))
        waiting.append(ensureDeferred(router.lock("a", ttl=1, wait=5).acquire()))
        for one in waiting:
            await self.assertFailure(one, StoreUnavailable)
        self.assertEqual(router._turns, {})
        self.valkey.start()
        self.patch(router_module, "TRANSACT_SECONDS", 60.0)
        self.patch(writing, "TURN_SECONDS", 60.0)
        self.assertEqual(await router.incr("a"), 1)

    async def test_a_lease_that_another_holds_is_waited_for(self) -> None:
        router = await self.prepare()
        self.patch(transaction, "LEASE_SECONDS", 0.1)
        self.valkey.ask("SET", lease_key(router.bucket_of("a")), "somebody")
        self.assertEqual(await router.incr("a"), 1)

    async def test_many_names_are_read_in_one_round_trip_per_shard(self) -> None:
        router = await self.prepare(2)
        wanted = [f"n{number}" for number in range(40)]
        for name in wanted[::2]:
            await router.set(name, name)
        expected = [name.encode() if number % 2 == 0 else None for number, name in enumerate(wanted)]
        self.assertEqual(await router.mget(wanted), expected)  # some owner keys may be new to it
        writes: list[Any] = []
        sizes: list[int] = []
        original = Connection.execute

        def execute(connection: Any, commands: Any, *more: Any) -> Any:
            writes.append([command[0] for command in commands])
            sizes.extend(len(command) - 1 for command in commands[:-1])
            return original(connection, commands, *more)

        self.patch(Connection, "execute", execute)
        self.assertEqual(await router.mget(wanted), expected)
        self.assertEqual(writes, [[b"MGET"], [b"MGET"]])
        writes.clear()
        self.patch(reading, "MOST_KEYS", len(wanted) - 1)  # more would hold a server up
        self.assertEqual(await router.mget(wanted), expected)
        self.assertEqual(writes, [[b"MGET"] * 3] * 2)  # one a bucket, and the owner keys
        self.patch(writing, "MOST_KEYS", most := max(sizes) - 1)  # … also of those of one bucket
        sizes.clear()
        self.assertEqual(await router.mget(wanted), expected)
        self.assertEqual((max(sizes), sum(sizes)), (most, len(wanted)))

    async def test_many_names_of_which_some_are_away_are_not_waited_for_twice_and_no_connection_to_others_is_lost(self) -> None:
        router = await self.prepare(2)
        wanted = [f"n{number}" for number in range(40)]
        await router.mset(dict.fromkeys(wanted, "x"))
        self.assertEqual(await router.mget(wanted), [b"x"] * len(wanted))
        asked: list[str] = []
        original = Connection.execute

        def execute(connection: Any, commands: Any, *more: Any) -> Any:
            if any(command[0] == b"MGET" for command in commands):
                asked.append(connection.where)
            return original(connection, commands, *more)

        self.patch(Connection, "execute", execute)
        self.patch(router, "_away_seconds", 0.3)
        self.valkeys[1].pause()
        self.addCleanup(self.valkeys[1].resume)
        failure = await self.assertFailure(ensureDeferred(router.mget(wanted)), StoreUnavailable)
        self.assertIn("is away", str(failure))
        self.assertEqual(sorted(asked), sorted(valkey.url for valkey in self.valkeys))

    async def test_many_names_of_which_some_have_moved_are_read_where_they_are(self) -> None:
        router = await self.prepare(2)
        wanted = [f"n{number}" for number in range(40)]
        await router.mset({name: name for name in wanted})
        expected = [name.encode() for name in wanted]
        self.assertEqual(await router.mget(wanted), expected)
        bucket = router.map.owned_by("s1")[0]
        owner = self.valkey.call("GET", owner_key(bucket))
        self.valkey.call("SET", owner_key(bucket), "sealed:1:s2.x")
        reading = ensureDeferred(router.mget(wanted))
        await deferLater(reactor, 0.05)
        self.assertNoResult(reading)
        self.valkey.call("SET", owner_key(bucket), owner)
        self.assertEqual(await reading, expected)


class MemoryOperationsTests(SynchronousTestCase):
    def test_names_of_keys_that_expired_do_not_pile_up_where_nobody_scans(self) -> None:
        clock = Clock()
        server = MemoryServer(clock)
        router = MemoryRouter([server], 1, clock)
        self.successResultOf(ensureDeferred(router.connect()))
        for number in range(3000):
            self.successResultOf(ensureDeferred(router.set(f"session:{number}", "x", seconds=100)))
            clock.advance(1)  # a hundred live at a time
        self.assertLess(len(server._values[b"taba:{0}:names"]), 300)
        self.assertEqual(self.successResultOf(ensureDeferred(router.delete("session:2999"))), 1)
        self.assertNotIn(b"session:2999", server._values[b"taba:{0}:names"])
        names = self.successResultOf(ensureDeferred(router.scan(count=10_000))).names
        self.assertEqual(sorted(names), sorted(f"session:{number}".encode() for number in range(2901, 2999)))

    def memory_router(self) -> MemoryRouter:
        clock = Clock()
        router = MemoryRouter([MemoryServer(clock)], BUCKETS, clock)
        self.successResultOf(ensureDeferred(router.connect()))
        return router

    def test_who_is_cancelled_while_it_waits_for_its_turn_hears_that_and_keeps_no_place(self) -> None:
        router = self.memory_router()
        bucket = router.bucket_of("a")
        self.successResultOf(ensureDeferred(router._take_turn(bucket)))
        waiting = ensureDeferred(router.incr("a"))
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        late = ensureDeferred(router.incr("a"))
        router._reactor.advance(writing.TURN_SECONDS)
        self.assertIn("earlier writes are not done", str(self.failureResultOf(late, StoreUnavailable).value))
        router._end_turn(bucket)
        self.assertEqual(router._turns, {})
        self.assertEqual(self.successResultOf(ensureDeferred(router.incr("a"))), 1)

    def test_however_many_wait_for_a_turn_none_is_forgotten_where_they_end_at_once(self) -> None:
        for end in ("closed", "done"):
            server, clock = MemoryServer(Clock()), Clock()
            router = MemoryRouter([server], BUCKETS, clock)
            self.successResultOf(ensureDeferred(router.connect()))
            lease = lease_key(router.bucket_of("a"))
            server.run((b"SET", lease, b"another's"))
            waiting = [ensureDeferred(router.incr("a")) for _ in range(500)]
            if end == "closed":
                self.successResultOf(ensureDeferred(router.close()))
                for one in waiting:
                    self.failureResultOf(one, StoreUnavailable)
            else:
                server.run((b"DEL", lease))
                clock.pump([writing.BUSY_PAUSE_SECONDS] * 2)
                self.assertEqual([self.successResultOf(one) for one in waiting], list(range(1, 501)))
            self.assertEqual(router._turns, {})

    def test_what_was_begun_together_hears_when_that_is_cancelled(self) -> None:
        router = self.memory_router()
        names = ["a", next(f"b{n}" for n in range(100) if router.bucket_of(f"b{n}") != router.bucket_of("a"))]
        for count in (1, 2):
            for name in names:
                self.successResultOf(ensureDeferred(router._take_turn(router.bucket_of(name))))
            heard: list[str] = []

            async def one(within: Any, name: str, heard: list[str] = heard) -> None:
                try:
                    await within.incr(name)
                except CancelledError:
                    heard.append(name)
                    raise

            waiting = ensureDeferred(router.together(lambda within, one=one, count=count: [one(within, name) for name in names[:count]]))  # type: ignore[misc]
            waiting.cancel()
            self.failureResultOf(waiting, CancelledError)
            self.assertEqual(heard, names[:count])
            for name in names:
                router._end_turn(router.bucket_of(name))
        self.assertEqual(router._turns, {})

    def test_fences_are_kept_when_the_lock_is_gone(self) -> None:
        clock = Clock()
        server = MemoryServer(clock)
        fences = []
        for _ in range(3):  # a new process each time
            router = MemoryRouter([server], BUCKETS, clock)
            self.successResultOf(ensureDeferred(router.connect()))
            taking = ensureDeferred(router.lock("job", ttl=10, wait=12).acquire())
            clock.pump([0.1] * 110)  # it watches what the one before left behind for as long as that was to live
            fences.append(self.successResultOf(taking))
        self.assertEqual(fences, [1, 2, 3])


class ValueTests(SynchronousTestCase):
    def test_what_is_neither_text_nor_bytes_is_a_type_error_and_stores_nothing(self) -> None:
        server = MemoryServer(Clock())
        router = MemoryRouter([server], BUCKETS, Clock())
        self.successResultOf(ensureDeferred(router.connect()))
        for wrong in (7, 0, True, None, 1.5, [b"a"], ("a",)):
            for asked in (router.set("y", wrong), router.set(wrong, "y"), router.rpush("l", wrong), router.hset("h", {"f": wrong})):  # type: ignore[arg-type]
                self.failureResultOf(ensureDeferred(asked), TypeError)
        self.assertEqual(self.successResultOf(ensureDeferred(router.mget(["y", "l"]))), [None, None])
        self.successResultOf(ensureDeferred(router.set(bytearray(b"y"), memoryview(b"\x00\xff"))))  # type: ignore[arg-type]
        self.assertEqual(self.successResultOf(ensureDeferred(router.get("y"))), b"\x00\xff")

    def test_what_no_name_value_cursor_count_or_time_can_be_is_told_in_words(self) -> None:
        router = MemoryRouter([MemoryServer(Clock())], BUCKETS, Clock())
        self.successResultOf(ensureDeferred(router.connect()))
        odd: Any
        for odd in ("\ud800", "a\udfffb"):  # no UTF-8
            for asked in (router.set("y", odd), router.get(odd), router.mget([odd]), router.hset("h", {odd: "x"}), router.scan(prefix=odd)):
                self.assertIn("text that UTF-8 can write", str(self.failureResultOf(ensureDeferred(asked), ValueError).value))
        for odd in (True, None, 1.5, "9", b"9", [9]):
            self.failureResultOf(ensureDeferred(router.scan(count=odd)), TypeError)
        for odd in (True, 1.5, "0:", bytearray(b"0:"), [9]):
            self.failureResultOf(ensureDeferred(router.scan(odd)), TypeError)
        for odd in (b"", b"0", b"x:", b"4:", b"1234567:"):
            self.failureResultOf(ensureDeferred(router.scan(odd)), ValueError)
        for odd in (True, None, "1", b"1", [1]):
            self.assertRaises(TypeError, router.lock, "l", odd)
            self.assertRaises(TypeError, router.lock, "l", 1, odd)
        for odd in (float("nan"), 0, -1, 1e9, float("inf")):
            self.assertRaises(ValueError, router.lock, "l", odd)
