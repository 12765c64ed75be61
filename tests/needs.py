"""What a test needs of the machine beside Python and Linux: where that is not there, it is left out, and says so."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess

from twisted.trial.unittest import SkipTest

from tests.patience import PATIENCE_SECONDS


def needs_program(name: str) -> None:
    """Skip unless there is such a program."""
    if shutil.which(name) is None:
        raise SkipTest(f"needs the program {name}")


def needs_localhost() -> None:
    """Skip unless the machine knows itself by name: a bare one has no /etc/hosts."""
    try:
        socket.getaddrinfo("localhost", 1, socket.AF_INET)
    except OSError as error:
        raise SkipTest(f"needs a machine that knows localhost by name: {error}") from None


def needs_mounts() -> list[str]:
    """The words before a command that may mount over this machine's directories for itself alone; skip where there are none for us."""
    return _alone("m", "mounts")


def needs_network() -> list[str]:
    """The words before a command that has a network for itself alone; skip where there are none for us."""
    return _alone("n", "a network")


def _alone(namespace: str, what: str) -> list[str]:
    needs_program("unshare")
    alone = ["unshare", f"-{namespace}"] if os.getuid() == 0 else ["unshare", f"-Ur{namespace}"]
    tried = subprocess.run([*alone, "true"], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    if tried.returncode:
        raise SkipTest(f"needs {what} of its own: {tried.stderr.strip()}")
    return alone
