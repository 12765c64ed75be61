"""Dead letters as they lie in a store: whatever is there is one that can be shown, folded again and counted, or is said to be none."""

from __future__ import annotations

import json
from typing import Any

import msgpack
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.handlers.lookup import shown
from taba.server.fold.deadletters import DeadLetter, column_of, decode_dead_letter, describe, encode_dead_letter, shown_of
from tests.examples import examples

GOOD = DeadLetter(1.5, "bad_value", "why", "web/1", "x", "Buffer", 2, bytes(16), ["a", [1]], b"")
ODD: list[Any] = [None, True, -1, 0, 2, 2**63, 1.5, float("nan"), float("inf"), "x", b"x", b"12345678", bytes(16), [], [1], [1, 2], {}]


class Letters(SynchronousTestCase):
    def take(self, content: bytes) -> bool:
        """Whether it is one: then all that is done with one can be done."""
        letter = decode_dead_letter(content)
        if letter is None:
            return False
        described = list(describe(0, letter))
        self.assertEqual(len(described), shown_of(letter))
        json.dumps([shown(one) for one in described], allow_nan=False)
        column = column_of(letter)
        self.assertGreaterEqual((0 if column is None else column.weight) + letter.events, 0)
        sorted([letter.time, 1.0])
        return True

    def test_each_field_of_another_kind_or_length_makes_it_none(self) -> None:
        self.assertTrue(self.take(encode_dead_letter(GOOD)))
        for place in range(len(GOOD)):
            for odd in ODD:
                fields: list[Any] = list(GOOD)
                fields[place] = odd
                taken = self.take(msgpack.packb([1, *fields]))
                if type(odd) is not type(GOOD[place]):  # a time may be whole, and values the bytes of floats
                    may = (place == 0 and type(odd) is int) or (place == 8 and odd == bytes(16))
                    self.assertEqual(taken, may, (place, odd))

    def test_content_that_no_decoder_makes_is_shown_as_its_bytes(self) -> None:
        for content in (
            b"\x81\x90\x01",
            b"\x81\x80\x01",
            b"\x91" * 2000 + b"\x90",
            b"\xc1",
            b"\xdd\xff\xff\xff\xff",
            b"\xd6\xff",
            b"\x01\x02",
        ):
            for times in (b"", bytes(8)):  # of what is no column, and of what seems to be folded at the edge
                self.assertTrue(self.take(encode_dead_letter(GOOD._replace(times=times, values=[], content=content))), content)

    @examples(100)
    @given(st.lists(st.sampled_from(ODD), min_size=10, max_size=10))
    def test_any_fields_are_borne(self, fields: list[Any]) -> None:
        self.take(msgpack.packb([1, *fields]))

    @examples(100)
    @given(st.integers(0, 9), st.integers(0, 9), st.sampled_from(ODD), st.sampled_from(ODD))
    def test_any_two_fields_are_borne(self, one: int, other: int, odd: Any, another: Any) -> None:
        fields: list[Any] = list(GOOD)
        fields[one], fields[other] = odd, another
        self.take(msgpack.packb([1, *fields]))
