"""The shard layer alone: what routing costs beside a plain connection, what a second shard brings, what each topology carries.

The traffic is that of cold fold cycles, without folding: for each of 64 buckets one transaction reads and writes 500 States of 400
bytes and a mark (see shard_worker.py). All stores listen on loopback and sync each write, but one: routing overhead compares the same
cycles on a server that keeps no file, whose syncs would hide it, through a Router and over plain connections: the best of three turns of
each in a round. With two workers, two processes send at once. A machine with two cores has none to spare for a second shard: there the
figure says what it costs, not what it brings.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks import budgets
from benchmarks.rows import Beside, Figure, Row, interleave
from benchmarks.services import Effort
from benchmarks.shard_worker import BUCKETS, STATES
from benchmarks.valkeys import Cluster, Sentinels, Valkey
from benchmarks.worker import Worker

TURNS = 3
SINGLE = (
    ("get", "a read of a string", budgets.READ_TIMES),
    ("hget", "a read of a field", budgets.READ_TIMES),
    ("set", "a write of a string", budgets.WRITE_TIMES),
    ("incr", "an increment", budgets.WRITE_TIMES),
)
DEPTHS = (1, 50)  # operations at once
WAYS = ("routed", "bare", "txredisapi")
UPDATES = BUCKETS * STATES  # of one worker in a round


def run(effort: Effort) -> list[Row]:
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="taba-benchmark-"))
        stack.callback(shutil.rmtree, directory, True)

        def store(count: int, **settings: str) -> str:
            valkeys = [Valkey(**settings) for _ in range(count)]
            for valkey in valkeys:
                stack.callback(valkey.remove)
            return "redis://" + ",".join(f"127.0.0.1:{valkey.port}" for valkey in valkeys)

        def workers(url: str, count: int, replicas: int = 0) -> list[Worker]:
            made = []
            for number in range(count):
                arguments = (url, str(number * 256), str(replicas))  # 256: of two shards, each worker has one to itself
                made.append(Worker("benchmarks.shard_worker", *arguments, environ=dict(os.environ), directory=directory))
                stack.callback(made[-1].stop)
                made[-1].ask("round")  # makes the States
            return made

        one, two = store(1), store(2)
        rounds = effort.pick(2, 9)
        rows = _overhead(workers(store(1, appendonly="no"), 1)[0], rounds, effort.pick(50, 300))
        rows += _shards({"1": workers(one, 2), "2": workers(two, 2)}, rounds)
        trio = Sentinels(masters=2)
        stack.callback(trio.remove)
        cluster = Cluster()
        stack.callback(cluster.remove)
        topologies = {
            "2 plain servers": workers(two, 1),
            "2 masters with a replica each, behind Sentinels": workers(trio.url, 1),
            "… and a replica waited for (--wait-replicas 1)": workers(trio.url, 1, 1),
            "Cluster of 3 primaries": workers(cluster.url, 1),
        }
        return rows + _topologies(topologies, rounds)


def _overhead(worker: Worker, rounds: int, singles: int) -> list[Row]:
    def excess() -> float:
        found = interleave({name: partial(worker.ask, name) for name in ("round", "direct")}, TURNS)
        return 100 * float(min(found["round"]) / min(found["direct"]) - 1)

    excesses = [excess() for _ in range(rounds)]
    rows = [Row(f"routing a cycle of {STATES} States, over plain connections", Figure.of(excesses), "% more time", budgets.ROUTING)]
    worker.ask("prepare")
    for operation, what, budget in SINGLE:
        for depth in DEPTHS:
            asked = {way: partial(worker.ask, "single", operation, way, singles * min(depth, 5), depth) for way in WAYS}
            how = "one after the other" if depth == 1 else f"{depth} at once"
            rows += _compared(f"{what}, {how}", asked, rounds, budget)
    many = {way: partial(worker.ask, "many", way == "routed", max(singles // 50, 1)) for way in WAYS[:2]}
    return rows + _compared("2,000 small keys (mget)", many, rounds, budgets.MANY_TIMES)


def _compared(name: str, ways: Mapping[str, Callable[[], list[float]]], rounds: int, budget: budgets.Budget) -> list[Row]:
    """What the Router takes, in times of what the same over a bare connection takes: the least of three turns of each, in each round."""
    by_the_wall: dict[str, list[float]] = {way: [] for way in ways}
    of_processor: dict[str, list[float]] = {way: [] for way in ways}
    seconds: list[float] = []
    for _ in range(rounds):
        found = interleave(ways, TURNS)
        least = {way: [min(part) for part in zip(*turns, strict=True)] for way, turns in found.items()}
        seconds.append(least["routed"][0])
        for way, (wall, processor) in least.items():
            by_the_wall[way].append(wall / least["bare"][0])
            of_processor[way].append(processor / least["bare"][1])
    microseconds = Figure.of(seconds).median * 1e6
    rows = []
    for figures, note, bound in ((by_the_wall, f"{microseconds:,.0f} µs", budget), (of_processor, "by processor time of the client", None)):
        peer = Beside("txredisapi's own connection", Figure.of(figures["txredisapi"])) if "txredisapi" in figures else None
        rows.append(
            Row(f"{name}, through the Router, over a bare connection", Figure.of(figures["routed"]), "×", bound, peer=peer, note=note)
        )
    return rows


def _together(workers: Sequence[Worker]) -> float:
    """State updates a second of all workers."""
    for worker in workers:
        worker.tell("round")
    slowest: float = max(worker.hear() for worker in workers)
    return UPDATES * len(workers) / slowest


def _shards(sets: dict[str, list[Worker]], rounds: int) -> list[Row]:
    found = interleave({name: partial(_together, its) for name, its in sets.items()}, rounds)
    one, two = Figure.of(found["1"]), Figure.of(found["2"])
    return [
        Row("2 plain shards, 2 workers", two, "State updates/s", peer=Beside("1 plain shard, 2 workers", one), note="on the same machine"),
    ]


def _topologies(sets: dict[str, list[Worker]], rounds: int) -> list[Row]:
    found = interleave({name: partial(_together, its) for name, its in sets.items()}, rounds)
    return [Row(f"{name}, 1 worker", Figure.of(samples), "State updates/s") for name, samples in found.items()]
