"""PercentileCounter: percentiles of all values since ever."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from taba.codes import Floats, Ints, codes_of
from taba.handlers.base import ArrayHandler, Projection, Sample
from taba.handlers.figures import add_figures, add_heads, finite_pairs, show_tallies, sum_tallies
from taba.handlers.fresh import bins_of, counted, figures_of, unsound
from taba.handlers.percentiles import aggregate_percentiles, percentiles
from taba.handlers.ragged import bounds_of, refuse
from taba.handlers.samples import percentile_samples
from taba.handlers.sketch import bins_per_row, codes_in, gather_bins, merge_bins, rows_of, tally
from taba.handlers.sketched_rows import SketchedRows

MAX_TALLY = 2**32 - 1  # where the count of refused events stops

_ROWS = SketchedRows(
    [
        ("total", "<f8"),
        ("low", "<f8"),
        ("high", "<f8"),
        ("refused", "<u4"),
        ("bins", "<u2"),
        ("first", "<i2"),
        ("codes", "<u1"),
        ("mark", "<u1"),
        ("spare", "V6"),
    ],  # 40 bytes
    mark=0x50,
    name="State of a PercentileCounter",
)


class SketchStates:
    """All-time figures a row, and a table of bins."""

    __slots__ = ("counts", "head", "keys", "rows")

    def __init__(self, head: dict[str, Any], keys: Ints, counts: Ints):
        self.rows = len(head["total"])
        self.head = head
        self.keys = keys
        self.counts = counts


class PercentileCounter(ArrayHandler):
    """Percentiles of all values, within 1 %; count, total, least and greatest, exactly."""

    type = "PercentileCounter"
    version = 1
    shown = ("distribution",)
    pairs = "times"
    edge = 1

    def load_array(self, dumps: Sequence[bytes]) -> SketchStates:
        header, keys, counts = _ROWS.load(dumps)
        head: dict[str, Any] = {name: header[name].copy() for name in ("total", "low", "high")}
        head["refused"] = header["refused"].astype(np.int64)
        return SketchStates(head, keys, counts)

    def fold_array(self, states: SketchStates, rows: Ints, times: Floats, values: Floats, now: float) -> SketchStates:
        rows, values, _, many = finite_pairs(states.head["refused"], rows, values, times)
        if len(rows):
            add_figures(states.head, rows, values, many)
            states.keys, states.counts = merge_bins(states.keys, states.counts, *tally(rows, codes_of(values), many))
        return states

    def edge_array(self, rows: Ints, times: Floats, values: Floats, total: int) -> list[bytes]:
        head = {**figures_of(rows, values, total), "refused": np.zeros(total, np.int64)}
        return self.dump_array(SketchStates(head, *bins_of(rows, values, total)))

    def count_array(self, dumps: Sequence[bytes]) -> Ints:
        return self._edge(dumps)[1]

    def merge_array(self, states: SketchStates, rows: Ints, dumps: Sequence[bytes], now: float) -> SketchStates:
        edge, _ = self._edge(dumps)
        add_heads(states.head, rows, edge.head)
        new = gather_bins(rows[rows_of(edge.keys)], codes_in(edge.keys), edge.counts)
        states.keys, states.counts = merge_bins(states.keys, states.counts, *new)
        return states

    def _edge(self, dumps: Sequence[bytes]) -> tuple[SketchStates, Ints]:
        edge = self.load_array(dumps)
        counts = counted(edge.counts, bounds_of(bins_per_row(edge.keys, edge.rows)))
        odd = (edge.head["refused"] > 0) | (counts == 0) | unsound(edge.head["low"], edge.head["high"], edge.head["total"])
        refuse(odd, "a State that no edge made")
        return edge, counts

    def merge(self, states: Sequence[list[bytes]]) -> list[bytes]:
        """The States of several Clients as one."""
        loaded = self.load_array([state[0] for state in states])
        head = {
            "total": np.array([loaded.head["total"].sum()]),
            "low": np.array([loaded.head["low"].min()]),
            "high": np.array([loaded.head["high"].max()]),
            "refused": np.array([loaded.head["refused"].sum()]),
        }
        bins = gather_bins(np.zeros(len(loaded.keys), dtype=np.int64), codes_in(loaded.keys), loaded.counts)
        return self.dump_array(SketchStates(head, *bins))

    def dump_array(self, states: SketchStates) -> list[bytes]:
        header = np.zeros(states.rows, dtype=_ROWS.header)
        for name in ("total", "low", "high"):
            header[name] = states.head[name]
        header["refused"] = np.minimum(states.head["refused"], MAX_TALLY)
        return _ROWS.dump(header, states.keys, states.counts)

    def project_array(self, states: SketchStates, parts: Sequence[Sequence[bytes]], now: float) -> list[Projection]:
        head = states.head
        bins = bins_per_row(states.keys, states.rows)
        projections = percentiles(codes_in(states.keys), states.counts, bins, head["total"], head["low"], head["high"])
        for projection, refused in zip(projections, head["refused"].tolist(), strict=True):
            projection["_refused"] = refused
        return projections

    def aggregate(self, projections: Sequence[Projection]) -> Projection:
        return {**aggregate_percentiles(projections), **sum_tallies(projections)}

    def detail(self, state: list[bytes], now: float) -> Projection:
        """The Projection, and how many Events were refused."""
        return show_tallies(self.project(state, now))

    def samples(self, projection: Projection) -> list[Sample]:
        return percentile_samples(projection)
