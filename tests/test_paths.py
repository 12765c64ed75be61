from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.paths import MAX_PATH, NOTHING, check, find, first, leaves

ANSWER = {
    "1m": {"count": 3, "total": None},
    "pct": {"p99": 1.0, "p99.9": 2.0},
    "values": [[10.0, "a"], [11.0, "b"]],
    "a": {"b.c": 1, "b": {"c": 2, "d": 3}},
    "web/1": {"x": 4},
    "odd[0]": 5,
}


BROKEN = ("x[", "x]", "1m.count[", "1m[a]", 'x["a]', "x[0", "x[0]y", "x[0]]", "x.[0]", "a..b", 'x["\\x"]', "x['a']", "x[1.5]", "x[0].")


class Paths(SynchronousTestCase):
    def test_what_stands_at_a_path_is_found(self) -> None:
        for path, expected in {
            "1m.count": 3,
            "1m.total": None,
            "pct.p99": 1.0,
            "pct.p99.9": 2.0,
            "values[1][1]": "b",
            "values[-1][0]": 11.0,
            "a.b.c": 1,
            "a.b.d": 3,
            'a["b"].c': 2,
            'a["b.c"]': 1,
            '["a"]["b"]["c"]': 2,
            "web/1.x": 4,
            "odd[0]": 5,
            "1m": ANSWER["1m"],
        }.items():
            self.assertEqual(find(ANSWER, path), expected, path)

    def test_what_leads_nowhere_is_nothing_and_no_error(self) -> None:
        for path in ("2m", "1m.count.x", "values[2]", "values[-3]", "values.x", "pct.p9", "1m[0]", "a.b.e", '["x"]', "1m.count[0]"):
            self.assertIs(find(ANSWER, path), NOTHING, path)

    def test_what_can_be_no_path_is_refused(self) -> None:
        for path in ("", ".", ".a", "a.", "[", "[a]", '["a]', "[0].", *BROKEN, "x" * (MAX_PATH + 1)):
            self.assertRaises(ValueError, check, path)
        check("x" * MAX_PATH)

    def test_a_key_with_brackets_in_an_answer_makes_no_path_an_error(self) -> None:
        self.assertIs(find({'a["p': {}}, 'a["p["].\\x["]"]'), NOTHING)

    def test_the_first_number_counts(self) -> None:
        self.assertEqual(first(ANSWER, ["1m.total", "values", "pct.p99"]), 1.0)
        self.assertIsNone(first(ANSWER, ["1m.total", "nothing"]))

    @given(
        st.recursive(
            st.integers(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=4), inner, max_size=3)
        ),
        st.data(),
    )
    def test_every_figure_has_a_path_of_brackets(self, answer: Any, data: Any) -> None:
        path, at = "", answer
        while isinstance(at, (list, dict)) and at:
            if isinstance(at, list):
                key: Any = data.draw(st.integers(0, len(at) - 1))
                path += f"[{key}]"
            else:
                key = data.draw(st.sampled_from(sorted(at)))
                path += f"[{json.dumps(key)}]"
            at = at[key]
        if path:
            self.assertEqual(find(answer, path), at)

    @given(
        st.dictionaries(
            st.text('a.["0', min_size=1, max_size=4),
            st.recursive(st.integers(0, 3), lambda inner: st.dictionaries(st.text('a.["0', min_size=1, max_size=4), inner, max_size=3)),
            max_size=4,
        )
    )
    def test_the_leaves_are_all_there_is_and_each_path_leads_to_its_own(self, answer: Any) -> None:
        def count(content: Any) -> int:
            return sum(map(count, content.values())) if isinstance(content, dict) and content else 1

        found = list(leaves(answer))
        self.assertEqual(len(found), count(answer) if answer else 0)
        self.assertEqual(len({path for path, _ in found}), len(found))
        for path, value in found:
            self.assertEqual(find(answer, path), value, path)

    def test_leaves_have_the_paths_that_people_write(self) -> None:
        content = {"1m": {"count": 1}, "pct": {"p99.9": 2.5, "p50": None}, "top": [["a", 1, 0]], "a": {"b": 1}, "a.b": 1}
        self.assertEqual([path for path, _ in leaves(content)], ["1m.count", "pct.p99.9", "pct.p50", "top", "a.b", '["a.b"]'])
