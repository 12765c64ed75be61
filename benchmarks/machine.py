"""What the figures were measured on, and what processes used: read from /proc."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

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
