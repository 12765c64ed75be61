"""Census: a Type whose State remembers which events were folded into it, and which of them more than once.

An event's value is its number, from 1, among those of its Client and Tab. A State is runs of numbers, as few as can be: so it stays small
while events are folded in about their order, and says of each event whether it is there once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np

from taba.handlers import ArrayHandler, Handler


class Census(Handler):
    """[numbers that came again, [first, last, first, last, …]]"""

    type = "Census"

    def new_state(self) -> Any:
        return [0, []]

    def fold(self, state: Any, events: Any, now: float) -> Any:
        again, runs = state
        again, runs = again, list(runs)
        for value in events.values:
            again += not add(runs, int(value[0] if isinstance(value, list) else value))
        return [again, runs]

    def project(self, state: Any, now: float) -> Any:
        again, runs = state
        return {"count": count(runs), "again": again}

    def aggregate(self, projections: Sequence[Any]) -> Any:
        return {key: sum(projection[key] for projection in projections) for key in ("count", "again")}


class Ledger(ArrayHandler):
    """The same of Events that Agents fold, too: [numbers that came again, [first, last, …]] of each row."""

    type = "Ledger"
    edge = 1

    def load_array(self, dumps: Sequence[bytes]) -> Any:
        return [msgpack.unpackb(dump) if dump else [0, []] for dump in dumps]

    def fold_array(self, states: Any, rows: Any, times: Any, values: Any, now: float) -> Any:
        for row, value in zip(rows.tolist(), values.tolist(), strict=True):
            states[row][0] += not add(states[row][1], int(value))
        return states

    def count_array(self, dumps: Sequence[bytes]) -> Any:
        return np.array([again + count(runs) for again, runs in self.load_array(dumps)])

    def merge_array(self, states: Any, rows: Any, dumps: Sequence[bytes], now: float) -> Any:
        for row, (again, runs) in zip(rows.tolist(), self.load_array(dumps), strict=True):
            states[row][0] += again + sum(not add(states[row][1], number) for number in sorted(numbers(runs)))
        return states

    def dump_array(self, states: Any) -> list[bytes]:
        return [msgpack.packb(state) for state in states]

    def project_array(self, states: Any, parts: Any, now: float) -> list[Any]:
        return [{"count": count(runs), "again": again} for again, runs in states]

    def aggregate(self, projections: Sequence[Any]) -> Any:
        return {key: sum(projection[key] for projection in projections) for key in ("count", "again")}


class OlderLedger(Ledger):
    """The same as a Server has it that merges nothing of what Agents fold."""

    edge = None  # type: ignore[assignment]


CENSUSES = (Census.type, Ledger.type)
RECORDED = (Census.type, Census.type, "UpDown")  # in most worlds
FOLDING = (Ledger.type, Ledger.type, "UpDown")  # in those whose Agents fold


def add(runs: list[int], number: int) -> bool:
    """Add a number to runs in order; False where it was there."""
    if not runs or number > runs[-1] + 1:
        runs += (number, number)
        return True
    if number == runs[-1] + 1:
        runs[-1] = number
        return True
    for place in range(0, len(runs), 2):
        first, last = runs[place], runs[place + 1]
        if number < first - 1:
            runs[place:place] = (number, number)
            return True
        if first <= number <= last:
            return False
        if number == first - 1:
            runs[place] = number
            return True
        if number == last + 1:
            if place + 2 < len(runs) and runs[place + 2] == number + 1:
                runs[place + 1 : place + 3] = []
            else:
                runs[place + 1] = number
            return True
    raise AssertionError(f"{number} has no place in {runs}")


def count(runs: Sequence[int]) -> int:
    """How many numbers there are."""
    return sum(last - first + 1 for first, last in zip(runs[::2], runs[1::2], strict=True))


def numbers(runs: Sequence[int]) -> set[int]:
    """All of them."""
    return {number for first, last in zip(runs[::2], runs[1::2], strict=True) for number in range(first, last + 1)}
