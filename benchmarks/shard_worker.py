"""Fold cycles' traffic through a Router, or without one: `python -m benchmarks.shard_worker STORE_URL FIRST_BUCKET REPLICAS`.

Commands: `round`, all cycles through `Router.transact`; `direct`, the same commands and as many at a time over plain connections, without
owner key, lease and map; each answers the seconds that it took. `single`, so many reads or writes of one small key each, one after the
other or many at once, and `many`, so many times 2,000 small keys at once; each through the Router, over a bare connection of its kind, or
(`single`) over txredisapi's own, answering seconds by the wall and of the processor for each. REPLICAS are waited for after each cycle.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import txredisapi
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
VALUE = b"x" * 20
STATE = bytes(range(200)) * 2  # a CounterGroup's in its first minutes


class Traffic:
    """The cycles of one worker."""

    def __init__(self, router: Router, pool: Pool, peer: Any, first: int):
        self._router, self._pool, self._peer = router, pool, peer
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

    # --- single operations: so many, `depth` of them at once ---

    def routed(self, operation: str) -> Callable[[int], Awaitable[Any]]:
        """What does `operation` on the number-th name, through the Router."""
        router = self._router
        if operation == "get":
            return lambda number: router.get(NAMES[number])
        if operation == "hget":
            return lambda number: router.hget(f"h{NAMES[number]}", b"field")
        if operation == "set":
            return lambda number: router.set(f"s{NAMES[number]}", VALUE)
        return lambda number: router.incr(f"c{NAMES[number]}")

    def direct(self, operation: str, ask: Callable[[Command], Awaitable[Any]]) -> Callable[[int], Awaitable[Any]]:
        """The same by `ask`, of one connection that knows nothing of buckets; what is written are keys of its own."""
        commands: list[Command] = []
        for name in NAMES:
            key = self._router.key(name if operation == "get" else f"{operation[0]}{name}")
            commands.append(
                {
                    "get": (b"GET", key),
                    "hget": (b"HGET", key, b"field"),
                    "set": (b"SET", b"bare:" + key, VALUE),
                    "incr": (b"INCRBY", b"bare:" + key, b"1"),
                }[operation]
            )
        return lambda number: ask(commands[number])

    async def prepare(self) -> None:
        """What is read is there, and every bucket was written to by this Router."""
        await self._router.mset({name: VALUE for name in NAMES})
        for start in range(0, len(NAMES), 100):
            names = NAMES[start : start + 100]
            await self._router.together(lambda within, names=names: [within.hset(f"h{name}", {"field": VALUE}) for name in names])  # type: ignore[misc]

    async def single(self, operation: str, way: str, count: int, depth: int) -> list[float]:
        """Seconds by the wall, and of this process's processor, for each operation; `way`: routed, bare or txredisapi."""
        async with self._pool.connection() as connection:
            if way == "routed":
                ask = self.routed(operation)
            elif way == "bare":
                ask = self.direct(operation, lambda command: connection.execute([command]))
            else:
                ask = self.direct(operation, lambda command: self._peer.execute_command(*command))
            numbers = iter([number % len(NAMES) for number in range(count)])

            async def work() -> None:
                for number in numbers:
                    await ask(number)

            wall, processor = time.perf_counter(), time.process_time()
            await gatherResults([ensureDeferred(work()) for _ in range(depth)])
            return [(time.perf_counter() - wall) / count, (time.process_time() - processor) / count]

    async def many(self, is_routed: bool, count: int) -> list[float]:
        """Likewise for each `mget` of all names; or for GETs of all in one write."""
        keys = [self._router.key(name) for name in NAMES]
        async with self._pool.connection() as connection:
            wall, processor = time.perf_counter(), time.process_time()
            for _ in range(count):
                if is_routed:
                    await self._router.mget(NAMES)
                else:
                    await connection.execute([(b"GET", key) for key in keys])
            return [(time.perf_counter() - wall) / count, (time.process_time() - processor) / count]


async def main(reactor: Any, store: str, first: str, replicas: str) -> None:
    url = parse_store(store)
    router = Router(url, None, reactor, wait_replicas=int(replicas))
    await router.connect()
    pool = Pool(reactor, url.addresses[0])
    peer = None
    if not url.addresses[0].topology:
        pool.start()
        address = url.addresses[0]
        peer = await txredisapi.Connection(address.host, address.port, reconnect=False, charset=None, convertNumbers=False)
    traffic = Traffic(router, pool, peer, int(first))
    commands: dict[str, Callable[..., Awaitable[Any]]] = {
        "round": lambda: traffic.all(traffic.cycle),
        "direct": lambda: traffic.all(traffic.direct_cycle),
        "prepare": traffic.prepare,
        "single": traffic.single,
        "many": traffic.many,
    }
    while line := await deferToThread(sys.stdin.readline):
        name, *arguments = json.loads(line)
        start = time.perf_counter()
        answer = await commands[name](*arguments)
        print(json.dumps(time.perf_counter() - start if answer is None else answer), flush=True)
    if peer is not None:
        await peer.disconnect()
    await pool.close()
    await router.close()


if __name__ == "__main__":
    react(lambda reactor, *arguments: ensureDeferred(main(reactor, *arguments)), sys.argv[1:])
