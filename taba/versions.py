"""Which versions of what travels this program reads and writes, and which one an Agent writes.

1. A Server tells what it reads, in `/v1/status`, and of all Servers in `/v1/servers`; an Agent may send to any of them.
2. An Agent writes the latest version of its own that all of them read. So either side is upgraded first, one process after another.
3. Where none fits it writes its latest, says so, and keeps what it wrote: nothing is refused for its version.
4. A batch's bytes never change. What was written in a version waits until a Server reads that: who steps back must know it, and is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

MAX_TOLD = 16  # versions of one thing that a Server tells; more are nonsense


class Versions(NamedTuple):
    """Of batches and of envelopes, the latest first."""

    batches: tuple[int, ...]
    envelopes: tuple[int, ...]

    def told(self) -> dict[str, list[int]]:
        """What a status has of it."""
        return {"batch_versions": [*self.batches], "envelope_versions": [*self.envelopes]}


HERE = Versions(batches=(4,), envelopes=(2,))
"""What this program reads, and can write."""


class Chosen(NamedTuple):
    """What an Agent writes; `problem` says where some Server does not read it."""

    batch: int
    envelope: int
    problem: str | None = None


def read_told(told: Any) -> Versions:
    """What a Server, or of one `/v1/servers`, says that it reads. Raises ValueError for nonsense."""
    if not isinstance(told, dict):
        raise ValueError("a Server says what it reads")
    return Versions(*(_numbers(told, name, usual) for name, usual in FIRST.told().items()))


FIRST = Versions(batches=(4,), envelopes=(2,))
"""What a Server reads that tells nothing of it."""


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
    return Chosen(found[0], found[1], "; ".join(problems) or None)


def _list(versions: Sequence[int]) -> str:
    return ", ".join(map(str, versions))


def _numbers(told: dict[Any, Any], name: str, usual: list[int]) -> tuple[int, ...]:
    numbers = told.get(name, usual)
    if not isinstance(numbers, list) or not 1 <= len(numbers) <= MAX_TOLD or not all(type(number) is int for number in numbers):
        raise ValueError(f"{name}: {numbers!r}"[:200])
    return tuple(sorted(numbers, reverse=True))
