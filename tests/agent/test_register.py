"""The register of what was sent of Tabs that heal: what it takes back, whatever is late, lost, or gone with the host."""

from __future__ import annotations

import glob
import json
import os
import sqlite3
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from random import Random
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from taba import ring as layouts
from taba.agent import register as module
from taba.agent import sums
from taba.agent.dispatch import Dispatch
from taba.agent.keeper import Keeper
from taba.agent.outbox import Outbox
from taba.agent.register import ENDED, GONE, SENT, Register, SentSum
from taba.agent.spool import Spool
from taba.agent.sums import AGAIN_SECONDS, MAX_TOLD
from taba.batch import RING_ENDED, RING_GONE, Column, SentBatch
from taba.damage import unseal
from taba.handlers.base import Events
from taba.handlers.updown import UpDown
from tests.agent.moments import at
from tests.agent.outboxes import Memory
from tests.agent.servers import Store
from tests.agent.test_sums import TAB, World
from tests.pieces import values_of

RESTS = int(AGAIN_SECONDS) + 10  # ticks of a second until what is gone is said again and forgotten


@contextmanager
def unread_spool() -> Iterator[None]:
    """What a spool holds cannot be asked meanwhile: the disk does not say."""
    fails = sqlite3.OperationalError("disk I/O error")
    with mock.patch.object(Spool, "last", side_effect=fails), mock.patch.object(Spool, "rows", side_effect=fails):
        yield


class Served(World):
    """A world with a Server, which decides with real marks; what is on its way to it may stay there."""

    def __init__(self) -> None:
        self.store = Store()
        super().__init__()

    def born(self) -> None:
        super().born()
        self.dispatch = Dispatch(self.keeper, ["http://127.0.0.1:8280"], Random(1))

    def serve(self, until_batch: bool = False) -> list[SentBatch]:
        """Have all that may go answered; with `until_batch` batches are left on their way, and returned, once there are some."""
        while parcels := self.dispatch.parcels(self.now, at(self.now)):
            for parcel in parcels:
                entries = [send.entry for send in parcel.sends]
                if until_batch and any(isinstance(entry, SentBatch) for entry in entries):
                    return [entry for entry in entries if isinstance(entry, SentBatch)]
                self.dispatch.answered(parcel, [self.store.decide(entry) for entry in entries], self.now)
        return []

    def live_on(self, ticks: int) -> None:
        """Seconds pass, and all that is sent is answered."""
        for _ in range(ticks):
            self.tick(1.0)
            self.keeper.tick(self.now, at(self.now))
            self.serve()

    def lose_memory(self) -> None:
        """The Agent dies, and the outbox is gone."""
        for ring in list(self.pump.rings.open.values()):
            ring.close()
        self.memory = Memory(1 << 22)
        Outbox.format(self.memory, os.urandom(16))
        self.register.close()
        self.spool.close()
        self.born()

    def boot(self) -> None:
        """The host dies, and boots anew."""
        for producer in list(self.producers):
            self.die(producer)
            os.unlink(producer.path)
        self.lose_memory()

    @property
    def value(self) -> float:
        """What the store has of TAB."""
        rows = self.store.events.get(("web/1", TAB), [])
        handler = UpDown()
        state = handler.fold(handler.new_state(), Events([1.0] * len(rows), rows), 1.0)
        return float(handler.project(state, 1.0)["value"])

    @property
    def positions(self) -> list[int]:
        """Those of all rows that were folded."""
        return [row[1] for row in self.store.events.get(("web/1", TAB), [])]


