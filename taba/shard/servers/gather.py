"""Several coroutines at once, each with its own ending."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredList, ensureDeferred

T = TypeVar("T")


async def gather(coroutines: Sequence[Coroutine[Deferred[Any], Any, T]]) -> list[T | Exception]:
    """Run all; their results in order, an exception standing where one raised it. Cancelling cancels all, and raises CancelledError."""
    if len(coroutines) == 1:  # the most frequent case: one key, or one shard
        try:
            return [await coroutines[0]]
        except CancelledError:
            raise
        except Exception as error:
            return [error]
    outcomes: Any = await DeferredList([ensureDeferred(coroutine) for coroutine in coroutines], consumeErrors=True)
    results: list[T | Exception] = []
    for succeeded, outcome in outcomes:
        if succeeded:
            results.append(outcome)
        elif isinstance(outcome.value, Exception) and not isinstance(outcome.value, CancelledError):
            results.append(outcome.value)
        else:
            raise outcome.value
    return results
