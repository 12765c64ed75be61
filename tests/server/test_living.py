"""Which Servers and which jobs live is told by what they say, and by nobody's wall clock."""

from __future__ import annotations

import json
from typing import Any, cast
from unittest import mock

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase

from taba.bounds import DAY
from taba.errors import StoreUnavailable
from taba.server import keys
from taba.server.keep.jobs import KEEP_MINUTES, LOST_SECONDS, SAY_SECONDS, Job, Jobs
from taba.server.rates import Moving
from taba.server.status import (
    GONE_SECONDS,
    MAX_SAID_CHARACTERS,
    MAX_SAID_PROBLEMS,
    PRESENCE_BUCKET,
    PRESENCE_SECONDS,
    Presence,
)
from taba.shard.memory.router import MemoryRouter
from taba.shard.memory.server import MemoryServer
from tests.shard.pieces import always

NOON = 1_800_000_000.0
OFFSETS = (0.0, GONE_SECONDS, -GONE_SECONDS, 40 * DAY, -NOON)  # of the other's clock


async def away(*_: Any) -> Any:
    """What a Router says in the end of a store that is away; it says so here at once, for the tests' clocks are not to go on meanwhile."""
    raise StoreUnavailable("away")


class LivingCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.store = [MemoryServer(self.clock)]

    def router(self) -> Any:
        router = MemoryRouter(self.store, 4, self.clock)
        self.successResultOf(ensureDeferred(router.connect()))
        return router

    def wait(self, awaitable: Any) -> Any:
        return self.successResultOf(ensureDeferred(awaitable))


