"""Whether an event, a column, a State costs the same however many there are, and what an outage costs after it.

What an event costs depends on how many come together for one (Client, Tab): so that is held equal. The Agent drains 20 events a column:
16 rings with the same 100 Tabs, then 16 rings with 6,250 and (not with `--quick`) 62,500 Tabs each, all different. All figures of the
Server are its process's own processor time, for one event for each of as many known States: of 100 Tabs and of so many that each has one
Client; of one Client and of 300; on one shard and on four; in batches of five States by one Agent and by a thousand, whose streams are
all open. Catching up: clients record at a steady rate, the Server is gone for a while, and the rate goes on once it is back; the figure
is how many events are folded a second from when the Agent has an answer again until nothing is behind, beside how many still come; where
all that waits is in the outbox, and where a small outbox has no room for most, which the spool has. How long the Agent left the Server
alone before, by its back-off, is a row of its own: that follows from how long the Server was gone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

from benchmarks import budgets, machine
from benchmarks.agent import RINGS, Draining
from benchmarks.budgets import Budget
from benchmarks.cold import ByBucket, spread
from benchmarks.holding import CODE, Held
from benchmarks.rows import Figure, Row, interleave
from benchmarks.sending import CONNECTIONS, Envelope, Sender, Streams
from benchmarks.services import Effort, Services, asking, pid_of, running
from benchmarks.valkeys import Valkey
from benchmarks.worker import Worker, wait_until
from taba.bounds import DEFAULT_BUCKETS, MiB

FEW, MANY, MOST = 100, 100_000, 1_000_000  # Tabs
COLUMN_EVENTS = 20
RING_BYTES = 4 * 2**20  # of each client: its records hold 20 events of 6,250 Tabs
MOST_RING_BYTES = 64 * 2**20  # … and of 62,500
ENVELOPE_BYTES = 2**18
CLIENTS = 300
SHARDS = 4
AGENTS = 1_000
THIN_BUCKETS, THIN_STATES = 8, 5  # of each Agent, and of its batches
RECORDERS, RECORDED_TABS, RATE = 4, 100, 100_000  # while the Server is away; events a second of all together
SPOOLED_RATE, SPOOLED_TABS = 1_000_000, 2_000  # where most of what waits goes into the spool
SPOOLED_RING_BYTES = 32 * MiB  # of each: eight seconds
SMALL_OUTBOX = 16 * MiB
PACED_RING_BYTES = 4 * 2**20  # of each: seven seconds of the rate, for a recorder that the machine keeps waiting makes up for it at once
FRESH_SECONDS = 2.0  # what comes in so long is under way, and not behind
VISIBLE_SECONDS = 60.0  # for all to be visible in the end


def run(effort: Effort) -> Iterator[Row]:
    for part in PARTS.values():
        yield from part(effort)


def _agent(effort: Effort) -> list[Row]:
    sizes = effort.pick((FEW, MANY // 10), (FEW, MANY, MOST))
    rounds = effort.pick(2, 5)
    with ExitStack() as stack:
        services = stack.enter_context(running(server=False, TABA_RING_BYTES=str(effort.pick(RING_BYTES, MOST_RING_BYTES))))
        drainings = {tabs: _draining(stack, services, tabs) for tabs in sizes}
        events = {tabs: (tabs if tabs == FEW else tabs // RINGS) * COLUMN_EVENTS for tabs in sizes}  # a ring

        def drain(tabs: int) -> float:
            draining = drainings[tabs]
            draining.fill(events[tabs])
            seconds = draining.drain()
            draining.acknowledge()
            return seconds / (RINGS * events[tabs]) * 1e9

        found = _grown({f"{tabs:,} Tabs": lambda tabs=tabs: drain(tabs) for tabs in sizes}, rounds)  # type: ignore[misc]
    return _rows(f"Agent, {COLUMN_EVENTS} events a column", "ns/event", found)


def _draining(stack: ExitStack, services: Services, tabs: int) -> Draining:
    if tabs == FEW:
        return Draining(stack, services.environ, services.directory, FEW)
    return Draining(stack, services.environ, services.directory, tabs // RINGS, apart=True)


class Load:
    """States of a Server, each of which gets an event in a round."""

    def __init__(self, services: Services, sender: Sender, tabs: int, clients: int):
        self._sender, self._tabs, self._clients = sender, tabs, clients
        self._streams, self._pid = Streams(), pid_of(services, "server")

    def fold(self) -> float:
        """Nanoseconds of the Server's processor time a State."""
        dealt = self._streams.envelopes(spread(self._tabs, self._clients, time.time()), ENVELOPE_BYTES)
        return _cost(self._pid, self._sender, dealt) / (self._tabs * self._clients)


def _cost(pid: int, sender: Sender, dealt: list[list[Envelope]]) -> float:
    before = machine.cpu_seconds([pid])
    sender.send(dealt)
    return (machine.cpu_seconds([pid]) - before) * 1e9


