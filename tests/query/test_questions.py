from __future__ import annotations

import json
import math
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from taba.query import AsyncQuery, BadRequest, Forbidden, NotTaba, Query, ServerFailed, ServerUnavailable, questions

BASE = "http://127.0.0.1:8280"


def read(question: Any, content: Any, status: int = 200, content_type: str = "application/json") -> Any:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return questions.read_answer(question, BASE, "Server", status, content_type, body)


class Asking(SynchronousTestCase):
    def test_only_what_is_given_is_sent(self) -> None:
        self.assertEqual(questions.names({}).at(BASE), BASE + "/v1/names")

    def test_every_filter_has_its_parameter(self) -> None:
        question = questions.projections(
            {"name": ["a", 'b{k="v"}'], "client": "web/1", "match": "a.*", "client_match": "web/.*", "label": {"exchange": "a d:x"}},
            detail=True,
        )
        self.assertEqual(
            question.at(BASE),
            BASE
            + "/v1/projections?name=a&name=b%7Bk%3D%22v%22%7D&match=a.%2A&label=exchange%3Aa+d%3Ax"
            + "&client=web%2F1&client_match=web%2F.%2A&detail=1",
        )

    def test_a_filter_that_is_none_is_refused_before_anything_is_sent(self) -> None:
        self.assertRaises(TypeError, questions.names, {"nmae": "a"})

    def test_what_cannot_be_sent_is_wrong_and_nobody_is_said_not_to_answer(self) -> None:
        query = Query("http://127.0.0.1:1")
        no = "\udcff"
        asked: list[Any] = [{"name": no}, {"client": ["a", no]}, {"match": no}, {"label": {"a": no}}, {"cursor": no}]
        for filters in asked:
            with self.assertRaisesRegex(BadRequest, "is no text"):
                query.names(**filters)
        for key in ("", "x" * 256, "\N{SNOWMAN}", "a\nb", "a\x7f"):
            with self.assertRaisesRegex(BadRequest, "^Idempotency-Key"):
                query.post_events("web/1", [], key=key)
        self.assertEqual(questions.post_events("web/1", [], "kl\xe9 1").headers["Idempotency-Key"], "kl\xe9 1")
        self.assertEqual(questions.names({"limit": 2.5}).parameters, (("limit", "2.5"),))  # type: ignore[typeddict-unknown-key]

    def test_one_waits_for_a_number_of_seconds(self) -> None:
        for patience in (0, -1, math.nan, math.inf, None, "5", True):
            for kind in (Query, AsyncQuery):
                with self.assertRaisesRegex(ValueError, "^timeout .*takes seconds"):
                    kind(BASE, timeout=patience)  # type: ignore[arg-type]
        self.assertEqual(Query(BASE, timeout=0.5).timeout, 0.5)

    def test_a_job_is_of_a_kind_that_there_is(self) -> None:
        for kind in ("../v1", "prun", "events", "", None, 5):
            with self.assertRaisesRegex(ValueError, "no kind of job; there are: prune, upgrade"):
                questions.start_job(kind)  # type: ignore[arg-type]

    def test_what_can_be_no_name_is_a_value_error_of_whatever_type(self) -> None:
        for name in (None, 5, b"a", "", "a b"):
            self.assertRaises(ValueError, questions.aggregate, name, None, {})

    def test_one_tab_is_asked_for_by_its_canonical_name(self) -> None:
        question = questions.aggregate("price", {"side": "b", "exchange": "adx"}, {})
        self.assertEqual(question.parameters, (("name", 'price{exchange="adx",side="b"}'),))
        self.assertEqual(read(question, {'price{exchange="adx",side="b"}': {"value": 1}}), {"value": 1})
        self.assertIsNone(read(question, {}))
        self.assertRaises(ValueError, questions.aggregate, "pr ice", {}, {})
        for impossible in ("pr ice", "", 'price{side="b",exchange="adx"}', "_price"):
            self.assertRaises(ValueError, questions.aggregate, impossible, None, {})

    def test_groups_are_asked_for_by_their_labels(self) -> None:
        self.assertEqual(questions.aggregates({}, by=["a", "b"]).parameters, (("by", "a"), ("by", "b")))
        self.assertEqual(questions.aggregates({}, by="exchange").parameters, (("by", "exchange"),))

    def test_an_address_is_checked_when_it_is_given(self) -> None:
        self.assertEqual(questions.check_base("https://taba.example:8443/"), "https://taba.example:8443")
        self.assertEqual(questions.check_base("localhost:8280"), "http://localhost:8280")
        self.assertEqual(questions.check_base("[::1]:8280/"), "http://[::1]:8280")
        for bad in ("localhost", "localhost:99999", "localhost:0", "host:port", ":8280", "a b:1"):
            self.assertRaises(ValueError, questions.check_base, bad)
        addresses: list[Any] = ["", "ftp://host", "http://", "http://host:port", "http://host/?a=b", "http://ho st", "http://host:99999"]
        for bad in [*addresses, "http://user@host", 5, None]:
            with self.assertRaises(ValueError) as raised:
                questions.check_base(bad)
            self.assertIn("http://127.0.0.1:8280", str(raised.exception))
        self.assertRaisesRegex(ValueError, "no address of an Agent.*:8279", questions.check_base, "foo", "Agent")
        with self.assertRaises(ValueError) as raised:
            questions.check_base("http://user:secret@host:1")
        self.assertNotIn("secret", str(raised.exception))

    def test_a_host_of_a_name_that_no_host_can_have_is_one_that_does_not_answer(self) -> None:
        for host in ("a" * 64, "a" * 300 + ".example", "a..b", "ü" * 70):
            with self.assertRaises(ServerUnavailable) as raised:
                Query(f"http://{host}:1").names()
            self.assertIn("no Server answers at", str(raised.exception))


