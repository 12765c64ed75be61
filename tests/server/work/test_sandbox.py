"""Handlers that hang, crash, raise and lie, in a real child process; and regular expressions that never end."""

from __future__ import annotations

import os
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase, TestCase

from taba.handlers import ArrayHandler, Handler
from taba.server.ask.matching import simple_matcher
from taba.server.keys import ABSENT, Framed
from taba.server.work import sandbox as module
from taba.server.work.folding import Folded, ForeignWork, Work
from taba.server.work.sandbox import PatternRefused, Sandbox

from ..running import asynchronous, reactor
from ..samples import lookup_of

PLUGIN = '''
import os, time
from taba.handlers import Handler
from tests.server.samples import Spilling

class Odd(Handler):
    """A list of words; does what some of them say."""
    type = "Odd"
    def new_state(self): return []
    def fold(self, state, events, now):
        for word in events.values:
            self.act(word)
        return state + list(events.values)
    def act(self, word):
        if word == "hang":
            while True: pass
        if word == "sleep": time.sleep(1000)
        if word == "crash": os.abort()
        if word == "exit": os._exit(0)
        if word == "quit": raise SystemExit(3)
        if word == "raise": raise ValueError("no")
        if word == "print": print("\\0" * 1000, flush=True)
        if word == "eat": bytearray(1 << 40)
        if isinstance(word, float): assert type(word) is float, type(word)
    def project(self, state, now):
        self.act(state[-1][1:] if state[-1].startswith("p") else "")
        if "rubbish" in state: return 17
        return {"words": state}
    def aggregate(self, projections):
        return {"words": [word for one in projections for word in one["words"]]}
    def render(self, projection): return "|".join(projection["words"])

class Crowd(Spilling):
    """All values; crashes at 5."""
    type = "Crowd"
    def fold_array(self, states, rows, times, values, now):
        if (values == 5).any(): os.abort()
        return super().fold_array(states, rows, times, values, now)

odd, crowd = Odd(), Crowd()
'''


class Odd(Handler):
    type = "Odd"


class Crowd(ArrayHandler):
    type = "Crowd"
    further_parts = 2


def work(*words: str) -> ForeignWork:
    """One State for each word."""
    columns = [(row, struct.pack("<d", 1.0), [word]) for row, word in enumerate(words)]
    return ForeignWork("Odd", Work([ABSENT] * len(words), columns), {})


