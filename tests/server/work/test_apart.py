"""Types that hang, crash, take memory or are slow work apart: what each costs a good one is counted, once for each, whatever they do on."""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import DeferredList, ensureDeferred
from twisted.trial.unittest import TestCase

from taba.handlers import Handler
from taba.server.keys import ABSENT, Framed
from taba.server.work import sandbox as module
from taba.server.work.rows import Folded, ForeignWork, Work
from taba.server.work.sandbox import MAX_DEATHS, HandlerSlow, Sandbox
from tests.patience import PATIENCE_SECONDS

from ..running import asynchronous, reactor
from ..samples import lookup_of

EVIL = ("Hangs", "Exits", "Grows", "Keeps", "Sleeps", "Raises", "Rubbish")
ROUNDS = 2
PLUGIN = '''
import os, time
from taba.handlers import Handler

kept = []

class Good(Handler):
    """The number of events; the others do as their names say."""
    type = "Good"
    def new_state(self): return 0
    def fold(self, state, events, now):
        self.act()
        return state + len(events.values)
    def act(self): pass
    def project(self, state, now):
        self.act()
        return {"count": state}
    def aggregate(self, projections): return {"count": sum(one["count"] for one in projections)}

class Hangs(Good):
    type = "Hangs"
    def act(self):
        while True: pass

class Exits(Good):
    type = "Exits"
    def act(self): os._exit(1)

class Grows(Good):
    type = "Grows"
    def act(self):
        grown = []
        while True: grown.append(bytes(64 << 20))

class Keeps(Good):
    type = "Keeps"
    def act(self): kept.append(b"x" * (600 << 20))

class Sleeps(Good):
    type = "Sleeps"
    def act(self): time.sleep(0.7)

class Raises(Good):
    type = "Raises"
    def act(self): raise ValueError("no")

class Rubbish(Good):
    type = "Rubbish"
    def fold(self, state, events, now): return lambda: "no State"
    def project(self, state, now): return lambda: "no Projection"

good, hangs, exits, grows, keeps, sleeps, raises, rubbish = Good(), Hangs(), Exits(), Grows(), Keeps(), Sleeps(), Raises(), Rubbish()
'''


def named(of_type: str) -> Handler:
    made: Handler = type(of_type, (Handler,), {"type": of_type})()
    return made


class ApartCase(TestCase):
    timeout = 600

    def setUp(self) -> None:
        self.patch(module, "ASK_SECONDS", PATIENCE_SECONDS)
        self.patch(module, "SUSPENDED_SECONDS", PATIENCE_SECONDS)
        directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, directory)
        plugins = directory / "twisted" / "plugins"
        plugins.mkdir(parents=True)
        (plugins / "evil_handlers.py").write_text(PLUGIN)
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(directory), str(Path(__file__).parent.parent.parent.parent)])}
        self.sandbox = Sandbox(lookup_of(*map(named, ("Good", *EVIL)), own=False), reactor, environ)
        self.addCleanup(lambda: ensureDeferred(self.sandbox.close()))

    async def fold(self, type: str, number: int, events: int = 2) -> Folded | None:
        """One fold of its own; None where it takes longer than a cycle waits."""
        work = Work([ABSENT], [(0, struct.pack(f"<{events}d", *[1.0] * events), [float(number)] * events)], [b"%d" % number])
        try:
            [folded] = await self.sandbox.fold([ForeignWork(type, work, {})], 1.0, 500.0 if type == "Good" else 0.1, False)
        except HandlerSlow:
            return None
        assert isinstance(folded, Folded)
        return folded

    async def project(self, type: str, states: int = 3) -> list[Any]:
        return await self.sandbox.project(type, [[Framed(1, 0, Handler().dump(2))]] * states, 1.0)


