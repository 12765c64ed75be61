"""What PromQL and a scrape cost: milliseconds from request to the last byte, over one kept connection, nothing else going on.

100 Tabs of 10 Clients with a full day's States each, of CounterGroup and of PercentileGroup; an hour at 15 s is 241 points. Beside the
scrape of 2,000 Tabs goes a second connection that asks for `/healthz` again and again: what it waits is what others wait.
"""

from __future__ import annotations

import json
import threading
import time
from urllib.parse import quote

import numpy as np

from benchmarks import budgets
from benchmarks.cold import DAY_TIMES, ByBucket
from benchmarks.rows import Figure, Row, interleave
from benchmarks.sending import Streams, send
from benchmarks.services import Effort, asking, running
from taba.batch import Column
from taba.bounds import DEFAULT_BUCKETS
from taba.names import bucket_of

TABS, CLIENTS = 100, 10
SCRAPED = 2000


def run(effort: Effort) -> list[Row]:
    asked = effort.pick(5, 30)
    tabs, scraped = effort.pick(20, TABS), effort.pick(200, SCRAPED)
    with running() as services:
        now = time.time()
        streams = Streams()
        day = np.array([now - ago for ago in (*DAY_TIMES, *range(240, 0, -5))])
        for columns in (
            _columns("counted", "CounterGroup", tabs, CLIENTS, day),
            _columns("measured_seconds", "PercentileGroup", tabs, CLIENTS, day),
            _columns("scraped", "CounterGroup", scraped, 1, np.array([now])),
        ):
            send(services.server_url, streams.envelopes(columns))
        with asking(services.server_url) as ask:

            def answered(path: str) -> float:
                took, body = ask(path)
                if not json.loads(body)["data"]["result"]:
                    raise RuntimeError(f"{path}: nothing: {body[:200]!r}")
                return took

            def hour(text: str) -> float:
                return answered(f"/api/v1/query_range?query={quote(text)}&start={now - 3600}&end={now}&step=15")

            found = interleave(
                {
                    "sum": lambda: hour("sum(rate(counted_total[1m]))"),
                    "each": lambda: hour("rate(counted_total[1m])"),
                    "one": lambda: hour('rate(counted_total{tab="0000"}[1m])'),
                    "quantile": lambda: hour("histogram_quantile(0.9, sum(rate(measured_seconds[1m])))"),
                    "health": lambda: answered("/api/v1/query?query=1%2B1"),
                },
                asked,
            )
            waits: list[float] = []
            ended = threading.Event()

            def others() -> None:
                with asking(services.server_url) as other:
                    while not ended.wait(0.005):
                        waits.append(other("/healthz")[0])

            thread = threading.Thread(target=others)
            thread.start()
            try:
                scrapes = [ask("/metrics?match=scraped.*")[0] for _ in range(asked)]
            finally:
                ended.set()
                thread.join()
    note = f"{tabs} Tabs × {CLIENTS} Clients, 241 points, {asked} requests of each kind in turn"
    return [
        Row("hour at 15 s, CounterGroup, sum(rate())", Figure.of(found["sum"]), "ms", budgets.PROMQL_COUNTERS, note=note),
        Row("… each Tab by itself", Figure.of(found["each"]), "ms", note=note),
        Row("… one Tab", Figure.of(found["one"]), "ms"),
        Row("hour at 15 s, PercentileGroup, histogram_quantile", Figure.of(found["quantile"]), "ms", budgets.PROMQL_PERCENTILES, note=note),
        Row("health check of Grafana", Figure.of(found["health"]), "ms", budgets.PROMQL_HEALTH),
        Row(f"/metrics of {scraped:,} Tabs", Figure.of(scrapes), "ms", budgets.SCRAPE),
        Row("GET /healthz meanwhile, the longest", Figure(max(waits), min(waits), max(waits), len(waits)), "ms", budgets.SCRAPE_WAIT),
    ]


def _columns(name: str, type: str, tabs: int, clients: int, times: np.ndarray) -> ByBucket:
    """Tabs of one base name and Type, told apart by a label."""
    found: ByBucket = {}
    values = (np.arange(len(times)) % 20 * 0.05 + 0.05).tobytes()
    for number in range(tabs):
        tab = f'{name}{{tab="{number:04d}"}}'
        columns = found.setdefault(bucket_of(tab, DEFAULT_BUCKETS), [])
        columns += [Column(f"web-{client:03d}/1", tab, type, times.tobytes(), values) for client in range(clients)]
    return found
