"""One run of a world: the faults that befall it, and a quiet end.

Everything follows from the seed. The faults are drawn before anything happens and have a number each, so that a run can be repeated
without some of them: that is how a trace is made short.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Collection
from random import Random
from typing import Any, NamedTuple, cast

from twisted.logger import ILogObserver, formatEvent, globalLogPublisher

from simulation.census import RECORDED
from simulation.clockwork import Killed
from simulation.faults import KINDS, Fault, draw
from simulation.store import REPLICA_SECONDS
from simulation.strangers import Strangers
from simulation.world import CALM_SECONDS, CALM_STEPS, CENSUS_SECONDS, HOUR_SECONDS, IDLE_SECONDS, LOOK_SECONDS, PASTS, Broken, World
from taba.server.fold import together
from taba.server.fold.ingest import TURNED_AWAY_SECONDS
from taba.shard import transaction

WAIT_SECONDS, WAIT_PACE_SECONDS = 8.0, 1.0  # between two looks for problems, and how long hosts are busy then
SAID_SECONDS = TURNED_AWAY_SECONDS + 30.0  # after all is folded: what Servers say of what had to wait they say for so long, or for less
ANSWER_SECONDS = 2.0  # that a Server has to say what is wrong: more than it waits for its store
STRANGERS_SHARE = 0.6  # of the worlds in which drains take several turns: a ring may turn out to be none between two of them
FIRST_SHARE, FIRST_STEPS = 0.3, (0, 0, 1, 2, 3, 5, 8, 13)  # in so many worlds an Agent is killed while it starts on nothing
RETRY_SECONDS = 3.0  # in which a Server folds its dead letters again


class Result(NamedTuple):
    """What became of one run."""

    seed: int
    error: str | None
    steps: int
    seconds: float  # simulated
    digest: int
    fired: Counter[str]
    faults: list[Fault]
    trace: list[str]
    folded: int  # events
    folds: int  # of States


class Run(World):
    """The run of one seed. `without`: numbers of faults that do not happen. `kinds`: the faults that may be drawn."""

    def __init__(
        self,
        seed: int,
        without: Collection[int] = (),
        duration: float | None = None,
        kinds: Collection[str] = tuple(KINDS),
        directory: str | None = None,
        types: Collection[str] = RECORDED,
        rate: float | None = None,
        density: float = 0.5,
    ):
        shape = Random(f"shape {seed}")
        self.seed, self.without = seed, frozenset(without)
        self.duration = duration = duration if duration is not None else shape.choice((10.0, 20.0, 30.0, 30.0, 150.0))
        self.faults = draw(Random(f"faults {seed}"), duration, kinds, density)
        super().__init__(seed, shape, {fault.kind for fault in self.faults}, directory, types, rate)

    def _hear(self, event: dict[str, Any]) -> None:
        """What a part logs as a failure is one, unless it is dead: then its coroutines end in any way."""
        failure = event.get("log_failure")
        if failure is None or failure.check(Killed, GeneratorExit) or "GeneratorExit" in f"{failure.value}":
            return
        if self.running.is_alive:
            self.errors.append(f"{formatEvent(event)}\n{failure.getTraceback()}"[-1500:])

    def play(self) -> Result:
        """All of it."""
        hear = cast(ILogObserver, self._hear)
        globalLogPublisher.addObserver(hear)
        with self.machine.exchanged():
            try:
                self._play()
                error = self.errors[0] if self.errors else None
            except Broken as broken:
                error = f"{broken}"
            finally:
                globalLogPublisher.removeObserver(hear)
        result = Result(
            self.seed,
            error,
            self.steps,
            self.now,
            self.digest,
            self.fired,
            self.faults,
            list(self.said),
            self.folded()["folded"],
            self.folds,
        )
        return result

    def _play(self) -> None:
        self.machine.put(transaction, "LEASE_AFTER_CONFLICTS", self.lease_after)
        self.machine.put(together, "fold_plain", lambda plain, bench, now, age: bench.fold_plain(plain, now, age))
        self.narrow()
        self.watch_what_is_retained()
        kinds = {fault.kind for fault in self.faults}
        if "move's fuse" in kinds:
            self.watch_moves_to_the_spool()
        if "power fails" in kinds:
            self.machine.may_lose_power()
        for store in self.stores:
            if kinds & PASTS:
                store.remember()
            if kinds & {"store fails over", "replica lags"}:
                store.follow()
        first = Random(f"first {self.seed}")
        if "agent's fuse" in kinds and first.random() < FIRST_SHARE:
            self.agents[0].fuse = first.choice(FIRST_STEPS)
        for part in (*self.servers, *self.agents, *self.clients, *self.posters, *self.askers):
            self.later(self.random.uniform(0.0, 0.5), None, part.start)
        if self.drains_in_turns and first.random() < STRANGERS_SHARE:
            Strangers(self, first).begin()
        for fault in self.faults:
            if fault.number not in self.without:
                self.later(fault.at, None, self._befall, fault)
        self._look_at_buckets()
        self.look_at_bounds()
        self._pass(self.duration)
        self._make_quiet()
        self._pass(self.now + 5.0)
        self._settle()
        if self.network.last_arrival > self.now:
            self._pass(self.network.last_arrival + LOOK_SECONDS)  # what comes later than all else changes nothing
            self._settle()
        if self.has_an_hour:
            self._pass_an_hour()

    def _ask_for_problems(self, past_too: bool = False) -> list[str]:
        self.ask_for_problems()
        self._pass(self.now + ANSWER_SECONDS)
        return self.problems(past_too)

    def _pass_idly(self, seconds: float) -> None:
        """Have time pass in which nothing is on its way any more: hosts that are busy with others look less often, and cost less."""
        paces = {process: process.pace for process in self.parts}
        for process in paces:
            process.pace = max(process.pace, WAIT_PACE_SECONDS)
        self._pass(self.now + seconds)
        for process, pace in paces.items():
            process.pace = pace

    def _pass_an_hour(self) -> None:
        """What has happened is history then: nobody says it any more."""
        for process in self.parts:
            process.pace = IDLE_SECONDS
        self.bound_seconds = IDLE_SECONDS
        self._next_census = self.now + HOUR_SECONDS
        self._pass(self.now + HOUR_SECONDS)
        self.fired["an hour passed"] += 1
        for process in self.parts:
            process.pace = 0.0  # who asks is answered
        if left := self._ask_for_problems(past_too=True):
            raise Broken(f"an hour after all was folded it is said: {left}")
        self.check()

    def _pass(self, until: float) -> None:
        """Have time pass, and end at the first thing that is wrong."""
        while self.now < until:
            self.advance(min(self.now + LOOK_SECONDS, until))
            self.raise_for_errors()
            if self.now >= self._next_census:
                self._next_census = self.now + CENSUS_SECONDS
                self._check_doubles()

    def _settle(self) -> None:
        began, end, most = self.now, self.now + CALM_SECONDS, self.steps + CALM_STEPS
        while not self.is_settled() and self.now < end:
            self._pass(self.now + LOOK_SECONDS)
        while self.may_bury and self.letters() and self.now < end:
            for server in self.servers:
                server.retry()
            self._pass(self.now + RETRY_SECONDS)
        self.check()
        end = max(end, self.now + SAID_SECONDS)
        left = self._ask_for_problems()
        while left and self.now < end:
            self._pass_idly(WAIT_SECONDS)  # most of what is said by then is of the minute before
            left = self._ask_for_problems()
        if left:
            raise Broken(f"{self.now - began:.0f} s after the last fault there are problems: {left}")
        if self.steps > most:
            raise Broken(f"until all was folded and no problem left it took {self.steps - most + CALM_STEPS:,} steps")

    def _befall(self, fault: Fault) -> None:
        self.steps += 1
        self.say(f"fault {fault.number}: {fault.kind} {fault.detail}")
        KINDS[fault.kind].happen(self, fault)

    def _make_quiet(self) -> None:
        """The faults cease, and so do the applications."""
        self.say("faults cease")
        self.is_quiet = True
        self.network.weather.clear()
        self.network.cut.clear()
        self.network.without_store.clear()
        self.machine.is_disk_full = self.machine.is_memory_full = False
        self.machine.disk_left = None
        self.steps_of_move = None
        for store in self.stores:
            store.is_reading_only = store.is_full = False
            store.cut_before = store.cut_after = store.late = 0.0
            store.lag = REPLICA_SECONDS
            store.clock.skew = 0.0
            store.is_up = True
        for process, part in self.parts.items():
            self.step_clock(part, 0.0)
            process.takes_power = False
        self.hosts.clear()
        for server in self.servers:
            server.is_future = False
            if self.may_bury and server.is_older and server.process is not None:
                self.kill(server.process)  # it starts again as it was before it was stepped back
            server.is_older = server.is_older and not self.may_bury
        for part in (*self.servers, self.agents[0], *self.clients, *self.posters):
            part.may_start, part.fuse = True, None
            if part.process is not None:
                part.process.fuse = None
            self.later(0.01, None, part.start)
        if self.may_move:
            for mover in self.movers:
                mover.may_start = False
                if mover.process is not None:
                    self.kill(mover.process)
            self.later(0.01, None, self.movers[0].call, "settle", 0)


def play(seed: int, without: Collection[int] = (), **options: Any) -> Result:
    """One run, and nothing of it left behind."""
    gc.disable()  # what coroutines of killed processes left is collected between worlds, where it does no harm
    world = Run(seed, without, **options)
    try:
        return world.play()
    finally:
        del world
        gc.collect()
        gc.enable()
