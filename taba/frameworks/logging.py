"""What is logged, by level: `log_records`.

install()                          # of all loggers; install(logging.getLogger("shop")) of one
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from taba import client
from taba.frameworks.serving import Names

MAX_LEVELS = 20  # that have a name; Python has five


class Handler(logging.Handler):
    """A logging handler that counts, and writes nothing."""

    def __init__(self, name: str = "log_records", level: int = logging.NOTSET):
        super().__init__(level)
        self._records = client.counter(name, description="what was logged, by level")
        self._levels = Names(MAX_LEVELS)
        self._counts: dict[int, Callable[[], None]] = {}

    def handle(self, record: logging.LogRecord) -> Any:
        kept = self.filter(record)
        if kept:  # and no lock, as nothing here needs one
            self.emit(kept if isinstance(kept, logging.LogRecord) else record)
        return kept

    def emit(self, record: logging.LogRecord) -> None:
        count = self._counts.get(record.levelno)
        if count is None:
            level = self._levels.of(record.levelname)
            count = self._records.labels(level=level).inc
            if len(self._counts) < MAX_LEVELS:
                self._counts[record.levelno] = count
        count()


def install(logger: logging.Logger | None = None, name: str = "log_records") -> Handler:
    """Count what this logger, and those below it that propagate, let through; None: the root."""
    handler = Handler(name)
    (logger or logging.getLogger()).addHandler(handler)
    return handler