@pytest.mark.real
class Beside(ApartCase):
    @asynchronous
    async def test_a_good_type_waits_for_each_evil_one_once_however_long_they_go_on(self) -> None:
        self.patch(module, "ITEM_SECONDS", 1.0)
        await self.fold("Good", 0)
        common, apart = self.sandbox._handlers, self.sandbox._apart
        for number in range(1, ROUNDS + 1):
            evil = [work for type in EVIL for work in (self.fold(type, number, events=1), self.project(type, states=1))]
            others = DeferredList([ensureDeferred(work) for work in evil], consumeErrors=True)
            for place in range(3):
                folded = await self.fold("Good", 100 * number + place)
                assert folded is not None
                self.assertEqual((list(folded.states), folded.failed, folded.spoiled), ([0], {}, {}))
                self.assertEqual(await self.project("Good"), [{"count": 2}] * 3)
            for succeeded, outcome in await others:
                self.assertTrue(succeeded, outcome)
        # what a good one may have waited for where it works: of each evil Type the fold and the question that came at once, never again
        heavy = ("Hangs", "Exits", "Keeps", "Sleeps")
        self.assertEqual({type: common.requests[type] for type in heavy if common.requests[type] > 2}, {})
        self.assertEqual(self.sandbox.describe()["apart"], sorted(heavy))
        self.assertGreaterEqual(apart.requests["Sleeps"], ROUNDS)
        self.assertEqual(set(apart.requests) - set(heavy), set())
        # those that answer at once, whatever they answer, stay where they are
        self.assertGreaterEqual(min(common.requests[type] for type in ("Raises", "Rubbish", "Grows")), ROUNDS)
        self.assertLessEqual(common.starts, 1 + 2 * len(heavy))
        self.assertEqual(self.sandbox._suspension("Good"), None)
        self.assertLessEqual(len(common._living) + len(apart._living), 3)  # one, one in reserve, one apart

    @asynchronous
    async def test_who_keeps_memory_leaves_the_next_one_a_new_child(self) -> None:
        await self.fold("Keeps", 1, events=1)
        first = self.sandbox._handlers.starts
        folded = await self.fold("Good", 1)
        assert folded is not None
        self.assertEqual((list(folded.states), self.sandbox._handlers.starts), ([0], first + 1))
        self.assertEqual(self.sandbox.describe()["apart"], ["Keeps"])
        self.assertEqual(self.sandbox.deaths, {})  # nothing of it failed

    @asynchronous
    async def test_a_type_that_is_moved_apart_is_at_fault_for_nothing_and_returns_when_it_gave_no_reason_for_long(self) -> None:
        self.patch(module, "QUICK_SECONDS", 0.1)
        self.assertEqual(await self.project("Sleeps"), [{"count": 2}] * 3)
        self.assertEqual((self.sandbox.deaths, self.sandbox.describe()["apart"]), ({}, ["Sleeps"]))
        self.patch(module, "APART_SECONDS", 0.0)
        self.patch(module, "QUICK_SECONDS", 2.0)
        self.assertEqual((await self.project("Sleeps", 1), self.sandbox.describe()["apart"]), ([{"count": 2}], []))
        self.assertEqual(self.sandbox._apart.starts, 1)

    @asynchronous
    async def test_of_those_that_wait_apart_as_many_as_the_bound_says_wait_and_the_next_is_told(self) -> None:
        self.patch(module, "MAX_APART", 2)
        self.patch(module, "QUICK_SECONDS", 0.1)
        await self.project("Sleeps", 1)
        asked = [ensureDeferred(self.project("Sleeps", 1)) for _ in range(3)]
        answers = [answer for [answer] in [await one for one in asked]]
        self.assertEqual(answers[:2], [{"count": 2}] * 2)
        self.assertIn("2 requests wait", answers[2])

    @asynchronous
    async def test_an_evil_type_is_suspended_apart_as_anywhere(self) -> None:
        number = 0
        while self.sandbox._suspension("Exits") is None:
            number += 1
            await self.fold("Exits", number, events=1)
            await self.fold("Good", number)
        self.assertGreaterEqual(self.sandbox.deaths["Exits"], MAX_DEATHS)
        self.assertLessEqual(self.sandbox._handlers.requests["Exits"], 2)
