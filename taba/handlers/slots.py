"""Blocks: the slots of one level of one State, as columns and as bytes.

A block's header has the first slot (in units of its width), how many slots follow, and their width codes; behind it lie totals, counts
and the slots' distances from the first. A table of slots has keys by row and start; see `taba.handlers.ragged`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from taba.codes import Floats, Ints
from taba.handlers.ragged import COUNTS, NUMBERS, Buffer, Shape, aligned, count_codes, number_codes, refuse

HEADER_FIELDS: list[tuple[str, str]] = [("base", "<u4"), ("slots", "<u2"), ("codes", "<u2")]
HEADER = np.dtype(HEADER_FIELDS)  # 8 bytes
MAX_SLOTS = 65_535

_SHIFT = 33  # bits of a slot's start (seconds, beyond the year 2200) in a table's key
_MASK = (1 << _SHIFT) - 1


def slot_keys(rows: Ints, starts: Ints) -> Ints:
    """Table keys: by row, then by start."""
    return (rows << _SHIFT) + starts


def rows_in(keys: Ints) -> Ints:
    return keys >> _SHIFT


def starts_in(keys: Ints) -> Ints:
    return keys & _MASK


class Layout:
    """Where the sections of blocks lie. Made from headers and the positions (multiples of 8) at which the sections start."""

    def __init__(self, shape: Shape, codes: Ints, starts: Ints):
        slots = shape.counts
        self.shape = shape
        self.count_codes = codes & 3
        self.total_codes = codes >> 2 & 3
        self.offset_codes = codes >> 4 & 3
        self.totals = starts
        self.counts = aligned(starts + (slots << self.total_codes), self.count_codes)
        self.offsets = aligned(self.counts + (slots << self.count_codes), self.offset_codes)
        self.ends = aligned(self.offsets + (slots << self.offset_codes), 3)

    def move(self, by: Ints) -> None:
        """Every block `by` (multiples of 8) so many bytes further."""
        self.totals = self.totals + by
        self.counts += by
        self.offsets += by
        self.ends += by

    def read(self, buffer: Buffer, bases: Ints, widths: Ints | int) -> tuple[Ints, Ints, Floats]:
        """(starts, counts, totals) of all slots."""
        shape = self.shape
        offsets = buffer.read(COUNTS, self.offsets, self.offset_codes, shape, np.int64)
        starts = (bases.repeat(shape.counts) + offsets) * (widths if isinstance(widths, int) else widths.repeat(shape.counts))
        counts = buffer.read(COUNTS, self.counts, self.count_codes, shape, np.int64)
        return starts, counts, buffer.read(NUMBERS, self.totals, self.total_codes, shape, np.float64)

    def write(self, buffer: Buffer, offsets: Ints, counts: Ints, totals: Floats) -> None:
        buffer.write(COUNTS, self.offsets, self.offset_codes, self.shape, offsets)
        buffer.write(COUNTS, self.counts, self.count_codes, self.shape, counts)
        buffer.write(NUMBERS, self.totals, self.total_codes, self.shape, totals)


def block_codes(numbers: Ints, shape: Shape, counts: Ints, totals: Floats) -> tuple[Ints, Ints, Ints]:
    """(bases, codes, offsets) for blocks with the slot `numbers` (starts in units of their width), sorted by block."""
    bases = shape.firsts(numbers)
    offsets = numbers - bases.repeat(shape.counts)
    codes = count_codes(shape.greatest(counts)) | number_codes(totals, shape) << 2 | count_codes(shape.greatest(offsets)) << 4
    return bases, codes, offsets


def check_slots(keys: Ints, starts: Ints, counts: Ints, rows: Ints) -> None:
    """Refuse rows whose slots are not in order, hold nothing, or lie beyond all time."""
    bad = starts > _MASK
    bad[1:] |= keys[1:] <= keys[:-1]
    bad |= counts <= 0
    if bad.any():
        broken = np.zeros(int(rows.max()) + 1, dtype=np.bool_)
        broken[rows[bad]] = True
        refuse(broken, "slots out of order")


def grouped_sums(rows: Ints, total: int, mask: NDArray[np.bool_], *columns: NDArray[Any]) -> list[Floats]:
    """For each column, the sum over the masked items of each row."""
    picked = rows[mask]
    return [np.bincount(picked, weights=column[mask], minlength=total).astype(np.float64) for column in columns]
