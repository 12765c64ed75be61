"""The contract that every Handler keeps, as a test class to inherit from. Needs Hypothesis.

    class LongestTests(HandlerContract, SynchronousTestCase):
        handler = Longest()
        values = st.text(max_size=20)

Set `values` to a strategy of what the Handler accepts; `order_matters` where Events in another order rightly give another State (say
so in the Handler's docs too); `old_dumps` to [(version, bytes), …] of older versions that `upgrade` must read.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zope.interface.verify import verifyObject

from taba import names
from taba.handlers.base import Events
from taba.handlers.interface import IArrayHandler, IHandler
from taba.handlers.render import shown

NOW = 1_763_850_123.5
MAX_PROJECTION_BYTES = 256 * 1024  # JSON of one Projection with its hidden keys: what a query holds once for each Client

floats = st.one_of(st.integers(-1000, 1000).map(float), st.floats(-1e6, 1e6), st.sampled_from([math.nan, math.inf, -math.inf]))
times = st.one_of(st.floats(NOW - 120, NOW + 5), st.floats(NOW - 4000, NOW), st.floats(NOW - 2 * 86_400, NOW + 7200))

_quick: Any = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def events_of(pairs: Sequence[tuple[float, Any]]) -> Events:
    """Events as the Server passes them: arrays where all values are floats, else lists."""
    stamps = [time for time, _ in pairs]
    values = [value for _, value in pairs]
    if all(type(value) is float for value in values):
        return Events(np.array(stamps, dtype=np.float64), np.array(values, dtype=np.float64))  # type: ignore[arg-type]
    return Events(stamps, values)


def differs(one: Any, other: Any, path: str = "") -> str | None:
    """Where two Projections differ by more than the rounding of sums, or None."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return f"{path}: keys {sorted(map(str, one))} and {sorted(map(str, other))}"
        found = (differs(one[key], other[key], f"{path}/{key}") for key in one)
        return next((text for text in found if text), None)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return f"{path}: {one!r} and {other!r}"
        found = (differs(a, b, f"{path}[{place}]") for place, (a, b) in enumerate(zip(one, other, strict=True)))
        return next((text for text in found if text), None)
    if isinstance(one, (int, float)) and isinstance(other, (int, float)) and not isinstance(one, bool):
        same = one == other or (one != one and other != other) or math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-7)
        return None if same else f"{path}: {one!r} and {other!r}"
    return None if one == other else f"{path}: {one!r} and {other!r}"


