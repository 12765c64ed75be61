"""The demo's child processes: started each with a log of its own, stopped by their ids, never outliving the demo."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

PR_SET_PDEATHSIG = 1
UNASSIGNED_PORTS = (12_000, 32_000)  # Linux gives outgoing connections ports from 32768 on
STOP_SECONDS = 15.0  # for a process to end after SIGTERM, before it is killed
LOG_LINES = 15  # of a failed process's log that are shown

_prctl = ctypes.CDLL(None, use_errno=True).prctl


class ChildFailed(Exception):
    """A child ended although it should run; the message has the end of its log."""


class Child:
    """One child process, in a session of its own so that the terminal's Ctrl-C reaches the demo alone."""

    def __init__(self, name: str, arguments: list[str], directory: Path, environ: Mapping[str, str]):
        self.name, self.log = name, directory / f"{name}.log"
        parent = os.getpid()

        def die_with_parent() -> None:
            _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # it died before the line above
                os._exit(1)

        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(environ),
                cwd=directory,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def check(self) -> None:
        """Raises ChildFailed if it does not run any more."""
        code = self.process.poll()
        if code is not None:
            lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            raise ChildFailed(f"the {self.name} ended with {code}; the end of its log:\n  " + "\n  ".join(lines or ["(empty)"]))

    def stop(self) -> None:
        """End it, and whatever it started in its session."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # usually nobody is left
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def python(*arguments: str) -> list[str]:
    """The command that runs Python as the demo runs."""
    return [sys.executable, *arguments]


def twistd(directory: Path, plugin: str, *options: str) -> list[str]:
    """The command that runs a Twisted plugin in the foreground, its state in `directory`."""
    return python("-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile=", plugin, *options)


def free_port() -> int:
    """A TCP port that is free on loopback now, and that no outgoing connection is given before somebody listens there."""
    while True:
        port = random.randrange(*UNASSIGNED_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def wait_for_port(child: Child, port: int, seconds: float, pause: Callable[[float], None] = time.sleep) -> None:
    """Until something listens at `port`. Raises ChildFailed if the child ends before, or takes longer, and what `pause` raises."""
    deadline = time.monotonic() + seconds
    while True:
        child.check()
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise ChildFailed(f"the {child.name} does not listen after {seconds:.0f} s; its log: {child.log}") from None
        pause(0.05)


def remove_free_slot(path: Path) -> None:
    """Remove a slot's file unless some other process holds that number."""
    try:
        with path.open("rb") as slot:
            fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
    except (FileNotFoundError, PermissionError, BlockingIOError):
        return
