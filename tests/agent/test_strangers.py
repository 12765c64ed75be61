"""Another user of the host: what is theirs is neither read nor used, is named, and keeps nobody else's events away."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from taba import ring as layouts
from taba.agent.discover import Rings
from taba.agent.home import CannotOpen, Home
from taba.agent.locks import Stranger
from taba.agent.outbox import DEFAULT_OUTBOX_BYTES
from taba.agent.pin import Pin, Store
from taba.agent.problems import Problems, Room
from taba.agent.spool import DEFAULT_SPOOL_BYTES
from tests.agent.producers import Producer
from tests.agent.world import AGENT, World

NOBODY = 65534
GROUP = 54321  # of both
KEPT = [
    *(f"{kept}{beside}" for kept in ("spool", "keys") for beside in ("", "-wal", "-shm", "-journal")),
    *("spool.new", "lock", "history", "history.old", "sums", "sums.new", "store", "store.new"),
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

    def as_nobody(self, act: Callable[[], object], group: int = NOBODY, holds: bool = False) -> None:
        """Do something in a process of another user's, which with `holds` lives until the test ends."""
        ready, go_on = os.pipe(), os.pipe()
        child = os.fork()
        if not child:
            code = 1
            try:
                os.setgroups([])
                os.setresgid(group, group, group)
                os.setresuid(NOBODY, NOBODY, NOBODY)
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

    def home(self) -> Home:
        return Home(AGENT, self.spool, DEFAULT_SPOOL_BYTES, DEFAULT_OUTBOX_BYTES, self.shm, lambda: os.urandom(16))

    def world(self) -> World:
        world = World(self.shm)
        self.addCleanup(world.end_producers)
        self.addCleanup(world.die)
        return world

    def found(self, world: World) -> dict[str, str]:
        problems = Problems(world.keeper, world.pump, world.dispatch, self.shm, lambda: Room(100 * MiB, 200 * MiB), world.now)
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
            Pin(self.spool / f"{AGENT}.store").meets(Store("4f2a", 8))
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
        self.assertEqual((world.keeper.recorded, world.store.folded), (10, 10))
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

    def test_a_ring_of_its_own_that_every_user_may_write_is_not_read(self) -> None:
        producer = self.make_ring(0o602)
        self.addCleanup(producer.die)
        rings = Rings(AGENT, self.shm)
        rings.scan((), 0.0)
        self.assertEqual((rings.open, len(rings.problems)), ({}, 1))

    def test_thousands_of_a_strangers_segments_keep_no_ring_from_being_read(self) -> None:
        def flood() -> None:
            for number in range(5000):
                os.close(os.open(f"{self.shm}/{layouts.segment_name(AGENT, number.to_bytes(8, 'big'))}", os.O_CREAT | os.O_RDWR, 0o666))

        self.as_nobody(flood)
        world = self.world()
        world.record(10)
        for _ in range(3):
            world.tick()
        self.assertEqual((world.keeper.recorded, len(world.rings.open)), (10, 2))
        (told,) = self.found(world).values()
        self.assertIn("rings, such as", told)

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