class LateTests(SynchronousTestCase):
    """A Server that was stopped with an envelope in its socket folds it, if it may, after everything else."""

    def setUp(self) -> None:
        self.world = Served()
        self.addCleanup(self.world.close)

    def on_its_way(self, value: float) -> list[SentBatch]:
        """An envelope with the sum of a process that had added so much, and is sent, and not answered."""
        world = self.world
        world.add(world.process(), value)
        world.tick()
        late = world.serve(until_batch=True)
        self.assertTrue(late)
        return late

    def wake(self, late: list[SentBatch]) -> None:
        """The Server that was stopped goes on."""
        for sent in late:
            self.world.store.decide(sent)

    def test_a_sum_on_its_way_from_a_host_that_died_does_not_come_after_its_end(self) -> None:
        world, late = self.world, self.on_its_way(3.0)
        world.boot()
        world.live_on(2 * RESTS)
        self.assertIn(RING_GONE, world.positions)
        self.assertFalse(world.register.live | world.register.ended)
        self.wake(late)
        self.assertEqual(world.value, 0.0)
        self.assertEqual(list(world.register.streams), [world.keeper.stream])

    def test_without_the_end_of_its_stream_it_would(self) -> None:
        world, late = self.world, self.on_its_way(3.0)
        with mock.patch.object(Keeper, "left_open", lambda *_: None):
            world.boot()
            world.live_on(2 * RESTS)
        self.wake(late)
        self.assertEqual(world.value, 3.0)

    def test_nor_does_one_of_a_host_that_dies_again_before_the_stream_is_ended(self) -> None:
        world, late = self.world, self.on_its_way(3.0)
        for _ in range(3):
            world.boot()
            world.tick()
        self.assertEqual(world.store.ended, [])
        world.live_on(2 * RESTS)
        self.wake(late)
        self.assertEqual(world.value, 0.0)

    def test_nor_one_of_a_stream_before_the_last(self) -> None:
        world, late = self.world, self.on_its_way(3.0)
        world.keeper.begin_stream(at(world.now))
        world.add(world.producers[0], 2.0)
        world.tick()
        later = world.serve(until_batch=True)
        self.assertNotEqual(late, later)
        world.boot()
        world.live_on(2 * RESTS)
        self.wake(late)
        self.wake(later)
        self.assertEqual(world.value, 0.0)

    def test_the_end_of_a_process_that_went_with_the_outbox_is_said_again_at_once(self) -> None:
        world = self.world
        world.add(world.process(), 3.0)
        world.live_on(2)
        world.die(world.producers[0])
        for _ in range(4):
            world.tick(1.0)  # its end is in the outbox, and no Server answers
        self.assertEqual((len(world.register.ended), world.value), (1, 3.0))
        world.boot()
        with mock.patch.object(Keeper, "older_buckets", lambda self: range(65_536)):  # what is older waits, for a minute and longer
            world.live_on(3)
        self.assertEqual(world.value, 0.0)

    def test_nothing_is_gone_before_the_store_says_that_the_stream_is_ended(self) -> None:
        world = self.world
        self.on_its_way(3.0)
        world.boot()
        for _ in range(20):
            world.tick()  # no Server answers
        rows = [row for column in world.columns() for row in values_of(column)]
        self.assertEqual({row[1] for row in rows}, {RING_ENDED})

    def test_where_the_spool_cannot_say_what_it_holds_of_it_that_is_asked_again_and_nothing_is_gone_before(self) -> None:
        world, late = self.world, self.on_its_way(3.0)
        with unread_spool():
            world.boot()
            world.live_on(10)
            self.assertNotIn(RING_GONE, world.positions)
            self.assertEqual(len(world.register.streams), 2)
            world.lose_memory()  # and again
            world.live_on(5)
        world.live_on(2 * RESTS)
        self.assertIn(RING_GONE, world.positions)
        self.wake(late)
        self.assertEqual((world.value, list(world.register.streams)), (0.0, [world.keeper.stream]))

    def test_what_is_undecided_is_ended_by_the_next_agent_as_well(self) -> None:
        world, late = self.world, self.on_its_way(3.0)
        with unread_spool():
            world.boot()
            world.live_on(5)
        for ring in list(world.pump.rings.open.values()):
            ring.close()
        world.register.close()
        world.spool.close()
        world.born()
        world.live_on(2 * RESTS)
        self.wake(late)
        self.assertEqual((world.value, list(world.register.streams)), (0.0, [world.keeper.stream]))

    def test_where_only_the_outbox_was_removed_the_process_goes_on_with_its_sum_until_it_dies(self) -> None:
        world, late = self.world, self.on_its_way(3.0)
        world.lose_memory()
        world.live_on(5)
        self.wake(late)
        self.assertEqual(world.value, 3.0)
        world.add(world.producers[0], 1.0)
        world.live_on(2)
        self.assertEqual(world.value, 4.0)
        world.die(world.producers[0])
        world.live_on(2 * RESTS)
        self.assertEqual((world.value, world.positions[-1]), (0.0, RING_GONE))

    def test_a_stream_that_the_outbox_still_knows_is_ended_once(self) -> None:
        world = self.world
        world.add(world.process(), 3.0)
        world.live_on(2)
        for _ in range(2):  # Agents that were killed
            for ring in list(world.pump.rings.open.values()):
                ring.close()
            world.register.close()
            world.spool.close()
            world.born()
            world.live_on(2 * RESTS)
        self.assertEqual(len(world.store.ended), len(set(world.store.ended)))
        self.assertEqual((world.value, len(world.register.streams)), (3.0, 1))


