"""Buckets that were met in a move: whoever uses the store looks after them; and what is emptied while it moves."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import ensureDeferred

from taba.shard.buckets import Owner, encode_owner, make_token, owner_key
from taba.shard.moving.mending import Mender
from taba.shard.moving.move import move
from taba.shard.moving.mover import GROUP_BUCKETS, SIGNS_KEY
from taba.shard.moving.steps import Step
from tests.shard.moves import MoveCase, key
from tests.shard.pieces import always, ask


class InHand(MoveCase):
    async def test_what_a_dead_mover_left_has_its_turn_beside_all_that_a_living_one_has_in_hand(self) -> None:
        await self.prepare()
        await ask(self.pools["s1"], b"HSET", SIGNS_KEY, b"living", b"1")
        left = GROUP_BUCKETS
        for bucket in range(GROUP_BUCKETS + 1):
            by = "dead" if bucket == left else "living"
            moving = Owner("open", 1, "s1", make_token("s2", f"{by}-{bucket}"))
            await ask(self.pools["s1"], b"SET", owner_key(bucket), encode_owner(moving))
            await self.router.read(bucket, [(b"GET", key(bucket, "text"))])  # which meets it
        mender = Mender(self.router.atlas)
        for _ in range(2):
            await mender.look()
        self.assertEqual((await self.owners(left))["s1"], Owner("open", 3, "s1"))
        self.assertEqual(set(self.router.atlas.in_hand), set(range(GROUP_BUCKETS)))

    async def test_what_loses_its_last_part_while_it_moves_is_gone_where_it_arrives(self) -> None:
        await self.prepare()
        emptied: dict[str, tuple[tuple[bytes, ...], tuple[bytes, ...]]] = {
            "hash": ((b"HSET", key(0, "hash"), b"field", b"1"), (b"HDEL", key(0, "hash"), b"field")),
            "set": ((b"SADD", key(0, "set"), b"member"), (b"SREM", key(0, "set"), b"member")),
            "list": ((b"RPUSH", key(0, "list"), b"item"), (b"LPOP", key(0, "list"))),
        }
        source, target = "s1", "s2"
        for at in ("ready", "compare", "seal"):
            for name, (fill, empty) in emptied.items():
                await self.router.transact(0, [], always(fill, (b"SET", key(0, "text"), b"1")))
                left = [empty]

                def watch(_: int, request: Any, at: str = at, left: list[Any] = left) -> Any:
                    if isinstance(request, Step) and request.name == at and left:
                        return ensureDeferred(self.router.transact(0, [], always(left.pop())))
                    return None

                moved = await self.run_one(0, move(0, source, target, self.token(target)), watch=watch)
                self.assertEqual((moved.how, left), ("moved", []), (at, name))
                self.assertEqual(await self.content(target, 0), {key(0, "text"): (b"1", False)}, (at, name))
                source, target = target, source
        self.assertEqual(await self.check_settled(0, ""), source)

    async def test_what_is_filled_again_after_its_last_part_was_gone_arrives(self) -> None:
        await self.prepare()
        fill = (b"HSET", key(0, "hash"), b"old", b"1", b"older", b"2")
        await self.router.transact(0, [], always(fill, (b"SET", key(0, "text"), b"1")))
        left: dict[str, Any] = {
            "ready": (b"HDEL", key(0, "hash"), b"old", b"older"),
            "compare": (b"HSET", key(0, "hash"), b"new", b"3"),
        }

        def watch(_: int, request: Any) -> Any:
            command = left.pop(request.name, None) if isinstance(request, Step) else None
            return command and ensureDeferred(self.router.transact(0, [], always(command)))

        await self.run_one(0, move(0, "s1", "s2", self.token()), watch=watch)
        arrived = {key(0, "hash"): ({b"new": b"3"}, False), key(0, "text"): (b"1", False)}
        self.assertEqual((await self.content("s2", 0), left), (arrived, {}))
