"""What Handlers answered for rows whose cycle did not wait for it, or has to be tried again: kept until it is asked for again.

A row is known by its State's name and bytes and by its Events: where any of them is another, it is folded anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from taba.bounds import MiB
from taba.server.work.child import pack
from taba.server.work.errand import Errand
from taba.server.work.rows import Failed, Folded, ForeignWork, nothing_folded, run_of

KEEP_SECONDS = 60.0  # an answer: whoever sends the Events again does so within seconds
MAX_BYTES = 64 * MiB  # of answers: as many as a few cycles have; what is pushed out is folded again
ROW_BYTES = 200  # what a row takes beside its State


class _Answer(NamedTuple):
    """What became of one row; `wants`: it needs further parts."""

    state: bytes | None
    parts: list[bytes] | None
    failed: Failed | None
    spoiled: list[tuple[Failed, list[int]]]
    wants: bool

    @property
    def size(self) -> int:
        places = sum(len(places) for _, places in self.spoiled)
        whys = [failed for failed, _ in self.spoiled] + ([self.failed] if self.failed is not None else [])
        return ROW_BYTES + len(self.state or b"") + sum(map(len, self.parts or ())) + 8 * places + sum(len(why.detail) for why in whys)


class Answers:
    """Answers by all that a row is folded from. Pure: `now` is monotonic."""

    def __init__(self) -> None:
        self._kept: dict[bytes, tuple[float, _Answer]] = {}  # oldest first
        self.bytes = 0

    def keep(self, errand: Errand, now: float) -> None:
        """Keep what there is of an errand."""
        folded, wanted = errand.folded, set(errand.wanted)
        for row in errand.done if errand.foreign.work.names else ():
            answer = _Answer(
                folded.states.get(row), folded.parts.get(row), folded.failed.get(row), folded.spoiled.get(row, []), row in wanted
            )
            key = _key(errand.foreign, row)
            self._drop(key)
            self._kept[key] = (now, answer)
            self.bytes += answer.size
        while self.bytes > MAX_BYTES:
            self._drop(next(iter(self._kept)))

    def of(self, foreign: ForeignWork, now: float) -> tuple[Folded, list[int], ForeignWork]:
        """What is known of a work, the rows that are known to want further parts, and what is left of it."""
        folded, wanted, known = nothing_folded(), [], set()
        while self._kept and next(iter(self._kept.values()))[0] <= now - KEEP_SECONDS:
            self._drop(next(iter(self._kept)))
        if self._kept and foreign.work.names:
            for row in dict.fromkeys(row for row, _, _ in foreign.work.columns):
                key = _key(foreign, row)
                _, answer = self._kept.pop(key, (None, None))
                if answer is not None:
                    self._kept[key] = (now, answer)  # whoever comes again and again waits for others, too
                    known.add(row)
                    _add(folded, row, answer)
                    if answer.wants:
                        wanted.append(row)
        left = [column for column in foreign.work.columns if column[0] not in known] if known else foreign.work.columns
        return folded, wanted, foreign._replace(work=foreign.work._replace(columns=left))

    def forget(self) -> None:
        """Have everything folded anew."""
        self._kept.clear()
        self.bytes = 0

    def _drop(self, key: bytes) -> None:
        _, answer = self._kept.pop(key, (None, None))
        if answer is not None:
            self.bytes -= answer.size


def _add(folded: Folded, row: int, answer: _Answer) -> None:
    if answer.state is not None:
        folded.states[row] = answer.state
    if answer.parts is not None:
        folded.parts[row] = answer.parts
    if answer.failed is not None:
        folded.failed[row] = answer.failed
    if answer.spoiled:
        folded.spoiled[row] = answer.spoiled


def _key(foreign: ForeignWork, row: int) -> bytes:
    state, parts, run = foreign.work.states[row], foreign.parts.get(row), run_of(foreign.work, row)
    further: Sequence[Any] | None = None if parts is None else [(part.version, part.dump) for part in parts]
    content = [foreign.type, foreign.work.names[row], state.version, state.dump, further, run.times, run.values]
    return blake2b(pack(content), digest_size=16).digest()
