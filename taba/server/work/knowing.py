"""What is known of Types without having their Handlers work."""

from __future__ import annotations

from typing import Any, Protocol


class IsLookup(Protocol):
    """What work needs to know about Handlers; taba.handlers.lookup.Lookup is one."""

    @property
    def types(self) -> list[str]: ...
    def get(self, type: str) -> Any | None: ...
    def own(self, type: str) -> bool: ...
    def is_array(self, type: str) -> bool: ...
    def edge(self, type: str) -> int | None: ...


class KnowsTypes(Protocol):
    """What there is to know of a Type's Handler without having it work; a Bench and a Lookup are such."""

    def get(self, type: str) -> Any | None: ...
    def is_array(self, type: str) -> bool: ...


def further_parts(types: KnowsTypes, type: str) -> int:
    """How many further parts a State of `type` has at the most."""
    return int(types.get(type).further_parts) if types.is_array(type) else 0  # type: ignore[union-attr]
