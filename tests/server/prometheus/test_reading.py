"""What a selector comes to, against the raw events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import lru_cache
from itertools import pairwise
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.handlers import Events
from taba.handlers.counter_group import CounterGroup
from taba.handlers.percentile_group import PercentileGroup
from taba.server.ask.states import Lot
from taba.server.prometheus import past
from taba.server.prometheus import rows as rows_module
from taba.server.prometheus.catalogue import Catalogue, Series
from taba.server.prometheus.evaluate import evaluate
from taba.server.prometheus.leaf import Leaf
from taba.server.prometheus.reading import SeriesReading, noted
from taba.server.prometheus.rows import ROW_VALUES, Ceiling, Rows
from taba.server.prometheus.syntax import Selector, flattened, nodes_of
from taba.server.prometheus.told import Told
from taba.server.prometheus.vectors import Refused, Vector
from tests.examples import examples
from tests.sites import result_of

NOW = 1_763_850_123.0
HANDLERS: dict[str, Any] = {"CounterGroup": CounterGroup(), "PercentileGroup": PercentileGroup()}

ages = st.one_of(st.floats(0, 50), st.floats(0, 4000), st.floats(0, 80_000), st.integers(0, 9000).map(float))
recorded = st.lists(st.tuples(ages, st.integers(0, 50).map(float)), max_size=40)


class Turns:
    async def breathe(self) -> None:
        return None


class States:
    """A Query of one Tab, whose Clients' States are given; `slice`: how many come at a time, where they are taken together."""

    turns = Turns()

    def __init__(self, type: str, states: dict[str, Any], now: float, slice: int | None = None):
        self.type, self.states, self.now, self.slice = type, states, now, slice

    def type_has_past(self, type: str) -> bool:
        return True

    async def lots(self, tabs: Any, type_of: Any, wanted: Any, most: int, take: Any) -> AsyncIterator[Lot]:
        owners, states = [(tabs[0], client) for client in self.states], list(self.states.values())
        if take is None or self.slice is None:
            yield Lot({}, {self.type: (owners, states)})
            return
        starts = range(0, len(owners), self.slice)
        parts = [(owners[start : start + self.slice], states[start : start + self.slice]) for start in starts]
        yield Lot({}, {}, {tabs[0]: [await take(Lot({}, {self.type: part})) for part in parts]})

    async def history(self, type: str, states: Any, now: float) -> Any:
        return HANDLERS[type].history(states, now)

    async def match(self, pattern: str, texts: Any) -> list[str]:
        import re

        return [text for text in texts if re.fullmatch(pattern, text)]


class Answers:
    def __init__(self, reading: SeriesReading):
        self.reading = reading

    async def read(self, leaf: Leaf) -> Vector:
        return await self.reading.read(leaf)

    async def breathe(self) -> None:
        return None

    async def rewrite(self, *arguments: Any) -> Any:
        raise AssertionError


def evaluated(text: str, reading: SeriesReading, times: list[float]) -> Vector:
    vector: Vector = result_of(evaluate(nodes_of(flattened(text)), np.array(times), Answers(reading)))
    return vector


async def answered(answer: Any) -> Any:
    return answer


@lru_cache(maxsize=20)  # what is asked next is mostly about the same events
def folded(type: str, of_client: tuple[tuple[float, float], ...]) -> Any:
    """The State of these (age, value)."""
    state = HANDLERS[type].new_state()
    for time, value in sorted((NOW - age, value) for age, value in of_client):
        state = HANDLERS[type].fold(state, Events([time], [value]), time)
    return state


