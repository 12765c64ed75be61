"""What needs a person is said, with its count and its cure, and no longer when it is mended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock, deferLater
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from taba.server import health, problems, service
from taba.server.health import CURES, with_cure
from taba.server.problems import RECENT_SECONDS, Happened, Recent, buried, late
from taba.shard import atlas

from ..stores import borrow
from .running import BUCKETS, ServerCase, asynchronous, encoded, reactor
from .samples import Sum, Words, column, lookup_of, tab_in

A, B = tab_in(3, 0, BUCKETS), tab_in(3, 1, BUCKETS)


class Stores(ServerCase):
    """A store that answers every read and takes no write."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(health, "LOOK_SECONDS", 0.1)
        self.patch(health, "WRITE_SECONDS", 0.3)

    async def until(self, is_so: Callable[[Any], bool], server: Any) -> Any:
        while not is_so(status := await self.get(server, "/v1/status")):
            await deferLater(reactor, 0.05)
        return status

    async def refuses(self, cure: str, spoil: list[tuple[str, ...]], mend: list[tuple[str, ...]], key: str = "x") -> None:
        server = await self.start()
        await self.send(server, encoded(1, 3, 1, [column(A, "TotalsCounter", [1.0])]))
        await self.until(lambda status: status["problems"] == [], server)
        for command in spoil:
            self.assertTrue(self.valkey.ask(*command).startswith((b"+", b":")), command)
        status = await self.until(lambda status: any(cure in problem for problem in status["problems"]), server)
        self.assertIn("takes no writes", str(status["problems"]))
        answered = await self.ask(server, "/readyz")
        self.assertEqual((answered.status, answered.json["error"]), (503, "not_ready"))
        self.assertIn(cure, answered.json["detail"])
        self.assertEqual((await self.get(server, "/v1/aggregates"))[A]["count"], 1)  # reads are answered
        for command in mend:
            self.valkey.ask(*command)
        await self.until(lambda status: status["problems"] == [], server)
        self.assertEqual((await self.ask(server, "/readyz")).status, 200)

    @asynchronous
    async def test_its_memory_bound(self) -> None:
        await self.refuses("raise maxmemory", [("CONFIG", "SET", "maxmemory", "1kb")], [("CONFIG", "SET", "maxmemory", "0")])

    @asynchronous
    async def test_too_few_replicas(self) -> None:
        setting = ("CONFIG", "SET", "min-replicas-to-write")
        await self.refuses("bring them back", [(*setting, "1")], [(*setting, "0")])

    @asynchronous
    async def test_a_read_only_replica(self) -> None:
        await self.refuses("it is a replica", [("REPLICAOF", "127.0.0.1", "1")], [("REPLICAOF", "NO", "ONE")])

    @asynchronous
    async def test_a_full_disk(self) -> None:
        self.valkey.remove()
        self.valkey = borrow(self, enable_protected_configs="yes", save="3600 1")
        # where nobody can write
        await self.refuses(
            "make room there",
            [("CONFIG", "SET", "dir", "/proc"), ("BGSAVE",)],
            [("CONFIG", "SET", "dir", str(self.valkey.directory)), ("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")],
        )

    @asynchronous
    async def test_what_is_turned_away_meanwhile_is_counted(self) -> None:
        server = await self.start()
        await self.send(server, encoded(1, 3, 1, [column(A, "TotalsCounter", [1.0])]))
        setting = ("CONFIG", "SET", "min-replicas-to-write")
        self.valkey.ask(*setting, "1")
        [verdict] = await self.send(server, encoded(1, 3, 2, [column(A, "TotalsCounter", [1.0])]))
        self.assertEqual(verdict.word, "later")
        while not server.ingest.postponed:  # once the Router's patience is at its end
            await deferLater(reactor, 0.1)
        status = await self.get(server, "/v1/status")
        self.assertIn("1 batch was turned away", str(status["problems"]))
        self.valkey.ask(*setting, "0")
        await self.until(lambda status: status["problems"] == [], server)

    @asynchronous
    async def test_a_setting_that_is_put_right_is_no_problem_any_more_whether_or_not_anybody_else_looks(self) -> None:
        self.patch(health, "SETTLED_SECONDS", 0.1)
        self.patch(atlas, "SETTINGS_SECONDS", 0.0)
        server = await self.start()
        self.valkey.ask("CONFIG", "SET", "appendfsync", "everysec")
        await self.until(lambda status: "set appendfsync always" in str(status["problems"]), server)
        self.valkey.ask("CONFIG", "SET", "appendfsync", "always")
        await self.until(lambda status: status["problems"] == [], server)

    def test_each_thing_that_stores_say_has_its_cure(self) -> None:
        for word, cure in CURES.items():
            self.assertIn(cure, with_cure(f"127.0.0.1:6379: {word} something is wrong"))
        self.assertEqual(with_cure("127.0.0.1:6379: ERR what"), "127.0.0.1:6379: ERR what")


