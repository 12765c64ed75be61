"""Running the fold of a cycle for the Router: what it wants to read, and what it has folded elsewhere, until it says what is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from taba.server.fold.cycle import CycleSteps, Foreign, Outcome, Reads
from taba.server.work.bench import Bench
from taba.server.work.folding import Folded, ForeignWork
from taba.shard import More, Writes


class Errands:
    """What one cycle has folded elsewhere, all its tries together: it waits for so many seconds at the most. Raises HandlerSlow then."""

    def __init__(self, bench: Bench, now: Callable[[], float], seconds: Callable[[], float], most: float, is_retry: bool = False):
        """`seconds` is monotonic; `is_retry`: dead letters are folded again."""
        self._bench, self._now, self._seconds, self._left, self._is_retry = bench, now, seconds, most, is_retry

    async def run(self, works: list[ForeignWork]) -> list[Folded | list[int]]:
        """For each work a Folded, or the rows that it wants parts of."""
        began = self._seconds()
        try:
            return await self._bench.fold_elsewhere(works, self._now(), max(0.0, self._left), self._is_retry)
        finally:
            self._left -= self._seconds() - began


def advance(steps: CycleSteps, sent: Any, errands: Errands) -> Any:
    """Run a fold to its next need, as an update of Router.transact: Writes with its Outcome, More, or an awaitable of one."""
    try:
        need = steps.send(sent)
    except StopIteration as stop:
        outcome: Outcome = stop.value
        return Writes(outcome.commands, outcome)
    if isinstance(need, Reads):
        return More(need.commands, lambda replies: advance(steps, replies, errands))
    return _advance_elsewhere(steps, need, errands)


async def _advance_elsewhere(steps: CycleSteps, need: Foreign, errands: Errands) -> Any:
    step = advance(steps, await errands.run(need.works), errands)
    return step if isinstance(step, (Writes, More)) else await step