class WentBackTests(SynchronousTestCase):
    """A store that went back in time, to before what the Agent retains no more."""

    def setUp(self) -> None:
        self.world = Served()
        self.addCleanup(self.world.close)

    def back(self) -> tuple[object, ...]:
        """What the store has now."""
        store = self.world.store
        return deepcopy(store.kept), deepcopy(store.events)

    def go_back(self, before: tuple[object, ...]) -> None:
        """The store is as it was, and nothing is retained: the memory was needed."""
        self.world.store.kept, self.world.store.events = deepcopy(before)  # type: ignore[assignment]
        for lane in self.world.keeper.lanes.values():
            lane.give_up_retained()

    def test_the_end_of_a_process_that_the_store_lost_is_said_again(self) -> None:
        world = self.world
        world.add(world.process(), 3.0)
        world.live_on(2)
        before = self.back()
        world.die(world.producers[0])
        world.live_on(5)
        self.assertEqual((world.value, world.positions[-1]), (0.0, RING_GONE))
        self.go_back(before)
        self.assertEqual(world.value, 3.0)
        world.live_on(RESTS)
        self.assertEqual(world.value, 0.0)
        self.assertFalse(world.register.live | world.register.ended)

    def test_an_end_that_waits_for_older_batches_is_said_again_when_a_gap_shows_the_loss(self) -> None:
        world = self.world
        world.add(world.process(), 3.0)
        world.live_on(2)
        before = self.back()
        with mock.patch.object(Keeper, "older_buckets", lambda self: range(65_536)):
            world.die(world.producers[0])
            world.live_on(5)
            self.assertEqual((world.value, world.positions[-1]), (0.0, RING_ENDED))
            self.go_back(before)
            world.add(world.process(), 1.0)  # in the same bucket
            world.live_on(5)
            self.assertEqual(world.value, 1.0)

    def test_the_sum_of_a_living_process_that_the_store_lost_is_said_again_though_no_event_was_counted_with_it(self) -> None:
        world = self.world
        world.add(world.process(), 3.0)
        with mock.patch.object(Keeper, "make_room", lambda *_: False):
            world.tick()  # there was no room: its event is counted as dropped
        before = self.back()
        world.live_on(2)  # the sum comes all the same, and stands for no event
        self.assertEqual((world.value, world.keeper.books.dropped["spool_full"]), (3.0, 1))
        self.go_back(before)
        world.add(world.process(), 1.0)
        world.live_on(5)
        self.assertEqual(world.value, 4.0)

    def test_no_more_than_so_many_wait_to_be_said_again(self) -> None:
        world = self.world
        with mock.patch("taba.agent.sums.MAX_RESTING", 2):
            for _ in range(4):
                world.add(world.process(), 1.0)
            world.live_on(2)
            for producer in list(world.producers):
                world.die(producer)
            world.live_on(4)
            self.assertEqual(len(world.register.ended), 2)
            world.live_on(RESTS)
        self.assertEqual((world.value, len(world.register.ended)), (0.0, 0))