class Servers(LivingCase):
    def presence(self, url: str, wall: float) -> Presence:
        presence = Presence(self.router(), lambda: wall + self.clock.seconds(), self.clock, Moving(self.clock.seconds))
        presence.url = url
        return presence

    def urls(self, presence: Presence) -> list[str]:
        return [entry["url"] for entry in self.wait(presence.servers())]

    def test_those_that_say_so_are_there_whatever_their_clocks_say(self) -> None:
        for offset in OFFSETS:
            here, there = self.presence("http://a", NOON), self.presence("http://b", NOON + offset)
            for _ in range(int(3 * GONE_SECONDS / PRESENCE_SECONDS)):
                for presence in (here, there):
                    self.wait(presence.announce())
                for presence in (here, there):
                    self.assertEqual(self.urls(presence), ["http://a", "http://b"], offset)
                self.clock.advance(PRESENCE_SECONDS)

    def test_one_that_was_silent_for_as_long_as_the_bound_is_gone_for_who_saw_it_and_not_before(self) -> None:
        for offset in OFFSETS:
            here, there = self.presence("http://a", NOON), self.presence("http://b", NOON + offset)
            self.wait(there.announce())
            self.wait(here.announce())
            self.clock.advance(GONE_SECONDS - 1)
            self.assertEqual(self.urls(here), ["http://a", "http://b"], offset)
            self.clock.advance(1)
            self.assertEqual(self.urls(here), ["http://a"], offset)
            late = self.presence("http://c", NOON)
            self.assertEqual(self.urls(late), ["http://a", "http://b", "http://c"])  # which has not seen it long enough
            self.wait(here.announce())
            self.assertEqual(self.urls(late), ["http://a", "http://c"])  # it was taken out
            self.wait(there.announce())
            self.assertEqual(self.urls(here), ["http://a", "http://b"])
            self.wait(there.withdraw())
            self.assertEqual(self.urls(here), ["http://a"])

    def test_the_time_in_which_nobody_could_say_anything_does_not_count(self) -> None:
        here, there = self.presence("http://a", NOON), self.presence("http://b", NOON)
        self.wait(there.announce())
        self.wait(here.announce())
        self.clock.advance(GONE_SECONDS)
        with mock.patch.object(here._router, "transact", away):
            self.failureResultOf(ensureDeferred(here.announce()), StoreUnavailable)
        self.assertEqual(self.urls(here), ["http://a", "http://b"])

    def test_while_the_store_is_away_it_is_this_one_alone_and_says_that_it_is_not_all(self) -> None:
        here, there = self.presence("http://a", NOON), self.presence("http://b", NOON)
        for presence in (here, there):
            self.wait(presence.announce())
        self.assertEqual([entry.get("complete") for entry in self.wait(here.servers())], [None, None])
        for reaches in (True, False):
            with mock.patch.multiple(here._router, reaches=mock.Mock(return_value=reaches), read=away):
                self.assertEqual([(entry["url"], entry["complete"]) for entry in self.wait(here.servers())], [("http://a", False)])
        self.assertEqual(self.urls(here), ["http://a", "http://b"])

    def test_what_is_wrong_at_one_is_told_by_the_others_within_bounds(self) -> None:
        here, there = self.presence("http://a", NOON), self.presence("http://b", NOON)
        for said, told in (
            (None, None),  # not known yet
            ([], []),
            (["it burns"], ["it burns"]),
            ([f"{n}" for n in range(MAX_SAID_PROBLEMS)], [f"{n}" for n in range(MAX_SAID_PROBLEMS)]),
            (
                [f"{n}" for n in range(MAX_SAID_PROBLEMS + 1)],
                [*(f"{n}" for n in range(MAX_SAID_PROBLEMS - 1)), "and 2 more problems: see the status of this Server"],
            ),
            (["é" * MAX_SAID_CHARACTERS], ["é" * MAX_SAID_CHARACTERS]),
            (["é" * (MAX_SAID_CHARACTERS + 1)], ["é" * (MAX_SAID_CHARACTERS - 1) + "…"]),
        ):
            there.problems = said
            self.wait(there.announce())
            self.assertEqual([entry["problems"] for entry in self.wait(here.servers(detail=True))], [None, told])
            self.assertEqual([entry["problems"] for entry in self.wait(there.servers(detail=True)) if entry["url"] == "http://b"], [told])
            self.assertNotIn("problems", self.wait(here.servers())[1])

    def test_of_one_that_says_nothing_of_its_problems_nothing_is_told(self) -> None:
        here, there = self.presence("http://a", NOON), self.presence("http://b", NOON)
        name = keys.servers(PRESENCE_BUCKET)
        for strange in ("absent", "text", {"a": 1}, 7):
            self.wait(there.announce())
            [[_, content]] = self.wait(here._router.read(PRESENCE_BUCKET, [(b"HGETALL", name)]))
            entry = json.loads(content)
            entry.pop("problems") if strange == "absent" else entry.update(problems=strange)
            self.wait(here._router.transact(PRESENCE_BUCKET, [], always((b"HSET", name, b"http://b", json.dumps(entry).encode()))))
            self.assertIsNone(self.wait(here.servers(detail=True))[1]["problems"])

    def test_what_is_no_entry_is_nobody_and_goes(self) -> None:
        here = self.presence("http://a", NOON)
        name = keys.servers(PRESENCE_BUCKET)
        for bad in (b"", b"[]", b"{}", b"\xff", b'{"roles": []}'):
            self.wait(here._router.transact(PRESENCE_BUCKET, [], always((b"HSET", name, b"http://b", bad))))
            self.assertEqual(self.urls(here), ["http://a"])
            self.wait(here.announce())
            [left] = self.wait(here._router.read(PRESENCE_BUCKET, [(b"HKEYS", name)]))
            self.assertEqual(left, [b"http://a"])


