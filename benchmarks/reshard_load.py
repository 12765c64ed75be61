"""Re-sharding under load: from one shard to four and back to two while clients record RATE events/s and a reader asks without pause.

Everything is real: clients with rings, Agent, Server, four stores that sync each write, and `taba reshard` as users run it. In the end the
Aggregates must hold exactly what was recorded; meanwhile no query may fail, and no Tab's count may fall (a bucket that was read where it
no longer is would show a hole).
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from typing import Any

from benchmarks.ring_worker import tab_name
from benchmarks.rows import Figure, Row
from benchmarks.services import Effort, Services, running
from benchmarks.valkeys import Valkey
from benchmarks.worker import ROOT, Worker, WorkerFailed, wait_until
from taba.query import QueryError

RATE = 200_000  # events/s, of all clients
CLIENTS = 2
TABS = 200
RING_BYTES = 8 * 2**20
VISIBLE_SECONDS = 60.0
MOVE_SECONDS = 300.0
PAUSE_SECONDS = 0.02  # of the reader, which shares the machine with what it measures


def run(effort: Effort) -> list[Row]:
    with ExitStack() as stack:
        services = stack.enter_context(running(server=False, TABA_RING_BYTES=str(RING_BYTES)))
        stores = [Valkey() for _ in range(4)]
        for store in stores:
            stack.callback(store.remove)
        services.start_server(store=stores[0].url)
        services.start_agent()
        workers = []
        for seed in range(CLIENTS):
            worker = Worker("benchmarks.ring_worker", str(TABS), str(seed), environ=services.environ, directory=services.directory)
            stack.callback(worker.stop)
            workers.append(worker)
        reader = Reader(services)
        stack.callback(reader.stop)
        rate = effort.pick(RATE / 10, RATE)
        before, began = len(reader.seconds), time.monotonic()
        recorded = dropped = 0
        steps = [["--add", store.url] for store in stores[1:]] + [["--drain", "s1"], ["--drain", "s3"]]
        for step in steps:
            moving = _Moving(services, step)
            while True:  # the clients record for as long as it takes
                for worker in workers:
                    worker.tell("pace", rate / CLIENTS, 1.0)
                counted = [worker.hear() for worker in workers]
                recorded += sum(its["recorded"] for its in counted)
                dropped += sum(its["dropped"] for its in counted)
                if moving.is_over():
                    break
        seconds = time.monotonic() - began
        wait_until(lambda: _visible(services) == recorded, VISIBLE_SECONDS, f"not all of {recorded} events are visible, exactly", 0.2)
        reader.stop()
    if reader.wrong:
        raise WorkerFailed(f"queries while buckets moved: {reader.wrong[:5]}")
    asked = reader.seconds[before:]
    note = f"1 shard to 4 and back to 2 in {seconds:.0f} s; {rate:,.0f} events/s of {CLIENTS} clients with {TABS} Tabs; {dropped} dropped"
    return [
        Row("under load: events recorded and found, exactly", Figure.of([recorded]), "events", note=note),
        Row("… queries, none of which failed or showed a count that fell", Figure.of([len(asked)]), "queries"),
        Row("… seconds of a query", Figure.of(asked), "s"),
    ]


class Reader:
    """Asks for one Tab after the other in a thread of its own; `wrong` is what must not be."""

    def __init__(self, services: Services):
        self.seconds: list[float] = []
        self.wrong: list[str] = []
        self._query = services.query
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        counts: dict[str, int] = {}
        turn = 0
        while not self._is_over.wait(PAUSE_SECONDS):
            name = tab_name(turn % TABS)
            turn += 1
            began = time.perf_counter()
            try:
                aggregate: dict[str, Any] | None = self._query.aggregate(name)
            except QueryError as error:
                self.wrong.append(f"{name}: {error}")
                continue
            self.seconds.append(time.perf_counter() - began)
            count = aggregate["pct"]["count"] if aggregate else 0
            if count < counts.get(name, 0):
                self.wrong.append(f"{name}: {count} after {counts[name]}")
            counts[name] = count


class _Moving:
    """`taba reshard` with some options, under way."""

    def __init__(self, services: Services, options: list[str]):
        command = [sys.executable, "-m", "taba.cli.main", "reshard", *options]
        self._ends = time.monotonic() + MOVE_SECONDS
        self._process = subprocess.Popen(
            command, env=services.environ, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def is_over(self) -> bool:
        """Whether it has ended, well. Raises WorkerFailed."""
        code = self._process.poll()
        if code is None and time.monotonic() < self._ends:
            return False
        if code is None:
            self._process.kill()
        said = self._process.communicate()[1]
        if code:
            raise WorkerFailed(f"taba reshard: {said}")
        return True


def _visible(services: Services) -> int:
    found = services.query.aggregates(match="benchmark.path.*")
    return sum(aggregate["pct"]["count"] for aggregate in found.values())
