"""Room for Clients that post with keys, as an Agent grants it to whoever posts."""

from __future__ import annotations

from unittest import TestCase

from taba.agent.grants import FULL_SECONDS, KEPT_SECONDS, MAX_NAMED, SHOWN_SECONDS, SURE_SECONDS, Grants, TooManyKeys, digest_of

BUCKETS = 4


def key(bucket: int, number: int = 0) -> bytes:
    return bucket.to_bytes(8, "big") + number.to_bytes(8, "big")


class GrantsTests(TestCase):
    def setUp(self) -> None:
        self.now = 100.0
        self.grants = Grants(here=8)

    def post(self, client: str, poster: str = "a", bucket: int = 0) -> bool:
        try:
            self.grants.check(key(bucket), client, poster, BUCKETS, self.now)
        except TooManyKeys:
            return False
        self.grants.take(key(bucket), client, poster, BUCKETS, self.now)
        return True

    def flood(self, poster: str, bucket: int = 0, clients: int = 20) -> int:
        """For how many new Clients it is let."""
        return sum(self.post(f"{poster}/{number}", poster, bucket) for number in range(clients))

    def test_a_poster_takes_room_while_as_much_is_free_in_each_bucket_and_others_find_theirs(self) -> None:
        self.assertEqual([self.flood(poster) for poster in "abc"], [4, 2, 1])
        self.assertEqual(self.flood("a", bucket=1), 4)
        self.assertEqual([self.post("a/0"), self.post("b/1", "b"), self.post("a/0", "c")], [True] * 3)  # who is there goes on
        self.assertEqual(len(self.grants), 11)

    def test_after_a_day_there_is_room_again_and_no_sooner(self) -> None:
        self.assertEqual(self.flood("a"), 4)
        self.now += KEPT_SECONDS - 1
        self.assertFalse(self.post("a/9"))
        self.assertTrue(self.post("a/0"))  # of which the room is that of now
        self.now += 61
        self.assertEqual([self.post(f"a/{number}") for number in range(10, 14)], [True, True, True, False])

    def test_where_a_server_has_no_room_nobody_new_is_taken_for_that_bucket_until_that_is_over(self) -> None:
        self.assertTrue(self.post("a/0"))
        self.grants.told_full(key(0, 7), BUCKETS, self.now)
        self.assertEqual(
            [self.post("a/1"), self.post("b/0", "b"), self.post("a/0"), self.post("a/1", bucket=1)], [False, False, True, True]
        )
        self.now += FULL_SECONDS
        self.assertTrue(self.post("a/1"))
        self.now += SURE_SECONDS
        self.grants.told_full(key(0), BUCKETS, self.now)
        self.assertFalse(self.post("a/1"))  # its record may be gone, and then it would wait

    def test_what_an_earlier_agent_took_counts_and_of_whom_nobody_knows_it_does_not(self) -> None:
        whose = [digest_of("a") + digest_of(f"a/{number}") for number in range(3)]
        known = [(key(0, number), one) for number, one in enumerate([*whose, whose[0], b"", digest_of("old")])]
        self.grants.take_up(known, BUCKETS, self.now)
        self.assertEqual([self.post("a/0"), self.post("a/3"), self.post("a/4")], [True, True, False])

    def test_of_very_many_the_oldest_are_forgotten_and_of_another_number_of_buckets_all(self) -> None:
        self.grants = Grants(here=100, in_all=5)
        self.assertEqual((self.flood("a"), len(self.grants)), (20, 5))
        self.grants.check(key(0), "a/0", "a", BUCKETS + 1, self.now)
        self.assertEqual(len(self.grants), 0)

    def test_who_was_refused_is_named_for_a_while(self) -> None:
        self.flood("stranger")
        (said,) = self.grants.problems(self.now).values()
        self.assertIn("stranger posts to this Agent under Idempotency-Keys of ever new Clients", said)
        for number in range(MAX_NAMED):
            self.flood(f"b{number}")
        self.assertNotIn("keys of stranger", self.grants.problems(self.now))
        self.assertEqual(self.grants.problems(self.now + SHOWN_SECONDS + 1), {})
