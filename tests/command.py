"""The command `taba`, run in this process: half a second less than one of its own, where the process is not what is tested."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

from taba.cli.main import main

PATIENCE = 300.0  # seconds; however busy the machine is
# These set signals, run a reactor, record as this process would, or import what lies in the working directory.
OF_THEIR_OWN = ("record", "reshard", "check", "store", "handler", "handlers")


def run_here(arguments: tuple[str, ...], environ: Mapping[str, str], directory: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """What a process with this environment, directory and standard input would give back."""
    typed, output, error = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(3))
    typed.write(stdin)
    typed.seek(0)
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
    said = []
    for stream in (output, error):
        stream.seek(0)
        said.append(stream.read())
    assert isinstance(code, int), code
    return subprocess.CompletedProcess(["taba", *arguments], code, *said)


def run_taba(*arguments: str, environ: Mapping[str, str], directory: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run `taba`: here, or, where it would leave something behind in this process, in one of its own."""
    if arguments[:1] and arguments[0] not in OF_THEIR_OWN:
        return run_here(arguments, environ, directory, stdin)
    command = [sys.executable, "-m", "taba.cli.main", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=PATIENCE, env=environ, cwd=directory)
