"""Dead letters: listed newest first however many buckets have some, and given up for ever when a person says so."""

from __future__ import annotations

from typing import Any

from taba.server import keys
from taba.server.ask import letters
from taba.server.keep import discarding
from taba.server.service import Server
from taba.shard import Writes

from ..running import ServerCase, asynchronous
from .cases import KeepingCase

ODD: list[Any] = [{"tab": f"odd{n}", "type": "NoSuchType", "value": n} for n in range(8)]


class Discarding(KeepingCase):
    async def filled(self, times: int = 3) -> Server:
        server = await self.start()
        for _ in range(times):
            await self.post(server, ODD)
        await self.post(server, [{"tab": "good", "type": "TotalsCounter", "value": 1}])
        return server

    @asynchronous
    async def test_what_is_given_up_is_gone_and_counted(self) -> None:
        self.patch(discarding, "LOT_LETTERS", 2)
        server = await self.filled()
        record = await self.job(server, "/v1/discard?dry_run=1")
        self.assertEqual((record["state"], record["message"]), ("done", "24 dead letters would be given up"))
        self.assertEqual((await self.get(server, "/v1/status"))["dead_letters"], 24)
        record = await self.job(server, "/v1/discard")
        self.assertEqual((record["state"], record["message"]), ("done", "24 dead letters given up"))
        self.assertEqual(await self.get(server, "/v1/dead-letters"), [])
        await self.post(server, ODD[:1])  # what comes later is not
        status = await self.get(server, "/v1/status")
        self.assertEqual((status["dead_letters"], status["dropped_by_reason"], status["folded"]), (1, {"discarded": 24}, 1))
        self.assertEqual(await self.get(server, "/v1/names"), ["good"])
        self.assertEqual((await self.job(server, "/v1/discard"))["message"], "1 dead letter given up")

    @asynchronous
    async def test_what_this_version_cannot_read_goes_too_and_leaves_no_count(self) -> None:
        server = await self.filled(1)
        buckets = [bucket for bucket in range(16) if await self.length(server, bucket)]
        strange = (b"LPUSH", keys.dead_letters(buckets[0]), b"strange")
        counted = (b"HINCRBY", keys.counts(buckets[0]), b"dead:old", b"5")
        await server.router.transact(buckets[0], [], lambda _: Writes([strange, counted]))
        self.assertEqual((await self.job(server, "/v1/discard"))["message"], "13 dead letters given up")
        status = await self.get(server, "/v1/status")
        self.assertEqual((status["dead_letters"], status["dropped_by_reason"]), (0, {"discarded": 13}))

    async def length(self, server: Server, bucket: int) -> int:
        [length] = await server.router.read(bucket, [(b"LLEN", keys.dead_letters(bucket))])
        return int(length)


class Newest(ServerCase):
    @asynchronous
    async def test_the_newest_of_all_buckets_come_first_and_no_more_than_were_asked_for(self) -> None:
        server = await self.start()
        for place in range(7):
            await self.post(server, [{**event, "value": place} for event in ODD])
        for lot in (1, 3, 50):
            self.patch(letters, "LOT_LETTERS", lot)
            for most in (1, 5, 8, 56, 100):
                found = await self.get(server, f"/v1/dead-letters?limit={most}")
                refused = [letter["refused"] for letter in found]
                self.assertEqual((len(found), refused), (min(most, 56), sorted(refused, reverse=True)), (lot, most))
                self.assertEqual({letter["value"] for letter in found[:8]}, {6})
        self.assertEqual(len((await self.ask(server, "/v1/dead-letters", headers={"Accept": ["text/plain"]})).text.splitlines()), 56)

    @asynchronous
    async def test_a_letter_of_many_events_is_cut_where_the_limit_is(self) -> None:
        server = await self.start()
        await self.post(server, [{"tab": "odd", "type": "NoSuchType", "value": n} for n in range(100)])
        self.assertEqual(len(await self.get(server, "/v1/dead-letters?limit=30")), 30)
