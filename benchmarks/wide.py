"""What many Agents, Servers and shards cost each: the figures that the arithmetic of docs/scaling.md takes.

Thin envelopes: of one batch of one event, as an Agent with little to say sends them, to one Server process over as many connections
as an Agent keeps; timed from the first post to the last verdict, the store syncing each write. A mark: what the store's memory grows
by, for each of many open streams in one bucket's hash, as `MEMORY USAGE` says. Servers near a host: counted over many hosts.

As wide as it is to be, simulated: the 800 of 10,000 Agents that one of 100 Servers hears of, each with a connection and an envelope a
second, to a real Server; and 100 Routers over 100 servers in memory, which count what they are asked as a bucket moves and as maps are
looked at.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import closing
from random import Random
from typing import Any, cast

from twisted.internet.defer import ensureDeferred
from twisted.internet.task import Clock

from benchmarks import budgets, machine
from benchmarks.cold import spread
from benchmarks.crowd import send_from_many
from benchmarks.rows import Figure, Row
from benchmarks.sending import Sender, Streams
from benchmarks.services import Effort, pid_of, running
from benchmarks.store import StoreClient
from benchmarks.valkeys import Valkey
from taba.agent.dispatch import NEAR_SERVERS, Dispatch
from taba.bounds import DEFAULT_BUCKETS
from taba.server.fold.marks import Mark, encode_mark
from taba.shard.buckets import Owner, encode_owner, owner_key, prefix_of
from taba.shard.memory.router import MemoryRouter
from taba.shard.memory.server import MemoryServer
from taba.shard.servers.connection import Command, Reply

AGENTS = 16  # at once, each with as many connections as one keeps
BUCKETS = 64  # to each of which each Agent sends one envelope in a round
STREAMS = 10_000  # of a bucket: one of each of so many Agents
SERVERS, HOSTS = 100, 1_000
ALL_AGENTS = 10_000
LOOKS = 10


def run(effort: Effort) -> list[Row]:
    return [_thin(effort), *_crowd(effort), _marks(effort), _near(), *looks(effort)]


def _thin(effort: Effort) -> Row:
    agents = [Streams() for _ in range(effort.pick(2, AGENTS))]
    rates: list[float] = []
    with running() as services, closing(Sender(services.server_url)) as sender:
        for _ in range(effort.pick(1, 5) + 1):
            columns = dict(list(spread(DEFAULT_BUCKETS, 1, time.time()).items())[:BUCKETS])
            dealt = [its for streams in agents for its in streams.envelopes(columns, 1)]  # 1: an envelope holds one batch
            rates.append(sum(map(len, dealt)) / sender.send(dealt))
    # the first round opens the streams
    return Row(f"thin envelopes of {len(agents)} Agents at once, one Server process", Figure.of(rates[1:]), "envelopes/s")


def _crowd(effort: Effort) -> list[Row]:
    """As many simulated Agents as one of SERVERS Servers hears of, of ten thousand."""
    count, seconds = effort.pick(50, NEAR_SERVERS * ALL_AGENTS // SERVERS), effort.pick(2, 10)
    buckets = sorted(spread(DEFAULT_BUCKETS, 1, time.time()).items())
    with running() as services:
        columns = [dict([buckets[number % len(buckets)]]) for number in range(count)]
        send_from_many(services.server_url, columns[:8], 1)
        pids = {"server": pid_of(services, "server"), "store": pid_of(services, "store")}
        before = {name: machine.cpu_seconds([pid]) for name, pid in pids.items()}
        crowd = send_from_many(services.server_url, columns, seconds)
        used = {name: (machine.cpu_seconds([pid]) - before[name]) / len(crowd.waits) * 1e6 for name, pid in pids.items()}
    late = sorted(crowd.waits)[int(len(crowd.waits) * 0.99)]
    name = f"{count} Agents, an envelope a second each, to one Server process"
    note = f"{crowd.connections:,} connections; the opening of its stream is in it"
    return [
        Row(f"{name}: verdict, p99", Figure.of([late]), "s", budgets.CROWD_VERDICT, note=note),
        Row(f"{name}: processor time of the Server", Figure.of([used["server"]]), "µs an envelope", budgets.CROWD_PROCESSOR),
        Row(f"{name}: processor time of the store", Figure.of([used["store"]]), "µs an envelope"),
    ]


class _Counting(MemoryServer):
    """Counts the commands that it is asked."""

    def __init__(self, clock: Any):
        super().__init__(clock)
        self.asked: Counter[bytes] = Counter()

    def run(self, command: Command) -> Reply:
        self.asked[command[0]] += 1
        return super().run(command)


def looks(effort: Effort) -> list[Row]:
    """What a store's shards are asked by Routers that look at the map, and where a bucket moves."""
    shards = servers = effort.pick(10, SERVERS)
    clock = Clock()
    stores = [_Counting(clock) for _ in range(shards)]
    routers = [MemoryRouter(stores, DEFAULT_BUCKETS, clock) for _ in range(servers)]
    for router in routers:
        _done(router.connect())
    _done(routers[0].set("a", "x"))
    for router in routers:
        _done(router.get("a"))
    bucket = routers[0].bucket_of("a")
    source = routers[0].map.owners[bucket]
    target = (source + 1) % shards
    for key in [key for key in stores[source]._values if key.startswith(prefix_of(bucket))]:
        stores[target]._values[key] = stores[source]._values.pop(key)
    name = routers[0].map.shards[target].name
    stores[target].run((b"SET", owner_key(bucket), encode_owner(Owner("open", 2, name))))
    stores[source].run((b"SET", owner_key(bucket), encode_owner(Owner("moved", 2, name))))
    before = sum(store.asked.total() for store in stores)
    reading = [ensureDeferred(router.get("a")) for router in routers]
    while not all(one.called for one in reading):
        clock.advance(0.01)
    moved = sum(store.asked.total() for store in stores) - before
    clock.advance(60)  # what they asked as they came is old
    settings = [_settings(store) for store in stores]
    for _ in range(LOOKS):
        for router in routers:
            _done(router.atlas.refresh(router.atlas.deadline(1.0)))
        clock.advance(60 / LOOKS)
    asked = [_settings(store) - known for store, known in zip(stores, settings, strict=True)]
    return [
        Row(
            f"a bucket that moves, {shards} shards, {servers} Routers that read it",
            Figure.of([moved / servers]),
            "commands a Router",
            budgets.MOVED_COMMANDS,
        ),
        Row(
            f"settings of a shard in a minute, {servers} Routers that look {LOOKS} times at the map",
            Figure.of([count / servers for count in asked]),
            "commands a Router",
            budgets.SETTINGS_COMMANDS,
        ),
    ]