class Answers(SynchronousTestCase):
    def test_each_status_says_whose_fault_it_is(self) -> None:
        for status, error in (
            (400, BadRequest),
            (401, Forbidden),
            (403, Forbidden),
            (404, NotTaba),
            (408, ServerUnavailable),
            (413, BadRequest),
            (500, ServerFailed),
            (502, ServerUnavailable),
            (503, ServerUnavailable),
        ):
            with self.assertRaises(error) as raised:
                read(questions.names({}), {"error": "word", "detail": "the\nreason"}, status)
            self.assertIn("the reason", str(raised.exception))
            self.assertIn(BASE, str(raised.exception))

    def test_a_page_that_is_no_answer_of_tabas_is_not_taken_for_one(self) -> None:
        for content, content_type in (
            (b"<html>", "text/html"),
            (b"<html>", "application/json"),
            ({}, "application/json"),
            (None, "application/json"),
            (b"[" * 100_000, "application/json"),
        ):
            self.assertRaises(NotTaba, read, questions.names({}), content, 200, content_type)
        self.assertRaises(NotTaba, read, questions.names({}), b"<html>", 418, "text/html")

    def test_text_comes_as_it_is_and_json_where_there_is_no_text(self) -> None:
        self.assertEqual(read(questions.names({}).as_text(), b"a\nb\n", 200, "text/plain; charset=utf-8"), "a\nb\n")
        self.assertEqual(read(questions.names({}).as_text(), ["a"]), '["a"]\n')


class WhatIsAway(SynchronousTestCase):
    def test_what_is_left_out_is_a_sentence_whatever_the_header_holds(self) -> None:
        header = json.dumps({"s2": {"buckets": "4-7", "why": "refused"}, "more": 3})
        self.assertEqual(questions.away(header), "left out is what is away: buckets 4-7 of shard s2 (refused); those of 3 more shards")
        self.assertIsNone(questions.away(None))
        for garbled in ("", "[1]", "{", '{"s2": 1}', "[" * 100_000):
            self.assertTrue(str(questions.away(garbled)).startswith("left out is what is away: "))

    def test_only_what_can_be_answered_in_part_is_asked_so(self) -> None:
        for question in (questions.names({}), questions.overview({}), questions.who({}), questions.aggregates({}).as_text()):
            self.assertIn("partial=1", question.of_what_is_there().at(BASE))
        for question in (questions.status(), questions.note("x"), questions.stream({}), questions.delete_tabs("x")):
            self.assertIs(question.of_what_is_there(), question)


class Unreachable(SynchronousTestCase):
    def test_what_stands_in_the_way_is_told_with_what_helps_against_that(self) -> None:
        refused, closed, unverified = (
            "Connection refused",
            "Remote end closed connection without response",
            "[SSL: CERTIFICATE_VERIFY_FAILED]",
        )
        for base, reason, cure in (
            ("https://a:1", f"{unverified} unable to get local issuer certificate", "name the authority of its certificate"),
            ("https://a:1", f"{unverified} certificate has expired", "have its certificate renewed"),
            ("https://a:1", f"{unverified} Hostname mismatch", "use the address that its certificate names"),
            (
                "https://a:1",
                "[SSL: WRONG_VERSION_NUMBER] wrong version number",
                "it speaks no TLS: check whether its address is http://a:1",
            ),
            ("https://a:1", refused, "start one with"),
            ("http://a:1", closed, "if it speaks TLS, its address is https://a:1; else start one with"),
            ("http://a:1", refused, "start one with"),
        ):
            said = str(questions.unreachable(base, "Server", reason))
            self.assertIn(f"({reason}); {cure}", said)
