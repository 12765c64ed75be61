"""What all rings' reads share: their memory, and how much one look, one drain and one turn may read of all rings together."""

from __future__ import annotations

from typing import Any

import numpy as np

from taba.agent.arenas import Arena
from taba.agent.directory import MAX_FRESH_TABS
from taba.agent.native import NATIVE
from taba.ring import RECORD_BYTES

MAX_CHUNK = 4096  # records whose commit words are looked at by one read: fits a second-level cache, and most of it is there
LOOKS = 2**19  # of all rings together: 12 MiB, as many as a drain takes, some 5 ms
FINDS = 2**18  # records of dead rings, by one drain, in which there is nothing: 6 MiB
TURN_VALUES = 16_384  # values that are no floats, in one turn: each is made by itself


class Scratch:
    """Buffers that all rings' reads share, so that a drain touches the same memory again and again. `native`: what counts, if anything.

    Records are read behind the first `begin`, which stay.
    """

    def __init__(self, native: Any = NATIVE) -> None:
        self.native = native
        self.begin = 0
        self._numbers: list[Any] = [np.zeros(0, np.uint32), np.zeros(0, np.uint32), np.zeros(0, np.int64)]
        self._boxes = np.empty((1 + TURN_VALUES, 3), np.int64)  # as `count` of the C part has it
        self.fresh_tabs = MAX_FRESH_TABS  # that may still be read of directories before the next drain
        self.looks, self.finds, self.values = LOOKS, FINDS, TURN_VALUES  # what is left of each
        self.commits = bytearray(MAX_CHUNK * RECORD_BYTES)
        self._arena = Arena(MAX_CHUNK * RECORD_BYTES)

    @property
    def records(self) -> memoryview:
        """All of them."""
        return self._arena.view

    def begin_drain(self) -> None:
        """What was read before is needed no more."""
        self._arena.begin()

    def fit(self, records: int) -> memoryview:
        """Have room for so many records; what is returned has them behind the first `begin`."""
        end, begin = (self.begin + records) * RECORD_BYTES, self.begin * RECORD_BYTES
        if len(self.records) < end:
            grown = Arena(max(end, 2 * begin))
            grown.view[:begin] = self.records[:begin]
            self._arena = grown
        self._arena.reach(end)
        return self.records

    def here(self, records: int) -> memoryview:
        """So many records behind the first `begin`."""
        return self.records[self.begin * RECORD_BYTES : (self.begin + records) * RECORD_BYTES]

    def slots(self, known: int) -> Any:
        """A zero (uint32) for each of so many Tabs, or more: zeros again when whoever uses them is done."""
        if known > len(self._numbers[0]):
            room = max(known, 2 * len(self._numbers[0]))
            self._numbers = [np.zeros(room, np.uint32), np.empty(room, np.uint32), np.empty(room, np.int64)]
        return self._numbers[0]

    def count(
        self, records: int, pieces: tuple[tuple[int, int | None], ...], known: int, where: tuple[int, int, int] | None = None
    ) -> tuple[Any, Any, Any] | None:
        """The Tabs of so many records behind `begin`, in order, how many each has, and a row (its record, how far ahead of the tail it
        begins, its bytes) for each value that lies in the byte ring; None where one is not plain, or has no place below `known`.

        `pieces`: (how many of them, their lap, or None) one after the other. `where`: the byte tail, how long a value may be, and how many
        bytes the ring has; where that is not said, one that lies there is not plain. The rows hold until the next call.
        """
        if known > len(self._numbers[0]):
            self.slots(known)
        counts, tabs, many = self._numbers
        boxes = None
        if where is not None:
            boxes = self._boxes[: 1 + max(0, self.values)]
            boxes[0] = where
        found = self.native.count(self.here(records), pieces, known, counts, tabs, many, boxes)
        if found < 0:
            return None
        return tabs[:found].copy(), many[:found].copy(), boxes[1 : 1 + boxes[0, 0]] if boxes is not None else ()
