"""The fold of one Type in one cycle: States as bytes in, Events in, States as bytes out. Pure; no key, no store.

1. An array Handler folds all its States in one call; when that raises, half of them, and so on until the culprits are alone. When a
   State's own fold raises, its Events are folded in smaller and smaller runs, so that only the culprits fail. Each run begins from the
   bytes of the last that went well: what a Handler had half changed is thrown away.
2. A State that fails is not in the result: its bytes stay as they are.
3. Further parts are asked for only where they are needed: by rows that spill, and by rows of an older version.

The same code runs in the Server and in the child process for Handlers that are not Taba's own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

import numpy

from taba.bounds import MiB
from taba.handlers.lookup import Events, column_of
from taba.server.keys import ABSENT, Framed, Kept
from taba.server.work.faults import sentence
from taba.server.work.pace import MOST_AT_ONCE, PAUSE, Pause, amount_of
from taba.server.work.runs import Runs, Values

_BYTES = {bytes}
_VERSION_OF, _DUMP_OF = itemgetter(0), itemgetter(2)  # of a Framed

MANY_EVENTS = 16  # of one State: as arrays they cost a plain Handler of Taba's own no more than as lists
MAX_STATE_BYTES = 1 * MiB  # of one part; a Handler that lets its State grow without limit would fill store and cycles
TRIES_FOR_ONE = 40  # at the most, to find one Event at fault among all that a cycle may have: each halves them, and tries both
MAX_TRIES = 2000  # folds in one call to find the Events at fault: finds 100 among 10,000. A Handler that always raises ends soon

HANDLER_ERROR = "handler_error"
NEWER_STATE = "newer_state"
STATE_TOO_LARGE = "state_too_large"
REASONS = (HANDLER_ERROR, NEWER_STATE, STATE_TOO_LARGE)


class Work(NamedTuple):
    """What is to be folded: the main parts by row, and the Events as (row, times, values), in order.

    The values of an array Handler are float64 bytes, or where there are pairs a list. `names`: by row which State it is, the same
    in each try of a cycle; only for Handlers that work elsewhere. `merges`: dumps by row, of States that were folded at the edge; each
    has its place among a row's Events, behind all others.
    """

    states: Sequence[Framed]
    columns: Sequence[tuple[int, bytes, Values]]
    names: Sequence[bytes] = ()
    merges: Sequence[tuple[int, bytes]] = ()

    @property
    def runs(self) -> Runs:
        """The Events, as arrays."""
        return Runs.of(self.columns)


class Failed(NamedTuple):
    """Why a row was not folded."""

    reason: str
    detail: str


class Folded(NamedTuple):
    """What became of a Work.

    The new main parts of the rows that were folded, the new further parts of those that have them, the failures of rows, and the
    Events that failed by themselves: for a row their places among its Events, by reason.
    """

    states: dict[int, bytes]
    parts: dict[int, list[bytes]]
    failed: dict[int, Failed]
    spoiled: dict[int, list[tuple[Failed, list[int]]]]

    def take(self, other: Folded) -> None:
        """What became of other rows, too."""
        self.states.update(other.states)
        self.parts.update(other.parts)
        self.failed.update(other.failed)
        self.spoiled.update(other.spoiled)


def nothing_folded() -> Folded:
    """A Folded to be filled."""
    return Folded({}, {}, {}, {})


class RowEvents(NamedTuple):
    """Events of one row, in order: float64 times, and float64 values or a list of them; and behind them what was folded at the edge."""

    times: bytes
    values: Values
    dumps: tuple[bytes, ...] = ()

    @property
    def places(self) -> int:
        """How many places there are."""
        return (len(self.times) >> 3) + len(self.dumps)

    def between(self, start: int, end: int) -> RowEvents:
        """What is at these places, without the last."""
        values = self.values[8 * start : 8 * end] if isinstance(self.values, bytes) else self.values[start:end]
        events = len(self.times) >> 3
        return RowEvents(self.times[8 * start : 8 * end], values, self.dumps[max(0, start - events) : max(0, end - events)])

    def work(self, state: Framed) -> Work:
        """What is to be done with it, for the row's State."""
        columns = [(0, self.times, self.values)] if self.times else []
        return Work([state], columns, merges=[(0, dump) for dump in self.dumps])


