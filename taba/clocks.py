"""The clocks that the processes of Taba run on, and the only places where they are read for what must not jump.

1. Timers follow CLOCK_MONOTONIC: nobody can set it. Twisted's own reactors follow the wall clock, and stand still when that is set back.
2. Age follows CLOCK_BOOTTIME, which counts on while the machine sleeps, and says nothing across boots: a boot has an id.
"""

from __future__ import annotations

import time
from typing import Any

BOOT_ID_PATH = "/proc/sys/kernel/random/boot_id"


def make_monotonic(reactor: Any) -> None:
    """Have `reactor` count time by the monotonic clock. Before anything else; a second time it changes nothing.

    Calls that are already there (twistd and plugins make some) are moved along: they would never be due otherwise.
    """
    if reactor.seconds is time.monotonic:
        return
    shift = time.monotonic() - reactor.seconds()
    reactor.seconds = time.monotonic
    # all by the same, so that the heap stays one; cancelled ones too, or one of them at its top would hold up all behind it
    for call in (*reactor._pendingTimedCalls, *reactor._newTimedCalls):
        call.seconds = time.monotonic
        call.time += shift


def boot_seconds() -> float:
    """Seconds since this machine booted, sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Which boot of which machine this is; "" where nobody says."""
    try:
        with open(BOOT_ID_PATH, encoding="ascii") as file:
            return file.read(64).strip()
    except (OSError, ValueError):  # a chroot without /proc: no two boots are known to be the same
        return ""
