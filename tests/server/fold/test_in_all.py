from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from taba.server.fold.bounds import Bounds
from taba.server.fold.excess import ALL_CLIENTS, ALL_TABS, CLIENTS, NEW_CLIENTS, NEW_TABS, TABS, why_of
from taba.server.fold.in_all import InAll, Room


class Rooms(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = 5.0
        self.bounds = Bounds(all_tabs=10, all_clients=20, new_tabs=2, new_clients=3)
        self.made = InAll(self.bounds, lambda: self.now)

    def test_there_is_room_for_what_the_store_has_not_and_this_server_has_not_made_since(self) -> None:
        self.assertEqual(self.made.room()[:2], (10, 20))
        self.made.learn(4, 15)
        self.made.made(5, 4)
        self.assertEqual(self.made.room(), Room(1, 1))
        self.made.made(1, 1)
        self.assertEqual(self.made.room(), Room(0, 0))
        self.made.learn(11, 25)  # as others have made some meanwhile
        self.assertLessEqual(max(self.made.room()[:2]), 0)

    def test_who_has_made_as_many_as_there_may_be_makes_more_by_the_second(self) -> None:
        self.made.made(10, 20)
        self.made.learn(0, 0)  # all were deleted
        self.assertEqual(self.made.room(), Room(0, 0, (True, True)))
        self.now += 1.0
        self.assertEqual(self.made.room()[:2], (2, 3))
        self.made.made(2, 3)
        self.assertEqual(self.made.room()[:2], (0, 0))
        self.now += 1e6
        self.made.learn(0, 0)
        self.assertEqual(self.made.room(), Room(10, 20))

    def test_what_is_said_is_the_bound_that_is_met_first(self) -> None:
        for left, new, is_fast in ((3, 2, True), (2, 2, False), (2, 3, False), (1, 0, True), (0, 0, False), (-1, 0, False)):
            made = InAll(self.bounds, lambda: self.now)
            made.made(10 - new, 20 - new)
            made.learn(10 - left, 20 - left)
            self.assertEqual(made.room(), Room(min(left, new), min(left, new), (is_fast, is_fast)), (left, new))

    def test_each_bound_has_a_sentence_with_its_number_and_a_cure(self) -> None:
        said = {what: why_of(what, self.bounds) for what in (TABS, CLIENTS, ALL_TABS, ALL_CLIENTS, NEW_TABS, NEW_CLIENTS)}
        self.assertEqual(len(set(said.values())), 6)
        for what, number in ((ALL_TABS, "10"), (ALL_CLIENTS, "20"), (NEW_TABS, "2"), (NEW_CLIENTS, "3")):
            self.assertIn(f" {number} ", said[what][0])
