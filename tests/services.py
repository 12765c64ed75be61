"""A real Server and a real Agent for tests: processes of their own, loopback ports, a directory of their own, gone with the test."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import ClassVar

import psutil
from twisted.trial.unittest import SynchronousTestCase

from taba.query import Query, QueryError
from tests.clock import WallClock
from tests.command import run_on_terminal, run_taba
from tests.leftovers import agent_name
from tests.patience import PATIENCE_SECONDS
from tests.processes import Process, free_port, twistd, wait_for_port

ROOT = Path(__file__).parent.parent
START_SECONDS = 180.0  # these only end hangs: a busy machine is slow with all of it
ANSWER_SECONDS = 60.0
SHM = Path("/dev/shm")
BUCKETS = 16  # enough to be many; a question of all Tabs reads each of them
USUAL_BUCKETS = 512  # a Server's own number


class Services:
    """Starts what a test asks for; hand `stop` to addCleanup. `environ` is for the processes that use them."""

    def __init__(self, buckets: int = BUCKETS) -> None:
        self.buckets = buckets
        self.clocks: dict[str, WallClock] = {}  # of "server" (and its store) or "agent", where theirs is not the machine's
        self.directory = Path(tempfile.mkdtemp(prefix="taba-test-"))
        self.agent = agent_name("test")
        self.server_port, self.agent_port = free_port(), free_port()
        self.server_url, self.agent_url = f"http://127.0.0.1:{self.server_port}", f"http://127.0.0.1:{self.agent_port}"
        self.query = Query(self.server_url, timeout=ANSWER_SECONDS)
        self.agent_query = Query(self.agent_url, timeout=ANSWER_SECONDS, role="Agent")
        self.children: list[Process] = []
        clean = {key: value for key, value in os.environ.items() if not key.startswith("TABA_") and key != "STATE_DIRECTORY"}
        self.environ = {
            **clean,
            "TABA_AGENT": self.agent,
            "TABA_SERVER": self.server_url,
            "TABA_AGENT_URL": self.agent_url,
            "XDG_STATE_HOME": str(self.directory),
            "PYTHONPATH": str(ROOT),
        }

    def start_server(self, *more: str, store: str = "", until_it_answers: bool = True) -> None:
        """A Server on an embedded store, or on `store`, until it answers; or only until it listens: its store may be away."""
        store = store or f"embedded:{self.directory / 'store'}"
        options = ["--listen", f"tcp:{self.server_port}:interface=127.0.0.1", "--store", store, *more]
        if "--buckets" not in more:
            options += ["--buckets", str(self.buckets)]
        child = self._start("server", twistd("taba-server", *options), self.server_port)
        if not until_it_answers:
            return
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

    def second_server(self, store: str, plugins: str = "") -> str:
        """The URL of another Server on `store`, "server 2", which looks for plugins there, too; it listens."""
        port, before = free_port(), self.environ["PYTHONPATH"]
        self.environ["PYTHONPATH"] = before + (f":{plugins}" if plugins else "")
        options = ("--listen", f"tcp:{port}:interface=127.0.0.1", "--store", store, "--buckets", str(self.buckets))
        try:
            self._start("server 2", twistd("taba-server", *options), port)
        finally:
            self.environ["PYTHONPATH"] = before
        return f"http://127.0.0.1:{port}"

    def start_agent(self, *more: str) -> None:
        """An Agent that sends to that Server, until it listens."""
        options = ("--agent", self.agent, "--server", self.server_url, "--listen", f"tcp:{self.agent_port}:interface=127.0.0.1")
        self._start("agent", twistd("taba-agent", *options, "--spool", str(self.directory / "spool"), *more), self.agent_port)

    def kill_server(self) -> None:
        """kill -9 to the Server; its store goes with it."""
        self._kill("server")

    def kill_agent(self) -> None:
        """kill -9 to the Agent."""
        self._kill("agent")

    def kill_store(self) -> None:
        """kill -9 to the embedded store, which the Server starts again."""
        os.kill(self.store_pid(), signal.SIGKILL)

    def store_pid(self) -> int:
        """The process id of the embedded store."""
        return int(psutil.Process(self._child("server").process.pid).children()[0].pid)

    def pid(self, name: str) -> int:
        """The process id of the `server` or the `agent`."""
        return self._child(name).process.pid

    def pause(self, name: str) -> None:
        """SIGSTOP to the `server` or the `agent`: it lives, and does nothing."""
        os.kill(self.pid(name), signal.SIGSTOP)

    def resume(self, name: str) -> None:
        os.kill(self.pid(name), signal.SIGCONT)

    def run(self, *arguments: str, stdin: str = "", timeout: float = PATIENCE_SECONDS, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run Python with `arguments` beside these services."""
        return subprocess.run(
            [sys.executable, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**self.environ, **environ},
            cwd=self.directory,
        )

    def taba(self, *arguments: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        """Run the `taba` command."""
        return run_taba(*arguments, environ={**self.environ, **environ}, directory=self.directory, stdin=stdin)

    def on_terminal(self, *arguments: str, said: bytes = b"", **environ: str) -> tuple[int, str]:
        """The exit code of the `taba` command on a terminal where `said` is typed, and everything that the terminal shows."""
        shown_by = {**self.environ, "TERM": "xterm", "COLUMNS": "120", **environ}
        return run_on_terminal(arguments, shown_by, self.directory, said)

    def stop(self) -> None:
        """End all, and remove what they made."""
        for child in reversed(self.children):
            child.stop()
        for segment in [*SHM.glob(f"taba.{self.agent}.*"), *SHM.glob(f"taba-*{self.agent}*")]:
            segment.unlink(missing_ok=True)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _child(self, name: str) -> Process:
        (child,) = (child for child in self.children if child.name == name)
        return child

    def _kill(self, name: str) -> None:
        child = self._child(name)
        child.process.kill()
        child.process.wait()
        self.children.remove(child)

    def _start(self, name: str, arguments: list[str], port: int) -> Process:
        clock = self.clocks[name].environ if name in self.clocks else {}
        child = Process(name, arguments, self.directory, {**self.environ, **clock} if clock else self.environ)
        self.children.append(child)
        wait_for_port(child, port, START_SECONDS)
        return child


class BesideAServer(SynchronousTestCase):
    """Tests that share one Server, and leave it as the others can bear it."""

    services: ClassVar[Services]

    @classmethod
    def setUpClass(cls) -> None:
        cls.services = Services()
        cls.addClassCleanup(cls.services.stop)
        cls.services.start_server()
