"""What a soak says of memory that it looked at. That one is exact, and says so, is a test of promise 1."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from taba.bounds import MiB

from .soak import GROWTH, MIN_LOOKS, SLACK_BYTES, judged


class Judged(SynchronousTestCase):
    def test_memory_that_stays_or_comes_up_within_the_first_third_is_flat(self) -> None:
        for samples in ([50 * MiB] * MIN_LOOKS, [2 * MiB, *[25 * MiB] * (MIN_LOOKS - 1)]):
            line, wrong = judged("agent", samples)
            self.assertEqual(wrong, [])
            self.assertIn(f"at the most {max(samples) // MiB}, of {MIN_LOOKS} looks", line)

    def test_one_that_grows_beyond_what_it_may_is_said(self) -> None:
        most = int(50 * MiB * GROWTH) + SLACK_BYTES
        for last, grows in ((most, []), (most + 1, ["MEMORY GROWS: agent"])):
            third = MIN_LOOKS // 3
            line, wrong = judged("agent", [50 * MiB] * (MIN_LOOKS - third) + [last] * third)
            self.assertEqual((wrong, "IT GROWS" in line), (grows, bool(grows)))

    def test_of_one_that_was_seen_too_seldom_nothing_is_said_but_that(self) -> None:
        line, wrong = judged("store", [2 * MiB] * (MIN_LOOKS - 1))
        self.assertEqual(wrong, [f"MEMORY NOT JUDGED: the store was seen {MIN_LOOKS - 1} times, and {MIN_LOOKS} are needed"])
        self.assertIn("too little to say", line)
        line, wrong = judged("store", [])
        self.assertIn("never seen", line)
        self.assertTrue(wrong)
