"""Boards: the same at every Server, bounded, and nothing but names of Tabs."""

from __future__ import annotations

import json
from typing import Any

from taba.server import keys
from taba.server.page import boards
from taba.shard import Writes
from tests.server.running import ServerCase, asynchronous


class Keeping(ServerCase):
    async def put(self, server: Any, name: str, content: Any) -> Any:
        return await self.ask(server, f"/v1/boards/{name}", "PUT", json.dumps(content).encode())

    @asynchronous
    async def test_what_is_kept_at_one_server_is_there_at_all_until_it_is_deleted(self) -> None:
        server, other = await self.start(), await self.start()
        board = {"title": "the shop ü", "tabs": ["hits", 'hits{page="a"}']}
        self.assertEqual((await self.put(server, "shop", board)).json, board)
        self.assertEqual(await self.get(other, "/v1/boards/shop"), board)
        self.assertEqual((await self.put(other, "shop", {"tabs": ["hits"]})).json, {"title": "", "tabs": ["hits"]})
        await self.put(other, "a", {"tabs": []})
        self.assertEqual(list(await self.get(server, "/v1/boards")), ["a", "shop"])
        self.assertEqual((await self.ask(server, "/v1/boards/shop", "DELETE")).json, {"boards": 1})
        self.assertEqual((await self.ask(server, "/v1/boards/shop", "DELETE")).json, {"boards": 0})
        self.assertEqual((await self.ask(other, "/v1/boards/shop")).status, 404)

    @asynchronous
    async def test_what_is_no_board_is_refused_and_said(self) -> None:
        server = await self.start()
        most = [f"t{number}" for number in range(boards.MAX_PINNED)]
        self.assertEqual((await self.put(server, "most", {"tabs": most, "title": "x" * boards.MAX_TITLE})).status, 200)
        for name in ("x" * 64, "..."):
            self.assertEqual((await self.put(server, name, {"tabs": []})).status, 200)
        bads: list[Any] = [
            {"tabs": [*most, "one"]},
            {"tabs": most, "title": "x" * (boards.MAX_TITLE + 1)},
            {"tabs": ["a", "a"]},
            {"tabs": ["a b"]},
            {"tabs": ['a{z="1",b="2"}']},
            {"tabs": [1]},
            {"tabs": ["\ud800"]},
            {"tabs": "a"},
            {"tabs": [], "title": "\0"},
            {"tabs": [], "more": 1},
            {},
            [],
            None,
        ]
        for bad in bads:
            answered = await self.put(server, "bad", bad)
            self.assertEqual(answered.status, 400, bad)
        for name in ("x" * 65, "a%20b", "a%2fb", "%00", "%C3%BC", ".", "..", "%2e%2E"):
            self.assertEqual((await self.put(server, name, {"tabs": []})).status, 400, name)
            self.assertEqual((await self.ask(server, f"/v1/boards/{name}")).status, 400, name)
        self.assertEqual(len(await self.get(server, "/v1/boards")), 3)

    @asynchronous
    async def test_as_many_as_the_bound_and_one_past_it(self) -> None:
        self.patch(boards, "MAX_BOARDS", 2)
        server = await self.start()
        self.assertEqual([(await self.put(server, name, {"tabs": []})).status for name in "abc"], [200, 200, 409])
        self.assertEqual((await self.put(server, "b", {"tabs": ["hits"]})).status, 200)  # one that is there may be kept anew
        self.assertEqual(list(await self.get(server, "/v1/boards")), ["a", "b"])

    @asynchronous
    async def test_what_lies_in_the_store_and_is_none_harms_no_other(self) -> None:
        server = await self.start()
        await self.put(server, "good", {"tabs": ["hits"]})
        key = keys.boards(boards.BUCKET)
        for content in (b"\xff", b"[]", b'{"tabs": 1}'):
            writes = Writes([(b"HSET", key, b"bad", content)], None)
            await server.router.transact(0, [], lambda _, writes=writes: writes)  # type: ignore[misc]
            self.assertEqual(list(await self.get(server, "/v1/boards")), ["good"])
            self.assertEqual((await self.ask(server, "/v1/boards/bad")).status, 404)
