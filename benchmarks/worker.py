"""A Python process that does what it is told, line by line, so that rounds of different processes can be interleaved.

A worker's module calls `serve` with its commands. It ends when its standard input does: with the benchmark, whatever ends that.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ANSWER_SECONDS = 120.0  # the longest command; a worker that takes longer hangs
_numbers = count()


class WorkerFailed(Exception):
    """A worker ended, or did not answer in time; the message has the end of its standard error."""


class Worker:
    """Runs `module` with `arguments`. `tell` and `hear` are the halves of `ask`, for several workers at once."""

    def __init__(self, module: str, *arguments: str, environ: Mapping[str, str], directory: Path, under: tuple[str, ...] = ()):
        self.name = f"{module} {' '.join(arguments)}"
        self._log = (directory / f"{module}-{len(list(directory.iterdir()))}.log").open("w+b")
        self.process = subprocess.Popen(
            [*under, sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            # an id of its own, so that it takes no numbered slot, whose file would outlive a worker that is killed
            env={**environ, "PYTHONPATH": str(ROOT), "TABA_CLIENT_ID": f"benchmark/{next(_numbers)}"},
            cwd=directory,
            text=True,
        )

    def tell(self, command: str, *arguments: Any) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps([command, *arguments]) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self._fail("ended")

    def hear(self, seconds: float = ANSWER_SECONDS) -> Any:
        """The answer. Raises WorkerFailed."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            self._fail(f"did not answer within {seconds:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            self._fail("ended")
        return json.loads(line)

    def ask(self, command: str, *arguments: Any, seconds: float = ANSWER_SECONDS) -> Any:
        self.tell(command, *arguments)
        return self.hear(seconds)

    def stop(self) -> None:
        """End it, and wait until it is gone."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.close()
            self.process.wait(10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self._log.close()

    def _fail(self, what: str) -> None:
        self.process.kill()
        self.process.wait()
        self._log.seek(0)
        raise WorkerFailed(f"{self.name} {what}: {self._log.read()[-2000:].decode(errors='replace')}")


def serve(commands: Mapping[str, Callable[..., Any]]) -> None:
    """Answer one line of JSON `[command, argument, …]` after the other, until there are no more."""
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        print(json.dumps(commands[command](*arguments)), flush=True)


def wait_until(holds: Callable[[], bool], seconds: float, what: str, pause: float = 0.01) -> None:
    """Until `holds()`. Raises WorkerFailed with `what` when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise WorkerFailed(f"{what}: not within {seconds:.0f} s")
        time.sleep(pause)
