"""What the past costs: curves and Aggregates of many Clients' full days, from their bytes; and what one State for all Clients would.

All States are of a day of one event a second (some different ones, taken in turn), as a Server reads them. A curve is a Tab's count at each
of its points. Nothing is read from a store, nothing becomes JSON.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import budgets
from benchmarks.rows import Beside, Figure, Row, interleave
from benchmarks.services import Effort
from benchmarks.states import Folded
from taba.handlers.lookup import find_handlers
from taba.history import curve, heat_map, points, quantiles
from taba.server.keys import ABSENT, Framed
from taba.server.work.folding import fold_type
from taba.server.work.projecting import aggregate_states
from taba.server.work.rows import Work

NOW = 1_800_000_007.0
STEP_SECONDS = 300.0  # folded at a time while the day passes
DIFFERENT = 4
CLIENTS = 300
TABS = 100
VALUES = 1.3 ** np.arange(20)  # 20 occupied bins
THICK, THIN = 1000, 10  # States with an event each in a cycle, of Tabs that THIN_CLIENTS share
THIN_CLIENTS = 10


def run(effort: Effort) -> list[Row]:
    handlers = find_handlers()
    counter: Any = handlers.get("CounterGroup")
    percentile: Any = handlers.get("PercentileGroup")
    hours = effort.pick(2, 24)
    spread = np.random.default_rng(1).lognormal(0.0, 1.0, 4096)
    counters, twenties, lognormals = (
        _states(handler, values, hours) for handler, values in ((counter, VALUES), (percentile, VALUES), (percentile, spread))
    )
    hour = points(NOW - 3600, NOW, 15)
    one, many = np.zeros(CLIENTS, np.int64), np.arange(TABS).repeat(10)
    history, wide = counter.history(counters[:CLIENTS], NOW), counter.history(counters, NOW)

    def asked(handler: Any, states: list[list[bytes]], groups: np.ndarray, total: int) -> Callable[[], float]:
        framed = [[Framed(handler.version, 0, part) for part in state] for state in states[: len(groups)]]

        def ask() -> float:
            start = time.perf_counter()
            found = aggregate_states(handler, framed, groups, total, NOW)
            if found is None or len(found) != total:
                raise RuntimeError("no Aggregates")
            return (time.perf_counter() - start) * 1000

        return ask

    past: Any = percentile.history(lognormals[:CLIENTS], NOW)
    bins = np.asarray(past.codes, dtype=np.int64) + 32_768
    slots = np.asarray(history.count, dtype=np.float64)
    begins, ends = np.array([NOW - 3600]), np.array([NOW])

    found = interleave(
        {
            "curve": lambda: _timed(lambda: curve(history, one, 1, hour)),
            "history": lambda: _timed(lambda: counter.history(counters[:CLIENTS], NOW)),
            "curves": lambda: _timed(lambda: curve(wide, many, TABS, hour)),
            "counter": asked(counter, counters, one, 1),
            "twenty": asked(percentile, twenties, one, 1),
            "lognormal": asked(percentile, lognormals, one, 1),
            "window": lambda: _timed(lambda: quantiles(*heat_map(past, one, 1, begins, ends), [0.5, 0.99])),
            "bins": lambda: _timed(lambda: np.bincount(bins, weights=past.counts)),
            "slots": lambda: _timed(lambda: slots.cumsum()),
            "alone": asked(counter, counters, one[:1], 1),
            "thick": lambda: _fold(counter, counters, THICK, 0),
            "thick, all": lambda: _fold(counter, counters, THICK, THICK // THIN_CLIENTS),
            "thin": lambda: _fold(counter, counters, THIN, 0),
            "thin, all": lambda: _fold(counter, counters, THIN, THIN),
        },
        effort.pick(3, 15),
    )
    told = "a full day" if hours == 24 else f"{hours} h (quick)"
    figure = {name: Figure.of(samples) for name, samples in found.items()}
    return [
        Row(
            f"one curve of {CLIENTS} Clients, an hour by 15 s",
            figure["curve"],
            "ms",
            budgets.CURVE,
            floor=Beside("numpy's sum over as many slots", figure["slots"]),
            note=f"States of {told}",
        ),
        Row("… their slots, from bytes", figure["history"], "ms"),
        Row(f"{TABS} curves of 10 Clients each, {len(hour)} points", figure["curves"], "ms", budgets.CURVES),
        Row(f"Aggregate of {CLIENTS} CounterGroups, from bytes", figure["counter"], "ms", budgets.COUNTER_AGGREGATE),
        Row(f"Aggregate of {CLIENTS} PercentileGroups, 20 bins", figure["twenty"], "ms", budgets.PERCENTILE_AGGREGATE),
        Row(
            f"Aggregate of {CLIENTS} PercentileGroups, lognormal",
            figure["lognormal"],
            "ms",
            budgets.PERCENTILE_AGGREGATE,
            floor=Beside("numpy's count of as many bins", figure["bins"]),
        ),
        Row(
            "… percentiles of one window of an hour, of their slots",
            figure["window"],
            "ms",
            budgets.PERCENTILE_WINDOW,
            floor=Beside("numpy's count of all bins", figure["bins"]),
        ),
        Row("Aggregate of one State for all Clients", figure["alone"], "ms", note="what every question would cost with _all"),
        Row(
            f"fold of {THICK} States and {THICK // THIN_CLIENTS} of all Clients",
            figure["thick, all"],
            "ms",
            floor=Beside(f"{THICK} States alone", figure["thick"]),
        ),
        Row(
            f"fold of {THIN} States and {THIN} of all Clients",
            figure["thin, all"],
            "ms",
            floor=Beside(f"{THIN} States alone", figure["thin"]),
        ),
    ]


def _states(handler: Any, values: np.ndarray, hours: int) -> list[list[bytes]]:
    """TABS × 10 full-day States."""
    found = []
    for seed in range(DIFFERENT):
        chance, state = np.random.default_rng(seed), Folded(handler)
        for step in range(int(hours * 3600 / STEP_SECONDS)):
            now = NOW - hours * 3600 + (step + 1) * STEP_SECONDS
            state.fold(now - np.arange(STEP_SECONDS), chance.choice(values, int(STEP_SECONDS)), now)
        found.append([state.main, *state.further])
    return [found[place % DIFFERENT] for place in range(TABS * 10)]


def _timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1000


def _fold(handler: Any, states: list[list[bytes]], rows: int, of_all: int) -> float:
    """Milliseconds of a cycle's fold: `rows` States with an event each; `of_all` more have the events of all Clients of a Tab."""
    framed = [Framed(handler.version, 0, states[row % len(states)][0]) for row in range(rows + of_all)]
    event = np.array([NOW]).tobytes()
    columns: list[tuple[int, bytes, Any]] = [(row, event, event) for row in range(rows)]
    if of_all:
        columns += [(rows + row % of_all, event, event) for row in range(rows)]
    start = time.perf_counter()
    folding = fold_type(handler, True, Work(framed, columns), NOW + 1)
    sent: Any = None
    try:
        while True:
            wanted = folding.send(sent)
            sent = {row: [ABSENT] * handler.further_parts for row in wanted}
    except StopIteration as stop:
        if len(stop.value.states) != rows + of_all:
            raise RuntimeError("not all were folded") from None
    return (time.perf_counter() - start) * 1000
