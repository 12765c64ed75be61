"""What a Tab means outlives its States, for when it comes back; but not without bound, and not where a person deletes it."""

from __future__ import annotations

from typing import Any

from taba.server import keys
from taba.server.keep import sweeping
from taba.server.service import Server
from taba.shard import Writes

from ..running import BUCKETS, asynchronous
from ..samples import tab_in
from .cases import KeepingCase

TABS = [tab_in(3, number, BUCKETS) for number in range(4)]


class Meanings(KeepingCase):
    async def filled(self) -> Server:
        server = await self.start()
        brief = {"value": 1, "seconds": 0.001}
        await self.post(server, [{"tab": tab, "type": "ExpiryGauge", "value": brief} for tab in TABS])
        said = [(field, b"x") for tab in TABS for field in keys.meaning_fields(tab.encode())]
        command = (b"HSET", keys.meanings(3), *(part for pair in said for part in pair))
        await server.router.transact(3, [], lambda _: Writes([command]))
        await self.age(server, 86_400.0, "web/1")
        return server

    async def meant(self, server: Server) -> list[str]:
        [fields] = await server.router.read(3, [(b"HKEYS", keys.meanings(3))])
        return sorted({field.partition(b"\0")[0].decode() for field in fields})

    async def types(self, server: Server) -> Any:
        return await self.get(server, "/v1/types?detail=1")

    @asynchronous
    async def test_a_tab_that_is_pruned_and_comes_back_means_what_it_did(self) -> None:
        server = await self.filled()
        await self.done(server, "/v1/prune")
        self.assertEqual((await self.types(server), await self.meant(server)), ({}, sorted(TABS)))
        await self.post(server, [{"tab": TABS[0], "type": "TotalsCounter", "value": 1}])
        self.assertEqual(await self.types(server), {TABS[0]: {"type": "TotalsCounter", "unit": "x", "description": "x"}})

    @asynchronous
    async def test_of_those_that_are_not_there_no_more_is_kept_than_the_bound(self) -> None:
        self.patch(sweeping, "MEANINGS_OF_ABSENT", 2)
        server = await self.filled()
        await self.done(server, "/v1/prune")
        self.assertEqual(await self.meant(server), sorted(TABS)[:2])

    @asynchronous
    async def test_what_a_person_deletes_is_forgotten(self) -> None:
        server = await self.filled()
        await self.ask(server, f"/v1/tabs?name={TABS[0]}", "DELETE")
        self.assertEqual(await self.meant(server), sorted(TABS[1:]))
        await self.ask(server, "/v1/clients?client=web/1", "DELETE")
        self.assertEqual(await self.meant(server), [])
