"""What a block or a function does to a Tab while it runs: Timer records its seconds, Track counts it as long as it is under way."""

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


class Tracked(Protocol):
    """A Tab, as far as a Track needs it."""

    def inc(self, n: Any = 1.0, time: float | None = None) -> None: ...

    def dec(self, n: Any = 1.0, time: float | None = None) -> None: ...


class _Around:
    """A context manager that is also a decorator: of functions, and of `async def` functions until their coroutines end."""

    __slots__ = ()

    def __enter__(self) -> None:
        raise NotImplementedError

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        raise NotImplementedError

    def _again(self) -> _Around:
        """One for another call."""
        raise NotImplementedError

    def __call__(self, function: Function) -> Function:
        import inspect  # only decorators pay for it

        again = self._again
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def around_async(*args: Any, **kwargs: Any) -> Any:
                with again():
                    return await function(*args, **kwargs)

            return around_async  # type: ignore[return-value]

        @functools.wraps(function)
        def around(*args: Any, **kwargs: Any) -> Any:
            with again():
                return function(*args, **kwargs)

        return around  # type: ignore[return-value]


class Timer(_Around):
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

    def _again(self) -> Timer:
        return Timer(self._tab)


class Track(_Around):
    """`with tab.track():` is one more while the block runs, and one fewer however it ends; `@tab.track()` while the function does."""

    __slots__ = ("_tab",)

    def __init__(self, tab: Tracked):
        self._tab = tab

    def __enter__(self) -> None:
        self._tab.inc()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._tab.dec()

    def _again(self) -> Track:
        return self


def time(self: Recorder) -> Timer:
    """A Timer: `with tab.time(): …`, or a decorator."""
    return Timer(self)


def track(self: Tracked) -> Track:
    """A Track: `with tab.track(): …`, or a decorator."""
    return Track(self)
