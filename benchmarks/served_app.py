"""An application that gunicorn serves: ten counters and ten latencies a request, recorded by what TABA_BENCHMARK_WITH names."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Any

EACH = 10  # counters, and latencies, of a request

Record = Callable[[], None]


def _nothing() -> Record:
    return lambda: None


def _taba() -> Record:
    from taba import client

    counters = [client.counter(f"benchmark.served.{number}").inc for number in range(EACH)]
    latencies = [client.percentile(f"benchmark.took.{number}").observe for number in range(EACH)]
    return lambda: _record(counters, latencies)


def _prometheus() -> Record:
    from prometheus_client import CollectorRegistry, Counter, Histogram

    registry = CollectorRegistry()
    counters = [Counter(f"benchmark_served_{number}", "…", registry=registry).inc for number in range(EACH)]
    latencies = [Histogram(f"benchmark_took_{number}", "…", registry=registry).observe for number in range(EACH)]
    return lambda: _record(counters, latencies)


def _dogstatsd() -> Record:
    from datadog.dogstatsd.base import DogStatsd

    made = DogStatsd(host="127.0.0.1", port=int(os.environ["TABA_BENCHMARK_PORT"]), disable_telemetry=True)

    def record() -> None:
        for number in range(EACH):
            made.increment(f"benchmark.served.{number}")
            made.histogram(f"benchmark.took.{number}", 0.0125)

    return record


def _record(counters: list[Any], latencies: list[Any]) -> None:
    for inc in counters:
        inc()
    for observe in latencies:
        observe(0.0125)


RECORDING = {"nothing": _nothing, "taba": _taba, "prometheus": _prometheus, "dogstatsd": _dogstatsd}
_record_request = RECORDING[os.environ.get("TABA_BENCHMARK_WITH", "nothing")]()


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """`/`: a small answer, and 20 events. `/cpu`: the seconds of its processor that this process used so far."""
    if environ["PATH_INFO"] == "/cpu":
        body = repr(time.process_time()).encode()
    else:
        _record_request()
        body = b'{"answer": 42}'
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
