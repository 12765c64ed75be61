"""What a question costs, counted and not timed: calls of Python, commands to the store. Bounds lie near what was counted; what raises one
of them on purpose raises its bound with it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from random import Random
from types import FrameType
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from taba.batch import APPLIED, encode_batch, plain_batch
from taba.handlers import counter_group
from taba.handlers.lookup import find_handlers
from taba.server import keys
from taba.server.ask.filters import make_filter
from taba.server.ask.query import Query
from taba.server.fold.cycle import WaitingBatch
from taba.server.fold.ingest import Ingest
from taba.server.fold.marks import Mark, encode_mark
from taba.server.work.bench import Bench
from taba.shard.memory.router import MemoryConnection, MemoryRouter
from taba.shard.memory.server import MemoryServer

from ..samples import AGE, NONCE, column, tab_in

BUCKETS = 8
NOW = 1_000_000.0
NOBODY: Any = None


class Costs(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        server = MemoryServer(self.clock)
        router = MemoryRouter([server], BUCKETS, self.clock, Random(1))
        ensureDeferred(router.connect())
        for bucket in range(BUCKETS):
            server.run((b"HSET", keys.marks(bucket), bytes([1]) * 16, encode_mark(Mark(NONCE, 0, AGE))))
        bench = Bench(find_handlers(), NOBODY)
        self.ingest = Ingest(router, bench, self.clock, lambda: NOW, lambda: AGE)
        self.query = Query(router, bench, self.clock, lambda: NOW, NOBODY, lambda: 0)
        self.numbers = [0] * BUCKETS
        self.sent: list[bytes] = []
        execute = MemoryConnection.execute

        def noting(connection: MemoryConnection, commands: Any, *rest: Any) -> Any:
            self.sent += [command[0] for command in commands]
            return execute(connection, commands, *rest)

        self.patch(MemoryConnection, "execute", noting)

    def fold(self, bucket: int, tabs: Sequence[str], clients: int, type: str = "CounterGroup") -> None:
        columns = [column(tab, type, [2.0], f"web/{client}", [NOW]) for tab in tabs for client in range(clients)]
        self.numbers[bucket] += 1
        content = encode_batch(bytes([1]) * 16, bucket, self.numbers[bucket], columns)
        batch = plain_batch(content)
        assert batch is not None
        waiting = WaitingBatch(self.numbers[bucket] - 1, batch, len(content), NONCE)
        verdicts = self.done(ensureDeferred(self.ingest.submit([waiting])))
        self.assertEqual({verdict.word for verdict in verdicts}, {APPLIED})

    def done(self, deferred: Deferred[Any]) -> Any:
        while not deferred.called:
            self.clock.advance(0)
        return self.successResultOf(deferred)

    async def aggregates(self, *names: str) -> dict[str, Any]:
        asked = await self.query.ask(make_filter(names))
        return {name: item.aggregate async for name, item in self.query.aggregates(asked)}

    def counted(self, *names: str) -> tuple[int, list[bytes], dict[str, Any]]:
        """(functions of Python that are called, commands, the answer); what is written in C is in none."""
        count = 0

        def see(frame: FrameType, event: str, argument: Any) -> None:
            nonlocal count
            count += event == "call" and "/memory/" not in frame.f_code.co_filename

        self.sent.clear()
        before = sys.getprofile()
        sys.setprofile(see)
        try:
            answer = self.done(ensureDeferred(self.aggregates(*names)))
        finally:
            sys.setprofile(before)
        return count, list(self.sent), answer

    def test_an_aggregate_is_so_many_calls_and_a_state_none(self) -> None:
        few, many = tab_in(1, 0, BUCKETS), tab_in(1, 1, BUCKETS)
        self.fold(1, [few], 30)
        self.fold(1, [many], 300)
        self.counted(few)  # what is looked at once
        of_few, of_many = self.counted(few), self.counted(many)
        self.assertEqual((of_few[2][few]["1d"]["count"], of_many[2][many]["1d"]["count"]), (30, 300))
        if counter_group._rows is None:
            raise SkipTest("_rows is not built: needs a compiler")
        self.assertLess((of_many[0] - of_few[0]) / 270, 1.2)
        self.assertLess(of_few[0], 420)

    def test_it_reads_the_type_the_clients_and_the_states_each_with_whose_bucket_it_is(self) -> None:
        tab = tab_in(1, 0, BUCKETS)
        self.fold(1, [tab], 300)
        self.counted(tab)
        _, sent, _ = self.counted(tab)
        self.assertEqual(sent, [b"HMGET", b"MGET", b"SMEMBERS", b"MGET", b"HMGET", b"MGET"])

    def test_what_one_tab_takes_does_not_depend_on_how_many_there_are(self) -> None:
        tab, others = tab_in(1, 0, BUCKETS), [[tab_in(bucket, number, BUCKETS) for number in range(1, 200)] for bucket in range(BUCKETS)]
        self.fold(1, [tab], 3)
        self.counted(tab)
        alone, *_ = self.counted(tab)
        for bucket, of_bucket in enumerate(others):
            self.fold(bucket, of_bucket, 1)
        self.query.index.forget()
        self.counted(tab)  # what there is besides is read once
        self.assertLess(abs(self.counted(tab)[0] - alone), 30)