class Hostile(TestCase):
    timeout = 60

    def setUp(self) -> None:
        self.patch(module, "ITEM_SECONDS", 1.0)
        directory = Path(tempfile.mkdtemp())
        (directory / "twisted" / "plugins").mkdir(parents=True)
        (directory / "twisted" / "plugins" / "odd_handler.py").write_text(PLUGIN)
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(directory), str(Path(__file__).parent.parent.parent.parent)])}
        self.sandbox = Sandbox(lookup_of(Odd(), Crowd(), own=False), reactor, environ)
        self.addCleanup(lambda: _ensured(self.sandbox.close()))

    async def fold(self, *words: str) -> Folded:
        [folded] = await self.sandbox.fold([work(*words)], 1.0)
        assert isinstance(folded, Folded)
        return folded

    @asynchronous
    async def test_good_states_are_folded_beside_those_that_hang_crash_and_raise(self) -> None:
        for culprit in ("hang", "sleep", "crash", "exit", "quit", "raise", "eat"):
            self.sandbox._deaths.clear()
            folded = await self.fold("a", "b", culprit, "c", "print")
            self.assertEqual(sorted(folded.states), [0, 1, 3, 4], culprit)
            self.assertEqual((list(folded.failed), folded.failed[2].reason), ([2], "handler_error"), culprit)

    @asynchronous
    async def test_a_type_that_dies_again_and_again_is_suspended_and_costs_no_more_time(self) -> None:
        folded = await self.fold("a", "crash", "crash", "b", "crash", "c")
        self.assertEqual((sorted(folded.states), sorted(folded.failed)), ([0, 3], [1, 2, 4, 5]))
        self.assertEqual(len(self.sandbox.problems), 1)
        begun = time.monotonic()
        self.assertEqual(sorted((await self.fold("hang", "a")).failed), [0, 1])
        self.assertEqual(await self.sandbox.aggregate("Odd", [{}]), "Type Odd is suspended")
        self.assertLess(time.monotonic() - begun, 0.5)

    @asynchronous
    async def test_an_array_handler_that_crashes_is_given_its_states_one_by_one(self) -> None:
        columns = [(row, struct.pack("<d", 1.0), struct.pack("<d", float(row))) for row in range(8)]
        [folded] = await self.sandbox.fold([ForeignWork("Crowd", Work([ABSENT] * 8, columns), {})], 1.0)
        assert isinstance(folded, Folded)
        self.assertEqual((sorted(folded.states), list(folded.failed)), ([0, 1, 2, 3, 4, 6, 7], [5]))

    @asynchronous
    async def test_a_plain_handler_gets_plain_floats(self) -> None:
        columns = [(0, struct.pack("<2d", 1.0, 2.0), struct.pack("<2d", 3.0, 4.5)), (0, struct.pack("<d", 1.0), ["x"])]
        for some in (columns[:1], columns):
            [folded] = await self.sandbox.fold([ForeignWork("Odd", Work([ABSENT], some), {})], 1.0)
            assert isinstance(folded, Folded)
            self.assertEqual(folded.failed, {})
            self.assertEqual(Odd().load(folded.states[0]), [3.0, 4.5, "x"][: len(some) + 1])

    @asynchronous
    async def test_further_parts_are_asked_for_and_given(self) -> None:
        columns = [(0, struct.pack("<6d", *[1.0] * 6), struct.pack("<6d", *[2.0] * 6)), (1, struct.pack("<d", 1.0), struct.pack("<d", 3.0))]
        foreign = ForeignWork("Crowd", Work([ABSENT] * 2, columns), {})
        [wanted] = await self.sandbox.fold([foreign], 1.0)
        self.assertEqual(wanted, [0])
        old = Framed(1, 1, struct.pack("<d", 4.0))
        [folded] = await self.sandbox.fold([foreign._replace(parts={0: [old, ABSENT]})], 1.0)
        assert isinstance(folded, Folded)
        self.assertEqual(folded.parts, {0: [struct.pack("<7d", 4.0, *[2.0] * 6), b""]})
        self.assertEqual(folded.states, {0: b"", 1: struct.pack("<d", 3.0)})

    @asynchronous
    async def test_projections_aggregates_and_text(self) -> None:
        states = [[Framed(1, 1, Odd().dump([word]))] for word in ("a", "rubbish", "pcrash", "b", "praise")]
        answers = await self.sandbox.project("Odd", states, 1.0)
        self.assertEqual([answers[0], answers[3]], [{"words": ["a"]}, {"words": ["b"]}])
        self.assertEqual([type(answers[index]) for index in (1, 2, 4)], [str] * 3)
        self.assertEqual(await self.sandbox.aggregate("Odd", [answers[0], answers[3]]), {"words": ["a", "b"]})
        self.assertEqual(await self.sandbox.render("Odd", [answers[0], {"words": "xy"}]), ["a", "x|y"])

    @asynchronous
    async def test_a_regular_expression_that_never_ends_is_refused(self) -> None:
        self.assertEqual(await self.sandbox.match("(a|b)+", ["ab", "abc", "b"]), ["ab", "b"])
        with self.assertRaises(PatternRefused):
            await self.sandbox.match("(a+)+b", ["a" * 200])
        self.assertEqual(await self.sandbox.match("(a|b)+", ["ab"]), ["ab"])


def _ensured(coroutine: Any) -> Any:
    from twisted.internet.defer import ensureDeferred

    return ensureDeferred(coroutine)


class Matching(SynchronousTestCase):
    @given(st.text("ab.*|\\", max_size=8), st.text("ab.\n", max_size=8))
    def test_a_simple_pattern_matches_what_the_regular_expression_does(self, pattern: str, text: str) -> None:
        import re

        matcher = simple_matcher(pattern)
        if matcher is not None:
            self.assertEqual(matcher(text), re.fullmatch(pattern, text) is not None)

    def test_what_is_simple(self) -> None:
        for pattern in ("bids.*", "a|b.*", r"a\.b", ".*", "", "x.*y.*z"):
            self.assertIsNotNone(simple_matcher(pattern), pattern)
        for pattern in ("a+", "a*", ".", "(a)", "[ab]", "a.*?", r"\d", "^a", "a$", "a{2}", r"\.*", "ab*"):
            self.assertIsNone(simple_matcher(pattern), pattern)
