"""The Agent whole, in this process: real rings, a real outbox and spool, HTTP over loopback to a Server that gives verdicts."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor, task
from twisted.trial.unittest import TestCase
from twisted.web.http_headers import Headers

from taba.agent.service import AgentService
from taba.options import Listen
from tests.agent.producers import Producer
from tests.agent.servers import FakeServer
from tests.leftovers import agent_name
from tests.patience import PATIENCE_SECONDS
from tests.sites import open_front


class WholeAgent(TestCase):
    """Tests of it: each with an Agent's name, a spool and a Server of its own; what runs at the end is stopped."""

    timeout = 2 * PATIENCE_SECONDS

    def setUp(self) -> None:
        self.agent = agent_name()
        self.spool = self.directory()
        self.server = FakeServer()
        self.addCleanup(self.server.stop)
        self.running: list[AgentService] = []
        self.addCleanup(self._stop_all)

    def directory(self) -> Path:
        """A new one, which is gone at the test's end."""
        made = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, made)
        return made

    async def _stop_all(self) -> None:
        for service in list(self.running):
            await self.stop(service)
        for name in os.listdir("/dev/shm"):
            if name.startswith((f"taba.{self.agent}.", f"taba-agent.{self.agent}")):
                os.unlink(f"/dev/shm/{name}")

    def start(self, *urls: str, outbox_bytes: int = 4 << 20, spool_bytes: int = 64 << 20) -> AgentService:
        front = open_front(Listen("tcp:0:interface=127.0.0.1", 0, "127.0.0.1"), time.monotonic)
        service = AgentService(reactor, self.agent, list(urls or (self.server.url,)), front, self.spool, spool_bytes, outbox_bytes)
        service.startService()
        self.running.append(service)
        return service

    async def stop(self, service: AgentService) -> None:
        self.running.remove(service)
        await service.stopService()

    def kill(self, service: AgentService) -> None:
        """As kill -9 does: nothing is said, nothing is flushed; the lock is free."""
        self.running.remove(service)
        service.loop._call.cancel()
        service.loop.forwarder.stop()
        self.addCleanup(service._pool.closeCachedConnections)
        self.addCleanup(service._port.stopListening)
        service.loop.rings.close()
        service._home.close()

    def producer(self, client: str = "web/1", size: int = 65_536) -> Producer:
        producer = Producer(self.agent, client, size)
        self.addCleanup(producer.remove)
        return producer

    async def until(self, condition: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise AssertionError("it did not come about")
            await task.deferLater(reactor, 0.01, lambda: None)

    async def recorded(self, service: AgentService, total: int) -> None:
        await self.until(lambda: service.loop.keeper.books.recorded == total)

    async def ask(self, service: AgentService, method: str, path: str, content: Any = None, **headers: str) -> tuple[int, Any]:
        import treq

        port = service._port.getHost().port
        body = None if content is None else json.dumps(content).encode()
        url = f"http://127.0.0.1:{port}{path}"
        response = await treq.request(
            method, url, data=body, headers=Headers({name: [value] for name, value in headers.items()}), persistent=False
        )
        return response.code, json.loads(await response.content())
