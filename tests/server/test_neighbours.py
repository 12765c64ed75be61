"""Who asks for little waits for little, whatever others ask for at the same time. Counted in pieces of work, each of which is a turn."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.task import deferLater

from taba import turns
from taba.places import ASKER, NOBODY
from taba.server.service import Server
from taba.tokens import READ, line_of, new_token

from .running import ServerCase, asynchronous, reactor

CLIENTS, TABS = 60, 12
ASKERS = 40
LARGE = ("/v1/projections", "/v1/aggregates", "/v1/overview?limit=1000")
SMALL = ("/v1/projections?name=t.1&client=web/1", "/v1/aggregates?name=t.1")
PIECES = 15  # of the others', which are small, for each of its own, while it waits in line; 40 where who came first goes first


class Neighbours(ServerCase):
    async def begin(self) -> Server:
        server = await self.start()
        events = [{"tab": f"t.{tab}", "type": "CounterGroup", "value": 1} for tab in range(TABS)]
        for client in range(CLIENTS):
            self.assertEqual((await self.post(server, events, client=f"web/{client}")).status, 200)
        await self.stop(server)
        self.many, self.other = (new_token(READ) for _ in range(2))
        path = Path(self.mktemp())
        path.touch(0o600)
        path.write_text("\n".join(map(line_of, (self.many, self.other))))
        self.patch(turns, "TURN_SECONDS", 0.0)  # so that every piece is a turn
        return await self.start(tokens=str(path))

    @asynchronous
    async def test_what_a_status_looks_for_is_had_for_all_who_ask_whoever_came_first(self) -> None:
        server = await self.start()
        look, asked = server.status._look_for_conflicts, list[str]()

        async def seen() -> None:
            asked.append(ASKER.get())
            await look()

        self.patch(server.status, "_look_for_conflicts", seen)
        self.assertEqual((await self.ask(server, "/v1/status")).status, 200)
        self.assertEqual(set(asked), {NOBODY})

    @asynchronous
    async def test_a_small_question_waits_for_few_pieces_of_anothers_however_many_that_one_asks(self) -> None:
        server = await self.begin()
        had, waiting, passed = Counter[str](), Counter[str](), Counter[str]()  # by asker: pieces, who waits for one, others' meanwhile
        breathe = turns.Turns.breathe

        async def counted(self: Any) -> None:
            asker = ASKER.get()
            waiting[asker] += 1
            await breathe(self)
            waiting[asker] -= 1
            had[asker] += 1
            passed.update(other for other, count in waiting.items() if count and other != asker)

        self.patch(turns.Turns, "breathe", counted)
        many, other = ({"Authorization": [f"Bearer {token}"]} for token in (self.many, self.other))
        await self.ask(server, SMALL[0], headers=other)
        [name] = [asker for asker in had if asker.startswith("token")]
        own = others = before = 0
        for large in LARGE:
            asking = [ensureDeferred(self.ask(server, large, headers=many)) for _ in range(ASKERS)]
            had.clear()
            while not any(asker.startswith("token") for asker in had):
                await deferLater(reactor, 0)
            for small in SMALL:
                had.clear()
                passed.clear()
                answered = await self.ask(server, small, headers=other)
                self.assertEqual((answered.status, list(answered.json)), (200, ["t.1"]))
                own += had[name]
                others += had.total() - had[name]
                before += passed[name]
            self.assertEqual({answered.status for answered in await gatherResults(asking)} - {200, 503}, set())
            had.clear()
        self.assertGreater(others, 0)
        self.assertLess(before, PIECES * own)
