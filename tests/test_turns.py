"""What takes long is done in parts, between which others have their turn."""

from __future__ import annotations

from random import Random

from twisted.internet.defer import ensureDeferred
from twisted.trial.unittest import SynchronousTestCase

from taba import turns
from taba.turns import in_order


class Ordered(SynchronousTestCase):
    def test_what_is_sorted_in_parts_is_as_if_it_were_at_once_and_others_have_a_turn_before_and_after_each(self) -> None:
        self.patch(turns, "SORTED_AT_ONCE", 10)
        chance = Random(1)
        for count in (0, 1, 9, 10, 11, 95):
            given = [(chance.randrange(20), "x" * chance.randrange(3)) for _ in range(count)]
            had: list[int] = []

            async def breathe(had: list[int] = had) -> None:
                had.append(1)

            found = self.successResultOf(ensureDeferred(in_order(given, breathe)))
            self.assertEqual(found, sorted(given))
            self.assertEqual(len(had), -(-count // 10) + count // 10)
