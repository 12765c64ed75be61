"""The fold of one Type in one cycle: States as bytes in, Events in, States as bytes out. Pure; no key, no store.

1. All States are folded at once, as far as the Handler can (`applying`); of a State whose own fold raises, the culprits among its Events
   are found, and only they fail (`culprits`).
2. A State that fails is not in the result: its bytes stay as they are.
3. Further parts are asked for only where they are needed: by rows that spill, and by rows of an older version.

The same code runs in the Server and in the child process for Handlers that are not Taba's own.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from operator import itemgetter
from typing import Any

from taba.server.keys import ABSENT, Framed, Kept
from taba.server.work.applying import dumps_of, fold_arrays, fold_dumps_at_once, fold_plainly, merge_dumps_at_once
from taba.server.work.culprits import Search, Turn
from taba.server.work.pace import EVENTS, MOST_AT_ONCE, PAUSE, Pause, amount_of
from taba.server.work.rows import (
    HANDLER_ERROR,
    NEWER_STATE,
    Failed,
    Folded,
    Folding,
    FoldingHere,
    Parts,
    Work,
    nothing_folded,
    run_of,
)
from taba.server.work.runs import Runs

_VERSION_OF = itemgetter(0)  # of a Framed

TRIES_FOR_ONE = 40  # at the most, to find one Event at fault among all that a cycle may have: each halves them, and tries both
MAX_TRIES = 2000  # folds in one call to find the Events at fault: finds 100 among 10,000. A Handler that always raises ends soon


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
        yield from fold_arrays(handler, work, now, rows, folded)
    else:
        fold_plainly(handler, work, now, rows, folded, is_own)
    tries = MAX_TRIES
    parts: Parts = {}
    for row in rows:
        if row in folded.failed:
            search = Search(handler, is_array, work, row, now, is_own, turn, tries)
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
    """`fold_type` of a Handler of Taba's own that takes a while for each State: of many States, and of many Events of one, some at a time,
    with a Pause between."""
    work = work._replace(columns=Runs.of(work.columns))
    runs = work.runs
    if amount_of(len(runs.rows) + len(work.merges), sum(runs.counts)) <= MOST_AT_ONCE:
        return (yield from fold_type(handler, is_array, work, now))
    events = _events_of(work)
    large = {row for row, count in events.items() if count > MOST_AT_ONCE * EVENTS}
    if not large:
        return (yield from _fold_apart(handler, is_array, work, now, True, _lots_of(work, events), PAUSE))
    folded = nothing_folded()
    if len(large) < len(events):
        others = work._replace(columns=runs.chosen(large, False), merges=[merge for merge in work.merges if merge[0] not in large])
        folded = yield from fold_in_lots(handler, is_array, others, now)
    for row in sorted(large):
        yield PAUSE
        folded.take((yield from _fold_in_pieces(handler, is_array, work, row, now)))
    return folded


def _fold_in_pieces(handler: Any, is_array: bool, work: Work, row: int, now: float) -> Folding:
    """Fold the Events of one State so many at a time, each upon what came of those before."""
    state, events, folded = work.states[row], run_of(work, row), nothing_folded()
    known: list[Framed] | None = None  # its further parts
    spoiled: list[tuple[Failed, list[int]]] = []
    step = MOST_AT_ONCE * EVENTS
    for start in range(0, events.places, step):
        if start:
            yield PAUSE
        piece = events.between(start, start + step)
        steps = fold_type(handler, is_array, piece.work(state), now)
        sent: Parts | None = None
        while _wants(steps, sent, found := nothing_folded()):
            if known is None:
                known = (yield [row])[row]
            sent = {0: known}
        failed, of_piece = found.failed.get(0), found.spoiled.get(0, [])
        if failed is not None and not of_piece:
            if piece.places > 1:  # nothing at all can be folded into it
                return Folded({}, {}, {row: failed}, {})
            of_piece = [(failed, [0])]
        spoiled += [(why, [start + place for place in places]) for why, places in of_piece]
        if failed is not None:
            folded.failed[row] = failed
            continue
        folded.states[row] = found.states[0]
        state = Framed(handler.version, state.age, found.states[0])
        if 0 in found.parts:
            folded.parts[row] = found.parts[0]
            known = [Framed(handler.version, state.age, part) if part else ABSENT for part in found.parts[0]]
    if folded.states:
        folded.failed.clear()
    if spoiled:
        folded.spoiled[row] = spoiled
    return folded


def _events_of(work: Work) -> dict[int, int]:
    """By row how many Events it has."""
    runs, events = work.runs, dict[int, int]()
    for row, count in zip(runs.rows, runs.counts, strict=True):
        events[row] = events.get(row, 0) + count
    for row, _ in work.merges:
        events.setdefault(row, 0)
    return events


def _lots_of(work: Work, events: dict[int, int]) -> list[tuple[set[int], Runs]]:
    """The rows of `work`, which have so many Events, in lots of MOST_AT_ONCE; of those that have many Events, fewer."""
    runs = work.runs
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


def _wants(steps: Generator[list[int], Parts, Folded | None], sent: Parts | None, found: Folded | None = None) -> bool:
    """Let a search, or a fold, go on; whether it wants the parts of its row. `found` takes what it comes to."""
    try:
        steps.send(sent)  # type: ignore[arg-type]
    except StopIteration as stop:
        if found is not None:
            found.take(stop.value)
        return False
    return True


def _fold_kept(handler: Any, work: Work, now: float, folded: Folded) -> Generator[list[int], Parts, bool]:
    """Fold what is kept as it is, with no step for each State, where the Handler has such a way; False where it does not come to that."""
    if not isinstance(work.states, Kept) or getattr(handler, "fold_dumps", None) is None:
        return False
    contents, version = work.states.contents, handler.version
    if work.merges:
        states = merge_dumps_at_once(handler, contents, work, now, version)
    else:
        states = fold_dumps_at_once(handler, contents, work.runs, now, version)
    if states is None:
        return False
    spilling = handler.spilling(states)
    if len(spilling):
        rows = spilling.tolist()
        framed = yield rows
        try:
            parts = handler.spill(states, spilling, [dumps_of(framed[row], handler.version) for row in rows])
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
