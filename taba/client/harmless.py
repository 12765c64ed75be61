"""What keeps an application from harm: a lock that is not waited for without end, and whose fault an exception is."""

from __future__ import annotations

from time import monotonic, sleep
from typing import Any

WAIT_SECONDS = 1.0  # for another thread that makes a ring: a thousand times as long as that takes; on a host with ten processes a core
# a tenth of it was too short. Then the event is dropped
FIRST_PAUSE, MOST_PAUSE = 0.0001, 0.01  # seconds between two looks whether a lock is free


def acquire_within(lock: Any, seconds: float) -> bool:
    """Whether the lock was taken within so long, by a clock that nobody sets.

    Its own wait goes by the wall clock where the C library has no sem_clockwait, or Python was built for an older one: set back by an hour
    meanwhile, it waits an hour.
    """
    if lock.acquire(False):
        return True
    deadline, pause = monotonic() + seconds, FIRST_PAUSE
    while monotonic() < deadline:
        sleep(pause)
        if lock.acquire(False):
            return True
        pause = min(2 * pause, MOST_PAUSE)
    return False


def is_foreign(error: BaseException) -> bool:
    """Whether code that is not Taba's raised this: a signal handler, say, that ran between two steps of Taba's."""
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    return not str(trace.tb_frame.f_globals.get("__name__")).startswith("taba.")
