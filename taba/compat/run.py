"""`taba-run --compat prometheus COMMAND…`: a program whose prometheus_client is recorded, without a change to it.

The command, and each Python process that it starts, finds `startup/sitecustomize.py` first on its PYTHONPATH; this process becomes the
command.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

STARTUP = Path(__file__).parent / "startup"
COMPAT = ("prometheus",)


def environment(compat: str, before: dict[str, str]) -> dict[str, str]:
    """The environment in which Python processes have that recorded."""
    given = [path for path in before.get("PYTHONPATH", "").split(os.pathsep) if path]
    wanted = [str(STARTUP), *(path for path in given if path != str(STARTUP))]
    return {**before, "PYTHONPATH": os.pathsep.join(wanted), "TABA_COMPAT": compat}


def main(arguments: list[str] | None = None) -> None:
    """Become the command. Exits with one line where that cannot be."""
    parser = argparse.ArgumentParser(prog="taba-run", description="Run a program whose metrics are recorded by Taba as well.")
    parser.add_argument("--compat", required=True, choices=COMPAT, help="whose metrics: prometheus, those of prometheus_client")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND …", help="the program and its arguments")
    asked = parser.parse_args(arguments)
    command = asked.command[1:] if asked.command[:1] == ["--"] else asked.command
    if not command:
        parser.exit(2, "taba-run: takes a command, for example taba-run --compat prometheus gunicorn app:app\n")
    sys.stdout.flush()
    try:
        os.execvpe(command[0], command, environment(asked.compat, dict(os.environ)))
    except OSError as error:
        parser.exit(127, f"taba-run: {command[0]!r}: {error.strerror}\n")


if __name__ == "__main__":
    main()