class OwedTests(SynchronousTestCase):
    """Each event that found a ring full is in a count, though its process died before it was told."""

    def end(self, owed_events: int) -> tuple[int, int, dict[str, int]]:
        """What is recorded, folded and dropped when a process dies that owes so many events of one Tab."""
        world = Served()
        try:
            producer = world.process()
            world.live_on(1)
            os.pwrite(producer.fd, struct.pack("<dQ", 5.0, owed_events), producer.cells[producer.tab(TAB, "UpDown")])
            os.pwrite(producer.fd, struct.pack("<Q", owed_events), layouts.OWES_OFFSET)
            world.die(producer)
            world.live_on(3)
            self.assertEqual((world.value, dict(world.pump.rings.open)), (0.0, {}))
            return world.keeper.books.recorded, world.store.weight, dict(world.keeper.books.dropped)
        finally:
            world.close()

    def test_of_one_tab_to_the_last(self) -> None:
        for events in (1, MAX_TOLD, MAX_TOLD + 1, 2 * MAX_TOLD, 2 * MAX_TOLD + 1, 7 * MAX_TOLD + 3):
            self.assertEqual(self.end(events), (events, events, {}))

    def test_beyond_what_columns_stand_for_they_are_dropped_and_counted(self) -> None:
        self.patch(sums, "MAX_ROWS", 5)
        most = (5 + 2) * MAX_TOLD  # one column with the last sum, one with the end, and those beside it
        self.assertEqual(self.end(most), (most, most, {}))
        self.assertEqual(self.end(most + 1), (most + 1, most, {"ring_full": 1}))
        self.assertEqual(self.end(2**64 - 1)[2]["ring_full"], 2**53 - most)  # a ring that says nonsense


class RegisterTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = os.path.join(self.mktemp())
        self.register = Register(self.path)
        self.addCleanup(lambda: self.register.close())

    def entry(self, number: int) -> SentSum:
        return SentSum(f"{number:032x}", f"taba.sums.{number}", "web/1", "in_flight", "UpDown")

    def anew(self) -> Register:
        self.register.close()
        self.register = Register(self.path)
        return self.register

    def test_what_is_written_is_read_again(self) -> None:
        one, two, three = map(self.entry, range(3))
        self.register.begin(b"s" * 16)
        self.register.begin(b"t" * 16)
        self.register.note(SENT, [one, two, three])
        self.register.note(ENDED, [two])
        self.register.note(GONE, [three])
        self.register.over([b"s" * 16])
        for _ in range(2):
            found = self.anew()
            self.assertEqual((found.live, found.ended, list(found.streams)), ({one}, {two}, [b"t" * 16]))

    def test_its_file_stays_within_its_bound_whatever_comes_and_goes(self) -> None:
        self.patch(module, "SPARE_LINES", 6)
        stays = self.entry(10_000)
        self.register.note(SENT, [stays])
        for number in range(12):
            for word in (SENT, ENDED, GONE):
                self.register.note(word, [self.entry(number)])
            with open(self.path, "rb") as file:
                self.assertLessEqual(len(unseal(file.read()).texts), 6 + 2 * 2)
        self.assertEqual((self.anew().live, self.register.ended), ({stays}, set()))

    def test_of_too_many_streams_the_oldest_are_forgotten(self) -> None:
        self.patch(module, "MAX_STREAMS", 3)
        for number in range(4):
            self.assertEqual(len(self.register.streams), number)
            self.register.begin(number.to_bytes(16, "big"))
        self.assertEqual([int.from_bytes(stream, "big") for stream in self.anew().streams], [1, 2, 3])

    def spoil(self, places: Iterable[int]) -> None:
        """Make other bytes of these."""
        with open(self.path, "r+b") as file:
            content = bytearray(file.read())
            for place in places:
                content[place] ^= 0x51
            file.seek(0)
            file.write(content)

    def test_whichever_byte_is_damaged_nothing_is_lost_and_the_file_is_kept(self) -> None:
        self.register.begin(b"s" * 16)
        self.register.note(SENT, [self.entry(1)])
        self.register.note(ENDED, [self.entry(2)])
        self.anew()
        size = self.register._used  # behind it there is what is set aside
        for place in range(0, size, 7):
            self.register.close()
            self.spoil([place])
            found = self.register = Register(self.path)
            self.assertEqual((found.live, found.ended, list(found.streams)), ({self.entry(1)}, {self.entry(2)}, [b"s" * 16]), place)
            if found.damage is not None:  # an empty line more or less is none
                self.assertIn("nothing of it is lost; it is kept as", found.damage)
                self.assertIn(self.path + ".damaged-", found.damage)
            else:
                self.assertEqual(found._used, size)
            self.assertIsNone(self.anew().damage)
            for name in glob.glob(glob.escape(self.path) + ".damaged-*"):
                os.unlink(name)

    def test_where_both_lines_of_an_entry_are_damaged_it_is_said_how_many_are_lost(self) -> None:
        self.register.note(SENT, [self.entry(1), self.entry(2)])
        self.anew().close()
        with open(self.path, "rb") as file:
            lines = file.read().split(b"\n\n")
        self.spoil([20, 20 + len(lines[0]) + 2])
        self.assertIn("some 1 of its entries are lost", str(self.anew().damage))
        self.assertEqual(len(self.register.live), 1)

    def test_a_register_of_the_version_before_is_read_and_written_anew(self) -> None:
        self.register.close()
        with open(self.path, "wb") as file:
            for line in (("sent", *self.entry(1)), ("stream", (b"s" * 16).hex())):
                file.write(json.dumps(line).encode() + b"\n")
        for _ in range(2):
            found = self.anew()
            self.assertEqual((found.live, list(found.streams), found.damage), ({self.entry(1)}, [b"s" * 16], None))

    def test_lines_of_the_version_before_that_are_none_are_passed_over(self) -> None:
        self.register.close()
        with open(self.path, "wb") as file:
            file.write(json.dumps(("sent", *self.entry(1))).encode() + b"\n")
            file.write(b'5\nnull\n{}\n[]\n["sent"]\n["sent", "xx", "a", "b", "c", "d"]\n["stream", "00"]\n["stream", 5]\n[[]]\n')
            file.write(b"\xff\xfe\n" + b"[" * 100_000 + b'\n["sent", "' + b"0" * 32)
        self.assertEqual((self.anew().live, list(self.register.streams)), ({self.entry(1)}, []))

    def test_a_disk_that_takes_nothing_is_a_problem_and_all_is_there_once_it_does(self) -> None:
        self.register.note(SENT, [self.entry(1)])
        with mock.patch("os.fsync", side_effect=OSError(28, "No space left on device")):
            self.register.note(SENT, [self.entry(2)])
            self.register.begin(b"s" * 16)
        self.assertIn("No space left", str(self.register.problem))
        self.register.note(ENDED, [self.entry(1)])
        self.assertIsNone(self.register.problem)
        found = self.anew()
        self.assertEqual((found.live, found.ended, list(found.streams)), ({self.entry(2)}, {self.entry(1)}, [b"s" * 16]))

    def test_what_a_disk_did_not_take_is_tried_again_though_there_is_nothing_more_to_write(self) -> None:
        with mock.patch("os.fsync", side_effect=OSError(28, "No space left on device")):
            self.register.note(SENT, [self.entry(1)])
            self.register.over([])
            self.assertIn("No space left", str(self.register.problem))
        self.register.over([])  # as once a second
        self.assertIsNone(self.register.problem)
        self.assertEqual(self.anew().live, {self.entry(1)})

    def test_the_disk_has_room_for_what_comes_however_much_has_come(self) -> None:
        spare = 16 * 1024
        self.patch(module, "SPARE_BYTES", spare)
        for number in range(400):
            self.register.note(SENT, [self.entry(number)])
            with open(self.path, "rb") as file:
                used = len(file.read().rstrip(b"\0"))
            found = os.stat(self.path)
            self.assertGreaterEqual(min(found.st_size, 512 * found.st_blocks) - used, spare // 2)
        self.assertGreater(used, 2 * spare)
        self.assertEqual(self.anew().live, {self.entry(number) for number in range(400)})

    def test_where_no_room_can_be_set_aside_it_is_written_all_the_same(self) -> None:
        with mock.patch("os.posix_fallocate", side_effect=OSError(95, "Operation not supported")):
            self.anew().note(SENT, [self.entry(1)])
        self.assertIsNone(self.register.problem)
        self.assertEqual(self.anew().live, {self.entry(1)})

    def test_one_that_begins_on_a_full_disk_goes_on_in_what_was_set_aside(self) -> None:
        self.register.note(SENT, [self.entry(1)])
        with mock.patch.object(Register, "_begin", side_effect=full()):
            found = self.anew()
        found.note(SENT, [self.entry(2)])
        found.note(ENDED, [self.entry(1)])
        found.begin(b"s" * 16)
        self.assertEqual((found.problem, found.has(self.entry(2)), found.has(b"s" * 16)), (None, True, True))
        again = self.anew()
        self.assertEqual(
            (again.live, again.ended, list(again.streams), again.damage), ({self.entry(2)}, {self.entry(1)}, [b"s" * 16], None)
        )

    def test_what_a_full_disk_does_not_take_it_does_not_have_until_it_does(self) -> None:
        self.register.note(SENT, [self.entry(1)])
        self.register.close()
        self.spoil([20])  # kept aside: there is no file any more
        with mock.patch.object(Register, "_begin", side_effect=full()):
            found = self.anew()
            found.note(SENT, [self.entry(2)])
            self.assertEqual([found.has(self.entry(number)) for number in (1, 2)], [False, False])
            self.assertIn("is not sent before it is named there", str(found.problem))
        found.over([])
        self.assertEqual([found.has(self.entry(number)) for number in (1, 2)], [True, True])
        self.assertEqual(self.anew().live, {self.entry(1), self.entry(2)})


class FullDiskTests(SynchronousTestCase):
    """An Agent whose disk has no room for a register, from its start on."""

    def setUp(self) -> None:
        with mock.patch.object(Register, "_begin", side_effect=full()):
            self.world = Served()
        self.addCleanup(self.world.close)

    def live_on(self, ticks: int) -> None:
        with mock.patch.object(Register, "_begin", side_effect=full()):
            self.world.live_on(ticks)

    def sent(self) -> int:
        return sum(column.tab == TAB for column in self.world.columns())

    def test_what_goes_up_and_down_waits_until_it_is_named_and_everything_else_goes(self) -> None:
        world = self.world
        one, two = world.process(), world.process()
        for producer in (one, two):
            for owed in (False, True, False):
                world.add(producer, 2.0, owed)
            producer.record(producer.tab("other"), 1.0)
        self.live_on(3)
        self.assertEqual((self.sent(), world.keeper.books.recorded), (0, 2))
        self.assertEqual([column.tab for column in world.columns()].count("other"), 2)
        for steps in range(6):  # killed before each write of a drain, and begun anew: the rings have it
            world.add(one, -3.0)
            world.steps = steps
            with mock.patch.object(Register, "_begin", side_effect=full()):
                world.tick()
        self.assertGreater(world.kills, 2)
        self.live_on(2)
        self.assertEqual(self.sent(), 0)
        world.die(two)  # what it added is gone with it, its events count
        self.live_on(2)
        world.live_on(3)  # there is room
        self.assertEqual((world.value, world.register.problem), (world.nets.total(), None))
        weights = sum(column.weight for column in world.columns())
        self.assertEqual((world.keeper.books.recorded, weights), (world.recorded + 2, world.recorded + 2))

    def test_a_stream_that_cannot_be_named_carries_none(self) -> None:
        world = self.world
        producer = world.process()
        world.add(producer, 2.0)
        world.live_on(2)
        sent = self.sent()
        self.assertGreater(sent, 0)
        world.register._failed(full())
        world.keeper.begin_stream(at(world.now))
        world.add(producer, 2.0)
        self.live_on(2)
        self.assertEqual(self.sent(), sent)
        world.live_on(2)
        self.assertEqual((world.value, world.keeper.books.recorded), (4.0, world.recorded))

    def test_nor_one_that_begins_only_as_there_is_room_in_the_outbox_again(self) -> None:
        world = self.world
        producer = world.process()
        world.add(producer, 2.0)
        world.live_on(2)
        world.keeper.is_homeless = True
        world.add(producer, 2.0)
        world.tick()  # into the spool, of a stream that is named
        world.keeper.is_homeless = False
        spooled = world.keeper.stream
        self.assertTrue(world.register.has(spooled))
        world.register._failed(full())
        world.add(producer, 2.0)
        producer.record(producer.tab("other"), 1.0)
        with mock.patch.object(Register, "_begin", side_effect=full()):
            world.tick()
        self.assertNotEqual(world.keeper.stream, spooled)
        fresh = [batch for batch in world.batches() if batch.stream == world.keeper.stream]
        self.assertEqual({column.tab for batch in fresh for column in batch.columns if isinstance(column, Column)}, {"other"})
        world.live_on(3)
        self.assertEqual((world.value, world.keeper.books.recorded), (6.0, world.recorded + 1))


def full() -> OSError:
    return OSError(28, "No space left on device")
