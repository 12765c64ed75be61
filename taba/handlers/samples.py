"""What several Types share in showing figures to exporters and charts."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor
from typing import Any

from taba.handlers.base import Sample

MAX_POINTS = 11_000  # of a line, as Prometheus' own bound

QUANTILES = {"p25": "0.25", "p50": "0.5", "p75": "0.75", "p90": "0.9", "p95": "0.95", "p99": "0.99", "p99.9": "0.999"}


def points(start: float, end: float, step: float) -> list[float]:
    """The times start, start + step, … up to and including end. Raises ValueError for a step that goes nowhere, or too many points."""
    if not step > 0:
        raise ValueError(f"a step of {step} seconds: takes more than 0")
    if end < start:
        return []
    count = floor((end - start) / step + 1e-9) + 1
    if count > MAX_POINTS:
        raise ValueError(f"{count} points: takes at most {MAX_POINTS}")
    return [start + step * place for place in range(count)]


def percentile_samples(
    p: Mapping[str, Any], suffix: str = "", labels: Mapping[str, str] | None = None, kind: str = "summary"
) -> list[Sample]:
    """P as the figures of a summary; least and greatest value as gauges."""
    own = dict(labels or {})
    found = [Sample(suffix, {**own, "quantile": quantile}, p[name], kind) for name, quantile in QUANTILES.items() if p[name] is not None]
    return [*found, *count_and_sum(p, suffix, own, kind), *extremes(p, suffix, own)]


def count_and_sum(figures: Mapping[str, Any], suffix: str, labels: Mapping[str, str], kind: str) -> list[Sample]:
    """Count and total, as Prometheus calls them."""
    return [Sample(suffix + "_count", labels, figures["count"], kind), Sample(suffix + "_sum", labels, figures["total"], kind)]


def extremes(figures: Mapping[str, Any], suffix: str, labels: Mapping[str, str]) -> list[Sample]:
    """Least and greatest value, where there is one."""
    return [Sample(f"{suffix}_{name}", labels, figures[name], "gauge") for name in ("min", "max") if figures[name] is not None]
