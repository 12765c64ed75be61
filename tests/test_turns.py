"""What takes long is done in parts, between which others have their turn."""

from __future__ import annotations

import gc
import math
import weakref
from collections import Counter
from random import Random
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taba import turns
from taba.places import ASKER, NOBODY
from taba.turns import TURN_SECONDS, SharedLook, Turns, in_order, in_slices


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


class ByAsker(SynchronousTestCase):
    """A piece of work takes a whole turn: so what somebody waits is counted in turns of the loop."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.calls: list[Any] = []
        self.patch(self.clock, "callLater", lambda seconds, call: self.calls.append(call))
        self.turns = Turns.of(self.clock)
        self.done: list[str] = []

    def work(self, asker: str, pieces: int, seconds: float = TURN_SECONDS + 0.001) -> Deferred[None]:
        async def work() -> None:
            ASKER.set(asker)
            for _ in range(pieces):
                await self.turns.breathe()
                self.clock.rightNow += seconds
                self.done.append(asker)

        return ensureDeferred(work())

    def turn(self) -> None:
        [call] = self.calls
        self.calls.clear()
        call()

    def test_who_asks_one_thing_waits_for_a_piece_of_another_however_many_that_one_asks(self) -> None:
        for _ in range(40):
            self.work("many", 50)
        for _ in range(100):
            self.turn()
        good = self.work("good", 10)
        before, turns_had = len(self.done), 0
        while not good.called:
            self.turn()
            turns_had += 1
        self.assertEqual(Counter(self.done[before:])["good"], 10)
        self.assertLessEqual(turns_had, 21)

    def test_two_that_ask_for_much_have_half_each_however_many_questions_it_is_and_however_small_its_pieces(self) -> None:
        for _ in range(40):
            self.work("many", 100)
        self.work("few", 1000, (TURN_SECONDS + 0.001) / 4)
        for _ in range(200):
            self.turn()
        had = Counter(self.done)
        self.assertAlmostEqual(had["few"] / 4, had["many"], delta=had["many"] / 10)

    def test_of_one_asker_who_came_first_is_first(self) -> None:
        order: list[int] = []

        async def work(number: int) -> None:
            await self.turns.breathe()
            self.clock.rightNow += TURN_SECONDS + 0.001
            order.append(number)

        for number in range(5):
            ensureDeferred(work(number))
        while self.calls:
            self.turn()
        self.assertEqual(order, [0, 1, 2, 3, 4])

    def test_who_kept_quiet_has_saved_up_no_turns(self) -> None:
        self.work("many", 500)
        self.work("good", 1)
        for _ in range(200):
            self.turn()
        self.done.clear()
        self.work("good", 100)
        for _ in range(20):
            self.turn()
        self.assertLessEqual(Counter(self.done)["good"], 11)

    def test_who_is_there_has_its_turns_however_many_come_one_after_the_other_for_one_piece_each(self) -> None:
        self.work(NOBODY, 1000)
        waiting = 0
        for at_once, turns_had in ((1, 100), (4, 300)):
            self.done.clear()
            for _ in range(turns_had):
                while len(self.turns._lines) <= at_once:  # as fast as they have their turns
                    waiting += 1
                    self.work(f"one {waiting}", 1)
                self.turn()
            self.assertGreaterEqual(Counter(self.done)[NOBODY], turns_had // (at_once + 4), at_once)

    def test_a_look_for_all_waits_in_nobodys_line_whoever_began_it(self) -> None:
        for _ in range(40):
            self.work("many", 50)

        async def work() -> str:
            self.assertEqual(ASKER.get(), NOBODY)
            for _ in range(3):
                await self.turns.breathe()
            return "seen"

        look = SharedLook(work)

        async def asked() -> str:
            ASKER.set("many")
            return await look.done()

        looked = ensureDeferred(asked())
        for _ in range(4):
            self.turn()
        self.assertEqual(self.successResultOf(looked), "seen")

    def test_of_so_many_askers_it_is_remembered_what_they_have_worked_and_who_left_takes_its_turn_along(self) -> None:
        self.patch(turns, "MAX_WORKERS", 3)
        self.work("many", 10)
        for number in range(20):
            self.work(f"one {number}", 2, 0.001)
        gone = self.work("gone", 1)
        gone.addErrback(lambda failure: failure.trap(CancelledError))
        gone.cancel()
        while self.calls:
            self.turn()
            self.assertLessEqual(len(self.turns._worked), 3 + len(self.turns._lines))
        self.assertEqual(len(self.done), 10 + 20 * 2)
        self.assertEqual((self.turns._worked, self.turns._lines, self.turns._order), ({}, {}, []))


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
