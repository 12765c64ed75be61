"""Signals as something to wait for, for programs without a reactor."""

from __future__ import annotations

import math
import os
import select
import signal
from types import TracebackType

LONG_SECONDS = 3600.0  # of one look, where the wait has no end


class Interrupted:
    """SIGINT and SIGTERM, or those given, noted and to be waited for: no signal cuts in two what is under way.

    An exception that a handler raises is lost where the signal comes in a finalizer or in a weak reference's callback, and
    `threading.Event.set` in a handler waits for ever where it comes in the middle of that event's own `wait`. This only notes and wakes.

    A context manager, of the main thread; the handlers that were there before are put back.
    """

    def __init__(self, *numbers: signal.Signals) -> None:
        self._numbers = numbers or (signal.SIGINT, signal.SIGTERM)
        self.number: int | None = None  # of the last one that came

    def __enter__(self) -> Interrupted:
        self._pipe = os.pipe()
        self._before = {number: signal.signal(number, self._note) for number in self._numbers}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for descriptor in self._pipe:
            os.close(descriptor)

    def _note(self, number: int, frame: object) -> None:
        if self.number is None:
            os.write(self._pipe[1], b"!")
        self.number = number

    def fileno(self) -> int:
        """Readable once a signal came."""
        return self._pipe[0]

    def wait(self, seconds: float = math.inf) -> bool:
        """Sleep until the time is over or a signal came; whether one did."""
        while seconds > LONG_SECONDS:
            if select.select([self], [], [], LONG_SECONDS)[0]:
                return True
            seconds -= LONG_SECONDS
        return bool(select.select([self], [], [], max(0.0, seconds))[0])
