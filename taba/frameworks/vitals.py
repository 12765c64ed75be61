"""How a process is: processor time, memory, descriptors, threads, garbage collection, and how late its event loop is.

vitals.watch()                     # any process
vitals.watch_loop()                # within a running event loop of asyncio
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable
from time import monotonic, perf_counter, process_time
from typing import Any

from taba import client

EVERY = 0.5  # seconds between two looks at an event loop
LEAST = 0.1  # seconds over which a share of the processor is told: the clock of some hosts is as coarse as a hundredth
_PAGE = os.sysconf("SC_PAGESIZE")
_watching: list[Callable[[str, dict[str, Any]], None]] = []


def watch() -> None:
    """From now on: what this process has, once a second while it records, and each collection of garbage. Forked children do likewise."""
    if _watching:
        return
    client.gauge("process_cpu_ratio", description="processors in use since the look before: 1 is a whole one").set_function(_Processor())
    client.gauge("process_resident_bytes", description="memory that is in use").set_function(resident_bytes)
    client.gauge("process_open_descriptors", description="file descriptors that are open").set_function(open_descriptors)
    client.gauge("process_threads", description="threads that run").set_function(threads)
    _watching.append(_Collections())
    gc.callbacks.append(_watching[0])


def unwatch() -> None:
    """No more of that."""
    while _watching:
        gc.callbacks.remove(_watching.pop())
    for name in ("process_cpu_ratio", "process_resident_bytes", "process_open_descriptors", "process_threads"):
        client.gauge(name).set_function(None)


def watch_loop(loop: asyncio.AbstractEventLoop | None = None, every: float = EVERY) -> Callable[[], None]:
    """From now on: how much later than asked for this event loop comes round, as `process_loop_lag_seconds`. What it returns ends that."""
    loop = loop or asyncio.get_running_loop()
    lag = client.percentile("process_loop_lag_seconds", description="how much later than asked for the event loop comes round")
    handle: asyncio.TimerHandle | None = None

    def ask() -> None:
        nonlocal handle
        handle = loop.call_at(loop.time() + every, look, loop.time() + every)

    def look(asked: float) -> None:
        lag.observe(max(0.0, loop.time() - asked))
        ask()

    def end() -> None:
        if handle is not None:
            handle.cancel()

    ask()
    return end


class _Processor:
    """The share of the processor since the look before; what was used meanwhile is counted."""

    def __init__(self) -> None:
        self._count = client.counter("process_cpu_seconds", description="processor time, of the program and of the system for it").inc
        self._process, self._looked, self._used, self._ratio = os.getpid(), monotonic(), process_time(), 0.0

    def __call__(self) -> float:
        process, now, used = os.getpid(), monotonic(), process_time()
        if process != self._process:  # a forked child, whose time begins at nothing
            self._process, self._used = process, 0.0
        gone, spent = now - self._looked, used - self._used
        if gone >= LEAST:
            self._looked, self._used, self._ratio = now, used, spent / gone
            if spent > 0:
                self._count(spent)
        return self._ratio


class _Collections:
    """Records what gc.callbacks tell."""

    def __init__(self) -> None:
        seconds = client.percentile("process_gc_seconds", description="pauses for collections of garbage, by generation")
        collected = client.counter("process_gc_collected", description="objects that collections of garbage freed")
        self._seconds = [seconds.labels(generation=generation).observe for generation in range(3)]
        self._collected = [collected.labels(generation=generation).inc for generation in range(3)]
        self._began = perf_counter()

    def __call__(self, phase: str, told: dict[str, Any]) -> None:
        if phase == "start":
            self._began = perf_counter()
        else:
            generation = told["generation"]
            self._seconds[generation](perf_counter() - self._began)
            self._collected[generation](told["collected"])


def resident_bytes() -> int:
    """Memory of this process that is in use."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE


def open_descriptors() -> int:
    """File descriptors of this process, but for the one that looks."""
    return len(os.listdir("/proc/self/fd")) - 1


def threads() -> int:
    """Threads of this process, Python's and others."""
    return len(os.listdir("/proc/self/task"))
