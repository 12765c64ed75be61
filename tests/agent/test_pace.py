"""While Servers take nothing: real clients, real rings; nothing is lost before outbox and spool are full."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor, task
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from taba.agent.service import AgentService
from taba.options import Listen
from tests.agent.servers import FakeServer
from tests.leftovers import agent_name
from tests.sites import open_front

ROOT = Path(__file__).parents[2]
RECORD = """
import sys
from taba import client
client.start("web/1")
texts, floats, text_bytes = (int(argument) for argument in sys.argv[1:])
words, bids = client.gauge("words"), [client.counter(f"bids_{number}") for number in range(5)]
for _ in sys.stdin:  # each line is a burst
    for number in range(texts):
        words.set("%08d" % number + "x" * (text_bytes - 8))
    for number in range(floats):
        bids[number % 5].inc(number)
    print(client.stats()["recorded"], flush=True)
assert not client.stats()["dropped"], client.stats()
"""


SECONDS = 120.0  # for whatever a busy machine is slow with


class PaceTests(TestCase):
    timeout = 400

    def setUp(self) -> None:
        self.agent = agent_name()
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        self.addCleanup(self._unlink)
        (self.directory / f"{self.agent}.store").write_text('{"id": "4f2a", "buckets": 8}')

    def _unlink(self) -> None:
        for name in os.listdir("/dev/shm"):
            if name.startswith((f"taba.{self.agent}.", f"taba-agent.{self.agent}")):
                os.unlink(f"/dev/shm/{name}")

    def start(self, url: str, outbox_bytes: int, spool_bytes: int) -> AgentService:
        front = open_front(Listen("tcp:0:interface=127.0.0.1", 0, "127.0.0.1"), time.monotonic)
        service = AgentService(reactor, self.agent, [url], front, self.directory, spool_bytes, outbox_bytes)
        service.startService()
        return service

    async def until(self, condition: Callable[[], Any], seconds: float = SECONDS) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise AssertionError("it did not come about")
            await task.deferLater(reactor, 0.01, lambda: None)

    async def recorded(self, service: AgentService, events: int) -> None:
        await self.until(lambda: service.status()["recorded"] >= events)

    async def record(self, service: AgentService, bursts: int, *arguments: int, ring_bytes: int) -> int:
        """A client records bursts of (texts, floats), texts of so many bytes, each once the one before is drained. Returns its events."""
        environ = {**os.environ, "TABA_AGENT": self.agent, "TABA_RING_BYTES": str(ring_bytes), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", RECORD, *map(str, arguments)]
        recorded = 0
        with subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None and process.stdout is not None
            for _ in range(bursts):
                process.stdin.write("on\n")
                process.stdin.flush()
                recorded = int(await deferToThread(process.stdout.readline))
                await self.recorded(service, recorded)
            process.stdin.close()
            self.assertEqual(await deferToThread(process.wait, SECONDS), 0)
        return recorded

    async def check(
        self, bursts: int, *arguments: int, full: bool, outbox_bytes: int = 4 << 20, spool_bytes: int, ring_bytes: int = 1 << 20
    ) -> None:
        service = self.start("http://127.0.0.1:1", outbox_bytes, spool_bytes)
        try:
            total = await self.record(service, bursts, *arguments, ring_bytes=ring_bytes)
            await self.until(lambda: not service.loop.rings.open)
            status = service.status()
            self.assertEqual(status["recorded"], total)
            dropped = status["dropped_by_reason"]
            self.assertEqual(set(dropped), {"spool_full"} if full else set(), dropped)
            if full:
                self.assertGreater(status["spool"]["moves"], 0)
                self.assertLessEqual(service.loop.keeper.spool.used, spool_bytes)
        finally:
            await service.stopService()
        server = FakeServer()
        self.addCleanup(server.stop)
        service = self.start(server.url, outbox_bytes, spool_bytes)
        try:
            await self.until(lambda: server.store.folded + sum(dropped.values()) == total)
            self.assertEqual(service.status()["recorded"], total)
        finally:
            await service.stopService()

    async def test_texts_and_floats_are_all_kept_while_no_server_listens(self) -> None:
        await self.check(3, 10, 10, 1500, full=False, outbox_bytes=64 << 20, spool_bytes=1 << 30)

    @pytest.mark.real
    async def test_bursts_that_take_a_half_of_the_bytes_of_a_ring_are_all_kept(self) -> None:
        await self.check(10, 120, 0, 2000, full=False, spool_bytes=64 << 20, ring_bytes=4 << 20)

    @pytest.mark.real
    async def test_floats_that_fill_half_a_ring_are_all_kept(self) -> None:
        await self.check(10, 0, 15_000, 8, full=False, spool_bytes=64 << 20)

    @pytest.mark.real
    async def test_texts_beyond_the_spools_bound_are_dropped_there_and_nowhere_else(self) -> None:
        await self.check(50, 200, 20, 2000, full=True, spool_bytes=8 << 20, ring_bytes=8 << 20)

    @pytest.mark.real
    async def test_floats_beyond_the_spools_bound_are_dropped_there_and_nowhere_else(self) -> None:
        await self.check(30, 0, 15_000, 8, full=True, spool_bytes=2 << 20)
