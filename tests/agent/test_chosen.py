"""The version that an Agent chose to write: what changes it, and what does not. A whole Agent in memory, and a Server."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, cast

import msgpack
from treq.testing import StubTreq
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taba import versions
from taba.agent import encoding, keeper
from taba.agent.edge import Edge
from taba.agent.forward import LEARN_SECONDS
from taba.agent.home import Home
from taba.agent.keeper import Keeper
from taba.agent.loop import Loop, Surroundings
from taba.agent.problems import Space
from taba.bounds import DAY, STREAM_DAYS, MiB
from taba.damage import unseal
from taba.versions import Versions
from tests.agent.producers import Producer
from tests.agent.servers import Answers

AGENT = "choosing"
LATEST = Versions((6, 5, 4), (4, 3, 2))  # the Agent's
READS_4, READS_5 = Versions((4,), (2,)), Versions((5, 4), (3, 2))
OTHER = "http://10.0.0.2:8280"


class Telling(Answers):
    """A Server that lists these with what they read, and says whether they are all."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = {self.url: READS_4}
        self.is_complete = True

    def render_GET(self, request: Any) -> bytes:
        answer = json.loads(super().render_GET(request))
        if isinstance(answer, dict):
            return json.dumps({**answer, **self.reads[self.url].told()}).encode()
        listed = [{"url": url, **read.told()} for url, read in self.reads.items()]
        return json.dumps(listed if self.is_complete else [{**one, "complete": False} for one in listed]).encode()


