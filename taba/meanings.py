"""What a Tab's name tells of its unit, where nobody says it. Pure."""

from __future__ import annotations

UNITS_OF_SUFFIXES = {"_seconds": "seconds", "_bytes": "bytes", "_ratio": "ratio", "_total": "1"}


def unit_of(base: str) -> str:
    """The unit that the end of a Tab's base name tells, "" where it tells none: of `x_seconds_total` it is seconds."""
    for suffix, unit in UNITS_OF_SUFFIXES.items():
        if base.removesuffix("_total").endswith(suffix) or base.endswith(suffix):
            return unit
    return ""
