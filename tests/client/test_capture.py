"""client.testing captures what was recorded, without an Agent and without shared memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import unittest
from typing import Any
from unittest import mock

import msgpack
from hypothesis import given
from twisted.trial.unittest import SynchronousTestCase

from taba import client
from taba.client import encode, process, testing
from tests.client.cases import ROOT, ClientCase, both
from tests.client.reading import rings
from tests.client.test_record import VALUES
from tests.examples import examples
from tests.patience import PATIENCE_SECONDS


@both
class CaptureTests(ClientCase):
    def setUp(self) -> None:
        super().setUp()
        self.made = self.producer()
        self.patch(process, "producer", self.made)

    def test_what_was_recorded_is_there_in_order_with_its_tab_value_and_time(self) -> None:
        with testing.capture() as recorded:
            client.counter("orders", labels={"shop": "main"}).inc(2)
            client.gauge("state").set("open")
            client.tab("jobs", type="Buffer").record(["nightly", 3], time=1763850000.0)
        events = [(event.name, event.type, event.value) for event in recorded.events]
        expected = [('orders{shop="main"}', "CounterGroup", 2.0), ("state", "Gauge", "open"), ("jobs", "Buffer", ["nightly", 3])]
        self.assertEqual(events, expected)
        self.assertEqual(recorded.events[2].time, 1763850000.0)
        self.assertEqual(recorded.names(), ["jobs", 'orders{shop="main"}', "state"])

    def test_questions_are_asked_by_name_and_labels(self) -> None:
        hits = client.counter("hits")
        with testing.capture() as recorded:
            hits.labels(route="/a", status=200).inc(1)
            hits.labels(route="/b", status=200).inc(2)
            hits.labels(route="/b", status=500, cached=True).inc(4)
            hits.inc(8)
            client.counter("hits_all").inc(16)
            client.gauge("depth").set(3)
            client.gauge("depth").set(2)
        self.assertEqual(recorded.total("hits"), 15)
        self.assertEqual(recorded.total("hits", status=200), 3)
        self.assertEqual(recorded.total("hits", status="200", route="/b"), 2)
        self.assertEqual(recorded.values("hits", cached=True), [4.0])
        self.assertEqual(recorded.values('hits{route="/a",status="200"}'), [1.0])
        self.assertEqual((recorded.count("hits"), recorded.count("hits", status=404), recorded.count("hit")), (4, 0, 0))
        self.assertEqual((recorded.last("depth"), recorded.last("width")), (2.0, None))
        recorded.clear()
        self.assertEqual(recorded.events, [])

    def test_events_are_seen_while_it_goes_on_and_any_number_of_them(self) -> None:
        counter = client.counter("c")
        with testing.capture() as recorded:
            for number in range(20_000):
                counter.inc(number)
                if number % 6000 == 0:
                    self.assertEqual(recorded.last("c"), number)
            self.assertEqual(recorded.values("c"), list(map(float, range(20_000))))
        self.assertEqual(recorded.count("c"), 20_000)

    def test_no_shared_memory_is_made_or_needed(self) -> None:
        with mock.patch("taba.client.producer.make_segment", side_effect=AssertionError), testing.capture() as recorded:
            client.counter("c").inc()
            self.assertEqual(client.stats()["client"], "captured")
        self.assertEqual(recorded.total("c"), 1)
        self.assertEqual(rings(self.agent), [])

    def test_where_there_is_no_memfd_a_file_does(self) -> None:
        with mock.patch("os.memfd_create", side_effect=OSError), testing.capture() as recorded:
            client.counter("c").inc()
        self.assertEqual(recorded.total("c"), 1)

    def test_tabs_made_before_are_captured_and_record_for_the_agent_again_after_it(self) -> None:
        counter, busy, gauge = client.counter("c"), client.updown("u"), client.gauge("g")
        counter.inc()
        busy.inc(3)
        gauge.set(10)
        with testing.capture() as recorded:
            counter.inc(2)
            busy.inc()
            gauge.inc()
        self.assertEqual([event.value for event in recorded.events], [2.0, 1.0, 1.0])
        counter.inc(4)
        busy.dec()
        gauge.inc()
        self.assertEqual(busy.net, 2)
        values = [event.value for event in self.events()]
        self.assertEqual(sorted(values), sorted([1.0, 3.0, 10.0, 4.0, -1.0, 11.0]))

    def test_captures_within_each_other_and_with_another_client_id(self) -> None:
        counter, busy = client.counter("c"), client.updown("u")
        with testing.capture() as outer:
            counter.inc(1)
            busy.inc()
            with testing.capture() as inner:
                counter.inc(2)
                self.assertEqual(busy.net, 0)
            counter.inc(4)
            self.made.start("other", self.environment)
            counter.inc(8)
            self.assertEqual(busy.net, 1)
        self.assertEqual((outer.values("c"), inner.values("c")), ([1.0, 4.0, 8.0], [2.0]))

    def test_what_is_dropped_is_told_and_what_does_not_fit_is_an_error(self) -> None:
        counter = client.counter("c")
        self.patch(testing, "CAPTURE_BYTES", 1 << 16)
        with testing.capture() as recorded:
            counter.inc(object())
            for _ in range((1 << 16) // 32):
                counter.inc()
            self.assertEqual((recorded.dropped, recorded.count("c")), ({"value_type": 1}, 2048))
            counter.inc()
            with self.assertRaisesRegex(RuntimeError, "found no room.*2048"):
                recorded.total("c")
        self.assertEqual(recorded.dropped["ring_full"], 1)

    def test_all_threads_are_captured(self) -> None:
        counter = client.counter("c")

        def count() -> None:
            for _ in range(100):
                counter.inc()

        with testing.capture() as recorded:
            threads = [threading.Thread(target=count) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertEqual(recorded.total("c"), 400)

    def test_a_forked_child_is_not_captured_and_harms_nothing(self) -> None:
        counter = client.counter("c")
        with testing.capture() as recorded:
            counter.inc()
            child = os.fork()
            if child == 0:
                counter.inc(5)
                os._exit(0)
            self.assertEqual(os.waitpid(child, 0)[1], 0)
            counter.inc()
        self.assertEqual(recorded.values("c"), [1.0, 1.0])
        self.assertEqual(rings(self.agent), [])

    def test_functions_are_read_on_demand(self) -> None:
        value = [1]
        with testing.capture() as recorded:
            client.gauge("g").set_function(lambda: value[0])
            value[0] = 2
            recorded.read_functions()
        client.gauge("g").set_function(None)
        self.assertEqual(recorded.values("g"), [1.0, 2.0])

    def test_it_ends_also_when_the_test_fails(self) -> None:
        with self.assertRaises(KeyError), testing.capture() as recorded:
            client.counter("c").inc()
            raise KeyError
        self.assertEqual(recorded.total("c"), 1)
        client.counter("c").inc()
        self.assertEqual(len(self.events()), 1)

    def test_a_test_case_captures_until_it_ends(self) -> None:
        seen = []

        class Case(unittest.TestCase):
            def setUp(self) -> None:
                self.recorded = testing.capture_for(self)

            def test(self) -> None:
                client.counter("c").inc()
                seen.append(self.recorded.total("c"))

        result = unittest.TestResult()
        Case("test").run(result)
        self.assertTrue(result.wasSuccessful(), result.errors)
        self.assertEqual(seen, [1.0])
        self.assertIsNone(self.made.divert(None))


class Decoding(SynchronousTestCase):
    def test_what_is_encoded_is_decoded(self) -> None:
        @examples(40)
        @given(VALUES)
        def comes_back(value: Any) -> None:
            content = encode.encode(value, 1 << 20)
            self.assertEqual(testing.decode(b"\xc0" + content, 1), (value, 1 + len(content)))
            self.assertEqual(testing.decode(content)[0], msgpack.unpackb(content, strict_map_key=False))

        comes_back()


class Pytest(SynchronousTestCase):
    def test_its_fixture_captures_each_test_for_itself(self) -> None:
        folder = os.path.abspath(self.mktemp())
        os.mkdir(folder)
        with open(os.path.join(folder, "conftest.py"), "w") as file:
            file.write('pytest_plugins = ["taba.frameworks.pytest"]\n')
        with open(os.path.join(folder, "test_shop.py"), "w") as file:
            file.write(
                "from taba import client\n"
                "orders = client.counter('orders')\n"
                "def test_one(recorded):\n    orders.inc()\n    assert recorded.total('orders') == 1\n"
                "def test_two(recorded):\n    orders.inc(2)\n    assert recorded.total('orders') == 2\n"
                "def test_wrong(recorded):\n    assert recorded.total('orders') == 1\n"
            )
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", folder, folder]
        environ = {**os.environ, "PYTHONPATH": ROOT, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # others' are slow to load
        done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        self.assertIn("1 failed, 2 passed", done.stdout, done.stderr)


class Loading(SynchronousTestCase):
    def test_it_is_an_attribute_of_the_client_that_is_imported_when_it_is_used(self) -> None:
        code = (
            "import sys; from taba import client; before = 'taba.client.testing' in sys.modules; client.testing.capture; "
            "print(before, sorted(client.__all__) == client.__all__, [hasattr(client, name) for name in client.__all__].count(False))"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True)
        self.assertEqual(done.stdout.split(), ["False", "True", "0"])
        self.assertRaises(AttributeError, lambda: client.nothing)  # type: ignore[attr-defined]
