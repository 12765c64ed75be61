"""A Handler applied to States and Events: a plain one to one State after another, an array Handler to all of them in one call.

When that call raises, half of them are tried, and so on until the rows at fault are alone. Each try begins from the bytes of the last
that went well: what a Handler had half changed is thrown away.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy

from taba.handlers.lookup import Events, column_of
from taba.server.keys import Framed
from taba.server.work.faults import sentence
from taba.server.work.renewing import MAX_STATE_BYTES, renewed
from taba.server.work.rows import HANDLER_ERROR, STATE_TOO_LARGE, Failed, Folded, Parts, Work
from taba.server.work.runs import Runs, Values

_BYTES = {bytes}
_VERSION_OF, _DUMP_OF = itemgetter(0), itemgetter(2)  # of a Framed

MANY_EVENTS = 16  # of one State: as arrays they cost a plain Handler of Taba's own no more than as lists


def fold_plainly(handler: Any, work: Work, now: float, rows: list[int], folded: Folded, is_own: bool) -> None:
    """Fold each of `rows` by itself into `folded`, its failure too. `is_own`: Taba's own Handler, which may get arrays."""
    events = _events_of(work.runs, is_own)
    is_checked = is_own and getattr(handler, "fold_checks", False)
    for row in rows:
        try:
            kept = work.states[row]
            state = kept.dump if is_checked and kept.version == handler.version else loaded(handler, kept, now)
            dump = handler.dump(handler.fold(state, events[row], now))
            if type(dump) is bytes and len(dump) <= MAX_STATE_BYTES:
                folded.states[row] = dump
            else:
                _accept(folded, row, dump)
        except BaseException as error:
            folded.failed[row] = Failed(HANDLER_ERROR, sentence(error))


def loaded(handler: Any, state: Framed, now: float) -> Any:
    """The State for a plain Handler: a new one where there is none. Raises whatever the Handler raises."""
    if not state.version:
        return handler.new_state()
    if state.version < handler.version:
        return handler.load(*renewed(handler, False, [state], now))
    return handler.load(state.dump)


def _events_of(runs: Runs, may_be_arrays: bool) -> dict[int, Events]:
    """By row its Events: arrays where they are MANY_EVENTS floats or more and may be, else lists."""
    pieces: dict[int, list[tuple[int, int, Values]]] = {}  # where its times are among all, and its values
    times: Any = _floats(runs.times) if runs.rows else numpy.empty(0)
    place = 0
    if _BYTES.issuperset(map(type, runs.values)):
        values: Any = _floats(runs.values) if runs.rows else numpy.empty(0)  # type: ignore[arg-type]
        listed_times, listed_values = times.tolist(), values.tolist()
        found: dict[int, Events] = {}
        for row, count in zip(runs.rows, runs.counts, strict=True):
            start, place = place, place + count
            if row in found:
                before: Any = found[row]
                if not isinstance(before.times, list):
                    before = found[row] = Events(before.times.tolist(), before.values.tolist())
                # where they are: a stranger may send thousands of runs of one State, and each new list would copy all before it
                before.times.extend(listed_times[start:place])
                before.values.extend(listed_values[start:place])
            elif count < MANY_EVENTS or not may_be_arrays:
                found[row] = Events(listed_times[start:place], listed_values[start:place])
            else:
                found[row] = Events(times[start:place], values[start:place])
        return found
    for row, of_run, its in runs:
        start, place = place, place + (len(of_run) >> 3)
        pieces.setdefault(row, []).append((start, place, its))
    found = {}
    for row, of_row in pieces.items():
        flat: list[Any] = []
        for _, _, its in of_row:
            flat.extend(numpy.frombuffer(its, "<f8").tolist() if isinstance(its, bytes) else its)
        found[row] = Events([time for start, end, _ in of_row for time in times[start:end].tolist()], flat)
    return found


def _floats(columns: Sequence[bytes]) -> Any:
    return numpy.frombuffer(columns[0] if len(columns) == 1 else b"".join(columns), "<f8")


def _numbers(columns: Sequence[Values], pairs: str | None) -> Any:
    """The values for `fold_array`: one column, or two where any is a pair."""
    if _BYTES.issuperset(map(type, columns)):
        return _floats(columns)  # type: ignore[arg-type]
    flat: list[Any] = []
    for column in columns:
        flat.extend(numpy.frombuffer(column, "<f8").tolist() if isinstance(column, bytes) else column)
    return column_of(flat, pairs)


