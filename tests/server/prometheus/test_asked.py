from __future__ import annotations

from urllib.parse import parse_qsl

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.server.prometheus import asked as asking
from taba.server.prometheus.asked import (
    LIMIT,
    MATCH,
    MAX_FORM_BYTES,
    MAX_PARAMETERS,
    QUERY,
    START,
    TIME,
    UNQUOTED_BYTES,
    Asked,
    BadRequest,
    fields_of,
)
from taba.steps import finish


class AskedTests(SynchronousTestCase):
    def test_values_in_the_url_come_before_those_of_the_form(self) -> None:
        asked = Asked((MATCH, TIME), {"match[]": ["a"], "time": None}, [("match[]", "b"), ("time", "5")])
        self.assertEqual((asked.many(MATCH), asked.time(TIME)), (["a", "b"], 5.0))

    def test_what_the_definition_of_a_route_does_not_name_is_not_read_wherever_it_stands(self) -> None:
        asked = Asked((QUERY, LIMIT), {"query": "x", "limit": None, "start": "1"}, [("start", "1")])
        self.assertEqual((asked.text(QUERY), asked.limit()), ("x", None))
        self.assertRaises(KeyError, asked.many, START)
        self.assertRaises(KeyError, asked.check_times)

    def test_what_is_required_is_asked_for_by_its_name(self) -> None:
        error = self.assertRaises(BadRequest, Asked((QUERY,), {"query": None}, [("query", "")]).text, QUERY)
        self.assertEqual(str(error), "takes query=")


class Forms(SynchronousTestCase):
    @given(st.lists(st.sampled_from([b"%", b"%4", b"%41", b"%c3", b"%A9", b"%C3%A9", b"+", b"a", b"=", b"&", "é".encode()]), max_size=30))
    def test_a_form_that_is_read_in_steps_is_what_it_is_in_one_go(self, parts: list[bytes]) -> None:
        form = b"".join(parts)
        try:
            expected = parse_qsl(form.decode(), keep_blank_values=True, errors="strict") if form else []
        except ValueError:
            expected = None
        for size in (3, 7, UNQUOTED_BYTES):
            self.patch(asking, "UNQUOTED_BYTES", size)
            if expected is None:
                self.assertRaises(BadRequest, finish, fields_of(form))
            else:
                self.assertEqual(finish(fields_of(form)), expected)

    def test_no_step_reads_more_than_its_bytes(self) -> None:
        for form in (b"query=" + b"%41" * 80_000, b"&".join([b"a=%41"] * MAX_PARAMETERS), b"%" * 100_000, b"q=" + b"%41a" * 50_000):
            steps = list(fields_of(form))
            self.assertEqual(max(steps, default=0) <= UNQUOTED_BYTES, True)
            self.assertLess(len(form) - sum(steps), UNQUOTED_BYTES + MAX_PARAMETERS * 2)
            self.assertLess(len(form), MAX_FORM_BYTES)

    def test_a_form_has_so_many_fields_and_none_more(self) -> None:
        self.assertEqual(len(finish(fields_of(b"&".join([b"a=1"] * MAX_PARAMETERS)))), MAX_PARAMETERS)
        self.assertRaises(BadRequest, finish, fields_of(b"&".join([b"a=1"] * (MAX_PARAMETERS + 1))))
