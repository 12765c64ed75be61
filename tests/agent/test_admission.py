"""Too many Tabs of one Client: their sums stay right under one name, the others have theirs, and nobody waits for it."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from typing import Any
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.agent import admission, books, directory, pump
from taba.agent import drain as draining
from taba.agent import keeper as keeping
from taba.agent.admission import MAX_OVERFLOWS, Admission
from taba.agent.directory import MAX_FRESH_TABS
from taba.agent.drain import DRAIN_TABS, MIN_SHARE, fair_share
from taba.agent.fairness import MAX_DROPPERS, OTHERS, Drops, Reserve, Rest
from taba.agent.fairness import MAX_SHOWN as MAX_DROPPERS_SHOWN
from taba.agent.problems import LOSS_SHOWN_SECONDS, Problems, Space
from taba.agent.reader import Ring
from taba.caps import DEFAULT_AGENT_CLIENTS, DEFAULT_CLIENT_TABS, MAX_CAP, Caps, read_caps
from taba.names import OVERFLOW_CLIENT, canonical_name

from ..examples import examples
from .moments import at
from .producers import Producer
from .world import AGENT, World

OVER = 'bids{overflow="true"}'


def label(number: int, base: str = "bids") -> str:
    return f'{base}{{user="{number}"}}'


class Deciding(SynchronousTestCase):
    """Which Tabs go under their own names."""

    def make(self, *caps: int, clients: int = 1) -> Admission:
        made = Admission(Caps(*caps))
        for number in range(clients):
            made.begin(f"web/{number}")
        return made

    def test_as_many_as_a_client_may_have_and_one_more(self) -> None:
        made = self.make(3, 100, 100)
        self.assertEqual([made.admit("web/0", label(number)) for number in range(4)], [True] * 3 + [False])
        self.assertTrue(made.admit("web/0", label(0)))  # in another of its rings
        self.assertEqual(made.overflow("web/0", "bids", "CounterGroup"), OVER)

    def test_as_many_as_an_agent_may_have_of_all_clients_and_one_more(self) -> None:
        made = self.make(3, 5, 100, clients=2)
        self.assertEqual([made.admit(f"web/{number % 2}", label(number)) for number in range(6)], [True] * 5 + [False])
        made.end("web/0", [label(0), label(2), label(4)], made._clients["web/0"].bases)
        self.assertTrue(made.admit("web/1", label(5)))  # what no ring names makes room
        self.assertEqual(made.total, 3)
        made.begin("web/0")
        self.assertTrue(made.admit("web/0", label(0)))

    def test_new_ones_come_by_the_second_once_a_client_has_named_as_many_as_it_may(self) -> None:
        made = self.make(10, 1000, 2)
        for number in range(10):
            self.assertTrue(made.admit("web/0", label(number)))
        made.end("web/0", [label(number) for number in range(10)], made._clients["web/0"].bases)
        made.begin("web/0")
        self.assertFalse(made.admit("web/0", label(10)))
        self.assertTrue(made.admit("web/0", label(9)))  # it was known by that
        made.tick(1.0)
        self.assertEqual([made.admit("web/0", label(number)) for number in range(11, 14)], [True, True, False])
        made.tick(1e6)
        self.assertEqual(sum(made.admit("web/0", label(number)) for number in range(20, 50)), 10 - 3)  # never more than fit

    def test_as_many_more_may_be_named_as_a_cap_is_higher_and_what_was_named_counts_for_a_lower_one(self) -> None:
        made = self.make(3, 1000, 1)
        self.assertEqual(sum(made.admit("web/0", label(number)) for number in range(10)), 3)
        made.change(Caps(8, 1000, 1))
        self.assertEqual(sum(made.admit("web/0", label(number)) for number in range(20)) - 3, 5)
        made.change(Caps(5, 1000, 1))
        made.end("web/0", [label(number) for number in range(8)], made._clients["web/0"].bases)
        made.begin("web/0")
        for number in range(8):
            made.admit("web/0", label(number))  # it is known by these
        for caps in (Caps(8, 1000, 1), Caps(5, 1000, 1), Caps(8, 1000, 1)):  # whoever tells them in turn
            made.change(caps)
            self.assertFalse(made.admit("web/0", label(100)))
        made.begin("web/1")
        self.assertEqual(sum(made.admit("web/1", label(number)) for number in range(20)), 8)

    def test_as_many_clients_as_an_agent_may_have_and_one_more_and_who_is_too_many_takes_no_place(self) -> None:
        made = Admission(Caps(agent_clients=3, new_clients=1))
        for number in range(5):
            made.begin(f"web/{number}")
        ids = [made.client_of(f"web/{number}") for number in range(5)]
        self.assertEqual((ids, made.clients), (["web/0", "web/1", "web/2", OVERFLOW_CLIENT, OVERFLOW_CLIENT], 3))
        self.assertFalse(made.admit("web/3", "hits"))
        self.assertEqual(made.overflow("web/3", "hits", "CounterGroup"), 'hits{overflow="true"}')
        for number in range(2, 5):
            made.end(f"web/{number}", [], Counter())
        self.assertEqual(set(made._clients), {"web/0", "web/1", "web/2"})
        made.tick(1.0)
        made.begin("web/3")  # the one that has no ring makes room
        self.assertEqual((made.client_of("web/3"), set(made._clients), made.clients), ("web/3", {"web/0", "web/1", "web/3"}, 3))
        made.begin("web/0")
        self.assertEqual(made.client_of("web/0"), "web/0")  # it is known

    def test_new_clients_come_by_the_second_once_there_were_as_many_as_may_be(self) -> None:
        made = Admission(Caps(agent_clients=10, new_clients=2))

        def own(first: int, last: int) -> int:
            found = 0
            for number in range(first, last):
                made.begin(f"job/{number}")
                found += made.client_of(f"job/{number}") != OVERFLOW_CLIENT
                made.end(f"job/{number}", [], Counter())
            return found

        self.assertEqual((own(0, 20), made.clients), (10, 10))
        self.assertEqual((own(0, 10), own(20, 25)), (10, 0))  # who was known costs nothing
        made.tick(1.0)
        self.assertEqual((own(30, 40), made.clients), (2, 10))
        made.tick(1e6)
        self.assertEqual(own(50, 80), 10)
        made.change(Caps(agent_clients=13, new_clients=2))
        self.assertEqual((own(100, 120), made.clients), (3, 13))

    def test_all_clients_that_are_too_many_share_their_overflow_tabs_for_as_long_as_the_agent_runs(self) -> None:
        made = Admission(Caps(agent_clients=1))
        made.begin("web/0")
        found = []
        for number in range(MAX_OVERFLOWS + 1):
            made.begin(f"job/{number}")
            found.append(made.overflow(f"job/{number}", f"base{number}", "CounterGroup"))
            made.end(f"job/{number}", [], Counter())
        self.assertEqual((found[-2], found[-1]), (f'base{MAX_OVERFLOWS - 1}{{overflow="true"}}', None))
        self.assertIsNotNone(made.overflow("web/0", "base", "CounterGroup"))

    def test_a_base_name_too_many_has_no_overflow_tab(self) -> None:
        made = self.make()
        found = [made.overflow("web/0", f"base{number}", "CounterGroup") for number in range(MAX_OVERFLOWS + 1)]
        self.assertEqual((found[-2], found[-1]), (f'base{MAX_OVERFLOWS - 1}{{overflow="true"}}', None))
        self.assertIsNotNone(made.overflow("web/0", "base0", "CounterGroup"))
        self.assertIsNone(made.overflow("web/0", "base0", "Gauge"))  # of another Type it is another one

    def test_clients_that_come_and_go_are_forgotten_in_their_turn(self) -> None:
        made = self.make()
        made.admit("web/0", "stays")
        for number in range(1, DEFAULT_AGENT_CLIENTS + 50):
            made.tick(float(number))
            made.begin(f"web/{number}")
            made.admit(f"web/{number}", "goes")
            made.end(f"web/{number}", ["goes"], made._clients[f"web/{number}"].bases)
        self.assertEqual((len(made._clients), made.total), (DEFAULT_AGENT_CLIENTS, DEFAULT_AGENT_CLIENTS))
        self.assertIn("web/0", made._clients)

    @given(
        st.lists(st.tuples(st.sampled_from(("open", "close", "name", "wait")), st.integers(0, 2), st.integers(0, 12)), max_size=80),
        st.integers(1, 6),
        st.integers(1, 12),
    )
    @examples(100)
    def test_whatever_comes_and_goes_no_bound_is_passed_and_counts_are_right(
        self, steps: list[tuple[str, int, int]], client_tabs: int, agent_tabs: int
    ) -> None:
        made, now = Admission(Caps(client_tabs, agent_tabs, 1)), 0.0
        rings: list[tuple[str, list[str], Any]] = []
        for step, who, number in steps:
            client = f"web/{who}"
            own = [ring for ring in rings if ring[0] == client]
            if step == "open":
                made.begin(client)
                rings.append((client, [], type(made._clients[client].bases)()))
            elif step == "close" and own:
                rings.remove(own[0])
                made.end(*own[0])
            elif step == "name" and own and label(number) not in own[-1][1]:
                if made.admit(client, label(number)):
                    own[-1][1].append(label(number))
                else:
                    own[-1][2]["bids"] += 1
                    made.count(client, "bids")
            elif step == "wait":
                now += number
                made.tick(now)
            known = {name: set(of.names) for name, of in made._clients.items()}
            self.assertTrue(all(len(names) <= client_tabs for names in known.values()))
            self.assertTrue(sum(map(len, known.values())) == made.total <= agent_tabs)
            for name, names, _ in rings:
                self.assertLessEqual(set(names), known[name])
            summed = {one.client: one.tabs for one in made.overflowing()}
            self.assertEqual(sum(summed.values()), sum(sum(bases.values()) for _, _, bases in rings))

    def test_caps_are_what_a_server_tells_or_the_usual_ones_and_never_nonsense(self) -> None:
        self.assertEqual(read_caps(None), Caps())
        self.assertEqual(read_caps({"client_tabs": 1, "agent_tabs": MAX_CAP, "more": "x"}), Caps(1, MAX_CAP))
        self.assertEqual(read_caps(Caps(1, 2, 3, 4, 5)._asdict()), Caps(1, 2, 3, 4, 5))
        bad = (0, -1, MAX_CAP + 1, 1.0, True, None, "1")
        for told in ([], "x", *({name: cap} for name in ("client_tabs", "agent_clients") for cap in bad)):
            with self.assertRaises(ValueError):
                read_caps(told)


class Shares(SynchronousTestCase):
    def test_who_has_few_is_read_whole_and_the_others_share_what_is_left(self) -> None:
        self.assertEqual(fair_share([], 100_000), 100_000)
        self.assertEqual(fair_share([50_000, 50_000], 100_000), 100_000)
        self.assertEqual(fair_share([50_000, 50_001], 100_000), 50_000)
        self.assertEqual(fair_share([10_000, 0, 1_000_000, 1_000_000], 100_000), 45_000)
        self.assertEqual(fair_share([10**9] * 4096, 100_000), MIN_SHARE)


class Hosted(SynchronousTestCase):
    """With rings, an outbox and a store."""

    spool_bytes = 1 << 30
    outbox_bytes = 8 << 20

    def setUp(self) -> None:
        directory = tempfile.mkdtemp(dir="/dev/shm")
        self.addCleanup(shutil.rmtree, directory)
        world = self.world = World(directory, outbox_bytes=self.outbox_bytes, spool_bytes=self.spool_bytes)
        self.addCleanup(world.end_producers)
        self.addCleanup(world.die)
        self.looking = Problems(world.keeper, world.pump, world.dispatch, world.shm, lambda: Space(0, 0), world.now)

    def client(self, size: int = 1 << 20, name: str = "web/flood") -> Producer:
        producer = Producer(AGENT, name, size, self.world.shm)
        self.world.producers.append(producer)
        return producer

    def cap(self, *caps: int) -> None:
        self.world.rings.admission.caps = Caps(*caps)

    def drain(self) -> None:
        for _ in range(50):
            self.world.tick()
            self.world.send()

    def sums(self, client: str = "web/flood") -> dict[str, float]:
        events = self.world.store.events.items()
        return {tab: sum(value for value in values if isinstance(value, float)) for (who, tab), values in events if who == client}

    def problems(self) -> list[str]:
        return list(self.looking.look(self.world.now, {}).values())


class Flooding(Hosted):
    """Names without end."""

    def test_beyond_the_cap_sums_stay_right_per_base_name_in_order_and_a_sentence_names_the_client(self) -> None:
        self.cap(10, 1000, 1)
        producer = self.client()
        for number in range(100):
            producer.record(producer.tab(label(number % 50)), float(number))
            producer.record(producer.tab(label(number % 5, "clicks"), "PercentileGroup"), 1.0)
        producer.record(producer.tab(label(49)), "no number")
        self.drain()
        sums = {tab: value for tab, value in self.sums().items() if not tab.startswith("clicks") and tab != OVER}
        self.assertEqual(sums, {label(number): 2.0 * number + 50 for number in range(5)})
        over = self.world.store.events["web/flood", OVER]
        self.assertEqual(over, [*[float(number) for number in range(5, 50)], *[float(number) for number in range(55, 100)], "no number"])
        self.assertEqual(self.sums()["clicks" + '{user="4"}'], 20.0)
        self.assertEqual((self.world.keeper.books.recorded, self.world.keeper.books.totals()), (201, {}))
        (sentence,) = self.problems()
        self.assertIn("Client web/flood names more than 10 Tabs at once (--max-client-tabs): 45 Tabs do not go under their own", sentence)
        self.assertIn(f"names, 45 are summed up, most of them in {OVER}; look", sentence)
        self.assertIn("raise that option of the Servers and,", sentence)
        producer.die()
        self.drain()
        self.assertEqual(self.problems(), [sentence])  # also of who came and went
        self.world.now += LOSS_SHOWN_SECONDS
        self.assertEqual(self.problems(), [])

    def test_of_clients_without_end_sums_stay_right_and_nobody_is_told_of_one_by_one(self) -> None:
        world = self.world
        world.rings.admission.change(Caps(agent_clients=2, new_clients=1))
        world.rings.admission._new = 2.0
        producers = [self.client(65_536, f"job/{number}") for number in range(5)]
        for producer in producers:
            for _ in range(3):
                producer.record(producer.tab("hits"), 2.0)
            producer.record(producer.tab("busy", "UpDown", has_cell=True), 1.0)
        self.drain()
        own = {client for client, tab in world.store.events if tab == "hits"}
        self.assertEqual(len(own), 2)
        self.assertEqual(self.sums(OVERFLOW_CLIENT), {'hits{overflow="true"}': 18.0})
        # what heals is decided on by its ring alone: the next Agent must decide likewise
        self.assertEqual({client for client, tab in world.store.events if tab == "busy"}, {f"job/{number}" for number in range(5)})
        self.assertEqual(world.pump.living(), own)
        self.assertEqual((world.keeper.books.recorded, world.keeper.books.totals()), (20, {}))
        said = [said for said in self.problems() if "(--max-new-clients)" in said or "(--max-agent-clients)" in said]
        under = '1 are summed up under the Client _overflow (but for what goes up and down), most of them in hits{overflow="true"}; have'
        self.assertEqual([under in one for one in said], [True] * 3)
        for producer in producers:
            producer.die()
        self.drain()
        self.assertLessEqual(set(world.pump.deaths.values()), own)
        self.assertEqual(world.rings.admission.clients, 2)

    def test_another_agent_goes_on_and_every_event_is_in_one_tab(self) -> None:
        world = self.world
        self.cap(10, 1000, 1)
        producer = self.client()
        for number in range(60):
            producer.record(producer.tab(label(number % 20)), 1.0)
            if number % 15 == 14:
                world.tick()
                world.die()
                world.born()
                self.cap(10, 1000, 1)
        self.drain()
        self.assertEqual((sum(self.sums().values()), world.keeper.books.recorded, world.keeper.books.totals()), (60.0, 60, {}))

    def test_tabs_that_go_up_and_down_are_summed_up_as_one_that_heals(self) -> None:
        self.patch(admission, "MAX_HEALING", 2)
        world = self.world
        producer = self.client()
        tabs = [producer.tab(label(number, "busy"), "UpDown", has_cell=True) for number in range(6)]
        for place, tab in enumerate(tabs):
            producer.record(tab, float(10**place))
        self.drain()
        producer.owe(tabs[4], 7.0)
        producer.record(tabs[5], -100_000.0)
        self.drain()
        over = 'busy{overflow="true"}'
        rows = world.store.events["web/flood", over]
        self.assertEqual([row[2] for row in rows], [111_100.0, 11_107.0])
        self.assertEqual(sorted(row[1] for row in rows), [row[1] for row in rows])
        self.assertEqual({tab for _, tab in world.store.events if tab.startswith("busy")}, {label(0, "busy"), label(1, "busy"), over})
        (sentence,) = self.problems()
        self.assertIn("names more than 2 Tabs in one process that go up and down: 4 Tabs", sentence)
        self.assertIn("or have more processes name fewer each", sentence)  # there is no option
        self.assertNotIn("option", sentence)
        world.die()
        world.born()
        producer.record(tabs[3], 1.0)
        self.drain()
        rows = world.store.events["web/flood", over]
        self.assertEqual(rows[-1][2], 11_108.0)
        self.assertGreater(rows[-1][1], rows[1][1])
        self.assertEqual((world.keeper.books.recorded, world.keeper.books.totals()), (9, {}))
        producer.die()
        self.drain()
        self.assertEqual({row[2] for row in world.store.events["web/flood", over][-2:]}, {0.0})

    def test_base_names_without_end_are_dropped_counted_and_told(self) -> None:
        self.patch(admission, "MAX_OVERFLOWS", 3)
        self.cap(2, 1000, 1)
        producer = self.client()
        for number in range(10):
            producer.record(producer.tab(label(1, f"base{number}")), 1.0)
            producer.record(producer.tab(f"word{number}", "Buffer"), "text")
        self.drain()
        folded = sum(len(values) for (who, _), values in self.world.store.events.items() if who == "web/flood")
        self.assertEqual((folded, self.world.keeper.books.recorded, self.world.keeper.books.totals()), (5, 20, {"too_many_tabs": 15}))
        (one,) = self.world.rings.admission.overflowing()
        self.assertEqual((one.tabs, one.dropped), (18, 15))
        self.assertTrue(any("18 Tabs do not go under their own names, 3 are summed up" in sentence for sentence in self.problems()))
        self.assertTrue(any("15 have not even a sum" in sentence for sentence in self.problems()))
        self.assertTrue(any("too_many_tabs" in sentence for sentence in self.problems()))

    def test_very_many_names_are_read_a_part_at_a_time_and_cost_the_others_nothing(self) -> None:
        self.patch(directory, "MAX_FRESH_TABS", 100)
        world = self.world
        self.cap(50, 1000, 1)
        producer = self.client(1 << 20)
        for number in range(950):
            producer.record(producer.tab(label(number)), 1.0)
        world.pump._scan(world.now)
        passes = 0
        while sum(self.sums().values()) < 950:
            world.record(2)
            before = world.keeper.books.recorded
            world.now += 2.0
            world.pump.drain(world.now, at(world.now))
            world.keeper.tick(world.now, at(world.now))
            # the others' events, and those of what was named so far: the sums look at the directory, too
            self.assertTrue(2 <= world.keeper.books.recorded - before <= 2 + 200, passes)
            world.send()
            passes += 1
        self.assertTrue(8 <= passes <= 10, passes)
        self.assertEqual((self.sums()[OVER], world.keeper.books.totals()), (900.0, {}))
        self.assertEqual(world.store.folded, world.recorded + 950)

    def test_of_names_that_take_longer_to_look_at_fewer_are_read_at_once(self) -> None:
        labels = {f"k{number:02}": "\\" for number in range(16)}
        shapes: list[tuple[Callable[[int], str], int]] = [
            (label, 1),
            (lambda number: canonical_name(f"t{number}", labels), 17),  # escaped, by their labels
            (lambda number: canonical_name(f"t{number}", {key: "v" * 200 for key in labels}), 14),  # long, by their length
            (lambda number: f't{number}{{b="1",a="2"}}', 3),  # none that is one
        ]
        for place, (name, cost) in enumerate(shapes):
            producer = self.client(1 << 22, f"web/{place}")
            for number in range(120):
                producer.tab(name(number))
            with closing(Ring(os.open(producer.path, os.O_RDWR), producer.name)) as ring:
                took = ring.names.read(100)
                self.assertTrue(100 <= took < 100 + cost, (place, took))
                self.assertEqual(len(ring.directory), -(-100 // cost), place)
                self.assertTrue(ring.names.is_behind)
                while ring.names.read(100):
                    pass
                self.assertEqual((len(ring.directory), ring.names.is_behind), (120, False))
                there = {tab.name for tab in ring.directory if tab is not None}
                self.assertEqual(there, set() if place == 3 else {name(number) for number in range(120)})

    def test_of_rings_that_end_at_once_a_turn_lets_go_of_a_part_and_in_the_end_all_is_let_go_of(self) -> None:
        self.patch(pump, "RETIRED_NAMES", 50)
        self.patch(admission, "MAX_ENDED", 30)
        world = self.world
        self.cap(1000, 1000, 1)
        ending = [self.client(65_536, f"web/{number}") for number in range(3)]
        for producer in ending:
            for number in range(40):
                producer.record(producer.tab(label(number)), 1.0)
        world.tick()
        for producer in ending:
            producer.die()
        made, found = world.rings.admission, []
        for _ in range(12):
            world.tick()
            idle = sum(len(of.idle) for of in made._clients.values())
            found.append((sum(len(ring.directory) == 40 for ring in world.rings.open.values()), idle))
            world.send()
        self.assertEqual(found[-1], (0, 120))
        steps = [after[1] - before[1] for before, after in itertools.pairwise(found)]
        self.assertLessEqual(max(steps), 60, found)  # of the tick before what was left, and its own
        self.assertEqual((world.keeper.books.recorded, world.keeper.books.totals()), (120, {}))

    def test_however_many_name_very_many_each_has_its_turn(self) -> None:
        self.patch(directory, "MAX_FRESH_TABS", 10)
        self.patch(draining, "DRAIN_TABS", 20)
        world = self.world
        floods = [self.client(65_536, f"web/flood{number}") for number in range(6)]
        for producer in floods:
            for number in range(100):
                producer.record(producer.tab(label(number)), 1.0)
        late = self.client(65_536, "web/late")
        world.pump._scan(world.now)
        passes = 0
        late.record(late.tab("late"), 1.0)
        while not any(client == "web/late" for client, _ in world.store.events):
            passes += 1
            self.assertLess(passes, 10)  # as many as there are rings, whatever stands before it
            self.assertTrue(world.pump.drain(world.now, at(world.now)))
            world.send()
        self.drain()
        self.assertEqual((world.keeper.books.recorded, world.keeper.books.totals()), (601, {}))

    def test_however_many_rings_there_are_one_drain_reads_no_more_names_than_it_may(self) -> None:
        self.patch(directory, "MAX_FRESH_TABS", 10)
        self.patch(draining, "DRAIN_TABS", 25)
        world = self.world
        for number in range(6):  # of these nothing is recorded: an earlier Agent may have read it
            producer = self.client(65_536, f"web/{number}")
            tabs = [producer.tab(label(place, "busy"), "UpDown", has_cell=True) for place in range(40)]
            producer.owe(tabs[-1], 1.0)
        world.pump._scan(world.now)
        named = 0
        for _ in range(100):
            world.now += 2.0
            world.pump.drain(world.now, at(world.now))
            known = sum(len(ring.directory) for ring in world.rings.open.values())
            self.assertLessEqual(known - named, 25)
            named = known
        self.assertEqual(named, 240)
        self.assertEqual((world.keeper.books.recorded, world.keeper.books.totals()), (6, {}))

    def test_what_is_owed_for_tabs_of_which_there_are_too_many_is_counted_when_the_ring_goes(self) -> None:
        self.patch(admission, "MAX_HEALING", 1)
        self.patch(directory, "MAX_RING_SUMS", 2)
        producer = self.client()
        tabs = [producer.tab(label(number, "busy"), "UpDown", has_cell=True) for number in range(4)]
        for tab, events in ((tabs[0], 2), (tabs[1], 3), (tabs[2], 4), (tabs[3], 5)):
            for _ in range(events):
                producer.owe(tab, 1.0)
        self.drain()
        self.assertEqual((self.world.keeper.books.recorded, self.world.keeper.books.totals()), (5, {}))
        producer.die()
        self.drain()
        self.assertEqual((self.world.keeper.books.recorded, self.world.keeper.books.totals()), (14, {"too_many_tabs": 9}))
        self.assertEqual(self.world.pump.drops_by_client(), {"web/flood": {"too_many_tabs": 9}})

    def test_what_is_dropped_for_want_of_room_is_as_much_by_client_as_in_all(self) -> None:
        world = self.world
        self.patch(admission, "MAX_OVERFLOWS", 0)
        self.cap(2, 1000, 1)
        producer = self.client()
        busy, bad = producer.tab("busy", "UpDown", has_cell=True), producer.tab("", "CounterGroup")
        for _ in range(5):
            producer.record(producer.tab("bids"), 1.0)
            producer.record(busy, 1.0)
            producer.record(bad, 1.0)
            producer.owe(busy, 1.0)
            producer.owe(busy, 1.0)
            producer.record(producer.tab("asks"), "text")
            producer.record(producer.tab("more"), 1.0)
        world.record(2)
        with mock.patch.object(world.keeper, "make_room", return_value=False):
            world.tick()
        expected = {"malformed": 5, "spool_full": 25, "too_many_tabs": 5}
        self.assertEqual(world.keeper.books.totals(), {**expected, "spool_full": 27})
        by_client = world.pump.drops_by_client()
        self.assertEqual(by_client, {"web/flood": expected, "web/0": {"spool_full": 1}, "web/1": {"spool_full": 1}})

    def test_of_a_process_that_died_every_name_is_read_before_its_ring_goes(self) -> None:
        self.patch(directory, "MAX_FRESH_TABS", 10)
        producer = self.client()
        for number in range(95):
            producer.record(producer.tab(label(number)), 1.0)
        tabs = [producer.tab(f"busy{number}", "UpDown", has_cell=True) for number in range(35)]
        producer.owe(tabs[-1], 5.0)
        producer.die()
        self.drain()
        self.assertEqual((self.world.keeper.books.recorded, self.world.keeper.books.totals()), (96, {}))
        self.assertEqual(sum(value for tab, value in self.sums().items() if tab.startswith("bids")), 95.0)

    def test_names_beyond_all_that_are_looked_at_are_too_many_and_not_malformed(self) -> None:
        self.patch(directory, "MAX_RING_TABS", 20)
        producer = self.client()
        for number in range(25):
            producer.record(producer.tab(label(number)), 1.0)
        self.drain()
        self.assertEqual((self.world.keeper.books.recorded, self.world.keeper.books.totals()), (25, {"too_many_tabs": 5}))

    def test_names_are_read_one_turn_after_the_other_and_not_one_drain_after_the_other(self) -> None:
        self.patch(directory, "MAX_FRESH_TABS", 10)
        self.patch(draining, "DRAIN_TABS", 20)
        world = self.world
        for place in range(10):
            producer = self.client(65_536, f"web/many{place}")
            for number in range(40):
                producer.record(producer.tab(f"t{number}"), 1.0)
        world.now, drains, turns = 10.0, 0, 0
        run = draining.Drain.run

        def counted(*arguments: Any, **named: Any) -> Any:
            nonlocal drains
            drains += 1
            return run(*arguments, **named)

        self.patch(draining.Drain, "run", counted)
        while world.keeper.books.recorded < 400:
            self.assertLess(turns, 30)
            world.now += 0.001  # as long as the pace waits for nothing
            delay = world.pump.tick(world.now, at(world.now))
            turns += 1
            self.assertTrue(delay == 0.0 or world.keeper.books.recorded == 400, turns)
        self.assertLessEqual(drains, 3)  # 400 names in drains of 20 would be 20

    def test_a_ring_that_was_closed_while_its_names_were_read_is_read_no_more_though_another_has_its_name(self) -> None:
        self.patch(directory, "MAX_FRESH_TABS", 10)
        self.patch(draining, "DRAIN_TABS", 10)
        world = self.world
        many, after = self.client(65_536, "web/many"), self.client(65_536, "web/after")
        aside = f"{world.shm}/aside"
        os.rename(after.path, aside)
        for number in range(95):
            many.tab(f"t{number}")
        many.record(0, 1.0)
        after.record(after.tab("after"), 1.0)
        world.now = 10.0
        world.pump.tick(world.now, at(world.now))
        first = world.rings.open[many.name]
        self.assertTrue(first.names.is_behind)
        os.truncate(many.path, 8192)
        world.now += 0.001
        world.pump.tick(world.now, at(world.now))
        self.assertNotIn(many.name, world.rings.open)
        os.rename(aside, many.path)
        others = os.open("/dev/null", os.O_RDONLY)
        self.addCleanup(os.close, others)
        if others != first.fd:  # somebody else's has the number that the closed one had
            self.addCleanup(os.close, os.dup2(others, first.fd))
        world.rings.scan((), world.now, at_once=True)
        second = world.rings.open[many.name]
        world.now += 0.001
        world.pump.tick(world.now, at(world.now))
        os.fstat(first.fd)
        self.assertIs(world.rings.open[many.name], second)

    def test_the_usual_bounds_stand_in_proportion(self) -> None:
        self.assertLess(MAX_FRESH_TABS, DRAIN_TABS)
        self.assertLess(DEFAULT_CLIENT_TABS, directory.MAX_RING_TABS)


class Full(Hosted):
    """No Server takes anything, and the spool nears its bound."""

    spool_bytes = 400_000
    outbox_bytes = 512 * 1024

    def record(self, producer: Producer, events: int) -> int:
        for _ in range(events):
            producer.record(producer.tab("flood"), 1.0)
        return events

    def test_who_floods_is_dropped_in_the_last_part_and_the_others_lose_nothing(self) -> None:
        world = self.world
        flood, recorded = self.client(65_536), 0
        for _ in range(60):
            recorded += self.record(flood, 1500)
            world.record(4)  # of web/0 and web/1
            world.tick()
        dropped = world.keeper.books.totals()
        self.assertEqual((set(dropped), world.keeper.books.recorded), ({"spool_full"}, recorded + world.recorded))
        self.assertTrue(any("dropped as spool_full by Client web/flood: " in sentence for sentence in self.problems()))
        by_client = world.pump.drops_by_client()
        self.assertEqual(by_client, {"web/flood": {"spool_full": dropped["spool_full"]}})
        self.assertGreater(world.spool.free, 0)
        late = flood.tab("late", unit="s")
        flood.record(late, 1.0)
        recorded += 1
        world.tick()
        self.assertNotIn("late", world.pump.meanings._said)  # its events were left out: nobody would hear of it
        for _ in range(40):  # and when Servers take it again all is as before
            world.tick()
            world.send()
        before = world.keeper.books.totals()
        flood.record(late, 1.0)
        recorded += 1
        world.tick()
        self.assertIn("late", world.pump.meanings._said)
        for _ in range(5):
            recorded += self.record(flood, 1500)
            world.tick()
            world.send()
        self.assertEqual(world.keeper.books.totals(), before)
        self.assertEqual(world.store.folded + before["spool_full"], recorded + world.recorded)
        events = sum(len(found) for (client, _), found in world.store.events.items() if client != "web/flood")
        self.assertEqual(events, world.recorded)

    def test_who_floods_gets_no_new_share_with_each_part_that_moves_to_the_spool(self) -> None:
        self.patch(keeping, "MOVE_BYTES", 16 * 1024)  # of an outbox that is far larger than the last part
        world = self.world
        flood, recorded, clears, is_short = self.client(65_536), 0, 0, False
        for _ in range(60):
            recorded += self.record(flood, 1500)
            world.record(4)
            world.tick()
            was, is_short = is_short, world.pump._reserve._is_short
            clears += was and not is_short
        self.assertEqual((is_short, clears), (True, 0))
        dropped = world.keeper.books.totals()
        self.assertEqual((set(dropped), world.keeper.books.recorded), ({"spool_full"}, recorded + world.recorded))
        self.assertEqual(world.pump.drops_by_client(), {"web/flood": {"spool_full": dropped["spool_full"]}})
        for _ in range(60):
            world.tick()
            world.send()
        self.assertEqual(world.store.folded + dropped["spool_full"], recorded + world.recorded)

    def test_what_goes_up_and_down_stays_right_though_its_client_has_spent_its_share(self) -> None:
        world = self.world
        flood = self.client(65_536)
        busy = flood.tab("busy", "UpDown", has_cell=True)
        total = 0.0
        for number in range(60):
            self.record(flood, 1500)
            flood.record(busy, float(number))
            total += number
            world.tick()
        self.assertGreater(world.keeper.books.totals()["spool_full"], 0)
        for _ in range(40):
            world.tick()
            world.send()
        rows = world.store.events["web/flood", "busy"]
        self.assertEqual((max(rows, key=lambda row: row[1])[2], len(rows)), (total, 60))  # each once, whatever was dropped beside it
        folded = sum(len(found) for (_, tab), found in world.store.events.items() if tab != "busy")
        self.assertEqual(folded + 60 + world.keeper.books.totals()["spool_full"], world.keeper.books.recorded)


class Known(SynchronousTestCase):
    def test_shares_are_of_those_who_are_there_and_begin_anew_once_there_is_room(self) -> None:
        reserve = Reserve()
        short = Rest(True, 99, 1000, 100, 0)
        for spent, used in ((frozenset[str](), 49), (frozenset[str](), 1), (frozenset({"a"}), 0)):
            self.assertEqual(reserve.spent(short, ["a", "b", "b"]), spent)
            reserve.use("a", used)
        self.assertEqual(reserve.spent(short, ["a"]), frozenset())  # alone it has all
        reserve.use("a", 50)
        self.assertEqual(reserve.spent(short, ["a"]), {"a"})
        self.assertEqual(reserve.spent(short._replace(is_spooling=False), ["a"]), {"a"})  # all of it moved to the spool just now
        self.assertEqual(reserve.spent(short._replace(left=100), ["a"]), frozenset())
        self.assertEqual(reserve.spent(short._replace(is_spooling=False), ["a"]), frozenset())
        self.assertEqual(reserve.spent(short, ["a"]), frozenset())

    def test_shares_are_of_the_room_that_there_is_and_what_servers_take_may_be_recorded_again(self) -> None:
        reserve, short = Reserve(), Rest(True, 0, 40, 100, 7)
        self.assertEqual(reserve.spent(short, ["a", "b"]), frozenset())
        reserve.use("a", 19)
        self.assertEqual(reserve.spent(short._replace(room=21), ["a", "b"]), frozenset())
        reserve.use("a", 1)
        self.assertEqual(reserve.spent(short._replace(room=20), ["a", "b"]), {"a"})
        self.assertEqual(reserve.spent(short._replace(room=21, taken=8), ["a", "b"]), frozenset())
        reserve.use("a", 1)
        self.assertEqual(reserve.spent(short._replace(room=20, taken=8), ["a", "b"]), {"a"})

    def test_as_many_clients_as_may_be_known_are_and_one_more_is_one_of_the_others(self) -> None:
        drops = Drops()
        for number in range(MAX_DROPPERS + 1):
            drops.count(f"web/{number}", {"ring_full": number + 1, "malformed": 0})
        drops.count("web/none", {"malformed": 0})
        worst = drops.worst({"web/7": {"no_ring": 10**6}})
        self.assertEqual((len(worst), worst["web/7"]), (MAX_DROPPERS_SHOWN, {"no_ring": 10**6, "ring_full": 8}))
        self.assertEqual(len(drops._counts), MAX_DROPPERS + 1)
        self.assertEqual(drops._counts[OTHERS], {"ring_full": MAX_DROPPERS + 1, "malformed": 0})


class Held(Hosted):
    def test_as_many_thin_batches_as_may_wait_in_memory_do_and_more_move_to_the_spool(self) -> None:
        self.patch(keeping, "MAX_PENDING_BATCHES", 12)
        world = self.world
        while world.keeper.unacknowledged < 12:
            world.record(5)
            world.tick()
        self.assertEqual((world.keeper.unacknowledged, world.keeper.moves), (12, 0))
        world.record(5)
        world.tick()
        world.tick()
        self.assertEqual((world.keeper.unacknowledged, world.keeper.moves), (0, 1))
        self.drain()
        self.assertEqual((world.store.folded, world.keeper.books.totals()), (world.recorded, {}))

    def test_as_many_thin_batches_as_may_be_retained_are_and_the_oldest_are_given_up_for_more(self) -> None:
        self.patch(books, "MAX_RETAINED_BATCHES", 9)
        world = self.world
        for _ in range(6):
            world.record(5)
            world.tick()
            world.send()
        world.tick()
        self.assertEqual((world.keeper.books.retained_batches, world.keeper.books.given_up), (9, 9))
