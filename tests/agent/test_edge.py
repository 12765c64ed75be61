"""Folding at the edge: which columns go as States, that these are the same events, and to whom they go."""

from __future__ import annotations

import math
import shutil
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from taba.agent import edge, pump
from taba.agent.edge import MIN_EVENTS, Edge, EdgeLot
from taba.agent.encoding import encode, unpack
from taba.agent.native import NATIVE
from taba.agent.tallies import Sorted, tally_of
from taba.batch import AtEdge, Column, decode_batch, sections_of
from taba.bounds import MAX_BATCH_BYTES, MAX_BATCH_COLUMNS, MAX_TIME
from taba.handlers.lookup import MAX_EDGE_TIME, find_edges, find_handlers
from taba.names import bucket_of
from tests.agent.moments import at
from tests.agent.producers import Producer
from tests.agent.world import AGENT, BUCKETS, World
from tests.examples import examples

HANDLERS: dict[str, Any] = find_edges()
EVENTS = 2 * MIN_EVENTS


def folding(*types: str) -> Edge:
    made = Edge(HANDLERS)
    made.allow([(type, version) for type, version in made.edges if not types or type in types])
    return made


def one(times: Any, values: Any, type: str = "CounterGroup") -> EdgeLot:
    """A lot of a single column."""
    count = len(values)
    kind = np.array([Edge(HANDLERS).kind(type)], np.int8)
    return EdgeLot(np.array([0, count]), np.asarray(times, float), np.asarray(values, float), np.array([count]), kind)


