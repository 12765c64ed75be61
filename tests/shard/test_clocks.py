"""The store's clock is set while leases, locks and writes stand: nothing stands longer or shorter, and nothing is done twice."""

from __future__ import annotations

import shutil
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from taba.shard import transaction
from taba.shard.buckets import lease_key, prefix_of
from taba.shard.lock import LockHeld
from taba.shard.router import Router
from taba.shard.servers.connection import Connection
from taba.shard.transaction import BucketBusy, Writes
from tests.clock import WallClock
from tests.patience import until
from tests.shard.pieces import connect
from tests.valkey import EphemeralValkey

HOUR = 3600.0


class StoreClockTests(TestCase):
    timeout = 300

    def setUp(self) -> None:
        if shutil.which("cc") is None:
            raise self.skipTest("a store with a clock of its own takes a C compiler")
        self.clock = WallClock()
        self.addCleanup(self.clock.remove)
        self.clock.check()
        self.valkey = EphemeralValkey(environ=self.clock.environ)
        self.addCleanup(self.valkey.remove)

    async def router(self) -> Router:
        return await connect(self, self.valkey.url, 4)

    def set_clock(self, offset: float) -> None:
        self.clock.offset = offset
        # it looks at its clock now and then
        until(lambda: abs(int(self.valkey.call("TIME")[0]) - self.clock.now) < 30, f"its clock is not moved by {offset} s")

    async def lease_is_replaced(self, offset: float) -> None:
        router = await self.router()
        own = Clock()
        router.standing._reactor = own
        self.valkey.call("SET", lease_key(0), "somebody:1")
        with self.assertRaises(BucketBusy):
            await router.transact(0, [], lambda _: Writes([]))
        self.set_clock(offset)
        with self.assertRaises(BucketBusy):
            await router.transact(0, [], lambda _: Writes([]))
        own.advance(transaction.LEASE_SECONDS - 0.1)
        with self.assertRaises(BucketBusy):
            await router.transact(0, [], lambda _: Writes([]))
        own.advance(0.2)
        self.assertEqual(await router.transact(0, [], lambda _: Writes([(b"SET", prefix_of(0) + b"key:a", b"1")], "done")), "done")

    async def test_a_lease_stands_no_longer_when_the_stores_clock_is_set_back(self) -> None:
        await self.lease_is_replaced(-HOUR)

    async def test_a_lease_stands_no_shorter_when_the_stores_clock_is_set_forward(self) -> None:
        await self.lease_is_replaced(HOUR)

    async def lock_is_replaced(self, offset: float) -> None:
        holder, other = await self.router(), await self.router()
        own = Clock()
        holder.standing._reactor = other.standing._reactor = own
        lock, next_lock = holder.lock("job", ttl=60), other.lock("job", ttl=60)
        lock._reactor = next_lock._reactor = own
        self.assertEqual(await lock.acquire(), 1)
        self.set_clock(offset)
        for seconds in (0, 59):
            own.advance(seconds)
            with self.assertRaises(LockHeld):
                await next_lock.acquire()
        await lock.extend()
        with self.assertRaises(LockHeld):
            await next_lock.acquire()
        own.advance(59)
        with self.assertRaises(LockHeld):
            await next_lock.acquire()
        self.assertTrue(lock.is_held)
        own.advance(2)
        self.assertEqual(await next_lock.acquire(), 2)
        self.assertFalse(lock.is_held)

    async def test_a_lock_lives_no_longer_when_the_stores_clock_is_set_back(self) -> None:
        await self.lock_is_replaced(-HOUR)

    async def test_a_lock_lives_no_shorter_when_the_stores_clock_is_set_forward(self) -> None:
        await self.lock_is_replaced(HOUR)

    async def test_a_write_whose_answer_is_lost_is_done_once_although_the_store_is_a_month_on(self) -> None:
        router = await self.router()
        original = Connection.commit
        cut: list[int] = []

        async def commit(connection: Any, commands: Any, *rest: Any) -> Any:
            done = await original(connection, commands, *rest)
            if not cut and any(command[0] == b"INCRBY" for command in commands):
                cut.append(1)
                self.set_clock(30 * 24 * HOUR)
                connection.abort("cut by the test")
                return await original(connection, commands, *rest)
            return done

        self.patch(Connection, "commit", commit)
        self.assertEqual(await router.incr("visits"), 1)
        self.assertEqual(cut, [1])
        self.assertEqual(await router.get("visits"), b"1")
        for key in self.valkey.call("KEYS", "*"):
            self.assertEqual(self.valkey.call("PTTL", key), -1, key)  # nothing that nobody asked for goes by the store's clock
