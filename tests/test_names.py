from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba import names

keys = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True).filter(lambda key: key not in ("le", "quantile") and key[:2] != "__")
values = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200)
labels = st.dictionaries(keys, values, max_size=16)


class CanonicalNames(SynchronousTestCase):
    def test_labels_are_sorted_and_escaped_as_in_prometheus(self) -> None:
        name = names.canonical_name("price", {"site": 'a"b\\c\nd', "exchange": "adx"})
        self.assertEqual(name, 'price{exchange="adx",site="a\\"b\\\\c\\nd"}')

    @given(labels)
    def test_every_name_reads_back_as_it_was_written(self, labels: dict[str, str]) -> None:
        name = names.canonical_name("x", labels)
        self.assertEqual(names.parse_name(name), ("x", labels))
        self.assertLessEqual(len(name.encode()), names.MAX_NAME_BYTES)

    @given(st.text(max_size=60))
    def test_a_text_that_is_accepted_is_canonical(self, text: str) -> None:
        try:
            base, found = names.parse_name(text)
        except ValueError:
            return
        self.assertEqual(names.canonical_name(base, found), text)

    def test_what_breaks_the_rules_is_refused_with_the_rule(self) -> None:
        for bad in ["", "a b", "é", "x" * 201, "taba.own", "_own", None, 5]:
            self.assertRaises(ValueError, names.check_base, bad)
        for bad in ["a{}", 'a{b="c"', 'a{b="c",}', 'a{b="c"}x', 'a{9="c"}', 'a{b="c",a="d"}', 'a{b="\\x"}', "a{b=c}", "a{"]:
            self.assertRaises(ValueError, names.parse_name, bad)

    def test_labels_that_are_no_mapping_are_refused(self) -> None:
        for bad in [["a"], [], "x", "", 5, {("a", "b")}]:
            error = self.assertRaises(ValueError, names.canonical_name, "x", bad)
            self.assertIn("takes a mapping", str(error))
        self.assertEqual((names.canonical_name("x", None), names.canonical_name("x", {})), ("x", "x"))

    def test_the_bounds_hold_and_one_past_them_does_not(self) -> None:
        self.assertEqual(names.check_base("x" * 200), "x" * 200)
        full = {f"k{n}": "v" * names.MAX_LABEL_VALUE for n in range(names.MAX_LABELS)}
        names.parse_name(names.canonical_name("x", full))
        self.assertRaises(ValueError, names.canonical_name, "x", {**full, "one_more": ""})
        names.canonical_name("x", {"k" * names.MAX_LABEL_KEY: ""})
        self.assertRaises(ValueError, names.canonical_name, "x", {"k" * (names.MAX_LABEL_KEY + 1): ""})
        self.assertRaises(ValueError, names.canonical_name, "x", {"k": "\ud800"})
        self.assertRaises(ValueError, names.canonical_name, "x", {"k": 5})

    def test_a_separator_is_in_no_name(self) -> None:
        for value in ["a\0b", "\0", "x\0", "v" * names.MAX_LABEL_VALUE + "\0"]:
            self.assertIn("without NUL", str(self.assertRaises(ValueError, names.canonical_name, "x", {"k": value})))
            self.assertRaises(ValueError, names.parse_name, f'x{{k="{value}"}}')
        for bad in ["a\0b", "\0"]:
            for check in (names.check_base, names.check_client, names.check_type, names.check_agent):
                self.assertRaises(ValueError, check, bad)
            self.assertRaises(ValueError, names.canonical_name, "x", {bad: "v"})

    def test_keys_that_mean_something_to_prometheus_are_refused(self) -> None:
        for bad in ["le", "quantile", "__name__", "__", "__x"]:
            self.assertIn("Prometheus' own", str(self.assertRaises(ValueError, names.canonical_name, "x", {bad: "v"})))
            self.assertRaises(ValueError, names.parse_name, f'x{{{bad}="v"}}')
        self.assertEqual(names.canonical_name("x", {"Le": "1", "_a": "2", "client": "3"}), 'x{Le="1",_a="2",client="3"}')

    def test_a_longer_value_is_cut_and_told_apart_by_a_digest(self) -> None:
        whole = "ü" * names.MAX_LABEL_VALUE
        self.assertEqual(names.cut_value(whole), whole)
        cut = {names.cut_value(whole + end) for end in ("a", "b", "aa", '"', "\n" * 9999)}
        self.assertEqual((len(cut), {len(value) for value in cut}), (5, {names.MAX_LABEL_VALUE}))
        for value in cut:
            self.assertEqual(names.cut_value(value), value)
            name = names.canonical_name("x", {"k": value})
            self.assertEqual(names.parse_name(name), ("x", {"k": value}))
        self.assertEqual(names.canonical_name("x", {"k": whole + "a"}), f'x{{k="{names.cut_value(whole + "a")}"}}')
        self.assertRaises(ValueError, names.parse_name, f'x{{k="{whole}a"}}')  # it would not have been written so
        self.assertRaises(ValueError, names.canonical_name, "x", {"k": whole + "\ud800"})

    def test_types_clients_and_agents_have_their_rules(self) -> None:
        for good in ["CounterGroup", "a", "A" + "_" * 63]:
            self.assertEqual(names.check_type(good), good)
        for bad in ["", "1a", "a-b", "A" * 65, "_a", None]:
            self.assertRaises(ValueError, names.check_type, bad)
        for good in ["web/3", "host:prog.py/0", "a@b+c"]:
            self.assertEqual(names.check_client(good), good)
        for bad in ["", "a b", "x" * 201, "_retired", "taba.own", "a{b}", None]:
            self.assertRaises(ValueError, names.check_client, bad)
        self.assertEqual(names.check_agent("a-B_9"), "a-B_9")
        for bad in ["", "a.b", "x" * 65, "a/b", None]:
            self.assertRaises(ValueError, names.check_agent, bad)


