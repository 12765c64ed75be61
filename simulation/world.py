"""One world: its parts, the faults that befall them, a quiet end, and what must be true then.

Everything follows from the seed. The faults are drawn before anything happens and have a number each, so that a run can be repeated
without some of them: that is how a trace is made short.
"""

from __future__ import annotations

import gc
import traceback
from collections import Counter
from collections.abc import Collection
from random import Random
from typing import Any, NamedTuple

from twisted.logger import formatEvent, globalLogPublisher

from simulation.census import Census, count, numbers
from simulation.clockwork import Clockwork, Killed, Process
from simulation.faults import KINDS, Fault, draw
from simulation.machine import Machine
from simulation.network import Network
from simulation.parts import Agent, Client, Part, Poster, Server
from simulation.store import Store
from taba.agent.loop import Loop
from taba.handlers.lookup import Found, Lookup
from taba.server import keys
from taba.server.aging import read_record

BUCKETS = 4
CALM_SECONDS = 240.0  # after the last fault: by then all is folded, and no problem left
LOOK_SECONDS = 1.0  # between two looks whether all is folded


class Broken(AssertionError):
    """Something that must be true is not."""


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
    folded: int


class World(Clockwork):
    """The world of one seed. `without`: numbers of faults that do not happen. `faults_wanted`: kinds, or all."""

    def __init__(
        self,
        seed: int,
        without: Collection[int] = (),
        duration: float | None = None,
        kinds: Collection[str] = tuple(KINDS),
        directory: str | None = None,
        types: Collection[str] = ("Census", "Census", "UpDown"),
        rate: float = 4.0,
        density: float = 0.5,
    ):
        super().__init__(seed)
        shape = Random(f"shape {seed}")
        self.seed, self.without = seed, frozenset(without)
        self.duration = duration = duration if duration is not None else shape.choice((10.0, 20.0, 30.0, 30.0, 150.0))
        self.machine = Machine(self, directory)
        self.machine.reads_other_version = lambda process: bool(getattr(self.parts.get(process), "is_future", False))
        self.network = Network(self)
        self.parts: dict[Process, Part] = {}
        self.boot = 1
        self.is_quiet = False  # nothing more is recorded
        self.on_death = self._bury
        self.first_stores = 1
        self.stores = [Store(self, f"memory-{number}") for number in range(1, self.first_stores + 1)]
        self.lookup = lookup()
        urls = [f"http://server-{number}:8280" for number in range(1, shape.choice((1, 2, 2)) + 1)]
        self.servers = [Server(self, f"server-{number}", url, BUCKETS) for number, url in enumerate(urls, 1)]
        self.agents = [Agent(self, "agent", urls[:1]), Agent(self, "other-agent", urls[:1])]
        self.agents[1].may_start = False  # until somebody starts it
        self.shielded_until = 0.0
        tabs = [(f"{type.lower()}{number}", type) for number, type in enumerate(types)]
        self.clients = [Client(self, f"client-{number}", tabs, rate) for number in range(1, shape.choice((1, 2, 3)) + 1)]
        self.posters = [Poster(self, "poster-server", True), Poster(self, "poster-agent", False)][: shape.choice((0, 2, 2))]
        self.hosts: dict[str, float] = {}  # how far the wall clock of a part's host is off
        self.drifts = {part.name: shape.uniform(0.999, 1.001) for part in (*self.servers, *self.agents, *self.clients)}
        self.errors: list[str] = []
        self.faults = draw(Random(f"faults {seed}"), self, duration, kinds, density)
        if any(fault.kind == "store goes back" for fault in self.faults):
            # what a Server has folded of a post nobody retains: it is the poster's to know that a store went back
            self.posters = [poster for poster in self.posters if not poster.is_for_servers]
        self.may_lose = False  # a fault made it right that something is dropped, counted

    # --- what parts need ---

    def dress(self, process: Process, part: Part) -> None:
        """Give a new process its clocks."""
        process.drift = self.drifts.get(part.name, 1.0)
        process.skew = self.hosts.get(part.name, 0.0)

    def run(self, process: Process, function: Any, *arguments: Any) -> None:
        before, self.machine.process = self.machine.process, process
        try:
            super().run(process, function, *arguments)
        finally:
            self.machine.process = before

    def _bury(self, process: Process) -> None:
        part = self.parts.pop(process, None)
        if part is not None:
            self.machine.bury(process)
            part.died()

    def unexpected(self, error: BaseException, process: Process | None) -> None:
        """Code of Taba raised what nobody expects."""
        if isinstance(error, OSError) or type(error).__name__ in ("OperationalError", "SpoolFull", "OutboxFull"):
            return
        if process is not None and not process.is_alive:
            return
        self.errors.append("".join(traceback.format_exception(error))[-1500:])

    def _hear(self, event: dict[str, Any]) -> None:
        """What a part logs as a failure is one, unless it is dead: then its coroutines end in any way."""
        failure = event.get("log_failure")
        if failure is None or failure.check(Killed, GeneratorExit) or "GeneratorExit" in f"{failure.value}":
            return
        if self.machine.process.is_alive:
            self.errors.append(f"{formatEvent(event)}\n{failure.getTraceback()}"[-1500:])

    # --- the run ---

    def play(self) -> Result:
        """All of it."""
        globalLogPublisher.addObserver(self._hear)
        with self.machine.exchanged():
            try:
                self._play()
                error = self.errors[0] if self.errors else None
            except Broken as broken:
                error = f"{broken}"
            finally:
                globalLogPublisher.removeObserver(self._hear)
        result = Result(
            self.seed, error, self.steps, self.now, self.digest, self.fired, self.faults, list(self.said), self.folded()["folded"]
        )
        return result

    def _play(self) -> None:
        if any(fault.kind == "store goes back" for fault in self.faults):
            for store in self.stores:
                store.remember()
        for part in (*self.servers, *self.agents, *self.clients, *self.posters):
            self.later(self.random.uniform(0.0, 0.5), None, part.start)
        for fault in self.faults:
            if fault.number not in self.without:
                self.later(fault.at, None, self._befall, fault)
        self.advance(self.duration)
        self._make_quiet()
        self.advance(self.now + 5.0)
        self._settle()
        if self.network.last_arrival > self.now:
            self.advance(self.network.last_arrival + LOOK_SECONDS)  # what comes later than all else changes nothing
            self._settle()

    def _settle(self) -> None:
        end = self.now + CALM_SECONDS
        while not self.is_settled() and self.now < end:
            self.advance(self.now + LOOK_SECONDS)
        self.check()

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
        self.machine.is_disk_full = self.machine.is_memory_full = False
        for store in self.stores:
            store.is_reading_only = False
            store.cut_before = store.cut_after = store.late = 0.0
            store.start()
        for server in self.servers:
            server.is_future = False
        for part in (*self.servers, self.agents[0], *self.clients, *self.posters):
            part.may_start = True
            if part.process is not None:
                part.process.fuse = None
            self.later(0.01, None, part.start)

    # --- what is true ---

    @property
    def is_shielded(self) -> bool:
        """Whether nobody kills an Agent now."""
        return self.now < self.shielded_until

    @property
    def holder(self) -> Agent | None:
        """The Agent that has the name now."""
        return next((agent for agent in self.agents if agent.is_alive and agent.loop is not None), None)

    @property
    def loop(self) -> Loop | None:
        """Its loop."""
        holder = self.holder
        return holder.loop if holder is not None else None

    @property
    def completed(self) -> int:
        """Events whose record returned, and that somebody can know of."""
        return sum(client.attempts - client.interrupted - client.unknown for client in self.clients)

    def is_settled(self) -> bool:
        """Whether nothing is on its way any more."""
        loop = self.loop
        if loop is None or loop.pump.buckets is None:
            return False
        keeper = loop.keeper
        if keeper.unacknowledged or keeper.spool.batches or any(lane.pending or lane.sent for lane in keeper.lanes.values()):
            return False
        if any(ring.look(loop.pump._scratch).records for ring in loop.rings.open.values()):
            return False
        return self.completed <= self.accounted() and not any(poster.under_way for poster in self.posters)

    def accounted(self) -> int:
        """Events that the books name, however they ended."""
        figures = self.figures()
        return figures["folded"] + figures["dead"] + sum(self.dropped().values())

    def dropped(self) -> Counter[str]:
        dropped: Counter[str] = Counter()
        loop = self.loop
        if loop is not None:
            dropped += loop.keeper.totals() + loop.pump.live_drops()
        return dropped

    def figures(self) -> Counter[str]:
        """The store's counts of what came by the Agent."""
        counts, states = self.folded(), self.states()
        for poster in self.posters:
            if poster.is_for_servers:
                for name, _ in poster.tabs:
                    for _, (again, runs) in states.get((poster.name, name), []):
                        counts["folded"] -= again + count(runs)
        return counts

    def folded(self) -> Counter[str]:
        """What the store's own counts say."""
        counts: Counter[str] = Counter()
        for store in self.stores:
            for bucket in range(BUCKETS):
                for name, number in (store.server._values.get(keys.counts(bucket)) or {}).items():
                    word = name.decode()
                    counts["dead" if word.startswith("dead") else word] += int(number)
        return counts

    def states(self) -> dict[tuple[str, str], list[tuple[str, Any]]]:
        """(Client, Tab) → where each of its States is and what it says."""
        found: dict[tuple[str, str], list[tuple[str, Any]]] = {}
        for store in self.stores:
            for bucket in range(BUCKETS):
                types = store.server._values.get(keys.tabs(bucket)) or {}
                for field, content in (store.server._values.get(keys.states(bucket)) or {}).items():
                    tab, _, client = field.decode().partition("\0")
                    handler: Any = self.lookup.get(types[tab.encode()].decode())
                    state = handler.load(keys.unframe(content).dump) if types[tab.encode()] == b"Census" else content
                    found.setdefault((client, tab), []).append((f"{store.name} bucket {bucket}", state))
        return found

    def check(self) -> None:
        """What must be true in the end. Raises Broken."""
        if self.errors:
            raise Broken(self.errors[0])
        if not self.is_settled():
            raise Broken(f"{CALM_SECONDS:.0f} s after the last fault not all is folded: {self._left()}")
        self._check_books()
        self._check_identities()
        self._check_age()
        self._check_updowns()

    def _left(self) -> str:
        agent, loop = self.holder, self.loop
        if agent is None or loop is None:
            return "no Agent runs"
        keeper = loop.keeper
        waiting = [f"{lane.bucket}:{len(lane.pending)}" for lane in keeper.lanes.values() if lane.pending or lane.sent]
        held = f"outbox {keeper.unacknowledged}, spool {keeper.spool.batches}, lanes {waiting[:5]}, {list(agent.problems.values())[:3]}"
        return f"{agent.name}: {held}; {self.completed} recorded, {self.accounted()} accounted for"

    def _check_books(self) -> None:
        posted = [poster for poster in self.posters if not poster.is_for_servers]
        completed = self.completed + sum(poster.accepted for poster in posted)
        doubtful = sum(client.interrupted for client in self.clients)
        doubtful += sum(len(numbers) for poster in posted for numbers in poster.doubtful.values())
        loop = self.loop
        assert loop is not None
        recorded = loop.keeper.recorded + sum(loop.pump.live_drops().values())
        figures, dropped = self.figures(), self.dropped()
        accounted = figures["folded"] + figures["dead"] + sum(dropped.values())
        books = f"recorded {recorded}, folded {figures['folded']}, dead {figures['dead']}, dropped {dict(dropped)}"
        recorded -= figures["known_key"]  # posted again after the Agent had lost their key: they count there, and were folded once
        if not completed <= recorded <= completed + doubtful:
            raise Broken(f"{completed} events were recorded and {doubtful} perhaps; the books: {books}")
        if recorded != accounted:
            raise Broken(f"the books do not balance: {books}")
        own = sum(client.dropped - client.unknown for client in self.clients)
        lost = sum(dropped.values()) - own
        if lost and not self.may_lose:
            raise Broken(f"nothing had to be dropped, and was: {books}; by the clients themselves: {own}")

    def _check_identities(self) -> None:
        states = self.states()
        missing = 0
        sources: list[Any] = [*self.clients, *self.posters]
        for client in sources:
            for (name, type), recorded in client.recorded.items():
                if type != "Census":
                    continue
                found = states.get((client.name, name), [])
                if len(found) > 1:
                    raise Broken(f"{client.name}'s {name} has {len(found)} States: {[where for where, _ in found]}")
                again, runs = found[0][1] if found else (0, [])
                if again:
                    raise Broken(f"{client.name}'s {name}: {again} events were folded twice")
                there = numbers(runs)
                strange = there - recorded - client.doubtful[name, type]
                if strange:
                    raise Broken(f"{client.name}'s {name}: {sorted(strange)[:5]} were folded and never recorded, or dropped")
                missing += len(recorded - there)
        dropped = self.dropped()
        allowed = sum(dropped.values()) + self.figures()["dead"] - sum(client.dropped for client in self.clients)
        if missing > max(0, allowed):
            raise Broken(f"{missing} events were recorded and are nowhere; dropped {dict(dropped)}")

    def _check_age(self) -> None:
        for store in self.stores:
            record = read_record(store.server._values.get(keys.age(0)))
            if record is not None and record.age > self.now / 60.0 * 1.01 + 1:
                raise Broken(f"the store is {record.age} minutes old after {self.now:.0f} s")

    def _check_updowns(self) -> None:
        """What lives has its own sum, what died has none."""
        for (client, tab), found in self.states().items():
            if not tab.startswith("updown"):
                continue
            handler: Any = self.lookup.get("UpDown")
            if any(one.name == client and one.is_alive and not one.producer._port.is_open for one in self.clients):
                continue  # it has no ring, and records nothing more that would make one: nobody can know
            for where, content in found:
                value = project(handler, content)
                wanted = sum(one.net for one in self.clients if one.name == client and one.is_alive)
                if abs(value - wanted) > 1e-6:
                    raise Broken(f"{client}'s {tab} is {value} in {where}; the process that lives added {wanted}")


def project(handler: Any, content: bytes) -> float:
    """The value of an UpDown's State."""
    state = handler.load(keys.unframe(content).dump)
    return float(handler.project(state, 0.0)["value"] or 0.0)


def lookup() -> Lookup:
    """The Handlers of the world."""
    from taba.handlers.counter_group import CounterGroup
    from taba.handlers.expiry_gauge import ExpiryGauge
    from taba.handlers.totals_counter import TotalsCounter
    from taba.handlers.updown import UpDown

    made = [Census(), UpDown(), TotalsCounter(), CounterGroup(), ExpiryGauge()]
    return Lookup({handler.type: Found(handler, "taba", True) for handler in made})


def play(seed: int, without: Collection[int] = (), **options: Any) -> Result:
    """One run, and nothing of it left behind."""
    world = World(seed, without, **options)
    try:
        return world.play()
    finally:
        del world
        gc.collect()
