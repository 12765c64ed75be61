"""An Agent without sockets, HTTP and log: its rooms over what it holds on this host, and the step that keeps them going.

Clock, chance, connections and space are arguments: the service gives the machine's, the simulator those of its world.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, Protocol

from treq.client import HTTPClient

from taba import versions
from taba.agent.ages import Moment
from taba.agent.alive import Alive, sender_of
from taba.agent.discover import Rings, Slots
from taba.agent.dispatch import Dispatch
from taba.agent.edge import Edge
from taba.agent.forward import Forwarder, Kept
from taba.agent.grants import Grants
from taba.agent.home import Home
from taba.agent.keeper import Keeper
from taba.agent.locks import AgentRunning
from taba.agent.outbox import OutboxCorrupt, OutboxFull
from taba.agent.pin import PinFile, Store
from taba.agent.problems import LOSS_SHOWN_SECONDS, Problems, Space
from taba.agent.pump import TICK_SECONDS, RingPump
from taba.agent.recovery import recover
from taba.agent.spool import SpoolFull
from taba.caps import Caps
from taba.errors import TabaError
from taba.versions import Chosen

SWEEP_SECONDS = 60.0  # between looks for the slots of processes that were killed
LOOK_SECONDS = 1.0  # between looks for problems, and words to the log
KEEP_SECONDS = 0.05  # between looks at outbox and spool
FAILED_SECONDS = 1.0  # after a step that failed
MAX_LAST_DRAINS = 64  # at the end: all events of rings of 256 MiB several times over; rings outlive the Agent
LAST_DRAIN_FAILS = OSError, sqlite3.Error, OutboxCorrupt, OutboxFull, SpoolFull  # what keeps `last_drain` from ending: a full disk, too


class Surroundings(NamedTuple):
    """What is around an Agent: `reactor` has its monotonic clock and calls later, `wall` tells Unix seconds.

    `since_boot` tells the seconds since the boot of this number, and `boot` the number. `kept` is what `client` keeps of its connections.
    """

    reactor: Any
    wall: Callable[[], float]
    since_boot: Callable[[], float]
    boot: int
    random: Random
    new_id: Callable[[], bytes]  # 16 bytes that nobody else has
    client: HTTPClient
    kept: Kept
    shown: Callable[[], Mapping[str, str]]
    host: str
    shm: str
    space: Callable[[], Space]


class Observer(Protocol):
    """Who is told what an Agent's loop does; it tells the log."""

    def renewed(self) -> None:
        """The outbox had been removed: it was made anew, with all that it held."""

    def failed(self, error: Exception, is_first: bool) -> None:
        """A step failed, with this exception that is handled just now; the first one in a row, or another."""

    def looks(self, now: float) -> None:
        """It is time to look for problems, once a second."""

    def ended(self, problem: str) -> None:
        """Another Agent has the name, and all that was held here is in the spool: this one is to end."""


