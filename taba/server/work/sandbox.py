"""Runs what may hang or crash in child processes with a deadline: Handlers that are not Taba's own, regular expressions of askers.

1. The child answers item by item; when it falls silent or dies, the item that it was at is the culprit. It is killed,
   and a new one goes on with the rest.
2. A Type that does so again and again is suspended for a while, so that it costs the others no more time.
3. Here nothing raises for what a Handler does: what fails is a Failed or a sentence.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgpack
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from taba.errors import TabaError
from taba.handlers.lookup import Lookup
from taba.server.work.child import LENGTH, MAX_FRAME_BYTES, pack, unpack
from taba.server.work.folding import HANDLER_ERROR, MAX_STATE_BYTES, REASONS, STATE_TOO_LARGE, Failed, Folded, ForeignWork, further_parts
from taba.server.work.keeping import check_parts

START_SECONDS = 20.0  # for a child to begin; it imports every plugin
ITEM_SECONDS = 2.0  # for one item: a State's fold or Projection, an Aggregate; they take microseconds
MATCH_SECONDS = 1.0  # for one regular expression over all names
MAX_DEATHS = 3  # of the child by one Type …
SUSPENDED_SECONDS = 60.0  # … within this time; then the Type is suspended for as long
STDERR_BYTES = 4096  # of what Handlers print, logged at a time

log = Logger()


class PatternRefused(TabaError):
    """This regular expression cannot be matched, or not in the time that it has."""


class ChildDied(Exception):
    """The child ended, or said nothing for too long, and was killed."""


class _Child(ProcessProtocol):
    """One child process: requests out, frames in."""

    transport: Any

    def __init__(self, reactor: Any):
        self._reactor = reactor
        self._buffer = bytearray()
        self._frames: list[Any] = []
        self._waiting: Deferred[None] | None = None
        self.reason: str | None = None
        self.ended: Deferred[None] = Deferred()

    def outReceived(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= LENGTH.size:
            (size,) = LENGTH.unpack_from(self._buffer)
            if size > MAX_FRAME_BYTES:
                self.kill(f"it sent a frame of {size} bytes")
                return
            if len(self._buffer) < LENGTH.size + size:
                return
            content = bytes(self._buffer[LENGTH.size : LENGTH.size + size])
            del self._buffer[: LENGTH.size + size]
            try:
                more, item = unpack(content)
            except (ValueError, TypeError, msgpack.UnpackException, RecursionError):
                self.kill("it sent something that is no frame")
                return
            self._frames.append((more, item))
        self._wake()

    def errReceived(self, data: bytes) -> None:
        log.info("child: {text}", text=data[:STDERR_BYTES].decode(errors="replace").rstrip())

    def processEnded(self, reason: Failure) -> None:
        self.reason = self.reason or str(reason.value).strip()
        self.ended.callback(None)
        self._wake()

    def kill(self, reason: str) -> None:
        """End it now."""
        if self.reason is None:
            self.reason = reason
        with suppress(ProcessExitedAlready):
            self.transport.signalProcess("KILL")
        self._wake()

    async def next_frame(self, seconds: float) -> Any:
        """(more, item). Raises ChildDied; a child that is silent for `seconds` is killed."""
        while not self._frames:
            if self.reason is not None:
                raise ChildDied(self.reason)
            self._waiting = Deferred()
            deadline = self._reactor.callLater(seconds, self.kill, f"it did not answer within {seconds:g} s")
            try:
                await self._waiting
            finally:
                self._waiting = None
                if deadline.active():
                    deadline.cancel()
        return self._frames.pop(0)

    def _wake(self) -> None:
        waiting = self._waiting
        if waiting is not None and not waiting.called and (self._frames or self.reason is not None):
            waiting.callback(None)


class _Line:
    """A child for one kind of work, made when it is needed; one request at a time."""

    def __init__(self, reactor: Any, environ: Mapping[str, str], excluded: Mapping[str, str]):
        self._reactor, self._environ, self._excluded = reactor, environ, excluded
        self._lock = DeferredLock()
        self._child: _Child | None = None
        self._living: set[_Child] = set()
        self.restarts = 0

    async def ask(self, seconds: float, take: Callable[[Any], None], operation: str, *arguments: Any) -> Any:
        """Send a request; `take` gets each item. Returns the rest. Raises ChildDied when the child dies before the end."""
        request = pack([operation, *arguments])
        if len(request) > MAX_FRAME_BYTES:
            raise ChildDied(f"a request of {len(request)} bytes is too large for it")
        await self._lock.acquire()
        finished = False
        try:
            child = await self._running()
            child.transport.write(request)
            while True:
                more, item = await child.next_frame(seconds)
                if not more:
                    finished = True
                    return item
                take(item)
        finally:
            if not finished and self._child is not None:
                # its answers would be taken for those of the next request
                self._child.kill("its request was given up")
                self._child = None
            self._lock.release()

    async def _running(self) -> _Child:
        if self._child is None or self._child.reason is not None:
            self.restarts += 1
            child = self._child = _Child(self._reactor)
            self._living.add(child)
            child.ended.addCallback(lambda _: self._living.discard(child))
            arguments = [sys.executable, "-m", "taba.server.work.child", str(os.getpid()), json.dumps(dict(self._excluded))]
            self._reactor.spawnProcess(child, sys.executable, arguments, dict(self._environ))
            await child.next_frame(START_SECONDS)
        return self._child

    async def close(self) -> None:
        self._child = None
        for child in list(self._living):
            child.kill("the Server stops")
            await child.ended


class Sandbox:
    """The child processes of one Server, and which Types are suspended."""

    def __init__(self, lookup: Lookup, reactor: Any, environ: Mapping[str, str] | None = None):
        environ = os.environ if environ is None else environ
        self._lookup, self._reactor = lookup, reactor
        self._handlers = _Line(reactor, environ, lookup.excluded)
        self._patterns = _Line(reactor, environ, lookup.excluded)
        self._deaths: dict[str, list[float]] = {}
        self.deaths: Counter[str] = Counter()

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
        """Those of `texts` that the whole pattern matches. Raises PatternRefused when that takes longer than MATCH_SECONDS."""
        found: list[int] = []
        try:
            rest = await self._patterns.ask(MATCH_SECONDS, found.extend, "match", pattern, list(texts))
        except ChildDied as died:
            raise PatternRefused(f"the regular expression {pattern[:100]!r} takes too long to match: {died}") from None
        if rest is not None:
            raise PatternRefused(f"the regular expression {pattern[:100]!r} cannot be matched: {rest}")
        return [texts[index] for index in found]

    async def fold(self, works: list[ForeignWork], now: float) -> list[Folded | list[int]]:
        """For each work a Folded, or the rows whose further parts its Handler wants."""
        return [await self._fold(work, now) for work in works]

    async def _fold(self, foreign: ForeignWork, now: float) -> Folded | list[int]:
        work = foreign.work
        rows = list(dict.fromkeys(row for row, _, _ in work.columns))
        # an array Handler folds all its States at once, and where that is its end, each alone
        lots = [rows] if self._lookup.is_array(foreign.type) else [[row] for row in rows]
        folded = Folded({}, {}, {})
        wanted: list[int] = []
        while lots:
            answered: list[Any] = []
            try:
                if self._is_suspended(foreign.type):
                    raise ChildDied("the Type is suspended")
                chosen = {row for lot in lots for row in lot}
                rest = await self._handlers.ask(
                    ITEM_SECONDS,
                    answered.append,
                    "fold",
                    foreign.type,
                    now,
                    [state if row in chosen else (0, 0, b"") for row, state in enumerate(work.states)],
                    [column for column in work.columns if column[0] in chosen],
                    foreign.parts,
                    lots,
                )
                if rest is not None:
                    raise ChildDied(str(rest))
                died = None
            except ChildDied as death:
                died = death
            for lot, item in zip(lots, answered, strict=False):
                wanted += _read_folded(lot, item, folded)
            lots = lots[len(answered) :]
            if not lots:
                break
            if self._is_suspended(foreign.type):
                failure = Failed(HANDLER_ERROR, f"Type {foreign.type} is suspended, because its Handler hung or crashed too often")
                folded.failed.update({row: failure for lot in lots for row in lot})
                break
            if len(lots[0]) > 1:
                self._note_death(foreign.type, died)
                lots = [[row] for lot in lots for row in lot]
                continue
            self._note_death(foreign.type, died)
            folded.failed[lots.pop(0)[0]] = Failed(HANDLER_ERROR, f"the Handler's process died: {died}"[:200])
        return wanted or folded

    async def project(self, type: str, states: Sequence[Any], now: float, detail: bool = False) -> list[Any]:
        """The Projections of States of one Type, or a sentence where there can be none."""
        return await self._each(type, list(states), lambda lot: ("project", type, now, lot, detail))

    async def aggregate(self, type: str, projections: Sequence[Any]) -> Any:
        """The Aggregate, or a sentence."""
        [answer] = await self._each(type, [list(projections)], lambda lot: ("aggregate", type, lot[0]))
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
        while len(answers) < len(items):
            try:
                if self._is_suspended(type):
                    answers += [f"Type {type} is suspended"] * (len(items) - len(answers))
                    break
                rest = await self._handlers.ask(ITEM_SECONDS, answers.append, *request(items[len(answers) :][:at_once]))
                if rest is not None or (at_once > 1 and len(answers) < len(items)):
                    raise ChildDied(str(rest))
            except (ChildDied, TypeError, ValueError, OverflowError) as died:
                self._note_death(type, died)
                if at_once > 1 and not answers:
                    at_once = 1  # an array Handler answers for all at once: now each alone
                    continue
                if len(answers) < len(items):
                    answers.append(f"the Handler's process died: {died}"[:200])
        return answers[: len(items)]

    def _note_death(self, type: str, died: Exception | None) -> None:
        log.error("the Handler of Type {type}: {died}", type=type, died=died)
        self.deaths[type] += 1
        self._deaths.setdefault(type, []).append(self._reactor.seconds())
        del self._deaths[type][:-MAX_DEATHS]

    def _is_suspended(self, type: str) -> bool:
        deaths = self._deaths.get(type, [])
        return len(deaths) >= MAX_DEATHS and self._reactor.seconds() - deaths[0] < SUSPENDED_SECONDS


def _read_folded(lot: list[int], item: Any, folded: Folded) -> list[int]:
    """Take an answer of the child's into `folded`; the rows that it wants further parts of. The child is not trusted."""
    try:
        states, parts, failed, wants = item
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
        for row, (reason, detail) in failed.items():
            if row in lot:
                # reasons are counted by name in the store: none of the child's own making
                folded.failed[row] = Failed(reason if reason in REASONS else HANDLER_ERROR, str(detail)[:200])
        return [row for row in wants if row in lot]
    except (ValueError, TypeError, AttributeError):
        folded.failed.update(dict.fromkeys(lot, Failed(HANDLER_ERROR, "the Handler's process gave no Folded")))
        return []
