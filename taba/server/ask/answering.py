"""What JSON can say of what Handlers show."""

from __future__ import annotations

import json
from typing import Any

from taba import parts
from taba.handlers.lookup import shown
from taba.server.ask.answers import Aggregated, Unanswered


def dumped(content: Any) -> str:
    """JSON as answers have it."""
    return _encode(content)


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def written(value: Any) -> str:
    """JSON of what is shown of `value`: `dumped(shown(value))`, in C where that was built."""
    text: str = _write(value, shown)
    return text


def write_plainly(value: Any, shown: Any) -> str:
    """The same, in Python."""
    return dumped(shown(value))


_writing = parts.find("taba.server.ask._writing")
_write = write_plainly if _writing is None else _writing.write


def aggregate_as_json(item: Aggregated) -> Any:
    """An Aggregate, and what is wrong with it."""
    content = {} if item.aggregate is None else shown(item.aggregate)
    return content if item.error is None else {**content, "error": item.error}


def aggregate_written(item: Aggregated) -> str:
    """The same, as JSON."""
    if item.error is None and item.aggregate is not None:
        return written(item.aggregate)
    return dumped(aggregate_as_json(item))


def projection_written(projection: Any) -> str:
    """A Projection, or why there is none, as JSON."""
    return dumped({"error": projection.error}) if isinstance(projection, Unanswered) else written(projection)
