"""Signals that are noted: none is lost, wherever it comes."""

from __future__ import annotations

import os
import signal
import time
import weakref

from twisted.trial.unittest import SynchronousTestCase

from taba.interrupted import Interrupted
from tests.patience import PATIENCE_SECONDS


class Thing:
    """Something that a weak reference may lead to."""


class InterruptedTest(SynchronousTestCase):
    def test_a_signal_in_a_weak_references_callback_is_not_lost(self) -> None:
        # an exception from the handler would be dropped there
        with Interrupted(signal.SIGTERM) as told:
            thing = Thing()
            reference = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGTERM))
            del thing
            self.assertIsNone(reference())
            self.assertTrue(told.wait(PATIENCE_SECONDS))
        self.assertEqual(told.number, signal.SIGTERM)

    def test_a_signal_wakes_the_wait_that_it_comes_in(self) -> None:
        self.addCleanup(signal.setitimer, signal.ITIMER_REAL, 0)
        begun = time.monotonic()
        with Interrupted(signal.SIGALRM) as told:
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            self.assertTrue(told.wait())
        self.assertLess(time.monotonic() - begun, PATIENCE_SECONDS)

    def test_without_one_the_wait_ends_with_the_time(self) -> None:
        with Interrupted() as told:
            self.assertFalse(told.wait(0.0))
            self.assertFalse(told.wait(-1.0))  # over before it began
        self.assertIsNone(told.number)

    def test_the_last_of_many_is_told_and_the_handlers_are_put_back(self) -> None:
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)]
        with Interrupted(signal.SIGINT, signal.SIGHUP) as told:
            for number in (signal.SIGINT, signal.SIGINT, signal.SIGHUP):
                os.kill(os.getpid(), number)
            self.assertTrue(told.wait(PATIENCE_SECONDS))
            self.assertTrue(told.wait(PATIENCE_SECONDS))  # and again: it stays told
        self.assertEqual(told.number, signal.SIGHUP)
        self.assertEqual([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)], before)
