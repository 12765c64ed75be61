"""How large States become in the store: the frames and dumps of all their parts, as a Server writes them.

Each State is made by its Handler from steady traffic: an event every second, folded every three seconds of a clock that is passed in,
as long as said. A size is taken after every fold of the last minutes: the journal of a CounterGroup grows until it spills, so the figure
is their median, and the JSON has the least and the most.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks import budgets
from benchmarks.budgets import Budget
from benchmarks.rows import Figure, Row
from benchmarks.services import Effort
from taba.handlers.lookup import find_handlers
from taba.server.keys import FRAME_BYTES

NOW = 1_800_000_000.0
CYCLE_SECONDS = 3.0  # of a fold
MEASURED_FOLDS = 100  # five minutes' worth: several spills; of one minute, the last fold alone
VALUES = 1.3 ** np.arange(20)  # 20 occupied bins


def run(effort: Effort) -> list[Row]:
    handlers = find_handlers()
    hours = effort.pick(1, 24)
    told = "a full day" if hours == 24 else f"{hours} h of a day (quick)"
    spread = np.random.default_rng(1).lognormal(0.0, 1.0, 4096)
    rows = []
    for type, values, what, seconds, budget in (
        ("CounterGroup", VALUES, "20 bins, one active minute", 60, budgets.COUNTER_MINUTE),
        ("CounterGroup", VALUES, f"20 bins, {told}", hours * 3600, budgets.COUNTER_DAY),
        ("CounterGroup", spread, f"lognormal values, {told}", hours * 3600, None),
        ("PercentileGroup", VALUES, f"20 bins, {told}", hours * 3600, budgets.PERCENTILE_DAY),
        ("PercentileGroup", spread, f"lognormal values, {told}", hours * 3600, None),
    ):
        rows.append(_row(handlers.get(type), values, f"{type}, {what}", seconds, budget))
    return rows


def _row(handler: Any, values: np.ndarray, name: str, seconds: int, budget: Budget | None) -> Row:
    sizes = []
    state = Folded(handler)
    folds = int(seconds / CYCLE_SECONDS)
    # all but the last minutes in larger steps: slots of older times are wide, and do not show by how many folds they were filled
    coarse = max(0, folds - MEASURED_FOLDS - 20) // 20
    chance = np.random.default_rng(2)
    now = NOW - seconds
    for fold in range(coarse + folds - 20 * coarse):
        step = 20 * CYCLE_SECONDS if fold < coarse else CYCLE_SECONDS
        times = now + np.arange(1.0, step + 1.0)
        now += step
        state.fold(times, chance.choice(values, len(times)), now)
        if fold >= coarse:
            sizes.append(state.size)
    return Row(
        name,
        Figure.of(sizes[-MEASURED_FOLDS:] if coarse else sizes[-1:]),
        "bytes",
        budget,
        note=f"in the end {len(state.main) + FRAME_BYTES} of them in the main part",
    )


class Folded:
    """One State as the Server keeps it: the dumps of its main part and of its further parts."""

    def __init__(self, handler: Any):
        self.handler = handler
        self.main = b""
        self.further = [b""] * handler.further_parts

    def fold(self, times: np.ndarray, values: np.ndarray, now: float) -> None:
        handler = self.handler
        states = handler.fold_array(handler.load_array([self.main]), np.zeros(len(times), np.int64), times, values, now)
        if handler.further_parts and len(rows := handler.spilling(states)):
            [self.further] = handler.spill(states, rows, [self.further])
        [self.main] = handler.dump_array(states)

    @property
    def size(self) -> int:
        return sum(len(part) + FRAME_BYTES for part in (self.main, *self.further) if part)
