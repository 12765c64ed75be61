"""An updown's sum is never wrong by a drop: what finds no room is owed, and a new ring begins with all that its process has added up."""

from __future__ import annotations

import math
import os
import random
import threading
from typing import Any

from taba import ring
from taba.bounds import MIN_RING_BYTES
from taba.client.timing import Track
from tests.client.cases import ClientCase, both
from tests.client.reading import Reader, rings


@both
class HealingTests(ClientCase):
    def total(self, reader: Reader, tab: str = "u") -> Any:
        """What the ring says that its process has added up, read to its end."""
        cell = reader.cell(tab)
        return sum(event.value for event in reader.drain(release=False) if event.tab == tab) + cell.owed

    def totals(self) -> list[Any]:
        """Those of all rings, the least first."""
        found = []
        for name in rings(self.agent):
            reader = Reader(name)
            self.addCleanup(reader.close)
            found.append(self.total(reader))
        return sorted(found)

    def test_what_finds_the_ring_full_is_owed_and_not_dropped(self) -> None:
        producer = self.producer(TABA_RING_BYTES=str(MIN_RING_BYTES))
        busy, other = producer.tab("u", "UpDown"), producer.tab("c", "CounterGroup")
        busy.inc(3)
        for _ in range(2047):
            other.inc()
        busy.inc(4)
        busy.dec()
        busy.dec(0.5)
        other.inc()
        reader = self.reader(producer)
        cell = reader.cell("u")
        self.assertEqual((cell.owed, cell.owed_events), (2.5, 3))
        self.assertEqual(self.total(reader), 5.5)
        stats = producer.stats()
        self.assertEqual((stats["recorded"], stats["dropped_by_reason"]), (2048 + 3, {"ring_full": 1}))
        self.assertEqual(int.from_bytes(os.pread(reader.descriptor, 8, ring.OWES_OFFSET), "little"), 3)

    def test_a_new_ring_begins_with_what_every_tab_of_the_process_has_added_up(self) -> None:
        producer = self.producer()
        tabs = [producer.tab(f"u{i}", "UpDown") for i in range(3)]
        for i, tab in enumerate(tabs):
            tab.inc(i)
        self.reader(producer).write(ring.RETIRED_OFFSET, 1)
        for _ in range(1100):  # the pure ring sees it when its chunk ends
            tabs[0].inc()
        reader = self.reader(producer)
        self.assertEqual([self.total(reader, f"u{i}") for i in range(1, 3)], [1.0, 2.0])
        self.assertEqual(self.total(reader, "u0"), 1100.0)

    def test_what_was_added_without_a_ring_is_in_the_next(self) -> None:
        producer = self.producer()
        tab = producer.tab("u", "UpDown")
        tab.inc(5)
        producer.stop()
        tab.dec(2)
        self.assertEqual(producer.stats()["dropped_by_reason"], {"stopped": 1})
        producer.start("again", self.environment)
        tab.inc()
        self.assertEqual(self.total(self.reader(producer)), 4.0)

    def test_values_that_are_no_finite_numbers_are_in_no_sum(self) -> None:
        producer = self.producer()
        tab = producer.tab("u", "UpDown")
        for value in (1.0, math.nan, math.inf, "x", 2**60, 10**400, None):
            tab.record(value)
        self.assertEqual(tab.net, 1.0 + 2**60)
        self.assertEqual(producer.stats()["dropped_by_reason"], {"value_type": 1})

    def test_a_child_has_added_nothing_yet(self) -> None:
        self.run_python(
            """
            import os
            from taba import client
            busy, more = client.updown("u"), client.updown("v")
            busy.inc(5); more.inc(7)
            if os.fork() == 0:
                assert busy.net == 0.0
                busy.inc(2)
                assert busy.net == 2.0
                os._exit(0)
            os.wait()
            busy.inc()
            os._exit(0)
            """
        )
        self.assertEqual(self.totals(), [2.0, 6.0])

    def test_a_child_of_c_code_has_added_nothing_yet(self) -> None:
        self.run_python(
            """
            import ctypes, os
            from taba import client
            busy = client.updown("u")
            busy.inc(5)
            if ctypes.PyDLL(None).fork() == 0:
                busy.dec()
                assert busy.net == -1.0
                os._exit(0)
            os.wait()
            busy.inc()
            os._exit(0)
            """
        )
        self.assertEqual(self.totals(), [-1.0, 6.0])

    def test_track_is_one_more_while_it_lasts_and_one_fewer_however_it_ends(self) -> None:
        producer = self.producer()
        tab = producer.tab("u", "UpDown")

        track: Track = tab.track()

        @track
        def work(fails: bool) -> None:
            self.assertEqual(tab.net, 2.0)
            if fails:
                raise KeyError

        with tab.track():
            work(False)
            self.assertRaises(KeyError, work, True)
            self.assertEqual(tab.net, 1.0)
        self.assertEqual(tab.net, 0.0)
        self.assertEqual([event.value for event in self.events()], [1.0, 1.0, -1.0, 1.0, -1.0, -1.0])

    def test_threads_and_retirings_at_any_moment_leave_the_sum_right(self) -> None:
        producer = self.producer(TABA_RING_BYTES=str(MIN_RING_BYTES))
        tabs = [producer.tab(f"u{i}", "UpDown") for i in range(2)]
        going = threading.Event()

        def work(seed: int) -> None:
            chance = random.Random(seed)
            going.wait()
            for _ in range(4000):
                tabs[chance.randrange(2)].inc(chance.randrange(-3, 4))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        going.set()
        while any(thread.is_alive() for thread in threads):
            name = producer.stats()["ring"]
            if name is not None:
                reader = Reader(name)
                reader.write(ring.RETIRED_OFFSET, 1)
                reader.close()
        expected = [0, 0]
        for seed in range(3):
            chance = random.Random(seed)
            for _ in range(4000):
                expected[chance.randrange(2)] += chance.randrange(-3, 4)
        for _ in range(1100):
            for tab in tabs:
                tab.inc(0)
        self.assertEqual([tab.net for tab in tabs], expected)
        reader = self.reader(producer)
        if not os.pread(reader.descriptor, 8, ring.RETIRED_OFFSET).strip(b"\0"):
            self.assertEqual([self.total(reader, f"u{i}") for i in range(2)], expected)


