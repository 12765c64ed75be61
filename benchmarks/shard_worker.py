"""Fold cycles' traffic through a Router, or without one: `python -m benchmarks.shard_worker STORE_URL FIRST_BUCKET REPLICAS`.

Commands: `round`, all cycles through `Router.transact`; `direct`, the same commands and as many at a time over plain connections, without
owner key, lease and map; `gets` and `direct_gets`, so many reads of one small key, one after the other; `increments` and
`direct_increments`, likewise; `many` and `direct_many`, so many times 2,000 small keys at once. Each answers the seconds that it
took. REPLICAS are waited for after each cycle.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.task import react
from twisted.internet.threads import deferToThread

from taba.server.fold.ingest import MAX_CYCLES
from taba.shard import Command, Router, Writes, parse_store
from taba.shard.buckets import prefix_of
from taba.shard.servers.pool import Pool

BUCKETS = 64  # of one worker; a cycle for each in a round
STATES = 500  # in a cycle
NAMES = [f"benchmark.{number}" for number in range(2000)]
STATE = bytes(range(200)) * 2  # a CounterGroup's in its first minutes


class Traffic:
    """The cycles of one worker."""

    def __init__(self, router: Router, pool: Pool, first: int):
        self._router, self._pool = router, pool
        self._buckets = range(first, first + BUCKETS)
        self._fields = [b"benchmark.tab.%03d\0web-1/%d" % (number % 100, number // 100) for number in range(STATES)]

    def _reads(self, bucket: int) -> list[Command]:
        prefix = prefix_of(bucket)
        return [(b"GET", prefix + b"mark:benchmark"), (b"HMGET", prefix + b"states", *self._fields)]

    def _writes(self, bucket: int, replies: Sequence[Any]) -> list[Command]:
        prefix = prefix_of(bucket)
        written: list[bytes] = []
        for field, state in zip(self._fields, replies[1], strict=True):
            written += (field, state or STATE)
        return [(b"SET", prefix + b"mark:benchmark", b"%d" % (int(replies[0] or 0) + 1)), (b"HSET", prefix + b"states", *written)]

    async def cycle(self, bucket: int) -> None:
        await self._router.transact(bucket, self._reads(bucket), lambda replies: Writes(self._writes(bucket, replies)))

    async def direct_cycle(self, bucket: int) -> None:
        reads = self._reads(bucket)
        async with self._pool.connection() as connection:
            replies = await connection.watch([command[1] for command in reads], reads)
            assert await connection.commit(self._writes(bucket, replies)) is not None

    async def all(self, cycle: Callable[[int], Awaitable[None]]) -> None:
        left = list(self._buckets)

        async def work() -> None:
            while left:
                await cycle(left.pop())

        await gatherResults([ensureDeferred(work()) for _ in range(MAX_CYCLES)])

    async def gets(self, count: int) -> None:
        for _ in range(count):
            await self._router.get("benchmark")

    async def direct_gets(self, count: int) -> None:
        key = self._router.key("benchmark")
        async with self._pool.connection() as connection:
            for _ in range(count):
                await connection.execute([(b"GET", key)])

    async def increments(self, count: int) -> None:
        for _ in range(count):
            await self._router.incr("benchmark.counter")

    async def direct_increments(self, count: int) -> None:
        key = self._router.key("benchmark.direct")
        async with self._pool.connection() as connection:
            for _ in range(count):
                await connection.execute([(b"INCR", key)])

    async def many(self, count: int) -> None:
        for _ in range(count):
            await self._router.mget(NAMES)

    async def direct_many(self, count: int) -> None:
        keys = [self._router.key(name) for name in NAMES]
        async with self._pool.connection() as connection:
            for _ in range(count):
                await connection.execute([(b"GET", key) for key in keys])


async def main(reactor: Any, store: str, first: str, replicas: str) -> None:
    url = parse_store(store)
    router = Router(url, None, reactor, wait_replicas=int(replicas))
    await router.connect()
    pool = Pool(reactor, url.addresses[0])
    if not url.addresses[0].topology:
        pool.start()
    traffic = Traffic(router, pool, int(first))
    commands: dict[str, Callable[..., Awaitable[None]]] = {
        "round": lambda: traffic.all(traffic.cycle),
        "direct": lambda: traffic.all(traffic.direct_cycle),
        "gets": traffic.gets,
        "direct_gets": traffic.direct_gets,
        "increments": traffic.increments,
        "direct_increments": traffic.direct_increments,
        "many": traffic.many,
        "direct_many": traffic.direct_many,
    }
    while line := await deferToThread(sys.stdin.readline):
        name, *arguments = json.loads(line)
        start = time.perf_counter()
        await commands[name](*arguments)
        print(json.dumps(time.perf_counter() - start), flush=True)
    await pool.close()
    await router.close()


if __name__ == "__main__":
    react(lambda reactor, *arguments: ensureDeferred(main(reactor, *arguments)), sys.argv[1:])
