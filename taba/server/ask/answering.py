"""What JSON can say of what Handlers show."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from taba import parts
from taba.handlers.lookup import shown
from taba.server.ask.answers import Aggregated, Unanswered

NAMED_AT_ONCE = 100  # names that are written together: each by itself takes as long to come by as ten to write …
NAMED_CHARS = 16_384  # … unless they are so long


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


async def listed(names: Sequence[str], wants_text: bool) -> AsyncIterator[str]:
    """A list of names, in pieces: as JSON, or one a line."""
    before = "["
    for some in _some_at_a_time(names):
        if wants_text:
            yield "".join([f"{name}\n" for name in some])
        else:
            yield before + dumped(some)[1:-1]
            before = ", "
    if not wants_text:
        yield "[]\n" if before == "[" else "]\n"


async def typed(types: Mapping[str, str], wants_text: bool) -> AsyncIterator[str]:
    """Tabs and their Types, likewise."""
    before = "{"
    for some in _some_at_a_time(list(types)):
        if wants_text:
            yield "".join([f"{name}: {types[name]}\n" for name in some])
        else:
            yield before + dumped({name: types[name] for name in some})[1:-1]
            before = ", "
    if not wants_text:
        yield "{}\n" if before == "{" else "}\n"


def _some_at_a_time(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), NAMED_AT_ONCE):
        some = names[start : start + NAMED_AT_ONCE]
        if sum(map(len, some)) <= NAMED_CHARS:
            yield some
        else:
            yield from ([name] for name in some)
