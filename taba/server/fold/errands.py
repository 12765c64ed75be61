"""Running the fold of a cycle for the Router: what it wants to read, what it has folded elsewhere, and turns of others, until it says
what is written."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from taba.server.fold.cycle import CycleSteps, Foreign, Outcome, Reads
from taba.server.work.bench import Bench
from taba.server.work.pace import Pause
from taba.server.work.rows import Folded, ForeignWork
from taba.shard import More, Writes


class Errands:
    """What one cycle has folded elsewhere, all its tries together: it waits for so many seconds at the most. Raises HandlerSlow then."""

    def __init__(
        self,
        bench: Bench,
        now: Callable[[], float],
        seconds: Callable[[], float],
        most: float,
        breathe: Callable[[], Awaitable[None]],
        is_retry: bool = False,
    ):
        """`seconds` is monotonic; `breathe`: others have a turn; `is_retry`: dead letters are folded again."""
        self._bench, self._now, self._seconds, self._left, self._is_retry = bench, now, seconds, most, is_retry
        self.breathe = breathe

    async def run(self, works: list[ForeignWork]) -> list[Folded | list[int]]:
        """For each work a Folded, or the rows that it wants parts of."""
        began = self._seconds()
        try:
            return await self._bench.fold_elsewhere(works, self._now(), max(0.0, self._left), self._is_retry)
        finally:
            self._left -= self._seconds() - began


def advance(steps: CycleSteps, sent: Any, errands: Errands) -> Any:
    """Run a fold to its next need, as an update of Router.transact: Writes with its Outcome, More, or an awaitable of one."""
    step = _step(steps, sent, errands)
    return step if isinstance(step, (Writes, More)) else _advance_later(steps, step, errands)


def _step(steps: CycleSteps, sent: Any, errands: Errands) -> Writes | More | Foreign | Pause:
    try:
        need = steps.send(sent)
    except StopIteration as stop:
        outcome: Outcome = stop.value
        return Writes(outcome.commands, outcome)
    if isinstance(need, Reads):
        return More(need.commands, lambda replies: advance(steps, replies, errands))
    return need


async def _advance_later(steps: CycleSteps, need: Foreign | Pause, errands: Errands) -> Writes | More:
    while True:
        sent = await (errands.breathe() if isinstance(need, Pause) else errands.run(need.works))
        step = _step(steps, sent, errands)
        if isinstance(step, (Writes, More)):
            return step
        need = step
