"""The interpreters that are here, of each version that Taba runs with one: where `./run matrix` looks for them, too."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.patience import PATIENCE_SECONDS

MINORS = range(10, 15)


def pythons() -> dict[str, str]:
    """Version → command of each interpreter that starts; several of one version once."""
    found: dict[str, str] = {}
    for minor in MINORS:
        places = [f"python3.{minor}", *map(str, Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python"))]
        for command in places:
            try:
                done = subprocess.run(
                    [command, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True, timeout=PATIENCE_SECONDS
                )
            except OSError:
                continue
            if done.stdout == f"3 {minor}\n":
                found[f"3.{minor}"] = command
                break
    return found
