"""The contract that every Handler keeps, as a test class to inherit from. Its tests need Hypothesis (`pip install hypothesis`).

    class TestLongest(HandlerContract, unittest.TestCase):
        handler = Longest()
        values = st.text(max_size=20)

What a test class may set:

- `handler`: an object of the Handler.
- `values`: a strategy of the values that the Handler accepts; numbers by default.
- `by_time = True`: which of several Events at one time counts is decided by their order; Events of different times may come in any order.
- `order_matters = True`: Events in another order rightly give another State. Say so in the Handler's docs, too.
- `old_dumps`: (version, dump) of every older version from `first_version` on, which `upgrade` must read; of an array Handler
  (version, [part, …]), for `upgrade_parts`. What is older than `first_version` must be refused.
- `max_projection_bytes`: of a Projection's JSON, with its hidden keys.
- `examples`: how many Hypothesis tries for each rule.

Sums of floats may differ by 1e-9 (relative). Hidden texts and bytes, such as sketches, are compared by what they show.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from zope.interface.verify import verifyObject

from taba import names
from taba.handlers.base import EDGE_SECONDS, Events
from taba.handlers.interface import IArrayHandler, IHandler
from taba.handlers.numbers import column_of
from taba.handlers.render import shown

NOW = 1_763_850_123.5
MAX_PROJECTION_BYTES = 256 * 1024  # JSON of one Projection with its hidden keys: what a query holds once for each Client
EXAMPLES = 60  # that Hypothesis tries for each rule

_SUFFIX = re.compile(r"[a-zA-Z0-9_:.]*")
_LABEL = re.compile(r"[a-z_][a-z0-9_]*")
_KINDS = ("counter", "gauge", "summary")


def _hypothesis() -> Any:
    try:
        import hypothesis
    except ImportError:
        raise ImportError("the tests of a Handler need Hypothesis; install it with: pip install hypothesis") from None
    return hypothesis


def numbers() -> Any:
    """A strategy of what numeric Handlers are given, as floats: whole numbers, fractions, those of all sizes, NaN and infinities.

    No two of the huge ones cancel: their sum is their greatest, in any order.
    """
    st = _hypothesis().strategies
    huge = st.sampled_from([1e290, -1e270, 1e250, 1e-300, -1e-300, 5e-324, 0.0, -0.0])
    return st.one_of(st.integers(-1000, 1000).map(float), st.floats(-1e6, 1e6), huge, st.sampled_from([math.nan, math.inf, -math.inf]))


def times() -> Any:
    """A strategy of Events' times: about NOW, within the hour, from two days before to 40 days ahead, and some that are equal."""
    st = _hypothesis().strategies
    equal = st.sampled_from([NOW, NOW - 1, NOW - 60, NOW - 100, NOW - 86_400, NOW + 1, NOW + 40 * 86_400, 0.0])
    return st.one_of(st.floats(NOW - 120, NOW + 5), st.floats(NOW - 4000, NOW), st.floats(NOW - 2 * 86_400, NOW + 7200), equal)


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
        found = (differs(one[key], other[key], f"{path}/{key}") for key in one if not _is_opaque(key, one[key]))
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


def _is_opaque(key: Any, value: Any) -> bool:
    return isinstance(key, str) and key.startswith("_") and isinstance(value, (str, bytes))


def _columns(
    figures: Any, names: Sequence[str], length: int | None = None
) -> tuple[dict[str, list[Any]], list[tuple[int, int, int]] | None]:
    """(columns, bins): the columns of a History or of its all-time figures as lists of one length; (item, code, count) of the bins."""
    found = {name: list(getattr(figures, name)) for name in names if getattr(figures, name) is not None}
    assert len({len(column) for column in found.values()} | ({length} if length is not None else set())) == 1, {
        k: len(v) for k, v in found.items()
    }
    if "bins" not in found:
        return found, None
    codes, counts = list(figures.codes), list(figures.counts)
    items = [item for item, bins in enumerate(found["bins"]) for _ in range(bins)]
    assert all(count > 0 for count in counts)
    return found, list(zip(items, codes, counts, strict=True))


