"""Where the Agent's and the Server's processor time goes, under the load of the cluster of 2012 and a tenth of it: by what is done.

The same processes as in `cluster`, looked at every few milliseconds of their own time (`benchmarks.sampling`). What a part of Taba calls
counts for that part: system calls, numpy, the C parts; but Twisted, and the store's protocol, stand apart.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from benchmarks import cluster, sampling
from benchmarks.cluster import Cluster
from benchmarks.rows import Figure, Row
from benchmarks.sampling import Place
from benchmarks.services import Effort, Services, pid_of, running
from benchmarks.worker import WorkerFailed

RATES = (1e6, 10e6)  # events a minute
SECONDS, QUICK_SECONDS = 40.0, 5.0
WRITTEN_SECONDS = 10.0  # for what was seen to be written
HOTTEST = 4  # functions that are named
ELSE = "all else"
LIBRARIES = {"twisted": "HTTP, connections and the loop (Twisted)", "txredisapi": "the store's protocol"}


def _of_agent(*names: str) -> tuple[str, ...]:
    return tuple(f"agent/{name}.py" for name in names)


# by the module's name, from the first that fits: what an event's way is made of (docs/architecture.md)
STAGES: Mapping[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "agent": (
        (
            "when to read: how full which rings are",
            _of_agent("pump", "looks", "search", "loop", "ages", "opened"),
        ),
        ("whose rings there are, and who lives", _of_agent("discover", "alive", "openings", "locks")),
        ("rings read, their Tabs known", _of_agent("reader", "scratch", "directory", "entries", "admission")),
        (
            "events sorted into columns, folded, encoded",
            (*_of_agent("drain", "gathering", "numbering", "arenas", "edge", "encoding"), "batch/", "handlers/"),
        ),
        (
            "published, and the books",
            _of_agent("keeper", "outbox", "segment", "groups", "books", "tallies", "sums", "register", "lanes", "backlog", "spool"),
        ),
        ("envelopes sent, verdicts taken", _of_agent("dispatch", "forward", "schedule", "manifest")),
        ("what it tells, and keeps of itself", ("agent/", "counting.py")),
    ),
    "server": (
        ("requests", ("web.py", "calls.py", "routes.py", "receiving.py", "connections.py", "server/http.py")),
        ("envelopes read", ("batch/", "server/fold/envelopes.py")),
        ("lines: which bucket is due", ("server/fold/ingest.py", "server/fold/lines.py", "server/fold/posts.py")),
        ("planned, judged, folded", ("server/fold/", "server/work/", "handlers/", "codes.py")),
        ("transactions", ("shard/", "server/router.py")),
        ("what it tells, and keeps of itself", ("server/", "counting.py")),
    ),
}


def run(effort: Effort) -> Iterator[Row]:
    with ExitStack() as stack:
        services = stack.enter_context(running(server=False, TABA_RING_BYTES=str(cluster.RING_BYTES)))
        paths = {part: services.directory / f"{part}.samples" for part in STAGES}
        _start(services, paths)
        load = Cluster(services, stack)
        begun = load.hold(*cluster.LEARNING, cluster.VISIBLE_SECONDS)
        if begun.missing:
            raise WorkerFailed(f"what the Clients record to begin with is not folded: {begun.missing:,} events are not visible")
        pids = {part: pid_of(services, part) for part in STAGES}
        for minute in RATES:
            for pid in pids.values():
                os.kill(pid, sampling.SIGNAL)
            _, held = load.record(minute, effort.pick(QUICK_SECONDS, SECONDS))
            for pid in pids.values():
                os.kill(pid, sampling.SIGNAL)
            for part in STAGES:
                yield from rows(f"{minute / 1e6:g} M a minute, {part}", part, _seen(paths[part]), held.cores[part])
            load.wait(cluster.VISIBLE_SECONDS)


def _start(services: Services, paths: Mapping[str, Path]) -> None:
    services.before = sampling.CODE.format(path=str(paths["server"]))
    services.start_server()
    services.before = sampling.CODE.format(path=str(paths["agent"]))
    services.start_agent()
    services.before = ""


def _seen(path: Path) -> Counter[Place]:
    deadline = time.monotonic() + WRITTEN_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise WorkerFailed(f"{path.stem} did not write where it was")
        time.sleep(0.05)
    found = sampling.read(path)
    path.unlink()
    return found


def rows(title: str, part: str, seen: Counter[Place], cores: float) -> list[Row]:
    """What each stage of a part took of a core, the largest first; and in which functions, in shares of all that the part took."""
    stages: dict[str, Counter[str]] = {}
    for place, count in seen.items():
        what = f"{place.module.rpartition('/')[2].removesuffix('.py')}.{place.function}" if place.module else place.library
        stages.setdefault(stage_of(part, place), Counter())[what] += count
    total = seen.total()
    return [
        Row(
            f"{title}: {stage}",
            Figure.of([cores * counts.total() / total]),
            "cores",
            note=f"{counts.total() / total:.0%}: "
            + ", ".join(f"{what} {count / total:.1%}" for what, count in counts.most_common(HOTTEST) if what),
        )
        for stage, counts in sorted(stages.items(), key=lambda item: -item[1].total())
    ]


def stage_of(part: str, place: Place) -> str:
    if place.library in LIBRARIES:
        return LIBRARIES[place.library]
    return next((stage for stage, modules in STAGES[part] if place.module.startswith(modules)), ELSE)
