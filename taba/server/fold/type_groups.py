"""The columns of a cycle that are of one Type, as its Handler folds them at once; and what is looked at of columns before that. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, cast

import numpy

from taba.batch import (
    AtEdge,
    Block,
    Column,
    columns_of,
)
from taba.bounds import MAX_TIME
from taba.plural import many
from taba.server import keys
from taba.server.work.faults import sentence
from taba.server.work.rows import Folded
from taba.server.work.runs import Runs

GroupPiece = tuple[list[int], Block | list[Column]]  # the group's rows, and the column of each


class TypeGroup:
    """The columns of one Type: which rows of the cycle they touch, numbered again from 0. `merges`: those that were folded at the edge."""

    def __init__(self, type: str, handler: Any, is_array: bool):
        self.type, self.handler, self.is_array = type, handler, is_array
        self.is_absolute = bool(getattr(handler, "absolute", False))
        self.rows: dict[int, int] = {}
        self.pieces: list[GroupPiece] = []
        self.merges: list[tuple[int, Column]] = []
        self.states: Sequence[keys.Framed] = ()
        self.folded: Folded | None = None

    @property
    def columns(self) -> list[tuple[int, Column]]:
        """(row, column) of each, in order."""
        return [one for rows, piece in self.pieces for one in zip(rows, columns_of(piece), strict=True)]  # type: ignore[misc]

    def replace(self, columns: Sequence[tuple[int, Column]]) -> None:
        """Have these, and no others."""
        self.pieces = [([row for row, _ in columns], [column for _, column in columns])] if columns else []

    def add(self, row: int, column: Column) -> None:
        """Take one more, of a row of the cycle."""
        if not self.pieces or isinstance(self.pieces[-1][1], Block):
            self.pieces.append(([], []))
        rows, columns = self.pieces[-1]
        rows.append(self.rows.setdefault(row, len(self.rows)))
        cast(list[Column], columns).append(column)

    def add_block(self, rows: list[int], block: Block) -> None:
        """Take all of a block, of these rows of the cycle."""
        mine = self.rows
        if not mine:
            mine.update(zip(rows, range(len(rows)), strict=True))
            if len(mine) == len(rows):
                self.pieces.append((list(range(len(rows))), block))
                return
            mine.clear()
        self.pieces.append(([mine.setdefault(row, len(mine)) for row in rows], block))

    @property
    def runs(self) -> Runs:
        """The Events of all columns."""
        runs = Runs()
        for rows, piece in self.pieces:
            if isinstance(piece, Block):
                runs.add_all(rows, piece.counts, piece.times, piece.values)
            else:
                for row, column in zip(rows, piece, strict=True):
                    runs.add(row, column.times, column.made())
        return runs


def dumps_of(group: TypeGroup, begin: int = 0) -> list[tuple[int, bytes]]:
    """What was folded at the edge, by row, of which the first is `begin`."""
    return [(begin + row, column.values.dump) for row, column in group.merges if isinstance(column.values, AtEdge)]


def miscounted(handler: Any, columns: Sequence[Column]) -> str | None:
    """What is wrong with one of these that were folded at the edge; None where each is a State of as many Events as it stands for."""
    dumps = [column.values.dump for column in columns if isinstance(column.values, AtEdge)]
    try:
        counts = handler.count_array(dumps).tolist()
    except Exception as error:  # these bytes are a stranger's: whatever a Handler makes of them, they are no State of its
        return f"no State that was folded at the edge: {sentence(error)}"
    found = next(((counted, column.weight) for counted, column in zip(counts, columns, strict=True) if counted != column.weight), None)
    return None if found is None else f"a State of {many(found[0], 'event')} that is said to be of {found[1]}"


def are_good(groups: Sequence[TypeGroup]) -> bool:
    """Whether all Events of these groups of one Type have times, and for an array Handler values, that there may be, and all States that
    were folded at the edge as many as they are said to: mostly so, and cheap to know of many at once."""
    merges = [column for group in groups for _, column in group.merges]
    if merges and miscounted(groups[0].handler, merges) is not None:
        return False
    times: list[bytes] = []
    values: list[Any] = []
    for group in groups:
        for _, piece in group.pieces:
            times += (piece.times,) if isinstance(piece, Block) else map(_TIMES_OF, piece)
            values += (piece.values,) if isinstance(piece, Block) else map(_VALUES_OF, piece)
    if not are_times(numpy.frombuffer(b"".join(times), "<f8")).all():
        return False
    if not (groups and groups[0].is_array):
        return True
    return _BYTES.issuperset(map(_type_of, values)) and bool(numpy.isfinite(numpy.frombuffer(b"".join(values), "<f8")).all())


_type_of = type
_BYTES = {bytes}
_TIMES_OF, _VALUES_OF = itemgetter(3), itemgetter(4)  # of a Column


def are_times(times: Any) -> Any:
    """Which of these are times that an Event may have."""
    return (times >= 0) & (times <= MAX_TIME)  # so no NaN


def are_finite(values: bytes | list[Any]) -> Any:
    """Which of these are finite numbers; of a pair, whose second one was checked, the first counts."""
    if isinstance(values, bytes):
        return numpy.isfinite(numpy.frombuffer(values, "<f8"))
    return numpy.isfinite(numpy.array([value[0] if isinstance(value, tuple) else value for value in values]))


def picked(column: Column, indexes: list[int]) -> Column:
    if isinstance(column.values, AtEdge):
        return column if indexes else column._replace(times=b"")
    times, values = numpy.frombuffer(column.times, "<f8")[indexes].tobytes(), column.made()
    if isinstance(values, bytes):
        return column._replace(times=times, values=numpy.frombuffer(values, "<f8")[indexes].tobytes())
    return column._replace(times=times, values=[values[index] for index in indexes])


def weight_of(column: Any) -> int:
    """How many Events a column, or what is none, stands for."""
    return column.weight if isinstance(column, Column) else column.events