def _listed(history: Any) -> list[list[Any]]:
    """[row, what there is] of a History, the slots in the order of their times; then the all-time figures."""
    lines: list[list[Any]] = []
    for figures, fields in (
        (history, ("row", "start", "end", "count", "total", "low", "high")),
        (history.ever, ("count", "total", "low", "high")),
    ):
        columns, bins = _columns(figures, (*fields, "bins"))
        of: dict[int, list[Any]] = {}
        for item, code, count in bins or ():
            of.setdefault(item, []).append([code, count])
        rows = columns["row"] if "row" in columns else range(len(columns["count"]))
        listed = [
            [int(row), *(float(columns[name][item]) for name in fields if name != "row" and name in columns), of.get(item, [])]
            for item, row in enumerate(rows)
        ]
        lines += sorted(listed)
    return lines


def _cut(items: Sequence[Any], cuts: Sequence[int]) -> list[Sequence[Any]]:
    """`items` in pieces, which end at `cuts`."""
    bounds = [0, *sorted(min(cut, len(items)) for cut in cuts), len(items)]
    return [items[start:end] for start, end in pairwise(bounds)]


class HandlerContract:
    """What a Handler must keep; mix into a TestCase."""

    handler: ClassVar[Any] = None
    values: ClassVar[Any] = None
    by_time: ClassVar[bool] = False
    order_matters: ClassVar[bool] = False
    first_version: ClassVar[int] = 1
    old_dumps: ClassVar[Sequence[tuple[int, Any]]] = ()
    max_projection_bytes: ClassVar[int] = MAX_PROJECTION_BYTES
    examples: ClassVar[int] = EXAMPLES

    # --- the rules ---

    def test_it_provides_the_interface_and_a_type(self) -> None:
        interface = IArrayHandler if IArrayHandler.providedBy(self.handler) else IHandler
        verifyObject(interface, self.handler)
        names.check_type(self.handler.type)
        assert type(self.handler.version) is int and 1 <= self.handler.version <= 65_535, self.handler.version

    def test_folding_in_any_pieces_and_at_once_agree(self) -> None:
        def check(drawn: tuple[list[tuple[float, Any]], list[int], float]) -> None:
            pairs, cuts, age = drawn
            whole, pieces = self._state(pairs), self._state(*_cut(pairs, cuts))
            self._same(self.handler.project(whole, NOW + age), self.handler.project(pieces, NOW + age))

        st = _hypothesis().strategies
        cuts = st.one_of(st.lists(st.integers(0, 40), max_size=6), st.just(list(range(40))))
        self._each(st.tuples(self._pairs(), cuts, st.sampled_from([0.0, 3.0, 59.0, 700.0, 5000.0, 90_000.0])), check)

    def test_folding_in_shuffled_pieces_agrees(self) -> None:
        if self.order_matters:
            return

        def check(drawn: tuple[list[tuple[float, Any]], Any]) -> None:
            pairs, random = drawn
            if self.by_time:  # no two at one time, and none held to now
                pairs = [*{min(time, NOW): (min(time, NOW), value) for time, value in pairs}.values()]
            shuffled = list(pairs)
            random.shuffle(shuffled)
            first, second = sorted((random.randint(0, len(pairs)), random.randint(0, len(pairs))))
            one, other = self._state(pairs), self._state(shuffled[:first], shuffled[first:second], shuffled[second:])
            self._same(self.handler.project(one, NOW), self.handler.project(other, NOW))

        self._each(_hypothesis().strategies.tuples(self._pairs(), _hypothesis().strategies.randoms(use_true_random=False)), check)

    def test_the_time_of_a_fold_decides_nothing_but_what_is_the_future(self) -> None:
        def check(drawn: tuple[list[tuple[float, Any]], list[tuple[int, float]], float]) -> None:
            pairs, folds, age = drawn
            pairs = [(min(time, NOW), value) for time, value in pairs]
            leads = dict(folds)  # where a piece ends, and how far the clock of the Server that folds it is ahead
            whole, pieces = self._state(pairs), self.handler.new_state()
            for piece, lead in zip(_cut(pairs, list(leads)), [*(leads[cut] for cut in sorted(leads)), 0.0], strict=True):
                pieces = self._fold(pieces, piece, NOW + lead)
            # what is shown: an Event that was within a window when it was folded in time may be counted as too old when folded late
            self._same(shown(self.handler.project(whole, NOW + age)), shown(self.handler.project(pieces, NOW + age)))

        st = _hypothesis().strategies
        leads = st.sampled_from([0.0, 1.0, 90.0, 4000.0, 90_000.0, 40 * 86_400.0])
        folds = st.lists(st.tuples(st.integers(0, 40), leads), min_size=1, max_size=5)
        self._each(st.tuples(self._pairs(), folds, st.sampled_from([0.0, 1.0, 90.0, 4000.0])), check)

    def test_a_dump_loads_as_the_same_state(self) -> None:
        def check(pairs: list[tuple[float, Any]]) -> None:
            state = self._state(pairs)
            dump = self.handler.dump(state)
            assert isinstance(dump, bytes)
            loaded = self.handler.load(dump)
            assert self.handler.dump(loaded) == dump
            self._same(self.handler.project(loaded, NOW), self.handler.project(state, NOW))

        self._each(self._pairs(), check)

    def test_every_older_version_upgrades_to_the_current_one(self) -> None:
        versions = [version for version, _ in self.old_dumps]
        wanted = range(self.first_version, self.handler.version)
        assert set(versions) >= set(wanted), f"old_dumps has no dump of every version before {self.handler.version}"
        for version in range(1, self.first_version):
            try:
                upgraded = self.handler.upgrade_parts([b""], version) if self._is_array() else self.handler.upgrade(b"", version)
            except ValueError:
                continue
            raise AssertionError(f"a State of version {version} was read: {upgraded!r:.100}")
        for version, old in self.old_dumps:
            state = self.handler.upgrade(old, version) if isinstance(old, bytes) else self.handler.upgrade_parts(list(old), version)
            current = self.handler.load(self.handler.dump(state))
            self._same(self.handler.project(current, NOW), self.handler.project(state, NOW))
            self._folds(self.handler.dump(current))

    def test_a_fold_changes_none_of_its_events(self) -> None:
        def check(pairs: list[tuple[float, Any]]) -> None:
            events = events_of(pairs)
            for column in events:
                if isinstance(column, np.ndarray):
                    column.flags.writeable = False
            before = copy.deepcopy(pairs)
            self.handler.fold(self.handler.new_state(), events, NOW)
            after = list(zip(events.times, events.values, strict=True))
            assert differs([list(pair) for pair in before], [list(pair) for pair in after]) is None, "the Events are others now"

        self._each(self._pairs(least=1), check)

    def test_projecting_changes_no_state(self) -> None:
        def check(pairs: list[tuple[float, Any]]) -> None:
            state = self._state(pairs)
            dump = self.handler.dump(state)
            self.handler.project(state, NOW + 1000)
            assert self.handler.prunable(state, NOW + 1000) in (True, False)
            assert self.handler.dump(state) == dump, "projecting, or asking whether it may be pruned, changed the State"

        self._each(self._pairs(), check)

    def test_projections_are_json_and_bounded(self) -> None:
        def check(pairs: list[tuple[float, Any]]) -> None:
            projection = self.handler.project(self._state(pairs), NOW)
            assert isinstance(projection, dict)
            size = len(json.dumps(projection))
            assert size <= self.max_projection_bytes, f"a Projection of {size} bytes; at most {self.max_projection_bytes}"
            aggregate = self.handler.aggregate([projection])
            assert isinstance(aggregate, dict)
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

        self._each(self._clients(), check)

    def test_merged_states_project_as_the_aggregate(self) -> None:
        if getattr(self.handler, "merge", None) is None:
            return

        def check(several: list[list[tuple[float, Any]]]) -> None:
            states = [self._state(pairs) for pairs in several]
            dumps = [self.handler.dump(state) for state in states]
            for now in (NOW, NOW + 700):
                aggregate = self.handler.aggregate([self.handler.project(state, now) for state in states])
                for order in (states, states[::-1]):
                    merged = self.handler.load(self.handler.dump(self.handler.merge(order)))
                    self._same(self.handler.aggregate([self.handler.project(merged, now)]), aggregate)
            assert [self.handler.dump(state) for state in states] == dumps, "merge changed a State that it was given"

        self._each(self._clients(), check)

    def test_samples_are_figures_with_a_name_each(self) -> None:
        if getattr(self.handler, "samples", None) is None:
            return

        def check(several: list[list[tuple[float, Any]]]) -> None:
            projections = [self.handler.project(self._state(pairs), NOW) for pairs in several]
            for projection in (*projections, self.handler.aggregate(projections)):
                seen = set()
                for suffix, labels, value, kind in self.handler.samples(projection):
                    assert isinstance(value, (int, float)) and not isinstance(value, bool), (suffix, value)
                    assert _SUFFIX.fullmatch(suffix) and kind in _KINDS, (suffix, kind)
                    assert all(_LABEL.fullmatch(key) and isinstance(text, str) for key, text in labels.items()), labels
                    name = (suffix, tuple(sorted(labels.items())))
                    assert name not in seen, f"two samples {name}"
                    seen.add(name)

        self._each(self._clients(), check)

    def test_a_history_has_whole_columns_and_knows_no_more_than_there_was(self) -> None:
        if getattr(self.handler, "history", None) is None:
            return

        def check(drawn: tuple[list[list[tuple[float, Any]]], float]) -> None:
            several, age = drawn
            states = [self._state(pairs) for pairs in several]
            dumps = [self.handler.dump(state) for state in states]
            history = self.handler.history(states, NOW + age)
            assert [self.handler.dump(state) for state in states] == dumps, "history changed a State"
            slots, bins = _columns(history, ("row", "start", "end", "count", "total", "low", "high", "bins"))
            assert all(0 <= row < len(states) for row in slots["row"]) and min(slots["count"], default=1) > 0
            assert all(history.since <= start <= end for start, end in zip(slots["start"], slots["end"], strict=True))
            ever, ever_bins = _columns(history.ever, ("count", "total", "low", "high", "bins"), len(states))
            for row in range(len(states)):
                own = [count for of, count in zip(slots["row"], slots["count"], strict=True) if of == row]
                assert sum(own) <= ever["count"][row], "the slots hold more than there ever was"
            for figures, found in ((slots, bins), (ever, ever_bins)):
                if found is not None:
                    for row, count in enumerate(figures["count"]):
                        assert sum(many for of, _, many in found if of == row) == count, "the bins hold something else"

        st = _hypothesis().strategies
        self._each(st.tuples(self._clients(), st.sampled_from([0.0, 59.0, 4000.0, 90_000.0])), check)

    def test_the_history_of_several_states_is_that_of_each(self) -> None:
        if getattr(self.handler, "history", None) is None:
            return

        def check(several: list[list[tuple[float, Any]]]) -> None:
            states = [self._state(pairs) for pairs in several]
            together = _listed(self.handler.history(states, NOW))
            for row, state in enumerate(states):
                self._same(
                    [line[1:] for line in together if line[0] == row], [line[1:] for line in _listed(self.handler.history([state], NOW))]
                )

        self._each(self._clients(), check)

    def test_detail_is_the_projection_with_more(self) -> None:
        if getattr(self.handler, "detail", None) is None:
            return

        def check(several: list[list[tuple[float, Any]]]) -> None:
            states = [self._state(pairs) for pairs in several]
            details = [self.handler.detail(state, NOW) for state in states]
            projections = [self.handler.project(state, NOW) for state in states]
            aggregate = self.handler.aggregate(projections)
            for one, other in zip((*projections, aggregate), (*details, self.handler.aggregate(details)), strict=True):
                self._same(one, _only(other, one))
                json.dumps(shown(other), allow_nan=False)

        self._each(self._clients(), check)

    # --- the rules of array Handlers ---

    def test_states_folded_together_are_those_folded_one_by_one(self) -> None:
        if not IArrayHandler.providedBy(self.handler):
            return

        def check(drawn: list[tuple[int, float, float]]) -> None:
            rows = np.array([row for row, _, _ in drawn], dtype=np.int64)
            stamps = np.array([time for _, time, _ in drawn], dtype=np.float64)
            values = column_of([value for _, _, value in drawn], getattr(self.handler, "pairs", None))
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

        st = _hypothesis().strategies
        self._each(st.lists(st.tuples(st.integers(0, 4), times(), self._values()), max_size=60), check)

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

        st = _hypothesis().strategies
        self._each(st.tuples(self._pairs(), st.integers(0, 2000), st.integers(1, 255), st.integers(1, 400)), check)

    def test_states_folded_at_the_edge_and_merged_are_those_folded_at_once(self) -> None:
        if getattr(self.handler, "edge", None) is None:
            return

        def check(drawn: tuple[list[tuple[int, float, list[tuple[float, float]]]], bool, float]) -> None:
            drawn_columns, together, age = drawn
            merged, folded = [self.handler.new_state() for _ in range(3)], [self.handler.new_state() for _ in range(3)]
            columns = [(row, [(base + offset, value) for offset, value in pairs]) for row, base, pairs in drawn_columns]
            for lot in [columns] if together else [[column] for column in columns]:
                merged = self._merged(merged, lot)
                for row, pairs in lot:
                    folded[row] = self._fold(folded[row], pairs, NOW)
            for one, other in zip(merged, folded, strict=True):
                self._same(self.handler.project(one, NOW + age), self.handler.project(other, NOW + age))

        st = _hypothesis().strategies
        # of the past and the future, late, at the borders of the day, of a wrong clock: at most a minute each
        ahead = [0.0, 5.0, 700.0, 3700.0, 40 * 86_400.0]
        bases = st.sampled_from(
            [NOW - back for back in (2 * 86_400.0, 86_500.0, 86_400.0, 3000.0, 61.0, 30.0)] + [NOW + lead for lead in ahead]
        )
        offsets = st.one_of(st.floats(0, EDGE_SECONDS), st.sampled_from([0.0, 1.0, EDGE_SECONDS]))
        pairs = st.lists(st.tuples(offsets, numbers().filter(math.isfinite)), min_size=1, max_size=40)
        columns = st.lists(st.tuples(st.integers(0, 2), bases, pairs), min_size=1, max_size=5)
        self._each(st.tuples(columns, st.booleans(), st.sampled_from([0.0, 59.0, 5000.0])), check)

    def test_what_no_edge_made_is_refused_or_counted(self) -> None:
        if getattr(self.handler, "edge", None) is None:
            return

        def check(drawn: tuple[list[tuple[float, float]], int, int]) -> None:
            pairs, place, flip = drawn
            [dump] = self._at_the_edge([(0, [(NOW - offset, value) for offset, value in pairs])])
            assert self.handler.count_array([dump]).tolist() == [len(pairs)]
            broken = bytearray(dump)
            broken[place % len(broken)] ^= flip
            for content in (bytes(broken), b"", dump[:-8], self.handler.dump_array(self.handler.load_array([b""]))[0]):
                try:
                    [count] = self.handler.count_array([content])
                    states = self.handler.merge_array(self.handler.load_array([b""]), np.array([0]), [content], NOW)
                except ValueError:
                    continue
                assert count > 0
                self.handler.dump_array(states)

        st = _hypothesis().strategies
        pairs = st.lists(st.tuples(st.floats(0, EDGE_SECONDS), numbers().filter(math.isfinite)), min_size=1, max_size=40)
        self._each(st.tuples(pairs, st.integers(0, 2000), st.integers(1, 255)), check)

    def _at_the_edge(self, columns: Sequence[tuple[int, Sequence[tuple[float, float]]]]) -> list[bytes]:
        starts = np.cumsum([0, *(len(pairs) for _, pairs in columns)])
        stamps = np.array([time for _, pairs in columns for time, _ in pairs])
        values = np.array([value for _, pairs in columns for _, value in pairs])
        dumps: list[bytes] = self.handler.edge_columns(starts, stamps, values)
        return dumps

    def _merged(self, states: list[Any], columns: Sequence[tuple[int, Sequence[tuple[float, float]]]]) -> list[Any]:
        """`states` after these columns, folded at the edge, were merged into them, as in a Server."""
        loaded = self.handler.load_array([state[0] for state in states])
        rows = np.array([row for row, _ in columns], dtype=np.int64)
        loaded = self.handler.merge_array(loaded, rows, self._at_the_edge(columns), NOW)
        further = [list(state[1:]) for state in states]
        full = self.handler.spilling(loaded)
        if len(full):
            for row, parts in zip(full, self.handler.spill(loaded, full, [further[row] for row in full]), strict=True):
                further[row] = parts
        return [[main, *parts] for main, parts in zip(self.handler.dump_array(loaded), further, strict=True)]

    def test_an_aggregate_of_states_is_that_of_their_projections(self) -> None:
        if getattr(self.handler, "aggregate_array", None) is None:
            return

        def check(drawn: tuple[list[list[tuple[float, Any]]], list[int], float]) -> None:
            several, chosen, age = drawn
            states = [self._state(pairs) for pairs in several]
            groups = [chosen[place % len(chosen)] for place in range(len(states))]
            if len(chosen) % 2:
                groups.sort()  # as a Server has them: each group's States stand together
            loaded = self.handler.load_array([state[0] for state in states])
            parts = [state[1:] for state in states]
            of_rows = np.array(groups, dtype=np.int64)
            every = [self.handler.aggregate_array(loaded, parts, of_rows, 3, NOW + age)]
            if "aggregate_dumps" in vars(type(self.handler)):
                every.append(self.handler.aggregate_dumps([state[0] for state in states], parts, of_rows, 3, NOW + age) or ())
            for found in every:
                for group, aggregate in enumerate(found):
                    members = [state for state, of in zip(states, groups, strict=True) if of == group] or [self.handler.new_state()]
                    self._same(aggregate, self.handler.aggregate([self.handler.project(state, NOW + age) for state in members]))

        st = _hypothesis().strategies
        groups = st.lists(st.integers(0, 2), min_size=1, max_size=4)
        self._each(st.tuples(self._clients(), groups, st.sampled_from([0.0, 700.0, 90_000.0])), check)

    # --- what the rules share ---

    def _is_array(self) -> bool:
        return bool(IArrayHandler.providedBy(self.handler))

    def _state(self, *pieces: Sequence[tuple[float, Any]], now: float = NOW) -> Any:
        """The State after folding `pieces`, through its dump between two of them, as in a Server."""
        state = self.handler.new_state()
        for piece in pieces:
            state = self._fold(state, piece, now)
        return state

    def _fold(self, state: Any, piece: Sequence[tuple[float, Any]], now: float) -> Any:
        """The State, through its dump, after one more fold; the State itself where there is nothing to fold."""
        return self.handler.load(self.handler.dump(self.handler.fold(state, events_of(piece), now))) if piece else state

    def _folds(self, dump: bytes) -> None:
        def check(pairs: list[tuple[float, Any]]) -> None:
            self.handler.fold(self.handler.load(dump), events_of(pairs), NOW)

        self._each(self._pairs(3, 1), check)

    def _same(self, one: Any, other: Any) -> None:
        difference = differs(one, other)
        assert difference is None, difference

    def _values(self) -> Any:
        return numbers() if self.values is None else self.values

    def _pairs(self, most: int = 40, least: int = 0) -> Any:
        st = _hypothesis().strategies
        return st.lists(st.tuples(times(), self._values()), min_size=least, max_size=most)

    def _clients(self) -> Any:
        return _hypothesis().strategies.lists(self._pairs(10), min_size=1, max_size=4)

    def _each(self, strategy: Any, check: Any) -> None:
        hypothesis = _hypothesis()
        quick = hypothesis.settings(max_examples=self.examples, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
        quick(hypothesis.given(strategy)(check))()


def _only(detail: Any, projection: Any) -> Any:
    """What of `detail` the Projection has, too."""
    if isinstance(detail, dict) and isinstance(projection, dict):
        return {key: _only(detail[key], projection[key]) for key in projection if key in detail}
    return detail
