"""Elapsed seconds of a block or a function, as values of a Tab."""

from __future__ import annotations

import functools
from collections.abc import Callable
from time import perf_counter
from types import TracebackType
from typing import Any, Protocol, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


class Recorder(Protocol):
    """A Tab, as far as a Timer needs it."""

    def record(self, value: Any, time: float | None = None) -> None: ...


class Timer:
    """`with tab.time():` records the seconds that the block took, also when it raises; `@tab.time()` those of each call.

    Of an `async def` function the time runs until its coroutine ends. One Timer may be entered again, also within itself.
    """

    __slots__ = ("_begun", "_tab")

    def __init__(self, tab: Recorder):
        self._tab = tab
        self._begun: list[float] = []

    def __enter__(self) -> None:
        self._begun.append(perf_counter())

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._tab.record(perf_counter() - self._begun.pop())

    def __call__(self, function: Function) -> Function:
        import inspect  # only decorators pay for it

        record = self._tab.record
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def timed_async(*args: Any, **kwargs: Any) -> Any:
                begun = perf_counter()
                try:
                    return await function(*args, **kwargs)
                finally:
                    record(perf_counter() - begun)

            return timed_async  # type: ignore[return-value]

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                record(perf_counter() - begun)

        return timed  # type: ignore[return-value]


def time(self: Recorder) -> Timer:
    """A Timer: `with tab.time(): …`, or a decorator."""
    return Timer(self)
