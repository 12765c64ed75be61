"""The Bench: everything that is asked of a Handler, whoever wrote it. Only here is asked who that was.

Taba's own Handlers work in this process, all others in a child process (sandbox.py). Nothing here raises for what a Handler does:
a sentence, or a Failed, stands in place of its answer. States come as their parts, the main part first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Generator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from taba.server.keys import Framed
from taba.server.work.folding import fold_in_lots, fold_type
from taba.server.work.keeping import merge_states, prunable_type, upgrade_type
from taba.server.work.knowing import IsLookup
from taba.server.work.pasts import history_type, read_history
from taba.server.work.projecting import aggregate_states, aggregate_type, checked, project_type, render_one, samples_one
from taba.server.work.rows import Folded, Folding, ForeignWork, Parts, Work


class IsSandbox(Protocol):
    """Where Handlers run that are not Taba's own; taba.server.work.sandbox.Sandbox is one."""

    def start(self) -> None: ...
    def fold(self, works: list[ForeignWork], now: float, seconds: float, is_retry: bool) -> Awaitable[list[Folded | list[int]]]: ...
    def forget(self) -> None: ...
    def project(self, type: str, states: Sequence[Any], now: float, detail: bool = False) -> Awaitable[list[Any]]: ...
    def aggregate(self, type: str, projections: Sequence[Any]) -> Awaitable[Any]: ...
    def history(self, type: str, states: Sequence[Any], now: float) -> Awaitable[Any]: ...
    def render(self, type: str, projections: Sequence[Any]) -> Awaitable[list[str]]: ...
    def samples(self, type: str, projections: Sequence[Any]) -> Awaitable[list[Any]]: ...
    def upgrade(self, type: str, states: Sequence[Any], now: float) -> Awaitable[list[list[bytes] | str]]: ...
    def prunable(self, type: str, states: Sequence[Any], now: float) -> Awaitable[list[bool | str]]: ...
    def merge(self, type: str, states: Sequence[Any], now: float) -> Awaitable[list[bytes] | str]: ...


class Beside(NamedTuple):
    """A Type as the store names it; in which version its States that were folded at the edge are merged, if they are; whether it folds
    values one by one, whatever they are; and whether a ring's events come to it as absolutes."""

    wire: bytes
    edge: int | None
    folds_lists: bool
    is_absolute: bool


