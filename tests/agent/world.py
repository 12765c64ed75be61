"""A host of the tests: rings, a small outbox and a spool, Agents that come and go on them, and a Server that does what a test wants."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from taba.agent.discover import Rings
from taba.agent.dispatch import Dispatch
from taba.agent.edge import Edge
from taba.agent.history import History
from taba.agent.keeper import Keeper
from taba.agent.lanes import Outgoing
from taba.agent.outbox import Outbox
from taba.agent.pump import RingPump
from taba.agent.recovery import recover
from taba.agent.register import Register
from taba.agent.spool import Spool
from taba.batch import APPLIED, LATER, MARK, OPEN, REFUSED, BatchId, Header, Verdict
from tests.agent.moments import at
from tests.agent.outboxes import Killed, Memory
from tests.agent.producers import Producer
from tests.agent.servers import Store

BUCKETS = 4
AGENT = "keeping"


class StepSpool(Spool):
    """A spool whose transactions are steps, too: the Agent dies before one, or after it."""

    memory = Memory(0)  # no step counts before the Agent's own is set

    @contextlib.contextmanager
    def _transaction(self) -> Any:  # type: ignore[override]
        if self.memory._step():
            raise Killed
        with super()._transaction():
            yield
        if self.memory._step():
            raise Killed


class World:
    """A host with rings, a small outbox and a spool, and Agents that come and go; a Server that does what a test wants."""

    def __init__(
        self,
        directory: str,
        spool_bytes: int = 1 << 30,
        outbox_bytes: int = 512 * 1024,
        segment: tuple[Outbox, str] | None = None,
        edge: Edge | None = None,
    ):
        self.directory, self.edge = directory, edge
        self.outbox: Outbox | None = None
        self.shm = directory
        if segment is not None:
            self.outbox, self.shm = segment
        self.spool_bytes = spool_bytes
        self.store = Store()
        self.refuse: Callable[[BatchId], bool] = lambda id: False
        self.memory = Memory(outbox_bytes)
        Outbox.format(self.memory, b"i" * 16)
        self.now = 0.0
        self._held: frozenset[BatchId] = frozenset()
        self.producers = [Producer(AGENT, f"web/{number}", 65_536, self.shm) for number in range(2)]
        self.recorded = 0
        self.streams = 0
        self.refused: dict[BatchId, int] = {}  # events of what the Server refused at last
        self.born()

    def born(self) -> None:
        """An Agent starts on what there is."""
        self.spool = StepSpool(os.path.join(self.directory, "spool"), self.spool_bytes)
        self.spool.memory = self.memory
        self.history = History(os.path.join(self.directory, "history"))
        self.keeper = Keeper(self.outbox or Outbox(self.memory), self.spool, self.history, self._stream, self.now, at(self.now))
        recover(self.keeper, self.now)
        self.dispatch = Dispatch(self.keeper, ["http://127.0.0.1:8280"], Random(1))
        self.rings = Rings(AGENT, self.shm)
        self.pump = RingPump(self.keeper, self.rings, Register(os.path.join(self.directory, "sums")), edge=self.edge)
        self.pump.set_buckets(BUCKETS, at(self.now))

    def _stream(self) -> bytes:
        self.streams += 1
        return self.streams.to_bytes(16, "big")

    def die(self) -> None:
        self.memory.steps = None
        for ring in self.rings.open.values():
            ring.close()
        self.rings.open.clear()
        self.pump.sums.register.close()
        self.spool.close()
        self.history.close()

    def lose_outbox(self) -> None:
        """The Agent dies, and the next one finds no outbox of before."""
        self.die()
        self.memory = Memory(512 * 1024)
        Outbox.format(self.memory, b"n" * 16)
        self.born()

    def end_producers(self) -> None:
        for producer in self.producers:
            producer.die()

    def record(self, events: int) -> None:
        for number in range(events):
            producer = self.producers[number % 2]
            producer.record(producer.tab(f"tab{self.recorded % 5}"), float(self.recorded))
            self.recorded += 1

    def tick(self) -> None:
        self.now += 2.0
        self.pump.tick(self.now, at(self.now))
        self.keeper.tick(self.now, at(self.now))

    def move(self) -> None:
        """All that is in the outbox goes to the spool."""
        end = self.keeper.outbox.head
        while self.keeper.outbox.released < end:
            assert self.keeper._move_some(self.now, at(self.now))

    def send(self) -> int:
        """What may go now goes, and is answered: streams are opened first. Returns how many batches and probes."""
        count, is_opening = 0, True
        while is_opening:
            parcels = self.dispatch.parcels(self.now, at(self.now))
            for parcel in parcels:
                self.dispatch.answered(parcel, [self._verdict(send) for send in parcel.sends], self.now)
            sends = [send.entry for parcel in parcels for send in parcel.sends]
            count += sum(not isinstance(entry, Header) or entry.do == MARK for entry in sends)
            is_opening = any(isinstance(entry, Header) and entry.do == OPEN for entry in sends)
        return count

    def outlive(self, rounds: int, *steps: Callable[[], object]) -> bool:
        """Take `steps` in turn so many times; an Agent that is killed in one is started again. Returns whether one was."""
        was_killed = False
        for _ in range(rounds):
            try:
                for step in steps:
                    step()
            except Killed:
                was_killed = True
                self.die()
                self.born()
        return was_killed

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def hold(self, ids: Iterable[BatchId]) -> None:
        """From now on the Server takes these batches later, and no others."""
        self._held = frozenset(ids)

    def _verdict(self, send: Outgoing) -> Verdict:
        id = BatchId(send.lane.stream, send.lane.bucket, send.number)
        if send.batch is not None and id in self._held:
            return Verdict(LATER, 1.0)
        before = self.store.marks.get(id[:2], 0)
        if send.batch is not None and send.number > before and self.refuse(id):
            self.refused[id] = send.batch.events
            return Verdict(REFUSED, "no")
        verdict = self.store.decide(send.entry)
        if verdict.word == APPLIED and send.number > before:
            self.refused.pop(id, None)  # the Agent was killed before it counted, and this time it is taken
        return verdict


class WorldCase(SynchronousTestCase):
    """Tests of such hosts."""

    def world(self, **arguments: Any) -> World:
        directory = tempfile.mkdtemp(dir="/dev/shm")
        self.addCleanup(shutil.rmtree, directory)
        world = World(directory, **arguments)
        self.addCleanup(world.end_producers)
        self.addCleanup(world.die)
        return world

    def kills(self, life: Callable[[World, int], bool], fewest: int = 3) -> None:
        """`life` in a world of its own for each write that a kill may come before, until none is left. It says whether the kill came."""
        kill = 0
        while life(self.world(), kill):
            kill += 1
        self.assertGreaterEqual(kill, fewest)
