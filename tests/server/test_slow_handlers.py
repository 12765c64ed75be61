"""Servers whose users' Handlers are slow, hang for a while, or end their process: on a real store, with real children."""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import deferLater

from taba.handlers import Handler
from taba.handlers.lookup import Lookup
from taba.server import service
from taba.server.fold import posts
from taba.server.service import Server
from taba.server.work import sandbox
from taba.server.work.sandbox import Sandbox

from .running import BUCKETS, ServerCase, asynchronous, encoded, reactor, together
from .samples import Sum, column, lookup_of, tab_in

BUCKET = 3
MINE, THEIRS = tab_in(BUCKET, 0, BUCKETS), tab_in(BUCKET, 1, BUCKETS)
PLUGIN = '''
import os, time
from taba.handlers import Handler

class Naps(Handler):
    """The sum of its values; what a value says is looked up in a directory."""
    type = "Naps"
    def new_state(self): return 0
    def fold(self, state, events, now):
        for value in events.values:
            while os.path.exists(f"@DIRECTORY@/wait{value:g}"): time.sleep(0.01)
            if os.path.exists(f"@DIRECTORY@/exit{value:g}"): os._exit(1)
            time.sleep(value if value < 1 else 0)
        return state + sum(events.values)
    def project(self, state, now): return {"total": state}
    def aggregate(self, projections): return {"total": sum(one["total"] for one in projections)}

naps = Naps()
'''


class Naps(Handler):
    type = "Naps"


