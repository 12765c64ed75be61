"""How much time passed, by no wall clock: within one boot of the host by its own count, across boots by the store's age.

Where neither tells, no time passed: what waits must not become too old because nobody knows how long it waited.
"""

from __future__ import annotations

from typing import NamedTuple

NO_AGE = 2**32 - 1  # in outbox and spool, in place of an age that is not known


class Moment(NamedTuple):
    """`seconds` since the host booted, sleep included; which `boot` that was (32 bits); the store's `age` in minutes, None where it is
    not known."""

    seconds: float
    boot: int
    age: int | None

    def since(self, before: Moment) -> float:
        """Seconds that passed since `before`, at the least."""
        if self.boot == before.boot:
            return max(0.0, self.seconds - before.seconds)
        if self.age is None or before.age is None:
            return 0.0
        return max(0.0, 60.0 * (self.age - before.age))  # less than 0 where the store went back in time

    def fields(self) -> tuple[float, int, int]:
        """As it is kept; `of_fields` reads it back."""
        return self.seconds, self.boot, NO_AGE if self.age is None else self.age

    @staticmethod
    def of_fields(seconds: float, boot: int, age: int) -> Moment:
        return Moment(seconds, boot, None if age == NO_AGE else age)
