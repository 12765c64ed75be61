"""What of PromQL is parsed at all, and what becomes of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.server.prometheus.syntax import (
    _TOKEN,
    MAX_NESTING,
    MAX_OPERATORS,
    MAX_TEXT,
    Aggregation,
    Binary,
    Called,
    Matcher,
    Number,
    Selector,
    Unsupported,
    check,
    flattened,
    nodes_of,
)
from tests.examples import examples


class Bounds(SynchronousTestCase):
    def test_each_holds_at_the_bound_and_not_one_past_it(self) -> None:
        for good in (
            "a" * MAX_TEXT,
            "(" * MAX_NESTING + "1" + ")" * MAX_NESTING,
            "1" + "+1" * MAX_OPERATORS,
            "-" * MAX_OPERATORS + "1",
            "x" + " and x" * MAX_OPERATORS,
        ):
            check(good)
            self.assertTrue(nodes_of(flattened(good)))
        for bad, word in (
            ("a" * (MAX_TEXT + 1), "characters"),
            ("(" * (MAX_NESTING + 1) + "1" + ")" * (MAX_NESTING + 1), "deep"),
            ("abs(" * (MAX_NESTING + 1), "deep"),
            ("1" + "+1" * (MAX_OPERATORS + 1), "operators"),
            ("-" * (MAX_OPERATORS + 1) + "1", "operators"),
            ("x" + " UNLESS x" * (MAX_OPERATORS + 1), "operators"),
        ):
            with self.assertRaisesRegex(ValueError, word):
                check(bad)

    def test_what_stands_in_texts_and_comments_is_no_bracket(self) -> None:
        for text in ('x{a="' + "(" * 200 + '"}', "x{a='" + "[" * 200 + "'}", "x{a=`" + "{" * 200 + "`}", "x # " + "(" * 200):
            check(text)

    def test_a_text_without_its_end_is_gone_through_once(self) -> None:
        looked = 0
        for quote in "\"'`":
            text = quote + ("\\" + quote if quote != "`" else "a") * ((MAX_TEXT - 1) // 2)
            looked += sum(1 for _ in _TOKEN.finditer(text))
            check(text)
        self.assertEqual(looked, 3)

    @given(st.text(alphabet="abx(){}[]\"'`\\#+-*/=!~<>^% \n1.5m", max_size=60))
    @examples(200)
    def test_whatever_passes_is_parsed_or_is_an_error_of_one_sentence(self, text: str) -> None:
        try:
            check(text)
            nodes_of(flattened(text))
        except ValueError as error:
            self.assertTrue(str(error))


class Nodes(SynchronousTestCase):
    def test_parts_stand_behind_what_is_made_of_them(self) -> None:
        text = 'sum by (a) (rate(x_total{b!~"c.*"}[5m] offset 1m)) / on(a) group_left(z) y > bool -3'
        nodes = nodes_of(flattened(text))
        self.assertEqual(nodes[0], Binary(">", True, None, (), None, (), (1, 2)))
        self.assertEqual(nodes[1], Binary("/", False, ("a",), (), "left", ("z",), (3, 4)))
        self.assertEqual(nodes[2], Number(-3.0))
        self.assertEqual(nodes[3], Aggregation("sum", ("a",), (), (5,)))
        self.assertEqual(nodes[5], Called("rate", (6,)))
        self.assertEqual(nodes[6], Selector((Matcher("=", "__name__", "x_total"), Matcher("!~", "b", "c.*")), 60.0, 300.0))
        named = Selector((Matcher("=", "__name__", "a.b"), Matcher("!=", "c.d", "e")), 0.0, None)
        self.assertEqual(nodes_of(flattened('{"a.b", "c.d"!="e"}')), [named])

    def test_what_is_not_answered_says_why(self) -> None:
        for text, word in (("x[5m:1m]", "subqueries"), ("x @ 5", "@"), ('x{a="1" or b="2"}', "or"), ("rate(x[5m] @ end())", "@")):
            nodes = nodes_of(flattened(text))
            self.assertIn(word, next(node.why for node in nodes if isinstance(node, Unsupported)), text)

    def test_a_modifier_of_no_labels_is_none(self) -> None:
        self.assertEqual(nodes_of(flattened("sum(x)"))[0], Aggregation("sum", (), (), (1,)))
        self.assertEqual(nodes_of(flattened("sum without () (x)"))[0], Aggregation("sum", None, (), (1,)))
        self.assertEqual(nodes_of(flattened("a and on () b"))[0], Binary("and", False, (), (), None, (), (1, 2)))
