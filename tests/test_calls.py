from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.bounds import KiB
from taba.calls import LEAST_PIECE, MOST_SMALL, Body

SIZES = st.lists(st.sampled_from([0, 1, 100, LEAST_PIECE - 1, LEAST_PIECE, LEAST_PIECE + 1, MOST_SMALL, 100 * KiB]), max_size=30)


class BodyTests(SynchronousTestCase):
    @given(SIZES)
    def test_a_body_is_all_pieces_in_their_order_and_once(self, sizes: list[int]) -> None:
        body, pieces = Body(), [bytes([place]) * size for place, size in enumerate(sizes)]
        for piece in pieces:
            self.assertEqual(body.write(piece), len(piece))
        body.seek(0, 0)  # as twisted.web does
        self.assertEqual(body.take(), b"".join(pieces))
        self.assertEqual(body.take(), b"")

    def test_small_pieces_take_little_more_than_their_bytes(self) -> None:
        body = Body()
        for _ in range(4 * MOST_SMALL):
            body.write(b"x")
        taken = sys.getsizeof(body) + sum(map(sys.getsizeof, body._pieces))
        self.assertLess(taken, 6 * MOST_SMALL)
        self.assertEqual(len(body._pieces), 4)

    def test_a_body_that_is_closed_keeps_nothing(self) -> None:
        body = Body()
        body.write(bytes(MOST_SMALL))
        body.close()
        self.assertEqual(body._pieces, [])
