"""One Type's fold while it goes from child to child: what is done, what is left, and who is suspected. It does no work itself.

1. A child answers for one lot of rows after another. At its turn's end, or where it dies, what it answered is done.
2. Where a child dies at a row, the row is folded again Event by Event: the Event at which the second child dies is the culprit.
3. A row that is folded Event by Event may take many turns: what it has come to is carried from one to the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

from taba.bounds import MiB
from taba.server.keys import ABSENT, Framed
from taba.server.work.child import pack
from taba.server.work.faults import MAX_DETAIL
from taba.server.work.renewing import MAX_STATE_BYTES
from taba.server.work.rows import (
    HANDLER_ERROR,
    REASONS,
    STATE_TOO_LARGE,
    Failed,
    Folded,
    ForeignWork,
    RowEvents,
    nothing_folded,
    picked,
    run_of,
)

REQUEST_BYTES = 16 * MiB  # of States and Events in one request, unless one State alone is more; a frame takes four times as many


class Errand:
    """One Type's fold, while it goes from child to child: what is done, what is left, and who is suspected."""

    def __init__(self, foreign: ForeignWork, is_array: bool, version: int):
        """`version`: the Handler's, which States have that it gives."""
        self.foreign, self._version = foreign, version
        self.folded = nothing_folded()
        self.wanted: list[int] = []
        rows = list(dict.fromkeys(row for row, _, _ in foreign.work.columns))
        # an array Handler folds all its States at once, and where that is its end, each alone
        self.lots = [rows] if is_array and rows else [[row] for row in rows]
        self.progress = 0  # grows with each answer of a child
        self.seconds = 0.0  # that children have worked on it, since the last of them died
        self.convicted = 0  # culprits that it had
        self.is_slow = False  # it was said that it takes long
        self.is_behind = False  # nobody waits for it, and whoever comes again finds what it did
        self._parts = dict(foreign.parts)
        self._singly = False  # the first lot, one row, is folded Event by Event
        self._place = 0  # … and the child has come to this one of what is left of them
        self._left: dict[int, list[int]] = {}  # by row that was suspected, the places of its Events that are still to be folded
        self._carried: dict[int, Framed] = {}  # what such a row has come to at the end of a turn
        self._asked: list[list[int]] = []

    def request(self) -> tuple[Any, ...]:
        """The next request's arguments: as many lots as fit."""
        work = self.foreign.work
        sizes = {row: len(work.states[row].dump) for lot in self.lots for row in lot}
        for row, times, values in work.columns:
            if row in sizes:
                sizes[row] += len(times) + (len(values) if isinstance(values, bytes) else 16 * len(values))
        asked: list[list[int]] = []
        room = REQUEST_BYTES
        for lot in self.lots[: 1 if self._singly else None]:
            size = sum(sizes[row] for row in lot)
            if asked and size > room:
                break
            if size > REQUEST_BYTES and len(lot) > 1:
                self.lots[:1] = [lot[: len(lot) // 2], lot[len(lot) // 2 :]]
                return self.request()
            asked.append(lot)
            room -= size
        self._asked, self._place = list(asked), 0
        chosen = {row for lot in asked for row in lot}
        states = [self._carried.get(row, state) if row in chosen else ABSENT for row, state in enumerate(work.states)]
        columns: list[Any] = [column for column in work.columns if column[0] in chosen and column[0] not in self._left]
        columns += [(row, *self._events(row)[:2]) for row in chosen if row in self._left]
        return states, columns, {row: parts for row, parts in self._parts.items() if row in chosen}, asked, self._singly

    def _events(self, row: int) -> RowEvents:
        return picked(run_of(self.foreign.work, row), self._left[row])

    def take(self, item: Any) -> None:
        """The child's answer for the next lot; or, for a row that is folded Event by Event, for as many as its turn was long enough for."""
        if not self._asked:
            return
        lot = self._asked.pop(0)
        answer, wants, done = _read_folded(lot, item, self._left)
        self.progress += 1
        if done is not None and self._singly and 0 < done < len(self._left[lot[0]]):
            self._carry(lot[0], answer, done)
            return
        self.lots.pop(0)
        self._singly = False
        for row, spoiled in answer.spoiled.items():
            self.folded.spoiled.setdefault(row, []).extend(spoiled)
        for row in lot:
            if row in answer.states:
                self.folded.states[row] = answer.states[row]
                if row in answer.parts:
                    self.folded.parts[row] = answer.parts[row]
                elif row in self._carried and row in self._parts:
                    self.folded.parts[row] = [part.dump for part in self._parts[row]]
            elif row in answer.failed:
                self._fail(row, answer.failed[row])
        self.wanted += wants

    def _carry(self, row: int, answer: Folded, done: int) -> None:
        """The turn was over after `done` of the row's Events."""
        self.folded.spoiled.setdefault(row, []).extend(answer.spoiled.get(row, []))
        if row in answer.states:
            self._carried[row] = Framed(self._version, 0, answer.states[row])
            if row in answer.parts:
                self._parts[row] = [Framed(self._version, 0, part) if part else ABSENT for part in answer.parts[row]]
        del self._left[row][:done]

    def _fail(self, row: int, failure: Failed) -> None:
        """No Event that was left of this row was folded; what was carried until here stays."""
        if row not in self._carried:
            self.folded.failed[row] = failure
            return
        known = {place for _, places in self.folded.spoiled.get(row, ()) for place in places}
        rest = [place for place in self._left[row] if place not in known]
        if rest:
            self.folded.spoiled.setdefault(row, []).append((failure, rest))
        self.folded.states[row] = self._carried[row].dump
        if row in self._parts:
            self.folded.parts[row] = [part.dump for part in self._parts[row]]

    @property
    def done(self) -> list[int]:
        """The rows that are settled: folded, failed, or in want of further parts."""
        left = {row for lot in self.lots for row in lot}
        return [row for row in dict.fromkeys(row for row, _, _ in self.foreign.work.columns) if row not in left]

    def come_to(self, place: Any) -> None:
        """The child begins with this Event of the row that it is at."""
        if isinstance(place, int) and place >= 0:
            self._place = place

    def convict(self, row: int, culprits: Mapping[int, Failed]) -> None:
        """These Events of the row, by place, are known as culprits: no child sees them."""
        count = len(run_of(self.foreign.work, row).times) >> 3
        self._left[row] = [place for place in range(count) if place not in culprits]
        self.folded.spoiled[row] = [(failure, [place]) for place, failure in culprits.items()]
        if not self._left[row]:
            self.folded.failed[row] = next(iter(culprits.values()))
            self.lots = [rest for lot in self.lots if (rest := [one for one in lot if one != row])]

    def suspect(self, died: Exception) -> Culprit | None:
        """The child died at the first lot. Whether that makes somebody a culprit: it has happened before at this very place."""
        lot = self.lots[0]
        if len(lot) > 1:
            self.lots[:1] = [[row] for row in lot]
            return None
        [row] = lot
        if not self._singly:
            self._left.setdefault(row, list(range(len(run_of(self.foreign.work, row).times) >> 3)))
            self._singly = True
            return None
        failure = Failed(HANDLER_ERROR, f"the Handler's process died: {died}"[:MAX_DETAIL])
        left = self._left[row]
        culprit = left.pop(min(self._place, len(left) - 1))
        self.folded.spoiled.setdefault(row, []).append((failure, [culprit]))
        self._singly = False
        if not left:
            self._fail(row, failure)
            self.lots.pop(0)
        return Culprit(row, culprit, failure)

    def fail_rest(self, why: str) -> None:
        """Nothing more is asked: what is left has failed."""
        failure = Failed(HANDLER_ERROR, why[:MAX_DETAIL])
        self.folded.failed.update({row: failure for lot in self.lots for row in lot})
        self.lots = []


class Culprit(NamedTuple):
    """The Event that was a child's end: its place among those of its row."""

    row: int
    place: int
    failure: Failed


def digest_of(name: bytes, run: RowEvents, place: int) -> bytes:
    """What an Event is known by: its State's name, its time and its value."""
    time, value, _ = run.between(place, place + 1)
    content = value if isinstance(value, bytes) else pack(value)
    return blake2b(b"%d:%b%b%b" % (len(name), name, time, content), digest_size=16).digest()


def _read_folded(lot: list[int], item: Any, left: Mapping[int, list[int]]) -> tuple[Folded, list[int], int | None]:
    """An answer of the child's, the rows that it wants further parts of, and how many Events it looked at where its turn was over before
    the end. The child is not trusted."""
    folded = nothing_folded()
    try:
        states, parts, failed, spoiled, wants, done = item
        for row, of_row in spoiled.items():
            if row in lot:
                places = left.get(row)
                for failure, indexes in of_row:
                    if not all(isinstance(index, int) and index >= 0 for index in indexes):
                        raise ValueError("not places of Events")
                    indexes = list(dict.fromkeys(indexes))  # none is buried twice
                    known = [places[index] for index in indexes if index < len(places)] if places is not None else indexes
                    folded.spoiled.setdefault(row, []).append((_failed(failure), known))
        for row, dump in states.items():
            if row not in lot or not isinstance(dump, bytes):
                raise ValueError("not a State")
            further = parts.get(row, [])
            if not all(isinstance(part, bytes) for part in further):
                raise ValueError("not a further part")
            if max(map(len, [dump, *further])) > MAX_STATE_BYTES:
                folded.failed[row] = Failed(STATE_TOO_LARGE, f"a part of the State takes more than {MAX_STATE_BYTES} bytes")
                continue
            folded.states[row] = dump
            if further:
                folded.parts[row] = list(further)
        for row, failure in failed.items():
            if row in lot:
                folded.failed[row] = _failed(failure)
        if done is not None and not isinstance(done, int):
            raise ValueError("not a number of Events")
        return folded, [row for row in wants if row in lot], done
    except (ValueError, TypeError, AttributeError, IndexError):
        return Folded({}, {}, dict.fromkeys(lot, Failed(HANDLER_ERROR, "the Handler's process gave no Folded")), {}), [], None


def _failed(failure: Any) -> Failed:
    reason, detail = failure
    # reasons are counted by name in the store: none of the child's own making
    return Failed(reason if reason in REASONS else HANDLER_ERROR, str(detail)[:MAX_DETAIL])
