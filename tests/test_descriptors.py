"""A table of descriptors that is full: who connects waits, and it is said."""

from __future__ import annotations

import errno
import os
import resource
from types import SimpleNamespace
from typing import Any, cast

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taba import descriptors as rooms
from taba.descriptors import SHOWN_SECONDS, WAIT_SECONDS, Descriptors, wait_for_room


class FullTables(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.descriptors = Descriptors("Server", self.clock.seconds)
        self.number = 0
        eventfd = cast(Any, os).eventfd

        def opened(*how: int) -> int:
            if self.number:
                raise OSError(self.number, os.strerror(self.number))
            return int(eventfd(*how))

        self.patch(rooms, "os", SimpleNamespace(EFD_CLOEXEC=os.EFD_CLOEXEC, close=os.close, eventfd=opened))

    def test_it_is_said_with_its_cure_while_it_is_so_and_a_while_longer(self) -> None:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        for self.number, full, cure in (
            (errno.EMFILE, f"this Server has all the {limit} files", "raise the Server's limit of descriptors (LimitNOFILE, ulimit -n)"),
            (errno.ENFILE, "this host has all the files", "raise the host's limit of descriptors (fs.file-max)"),
        ):
            [problem] = self.descriptors.problems
            self.assertIn(full, problem)
            self.assertIn(cure, problem)
        self.number = 0
        self.clock.advance(SHOWN_SECONDS)
        self.assertEqual(self.descriptors.problems, [problem])
        self.clock.advance(0.1)
        self.assertEqual(self.descriptors.problems, [])

    def test_what_else_fails_is_not_called_a_full_table(self) -> None:
        self.number = errno.ENOMEM
        self.assertEqual((self.descriptors.has_room(), self.descriptors.problems), (True, []))

    def test_a_port_lets_nobody_in_until_there_is_room_and_is_not_asked_meanwhile(self) -> None:
        did: list[str] = []
        port = SimpleNamespace(connected=True, disconnecting=False)
        for name in ("doRead", "stopReading", "startReading"):
            setattr(port, name, lambda name=name: did.append(name))
        wait_for_room(port, self.clock, self.descriptors)
        self.number = errno.EMFILE
        port.doRead()
        self.assertEqual(did, ["stopReading"])
        self.clock.advance(WAIT_SECONDS)
        port.doRead()
        self.number = 0
        self.clock.advance(WAIT_SECONDS)
        port.doRead()
        self.assertEqual(did, ["stopReading", "startReading", "stopReading", "startReading", "doRead"])

    def test_a_port_that_is_closed_meanwhile_stays_so(self) -> None:
        did: list[str] = []
        port = SimpleNamespace(connected=True, disconnecting=False, doRead=None, stopReading=lambda: None)
        port.startReading = lambda: did.append("again")
        wait_for_room(port, self.clock, self.descriptors)
        self.number = errno.EMFILE
        cast(Any, port).doRead()
        port.disconnecting = True
        self.clock.advance(WAIT_SECONDS)
        self.assertEqual(did, [])
