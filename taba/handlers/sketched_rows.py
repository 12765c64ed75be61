"""Dumps of which each is a header with the extremes of all values, and one sketch: what is the same in them, whatever else a header holds.

The bytes behind a header: the bins' counts, in as few bytes each as its `codes` says, then the gaps between the bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taba.codes import Ints
from taba.handlers.bins import BinLayout, bin_codes, bins_from, deltas_of
from taba.handlers.figures import empty_dump
from taba.handlers.ragged import Buffer, Shape, aligned, bounds_of, cut_rows, join_rows, refuse
from taba.handlers.sketch import bins_per_row, codes_in


class SketchedRows:
    """`fields` of the header, among them low, high, bins, first, codes and mark. `mark`: the same in every dump: other bytes are
    seldom taken for one. `name`: what a dump is, for people."""

    def __init__(self, fields: Sequence[tuple[str, str]], mark: int, name: str):
        self.header = np.dtype(list(fields))
        self._mark, self._name = mark, name
        self._empty = empty_dump(self.header, mark=mark)

    def load(self, dumps: Sequence[bytes]) -> tuple[NDArray[Any], Ints, Ints]:
        """(headers, keys, counts): a header a row, and a table of all bins; b"" is an empty dump. Raises ValueError where one is none."""
        buffer, starts, lengths = join_rows(dumps, self._empty, self.header.itemsize)
        header = buffer.headers(self.header, starts)
        bins = Shape(header["bins"].astype(np.int64))
        refuse((header["mark"] != self._mark) | ((bins.counts > 0) & ~(header["low"] <= header["high"])), f"no {self._name}")
        layout = BinLayout(bins, header["codes"].astype(np.int64), starts + self.header.itemsize)
        refuse(aligned(layout.ends, 3) != starts + lengths, f"a {self._name} of a length that its header does not explain")
        weights, deltas = layout.read(buffer)
        rows = np.arange(len(starts))
        return header, bins_from(rows, header["first"].astype(np.int64), deltas, weights, bins, rows), weights

    def dump(self, header: NDArray[Any], keys: Ints, counts: Ints) -> list[bytes]:
        """A dump a row of `header`, whose fields that tell of the bins are filled in here."""
        bins = Shape(bins_per_row(keys, len(header)))
        firsts, deltas = deltas_of(codes_in(keys), bins)
        codes = bin_codes(counts, deltas, bins)
        layout = BinLayout(bins, codes, np.full(len(header), self.header.itemsize))
        edges = bounds_of(aligned(layout.ends, 3))
        layout.move(edges[:-1])
        content = bytearray(int(edges[-1]))
        buffer = Buffer(content)
        header["bins"], header["first"], header["codes"], header["mark"] = bins.counts, firsts, codes, self._mark
        buffer.put_headers(edges[:-1], header)
        layout.write(buffer, counts, deltas)
        return cut_rows(content, edges)