Parts = dict[int, list[Framed]]


class ForeignWork(NamedTuple):
    """One Type's fold for the child process. `parts`: further parts that it asked for before."""

    type: str
    work: Work
    parts: Parts


FoldingHere = Generator[list[int], Parts, Folded]
Folding = Generator[list[int] | ForeignWork | Pause, Any, Folded]


class IsLookup(Protocol):
    """What work needs to know about Handlers; taba.handlers.lookup.Lookup is one."""

    @property
    def types(self) -> list[str]: ...
    def get(self, type: str) -> Any | None: ...
    def own(self, type: str) -> bool: ...
    def is_array(self, type: str) -> bool: ...
    def edge(self, type: str) -> int | None: ...


class KnowsTypes(Protocol):
    """What there is to know of a Type's Handler without having it work; a Bench and a Lookup are such."""

    def get(self, type: str) -> Any | None: ...
    def is_array(self, type: str) -> bool: ...


def further_parts(types: KnowsTypes, type: str) -> int:
    """How many further parts a State of `type` has at the most."""
    return int(types.get(type).further_parts) if types.is_array(type) else 0  # type: ignore[union-attr]


class Turn:
    """What a child process has for the Events of one row, one by one. `begin` is called with the place of each before it is folded; where
    `is_over` says so, the rest is left: then `done` is how many were looked at."""

    def __init__(self, begin: Callable[[int], None], is_over: Callable[[], bool]):
        self.begin, self.is_over = begin, is_over
        self.done: int | None = None


def fold_type(
    handler: Any,
    is_array: bool,
    work: Work,
    now: float,
    is_own: bool = True,
    turn: Turn | None = None,
) -> FoldingHere:
    """Fold `work`. Yields rows whose further parts it needs, is sent them, returns Folded. Raises nothing.

    A plain Handler that is not Taba's own (`is_own`) gets lists of Python's floats, whatever the values: its author knows no numpy.
    With `turn` each Event of a row is folded by itself.
    """
    folded = nothing_folded()
    work = work._replace(columns=Runs.of(work.columns))
    if (is_array or is_own) and turn is None:
        if is_array and work.merges and work.columns and getattr(handler, "fold_dumps", None) is not None:
            merging = {row for row, _ in work.merges}
            if not merging.issuperset(work.runs.rows):
                parts_of = [(set[int](), work.runs.chosen(merging, False)), (merging, work.runs.chosen(merging, True))]
                return (yield from _fold_apart(handler, True, work, now, is_own, parts_of))  # type: ignore[misc]
        if (yield from _fold_kept(handler, work, now, folded)):
            return folded
    rows = list(dict.fromkeys([*work.runs.rows, *(row for row, _ in work.merges)] if work.merges else work.runs.rows))
    if max(map(_VERSION_OF, work.states), default=0) > handler.version:
        for row in rows:
            if (version := work.states[row].version) > handler.version:
                folded.failed[row] = Failed(NEWER_STATE, f"the State has version {version}, the Handler {handler.version}")
        rows = [row for row in rows if row not in folded.failed]
    if turn is not None:
        folded.failed.update(dict.fromkeys(rows, Failed(HANDLER_ERROR, "")))
    elif is_array:
        yield from _fold_arrays(handler, work, now, rows, folded)
    else:
        _fold_plainly(handler, work, now, rows, folded, is_own)
    tries = MAX_TRIES
    parts: Parts = {}
    for row in rows:
        if row in folded.failed:
            search = _Search(handler, is_array, work, row, now, is_own, turn, tries)
            steps = search.run(folded)
            sent: Parts | None = None
            while _wants(steps, sent):
                if row not in parts:
                    # of all that are to be looked at, since a cycle reads a few times at the most
                    parts.update((yield [other for other in rows if other in folded.failed and other not in parts]))
                sent = parts
            tries = search.tries
    return folded


