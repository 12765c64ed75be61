"""Recording beside others where several record at once: four threads of one process, and four processes, all into one hot metric.

Nanoseconds a call of all together, by the clock: a lock that threads wait for costs time, not work. Each case is a process of its own,
as for `record`.
"""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.record import LOSSY, MMAP, NO_TOTALS, opened
from benchmarks.rows import Beside, Figure, Row, interleave
from benchmarks.services import Effort, running

AT_ONCE = 4
TIMES = 8_000  # calls of each of them: all four fit a ring of the default size
CASES = {
    "Taba: inc()": ("taba_inc", True, ""),
    "a dict of floats: d[key] += 1.0": ("dict_add", False, "threads lose increments; processes share nothing"),
    "prometheus_client: Counter.inc()": ("prometheus_inc", False, NO_TOTALS),
    "prometheus_client, multiprocess: Counter.inc()": ("prometheus_inc_shared", False, MMAP),
    "pytheus: Counter.inc()": ("pytheus_inc", False, NO_TOTALS),
    "datadog, aggregated: increment()": ("datadog_aggregated", False, LOSSY),
    "statsd, UDP: incr()": ("statsd_incr", False, LOSSY),
    "OpenTelemetry SDK: counter.add()": ("opentelemetry_add", False, NO_TOTALS),
}


def run(effort: Effort) -> list[Row]:
    with ExitStack() as stack:
        services = stack.enter_context(running(agent=True))
        metrics = services.directory / "prometheus"
        metrics.mkdir()
        workers = {}
        for title, (worker, _, _) in CASES.items():
            environ = {**services.environ}
            if worker.endswith("_shared"):
                environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
            workers[title] = stack.enter_context(opened(worker.removesuffix("_shared"), environ, services.directory))
            workers[title].ask("burst", 1000, 1, False)  # whatever is made at the first call
        rows: list[Row] = []
        for command, of_whom in (("threads", f"{AT_ONCE} threads"), ("forks", f"{AT_ONCE} processes")):
            found = interleave(
                {
                    title: lambda title=title, waits=waits, command=command: workers[title].ask(command, AT_ONCE, TIMES, waits)  # type: ignore[misc]
                    for title, (_, waits, _) in CASES.items()
                },
                effort.pick(3, 15),
            )
            figures = {title: Figure.of(its) for title, its in found.items()}
            ours = Beside("Taba", figures["Taba: inc()"])
            rows += [
                Row(f"{of_whom}, {title}", figure, "ns", peer=None if title.startswith("Taba") else ours, note=CASES[title][2])
                for title, figure in figures.items()
            ]
        dropped = workers["Taba: inc()"].ask("counts")["dropped"]
    if dropped:
        raise RuntimeError(f"{dropped} records were dropped, so the figures mean nothing")
    return rows
