"""What one record costs the application: nanoseconds and system calls, beside reading the clock and beside other libraries.

Each case is a process of its own. A round is some bursts of each case in turn; a case's figure is the median over the rounds of the
median burst. A burst is a loop of calls, loop and all; a burst of Taba's begins with an empty ring and fits it, so that nothing
drops (checked), while a real Agent drains the ring and sends to a real Server. Only the bursts are timed.
"""

from __future__ import annotations

import re
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import budgets
from benchmarks.floor import build_floor
from benchmarks.machine import Phase
from benchmarks.record_worker import BEGIN, END
from benchmarks.rows import Beside, Figure, Row, interleave
from benchmarks.services import Effort, Services, remove_segments, running
from benchmarks.worker import Worker, WorkerFailed

RING_RECORDS = 32_768  # of a ring of the default size
BURST = 16_000  # half a ring
STRING_BURST = 4_000  # of 200 bytes: most of the byte ring of …
STRING_RING_BYTES = 8 * 2**20  # … this ring; a default one holds 640, too few to time
PEER_BURST = 5_000
DICT_BURST = 4 * BURST  # takes as long as one of pure Python's, whose budget is in times of it: what interrupts them is as likely in both
TRACED, TRACED_STRINGS = 100_000, 4_000
TRACE_RING_BYTES = 16 * 2**20  # holds all that is traced, without an Agent; twice as many strings
STRING_NOTE = "a ring of 8 MiB: the byte ring of a default one holds 640 such values, too few to time"
MMAP = "a file a process, which whoever scrapes must read; no Gauge by process without more files"


class Case(NamedTuple):
    """How one case is run: the worker's case, its environment, and its bursts."""

    title: str
    worker: str
    environ: dict[str, str]
    times: int
    bursts: int
    waits: bool
    note: str = ""  # of a peer: what it does not do
    budget: budgets.Budget | None = None
    ratio: budgets.Budget | None = None  # in times of `beside`, in the same rounds
    beside: str = ""


DICT_TITLE = "a dict of floats: d[key] += 1.0"
FLOOR_TITLE = Phase.CALL
PLAIN_TITLE = "record(1.0)"
NO_TOTALS = "nothing a process counts outlives it; no percentiles but buckets"
LOSSY = "what the kernel drops is lost, unsaid; whoever listens keeps what it can"