class Silent:
    """Who observes nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


class ChosenCase(SynchronousTestCase):
    """A whole Agent, of a program that writes `here`, and a Server that lists others."""

    here = LATEST
    edge: Edge | None = None

    def setUp(self) -> None:
        self.patch(versions, "HERE", self.here)
        for module in (keeper, encoding):  # which have it by name, as a program has whose latest is that
            self.patch(module, "BATCH_VERSION", self.here.batches[0])
        self.directory = tempfile.mkdtemp(dir="/dev/shm")
        self.addCleanup(shutil.rmtree, self.directory)
        self.clock, self.server = Clock(), Telling()
        self.random = Random(1)
        self.loop = self.born()
        self.addCleanup(lambda: self.loop.close())
        self.producer = Producer(AGENT, "web/1", 65_536, self.directory)
        self.addCleanup(self.producer.die)

    def born(self) -> Loop:
        self.http: Any = StubTreq(self.server)
        new_id = lambda: self.random.randbytes(16)  # noqa: E731
        home = Home(AGENT, Path(self.directory, "disk"), 8 * MiB, MiB, self.directory, new_id)
        around = Surroundings(
            reactor=self.clock,
            wall=self.clock.seconds,
            since_boot=self.clock.seconds,
            boot=1,
            random=self.random,
            new_id=new_id,
            client=cast(Any, self.http),
            kept=cast(Any, None),
            shown=dict,
            host="host",
            shm=self.directory,
            space=lambda: Space(64 * MiB, 128 * MiB),
        )
        return Loop(home, [self.server.url], Path(self.directory, "store"), around, cast(Any, Silent()), edge=self.edge)

    @property
    def keeper(self) -> Keeper:
        return self.loop.keeper

    def hear(self, is_complete: bool = True, **reads: Versions) -> tuple[int, int]:
        """The Agent asks, and these read that. The versions that it writes then."""
        self.server.reads = {{"asked": self.server.url, "other": OTHER}[name]: read for name, read in reads.items()}
        self.server.is_complete = is_complete
        self.clock.advance(LEARN_SECONDS)
        self.loop.forwarder.tick()
        self.http.flush()
        return self.keeper.version, self.loop.forwarder.envelope_version

    def record(self) -> set[int]:
        """Events are drained. The versions of all batches of the stream of now that are held."""
        self.producer.record(self.producer.tab("hits"), 1.0)
        self.loop.pump.drain(*self.loop.clock())
        outbox = self.keeper.outbox
        stored = [stored for group in outbox.groups() for stored in group.batches if stored.id.stream == self.keeper.stream]
        return {msgpack.unpackb(outbox.read(one.position, one.length))[0] for one in stored}


class ChosenTests(ChosenCase):
    def test_it_holds_in_every_stream_that_begins(self) -> None:
        self.assertEqual(self.hear(asked=READS_5), (5, 3))
        self.loop.pump.tick(*self.loop.clock())  # the ring is found
        self.assertEqual(self.record(), {5})

        def moves() -> None:
            while self.keeper.holds_any:
                assert self.keeper._move_some(*self.loop.clock())

        def was_spooling() -> None:
            self.keeper._spooled_stream = self.keeper.stream

        def days_pass() -> None:
            self.clock.advance(STREAM_DAYS * DAY + 1)
            self.keeper.tick(*self.loop.clock())

        for begins in (moves, lambda: self.loop.pump.set_buckets(16, self.loop.moment()), was_spooling, days_pass):
            before = self.keeper.stream
            begins()
            self.assertEqual(self.record(), {5})
            self.assertNotEqual(self.keeper.stream, before)

    def test_it_holds_for_the_next_agent_before_that_has_heard(self) -> None:
        self.assertEqual(self.hear(asked=READS_5), (5, 3))
        self.loop.close()
        self.loop = self.born()
        self.loop.pump.tick(*self.loop.clock())
        self.assertEqual(self.record(), {5})

    def test_a_server_that_does_not_know_the_others_leads_to_none_later_and_makes_forget_nobody(self) -> None:
        self.assertEqual(self.hear(asked=READS_5, other=READS_4), (4, 2))
        self.assertEqual(self.hear(False, asked=READS_5), (4, 2))
        self.assertIn(OTHER, self.loop.dispatch.servers)
        self.assertEqual(self.hear(asked=READS_5), (5, 3))  # the other one is gone
        self.assertNotIn(OTHER, self.loop.dispatch.servers)

    def test_it_leads_to_an_earlier_one_and_the_next_that_knows_all_back(self) -> None:
        self.assertEqual(self.hear(asked=LATEST, other=READS_5), (5, 3))
        self.assertEqual(self.hear(False, asked=READS_4), (4, 2))
        self.assertEqual(self.hear(False, asked=LATEST), (4, 2))
        self.assertEqual(self.hear(asked=LATEST, other=READS_5), (5, 3))

    def test_nor_to_a_later_one_where_it_is_the_first_that_is_heard_of(self) -> None:
        self.assertEqual(self.hear(asked=READS_5, other=READS_4), (4, 2))
        self.loop.close()
        self.loop = self.born()
        self.assertEqual(self.hear(False, asked=READS_5), (4, 2))
        self.assertEqual(json.loads(unseal(Path(self.directory, "store").read_bytes()).texts[-1])["batch_version"], 4)

    def test_those_that_were_known_last_count_where_the_others_are_not_told(self) -> None:
        reads_5 = Versions((5,), (3,))
        self.assertEqual(self.hear(asked=reads_5, other=reads_5), (5, 3))
        self.assertEqual(self.hear(False, asked=READS_4), (5, 3))  # the other one does not read the earlier
        self.assertIn(
            "batches are written here in version 6, 5, 4, and not all Servers read one of these", "".join(self.loop.problems({}).values())
        )


class FullDiskTests(ChosenCase):
    def test_rings_are_read_and_nothing_is_sent_while_it_cannot_be_kept_which_store_that_is_for(self) -> None:
        pin = self.loop.pin
        self.patch(pin, "_write", fails_by_full_disk)
        self.hear(asked=READS_5)
        self.assertEqual((pin.store, self.loop.pump.buckets is None, self.loop.forwarder.may_send()), (None, False, False))
        self.assertIn("No space left on device", f"{self.loop.dispatch.servers[self.server.url].problem}")
        self.loop.pump.tick(*self.loop.clock())  # the ring is found
        self.assertNotEqual(self.record(), set())
        del pin._write  # there is room
        self.hear(asked=READS_5)
        self.assertEqual((pin.store is None, self.loop.forwarder.may_send()), (False, True))


def fails_by_full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
