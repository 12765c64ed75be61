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
from contextlib import ExitStack

import numpy as np

from benchmarks import budgets, machine
from benchmarks.cold import VALUES, Cold
from benchmarks.rows import Beside, Figure, Row, interleave
from benchmarks.sending import CONNECTIONS, Envelope, Streams, send
from benchmarks.services import Effort, pid_of, running
from benchmarks.store import StoreClient
from benchmarks.worker import Worker
from taba.batch import Column, decode_batch
from taba.bounds import DEFAULT_BUCKETS, MiB
from taba.names import bucket_of
from tests.services import Services

HOT_TABS, HOT_CLIENTS = 64, 4
HOT_EVENTS = 4_000  # of each State in one batch: 1 M events in all, what an Agent drains in a fifth of a second at the budget's rate
HOT_BATCHES = 4  # of each bucket, in a round
FEW_CLIENTS, MANY_CLIENTS = 40, 400  # of the cold States: 1,000 Tabs in most buckets, or 100 Tabs with as many States in fewer
COLD_ENVELOPE_BYTES = MiB // 4  # some 40 buckets' batches: nobody waits for long


def run(effort: Effort) -> list[Row]:
    with running() as services:
        return _hot(effort, services) + _cold(effort, services, FEW_CLIENTS) + _cold(effort, services, MANY_CLIENTS)


def _hot(effort: Effort, services: Services) -> list[Row]:
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

    send(services.server_url, encoded())
    contents = [content for its in encoded_once(made) for envelope in its for _, content in envelope]
    found = interleave(
        {"fold": lambda: events / meter.measure(lambda: send(services.server_url, encoded())), "floor": lambda: events / _count(contents)},
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
        columns = [column for column in decode_batch(content).columns or () if isinstance(column, Column)]
        values = np.frombuffer(b"".join([column.values for column in columns if isinstance(column.values, bytes)]), "<f8")
        np.bincount((np.log(values) * 50).astype(np.int64))
    return time.perf_counter() - start


def _cold(effort: Effort, services: Services, clients: int) -> list[Row]:
    rounds = effort.pick(2, 6)
    cold = Cold(effort.pick(4_000, 40_000), clients, rounds + 1, time.time())
    streams = Streams()
    url = services.server_url
    for columns in (cold.day(), cold.journals(), cold.round(0)):
        send(url, streams.envelopes(columns))
    numbers = iter(range(1, rounds + 1))
    path = services.directory / "store" / "store.sock"
    meter = Meter(services, cold.states)
    with ExitStack() as stack:
        store = StoreClient(str(path))
        stack.callback(store.close)
        arguments = (f"unix:{path}", str(cold.states), str(clients))
        floor = Worker("benchmarks.traffic_worker", *arguments, environ=services.environ, directory=services.directory)
        stack.callback(floor.stop)
        floor.ask("round")
        read: list[float] = []
        written: list[float] = []
        asking = cold.asking_bytes()

        def fold() -> float:
            dealt = streams.envelopes(cold.round(next(numbers)), COLD_ENVELOPE_BYTES)
            before = store.counts()
            seconds = meter.measure(lambda: send(url, dealt))
            after = store.counts()
            read.append((after["total_net_output_bytes"] - before["total_net_output_bytes"]) / cold.states)
            written.append((after["total_net_input_bytes"] - before["total_net_input_bytes"] - asking) / cold.states)
            return cold.states / seconds

        found = interleave({"fold": fold, "floor": lambda: cold.states / floor.ask("round")}, rounds)
    buckets = len(cold.names())
    load = f"cold, {cold.states // buckets} States a cycle"
    beside = Beside("the store's traffic alone", Figure.of(found["floor"]))
    note = f"{cold.states:,} CounterGroup States of {clients} Clients, a full day in each, in {buckets} buckets"
    rows = [Row(f"{load}: one event a State", Figure.of(found["fold"]), "updates/s", budgets.COLD, beside, note=note)]
    rows += meter.rows(load, "update")
    rows.append(Row(f"{load}: read per update", Figure.of(read), "bytes", budgets.UPDATE_BYTES))
    return [*rows, Row(f"{load}: written per update", Figure.of(written), "bytes", budgets.UPDATE_BYTES)]


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

    def rows(self, load: str, unit: str) -> list[Row]:
        return [Row(f"{load}: CPU time of the {name}", Figure.of(used), f"ns/{unit}") for name, used in self._used.items()]
