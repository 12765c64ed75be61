"""Tabs by number: as many as there are Tabs, whichever rings name them, come, and go."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.agent import numbering
from taba.agent.entries import Tab
from taba.agent.native import NATIVE
from taba.agent.numbering import HELD_BACK, NO_TAB, Numbers, Places
from taba.batch import pack_bin
from tests.examples import examples

TABS = [Tab(f"t{place}", "CounterGroup") for place in range(6)]


def places_of(numbers: Numbers, *tabs: Tab) -> Places:
    places = Places(numbers, ("web/1", "all"))
    places.add([numbers.number(tab) for tab in tabs])
    return places


class NumbersTests(SynchronousTestCase):
    def test_a_tab_of_many_rings_has_one_number_until_the_last_of_them_is_gone(self) -> None:
        numbers = Numbers(512)
        rings = [places_of(numbers, *TABS) for _ in range(3)]
        self.assertEqual(numbers.tabs, len(TABS))
        for ring in rings:
            self.assertEqual(ring.numbers[: ring.known].tolist(), rings[0].numbers[: rings[0].known].tolist())
            self.assertEqual([numbers.names[number] for number in ring.numbers[: ring.known]], [tab.name for tab in TABS])
        for ring in rings[1:]:
            ring.close()
        numbers.tidy()
        self.assertEqual(numbers.tabs, len(TABS))
        rings[0].close()
        numbers.tidy()
        self.assertEqual(numbers.tabs, 0)
        again = places_of(numbers, *TABS)
        self.assertLess(int(again.numbers.max()), len(TABS) + 2)  # those that were taken back are given again

    def test_who_is_named_again_before_its_number_is_taken_back_keeps_it(self) -> None:
        numbers = Numbers(512)
        first = places_of(numbers, *TABS)
        kept = first.numbers[:1].tolist()
        first.close()
        second = places_of(numbers, TABS[0])
        numbers.tidy()
        self.assertEqual((second.numbers[:1].tolist(), numbers.tabs), (kept, 1))
        second.close()
        second = places_of(numbers, TABS[0])
        second.close()  # it stands there twice
        numbers.tidy()
        places_of(numbers, TABS[1], TABS[2])
        self.assertEqual((numbers.tabs, sorted(filter(None, numbers.names))), (2, ["t1", "t2"]))

    def test_a_turn_takes_back_so_many_and_no_more(self) -> None:
        numbers = Numbers(512)
        places_of(numbers, *TABS).close()
        for most, left in ((2, 4), (1, 3), (9, 0)):
            numbers.tidy(most)
            self.assertEqual(numbers.tabs, left)

    def test_equal_tabs_that_are_looked_up_no_more_are_told_apart_and_both_are_taken_back(self) -> None:
        self.patch(numbering, "MAX_CACHED_BUCKETS", 2)
        numbers = Numbers(512)
        first, second = places_of(numbers, *TABS), places_of(numbers, *TABS)
        self.assertGreater(numbers.tabs, len(TABS))
        for ring in (first, second):
            self.assertEqual([numbers.names[number] for number in ring.numbers[: ring.known]], [tab.name for tab in TABS])
            ring.close()
        numbers.tidy()
        self.assertEqual(numbers.tabs, 0)

    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 7), st.sets(st.integers(0, 5), max_size=4)), max_size=40))
    @examples(60)
    def test_whatever_rings_come_and_go_a_place_is_of_its_tab_and_none_is_left_over(self, steps: list[tuple[bool, int, set[int]]]) -> None:
        numbers = Numbers(8)
        rings: list[tuple[Places, list[Tab]]] = []
        for comes, which, named in steps:
            if comes or not rings:
                tabs = [TABS[place] for place in sorted(named)]
                rings.append((places_of(numbers, *tabs), tabs))
            else:
                rings.pop(which % len(rings))[0].close()
            if which % 2:
                numbers.tidy(which)
            for places, tabs in rings:
                mine = places.numbers[: places.known]
                self.assertEqual([numbers.names[number] for number in mine], [tab.name for tab in tabs])
                sections = [numbers.sections[section] for section in numbers.section_of[mine]]
                self.assertEqual(sections, [(numbers.bucket(tab.name), tab.type) for tab in tabs])
        numbers.tidy()
        self.assertEqual(numbers.tabs, len({tab for _, tabs in rings for tab in tabs}))

    def test_more_tabs_than_there_was_room_for_are_told_apart(self) -> None:
        numbers = Numbers(512)
        tabs = [Tab(f"t{place}", f"Type{place % 3}", is_overflow=place % 5 == 0) for place in range(500)]
        mine = places_of(numbers, *tabs).numbers[:500]
        self.assertEqual([numbers.names[number] for number in mine], [tab.name for tab in tabs])
        self.assertEqual(numbers.is_overflow[mine].tolist(), [tab.is_overflow for tab in tabs])
        self.assertEqual(numbers.section_of[[NO_TAB]].tolist(), [0])
        self.assertGreater(int(numbers.section_of[mine].min()), HELD_BACK)

    def test_fields_are_the_same_with_the_c_part_and_without(self) -> None:
        numbers = Numbers(512)
        tabs = [Tab("é" * 200, "A"), Tab('b{overflow="true"}', "A", None, None, True), Tab("c", "B")]
        its = places_of(numbers, *tabs).numbers[:3]
        of, which, edges = np.array([0, 1, 1, 0]), its[[0, 1, 2, 1]], np.array([0, 1, 4])
        clients = [(b"web/1", b"web/1"), (b"web/2", b"all")]
        expected = [[("é" * 200, "web/1")], [('b{overflow="true"}', "all"), ("c", "web/2"), ('b{overflow="true"}', "web/1")]]
        packed = [b"".join(pack_bin(f"{name}\0{client}".encode()) for name, client in column) for column in expected]
        for native in (None, NATIVE):
            self.assertEqual(numbers.fields(clients, of, which, edges, native), packed)
