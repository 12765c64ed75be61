"""Deleting Tabs and Clients: what is deleted is gone, and nothing else is."""

from __future__ import annotations

import time

from taba.server import keys, service
from taba.server.keep import deleting

from ..running import BUCKETS, asynchronous, encoded
from ..samples import Spilling, Sum, column, lookup_of, tab_in
from ..test_http import total
from .cases import OTHER, A, B, KeepingCase


class Deleting(KeepingCase):
    @asynchronous
    async def test_a_tab_goes_with_all_parts_and_index_entries(self) -> None:
        server = await self.start()
        values = [float(n) for n in range(50)]
        times = [time.time() - 60 * n for n in range(50)]
        counters = [column(A, "CounterGroup", values, client=f"web/{n}", times=times) for n in range(5)]
        await self.send(server, encoded(1, 3, 1, [*counters, total(B, [1.0], client="web/1"), total(B, [1.0], client="web/9")]))
        await self.send(server, encoded(1, 5, 1, [total(OTHER, [1.0])]))
        answered = await self.ask(server, f"/v1/tabs?name={A}&name=nothing&name={OTHER}", "DELETE")
        self.assertEqual((answered.status, answered.json), (200, {"tabs": 2, "states": 6}))
        left = await self.keys_left(server)
        self.assertEqual(left[b"states"], [keys.state_field(B, "web/1"), keys.state_field(B, "web/9")])
        self.assertEqual((left[b"tabs"], left[b"clients"]), ([B.encode()], [b"web/1", b"web/9"]))
        self.assertEqual(await self.get(server, "/v1/names"), [B])
        await self.send(server, encoded(1, 3, 2, [column(A, "Gauge", [1.0], times=[1.0])]))
        self.assertEqual((await self.get(server, "/v1/types"))[A], "Gauge")  # the first Type stands no more

    @asynchronous
    async def test_a_client_goes_from_every_tab(self) -> None:
        server = await self.start()
        for bucket in (3, 5):
            tabs = [tab_in(bucket, number, BUCKETS) for number in range(3)]
            columns = [total(tab, [1.0], client=client) for tab in tabs for client in ("web/1", "web/2", "web/3")]
            await self.send(server, encoded(1, bucket, 1, [*columns, total(tab_in(bucket, 3, BUCKETS), [1.0], client="web/2")]))
        self.patch(deleting, "CHUNK_STATES", 4)
        answered = await self.ask(server, "/v1/clients?client=web/2&client=web/3&client=nobody", "DELETE")
        self.assertEqual(answered.json, {"clients": 2, "states": 14})
        self.assertEqual(await self.get(server, "/v1/clients"), ["web/1"])
        self.assertEqual(len(await self.get(server, "/v1/names")), 6)  # those with no other Client are gone
        self.assertEqual(len((await self.keys_left(server))[b"states"]), 6)

    @asynchronous
    async def test_chunks_at_their_bound_and_one_past_it(self) -> None:
        server = await self.start()
        for number, (clients, chunk) in enumerate(((4, 4), (5, 4), (9, 4)), start=1):
            self.patch(deleting, "CHUNK_STATES", chunk)
            await self.send(server, encoded(1, 3, number, [total(A, [1.0], client=f"web/{n}") for n in range(clients)]))
            answered = await self.ask(server, f"/v1/tabs?name={A}", "DELETE")
            self.assertEqual(answered.json, {"tabs": 1, "states": clients})
            self.assertEqual(set(map(len, (await self.keys_left(server)).values())), {0})

    @asynchronous
    async def test_a_tab_whose_type_has_no_handler_goes_too(self) -> None:
        self.patch(service, "find_safely", lambda: lookup_of(Spilling()))
        before = await self.start()
        for number in range(1, 8):
            columns = [column(tab, "Spilling", [float(number)], client=client) for tab in (A, B) for client in ("web/1", "web/2")]
            await self.send(before, encoded(1, 3, number, columns))
        self.patch(service, "find_safely", lambda: lookup_of(Sum()))
        after = await self.start()
        self.assertEqual(len((await self.keys_left(after))[b"states"]), 12)
        self.assertEqual((await self.ask(after, "/v1/clients?client=web/1", "DELETE")).json, {"clients": 1, "states": 2})
        self.assertEqual((await self.ask(after, f"/v1/tabs?name={A}", "DELETE")).json, {"tabs": 1, "states": 1})
        self.assertEqual({field.split(b"\0")[0] for field in (await self.keys_left(after))[b"states"]}, {B.encode()})
        self.assertEqual(len((await self.keys_left(after))[b"states"]), 3)

    @asynchronous
    async def test_nothing_never_means_everything_and_nothing_changes_by_get(self) -> None:
        server = await self.start()
        await self.send(server, encoded(1, 3, 1, [total(A, [1.0])]))
        for path in ("/v1/tabs", "/v1/clients", "/v1/tabs?match=.*", f"/v1/tabs?name={A}&label=a:b", f"/v1/clients?name={A}"):
            self.assertEqual((await self.ask(server, path, "DELETE")).status, 400, path)
        for path in ("/v1/tabs", "/v1/prune", "/v1/upgrade", "/v1/retry"):
            self.assertEqual((await self.ask(server, path)).status, 405, path)
        self.assertEqual((await self.ask(server, "/v1/prune?dry_run=yes", "POST")).status, 400)
        self.assertEqual((await self.ask(server, "/v1/upgrade?dry_run=1", "POST")).status, 400)
        self.assertEqual(await self.get(server, "/v1/names"), [A])
