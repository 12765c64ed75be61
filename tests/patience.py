"""Waiting for what must come: as long as the slowest machine needs, and with words for what did not come."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from taba.errors import TabaError

PATIENCE_SECONDS = 300.0  # it only ends a hang: whatever goes right takes far less
PAUSE_SECONDS = 0.05


def until(condition: Callable[[], Any], what: str | Callable[[], Any] = "it did not come about", seconds: float = PATIENCE_SECONDS) -> Any:
    """The first answer of `condition` that is true; where whoever is asked does not answer, it is asked again.

    Raises AssertionError with `what`, or with what that returns, and with the last answer.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            if found := condition():
                return found
        except TabaError as error:
            found = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what if isinstance(what, str) else what()}; the last answer: {found}")
        time.sleep(PAUSE_SECONDS)
