"""Mutations of what no world has: each is found by a test of its own room."""

from __future__ import annotations

import time
from typing import Any

from taba import clocks, desk
from taba.agent import directory
from tests.simulation.mutations.listing import beside


def _of_before(reactor: Any) -> None:
    if reactor.seconds is not time.monotonic:
        reactor.seconds = time.monotonic


@beside("tests.test_clocks.Reactors.test_a_call_of_before_is_moved_along")
def a_call_of_before_the_reactors_change_is_left_as_it_was(put: Any) -> None:
    put(clocks, "make_monotonic", _of_before)


@beside("tests.test_desk.Desks.test_what_is_done_with_is_not_in_hand_and_its_counts_hold")
def what_an_input_counted_is_lost_with_it(put: Any) -> None:
    put(desk.Desk, "counts", lambda self, count: [0] * count)


@beside("tests.agent.test_admission.Flooding.test_beyond_the_cap_sums_stay_right_per_base_name_in_order_and_a_sentence_names_the_client")
def each_tab_too_many_has_an_overflow_tab_of_its_own(put: Any) -> None:
    put(directory.Directory, "_fit", lambda self, place: [0] * (place + 1))
