"""Runs what may hang or crash in child processes with a deadline: Handlers that are not Taba's own, regular expressions of askers.

1. The child answers item by item; when it falls silent or dies, the item that it was at is the suspect. It is killed, and a new one
   goes on with the rest.
2. Events are dead letters only where a new child died at them, too: a suspect row is folded again, Event by Event, and the Event at
   which the second child dies is the culprit. What killed a child from outside, or kept it from starting, is nobody's fault here.
3. A culprit is remembered for a while: where its cycle is tried again, after a conflict or a store that was away, no child sees it.
4. A Type that does so again and again is suspended for a while, so that it costs the others no more time.
5. Here nothing raises for what a Handler does: what fails is a Failed or a sentence.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from twisted.logger import Logger

from taba.bounds import MiB
from taba.errors import TabaError
from taba.handlers.lookup import Lookup
from taba.server.keys import Framed
from taba.server.work.child import pack
from taba.server.work.faults import MAX_DETAIL
from taba.server.work.folding import (
    HANDLER_ERROR,
    MAX_STATE_BYTES,
    REASONS,
    STATE_TOO_LARGE,
    Failed,
    Folded,
    ForeignWork,
    Run,
    further_parts,
    nothing_folded,
    picked,
    run_of,
)
from taba.server.work.keeping import check_parts
from taba.server.work.line import MAX_OUTSIDE, ChildDied, ChildNotStarted, Line, Prints

ITEM_SECONDS = 2.0  # of a child's own time for one item: a State's fold or Projection, an Aggregate; they take microseconds
MATCH_SECONDS = 1.0  # for one regular expression over all names
MAX_PATTERNS = 8  # that wait to be matched: the last waits for as many seconds at the most
MAX_DEATHS = 3  # of the child by one Type …
SUSPENDED_SECONDS = 60.0  # … within this time; then the Type is suspended for as long
CULPRIT_SECONDS = 60.0  # for which an Event that was a child's end is remembered; cycles are tried again within seconds
MAX_CULPRITS = 100  # of one Type that are remembered, the latest; it is suspended long before
MAX_STARTS = 3  # tries in a row to start a child, before events for its Handlers become dead letters rather than wait
REQUEST_BYTES = 16 * MiB  # of States and Events in one request, unless one State alone is more; a frame takes four times as many

log = Logger()


class PatternRefused(TabaError):
    """This text is no regular expression, or one that cannot be matched in the time that it has."""


class Crowded(TabaError):
    """Too many ask for what a child process does, which takes one question at a time; ask again in a moment."""


class HandlersAway(TabaError):
    """The process in which Handlers work that are not Taba's own does not start now; try later."""


