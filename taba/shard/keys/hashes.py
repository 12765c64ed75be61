"""Hashes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taba.shard.keys import amounts
from taba.shard.keys.amounts import what_of
from taba.shard.keys.at_once import AtOnce, counted
from taba.shard.keys.places import Text, pairs_of, plain
from taba.shard.keys.writing import MAYBE, THERE, Writing
from taba.shard.servers.connection import Command


class Hashes(Writing):
    """Hashes."""

    async def hget(self, name: Text, field: Text) -> bytes | None:
        found: bytes | None = await self._read(name, b"HGET", plain(field))
        return found

    async def hmget(self, name: Text, fields: Sequence[Text]) -> list[bytes | None]:
        return list(await self._read(name, b"HMGET", *map(plain, fields))) if fields else []

    async def hgetall(self, name: Text) -> dict[bytes, bytes]:
        return pairs_of(await self._read(name, b"HGETALL"))

    async def hlen(self, name: Text) -> int:
        return int(await self._read(name, b"HLEN"))

    async def hkeys(self, name: Text) -> list[bytes]:
        return list(await self._read(name, b"HKEYS"))

    async def hgetall_many(self, names: Sequence[Text]) -> list[dict[bytes, bytes]]:
        """The whole hashes of `names`, in order; one round trip per shard."""
        return [pairs_of(reply) for reply in await self._read_each(names, b"HGETALL")]

    async def hset(self, name: Text, fields: Mapping[Text, Text] | Mapping[str, Text] | Mapping[bytes, Text]) -> int:
        """Set fields; how many of them are new."""
        content = {plain(field): plain(value) for field, value in fields.items()}
        if not content:
            return 0

        pairs = [part for pair in content.items() for part in pair]

        def decide(key: bytes, replies: list[Any]) -> tuple[list[Command], int]:
            return [(b"HSET", key, *pairs)], replies[1].count(None)

        return int(await self._write(name, [(b"HMGET", *content)], decide, THERE, AtOnce([b"HSET", *pairs], counted)))

    async def hdel(self, name: Text, *fields: Text) -> int:
        """Remove fields; how many were there."""
        content = list(dict.fromkeys(map(plain, fields)))
        if not content:
            return 0

        def decide(key: bytes, replies: list[Any]) -> tuple[list[Command], int]:
            found = [field for field, value in zip(content, replies[1], strict=True) if value is not None]
            return ([(b"HDEL", key, *found)] if found else []), len(found)

        return int(await self._write(name, [(b"HMGET", *content)], decide, MAYBE, AtOnce([b"HDEL", *content], counted)))

    async def hincrby(self, name: Text, field: Text, amount: int = 1) -> int:
        """Add to a counter in a hash; the sum."""
        part = plain(field)
        added = amounts.whole(what_of("hincrby", name, field), amount)

        def decide(key: bytes, replies: list[Any]) -> tuple[list[Command], int]:
            return [(b"HINCRBY", key, part, b"%d" % added)], amounts.whole_sum(f"{field!r} of {name!r}", replies[1], added)

        at_once = AtOnce([b"HINCRBY", part, b"%d" % added], counted, b"HGET")
        return int(await self._write(name, [(b"HGET", part)], decide, THERE, at_once))
