"""Query and AsyncQuery ask a Server the same: no method, parameter or default differs, and each parameter is passed on."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any
from unittest import mock

from twisted.internet.defer import ensureDeferred
from twisted.trial.unittest import SynchronousTestCase

from taba.query import AsyncQuery, Query
from taba.query.questions import Question

GIVEN: dict[str, Any] = {
    "name": "hits",
    "client": "web/1",
    "clients": ["web/1", "web/2"],
    "names": ["hits", "misses"],
    "events": [{"tab": "hits", "type": "CounterGroup", "value": 1}],
    "labels": {"site": "eu"},
    "text": "deployed",
    "kind": "prune",
    "id": "7",
    "by": "site",
    "sort": "value",
    "limit": 3,
    "offset": 2,
    "path": "1h.total",
    "seconds": 10,
    "time": 1.5,
    "key": "once",
    "detail": True,
    "dry_run": True,
}
FILTERS = {"name": ["hits"], "client": ["web/1"], "match": "h.*", "label": {"site": "eu"}}
NOT_ASKED = ("ask", "stream")  # how a question is asked; a question without end


class Alike(SynchronousTestCase):
    plain, other = Query("http://127.0.0.1:8280"), AsyncQuery("http://127.0.0.1:8280")

    def questions(self, method: str, **given: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """What each asks, but for how the answer is read."""

        async def asked(question: Question[Any]) -> Question[Any]:
            return question

        with mock.patch.object(self.plain, "ask", lambda question: question), mock.patch.object(self.other, "ask", asked):
            both = getattr(self.plain, method)(**given), self.successResultOf(ensureDeferred(getattr(self.other, method)(**given)))
        one, two = ({field.name: getattr(question, field.name) for field in fields(Question) if field.name != "take"} for question in both)
        return one, two

    def test_each_question_is_the_same_through_both_and_says_all_that_it_was_given(self) -> None:
        names = [name for name, _ in inspect.getmembers(Query, inspect.isfunction) if name[0] != "_" and name not in NOT_ASKED]
        self.assertGreater(len(names), 15)
        for name in names:
            parameters = inspect.signature(getattr(Query, name)).parameters
            self.assertEqual(parameters, inspect.signature(getattr(AsyncQuery, name)).parameters, name)
            own = {key: one for key, one in parameters.items() if key != "self" and one.kind is not one.VAR_KEYWORD}
            least = {key: GIVEN[key] for key, one in own.items() if one.default is one.empty}
            one, two = self.questions(name, **least)
            self.assertEqual(one, two, name)
            filters = {} if len(own) + 1 == len(parameters) else {key: value for key, value in FILTERS.items() if key not in own}
            if name == "alive":
                filters = {"client": FILTERS["client"]}
            before = one
            for key in [key for key in own if key not in least and GIVEN[key]]:
                one, two = self.questions(name, **least, **{key: GIVEN[key]})
                self.assertEqual(one, two, (name, key))
                self.assertNotEqual(one, before, (name, key))
            for key, value in filters.items():
                one, two = self.questions(name, **least, **{key: value})
                self.assertEqual(one, two, (name, key))
                self.assertNotEqual(one, before, (name, key))

    def test_no_question_is_asked_through_one_alone(self) -> None:
        one, two = ({name for name in dir(kind) if not name.startswith("_")} for kind in (Query, AsyncQuery))
        self.assertEqual(one, two)
