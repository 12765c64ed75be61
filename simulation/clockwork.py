"""What happens, and when: one queue of events, ordered by simulated time, of all processes of a world.

1. Nothing happens but what stands in the queue; of two events at one time the earlier made goes first. So a seed says it all.
2. A process that is dead does nothing more: its calls are not made, and what it was about to do is not done.
3. A step is a message delivered, a round trip of the store, a write to a file or to shared memory, a crash or a fault. Looking costs none.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable
from random import Random
from typing import Any
from zlib import crc32

from twisted.internet.error import AlreadyCalled, AlreadyCancelled

from simulation.names import part_of

KEPT_LINES = 400  # of what happened last, for people


class Killed(BaseException):
    """The process that runs is killed here. No code of it goes on: whatever it does next raises this again."""


class Process:
    """One process of the world: it has a clock and chance of its own, and may be killed at any step.

    `drift`: its monotonic clock's seconds in one of the world's; `skew`: what its host's wall clock says too much; `pace`: how long its
    host is busy with others before it has its turn again: what it is to do sooner, but not at once, is done then. `turn`: how long what it
    is to do at once waits for others' turns.
    """

    def __init__(self, world: Clockwork, name: str):
        self.world, self.name = world, name
        self.random = Random(world.random.getrandbits(64))
        self.is_alive = True
        self.fuse: int | None = None  # so many steps more, then it is killed
        self.nap: tuple[int, float] | None = None  # so many steps more, then it is stopped for so many seconds
        self.sleep: tuple[str, float] | None = None  # before this step of a move it is stopped for so many seconds
        self.wakes = 0.0  # until then it is stopped: what it is to do waits, and its clock goes on
        self.descriptors: dict[int, None] = {}
        self.takes_power = False  # it ends since its host has no power
        self.drift = 1.0
        self.skew = 0.0
        self.pace = self.turn = 0.0
        self._began = world.now
        self._base = world.random.uniform(100.0, 100_000.0)
        self.reactor = Reactor(self)

    def seconds(self) -> float:
        """Its monotonic clock."""
        return self._base + (self.world.now - self._began) * self.drift

    def wall(self) -> float:
        """Unix time, as its host has it."""
        return self.world.unix + self.skew

    def write(self, what: str) -> str:
        """A step: it writes. Where its fuse is burnt down it is killed: `before`, `within` or `after` the write; else ""."""
        if not self.is_alive:
            raise Killed
        self.world.steps += 1
        if self.nap is not None:
            self._come_to_nap(*self.nap, what)
        if self.fuse is None:
            return ""
        self.fuse -= 1
        if self.fuse >= 0:
            return ""
        when = self.random.choice(("before", "within", "after"))
        self.world.say(f"{self.name} is killed {when} {what}")
        self.world.fired[f"killed {when} a write: {part_of(self.name)}"] += 1
        self.world.fired[f"killed at {_point(what)}"] += 1
        self.is_alive = False
        if when == "before":
            raise Killed
        return when

    def _come_to_nap(self, steps: int, seconds: float, what: str) -> None:
        self.nap = (steps - 1, seconds) if steps else None
        if not steps:
            self.wakes = self.world.now + seconds
            self.world.say(f"{self.name} is stopped after {what}")
            self.world.fired[f"stopped after a step: {part_of(self.name)}"] += 1


def _point(what: str) -> str:
    """A point at which a process may be killed, whichever file it is about."""
    return "the making of a file" if what.startswith("the making of ") else what


class Call:
    """A call that a process asked its reactor for: what of Twisted's IDelayedCall is used."""

    __slots__ = ("_time", "arguments", "function", "is_over", "keywords")

    def __init__(self, time: float, function: Callable[..., Any], arguments: Any, keywords: Any):
        self._time, self.function, self.arguments, self.keywords = time, function, arguments, keywords
        self.is_over = ""

    def active(self) -> bool:
        return not self.is_over

    def getTime(self) -> float:
        return self._time

    def cancel(self) -> None:
        if self.is_over:
            raise AlreadyCancelled if self.is_over == "cancelled" else AlreadyCalled
        self.is_over = "cancelled"

    def run(self) -> None:
        if not self.is_over:
            self.is_over = "called"
            self.function(*self.arguments, **self.keywords)


class Reactor:
    """The reactor of one process: time and calls, nothing else."""

    def __init__(self, process: Process):
        self._process = process

    def seconds(self) -> float:
        return self._process.seconds()

    def callLater(self, delay: float, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Call:
        process = self._process
        if delay < process.pace and delay:
            delay = process.pace
        elif delay < process.turn:
            delay = process.turn
        call = Call(process.seconds() + delay, function, arguments, keywords)
        if process.is_alive:
            # as `later` does it: most of what a world does is asked for here
            world = process.world
            world._made += 1
            at = world.now + (delay if delay > 0.0 else 0.0) / process.drift
            heapq.heappush(world._queue, (at, world._made, process, call.run, ()))
        return call


class Clockwork:
    """The queue, the time, and what was seen. `random` is the world's own chance."""

    def __init__(self, seed: int):
        self.random = Random(seed)
        self.now = 0.0
        self.began_unix = 1_750_000_000.0 + self.random.randrange(10_000_000)
        self.steps = 0
        self.digest = 0  # of all that was said: the same for the same seed
        self.fired: Counter[str] = Counter()
        self.said: deque[str] = deque(maxlen=KEPT_LINES)
        self.running: Process  # who does something now; who nobody is says the machine
        self._queue: list[tuple[float, int, Process | None, Callable[..., Any], tuple[Any, ...]]] = []
        self._made = 0
        # What coroutines wait for; they are kept: whoever is killed does not clean up, and a coroutine that is collected would
        self.awaited: list[Any] = []
        self.on_death: Callable[[Process], None] = lambda process: None

    @property
    def unix(self) -> float:
        """True Unix time."""
        return self.began_unix + self.now

    def later(self, seconds: float, process: Process | None, function: Callable[..., Any], *arguments: Any) -> None:
        """Have `function` called in so many seconds, by `process` unless that is dead by then; None: by the world itself."""
        self._made += 1
        heapq.heappush(self._queue, (self.now + seconds, self._made, process, function, arguments))

    def say(self, line: str) -> None:
        """For people, and for the digest."""
        line = f"{self.now:10.4f} {line}"
        self.said.append(line)
        self.digest = crc32(line.encode(), self.digest)

    def advance(self, until: float) -> None:
        """Do all that happens before then."""
        queue, take = self._queue, heapq.heappop
        while queue and queue[0][0] <= until:
            self.now, _, process, function, arguments = take(queue)
            if process is None:
                function(*arguments)
            elif process.wakes > self.now:
                self.later(process.wakes - self.now, process, function, *arguments)
            elif process.is_alive:
                self.run(process, function, *arguments)
            else:
                self.awaited.append((function, arguments))
        self.now = max(self.now, until)

    def run(self, process: Process, function: Callable[..., Any], *arguments: Any) -> None:
        """Have a process do something now."""
        before, self.running = self.running, process
        try:
            function(*arguments)
        except Killed:
            process.is_alive = False
        finally:
            if not process.is_alive:
                self.on_death(process)
            self.running = before

    def kill(self, process: Process) -> None:
        """kill -9 between two of its steps."""
        if process.is_alive:
            process.is_alive = False
            self.steps += 1
            self.say(f"{process.name} is killed")
            self.on_death(process)
