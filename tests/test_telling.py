"""A problem is told to the log when it begins, once in a while, and when it is over; whatever comes and goes, the log does not fill."""

from __future__ import annotations

from twisted.logger import Logger, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from taba.plural import many
from taba.telling import MAX_LINES, MAX_TOLD, REPEAT_SECONDS, Teller, by_kind


class Telling(SynchronousTestCase):
    def setUp(self) -> None:
        self.said: list[str] = []
        self.teller = Teller(Logger("test", observer=lambda event: self.said.append(formatEvent(event))))  # type: ignore[arg-type]
        self.now = 1_000_000.0

    def tell(self, *problems: str) -> list[str]:
        """What is told when these are there."""
        before = len(self.said)
        self.teller.tell(by_kind(problems), self.now)
        return self.said[before:]

    def test_it_is_told_when_it_begins_and_ends_whatever_its_numbers(self) -> None:
        self.assertEqual(self.tell("1 event is a dead letter"), ["problem: 1 event is a dead letter"])
        self.assertEqual(self.tell("2 events are dead letters") + self.tell("1.5e-3 events are dead letters"), [])
        self.assertEqual(self.tell(), ["no problem any more: 1 event is a dead letter"])

    def test_what_is_said_of_one_is_the_problem_that_is_said_of_many(self) -> None:
        for one, more in (
            ("try of a token that is unknown", "tries of tokens that are unknown"),
            ("batch was", "batches were"),
            ("time", None),
        ):
            self.assertEqual(len(by_kind([many(1, one, more)]) | by_kind([many(7, one, more)])), 1)
        self.assertEqual([many(count, "batch") for count in (0, 1, 2)], ["0 batches", "1 batch", "2 batches"])

    def test_several_that_differ_in_numbers_alone_are_each_told(self) -> None:
        self.assertEqual(self.tell("worker 1 died", "worker 3 died"), ["problem: worker 1 died", "problem: worker 3 died"])
        self.assertEqual(self.tell("worker 3 died"), ["no problem any more: worker 1 died"])
        self.assertEqual(self.tell(), ["no problem any more: worker 3 died"])

    def test_one_that_comes_and_goes_is_told_no_more_often_than_one_that_lasts(self) -> None:
        self.assertEqual(self.tell("x is wrong") + self.tell(), ["problem: x is wrong", "no problem any more: x is wrong"])
        for _ in range(10):
            self.assertEqual(self.tell("x is wrong") + self.tell(), [])
        self.now += REPEAT_SECONDS
        self.assertEqual(self.tell("x is wrong"), ["problem: x is wrong"])

    def test_one_that_lasts_is_told_again_once_in_a_while(self) -> None:
        for seconds, lines in ((0.0, 1), (REPEAT_SECONDS - 1, 0), (1.0, 1), (1.0, 0)):
            self.now += seconds
            self.assertEqual(len(self.tell("x is wrong")), lines)

    def test_no_number_of_problems_fills_the_log(self) -> None:
        problems = {f"problem {number}": "x is wrong" for number in range(MAX_TOLD + 1)}
        self.teller.tell(problems, self.now)
        self.assertEqual(len(self.said), MAX_LINES)
        for _ in range(MAX_TOLD // MAX_LINES + 1):
            self.teller.tell(problems, self.now)
        self.assertEqual(len(self.said), MAX_TOLD)
        self.now += REPEAT_SECONDS
        self.teller.tell(problems, self.now)
        self.assertEqual(len(self.said), MAX_TOLD + MAX_LINES)
