"""A table of descriptors that is full, this process's own or its host's: what is said of it, and what a listening port does then.

1. Nobody is cut for it, and nothing spins: who comes to connect waits in the kernel's queue until there is room; who is in is served.
2. It is told while it is so, and for SHOWN_SECONDS after it was found so last: one that is full again and again is one problem.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from typing import Any

WAIT_SECONDS = 0.25  # between two looks whether there is room again for whoever waits at the port
SHOWN_SECONDS = 30.0  # longer than a log waits between two looks at what is wrong

NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


def cure_of(number: int, whose: str) -> str:
    """What helps where opening fails with this `errno`, one of NO_DESCRIPTORS; `whose` table it is: "the Agent", "this process"."""
    if number == errno.EMFILE:
        return f"raise {whose}'s limit of descriptors (LimitNOFILE, ulimit -n)"
    return "raise the host's limit of descriptors (fs.file-max)"


class Descriptors:
    """The table of this process; `whose` it is: "Agent", "Server". `seconds` is a monotonic clock."""

    def __init__(self, whose: str, seconds: Callable[[], float]):
        self._whose, self._seconds = whose, seconds
        self._found: tuple[float, int] | None = None  # when no descriptor was to be had last, and the error

    def has_room(self) -> bool:
        """Whether one more may be opened now."""
        try:
            os.close(os.eventfd(0, os.EFD_CLOEXEC))  # an entry of its own in the host's table, too
        except OSError as error:
            if error.errno not in NO_DESCRIPTORS:
                return True  # whatever it is, it is not the tables
            self._found = self._seconds(), error.errno
            return False
        return True

    @property
    def problems(self) -> list[str]:
        """A sentence where there is no room, or was none just before."""
        self.has_room()
        if self._found is None or self._seconds() - self._found[0] > SHOWN_SECONDS:
            return []
        number = self._found[1]
        if number == errno.EMFILE:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            full = f"this {self._whose} has all the {limit} files and connections open that it may have"
        else:
            full = "this host has all the files and connections open that it may have"
        return [
            f"{full}: what is open works on, who comes to connect waits, and a connection or file that is lost is opened again only "
            f"once there is room: {cure_of(number, f'the {self._whose}')}, or have less connect here"
        ]


def wait_for_room(port: Any, reactor: Any, descriptors: Descriptors) -> None:
    """Have a listening `port` of Twisted accept only while there is room.

    Twisted closes whom it cannot accept, with three lines in the log each; where the descriptor that it does that with is lost, it asks the
    kernel again at once, with a line each time, for as long as anybody waits.
    """
    accept = port.doRead

    def accept_or_wait() -> Any:
        if descriptors.has_room():
            return accept()
        port.stopReading()
        reactor.callLater(WAIT_SECONDS, go_on)
        return None

    def go_on() -> None:
        if port.connected and not port.disconnecting:
            port.startReading()

    port.doRead = accept_or_wait
