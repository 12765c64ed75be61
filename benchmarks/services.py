"""The real Server, store and Agent that benchmarks use, and how much trouble a run takes."""

from __future__ import annotations

import http.client
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

from benchmarks import machine
from demo.processes import Child, free_port, remove_free_slot, twistd, wait_for_port
from taba.query import Query, QueryError
from taba.ring import SHM_DIRECTORY

ROOT = Path(__file__).parent.parent
SHM = Path(SHM_DIRECTORY)
START_SECONDS = 60.0
ASK_SECONDS = 60.0  # for one answer
RUN_VARIABLE = "TESTS_RUN"
SLOTS = "taba-slot.*"  # the numbers of equal processes; one that was killed leaves its file, empty

T = TypeVar("T")


def agent_name() -> str:
    """A name for an Agent that nobody else has; within a run of tests it has that run's word, by which is found what it left."""
    return f"benchmark-{os.environ.get(RUN_VARIABLE, '')}{secrets.token_hex(6)}"


class Effort(NamedTuple):
    """How much trouble a run takes."""

    is_quick: bool

    def pick(self, quick: T, normal: T) -> T:
        return quick if self.is_quick else normal


class Services:
    """A Server and an Agent, processes of their own in a directory of their own. `environ` is for the processes that use them."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="taba-bench-"))
        self.agent = agent_name()
        self._ports = {"server": free_port(), "agent": free_port()}
        self.server_url, self.agent_url = (f"http://127.0.0.1:{port}" for port in self._ports.values())
        self.query = Query(self.server_url)
        self.children: list[Child] = []
        self.before = ""  # code that the processes begin with
        clean = {key: value for key, value in os.environ.items() if not key.startswith("TABA_") and key != "STATE_DIRECTORY"}
        self.environ = {
            **clean,
            "TABA_AGENT": self.agent,
            "TABA_SERVER": self.server_url,
            "XDG_STATE_HOME": str(self.directory),
            "PYTHONPATH": str(ROOT),
        }

    def start_server(self, store: str = "") -> None:
        """A Server on an embedded store, or on `store`, until it answers."""
        child = self._start("server", "--store", store or f"embedded:{self.directory / 'store'}")
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.query.names()
                return
            except QueryError:
                child.check()
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    def stop_server(self) -> None:
        """End the Server, and its embedded store, whose files stay."""
        [child] = [child for child in self.children if child.name == "server"]
        child.stop()
        self.children.remove(child)

    def start_agent(self, *more: str) -> None:
        """An Agent that sends to that Server, until it listens."""
        self._start("agent", "--agent", self.agent, "--server", self.server_url, "--spool", str(self.directory / "spool"), *more)

    def _start(self, name: str, *options: str) -> Child:
        port = self._ports[name]
        listen = ("--listen", f"tcp:{port}:interface=127.0.0.1")
        command = twistd(self.directory, f"taba-{name}", *listen, *options)
        command[command.index("-c") + 1] = self.before + command[command.index("-c") + 1]
        child = Child(name, command, self.directory, self.environ)
        self.children.append(child)
        wait_for_port(child, port, START_SECONDS)
        return child

    def stop(self) -> None:
        """End all, and remove what they made."""
        for child in reversed(self.children):
            child.stop()
        remove_segments(self.agent)
        shutil.rmtree(self.directory, ignore_errors=True)


@contextmanager
def running(server: bool = True, agent: bool = False, **environ: str) -> Iterator[Services]:
    """A Server on an embedded store that syncs each write, and an Agent, as processes of their own; gone in the end, whatever happens."""
    before = set(SHM.glob(SLOTS))
    services = Services()
    services.environ.update(environ)
    try:
        if server:
            services.start_server()
        if agent:
            services.start_agent()
        yield services
    finally:
        services.stop()
        for slot in set(SHM.glob(SLOTS)) - before:
            remove_free_slot(slot)  # others on this host may hold theirs


@contextmanager
def asking(url: str) -> Iterator[Callable[[str], tuple[float, bytes]]]:
    """`ask(path)` over one kept connection: milliseconds until the last byte, and the body. RuntimeError says of any answer but 200."""
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=ASK_SECONDS)) as connection:

        def ask(path: str) -> tuple[float, bytes]:
            start = time.perf_counter()
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
            took = time.perf_counter() - start
            if answer.status != 200:
                raise RuntimeError(f"{path}: {answer.status} {body[:200]!r}")
            return took * 1000, body

        yield ask


def remove_segments(agent: str) -> None:
    """The rings and the outbox of an Agent's name that was a benchmark's own."""
    for segment in (*SHM.glob(f"taba.{agent}.*"), *SHM.glob(f"taba-*{agent}*")):
        segment.unlink(missing_ok=True)


def pid_of(services: Services, name: str) -> int:
    """The process id of a started `server`, `agent`, or of the Server's `store`."""
    if name == "store":
        [found] = machine.children(pid_of(services, "server"))
        return found
    return next(child.process.pid for child in services.children if child.name == name)
