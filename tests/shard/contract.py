"""What every Router keeps, whatever its store is made of: the tests that all topologies and the store in memory share."""

from __future__ import annotations

from typing import Any

from taba.shard.buckets import lease_key, owner_key
from taba.shard.joint import MAX_JOINED
from taba.shard.servers.connection import TransactionRefused
from taba.shard.transaction import BucketBusy, More, MoreOfMany, Writes


def key(bucket: int, name: str = "a") -> bytes:
    return f"taba:{{{bucket}}}:{name}".encode()


class Contract:
    """What any Router keeps. `routers(n)` gives n of them on one new store of four buckets and the shards in `spread`."""

    def spread(self) -> dict[str, int]:
        """How many buckets each shard has."""
        return {"s1": 2, "s2": 2}

    async def routers(self, count: int) -> list[Any]:
        raise NotImplementedError

    async def test_what_one_writes_another_reads(self: Any) -> None:
        one, two = await self.routers(2)
        value = bytes(range(256))
        writes = [(b"SET", key(3), value), (b"HSET", key(3, "h"), b"f", b"v"), (b"SADD", key(3, "s"), b"m")]
        writes.append((b"RPUSH", key(3, "l"), b"1", b"2"))
        self.assertEqual(await one.transact(3, [(b"GET", key(3))], lambda replies: Writes(writes, replies)), [None])
        reads = [(b"GET", key(3)), (b"HGETALL", key(3, "h")), (b"SMEMBERS", key(3, "s")), (b"LRANGE", key(3, "l"), b"0", b"-1")]
        found = [value, [b"f", b"v"], [b"m"], [b"1", b"2"]]
        self.assertEqual(await two.read(3, reads), found)
        self.assertEqual(await two.read_many({0: [(b"GET", key(0))], 3: reads}), {0: [None], 3: found})

    async def test_a_conflict_is_tried_again_with_fresh_replies(self: Any) -> None:
        one, two = await self.routers(2)
        seen = []

        async def update(replies: list[Any]) -> Writes:
            seen.append(replies[0])
            if len(seen) == 1:
                await two.transact(0, [], lambda _: Writes([(b"SET", key(0), b"1")]))
            return Writes([(b"SET", key(0), b"2")], "done")

        self.assertEqual(await one.transact(0, [(b"GET", key(0))], update), "done")
        self.assertEqual(seen, [None, b"1"])
        self.assertEqual(one.counts["conflicts"], 1)

    async def test_the_lease_lets_a_slow_one_through(self: Any) -> None:
        one, two = await self.routers(2)
        outcomes = []

        async def update(_: list[Any]) -> Writes:
            try:
                await two.transact(0, [], lambda _: Writes([(b"INCR", key(0))]))
                outcomes.append("in between")
            except BucketBusy:
                outcomes.append("busy")
            return Writes([(b"SET", key(0, "slow"), b"1")], "done")

        self.assertEqual(await one.transact(0, [(b"GET", key(0))], update), "done")
        self.assertEqual(outcomes, ["in between"] * 3 + ["busy"])
        await two.transact(0, [], lambda _: Writes([(b"DEL", lease_key(0), key(0))]))

    async def test_more_reads_are_watched_too(self: Any) -> None:
        one, two = await self.routers(2)
        seen = []

        async def second(replies: list[Any]) -> Writes:
            seen.append(replies)
            if len(seen) == 1:
                await two.transact(1, [], lambda _: Writes([(b"SET", key(1, "b"), b"1")]))
            return Writes([], replies)

        self.assertEqual(await one.transact(1, [(b"GET", key(1))], lambda _: More([(b"GET", key(1, "b"))], second)), [b"1"])

    async def test_buckets_of_one_server_are_written_at_once_and_who_cannot_be_in_it_is_left(self: Any) -> None:
        one, two = await self.routers(2)
        there = [bucket for bucket in range(4) if one.map.shard_of(bucket) == one.map.shard_of(0)]
        reads = {bucket: [(b"GET", key(bucket))] for bucket in range(4)}

        def write(replies: dict[int, list[Any]]) -> dict[int, Writes]:
            return {bucket: Writes([(b"SET", key(bucket), b"%d" % bucket)], its) for bucket, its in replies.items()}

        def update(replies: dict[int, list[Any]]) -> MoreOfMany:
            self.assertEqual(replies, {bucket: [None] for bucket in there})
            return MoreOfMany({bucket: [(b"GET", key(bucket, "b")), (b"EXISTS", key(bucket))] for bucket in replies}, write)

        done = await one.transact_many(reads, update)
        if not one.may_join(0) or len(there) < 2:
            self.assertEqual(done, {})
            return
        first, second = there[:2]
        self.assertEqual(done, {bucket: [None, 0] for bucket in there})
        self.assertEqual(await two.read_many({bucket: reads[bucket] for bucket in there}), {bucket: [b"%d" % bucket] for bucket in there})

        async def conflicting(replies: dict[int, list[Any]]) -> dict[int, Writes]:
            await two.transact(first, [], lambda _: Writes([(b"SET", key(first), b"x")]))
            return {bucket: Writes([(b"SET", key(bucket), b"never")]) for bucket in replies}

        self.assertEqual(await one.transact_many({bucket: reads[bucket] for bucket in there}, conflicting), {})
        self.assertEqual(await one.read(second, reads[second]), [b"%d" % second])
        # who has a lease, or is not open here, leaves, and the others go on
        await one.transact(first, [], lambda _: Writes([(b"SET", lease_key(first), b"another")]))
        self.assertEqual(list(await one.transact_many({bucket: reads[bucket] for bucket in there}, write)), there[1:])
        pool = one.atlas.pool_of(one.map.shard_of(first))
        [owner, _] = await pool.execute([(b"GET", owner_key(first)), (b"DEL", lease_key(first))])
        await pool.execute([(b"DEL", owner_key(first))])
        self.assertEqual(list(await one.transact_many({bucket: reads[bucket] for bucket in there}, write)), there[1:])
        await pool.execute([(b"SET", owner_key(first), owner)])
        self.assertEqual(one.counts["parted"], 2)
        # what is no write of its bucket is not done with the others, and what the server refuses is not done at all
        for wrong in ((b"SET", key(second), b"x"), (b"PING",)):
            done = await one.transact_many(reads, lambda replies, wrong=wrong: {**write(replies), first: Writes([wrong])})
            self.assertEqual(list(done), there[1:])
        self.assertEqual(await one.transact_many(reads, lambda replies: {b: Writes([(b"SET", key(b))]) for b in replies}), {})
        with self.assertRaises(ZeroDivisionError):
            await one.transact_many(reads, lambda replies: {b: Writes([], 1 / 0) for b in replies})
        for buckets in (0, MAX_JOINED + 1):
            with self.assertRaises(ValueError):
                await one.transact_many({bucket: [] for bucket in range(buckets)}, write)
        self.assertEqual(await one.read_many({b: reads[b] for b in (first, second)}), {first: [b"x"], second: [b"%d" % second]})

    async def test_what_is_refused_is_refused(self: Any) -> None:
        (one,) = await self.routers(1)
        await one.transact(0, [], lambda _: Writes([(b"SET", key(0), b"x")]))
        for wrong in ((b"HSET", key(0), b"f", b"v"), (b"SET", key(0)), (b"NOSUCH", key(0)), (b"GET", key(0), b"")):
            with self.assertRaises(TransactionRefused):
                await one.transact(0, [], lambda _, wrong=wrong: Writes([wrong]))
        with self.assertRaises(TransactionRefused):
            await one.transact(0, [], lambda _: Writes([(b"SET", key(0), b"y"), (b"GET", key(0), b"")]))
        with self.assertRaises(TransactionRefused):
            await one.read(0, [(b"HGETALL", key(0))])
        with self.assertRaises(ValueError):
            await one.transact(0, [], lambda _: Writes([(b"SET", key(1), b"x")]))
        self.assertEqual(await one.read(0, [(b"GET", key(0))]), [b"x"])

    async def test_the_store_is_described(self: Any) -> None:
        one, two = await self.routers(2)
        self.assertEqual(one.describe()["id"], two.describe()["id"])
        self.assertEqual((one.buckets, one.is_ready, one.problems), (4, True, []))
        self.assertEqual({shard.name: shard.buckets for shard in await one.shards()}, self.spread())
