"""What the Agent costs: from rings to encoded, published batches on one core; and idle.

Draining: 16 client processes fill their rings on command, each to a quarter (where an Agent drains at once) or nearly to the brim. Then
this process does what an Agent's loop does: `RingPump.drain` reads the rings, groups events into columns, encodes batches, publishes them
in a real outbox and moves the tails, with Python's collector set as an Agent sets it. Only that is timed, in processor time: it waits for
nothing. Between rounds all batches are acknowledged as a Server would, so that the outbox stays the same memory. A move to the spool is
timed by the clock, tick by tick, disk and all. The floor is numpy's stable sort and gather of the same number of events with the same
Tabs, ring by ring, and nothing else; a copy of the same bytes is there for comparison. At the edge: the same drain with its columns
folded to States, in turns with one that is not. Idle: a real Agent, after it drained 16 rings, over some seconds.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import budgets, machine
from benchmarks.rows import Beside, Figure, Row, interleave
from benchmarks.services import Effort, Services, agent_name, pid_of, remove_segments, running
from benchmarks.worker import Worker, wait_until
from taba.agent.ages import Moment
from taba.agent.arenas import keep_heap
from taba.agent.discover import Rings
from taba.agent.edge import Edge
from taba.agent.history import History
from taba.agent.keeper import Keeper
from taba.agent.lanes import RETAIN_SECONDS
from taba.agent.pump import RingPump
from taba.agent.register import Register
from taba.agent.segment import open_outbox
from taba.agent.spool import Spool
from taba.batch import END, NONCE_BYTES, OPEN, Header
from taba.bounds import DEFAULT_BUCKETS
from taba.handlers.lookup import find_edges
from taba.listening import NEVER, YOUNG_COLLECTIONS, YOUNG_OBJECTS
from taba.query import Query
from taba.ring import RECORD_BYTES

RINGS = 16
QUARTER, BRIM = 8_192, 32_000  # events in a ring of the default size, which holds 32,768


def run(effort: Effort) -> list[Row]:
    with ExitStack() as stack:
        services = stack.enter_context(running(agent=True))
        rows = []
        for tabs in (100, 1000):
            for events in (QUARTER, BRIM):
                rows += _drain(effort, services.environ, services.directory, tabs, events)
        rows += _move(effort, services.environ, services.directory)
        rows += _at_edge(effort, services.environ, services.directory)
        return rows + _idle(effort, services)


NOW = Moment(0.0, 0, None)  # nothing waits for long


class Draining:
    """An Agent's parts in this process, and the clients that fill its rings: each with `tabs` Tabs, which with `apart` are its own."""

    def __init__(
        self, stack: ExitStack, environ: dict[str, str], directory: Path, tabs: int, apart: bool = False, edge: Edge | None = None
    ):
        stack.callback(gc.unfreeze)
        stack.callback(gc.set_threshold, *gc.get_threshold())
        gc.freeze()
        gc.set_threshold(YOUNG_OBJECTS, YOUNG_COLLECTIONS, NEVER)  # as an Agent does that runs (`freeze_when_running`)
        keep_heap()
        name = agent_name()
        stack.callback(remove_segments, name)
        self.workers = []
        for seed in range(RINGS):
            arguments = (str(tabs), str(seed), str(seed * tabs if apart else 0))
            worker = Worker("benchmarks.ring_worker", *arguments, environ={**environ, "TABA_AGENT": name}, directory=directory)
            stack.callback(worker.stop)
            self.workers.append(worker)
        outbox, segment, _ = open_outbox(name, lambda: os.urandom(16))
        stack.callback(segment.close)
        spool = Spool(f"{directory}/{name}.spool")
        stack.callback(spool.close)
        self.now = 0.0
        history = History(f"{directory}/{name}.history")
        stack.callback(history.close)
        self.keeper = Keeper(outbox, spool, history, lambda: os.urandom(16), self.now, NOW)
        self.rings = Rings(name)
        register = Register(f"{directory}/{name}.sums")
        stack.callback(register.close)
        self.pump = RingPump(self.keeper, self.rings, register, edge=edge)
        self.pump.set_buckets(DEFAULT_BUCKETS, NOW)

    def fill(self, events: int) -> None:
        """Every client records so many events."""
        for worker in self.workers:
            worker.tell("fill", events)
        for worker in self.workers:
            worker.hear()
        self.rings.scan((), self.now)

    def drain(self) -> float:
        """Seconds of the processor to drain all rings."""
        start = time.process_time()
        while self.pump.drain(self.now, NOW):
            pass
        return time.process_time() - start

    def acknowledge(self) -> None:
        """What the Forwarder does at `applied`, for everything, and again when what is retained may be forgotten."""
        for _ in range(2):
            lanes = list(self.keeper.lanes.values())
            for lane in lanes:
                self.keeper.schedule.fresh.clear()
                lane.queued = False
                while sends := lane.next(self.now, NOW):
                    for send in sends:
                        if not isinstance(send.entry, Header):
                            lane.applied(send.number, self.now)
                        elif send.entry.do == END:
                            lane.ended(self.now)
                        elif send.entry.do == OPEN:
                            lane.opened(bytes(NONCE_BYTES), 0, self.now)
                        else:
                            lane.applied(send.number, self.now)
            self.now += 2 * RETAIN_SECONDS
            self.keeper.tick(self.now, NOW)
        for lane in list(self.keeper.lanes.values()):
            lane.give_up_retained()
        self.keeper.tick(self.now, NOW)


