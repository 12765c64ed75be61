"""Movers: what they say of themselves before they move, what they cannot do and say at once, and how they are interrupted."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.task import deferLater

from taba.errors import StoreUnavailable
from taba.shard.buckets import owner_key, prefix_of
from taba.shard.moving import move
from taba.shard.moving.check import check
from taba.shard.moving.mover import SIGNS_KEY, Mover
from taba.shard.moving.reshard import current_shards, pools_of
from taba.shard.moving.steps import Outpaced, Publish, Step
from taba.shard.router import Router
from taba.shard.servers.url import parse_store
from taba.shard.transaction import Writes
from tests.shard.test_reshard import BUCKETS, ReshardCase


class SignTests(ReshardCase):
    async def test_a_mover_does_not_begin_before_every_shard_took_its_first_sign(self) -> None:
        router = await self.prepare(2)
        mover = Mover(pools_of(router.atlas), reactor)
        self.valkeys[1].call("CONFIG", "SET", "maxmemory", "1")
        with self.assertRaisesRegex(StoreUnavailable, "shard s2 does not take the sign that this mover lives.*OOM"):
            await mover.start()
        self.assertFalse(mover._signing.running)
        self.valkeys[1].call("CONFIG", "SET", "maxmemory", "0")
        await mover.start()
        self.assertEqual(self.valkeys[1].call("HKEYS", SIGNS_KEY), [mover.id.encode()])
        await mover.stop()
        self.assertEqual(self.valkeys[1].call("HKEYS", SIGNS_KEY), [])

    async def test_a_shard_that_was_added_since_knows_it_before_a_bucket_says_that_it_moves(self) -> None:
        await self.prepare()
        new = self.valkey()
        seen: list[bool] = []

        def watch(_: int, request: Any) -> None:
            if isinstance(request, Step) and request.name == "arrive":
                seen.append(bool(new.call("HLEN", SIGNS_KEY)))

        await self.add(new, watch=watch)
        self.assertEqual((len(seen), all(seen)), (BUCKETS // 2, True))

    async def test_where_only_older_maps_answer_a_bucket_is_not_said_to_be_on_a_shard_that_they_lack(self) -> None:
        router = await self.prepare()
        mover = Mover(pools_of(router.atlas), reactor)
        with self.assertRaisesRegex(StoreUnavailable, "no shard that answers has a map with shard s9"):
            await mover.perform(0, Publish(shard="s9", epoch=router.map.epochs[0] + 1))
        await mover.perform(0, Publish(shard="s9", epoch=router.map.epochs[0]))  # late: a newer map has it elsewhere


class PaceTests(ReshardCase):
    async def written_faster_than_copied(self) -> tuple[Router, Any]:
        self.patch(move, "SEAL_NOTES", 2)
        self.patch(move, "SEALED_NOTES", 10)
        router = await self.prepare()
        is_writing = [True]

        async def write() -> int:
            written = 0
            while is_writing[0]:
                bucket = BUCKETS - 1 - written % 2  # those that would move last
                fields = [part for n in range(20) for part in (b"%d" % n, b"%d" % written + bytes(500))]
                await router.transact(bucket, [], lambda _, b=bucket, f=fields: Writes([(b"HSET", prefix_of(b) + b"wide", *f)]))  # type: ignore[misc]
                written += 1
                await deferLater(reactor, 0.005)
            return written

        writing = ensureDeferred(write())

        async def stop() -> int:
            is_writing[0] = False
            return await writing

        self.addCleanup(stop)
        return router, stop

    async def test_what_is_written_faster_than_it_may_be_copied_is_left_where_it_is_and_the_rest_moves(self) -> None:
        router, stop = await self.written_faster_than_copied()
        slow: Any = lambda bucket, request: deferLater(reactor, 0.2) if isinstance(request, Step) and request.name == "take" else None  # noqa: E731
        with self.assertRaisesRegex(Outpaced, "grows as fast as it is copied .*it was opened again where it was"):
            await self.add(self.valkey(), watch=slow)
        self.assertEqual(await self.held(router), {"s1": BUCKETS // 2 + 2, "s2": BUCKETS // 2 - 2})
        written = await stop()
        self.assertEqual(await check(await current_shards(router.atlas), reactor), [])
        [value] = await router.read(
            BUCKETS - 1 - (written - 1) % 2, [(b"HGET", prefix_of(BUCKETS - 1 - (written - 1) % 2) + b"wide", b"7")]
        )
        self.assertEqual(value, b"%d" % (written - 1) + bytes(500))

    async def test_one_that_is_interrupted_while_it_waits_for_its_rate_gives_up_and_nothing_is_sealed(self) -> None:
        router, stop = await self.written_faster_than_copied()
        waiting: Deferred[None] = Deferred()

        def watch(bucket: int, request: Any) -> None:
            if isinstance(request, Step) and request.name == "stage" and bucket >= BUCKETS - 2 and not waiting.called:
                waiting.callback(None)

        work = await self.reshard(rate=10.0, watch=watch)  # bytes a second: it would take days
        adding = ensureDeferred(work.add(parse_store(self.valkey().url).addresses))
        await waiting
        await deferLater(reactor, 0.0)  # as Ctrl-C comes: from the reactor, while all of it waits
        adding.cancel()
        await self.assertFailure(adding, CancelledError)
        await work.give_up()
        for bucket in range(BUCKETS):
            content = self.valkeys[0].call("GET", owner_key(bucket))
            self.assertFalse(b"sealed" in content or b"moving" in content, content)
        await stop()
        self.assertEqual(await check(await current_shards(router.atlas), reactor), [])

    async def test_one_that_is_interrupted_before_it_marked_its_source_leaves_nothing_at_its_target(self) -> None:
        await self.prepare()
        new = self.valkey()
        waiting: Deferred[None] = Deferred()
        marked: list[int] = []

        def watch(bucket: int, request: Any) -> Any:
            if isinstance(request, Step) and request.name == "begin":  # the target is marked by now
                marked.append(bucket)
                if not waiting.called:
                    waiting.callback(None)
                return Deferred()  # for ever, or until it is cancelled
            return None

        work = await self.reshard(watch=watch)
        adding = ensureDeferred(work.add(parse_store(new.url).addresses))
        await waiting
        await deferLater(reactor, 0.0)  # as Ctrl-C comes: from the reactor, while all of it waits
        adding.cancel()
        await self.assertFailure(adding, CancelledError)
        for bucket in marked:
            self.assertIn(b"arriving", new.call("GET", owner_key(bucket)))
        await work.give_up()
        self.assertEqual([new.call("GET", owner_key(bucket)) for bucket in marked], [None] * len(marked))
