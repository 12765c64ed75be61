"""What takes long is done in parts, between which others have their turn."""

from __future__ import annotations

import gc
import math
import weakref
from random import Random
from typing import Any

from twisted.internet.defer import ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taba import turns
from taba.turns import TURN_SECONDS, Turns, in_order, in_slices


class Ordered(SynchronousTestCase):
    def test_what_is_sorted_in_parts_is_as_if_it_were_at_once_and_others_have_a_turn_before_and_after_each(self) -> None:
        self.patch(turns, "SORTED_AT_ONCE", 10)
        chance = Random(1)
        for count in (0, 1, 9, 10, 11, 95):
            given = [(chance.randrange(20), "x" * chance.randrange(3)) for _ in range(count)]
            had: list[int] = []

            async def breathe(had: list[int] = had) -> None:
                had.append(1)

            found = self.successResultOf(ensureDeferred(in_order(given, breathe)))
            self.assertEqual(found, sorted(given))
            self.assertEqual(len(had), -(-count // 10) + count // 10)

    def test_slices_are_all_there_is_and_others_have_a_turn_after_each(self) -> None:
        for count in (0, 1, 9, 10, 11, 95):
            had: list[int] = []

            async def breathe(had: list[int] = had) -> None:
                had.append(1)

            async def every(given: list[int], breathe: Any = breathe) -> list[int]:
                return [item async for some in in_slices(given, 10, breathe) for item in some]

            self.assertEqual(self.successResultOf(ensureDeferred(every(list(range(count))))), list(range(count)))
            self.assertEqual(len(had), -(-count // 10))


class Shared(SynchronousTestCase):
    def test_all_who_work_in_a_process_have_the_turns_of_its_clock_and_together_do_no_more_than_one(self) -> None:
        clock, other = Clock(), Clock()
        calls: list[Any] = []
        self.patch(clock, "callLater", lambda seconds, call: calls.append(call))
        self.assertIs(Turns.of(clock), Turns.of(clock))
        self.assertIsNot(Turns.of(clock), Turns.of(other))
        done: list[str] = []

        async def work(who: str) -> None:
            for _ in range(3):
                await Turns.of(clock).breathe()
                clock.rightNow += TURN_SECONDS + 0.001  # so long it takes
                done.append(who)

        working = [ensureDeferred(work("streams")), ensureDeferred(work("questions"))]
        for turns_had in range(1, 7):
            [call] = calls
            calls.clear()
            call()
            self.assertEqual(len(done), turns_had)
        for one in working:
            self.successResultOf(one)

    def test_they_go_with_their_clock(self) -> None:
        clock = Clock()
        Turns.of(clock)
        gone = weakref.ref(clock)
        del clock
        gc.collect()
        self.assertIsNone(gone())


class Quiet(SynchronousTestCase):
    def test_it_is_as_long_ago_as_the_last_that_took_long_and_not_while_something_waits(self) -> None:
        clock = Clock()
        some = Turns(clock)
        self.assertEqual(some.quiet_seconds, math.inf)
        waiting = ensureDeferred(some.breathe())
        self.assertEqual(some.quiet_seconds, 0.0)
        clock.advance(0)
        self.successResultOf(waiting)
        clock.advance(TURN_SECONDS)
        self.successResultOf(ensureDeferred(some.breathe()))  # it goes on within its turn
        self.assertEqual(some.quiet_seconds, TURN_SECONDS)