def fold_in_lots(handler: Any, is_array: bool, work: Work, now: float) -> Folding:
    """`fold_type` of a Handler of Taba's own that takes a while for each State: of many States some at a time, with a Pause between."""
    work = work._replace(columns=Runs.of(work.columns))
    runs = work.runs
    if amount_of(len(runs.rows) + len(work.merges), sum(runs.counts)) <= MOST_AT_ONCE:
        return (yield from fold_type(handler, is_array, work, now))
    return (yield from _fold_apart(handler, is_array, work, now, True, _lots_of(work), PAUSE))


def _lots_of(work: Work) -> list[tuple[set[int], Runs]]:
    """The rows of `work` and their Events, in lots of MOST_AT_ONCE; of those that have many Events, fewer."""
    runs, events = work.runs, dict[int, int]()
    for row, count in zip(runs.rows, runs.counts, strict=True):
        events[row] = events.get(row, 0) + count
    for row, _ in work.merges:
        events.setdefault(row, 0)
    lots: list[tuple[set[int], Runs]] = [(set(), Runs())]
    of: dict[int, Runs] = {}
    amount = 0
    for row, count in events.items():
        its = amount_of(1, count)
        if amount and amount + its > MOST_AT_ONCE:
            lots.append((set(), Runs()))
            amount = 0
        rows, of[row] = lots[-1]
        rows.add(row)
        amount += its
    for row, times, values in runs:
        of[row].add(row, times, values)
    return lots


def _wants(steps: Generator[list[int], Parts, None], sent: Parts | None) -> bool:
    """Let a search go on; whether it wants the parts of its row."""
    try:
        steps.send(sent)  # type: ignore[arg-type]
    except StopIteration:
        return False
    return True


def _fold_kept(handler: Any, work: Work, now: float, folded: Folded) -> Generator[list[int], Parts, bool]:
    """Fold what is kept as it is, with no step for each State, where the Handler has such a way; False where it does not come to that."""
    if not isinstance(work.states, Kept) or work.merges or getattr(handler, "fold_dumps", None) is None:
        return False
    states = _fold_dumps(handler, work.states.contents, work.runs, now, handler.version)
    if states is None:
        return False
    spilling = handler.spilling(states)
    if len(spilling):
        rows = spilling.tolist()
        framed = yield rows
        try:
            parts = handler.spill(states, spilling, [_dumps_of(framed[row], handler.version) for row in rows])
        except ValueError:  # who is at fault is found with the arrays
            return False
        folded.parts.update(zip(rows, parts, strict=True))
    folded.states.update(enumerate(handler.dump_array(states)))
    return True


def _fold_apart(
    handler: Any,
    is_array: bool,
    work: Work,
    now: float,
    is_own: bool,
    parts: Sequence[tuple[set[int], Runs]],
    between: Pause | None = None,
) -> Folding:
    """Fold each of `parts` by itself: the rows to which States are added or that are named, and Events. With `between` that is yielded
    between two of them."""
    kept = work.states.contents if isinstance(work.states, Kept) else None
    running: list[tuple[list[int], FoldingHere, Parts | None]] = []
    for its, runs in parts:
        rows = list(dict.fromkeys([*runs.rows, *(row for row, _ in work.merges if row in its)]))
        place = {row: at for at, row in enumerate(rows)}
        runs.rows = [place[row] for row in runs.rows]
        merges = [(place[row], dump) for row, dump in work.merges if row in its]
        states = list(map(work.states.__getitem__, rows)) if kept is None else Kept(list(map(kept.__getitem__, rows)))
        running.append((rows, fold_type(handler, is_array, Work(states, runs, merges=merges), now, is_own), None))
    folded = nothing_folded()
    while running:
        wanted: list[tuple[list[int], FoldingHere, list[int]]] = []
        for rows, steps, sent in running:
            try:
                wanted.append((rows, steps, steps.send(sent)))  # type: ignore[arg-type]
            except StopIteration as stop:
                folded.take(Folded(*[{rows[at]: found for at, found in its.items()} for its in stop.value]))
            if between is not None and rows is not running[-1][0]:
                yield between
        found = (yield [rows[at] for rows, _, need in wanted for at in need]) if wanted else {}
        running = [(rows, steps, {at: found[rows[at]] for at in need}) for rows, steps, need in wanted]
    return folded


