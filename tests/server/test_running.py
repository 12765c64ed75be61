"""Tests that are coroutines: what trial ends, ends."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import TimeoutError
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from .running import asynchronous


class CoroutinesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock: Any = Clock()
        self.asked = 0

    @asynchronous
    async def ask_for_ever(self) -> None:
        while True:
            await deferLater(self.clock, 1.0)
            self.asked += 1

    @asynchronous
    async def refuse(self) -> None:
        await deferLater(self.clock, 1.0)
        raise LookupError("not there")

    def test_one_that_takes_too_long_is_ended_and_says_where_it_was(self) -> None:
        given = self.ask_for_ever()
        self.clock.pump([1.0, 1.0])
        given.errback(Failure(TimeoutError("still running")))  # as trial does
        failure = self.failureResultOf(given, TimeoutError)
        self.assertIn("still running; it was here:", failure.getErrorMessage())
        self.assertIn("in ask_for_ever", failure.getErrorMessage())
        self.clock.pump([1.0, 1.0])
        self.assertEqual((self.asked, self.clock.getDelayedCalls()), (2, []))

    def test_one_that_fails_by_itself_fails_with_that(self) -> None:
        given = self.refuse()
        self.assertNoResult(given)
        self.clock.advance(1.0)
        self.assertEqual(self.failureResultOf(given, LookupError).getErrorMessage(), "not there")
