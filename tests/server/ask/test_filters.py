"""Filters cost what they must, and hold up nobody: names are parsed once, expressions are compiled elsewhere, others have their turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, ensureDeferred
from twisted.trial.unittest import SynchronousTestCase

from taba import names
from taba import turns as turning
from taba.bounds import MAX_PATTERN
from taba.names import canonical_name
from taba.server.ask import choosing
from taba.server.ask.choosing import Chooser
from taba.server.ask.filters import has_labels, labels_of, make_filter
from taba.server.work.asking import Asked

from ..running import ServerCase, asynchronous, together
from ..work.test_patterns import asked_by

LABELS = st.dictionaries(st.sampled_from("abcd"), st.sampled_from("xyz"), max_size=4)


class Labels(SynchronousTestCase):
    @given(LABELS, st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("xyz")), max_size=5))
    def test_all_that_are_wanted_must_hold(self, labels: dict[str, str], wanted: list[tuple[str, str]]) -> None:
        expected = all(labels.get(key) == value for key, value in wanted)
        tab = canonical_name("t", labels)
        self.assertEqual(has_labels(wanted)(tab) or not wanted, expected)

    def test_a_name_is_parsed_once_however_many_labels_are_wanted(self) -> None:
        parsing = mock.Mock(side_effect=names.parse_name)
        self.patch(names, "parse_name", parsing)
        tab = canonical_name("t", {f"k{n}": "v" for n in range(16)})
        self.assertTrue(has_labels([(f"k{n}", "v") for n in range(16)] * 12)(tab))
        self.assertFalse(has_labels([("k1", "v"), ("k1", "w")])(tab))
        self.assertFalse(has_labels([(f"l{n}", "v") for n in range(200)])(tab))
        self.assertLessEqual(parsing.call_count, 1)
        self.assertEqual(labels_of("t"), ("t", {}))

    def test_nothing_is_compiled_where_everybody_waits(self) -> None:
        make_filter(match="(" * MAX_PATTERN)  # its own process says that this is none
        self.assertRaises(ValueError, make_filter, match="(" * (MAX_PATTERN + 1))


class Ticks:
    """A reactor whose time is set, and whose turns are taken, by hand."""

    def __init__(self) -> None:
        self.now = 1.0
        self.calls: list[Callable[[], None]] = []

    def seconds(self) -> float:
        return self.now

    def callLater(self, seconds: float, call: Callable[[], None]) -> None:
        assert seconds == 0
        self.calls.append(call)

    def turn(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()


class Turns(SynchronousTestCase):
    def test_others_have_their_turn_while_a_filter_looks_at_many_names(self) -> None:
        self.patch(turning, "TURN_SECONDS", -1.0)
        clock, router = Ticks(), cast(Any, None)

        async def elsewhere(pattern: str, texts: Any) -> Any:
            raise AssertionError(pattern)

        asked = Chooser(router, router, turning.Turns(clock), elsewhere)
        names = [f"x{n}" for n in range(10 * choosing.SLICE_NAMES)]
        found = ensureDeferred(asked._those(names, lambda text: text.endswith("1")))
        for turn in range(10):
            self.assertNoResult(found)
            self.assertEqual(len(clock.calls), 1, turn)
            clock.turn()
        self.assertEqual(len(self.successResultOf(found)), choosing.SLICE_NAMES)

    def test_an_expression_goes_elsewhere_in_lots_between_which_others_have_their_turn(self) -> None:
        clock, router = Ticks(), cast(Any, None)
        lots: list[int] = []

        async def elsewhere(pattern: str, texts: Any) -> Any:
            lots.append(len(texts))
            return texts

        turns = turning.Turns(clock)
        asked = Chooser(router, router, turns, elsewhere)
        most = choosing.SLICE_MATCHED
        self.patch(turning, "TURN_SECONDS", -1.0)
        for count, expected in ((0, [0]), (most, [most]), (2 * most + 1, [most, most, 1])):
            lots.clear()
            found = ensureDeferred(asked.match("(x|y).*", [f"x{number}" for number in range(count)]))
            for turn in range(len(expected)):
                self.assertEqual(lots, expected[:turn])
                clock.turn()
            self.assertEqual((len(self.successResultOf(found)), lots), (count, expected))

    def test_an_expression_over_all_lots_takes_no_longer_than_its_bound(self) -> None:
        clock, router = Ticks(), cast(Any, None)

        async def elsewhere(pattern: str, texts: Any) -> Any:
            clock.now += choosing.MATCHED_SECONDS / 2
            return []

        asked = Chooser(router, router, turning.Turns(clock), elsewhere)
        names = ["x"] * (3 * choosing.SLICE_MATCHED)
        found = ensureDeferred(asked.match("(x|y).*", names[: 2 * choosing.SLICE_MATCHED]))
        while clock.calls:
            clock.turn()
        self.assertEqual(self.successResultOf(found), [])
        found = ensureDeferred(asked.match("(x|y).*", names))
        while clock.calls:
            clock.turn()
        self.failureResultOf(found, choosing.QueryRefused)

    def test_of_many_questions_at_once_no_more_work_than_for_one_turn(self) -> None:
        clock = Ticks()
        turns = turning.Turns(clock)
        done: list[int] = []

        async def work(number: int) -> None:
            for _ in range(3):
                await turns.breathe()
                clock.now += 0.6 * turning.TURN_SECONDS  # so long it takes
                done.append(number)

        asked = [ensureDeferred(work(number)) for number in range(5)]
        worked = [0]
        while not all(one.called for one in asked):
            clock.turn()
            worked.append(len(done))
            self.assertLessEqual(worked[-1] - worked[-2], 2)
        self.assertEqual(sorted(done), sorted([*range(5)] * 3))

    def test_a_question_that_is_given_up_holds_up_nobody(self) -> None:
        clock = Ticks()
        turns = turning.Turns(clock)
        first, second = ensureDeferred(turns.breathe()), ensureDeferred(turns.breathe())
        first.addErrback(lambda failure: failure.trap(CancelledError))
        first.cancel()
        clock.turn()
        self.successResultOf(second)


class Expressions(ServerCase):
    @asynchronous
    async def test_what_is_no_expression_is_refused_although_there_is_nothing_to_match(self) -> None:
        server = await self.start()
        for pattern in ("(", "[", "a**", "(?P<n", "a{99999999999999}"):
            answered = await self.ask(server, f"/v1/names?match={pattern}")
            self.assertEqual(answered.status, 400, pattern)
            self.assertIn("no regular expression", answered.json["detail"])

    @asynchronous
    async def test_as_many_wait_as_the_bound_lets_and_others_are_told_to_ask_again(self) -> None:
        server = await self.start()
        self.patch(choosing, "simple_matcher", lambda pattern: None)
        answers = await together([self.ask(server, "/v1/names?match=a") for _ in range(30)])
        statuses = sorted(answered.status for answered in answers)
        self.assertEqual(set(statuses), {200, 503})
        self.assertGreaterEqual(statuses.count(200), 8)
        self.assertEqual((await self.ask(server, "/v1/names?match=a")).status, 200)
        self.assertEqual(server.sandbox.patterns.places.held, 0)

    @asynchronous
    async def test_whose_an_expression_is_is_known_wherever_it_is_asked_for(self) -> None:
        server = await self.start()
        self.patch(choosing, "simple_matcher", lambda pattern: None)
        askers: list[str] = []
        matched = server.sandbox.patterns._matched

        async def noted(asked: Asked, asker: str, *request: Any) -> Any:
            askers.append(asker)
            return await matched(asked, asker, *request)

        self.patch(server.sandbox.patterns, "_matched", noted)
        for path in ("/v1/names?match=a", "/v1/aggregates?match=a", "/metrics?match=a", "/api/v1/query?query=a%2Bb"):
            self.assertEqual((await self.ask(server, path)).status, 200)
            self.assertEqual(set(askers), {"this host"}, path)
            askers.clear()
        # what is listened to is looked at again and again, for whoever asked first
        await asked_by("listener", server.live.hear(make_filter(match="a")))
        [question] = server.live.questions.values()
        question._chosen_at -= 1000.0
        await question.look()
        self.assertEqual((len(askers) >= 2, set(askers)), (True, {"listener"}))
