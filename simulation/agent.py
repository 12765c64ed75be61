"""An Agent of a world: its real loop over a home of the machine. What it must not lose is in the machine's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import ensureDeferred
from twisted.python.failure import Failure

from simulation.arrived import call_of
from simulation.clockwork import Killed
from simulation.ground import Ground, Part
from simulation.names import AGENT, OUTBOX_BYTES, SPOOL_BYTES
from simulation.network import Asking, Sender
from taba.agent.edge import Edge, EdgeLot, States
from taba.agent.home import CannotOpen, Home
from taba.agent.http import Routes
from taba.agent.keeper import Keeper
from taba.agent.loop import LAST_DRAIN_FAILS, Loop, Surroundings
from taba.agent.problems import Space
from taba.batch import MAX_DUMP_BYTES
from taba.bounds import MiB
from taba.calls import HTTPError

FEWEST = 4  # events of a column that an Agent folds: Clients record few at a time here


class Agent(Part):
    """An Agent: the real loop, over a home of this machine."""

    def __init__(self, world: Ground, name: str, urls: list[str]):
        super().__init__(world, name)
        self.urls = urls
        self.ends = 0.0  # when it does, where it is a second one of its name
        self.loop: Loop | None = None
        self.problems: dict[str, str] = {}

    @property
    def keeper(self) -> Keeper | None:
        """Its keeper, once it has begun."""
        return self.loop.keeper if self.loop is not None else None

    def live(self) -> None:
        world, process = self.world, self.process
        assert process is not None
        machine = world.machine
        self.loop = None
        new_id = lambda: process.random.randbytes(16)  # noqa: E731
        try:
            home = Home(AGENT, machine.folder(machine.disk), SPOOL_BYTES, OUTBOX_BYTES, machine.shm, new_id)
        except CannotOpen as error:
            world.say(f"{process.name} cannot start: {f'{error}'.partition(':')[0]}")
            world.fired["a second Agent turned away" if "runs already" in f"{error}" else "an Agent could not start"] += 1
            world.kill(process)
            return
        sender = Sender(world.network, process)
        around = Surroundings(
            reactor=process.reactor,
            wall=process.wall,
            since_boot=world.since_boot,
            boot=world.boot,
            random=process.random,
            new_id=new_id,
            client=Asking(sender),
            kept=sender,
            shown=dict,
            host="host",
            shm=machine.shm,
            space=lambda: Space(64 * MiB, 128 * MiB),
        )
        edge = WatchedEdge(world)
        self.loop = Loop(home, self.urls, Path(machine.disk) / f"{AGENT}.store", around, self, edge=edge)
        self.loop.start()

    def end(self) -> None:
        """As SIGTERM ends it: it publishes what the rings hold. Runs as this Agent's process."""
        assert self.process is not None
        if self.loop is not None:
            self.loop.stop()
            try:
                self.loop.last_drain()
            except LAST_DRAIN_FAILS as error:
                self.world.fired[f"a last drain failed: {type(error).__name__}"] += 1
            self.loop.close()
        self.world.kill(self.process)

    # --- what its loop tells ---

    def renewed(self) -> None:
        """The outbox was made anew."""
        self.world.fired["an outbox was made anew"] += 1

    def failed(self, error: Exception, is_first: bool) -> None:
        """A step failed."""
        self.world.fired[f"a tick failed: {type(error).__name__}"] += 1
        self.world.say(f"{self.name}: a tick failed: {type(error).__name__}: {error}")
        self.world.unexpected(error, self.process)

    def looks(self, now: float) -> None:
        """Once a second."""
        assert self.loop is not None
        self.problems = self.loop.problems({})

    def ended(self, problem: str) -> None:
        """Another has its name."""
        assert self.process is not None
        self.world.say(f"{self.process.name} ends: another has its name")
        self.world.kill(self.process)

    def post(self, content: bytes, key: str) -> int:
        """The status with which `POST /v1/events` is answered. Runs as this Agent's process."""
        loop, process = self.loop, self.process
        if loop is None or process is None:
            return 503
        routes = Routes(loop.pump, loop.home.keys, loop.grants, dict, loop.clock, process.wall, loop.forwarder.pump)
        outcome: list[Any] = []
        ensureDeferred(routes.events(call_of(content, key))).addBoth(outcome.append)
        [answer] = outcome  # its routes wait for nothing
        if not isinstance(answer, Failure):
            return 200
        if answer.check(Killed):
            raise Killed
        if answer.check(HTTPError):
            return cast(HTTPError, answer.value).status
        self.world.fired[f"a post failed: {type(answer.value).__name__}"] += 1
        self.world.unexpected(cast(Any, answer.value), process)
        return 500


class WatchedEdge(Edge):
    """Folds columns of few events, too, and has its world know that it does."""

    def __init__(self, world: Ground):
        super().__init__({type: world.lookup.get(type) for type in world.lookup.edges}, FEWEST)
        self._world = world

    def fold(self, lot: EdgeLot, most: int = MAX_DUMP_BYTES) -> list[States]:
        found = super().fold(lot, most)
        self._world.fired["States folded at the edge"] += sum(len(states.columns) for states in found)
        return found