class Living(LivingCase):
    """Jobs of two Servers on one store."""

    def setUp(self) -> None:
        super().setUp()
        self.age: int | None = 1000
        self.here, self.there = self.jobs(NOON), self.jobs(NOON)

    def jobs(self, wall: float) -> Jobs:
        jobs = Jobs(self.router(), lambda: wall + self.clock.seconds(), lambda: self.age, self.clock)
        jobs.register("hold", self.hold)
        jobs.register("end", self.end)
        return jobs

    async def hold(self, job: Job) -> None:
        await Deferred()

    async def end(self, job: Job) -> None:
        await deferLater(cast(Any, self.clock), 0)

    def start(self, jobs: Jobs, kind: str = "hold", quiet: float = 0.0) -> Any:
        record = self.wait(jobs.start(kind, quiet_seconds=quiet))
        self.clock.advance(0)  # what ends does so
        return record

    def states(self, jobs: Jobs) -> list[str]:
        return [record["state"] for record in self.wait(jobs.list())]

    def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds / SAY_SECONDS)):
            self.clock.advance(SAY_SECONDS)

    def test_one_that_says_so_lives_whatever_its_servers_clock_says(self) -> None:
        for offset in OFFSETS:
            there, self.age = self.jobs(NOON + offset), (self.age or 0) + 1
            started = self.start(there)
            for _ in range(3):
                self.pass_time(LOST_SECONDS)
                self.assertEqual(self.states(self.here)[:1], ["running"], offset)
                self.wait(self.here.look())
            self.assertEqual(self.start(self.here)["id"], started["id"])
            self.wait(self.here.cancel(started["id"]))

    def test_one_that_was_silent_for_as_long_as_the_bound_is_lost_for_who_looked_and_another_begins(self) -> None:
        lost = self.start(self.there)
        self.die(lost)
        self.wait(self.here.look())
        self.clock.advance(LOST_SECONDS - 1)
        self.assertEqual(self.states(self.here), ["running"])
        self.clock.advance(1)
        [record] = self.wait(self.here.list())
        self.assertEqual((record["state"], record["message"]), ("failed", "its Server is gone"))
        self.assertEqual(self.states(self.jobs(NOON)), ["running"])  # which has not seen it long enough
        self.assertNotEqual(self.start(self.here)["id"], lost["id"])

    def die(self, record: Any) -> None:
        """The Server of this job says no more."""
        self.assertIn(record["id"], self.there._mine)
        self.patch(self.there._router, "transact", away)

    def test_the_time_in_which_nobody_could_say_anything_does_not_count(self) -> None:
        self.die(self.start(self.there))
        self.wait(self.here.look())
        self.clock.advance(LOST_SECONDS)
        with mock.patch.object(self.here._router, "read", away):
            self.failureResultOf(ensureDeferred(self.here.look()), StoreUnavailable)
        self.assertEqual(self.states(self.here), ["running"])

    def test_what_has_ended_is_looked_at_once_and_what_is_gone_is_not_remembered(self) -> None:
        for _ in range(3):
            self.start(self.there, "end")
        self.clock.advance(0)
        self.wait(self.here.look())
        self.assertEqual(len(self.here._ended), 3)
        self.age = 1000 + KEEP_MINUTES + 1
        self.start(self.there, "end")
        self.wait(self.here.look())
        self.assertEqual(len(self.here._ended), 1)

    def test_the_quiet_time_and_how_long_records_are_kept_go_by_the_stores_age(self) -> None:
        for offset in OFFSETS:
            there = self.jobs(NOON + offset)
            self.age = (self.age or 0) + 100
            self.assertIsNotNone(self.start(there, "end"))
            for passed, is_quiet in ((0, True), (9, True), (10, False)):
                age, self.age = self.age, self.age + passed
                self.assertEqual(self.start(self.here, "end", 600.0) is None, is_quiet, (offset, passed))
                self.age = age
        self.age = (self.age or 0) + KEEP_MINUTES
        kept = len(self.states(self.here))
        self.start(self.here, "end")
        self.assertEqual(len(self.states(self.here)), kept - 8 + 1)  # the last two are as old as may be
        self.age = None
        self.start(self.here, "end")
        self.assertEqual(len(self.states(self.here)), kept - 8 + 2)
