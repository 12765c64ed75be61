"""Handlers that are slow and answer: no cycle waits long, nothing is a dead letter for it, and what was done is found again."""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import ensureDeferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from taba.handlers import Handler
from taba.server.keys import ABSENT
from taba.server.work import answers, child
from taba.server.work import sandbox as module
from taba.server.work.bench import Bench
from taba.server.work.rows import Folded, ForeignWork, Work
from taba.server.work.sandbox import FOLD_SECONDS, HandlerSlow, Sandbox

from ..running import asynchronous, reactor
from ..samples import lookup_of

SECONDS = 60.0  # for what a busy machine does
PLUGIN = '''
import time
from taba.handlers import Handler

class Slow(Handler):
    """A list of seconds, that it takes. Each fold is noted in a file."""
    type = "Slow"
    def new_state(self): return []
    def fold(self, state, events, now):
        for value in events.values:
            with open("@DIRECTORY@/folds", "a") as file:
                file.write(f"{value}\\n")
            time.sleep(value)
        return [*state, *events.values]
    def project(self, state, now):
        time.sleep(0.2)
        return {"values": state}
    def aggregate(self, projections): return {"values": []}

class Other(Slow):
    type = "Other"

slow, other = Slow(), Other()
'''


class Slow(Handler):
    type = "Slow"


class Other(Handler):
    type = "Other"


class SlowCase(TestCase):
    timeout = 300

    def setUp(self) -> None:
        self.patch(module, "ASK_SECONDS", SECONDS)
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        plugins = self.directory / "twisted" / "plugins"
        plugins.mkdir(parents=True)
        (plugins / "slow_handler.py").write_text(PLUGIN.replace("@DIRECTORY@", str(self.directory)))
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(self.directory), str(Path(__file__).parent.parent.parent.parent)])}
        self.sandbox = Sandbox(lookup_of(Slow(), Other(), own=False), reactor, environ)
        self.addCleanup(lambda: ensureDeferred(self.sandbox.close()))

    def work(self, *values: float, type: str = "Slow", first: int = 0) -> ForeignWork:
        """One State for each value."""
        columns = [(row, struct.pack("<d", 1.0), [value]) for row, value in enumerate(values)]
        names = [b"%d" % (first + row) for row in range(len(values))]
        return ForeignWork(type, Work([ABSENT] * len(values), columns, names), {})

    async def fold(self, work: ForeignWork, seconds: float = SECONDS) -> Folded:
        [folded] = await self.sandbox.fold([work], 1.0, seconds, False)
        assert isinstance(folded, Folded)
        return folded

    async def until_done(self, work: ForeignWork) -> Folded:
        """As a sender does: again and again."""
        while True:
            try:
                return await self.fold(work, 0.05)
            except HandlerSlow:
                await deferLater(reactor, 0.02)

    def folds(self) -> list[float]:
        return [float(line) for line in (self.directory / "folds").read_text().split()]


