"""TotalsCounter: count, total, average, least and greatest of all values since ever, in 40 bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taba.codes import Floats, Ints
from taba.handlers.base import ArrayHandler, Projection, Sample
from taba.handlers.figures import add_figures, add_heads, empty_dump, finite_pairs, show_tallies, sum_tallies
from taba.handlers.fresh import figures_of, unsound
from taba.handlers.ragged import MalformedRow, count_rows, refuse
from taba.handlers.samples import count_and_sum, extremes

_STATE = np.dtype([("count", "<i8"), ("total", "<f8"), ("low", "<f8"), ("high", "<f8"), ("refused", "<i8")])  # 40 bytes
_SIZE = _STATE.itemsize
_EMPTY = empty_dump(_STATE)


class TotalsCounter(ArrayHandler):
    """Count, total, average, least and greatest of all values."""

    type = "TotalsCounter"
    version = 1
    shown = ("total", "events")
    pairs = "times"
    edge = 1

    def load_array(self, dumps: Sequence[bytes]) -> NDArray[Any]:
        content = bytearray().join(dump or _EMPTY for dump in dumps)
        for row, dump in enumerate(dumps):
            if dump and len(dump) != _SIZE:
                raise MalformedRow(row, f"a TotalsCounter takes {_SIZE} bytes, not {len(dump)}")
        states: NDArray[Any] = np.frombuffer(content, dtype=_STATE)
        refuse((states["count"] < 0) | (states["refused"] < 0), "no State of a TotalsCounter")
        return states

    def fold_array(self, states: NDArray[Any], rows: Ints, times: Floats, values: Floats, now: float) -> NDArray[Any]:
        rows, values, _, many = finite_pairs(states["refused"], rows, values, times)
        if len(rows):
            add_figures(states, rows, values, many)
            if many is None:
                states["count"] += count_rows(rows, len(states))
            else:
                np.add.at(states["count"], rows, many)
        return states

    def edge_array(self, rows: Ints, times: Floats, values: Floats, total: int) -> list[bytes]:
        states = np.zeros(total, dtype=_STATE)
        states["count"] = count_rows(rows, total)
        for name, column in figures_of(rows, values, total).items():
            states[name] = column
        return self.dump_array(states)

    def count_array(self, dumps: Sequence[bytes]) -> Ints:
        count: Ints = self._edge(dumps)["count"].astype(np.int64)
        return count

    def merge_array(self, states: NDArray[Any], rows: Ints, dumps: Sequence[bytes], now: float) -> NDArray[Any]:
        add_heads(states, rows, self._edge(dumps), ("count",))
        return states

    def _edge(self, dumps: Sequence[bytes]) -> NDArray[Any]:
        edge = self.load_array(dumps)
        odd = (edge["refused"] > 0) | (edge["count"] == 0) | unsound(edge["low"], edge["high"], edge["total"])
        refuse(odd, "a State that no edge made")
        return edge

    def merge(self, states: Sequence[list[bytes]]) -> list[bytes]:
        """The States of several Clients as one."""
        loaded = self.load_array([state[0] for state in states])
        merged = np.zeros(1, dtype=_STATE)
        for name in ("count", "total", "refused"):
            merged[name] = loaded[name].sum()
        merged["low"], merged["high"] = loaded["low"].min(), loaded["high"].max()
        return self.dump_array(merged)

    def dump_array(self, states: NDArray[Any]) -> list[bytes]:
        content = states.tobytes()
        return [content[start : start + _SIZE] for start in range(0, len(content), _SIZE)]

    def project_array(self, states: NDArray[Any], parts: Sequence[Sequence[bytes]], now: float) -> list[Projection]:
        return [_projection(*state) for state in states.tolist()]

    def aggregate(self, projections: Sequence[Projection]) -> Projection:
        filled = [projection for projection in projections if projection["count"]]
        aggregate = _projection(
            sum(projection["count"] for projection in filled),
            float(sum(projection["total"] for projection in filled)),
            min((projection["min"] for projection in filled), default=None),
            max((projection["max"] for projection in filled), default=None),
            0,
        )
        return {**aggregate, **sum_tallies(projections)}

    def detail(self, state: list[bytes], now: float) -> Projection:
        """The Projection, and how many Events were refused."""
        return show_tallies(self.project(state, now))

    def samples(self, projection: Projection) -> list[Sample]:
        return [*count_and_sum(projection, "", {}, "summary"), *extremes(projection, "", {})]


def _projection(count: int, total: float, low: float | None, high: float | None, refused: int) -> Projection:
    if not count:
        return {"count": 0, "total": 0.0, "average": None, "min": None, "max": None, "_refused": refused}
    return {"count": count, "total": total, "average": total / count, "min": low, "max": high, "_refused": refused}
