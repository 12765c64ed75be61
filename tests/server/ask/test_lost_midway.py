"""A shard that is lost while an answer is being made of it: what was read stands, and the rest says why it does not."""

from __future__ import annotations

from typing import Any

from taba.errors import StoreUnavailable
from taba.names import canonical_name
from taba.server.ask import choosing, query, states
from taba.server.service import Server

from ..running import ServerCase, asynchronous

TABS = [canonical_name("t", {"n": f"{number:02}"}) for number in range(12)]
WHY = "its shard went away"


class LostMidway(ServerCase):
    async def filled(self) -> Server:
        server = await self.start()
        for client in ("web/1", "web/2"):
            await self.post(server, [{"tab": tab, "type": "TotalsCounter", "value": 1} for tab in TABS], client=client)
        for name in ("SLICE_STATES", "SLICE_SHOWN"):
            self.patch(query, name, 1)  # each Tab is read by itself
        self.patch(states, "SLICE_STATES", 1)
        self.patch(choosing, "SLICE_CLIENTS", 1)
        return server

    def lose_after(self, server: Server, most: int) -> list[int]:
        """Have the store answer so many reads of States, and no more."""
        original, seen = server.router.read_many, [0]

        async def read_many(reads: Any, away: Any = None) -> Any:
            seen[0] += any(command[1].endswith(b":states") for commands in reads.values() for command in commands)
            if seen[0] <= most:
                return await original(reads, away)
            if away is None:
                raise StoreUnavailable(WHY)
            away.update(dict.fromkeys(reads, WHY))
            return {}

        self.patch(server.router, "read_many", read_many)
        return seen

    @asynchronous
    async def test_of_a_partial_answer_each_tab_is_there_with_its_figures_or_the_reason(self) -> None:
        server = await self.filled()
        for what in ("aggregates", "projections"):
            for most in (0, 3, 6, 1000):
                seen = self.lose_after(server, most)
                found = await self.get(server, f"/v1/{what}?name=t&partial=1")
                self.assertEqual(list(found), TABS, (what, most))
                wrong = [tab for tab in TABS if WHY in str(found[tab].get("error"))]
                self.assertEqual(wrong, TABS[len(TABS) - len(wrong) :], (what, most))
                self.assertEqual((len(wrong) == len(TABS), not wrong), (most == 0, most == 1000), (what, most))
                self.assertTrue(all(len(found[tab]) >= 2 for tab in TABS if tab not in wrong), found)
                seen[0] = 0
                text = (await self.ask(server, f"/v1/{what}?name=t&partial=1", headers={"Accept": ["text/plain"]})).text
                self.assertEqual([line.partition(": ")[0] for line in text.splitlines()], TABS)
                server.router.__dict__.pop("read_many")

    @asynchronous
    async def test_of_a_tab_that_is_lost_between_two_slices_there_is_no_part(self) -> None:
        server = await self.filled()
        for most in range(5):
            self.lose_after(server, most)
            whole = TABS[: most // 2]  # each Tab is read in two slices
            found = await self.get(server, "/v1/aggregates?name=t&partial=1")
            self.assertEqual([tab for tab in TABS if "error" not in found[tab]], whole)
            self.assertEqual({found[tab]["count"] for tab in whole} - {2}, set())
            server.router.__dict__.pop("read_many")
            self.lose_after(server, most)
            rows = await self.get(server, "/v1/overview?name=t&sort=name&partial=1")
            self.assertEqual([(row["name"], row["clients"]) for row in rows], [(tab, 2) for tab in whole])
            server.router.__dict__.pop("read_many")
            # nobody is told afterwards what was known in part
            rows = await self.get(server, "/v1/overview?name=t&sort=name")
            self.assertEqual([(row["name"], row["clients"]) for row in rows], [(tab, 2) for tab in TABS])
            server.overview._kept.clear()

    @asynchronous
    async def test_an_answer_that_is_to_be_whole_is_none_at_all(self) -> None:
        server = await self.filled()
        self.lose_after(server, 5)
        answered = await self.ask(server, "/v1/aggregates?name=t")
        self.assertEqual((answered.status, answered.json["error"]), (503, "store_unavailable"))
        self.assertIn(WHY, answered.json["detail"])
