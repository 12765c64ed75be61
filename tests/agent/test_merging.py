"""Who merges what an Agent folds: it folds what all Servers merge, and sends no State to a Server that does not."""

from __future__ import annotations

from typing import Any

from taba.agent.dispatch import POSTPONED_SECONDS
from taba.agent.edge import MIN_EVENTS, Edge
from taba.batch import LATER, Header, SentBatch, Verdict, decode_batch, edges_of
from taba.handlers.lookup import find_edges
from taba.versions import HERE, Edges, Versions, choose, read_told
from tests.agent.test_chosen import OTHER, ChosenCase

COUNTERS: Edges = (("CounterGroup", 1),)
ALL: Edges = tuple(sorted((type, handler.edge) for type, handler in find_edges().items()))


def merging(edges: Edges) -> Versions:
    return HERE._replace(edges=edges)


class Merging(ChosenCase):
    here = HERE

    def setUp(self) -> None:
        self.edge = Edge(find_edges())
        super().setUp()

    @property
    def folds(self) -> Edges:
        return self.loop.pump.edge.allowed

    def fill(self) -> dict[str, int]:
        """A hot Tab is drained: which States are in the batch that it makes."""
        for _ in range(2 * MIN_EVENTS):
            self.producer.record(self.producer.tab("hits", "CounterGroup"), 1.0, 1000.0)
        self.loop.pump.rings.scan((), self.clock.seconds())
        self.loop.pump.drain(*self.loop.clock())
        outbox = self.keeper.outbox
        stored = [stored for group in outbox.groups() for stored in group.batches]
        return edges_of(outbox.read(stored[-1].position, stored[-1].length))

    def sent(self) -> list[Any]:
        """What goes out now, and is answered."""
        posted: list[Any] = []
        self.server.answer = lambda request, envelope: posted.extend(envelope.entries)
        for _ in range(3):
            self.keeper.tick(*self.loop.clock())
            self.loop.forwarder.pump()
            self.http.flush()
        return [entry for entry in posted if not isinstance(entry, Header)]

    def test_only_what_every_server_merges_in_the_same_version_is_folded(self) -> None:
        self.assertEqual(self.folds, ())  # nobody was asked yet
        self.hear(asked=merging(ALL))
        self.assertEqual((self.folds, self.fill()), (ALL, {"CounterGroup": 1}))
        self.hear(asked=merging(ALL), other=merging((("CounterGroup", 2), ("TotalsCounter", 1))))
        self.assertEqual((self.folds, self.fill()), ((("TotalsCounter", 1),), {}))
        self.hear(asked=merging(ALL), other=merging(()))
        self.assertEqual(self.folds, ())
        self.hear(asked=merging(COUNTERS))
        self.assertEqual((self.folds, self.fill()), (COUNTERS, {"CounterGroup": 1}))

    def test_who_does_not_know_all_servers_leads_to_no_more(self) -> None:
        self.hear(False, asked=merging(ALL))
        self.assertEqual(self.folds, ())
        self.hear(asked=merging(COUNTERS))
        self.hear(False, asked=merging(ALL))
        self.assertEqual(self.folds, COUNTERS)
        self.hear(False, asked=merging(()))
        self.assertEqual(self.folds, ())

    def test_less_begins_a_new_stream_in_which_events_go_as_they_are_and_more_begins_none(self) -> None:
        self.hear(asked=merging(COUNTERS))
        first = self.keeper.stream
        self.fill()
        self.hear(asked=merging(ALL))
        self.assertEqual(self.keeper.stream, first)
        self.hear(asked=merging(COUNTERS))
        second = self.keeper.stream
        self.assertNotEqual(second, first)
        self.assertEqual(self.fill(), {"CounterGroup": 1})
        self.hear(asked=merging(()))
        self.assertNotEqual(self.keeper.stream, second)
        self.assertEqual(self.fill(), {})

    def test_a_state_waits_for_a_server_that_merges_it_and_says_so_and_fresh_events_go_on(self) -> None:
        self.hear(asked=merging(ALL))
        self.server.verdict = lambda sent: Verdict(LATER, 1.0)  # until it steps back
        self.fill()
        self.hear(asked=merging(()))
        self.server.verdict = None
        self.clock.advance(1.0)
        self.fill()
        went = [decode_batch(entry.batch) for entry in self.sent() if isinstance(entry, SentBatch)]
        self.assertEqual([[len(column.times) // 8 for column in batch.columns] for batch in went], [[2 * MIN_EVENTS]])  # type: ignore[union-attr]
        self.assertEqual([edges_of(entry.batch) for entry in self.sent() if isinstance(entry, SentBatch)], [])
        says = "does not merge what was folded here: CounterGroup in version 1; upgrade it"
        self.assertIn(says, "".join(self.loop.problems({}).values()))
        self.hear(asked=merging(COUNTERS))
        self.clock.advance(POSTPONED_SECONDS)
        self.assertEqual([edges_of(entry.batch) for entry in self.sent() if isinstance(entry, SentBatch)], [{"CounterGroup": 1}])
        self.assertFalse([lane for lane in self.keeper.lanes.values() if lane.pending])

    def test_what_was_published_before_a_state_does_not_wait_with_it_and_what_follows_it_does(self) -> None:
        self.server.verdict = lambda sent: Verdict(LATER, 1.0)
        self.hear(asked=merging(()))
        self.assertEqual(self.fill(), {})
        stream = self.keeper.stream
        self.hear(asked=merging(ALL))
        self.assertEqual([self.fill(), self.keeper.stream], [{"CounterGroup": 1}, stream])
        self.loop.pump.edge.allow(())
        self.assertEqual(self.fill(), {})  # in the same stream, behind the State
        self.hear(asked=merging(()))
        self.server.verdict = None
        self.clock.advance(POSTPONED_SECONDS)
        went = [decode_batch(entry.batch) for _ in range(2) for entry in self.sent() if isinstance(entry, SentBatch)]
        self.assertEqual([batch.number for batch in went], [1])
        [lane] = [lane for lane in self.keeper.lanes.values() if lane.pending]
        self.assertEqual([batch.number for batch in lane.pending], [2, 3])

    def test_it_goes_to_one_of_which_nothing_is_known(self) -> None:
        self.hear(asked=merging(ALL))
        self.fill()
        self.loop.dispatch.learn_edges({OTHER: merging(())})
        self.assertEqual([edges_of(entry.batch) for entry in self.sent()], [{"CounterGroup": 1}])


class Told(ChosenCase):
    def test_a_status_tells_it_beside_each_handler_and_a_list_of_servers_by_type(self) -> None:
        told = {**HERE.told(), "handlers": {"CounterGroup": {"edge": 1}, "Gauge": {"edge": None}, "Odd": 7, "Own": {}}}
        self.assertEqual(read_told(told), merging(COUNTERS))
        self.assertEqual(read_told(merging(ALL).told()), merging(ALL))
        self.assertEqual(read_told(HERE.told()).edges, ())
        many = {f"T{number}": 1 for number in range(257)}
        bad: list[Any] = [[], 7, {"CounterGroup": "1"}, {"CounterGroup": 1.0}, {"CounterGroup": True}, many]
        for edges in bad:
            self.assertRaises(ValueError, read_told, {**HERE.told(), "edges": edges})

    def test_without_any_server_nothing_is_folded(self) -> None:
        self.assertEqual(choose(merging(ALL), []).edges, ())
