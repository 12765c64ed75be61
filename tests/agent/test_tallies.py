"""What an Agent shows of its host's Tabs: sums of what rings held, from its start on."""

from __future__ import annotations

import math
import shutil
import tempfile
import warnings
from collections import Counter
from random import Random
from typing import Any, cast
from unittest import mock

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase

from taba.agent import tallies
from taba.agent.discover import Slots
from taba.agent.entries import Tab
from taba.agent.problems import Problems, Space
from taba.agent.status import describe
from taba.agent.tallies import Sorted, Tallies, lots_of, tally_of
from taba.batch import Meaning
from taba.exposition import writer_for
from taba.handlers.lookup import MAX_TIMES, find_handlers, read_number
from taba.matching import simple_matcher
from taba.series import ADDITIVE, DISTRIBUTION, EVENTS, TOTAL
from tests.examples import examples
from tests.sites import result_of

from .world import World


def of_one(ring: Any, places: Any, counts: Any, values: Any, boxed: Any = None, is_boxed: Any = None) -> Sorted:
    """What a drain of one ring gives."""
    return Sorted([ring], np.zeros(len(places), np.int64), places, counts, values, boxed, is_boxed)


class Directory:
    """A ring, as far as its Tabs go."""

    def __init__(self, *tabs: Tab | None):
        self.directory = list(tabs)


async def breathe() -> None:
    return None


def shown(sums: Tallies, pattern: str = ".*") -> dict[Any, float]:
    """What is scraped, read by Prometheus' own parser."""
    matcher = simple_matcher(pattern)
    assert matcher is not None
    writer = writer_for("application/openmetrics-text; version=1.0.0")
    families = result_of(sums.families(matcher, breathe))
    text = b"".join(map(writer.write, families)) + writer.end
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


values = st.one_of(
    st.floats(-1e9, 1e9),
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.integers(-(2**70), 2**70),
    st.tuples(st.integers(-5, 5), st.integers(-1, 5)).map(list),
    st.sampled_from(["text", [1, 2, 3], [1, 1.5], [True, 2], [2, True], {"a": 1}, None, True, 10**400]),
    st.sampled_from([[1, MAX_TIMES], [1, MAX_TIMES + 1], [1, 2**60], [1, math.nan]]),
)


