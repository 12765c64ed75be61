"""How Projections and Aggregates look to people and in answers: without hidden keys, whole numbers without fraction."""

from __future__ import annotations

import json
import math
from typing import Any

MAX_WHOLE = 2.0**63  # a float beyond this is an estimate, and shown as one (1e+300), not as 300 digits


def shown(value: Any) -> Any:
    """`value` as JSON answers show it, deep: no key that begins with `_`, 17 for 17.0, null for NaN and infinities, bytes as text.

    Keys that are no text, and whatever else JSON does not have, become their text.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is float:
        return _whole(value)
    if isinstance(value, dict):
        found = {}
        for key, item in value.items():
            if not isinstance(key, str):
                key = _decoded(key) if isinstance(key, (bytes, bytearray)) else str(key)
            elif key[:1] == "_":
                continue
            kind = type(item)  # leaves are most of a thousand Aggregates: none is worth a call of its own
            found[key] = item if kind in _PLAIN else _whole(item) if kind is float else shown(item)
        return found
    if isinstance(value, (list, tuple)):
        return [item if type(item) in _PLAIN else shown(item) for item in value]
    if isinstance(value, float):
        return _whole(value)
    if isinstance(value, (bytes, bytearray)):
        return _decoded(value)
    return value if isinstance(value, (int, str)) else str(value)


_PLAIN = frozenset((int, str, bool, type(None)))


def _whole(value: float) -> Any:
    if value.is_integer() and -MAX_WHOLE < value < MAX_WHOLE:
        return int(value)
    return value if math.isfinite(value) else None


def _decoded(value: bytes | bytearray) -> str:
    return value.decode("utf-8", "backslashreplace")


def as_json(value: Any) -> Any:
    """`value`, which msgpack could carry, as JSON can: keys and bytes become text, other unknown things too; deep."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes):
        return _decoded(value)
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
    return json.dumps(_rounded(shown(projection)), ensure_ascii=False)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        rounded = round(value, max(0, 5 - math.floor(math.log10(abs(value)))))  # shown() left no zero here
        return shown(rounded)
    return value
