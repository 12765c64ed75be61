"""Where a long fold lets others have their turn: by amount, not by the clock, so that it does wherever it runs. Pure."""

from __future__ import annotations

MOST_AT_ONCE = 200  # columns, or States, of those that each take steps of their own: some 3 ms of each step, 10 where sketches are made
EVENTS = 8  # in lists, of one column, that take about as long as a column does


class Pause:
    """Others have their turn now; whoever yields it is sent nothing."""


PAUSE = Pause()


def amount_of(columns: int, events: int) -> int:
    """What so many columns with so many Events of them come to."""
    return columns + events // EVENTS


class Pace:
    """How much was done since others had their turn."""

    def __init__(self) -> None:
        self._done = 0
        self.is_long = False
        """Whether others had a turn at all: then the steps that come after have one each."""

    def is_due(self, amount: int) -> bool:
        """Whether others have their turn, now that so much more is done."""
        self._done += amount
        if self._done < MOST_AT_ONCE:
            return False
        self._done, self.is_long = 0, True
        return True
