"""The reactor counts time by the monotonic clock, whatever happens to the wall clock."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taba import clocks
from taba.connections import make_site
from taba.web import Api
from tests.clock import WallClock
from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parent.parent
RUN = """
import ctypes, mmap, os, sys, time
from importlib import import_module
import_module("twisted.internet." + sys.argv[1]).install()
from twisted.internet import reactor, task
from taba.clocks import make_monotonic

with open(os.environ["TABA_TEST_CLOCK"], "r+b") as file:
    word = ctypes.c_int64.from_buffer(mmap.mmap(file.fileno(), mmap.PAGESIZE))
called = []
gone = reactor.callLater(0.0, called.append, "cancelled")
reactor.callLater(0.3, called.append, "before")
later = reactor.callLater(0.1, called.append, "moved")
reactor.timeout()  # into the heap with them
gone.cancel()
later.delay(0.3)
make_monotonic(reactor)
make_monotonic(reactor)
reactor.callLater(0.2, called.append, "after")
looping = task.LoopingCall(lambda: None)
looping.start(0.05)

def move():
    word.value = int(sys.argv[2]) * 1_000_000_000
    reactor.callLater(0.35, reactor.stop)

reactor.callLater(0.1, move)
began = time.monotonic()
reactor.run()
print(*called, looping.clock.seconds is time.monotonic)
"""


class Reactors(SynchronousTestCase):
    def test_calls_from_before_and_after_come_in_order_whichever_way_the_wall_clock_is_set(self) -> None:
        self.check_order("epollreactor")

    @pytest.mark.real
    def test_they_do_so_with_every_reactor(self) -> None:
        self.check_order("pollreactor", "selectreactor", "asyncioreactor")

    def check_order(self, *reactors: str) -> None:
        clock = WallClock()
        self.addCleanup(clock.remove)
        clock.check()
        for reactor in reactors:
            for offset in ("-3600", "3600", str(-int(time.time()))):
                clock.offset = 0
                environ = {**os.environ, **clock.environ, "PYTHONPATH": str(ROOT)}
                command = [sys.executable, "-c", RUN, reactor, offset]
                done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
                self.assertEqual((done.stdout, done.stderr), ("after before moved True\n", ""), (reactor, offset))

    def test_a_call_of_before_is_moved_along(self) -> None:
        reactor = SelectReactor()
        self.addCleanup(reactor.disconnectAll)
        call = reactor.callLater(60.0, lambda: None)
        clocks.make_monotonic(reactor)
        self.assertLessEqual(call.getTime(), reactor.seconds() + 60.0)

    def test_the_test_clock_moves_the_wall_clock_alone(self) -> None:
        for offset in (-3600.0, 8 * 86_400.0):
            clock = WallClock(offset)
            self.addCleanup(clock.remove)
            clock.check()

    def test_a_site_that_nobody_asks_has_nothing_to_do(self) -> None:
        site, clock = make_site(Api([])), Clock()
        site.reactor = cast(Any, clock)
        site.startFactory()
        self.addCleanup(site.stopFactory)
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_age_goes_on_while_a_machine_sleeps_and_a_boot_has_an_id(self) -> None:
        self.assertGreaterEqual(clocks.boot_seconds(), time.monotonic() - 1)
        self.assertEqual(clocks.boot_id(), clocks.boot_id())
        self.patch(clocks, "BOOT_ID_PATH", "/nowhere")
        self.assertEqual(clocks.boot_id(), "")
