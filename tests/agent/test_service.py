"""The life of an Agent, whole: how it starts, goes on after a kill, ends, and says what it finds."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from twisted.internet import defer, reactor, task
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers

from taba import batch as codec
from taba.agent import service as services
from taba.agent.ages import Moment
from taba.agent.loop import MAX_LAST_DRAINS
from taba.agent.options import Options
from taba.agent.outbox import EncodedBatch, OutboxFull
from taba.agent.pin import PinFile, Store
from taba.agent.problems import LOSS_SHOWN_SECONDS
from taba.agent.service import AgentService, makeService
from taba.agent.spool import Spool, SpoolFull
from taba.batch import BatchId, Verdict
from taba.caps import Caps
from taba.damage import seal, unseal
from taba.options import Listen
from tests.agent.whole import WholeAgent
from tests.sites import open_front


class Wiring(SynchronousTestCase):
    def test_who_looks_for_garbage_knows_how_many_connections_are_gone(self) -> None:
        told: list[Any] = []
        self.patch(services, "freeze_when_running", lambda *given: told.append(given))
        for name in ("make_monotonic", "on_hangup"):
            self.patch(services, name, lambda *given: None)
        options = Options()
        options.parseOptions(["--spool", self.mktemp()])
        made = makeService(options)
        [(_, _, ended)] = told
        self.assertEqual(ended(), 0)
        made._site = SimpleNamespace(ended=7)
        self.assertEqual(ended(), 7)


class ServiceTests(WholeAgent):
    async def test_what_a_ring_holds_reaches_the_store_and_the_outbox_lets_go(self) -> None:
        producer = self.producer()
        tabs = [producer.tab(f"tab_{number}") for number in range(20)]
        for value in range(1000):
            producer.record(tabs[value % 20], float(value))
        producer.record(producer.tab("words", "Buffer"), "hello")
        service = self.start()
        await self.until(lambda: self.server.store.folded == 1001)
        events = self.server.store.events
        self.assertEqual(events["web/1", "tab_3"], [float(value) for value in range(3, 1000, 20)])
        self.assertEqual(events["web/1", "words"], ["hello"])
        self.assertEqual(producer.tail, 1001)
        self.assertEqual(producer.byte_tail, 6)
        await self.until(lambda: service.loop.keeper.unacknowledged == 0)
        status, content = await self.ask(service, "GET", "/v1/status")
        self.assertEqual(status, 200)
        self.assertEqual(content["recorded"], 1001)
        self.assertEqual(content["rings"][0]["client"], "web/1")
        self.assertEqual(content["dropped_by_reason"], {})
        self.assertEqual(content["problems"], [])

    async def test_its_status_is_there_for_people_too(self) -> None:
        import treq

        producer = self.producer()
        producer.record(producer.tab("bids_won"), 1.0)
        service = self.start()
        await self.until(lambda: self.server.store.folded == 1)
        url = f"http://127.0.0.1:{service._port.getHost().port}/v1/status"
        response = await treq.get(url, headers=Headers({"Accept": ["text/plain"]}), persistent=False)
        lines = (await response.text()).splitlines()
        self.assertTrue(lines[0].endswith(f"Agent {self.agent}"), lines)
        self.assertEqual(lines[1].partition(", drained")[0], "rings: 1, recorded: 1")  # and whether without a C part
        self.assertIn(f"Server {self.server.url}: healthy", lines)
        self.assertTrue({line.partition(":")[0] for line in lines} >= {"outbox", "spool"}, lines)

    async def test_a_killed_agent_goes_on_from_its_outbox_and_nothing_counts_twice(self) -> None:
        producer = self.producer()
        tab = producer.tab("bids_won")
        later = {"on": True}
        self.server.verdict = lambda sent: Verdict(codec.LATER, 0.05) if later["on"] else None
        total = 0
        for round in range(5):
            service = self.start()
            for _ in range(100):
                producer.record(tab, 1.0)
            total += 100
            await self.recorded(service, total)
            if round == 2:
                later["on"] = False
                await self.until(lambda: self.server.store.folded >= 100)
            self.kill(service)
        service = self.start()
        await self.until(lambda: self.server.store.folded >= total)
        await task.deferLater(reactor, 0.3, lambda: None)
        self.assertEqual(self.server.store.folded, total)
        self.assertEqual(service.loop.keeper.books.recorded, total)

    async def test_a_clock_that_is_set_forward_makes_nothing_too_old_that_came_before(self) -> None:
        producer = self.producer()
        tab = producer.tab("bids_won")
        later = {"on": True}
        self.server.verdict = lambda sent: Verdict(codec.LATER, 0.05) if later["on"] else None
        service = self.start()
        producer.record(tab, 1.0)
        await self.recorded(service, 1)
        service.unix_now = lambda: time.time() + 30 * 86_400.0  # type: ignore[method-assign]
        producer.record(tab, 2.0)
        await self.recorded(service, 2)
        later["on"] = False
        await self.until(lambda: self.server.store.folded == 2)
        self.assertEqual(dict(service.loop.keeper.books.totals()), {})

    async def test_an_outbox_that_somebody_removed_is_made_anew_with_all_that_it_held(self) -> None:
        producer = self.producer()
        self.server.verdict = lambda sent: Verdict(codec.LATER, 30.0)
        service = self.start()
        producer.record(producer.tab("bids_won"), 1.0)
        await self.recorded(service, 1)
        path = f"/dev/shm/taba-agent.{self.agent}"
        os.unlink(path)
        producer.record(producer.tab("bids_won"), 2.0)
        await self.recorded(service, 2)
        self.assertTrue(os.path.exists(path))
        self.assertEqual((await self.ask(service, "GET", "/v1/status"))[1]["problems"], [])
        self.kill(service)
        self.server.verdict = None
        service = self.start()
        await self.until(lambda: self.server.store.folded == 2)
        self.assertEqual((service.loop.keeper.books.recorded, os.listdir("/dev/shm").count(f"taba-agent.{self.agent}.new")), (2, 0))

    async def test_a_second_agent_reads_no_ring_of_the_first_and_says_who_holds_them_whatever_a_cleaner_removes(self) -> None:
        producer = self.producer()
        tab = producer.tab("bids_won")
        first_spool = self.spool
        first = self.start()
        for _ in range(100):
            producer.record(tab, 1.0)
        await self.until(lambda: self.server.store.folded == 100)
        self.server.verdict = lambda sent: Verdict(codec.LATER, 0.05)
        for _ in range(100):
            producer.record(tab, 1.0)
        await self.recorded(first, 200)
        first.loop._call.cancel()  # stopped, as SIGSTOP does
        os.unlink(f"/dev/shm/taba-agent.{self.agent}")
        for _ in range(100):
            producer.record(tab, 1.0)
        self.spool = self.directory()
        (self.spool / f"{self.agent}.store").write_text('{"id": "4f2a", "buckets": 8}')
        second = self.start()
        await self.until(lambda: second.loop.rings.taken)
        self.assertEqual((second.loop.rings.taken_by, second.loop.rings.open, second.loop.keeper.books.recorded), (os.getpid(), {}, 0))
        ended: list[bool] = []
        self.patch(first, "_end", lambda: ended.append(True))
        first.loop.step()
        await self.until(lambda: ended)
        self.assertEqual((first.loop.keeper.holds_any, first.loop.rings.open), (False, {}))
        await self.stop(first)
        left = 300 - first.loop.keeper.books.recorded  # on a busy machine its last step was due to read: they are in its spool
        await self.recorded(second, left)
        self.server.verdict = None
        await self.until(lambda: self.server.store.folded == 100 + left)
        await self.stop(second)
        self.spool = first_spool
        self.start()
        await self.until(lambda: self.server.store.folded >= 300)
        await task.deferLater(reactor, 0.3, lambda: None)
        self.assertEqual(self.server.store.folded, 300)

    async def test_a_second_agent_on_the_same_spool_ends_though_the_outbox_was_removed(self) -> None:
        first = self.start()
        first.loop._call.cancel()
        os.unlink(f"/dev/shm/taba-agent.{self.agent}")
        said = io.StringIO()
        self.patch(sys, "__stderr__", said)
        self.assertRaises(SystemExit, self.start)
        self.assertIn(f"process {os.getpid()} holds {self.spool}/{self.agent}.lock", said.getvalue())
        self.assertFalse(os.path.exists(f"/dev/shm/taba-agent.{self.agent}"))
        first.loop.step()

    async def test_an_agent_that_fails_to_start_leaves_nothing_behind(self) -> None:
        spool = self.spool
        taken = f"tcp:{self.server.port.getHost().port}:interface=127.0.0.1"
        self.patch(sys, "__stderr__", io.StringIO())
        for listen, directory, shm in (
            (taken, spool / "deep" / "er", "/dev/shm"),
            ("tcp:0:interface=127.0.0.1", spool / "other", "/dev/shm/no-such-directory"),
            ("tcp:0:interface=127.0.0.1", Path("/proc/no/such"), "/dev/shm"),
        ):
            endpoint = open_front(Listen(listen, 0, "127.0.0.1"), time.monotonic)
            service = AgentService(reactor, self.agent, [self.server.url], endpoint, directory, 64 << 20, 4 << 20, shm)
            self.assertRaises(SystemExit, service.startService)
            self.assertEqual(os.listdir(spool), [])
            self.assertEqual([name for name in os.listdir("/dev/shm") if self.agent in name], [])

    async def test_at_its_end_it_drains_no_longer_than_it_takes_to_read_every_ring(self) -> None:
        for more, drains in ((MAX_LAST_DRAINS - 1, MAX_LAST_DRAINS), (MAX_LAST_DRAINS, MAX_LAST_DRAINS), (2, 3)):
            service = self.start()
            await self.until(lambda service=service: service.loop.pump.buckets is not None)  # type: ignore[misc]
            with mock.patch.object(service.loop.pump, "drain", side_effect=[True] * more + [False]) as called:
                await self.stop(service)
            self.assertEqual(called.call_count, drains)

    async def test_at_its_end_readiness_goes_first_and_what_is_posted_meanwhile_is_kept(self) -> None:
        service = self.start()
        await self.until(lambda: service.loop.pump.buckets is not None)
        self.assertEqual((await self.ask(service, "GET", "/readyz"))[0], 200)
        recording: defer.Deferred[None] = defer.Deferred()  # inputs that have some left
        with mock.patch.object(service._inputs, "stop", lambda: recording):
            stopping = defer.ensureDeferred(self.stop(service))
            status, answer = await self.ask(service, "GET", "/readyz")
            self.assertEqual((status, answer["error"]), (503, "not_ready"))
            self.assertIn("this Agent stops", answer.values())
            event = {"client": "web/1", "events": [{"tab": "late", "type": "CounterGroup", "value": 1}]}
            self.assertEqual((await self.ask(service, "POST", "/v1/events", event))[0], 200)
            recording.callback(None)
            await stopping
        self.assertEqual(service.loop.keeper.books.recorded, 1)

    async def test_a_full_disk_at_its_end_keeps_it_from_nothing_else_and_the_next_one_starts(self) -> None:
        for fails, where in ((SpoolFull("the disk is full", True), "drain"), (OutboxFull("no room"), "settle_totals")):
            said: list[str] = []

            def hear(event: Any, said: list[str] = said) -> None:
                said.append(str(formatEvent(event)))

            service = self.start()
            loop = service.loop
            await self.until(lambda loop=loop: loop.pump.buckets is not None)  # type: ignore[misc]
            publisher: Any = globalLogPublisher
            publisher.addObserver(hear)
            self.addCleanup(publisher.removeObserver, hear)
            part = loop.pump if where == "drain" else loop.keeper
            with mock.patch.object(part, where, side_effect=fails), mock.patch.object(loop.keeper, "spool_all") as spooled:
                loop._name_problem = "its outbox is nobody's"
                await self.stop(service)
            publisher.removeObserver(hear)
            self.assertEqual(spooled.call_count, 1)  # what nobody would find again
            self.assertIn("the last drain failed", " ".join(said))
            self.assertIn(f"Agent {self.agent} ends: 0 batches are left in the outbox, 0 in the spool", said)
            self.flushLoggedErrors(type(fails))

    async def test_where_the_disk_cannot_read_what_an_earlier_agent_left_it_ends_with_one_line_and_all_of_it_is_there(self) -> None:
        spool = Spool(str(self.spool / f"{self.agent}.spool"))
        spool.add([EncodedBatch(BatchId(b"s" * 16, 1, 1), Moment(0.0, 0, None), 3, b"bytes")])
        spool.close()

        def fails(spool: Spool) -> list[bytes]:
            raise sqlite3.OperationalError("disk I/O error")

        said = io.StringIO()
        self.patch(sys, "__stderr__", said)
        with mock.patch.object(Spool, "posted", fails):
            self.assertRaises(SystemExit, self.start)
        line = f"taba-agent: --spool: {str(self.spool)!r}: what an earlier Agent left cannot be read: OperationalError: disk I/O error\n"
        self.assertEqual(said.getvalue(), line)
        self.server.verdict = lambda sent: Verdict(codec.LATER, 30.0)
        self.assertEqual(self.start().loop.keeper.spool.batches, 1)

    async def test_a_dead_clients_ring_is_drained_counted_and_removed(self) -> None:
        producer = self.producer()
        producer.record(producer.tab("last"), 1.0)
        producer.drop("ring_full", 7)
        service = self.start()
        await self.until(lambda: self.server.store.folded == 1)
        hole = producer.reserve()
        producer.record(producer.tab("last"), 2.0)
        self.assertEqual(hole, 1)
        producer.die()
        await self.until(lambda: not os.path.exists(producer.path))
        await self.until(lambda: self.server.store.events["web/1", "last"] == [1.0, 2.0])
        _, content = await self.ask(service, "GET", "/v1/status")
        self.assertEqual(content["dropped_by_reason"], {"ring_full": 7})
        self.assertEqual(content["rings"], [])
        self.kill(service)
        service = self.start()
        _, content = await self.ask(service, "GET", "/v1/status")
        self.assertEqual((content["recorded"], content["dropped_by_reason"]), (9, {"ring_full": 7}))

    async def test_a_second_agent_of_the_name_ends_with_one_line(self) -> None:
        self.start()
        said = io.StringIO()
        self.patch(sys, "__stderr__", said)
        with self.assertRaises(SystemExit) as raised:
            self.start()
        self.assertEqual(raised.exception.code, 1)
        self.assertIn(f"process {os.getpid()} holds", said.getvalue())
        self.assertEqual(said.getvalue().count("\n"), 1)

    async def test_its_log_tells_its_life_and_what_needs_a_person(self) -> None:
        said: list[str] = []

        def hear(event: Any) -> None:
            if event.get("log_namespace") == "taba.agent.service":
                said.append(str(formatEvent(event)))

        publisher: Any = globalLogPublisher
        publisher.addObserver(hear)
        self.addCleanup(publisher.removeObserver, hear)
        producer = self.producer()
        producer.record(producer.tab("bids_won"), 1.0)
        service = self.start()
        await self.until(lambda: self.server.store.folded == 1)
        await self.until(lambda: f"found Server {self.server.url}" in said)
        self.assertIn(f"Agent {self.agent} reads rings of TABA_AGENT={self.agent} in /dev/shm and sends to {self.server.url};", said[0])
        self.assertEqual([line for line in said if "problem" in line], [])
        producer.drop("ring_full", 123_456)
        await self.until(lambda: any("problem: 123456 events dropped as ring_full by Client web/1" in line for line in said))
        _, content = await self.ask(service, "GET", "/v1/status")
        self.assertIn("123456 events dropped as ring_full", " ".join(content["problems"]))
        await self.stop(service)
        self.assertIn(f"Agent {self.agent} ends: 0 batches are left in the outbox, 0 in the spool", said)

    async def test_nothing_is_drained_before_the_number_of_buckets_is_known_and_it_is_kept(self) -> None:
        producer = self.producer()
        producer.record(producer.tab("early"), 1.0)
        service = self.start("http://127.0.0.1:1")
        await task.deferLater(reactor, 0.3, lambda: None)
        self.assertEqual((producer.tail, (await self.ask(service, "GET", "/readyz"))[0]), (0, 503))
        await self.stop(service)
        service = self.start()
        await self.until(lambda: producer.tail == 1)
        await self.stop(service)
        service = self.start("http://127.0.0.1:1")
        self.assertEqual(service.loop.pump.buckets, 8)
        self.assertEqual((await self.ask(service, "GET", "/readyz"))[:2], (200, {"ready": True}))
        self.assertEqual((await self.ask(service, "GET", "/healthz"))[:2], (200, {"alive": True}))
        self.assertEqual((await self.ask(service, "POST", "/v1/events?x=1"))[0], 400)

    async def test_caps_are_those_that_were_told_last_before_anything_is_read_and_are_kept_for_the_next_start(self) -> None:
        service = self.start()
        await self.until(lambda: service.loop.pin.store is not None)
        await self.stop(service)
        path = self.spool / f"{self.agent}.store"
        told = json.loads(unseal(path.read_bytes()).texts[-1])
        told["caps"]["client_tabs"] = 7
        path.write_bytes(seal(json.dumps(told)))
        again = self.start()
        self.assertEqual(again.loop.rings.admission.caps, Caps(client_tabs=7))
        await self.until(lambda: again.loop.rings.admission.caps == Caps())  # as the Server tells it
        self.assertEqual(PinFile(path).caps, Caps())
        with mock.patch.object(PinFile, "keep", side_effect=OSError(28, "No space left on device", str(path))):
            again.loop._on_caps(Caps(client_tabs=9))
        self.assertEqual(again.loop.rings.admission.caps, Caps(client_tabs=9))
        self.assertIn(f"cannot be kept for its next start (No space left on device ({path}))", again.loop.problems({})["caps"])
        await self.until(lambda: "caps" not in again.loop.problems({}))  # no Server needs to tell it again
        self.assertEqual(PinFile(path).caps, Caps(client_tabs=9))
        with mock.patch.object(PinFile, "keep_version", side_effect=OSError(28, "No space left on device", str(path))):
            again.loop._keep_version()
            self.assertIn("No space left on device", again.loop.problems({})["version"])
        await self.until(lambda: "version" not in again.loop.problems({}))

    async def test_what_was_found_at_the_start_and_what_happened_once_are_said_for_an_hour(self) -> None:
        damaged = self.spool / f"{self.agent}.keys"
        damaged.write_bytes(b"no keys" * 1000)
        damaged.chmod(0o600)
        service = self.start()
        await self.until(lambda: service.loop.pump.buckets is not None)
        service.loop._on_store(Store(f"{service.loop._store_id()}", 16))
        service.loop.home.keys.mended = "they were damaged"
        self.assertEqual(set(service.loop.problems({})), {"start 0", "buckets changed", "keys mended"})
        service.loop._happened = {key: (told, when - LOSS_SHOWN_SECONDS) for key, (told, when) in service.loop._happened.items()}
        self.assertEqual(service.loop.problems({}), {})

    async def test_that_its_pin_was_damaged_and_is_mended_is_said_for_an_hour(self) -> None:
        path = self.spool / f"{self.agent}.store"
        first = PinFile(path)
        first.meets(Store(self.server.store_id, 8))
        path.write_bytes(path.read_bytes()[1:])  # of its two lines one is whole
        service = self.start()
        self.assertIn("nothing of it is lost", service.loop.problems({})["pin mended"])
        service.loop._happened = {key: (told, when - LOSS_SHOWN_SECONDS) for key, (told, when) in service.loop._happened.items()}
        self.assertNotIn("pin mended", service.loop.problems({}))

    async def test_a_ring_that_is_none_is_shown_and_harms_nobody(self) -> None:
        path = f"/dev/shm/taba.{self.agent}.{os.urandom(8).hex()}"
        with open(path, "wb") as file:
            file.write(os.urandom(70_000))
        producer = self.producer()
        producer.record(producer.tab("good"), 1.0)
        service = self.start()
        await self.until(lambda: self.server.store.folded == 1)
        _, content = await self.ask(service, "GET", "/v1/status")
        self.assertIn(os.path.basename(path), " ".join(content["problems"]))