def asked(
    type: str, clients: list[list[tuple[float, float]]], text: str, times: list[float], now: float, slice: int | None = None
) -> tuple[dict[str, Any], Told]:
    """By Client (or "") what an expression is at `times`, None where there is nothing."""
    states = {f"web/{number}": folded(type, tuple(of_client)) for number, of_client in enumerate(clients)}
    figures = ("total", "events") if type == "CounterGroup" else ("distribution",)
    names = {"total": "x_total", "events": "x_events_total", "distribution": "x"}
    catalogue = Catalogue({names[figure]: [Series(names[figure], "x", type, figure, {})] for figure in figures}, (), {}, {}, ())
    if type == "PercentileGroup":
        by_part = {"x" + part: [Series("x" + part, "x", type, "distribution", {}, part)] for part in ("", "_bucket", "_count", "_sum")}
        catalogue = catalogue._replace(by_name=by_part)
    query: Any = States(type, states, now, slice)
    told = Told()
    at = np.array(times)
    vector = evaluated(text, SeriesReading(query, catalogue, at, now, told), times)
    return {
        labels.get("client", "") + labels.get("le", ""): [
            value if is_there else None for value, is_there in zip(of_row.tolist(), there.tolist(), strict=True)
        ]
        for labels, of_row, there in zip(vector.labels, vector.values, vector.there, strict=True)
    }, told


class Increases(SynchronousTestCase):
    @given(
        st.lists(recorded, min_size=1, max_size=3),
        st.sampled_from([60, 300, 3600, 20_000]),
        st.floats(0, 90_000),
        st.floats(1, 5000),
        st.integers(1, 12),
        st.sampled_from([0.0, 5.0, 700.0, 20_000.0]),
        st.sampled_from(["CounterGroup", "PercentileGroup"]),
    )
    @examples(100)
    def test_an_increase_is_off_by_no_more_than_what_lies_in_the_slots_at_its_two_ends(
        self, clients: list[list[tuple[float, float]]], window: int, age: float, step: float, steps: int, later: float, type: str
    ) -> None:
        now = NOW + later
        times = [now - age - step * place for place in range(steps)][::-1]
        name = "x_total" if type == "CounterGroup" else "x_sum"
        rows, _ = asked(type, clients, f"increase({name}[{window}s])", times, now)
        single, _ = asked(type, clients, f'increase({name}{{client=~".+"}}[{window}s])', times, now)
        summed, _ = asked(type, clients, f"sum(increase({name}[{window}s]))", times, now)
        self.assertEqual(summed, rows)
        for slice in (1, 2):
            sliced, _ = asked(type, clients, f"increase({name}[{window}s])", times, now, slice)
            self.assert_alike(sliced, rows)
        events = [(NOW - ago, value) for of_client in clients for ago, value in of_client]
        widest = {"CounterGroup": 900, "PercentileGroup": 3600}[type]
        for place, (time, value) in enumerate(zip(times, rows[""], strict=True)):
            begin = time - window
            if value is None:
                self.assertLess(begin, now - 80_000)  # before what is known of the day
                continue
            widths = [widest_of(type, now - edge) for edge in (begin, time)]
            self.assertLessEqual(max(widths), widest)
            between = sum(amount for at, amount in events if begin + widths[0] <= at < time - widths[1])
            within = sum(amount for at, amount in events if begin - widths[0] <= at <= time + widths[1])
            self.assertTrue(between - 1e-6 <= value <= within + 1e-6, (between, value, within))
            self.assertAlmostEqual(sum(of_client[place] for of_client in single.values()), value, places=6)

    def assert_alike(self, found: dict[str, Any], other: dict[str, Any]) -> None:
        """The same, but for the order in which floats are added."""
        self.assertEqual(found.keys(), other.keys())
        for key, values in found.items():
            for one, two in zip(values, other[key], strict=True):
                self.assertEqual((one is None, one != one), (two is None, two != two))
                if one is not None and one == one:
                    self.assertLessEqual(abs(one - two), 1e-9 * max(1.0, abs(two)))

    @given(st.lists(recorded.filter(bool), min_size=2, max_size=4), st.floats(0, 5000), st.integers(1, 3))
    @examples(30)
    def test_clients_that_are_read_in_slices_come_to_the_same(
        self, clients: list[list[tuple[float, float]]], age: float, slice: int
    ) -> None:
        times = [NOW - age - 600, NOW - age]
        for text in (
            "x_bucket",
            "x_sum",
            "histogram_quantile(0.9, sum(increase(x[1h])))",
            "max_over_time(x[10m])",
            "avg_over_time(x[1h])",
            "histogram_count(x)",
        ):
            self.assert_alike(*(asked("PercentileGroup", clients, text, times, NOW, at_once)[0] for at_once in (slice, None)))
        for text in ("x_total", "x_events_total", "rate(x_total[5m])"):
            self.assert_alike(*(asked("CounterGroup", clients, text, times, NOW, at_once)[0] for at_once in (slice, None)))

    def test_a_first_event_counts_and_what_is_whole_is_exact(self) -> None:
        rows, told = asked("CounterGroup", [[(10.0, 3.0), (20.0, 4.0)], [(30.0, 5.0)]], "increase(x_total[5m])", [NOW - 300, NOW], NOW)
        self.assertEqual(rows, {"": [0.0, 12.0]})
        self.assertEqual(list(told.infos), [])
        rows, _ = asked("CounterGroup", [[(10.0, 3.0)]], "x_total", [NOW - 100, NOW, NOW + 200, NOW + 400, NOW - 100_000], NOW)
        self.assertEqual(rows, {"": [0.0, 3.0, 3.0, None, None]})

    def test_where_slots_are_wider_than_the_window_their_average_is_given_and_it_is_said(self) -> None:
        many = [(7.0 * place, 1.0) for place in range(1100)]
        rows, told = asked("CounterGroup", [many], "increase(x_total[15s])", [NOW - 7000 - 15 * place for place in range(20)][::-1], NOW)
        self.assertTrue(all(value is not None and value <= 15 for value in rows[""]))
        self.assertEqual(len(told.infos), 1)
        self.assertRegex(next(iter(told.infos)), r"^resolution (150|900) s")

    @given(recorded.filter(bool), st.floats(0, 3000))
    @examples(50)
    def test_buckets_and_count_and_the_distribution_agree(self, events: list[tuple[float, float]], age: float) -> None:
        times = [NOW - age]
        buckets, _ = asked("PercentileGroup", [events], "x_bucket", times, NOW)
        count, _ = asked("PercentileGroup", [events], "x_count", times, NOW)
        whole, _ = asked("PercentileGroup", [events], "histogram_count(x)", times, NOW)
        self.assertAlmostEqual(buckets["+Inf"][0], count[""][0], places=6)
        self.assertAlmostEqual(whole[""][0], count[""][0], places=6)
        values = [row[0] for _, row in sorted(buckets.items(), key=lambda item: float(item[0]))]
        self.assertTrue(all(one <= other + 1e-9 for one, other in pairwise(values)))


