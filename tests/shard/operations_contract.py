"""What every Router offers by key, and its locks: the tests that all topologies and the store in memory share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.task import Clock, deferLater

from taba.shard.keys.places import MAX_CONTENT_BYTES, MAX_NAME_BYTES, MAX_PAGE_NAMES
from taba.shard.lock import Lock, LockHeld, LockLost
from taba.shard.servers.connection import TransactionRefused
from taba.shard.transaction import Writes

EVERY_BYTE = bytes(range(256))


class OperationsContract:
    """`routers(n)` gives n Routers on one new store of four buckets."""

    async def routers(self, count: int) -> list[Any]:
        raise NotImplementedError

    async def test_strings_are_kept_as_they_are(self: Any) -> None:
        one, two = await self.routers(2)
        self.assertEqual(await one.get("a"), None)
        self.assertTrue(await one.set("a", EVERY_BYTE))
        self.assertTrue(await one.set(EVERY_BYTE, "naïve"))
        self.assertEqual(await two.get("a"), EVERY_BYTE)
        self.assertEqual(await two.get(EVERY_BYTE), "naïve".encode())
        self.assertEqual((await two.exists("a"), await two.exists("b")), (True, False))
        self.assertFalse(await two.set("a", "other", new=True))
        self.assertTrue(await two.set("b", "", new=True))
        self.assertEqual(await one.mget(["b", "a", "none", EVERY_BYTE, "a"]), [b"", EVERY_BYTE, None, "naïve".encode(), EVERY_BYTE])
        self.assertEqual(await one.mget([]), [])
        self.assertEqual(await one.delete("a", "none", "b"), 2)
        self.assertEqual(await two.mget(["a", "b"]), [None, None])

    async def test_many_strings_are_read_in_order_whatever_is_there(self: Any) -> None:
        one, two = await self.routers(2)
        names = [f"n{number}" for number in range(60)]
        await one.mset({name: name for name in names[::2]})
        await one.rpush("n1", "no string")
        wanted = [*names, "n0", "n0"]
        found = [name.encode() if name in names[::2] else None for name in wanted]
        for router in (one, two, two):  # two knows of no owner key before
            self.assertEqual(await router.mget(wanted), found)
        with self.assertRaises(TransactionRefused):
            await two.get("n1")

    async def test_keys_expire(self: Any) -> None:
        (one,) = await self.routers(1)
        await one.set("short", "x", seconds=0.05)
        await one.set("long", "x", seconds=60)
        self.assertTrue(await one.expire("long", None))
        self.assertEqual(await one.ttl("long"), float("inf"))
        self.assertFalse(await one.expire("none", 1))
        await one.set("kept", "x")
        self.assertTrue(await one.expire("kept", 0.05))
        await deferLater(reactor, 0.15)
        self.assertEqual(await one.mget(["short", "long", "kept"]), [None, b"x", None])
        self.assertEqual((await one.scan()).names, [b"long"])

    async def test_a_key_tells_its_type_and_how_long_it_stays(self: Any) -> None:
        (one,) = await self.routers(1)
        self.assertEqual((await one.ttl("none"), await one.type("none")), (None, None))
        await one.set("short", "x", seconds=60_000)
        self.assertTrue(50_000 < (await one.ttl("short")) <= 60_000)
        await one.together(
            lambda r: [r.set("text", "x"), r.hset("h", {"a": "1"}), r.sadd("s", "a"), r.rpush("l", "a"), r.zadd("z", {"a": 1})]
        )
        self.assertEqual([await one.type(name) for name in ("text", "h", "s", "l", "z")], ["string", "hash", "set", "list", "zset"])
        self.assertEqual(await one.ttl("text"), float("inf"))
        self.assertEqual(await one.getdel("text"), b"x")
        self.assertEqual((await one.getdel("text"), await one.exists("text")), (None, False))
        with self.assertRaises(TransactionRefused):
            await one.getdel("h")
        self.assertEqual((await one.hlen("h"), await one.hkeys("h"), await one.hlen("none"), await one.hkeys("none")), (1, [b"a"], 0, []))
        await one.rpush("l", "b")
        self.assertEqual([await one.lindex("l", index) for index in (0, -1, 2, -3)], [b"a", b"b", None, None])

    async def test_fractions_add_up_exactly_as_floats_do_and_keep_their_time(self: Any) -> None:
        one, two = await self.routers(2)
        self.assertEqual(await one.incrbyfloat("f", 0.1), 0.1)
        self.assertEqual(await two.incrbyfloat("f", 0.2), 0.1 + 0.2)
        self.assertEqual(float(await one.get("f")), 0.1 + 0.2)
        await one.expire("f", 60)
        self.assertEqual(await one.incrbyfloat("f", 1e300), 1e300)
        self.assertTrue(50 < (await one.ttl("f")) <= 60)
        for amount in (float("inf"), float("nan"), 10**400, -(10**400), 10**5000):
            with self.assertRaisesRegex(ValueError, "incrbyfloat of 'f' takes a"):
                await one.incrbyfloat("f", amount)
        await one.incrbyfloat("large", 1.5e308)
        for amount in (1.5e308, 10**308):  # each is a float, and the sum would be none
            with self.assertRaisesRegex(TransactionRefused, "'large' holds b'1.5e.308', and with 1.*e.308 it would be no finite number"):
                await one.incrbyfloat("large", amount)
        for text in ("x", "", "1_000", " 7 ", "nan", "0x10", "1" * 6000, "1e400", "-inf"):  # Python takes all but the first two for numbers
            await one.set("text", text)
            with self.assertRaisesRegex(TransactionRefused, "'text'", msg=text):
                await one.incrbyfloat("text", 1)
            self.assertEqual(await one.get("text"), text.encode())
        for text, total in (("1e3", 1001.0), ("-.5", 0.5), ("+2.", 3.0)):
            await one.set("text", text)
            self.assertEqual(await one.incrbyfloat("text", 1), total)

    async def test_sorted_sets_are_in_the_order_of_their_scores(self: Any) -> None:
        one, two = await self.routers(2)
        self.assertEqual(await one.zadd("z", {"b": 2, "a": 2.0, "c": -1.5}), 3)
        self.assertEqual(await two.zadd("z", {"c": float("inf"), EVERY_BYTE: 0.1}), 1)
        self.assertEqual(await two.zrange("z"), [(EVERY_BYTE, 0.1), (b"a", 2.0), (b"b", 2.0), (b"c", float("inf"))])
        self.assertEqual(await two.zrange("z", 0, 1, reverse=True), [(b"c", float("inf")), (b"b", 2.0)])
        self.assertEqual(await two.zrangebyscore("z", 0.1, 2), [(EVERY_BYTE, 0.1), (b"a", 2.0), (b"b", 2.0)])
        self.assertEqual(await two.zrangebyscore("z", float("-inf"), float("inf"), count=1), [(EVERY_BYTE, 0.1)])
        with self.assertRaises(ValueError):
            await two.zrangebyscore("z", 0, 1, count=0)
        self.assertEqual(sorted(await gatherResults([ensureDeferred(router.zincrby("z", "a", 0.5)) for router in (one, two)])), [2.5, 3.0])
        self.assertEqual((await one.zscore("z", "a"), await one.zscore("z", "none"), await one.zcard("z")), (3.0, None, 4))
        self.assertEqual((await one.zrank("z", "b"), await one.zrank("z", "none"), await one.zrank("none", "a")), (1, None, None))
        self.assertEqual(await one.zrem("z", "a", "a", "none"), 1)
        self.assertEqual(await one.zrem("z", "b", "c", EVERY_BYTE), 3)
        self.assertEqual((await one.exists("z"), (await one.scan()).names), (False, []))
        for score, error in (
            (float("nan"), ValueError),
            (10**400, ValueError),
            (10**5000, ValueError),
            ("1", TypeError),
            (True, TypeError),
        ):
            with self.assertRaisesRegex(error, "zadd of 'a' in 'z' takes"):
                await one.zadd("z", {"a": score})
            with self.assertRaisesRegex(error, "zincrby of 'a' in 'z' takes"):
                await one.zincrby("z", "a", score)
            with self.assertRaisesRegex(error, "zrangebyscore of 'z' takes"):
                await one.zrangebyscore("z", 0, score)
        await one.zadd("z", {"a": 1.5e308, "b": float("-inf")})
        for member, amount in (("a", 1.5e308), ("b", 1.0)):
            with self.assertRaisesRegex(TransactionRefused, f"'{member}' of 'z' holds .*, and with {amount!r:.3}.* it would be no finite"):
                await one.zincrby("z", member, amount)
        self.assertEqual(await one.zrange("z"), [(b"b", float("-inf")), (b"a", 1.5e308)])

    async def test_writes_together_are_one_transaction_a_bucket_and_done_once(self: Any) -> None:
        one, two = await self.routers(2)
        await one.mset({f"m{n}": str(n) for n in range(40)})
        self.assertEqual(await two.mget([f"m{n}" for n in range(40)]), [b"%d" % n for n in range(40)])
        self.assertEqual(sorted((await two.scan(count=1000)).names), sorted(b"m%d" % n for n in range(40)))
        results = await one.together(
            lambda r: [r.incr("m1", 5), r.set("m2", "x", new=True), r.delete("m3", "none", "m4"), r.rpush("l", "a")]
        )
        self.assertEqual(results, [6, False, 2, 1])
        self.assertEqual(await one.together(lambda r: []), [])
        with self.assertRaisesRegex(ValueError, "takes each name once"):
            await one.together(lambda r: [r.set("m5", "y"), r.incr("m5")])
        with self.assertRaises(TypeError):
            await one.together(lambda r: [r.set("m5", "y"), r.get("m6")])
        with self.assertRaises(TypeError):
            await one.together(lambda r: [r.set("m5", "y"), r.set("m6", 7)])
        self.assertEqual(await two.mget(["m3", "m4", "m5", "m6"]), [None, None, b"5", b"6"])
        same = [name for name in map(str, range(99)) if one.bucket_of(name) == one.bucket_of("m7")][:2]
        with self.assertRaises(TransactionRefused):  # what lies in one bucket is done as one, or not at all
            await one.together(lambda r: [r.set(same[0], "y"), r.hset("m7", {"a": "1"}), r.incr(same[1])])
        self.assertEqual(await two.mget([*same, "m7"]), [None, None, b"7"])

    async def test_counters_count_from_many_at_once(self: Any) -> None:
        one, two = await self.routers(2)
        await gatherResults([ensureDeferred(router.incr("n", 2)) for router in (one, two) for _ in range(10)])
        self.assertEqual(await one.get("n"), b"40")
        self.assertEqual(await two.incr("n", -50), -10)
        await one.set("text", "x")
        with self.assertRaises(TransactionRefused):
            await one.incr("text")
        await one.mset({"full": str(2**63 - 1), "beyond": str(2**63), "padded": " 7", "signed": "+7"})
        for name, why in (
            ("full", "would leave the 64 bits"),
            ("beyond", "no counter"),
            ("padded", "no counter"),
            ("signed", "no counter"),
        ):
            before = await one.get(name)
            with self.assertRaisesRegex(TransactionRefused, f"'{name}' .*{why}"):  # whatever stands beside it is not done either
                await one.incr(name, 1 if name == "full" else -7)
            self.assertEqual(await one.get(name), before)
            await one.hset("h", {name: before})
            with self.assertRaisesRegex(TransactionRefused, f"'{name}' of 'h' .*{why}"):
                await one.hincrby("h", name, 1 if name == "full" else -7)
        self.assertEqual(await one.incr("full", 1 - 2**63), 0)
        for amount, error in ((2**63, ValueError), (-(2**63) - 1, ValueError), (10**5000, ValueError), (1.5, TypeError), (True, TypeError)):
            for asked in (one.incr("n", amount), one.hincrby("h", "n", amount)):
                with self.assertRaisesRegex(error, r"h?incr(by)? of 'n'( in 'h')? takes a whole number"):
                    await asked
        self.assertEqual((await one.get("n"), await one.hget("h", "n")), (b"-10", None))

    async def test_hashes(self: Any) -> None:
        one, two = await self.routers(2)
        self.assertEqual(await one.hset("h", {"a": "1", EVERY_BYTE: EVERY_BYTE}), 2)
        self.assertEqual(await two.hset("h", {"a": "2", "b": "3"}), 1)
        self.assertEqual(await two.hgetall("h"), {b"a": b"2", b"b": b"3", EVERY_BYTE: EVERY_BYTE})
        self.assertEqual(await one.hincrby("h", "a", 5), 7)
        self.assertEqual(await one.hmget("h", ["b", "none", "a"]), [b"3", None, b"7"])
        self.assertEqual((await one.hget("h", "b"), await one.hset("h", {}), await one.hmget("h", [])), (b"3", 0, []))
        self.assertEqual(await one.hdel("h", "a", "none", EVERY_BYTE, "a"), 2)
        self.assertEqual(await two.hgetall_many(["none", "h"]), [{}, {b"b": b"3"}])
        self.assertEqual(await one.hdel("h", "b"), 1)
        self.assertFalse(await one.exists("h"))

    async def test_sets(self: Any) -> None:
        one, two = await self.routers(2)
        self.assertEqual(await one.sadd("s", "a", EVERY_BYTE, "a"), 2)
        self.assertEqual(await two.sadd("s", "a", "b"), 1)
        self.assertEqual(await two.smembers("s"), frozenset([b"a", b"b", EVERY_BYTE]))
        self.assertEqual((await one.scard("s"), await one.sismember("s", "b"), await one.sismember("s", "c")), (3, True, False))
        self.assertEqual(await one.srem("s", "b", "c"), 1)
        self.assertEqual(await two.smembers_many(["s", "none"]), [frozenset([b"a", EVERY_BYTE]), frozenset()])
        self.assertEqual((await one.sadd("s"), await one.srem("s")), (0, 0))

    async def test_lists(self: Any) -> None:
        one, two = await self.routers(2)
        self.assertEqual(await one.rpush("l", "1", "2", "3"), 3)
        self.assertEqual(await two.lpush("l", EVERY_BYTE, "0"), 5)
        self.assertEqual(await two.lrange("l"), [b"0", EVERY_BYTE, b"1", b"2", b"3"])
        self.assertEqual(await one.lpop("l", 2), [b"0", EVERY_BYTE])
        self.assertEqual(await one.rpop("l", 2), [b"3", b"2"])
        self.assertEqual((await one.llen("l"), await one.lrange("l", 0, 5)), (1, [b"1"]))
        await one.rpush("l", *map(str, range(9)))
        await one.ltrim("l", -3, -1)
        self.assertEqual(await one.rpop("l", 9), [b"8", b"7", b"6"])
        self.assertEqual((await one.lpop("l"), await one.rpush("l"), await one.exists("l")), ([], 0, False))
        await one.rpush("l", "1")
        for wrong in (2**63, -(2**63) - 1, 10**5000):
            for asked in (
                one.ltrim("l", 0, wrong),
                one.lrange("l", wrong),
                one.lindex("l", wrong),
                one.lpop("l", wrong),
                one.rpop("l", wrong),
            ):
                with self.assertRaisesRegex(ValueError, "of 'l' takes a"):
                    await asked
        for count in (0, -1, 2**63 - 1):
            with self.assertRaisesRegex(ValueError, "of 'l' takes a count from 1"):
                await one.lpop("l", count)
        with self.assertRaises(TypeError):
            await one.ltrim("l", 0.5, 1)
        await one.ltrim("l", -(2**63), 2**63 - 1)
        self.assertEqual(await one.lrange("l"), [b"1"])

    async def test_a_key_that_holds_something_else_is_refused_and_unchanged(self: Any) -> None:
        (one,) = await self.routers(1)
        await one.set("a", "text")
        for wrong in (
            one.hset("a", {"f": "v"}),
            one.sadd("a", "m"),
            one.rpush("a", "x"),
            one.lpop("a"),
            one.hgetall("a"),
            one.smembers("a"),
        ):
            with self.assertRaises(TransactionRefused):
                await wrong
        self.assertEqual(await one.get("a"), b"text")

    async def test_names_and_values_as_long_as_the_bounds_and_no_longer(self: Any) -> None:
        (one,) = await self.routers(1)
        await one.set(b"\xff" * MAX_NAME_BYTES, b"x" * MAX_CONTENT_BYTES)
        self.assertEqual(len(await one.get(b"\xff" * MAX_NAME_BYTES)), MAX_CONTENT_BYTES)
        for name, value in ((b"n" * (MAX_NAME_BYTES + 1), b""), (b"", b""), (b"n", b"x" * (MAX_CONTENT_BYTES + 1))):
            with self.assertRaises(ValueError):
                await one.set(name, value)
        for wrong in (one.scan(count=0), one.scan(count=MAX_PAGE_NAMES + 1), one.scan(b"x"), one.scan(b"4:"), one.set("a", "b", seconds=0)):
            with self.assertRaises(ValueError):
                await wrong

    async def test_scans_go_through_all_names_once_in_bounded_pages_and_go_on_from_any_cursor(self: Any) -> None:
        one, two = await self.routers(2)
        names = {f"user:{number}".encode() for number in range(120)} | {b"other\xff", b"\xff\xff", b"use"}
        await gatherResults([ensureDeferred(one.set(name, b"1")) for name in sorted(names)])
        found: list[bytes] = []
        page = await one.scan(count=1)
        pages = 1
        while True:
            found += page.names
            if page.cursor is None:
                break
            await one.set("user:0", b"2")  # what is there stays where it is
            page = await (two if pages % 2 else one).scan(page.cursor, count=1)
            pages += 1
            self.assertLessEqual(len(page.names), 64)
        self.assertEqual((sorted(found), pages > 4), (sorted(names), True))
        await one.delete("user:7")
        some = [name async for name in two.names("user:")]
        self.assertEqual(sorted(some), sorted(name for name in names if name.startswith(b"user:") and name != b"user:7"))
        self.assertEqual([name async for name in two.names(b"\xff")], [b"\xff\xff"])

    async def test_keys_of_one_bucket_change_together(self: Any) -> None:
        (one,) = await self.routers(1)
        bucket = one.bucket_of("account")
        left, right = one.key("left", bucket), one.key("right", bucket)

        def move(replies: list[Any]) -> Writes:
            return Writes([(b"INCRBY", left, b"-5"), (b"INCRBY", right, b"5")], replies)

        self.assertEqual(await one.transact(bucket, [(b"GET", left), (b"GET", right)], move), [None, None])
        self.assertEqual(await one.read(bucket, [(b"MGET", left, right)]), [[b"-5", b"5"]])

    # --- locks ---

    async def test_a_lock_has_one_holder_and_every_holder_a_greater_fence(self: Any) -> None:
        one, two = await self.routers(2)
        inside = []
        fences = []

        async def hold(router: Any) -> None:
            async with router.lock("job", ttl=600, wait=600) as lock:
                inside.append(1)
                self.assertEqual((len(inside), lock.is_held), (1, True))
                fences.append(lock.fence)
                await deferLater(reactor, 0.01)
                inside.pop()

        await gatherResults([ensureDeferred(hold(router)) for router in (one, two) for _ in range(4)])
        self.assertEqual(fences, list(range(1, 9)))

    async def test_a_lock_that_another_holds_is_held(self: Any) -> None:
        one, two = await self.routers(2)
        async with one.lock("job", ttl=600):
            with self.assertRaises(LockHeld):
                await two.lock("job", ttl=600, wait=0.1).acquire()
            async with two.lock("other", ttl=600) as other:
                self.assertEqual(other.fence, 1)

    def timed(self: Any) -> tuple[Clock, Callable[[Any], Lock]]:
        """A clock, and what makes a lock of a router, all of which go by it alone."""
        clock = Clock()

        def lock(router: Any) -> Lock:
            router.standing._reactor = clock
            made: Lock = router.lock("job", ttl=60)
            made._reactor = clock
            return made

        return clock, lock

    async def test_a_lock_is_lost_when_its_time_is_over_and_the_next_holders_stays(self: Any) -> None:
        one, two = await self.routers(2)
        clock, lock = self.timed()
        slow, fast = lock(one), lock(two)
        await slow.acquire()
        with self.assertRaises(LockHeld):
            await fast.acquire()
        clock.advance(59.9)
        self.assertTrue(slow.is_held)
        with self.assertRaises(LockHeld):
            await fast.acquire()
        clock.advance(0.2)
        await fast.acquire()
        self.assertEqual((slow.is_held, fast.is_held, fast.fence - slow.fence), (False, True, 1))
        for late in (slow.extend(), slow.release(), slow.release()):
            with self.assertRaises(LockLost):
                await late
        with self.assertRaises(LockHeld):
            await lock(one).acquire()
        await fast.release()
        with self.assertRaises(LockLost):
            async with lock(one):
                clock.advance(60.1)

    async def test_a_lock_is_extended(self: Any) -> None:
        one, two = await self.routers(2)
        clock, lock = self.timed()
        mine = lock(one)
        await mine.acquire()
        for _ in range(4):
            with self.assertRaises(LockHeld):
                await lock(two).acquire()
            clock.advance(40)
            await mine.extend()
        with self.assertRaises(LockHeld):
            await lock(two).acquire()
        self.assertTrue(mine.is_held)
        await mine.release()
        self.assertFalse(mine.is_held)
        for wrong in (0, 10**6):
            with self.assertRaises(ValueError):
                one.lock("job", ttl=wrong)
