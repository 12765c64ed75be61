"""What moves from the outbox to the spool, and how much is retained in either: each event counts once, whatever a kill comes between."""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
import struct
from collections import Counter
from functools import partial
from typing import Any
from unittest import mock

from taba.agent import backlog, books, groups, keeper
from taba.agent.lanes import RETAIN_SECONDS
from taba.agent.outbox import PAGE, EncodedBatch, Outbox
from taba.agent.spool import Spool, SpoolFull
from taba.batch import BatchId, Column, encode_batch
from tests.agent import world as worlds
from tests.agent.moments import at
from tests.agent.outboxes import Killed
from tests.agent.world import World, WorldCase

COLUMN = Column("web/0", "bids_won", "CounterGroup", bytes(8), bytes(8))


class SpoolingTests(WorldCase):
    def test_killed_within_a_move_to_the_spool_a_refused_batch_is_counted_once(self) -> None:
        world = self.world()
        world.record(40)
        world.tick()

        def kill(end: int) -> None:
            raise Killed

        world.keeper._release_to = kill  # type: ignore[method-assign]
        self.assertRaises(Killed, world.move)
        world.die()
        world.born()
        self.assertEqual((world.spool.batches, world.keeper.unacknowledged), (3, 0))
        world.refuse = lambda id: True
        for _ in range(4):
            world.send()
            world.tick()
        self.assertEqual((world.keeper.books.recorded, world.keeper.books.totals(), world.spool.batches), (40, {"refused": 40}, 0))

    def test_what_moves_to_the_spool_is_not_given_up_and_what_was_acknowledged_is(self) -> None:
        world = self.world()
        world.record(40)
        world.tick()
        acknowledged = world.send()
        world.record(40)
        world.tick()
        moved = world.keeper.unacknowledged
        self.assertTrue(acknowledged and moved)
        world.move()
        self.assertEqual((world.keeper.books.given_up, world.spool.batches, world.keeper.books.retained_bytes), (acknowledged, moved, 0))

    def test_lanes_of_the_spool_are_taken_up_some_in_each_turn_and_no_second_is_waited_between(self) -> None:
        self.patch(backlog, "TAKEN_UP_ROWS", 50)
        self.patch(worlds, "BUCKETS", 64)
        world = self.world()
        producer = world.producers[0]
        for number in range(60):
            producer.record(producer.tab(f"own{number}"), 1.0)
        world.tick()
        world.move()
        lanes = world.spool.batches  # one in each
        self.assertGreater(lanes, 30)
        world.die()
        looks: list[object] = []
        original = Spool.next_lane

        def next_lane(spool: Spool, after: Any) -> Any:
            looks.append(after)
            return original(spool, after)

        self.patch(Spool, "next_lane", next_lane)
        world.born()
        turns = 1
        while len(world.keeper.lanes) < lanes:
            self.assertLessEqual(len(looks), 3)
            looks.clear()
            turns += 1
            self.assertLessEqual(turns, lanes)
            world.now += 0.001
            world.keeper.tick(world.now, at(world.now))
        self.assertGreaterEqual(turns, lanes // 3)
        for _ in range(4):
            world.send()
            world.tick()
        self.assertEqual((len(world.store.events), world.keeper.books.totals()), (60, {}))

    def test_a_kill_between_spool_and_release_leaves_both_and_counts_once(self) -> None:
        world = self.world()
        real = world.spool.add
        armed = []

        def add(batches: Any, journal: Any) -> None:
            real(batches, journal)
            armed.append(world.spool.batches)
            world.memory.steps = 0

        self.patch(world.spool, "add", add)
        while not armed:
            world.record(2000)
            try:
                world.tick()
            except Killed:
                world.die()
                world.born()
        self.assertGreater(world.spool.batches, 0)
        for _ in range(80):
            world.tick()
            world.send()
        self.assertEqual((world.store.folded, world.spool.batches), (world.recorded, 0))

    def test_what_a_kill_left_in_both_places_is_not_ended_while_the_outbox_has_it(self) -> None:
        world = self.world()
        world.record(50)
        world.tick()
        waits = [stored.id for group in world.keeper.outbox.groups() for stored in group.batches][-1]
        with mock.patch.object(keeper, "MOVE_BATCHES", 1):
            world.keeper._move_some(world.now, at(world.now))
        self.assertEqual((world.spool.batches, world.keeper.outbox.released), (1, 0))
        for held in ([waits], []):  # the outbox lets go of its oldest group only once its last batch is folded
            world.die()
            world.born()
            world.hold(held)
            for _ in range(45):
                world.tick()
                world.send()
            self.assertEqual(world.spool.batches, 0)
        self.assertEqual((world.store.folded, len(world.store.ended)), (50, 3))

    def _refused_in_both(self, world: World, kill: int, is_killed_before: bool) -> bool:
        """The first batch of a group is in the spool as well, and refused, while the last one holds the group. Whether the kill came."""
        world.record(50)
        world.tick()
        first, *_, waits = [stored.id for group in world.keeper.outbox.groups() for stored in group.batches]
        with mock.patch.object(keeper, "MOVE_BATCHES", 1):
            world.keeper._move_some(world.now, at(world.now))
        if is_killed_before:
            world.die()
            world.born()
        world.hold([waits])
        world.refuse = lambda id: id == first
        world.memory.steps = kill
        killed = world.outlive(3, world.send, world.tick)
        world.memory.steps = None
        world.die()
        world.born()
        world.hold([])
        for _ in range(4):
            world.send()
            world.tick()
            world.wait(RETAIN_SECONDS)
        dropped = dict(+world.keeper.books.totals())
        self.assertEqual((dropped, world.store.folded, world.spool.batches), ({"refused": 20}, 30, 0), (kill, is_killed_before))
        return killed

    def test_what_is_refused_and_in_both_places_is_counted_once_wherever_a_kill_comes(self) -> None:
        for is_killed_before in (False, True):
            self.kills(lambda world, kill, before=is_killed_before: self._refused_in_both(world, kill, before))  # type: ignore[misc]

    def _lost_from_one_of_both(self, world: World, kill: int, rows: str) -> bool:
        """What a kill within a move left in both places the spool loses, and while a new Agent moves it there again it is killed.
        Whether the kill came."""
        for _ in range(2):
            world.record(50)
            world.tick()
        with mock.patch.object(world.keeper, "_release_to", side_effect=Killed), self.assertRaises(Killed):
            world.move()
        world.die()
        with contextlib.closing(sqlite3.connect(world.spool.path)) as database, database:
            database.execute(f"DELETE FROM batches WHERE {rows}")
        world.memory.steps = None
        world.born()
        self.assertIn("went with the spool", f"{world.spool.problem}")
        world.memory.steps = kill
        killed = world.outlive(3, world.move, world.tick)
        world.memory.steps = None
        world.die()
        world.born()
        for _ in range(8):
            world.tick()
            world.send()
        books = world.keeper.books
        self.assertEqual((books.recorded, +books.totals(), world.store.folded), (100, {}, 100), (kill, rows))
        self.assertEqual((world.spool.lost, world.spool.salvage), ({}, ""))
        return killed

    def test_what_the_spool_lost_and_the_outbox_has_is_folded_wherever_a_kill_comes(self) -> None:
        self.kills(lambda world, kill: self._lost_from_one_of_both(world, kill, "TRUE"))
        self.kills(lambda world, kill: self._lost_from_one_of_both(world, kill, "number = 1"), 1)

    def _damaged_within_a_move(self, damage: str, is_mended: bool, is_recovered: bool, is_to_end: bool) -> World:
        """Of what moves two batches are in the spool, and damaged there."""
        world = self.world()
        for _ in range(2):
            world.record(50)
            world.tick()
        with mock.patch.object(keeper, "MOVE_BATCHES", 2):
            world.keeper._move_some(world.now, at(world.now))
        self.assertEqual((world.spool.batches, world.keeper.outbox.released), (2, 0))
        if is_recovered:
            world.die()
            world.born()
        with contextlib.closing(sqlite3.connect(world.spool.path)) as database, database:
            database.execute(damage)
        if is_mended:
            self.assertTrue(world.keeper.backlog.heal(sqlite3.DatabaseError("database disk image is malformed")))
        if is_to_end:
            world.move()
        world.send()
        world.die()
        world.born()
        for _ in range(8):
            world.now += 10.0
            world.tick()
            world.send()
        return world

    def test_what_the_disk_takes_within_a_move_is_taken_from_the_outbox_that_has_it_still(self) -> None:
        torn, gone = "UPDATE batches SET content = zeroblob(length)", "DELETE FROM batches"
        for damage, is_recovered in itertools.product((torn, gone), (False, True)):
            for is_mended, is_to_end in ((False, False), (True, False), (True, True)):
                with self.subTest(damage=damage, is_recovered=is_recovered, is_mended=is_mended, is_to_end=is_to_end):
                    world = self._damaged_within_a_move(damage, is_mended, is_recovered, is_to_end)
                    books = world.keeper.books
                    self.assertEqual((books.recorded, +books.totals(), world.store.folded), (100, {}, 100))
                    self.assertEqual((world.spool.lost, world.spool.salvage, world.spool.batches), ({}, "", 0))

    def _torn_and_sent_from_the_outbox(self, world: World, kill: int | None, is_applied: bool, is_to_end: bool) -> bool:
        """Of what moves the spool has a torn row; the outbox's bytes are sent, and no answer comes. Whether the kill came."""
        for _ in range(2):
            world.record(50)
            world.tick()
        with mock.patch.object(keeper, "MOVE_BATCHES", 2):
            world.keeper._move_some(world.now, at(world.now))
        with contextlib.closing(sqlite3.connect(world.spool.path)) as database, database:
            database.execute("UPDATE batches SET content = zeroblob(length) WHERE number = 1")

        def send_unheard() -> None:
            for _ in range(3):  # streams are opened first, and that is answered
                for parcel in world.dispatch.parcels(world.now, at(world.now)):
                    is_of_batches = any(send.batch is not None for send in parcel.sends)
                    verdicts = [world._verdict(send) for send in parcel.sends if is_applied or not is_of_batches]
                    if is_of_batches:
                        world.dispatch.failed(parcel, "no answer", False, world.now)
                    else:
                        world.dispatch.answered(parcel, verdicts, world.now)
            world.now += 5.0

        world.memory.steps = kill
        killed = world.outlive(1, send_unheard)
        killed |= world.outlive(2, *([world.move] if is_to_end else []), send_unheard, world.tick)
        world.memory.steps = None
        if not killed:
            world.die()
            world.born()
        for _ in range(14):  # what is acknowledged is retained for a minute
            world.now += 10.0
            world.tick()
            world.send()
        counted = world.keeper.books.totals()["spool_corrupt"]
        books = world.keeper.books.recorded, world.store.folded + counted, +world.keeper.books.totals() - Counter(spool_corrupt=counted)
        self.assertEqual((books, world.spool.batches, world.spool.lost), ((100, 100, Counter()), 0, {}), (kill, is_applied, is_to_end))
        return killed

    def test_a_torn_row_that_was_sent_from_the_outbox_is_folded_or_counted_wherever_a_kill_comes(self) -> None:
        for is_applied, is_to_end in itertools.product((True, False), (True, False)):
            self.kills(partial(self._torn_and_sent_from_the_outbox, is_applied=is_applied, is_to_end=is_to_end), 1)

    def test_what_is_damaged_in_both_places_is_counted(self) -> None:
        with mock.patch.object(groups, "checksum", lambda content: -1):
            world = self._damaged_within_a_move("DELETE FROM batches", True, False, False)
        dropped = world.keeper.books.totals()["spool_corrupt"]
        self.assertEqual((dropped > 0, world.store.folded + dropped), (True, 100))

    def test_what_something_wrote_over_in_the_outbox_is_counted_and_not_folded_wherever_it_is_sent_from(self) -> None:
        for has_moved, is_restarted, is_of_index in itertools.product((False, True), repeat=3):
            with self.subTest(has_moved=has_moved, is_restarted=is_restarted, is_of_index=is_of_index):
                world = self.world()
                for _ in range(2):
                    world.record(50)
                    world.tick()
                group = next(world.keeper.outbox.groups())
                spoilt = group.batches[-1]
                world.keeper.outbox._write(spoilt.position + spoilt.length - 8, struct.pack("<d", 1e9))  # a value: it decodes as before
                if is_of_index and not is_restarted:
                    world.keeper.outbox._write(group.start, bytes(4))
                if has_moved:
                    world.move()
                if is_restarted:
                    world.die()
                    world.born()
                for _ in range(8):
                    world.now += 10.0
                    world.tick()
                    world.send()
                reason = "spool_corrupt" if has_moved else "outbox_corrupt"
                self.assertEqual(+world.keeper.books.totals(), {reason: spoilt.events})
                self.assertEqual((world.store.folded, world.keeper.books.recorded), (100 - spoilt.events, 100))

    def test_what_was_retained_for_its_time_is_forgotten_and_the_spool_empties(self) -> None:
        world = self.world()
        while not world.keeper.moves:
            world.record(2000)
            world.tick()
        for _ in range(int(3 * RETAIN_SECONDS)):
            world.tick()
            world.send()
        self.assertEqual((world.store.folded, world.spool.batches, world.keeper.outbox.used), (world.recorded, 0, 0))
        self.assertEqual(world.keeper.books.retained_bytes, 0)
        others = [lane for lane in world.keeper.lanes.values() if lane.stream != world.keeper.stream]
        self.assertEqual(others, [])

    def test_retained_batches_stay_within_their_bound(self) -> None:
        world = self.world()
        self.patch(books, "MAX_RETAINED_BYTES", 20_000)
        for _ in range(20):
            world.record(200)
            world.tick()
            world.send()
            world.keeper.tick(world.now, at(world.now))
            self.assertLessEqual(world.keeper.books.retained_bytes, 20_000)
        self.assertGreater(world.keeper.books.given_up, 0)
        self.assertEqual(world.store.folded, world.recorded)

    def test_with_one_more_retained_than_may_be_what_waits_before_it_moves_to_the_spool(self) -> None:
        most, world = 20, self.world()
        self.patch(books, "MAX_RETAINED_BATCHES", most)
        waits = BatchId(world.keeper.stream, 1, 1)
        ids = [waits, *(BatchId(world.keeper.stream, 2, number) for number in range(1, most + 2))]
        for id in ids:
            if id == ids[-1]:
                self.assertEqual((world.keeper.books.retained_batches, world.keeper.moves, world.spool.batches), (most, 0, 0))
            batch = EncodedBatch(id, at(world.now), 1, encode_batch(*id, [COLUMN]))
            world.keeper.publish([batch], world.now, recorded=1)
            world.hold([waits])
            world.send()
            world.keeper.tick(world.now, at(world.now))
        self.assertEqual((world.keeper.moves, world.spool.batches, world.keeper.holds_any), (1, 1, False))
        self.assertEqual((world.keeper.books.retained_batches, world.keeper.books.given_up), (0, most + 1))
        world.hold([])
        for _ in range(4):
            world.tick()
            world.send()
        self.assertEqual((world.store.folded, world.keeper.books.totals()), (len(ids), {}))

    def test_what_came_while_a_move_went_on_is_retained_within_the_bound_once_the_last_that_waited_is_in_the_spool(self) -> None:
        most, world = 3, self.world()
        self.patch(books, "MAX_RETAINED_BATCHES", most)
        self.patch(keeper, "MOVE_BATCHES", 1)

        def publish(id: BatchId) -> None:
            world.keeper.publish([EncodedBatch(id, at(world.now), 1, encode_batch(*id, [COLUMN]))], world.now, recorded=1)

        first = world.keeper.stream
        waiting = [BatchId(first, 1, 1), BatchId(first, 1, 2)]
        world.hold(waiting)
        for id in (*waiting, *(BatchId(first, 2, number) for number in range(1, most + 2))):
            publish(id)
            world.send()
        world.keeper.tick(world.now, at(world.now))
        self.assertEqual((world.keeper.moves, world.spool.batches, world.keeper.groups.is_stuck), (1, 1, True))
        for number in range(1, 2 * most + 1):
            publish(BatchId(world.keeper.stream, 3, number))
            world.send()
        world.keeper.tick(world.now, at(world.now))
        self.assertEqual((world.spool.batches, world.keeper.books.retained_batches, world.keeper.moves), (2, most, 1))
        world.hold([])
        for _ in range(4):
            world.tick()
            world.send()
        self.assertEqual((world.store.folded, world.keeper.books.totals()), (2 + most + 1 + 2 * most, {}))

    def test_small_batches_move_to_the_spool_so_many_at_once(self) -> None:
        world = self.world()
        self.patch(keeper, "MOVE_BATCHES", 2)
        ids = [BatchId(world.keeper.stream, bucket, 1) for bucket in range(5)]
        world.keeper.publish([EncodedBatch(id, at(world.now), 1, encode_batch(*id, [COLUMN])) for id in ids], world.now, recorded=5)
        moved: list[int] = []
        while world.keeper._move_some(world.now, at(world.now)) and len(moved) < 9:
            moved.append(world.spool.batches)
            if not world.keeper.holds_any:
                break
        self.assertEqual(moved, [2, 4, 5])

    def _half_moved(self) -> World:
        """A group of which the outbox retains the first batch, the spool retains the second, of the same lane, and the third waits."""
        world = self.world()
        self.patch(keeper, "MOVE_BYTES", 1)
        stream = world.keeper.stream
        ids = [BatchId(stream, 1, 1), BatchId(stream, 1, 2), BatchId(stream, 2, 1)]
        batches = [EncodedBatch(id, at(world.now), 1, encode_batch(*id, [COLUMN])) for id in ids]
        world.keeper.publish(batches, world.now, recorded=3)
        world.hold(ids[1:])
        world.send()
        self.assertTrue(world.keeper._move_some(world.now, at(world.now)))
        world.hold(ids[2:])
        world.wait(2.0)
        for lane in world.keeper.schedule.wake(world.now):
            world.keeper.queue(lane, world.now)
        world.send()
        lane = world.keeper.lanes[ids[1][:2]]
        self.assertEqual([batch.group is None for batch in lane.retained], [False, True])
        self.assertEqual((world.keeper.unacknowledged, world.spool.batches), (1, 1))
        return world

    def test_what_the_spool_retains_behind_what_the_outbox_retains_of_its_lane_is_bounded_like_all_else(self) -> None:
        world = self._half_moved()
        self.patch(books, "MAX_RETAINED_BYTES", 0)
        world.keeper.tick(world.now, at(world.now))
        self.assertEqual((world.keeper.books.retained_batches, world.keeper.books.retained_bytes, world.keeper.books.given_up), (0, 0, 2))
        self.assertEqual(world.spool.batches, 1)  # what waited
        for _ in range(4):
            world.hold([])
            world.tick()
            world.send()
        self.assertEqual((world.store.folded, world.keeper.books.totals(), world.keeper.holds_any), (3, {}, False))

    def test_what_is_within_the_bound_is_retained_there(self) -> None:
        world = self._half_moved()
        world.keeper._bound_retained()
        self.assertEqual((world.keeper.books.retained_batches, world.keeper.books.given_up), (2, 0))
        self.assertEqual(len(world.keeper.books.spool_retained), 1)  # and is bounded the next time

    def test_a_full_spool_gives_up_what_it_retains_behind_what_the_outbox_retains_before_it_says_that_it_is_full(self) -> None:
        world = self._half_moved()
        world.spool.bound = world.spool.used
        self.assertTrue(world.keeper._move_some(world.now, at(world.now)))
        self.assertEqual((world.keeper.books.given_up, world.spool.batches, world.keeper.holds_any), (2, 1, False))

    def test_what_was_brought_back_is_not_given_up_as_if_it_were_retained(self) -> None:
        world = self._half_moved()
        (lane,) = [lane for lane in world.keeper.lanes.values() if lane.bucket == 1]
        lane.probing = True
        lane.next(world.now, at(world.now))
        lane.applied(1, world.now)  # the store has the first alone
        self.assertEqual([batch.number for batch in lane.pending], [2])
        world.keeper.backlog.give_up()
        self.assertEqual((world.spool.batches, world.keeper.books.given_up, [batch.number for batch in lane.retained]), (1, 0, [1]))

    def test_beyond_the_spools_bound_the_newest_are_dropped_and_what_was_kept_is_sent(self) -> None:
        world = self.world(spool_bytes=1000)
        while not world.keeper.books.dropped["spool_full"]:
            world.record(2000)
            world.tick()
        dropped = world.keeper.books.dropped["spool_full"]
        self.assertEqual(world.keeper.books.recorded, world.recorded)
        for _ in range(10):
            world.tick()
            world.send()
        self.assertEqual(world.store.folded + dropped, world.recorded)


class DamagedTotalsTests(WorldCase):
    """The disk takes from the spool's file the table that went into it with batches for which the outbox had no room."""

    def _damage(self, world: World) -> None:
        with contextlib.closing(sqlite3.connect(world.spool.path)) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            (page,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'journal'").fetchone()
        with open(world.spool.path, "r+b") as file:
            file.seek((page - 1) * PAGE)
            file.write(b"\xa5" * PAGE)

    def _spooled(self, world: World, kill: int | None = None) -> bool:
        """20 events are in the outbox, which has no room for more, and 30 more come. Whether an Agent was killed by then."""
        world.record(20)
        world.tick()
        world.memory.pages = len(world.memory.had) * PAGE
        world.record(30)
        world.memory.steps = kill
        killed = world.outlive(3, world.tick)
        world.memory.steps = None
        self.assertEqual((world.keeper.holds_any, world.keeper.books.recorded), (False, 50), kill)
        return killed

    def test_the_outbox_has_them_wherever_a_kill_comes(self) -> None:
        def life(world: World, kill: int) -> bool:
            killed = self._spooled(world, kill)
            world.die()
            self._damage(world)
            world.born()
            for _ in range(8):
                world.tick()
                world.send()
            books = world.keeper.books
            self.assertEqual((books.recorded, +books.totals(), world.store.folded), (50, {}, 50), kill)
            return killed

        self.kills(life)

    def test_an_agent_that_finds_that_says_them_anew(self) -> None:
        world = self.world()
        self._spooled(world)
        world.keeper.is_homeless = True
        world.record(10)
        world.tick()
        self._damage(world)
        self.assertTrue(world.keeper.backlog.heal(sqlite3.DatabaseError("database disk image is malformed")))
        world.keeper.settle_totals()
        world.lose_outbox()
        self.assertEqual(world.keeper.books.recorded, 60)


class HomelessTests(WorldCase):
    """The outbox was removed, and there is no room for a new one: what is published there nobody would find."""

    def test_what_is_drained_meanwhile_goes_into_the_spool_at_once_and_outlives_the_agent_with_its_totals(self) -> None:
        world = self.world()
        for is_homeless in (False, True):
            world.keeper.is_homeless = is_homeless
            world.producers[0].record_many(world.producers[0].tab("a"), [1.0, 2.0])
            world.tick()
        self.assertEqual((world.keeper.unacknowledged, world.spool.batches), (0, 2))
        world.lose_outbox()
        self.assertEqual(world.keeper.books.recorded, 4)
        self.assertEqual(world.spool.batches, 2)

    def test_what_is_in_it_moves_a_piece_in_each_turn_beside_what_comes_and_is_counted_once_wherever_a_kill_comes(self) -> None:
        self.patch(keeper, "MOVE_BATCHES", 3)
        for turns in (None, 1, 3):
            world = self.world()
            for _ in range(6):
                world.record(40)
                world.tick()
            waiting = world.keeper.unacknowledged
            self.assertGreater(waiting, 15)
            gone = [False]

            def keep_name(mine: keeper.Keeper = world.keeper, gone: list[bool] = gone) -> None:
                mine.is_homeless = gone[0]

            world.keeper.before_publish = keep_name
            gone[0] = True
            moved = [0]
            while world.keeper.holds_any and len(moved) - 1 != turns:
                world.record(10)
                keep_name()
                if not world.keeper.spool_some(world.now, at(world.now)):
                    world.tick()
                moved.append(int(world.spool.batches))
            each = [after - before for before, after in itertools.pairwise(moved)]
            if turns is None:
                self.assertLessEqual(max(each[:-1]), 3, moved)
                self.assertLessEqual(each[-1], 3 + 3 + 5, moved)  # the rest, and what came meanwhile
                self.assertGreater(len(each), 4)
            lost = 0 if turns is None else sum(batch.events for group in Outbox(world.memory).groups() for batch in group.batches)
            kept = sum(events for (events,) in world.spool._database.execute("SELECT events FROM batches"))
            in_rings = sum(producer.head - producer.tail for producer in world.producers)
            world.lose_outbox()
            for _ in range(40):
                world.tick()
                world.send()
            self.assertEqual(world.store.folded, kept + in_rings)
            self.assertEqual(len(times := [value for values in world.store.events.values() for value in values]), len(set(times)))
            if turns is None:
                self.assertEqual((world.store.folded, +world.keeper.books.dropped), (world.recorded, {}))
            else:
                self.assertGreater(lost, 0)

    def _mended(self, world: World, kill: int | None, batches: bool) -> bool:
        """The spool is found damaged while what is fresh, or a table alone, goes into it. Whether the kill came."""
        for _ in range(12):
            world.record(50)
            world.tick()
        world.keeper.is_homeless = True
        world.record(10)
        world.tick()  # all is in the spool, with the totals
        world.spool._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with open(world.spool.path, "r+b") as file:
            file.seek(8 * PAGE)
            file.write(os.urandom(2 * PAGE))
        world.keeper.backlog.healed = -1e9
        damaged, real = [True], world.spool.add

        def add(batches: Any, journal: Any = None) -> None:
            if damaged:
                raise SpoolFull("the disk: database disk image is malformed", True, damaged.pop())
            real(batches, journal)

        world.spool.add = add  # type: ignore[method-assign]
        world.memory.steps, killed = kill, False
        try:
            if batches:
                world.record(10)
                world.tick()
            else:
                world.keeper.publish((), world.now, recorded=7, dropped={"spool_full": 7})
                world.recorded += 7
            self.assertEqual((bool(world.spool.lost), damaged), (True, []))
            world.keeper.settle_totals()
        except Killed:
            killed = True
        world.lose_outbox()
        for _ in range(60):
            world.tick()
            world.send()
            if not world.spool.batches and not world.spool.salvage:
                break
        totals = world.keeper.books.totals()
        self.assertGreater(totals["spool_corrupt"], 0)
        self.assertEqual((world.spool.batches, world.spool.salvage), (0, ""))
        self.assertEqual(world.store.folded + sum(totals.values()), world.keeper.books.recorded, (kill, totals))
        return killed

    def test_what_a_spool_lost_that_is_mended_within_a_publish_is_counted_once_wherever_a_kill_comes(self) -> None:
        self._mended(self.world(), None, False)
        self.kills(lambda world, kill: self._mended(world, kill, True))
