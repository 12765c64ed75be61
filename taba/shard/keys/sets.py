"""Sets, and sorted sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taba.shard.keys import amounts
from taba.shard.keys.amounts import count_of, place_of, what_of
from taba.shard.keys.at_once import AtOnce, counted
from taba.shard.keys.places import MAX_PAGE_NAMES, Text, plain
from taba.shard.keys.writing import MAYBE, THERE, Writing
from taba.shard.servers.connection import Command


class Sets(Writing):
    """Sets, and sorted sets."""

    async def smembers(self, name: Text) -> frozenset[bytes]:
        return frozenset(await self._read(name, b"SMEMBERS"))

    async def smembers_many(self, names: Sequence[Text]) -> list[frozenset[bytes]]:
        """The sets of `names`, in order; one round trip per shard."""
        return [frozenset(reply) for reply in await self._read_each(names, b"SMEMBERS")]

    async def sismember(self, name: Text, member: Text) -> bool:
        return bool(await self._read(name, b"SISMEMBER", plain(member)))

    async def scard(self, name: Text) -> int:
        return int(await self._read(name, b"SCARD"))

    async def sadd(self, name: Text, *members: Text) -> int:
        """Add members; how many are new."""
        return await self._change_set(name, members, 0, b"SADD")

    async def srem(self, name: Text, *members: Text) -> int:
        """Remove members; how many were there."""
        return await self._change_set(name, members, 1, b"SREM")

    async def _change_set(self, name: Text, members: Sequence[Text], wanted: int, command: bytes) -> int:
        content = list(dict.fromkeys(map(plain, members)))
        if not content:
            return 0

        def decide(key: bytes, replies: list[Any]) -> tuple[list[Command], int]:
            changed = [member for member, there in zip(content, replies[1], strict=True) if there == wanted]
            return ([(command, key, *changed)] if changed else []), len(changed)

        after = MAYBE if command == b"SREM" else THERE
        return int(await self._write(name, [(b"SMISMEMBER", *content)], decide, after, AtOnce([command, *content], counted)))

    async def zadd(self, name: Text, scores: Mapping[Text, float] | Mapping[str, float] | Mapping[bytes, float]) -> int:
        """Give members their scores; how many of them are new."""
        content = {plain(member): _score("zadd", name, member, score) for member, score in scores.items()}
        if not content:
            return 0
        pairs = [part for member, score in content.items() for part in (score, member)]

        def decide(key: bytes, replies: list[Any]) -> tuple[list[Command], int]:
            return [(b"ZADD", key, *pairs)], replies[1].count(None)

        return int(await self._write(name, [(b"ZMSCORE", *content)], decide, THERE, AtOnce([b"ZADD", *pairs], counted)))

    async def zincrby(self, name: Text, member: Text, amount: float) -> float:
        """Add to the score of a member, which begins at 0; the sum."""
        part = plain(member)
        added = amounts.finite(what_of("zincrby", name, member), amount)

        def decide(key: bytes, replies: list[Any]) -> tuple[list[Command], float]:
            total = amounts.finite_sum(f"{member!r} of {name!r}", replies[1], added)
            return [(b"ZADD", key, amounts.written(total), part)], total

        return float(await self._write(name, [(b"ZSCORE", part)], decide))

    async def zrem(self, name: Text, *members: Text) -> int:
        """Remove members; how many were there."""
        content = list(dict.fromkeys(map(plain, members)))
        if not content:
            return 0

        def decide(key: bytes, replies: list[Any]) -> tuple[list[Command], int]:
            found = [member for member, score in zip(content, replies[1], strict=True) if score is not None]
            return ([(b"ZREM", key, *found)] if found else []), len(found)

        return int(await self._write(name, [(b"ZMSCORE", *content)], decide, MAYBE, AtOnce([b"ZREM", *content], counted)))

    async def zscore(self, name: Text, member: Text) -> float | None:
        found = await self._read(name, b"ZSCORE", plain(member))
        return None if found is None else float(found)

    async def zcard(self, name: Text) -> int:
        return int(await self._read(name, b"ZCARD"))

    async def zrank(self, name: Text, member: Text) -> int | None:
        """How many members come before `member`, by score and then by bytes; None where it is none."""
        found: int | None = await self._read(name, b"ZRANK", plain(member))
        return found

    async def zrange(self, name: Text, first: int = 0, last: int = -1, reverse: bool = False) -> list[tuple[bytes, float]]:
        """(member, score) from `first` to `last`, inclusive, by score; negative ones count from the end. `reverse`: highest first."""
        command = b"ZREVRANGE" if reverse else b"ZRANGE"
        span = (place_of("zrange", name, first), place_of("zrange", name, last))
        return _scored(await self._read(name, command, *span, b"WITHSCORES"))

    async def zrangebyscore(self, name: Text, low: float, high: float, count: int = MAX_PAGE_NAMES) -> list[tuple[bytes, float]]:
        """(member, score) of up to `count` members whose scores lie between `low` and `high`, inclusive; the lowest first.

        Raises ValueError for a `count` below 1: a server takes it for all there are.
        """
        limits = (b"LIMIT", b"0", b"%d" % count_of("zrangebyscore", name, count))
        span = (amounts.written(amounts.fraction(what_of("zrangebyscore", name), bound)) for bound in (low, high))
        return _scored(await self._read(name, b"ZRANGEBYSCORE", *span, b"WITHSCORES", *limits))


def _score(operation: str, name: Text, member: Text, score: float) -> bytes:
    return amounts.written(amounts.fraction(what_of(operation, name, member), score))


def _scored(reply: Sequence[bytes]) -> list[tuple[bytes, float]]:
    return [(member, float(score)) for member, score in zip(reply[::2], reply[1::2], strict=True)]
