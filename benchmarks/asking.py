"""What it costs that people and pages look on: rows of what moves, many Aggregates at once, those who listen, and `taba top`.

The Server has many Tabs of many Clients, one event each, and nothing is folded meanwhile, so that what its process uses is asking's alone.
Where many listen, an event is posted each second, so that each second something is said; what one listener costs is taken off. The
floor of that is as many bare `socket.send` of as many bytes, in a loop with nothing around it. All other rows have `GET /healthz` over a
kept connection. Who asks for all Aggregates is a process of its own: in ours it would keep the interpreter from who waits beside it.
"""

from __future__ import annotations

import os
import pty
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import NamedTuple
from urllib.parse import urlsplit

from benchmarks import budgets, machine
from benchmarks.cold import spread
from benchmarks.query import p99
from benchmarks.rows import Beside, Figure, Row, interleave
from benchmarks.sending import Streams, send
from benchmarks.services import ASK_SECONDS, Effort, asking, pid_of, running
from taba.query import Query

ASKING = """
import sys, urllib.request
print("ready", flush=True)
sys.stdin.readline()
with urllib.request.urlopen(sys.argv[1]) as answer:
    while answer.read(1 << 20):
        pass
"""
BARE_ROUNDS = 6  # of bare sends
ROWS = 50
MANY = 1000  # Aggregates in one answer
PAGES = 8
MAX_LISTENERS = 1000  # of a Server
BASE = "benchmark.spread"


def run(effort: Effort) -> list[Row]:
    asked = effort.pick(3, 50)
    tabs, clients = effort.pick((200, 5), (10_000, 50))
    listeners, seconds = effort.pick((200, 2.0), (MAX_LISTENERS, 20.0))
    with running() as services:
        streams, now = Streams(), time.time()
        place = urlsplit(services.server_url)
        server = pid_of(services, "server")
        with asking(services.server_url) as ask:
            many = f"/v1/aggregates?name={BASE}*&limit={MANY}"
            send(services.server_url, streams.envelopes(spread(min(MANY, tabs), 1, now)))
            ask(many)  # names are read once
            found = interleave({"single": lambda: ask(many)[0]}, asked)
            some = effort.pick(100, 200)
            for start in range(0, clients, some):
                send(services.server_url, streams.envelopes(spread(tabs, min(some, clients - start), now)))
            overview = f"/v1/overview?limit={ROWS}"
            for path in (overview, many):
                ask(path)
            found |= interleave(
                {"overview": lambda: ask(overview)[0], "many": lambda: ask(many)[0], "floor": lambda: ask("/healthz")[0]},
                asked,
            )
            waits = _beside(lambda: ask("/healthz")[0], services.server_url, f"/v1/aggregates?name={BASE}*", asked)
        page = f"/v1/stream?name={BASE}.0000*"
        where = Where(server, place.hostname or "", place.port or 80, page)
        pages = where.used(PAGES, seconds)
        moving = Moving(services.query)
        one, crowd = where.used(1, seconds, moving), where.used(listeners, seconds, moving)
        bare = Beside("as many bare sends", Figure.of(_bare_sends(listeners, crowd.bytes, effort.pick(0.0, 1.0))))
        top = _top(services.environ, services.server_url, seconds)
    floor = Beside("GET /healthz, p99", p99(found["floor"]))
    cores = "of a core, nothing folded"
    tick = 1000 * (crowd.cores - one.cores) * seconds / max(1.0, crowd.events)
    return [
        Row(
            f"overview of {tabs:,} Tabs × {clients} Clients, {ROWS} rows, warm, p99", p99(found["overview"]), "ms", budgets.OVERVIEW, floor
        ),
        Row(f"{min(MANY, tabs):,} Aggregates of a Client each, p99", p99(found["single"]), "ms", budgets.MANY_AGGREGATES, floor),
        Row(f"… of {clients} Clients each, p99", p99(found["many"]), "ms", floor=floor),
        Row("what else waits while all Aggregates are asked for, longest", Figure.of([max(waits)]), "ms", budgets.WAIT, floor),
        Row(f"{PAGES} pages listening", Figure.of([100 * pages.cores]), "%", budgets.PAGES, note=cores),
        Row(
            f"{listeners:,} listeners, processor for each event",
            Figure.of([tick]),
            "ms",
            budgets.LISTENERS_TICK,
            bare,
            note=f"{crowd.events:.0f} events of {crowd.bytes:,} bytes; a Server takes {MAX_LISTENERS:,}",
        ),
        Row(f"{listeners:,} listeners, memory", Figure.of([crowd.mib]), "MiB", budgets.LISTENERS_MEMORY),
        Row(f"taba top beside {tabs:,} Tabs", Figure.of([100 * top]), "%", budgets.TOP, note="of a core, the command's own"),
    ]