class Sandbox:
    """The child processes of one Server, and which Types are suspended."""

    def __init__(self, lookup: Lookup, reactor: Any, environ: Mapping[str, str] | None = None):
        environ = os.environ if environ is None else environ
        self._lookup, self._reactor = lookup, reactor
        self.prints = Prints(reactor)
        self._handlers = Line(reactor, environ, lookup.excluded, True, self.prints)
        self._patterns = Line(reactor, environ, lookup.excluded, False, self.prints)
        self._deaths: dict[str, list[float]] = {}
        self.deaths: Counter[str] = Counter()
        self._culprits: dict[str, dict[bytes, tuple[float, Failed]]] = {}  # by Type and digest of an Event: since when, and why

    async def close(self) -> None:
        """End the children."""
        await self._handlers.close()
        await self._patterns.close()

    @property
    def problems(self) -> list[str]:
        """Sentences on Types that are suspended now."""
        return [
            f"Type {type} is suspended: its Handler hung or crashed {MAX_DEATHS} times within {SUSPENDED_SECONDS:.0f} s"
            for type in sorted(self._deaths)
            if self._is_suspended(type)
        ]

    async def match(self, pattern: str, texts: Sequence[str]) -> list[str]:
        """Those of `texts` that the whole pattern matches.

        Raises PatternRefused for what is no pattern, or takes longer than MATCH_SECONDS, and Crowded where MAX_PATTERNS wait.
        """
        found: list[int] = []
        if self._patterns.waiting >= MAX_PATTERNS:
            raise Crowded(f"{MAX_PATTERNS} regular expressions wait to be matched; ask again in a moment")
        try:
            rest = await self._patterns.ask(MATCH_SECONDS, found.extend, "match", pattern, list(texts))
        except (ChildDied, ChildNotStarted) as died:
            raise PatternRefused(f"the regular expression {pattern[:100]!r} takes too long to match: {died}") from None
        if rest is not None:
            raise PatternRefused(f"{pattern[:100]!r}: no regular expression: {rest}")
        return [texts[index] for index in found]

    async def fold(self, works: list[ForeignWork], now: float) -> list[Folded | list[int]]:
        """For each work a Folded, or the rows whose further parts its Handler wants. Raises HandlersAway."""
        return [await self._fold(work, now) for work in works]

    async def _fold(self, foreign: ForeignWork, now: float) -> Folded | list[int]:
        folding = _Folding(foreign, self._lookup.is_array(foreign.type))
        for row, culprits in self._known_culprits(foreign).items():
            folding.convict(row, culprits)
        outside = 0
        while folding.lots:
            suspended = self._suspension(foreign.type)
            if suspended is not None:
                folding.fail_rest(suspended)
                break
            try:
                rest = await self._handlers.ask(
                    ITEM_SECONDS, folding.take, "fold", foreign.type, now, *folding.request(), at=folding.come_to
                )
                if rest is not None:
                    raise ChildDied(str(rest))
                if folding.is_answered:
                    continue
                died = ChildDied("it gave no answer")
            except ChildNotStarted as failure:
                if self._handlers.failed_starts < MAX_STARTS:
                    raise HandlersAway(str(failure)) from None
                folding.fail_rest(str(failure))
                break
            except ChildDied as death:
                died = death
            self._log_death(foreign.type, died)
            outside += died.outside
            if died.outside and outside <= MAX_OUTSIDE:
                continue
            culprit = folding.suspect(died)
            if culprit is not None:
                self._note_death(foreign.type)
                self._remember(foreign, culprit)
        return folding.wanted or folding.folded

    async def project(self, type: str, states: Sequence[Any], now: float, detail: bool = False) -> list[Any]:
        """The Projections of States of one Type, or a sentence where there can be none."""
        return await self._each(type, list(states), lambda lot: ("project", type, now, lot, detail))

    async def aggregate(self, type: str, projections: Sequence[Any]) -> Any:
        """The Aggregate, or a sentence."""
        [answer] = await self._each(type, [list(projections)], lambda lot: ("aggregate", type, lot[0]))
        return answer

    async def history(self, type: str, states: Sequence[Any], now: float) -> Any:
        """The History of all States as `pack_history` gives it, or a sentence."""
        [answer] = await self._each(type, [list(states)], lambda lot: ("history", type, now, lot[0]))
        return answer

    async def render(self, type: str, projections: Sequence[Any]) -> list[str]:
        """Each as one line of text."""
        return [str(line) for line in await self._each(type, list(projections), lambda lot: ("render", type, lot))]

    async def upgrade(self, type: str, states: Sequence[Any]) -> list[list[bytes] | str]:
        """The parts of each State as its Handler's version dumps them, or a sentence."""
        answers = await self._each(type, list(states), lambda lot: ("upgrade", type, lot))
        return [self._parts(type, answer) for answer in answers]

    async def prunable(self, type: str, states: Sequence[Any], now: float) -> list[bool | str]:
        """Whether each State has nothing more to say, or a sentence."""
        answers = await self._each(type, list(states), lambda lot: ("prunable", type, now, lot))
        return [answer if isinstance(answer, (bool, str)) else "prunable gave no bool" for answer in answers]

    async def merge(self, type: str, states: Sequence[Any]) -> list[bytes] | str:
        """The parts of the State that is all of `states`, or a sentence."""
        [answer] = await self._each(type, [list(states)], lambda lot: ("merge", type, lot[0]))
        return self._parts(type, answer)

    def _parts(self, type: str, answer: Any) -> list[bytes] | str:
        if isinstance(answer, str):
            return answer
        try:
            return check_parts(answer, 1 + further_parts(self._lookup, type))
        except ValueError as error:
            return str(error)

    async def _each(self, type: str, items: list[Any], request: Callable[[list[Any]], tuple[Any, ...]]) -> list[Any]:
        answers: list[Any] = []
        at_once = len(items)
        outside = 0
        while len(answers) < len(items):
            suspended = self._suspension(type)
            if suspended is not None:
                answers += [suspended] * (len(items) - len(answers))
                break
            left = items[len(answers) :][:at_once]
            left = left[: _fitting(left)]
            before = len(answers)
            try:
                rest = await self._handlers.ask(ITEM_SECONDS, answers.append, *request(left))
                if rest is None and len(answers) - before == len(left):
                    continue
                died = ChildDied(str(rest or "it gave no answer"))
            except ChildNotStarted as failure:
                answers += [str(failure)] * (len(items) - len(answers))
                break
            except ChildDied as death:
                died = death
            except (TypeError, ValueError, OverflowError) as error:  # no frame can carry it: nobody has died
                at_once = 1
                if len(left) == 1:
                    answers.append(f"the Handler's process cannot be asked: {error}"[:MAX_DETAIL])
                continue
            self._log_death(type, died)
            outside += died.outside
            if died.outside and outside <= MAX_OUTSIDE:
                continue
            if at_once > 1 and len(answers) == before:
                at_once = 1  # an array Handler answers for all at once: now each alone
                continue
            self._note_death(type)
            if len(answers) < len(items):
                answers.append(f"the Handler's process died: {died}"[:MAX_DETAIL])
        return answers[: len(items)]

    def _log_death(self, type: str, died: Exception) -> None:
        self.deaths[type] += 1
        log.error("the Handler of Type {type}: {died}", type=type, died=died)

    def _note_death(self, type: str) -> None:
        self._deaths.setdefault(type, []).append(self._reactor.seconds())
        del self._deaths[type][:-MAX_DEATHS]

    def _remember(self, foreign: ForeignWork, culprit: _Culprit) -> None:
        if not foreign.work.names:
            return
        run = run_of(foreign.work, culprit.row)
        known = self._culprits.setdefault(foreign.type, {})
        known[_digest(foreign.work.names[culprit.row], run, culprit.place)] = (self._reactor.seconds(), culprit.failure)
        if len(known) > MAX_CULPRITS:
            del known[next(iter(known))]

    def _known_culprits(self, foreign: ForeignWork) -> dict[int, dict[int, Failed]]:
        """By row the places of Events that were a child's end a moment ago: the same State's, of the same time and value."""
        since = self._reactor.seconds() - CULPRIT_SECONDS
        known = {digest: kept for digest, kept in self._culprits.pop(foreign.type, {}).items() if kept[0] > since}
        if not known:
            return {}
        self._culprits[foreign.type] = known
        found: dict[int, dict[int, Failed]] = {}
        for row in dict.fromkeys(row for row, _, _ in foreign.work.columns):
            run = run_of(foreign.work, row)
            for place in range(len(run.times) >> 3):
                _, failure = known.get(_digest(foreign.work.names[row], run, place), (0.0, None))
                if failure is not None:
                    found.setdefault(row, {})[place] = failure
        return found

    def _suspension(self, type: str) -> str | None:
        """Why nothing is asked of `type` now."""
        if self._is_suspended(type):
            return f"Type {type} is suspended, because its Handler hung or crashed too often"
        return None

    def _is_suspended(self, type: str) -> bool:
        deaths = self._deaths.get(type, [])
        return len(deaths) >= MAX_DEATHS and self._reactor.seconds() - deaths[0] < SUSPENDED_SECONDS


