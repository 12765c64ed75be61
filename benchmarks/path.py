"""The whole path on this machine: client processes, Agent, Server and store, all real, all sharing its cores; then a query.

Latency: the clients record at a moderate rate for some seconds; the Server says how long it took from record to visible (`/v1/latency`,
from each event's time to the end of the transaction that made it visible). Throughput: the rate is raised step by step, without an end.
A step is sustained when nothing dropped and, once the clients have stopped, everything is visible within LAG_SECONDS (what P7 allows);
its rate is the events over all the time from the first record until the last event was visible, as queries show. The highest sustained
rate counts. A rate that is not sustained, or of which less than ENOUGH arrives, is asked TRIES times before the search ends there: a
machine that others use leaves nobody a tenth of a second now and then. In the end the Aggregates must hold exactly what the clients
counted: recorded less dropped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from typing import Any, NamedTuple

from benchmarks import budgets, machine
from benchmarks.rows import Figure, Row
from benchmarks.services import Effort, Services, pid_of, running
from benchmarks.worker import Worker, WorkerFailed

CLIENTS = 4
TABS = 100
# of each client: a busy machine may leave the Agent waiting for a tenth of a second, in which 8 MiB were full at 3 million events/s of one
RING_BYTES = 16 * 2**20
MODERATE_RATE = 50_000  # events/s
LAG_SECONDS = 5.0
VISIBLE_SECONDS = 60.0  # for all to be visible after a step that was too much
RATES = (1e6, 2e6, 4e6, 6e6, 8e6)  # events/s; and then as many more each time as RATE_STEP, until one is too much
RATE_STEP = 1e6
QUICK_RATES = (4e6, 8e6)
ENOUGH = 0.8  # of what is asked: below that the clients themselves are at their end
TRIES = 2


class Step(NamedTuple):
    """What came of one rate."""

    asked: float
    recorded: int
    dropped: int
    rate: float  # events/s, until all were visible
    lag: float  # seconds from the last record until all were visible
    cpu: dict[str, float]  # of each part, in cores, until all were visible

    @property
    def is_sustained(self) -> bool:
        return not self.dropped and self.lag <= LAG_SECONDS

    @property
    def broke(self) -> str:
        """Why no higher rate is worth a try; "" where one is."""
        if self.dropped:
            return f"{self.dropped:,} of {self.recorded + self.dropped:,} dropped"
        if self.lag > LAG_SECONDS:
            return f"{self.lag:.1f} s behind"
        return f"the clients recorded {self.rate / 1e6:.2f} M/s" if self.rate < ENOUGH * self.asked else ""

    def __str__(self) -> str:
        return f"{self.asked / 1e6:g} M asked: {self.rate / 1e6:.2f} M/s" + (f", {self.broke}" if self.broke else "")


def run(effort: Effort) -> list[Row]:
    with ExitStack() as stack:
        services = stack.enter_context(running(agent=True, TABA_RING_BYTES=str(RING_BYTES)))
        path = Path(services, stack)
        path.step(MODERATE_RATE / 10, 1.0)  # every Tab and State is made
        path.step(MODERATE_RATE, effort.pick(2.0, 15.0))
        latency = services.query.latency()
        steps: list[Step] = []
        for rate in iter(QUICK_RATES) if effort.is_quick else _rates():
            for _ in range(TRIES):
                steps.append(path.step(rate, effort.pick(2.0, 6.0)))
                if not steps[-1].broke:
                    break
            else:
                break
        is_exact = path.visible() == path.expected
    if not is_exact:
        raise WorkerFailed(f"the Aggregates have {path.visible()} events, the clients counted {path.expected}")
    return _rows(latency, steps, path)


def _rates() -> Iterator[float]:
    yield from RATES
    yield from count(RATES[-1] + RATE_STEP, RATE_STEP)


class Path:
    """The clients, and what they counted."""

    def __init__(self, services: Services, stack: ExitStack):
        self._services = services
        self.expected = 0
        self._workers = []
        for seed in range(CLIENTS):
            arguments = (str(TABS), str(seed))
            worker = Worker("benchmarks.ring_worker", *arguments, environ=services.environ, directory=services.directory)
            stack.callback(worker.stop)
            self._workers.append(worker)
        self._pids = {name: [pid_of(services, name)] for name in ("agent", "server", "store")}
        self._pids["clients"] = [worker.process.pid for worker in self._workers]

    def step(self, rate: float, seconds: float) -> Step:
        """Record at `rate` for `seconds`, and wait until all is visible."""
        used = {name: machine.cpu_seconds(pids) for name, pids in self._pids.items()}
        for worker in self._workers:
            worker.tell("pace", rate / CLIENTS, seconds)
        counted = [worker.hear() for worker in self._workers]
        began, ended = min(its["began"] for its in counted), max(its["ended"] for its in counted)
        recorded, dropped = sum(its["recorded"] for its in counted), sum(its["dropped"] for its in counted)
        self.expected += recorded
        deadline = time.monotonic() + VISIBLE_SECONDS
        while self.visible() != self.expected:
            if time.monotonic() > deadline:
                raise WorkerFailed(f"{self.visible()} of {self.expected} events are visible after {VISIBLE_SECONDS:.0f} s")
            time.sleep(0.05)
        now = time.time()
        cpu = {name: (machine.cpu_seconds(pids) - used[name]) / (now - began) for name, pids in self._pids.items()}
        return Step(rate, recorded, dropped, recorded / (now - began), now - ended, cpu)

    def visible(self) -> int:
        """Events in the Aggregates of all Tabs, as a query shows them."""
        found: dict[str, Any] = self._services.query.aggregates(match="benchmark.path.*")
        return sum(aggregate["pct"]["count"] for aggregate in found.values())


def _rows(latency: dict[str, Any], steps: list[Step], path: Path) -> list[Row]:
    sustained = [step for step in steps if step.is_sustained]
    best = max(sustained, key=lambda step: step.rate) if sustained else steps[0]
    note = f"at {MODERATE_RATE:,} events/s, of {CLIENTS} clients with {TABS} Tabs each"
    rows = [
        Row("record to visible, p50", Figure.of([latency["p50"]]), "s", note=note),
        Row("record to visible, p99", Figure.of([latency["p99"]]), "s", budgets.LATENCY),
        Row(
            "record to query, sustained",
            Figure.of([best.rate if sustained else 0.0]),
            "events/s",
            budgets.PATH,
            note=f"rings of {RING_BYTES >> 20} MiB; " + "; ".join(map(str, steps)),
        ),
        Row("… seconds until the last event was visible", Figure.of([best.lag]), "s"),
        Row("events counted and found, exactly", Figure.of([path.expected]), "events"),
    ]
    return rows + [Row(f"… CPU of the {name}", Figure.of([cores]), "cores") for name, cores in best.cpu.items()]
