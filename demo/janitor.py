"""Cleans up after a demo that was killed: waits for the end of its standard input, which is the demo's end, whatever ends it."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from demo.processes import remove_free_slot

SHM = Path("/dev/shm")
SLOTS = "taba-slot.*"  # the numbers of equal workers; a process that was killed leaves its file, empty
GRACE_SECONDS = 20.0  # for the demo's processes, which get SIGTERM when it dies


def remove(directory: Path, agent: str, slots_before: Iterable[Path]) -> None:
    """Remove what a demo made, its processes being gone: segments, slots and its directory."""
    for segment in [*SHM.glob(f"taba.{agent}.*"), *SHM.glob(f"taba-*{agent}*")]:
        segment.unlink(missing_ok=True)
    for slot in set(SHM.glob(SLOTS)) - set(slots_before):
        remove_free_slot(slot)
    shutil.rmtree(directory, ignore_errors=True)


def main(directory: Path, agent: str) -> None:
    """Wait, and unless the demo says that it has cleaned up itself, do it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    slots_before = set(SHM.glob(SLOTS))
    if sys.stdin.buffer.read():
        return
    deadline = time.monotonic() + GRACE_SECONDS
    while (left := _processes(directory)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in left:
        process.kill()
    psutil.wait_procs(left, GRACE_SECONDS)
    remove(directory, agent, slots_before)


def _processes(directory: Path) -> list[psutil.Process]:
    """The processes that were started with the demo's directory for their temporary files."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR") == str(directory):
                found.append(process)
        except (psutil.Error, OSError):
            continue  # gone meanwhile, or another user's
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
