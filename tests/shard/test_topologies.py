"""The Router's contract over every form that a store may have, each a real one."""

from __future__ import annotations

import shutil
import tempfile
from typing import Any, ClassVar
from unittest import skipUnless

import pytest
from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from taba.shard.router import Router
from taba.shard.servers.cluster import slot_of_bucket
from taba.shard.servers.embedded import EmbeddedStore
from tests.shard.contract import Contract
from tests.shard.operations_contract import OperationsContract
from tests.shard.pieces import connect
from tests.shard.test_failovers import REDIS
from tests.stores import borrow
from tests.topologies import Cluster, SentinelTrio

pytestmark = pytest.mark.real  # every contract again, against a Cluster and behind sentinels

BUCKETS = 4
SAFE: dict[str, Any] = {"min_replicas_to_write": "1"}


class _RealContract(Contract, OperationsContract):
    async def connected(self: Any, url: str, count: int) -> list[Router]:
        found = []
        for _ in range(count):
            found.append(await connect(self, url, BUCKETS))
        return found


class PlainTests(_RealContract, TestCase):
    timeout = 300
    settings: ClassVar[dict[str, Any]] = {}

    def spread(self) -> dict[str, int]:
        return {"s1": 1, "s2": 1, "s3": 1, "s4": 1}

    async def routers(self, count: int) -> list[Router]:
        valkeys = [borrow(self, tcp=True, **self.settings) for _ in range(4)]
        return await self.connected("redis://" + ",".join(f"127.0.0.1:{valkey.port}" for valkey in valkeys), count)


@skipUnless(REDIS, "no redis-server of version 7 on this machine: apt-get install redis-server")
class RedisTests(PlainTests):
    """… and of Redis 7."""

    settings: ClassVar[dict[str, Any]] = {"binary": REDIS}


class EmbeddedTests(_RealContract, TestCase):
    timeout = 300

    def spread(self) -> dict[str, int]:
        return {"s1": 4}

    async def routers(self, count: int) -> list[Router]:
        directory = tempfile.mkdtemp(prefix="taba-embedded-")
        self.addCleanup(shutil.rmtree, directory, True)
        store = EmbeddedStore(directory, reactor)
        store.startService()
        self.addCleanup(store.stopService)
        await store.wait_running()
        return await self.connected(store.url, count)


class SentinelTests(_RealContract, TestCase):
    timeout = 300
    trio: SentinelTrio

    @classmethod
    def setUpClass(cls) -> None:
        cls.trio = SentinelTrio(masters=2, replicas=1, password="secret", sentinel_password="other", **SAFE)

    @classmethod
    def tearDownClass(cls) -> None:
        cls.trio.remove()

    async def routers(self, count: int) -> list[Router]:
        self.trio.flush()
        return await self.connected(self.trio.url, count)


class ClusterTests(_RealContract, TestCase):
    timeout = 300
    cluster: Cluster

    @classmethod
    def setUpClass(cls) -> None:
        cls.cluster = Cluster(**SAFE)

    @classmethod
    def tearDownClass(cls) -> None:
        cls.cluster.remove()

    def spread(self) -> dict[str, int]:
        found = {f"s1/127.0.0.1:{node.port}": 0 for node in self.cluster.primaries}
        for bucket in range(BUCKETS):
            found[f"s1/127.0.0.1:{self.cluster.primaries[slot_of_bucket(bucket) * 3 // 16384].port}"] += 1
        return found

    async def routers(self, count: int) -> list[Router]:
        self.cluster.flush()
        # one node is named: the others are found through it
        return await self.connected(f"redis+cluster://127.0.0.1:{self.cluster.nodes[-1].port}", count)