class Sums(SynchronousTestCase):
    def test_what_an_agent_sums_is_what_handlers_of_these_types_show(self) -> None:
        lookup = find_handlers()
        for type, figures in ADDITIVE.items():
            self.assertEqual(cast(Any, lookup.get(type)).shown, figures)
        others = {type for type in lookup.types if set(getattr(lookup.get(type), "shown", None) or ()) & {TOTAL, EVENTS, DISTRIBUTION}}
        self.assertEqual(others - set(ADDITIVE), {"Cumulative"})  # of which a value is no amount

    @given(st.lists(st.tuples(st.integers(0, 3), values), min_size=1, max_size=60))
    @examples(100)
    def test_a_reading_is_summed_as_its_handlers_count_it(self, events: list[tuple[int, Any]]) -> None:
        events = sorted(events, key=lambda item: item[0])
        ring: Any = Directory(*[Tab(f"t{place}", "CounterGroup") for place in range(4)])
        of = np.array([place for place, _ in events])
        is_boxed = np.array([not isinstance(value, float) for _, value in events])
        numbers = np.array([value if isinstance(value, float) else math.nan for _, value in events])
        boxed = np.empty(len(events), dtype=object)
        boxed[:] = [None if isinstance(value, float) else value for _, value in events]
        counts = np.bincount(of)
        present = np.flatnonzero(counts)
        flags = is_boxed if is_boxed.any() else None
        tally = tally_of(of_one(ring, present, counts[present], numbers, boxed if flags is not None else None, flags))
        for at, place in enumerate(present.tolist()):
            mine = [value for index, value in events if index == place]
            amounts = [pair for value in mine if (pair := self.amount(value)) is not None]
            self.assertEqual(tally.counts[at], sum(times for times, _ in amounts))
            total = math.fsum(times * amount for times, amount in amounts)
            self.assertLessEqual(abs(tally.totals[at] - total), 1e-6 * max(1.0, *(abs(t * a) for t, a in [*amounts, (0, 0.0)])))
            least = 0.0 if tally.least is None else float(tally.least[at])
            self.assertEqual(min(0.0, least), min([0.0, *(amount for _, amount in amounts)]))

    def test_readings_that_are_summed_in_one_go_are_summed_each_by_itself(self) -> None:
        rings: list[Any] = [Directory(*[Tab(f"t{place}", "CounterGroup") for place in range(3)]) for _ in range(3)]
        plain = [
            of_one(rings[0], np.array([0, 2]), np.array([1, 2]), np.array([1.0, 2.0, 3.0])),
            of_one(rings[1], np.array([1]), np.array([3]), np.array([-5.0, math.nan, 7.0])),
            of_one(rings[2], np.array([0, 1, 2]), np.array([1, 1, 1]), np.array([1e300, 1.0, 2.0])),
        ]
        together, alone = Tallies(), Tallies()
        of = np.repeat([0, 1, 2], [len(one.places) for one in plain])
        places, counts, values = (np.concatenate([one[field] for one in plain]) for field in (2, 3, 4))
        together.add([Sorted(rings, of, places, counts, values)])
        alone.add(plain)
        self.assertEqual(shown(together), shown(alone))
        self.assertEqual(
            {key: value for key, value in shown(together).items() if key[0] in ("t0_total", "t1_sum", "t2_total", "t1_events_total")},
            {("t0_total",): 1e300, ("t1_sum",): 3.0, ("t2_total",): 7.0, ("t1_events_total",): 3.0},
        )
        together.add([])
        self.assertEqual(shown(together), shown(alone))

    @staticmethod
    def amount(value: Any) -> tuple[int, float] | None:
        try:
            found = read_number(value, "times")
        except ValueError:
            return None
        amount, times = found if isinstance(found, tuple) else (found, 1.0)
        return (int(times), amount) if math.isfinite(amount) else None

    def tallied(self, sums: Tallies, ring: Any, *columns: list[float]) -> None:
        counts = np.array([len(column) for column in columns])
        present = np.flatnonzero(counts)
        numbers = np.array([value for column in columns for value in column])
        sums.add([of_one(ring, present, counts[present], numbers)])

    def test_names_kinds_and_since_when_are_shown_and_types_that_do_not_add_up_are_not(self) -> None:
        sums = Tallies(since=1000.0)
        ring: Any = Directory(
            Tab('hits{page="/a"}', "CounterGroup"),
            Tab("wait", "PercentileGroup", meaning=Meaning("wait", "seconds", "")),
            Tab("balance", "CounterGroup"),
            Tab("depth", "Gauge"),
            None,
            Tab("taba_problems", "CounterGroup"),
        )
        self.tallied(sums, ring, [1.0, 2.0], [0.5], [3.0, -1.0], [7.0], [1.0], [1.0])
        page = ("page", "/a")
        whole = {
            ("hits_total", page): 3.0,
            ("hits_created", page): 1000.0,
            ("hits_events_total", page): 2.0,
            ("hits_events_created", page): 1000.0,
            ("wait_seconds_count",): 1.0,
            ("wait_seconds_sum",): 0.5,
            ("wait_seconds_created",): 1000.0,
            ("balance_sum",): 2.0,
            ("balance_events_total",): 2.0,
            ("balance_events_created",): 1000.0,
            ("taba_scrape_left_out",): 2.0,
        }
        self.assertEqual(shown(sums), whole)
        parts = {(f"wait_seconds_{part}",) for part in ("count", "sum", "created")}
        self.assertEqual(set(shown(sums, "wait|nothing")), {*parts, ("taba_scrape_left_out",)})

    def ended(self, sums: Tallies, *open: Any) -> None:
        sums.keep(open)
        while sums._waiting:
            sums.move_some()

    def test_rings_of_one_tab_are_summed_also_when_they_are_gone_and_of_two_names_the_first_stays(self) -> None:
        self.patch(tallies, "MAX_GONE", 1)
        sums = Tallies()
        one: Any = Directory(Tab("hits", "CounterGroup"))
        two: Any = Directory(Tab("hits", "CounterGroup"), Tab("hits_total", "CounterGroup"))
        self.tallied(sums, one, [1.0])
        one.directory.append(Tab("late", "TotalsCounter"))
        self.tallied(sums, one, [1.0], [5.0])
        self.tallied(sums, two, [10.0], [100.0])
        before = shown(sums)
        self.assertEqual((before[("hits_total",)], before[("late_total",)], before[("taba_scrape_left_out",)]), (12.0, 5.0, 2.0))
        self.ended(sums, two)
        self.assertEqual(shown(sums)[("hits_total",)], 12.0)
        self.assertEqual((sums.left_out, sums.cut), (1, 1))  # of `late`, for which there is no room
        self.assertNotIn(("late_total",), shown(sums))
        self.ended(sums)
        self.assertEqual(shown(sums)[("hits_total",)], 12.0)

    def test_at_the_bound_all_is_shown_and_one_past_it_a_shared_tab_that_lacks_a_part_is_never_shown_again(self) -> None:
        self.patch(tallies, "MAX_GONE", 2)
        sums = Tallies()
        one, two, three = (Directory(Tab(f"t{number}", "CounterGroup"), Tab("shared", "CounterGroup")) for number in range(3))
        for ring in (one, two):
            self.tallied(sums, ring, [1.0], [10.0])
        self.ended(sums, two)  # t0 and shared: two are kept
        self.assertEqual((sums.kept, sums.cut, shown(sums)[("shared_total",)]), (2, 0, 20.0))
        self.ended(sums)  # t1 is one too many; what is kept of is kept whole
        found = shown(sums)
        self.assertEqual((sums.cut, sums.left_out, found[("shared_total",)], found[("taba_scrape_left_out",)]), (1, 1, 20.0, 0.0))
        late: Any = Directory(Tab("t1", "CounterGroup"), Tab("fresh", "CounterGroup"))
        for ring in (three, late):
            self.tallied(sums, ring, [5.0], [10.0])
        found = shown(sums)
        self.assertNotIn(("t1_total",), found)  # 5 where it was 1 would be no fall, but without its first part it is wrong
        self.assertEqual((found[("shared_total",)], found[("fresh_total",)], found[("t2_total",)]), (30.0, 10.0, 5.0))
        self.assertEqual(found[("taba_scrape_left_out",)], 1.0)
        self.ended(sums, late)  # t2, which nobody else has
        self.assertEqual((shown(sums)[("shared_total",)], sums.cut), (30.0, 2))

    def test_of_tabs_that_two_rings_share_the_sum_is_never_seen_to_fall_at_the_bound(self) -> None:
        self.patch(tallies, "MAX_GONE", 1)
        sums = Tallies()
        full, one, two = Directory(Tab("first", "CounterGroup")), *(Directory(Tab("shared", "CounterGroup")) for _ in range(2))
        for ring in (full, one, two):
            self.tallied(sums, ring, [5.0])
        self.ended(sums, one, two)
        self.assertEqual(shown(sums)[("shared_total",)], 10.0)
        self.ended(sums, two)
        self.assertNotIn(("shared_total",), shown(sums))
        self.tallied(sums, two, [50.0])
        self.assertNotIn(("shared_total",), shown(sums))

    def test_once_too_many_tabs_lack_a_part_only_those_are_shown_of_which_it_is_known_that_they_are_whole(self) -> None:
        self.patch(tallies, "MAX_GONE", 1)
        self.patch(tallies, "MAX_CUT", 2)
        sums = Tallies()
        open: Any = Directory(Tab("kept", "CounterGroup"), Tab("other", "CounterGroup"))
        self.tallied(sums, open, [1.0], [1.0])
        for name, others in (("kept", 1), ("cut0", 1), ("cut1", 0)):
            self.tallied(sums, Directory(Tab(name, "CounterGroup")), [1.0])
            self.ended(sums, open)
            self.assertEqual(("other_total",) in shown(sums), bool(others), name)
        self.assertEqual(shown(sums)[("kept_total",)], 2.0)

    def test_rings_that_end_while_a_scrape_is_written_are_in_it_once(self) -> None:
        self.patch(tallies, "SLICE_TABS", 1)
        for after in range(12):
            sums = Tallies()
            rings: list[Any] = [Directory(Tab("hits", "CounterGroup"), Tab(f"own{number}", "CounterGroup")) for number in range(3)]
            for ring in rings:
                self.tallied(sums, ring, [1.0], [1.0])
            sums.keep(rings[1:])
            turns = 0

            async def turn(sums: Tallies = sums, rings: list[Any] = rings, after: int = after) -> None:
                nonlocal turns
                turns += 1
                if turns == after:
                    sums.keep(rings[2:])
                    self.tallied(sums, Directory(*[Tab(f"n{number}", "CounterGroup") for number in range(100)]), *[[1.0]] * 100)
                if turns > after:
                    sums.keep([])
                    sums.move_some()

            matcher = simple_matcher("hits|own.*")
            assert matcher is not None
            families = {family.name: family.points[0].value for family in result_of(sums.families(matcher, turn))}
            self.assertEqual([families[name] for name in ("hits_total", "own0_total", "own1_total", "own2_total")], [3, 1, 1, 1])

    def test_what_rings_leave_is_kept_and_sorted_some_in_each_turn_whatever_ends_at_once(self) -> None:
        self.patch(tallies, "SLICE_TABS", 10)
        self.patch(tallies, "SORTED_TABS", 10)
        sums = Tallies()
        for number in range(5):
            ring = Directory(*[Tab(f"t{place:03}.{number}", "CounterGroup") for place in range(200)])
            self.tallied(sums, ring, *[[1.0]] * 200)
        parsed: list[int] = []
        original = tallies._tabs_of

        def counting(directory: Any, columns: Any, places: Any) -> Any:
            for item in original(directory, columns, places):
                parsed.append(1)
                yield item

        self.patch(tallies, "_tabs_of", counting)
        sums.keep([])
        self.assertEqual(len(parsed), 0)
        ticks = 0
        while sums._waiting:
            before = len(parsed)
            sums.move_some()
            ticks += 1
            self.assertLessEqual(len(parsed) - before, max(10, 1000 // tallies.MOVED_PART))
        self.assertEqual((sums.kept, len(parsed)), (1000, 1000))
        most: list[int] = []

        def sorting(items: Any) -> list[Any]:
            found = sorted(items)
            most.append(len(found))
            return found

        counted = mock.patch.object(tallies, "sorted", sorting, create=True)
        turns: list[int] = []

        async def turn() -> None:
            turns.append(1)

        matcher = simple_matcher(".*")
        assert matcher is not None
        with counted:
            names = [family.name for family in result_of(sums.families(matcher, turn))][:-1]
        self.assertEqual((names, len(names)), (sorted(names), 2000))
        self.assertLessEqual(max(len_ for len_ in most if len_ > 3), 10)
        self.assertGreaterEqual(len(turns), 3 * 1000 // 10)

    def test_a_large_family_is_written_in_lots_of_which_no_line_is_elsewhere(self) -> None:
        sums = Tallies(since=5.0)
        tabs = [
            Tab(f'{name}{{page="{page}"}}', type)
            for page in range(7)
            for name, type in (("hits", "CounterGroup"), ("wait", "PercentileGroup"))
        ]
        self.tallied(sums, Directory(*tabs), *[[1.0, 2.0]] * len(tabs))
        matcher = simple_matcher(".*")
        assert matcher is not None
        families = result_of(sums.families(matcher, breathe))
        for accept, openmetrics in (("application/openmetrics-text; version=1.0.0", True), ("text/plain", False)):
            writer = writer_for(accept)
            self.assertEqual(bool(writer.end), openmetrics)
            for most in (3, 7, 1000):
                self.patch(tallies, "LOT_POINTS", most)
                lots = [lot for family in families for lot in lots_of(family, not writer.end)]
                self.assertLessEqual(max(len(lot.points) for lot, _ in lots), most)
                text = b"".join([*(writer.write(*lot) for lot in lots), writer.end])
                self.assertEqual(text, b"".join([*map(writer.write, families), writer.end]))

    def test_a_ring_that_names_more_keeps_its_sums_and_the_room_of_rings_that_ended_is_given_back(self) -> None:
        self.patch(tallies, "SPARE_PLACES", 8)
        sums = Tallies()
        stays: Any = Directory(Tab("stays", "CounterGroup"))
        for turn in range(20):
            short: Any = Directory(*[Tab(f"t{place}", "CounterGroup") for place in range(10)])
            stays.directory.append(Tab(f"s{turn}", "CounterGroup"))
            self.tallied(sums, short, *[[1.0]] * 10)
            self.tallied(sums, stays, [1.0], *[[]] * turn, [2.0])
            sums.keep([stays])
            sums.move_some()
            self.assertLessEqual(sums._used, 2 * 64 + 8)
            found = shown(sums)
            self.assertEqual((found[("stays_total",)], found[("t3_total",)]), (turn + 1.0, turn + 1.0))
            self.assertTrue(all(found[(f"s{number}_total",)] == 2.0 for number in range(turn + 1)))

    def test_what_would_make_a_sum_infinite_is_in_none_and_counted(self) -> None:
        ring: Any = Directory(Tab("a", "CounterGroup"), Tab("b", "CounterGroup"), Tab("gauge", "Gauge"))

        def boxed(sums: Tallies, *values: Any) -> None:
            found = np.empty(len(values), dtype=object)
            found[:] = values
            count = np.array([len(values)])
            sums.add([of_one(ring, np.array([0]), count, np.full(len(values), math.nan), found, np.ones(len(values), bool))])

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sums = Tallies()
            boxed(sums, [1e308, 10], [2.0, 3], 4.0)
            self.assertEqual((shown(sums)[("a_total",)], shown(sums)[("a_events_total",)], sums.beyond), (10.0, 4.0, 10))
            boxed(sums, [1e308, 1], 1e308)
            self.assertEqual((shown(sums)[("a_total",)], sums.beyond), (1e308, 11))
            self.tallied(sums, ring, [1e308], [1.0])  # with what was there before it were too much
            self.tallied(sums, ring, [], [1e308, 1e308], [1e308, 1e308])  # each by itself; of a gauge there is no sum
            boxed(sums, [-1e308, 1], [-1e308, 10])
            found = shown(sums)
            tabs = [Tab("level", "Gauge"), Tab("c", "CounterGroup")]
            rings: list[Any] = [Directory(*tabs), Directory(*tabs)]
            before = sums.beyond
            sums.add([of_one(of, np.array([0, 1]), np.array([3, 2]), np.full(5, 1e308)) for of in rings])
            self.assertEqual(sums.beyond - before, 4)
        self.assertEqual((found[("a_sum",)], found[("b_total",)], found[("b_events_total",)], before), (0.0, 1.0, 1.0, 24))


class Drained(SynchronousTestCase):
    def test_what_rings_held_is_counted_once_and_through_their_end(self) -> None:
        directory = tempfile.mkdtemp(dir="/dev/shm")
        self.addCleanup(shutil.rmtree, directory)
        world = World(directory)
        self.addCleanup(world.die)
        self.addCleanup(world.end_producers)
        for _ in range(3):
            world.record(100)
            world.tick()
        found = shown(world.pump.tallies)
        self.assertEqual(sum(value for key, value in found.items() if key[0].endswith("_events_total")), 300.0)
        totals = [value for key, value in found.items() if key[0].endswith("_total") and not key[0].endswith("_events_total")]
        self.assertEqual(sum(totals), sum(range(300)))
        for producer in world.producers:
            producer.die()
        for _ in range(3):
            world.tick()
        self.assertEqual(world.rings.open, {})
        self.assertEqual(shown(world.pump.tallies), found)

    def test_whatever_the_sums_raise_what_was_published_is_read_and_counted_once(self) -> None:
        directory = tempfile.mkdtemp(dir="/dev/shm")
        self.addCleanup(shutil.rmtree, directory)
        world = World(directory)
        self.addCleanup(world.die)
        self.addCleanup(world.end_producers)
        world.record(100)
        with mock.patch.object(world.pump.tallies, "add", side_effect=FloatingPointError):
            self.assertRaises(FloatingPointError, world.tick)
        self.assertEqual(world.keeper.books.recorded, 100)
        for _ in range(3):
            world.tick()
        self.assertEqual(world.keeper.books.recorded, 100)
        world.send()
        self.assertEqual(world.store.folded, 100)

    def test_sums_without_room_are_a_problem_for_who_scrapes_them(self) -> None:
        self.patch(tallies, "MAX_GONE", 1)
        directory = tempfile.mkdtemp(dir="/dev/shm")
        self.addCleanup(shutil.rmtree, directory)
        world = World(directory)
        self.addCleanup(world.die)
        problems = Problems(world.keeper, world.pump, world.dispatch, world.shm, lambda: Space(0, 0), world.now)
        world.record(10)
        world.tick()
        for producer in world.producers:
            producer.die()
        for _ in range(3):
            world.tick()
        self.assertNotIn("sums", problems.look(world.now, {}))
        shown(world.pump.tallies)
        sentence = problems.look(world.now, {})["sums"]
        self.assertIn("4 Tabs are not among the sums", sentence)
        self.assertIn("8 events of others had no room; scrape a Server", sentence)
        told = describe("a", world.keeper, world.pump, [], [], world.now, 0.0, Slots(world.shm))["sums"]
        self.assertEqual((told["kept"], told["cut"], told["left_out"]), (1, 4, {"no_room": 8, "not_finite": 0}))


class Rooms(SynchronousTestCase):
    def test_columns_of_very_many_tabs_grow_without_being_copied(self) -> None:
        class Wide:
            def __init__(self, tabs: int):
                self.directory = range(tabs)

        self.patch(tallies, "FEW_PLACES", 120)
        self.patch(tallies, "MANY_PLACES", 1000)
        sums = Tallies()
        first: Any = Wide(60)
        sums._start(first)
        sums._sums[:, :60] = 7.0
        seen = []
        for tabs in (40, 50, 500, 300, 400):
            sums._start(cast(Any, Wide(tabs)))
            seen.append(sums._sums)
        self.assertEqual([columns.shape[1] for columns in seen], [120, 1000, 1000, 1000, 2000])
        self.assertIs(seen[1], seen[3])
        self.assertEqual(seen[4][:, :60].min(), 7.0)
        self.assertEqual(seen[4][:, 60:].max(), 0.0)

    def test_columns_close_ranks_a_part_at_each_tick_while_others_add_grow_and_end(self) -> None:
        self.patch(tallies, "SPARE_PLACES", 0)
        self.patch(tallies, "FEW_PLACES", 0)
        self.patch(tallies, "MANY_PLACES", 64)
        self.patch(tallies, "CLOSED_PLACES", 5)
        chance, sums = Random(1), Tallies()
        open_rings: dict[Any, list[float]] = {}
        gone: Counter[str] = Counter()
        closed, copied, original = 0, [], tallies._Closing.copy

        def copy(closing: Any, columns: Any, blocks: Any, most: int) -> bool:
            copied.append(most)
            return original(closing, columns, blocks, most)

        self.patch(tallies._Closing, "copy", copy)
        for number in range(3000):
            under_way = sums._closing
            deed = chance.random()
            if deed < 0.1 and len(open_rings) < 12:
                ring: Any = Directory(*[Tab(f"r{number}.t{place}", "CounterGroup") for place in range(chance.randint(1, 20))])
                open_rings[ring] = [0.0] * len(ring.directory)
            elif deed < 0.2 and open_rings:
                ring = chance.choice(list(open_rings))
                more = len(ring.directory)
                ring.directory += [Tab(f"more{number}.t{place}", "CounterGroup") for place in range(more, more + 4)]
                open_rings[ring] += [0.0] * 4
            elif deed < 0.28 and open_rings:
                ring = chance.choice(list(open_rings))
                gone.update({tab.name: value for tab, value in zip(ring.directory, open_rings.pop(ring), strict=True) if value})
                sums.keep(open_rings)
            elif deed < 0.7 and open_rings:
                of = chance.sample(list(open_rings), chance.randint(1, len(open_rings)))
                places = [chance.randrange(len(ring.directory)) for ring in of]
                for ring, place in zip(of, places, strict=True):
                    open_rings[ring][place] += 2.0
                ones = np.ones(len(of), np.int64)
                sums.add([Sorted(of, np.arange(len(of)), np.array(places), ones, np.full(len(of), 2.0), None, None)])
            else:
                sums.move_some()
            closed += under_way is not None and sums._closing is None
            for ring, values in open_rings.items():
                start, room = sums._blocks.get(ring, (0, 0))
                self.assertEqual(sums._sums[1, start : start + min(room, len(values))].tolist(), values[:room])
                self.assertFalse(any(values[room:]))
        self.assertGreater(closed, 8)
        self.assertGreater(len(copied), 5 * closed)
        self.assertEqual(set(copied) - {0}, {5})  # 0: there was no ring
        while sums._ended:
            sums.move_some()
        self.assertEqual({name: tab.total for (name, _), tab in sums._gone.items()}, gone)
