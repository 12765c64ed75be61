"""Rings in a folder of their own, written by a test and read as an Agent does."""

from __future__ import annotations

import os
import shutil
import tempfile

from twisted.trial.unittest import SynchronousTestCase

from taba.agent.drain import Drain, Drained
from taba.agent.outbox import Covered
from taba.agent.reader import Ring
from tests.agent.producers import Producer

AGENT = "reading"


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = tempfile.mkdtemp(dir="/dev/shm")
        self.addCleanup(shutil.rmtree, self.directory)
        self.opened: list[Ring] = []
        self.addCleanup(self.close)

    def close(self) -> None:
        for fd in {ring.fd for ring in self.opened}:
            os.close(fd)

    def producer(self, client: str = "web/1", size: int = 65_536, flags: int = 0) -> Producer:
        producer = Producer(AGENT, client, size, self.directory, flags=flags)
        self.addCleanup(producer.remove)
        return producer

    def open(self, producer: Producer, covered: list[Covered] | None = None) -> Ring:
        ring = Ring(os.open(producer.path, os.O_RDWR), producer.name, covered or ())
        self.opened.append(ring)
        return ring

    def drain(self, *rings: Ring, dead: bool = False, events: int = 1 << 20) -> Drained:
        drained = Drain(8).run([(ring, dead) for ring in rings], events)
        for ring, reading in drained.readings:
            ring.settle(reading)
        return drained
