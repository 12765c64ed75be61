"""Spreads: slots that each hold a sketch, total, least and greatest value; as a table, and as bytes.

A *block* holds the slots of one level of one State. Its header says how much follows and in which widths; behind it lie, per slot,
total, least and greatest; the bins of all its sketches; and per slot how many bins are its own, its first code, and its distance from
the block's first slot.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from taba.handlers.bins import BinLayout, bin_codes, bins_from, deltas_of
from taba.handlers.ragged import (
    COUNTS,
    NUMBERS,
    Buffer,
    Floats,
    Ints,
    MalformedRow,
    aligned,
    bounds_of,
    count_codes,
    count_rows,
    max_rows,
    merge_tables,
    number_codes,
    reduce_table,
    refuse,
    run_starts,
    sum_rows,
)
from taba.handlers.sketch import bins_per_row, codes_in, gather_bins, keys_of, merge_bins, rows_of
from taba.handlers.slots import check_slots, slot_keys

HEADER = np.dtype([("base", "<u4"), ("bins", "<u4"), ("slots", "<u2"), ("codes", "<u2"), ("spare", "<u4")])  # 16 bytes
MAX_SLOTS = 65_535

_FIRSTS = ("<i1", "<i2")
_JOINS = (np.add, np.minimum, np.maximum)


class Spreads:
    """A table of slots: keys by row and start, totals, least and greatest values, and a table of bins by position of the slot."""

    __slots__ = ("bin_counts", "bin_keys", "highs", "keys", "lows", "totals")

    def __init__(self, keys: Ints, totals: Floats, lows: Floats, highs: Floats, bin_keys: Ints, bin_counts: Ints):
        self.keys = keys
        self.totals = totals
        self.lows = lows
        self.highs = highs
        self.bin_keys = bin_keys
        self.bin_counts = bin_counts

    def add(self, other: Spreads) -> None:
        """Everything that `other` holds, whose keys are sorted, too."""
        old = self.keys
        columns: list[NDArray[Any]] = [self.totals, self.lows, self.highs]
        self.keys, [self.totals, self.lows, self.highs] = merge_tables(
            old, columns, other.keys, [other.totals, other.lows, other.highs], _JOINS
        )
        if len(self.keys) != len(old) and len(old):
            self.bin_keys = _moved(self.bin_keys, np.searchsorted(self.keys, old))
        moved = _moved(other.bin_keys, np.searchsorted(self.keys, other.keys))
        self.bin_keys, self.bin_counts = merge_bins(self.bin_keys, self.bin_counts, moved, other.bin_counts)

    def picked(self, chosen: NDArray[np.bool_]) -> Spreads:
        """The `chosen` slots alone."""
        places = np.cumsum(chosen) - 1
        bins = chosen[rows_of(self.bin_keys)]
        return Spreads(
            self.keys[chosen],
            self.totals[chosen],
            self.lows[chosen],
            self.highs[chosen],
            _moved(self.bin_keys[bins], places),
            self.bin_counts[bins],
        )

    def renamed(self, keys: Ints) -> Spreads:
        """The same under other keys, in any order; slots of equal keys become one."""
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        starts = run_starts(ordered)
        places = np.empty(len(keys), dtype=np.int64)
        places[order] = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(keys)))
        new_keys, [totals, lows, highs] = reduce_table(ordered, [self.totals[order], self.lows[order], self.highs[order]], _JOINS)
        bins = gather_bins(places[rows_of(self.bin_keys)], codes_in(self.bin_keys), self.bin_counts)
        return Spreads(new_keys, totals, lows, highs, *bins)


def _moved(bin_keys: Ints, places: Ints) -> Ints:
    return keys_of(places[rows_of(bin_keys)], codes_in(bin_keys)) if len(bin_keys) else bin_keys


def join_spreads(one: Spreads, other: Spreads) -> Spreads:
    """Both, one behind the other: no table until it is `renamed`."""
    return Spreads(
        np.concatenate((one.keys, other.keys)),
        np.concatenate((one.totals, other.totals)),
        np.concatenate((one.lows, other.lows)),
        np.concatenate((one.highs, other.highs)),
        np.concatenate((one.bin_keys, _moved(other.bin_keys, np.arange(len(other.keys)) + len(one.keys)))),
        np.concatenate((one.bin_counts, other.bin_counts)),
    )


class SpreadLayout:
    """Where the sections of blocks lie. Made from headers and the positions at which the sections start."""

    def __init__(self, slots: Ints, bins: Ints, codes: Ints, starts: Ints):
        self.slots = slots
        self.numbers = 3 * slots
        self.number_codes = codes & 3
        self.offset_codes = codes >> 2 & 3
        self.size_codes = codes >> 7 & 1
        self.at = starts
        self.bins = BinLayout(bins, codes >> 4 & 7, aligned(starts + (self.numbers << self.number_codes), 3))
        self.sizes = aligned(self.bins.ends, self.size_codes)
        self.firsts = aligned(self.sizes + (slots << self.size_codes), 1)
        self.offsets = aligned(self.firsts + (slots << 1), self.offset_codes)
        self.ends = aligned(self.offsets + (slots << self.offset_codes), 3)


def read_blocks(buffer: Buffer, header: NDArray[Any], layout: SpreadLayout, widths: Ints, dumps: Ints) -> tuple[Ints, Ints, Spreads]:
    """(blocks, starts, spreads): for each slot its block and start, and a Spreads whose keys are by block and start.

    `widths` are the slots' in each block, `dumps` the row that each block belongs to. Raises MalformedRow for what no dump has.
    """
    slots, bins = layout.slots, layout.bins.bins
    blocks = np.repeat(np.arange(len(slots)), slots)
    offsets = buffer.read(COUNTS, layout.offsets, layout.offset_codes, slots, np.int64)
    starts = (np.repeat(header["base"].astype(np.int64), slots) + offsets) * np.repeat(widths, slots)
    sizes = buffer.read(COUNTS, layout.sizes, layout.size_codes, slots, np.int64)
    if len(sizes):
        bad = (sum_rows(sizes, bounds_of(slots)) != bins) | ((slots > 0) & (bins == 0))
        if bad.any():
            raise MalformedRow(int(dumps[bad][0]), "bins that no slot has")
    elif bins.any():
        raise MalformedRow(int(dumps[bins > 0][0]), "bins that no slot has")
    keys = slot_keys(blocks, starts)
    slot_dumps = dumps[blocks]
    check_slots(keys, starts, sizes, slot_dumps)
    firsts = buffer.read(_FIRSTS, layout.firsts, 1, slots, np.int64)
    weights, deltas = layout.bins.read(buffer)
    bin_keys = bins_from(np.arange(len(blocks)), firsts, deltas, weights, sizes, slot_dumps)
    numbers = buffer.read(NUMBERS, layout.at, layout.number_codes, layout.numbers, np.float64).reshape(-1, 3)
    totals, lows, highs = (np.ascontiguousarray(column) for column in numbers.T)
    if not (lows <= highs).all():
        raise MalformedRow(int(slot_dumps[~(lows <= highs)][0]), "least values greater than the greatest")
    return blocks, starts, Spreads(keys, totals, lows, highs, bin_keys, weights)


class Written:
    """Blocks ready to be written: their headers, how long each is, and `write` at given positions."""

    def __init__(self, spreads: Spreads, blocks: Ints, numbers: Ints, total: int):
        """`blocks` and `numbers` (start in units of the width) of every slot, in order; `total` blocks in all."""
        self.slots = count_rows(blocks, total)
        refuse(self.slots > MAX_SLOTS, "more slots than a dump takes; it had to spill")
        edges = bounds_of(self.slots)
        self.sizes = bins_per_row(spreads.bin_keys, len(blocks))
        self.bins = sum_rows(self.sizes, edges)
        self.firsts, self.deltas = deltas_of(codes_in(spreads.bin_keys), self.sizes)
        self.weights = spreads.bin_counts
        self.figures = np.stack((spreads.totals, spreads.lows, spreads.highs), axis=1).reshape(-1)
        bases = np.zeros(total, dtype=np.int64)
        filled = self.slots > 0
        bases[filled] = numbers[edges[:-1][filled]]
        self.offsets = numbers - np.repeat(bases, self.slots)
        self.codes = (
            number_codes(self.figures, 3 * self.slots)
            | np.minimum(count_codes(max_rows(self.offsets, self.slots)), 2) << 2
            | bin_codes(self.weights, self.deltas, self.bins) << 4
            | count_codes(max_rows(self.sizes, self.slots)) << 7
        )
        self.headers = np.zeros(total, dtype=HEADER)
        self.headers["base"], self.headers["bins"], self.headers["slots"], self.headers["codes"] = bases, self.bins, self.slots, self.codes
        self.lengths = SpreadLayout(self.slots, self.bins, self.codes, np.zeros(total, dtype=np.int64)).ends

    def write(self, buffer: Buffer, starts: Ints) -> None:
        """Write the sections of each block from its `starts`."""
        layout = SpreadLayout(self.slots, self.bins, self.codes, starts)
        buffer.write(NUMBERS, layout.at, layout.number_codes, layout.numbers, self.figures)
        layout.bins.write(buffer, self.weights, self.deltas)
        buffer.write(COUNTS, layout.sizes, layout.size_codes, self.slots, self.sizes)
        buffer.write(_FIRSTS, layout.firsts, 1, self.slots, self.firsts)
        buffer.write(COUNTS, layout.offsets, layout.offset_codes, self.slots, self.offsets)
