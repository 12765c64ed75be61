"""Whether an event costs the same however many Tabs there are: 100, and 100,000.

What an event costs depends on how many come together for one (Client, Tab): so that is held equal. The Agent drains 20 events a column,
16 rings with the same 100 Tabs, then 16 rings with 6,250 Tabs each, all different. The Server folds one event for each of 100,000 new
and later known States: of 100 Tabs and 1,000 Clients, then of 100,000 Tabs and one Client.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks import budgets
from benchmarks.agent import RINGS, Draining
from benchmarks.cold import spread
from benchmarks.rows import Figure, Row, interleave
from benchmarks.sending import Streams, send
from benchmarks.services import Effort, running

FEW, MANY = 100, 100_000  # Tabs
COLUMN_EVENTS = 20
RING_BYTES = 4 * 2**20  # of each client: its records hold 20 events of 6,250 Tabs
ENVELOPE_BYTES = 2**18


def run(effort: Effort) -> list[Row]:
    many = effort.pick(MANY // 10, MANY)
    rounds = effort.pick(2, 5)
    with running(TABA_RING_BYTES=str(RING_BYTES)) as services:
        rows = _agent(services.environ, services.directory, many, rounds)
        return rows + _server(services.server_url, many, rounds)


def _agent(environ: dict[str, str], directory: Path, many: int, rounds: int) -> list[Row]:
    with ExitStack() as stack:
        drainings = {FEW: Draining(stack, environ, directory, FEW), many: Draining(stack, environ, directory, many // RINGS, apart=True)}
        events = {FEW: FEW * COLUMN_EVENTS, many: many // RINGS * COLUMN_EVENTS}  # a ring

        def drain(tabs: int) -> float:
            draining = drainings[tabs]
            draining.fill(events[tabs])
            seconds = draining.drain()
            draining.acknowledge()
            return seconds / (RINGS * events[tabs]) * 1e9

        for tabs in drainings:
            drain(tabs)
        found = interleave({"few": lambda: drain(FEW), "many": lambda: drain(many)}, rounds)
    return _rows(f"Agent, {COLUMN_EVENTS} events a column", "ns/event", many, found)


def _server(url: str, many: int, rounds: int) -> list[Row]:
    streams = Streams()

    def fold(tabs: int) -> float:
        dealt = streams.envelopes(spread(tabs, many // tabs, time.time()), ENVELOPE_BYTES)
        return send(url, dealt) / many * 1e9

    for tabs in (FEW, many):
        fold(tabs)
    found = interleave({"few": lambda: fold(FEW), "many": lambda: fold(many)}, rounds)
    return _rows(f"Server, one event for each of {many:,} States", "ns/event", many, found)


def _rows(what: str, unit: str, many: int, found: dict[str, list[float]]) -> list[Row]:
    growth = Figure.of(more / less for more, less in zip(found["many"], found["few"], strict=True))
    return [
        Row(f"{what}: {FEW} Tabs", Figure.of(found["few"]), unit),
        Row(f"{what}: {many:,} Tabs", Figure.of(found["many"]), unit),
        Row("… growth", growth, "times", budgets.SCALE),
    ]
