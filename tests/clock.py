"""A wall clock for tests that can be set, of single processes, while they run; all other clocks go on (`clock.c`)."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.needs import needs_program

SOURCE = Path(__file__).with_name("clock.c")
LOOK = "import json, time; print(json.dumps([time.time(), time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME)]))"


class WallClock:
    """Processes that are started with `environ` have a wall clock that is `offset` seconds off, whatever it is at the time.

    A test that has one needs a C compiler. Hand `remove` to addCleanup.
    """

    def __init__(self, offset: float = 0.0):
        needs_program("cc")
        self.directory = Path(tempfile.mkdtemp(prefix="taba-clock-"))
        library, words = self.directory / "clock.so", self.directory / "offset"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(SOURCE)], check=True)
        words.write_bytes(bytes(mmap.PAGESIZE))
        with open(words, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        self._word = ctypes.c_int64.from_buffer(self._map)
        self.environ = {"LD_PRELOAD": str(library), "TABA_TEST_CLOCK": str(words)}
        self.offset = offset

    @property
    def offset(self) -> float:
        return self._word.value / 1e9

    @offset.setter
    def offset(self, seconds: float) -> None:
        self._word.value = int(seconds * 1_000_000_000)

    @property
    def now(self) -> float:
        """Unix time as those processes see it."""
        return time.time() + self.offset

    def check(self) -> None:
        """Raises AssertionError unless, in a process of this clock, the wall clock is off by `offset`, and no other clock is."""
        found = subprocess.run([sys.executable, "-c", LOOK], env={**os.environ, **self.environ}, check=True, capture_output=True)
        wall, monotonic, boot = json.loads(found.stdout)
        assert abs(wall - self.now) < 30, (wall, self.now)
        assert abs(monotonic - time.monotonic()) < 30, (monotonic, time.monotonic())
        assert abs(boot - time.clock_gettime(time.CLOCK_BOOTTIME)) < 30, boot

    def remove(self) -> None:
        """Remove what was made; processes that have it mapped go on."""
        del self._word
        self._map.close()
        shutil.rmtree(self.directory, ignore_errors=True)
