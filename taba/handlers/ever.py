"""What left a journal, as bytes: one sketch with least and greatest value, for each State that keeps all-time percentiles apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from taba.codes import Floats, Ints
from taba.handlers.sketched_rows import SketchedRows

_ROWS = SketchedRows(
    [("low", "<f8"), ("high", "<f8"), ("bins", "<u2"), ("first", "<i2"), ("codes", "<u1"), ("mark", "<u1"), ("spare", "<u2")],  # 24 bytes
    mark=0x45,
    name="sketch",
)


def load_sketches(dumps: Sequence[bytes]) -> tuple[Floats, Floats, Ints, Ints]:
    """(lows, highs, keys, counts): the extremes of each row, and a table of all bins; b"" is an empty sketch."""
    header, keys, counts = _ROWS.load(dumps)
    return header["low"].copy(), header["high"].copy(), keys, counts


def dump_sketches(lows: Floats, highs: Floats, keys: Ints, counts: Ints) -> list[bytes]:
    """A dump for each of `lows`."""
    header = np.zeros(len(lows), dtype=_ROWS.header)
    header["low"], header["high"] = lows, highs
    return _ROWS.dump(header, keys, counts)
