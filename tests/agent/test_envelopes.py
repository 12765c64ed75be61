"""How much goes to a Server in one envelope: what it decides in a moment, as its answers show."""

from __future__ import annotations

from collections.abc import Sequence

from taba.agent import dispatch
from taba.agent.dispatch import FULL_BYTES, LEAST_BYTES, MAX_IN_FLIGHT, Parcel
from taba.agent.outbox import EncodedBatch
from taba.batch import APPLIED, LATER, OPEN, BatchId, Column, Header, Verdict, encode_batch
from taba.bounds import MiB
from tests.agent.moments import at
from tests.agent.world import World, WorldCase

BATCH_BYTES = 30_000  # of content
LATE = Verdict(LATER, 0.1)


class Envelopes(WorldCase):
    def made(self, batches: int) -> World:
        """So many buckets that have a batch each, their streams open."""
        world = self.world(outbox_bytes=32 * MiB)  # half of which may wait for a Server
        column = Column("web/1", "tab", "CounterGroup", bytes(BATCH_BYTES // 2), bytes(BATCH_BYTES // 2))
        self.publish(world, 1, range(batches), column)
        while parcels := world.dispatch.parcels(world.now, at(world.now)):
            self.assertTrue(all(isinstance(send.entry, Header) for parcel in parcels for send in parcel.sends))
            for parcel in parcels:
                self.answer(world, parcel, [Verdict(OPEN, b"n" * 16, 0)] * len(parcel.sends))
            if world.dispatch.servers[parcels[0].server.url].in_flight == 0 and all(
                lane.nonce for lane in world.keeper.lanes.values() if lane.pending
            ):
                break
        return world

    def publish(self, world: World, number: int, buckets: Sequence[int], column: Column) -> None:
        ids = [BatchId(world.keeper.stream, bucket, number) for bucket in buckets]
        events = len(column.times) // 8
        world.keeper.publish([EncodedBatch(id, at(world.now), events, encode_batch(*id, [column])) for id in ids], world.now, recorded=1)

    def answer(self, world: World, parcel: Parcel, verdicts: Sequence[Verdict], seconds: float = 0.1) -> None:
        world.now += seconds
        world.dispatch.answered(parcel, list(verdicts), world.now)

    def applied(self, parcel: Parcel) -> list[Verdict]:
        return [Verdict(APPLIED, send.number) for send in parcel.sends]

    def test_one_drain_goes_in_several_envelopes_and_what_follows_the_first_goes_when_that_is_answered(self) -> None:
        world = self.made(60)
        parcels = world.dispatch.parcels(world.now, at(world.now))
        self.assertEqual(len(parcels), 3)
        for parcel in parcels:
            self.assertLessEqual(parcel.size, FULL_BYTES)
        first = parcels[0]
        buckets = [send.lane.bucket for send in first.sends]
        self.publish(world, 2, buckets, Column("web/1", "tab", "CounterGroup", bytes(8), bytes(8)))
        self.assertEqual(world.dispatch.parcels(world.now, at(world.now)), [])
        self.answer(world, first, self.applied(first))
        (again,) = world.dispatch.parcels(world.now, at(world.now))
        self.assertEqual(([send.lane.bucket for send in again.sends], again.server.in_flight), (buckets, 3))

    def test_the_spool_has_two_envelopes_under_way_which_may_be_larger_than_those_of_what_is_fresh(self) -> None:
        world = self.made(120)
        world.move()
        world.tick()
        (opening,) = world.dispatch.parcels(world.now, at(world.now))
        self.answer(world, opening, [Verdict(OPEN, b"n" * 16, 0)] * len(opening.sends))
        first, second = world.dispatch.parcels(world.now, at(world.now))
        for parcel in (first, second):
            self.assertTrue(parcel.from_spool)
            self.assertTrue(FULL_BYTES < parcel.size <= dispatch.BACKLOG_SHARE * FULL_BYTES, parcel.size)
        self.answer(world, first, self.applied(first))
        (third,) = world.dispatch.parcels(world.now, at(world.now))
        self.assertEqual((third.from_spool, third.server.backlog_in_flight), (True, dispatch.MAX_BACKLOG_IN_FLIGHT))

    def test_what_comes_too_late_makes_those_that_go_next_half_as_large_once_for_all_that_were_under_way(self) -> None:
        world = self.made(60)
        first, second, third = world.dispatch.parcels(world.now, at(world.now))
        server = first.server
        self.answer(world, first, [*self.applied(first)[:-5], *[LATE] * 5])
        self.assertEqual(server.room, FULL_BYTES // 2)
        self.answer(world, second, [LATE] * len(second.sends))
        self.answer(world, third, self.applied(third), dispatch.LATE_SECONDS + 1)
        self.assertEqual(server.room, FULL_BYTES // 2)  # these went before
        world.keeper.tick(world.now, at(world.now))  # what was to come later may go
        parcels = world.dispatch.parcels(world.now, at(world.now))
        self.assertTrue(0 < len(parcels) <= MAX_IN_FLIGHT)
        for parcel in parcels:
            self.assertLessEqual(parcel.size, FULL_BYTES // 2)
        self.answer(world, parcels[0], self.applied(parcels[0]), dispatch.LATE_SECONDS + 0.1)
        self.assertEqual(server.room, FULL_BYTES // 4)

    def test_it_never_becomes_less_than_a_little_and_more_again_with_full_ones_that_are_answered_soon(self) -> None:
        world = self.made(1)
        (parcel,) = world.dispatch.parcels(world.now, at(world.now))
        server = parcel.server
        for _ in range(20):
            parcel.sent, parcel.size = world.now, server.room
            server.paced(parcel, len(parcel.sends), world.now + 0.1)
            world.now += 1.0
        self.assertEqual(server.room, LEAST_BYTES)
        parcel.sent, parcel.size = world.now, LEAST_BYTES // 4
        server.paced(parcel, 0, world.now + 0.1)
        self.assertEqual(server.room, LEAST_BYTES)  # one that was hardly filled says nothing
        for _ in range(20):
            parcel.sent, parcel.size = world.now, server.room
            server.paced(parcel, 0, world.now + 0.1)
        self.assertEqual(server.room, FULL_BYTES)

    def test_what_is_later_for_what_it_is_or_with_few_buckets_that_another_holds_says_nothing_of_the_pace(self) -> None:
        world = self.made(60)
        first, second, third = world.dispatch.parcels(world.now, at(world.now))
        self.answer(world, first, [*self.applied(first)[:-2], LATE, LATE])
        self.answer(world, second, [Verdict(LATER, 0.5, "a Handler takes longer than a cycle waits for it")] * len(second.sends))
        self.answer(world, third, [Verdict(LATER, 1.0)] * len(third.sends))
        self.assertEqual(first.server.room, FULL_BYTES)
