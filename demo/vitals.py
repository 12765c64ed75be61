"""The host's own vital signs, twice a second."""

from __future__ import annotations

import signal

import psutil

from taba import client
from taba.interrupted import Interrupted

PERIOD = 0.5


def main(told: Interrupted) -> None:
    """Sample until SIGTERM."""
    client.start("host/{slot}")
    cpu, memory, used = client.gauge("host.cpu_percent"), client.gauge("host.memory_percent"), client.gauge("host.memory_used_mib")
    busy = client.percentile("host.cpu_percent_over_time")
    psutil.cpu_percent()
    while not told.wait(PERIOD):
        percent, virtual = psutil.cpu_percent(), psutil.virtual_memory()
        cpu.set(percent)
        busy.observe(percent)
        memory.set(virtual.percent)
        used.set(round((virtual.total - virtual.available) / 2**20))


if __name__ == "__main__":
    with Interrupted(signal.SIGTERM) as told:
        main(told)
