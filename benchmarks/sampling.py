"""Samples of where a process of Taba's is, one for each few milliseconds of processor time; for `benchmarks.where`.

A sample is what the innermost frame of Taba's own code is doing, and in which library it waits for an answer. What is in C counts for the
call that went there: Python hands on a signal once that is over.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import NamedTuple

CODE = "from benchmarks.sampling import Samples; Samples({path!r}).listen(); "  # what a process begins with
SIGNAL = signal.SIGUSR2  # begin; or write what was seen, and end
PERIOD = 0.004  # seconds of the process's own time
_TABA = f"{os.sep}taba{os.sep}"
_INSTALLED = f"{os.sep}site-packages{os.sep}"


class Place(NamedTuple):
    """Where a sample was: a module of Taba's ("agent/drain.py"; "" where none was at work), its function, and the library it had called."""

    module: str
    function: str
    library: str


class Samples:
    """How often the process was where, from one signal to the next."""

    def __init__(self, path: str):
        self._path = path
        self._root = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + _TABA
        self._seen: Counter[Place] = Counter()
        self._begun = False

    def listen(self) -> None:
        signal.signal(signal.SIGPROF, lambda number, frame: self._seen.update((self._place(frame),)))
        signal.signal(SIGNAL, lambda number, frame: self._turn())

    def _turn(self) -> None:
        self._begun = not self._begun
        period = PERIOD if self._begun else 0.0
        signal.setitimer(signal.ITIMER_PROF, period, period)
        if not self._begun:
            new = f"{self._path}.new"
            with open(new, "w") as file:
                json.dump([[*place, count] for place, count in self._seen.items()], file)
            os.replace(new, self._path)
            self._seen.clear()

    def _place(self, frame: FrameType | None) -> Place:
        library = ""
        while frame is not None:
            file = frame.f_code.co_filename
            if file.startswith(self._root):
                return Place(file[len(self._root) :], frame.f_code.co_name, library)
            if not library and _INSTALLED in file:
                library = file.partition(_INSTALLED)[2].split(os.sep)[0].removesuffix(".py")
            frame = frame.f_back
        return Place("", "", library)


def read(path: Path) -> Counter[Place]:
    """What a process wrote. Raises FileNotFoundError before it did."""
    return Counter({Place(*place): count for *place, count in json.loads(path.read_text())})
