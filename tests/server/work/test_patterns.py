"""For whom the children that match patterns work next, by the order alone; who gives a place up; who leaves. No process, no waiting."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taba.places import ASKER, Crowded
from taba.server.work import patterns as module
from taba.server.work.asking import Asked, leavable
from taba.server.work.line import ChildDied, ChildLine
from taba.server.work.patterns import CHILDREN_OF_ASKER, MAX_PATTERNS, PATTERN_CHILDREN, PLACES_OF_ASKER, PatternRefused, Patterns


def asked_by(asker: str, coroutine: Coroutine[Any, Any, Any]) -> Deferred[Any]:
    """Begin it as what somebody asked for."""
    context = copy_context()
    context.run(ASKER.set, asker)
    return context.run(ensureDeferred, coroutine)


class Line:
    """In place of a ChildLine: the test says when its child answers, or is late."""

    def __init__(self) -> None:
        self.began = 0.0
        self.request: str | None = None
        self._answer: Deferred[None] = Deferred()

    async def ask(self, seconds: float, take: Callable[[Any], None], kind: str, *request: Any) -> None:
        assert self.request is None, "one at a time"
        self.request, self._answer = request[0], Deferred()
        await self._answer

    def answers(self) -> None:
        self.request = None
        self._answer.callback(None)

    def is_late(self) -> None:
        self.request = None
        self._answer.errback(ChildDied("it did not answer", late=True))


class Ordered(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.lines = [Line() for _ in range(PATTERN_CHILDREN)]
        self.patterns = Patterns(self.clock, cast("list[ChildLine]", self.lines))

    def ask(self, asker: str, text: str) -> Deferred[Any]:
        return asked_by(asker, self.patterns.ask("refused", text, lambda item: None, "match", text))

    def matched(self) -> list[str]:
        """What children work on now."""
        return sorted(line.request for line in self.lines if line.request is not None)

    def end(self, text: str, after: float = 0.0, is_late: bool = False) -> None:
        """Have its child come to an end."""
        self.clock.advance(after)
        [line] = [line for line in self.lines if line.request == text]
        (line.is_late if is_late else line.answers)()

    def test_a_good_asker_waits_for_no_child_beside_a_bad_one_however_much_that_one_asks(self) -> None:
        bad = [self.ask("bad", f"bad{number}") for number in range(PLACES_OF_ASKER)]
        self.assertEqual(self.matched(), ["bad0", "bad1"])
        self.failureResultOf(self.ask("bad", "one more"), Crowded)
        for number in range(20):
            good = self.ask("good", f"good{number}")
            self.assertIn(f"good{number}", self.matched())
            self.end(f"good{number}")
            self.successResultOf(good)
        # who asks for ever new ones goes on to have its share, and no more
        for number in range(PLACES_OF_ASKER):
            self.end(f"bad{number}", after=1.0, is_late=True)
            self.assertLessEqual(len(self.matched()), CHILDREN_OF_ASKER)
            self.failureResultOf(bad[number], PatternRefused)
        self.assertEqual((self.patterns.places.held, self.matched()), (0, []))

    def test_the_first_child_that_is_free_is_for_a_good_one_before_whatever_waits_of_bad_ones(self) -> None:
        askers = ["bad", "worse", "worst"]
        for number in range(3):
            for asker in askers:
                self.ask(asker, f"{asker}{number}").addErrback(lambda failure: None)
        for number in range(3, 6):  # each has had a child for a second
            self.assertEqual(len(self.matched()), PATTERN_CHILDREN)
            good = self.ask("good", f"good{number}")
            self.assertNotIn(f"good{number}", self.matched())
            self.end(self.matched()[0], after=1.0, is_late=True)
            self.assertIn(f"good{number}", self.matched())
            self.end(f"good{number}", after=0.001)
            self.successResultOf(good)
        while self.matched():
            self.end(self.matched()[0])
        self.assertEqual(self.patterns.places.held, 0)

    def test_of_two_that_work_as_much_who_came_first_goes_first_and_what_was_long_ago_counts_less(self) -> None:
        for text in ("a0", "b0"):
            self.ask(text[0], text)
        self.end("a0", after=1.0)
        self.end("b0", after=0.5)
        self.clock.advance(20 * module.LATELY_SECONDS)
        self.assertLess(self.patterns._worked_lately("a"), 1e-5)
        for text in ("x0", "y0", "z0", "a1", "b1"):
            self.ask(text[0], text)
        self.end("x0")
        self.assertIn("a1", self.matched())  # both have worked for a moment long ago: a for less of it
        for text in ("y0", "z0", "a1", "b1"):
            self.end(text)

    def test_where_all_places_are_taken_who_has_most_gives_one_up_for_who_has_less(self) -> None:
        asked = {f"{asker}{number}": self.ask(asker, f"{asker}{number}") for asker in "abc" for number in range(PLACES_OF_ASKER)}
        self.assertEqual(self.patterns.places.held, MAX_PATTERNS)
        good = self.ask("good", "good")
        self.assertNoResult(good)
        told = [text for text, one in asked.items() if one.called]
        self.assertEqual([text[1] for text in told], [str(PLACES_OF_ASKER - 1)])  # the last that came, of one of them
        self.failureResultOf(asked.pop(told[0]), Crowded)
        self.assertEqual((self.patterns.places.held, self.patterns.places.displaced), (MAX_PATTERNS, 1))
        # who has as much as the others takes nobody's
        self.patch(module, "MAX_PATTERNS", 3)
        self.patterns = Patterns(self.clock, cast("list[ChildLine]", [Line() for _ in range(PATTERN_CHILDREN)]))
        for asker in "abc":
            self.ask(asker, asker)
        self.failureResultOf(self.ask("d", "d"), Crowded)

    def test_who_leaves_before_its_turn_takes_it_along_and_later_leaves_it_to_end(self) -> None:
        texts = ("a0", "a1", "a2", "a3")
        asked = {text: self.ask("a", text) for text in texts}
        for text in ("a0", "a3"):
            asked[text].cancel()
            self.failureResultOf(asked[text], CancelledError)
        self.assertEqual((self.matched(), self.patterns.places.held), (["a0", "a1"], 3))
        self.end("a0", is_late=True)
        self.assertEqual(self.matched(), ["a1", "a2"])
        # nobody waited for it any more, and it is known all the same
        self.failureResultOf(self.ask("b", "a0"), PatternRefused)
        for text in ("a1", "a2"):
            self.end(text)
            self.successResultOf(asked[text])
        self.assertEqual((self.patterns.places.held, dict(self.patterns.places.working)), (0, {}))

    def test_of_so_many_askers_is_remembered_how_long_children_worked_for_them(self) -> None:
        self.patch(module, "MAX_ASKERS", 2)
        for asker in "abcab":
            self.ask(asker, asker)
            self.end(asker, after=1.0)
        self.assertEqual(list(self.patterns._lately), ["a", "b"])


class Left(SynchronousTestCase):
    def test_work_that_has_begun_goes_on_and_what_it_fails_with_is_logged_where_nobody_waits(self) -> None:
        for error, is_logged in ((PatternRefused("no"), False), (ZeroDivisionError(), True)):
            going: Deferred[None] = Deferred()

            async def work(asked: Asked, going: Deferred[None] = going) -> None:
                asked.begin()
                await going

            asking = ensureDeferred(leavable(work))
            asking.cancel()
            self.failureResultOf(asking, CancelledError)
            going.errback(error)
            self.assertEqual(bool(self.flushLoggedErrors(ZeroDivisionError)), is_logged)