def _drain(effort: Effort, environ: dict[str, str], directory: Path, tabs: int, events: int) -> list[Row]:
    with ExitStack() as stack:
        draining = Draining(stack, environ, directory, tabs)
        draining.fill(events)
        draining.drain()  # names, buckets and scratch memory are known from here on
        draining.acknowledge()
        drawn = _draw(tabs, events)
        source, target = np.zeros(RINGS * events * RECORD_BYTES, np.uint8), np.zeros(RINGS * events * RECORD_BYTES, np.uint8)

        def drain() -> float:
            draining.fill(events)
            seconds = draining.drain()
            if sum(worker.ask("counts")["dropped"] for worker in draining.workers):
                raise RuntimeError("events were dropped: the rings were not drained")
            draining.acknowledge()
            return RINGS * events / seconds

        def floor() -> float:
            return RINGS * events / _timed(lambda: _sort(drawn))

        def copy() -> float:
            return RINGS * events / _timed(lambda: np.copyto(target, source))

        found = interleave({"drain": drain, "floor": floor, "copy": copy}, effort.pick(3, 9))
    what = f"{RINGS} rings {'a quarter full' if events == QUARTER else 'full'}, {tabs} Tabs in each"
    floor_beside = Beside("numpy's stable sort and gather", Figure.of(found["floor"]))
    budget = {100: budgets.DRAIN_FEW, 1000: budgets.DRAIN_MANY}.get(tabs) if events == QUARTER else None
    rows = [Row(f"drain, {what}", Figure.of(found["drain"]), "events/s", budget, floor_beside)]
    if tabs == 100 and events == BRIM:
        rows.append(Row(f"a copy of the records' bytes, {what}", Figure.of(found["copy"]), "events/s"))
    return rows


def _at_edge(effort: Effort, environ: dict[str, str], directory: Path) -> list[Row]:
    """The same drain, with every Type of Tabs folded before the sort, as an Agent does whose Servers all merge States."""
    with ExitStack() as stack:
        edge = Edge(find_edges())
        edge.allow(edge.edges)
        ways = {"edge": Draining(stack, environ, directory, 100, edge=edge), "events": Draining(stack, environ, directory, 100)}

        def drain(way: str) -> float:
            draining = ways[way]
            draining.fill(QUARTER)
            seconds = draining.drain()
            draining.acknowledge()
            return RINGS * QUARTER / seconds

        for way in ways:
            drain(way)  # names, buckets and scratch memory are known from here on
        before = edge.events
        found = interleave({way: partial(drain, way) for way in ways}, effort.pick(3, 9))
        rounds = len(found["edge"])
        if edge.events - before != rounds * RINGS * QUARTER:
            raise RuntimeError(f"{edge.events - before} events of {rounds * RINGS * QUARTER} were folded")
    what = f"{RINGS} rings a quarter full, 100 Tabs in each"
    beside = Beside("the same as events", Figure.of(found["events"]))
    return [Row(f"drain folded at the edge, {what}", Figure.of(found["edge"]), "events/s", budgets.DRAIN_EDGE, beside)]


