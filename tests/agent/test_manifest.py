"""What is in the spool is told beside it: what goes with a cut or removed file is counted once, and nothing that went on purpose."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from taba.agent import backlog, books
from taba.agent import manifest as manifests
from taba.agent.home import CannotOpen, Home
from taba.agent.manifest import Manifest
from taba.agent.outbox import DEFAULT_OUTBOX_BYTES, EncodedBatch, OutboxFull
from taba.agent.spool import DEFAULT_SPOOL_BYTES, Spool
from taba.batch import GAP, OPEN, BatchId, Entry, Header, Verdict, decode_batch
from tests.agent.moments import at
from tests.agent.outboxes import Killed
from tests.agent.world import AGENT, World, WorldCase

S, T = b"s" * 16, b"t" * 16
BESIDE = ("", "-wal", "-shm")
# of `filled`
LEFT = {**{BatchId(S, 3, number): 10 for number in (3, 4, 6)}, **{BatchId(T, 3, number): 10 for number in (1, 2, 9)}}


def spooled(number: int, stream: bytes = S, events: int = 10) -> EncodedBatch:
    return EncodedBatch(BatchId(stream, 3, number), at(1.0), events, b"content", b"")


def remove(path: str) -> None:
    for beside in BESIDE:
        if os.path.exists(path + beside):
            os.unlink(path + beside)


def empty(path: str) -> None:
    remove(path)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))


def halved(path: str) -> None:
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    os.truncate(path, os.path.getsize(path) // 2)


class ManifestTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.mkdtemp(dir="/dev/shm")  # no disk is waited for
        self.addCleanup(shutil.rmtree, directory)
        self.path = os.path.join(directory, "a.spool")
        self.list = self.path + ".list"

    def open(self) -> Spool:
        spool = Spool(self.path)
        self.addCleanup(spool.close)
        return spool

    def lose(self, table: str, *numbers: int) -> Spool:
        """Damage that takes rows of this table, and the Agent that is started then."""
        with sqlite3.connect(self.path) as database:
            database.executemany(f"DELETE FROM {table} WHERE number = ?", ((number,) for number in numbers))
        database.close()
        return self.open()

    def test_what_is_lost_and_not_yet_counted_is_lost_also_where_what_named_it_goes_with_the_next_damage(self) -> None:
        for kept in ((1, 2, 3), (1, 2)):  # also where nothing else is left
            self.path += f"{len(kept)}"
            spool = self.open()
            spool.add([spooled(number) for number in kept])
            spool.close()
            lost = {BatchId(S, 3, number): 10 for number in (1, 2)}
            for table in ("batches", "lost", "lost"):
                spool = self.lose(table, 1, 2)
                self.assertEqual(spool.lost, lost)
                spool.close()
            spool = self.open()
            spool.found([BatchId(S, 3, 1)])
            del lost[BatchId(S, 3, 1)]
            spool.close()
            spool = self.lose("lost", 2)
            self.assertEqual(spool.lost, lost)
            spool.counted()
            spool.close()
            spool = self.open()
            self.assertEqual((spool.lost, spool.batches), ({}, len(kept) - 2))
            spool.close()

    def test_whatever_a_row_says_that_names_what_is_lost_it_is_told_as_it_was(self) -> None:
        spool = self.open()
        spool.add([spooled(number) for number in (1, 2, 3)])
        spool.close()
        lost = {BatchId(S, 3, number): 10 for number in (1, 2)}
        self.lose("batches", 1, 2).close()
        for change in ("events = events + 65536", "number = number + 64", "bucket = 2", f"stream = x'{T.hex()}'", "id = id + 1"):
            with sqlite3.connect(self.path) as database:
                self.assertEqual(database.execute(f"UPDATE lost SET {change} WHERE number = 2").rowcount, 1)
            database.close()
            spool = self.open()
            self.assertEqual((spool.lost, spool.batches), (lost, 1), change)
            self.assertIn("a row of what it lost is not what was written", str(spool.problem))
            spool.close()
        with sqlite3.connect(self.path) as database:  # as an Agent of before numbered them, which had no checksum of them
            rows = database.execute("SELECT salvage, stream, bucket, number, events FROM lost").fetchall()
            database.execute("DELETE FROM lost")
            database.executemany("INSERT INTO lost VALUES (NULL, ?, ?, ?, ?, ?)", rows)
        database.close()
        spool = self.open()
        self.assertEqual((spool.lost, spool.problem), (lost, None))

    def test_what_is_counted_is_so_whatever_becomes_of_the_row_that_names_it_meanwhile(self) -> None:
        spool = self.open()
        spool.add([spooled(number) for number in (1, 2, 3)])
        spool.close()
        spool = self.lose("batches", 1, 2)
        with sqlite3.connect(self.path) as database:
            database.execute("UPDATE lost SET number = 66 WHERE number = 2")
        database.close()
        spool.counted()
        spool.close()
        spool = self.open()
        self.assertEqual((spool.lost, spool.batches), ({}, 1))

    def filled(self) -> Spool:
        """A spool to which batches came, and of which some went in each way."""
        spool = self.open()
        spool.add([spooled(number) for number in range(1, 7)])
        spool.add([spooled(1, T), spooled(2, T)], (b"o" * 16, b"table"))
        spool.forget([BatchId(S, 3, 2)])
        spool.discard([BatchId(S, 3, 5)])
        spool.restore([spooled(9, T)])
        return spool

    def test_what_was_in_a_file_that_is_gone_is_lost_by_name_and_once(self) -> None:
        for damage in (remove, empty):
            self.filled().close()
            damage(self.path)
            spool = self.open()
            self.assertEqual(spool.lost, LEFT)
            self.assertIn("6 batches with 60 events went with the spool", str(spool.problem))
            salvage = spool.salvage
            spool.close()
            spool = self.open()  # an Agent that was killed before it had counted them
            self.assertEqual((spool.lost, spool.salvage), (LEFT, salvage))
            spool.counted()
            spool.close()
            spool = self.open()
            self.assertEqual((spool.lost, spool.salvage, spool.problem), ({}, "", None))
            self.assertFalse(os.path.exists(self.list))

    def test_what_is_missing_is_so_at_the_next_start_too_where_a_kill_or_the_disk_kept_it_from_being_written(self) -> None:
        for step, fault in (("_transaction", Killed()), ("_name_manifest", sqlite3.OperationalError("database or disk is full"))):
            self.filled().close()
            remove(self.path)
            with mock.patch.object(Spool, step, side_effect=fault):
                if isinstance(fault, Killed):
                    self.assertRaises(Killed, Spool, self.path)
                else:
                    spool = self.open()
                    self.assertEqual((spool.lost, spool.problem, spool.unready), ({}, None, "database or disk is full"))
                    self.assertRaises(sqlite3.OperationalError, spool.try_to_write)
                    spool.close()
            spool = self.open()
            self.assertEqual((spool.lost, str(spool.problem).count("6 batches with 60 events")), (LEFT, 1))
            spool.counted()
            spool.close()

    def test_nothing_is_lost_of_a_whole_file_however_often_it_is_opened(self) -> None:
        self.filled().close()
        for _ in range(2):
            spool = self.open()
            self.assertEqual((spool.lost, spool.problem, spool.batches), ({}, None, 6))
            spool.add([spooled(20, T)])
            spool.discard([BatchId(T, 3, 20)])
            spool.close()
        spool = self.open()
        spool.forget([BatchId(S, 3, 6), BatchId(T, 3, 9)])
        self.assertFalse(os.path.exists(self.list))
        spool.add([spooled(7)])
        spool.close()
        remove(self.path)
        self.assertEqual(self.open().lost, {BatchId(S, 3, 7): 10})

    def test_one_that_is_not_the_files_own_or_is_torn_or_cut_off_is_not_believed(self) -> None:
        def torn() -> None:
            with open(self.list, "r+b") as file:
                file.seek(-60, os.SEEK_END)
                byte = file.read(1)
                file.seek(-60, os.SEEK_END)
                file.write(bytes([byte[0] ^ 1]))

        def beheaded() -> None:
            with open(self.list, "r+b") as file:
                file.write(b"\0" * 20)

        def gone() -> None:
            os.unlink(self.list)

        def older() -> None:
            with sqlite3.connect(self.path) as database:  # as an Agent does that knows of none, before it sends all
                database.execute("INSERT OR REPLACE INTO journal VALUES (1, x'', x'')")
                database.execute("DELETE FROM batches WHERE number < 9")
            database.close()

        def cut_off() -> None:
            os.truncate(self.list, 44 * 5)
            with sqlite3.connect(self.path) as database:
                database.execute("DELETE FROM batches WHERE number = 3")
            database.close()

        damages: list[Callable[[], None]] = [torn, beheaded, gone, older, cut_off]
        for damage in damages:
            self.filled().close()
            damage()
            if damage not in (older, cut_off):
                remove(self.path)
            spool = self.open()
            self.assertEqual((spool.lost, spool.problem), ({}, None), damage)
            spool.close()
            remove(self.path)
            if os.path.exists(self.list):
                os.unlink(self.list)

    def test_a_part_of_a_record_is_what_a_kill_leaves(self) -> None:
        self.filled().close()
        with open(self.list, "ab") as file:
            file.write(b"\1" * 20)
        remove(self.path)
        self.assertEqual(self.open().lost, LEFT)

    def test_it_is_written_anew_when_it_is_long(self) -> None:
        with mock.patch.object(manifests, "SPARE_RECORDS", 4):
            spool = self.open()
            spool.add([spooled(1), spooled(2)])
            sizes = []
            for number in range(3, 60):
                spool.add([spooled(number)])
                spool.forget([BatchId(S, 3, number - 2)])
                sizes.append(os.path.getsize(self.list))
            self.assertLess(max(sizes), 44 * (4 * 3 + 4 + 5))
            spool.close()
        remove(self.path)
        self.assertEqual(list(self.open().lost), [BatchId(S, 3, 58), BatchId(S, 3, 59)])

    def test_where_the_disk_takes_it_not_less_is_known_and_nothing_wrong(self) -> None:
        for place in range(4):
            steps = iter(range(100))
            append = Manifest._append

            def refusing(self_: Any, content: bytes, at_: int = place, steps_: Any = steps, append_: Any = append) -> None:
                if next(steps_) == at_:
                    os.write(self_._fd, content[:10])
                    raise OSError(28, "No space left on device")
                append_(self_, content)

            with mock.patch.object(Manifest, "_append", refusing):
                self.filled().close()
            spool = self.open()
            self.assertEqual((spool.lost, spool.problem, spool.batches), ({}, None, 6))
            spool.close()
            remove(self.path)
            self.assertEqual(self.open().lost, LEFT)  # it has begun anew at the start
            self.open().counted()
            remove(self.path)

    def test_it_never_says_more_than_the_file_has_wherever_a_kill_comes(self) -> None:
        random = Random(5)
        for _ in range(3):
            spool, number = self.open(), 0
            for _ in range(40):
                chance = random.random()
                if chance < 0.5:
                    spool.add([spooled(number + more) for more in (1, 2, 3)])
                    number += 3
                elif chance < 0.8:
                    spool.forget([BatchId(S, 3, random.randint(0, number))])
                else:
                    spool.discard([BatchId(S, 3, random.randint(0, number))])
                copy = Manifest(self.list)  # as the next Agent would find it
                row = spool._database.execute("SELECT outbox, content FROM journal WHERE place = 1").fetchone()
                self.assertEqual(copy.missing(spool._database, row), {})
            spool.close()


class NotStartedTests(SynchronousTestCase):
    def test_an_agent_that_does_not_start_after_all_leaves_what_a_salvage_had_brought_over(self) -> None:
        directory = tempfile.mkdtemp(dir="/dev/shm")
        self.addCleanup(shutil.rmtree, directory)
        path = os.path.join(directory, f"{AGENT}.spool")
        spool = Spool(path)
        spool.add([spooled(1)])
        spool.close()
        os.rename(path, path + ".new")  # a kill came at the very end
        with mock.patch("taba.agent.home.open_outbox", side_effect=OutboxFull("no room")), self.assertRaises(CannotOpen):
            Home(AGENT, Path(directory), DEFAULT_SPOOL_BYTES, DEFAULT_OUTBOX_BYTES, directory, lambda: b"i" * 16)
        spool = Spool(path)
        self.addCleanup(spool.close)
        self.assertEqual((spool.batches, spool.lost), (1, {}))


class CountedTests(WorldCase):
    def _found_damaged(self, world: World, kill: int | None, damage: Callable[[str], None]) -> tuple[int, bool]:
        """An Agent dies, its spool's file is damaged, another one finds it and goes on to the end. Returns how many events the file lacks,
        and whether the kill came."""
        world.die()
        damage(os.path.join(world.directory, "spool"))
        world.born()
        lost = sum(world.spool.lost.values())
        world.memory.steps = kill
        killed = world.outlive(6, world.tick, world.send)
        world.memory.steps = None
        for _ in range(10):
            world.send()
            world.tick()
        return lost, killed

    def _damaged(self, world: World, kill: int | None, damage: Callable[[str], None]) -> bool:
        for _ in range(8):
            world.record(50)
            world.tick()
        world.move()
        world.record(50)
        world.tick()
        lost, killed = self._found_damaged(world, kill, damage)
        self.assertGreater(lost, 0)
        books = world.keeper.books
        self.assertEqual((dict(books.totals()), world.spool.salvage), ({"spool_corrupt": lost}, ""), (damage, kill))
        self.assertEqual((books.recorded, world.store.folded), (world.recorded, world.recorded - lost), (damage, kill))
        return killed

    def test_what_went_with_the_spools_files_is_counted_once_wherever_a_kill_comes_and_the_rest_is_folded(self) -> None:
        self.kills(lambda world, kill: self._damaged(world, kill, remove))
        self.assertFalse(self._damaged(self.world(), None, halved))

    def _half_applied(self, world: World, kill: int | None, damage: Callable[[str], None] = remove) -> bool:
        """Of what the spool has a part is applied, and retained there; an Agent is killed, and its file damaged. Whether the kill came."""
        for _ in range(8):
            world.record(50)
            world.tick()
        world.move()
        for _ in range(2):
            world.tick()
            world.send()
        self.assertEqual((world.store.folded, world.spool.batches > 0), (world.recorded, True))
        for _ in range(2):
            world.record(50)
            world.tick()
        world.move()
        lost, killed = self._found_damaged(world, kill, damage)
        self.assertGreater(lost, 100)
        books = world.keeper.books
        self.assertEqual(world.store.folded + sum(books.totals().values()), world.recorded, (damage, kill))
        self.assertEqual((books.recorded, +books.totals()), (world.recorded, {"spool_corrupt": 100}), (damage, kill))
        self.assertEqual((world.spool.salvage, world.spool.lost), ("", {}), (damage, kill))
        return killed

    def test_what_a_server_had_applied_of_what_went_with_the_file_is_not_counted_wherever_a_kill_comes(self) -> None:
        self.kills(self._half_applied)

    def test_what_a_server_has_in_hand_of_what_went_with_the_file_is_counted_and_never_folded(self) -> None:
        world = self.world()
        world.record(100)
        world.tick()
        world.move()
        in_hand: list[Any] = []
        for _ in range(4):
            if in_hand:
                break
            world.tick()
            for parcel in world.dispatch.parcels(world.now, at(world.now)):
                entries = [send.entry for send in parcel.sends]
                if isinstance(entries[0], Header):
                    world.dispatch.answered(parcel, [world.store.decide(entry) for entry in entries], world.now)
                else:
                    in_hand += entries
        decide, late = world.store.decide, list[Verdict]()

        def deciding(entry: Entry) -> Verdict:
            verdict = decide(entry)
            if isinstance(entry, Header) and entry.do == OPEN:  # a moment after its mark was told
                late.extend(decide(sent) for sent in in_hand if decode_batch(sent.batch).id[:2] == (entry.stream, entry.bucket))
            return verdict

        world.store.decide = deciding  # type: ignore[method-assign]
        lost, _ = self._found_damaged(world, None, remove)
        self.assertEqual(([verdict.word for verdict in late], lost), ([GAP] * len(in_hand), 100))
        self.assertEqual((world.store.folded, +world.keeper.books.totals()), (0, {"spool_corrupt": 100}))

    def test_nor_where_no_table_takes_as_many_as_are_lost(self) -> None:
        with mock.patch.object(books, "MAX_SETTLING", 2):
            self._half_applied(self.world(), None)

    def test_of_more_lanes_than_are_known_at_once_each_is_asked_for_in_its_turn(self) -> None:
        unasked: list[bool] = []
        most, count_lost = backlog.MAX_LANES, backlog.Backlog.count_lost

        def damage(path: str) -> None:
            remove(path)
            self.patch(backlog, "MAX_LANES", 2)

        def counting(held: backlog.Backlog) -> None:
            count_lost(held)
            unasked.append(held.has_unasked)

        self.patch(backlog.Backlog, "count_lost", counting)
        for kill in (None, 3, 8):
            self.patch(backlog, "MAX_LANES", most)
            self._half_applied(self.world(), kill, damage)
        self.assertIn(True, unasked)

    def test_a_lane_whose_turn_has_not_come_is_asked_for_before_anything_else_of_it_is_sent(self) -> None:
        world = self.world()
        stream, *_ = self._lost_but_for_the_last(world)
        with mock.patch.object(backlog, "MAX_LANES", 0):
            world.born()
            self.assertEqual((world.keeper.backlog.has_unasked, world.keeper.lanes), (True, {}))
            self.assertTrue(world.keeper.is_known(stream))
            self.assertIn(3, world.keeper.older_buckets())
            self.assertIn(3, world.keeper.waiting_buckets())
            lane = world.keeper.lane_of(BatchId(stream, 3, 3))
            self.assertEqual(lane.doubt, {1: 10, 2: 10})
            [sent] = lane.next(world.now, at(world.now))
            self.assertEqual((isinstance(sent.entry, Header) and sent.entry.do, sent.number), (OPEN, 0))

    def _lost_but_for_the_last(self, world: World) -> list[bytes]:
        """Of one lane a new Agent finds the first batches lost: those of which the manifest alone knows."""
        world.die()
        path = os.path.join(world.directory, "spool")
        spool = Spool(path)
        spool.add([spooled(number) for number in (1, 2)])
        spool.close()
        remove(path)
        return [S]

    def test_while_the_disk_removes_nothing_as_many_are_counted_as_a_table_names_and_nothing_moves_the_mark_past_the_others(self) -> None:
        with mock.patch.object(books, "MAX_SETTLING", 2):
            world = self.world()
            for _ in range(8):
                world.record(50)
                world.tick()
            world.move()
            world.die()
            remove(os.path.join(world.directory, "spool"))
            world.born()
            with mock.patch.object(world.spool, "discard", side_effect=sqlite3.OperationalError("disk I/O error")):
                for _ in range(6):
                    world.record(10)
                    world.tick()
                    world.send()
                settling = len(world.keeper.books.settling)
                self.assertLessEqual(settling, 2)
                self.assertTrue(any(lane.doubt for lane in world.keeper.lanes.values()))
            world.die()
            world.born()
            for _ in range(20):
                world.tick()
                world.send()
            self.assertEqual((world.store.folded, +world.keeper.books.totals()), (world.recorded - 400, {"spool_corrupt": 400}))