class SlowHandlers(ServerCase):
    timeout = 300

    def setUp(self) -> None:
        super().setUp()
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        plugins = self.directory / "twisted" / "plugins"
        plugins.mkdir(parents=True)
        (plugins / "naps_handler.py").write_text(PLUGIN.replace("@DIRECTORY@", str(self.directory)))
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(self.directory), str(Path(__file__).parent.parent.parent)])}
        lookup = Lookup({**lookup_of(Sum())._found, **lookup_of(Naps(), own=False)._found})
        self.patch(service, "find_safely", lambda: lookup)
        self.patch(service, "Sandbox", partial(Sandbox, environ=environ))

    def say(self, *words: str) -> None:
        for word in words:
            (self.directory / word).touch()

    def take_back(self, *words: str) -> None:
        for word in words:
            (self.directory / word).unlink()

    async def until_applied(self, server: Server, entry: Any) -> int:
        """Send it as an Agent does, until it is applied; how often it had to wait."""
        waited = 0
        while True:
            [verdict] = await self.send(server, entry)
            if verdict.word == "applied":
                return waited
            self.assertEqual(verdict.word, "later", verdict)
            waited += 1
            await deferLater(reactor, 0.05)

    async def total(self, server: Server, tab: str) -> Any:
        return (await self.get(server, f"/v1/aggregates?name={tab}"))[tab]["total"]

    async def done(self, server: Server, path: str) -> Any:
        id = (await self.ask(server, path, "POST")).json["id"]
        while True:
            [record] = await self.get(server, f"/v1/jobs?id={id}")
            if record["state"] != "running":
                return record
            await deferLater(reactor, 0.02)

    @pytest.mark.real
    @asynchronous
    async def test_two_servers_fold_one_bucket_exactly_while_one_of_them_has_a_handler_that_takes_seconds(self) -> None:
        servers = [await self.start(), await self.start()]
        batches = 5

        async def slow() -> int:
            return sum(
                [
                    await self.until_applied(
                        servers[0],
                        encoded(1, BUCKET, n, [column(MINE, "Naps", [0.25, 2.0], client=f"web/{client}") for client in range(6)]),
                    )
                    for n in range(1, batches + 1)
                ]
            )

        slowly = slow()
        is_over = False

        async def slow_to_the_end() -> int:
            nonlocal is_over
            try:
                return await slowly
            finally:
                is_over = True

        async def fast() -> int:
            number = 0
            while not is_over or number < 20:
                number += 1
                await self.until_applied(servers[1], encoded(2, BUCKET, number, [column(THEIRS, "Sum", [1.0])]))
            return number

        waited, sent = await together([slow_to_the_end(), fast()])
        self.assertGreater(waited, 0)  # 1.5 s a batch: longer than a cycle waits
        self.assertEqual(await self.total(servers[1], MINE), batches * 6 * 2.25)
        self.assertEqual(await self.total(servers[0], THEIRS), sent)
        status = await self.get(servers[0], "/v1/status")
        self.assertEqual((status["folded"], status["dead_letters"]), (batches * 12 + sent, 0))
        self.assertIn("the Handler of Type Naps is slow: ", str(status["problems"]))

    @pytest.mark.real
    @asynchronous
    async def test_a_handler_that_hangs_holds_up_nobody_in_its_bucket(self) -> None:
        self.patch(sandbox, "ITEM_SECONDS", 200.0)
        server = await self.start()
        self.say("wait7")
        hanging = encoded(1, BUCKET, 1, [column(MINE, "Naps", [7.0])])
        for number in range(1, 6):
            [verdict, other] = await self.send(server, hanging, encoded(2, BUCKET, number, [column(THEIRS, "Sum", [1.0])]))
            self.assertEqual((verdict.word, other.word), ("later", "applied"))
        posted = await self.post(server, [{"tab": THEIRS, "type": "Sum", "value": 1}])
        self.assertEqual(posted.status, 200)
        self.take_back("wait7")
        await self.until_applied(server, hanging)
        self.assertEqual((await self.total(server, MINE), await self.total(server, THEIRS)), (7.0, 6.0))

    @pytest.mark.real
    @asynchronous
    async def test_posted_events_are_waited_for_longer_than_a_cycle_waits(self) -> None:
        server = await self.start()
        events = [{"tab": MINE, "type": "Naps", "value": value} for value in (0.5, 0.25, 0.5)]
        # once with a key, once without: the first waits for its child, too
        for key in ("k", None):
            while (answered := await self.post(server, events, key)).status != 200:
                self.assertEqual(answered.status, 503)
                assert key is not None, "in this process's own stream it counts twice"
        self.assertEqual(await self.total(server, MINE), 2.5)
        self.assertEqual((await self.post(server, events, "k")).status, 200)
        self.assertEqual(await self.total(server, MINE), 2.5)

    @pytest.mark.real
    @asynchronous
    async def test_a_post_that_was_not_folded_in_time_finds_what_was_done_when_it_comes_again(self) -> None:
        self.patch(posts, "POST_SECONDS", 0.2)
        server = await self.start()
        events = [{"tab": MINE, "type": "Naps", "value": 0.75}] * 2  # of no time: that of when they came first
        while (answered := await self.post(server, events, "k")).status != 200:
            self.assertEqual(answered.status, 503)
        self.assertEqual(await self.total(server, MINE), 1.5)
        self.assertEqual(server.sandbox.slow["Naps"].times, 1)
        self.assertEqual((await self.post(server, events, "k")).status, 200)
        self.assertEqual(await self.total(server, MINE), 1.5)

    @pytest.mark.real
    @asynchronous
    async def test_dead_letters_that_are_retried_at_once_are_tried_at_once(self) -> None:
        server = await self.start()
        self.say("exit9")
        await self.until_applied(server, encoded(1, BUCKET, 1, [column(MINE, "Naps", [9.0, 1.0])]))
        self.assertEqual((await self.get(server, "/v1/status"))["dead_letters_by_reason"], {"handler_error": 1})
        self.assertIn("0 events folded, 1 still", (await self.done(server, "/v1/retry"))["message"])
        self.take_back("exit9")
        self.assertIn("1 event folded, 0 still", (await self.done(server, "/v1/retry"))["message"])
        self.assertEqual(await self.total(server, MINE), 10.0)

    @pytest.mark.real
    @asynchronous
    async def test_innocent_letters_come_out_although_their_type_is_suspended_and_culprits_are_before_them(self) -> None:
        server = await self.start()
        culprits = [float(value) for value in range(11, 15)]
        self.say(*(f"exit{value:g}" for value in culprits))
        columns = [column(MINE, "Naps", [value], client=f"web/{value:g}") for value in (*culprits, 21.0, 22.0, 23.0)]
        await self.until_applied(server, encoded(1, BUCKET, 1, columns))
        status = await self.get(server, "/v1/status")
        self.assertEqual(status["dead_letters_by_reason"], {"handler_error": 7})
        self.assertIn("Type Naps is suspended", str(status["problems"]))
        self.assertIn("3 events folded, 4 still", (await self.done(server, "/v1/retry"))["message"])
        details = [letter["detail"] for letter in await self.get(server, "/v1/dead-letters")]
        self.assertEqual(["exit code 1" in detail for detail in details], [True] * 4, details)
        # within a bound: what is not tried says so
        self.patch(sandbox, "MAX_CULPRITS_OF_RETRY", 2)
        self.assertIn("0 events folded, 4 still", (await self.done(server, "/v1/retry"))["message"])
        details = [letter["detail"] for letter in await self.get(server, "/v1/dead-letters")]
        self.assertEqual(sum("not tried again, since 2 others" in detail for detail in details), 2)
