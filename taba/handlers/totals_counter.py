"""TotalsCounter: count, total, average, least and greatest of all values since ever, in 40 bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taba.handlers.base import ArrayHandler, Projection
from taba.handlers.ragged import Floats, Ints, MalformedRow, by_rows, count_rows, refuse, run_lengths, run_starts

_STATE = np.dtype([("count", "<i8"), ("total", "<f8"), ("low", "<f8"), ("high", "<f8"), ("refused", "<i8")])  # 40 bytes
_SIZE = _STATE.itemsize


def _empty() -> bytes:
    state = np.zeros(1, dtype=_STATE)
    state["low"], state["high"] = np.inf, -np.inf
    return state.tobytes()


_EMPTY = _empty()


class TotalsCounter(ArrayHandler):
    """Count, total, average, least and greatest of all values."""

    type = "TotalsCounter"
    version = 1

    def load_array(self, dumps: Sequence[bytes]) -> NDArray[Any]:
        content = bytearray().join(dump or _EMPTY for dump in dumps)
        for row, dump in enumerate(dumps):
            if dump and len(dump) != _SIZE:
                raise MalformedRow(row, f"a TotalsCounter takes {_SIZE} bytes, not {len(dump)}")
        states: NDArray[Any] = np.frombuffer(content, dtype=_STATE)
        refuse((states["count"] < 0) | (states["refused"] < 0), "no State of a TotalsCounter")
        return states

    def fold_array(self, states: NDArray[Any], rows: Ints, times: Floats, values: Floats, now: float) -> NDArray[Any]:
        rows, values = by_rows(rows, values)
        finite = np.isfinite(values)
        if not finite.all():
            states["refused"] += count_rows(rows[~finite], len(states))
            rows, values = rows[finite], values[finite]
        if len(rows):
            starts = run_starts(rows)
            touched = rows[starts]
            states["count"][touched] += run_lengths(starts, len(rows))
            with np.errstate(over="ignore", invalid="ignore"):  # a sum beyond all floats is infinite, and shown as no value
                states["total"][touched] += np.add.reduceat(values, starts)
            states["low"][touched] = np.minimum(states["low"][touched], np.minimum.reduceat(values, starts))
            states["high"][touched] = np.maximum(states["high"][touched], np.maximum.reduceat(values, starts))
        return states

    def dump_array(self, states: NDArray[Any]) -> list[bytes]:
        content = states.tobytes()
        return [content[start : start + _SIZE] for start in range(0, len(content), _SIZE)]

    def project_array(self, states: NDArray[Any], parts: Sequence[Sequence[bytes]], now: float) -> list[Projection]:
        return [_projection(*state) for state in states.tolist()]

    def aggregate(self, projections: Sequence[Projection]) -> Projection:
        filled = [projection for projection in projections if projection["count"]]
        return _projection(
            sum(projection["count"] for projection in filled),
            float(sum(projection["total"] for projection in filled)),
            min((projection["min"] for projection in filled), default=None),
            max((projection["max"] for projection in filled), default=None),
            sum(projection.get("_refused", 0) for projection in projections),
        )


def _projection(count: int, total: float, low: float | None, high: float | None, refused: int) -> Projection:
    if not count:
        return {"count": 0, "total": 0.0, "average": None, "min": None, "max": None, "_refused": refused}
    return {"count": count, "total": total, "average": total / count, "min": low, "max": high, "_refused": refused}
