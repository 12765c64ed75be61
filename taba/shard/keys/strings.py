"""Any key, strings and counters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from taba.shard.keys import amounts
from taba.shard.keys.amounts import what_of
from taba.shard.keys.at_once import AtOnce, counted
from taba.shard.keys.places import Text, plain
from taba.shard.keys.writing import GONE, MAYBE, THERE, Writing
from taba.shard.servers.connection import Command


class Strings(Writing):
    """Any key, strings and counters."""

    async def exists(self, name: Text) -> bool:
        return bool(await self._read(name, b"EXISTS"))

    async def delete(self, *names: Text) -> int:
        """How many of `names` were there; each goes in a transaction of its own."""
        removed = 0
        for name in names:
            removed += await self._write(
                name,
                [],
                lambda key, replies: ([(b"DEL", key)] if replies[0] else [], replies[0]),
                GONE,
                AtOnce([b"DEL"], counted),
            )
        return removed

    async def expire(self, name: Text, seconds: float | None) -> bool:
        """Let the key go after `seconds`, or never with None; False when there is no such key."""
        stays = None if seconds is None else amounts.milliseconds(what_of("expire", name), seconds)

        def decide(key: bytes, replies: list[Any]) -> tuple[list[Command], bool]:
            change = (b"PERSIST", key) if stays is None else (b"PEXPIRE", key, stays)
            return ([change] if replies[0] else []), bool(replies[0])

        words = [b"PERSIST"] if stays is None else [b"PEXPIRE", stays]
        return bool(await self._write(name, [], decide, MAYBE, AtOnce(words, lambda existed, _: existed)))

    async def ttl(self, name: Text) -> float | None:
        """Seconds until the key goes, `math.inf` where it never does; None when there is no such key."""
        left = int(await self._read(name, b"PTTL"))
        return None if left == -2 else math.inf if left == -1 else left / 1000

    async def type(self, name: Text) -> str | None:
        """What the key holds: string, hash, set, list or zset; None when there is no such key."""
        told: bytes = await self._read(name, b"TYPE")
        return None if told == b"none" else told.decode()

    async def get(self, name: Text) -> bytes | None:
        found: bytes | None = await self._read(name, b"GET")
        return found

    async def mget(self, names: Sequence[Text]) -> list[bytes | None]:
        """The values of `names`, in order, None for what is not there or no string; one round trip per shard."""
        return await self._read_strings(self._places_of(names))

    async def set(self, name: Text, value: Text, seconds: float | None = None, new: bool = False) -> bool:
        """Give `name` this value, for `seconds` or for ever. With `new` only where there was none; False when there was."""
        content = plain(value)
        words = [content] if seconds is None else [content, b"PX", amounts.milliseconds(what_of("set", name), seconds)]

        def decide(key: bytes, replies: list[Any]) -> tuple[list[Command], bool]:
            if new and replies[0]:
                return [], False
            return [(b"SET", key, *words)], True

        at_once = AtOnce([b"SET", *words, b"NX"] if new else [b"SET", *words], lambda _, text: text == b"OK")
        return bool(await self._write(name, [], decide, THERE, at_once))

    async def getdel(self, name: Text) -> bytes | None:
        """The value of `name`, which is removed."""

        def decide(key: bytes, replies: list[Any]) -> tuple[list[Command], bytes | None]:
            return ([(b"DEL", key)] if replies[0] else []), replies[1]

        found: bytes | None = await self._write(name, [(b"GET",)], decide, GONE)
        return found

    async def incr(self, name: Text, amount: int = 1) -> int:
        """Add to a counter, which begins at 0; the sum."""
        added = amounts.whole(what_of("incr", name), amount)

        def decide(key: bytes, replies: list[Any]) -> tuple[list[Command], int]:
            return [(b"INCRBY", key, b"%d" % added)], amounts.whole_sum(f"{name!r}", replies[1], added)

        at_once = AtOnce([b"INCRBY", b"%d" % added], counted, b"GET")
        return int(await self._write(name, [(b"GET",)], decide, THERE, at_once))

    async def incrbyfloat(self, name: Text, amount: float) -> float:
        """Add to a number, which begins at 0; the sum, which is finite. It is written so that it reads back exactly."""
        added = amounts.finite(what_of("incrbyfloat", name), amount)

        def decide(key: bytes, replies: list[Any]) -> tuple[list[Command], float]:
            total = amounts.finite_sum(f"{name!r}", replies[1], added)
            return [(b"SET", key, amounts.written(total), b"KEEPTTL")], total

        return float(await self._write(name, [(b"GET",)], decide))
