"""What 20 events a request cost an application that gunicorn serves: nothing, Taba, prometheus_client multiprocess, DogStatsD.

One worker each, all with a real gunicorn, asked in turns over kept connections; the figure is the worker's own processor time a request.
Two of them record nothing: what they differ by is what this cannot tell from nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack, closing

from benchmarks import budgets
from benchmarks.rows import Beside, Figure, Row, interleave
from benchmarks.services import START_SECONDS, Effort, Services, asking, running
from demo.processes import Child, free_port, python, wait_for_port

NOTHING, AGAIN = "nothing recorded", "nothing recorded, another one"
CASES = {
    NOTHING: ("nothing", ""),
    AGAIN: ("nothing", "noise: what its rounds differ by cannot be told from nothing"),
    "Taba": ("taba", ""),
    "prometheus_client, multiprocess": ("prometheus", "the totals of workers that ended stay in files, which grow"),
    "DogStatsD": ("dogstatsd", "what the kernel drops is lost, unsaid"),
}


def run(effort: Effort) -> list[Row]:
    requests, rounds = effort.pick((100, 3), (400, 25))
    with running(agent=True) as services, ExitStack() as stack:
        deaf = stack.enter_context(closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
        deaf.bind(("127.0.0.1", 0))
        measured = {title: _served(services, stack, what, deaf.getsockname()[1], requests) for title, (what, _) in CASES.items()}
        for measure in measured.values():
            measure()  # whatever is made at the first request
        found = interleave(measured, rounds)
    bare = Beside(NOTHING, Figure.of(found[NOTHING]))
    rows = [Row(f"a request with {NOTHING}", bare.figure, "µs")]
    for title, (_, note) in CASES.items():
        if title != NOTHING:
            more = Figure.of((its / less - 1) * 100 for its, less in zip(found[title], found[NOTHING], strict=True))
            name = f"20 events: {title} adds" if title != AGAIN else f"{AGAIN}: differs by"
            rows.append(Row(name, more, "%", budgets.SERVED if title == "Taba" else None, note=note))
            rows.append(Row("… in all", Figure.of(found[title]), "µs", peer=bare))
    return rows


def _served(services: Services, stack: ExitStack, what: str, port: int, requests: int) -> Callable[[], float]:
    """Processor time of a request, in µs, over so many of them."""
    name = f"served-{what}-{len(services.children)}"
    environ = {**services.environ, "TABA_BENCHMARK_WITH": what, "TABA_BENCHMARK_PORT": str(port), "TABA_CLIENT_ID": f"benchmark/{name}"}
    if what == "prometheus":
        files = services.directory / "prometheus"
        files.mkdir()
        environ["PROMETHEUS_MULTIPROC_DIR"] = str(files)
    own = free_port()
    options = ("--workers", "1", "--worker-class", "gthread", "--threads", "1", "--keep-alive", "60", "--bind", f"127.0.0.1:{own}")
    child = Child(name, python("-m", "gunicorn", *options, "benchmarks.served_app:application"), services.directory, environ)
    services.children.append(child)
    wait_for_port(child, own, START_SECONDS)
    ask = stack.enter_context(asking(f"http://127.0.0.1:{own}"))

    def measure() -> float:
        before = float(ask("/cpu")[1])
        for _ in range(requests):
            ask("/")
        return (float(ask("/cpu")[1]) - before) / requests * 1e6

    return measure
