"""What a store lost, or what was forgotten before anybody asked: brought back where it can be, and counted once where not."""

from __future__ import annotations

import sqlite3
from unittest import mock

from taba.agent import keeper
from taba.agent.lanes import RETAIN_SECONDS
from taba.batch import MARK, Header
from taba.bounds import DAY
from taba.names import bucket_of
from tests.agent.moments import at
from tests.agent.outboxes import Killed
from tests.agent.producers import Producer
from tests.agent.world import BUCKETS, World, WorldCase


class GapTests(WorldCase):
    def _lose(self, world: World, kill: int | None, is_spooled: bool = False) -> bool:
        """Five batches are folded and forgotten, a sixth waits; the store loses all beyond the second. Whether the kill came."""
        producer = world.producers[0]
        events = 0
        for number in range(1, 7):
            for _ in range(number):
                producer.record(producer.tab("bids_won"), float(events))
                events += 1
            world.tick()
            if number < 6:
                for _ in range(4):
                    world.send()
                    world.now += RETAIN_SECONDS
                    world.tick()
        self.assertEqual((world.store.folded, world.keeper.unacknowledged, world.keeper.outbox.used < 2048), (15, 1, True))
        world.die()
        world.born()
        (key,) = world.store.marks
        world.store.set_mark(*key, 2)
        world.store.events["web/0", "bids_won"] = [0.0, 1.0, 2.0]
        if is_spooled:
            world.move()
            world.tick()
        world.memory.steps = kill
        killed = world.outlive(6, world.send, world.tick)
        self.assertEqual(len(world.store.events["web/0", "bids_won"]), 1 + 2 + 6)
        self.assertEqual((world.keeper.books.recorded, dict(world.keeper.books.totals())), (21, {"gap": 3 + 4 + 5}), kill)
        return killed

    def test_what_a_store_lost_and_was_forgotten_before_a_restart_is_counted_once_wherever_a_kill_comes(self) -> None:
        self._lose(self.world(), None)
        self.kills(self._lose, 4)

    def test_nor_twice_nor_never_where_what_was_sent_beyond_it_is_in_the_spool(self) -> None:
        self.kills(lambda world, kill: self._lose(world, kill, True), 4)

    def _lose_the_end(self, world: World, kill: int | None, is_found_before: bool, is_spooled: bool) -> bool:
        """Four batches are folded and given up, nothing waits, and the store loses all beyond the second. Whether the kill came."""
        producer = world.producers[0]
        for number in range(1, 5):
            for _ in range(number):
                producer.record(producer.tab("bids_won"), float(number))
            world.tick()
        if is_spooled:
            world.move()
            world.tick()
        world.send()
        (key,) = world.store.marks
        lanes = list(world.keeper.lanes.values())
        if is_found_before:  # a probe is under way while its batches are given up
            for _ in range(3):
                world.now += RETAIN_SECONDS
                for lane in lanes:
                    lane.probe_due(world.now)
                    world.keeper.queue(lane, world.now)
            parcels = world.dispatch.parcels(world.now, at(world.now))
            self.assertEqual([send.entry.do for parcel in parcels for send in parcel.sends if isinstance(send.entry, Header)], [MARK])
        world.keeper._release(1 << 30)
        for lane in lanes:
            lane.give_up_retained()
        world.keeper.backlog.forget()
        self.assertEqual((world.store.folded, world.keeper.holds_any, world.spool.batches), (10, False, 0))
        world.store.set_mark(*key, 2)
        world.store.events["web/0", "bids_won"] = [1.0, 2.0, 2.0]
        world.memory.steps, killed = kill, False
        try:
            if is_found_before:
                for parcel in parcels:
                    world.dispatch.answered(parcel, [world._verdict(send) for send in parcel.sends], world.now)
                self.assertEqual(world.keeper.books.totals(), {"gap": 7})
                world.tick()
        except Killed:
            killed = True
        world.die()
        world.born()
        world.memory.steps = kill
        for turn in range(8):
            try:
                if turn == 3:  # and what comes then counts as well
                    producer.record(producer.tab("bids_won"), 5.0)
                world.send()
                world.tick()
            except Killed:
                killed = True
                world.die()
                world.born()
        books = world.keeper.books
        self.assertEqual((books.recorded, dict(books.totals()), books.lost_batches), (11, {"gap": 7}, 2), kill)
        self.assertEqual(world.store.events["web/0", "bids_won"], [1.0, 2.0, 2.0, 5.0])
        self.assertNotIn(key, world.store.marks)  # it is ended
        self.assertNotIn(key[0], world.keeper.books.openings)
        self.assertEqual(world.keeper.books.skips, {})  # it has ended: nothing is left to be told of it
        return killed

    def _ended_and_forgotten(self, world: World) -> tuple[bytes, int]:
        """Four batches are folded and forgotten, and their stream is ended. Which lane that was."""
        producer = world.producers[0]
        for number in range(1, 5):
            producer.record(producer.tab("bids_won"), float(number))
            world.tick()
            world.send()
        (key,) = world.store.marks
        self.assertEqual(world.store.folded, 4)
        for lane in world.keeper.lanes.values():
            lane.give_up_retained()
        world.keeper.backlog.forget()
        world.keeper.tick(world.now, at(world.now))
        self.assertEqual(world.keeper.history.last([key[0]]), {key: 4})
        world.store.marks.pop(key)  # what is gone in a moment alone says so
        return key

    def _takes_nothing_for_lost(self, world: World) -> None:
        """Whoever comes after whom, and whether that one had published anything: the stream is ended once more, and that is all."""
        for has_published in (False, True, True):
            if has_published:
                world.record(1)
                world.tick()
            world.die()
            world.born()
            self.assertEqual({lane.unproven for lane in world.keeper.lanes.values()}, {0})
        for _ in range(6):
            world.send()
            world.tick()
        self.assertEqual((dict(world.keeper.books.totals()), world.store.folded), ({}, 4 + 2))

    def test_a_host_that_boots_anew_has_no_proof_that_a_store_lost_what_only_the_lost_outbox_knew_had_ended(self) -> None:
        world = self.world()
        world.keeper.is_homeless = True  # so that the spool's table names the stream as open
        key = self._ended_and_forgotten(world)
        world.lose_outbox()
        self.assertIn(key[0], world.keeper.books.openings)
        self._takes_nothing_for_lost(world)
        self.assertNotIn(key[0], world.keeper.books.openings)

    def test_nor_of_a_stream_that_is_ended_to_be_sure_because_no_table_says_what_became_of_it(self) -> None:
        world = self.world()
        stream, bucket = self._ended_and_forgotten(world)
        world.lose_outbox()
        self.assertNotIn(stream, world.keeper.books.openings)
        world.keeper.left_open(stream, [bucket])
        world.keeper.settle_totals()
        self._takes_nothing_for_lost(world)
        self.assertNotIn(stream, world.keeper.books.openings)

    def test_nor_where_the_last_table_was_in_a_spool_that_cannot_be_read(self) -> None:
        for has_salvage in (False, True):
            world = self.world()
            key = self._ended_and_forgotten(world)
            world.keeper.is_homeless = True
            world.keeper.books.openings.ended(*key)
            world.keeper.books.is_dirty = True
            world.keeper.settle_totals()
            world.spool._database.execute("UPDATE journal SET content = x'00' WHERE place = 0")
            world.die()
            if has_salvage:
                with open(world.spool.path, "r+b") as file:
                    file.truncate(4096)
            world.born()
            self.assertIn(key[0], world.keeper.books.openings)  # as the outbox has it, from before
            self._takes_nothing_for_lost(world)
            self.assertNotIn(key[0], world.keeper.books.openings)

    def test_a_gap_with_nothing_left_to_send_is_counted_once_wherever_a_kill_comes(self) -> None:
        for is_found_before in (False, True):
            for is_spooled in (False, True):
                self._lose_the_end(self.world(), None, is_found_before, is_spooled)
                self.kills(lambda world, kill, found=is_found_before, where=is_spooled: self._lose_the_end(world, kill, found, where))  # type: ignore[misc]

    def _count_a_gap(self, world: World, kill: int | None) -> bool:
        """A gap is counted, and another batch comes. Whether the kill did."""
        producer = world.producers[0]
        for number in range(1, 5):
            producer.record(producer.tab("bids_won"), float(number))
            world.tick()
            world.send()
        (lane,) = world.keeper.lanes.values()
        lane.retained[0].acknowledged = -1e9
        lane.probe_due(world.now)
        world.keeper.queue(lane, world.now)
        (parcel,) = world.dispatch.parcels(world.now, at(world.now))
        world.keeper._release(1 << 30)
        world.store.set_mark(lane.stream, lane.bucket, 2)
        world.store.events["web/0", "bids_won"] = [1.0, 2.0]
        world.dispatch.answered(parcel, [world._verdict(send) for send in parcel.sends], world.now)
        world.memory.steps = kill
        producer.record(producer.tab("bids_won"), 5.0)
        killed = world.outlive(6, world.tick, world.send)
        self.assertEqual((world.keeper.books.recorded, dict(world.keeper.books.totals())), (5, {"gap": 2}), kill)
        self.assertEqual(world.store.events["web/0", "bids_won"], [1.0, 2.0, 5.0], kill)
        return killed

    def _lose_beyond_the_spool(self, world: World, mark: int, kill: int | None) -> bool:
        """Of a lane the first batches are in the spool, whose disk does not let go of them; those that followed are applied and released
        from the outbox. An Agent is killed, and the store goes back to `mark`. Whether the kill came."""
        producer = world.producers[0]
        for number in range(1, 7):
            producer.record(producer.tab("bids_won"), float(number))
            world.recorded += 1
            world.tick()
        with mock.patch.object(keeper, "MOVE_BATCHES", 3):
            world.keeper._move_some(world.now, at(world.now))  # a part of a move; then a Server is back
        (key,) = world.keeper.lanes
        with mock.patch.object(world.spool, "forget", side_effect=sqlite3.OperationalError("database or disk is full")):
            for _ in range(6):
                world.send()
                world.keeper._release(1 << 30)
                world.tick()
            self.assertEqual((world.store.marks[key], world.spool.batches, world.keeper.holds_any), (6, 3, False))
            world.die()
        world.store.set_mark(*key, mark)
        world.store.events["web/0", "bids_won"] = [float(number) for number in range(1, mark + 1)]
        world.store.folded = mark
        world.born()
        world.memory.steps = kill
        killed = world.outlive(6, world.tick, world.send)
        world.memory.steps = None
        for _ in range(40):
            world.tick()
            world.send()
        lost = 6 - max(mark, 3)  # the spool has the first three
        self.assertEqual((world.keeper.books.recorded, world.store.folded + lost), (6, 6), (mark, kill))
        self.assertEqual(dict(+world.keeper.books.totals()), {"gap": lost} if lost else {}, (mark, kill))
        self.assertNotIn(key[0], world.keeper.books.openings)
        return killed

    def test_what_was_released_and_a_store_lost_is_counted_though_what_came_before_it_is_still_in_the_spool(self) -> None:
        for mark in (1, 3, 4, 6):
            self._lose_beyond_the_spool(self.world(), mark, None)
        self.kills(lambda world, kill: self._lose_beyond_the_spool(world, 4, kill))

    def test_of_buckets_of_which_one_went_back_that_alone_has_again_what_it_lost_or_it_is_counted(self) -> None:
        """As where one of several shards is restored from a copy."""
        tabs = [f"tab_{number}" for number in range(12)]
        for is_forgotten in (False, True):
            world = self.world()
            producer = world.producers[0]

            def go_on(
                rounds: int, seconds: float = 0.0, world: World = world, producer: Producer = producer, is_recording: bool = True
            ) -> None:
                for _ in range(rounds):
                    for tab in tabs if is_recording else ():
                        producer.record(producer.tab(tab), 1.0)
                    world.outlive(3, world.tick, world.send)
                    world.wait(seconds)

            go_on(1)
            (stream, bucket), mark = next(iter(world.store.marks.items()))
            lost = {("web/0", tab) for tab in tabs if bucket_of(tab, BUCKETS) == bucket}
            then = {key: list(events) for key, events in world.store.events.items() if key in lost}
            self.assertTrue(0 < len(then) < len(tabs))
            go_on(2)
            go_on(4 * is_forgotten, RETAIN_SECONDS, is_recording=False)
            world.store.set_mark(stream, bucket, mark)
            world.store.events.update(then)
            go_on(1)
            there = {key: len(world.store.events[key]) for key in [("web/0", tab) for tab in tabs]}
            self.assertEqual(there, {key: 2 if is_forgotten and key in lost else 4 for key in there})
            self.assertEqual(dict(world.keeper.books.totals()), {"gap": 2 * len(lost)} if is_forgotten else {})

    def test_a_gap_that_was_counted_is_not_counted_again_with_the_next_batch_of_its_stream(self) -> None:
        self._count_a_gap(self.world(), None)
        self.kills(self._count_a_gap)

    def test_a_stream_that_was_ended_and_one_that_nobody_used_for_long_are_not_asked_for_what_the_store_has(self) -> None:
        world = self.world()
        world.record(10)
        world.tick()
        world.send()
        world.keeper._release(1 << 30)
        world.die()
        world.born()
        self.assertTrue(all(lane.unproven for lane in world.keeper.lanes.values()))
        for _ in range(2):  # the streams are opened, and found whole; then they are ended, and it is killed before it knows
            parcels = world.dispatch.parcels(world.now, at(world.now))
            verdicts = [[world._verdict(send) for send in parcel.sends] for parcel in parcels]
            if not _:
                for parcel, those in zip(parcels, verdicts, strict=True):
                    world.dispatch.answered(parcel, those, world.now)
        self.assertEqual(world.store.marks, {})
        world.die()
        world.born()
        self.assertEqual({lane.unproven for lane in world.keeper.lanes.values()}, {0})
        for _ in range(3):
            world.send()
            world.tick()
        self.assertEqual((world.keeper.books.totals(), list(world.keeper.books.openings)), ({}, []))
        world.record(10)
        world.tick()
        world.send()
        world.keeper._release(1 << 30)
        for days, asked in ((7, True), (8, False)):
            world.die()
            world.now = days * DAY
            world.born()
            self.assertEqual(any(lane.unproven for lane in world.keeper.lanes.values()), asked)
