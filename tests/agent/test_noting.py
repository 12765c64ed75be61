"""What inputs are told to note comes to a Server, once it takes it, and is not lost before."""

from __future__ import annotations

from random import Random
from typing import Any

from twisted.internet import defer
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taba.agent.lanes import Backoff
from taba.agent.noting import PATIENCE_SECONDS, Noting
from taba.errors import NoVerdicts


class FakeDesk:
    """Notes that wait, and what became of the others."""

    def __init__(self, *notes: str):
        self.waiting = list(notes)
        self.settled: list[tuple[str, bool]] = []

    def next_note(self) -> tuple[str, float] | None:
        return (self.waiting[0], 17.0) if self.waiting else None

    def settle_note(self, is_refused: bool) -> None:
        self.settled.append((self.waiting.pop(0), is_refused))


class Posting(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.asked: list[tuple[str, defer.Deferred[bool]]] = []
        self.desks = FakeDesk("a", "b"), FakeDesk("c")
        self.noting = Noting(self.desks, self.post, self.clock.seconds, Backoff(Random(1)))

    async def post(self, text: str, time: float) -> bool:
        self.assertEqual(time, 17.0)
        answer: defer.Deferred[bool] = defer.Deferred()
        self.asked.append((text, answer))
        return await answer

    def answer(self, answer: Any) -> str:
        text, waiting = self.asked.pop()
        if isinstance(answer, bool):
            waiting.callback(answer)
        else:
            waiting.errback(answer)
        return text

    def test_each_is_posted_in_its_turn_and_settled_once_it_is_answered(self) -> None:
        for _ in range(3):
            self.noting.tick()
        self.assertEqual((len(self.asked), self.desks[0].settled), (1, []))  # one at a time
        told = [self.answer(answer) for answer in (True, False, True)]
        self.assertEqual((told, self.asked), (["a", "b", "c"], []))
        self.assertEqual((self.desks[0].settled, self.desks[1].settled), ([("a", False), ("b", True)], [("c", False)]))
        self.noting.tick()
        self.assertEqual(self.asked, [])
        self.desks[1].waiting.append("d")
        self.noting.tick()
        self.assertEqual(self.answer(True), "d")

    def test_what_no_server_takes_waits_and_a_person_is_told(self) -> None:
        self.noting.tick()
        self.assertEqual(self.answer(NoVerdicts("it takes a token")), "a")
        self.noting.tick()
        self.assertEqual((self.asked, self.noting.look(3)), ([], {}))
        tries = 0
        while self.clock.seconds() < 2 * PATIENCE_SECONDS:
            self.clock.advance(1.0)
            self.noting.tick()
            if self.asked:
                tries += 1
                self.answer(RuntimeError())
        self.assertTrue(1 < tries < PATIENCE_SECONDS, tries)
        self.assertEqual(
            self.noting.look(3),
            {"notes": "notes of inputs wait (3), for no Server takes them (RuntimeError); mend that: they are tried again"},
        )
        self.clock.advance(PATIENCE_SECONDS)
        self.noting.tick()
        for _ in range(3):
            self.answer(True)
        self.assertEqual((self.noting.look(0), self.noting.look(1), self.desks[0].waiting), ({}, {}, []))

    def test_what_is_on_its_way_when_the_agent_ends_is_the_next_ones(self) -> None:
        self.noting.tick()
        self.noting.stop()
        self.noting.tick()
        self.assertEqual((len(self.asked), self.desks[0].waiting, self.desks[0].settled), (1, ["a", "b"], []))
        self.assertEqual(self.flushLoggedErrors(), [])
