"""Another user of the host: what is theirs is neither read nor used, is named, and keeps nobody else's events away."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import struct
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from taba import ring as layouts
from taba.agent import discover
from taba.agent.discover import Rings
from taba.agent.home import CannotOpen, Home
from taba.agent.locks import Stranger
from taba.agent.outbox import DEFAULT_OUTBOX_BYTES
from taba.agent.pin import PinFile, Store
from taba.agent.problems import Problems, Space
from taba.agent.spool import DEFAULT_SPOOL_BYTES
from tests.agent.producers import Producer
from tests.agent.world import AGENT, World

NOBODY = 65534
GROUP = 54321  # of both
KEPT = [
    *(f"{kept}{beside}" for kept in ("spool", "keys") for beside in ("", "-wal", "-shm", "-journal")),
    *("spool.new", "spool.list", "spool.list.new", "lock", "history", "history.old", "sums", "sums.new", "store", "store.new"),
]
MiB = 1 << 20


class StrangerTests(SynchronousTestCase):
    def setUp(self) -> None:
        if os.geteuid():
            raise SkipTest("to be another user takes root")
        self.shm = tempfile.mkdtemp(dir="/dev/shm")
        self.addCleanup(shutil.rmtree, self.shm)
        os.chmod(self.shm, 0o1777)  # as /dev/shm is
        self.spool = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.spool)

    def as_nobody(self, act: Callable[[], object], group: int = NOBODY, holds: bool = False, user: int = NOBODY) -> int:
        """Do something in a process of another user's, which with `holds` lives until the test ends: its id."""
        ready, go_on = os.pipe(), os.pipe()
        child = os.fork()
        if not child:
            code = 1
            try:
                os.setgroups([])
                os.setresgid(group, group, group)
                os.setresuid(user, user, user)
                os.umask(0)
                kept = act()
                os.write(ready[1], b"x")
                if holds:
                    os.close(go_on[1])
                    os.read(go_on[0], 1)
                del kept
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(ready[1])
        os.close(go_on[0])

        def end() -> None:
            os.close(go_on[1])
            self.assertEqual(os.waitpid(child, 0)[1], 0)
            os.close(ready[0])

        self.assertEqual(os.read(ready[0], 1), b"x")
        if holds:
            self.addCleanup(end)
        else:
            end()
        return child

    def home(self) -> Home:
        return Home(AGENT, self.spool, DEFAULT_SPOOL_BYTES, DEFAULT_OUTBOX_BYTES, self.shm, lambda: os.urandom(16))

    def world(self) -> World:
        world = World(self.shm)
        self.addCleanup(world.end_producers)
        self.addCleanup(world.die)
        return world

    def found(self, world: World) -> dict[str, str]:
        problems = Problems(world.keeper, world.pump, world.dispatch, self.shm, lambda: Space(100 * MiB, 200 * MiB), world.now)
        return problems.look(world.now, {})

    def make_ring(self, mode: int = 0o600) -> Producer:
        producer = Producer(AGENT, "stranger/1", 65_536, self.shm)
        os.fchmod(producer.fd, mode)
        producer.record(producer.tab("bids_won"), 1.0)
        return producer

    def test_an_outbox_that_a_stranger_made_first_is_named_and_neither_used_nor_removed(self) -> None:
        path = f"{self.shm}/taba-agent.{AGENT}"

        def lock() -> int:
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(fd, fcntl.LOCK_EX)
            return fd

        for make, holds in (
            (lambda: os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o666)), False),
            (lambda: os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600)), False),
            (lambda: os.mkfifo(path, 0o666), False),
            (lambda: os.symlink("/dev/zero", path), False),
            (lock, True),
        ):
            self.as_nobody(make, holds=holds)
            with self.assertRaisesRegex(CannotOpen, f"--agent: '{AGENT}': {path} belongs to user {NOBODY}, and this Agent runs as user 0"):
                self.home()
            self.assertEqual(os.lstat(path).st_uid, NOBODY)
            self.assertEqual(os.listdir(self.spool), [])
            os.unlink(path)
        self.home().close()

    def test_an_outbox_of_its_own_that_others_may_open_is_named(self) -> None:
        self.home().close()
        os.chmod(f"{self.shm}/taba-agent.{AGENT}", 0o644)
        with self.assertRaisesRegex(CannotOpen, "may be opened by others .mode 0644.; remove it"):
            self.home()

    def test_files_of_a_stranger_beside_the_spool_are_named_and_left_as_they_are(self) -> None:
        for kept in KEPT:
            path = self.spool / f"{AGENT}.{kept}"
            for make in (path.touch, lambda path=path: os.mkfifo(path), lambda path=path: path.symlink_to("/dev/zero")):
                make()
                os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
                with self.assertRaisesRegex(CannotOpen, f"--spool: .*{path} belongs to user {NOBODY}, and this Agent runs as user 0"):
                    self.home()
                self.assertEqual((path.lstat().st_uid, os.listdir(self.spool)), (NOBODY, [path.name]))
                path.unlink()
        self.home().close()

    def test_files_of_its_own_that_others_may_open_are_named_with_the_cure(self) -> None:
        self.home().close()
        for kept in KEPT:
            path = self.spool / f"{AGENT}.{kept}"
            there = path.exists()
            is_open = kept.startswith(("sums", "store"))  # what is no secret
            for mode, may in ((0o604, None if is_open else "opened"), (0o640, None if is_open else "opened"), (0o620, "(opened|written)")):
                path.touch(0o600)
                path.chmod(mode)
                if may is None:
                    self.home().close()
                else:
                    with self.assertRaisesRegex(CannotOpen, f"{path} may be {may} by others .mode 0{mode:o}.; .* chmod 600 it"):
                        self.home()
                if not there:
                    path.unlink(missing_ok=True)
            if there:
                path.chmod(0o600)
        self.home().close()

    def test_what_it_makes_is_its_own_whatever_the_umask(self) -> None:
        before = os.umask(0)
        try:
            home = self.home()
            home.register.note("sent", [])
            PinFile(self.spool / f"{AGENT}.store").meets(Store("4f2a", 8))
            home.spool.heal("a test")  # what is damaged is kept, too
            home.close()
        finally:
            os.umask(before)
        modes = {name: os.stat(self.spool / name).st_mode & 0o077 for name in os.listdir(self.spool)}
        self.assertEqual(modes, dict.fromkeys(modes, 0))
        self.assertGreaterEqual(len(modes), 7)

    def test_a_stranger_who_takes_the_name_of_a_removed_outbox_does_not_end_the_agent(self) -> None:
        home = self.home()
        self.addCleanup(home.close)
        path = home.segment.path
        for name in (path, f"{path}.new"):
            os.unlink(path)
            self.as_nobody(lambda name=name: os.close(os.open(name, os.O_RDWR | os.O_CREAT, 0o666)))  # type: ignore[misc]
            with self.assertRaises(Stranger):
                home.keep_name()
            os.unlink(name)
            self.assertTrue(home.keep_name())
        self.assertFalse(home.keep_name())

    def test_rings_of_a_stranger_are_not_read_and_told_and_harm_no_other(self) -> None:
        self.as_nobody(self.make_ring)
        self.as_nobody(lambda: self.make_ring(0o666), holds=True)
        world = self.world()
        world.record(10)
        for _ in range(3):
            world.tick()
            world.send()
        self.assertEqual((world.keeper.books.recorded, world.store.folded), (10, 10))
        told = "\n".join(self.found(world).values())
        self.assertIn(f"belongs to user {NOBODY}, and this Agent runs as user 0: it is not read", told)
        self.assertIn("may be opened by every user (mode 0666)", told)
        self.assertIn("TABA_RING_GROUP", told)

    def test_rings_of_the_group_are_read_and_of_no_other_group(self) -> None:
        self.as_nobody(lambda: self.make_ring(0o660), group=GROUP, holds=True)
        for group, read in ((None, 0), (GROUP + 1, 0), (GROUP, 1)):
            rings = Rings(AGENT, self.shm, group)
            rings.scan((), 0.0)
            self.assertEqual((len(rings.open), len(rings.problems)), (read, 1 - read))
            rings.close()

    def test_a_member_of_the_group_that_spoils_anothers_rings_spoils_those_alone_and_whose_they_are_is_said(self) -> None:
        paths: list[str] = []
        for _ in range(4):
            before = set(os.listdir(self.shm))
            self.as_nobody(lambda: self.make_ring(0o660), group=GROUP, holds=True, user=NOBODY - 1)
            [name] = set(os.listdir(self.shm)) - before
            paths.append(f"{self.shm}/{name}")
        truncated, overwritten, locked, good = paths
        world = self.world()
        world.rings._group = GROUP
        world.record(10)

        def spoil() -> object:
            for path in paths:
                try:
                    os.unlink(path)
                except PermissionError:
                    continue  # as in /dev/shm, a file is its owner's to remove
                raise AssertionError("it was removed")
            os.truncate(truncated, 0)
            fd = os.open(overwritten, os.O_RDWR)
            os.pwrite(fd, b"\xff" * (os.fstat(fd).st_size - 16), 16)
            held = os.open(locked, os.O_RDWR)
            fcntl.fcntl(held, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
            return held, os.getpid()

        world.tick()  # what was there before is recorded: of each of theirs one
        self.assertEqual(world.keeper.books.recorded, 14)
        for ring in [ring for ring in world.rings.open.values() if locked.endswith(ring.name)]:
            world.rings.release(ring)  # as where the Agent starts anew
        world.rings._read_anew()
        other = self.as_nobody(spoil, group=GROUP, holds=True)
        world.record(10)
        for _ in range(3):
            world.tick()
            world.send()
        self.assertEqual((world.keeper.books.recorded, world.store.folded), (24, 24))
        self.assertEqual([name for name in map(os.path.basename, paths) if name in world.rings.open], [os.path.basename(good)])
        told = self.found(world)
        spoilt = [said for said in told.values() if f"(user {NOBODY - 1}'s; whoever is in its group may have done so)" in said]
        self.assertTrue(any(os.path.basename(truncated) in said for said in spoilt), told)
        self.assertTrue(any(os.path.basename(overwritten) in said for said in spoilt), told)
        try:  # as root of most containers one may not look into what others have open
            os.stat(f"/proc/{other}/fd/{os.listdir(f'/proc/{other}/fd')[0]}")
            holder = f"process {other}"
        except PermissionError:
            holder = "in a process that this one may not look into"
        self.assertIn(f"1 ring of this name is read by another Agent, {holder}: end one of the two", told["taken"])

    def test_a_member_of_the_group_takes_no_more_places_than_leave_others_theirs_and_is_named(self) -> None:
        self.patch(discover, "MAX_RINGS", 8)
        self.patch(discover, "OTHERS_RINGS", 2)

        def make() -> object:
            return [self.make_ring(0o660) for _ in range(12)]

        self.as_nobody(make, group=GROUP, holds=True)
        rings = Rings(AGENT, self.shm, GROUP)
        self.addCleanup(rings.close)
        rings.scan((), 1.0)
        self.assertEqual((len(rings.open), len(rings.problems)), (6, 6))
        self.assertEqual(
            {reason.partition(",")[0] for reason in rings.problems.values()}, {f"not read: user {NOBODY} has 6 rings"}, rings.problems
        )
        mine = [self.make_ring() for _ in range(3)]
        for producer in mine:
            self.addCleanup(producer.die)
        rings.scan((), 2.0)
        self.assertEqual(sum(producer.name in rings.open for producer in mine), 2)
        self.assertEqual(len(rings.open), 8)
        # a place that is free again is had by its own user, however many of the other's wait
        rings.release(next(ring for ring in rings.open.values() if ring.name not in {producer.name for producer in mine}))
        rings.scan((), 3.0)
        self.assertEqual((sum(producer.name in rings.open for producer in mine), len(rings.open)), (3, 8))

    def test_a_ring_of_its_own_that_every_user_may_write_is_not_read(self) -> None:
        producer = self.make_ring(0o602)
        self.addCleanup(producer.die)
        rings = Rings(AGENT, self.shm)
        rings.scan((), 0.0)
        self.assertEqual((rings.open, len(rings.problems)), ({}, 1))

    def flood(self, count: int) -> None:
        """So many empty segments with the Agent's name, of another user's."""

        def make() -> None:
            for number in range(count):
                os.close(os.open(f"{self.shm}/{layouts.segment_name(AGENT, number.to_bytes(8, 'big'))}", os.O_CREAT | os.O_RDWR, 0o666))

        self.as_nobody(make)

    def counted(self) -> Counter[str]:
        """How often the search for rings asks the kernel for something, by what it is, from now on."""
        calls: Counter[str] = Counter()

        class Counting:
            def __getattr__(self, name: str) -> Any:
                if name in ("open", "stat", "scandir", "fstat"):
                    calls[name] += 1
                return getattr(os, name)

        self.patch(discover, "os", Counting())
        return calls

    def test_thousands_of_a_strangers_segments_keep_no_ring_from_being_read(self) -> None:
        self.flood(5000)
        world = self.world()
        world.record(10)
        world.tick()
        while world.rings._new:
            world.tick()
        self.assertEqual((world.keeper.books.recorded, len(world.rings.open)), (10, 2))
        told = "\n".join(self.found(world).values())
        self.assertIn(f"4096 rings, such as taba.{AGENT}.", told)
        self.assertIn("904 further segments of this Agent's name", told)
        self.assertNotIn("more than are remembered", told)

    def test_a_strangers_segments_are_opened_once_and_cost_next_to_nothing_while_nothing_changes(self) -> None:
        self.flood(3 * discover.MAX_LOOKED_AT)
        calls, rings = self.counted(), Rings(AGENT, self.shm)
        self.addCleanup(rings.close)
        now = 100.0
        looks = 0
        while not looks or rings._new:
            before = calls["open"]
            rings.scan((), now)
            self.assertLessEqual(calls["open"] - before, discover.MAX_TRIED)
            now, looks = now + 1.0, looks + 1
        self.assertEqual((looks, calls["open"]), (3, 3 * discover.MAX_TRIED))
        for _ in range(3):
            rings.scan((), now)
            now += 1.0
        calls.clear()
        for _ in range(10):
            self.assertFalse(rings.has_changed(now))
            rings.scan((), now)
            now += 1.0
        self.assertEqual((calls["open"], calls["scandir"], calls["fstat"]), (0, 0, 0))
        self.assertLessEqual(calls["stat"], 10 * (discover.MAX_LOOKED_AT + 2))
        self.assertEqual(rings.unshown + len(rings.problems), 3 * discover.MAX_LOOKED_AT)

    def test_whoever_makes_and_removes_files_all_the_time_has_the_names_read_no_more_often_the_more_there_are(self) -> None:
        self.flood(200)
        calls, rings = self.counted(), Rings(AGENT, self.shm)
        self.addCleanup(rings.close)
        now, path = 100.0, f"{self.shm}/other"
        for _ in range(100):
            Path(path).touch()
            os.utime(self.shm, ns=(0, int(now * 1e9)))  # whatever the kernel's clock of changes
            if rings.has_changed(now):
                rings.scan((), now)
            os.unlink(path)
            now += 0.001
        # 0.1 s passed, and each of some 201 names stands for a ten thousandth of a second
        self.assertLessEqual(calls["scandir"], 6)
        self.assertGreaterEqual(calls["scandir"], 4)
        producer = self.make_ring()
        self.addCleanup(producer.die)
        rings.scan((), now, at_once=True)
        self.assertEqual(list(rings.open), [producer.name])

    def test_what_is_given_to_the_agents_user_or_mended_is_read_and_what_is_removed_is_no_problem_any_more(self) -> None:
        producer = self.make_ring(0o602)
        self.addCleanup(producer.die)
        self.flood(3)
        rings = Rings(AGENT, self.shm)
        self.addCleanup(rings.close)
        rings.scan((), 1.0)
        self.assertEqual((list(rings.open), len(rings.problems), rings.has_unread), ([], 4, True))
        os.fchmod(producer.fd, 0o600)
        rings.scan((), 2.0)
        self.assertEqual((list(rings.open), len(rings.problems)), ([producer.name], 3))
        for number in range(3):
            os.unlink(f"{self.shm}/{layouts.segment_name(AGENT, number.to_bytes(8, 'big'))}")
        rings.scan((), 3.0)
        self.assertEqual((rings.problems, rings.has_unread, rings.unshown), ({}, False, 0))

    def test_more_than_are_remembered_are_told_and_each_has_its_turn(self) -> None:
        self.patch(discover, "MAX_LEFT_ALONE", 8)
        self.flood(20)
        producer = self.make_ring()
        self.addCleanup(producer.die)
        rings = Rings(AGENT, self.shm)
        self.addCleanup(rings.close)
        now = 1.0
        while not rings.open:
            os.utime(self.shm, ns=(0, int(now * 1e9)))
            rings.scan((), now)
            now += 1.0
            self.assertLess(now, 30.0)
        self.assertEqual(list(rings.open), [producer.name])
        os.utime(self.shm, ns=(0, int(now * 1e9)))
        rings.scan((), now)
        self.assertEqual((rings.beyond, len(rings._left_alone)), (12, 8))
        self.assertEqual(rings.unshown + len(rings.problems), 20)

    def test_rings_are_opened_a_part_in_a_look_however_many_there_are_and_those_left_are_known_to_be_unread(self) -> None:
        self.patch(discover, "MAX_OPENED", 4)
        producers = [self.make_ring() for _ in range(10)]
        for producer in producers:
            self.addCleanup(producer.die)
        rings = Rings(AGENT, self.shm)
        self.addCleanup(rings.close)
        found = []
        for now, has_more in ((1.0, True), (2.0, True), (3.0, False)):
            found.append(len(rings.scan((), now, at_once=True)))
            self.assertEqual((rings.has_unread, rings.has_more), (has_more, has_more))
        self.assertEqual((found, len(rings.open)), ([4, 4, 2], 10))

    def test_names_are_read_a_part_in_a_look_however_many_there_are(self) -> None:
        self.patch(discover, "MAX_LISTED", 4)
        self.patch(discover, "MAX_LEFT_ALONE", 8)
        self.flood(30)
        producer = self.make_ring()
        self.addCleanup(producer.die)
        calls, rings = self.counted(), Rings(AGENT, self.shm)
        self.addCleanup(rings.close)
        rings.scan((), 1.0)
        self.assertTrue(rings.is_reading and rings.has_unread and rings.has_changed(1.0))
        self.assertLessEqual((len(rings._new), len(rings._left_alone)), (4, 4))
        looks, now = 1, 1.0
        while not rings.open:
            if not rings.is_reading:
                now += 1.0
                os.utime(self.shm, ns=(0, int(now * 1e9)))
            rings.scan((), now)
            looks += 1
            self.assertLess(looks, 200)
        self.assertEqual(list(rings.open), [producer.name])
        while rings.is_reading:
            rings.scan((), now)
        os.utime(self.shm, ns=(0, 0))
        calls.clear()
        os.unlink(f"{self.shm}/{layouts.segment_name(AGENT, bytes(8))}")
        for look in range(31 // 4):
            rings.scan((), now + 5.0)
            self.assertTrue(rings.is_reading, look)
        rings.scan((), now + 5.0)
        self.assertEqual((rings.is_reading, calls["scandir"]), (False, 1))
        self.assertEqual(rings.unshown + len(rings.problems), 29)
        self.assertEqual(list(rings.open), [producer.name])

    def test_slots_are_counted_a_part_in_a_look_and_a_program_that_has_all_is_a_problem(self) -> None:
        self.patch(discover, "MAX_LISTED", 4)
        self.patch(discover, "MAX_SLOTS", 6)
        self.flood(9)
        for program, slots in (("1" * 16, 5), ("2" * 16, 3)):
            for number in range(slots):
                path = Path(f"{self.shm}/taba-slot.{program}.{number}")
                path.touch(0o600)
                os.chown(path, NOBODY, NOBODY)
        found = discover.Slots(self.shm)

        def swept() -> int:
            found.sweep()
            calls = 1
            while found.is_sweeping:
                self.assertEqual(found.sweep(), 0)
                calls += 1
            return calls

        self.assertEqual((swept(), found.count, found.most, found.problem), (5, 8, 5, None))
        Path(f"{self.shm}/taba-slot.{'1' * 16}.99").touch()
        swept()
        self.assertEqual((found.count, found.most, found.owners), (9, 6, {NOBODY: 5, 0: 1}))
        whose = f"{self.shm}/taba-slot.{'1' * 16}.*; 5 user {NOBODY}'s, 1 user 0's"
        self.assertIn(f"all 6 slots of one program are taken ({whose})", str(found.problem))
        with mock.patch.object(os, "scandir", side_effect=OSError(errno.EMFILE, "Too many open files")):
            self.assertEqual(swept(), 1)  # who looks for rings says so; what was found before stands
        self.assertEqual((found.count, found.most), (9, 6))
        for user in range(1, 5):
            path = Path(f"{self.shm}/taba-slot.{'1' * 16}.{100 + user}")
            path.touch()
            os.chown(path, user, user)
        swept()
        self.assertRegex(str(found.problem), f"5 user {NOBODY}'s, (1 user [0-4]'s, ){{2}}3 further users'")

    def test_a_range_of_a_ring_that_was_not_yet_tried_is_kept(self) -> None:
        self.patch(discover, "MAX_TRIED", 1)
        self.flood(3)
        rings = Rings(AGENT, self.shm)
        self.addCleanup(rings.close)
        rings.scan((), 1.0)
        self.assertTrue(rings.has_unread and rings.has_changed(1.0))
        self.assertEqual(len(rings._new), 2)

    def test_a_strangers_segments_take_nothing_of_a_clients_bound(self) -> None:
        from taba.client.segment import make_segment

        self.patch(layouts, "SHM_DIRECTORY", self.shm)
        path = f"{self.shm}/{layouts.segment_name(AGENT, bytes(8))}"

        def sparse() -> None:
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            os.ftruncate(fd, 1 << 40)

        self.as_nobody(sparse)
        arguments = {"flags": 0, "ring_bytes": 65_536, "shm_bytes": 4 * MiB, "now": 1.0, "make": None}
        for group, records in ((None, 2048), (NOBODY, 0)):  # of the group it counts
            segment = make_segment(AGENT, "web/1", group=group, **arguments)  # type: ignore[arg-type]
            self.assertEqual(segment.where.records, records)
            segment.discard()
