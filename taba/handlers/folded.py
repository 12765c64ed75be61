"""States that were folded as bytes, in C, instead of as arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from taba.codes import Floats, Ints, codes_of
from taba.handlers.ragged import by_rows

_NONE = np.zeros(0, dtype=np.int64)


class FoldedDumps:
    """Main parts as bytes, after a fold: how many slots each journal has, when it was, and how many bytes of a frame stand before each."""

    __slots__ = ("dumps", "framed", "now", "slots")

    def __init__(self, dumps: list[bytes], slots: Ints, now: float, framed: int = 0):
        self.dumps, self.slots, self.now, self.framed = dumps, slots, now, framed

    def bare(self, rows: list[int]) -> list[bytes]:
        """The main parts of these rows without their frames."""
        return [self.dumps[row][self.framed :] for row in rows]

    def replace(self, rows: list[int], dumps: list[bytes]) -> None:
        """Have these bare main parts in those rows."""
        for row, dump in zip(rows, dumps, strict=True):
            self.dumps[row] = self.dumps[row][: self.framed] + dump


def fold_binned(
    fold: Callable[..., Any] | None,
    dumps: list[bytes],
    rows: Ints,
    times: Floats,
    values: Floats,
    now: float,
    version: int,
    frame: bytes,
) -> FoldedDumps | None:
    """What `fold`, of a Handler's part in C that counts values in bins, makes of these; None where that is not to be had."""
    if fold is None or not len(rows):
        return None
    rows, times, values = by_rows(rows, times, values)
    found = fold(dumps, rows, times, values, now, version, frame, b"")
    if found is None and np.count_nonzero(np.isfinite(values)) == len(values):  # a value so near the end of a bin that numpy decides
        found = fold(dumps, rows, times, values, now, version, frame, codes_of(values))
    return None if found is None else FoldedDumps(found[0], np.frombuffer(found[1], np.int32), now, len(frame))


class InC:
    """What a plain Handler has beside its `fold` where C folds its States from bytes to bytes, as those of array Handlers."""

    further_parts = 0
    in_c: ClassVar[Callable[..., Any] | None] = None  # the function of that part; None where it was not built

    def fold_dumps(
        self, dumps: list[bytes], rows: Ints, times: Floats, values: Floats, now: float, version: int = 0, frame: bytes = b""
    ) -> FoldedDumps | None:
        """What `fold` would make of each, as dumps; see CounterGroup's."""
        if self.in_c is None or not len(rows):
            return None
        rows, times, values = by_rows(rows, times, values)
        found = self.in_c(dumps, rows, times, values, now, version, frame)
        return None if found is None else FoldedDumps(found[0], np.frombuffer(found[1], np.int32), now, len(frame))

    def spilling(self, states: FoldedDumps) -> Ints:
        return _NONE

    def dump_array(self, states: FoldedDumps) -> list[bytes]:
        return states.dumps
