"""Runs what may hang or crash in child processes with a deadline: Handlers that are not Taba's own, regular expressions of askers.

1. The child answers item by item; when it falls silent or dies, the item that it was at is the suspect. It is killed, and a new one
   goes on with the rest.
2. Events are dead letters only where a new child died at them, too: a suspect row is folded again, Event by Event, and the Event at
   which the second child dies is the culprit. What killed a child from outside, or kept it from starting, is nobody's fault here.
3. A culprit is remembered for a while: where its cycle is tried again, after a conflict or a store that was away, no child sees it.
4. A Type that has culprits again and again is suspended for a while, so that it costs the others no more time.
5. No cycle waits long: a fold that takes more time than it has goes on without it, and whoever comes again finds what was done. So a
   Handler may be slow, and holds no bucket; and it takes turns with those of other Types.
6. Whoever ends a child, is silent for long, takes a whole turn or keeps much memory works apart for a while, in a second process: each Type
   costs the others so much once, and then nothing, however many do so.
7. Here nothing raises for what a Handler does: what fails is a Failed or a sentence.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.logger import Logger

from taba.errors import TabaError
from taba.handlers.lookup import Lookup
from taba.places import ASKER, Crowded, Places
from taba.server.keys import Framed
from taba.server.work.answers import KEEP_SECONDS, Answers
from taba.server.work.asking import Asked, leavable
from taba.server.work.boxing import MAX_FILE_BYTES, MAX_FILES, MAX_MEMORY_BYTES, MAX_PROCESSOR_SECONDS
from taba.server.work.errand import REQUEST_BYTES, Culprit, Errand, digest_of
from taba.server.work.faults import MAX_DETAIL
from taba.server.work.knowing import further_parts
from taba.server.work.line import MAX_OUTSIDE, ChildDied, ChildLine, ChildNotStarted, Prints
from taba.server.work.patterns import PATTERN_CHILDREN, PatternRefused, Patterns
from taba.server.work.renewing import check_parts
from taba.server.work.rows import Failed, Folded, ForeignWork, run_of

OWN_OPTIONS = "TABA_SERVER_"  # as variables begin in which a Server finds its options
ITEM_SECONDS = 2.0  # of a child's own time for one item: a State's fold or Projection, an Aggregate; they take microseconds
QUICK_SECONDS = 0.5  # … where others wait for it: who takes longer is asked again apart, and is at fault for nothing yet
APART_SECONDS = 600.0  # that a Type works apart since the last time that it gave reason to
APART_OF_ASKER = 8  # requests of one asker that wait there or are being answered …
MAX_APART = 16  # … and of all, before questions are told so; a fold has its cycle to wait for it
MAX_DEATHS = 3  # of the child by one Type …
SUSPENDED_SECONDS = 60.0  # … within this time; then the Type is suspended for as long
CULPRIT_SECONDS = 60.0  # for which an Event that was a child's end is remembered; cycles are tried again within seconds
MAX_CULPRITS = 100  # of one Type that are remembered, the latest; it is suspended long before
FOLD_SECONDS = 0.5  # that a cycle waits for its folds; good Handlers take milliseconds, and others' Events of the bucket wait for it
KEEP_FROM_SECONDS = 0.1  # a fold that takes so long is not done twice where its cycle is tried again
ASK_SECONDS = 10.0  # for one question about many States; then what is left of it is not answered
MAX_CULPRITS_OF_RETRY = 20  # in one lot of dead letters that is folded again, of one Type: 4 s each; the rest of them are not tried then
MAX_STARTS = 3  # tries in a row to start a child, before events for its Handlers become dead letters rather than wait

_LATE = object()

log = Logger()


class HandlersAway(TabaError):
    """The process in which Handlers work that are not Taba's own does not start now; try later."""


class HandlerSlow(TabaError):
    """The fold of `type` takes longer than its cycle waits: it goes on, and whoever comes again finds what was done."""

    def __init__(self, type: str):
        super().__init__(f"the Events of Type {type} wait: Handlers take longer than a cycle waits for them")
        self.type = type


class Slow(NamedTuple):
    """How often folds of a Type took longer than a cycle waits, and for how long the last did."""

    times: int
    seconds: float


