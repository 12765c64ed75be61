"""Numbers as people read them, in few characters; programs get them raw, in base units."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

SECONDS, BYTES, RATIO = "seconds", "bytes", "ratio"  # the units that are written in steps, and that of shares
# by the words that people write for one of these, as the page knows them: which, and how many of it one is
_WORDS: dict[str, tuple[str, float]] = {
    **dict.fromkeys(("s", SECONDS), (SECONDS, 1.0)),
    **dict.fromkeys(("ms", "milliseconds"), (SECONDS, 1e-3)),
    **dict.fromkeys(("us", "\u00b5s", "\u03bcs", "microseconds"), (SECONDS, 1e-6)),
    **dict.fromkeys(("ns", "nanoseconds"), (SECONDS, 1e-9)),
    **dict.fromkeys(("By", "B", BYTES), (BYTES, 1.0)),
    RATIO: (RATIO, 1.0),
    **dict.fromkeys(("%", "percent"), (RATIO, 0.01)),
}
COUNTS = frozenset({"count", "clients", "distinct", "events"})  # keys of figures that have no unit, whatever their Tab's is
MOST = 1e18  # from here on a number is written with its power of ten, whatever its unit
LATENCY = "latency"  # seconds by name
TIMES = frozenset({"time", "started", "refused"})  # keys of moments


def scaled(value: Any, unit: str | None = None) -> str:
    """A number in at most seven characters and its sign, as people read it: 1.2 ms, 3.4 MiB, 12k; what is none is a dash."""
    text = _scaled(value, unit)
    return text if len(text.removeprefix("-")) <= 7 else text.replace(" ", "")


def is_scaled(unit: str | None) -> bool:
    """Whether what has this unit is written with it."""
    return unit in _WORDS


def _scaled(value: Any, unit: str | None) -> str:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return "-"
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= MOST:
        return f"{value:.0e}"
    if unit in _WORDS:
        unit, size = _WORDS[unit]
        value = value if size == 1.0 else value * size
    if unit == RATIO:
        return (f"{100 * value:.0e}" if value and abs(value) < 1e-5 else _digits(100 * value)) + " %"
    if unit == SECONDS:
        for least, size, name in _TIMES:
            if abs(value) >= least:
                return f"{_digits(value / size)} {name}"
        return "0 s"
    steps = [(1024.0**power, f" {name}iB") for power, name in ((4, "T"), (3, "G"), (2, "M"), (1, "K"))] if unit == BYTES else []
    steps = steps or [(1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")]
    for size, name in steps:
        if abs(value) >= size:
            return _digits(value / (1e3 if name == "k" else size)) + name
    if value and abs(value) < 1e-3:
        return f"{value:.0e}"
    return _digits(value) + (" B" if unit == BYTES else "")


_TIMES = (
    (172_800.0, 86_400.0, "d"),
    (7200.0, 3600.0, "h"),
    (120.0, 60.0, "min"),
    (1.0, 1.0, "s"),
    (1e-3, 1e-3, "ms"),
    (1e-6, 1e-6, "us"),
    (1e-9, 1e-9, "ns"),
)


def _digits(value: float) -> str:
    if abs(value) >= 1e4:
        return f"{value:.0e}"
    if abs(value) >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.3g}"


def unit_of(key: str) -> str | None:
    """The unit of what stands under a name that ends with it, such as `memory_bytes`, or under `latency`; None where it has none."""
    if key == LATENCY:
        return SECONDS
    return next((unit for unit in (BYTES, SECONDS) if key == unit or key.endswith("_" + unit)), None)


def moment(seconds: Any) -> str | None:
    """Unix seconds as the time of this place; None for what is no such time."""
    try:
        return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")
    except (TypeError, ValueError, OverflowError, OSError):
        return None
