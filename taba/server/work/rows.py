"""What is folded of one Type in one go, and what becomes of it, row by row: a row is one State with all its Events."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import numpy

from taba.server.keys import Framed
from taba.server.work.pace import Pause
from taba.server.work.runs import Runs, Values

HANDLER_ERROR = "handler_error"
NEWER_STATE = "newer_state"
STATE_TOO_LARGE = "state_too_large"
REASONS = (HANDLER_ERROR, NEWER_STATE, STATE_TOO_LARGE)


class Work(NamedTuple):
    """What is to be folded: the main parts by row, and the Events as (row, times, values), in order.

    The values of an array Handler are float64 bytes, or where there are pairs a list. `names`: by row which State it is, the same
    in each try of a cycle; only for Handlers that work elsewhere. `merges`: dumps by row, of States that were folded at the edge; each
    has its place among a row's Events, behind all others.
    """

    states: Sequence[Framed]
    columns: Sequence[tuple[int, bytes, Values]]
    names: Sequence[bytes] = ()
    merges: Sequence[tuple[int, bytes]] = ()

    @property
    def runs(self) -> Runs:
        """The Events, as arrays."""
        return Runs.of(self.columns)


class Failed(NamedTuple):
    """Why a row was not folded."""

    reason: str
    detail: str


class Folded(NamedTuple):
    """What became of a Work.

    The new main parts of the rows that were folded, the new further parts of those that have them, the failures of rows, and the
    Events that failed by themselves: for a row their places among its Events, by reason.
    """

    states: dict[int, bytes]
    parts: dict[int, list[bytes]]
    failed: dict[int, Failed]
    spoiled: dict[int, list[tuple[Failed, list[int]]]]

    def take(self, other: Folded) -> None:
        """What became of other rows, too."""
        self.states.update(other.states)
        self.parts.update(other.parts)
        self.failed.update(other.failed)
        self.spoiled.update(other.spoiled)


def nothing_folded() -> Folded:
    """A Folded to be filled."""
    return Folded({}, {}, {}, {})


class RowEvents(NamedTuple):
    """Events of one row, in order: float64 times, and float64 values or a list of them; and behind them what was folded at the edge."""

    times: bytes
    values: Values
    dumps: tuple[bytes, ...] = ()

    @property
    def places(self) -> int:
        """How many places there are."""
        return (len(self.times) >> 3) + len(self.dumps)

    def between(self, start: int, end: int) -> RowEvents:
        """What is at these places, without the last."""
        values = self.values[8 * start : 8 * end] if isinstance(self.values, bytes) else self.values[start:end]
        events = len(self.times) >> 3
        return RowEvents(self.times[8 * start : 8 * end], values, self.dumps[max(0, start - events) : max(0, end - events)])

    def work(self, state: Framed) -> Work:
        """What is to be done with it, for the row's State."""
        columns = [(0, self.times, self.values)] if self.times else []
        return Work([state], columns, merges=[(0, dump) for dump in self.dumps])


Parts = dict[int, list[Framed]]


class ForeignWork(NamedTuple):
    """One Type's fold for the child process. `parts`: further parts that it asked for before."""

    type: str
    work: Work
    parts: Parts


FoldingHere = Generator[list[int], Parts, Folded]
Folding = Generator[list[int] | ForeignWork | Pause, Any, Folded]


def picked(run: RowEvents, places: Sequence[int]) -> RowEvents:
    """The Events at these places."""
    times = numpy.frombuffer(run.times, "<f8")[list(places)].tobytes()
    if isinstance(run.values, bytes):
        return RowEvents(times, numpy.frombuffer(run.values, "<f8")[list(places)].tobytes())
    return RowEvents(times, [run.values[place] for place in places])


def run_of(work: Work, row: int) -> RowEvents:
    """All Events of a row, in order."""
    columns = [(times, values) for of, times, values in work.columns if of == row]
    dumps = tuple(dump for of, dump in work.merges if of == row)
    if len(columns) == 1:
        return RowEvents(*columns[0], dumps)
    times = b"".join(times for times, _ in columns)
    if all(isinstance(values, bytes) for _, values in columns):
        return RowEvents(times, b"".join(values for _, values in columns), dumps)  # type: ignore[misc]
    flat: list[Any] = []
    for _, values in columns:
        flat.extend(numpy.frombuffer(values, "<f8").tolist() if isinstance(values, bytes) else values)
    return RowEvents(times, flat, dumps)
