"""What the demo shows: everything on it was asked from the Server, as anybody could."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from rich import box
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from taba.query import Query

TABS = r"(web|load|host|jobs|flights)\..*"
RATE_SECONDS = 5.0  # over which requests per second are taken


class Sample(NamedTuple):
    """One look at the Server."""

    time: float
    aggregates: dict[str, Any]
    per_worker: dict[str, dict[str, Any]]
    all_routes: dict[str, Any]
    latency: dict[str, Any]


def look(query: Query) -> Sample:
    """Ask for all that the screen shows. Raises QueryError."""
    return Sample(
        time.monotonic(),
        query.aggregates(match=TABS),
        query.projections(name=["web.requests", "web.errors"]),
        query.superaggregate(match=r"web\.seconds\{.*"),
        query.latency(),
    )


class Screen:
    """Turns Samples into something to look at."""

    def __init__(self, server: str):
        self.server = server
        self.samples: list[Sample] = []

    def add(self, sample: Sample) -> None:
        """Take the newest Sample; those beyond RATE_SECONDS are forgotten."""
        self.samples.append(sample)
        while len(self.samples) > 2 and sample.time - self.samples[0].time > RATE_SECONDS:
            self.samples.pop(0)

    def line(self) -> str:
        """The newest Sample in one line, for where there is no terminal."""
        sample, errors = self.samples[-1], self._count("web.errors")
        minute = sample.all_routes.get("1m") or {}
        return "; ".join(
            (
                f"{self._count('web.requests')} requests, {self._rate():.0f}/s, {errors} errors (wanted)",
                f"p50 {_ms(minute.get('p50'))}, p99 {_ms(minute.get('p99'))}",
                f"CPU {self._gauge('host.cpu_percent')} %, memory {self._gauge('host.memory_percent')} %",
            )
        )

    def draw(self) -> RenderableType:
        """The newest Sample as a picture for a terminal."""
        if not self.samples:
            return Text("waiting for the first events …", style="dim")
        sample = self.samples[-1]
        total = Columns(  # as many beside each other as there is room for
            [
                Text.assemble((f"{name} ", "dim"), (value, style))
                for name, value, style in (
                    ("requests", f"{self._count('web.requests'):,}", "bold"),
                    ("per second", f"{self._rate():.0f}", "bold green"),
                    ("errors", f"{self._count('web.errors'):,}", "bold red" if self._count("web.errors") else "bold"),
                    ("in flight", f"{(sample.aggregates.get('web.requests_in_flight') or {}).get('value', '–')}", "bold"),
                    ("CPU", f"{self._gauge('host.cpu_percent')} %", "bold"),
                    ("memory", f"{self._gauge('host.memory_percent')} %", "bold"),
                )
            ],
            padding=(0, 3),
        )
        delay = sample.latency
        foot = Text(
            f"from record to here: p50 {_ms(delay.get('p50'))}, p99 {_ms(delay.get('p99'))}   ·   last error: {self._last_error()}",
            style="dim",
            overflow="ellipsis",
            no_wrap=True,
        )
        wanted = Text("errors are wanted: some requests ask for what is not there, or not Python", style="dim")
        ask = Text(f"ask yourself: taba agg --server {self.server} --match 'web.*'", style="dim")
        return Panel(
            Group(total, Text(), self._routes(sample), Text(), self._workers(sample), Text(), foot, wanted, ask),
            title="Taba demo",
            border_style="blue",
            box=box.ROUNDED,
        )

    def _routes(self, sample: Sample) -> Table:
        table = Table("last minute, in ms", box=box.SIMPLE_HEAD, header_style="bold dim", pad_edge=False, show_edge=False)
        for column in ("requests", "p50", "p90", "p95", "p99", "max"):
            table.add_column(column, justify="right")
        rows = [
            (name.partition('route="')[2][:-2], content)
            for name, content in sorted(sample.aggregates.items())
            if name.startswith("web.seconds{")
        ]
        rows += [("all of the server", sample.all_routes), ("seen by the users", sample.aggregates.get("load.seconds") or {})]
        for name, content in rows:
            minute = content.get("1m") or {}
            table.add_row(name, f"{minute.get('count') or 0:,}", *(_milli(minute.get(key)) for key in ("p50", "p90", "p95", "p99", "max")))
        return table

    def _workers(self, sample: Sample) -> Table:
        table = Table("worker", box=box.SIMPLE_HEAD, header_style="bold dim", pad_edge=False, show_edge=False)
        for column in ("requests a minute", "errors a minute", "requests", "errors"):
            table.add_column(column, justify="right")
        requests, errors = (sample.per_worker.get(name) or {} for name in ("web.requests", "web.errors"))
        for worker in sorted(requests.keys() | errors.keys()):
            mine, wrong = requests.get(worker) or {}, errors.get(worker) or {}
            figures = [((of.get(window) or {}).get("count") or 0) for window in ("1m", "pct") for of in (mine, wrong)]
            table.add_row(worker, *(f"{figure:,}" for figure in figures))
        return table

    def _count(self, name: str, sample: Sample | None = None) -> int:
        content = (sample or self.samples[-1]).aggregates.get(name) or {}
        return int((content.get("pct") or {}).get("count") or 0)

    def _rate(self) -> float:
        first, last = self.samples[0], self.samples[-1]
        seconds = last.time - first.time
        return (self._count("web.requests", last) - self._count("web.requests", first)) / seconds if seconds else 0.0

    def _gauge(self, name: str) -> str:
        value = (self.samples[-1].aggregates.get(name) or {}).get("average")
        return f"{value:.0f}" if isinstance(value, (int, float)) else "–"

    def _last_error(self) -> str:
        values = (self.samples[-1].aggregates.get("web.last_error") or {}).get("values") or {}
        return next(iter(values), "none")


def _milli(seconds: Any) -> str:
    return f"{seconds * 1000:.1f}" if isinstance(seconds, (int, float)) else "–"


def _ms(seconds: Any) -> str:
    return f"{_milli(seconds)} ms" if isinstance(seconds, (int, float)) else "–"
