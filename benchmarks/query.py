"""What asking costs: milliseconds from request to the last byte of the answer, over one kept connection, nothing else going on.

The Server has the names of 10,000 Tabs, and one Tab that 300 Clients have a full day's State of. The floor is `GET /healthz` over the
same connection: what HTTP itself takes.
"""

from __future__ import annotations

import json
import time

import numpy as np

from benchmarks import budgets
from benchmarks.cold import Cold
from benchmarks.rows import Beside, Figure, Row, interleave
from benchmarks.sending import Streams, send
from benchmarks.services import Effort, asking, running
from taba.batch import Column
from taba.bounds import DEFAULT_BUCKETS
from taba.names import bucket_of

CLIENTS = 300
NAMES = 10_000


def run(effort: Effort) -> list[Row]:
    asked = effort.pick(20, 200)
    with running() as services:
        cold, now = Cold(CLIENTS, CLIENTS), time.time()  # one Tab
        streams = Streams()
        for columns in (cold.day(now), cold.journals(now), cold.round(now), _names(effort.pick(1000, NAMES))):
            send(services.server_url, streams.envelopes(columns))
        [[(_, tab), *_]] = cold.names().values()
        with asking(services.server_url) as ask:
            _, body = ask(f"/v1/aggregates?name={tab}")
            if json.loads(body)[tab]["1d"]["count"] < CLIENTS:
                raise RuntimeError(f"an Aggregate of too few events: {body[:200]!r}")
            names = len(json.loads(ask("/v1/names")[1]))
            found = interleave(
                {
                    "aggregate": lambda: ask(f"/v1/aggregates?name={tab}")[0],
                    "names": lambda: ask("/v1/names")[0],
                    "floor": lambda: ask("/healthz")[0],
                },
                asked,
            )
    floor = Beside("GET /healthz, p50", Figure.of(found["floor"]))
    floor_p99 = Beside("GET /healthz, p99", p99(found["floor"]))
    note = f"{asked} requests of each kind in turn"
    return [
        Row(f"Aggregate of one Tab over {CLIENTS} Clients, p50", Figure.of(found["aggregate"]), "ms", floor=floor, note=note),
        Row(f"Aggregate of one Tab over {CLIENTS} Clients, p99", p99(found["aggregate"]), "ms", budgets.AGGREGATE, floor_p99),
        Row(f"list of {names:,} names, p50", Figure.of(found["names"]), "ms", budgets.NAMES, floor),
        Row(f"list of {names:,} names, p99", p99(found["names"]), "ms", floor=floor_p99),
    ]


def p99(samples: list[float]) -> Figure:
    """What 99 of 100 samples are not above."""
    return Figure(float(np.percentile(samples, 99)), min(samples), max(samples), len(samples))


def _names(count: int) -> dict[int, list[Column]]:
    columns: dict[int, list[Column]] = {}
    now = np.array([time.time()]).tobytes()
    for number in range(count - 1):
        name = f"benchmark.names.{number:06d}"
        columns.setdefault(bucket_of(name, DEFAULT_BUCKETS), []).append(Column("web-1/1", name, "CounterGroup", now, now))
    return columns
