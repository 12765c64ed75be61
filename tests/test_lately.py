from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from taba.lately import Lately

MOST = 5


class LatelyTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.made: list[int] = []
        self.lately = Lately(self.make, MOST)

    def make(self, key: int) -> int | None:
        self.made.append(key)
        if key < 0:
            raise ValueError("less than nothing")
        return key or None

    def test_what_comes_again_is_not_made_again(self) -> None:
        for _ in range(3):
            self.assertEqual([self.lately[key] for key in (0, 1)], [None, 1])
        self.assertEqual(self.made, [0, 1])

    def test_what_raises_is_not_remembered(self) -> None:
        for _ in range(2):
            self.assertRaises(ValueError, self.lately.__getitem__, -1)
        self.assertEqual((self.made, self.lately.kept), ([-1, -1], 0))

    def test_two_generations_are_kept_and_what_comes_is_in_one(self) -> None:
        for key in range(1, 20 * MOST):
            self.lately[key]
            self.lately[7]
            self.assertLessEqual(self.lately.kept, 2 * MOST)
        self.assertEqual(self.made.count(7), 1)
        self.assertEqual(len(self.made), 20 * MOST - 1)
        for key in range(1, MOST):  # of long ago
            self.lately[key]
        self.assertEqual(len(self.made), 20 * MOST - 1 + MOST - 1)
