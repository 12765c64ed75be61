"""Re-sharding: from one shard to two while every bucket is written, buckets of 50 MB among them; then what it took, and who waited.

Two real stores that sync each write, one process that writes all buckets in turn as fold cycles do (20 States of 2,500 bytes each),
and `taba reshard --add` as users run it. A bucket's wait is the longest of all its writes while the buckets moved: copying, the seal,
finding the new shard, and whatever the machine was busy with; beside it the longest in as much time when nothing moved.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks import budgets
from benchmarks.rows import Beside, Figure, Row
from benchmarks.services import Effort
from benchmarks.valkeys import Valkey
from benchmarks.worker import ROOT, Worker, WorkerFailed

LARGE_BYTES = 50 * 10**6
SMALL_BYTES = 10**6
BUCKETS = 64
MOVE_SECONDS = 600.0


def run(effort: Effort) -> list[Row]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="taba-bench-")))
        first, second = (Valkey() for _ in range(2))
        for valkey in (first, second):
            stack.callback(valkey.remove)
        worker = Worker("benchmarks.reshard_worker", first.url, str(BUCKETS), environ=os.environ, directory=directory)
        stack.callback(worker.stop)
        total = worker.ask("fill", effort.pick(2, 8), effort.pick(2 * 10**6, LARGE_BYTES), effort.pick(10**5, SMALL_BYTES), seconds=300)
        worker.ask("write")
        time.sleep(1.0)
        worker.ask("waits")  # what came while it warmed up
        started = time.monotonic()
        moved = _reshard(first.url, second.url)
        seconds = time.monotonic() - started
        moving = worker.ask("waits")
        time.sleep(seconds)
        still = worker.ask("waits")
    return _rows(total, moved, seconds, moving, still)


def _reshard(store: str, added: str) -> dict[str, int]:
    command = [sys.executable, "-m", "taba.cli.main", "reshard", "--store", store, "--add", added, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=ROOT, timeout=MOVE_SECONDS)
    if done.returncode:
        raise WorkerFailed(f"taba reshard: {done.stderr}")
    moved: dict[str, int] = json.loads(done.stdout)
    return moved


Waits = Sequence[tuple[int, float]]  # bucket, seconds


def _rows(total: int, moved: dict[str, int], seconds: float, moving: Waits, still: Waits) -> list[Row]:
    copied = moved["bytes"]
    note = f"{moved['moved']} of {BUCKETS} buckets, {copied / 1e6:.0f} MB copied of {total / 1e6:.0f} MB; all written meanwhile"
    rows = [
        Row("re-sharding, bandwidth", Figure.of([copied / 1e6 / seconds]), "MB/s", note=note),
        Row("re-sharding, time per GB moved", Figure.of([seconds / copied * 1e9]), "s"),
    ]
    ours, theirs = _longest(moving), _longest(still)
    for share, budget in ((0.5, None), (0.99, budgets.BUCKET_WAIT)):
        beside = Beside("while nothing moves", Figure.of([1000 * _quantile(theirs, share)]))
        name = f"longest wait of a bucket's writer, p{share * 100:g} of the buckets"
        rows.append(Row(name, Figure.of([1000 * _quantile(ours, share)]), "ms", budget, peer=beside))
    beside = Beside("while nothing moves", Figure.of([1000 * _quantile([wait for _, wait in still], 0.99)]))
    rows.append(Row("a write, p99 of all", Figure.of([1000 * _quantile([wait for _, wait in moving], 0.99)]), "ms", peer=beside))
    return rows


def _longest(waits: Waits) -> list[float]:
    found: dict[int, float] = {}
    for bucket, wait in waits:
        found[bucket] = max(found.get(bucket, 0.0), wait)
    return list(found.values())


def _quantile(waits: Sequence[float], share: float) -> float:
    return statistics.quantiles(waits, n=100, method="inclusive")[round(share * 100) - 1]
