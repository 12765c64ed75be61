"""Names, Types and counts in a store that are none: whoever put them there, or which disk, all else is answered and folded as before."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from taba import web
from taba.names import bucket_of
from taba.server import keys

from .running import BUCKETS, ServerCase, asynchronous

TAB = "good"
JUNK = [b"", b"\xff\xfe", b"a\0b", b'{"a":1}', b"-1", b"9" * 400, bytes(range(128, 160))]


class Garbage(ServerCase):
    @pytest.mark.real  # two Servers, and all that they are asked and do
    @asynchronous
    async def test_names_types_and_counts_that_are_none_take_no_answer_from_anybody(self) -> None:
        self.patch(web, "MAX_LISTEN_SECONDS", 0.02)
        server = await self.start()
        event = {"tab": TAB, "type": "TotalsCounter", "value": 1}
        await self.post(server, [event])
        for bucket in range(BUCKETS):
            for junk in JUNK:
                self.valkey.call("HSET", f"taba:{{{bucket}}}:tabs", junk, junk)
                self.valkey.call("HSET", f"taba:{{{bucket}}}:counts", junk, junk)
                self.valkey.call("SADD", f"taba:{{{bucket}}}:clients", junk)
            self.valkey.call("HSET", f"taba:{{{bucket}}}:counts", "dead:x", "x")
            self.valkey.call("HINCRBY", f"taba:{{{bucket}}}:counts", keys.TAB_CHANGES, 1)
        for junk in JUNK:
            self.valkey.call("SADD", f"taba:{{{bucket_of(TAB, BUCKETS)}}}:of:{TAB}", junk)
        again = await self.start()  # one that has read nothing before
        for one in (server, again):
            for route in cast(Any, one.site.resource).table.routes:
                if route.method != "GET" or route.path_names:
                    continue
                needed = [f"{parameter.name}=1" for parameter in route.parameters if parameter.is_required]
                ways = ["", "match=.*"] if any(parameter.name == "match" for parameter in route.parameters) else [""]
                for way in ways:
                    answered = await self.ask(one, f"{route.path}?{'&'.join([*needed, way] if way else needed)}")
                    self.assertIn(answered.status, (200, 400), (route.path, way, answered.body))
            self.assertIn(TAB, await self.get(one, "/v1/names"))
            self.assertEqual((await self.post(one, [event])).status, 200)
        self.assertEqual((await self.get(again, f"/v1/aggregates?name={TAB}"))[TAB]["count"], 3)
        for kind in ("prune", "upgrade", "check", "retry"):
            started = json.loads((await self.ask(again, f"/v1/{kind}", "POST")).body)
            await self.until_done(again, started["id"])

    async def until_done(self, server: Any, id: str) -> None:
        while True:
            [job] = await self.get(server, f"/v1/jobs?id={id}")
            if job["state"] not in ("waiting", "running"):
                self.assertEqual(job["state"], "done", job)
                return
