from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from taba.server.fold import excess
from taba.server.fold.bounds import Bounds
from taba.server.fold.excess import EXCESS_SECONDS, Beyond, Excess


class Named(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = 0.0
        self.excess = Excess(Bounds(tabs=7, clients=9), lambda: self.now)

    def test_who_sent_most_is_named_with_the_bound_and_the_cure(self) -> None:
        self.excess.note({Beyond("Tabs", f"x{n}", "web/1"): n for n in range(1, 6)})
        self.excess.note({Beyond("Tabs", "x5", "web/1"): 5, Beyond("Clients", "y", "job/77"): 3})
        clients, tabs = self.excess.problems
        self.assertIn("20 events found no room, since a bucket takes 7 Tabs", tabs)
        self.assertIn("x5 by web/1 (10), x4 by web/1 (4), x3 by web/1 (3): ", tabs)
        self.assertIn("--max-tabs", tabs)
        self.assertIn("3 events found no room, since a bucket takes 9 Clients", clients)
        self.assertIn("y by job/77 (3): ", clients)

    def test_it_is_a_problem_for_a_while(self) -> None:
        self.excess.note({Beyond("Tabs", "x", "web/1"): 1})
        self.now = EXCESS_SECONDS
        self.assertEqual(self.excess.problems, [])

    def test_who_sent_too_much_then_has_no_part_in_what_is_wrong_now(self) -> None:
        self.patch(excess, "MAX_SENDERS", 2)
        self.excess.note({Beyond("Tabs", "then", "web/1"): 900, Beyond("Clients", "y", "job/1"): 1})
        self.now = EXCESS_SECONDS - 1
        self.excess.note({Beyond("Clients", "y", "job/1"): 1})
        self.now = EXCESS_SECONDS
        self.excess.note({Beyond("Tabs", "now", "web/2"): 1})
        clients, tabs = self.excess.problems
        self.assertTrue(clients.startswith("2 events found no room"), clients)
        self.assertTrue(tabs.startswith("1 event found no room"), tabs)
        self.assertIn("most are of now by web/2 (1): ", tabs)

    def test_where_nobody_is_told_apart_nobody_is_named(self) -> None:
        self.patch(excess, "MAX_SENDERS", 0)
        self.excess.note({Beyond("Tabs", "x", "web/1"): 1})
        self.assertIn("went to the dead letters; take what differs", self.excess.problems[0])

    def test_as_many_are_told_apart_as_the_bound_says_and_none_is_left_out_of_the_count(self) -> None:
        self.patch(excess, "MAX_SENDERS", 3)
        for n in range(10):
            self.excess.note({Beyond("Tabs", f"x{n}", "web/1"): 1})
        self.assertEqual(len(self.excess.events), 4)
        self.assertIn("10 events", self.excess.problems[0])
