"""Lists of names as answers have them, in pieces."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from twisted.internet.defer import ensureDeferred
from twisted.trial.unittest import SynchronousTestCase

from taba.server.ask.answering import NAMED_AT_ONCE, NAMED_CHARS, listed, typed

NAMES = [f'a{number}{{b="ü\\"{number}"}}' for number in range(2 * NAMED_AT_ONCE + 7)]
LONG = [f"{number}{'x' * NAMED_CHARS}" for number in range(5)]


class Listed(SynchronousTestCase):
    def pieces(self, made: AsyncIterator[str]) -> list[str]:
        async def all_of() -> list[str]:
            return [piece async for piece in made]

        return self.successResultOf(ensureDeferred(all_of()))

    def test_the_pieces_of_a_list_are_one_json_and_for_people_one_name_a_line(self) -> None:
        for names in ([], NAMES[:1], NAMES[:NAMED_AT_ONCE], NAMES[: NAMED_AT_ONCE + 1], NAMES, [*NAMES, *LONG]):
            self.assertEqual("".join(self.pieces(listed(names, False))), json.dumps(names, ensure_ascii=False) + "\n")
            self.assertEqual("".join(self.pieces(listed(names, True))), "".join(f"{name}\n" for name in names))
            types = dict.fromkeys(names, "Gauge")
            self.assertEqual("".join(self.pieces(typed(types, False))), json.dumps(types, ensure_ascii=False) + "\n")
            self.assertEqual("".join(self.pieces(typed(types, True))), "".join(f"{name}: Gauge\n" for name in names))

    def test_many_names_are_written_together_and_long_ones_each_by_itself(self) -> None:
        self.assertEqual(len(self.pieces(listed(NAMES, False))), 3 + 1)
        self.assertEqual(len(self.pieces(listed(LONG, False))), len(LONG) + 1)
        self.assertEqual(len(self.pieces(typed(dict.fromkeys(LONG, "Gauge"), True))), len(LONG))
