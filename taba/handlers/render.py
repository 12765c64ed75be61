"""How Projections and Aggregates look to people and in answers: without hidden keys, whole numbers without fraction."""

from __future__ import annotations

import json
import math
from typing import Any

MAX_WHOLE = 2.0**63  # a float beyond this is an estimate, and shown as one (1e+300), not as 300 digits


def shown(value: Any) -> Any:
    """`value` as an answer shows it: no key that begins with `_`, 17 for 17.0, null for NaN and infinities; deep."""
    kind = type(value)
    if kind is int or kind is str or value is None:  # the most, of a thousand Aggregates
        return value
    if isinstance(value, dict):
        return {key: shown(item) for key, item in value.items() if not (isinstance(key, str) and key[:1] == "_")}
    if isinstance(value, (list, tuple)):
        return [shown(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        if value.is_integer() and abs(value) < MAX_WHOLE:
            return int(value)
    return value


def as_json(value: Any) -> Any:
    """`value`, which msgpack could carry, as JSON can: keys and bytes become text, other unknown things too; deep."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, dict):
        return {key if isinstance(key, str) else as_text(as_json(key)): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    return str(value)


def as_text(value: Any) -> str:
    """A JSON value as the text of a key: a text is itself, 17.0 is 17, all else is JSON."""
    return value if isinstance(value, str) else json.dumps(shown(value), ensure_ascii=False, sort_keys=True)


def render_text(projection: Any) -> str:
    """One line of JSON of what is shown, fractions rounded to six digits."""
    return json.dumps(_rounded(shown(projection)), ensure_ascii=False, default=str)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        rounded = round(value, max(0, 5 - math.floor(math.log10(abs(value)))))  # shown() left no zero here
        return shown(rounded)
    return value