class _Folding:
    """One Type's fold, while it goes from child to child: what is done, what is left, and who is suspected."""

    def __init__(self, foreign: ForeignWork, is_array: bool):
        self._foreign = foreign
        self.folded = nothing_folded()
        self.wanted: list[int] = []
        rows = list(dict.fromkeys(row for row, _, _ in foreign.work.columns))
        # an array Handler folds all its States at once, and where that is its end, each alone
        self.lots = [rows] if is_array and rows else [[row] for row in rows]
        self._singly = False  # the first lot, one row, is folded Event by Event
        self._place = 0  # … and the child has come to this one of what is left of them
        self._left: dict[int, list[int]] = {}  # by row that was suspected, the places of its Events that are no culprits
        self._asked: list[list[int]] = []
        self._answered = 0

    @property
    def is_answered(self) -> bool:
        """Whether the child has answered for all that it was asked."""
        return self._answered == len(self._asked)

    def request(self) -> tuple[Any, ...]:
        """The next request's arguments: as many lots as fit."""
        work = self._foreign.work
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
        self._asked, self._answered, self._place = asked, 0, 0
        chosen = {row for lot in asked for row in lot}
        states = [state if row in chosen else (0, 0, b"") for row, state in enumerate(work.states)]
        columns: list[Any] = [column for column in work.columns if column[0] in chosen and column[0] not in self._left]
        columns += [(row, *self._events(row)) for row in chosen if row in self._left]
        return states, columns, self._foreign.parts, asked, self._singly

    def _events(self, row: int) -> Run:
        return picked(run_of(self._foreign.work, row), self._left[row])

    def take(self, item: Any) -> None:
        """The child's answer for the next lot."""
        if self._answered < len(self._asked):
            lot = self._asked[self._answered]
            self._answered += 1
            self.lots.pop(0)
            self._singly = False
            self.wanted += _read_folded(lot, item, self._left, self.folded)

    def come_to(self, place: Any) -> None:
        """The child begins with this Event of the row that it is at."""
        if isinstance(place, int) and place >= 0:
            self._place = place

    def convict(self, row: int, culprits: Mapping[int, Failed]) -> None:
        """These Events of the row, by place, are known as culprits: no child sees them."""
        count = len(run_of(self._foreign.work, row).times) >> 3
        self._left[row] = [place for place in range(count) if place not in culprits]
        self.folded.spoiled[row] = [(failure, [place]) for place, failure in culprits.items()]
        if not self._left[row]:
            self.folded.failed[row] = next(iter(culprits.values()))
            self.lots = [rest for lot in self.lots if (rest := [one for one in lot if one != row])]

    def suspect(self, died: ChildDied) -> _Culprit | None:
        """The child died at the first lot. Whether that makes somebody a culprit: it has happened before at this very place."""
        lot = self.lots[0]
        if len(lot) > 1:
            self.lots[:1] = [[row] for row in lot]
            return None
        [row] = lot
        if not self._singly:
            self._left.setdefault(row, list(range(len(run_of(self._foreign.work, row).times) >> 3)))
            self._singly = True
            return None
        failure = Failed(HANDLER_ERROR, f"the Handler's process died: {died}"[:MAX_DETAIL])
        left = self._left[row]
        culprit = left.pop(min(self._place, len(left) - 1))
        self.folded.spoiled.setdefault(row, []).append((failure, [culprit]))
        self._singly = False
        if not left:
            self.folded.failed[row] = failure
            self.lots.pop(0)
        return _Culprit(row, culprit, failure)

    def fail_rest(self, why: str) -> None:
        """Nothing more is asked: what is left has failed."""
        failure = Failed(HANDLER_ERROR, why[:MAX_DETAIL])
        self.folded.failed.update({row: failure for lot in self.lots for row in lot})
        self.lots = []


