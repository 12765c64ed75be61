"""The floor of a cold fold: the store's traffic alone. Reads and writes what a Server's cycles do, and folds nothing.

`python -m benchmarks.traffic_worker STORE_URL STATES CLIENTS`; command: `round`, which answers the seconds that it took. For every
bucket of the cold load one transaction through `taba.shard`, as many side by side as a Server has: WATCH, MGET of a mark, HMGET of the
Types and of the States; then MULTI, SET of the mark, HSET of the same States unchanged, HINCRBY, EXEC.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.task import react
from twisted.internet.threads import deferToThread

from benchmarks.cold import Cold
from taba.server import keys
from taba.server.fold.ingest import MAX_CYCLES
from taba.shard import Router, Writes, parse_store

STREAM = bytes(16)  # of its own: it disturbs no Server's marks


async def traffic(router: Router, bucket: int, fields: list[bytes]) -> None:
    """One cycle's traffic."""
    tabs = list(dict.fromkeys(field.partition(b"\0")[0] for field in fields))
    reads = [(b"HMGET", keys.marks(bucket), STREAM), (b"HMGET", keys.tabs(bucket), *tabs), (b"HMGET", keys.states(bucket), *fields)]

    def update(replies: Sequence[Any]) -> Writes:
        written: list[bytes] = []
        for field, state in zip(fields, replies[2], strict=True):
            written += (field, state)
        return Writes(
            [
                (b"HSET", keys.marks(bucket), STREAM, bytes(20)),
                (b"HSET", keys.states(bucket), *written),
                (b"HINCRBY", keys.counts(bucket), b"benchmark", b"%d" % len(fields)),
            ]
        )

    await router.transact(bucket, reads, update)


async def main(reactor: Any, store: str, states: str, clients: str) -> None:
    fields = Cold(int(states), int(clients)).fields()
    router = Router(parse_store(store), None, reactor)
    await router.connect()
    while line := await deferToThread(sys.stdin.readline):
        assert json.loads(line) == ["round"]
        left = list(fields.items())

        async def work(left: list[tuple[int, list[bytes]]] = left) -> None:
            while left:
                await traffic(router, *left.pop())

        start = time.perf_counter()
        await gatherResults([ensureDeferred(work()) for _ in range(MAX_CYCLES)])
        print(json.dumps(time.perf_counter() - start), flush=True)
    await router.close()


if __name__ == "__main__":
    react(lambda reactor, *arguments: ensureDeferred(main(reactor, *arguments)), sys.argv[1:])
