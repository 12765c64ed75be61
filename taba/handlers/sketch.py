"""Taba's percentile sketch: counts of values in logarithmic bins, for many sketches at once.

1. A value lies in the bin of its code: see `taba.codes`.
2. Per sign, at most MAX_BINS neighbouring keys are told apart: whatever lies lower than the greatest key − MAX_BINS + 1 is counted in
   that lowest bin. The greatest key of a union is the greatest of the greatest, so merging is exactly associative and commutative.
3. Only codes and counts are here: sums, least and greatest values are floats, and kept outside.

After Masson, Rim, Lee: DDSketch, VLDB 2019.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taba.codes import Floats, Ints, codes_of, estimates_of
from taba.handlers.ragged import count_codes, merge_tables, reduce_table, run_lengths, run_starts

MAX_BINS = 2048  # per sign: 17 decades below the greatest value, in at most 16 KiB

_SHIFT = 16  # bits of a code in a table's key
_HALF = 1 << 15

PERMILLES = {"p25": 250, "p50": 500, "p75": 750, "p90": 900, "p95": 950, "p99": 990, "p99.9": 999}


def keys_of(rows: Ints, codes: Ints) -> Ints:
    """Table keys: by row, then by code."""
    return (rows << _SHIFT) + (codes + _HALF)


def rows_of(keys: Ints) -> Ints:
    return keys >> _SHIFT


def codes_in(keys: Ints) -> Ints:
    return (keys & ((1 << _SHIFT) - 1)) - _HALF


def tally(rows: Ints, codes: Ints, many: Ints | None = None) -> tuple[Ints, Ints]:
    """(keys, counts): a table of how often each code occurs in each row, each `many` times. `rows` are sorted; none is empty."""
    if many is not None:
        keys, [counts] = reduce_table(keys_of(rows, codes), [many])
        return keys, counts
    if len(rows) == 1:
        return keys_of(rows, codes), np.ones(1, dtype=np.int64)
    starts = run_starts(rows)
    least = int(codes.min())
    span = int(codes.max()) - least + 1
    if len(starts) * span <= 4 * len(rows):  # many events per row: counting is several times faster than sorting
        runs = np.repeat(np.arange(len(starts)), run_lengths(starts, len(rows)))
        cells = np.bincount(runs * span + (codes - least))
        filled = np.flatnonzero(cells)
        return keys_of(rows[starts[filled // span]], filled % span + least), cells[filled]
    keys = keys_of(rows, codes)
    keys.sort()
    firsts = run_starts(keys)
    return keys[firsts], run_lengths(firsts, len(keys))


def gather_bins(rows: Ints, codes: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """(keys, counts): a table of any number of bins in any order; collapsed."""
    if not len(rows):
        return rows, counts
    least = int(codes.min())
    span = int(codes.max()) - least + 1
    # where there are not many more cells than bins, counting is faster than sorting; floats count exactly up to 2^53
    if (int(rows.max()) + 1) * span <= 8 * len(rows) and int(counts.max()) < (1 << 53) // len(rows):
        cells = np.bincount(rows * span + (codes - least), weights=counts)
        filled = np.flatnonzero(cells)
        return collapse(keys_of(filled // span, filled % span + least), cells[filled].astype(np.int64))
    keys, [counts] = reduce_table(keys_of(rows, codes), [counts])
    return collapse(keys, counts)


def merge_bins(keys: Ints, counts: Ints, new_keys: Ints, new_counts: Ints) -> tuple[Ints, Ints]:
    """One table of bins added to another; collapsed where a sketch outgrew MAX_BINS. May change `counts` in place."""
    before = len(keys)
    keys, [counts] = merge_tables(keys, [counts], new_keys, [new_counts])
    return (keys, counts) if len(keys) == before else collapse(keys, counts)


def collapse(keys: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """A table of bins in which no row has codes too far below its greatest (of either sign)."""
    if not len(keys):
        return keys, counts
    rows = rows_of(keys)
    starts = run_starts(rows)
    lasts = np.append(starts[1:], len(keys)) - 1
    if (keys[lasts] - keys[starts]).max() < MAX_BINS:
        return keys, counts
    codes = codes_in(keys)
    runs = np.repeat(np.arange(len(starts)), run_lengths(starts, len(keys)))
    lowest = np.where(
        codes > 0,
        np.maximum(codes, codes[lasts][runs] - (MAX_BINS - 1)),
        np.where(codes < 0, np.minimum(codes, codes[starts][runs] + (MAX_BINS - 1)), 0),
    )
    keys = keys_of(rows, lowest)  # still sorted: only neighbours became equal
    firsts = run_starts(keys)
    return keys[firsts], np.add.reduceat(counts, firsts)


def quantiles(codes: Ints, counts: Ints, bins: Ints, permilles: Sequence[int]) -> Floats:
    """Estimates of the `permilles` (0 … 1000) of every row: one row each, NaN where it is empty.

    `codes` and `counts` are in the order of rows and codes, `bins` is the number of bins of each row. The exact quantile meant is
    the item at rank ⌊(n − 1) · permille / 1000⌋ of the sorted n values, counted from 0.
    """
    found = np.full((len(bins), len(permilles)), np.nan)
    filled = np.flatnonzero(bins)
    if not len(filled):
        return found
    running = np.cumsum(counts)
    ends = np.cumsum(bins)[filled]
    below = running[ends - 1]  # values in this row and all before it
    before = np.concatenate(([0], below[:-1]))
    ranks = before[:, None] + (below - before - 1)[:, None] * np.asarray(permilles, dtype=np.int64) // 1000
    found[filled] = estimates_of(codes[np.searchsorted(running, ranks, side="right")])
    return found


class Sketch:
    """One sketch, for whoever needs no thousand of them."""

    def __init__(self) -> None:
        self._keys: Ints = np.zeros(0, dtype=np.int64)
        self._counts: Ints = np.zeros(0, dtype=np.int64)
        self.refused = 0
        """How many values were NaN or infinite; these are recorded nowhere else, and not in the dump."""

    @property
    def count(self) -> int:
        """How many values were recorded."""
        return int(self._counts.sum())

    @property
    def bins(self) -> int:
        """How many bins are occupied."""
        return len(self._keys)

    def add(self, values: Sequence[float] | NDArray[Any]) -> None:
        """Record `values`."""
        array = np.asarray(values, dtype=np.float64)
        finite = np.isfinite(array)
        self.refused += int(len(array) - finite.sum())
        array = array[finite]
        if len(array):
            new = tally(np.zeros(len(array), dtype=np.int64), codes_of(array))
            self._keys, self._counts = merge_bins(self._keys, self._counts, *new)

    def merge(self, other: Sketch) -> None:
        """Add everything that `other` recorded."""
        self._keys, self._counts = merge_bins(self._keys, self._counts.copy(), other._keys, other._counts.copy())
        self.refused += other.refused

    def quantile(self, q: float) -> float:
        """The value below which a share `q` (0 … 1) of the recorded values lies.

        Within ACCURACY (relative) of the exact one, the item at rank ⌊q · (n − 1)⌋; NaN while nothing was recorded. Raises ValueError for
        q outside 0 … 1.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile of {q}: takes 0 to 1")
        if not len(self._keys):
            return math.nan
        rank = math.floor(q * (self.count - 1) + 1e-9)
        place = np.searchsorted(np.cumsum(self._counts), rank, side="right")
        return float(estimates_of(codes_in(self._keys[place : place + 1]))[0])

    def dump(self) -> bytes:
        """Bytes that depend on what was recorded alone, not on the order of `add` and `merge`."""
        code = int(count_codes(self._counts.max(initial=0)))
        codes = codes_in(self._keys).astype("<i2").tobytes()
        return struct.pack("<HH", len(self._keys), code) + codes + self._counts.astype(f"<u{1 << code}").tobytes()

    @classmethod
    def load(cls, content: bytes) -> Sketch:
        """The sketch that dumped `content`. Raises ValueError for anything else."""
        if len(content) < 4:
            raise ValueError("no dump of a sketch")
        bins, code = struct.unpack_from("<HH", content)
        if code > 3 or len(content) != 4 + bins * (2 + (1 << code)):
            raise ValueError("no dump of a sketch")
        sketch = cls()
        codes = np.frombuffer(content, "<i2", bins, 4).astype(np.int64)
        sketch._keys = keys_of(np.zeros(bins, np.int64), codes)
        sketch._counts = np.frombuffer(content, f"<u{1 << code}", bins, 4 + 2 * bins).astype(np.int64)
        if (np.diff(codes) <= 0).any() or (codes == -_HALF).any() or (sketch._counts <= 0).any():
            raise ValueError("no dump of a sketch")
        return sketch


def bins_per_row(keys: Ints, total: int) -> Ints:
    """How many bins each of `total` rows has."""
    return np.bincount(keys >> _SHIFT, minlength=total)
