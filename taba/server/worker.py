"""One of several workers: `python -m taba.server.worker PARENT STARTS NUMBER WORKERS STORE`. Started by the parent Server, not by people.

Its options are in its environment.
"""

from __future__ import annotations

import os
import sys
from typing import Any, cast

from twisted.logger import FileLogObserver, LogEvent, formatEventAsClassicLogText, globalLogBeginner

from taba.server.starts import Starts
from taba.server.tether import die_with


def without_time(event: LogEvent) -> str | None:
    """A log event as a line without its time: the parent, who reads it, writes one before each line."""
    text = formatEventAsClassicLogText(event, formatTime=lambda _: "")
    return text and text.lstrip(" ")


def main(arguments: list[str]) -> None:
    """Run one worker until it is told to stop."""
    parent, path, number, workers, shown = arguments
    die_with(int(parent))
    starts = Starts.join(path, int(number))
    globalLogBeginner.beginLoggingTo([cast(Any, FileLogObserver(sys.stdout, without_time))], redirectStandardIO=False)

    from twisted.internet import reactor as installed

    from taba.clocks import make_monotonic
    from taba.errors import ConfigurationError
    from taba.listening import freeze_when_running, on_hangup
    from taba.server.heap import keep_heap
    from taba.server.options import ServerOptions
    from taba.server.served import FOUND, Found
    from taba.server.service import Server

    reactor: Any = installed
    make_monotonic(reactor)
    options = ServerOptions()
    options.parseOptions([])
    try:
        server = Server(options, reactor, None, shown, int(workers), starts, Found.of(os.environ.get(FOUND, "")))
    except ConfigurationError as failure:
        raise SystemExit(f"{options.program}: {failure}") from None
    on_hangup(reactor, server.hang_up)
    keep_heap()
    reactor.callWhenRunning(server.startService)
    freeze_when_running(reactor, server.quiet_seconds, server.ended)
    reactor.addSystemEventTrigger("before", "shutdown", server.stopService)
    reactor.run()


if __name__ == "__main__":
    main(sys.argv[1:])
