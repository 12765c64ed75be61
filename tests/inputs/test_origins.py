"""Which Client each origin's events go under."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from taba.inputs.origins import MAX_ORIGINS, OTHERS, SILENT_SECONDS, Origins, client_of
from taba.names import check_client
from tests.inputs.producers import NotedProducer


class Places(SynchronousTestCase):
    def setUp(self) -> None:
        self.producers: dict[str, NotedProducer] = {}
        self.origins = Origins(self.make, lambda text, time: None)

    def make(self, origin: str) -> NotedProducer:
        self.producers[origin] = NotedProducer(origin, [])
        return self.producers[origin]

    def take(self, origin: str, now: float = 0.0) -> bool:
        place = self.origins.place(origin, now)
        place.origin.reader.read(b"a:1|c")
        return place.is_own

    def test_sixty_four_origins_have_a_client_each_and_the_rest_has_one(self) -> None:
        self.assertTrue(all(self.take(f"10.0.0.{number}") for number in range(MAX_ORIGINS)))
        self.assertFalse(self.take("10.0.1.1"))
        self.assertFalse(self.take("10.0.1.2"))
        self.assertTrue(self.take("10.0.0.0"))
        self.assertEqual(len(self.producers), MAX_ORIGINS + 1)
        self.assertIn(OTHERS, self.producers)

    def test_one_that_was_silent_for_long_makes_room(self) -> None:
        for number in range(MAX_ORIGINS):
            self.take(f"10.0.0.{number}", float(number))
        self.assertFalse(self.take("10.0.1.1", SILENT_SECONDS - 1))
        self.assertTrue(self.take("10.0.1.1", SILENT_SECONDS))
        self.assertTrue(self.producers["10.0.0.0"].is_stopped)
        self.assertFalse(self.producers["10.0.0.1"].is_stopped)

    def test_a_renewal_leaves_all_rings_and_begins_anew(self) -> None:
        self.take("10.0.0.1")
        before = self.producers["10.0.0.1"]
        self.origins.renew()
        self.assertTrue(before.is_stopped)
        self.assertEqual(self.origins.readers.tabs, 0)
        self.assertTrue(self.take("10.0.0.1"))
        self.assertIsNot(self.producers["10.0.0.1"], before)

    def test_every_origin_makes_a_client_id(self) -> None:
        for origin in ("127.0.0.1", "fe80::1%eth0", OTHERS, "x" * 300):
            check_client(client_of("host", "statsd", origin))

    def test_what_ended_is_let_go_of_a_bit_at_a_time_and_in_the_end_all_of_it(self) -> None:
        for number in range(20):
            self.origins.place("10.0.0.1", 0.0).origin.reader.read(b"a%d:1|c" % number)
        producer = self.producers["10.0.0.1"]
        reader = self.origins.place("10.0.0.1", 0.0).origin.reader
        self.origins.renew()
        left = []
        while producer.tabs or reader.tabs:
            self.origins.let_go(8)
            left.append((len(producer.tabs), len(reader.tabs), len(reader.known)))
        self.assertEqual(left, [(12, 20, 20), (4, 20, 20), (0, 20, 20), (0, 12, 12), (0, 4, 4), (0, 0, 0)])
        self.take("10.0.0.1")
        self.origins.let_go(8)
        self.assertEqual(len(self.producers["10.0.0.1"].tabs), 1)
