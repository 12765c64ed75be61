"""What Agents record themselves: it is in no count, makes nobody a Client, is bounded, and nobody else can record it."""

from __future__ import annotations

from typing import Any

import msgpack
from twisted.trial.unittest import SynchronousTestCase

from taba.batch import Column, decode_batch, encode_batch
from taba.handlers.expiry_gauge import ExpiryGauge
from taba.names import ALIVE_TAB, ALIVE_TYPE, bucket_of, check_client, parse_name
from taba.server import keys

from ..samples import BUCKETS, MemoryStore, Sum, batch, column, lookup_of, tab_in

BUCKET = bucket_of(ALIVE_TAB, BUCKETS)
LOOKUP = lookup_of(ExpiryGauge(), Sum())


def alive(client: str = "web/1", value: Any = None, stands_for: int = 0, tab: str = ALIVE_TAB) -> Column:
    said = {"value": 1, "seconds": 30.0} if value is None else value
    return column(tab, ALIVE_TYPE, [said], client)._replace(stands_for=stands_for)


class Own(SynchronousTestCase):
    def setUp(self) -> None:
        self.store = MemoryStore()

    def clients(self) -> tuple[set[bytes], set[bytes]]:
        """(who has a State of it, the Clients of the bucket)."""
        of_tab = self.store.keys.get(keys.clients_of(BUCKET, ALIVE_TAB.encode()), set())
        return of_tab, self.store.keys.get(keys.clients(BUCKET), set())

    def test_it_is_folded_and_in_no_count_and_makes_nobody_a_client(self) -> None:
        outcome = self.store.cycle(LOOKUP, [batch(1, 1, [alive(), alive("web/2", 0.0)], BUCKET)], BUCKET)
        self.assertEqual((outcome.folded, outcome.dead, len(outcome.times)), (0, {}, 0))
        self.assertEqual(self.clients(), ({b"web/1", b"web/2"}, set()))
        self.store.cycle(LOOKUP, [batch(1, 2, [column(tab_in(BUCKET), "Sum", [1.0])], BUCKET)], BUCKET)
        self.assertEqual(self.clients()[1], {b"web/1"})
        self.assertEqual(self.store.counts(BUCKET), {"folded": 1})

    def test_events_that_count_for_nothing_are_taken_of_no_other_tab(self) -> None:
        for one in (alive(tab=tab_in(BUCKET)), alive(stands_for=1), alive(stands_for=7)):
            store = MemoryStore()
            outcome = store.cycle(LOOKUP, [batch(1, 1, [one], BUCKET)], BUCKET)
            self.assertEqual((outcome.folded, list(outcome.dead)), (0, ["bad_value"]), one)

    def test_a_value_too_deep_is_a_dead_letter_there_as_elsewhere(self) -> None:
        deep: Any = 1
        for _ in range(100):
            deep = [deep]
        outcome = self.store.cycle(LOOKUP, [batch(1, 1, [alive(value=deep)], BUCKET)], BUCKET)
        self.assertEqual((outcome.folded, outcome.dead), (0, {"bad_value": 0}))

    def test_as_many_as_a_bucket_has_clients_live_there_and_not_one_more(self) -> None:
        self.store.cycle(LOOKUP, [batch(1, 1, [alive("web/1"), alive("web/2")], BUCKET)], BUCKET, clients=2)
        outcome = self.store.cycle(LOOKUP, [batch(1, 2, [alive("web/3"), alive("web/1")], BUCKET)], BUCKET, clients=2)
        self.assertEqual((self.clients()[0], list(outcome.dead)), ({b"web/1", b"web/2"}, ["too_many_clients"]))

    def test_its_name_is_taken_from_a_batch_and_from_nobody_else(self) -> None:
        for name in (ALIVE_TAB, "taba.other", "taba.alive2", 'taba.alive{a="b"}'):
            self.assertRaises(ValueError, parse_name, name)
            content = encode_batch(bytes(16), BUCKET, 1, [alive(tab=name)])
            (found,) = decode_batch(content).columns
            self.assertEqual(isinstance(found, Column), name == ALIVE_TAB, name)
        self.assertRaises(ValueError, check_client, ALIVE_TAB)
        (found,) = decode_batch(encode_batch(bytes(16), BUCKET, 1, [alive()])).columns
        self.assertEqual(found, alive())
        self.assertTrue(msgpack.packb(found))
