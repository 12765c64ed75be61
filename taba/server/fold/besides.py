"""What ordinary buckets have beside arrays of floats: values in lists, of Types that fold these; absolutes; what was folded at the
edge. Pure.

1. What becomes of such columns is what Fold would make of them: where one of them is not to be folded, or its Handler has more to say than
   a State, its bucket is left to Fold.
2. They are none of the States that the bucket's arrays have, so which of both is folded first does not matter.
3. Of all buckets the columns of one Type are one piece of work. Of what takes long others have their turns in between.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy

from taba.batch import MAX_CACHED_NAME, AtEdge, Batch, Block, Column, DecodedSection, Packed, columns_of, decoded_sections
from taba.batch.columns import Columns
from taba.bounds import MAX_VALUE_BYTES
from taba.server import keys
from taba.server.fold.cycle import WaitingBatch, home_and_field
from taba.server.fold.type_groups import are_times, miscounted
from taba.server.work.bench import Bench, Beside
from taba.server.work.pace import Pause
from taba.server.work.rows import Folded, Parts, Work
from taba.server.work.runs import Runs

_new_tuple = cast(Any, tuple.__new__)  # without the calls of Python that a NamedTuple's own are: for each batch
_SINGLE = frozenset([type(None), bool, int, float, str, bytes])  # values that hold no others


class Besides(NamedTuple):
    """Of a bucket: `fields` of States, and columns in order, each with the place of its State there."""

    fields: list[bytes]
    columns: list[tuple[int, Column]]


def apart(
    waiting: Sequence[WaitingBatch], dumping: Mapping[str, bytes | None], beside: Mapping[str, Beside | None]
) -> tuple[list[WaitingBatch], list[Column]] | None:
    """What waits without what is beside its arrays, and that; None where there is no such, or anything is out of the ordinary."""
    rest: list[WaitingBatch] = []
    columns: list[Column] = []
    for item in waiting:
        batch = item.batch
        if item.header is not None or item.part is not None or not item.nonce or batch.meanings or batch.bad_meanings:
            return None
        if not isinstance(batch.columns, Columns):
            return None
        arrays: list[DecodedSection] = []
        for section in decoded_sections(batch.columns):
            if isinstance(section, Block) and dumping[section.type] is not None:
                arrays.append(section)
                continue
            for column in columns_of(section):
                if not isinstance(column, Column) or not _is_beside(column, beside, item.size):
                    return None
                columns.append(column)
        if len(arrays) < len(batch.columns.sections):
            stream, home, number, _, *more = batch
            follows, _, *others = item
            batch = _new_tuple(Batch, (stream, home, number, Columns(arrays), *more))
            item = _new_tuple(WaitingBatch, (follows, batch, *others))
        rest.append(item)
    return (rest, columns) if columns else None


def _is_beside(column: Column, beside: Mapping[str, Beside | None], size: int) -> bool:
    """Whether it is folded here, of a batch of so many bytes."""
    its, values = beside[column.type], column.values
    if its is None or len(column.tab) > MAX_CACHED_NAME:
        return False
    if isinstance(values, AtEdge):
        return values.edge == its.edge
    if its.is_absolute:
        return column.stands_for is not None and isinstance(values, (Packed, list))
    if not its.folds_lists or column.stands_for is not None:
        return False
    # the values of a larger batch may be too large
    return isinstance(values, bytes) or (isinstance(values, list) and size <= MAX_VALUE_BYTES and _SINGLE.issuperset(map(type, values)))


def placed(
    columns: Sequence[Column], bucket: int, buckets: int, types: dict[bytes, bytes], beside: Mapping[str, Beside | None]
) -> Besides | None:
    """These columns by their States. `types`, those that Tabs must have, by Tab, get theirs; None where a Tab has two of them, or does
    not live in `bucket`."""
    fields: dict[bytes, int] = {}
    found: list[tuple[int, Column]] = []
    for column in columns:
        home, field = home_and_field(column.tab, column.client, buckets)
        its = beside[column.type]
        if home != bucket or its is None or types.setdefault(field[: field.index(b"\0")], its.wire) != its.wire:
            return None
        found.append((fields.setdefault(field, len(fields)), column))
    return Besides(list(fields), found)


class BesidesOfType:
    """All of one Type, of several buckets."""

    def __init__(self, type: str, bench: Bench):
        self.type, self._bench = type, bench
        self.handler: Any = bench.get(type)
        self.rows: list[tuple[int, bytes]] = []  # bucket, field
        self._contents: list[bytes] = []
        self._columns: list[tuple[int, Column]] = []
        self._folding: Any = None
        self._wanted: list[int] = []  # rows of which further parts are
        self._folded: Folded | None = None

    def add(self, bucket: int, field: bytes, content: bytes) -> int:
        """One more State; its row."""
        self.rows.append((bucket, field))
        self._contents.append(content)
        return len(self.rows) - 1

    def add_column(self, row: int, column: Column) -> None:
        """One more column, of that row."""
        self._columns.append((row, column))

    def begin(self, now: float) -> Generator[Pause, None, None]:
        """Fold them, as far as that goes without further parts."""
        runs, merges, merged = Runs(), list[tuple[int, bytes]](), list[Column]()
        for row, column in self._columns:
            if isinstance(column.values, AtEdge):
                merges.append((row, column.values.dump))
                merged.append(column)
            else:
                runs.add(row, column.times, column.made())
        if not are_times(numpy.frombuffer(b"".join(runs.times), "<f8")).all() or (merged and miscounted(self.handler, merged) is not None):
            return
        work = Work(keys.Kept(self._contents), runs, merges=merges)
        self._folding = self._bench.folding(self.type, work, now)
        yield from self._go_on(None)

    def _go_on(self, parts: Parts | None) -> Generator[Pause, None, None]:
        self._wanted = []
        try:
            need = self._folding.send(parts)
            while isinstance(need, Pause):
                yield need
                need = self._folding.send(None)
            self._wanted = need
        except StopIteration as stop:
            self._folded = stop.value

    def reads(self) -> dict[int, list[bytes]]:
        """By bucket the fields of the further parts that are wanted."""
        found: dict[int, list[bytes]] = {}
        for row in self._wanted:
            bucket, field = self.rows[row]
            found.setdefault(bucket, []).extend(keys.part_fields(field, self.handler.further_parts))
        return found

    def go_on(self, contents: Mapping[int, Any]) -> Generator[Pause, None, None]:
        """Fold what is left, given by bucket what comes next of what was read. Whoever wants more then is left to Fold."""
        if self._wanted:
            parts: Parts = {}
            for row in self._wanted:
                its = contents[self.rows[row][0]]
                parts[row] = [keys.unframed(next(its)) for _ in range(self.handler.further_parts)]
            yield from self._go_on(parts)

    def left(self) -> set[int]:
        """Buckets that are left to Fold."""
        folded = self._folded
        if folded is None:
            return {bucket for bucket, _ in self.rows}
        return {bucket for row, (bucket, _) in enumerate(self.rows) if row not in folded.states or row in folded.spoiled}

    def write(self, age: int, written: dict[int, list[bytes]], emptied: dict[int, list[bytes]]) -> None:
        """Have by bucket the fields and contents in turn, and the fields that go."""
        folded = self._folded
        if folded is None:
            return
        frame = keys.frame(self.handler.version, age)
        for row, dump in folded.states.items():
            bucket, field = self.rows[row]
            own = written.setdefault(bucket, [])
            own += (field, frame + dump)
            further = folded.parts.get(row, ())
            for its, part in zip(keys.part_fields(field, len(further)), further, strict=True):
                if part:
                    own += (its, frame + part)
                else:
                    emptied.setdefault(bucket, []).append(its)


def gather_besides(contents: Mapping[int, Sequence[bytes]], besides: Mapping[int, Besides], bench: Bench) -> dict[str, BesidesOfType]:
    """What these buckets have of each Type, given the contents of their States."""
    found: dict[str, BesidesOfType] = {}
    for bucket, (fields, columns) in besides.items():
        rows: dict[int, int] = {}
        for place, column in columns:
            its = found.get(column.type)
            if its is None:
                its = found[column.type] = BesidesOfType(column.type, bench)
            if place not in rows:
                rows[place] = its.add(bucket, fields[place], contents[bucket][place])
            its.add_column(rows[place], column)
    return found
