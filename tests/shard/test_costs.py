"""What an operation by key takes, without a clock: functions of the shard layer that are called, and what goes to a server."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from twisted.internet.defer import ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taba import shard
from taba.shard.memory.router import MemoryConnection, MemoryRouter
from taba.shard.memory.server import MemoryServer

HERE = str(Path(shard.__file__).parent)
MEMORY = str(Path(HERE, "memory"))  # stands for connections and a server


class CostTests(SynchronousTestCase):
    def setUp(self) -> None:
        clock = Clock()
        self.router = MemoryRouter([MemoryServer(clock)], 1, clock)
        self.successResultOf(ensureDeferred(self.router.connect()))
        for _ in range(3):  # until where the bucket is, and what we wrote there last, is known
            for work in (self.router.set("n", "x"), self.router.get("n"), self.router.incr("c")):
                self.successResultOf(ensureDeferred(work))
        self.sent: list[list[bytes]] = []
        original = MemoryConnection.execute

        def execute(connection: Any, commands: Any, *more: Any) -> Any:
            self.sent.append([command[0] for command in commands])
            return original(connection, commands, *more)

        self.patch(MemoryConnection, "execute", execute)

    def calls(self, make: Callable[[], Any]) -> list[str]:
        """The functions of the shard layer that one operation calls, beside those of its connection."""
        names: list[str] = []

        def see(frame: FrameType, event: str, argument: Any) -> None:
            path = frame.f_code.co_filename
            if event == "call" and path.startswith(HERE) and not path.startswith(MEMORY):
                names.append(frame.f_code.co_name)

        before = sys.getprofile()
        sys.setprofile(see)
        try:
            done = ensureDeferred(make())
        finally:
            sys.setprofile(before)
        self.successResultOf(done)
        return names

    def test_a_read_is_two_commands_in_one_write_and_few_calls(self) -> None:
        names = self.calls(lambda: self.router.get("n"))
        self.assertEqual(self.sent, [[b"GET", b"GET"]])  # the key, and the bucket's owner key after it
        self.assertLessEqual(len(names), 7, names)  # three of them make the address of the connection in memory

    def test_a_write_is_one_script_and_few_calls(self) -> None:
        for make in (lambda: self.router.set("n", "y"), lambda: self.router.incr("c")):
            self.sent.clear()
            names = self.calls(make)
            self.assertEqual(self.sent, [[b"EVALSHA"]])
            self.assertLessEqual(len(names), 16, names)