@pytest.mark.real
class Patience(SlowCase):
    @asynchronous
    async def test_a_cycle_waits_for_its_time_and_whoever_comes_again_finds_what_was_done(self) -> None:
        await self.fold(self.work(0.001))
        work = self.work(*[0.3] * 10, first=1)  # 3 s: in turns, none of which is a child's end
        with self.assertRaises(HandlerSlow) as caught:
            await self.fold(work, 0.05)
        self.assertEqual(caught.exception.type, "Slow")
        folded = await self.until_done(work)
        self.assertEqual((len(folded.states), folded.failed), (10, {}))
        self.assertEqual(self.folds(), [0.001] + [0.3] * 10)  # each once
        self.assertEqual((self.sandbox.deaths, self.sandbox._behind["Slow"]), ({}, 0))
        self.assertEqual(await self.fold(work, 0.0), folded)

    @asynchronous
    async def test_within_its_time_nobody_is_sent_away(self) -> None:
        self.patch(module, "FOLD_SECONDS", SECONDS)
        await self.fold(self.work(0.001))
        self.assertEqual(len((await self.fold(self.work(0.2, first=1), SECONDS)).states), 1)
        self.assertEqual((self.sandbox.slow, self.sandbox.problems), ({}, []))

    @asynchronous
    async def test_a_slow_handler_is_named_with_its_time_and_the_one_that_waits_behind_it_is_not(self) -> None:
        await self.fold(self.work(0.001))
        slow, other = self.work(*[0.3] * 6, first=1), self.work(0.001, type="Other")
        with self.assertRaises(HandlerSlow):
            await self.fold(slow, 0.05)
        folded = await self.until_done(other)
        self.assertEqual(len(folded.states), 1)
        await self.until_done(slow)
        self.assertEqual(list(self.sandbox.slow), ["Slow"])
        self.assertEqual(self.sandbox.slow["Slow"].times, 1)
        self.assertGreater(self.sandbox.slow["Slow"].seconds, FOLD_SECONDS)
        # its turns were between those of the other, not after all of them
        self.assertLess(self.folds().index(0.001, 1), 7)

    @asynchronous
    async def test_many_slow_events_of_one_state_are_folded_although_all_of_them_take_longer_than_a_fold_may(self) -> None:
        self.patch(module, "ITEM_SECONDS", 1.0)
        times = struct.pack("<8d", *[1.0] * 8)
        work = ForeignWork("Slow", Work([ABSENT], [(0, times, [0.3] * 8)], [b"one"]), {})
        folded = await self.until_done(work)
        self.assertEqual((Slow().load(folded.states[0]), folded.failed, folded.spoiled), ([0.3] * 8, {}, {}))
        self.assertEqual(self.sandbox.problems, [])

    @asynchronous
    async def test_one_fold_of_a_type_goes_on_at_a_time_and_others_of_it_wait(self) -> None:
        await self.fold(self.work(0.001))
        with self.assertRaises(HandlerSlow):
            await self.fold(self.work(*[0.3] * 4, first=1), 0.0)
        for first in range(10, 20):
            with self.assertRaises(HandlerSlow):
                await self.fold(self.work(0.001, first=first), SECONDS)  # at once
        self.assertEqual(self.sandbox._behind["Slow"], 1)

    @asynchronous
    async def test_what_nobody_asks_for_again_is_given_up(self) -> None:
        await self.fold(self.work(0.001))
        self.patch(module, "KEEP_SECONDS", 0.0)
        with self.assertRaises(HandlerSlow):
            await self.fold(self.work(*[0.3] * 100, first=1), 0.0)
        while self.sandbox._behind["Slow"]:
            await deferLater(reactor, 0.02)
        self.assertLess(len(self.folds()), 1 + 100)

    @asynchronous
    async def test_another_state_or_other_events_are_folded_anew(self) -> None:
        work = self.work(0.2)
        await self.fold(work)
        changed = work._replace(work=work.work._replace(states=[ABSENT._replace(version=1, dump=Slow().dump([5.0]))]))
        self.assertEqual(Slow().load((await self.fold(changed)).states[0]), [5.0, 0.2])
        self.assertEqual(self.folds(), [0.2] * 2)
        self.patch(answers, "KEEP_SECONDS", 0.0)
        await self.fold(work)
        self.assertEqual(self.folds(), [0.2] * 3)
        self.assertEqual(self.sandbox._answers.bytes, answers.ROW_BYTES + len(Slow().dump([0.2])))

    @asynchronous
    async def test_answers_are_kept_within_a_bound(self) -> None:
        size = answers.ROW_BYTES + len(Slow().dump([0.2]))
        for bound, kept in ((size, 1), (size - 1, 0)):
            self.patch(answers, "MAX_BYTES", bound)
            await self.fold(self.work(0.2, 0.2))
            self.assertEqual((len(self.sandbox._answers._kept), self.sandbox._answers.bytes), (kept, kept * size))

    @asynchronous
    async def test_a_question_has_its_time_and_the_rest_is_said_to_be_missing(self) -> None:
        states = [[ABSENT._replace(version=1, dump=Slow().dump([1.0]))]] * 8
        answered = await self.sandbox.project("Slow", states, 1.0)
        self.assertEqual(answered, [{"values": [1.0]}] * 8)
        self.patch(module, "ASK_SECONDS", 1.5 * child.TURN_SECONDS)
        answered = await self.sandbox.project("Slow", states, 1.0)
        self.assertEqual(answered[0], {"values": [1.0]})
        self.assertIn("the Handler of Type Slow is slow", answered[-1])


@pytest.mark.real
class Reserve(SlowCase):
    @asynchronous
    async def test_a_second_child_is_ready_when_the_first_dies(self) -> None:
        await self.fold(self.work(0.001))
        line = self.sandbox._handlers
        while line._reserve is None or not line._reserve.called:
            await deferLater(reactor, 0.02)
        first, second = line._child, await line._reserve
        line._reserve = second_again(second)
        assert first is not None
        first.kill("the test says so")
        await self.fold(self.work(0.001, first=1))
        self.assertIs(line._child, second)

    @asynchronous
    async def test_one_that_died_in_reserve_is_not_taken(self) -> None:
        await self.fold(self.work(0.001))
        line = self.sandbox._handlers
        while line._reserve is None or not line._reserve.called:
            await deferLater(reactor, 0.02)
        second = await line._reserve
        line._reserve = second_again(second)
        assert line._child is not None and second is not None
        line._child.kill("the test says so")
        second.kill("the test says so")
        self.assertEqual(len((await self.fold(self.work(0.001, first=1))).states), 1)

    @asynchronous
    async def test_a_server_has_its_child_before_there_is_work(self) -> None:
        Bench(lookup_of(Slow(), Other(), own=False), self.sandbox).start()
        while self.sandbox._handlers._child is None:
            await deferLater(reactor, 0.02)
        self.assertEqual(self.sandbox._handlers.starts, 1)
        without = Sandbox(lookup_of(Slow()), reactor, {})
        Bench(lookup_of(Slow()), without).start()
        self.assertFalse(without._handlers._living)


def second_again(value: Any) -> Any:
    from twisted.internet.defer import succeed

    return succeed(value)
