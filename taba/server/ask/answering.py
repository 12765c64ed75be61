"""What JSON can say of what Handlers show."""

from __future__ import annotations

import json
from typing import Any

from taba.handlers.lookup import shown
from taba.server.ask.answers import Aggregated


def dumped(content: Any) -> str:
    """JSON as answers have it."""
    return _encode(content)


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def aggregate_as_json(item: Aggregated) -> Any:
    """An Aggregate, and what is wrong with it."""
    content = {} if item.aggregate is None else shown(item.aggregate)
    return content if item.error is None else {**content, "error": item.error}
