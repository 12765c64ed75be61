"""UpDown: the running sum of deltas, such as requests in flight, in 16 bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taba.handlers.base import ArrayHandler, Projection, Sample
from taba.handlers.figures import finite_events, show_tallies, sum_tallies
from taba.handlers.ragged import Floats, Ints, MalformedRow, refuse, run_starts

_STATE = np.dtype([("value", "<f8"), ("refused", "<i8")])  # 16 bytes
_SIZE = _STATE.itemsize
_EMPTY = bytes(_SIZE)


class UpDown(ArrayHandler):
    """The running sum of deltas."""

    type = "UpDown"
    version = 1

    def load_array(self, dumps: Sequence[bytes]) -> NDArray[Any]:
        for row, dump in enumerate(dumps):
            if dump and len(dump) != _SIZE:
                raise MalformedRow(row, f"an UpDown takes {_SIZE} bytes, not {len(dump)}")
        states: NDArray[Any] = np.frombuffer(bytearray().join(dump or _EMPTY for dump in dumps), dtype=_STATE)
        refuse(states["refused"] < 0, "no State of an UpDown")
        return states

    def fold_array(self, states: NDArray[Any], rows: Ints, times: Floats, values: Floats, now: float) -> NDArray[Any]:
        rows, values = finite_events(states["refused"], rows, values)
        if len(rows):
            starts = run_starts(rows)
            with np.errstate(over="ignore", invalid="ignore"):  # a sum beyond all floats is infinite, and shown as no value
                states["value"][rows[starts]] += np.add.reduceat(values, starts)
        return states

    def merge(self, states: Sequence[list[bytes]]) -> list[bytes]:
        """The States of several Clients as one."""
        loaded = self.load_array([state[0] for state in states])
        merged = np.zeros(1, dtype=_STATE)
        merged["value"], merged["refused"] = loaded["value"].sum(), loaded["refused"].sum()
        return self.dump_array(merged)

    def dump_array(self, states: NDArray[Any]) -> list[bytes]:
        content = states.tobytes()
        return [content[start : start + _SIZE] for start in range(0, len(content), _SIZE)]

    def project_array(self, states: NDArray[Any], parts: Sequence[Sequence[bytes]], now: float) -> list[Projection]:
        return [{"value": value, "_refused": refused} for value, refused in states.tolist()]

    def aggregate(self, projections: Sequence[Projection]) -> Projection:
        return {"value": sum(projection["value"] for projection in projections), **sum_tallies(projections)}

    def detail(self, state: list[bytes], now: float) -> Projection:
        """The Projection, and how many Events were refused."""
        return show_tallies(self.project(state, now))

    def samples(self, projection: Projection) -> list[Sample]:
        return [Sample("", {}, projection["value"], "gauge")]
