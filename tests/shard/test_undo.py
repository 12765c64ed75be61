"""Undoing a move, step by step, beside the mover that sleeps before it opens its target; and a server that is another one meanwhile."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taba.shard.buckets import Owner, decode_owner, encode_owner, owner_key
from taba.shard.moving.move import undo
from taba.shard.moving.mover import Mover
from taba.shard.moving.steps import Changed, Done, Look, Publish, Scan, Seen, Step

BUCKET, TOKEN = 3, "s2.mover-1"
SEALED, ARRIVING, OPENED = Owner("sealed", 4, TOKEN), Owner("arriving", 5, TOKEN), Owner("open", 5, "s2")


class Shards:
    """The owner keys of one bucket on two shards."""

    def __init__(self) -> None:
        self.says: dict[str, bytes | None] = {"s1": encode_owner(SEALED), "s2": encode_owner(ARRIVING)}

    def do(self, request: Any) -> Any:
        if isinstance(request, Look):
            return Seen(self.says[request.shard])
        if isinstance(request, Scan):
            return {shard: [] for shard in request.shards}
        if isinstance(request, Publish):
            return None
        assert isinstance(request, Step), request
        if self.says[request.shard] != request.expects:
            return Done(None)
        for command in request.commands:
            if command[1] == owner_key(BUCKET):
                self.says[request.shard] = command[2] if command[0] == b"SET" else None
        return Done([])

    @property
    def open_at(self) -> list[str]:
        return [shard for shard, content in self.says.items() if content is not None and decode_owner(content).state == "open"]


class Undoing(SynchronousTestCase):
    def undo(self, wakes_after: int) -> tuple[list[str], int]:
        """Where the bucket is open in the end, where its mover wakes after so many requests of the undo; and how many there were."""
        shards, moving = Shards(), undo(BUCKET, "s1")
        count, answer = 0, None
        while True:
            try:
                request = moving.send(answer)
            except StopIteration:
                return shards.open_at, count
            answer, count = shards.do(request), count + 1
            if count == wakes_after:
                shards.do(Step("open", "s2", encode_owner(ARRIVING), [(b"SET", owner_key(BUCKET), encode_owner(OPENED))]))
            self.assertLess(len(shards.open_at), 2, f"it is open on both, where its mover wakes after {wakes_after} requests")

    def test_whenever_its_mover_wakes_the_bucket_is_open_once(self) -> None:
        open_at, requests = self.undo(0)
        self.assertEqual(open_at, ["s1"])
        self.assertGreater(requests, 4)
        for wakes_after in range(3, requests + 1):  # before, the target is found open: then the move is finished
            self.assertEqual(self.undo(wakes_after)[0], ["s1"])


class AnotherServer(SynchronousTestCase):
    def test_a_move_begins_anew_where_a_shard_is_another_server_than_it_met_first(self) -> None:
        pool: Any = SimpleNamespace(address=SimpleNamespace(text="redis://s1"))
        mover = Mover({"s1": pool}, Clock())
        who = [("first", "history")]

        async def checked(pool: Any, commands: Any, seconds: float = 0.0) -> list[Any]:
            run, stream = who[-1]
            return [None, f"run_id:{run}".encode(), f"role:master\r\nmaster_replid:{stream}".encode()]

        self.patch(mover, "_checked", checked)
        look = mover._look(BUCKET, Look("s1"))
        self.assertEqual(self.successResultOf(look), Seen(None))
        for another in (("second", "history"), ("first", "another")):
            who.append(another)
            self.failureResultOf(mover._look(BUCKET, Look("s1")), Changed)
        mover.forget_servers(BUCKET)
        self.assertEqual(self.successResultOf(mover._look(BUCKET, Look("s1"))), Seen(None))
