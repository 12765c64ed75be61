"""What a block or a callable does to a Tab while it runs: Timer records its seconds, Track counts it as long as it is under way, Exceptions
counts what it raises.

Each is a context manager and a decorator: of functions, methods, `async def` functions, generators, asynchronous generators and any other
callable, also below @staticmethod and @classmethod. What is decorated keeps its name, its signature and its kind. A generator runs from its
first step to its end or its close(), what its consumer does in between included; an `async def` function until its coroutine ends.
"""

from __future__ import annotations

import functools
from _thread import get_ident
from collections.abc import Callable
from time import perf_counter
from types import TracebackType
from typing import Any, Protocol, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
Kinds = type[BaseException] | tuple[type[BaseException], ...]


class Recorder(Protocol):
    """A Tab, as far as a Timer needs it."""

    def record(self, value: Any, time: float | None = None) -> None: ...


class Counting(Protocol):
    """A Tab, as far as Exceptions need it."""

    def inc(self, n: Any = 1.0, time: float | None = None) -> None: ...


class Tracked(Counting, Protocol):
    """A Tab, as far as a Track needs it."""

    @property
    def born(self) -> float: ...

    def dec(self, n: Any = 1.0, time: float | None = None) -> None: ...


class _Around:
    """A context manager that is also a decorator."""

    __slots__ = ()

    def __enter__(self) -> None:
        raise NotImplementedError

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        raise NotImplementedError

    def _again(self) -> _Around:
        """One for another call."""
        raise NotImplementedError

    def __call__(self, function: Function) -> Function:
        if isinstance(function, (classmethod, staticmethod)):
            return type(function)(self(function.__func__))
        if not callable(function):
            raise TypeError(f"{type(function).__name__} {function!r:.100}: decorates a function, or what can be called as one")
        import inspect  # only decorators pay for it

        again = self._again
        # of an object that is called, its class has the function
        body = function if inspect.isroutine(function) or isinstance(function, (type, functools.partial)) else type(function).__call__

        def is_any(kind: Callable[[Any], bool]) -> bool:
            return kind(function) or kind(body)

        if is_any(inspect.iscoroutinefunction):

            @functools.wraps(function)
            async def around_async(*args: Any, **kwargs: Any) -> Any:
                with again():
                    return await function(*args, **kwargs)

            return around_async  # type: ignore[return-value]

        if is_any(inspect.isgeneratorfunction):

            @functools.wraps(function)
            def around_generator(*args: Any, **kwargs: Any) -> Any:
                with again():
                    return (yield from function(*args, **kwargs))

            return around_generator  # type: ignore[return-value]

        if is_any(inspect.isasyncgenfunction):

            @functools.wraps(function)
            async def around_async_generator(*args: Any, **kwargs: Any) -> Any:
                with again():
                    steps = function(*args, **kwargs)
                    try:
                        step = await steps.__anext__()
                        while True:
                            try:
                                sent = yield step
                            except GeneratorExit:
                                raise  # the last line closes it
                            except BaseException as error:
                                step = await steps.athrow(error)
                            else:
                                step = await steps.asend(sent)
                    except StopAsyncIteration:
                        return
                    finally:
                        await steps.aclose()

            return around_async_generator  # type: ignore[return-value]

        @functools.wraps(function)
        def around(*args: Any, **kwargs: Any) -> Any:
            with again():
                return function(*args, **kwargs)

        return around  # type: ignore[return-value]


class Timer(_Around):
    """`with tab.time():` records the seconds that the block took, also when it raises; `@tab.time()` those of each call.

    One Timer may be entered again, also within itself, and by several threads at once. Tasks of one thread that take turns each need one of
    their own: `tab.time()` makes it.
    """

    __slots__ = ("_begun", "_tab")

    def __init__(self, tab: Recorder):
        self._tab = tab
        self._begun: list[tuple[int, float]] = []  # by whom, and when

    def __enter__(self) -> None:
        self._begun.append((get_ident(), perf_counter()))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        ended = perf_counter()
        begun = self._begun
        if len(begun) == 1:
            self._tab.record(ended - begun.pop(0)[1])  # not the last: another thread may just have begun
            return
        me = get_ident()
        # of this thread the last; one that another thread began (a generator that moved) if there is none
        mine = [entry for entry in begun if entry[0] == me] or begun
        entry = mine[-1]
        begun.remove(entry)
        self._tab.record(ended - entry[1])

    def _again(self) -> Timer:
        return Timer(self._tab)


class Track(_Around):
    """`with tab.track():` is one more while the block runs, and one fewer however it ends; `@tab.track()` while the function does.

    Of a block that a forked child has left, too, the one more is its parent's, and so is the one fewer.
    """

    __slots__ = ("_births", "_tab")

    def __init__(self, tab: Tracked):
        self._tab = tab
        self._births: list[float] = []  # of the processes that are inside, which are all the same but in a forked child

    def __enter__(self) -> None:
        self._births.append(self._tab.born)
        self._tab.inc()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._births.pop() == self._tab.born:
            self._tab.dec()

    def _again(self) -> Track:
        return self


class Exceptions(_Around):
    """`with tab.count_exceptions():` counts an exception that leaves the block, and lets it pass; `@tab.count_exceptions()` of each call.

    `kinds` is a class of exceptions or a tuple of such. Exception leaves out what is none: KeyboardInterrupt, a task's cancellation, the
    close() of a generator. Raises TypeError for what is no class of exceptions.
    """

    __slots__ = ("_kinds", "_tab")

    def __init__(self, tab: Counting, kinds: Kinds = Exception):
        for kind in kinds if isinstance(kinds, tuple) else (kinds,):
            if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                raise TypeError(f"count_exceptions: {kind!r:.100}: takes a class of exceptions, or a tuple of them")
        self._tab, self._kinds = tab, kinds

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None and issubclass(kind, self._kinds):
            self._tab.inc()

    def _again(self) -> Exceptions:
        return self


def time(self: Recorder) -> Timer:
    """A Timer: `with tab.time(): …`, or a decorator."""
    return Timer(self)


def track(self: Tracked) -> Track:
    """A Track: `with tab.track(): …`, or a decorator."""
    return Track(self)


def count_exceptions(self: Counting, kinds: Kinds = Exception) -> Exceptions:
    """Exceptions: `with tab.count_exceptions(): …`, or a decorator."""
    return Exceptions(self, kinds)
