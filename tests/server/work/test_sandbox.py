"""Handlers that hang, crash, raise and lie, in a real child process; and regular expressions that never end."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError
from twisted.internet.task import deferLater
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from taba.matching import simple_matcher
from taba.server.keys import ABSENT, Framed
from taba.server.work import boxing, line, patterns
from taba.server.work import sandbox as module
from taba.server.work.boxing import MAX_FILE_BYTES, MAX_FILES
from taba.server.work.child import pack
from taba.server.work.pasts import read_history
from taba.server.work.patterns import PatternRefused
from taba.server.work.rows import Folded, ForeignWork, Work
from taba.server.work.sandbox import HandlersAway, Sandbox

from ..running import asynchronous, reactor
from ..samples import lookup_of
from .hostile import PATIENT, PLUGIN, Crowd, Logged, Odd, is_alive, work
from .test_patterns import asked_by


class Hostile(TestCase):
    timeout = 300  # each culprit takes two children, whose start takes seconds on a busy machine

    def setUp(self) -> None:
        self.patch(module, "ITEM_SECONDS", 1.0)
        self.patch(module, "ASK_SECONDS", PATIENT)
        directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, directory)
        self.plugins = directory / "twisted" / "plugins"
        self.plugins.mkdir(parents=True)
        self.write("odd_handler", PLUGIN)
        secret = {"TABA_SERVER_STORE": "redis://:password@nowhere"}
        environ = {**os.environ, **secret, "PYTHONPATH": os.pathsep.join([str(directory), str(Path(__file__).parent.parent.parent.parent)])}
        self.sandbox = Sandbox(lookup_of(Odd(), Crowd(), own=False), reactor, environ)
        self.addCleanup(lambda: _ensured(self.sandbox.close()))

    def write(self, name: str, source: str) -> None:
        (self.plugins / f"{name}.py").write_text(source)

    async def fold(self, *words: str) -> Folded:
        [folded] = await self.sandbox.fold([work(*words)], 1.0, PATIENT)
        assert isinstance(folded, Folded)
        return folded

    @pytest.mark.real
    @asynchronous
    async def test_good_states_are_folded_beside_those_that_hang_crash_and_raise(self) -> None:
        for culprit in ("hang", "sleep", "crash", "exit", "quit", "raise", "eat"):
            self.sandbox._deaths.clear()
            folded = await self.fold("a", "b", culprit, "c", "print")
            self.assertEqual(sorted(folded.states), [0, 1, 3, 4], culprit)
            self.assertEqual((list(folded.failed), folded.failed[2].reason), ([2], "handler_error"), culprit)

    @asynchronous
    async def test_no_handler_fills_a_disk_or_takes_all_descriptors(self) -> None:
        good = (f"write{MAX_FILE_BYTES}", f"open{MAX_FILES // 2}")
        folded = await self.fold(*good, f"write{MAX_FILE_BYTES + 1}", f"open{MAX_FILES}")
        self.assertEqual(sorted(folded.states), [0, 1])
        self.assertEqual(["OSError" in folded.failed[row].detail for row in (2, 3)], [True] * 2, folded.failed)
        self.assertEqual(self.sandbox.deaths, {})

    @asynchronous
    async def test_a_handler_reaches_the_network_only_where_the_status_says_so(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.sandbox._handlers._environ = {**self.sandbox._handlers._environ, "TABA_TEST_PORT": str(listening.getsockname()[1])}
            folded = await self.fold("connect", "a")
        self.assertIn(self.sandbox.describe()["network"], (True, False))
        self.assertEqual(0 in folded.states, self.sandbox.describe()["network"], folded.failed)
        self.assertIn(1, folded.states)

    @asynchronous
    async def test_a_handler_starts_threads_and_processes_only_where_the_status_says_so(self) -> None:
        folded = await self.fold("thread", "fork", "run", "a")
        processes = self.sandbox.describe()["processes"]
        self.assertIn(processes, (True, False))
        self.assertEqual(sorted(folded.states), [0, 1, 2, 3] if processes else [0, 3], folded.failed)
        for row in () if processes else (1, 2):
            self.assertIn("PermissionError", folded.failed[row].detail)
        self.assertEqual(self.sandbox.deaths, {})

    @asynchronous
    async def test_a_handler_reaches_no_other_process_and_no_socket_and_runs_nothing_else_where_calls_are_filtered(self) -> None:
        own = ("itself", "map", "pair", "thread", "powers", "options")
        processes = (
            "signal",
            "group",
            "everybody",
            "limit",
            "trace",
            "watch",
            "exec",
            "bomb",
            "share",
            "memory",
            "unix",
            "listen",
            "netlink",
        )
        beyond = ("owner", "slow", "place", "send", "message", "bind", "reconnect", "root", "mount")
        alone = ("keyctl", "fault", "queue", "secret", "handle", "around", *(f"number{place}" for place in range(9)))
        await self.fold("a")
        if self.sandbox.describe()["processes"]:
            raise SkipTest("the kernel filters no calls here, and the status says so")
        others = (*processes, *beyond, *alone)
        folded = await self.fold(*own, *others)
        self.assertEqual(sorted(folded.states), list(range(len(own))), folded.failed)
        for row, word in enumerate(others, len(own)):
            self.assertRegex(folded.failed[row].detail, r"PermissionError|Errno 1\b", word)
        self.assertEqual((self.sandbox.deaths, self.sandbox.describe()["network"]), ({}, False))

    @asynchronous
    async def test_a_handler_reaches_the_memory_of_its_server_only_where_the_status_says_so(self) -> None:
        folded = await self.fold("peek", "poke", "a")
        reaches = self.sandbox.describe()["server_memory"]
        self.assertIn(reaches, (True, False))
        self.assertEqual(sorted(folded.states), [0, 1, 2] if reaches else [2], folded.failed)
        for row in () if reaches else (0, 1):
            self.assertIn("PermissionError", folded.failed[row].detail)

    @pytest.mark.real
    @asynchronous
    async def test_a_handler_that_stops_closes_its_pipes_prints_without_end_or_forges_answers_is_ended_and_harms_no_other(
        self,
    ) -> None:
        self.patch(module, "MAX_DEATHS", 100)
        self.patch(module, "ITEM_SECONDS", 0.5)
        self.patch(line, "MAX_ANSWER_BYTES", 1 << 20)
        folded = await self.fold("a", "stop", "close", "flood", "b", "forge")
        self.assertEqual((sorted(folded.states), sorted(folded.failed)), ([0, 4], [1, 2, 3, 5]))
        self.assertEqual({failed.reason for failed in folded.failed.values()}, {"handler_error"})
        self.assertEqual(Odd().load(folded.states[4]), ["b"])

    @asynchronous
    async def test_a_child_that_speaks_without_being_asked_is_ended_and_nothing_that_it_said_is_taken(self) -> None:
        said = repr(pack([False, {}]))
        for asked, wrong in ((False, "it spoke without being asked"), (True, None)):
            speaks = f"import os, signal; os.write(1, {said}); os.read(0, 1); os.write(1, {said}); signal.pause()"
            one = line._Child(reactor, self.sandbox.prints)
            reactor.spawnProcess(one, sys.executable, [sys.executable, "-c", speaks], os.environ)
            self.assertEqual(await one.next_frame(PATIENT), (False, {}))
            one.answered()
            if asked:
                one.asked()
            one.transport.write(b"x")
            if asked:
                self.assertEqual(await one.next_frame(PATIENT), (False, {}))
                one.kill("the test says so")
            await one.ended
            self.assertEqual(one.reason, wrong or "the test says so")
            self.assertEqual(one._frames, [])

    @asynchronous
    async def test_what_a_child_left_behind_ends_with_it_where_it_may_start_processes(self) -> None:
        leaves = "import os, signal, sys, time; os.setsid(); os.fork() and signal.pause(); print(os.getpid(), flush=True); signal.pause()"
        left: list[bytes] = []
        one = line._Child(reactor, self.sandbox.prints)
        self.patch(line._Child, "outReceived", lambda _, content: left.append(content))
        reactor.spawnProcess(one, sys.executable, [sys.executable, "-c", leaves], os.environ)
        while b"\n" not in b"".join(left):
            await deferLater(reactor, 0.02)
        number = int(b"".join(left))
        one.kill("the test says so")
        await one.ended
        while is_alive(number):
            await deferLater(reactor, 0.02)

    def test_the_processor_is_bounded_from_now_on_whatever_was_used_before(self) -> None:
        before = resource.getrlimit(resource.RLIMIT_CPU)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_CPU, before)
        boxing.bound_processor()
        used = resource.getrusage(resource.RUSAGE_SELF)
        soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
        self.assertEqual(hard, before[1])
        self.assertLessEqual(soft, used.ru_utime + used.ru_stime + boxing.MAX_PROCESSOR_SECONDS)
        self.assertGreater(soft, used.ru_utime + used.ru_stime + boxing.MAX_PROCESSOR_SECONDS - 30)

    @asynchronous
    async def test_a_projection_of_too_many_values_or_too_deep_or_with_odd_keys_is_none_and_harms_no_other(self) -> None:
        states = [[Framed(1, 1, Odd().dump([word]))] for word in ("many", "deep", "deeper", "tuple", "a")]
        many, deep, deeper, odd, good = await self.sandbox.project("Odd", states, 1.0)
        self.assertEqual(good, {"words": ["a"]})
        self.assertIsInstance(deeper, str)
        self.assertIn("more than 262144 items", str(many))
        self.assertIn("nested more than 64 deep", str(deep))
        self.assertIn("keys are texts and numbers", str(odd))
        self.assertEqual(self.sandbox.deaths, {})

    @pytest.mark.real
    @asynchronous
    async def test_a_type_that_dies_again_and_again_is_suspended_and_costs_no_more_time(self) -> None:
        self.patch(module, "SUSPENDED_SECONDS", PATIENT)  # on a busy machine a child may take half a minute to start
        folded = await self.fold("a", "crash", "crash", "b", "crash", "c")
        self.assertEqual((sorted(folded.states), sorted(folded.failed)), ([0, 3], [1, 2, 4, 5]))
        self.assertEqual(len(self.sandbox.problems), 1)
        starts = self.sandbox._handlers.starts
        self.assertEqual(sorted((await self.fold("hang", "a")).failed), [0, 1])
        self.assertIn("Type Odd is suspended", await self.sandbox.aggregate("Odd", [{}]))
        self.assertEqual(self.sandbox._handlers.starts, starts)

    async def fold_row(self, *values: Any) -> Folded:
        """All in one State."""
        column = (0, struct.pack(f"<{len(values)}d", *[1.0] * len(values)), list(values))
        [folded] = await self.sandbox.fold([ForeignWork("Odd", Work([ABSENT], [column]), {})], 1.0, PATIENT)
        assert isinstance(folded, Folded)
        return folded

    @pytest.mark.real
    @asynchronous
    async def test_an_event_that_hangs_or_crashes_is_the_only_one_of_its_state_that_is_lost(self) -> None:
        for culprit in ("hang", "crash", "raise", "quit"):
            folded = await self.fold_row("a", "b", culprit, "c", "d")
            self.assertEqual(Odd().load(folded.states[0]), ["a", "b", "c", "d"], culprit)
            self.assertEqual([places for _, places in folded.spoiled[0]], [[2]], culprit)
            self.assertEqual(folded.failed, {})

    @pytest.mark.real
    @asynchronous
    async def test_events_that_crash_are_found_one_after_the_other(self) -> None:
        folded = await self.fold_row("crash", "a", "raise", "crash", "b")
        self.assertEqual(Odd().load(folded.states[0]), ["a", "b"])
        self.assertEqual(sorted(place for _, places in folded.spoiled[0] for place in places), [0, 2, 3])

    async def fold_named(self, name: bytes, *values: Any, time: float = 1.0) -> Folded:
        """All in one State of this name."""
        times = struct.pack(f"<{len(values)}d", *[time] * len(values))
        [folded] = await self.sandbox.fold([ForeignWork("Odd", Work([ABSENT], [(0, times, list(values))], [name]), {})], 1.0, PATIENT)
        assert isinstance(folded, Folded)
        return folded

    @pytest.mark.real
    @asynchronous
    async def test_a_culprit_costs_no_second_child_where_its_cycle_is_tried_again(self) -> None:
        first = await self.fold_named(b"one", "a", "hang", "b")
        died = self.sandbox.deaths["Odd"]
        self.assertEqual(await self.fold_named(b"one", "a", "hang", "b"), first)
        alone = await self.fold_named(b"one", "hang")
        self.assertEqual((alone.states, list(alone.failed), alone.spoiled[0][0][1]), ({}, [0], [0]))
        mixed = await self.fold_named(b"one", "hang", "raise", "c")
        self.assertEqual(Odd().load(mixed.states[0]), ["c"])
        self.assertEqual(sorted(place for _, places in mixed.spoiled[0] for place in places), [0, 1])
        self.assertEqual(self.sandbox.deaths["Odd"], died)
        self.assertEqual(self.sandbox.problems, [])

    @pytest.mark.real
    @asynchronous
    async def test_a_culprit_is_known_by_state_time_and_value_for_a_while_and_within_a_bound(self) -> None:
        self.patch(module, "MAX_DEATHS", 100)
        self.patch(module, "MAX_CULPRITS", 3)
        self.patch(module, "KEEP_FROM_SECONDS", PATIENT)  # no answer is kept: only who is known as a culprit is not tried
        await self.fold_named(b"one", "exit")
        for again in (
            lambda: self.fold_named(b"two", "exit"),
            lambda: self.fold_named(b"one", "exit", time=2.0),
            lambda: self.fold_named(b"one", "crash"),  # the fourth: the first is forgotten
            lambda: self.fold_named(b"one", "exit"),
        ):
            died = self.sandbox.deaths["Odd"]
            self.assertEqual(list((await again()).failed), [0])
            self.assertEqual(self.sandbox.deaths["Odd"], died + 2)
        self.assertEqual(len(self.sandbox._culprits["Odd"]), 3)
        self.patch(module, "CULPRIT_SECONDS", 0.0)
        await self.fold_named(b"two", "a")
        self.assertEqual(self.sandbox._culprits, {})

    @asynchronous
    async def test_the_author_is_told_file_and_line(self) -> None:
        folded = await self.fold("raise")
        self.assertRegex(folded.failed[0].detail, r"ValueError: no \(.*odd_handler.py:\d+, in act\)")

    @pytest.mark.real
    @asynchronous
    async def test_no_time_passes_for_a_child_while_this_process_is_stopped(self) -> None:
        await self.fold("a")
        folding = _ensured(self.fold("a", "nap", "b"))
        await deferLater(reactor, 0.1)
        time.sleep(2.5)  # the reactor stands still, as if the Server were stopped; the child has long answered
        self.assertEqual(sorted((await folding).states), [0, 1, 2])
        self.assertEqual(self.sandbox._handlers.starts, 1)

    @asynchronous
    async def test_no_event_is_at_fault_for_imports_that_take_long(self) -> None:
        self.write("slow_handler", "import time\ntime.sleep(1.5)")  # longer than an item may take
        self.assertEqual(sorted((await self.fold("a", "b")).states), [0, 1])
        self.assertEqual(self.sandbox._handlers.starts, 1)

    @pytest.mark.real
    @asynchronous
    async def test_no_event_is_at_fault_where_the_child_is_killed_from_outside(self) -> None:
        await self.fold("a")
        folding = _ensured(self.fold("a", "nap", "b"))
        child = self.sandbox._handlers._child
        assert child is not None
        child.transport.signalProcess("KILL")
        self.assertEqual(sorted((await folding).states), [0, 1, 2])
        self.assertEqual((self.sandbox.problems, self.sandbox._deaths), ([], {}))

    @pytest.mark.real
    @asynchronous
    async def test_events_wait_where_no_child_starts_and_are_dead_letters_where_that_lasts(self) -> None:
        self.write("broken_handler", "import os\nos._exit(1)")
        for _ in range(module.MAX_STARTS - 1):
            with self.assertRaises(HandlersAway):
                await self.fold("a")
        self.assertIn("does not start", (await self.fold("a")).failed[0].detail)
        [projection] = await self.sandbox.project("Odd", [[Framed(1, 1, Odd().dump(["a"]))]], 1.0)
        self.assertIn("does not start", projection)
        self.write("broken_handler", "")
        self.assertEqual(list((await self.fold("a")).states), [0])

    @asynchronous
    async def test_what_is_too_large_for_one_request_is_asked_in_several(self) -> None:
        self.patch(module, "REQUEST_BYTES", 100)
        words = ["x" * 30] * 10
        self.assertEqual(len((await self.fold(*words)).states), 10)
        states = [[Framed(1, 1, Odd().dump([word]))] for word in words]
        self.assertEqual(await self.sandbox.project("Odd", states, 1.0), [{"words": [word]} for word in words])
        self.assertEqual(self.sandbox._handlers.starts, 1)

    @asynchronous
    async def test_a_handler_that_prints_fills_no_log(self) -> None:
        logged: list[bytes] = []
        self.patch(line, "log", Logged(logged))
        for _ in range(20):
            await self.fold("print")
        while self.sandbox.prints.bytes < 20 * 1000:
            await deferLater(reactor, 0.01)
        self.assertLessEqual(sum(map(len, logged)), line.PRINTED_BYTES + 1000)
        self.assertEqual(self.sandbox.prints.unlogged, self.sandbox.prints.bytes - line.PRINTED_BYTES)

    @pytest.mark.real
    @asynchronous
    async def test_an_array_handler_that_crashes_is_given_its_states_one_by_one(self) -> None:
        columns = [(row, struct.pack("<d", 1.0), struct.pack("<d", float(row))) for row in range(8)]
        [folded] = await self.sandbox.fold([ForeignWork("Crowd", Work([ABSENT] * 8, columns), {})], 1.0, PATIENT)
        assert isinstance(folded, Folded)
        self.assertEqual((sorted(folded.states), list(folded.failed)), ([0, 1, 2, 3, 4, 6, 7], [5]))

    @asynchronous
    async def test_a_plain_handler_gets_plain_floats(self) -> None:
        columns: list[tuple[int, bytes, Any]] = [(0, struct.pack("<2d", 1.0, 2.0), struct.pack("<2d", 3.0, 4.5))]
        columns.append((0, struct.pack("<d", 1.0), ["x"]))
        for some in (columns[:1], columns):
            [folded] = await self.sandbox.fold([ForeignWork("Odd", Work([ABSENT], some), {})], 1.0, PATIENT)
            assert isinstance(folded, Folded)
            self.assertEqual(folded.failed, {})
            self.assertEqual(Odd().load(folded.states[0]), [3.0, 4.5, "x"][: len(some) + 1])

    @pytest.mark.real
    @asynchronous
    async def test_further_parts_are_asked_for_and_given(self) -> None:
        columns = [(0, struct.pack("<6d", *[1.0] * 6), struct.pack("<6d", *[2.0] * 6)), (1, struct.pack("<d", 1.0), struct.pack("<d", 3.0))]
        foreign = ForeignWork("Crowd", Work([ABSENT] * 2, columns), {})
        [wanted] = await self.sandbox.fold([foreign], 1.0, PATIENT)
        self.assertEqual(wanted, [0])
        old = Framed(1, 1, struct.pack("<d", 4.0))
        [folded] = await self.sandbox.fold([foreign._replace(parts={0: [old, ABSENT]})], 1.0, PATIENT)
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
    async def test_histories_come_whole_and_what_is_none_is_a_sentence(self) -> None:
        for words, expected in ((["a", "b"], 2), (["a", "rubbish"], None), (["hcrash"], None), (["hodd"], None), (["a"], 1)):
            self.sandbox._deaths.clear()
            states = [[Framed(1, 1, Odd().dump([word]))] for word in words]
            found = read_history(await self.sandbox.history("Odd", states, 50.0), len(states))
            if expected is None:
                self.assertIsInstance(found, str, words)
            else:
                self.assertEqual(
                    (found.since, found.row, found.count, found.ever.count), (0.0, [*range(expected)], [1] * expected, [1] * expected)
                )
        self.assertIsNone(read_history(await self.sandbox.history("Crowd", [[ABSENT] * 3], 50.0), 1))

    @asynchronous
    async def test_a_regular_expression_that_never_ends_is_refused(self) -> None:
        self.assertEqual(await self.sandbox.match("(a|b)+", ["ab", "abc", "b"]), ["ab", "b"])
        with self.assertRaises(PatternRefused):
            await self.sandbox.match("(a+)+b", ["a" * 200])
        self.assertEqual(await self.sandbox.match("(a|b)+", ["ab"]), ["ab"])

    @asynchronous
    async def test_one_that_took_too_long_is_refused_for_a_while_without_a_child(self) -> None:
        for ask in (
            lambda: self.sandbox.match("(a+)+b", ["a" * 200]),
            lambda: self.sandbox.rewrite("(a+)+b", "$1", ["a" * 200]),
        ):
            with self.assertRaises(PatternRefused):
                await ask()
            untried = mock.patch.object(self.sandbox.patterns, "_matched", side_effect=AssertionError("it was tried"))
            with untried, self.assertRaisesRegex(PatternRefused, "did not answer"):
                await ask()
        self.patch(patterns, "MAX_SLOW_PATTERNS", 1)
        with self.assertRaises(PatternRefused):
            await self.sandbox.match("(b+)+c", ["b" * 200])
        self.assertEqual(len(self.sandbox.patterns._slow), 1)
        self.patch(patterns, "SLOW_PATTERN_SECONDS", 0.0)
        with self.assertRaisesRegex(PatternRefused, "within 1 s"):
            await self.sandbox.match("(b+)+c", ["b" * 200])
        with self.assertRaisesRegex(PatternRefused, "no regular expression"):
            await self.sandbox.match("(", ["a"])

    @asynchronous
    async def test_a_good_pattern_waits_for_no_bad_one_of_another_asker(self) -> None:
        self.patch(patterns, "MATCH_SECONDS", PATIENT)
        bad = [
            asked_by("bad", self.sandbox.match(f"(a+)+b{number}", ["a" * 200])).addErrback(lambda _: None)
            for number in range(patterns.PLACES_OF_ASKER)
        ]
        for _ in range(3):
            self.assertEqual(await asked_by("good", self.sandbox.match("(a|b)+", ["ab"])), ["ab"])
        for one in bad:
            one.cancel()
        # those whose turn it was not are gone with who asked for them; the others have their second, of which this test takes more
        self.assertEqual(self.sandbox.patterns.places.held, patterns.CHILDREN_OF_ASKER)

    @asynchronous
    async def test_who_leaves_while_a_child_starts_leaves_it_to_whoever_comes_next(self) -> None:
        for _ in range(3):
            asked = asked_by("hasty", self.sandbox.match("(a|b)+", ["ab"]))
            asked.addErrback(lambda failure: failure.trap(CancelledError))
            asked.cancel()
        self.assertEqual(await asked_by("hasty", self.sandbox.match("(a|b)+", ["ab"])), ["ab"])
        while self.sandbox.patterns.places.held:  # what was begun for nobody
            await deferLater(reactor, 0.01)
        self.assertEqual(sum(line.starts for line in self.sandbox.patterns.lines), patterns.CHILDREN_OF_ASKER)

    @asynchronous
    async def test_who_leaves_a_question_to_handlers_leaves_their_child_to_the_others(self) -> None:
        self.patch(module, "QUICK_SECONDS", PATIENT)
        nap, quick = ([Framed(1, 1, Odd().dump([word]))] for word in ("pnap", "a"))
        common = self.sandbox._handlers
        first = asked_by("first", self.sandbox.project("Odd", [nap], 1.0)).addErrback(lambda failure: failure.trap(CancelledError))
        while common.about is None:  # until its child has the question
            await deferLater(reactor, 0.01)
        second, third = (asked_by(name, self.sandbox.project("Odd", [quick], 1.0)) for name in ("second", "third"))
        third.addErrback(lambda failure: failure.trap(CancelledError))
        third.cancel()  # before it was its turn: it takes its question along
        first.cancel()
        self.assertEqual(common.waiting, 2)
        self.assertEqual(await second, [{"words": ["a"]}])
        self.assertEqual((common.starts, common.requests["Odd"], common.waiting), (1, 2, 0))
        self.assertEqual(self.sandbox.deaths, {})
        # one that ends its child is noted, whoever has left by then
        first = asked_by("first", self.sandbox.project("Odd", [[Framed(1, 1, Odd().dump(["pexit"]))], [Framed(1, 1, b"")]], 1.0))
        first.addErrback(lambda failure: failure.trap(CancelledError))
        first.cancel()
        while common.waiting or self.sandbox._apart.waiting:
            await deferLater(reactor, 0.01)
        self.assertEqual((self.sandbox.describe()["apart"], self.sandbox.deaths), (["Odd"], {"Odd": 1}))


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
