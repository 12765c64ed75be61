"""What the Server's rooms need of taba.shard.Router: one bucket's reads and transactions, and the reads of many."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any, Protocol

from taba.shard.servers.connection import Command as Command


class IsReader(Protocol):
    """What answers questions needs of a Router."""

    @property
    def buckets(self) -> int:
        """How many there are. Raises StoreUnavailable while that is not known."""
        ...

    def read_many(self, reads: Mapping[int, Sequence[Command]]) -> Awaitable[Mapping[int, Sequence[Any]]]:
        """By bucket the replies."""
        ...


class IsRouter(IsReader, Protocol):
    """taba.shard.Router is one; tests have others."""

    def read_many(
        self, reads: Mapping[int, Sequence[Command]], away: MutableMapping[int, str] | None = None
    ) -> Awaitable[Mapping[int, Sequence[Any]]]:
        """By bucket the replies; with `away`, what cannot be had is in there instead, and why."""
        ...

    def read(self, bucket: int, reads: Sequence[Command]) -> Awaitable[list[Any]]:
        """The replies, of one moment."""
        ...

    def transact(self, bucket: int, reads: Sequence[Command], update: Callable[[Any], Any], seconds: float | None = None) -> Awaitable[Any]:
        """Read, hand the replies to `update`, write what it says, and give its result; StoreUnavailable after `seconds`."""
        ...

    def may_join(self, bucket: int) -> bool:
        """Whether it may be in a transaction with other buckets of its server."""
        ...

    def transact_many(
        self, reads: Mapping[int, Sequence[Command]], update: Callable[[Any], Any], seconds: float | None = None
    ) -> Awaitable[dict[int, Any]]:
        """Likewise for several buckets, tried once: by bucket the result, of those that are done; the others go on alone."""
        ...

    def place_of(self, bucket: int) -> str:
        """Which server has it, as far as is known."""
        ...

    def probe(self, bucket: int, seconds: float) -> Awaitable[None]:
        """Raises StoreUnavailable unless its server takes writes within `seconds`."""
        ...
