"""The culprits among one row's Events, when its fold fails: found in smaller and smaller runs, while all others stay in the State."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

from taba.server.keys import ABSENT, Framed
from taba.server.work.applying import fold_arrays, fold_plainly, loaded
from taba.server.work.faults import sentence
from taba.server.work.rows import HANDLER_ERROR, Failed, Folded, Parts, Work, nothing_folded, run_of


class Turn:
    """What a child process has for the Events of one row, one by one. `begin` is called with the place of each before it is folded; where
    `is_over` says so, the rest is left: then `done` is how many were looked at."""

    def __init__(self, begin: Callable[[int], None], is_over: Callable[[], bool]):
        self.begin, self.is_over = begin, is_over
        self.done: int | None = None


class Search:
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
        """Find them, and correct `folded`. Yields the row where it needs its further parts, and is sent them."""
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
                loaded(self.handler, self.state, self.now)
            elif self.state.version in (0, self.handler.version):
                self.handler.load_array([self.state.dump])
        except BaseException as error:
            return Failed(HANDLER_ERROR, sentence(error))
        return None

    def _fold(self, start: int, end: int) -> Generator[list[int], Parts, Folded]:
        outcome = nothing_folded()
        work = self.events.between(start, end).work(self.state)
        if not self.is_array:
            fold_plainly(self.handler, work, self.now, [0], outcome, self.is_own)
            return outcome
        steps = fold_arrays(self.handler, work, self.now, [0], outcome)
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