def fold_arrays(handler: Any, work: Work, now: float, rows: list[int], folded: Folded) -> Generator[list[int], Parts, None]:
    """Fold `rows` together into `folded`, and their failures. Yields rows whose further parts it needs, and is sent them."""
    dumps = list(map(_DUMP_OF, work.states))
    older: list[int] = []
    if not {0, handler.version}.issuperset(map(_VERSION_OF, work.states)):
        older = [row for row in rows if 0 < work.states[row].version < handler.version]
    upgraded: dict[int, list[bytes]] = {}
    if older:
        parts: Parts = {}
        if handler.further_parts:
            parts = yield older
        for row in older:
            try:
                dumps[row], *upgraded[row] = renewed(handler, True, [work.states[row], *parts.get(row, ())], now)
            except BaseException as error:
                folded.failed[row] = Failed(HANDLER_ERROR, sentence(error))
        rows = [row for row in rows if row not in folded.failed]
    lots = _fold_lots(handler, dumps, work, now, rows, folded)
    wanted = [row for lot in lots for row in lot.spilling if row not in upgraded]
    further_parts: dict[int, list[bytes]] = {}
    if wanted:
        for row, framed in (yield wanted).items():
            try:
                further_parts[row] = dumps_of(framed, handler.version)
            except ValueError as error:
                folded.failed[row] = Failed(HANDLER_ERROR, sentence(error))
    further_parts.update(upgraded)
    for lot in lots:
        _finish_lot(handler, dumps, work, now, lot, further_parts, folded)
    for row, further in upgraded.items():
        if row in folded.states:
            folded.parts.setdefault(row, further)


class _Lot(NamedTuple):
    """Rows that were folded in one call. `spilling`: those among them whose further parts are needed."""

    states: Any
    rows: list[int]
    spilling: list[int]


def _fold_lots(handler: Any, dumps: list[bytes], work: Work, now: float, rows: list[int], folded: Folded) -> list[_Lot]:
    if not rows:
        return []
    try:
        return [_fold_lot(handler, dumps, work, now, rows)]
    except BaseException as error:
        if len(rows) == 1:
            folded.failed[rows[0]] = Failed(HANDLER_ERROR, sentence(error))
            return []
    return [lot for half in _halves(rows) for lot in _fold_lots(handler, dumps, work, now, half, folded)]


def _halves(rows: list[int]) -> tuple[list[int], list[int]]:
    """Where one of many is at fault the others are still folded many at a time."""
    middle = len(rows) // 2
    return rows[:middle], rows[middle:]


def _fold_lot(handler: Any, dumps: list[bytes], work: Work, now: float, rows: list[int]) -> _Lot:
    runs, merges = work.runs, work.merges
    if len(rows) == len(dumps) and rows == list(range(len(dumps))):
        of_runs, of_merges = runs.rows, [row for row, _ in merges]
        quick = merge_dumps_at_once(handler, dumps, work, now, 0) if of_merges else fold_dumps_at_once(handler, dumps, runs, now, 0)
        if quick is not None:
            return _Lot(quick, rows, handler.spilling(quick).tolist())
        states = handler.load_array(dumps)
    else:
        place = {row: index for index, row in enumerate(rows)}
        runs, merges = Runs.of([run for run in runs if run[0] in place]), [merge for merge in merges if merge[0] in place]
        states = handler.load_array([dumps[row] for row in rows])
        of_runs, of_merges = [place[row] for row in runs.rows], [place[row] for row, _ in merges]
    if of_runs:
        indexes = numpy.array(of_runs, dtype=numpy.int64)
        if runs.counts.count(1) < len(indexes):
            indexes = numpy.repeat(indexes, runs.counts)
        values = _numbers(runs.values, getattr(handler, "pairs", None))
        states = handler.fold_array(states, indexes, _floats(runs.times), values, now)
    if of_merges:
        states = handler.merge_array(states, numpy.array(of_merges, dtype=numpy.int64), [dump for _, dump in merges], now)
    spilling = [rows[index] for index in handler.spilling(states)] if handler.further_parts else []
    return _Lot(states, rows, spilling)


