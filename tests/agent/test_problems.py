"""Whatever needs a person is a sentence with its count and its cure, in the status and once in the log; nothing else is."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import sqlite3
import struct
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.logger import Logger, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from taba import batch as codec
from taba import ring as layouts
from taba.agent.lanes import RETAIN_SECONDS
from taba.agent.problems import GRACE_SECONDS, LOSS_SHOWN_SECONDS, LOSSES, POSTPONING_SECONDS, STUCK_SECONDS, Problems, Space
from taba.agent.pump import SCAN_SECONDS
from taba.agent.telling import Life
from taba.batch import Verdict
from taba.ring import DROP_REASONS
from tests.agent.moments import at
from tests.agent.producers import Producer
from tests.agent.world import AGENT, World

MiB = 1 << 20
AGENT_REASONS = {"spool_full", "no_disk", "malformed", "refused", "gap", "too_old", "outbox_corrupt", "spool_corrupt", "too_many_tabs"}


def _full(*_: object) -> None:
    raise sqlite3.OperationalError("database or disk is full")


class ProblemTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = tempfile.mkdtemp(dir="/dev/shm")
        self.addCleanup(shutil.rmtree, self.directory)
        self.space = Space(100 * MiB, 200 * MiB)

    def world(self, **arguments: Any) -> World:
        world = World(self.directory, **arguments)
        self.addCleanup(world.end_producers)
        self.addCleanup(world.die)
        self.watch(world)
        return world

    def watch(self, world: World) -> None:
        self.world_ = world
        self.problems = Problems(world.keeper, world.pump, world.dispatch, "/dev/shm", lambda: self.space, world.now)

    def found(self, **own: str) -> dict[str, str]:
        return self.problems.look(self.world_.now, own)

    def only(self, key: str, *parts: str) -> None:
        found = self.found()
        self.assertEqual(list(found), [key], found)
        for part in parts:
            self.assertIn(part, found[key])

    def test_an_agent_that_works_has_none(self) -> None:
        world = self.world()
        for _ in range(30):
            world.record(10)
            world.tick()
            world.send()
            self.assertEqual(self.found(), {})

    def test_every_reason_for_a_drop_has_its_cure_here_and_its_line_in_the_documentation(self) -> None:
        self.assertEqual(set(LOSSES), set(DROP_REASONS) | AGENT_REASONS)
        page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
        self.assertEqual([reason for reason in LOSSES if f"| `{reason}` |" not in page], [])

    def test_what_clients_drop_is_told_with_count_client_and_cure_for_an_hour_after_the_last(self) -> None:
        world = self.world()
        world.producers[1].drop("ring_full", 250_000)
        world.producers[0].drop("ring_full", 7)
        world.tick()
        self.only(
            "dropped ring_full",
            "250007 events dropped as ring_full, most by Client web/1 (250000) as far as this Agent knows since it began: ",
        )
        world.now += LOSS_SHOWN_SECONDS
        world.tick()
        self.assertEqual(self.found(), {})
        world.producers[1].die()
        for _ in range(3):
            world.tick()
        self.assertEqual((self.found(), world.keeper.books.totals()["ring_full"]), ({}, 250_000))  # retired: no new loss

    def test_what_a_ring_counted_that_is_none_any_more_is_not_told_as_none(self) -> None:
        world = self.world()
        world.producers[0].drop("ring_full", 2**40)
        world.tick()
        self.only("dropped ring_full", "1099511627776 events")
        os.pwrite(world.producers[0].fd, bytes(8 * len(DROP_REASONS)), layouts.drops_range(65_536)[0])  # its maker overwrote it
        world.tick()
        self.assertEqual(self.found(), {})

    def test_who_dropped_most_is_told_of_all_that_was_dropped_since_the_agent_began_and_of_no_shorter_time(self) -> None:
        world = self.world()
        world.producers[1].drop("ring_full", 10)
        world.producers[1].die()
        for _ in range(3):
            world.tick()
        self.only("dropped ring_full", "10 events dropped as ring_full by Client web/1: ", "TABA_RING_BYTES")
        world.producers[0].drop("ring_full", 7)
        world.tick()
        self.only(
            "dropped ring_full", "17 events dropped as ring_full, most by Client web/1 (10) as far as this Agent knows since it began: "
        )
        world.producers[0].drop("ring_full", 11)
        world.tick()
        self.only(
            "dropped ring_full", "21 events dropped as ring_full, most by Client web/0 (11) as far as this Agent knows since it began: "
        )

    def test_processes_that_have_no_ring_are_counted_and_those_that_found_no_place_even_for_that_are_told(self) -> None:
        world = self.world()
        path = Path(self.directory, layouts.segment_name(AGENT, bytes(8)))
        holder = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(holder, layouts.COUNTING_BYTES)
        os.pwrite(holder, layouts.encode_header(layouts.COUNTING_BYTES, 0, 1, bytes(16), 1.0, "web/9"), 0)
        os.pwrite(holder, layouts.MAGIC.to_bytes(8, "little"), 0)
        for place, count in ((0, 3), (layouts.SLOTS - 1, 4)):
            offset = layouts.SLOTS_OFFSET + layouts.SLOT_BYTES * place
            os.pwrite(holder, count.to_bytes(8, "little"), offset + 8 * DROP_REASONS.index("no_ring"))
        lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, layouts.SLOTS_OFFSET + layouts.SLOT_BYTES * 3, 1, 0)
        fcntl.fcntl(holder, fcntl.F_OFD_SETLK, lock)
        for _ in range(3):
            world.tick()
        self.only("dropped no_ring", "7 events dropped as no_ring: ", "TABA_SHM_BYTES")
        self.assertTrue(path.exists())  # somebody counts there
        os.pwrite(holder, b"\1", layouts.NO_PLACE_OFFSET)
        self.assertIn("raise TABA_SHM_BYTES", self.found()["no place"])
        os.close(holder)
        for _ in range(3):
            world.tick()
        self.assertFalse(path.exists())
        self.only("dropped no_ring", "7 events")
        self.assertEqual((world.keeper.books.recorded, world.keeper.books.totals()), (7, {"no_ring": 7}))

    def test_what_was_dropped_before_a_restart_is_history_and_what_while_it_was_away_is_not(self) -> None:
        world = self.world()
        world.producers[0].drop("ring_full", 5)
        world.producers[0].die()
        for _ in range(3):
            world.tick()
        world.die()
        world.producers[1].drop("directory_full", 9)
        world.born()
        self.watch(world)
        world.tick()
        self.only("dropped directory_full", "9 events")

    def test_refused_and_lost_batches_are_told(self) -> None:
        world = self.world()
        world.refuse = lambda id: True
        world.record(10)
        world.tick()
        world.send()
        self.only("dropped refused", "10 events", "kept aside")
        world.refuse = lambda id: False
        world.record(10)
        world.tick()
        world.send()
        world.send()
        for _ in range(4):
            world.now += RETAIN_SECONDS
            world.tick()
            world.send()
        for stream, bucket in world.store.marks:
            world.store.set_mark(stream, bucket, 0)
        world.record(10)
        for _ in range(4):
            world.tick()
            world.send()
        self.assertIn("10 events in 3 batches", self.found()["dropped gap"])
        self.assertNotIn("Client", self.found()["dropped gap"])

    def test_a_full_disk_a_full_spool_and_what_is_dropped_then_are_told_and_end_with_it(self) -> None:
        world = self.world()
        world.spool._database.execute("PRAGMA max_page_count=8")
        while not world.keeper.books.dropped["no_disk"]:
            world.record(2000)
            world.tick()
        self.assertEqual(set(world.keeper.books.totals()), {"no_disk"})
        found = self.found()
        self.assertIn("database or disk is full", found["spool"])
        self.assertIn("make room on its disk", found["spool"])
        self.assertIn("disk is full or fails: make room on that disk", found["dropped no_disk"])
        world.spool._database.execute("PRAGMA max_page_count=1000000")
        world.tick()
        self.assertEqual((set(self.found()) - {"stuck"}, world.keeper.moves > 0), ({"dropped no_disk"}, True))

    def test_what_could_not_be_kept_aside_is_no_problem_once_the_disk_takes_it_though_nothing_else_is_written_there(self) -> None:
        world = self.world()
        world.refuse = lambda id: True
        world.spool.keep_aside = _full  # type: ignore[assignment, method-assign]
        world.record(10)
        world.tick()
        world.send()
        self.assertIn("disk is full", self.found()["spool"])
        with mock.patch.object(world.spool, "try_to_write", _full):
            world.tick()
            self.assertIn("disk is full", self.found()["spool"])
        world.tick()
        self.only("dropped refused", "10 events")

    def test_a_spool_at_its_bound_is_told_before_anything_is_dropped(self) -> None:
        world = self.world(spool_bytes=MiB + 100_000)
        while not world.keeper.moves:
            world.record(3000)
            world.tick()
        world.move()
        self.only("spool full", f"{world.spool.batches} batches", "bring a Server back")

    def test_full_shared_memory_is_told_from_where_no_new_ring_has_room(self) -> None:
        world = self.world()
        self.space = Space(512 * 1024, 64 * MiB)
        self.assertEqual(self.found(), {})
        self.space = Space(512 * 1024 - 1, 64 * MiB)
        self.only("shm", "511 of 65536 KiB are free", "--shm-size")
        self.space = Space(0, 0)  # no bound
        self.assertEqual(self.found(), {})
        world.memory.pages = 20 * 4096
        self.space = Space(MiB, 2 * MiB)
        self.only("outbox", "goes through the spool")

    def test_rings_for_which_there_are_no_descriptors_are_told_together_and_read_once_there_are(self) -> None:
        world = self.world()
        for number in range(8):
            self.addCleanup(Producer(AGENT, f"job/{number}", 65_536, self.directory).die)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        spare = [os.open("/dev/null", os.O_RDONLY) for _ in range(highest)]  # no place below the limit is free
        limit = max(spare) + 4
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        try:
            world.pump.tick(world.now + SCAN_SECONDS, at(0.0))
            unread = len(world.rings.problems)
            self.assertTrue(5 < unread < 10, unread)
            found = self.found()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in spare:
                os.close(fd)
        ((_, sentence),) = found.items()
        self.assertIn(f"{unread} rings, such as taba.{AGENT}.", sentence)
        self.assertIn("cannot be opened: Too many open files; raise the Agent's limit of descriptors", sentence)
        world.tick()
        self.assertEqual((self.found(), len(world.rings.open)), ({}, 10))

    def test_a_server_that_does_not_answer_is_told_after_a_moment_and_no_more_when_it_does(self) -> None:
        world = self.world()
        world.record(10)
        world.tick()
        (parcel,) = world.dispatch.parcels(world.now, at(world.now))
        world.dispatch.failed(parcel, "nothing listens there", False, world.now)
        self.assertEqual(self.found(), {})
        world.now += GRACE_SECONDS
        self.only("server http://127.0.0.1:8280", "nothing listens there, for 3 s", "waits in outbox and spool")
        world.send()
        self.assertEqual(self.found(), {})

    def test_what_a_server_takes_much_later_is_told_with_its_reason_and_what_is_over_in_a_moment_is_not(self) -> None:
        world = self.world()
        key, peer = "postponing http://127.0.0.1:8280", next(iter(world.dispatch.servers.values()))
        verdicts = [Verdict(codec.LATER, 4.9, "a Handler takes long"), Verdict(codec.LATER, 5.0), Verdict(codec.LATER, 5.0, "x" * 1000)]
        for place, verdict in enumerate(verdicts):
            self.patch(world, "_verdict", lambda send, verdict=verdict: verdict)
            world.record(10)
            world.tick()
            world.send()
            self.assertEqual(key in self.found(), place == 2)
            world.now += 5.1
        self.assertGreaterEqual(peer.envelopes, 3)
        self.assertIn("takes some batches later: xxx", self.found()[key])
        self.assertLess(len(self.found()[key]), 500)
        world.now += POSTPONING_SECONDS
        self.assertNotIn(key, self.found())

    def test_batches_that_no_server_applies_are_told_whatever_it_answers(self) -> None:
        world = self.world()
        self.patch(world, "_verdict", lambda send: Verdict(codec.LATER, 0.5))
        world.record(10)
        world.tick()
        self.found()
        for _ in range(int(STUCK_SECONDS / 2)):
            world.send()
            self.assertEqual(self.found(), {})
            world.tick()
        world.tick()
        self.only("stuck", "3 batches wait", "see what the Servers say")

    def test_an_agent_that_knows_no_server_is_told_after_a_moment(self) -> None:
        world = self.world()
        world.pump._drain = None
        self.assertEqual(self.found(), {})
        world.now += GRACE_SECONDS
        self.only("buckets", "no Server has told the number of buckets yet", "--server")


class TellingTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.mkdtemp(dir="/dev/shm")
        self.addCleanup(shutil.rmtree, directory)
        self.world = World(directory)
        self.addCleanup(self.world.end_producers)
        self.addCleanup(self.world.die)
        self.said: list[str] = []
        log = Logger("test", observer=lambda said: self.said.append(str(formatEvent(said))))  # type: ignore[arg-type]
        self.life = Life(log, self.world.keeper, self.world.dispatch)

    def tell(self, **problems: str) -> list[str]:
        before = len(self.said)
        self.life.tell(problems, self.world.now)
        return self.said[before:]

    def test_a_problem_is_told_once_and_its_end(self) -> None:
        self.assertEqual((self.tell(spool="full (1)"), self.tell(spool="full (2)")), (["problem: full (1)"], []))
        self.assertEqual(self.tell(), ["no problem any more: full (1)"])

    def test_servers_are_found_lost_and_back(self) -> None:
        (server,) = self.world.dispatch.servers.values()
        self.assertEqual(self.tell(), [])
        server.answers()
        self.assertEqual((self.tell(), self.tell()), ([f"found Server {server.url}"], []))
        server.fails("no answer in time", self.world.now)
        self.assertEqual((self.tell(), self.tell()), ([f"lost Server {server.url}: no answer in time"], []))
        self.world.now += 30.0
        server.answers()
        self.assertEqual((self.tell(), self.tell()), ([f"Server {server.url} is back after 30 s"], []))
        del self.world.dispatch.servers[server.url]
        self.assertEqual(self.tell(), [f"Server {server.url} is none any more, as the others tell"])

    def test_a_move_to_the_spool_is_told_and_its_end(self) -> None:
        world = self.world
        while not world.keeper.moves:
            world.record(2000)
            world.tick()
        (said,) = self.tell()
        self.assertIn("moves to the spool (move 1;", said)
        for _ in range(int(3 * RETAIN_SECONDS)):
            world.tick()
            world.send()
        self.assertEqual(self.tell()[-1], "the spool is empty again: Servers have all that was in it")
