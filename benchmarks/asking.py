"""What it costs that people and pages look on: rows of what moves, many Aggregates at once, and those who listen.

The Server has many Tabs of many Clients, one event each, and nothing is folded meanwhile, so that what its process uses is asking's alone.
The floor is `GET /healthz` over a kept connection.
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from urllib.parse import urlsplit

from benchmarks import budgets, machine
from benchmarks.cold import spread
from benchmarks.query import p99
from benchmarks.rows import Beside, Figure, Row, interleave
from benchmarks.sending import Streams, send
from benchmarks.services import ASK_SECONDS, Effort, asking, pid_of, running

ROWS = 50
MANY = 1000  # Aggregates in one answer
PAGES = 8
BASE = "benchmark.spread"


def run(effort: Effort) -> list[Row]:
    asked = effort.pick(3, 50)
    tabs, clients = effort.pick((200, 5), (10_000, 50))
    listeners, seconds = effort.pick((20, 2.0), (1000, 20.0))
    with running() as services:
        streams, now = Streams(), time.time()
        some = effort.pick(100, 200)
        for start in range(0, clients, some):
            send(services.server_url, streams.envelopes(spread(tabs, min(some, clients - start), now)))
        place = urlsplit(services.server_url)
        server = pid_of(services, "server")
        with asking(services.server_url) as ask:
            overview = f"/v1/overview?limit={ROWS}"
            many = f"/v1/aggregates?name={BASE}*&limit={MANY}"
            for path in (overview, many):
                ask(path)  # names are read once
            found = interleave(
                {"overview": lambda: ask(overview)[0], "many": lambda: ask(many)[0], "floor": lambda: ask("/healthz")[0]},
                asked,
            )
            waits = _beside(lambda: ask("/healthz")[0], services.server_url, f"/v1/aggregates?name={BASE}*", asked)
        page = f"/v1/stream?name={BASE}.0000*"
        pages = _used(server, place.hostname or "", place.port or 80, page, PAGES, seconds)
        crowd = _used(server, place.hostname or "", place.port or 80, page, listeners, seconds)
    floor = Beside("GET /healthz, p99", p99(found["floor"]))
    cores = "of a core, nothing folded"
    return [
        Row(
            f"overview of {tabs:,} Tabs × {clients} Clients, {ROWS} rows, warm, p99", p99(found["overview"]), "ms", budgets.OVERVIEW, floor
        ),
        Row(f"{min(MANY, tabs):,} Aggregates of {clients} Clients, p99", p99(found["many"]), "ms", budgets.MANY_AGGREGATES, floor),
        Row("what else waits while all Aggregates are asked for, longest", Figure.of([max(waits)]), "ms", budgets.WAIT, floor),
        Row(f"{PAGES} pages listening", Figure.of([100 * pages]), "%", budgets.PAGES, note=cores),
        Row(f"{listeners:,} connections listening to the same", Figure.of([100 * crowd]), "%", note=cores),
    ]


def _beside(ask: Callable[[], float], url: str, path: str, least: int) -> list[float]:
    """How long `ask` takes, again and again, while somebody else asks for `path`."""
    done = threading.Event()
    failed: list[str] = []

    def other() -> None:
        try:
            with asking(url) as ask_all:
                ask_all(path)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            failed.append(f"{path}: {error}")
        finally:
            done.set()

    thread = threading.Thread(target=other)
    thread.start()
    found: list[float] = []
    while not done.is_set() or len(found) < least:
        found.append(ask())
    thread.join()
    if failed:
        raise RuntimeError(failed[0])
    return found


def _used(pid: int, host: str, port: int, path: str, listeners: int, seconds: float) -> float:
    """What the process uses of a core while so many listen, and read what they hear."""
    with ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection((host, port), timeout=ASK_SECONDS)) for _ in range(listeners)]
        for connection in connections:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n".encode())
        for connection in connections:
            if b" 200 " not in connection.recv(65536):
                raise RuntimeError(f"{path}: not heard")
            connection.setblocking(False)
        before, began = machine.cpu_seconds([pid]), time.monotonic()
        while time.monotonic() - began < seconds:
            time.sleep(0.2)
            for connection in connections:
                try:
                    while connection.recv(1 << 20):
                        pass
                    raise RuntimeError(f"{path}: the Server ended it")
                except BlockingIOError:
                    continue  # all that came is read
        return (machine.cpu_seconds([pid]) - before) / (time.monotonic() - began)
