"""Age is time that passed, whatever the clocks say; what nobody knows is no age."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.agent.ages import NO_AGE, Moment

AGES = st.none() | st.integers(0, NO_AGE - 1)
MOMENTS = st.builds(Moment, st.floats(0, 2.0**40), st.integers(0, 2), AGES)


class Ages(SynchronousTestCase):
    def test_within_a_boot_it_is_what_the_boot_counted_and_the_store_is_not_asked(self) -> None:
        self.assertEqual(Moment(100.0, 1, 0).since(Moment(40.0, 1, 99)), 60.0)
        self.assertEqual(Moment(40.0, 1, None).since(Moment(100.0, 1, None)), 0.0)

    def test_across_boots_it_is_what_passed_for_the_store_or_nothing(self) -> None:
        self.assertEqual(Moment(5.0, 2, 130).since(Moment(1e9, 1, 10)), 7200.0)
        for now, before in ((10, 130), (None, 10), (130, None), (None, None)):
            self.assertEqual(Moment(5.0, 2, now).since(Moment(1e9, 1, before)), 0.0)

    @given(MOMENTS, MOMENTS)
    def test_it_is_never_less_than_nothing_and_never_more_than_passed_by_either_measure(self, now: Moment, before: Moment) -> None:
        age = now.since(before)
        self.assertGreaterEqual(age, 0)
        by_boot = now.seconds - before.seconds if now.boot == before.boot else 0.0
        by_store = 60.0 * (now.age - before.age) if now.age is not None and before.age is not None else 0.0
        self.assertLessEqual(age, max(by_boot, by_store, 0.0))

    @given(MOMENTS)
    def test_it_is_kept_and_read_back(self, moment: Moment) -> None:
        self.assertEqual(Moment.of_fields(*moment.fields()), moment)
