"""A spool that is damaged, or that the disk cannot read, write or empty: what it held is folded or counted once."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import Any

from taba.agent import books
from taba.agent.lanes import MAX_RUN_BATCHES
from taba.agent.outbox import PAGE
from taba.agent.problems import Problems, Space
from taba.agent.spooled import checksum
from taba.batch import BatchId
from taba.bounds import DAY
from tests.agent.moments import at
from tests.agent.world import BUCKETS, World, WorldCase


class DamageTests(WorldCase):
    def _give_up(self, world: World, kill: int, reason: str) -> bool:
        """Of four batches in the spool two are given up for this reason, and a kill comes. Whether it did."""
        producer = world.producers[0]
        for value in range(4):
            producer.record(producer.tab("bids_won"), float(value))
            world.tick()
        world.move()
        numbers = (2, 3) if reason == "spool_corrupt" else (1, 2)  # what is too old comes first
        with sqlite3.connect(world.spool.path) as other:
            change = {"spool_corrupt": "content = x'00' || content", "too_old": "created = -1e7"}[reason]
            other.execute(f"UPDATE batches SET {change} WHERE number IN {numbers}")
            if reason == "too_old":  # as one that was written so
                for *id, created, boot, age, events, key, content in other.execute(
                    f"SELECT stream, bucket, number, created, boot, age, events, key, content FROM batches WHERE number IN {numbers}"
                ).fetchall():
                    crc = checksum(BatchId(*id), (created, boot, age), events, key, content)
                    other.execute("UPDATE batches SET crc = ? WHERE stream = ? AND bucket = ? AND number = ?", (crc, *id))
        other.close()
        world.memory.steps = kill
        killed = world.outlive(8, world.send, world.tick, lambda: world.wait(10.0))
        world.memory.steps = None
        for _ in range(4):
            world.send()
            world.tick()
        self.assertEqual(world.store.events["web/0", "bids_won"], [number - 1.0 for number in range(1, 5) if number not in numbers], kill)
        books = world.keeper.books
        self.assertEqual((dict(books.totals()), books.recorded, books.lost_batches), ({reason: 2}, 4, 0), kill)
        return killed

    def test_what_is_too_old_and_what_is_torn_is_counted_once_wherever_a_kill_comes(self) -> None:
        for reason in ("spool_corrupt", "too_old"):
            self.kills(lambda world, kill, why=reason: self._give_up(world, kill, why))  # type: ignore[misc]

    def test_what_cannot_be_read_of_a_damaged_spool_is_counted_once_and_the_rest_is_folded(self) -> None:
        world = self.world()
        for _ in range(40):
            world.record(50)
            world.tick()
        world.move()
        world.die()
        path = os.path.join(world.directory, "spool")
        with open(path, "r+b") as file:
            file.seek(10 * PAGE)
            file.write(os.urandom(2 * PAGE))
        world.born()
        counted = sum(world.spool.lost.values())
        self.assertTrue(0 < counted < 1000, world.spool.problem)
        for _ in range(2):
            for _ in range(20):
                world.tick()
                world.send()
            self.assertEqual((dict(world.keeper.books.totals()), world.keeper.books.recorded), ({"spool_corrupt": counted}, world.recorded))
            self.assertEqual(world.store.folded, world.recorded - counted)
            world.die()
            world.born()

    def _out_of_bounds(self, world: World) -> None:
        """Each event of a spool, in which a bucket is none, is folded or counted."""
        for _ in range(4):
            world.tick()
            world.send()
        lost = sum(world.keeper.books.totals().values())
        self.assertEqual((world.store.folded + lost, lost < 50), (world.recorded, True))

    def _spoil_index(self, world: World, stream: bytes, entry: int, behind: int, bits: int) -> None:
        """Turn these bits of one byte around in the index of a spool: `behind` the beginning of what that entry says of its stream."""
        with sqlite3.connect(world.spool.path) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            [(root,)] = other.execute("SELECT rootpage FROM sqlite_master WHERE name = 'identity'")
        other.close()
        with open(world.spool.path, "r+b") as file:
            file.seek((root - 1) * PAGE)
            page = bytearray(file.read(PAGE))
            place = -1
            for _ in range(entry + 1):
                place = page.index(stream, place + 1)
            page[place + behind] ^= bits
            file.seek((root - 1) * PAGE)
            file.write(page)

    def _dead(self, drains: int) -> tuple[World, bytes]:
        """A world whose Agent died with so many drains in its spool, and the first of their streams."""
        world = self.world()
        for _ in range(drains):
            world.record(50)
            world.tick()
        world.move()
        key = world.spool.next_lane(None)
        assert key is not None
        world.die()
        return world, key[0]

    def test_a_running_agent_mends_a_file_of_which_what_sqlite_says_is_no_text(self) -> None:
        world = self.world()
        for _ in range(2):
            world.record(50)
            world.tick()
        world.move()
        self.assertTrue(world.spool.batches)
        with contextlib.closing(sqlite3.connect(world.spool.path, isolation_level=None)) as other:
            other.execute("PRAGMA writable_schema=ON")
            other.execute("UPDATE sqlite_master SET sql = CAST(x'435245415445cccd' AS TEXT) WHERE name = 'aside'")
            [(version,)] = other.execute("PRAGMA schema_version")
            other.execute(f"PRAGMA schema_version={version + 1}")  # it is read again
        for _ in range(8):
            world.now += 10.0
            world.tick()
            world.send()
        lost = world.keeper.books.totals()["spool_corrupt"]
        self.assertEqual((world.store.folded + lost, world.keeper.books.recorded), (100, 100))
        self.assertIn("was damaged", str(world.spool.problem))

    def test_where_the_index_says_something_else_than_its_rows_these_are_right_and_nothing_is_lost_or_doubled(self) -> None:
        for behind, bits in ((3, 0x10), (17, 0x02), (18, 0x01)):  # the stream, the bucket, the number
            world, stream = self._dead(3)
            self._spoil_index(world, stream, 1, behind, bits)
            world.born()
            self.assertEqual(world.spool.lost, {})
            for _ in range(2):
                for _ in range(6):
                    world.tick()
                    world.send()
                self.assertEqual((world.store.folded, dict(world.keeper.books.totals())), (150, {}), (behind, world.spool.problem))
                world.die()
                world.born()

    def test_a_bucket_in_the_index_that_is_none_keeps_no_agent_from_its_start(self) -> None:
        for spoilt in range(3):
            world, stream = self._dead(1)
            self._spoil_index(world, stream, spoilt, len(stream), 0x80)
            world.born()
            self._out_of_bounds(world)

    def test_nor_one_that_turns_out_to_be_none_from_its_work(self) -> None:
        for bucket in (-123, 1 << 40):
            world = self.world()
            world.record(50)
            world.tick()
            world.move()
            world.tick()
            world.die()
            world.born()
            lane = next(iter(world.keeper.lanes.values()))
            world.keeper.lanes.clear()
            for queue in (world.keeper.schedule.fresh, world.keeper.schedule.backlog):
                queue.clear()
            change = "UPDATE batches SET bucket = ? WHERE stream = ? AND bucket = ?"
            world.spool._database.execute(change, (bucket, lane.stream, lane.bucket))
            self._out_of_bounds(world)

    def test_a_spool_that_is_damaged_while_it_is_open_is_mended_and_no_lane_waits_for_a_restart(self) -> None:
        for what in ("read", "add"):
            world = self.world()
            for _ in range(40):
                world.record(50)
                world.tick()
            world.move()
            for _ in range(3):
                world.tick()  # its lanes are taken up
            world.spool._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            path = os.path.join(world.directory, "spool")
            with open(path, "r+b") as file:
                file.seek(10 * PAGE)
                file.write(os.urandom(2 * PAGE))
            world.spool._database.execute("PRAGMA cache_size=0")
            world.spool._database.execute("PRAGMA shrink_memory")
            if what == "add":
                world.record(50)
                world.tick()
                world.move()
            for _ in range(60):
                world.now += 2.0
                world.tick()
                world.send()
            counted = world.keeper.books.totals()["spool_corrupt"]
            self.assertTrue(0 < counted < 1000, (what, counted, world.keeper.books.spool_problem))
            self.assertEqual(
                (world.store.folded, dict(world.keeper.books.totals())), (world.recorded - counted, {"spool_corrupt": counted}), what
            )
            self.assertEqual((world.keeper.books.recorded, world.keeper.backlog.stuck), (world.recorded, []))
            self.assertIn("was damaged", str(world.spool.problem))
            for _ in range(2):
                world.die()
                world.born()
                for _ in range(4):
                    world.tick()
                    world.send()
                self.assertEqual(world.keeper.books.totals()["spool_corrupt"], counted)

    def _salvage(self, world: World, kill: int) -> bool:
        """A spool is damaged between two Agents, of which the second is killed. Whether the kill came."""
        for _ in range(20):
            world.record(50)
            world.tick()
        world.move()
        world.die()
        with open(os.path.join(world.directory, "spool"), "r+b") as file:
            file.seek(8 * PAGE)
            file.write(os.urandom(2 * PAGE))
        world.born()
        lost = sum(world.spool.lost.values())
        self.assertGreater(lost, 0)
        world.memory.steps = kill
        killed = world.outlive(6, world.tick, world.send)
        self.assertEqual((dict(world.keeper.books.totals()), world.spool.salvage), ({"spool_corrupt": lost}, ""), kill)
        return killed

    def test_what_a_salvage_could_not_read_is_counted_once_wherever_a_kill_comes_before_its_count_is_published(self) -> None:
        self.kills(self._salvage)

    def _unreadable(self, failures: list[sqlite3.Error | bytes | None]) -> World:
        """Batches in the spool, of which the first read of one gives these, one after the other."""
        world = self.world()
        producer = world.producers[0]
        for value in range(3):
            producer.record(producer.tab("bids_won"), float(value))
            world.recorded += 1
            world.tick()
        world.move()
        read = world.spool.read

        def reads(id: BatchId) -> bytes | None:
            if id.number == 2 and failures:
                found = failures.pop(0)
                if isinstance(found, sqlite3.Error):
                    raise found
                return found
            return read(id)

        world.spool.read = reads  # type: ignore[method-assign]
        return world

    def test_a_row_that_the_disk_cannot_read_for_a_while_stays_where_it_is_and_is_sent_when_it_can(self) -> None:
        for error in ("disk I/O error", "database is locked", "unable to open database file"):
            # it is tried at the end of a run, and at the beginning of the next ones
            world = self._unreadable([sqlite3.OperationalError(error) for _ in range(5)])
            problems = Problems(world.keeper, world.pump, world.dispatch, world.shm, lambda: Space(0, 0), world.now)
            told: set[str] = set()
            for _ in range(30):
                world.tick()
                world.send()
                told |= problems.look(world.now, {}).keys()
                self.assertEqual(world.keeper.books.totals(), {})
                if world.keeper.books.unreadable:
                    self.assertEqual(world.store.events["web/0", "bids_won"], [0.0])
                    sentence = problems.found["spool unreadable"]
                    self.assertIn(f"1 batch in the spool {world.spool.path} cannot be read now ({error})", sentence)
            self.assertEqual(world.store.events["web/0", "bids_won"], [0.0, 1.0, 2.0])
            self.assertEqual((told, world.keeper.books.unreadable, problems.found), ({"spool unreadable"}, {}, {}))

    def test_a_damaged_row_that_cannot_be_mended_yet_is_not_dropped_either(self) -> None:
        damage = [sqlite3.DatabaseError("database disk image is malformed") for _ in range(4)]
        world = self._unreadable([*damage])
        world.keeper.backlog.healed = 0.0  # it was tried just now
        for _ in range(30):
            world.tick()
            world.send()
        self.assertEqual((world.store.events["web/0", "bids_won"], world.keeper.books.totals()), ([0.0, 1.0, 2.0], {}))

    def test_a_row_with_bad_bytes_is_dropped_counted_and_kept_to_be_looked_at(self) -> None:
        world = self._unreadable([])
        with sqlite3.connect(world.spool.path) as other:
            other.execute("UPDATE batches SET content = x'0011' || content WHERE number = 2")
        other.close()
        for _ in range(6):
            world.tick()
            world.send()
        self.assertEqual((world.store.events["web/0", "bids_won"], world.keeper.books.totals()), ([0.0, 2.0], {"spool_corrupt": 1}))
        ((_, number, _, content),) = world.spool.aside()
        self.assertEqual((number, content[:2]), (2, b"\0\x11"))

    def test_what_a_mended_spool_lost_is_brought_back_where_it_is_under_way_and_counted_once_no_store_has_it_where_it_waits(self) -> None:
        for is_under_way in (True, False):
            world = self._unreadable([])
            world.tick()  # the lane is taken up
            parcels = []
            if is_under_way:
                (opening,) = world.dispatch.parcels(world.now, at(world.now))
                world.dispatch.answered(opening, [world._verdict(send) for send in opening.sends], world.now)
                parcels = world.dispatch.parcels(world.now, at(world.now))
                self.assertEqual([send.number for parcel in parcels for send in parcel.sends], [1, 2, 3])
            with sqlite3.connect(world.spool.path) as other:
                other.execute("UPDATE batches SET crc = crc + 1 WHERE number > 1")
            other.close()
            self.assertTrue(world.keeper.backlog.heal(sqlite3.DatabaseError("malformed")))
            lost = 0 if is_under_way else 2
            self.assertEqual((world.keeper.books.totals()["spool_corrupt"], sum(world.spool.lost.values())), (0, lost))
            world.keeper.settle_totals()
            for parcel in parcels:
                world.dispatch.failed(parcel, "no answer in time", False, world.now)
            world.die()  # nobody knows but what is on disk
            world.born()
            for _ in range(8):
                world.now += 10.0
                world.tick()
                world.send()
            self.assertEqual(world.store.events["web/0", "bids_won"], [0.0, 1.0, 2.0] if is_under_way else [0.0])
            self.assertEqual((+world.keeper.books.totals(), world.keeper.books.lost_batches), ({"spool_corrupt": 2} if lost else {}, 0))

    def test_what_could_not_be_read_is_no_problem_once_it_turns_out_to_be_applied_or_is_counted_as_lost(self) -> None:
        for is_lost in (False, True):
            world = self._unreadable([sqlite3.OperationalError("disk I/O error") for _ in range(1000)])
            for _ in range(3):
                world.tick()
                world.send()
            ((stream, bucket, number),) = world.keeper.books.unreadable
            if is_lost:
                with sqlite3.connect(world.spool.path) as other:
                    other.execute("UPDATE batches SET crc = crc + 1 WHERE number = ?", (number,))
                other.close()
                self.assertTrue(world.keeper.backlog.heal(sqlite3.DatabaseError("malformed")))
                world.now += 10.0  # the disk had a bad moment
                for _ in range(3):
                    world.tick()
                    world.send()
                self.assertEqual(world.keeper.books.totals(), {"spool_corrupt": 1})
            else:
                world.store.set_mark(stream, bucket, number)  # it was sent before, and no answer came
                lane = world.keeper.lanes[stream, bucket]
                lane.nonce = None  # it is opened anew when it is tried again, and that tells the mark
                while lane.nonce is None:
                    world.tick()
                    world.send()
                    self.assertLess(world.now, 1000.0)
            self.assertEqual(world.keeper.books.unreadable, {}, is_lost)
            problems = Problems(world.keeper, world.pump, world.dispatch, world.shm, lambda: Space(0, 0), world.now)
            self.assertNotIn("spool unreadable", problems.look(world.now, {}))

    def test_what_can_never_be_read_is_too_old_one_day_and_counted(self) -> None:
        world = self._unreadable([sqlite3.OperationalError("disk I/O error") for _ in range(1000)])
        for _ in range(3):
            world.tick()
            world.send()
        self.assertEqual(len(world.keeper.books.unreadable), 1)
        world.now += 8 * DAY
        for _ in range(6):
            world.tick()
            world.send()
        self.assertEqual((world.keeper.books.totals(), world.keeper.books.unreadable), ({"too_old": 2}, {}))

    def test_where_the_disk_removes_nothing_so_many_of_the_spool_are_dropped_and_the_fresh_ones_go_on(self) -> None:
        self.patch(books, "MAX_SETTLING", 8)
        world = self.world()
        for _ in range(60):
            world.record(10)
            world.tick()
        world.move()
        old = world.keeper.stream

        def fails(ids: Any) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        world.spool.discard = fails  # type: ignore[method-assign]
        world.refuse = lambda id: id.stream != world.keeper.stream
        for _ in range(20):
            world.record(10)
            world.tick()
            world.send()
            self.assertLessEqual(len(world.keeper.books.settling), 8 + MAX_RUN_BATCHES * BUCKETS)
        self.assertEqual(world.keeper.stream, old)
        self.assertTrue(world.keeper.books.holds_backlog)
        self.assertIn("disk I/O error", str(world.keeper.books.spool_problem))
        self.assertEqual(world.store.folded, 200)
        del world.spool.discard
        world.refuse = lambda id: False
        before = world.keeper.books.totals()["refused"]
        for _ in range(20):
            world.tick()
            world.send()
        self.assertEqual((world.store.folded, world.keeper.books.totals()["refused"]), (world.recorded - before, before))

    def test_what_is_folded_and_the_disk_does_not_let_go_of_is_not_sent_again_and_its_streams_end_once_it_does(self) -> None:
        world = self.world()
        for _ in range(4):
            world.record(10)
            world.tick()
        world.move()

        def fails(last: Any) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        world.spool.forget = fails  # type: ignore[method-assign]
        for _ in range(12):
            world.tick()
            world.send()
            world.now += 10.0  # beyond the time for which they are retained
        self.assertEqual((world.store.folded, world.spool.batches > 0), (40, True))
        self.assertTrue(world.keeper.books.to_forget)
        del world.spool.forget
        for _ in range(12):
            world.tick()
            world.send()
            world.now += 10.0
        self.assertEqual((world.store.folded, world.spool.batches), (40, 0))
        self.assertEqual({lane.stream for lane in world.keeper.lanes.values()} - {world.keeper.stream}, set())
