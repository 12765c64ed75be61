from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from taba.cli.lines import MAX_LINE_CHARACTERS, TextLine, read_line


class Lines(SynchronousTestCase):
    def test_a_name_and_a_value_are_a_counter_now(self) -> None:
        self.assertEqual(read_line("bids_won 1\n"), TextLine("bids_won", 1, "CounterGroup", None))
        self.assertEqual(read_line("  bids_won\t-1.5e3  "), TextLine("bids_won", -1500.0, "CounterGroup", None))
        self.assertEqual(read_line("bids_won +7", "Gauge"), TextLine("bids_won", 7, "Gauge", None))

    def test_type_and_time_may_each_be_left_out(self) -> None:
        self.assertEqual(read_line("a 1 Gauge 1763850000.5"), TextLine("a", 1, "Gauge", 1763850000.5))
        self.assertEqual(read_line("a 1 1763850000"), TextLine("a", 1, "CounterGroup", 1763850000.0))
        self.assertEqual(read_line("a\t1\tGauge\t5"), TextLine("a", 1, "Gauge", 5.0))

    def test_labels_may_come_in_any_order_and_hold_blanks_and_braces(self) -> None:
        self.assertEqual(read_line('p{b="2",a="x y } \\" z"} 1'), TextLine('p{a="x y } \\" z",b="2"}', 1, "CounterGroup", None))

    def test_what_is_no_number_is_text_or_json(self) -> None:
        for text, value in (
            ("word", "word"),
            ('"two words"', "two words"),
            ('"7"', "7"),
            ('{"value": 3, "seconds": 60}', {"value": 3, "seconds": 60}),
            ("[1, 2]", [1, 2]),
            ('"[error]"', "[error]"),
            ("12ms", "12ms"),
            ("ünï", "ünï"),
            ("9007199254740993", 9007199254740993),
        ):
            self.assertEqual(read_line(f"a {text} Gauge"), TextLine("a", value, "Gauge", None))

    def test_empty_lines_and_comments_are_nothing(self) -> None:
        for text in ("", "  \n", "# a 1"):
            self.assertIsNone(read_line(text))

    def test_a_bad_line_says_what_is_wrong(self) -> None:
        for text, reason in (
            ("a", "no value"),
            ("a 1 Gauge 5 6", "too many"),
            ("a two words more", "time"),
            ("a nan", "finite"),
            ("a -Infinity", "finite"),
            ("a 1e999", "finite"),
            ("_a 1", "reserved"),
            ("a! 1", "Tab name"),
            ('a{9="1"} 1', "label"),
            ("a{b=1} 1", "takes|label"),
            ("a 1 Bad-Type", "Type"),
            ("a 1 Gauge -5", "time"),
            ("a 1 Gauge soon", "time"),
            ("a {bad", "no JSON.*double quotes"),
            ("a [1,2 Gauge", "no JSON"),
            ('a "unterminated', "no JSON"),
            ("a [error] Gauge", "no JSON"),
            ("a [NaN]", "no JSON"),
            ("a [1]x", "JSON ends before 'x'"),
            ("a " + "[" * 5000, "no JSON"),
        ):
            with self.assertRaises(ValueError, msg=text) as raised:
                read_line(text)
            self.assertRegex(str(raised.exception), reason)

    def test_a_line_as_long_as_allowed_and_one_longer(self) -> None:
        line = read_line("a " + "x" * (MAX_LINE_CHARACTERS - 2))
        assert line is not None
        self.assertEqual(len(line.value), MAX_LINE_CHARACTERS - 2)
        self.assertRaises(ValueError, read_line, "a " + "x" * (MAX_LINE_CHARACTERS - 1))
