"""Events that are posted to an Agent, where something changes while they are read."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Generator
from typing import Any, cast
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from taba.agent.http import Routes
from taba.agent.keys import Keys
from taba.agent.spool import SpoolFull
from taba.tokens import EVERYTHING
from taba.web import Answer, HTTPError

from .moments import at
from .test_keeper import BUCKETS, World

BODY = json.dumps({"client": "web/1", "events": [{"tab": "bids_won", "type": "CounterGroup", "value": 1.0}]}).encode()


class Asking:
    """A request with BODY, in which `meanwhile` happens while it is read."""

    grant = EVERYTHING

    def __init__(self, meanwhile: Any = lambda: None):
        self._meanwhile = meanwhile

    def header(self, name: str) -> None:
        return None

    async def body(self) -> bytes:
        return BODY

    async def in_turns(self, steps: Generator[int, None, Any]) -> Any:
        while True:
            try:
                next(steps)
            except StopIteration as end:
                self._meanwhile()
                return end.value


class Posting(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.mkdtemp(dir="/dev/shm")
        self.addCleanup(shutil.rmtree, directory)
        world = self.world = World(directory)
        self.addCleanup(lambda: [producer.die() for producer in world.producers] and None)
        self.addCleanup(world.die)
        keys = Keys(os.path.join(directory, "keys"))
        self.addCleanup(keys.close)
        self.routes = Routes(world.pump, keys, dict, lambda: (world.now, at(world.now)), lambda: 1.0, lambda: None)

    def post(self, meanwhile: Any = lambda: None) -> Answer:
        asking = self.routes.events(cast(Any, Asking(meanwhile)))
        try:
            asking.send(None)
        except StopIteration as end:
            return cast(Answer, end.value)
        raise AssertionError("it waits")

    def refused(self, meanwhile: Any = lambda: None) -> tuple[int, str]:
        error = self.assertRaises(HTTPError, self.post, meanwhile)
        return error.status, error.error

    def test_where_the_store_has_another_number_of_buckets_by_then_nothing_is_kept_and_the_next_try_is(self) -> None:
        world = self.world
        said = self.refused(lambda: world.pump.set_buckets(BUCKETS * 2, at(world.now)))
        self.assertEqual((said, world.keeper.unacknowledged, world.keeper.recorded), ((503, "not_ready"), 0, 0))
        self.post()
        self.assertEqual((world.keeper.unacknowledged, world.keeper.recorded), (1, 1))

    def test_where_the_disk_is_full_before_the_spools_bound_is_reached_it_is_to_be_tried_later(self) -> None:
        with mock.patch.object(self.world.keeper, "publish", side_effect=SpoolFull("the disk is full", True)):
            self.assertEqual(self.refused(), (503, "spool_full"))
