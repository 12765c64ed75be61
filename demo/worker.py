"""Workers that do jobs: one is slow for a minute now and then, so that it stands out; one is killed now and then, and comes again."""

from __future__ import annotations

import random
import signal
import sys
import time

from taba import client
from taba.interrupted import Interrupted

KINDS = ("mail", "resize", "report")
USUAL_SECONDS = 0.02  # of a job, as it is told: nobody has to wait for it
BUSY_SECONDS, CALM_SECONDS = 60.0, 40.0  # for which the one that misbehaves does, and does not
TIMES_SLOWER = 8.0
PAUSE_SECONDS = 0.05  # between two jobs


def is_slow(passed: float, misbehaves: bool) -> bool:
    """Whether it misbehaves, so many seconds after its start."""
    return misbehaves and passed % (BUSY_SECONDS + CALM_SECONDS) >= CALM_SECONDS


def main(told: Interrupted, number: int, misbehaves: bool) -> None:
    """Do jobs until SIGTERM."""
    client.start(f"{{host}}:worker/{number}")
    done = {kind: client.counter("jobs.done", labels={"kind": kind}, description="jobs that workers did") for kind in KINDS}
    took = client.percentile("jobs.seconds", unit="seconds", description="what a job takes")
    chance, began = random.Random(), time.monotonic()
    while not told.wait(PAUSE_SECONDS):
        slower = TIMES_SLOWER if is_slow(time.monotonic() - began, misbehaves) else 1.0
        done[chance.choices(KINDS, (6, 3, 1))[0]].inc()
        took.observe(chance.lognormvariate(0.0, 0.4) * USUAL_SECONDS * slower)


if __name__ == "__main__":
    with Interrupted(signal.SIGTERM) as told:
        main(told, int(sys.argv[1]), sys.argv[2] == "misbehaves")
