"""Runs a fold's steps as an update of Router.transact: what it has to read, and what others fold for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from taba.server.fold import Foreign, ForeignWork, Outcome, Reads, Steps
from taba.shard import More, Writes

FoldForeign = Callable[[list[ForeignWork], float], Awaitable[list[Any]]]


def advance(steps: Steps, sent: Any, fold_foreign: FoldForeign, now: Callable[[], float]) -> Any:
    """Run a fold to its next need: Writes with its Outcome, More, or an awaitable of one (see Router.transact)."""
    try:
        need = steps.send(sent)
    except StopIteration as stop:
        outcome: Outcome = stop.value
        return Writes(outcome.commands, outcome)
    if isinstance(need, Reads):
        return More(need.commands, lambda replies: advance(steps, replies, fold_foreign, now))
    return _advance_foreign(steps, need, fold_foreign, now)


async def _advance_foreign(steps: Steps, need: Foreign, fold_foreign: FoldForeign, now: Callable[[], float]) -> Any:
    step = advance(steps, await fold_foreign(need.works, now()), fold_foreign, now)
    return step if isinstance(step, (Writes, More)) else await step
