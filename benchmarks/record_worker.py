"""The process that records: Taba's client, the floor and the peers, each timed in the same loop. See record.py.

`python -m benchmarks.record_worker CASE` with CASE of `CASES`; commands: `burst`, `threads`, `forks` (nanoseconds a call), `counts` (what
Taba counted), `trace` (so many calls between two marks that strace shows).
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from itertools import repeat
from typing import Any

from benchmarks.floor import load_floor
from benchmarks.worker import serve, wait_until

BEGIN, END = "/taba-benchmark-begins", "/taba-benchmark-ends"  # files that do not exist; asking for them marks the trace

PACKET_BYTES = 1432  # that peers which buffer gather
NO_TAGS: dict[str, str] = {}
SPAN = struct.Struct("dd")  # when a forked process began and ended: all read one clock

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


def taba_labels() -> tuple[Any, Call, Any]:
    from taba import client

    labels = client.counter("benchmark.labels").labels
    return with_value, lambda status: labels(route="/x", status=status), 200


def floor_time() -> tuple[Any, Call, Any]:
    return without_value, time.time, None


def floor_clock() -> tuple[Any, Call, Any]:
    return with_value, load_floor(os.environ["TABA_FLOOR"]), 1.0


def dict_add() -> tuple[Any, Call, Any]:
    counts = {"benchmark.inc": 0.0}

    def add(key: str) -> None:
        counts[key] += 1.0

    return with_value, add, "benchmark.inc"


def prometheus_inc() -> tuple[Any, Call, Any]:
    from prometheus_client import CollectorRegistry, Counter

    return without_value, Counter("benchmark_inc", "…", registry=CollectorRegistry()).inc, None


def prometheus_observe() -> tuple[Any, Call, Any]:
    from prometheus_client import CollectorRegistry, Histogram

    return with_value, Histogram("benchmark_observe", "…", registry=CollectorRegistry()).observe, 1.0


def pytheus_inc() -> tuple[Any, Call, Any]:
    from pytheus.metrics import Counter

    return without_value, Counter("benchmark_inc", "…").inc, None


def spectator_increment() -> tuple[Any, Call, Any]:
    from spectator.config import Config
    from spectator.registry import Registry

    made = Registry(Config(f"udp://127.0.0.1:{_deaf_port()}", buffer_size=PACKET_BYTES)).counter("benchmark.inc")
    return without_value, made.increment, None


def statshouse_count() -> tuple[Any, Call, Any]:
    from statshouse import Client

    made = Client(f"127.0.0.1:{_deaf_port()}", "benchmark")
    _kept.append(made)

    def count(metric: str) -> None:
        made.count(metric, NO_TAGS, 1)

    return with_value, count, "benchmark_inc"


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
        *(taba_record, taba_inc, taba_string, taba_labels, floor_time, floor_clock, dict_add),
        *(prometheus_inc, prometheus_observe, pytheus_inc, datadog_buffered, datadog_aggregated),
        *(statsd_incr, spectator_increment, statshouse_count, opentelemetry_add, opentelemetry_record),
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

    def threads(number: int, times: int, waits: bool) -> float:
        """Nanoseconds a call of so many threads together, which begin at once."""
        if waits:
            wait_until(_is_drained, 10.0, "the Agent has drained the ring", pause=0.002)
        together = threading.Barrier(number + 1)

        def record() -> None:
            together.wait()
            loop(call, value, times)

        begun = [threading.Thread(target=record) for _ in range(number)]
        for thread in begun:
            thread.start()
        together.wait()
        start = time.perf_counter()
        for thread in begun:
            thread.join()
        return (time.perf_counter() - start) / (number * times) * 1e9

    def forks(number: int, times: int, waits: bool) -> float:
        """Nanoseconds a call of so many forked processes together, which begin at once, each after its first call."""
        told, tell = os.pipe()
        wait, begin = os.pipe()
        pids = []
        for _ in range(number):
            pid = os.fork()
            if pid == 0:
                os.close(begin)
                loop(call, value, 100)  # a ring, a file, a socket of its own
                os.write(tell, b".")
                os.read(wait, 1)
                start = time.perf_counter()
                loop(call, value, times)
                os.write(tell, SPAN.pack(start, time.perf_counter()))
                os._exit(0)
            pids.append(pid)
        ready = b""
        while len(ready) < number:
            ready += os.read(told, number)
        os.close(begin)
        os.close(tell)  # so that a child that fails is the pipe's end
        spans = b""
        while part := os.read(told, SPAN.size * number):
            spans += part
        for pid in pids:
            os.waitpid(pid, 0)
        os.close(told)
        os.close(wait)
        found = list(SPAN.iter_unpack(spans))
        if len(found) < number:
            raise RuntimeError(f"{number - len(found)} of {number} processes failed")
        passed: float = max(end for _, end in found) - min(start for start, _ in found)
        return passed / (number * times) * 1e9

    def counts() -> Any:
        from taba import client

        return client.stats()

    def trace(times: int) -> None:
        loop(call, value, 1000)
        os.access(BEGIN, os.F_OK)
        loop(call, value, times)
        os.access(END, os.F_OK)

    serve({"burst": burst, "threads": threads, "forks": forks, "counts": counts, "trace": trace})


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
