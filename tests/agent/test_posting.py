"""Events that are posted to an Agent, where something changes while they are read."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Generator
from typing import Any, cast
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from taba.agent import admission, backlog
from taba.agent.admission import POSTED_SECONDS
from taba.agent.grants import Grants
from taba.agent.http import Routes
from taba.agent.keeper import KEYED_STREAMS
from taba.agent.keys import Keys
from taba.agent.spool import SpoolFull
from taba.batch import BatchId
from taba.calls import Answer, HTTPError
from taba.caps import Caps
from taba.names import ALIVE_TAB, OVERFLOW_CLIENT
from taba.tokens import EVERYTHING

from .moments import at
from .world import BUCKETS, World

MOST_KEYS = 30
MOST_HERE = 80
BODY = json.dumps({"client": "web/1", "events": [{"tab": "bids_won", "type": "CounterGroup", "value": 1.0}]}).encode()


class Asking:
    """A request with a body and a key, in which `meanwhile` happens while it is read."""

    grant = EVERYTHING

    def __init__(self, meanwhile: Any = lambda: None, body: bytes = BODY, key: str | None = None, poster: str = "this host"):
        self._meanwhile, self._body, self._key, self.poster = meanwhile, body, key, poster

    def once(self, name: str) -> str | None:
        return self._key

    async def body(self) -> bytes:
        return self._body

    async def in_turns(self, steps: Generator[int, None, Any]) -> Any:
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value

    async def breathe(self) -> None:
        self._meanwhile()


class Hosted(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.mkdtemp(dir="/dev/shm")
        self.addCleanup(shutil.rmtree, directory)
        world = self.world = World(directory)
        self.addCleanup(world.end_producers)
        self.addCleanup(world.die)
        keys = self.keys = Keys(os.path.join(directory, "keys"), most=MOST_KEYS)
        self.addCleanup(keys.close)
        self.grants = Grants(here=MOST_HERE)
        self.routes = Routes(world.pump, keys, self.grants, dict, lambda: (world.now, at(world.now)), lambda: 1.0, lambda: None)

    def post(self, meanwhile: Any = lambda: None, body: bytes = BODY, key: str | None = None, poster: str = "this host") -> Answer:
        asking = self.routes.events(cast(Any, Asking(meanwhile, body, key, poster)))
        try:
            asking.send(None)
        except StopIteration as end:
            return cast(Answer, end.value)
        raise AssertionError("it waits")

    def refused(self, *request: Any) -> tuple[int, str]:
        error = self.assertRaises(HTTPError, self.post, *request)
        return error.status, error.error


class Posting(Hosted):
    def test_where_the_store_has_another_number_of_buckets_by_then_nothing_is_kept_and_the_next_try_is(self) -> None:
        world = self.world
        said = self.refused(lambda: world.pump.set_buckets(BUCKETS * 2, at(world.now)))
        self.assertEqual((said, world.keeper.unacknowledged, world.keeper.books.recorded), ((503, "not_ready"), 0, 0))
        self.post()
        self.assertEqual((world.keeper.unacknowledged, world.keeper.books.recorded), (1, 1))

    def test_where_the_disk_is_full_before_the_spools_bound_is_reached_it_is_to_be_tried_later(self) -> None:
        with mock.patch.object(self.world.keeper, "publish", side_effect=SpoolFull("the disk is full", True)):
            self.assertEqual(self.refused(), (503, "spool_full"))

    def post_under(self, key: str, *events: Any) -> int:
        """The status of the answer."""
        body = json.dumps({"client": "web/1", "events": events}).encode()
        try:
            self.post(lambda: None, body, key)
        except HTTPError as error:
            return error.status
        return 200

    def test_a_key_stands_for_its_request_also_where_nothing_of_it_was_accepted(self) -> None:
        good, bad = {"tab": "t", "type": "CounterGroup", "value": 1.0}, {"tab": "_t", "type": "CounterGroup", "value": 1.0}
        for key, first in (("empty", []), ("rejected", [bad]), ("both", [bad, good])):
            recorded = self.world.keeper.books.recorded
            self.assertEqual(self.post_under(key, *first), 200)
            self.assertEqual(self.post_under(key, good), 422)
            self.assertEqual(self.post_under(key, *first), 200)
            self.assertEqual(self.world.keeper.books.recorded - recorded, first.count(good))

    def test_a_poster_under_ever_new_clients_costs_another_no_key(self) -> None:
        self.post(key="good", poster="token good")
        for number in range(2 * MOST_KEYS):
            self.post(body=body("t", client=f"web/{number}"), key="k", poster="token stranger")
        recorded = self.world.keeper.books.recorded
        self.assertEqual(cast(Any, self.post(key="good", poster="token good").content)["accepted"], 1)
        self.assertEqual((self.world.keeper.books.recorded, self.keys.count), (recorded, MOST_KEYS))

    def test_a_poster_under_ever_new_clients_is_told_to_come_later_and_another_goes_on(self) -> None:
        count = [0, 0]
        for number in range(MOST_HERE * BUCKETS):
            try:
                self.post(body=body("t", client=f"web/{number}"), key="k", poster="token stranger")
                count[0] += 1
            except HTTPError as error:
                self.assertEqual((error.status, error.error, error.headers), (429, "too_many_keys", {"retry-after": "3600"}))
                count[1] += 1
        self.assertEqual(count[0], MOST_HERE // 2 * BUCKETS)  # half of it in each bucket
        recorded = self.world.keeper.books.recorded
        self.post(key="good", poster="token good")
        self.assertEqual(self.world.keeper.books.recorded - recorded, 1)

    def test_what_waits_for_room_holds_up_nothing_that_has_no_key_and_no_other_poster(self) -> None:
        world = self.world
        for client, key, poster in (("web/0", "k", "a"), ("web/1", None, "a"), ("web/2", "k", "b"), ("web/3", "k", "a")):
            self.post(body=body("t", client=client), key=key, poster=poster)
        waits = next(lane for lane in world.keeper.lanes.values() if lane.pending[0].key)
        world.hold([BatchId(waits.stream, waits.bucket, 1)])
        for _ in range(3):
            world.tick()
            world.send()
        self.assertEqual({client for (client, tab) in world.store.events if tab == "t"}, {"web/1", "web/2"})
        self.assertEqual([batch.number for batch in waits.pending], [1, 2])
        world.hold([])
        world.tick()
        world.send()
        self.assertEqual({client for (client, tab) in world.store.events if tab == "t"}, {f"web/{number}" for number in range(4)})

    def test_streams_of_posts_with_keys_are_few_and_end_with_the_streams_before(self) -> None:
        world = self.world
        for number in range(3 * KEYED_STREAMS):
            self.post(body=body("t", client=f"web/{number}"), key="k", poster=f"poster {number}")
        streams = {lane.stream for lane in world.keeper.lanes.values()}
        self.assertEqual(len(streams), KEYED_STREAMS)
        world.tick()
        world.send()
        self.assertEqual(sum(tab == "t" for _, tab in world.store.events), 3 * KEYED_STREAMS)
        world.keeper.begin_stream(at(world.now))
        for _ in range(60):
            world.tick()
            world.send()
        self.assertEqual(streams & {lane.stream for lane in world.keeper.lanes.values()}, set())

    def test_of_as_many_lanes_as_may_be_those_that_wait_for_nothing_go_and_every_event_counts_once(self) -> None:
        self.patch(backlog, "MAX_LANES", BUCKETS)
        world, most, names = self.world, 0, [f"t{number}" for number in range(6 * KEYED_STREAMS)]

        def post(name: str) -> None:
            self.post(body=body(name, client=f"web/{name}"), key="k", poster=f"poster {name}")

        def go_on() -> None:
            world.tick()
            world.send()

        for name in names:
            post(name)
            go_on()
            most = max(most, len(world.keeper.lanes))
        self.assertTrue(1 < most < 2 * BUCKETS, most)  # what came since the last look is beyond them
        post("first")
        [waits] = [lane for lane in world.keeper.lanes.values() if lane.pending]
        world.hold([BatchId(waits.stream, waits.bucket, waits.pending[0].number)])
        number, moves = waits.pending[0].number, world.keeper.moves
        for name in names:
            post(f"{name}.later")
            go_on()
            most = max(most, len(world.keeper.lanes))
        self.assertLess(most, 3 * BUCKETS)  # while what waits, and holds them up in the outbox, is on its way to the spool, and its like
        self.assertGreater(world.keeper.moves, moves)
        self.assertEqual(world.spool.last(waits.stream, waits.bucket), number)
        world.hold([])
        for _ in range(10):
            go_on()
        self.assertLess(len(world.keeper.lanes), 2 * BUCKETS)
        events = {tab: values for (_, tab), values in world.store.events.items() if tab[0] in "tf"}
        self.assertEqual(events, {tab: [1.0] for tab in [*names, *(f"{name}.later" for name in names), "first"]})

    def test_where_the_disk_does_not_take_the_key_the_events_are_accepted_and_count_once(self) -> None:
        good = {"tab": "t", "type": "CounterGroup", "value": 1.0}
        with mock.patch.object(Keys, "_write", side_effect=sqlite3.OperationalError("database or disk is full")):
            answers = [self.post_under("one", *events) for events in ((good,), (good,), (good, good))]
            self.assertEqual(answers, [200, 200, 422])
        self.assertEqual([self.post_under("one", good), self.world.keeper.books.recorded], [200, 1])


def body(*tabs: str, client: str = "web/1") -> bytes:
    return json.dumps({"client": client, "events": [{"tab": tab, "type": "CounterGroup", "value": 1.0} for tab in tabs]}).encode()


class Capped(Hosted):
    """Posted names are decided on as those of rings are."""

    def cap(self, **caps: int) -> None:
        self.world.rings.admission.change(Caps(**caps))

    def sent(self) -> dict[tuple[str, str], float]:
        for _ in range(10):
            self.world.tick()
            self.world.send()
        return {key: sum(values) for key, values in self.world.store.events.items() if key[1] != ALIVE_TAB}

    def test_beyond_the_cap_what_is_posted_goes_to_the_overflow_tab_and_a_sentence_names_the_client(self) -> None:
        self.cap(client_tabs=2, new_tabs=1)
        names = [f'hits{{user="{number}"}}' for number in range(5)]
        answer = self.post(body=body(*names, *names))
        self.assertEqual(cast(Any, answer.content), {"accepted": 10, "rejected": []})
        self.assertEqual(self.sent(), {("web/1", names[0]): 2.0, ("web/1", names[1]): 2.0, ("web/1", 'hits{overflow="true"}'): 6.0})
        (one,) = self.world.rings.admission.overflowing()
        self.assertEqual((one.client, one.tabs, one.base), ("web/1", 3, "hits"))
        self.world.rings.admission.tick(self.world.now + POSTED_SECONDS)
        self.assertEqual(self.world.rings.admission.overflowing(), [])

    def test_a_post_with_a_key_is_taken_under_its_own_names_or_not_at_all(self) -> None:
        self.cap(client_tabs=2, new_tabs=1)
        error = self.assertRaises(HTTPError, self.post, body=body("a", "b", "c"), key="once")
        self.assertEqual((error.status, error.error), (429, "too_many_tabs"))
        self.assertIn("none of it was taken: Client web/1 names more than 2 Tabs at once (--max-client-tabs)", error.detail)
        self.assertEqual((self.sent(), self.world.keeper.books.recorded), ({}, 0))
        self.world.rings.admission.tick(self.world.now + 1.0)  # a second later it may: what was named before costs nothing
        self.cap(client_tabs=3, new_tabs=1)
        self.post(body=body("a", "b", "c"), key="once")
        for tab in ("d", "e", "f"):
            self.post(body=body(tab))  # the Client's names are used up
        answer = self.post(body=body("a", "b", "c"), key="once")  # it came before: there is nothing to decide
        self.assertEqual(cast(Any, answer.content), {"accepted": 3, "rejected": []})
        self.assertEqual({key: count for key, count in self.sent().items() if key[1] in "abc"}, {("web/1", tab): 1.0 for tab in "abc"})

    def test_where_there_is_not_even_a_sum_events_are_rejected_one_by_one(self) -> None:
        self.patch(admission, "MAX_OVERFLOWS", 1)
        self.cap(client_tabs=1, new_tabs=1)
        answer = cast(Any, self.post(body=body("a", "b", "c", "a", "b", "c")).content)
        self.assertEqual((answer["accepted"], [one["index"] for one in answer["rejected"]]), (4, [2, 5]))
        self.assertIn("too_many_tabs: Client web/1 names", answer["rejected"][0]["reason"])
        self.assertEqual(self.sent(), {("web/1", "a"): 2.0, ("web/1", 'b{overflow="true"}'): 2.0})

    def test_clients_without_end_are_summed_up_under_one(self) -> None:
        self.cap(agent_clients=2, new_clients=1)
        self.world.rings.admission._new = 2.0
        for number in range(5):
            self.post(body=body("hits", client=f"job/{number}"))
        sums = {("job/0", "hits"): 1.0, ("job/1", "hits"): 1.0, (OVERFLOW_CLIENT, 'hits{overflow="true"}'): 3.0}
        self.assertEqual(self.sent(), sums)
        self.assertEqual(len(self.world.rings.admission.overflowing()), 3)

    def test_a_request_that_is_none_leaves_no_client_open(self) -> None:
        with self.assertRaises(HTTPError):
            self.post(body=b'{"client": "web/1", "events": [1')
        self.post(body=body("a"))
        self.assertEqual(self.world.rings.admission._clients["web/1"].rings, 0)