class _Culprit(NamedTuple):
    """The Event that was a child's end: its place among those of its row."""

    row: int
    place: int
    failure: Failed


def _digest(name: bytes, run: Run, place: int) -> bytes:
    """What an Event is known by: its State's name, its time and its value."""
    time, value = run.between(place, place + 1)
    content = value if isinstance(value, bytes) else pack(value)
    return blake2b(b"%d:%b%b%b" % (len(name), name, time, content), digest_size=16).digest()


def _read_folded(lot: list[int], item: Any, left: Mapping[int, list[int]], folded: Folded) -> list[int]:
    """Take an answer of the child's into `folded`; the rows that it wants further parts of. The child is not trusted."""
    try:
        states, parts, failed, spoiled, wants = item
        for row, of_row in spoiled.items():
            if row in lot:
                places = left.get(row)
                for failure, indexes in of_row:
                    if not all(isinstance(index, int) and index >= 0 for index in indexes):
                        raise ValueError("not places of Events")
                    known = [places[index] for index in indexes if index < len(places)] if places is not None else list(indexes)
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
        return [row for row in wants if row in lot]
    except (ValueError, TypeError, AttributeError, IndexError):
        folded.failed.update(dict.fromkeys(lot, Failed(HANDLER_ERROR, "the Handler's process gave no Folded")))
        return []


def _failed(failure: Any) -> Failed:
    reason, detail = failure
    # reasons are counted by name in the store: none of the child's own making
    return Failed(reason if reason in REASONS else HANDLER_ERROR, str(detail)[:MAX_DETAIL])


def _fitting(items: Sequence[Any]) -> int:
    """How many of the first items fit into one request; one at the least."""
    size = 0
    for count, item in enumerate(items):
        if isinstance(item, (list, tuple)) and item and isinstance(item[0], Framed):
            size += sum(len(part.dump) for part in item)
        if size > REQUEST_BYTES and count:
            return count
    return len(items)
