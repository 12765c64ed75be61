"""How many instructions parts in C take for one thing more: what a clock could only guess, valgrind counts, the same in each run.

1. Counted is what the part itself does, and how often it calls on Python and the C library. What these take is not: it differs between
   versions of Python, and in the C library between processors.
2. All is in one process, whose start is what takes long. See counted.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from tempfile import TemporaryDirectory
from typing import NamedTuple

from twisted.trial.unittest import SynchronousTestCase

from tests.counted import ROOT, Case
from tests.needs import needs_program
from tests.patience import PATIENCE_SECONDS

# what is known was counted with gcc 12 and Python 3.11; the headers of other versions put other code into the parts
MORE = 1.1 if sys.version_info[:2] == (3, 11) else 1.35
_PROGRAM = "import sys; from {} import CASES; from tests.counted import run; run(CASES, sys.argv[1])"


class Taken(NamedTuple):
    """Of one thing: instructions of the part's own, and calls of what is not."""

    own: float
    calls: float


def read_dump(content: str) -> tuple[int, int]:
    """Instructions within parts of Taba's, and calls from there of others, in a dump of callgrind's whose names are not shortened."""
    own = calls = 0
    is_ours = is_call = False
    called = ""
    for line in content.splitlines():
        if line.startswith("ob="):
            is_ours = line.startswith(f"ob={ROOT}/taba/")
        elif line.startswith("cob="):
            called = line[4:]
        elif line.startswith("calls="):
            calls += int(line[6:].split()[0]) if is_ours and called and not called.startswith(f"{ROOT}/taba/") else 0
            called, is_call = "", True
        elif line[:1].isdigit():
            own += int(line.split()[1]) if is_ours and not is_call else 0
            is_call = False
    return own, calls


class Instructions(SynchronousTestCase):
    def counted(self, module: str, cases: Mapping[str, Case]) -> dict[str, Taken]:
        """What one more takes of each of `cases`, which are CASES of this module."""
        needs_program("valgrind")
        functions = sorted({case.function for case in cases.values()})
        with TemporaryDirectory() as folder, TemporaryDirectory() as compiled:
            settings = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": compiled}
            # what is imported is compiled outside of valgrind, where that takes as long as all the rest
            subprocess.run([sys.executable, "-c", f"import {module}"], env=settings, cwd=ROOT, check=True, timeout=PATIENCE_SECONDS)
            run = subprocess.run(
                [
                    *("valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/dump", "--compress-strings=no", "--compress-pos=no"),
                    *[f"--{when}={function}" for function in functions for when in ("zero-before", "dump-after")],
                    *(sys.executable, "-c", _PROGRAM.format(module), folder),
                ],
                env=settings,
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=PATIENCE_SECONDS,
            )
            self.assertEqual(run.returncode, 0, run.stderr)
            found: dict[str, list[tuple[int, int, int]]] = {}
            for line in run.stdout.splitlines():
                name, count, dump = line.split("\t")
                with open(f"{folder}/dump.{dump}") as file:
                    found.setdefault(name, []).append((int(count), *read_dump(file.read())))
        self.assertEqual([*found], [*cases])
        taken = {}
        for name, ((few, *less), (many, *more)) in found.items():
            taken[name] = Taken(*[(after - before) / (many - few) for before, after in zip(less, more, strict=True)])
        return taken

    def check(self, taken: Mapping[str, Taken], known: Mapping[str, tuple[float, float]]) -> None:
        """That none takes more than MORE of what is known of it; nor less than half, which would be a count of something else."""
        self.assertEqual([*taken], [*known])
        wrong = {
            name: (*its, known[name])
            for name, its in taken.items()
            if not all(0.5 * before <= now <= MORE * before for now, before in zip(its, known[name], strict=True))
        }
        self.assertEqual(wrong, {})
