"""Work in steps: a generator yields between its pieces, so that others have their turns there, and returns what it comes to."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

_Result = TypeVar("_Result")


def finish(steps: Generator[Any, None, _Result]) -> _Result:
    """What `steps` returns, where nobody else waits for a turn."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: _Result = end.value
            return result
