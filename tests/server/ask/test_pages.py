"""Large answers: page by page, or in one piece, slice by slice, of which a peer that does not read has us hold little."""

from __future__ import annotations

import gc
import gzip
import json
import socket
import time
import tracemalloc
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from taba import web
from taba.names import canonical_name
from taba.server import keys
from tests.patience import PATIENCE_SECONDS
from tests.shard.pieces import always

from ..running import BUCKETS, ServerCase, asynchronous, encoded, reactor
from ..samples import column, tab_in

TABS = [canonical_name("t", {"n": f"{number:02}ü"}) for number in range(10)]
PEERS = 16
MOST_HELD = 5 * 1024 * 1024  # for all of them


class Pages(ServerCase):
    async def filled(self) -> Any:
        server = await self.start()
        events = [{"tab": tab, "type": "TotalsCounter", "value": 1} for tab in TABS]
        for client in ("web/1", "web/2", "web/3"):
            await self.post(server, events, client=client)
        return server

    @asynchronous
    async def test_all_pages_together_are_the_whole(self) -> None:
        server = await self.filled()
        for route, more in (
            ("names", ""),
            ("types", ""),
            ("aggregates", ""),
            ("aggregates", "by=n"),
            ("projections", ""),
            ("clients", ""),
            ("slots", ""),
        ):
            whole = await self.get(server, f"/v1/{route}?{more}" if more else f"/v1/{route}")
            for limit in (1, 3, 9, 10, 11):
                found: list[str] = []
                cursor: str | None = None
                while True:
                    asked = [("limit", str(limit))] + ([] if cursor is None else [("cursor", cursor)])
                    answered = await self.ask(server, f"/v1/{route}?{urlencode(asked)}&{more}".rstrip("&"))
                    self.assertEqual(answered.status, 200, answered.body)
                    self.assertLessEqual(len(answered.json), limit)
                    found += answered.json
                    header = answered.headers.getRawHeaders("taba-next")
                    if header is None:
                        break
                    self.assertEqual(header, [quote(found[-1], safe="")])
                    cursor = found[-1]
                self.assertEqual(found, list(whole), (route, limit))

    @asynchronous
    async def test_a_page_takes_one_name_at_least_and_a_cursor_that_is_no_name_is_a_place_in_the_order(self) -> None:
        server = await self.filled()
        for limit in ("0", "-1", "x", "1000001"):
            self.assertEqual((await self.ask(server, f"/v1/names?limit={limit}")).status, 400, limit)
        self.assertEqual(await self.get(server, "/v1/names?cursor=zzz"), [])
        self.assertEqual(await self.get(server, "/v1/names?cursor=a&limit=1"), TABS[:1])

    @asynchronous
    async def test_what_is_known_already_is_not_sent_again(self) -> None:
        server = await self.filled()
        first = await self.ask(server, "/v1/names")
        [etag] = first.headers.getRawHeaders("etag")
        again = await self.ask(server, "/v1/names", headers={"If-None-Match": [f'"x", {etag}']})
        self.assertEqual((again.status, again.body), (304, b""))
        await self.post(server, [{"tab": "new", "type": "TotalsCounter", "value": 1}])
        self.assertEqual((await self.ask(server, "/v1/names", headers={"If-None-Match": [etag]})).status, 200)

    @asynchronous
    async def test_compressed_where_the_peer_takes_it_whether_whole_or_in_slices(self) -> None:
        server = await self.filled()
        plain = (await self.ask(server, "/v1/projections", headers={"Accept-Encoding": ["identity"]})).body
        self.assertGreater(len(plain), web.LEAST_GZIP_BYTES)
        for slice_bytes in (web.SLICE_BYTES, 100):
            self.patch(web, "SLICE_BYTES", slice_bytes)
            body = await deferToThread(fetch, server.presence.url, "/v1/projections", "gzip")
            self.assertLess(len(body), len(plain))
            self.assertEqual(json.loads(gzip.decompress(body)), json.loads(plain))
            self.assertEqual(await deferToThread(fetch, server.presence.url, "/v1/projections", "gzip;q=0"), plain)


def fetch(url: str, path: str, encoding: str) -> bytes:
    """The body as it travels."""
    import urllib.request

    with urllib.request.urlopen(
        urllib.request.Request(url + path, headers={"Accept-Encoding": encoding}), timeout=PATIENCE_SECONDS
    ) as answer:
        body: bytes = answer.read()
        return body


LOOKS = 8  # in which nothing changes: a busy machine may stand still for some


@pytest.mark.real
class Slow(ServerCase):
    """Peers that ask for everything and do not read it."""

    timeout = 400
    clients, tabs = 300, 60

    async def filled(self) -> Any:
        server = await self.start()
        first = tab_in(3, 0, BUCKETS)
        await self.send(server, encoded(1, 3, 1, [column(first, "CounterGroup", [1.0, 2.0], times=[time.time()] * 2)]))
        [[frame]] = (await server.router.read_many({3: [(b"HMGET", keys.states(3), keys.state_field(first, "web/1"))]}))[3]
        tabs = [tab_in(3, number, BUCKETS) for number in range(self.tabs)]
        clients = [f"web/{number}" for number in range(self.clients)]

        def all_of(tab: str) -> Any:
            fields = [part for client in clients for part in (keys.state_field(tab, client), frame)]
            commands = [(b"HSET", keys.states(3), *fields), (b"HSET", keys.tabs(3), tab.encode(), b"CounterGroup")]
            return [*commands, (b"SADD", keys.clients_of(3, tab.encode()), *map(str.encode, clients)), keys.count_tab_changes(3)]

        for tab in tabs:
            await server.router.transact(3, [], always(*all_of(tab)))
        return server

    @asynchronous
    async def test_twenty_of_them_cost_little_and_others_are_answered(self) -> None:
        server = await self.filled()
        whole = await self.ask(server, "/v1/projections")
        self.assertGreater(len(whole.body), MOST_HELD)
        self.assertEqual({len(of) for of in whole.json.values()}, {self.clients})
        del whole
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        port = int(server.presence.url.rpartition(":")[2])
        sockets: list[socket.socket] = []

        def begin() -> None:
            one = socket.socket()
            self.addCleanup(one.close)
            sockets.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect(("127.0.0.1", port))
            one.sendall(b"GET /v1/projections HTTP/1.1\r\nHost: localhost\r\n\r\n")

        held, looks, waited = -1, 0, 0
        while server.site.resource.streams.held < PEERS or looks < LOOKS:  # until all of them have come as far as they come
            if waited % 120 == 0:  # on a busy machine the store is late for some, whose answers then end
                for _ in range(PEERS - server.site.resource.streams.held):
                    begin()
            await deferLater(reactor, 0.5)
            waited += 1
            gc.collect()  # what nobody holds is not what they cost
            now = tracemalloc.get_traced_memory()[0] // 65536
            held, looks = now, looks + 1 if now == held else 0
        print(f"{PEERS} peers that do not read: {(tracemalloc.get_traced_memory()[0] - before) / 1024:.0f} KiB")
        self.assertLess(tracemalloc.get_traced_memory()[0] - before, MOST_HELD)
        tracemalloc.stop()
        self.assertEqual(len(await self.get(server, "/v1/names")), self.tabs)
        for one in sockets:
            one.close()
        while server.site.resource.streams.held:
            await deferLater(reactor, 0.05)
