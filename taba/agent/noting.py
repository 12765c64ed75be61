"""Notes of an Agent's inputs, on their way to a Server: one after the other, each until a Server has it or refuses it.

They lie on the inputs' desks (`taba.desk`), bounded and counted there; what is settled is told there, too. A note whose answer was lost is
posted again: it may stand twice, and is never lost.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from twisted.internet import defer

from taba.agent.lanes import Backoff

PATIENCE_SECONDS = 30.0  # for which notes wait before a person is told: Servers are started again in less
Post = Callable[[str, float], Coroutine[Any, Any, bool]]


class Desks(Protocol):
    """Whose notes these are."""

    def next_note(self) -> tuple[str, float] | None:
        """The text and the time of the note that waits for longest."""

    def settle_note(self, is_refused: bool) -> None:
        """A Server has it, or wants none such."""


class Noting:
    """Posts what `desks` have, by `post`: True once a Server has it, False where it refuses it; raises where none answers."""

    def __init__(self, desks: Sequence[Desks], post: Post, seconds: Callable[[], float], backoff: Backoff):
        self._desks, self._post, self._seconds, self._backoff = desks, post, seconds, backoff
        self._under_way: defer.Deferred[None] | None = None
        self._failures = 0
        self._not_before = 0.0
        self._failing_since = 0.0
        self._problem = ""

    def tick(self) -> None:
        """Once a second: post what waits."""
        if self._under_way is None and self._seconds() >= self._not_before and any(desk.next_note() for desk in self._desks):
            running = defer.ensureDeferred(self._send())
            if not running.called:
                self._under_way = running

    async def _send(self) -> None:
        try:
            for desk in self._desks:
                while (note := desk.next_note()) is not None:
                    desk.settle_note(is_refused=not await self._post(*note))
            self._failures, self._problem = 0, ""
        except defer.CancelledError:
            return  # the Agent ends: what is on a desk is the next one's
        except Exception as error:  # whatever a peer came up with: the notes stay where they are
            if not self._failures:
                self._failing_since = self._seconds()
            self._failures += 1
            self._not_before = self._seconds() + self._backoff.delay(self._failures)
            self._problem = f"{error}"[:300] or type(error).__name__
        finally:
            self._under_way = None

    def stop(self) -> None:
        """Post nothing more."""
        self._not_before = float("inf")
        if self._under_way is not None:
            self._under_way.cancel()

    def look(self, waiting: int) -> dict[str, str]:
        """What needs a person, where so many wait: a sentence, by a key."""
        if not waiting or not self._failures or self._seconds() - self._failing_since < PATIENCE_SECONDS:
            return {}
        return {"notes": f"notes of inputs wait ({waiting}), for no Server takes them ({self._problem}); mend that: they are tried again"}
