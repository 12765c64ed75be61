"""What is looked at wherever a value comes in: how deep it is nested, because whatever walks a deeper one recurses, and that it is JSON.

Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from taba.bounds import MAX_VALUE_DEPTH


def is_deeper(value: Any, most: int = MAX_VALUE_DEPTH) -> bool:
    """Whether lists and dictionaries are nested in `value` more than `most` deep; 17 is nested 0 deep, [17] 1. Does not recurse."""
    containers = _containers([value])
    for _ in range(most):
        if not containers:
            return False
        containers = _containers(item for container in containers for item in _items(container))
    return bool(containers)


def no_constant(name: str) -> float:
    """For `parse_constant` of json, which takes NaN and Infinity otherwise. Raises ValueError."""
    raise ValueError(f"{name} is no JSON value")


def _containers(items: Iterable[Any]) -> list[Any]:
    return [item for item in items if isinstance(item, (list, tuple, dict, set, frozenset))]


def _items(container: Any) -> Iterable[Any]:
    return (*container, *container.values()) if isinstance(container, dict) else container