@both
class LabelsTests(ClientCase):
    def test_labels_give_the_tab_with_them_the_same_object_each_time(self) -> None:
        producer = self.producer()
        hits = producer.tab("hits", "CounterGroup")
        for status in (200, 404, 200):
            hits.labels(route="/cart", status=status).inc()
        self.assertIs(hits.labels(route="/cart", status=200), hits.labels(status=200, route="".join(["/ca", "rt"])))
        self.assertIs(hits.labels(route="/cart").labels(status=404), hits.labels(route="/cart", status=404))
        self.assertEqual(
            [event.tab for event in self.events()],
            ['hits{route="/cart",status="200"}', 'hits{route="/cart",status="404"}', 'hits{route="/cart",status="200"}'],
        )

    def test_bool_and_int_are_taken_as_text_and_are_not_the_same(self) -> None:
        hits = self.producer().tab("hits", "Gauge")
        names = [hits.labels(a=value).name for value in (True, 1, False, 0, "1", 2**70, "true")]
        texts = ["true", "1", "false", "0", "1", str(2**70), "true"]
        self.assertEqual(names, [f'hits{{a="{text}"}}' for text in texts])
        self.assertIs(hits.labels(a=1), hits.labels(a="1"))

    def test_labels_that_break_the_rules_are_an_error_where_they_are_made(self) -> None:
        hits = self.producer().tab("hits", "Gauge")
        refused: tuple[dict[str, Any], ...] = ({"le": "x"}, {"a": 1.5}, {"a": None}, {"a": []}, {"__a": "x"}, {"a b": "x"})
        for bad in (*refused, {f"k{i}": "x" for i in range(17)}):
            self.assertRaises(ValueError, hits.labels, **bad)
        self.assertRaises(TypeError, hits.labels, "x")
        self.assertIs(hits.labels(), hits)

    def test_many_sets_of_labels_are_told_apart(self) -> None:
        hits = self.producer().tab("hits", "Gauge")
        for _ in range(2):
            for i in range(3000):
                self.assertEqual(hits.labels(i=i).name, f'hits{{i="{i}"}}')

    def test_unit_and_description_travel_in_the_directory_also_to_labels(self) -> None:
        producer = self.producer()
        hits = producer.tab("hits", "CounterGroup", "1", "requests served")
        hits.inc()
        hits.labels(a="b").inc()
        entries = self.reader(producer).tabs()
        self.assertEqual([entry[1:4] for entry in entries], [("hits", "1", "requests served"), ('hits{a="b"}', "1", "requests served")])

    def test_what_is_said_of_a_tab_that_has_its_place_is_said_in_another_one(self) -> None:
        producer = self.producer()
        hits = producer.tab("hits", "CounterGroup")
        hits.inc()
        self.assertIs(producer.tab("hits", "CounterGroup", "1"), hits)
        hits.inc()
        producer.tab("hits", "CounterGroup", "1", "requests served")
        producer.tab("hits", "CounterGroup", "1")  # says nothing new
        hits.inc()
        entries = self.reader(producer).tabs()
        self.assertEqual([entry[1:4] for entry in entries], [("hits", "", ""), ("hits", "1", ""), ("hits", "1", "requests served")])
        self.assertEqual([(event.tab, event.value) for event in self.events()], [("hits", 1.0)] * 3)

    def test_what_is_said_again_and_again_leaves_half_of_the_directory_to_others(self) -> None:
        producer = self.producer(TABA_RING_BYTES="65536")
        hits = producer.tab("hits", "CounterGroup")
        hits.inc()
        for number in range(1000):
            producer.tab("hits", "CounterGroup", "1", f"said {number}")
        hits.inc()
        header = self.reader(producer).header
        self.assertLessEqual(header.directory_used, ring.layout(header.size).directory_bytes // 2)
        for number in range(20):
            producer.tab(f"other{number}", "CounterGroup").inc()
        self.assertEqual(producer.stats()["dropped"], 0)

    def test_a_tab_that_heals_keeps_its_place_and_says_it_in_the_next_ring(self) -> None:
        producer = self.producer()
        busy = producer.tab("busy", "UpDown")
        busy.inc()
        producer.tab("busy", "UpDown", "1")
        busy.inc()
        self.assertEqual([entry.unit for entry in self.reader(producer).tabs()], [""])
        producer.start("test/2", {**self.environment})
        busy.inc()
        self.assertEqual([entry.unit for entry in self.reader(producer).tabs()], ["1"])
