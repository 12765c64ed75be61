"""What CounterGroup and PercentileGroup show of many States, in one pass over their bytes, is what their arrays show, to the last bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from taba.handlers import Events, counter_group, percentile_group
from taba.handlers.counter_group import CounterGroup
from taba.handlers.percentile_group import PercentileGroup
from taba.server.keys import Framed
from taba.server.work.projecting import aggregate_states, project_type

NOW = 1_700_000_000.0
HANDLERS = (CounterGroup(), PercentileGroup())
# far apart, so that sketches collapse; and sums that are rounded
VALUES = st.one_of(st.integers(-80, 80).map(lambda tenths: tenths / 10), st.sampled_from([1e-30, 1e30, -1e30, 2.0**40, 0.1, 0.0]))
AGES = st.one_of(st.integers(0, 90), st.integers(-20_000, 200_000), st.sampled_from([0, 4, 5, 60, 600, 3600, 86_400, 90_000]))
EVENTS = st.lists(st.tuples(AGES, VALUES), max_size=30)
GROUPS = st.lists(st.integers(0, 3), min_size=5, max_size=5).map(sorted)


def state_of(handler: Any, events: Sequence[tuple[float, float]], at_a_time: int = 4) -> list[bytes]:
    """A State that has been folded in pieces, so that some of it is in each part."""
    state = handler.new_state()
    for start in range(0, len(events), at_a_time):
        ages, values = zip(*events[start : start + at_a_time], strict=True)
        state = handler.fold(state, Events([NOW - age for age in ages], list(values)), NOW)
    return list(state)


def day_of(handler: Any, seed: int) -> list[bytes]:
    """A State of a day, of values that no sum of is exact."""
    chance = np.random.default_rng(seed)
    return state_of(handler, list(zip(np.arange(86_000.0, 0.0, -97.0), chance.lognormal(0, 2, 887).tolist(), strict=True)), 40)


def in_arrays(handler: Any, states: Sequence[Sequence[bytes]], groups: Sequence[int], total: int, now: float) -> list[Any]:
    loaded = handler.load_array([state[0] for state in states])
    found: list[Any] = handler.aggregate_array(loaded, [list(state[1:]) for state in states], np.array(groups, dtype=np.int64), total, now)
    return found


def in_c(handler: Any, states: Sequence[Sequence[bytes]], groups: Sequence[int], total: int, now: float) -> Any:
    parts = [list(state[1:]) for state in states]
    return handler.aggregate_dumps([state[0] for state in states], parts, np.array(groups, dtype=np.int64), total, now)


class WindowsInCTests(SynchronousTestCase):
    def setUp(self) -> None:
        if counter_group._rows is None or percentile_group._spreads is None:
            raise SkipTest("not built: needs a compiler")

    @settings(deadline=None)
    @given(st.lists(EVENTS, min_size=5, max_size=5), GROUPS, st.sampled_from([-50_000, -3, 0, 55, 700, 4000, 90_000]))
    def test_groups_show_what_they_show_in_arrays(self, clients: list[list[tuple[int, float]]], groups: list[int], later: int) -> None:
        for handler in HANDLERS:
            states = [state_of(handler, events) for events in clients]
            self.assertEqual(in_c(handler, states, groups, 4, NOW + later), in_arrays(handler, states, groups, 4, NOW + later))

    def test_sums_are_rounded_as_with_arrays_and_lots_of_archives_are_summed_up_by_themselves(self) -> None:
        for handler in HANDLERS:
            states = [day_of(handler, seed) for seed in range(12)]
            with mock.patch.object(percentile_group, "LOT_BYTES", sum(map(len, states[0])) * 2):
                for groups in ([0] * 12, [0] * 5 + [1] * 7, list(range(12))):
                    total = max(groups) + 1
                    self.assertEqual(in_c(handler, states, groups, total, NOW + 30), in_arrays(handler, states, groups, total, NOW + 30))

    def test_a_group_of_nobody_has_what_a_new_state_has(self) -> None:
        for handler in HANDLERS:
            found = in_c(handler, [handler.new_state(), day_of(handler, 1)], [2, 2], 2, NOW)
            self.assertIsNone(found)  # a group that there is not
            found = in_c(handler, [handler.new_state(), day_of(handler, 1)], [1, 1], 2, NOW)
            self.assertEqual(found[0], handler.project(handler.new_state(), NOW))
            self.assertEqual(found[1], handler.aggregate([handler.project(day_of(handler, 1), NOW)]))

    def test_whatever_bytes_there_are_they_show_what_they_show_in_arrays(self) -> None:
        chance = np.random.default_rng(11)
        for handler in HANDLERS:
            good, done = day_of(handler, 3), 0
            for turn in range(150):
                bad = [bytearray(part) for part in good]
                content = bad[int(chance.integers(len(bad)))]
                for _ in range(int(chance.integers(0, 4))):  # most of what is read is in the first bytes
                    content[int(chance.integers(min(len(content), int(chance.choice([48, 10_000])))))] = int(
                        chance.choice([0, 1, 2, 127, 128, 255])
                    )
                del content[len(content) - int(chance.choice([0, 0, 0, 8])) :]
                states = [[bytes(part) for part in bad], good]
                found = in_c(handler, states, [0, 0], 1, NOW)
                if found is not None:
                    done += states[0] != good
                    self.assertEqual(repr(found), repr(in_arrays(handler, states, [0, 0], 1, NOW)), turn)
            self.assertGreater(done, 20)  # not all of them are left to the arrays

    def test_what_is_out_of_the_ordinary_is_left_to_the_arrays(self) -> None:
        for handler in HANDLERS:
            good = day_of(handler, 5)
            for groups, total in (([0, 1, 0], 2), ([0, -1, 0], 2), ([0, 0, 3], 3), ([0, 0], 1), ([0, 0, 0], 0)):
                self.assertIsNone(in_c(handler, [good] * 3, groups, total, NOW), (groups, total))
            self.assertIsNone(in_c(handler, [good], [0], 1, np.inf))
            self.assertIsNone(in_c(handler, [[good[0], b"\0" * 17, *good[2:]]], [0], 1, NOW))
            self.assertIsNone(in_c(handler, [[b"\0" * 17, *good[1:]]], [0], 1, NOW))
        odd = state_of(HANDLERS[1], [(5, -0.0), (4, 0.5)])
        self.assertIsNone(in_c(HANDLERS[1], [odd], [0], 1, NOW))  # which of two zeros is the lesser the machine decides

    def test_projections_and_aggregates_of_a_server_are_made_so(self) -> None:
        for handler in HANDLERS:
            states = [[Framed(handler.version, 0, part) for part in day_of(handler, seed)] for seed in range(3)]
            groups = np.zeros(3, dtype=np.int64)
            ours = project_type(handler, True, states, NOW), aggregate_states(handler, states, groups, 1, NOW)
            with mock.patch.object(type(handler), "load_array", side_effect=AssertionError("loaded")):
                self.assertEqual((project_type(handler, True, states, NOW), aggregate_states(handler, states, groups, 1, NOW)), ours)
            with mock.patch.object(type(handler), "aggregate_dumps", return_value=None):
                self.assertEqual((project_type(handler, True, states, NOW), aggregate_states(handler, states, groups, 1, NOW)), ours)

    def test_what_is_built_on_one_of_them_shows_what_its_own_methods_show(self) -> None:
        class Own(CounterGroup):
            def _project(self, *given: Any) -> list[Any]:
                return [{"own": True} for _ in super()._project(*given)]

        states = [[Framed(1, 0, part) for part in day_of(HANDLERS[0], seed)] for seed in range(2)]
        self.assertEqual(project_type(Own(), True, states, NOW), [{"own": True}] * 2)
        self.assertEqual(aggregate_states(Own(), states, np.zeros(2, dtype=np.int64), 1, NOW), [{"own": True}])
