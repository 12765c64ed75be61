"""One of four shards is bad, in each way that there is: the others' Tabs are folded and answered all the while, and nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, ClassVar
from unittest import skipUnless

import pytest
from twisted.internet.task import deferLater

from taba.batch import APPLIED, LATER
from taba.events import key_part
from taba.server.service import Server
from taba.shard.moving.check import check
from taba.shard.moving.reshard import current_shards

from ..shard.test_failovers import REDIS
from ..stores import borrow
from ..valkey import EphemeralValkey
from .running import BUCKETS, ServerCase, asynchronous, encoded, reactor, together
from .samples import column, tab_in

SHARDS, BAD = 4, 1  # s2: buckets 4 to 7 of 16
ROUNDS = 3
TABS = [tab_in(bucket, 0, BUCKETS) for bucket in range(BUCKETS)]
BAD_BUCKETS = range(BAD * BUCKETS // SHARDS, (BAD + 1) * BUCKETS // SHARDS)
GOOD = [tab for bucket, tab in enumerate(TABS) if bucket not in BAD_BUCKETS]

Change = Callable[[EphemeralValkey], Any]

pytestmark = pytest.mark.real


class BadShardCase(ServerCase):
    timeout = 180
    settings: ClassVar[dict[str, Any]] = {}

    def setUp(self) -> None:
        super().setUp()
        self.valkeys = [borrow(self, tcp=True, **self.settings) for _ in range(SHARDS)]
        self.store = "redis://" + ",".join(f"127.0.0.1:{valkey.port}" for valkey in self.valkeys)
        self.tries = 0

    async def round(self, server: Server, number: int) -> list[str]:
        """Send batch `number` of each bucket at once, those of good ones until they are applied; the last verdicts on bad ones."""
        left = {bucket: encoded(1, bucket, number, [column(tab, "TotalsCounter", [1.0])]) for bucket, tab in enumerate(TABS)}
        while True:
            verdicts = await self.send(server, *left.values())
            self.tries += 1
            words = dict(zip(left, (verdict.word for verdict in verdicts), strict=True))
            bad = [words[bucket] for bucket in BAD_BUCKETS]
            left = {bucket: entry for bucket, entry in left.items() if bucket in BAD_BUCKETS or words[bucket] != APPLIED}
            if len(left) == len(BAD_BUCKETS):
                return bad
            await deferLater(reactor, 0.05)

    async def counted(self, server: Server, tabs: list[str]) -> set[float]:
        answer = await self.get(server, "/v1/aggregates?" + "&".join(f"name={tab}" for tab in tabs))
        return {answer[tab]["total"] for tab in tabs}

    async def one_is_bad(self, spoil: Change, mend: Change, answers_reads: bool = False) -> None:
        server = await self.start(self.store)
        self.assertEqual(await self.round(server, 1), [APPLIED] * len(BAD_BUCKETS))
        spoil(self.valkeys[BAD])
        for number in range(2, ROUNDS + 2):
            bad = await self.round(server, number)
            if number == 2:
                self.assertEqual(bad, [LATER] * len(BAD_BUCKETS))
            self.assertEqual(await self.counted(server, GOOD), {number})
        good_key = next(f"k{n}" for n in range(99) if self.bucket_of_key(f"k{n}") not in BAD_BUCKETS)
        bad_key = next(f"k{n}" for n in range(99) if self.bucket_of_key(f"k{n}") in BAD_BUCKETS)
        event = [{"tab": GOOD[0], "type": "TotalsCounter", "value": 1.0}]
        while (await self.post(server, event, good_key)).status != 200:
            await deferLater(reactor, 0.05)
        refused = await self.post(server, event, bad_key)
        self.assertEqual(refused.status, 503, refused.body)
        await self.asked(server, answers_reads)
        while not any("shard s2 " in problem for problem in (await self.get(server, "/v1/status"))["problems"]):
            await deferLater(reactor, 0.05)
        self.assertEqual((await self.ask(server, "/readyz")).status, 200)  # three of four are work enough
        self.assertEqual([one["url"] for one in await self.get(server, "/v1/servers")], [server.presence.url])
        mend(self.valkeys[BAD])
        for number in range(2, ROUNDS + 2):
            while set(await self.round_of_bad(server, number)) != {APPLIED}:
                await deferLater(reactor, 0.05)
        while (await self.post(server, event, bad_key)).status != 200:
            await deferLater(reactor, 0.05)
        self.assertEqual(await self.counted(server, TABS[1:]), {ROUNDS + 1})
        self.assertEqual(await self.counted(server, TABS[:1]), {ROUNDS + 3})
        self.assertEqual(await check(await current_shards(server.router.atlas), reactor), [])
        while (await self.get(server, "/v1/status"))["problems"]:
            await deferLater(reactor, 0.05)
        print(f"{self.id()}: {ROUNDS} rounds took {self.tries - 1} envelopes")

    async def round_of_bad(self, server: Server, number: int) -> list[str]:
        entries = [encoded(1, bucket, number, [column(TABS[bucket], "TotalsCounter", [1.0])]) for bucket in BAD_BUCKETS]
        return [verdict.word for verdict in await self.send(server, *entries)]

    def bucket_of_key(self, key: str) -> int:
        return int.from_bytes(key_part("web/1", key, b"").key[:8], "big") % BUCKETS

    async def asked(self, server: Server, answers_reads: bool) -> None:
        paths = [
            "/v1/names",
            "/v1/types",
            "/v1/clients",
            "/v1/aggregates",
            "/v1/projections",
            "/v1/superaggregate",
            "/v1/overview",
            "/v1/who",
        ]
        whole = await together([self.ask(server, path) for path in paths])
        partly = await together([self.ask(server, f"{path}?partial=1") for path in paths])
        for path, refused, part in zip(paths, whole, partly, strict=True):
            if answers_reads:
                self.assertEqual((refused.status, part.status, part.headers.hasHeader("taba-away")), (200, 200, False), path)
                continue
            self.assertEqual((refused.status, "s2" in refused.json["detail"]), (503, True), (path, refused.body))
            self.assertEqual(part.status, 200, (path, part.body))
            [header] = part.headers.getRawHeaders("taba-away")
            self.assertEqual({shard: said["buckets"] for shard, said in json.loads(header).items()}, {"s2": "4-7"}, path)
        if answers_reads:
            return
        self.assertEqual(partly[0].json, sorted(GOOD))
        self.assertEqual(sorted(partly[3].json), sorted(GOOD))
        self.assertIn("4 of 16 buckets are away and left out (4-7)", partly[5].json["error"])
        self.assertEqual(sorted(row["name"] for row in partly[6].json), sorted(GOOD))
        self.assertEqual(sorted(partly[7].json), sorted(GOOD))
        named = (await self.ask(server, f"/v1/aggregates?partial=1&name={TABS[5]}&name={GOOD[1]}")).json
        self.assertEqual((sorted(named), "s2" in named[TABS[5]]["error"]), (sorted([TABS[5], GOOD[1]]), True))


class BadShards(BadShardCase):
    @asynchronous
    async def test_one_that_is_killed(self) -> None:
        await self.one_is_bad(EphemeralValkey.kill, EphemeralValkey.start)

    @asynchronous
    async def test_one_that_is_stopped(self) -> None:
        await self.one_is_bad(EphemeralValkey.pause, EphemeralValkey.resume)

    @asynchronous
    async def test_one_that_is_out_of_memory(self) -> None:
        await self.one_is_bad(setting("maxmemory", "1"), setting("maxmemory", "0"), answers_reads=True)

    @asynchronous
    async def test_one_that_is_paused(self) -> None:
        def mend(valkey: EphemeralValkey) -> None:
            valkey.kill()  # one that is paused takes no UNPAUSE from those who come now
            valkey.start()

        await self.one_is_bad(command("CLIENT", "PAUSE", "600000"), mend)

    @asynchronous
    async def test_one_whose_writes_are_paused(self) -> None:
        await self.one_is_bad(command("CLIENT", "PAUSE", "600000", "WRITE"), command("CLIENT", "UNPAUSE"), answers_reads=True)

    @asynchronous
    async def test_one_that_is_a_read_only_replica(self) -> None:
        await self.one_is_bad(command("REPLICAOF", "127.0.0.1", "1"), command("REPLICAOF", "NO", "ONE"), answers_reads=True)

    @asynchronous
    async def test_one_whose_password_is_another(self) -> None:
        def spoil(valkey: EphemeralValkey) -> None:
            valkey.call("CONFIG", "SET", "requirepass", "another")
            valkey.as_user("default", "another", "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

        def mend(valkey: EphemeralValkey) -> None:
            valkey.as_user("default", "another", "CONFIG", "SET", "requirepass", "")

        await self.one_is_bad(spoil, mend)


def command(*arguments: str) -> Change:
    def change(valkey: EphemeralValkey) -> None:
        reply = valkey.call(*arguments)
        assert reply == b"OK", reply

    return change


def setting(name: str, value: str) -> Change:
    return command("CONFIG", "SET", name, value)


@skipUnless(REDIS, "no redis-server of version 7 on this machine: apt-get install redis-server")
class BadRedis(BadShardCase):
    """What a server of Redis 7 says for itself."""

    settings: ClassVar[dict[str, Any]] = {"binary": REDIS}

    @asynchronous
    async def test_one_that_is_out_of_memory(self) -> None:
        await self.one_is_bad(setting("maxmemory", "1"), setting("maxmemory", "0"), answers_reads=True)

    @asynchronous
    async def test_one_that_is_a_read_only_replica(self) -> None:
        await self.one_is_bad(command("REPLICAOF", "127.0.0.1", "1"), command("REPLICAOF", "NO", "ONE"), answers_reads=True)
