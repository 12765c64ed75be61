"""P: the dictionary of percentiles that several Types show, with the bins that let it be aggregated.

`{"count", "total", "min", "max", "p25", "p50", "p75", "p90", "p95", "p99", "p99.9"}`, null where there is no value, and `_bins`: code,
count, code, count … of the sketch (see `taba.handlers.sketch`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np

from taba.codes import Floats, Ints
from taba.handlers.ragged import bounds_of, sum_rows
from taba.handlers.sketch import PERMILLES, codes_in, gather_bins, quantiles

_NOTHING = (None,) * len(PERMILLES)
_KEYS = ("count", "total", "min", "max", *PERMILLES, "_bins")
_PERMILLES = tuple(PERMILLES.values())


def percentiles(codes: Ints, counts: Ints, bins: Ints, totals: Floats, lows: Floats, highs: Floats) -> list[dict[str, Any]]:
    """P of each row; `bins` says how many of `codes` and `counts` it has. Percentiles never lie outside of min … max."""
    edges = bounds_of(bins)
    row_counts = sum_rows(counts, edges).tolist()
    found = np.clip(quantiles(codes, counts, bins, _PERMILLES), lows[:, None], highs[:, None]).tolist()
    pairs = np.empty(2 * len(codes), dtype=np.int64)
    pairs[0::2], pairs[1::2] = codes, counts
    flat = pairs.tolist()
    ends = (2 * edges).tolist()
    columns = (totals.tolist(), lows.tolist(), highs.tolist())
    spans = pairwise(ends)
    result = []
    for count, total, low, high, several, (start, end) in zip(row_counts, *columns, found, spans, strict=True):
        values = (count, total, low, high, *several, flat[start:end]) if count else (0, 0.0, None, None, *_NOTHING, flat[start:end])
        result.append(dict(zip(_KEYS, values, strict=True)))
    return result


def aggregate_percentiles(several: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One P of several."""
    filled = [p for p in several if p["count"]]
    pairs = np.fromiter(chain.from_iterable(p["_bins"] for p in filled), dtype=np.int64)
    codes, weights = pairs[0::2], pairs[1::2]
    keys, counts = gather_bins(np.zeros(len(codes), dtype=np.int64), codes, weights)
    low = min((p["min"] for p in filled), default=np.inf)
    high = max((p["max"] for p in filled), default=-np.inf)
    total = sum(p["total"] for p in filled)
    [p] = percentiles(
        codes_in(keys), counts, np.array([len(keys)]), np.array([float(total)]), np.array([float(low)]), np.array([float(high)])
    )
    return p
