"""Work that whoever asked for it may leave.

Who leaves before it has begun takes it along. Work that has begun goes on to its end, within its own bound: to break it off costs the child
that others wait for, and what there is to learn of it, as that it took too long, would be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from taba.errors import TabaError

T = TypeVar("T")

log = Logger()


class Asked:
    """Work that somebody asked for. `is_begun`: it goes on, whoever leaves. `is_left`: nobody waits for it any more."""

    def __init__(self) -> None:
        self.is_begun = self.is_left = False

    def begin(self) -> None:
        """From now on it goes on to its end."""
        self.is_begun = True

    def pause(self) -> None:
        """Who leaves now takes it along."""
        self.is_begun = False


async def leavable(work: Callable[[Asked], Coroutine[Any, Any, T]]) -> T:
    """What `work` comes to. Who is cancelled while it waits for that leaves work that has begun to go on by itself."""
    asked = Asked()
    answer: Deferred[T] = Deferred()

    def ended(outcome: Any) -> None:
        if not asked.is_left:
            (answer.errback if isinstance(outcome, Failure) else answer.callback)(outcome)
        elif isinstance(outcome, Failure) and not outcome.check(CancelledError, TabaError):
            log.failure("what nobody waits for any more failed", failure=outcome)

    working = ensureDeferred(work(asked))
    working.addBoth(ended)
    try:
        return await answer
    except CancelledError:
        asked.is_left = True
        if not asked.is_begun:
            working.cancel()
        raise
