from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from taba.server.prometheus.asked import LIMIT, MATCH, QUERY, START, TIME, Asked, BadRequest


class AskedTests(SynchronousTestCase):
    def test_values_in_the_url_come_before_those_of_the_form(self) -> None:
        asked = Asked((MATCH, TIME), {"match[]": ["a"], "time": None}, b"match%5B%5D=b&time=5")
        self.assertEqual((asked.many(MATCH), asked.time(TIME)), (["a", "b"], 5.0))

    def test_what_the_definition_of_a_route_does_not_name_is_not_read_wherever_it_stands(self) -> None:
        asked = Asked((QUERY, LIMIT), {"query": "x", "limit": None, "start": "1"}, b"start=1")
        self.assertEqual((asked.text(QUERY), asked.limit()), ("x", None))
        self.assertRaises(KeyError, asked.many, START)
        self.assertRaises(KeyError, asked.check_times)

    def test_what_is_required_is_asked_for_by_its_name(self) -> None:
        error = self.assertRaises(BadRequest, Asked((QUERY,), {"query": None}, b"query=").text, QUERY)
        self.assertEqual(str(error), "takes query=")
