"""`python -m simulation`: with hashes that are the same each time, for the order of sets of texts must follow from the seed, too."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # before anything else is imported: all of it is imported again
        os.execve(sys.executable, [sys.executable, "-m", "simulation", *sys.argv[1:]], {**os.environ, "PYTHONHASHSEED": "0"})
    from simulation.command import main

    sys.exit(main(sys.argv[1:]))