class Bench:
    """The Handlers that there are, and their work."""

    def __init__(self, lookup: IsLookup, sandbox: IsSandbox):
        self._lookup, self._sandbox = lookup, sandbox
        self.dumping: Mapping[str, bytes | None] = _Dumping(self)
        """Types whose Handlers `folds_dumps`, as the store names them; None for all others."""
        self.beside: Mapping[str, Beside | None] = _Besides(self)
        """Types of Taba's own that an ordinary bucket may have beside arrays; None for all others."""

    def start(self) -> None:
        """Have a process ready before there is work for it, where there will be."""
        if not all(map(self._lookup.own, self._lookup.types)):
            self._sandbox.start()

    def get(self, type: str) -> Any | None:
        """The Handler of `type`, to read its attributes; None where there is none."""
        return self._lookup.get(type)

    def is_array(self, type: str) -> bool:
        """Whether the Handler of `type` folds all States at once."""
        return self._lookup.is_array(type)

    def takes_each(self, type: str) -> bool:
        """Whether the Handler of `type` is Taba's own, and takes each State and each Projection by itself: some milliseconds each."""
        return self._lookup.own(type) and not self._lookup.is_array(type)

    def is_plain_array(self, type: str) -> bool:
        """Whether the Handler of `type` is Taba's own, and its States are small and read many at a time."""
        return self._lookup.own(type) and self._lookup.is_array(type)

    def edge(self, type: str) -> int | None:
        """In which version States of `type` that were folded at the edge are merged here; None where none are."""
        return self._lookup.edge(type)

    def folds_dumps(self, type: str) -> bool:
        """Whether the Handler of `type` is Taba's own, and folds what is kept as it is."""
        return self._lookup.own(type) and getattr(self._lookup.get(type), "fold_dumps", None) is not None

    def may_hang(self, type: str) -> bool:
        """Whether the work of `type` is done elsewhere, and may take as long as the child process has."""
        return not self._lookup.own(type) and self._lookup.get(type) is not None

    def can_merge(self, type: str) -> bool:
        """Whether the Handler of `type` has `merge`."""
        return getattr(self._lookup.get(type), "merge", None) is not None

    def folding(self, type: str, work: Work, now: float) -> Folding:
        """The fold of `work`: yields rows whose further parts it needs, work for `fold_elsewhere`, or a Pause, and returns a Folded."""
        if self._lookup.own(type):
            folding = fold_type if self.folds_dumps(type) else fold_in_lots
            return folding(self._lookup.get(type), self._lookup.is_array(type), work, now)
        return _foreign_folding(type, work)

    async def fold_elsewhere(
        self, works: list[ForeignWork], now: float, seconds: float, is_retry: bool = False
    ) -> list[Folded | list[int]]:
        """For each work that a folding yielded a Folded, or the rows whose further parts its Handler wants; waits at most `seconds`.

        `is_retry`: of Events that were dead letters. Raises HandlerSlow, whose work goes on, and HandlersAway.
        """
        return await self._sandbox.fold(works, now, seconds, is_retry)

    def forget(self) -> None:
        """Have every Event that is folded from now on tried anew, whatever it did before."""
        self._sandbox.forget()

    async def project(self, type: str, states: Sequence[Sequence[Framed]], now: float, detail: bool = False) -> list[Any]:
        """The Projection of each State, or a sentence."""
        if not self._lookup.own(type):
            return [_checked("Projection", answer) for answer in await self._sandbox.project(type, states, now, detail)]
        return project_type(self._lookup.get(type), self._lookup.is_array(type), states, now, detail)

    async def aggregate(self, type: str, projections: Sequence[Any]) -> Any:
        """The Aggregate, or a sentence."""
        if not self._lookup.own(type):
            return _checked("Aggregate", await self._sandbox.aggregate(type, projections))
        return aggregate_type(self._lookup.get(type), projections)

    def aggregate_states(self, type: str, states: Sequence[Sequence[Framed]], groups: Any, total: int, now: float) -> list[Any] | None:
        """The Aggregates of `total` groups of States, without a Projection of each; None where the Type cannot, or a State is amiss."""
        if not (self._lookup.own(type) and self._lookup.is_array(type)):
            return None
        return aggregate_states(self._lookup.get(type), states, groups, total, now)

    async def history(self, type: str, states: Sequence[Sequence[Framed]], now: float) -> Any:
        """The History of States; None where the Type has none; a sentence where there can be none."""
        if not self._lookup.own(type):
            return read_history(await self._sandbox.history(type, states, now), len(states))
        return history_type(self._lookup.get(type), self._lookup.is_array(type), states, now)

    async def render(self, type: str, projections: Sequence[Any]) -> list[str]:
        """Each Projection or Aggregate as one line for people."""
        if not self._lookup.own(type):
            return await self._sandbox.render(type, projections)
        handler = self._lookup.get(type)
        return [render_one(handler, projection) for projection in projections]

    async def samples(self, type: str, projections: Sequence[Any]) -> list[Any]:
        """For each Projection what exporters show, as lists `[suffix, labels, value, kind]`; or a sentence."""
        if not self._lookup.own(type):
            return await self._sandbox.samples(type, projections)
        handler = self._lookup.get(type)
        return [samples_one(handler, projection) for projection in projections]

    async def upgrade(self, type: str, states: Sequence[Sequence[Framed]], now: float) -> list[list[bytes] | str]:
        """The parts of each State as the Handler's version dumps them."""
        if not self._lookup.own(type):
            return await self._sandbox.upgrade(type, states, now)
        return list(upgrade_type(self._lookup.get(type), self._lookup.is_array(type), states, now))

    async def prunable(self, type: str, states: Sequence[Sequence[Framed]], now: float) -> list[bool | str]:
        """Whether each State has nothing more to say."""
        if not self._lookup.own(type):
            return await self._sandbox.prunable(type, states, now)
        return list(prunable_type(self._lookup.get(type), self._lookup.is_array(type), states, now))

    async def merge(self, type: str, states: Sequence[Sequence[Framed]], now: float) -> list[bytes] | str:
        """The parts of the State that is all of `states`."""
        if not self._lookup.own(type):
            return await self._sandbox.merge(type, states, now)
        return merge_states(self._lookup.get(type), self._lookup.is_array(type), states, now)


class _Dumping(dict[str, "bytes | None"]):
    def __init__(self, bench: Bench):
        super().__init__()
        self._bench = bench

    def __missing__(self, type: str) -> bytes | None:
        found = type.encode() if self._bench.folds_dumps(type) else None
        if self._bench.get(type) is not None:  # so that it is bounded: senders choose Types
            self[type] = found
        return found


class _Besides(dict[str, Beside | None]):
    def __init__(self, bench: Bench):
        super().__init__()
        self._bench = bench

    def __missing__(self, type: str) -> Beside | None:
        bench, handler = self._bench, self._bench.get(type)
        if handler is None:
            return None  # not kept: senders choose Types
        is_absolute = bool(getattr(handler, "absolute", False))
        folds_lists = not bench.is_array(type) and not is_absolute
        found = None if bench.may_hang(type) else Beside(type.encode(), bench.edge(type), folds_lists, is_absolute)
        self[type] = found
        return found


def _checked(what: str, answer: Any) -> Any:
    return answer if isinstance(answer, str) else checked(what, answer)


def _foreign_folding(type: str, work: Work) -> Generator[list[int] | ForeignWork, Any, Folded]:
    parts: Parts = {}
    while True:
        result: Folded | list[int] = yield ForeignWork(type, work, parts)
        if isinstance(result, Folded):
            return result
        parts.update((yield result))
