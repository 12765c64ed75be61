"""What asking costs: milliseconds from request to the last byte of the answer, over one kept connection, nothing else going on.

The Server has the names of 10,000 Tabs, one Tab that 300 Clients have a full day's State of, and one that 15,000 have: of that the States
are read in slices, between which others are served. The floor is `GET /healthz` over the same connection: what HTTP itself takes.
"""

from __future__ import annotations

import json
import time

import numpy as np

from benchmarks import budgets
from benchmarks.cold import Cold
from benchmarks.holding import CODE, Held
from benchmarks.rows import Beside, Figure, Row, interleave
from benchmarks.sending import Streams, send
from benchmarks.services import Effort, asking, pid_of, running
from taba.batch import Column
from taba.bounds import DEFAULT_BUCKETS
from taba.names import bucket_of

CLIENTS = 300
MANY_CLIENTS = 15_000
NAMES = 10_000


def run(effort: Effort) -> list[Row]:
    asked = effort.pick(20, 200)
    many = effort.pick(MANY_CLIENTS // 10, MANY_CLIENTS)
    with running(server=False) as services:
        turns = services.directory / "longest"
        Held.make(turns)
        services.before = CODE.format(path=str(turns))
        services.start_server()
        held = Held(turns, pid_of(services, "server"))
        cold, wide, now = Cold(CLIENTS, CLIENTS), Cold(many, many), time.time()  # one Tab each
        streams = Streams()
        every = (*_full(cold, now), *_full(wide, now), _names(effort.pick(1000, NAMES)))
        for columns in every:
            send(services.server_url, streams.envelopes(columns))
        tab, wide_tab = (next(pairs[0][1] for pairs in one.names().values()) for one in (cold, wide))
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
            held.begin()
            of_many = interleave({"many": lambda: ask(f"/v1/aggregates?name={wide_tab}")[0]}, effort.pick(3, 8))["many"]
            longest = held.longest()
    floor = Beside("GET /healthz, p50", Figure.of(found["floor"]))
    floor_p99 = Beside("GET /healthz, p99", p99(found["floor"]))
    note = f"{asked} requests of each kind in turn"
    return [
        Row(f"Aggregate of one Tab over {CLIENTS} Clients, p50", Figure.of(found["aggregate"]), "ms", floor=floor, note=note),
        Row(f"Aggregate of one Tab over {CLIENTS} Clients, p99", p99(found["aggregate"]), "ms", budgets.AGGREGATE, floor_p99),
        Row(f"Aggregate of one Tab over {many:,} Clients, p50", Figure.of(of_many), "ms", note="full-day States, read in slices"),
        Row("… the longest turn of the loop meanwhile", Figure.of([longest]), "ms", budgets.WAIT, note="of its processor time"),
        Row(f"list of {names:,} names, p50", Figure.of(found["names"]), "ms", budgets.NAMES, floor),
        Row(f"list of {names:,} names, p99", p99(found["names"]), "ms", floor=floor_p99),
    ]


def _full(cold: Cold, now: float) -> list[dict[int, list[Column]]]:
    """A full day's States."""
    return [cold.day(now), cold.journals(now), cold.round(now)]


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