class Others(ServerCase):
    @asynchronous
    async def test_a_first_start_says_nothing(self) -> None:
        lines: list[Any] = []
        observe: Any = lambda event: lines.append(event) if event["log_level"] >= LogLevel.warn else None  # noqa: E731
        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        server = await self.start()
        await server._tell()
        await self.send(server, encoded(1, 3, 1, [column(A, "TotalsCounter", [1.0])]))
        await server._tell()
        self.assertEqual((await self.get(server, "/v1/status"))["problems"], [])
        self.assertEqual([formatEvent(event) for event in lines], [])

    @asynchronous
    async def test_dead_letters_failing_handlers_and_gaps_are_said_with_their_counts(self) -> None:
        self.patch(service, "find_safely", lambda: lookup_of(Sum(), Words()))
        server = await self.start()
        await self.send(server, encoded(1, 3, 1, [column(A, "Words", ["bad", "bad", "a"]), column(B, "Sum", ["x"])]))
        first, second = (await self.get(server, "/v1/status"))["problems"]
        self.assertIn("3 events are dead letters (handler_error 2, bad_value 1)", first)
        self.assertIn("taba retry", first)
        self.assertIn("Handler of Type Words failed 2 times", second)
        [verdict] = await self.send(server, encoded(1, 3, 7, [column(B, "Sum", [1.0])]))
        self.assertEqual(verdict.word, "gap")
        self.assertIn("the store went back in time: 1 batch", str((await self.get(server, "/v1/status"))["problems"]))

    def test_what_is_late_is_said_beyond_the_promise(self) -> None:
        self.assertEqual((late({"p99": problems.LATE_SECONDS}), late({"p99": None})), ([], []))
        self.assertIn("it takes 6 s from record to visible", late({"p99": 6.2})[0])
        self.assertEqual(buried({}), [])

    @asynchronous
    async def test_two_processes_that_record_one_name_as_two_types_are_told(self) -> None:
        server = await self.start()
        await self.send(server, encoded(1, 3, 1, [column(A, "TotalsCounter", [1.0])]))
        self.assertEqual((await self.get(server, "/v1/status"))["problems"], [])
        await self.send(server, encoded(1, 3, 2, [column(A, "Gauge", [1.0, 2.0])]))
        self.assertIn("2 events came for Tabs that have another Type", str((await self.get(server, "/v1/status"))["problems"]))


class Counts(SynchronousTestCase):
    def test_what_has_happened_is_a_problem_for_a_while_after_it_last_did(self) -> None:
        clock = Clock()
        clock.advance(1_000_000.0)
        recent = Recent(clock.seconds)

        def seen(total: int, is_kept: bool = False) -> list[str]:
            return recent.problems([Happened(f"x{is_kept}", total, lambda times: f"{times} times", is_kept)])

        self.assertEqual([seen(0), seen(3), seen(5)], [[], ["3 times"], ["5 times"]])
        clock.advance(RECENT_SECONDS)
        self.assertEqual(seen(5), ["5 times"])
        clock.advance(1.0)
        self.assertEqual([seen(5), seen(6)], [[], ["1 times"]])
        # what was counted before anybody looked is no news
        self.assertEqual([seen(7, True), seen(9, True), seen(0, True), seen(1, True)], [[], ["2 times"], [], ["1 times"]])
