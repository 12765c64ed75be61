"""What each Type costs where it is folded and shown: bytes of a State, time for a State, for an Event, for a Projection. No store, no wire.

The States are those of a day of one event a second, all alike. Folding goes through the code that a Server runs in its cycles
(load, fold, dump), showing through that of its answers (load, project, aggregate). The machine's own speed stands beside each time:
how long it takes to count the same events with numpy alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks import budgets
from benchmarks.rows import Beside, Figure, Row, interleave
from benchmarks.services import Effort
from taba.handlers.lookup import Lookup, find_handlers
from taba.server.keys import ABSENT, Framed
from taba.server.work.folding import fold_type
from taba.server.work.projecting import aggregate_type, project_type
from taba.server.work.rows import Work

NOW = 1_800_000_000.0
STEP_SECONDS = 60.0  # folded at a time while the day passes
COLD_STATES = 1000  # with one event each
HOT_STATES, HOT_EVENTS = 100, 1000
CLIENTS = 300

WORDS = np.array([f"user-{number}" for number in range(5000)])
FEW = 1.3 ** np.arange(20)  # 20 occupied bins
TWENTY, MANY, TEXTS = "20 bins", "lognormal", "words"
CASES = (
    ("CounterGroup", TWENTY),
    ("CounterGroup", MANY),
    ("PercentileGroup", TWENTY),
    ("PercentileGroup", MANY),
    ("PercentileCounter", TWENTY),
    ("PercentileCounter", MANY),
    ("TotalsCounter", MANY),
    ("UpDown", MANY),
    ("Gauge", MANY),
    ("ExpiryGauge", TEXTS),
    ("Buffer", TEXTS),
    ("Cardinality", TEXTS),
    ("TopK", TEXTS),
)


class Kept(NamedTuple):
    """One State as the store has it."""

    main: Framed
    further: list[Framed]


class Case(NamedTuple):
    """A Type, a State of it, and what is recorded."""

    handler: Any
    is_array: bool
    kept: Kept
    values: Callable[[int], Any]


def run(effort: Effort) -> list[Row]:
    lookup, hours, rounds = find_handlers(), effort.pick(1, 24), effort.pick(3, 7)
    cases = {f"{type}, {what}": _case(lookup, type, what, hours) for type, what in CASES}
    cold = interleave({"floor": _count, **{type: partial(_fold, case, COLD_STATES, 1) for type, case in cases.items()}}, rounds)
    hot = interleave({type: partial(_fold, case, HOT_STATES, HOT_EVENTS) for type, case in cases.items()}, rounds)
    shown = interleave({type: partial(_show, case) for type, case in cases.items()}, rounds)
    floor = Beside("numpy.bincount of as many events", Figure.of([seconds * 1e9 for seconds in cold["floor"]]))
    rows = []
    for type, case in cases.items():
        size = sum(len(part.dump) for part in (case.kept.main, *case.kept.further))
        told = f"{len(case.kept.main.dump)} of them read and written by each fold" if case.kept.further else ""
        each = {
            "cold": [seconds / COLD_STATES * 1e6 for seconds in cold[type]],
            "hot": [seconds / HOT_STATES / HOT_EVENTS * 1e9 for seconds in hot[type]],
            "project": [seconds / CLIENTS * 1e6 for seconds, _ in shown[type]],
            "aggregate": [seconds * 1e3 for _, seconds in shown[type]],
        }
        rows += [
            Row(f"{type}: a State after {hours} h", Figure.of([size]), "bytes", note=told),
            Row(f"{type}: cold, one event for each of {COLD_STATES} States", Figure.of(each["cold"]), "µs"),
            Row(f"{type}: hot, {HOT_EVENTS} events for each of {HOT_STATES}", Figure.of(each["hot"]), "ns", floor=floor),
            Row(f"{type}: a Projection, of {CLIENTS} at once", Figure.of(each["project"]), "µs"),
            Row(f"{type}: an Aggregate of {CLIENTS} Projections", Figure.of(each["aggregate"]), "ms", budgets.AGGREGATE),
        ]
    return rows


def _case(lookup: Lookup, type: str, what: str, hours: int) -> Case:
    handler, is_array, chance = lookup.get(type), lookup.is_array(type), np.random.default_rng(2)
    assert handler is not None, lookup.problems

    def values(count: int) -> Any:
        if what == TWENTY:
            return chance.choice(FEW, count)
        if what == MANY:
            return chance.lognormal(0.0, 1.0, count)
        return WORDS[np.minimum(chance.zipf(1.3, count), len(WORDS)) - 1].tolist()

    kept = Kept(ABSENT, [ABSENT] * (handler.further_parts if is_array else 0))
    now = NOW - hours * 3600
    while now < NOW:
        now += STEP_SECONDS
        times = now - np.arange(STEP_SECONDS)[::-1]
        [kept] = _folded(handler, is_array, [kept], [(0, times.tobytes(), _packed(values(len(times))))], now)
    return Case(handler, is_array, kept, values)


def _packed(values: Any) -> Any:
    return values.tobytes() if isinstance(values, np.ndarray) else values


def _folded(handler: Any, is_array: bool, kept: Sequence[Kept], columns: Any, now: float) -> list[Kept]:
    steps = fold_type(handler, is_array, Work([one.main for one in kept], columns), now)
    asked: Any = None
    try:
        while True:
            rows = steps.send(asked)
            asked = {row: kept[row].further for row in rows}
    except StopIteration as stop:
        folded = stop.value
    assert not folded.failed, folded.failed
    version = handler.version
    return [
        Kept(
            Framed(version, int(now), folded.states[row]),
            [Framed(version, int(now), part) for part in folded.parts[row]] if row in folded.parts else one.further,
        )
        for row, one in enumerate(kept)
    ]


def _fold(case: Case, states: int, events: int) -> float:
    """Seconds to fold `events` into each of `states`."""
    times = NOW + 1 + np.linspace(0, 2, events)
    columns = [(row, times.tobytes(), _packed(case.values(events))) for row in range(states)]
    kept = [case.kept] * states
    begun = time.perf_counter()
    _folded(case.handler, case.is_array, kept, columns, NOW + 4)
    return time.perf_counter() - begun


def _show(case: Case) -> tuple[float, float]:
    """Seconds to project all Clients, and to aggregate them."""
    states = [[case.kept.main, *case.kept.further]] * CLIENTS
    begun = time.perf_counter()
    projections = project_type(case.handler, case.is_array, states, NOW + 4)
    projected = time.perf_counter()
    answer = aggregate_type(case.handler, projections)
    done = time.perf_counter()
    assert isinstance(answer, dict), answer
    return projected - begun, done - projected


def _count() -> float:
    """Seconds for numpy to count an event: nothing that folds is quicker."""
    rows = np.repeat(np.arange(HOT_STATES), HOT_EVENTS)
    values = np.ones(len(rows))
    begun = time.perf_counter()
    np.bincount(rows, weights=values)
    return (time.perf_counter() - begun) / len(rows)
