"""The Tabs of one ring, as its directory names them: read a part at a time, and each decided on, once, whether it keeps its name.

All of it is hostile: sizes, counts and names are checked. What a part costs is bounded; what is recorded for a Tab whose name was not
read yet waits in the ring.
"""

from __future__ import annotations

import os
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from taba import ring as layouts
from taba.agent.admission import Admission
from taba.agent.entries import Tab, tab_of
from taba.batch import Meaning
from taba.bounds import KiB
from taba.ring import Layout, MalformedRing

MAX_RING_TABS = 1 << 20  # of which the Agent knows more than that there are too many: each costs 20 bytes at least
MAX_FRESH_TABS = 512  # names that are read at once: 2 ms where others have them, too, else 6
FRESH_BYTES = 256 * KiB  # that are read at once: several times the longest name with its description
MAX_RING_SUMS = 16_384  # Tabs of a ring that heal, and are looked at each time
NO_TAB = np.uint32(2**32 - 1)  # in place of one: what is recorded for it is dropped and counted


class Directory:
    """The directory of the ring behind `fd`, of the layout `where`, whose Client is `client`.

    `entries` are its Tabs by place, as far as they were read; None for one whose name breaks the rules, or that nothing stands for.
    """

    def __init__(self, fd: int, where: Layout, client: str, admission: Admission):
        self._fd, self._where, self._client, self._admission = fd, where, client, admission
        self.entries: list[Tab | None] = []
        self.untold: dict[int, Meaning] = {}  # `taba.agent.meanings`: by place, what is not known to have been said
        self.is_behind = False  # there are names that were not read yet
        self.published = 0  # how many there are
        self._bytes = 0  # that the entries take
        self._is_admitted = self._is_closed = False  # its Client knows of it; it is let go of
        self._summed: Counter[str] = Counter()  # how many do not go under their own names, by base name
        self._overflows: dict[tuple[str, str], tuple[int, Tab]] = {}  # base name and Type → its first place, and the Tab
        self._sent_as = client
        self.leads: NDArray[np.uint32] | None = None  # by place, which one's column its events go to; None while each has its own
        self._healing = 0

    @property
    def client(self) -> str:
        """Under which client id its overflow Tabs go: its own, or the one for all that are too many."""
        self._admit()
        return self._sent_as

    @property
    def overflowing(self) -> int:
        """How many of its Tabs do not go under their own names."""
        return sum(self._summed.values())

    def read(self, most: int = MAX_FRESH_TABS) -> int:
        """Take up what is new, at most so many names and MAX_FRESH_TABS; of those that take longer, fewer. Returns how many they were, or
        what they took of `most`. Raises MalformedRing."""
        words = os.pread(self._fd, 16, layouts.DIRECTORY_COUNT_OFFSET)
        if len(words) != 16:
            raise MalformedRing("truncated")
        self.published, used = layouts.parse_directory_words(words, self._where)
        fresh = min(self.published, MAX_RING_TABS) - len(self.entries)
        unread = used - self._bytes
        if fresh <= 0 or unread <= 0 or most <= 0:
            self.is_behind = fresh > 0 and unread > 0
            return 0
        length, begin = min(unread, FRESH_BYTES), self._where.directory_offset + self._bytes
        content = os.pread(self._fd, length, begin)
        split, taken = layouts.split_directory(content, min(fresh, most, MAX_FRESH_TABS), length < unread)
        self._admit()
        entries, admission, known = self.entries, self._admission, self._admission.known
        admit = admission.admitter(self._client)
        known.spent = at = read = 0
        for entry, cell in split:
            if read + known.spent >= most and read:  # names that took longer than others
                taken = at
                break
            read += 1
            at += len(entry) if cell is None else len(entry) + layouts.CELL_BYTES
            at += -at % 8
            tab = known.tab(entry) if cell is None else tab_of(entry, begin + cell)
            if tab is None:
                entries.append(None)
            elif self._heals_under_its_name() if cell is not None else admit(tab.name):
                if tab.meaning is not None:
                    self.untold[len(entries)] = tab.meaning
                entries.append(tab)
            else:
                self._sum_up(len(entries), tab)
        if self.leads is not None:
            self._fit(len(self.entries) - 1)
        self._bytes += taken
        self.is_behind = read < fresh
        return read + known.spent

    def close(self) -> None:
        """The ring is let go of."""
        if self._is_admitted and not self._is_closed:
            own = (None if tab is None or tab.cell is not None or tab.is_overflow else tab.name for tab in self.entries)
            self._admission.end(self._client, own, self._summed)
        self._is_closed = True

    def _admit(self) -> None:
        """Have its Client decided on, once."""
        if not self._is_admitted and not self._is_closed:
            self._is_admitted = True
            self._admission.begin(self._client)
            self._sent_as = self._admission.client_of(self._client)

    def _heals_under_its_name(self) -> bool:
        self._healing += 1
        return self._admission.heals_under_its_name(self._client, self._healing - 1)

    def _sum_up(self, place: int, named: Tab) -> None:
        """Give a Tab that is one too many the one that stands for it."""
        base = named.name.partition("{")[0]
        if named.cell is None and (known := self._overflows.get((base, named.type))) is not None:  # nearly all, of very many
            first, tab = known
            self._summed[base] += 1
            self._admission.count(self._client, base)
            self.entries.append(tab)
            self._fit(place)[place] = first
            return
        name = None
        if named.cell is None or self._healing <= MAX_RING_SUMS:
            name = self._admission.overflow(self._client, base, named.type, heals=named.cell is not None)
        self._summed[base if name is not None else ""] += 1
        self._admission.count(self._client, base if name is not None else "")
        if name is None:
            self.entries.append(None)
            self._fit(place)[place] = NO_TAB
            return
        tab = Tab(name, named.type, named.cell, None, True)
        self.entries.append(tab)
        if named.cell is None:  # of those that heal each has a sum of its own in the ring
            self._overflows[base, named.type] = place, tab
            self._fit(place)[place] = place

    def _fit(self, place: int) -> NDArray[np.uint32]:
        """`leads`, with this place in it."""
        leads = self.leads
        if leads is None or place >= len(leads):
            grown = np.arange(max(1024, 2 * place), dtype=np.uint32)
            if leads is not None:
                grown[: len(leads)] = leads
            self.leads = leads = grown
        return leads