class Several(States):
    """A Query of several Tabs of one Client each, in one lot or each in one of its own."""

    def __init__(self, type: str, states: dict[str, Any], now: float, by_lots: bool):
        super().__init__(type, states, now)
        self.by_lots = by_lots

    async def lots(self, tabs: Any, type_of: Any, wanted: Any, most: int, take: Any) -> AsyncIterator[Lot]:
        self.most = most
        for some in [[tab] for tab in tabs] if self.by_lots else [tabs]:
            yield Lot({}, {self.type: ([(tab, "web/1") for tab in some], [self.states[tab] for tab in some])})


class OfSeveralTabs(SynchronousTestCase):
    def test_a_sum_of_what_does_not_add_up_is_of_each_tabs_own(self) -> None:
        values = {"x{a=1}": [1.0], "x{a=2}": [5.0, 3.0]}
        handler = HANDLERS["PercentileGroup"]
        states = {tab: handler.fold(handler.new_state(), Events([NOW - 60] * len(of), of), NOW) for tab, of in values.items()}
        series = [Series("x", tab, "PercentileGroup", "distribution", {"a": tab}) for tab in values]
        catalogue = Catalogue({"x": series}, (), {}, {}, ())
        for by_lots in (False, True):
            for function, expected in (("max", 6.0), ("min", 4.0), ("avg", 5.0), ("sum", 9.0), ("count", 3.0)):
                query: Any = Several("PercentileGroup", states, NOW, by_lots)
                reading = SeriesReading(query, catalogue, np.array([NOW]), NOW, Told())
                [[value]] = evaluated(f"sum({function}_over_time(x[5m]))", reading, [NOW]).values.tolist()
                self.assertLessEqual(abs(value - expected), 0.02 * expected, (function, by_lots, value))


