"""The process that records: Taba's client, the floor and the peers, each timed in the same loop. See record.py.

`python -m benchmarks.record_worker CASE` with CASE of `CASES`; commands: `burst` (nanoseconds a call), `counts` (what Taba counted),
`trace` (so many calls between two marks that strace shows).
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from itertools import repeat
from typing import Any

from benchmarks.worker import serve, wait_until

BEGIN, END = "/taba-benchmark-begins", "/taba-benchmark-ends"  # files that do not exist; asking for them marks the trace

Call = Callable[..., Any]


def with_value(call: Call, value: Any, times: int) -> float:
    """Seconds that `times` calls with `value` take, loop and all."""
    start = time.perf_counter()
    for _ in repeat(None, times):
        call(value)
    return time.perf_counter() - start


def without_value(call: Call, _: Any, times: int) -> float:
    """Seconds that `times` calls take, loop and all."""
    start = time.perf_counter()
    for _ in repeat(None, times):
        call()
    return time.perf_counter() - start


def taba_record() -> tuple[Any, Call, Any]:
    from taba import client

    return with_value, client.counter("benchmark.record").record, 1.0


def taba_inc() -> tuple[Any, Call, Any]:
    from taba import client

    return without_value, client.counter("benchmark.inc").inc, None


def taba_string() -> tuple[Any, Call, Any]:
    from taba import client

    return with_value, client.tab("benchmark.string", type="Noop").record, "x" * 200


def floor_time() -> tuple[Any, Call, Any]:
    return without_value, time.time, None


def prometheus_inc() -> tuple[Any, Call, Any]:
    from prometheus_client import CollectorRegistry, Counter

    return without_value, Counter("benchmark_inc", "…", registry=CollectorRegistry()).inc, None


def prometheus_observe() -> tuple[Any, Call, Any]:
    from prometheus_client import CollectorRegistry, Histogram

    return with_value, Histogram("benchmark_observe", "…", registry=CollectorRegistry()).observe, 1.0


def _deaf_port() -> int:
    """A UDP port where a bound socket takes what comes, and nobody reads: what does not fit any more, the kernel drops."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind(("127.0.0.1", 0))
    _kept.append(listener)
    port: int = listener.getsockname()[1]
    return port


_kept: list[Any] = []


def _datadog(aggregates: bool) -> tuple[Any, Call, Any]:
    from datadog.dogstatsd.base import DogStatsd

    made = DogStatsd(
        host="127.0.0.1", port=_deaf_port(), disable_buffering=False, disable_aggregation=not aggregates, disable_telemetry=True
    )
    _kept.append(made)
    return with_value, made.increment, "benchmark.inc"


def datadog_buffered() -> tuple[Any, Call, Any]:
    return _datadog(False)


def datadog_aggregated() -> tuple[Any, Call, Any]:
    return _datadog(True)


def statsd_incr() -> tuple[Any, Call, Any]:
    from statsd import StatsClient

    return with_value, StatsClient("127.0.0.1", _deaf_port()).incr, "benchmark.inc"


def _meter() -> Any:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    provider = MeterProvider(metric_readers=[InMemoryMetricReader()], shutdown_on_exit=False)
    _kept.append(provider)
    return provider.get_meter("benchmark")


def opentelemetry_add() -> tuple[Any, Call, Any]:
    return with_value, _meter().create_counter("benchmark.add").add, 1


def opentelemetry_record() -> tuple[Any, Call, Any]:
    return with_value, _meter().create_histogram("benchmark.record").record, 1.0


CASES = {
    made.__name__: made
    for made in (
        *(taba_record, taba_inc, taba_string, floor_time, prometheus_inc, prometheus_observe),
        *(datadog_buffered, datadog_aggregated, statsd_incr, opentelemetry_add, opentelemetry_record),
    )
}


def main(case: str) -> None:
    loop, call, value = CASES[case]()

    def burst(times: int, bursts: int, waits: bool) -> list[float]:
        """Nanoseconds a call, of each burst. With `waits` the ring is empty before each."""
        found = []
        for _ in range(bursts):
            if waits:
                wait_until(_is_drained, 10.0, "the Agent has drained the ring", pause=0.002)
            found.append(loop(call, value, times) / times * 1e9)
        return found

    def counts() -> Any:
        from taba import client

        return client.stats()

    def trace(times: int) -> None:
        loop(call, value, 1000)
        os.access(BEGIN, os.F_OK)
        loop(call, value, times)
        os.access(END, os.F_OK)

    serve({"burst": burst, "counts": counts, "trace": trace})


def _is_drained() -> bool:
    from taba import client
    from taba.ring import SHM_DIRECTORY, TAIL_OFFSET

    counted = client.stats()
    if counted["ring"] is None:
        return True
    with open(os.path.join(SHM_DIRECTORY, counted["ring"]), "rb") as ring:
        (tail,) = struct.unpack("<Q", os.pread(ring.fileno(), 8, TAIL_OFFSET))
    return bool(tail == counted["recorded"])


if __name__ == "__main__":
    main(sys.argv[1])
