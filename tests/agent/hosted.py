"""An Agent's rings, outbox and spool with a store in memory behind them: whose names and events have no room there."""

from __future__ import annotations

import shutil
import tempfile

from twisted.trial.unittest import SynchronousTestCase

from taba.agent.problems import Problems, Space
from taba.caps import Caps

from .producers import Producer
from .world import AGENT, World


class Hosted(SynchronousTestCase):
    """With rings, an outbox and a store."""

    spool_bytes = 1 << 30
    outbox_bytes = 8 << 20

    def setUp(self) -> None:
        directory = tempfile.mkdtemp(dir="/dev/shm")
        self.addCleanup(shutil.rmtree, directory)
        world = self.world = World(directory, outbox_bytes=self.outbox_bytes, spool_bytes=self.spool_bytes)
        self.addCleanup(world.end_producers)
        self.addCleanup(world.die)
        self.looking = Problems(world.keeper, world.pump, world.dispatch, world.shm, lambda: Space(0, 0), world.now)

    def client(self, size: int = 1 << 20, name: str = "web/flood") -> Producer:
        producer = Producer(AGENT, name, size, self.world.shm)
        self.world.producers.append(producer)
        return producer

    def cap(self, *caps: int) -> None:
        self.world.rings.admission.caps = Caps(*caps)

    def drain(self) -> None:
        for _ in range(50):
            self.world.tick()
            self.world.send()

    def sums(self, client: str = "web/flood") -> dict[str, float]:
        events = self.world.store.events.items()
        return {tab: sum(value for value in values if isinstance(value, float)) for (who, tab), values in events if who == client}

    def problems(self) -> list[str]:
        return list(self.looking.look(self.world.now, {}).values())
