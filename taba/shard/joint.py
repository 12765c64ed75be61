"""Several buckets of one server in one transaction, as in `together`, but with one update that decides for all of them at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from inspect import isawaitable
from typing import Any, NoReturn, cast

from taba.shard.atlas import Atlas
from taba.shard.buckets import BucketMap
from taba.shard.patience import Deadline
from taba.shard.servers.connection import Command, Connection
from taba.shard.servers.pool import Pool
from taba.shard.together import MOST_BUCKETS, BucketWork, Guarded, SharedTransaction
from taba.shard.transaction import MOST_READ_ROUNDS, MoreOfMany, Who, Writes, keys_read, keys_read_each

MAX_JOINED = MOST_BUCKETS

DecisionOfMany = Mapping[int, Writes] | MoreOfMany
UpdateOfMany = Callable[[dict[int, list[Any]]], "DecisionOfMany | Awaitable[DecisionOfMany]"]

_new_work = cast(Any, tuple.__new__)  # without the call of Python that a NamedTuple's own is: one for each bucket


def _decided_together(replies: list[Any]) -> NoReturn:
    raise AssertionError("one update decides for all")


def parts_of(reads: Mapping[int, Sequence[Command]]) -> dict[int, BucketWork]:
    """What a Joint takes, by bucket. Raises ValueError for what is no read of its bucket."""
    keys = keys_read_each(reads)
    return {
        bucket: _new_work(BucketWork, (bucket, its, _decided_together, own)) for (bucket, its), own in zip(reads.items(), keys, strict=True)
    }


class Joint(SharedTransaction):
    """One try of a transaction over the buckets of `parts` (see `parts_of`); what its update raises, it raises."""

    def __init__(
        self,
        atlas: Atlas,
        who: Who,
        map: BucketMap,
        pool: Pool,
        parts: Sequence[BucketWork],
        update: UpdateOfMany,
        deadline: Deadline,
    ):
        super().__init__(atlas, who, map, pool, parts, deadline)
        self._update = update

    async def _decisions(self, connection: Connection, guarded: Sequence[Guarded]) -> Sequence[Any]:
        replies = {part.bucket: own for part, _, own in guarded}
        update = self._update
        for _ in range(MOST_READ_ROUNDS):
            decision: Any = update(replies)
            if isawaitable(decision):
                decision = await self._deadline.not_counting(decision)
            if not isinstance(decision, MoreOfMany):
                return [decision.get(part.bucket) for part, _, _ in guarded]
            keys = [key for bucket, reads in decision.reads.items() for key in keys_read(bucket, reads)]
            flat = [command for reads in decision.reads.values() for command in reads]
            found = iter(await connection.watch(keys, flat, self._seconds()))
            replies = {bucket: [next(found) for _ in reads] for bucket, reads in decision.reads.items()}
            update = decision.update
        raise ValueError(f"an update that asks for more than {MOST_READ_ROUNDS} times")
