"""What a whole Agent sends, with Servers that refuse, fail, hang, are away, or whose store went back in time."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor, task
from twisted.web import server

from taba import batch as codec
from taba.agent import dispatch, forward
from taba.agent.pin import PinFile
from taba.batch import Verdict
from taba.names import ALIVE_TAB, bucket_of
from tests.agent.servers import FakeServer
from tests.agent.whole import WholeAgent


class SendingTests(WholeAgent):
    async def test_a_refused_batch_is_counted_and_the_next_goes_on(self) -> None:
        producer = self.producer()
        tab = producer.tab("bids_won")
        refusing = {"on": True}
        self.server.verdict = lambda sent: Verdict(codec.REFUSED, "no") if refusing["on"] and b"bids_won" in sent.batch else None
        service = self.start()
        producer.record(tab, 1.0)
        await self.until(lambda: service.loop.keeper.books.dropped["refused"] == 1)
        refusing["on"] = False
        producer.record(tab, 2.0)
        await self.until(lambda: self.server.store.folded == 1)
        self.assertEqual(self.server.store.events["web/1", "bids_won"], [2.0])
        self.assertEqual(service.loop.keeper.books.dropped["gap"], 0)
        self.assertEqual(len(service.loop.keeper.spool.aside()), 1)
        self.kill(service)
        service = self.start()
        await task.deferLater(reactor, 0.5, lambda: None)
        self.assertEqual(dict(service.loop.keeper.books.totals()), {"refused": 1})

    async def test_a_batch_that_was_written_over_in_the_outbox_is_counted_as_that_and_not_sent(self) -> None:
        producer = self.producer()
        tab = producer.tab("bids_won")
        self.server.verdict = lambda sent: Verdict(codec.LATER, 0.05) if b"bids_won" in sent.batch else None
        service = self.start()
        keeper = service.loop.keeper
        producer.record(tab, 1.0)

        def held() -> list[Any]:
            return [batch for lane in keeper.lanes.values() for batch in lane.pending if b"bids_won" in (keeper.read(lane, batch) or b"")]

        await self.until(lambda: held())
        (batch,) = held()
        keeper.outbox._write(batch.position + batch.length - 8, b"\0" * 8)  # a value: it decodes as before
        self.server.verdict = lambda sent: None
        await self.until(lambda: keeper.books.dropped["outbox_corrupt"] == 1)
        self.assertEqual(self.server.store.folded, 0)
        (refusal,) = keeper.books.refusals
        self.assertIn("wrote to the outbox", refusal.detail)
        [(_, _, _, content)] = keeper.spool.aside()
        self.assertIn(b"bids_won", content)

    async def test_answers_that_are_no_verdicts_mean_later(self) -> None:
        producer = self.producer()
        tab = producer.tab("bids_won")
        answers = [(404, b"nothing here"), (200, b"<html>welcome</html>"), (413, b"too large"), (500, b"oops"), (200, b"\xc1" * 10)]

        def answer(request: Any, envelope: codec.Envelope) -> bytes | None:
            if not answers:
                return None
            code, body = answers.pop()
            request.setResponseCode(code)
            if code == 200 and body.startswith(b"\xc1"):
                request.setHeader(codec.VERDICTS_HEADER, "1")
            return body

        self.server.answer = answer
        self.start()
        producer.record(tab, 1.0)
        await self.until(lambda: self.server.store.folded == 1)
        self.assertEqual(answers, [])

    async def test_a_full_outbox_moves_to_the_spool_and_both_drain_when_a_server_is_there(self) -> None:
        producer = self.producer(size=1 << 20)
        tab = producer.tab("bids_won")
        (self.spool / f"{self.agent}.store").write_text('{"id": "4f2a", "buckets": 8}')
        down = {"on": True}

        def answer(request: Any, envelope: codec.Envelope) -> bytes | None:
            if down["on"]:
                request.setResponseCode(503)
                return b"away"
            return None

        self.server.answer = answer
        service = self.start(outbox_bytes=4 << 20)
        total = 0
        while not service.loop.keeper.moves:
            for _ in range(20_000):
                producer.record(tab, 1.0)
            total += 20_000
            await self.recorded(service, total)
        self.assertGreater(service.loop.keeper.spool.batches, 0)
        producer.record(tab, 5.0)
        self.kill(service)
        down["on"] = False
        service = self.start(outbox_bytes=4 << 20)
        await self.until(lambda: self.server.store.folded >= total + 1)
        self.assertEqual(self.server.store.folded, total + 1)
        self.assertEqual(dict(service.loop.keeper.books.totals()), {})

    async def test_beyond_the_spools_bound_the_newest_events_are_dropped_and_counted(self) -> None:
        producer = self.producer(size=1 << 20)
        tab = producer.tab("bids_won")
        (self.spool / f"{self.agent}.store").write_text('{"id": "4f2a", "buckets": 8}')
        self.server.answer = lambda request, envelope: (request.setResponseCode(503), b"away")[1]
        service = self.start(outbox_bytes=4 << 20, spool_bytes=1 << 20)
        total = 0
        while not service.loop.keeper.books.dropped["spool_full"]:
            for _ in range(20_000):
                producer.record(tab, 1.0)
            total += 20_000
            await self.recorded(service, total)
        self.assertLessEqual(service.loop.keeper.spool.used, 1 << 20)
        self.server.answer = None
        await self.until(lambda: self.server.store.folded + service.loop.keeper.books.dropped["spool_full"] == total)

    async def test_a_store_that_went_back_in_time_gets_what_is_retained_again(self) -> None:
        producer = self.producer()
        tab = producer.tab("bids_won")
        self.server.buckets = 64
        service = self.start()
        for value in range(5):
            producer.record(tab, float(value))
            await self.until(lambda value=value: self.server.store.folded == value + 1)  # type: ignore[misc]
        store = self.server.store
        (key,) = [key for key in store.marks if key[1] == bucket_of("bids_won", 64)]
        self.assertNotEqual(key[1], bucket_of(ALIVE_TAB, 64))
        self.assertEqual(store.marks[key], 5)
        store.set_mark(*key, 2)
        store.events["web/1", "bids_won"] = [0.0, 1.0]
        producer.record(tab, 5.0)
        await self.until(lambda: store.marks[key] == 6)
        self.assertEqual(store.events["web/1", "bids_won"], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
        self.assertEqual(service.loop.keeper.books.dropped["gap"], 0)

    async def test_posted_events_are_in_the_outbox_before_the_answer_and_count_once_by_their_key(self) -> None:
        service = self.start()
        await self.until(lambda: service.loop.pump.buckets)
        good, bad = {"tab": "jobs", "type": "CounterGroup", "value": 2}, {"tab": "!", "type": "X", "value": 1}
        events = {"client": "poster", "events": [good, bad]}
        for _ in range(2):
            status, content = await self.ask(service, "POST", "/v1/events", events, **{"Idempotency-Key": "abc"})
            self.assertEqual((status, content["accepted"], content["rejected"][0]["index"]), (200, 1, 1))
        await self.until(lambda: self.server.store.folded == 1)
        await task.deferLater(reactor, 0.2, lambda: None)
        self.assertEqual(self.server.store.events, {("poster", "jobs"): [2.0]})

    async def test_envelopes_to_other_hosts_are_compressed(self) -> None:
        self.patch(dispatch, "is_loopback", lambda host: False)
        producer = self.producer()
        for number in range(500):
            producer.record(producer.tab("bids_won"), float(number))
        self.start()
        await self.until(lambda: self.server.store.folded == 500)
        self.assertGreater(self.server.compressed, 0)

    async def test_a_server_that_never_answers_is_left_for_another(self) -> None:
        self.patch(forward, "POST_SECONDS", 0.3)
        hanging = FakeServer()
        self.addCleanup(hanging.stop)
        hanging.answer = lambda request, envelope: server.NOT_DONE_YET
        hanging.known = [hanging.url, self.server.url]
        producer = self.producer()
        for number in range(50):
            producer.record(producer.tab(f"tab_{number}"), 1.0)
        service = self.start(hanging.url)
        await self.until(lambda: self.server.store.folded == 50)
        await self.until(lambda: "no answer in time" in " ".join(service.problems()))

    async def test_a_batch_on_which_the_server_fails_holds_up_no_other(self) -> None:
        producer = self.producer()
        poison = producer.tab("poison")

        def answer(request: Any, envelope: codec.Envelope) -> bytes | None:
            if any(b"poison" in entry.batch for entry in envelope.entries if isinstance(entry, codec.SentBatch)):
                request.setResponseCode(500)
                return b"oops"
            return None

        self.server.answer = answer
        self.server.buckets = 64
        self.start()
        producer.record(poison, 1.0)
        for number in range(20):
            producer.record(producer.tab(f"tab_{number}"), 1.0)
        await self.until(lambda: self.server.store.folded == 20)
        for number in range(20):
            producer.record(producer.tab(f"tab_{number}"), 1.0)
        await self.until(lambda: self.server.store.folded == 40)
        self.server.answer = None
        await self.until(lambda: self.server.store.folded == 41)

    async def test_while_nobody_knows_any_more_to_which_store_was_sent_all_is_kept_and_nothing_sent_until_somebody_says(self) -> None:
        service = self.start()
        await self.until(lambda: service.loop.pin.store is not None)
        await self.stop(service)
        path = self.spool / f"{self.agent}.store"
        path.write_bytes(b"\0" * 200)  # as some disks leave a file
        producer = self.producer()
        tab = producer.tab("words", "Buffer")
        producer.record(tab, "hello")
        again = self.start()
        await self.recorded(again, 1)  # rings are read
        await self.until(lambda: "is the one, remove that file" in again.loop.problems({}).get("pin", ""))
        again.loop.forwarder.pump()
        self.assertEqual((self.server.store.folded, again.loop.keeper.unacknowledged > 0, path.read_bytes()), (0, True, b"\0" * 200))
        path.unlink()
        await self.until(lambda: self.server.store.folded == 1)
        self.assertNotIn("pin", again.loop.problems({}))
        self.assertIsNotNone(PinFile(path).store)

    async def test_one_slow_server_and_a_dead_one_hold_up_nobody(self) -> None:
        producer = self.producer()
        dead = FakeServer()
        await dead.stop()
        self.server.known = [self.server.url, dead.url]
        self.start(dead.url, self.server.url)
        for number in range(50):
            producer.record(producer.tab(f"tab_{number}"), 1.0)
        await self.until(lambda: self.server.store.folded == 50)