def _settings(store: _Counting) -> int:
    return store.asked[b"CONFIG"] + store.asked[b"INFO"]


def _done(work: Any) -> Any:
    done = ensureDeferred(work)
    assert done.called  # servers in memory answer at once
    return done


def _marks(effort: Effort) -> Row:
    count = effort.pick(1_000, STREAMS)
    fields = [part for _ in range(count) for part in (os.urandom(16), encode_mark(Mark(os.urandom(8), 1_000_000, 100_000)))]
    valkey = Valkey(appendonly="no")
    try:
        client = StoreClient(valkey.socket)
        client.ask(b"HSET", b"marks", *fields)
        size = client.ask(b"MEMORY", b"USAGE", b"marks", b"SAMPLES", b"0") / count
        client.close()
    finally:
        valkey.remove()
    return Row(f"a mark, of {count:,} open streams in one bucket", Figure.of([size]), "bytes")


def _near() -> Row:
    urls = [f"http://server-{number}:8280" for number in range(SERVERS)]
    heard: Counter[str] = Counter()
    for number in range(HOSTS):
        dispatch = Dispatch(cast(Any, None), urls, Random(number), f"host-{number}")
        heard.update(server.url for server in dispatch.near(list(dispatch.servers.values())))
    return Row(
        f"hosts that one of {SERVERS} Servers hears of, of {HOSTS:,}",
        Figure.of([float(count) for count in heard.values()]),
        "hosts",
        note="least and most are those of single Servers",
    )