class Rules(SynchronousTestCase):
    def is_folded(self, times: Any, values: Any, **more: Any) -> bool:
        return bool(folding().fold(one(times, values), **more))

    def test_taba_s_own_handlers_that_declare_an_edge_fold_and_no_others_are_imported(self) -> None:
        lookup = find_handlers()
        self.assertEqual({type: handler.edge for type, handler in HANDLERS.items()}, lookup.edges)
        code = "import sys, taba.handlers.lookup as lookup; lookup.find_edges(); print(*sys.modules)"
        loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        self.assertIn("taba.handlers.counter_group", loaded)
        self.assertFalse({"datasketches", "taba.handlers.gauge", "taba.handlers.cardinality", "taba.handlers.topk"} & set(loaded))

    def test_a_column_of_as_few_events_as_may_be_is_folded_and_of_one_fewer_not(self) -> None:
        for count, is_folded in ((MIN_EVENTS, True), (MIN_EVENTS - 1, False)):
            self.assertEqual(self.is_folded([1000.0] * count, [1.0] * count), is_folded)

    def test_times_span_a_minute_at_most_and_are_such(self) -> None:
        for odd, is_folded in {
            1060.0: True,
            math.nextafter(1060.0, 2000.0): False,
            940.0: True,
            939.9: False,
            -1.0: False,
            math.nan: False,
            math.inf: False,
        }.items():
            self.assertEqual(self.is_folded([1000.0] * EVENTS + [odd], [1.0] * (EVENTS + 1)), is_folded, odd)
        for all_of, is_folded in {0.0: True, MAX_EDGE_TIME: True, MAX_EDGE_TIME + 1: False, MAX_TIME: False, -0.5: False}.items():
            self.assertEqual(self.is_folded([all_of] * EVENTS, [1.0] * EVENTS), is_folded, all_of)

    def test_values_are_such_that_no_sum_of_theirs_is_beyond_all_floats(self) -> None:
        most, beyond = edge.MAX_EDGE_VALUE, math.nextafter(edge.MAX_EDGE_VALUE, math.inf)
        odds = {most: True, -most: True, beyond: False, -beyond: False, math.nan: False, math.inf: False, -math.inf: False}
        for odd, is_folded in odds.items():
            self.assertEqual(self.is_folded([1000.0] * (EVENTS + 1), [1.0] * EVENTS + [odd]), is_folded, odd)

    def test_what_is_odd_of_one_column_keeps_no_other_from_being_folded(self) -> None:
        kind = folding().kind("CounterGroup")
        times, values = np.full(4 * EVENTS, 1000.0), np.ones(4 * EVENTS)
        times[1], values[EVENTS + 1] = 5000.0, math.nan
        lot = EdgeLot(np.arange(5) * EVENTS, times, values, np.full(4, EVENTS), np.array([kind, kind, kind, 0], np.int8))
        [states] = folding().fold(lot)
        self.assertEqual(states.columns.tolist(), [2])

    def test_a_state_takes_a_quarter_of_its_events_bytes_at_the_most_and_no_more_than_a_batch_has_room_for(self) -> None:
        [states] = folding().fold(one([1000.0] * EVENTS, [1.0] * EVENTS))
        [length] = map(len, states.dumps)
        self.assertTrue(self.is_folded([1000.0] * EVENTS, [1.0] * EVENTS, most=length))
        self.assertFalse(self.is_folded([1000.0] * EVENTS, [1.0] * EVENTS, most=length - 1))
        fits = -(-length * edge.MAX_SHARE // 16)
        for count, is_folded in ((fits, True), (fits - 1, False)):
            small = Edge(HANDLERS, 1)
            small.allow(small.edges)
            self.assertEqual(bool(small.fold(one([1000.0] * count, [1.0] * count))), is_folded)

    def test_only_what_all_servers_merge_is_folded(self) -> None:
        lot = one([1000.0] * EVENTS, [1.0] * EVENTS)
        self.assertEqual(Edge(HANDLERS).fold(lot), [])
        self.assertEqual(folding("TotalsCounter").fold(lot), [])
        other = Edge(HANDLERS)
        other.allow([("CounterGroup", 2), ("TotalsCounter", 1), ("Strange", 1)])
        self.assertEqual((other.fold(lot), other.allowed), ([], (("TotalsCounter", 1),)))
        self.assertEqual(len(other.fold(one([1000.0] * EVENTS, [1.0] * EVENTS, "TotalsCounter"))), 1)

    def test_a_handler_that_raises_is_asked_no_more_and_the_others_are(self) -> None:
        class Raising(type(HANDLERS["CounterGroup"])):  # type: ignore[misc]
            def edge_columns(self, *given: Any) -> Any:
                raise ZeroDivisionError("no")

        made = Edge({**HANDLERS, "CounterGroup": Raising()})
        made.allow(made.edges)
        kinds = np.array([made.kind("CounterGroup"), made.kind("TotalsCounter")], np.int8)
        lot = EdgeLot(np.arange(3) * EVENTS, np.full(2 * EVENTS, 1000.0), np.ones(2 * EVENTS), np.full(2, EVENTS), kinds)
        for _ in range(2):
            [states] = made.fold(lot)
            self.assertEqual(states.columns.tolist(), [1])
        self.assertEqual(made.failed, {"CounterGroup": "ZeroDivisionError: no"})
        made.allow(made.edges)
        self.assertEqual(len(made.fold(lot)), 1)


class Figures(SynchronousTestCase):
    """What the C part finds of columns is what numpy finds."""

    def setUp(self) -> None:
        if NATIVE is None:
            raise SkipTest("needs the C part of the drain: gcc when Taba is installed")

    NUMBERS = st.floats() | st.sampled_from((0.0, -0.0, 1000.0, 1060.0, MAX_EDGE_TIME, edge.MAX_EDGE_VALUE))

    @given(
        st.lists(st.lists(st.tuples(NUMBERS, NUMBERS | st.floats(1.0, 2.0)), min_size=1, max_size=12), min_size=1, max_size=6),
        st.integers(0, 63),
    )
    @examples(100)
    def test_what_is_chosen_and_its_figures_are_those_of_numpy(self, columns: list[list[tuple[float, float]]], asked: int) -> None:
        counts = np.array([len(column) for column in columns])
        times, values = np.array([pair for column in columns for pair in column]).T.copy()
        lot = EdgeLot(np.concatenate(([0], np.cumsum(counts))), times, values, counts, np.ones(len(counts), np.int8))
        found: list[Any] = []
        for native in (None, NATIVE):
            chosen = np.array([bool(asked >> place & 1) for place in range(len(columns))])
            figures = edge._figures(lot, chosen) if native is None else edge._measured(lot, chosen, native)
            found.append((chosen.tolist(), [(column[chosen] + 0.0).tobytes() for column in figures]))  # of zeros either may be the least
        self.assertEqual(*found)

    @given(st.lists(st.lists(NUMBERS | st.floats(-2.0, 2.0), min_size=1, max_size=12), min_size=1, max_size=6))
    @examples(100)
    def test_what_a_drain_comes_to_is_what_numpy_sums_up(self, columns: list[list[float]]) -> None:
        counts, values = np.array([len(column) for column in columns]), np.array([value for column in columns for value in column])
        found, wanted = [tally_of(Sorted([], counts, counts, counts, values), native) for native in (NATIVE, None)]
        self.assertEqual(found.counts.tolist(), wanted.counts.tolist())
        most = math.fsum(abs(value) for value in values if math.isfinite(value) and abs(value) < 1e300)
        np.testing.assert_allclose(found.totals, wanted.totals, rtol=1e-12, atol=1e-12 * most)
        self.assertEqual(found.least is None, wanted.least is None)
        if found.least is not None and wanted.least is not None:
            self.assertEqual(found.least.tolist(), wanted.least.tolist())

    def test_every_size_and_every_start_is_checked(self) -> None:
        ones, chosen, starts = np.ones(2), np.ones(2, np.bool_), np.arange(3)
        bounds = (MAX_EDGE_TIME, 60.0, 1e290)
        NATIVE.measure(starts, ones, ones, *bounds, chosen, *np.empty((4, 2)))
        for wrong in (starts - 1, starts + 1, starts[::-1].copy(), starts[:2].copy(), np.zeros(3, np.int64)):
            self.assertRaises(ValueError, NATIVE.measure, wrong, ones, ones, *bounds, chosen, *np.empty((4, 2)))
        self.assertRaises(ValueError, NATIVE.measure, starts, ones, ones[:1], *bounds, chosen, *np.empty((4, 2)))
        self.assertRaises(ValueError, NATIVE.measure, starts, ones, ones, *bounds, chosen, *np.empty((3, 2)), np.empty(1))
        self.assertRaises(BufferError, NATIVE.measure, starts, ones, ones, *bounds, bytes(2), *np.empty((4, 2)))
        self.assertRaises(TypeError, NATIVE.measure, starts, ones, ones, *bounds, chosen)
        self.assertTrue(NATIVE.sum_up(starts, ones, *np.empty((2, 2))))
        for wrong in (starts - 1, starts + 1, np.zeros(3, np.int64), starts[:2].copy(), starts[:0].copy()):
            self.assertRaises(ValueError, NATIVE.sum_up, wrong, ones, *np.empty((2, 2)))
        self.assertRaises(TypeError, NATIVE.sum_up, starts, ones)


class Draining(SynchronousTestCase):
    """Real rings, a real outbox: the States that a Server makes of what is folded here are those of the events."""

    def setUp(self) -> None:
        self.directory = tempfile.mkdtemp(dir="/dev/shm")
        self.addCleanup(shutil.rmtree, self.directory)

    def world(self, is_folding: bool) -> World:
        world = World(tempfile.mkdtemp(dir=self.directory), edge=folding() if is_folding else None)
        self.addCleanup(world.end_producers)
        self.addCleanup(world.die)
        return world

    def columns(self, world: World) -> list[Column]:
        found: list[Column] = []
        for group in world.keeper.outbox.groups():
            for stored in group.batches:
                batch = decode_batch(world.keeper.outbox.read(stored.position, stored.length))
                columns = [column for column in batch.columns if isinstance(column, Column)]
                self.assertEqual(len(columns), len(batch.columns))
                self.assertEqual(stored.events, sum(column.weight for column in columns))
                self.assertTrue(all(bucket_of(column.tab, BUCKETS) == batch.bucket for column in columns))
                found += columns
        return found

    def shown(self, columns: list[Column]) -> dict[Any, Any]:
        """What Servers make of these, by Client, Tab and Type: of Types that are not folded here the events, sorted."""
        found: dict[Any, Any] = {}
        for column in columns:
            key = column.client, column.tab, column.type
            handler = HANDLERS.get(column.type)
            if handler is None or isinstance(column.values, list):
                values = column.values if isinstance(column.values, list) else np.frombuffer(column.made()).tolist()  # type: ignore[arg-type]
                found.setdefault((*key, "events"), []).extend(zip(np.frombuffer(column.times).tolist(), map(repr, values), strict=True))
                continue
            states = found.get(key) or handler.load_array([b""])
            if isinstance(column.values, AtEdge):
                states = handler.merge_array(states, np.zeros(1, np.int64), [column.values.dump], 1100.0)
            else:
                times, values = np.frombuffer(column.times), np.frombuffer(column.made())  # type: ignore[arg-type]
                states = handler.fold_array(states, np.zeros(len(times), np.int64), times, values, 1100.0)
            found[key] = states
        for key, states in found.items():
            if len(key) == 3:
                handler = HANDLERS[key[2]]
                found[key] = handler.project(handler.dump_array(states) + [b""] * handler.further_parts, 1100.0)
            else:
                found[key] = sorted(states)
        return found

    @examples(15)
    @given(st.integers(0, 2**32))
    def test_folded_or_not_the_states_the_sums_and_the_counts_are_the_same(self, seed: int) -> None:
        chance = np.random.default_rng(seed)
        types = ["CounterGroup", "PercentileGroup", "TotalsCounter", "PercentileCounter", "Gauge", "Buffer"]
        worlds = [self.world(True), self.world(False)]
        self.assertEqual([world.pump.edge.is_folding for world in worlds], [True, False])
        for _ in range(2):
            for number in range(2):
                tabs = [(f"tab{tab}", types[int(chance.integers(len(types)))]) for tab in range(6)]
                base, span = float(chance.choice([1000.0, 0.0, 4000.0])), float(chance.choice([1.0, 30.0, 90.0]))
                for _ in range(int(chance.integers(0, 900))):
                    name, type = tabs[min(int(chance.exponential(2.0)), 5)]
                    time, value = base + span * float(chance.random()), float(chance.choice([1.0, 2.5, -3.0, 7.0, 0.0]))
                    listed: Any = int(value) + 1 if chance.random() < 0.001 and type != "Gauge" else value
                    for world in worlds:
                        producer = world.producers[number]
                        producer.record(producer.tab(f"{name}.{type}.{number}", type), listed, time)
            for world in worlds:
                world.tick()
        folded, plain = map(self.columns, worlds)
        self.assertEqual([any(isinstance(column.values, AtEdge) for column in some) for some in (folded, plain)][1], False)
        self.assertEqual(sum(one.weight for one in folded), sum(one.weight for one in plain))
        one_way, other = self.shown(folded), self.shown(plain)
        self.assertEqual(one_way.keys(), other.keys())
        for key in one_way:
            self.assertEqual(one_way[key], other[key], key)
        self.assertEqual(worlds[0].keeper.books.recorded, worlds[1].keeper.books.recorded)
        sums = [self.sums(world) for world in worlds]
        self.assertEqual(sums[0].keys(), sums[1].keys())
        for key in sums[0]:
            np.testing.assert_allclose(sums[0][key], sums[1][key], rtol=1e-9)

    def sums(self, world: World) -> dict[Any, list[float]]:
        """What the Agent shows of Tabs to whoever scrapes it."""
        return {key: [tab.events, tab.total, tab.least] for key, tab in world.pump.tallies._all()}

    def test_what_is_read_again_because_it_was_too_much_for_a_group_or_has_no_room_counts_as_folded_once_or_not_at_all(self) -> None:
        world = self.world(True)
        first = world.producers[0]
        for times in (1, 2):
            for _ in range(200):
                first.record(first.tab("hot", "CounterGroup"), 2.0, 1000.0)
            sizes = iter([2**40])
            with mock.patch.object(pump, "group_bytes", lambda batches, sizes=sizes: next(sizes, 0)):
                world.tick()
            self.assertEqual(
                (world.keeper.books.recorded, world.pump.edge.events, world.pump.edge.states), (200 * times, 200 * times, times)
            )
        for _ in range(200):
            first.record(first.tab("hot", "CounterGroup"), 2.0, 1000.0)
        with mock.patch.object(world.keeper, "make_room", return_value=False):
            world.tick()
        self.assertEqual((world.keeper.books.totals(), world.pump.edge.events), ({"spool_full": 200}, 400))

    def test_a_hot_tab_is_a_state_and_what_is_beside_it_are_events_in_the_order_of_their_rings(self) -> None:
        world = self.world(True)
        first, second = world.producers
        for number in range(300):
            first.record(first.tab("hot", "CounterGroup"), 2.0, 1000.0 + number / 100)
            if number % 20 == 0:
                first.record(first.tab("cold", "CounterGroup"), float(number), 1000.0)
                second.record(second.tab("hot", "CounterGroup"), 1.0, 1000.0)
                second.record(second.tab("words", "Buffer"), f"word {number}", 1000.0)
        world.tick()
        columns = {(one.client, one.tab): one for one in self.columns(world)}
        hot = columns.pop(("web/0", "hot"))
        assert isinstance(hot.values, AtEdge)
        self.assertEqual((hot.weight, struct.unpack("<d", hot.times)[0], hot.values.until), (300, 1000.0, 1002.99))
        self.assertEqual(
            {key: one.events for key, one in columns.items()}, {("web/0", "cold"): 15, ("web/1", "hot"): 15, ("web/1", "words"): 15}
        )
        self.assertEqual(np.frombuffer(columns["web/0", "cold"].made()).tolist(), [20.0 * place for place in range(15)])  # type: ignore[arg-type]
        self.assertEqual(columns["web/1", "words"].made(), [f"word {20 * place}" for place in range(15)])
        self.assertEqual((world.pump.edge.events, world.pump.edge.states, world.keeper.books.recorded), (300, 1, 345))
        self.assertEqual(world.keeper.unacknowledged, len({bucket_of(tab, BUCKETS) for tab in ("hot", "cold", "words")}))

    def test_a_column_with_a_value_that_is_no_float_goes_whole_as_a_list(self) -> None:
        world = self.world(True)
        producer = world.producers[0]
        for number in range(100):
            producer.record(producer.tab("hot", "CounterGroup"), [2.0, 3] if number == 50 else 1.0, 1000.0)
        world.tick()
        [column] = self.columns(world)
        self.assertEqual((column.events, column.made()[50]), (100, [2.0, 3]))

    def test_what_goes_as_states_takes_less_of_what_a_client_may_use(self) -> None:
        taken = []
        for is_folding in (True, False):
            world = self.world(is_folding)
            producer = world.producers[0]
            for _ in range(1000):
                producer.record(producer.tab("hot", "CounterGroup"), 1.0, 1000.0)
            world.pump.rings.scan((), world.now)
            drain: Any = world.pump._drain
            drained = drain.run([(ring, False) for ring in world.pump.rings.open.values()])
            taken.append(drained.taken["web/0"])
            self.assertEqual(drained.found, 1000)
        self.assertLess(taken[0], taken[1] / 20)
        self.assertGreater(taken[0], 0)


class Cutting(SynchronousTestCase):
    def test_states_are_cut_into_batches_within_the_bounds_and_each_is_in_one(self) -> None:
        times = struct.pack("<d", 1000.0)
        for count, size in ((MAX_BATCH_COLUMNS, 100), (MAX_BATCH_COLUMNS + 1, 100), (100, 32_000), (5, 100)):
            columns = [Column("web/1", f"tab{n}", "CounterGroup", times, AtEdge(1, bytes(size), 1001.0), n + 1) for n in range(count)]
            columns.append(Column("web/1", "plain", "CounterGroup", times * 3, times * 3))
            sections = sections_of(columns)
            self.assertEqual(unpack(sections), columns)
            batches = encode({1: sections}, b"s" * 16, {1: 7}, at(5.0), weights={})
            found = [column for batch in batches for column in decode_batch(bytes(batch.content)).columns]
            self.assertEqual(found, columns)
            self.assertTrue(all(len(batch.content) <= MAX_BATCH_BYTES for batch in batches))
            self.assertEqual(sum(batch.events for batch in batches), sum(column.weight for column in columns))
            self.assertEqual([batch.id.number for batch in batches], list(range(8, 8 + len(batches))))


class Producing(SynchronousTestCase):
    """Many rings under one Client's name, and Tabs beyond the caps."""

    def test_overflowing_tabs_are_folded_under_the_name_that_sums_them(self) -> None:
        directory = tempfile.mkdtemp(dir="/dev/shm")
        self.addCleanup(shutil.rmtree, directory)
        world = World(directory, edge=folding())
        self.addCleanup(world.end_producers)
        self.addCleanup(world.die)
        world.rings.admission.change(world.rings.admission.caps._replace(client_tabs=2))
        producer = Producer(AGENT, "web/7", 65_536, world.shm)
        self.addCleanup(producer.die)
        for tab in range(6):
            for _ in range(50):
                producer.record(producer.tab(f'hits{{page="{tab}"}}', "CounterGroup"), 1.0, 1000.0)
        world.tick()
        counts: Counter[str] = Counter()
        for group in world.keeper.outbox.groups():
            for stored in group.batches:
                for column in decode_batch(world.keeper.outbox.read(stored.position, stored.length)).columns:
                    assert isinstance(column, Column) and isinstance(column.values, AtEdge), column
                    counts[column.tab] += column.weight
        self.assertEqual(sum(counts.values()), 300)
        self.assertEqual(len(counts), 3, counts)
        self.assertEqual(sorted(counts.values()), [50, 50, 200])
