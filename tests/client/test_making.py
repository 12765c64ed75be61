"""How a producer, its Tabs and its ring are made, left and made again."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from taba import ring
from taba.agent.locks import claim_slots
from taba.bounds import MIN_RING_BYTES
from taba.client import identity, pure
from taba.client.producer import Producer
from tests.client.cases import ClientCase, accelerator, both
from tests.client.reading import Reader, rings


@contextmanager
def full_table() -> Iterator[None]:
    """Nothing more can be opened meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@both
class MakingTests(ClientCase):
    def test_a_ring_takes_an_eighth_of_what_is_left_at_most(self) -> None:
        for bound, size in (
            (16 << 20, 1 << 20),
            (8 << 20, 1 << 19),
            (4 << 20, 1 << 18),
            (300_000, MIN_RING_BYTES),
            (70_000, MIN_RING_BYTES),
        ):
            producer = self.producer(TABA_SHM_BYTES=str(bound))
            producer.tab("c", "CounterGroup").inc()
            self.assertEqual(producer.stats()["ring_bytes"], size)
            self.assertEqual(os.stat(self.reader(producer).path).st_size, size)
            self.remove_segments()

    def test_twenty_processes_have_rings_where_one_alone_would_fill_it(self) -> None:
        producers = [self.producer(TABA_SHM_BYTES=str(4 << 20)) for _ in range(20)]
        for producer in producers:
            producer.tab("c", "CounterGroup").inc()
        self.assertEqual(sum(producer.stats()["recorded"] for producer in producers), 20)
        self.assertLessEqual(sum(os.stat(os.path.join(ring.SHM_DIRECTORY, name)).st_size for name in rings(self.agent)), 4 << 20)

    def test_beyond_the_bound_of_all_rings_drops_are_counted_where_they_outlive_the_process(self) -> None:
        producers = [self.producer(TABA_SHM_BYTES=str(1 << 18), TABA_RING_BYTES=str(1 << 16)) for _ in range(5)]
        for producer in producers:
            for _ in range(3):
                producer.tab("c", "CounterGroup").inc()
        self.assertEqual([producer.stats()["recorded"] for producer in producers], [3, 3, 3, 0, 0])
        for producer in producers[3:]:
            stats = producer.stats()
            self.assertEqual((stats["dropped_by_reason"], stats["ring"], stats["ring_bytes"]), ({"no_ring": 3}, None, 0))
            self.assertIn("TABA_SHM_BYTES", stats["problem"])
        (name,) = (name for name in rings(self.agent) if os.stat(f"/dev/shm/{name}").st_size == ring.COUNTING_BYTES)
        reader = Reader(name)
        self.addCleanup(reader.close)
        self.assertEqual(reader.header.drops, {"no_ring": 6})
        producers[0].stop()
        os.unlink(os.path.join(ring.SHM_DIRECTORY, next(name for name in rings(self.agent) if os.stat(f"/dev/shm/{name}").st_size > 4096)))
        producers[3]._next_try = 0.0  # a second passes
        producers[3].tab("c", "CounterGroup").inc()
        self.assertEqual((producers[3].stats()["recorded"], producers[3].stats()["problem"]), (1, None))
        self.assertFalse(claim_slots(reader.descriptor))
        producers[4].stop()
        self.assertEqual((claim_slots(reader.descriptor), reader.header.drops), (True, {"no_ring": 6}))  # what they counted stays

    def test_segments_that_only_count_have_a_bound_too(self) -> None:
        bound = 16 * ring.COUNTING_BYTES * 2  # room for two beside no ring at all, and for some in the rest of the bound
        producers = [self.producer(TABA_SHM_BYTES=str(bound), TABA_RING_BYTES=str(1 << 16)) for _ in range(20)]
        for producer in producers:
            producer.tab("c", "CounterGroup").inc()
        self.assertLessEqual(sum(os.stat(f"/dev/shm/{name}").st_size for name in rings(self.agent)), bound)
        self.assertEqual({str(producer.stats()["dropped_by_reason"]) for producer in producers[1:]}, {"{'no_ring': 1}"})

    def test_without_shared_memory_it_counts_and_tries_again_later_and_the_making_of_a_tab_warns_once(self) -> None:
        producer = self.producer()
        tab = producer.tab("c", "CounterGroup")
        with mock.patch.object(ring, "SHM_DIRECTORY", "/nonexistent"):
            with mock.patch("logging.Logger.handle", side_effect=AssertionError):
                for _ in range(10):
                    tab.inc()
                tab.record("x")
            with self.assertLogs("taba.client", "WARNING") as logs:
                for _ in range(3):
                    self.assertIs(producer.tab("c", "CounterGroup"), tab)
                    tab.inc()
        self.assertEqual(len(logs.output), 1)
        self.assertIn("/nonexistent", logs.output[0])
        self.assertIn("/nonexistent", producer.stats()["problem"])
        self.assertEqual(producer.stats()["dropped_by_reason"], {"no_ring": 14})
        producer._next_try = 0.0
        tab.inc()
        self.assertEqual(len(self.events()), 1)
        self.assertEqual(self.reader(producer).header.drops, {"no_ring": 14})
        self.assertIsNone(producer.stats()["problem"])

    def test_with_a_full_table_of_descriptors_who_has_a_ring_records_on_and_who_has_none_says_why_and_counts_until_one_can_be_made(
        self,
    ) -> None:
        has, late = self.producer(), self.producer("late/1")
        tabs = [producer.tab("c", "CounterGroup") for producer in (has, late)]
        tabs[0].inc()
        with self.assertLogs("taba.client", "WARNING") as logs, full_table():
            for tab in tabs * 5:
                tab.inc()
            has.tab("d", "CounterGroup").inc()  # another Tab finds its place, too
            late.tab("d", "CounterGroup")
        self.assertEqual((has.stats()["recorded"], has.stats()["dropped"], late.stats()["recorded"]), (7, 0, 0))
        self.assertIn("Too many open files", logs.output[0])
        self.assertIn("Too many open files", late.stats()["problem"])
        late._next_try = 0.0  # a second passes
        tabs[1].inc()
        self.assertEqual((late.stats()["recorded"], late.stats()["problem"]), (1, None))
        self.assertEqual(self.reader(late).header.drops, {"no_ring": 5})  # where its Agent finds them

    def test_start_warns_of_shared_memory_that_is_not_there_and_again_when_it_went_and_came_back(self) -> None:
        producer = Producer(accelerator if self.accelerated else pure)
        self.addCleanup(producer.stop)
        for _ in range(2):
            with mock.patch.object(ring, "SHM_DIRECTORY", "/nonexistent"), self.assertLogs("taba.client", "WARNING") as logs:
                producer.start("x", self.environment)
                producer.start("y", self.environment)
                producer.tab("c", "CounterGroup")
            self.assertEqual(len(logs.output), 1)
            producer.tab("c", "CounterGroup").inc()
            producer.stop()

    def test_a_ring_is_its_owners_alone_and_with_a_group_the_groups_too(self) -> None:
        old = os.umask(0o777)
        try:
            alone, shared = self.producer(), self.producer(TABA_RING_GROUP=str(os.getgid()))
            for producer in (alone, shared):
                producer.tab("c", "CounterGroup").inc()
        finally:
            os.umask(old)
        self.assertEqual(os.fstat(self.reader(alone).descriptor).st_mode & 0o777, 0o600)
        self.assertEqual(os.fstat(self.reader(shared).descriptor).st_mode & 0o777, 0o660)

    def test_the_space_is_reserved_when_the_ring_is_made(self) -> None:
        producer = self.producer()
        producer.tab("c", "CounterGroup").inc()
        self.assertGreaterEqual(os.stat(self.reader(producer).path).st_blocks * 512, 1 << 20)

    def test_stats_tell_the_client_id_before_the_first_record_and_after_the_last(self) -> None:
        producer = self.producer("{program}/{slot}")
        told = producer.stats()["client"]
        self.assertRegex(told, r"^[^{}]+/[0-9]+$")
        self.assertEqual(rings(self.agent), [])  # no ring for a question
        producer.tab("c", "CounterGroup").inc()
        self.assertEqual(producer.stats()["client"], told)
        self.assertEqual(self.reader(producer).header.client, told)
        producer.stop()
        self.assertEqual(producer.stats()["client"], told)
        producer.start("other", self.environment)
        self.assertEqual(producer.stats()["client"], "other")

    def test_stats_of_a_process_that_has_asked_for_nothing_or_for_nonsense(self) -> None:
        for environment in ({"TABA_CLIENT_ID": "cron/1"}, {"TABA_CLIENT_ID": "a b"}, {"TABA_AGENT": "a.b"}):
            producer = Producer(accelerator if self.accelerated else pure)
            self.addCleanup(producer.end)
            with mock.patch.dict(os.environ, environment):
                if "TABA_AGENT" not in environment:
                    os.environ.pop("TABA_AGENT", None)  # of the run of tests
                stats = producer.stats()
            self.assertEqual(stats["agent"], environment.get("TABA_AGENT", "default"))
            self.assertEqual(stats["client"], "cron/1" if "cron/1" in environment.values() else identity.DEFAULT_CLIENT)

    def test_stop_frees_the_ring_and_start_makes_a_new_one(self) -> None:
        producer = self.producer()
        tab = producer.tab("c", "CounterGroup")
        tab.inc()
        reader = self.reader(producer)
        producer.stop()
        self.assertFalse(reader.is_held())
        tab.inc()
        self.assertEqual(producer.stats()["dropped_by_reason"], {"stopped": 1})
        producer.start("other", self.environment)
        tab.inc()
        self.assertEqual((producer.stats()["recorded"], producer.stats()["client"]), (2, "other"))
        self.assertEqual(len(rings(self.agent)), 2)

    def test_wrong_settings_are_a_value_error_that_names_them(self) -> None:
        for id, environment, word in (
            ("a b", {}, "client id"),
            ("{slots}", {}, "slots"),
            ("{env:TABA_NOT_THERE}", {}, "TABA_NOT_THERE"),
            ("_x", {}, "reserved"),
            ("x" * 201, {}, "client id"),
            (7, {}, "client id"),
            ("{env:}", {}, "names no variable"),
            (None, {"TABA_CLIENT_ID": "a b"}, "TABA_CLIENT_ID: client id 'a b'"),
            (None, {"TABA_CLIENT_ID": "{env:NOT_THERE}"}, "TABA_CLIENT_ID: .*NOT_THERE"),
            (None, {"TABA_AGENT": "a.b"}, "TABA_AGENT: Agent name 'a.b'"),
            (None, {"TABA_RING_GROUP": str(2**32 - 1)}, "TABA_RING_GROUP"),
            (None, {"TABA_RING_BYTES": "1"}, "TABA_RING_BYTES"),
            (None, {"TABA_RING_BYTES": "x"}, "TABA_RING_BYTES"),
            (None, {"TABA_RING_BYTES": str(2**31)}, "TABA_RING_BYTES"),
            (None, {"TABA_SHM_BYTES": "-1"}, "TABA_SHM_BYTES"),
            (None, {"TABA_RING_GROUP": "no-such-group"}, "TABA_RING_GROUP"),
        ):
            error = self.assertRaises(ValueError, self.producer, id, **environment)
            self.assertRegex(str(error), word)

    def test_the_lowest_and_highest_settings_are_taken(self) -> None:
        self.producer(TABA_RING_BYTES="65536")
        self.producer(TABA_RING_BYTES=str(1 << 30), TABA_SHM_BYTES="0")
        self.producer("x" * 200)
        self.producer(TABA_RING_GROUP=str(2**32 - 2))  # a group without a name, as in containers
