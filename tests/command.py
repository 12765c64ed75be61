"""The command `taba`, run in this process: half a second less than one of its own, where the process is not what is tested."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO
from unittest import mock

from taba.cli.main import main
from tests.patience import PATIENCE_SECONDS

# These set signals, run a reactor, record as this process would, or import what lies in the working directory.
OF_THEIR_OWN = ("record", "reshard", "check", "store", "handler", "handlers")


def run_here(arguments: Sequence[str], environ: Mapping[str, str], directory: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """What a process with this environment, directory and standard input would give back."""
    typed, output, error = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(3))
    typed.write(stdin)
    typed.seek(0)
    code = _run(arguments, environ, directory, (typed, output, error))
    said = []
    for stream in (output, error):
        stream.seek(0)
        said.append(stream.read())
    return subprocess.CompletedProcess(["taba", *arguments], code, *said)


def run_on_terminal(arguments: Sequence[str], environ: Mapping[str, str], directory: Path, said: bytes = b"") -> tuple[int, str]:
    """The exit code on a terminal of its own where `said` is typed, and everything that the terminal shows."""
    main_end, terminal = pty.openpty()
    shown: list[bytes] = []

    def look() -> None:
        while True:
            try:
                shown.append(os.read(main_end, 65_536))
            except OSError:  # the other end is closed
                return

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    encoding = environ.get("PYTHONIOENCODING", "utf-8")
    try:
        os.write(main_end, said)
        with contextlib.ExitStack() as streams:
            ends = [streams.enter_context(open(os.dup(terminal), mode, encoding=encoding)) for mode in ("r", "w", "w")]
            os.close(terminal)
            code = _run(arguments, environ, directory, ends)
        looking.join(PATIENCE_SECONDS)
    finally:
        os.close(main_end)
    return code, b"".join(shown).decode()


def _run(arguments: Sequence[str], environ: Mapping[str, str], directory: Path, ends: Sequence[TextIO]) -> int:
    typed, output, error = ends
    streams = mock.patch.multiple(sys, stdin=typed, stdout=output, stderr=error)
    before = Path.cwd()
    code: object = None
    with streams, mock.patch.dict(os.environ, environ, clear=True):
        os.chdir(directory)
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code
        finally:
            os.chdir(before)
    assert isinstance(code, int), code
    return code


SEVERAL = """\
import json, os, sys
from pathlib import Path
from tests.command import run_here
for arguments, stdin in json.load(sys.stdin):
    done = run_here(arguments, dict(os.environ), Path.cwd(), stdin)
    print(json.dumps([done.returncode, done.stdout, done.stderr]))
"""


def run_several(
    calls: Sequence[tuple[Sequence[str], str]], environ: Mapping[str, str], directory: Path
) -> list[subprocess.CompletedProcess[str]]:
    """What the command gives back for each of (arguments, standard input), one after the other in one process beside this one."""
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        env=environ,
        cwd=directory,
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return [subprocess.CompletedProcess(["taba", *called], *answer) for (called, _), answer in zip(calls, answers, strict=True)]


def run_taba(*arguments: str, environ: Mapping[str, str], directory: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run `taba`: here, or, where it would leave something behind in this process, in one of its own."""
    if arguments[:1] and arguments[0] not in OF_THEIR_OWN:
        return run_here(arguments, environ, directory, stdin)
    command = [sys.executable, "-m", "taba.cli.main", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=PATIENCE_SECONDS, env=environ, cwd=directory)