def _beside(ask: Callable[[], float], url: str, path: str, least: int) -> list[float]:
    """How long `ask` takes, again and again, while somebody else asks for `path`."""
    command = [sys.executable, "-c", ASKING, url + path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as other:
        assert other.stdin is not None and other.stdout is not None and other.stderr is not None
        other.stdout.readline()
        other.stdin.write(b"go\n")
        other.stdin.flush()
        found: list[float] = []
        while other.poll() is None or len(found) < least:
            found.append(ask())
        if other.returncode:
            raise RuntimeError(f"{path}: {other.stderr.read()[-500:]!r}")
    return found


def _bare_sends(count: int, size: int, pause: float) -> list[float]:
    """Milliseconds of processor that so many `send` of `size` bytes take, each to a peer of its own; some rounds, `pause` seconds apart."""
    with ExitStack() as stack:
        door = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=count))
        peers: list[socket.socket] = []
        ends: list[socket.socket] = []
        for _ in range(count):
            peers.append(stack.enter_context(socket.create_connection(door.getsockname())))
            ends.append(stack.enter_context(door.accept()[0]))
        content = bytes(size)
        found = []
        for _ in range(BARE_ROUNDS):
            time.sleep(pause)
            began = time.thread_time()
            for end in ends:
                end.send(content)
            found.append(1000 * (time.thread_time() - began))
            for peer in peers:
                peer.recv(1 << 20)
        return found[1:]  # a kernel makes room for each connection at first


class Used(NamedTuple):
    """`cores`: what the Server used while so many listened; `mib`: by how much its memory grew for them; `events` that each heard, and of
    how many `bytes`."""

    cores: float
    mib: float
    events: float
    bytes: int


class Moving:
    """Posts an event each second, of a Tab that is listened to."""

    def __init__(self, query: Query):
        self._query, self._next = query, 0.0

    def step(self, now: float) -> None:
        if now >= self._next:
            self._next = now + 1.0
            self._query.post_events("web-0000/1", [{"tab": f"{BASE}.000000", "type": "CounterGroup", "value": 1}])


class Where(NamedTuple):
    """What is listened to: of which process, and where."""

    pid: int
    host: str
    port: int
    path: str

    def used(self, listeners: int, seconds: float, moving: Moving | None = None) -> Used:
        """What the Server uses while so many listen, and read what they hear."""
        memory = machine.resident_mib(self.pid)
        with ExitStack() as stack:
            asked = f"GET {self.path} HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n".encode()
            connections: list[socket.socket] = []
            for _ in range(listeners):  # whoever comes says at once what for: of those who only came a Server keeps few (MAX_HALL)
                connections.append(stack.enter_context(socket.create_connection((self.host, self.port), timeout=ASK_SECONDS)))
                connections[-1].sendall(asked)
            for connection in connections:
                if b" 200 " not in connection.recv(65536):
                    raise RuntimeError(f"{self.path}: not heard")
                connection.setblocking(False)
            before, began = machine.cpu_seconds([self.pid]), time.monotonic()
            heard = size = 0
            while (now := time.monotonic()) - began < seconds:
                if moving is not None:
                    moving.step(now)
                time.sleep(0.2)
                for connection in connections:
                    is_fresh = False
                    try:
                        while came := len(connection.recv(1 << 20)):
                            is_fresh = True
                            size += came
                        raise RuntimeError(f"{self.path}: the Server ended it")
                    except BlockingIOError:
                        heard += is_fresh  # all that came is read
            used = (machine.cpu_seconds([self.pid]) - before) / (time.monotonic() - began)
            return Used(used, machine.resident_mib(self.pid) - memory, heard / listeners, size // max(1, heard))


def _top(environ: Mapping[str, str], url: str, seconds: float) -> float:
    """What `taba top` uses of a core, once it has begun."""
    main, terminal = pty.openpty()
    command = [sys.executable, "-m", "taba.cli.main", "top", "--server", url]
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env={**environ, "TERM": "xterm"})
    try:
        shown, deadline = b"", time.monotonic() + ASK_SECONDS
        while BASE.encode() not in shown:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"taba top shows nothing: {shown[-500:]!r}")
            if select.select([main], [], [], 1.0)[0]:
                shown += os.read(main, 65536)
        before, began = machine.cpu_seconds([process.pid]), time.monotonic()
        while time.monotonic() - began < seconds:
            if select.select([main], [], [], 0.2)[0]:
                os.read(main, 65536)
        return (machine.cpu_seconds([process.pid]) - before) / (time.monotonic() - began)
    finally:
        process.kill()
        process.wait()
        os.close(main)
        os.close(terminal)
