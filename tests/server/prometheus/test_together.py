"""What many ask at the same time: work that is shared, and questions that have a bound."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taba.places import ASKER, Crowded
from taba.server.ask.index import Known
from taba.server.prometheus import api
from taba.server.prometheus.api import PrometheusApi
from taba.server.prometheus.asked import LE, LIMIT, QUERY, TIME, Asked
from taba.server.prometheus.catalogue import Catalogue, Catalogues
from taba.server.prometheus.syntax import flattened
from taba.shard.memory.router import MemoryRouter
from taba.shard.memory.server import MemoryServer
from taba.turns import SharedLook


class Counted:
    """Turns that are had at once, and counted."""

    def __init__(self) -> None:
        self.had = 0

    async def breathe(self) -> None:
        self.had += 1


class TogetherTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.works: list[Deferred[int]] = []

        async def work() -> int:
            self.works.append(Deferred())
            return await self.works[-1]

        self.together = SharedLook(work)

    def test_who_comes_while_it_is_done_shares_the_next_time(self) -> None:
        first, second, third = (ensureDeferred(self.together.done()) for _ in range(3))
        self.assertEqual(len(self.works), 1)
        self.works[0].callback(1)
        self.assertEqual(self.successResultOf(first), 1)
        self.assertNoResult(second)
        self.assertEqual(len(self.works), 2)
        self.works[1].callback(2)
        self.assertEqual((self.successResultOf(second), self.successResultOf(third)), (2, 2))

    def test_who_goes_away_ends_nothing_and_a_failure_is_of_those_that_asked(self) -> None:
        gone, staying = ensureDeferred(self.together.done()), ensureDeferred(self.together.done())
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        self.works[0].callback(1)
        later = ensureDeferred(self.together.done())
        self.works[1].errback(ValueError("no"))
        self.failureResultOf(staying, ValueError)
        self.works[2].callback(3)
        self.assertEqual(self.successResultOf(later), 3)


class Questions(SynchronousTestCase):
    def test_so_many_are_evaluated_so_many_wait_and_one_more_is_told_to_come_again(self) -> None:
        looks: list[Deferred[Catalogue]] = []

        class Slow:
            async def look(self) -> Catalogue:
                looks.append(Deferred())
                return await looks[-1]

        class Query:
            turns = Counted()

        async def parsed(text: str) -> Any:
            return flattened(text)

        given: Any = Query(), Slow(), parsed, None, lambda: 0.0, None
        questions = PrometheusApi(*given)

        def ask(asker: str = "") -> Deferred[Any]:
            ASKER.set(asker)
            return ensureDeferred(questions.instant(Asked((QUERY, TIME, LIMIT, LE), {"query": "x"})))

        half = (api.MAX_QUESTIONS + api.MAX_WAITING) // 2
        asked = [ask("many") for _ in range(half)]
        self.assertEqual(len(looks), api.MAX_QUESTIONS // 2)  # so many at once of one asker
        refused = str(self.failureResultOf(ask("many"), Crowded).value)
        self.assertIn(
            f"{half} questions in PromQL that wait or are being answered are yours, and of {2 * half} places one asker has {half}", refused
        )
        asked += [ask(f"one {number}") for number in range(half)]  # others have places yet, and of these
        self.assertEqual(len(looks), api.MAX_QUESTIONS)
        self.assertEqual((questions.seats.places.held, questions.seats.places.share), (2 * half, (half, half)))
        displaced = asked[half - 1]
        asked.append(ask("good"))  # where all are taken, who has most gives one up
        self.failureResultOf(displaced, Crowded)
        asked.remove(displaced)
        asked[-1].cancel()  # who waits goes away, and another one may wait
        self.failureResultOf(asked.pop(), CancelledError)
        asked.append(ask("good"))
        asked[0].cancel()  # so it is with one that is being evaluated
        self.failureResultOf(asked.pop(0), CancelledError)
        self.assertEqual(len(looks), api.MAX_QUESTIONS + 1)
        for look in looks[1:]:
            look.callback(Catalogue({}, (), {}, {}, ()))
        for look in looks:
            if not look.called:
                look.callback(Catalogue({}, (), {}, {}, ()))
        for one in asked:
            self.successResultOf(one)


class Names(SynchronousTestCase):
    def test_many_that_ask_at_once_have_one_catalogue_made_for_them_which_is_in_order_whatever_bucket_a_tab_lies_in(self) -> None:
        looked = {
            bucket: Known(1, 0, {f'x.{9 - place}{{at="b{bucket}"}}': "T" for place in range(5)} | {"a.b" if bucket else "a/b": "T"}, {})
            for bucket in range(2)
        }
        waiting: list[Deferred[Any]] = []

        class Index:
            async def look(self) -> Any:
                waiting.append(Deferred())
                return await waiting[-1]

        router = MemoryRouter([MemoryServer(Clock())], 2, Clock())
        self.successResultOf(ensureDeferred(router.connect()))
        given: Any = router, Index(), Counted(), lambda type: ("total",), lambda: 0.0
        catalogues = Catalogues(*given)
        asked = [ensureDeferred(catalogues.look()) for _ in range(4)]
        waiting.pop().callback(looked)
        waiting.pop().callback(looked)
        self.assertEqual(waiting, [])
        made = [self.successResultOf(one) for one in asked]
        self.assertIs(made[1], made[3])
        of_name = made[0].by_name["x_9_total"]
        self.assertEqual(sorted(series.tab for series in of_name), ['x.9{at="b0"}', 'x.9{at="b1"}'])
        self.assertEqual([series.tab for series in made[0].by_name["a_b_total"]], ["a.b"])
        self.assertIn("a/b as a_b_total, which a.b has", made[0].problems[0])
