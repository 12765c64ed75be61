"""What a Tab is called where others ask: the one definition of its series, from which `/metrics`, PromQL, metadata and docs follow.

1. A Handler says by its `shown` which FIGURES its Type has; nothing here knows a Type.
2. A series is named after the Tab's base name, the word of its unit where the figure has the unit and the name lacks it, and the suffix.
3. A name may be asked for as it is (UTF-8), or with `_` for each character that Prometheus did not use to take.

Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

COUNTER, GAUGE, HISTOGRAM, SUMMARY = "counter", "gauge", "histogram", "summary"

TOTAL, EVENTS, DISTRIBUTION, VALUE, LATEST, HELD, DISTINCT, TOP = (
    "total",
    "events",
    "distribution",
    "value",
    "latest",
    "held",
    "distinct",
    "top",
)
NET, TEXT = "net", "text"  # what a total is once a value was negative; what a Client's value is that is no number

MAX_TOP = 10  # values of a TopK that are series
DEFAULT_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)  # prometheus_client's, without +Inf

MAX_PLAIN = 10_000  # names of families whose plain ones are kept: each is asked for with every sample; some 2 MB

_ODD = {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}
_OTHER = re.compile(r"[^A-Za-z0-9_:]")
_NO_WORD = re.compile(r"[^A-Za-z0-9_]+")
_DIMENSIONLESS = ("", "1")


class Figure(NamedTuple):
    """One figure of a Tab, as a family of series. `labels`: those that it has besides the Tab's own; `by_client`: one for each Client."""

    suffix: str
    kind: str
    has_unit: bool
    help: str
    by_client: bool = False
    labels: tuple[str, ...] = ()


FIGURES: dict[str, Figure] = {
    TOTAL: Figure("_total", COUNTER, True, "Sum of all values ever."),
    NET: Figure("_sum", GAUGE, True, "Sum of all values ever, some of which were negative."),
    EVENTS: Figure("_events_total", COUNTER, False, "Events ever."),
    DISTRIBUTION: Figure("", HISTOGRAM, True, "All values ever, as a distribution.", labels=("le",)),
    VALUE: Figure("", GAUGE, True, "The value now."),
    LATEST: Figure("", GAUGE, True, "The last value of each Client that lives.", by_client=True),
    HELD: Figure("", GAUGE, True, "The value of each Client that lives, while it holds.", by_client=True),
    TEXT: Figure("_info", GAUGE, False, "1 for the text that each Client's value is.", by_client=True, labels=("value",)),
    DISTINCT: Figure("_distinct", GAUGE, False, "Distinct values."),
    TOP: Figure("_top", GAUGE, False, f"How often the {MAX_TOP} most frequent values came.", labels=("value",)),
}
# what an Agent, which has no Handlers, shows of these Types: figures that are sums of what was recorded; of distributions count and sum
ADDITIVE: dict[str, tuple[str, ...]] = {
    "CounterGroup": (TOTAL, EVENTS),
    "TotalsCounter": (TOTAL, EVENTS),
    "PercentileGroup": (DISTRIBUTION,),
    "PercentileCounter": (DISTRIBUTION,),
}
OTHERWISE = {TOTAL: (NET,), LATEST: (TEXT,), HELD: (TEXT,)}  # what a figure may be instead: only States tell

TOTAL_WORD = "total"  # at the end of counters' names
BUCKET, COUNT, SUM = "_bucket", "_count", "_sum"  # the series of a distribution


def word_of(unit: str | None) -> str:
    """The word of a unit at the end of names: `bytes per second` is `bytes_per_second`; "" for none, and for 1."""
    return "" if unit in (None, *_DIMENSIONLESS) else _NO_WORD.sub("_", unit or "").strip("_")


def family_of(base: str, unit: str | None, figure: str) -> str:
    """The name of a Tab's family, as it is: of `http.latency` in seconds and DISTRIBUTION it is `http.latency_seconds`."""
    shown = FIGURES[figure]
    stem = base[: -len(TOTAL_WORD) - 1] if (shown.kind == COUNTER or figure == NET) and _ends_with(base, TOTAL_WORD) else base
    word = word_of(unit) if shown.has_unit else ""
    if word and not _ends_with(stem, word) and stem != word:
        stem += "_" + word
    return stem + shown.suffix


def _ends_with(name: str, word: str) -> bool:
    """Whether it is there after whatever divides words: `job.seconds` has its unit as `job_seconds` does."""
    return name.endswith(word) and len(name) > len(word) and not name[-len(word) - 1].isalnum()


@lru_cache(MAX_PLAIN)
def plain(name: str) -> str:
    """A name with `_` for each character that Prometheus did not use to take."""
    found = _OTHER.sub("_", name)
    return "_" + found if found[:1].isdigit() else found


def labels_shown(labels: Mapping[str, str], taken: tuple[str, ...] = ()) -> dict[str, str]:
    """A Tab's own labels beside `client` and `taken`: one of that name is called `exported_…`, as Prometheus does."""
    found: dict[str, str] = {}
    for key, value in labels.items():
        name = key
        while name in ("client", *taken) or name in found:
            name = "exported_" + name
        found[name] = value
    return found


def bound_text(bound: float) -> str:
    """A bucket's bound as the label `le` has it, canonical as in OpenMetrics: 0.5, 10.0, +Inf."""
    return number_text(bound) if bound in (float("inf"), float("-inf")) else repr(float(bound))


def number_text(value: float) -> str:
    """A number as Prometheus writes it."""
    text = repr(float(value))
    return text[:-2] if text.endswith(".0") else _ODD.get(text, text)
