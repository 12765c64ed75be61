"""The Router on real stores: exactly once through conflicts, kills and moved buckets; bounded in time; never on somebody else's key."""

from __future__ import annotations

import re
from random import Random
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from taba.errors import StoreUnavailable
from taba.shard import reading, transaction
from taba.shard import router as router_module
from taba.shard.buckets import BucketMap, Owner, encode_map, encode_owner, lease_key, owner_key
from taba.shard.patience import Deadline, Pauses
from taba.shard.router import Router
from taba.shard.servers.connection import TransactionRefused
from taba.shard.servers.pool import Pool
from taba.shard.transaction import BucketBusy, More, Writes, check_keys, keys_read
from tests.shard.pieces import connect, note_commands
from tests.stores import borrow

BUCKETS = 4  # 0 and 1 on the first of two shards, 2 and 3 on the second


def key(bucket: int, name: str = "sum") -> bytes:
    return f"taba:{{{bucket}}}:{name}".encode()


class RouterTests(TestCase):
    timeout = 300
    shards = 1

    async def prepare(self, shards: int = 1, routers: int = 1) -> list[Router]:
        self.valkeys = [borrow(self) for _ in range(shards)]
        self.valkey = self.valkeys[0]
        found = []
        for _ in range(routers):
            found.append(await connect(self, ",".join(valkey.url for valkey in self.valkeys), BUCKETS))
        return found

    async def test_whoever_still_tries_when_the_router_is_closed_ends_at_once(self) -> None:
        (router,) = await self.prepare()
        self.valkey.kill()
        trying = [ensureDeferred(router.read(0, [(b"GET", key(0))])), ensureDeferred(self.count_up(router, 0))]
        await deferLater(reactor, 0.3)  # both wait for a connection, or before their next try
        await router.close()
        for one in trying:
            self.failureResultOf(one, StoreUnavailable)

    async def count_up(self, router: Router, bucket: int, mark: int | None = None) -> int:
        """Add 1 to a sum, as a fold does: with `mark`, only once, however often it runs."""

        def update(replies: list[Any]) -> Writes:
            total, marked = int(replies[0] or 0), int(replies[1] or 0)
            if mark is not None and marked >= mark:
                return Writes([], total)
            writes: list[tuple[bytes, ...]] = [(b"SET", key(bucket), b"%d" % (total + 1))]
            if mark is not None:
                writes.append((b"SET", key(bucket, "mark"), b"%d" % mark))
            return Writes(writes, total + 1)

        done: int = await router.transact(bucket, [(b"GET", key(bucket)), (b"GET", key(bucket, "mark"))], update)
        return done

    # --- transactions ---

    async def test_what_is_written_is_read(self) -> None:
        (router,) = await self.prepare()
        self.assertEqual(await self.count_up(router, 1), 1)
        self.assertEqual(await router.read(1, [(b"GET", key(1)), (b"MGET", key(1), key(1, "none"))]), [b"1", [b"1", None]])

    async def test_writers_of_one_bucket_lose_nothing(self) -> None:
        routers = await self.prepare(routers=3)

        async def many(router: Router) -> None:
            done = 0
            while done < 30:
                try:
                    await self.count_up(router, 2)
                    done += 1
                except BucketBusy:
                    await deferLater(reactor, 0.01)

        await gatherResults([ensureDeferred(many(router)) for router in routers for _ in range(2)])
        self.assertEqual(await routers[0].read(2, [(b"GET", key(2))]), [b"180"])
        self.assertGreater(sum(router.counts["conflicts"] for router in routers), 0)

    async def test_a_transaction_that_writes_nothing_still_reads_one_moment(self) -> None:
        (router,) = await self.prepare()
        calls = []

        def update(replies: list[Any]) -> Writes:
            calls.append(replies)
            if len(calls) == 1:
                self.valkey.ask("SET", key(0), "changed")
            return Writes([], replies[0])

        self.assertEqual(await router.transact(0, [(b"GET", key(0))], update), b"changed")
        self.assertEqual(calls, [[None], [b"changed"]])

    async def test_an_update_may_ask_for_more_and_all_of_it_is_watched(self) -> None:
        (router,) = await self.prepare()
        calls = []

        def second(replies: list[Any]) -> Writes:
            calls.append(replies)
            if len(calls) == 1:
                self.valkey.ask("HSET", key(0, "more"), "f", "changed")
            return Writes([(b"SET", key(0), replies[0] or b"none")], replies)

        result = await router.transact(0, [(b"GET", key(0))], lambda _: More([(b"HGET", key(0, "more"), b"f")], second))
        self.assertEqual((result, calls), ([b"changed"], [[None], [b"changed"]]))

    async def test_an_update_asks_for_more_as_often_as_the_bound_and_no_oftener(self) -> None:
        (router,) = await self.prepare()

        def asks(times: int) -> Any:
            return lambda _: More([], asks(times - 1)) if times else Writes([], "done")

        self.assertEqual(await router.transact(0, [], asks(transaction.MOST_READ_ROUNDS - 1)), "done")
        with self.assertRaises(ValueError):
            await router.transact(0, [], asks(transaction.MOST_READ_ROUNDS))

    async def test_an_update_may_be_awaited(self) -> None:
        (router,) = await self.prepare()

        async def update(replies: list[Any]) -> Writes:
            await deferLater(reactor, 0.01)
            return Writes([(b"SET", key(0), b"1")], "late")

        self.assertEqual(await router.transact(0, [], update), "late")
        self.assertEqual(await router.transact(0, [], lambda _: deferLater(reactor, 0.01, Writes, [], "later")), "later")

    async def test_what_an_update_waits_for_takes_nothing_of_the_stores_time(self) -> None:
        (router,) = await self.prepare()
        clock, tries = Clock(), []
        self.patch(router.atlas, "deadline", lambda seconds: Deadline(clock, Random(1), seconds, Pauses(clock)))

        async def update(replies: list[Any]) -> Writes:
            tries.append(replies[0])
            clock.advance(3600.0)
            if len(tries) == 1:
                self.valkey.ask("SET", key(0), "changed")  # so that there must be time for a second try as well
                deferLater(reactor, 0.1, clock.advance, 0.1)
            return Writes([(b"SET", key(0), b"1")], "late")

        self.assertEqual(await router.transact(0, [(b"GET", key(0))], update, 3.0), "late")
        self.assertEqual(tries, [None, b"changed"])

    async def test_an_update_that_raises_changes_nothing_and_leaves_no_watch(self) -> None:
        (router,) = await self.prepare()

        def update(_: list[Any]) -> Writes:
            raise ZeroDivisionError

        for _ in range(20):
            with self.assertRaises(ZeroDivisionError):
                await router.transact(0, [(b"GET", key(0))], update)
        self.assertEqual(await self.count_up(router, 0), 1)

    async def test_a_command_that_the_store_refuses_is_an_error_at_once(self) -> None:
        (router,) = await self.prepare()
        self.valkey.ask("SET", key(0), "text")
        where = re.escape(self.valkey.url)
        with self.assertRaisesRegex(TransactionRefused, f"^bucket 0: {where}: ERR wrong number of arguments"):
            await router.transact(0, [], lambda _: Writes([(b"HSET", key(0))]))
        with self.assertRaisesRegex(TransactionRefused, f"^bucket 0: {where}: LPUSH: WRONGTYPE"):  # refused only as it is carried out
            await router.transact(0, [], lambda _: Writes([(b"LPUSH", key(0), b"x")]))
        with self.assertRaisesRegex(TransactionRefused, f"^bucket 0: {where}: WRONGTYPE"):
            await router.transact(0, [(b"HGETALL", key(0))], lambda _: Writes([]))
        with self.assertRaisesRegex(TransactionRefused, f"^{where}: bucket 0: WRONGTYPE"):
            await router.read(0, [(b"HGETALL", key(0))])
        with self.assertRaisesRegex(TransactionRefused, f"^{where}: bucket 0: WRONGTYPE"):
            await router.read_many({1: [(b"GET", key(1))], 0: [(b"GET", key(0)), (b"HGETALL", key(0))]})

    async def test_binary_values_go_through_a_transaction_unchanged(self) -> None:
        (router,) = await self.prepare()
        value = bytes(range(256)) * 100
        await router.transact(0, [], lambda _: Writes([(b"HSET", key(0, "h"), b"f\0\xff", value), (b"SET", key(0), b"12")]))
        self.assertEqual(await router.read(0, [(b"HMGET", key(0, "h"), b"f\0\xff", b"no"), (b"GET", key(0))]), [[value, None], b"12"])

    # --- the lease ---

    async def test_after_three_conflicts_the_lease_is_taken_and_given_back_with_the_writes(self) -> None:
        router, other = await self.prepare(routers=2)
        tries = []
        busy = []

        async def update(replies: list[Any]) -> Writes:
            tries.append(self.valkey.ask("GET", lease_key(0)))
            try:
                await self.count_up(other, 0)  # a fast one gets in between, each time
            except BucketBusy:
                busy.append(1)
            return Writes([(b"SET", key(0, "slow"), b"done")], "done")

        self.assertEqual(await router.transact(0, [(b"GET", key(0))], update), "done")
        self.assertEqual(len(tries), 4)
        self.assertEqual([one == b"$-1\r\n" for one in tries], [True, True, True, False])
        self.assertEqual((busy, other.counts["busy"], router.counts["leases"]), ([1], 1, 1))
        self.assertEqual(self.valkey.ask("GET", lease_key(0)), b"$-1\r\n")
        self.assertEqual(await other.read(0, [(b"GET", key(0)), (b"GET", key(0, "slow"))]), [b"3", b"done"])

    async def test_taking_the_lease_refuses_who_is_in_the_middle(self) -> None:
        (other,) = await self.prepare()
        gate: Deferred[None] = Deferred()
        calls = []

        async def waits(replies: list[Any]) -> Writes:
            calls.append(replies)
            if len(calls) == 1:
                await gate
            return Writes([(b"SET", key(0, "other"), b"1")])

        middle = ensureDeferred(other.transact(0, [(b"GET", key(0, "other"))], waits))
        while not calls:
            await deferLater(reactor, 0.01)
        self.patch(transaction, "LEASE_SECONDS", 0.3)
        self.valkey.ask("SET", lease_key(0), "somebody", "NX")
        gate.callback(None)
        await self.assertFailure(middle, BucketBusy)
        await deferLater(reactor, 0.35)
        await other.transact(0, [], lambda _: Writes([(b"SET", key(0, "other"), b"2")]))  # a lease that stood still is taken away
        self.assertEqual(self.valkey.ask("GET", lease_key(0)), b"$-1\r\n")

    async def test_a_lease_that_its_holder_renews_is_not_taken_away(self) -> None:
        (router,) = await self.prepare()
        self.patch(transaction, "LEASE_SECONDS", 0.3)
        for number in range(6):
            self.valkey.ask("SET", lease_key(0), f"somebody:{number}")
            with self.assertRaises(BucketBusy):
                await self.count_up(router, 0)
            await deferLater(reactor, 0.1)
        self.assertEqual(await router.read(0, [(b"GET", key(0))]), [None])

    async def test_a_lease_that_somebody_else_holds_is_busy_at_once(self) -> None:
        (router,) = await self.prepare()
        self.valkey.ask("SET", lease_key(0), "somebody")
        with self.assertRaises(BucketBusy):
            await self.count_up(router, 0)
        self.assertIsInstance(BucketBusy(), StoreUnavailable)
        self.assertEqual(await router.read(0, [(b"GET", key(0))]), [None])
        self.assertEqual(self.valkey.ask("GET", lease_key(0)), b"$8\r\nsomebody\r\n")

    async def test_an_update_that_fails_under_the_lease_gives_it_back(self) -> None:
        (router,) = await self.prepare()
        calls = []

        def update(_: list[Any]) -> Writes:
            calls.append(1)
            if len(calls) == 4:
                raise ZeroDivisionError
            self.valkey.ask("SET", key(0), str(len(calls)))
            return Writes([])

        with self.assertRaises(ZeroDivisionError):
            await router.transact(0, [(b"GET", key(0))], update)
        self.assertEqual(router.counts["leases"], 1)
        self.assertEqual(self.valkey.ask("GET", lease_key(0)), b"$-1\r\n")

    async def test_conflicts_that_never_end_do_end(self) -> None:
        (router,) = await self.prepare()

        def update(_: list[Any]) -> Writes:
            self.valkey.ask("INCR", key(0))  # against the rules: it does not look at the lease
            return Writes([])

        with self.assertRaises(BucketBusy):
            await router.transact(0, [(b"GET", key(0))], update)
        self.assertEqual(router.counts["conflicts"], transaction.MOST_CONFLICTS)

    # --- a store that dies ---

    async def test_a_store_killed_before_exec_costs_nothing_but_time(self) -> None:
        (router,) = await self.prepare()
        calls: list[Any] = []

        def update(replies: list[Any]) -> Writes:
            calls.append(replies[0])
            if len(calls) == 1:
                self.valkey.kill()
                deferLater(reactor, 0.1, self.valkey.start)
            return Writes([(b"SET", key(0), b"%d" % (int(replies[0] or 0) + 1))], "done")

        self.assertEqual(await router.transact(0, [(b"GET", key(0))], update), "done")
        self.assertEqual(await router.read(0, [(b"GET", key(0))]), [b"1"])

    async def test_a_transaction_whose_outcome_nobody_knows_is_done_once(self) -> None:
        (router,) = await self.prepare()
        self.patch(transaction, "REPLY_SECONDS", 0.2)
        for mark in range(1, 4):
            calls: list[int] = []

            def update(replies: list[Any], mark: int = mark, calls: list[int] = calls) -> Writes:
                calls.append(1)
                total, marked = int(replies[0] or 0), int(replies[1] or 0)
                if len(calls) == 1:
                    self.valkey.pause()  # EXEC is sent, and no answer comes in time
                    deferLater(reactor, 0.4, self.valkey.resume)
                if marked >= mark:
                    return Writes([], "applied before")
                return Writes([(b"SET", key(0), b"%d" % (total + 1)), (b"SET", key(0, "mark"), b"%d" % mark)], "applied")

            await router.transact(0, [(b"GET", key(0)), (b"GET", key(0, "mark"))], update)
            self.assertGreater(len(calls), 1)
            self.assertEqual(await router.read(0, [(b"GET", key(0))]), [b"%d" % mark])
        self.assertGreaterEqual(router.counts["unknown"], 3)

    async def test_a_store_killed_again_and_again_counts_every_mark_once(self) -> None:
        (router,) = await self.prepare()
        running = ensureDeferred(self.count_marks(router, 150))
        for _ in range(4):
            await deferLater(reactor, 0.1)
            self.valkey.kill()
            self.valkey.start()
        await running
        self.assertEqual(await router.read(3, [(b"GET", key(3))]), [b"150"])

    async def count_marks(self, router: Router, marks: int) -> None:
        for mark in range(1, marks + 1):
            await self.count_up(router, 3, mark)

    async def test_a_store_that_stays_away_is_unavailable_within_the_deadline(self) -> None:
        (router,) = await self.prepare()
        self.valkey.kill()
        self.patch(router_module, "TRANSACT_SECONDS", 0.5)
        self.patch(reading, "READ_SECONDS", 0.5)
        with self.assertRaises(StoreUnavailable):
            await self.count_up(router, 0)
        with self.assertRaises(StoreUnavailable):
            await router.read(0, [(b"GET", key(0))])
        self.assertFalse(router.is_ready)
        self.assertIn("shard s1 is away", router.problems[0])
        self.valkey.start()
        self.patch(router_module, "TRANSACT_SECONDS", 60.0)
        self.assertEqual(await self.count_up(router, 0), 1)
        self.assertEqual((router.is_ready, router.problems), (True, []))

    # --- owner keys ---

    async def test_a_probe_that_spent_its_time_looks_who_has_the_bucket_by_now(self) -> None:
        (router,) = await self.prepare()
        looked = []

        async def refresh(seconds: float) -> None:
            looked.append(seconds)
            if len(looked) > 1:
                raise StoreUnavailable("no node tells")

        async def transact(*arguments: Any) -> Any:
            raise StoreUnavailable("all its seconds went in waiting for a connection")

        await router.probe(1, 2.0)
        self.patch(router.atlas.pool_of(router.atlas.map.shard_of(1)), "refresh", refresh)
        self.patch(router, "transact", transact)
        for times in (1, 2):
            with self.assertRaises(StoreUnavailable) as raised:
                await router.probe(1, 2.0)
            self.assertEqual((str(raised.exception), len(looked)), ("all its seconds went in waiting for a connection", times))
        self.assertEqual(router.counts["retries"], 1)

    async def test_a_bucket_without_owner_key_is_read_and_written_by_nobody(self) -> None:
        (router,) = await self.prepare()
        await self.count_up(router, 0)
        self.valkey.ask("DEL", owner_key(0))
        short = [self.patch(reading, "READ_SECONDS", 0.3), self.patch(router_module, "TRANSACT_SECONDS", 0.3)]
        with self.assertRaises(StoreUnavailable):
            await self.count_up(router, 0)
        with self.assertRaises(StoreUnavailable):
            await router.read(0, [(b"GET", key(0))])
        for patch in short:
            patch.restore()
        self.assertEqual(self.valkey.ask("GET", key(0)), b"$1\r\n1\r\n")
        await self.count_up(router, 1)  # its neighbours are not concerned

    async def test_a_sealed_bucket_is_waited_for(self) -> None:
        (router,) = await self.prepare()
        self.valkey.ask("SET", owner_key(0), "sealed:1:token")
        writing = ensureDeferred(self.count_up(router, 0))
        reading = ensureDeferred(router.read(0, [(b"GET", key(0, "none"))]))
        await deferLater(reactor, 0.1)
        self.assertFalse(writing.called or reading.called)
        self.valkey.ask("SET", owner_key(0), "open:2:s1")
        self.assertEqual(await writing, 1)
        self.assertEqual(await reading, [None])

    async def test_a_bucket_that_is_sealed_in_the_middle_of_a_transaction_is_not_written(self) -> None:
        (router,) = await self.prepare()
        calls = []

        def update(replies: list[Any]) -> Writes:
            calls.append(1)
            if len(calls) == 1:
                self.valkey.ask("SET", owner_key(0), "sealed:1:token")
                deferLater(reactor, 0.1, self.valkey.ask, "SET", owner_key(0), "open:2:s1")
                deferLater(reactor, 0.05, lambda: self.assertEqual(self.valkey.ask("GET", key(0)), b"$-1\r\n"))
            return Writes([(b"SET", key(0), b"1")], len(calls))

        self.assertEqual(await router.transact(0, [], update), 2)

    async def test_a_bucket_that_moved_is_followed(self) -> None:
        first, second = await self.prepare(shards=2, routers=2)
        await self.count_up(first, 0)
        old = first.map
        new = BucketMap(old.store, 2, old.shards, (1, *old.owners[1:]))
        source, target = self.valkeys
        target.ask("SET", key(0), "1")
        source.ask("SET", owner_key(0), encode_owner(Owner("moved", 2, "s2")))
        source.ask("DEL", key(0))
        target.ask("SET", owner_key(0), encode_owner(Owner("open", 2, "s2")))
        for valkey in self.valkeys:
            valkey.ask("SET", "taba:map", encode_map(new))
        self.assertEqual(await self.count_up(first, 0), 2)
        self.assertEqual(first.map.owners, new.owners)  # told by the shard that it left; nobody else was asked
        self.assertEqual(await second.read_many({0: [(b"GET", key(0))], 1: [(b"GET", key(1))]}), {0: [b"2"], 1: [None]})
        self.assertEqual(source.ask("GET", key(0)), b"$-1\r\n")

    # --- many buckets ---

    async def test_many_buckets_are_read_in_one_round_trip_per_shard(self) -> None:
        (router,) = await self.prepare(shards=2)
        for bucket in range(BUCKETS):
            await self.count_up(router, bucket)
        writes: list[Any] = []
        for pool in router.atlas.pools:
            assert isinstance(pool, Pool)
            async with pool.connection() as connection:
                note_commands(connection, writes)
        replies = await router.read_many({bucket: [(b"GET", key(bucket)), (b"STRLEN", key(bucket))] for bucket in (3, 0, 2, 1)})
        self.assertEqual(list(replies.items()), [(bucket, [b"1", 1]) for bucket in (3, 0, 2, 1)])
        self.assertEqual([len(commands) for commands in writes], [5, 5])
        for commands, buckets in zip(writes, ((3, 2), (0, 1)), strict=True):
            # the owner keys after the data: what was read before was read while the bucket was here
            self.assertEqual([command[1].rpartition(b":")[2] for command in commands[:-1]], [b"sum"] * 4)
            self.assertEqual(commands[-1], (b"MGET", *[key(bucket, "owner") for bucket in buckets]))
        self.assertEqual(await router.read_many({}), {})
        self.assertEqual(await router.read(0, []), [])

    async def test_what_is_read_of_one_bucket_is_believed_only_where_its_owner_key_says_so(self) -> None:
        (router,) = await self.prepare(shards=2)
        valkey = self.valkeys[0]
        await self.count_up(router, 0)
        self.assertEqual(await router.read(0, [(b"GET", key(0))]), [b"1"])
        retries = router.counts["retries"]
        for owner in (b"sealed:1:s2.token", b"open:1:s2", b"arriving:1:s1.token", b"nonsense", None):
            valkey.call("SET", key(0, "owner"), owner) if owner else valkey.call("DEL", key(0, "owner"))
            reading = ensureDeferred(router.read(0, [(b"GET", key(0))]))
            while router.counts["retries"] < retries + 2:  # it was looked at twice and more, and not believed
                await deferLater(reactor, 0.005)
            self.assertFalse(reading.called, owner)
            valkey.call("SET", key(0, "owner"), b"open:1:s1")
            self.assertEqual(await reading, [b"1"], owner)
            await router.read(0, [(b"GET", key(0))])
            retries = router.counts["retries"]
        with self.assertRaisesRegex(TransactionRefused, "bucket 0: WRONGTYPE"):
            await router.read(0, [(b"GET", key(0)), (b"HGETALL", key(0))])
        self.assertEqual(await router.read(0, [(b"GET", key(0))]), [b"1"])

    async def test_what_each_shard_holds(self) -> None:
        (router,) = await self.prepare(shards=2)
        await self.count_up(router, 3)
        one, two = await router.shards()
        self.assertEqual((one.name, one.url, one.buckets, two.buckets), ("s1", self.valkeys[0].url, 2, 2))
        self.assertEqual(two.keys, (one.keys or 0) + 1)
        self.assertGreater(one.bytes or 0, 100_000)
        self.assertIsInstance(one.ops, int)
        self.valkeys[0].kill()
        one, two = await router.shards()
        self.assertEqual((one.keys, one.bytes, one.ops, two.keys), (None, None, None, 6))

    async def test_a_bucket_that_the_store_does_not_have_is_the_callers_fault(self) -> None:
        (router,) = await self.prepare()
        with self.assertRaises(ValueError):
            await router.read(BUCKETS, [(b"GET", key(BUCKETS))])
        with self.assertRaises(ValueError):
            await router.transact(BUCKETS, [], lambda _: Writes([]))

    async def test_writes_outside_the_bucket_are_refused_before_anything_is_sent(self) -> None:
        (router,) = await self.prepare()
        with self.assertRaises(ValueError):
            await router.transact(0, [], lambda _: Writes([(b"SET", key(0), b"1"), (b"SET", key(1), b"1")]))
        self.assertEqual(await router.read(0, [(b"GET", key(0))]), [None])


class KeyTests(SynchronousTestCase):
    def test_reads_name_their_keys(self) -> None:
        self.assertEqual(keys_read(1, [(b"get", key(1, "a")), (b"MGET", key(1, "b"), key(1, "c"))]), [key(1, n) for n in "abc"])

    def test_what_is_no_read_of_the_bucket_is_a_value_error(self) -> None:
        for wrong in ((b"SET", key(1), b"x"), (b"GET",), (b"GET", key(2)), (b"MGET", key(1), key(11)), (b"KEYS", b"*"), (b"GET", b"x")):
            with self.assertRaises(ValueError):
                keys_read(1, [wrong])

    def test_what_writes_no_key_of_the_bucket_is_a_value_error(self) -> None:
        check_keys(1, [(b"SET", key(1), b"x"), (b"DEL", key(1))])
        for wrong in ((b"FLUSHALL",), (b"EXEC",), (b"SET", key(10), b"x"), (b"EVAL", b"return 1", b"0")):
            with self.assertRaises(ValueError):
                check_keys(1, [wrong])
