"""Processes that tests start: each with a log of its own, ended by its id, gone when the test runner dies, whatever ends it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

PR_SET_PDEATHSIG = 1
UNASSIGNED_PORTS = (12_000, 32_000)  # Linux gives outgoing connections ports from 32768 on
STOP_SECONDS = 15.0  # for a process to end after SIGTERM, before it is killed

_libc = ctypes.CDLL(None)
_chance = random.SystemRandom()  # Hypothesis has each process draw the same of `random`
_given_ports: set[int] = set()


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """For `preexec_fn`: this signal to this process when the thread that started it ends."""
    _libc.prctl(PR_SET_PDEATHSIG, number)


class Process:
    """One running program, in a session of its own."""

    def __init__(self, name: str, arguments: list[str], directory: Path, environ: Mapping[str, str]):
        self.name, self.log = name, directory / f"{name}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(environ),
                cwd=directory,
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(signal.SIGTERM),  # it ends as it should, with what it started
            )

    def check(self) -> None:
        """Raises AssertionError with the end of its log if it does not run any more."""
        code = self.process.poll()
        assert code is None, f"the {self.name} ended with {code}; the end of its log:\n{self.log.read_text(errors='replace')[-2000:]}"

    def stop(self) -> None:
        """End it, and whatever it started in its session."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # usually nobody is left
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def twistd(plugin: str, *options: str) -> list[str]:
    """The command that runs a service in the foreground."""
    return [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile=", plugin, *options]


def free_port() -> int:
    """A port that is free on loopback now, as is the one after it, a second worker's; and that no outgoing connection is given before
    somebody listens there.

    For TCP and UDP, and another each time that this process asks: who had the last one may not listen yet.
    """
    while True:
        port = _chance.randrange(*UNASSIGNED_PORTS, 2)
        if port not in _given_ports and _is_free(port) and _is_free(port + 1):
            _given_ports.add(port)
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        try:
            stream.bind(("127.0.0.1", port))
            datagrams.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def wait_for_port(process: Process, port: int, seconds: float) -> None:
    """Until something listens at `port`; AssertionError if the process ends before, or takes longer."""
    deadline = time.monotonic() + seconds
    while True:
        process.check()
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
            return
        except OSError:
            assert time.monotonic() < deadline, f"the {process.name} does not listen after {seconds:.0f} s; its log: {process.log}"
        time.sleep(0.05)
