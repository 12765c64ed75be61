"""What an array Handler takes for a value: a number, and, where its `pairs` says so, a pair.

`pairs = "times"`: `[value, times]` means the value so many times. `pairs = "start"`: `[running total, start]`, whose start says since
when the total runs; a number alone is a running total whose start is not known. Without numpy: authors of plain Handlers load this too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

MAX_TIMES = 2**32  # of one value: counts stay whole numbers of 64 bits for two billion such Events

Number = float | tuple[float, float]


def read_number(value: Any, pairs: str | None = None) -> Number:
    """`value` as a float, or a pair of floats. Raises ValueError for what is none, with a sentence that says what is taken."""
    if pairs is not None and isinstance(value, (list, tuple)) and len(value) == 2:
        first, second = _float(value[0]), _float(value[1])
        if pairs == "times" and first is not None and second is not None and 1 <= second <= MAX_TIMES and second.is_integer():
            return first, second
        if pairs == "start" and first is not None and second is not None and _is_total(first) and math.isfinite(second) and second >= 0:
            return first, second
    else:
        number = _float(value)
        if number is not None and (pairs != "start" or _is_total(number)):
            return number
    # what a sender nests as deeply as it likes is not written out
    raise ValueError(f"{takes(pairs)}, not {f'a {type(value).__name__}' if isinstance(value, (list, tuple, dict)) else repr(value)}"[:200])


def takes(pairs: str | None) -> str:
    """What a Handler with these `pairs` takes, in words."""
    if pairs == "times":
        return f"takes numbers, or [value, times] with whole times from 1 to {MAX_TIMES}"
    return "takes running totals of 0 or more, or [running total, start]" if pairs == "start" else "takes numbers"


def column_of(values: Sequence[Any], pairs: str | None = None) -> Any:
    """`values` as an array of float64: (n,), or (n, 2) where any is a pair. Raises ValueError naming the first that is no number."""
    import numpy

    if getattr(values, "dtype", None) is not None:
        return numpy.asarray(values, dtype=numpy.float64)
    read = [read_number(value, pairs) for value in values]
    if any(isinstance(number, tuple) for number in read):
        second = 1.0 if pairs == "times" else 0.0
        return numpy.array([number if isinstance(number, tuple) else (number, second) for number in read], dtype=numpy.float64)
    return numpy.array(read, dtype=numpy.float64)


def _float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _is_total(value: float) -> bool:
    return not value < 0  # NaN and infinities are refused later, as those of all numbers