def fold_dumps_at_once(handler: Any, dumps: list[bytes], runs: Runs, now: float, version: int) -> Any:
    """What a Handler makes of the bytes at once, where it has such a way, and it is one for these Events; else None.

    With a `version` each of `dumps` is behind a frame, which has to say that one.
    """
    fold_dumps = getattr(handler, "fold_dumps", None)
    if fold_dumps is None or not _BYTES.issuperset(map(type, runs.values)):
        return None
    return fold_dumps(dumps, _rows_of(runs), _floats(runs.times), _floats(runs.values), now, version)  # type: ignore[arg-type]


def merge_dumps_at_once(handler: Any, dumps: list[bytes], work: Work, now: float, version: int) -> Any:
    """The same where to each State one is added that was folded at the edge, and no Events are; else None."""
    merge_dumps = getattr(handler, "merge_dumps", None)
    if merge_dumps is None or work.runs.rows or [row for row, _ in work.merges] != list(range(len(dumps))):
        return None
    return merge_dumps(dumps, [dump for _, dump in work.merges], now, version)


def _rows_of(runs: Runs) -> Any:
    """The row of each Event."""
    indexes = numpy.array(runs.rows, dtype=numpy.int64)
    return numpy.repeat(indexes, runs.counts) if runs.counts.count(1) < len(indexes) else indexes


def _finish_lot(
    handler: Any, dumps: list[bytes], work: Work, now: float, lot: _Lot, further_parts: dict[int, list[bytes]], folded: Folded
) -> None:
    try:
        if folded.failed and not folded.failed.keys().isdisjoint(lot.rows):
            raise ValueError("a row of this lot has failed")
        states, new_parts = lot.states, {}
        if lot.spilling:
            place = {row: index for index, row in enumerate(lot.rows)}
            indexes = numpy.array([place[row] for row in lot.spilling], dtype=numpy.int64)
            old = [further_parts[row] for row in lot.spilling]  # never invented: absent ones were read as such
            for row, further in zip(lot.spilling, handler.spill(states, indexes, old), strict=True):
                if len(further) != handler.further_parts or not all(isinstance(part, bytes) for part in further):
                    raise TypeError(f"spill gave no {handler.further_parts} parts of bytes")
                new_parts[row] = list(further)
        new_dumps = handler.dump_array(states)
        if len(new_dumps) != len(lot.rows):
            raise ValueError(f"dump_array gave {len(new_dumps)} dumps for {len(lot.rows)} States")
        if not (_BYTES.issuperset(map(type, new_dumps)) or all(isinstance(dump, bytes) for dump in new_dumps)):
            raise TypeError("dump_array gave something other than bytes")
    except BaseException as error:
        if len(lot.rows) == 1:
            folded.failed.setdefault(lot.rows[0], Failed(HANDLER_ERROR, sentence(error)))
            return
        # from their bytes again, in halves: the states of the lot may be half changed
        for half in _halves([row for row in lot.rows if row not in folded.failed]):
            for smaller in _fold_lots(handler, dumps, work, now, half, folded):
                _finish_lot(handler, dumps, work, now, smaller, further_parts, folded)
        return
    if new_parts or max(map(len, new_dumps), default=0) > MAX_STATE_BYTES:
        for row, dump in zip(lot.rows, new_dumps, strict=True):
            _accept(folded, row, dump, new_parts.get(row))
    else:
        folded.states.update(zip(lot.rows, new_dumps, strict=True))


def _accept(folded: Folded, row: int, dump: Any, further: list[bytes] | None = None) -> None:
    if not isinstance(dump, bytes):
        folded.failed[row] = Failed(HANDLER_ERROR, f"dump gave {type(dump).__name__}, not bytes")
    elif max(len(part) for part in (dump, *(further or ()))) > MAX_STATE_BYTES:
        folded.failed[row] = Failed(STATE_TOO_LARGE, f"a part of the State takes more than {MAX_STATE_BYTES} bytes")
    else:
        folded.states[row] = dump
        if further is not None:
            folded.parts[row] = further


def dumps_of(parts: Sequence[Framed], version: int) -> list[bytes]:
    """The bytes of further parts, which have `version` or are absent. Raises ValueError where one has another."""
    if any(part.version not in (0, version) for part in parts):
        raise ValueError("a further part has another version than its State")
    return [part.dump for part in parts]
