"""The bins of sketches as bytes: how often each is counted, and how far its code lies from the one before it.

Several sketches of one State may share a *group*, with one choice of widths; see `taba.handlers.ragged` and `taba.handlers.sketch`.
"""

from __future__ import annotations

import numpy as np

from taba.handlers.ragged import COUNTS, Buffer, Ints, MalformedRow, aligned, bounds_of, count_codes, max_rows
from taba.handlers.sketch import keys_of

MAX_CODE = 32_767


class BinLayout:
    """Where the bins of groups lie. Made from how many there are, their width codes, and the positions at which they start."""

    def __init__(self, bins: Ints, codes: Ints, starts: Ints):
        self.bins = bins
        self.weight_codes = codes & 3
        self.delta_codes = codes >> 2 & 1
        self.weights = starts
        self.deltas = aligned(starts + (bins << self.weight_codes), self.delta_codes)
        self.ends = self.deltas + (bins << self.delta_codes)

    def read(self, buffer: Buffer) -> tuple[Ints, Ints]:
        """(weights, deltas) of all bins."""
        return (
            buffer.read(COUNTS, self.weights, self.weight_codes, self.bins, np.int64),
            buffer.read(COUNTS, self.deltas, self.delta_codes, self.bins, np.int64),
        )

    def write(self, buffer: Buffer, weights: Ints, deltas: Ints) -> None:
        buffer.write(COUNTS, self.weights, self.weight_codes, self.bins, weights)
        buffer.write(COUNTS, self.deltas, self.delta_codes, self.bins, deltas)


def bin_codes(weights: Ints, deltas: Ints, bins: Ints) -> Ints:
    """The width codes (3 bits) for groups of bins."""
    return count_codes(max_rows(weights, bins)) | count_codes(max_rows(deltas, bins)) << 2


def deltas_of(codes: Ints, bins: Ints) -> tuple[Ints, Ints]:
    """(firsts, deltas) of sketches with `bins` each: its first code (0 for an empty one), and the distances from bin to bin."""
    firsts = np.zeros(len(bins), dtype=np.int64)
    filled = bins > 0
    starts = bounds_of(bins)[:-1][filled]
    firsts[filled] = codes[starts]
    deltas = np.diff(codes, prepend=0)
    deltas[starts] = 0
    return firsts, deltas


def bins_from(rows: Ints, firsts: Ints, deltas: Ints, weights: Ints, bins: Ints, dumps: Ints) -> Ints:
    """The table keys, by the sketches' `rows`, of the bins that `deltas_of` took apart.

    Raises MalformedRow, with the row out of `dumps`, for a sketch whose bins are out of order, empty, or beyond all codes.
    """
    if not len(deltas):
        return deltas
    running = np.cumsum(deltas)
    filled = bins > 0
    starts = bounds_of(bins)[:-1][filled]
    shifts = np.zeros(len(bins), dtype=np.int64)
    shifts[filled] = firsts[filled] - running[starts]
    codes = running + np.repeat(shifts, bins)
    bad = (weights <= 0) | (np.abs(codes) > MAX_CODE)
    late = deltas <= 0
    late[starts] = deltas[starts] != 0
    bad |= late
    if bad.any():
        raise MalformedRow(int(np.repeat(dumps, bins)[bad][0]), "bins out of order")
    return keys_of(np.repeat(rows, bins), codes)