class _Begun(NamedTuple):
    """A fold of one Type that was asked for: what is known of it from before, the rest, and the work on that where there is any."""

    known: Folded
    wanted: list[int]
    errand: Errand
    working: Deferred[None] | None

    def answer(self) -> Folded | list[int]:
        """A Folded, or the rows whose further parts are wanted."""
        self.known.take(self.errand.folded)
        return [*self.wanted, *self.errand.wanted] or self.known


class Sandbox:
    """The child processes of one Server, and which Types are suspended."""

    def __init__(self, lookup: Lookup, reactor: Any, environ: Mapping[str, str] | None = None):
        # no option of this process, such as the store with its password, is for code of others
        environ = {name: text for name, text in (os.environ if environ is None else environ).items() if not name.startswith(OWN_OPTIONS)}
        self._lookup, self._reactor = lookup, reactor
        self.prints = Prints(reactor)
        self._handlers = ChildLine(reactor, environ, lookup.excluded, True, self.prints, has_reserve=True)
        self._apart = ChildLine(reactor, environ, lookup.excluded, True, self.prints)
        self.askers_apart = Places("requests to Handlers that work apart", MAX_APART, APART_OF_ASKER)
        self._apart_since: dict[str, float] = {}  # by Type
        matching = [ChildLine(reactor, environ, lookup.excluded, False, self.prints) for _ in range(PATTERN_CHILDREN)]
        self.patterns = Patterns(reactor, matching)
        self._deaths: dict[str, list[float]] = {}
        self.deaths: Counter[str] = Counter()
        self.slow: dict[str, Slow] = {}
        self._culprits: dict[str, dict[bytes, tuple[float, Failed]]] = {}  # by Type and digest of an Event: since when, and why
        self._answers = Answers()
        self._behind: Counter[str] = Counter()  # folds that go on although nobody waits for them, by Type
        self._asked: dict[str, float] = {}  # when a Type was last asked to fold
        self._is_closed = False

    def start(self) -> None:
        """Have a process ready before there is work for it."""
        ensureDeferred(self._handlers.warm()).addErrback(lambda failure: log.failure("no process for Handlers", failure=failure))

    async def close(self) -> None:
        """End the children."""
        self._is_closed = True
        for line in (self._handlers, self._apart, *self.patterns.lines):
            await line.close()

    def describe(self) -> dict[str, Any]:
        """What the process of Handlers is kept from, for a status; `network`: whether it reaches any, `processes`: whether it can start
        others, `server_memory`: whether it reaches that; None before there was one. `apart`: the Types that work in a second one now."""
        box = self._handlers.box
        return {
            "memory_bytes": MAX_MEMORY_BYTES,
            "file_bytes": MAX_FILE_BYTES,
            "files": MAX_FILES,
            "processor_seconds": MAX_PROCESSOR_SECONDS,
            "network": None if box is None else box.has_network,
            "processes": None if box is None else box.has_processes,
            "server_memory": None if box is None else box.has_memory,
            "apart": sorted(type for type in self._apart_since if self._is_apart(type)),
        }

    @property
    def waiting_apart(self) -> int:
        """How many requests wait or are being answered where Types work apart."""
        return self._apart.waiting

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

        Raises PatternRefused for what is no pattern, or takes longer than MATCH_SECONDS, and Crowded where too many wait.
        """
        found: list[int] = []
        asked = f"the regular expression {pattern[:100]!r} takes too long to match"
        rest = await self.patterns.ask(asked, pattern, found.extend, "match", pattern, list(texts))
        if rest is not None:
            raise PatternRefused(f"{pattern[:100]!r}: no regular expression: {rest}")
        return [texts[index] for index in found]

    async def rewrite(self, pattern: str, template: str, texts: Sequence[str]) -> list[str | None]:
        """Of each of `texts` that the whole pattern matches `template` with its groups, else None. Raises as `match` does."""
        found: list[str | None] = []
        asked = f"the regular expression {pattern[:100]!r} takes too long to match"
        rest = await self.patterns.ask(asked, pattern, found.append, "rewrite", pattern, template, list(texts))
        if rest is not None:
            raise PatternRefused(f"{pattern[:100]!r}: no regular expression: {rest}")
        if len(found) < len(texts):
            raise PatternRefused(f"the regular expression {pattern[:100]!r} takes too long for {len(texts)} texts")
        return found

    async def parse(self, text: str) -> list[Any]:
        """The nodes of a PromQL text (`taba.server.prometheus.syntax`). Raises PatternRefused for what is none, and Crowded."""
        found: list[Any] = []
        rest = await self.patterns.ask("the query could not be parsed", text, found.append, "parse", text)
        if rest is not None or not found or isinstance(found[0], str):
            raise PatternRefused(f"the query cannot be parsed: {rest or (found[0] if found else 'no answer')}")
        return list(found[0])

    async def fold(self, works: list[ForeignWork], now: float, seconds: float, is_retry: bool = False) -> list[Folded | list[int]]:
        """For each work a Folded, or the rows whose further parts its Handler wants; within `seconds` of waiting, else HandlerSlow.

        Raises HandlersAway. `is_retry`: Events that were dead letters; no Type is suspended for them, within a bound.
        """
        end = self._reactor.seconds() + seconds
        begun = [self._begin(work, now, is_retry) for work in works]  # all at once: each has its turns beside the others
        slow: str | None = None
        away: HandlersAway | None = None
        for one in begun:
            is_done = one.working is None
            if one.working is not None:
                try:
                    is_done = await self._ends_by(end, one.working)
                except HandlersAway as failure:
                    away, is_done = failure, True
                else:
                    if not is_done:
                        self._leave_behind(one)
            elif one.errand.lots:
                is_done = False  # one that nobody waits for goes on already
            if not is_done:
                slow = slow or one.errand.foreign.type
        if away is not None:
            raise away
        if slow is not None:
            raise HandlerSlow(slow)
        return [one.answer() for one in begun]

    def forget(self) -> None:
        """Have whatever is folded from now on tried anew: who was a culprit, and what was answered, is forgotten."""
        self._culprits.clear()
        self._answers.forget()

    def _begin(self, foreign: ForeignWork, now: float, is_retry: bool) -> _Begun:
        type, began = foreign.type, self._reactor.seconds()
        self._asked[type] = began
        known, wanted, left = self._answers.of(foreign, began)
        errand = Errand(left, self._lookup.is_array(type), self._lookup.get(type).version)  # type: ignore[union-attr]
        working = None
        if errand.lots and not self._behind[type]:
            working = ensureDeferred(self._work_on(errand, now, is_retry))
        return _Begun(known, wanted, errand, working)

    def _leave_behind(self, one: _Begun) -> None:
        type = one.errand.foreign.type
        assert one.working is not None
        one.errand.is_behind = True
        self._behind[type] += 1
        one.working.addErrback(self._failed_behind, type).addBoth(lambda _: self._behind.subtract([type]))

    async def _ends_by(self, end: float, working: Deferred[None]) -> bool:
        """Whether `working` ends before then; raises what it fails with."""
        outcome: Deferred[Any] = Deferred()

        def ended(result: Any) -> Any:
            if outcome.called:
                return result  # nobody waits for it any more
            outcome.callback(result)
            return None

        timer = self._reactor.callLater(max(0.0, end - self._reactor.seconds()), outcome.callback, _LATE)
        working.addBoth(ended)
        try:
            return await outcome is not _LATE
        finally:
            if timer.active():
                timer.cancel()

    def _failed_behind(self, failure: Any, type: str) -> None:
        if failure.check(HandlersAway):
            log.warn("Type {type}: {failure}", type=type, failure=failure.value)  # whoever comes again begins anew
        elif not self._is_closed:
            log.failure("a fold of Type {type} ended", failure=failure, type=type)

    async def _work_on(self, errand: Errand, now: float, is_retry: bool) -> None:
        """Fold until nothing is left. What was done is kept where that took long. Raises HandlersAway."""
        began = self._reactor.seconds()
        for row, culprits in self._known_culprits(errand.foreign).items():
            errand.convict(row, culprits)
        try:
            await self._fold(errand, now, is_retry)
        finally:
            ended = self._reactor.seconds()
            if errand.is_behind or ended - began >= KEEP_FROM_SECONDS:
                self._answers.keep(errand, ended)

    async def _fold(self, errand: Errand, now: float, is_retry: bool) -> None:
        foreign = errand.foreign
        outside = 0
        while errand.lots:
            if errand.is_behind and self._reactor.seconds() - self._asked[foreign.type] > KEEP_SECONDS:
                log.info("nobody asks for the fold of Type {type} any more", type=foreign.type)
                return
            suspended = None if is_retry else self._suspension(foreign.type)
            if suspended is not None:
                errand.fail_rest(suspended)
                return
            line, before = self._line_of(foreign.type), errand.progress
            worked = line.seconds[foreign.type]
            try:
                rest = await self._ask(line, foreign.type, errand.take, "fold", now, *errand.request(), at=errand.come_to)
                if rest is not None:
                    raise ChildDied(str(rest))
                if errand.progress > before:
                    errand.seconds += line.seconds[foreign.type] - worked
                    self._note_slow(errand)
                    continue
                died = ChildDied("it gave no answer")
            except ChildNotStarted as failure:
                if self._is_closed or line.failed_starts < MAX_STARTS:
                    raise HandlersAway(str(failure)) from None
                errand.fail_rest(str(failure))
                return
            except ChildDied as death:
                died = death
            if self._is_closed:
                raise HandlersAway("the Server stops")
            if died.late and line is self._handlers:
                continue  # it has its whole time where nobody waits for it
            errand.seconds = 0.0
            self._log_death(foreign.type, died)
            if not errand.lots:
                return  # it had answered all, and went on: nobody is a suspect
            outside += died.outside
            if died.outside and outside <= MAX_OUTSIDE:
                continue
            culprit = errand.suspect(died)
            if culprit is None:
                continue
            self._remember(foreign, culprit)
            if not is_retry:
                self._note_death(foreign.type)
                continue
            errand.convicted += 1
            if errand.convicted >= MAX_CULPRITS_OF_RETRY:
                errand.fail_rest(f"not tried again, since {errand.convicted} others of the same lot were a process's end: {died}")
                return

    def _note_slow(self, errand: Errand) -> None:
        """A cycle does not wait for this one, and it is the Handler that takes the time."""
        if errand.seconds < FOLD_SECONDS:
            return
        type = errand.foreign.type
        times, seconds = self.slow.get(type, Slow(0, 0.0))
        self.slow[type] = Slow(times + (not errand.is_slow), errand.seconds if not errand.is_slow else max(seconds, errand.seconds))
        errand.is_slow = True

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

    async def samples(self, type: str, projections: Sequence[Any]) -> list[Any]:
        """For each what exporters show, as lists `[suffix, labels, value, kind]`; or a sentence."""
        answers = await self._each(type, list(projections), lambda lot: ("samples", type, lot))
        return [answer if isinstance(answer, str) or _are_samples(answer) else "samples gave none" for answer in answers]

    async def upgrade(self, type: str, states: Sequence[Any], now: float) -> list[list[bytes] | str]:
        """The parts of each State as its Handler's version dumps them, or a sentence."""
        answers = await self._each(type, list(states), lambda lot: ("upgrade", type, now, lot))
        return [self._parts(type, answer) for answer in answers]

    async def prunable(self, type: str, states: Sequence[Any], now: float) -> list[bool | str]:
        """Whether each State has nothing more to say, or a sentence."""
        answers = await self._each(type, list(states), lambda lot: ("prunable", type, now, lot))
        return [answer if isinstance(answer, (bool, str)) else "prunable gave no bool" for answer in answers]

    async def merge(self, type: str, states: Sequence[Any], now: float) -> list[bytes] | str:
        """The parts of the State that is all of `states`, or a sentence."""
        [answer] = await self._each(type, [list(states)], lambda lot: ("merge", type, now, lot[0]))
        return self._parts(type, answer)

    def _parts(self, type: str, answer: Any) -> list[bytes] | str:
        if isinstance(answer, str):
            return answer
        try:
            return check_parts(answer, 1 + further_parts(self._lookup, type))
        except ValueError as error:
            return str(error)

    async def _each(self, type: str, items: list[Any], request: Callable[[list[Any]], tuple[Any, ...]]) -> list[Any]:
        """Who leaves leaves the request that is being answered to its end, and what comes of it is noted; no further one is made."""
        return await leavable(lambda asked: self._each_of(asked, type, items, request))

    async def _each_of(self, asked: Asked, type: str, items: list[Any], request: Callable[[list[Any]], tuple[Any, ...]]) -> list[Any]:
        answers: list[Any] = []
        at_once = len(items)
        outside, asker = 0, ASKER.get()
        end = self._reactor.seconds() + ASK_SECONDS
        while len(answers) < len(items) and not asked.is_left:
            asked.pause()
            suspended = self._suspension(type)
            if suspended is None and self._reactor.seconds() >= end:
                missing = len(items) - len(answers)
                suspended = f"the Handler of Type {type} is slow: {missing} of {len(items)} answers did not come within {ASK_SECONDS:g} s"
            if suspended is not None:
                answers += [suspended] * (len(items) - len(answers))
                break
            left = items[len(answers) :][:at_once]
            left = left[: _fitting(left)]
            before, line = len(answers), self._line_of(type)
            if line is self._apart and line.waiting >= MAX_APART:
                answers += [f"the Handler of Type {type} is slow, and {MAX_APART} requests wait for it and its like"] * (
                    len(items) - before
                )
                break
            try:
                operation, of_type, *arguments = request(left)
                take = _first(answers, before + len(left))
                with self.askers_apart.within(asker) if line is self._apart else nullcontext():
                    rest = await self._ask(line, of_type, take, operation, *arguments, begin=asked.begin)
                if rest is None and len(answers) > before:
                    continue
                died = ChildDied(str(rest or "it gave no answer"))
            except Crowded as crowded:
                answers += [f"the Handler of Type {type} is slow: {crowded}"] * (len(items) - before)
                break
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
            if died.late and line is self._handlers:
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

    def _is_apart(self, type: str) -> bool:
        since = self._apart_since.get(type)
        return since is not None and bool(self._reactor.seconds() - since < APART_SECONDS)

    def _line_of(self, type: str) -> ChildLine:
        return self._apart if self._is_apart(type) else self._handlers

    async def _ask(
        self,
        line: ChildLine,
        type: str,
        take: Callable[[Any], None],
        operation: str,
        *arguments: Any,
        at: Callable[[int], None] = lambda place: None,
        begin: Callable[[], None] = lambda: None,
    ) -> Any:
        """As `ChildLine.ask` does it; who gives reason to works apart from now on."""
        heavy, gives_reason = line.heavy[type], True
        try:
            seconds = QUICK_SECONDS if line is self._handlers else ITEM_SECONDS
            rest = await line.ask(seconds, take, operation, type, *arguments, at=at, about=type, begin=begin)
            gives_reason = line.heavy[type] > heavy
            return rest
        except ChildDied:
            raise
        except BaseException:  # nothing that the Handler did
            gives_reason = False
            raise
        finally:
            if gives_reason:
                self._apart_since[type] = self._reactor.seconds()

    def _log_death(self, type: str, died: Exception) -> None:
        self.deaths[type] += 1
        log.error("the Handler of Type {type}: {died}", type=type, died=died)

    def _note_death(self, type: str) -> None:
        self._deaths.setdefault(type, []).append(self._reactor.seconds())
        del self._deaths[type][:-MAX_DEATHS]

    def _remember(self, foreign: ForeignWork, culprit: Culprit) -> None:
        if not foreign.work.names:
            return
        run = run_of(foreign.work, culprit.row)
        known = self._culprits.setdefault(foreign.type, {})
        known[digest_of(foreign.work.names[culprit.row], run, culprit.place)] = (self._reactor.seconds(), culprit.failure)
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
                _, failure = known.get(digest_of(foreign.work.names[row], run, place), (0.0, None))
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


def _first(answers: list[Any], most: int) -> Callable[[Any], None]:
    """Appends to `answers` until they are so many: the child is not trusted."""
    return lambda answer: answers.append(answer) if len(answers) < most else None


def _fitting(items: Sequence[Any]) -> int:
    """How many of the first items fit into one request; one at the least."""
    size = 0
    for count, item in enumerate(items):
        if isinstance(item, (list, tuple)) and item and isinstance(item[0], Framed):
            size += sum(len(part.dump) for part in item)
        if size > REQUEST_BYTES and count:
            return count
    return len(items)


def _are_samples(answer: Any) -> bool:
    """Whether a child's answer is a list of `[suffix, labels, value, kind]`."""
    return isinstance(answer, list) and all(
        isinstance(sample, list)
        and len(sample) == 4
        and isinstance(sample[0], str)
        and isinstance(sample[1], dict)
        and all(isinstance(text, str) for pair in sample[1].items() for text in pair)
        and isinstance(sample[2], float)
        and isinstance(sample[3], str)
        for sample in answer
    )
