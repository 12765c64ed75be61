"""What was wrong with the memory of which store was served is among the problems: for an hour, or while it lasts."""

from __future__ import annotations

import errno
import shutil
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from unittest.mock import patch

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taba.pins import FILE_NAME, Pin, read_pins, write_pin
from taba.server.problems import RECENT_SECONDS
from taba.server.served import Found, Served

HERE, PIN, OTHER = "tcp:8280", Pin("4f2a", "redis://a:6379"), Pin("91cc", "redis://b:6379")


class Remembering(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        self.clock = Clock()

    def served(self, found: Found | None = None) -> Served:
        return Served(self.directory, HERE, self.clock.seconds, found)

    def damage(self) -> None:
        write_pin(self.directory, HERE, PIN)
        content = bytearray((self.directory / FILE_NAME).read_bytes())
        content[20] ^= 0x51
        (self.directory / FILE_NAME).write_bytes(content)

    def test_what_was_damaged_and_is_mended_is_told_for_an_hour_by_whoever_is_asked(self) -> None:
        self.assertEqual(self.served().problems, [])
        self.damage()
        served = self.served()
        [said] = served.problems
        self.assertIn("was damaged, and nothing of it is lost; it is kept as", said)
        self.assertEqual(served.pin, PIN)
        self.assertEqual(self.served().problems, [])  # started again it finds nothing
        self.clock.advance(RECENT_SECONDS - 1)
        worker = self.served(Found.of(str(served.found)))  # one that is started again late
        self.assertEqual((served.problems, worker.problems), ([said], [said]))
        self.clock.advance(2)
        self.assertEqual((served.problems, worker.problems), ([], []))
        self.assertIsNone(Found.of(""))

    def test_what_cannot_be_written_is_told_until_it_can(self) -> None:
        self.damage()
        with self.full_disk():
            served = self.served()
            [said] = served.problems
            self.assertIn("is damaged, and cannot be written anew ([Errno 28]", said)
            served.remember(OTHER)
            self.assertEqual([one[:22] for one in served.problems[1:]], ["which store is served "])
            self.assertEqual((served.pin, read_pins(self.directory)[HERE]), (PIN, PIN))
        served.remember(OTHER)
        self.assertEqual([served.pin, read_pins(self.directory)[HERE]], [OTHER, OTHER])
        self.assertIn("was damaged, and nothing of it is lost", " ".join(served.problems))
        self.assertEqual(len(served.problems), 1)

    def test_who_listens_at_no_address_of_its_own_remembers_nothing(self) -> None:
        served = Served(self.directory, None, self.clock.seconds)
        served.remember(PIN)
        self.assertEqual((served.pin, served.problems, list(self.directory.iterdir())), (None, [], []))

    def full_disk(self) -> AbstractContextManager[object]:
        return patch("taba.pins.os.fsync", side_effect=OSError(errno.ENOSPC, "No space left on device"))
