"""What the figures were measured on, and what processes used: read from /proc."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.budgets import EMPTY_CALL
from benchmarks.floor import build_floor, load_floor
from benchmarks.record_worker import with_value
from taba.shard.servers.binary import find_store_binary

_TICKS = os.sysconf("SC_CLK_TCK")
_CLOCK = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
_LIBRARIES = (
    *("datadog", "gunicorn", "hiredis", "msgpack", "netflix-spectator-py", "numpy", "opentelemetry-sdk", "prometheus_client", "pytheus"),
    *("statsd", "statshouse", "Twisted", "txredisapi"),
)


def describe() -> dict[str, Any]:
    """The machine and what runs on it."""
    cpu = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    store = subprocess.run([find_store_binary(), "--version"], capture_output=True, text=True, timeout=10).stdout.strip()
    return {
        "cpu": cpu[0] if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": platform.release(),
        "clock": _CLOCK.read_text().strip() if _CLOCK.exists() else None,  # a chroot may be without /sys
        "python": platform.python_version(),
        "store": store,
        "load_at_start": os.getloadavg()[0],
        "libraries": {name: _version(name) for name in _LIBRARIES},
    }


class Phase:
    """How quick the machine is at the moment, which changes: the nanoseconds of an empty C call that reads the coarse clock."""

    CALL = "an empty C call that reads the coarse clock"
    ROUNDS, CALLS = 101, 10_000  # some 30 ms in all; rounds shorter than a slice of the scheduler, so that most see no other process
    SAME = 1.1  # times what it took where budgets were set: so much tells nothing

    def __init__(self) -> None:
        self._seen: list[float] = []
        self._why = ""
        with tempfile.TemporaryDirectory(prefix="taba-benchmark-") as directory:  # what is loaded needs no file any more
            try:
                built = build_floor(Path(directory))
            except subprocess.CalledProcessError as error:
                built, self._why = None, f"the compiler refused it ({error.returncode})"
            else:
                self._why = "" if built else "there is no compiler"
            self._call = load_floor(str(built)) if built else None

    def look(self) -> None:
        """Measure it; the first time is the begin of what it is told of, the last one the end."""
        if self._call is not None:
            found = [with_value(self._call, 1.0, self.CALLS) for _ in range(self.ROUNDS)]
            self._seen.append(statistics.median(found) / self.CALLS * 1e9)

    def as_json(self) -> dict[str, float] | None:
        """None where it cannot be measured."""
        if not self._seen:
            return None
        return {"begin": round(self._seen[0], 2), "end": round(self._seen[-1], 2), "budgets_at": EMPTY_CALL}

    def told(self) -> str:
        """A sentence for whoever reads nanoseconds beside their budgets."""
        if not self._seen:
            return f"how quick the machine was is not known: {self.CALL} was not measured, for {self._why}"
        begin, end = self._seen[0], self._seen[-1]
        times = (begin + end) / 2 / EMPTY_CALL
        dear = (
            f"some {times:.1f} × dearer"
            if times >= self.SAME
            else f"some {1 / times:.1f} × cheaper"
            if times <= 1 / self.SAME
            else "as dear"
        )
        took = f"{self.CALL} took {begin:.3g} ns at the begin and {end:.3g} ns at the end"
        return f"{took}; budgets were set where it took {EMPTY_CALL}: nanoseconds here are {dear}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def cpu_seconds(pids: Iterable[int]) -> float:
    """What these processes (all their threads) have used so far, user and system, to the nanosecond where the kernel tells that.

    Raises OSError for one that has ended.
    """
    return sum(map(_cpu_seconds, pids))


def _cpu_seconds(pid: int) -> float:
    try:
        return time.clock_gettime(~pid << 3 | 2)  # as clock_getcpuclockid(3) makes it
    except OSError:
        return sum(int(word) for word in _stat(pid)[11:13]) / _TICKS  # steps of 10 ms: a short round is a few of them


def resident_mib(pid: int) -> float:
    """The process's resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def children(pid: int) -> list[int]:
    """The process's children."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if int(_stat(int(path.name))[1]) == pid:
                found.append(int(path.name))
        except OSError:  # it ended meanwhile
            continue
    return found


def _stat(pid: int) -> list[str]:
    # the name may hold blanks and brackets; what follows its last bracket does not
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
