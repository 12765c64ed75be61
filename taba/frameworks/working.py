"""What is recorded of a worker process, whichever server runs it: its busy share, its age, its starts, and the backlog before it."""

from __future__ import annotations

import os
import socket
import struct
import threading
import weakref
from collections.abc import Iterable
from time import monotonic
from typing import Any

from taba import client

EVERY = 1.0  # seconds, at least, between two looks
_TCP_INFO = struct.Struct("24xI")  # of a listening socket: connections that wait to be accepted


class Working:
    """The Tabs `<name>_worker_…` and `<name>_backlog` of this process. `look()` is called now and then by whatever runs here anyway."""

    def __init__(self, name: str, sockets: Iterable[Any] = ()):
        self._busy_ratio = client.gauge(f"{name}_worker_busy_ratio", description="share of the last seconds in which this worker was busy")
        self._busy = client.counter(f"{name}_worker_busy_seconds", description="seconds in which this worker was busy")
        self._age = client.gauge(f"{name}_worker_age_seconds", description="since this worker began")
        self._backlog = client.gauge(
            f"{name}_backlog", description="connections that wait to be accepted; workers that share it see the same"
        )
        self._sockets = list(sockets)
        self._under_way = 0
        self._start_afresh()
        _workings.add(self)
        client.counter(f"{name}_worker_starts", description="workers that began").inc()
        self._say(0.0, 0.0)

    def _start_afresh(self) -> None:
        """Also in a child that a request forks: what was spent so far is its parent's to tell."""
        self._lock = threading.Lock()  # requests of several threads; a child has those alone of the one that forked it
        self._began = self._looked = self._since = monotonic()  # `_since`: when the first of the requests under way began
        self._under_way = min(self._under_way, 1)
        self._spent = 0.0  # busy seconds since the last look

    def begin(self) -> None:
        """A request begins."""
        with self._lock:
            self._under_way += 1
            if self._under_way == 1:
                self._since = monotonic()

    def end(self) -> None:
        """A request is over."""
        with self._lock:
            self._under_way = max(0, self._under_way - 1)
            if not self._under_way:
                self._spent += monotonic() - self._since
        self.look()

    def look(self, spent: float | None = None) -> None:
        """Record, if it is time. `spent`: busy seconds since it was called last, for whoever has no begin() and end()."""
        now = monotonic()
        with self._lock:
            self._spent += spent or 0.0
            gone = now - self._looked
            if gone < EVERY:
                return
            self._looked = now
            if self._under_way:
                self._spent += now - self._since
                self._since = now
            busy, self._spent = self._spent, 0.0
        self._say(busy, busy / gone)

    def _say(self, busy: float, ratio: float) -> None:
        self._busy_ratio.set(min(ratio, 1.0))
        if busy:
            self._busy.inc(busy)
        self._age.set(monotonic() - self._began)
        waiting = [length for length in map(backlog, self._sockets) if length is not None]
        if waiting:
            self._backlog.set(sum(waiting))


_workings: weakref.WeakSet[Working] = weakref.WeakSet()  # a hook cannot be taken back: one for all


def _after_fork() -> None:
    for working in list(_workings):
        working._start_afresh()


os.register_at_fork(after_in_child=_after_fork)


def backlog(listening: Any) -> int | None:
    """How many connections wait at a socket to be accepted; None where the kernel does not tell (Unix sockets)."""
    try:
        if listening.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        (length,) = _TCP_INFO.unpack(listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))
        return int(length)
    except (AttributeError, OSError):
        return None  # closed meanwhile, or none of the kernel's
