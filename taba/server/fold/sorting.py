"""Which columns of a cycle are folded by which Handler; those that none can take are buried. Pure.

1. The first Type of a Tab stands.
2. Each Event is looked at before any is folded: its Tab, its Type, its value, its time. A bad one takes none beside it with it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, cast

import numpy

from taba.batch import BAD_COLUMN, AtEdge, BadColumn, Block, Column, DecodedSection, Packed, columns_of
from taba.bounds import MAX_VALUE_BYTES, MAX_VALUE_DEPTH
from taba.handlers.lookup import read_number, takes
from taba.names import OWN_TABS
from taba.server import keys
from taba.server.fold.burying import BAD_STATE, BAD_TIME, BAD_VALUE, TYPE_CONFLICT, UNKNOWN_EDGE, WRONG_BUCKET, Burial
from taba.server.fold.cycle import Cycle
from taba.server.fold.deadletters import is_too_deep, packed_bytes
from taba.server.fold.newcomers import Newcomers
from taba.server.fold.type_groups import TypeGroup, are_finite, are_times, miscounted, picked
from taba.server.work.bench import Bench
from taba.server.work.pace import EVENTS, MOST_AT_ONCE, PAUSE, Pace, Pause, amount_of


class Sorting:
    """Of a cycle, whose rows are `fields` and have the States `kept`."""

    def __init__(self, cycle: Cycle, fields: list[bytes], kept: Sequence[bytes | None], bench: Bench, newcomers: Newcomers, burial: Burial):
        self._cycle, self._fields, self._kept, self._bench, self._newcomers, self._burial = cycle, fields, kept, bench, newcomers, burial

    def sort(self, accepted: list[int], pace: Pace) -> Generator[Pause, None, list[TypeGroup]]:
        """The columns of these batches that may be folded, by Type."""
        groups: dict[str, TypeGroup] = {}
        for index in accepted:
            large = self._cycle.waiting[index].size > MAX_VALUE_BYTES  # else no value in it can be
            for section, rows in self._cycle.sections[index]:
                if not (isinstance(section, Block) and self._take_block(groups, section, rows)):
                    yield from self._take_columns(groups, section, rows, large, pace)
        return list(groups.values())

    def _take_block(self, groups: dict[str, TypeGroup], block: Block, rows: list[int]) -> bool:
        """Take it at once, where all its Tabs are of its Type or new, and there is room for what is new; else nothing is done."""
        type, kept = block.type, self._kept
        if min(rows) < 0:
            return False
        group = groups.get(type)
        handler = self._bench.get(type) if group is None else group.handler
        if handler is None:
            return False
        found = set(map(self._newcomers.types.get, block.moved))
        if not found <= {type, None}:
            return False
        if self._newcomers.has_absent or None in found:
            absent = [self._fields[row].partition(b"\0") for row in rows if kept[row] is None]
            if (absent or None in found) and not self._newcomers.make_all(block, absent):
                return False
        if group is None:
            group = groups[type] = TypeGroup(type, handler, self._bench.is_array(type))
        group.add_block(rows, block)
        return True

    def _take_columns(
        self, groups: dict[str, TypeGroup], section: DecodedSection, rows: list[int], large: bool, pace: Pace
    ) -> Generator[Pause, None, None]:
        types, bench = self._newcomers.types, self._bench
        for column, row in zip(columns_of(section), rows, strict=True):
            if pace.is_due(amount_of(1, column.events) if isinstance(column, Column) else 1):
                yield PAUSE
            is_measured = isinstance(column, Column) and isinstance(column.values, Packed)
            if is_measured:
                column = column.opened()  # type: ignore[union-attr]  # until here nothing walked it; it is gone when this fold is over
            if row < 0:
                self._refuse(column)
                continue
            assert isinstance(column, Column)
            type = types.get(column.tab)
            if type is None:
                if bench.get(column.type) is None:
                    self._miss(column)
                    continue
                if not self._newcomers.has_room(column, True):
                    continue
                type = types[column.tab] = self._newcomers.new_types[column.tab] = column.type
            elif type != column.type:
                self._burial.bury(column, TYPE_CONFLICT, f"the Tab has Type {type}")
                continue
            elif self._kept[row] is None and self._newcomers.new_clients and not self._newcomers.has_room(column, False):
                continue
            group = groups.get(type)
            if group is None:
                handler = bench.get(type)
                if handler is None:
                    self._miss(column)
                    continue
                group = groups[type] = TypeGroup(type, handler, bench.is_array(type))
            if isinstance(column.values, AtEdge):
                self._take_state(group, row, column, column.values)
                continue
            if column.stands_for is not None and not group.is_absolute and not (column.tab in OWN_TABS and not column.weight):
                self._burial.bury(column, BAD_VALUE, f"{type} takes events one by one")
                continue
            if isinstance(column.values, list) and (column.stands_for is None or not group.is_absolute):
                good = yield from self._checked(column, group, large, is_measured)
                if good is None:
                    continue
                column = good
            group.add(row, column)

    def _take_state(self, group: TypeGroup, row: int, column: Column, state: AtEdge) -> None:
        """Take what was folded at the edge, if the Handler merges it."""
        edge = self._bench.edge(group.type)
        if state.edge == edge:
            group.merges.append((group.rows.setdefault(row, len(group.rows)), column))
            return
        merges = f"version {edge} is merged here" if edge is not None else f"States of Type {group.type} are not merged here"
        self._burial.bury(column, UNKNOWN_EDGE, f"an Agent folded these events to a State of version {state.edge}, and {merges}")

    def _refuse(self, column: Column | BadColumn) -> None:
        if isinstance(column, Column):
            self._burial.bury(column, WRONG_BUCKET, f"the Tab does not live in bucket {self._cycle.bucket}")
        else:
            self._burial.bury_bad(column)

    def _miss(self, column: Column) -> None:
        self._burial.miss(column, self._newcomers.types.get(column.tab, column.type))

    def _checked(self, column: Column, group: TypeGroup, large: bool, is_measured: bool) -> Generator[Pause, None, Column | None]:
        """A column of msgpack values without those that its Handler cannot take. `is_measured`: each is within its bounds.

        As float64 for an array Handler and of an absolute Type, or where there are pairs as a list of finite floats and pairs of them.
        """
        numeric, pairs = group.is_array or group.is_absolute, getattr(group.handler, "pairs", None)
        good: list[Any] = []
        bad: list[int] = []
        deep: list[int] = []
        kept: list[int] = []
        values = column.made()
        wanted = takes(pairs) if numeric else f"a value takes at most {MAX_VALUE_BYTES} bytes"
        for index, value in enumerate(values):
            if index and index % (MOST_AT_ONCE * EVENTS) == 0:
                self._bury_values(column, deep, bad, wanted)
                yield PAUSE
            if numeric:
                try:
                    value = read_number(value, pairs)
                except ValueError:
                    bad.append(index)
                    continue
            elif is_measured:
                pass
            elif isinstance(value, (list, dict)):
                if is_too_deep(value):
                    deep.append(index)
                    continue
                if packed_bytes(value) > MAX_VALUE_BYTES:
                    bad.append(index)
                    continue
            elif large and isinstance(value, (str, bytes)) and packed_bytes(value) > MAX_VALUE_BYTES:
                bad.append(index)
                continue
            kept.append(index)
            good.append(value)
        self._bury_values(column, deep, bad, wanted)
        if not kept:
            return None
        if len(kept) < len(values):
            column = picked(column, kept)
        if numeric and not any(isinstance(value, tuple) for value in good):
            good = numpy.array(good, dtype="<f8").tobytes()  # type: ignore[assignment]
        return column._replace(values=good)

    def _bury_values(self, column: Column, deep: list[int], bad: list[int], wanted: str) -> None:
        """Those at these places, which are forgotten then."""
        if deep:
            self._burial.bury(picked(column, deep), BAD_VALUE, f"a value is nested at most {MAX_VALUE_DEPTH} deep")
            deep.clear()
        if bad:
            self._burial.bury(picked(column, bad), BAD_VALUE, wanted)
            bad.clear()

    def load(self, group: TypeGroup) -> None:
        """Have its rows' States; what has none that can be read is buried."""
        contents = list(map(self._kept.__getitem__, group.rows))
        if keys.are_framed(contents):
            group.states = keys.Kept(cast(list[bytes], contents))
            return
        try:
            group.states = keys.unframe_all(contents)
            return
        except ValueError:
            pass  # said of each that is none
        bad: dict[int, str] = {}
        states: list[keys.Framed] = []
        for row, local in group.rows.items():
            try:
                states.append(keys.unframe(self._kept[row]))
            except ValueError as error:
                bad[local] = str(error)
                states.append(keys.ABSENT)
        group.states = states
        if bad:
            for local, column in (*group.columns, *group.merges):
                if local in bad:
                    self._burial.bury(column, BAD_STATE, bad[local])
            group.replace([(local, column) for local, column in group.columns if local not in bad])
            group.merges = [(local, column) for local, column in group.merges if local not in bad]


def bury_bad(group: TypeGroup, burial: Burial) -> None:
    """Bury Events whose time is none, or for an array Handler whose value is no finite number."""
    columns = []
    for row, column in group.columns:
        good = are_times(numpy.frombuffer(column.times, "<f8"))
        if not good.all():
            burial.bury(picked(column, numpy.flatnonzero(~good).tolist()), BAD_TIME, "a time takes Unix seconds from 0 to 2^40")
            column = picked(column, numpy.flatnonzero(good).tolist())
        if group.is_array:
            good = are_finite(column.made())
            if not good.all():
                burial.bury(picked(column, numpy.flatnonzero(~good).tolist()), BAD_VALUE, "takes finite numbers")
                column = picked(column, numpy.flatnonzero(good).tolist())
        if column.times:
            columns.append((row, column))
    group.replace(columns)
    merges = []
    for row, column in group.merges:
        error = miscounted(group.handler, [column])
        if error is None:
            merges.append((row, column))
        else:
            burial.bury(column, BAD_COLUMN, error)
    group.merges = merges
