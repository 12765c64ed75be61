"""What was none to read and becomes a ring: what is remembered of files keeps none from being read."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from taba import ring as layouts
from taba.agent import discover
from taba.agent.discover import Rings
from taba.agent.reader import Ring
from tests.agent.producers import Producer
from tests.agent.world import AGENT


class Remembered(SynchronousTestCase):
    """What was none to read and becomes a ring is read, whatever happened meanwhile."""

    def setUp(self) -> None:
        self.shm = tempfile.mkdtemp(dir="/dev/shm")
        self.addCleanup(shutil.rmtree, self.shm)
        self.rings = Rings(AGENT, self.shm)
        self.addCleanup(self.rings.close)

    def make_ring(self) -> Producer:
        producer = Producer(AGENT, "web/1", 65_536, self.shm)
        self.addCleanup(producer.die)
        producer.record(producer.tab("bids_won"), 1.0)
        return producer

    def instead(self, **calls: Callable[..., Any]) -> None:
        """Have the search for rings ask these instead of the kernel."""

        class Asked:
            def __getattr__(self, name: str) -> Any:
                return calls.get(name) or getattr(os, name)

        self.patch(discover, "os", Asked())

    def test_what_is_given_to_the_agent_just_while_it_is_looked_at_is_read(self) -> None:
        refused, strange = self.make_ring(), self.make_ring()
        os.fchmod(strange.fd, 0o602)
        was_refused: list[str] = []

        def opened(path: str, flags: int) -> int:
            if path == refused.path and not was_refused:
                was_refused.append(path)
                os.fchmod(refused.fd, 0o640)  # by its maker, before the Agent does anything more
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            return os.open(path, flags)

        def seen(fd: int) -> os.stat_result:
            status = os.fstat(fd)
            if status.st_ino == os.fstat(strange.fd).st_ino:
                os.fchmod(strange.fd, 0o600)
            return status

        self.instead(open=opened, fstat=seen)
        self.assertEqual((self.rings.scan((), 1.0), len(self.rings.problems)), ([], 2))
        self.rings.scan((), 2.0)
        self.assertEqual((self.rings.open.keys(), self.rings.problems), ({refused.name, strange.name}, {}))

    def test_what_kept_a_ring_from_being_opened_is_no_problem_once_another_agent_reads_it(self) -> None:
        producer = self.make_ring()

        def opened(path: str, flags: int) -> int:
            raise OSError(errno.EMFILE, "Too many open files")

        real = os.open
        self.instead(open=opened)
        self.rings.scan((), 1.0)
        self.instead(open=real)
        self.assertIn("Too many open files", self.rings.problems[producer.name])
        other = Rings(AGENT, self.shm)
        self.addCleanup(other.close)
        other.scan((), 1.0)
        self.rings.scan((), 2.0)
        self.assertEqual((self.rings.taken, self.rings.problems), ({producer.name}, {}))

    def test_another_ring_in_the_very_same_file_is_read(self) -> None:
        producer = self.make_ring()
        os.pwrite(producer.fd, b"another", layouts.MAGIC_OFFSET)
        self.assertEqual((self.rings.scan((), 1.0), len(self.rings.problems)), ([], 1))
        before = os.fstat(producer.fd).st_ctime_ns
        while os.fstat(producer.fd).st_ctime_ns == before:  # the kernel's clock of changes ticks some hundred times a second
            os.pwrite(producer.fd, layouts.MAGIC.to_bytes(8, "little"), layouts.MAGIC_OFFSET)
        self.rings.scan((), 2.0)
        self.assertEqual((list(self.rings.open), self.rings.problems), ([producer.name], {}))

    def settle(self) -> None:
        """Until the names are read no more."""
        for now in (1.0, 2.0, 3.0):
            self.rings.scan((), now)
        self.assertTrue(self.rings._is_settled)

    def test_what_was_not_tried_when_a_look_failed_is_tried_again(self) -> None:
        names = {self.make_ring().name for _ in range(3)}
        other = Rings(AGENT, self.shm)
        other.scan((), 1.0)
        self.settle()
        self.assertEqual(self.rings.taken, names)
        other.close()
        failures = [MemoryError()]

        def fails_once(*arguments: Any) -> Ring:
            if failures:
                raise failures.pop()
            return Ring(*arguments)

        self.patch(discover, "Ring", fails_once)
        self.assertRaises(MemoryError, self.rings.scan, (), 4.0)
        self.rings.scan((), 5.0)
        self.assertEqual(self.rings.open.keys(), names)

    def test_what_took_the_name_of_a_ring_that_is_done_with_is_read(self) -> None:
        for give_up in (lambda ring: self.rings.remove(ring), lambda ring: self.rings.isolate(ring, "cut short")):
            first = self.make_ring()
            [ring] = self.rings.scan((), 0.0, at_once=True)
            second = self.make_ring()
            os.rename(second.path, first.path)
            self.settle()
            self.assertEqual(list(self.rings.open.values()), [ring])
            give_up(ring)
            self.rings.scan((), 4.0)
            found = self.rings.open.pop(first.name)
            self.assertNotEqual(found.key, ring.key)
            found.close()
            os.unlink(first.path)

    def test_where_descriptors_are_short_as_few_are_tried_in_a_look_and_all_in_the_end(self) -> None:
        self.patch(discover, "MAX_TRIED", 4)
        names = {self.make_ring().name for _ in range(20)}
        tries: list[str] = []
        is_short = True

        def opened(path: str, flags: int) -> int:
            tries.append(path)
            if is_short:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)
            return os.open(path, flags)

        self.instead(open=opened)
        for now in range(1, 11):
            tries.clear()
            self.rings.scan((), float(now))
            self.assertLessEqual(len(tries), 2 * discover.MAX_TRIED)
        self.assertEqual((self.rings.open, self.rings.problems.keys()), ({}, names))
        is_short = False
        self.rings.scan((), 11.0)
        self.assertEqual((self.rings.open.keys(), self.rings.problems), (names, {}))
