"""What the parts of a world stand on: its machine, its network, its store, and the death and clocks of its processes."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable
from random import Random
from typing import Any

from simulation.census import Census, Ledger, OlderLedger
from simulation.clockwork import Clockwork, Process
from simulation.machine import Machine
from simulation.names import part_of
from simulation.network import VERY_LATE_SECONDS, Network
from simulation.store import Store, StorePool
from taba.handlers.counter_group import CounterGroup
from taba.handlers.expiry_gauge import ExpiryGauge
from taba.handlers.lookup import Found, Lookup
from taba.handlers.totals_counter import TotalsCounter
from taba.handlers.updown import UpDown
from taba.server.aging import AGREE_SECONDS
from taba.server.fold.bounds import DEFAULT_BOUNDS
from taba.server.steady import HEARD_SECONDS
from taba.shard import Router
from taba.shard.servers.url import Address, StoreURL

STORES = 3  # servers of the store; it begins with one or two
BELIEVED_SECONDS = VERY_LATE_SECONDS + HEARD_SECONDS  # after it was sent may what a clock said still count


def lookup(ledger: Ledger) -> Lookup:
    """The Handlers of the world."""
    made = [Census(), ledger, UpDown(), TotalsCounter(), CounterGroup(), ExpiryGauge()]
    return Lookup({handler.type: Found(handler, "taba", True) for handler in made})


class Part:
    """What is started, killed and started again. `process` is its life now, if it lives."""

    restart_seconds = (0.05, 5.0)

    def __init__(self, world: Ground, name: str):
        self.world, self.name = world, name
        self.process: Process | None = None
        self.lives = 0
        self.may_start = True
        self.fuse: int | None = None  # of its next life

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.is_alive

    def start(self) -> None:
        """Begin a life; it may be killed while it does."""
        if self.is_alive or not self.may_start:
            return
        self.lives += 1
        self.process = Process(self.world, f"{self.name}#{self.lives}")
        self.process.fuse, self.fuse = self.fuse, None
        self.world.parts[self.process] = self
        self.world.dress(self.process, self)
        self.world.run(self.process, self.live)

    def live(self) -> None:
        raise NotImplementedError

    def died(self) -> None:
        """Its process is dead: what the machine does not know of goes, and it starts again after a while."""
        self.process = None
        if self.may_start:
            self.world.later(self.world.random.uniform(*self.restart_seconds), None, self.start)


class Ground(Clockwork):
    """What the parts of a world know of it. `shape`: the chance that says what kind of world it is."""

    def __init__(self, seed: int, shape: Random, changed: Callable[[Store, set[bytes]], None], directory: str | None = None):
        super().__init__(seed)
        self.machine = Machine(self, directory)
        self.machine.reads_other_version = lambda process: bool(getattr(self.parts.get(process), "is_future", False))
        self.network = Network(self)
        self.parts: dict[Process, Part] = {}
        self.boot = 1
        self.is_quiet = False  # nothing more is recorded
        self.on_death = self._bury
        self._boot_base = self.random.uniform(100.0, 100_000.0)
        self.first_stores = shape.choice((1, 1, 2))
        self.stores = [Store(self, f"memory-{number}", changed, self.network.without_store) for number in range(1, STORES + 1)]
        self.lookup, self.older_lookup = lookup(Ledger()), lookup(OlderLedger())
        self.bounds = DEFAULT_BOUNDS  # of its Servers
        self.urls = [f"http://server-{number}:8280" for number in range(1, shape.choice((1, 2, 2)) + 1)]  # of the Servers
        self.hosts: dict[str, float] = {}  # how far the wall clock of a part's host is off
        self._were_off: list[tuple[float, float]] = []  # until when those of Agents were, and how far
        self.drifts: dict[str, float] = {}  # how fast that of a part runs
        self.paces: dict[str, float] = {}  # how long its host is busy with others between two turns of a part
        self.turns: dict[str, float] = {}  # how long what a part is to do at once waits
        self.folds = 0  # of States
        self.lasting: dict[Any, list[Any]] = {}  # what faults that are not over have it be, by what they befall
        self.goes_back = False  # what a store has acknowledged it may lose
        self.may_fill = False  # what is written may find no room
        self.errors: list[str] = []

    def edges_of(self, url: str) -> dict[str, int]:
        """What the Server there merges of what Agents fold, as all Servers tell it."""
        raise NotImplementedError

    def say(self, line: str) -> None:
        """For people, and for the digest: without the folder, whose name is chance."""
        super().say(line.replace(self.machine.root, "") if "/" in line else line)

    def since_boot(self) -> float:
        """Seconds since the Agent's host began."""
        return self.now + self._boot_base

    def dress(self, process: Process, part: Part) -> None:
        """Give a new process its clocks."""
        process.drift = self.drifts.get(part.name, 1.0)
        process.skew = self.hosts.get(part.name, 0.0)
        process.pace = self.paces.get(part.name, 0.0)
        process.turn = self.turns.get(part.name, 0.0)

    def step_clock(self, part: Part, skew: float) -> None:
        """The wall clock of its host is off so far from now on."""
        self.hosts[part.name] = skew
        if part.process is not None:
            self._leave_clock(part.process, part)
            part.process.skew = skew

    def _leave_clock(self, process: Process, part: Part) -> None:
        """What its clock says no more may still be on its way, and is believed for a while."""
        if part_of(part.name) == "agent":
            self._were_off = [(until, skew) for until, skew in self._were_off if self.now - until <= BELIEVED_SECONDS]
            self._were_off.append((self.now, process.skew))

    def _bury(self, process: Process) -> None:
        part = self.parts.pop(process, None)
        if part is None:
            return
        self._leave_clock(process, part)
        if process.takes_power:
            self.lose_power()
        self.machine.bury(process)
        part.died()
        if process.takes_power:
            self.have_power_back()

    def lose_power(self) -> None:
        """The power of Agent and applications fails."""
        raise NotImplementedError

    def have_power_back(self) -> None:
        """It is back, after all their processes ended."""
        raise NotImplementedError

    def agrees(self, now: float) -> bool:
        """Whether a clock of the store and that of an Agent say about this, or an Agent's said so when it sent what may come only now."""
        off = [process.skew for process, part in self.parts.items() if part_of(part.name) == "agent"]
        off += [skew for until, skew in self._were_off if self.now - until <= BELIEVED_SECONDS]
        stores = any(abs(store.clock.seconds() - now) <= AGREE_SECONDS for store in self.stores)
        return stores and any(abs(self.unix + skew - now) <= AGREE_SECONDS for skew in off)

    def unexpected(self, error: BaseException, process: Process | None) -> None:
        """Code of Taba raised what nobody expects."""
        has_no_room = getattr(error, "errno", None) == errno.ENOSPC or type(error).__name__ in ("SpoolFull", "OutboxFull")
        if self.may_fill and (has_no_room or f"{error}" == "database or disk is full"):
            return
        if process is not None and not process.is_alive:
            return
        self.errors.append("".join(traceback.format_exception(error))[-1500:])


def router_of(world: Ground, process: Process, buckets: int | None, may_make: bool = True) -> Router:
    """A process's Router of the world's store."""
    stores = {store.name: store for store in world.stores}
    addresses = tuple(Address(host=name, port=6379) for name in list(stores)[: world.first_stores])

    def new_pool(address: Address) -> StorePool:
        return StorePool(process, address, stores[address.host])

    reactor: Any = process.reactor
    return Router(StoreURL(addresses), buckets, reactor, process.random, new_pool=new_pool, may_make=may_make)