class Rooms(SynchronousTestCase):
    def test_all_selectors_of_a_question_share_its_room_which_ends_at_its_bound(self) -> None:
        times = [NOW - 10.0 * place for place in range(60)][::-1]
        for room, is_refused in ((120, False), (119, True)):
            self.patch(rows_module, "MAX_VALUES", room)
            text = "x_total + on() x_events_total"
            if is_refused:
                self.assertRaisesRegex(Refused, "values of one question", asked, "CounterGroup", [[(1.0, 2.0)]], text, times, NOW)
            else:
                self.assertEqual(len(asked("CounterGroup", [[(1.0, 2.0)]], text, times, NOW)[0]), 1)

    def test_so_do_notes_and_bins_that_come_with_a_further_tab(self) -> None:
        times = np.array([NOW - 1.0, NOW])
        self.patch(rows_module, "MAX_VALUES", 2 * ROW_VALUES)
        notes = [(NOW, text) for text in ("one", "two", "two", "three")]
        self.assertEqual(len(noted(notes[:3], times, Ceiling()).labels), 2)
        self.assertRaises(Refused, noted, notes, times, Ceiling())
        leaf = Leaf((), 0.0, None, 0.0, sums=True)
        there = np.ones(2, dtype=np.bool_)
        for bins, is_refused in ((26, True), (25, False)):
            rows = Rows(leaf, 2, Ceiling())
            rows.add_spread({}, np.arange(25), np.ones((2, 25)), np.ones(2), np.ones(2), there)
            further = np.arange(25, 25 + bins), np.ones((2, bins)), np.ones(2), np.ones(2), there
            if is_refused:
                self.assertRaises(Refused, rows.add_spread, {}, *further)
            else:
                rows.add_spread({}, *further)


