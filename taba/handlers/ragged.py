"""Rows of different lengths in flat numpy arrays, and their way to bytes and back.

1. A ragged column is a flat array beside `counts`, how many of its items belong to each row, in row order.
2. In bytes, every row stands alone and starts at a multiple of 8; within a row, each section starts at a multiple of its items'
   width. So a whole column is read or written by indexing one view of the buffer.
3. The width of items (1, 2, 4 or 8 bytes; as a width code 0 … 3) is chosen per row and section, and written in the row's header.

A *table* is rows of unique, sorted int64 keys with columns beside them; `merge_tables` adds one to another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taba.codes import Floats, Ints

# what the items of a section are, by width code
COUNTS = ("<u1", "<u2", "<u4", "<i8")
NUMBERS = ("<i1", "<i2", "<i4", "<f8")  # whole numbers where they all are and fit, else floats

LONG_ROWS = 64  # items in a row, from which on a step in Python for each row costs less than indexing every item

_COUNT_LIMITS = np.array([1 << 8, 1 << 16, 1 << 32], dtype=np.int64)
_NUMBER_LIMITS = np.array([1 << 7, 1 << 15, 1 << 31], dtype=np.float64)


def bounds_of(counts: Ints) -> Ints:
    """Where each row's items start, and the end of the last: len(counts) + 1 positions."""
    bounds = np.empty(len(counts) + 1, dtype=np.int64)
    bounds[0] = 0
    counts.cumsum(out=bounds[1:])
    return bounds


def run_starts(keys: NDArray[Any]) -> Ints:
    """The positions where a new value begins in an array whose equal items stand together; empty for an empty one."""
    begins = np.ones(len(keys), dtype=np.bool_)
    np.not_equal(keys[1:], keys[:-1], out=begins[1:])
    return begins.nonzero()[0]


def run_lengths(starts: Ints, total: int) -> Ints:
    """How many items each run has, of `total` in all."""
    lengths = np.empty_like(starts)
    np.subtract(starts[1:], starts[:-1], out=lengths[:-1])
    if len(starts):
        lengths[-1] = total - starts[-1]
    return lengths


