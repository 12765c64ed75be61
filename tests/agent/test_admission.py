"""Too many Tabs of one Client: their sums stay right under one name, the others have theirs, and nobody waits for it."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from typing import Any
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.agent import admission, directory, pump
from taba.agent import drain as draining
from taba.agent.admission import MAX_OVERFLOWS, Admission
from taba.agent.directory import MAX_FRESH_TABS
from taba.agent.drain import DRAIN_TABS, MIN_SHARE, fair_share
from taba.agent.problems import LOSS_SHOWN_SECONDS
from taba.agent.reader import Ring
from taba.caps import DEFAULT_AGENT_CLIENTS, DEFAULT_CLIENT_TABS, MAX_CAP, Caps, read_caps
from taba.names import OVERFLOW_CLIENT, canonical_name

from ..examples import examples
from .hosted import Hosted
from .moments import at

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

    def test_however_many_name_very_many_no_turn_reads_more_names_than_it_may(self) -> None:
        self.patch(directory, "MAX_FRESH_TABS", 5)
        self.patch(draining, "TURN_TABS", 5)
        self.patch(draining, "DRAIN_TABS", 20)
        world = self.world
        for number in range(6):
            producer = self.client(65_536, f"web/{number}")
            tabs = [producer.tab(label(place, "busy"), "UpDown", has_cell=True) for place in range(40)]
            producer.owe(tabs[-1], 1.0)
            if number % 2:
                producer.record(tabs[-1], 1.0)
        read: list[int] = []
        original = directory.Directory.read

        def reading(own: Any, *arguments: Any) -> int:
            read.append(original(own, *arguments))
            return read[-1]

        self.patch(directory.Directory, "read", reading)
        world.pump._scan(world.now)
        turns = 0
        while world.keeper.books.recorded < 9 or any(ring.names.is_behind for ring in world.rings.open.values()):
            turns += 1
            self.assertLess(turns, 400)
            world.now += 0.1
            read.clear()
            world.pump.tick(world.now, at(world.now))
            self.assertLessEqual(sum(read), 10)  # of what a drain read last, and of sums
        self.assertEqual((world.keeper.books.recorded, world.keeper.books.totals()), (9, {}))

    def test_the_usual_bounds_stand_in_proportion(self) -> None:
        self.assertEqual(draining.TURN_TABS, MAX_FRESH_TABS)
        self.assertLess(MAX_FRESH_TABS, DRAIN_TABS)
        self.assertLess(DEFAULT_CLIENT_TABS, directory.MAX_RING_TABS)
