"""Jobs: one of a kind at a time, what they tell, and how they end."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from twisted.internet.task import deferLater

from taba.errors import StoreUnavailable, TabaError
from taba.server import keys, service
from taba.server.keep import jobs
from taba.server.work.probing import find_safely
from taba.shard import Writes

from ..running import asynchronous, encoded, reactor
from ..samples import Sum, column, lookup_of
from .cases import OLD_MINUTES, A, KeepingCase


class Jobs(KeepingCase):
    OLDER = '{"id": "%s", "kind": "prune", "state": "running", "done": 0, "total": 16, "started": 1.0, "message": "", "dry_run": false}'

    @asynchronous
    async def test_records_of_another_version_are_nobodys_jobs_and_hinder_none(self) -> None:
        server = await self.start()
        mine = await self.done(server, "/v1/upgrade")
        whole = json.loads(self.valkey.call("HGET", "taba:{0}:jobs", mine["id"]))
        strange = {
            "older": self.OLDER % "older",  # running, it says
            "newer": json.dumps({**whole, "v": jobs.RECORD_VERSION + 1, "id": "newer"}),
            "short": json.dumps({key: value for key, value in whole.items() if key != "age"}),
            "other": json.dumps({**whole, "age": "7", "id": "other"}),
            "list": "[]",
            "none": "x",
            "deep": "[" * 5000,
        }
        for id, record in strange.items():
            self.valkey.call("HSET", "taba:{0}:jobs", id, record)
        await server.jobs.look()
        self.assertEqual([record["id"] for record in await self.get(server, "/v1/jobs")], [mine["id"]])
        for id in strange:
            for method in ("GET", "DELETE"):
                answered = await self.ask(server, f"/v1/jobs?id={id}", method)
                self.assertEqual((answered.status, answered.json["error"]), (404, "unknown_job"), id)
        self.assertEqual((await self.done(server, "/v1/prune"))["state"], "done")
        self.assertEqual(int(self.valkey.call("HLEN", "taba:{0}:jobs")), 2 + len(strange))
        # beyond the bound they go, before any that is read
        self.patch(jobs, "MAX_RECORDS", 4)
        await self.done(server, "/v1/retry")
        self.assertEqual(int(self.valkey.call("HLEN", "taba:{0}:jobs")), 4)
        self.assertEqual(len(await self.get(server, "/v1/jobs")), 3)

    @asynchronous
    async def test_a_job_that_fails_is_a_problem_that_says_why_and_one_that_is_cancelled_is_none(self) -> None:
        server = await self.start()

        async def fail(job: jobs.Job) -> None:
            raise TabaError("the moon is full")

        server.jobs.register("upgrade", fail)
        await self.ask(server, "/v1/upgrade", "POST")
        while server.jobs._mine:
            await deferLater(reactor, 0.01)
        problems = [problem for problem in (await self.get(server, "/v1/status"))["problems"] if " of the kind upgrade " in problem]
        self.assertEqual(len(problems), 1)
        self.assertIn("1 job of the kind upgrade failed lately, the last one: the moon is full", problems[0])

        async def wait(job: jobs.Job) -> None:
            while True:
                job.check()
                await deferLater(reactor, 0.01)

        server.jobs.register("prune", wait)
        started = (await self.ask(server, "/v1/prune", "POST")).json
        await self.ask(server, f"/v1/jobs?id={started['id']}", "DELETE")
        while server.jobs._mine:
            await deferLater(reactor, 0.01)
        self.assertEqual(list(server.jobs.failed), ["upgrade"])

    @asynchronous
    async def test_what_is_no_dead_letter_is_shown_as_such(self) -> None:
        server = await self.start()
        for content in ("x", "\x92\x09\x01"):
            self.valkey.call("RPUSH", "taba:{3}:dead", content)
        letters = await self.get(server, "/v1/dead-letters")
        self.assertEqual([(letter["reason"], letter["bucket"]) for letter in letters], [("unreadable", 3)] * 2)
        self.assertIn("0 events folded", (await self.done(server, "/v1/retry"))["message"])
        self.assertEqual(len(await self.get(server, "/v1/dead-letters")), 2)

    @asynchronous
    async def test_a_list_that_looks_like_an_absolute_is_a_bad_value_however_often_it_is_retried(self) -> None:
        # a client posts what an Agent alone may send: at first nobody knows the Type, then it takes no list, retried or not
        ring = ["0123456789abcdef", 2**40, 1e6]
        self.patch(service, "find_safely", lambda: lookup_of(Sum()))
        before = await self.start()
        await self.send(before, encoded(1, 3, 1, [column(A, "UpDown", [ring, 1.0])]))
        self.assertEqual((await self.get(before, "/v1/status"))["dead_letters_by_reason"], {"unknown_type": 2})
        self.patch(service, "find_safely", find_safely)
        after = await self.start()
        self.assertIn("1 event folded, 1 still", (await self.done(after, "/v1/retry"))["message"])
        for _ in range(2):
            self.assertEqual((await self.get(after, "/v1/status"))["dead_letters_by_reason"], {"bad_value": 1})
            self.assertEqual((await self.get(after, f"/v1/aggregates?name={A}"))[A], {"value": 1.0})
            self.assertIn("0 events folded, 1 still", (await self.done(after, "/v1/retry"))["message"])

    @asynchronous
    async def test_a_job_is_seen_from_every_server_and_one_of_a_kind_runs_at_a_time(self) -> None:
        servers = [await self.start(), await self.start()]
        held: list[Any] = []

        async def hold(job: jobs.Job) -> None:
            job.total = 3
            while not held:
                job.check()
                await deferLater(reactor, 0.01)

        self.patch(jobs, "SAY_SECONDS", 0.05)
        for server in servers:
            server.jobs.register("upgrade", hold)
        first = (await self.ask(servers[0], "/v1/upgrade", "POST")).json
        self.assertEqual((first["kind"], first["state"], first["done"]), ("upgrade", "running", 0))
        for server in servers:
            self.assertEqual((await self.ask(server, "/v1/upgrade", "POST")).json["id"], first["id"])
            [record] = await self.get(server, "/v1/jobs")
            self.assertEqual((record["id"], record["state"]), (first["id"], "running"))
        cancelled = await self.ask(servers[1], f"/v1/jobs?id={first['id']}", "DELETE")
        self.assertEqual(cancelled.json["state"], "cancelled")
        while servers[0].jobs._mine:
            await deferLater(reactor, 0.01)
        [record] = await self.get(servers[1], "/v1/jobs")
        self.assertEqual((record["state"], record["total"]), ("cancelled", 3))
        second = (await self.ask(servers[1], "/v1/upgrade", "POST")).json
        self.assertNotEqual(second["id"], first["id"])
        held.append(True)
        while (await self.get(servers[0], "/v1/jobs"))[0]["state"] != "done":
            await deferLater(reactor, 0.01)
        self.assertEqual((await self.ask(servers[0], "/v1/jobs?id=nonsense", "DELETE")).status, 404)
        self.assertEqual((await self.ask(servers[0], "/v1/jobs?id=nonsense")).status, 404)

    @asynchronous
    async def test_a_job_whose_server_is_gone_is_failed_and_can_be_started_again(self) -> None:
        servers = [await self.start(), await self.start()]

        async def never(job: jobs.Job) -> None:
            while True:
                await deferLater(reactor, 0.01)
                job.check()

        servers[0].jobs.register("upgrade", never)
        first = (await self.ask(servers[0], "/v1/upgrade", "POST")).json
        await self.stop(servers[0])
        [record] = await self.get(servers[1], "/v1/jobs")
        self.assertEqual((record["state"], record["message"]), ("failed", "its Server stopped"))
        # and one that could not say goodbye
        lost = {**record, "v": jobs.RECORD_VERSION, "state": "running", "server": "x", "age": OLD_MINUTES, "said": 1, "found": []}
        self.patch(jobs, "LOST_SECONDS", 0.2)
        await servers[1].router.transact(
            0, [], lambda _: Writes([(b"HSET", keys.jobs(0), first["id"].encode(), json.dumps(lost).encode())])
        )
        while (await self.get(servers[1], "/v1/jobs"))[0]["state"] == "running":
            await deferLater(reactor, 0.01)
        [record] = await self.get(servers[1], "/v1/jobs")
        self.assertEqual(record["state"], "failed")
        self.assertIn("its Server is gone", record["message"])
        self.assertEqual((await self.done(servers[1], "/v1/upgrade"))["state"], "done")

    @asynchronous
    async def test_a_dry_run_is_not_joined_by_the_job_itself(self) -> None:
        server = await self.start()

        async def hold(job: jobs.Job) -> None:
            while True:
                await deferLater(reactor, 0.01)
                job.check()

        server.jobs.register("prune", hold, has_dry_run=True)
        first = (await self.ask(server, "/v1/prune?dry_run=1", "POST")).json
        answered = await self.ask(server, "/v1/prune", "POST")
        self.assertEqual((answered.status, answered.json["error"]), (409, "conflict"))
        self.assertIn(first["id"], answered.json["detail"])
        await self.ask(server, f"/v1/jobs?id={quote(first['id'])}", "DELETE")

    @asynchronous
    async def test_a_check_notes_where_maps_and_owner_keys_disagree(self) -> None:
        server = await self.start()
        record = await self.job(server, "/v1/check")
        self.assertEqual((record["state"], record["message"], record["found"]), ("done", "all maps and owner keys agree", []))
        self.valkey.ask("DEL", "taba:{3}:owner")
        record = await self.job(server, "/v1/check")
        self.assertEqual((record["state"], len(record["found"])), ("done", 1))
        self.assertIn("bucket 3", record["found"][0]["problem"])

    @asynchronous
    async def test_a_job_that_fails_says_why_and_may_be_started_again(self) -> None:
        server = await self.start()
        failures = [StoreUnavailable("no shard"), ValueError("x" * 1000)]

        async def fail(job: jobs.Job) -> None:
            if failures:
                raise failures.pop(0)

        server.jobs.register("upgrade", fail)
        records = [await self.job(server, "/v1/upgrade") for _ in range(3)]
        self.flushLoggedErrors(ValueError)
        self.assertEqual([record["state"] for record in records], ["failed", "failed", "done"])
        self.assertIn("no shard", records[0]["message"])
        self.assertIn("ValueError", records[1]["message"])

    @asynchronous
    async def test_the_history_is_bounded(self) -> None:
        self.patch(jobs, "MAX_RECORDS", 3)
        server = await self.start()
        for _ in range(5):
            await self.done(server, "/v1/upgrade")
        self.assertEqual(len(await self.get(server, "/v1/jobs")), 3)

    @asynchronous
    async def test_the_periodic_job_runs_once_however_many_servers_look(self) -> None:
        self.patch(service, "PRUNE_LOOK_SECONDS", 0.05)
        servers = [await self.start() for _ in range(3)]
        looks = [0, 0, 0]
        for place, server in enumerate(servers):
            self.patch(server, "_begin_pruning", self.counted(server._begin_pruning, looks, place))
        while not (jobs := await self.get(servers[0], "/v1/jobs")) or jobs[0]["state"] != "done" or min(looks) < 3:
            await deferLater(reactor, 0.02)  # each looks again, and finds it done; the test's own bound ends this
        self.assertEqual([(job["kind"], job["state"]) for job in await self.get(servers[0], "/v1/jobs")], [("prune", "done")])

    @staticmethod
    def counted(function: Callable[[], None], counts: list[int], place: int) -> Callable[[], None]:
        def call() -> None:
            counts[place] += 1
            function()

        return call
