"""Fresh States of Events that lie in no order, as they are folded at the edge: counted in cells of all rows at once, not sorted.

`rows` says of each Event which of `total` States it is of, each of which has one at least; `values` are finite.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taba import parts
from taba.codes import Floats, Ints, codes_of
from taba.handlers.ragged import run_lengths, run_starts, sum_rows
from taba.handlers.sketch import collapse, keys_of

LOT = 8192  # values whose codes are found at a time: what that takes on the way stays in a cache
MAX_COUNT = 2**32 - 1  # of one bin or slot of what an edge made; where strangers say more, no sum of theirs wraps to what it should be
CELLS = 4  # so many times as many as Events there may be: with more, looking for those that are filled costs more than a sort


NATIVE: Any = parts.find("taba.handlers._fresh")


def figures_of(rows: Ints, values: Floats, total: int) -> dict[str, Any]:
    """The columns `total`, `low` and `high`."""
    low, high = np.full(total, np.inf), np.full(total, -np.inf)
    if NATIVE is not None:
        sums = np.zeros(total)
        NATIVE.figures(rows, values, sums, low, high)
        return {"total": sums, "low": low, "high": high}
    np.minimum.at(low, rows, values)
    np.maximum.at(high, rows, values)
    return {"total": sums_of(rows, values, total), "low": low, "high": high}


def sums_of(rows: Ints, values: Floats, total: int) -> Floats:
    """What the values of each row sum up to."""
    with np.errstate(over="ignore", invalid="ignore"):  # beyond all floats it is infinite, and shown as no value
        sums = np.bincount(rows, weights=values, minlength=total)
    return sums.astype(np.float64, copy=False)


def bins_of(rows: Ints, values: Floats, total: int) -> tuple[Ints, Ints]:
    """(keys, counts): a table of how often the code of a value occurs in each row, collapsed."""
    codes = np.empty(len(values), dtype=np.int64)
    for start in range(0, len(values), LOT):
        codes[start : start + LOT] = codes_of(values[start : start + LOT])
    if NATIVE is not None:
        keys, counts = np.empty((2, len(rows)), dtype=np.int64)
        found = NATIVE.bins(rows, codes, keys, counts)
        if found >= 0:  # the rows stand in order
            return collapse(keys[:found], counts[:found])
    least = int(codes.min())
    codes -= least
    there = np.flatnonzero(np.bincount(codes))
    if total * len(there) <= CELLS * len(rows):
        numbers = np.zeros(int(there[-1]) + 1, dtype=np.int64)
        numbers[there] = np.arange(len(there))  # few codes: then there are few cells, and a cache has room for all
        cells = numbers[codes]
        cells += rows * len(there)
        counts = np.bincount(cells)
        filled = np.flatnonzero(counts)
        return collapse(keys_of(filled // len(there), there[filled % len(there)] + least), counts[filled])
    keys = keys_of(rows, codes + least)
    keys.sort()
    firsts = run_starts(keys)
    return collapse(keys[firsts], run_lengths(firsts, len(keys)))


def slots_of(rows: Ints, times: Floats, width: int, total: int) -> tuple[Ints, Ints, Ints]:
    """(slot of each Event, row of each slot, start of each slot), the slots in the order of rows and starts. `width` and times: seconds."""
    first, last = math.floor(times.min() / width), math.floor(times.max() / width)
    if first == last:
        return rows, np.arange(total), np.full(total, first * width)
    span = last - first + 1
    cells = rows * span + (np.floor(times / width).astype(np.int64) - first)
    if total * span <= CELLS * len(rows):
        filled = np.flatnonzero(np.bincount(cells))
        places = np.zeros(total * span, dtype=np.int64)
        places[filled] = np.arange(len(filled))
        slots = places[cells]
    else:
        filled, slots = np.unique(cells, return_inverse=True)
    return slots, filled // span, (filled % span + first) * width


def counted(counts: Ints, bounds: Ints) -> Ints:
    """The sum of each row's counts, all above 0; `bounds` as from `bounds_of`. Of one that has more than MAX_COUNT it is more as well."""
    return sum_rows(np.minimum(counts, MAX_COUNT + 1), bounds)


def unsound(low: Floats, high: Floats, total: Floats) -> NDArray[np.bool_]:
    """Which of these are not the least and the greatest of finite values, and a finite sum."""
    bad: NDArray[np.bool_] = ~(np.isfinite(low) & np.isfinite(high) & (low <= high) & np.isfinite(total))
    return bad
