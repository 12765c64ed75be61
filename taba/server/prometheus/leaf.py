"""A selector of a question, and what is right above it."""

from __future__ import annotations

from typing import NamedTuple

from taba.server.prometheus.syntax import Matcher

FRESH_SECONDS = 300.0  # as far from now a value that has no past is shown, as Prometheus' look-back

RANGED = ("rate", "irate", "increase", "delta")
EXTREMES = ("avg_over_time", "max_over_time", "min_over_time")  # of which a sum is not that of all values together
OVER_TIME = ("sum_over_time", "count_over_time", "avg_over_time", "min_over_time", "max_over_time", "last_over_time")


class Leaf(NamedTuple):
    """A selector and what is right above it: a function over its range; `sums`: a sum of that, `by` these labels or `without` those."""

    matchers: tuple[Matcher, ...]
    offset: float
    function: str | None
    range: float
    sums: bool = False
    by: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    keeps_first: bool = False  # of several series with the same labels, instead of refusing the question
