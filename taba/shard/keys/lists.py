"""Lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from taba.shard.keys.amounts import count_of, place_of
from taba.shard.keys.at_once import AtOnce, counted
from taba.shard.keys.places import Text, plain
from taba.shard.keys.writing import MAYBE, THERE, Writing
from taba.shard.servers.connection import Command


class Lists(Writing):
    """Lists."""

    async def lrange(self, name: Text, first: int = 0, last: int = -1) -> list[bytes]:
        """The elements from `first` to `last`, inclusive; negative ones count from the end."""
        return list(await self._read(name, b"LRANGE", place_of("lrange", name, first), place_of("lrange", name, last)))

    async def llen(self, name: Text) -> int:
        return int(await self._read(name, b"LLEN"))

    async def lindex(self, name: Text, index: int) -> bytes | None:
        """The element at `index`; a negative one counts from the end. None where there is none."""
        found: bytes | None = await self._read(name, b"LINDEX", place_of("lindex", name, index))
        return found

    async def lpush(self, name: Text, *values: Text) -> int:
        """Put values before the first, one after the other; how many there are then."""
        return await self._push(name, values, b"LPUSH")

    async def rpush(self, name: Text, *values: Text) -> int:
        """Put values after the last; how many there are then."""
        return await self._push(name, values, b"RPUSH")

    async def lpop(self, name: Text, count: int = 1) -> list[bytes]:
        """Take up to `count` from the front, in order."""
        taken = count_of("lpop", name, count)
        return await self._pop(name, 0, taken - 1, taken, -1)

    async def rpop(self, name: Text, count: int = 1) -> list[bytes]:
        """Take up to `count` from the end, the last one first."""
        taken = count_of("rpop", name, count)
        return (await self._pop(name, -taken, -1, 0, -taken - 1))[::-1]

    async def ltrim(self, name: Text, first: int, last: int) -> None:
        """Keep only the elements from `first` to `last`, inclusive."""
        span = (place_of("ltrim", name, first), place_of("ltrim", name, last))

        def decide(key: bytes, replies: list[Any]) -> tuple[list[Command], None]:
            return [(b"LTRIM", key, *span)], None

        await self._write(name, [(b"LLEN",)], decide, MAYBE, AtOnce([b"LTRIM", *span], lambda *_: None))

    async def _push(self, name: Text, values: Sequence[Text], command: bytes) -> int:
        content = list(map(plain, values))

        def decide(key: bytes, replies: list[Any]) -> tuple[list[Command], int]:
            return ([(command, key, *content)] if content else []), int(replies[1]) + len(content)

        if not content:
            return int(await self._write(name, [(b"LLEN",)], decide, MAYBE))
        return int(await self._write(name, [(b"LLEN",)], decide, THERE, AtOnce([command, *content], counted)))

    async def _pop(self, name: Text, first: int, last: int, keep_first: int, keep_last: int) -> list[bytes]:
        def decide(key: bytes, replies: list[Any]) -> tuple[list[Command], list[bytes]]:
            trim = (b"LTRIM", key, b"%d" % keep_first, b"%d" % keep_last)
            return ([trim] if replies[1] else []), replies[1]

        return list(await self._write(name, [(b"LRANGE", b"%d" % first, b"%d" % last)], decide, MAYBE))
