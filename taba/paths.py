"""Paths into an answer: the one grammar by which commands, routes and pages name a figure of a Projection or Aggregate.

1. `1m.count`: keys joined by dots. At each step the longest key that fits counts, so that `pct.p99.9` is the key `p99.9` of `pct`.
2. `[0]`, `[-1]`: a place in a list. `["a.b"]`: a key as JSON text, for keys with brackets, and with dots where a shorter one is there, too.
3. A path that leads nowhere finds NOTHING, which is not None: null is something that is there.

Standard library only; pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

MAX_PATH = 1000  # characters

# where Types keep what a row of figures shows, the first that is there: known by its shape, never by a Type's name
FIGURES: Mapping[str, Sequence[str]] = {
    "1m": ("1m.count",),
    "1h": ("1h.count",),
    "p50": ("1h.p50", "pct.p50", "p50"),
    "p99": ("1h.p99", "pct.p99", "p99"),
    "max": ("1h.max", "pct.max", "max"),
    "value": ("value", "sum", "distinct", "total", "1h.total"),
}

_PLACE = re.compile(r"\[(-?[0-9]{1,9})\]")
_PLAIN = re.compile(r"[^\[\].]+")
_KEY = re.compile(r'\[("(?:[^"\\]|\\.)*")\]')


class _Nothing:
    def __repr__(self) -> str:
        return "NOTHING"


NOTHING: Final = _Nothing()


def find(content: Any, path: str) -> Any:
    """What is at `path`, or NOTHING. Raises ValueError for a text that can be no path."""
    check(path)
    return _find(content, path)


def check(path: str) -> str:
    """`path`; ValueError where it can lead nowhere, whatever the answer."""
    if len(path) > MAX_PATH:
        raise ValueError(f"path {path[:50]!r}…: takes at most {MAX_PATH} characters")
    rest = path
    while rest:
        if (match := _PLACE.match(rest) or _KEY.match(rest)) is not None:
            if match.re is _KEY and _key(match[1]) is None:
                raise ValueError(f"path {path[:100]!r}: {match[1][:100]} is no text as JSON has it")
        elif (match := _PLAIN.match(rest)) is None:
            raise ValueError(
                f'path {path[:100]!r}: a bracket takes a place, [0], or a key as JSON, ["a.b"]'
                if rest[0] in "[]"
                else f"path {path[:100]!r}: takes keys joined by dots, such as 1m.count"
            )
        rest = rest[match.end() :]
        if rest.startswith(".") and len(rest) > 1 and rest[1] != "[":
            rest = rest[1:]
        elif rest and rest[0] not in "[]":
            raise ValueError(f"path {path[:100]!r}: takes keys joined by dots, such as 1m.count")
    if not path:
        raise ValueError("a path takes keys joined by dots, such as 1m.count")
    return path


def _find(content: Any, path: str) -> Any:
    while path:
        if path[0] == "[":
            if (match := _PLACE.match(path)) is not None:
                place = int(match[1])
                if isinstance(content, (str, bytes)) or not isinstance(content, Sequence) or not -len(content) <= place < len(content):
                    return NOTHING
                content, path = content[place], _further(path[match.end() :])
                continue
            if (match := _KEY.match(path)) is not None:
                key = _key(match[1])  # a key with brackets before it may have begun within a text
                if not isinstance(content, Mapping) or key not in content:
                    return NOTHING
                content, path = content[key], _further(path[match.end() :])
                continue
        if type(content) is not dict and not isinstance(content, Mapping):
            return NOTHING
        # the longest first; one that leads nowhere gives way to a shorter one
        end = len(path)
        while end > 0:
            if (key := path[:end]) in content:
                found = _find(content[key], _further(path[end:]))
                if found is not NOTHING:
                    return found
            end = max(path.rfind(".", 0, end), path.rfind("[", 0, end))
        return NOTHING
    return content


def _key(text: str) -> str | None:
    """The key that JSON text stands for; None where it is none."""
    try:
        key: str = json.loads(text)
    except ValueError:
        return None
    return key


def _further(rest: str) -> str:
    return rest.removeprefix(".")


def leaves(content: Any) -> Iterator[tuple[str, Any]]:
    """(path, what is there) of everything in `content` that holds nothing by key: numbers, texts, lists. Each path leads back there."""

    seen: set[str] = set()

    def walk(value: Any, plain: str, exact: str) -> Iterator[tuple[str, Any]]:
        if not isinstance(value, Mapping) or not value:
            path = plain if plain not in seen and _leads(content, plain, value) else exact
            seen.add(path)
            yield path, value
            return
        for key, inner in value.items():
            name = str(key)
            yield from walk(inner, f"{plain}.{name}" if plain else name, f"{exact}[{json.dumps(name, ensure_ascii=False)}]")

    if isinstance(content, Mapping):
        for key, inner in content.items():
            yield from walk(inner, str(key), f"[{json.dumps(str(key), ensure_ascii=False)}]")


def _leads(content: Any, path: str, value: Any) -> bool:
    try:
        return find(content, path) is value
    except ValueError:
        return False  # no path at all


def first(content: Any, paths: Sequence[str]) -> Any:
    """What is at the first of `paths` that leads to a number; None where none does."""
    for path in paths:
        found = _find(content, path)
        if isinstance(found, (int, float)) and not isinstance(found, bool):
            return found
    return None
