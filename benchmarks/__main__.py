"""`python -m benchmarks`: runs the benchmarks one after the other, shows a table, and writes JSON where asked."""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import machine
from benchmarks.charts import draw
from benchmarks.rows import Row, shown, table
from benchmarks.services import Effort

BENCHMARKS = {
    "record": "What a record costs the application",
    "beside": "Recording beside others, several at once",
    "served": "20 events in a request of an application",
    "frameworks": "What a middleware costs a request",
    "agent": "The Agent",
    "states": "States in the store",
    "handlers": "What each Type costs, without a store",
    "history": "The past, and Aggregates, from States",
    "server": "The Server",
    "path": "The whole path",
    "query": "Asking",
    "asking": "Looking on",
    "prometheus": "PromQL and scrapes",
    "statsd": "StatsD",
    "aggregators": "Aggregating beside others",
    "compat": "prometheus_client, recorded as well",
    "shard": "The shard layer",
    "scale": "As Tabs grow",
    "wide": "Many Agents, Servers and shards",
    "strangers": "Requests of the worst shapes",
    "reshard": "Moving buckets between shards",
    "reshard_load": "Moving buckets under load",
    "cluster": "The cluster of 2012",
    "where": "Where the time of Agent and Server goes",
}
LONG = ("scale", "cluster", "where")  # which take minutes: run where they are named

SHOWN = ("cpu", "cores", "memory_gib", "kernel", "python", "store")  # of the machine, above the tables
TABLE_WIDTH = 160  # where there is no terminal to ask


class Told:
    """SIGTERM, which unwinds what is measured, so that everything is stopped and removed.

    In a finalizer, or in a weak reference's callback, the interpreter drops the exception: then the next row ends it.
    """

    def __init__(self) -> None:
        self._number: int | None = None

    def end(self, number: int, frame: object) -> None:
        self._number = number
        self.check()

    def check(self) -> None:
        if self._number is not None:
            sys.exit(128 + self._number)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="./run bench",
        description="What Taba costs, beside a floor and its peers, measured in one run. docs/benchmarks.md has the method.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: do the parts work, not how fast they are")
    parser.add_argument("--json", metavar="FILE", help="write all figures there; - is standard output, and tables go to standard error")
    every = f"only these: {' '.join(BENCHMARKS)}; without it all but {' '.join(LONG)}"
    parser.add_argument("--only", metavar="NAME", nargs="+", choices=BENCHMARKS, help=every)
    parser.add_argument("--charts", metavar="DIRECTORY", help="draw them there as SVG")
    options = parser.parse_args(arguments)
    told = Told()
    signal.signal(signal.SIGTERM, told.end)
    console = Console(stderr=options.json == "-")
    if not console.is_terminal:
        console = Console(stderr=options.json == "-", width=TABLE_WIDTH)
    effort = Effort(options.quick)
    phase = machine.Phase()
    phase.look()
    report: dict[str, Any] = {"quick": options.quick, "machine": machine.describe(), "benchmarks": {}}
    console.print(
        " · ".join(str(report["machine"][name]) for name in ("cpu", "cores", "memory_gib", "kernel", "python", "store")), style="dim"
    )
    failed = False
    for name in options.only or [name for name in BENCHMARKS if name not in LONG]:
        started = time.monotonic()
        rows: list[Row] = []
        error = ""
        with console.status(f"{name} …"):
            try:
                for row in importlib.import_module(f"benchmarks.{name}").run(effort):
                    rows.append(row)
                    told.check()
                    if name in LONG:  # nobody waits a quarter of an hour for the first figure, nor loses it to what comes after
                        console.print(f"{row.name}: {shown(row.figure.median, row.unit)}", highlight=False)
            except Exception as failure:
                console.print_exception()
                error = f"{type(failure).__name__}: {failure}"
                failed = True
        seconds = time.monotonic() - started
        # what was measured before it failed is told, too
        measured = {"seconds": round(seconds, 1), "rows": [row.as_json() for row in rows]} if rows or not error else {}
        report["benchmarks"][name] = measured | ({"error": error} if error else {})
        if measured:
            console.print(table(f"{BENCHMARKS[name]} ({name}, {seconds:.0f} s)", rows))
    phase.look()
    report["machine"]["empty_call_ns"] = phase.as_json()
    console.print(phase.told(), highlight=False)
    if options.json:
        content = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        if options.json == "-":
            sys.stdout.write(content)
        else:
            Path(options.json).write_text(content)
    if options.charts:
        for path in draw(report, Path(options.charts)):
            console.print(f"drawn: {path}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
