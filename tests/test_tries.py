from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taba import tries
from taba.tries import FAILED_SECONDS, FREE_TRIES, MAX_ADDRESSES, MOST_FAILED_SECONDS, RECENT_SECONDS, Tries


class Addresses(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.tries = Tries(self.clock.seconds)

    def test_the_first_tries_of_an_address_wait_alike_and_further_ones_longer_up_to_a_bound(self) -> None:
        waits = [self.tries.failed("10.0.0.1") for _ in range(FREE_TRIES + 10)]
        self.assertEqual(waits[: FREE_TRIES + 1], [FAILED_SECONDS] * (FREE_TRIES + 1))
        self.assertEqual(waits[FREE_TRIES + 1 :], [2 * FAILED_SECONDS] + [MOST_FAILED_SECONDS] * 8)
        self.assertEqual(self.tries.failed("10.0.0.2"), FAILED_SECONDS)  # another's are its own

    def test_they_are_forgotten_after_a_while_and_not_before(self) -> None:
        for _ in range(FREE_TRIES + 1):
            self.tries.failed("10.0.0.1")
        self.clock.advance(RECENT_SECONDS - 1)
        self.assertEqual(self.tries.recent(), {"10.0.0.1": FREE_TRIES + 1})
        self.assertEqual(self.tries.failed("10.0.0.1"), 2 * FAILED_SECONDS)
        self.clock.advance(RECENT_SECONDS)
        self.assertEqual((self.tries.recent(), self.tries.problems()), ({}, []))
        self.assertEqual(self.tries.failed("10.0.0.1"), FAILED_SECONDS)
        self.assertEqual(self.tries.count, FREE_TRIES + 3)

    def test_all_addresses_of_one_host_are_one_and_those_of_another_are_not(self) -> None:
        for peer in ("2001:db8::1", "2001:db8::ffff:0:0:1", "2001:db8:0:1::1", "::1", "::ffff:10.0.0.1", "10.0.0.1", "fe80::1%eth0", ""):
            self.tries.failed(peer)
        wanted = {"10.0.0.1": 2, "2001:db8::/64": 2, "2001:db8:0:1::/64": 1, "::1": 1, "fe80::/64": 1, "this host": 1}
        self.assertEqual(self.tries.recent(), wanted)

    def test_as_many_as_the_bound_says_are_remembered_and_of_one_more_who_tried_first_is_forgotten_and_counted(self) -> None:
        for number in range(MAX_ADDRESSES):
            self.tries.failed(f"10.0.{number // 256}.{number % 256}")
        self.tries.failed("10.0.0.0")  # no more than there were: it tried last now
        self.assertEqual((len(self.tries.recent()), self.tries.forgotten), (MAX_ADDRESSES, 0))
        self.tries.failed("10.9.9.9")
        self.assertEqual((len(self.tries.recent()), self.tries.forgotten), (MAX_ADDRESSES, 1))
        self.assertNotIn("10.0.0.1", self.tries.recent())
        self.clock.advance(RECENT_SECONDS)
        self.tries.failed("10.8.8.8")  # in the place of one that nobody remembers any more
        self.assertEqual(self.tries.forgotten, 1)

    def test_the_sentence_names_who_tried_most_and_says_how_many_more_there_are(self) -> None:
        for number in range(tries.MAX_NAMED + 2):
            for _ in range(number + 1):
                self.tries.failed(f"10.0.0.{number}")
        [sentence] = self.tries.problems()
        self.assertIn("15 tries of tokens that are not known, 5 from 10.0.0.4, 4 from 10.0.0.3, 3 from 10.0.0.2", sentence)
        self.assertIn(" and from 2 more addresses: ", sentence)

    @given(st.lists(st.tuples(st.text(max_size=40), st.floats(0, 2 * RECENT_SECONDS)), max_size=50))
    def test_whatever_stands_for_an_address_it_waits_within_the_bounds(self, tried: list[tuple[str, float]]) -> None:
        clock = Clock()
        found = Tries(clock.seconds)
        for peer, seconds in tried:
            self.assertTrue(FAILED_SECONDS <= found.failed(peer) <= MOST_FAILED_SECONDS)
            clock.advance(seconds)
        self.assertEqual(found.count, len(tried))
