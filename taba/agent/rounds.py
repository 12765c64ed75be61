"""How far apart drains are, and whether a round of all rings is one drain or several: by what the last ones had. Pure: time is passed in.

What a Server and its store do for a column costs the same whatever is in it, and what they do for a batch likewise. So drains are as far
apart as promises allow; and as what comes at once waits for all that came with it, a wide round is drained in parts, each of some of the
rings, of which each is read as often as if all were read together: in as many columns.
"""

from __future__ import annotations

from collections.abc import Iterable

DRAIN_SECONDS = 0.25  # an event is on its way within this: a quarter of what P7 allows
WIDE_DRAIN_SECONDS = 0.65  # … after one of WIDE_BATCHES: each costs by what it is more than by what is in it, for whoever has it
WIDE_BATCHES = 256  # of a drain: half of the buckets that a store mostly has
DRAIN_COLUMNS = 60_000  # a second, about, as many as drains may well have: each costs a Server, and the store, whatever is in it …
FULL_DRAIN_SECONDS = 1.0  # … but after more than that, too, the next drain comes within this …
WIDEST_DRAIN_SECONDS = 2.0  # … or within this, where columns have so many Events that they become fewer the more are drained together
WIDENING_EVENTS = 2.0  # a column, for each second of that
IDLE_DRAIN_SECONDS = 1.0  # while the looks find nothing in any ring: then a drain is for what stands beside records
BUSY_DRAIN_SECONDS = 1.5  # while Servers have not applied half of the last round: fewer and larger batches …
BUSY_SHARE = 1.25  # … and of the pause that there is without that, where that is more
PART_COLUMNS = 25_000  # a round that had so many times this is drained in so many parts, each as much sooner after the last one, …
MOST_PARTS = 4  # … but not in more: each has a batch for nearly every bucket


class Rounds:
    """What the last drains had, and what follows from it. `published` and `ended` are told of each."""

    def __init__(self) -> None:
        self.batches = 0  # of the last drain that had any
        self.columns = self.read = 0  # columns of the last round, or of one that has more already, and Events that it read
        self.is_cut = False  # the last drain left something of its round
        self.is_between = False  # … and it was only that others have their part of it later
        self.parts = 1  # of the round that goes on
        self._so_far = 0, 0  # columns of the round that goes on, and Events
        self._rings: tuple[str, ...] = ()  # that there were as it began

    def wait(self, parts: int, has_records: bool, is_busy: bool) -> float:
        """Seconds from the last drain to the next one, of so many parts. After a round in parts also a whole one comes as soon as its
        next part would have: else those who were first had to wait for longer than a pause."""
        return self.pause(has_records, is_busy) / max(parts, self.parts)

    def pause(self, has_records: bool, is_busy: bool = False) -> float:
        """Seconds from one round to the next, while no ring fills. `has_records`: some ring has any; `is_busy`: Servers lag behind."""
        if not has_records:
            pause = IDLE_DRAIN_SECONDS
        else:
            least = WIDE_DRAIN_SECONDS if self.batches >= WIDE_BATCHES else DRAIN_SECONDS
            widened = self.read / (WIDENING_EVENTS * max(1, self.columns))  # a column of one Event is as many later
            most = min(WIDEST_DRAIN_SECONDS, max(FULL_DRAIN_SECONDS, widened))
            pause = max(least, min(most, self.columns / DRAIN_COLUMNS))
        return max(BUSY_DRAIN_SECONDS, BUSY_SHARE * pause) if is_busy else pause

    def parts_of_next(self, has_records: bool, rings: int) -> int:
        """Of how many parts the next drain is one: as many as its round has, or as one of so many rings is to have that begins with it."""
        if self.is_between:
            return self.parts
        parts = min(MOST_PARTS, self.columns // PART_COLUMNS, rings)
        if not has_records or parts < 2:
            return 1
        each = -(-rings // parts)
        return -(-rings // each)  # of five rings, two each, it is three parts and not four: else the round was over before its pause

    def begin(self, parts: int, rings: Iterable[str]) -> None:
        """A drain of so many parts of a round of these rings begins."""
        self.parts, self._rings = parts, tuple(rings)

    def is_of(self, rings: Iterable[str]) -> bool:
        """Whether the round that goes on is of these rings: with others there, nobody knows whose turn it is."""
        return tuple(rings) == self._rings

    def published(self, batches: int, columns: int, read: int) -> None:
        """A drain had these batches, of so many columns and Events."""
        before = self._so_far
        self.batches, self._so_far = batches, (before[0] + columns, before[1] + read)

    def ended(self, is_cut: bool, may_wait: bool) -> None:
        """It has ended, and left something; what it left `may_wait` until the next part."""
        columns, read = self._so_far
        if columns and (not may_wait or columns > self.columns):
            self.columns, self.read = columns, read
        if not is_cut:
            self._so_far = 0, 0
        self.is_cut, self.is_between = is_cut, may_wait

    def give_up(self) -> None:
        """The next drain is of all rings, whose turn it ever is."""
        self.is_cut = self.is_between = False
        self._so_far = 0, 0
