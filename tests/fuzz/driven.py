"""`python -m tests.fuzz.driven NAME SECONDS DIRECTORY`: libFuzzer, by atheris, which ends the process itself. See `./run fuzz`.

Its own process: all of Taba has to be imported anew, with what tells libFuzzer which branches were taken.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MOST_MEMORY_MIB = 1024
MOST_SECONDS = 30  # of one input: a hang
_DONE = re.compile(r"^Done (\d+) runs", re.MULTILINE)
_COUNT = re.compile(r"^#(\d+)\s", re.MULTILINE)


def is_there() -> bool:
    """Whether atheris is installed here: it has no wheel for every Python and machine."""
    return importlib.util.find_spec("atheris") is not None


def drive(name: str, seconds: float, directory: str) -> tuple[int, bytes | None, str]:
    """Have a target take inputs for so long, from those in `directory` on, to which those that reach something new are added.

    Gives how many it took, one that it did not bear, and what was said of it.
    """
    with tempfile.TemporaryDirectory() as found:
        command = [sys.executable, "-m", __name__, name, f"{max(1, round(seconds))}", directory, f"{found}/"]
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        taken = [int(count) for count in _DONE.findall(run.stdout) or _COUNT.findall(run.stdout)]
        bad = sorted(Path(found).iterdir())
        said = "\n".join(line for line in run.stdout.splitlines() if not line.startswith(("#", "INFO")))
        if run.returncode and not bad:
            raise RuntimeError(f"atheris ended by {run.returncode}: {said[-2000:]}")
        return max(taken, default=0), bad[0].read_bytes() if bad else None, said


def main() -> None:
    """In the process of its own. Does not return."""
    name, seconds, directory, found = sys.argv[1:]
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["taba"]):
        target = importlib.import_module("tests.fuzz.targets").TARGETS[name]
    most_bytes = importlib.import_module("tests.fuzz.driver").MOST_BYTES
    begin = [path.read_bytes() for path in sorted(Path(directory).iterdir())] or [b""]

    def mutated(content: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.randrange(2):
            return bytes(atheris.Mutate(content, most))
        return bytes(target.mutate(content, chance.choice(begin), chance)[:most])

    said = [f"-max_total_time={seconds}", f"-max_len={most_bytes}", f"-rss_limit_mb={MOST_MEMORY_MIB}", f"-timeout={MOST_SECONDS}"]
    atheris.Setup([sys.argv[0], *said, f"-artifact_prefix={found}", os.fspath(directory)], target.take, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
