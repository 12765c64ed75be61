"""What left a journal, as bytes: one sketch with least and greatest value, for each State that keeps all-time percentiles apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from taba.handlers.bins import BinLayout, bin_codes, bins_from, deltas_of
from taba.handlers.figures import empty_dump
from taba.handlers.ragged import Buffer, Floats, Ints, Shape, aligned, bounds_of, cut_rows, join_rows, refuse
from taba.handlers.sketch import bins_per_row, codes_in

_HEADER = np.dtype(
    [("low", "<f8"), ("high", "<f8"), ("bins", "<u2"), ("first", "<i2"), ("codes", "<u1"), ("mark", "<u1"), ("spare", "<u2")]
)  # 24 bytes
_MARK = 0x45  # the same in every dump: other bytes are seldom taken for one
_EMPTY = empty_dump(_HEADER, mark=_MARK)


def load_sketches(dumps: Sequence[bytes]) -> tuple[Floats, Floats, Ints, Ints]:
    """(lows, highs, keys, counts): the extremes of each row, and a table of all bins; b"" is an empty sketch."""
    buffer, starts, lengths = join_rows(dumps, _EMPTY, _HEADER.itemsize)
    header = buffer.headers(_HEADER, starts)
    bins = Shape(header["bins"].astype(np.int64))
    refuse((header["mark"] != _MARK) | ((bins.counts > 0) & ~(header["low"] <= header["high"])), "no sketch")
    layout = BinLayout(bins, header["codes"].astype(np.int64), starts + _HEADER.itemsize)
    refuse(aligned(layout.ends, 3) != starts + lengths, "a sketch of a length that its header does not explain")
    weights, deltas = layout.read(buffer)
    rows = np.arange(len(starts))
    keys = bins_from(rows, header["first"].astype(np.int64), deltas, weights, bins, rows)
    return header["low"].copy(), header["high"].copy(), keys, weights


def dump_sketches(lows: Floats, highs: Floats, keys: Ints, counts: Ints) -> list[bytes]:
    """A dump for each of `lows`."""
    bins = Shape(bins_per_row(keys, len(lows)))
    firsts, deltas = deltas_of(codes_in(keys), bins)
    codes = bin_codes(counts, deltas, bins)
    layout = BinLayout(bins, codes, np.full(len(lows), _HEADER.itemsize))
    edges = bounds_of(aligned(layout.ends, 3))
    layout.move(edges[:-1])
    content = bytearray(int(edges[-1]))
    buffer = Buffer(content)
    header = np.zeros(len(lows), dtype=_HEADER)
    header["low"], header["high"] = lows, highs
    header["bins"], header["first"], header["codes"], header["mark"] = bins.counts, firsts, codes, _MARK
    buffer.put_headers(edges[:-1], header)
    layout.write(buffer, counts, deltas)
    return cut_rows(content, edges)
