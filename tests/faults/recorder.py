"""A recording application for tests: `python -m tests.faults.recorder DIRECTORY PROCESSES EVENTS TABS PAUSE [FILE]`.

Records EVENTS events over TABS Tabs in all, from a parent that records, and then forks, so that PROCESSES processes of THREADS threads
each do the rest. What every process recorded is written to DIRECTORY as JSON: {"client", "dropped", "tabs": {name: [count, total]}}.
PAUSE seconds between bursts spread the work over time; each process records the second half of its events once FILE is there.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

from taba import client

TABS = 1000  # at the most
THREADS = 4
BURST = 250
PATIENCE = 600.0  # for FILE: longer than whoever makes it waits for anything
BEFORE_FORK = 1000  # events that the parent records before it forks

TYPES = ["CounterGroup"] * 6 + ["PercentileGroup"] * 2 + ["TotalsCounter", "UpDown"]


def type_of(tab: int) -> str:
    return TYPES[tab % len(TYPES)]


def name_of(tab: int) -> str:
    return f"job_{tab}" if tab % 3 else f'job{{number="{tab}"}}'


class Recorder:
    """What one process recorded; forked, it begins anew."""

    def __init__(self, tabs: int) -> None:
        self.tabs = [client.tab(name_of(tab), type=type_of(tab)) for tab in range(tabs)]
        self.counts: list[list[int]] = []

    def record(self, first: int, events: int, pause: float) -> None:
        """Record values that differ by Tab, thread and turn, whole numbers so that every total is exact."""
        tabs = len(self.tabs)
        count, total = [0] * tabs, [0] * tabs
        for turn in range(events):
            tab = (first + turn * 7) % tabs
            value = (first + turn) % 1009
            self.tabs[tab].record(value)
            count[tab] += 1
            total[tab] += value
            if pause and turn % BURST == BURST - 1:
                time.sleep(pause)
        self.counts.append([*count, *total])

    def run(self, seed: int, events: int, pause: float) -> None:
        # one thread makes the ring: others that found it half made would wait no longer than a moment, and count what they drop
        first = min(events, 1)
        self.record(seed, first, 0)
        numbers = [events // THREADS - first * (n == 0) for n in range(THREADS)]
        threads = [threading.Thread(target=self.record, args=(seed * 31 + n, number, pause)) for n, number in enumerate(numbers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def write(self, directory: Path) -> None:
        sums = [sum(column) for column in zip(*self.counts, strict=True)]
        length = len(self.tabs)
        tabs = {name_of(tab): [sums[tab], sums[length + tab]] for tab in range(length) if sums[tab]}
        stats = client.stats()
        (directory / f"{os.getpid()}.json").write_text(json.dumps({"client": stats["client"], "dropped": stats["dropped"], "tabs": tabs}))


def run(recorder: Recorder, seed: int, events: int, pause: float, file: str) -> None:
    if file:
        recorder.run(seed, events - events // 2, pause)
        deadline = time.monotonic() + PATIENCE
        while not os.path.exists(file):
            assert time.monotonic() < deadline, f"{file} did not come"
            time.sleep(0.02)
        events //= 2
    recorder.run(seed, events, pause)


def main(directory: str, processes: str, events: str, tabs: str, pause: str, file: str = "") -> None:
    each = int(events) // int(processes)
    recorder = Recorder(int(tabs))
    before = BEFORE_FORK if int(processes) > 1 else 0
    recorder.record(5, before, 0)
    children = []
    for number in range(1, int(processes)):
        child = os.fork()
        if not child:
            recorder.counts.clear()
            run(recorder, number, each, float(pause), file)
            recorder.write(Path(directory))
            os._exit(0)
        children.append(child)
    run(recorder, 0, each - before, float(pause), file)
    recorder.write(Path(directory))
    for child in children:
        assert os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    main(*sys.argv[1:])
