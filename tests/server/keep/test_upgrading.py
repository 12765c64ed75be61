"""States of older versions, brought to their Handlers' own."""

from __future__ import annotations

import struct

from taba.server import keys, service
from taba.shard import Writes

from ..running import asynchronous, encoded, together
from ..samples import Sum, Words, column, lookup_of
from .cases import A, B, KeepingCase


class Upgrading(KeepingCase):
    @asynchronous
    async def test_every_state_is_brought_to_its_handlers_version_while_events_flow(self) -> None:
        self.patch(service, "find_safely", lambda: lookup_of(Sum(), Words()))
        server = await self.start()
        fields = {keys.state_field(tab, f"web/{n}"): keys.frame(1, 7) + struct.pack("<q", n) for tab in (A, B) for n in range(150)}
        fields[keys.state_field(A, "web/x")] = keys.frame(3, 7) + b"newer"
        index: list[tuple[bytes, ...]] = [(b"HSET", keys.tabs(3), A.encode(), b"Sum", B.encode(), b"Sum")]
        for tab in (A, B):
            index.append((b"SADD", keys.clients_of(3, tab.encode()), *[b"web/%d" % n for n in range(150)]))
        index.append((b"SADD", keys.clients_of(3, A.encode()), b"web/x"))
        made = Writes([*index, (b"HSET", keys.states(3), *(item for pair in fields.items() for item in pair))])
        await server.router.transact(3, [(b"HLEN", keys.states(3))], lambda _: made)
        # a query upgrades on the fly
        self.assertEqual((await self.get(server, f"/v1/projections?name={A}"))[A]["web/7"], {"count": 7, "total": 0})
        number = 0

        async def send() -> None:
            nonlocal number
            for number in range(1, 40):
                await self.send(server, encoded(1, 3, number, [column(A, "Sum", [1.0], client=f"web/{n}") for n in range(10)]))

        record, _ = await together([self.done(server, "/v1/upgrade"), send()])
        self.assertIn("1 of Type Sum left as they are: version 3 is newer", record["message"])
        [[content]] = (await server.router.read_many({3: [(b"HGETALL", keys.states(3))]})).values()
        versions = {field: content[0] for field, content in zip(content[::2], content[1::2], strict=True)}
        self.assertEqual(versions.pop(keys.state_field(A, "web/x")), 3)
        self.assertEqual(set(versions.values()), {2})
        projections = (await self.get(server, f"/v1/projections?name={A}"))[A]
        applied = (await self.get(server, "/v1/status"))["folded"] // 10
        self.assertEqual([projections[f"web/{n}"]["count"] for n in (0, 9, 10, 149)], [applied, 9 + applied, 10, 149])
        self.assertIn("version 3", str(projections["web/x"]))
        self.assertIn("0 States upgraded", (await self.done(server, "/v1/upgrade"))["message"])