Drawn = list[tuple[np.ndarray, np.ndarray, np.ndarray]]


def _draw(tabs: int, events: int) -> Drawn:
    """Tabs, times and values of the events of each ring."""
    chance = np.random.default_rng(1)
    return [(chance.integers(0, tabs, events).astype(np.uint16), chance.random(events), chance.random(events)) for _ in range(RINGS)]


def _sort(drawn: Drawn) -> None:
    for keys, times, values in drawn:
        order = np.argsort(keys, kind="stable")
        times[order]
        values[order]


def _timed(act: Callable[[], object]) -> float:
    start = time.process_time()
    act()
    return time.process_time() - start


def _move(effort: Effort, environ: dict[str, str], directory: Path) -> list[Row]:
    """What nobody acknowledges moves from a full outbox to the spool, in ticks between which an Agent's loop does other things."""
    turns: list[float] = []
    with ExitStack() as stack:
        draining = Draining(stack, environ, directory, 1000)
        keeper, filled = draining.keeper, 0
        while keeper.moves < effort.pick(1, 3):
            draining.fill(BRIM)
            draining.drain()
            filled += 1
            is_moving = True
            while is_moving:
                start, before = time.perf_counter(), keeper.spool.batches
                keeper.tick(draining.now, NOW)
                is_moving = keeper.spool.batches > before
                turns += [(time.perf_counter() - start) * 1000] * is_moving
        if sum(worker.ask("counts")["dropped"] for worker in draining.workers) or keeper.books.dropped:
            raise RuntimeError(f"events were dropped: {dict(keeper.books.dropped)}")
    note = f"of {len(turns)}, in {keeper.moves} moves, disk and all, by the clock; of {filled * RINGS * BRIM:,} events none dropped"
    figure = Figure(max(turns), min(turns), max(turns), len(turns))
    return [Row("a move to the spool: the longest turn", figure, "ms", budgets.SPOOL_TURN, note=note)]


def _idle(effort: Effort, services: Services) -> list[Row]:
    seconds = effort.pick(3.0, 10.0)
    with ExitStack() as stack:
        workers = []
        for seed in range(RINGS):
            worker = Worker("benchmarks.ring_worker", "100", str(seed), environ=services.environ, directory=services.directory)
            stack.callback(worker.stop)
            workers.append(worker)
        for worker in workers:
            worker.ask("fill", 1000)
        status = Query(services.agent_url, role="Agent")
        wait_until(lambda: status.status()["recorded"] >= RINGS * 1000, 20.0, "the Agent has drained the rings", pause=0.2)
        time.sleep(3.0)  # what is sent is acknowledged, and nobody looks for rings or Servers any more than usual
        pid = pid_of(services, "agent")
        used, began = machine.cpu_seconds([pid]), time.perf_counter()
        time.sleep(seconds)
        share = (machine.cpu_seconds([pid]) - used) / (time.perf_counter() - began) * 100
        memory = machine.resident_mib(pid)
    note = f"a real Agent over {seconds:.0f} s; its clock ticks in steps of 10 ms"
    return [
        Row(f"Agent, idle with {RINGS} rings: CPU", Figure.of([share]), "% of a core", budgets.IDLE_CPU, note=note),
        Row(f"Agent, idle with {RINGS} rings: memory", Figure.of([memory]), "MiB", budgets.IDLE_MEMORY),
    ]
