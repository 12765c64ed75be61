"""The load of the cluster that Taba follows (2012), on this machine: 10 million events a minute from 300 Clients; a tenth; four times that.

Everything is real: 300 processes with a ring each, an Agent, a Server, its store, which syncs each write. Each of the Clients uses 1,000
of 10,000 Tabs by Zipf's law (exponent 1.1); of the Tabs 60 % are CounterGroup, 20 % PercentileGroup, 15 % Gauge, 5 % others. A rate is
held when nothing drops and all is visible in time once the Clients have stopped; where it is not, a row says how much is missing, and
no higher rate is tried. Rows come as they are measured. After the last rate what the Server says it folded, and what the
Aggregates hold, must be what the Clients counted, exactly; otherwise the run fails. Freshness is from each event's time to the end of
the transaction that made it visible, over the last minute of a rate (`--quick`: over all of its 15 s).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

from benchmarks import budgets, machine
from benchmarks.budgets import Budget
from benchmarks.cluster_worker import KINDS
from benchmarks.rows import Figure, Row
from benchmarks.services import Effort, Services, pid_of, running
from benchmarks.worker import Worker, WorkerFailed

CLIENTS = 300
RING_BYTES = 512 * 2**10  # of each: two seconds and more of the highest rate
# events a minute, seconds: in which all that is made once is made. 5,000 events of each Client: more than the 4,096 that it draws, and
# records again and again
LEARNING = 6e6, 15.0
# for all to be visible after a rate that was too much; the first makes all States, and may take the longer on however busy a machine
VISIBLE_SECONDS, QUICK_VISIBLE_SECONDS = 300.0, 30.0
PARTS = ("agent", "server", "store")
COUNTED = tuple(kind for kind in KINDS if kind.type in ("CounterGroup", "PercentileGroup"))  # whose Aggregates tell how many events


class Rate(NamedTuple):
    """Events a minute, for so many seconds; how fresh, and how much of the machine it may take."""

    minute: float
    seconds: float
    freshness: Budget
    cores: Budget | None


RATES = (
    Rate(1e6, 60.0, budgets.CLUSTER_TENTH_FRESHNESS, budgets.CLUSTER_TENTH_CORES),
    Rate(10e6, 600.0, budgets.CLUSTER_FRESHNESS, budgets.CLUSTER_CORES),
    Rate(40e6, 120.0, budgets.CLUSTER_FOURFOLD_FRESHNESS, None),
)
QUICK_SECONDS = 15.0  # of each rate


class Held(NamedTuple):
    """What came of one rate."""

    recorded: int
    dropped: int
    asked: float  # events that were asked for
    latency: dict[str, float | None]
    lag: float  # seconds from the last record until all were visible, or nobody waited any more
    missing: int  # events that were not folded then
    cores: dict[str, float]
    resident: dict[str, float]  # MiB


def run(effort: Effort) -> Iterator[Row]:
    with ExitStack() as stack:
        services = stack.enter_context(running(agent=True, TABA_RING_BYTES=str(RING_BYTES)))
        cluster, patience = Cluster(services, stack), effort.pick(QUICK_VISIBLE_SECONDS, VISIBLE_SECONDS)
        begun = cluster.hold(*LEARNING, VISIBLE_SECONDS)
        if begun.missing:
            seen = f"{begun.missing:,} of {begun.recorded:,} events are not visible {begun.lag:.0f} s after the last"
            raise WorkerFailed(f"not even what the Clients record to begin with is folded in time: {seen}")
        for rate in RATES:
            held = cluster.hold(rate.minute, effort.pick(QUICK_SECONDS, rate.seconds), patience)
            yield from _rows(rate, held)
            if held.missing:
                return  # what is asked from here on would be mixed with it
        yield cluster.check()


class Cluster:
    """The Clients, and what they counted since the beginning."""

    def __init__(self, services: Services, stack: ExitStack):
        self._services = services
        self.recorded = 0
        self._of_type = dict.fromkeys((kind.type for kind in KINDS), 0)
        self._dropped = 0
        self._worker = Worker("benchmarks.cluster_worker", str(CLIENTS), "0", environ=services.environ, directory=services.directory)
        stack.callback(self._worker.stop)
        self._pids = {name: pid_of(services, name) for name in PARTS}
        self._client_pids: list[int] = self._worker.ask("pids")

    def hold(self, minute: float, seconds: float, patience: float) -> Held:
        """Record at this rate, and wait until all is visible, or for so many seconds of `patience`."""
        counted, held = self.record(minute, seconds)
        visible, missing = self.wait(patience)
        return held._replace(lag=max(0.0, visible - counted["ended"]), missing=missing)

    def record(self, minute: float, seconds: float) -> tuple[dict[str, Any], Held]:
        """Record at this rate: what the Clients tell, and what came of it until they stopped."""
        used, clients = self._used()
        began = time.monotonic()
        self._worker.tell("pace", minute / 60, seconds)
        counted = self._worker.hear(seconds + 60)
        latency = self._services.query.latency(seconds=int(min(60, seconds)))  # of this rate alone
        resident = {name: machine.resident_mib(pid) for name, pid in self._pids.items()}
        now, theirs = self._used()
        passed = time.monotonic() - began
        self.recorded += counted["recorded"]
        for type, count in counted["counts"].items():
            self._of_type[type] += count
        self._dropped += counted["dropped"]
        cores = {name: (now[name] - used[name]) / passed for name in now} | {"clients": (theirs - clients) / passed}
        return counted, Held(counted["recorded"], counted["dropped"], minute / 60 * seconds, latency, 0.0, 0, cores, resident)

    def check(self) -> Row:
        """Whether each event of the Types that count is in a State: a row that says so, or that nothing was compared, as of events that
        dropped it is not known here whose they were. Raises WorkerFailed where one is not."""
        recorded = Figure.of([self.recorded])
        if self._dropped:
            note = f"{self._dropped:,} events dropped, and of which Tabs is not known here"
            return Row("events recorded; nothing was compared with States", recorded, "events", note=note)
        for kind in COUNTED:
            found = 0
            for leading in range(100):
                aggregates = self._services.query.aggregates(name=f"{kind.prefix}.{leading:02d}*")  # a glob
                found += sum(_count(aggregate) for aggregate in aggregates.values())
            if found != self._of_type[kind.type]:
                raise WorkerFailed(f"the {kind.type} Tabs have {found:,} events, their Clients counted {self._of_type[kind.type]:,}")
        return Row("events recorded, and found in States, exactly", recorded, "events")

    def wait(self, patience: float) -> tuple[float, int]:
        """When all was visible, in Unix seconds; or when nobody waited any more, and how many events were not."""
        deadline = time.monotonic() + patience
        while (found := self._services.query.status())["folded"] != self.recorded:
            if found["dead_letters"]:
                raise WorkerFailed(f"events became dead letters: {found['dead_letters_by_reason']}")
            if time.monotonic() > deadline:
                return time.time(), self.recorded - found["folded"]
            time.sleep(0.1)
        return time.time(), 0

    def _used(self) -> tuple[dict[str, float], float]:
        return {name: machine.cpu_seconds([pid]) for name, pid in self._pids.items()}, machine.cpu_seconds(self._client_pids)


def _count(aggregate: dict[str, Any]) -> int:
    """Of a CounterGroup all that ever was; of a PercentileGroup the last day, which is longer than any run."""
    count: int = aggregate["pct" if "pct" in aggregate else "1d"]["count"]
    return count


def _rows(rate: Rate, held: Held) -> list[Row]:
    title = f"{rate.minute / 1e6:g} M a minute"
    p50, p99 = held.latency["p50"] or 0.0, held.latency["p99"] or 0.0
    used = sum(held.cores[name] for name in PARTS)
    seen = f"{held.missing:,} not visible" if held.missing else "all visible"
    said = f"{held.recorded:,} events of {held.asked:,.0f} asked for, {held.dropped:,} dropped; {seen} {held.lag:.1f} s after the last"
    parts = ", ".join(f"{name} {held.cores[name]:.2f} ({held.resident[name]:.0f} MiB)" for name in PARTS)
    parts += f"; Clients {held.cores['clients']:.2f}"
    return [
        Row(f"{title}: record to visible, p50", Figure.of([p50]), "s", note=said),
        Row(f"{title}: … p99", Figure.of([p99]), "s", rate.freshness),
        Row(f"{title}: dropped", Figure.of([held.dropped]), "events", budgets.CLUSTER_DROPS),
        Row(f"{title}: not visible {held.lag:.0f} s after the last", Figure.of([held.missing]), "events", budgets.CLUSTER_DROPS),
        Row(f"{title}: cores beside the Clients", Figure.of([used]), "cores", rate.cores, note=parts),
    ]
