"""A store's content, and writers that never stop: `python -m benchmarks.reshard_worker STORE_URL`.

Commands: `fill LARGE_BUCKETS LARGE_BYTES SMALL_BYTES`; `write`, which starts to write all buckets in turn, as fold cycles do; `waits`,
which answers, for all writes since `write` or the last `waits`, [bucket, seconds] of each.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import deferLater, react
from twisted.internet.threads import deferToThread

from taba.shard import Router, Writes, parse_store

VALUE = 2500  # bytes: a CounterGroup State with a full day
WRITTEN = 20  # States in one write
LOT = 400  # States in one write while filling
WRITERS = 8
PAUSE_SECONDS = 0.01  # of each writer between two writes


def states(bucket: int) -> bytes:
    return b"taba:{%d}:states" % bucket


class Writers:
    def __init__(self, router: Router, reactor: Any):
        self._router, self._reactor = router, reactor
        self._random = random.Random(1)
        self._fields: dict[int, int] = {}
        self._waits: list[tuple[int, float]] = []
        self._running: list[Deferred[None]] = []

    async def fill(self, large: int, large_bytes: int, small_bytes: int) -> int:
        """Give each bucket its content, `large` of them, spread evenly, more than the others; the bytes of all."""
        buckets = self._router.buckets
        places = {number * buckets // large for number in range(large)} if large else set()
        for bucket in range(buckets):
            count = self._fields[bucket] = max((large_bytes if bucket in places else small_bytes) // VALUE, WRITTEN)
            for start in range(0, count, LOT):
                await self._write(bucket, range(start, min(start + LOT, count)))
        return sum(self._fields.values()) * VALUE

    async def write(self) -> None:
        """Begin to write all buckets in turn."""
        self._running = [ensureDeferred(self._go_on(number)) for number in range(WRITERS)]

    async def waits(self) -> list[tuple[int, float]]:
        found, self._waits = self._waits, []
        return found

    async def _go_on(self, number: int) -> None:
        bucket = number
        while True:
            bucket = (bucket + WRITERS) % self._router.buckets if bucket + WRITERS < self._router.buckets else number
            start = self._random.randrange(self._fields[bucket] - WRITTEN + 1)
            began = time.perf_counter()
            await self._write(bucket, range(start, start + WRITTEN))
            self._waits.append((bucket, time.perf_counter() - began))
            await deferLater(self._reactor, PAUSE_SECONDS)

    async def _write(self, bucket: int, fields: range) -> None:
        names = [b"tab%d\0web/%d" % divmod(field, 50) for field in fields]

        def update(_: Any) -> Writes:
            return Writes([(b"HSET", states(bucket), *[part for name in names for part in (name, self._random.randbytes(VALUE))])])

        await self._router.transact(bucket, [(b"HMGET", states(bucket), *names)], update)


async def main(reactor: Any, store: str, buckets: str) -> None:
    router = Router(parse_store(store), int(buckets), reactor)
    await router.connect()
    writers = Writers(router, reactor)
    commands: dict[str, Callable[..., Awaitable[Any]]] = {"fill": writers.fill, "write": writers.write, "waits": writers.waits}
    while line := await deferToThread(sys.stdin.readline):
        command, *arguments = json.loads(line)
        print(json.dumps(await commands[command](*arguments)), flush=True)


if __name__ == "__main__":
    react(main, sys.argv[1:])
