"""What a value is as a number: by its content, of what is built in; what another type says of itself, where that is asked."""

from __future__ import annotations

import operator
from typing import Any

from taba.bounds import MAX_EXACT_INT

BUILT_IN = frozenset((type(None), bool, int, float, str, bytes, list, tuple, dict))  # no code of theirs is called


def as_float(value: Any) -> float | None:
    """A number that a float holds exactly, by its content (a subclass's methods are not called); None for any other value."""
    if isinstance(value, float):
        return float.__pos__(value)
    if isinstance(value, int) and value is not True and value is not False:
        whole = int.__int__(value)
        return float(whole) if -MAX_EXACT_INT <= whole <= MAX_EXACT_INT else None
    return None


def as_sum(value: Any) -> float | None:
    """A number as a float, which may hold it less exactly; None for what is none, or beyond all floats."""
    number = value if type(value) in BUILT_IN else as_number(value)
    if not isinstance(number, (int, float)) or number is True or number is False:
        return None
    try:
        return float.__pos__(number) if isinstance(number, float) else float(int.__int__(number))
    except OverflowError:
        return None


def as_number(value: Any) -> int | float | None:
    """What an object of another type says that it is as a number, such as numpy's scalars and Decimal; None where it says nothing."""
    kind = type(value)
    for method, convert in (("__index__", operator.index), ("__float__", float)):
        try:
            if hasattr(kind, method):
                number: int | float = convert(value)
                return number
        except Exception:
            continue  # its own code failed: the caller counts the drop
    return None
