"""What a small question waits for while another asker has forty large ones answered at once: those that it asked before are none of its.

Askers are told apart by their tokens. The large ones are read by a process of their own, as fast as it can.
"""

from __future__ import annotations

import http.client
import multiprocessing
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from benchmarks import budgets
from benchmarks.cold import spread
from benchmarks.holding import CODE, Held
from benchmarks.rows import Figure, Row
from benchmarks.sending import Streams, send
from benchmarks.services import ASK_SECONDS, Effort, pid_of, running
from taba.query import Query
from taba.tokens import READ, line_of, new_token

ASKERS = 40  # of the large question at once, of one token
CLIENTS = 300
QUESTIONS = 12  # small ones, one after the other
APART_SECONDS = 0.1
LARGE = {
    "Projections": "/v1/projections",
    "Projections of one Client": "/v1/projections?client=web-0001/1",
    "Aggregates": "/v1/aggregates",
    "slots": "/v1/slots?limit=6",
    "the overview": "/v1/overview?limit=1000",
    "who holds most": "/v1/who?limit=1000",
    "a scrape of all Tabs": "/metrics?match=.*",
    "PromQL": "/api/v1/query?query=%7B__name__%3D~%22.%2B%22%7D",
}
SMALL = {
    "one Projection": "/v1/projections?name=benchmark.spread.000001&client=web-0001/1",
    "one Aggregate": "/v1/aggregates?name=benchmark.spread.000001",
    "one name": "/v1/names?name=benchmark.spread.000001",
}


def rows(effort: Effort, tabs: int | None = None) -> list[Row]:
    """For each kind of large question what the small ones wait."""
    found = []
    many, other = (new_token(READ) for _ in range(2))
    with running() as services:
        send(services.server_url, Streams().envelopes(spread(tabs or effort.pick(40, 300), CLIENTS, time.time())))
        services.stop_server()
        tokens = services.directory / "tokens"
        tokens.touch(mode=0o600)
        tokens.write_text("\n".join(map(line_of, (many, other))))
        services.environ["TABA_SERVER_TOKENS"] = str(tokens)
        services.query = Query(services.server_url, token=other)
        turns = services.directory / "longest"
        Held.make(turns)
        services.before = CODE.format(path=str(turns))
        services.start_server()
        held = Held(turns, pid_of(services, "server"))
        for what, path in LARGE.items():
            with _asked_for(services.server_url, path, many) as answered:
                held.begin()
                waits = _waits(services.server_url, other)
                longest = held.longest()
            of_all = [wait for of in waits.values() for wait in of]
            said = ", ".join(f"{small} {max(of):.0f}" for small, of in waits.items())
            note = f"{ASKERS} at once of {answered}; the longest of {QUESTIONS} each in ms: {said}; median of all {median(of_all):.0f}"
            found.append(Row(f"many at once: {what}", Figure.of([longest]), "ms", budgets.WAIT, note="the longest turn of the loop"))
            found.append(Row(f"a small question beside many: {what}", Figure.of([max(of_all)]), "ms", note=note))
    return found


def _waits(url: str, token: str) -> dict[str, list[float]]:
    """By small question how many milliseconds each took."""
    return {what: [_timed(url, path, token) for _ in range(QUESTIONS)] for what, path in SMALL.items()}


def _timed(url: str, path: str, token: str) -> float:
    time.sleep(APART_SECONDS)
    began = time.perf_counter()
    status = _ask(url, path, token)
    if status != 200:
        raise RuntimeError(f"{path}: {status}")
    return 1000 * (time.perf_counter() - began)


def _ask(url: str, path: str, token: str) -> int:
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=ASK_SECONDS)) as connection:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        while answer.read(1 << 20):
            pass
        return answer.status


@contextmanager
def _asked_for(url: str, path: str, token: str) -> Iterator[dict[int, int]]:
    """While this lasts, a process asks for `path`, ASKERS times at once. By status how many were answered, once it is over."""
    context = multiprocessing.get_context("spawn")
    end, found = context.Event(), context.Queue()
    statuses: dict[int, int] = {}
    process = context.Process(target=_keep_asking, args=(url, path, token, end, found), daemon=True)
    process.start()
    try:
        found.get(timeout=ASK_SECONDS)  # it has begun
        yield statuses
    finally:
        end.set()
        statuses.update(found.get(timeout=ASK_SECONDS))
        process.join()


def _keep_asking(url: str, path: str, token: str, end: Any, found: Any) -> None:
    statuses: dict[int, int] = {}
    lock = threading.Lock()

    def ask() -> None:
        while not end.is_set():
            try:
                status = _ask(url, path, token)
            except (OSError, http.client.HTTPException):
                status = 0
            if status != 200:
                time.sleep(0.05)
            with lock:
                statuses[status] = statuses.get(status, 0) + 1

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(ASKERS)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    found.put({})
    end.wait()
    found.put(statuses)
