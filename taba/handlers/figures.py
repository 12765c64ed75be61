"""Total, least and greatest value of each row, and what is refused before it could spoil them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taba.codes import Floats, Ints
from taba.handlers.base import Projection
from taba.handlers.ragged import by_rows, count_rows, run_starts

# Events without a number, from the future, before all windows, and older than the last of a running total: as _refused, … in Projections
TALLIES = ("refused", "held", "old", "late")


def empty_dump(header: np.dtype[Any], **marks: int) -> bytes:
    """The main part of a State without Events: a header with extremes that any value beats, and the Type's marks."""
    empty = np.zeros(1, dtype=header)
    empty["low"], empty["high"] = np.inf, -np.inf
    for name, mark in marks.items():
        empty[name] = mark
    return empty.tobytes()


def show_tallies(projection: Projection) -> Projection:
    """`projection` with its hidden counts shown, as detail does."""
    return {**projection, **{name: projection["_" + name] for name in TALLIES if "_" + name in projection}}


def sum_tallies(projections: Sequence[Projection]) -> dict[str, int]:
    """The counts of `projections`, those that detail shows and the hidden ones."""
    sums: dict[str, int] = {}
    for name in (*("_" + name for name in TALLIES), *TALLIES):
        found = [projection[name] for projection in projections if name in projection]
        if found:
            sums[name] = sum(found)
    return sums


def finite_events(refused: Ints, rows: Ints, values: Floats, *columns: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """(rows, values, *columns) in the order of rows, without NaN and infinities, which are counted in `refused` of their rows."""
    rows, values, *others = by_rows(rows, values, *columns)
    finite = np.isfinite(values)
    if finite.all():
        return (rows, values, *others)
    refused += count_rows(rows[~finite], len(refused))
    return (rows[finite], values[finite], *(column[finite] for column in others))


def split(values: Floats) -> tuple[Floats, Ints | None]:
    """(values, times) of a column whose items may be pairs; times is None where each is one value."""
    if values.ndim == 1:
        return values, None
    return np.ascontiguousarray(values[:, 0]), values[:, 1].astype(np.int64)


def finite_pairs(refused: Ints, rows: Ints, values: Floats, times: Floats) -> tuple[Ints, Floats, Floats, Ints | None]:
    """(rows, values, times of the Events, how many times each value is meant), as `finite_events`."""
    values, many = split(values)
    if many is None:
        rows, values, times = finite_events(refused, rows, values, times)
        return rows, values, times, None
    rows, values, times, many = finite_events(refused, rows, values, times, many)
    return rows, values, times, many


def amounts_of(values: Floats, many: Ints | None) -> Floats:
    """What each Event adds to a total: its value, so many times."""
    if many is None:
        return values
    with np.errstate(over="ignore"):  # beyond all floats it is infinite, and shown as no value
        amounts: Floats = values * many
    return amounts


def add_figures(figures: Any, rows: Ints, values: Floats, many: Ints | None = None) -> None:
    """Add sorted `rows`' finite `values`, each `many` times, to the columns `total`, `low` and `high` of `figures`."""
    starts = run_starts(rows)
    touched = rows[starts]
    total, low, high = figures["total"], figures["low"], figures["high"]
    with np.errstate(over="ignore", invalid="ignore"):  # a sum beyond all floats is infinite, and shown as no value
        total[touched] += np.add.reduceat(amounts_of(values, many), starts)
    low[touched] = np.minimum(low[touched], np.minimum.reduceat(values, starts))
    high[touched] = np.maximum(high[touched], np.maximum.reduceat(values, starts))


def add_heads(figures: Any, rows: Ints, others: Any, counts: Sequence[str] = ()) -> None:
    """Add the columns `total`, `low`, `high` and `counts` of `others` to those of `rows`, of which some may be the same."""
    with np.errstate(over="ignore", invalid="ignore"):  # a sum beyond all floats is infinite, and shown as no value
        for name in ("total", *counts):
            np.add.at(figures[name], rows, others[name])
    np.minimum.at(figures["low"], rows, others["low"])
    np.maximum.at(figures["high"], rows, others["high"])