def run(effort: Effort) -> list[Row]:
    rounds, bursts = effort.pick((3, 5), (5, 10))
    pure_bursts = max(2, bursts // 2)
    with ExitStack() as stack:
        services = stack.enter_context(running(agent=True))
        nobody = f"{services.agent}-none"
        stack.callback(remove_segments, nobody)
        metrics = services.directory / "prometheus"
        metrics.mkdir()
        prometheus = {"PROMETHEUS_MULTIPROC_DIR": str(metrics)}
        string_ring = {"TABA_RING_BYTES": str(STRING_RING_BYTES)}
        ours = [
            Case(PLAIN_TITLE, "taba_record", {}, BURST, bursts, True, "", budgets.RECORD, budgets.RECORD_RATIO, FLOOR_TITLE),
            Case("inc()", "taba_inc", {}, BURST, bursts, True, "", budgets.INC, budgets.INC_RATIO, FLOOR_TITLE),
            Case(
                *("record(200-byte string)", "taba_string", string_ring, STRING_BURST, bursts, True, STRING_NOTE),
                *(budgets.RECORD_STRING, budgets.RECORD_STRING_RATIO, FLOOR_TITLE),
            ),
            Case(
                *("labels(route=…, status=200), known", "taba_labels", {}, BURST, bursts, False, ""),
                *(budgets.LABELS, budgets.LABELS_RATIO, FLOOR_TITLE),
            ),
            Case(
                *("record(1.0), pure Python", "taba_record", {"TABA_PURE": "1"}, BURST, pure_bursts, True, ""),
                *(budgets.RECORD_PURE, budgets.RECORD_PURE_RATIO, DICT_TITLE),
            ),
            Case("record(1.0), ring full: a drop", "taba_record", {"TABA_AGENT": nobody}, BURST, bursts, False),
        ]
        floors = [Case("time.time()", "floor_time", {}, BURST, bursts, False)]
        if built := build_floor(services.directory):
            floors.append(Case(FLOOR_TITLE, "floor_clock", {"TABA_FLOOR": str(built)}, BURST, bursts, False))
        peers = [
            Case(DICT_TITLE, "dict_add", {}, DICT_BURST, pure_bursts, False, "one process's, in its memory alone"),
            Case("prometheus_client: Counter.inc()", "prometheus_inc", {}, PEER_BURST, 2, False, NO_TOTALS),
            Case("prometheus_client, multiprocess: Counter.inc()", "prometheus_inc", prometheus, PEER_BURST, 2, False, MMAP),
            Case("prometheus_client, multiprocess: Histogram.observe()", "prometheus_observe", prometheus, PEER_BURST, 2, False, MMAP),
            Case("pytheus: Counter.inc()", "pytheus_inc", {}, PEER_BURST, 2, False, NO_TOTALS),
            Case("datadog, aggregated: increment()", "datadog_aggregated", {}, PEER_BURST, 2, False, LOSSY),
            Case("datadog, buffered: increment()", "datadog_buffered", {}, PEER_BURST, 2, False, LOSSY),
            Case("statsd, UDP: incr()", "statsd_incr", {}, PEER_BURST, 2, False, LOSSY),
            Case("spectator, UDP, buffered: increment()", "spectator_increment", {}, PEER_BURST, 2, False, LOSSY),
            Case("statshouse: count()", "statshouse_count", {}, PEER_BURST, 2, False, LOSSY),
            Case("OpenTelemetry SDK: counter.add()", "opentelemetry_add", {}, PEER_BURST, 2, False, NO_TOTALS),
            Case("OpenTelemetry SDK: histogram.record()", "opentelemetry_record", {}, PEER_BURST, 2, False, NO_TOTALS),
        ]
        cases = [*ours, *floors, *peers]
        workers = {}
        for case in cases:
            environ = {**services.environ, **case.environ}
            workers[case.title] = stack.enter_context(opened(case.worker, environ, services.directory))
        workers["record(1.0), ring full: a drop"].ask("burst", 2 * RING_RECORDS, 1, False)
        for case in cases:  # whatever is made at the first call is made now
            workers[case.title].ask("burst", min(case.times, 1000), 2, case.waits)
        samples = interleave(
            {
                case.title: lambda case=case: statistics.median(  # type: ignore[misc]
                    workers[case.title].ask("burst", case.times, case.bursts, case.waits)
                )
                for case in cases
            },
            rounds,
        )
        for case in ours[:-1]:
            _check(workers[case.title].ask("counts"), "TABA_PURE" not in case.environ)
        return [*_rows(ours, peers, samples), *_traced(services, effort)]


def _rows(ours: list[Case], peers: list[Case], samples: dict[str, list[float]]) -> list[Row]:
    figures = {title: Figure.of(found) for title, found in samples.items()}
    clock = FLOOR_TITLE if FLOOR_TITLE in figures else "time.time()"
    floor = Beside(clock, figures[clock])
    cheapest = min((case.title for case in peers), key=lambda title: figures[title].median)
    best = Beside(cheapest, figures[cheapest])
    rows = []
    for case in ours:
        rows.append(Row(case.title, figures[case.title], "ns", case.budget, floor, best, case.note))
        if case.beside in figures:
            ratio = Figure.of(its / other for its, other in zip(samples[case.title], samples[case.beside], strict=True))
            rows.append(Row(f"{case.title} beside {case.beside}", ratio, "×", case.ratio))
    plain = Beside(f"Taba's {PLAIN_TITLE}", figures[PLAIN_TITLE])
    return rows + [Row(f"peer: {case.title}", figures[case.title], "ns", floor=floor, peer=plain, note=case.note) for case in peers]


def _check(counted: dict[str, Any], is_accelerated: bool) -> None:
    if counted["dropped"]:
        raise WorkerFailed(f"records were dropped, so the figures mean nothing: {counted['dropped_by_reason']}")
    if is_accelerated and not counted["accelerated"]:
        raise WorkerFailed("the C accelerator is not built: python setup.py build_ext --inplace")


# --- system calls ---


def _traced(services: Services, effort: Effort) -> list[Row]:
    if shutil.which("strace") is None:
        return []
    wanted = [("taba_record", TRACED, "record(1.0)"), ("taba_string", TRACED_STRINGS, "record(200-byte string)")]
    if not effort.is_quick:
        wanted.append(("statsd_incr", TRACED, "a peer's: statsd, UDP: incr()"))
    rows = []
    for case, times, call in wanted:
        title = f"system calls in {times:,} × {call}"
        agent = f"{services.agent}-traced-{case}"
        try:
            environ = {**services.environ, "TABA_AGENT": agent, "TABA_RING_BYTES": str(TRACE_RING_BYTES)}
            calls = _count_calls(case, times, environ, services.directory)
        finally:
            remove_segments(agent)
        budget = budgets.SYSTEM_CALLS if case.startswith("taba") else None
        rows.append(Row(title, Figure.of([calls]), "calls", budget, note="counted by strace between two marks; all threads"))
    return rows


def _count_calls(case: str, times: int, environ: dict[str, str], directory: Path) -> int:
    with tempfile.NamedTemporaryFile("r", dir=directory) as trace:
        with opened(case, environ, directory, ("strace", "-f", "-qq", "-o", trace.name)) as worker:
            worker.ask("trace", times)
            if case.startswith("taba"):
                _check(worker.ask("counts"), True)
        lines = trace.read().splitlines()
    first = next(number for number, line in enumerate(lines) if BEGIN in line)
    last = next(number for number, line in enumerate(lines) if END in line)
    return sum(1 for line in lines[first + 1 : last] if re.match(r"\d+ +\w+\(", line))


@contextmanager
def opened(case: str, environ: dict[str, str], directory: Path, under: tuple[str, ...] = ()) -> Iterator[Worker]:
    """The process of one case, until it is left."""
    worker = Worker("benchmarks.record_worker", case, environ=environ, directory=directory, under=under)
    try:
        yield worker
    finally:
        worker.stop()
