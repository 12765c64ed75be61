"""`taba handler try`: folds lines from standard input with a Handler, as a Server does but without one, and says what that costs."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from taba.bounds import MAX_EXACT_INT
from taba.cli.lines import read_value
from taba.cli.sharing import json_text
from taba.installing import install_hint

LOT = 1000  # lines folded at a time, with the State dumped and loaded between two lots, as from cycle to cycle
PROJECTING = 20  # times, of which the quickest is shown

T = TypeVar("T")


class Event(NamedTuple):
    """What one line says; `time` None stands for now."""

    value: Any
    time: float | None


class Tried(NamedTuple):
    """What came of it. Times are the Handler's own, in seconds."""

    events: int
    state_bytes: int
    largest_bytes: int
    fold_seconds: float
    load_dump_seconds: float
    project_seconds: float
    projection: dict[str, Any]
    aggregate: dict[str, Any]
    text: str


def read_events(lines: Iterable[str]) -> Iterator[Event]:
    """The events of lines `value [time]`. Raises ValueError that names the line."""
    for number, line in enumerate(lines, start=1):
        try:
            event = read_value(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        if event is not None:
            yield Event(*event)


def try_handler(handler: Any, events: Iterator[Event], clock: Callable[[], float] = time.perf_counter) -> Tried:
    """Fold `events` into one State of `handler`; raises what it raises."""
    from taba.handlers.lookup import shown

    state = handler.new_state()
    dump = b""
    count = largest = 0
    folding = moving = 0.0
    while lot := list(islice(events, LOT)):
        now = time.time()
        folded = _events(lot, now)
        begun = clock()
        if count:
            state = handler.load(dump)
        loaded = clock()
        state = handler.fold(state, folded, now)
        done = clock()
        dump = handler.dump(state)
        moving += clock() - done + loaded - begun
        folding += done - loaded
        count += len(lot)
        if not isinstance(dump, bytes):
            raise TypeError(f"dump gave {type(dump).__name__}, not bytes")
        largest = max(largest, len(dump))
    quickest = float("inf")
    for _ in range(PROJECTING):
        begun = clock()
        projection = handler.project(state, time.time())
        quickest = min(quickest, clock() - begun)
    aggregate = handler.aggregate([projection])
    json.dumps([projection, aggregate])  # raises for what is no JSON
    text = str(handler.render(aggregate))
    return Tried(count, len(dump), largest, folding, moving, quickest, shown(projection), shown(aggregate), text)


def _events(lot: list[Event], now: float) -> Any:
    from taba.handlers.lookup import Events

    times = [now if event.time is None else event.time for event in lot]
    # as they come from a ring: whole numbers travel as floats
    values = [float(value) if type(value) is int and abs(value) <= MAX_EXACT_INT else value for value, _ in lot]
    return Events(times, values)


def found_at(path: str) -> Any:
    """The Handler of `MODULE:CLASS`, from the path or the working directory. Raises ClickException that says what is wrong with it."""
    from taba.handlers.lookup import check_handler

    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    module, colon, name = path.partition(":")
    if not (colon and module and name):
        raise click.UsageError(f"{path!r}: takes MODULE:CLASS, such as acme.handlers:Longest")
    try:
        from importlib import import_module

        candidate = getattr(import_module(module), name)
        handler = candidate() if isinstance(candidate, type) else candidate
        check_handler(handler)
    except Exception as error:
        raise click.ClickException(f"{path}: {blame(error)}") from None
    return handler


def blame(error: BaseException) -> str:
    """An exception in one line, with the place in the author's code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if f"{os.sep}taba{os.sep}" not in frame.filename and "importlib" not in frame.filename]
    place = f"{Path(own[-1].filename).name}:{own[-1].lineno}: " if own else ""
    return f"{place}{type(error).__name__}: {' '.join(str(error).split())}"


@click.group("handler", epilog="\b\nExamples:\n  seq 1 100000 | taba handler try taba.handlers.counter_group:CounterGroup")
def handler() -> None:
    """For authors of Handlers."""


@handler.command(
    "try",
    epilog="""\b
Examples:
  seq 1 100000 | taba handler try taba.handlers.counter_group:CounterGroup
  awk '{print $7}' access.log | taba handler try acme.handlers:Longest
  printf '1.5 1763850000\\n2.5 1763850060\\n' | taba handler try acme.handlers:Mine --json""",
)
@click.argument("path", metavar="MODULE:CLASS")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
def try_(path: str, as_json: bool) -> None:
    """Fold lines from standard input with a Handler, without any Server; show its State's size, its Projection and its speed.

    A line is: value [time]. A value is a number; JSON where it begins with a double quote, { or [; else a word.
    """
    try:
        import taba.handlers.lookup  # noqa: F401
    except ModuleNotFoundError as error:
        raise click.ClickException(f"Handlers need {error.name}; install it with: {install_hint('server')}") from None
    made = found_at(path)
    events = read_events(sys.stdin)
    try:
        tried = try_handler(made, events)
    except Exception as error:
        raise click.ClickException(str(error) if str(error).startswith("line ") else f"{path}: {blame(error)}") from None
    nanoseconds = tried.fold_seconds / tried.events * 1e9 if tried.events else None
    if as_json:
        content = {
            "type": made.type,
            "version": made.version,
            "events": tried.events,
            "state_bytes": tried.state_bytes,
            "largest_state_bytes": tried.largest_bytes,
            "fold_ns_per_event": nanoseconds,
            "load_and_dump_us_per_fold": tried.load_dump_seconds / max(1, -(-tried.events // LOT)) * 1e6,
            "project_us": tried.project_seconds * 1e6,
            "projection": tried.projection,
            "aggregate": tried.aggregate,
        }
        print(json_text(content, default=str))
        return
    speed = "" if nanoseconds is None else f", {nanoseconds:,.0f} ns each ({1e9 / max(nanoseconds, 1e-3):,.0f} events/s)"
    print(f"{made.type} version {made.version}: {tried.events:,} events folded{speed}")
    print(f"State: {tried.state_bytes:,} bytes (largest {tried.largest_bytes:,}); ", end="")
    print(f"load and dump {tried.load_dump_seconds / max(1, -(-tried.events // LOT)) * 1e6:,.0f} µs for each {LOT:,} events")
    print(f"Projection in {tried.project_seconds * 1e6:,.0f} µs: {tried.text}")
