"""One bucket moves under load, exactly; killed and overtaken between any two steps, finished and undone by others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import deferLater

from taba.errors import TabaError
from taba.shard.buckets import MAP_KEY, Owner, encode_map
from taba.shard.moving import copying, mending, steps
from taba.shard.moving.move import move, undo
from taba.shard.moving.mover import Mover
from taba.shard.moving.steps import MoveFailed, Overtaken, Step
from taba.shard.transaction import Writes
from tests.shard.moves import BUCKETS, HALF, HOUR, Killed, MoveCase, Writer, describe, key


class MoveTests(MoveCase):
    async def test_a_bucket_arrives_as_it_was(self) -> None:
        await self.prepare()
        await self.fill(0)
        before = await self.content("s1", 0)
        moved = await self.run_one(0, move(0, "s1", "s2", self.token()))
        self.assertEqual((moved.how, moved.keys), ("moved", 7))
        self.assertEqual(await self.content("s2", 0), before)
        self.assertEqual(await self.check_settled(0, ""), "s2")
        self.assertEqual(await self.owners(0), {"s1": Owner("moved", 2, "s2"), "s2": Owner("open", 2, "s2")})
        self.assertEqual(await self.router.read(0, [(b"HGET", key(0, "states"), b"f7")]), [b"7" + b"v" * 50])

    async def test_whoever_is_told_where_a_bucket_went_asks_there_and_nobody_else(self) -> None:
        await self.prepare(shards=3)
        others = [await self.new_router() for _ in range(2)]
        for target, source in (("s2", "s1"), ("s3", "s2"), ("s1", "s3")):
            await self.run_one(0, move(0, source, target, self.token(target)))
        looks: list[Any] = []
        for router in others:
            self.patch(router.atlas, "learn", looks.append)
        self.assertEqual(await others[0].read(0, [(b"GET", key(0, "a"))]), [None])
        await others[1].transact(0, [], lambda _: Writes([(b"SET", key(0, "a"), b"1")]))
        for bucket in (1, 2):
            await self.run_one(bucket, move(bucket, "s1", "s2", self.token()))
        replies = await others[0].read_many({bucket: [(b"GET", key(bucket, "a"))] for bucket in range(BUCKETS)})
        self.assertEqual((replies[0], len(replies), looks), ([b"1"], BUCKETS, []))
        self.assertEqual([others[0].map.shard_of(bucket) for bucket in range(3)], ["s1", "s2", "s2"])

    async def test_large_keys_travel_in_chunks(self) -> None:
        self.patch(copying, "MAX_CHUNK_BYTES", 10_000)
        self.patch(copying, "SMALL_KEY_BYTES", 2_000)
        await self.prepare()
        await self.fill(0, fields=2000, size=100)
        before = await self.content("s1", 0)
        sizes = []

        def watch(_: int, request: Any) -> None:
            if isinstance(request, Step) and request.name == "stage":
                sizes.append(request.size)

        await self.run_one(0, move(0, "s1", "s2", self.token()), watch=watch)
        self.assertEqual(await self.content("s2", 0), before)
        self.assertGreater(len(sizes), 60)
        self.assertLess(max(sizes), 15_000)

    async def test_what_a_shard_does_not_tell_is_not_taken_for_gone(self) -> None:
        await self.prepare()
        await self.fill(0, fields=1000, size=200)
        await self.router.transact(0, [], lambda _: Writes([(b"HSET", key(0, "little"), b"f", b"1")]))
        before = await self.content("s1", 0)
        for command in ("memory", "type", "pttl", "hgetall", "hscan", "lrange", "getrange", "hlen", "zrange"):
            self.valkeys[0].call("ACL", "SETUSER", "default", f"-{command}")
            with self.assertRaisesRegex(MoveFailed, "s1 does not tell what it has", msg=command):
                await self.run_one(0, move(0, "s1", "s2", self.token()))
            self.valkeys[0].call("ACL", "SETUSER", "default", f"+{command}")
            self.assertEqual(await self.check_settled(0, command), "s1")
        self.assertEqual(await self.content("s1", 0), before)
        for command in ("hmget", "smismember"):
            self.valkeys[1].call("ACL", "SETUSER", "default", f"-{command}")
            with self.assertRaisesRegex(MoveFailed, "s2 does not tell", msg=command):
                await self.run_one(0, move(0, "s1", "s2", self.token()))
            self.valkeys[1].call("ACL", "SETUSER", "default", f"+{command}")
            self.assertEqual(await self.check_settled(0, command), "s1")
        await self.run_one(0, move(0, "s1", "s2", self.token()))
        self.assertEqual(await self.content("s2", 0), before)

    async def test_a_key_that_a_command_names_last_is_not_missed(self) -> None:
        await self.prepare()
        await self.router.transact(0, [], lambda _: Writes([(b"RPUSH", key(0, "list"), b"2", b"1")]))
        commands = [
            (b"SORT", key(0, "list"), b"STORE", key(0, "sorted")),
            (b"BLMOVE", key(0, "list"), key(0, "new"), b"LEFT", b"LEFT", b"0"),
        ]

        def watch(_: int, request: Any) -> Any:
            if isinstance(request, Step) and request.name == "ready":
                return ensureDeferred(self.router.transact(0, [], lambda _: Writes(commands)))
            return None

        await self.run_one(0, move(0, "s1", "s2", self.token()), watch=watch)
        found = {name.rpartition(b":")[2]: value for name, (value, _) in (await self.content("s2", 0)).items()}
        self.assertEqual(found, {b"list": [b"1"], b"sorted": [b"1", b"2"], b"new": [b"2"]})

    async def test_a_large_text_that_expires_before_it_is_copied_is_not_missed(self) -> None:
        await self.prepare()
        large = (b"SET", key(0, "large"), b"x" * 100_000, b"PX", b"60000")
        await self.router.transact(0, [], lambda _: Writes([large, (b"SET", key(0, "small"), b"1")]))

        async def expire(_: int, request: Any) -> None:
            if isinstance(request, Step) and request.name == "copy":
                await self.pools["s1"].execute([(b"PEXPIREAT", key(0, "large"), b"1")])

        await self.run_one(0, move(0, "s1", "s2", self.token()), watch=lambda *of: ensureDeferred(expire(*of)))
        self.assertEqual(await self.content("s2", 0), {key(0, "small"): (b"1", False)})
        self.assertEqual(await self.check_settled(0, ""), "s2")

    async def test_a_bucket_that_comes_back_brings_nothing_old(self) -> None:
        await self.prepare()
        await self.fill(0)
        await self.run_one(0, move(0, "s1", "s2", self.token()))
        await self.router.transact(0, [], lambda _: Writes([(b"DEL", key(0, "states"), key(0, "text"))]))
        await self.pools["s1"].execute([(b"SET", key(0, "text"), b"left behind")])
        before = await self.content("s2", 0)
        await self.run_one(0, move(0, "s2", "s1", self.token("s1")))
        self.assertEqual(await self.content("s1", 0), before)
        self.assertEqual(await self.check_settled(0, ""), "s1")

    async def test_writers_that_never_stop_lose_nothing(self) -> None:
        await self.prepare()
        await self.fill(0, fields=3000, size=200)
        writers = [Writer(self.router, 0), Writer(self.router, 1)]
        writers[1].router = await self.new_router()
        for writer in writers:
            self.keep_writing(writer)
        for turn in range(6):
            source, target = ("s1", "s2") if turn % 2 == 0 else ("s2", "s1")
            for bucket in (0, 1):
                await self.run_one(bucket, move(bucket, source, target, self.token(target)))
        for writer in writers:
            await writer.stop()
            await writer.check(self, self.router, "")
        self.assertGreater(writers[0].done, 20)

    async def test_a_bucket_is_found_although_no_map_says_where_it_is(self) -> None:
        await self.prepare(shards=3)
        await self.fill(0)
        old = encode_map(self.router.map)
        fresh = await self.new_router()
        await self.run_one(0, move(0, "s1", "s2", self.token()))
        await self.run_one(0, move(0, "s2", "s3", self.token("s3")))
        for valkey in self.valkeys:
            valkey.ask("SET", MAP_KEY, old)
        for router in (fresh, self.router, await self.new_router()):
            self.assertEqual(await router.read(0, [(b"STRLEN", key(0, "text"))]), [5000])
            await router.transact(0, [], lambda _: Writes([(b"INCR", key(0, "n"))]))
        self.assertEqual(await fresh.read(0, [(b"GET", key(0, "n"))]), [b"3"])
        await self.run_one(0, move(0, "s3", "s1", self.token("s1")))
        for router in (fresh, self.router):
            self.assertEqual(await router.read(0, [(b"GET", key(0, "n"))]), [b"3"])

    async def test_a_copy_that_differs_is_not_opened(self) -> None:
        await self.prepare()
        await self.fill(0)
        before = await self.content("s1", 0)

        async def watch(_: int, request: Any) -> None:
            if isinstance(request, Step) and request.name == "compare" and request.shard == "s2":
                [one] = [one for one in (await Mover(self.pools, reactor).keys("s2", [0]))[0] if one.endswith(b":text")]
                await self.pools["s2"].execute([(b"SET", one, b"v" * 4999 + b"w")])

        with self.assertRaises(steps.MoveFailed):
            await self.run_one(0, move(0, "s1", "s2", self.token()), watch=watch)
        self.assertEqual(await self.check_settled(0, ""), "s1")
        self.assertEqual(await self.content("s1", 0), before)

    async def test_the_mover_of_a_bucket_that_another_has_in_hand_lets_it_be(self) -> None:
        await self.prepare()
        first = Mover(self.pools, reactor, watch=self.kill_at(8))
        await first.start()
        self.addCleanup(lambda: ensureDeferred(first.stop()))
        with self.assertRaises(Killed):
            await self.run_one(0, move(0, "s1", "s2", self.token(by=first)), by=first)
        with self.assertRaises(steps.Occupied):
            await self.run_one(0, move(0, "s1", "s2", self.token()))
        with self.assertRaises(steps.Occupied):
            await self.run_one(0, undo(0, "s1"))
        await first.stop()
        self.assertEqual((await self.run_one(0, move(0, "s1", "s2", self.token()))).how, "moved")

    # --- killed and overtaken, between any two steps ---

    def kill_at(self, place: int) -> Callable[[int, Any], None]:
        left = [place]

        def watch(_: int, request: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed

        return watch

    def kill_at_new(self, reached: list[str]) -> Callable[[int, Any], None]:
        """At the first step that is not in `reached` yet; how many there are depends on what is written meanwhile."""
        seen: Counter[str] = Counter()

        def watch(_: int, request: Any) -> None:
            name = describe(request)
            seen[name] += 1
            place = f"{name}, {seen[name]}"
            if place not in reached:
                reached.append(place)
                raise Killed

        return watch

    async def each_step(self, afterwards: Callable[[int, str], Any], mends_after: float = HOUR) -> list[str]:
        """Kill the move of one bucket after another, each a step later, under load; then do `afterwards`. The steps.

        `mends_after`: so many seconds more, for each bucket, until the Router of the writers looks after it.
        """
        await self.prepare(shards=3, buckets=3 * HALF)
        reached: list[str] = []
        for bucket in range(HALF):
            self.patch(mending, "LOOK_SECONDS", mends_after * (bucket + 1))
            writer = Writer(self.router, bucket, 0.001)
            for _ in range(5):
                await writer.write()
            await self.fill(bucket)
            self.keep_writing(writer)
            was_killed = False
            try:
                await self.run_one(bucket, move(bucket, "s1", "s2", self.token()), watch=self.kill_at_new(reached))
            except BaseException as ended:
                if not isinstance(ended, (Killed, *self.ends)):
                    raise
                was_killed = True
                await afterwards(bucket, reached[-1] if isinstance(ended, Killed) else "")
            await deferLater(reactor, 0.01)
            await writer.stop()
            await self.check_settled(bucket, reached[-1])
            await writer.check(self, await self.new_router(), reached[-1])
            [value, count] = await self.router.read(bucket, [(b"HGET", key(bucket, "states"), b"f9"), (b"HLEN", key(bucket, "states"))])
            self.assertEqual((value, count), (b"9" + b"v" * 50, 100), reached[-1])
            if not was_killed:
                break
        if self.ends:
            return reached  # how far a move comes is the others' business
        names = {place.partition(" ")[0] for place in reached}
        self.assertTrue(names >= {"arrive", "begin", "stage", "take", "seal", "compare", "open", "leave"}, reached)
        return reached

    @pytest.mark.real
    async def test_a_mover_killed_between_any_two_steps_is_resumed_by_another(self) -> None:
        ended = {}

        async def resume(bucket: int, place: str) -> None:
            ended[place] = [moved.how for moved in await self.end_what_is_left()]

        await self.each_step(resume)
        self.assertEqual(ended["leave at s1, 1"], ["finished"])
        self.assertIn(["moved"], ended.values())

    @pytest.mark.real
    async def test_a_mover_killed_between_any_two_steps_is_undone_by_another(self) -> None:
        holders = {}

        async def abort(bucket: int, place: str) -> None:
            await self.end_what_is_left(undoing=True)
            holders[place] = await self.check_settled(bucket, place)

        reached = await self.each_step(abort)
        for place in reached:
            is_open = place.startswith(("Publish", "confirm", "leave", "left", "remove", "unlink", "Look(shard='s2'), 2"))
            self.assertEqual(holders[place], "s2" if is_open else "s1", place)

    @pytest.mark.real
    async def test_a_mover_killed_between_any_two_steps_is_overruled_by_one_with_another_target(self) -> None:
        async def elsewhere(bucket: int, place: str) -> None:
            try:
                await self.run_one(bucket, move(bucket, "s1", "s3", self.token("s3")))
            except Overtaken:  # it was open at the second already, or nearly: that is finished first
                await self.end_what_is_left()
            await self.end_what_is_left()

        await self.each_step(elsewhere)

    @pytest.mark.real
    async def test_one_that_resumes_is_killed_too(self) -> None:
        killed = 0

        async def again(bucket: int, place: str) -> None:
            nonlocal killed
            try:
                await self.end_what_is_left(watch=self.kill_at(bucket))  # each a step later, as the first
            except Killed:
                killed += 1
                await self.end_what_is_left()

        await self.each_step(again)
        self.assertGreater(killed, 10)

    @pytest.mark.real  # as many moves as a move has steps, squared, by three
    async def test_one_that_resumes_is_killed_at_every_third_step_too(self) -> None:
        async def again(bucket: int, place: str) -> None:
            for later in range(bucket % 3, HALF, 3):  # another third of them for each step of the first
                try:
                    await self.end_what_is_left(watch=self.kill_at(later))
                    return
                except Killed:
                    continue
            self.fail(f"{place}: killed at {HALF} steps, and never at the end")

        await self.each_step(again)

    test_one_that_resumes_is_killed_at_every_third_step_too.timeout = 550  # type: ignore[attr-defined]

    @pytest.mark.real
    async def test_whoever_resumes_and_a_router_that_looks_after_dead_movers_overtake_each_other_and_harm_nothing(self) -> None:
        # the Router of the writers looks later for each bucket, and every mover is dead to it
        self.ends = (Overtaken, MoveFailed)
        overtaken = 0

        async def both(bucket: int, place: str) -> None:
            nonlocal overtaken
            for _ in range(HALF):
                try:
                    ended = await self.end_what_is_left()
                except self.ends:
                    overtaken += 1
                    continue
                if not ended and not self.router.atlas.in_hand:
                    return
                await deferLater(reactor, 0.01)
            self.fail(f"{place}: bucket {bucket} is still in hand")

        await self.each_step(both, mends_after=0.003)
        self.assertGreater(self.router.counts["mended"], 5)
        self.assertGreater(overtaken, 0)

    async def sleeps_and_is_overtaken(self, undoing: bool) -> None:
        await self.prepare(buckets=2 * HALF)
        slept = 0
        for bucket in range(HALF):
            writer = Writer(self.router, bucket, 0.001)
            await self.fill(bucket)
            self.keep_writing(writer)
            asleep: Deferred[str] = Deferred()
            wake: Deferred[None] = Deferred()
            left = [bucket]

            def watch(_: int, request: Any, left: Any = left, asleep: Any = asleep, wake: Any = wake) -> Any:
                left[0] -= 1
                if left[0] == -1:
                    asleep.callback(describe(request))
                    return wake
                return None

            first = ensureDeferred(self.run_one(bucket, move(bucket, "s1", "s2", self.token()), watch=watch))
            first.addErrback(lambda failure: failure.trap(Overtaken) and "overtaken")
            first.addCallback(self.told_at_last, asleep)
            place = await asleep
            if not place:
                await writer.stop()
                break
            slept += 1
            await self.end_what_is_left(undoing=undoing)
            await self.run_one(bucket, undo(bucket, "s1") if undoing else move(bucket, "s1", "s2", self.token()))
            await deferLater(reactor, 0.005)
            wake.callback(None)
            outcome = await first
            await self.end_what_is_left(undoing=undoing)  # it may have begun anew, where nobody had marked anything
            await writer.stop()
            await self.check_settled(bucket, f"{place}: {outcome}")
            await writer.check(self, await self.new_router(), f"{place}: {outcome}")
        self.assertGreater(slept, 15)

    @pytest.mark.real
    async def test_a_mover_that_slept_while_another_moved_the_bucket_harms_nothing(self) -> None:
        await self.sleeps_and_is_overtaken(undoing=False)

    @pytest.mark.real
    async def test_a_mover_that_slept_while_another_undid_the_move_harms_nothing(self) -> None:
        await self.sleeps_and_is_overtaken(undoing=True)


class StoresThatDie(MoveCase):
    sync = "always"

    async def test_a_bucket_moves_although_both_shards_are_killed_meanwhile(self) -> None:
        await self.prepare()
        await self.fill(0, fields=2000)
        writer = Writer(self.router, 0, 0.005)
        self.keep_writing(writer)
        for turn in range(6):
            valkey = self.valkeys[turn % 2]
            left = [4 + 3 * turn]

            def watch(_: int, request: Any, left: Any = left, valkey: Any = valkey) -> None:
                left[0] -= 1
                if left[0] == 0:
                    valkey.kill()
                    deferLater(reactor, 0.05, valkey.start)

            first = (await self.owners(0))["s1"]
            source, target = ("s1", "s2") if first is not None and first.state == "open" else ("s2", "s1")
            while True:
                try:
                    await self.run_one(0, lambda source=source, target=target: move(0, source, target, self.token(target)), watch=watch)
                    break
                except (Overtaken, TabaError):
                    await deferLater(reactor, 0.1)
        await writer.stop()
        await self.check_settled(0, "")
        await writer.check(self, self.router, "")
