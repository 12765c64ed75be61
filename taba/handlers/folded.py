"""States that were folded as bytes, in C, instead of as arrays."""

from __future__ import annotations


class FoldedDumps:
    """Main parts as bytes, after a fold: how many slots each journal has, and when it was."""

    __slots__ = ("dumps", "now", "slots")

    def __init__(self, dumps: list[bytes], slots: list[int], now: float):
        self.dumps, self.slots, self.now = dumps, slots, now
