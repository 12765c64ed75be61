"""Notes: kept for a day of the store's age, bounded, the same at every Server."""

from __future__ import annotations

import json
from typing import Any

from taba.bounds import MAX_NOTE
from taba.server import keys, notes

from .running import ServerCase, asynchronous


class Noting(ServerCase):
    async def note(self, server: Any, content: Any) -> Any:
        return await self.ask(server, "/v1/notes", "POST", json.dumps(content).encode())

    @asynchronous
    async def test_what_is_noted_at_one_server_is_there_at_all_the_latest_first(self) -> None:
        server, other = await self.start(), await self.start()
        self.assertEqual(await self.get(server, "/v1/notes"), [])
        answered = await self.note(server, {"text": "deploy 1.4"})
        self.assertEqual((answered.status, answered.json["text"]), (200, "deploy 1.4"))
        now = answered.json["time"]
        await self.note(other, {"text": "two\nlines ü", "time": now - 10})
        await self.note(other, {"text": "later", "time": now + 10})
        self.assertEqual([note["text"] for note in await self.get(other, "/v1/notes")], ["later", "deploy 1.4", "two\nlines ü"])
        text = (await self.ask(server, "/v1/notes", headers={"Accept": ["text/plain"]})).text
        self.assertEqual([line.partition(" ")[2] for line in text.splitlines()], ['"later"', '"deploy 1.4"', '"two\\nlines ü"'])

    @asynchronous
    async def test_what_is_no_note_is_refused(self) -> None:
        server = await self.start()
        longest = "x" * MAX_NOTE
        self.assertEqual((await self.note(server, {"text": longest})).status, 200)
        refused: tuple[Any, ...] = (
            {"text": longest + "x"},
            {"text": ""},
            {"text": " "},
            {"text": 1},
            {"text": "\ud800"},
            {"text": "a\0"},
            {},
            [],
            "a",
            {"text": "a", "x": 1},
            {"text": "a", "time": -1},
            {"text": "a", "time": True},
            {"text": "a", "time": "now"},
            {"text": "a", "time": 1e300},
        )
        for bad in refused:
            self.assertEqual((await self.note(server, bad)).status, 400, bad)
        self.assertEqual(len(await self.get(server, "/v1/notes")), 1)

    @asynchronous
    async def test_a_day_of_the_stores_age_later_it_is_gone_and_no_clock_matters(self) -> None:
        server = await self.start()
        age = server.age()
        assert age is not None
        await self.note(server, {"text": "old", "time": 1.0})
        self.patch(server.notes, "_age", lambda: age + notes.KEEP_MINUTES - 1)
        self.assertEqual(len(await self.get(server, "/v1/notes")), 1)
        self.patch(server.notes, "_age", lambda: age + notes.KEEP_MINUTES)
        self.assertEqual(await self.get(server, "/v1/notes"), [])
        await self.note(server, {"text": "new"})  # what is over goes then
        [[kept]] = (await server.router.read_many({0: [(b"LRANGE", keys.notes(0), b"0", b"-1")]})).values()
        self.assertEqual(len(kept), 1)
        self.patch(server.notes, "_age", lambda: None)
        self.assertEqual((await self.note(server, {"text": "a"})).status, 503)

    @asynchronous
    async def test_as_many_as_the_bound_and_one_past_it(self) -> None:
        self.patch(notes, "MAX_NOTES", 3)
        server = await self.start()
        for number in range(4):
            await self.note(server, {"text": f"n{number}", "time": 100 - number})
        self.assertEqual([note["text"] for note in await self.get(server, "/v1/notes")], ["n1", "n2", "n3"])
