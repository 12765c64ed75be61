"""A line to a child process: one request at a time, its answers frame by frame, each within a time of the child's own.

1. A deadline counts what the child itself takes. It goes by ticks of this process's reactor, so that nothing passes while this process is
   stopped or busy and an answer that is in the pipe is read first; and it leaves out what the child waited for a processor.
2. A child says that it is ready once it has imported what it will need. One that does not is nobody's fault who has work for it.
3. Where one is kept in reserve, a second child is ready by the time that the first has to be killed.
4. What it prints is logged within a bound; the rest is read, counted and thrown away, and of that no more in a second than costs next to
   nothing: who prints without end waits for a full pipe, and in the end for nothing any more.
5. It speaks when it is asked, and no more than an answer may be.
6. One that keeps much memory when it has answered is ended: it would be missing to whoever works in it next.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred, DeferredLock, ensureDeferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from taba.bounds import KiB, MiB
from taba.counting import BAD
from taba.directories import python_of
from taba.server.work.boxing import Box, close_memory
from taba.server.work.child import LENGTH, MAX_FRAME_BYTES, TURN_SECONDS, pack, unpack_answer

RESERVE_SECONDS = 1.0  # after a child got to work, until the one in reserve is started: the first has the processor for its first work
START_SECONDS = 20.0  # for a child to begin; it imports every plugin
TICK_SECONDS = 0.1  # between two looks at how long a child has taken; passes where the reactor comes to it
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
LONGEST_SECONDS = 60.0  # of ticks for one frame, whatever the child waited for: it may have stopped itself
MAX_OUTSIDE = 3  # times that a child is killed from outside in one request, before the request is taken for the reason
PRINTED_BYTES = 8 * KiB  # of what a child prints, logged …
PRINTED_SECONDS = 60.0  # … within this time
READ_BYTES = 4 * MiB  # of what a child prints, that are read …
READ_SECONDS = 1.0  # … within this time
MAX_KEPT_BYTES = 512 * MiB  # of memory that a child has when it has answered: a quarter of what it may take
MAX_ANSWER_BYTES = 4 * MAX_FRAME_BYTES  # to one request, over all frames

log = Logger()


class ChildDied(Exception):
    """The child ended, or took too long, and was killed. `outside`: by somebody else, not by what it was doing; `late`: it was silent."""

    def __init__(self, reason: str, outside: bool = False, late: bool = False):
        super().__init__(reason)
        self.outside, self.late = outside, late


class ChildNotStarted(Exception):
    """No child could be started: it ended, or took too long, before it was ready for work."""


class Prints:
    """What children print: logged within a bound, counted beyond it."""

    def __init__(self, clock: Any):
        self._clock = clock
        self._since = -PRINTED_SECONDS
        self._logged = 0
        self.bytes = 0
        self.unlogged = 0

    def add(self, printed: bytes) -> None:
        """A child printed this."""
        now = self._clock.seconds()
        if now - self._since >= PRINTED_SECONDS:
            self._since, self._logged = now, 0
        room = PRINTED_BYTES - self._logged
        kept = printed[:room]
        self.bytes += len(printed)
        self.unlogged += len(printed) - len(kept)
        self._logged += len(kept)
        if kept:
            log.info("printed by a Handler: {text}", text=kept.decode(errors="replace").rstrip())
        if room > 0 and self._logged == PRINTED_BYTES:
            log.warn("Handlers print more than {bytes} bytes a minute; the rest is only counted", bytes=PRINTED_BYTES)


class _Child(ProcessProtocol):
    """One child process: requests out, frames in."""

    transport: Any

    def __init__(self, reactor: Any, prints: Prints):
        self.reactor, self._prints = reactor, prints
        self._buffer = bytearray()
        self._frames: list[Any] = []
        self._waiting: Deferred[None] | None = None
        self._is_asked = True  # whether it is ready
        self.received = 0
        self._before = 0  # of that, before the request that it answers
        self._printed = 0  # bytes that it printed within READ_SECONDS
        self._reading: Any = None  # when what it prints is read on
        self.reason: str | None = None
        self.was_outside = False
        self.was_late = False
        self.box = Box(True, True, True)
        self._number: int | None = None
        self.ended: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self._number = getattr(self.transport, "pid", None)

    def outReceived(self, data: bytes) -> None:
        self.received += len(data)
        if not self._is_asked or self.received - self._before > MAX_ANSWER_BYTES:
            self.kill("it spoke without being asked" if not self._is_asked else f"it answered with more than {MAX_ANSWER_BYTES} bytes")
            return
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
                more, item = unpack_answer(content)
            except BAD:
                self.kill("it sent something that is no frame")
                return
            self._frames.append((more, item))
        self._wake()

    def errReceived(self, data: bytes) -> None:
        self._prints.add(data)
        self._printed += len(data)
        if self._reading is None:
            self._reading = self.reactor.callLater(READ_SECONDS, self._read_on)
        if self._printed >= READ_BYTES and self.reason is None:
            self._printer("pauseProducing")

    def _read_on(self) -> None:
        self._reading, self._printed = None, 0
        self._printer("resumeProducing")

    def _printer(self, act: str) -> None:
        pipe = getattr(self.transport, "pipes", {}).get(2)
        if pipe is not None:
            getattr(pipe, act)()

    def asked(self) -> None:
        """It is asked for something."""
        self._is_asked, self._before = True, self.received

    def answered(self) -> None:
        """It has said that this was all."""
        self._is_asked = False
        if self._frames or self._buffer:
            self.kill("it spoke without being asked")

    def processEnded(self, reason: Failure) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
        if self.reason is None:
            self.was_outside = isinstance(reason.value, ProcessTerminated) and reason.value.signal in (9, 15)
            self.reason = _ending(reason.value)
        self.ended.callback(None)
        self._wake()

    def kill(self, reason: str) -> None:
        """End it now."""
        if self.reason is None:
            self.reason = reason
        with suppress(ProcessExitedAlready):
            self.transport.signalProcess("KILL")
        self._printer("resumeProducing")  # that it ended is seen when its pipes have
        self._wake()

    def processExited(self, reason: Failure) -> None:
        # what it has left behind, where it could start processes, is of its session, which has its number; it holds the pipes open, too
        if self.box.has_processes and self._number is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._number, signal.SIGKILL)

    async def next_frame(self, seconds: float) -> Any:
        """(more, item). Raises ChildDied; a child that takes more than `seconds` of its own time is killed."""
        if not self._frames and self.reason is None:
            self._waiting = Deferred()
            ticking = _Ticking(self, seconds)
            try:
                await self._waiting
            finally:
                self._waiting = None
                ticking.stop()
        if self._frames:
            return self._frames.pop(0)
        raise ChildDied(self.reason or "it said nothing", self.was_outside, self.was_late)

    def kept_bytes(self) -> int:
        """Of memory, that it has now; 0 where the kernel does not say."""
        try:
            with open(f"/proc/{self.transport.pid}/statm", "rb") as file:
                return int(file.read(100).split()[1]) * PAGE_BYTES
        except (OSError, ValueError, IndexError):
            return 0

    def waited_for_a_processor(self) -> float:
        """Seconds that the child could have run and was not let; 0 where the kernel does not say."""
        try:
            with open(f"/proc/{self.transport.pid}/schedstat", "rb") as file:
                return int(file.read(100).split()[1]) / 1e9
        except (OSError, ValueError, IndexError):
            return 0.0

    def _wake(self) -> None:
        waiting = self._waiting
        if waiting is not None and not waiting.called and (self._frames or self.reason is not None):
            waiting.callback(None)


class _Ticking:
    """Looks at a child, tick by tick, and kills it when its time is up."""

    def __init__(self, child: _Child, seconds: float):
        self._child, self._seconds = child, seconds
        self._own, self._ticks = 0.0, 0
        self._received, self._waited = child.received, child.waited_for_a_processor()
        self._later()

    def stop(self) -> None:
        """Look no more."""
        if self._call.active():
            self._call.cancel()

    def _later(self) -> None:
        self._call = self._child.reactor.callLater(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        child, received, waited = self._child, self._child.received, self._child.waited_for_a_processor()
        if received == self._received:  # else it is answering, and this process has been reading
            self._own += max(0.0, TICK_SECONDS - max(0.0, waited - self._waited))
        self._received, self._waited = received, waited
        self._ticks += 1
        if self._own >= self._seconds or self._ticks * TICK_SECONDS >= LONGEST_SECONDS:
            child.was_late = True
            child.kill(f"it did not answer within {self._seconds:g} s")
        else:
            self._later()


class ChildLine:
    """A child for one kind of work, made when it is needed; one request at a time. With `has_reserve` there is a second one."""

    def __init__(
        self,
        reactor: Any,
        environ: Mapping[str, str],
        excluded: Mapping[str, str],
        with_handlers: bool,
        prints: Prints,
        has_reserve: bool = False,
    ):
        self._reactor, self._environ, self._has_reserve = reactor, environ, has_reserve
        self._about = json.dumps({"excluded": dict(excluded), "with_handlers": with_handlers})
        self._prints = prints
        self._lock = DeferredLock()
        self._child: _Child | None = None
        self._living: set[_Child] = set()
        self._reserve: Deferred[_Child | None] | None = None
        self._reserving: Any = None
        self._is_closed = False
        self.about: str | None = None
        """Whose work the child does now."""
        self.began = 0.0
        """When it got the last request, by the clock."""
        self.seconds: dict[str, float] = defaultdict(float)
        """For how long children have worked, by whose work it was."""
        self.requests: Counter[str] = Counter()
        """How many requests children were given, by whose work it was."""
        self.heavy: Counter[str] = Counter()
        """How many of these took a whole turn of their own time, or left a child with so much memory that it was ended."""
        self.box: Box | None = None
        """What the kernel left to the last child; None before there was one."""
        self.waiting = 0
        """How many requests wait or are being answered."""
        self.starts = 0
        """How many children have come to work."""
        self.failed_starts = 0
        """How many of the last in a row did not get ready."""

    async def warm(self) -> None:
        """Have a child ready before anybody asks. What hinders it is said when somebody does."""
        await self._lock.acquire()
        try:
            await self._running()
        except ChildNotStarted as failure:
            log.info("not ready for work yet: {failure}", failure=failure)
        finally:
            self._lock.release()

    async def ask(
        self,
        seconds: float,
        take: Callable[[Any], None],
        operation: str,
        *arguments: Any,
        at: Callable[[int], None] = lambda place: None,
        about: str | None = None,
        begin: Callable[[], None] = lambda: None,
    ) -> Any:
        """Send a request; `take` gets each item, `at` each place that the child has come to. Returns the rest. `about`: whose work it is.

        `begin` is called once it is the turn of this one: what breaks it off from then on ends the child.
        Raises ChildDied when the child dies before the end, ChildNotStarted when there is none, and TypeError, ValueError or
        OverflowError for what no frame can carry.
        """
        request = pack([operation, *arguments])
        if len(request) > MAX_FRAME_BYTES:
            raise ValueError(f"{len(request)} bytes are too much for one request; at most {MAX_FRAME_BYTES}")
        self.waiting += 1
        try:
            await self._lock.acquire()
        except BaseException:  # whoever asked has gone
            self.waiting -= 1
            raise
        begin()
        finished, began = False, self._reactor.seconds()
        try:
            child = await self._running()
            self.about, self.began = about, self._reactor.seconds()
            began = self.began
            waited = child.waited_for_a_processor()
            if about is not None:
                self.requests[about] += 1
            child.asked()
            child.transport.write(request)
            while True:
                more, item = await child.next_frame(seconds)
                if more is None:
                    at(item)
                elif more:
                    take(item)
                else:
                    child.answered()
                    finished = True
                    took = self._reactor.seconds() - began
                    is_long = took >= TURN_SECONDS and took - child.waited_for_a_processor() + waited >= TURN_SECONDS
                    if child.kept_bytes() > MAX_KEPT_BYTES:
                        child.kill(f"it kept more than {MAX_KEPT_BYTES} bytes")  # the next request has another one
                        is_long = True
                    if is_long and about is not None:
                        self.heavy[about] += 1
                    return item
        finally:
            if not finished and self._child is not None:
                # its answers would be taken for those of the next request
                self._child.kill("its request was given up")
                self._child = None
            if about is not None:
                self.seconds[about] += self._reactor.seconds() - began
            self.about = None
            self.waiting -= 1
            self._lock.release()

    async def _running(self) -> _Child:
        if self._is_closed:
            raise ChildNotStarted("the Server stops")
        if self._child is None or self._child.reason is not None:
            self.starts += 1
            reserve, self._reserve = self._reserve, None
            child = None if reserve is None else await reserve
            if child is None or child.reason is not None:
                child = await self._begin()
            self._child = child
            if self._has_reserve and not self._is_closed and not (self._reserving and self._reserving.active()):
                self._reserving = self._reactor.callLater(RESERVE_SECONDS, self._begin_reserve)
        return self._child

    def _begin_reserve(self) -> None:
        if self._reserve is None and not self._is_closed:
            self._reserve = ensureDeferred(self._spared())

    async def _spared(self) -> _Child | None:
        try:
            return await self._begin()
        except ChildNotStarted as failure:
            log.warn("there is no process in reserve: {failure}", failure=failure)
            return None

    async def _begin(self) -> _Child:
        """A new child, ready for work. Raises ChildNotStarted."""
        child = _Child(self._reactor, self._prints)
        self._living.add(child)
        child.ended.addCallback(lambda _: self._living.discard(child))
        arguments = python_of("taba.server.work.child", str(os.getpid()), self._about)
        try:
            self._reactor.spawnProcess(child, sys.executable, arguments, dict(self._environ))
            _, told = await child.next_frame(START_SECONDS)
        except (ChildDied, OSError) as failure:
            self._living.discard(child)
            self.failed_starts += 1
            raise ChildNotStarted(f"the process for it does not start: {failure}") from None
        except BaseException:  # whoever asked has gone, and nobody else knows of this child
            child.kill("what it was started for was given up")
            raise
        child.answered()
        self.failed_starts = 0
        told = told if isinstance(told, dict) else {}
        box = Box(*(told.get(name) is not False for name in Box._fields))
        # no Handler has worked in it yet; what others' modules do when they are imported, they did in this process, too
        if box.has_memory and close_memory():
            box = box._replace(has_memory=False)
        self.box = child.box = box
        return child

    async def close(self) -> None:
        """End the children."""
        self._child, self._is_closed = None, True
        if self._reserving is not None and self._reserving.active():
            self._reserving.cancel()
        for child in list(self._living):
            child.kill("the Server stops")
            await child.ended


def _ending(how: BaseException | None) -> str:
    if isinstance(how, ProcessTerminated) and how.signal is not None:
        return f"it was ended by signal {how.signal}"
    if isinstance(how, (ProcessDone, ProcessTerminated)):
        return f"it ended with exit code {getattr(how, 'exitCode', 0) or 0}"
    return str(how).strip()