class Loop:
    """The Agent of `home`, which sends to the Servers `urls`. Begins to work with `start`. `edge` folds what goes as States."""

    def __init__(
        self,
        home: Home,
        urls: list[str],
        pin: Path,
        around: Surroundings,
        observer: Observer,
        ring_group: int | None = None,
        edge: Edge | None = None,
    ):
        self.home, self._around, self._observer = home, around, observer
        self._own: dict[str, str] = {}
        self._happened: dict[str, tuple[str, float]] = {}  # what is over, by a key each, and when it was
        self._loop_problem: str | None = None
        self._name_problem: str | None = None
        self._is_ending = False
        self._store_age: int | None = None  # as the last answer told
        self._call: Any = None
        self._next_keep = self._next_look = self._next_sweep = 0.0
        now, moment = self.clock()
        self._happened.update((f"start {place}", (problem, now)) for place, problem in enumerate(home.problems))
        self._spool_problem = home.spool.problem  # as it was said last
        self.keeper = Keeper(home.outbox, home.spool, home.history, around.new_id, now, moment)
        recover(self.keeper, now)
        home.keys.add(self.keeper.keys, now)
        self.keeper.before_publish = self._keep_name
        self.rings = Rings(home.name, around.shm, ring_group)
        self.slots = Slots(around.shm)
        self.pump = RingPump(self.keeper, self.rings, home.register, around.wall(), edge)
        self._sentences: list[str] = []  # the problems of the last look
        self.alive = Alive(self.pump, around.wall, sender_of(around.host, home.name), lambda: self._sentences)
        self.pin = PinFile(pin)
        if self.pin.problem and not self.pin.is_held:
            self._happened["pin mended"] = self.pin.problem, now
        self.rings.admission.change(self.pin.caps)  # before anything is read
        self.grants = Grants()
        self.dispatch = Dispatch(self.keeper, urls, around.random, around.host, self.pump.edge.edges, self._told_full)
        self._problems = Problems(self.keeper, self.pump, self.dispatch, around.shm, around.space, now)
        self.forwarder = Forwarder(
            around.reactor,
            around.client,
            self.dispatch,
            home.name,
            around.host,
            self.moment,
            around.wall,
            self._store_id,
            self._on_store,
            self._on_store_age,
            around.shown,
            around.kept,
            self._on_caps,
            self._on_versions,
            self.pump.edge.edges,
        )
        # an envelope that names no store would be taken by any
        self.forwarder.may_send = lambda: self.pin.store is not None
        # as all Servers read lately; else the earliest, which whoever reads any that is written here reads
        kept = self.pin.version
        self.keeper.version = kept if kept in versions.HERE.batches else versions.HERE.batches[-1]
        if self.pin.store is not None:
            self.pump.set_buckets(self.pin.store.buckets, moment)
            self.grants.take_up(home.keys.whose(), self.pin.store.buckets, now)

    def start(self) -> None:
        """Begin, with the next turn of the reactor."""
        self._call = self._around.reactor.callLater(0, self.step)

    def stop(self) -> None:
        """Do nothing more, and send nothing more; `last_drain` may follow."""
        if self._call is not None and self._call.active():
            self._call.cancel()
        self.forwarder.stop()

    def last_drain(self) -> None:
        """What is in the rings is in the outbox for the next start, unless that takes too long. Raises one of LAST_DRAIN_FAILS."""
        try:
            if self.pump.buckets is not None:
                for _ in range(MAX_LAST_DRAINS):
                    if not self.pump.drain(*self.clock()):
                        break
        finally:
            try:
                self.keeper.settle_totals()
            finally:  # whatever there was no room for: what nobody finds again has a place of its own to go to
                if self._name_problem is not None:
                    self.keeper.spool_all(*self.clock())

    def close(self) -> None:
        """Let go of everything."""
        self.rings.close()
        self.home.close()

    def moment(self) -> Moment:
        """What age is told by."""
        return Moment(self._around.since_boot(), self._around.boot, self._store_age)

    def clock(self) -> tuple[float, Moment]:
        """The monotonic clock, and what age is told by."""
        return self._around.reactor.seconds(), self.moment()

    def problems(self, more: Mapping[str, str]) -> dict[str, str]:
        """What needs a person now: sentences, by a key each; `more` are those of others."""
        now = self._around.reactor.seconds()
        if self.home.keys.mended is not None:
            self._happened["keys mended"], self.home.keys.mended = (self.home.keys.mended, now), None
        if self.home.spool.problem != self._spool_problem:
            self._spool_problem = self.home.spool.problem
            if self._spool_problem is not None:
                self._happened["spool mended"] = self._spool_problem, now
        self._happened = {key: told for key, told in self._happened.items() if now - told[1] <= LOSS_SHOWN_SECONDS}
        own = {**{key: sentence for key, (sentence, _) in self._happened.items()}, **self._own, **self.grants.problems(now), **more}
        if self._name_problem:
            own["name"] = self._name_problem
        if self.slots.problem:
            own["slots"] = self.slots.problem
        if self.home.keys.write_problem:
            own["keys"] = self.home.keys.write_problem
        if self.home.register.problem:
            own["register"] = self.home.register.problem
        if self.pin.is_held and self.pin.problem:
            own["pin"] = self.pin.problem
        if self._loop_problem:
            own["loop"] = (
                f"a step of the Agent's loop failed and is tried again every second: {self._loop_problem}; if it goes on, restart it"
            )
        found = self._problems.look(now, own)
        self._sentences = list(found.values())
        return found

    # --- the loop ---

    def step(self) -> None:
        """Do what is due, and be called again."""
        delay = TICK_SECONDS
        try:
            now, moment = self.clock()
            self._keep_name()
            if self._name_problem is not None and self.keeper.spool_some(now, moment):
                delay = 0.0  # what lies in memory that nobody finds again goes first: until then nothing fresh can be published
                self.forwarder.pump()
            else:
                delay = self._work(now, moment)
            self._loop_problem = None
            if self._is_ending and self.pump.hand_over() and not self.keeper.holds_any:
                self._observer.ended(f"{self._name_problem}")
                return
        except Exception as error:  # a full disk, a segment cut short: shown, and tried again; the rest works on
            self._observer.failed(error, self._loop_problem is None)
            self._loop_problem = words(error)
            delay = FAILED_SECONDS
        self._call = self._around.reactor.callLater(delay, self.step)

    def _work(self, now: float, moment: Moment) -> float:
        """Drain, and keep what is due; returns the seconds until the next step."""
        delay = self.pump.tick(now, moment)
        self.alive.tick(now, moment)
        if now < self._next_keep:
            self.forwarder.pump()
            return delay
        self._next_keep = now + KEEP_SECONDS
        self.keeper.tick(now, moment)
        self.forwarder.tick()
        if now >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            self.home.keys.tick(now)
            self._keep_again()
            self._observer.looks(now)
        if now >= self._next_sweep:
            self.slots.sweep()
            self._next_sweep = now + (LOOK_SECONDS if self.slots.is_sweeping else SWEEP_SECONDS)
        return delay

    def _keep_name(self) -> None:
        """Before anything is published: the outbox is where the next Agent of this name finds it, or this one ends."""
        if self._is_ending:
            return
        try:
            if self.home.keep_name():
                self._observer.renewed()
            self._name_problem = None
        except AgentRunning as error:
            self._name_problem, self._is_ending = f"{error}", True
        except (OSError, OutboxFull) as error:
            path, reason = self.home.segment.path, words(error)
            self._name_problem = f"{path} is not there and cannot be made ({reason}): all goes through the spool; make room there"
        self.keeper.is_homeless = self._name_problem is not None

    # --- the store ---

    def _told_full(self, key: bytes, now: float) -> None:
        if self.pump.buckets is not None:
            self.grants.told_full(key, self.pump.buckets, now)

    def _on_store_age(self, age: int) -> None:
        self._store_age = age

    def _on_caps(self, caps: Caps) -> None:
        self.rings.admission.change(caps)
        self._keep_caps()

    def _keep_again(self) -> None:
        """Keep what the pin's file did not take: Servers, which tell it again, may be away for longer than its disk is full."""
        if "caps" in self._own:
            self._keep_caps()
        if "version" in self._own:
            self._keep_version()

    def _keep_caps(self) -> None:
        try:
            self.pin.keep(self.rings.admission.caps)
            self._own.pop("caps", None)
        except OSError as error:
            self._own["caps"] = (
                f"how many Tabs Servers let this Agent name cannot be kept for its next start ({words(error)}): until it ends that holds;"
                " make room there"
            )

    def _on_versions(self, chosen: Chosen, is_complete: bool) -> None:
        self.keeper.version = chosen.batch if is_complete else min(chosen.batch, self.keeper.version)
        before = self.pump.edge.allowed
        # who does not know all Servers leads to no States that were not folded before
        self.pump.allow(chosen.edges if is_complete else tuple(edge for edge in chosen.edges if edge in before), self.moment())
        self._own.pop("versions", None)
        if chosen.problem is not None:
            self._own["versions"] = chosen.problem
        self._keep_version()

    def _keep_version(self) -> None:
        try:
            self.pin.keep_version(self.keeper.version)
            self._own.pop("version", None)
        except OSError as error:
            # the next start begins with the earliest, which is as good until it has met a Server
            self._own["version"] = f"in which version batches are written cannot be kept ({words(error)}): make room there"

    def _store_id(self) -> str | None:
        return None if self.pin.store is None else self.pin.store.id

    def _on_store(self, store: Store) -> bool:
        before = self._store_id()
        try:
            is_right = self.pin.meets(store)
        except OSError:  # nothing is sent before it is kept; rings are read meanwhile
            if self.pump.buckets is None:
                self.pump.set_buckets(store.buckets, self.moment())
            raise
        if not is_right:
            if self.pin.is_held and self.pump.buckets is None:
                self.pump.set_buckets(store.buckets, self.moment())  # so that rings are read; of another store they are cut anew
            return False
        if self._store_id() != before:
            self.pump.meanings.forget()
        if self.pump.buckets is not None and self.pump.buckets != store.buckets:
            changed = f"the store has {store.buckets} buckets; until now this Agent knew {self.pump.buckets}"
            self._happened["buckets changed"] = f"{changed}: if that is not meant, see --server", self._around.reactor.seconds()
        if self.pump.buckets != store.buckets:
            self.pump.set_buckets(store.buckets, self.moment())
        return True


def words(error: Exception) -> str:
    """What happened, for people: the operating system's words and the file; of anything else its kind, too."""
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}"[:200]
    return f"{error}"[:200] if isinstance(error, TabaError) else f"{type(error).__name__}: {error}"[:200]
