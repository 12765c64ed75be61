"""Spreads: slots that each hold a sketch, total, least and greatest value; as a table, and as bytes.

A *block* holds the slots of one level of one State. Its header says how much follows and in which widths; behind it lie, per slot,
total, least and greatest; the bins of all its sketches; and per slot how many bins are its own, its first code, and its distance from
the block's first slot.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taba.codes import Floats, Ints
from taba.handlers.bins import BinLayout, Chains, bin_codes, deltas_of
from taba.handlers.ragged import (
    COUNTS,
    NUMBERS,
    Buffer,
    MalformedRow,
    Shape,
    aligned,
    count_codes,
    count_rows,
    merge_tables,
    number_codes,
    reduce_table,
    refuse,
    run_lengths,
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

    def counted(self, places: Ints) -> tuple[Ints, Ints]:
        """(keys, counts) of the bins by the slots' `places`, in any order."""
        return keys_of(places[rows_of(self.bin_keys)], codes_in(self.bin_keys)), self.bin_counts

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
        places[order] = np.arange(len(starts)).repeat(run_lengths(starts, len(keys)))
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

    def __init__(self, shape: Shape, bins: Shape, codes: Ints, starts: Ints):
        slots = shape.counts
        self.shape = shape
        self.numbers = Shape(3 * slots)
        self.number_codes = codes & 3
        self.offset_codes = codes >> 2 & 3
        self.size_codes = codes >> 7 & 1
        self.at = starts
        self.bins = BinLayout(bins, codes >> 4 & 7, aligned(starts + (self.numbers.counts << self.number_codes), 3))
        self.sizes = aligned(self.bins.ends, self.size_codes)
        self.firsts = aligned(self.sizes + (slots << self.size_codes), 1)
        self.offsets = aligned(self.firsts + (slots << 1), self.offset_codes)
        self.ends = aligned(self.offsets + (slots << self.offset_codes), 3)

    def move(self, by: Ints) -> None:
        """Every block `by` (multiples of 8) so many bytes further."""
        self.at = self.at + by
        self.bins.move(by)
        self.sizes += by
        self.firsts += by
        self.offsets += by
        self.ends += by


class Slots(NamedTuple):
    """The slots of blocks as they were read: for each its block, start, figures, and in `chains` its bins."""

    blocks: Ints
    starts: Ints
    keys: Ints  # by block and start
    totals: Floats
    lows: Floats
    highs: Floats
    chains: Chains

    def spreads(self) -> Spreads:
        """As a table."""
        keys = self.chains.keys(np.arange(len(self.blocks)))
        return Spreads(self.keys, self.totals, self.lows, self.highs, keys, self.chains.weights)


def read_slots(buffer: Buffer, header: NDArray[Any], layout: SpreadLayout, widths: Ints, dumps: Ints, weights: Any = np.int64) -> Slots:
    """The slots of all blocks, their bins' counts as `weights`.

    `widths` are the slots' in each block, `dumps` the row that each block belongs to. Raises MalformedRow for what no dump has.
    """
    shape = layout.shape
    slots, bins = shape.counts, layout.bins.shape.counts
    blocks = np.arange(len(slots)).repeat(slots)
    offsets = buffer.read(COUNTS, layout.offsets, layout.offset_codes, shape, np.int64)
    starts = (header["base"].astype(np.int64).repeat(slots) + offsets) * widths.repeat(slots)
    sizes = buffer.read(COUNTS, layout.sizes, layout.size_codes, shape, np.int64)
    bad = sum_rows(sizes, shape.bounds) != bins
    if bad.any():
        raise MalformedRow(int(dumps[bad][0]), "bins that no slot has")
    keys = slot_keys(blocks, starts)
    slot_dumps = dumps[blocks]
    check_slots(keys, starts, sizes, slot_dumps)
    firsts = buffer.read(_FIRSTS, layout.firsts, np.ones_like(slots), shape, np.int64)
    counts, deltas = layout.bins.read(buffer, weights)
    chains = Chains(firsts, deltas, counts, Shape(sizes), slot_dumps)
    numbers = buffer.read(NUMBERS, layout.at, layout.number_codes, layout.numbers, np.float64).reshape(-1, 3)
    totals, lows, highs = (np.ascontiguousarray(column) for column in numbers.T)
    if not (lows <= highs).all():
        raise MalformedRow(int(slot_dumps[~(lows <= highs)][0]), "least values greater than the greatest")
    return Slots(blocks, starts, keys, totals, lows, highs, chains)


class Written:
    """Blocks ready to be written: their headers, how long each is, and `write` at given positions."""

    def __init__(self, spreads: Spreads, blocks: Ints, numbers: Ints, total: int):
        """`blocks` and `numbers` (start in units of the width) of every slot, in order; `total` blocks in all."""
        slots = Shape(count_rows(blocks, total))
        refuse(slots.counts > MAX_SLOTS, "more slots than a dump takes; it had to spill")
        sizes = Shape(bins_per_row(spreads.bin_keys, len(blocks)))
        bins = Shape(sum_rows(sizes.counts, slots.bounds))
        self.sizes = sizes.counts
        self.firsts, self.deltas = deltas_of(codes_in(spreads.bin_keys), sizes)
        self.weights = spreads.bin_counts
        self.figures = np.stack((spreads.totals, spreads.lows, spreads.highs), axis=1).reshape(-1)
        bases = slots.firsts(numbers)
        self.offsets = numbers - bases.repeat(slots.counts)
        codes = (
            number_codes(self.figures, Shape(3 * slots.counts))
            | count_codes(slots.greatest(self.offsets)) << 2
            | bin_codes(self.weights, self.deltas, bins) << 4
            | count_codes(slots.greatest(self.sizes)) << 7
        )
        self.headers = np.zeros(total, dtype=HEADER)
        self.headers["base"], self.headers["bins"], self.headers["slots"], self.headers["codes"] = bases, bins.counts, slots.counts, codes
        self.layout = SpreadLayout(slots, bins, codes, np.zeros(total, dtype=np.int64))
        self.lengths = self.layout.ends

    def write(self, buffer: Buffer, starts: Ints) -> None:
        """Write the sections of each block from its `starts`; once."""
        layout = self.layout
        layout.move(starts)
        buffer.write(NUMBERS, layout.at, layout.number_codes, layout.numbers, self.figures)
        layout.bins.write(buffer, self.weights, self.deltas)
        buffer.write(COUNTS, layout.sizes, layout.size_codes, layout.shape, self.sizes)
        buffer.write(_FIRSTS, layout.firsts, np.ones_like(layout.shape.counts), layout.shape, self.firsts)
        buffer.write(COUNTS, layout.offsets, layout.offset_codes, layout.shape, self.offsets)
