"""States that were folded as bytes, in C, instead of as arrays."""

from __future__ import annotations

from taba.codes import Ints


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
