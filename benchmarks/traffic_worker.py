"""The floor of a cold fold: the store's traffic alone. Reads and writes what a Server's cycles do, and folds nothing.

`python -m benchmarks.traffic_worker STORE_URL STATES CLIENTS`; command: `round`, which answers the seconds that it took. Transactions
through `taba.shard`, each of as many buckets of the cold load as one of a Server's takes, and as many side by side: WATCH, and for each
bucket HMGET of a mark, of the Types and of the States; then MULTI, HSET of the mark and of the same States unchanged, HINCRBY, EXEC.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.task import react
from twisted.internet.threads import deferToThread

from benchmarks.cold import Cold
from benchmarks.worker import ANSWER_SECONDS
from taba.bounds import MAX_CYCLE_STATES
from taba.server import keys
from taba.server.fold.ingest import MAX_CYCLES
from taba.shard import Router, Writes, parse_store
from taba.shard.joint import MAX_JOINED
from taba.shard.servers.connection import Command
from taba.shard.transaction import Update

STREAM = bytes(16)  # of its own: it disturbs no Server's marks


async def traffic(router: Router, lot: Mapping[int, list[bytes]]) -> None:
    """One cycle's traffic, of these buckets and the fields of their States."""
    for answer in (await router.transact_each({bucket: _work(bucket, fields) for bucket, fields in lot.items()})).values():
        if isinstance(answer, Exception):
            raise answer


def _work(bucket: int, fields: list[bytes]) -> tuple[list[Command], Update]:
    tabs = list(dict.fromkeys(field.partition(b"\0")[0] for field in fields))
    reads: list[Command] = [
        (b"HMGET", keys.marks(bucket), STREAM),
        (b"HMGET", keys.tabs(bucket), *tabs),
        (b"HMGET", keys.states(bucket), *fields),
    ]

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

    return reads, update


def lots_of(fields: Mapping[int, list[bytes]]) -> list[dict[int, list[bytes]]]:
    """`fields`, by bucket, as cycles take them: at most MAX_JOINED buckets and MAX_CYCLE_STATES States, but always one bucket."""
    lots: list[dict[int, list[bytes]]] = []
    states = MAX_CYCLE_STATES
    for bucket, own in fields.items():
        if not lots or len(lots[-1]) == MAX_JOINED or states + len(own) > MAX_CYCLE_STATES:
            lots.append({})
            states = 0
        lots[-1][bucket] = own
        states += len(own)
    return lots


async def main(reactor: Any, store: str, states: str, clients: str) -> None:
    fields = Cold(int(states), int(clients)).fields()
    router = Router(parse_store(store), None, reactor)
    await router.connect()
    while line := await deferToThread(sys.stdin.readline):
        assert json.loads(line) == ["round"]
        left = lots_of(fields)

        async def work(left: list[dict[int, list[bytes]]] = left) -> None:
            while left:
                await traffic(router, left.pop())

        signal.alarm(int(ANSWER_SECONDS))  # with the store gone a round has no end, and whoever asked for it hears nothing of that
        start = time.perf_counter()
        await gatherResults([ensureDeferred(work()) for _ in range(MAX_CYCLES)])
        print(json.dumps(time.perf_counter() - start), flush=True)
        signal.alarm(0)
    await router.close()


if __name__ == "__main__":
    react(lambda reactor, *arguments: ensureDeferred(main(reactor, *arguments)), sys.argv[1:])
