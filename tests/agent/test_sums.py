"""Tabs that heal: whatever is killed, lost, repeated or disordered, the State is what the living processes have added up."""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
from collections import Counter
from random import Random
from typing import Any
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba import ring as layouts
from taba.agent import register
from taba.agent.books import MAX_TOTAL
from taba.agent.discover import Rings
from taba.agent.history import History
from taba.agent.keeper import Keeper
from taba.agent.openings import Openings
from taba.agent.outbox import Outbox
from taba.agent.pump import RingPump
from taba.agent.recovery import recover
from taba.agent.register import GONE, Register
from taba.agent.spool import Spool
from taba.agent.sums import AGAIN_SECONDS, MAX_TOLD
from taba.batch import RING_GONE, Batch, Column, decode_batch
from taba.handlers.base import Events
from taba.handlers.updown import UpDown
from tests.agent.moments import at
from tests.agent.outboxes import Killed, Memory
from tests.agent.producers import Producer
from tests.examples import examples
from tests.pieces import values_of

AGENT = "sums"
TAB = "in_flight"
BUCKETS = 4


class World:
    """Processes, an Agent that can be killed before any of its writes, and a Server that sees batches as it pleases."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.shm, self.disk = os.path.join(self.folder.name, "shm"), os.path.join(self.folder.name, "disk")
        os.mkdir(self.shm)
        os.mkdir(self.disk)
        self.memory = Memory(1 << 22)
        Outbox.format(self.memory, b"i" * 16)
        self.producers: list[Producer] = []
        self.nets: Counter[str] = Counter()  # by segment, of the living
        self.recorded = 0
        self.now = 0.0
        self.streams = 0
        self.steps: int | None = None
        self.kills = 0
        self.born()

    def born(self) -> None:
        """An Agent starts on what there is."""
        self.spool = Spool(os.path.join(self.disk, "spool"))
        self.keeper = Keeper(
            Outbox(self.memory), self.spool, History(os.path.join(self.disk, "history")), self._stream, self.now, at(self.now)
        )
        recover(self.keeper, self.now)
        self.register = Register(os.path.join(self.disk, "sums"))
        self.pump = RingPump(self.keeper, Rings(AGENT, self.shm), self.register)
        self.pump.set_buckets(BUCKETS, at(self.now))

    def _stream(self) -> bytes:
        self.streams += 1
        return self.streams.to_bytes(16, "big")

    def process(self) -> Producer:
        producer = Producer(AGENT, "web/1", 65_536, self.shm)
        producer.tab("other")
        producer.tab(TAB, "UpDown", has_cell=True)
        self.producers.append(producer)
        return producer

    def add(self, producer: Producer, value: float, owed: bool = False) -> None:
        tab = producer.tab(TAB, "UpDown")
        if owed:
            producer.owe(tab, value)
        else:
            producer.record(tab, value)
        self.nets[producer.name] += value  # type: ignore[assignment]
        self.recorded += 1

    def die(self, producer: Producer) -> None:
        producer.die()
        self.producers.remove(producer)
        self.nets.pop(producer.name, None)

    def tick(self, seconds: float = 1.5) -> None:
        """Time passes; the Agent does what is due, unless it is killed, and then another one begins."""
        self.now += seconds
        pwrite, note = os.pwrite, Register.note

        def step() -> None:
            if self.steps is not None:
                self.steps -= 1
                if self.steps < 0:
                    raise Killed

        def writing(*arguments: Any) -> int:
            step()
            return pwrite(*arguments)

        def noting(register: Register, word: str, entries: Any) -> None:
            step()
            note(register, word, entries)
            step()

        self.memory.steps = self.steps
        with mock.patch("os.pwrite", writing), mock.patch.object(Register, "note", noting), contextlib.suppress(Killed):
            while self.pump.tick(self.now, at(self.now)) == 0.0:
                pass
            self.memory.steps = self.steps = None
            return
        self.kills += 1
        self.memory.steps = self.steps = None
        for ring in list(self.pump.rings.open.values()):
            ring.close()
        self.register.close()
        self.spool.close()
        self.born()

    def batches(self) -> list[Batch]:
        """All batches that the outbox holds, in order."""
        outbox = Outbox(self.memory)
        return [decode_batch(outbox.read(stored.position, stored.length)) for group in outbox.groups() for stored in group.batches]

    def columns(self) -> list[Column]:
        """All columns that the outbox holds, in order."""
        return [column for batch in self.batches() for column in batch.columns if isinstance(column, Column)]

    def close(self) -> None:
        for producer in self.producers:
            producer.die()
        self.register.close()
        self.spool.close()
        self.folder.cleanup()


def fold(columns: list[Column]) -> tuple[Any, float]:
    """The State after these columns, and its value."""
    handler = UpDown()
    state: Any = handler.new_state()
    for column in columns:
        if column.tab == TAB:
            assert isinstance(column.values, list)
            state = handler.fold(handler.load(handler.dump(state)), Events([1.0] * len(column.values), column.values), 1.0)
    return state, handler.project(state, 1.0)["value"]


class SumTests(SynchronousTestCase):
    def world(self) -> World:
        world = World()
        self.addCleanup(world.close)
        return world

    def test_what_a_process_added_goes_when_it_dies_and_the_rest_stays(self) -> None:
        world = self.world()
        one, other = world.process(), world.process()
        for value in (1.0, 1.0, 1.0, -1.0):
            world.add(one, value)
        world.add(other, 5.0)
        world.tick()
        self.assertEqual(fold(world.columns())[1], 7.0)
        world.die(one)
        world.tick()
        self.assertEqual(fold(world.columns())[1], 5.0)
        world.die(other)
        world.tick()
        self.assertEqual(fold(world.columns())[1], 0.0)
        world.tick()
        state, value = fold(world.columns())
        self.assertEqual((value, state[2]), (0.0, {}))
        self.assertTrue(world.register.ended)  # a host that boots anew may lose it yet
        for lane in world.keeper.lanes.values():
            lane.pending.clear()  # all of it is applied
        for after in (1.0, AGAIN_SECONDS, 1.0):  # and once it has been said again
            world.tick(after)
            for lane in world.keeper.lanes.values():
                lane.pending.clear()
        world.tick()
        self.assertFalse(world.register.live | world.register.ended)
        self.assertTrue(UpDown().prunable(state, 1.0))

    def test_each_event_is_accounted_for_once(self) -> None:
        world = self.world()
        producer = world.process()
        for _ in range(10):
            world.add(producer, 1.0)
            world.add(producer, -1.0, owed=True)
            world.tick()
        world.add(producer, 1.0, owed=True)
        world.die(producer)
        world.tick()
        self.assertEqual(sum(column.weight for column in world.columns()), world.recorded)
        self.assertEqual(world.keeper.books.recorded, world.recorded)

    def test_while_as_many_as_may_be_are_ended_what_begins_waits_and_its_events_count(self) -> None:
        world = self.world()
        self.patch(register, "MAX_ENDED", 2)
        for number in range(6):
            producer = world.process()
            world.add(producer, 2.0)
            world.add(producer, 1.0, owed=True)
            if number == 5:
                break  # it lives
            world.tick()
            self.assertEqual(len(world.register.live), number < 2)
            world.die(producer)
            world.tick()
            self.assertEqual(len(world.register.ended), min(number + 1, 2))
        self.assertIn("2 Tabs of processes that ended wait", str(world.register.problem))
        columns = world.columns()
        self.assertEqual((fold(columns)[1], sum(column.weight for column in columns)), (0.0, world.recorded - 2))
        world.register.note(GONE, list(world.register.ended))
        world.tick()
        self.assertEqual((fold(world.columns())[1], world.register.problem), (3.0, None))
        self.assertEqual((world.keeper.books.recorded, sum(column.weight for column in world.columns())), (world.recorded, world.recorded))

    def test_a_process_and_its_segment_that_are_gone_at_the_agents_return_are_ended_by_the_register(self) -> None:
        world = self.world()
        producer = world.process()
        world.add(producer, 3.0)
        world.tick()
        world.die(producer)
        os.unlink(producer.path)  # a reboot: no shared memory outlives it, the outbox least of all
        before = world.columns()
        world.pump.rings.open.popitem()[1].close()
        world.memory = Memory(1 << 22)
        Outbox.format(world.memory, b"j" * 16)
        world.register.close()
        world.spool.close()
        world.born()
        world.tick()
        self.assertEqual((fold(before)[1], fold(before + world.columns())[1]), (3.0, 0.0))

    def test_what_was_ended_is_ended_again_however_often_the_host_loses_it_before_it_is_applied(self) -> None:
        world = self.world()
        producer = world.process()
        world.add(producer, 3.0)
        world.tick()
        arrived = world.columns()
        world.die(producer)
        os.unlink(producer.path)
        world.pump.rings.open.popitem()[1].close()
        for number in range(4):  # what says that it ended, and that it is gone, goes each time with the outbox
            world.memory = Memory(1 << 22)
            Outbox.format(world.memory, bytes([number]) * 16)
            world.register.close()
            world.spool.close()
            world.born()
            for _ in range(number % 3):
                world.tick()
        world.keeper.books.openings = Openings()  # the streams of the lost outboxes are ended
        world.tick()
        state, value = fold(arrived + world.columns())
        self.assertEqual((value, state[2]), (0.0, {}))

    def test_an_ended_sum_is_not_revived_by_what_was_still_on_its_way(self) -> None:
        world = self.world()
        producer = world.process()
        world.add(producer, 3.0)
        world.tick()
        world.die(producer)
        world.tick()
        columns = world.columns()
        self.assertEqual(fold(columns[::-1])[1], 0.0)
        self.assertEqual(fold(columns + columns)[1], 0.0)

    def test_while_something_older_is_held_nothing_is_gone(self) -> None:
        world = self.world()
        producer = world.process()
        world.add(producer, 3.0)
        world.tick()
        world.keeper.begin_stream(at(world.now))  # the first stays in the outbox, not acknowledged
        world.die(producer)
        for _ in range(3):
            world.tick()
        rows = [row for column in world.columns() for row in values_of(column)]
        self.assertNotIn(RING_GONE, [row[1] for row in rows])
        self.assertTrue(world.register.ended)

    def test_after_batches_were_given_up_the_sums_are_sent_again(self) -> None:
        world = self.world()
        producer = world.process()
        world.add(producer, 3.0)
        world.tick()
        lost = len(world.columns())
        world.tick()
        self.assertEqual(len(world.columns()), lost)  # nothing new, nothing sent
        world.keeper.books.dropped["refused"] += 1
        world.tick()
        self.assertEqual(fold(world.columns()[lost:])[1], 3.0)

    def test_an_agent_that_begins_sends_the_sums_of_rings_that_are_idle_again(self) -> None:
        world = self.world()
        world.add(world.process(), 3.0)
        world.tick()
        world.add(world.process(), 1.0)
        world.steps = 0
        world.tick()  # killed at its first write
        lost = len(world.columns())
        world.tick()
        self.assertEqual(fold(world.columns()[lost:])[1], 4.0)

    def test_values_that_are_no_numbers_come_one_by_one(self) -> None:
        world = self.world()
        producer = world.process()
        tab = producer.tab(TAB, "UpDown")
        for value in ("x", 1.0, float("nan"), 2.0):
            producer.record(tab, value)
        world.tick()
        rows = [row for column in world.columns() for row in values_of(column)]
        self.assertEqual(rows[0], "x")
        self.assertEqual((rows[2][2], len(rows)), (3.0, 3))
        self.assertEqual(sum(column.weight for column in world.columns()), 4)

    def test_hostile_cells_break_nothing(self) -> None:
        world = self.world()
        producer, good = world.process(), world.process()
        world.add(good, 2.0)
        world.add(producer, 1.0)
        os.pwrite(producer.fd, b"\xff" * 64, producer.cells[producer.tab(TAB, "UpDown")])
        os.pwrite(producer.fd, b"\xff" * 8, 768)
        world.tick()
        world.tick()
        columns = [column for column in world.columns() if values_of(column)[0][0] == os.pread(good.fd, 16, 32)]
        self.assertEqual(fold(columns)[1], 2.0)

    def test_counts_beyond_all_that_a_table_holds_end_nothing(self) -> None:
        world = self.world()
        good = world.process()
        liars = 2048 // len(layouts.DROP_REASONS) + 1  # each says 2^53 for each reason, the most that one may: together 2^64
        for number in range(liars):
            liar = Producer(AGENT, f"liar/{number}", 65_536, world.shm)
            for reason in layouts.DROP_REASONS:
                liar.drop(reason, 2**64 - 1)
            liar.die()
        for _ in range(12):
            world.add(good, 1.0)
            world.tick()
        books = world.keeper.books
        self.assertEqual(list(world.pump.rings.open), [good.name])
        self.assertEqual(fold(world.columns())[1], 12.0)
        self.assertEqual((books.recorded, max(books.totals().values())), (MAX_TOTAL, liars * 2**53))
        self.assertEqual(Outbox(world.memory).table.recorded, MAX_TOTAL)

    def test_what_one_ring_says_that_it_owes_is_bounded_as_one_count_is(self) -> None:
        world = self.world()
        liar = Producer(AGENT, "liar/1", 1 << 22, world.shm)
        for number in range(2100):  # each says 2^53; with 2048 it is 2^64
            tab = liar.tab(f"tab{number}", "UpDown", has_cell=True)
            os.pwrite(liar.fd, struct.pack("<dQ", 1.0, 2**64 - 1), liar.cells[tab])
        os.pwrite(liar.fd, struct.pack("<Q", 2**64 - 1), layouts.OWES_OFFSET)
        liar.die()
        for _ in range(4):
            world.tick()
        self.assertEqual((len(world.pump.rings.open), world.keeper.books.totals()["ring_full"]), (0, 2**53))

    def test_a_column_for_many_tabs_stands_for_no_more_events_than_any_whatever_they_owe(self) -> None:
        world = self.world()
        liar = Producer(AGENT, "liar/1", 1 << 23, world.shm)
        owing = MAX_TOLD + 1
        for number in range(
            3500
        ):  # 2,500 of them share one column: together they are more than a batch may stand for, and than 32 bits hold
            tab = liar.tab(f'busy{{n="{number}"}}', "UpDown", has_cell=True)
            os.pwrite(liar.fd, struct.pack("<dQ", 1.0, owing), liar.cells[tab])
        for seen in range(1, 4):
            os.pwrite(liar.fd, struct.pack("<Q", seen), layouts.OWES_OFFSET)
            world.tick()
        overflow = [column for column in world.columns() if column.tab == 'busy{overflow="true"}']  # each batch is one that is read
        self.assertEqual({column.weight for column in overflow}, {MAX_TOLD})
        self.assertEqual(values_of(overflow[-1])[0][2], 2500.0)
        [ring] = world.pump.rings.open.values()
        told = Counter(held.told for held in ring.sums.values())
        self.assertGreaterEqual((told[owing], told[0]), (1000, 2000))  # the others' turn comes
        self.assertEqual(sum(column.weight for column in world.columns()), sum(held.told for held in ring.sums.values()))
        liar.die()

    def test_a_copy_of_a_publish_that_never_was_is_believed_by_nobody_though_as_many_records_are_covered_later(self) -> None:
        for steps in range(10):
            world = self.world()
            producer = world.process()
            other = producer.tab("other")
            world.tick()
            for _ in range(10):
                producer.record(other, 1.0)
            hole = producer.reserve()
            world.add(producer, 1.0)
            world.steps = steps  # ten records and the one behind the hole are eleven …
            world.tick()
            if not world.kills:
                break
            producer.commit(hole, other, 0)  # … and so are these, of which the last waits for the next drain
            with mock.patch.object(Register, "has", return_value=False):
                world.pump._events = 11
                world.now += 2.0
                world.pump.tick(world.now, at(world.now))
            self.assertEqual(producer.tail, 11)
            world.steps = 0
            world.tick()
            self.assertEqual(world.kills, 2)
            for _ in range(3):
                world.tick()
            self.assertEqual(fold(world.columns())[1], 1.0, steps)
        self.assertGreater(steps, 2)

    @examples(150)
    @given(
        st.lists(
            st.one_of(
                st.tuples(st.just("add"), st.integers(0, 2), st.integers(-3, 3)),
                st.tuples(st.just("owe"), st.integers(0, 2), st.integers(-3, 3)),
                st.tuples(st.just("die"), st.integers(0, 2), st.just(0)),
                st.tuples(st.just("tick"), st.just(0), st.just(0)),
                st.tuples(st.just("kill"), st.integers(0, 12), st.just(0)),
            ),
            max_size=25,
        ),
        st.integers(0, 2**32),
    )
    def test_the_state_is_the_sum_of_the_living_whatever_is_killed_lost_repeated_or_disordered(
        self, steps: list[tuple[str, int, int]], seed: int
    ) -> None:
        world = World()
        try:
            for what, which, value in steps:
                while len(world.producers) < 3:
                    world.process()
                if what in ("add", "owe"):
                    world.add(world.producers[which], float(value), what == "owe")
                elif what == "die":
                    world.die(world.producers[which])
                else:
                    world.steps = which if what == "kill" else None
                    world.tick()
            world.tick()
            world.tick()
            columns = world.columns()
            self.assertEqual(sum(column.weight for column in columns), world.recorded)
            self.assertEqual(world.keeper.books.recorded, world.recorded)
            chance = Random(seed)
            gone = [column for column in columns if values_of(column)[0][1] == RING_GONE]
            others = [column for column in columns if column not in gone]
            chance.shuffle(others)
            self.assertEqual(fold([*others, *chance.sample(others, len(others) // 2), *gone])[1], sum(world.nets.values()))
            lost = [column for column in columns if chance.random() < 0.7]
            world.keeper.books.dropped["refused"] += 1
            begin = len(columns)
            world.tick()
            ends = [column for column in columns if isinstance(column.values, list) and column.values[0][1] >= RING_GONE - 1]
            self.assertEqual(fold([*lost, *ends, *world.columns()[begin:]])[1], sum(world.nets.values()))
        finally:
            world.close()
