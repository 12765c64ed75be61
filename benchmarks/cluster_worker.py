"""The Clients of the 2012 cluster: so many processes, forked from one, each with a ring and an id of its own.

`python -m benchmarks.cluster_worker CLIENTS SEED`; command: `pace` so many events a second of all Clients together, for so many seconds,
which answers what they counted, by Type, and when they began and ended; and `pids`. A Client uses TABS_EACH of the TABS Tabs, one as
often as its rank has it by Zipf's law; events come in small bursts, as requests do, each Client's at moments of its own.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from itertools import cycle, islice
from typing import Any, NamedTuple

import numpy as np

from benchmarks.worker import serve
from taba import client

TABS, TABS_EACH = 10_000, 1_000
ZIPF = 1.1
DRAWN = 4_096  # events of a Client that are drawn beforehand, and recorded again and again
STEP_SECONDS = 0.2  # between bursts of one Client


class Kind(NamedTuple):
    """A Type, and of how many of a hundred Tabs it is."""

    type: str
    prefix: str
    share: int


KINDS = (
    Kind("CounterGroup", "cluster.counts", 60),
    Kind("PercentileGroup", "cluster.spread", 20),
    Kind("Gauge", "cluster.level", 15),
    Kind("UpDown", "cluster.flying", 2),
    Kind("Cardinality", "cluster.different", 2),
    Kind("TopK", "cluster.top", 1),
)
_KIND_OF = [kind for kind in KINDS for _ in range(kind.share)]  # of a Tab's number modulo a hundred


def kind_of(number: int) -> Kind:
    """What the Tab of this number is. Numbers are ranks, so that each Type has Tabs of all ranks."""
    return _KIND_OF[number * 37 % 100]


def tab_of(number: int) -> Any:
    kind = kind_of(number)
    return client.tab(f"{kind.prefix}.{number:05d}", kind.type)


def drawn(seed: int) -> list[tuple[int, float]]:
    """What one Client records, again and again: (a Tab's number, a value)."""
    chance = np.random.default_rng(seed)
    mine = np.sort(chance.choice(TABS, TABS_EACH, replace=False))
    weights = 1.0 / np.arange(1, TABS_EACH + 1) ** ZIPF
    tabs = mine[chance.choice(TABS_EACH, DRAWN, p=weights / weights.sum())]
    values = np.round(chance.lognormal(3.0, 1.0, DRAWN), 3)
    return list(zip(tabs.tolist(), values.tolist(), strict=True))


def call_of(number: int, value: float, tabs: dict[int, Any]) -> tuple[Any, Any]:
    """The call that records this value, and its argument."""
    if number not in tabs:
        tabs[number] = tab_of(number)
    tab = tabs[number]
    kind = kind_of(number).type
    if kind == "UpDown":
        return (tab.inc if int(value * 1000) % 2 else tab.dec), 1
    return tab.record, (f"user-{int(value * 10)}" if kind in ("Cardinality", "TopK") else value)


def live(number: int, orders: Any, told: int) -> None:
    """One Client, until there are no more orders. Each order: a rate, and seconds."""
    client.start(f"host{number // 30:02d}:web/{number % 30}")
    tabs: dict[int, Any] = {}
    events = drawn(number)
    calls = cycle([(*call_of(tab, value, tabs), kind_of(tab).type) for tab, value in events])
    chance = random.Random(number)
    for line in orders:
        rate, seconds = json.loads(line)
        before, counts = client.stats(), dict.fromkeys((kind.type for kind in KINDS), 0)
        time.sleep(chance.random() * STEP_SECONDS)
        began, start, done = time.time(), time.perf_counter(), 0
        while (passed := time.perf_counter() - start) < seconds:
            due = int(passed * rate)
            for record, value, kind in islice(calls, due - done):
                record(value)
                counts[kind] += 1
            done = due
            time.sleep(max(0.0, STEP_SECONDS - (time.perf_counter() - start - passed)))
        after = client.stats()
        answer = {
            "recorded": after["recorded"] - before["recorded"],
            "dropped": after["dropped"] - before["dropped"],
            "counts": counts,
            "began": began,
            "ended": time.time(),
        }
        os.write(told, json.dumps(answer).encode() + b"\n")  # shorter than PIPE_BUF: never mixed with another's


def main(clients: int, seed: int) -> None:
    reading, writing = os.pipe()
    orders: list[int] = []
    pids: list[int] = []
    for number in range(clients):
        theirs, ours = os.pipe()
        pid = os.fork()
        if pid == 0:
            for order in (*orders, ours, reading):
                os.close(order)
            live(seed * clients + number, os.fdopen(theirs), writing)
            os._exit(0)
        os.close(theirs)
        orders.append(ours)
        pids.append(pid)
    answers = os.fdopen(reading)

    def pace(rate: float, seconds: float) -> dict[str, Any]:
        for order in orders:
            os.write(order, json.dumps([rate / clients, seconds]).encode() + b"\n")
        found = [json.loads(answers.readline()) for _ in range(clients)]
        return {
            **{key: sum(one[key] for one in found) for key in ("recorded", "dropped")},
            "counts": {kind.type: sum(one["counts"][kind.type] for one in found) for kind in KINDS},
            "began": min(one["began"] for one in found),
            "ended": max(one["ended"] for one in found),
        }

    serve({"pace": pace, "pids": lambda: pids})
    for order in orders:
        os.close(order)
    for pid in pids:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
