"""The bins of sketches as bytes: how often each is counted, and how far its code lies from the one before it.

Several sketches of one State may share a *group*, with one choice of widths; see `taba.handlers.ragged` and `taba.handlers.sketch`.
"""

from __future__ import annotations

import numpy as np

from taba.handlers.ragged import COUNTS, Buffer, Ints, MalformedRow, Shape, aligned, count_codes
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

    def read(self, buffer: Buffer) -> tuple[Ints, Ints]:
        """(weights, deltas) of all bins."""
        return (
            buffer.read(COUNTS, self.weights, self.weight_codes, self.shape, np.int64),
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


def bins_from(rows: Ints, firsts: Ints, deltas: Ints, weights: Ints, shape: Shape, dumps: Ints) -> Ints:
    """The table keys, by the sketches' `rows`, of the bins that `deltas_of` took apart.

    Raises MalformedRow, with the row out of `dumps`, for a sketch whose bins are out of order, empty, or beyond all codes.
    """
    if not shape.total:
        return deltas
    filled = shape.filled
    starts = shape.bounds[filled]
    steps = deltas.copy()
    steps[starts] = 1 - deltas[starts]  # 1 for the 0 that is right there
    running = deltas.cumsum()
    shifts = firsts.copy()
    shifts[filled] -= running[starts]
    lasts = shifts[filled] + running[shape.bounds[filled + 1] - 1]  # where all steps are right, codes rise: the outer ones tell
    if min(steps.min(), weights.min()) <= 0 or lasts.max() > MAX_CODE or firsts[filled].min() < -MAX_CODE:
        codes = running + shifts.repeat(shape.counts)
        bad = (steps <= 0) | (weights <= 0) | (np.abs(codes) > MAX_CODE)
        raise MalformedRow(int(dumps.repeat(shape.counts)[bad][0]), "bins out of order")
    running += keys_of(rows, shifts).repeat(shape.counts)
    return running
