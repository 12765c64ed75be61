"""What several Types share in showing figures to exporters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taba.handlers.base import Sample

QUANTILES = {"p25": "0.25", "p50": "0.5", "p75": "0.75", "p90": "0.9", "p95": "0.95", "p99": "0.99", "p99.9": "0.999"}


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
