"""The Forwarder in memory: a real HTTP client and a real Site, with nothing between them but treq's own test agent; time is a Clock."""

from __future__ import annotations

import os
import shutil
import tempfile
from random import Random
from typing import Any, cast

from treq.testing import StubTreq
from twisted.internet import defer, reactor, task
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import BrowserLikePolicyForHTTPS
from twisted.web.server import NOT_DONE_YET

from taba import batch as codec
from taba.agent.dispatch import Dispatch
from taba.agent.forward import LEARN_SECONDS, Forwarder, client_over, connection_pool
from taba.agent.history import History
from taba.agent.keeper import Keeper
from taba.agent.lanes import MAX_BACKOFF_SECONDS
from taba.agent.outbox import EncodedBatch, Outbox
from taba.agent.pin import Store
from taba.agent.spool import Spool
from taba.batch import BatchId, Column, Verdict, encode_batch
from taba.errors import NoVerdicts
from tests.agent.moments import at
from tests.agent.outboxes import Memory
from tests.agent.servers import Answers, FakeServer
from tests.patience import PATIENCE_SECONDS

COLUMN = Column("web/1", "bids_won", "CounterGroup", bytes(8), bytes(8))


class KeptConnectionTests(TestCase):
    """Real connections."""

    timeout = PATIENCE_SECONDS

    async def test_a_kept_connection_that_was_closed_is_no_failure_and_a_new_one_that_is_closed_is(self) -> None:
        server = FakeServer()
        self.addCleanup(server.stop)
        keeper = made_keeper(self)
        dispatch = Dispatch(keeper, [server.url], Random(1))
        pool = connection_pool(reactor)
        client = client_over(reactor, pool, BrowserLikePolicyForHTTPS())
        times = (lambda: at(0.0)), (lambda: 0.0)
        about = reactor, client, dispatch, "a", "host"
        forwarder = Forwarder(*about, *times, lambda: None, lambda store: True, lambda age: None, pool=pool)
        self.addCleanup(pool.closeCachedConnections)
        self.addCleanup(forwarder.stop)
        (peer,) = dispatch.servers.values()
        closed = 0

        def close(most: int) -> Any:
            def answer(request: Any, envelope: Any) -> Any:
                nonlocal closed
                if closed >= most or not any(isinstance(entry, codec.SentBatch) for entry in envelope.entries):
                    return None
                closed += 1
                request.channel.transport.abortConnection()
                return NOT_DONE_YET

            return answer

        async def deliver(number: int) -> None:
            id = BatchId(keeper.stream, 1, number)
            keeper.publish([EncodedBatch(id, at(0.0), 1, encode_batch(*id, [COLUMN]))], 0.0, recorded=1)
            forwarder.pump()
            while server.store.folded < number and not peer.failures:
                await task.deferLater(reactor, 0.01, lambda: None)

        await deliver(1)
        self.assertEqual((forwarder.second_tries, peer.failures), (0, 0))
        server.answer = close(1)  # the connection is a kept one by now
        await deliver(2)
        self.assertEqual((closed, forwarder.second_tries, peer.failures, server.store.folded), (1, 1, 0, 2))
        server.answer, closed = close(2), 0
        await deliver(3)
        self.assertEqual((closed, forwarder.second_tries, peer.failures, server.store.folded), (2, 2, 1, 2))
        self.assertIn("closed the connection without an answer; if it speaks TLS, its address begins with https:", str(peer.problem))


def made_keeper(case: Any) -> Keeper:
    memory = Memory()
    Outbox.format(memory, b"i" * 16)
    directory = tempfile.mkdtemp()
    case.addCleanup(shutil.rmtree, directory)
    spool, history = Spool(os.path.join(directory, "spool")), History(os.path.join(directory, "history"))
    case.addCleanup(spool.close)
    case.addCleanup(history.close)
    return Keeper(Outbox(memory), spool, history, lambda: b"s" * 16, 0.0, at(0.0))


class ForwarderTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = Answers()
        self.server.known = [self.server.url, "http://10.0.0.2:8280"]
        self.http: Any = StubTreq(self.server)
        self.clock = Clock()
        self.keeper = made_keeper(self)
        self.dispatch = Dispatch(self.keeper, [self.server.url], Random(1))
        self.buckets: list[int] = []
        self.pin: str | None = None
        self.ages: list[int] = []
        self.forwarder = Forwarder(
            self.clock,
            cast(Any, self.http),
            self.dispatch,
            "a",
            "host",
            lambda: at(self.clock.seconds()),
            self.clock.seconds,
            lambda: self.pin,
            self.meet,
            self.ages.append,
        )

    def meet(self, store: Store) -> bool:
        self.buckets.append(store.buckets)
        return self.pin in (None, store.id)

    def publish(self, bucket: int, number: int) -> None:
        id = BatchId(self.keeper.stream, bucket, number)
        self.keeper.publish([EncodedBatch(id, at(0.0), 1, encode_batch(*id, [COLUMN]))], self.clock.seconds(), recorded=1)

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.keeper.tick(self.clock.seconds(), at(self.clock.seconds()))
        self.forwarder.pump()
        self.http.flush()

    def test_streams_are_opened_in_one_envelope_and_batches_of_many_buckets_travel_in_the_next(self) -> None:
        for bucket in range(5):
            for number in (1, 2):
                self.publish(bucket, number)
        self.forwarder.pump()
        self.http.flush()
        self.assertEqual((self.server.envelopes, self.server.store.folded, self.keeper.unacknowledged), (2, 10, 0))

    def test_servers_are_asked_at_once_for_buckets_and_for_each_other(self) -> None:
        self.forwarder.tick()
        self.http.flush()
        self.assertEqual((self.buckets, sorted(self.dispatch.servers)), ([8], sorted(self.server.known)))
        self.server.known = [self.server.url]
        self.clock.advance(LEARN_SECONDS)
        self.forwarder.tick()
        self.http.flush()
        self.assertEqual(sorted(self.dispatch.servers), self.server.known)

    def note(self) -> Any:
        asked = defer.ensureDeferred(self.forwarder.note("deploy 1.4", 17.0))
        self.http.flush()
        return asked

    def test_a_note_goes_to_a_server_that_is_known_and_well_and_only_what_it_calls_bad_is_settled(self) -> None:
        self.assertIn("no Server is known", str(self.failureResultOf(self.note(), NoVerdicts).value))
        self.forwarder.tick()
        self.http.flush()
        for status, outcome in ((200, True), (400, False)):
            self.server.notes_status = status
            self.assertEqual(self.successResultOf(self.note()), outcome)
        self.assertEqual(self.server.notes, [{"text": "deploy 1.4", "time": 17.0}] * 2)
        for status, words in ((401, "it does not answer this Agent"), (404, "answered 404"), (503, "answered 503: '{}'")):
            self.server.notes_status = status
            self.assertIn(words, str(self.failureResultOf(self.note(), NoVerdicts).value))
        self.dispatch.servers[self.server.url].fails("it serves another store", 0.0)
        self.failureResultOf(self.note(), NoVerdicts)
        self.assertEqual(len(self.server.notes), 5)

    def look_for_servers(self) -> None:
        self.clock.advance(LEARN_SECONDS)
        self.forwarder.tick()
        self.http.flush()

    def test_a_server_that_is_back_while_nothing_goes_to_it_is_a_problem_no_more(self) -> None:
        self.look_for_servers()
        other = self.dispatch.servers["http://10.0.0.2:8280"]
        other.failures, other.not_before = 2, self.clock.seconds() + 1.0
        other.fails("nothing listens there", self.clock.seconds())
        self.look_for_servers()
        self.assertIsNotNone(other.problem)  # it may be tried by what goes to it
        self.look_for_servers()
        self.assertEqual((other.problem, other.failing_since), (None, None))

    def test_one_that_is_back_with_another_store_or_with_no_answer_is_a_problem_still(self) -> None:
        self.look_for_servers()
        other = self.dispatch.servers["http://10.0.0.2:8280"]
        real, answers = self.forwarder._json, list[Any]()

        async def asked(url: str) -> Any:
            return answers[-1] if url.startswith(other.url) else await real(url)

        self.patch(self.forwarder, "_json", asked)
        self.pin = "4f2a"
        wrong: list[Any] = [{"store": {"id": "91cc", "buckets": 8}}, {"store": {}}, [], None]
        for told in wrong:
            answers.append(told)
            other.fails("nothing listens there", self.clock.seconds())
            self.look_for_servers()
            self.assertNotIn(other.problem, (None, "nothing listens there"))
        self.assertIsNone(self.dispatch.servers[self.server.url].problem)

    def test_a_server_of_another_store_is_a_problem_and_its_buckets_are_not_taken(self) -> None:
        self.pin = "91cc"
        self.forwarder.tick()
        self.http.flush()
        self.assertFalse(self.forwarder.knows_buckets)
        self.assertIn("it serves the store 4f2a…", str(self.dispatch.servers[self.server.url].problem))
        envelopes: list[codec.Envelope] = []
        self.server.answer = lambda request, envelope: envelopes.append(envelope)
        self.publish(1, 1)
        self.pass_time(MAX_BACKOFF_SECONDS)
        self.assertEqual({envelope.store for envelope in envelopes}, {"91cc"})

    def test_an_answer_that_is_none_leaves_all_for_later_and_says_so(self) -> None:
        self.server.answer = lambda request, envelope: (request.setResponseCode(502), b"<html>")[1]
        self.publish(1, 1)
        self.forwarder.pump()
        self.http.flush()
        (server,) = self.dispatch.servers.values()
        self.assertEqual((self.keeper.unacknowledged, server.is_healthy), (1, False))
        self.assertIn("answered 502 without verdicts: '<html>'", str(server.problem))
        self.server.answer = None
        self.pass_time(MAX_BACKOFF_SECONDS)
        self.assertEqual((self.server.store.folded, self.keeper.unacknowledged, server.problem), (1, 0, None))

    def test_an_answer_that_never_comes_is_given_up_and_the_batches_are_sent_again_unchanged(self) -> None:
        from twisted.web.server import NOT_DONE_YET

        seen: list[list[codec.Entry]] = []

        def answer(request: Any, envelope: codec.Envelope) -> Any:
            batches = [entry for entry in envelope.entries if isinstance(entry, codec.SentBatch)]
            if batches:
                seen.append(batches)  # type: ignore[arg-type]
            return NOT_DONE_YET if batches and len(seen) == 1 else None

        self.server.answer = answer
        self.publish(1, 1)
        self.forwarder.pump()
        self.http.flush()
        self.assertEqual(len(seen), 1)
        for _ in range(4):
            self.pass_time(MAX_BACKOFF_SECONDS)
        self.assertEqual((self.server.store.folded, len(seen), seen[0] == seen[1]), (1, 2, True))

    def test_each_batch_gets_its_own_verdict(self) -> None:
        fates = {1: Verdict(codec.LATER, 3.0), 2: Verdict(codec.REFUSED, "no"), 3: None}
        self.server.verdict = lambda sent: fates[codec.decode_batch(sent.batch).bucket]
        for bucket in fates:
            self.publish(bucket, 1)
        self.forwarder.pump()
        self.http.flush()
        self.assertEqual((self.server.store.folded, self.keeper.unacknowledged, dict(self.keeper.books.dropped)), (1, 1, {"refused": 1}))
        self.server.verdict = None
        self.pass_time(2.9)
        self.assertEqual(self.server.store.folded, 1)
        self.pass_time(0.1)
        self.assertEqual((self.server.store.folded, self.keeper.unacknowledged), (2, 0))
