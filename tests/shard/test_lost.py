"""A target that had a bucket, and a failover took it from there: while the source still has all of it, it opens there again."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred
from twisted.internet.task import deferLater

from taba.shard.buckets import Owner, decode_owner, encode_owner, owner_key, staging_prefix
from taba.shard.moving import mending
from taba.shard.moving.check import check
from taba.shard.moving.move import move, tidy
from taba.shard.moving.steps import MoveFailed, Step
from tests.shard.moves import Killed, MoveCase, key
from tests.shard.pieces import ask

FIELDS = 100


class LostTests(MoveCase):
    async def killed_at(self, step: str, shards: int = 2) -> dict[bytes, Any]:
        """Bucket 0 was moved to the second shard, until the mover was killed at `step`; what was in it."""
        await self.prepare(shards, buckets=4 * shards)
        await self.fill(0, FIELDS)
        before = await self.content("s1", 0)

        def watch(_: int, request: Any) -> None:
            if isinstance(request, Step) and request.name == step:
                raise Killed

        with self.assertRaises(Killed):
            await self.run_one(0, move(0, "s1", "s2", self.token()), watch=watch)
        return before

    async def lose(self, says: str) -> None:
        """The second shard becomes what a replica was that had not heard that the bucket opened: `says` what its owner key said."""
        leaving = decode_owner(await ask(self.pools["s1"], b"GET", owner_key(0)))
        said = {
            "nothing": None,
            "arriving": Owner("arriving", leaving.epoch, leaving.moving),
            "moved": Owner("moved", 1, "s1"),
        }[says]
        keys = [b"taba:{0}:" + name for name in (b"states", b"clients", b"dead", b"scores", b"text", b"empty", b"fleeting")]
        lost = [(b"DEL", owner_key(0), *keys)]
        if said is not None:
            # all that was staged there, and more than the source has
            copies = [(b"SET", staging_prefix(0) + leaving.moving.encode() + b":%d" % n, b"x") for n in range(FIELDS)]
            lost += [(b"SET", owner_key(0), encode_owner(said)), *copies]
        await self.pools["s2"].execute(lost)

    async def comes_back_and_moves_anew(self, before: dict[bytes, Any]) -> None:
        self.assertEqual(await self.check_settled(0, ""), "s1")
        self.assertEqual(await self.content("s1", 0), before)
        # also where a Router had been told that it went to the second shard
        self.assertEqual(await self.router.read(0, [(b"HLEN", key(0, "states"))]), [FIELDS])
        self.assertEqual((await self.run_one(0, move(0, "s1", "s2", self.token()))).how, "moved")
        self.assertEqual(await self.content("s2", 0), before)
        self.assertEqual(await self.check_settled(0, ""), "s2")
        self.assertEqual(await self.router.read(0, [(b"HLEN", key(0, "states"))]), [FIELDS])

    async def test_what_the_target_lost_after_the_source_let_go_opens_there_again(self) -> None:
        for says in ("nothing", "arriving", "moved"):
            before = await self.killed_at("remove")
            self.assertEqual(await self.router.read(0, [(b"HLEN", key(0, "states"))]), [FIELDS])
            await self.lose(says)
            self.assertEqual((await self.run_one(0, tidy(0, "s1"))).how, "undone")
            await self.comes_back_and_moves_anew(before)

    async def test_a_mover_whose_target_loses_it_before_a_key_is_removed_takes_it_back(self) -> None:
        await self.prepare(buckets=8)
        await self.fill(0, FIELDS)
        before = await self.content("s1", 0)
        left = [1]

        async def watch(_: int, request: Any) -> None:
            if isinstance(request, Step) and request.name == "leave" and left[0]:
                left[0] -= 1
                content = await ask(self.pools["s2"], b"GET", owner_key(0))
                await ask(self.pools["s2"], b"FLUSHALL")
                self.assertEqual(decode_owner(content).state, "open")

        moved = await self.run_one(0, move(0, "s1", "s2", self.token()), watch=lambda *one: ensureDeferred(watch(*one)))
        self.assertEqual((moved.how, left), ("undone", [0]))
        self.assertEqual((await self.owners(0))["s1"], Owner("open", 4, "s1"))
        self.assertEqual(await self.content("s1", 0), before)

    async def test_what_was_removed_in_part_is_a_persons_and_opens_where_the_rest_is(self) -> None:
        before = await self.killed_at("unlink")
        await self.lose("arriving")
        with self.assertRaisesRegex(MoveFailed, "shard s2 has lost it, and s1 has removed a part of it: taba check --repair"):
            await self.run_one(0, tidy(0, "s1"))
        wrong = await check(self.pools, reactor, repair=True)
        self.assertIn("has left s1", " ".join(one.text for one in wrong))
        self.assertEqual((await self.owners(0))["s1"].state, "open")  # type: ignore[union-attr]
        self.assertEqual(await self.content("s1", 0), before)  # none of it was gone yet
        self.assertEqual(await check(self.pools, reactor), [])

    async def test_a_person_who_repairs_opens_what_is_whole_and_not_what_is_staged(self) -> None:
        for says in ("nothing", "arriving", "moved"):
            before = await self.killed_at("remove")
            await self.lose(says)
            self.assertNotEqual(await check(self.pools, reactor, repair=True), [])
            self.assertEqual(await check(self.pools, reactor), [])
            await self.comes_back_and_moves_anew(before)

    async def test_what_went_on_from_its_target_is_not_taken_back(self) -> None:
        await self.killed_at("remove", shards=3)
        await self.run_one(0, move(0, "s2", "s3", self.token("s3")))
        await self.pools["s2"].execute([(b"DEL", owner_key(0))])  # as after a move back to it that was undone
        self.assertEqual((await self.run_one(0, tidy(0, "s1"))).how, "finished")
        self.assertEqual(await self.check_settled(0, ""), "s3")
        self.assertEqual(await self.router.read(0, [(b"HLEN", key(0, "states"))]), [FIELDS])

    async def test_what_is_on_its_way_from_its_target_is_not_taken_back(self) -> None:
        await self.killed_at("remove", shards=3)

        def watch(_: int, request: Any) -> None:
            if isinstance(request, Step) and request.name == "staged":
                raise Killed

        with self.assertRaises(Killed):
            await self.run_one(0, move(0, "s2", "s3", self.token("s3")), watch=watch)
        self.assertEqual((await self.run_one(0, tidy(0, "s1"))).how, "finished")
        await self.end_what_is_left()
        self.assertEqual(await self.check_settled(0, ""), "s3")

    async def test_whoever_uses_the_store_takes_it_back_where_the_mover_is_gone(self) -> None:
        before = await self.killed_at("remove")
        await self.lose("arriving")
        self.patch(mending, "LOOK_SECONDS", 0.05)
        user = await self.new_router()
        self.assertEqual(await user.read(0, [(b"HLEN", key(0, "states"))]), [FIELDS])
        while user.atlas.in_hand:
            await deferLater(reactor, 0.02)
        self.assertEqual(user.counts["mended"], 1)
        await self.comes_back_and_moves_anew(before)
