"""Folding at the edge: of a drain's columns those go as fresh States that are much smaller so. Pure; what Events mean, Handlers know.

1. Folded are Types of Taba's own that have an edge, in versions that all Servers merge: `allow` says which these are by now.
2. A column is folded whole or not at all: one with MIN_EVENTS at least, whose times lie from 0 to MAX_EDGE_TIME and span at most
   EDGE_SECONDS, whose values are floats up to MAX_EDGE_VALUE, and whose State takes a MAX_SHARE-th of its events' bytes at the most.
3. Events are folded column by column, as they were put in order.
4. A Handler that raises is asked no more until the next start: its Type's events go as they are, and a problem says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taba.agent.native import NATIVE
from taba.batch import MAX_DUMP_BYTES
from taba.codes import Floats, Ints
from taba.handlers.lookup import EDGE_SECONDS, MAX_EDGE_TIME
from taba.versions import Edges

MIN_EVENTS = 32  # of a column that is folded: with fewer a State is hardly smaller, and what it costs is by column
MAX_EDGE_VALUE = 1e290  # either way: what any drain sums up of such is finite, which Servers ask of a State
MAX_SHARE = 4  # of the bytes of its events, 16 each, a State takes this part at the most


class EdgeLot(NamedTuple):
    """Events of a drain, column by column: of each its time and value; and of each column where it starts (and behind the last the end),
    how many it has, and what `kind` gives for its Type, or 0 where it is not to be folded."""

    starts: Ints
    times: Floats
    values: Floats
    counts: Ints
    kinds: NDArray[np.int8]


class States(NamedTuple):
    """Columns of one Type that were folded: which of the lot they are, and of each its State, the times of its first and last event, and
    what its values sum up to, and the least of them."""

    edge: int
    columns: Ints
    dumps: list[bytes]
    least: Floats
    greatest: Floats
    totals: Floats
    lows: Floats | None  # where none is negative


class _Figures(NamedTuple):
    """Of each column of a lot that may be folded, as in States."""

    least: Floats
    greatest: Floats
    totals: Floats
    lows: Floats


class Edge:
    """The Handlers that fold here, by Type: columns of `fewest` events at least. `native`: what measures them, if anything."""

    def __init__(self, handlers: Mapping[str, Any], fewest: int = MIN_EVENTS, native: Any = NATIVE):
        self._fewest, self._native = fewest, native
        self._handlers = [handlers[type] for type in sorted(handlers)]
        self._kinds = {handler.type: kind for kind, handler in enumerate(self._handlers, start=1)}
        self._allowed = np.zeros(len(self._handlers) + 1, np.bool_)
        self.edges: Edges = tuple((handler.type, handler.edge) for handler in self._handlers)
        self.allowed: Edges = ()
        self.failed: dict[str, str] = {}
        """What Handlers raised, by Type; these fold no more."""
        self.events = self.states = 0
        """How many were folded, and to how many States, since the start, of what was published."""
        self._events = self._states = 0  # of the drain that is under way

    def kind(self, type: str) -> int:
        """The number of a Type; 0 for one that is never folded here."""
        return self._kinds.get(type, 0)

    def allow(self, edges: Iterable[tuple[str, int]]) -> None:
        """All Servers merge these; what is folded from now on is of them."""
        merged = set(edges)
        self.allowed = tuple(edge for edge in self.edges if edge in merged)
        self._allow()

    def _allow(self) -> None:
        for type, _ in self.edges:
            self._allowed[self._kinds[type]] = type in dict(self.allowed) and type not in self.failed

    @property
    def is_folding(self) -> bool:
        """Whether any Type is folded."""
        return bool(self._allowed.any())

    def begin(self) -> None:
        """A drain begins; what the one before folded counts no more, unless it was published."""
        self._events = self._states = 0

    def published(self) -> None:
        """What this drain folded is published."""
        self.events += self._events
        self.states += self._states
        self.begin()

    def fold(self, lot: EdgeLot, most: int = MAX_DUMP_BYTES) -> list[States]:
        """What of the lot goes as States, of at most `most` bytes each: no two of one Type."""
        chosen = self._allowed[lot.kinds] & (lot.counts >= self._fewest)
        if not chosen.any():
            return []
        figures = _figures(lot, chosen) if self._native is None else _measured(lot, chosen, self._native)
        found = []
        for kind in np.unique(lot.kinds[chosen]).tolist():
            handler = self._handlers[kind - 1]
            try:
                states = self._fold(handler, lot, np.flatnonzero(chosen & (lot.kinds == kind)), figures, most)
            except Exception as error:  # its events go as they are, and a person is told
                self.failed[handler.type] = f"{type(error).__name__}: {error}"[:200]
                self._allow()
                continue
            if len(states.columns):
                found.append(states)
                self._states += len(states.columns)
                self._events += int(lot.counts[states.columns].sum())
        return found

    def _fold(self, handler: Any, lot: EdgeLot, columns: Ints, figures: _Figures, most: int) -> States:
        starts, times, values = lot.starts, lot.times, lot.values
        counts = lot.counts
        if len(columns) < len(lot.counts):
            mine = np.repeat(_marked(columns, len(lot.counts)), lot.counts)
            times, values, counts = times[mine], values[mine], counts[columns]
            starts = np.concatenate(([0], np.cumsum(counts)))
        dumps: list[bytes] = handler.edge_columns(starts, times, values)
        lengths = np.fromiter(map(len, dumps), np.int64, len(columns))
        fits = (lengths * MAX_SHARE <= 16 * counts) & (lengths <= most)
        if not fits.all():
            dumps = [dump for dump, fit in zip(dumps, fits.tolist(), strict=True) if fit]
            columns = columns[fits]
        least, greatest, totals, lows = (column[columns] for column in figures)
        return States(handler.edge, columns, dumps, least, greatest, totals, lows if lows.min(initial=0.0) < 0 else None)


def _marked(columns: Ints, total: int) -> NDArray[np.bool_]:
    """Which of so many these are."""
    marked = np.zeros(total, np.bool_)
    marked[columns] = True
    return marked


def _measured(lot: EdgeLot, chosen: NDArray[np.bool_], native: Any) -> _Figures:
    """As `_figures`, of the chosen columns, by the C part."""
    figures = _Figures(*np.empty((4, len(chosen))))
    native.measure(lot.starts, lot.times, lot.values, MAX_EDGE_TIME, EDGE_SECONDS, MAX_EDGE_VALUE, chosen, *figures)
    return figures


def _figures(lot: EdgeLot, chosen: NDArray[np.bool_]) -> _Figures:
    """What the columns have in them; those with a time or a value that may not be folded, or times too far apart, are chosen no more."""
    starts, times, values = lot.starts[:-1], lot.times, lot.values
    least, greatest = (
        np.minimum.reduceat(times, starts),
        np.maximum.reduceat(times, starts),
    )  # NaN where one is: no comparison with it is true
    lows, highs = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    with np.errstate(over="ignore", invalid="ignore"):
        chosen &= (least >= 0) & (greatest <= MAX_EDGE_TIME) & (greatest - least <= EDGE_SECONDS)
        chosen &= (lows >= -MAX_EDGE_VALUE) & (highs <= MAX_EDGE_VALUE)
        totals = np.bincount(np.repeat(np.arange(len(starts)), lot.counts), weights=values, minlength=len(starts))
    return _Figures(least, greatest, totals.astype(np.float64, copy=False), lows)
