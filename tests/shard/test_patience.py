"""Pauses between tries, up to a deadline, by a clock that stands."""

from __future__ import annotations

from random import Random

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taba.errors import StoreUnavailable
from taba.shard.patience import LEAST_TRY_SECONDS, BucketAway, Deadline, Pauses

SECONDS = 1.5
TRY_SECONDS = 0.003


class Deadlines(SynchronousTestCase):
    def tries_until(self, error: Exception, seed: int) -> tuple[list[float], Exception]:
        """What was left for each try of some milliseconds that fails so, and what is said in the end."""
        clock = Clock()
        deadline = Deadline(clock, Random(seed), SECONDS, Pauses(clock))
        left: list[float] = []
        while True:
            left.append(deadline.left)
            clock.advance(TRY_SECONDS)
            pausing: Deferred[None] = ensureDeferred(deadline.pause(error))
            for _ in range(1000):
                if pausing.called:
                    break
                clock.advance(0.001)
            if (failure := getattr(pausing, "result", None)) is not None:
                pausing.addErrback(lambda _: None)
                return left, failure.value

    def test_no_try_is_begun_that_has_no_time_and_what_kept_the_last_one_is_said(self) -> None:
        full = StoreUnavailable("it is full")
        for seed in range(200):
            left, said = self.tries_until(full, seed)
            self.assertIs(said, full)
            self.assertGreater(len(left), 3)
            self.assertGreaterEqual(min(left), LEAST_TRY_SECONDS - 0.001 - 1e-9, seed)

    def test_what_is_no_fault_of_the_store_is_said_of_the_bucket(self) -> None:
        _, said = self.tries_until(ValueError("it is sealed"), 1)
        self.assertIsInstance(said, BucketAway)
