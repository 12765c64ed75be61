"""The bins of sketches as bytes: how often each is counted, and how far its code lies from the one before it.

Several sketches of one State may share a *group*, with one choice of widths; see `taba.handlers.ragged` and `taba.handlers.sketch`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from taba.codes import Ints
from taba.handlers.ragged import COUNTS, Buffer, MalformedRow, Shape, aligned, count_codes
from taba.handlers.sketch import keys_of

MAX_CODE = 32_767


class BinLayout:
    """Where the bins of groups lie. Made from how many there are, their width codes, and the positions at which they start."""

    def __init__(self, shape: Shape, codes: Ints, starts: Ints):
        self.shape = shape
        self.weight_codes = codes & 3
        self.delta_codes = codes >> 2 & 1
        self.weights = starts
        self.deltas = aligned(starts + (shape.counts << self.weight_codes), self.delta_codes)
        self.ends = self.deltas + (shape.counts << self.delta_codes)

    def move(self, by: Ints) -> None:
        """Every group `by` (multiples of 8) so many bytes further."""
        self.weights = self.weights + by
        self.deltas += by
        self.ends += by

    def read(self, buffer: Buffer, to: Any = np.int64) -> tuple[NDArray[Any], Ints]:
        """(weights, deltas) of all bins; weights as `to`."""
        return (
            buffer.read(COUNTS, self.weights, self.weight_codes, self.shape, to),
            buffer.read(COUNTS, self.deltas, self.delta_codes, self.shape, np.int64),
        )

    def write(self, buffer: Buffer, weights: Ints, deltas: Ints) -> None:
        buffer.write(COUNTS, self.weights, self.weight_codes, self.shape, weights)
        buffer.write(COUNTS, self.deltas, self.delta_codes, self.shape, deltas)


def bin_codes(weights: Ints, deltas: Ints, shape: Shape) -> Ints:
    """The width codes (3 bits) for groups of bins."""
    return count_codes(shape.greatest(weights)) | count_codes(shape.greatest(deltas)) << 2


def deltas_of(codes: Ints, shape: Shape) -> tuple[Ints, Ints]:
    """(firsts, deltas) of sketches: the first code of each (0 for an empty one), and the distances from bin to bin."""
    firsts = shape.firsts(codes)
    deltas = np.empty_like(codes)
    np.subtract(codes[1:], codes[:-1], out=deltas[1:])
    deltas[shape.bounds[shape.filled]] = 0
    return firsts, deltas


class Chains:
    """The bins of sketches as they were read: codes not yet put together with their rows, which is the most of the work.

    Raises MalformedRow, with the row out of `dumps`, for a sketch whose bins are out of order, empty, or beyond all codes.
    """

    def __init__(self, firsts: Ints, deltas: Ints, weights: NDArray[Any], shape: Shape, dumps: Ints):
        self.shape, self.weights = shape, weights
        if not shape.total:
            return
        filled = shape.filled
        starts = shape.bounds[filled]
        steps = deltas.copy()
        steps[starts] = 1 - deltas[starts]  # 1 for the 0 that is right there
        self._running = running = deltas.cumsum()
        self._shifts = firsts.copy()
        self._shifts[filled] -= running[starts]
        lasts = self._shifts[filled] + running[shape.bounds[filled + 1] - 1]  # where all steps are right, codes rise: the outer ones tell
        self._least, self._most = int(firsts[filled].min()), int(lasts.max())
        if min(steps.min(), weights.min()) <= 0 or self._most > MAX_CODE or self._least < -MAX_CODE:
            codes = running + self._shifts.repeat(shape.counts)
            bad = (steps <= 0) | (weights <= 0) | (np.abs(codes) > MAX_CODE)
            raise MalformedRow(int(dumps.repeat(shape.counts)[bad][0]), "bins out of order")

    def keys(self, rows: Ints) -> Ints:
        """The table keys of the bins, by the sketches' `rows`. Once, and instead of `counted`."""
        if not self.shape.total:
            return np.zeros(0, dtype=np.int64)
        self._running += keys_of(rows, self._shifts).repeat(self.shape.counts)
        return self._running

    def counted(self, places: Ints) -> tuple[Ints, Ints]:
        """(keys, counts) of the bins by `places`, which several sketches may share; in any order, and where that is quick summed up.

        Once, and instead of `keys`.
        """
        if not self.shape.total:
            return self.keys(places), self.weights.astype(np.int64)
        first, span = int(places.min()), self._most - self._least + 1
        if not is_dense((int(places.max()) - first + 1) * span, self.weights):
            return self.keys(places), self.weights.astype(np.int64)
        self._running += ((places - first) * span + (self._shifts - self._least)).repeat(self.shape.counts)
        cells = np.bincount(self._running, weights=self.weights)
        filled = cells.nonzero()[0]
        return keys_of(filled // span + first, filled % span + self._least), cells[filled].astype(np.int64)


def is_dense(cells: int, counts: NDArray[Any]) -> bool:
    """Where there are not many more cells than bins, counting is faster than sorting; floats count exactly up to 2^53."""
    return cells <= 8 * len(counts) and int(counts.max()) < (1 << 53) // len(counts)


def bins_from(rows: Ints, firsts: Ints, deltas: Ints, weights: Ints, shape: Shape, dumps: Ints) -> Ints:
    """The table keys, by the sketches' `rows`, of the bins that `deltas_of` took apart. Raises MalformedRow as Chains does."""
    return Chains(firsts, deltas, weights, shape, dumps).keys(rows)
