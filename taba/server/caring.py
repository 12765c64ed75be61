"""What Handlers do for the keeping of States, wherever they run: Taba's own here, others in the child process."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, Protocol

from taba.server.fold import IsLookup
from taba.server.keeping import merge_states, prunable_type, upgrade_type


class IsSandbox(Protocol):
    """Where Handlers run that are not Taba's own; taba.server.sandbox.Sandbox is one."""

    def upgrade(self, type: str, states: Sequence[Any]) -> Awaitable[list[list[bytes] | str]]: ...
    def prunable(self, type: str, states: Sequence[Any], now: float) -> Awaitable[list[bool | str]]: ...
    def merge(self, type: str, states: Sequence[Any]) -> Awaitable[list[bytes] | str]: ...


class Caretaker:
    """Asks the Handler of a Type that has one. States come as their parts, the main part first; a sentence is a failure."""

    def __init__(self, lookup: IsLookup, sandbox: IsSandbox):
        self._lookup, self._sandbox = lookup, sandbox

    async def upgrade(self, type: str, states: Sequence[Any]) -> list[list[bytes] | str]:
        """The parts of each State as the Handler's version dumps them."""
        if not self._lookup.own(type):
            return await self._sandbox.upgrade(type, states)
        return list(upgrade_type(self._lookup.get(type), self._lookup.is_array(type), states))

    async def prunable(self, type: str, states: Sequence[Any], now: float) -> list[bool | str]:
        """Whether each State has nothing more to say."""
        if not self._lookup.own(type):
            return await self._sandbox.prunable(type, states, now)
        return list(prunable_type(self._lookup.get(type), self._lookup.is_array(type), states, now))

    async def merge(self, type: str, states: Sequence[Any]) -> list[bytes] | str:
        """The parts of the State that is all of `states`."""
        if not self._lookup.own(type):
            return await self._sandbox.merge(type, states)
        return merge_states(self._lookup.get(type), self._lookup.is_array(type), states)

    def can_merge(self, type: str) -> bool:
        """Whether the Handler of `type` has `merge`."""
        return getattr(self._lookup.get(type), "merge", None) is not None
