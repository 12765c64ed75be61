"""`POST /v1/drain`: what was recorded before the request is published before the answer."""

from __future__ import annotations

from typing import Any, cast
from unittest import mock

from taba.agent import http
from taba.agent.spool import SpoolFull
from taba.calls import HTTPError

from .moments import at
from .test_posting import Hosted


class Asks:
    """A request that lets others have turns."""

    def __init__(self) -> None:
        self.turns = 0

    async def breathe(self) -> None:
        self.turns += 1


class Draining(Hosted):
    def drain(self, asks: Asks | None = None) -> Any:
        asking = self.routes.drain(cast(Any, asks or Asks()))
        try:
            asking.send(None)
        except StopIteration as end:
            return end.value.content
        raise AssertionError("it waits")

    def test_what_was_recorded_is_published_before_the_answer(self) -> None:
        self.world.record(5)
        self.assertEqual(self.drain()["recorded"], 5)
        self.assertEqual(self.world.keeper.unacknowledged, self.drain()["batches"])
        self.world.record(2)
        self.assertEqual(self.drain()["recorded"], 7)

    def test_with_nothing_to_drain_it_says_what_there_was(self) -> None:
        self.assertEqual(self.drain(), {"recorded": 0, "batches": 0, "age": 0.0})

    def test_how_old_the_oldest_is_that_no_server_has_is_told(self) -> None:
        self.world.record(5)
        self.assertEqual(self.drain()["age"], 0.0)
        self.world.now += 7.0
        self.world.record(2)
        self.assertEqual(self.drain()["age"], 7.0)

    def test_what_waits_on_disk_is_not_forgotten(self) -> None:
        self.world.record(5)
        waiting = self.drain()["batches"]
        self.world.keeper.spool_all(self.world.now, at(self.world.now))
        self.world.now += 7.0
        answer = self.drain()
        self.assertEqual(answer, {"recorded": 5, "batches": waiting, "age": None})

    def test_a_disk_that_is_full_is_said_and_nothing_else_fails(self) -> None:
        self.world.record(5)
        with mock.patch.object(self.world.pump, "drain", side_effect=SpoolFull("the disk is full", True)):
            error = self.assertRaises(HTTPError, self.drain)
        self.assertEqual((error.status, error.error), (503, "not_drained"))
        self.assertEqual(self.drain()["recorded"], 5)

    def test_it_ends_however_fast_others_record(self) -> None:
        asks = Asks()
        with mock.patch.object(self.world.pump, "drain", return_value=True):
            self.drain(asks)
        self.assertEqual(asks.turns, http.MAX_DRAINS)
