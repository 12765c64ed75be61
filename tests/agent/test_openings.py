"""Which streams may be open: what the table names of them reads back, and nothing stays that has ended everywhere."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.agent.openings import MAX_OPENED, Openings
from tests.examples import examples


def stream(number: int) -> bytes:
    return number.to_bytes(16, "big")


class OpeningsTests(SynchronousTestCase):
    @examples(60)
    @given(
        st.lists(
            st.tuples(st.sampled_from(["open", "open", "end", "ended", "doubt"]), st.integers(0, 3), st.sampled_from([0, 1, 9, 511])),
            max_size=30,
        )
    )
    def test_what_is_open_and_what_may_have_been_ended_are_told_apart_also_when_read_back(self, steps: list[tuple[str, int, int]]) -> None:
        openings = Openings()
        opened: set[tuple[bytes, int]] = set()
        ending: set[tuple[bytes, int]] = set()
        for word, number, bucket in steps:
            lane = stream(number), bucket
            if word == "open":
                openings.open(*lane)
                opened.add(lane)
                ending.discard(lane)
            elif word == "end" and lane in opened:
                self.assertEqual(openings.end(*lane), lane not in ending)
                ending.add(lane)
            elif word == "ended":
                openings.ended(*lane)
                opened.discard(lane)
                ending.discard(lane)
            elif word == "doubt":  # the table that is there may not be the last
                self.assertEqual(openings.doubt(), ending != opened)
                ending = set(opened)
            for found in (openings, Openings(openings.fields())):
                self.assertEqual(set(found.lanes()), opened)
                self.assertEqual({lane for lane in opened if found.is_ending(*lane)}, ending)
                self.assertEqual(set(found), {of for of, _ in opened})
                self.assertEqual(found.buckets_of_others((stream(0),)), {bucket for of, bucket in opened if of != stream(0)})

    def test_as_many_as_the_bound_are_named_and_of_one_more_the_oldest_is_not(self) -> None:
        openings = Openings()
        for number in range(MAX_OPENED):
            openings.open(stream(number), 7)
        self.assertEqual(len(openings.fields()), MAX_OPENED)
        openings.open(stream(MAX_OPENED), 7)
        self.assertEqual([of for of, _, _ in openings.fields()], [stream(number) for number in range(1, MAX_OPENED + 1)])
        self.assertIn(stream(0), openings)
