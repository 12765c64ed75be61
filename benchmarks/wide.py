"""What many Agents, Servers and shards cost each: the figures that the arithmetic of docs/scaling.md takes.

Thin envelopes: of one batch of one event, as an Agent with little to say sends them, to one Server process over as many connections
as an Agent keeps; timed from the first post to the last verdict, the store syncing each write. A mark: what the store's memory grows
by, for each of many open streams in one bucket's hash, as `MEMORY USAGE` says. Servers near a host: counted over many hosts.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from random import Random
from typing import Any, cast

from benchmarks.cold import spread
from benchmarks.rows import Figure, Row
from benchmarks.sending import Streams, send
from benchmarks.services import Effort, running
from benchmarks.store import StoreClient
from benchmarks.valkeys import Valkey
from taba.agent.dispatch import Dispatch
from taba.bounds import DEFAULT_BUCKETS
from taba.server.fold.marks import Mark, encode_mark

AGENTS = 16  # at once, each with as many connections as one keeps
BUCKETS = 64  # to each of which each Agent sends one envelope in a round
STREAMS = 10_000  # of a bucket: one of each of so many Agents
SERVERS, HOSTS = 100, 1_000


def run(effort: Effort) -> list[Row]:
    return [_thin(effort), _marks(effort), _near()]


def _thin(effort: Effort) -> Row:
    agents = [Streams() for _ in range(effort.pick(2, AGENTS))]
    rates: list[float] = []
    with running() as services:
        for _ in range(effort.pick(1, 5) + 1):
            columns = dict(list(spread(DEFAULT_BUCKETS, 1, time.time()).items())[:BUCKETS])
            dealt = [its for streams in agents for its in streams.envelopes(columns, 1)]  # 1: an envelope holds one batch
            rates.append(sum(map(len, dealt)) / send(services.server_url, dealt))
    # the first round opens the streams
    return Row(f"thin envelopes of {len(agents)} Agents at once, one Server process", Figure.of(rates[1:]), "envelopes/s")


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