class _Search:
    """Which Events of one row cannot be folded; the others are."""

    def __init__(
        self,
        handler: Any,
        is_array: bool,
        work: Work,
        row: int,
        now: float,
        is_own: bool,
        turn: Turn | None,
        tries: int,
    ):
        self.handler, self.is_array, self.row, self.now, self.is_own = handler, is_array, row, now, is_own
        self.turn, self.tries = turn, tries
        self.state = work.states[row]
        self.parts: list[Framed] | None = None  # not known yet
        self.has_new_parts = False
        self.events = run_of(work, row)

    def run(self, folded: Folded) -> Generator[list[int], Parts, None]:
        count = self.events.places
        last = folded.failed[self.row]
        if count <= 1 and self.turn is None:
            return
        failure = self._loads()
        if failure is not None:
            folded.failed[self.row] = failure
            return
        is_folded = False
        spoiled: list[tuple[Failed, list[int]]] = []
        runs = [(count // 2, count), (0, count // 2)]
        if self.turn is not None:
            runs = [(place, place + 1) for place in reversed(range(count))]
        while runs:
            start, end = runs.pop()
            if self.turn is not None and start and self.turn.is_over():
                self.turn.done = start
                break
            may_split = self.tries > 0
            self.tries -= may_split
            if self.turn is not None:
                self.turn.begin(start)
            outcome = yield from self._fold(start, end)
            if 0 in outcome.states:
                is_folded = True
                self.state = Framed(self.handler.version, 0, outcome.states[0])
                if 0 in outcome.parts:
                    self.has_new_parts = True
                    self.parts = [Framed(self.handler.version, 0, part) if part else ABSENT for part in outcome.parts[0]]
                continue
            last = outcome.failed.get(0) or Failed(HANDLER_ERROR, "the Handler gave no State")
            if end - start == 1 or not may_split:
                _spoil(spoiled, last, range(start, end))
            else:
                middle = (start + end) // 2
                runs += ((middle, end), (start, middle))
        if is_folded:
            folded.states[self.row] = self.state.dump
            del folded.failed[self.row]
            if self.has_new_parts and self.parts is not None:
                folded.parts[self.row] = [part.dump for part in self.parts]
        else:
            folded.failed[self.row] = last
        if spoiled:
            folded.spoiled[self.row] = spoiled

    def _loads(self) -> Failed | None:
        """Why nothing can be folded into this State at all."""
        try:
            if not self.is_array:
                _loaded(self.handler, self.state)
            elif self.state.version in (0, self.handler.version):
                self.handler.load_array([self.state.dump])
        except BaseException as error:
            return Failed(HANDLER_ERROR, sentence(error))
        return None

    def _fold(self, start: int, end: int) -> Generator[list[int], Parts, Folded]:
        outcome = nothing_folded()
        work = self.events.between(start, end).work(self.state)
        if not self.is_array:
            _fold_plainly(self.handler, work, self.now, [0], outcome, self.is_own)
            return outcome
        steps = _fold_arrays(self.handler, work, self.now, [0], outcome)
        sent: Any = None
        try:
            while True:
                steps.send(sent)
                if self.parts is None:
                    self.parts = (yield [self.row])[self.row]
                sent = {0: self.parts}
        except StopIteration:
            return outcome


def _spoil(spoiled: list[tuple[Failed, list[int]]], failed: Failed, places: Sequence[int]) -> None:
    if spoiled and spoiled[-1][0] == failed:
        spoiled[-1][1].extend(places)
    else:
        spoiled.append((failed, list(places)))


def picked(run: RowEvents, places: Sequence[int]) -> RowEvents:
    """The Events at these places."""
    times = numpy.frombuffer(run.times, "<f8")[list(places)].tobytes()
    if isinstance(run.values, bytes):
        return RowEvents(times, numpy.frombuffer(run.values, "<f8")[list(places)].tobytes())
    return RowEvents(times, [run.values[place] for place in places])


def run_of(work: Work, row: int) -> RowEvents:
    """All Events of a row, in order."""
    columns = [(times, values) for of, times, values in work.columns if of == row]
    dumps = tuple(dump for of, dump in work.merges if of == row)
    if len(columns) == 1:
        return RowEvents(*columns[0], dumps)
    times = b"".join(times for times, _ in columns)
    if all(isinstance(values, bytes) for _, values in columns):
        return RowEvents(times, b"".join(values for _, values in columns), dumps)  # type: ignore[misc]
    flat: list[Any] = []
    for _, values in columns:
        flat.extend(numpy.frombuffer(values, "<f8").tolist() if isinstance(values, bytes) else values)
    return RowEvents(times, flat, dumps)


def _fold_plainly(handler: Any, work: Work, now: float, rows: list[int], folded: Folded, is_own: bool) -> None:
    events = _events_of(work.runs, is_own)
    for row in rows:
        try:
            dump = handler.dump(handler.fold(_loaded(handler, work.states[row]), events[row], now))
            if type(dump) is bytes and len(dump) <= MAX_STATE_BYTES:
                folded.states[row] = dump
            else:
                _accept(folded, row, dump)
        except BaseException as error:
            folded.failed[row] = Failed(HANDLER_ERROR, sentence(error))


def _loaded(handler: Any, state: Framed) -> Any:
    if not state.version:
        return handler.new_state()
    if state.version < handler.version:
        return handler.upgrade(state.dump, state.version)
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


def _fold_arrays(handler: Any, work: Work, now: float, rows: list[int], folded: Folded) -> Generator[list[int], Parts, None]:
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
                state = work.states[row]
                further = _dumps_of(parts.get(row, ()), state.version)
                dumps[row], *upgraded[row] = handler.upgrade_parts([state.dump, *further], state.version)
            except BaseException as error:
                folded.failed[row] = Failed(HANDLER_ERROR, sentence(error))
        rows = [row for row in rows if row not in folded.failed]
    lots = _fold_lots(handler, dumps, work, now, rows, folded)
    wanted = [row for lot in lots for row in lot.spilling if row not in upgraded]
    further_parts: dict[int, list[bytes]] = {}
    if wanted:
        for row, framed in (yield wanted).items():
            try:
                further_parts[row] = _dumps_of(framed, handler.version)
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
        quick = None if of_merges else _fold_dumps(handler, dumps, runs, now, 0)
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


def _fold_dumps(handler: Any, dumps: list[bytes], runs: Runs, now: float, version: int) -> Any:
    """What a Handler makes of the bytes at once, where it has such a way, and it is one for these Events; else None.

    With a `version` each of `dumps` is behind a frame, which has to say that one.
    """
    fold_dumps = getattr(handler, "fold_dumps", None)
    if fold_dumps is None or not _BYTES.issuperset(map(type, runs.values)):
        return None
    return fold_dumps(dumps, _rows_of(runs), _floats(runs.times), _floats(runs.values), now, version)  # type: ignore[arg-type]


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


def _dumps_of(parts: Sequence[Framed], version: int) -> list[bytes]:
    if any(part.version not in (0, version) for part in parts):
        raise ValueError("a further part has another version than its State")
    return [part.dump for part in parts]
