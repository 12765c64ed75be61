"""A Server with States to keep, and what it takes to make them old."""

from __future__ import annotations

import struct
import time
from typing import Any

from twisted.internet.task import deferLater

from taba.bounds import DAY
from taba.server import keys
from taba.server.keep.pruning import RETIRED_TIMES
from taba.server.service import Server
from taba.shard import Writes

from ..running import BUCKETS, ServerCase, reactor
from ..samples import Words, tab_in

FORGET_SECONDS = 30 * DAY  # of `--forget`, where nobody says otherwise
A, B, C = (tab_in(3, number, BUCKETS) for number in range(3))
OTHER = tab_in(5, 0, BUCKETS)


class Worn(Words):
    """Words that are prunable once "done" is among them, and of which several States are one."""

    type = "Worn"

    def prunable(self, state: Any, now: float) -> bool:
        return "done" in state

    def merge(self, states: Any) -> Any:
        if any("unmergeable" in state for state in states):
            raise ValueError("unmergeable")
        return sorted(word for state in states for word in state)


OLD_MINUTES = 2 * RETIRED_TIMES * int(FORGET_SECONDS / 60)  # so old the store is


class KeepingCase(ServerCase):
    async def job(self, server: Server, path: str) -> Any:
        """Start a job, and wait for its end: its record."""
        answered = await self.ask(server, path, "POST")
        self.assertEqual(answered.status, 202, answered.body)
        while True:
            [record] = await self.get(server, f"/v1/jobs?id={answered.json['id']}")
            if record["state"] != "running":
                return record
            await deferLater(reactor, 0.01)

    async def done(self, server: Server, path: str) -> Any:
        record = await self.job(server, path)
        self.assertEqual((record["state"], record["done"], record["total"]), ("done", BUCKETS, BUCKETS), record)
        return record

    async def keys_left(self, server: Server) -> dict[bytes, Any]:
        """What is left of States and index in all buckets."""
        reads = {b: [(b"HKEYS", keys.states(b)), (b"HKEYS", keys.tabs(b)), (b"SMEMBERS", keys.clients(b))] for b in range(BUCKETS)}
        replies = await server.router.read_many(reads)
        return {
            name: sorted(one for of in replies.values() for one in of[place]) for place, name in enumerate((b"states", b"tabs", b"clients"))
        }

    async def start(self, url: str | None = None, **texts: str) -> Server:
        """A Server whose store is old enough to have forgotten much."""
        # before it looks: a job that it begins by itself is as old as the others, else it is forgotten as the store ages
        self.valkey.call("SET", "taba:{0}:age", f"{OLD_MINUTES} {time.time():.3f} 0")
        return await super().start(url, **texts)

    async def age(self, server: Server, seconds: float, *clients: str, bucket: int = 3) -> None:
        """Have the States of these Clients in a bucket be touched so long ago."""

        def update(replies: Any) -> Writes:
            pairs = dict(zip(replies[0][::2], replies[0][1::2], strict=True))
            old = {
                field: keys.frame(struct.unpack_from("<H", content)[0], OLD_MINUTES - int(seconds / 60)) + content[keys.FRAME_BYTES :]
                for field, content in pairs.items()
                if field.split(b"\0")[1].decode() in clients
            }
            return Writes([(b"HSET", keys.states(bucket), *(item for pair in old.items() for item in pair))] if old else [])

        await server.router.transact(bucket, [(b"HGETALL", keys.states(bucket))], update)
