"""Series as they are read: those of one group as one, and together no more than one question may hold."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np

from taba.codes import Floats, Ints
from taba.series import plain
from taba.server.prometheus.catalogue import Series
from taba.server.prometheus.leaf import Leaf
from taba.server.prometheus.vectors import NAME, Bools, Labels, Refused, Spread, Vector, grouped, key_of, without

MAX_VALUES = 4_000_000  # of one question's selectors, series times steps, and bins where there are distributions: some 36 MB
ROW_VALUES = 50  # as which a series counts at least, for its labels: so there are at most 80,000
AT_ONCE = 2000  # rows that are put together between two looks at the time, some milliseconds …
VALUES_AT_ONCE = 500_000  # … and no more values
SPREADS_AT_ONCE = 20  # distributions likewise
TOO_MANY = f"more than {MAX_VALUES} values of one question: take a longer step, fewer series, or sum() right around a selector"


class Ceiling:
    """How much one question may hold: MAX_VALUES of all its selectors together."""

    def __init__(self) -> None:
        self._taken = 0

    def take(self, values: int) -> None:
        """So many more. Raises Refused."""
        self._taken += values
        self.look_at(self._taken)

    def free(self) -> None:
        """What was taken is held no more."""
        self._taken = 0

    @staticmethod
    def look_at(values: int) -> None:
        """Raises Refused where so many, for a moment, are more than a question may hold."""
        if values > MAX_VALUES:
            raise Refused(TOO_MANY)


class Rows:
    """Series as they come; with `leaf.sums`, those of one group as one."""

    def __init__(self, leaf: Leaf, steps: int, ceiling: Ceiling):
        self._leaf, self._steps, self._ceiling = leaf, steps, ceiling
        self.doubles = 0
        """Series that another one's labels kept out."""
        self._rows: dict[Any, list[Any]] = {}  # of numbers: labels, values, there
        self._spreads: dict[Any, list[Any]] = {}  # labels, [(codes, heat)], count, total, there

    def _place(self, labels: Labels) -> tuple[Any, Labels]:
        if self._leaf.function not in (None, "last_over_time"):  # which is a sample of the series itself
            labels = without(labels, (NAME,))
        if self._leaf.sums:
            labels = grouped(labels, self._leaf.by, self._leaf.without)
        return key_of(labels), labels

    def add(self, labels: Labels, values: Floats, there: Bools) -> None:
        """One series of numbers."""
        key, labels = self._place(labels)
        row = self._rows.get(key)
        if row is None:
            self._ceiling.take(max(self._steps, ROW_VALUES))
            self._rows[key] = [labels, np.where(there, values, 0.0), there]
        elif self._leaf.sums:
            with np.errstate(invalid="ignore", over="ignore"):
                row[1] = row[1] + np.where(there, values, 0.0)
            row[2] = row[2] | there
        else:
            if (row[2] & there).any():
                if self._leaf.keeps_first:
                    self.doubles += 1
                    return
                raise Refused(f"several series have the same labels {dict(key)} once their names are gone: ask for one name at a time")
            row[1], row[2] = np.where(there, values, row[1]), row[2] | there

    def add_spread(self, labels: Labels, codes: Ints, heat: Floats, count: Floats, total: Floats, there: Bools) -> None:
        """One series of distributions; `heat` is (steps, codes)."""
        key, labels = self._place(labels)
        used = np.flatnonzero(heat.any(axis=0))
        codes, heat = codes[used], np.where(there[:, None], heat[:, used], 0.0)
        count, total = np.where(there, count, 0.0), np.where(there, total, 0.0)
        row = self._spreads.get(key)
        if row is None:
            self._ceiling.take(max(heat.size, ROW_VALUES))
            self._spreads[key] = [labels, codes, heat, count, total, there]
            return
        if not self._leaf.sums:
            raise Refused(f"several distributions have the same labels {dict(key)} once their names are gone: ask for one name at a time")
        self._ceiling.take(self._steps * len(np.setdiff1d(codes, row[1])))
        row[1], row[2] = _joined(row[1], row[2], codes, heat)
        row[3], row[4], row[5] = row[3] + count, row[4] + total, row[5] | there

    async def vector(self, breathe: Callable[[], Awaitable[None]]) -> Vector:
        """All of them; others have a turn (`breathe`) between some."""
        if self._rows and self._spreads:
            raise Refused("the selector means numbers and distributions: ask for one of them by its name and labels")
        if not self._spreads:
            rows = list(self._rows.values())
            if not rows:
                return Vector.empty(self._steps)
            values, is_there = np.empty((len(rows), self._steps)), np.empty((len(rows), self._steps), dtype=np.bool_)
            await self._fill(breathe, rows, (values, is_there), (1, 2))
            return Vector([row[0] for row in rows], values, is_there)
        spreads = list(self._spreads.values())
        codes = spreads[0][1]
        for start in range(0, len(spreads), AT_ONCE):
            codes = np.unique(np.concatenate([codes, *(row[1] for row in spreads[start : start + AT_ONCE])]))
            await breathe()
        self._ceiling.take(len(spreads) * self._steps * len(codes))
        heat = np.zeros((len(spreads), self._steps, len(codes)))
        for place, row in enumerate(spreads):
            heat[place][:, np.searchsorted(codes, row[1])] = row[2]
            if place % SPREADS_AT_ONCE == SPREADS_AT_ONCE - 1:
                await breathe()
        count, total = (np.empty((len(spreads), self._steps)) for _ in range(2))
        there = np.empty((len(spreads), self._steps), dtype=np.bool_)
        await self._fill(breathe, spreads, (count, total, there), (3, 4, 5))
        return Vector([row[0] for row in spreads], np.zeros_like(count), there, Spread(codes, heat, count, total))

    async def _fill(self, breathe: Callable[[], Awaitable[None]], rows: Sequence[Any], into: Sequence[Any], places: Sequence[int]) -> None:
        """Put what stands at `places` of the rows into arrays, some rows at a time."""
        at_once = max(1, min(AT_ONCE, VALUES_AT_ONCE // max(1, self._steps)))
        for start in range(0, len(rows), at_once):
            some = rows[start : start + at_once]
            for array, place in zip(into, places, strict=True):
                array[start : start + len(some)] = [row[place] for row in some]
            await breathe()


def _joined(codes: Ints, heat: Floats, other: Ints, further: Floats) -> tuple[Ints, Floats]:
    both = np.union1d(codes, other)
    if len(both) > len(codes):
        wide = np.zeros((len(heat), len(both)))
        wide[:, np.searchsorted(both, codes)] = heat
        heat = wide
    heat[:, np.searchsorted(both, other)] += further
    return both, heat


def labels_of(series: Series, client: str) -> Labels:
    """Of a Tab's series, and of a Client's where there is one."""
    labels = {NAME: plain(series.name), **series.labels}
    return {**labels, "client": client} if client else labels
