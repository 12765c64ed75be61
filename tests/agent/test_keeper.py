"""Rings, pump, outbox and spool together, killed between any two of their writes: every event reaches the store once."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from random import Random
from typing import Any
from unittest import mock

from hypothesis import event, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba import ring as layouts
from taba.agent import keeper as keeping
from taba.agent import spool as spooling
from taba.agent.discover import Rings
from taba.agent.dispatch import Dispatch
from taba.agent.history import History
from taba.agent.keeper import Keeper
from taba.agent.lanes import MAX_RUN_BATCHES, RETAIN_SECONDS, Send
from taba.agent.outbox import PAGE, Covered, Outbox, OutboxFull
from taba.agent.problems import Problems, Room
from taba.agent.pump import TICK_SECONDS, RingPump
from taba.agent.register import Register
from taba.agent.spool import Spool, SpoolFull
from taba.batch import APPLIED, MARK, OPEN, REFUSED, BatchId, Header, Verdict
from taba.bounds import DAY
from taba.client.segment import make_segment
from tests.agent.moments import at
from tests.agent.producers import Producer
from tests.agent.servers import Store
from tests.agent.test_outbox import Killed, Memory
from tests.examples import examples

BUCKETS = 4
AGENT = "keeping"


# events; the write before which the Agent is killed; how much of that write is done (%); whether a client ends; whether batches go
# out; which of them the Server refuses (one in so many); whether the memory is nearly full
PHASES = st.lists(
    st.tuples(
        st.integers(0, 60),
        st.none() | st.integers(0, 14),
        st.integers(0, 100),
        st.booleans(),
        st.booleans(),
        st.sampled_from((0, 0, 2, 3)),
        st.sampled_from((0, 0, 1, 2)),
    ),
    min_size=1,
    max_size=12,
)
PLENTY = 2 << 20
ROOMS = (PLENTY, 24 * PAGE, 18 * PAGE)  # 17 are had by an empty outbox


class StepSpool(Spool):
    """A spool whose transactions are steps, too: the Agent dies before one, or after it."""

    memory = Memory(0)  # no step counts before the Agent's own is set

    @contextlib.contextmanager
    def _transaction(self) -> Any:  # type: ignore[override]
        if self.memory._step():
            raise Killed
        with super()._transaction():
            yield
        if self.memory._step():
            raise Killed


class World:
    """A host with rings, a small outbox and a spool, and Agents that come and go; a Server that does what a test wants."""

    def __init__(
        self, directory: str, spool_bytes: int = 1 << 30, outbox_bytes: int = 512 * 1024, segment: tuple[Outbox, str] | None = None
    ):
        self.directory = directory
        self.outbox: Outbox | None = None
        self.shm = directory
        if segment is not None:
            self.outbox, self.shm = segment
        self.spool_bytes = spool_bytes
        self.store = Store()
        self.refuse: Callable[[BatchId], bool] = lambda id: False
        self.memory = Memory(outbox_bytes)
        Outbox.format(self.memory, b"i" * 16)
        self.now = 0.0
        self.producers = [Producer(AGENT, f"web/{number}", 65_536, self.shm) for number in range(2)]
        self.recorded = 0
        self.streams = 0
        self.refused: dict[BatchId, int] = {}  # events of what the Server refused at last
        self.born()

    def born(self) -> None:
        """An Agent starts on what there is."""
        self.spool = StepSpool(os.path.join(self.directory, "spool"), self.spool_bytes)
        self.spool.memory = self.memory
        self.history = History(os.path.join(self.directory, "history"))
        self.keeper = Keeper(self.outbox or Outbox(self.memory), self.spool, self.history, self._stream, self.now, at(self.now))
        self.keeper.recover(self.now)
        self.dispatch = Dispatch(self.keeper, ["http://127.0.0.1:8280"], Random(1))
        self.rings = Rings(AGENT, self.shm)
        self.pump = RingPump(self.keeper, self.rings, Register(os.path.join(self.directory, "sums")))
        self.pump.set_buckets(BUCKETS, at(self.now))

    def _stream(self) -> bytes:
        self.streams += 1
        return self.streams.to_bytes(16, "big")

    def die(self) -> None:
        self.memory.steps = None
        for ring in self.rings.open.values():
            ring.close()
        self.rings.open.clear()
        self.pump.sums.register.close()
        self.spool.close()
        self.history.close()

    def end_producers(self) -> None:
        for producer in self.producers:
            producer.die()

    def record(self, events: int) -> None:
        for number in range(events):
            producer = self.producers[number % 2]
            producer.record(producer.tab(f"tab{self.recorded % 5}"), float(self.recorded))
            self.recorded += 1

    def tick(self) -> None:
        self.now += 2.0
        self.pump.tick(self.now, at(self.now))
        self.keeper.tick(self.now, at(self.now))

    def move(self) -> None:
        """All that is in the outbox goes to the spool."""
        end = self.keeper.outbox.head
        while self.keeper.outbox.released < end:
            assert self.keeper._move_some(self.now, at(self.now))

    def send(self) -> int:
        """What may go now goes, and is answered: streams are opened first. Returns how many batches and probes."""
        count, is_opening = 0, True
        while is_opening:
            parcels = self.dispatch.parcels(self.now, at(self.now))
            for parcel in parcels:
                self.dispatch.answered(parcel, [self._verdict(send) for send in parcel.sends], self.now)
            sends = [send.entry for parcel in parcels for send in parcel.sends]
            count += sum(not isinstance(entry, Header) or entry.do == MARK for entry in sends)
            is_opening = any(isinstance(entry, Header) and entry.do == OPEN for entry in sends)
        return count

    def _verdict(self, send: Send) -> Verdict:
        id = BatchId(send.lane.stream, send.lane.bucket, send.number)
        before = self.store.marks.get(id[:2], 0)
        if send.batch is not None and send.number > before and self.refuse(id):
            self.refused[id] = send.batch.events
            return Verdict(REFUSED, "no")
        verdict = self.store.decide(send.entry)
        if verdict.word == APPLIED and send.number > before:
            self.refused.pop(id, None)  # the Agent was killed before it counted, and this time it is taken
        return verdict


class KeeperTests(SynchronousTestCase):
    def world(self, **arguments: Any) -> World:
        directory = tempfile.mkdtemp(dir="/dev/shm")
        self.addCleanup(shutil.rmtree, directory)
        world = World(directory, **arguments)
        self.addCleanup(world.end_producers)
        self.addCleanup(world.die)
        return world

    def kills(self, life: Callable[[World, int], bool], fewest: int = 3) -> None:
        """`life` in a world of its own for each write that a kill may come before, until none is left. It says whether the kill came."""
        kill = 0
        while life(self.world(), kill):
            kill += 1
        self.assertGreaterEqual(kill, fewest)

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
        self.assertEqual((world.keeper.recorded, world.keeper.totals(), world.spool.batches), (40, {"refused": 40}, 0))

    def test_bursts_that_nearly_fill_a_byte_ring_are_each_read_before_the_next_look_is_over(self) -> None:
        world = self.world(outbox_bytes=8 << 20)
        producer = Producer(AGENT, "web/9", 1 << 20, world.shm)
        world.producers.append(producer)
        world.tick()
        for burst in range(20):
            for number in range(60):  # 120 of 128 KiB
                self.assertLessEqual(producer.byte_head + 2003 - producer.byte_tail, producer.where.byte_ring_bytes, (burst, number))
                producer.record(producer.tab("words", "Buffer"), "x" * 2000)
            for _ in range(2):  # two looks come in 0.1 s
                world.now += TICK_SECONDS
                world.pump.tick(world.now, at(world.now))
            world.keeper.tick(world.now, at(world.now))
        self.assertEqual((world.keeper.recorded, world.keeper.totals()), (20 * 60, {}))

    def test_the_ring_of_a_process_that_died_is_read_and_gone_at_the_look_that_sees_it(self) -> None:
        world = self.world()
        world.tick()
        producer = world.producers[0]
        producer.record(producer.tab("bids_won"), 1.0)
        producer.die()
        other = Producer(AGENT, "web/9", 65_536, world.shm)  # something changed in the directory: the dead are looked for
        world.producers.append(other)
        for _ in range(3):
            world.now += TICK_SECONDS
            world.pump.tick(world.now, at(world.now))
        self.assertEqual((world.keeper.recorded, os.path.exists(producer.path)), (1, False))

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
        self.assertEqual((world.keeper.given_up, world.spool.batches, world.keeper.retained_bytes), (acknowledged, moved, 0))

    def _account(self, world: World, kill: int, refused: set[int], is_spooled: bool) -> bool:
        """Three batches, of which some are refused, and a kill before the write `kill` from their sending on. Whether it came to that."""
        producer = world.producers[0]
        for value in range(3):
            producer.record(producer.tab("bids_won"), float(value))
            world.tick()
        if is_spooled:
            world.move()
        world.refuse = lambda id: id.number in refused
        world.memory.steps, killed = kill, False
        for _ in range(6):
            try:
                world.send()
                world.tick()
                world.now += 30.0
            except Killed:
                killed = True
                world.die()
                world.born()
                world.refuse = lambda id: False  # what was counted stays counted
        world.memory.steps = None
        for _ in range(3):
            world.send()
            world.tick()
        folded = len(world.store.events.get(("web/0", "bids_won"), []))
        counted = dict(world.keeper.totals())
        self.assertEqual((folded + counted.get("refused", 0), world.keeper.recorded), (3, 3), (kill, refused, counted))
        self.assertEqual(set(counted) - {"refused"}, set(), (kill, refused, is_spooled))
        self.assertEqual(counted.get("refused", 0), sum(world.refused.values()), (kill, refused))
        return killed

    def test_a_refused_batch_is_counted_wherever_a_kill_comes_between_its_verdict_and_the_next_one(self) -> None:
        for refused in ({1}, {3}, {1, 2}):
            for is_spooled in (False, True):
                self.kills(lambda world, kill, those=refused, where=is_spooled: self._account(world, kill, those, where), 5)  # type: ignore[misc]

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
                    crc = spooling._checksum(BatchId(*id), (created, boot, age), events, key, content)
                    other.execute("UPDATE batches SET crc = ? WHERE stream = ? AND bucket = ? AND number = ?", (crc, *id))
        other.close()
        world.memory.steps, killed = kill, False
        for _ in range(8):
            try:
                world.send()
                world.tick()
                world.now += 10.0
            except Killed:
                killed = True
                world.die()
                world.born()
        world.memory.steps = None
        for _ in range(4):
            world.send()
            world.tick()
        self.assertEqual(world.store.events["web/0", "bids_won"], [number - 1.0 for number in range(1, 5) if number not in numbers], kill)
        self.assertEqual((dict(world.keeper.totals()), world.keeper.recorded, world.keeper.lost_batches), ({reason: 2}, 4, 0), kill)
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
        counted = world.keeper.totals()["spool_corrupt"]
        self.assertTrue(0 < counted < 1000, world.spool.problem)
        for _ in range(2):
            for _ in range(20):
                world.tick()
                world.send()
            self.assertEqual((dict(world.keeper.totals()), world.keeper.recorded), ({"spool_corrupt": counted}, world.recorded))
            self.assertEqual(world.store.folded, world.recorded - counted)
            world.die()
            world.born()

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
            counted = world.keeper.totals()["spool_corrupt"]
            self.assertTrue(0 < counted < 1000, (what, counted, world.keeper.spool_problem))
            self.assertEqual(
                (world.store.folded, dict(world.keeper.totals())), (world.recorded - counted, {"spool_corrupt": counted}), what
            )
            self.assertEqual((world.keeper.recorded, world.keeper._stuck), (world.recorded, []))
            self.assertIn("was damaged", str(world.spool.problem))
            for _ in range(2):
                world.die()
                world.born()
                for _ in range(4):
                    world.tick()
                    world.send()
                self.assertEqual(world.keeper.totals()["spool_corrupt"], counted)

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
        world.memory.steps, killed = kill, False
        for _ in range(6):
            try:
                world.tick()
                world.send()
            except Killed:
                killed = True
                world.die()
                world.born()
        self.assertEqual((dict(world.keeper.totals()), world.spool.salvage), ({"spool_corrupt": lost}, ""), kill)
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
            problems = Problems(world.keeper, world.pump, world.dispatch, world.shm, lambda: Room(0, 0), world.now)
            told: set[str] = set()
            for _ in range(30):
                world.tick()
                world.send()
                told |= problems.look(world.now, {}).keys()
                self.assertEqual(world.keeper.totals(), {})
                if world.keeper.unreadable:
                    self.assertEqual(world.store.events["web/0", "bids_won"], [0.0])
                    sentence = problems.found["spool unreadable"]
                    self.assertIn(f"1 batches in the spool {world.spool.path} cannot be read now ({error})", sentence)
            self.assertEqual(world.store.events["web/0", "bids_won"], [0.0, 1.0, 2.0])
            self.assertEqual((told, world.keeper.unreadable, problems.found), ({"spool unreadable"}, {}, {}))

    def test_a_damaged_row_that_cannot_be_mended_yet_is_not_dropped_either(self) -> None:
        damage = [sqlite3.DatabaseError("database disk image is malformed") for _ in range(4)]
        world = self._unreadable([*damage])
        world.keeper._healed = 0.0  # it was tried just now
        for _ in range(30):
            world.tick()
            world.send()
        self.assertEqual((world.store.events["web/0", "bids_won"], world.keeper.totals()), ([0.0, 1.0, 2.0], {}))

    def test_a_row_with_bad_bytes_is_dropped_counted_and_kept_to_be_looked_at(self) -> None:
        world = self._unreadable([])
        with sqlite3.connect(world.spool.path) as other:
            other.execute("UPDATE batches SET content = x'0011' || content WHERE number = 2")
        other.close()
        for _ in range(6):
            world.tick()
            world.send()
        self.assertEqual((world.store.events["web/0", "bids_won"], world.keeper.totals()), ([0.0, 2.0], {"spool_corrupt": 1}))
        ((_, number, _, content),) = world.spool.aside()
        self.assertEqual((number, content[:2]), (2, b"\0\x11"))

    def test_what_a_mended_spool_lost_is_brought_back_where_it_is_under_way_and_counted_at_once_where_it_waits(self) -> None:
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
            self.assertTrue(world.keeper._heal(sqlite3.DatabaseError("malformed")))
            lost = 0 if is_under_way else 2
            self.assertEqual((world.keeper.totals()["spool_corrupt"], sum(world.spool.lost.values())), (lost, lost))
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
            self.assertEqual((+world.keeper.totals(), world.keeper.lost_batches), ({"spool_corrupt": 2} if lost else {}, 0))

    def test_what_could_not_be_read_is_no_problem_once_it_turns_out_to_be_applied_or_is_counted_as_lost(self) -> None:
        for is_lost in (False, True):
            world = self._unreadable([sqlite3.OperationalError("disk I/O error") for _ in range(1000)])
            for _ in range(3):
                world.tick()
                world.send()
            ((stream, bucket, number),) = world.keeper.unreadable
            if is_lost:
                with sqlite3.connect(world.spool.path) as other:
                    other.execute("UPDATE batches SET crc = crc + 1 WHERE number = ?", (number,))
                other.close()
                self.assertTrue(world.keeper._heal(sqlite3.DatabaseError("malformed")))
                self.assertEqual(world.keeper.totals(), {"spool_corrupt": 1})
            else:
                world.store.set_mark(stream, bucket, number)  # it was sent before, and no answer came
                lane = world.keeper.lanes[stream, bucket]
                lane.nonce = None  # it is opened anew when it is tried again, and that tells the mark
                while lane.nonce is None:
                    world.tick()
                    world.send()
                    self.assertLess(world.now, 1000.0)
            self.assertEqual(world.keeper.unreadable, {}, is_lost)
            problems = Problems(world.keeper, world.pump, world.dispatch, world.shm, lambda: Room(0, 0), world.now)
            self.assertNotIn("spool unreadable", problems.look(world.now, {}))

    def test_what_can_never_be_read_is_too_old_one_day_and_counted(self) -> None:
        world = self._unreadable([sqlite3.OperationalError("disk I/O error") for _ in range(1000)])
        for _ in range(3):
            world.tick()
            world.send()
        self.assertEqual(len(world.keeper.unreadable), 1)
        world.now += 8 * DAY
        for _ in range(6):
            world.tick()
            world.send()
        self.assertEqual((world.keeper.totals(), world.keeper.unreadable), ({"too_old": 2}, {}))

    def test_where_the_disk_removes_nothing_so_many_of_the_spool_are_dropped_and_the_fresh_ones_go_on(self) -> None:
        self.patch(keeping, "MAX_SETTLING", 8)
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
            self.assertLessEqual(len(world.keeper._settling), 8 + MAX_RUN_BATCHES * BUCKETS)
        self.assertEqual(world.keeper.stream, old)
        self.assertTrue(world.keeper.holds_backlog)
        self.assertIn("disk I/O error", str(world.keeper.spool_problem))
        self.assertEqual(world.store.folded, 200)
        del world.spool.discard
        world.refuse = lambda id: False
        before = world.keeper.totals()["refused"]
        for _ in range(20):
            world.tick()
            world.send()
        self.assertEqual((world.store.folded, world.keeper.totals()["refused"]), (world.recorded - before, before))

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
        self.assertTrue(world.keeper._to_forget)
        del world.spool.forget
        for _ in range(12):
            world.tick()
            world.send()
            world.now += 10.0
        self.assertEqual((world.store.folded, world.spool.batches), (40, 0))
        self.assertEqual({lane.stream for lane in world.keeper.lanes.values()} - {world.keeper.stream}, set())

    def test_with_memory_for_the_batches_and_not_for_their_table_all_goes_through_the_spool(self) -> None:
        world = self.world(outbox_bytes=4 << 20)
        orphans = [Covered(number.to_bytes(16, "big"), 0, 1, 0) for number in range(2000)]  # 40 KiB of table
        world.record(40)
        world.tick()
        self.assertGreater(world.keeper.unacknowledged, 0)
        reserve = world.memory.reserve

        def is_full(offset: int, length: int) -> None:
            if offset < world.keeper.outbox._area:
                raise OutboxFull("no memory for a table")
            reserve(offset, length)

        world.memory.reserve = is_full  # type: ignore[method-assign]
        world.pump._orphans = orphans
        self.patch(world.pump, "_scan", lambda now: None)  # which finds that nobody asks for them
        for _ in range(3):
            world.record(40)
            world.tick()
        self.assertEqual((world.keeper.totals(), world.keeper.recorded, world.keeper.holds_any), ({}, 160, False))
        world.die()
        world.born()
        self.assertEqual(set(orphans) - set(world.keeper.covered), set())
        for _ in range(6):
            world.tick()
            world.send()
        self.assertEqual((world.store.folded, world.keeper.recorded, world.keeper.totals()), (160, 160, {}))

    def _lose(self, world: World, kill: int | None) -> bool:
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
        world.memory.steps, killed = kill, False
        for _ in range(6):
            try:
                world.send()
                world.tick()
            except Killed:
                killed = True
                world.die()
                world.born()
        self.assertEqual(len(world.store.events["web/0", "bids_won"]), 1 + 2 + 6)
        self.assertEqual((world.keeper.recorded, dict(world.keeper.totals())), (21, {"gap": 3 + 4 + 5}), kill)
        return killed

    def test_what_a_store_lost_and_was_forgotten_before_a_restart_is_counted_once_wherever_a_kill_comes(self) -> None:
        self._lose(self.world(), None)
        self.kills(self._lose, 4)

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
        world.keeper._forget_spooled()
        self.assertEqual((world.store.folded, world.keeper.holds_any, world.spool.batches), (10, False, 0))
        world.store.set_mark(*key, 2)
        world.store.events["web/0", "bids_won"] = [1.0, 2.0, 2.0]
        world.memory.steps, killed = kill, False
        try:
            if is_found_before:
                for parcel in parcels:
                    world.dispatch.answered(parcel, [world._verdict(send) for send in parcel.sends], world.now)
                self.assertEqual(world.keeper.totals(), {"gap": 7})
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
        self.assertEqual((world.keeper.recorded, dict(world.keeper.totals()), world.keeper.lost_batches), (11, {"gap": 7}, 2), kill)
        self.assertEqual(world.store.events["web/0", "bids_won"], [1.0, 2.0, 2.0, 5.0])
        self.assertNotIn(key, world.store.marks)  # it is ended
        self.assertNotIn(key[0], world.keeper.openings)
        self.assertEqual(world.keeper._skips, {})  # it has ended: nothing is left to be told of it
        return killed

    def test_a_host_that_boots_anew_has_no_proof_that_a_store_lost_what_only_the_lost_outbox_knew_had_ended(self) -> None:
        world = self.world()
        producer = world.producers[0]
        world.keeper.is_homeless = True  # so that the spool's table names the stream as open
        for number in range(1, 5):
            producer.record(producer.tab("bids_won"), float(number))
            world.tick()
            world.send()
        (key,) = world.store.marks
        self.assertEqual(world.store.folded, 4)
        for lane in world.keeper.lanes.values():
            lane.give_up_retained()
        world.keeper._forget_spooled()
        world.keeper.tick(world.now, at(world.now))
        self.assertEqual(world.keeper.history.last([key[0]]), {key: 4})
        world.store.marks.pop(key)  # it was ended, and only the outbox that is gone says so
        world.die()
        world.memory = Memory(512 * 1024)
        Outbox.format(world.memory, b"n" * 16)
        world.born()
        self.assertIn(key[0], world.keeper.openings)
        self.assertEqual({lane.unproven for lane in world.keeper.lanes.values()}, {0})
        for _ in range(6):
            world.send()
            world.tick()
        self.assertEqual((dict(world.keeper.totals()), world.store.folded), ({}, 4))

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
        world.memory.steps, killed = kill, False
        producer.record(producer.tab("bids_won"), 5.0)
        for _ in range(6):
            try:
                world.tick()
                world.send()
            except Killed:
                killed = True
                world.die()
                world.born()
        self.assertEqual((world.keeper.recorded, dict(world.keeper.totals())), (5, {"gap": 2}), kill)
        self.assertEqual(world.store.events["web/0", "bids_won"], [1.0, 2.0, 5.0], kill)
        return killed

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
        self.assertEqual((world.keeper.totals(), list(world.keeper.openings)), ({}, []))
        world.record(10)
        world.tick()
        world.send()
        world.keeper._release(1 << 30)
        for days, asked in ((7, True), (8, False)):
            world.die()
            world.now = days * DAY
            world.born()
            self.assertEqual(any(lane.unproven for lane in world.keeper.lanes.values()), asked)

    @given(PHASES)
    @examples(200)
    def test_killed_between_any_two_writes_every_event_is_folded_or_counted_once(self, phases: list[tuple[Any, ...]]) -> None:
        directory = tempfile.mkdtemp(dir="/dev/shm")
        world = World(directory)
        real = os.pwrite

        def pwrite(fd: int, content: Any, offset: int) -> int:
            # the tail of a ring is a step, too
            if any(ring.fd == fd for ring in world.rings.open.values()) and world.memory._step():
                raise Killed
            return real(fd, content, offset)

        try:
            for events, kill, torn, ends, sends, refused, room in phases:
                world.record(events)
                world.memory.pages = ROOMS[room]
                world.refuse = lambda id, part=refused: part > 0 and id.number % part == 0  # type: ignore[misc]
                if ends:  # a client goes, and another comes
                    world.producers[events % 2].die()
                    world.producers[events % 2] = Producer(AGENT, f"web/{events}", 65_536, directory)
                world.memory.steps, world.memory.torn = kill, torn
                os.pwrite = pwrite
                try:
                    world.tick()
                    if sends:
                        world.send()
                        world.send()
                        world.tick()
                except Killed:
                    event("killed")
                    os.pwrite = real
                    world.die()
                    world.born()
                finally:
                    os.pwrite = real
                if world.keeper._spooled_stream:
                    event("fresh into the spool")
            world.memory.steps = None
            world.memory.pages = PLENTY
            world.refuse = lambda id: False
            for _ in range(8):
                world.tick()
                world.send()
            left = [name for name in os.listdir(directory) if name.startswith("taba.")]
            self.assertEqual(len(left), 2)
            found = [value for events in world.store.events.values() for value in events]
            self.assertEqual(len(set(found)), len(found))
            refused = sum(world.refused.values())
            self.assertEqual(len(found) + refused, world.recorded)
            self.assertEqual((world.keeper.recorded, world.keeper.totals()["refused"]), (world.recorded, refused))
            self.assertEqual(sum(world.keeper.totals().values()), refused)
            retained = [batch for lane in world.keeper.lanes.values() for batch in lane.retained if not batch.is_gone]
            self.assertEqual((world.keeper.retained_batches, world.keeper.retained_bytes), (len(retained), sum(b.length for b in retained)))
            self.assertEqual(world.keeper._pending_batches, world.keeper.unacknowledged)
        finally:
            world.die()
            for producer in world.producers:
                producer.die()
            shutil.rmtree(directory)

    def test_what_is_acknowledged_is_given_up_first_and_then_all_moves_unchanged(self) -> None:
        world = self.world()
        world.record(1000)
        world.tick()
        world.send()
        self.assertEqual((world.store.folded, world.keeper.unacknowledged), (1000, 0))
        self.assertGreater(world.keeper.retained_bytes, 0)
        while not world.keeper.moves:
            world.record(2000)
            world.tick()
        self.assertGreater(world.keeper.given_up, 0)
        self.assertGreater(world.spool.batches, 0)
        self.assertEqual(world.store.folded, 1000)
        world.die()
        world.born()
        while world.store.folded < world.recorded:
            world.tick()
            self.assertTrue(world.send())
        self.assertEqual(world.store.folded, world.recorded)

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

    def test_what_was_retained_for_its_time_is_forgotten_and_the_spool_empties(self) -> None:
        world = self.world()
        while not world.keeper.moves:
            world.record(2000)
            world.tick()
        for _ in range(int(3 * RETAIN_SECONDS)):
            world.tick()
            world.send()
        self.assertEqual((world.store.folded, world.spool.batches, world.keeper.outbox.used), (world.recorded, 0, 0))
        self.assertEqual(world.keeper.retained_bytes, 0)
        others = [lane for lane in world.keeper.lanes.values() if lane.stream != world.keeper.stream]
        self.assertEqual(others, [])

    def test_retained_batches_stay_within_their_bound(self) -> None:
        world = self.world()
        self.patch(keeping, "MAX_RETAINED_BYTES", 20_000)
        for _ in range(20):
            world.record(200)
            world.tick()
            world.send()
            world.keeper.tick(world.now, at(world.now))
            self.assertLessEqual(world.keeper.retained_bytes, 20_000)
        self.assertGreater(world.keeper.given_up, 0)
        self.assertEqual(world.store.folded, world.recorded)

    def test_beyond_the_spools_bound_the_newest_are_dropped_and_what_was_kept_is_sent(self) -> None:
        world = self.world(spool_bytes=1000)
        while not world.keeper.dropped["spool_full"]:
            world.record(2000)
            world.tick()
        dropped = world.keeper.dropped["spool_full"]
        self.assertEqual(world.keeper.recorded, world.recorded)
        for _ in range(10):
            world.tick()
            world.send()
        self.assertEqual(world.store.folded + dropped, world.recorded)

    def page(self, events: int, directory: str) -> None:
        """A process that has no ring drops so many events, counts them where it can, and ends."""
        with mock.patch.object(layouts, "SHM_DIRECTORY", directory):
            segment = make_segment(AGENT, "web/8", flags=0, ring_bytes=65_536, shm_bytes=0, group=None, now=1.0, make=None)
        segment.words[segment.counts // 8 + layouts.DROP_REASONS.index("no_ring")] += events
        segment.let_go()

    def _count_in_pages(self, world: World, kill: int) -> bool:
        """A page is read, counted and removed; wherever a kill comes, other processes count before the next Agent. Whether it came."""
        self.page(3, world.shm)
        counted, killed, real = 3, False, os.pwrite

        def pwrite(fd: int, content: bytes, offset: int) -> int:
            if any(ring.fd == fd for ring in world.rings.open.values()) and world.memory._step():
                raise Killed
            return real(fd, content, offset)

        world.memory.steps = kill
        for _ in range(4):
            try:
                with mock.patch("os.pwrite", pwrite):
                    world.tick()
            except Killed:
                killed = True
                world.die()
                self.page(1, world.shm)
                counted += 1
                world.born()
        world.memory.steps = None
        for _ in range(3):
            world.tick()
        self.assertEqual((world.keeper.totals(), world.keeper.recorded), ({"no_ring": counted}, counted), kill)
        self.assertEqual(len([name for name in os.listdir(world.shm) if name.startswith("taba.")]), 2)  # the producers' rings
        return killed

    def test_what_is_counted_in_a_page_after_its_agent_was_killed_is_counted_wherever_the_kill_came(self) -> None:
        self.kills(self._count_in_pages, 4)

    def test_a_page_to_count_in_is_no_client_neither_living_nor_dead_nor_the_worst(self) -> None:
        world = self.world()
        with mock.patch.object(layouts, "SHM_DIRECTORY", world.shm):
            segment = make_segment(AGENT, "web/8", flags=0, ring_bytes=65_536, shm_bytes=0, group=None, now=1.0, make=None)
        segment.words[segment.counts // 8] += 9  # as ring_full, which others have, too
        world.producers[0].drop("ring_full", 1)
        world.tick()
        self.assertEqual((len(world.rings.open), world.pump.living()), (3, {"web/0", "web/1"}))
        self.assertEqual((dict(world.pump.live_drops()), world.pump.worst("ring_full")), ({"ring_full": 10}, ("web/0", 1)))
        segment.let_go()
        world.producers[1].die()
        for _ in range(3):
            world.tick()
        self.assertEqual((world.pump.deaths, world.pump.living()), ({"web/1"}, {"web/0"}))
        self.assertEqual((len(world.rings.open), dict(world.keeper.totals())), (1, {"ring_full": 9}))

    def test_totals_and_drops_of_retired_rings_survive_every_restart(self) -> None:
        world = self.world()
        world.record(10)
        for producer in world.producers:
            producer.drop("ring_full", 5)
            producer.die()
        for _ in range(3):
            world.tick()
            world.die()
            world.born()
        self.assertEqual(world.keeper.totals(), {"ring_full": 10})
        self.assertEqual([name for name in os.listdir(world.directory) if name.startswith("taba.")], [])
        self.assertEqual(world.keeper.recorded, 20)  # what clients dropped was recorded, too

    def test_a_stream_takes_new_batches_for_six_days_only(self) -> None:
        world = self.world()
        world.tick()
        first = world.keeper.stream
        world.now += 6 * 86_400
        world.tick()
        self.assertNotEqual(world.keeper.stream, first)


class HomelessTests(SynchronousTestCase):
    """The outbox was removed, and there is no room for a new one: what is published there nobody would find."""

    def test_what_is_drained_meanwhile_goes_into_the_spool_at_once_and_outlives_the_agent_with_its_totals(self) -> None:
        directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, directory)
        world = World(directory)
        self.addCleanup(world.end_producers)
        for is_homeless in (False, True):
            world.keeper.is_homeless = is_homeless
            world.producers[0].record_many(world.producers[0].tab("a"), [1.0, 2.0])
            world.tick()
        self.assertEqual((world.keeper.unacknowledged, world.spool.batches), (0, 2))
        world.die()
        world.memory = Memory(512 * 1024)
        Outbox.format(world.memory, b"n" * 16)  # the next Agent finds no outbox of before
        world.born()
        self.assertEqual(world.keeper.recorded, 4)
        self.assertEqual(world.spool.batches, 2)
        world.die()

    def _mended(self, kill: int | None, batches: bool) -> bool:
        """The spool is found damaged while what is fresh, or a table alone, goes into it. Whether the kill came."""
        directory = tempfile.mkdtemp(dir="/dev/shm")
        self.addCleanup(shutil.rmtree, directory)
        world = World(directory)
        self.addCleanup(world.end_producers)
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
        world.keeper._healed = -1e9
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
            self.assertEqual((sum(world.spool.lost.values()), damaged), (world.keeper.totals()["spool_corrupt"], []))
            world.keeper.settle_totals()
        except Killed:
            killed = True
        world.die()
        world.memory = Memory(512 * 1024)
        Outbox.format(world.memory, b"n" * 16)  # the next Agent finds no outbox of before
        world.born()
        for _ in range(60):
            world.tick()
            world.send()
            if not world.spool.batches and not world.spool.salvage:
                break
        totals = world.keeper.totals()
        self.assertGreater(totals["spool_corrupt"], 0)
        self.assertEqual((world.spool.batches, world.spool.salvage), (0, ""))
        self.assertEqual(world.store.folded + sum(totals.values()), world.keeper.recorded, (kill, totals))
        world.die()
        return killed

    def test_what_a_spool_lost_that_is_mended_within_a_publish_is_counted_once_wherever_a_kill_comes(self) -> None:
        self._mended(None, False)
        kill = 0
        while self._mended(kill, True):
            kill += 1
        self.assertGreaterEqual(kill, 3)
