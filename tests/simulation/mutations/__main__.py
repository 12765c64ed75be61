"""PYTHONHASHSEED=0 python -m tests.simulation.mutations [NAME …] [--seed N] [--seeds K]: looks for the first seed that finds each."""

from __future__ import annotations

import argparse
import os
import sys
import time

from simulation.command import prepare
from tests.simulation.mutations import ALL, FOCUS, find


def short(error: str, most: int) -> str:
    """Of a sentence its beginning, of a traceback its end."""
    words = " ".join(error.split())
    return words[-most:] if 'File "' in error else words[:most]


def main(arguments: list[str]) -> int:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("names", nargs="*", metavar="NAME")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--seeds", type=int, default=10_000)
    made.add_argument("--pinned", action="store_true", help="from the seed on that found it before")
    options = made.parse_args(arguments)
    prepare()
    missed = 0
    for name in options.names or ALL:
        began = time.process_time()
        found = find(name, FOCUS[name].seed if options.pinned and name in FOCUS else options.seed, options.seeds)
        missed += found is None or found.is_stale
        if found is None:
            how = "NOT FOUND"
        elif found.is_stale:  # its hook is to be mended
            how = f"NOT FOUND, for it fails itself, with seed {found.seed}: {short(found.error, 300)}"
        else:
            how = f"seed {found.seed}: {short(found.error, 110)}"
        print(f"{name}: {how} ({time.process_time() - began:.1f} s)", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    assert os.environ.get("PYTHONHASHSEED") == "0", "worlds follow from their seeds with PYTHONHASHSEED=0"
    sys.exit(main(sys.argv[1:]))
