"""Which versions of what travels, and of what a store holds, this program reads and writes; and which one an Agent writes.

1. A Server tells what it reads, in `/v1/status`, and of all Servers in `/v1/servers`; an Agent may send to any of them.
2. An Agent writes the latest version of its own that all of them read. So either side is upgraded first, one process after another.
3. Where none fits it writes its latest, says so, and keeps what it wrote: nothing is refused for its version.
4. Events are folded at the edge, before they travel, only to States of Types and versions that all of them merge.
5. A batch's bytes never change. What was written in a version waits until a Server reads that: who steps back must know it, and is told.
6. A store says in which version it is written, and every Server writes that one, whatever it could. A person raises it (`taba store
   --upgrade`) once all Servers read the next: until then each of them may step back. A Server that does not read it says so and ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

MAX_TOLD = 16  # versions of one thing that a Server tells; more are nonsense
MAX_TOLD_EDGES = 256  # Types of which a Server tells; more than Taba will ever have of its own

Edges: TypeAlias = tuple[tuple[str, int], ...]  # of Types the version of States that are folded at the edge


class Versions(NamedTuple):
    """Of batches, of envelopes and of stores, the latest first; and of which Types States that were folded at the edge are merged."""

    batches: tuple[int, ...]
    envelopes: tuple[int, ...]
    edges: Edges = ()
    stores: tuple[int, ...] = (3,)

    def told(self) -> dict[str, Any]:
        """What `/v1/servers` has of it; a status, which tells of each Handler, without `edges`."""
        told: dict[str, Any] = {"batch_versions": [*self.batches], "envelope_versions": [*self.envelopes]}
        told["store_versions"] = [*self.stores]
        return {**told, "edges": dict(self.edges)} if self.edges else told


HERE = Versions(batches=(5,), envelopes=(2,), stores=(3,))
"""What this program reads, and can write."""


class Chosen(NamedTuple):
    """What an Agent writes; `problem` says where some Server does not read it. `edges`: what it may fold."""

    batch: int
    envelope: int
    problem: str | None = None
    edges: Edges = ()


def read_told(told: Any) -> Versions:
    """What a Server, or of one `/v1/servers`, says that it reads. Raises ValueError for nonsense."""
    if not isinstance(told, dict):
        raise ValueError("a Server says what it reads")
    batches, envelopes, stores = (_numbers(told, name, usual) for name, usual in FIRST.told().items())
    return Versions(batches, envelopes, _edges(told), stores)


FIRST = Versions(batches=(5,), envelopes=(2,), stores=(3,))
"""What a Server reads that tells nothing of it."""


def raised(own: Versions, servers: Iterable[tuple[str, Versions]], now: int) -> int:
    """The version that a store of version `now` may be raised to: the latest that `own` and all `servers` read, by address; `now` where
    that is it. Raises ValueError where that is none, or would be lower, with the Server that is in the way.
    """
    known = [("this command", own), *servers]
    common = set(own.stores).intersection(*(versions.stores for _, versions in known))
    latest = max(common, default=0)
    if latest < now:
        where, versions = next((one for one in known if now not in one[1].stores), known[0])
        raise ValueError(f"{where} reads stores of version {_list(versions.stores)}, and this one is of version {now}: upgrade that first")
    return latest


def choose(own: Versions, servers: Iterable[tuple[str, Versions]]) -> Chosen:
    """What an Agent that can write `own` writes to all of these Servers, given by address with what they read."""
    known = list(servers)
    problems: list[str] = []
    found = []
    for what, mine, theirs in (
        ("batches", own.batches, [(url, read.batches) for url, read in known]),
        ("envelopes", own.envelopes, [(url, read.envelopes) for url, read in known]),
    ):
        fits = [version for version in mine if all(version in versions for _, versions in theirs)]
        found.append(fits[0] if fits else mine[0])
        if not fits:
            url, versions = next((one for one in theirs if not set(one[1]) & set(mine)), theirs[0])
            problems.append(
                f"{what} are written here in version {_list(mine)}, and not all Servers read one of these: {url} reads {_list(versions)};"
                " what is recorded waits in outbox and spool: upgrade the older side"
            )
    edges = tuple(edge for edge in own.edges if known and all(edge in read.edges for _, read in known))
    return Chosen(found[0], found[1], "; ".join(problems) or None, edges)


def _list(versions: Sequence[int]) -> str:
    return ", ".join(map(str, versions))


def _edges(told: dict[Any, Any]) -> Edges:
    """What is merged, as `/v1/servers` tells it, or a status, which has it beside each Handler."""
    edges = told.get("edges")
    handlers = told.get("handlers")
    if edges is None and isinstance(handlers, dict):
        edges = {type: about.get("edge") for type, about in handlers.items() if isinstance(about, dict) and about.get("edge") is not None}
    if edges is None:
        return ()
    if not isinstance(edges, dict) or len(edges) > MAX_TOLD_EDGES:
        raise ValueError(f"edges: {edges!r}"[:200])
    if not all(isinstance(name, str) and type(edge) is int for name, edge in edges.items()):
        raise ValueError(f"edges: {edges!r}"[:200])
    return tuple(sorted(edges.items()))


def _numbers(told: dict[Any, Any], name: str, usual: list[int]) -> tuple[int, ...]:
    numbers = told.get(name, usual)
    if not isinstance(numbers, list) or not 1 <= len(numbers) <= MAX_TOLD or not all(type(number) is int for number in numbers):
        raise ValueError(f"{name}: {numbers!r}"[:200])
    return tuple(sorted(numbers, reverse=True))