def _states(effort: Effort) -> list[Row]:
    many, rounds = effort.pick(MANY // 10, MANY), effort.pick(2, 4)
    rows: list[Row] = []
    with running() as services, closing(Sender(services.server_url)) as sender:
        few, all_of_one = Load(services, sender, FEW, many // FEW), Load(services, sender, many, 1)
        rows += _rows(f"Server, {many:,} States", "ns/State", _grown({f"{FEW} Tabs": few.fold, f"{many:,} Tabs": all_of_one.fold}, rounds))
        states = many * 3 // 10
        one, others = Load(services, sender, states, 1), Load(services, sender, states // CLIENTS, CLIENTS)
        rows += _rows(f"Server, {states:,} States", "ns/State", _grown({"1 Client": one.fold, f"{CLIENTS} Clients": others.fold}, rounds))
    if not effort.is_quick:
        with running() as services, closing(Sender(services.server_url)) as sender:
            small, large = Load(services, sender, FEW, MANY // FEW), Load(services, sender, MOST, 1)
            found = _grown({f"{MANY:,} States": small.fold, f"{MOST:,} States": large.fold}, 2)
            rows += _rows("Server, one event for each", "ns/State", found)
    return rows


def _shards(effort: Effort) -> list[Row]:
    states, rounds = effort.pick(5_000, 50_000), effort.pick(2, 5)
    with ExitStack() as stack:
        loads: dict[str, Callable[[], float]] = {}
        for count in (1, SHARDS):
            valkeys = [Valkey() for _ in range(count)]
            for valkey in valkeys:
                stack.callback(valkey.remove)
            services = stack.enter_context(running(server=False))
            services.start_server("redis://" + ",".join(f"127.0.0.1:{valkey.port}" for valkey in valkeys))
            sender = stack.enter_context(closing(Sender(services.server_url)))
            loads[f"{count} shard{'s' * (count > 1)}"] = Load(services, sender, states // 50, 50).fold
        return _rows(f"Server, {states:,} States", "ns/State", _grown(loads, rounds))


def _agents(effort: Effort) -> list[Row]:
    count, rounds = effort.pick(20, AGENTS), effort.pick(2, 3)
    thin = _thin()
    own = [{bucket: [its._replace(client=f"web-{agent:04d}/1") for its in of] for bucket, of in thin.items()} for agent in range(count)]
    states = count * THIN_BUCKETS * THIN_STATES
    with running() as services, closing(Sender(services.server_url)) as sender:
        pid = pid_of(services, "server")
        one, others = Streams(1), [Streams(1) for _ in range(count)]

        def alone() -> float:
            """All from one Agent, one envelope after the other."""
            return _cost(pid, sender, [[envelope for its in own for envelope in one.envelopes(its)[0]]]) / states

        def together() -> float:
            dealt: list[list[Envelope]] = [[] for _ in range(CONNECTIONS)]
            for place, (streams, its) in enumerate(zip(others, own, strict=True)):
                dealt[place % CONNECTIONS] += streams.envelopes(its)[0]
            return _cost(pid, sender, dealt) / states

        found = _grown({"1 Agent": alone, f"{count:,} Agents": together}, rounds)
    return _rows(f"Server, batches of {THIN_STATES} States", "ns/State", found)


def _thin() -> ByBucket:
    """So many Tabs in each of so many buckets."""
    found: ByBucket = {}
    for bucket, columns in spread(THIN_BUCKETS * THIN_STATES * DEFAULT_BUCKETS // 4, 1, time.time()).items():
        if len(columns) >= THIN_STATES and len(found) < THIN_BUCKETS:
            found[bucket] = columns[:THIN_STATES]
    return found


class Outage(NamedTuple):
    """So long, in seconds, all records at `rate` events a second before, while and after the Server is away. `outbox`: of the Agent, in
    bytes; 0 for what it has by default."""

    rate: int
    tabs: int  # of each recorder
    before: float
    away: float
    after: float
    ring_bytes: int
    outbox: int = 0

    def __str__(self) -> str:
        what = f"after {self.away:.0f} s without a Server, {self.rate:,} events/s going on"
        return f"{what}, {RECORDERS * self.tabs:,} columns" if self.outbox else what


def _outage(effort: Effort) -> list[Row]:
    times = effort.pick((1.0, 8.0, 30.0), (5.0, 20.0, 40.0))
    return _away(Outage(RATE, RECORDED_TABS, *times, PACED_RING_BYTES))


def _spooled(effort: Effort) -> list[Row]:
    """The same, of which the outbox has no room for most: it waits in the spool."""
    times = effort.pick((1.0, 10.0, 30.0), (5.0, 60.0, 60.0))
    return _away(Outage(SPOOLED_RATE, SPOOLED_TABS, *times, SPOOLED_RING_BYTES, effort.pick(SMALL_OUTBOX // 4, SMALL_OUTBOX)))


def _away(outage: Outage) -> list[Row]:
    rate, _, before, away, after = outage[:5]
    with ExitStack() as stack:
        services = stack.enter_context(running(TABA_RING_BYTES=str(outage.ring_bytes)))
        path = services.directory / "longest"
        Held.make(path)
        services.before = CODE.format(path=str(path))
        services.start_agent(*(("--outbox-bytes", str(outage.outbox)) if outage.outbox else ()))
        services.before = ""
        held = Held(path, pid_of(services, "agent"))
        workers = []
        for seed in range(RECORDERS):
            arguments = (str(outage.tabs), str(seed))
            workers.append(Worker("benchmarks.ring_worker", *arguments, environ=services.environ, directory=services.directory))
            stack.callback(workers[-1].stop)
        wait_until(lambda: _agent_status(services)["buckets"] is not None, VISIBLE_SECONDS, "the Agent knows of a Server", pause=0.1)
        held.begin()

        def paces(seconds: float) -> None:
            for worker in workers:
                worker.tell("pace", rate / RECORDERS, seconds)

        def heard() -> tuple[int, int]:
            counted = [worker.hear(before + away + after + 60) for worker in workers]
            return sum(its["recorded"] for its in counted), sum(its["dropped"] for its in counted)

        paces(before + away)
        time.sleep(before)
        services.stop_server()
        recorded, dropped = heard()
        waits = _agent_status(services)
        services.start_server()
        paces(after)
        back = tried = now = time.monotonic()
        first = found = _folded(services)
        while not _is_answered(services) and now - back < after:
            time.sleep(0.1)
            tried, first = now, found
            now, found = time.monotonic(), _folded(services)
        is_behind = True
        while is_behind and now - back < after:
            time.sleep(0.1)
            found, now = _folded(services), time.monotonic()
            is_behind = found < recorded + (now - back - FRESH_SECONDS) * rate
        meanwhile = heard()
        recorded, dropped = recorded + meanwhile[0], dropped + meanwhile[1]
        deadline = time.monotonic() + VISIBLE_SECONDS
        while (left := recorded - _folded(services)) and time.monotonic() < deadline:
            time.sleep(0.1)
        dropped = max(dropped, sum(_agent_status(services)["dropped_by_reason"].values()))  # which has those of the rings
        dead = services.query.status()["dead_letters"]
        longest, peak = held.longest(), held.peak()
    note = f"{'still behind' if is_behind else 'nothing is behind'} {now - back:.1f} s after the Server answered"
    times = (found - first) / (now - tried) / rate
    lost = f"{dropped:,} dropped, {dead:,} dead letters, {left:,} not folded {VISIBLE_SECONDS:.0f} s after the last"
    rows = [
        Row(f"{outage}: folded a second", Figure.of([times]), "× what comes", budgets.CATCHING_UP, note=note),
        Row("… until the Agent tried again", Figure.of([tried - back]), "s"),
        Row("… dropped, or not folded in the end", Figure.of([dropped + dead + left]), "events", budgets.CLUSTER_DROPS, note=lost),
        Row("… the Agent's longest turn", Figure.of([longest]), "ms", budgets.WAIT, note="from before the outage to the end"),
        Row("… the Agent's memory at its most", Figure.of([peak / MiB]), "MiB"),
    ]
    if outage.outbox:
        outbox, spool = waits["outbox"]["used_bytes"] / MiB, waits["spool"]["used_bytes"] / MiB
        note = f"{waits['spool']['batches']:,} batches, in {waits['spool']['moves']} moves; the outbox had {outbox:.0f} MiB"
        rows.append(Row("… in the spool as the Server came back", Figure.of([spool]), "MiB", note=note))
    return rows


def _agent_status(services: Services) -> dict[str, Any]:
    with asking(services.agent_url) as ask:
        status: dict[str, Any] = json.loads(ask("/v1/status")[1])
    return status


def _is_answered(services: Services) -> bool:
    """Whether the last that the Agent sent was answered."""
    return all(server["healthy"] for server in _agent_status(services)["servers"])


def _folded(services: Services) -> int:
    folded: int = services.query.status()["folded"]
    return folded


PARTS = {"agent": _agent, "states": _states, "shards": _shards, "agents": _agents, "outage": _outage, "spooled": _spooled}


def _grown(cases: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each costs, in rounds that take turns, once all that is made once is made."""
    for case in cases.values():
        case()
    return interleave(cases, rounds)


def _rows(what: str, unit: str, found: Mapping[str, list[float]], budget: Budget = budgets.SCALE) -> list[Row]:
    (_, least), *others = found.items()
    rows = [Row(f"{what}: {name}", Figure.of(figures), unit) for name, figures in found.items()]
    for name, figures in others:
        growth = Figure.of(more / less if less else 0.0 for more, less in zip(figures, least, strict=True))
        rows.append(Row(f"… growth to {name}", growth, "times", budget))
    return rows
