"""One of several workers: `python -m taba.server.worker PARENT WORKERS [OPTION]…`. Started by the parent Server, not by people."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Any, cast

from twisted.logger import globalLogBeginner, textFileLogObserver

PR_SET_PDEATHSIG = 1  # from linux/prctl.h


def die_with(parent: int) -> None:
    """Have the kernel end this process when `parent`, which must be its parent, ends in whatever way."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call above
        raise SystemExit(f"worker: the parent {parent} is gone")


def main(arguments: list[str]) -> None:
    """Run one worker until it is told to stop."""
    parent, workers, *rest = arguments
    die_with(int(parent))
    globalLogBeginner.beginLoggingTo([cast(Any, textFileLogObserver(sys.stdout))], redirectStandardIO=False)

    from twisted.internet import reactor as installed

    from taba.server.options import ServerOptions
    from taba.server.service import Server

    reactor: Any = installed
    options = ServerOptions()
    options.parseOptions(rest)
    server = Server(options["listen"], options["store"].url, options["buckets"], None, reactor, int(workers))
    reactor.callWhenRunning(server.startService)
    reactor.addSystemEventTrigger("before", "shutdown", server.stopService)
    reactor.run()


if __name__ == "__main__":
    main(sys.argv[1:])