class HandlerContract:
    """What a Handler must keep; mix into a TestCase."""

    handler: ClassVar[Any] = None
    values: ClassVar[Any] = floats
    order_matters: ClassVar[bool] = False
    old_dumps: ClassVar[Sequence[tuple[int, bytes]]] = ()
    max_projection_bytes: ClassVar[int] = MAX_PROJECTION_BYTES

    def _state(self, *pieces: Sequence[tuple[float, Any]], now: float = NOW) -> Any:
        state = self.handler.new_state()
        for piece in pieces:
            if piece:
                state = self.handler.fold(state, events_of(piece), now)
        return state

    def _same(self, one: Any, other: Any) -> None:
        difference = differs(one, other)
        assert difference is None, difference

    def _pairs(self, most: int = 40) -> Any:
        return st.lists(st.tuples(times, self.values), max_size=most)

    def _each(self, strategy: Any, check: Any) -> None:
        tried: Any = given(strategy)
        _quick(tried(check))()

    def test_it_provides_the_interface_and_a_type(self) -> None:
        interface = IArrayHandler if IArrayHandler.providedBy(self.handler) else IHandler
        verifyObject(interface, self.handler)
        names.check_type(self.handler.type)

    def test_folding_in_pieces_and_at_once_agree(self) -> None:
        def check(drawn: tuple[list[tuple[float, Any]], int, float]) -> None:
            pairs, cut, age = drawn
            whole = self._state(pairs)
            pieces = self._state(pairs[:cut], *([pair] for pair in pairs[cut:]))
            self._same(self.handler.project(whole, NOW + age), self.handler.project(pieces, NOW + age))

        self._each(st.tuples(self._pairs(), st.integers(0, 40), st.sampled_from([0.0, 3.0, 59.0, 700.0, 5000.0, 90_000.0])), check)

    def test_folding_in_another_order_agrees(self) -> None:
        if self.order_matters:
            return

        def check(drawn: tuple[list[tuple[float, Any]], Any]) -> None:
            pairs, random = drawn
            shuffled = list(pairs)
            random.shuffle(shuffled)
            cut = random.randint(0, len(pairs))
            one, other = self._state(pairs), self._state(shuffled[:cut], shuffled[cut:])
            self._same(self.handler.project(one, NOW), self.handler.project(other, NOW))

        self._each(st.tuples(self._pairs(), st.randoms(use_true_random=False)), check)

    def test_a_dump_loads_as_the_same_state(self) -> None:
        def check(pairs: list[tuple[float, Any]]) -> None:
            state = self._state(pairs)
            dump = self.handler.dump(state)
            assert isinstance(dump, bytes)
            loaded = self.handler.load(dump)
            assert self.handler.dump(loaded) == dump
            self._same(self.handler.project(loaded, NOW), self.handler.project(state, NOW))

        self._each(self._pairs(), check)

    def test_older_versions_upgrade(self) -> None:
        for version, dump in self.old_dumps:
            json.dumps(self.handler.project(self.handler.upgrade(dump, version), NOW))

    def test_a_fold_changes_none_of_its_events(self) -> None:
        def check(pairs: list[tuple[float, Any]]) -> None:
            events = events_of(pairs)
            for column in events:
                if isinstance(column, np.ndarray):
                    column.flags.writeable = False
            before = copy.deepcopy(pairs)
            self.handler.fold(self.handler.new_state(), events, NOW)
            after = list(zip(events.times, events.values, strict=True))
            assert differs([list(pair) for pair in before], [list(pair) for pair in after]) is None

        self._each(self._pairs(), check)

    def test_projecting_changes_no_state(self) -> None:
        def check(pairs: list[tuple[float, Any]]) -> None:
            state = self._state(pairs)
            dump = self.handler.dump(state)
            self.handler.project(state, NOW + 1000)
            assert self.handler.dump(state) == dump

        self._each(self._pairs(), check)

    def test_projections_are_json_and_bounded(self) -> None:
        def check(pairs: list[tuple[float, Any]]) -> None:
            projection = self.handler.project(self._state(pairs), NOW)
            assert isinstance(projection, dict)
            assert len(json.dumps(projection)) <= self.max_projection_bytes
            aggregate = self.handler.aggregate([projection])
            json.dumps(shown(aggregate), allow_nan=False)
            text = self.handler.render(aggregate)
            assert isinstance(text, str) and "\n" not in text

        self._each(self._pairs(), check)

    def test_an_aggregate_knows_no_order_of_clients_and_has_the_projections_shape(self) -> None:
        def check(several: list[list[tuple[float, Any]]]) -> None:
            projections = [self.handler.project(self._state(pairs), NOW) for pairs in several]
            before = copy.deepcopy(projections)
            aggregate = self.handler.aggregate(projections)
            self._same(aggregate, self.handler.aggregate(projections[::-1]))
            self._same(before, projections)
            if len(projections) > 1:
                of_aggregates = [self.handler.aggregate(projections[:1]), self.handler.aggregate(projections[1:])]
                self._same(aggregate, self.handler.aggregate(of_aggregates))

        self._each(st.lists(self._pairs(10), min_size=1, max_size=4), check)

    def test_merged_states_project_as_the_aggregate(self) -> None:
        if getattr(self.handler, "merge", None) is None:
            return

        def check(several: list[list[tuple[float, Any]]]) -> None:
            states = [self._state(pairs) for pairs in several]
            aggregate = self.handler.aggregate([self.handler.project(state, NOW) for state in states])
            self._same(self.handler.aggregate([self.handler.project(self.handler.merge(states), NOW)]), aggregate)

        self._each(st.lists(self._pairs(10), min_size=1, max_size=4), check)

    def test_states_folded_together_are_those_folded_one_by_one(self) -> None:
        if not IArrayHandler.providedBy(self.handler):
            return

        def check(drawn: list[tuple[int, float, float]]) -> None:
            rows = np.array([row for row, _, _ in drawn], dtype=np.int64)
            stamps = np.array([time for _, time, _ in drawn], dtype=np.float64)
            values = np.array([value for _, _, value in drawn], dtype=np.float64)
            for column in (rows, stamps, values):
                column.flags.writeable = False
            parts = [[b""] * self.handler.further_parts for _ in range(5)]
            states = self.handler.fold_array(self.handler.load_array([b""] * 5), rows, stamps, values, NOW)
            full = list(self.handler.spilling(states))
            if full:
                for row, further in zip(full, self.handler.spill(states, full, [parts[row] for row in full]), strict=True):
                    parts[row] = further
            together = self.handler.dump_array(states)
            projections = self.handler.project_array(self.handler.load_array(together), parts, NOW)
            for row in range(5):
                alone = self._state([(time, value) for of, time, value in drawn if of == row])
                if any(of == row for of, _, _ in drawn):
                    assert [together[row], *parts[row]] == alone
                self._same(projections[row], self.handler.project(alone, NOW))

        self._each(st.lists(st.tuples(st.integers(0, 4), times, self.values), max_size=60), check)

    def test_bytes_that_are_no_dump_are_refused_or_harmless(self) -> None:
        if not IArrayHandler.providedBy(self.handler):
            return

        def check(drawn: tuple[list[tuple[float, Any]], int, int, int]) -> None:
            pairs, place, flip, cut = drawn
            whole = self._state(pairs)[0]
            if not whole:
                return
            broken = bytearray(whole)
            broken[place % len(broken)] ^= flip
            for content in (bytes(broken), whole[: cut % len(whole)], whole + b"\0" * cut):
                try:
                    states = self.handler.load_array([b"", content])
                except ValueError:
                    continue
                self.handler.project_array(states, [[], []], NOW)
                self.handler.dump_array(states)

        self._each(st.tuples(self._pairs(), st.integers(0, 2000), st.integers(1, 255), st.integers(1, 400)), check)
