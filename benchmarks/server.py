"""What the Server costs: batches in, States in a real store that syncs each write. One Server process, one store process.

Batches are encoded beforehand and posted over as many kept connections as an Agent uses. Timed is from the first post to the last
verdict; every batch must be `applied`. Hot: 64 Tabs, thousands of events for each State. Cold: see cold.py. The floors: of hot, what no
fold can do without (decode the batches, take the logarithm of each value, count by bin); of cold, the store's traffic alone (see
traffic_worker.py). CPU time is from /proc, for Server and store apart. Bytes per update are the store's own counts of its
network output and input (INFO stats) over a cold round, divided by the updates: names, marks and commands are in it, except that
the names in the reading commands are not counted as written.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing

import numpy as np

from benchmarks import budgets, machine
from benchmarks.budgets import Budget
from benchmarks.cold import PERIOD_ROUNDS, SLOT_SECONDS, VALUES, Cold
from benchmarks.rows import Beside, Figure, Row, interleave
from benchmarks.sending import CONNECTIONS, Envelope, Sender, Streams
from benchmarks.services import Effort, Services, pid_of, running
from benchmarks.store import StoreClient
from benchmarks.worker import Worker
from taba.batch import Column, decode_batch
from taba.bounds import DEFAULT_BUCKETS, MiB
from taba.names import bucket_of

HOT_TABS, HOT_CLIENTS = 64, 4
HOT_EVENTS = 4_000  # of each State in one batch: 1 M events in all, what an Agent drains in a fifth of a second at the budget's rate
HOT_BATCHES = 4  # of each bucket, in a round
THIN_STATES, THIN_CLIENTS = 1_920, 3  # some 5 States a bucket: what a cycle costs for each bucket shows
FEW_CLIENTS, MANY_CLIENTS = 40, 400  # of the cold States: 1,000 Tabs in most buckets, or 100 Tabs with as many States in fewer
MANY_OF_BUCKET, SOME_OF_BUCKET = 300, 30  # States: a cycle costs for each bucket, too, so budgets differ
COLD_ENVELOPE_BYTES = MiB // 4  # some 40 buckets' batches: nobody waits for long


def run(effort: Effort) -> list[Row]:
    with running() as services, closing(Sender(services.server_url)) as sender:
        return _hot(effort, services, sender) + _cold(effort, services, sender)


def _hot(effort: Effort, services: Services, sender: Sender) -> list[Row]:
    streams, names = Streams(), [f"benchmark.hot.{number:03d}" for number in range(HOT_TABS)]
    batches = effort.pick(1, HOT_BATCHES)
    events = HOT_TABS * HOT_CLIENTS * HOT_EVENTS * batches
    meter = Meter(services, events)
    made = [_hot_columns(names) for _ in range(batches)]

    def encoded() -> list[list[Envelope]]:
        dealt: list[list[Envelope]] = [[] for _ in range(CONNECTIONS)]
        for columns in made:
            for place, its in enumerate(streams.envelopes(columns)):
                dealt[place] += its
        return dealt

    sender.send(encoded())
    contents = [entry.batch for its in encoded_once(made) for envelope in its for entry in envelope]
    found = interleave(
        {"fold": lambda: events / meter.measure(lambda: sender.send(encoded())), "floor": lambda: events / _count(contents)},
        effort.pick(2, 7),
    )
    floor = Beside("decode, logarithm and count alone", Figure.of(found["floor"]))
    rows = [
        Row(
            f"hot: {HOT_TABS} Tabs of {HOT_CLIENTS} Clients, {HOT_EVENTS:,} events a State",
            Figure.of(found["fold"]),
            "events/s",
            budgets.HOT,
            floor,
        )
    ]
    return rows + meter.rows("hot", "event")


def encoded_once(made: list[dict[int, list[Column]]]) -> list[list[Envelope]]:
    """The same batches under streams that nobody sends."""
    streams = Streams()
    return [its for columns in made for its in streams.envelopes(columns)]


def _hot_columns(names: list[str]) -> dict[int, list[Column]]:
    chance = np.random.default_rng(1)
    columns: dict[int, list[Column]] = {}
    for name in names:
        for client in range(HOT_CLIENTS):
            times = time.time() - np.sort(chance.random(HOT_EVENTS))[::-1]
            column = Column(f"web-1/{client}", name, "CounterGroup", times.tobytes(), chance.choice(VALUES, HOT_EVENTS).tobytes())
            columns.setdefault(bucket_of(name, DEFAULT_BUCKETS), []).append(column)
    return columns


def _count(contents: list[bytes]) -> float:
    """Seconds for what no fold of percentiles can do without."""
    start = time.perf_counter()
    for content in contents:
        columns = [column for column in decode_batch(content).columns if isinstance(column, Column)]
        values = np.frombuffer(b"".join([column.values for column in columns if isinstance(column.values, bytes)]), "<f8")
        np.bincount((np.log(values) * 50).astype(np.int64))
    return time.perf_counter() - start


def _cold(effort: Effort, services: Services, sender: Sender) -> list[Row]:
    with ExitStack() as stack:
        states = effort.pick(4_000, 40_000)
        sizes = ((THIN_STATES, THIN_CLIENTS), (states, FEW_CLIENTS), (states, MANY_CLIENTS))
        loads = [ColdLoad(services, sender, stack, *size) for size in sizes]
        for load in loads:
            load.floor()
        for number in range(effort.pick(2, PERIOD_ROUNDS) + 1):
            if not effort.is_quick:
                time.sleep(SLOT_SECONDS - time.time() % SLOT_SECONDS)  # every round in a slot of its own
            for load in loads:
                load.fold(is_measured=number > 0)  # the first one makes what only the first one makes
                load.floor()
        return [row for load in loads for row in load.rows()]


class ColdLoad:
    """One cold load, its Server's rounds and its floor's."""

    def __init__(self, services: Services, sender: Sender, stack: ExitStack, states: int, clients: int):
        self._cold, self._sender, self._streams = Cold(states, clients), sender, Streams()
        now = time.time()
        for columns in (self._cold.day(now), self._cold.journals(now)):
            sender.send(self._streams.envelopes(columns))
        path = services.directory / "store" / "store.sock"
        self._store = StoreClient(str(path))
        stack.callback(self._store.close)
        arguments = (f"unix:{path}", str(states), str(clients))
        self._worker = Worker("benchmarks.traffic_worker", *arguments, environ=services.environ, directory=services.directory)
        stack.callback(self._worker.stop)
        self._meter = Meter(services, states)
        self._asking = self._cold.asking_bytes()
        self._seconds: list[float] = []
        self._floor_seconds: list[float] = []
        self._read: list[float] = []
        self._written: list[float] = []

    def fold(self, is_measured: bool) -> None:
        """One event for each State, to the Server."""
        dealt = self._streams.envelopes(self._cold.round(time.time()), COLD_ENVELOPE_BYTES)
        if not is_measured:
            self._sender.send(dealt)
            return
        before, states = self._store.counts(), self._cold.states
        self._seconds.append(self._meter.measure(lambda: self._sender.send(dealt)))
        after = self._store.counts()
        self._read.append((after["total_net_output_bytes"] - before["total_net_output_bytes"]) / states)
        self._written.append((after["total_net_input_bytes"] - before["total_net_input_bytes"] - self._asking) / states)

    def floor(self) -> None:
        """The same traffic with the store, and nothing else."""
        self._floor_seconds.append(self._worker.ask("round"))

    def rows(self) -> list[Row]:
        states, clients = self._cold.states, self._cold.clients
        buckets = len(self._cold.names())
        what = f"cold, {states // buckets} States a bucket"
        note = f"{states:,} CounterGroup States of {clients} Clients, a full day in each, in {buckets} buckets; the mean of all rounds"
        floor = Beside("the store's traffic alone", _rate(states, self._floor_seconds[1:]))
        return [
            Row(f"{what}: one event a State", _rate(states, self._seconds), "updates/s", budgets.COLD, floor, note=note),
            *self._meter.rows(what, "update", _budget(states // buckets)),
            Row(f"{what}: read per update", _mean(self._read), "bytes", budgets.UPDATE_BYTES),
            Row(f"{what}: written per update", _mean(self._written), "bytes", budgets.UPDATE_BYTES),
        ]


def _budget(of_bucket: int) -> Budget:
    """What an update may take where a bucket has so many States."""
    if of_bucket >= MANY_OF_BUCKET:
        return budgets.UPDATE_CPU
    return budgets.UPDATE_CPU_SOME if of_bucket >= SOME_OF_BUCKET else budgets.UPDATE_CPU_FEW


def _rate(events: int, seconds: list[float]) -> Figure:
    """Events a second over all rounds: rounds in which journals spill are fewer, and count."""
    return Figure(events * len(seconds) / sum(seconds), events / max(seconds), events / min(seconds), len(seconds))


def _mean(samples: list[float]) -> Figure:
    return Figure(sum(samples) / len(samples), min(samples), max(samples), len(samples))


class Meter:
    """CPU time of Server and store during what is measured, per event."""

    def __init__(self, services: Services, events: int):
        self._pids = {name: pid_of(services, name) for name in ("server", "store")}
        self._events = events
        self._used: dict[str, list[float]] = {name: [] for name in self._pids}

    def measure(self, act: Callable[[], float]) -> float:
        """What `act` returns: seconds."""
        before = {name: machine.cpu_seconds([pid]) for name, pid in self._pids.items()}
        seconds = act()
        for name, pid in self._pids.items():
            self._used[name].append((machine.cpu_seconds([pid]) - before[name]) / self._events * 1e9)
        return seconds

    def rows(self, load: str, unit: str, budget: Budget | None = None) -> list[Row]:
        """`budget`: the Server's."""
        budgets = {"server": budget}
        return [Row(f"{load}: CPU time of the {name}", _mean(used), f"ns/{unit}", budgets.get(name)) for name, used in self._used.items()]
