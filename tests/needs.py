"""What a test needs of the machine beside Python and Linux: where that is not there, it is left out, and says so."""

from __future__ import annotations

import shutil
import socket

from twisted.trial.unittest import SkipTest


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