class Buckets(SynchronousTestCase):
    def test_the_published_vectors_hold(self) -> None:
        self.assertEqual(names.bucket_of("bids_won", 512), 483)
        self.assertEqual(names.bucket_of('winning_bid_price{exchange="adx"}', 512), 229)


_PARTS = (
    "x",
    "taba.",
    "_",
    "{",
    "}",
    "a",
    "b",
    "__c",
    "le",
    "quantile",
    "=",
    '"',
    ",",
    "1",
    "\\\\",
    "\\",
    "\n",
    "\0",
    "é",
    "\ud800",
    "v" * 201,
)


@given(st.lists(st.sampled_from(_PARTS), max_size=14).map("".join) | st.text(max_size=20))
def test_what_looks_plain_is_a_canonical_text(text: str) -> None:
    if names.is_plain(text):
        base, labels = names.parse_name(text)
        assert names.canonical_name(base, labels) == text


def test_what_is_plain_is_seen_at_every_bound_and_what_breaks_a_rule_there_is_not() -> None:
    full = {f"k{number:02}": "v" * 200 for number in range(16)}
    for plain in ("x", "x" * 200, 'x{a="1"}', 'x{a=""}', 'x{a="1",b="{,=}"}', names.canonical_name("x", full), f'x{{{"k" * 64}="é\t"}}'):
        names.parse_name(plain)
        assert names.is_plain(plain), plain
    none = ["", "x" * 201, "_x", "taba.x", "x{}", 'x{a="1"', 'x{a="1",}', 'x{b="1",a="2"}', 'x{a="1",a="2"}', 'x{le="1"}', 'x{__a="1"}']
    none += [
        f'x{{a="{"v" * 201}"}}',
        f'x{{{"k" * 65}="1"}}',
        'x{a="\0"}',
        'x{a="\ud800"}',
        names.canonical_name("x", full)[:-1] + ',z="1"}',
    ]
    for bad in none:
        assert not names.is_plain(bad), bad
        with pytest.raises(ValueError):
            names.parse_name(bad)
    for escaped in ('x{a="\\\\"}', 'x{a="\\n"}'):  # which it leaves to the other
        names.parse_name(escaped)
        assert not names.is_plain(escaped)
