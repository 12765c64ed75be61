"""What an Agent shows of its host's Tabs: sums of what rings held, from its start on."""

from __future__ import annotations

import math
import shutil
import tempfile
from typing import Any, cast

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase

from taba.agent import tallies
from taba.agent.directory import Tab
from taba.agent.tallies import Plain, Tallies, tallies_of, tally_of
from taba.batch import Meaning
from taba.exposition import writer_for
from taba.handlers.lookup import find_handlers
from taba.matching import simple_matcher
from taba.series import ADDITIVE, DISTRIBUTION, EVENTS, TOTAL
from tests.examples import examples

from .test_keeper import World


class Directory:
    """A ring, as far as its Tabs go."""

    def __init__(self, *tabs: Tab | None):
        self.directory = list(tabs)


def result_of(working: Any) -> Any:
    try:
        working.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits for somebody")


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
    st.sampled_from(["text", [1, 2, 3], [1, 1.5], [True, 2], [2, True], {"a": 1}, None, True, 10**400, [1, 2**60]]),
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
        tally = tally_of(ring, present, counts[present], numbers, boxed, flags)
        for at, place in enumerate(present.tolist()):
            mine = [value for index, value in events if index == place]
            amounts = [pair for value in mine if (pair := self.amount(value)) is not None]
            self.assertEqual(tally.counts[at], sum(times for times, _ in amounts))
            total = math.fsum(times * amount for times, amount in amounts)
            self.assertAlmostEqual(tally.totals[at], total, delta=1e-6 * max(1.0, *(abs(t * a) for t, a in [*amounts, (0, 0.0)])))
            least = 0.0 if tally.least is None else float(tally.least[at])
            self.assertEqual(min(0.0, least), min([0.0, *(amount for _, amount in amounts)]))

    def test_readings_that_are_summed_in_one_go_are_summed_each_by_itself(self) -> None:
        rings: list[Any] = [Directory(*[Tab(f"t{place}", "CounterGroup") for place in range(3)]) for _ in range(3)]
        plain = [
            Plain(rings[0], np.array([0, 2]), np.array([1, 2]), np.array([1.0, 2.0, 3.0])),
            Plain(rings[1], np.array([1]), np.array([3]), np.array([-5.0, math.nan, 7.0])),
            Plain(rings[2], np.array([0, 1, 2]), np.array([1, 1, 1]), np.array([1e300, 1.0, 2.0])),
        ]
        for one, tally in zip(plain, tallies_of(plain), strict=True):
            alone = tally_of(one.ring, one.places, one.counts, one.values, None, None)
            self.assertIs(tally.ring, one.ring)
            self.assertEqual((tally.counts.tolist(), tally.totals.tolist()), (alone.counts.tolist(), alone.totals.tolist()))
            least = np.zeros(len(one.places)) if alone.least is None else alone.least
            self.assertEqual(np.minimum(cast(Any, tally.least), 0).tolist(), np.minimum(least, 0).tolist())
        self.assertEqual(list(tallies_of([])), [])

    @staticmethod
    def amount(value: Any) -> tuple[int, float] | None:
        times: Any = 1
        if isinstance(value, list) and len(value) == 2:
            value, times = value
        if type(value) not in (int, float) or type(times) not in (int, float) or not 1 <= times < 2**53 or times % 1:
            return None
        try:
            return (int(times), float(value)) if math.isfinite(float(value)) else None
        except OverflowError:
            return None

    def tallied(self, sums: Tallies, ring: Any, *columns: list[float]) -> None:
        counts = np.array([len(column) for column in columns])
        present = np.flatnonzero(counts)
        numbers = np.array([value for column in columns for value in column])
        sums.add([Plain(ring, present, counts[present], numbers)])

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
        sums.keep([two])
        self.assertEqual(shown(sums)[("hits_total",)], 12.0)
        self.assertEqual(sums.left_out, 1)  # of `late`, for which there is no room
        self.assertNotIn(("late_total",), shown(sums))
        sums.keep([])
        self.assertEqual(shown(sums)[("hits_total",)], 12.0)


class Drained(SynchronousTestCase):
    def test_what_rings_held_is_counted_once_and_through_their_end(self) -> None:
        directory = tempfile.mkdtemp(dir="/dev/shm")
        self.addCleanup(shutil.rmtree, directory)
        world = World(directory)
        self.addCleanup(world.die)
        self.addCleanup(lambda: [producer.die() for producer in world.producers] and None)
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
