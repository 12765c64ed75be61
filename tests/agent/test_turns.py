"""A drain of many rings goes in turns: whatever comes in between, each event is published once."""

from __future__ import annotations

import itertools
import os
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from taba.agent import drain
from taba.agent import keeper as keeping
from taba.agent.edge import Edge
from taba.agent.encoding import packing
from taba.agent.grants import Grants
from taba.agent.keys import Keys
from taba.agent.posting import post
from taba.events import read_events
from taba.handlers.lookup import find_edges
from taba.steps import finish
from tests.agent.moments import at
from tests.agent.producers import Producer
from tests.agent.world import AGENT, BUCKETS, World, WorldCase
from tests.examples import examples

STEPS = ("record", "turn", "turn", "turn", "send", "kill", "move", "stream", "edges", "buckets", "now", "join", "leave")


class Turns(WorldCase):
    def setUp(self) -> None:
        self.patch(drain, "TURN_RINGS", 1)
        self.patch(drain, "TURN_EVENTS", 40)

    def turn(self, world: World, seconds: float = 0.0) -> float:
        world.now += seconds
        return world.pump.tick(world.now, at(world.now))

    def all_of_it(self, world: World) -> None:
        """Go on until all is folded."""
        for _ in range(60):
            while self.turn(world, 2.0) == 0.0:
                pass
            world.keeper.tick(world.now, at(world.now))
            world.send()

    def under_way(self, world: World, events: int = 30) -> None:
        """Have a drain under way that has read one ring of two."""
        world.record(events)
        self.assertEqual(self.turn(world, 2.0), 0.0)
        self.assertIsNotNone(world.pump._under_way)
        self.assertEqual(world.keeper.books.recorded, 0)

    def test_a_drain_of_more_rings_than_a_turn_reads_goes_on_in_the_next_and_the_tails_move_once_it_is_published(self) -> None:
        world = self.world()
        self.under_way(world)
        self.assertEqual([producer.tail for producer in world.producers], [0, 0])
        turns = 1
        while self.turn(world) == 0.0:
            turns += 1
            self.assertIn(world.keeper.books.recorded, (0, 30))
        self.assertGreater(turns, 2)
        self.assertEqual((world.keeper.books.recorded, [producer.tail for producer in world.producers]), (30, [15, 15]))
        world.send()
        self.assertEqual(world.store.folded, 30)

    def test_what_a_drain_of_several_turns_comes_to_is_summed_up_once_whatever_comes_next(self) -> None:
        for comes in ("a turn", "a drain"):
            world = self.world()
            self.under_way(world)
            while not world.keeper.books.recorded:
                self.turn(world)
            self.assertEqual(world.pump.tallies._sums[0].sum(), 0.0)
            if comes == "a turn":
                self.assertEqual(self.turn(world), 0.0)
            else:
                world.record(0)
                world.pump.drain(world.now, at(world.now))
            self.assertEqual(world.pump.tallies._sums[0].sum(), 30.0)
            self.all_of_it(world)
            self.assertEqual(world.pump.tallies._sums[0].sum(), 30.0)

    def test_what_fits_one_turn_is_drained_in_one(self) -> None:
        self.patch(drain, "TURN_RINGS", 2)
        world = self.world()
        world.record(30)
        self.assertGreater(self.turn(world, 2.0), 0.0)
        self.assertEqual(world.keeper.books.recorded, 30)

    def test_a_ring_that_turns_out_to_be_none_between_two_turns_is_neither_settled_nor_published_and_the_others_are(self) -> None:
        world = self.world()
        self.under_way(world)
        first = next(iter(world.rings.open.values()))
        world.pump._isolate(first, "a test")
        fd = os.open("/dev/null", os.O_RDONLY)  # of its number, most likely
        self.addCleanup(os.close, fd)
        self.assertIsNone(world.pump._under_way)
        self.all_of_it(world)
        self.assertEqual(world.store.folded, 15)
        self.assertEqual(sorted(producer.tail for producer in world.producers), [0, 15])

    def test_what_a_drain_folded_for_servers_that_merge_it_no_more_is_read_again(self) -> None:
        edge = Edge(find_edges(), fewest=1)
        world = self.world(edge=edge)
        world.pump.allow(edge.edges, at(world.now))
        self.under_way(world, 400)
        world.pump.allow((), at(world.now))
        self.assertIsNone(world.pump._under_way)
        self.all_of_it(world)
        self.assertEqual((world.store.folded, edge.states), (400, 0))

    def test_rings_that_are_handed_over_between_two_turns_are_read_by_who_comes(self) -> None:
        world = self.world()
        self.under_way(world)
        self.assertTrue(world.pump.hand_over())
        self.turn(world, 2.0)
        self.assertEqual((world.keeper.books.recorded, [producer.tail for producer in world.producers]), (0, [0, 0]))
        world.die()
        world.born()
        self.all_of_it(world)
        self.assertEqual(world.store.folded, 30)

    def _full(self) -> World:
        """A host whose outbox has no room for what is in its rings, but for what moves to the spool."""
        world = self.world(outbox_bytes=256 * 1024)
        while world.keeper.outbox.free > 40_000:
            world.record(200)
            self.turn(world, 2.0)
        world.record(3000)
        return world

    def test_room_is_made_a_piece_in_each_turn_and_what_comes_meanwhile_is_published_first(self) -> None:
        self.patch(keeping, "MOVE_BATCHES", 1)
        world = self._full()
        before = world.keeper.books.recorded
        turns, moved, posted = 0, [0], 0
        while world.keeper.books.recorded < before + posted + 3000:
            self.turn(world, 2.0 if not turns else 0.0)
            turns += 1
            moved.append(int(world.spool.batches))
            if turns == 5:
                self.assertIsNotNone(world.pump._under_way)
                body = b'{"client": "web/posts", "events": [{"tab": "posted", "type": "CounterGroup", "value": 1.0}]}'
                keys = Keys(os.path.join(world.directory, "keys"))
                self.addCleanup(keys.close)
                events = read_events(body, 1.0, BUCKETS)
                packed, moment = finish(packing(events.lots)), at(world.now)
                posted += post(world.keeper, keys, Grants(), events, packed, None, world.now, moment, "somebody", BUCKETS)
        self.assertEqual(posted, 1)
        self.assertEqual(max(after - there for there, after in itertools.pairwise(moved)), 1)
        self.assertGreater(moved[-1], 4)
        self.all_of_it(world)
        self.assertEqual((world.store.folded, +world.keeper.books.dropped), (world.recorded + 1, {}))

    def test_a_kill_while_room_is_made_loses_and_doubles_nothing(self) -> None:
        self.patch(keeping, "MOVE_BATCHES", 1)
        for turns in (1, 4, 9):
            world = self._full()
            for turn in range(turns):
                self.turn(world, 0.0 if turn else 2.0)
            world.die()
            world.born()
            self.all_of_it(world)
            self.assertEqual((world.store.folded, +world.keeper.books.dropped), (world.recorded, {}))

    @given(st.lists(st.sampled_from(STEPS), max_size=40), st.booleans())
    @examples(25)
    def test_whatever_comes_between_turns_each_event_is_folded_once(self, steps: list[str], is_folding: bool) -> None:
        edge = Edge(find_edges(), fewest=1) if is_folding else None
        world = self.world(edge=edge)
        allowed: Any = ()
        for number, step in enumerate(steps):
            if step == "record":
                world.record(25)
            elif step == "turn":
                self.turn(world, 0.3)
            elif step == "send":
                world.keeper.tick(world.now, at(world.now))
                world.send()
            elif step == "kill":
                world.die()
                world.born()
                allowed = ()
            elif step == "move":
                world.move()
            elif step == "stream":
                world.keeper.begin_stream(at(world.now))
            elif step == "edges" and edge is not None:
                allowed = () if allowed else edge.edges
                world.pump.allow(allowed, at(world.now))
            elif step == "buckets":
                world.pump.set_buckets(BUCKETS, at(world.now))
            elif step == "now":
                world.pump.drain_now(world.now, at(world.now))
            elif step == "join":
                world.producers.append(Producer(AGENT, f"web/more{number}", 65_536, world.shm))
                world.producers[:2] = world.producers[-1], world.producers[0]
            elif step == "leave" and world.recorded:
                world.producers[1].die()
                world.producers[1] = Producer(AGENT, f"web/next{number}", 65_536, world.shm)
        self.all_of_it(world)
        self.assertEqual(
            (world.store.folded, world.keeper.books.recorded, +world.keeper.books.dropped), (world.recorded, world.recorded, {})
        )
