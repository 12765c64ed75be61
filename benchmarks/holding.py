"""In a process that is measured: how long its reactor's loop was held by one turn of it, in seconds of this thread's processor time.

Not of the clock: what others do on the machine is in that. Eight bytes of a file have the longest turn since somebody wrote 0 there.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path
from typing import Any

BYTES = 8
_SECONDS = struct.Struct("<d")
CODE = "import benchmarks.holding; benchmarks.holding.watch({path!r}); "  # before a program's own, in `python -c`


def watch(path: str) -> None:
    """Note it from now on, of the reactor of this process: it must poll, as the usual one of Linux does."""
    from twisted.internet import reactor

    loop: Any = reactor
    with open(path, "r+b") as file:
        shared = mmap.mmap(file.fileno(), BYTES)
    poll, turn = loop._poller.poll, [time.thread_time()]

    class Poller:
        """What the reactor asks for what is ready: a turn of its loop is from one answer to the next question."""

        def __getattr__(self, name: str) -> Any:
            return getattr(poller, name)

        def poll(self, *arguments: Any) -> Any:
            took = time.thread_time() - turn[0]
            if took > _SECONDS.unpack_from(shared)[0]:
                _SECONDS.pack_into(shared, 0, took)
            try:
                return poll(*arguments)
            finally:
                turn[0] = time.thread_time()

    poller = loop._poller
    loop._poller = Poller()


class Held:
    """Who asks: `path` is the file, `pid` the process."""

    def __init__(self, path: Path, pid: int):
        self._path, self._pid = path, pid

    @staticmethod
    def make(path: Path) -> None:
        path.write_bytes(bytes(BYTES))

    def begin(self) -> int:
        """From now on; returns how many bytes of memory the process has."""
        Path(f"/proc/{self._pid}/clear_refs").write_text("5")  # its peak is what it has now
        fd = os.open(self._path, os.O_WRONLY)
        try:
            os.pwrite(fd, bytes(BYTES), 0)
        finally:
            os.close(fd)
        return self._memory("VmRSS")

    def longest(self) -> float:
        """Milliseconds of the longest turn since `begin`."""
        return 1000 * float(_SECONDS.unpack(self._path.read_bytes())[0])

    def peak(self) -> int:
        """The most bytes of memory since `begin`."""
        return self._memory("VmHWM")

    def _memory(self, name: str) -> int:
        lines = Path(f"/proc/{self._pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))