class Turn(SynchronousTestCase):
    def test_others_have_turns_while_many_rows_are_put_together_and_it_comes_to_the_same(self) -> None:
        there = np.array([True, False, True])

        def vector(is_spread: bool, looks: list[None]) -> Vector:
            async def breathe() -> None:
                looks.append(None)

            rows = Rows(Leaf((), 0.0, None, 0.0), 3, Ceiling())
            for place in range(7):
                labels, values = {"place": str(place)}, np.arange(3.0) + place
                if is_spread:
                    rows.add_spread(labels, np.arange(place, place + 2), np.ones((3, 2)) * (place + 1), values, 2 * values, there)
                else:
                    rows.add(labels, values, there)
            return result_of(rows.vector(breathe))  # type: ignore[no-any-return]

        for is_spread in (False, True):
            looks: list[None] = []
            whole = vector(is_spread, [])
            with mock.patch.multiple(rows_module, AT_ONCE=2, SPREADS_AT_ONCE=3):
                parts = vector(is_spread, looks)
            self.assertGreaterEqual(len(looks), 4)
            self.assertEqual(parts.labels, whole.labels)
            np.testing.assert_array_equal(parts.values, whole.values)
            np.testing.assert_array_equal(parts.there, whole.there)
            if is_spread:
                for figure in ("codes", "heat", "count", "total"):
                    np.testing.assert_array_equal(getattr(parts.spread, figure), getattr(whole.spread, figure))

    def test_of_distributions_that_come_to_few_many_states_are_read_at_once_and_of_others_few(self) -> None:
        values = {f"x{{a={number}}}": [1.0 + number] for number in range(20)}
        handler = HANDLERS["PercentileGroup"]
        states = {tab: handler.fold(handler.new_state(), Events([NOW - 60] * len(of), of), NOW) for tab, of in values.items()}
        series = [Series("x", tab, "PercentileGroup", "distribution", {"a": tab}) for tab in values]
        buckets = [one._replace(name="x_bucket", part="_bucket") for one in series]
        catalogue = Catalogue({"x": series, "x_bucket": buckets}, (), {}, {}, ())
        times = np.linspace(NOW - 3600, NOW, 241)
        for text, is_much in (
            ("sum(rate(x[1m]))", True),
            ("sum without (a) (rate(x[1m]))", True),
            ("sum by (a) (rate(x[1m]))", False),
            ("rate(x[1m])", False),
            ("sum(max_over_time(x[1m]))", False),
            ("sum by (le) (rate(x_bucket[1m]))", False),
        ):
            query: Any = Several("PercentileGroup", states, NOW, True)
            evaluated(text, SeriesReading(query, catalogue, times, NOW, Told()), times.tolist())
            self.assertEqual(query.most, past.LOT_SPREADS if is_much else past.LOT_HEAT // 241, text)


class LastSecond(SynchronousTestCase):
    def test_it_counts_once_and_in_the_last_step(self) -> None:
        clients = [[(0.3 * place, 1.0 + place % 3) for place in range(100)]]
        for type, name in (("CounterGroup", "x_total"), ("PercentileGroup", "x_sum")):
            for last in (NOW, NOW - 0.4, NOW - 1.0):
                times = [last - 0.25 * place for place in range(8)][::-1]
                parts = asked(type, clients, f"increase({name}[250ms])", times, NOW)[0][""]
                [whole] = asked(type, clients, f"increase({name}[2s])", [last], NOW)[0][""]
                self.assertAlmostEqual(sum(parts), whole, places=5)
                [rate] = asked(type, clients, f"rate({name}[2s])", [last], NOW)[0][""]
                self.assertAlmostEqual(rate * (2 + NOW - last), whole, places=5)
                [steep] = asked(type, clients, f"irate({name}[60s])", [last], NOW)[0][""]
                [grown] = asked(type, clients, f"increase({name}[15s])", [last], NOW)[0][""]
                self.assertAlmostEqual(steep * (15 + NOW - last), grown, places=5)

    def test_so_it_does_of_a_distribution(self) -> None:
        clients = [[(0.3 * place, 2.0) for place in range(100)]]
        for last in (NOW, NOW - 0.9):
            [rate] = asked("PercentileGroup", clients, "histogram_count(rate(x[2s]))", [last], NOW)[0][""]
            [whole] = asked("PercentileGroup", clients, "histogram_count(increase(x[2s]))", [last], NOW)[0][""]
            self.assertAlmostEqual(rate * (2 + NOW - last), whole, places=5)


def widest_of(type: str, age: float) -> float:
    """How wide slots of that age may be; one that has just grown too old for its width may not have spilt yet."""
    widths = {"CounterGroup": (5, 30, 150, 900), "PercentileGroup": (15, 120, 600, 3600)}[type]
    for limit, width in zip((60, 600, 3600), widths, strict=False):
        if age <= limit:
            return float(width)
    return float(widths[-1])


class Now(States):
    """A Query of one Tab without a past, whose Projections are given by Client."""

    def type_has_past(self, type: str) -> bool:
        return False

    async def project(self, type: str, states: Any) -> list[Any]:
        return list(states)

    async def aggregate(self, type: str, projections: Any) -> Any:
        return {"value": sum(projection["value"] for projection in projections)}

    async def samples(self, type: str, projections: Any) -> list[Any]:
        return [[["_length", {"of": "all"}, 4.0, "gauge"], ["_seen_total", {}, 3.0, "counter"]] for _ in projections]


class WithoutPast(SynchronousTestCase):
    def read(self, text: str, figure: str, states: dict[str, Any], **labels: str) -> tuple[Vector, Told]:
        query: Any = Now("X", states, NOW)
        series = Series("x.y", "x.y", "X", figure, labels)
        by_name = {"x.y": [series], "x_y": [series]} if figure else {}
        catalogue = Catalogue(by_name, () if figure else (series,), {}, {}, ())
        told = Told()
        reading = SeriesReading(query, catalogue, np.array([NOW]), NOW, told)
        return evaluated(text, reading, [NOW]), told

    def test_what_a_handler_says_it_shows_and_does_not_have_is_left_out_and_said(self) -> None:
        for figure, projection in (("value", {}), ("top", {"top": 7}), ("value", {"value": None}), ("distinct", {"distinct": "many"})):
            vector, told = self.read("x_y", figure, {"web/1": projection})
            self.assertEqual((len(vector.labels), told.left_out), (0, 1), figure)
            self.assertIn(f"{figure} of its Projection", next(iter(told.warnings)))

    def test_clients_are_one_or_each_as_they_are_asked(self) -> None:
        states = {"web/1": {"value": 2}, "web/2": {"value": 3}}
        self.assertEqual(self.read("x_y", "value", states)[0].values.tolist(), [[5.0]])
        self.assertEqual(self.read('x_y{client="web/2"}', "value", states)[0].values.tolist(), [[3.0]])
        self.assertEqual(self.read('{"x.y", client!="web/2"}', "value", states)[0].values.tolist(), [[2.0]])

    def test_samples_are_found_by_their_whole_names_and_labels(self) -> None:
        states: dict[str, Any] = {"web/1": {}}
        for text, values in (
            ("x_y_length", [[4.0]]),
            ('x_y_length{of="all"}', [[4.0]]),
            ('x_y_length{of="none"}', []),
            ('{"x.y_seen_total"}', [[3.0]]),
            ("x_y", []),
            ('{__name__=~"x_y_.*"}', [[4.0], [3.0]]),
        ):
            self.assertEqual(self.read(text, "", states)[0].values.tolist(), values, text)
        self.assertEqual(len(self.read("rate(x_y_seen_total[5m])", "", states)[0].labels), 0)

    def test_samples_are_listed_by_the_names_that_they_have(self) -> None:
        query: Any = Now("X", {"web/1": {}, "web/2": {}}, NOW)
        query.aggregate = lambda type, projections: answered({})
        own, other = Series("x.y", "x.y", "X", "", {"a": "b"}), Series("x.y.top", "x.y.top", "X", "top", {})
        catalogue = Catalogue({"x.y.top": [other], "x_y_top": [other]}, (own,), {}, {}, ())
        for text, names in (
            ('{__name__=~"x_y_le.*"}', ["x_y_length"]),
            ('{__name__=~"x_y.*"}', ["x_y_length", "x_y_seen_total", "x.y.top"]),
            ('{__name__=~"y.*"}', []),
            ('{__name__!~"x_y_.*", a="b"}', []),
            ("x_y_length", ["x_y_length"]),
            ('x_y_length{of="none"}', []),
            ("x_y_other", []),
            ("x_y", []),
            ("x_y_top", ["x.y.top"]),
            ('{a="b"}', ["x.y"]),  # no name is asked for, and no State is read for it
        ):
            reading = SeriesReading(query, catalogue, np.zeros(0), NOW, Told())
            [node] = nodes_of(flattened(text))
            assert isinstance(node, Selector)
            found = result_of(reading.chosen(node.matchers))
            found = result_of(reading.named(found, node.matchers))
            self.assertEqual(sorted(series.name for series in found), sorted(names), text)

    def test_a_sample_with_a_name_of_tabas_own_is_left_out_and_said(self) -> None:
        for tab, left_out in (("taba", 2), ("process.resident.memory", 0), ("process", 1), ("tabard", 0)):
            query: Any = Now("X", {"web/1": {}}, NOW)
            query.samples = lambda type, projections: answered([[[suffix, {}, 1.0, "gauge"] for suffix in ("_problems", "_open_fds")]])
            catalogue = Catalogue({}, (Series(tab, tab, "X", "", {}),), {}, {}, ())
            told = Told()
            vector = evaluated('{__name__=~".+"}', SeriesReading(query, catalogue, np.array([NOW]), NOW, told), [NOW])
            self.assertEqual((told.left_out, len(vector.labels)), (left_out, 2 - left_out), tab)
