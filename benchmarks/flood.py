"""A million Tabs in rings: what an Agent takes that reads all their names, and that who records beside them loses nothing.

Processes of one Client name as many Tabs as their rings hold, record one event for each, and go. Another one records meanwhile, into a
small ring. In the end the books are compared: what all recorded is folded, nothing is dropped.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks import budgets
from benchmarks.holding import CODE, Held
from benchmarks.rows import Figure, Row
from benchmarks.services import Effort, Services, pid_of, running
from taba.bounds import KiB, MiB
from taba.query import Query

# names so many Tabs from a number on, with one event each, and goes
NAMING = """
import sys
from taba import client
client.start("web/flood")
begin, count = map(int, sys.argv[1:])
for number in range(begin, begin + count):
    client.counter("clicks", labels={"user": str(number)}).inc()
told = client.stats()
assert told["dropped"] == 0 and told["recorded"] == count, told
"""
# records until its standard input ends, into a small ring; then tells how many
BESIDE = """
import select, sys
from taba import client
client.start("web/beside")
bids, count = client.counter("bids_won"), 0
while not select.select([sys.stdin], [], [], 0.001)[0]:
    bids.inc()
    count += 1
told = client.stats()
assert told["dropped"] == 0, told
print(count)
"""
ONE_RING = 64 * MiB  # room for 50,000 Tabs
ALL_RINGS = 16 * 1024 * MiB  # a ring is given an eighth of what is left of that
BESIDE_RING = 64 * KiB
END_SECONDS = 600.0


def rows(effort: Effort) -> list[Row]:
    processes, of_one = effort.pick((1, 10_000), (20, 50_000))
    named = processes * of_one
    services: Services
    with running(TABA_SHM_BYTES=str(ALL_RINGS)) as services:
        path = services.directory / "longest"
        Held.make(path)
        services.before = CODE.format(path=str(path))
        services.start_agent()
        services.before = ""
        held = Held(path, pid_of(services, "agent"))
        agent = Query(services.agent_url, timeout=END_SECONDS)
        _until(lambda: agent.status()["buckets"] is not None)
        with _program(services, BESIDE, BESIDE_RING) as beside:
            _until(lambda: len(agent.status()["rings"]) == 1)
            before, start = held.begin(), time.monotonic()
            done = [_run(services, process * of_one, of_one) for process in range(processes)]
            for process in done:
                if process.wait(END_SECONDS):
                    raise RuntimeError("a process that names Tabs lost something, or could not")
            _until(lambda: agent.status()["rings_open"] == 1)
            took, peak, longest = time.monotonic() - start, held.peak(), held.longest()
            told, _ = beside.communicate("\n", timeout=END_SECONDS)
            if beside.returncode:
                raise RuntimeError("who records beside a flood of names lost something")
        note = _compare(services, agent, named, int(told))
    what = f"{named:,} Tabs in rings"
    return [
        Row(f"{what}: the Agent's longest turn", Figure.of([longest]), "ms", budgets.WAIT, note=f"{note}, after {took:.0f} s"),
        Row(f"{what}: memory of the Agent beyond what it had", Figure.of([max(0, peak - before) / MiB]), "MiB", note="at its most"),
    ]


def _compare(services: Services, agent: Query, named: int, beside: int) -> str:
    """Raises RuntimeError unless everything that was recorded is folded, and the sum over all Tabs of the flood is right."""
    status: Any = {}

    def is_settled() -> bool:
        nonlocal status
        status = agent.status()
        return not status["rings_open"] and status["recorded"] <= services.query.status()["folded"]

    _until(is_settled)
    server: Any = services.query.status()
    counts = (status["recorded"], status["dropped_by_reason"], server["folded"], server["dead_letters"])
    if counts != (named + beside, {}, named + beside, 0):
        raise RuntimeError(f"{named} and {beside} were recorded; the books say {counts}")
    query = Query(services.server_url, timeout=END_SECONDS)
    whole: Any = query.superaggregate(name="clicks")
    if whole["1d"]["count"] != named:
        raise RuntimeError(f"the sum over all Tabs of one base name is {whole}, and {named} events were recorded there")
    own = len(query.names(name="clicks"))
    return f"{named + beside:,} events, {beside:,} of them beside, all folded, under {own:,} names of their own"


def _run(services: Services, begin: int, count: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", NAMING, str(begin), str(count)]
    return subprocess.Popen(arguments, env={**services.environ, "TABA_RING_BYTES": str(ONE_RING)}, text=True)


@contextmanager
def _program(services: Services, code: str, ring_bytes: int) -> Iterator[subprocess.Popen[str]]:
    environ = {**services.environ, "TABA_RING_BYTES": str(ring_bytes)}
    with subprocess.Popen([sys.executable, "-c", code], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _until(condition: Any) -> None:
    deadline = time.monotonic() + END_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("the Agent has not come to the end of what was recorded")
        time.sleep(0.1)