def by_rows(rows: Ints, *columns: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """`rows` and what stands beside them in the order of rows; of one row, in the order that it came in."""
    if len(rows) > 1 and (rows[1:] < rows[:-1]).any():
        order = np.argsort(rows, kind="stable")
        return (rows[order], *(column[order] for column in columns))
    return (rows, *columns)


def count_rows(rows: Ints, total: int) -> Ints:
    """How many items each of `total` rows has."""
    return np.bincount(rows, minlength=total)


def sum_rows(items: NDArray[Any], bounds: Ints) -> NDArray[Any]:
    """The sum of each row's items; exact for integers. `bounds` as from `bounds_of`."""
    sums = np.empty(len(items) + 1, dtype=items.dtype)
    sums[0] = 0
    items.cumsum(out=sums[1:])
    result: NDArray[Any] = sums[bounds[1:]] - sums[bounds[:-1]]
    return result


class Shape:
    """How many items each row of a ragged column has; made once for all columns of that shape."""

    __slots__ = ("_filled", "_within", "bounds", "counts", "total")

    def __init__(self, counts: Ints):
        self.counts = counts
        self.bounds = bounds_of(counts)
        self.total = int(self.bounds[-1])
        self._within: Ints | None = None
        self._filled: Ints | None = None

    @property
    def within(self) -> Ints:
        """The number of each item within its row, from 0."""
        if self._within is None:
            self._within = np.arange(self.total) - self.bounds[:-1].repeat(self.counts)
        return self._within

    @property
    def filled(self) -> Ints:
        """The rows that have items."""
        if self._filled is None:
            self._filled = self.counts.nonzero()[0]
        return self._filled

    def places(self, starts: Ints) -> Ints:
        """The position of each item, where those of a row follow each other from its start."""
        return starts.repeat(self.counts) + self.within

    def firsts(self, items: NDArray[Any]) -> NDArray[Any]:
        """Each row's first item; 0 for an empty row."""
        found = np.zeros(len(self.counts), dtype=items.dtype)
        if self.total:
            found[self.filled] = items[self.bounds[self.filled]]
        return found

    def greatest(self, items: NDArray[Any]) -> NDArray[Any]:
        """Each row's greatest item; 0 for an empty row."""
        found = np.zeros(len(self.counts), dtype=items.dtype)
        if self.total:
            found[self.filled] = np.maximum.reduceat(items, self.bounds[self.filled])
        return found


def count_codes(most: Ints) -> Ints:
    """The width codes for counts (0 or more) up to `most`."""
    return np.searchsorted(_COUNT_LIMITS, most, side="right")


def number_codes(numbers: Floats, shape: Shape) -> Ints:
    """The width codes for rows of `numbers`: narrow where all of a row are whole and small, else 3."""
    size = np.abs(numbers)
    # whole numbers below 2^7, 2^15, 2^31 fit; a fraction, NaN or infinity asks for the widest
    size[np.rint(numbers) != numbers] = np.inf
    return np.searchsorted(_NUMBER_LIMITS, shape.greatest(size), side="right")


def aligned(ends: Ints, codes: Ints | int) -> Ints:
    """The first position at or after each of `ends` where items of that width code may start."""
    if isinstance(codes, int):
        least = (1 << codes) - 1
        return (ends + least) & ~least
    widths: Ints = 1 << codes
    return (ends + (widths - 1)) & -widths


class Buffer:
    """Bytes of many rows, read and written by section. Its length is a multiple of 8."""

    def __init__(self, content: bytes | bytearray):
        self._bytes = np.frombuffer(content, dtype=np.uint8)
        self._views: dict[str, NDArray[Any]] = {}

    def view(self, dtype: str) -> NDArray[Any]:
        view = self._views.get(dtype)
        if view is None:
            view = self._views[dtype] = self._bytes.view(dtype)
        return view

    def headers(self, dtype: np.dtype[Any], starts: Ints) -> NDArray[Any]:
        """A structured array of the records at `starts` (multiples of 8; itemsize too)."""
        words = dtype.itemsize // 8
        picked = self.view("<i8")[(starts >> 3)[:, None] + np.arange(words)]
        records: NDArray[Any] = picked.view(dtype).reshape(-1)
        return records

    def put_headers(self, starts: Ints, headers: NDArray[Any]) -> None:
        words = headers.dtype.itemsize // 8
        self.view("<i8")[(starts >> 3)[:, None] + np.arange(words)] = headers.view("<i8").reshape(-1, words)

    def read(self, kind: Sequence[str], starts: Ints, codes: Ints, shape: Shape, to: Any) -> NDArray[Any]:
        """The items of one section of every row, as one flat array of dtype `to`."""
        if not shape.total:
            return np.zeros(0, dtype=to)
        if shape.total >= LONG_ROWS * len(starts):  # copying row by row, where a row is long, touches each item once
            views = [self.view(name) for name in kind]
            firsts = (starts >> codes).tolist()
            spans = zip(codes.tolist(), firsts, shape.counts.tolist(), strict=True)
            items = np.concatenate([views[code][first : first + count] for code, first, count in spans], dtype=to, casting="unsafe")
            return items
        least = int(codes.min())
        if least == codes.max():
            return self.view(kind[least])[shape.places(starts >> least)].astype(to)
        items = np.empty(shape.total, dtype=to)
        which = codes.repeat(shape.counts)
        places = starts.repeat(shape.counts) + (shape.within << which)
        for code in range(least, 4):
            chosen = (which == code).nonzero()[0]
            if len(chosen):
                items[chosen] = self.view(kind[code])[places[chosen] >> code]
        return items

    def write(self, kind: Sequence[str], starts: Ints, codes: Ints, shape: Shape, items: NDArray[Any]) -> None:
        """Write one section of every row."""
        if not shape.total:
            return
        least = int(codes.min())
        if least == codes.max():
            self.view(kind[least])[shape.places(starts >> least)] = items
            return
        which = codes.repeat(shape.counts)
        places = starts.repeat(shape.counts) + (shape.within << which)
        for code in range(least, 4):
            chosen = (which == code).nonzero()[0]
            if len(chosen):
                self.view(kind[code])[places[chosen] >> code] = items[chosen]


class MalformedRow(ValueError):
    """One row of a list of dumps is no State of this Type; `row` says which."""

    def __init__(self, row: int, reason: str):
        super().__init__(f"row {row}: {reason}")
        self.row, self.reason = row, reason

    @classmethod
    @contextmanager
    def among(cls, rows: Ints) -> Iterator[None]:
        """Have what is wrong with one of a part of the rows, which are these, name the row among all."""
        try:
            yield
        except cls as error:
            raise cls(int(rows[error.row]), error.reason) from None


def refuse(bad: NDArray[np.bool_], reason: str) -> None:
    """Raise MalformedRow for the first row that is `bad`, if any is."""
    if bad.any():
        raise MalformedRow(int(np.argmax(bad)), reason)


def join_rows(dumps: Iterable[bytes], empty: bytes, header_bytes: int) -> tuple[Buffer, Ints, Ints]:
    """(buffer, starts, lengths) of `dumps`, with `empty` for b"". Raises MalformedRow for one of an impossible length."""
    filled = [dump or empty for dump in dumps]
    lengths = np.fromiter(map(len, filled), dtype=np.int64, count=len(filled))
    refuse((lengths % 8 != 0) | (lengths < header_bytes), "a length that no dump has")
    return Buffer(b"".join(filled)), bounds_of(lengths)[:-1], lengths


def cut_rows(content: bytearray, bounds: Ints) -> list[bytes]:
    """The rows of a buffer as bytes objects."""
    whole = bytes(content)
    edges = bounds.tolist()
    return [whole[start:end] for start, end in pairwise(edges)]


def merge_tables(
    keys: Ints, columns: Sequence[NDArray[Any]], new_keys: Ints, new_columns: Sequence[NDArray[Any]], joins: Sequence[Any] = ()
) -> tuple[Ints, list[NDArray[Any]]]:
    """A table with another one added: equal keys join (by `joins`, one ufunc a column; all np.add by default).

    The columns of the first may be changed in place.
    """
    joins = joins or [np.add] * len(columns)
    if not len(keys):
        return new_keys, list(new_columns)
    places = keys.searchsorted(new_keys)
    hit = keys[np.minimum(places, len(keys) - 1)] == new_keys
    if hit.all():
        for column, new, join in zip(columns, new_columns, joins, strict=True):
            column[places] = join(column[places], new)
        return keys, list(columns)
    hits = places[hit]
    for column, new, join in zip(columns, new_columns, joins, strict=True):
        column[hits] = join(column[hits], new[hit])
    missed = ~hit
    inserted = places[missed] + np.arange(len(new_keys) - len(hits))
    kept = np.ones(len(keys) + len(inserted), dtype=np.bool_)
    kept[inserted] = False
    merged = []
    for column, new in zip((keys, *columns), (new_keys, *new_columns), strict=True):
        both = np.empty(len(kept), dtype=column.dtype)
        both[kept] = column
        both[inserted] = new[missed]
        merged.append(both)
    return merged[0], merged[1:]


def reduce_table(keys: Ints, columns: Sequence[NDArray[Any]], joins: Sequence[Any] = ()) -> tuple[Ints, list[NDArray[Any]]]:
    """A table from rows in any order, with equal keys joined."""
    joins = joins or [np.add] * len(columns)
    if len(keys) > 1:
        steps = keys[1:] - keys[:-1]
        least = steps.min()
        if least < 0:
            order = np.argsort(keys, kind="stable")
            keys, columns = keys[order], [column[order] for column in columns]
        elif least > 0:
            return keys, list(columns)
        starts = run_starts(keys)
        keys, columns = keys[starts], [join.reduceat(column, starts) for column, join in zip(columns, joins, strict=True)]
    return keys, list(columns)
