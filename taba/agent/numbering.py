"""Tabs by number: what a drain needs of each, once for all rings that name it. Pure.

1. A number is given at first sight. Of a Tab it tells the section, which is a bucket and a Type, and the name; a ring's places are numbers.
2. It is taken back some time after the last open ring that names the Tab is gone: there are as many as there are Tabs, and what waits.
3. Equal Tabs may have two numbers: what is looked up is bounded, and forgotten at once.
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taba.agent.entries import Tab
from taba.batch import pack_bin
from taba.names import bucket_of

MAX_CACHED_BUCKETS = 65_536  # names whose bucket is remembered, and Tabs whose number is
MAX_SECTIONS = 262_144  # pairs of bucket and Type that are known by a number; with more all is numbered anew
TIDIED = 4096  # numbers that one drain looks at whether they may be taken back: 2 ms

UNKNOWN, SUMMED, HELD_BACK = 0, 1, 2  # sections that are none: events of no Tab, of Tabs that heal, and of clients that are left out
NO_TAB, HEALS = 0, 1  # numbers of places that go into the first two


class Numbers:
    """The numbers of one Drain. `buckets` is the store's number of them."""

    def __init__(self, buckets: int):
        self.buckets = buckets
        self.sections: list[tuple[int, str]] = [(0, "")] * (HELD_BACK + 1)
        """By number of a section its bucket and Type."""
        self.names = ["", ""]
        """By number of a Tab its name."""
        self.section_of: NDArray[np.int32] = np.zeros(64, np.int32)
        self.is_overflow: NDArray[np.bool_] = np.zeros(64, np.bool_)
        """By number of a Tab, whether it stands for others: its column may be that of another Client."""
        self.section_of[HEALS] = SUMMED
        self._held: NDArray[np.int32] = np.zeros(64, np.int32)  # places of open rings that have each
        self._tabs: list[Tab | None] = [None, None]
        self._free: list[int] = []
        self._let_go: deque[NDArray[np.uint32]] = deque()  # that had no place, when they came here
        self._known: dict[Tab, int] = {}
        self._section_numbers: dict[tuple[int, str], int] = {}
        self._cache: dict[str, int] = {}

    @property
    def is_full(self) -> bool:
        """Whether there are so many sections that others are to take the place of these numbers."""
        return len(self._section_numbers) > MAX_SECTIONS

    @property
    def tabs(self) -> int:
        """How many have a number."""
        return len(self.names) - len(self._free) - 2

    def bucket(self, name: str) -> int:
        """The bucket of a Tab, remembered."""
        found = self._cache.get(name)
        if found is None:
            if len(self._cache) >= MAX_CACHED_BUCKETS:
                self._cache.clear()
            found = self._cache[name] = bucket_of(name, self.buckets)
        return found

    def number(self, tab: Tab) -> int:
        """That of a Tab; it is to be held by a place before the next `tidy`."""
        found = self._known.get(tab)
        return self._give(tab) if found is None else found

    def _give(self, tab: Tab) -> int:
        key = self.bucket(tab.name), tab.type
        section = self._section_numbers.get(key)
        if section is None:
            section = self._section_numbers[key] = len(self.sections)
            self.sections.append(key)
        if self._free:
            number = self._free.pop()
            self.names[number], self._tabs[number] = tab.name, tab
        else:
            number = len(self.names)
            if number == len(self.section_of):
                self.section_of = np.concatenate((self.section_of, np.zeros(number, np.int32)))
                self.is_overflow = np.concatenate((self.is_overflow, np.zeros(number, np.bool_)))
                self._held = np.concatenate((self._held, np.zeros(number, np.int32)))
            self.names.append(tab.name)
            self._tabs.append(tab)
        self.section_of[number], self.is_overflow[number] = section, tab.is_overflow
        if len(self._known) >= MAX_CACHED_BUCKETS:
            self._known.clear()
        self._known[tab] = number
        return number

    def hold(self, numbers: NDArray[np.uint32]) -> None:
        """So many more places have these."""
        np.add.at(self._held, numbers, 1)

    def let_go(self, numbers: NDArray[np.uint32]) -> None:
        """These places are gone."""
        np.subtract.at(self._held, numbers, 1)
        if len(gone := numbers[self._held[numbers] <= 0]):
            self._let_go.append(gone)

    def tidy(self, most: int = TIDIED) -> None:
        """Take back some of the numbers that no place has."""
        while self._let_go and most > 0:
            gone = self._let_go.popleft()
            if len(gone) > most:
                self._let_go.appendleft(gone[most:])
                gone = gone[:most]
            most -= len(gone)
            for number in gone[self._held[gone] <= 0].tolist():  # others were named again meanwhile
                tab = self._tabs[number]
                if tab is None:  # it stood there twice, or is of no Tab
                    continue
                if self._known.get(tab) == number:
                    del self._known[tab]
                self._tabs[number], self.names[number] = None, ""
                self._free.append(number)

    def fields(self, clients: list[tuple[bytes, bytes]], of: Any, numbers: Any, edges: Any, native: Any) -> list[bytes]:
        """The fields, one after the other, of the columns from each of `edges` to the next: of those of these `numbers`, each of the one
        of `clients`, own and of its overflow Tabs, that `of` says."""
        if native is not None:
            joined: list[bytes] = native.join_fields(self.names, clients, self.is_overflow, of, numbers, edges)
            return joined
        names, bounds = self.names, edges.tolist()
        each = zip(of.tolist(), numbers.tolist(), self.is_overflow[numbers].tolist(), strict=True)
        fields = [pack_bin(b"%s\0%s" % (names[number].encode(), clients[of][is_overflow])) for of, number, is_overflow in each]
        return [b"".join(fields[start:end]) for start, end in pairwise(bounds)]


class Places:
    """The number of each Tab of a ring, beside its directory."""

    __slots__ = ("clients", "known", "numbers", "of")

    def __init__(self, numbers: Numbers, clients: tuple[str, str]):
        self.of = numbers
        self.clients = clients[0].encode(), clients[1].encode()  # of its own Tabs, and of those that stand for others
        self.known = 0
        self.numbers: NDArray[np.uint32] = np.zeros(0, np.uint32)

    def add(self, numbers: list[int]) -> None:
        """Those of the next places."""
        more = np.array(numbers, np.uint32)
        needed = self.known + len(more)
        if needed > len(self.numbers):  # a part more than is needed, for the next
            grown = np.zeros(needed + needed // 8, np.uint32)
            grown[: self.known] = self.numbers[: self.known]
            self.numbers = grown
        self.numbers[self.known : needed] = more
        self.known = needed
        self.of.hold(more)

    def close(self) -> None:
        """The ring is let go of."""
        self.of.let_go(self.numbers[: self.known])
        self.numbers, self.known = self.numbers[:0], 0
