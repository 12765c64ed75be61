"""The Events of a fold, run after run of one State's, as arrays: single runs are made for who looks at them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any

Values = bytes | list[Any]  # float64, or a list


class Runs(Sequence[tuple[int, bytes, Values]]):
    """(row, times, values) of runs, in order. `rows` and `counts` are of the runs; of pieces each holds the Events of some of them."""

    __slots__ = ("_pieces", "counts", "rows")

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.counts: list[int] = []
        self._pieces: list[tuple[int, bytes, Values]] = []  # how many runs, and their Events: of several as bytes

    @classmethod
    def of(cls, runs: Sequence[tuple[int, bytes, Values]]) -> Runs:
        """These."""
        if isinstance(runs, cls):
            return runs
        made = cls()
        for row, times, values in runs:
            made.add(row, times, values)
        return made

    def add(self, row: int, times: bytes, values: Values) -> None:
        """One more run."""
        self.add_all((row,), (len(times) >> 3,), times, values)

    def add_all(self, rows: Iterable[int], counts: Sequence[int], times: bytes, values: Values) -> None:
        """Runs whose Events lie one after the other."""
        self.rows += rows
        self.counts += counts
        self._pieces.append((len(counts), times, values))

    def extend(self, other: Runs, begin: int) -> None:
        """Those of another, whose rows are counted from `begin`."""
        self.rows += [begin + row for row in other.rows] if begin else other.rows
        self.counts += other.counts
        self._pieces += other._pieces

    def chosen(self, rows: Set[int], are_in: bool) -> Runs:
        """Those of these rows, or of all others."""
        made, place = Runs(), 0
        for runs, times, values in self._pieces:
            its, counts = self.rows[place : place + runs], self.counts[place : place + runs]
            place += runs
            if rows.isdisjoint(its):
                if not are_in:
                    made.add_all(its, counts, times, values)
                continue
            start = 0
            for row, count in zip(its, counts, strict=True):
                end = start + count
                if (row in rows) == are_in:
                    of_run = values[8 * start : 8 * end] if isinstance(values, bytes) else values[start:end]
                    made.add(row, times[8 * start : 8 * end], of_run)
                start = end
        return made

    @property
    def times(self) -> list[bytes]:
        """All times, in pieces."""
        return [times for _, times, _ in self._pieces]

    @property
    def values(self) -> list[Values]:
        """All values, in the same pieces."""
        return [values for _, _, values in self._pieces]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[int, bytes, Values]]:
        place = 0
        for runs, times, values in self._pieces:
            if runs == 1:
                yield self.rows[place], times, values
            else:
                start = 0
                for at in range(place, place + runs):
                    end = start + 8 * self.counts[at]
                    yield self.rows[at], times[start:end], values[start:end]
                    start = end
            place += runs

    def __getitem__(self, place: Any) -> Any:
        return list(self)[place]
