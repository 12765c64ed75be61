"""What entries of rings' directories name. Processes of one program name the same Tabs, each in its own ring: here they are the same."""

from __future__ import annotations

from typing import NamedTuple

from taba import ring as layouts
from taba.batch import Meaning
from taba.ring import BadEntry

MAX_KNOWN_ENTRIES, MAX_KNOWN_BYTES = 16_384, 256  # of each of two generations, and of an entry: 10 MiB of short names, 40 of the longest

LONG_BYTES = 256  # of an entry take as long to look at as all else of it


class Tab(NamedTuple):
    """One entry of a ring's directory that may be forwarded."""

    name: str
    type: str
    cell: int | None = None  # where in the segment its cell lies, if it heals
    meaning: Meaning | None = None  # its unit and description, where its application gave one
    is_overflow: bool = False  # it stands for others of its base name, of which there are too many


class Known:
    """The Tabs of entries without a cell, by their bytes: what many rings name is looked at once, and there once.

    What was asked for lately is kept: when one generation is full, the one before it is forgotten.
    """

    def __init__(self) -> None:
        self.spent = 0
        """For how many short names those stand, beside themselves, that were looked at since whoever asks set it to 0."""
        self._fresh: dict[bytes, Tab | None] = {}
        self._older: dict[bytes, Tab | None] = {}

    def tab(self, entry: bytes) -> Tab | None:
        """The Tab, under its own name; None where it breaks the rules."""
        try:
            return self._fresh[entry]
        except KeyError:
            pass
        if len(self._fresh) >= MAX_KNOWN_ENTRIES:
            self._older, self._fresh = self._fresh, {}
        if entry in self._older:
            found = self._older[entry]
        else:
            found = tab_of(entry, None)
            self.spent += costs(entry, found)
        if len(entry) <= MAX_KNOWN_BYTES:
            self._fresh[entry] = found
        return found


def costs(entry: bytes, tab: Tab | None) -> int:
    """As long as how many more short names it took to look at this one: a long one by its length, an escaped or bad one by its labels."""
    return len(entry) // LONG_BYTES + (entry.count(b'="') if tab is None or b"\\" in entry else 0)


def tab_of(entry: bytes, cell: int | None) -> Tab | None:
    """The Tab that an entry names, under its own name; None where it breaks the rules."""
    found = layouts.parse_entry(entry)
    if isinstance(found, BadEntry):
        return None
    meaning = Meaning(found.name, found.unit, found.description) if found.unit or found.description else None
    return Tab(found.name, found.type, cell, meaning)
