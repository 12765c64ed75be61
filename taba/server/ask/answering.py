"""What JSON can say of what Handlers show."""

from __future__ import annotations

import json
from typing import Any

from taba.handlers.lookup import shown
from taba.server.ask.answers import Aggregated


def dumped(content: Any) -> str:
    """JSON as answers have it."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False)


def aggregate_as_json(item: Aggregated) -> Any:
    """An Aggregate, and what is wrong with it."""
    content = {} if item.aggregate is None else answerable(item.aggregate)
    return content if item.error is None else {**content, "error": item.error}


def answerable(value: Any) -> Any:
    """What JSON can say of a Projection or Aggregate, without its hidden keys; bytes as text."""
    return _json(shown(value))


PLAIN = frozenset((str, int, float, bool, type(None)))


def _json(value: Any) -> Any:
    if type(value) in PLAIN or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, dict):
        return {key if isinstance(key, str) else _key(key): item if type(item) in PLAIN else _json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).decode("utf-8", "backslashreplace")
    return str(value)


def _key(key: Any) -> str:
    return key.decode("utf-8", "backslashreplace") if isinstance(key, bytes) else str(key)
