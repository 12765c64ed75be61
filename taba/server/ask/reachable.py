"""Questions that take what can be reached: a bucket that is away is left out of the answer, and named beside it.

1. What is away is nothing to the question: no Tab, no Client, no State. Whoever asks so must be told which buckets that were.
2. A bucket that was away once stays so for the rest of the question: the wait for it is paid once.
"""

from __future__ import annotations

import json
from collections import UserDict
from collections.abc import Mapping, Sequence
from typing import Any

from taba.shard import Router
from taba.shard.servers.connection import Command
from taba.tokens import UNBOUND, Scope

MAX_NAMED_SHARDS = 20  # in the header that says what is away; of more, how many
MAX_WHY = 200  # characters of the reason that it gives for each
UNTOLD_SHARD = "?"  # what stands there for all shards, where whoever asks is not told which there are


class Away(UserDict[int, str]):
    """By bucket why it is away, as the bearer of a token of this scope is told it, whatever is written here."""

    def __init__(self, scope: Scope):
        self._scope = scope
        super().__init__()

    def __setitem__(self, bucket: int, why: str) -> None:
        super().__setitem__(bucket, self._scope.why(why))


class Reachable:
    """The buckets of `router` that answer, for one question of the bearer of a token; `away` has the others, and why."""

    def __init__(self, router: Router, scope: Scope = UNBOUND):
        self.away = Away(scope)
        self._router, self._scope = router, scope

    @property
    def buckets(self) -> int:
        return self._router.buckets

    async def read_many(self, reads: Mapping[int, Sequence[Command]]) -> Mapping[int, Sequence[Any]]:
        """By bucket the replies; those of a bucket that is away say that nothing is there."""
        asked = {bucket: commands for bucket, commands in reads.items() if bucket not in self.away}
        found = await self._router.read_many(asked, self.away) if asked else {}
        return {bucket: found[bucket] if bucket in found else [_nothing(command) for command in reads[bucket]] for bucket in reads}

    def header(self) -> dict[str, str]:
        """What an answer says beside itself: {"Taba-Away": {shard: {"buckets": …, "why": …}}}; nothing where nothing is away."""
        if not self.away:
            return {}
        by_shard: dict[str, list[int]] = {}
        for bucket in sorted(self.away):
            shard = UNTOLD_SHARD if self._scope.is_bound else self._router.map.shard_of(bucket)
            by_shard.setdefault(shard, []).append(bucket)
        said: dict[str, Any] = {
            shard: {"buckets": runs(buckets), "why": self.away[buckets[0]][:MAX_WHY]}
            for shard, buckets in list(by_shard.items())[:MAX_NAMED_SHARDS]
        }
        if len(by_shard) > MAX_NAMED_SHARDS:
            said["more"] = len(by_shard) - MAX_NAMED_SHARDS
        return {"Taba-Away": json.dumps(said)}

    def sentence(self) -> str:
        """The same for people; "" where nothing is away."""
        if not self.away:
            return ""
        why = next(iter(self.away.values()))
        return f"{len(self.away)} of {self.buckets} buckets are away and left out ({runs(sorted(self.away))}): {why}"[:500]


def runs(numbers: Sequence[int]) -> str:
    """Ascending whole numbers as text: 3,16-31."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in parts)


def _nothing(command: Command) -> Any:
    """What a store without this key would answer."""
    name = command[0].upper()
    if name == b"HMGET":
        return [None] * (len(command) - 2)
    if name in (b"HGETALL", b"SMEMBERS", b"LRANGE", b"HVALS"):
        return []
    raise ValueError(f"{name!r} is no read of a question")
