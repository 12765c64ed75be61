"""Client processes that record what a benchmark asks for: into their rings at once, or at a steady rate.

`python -m benchmarks.ring_worker TABS SEED [FIRST]`; commands: `fill` so many events as fast as it goes, `pace` at a rate, `counts`. The
Tabs of workers have the same names unless FIRST differs; which of them an event belongs to, and its value, is drawn beforehand.
"""

from __future__ import annotations

import random
import sys
import time
from itertools import cycle, islice
from typing import Any

from benchmarks.worker import serve
from taba import client

DRAWN = 65_536  # events that are drawn beforehand, and recorded again and again, at the most …
DRAWN_OF_EACH = 40  # … and of each Tab about: as many tuples as a processor's own cache holds, where Tabs are few
VALUES = 20  # different ones: a CounterGroup then has as many occupied bins
STEP_SECONDS = 0.005  # of the paced rate


def tab_name(number: int) -> str:
    """The name of a benchmark's Tab."""
    return f"benchmark.path.{number:06d}"


def main(tabs: int, seed: int, first: int = 0) -> None:
    chance = random.Random(seed)
    made = [client.counter(tab_name(number)).record for number in range(first, first + tabs)]
    values = [round(1.3**number, 3) for number in range(VALUES)]
    drawn = cycle([(chance.choice(made), chance.choice(values)) for _ in range(min(DRAWN, DRAWN_OF_EACH * tabs))])

    def fill(events: int) -> dict[str, Any]:
        for record, value in islice(drawn, events):
            record(value)
        return client.stats()

    def pace(rate: float, seconds: float) -> dict[str, Any]:
        """Record `rate` events a second for `seconds`; what this worker counted in it, and when it began and ended (Unix seconds)."""
        before, began, start = client.stats(), time.time(), time.perf_counter()
        done = 0
        while (passed := time.perf_counter() - start) < seconds:
            due = int(passed * rate)
            for record, value in islice(drawn, due - done):
                record(value)
            done = due
            time.sleep(STEP_SECONDS)
        after = client.stats()
        # `recorded` counts what is in the ring, `dropped` what is not
        return {
            "recorded": after["recorded"] - before["recorded"],
            "dropped": after["dropped"] - before["dropped"],
            "began": began,
            "ended": time.time(),
        }

    serve({"fill": fill, "pace": pace, "counts": client.stats})


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
