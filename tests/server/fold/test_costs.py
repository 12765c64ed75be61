"""What a cycle costs, counted and not timed: calls of Python, commands to the store, their bytes. Bounds lie near what was counted; what
raises one of them on purpose raises its bound with it."""

from __future__ import annotations

import sys
from random import Random
from types import FrameType
from typing import Any
from unittest import mock

import numpy as np
from twisted.internet.defer import ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from taba.batch import APPLIED, AtEdge, Column, encode_batch, plain_batch, reading_batch
from taba.handlers import counter_group
from taba.handlers.lookup import find_handlers
from taba.server import keys
from taba.server.fold import together
from taba.server.fold.cycle import WaitingBatch
from taba.server.fold.ingest import PLAIN_FAILED, Ingest
from taba.server.fold.marks import Mark, encode_mark
from taba.server.work.bench import Bench
from taba.shard.memory.router import MemoryConnection, MemoryRouter
from taba.shard.memory.server import MemoryServer
from taba.shard.servers.connection import Command, encode
from taba.steps import finish

from ..samples import AGE, NONCE, column, tab_in

BUCKETS = 64
NOW = 1_000_000.0
NOBODY: Any = None


class Costs(SynchronousTestCase):
    def setUp(self) -> None:
        clock = Clock()
        self.server = MemoryServer(clock)
        router = MemoryRouter([self.server], BUCKETS, clock, Random(1))
        ensureDeferred(router.connect())
        for bucket in range(BUCKETS):
            self.server.run((b"HSET", keys.marks(bucket), bytes([1]) * 16, encode_mark(Mark(NONCE, 0, AGE))))
        self.ingest = Ingest(router, Bench(find_handlers(), NOBODY), clock, lambda: NOW, lambda: AGE)
        self.tabs = [tab_in(bucket, buckets=BUCKETS) for bucket in range(BUCKETS)]
        self.sent: list[list[Command]] = []
        execute = MemoryConnection.execute

        def noting(connection: MemoryConnection, commands: Any, *rest: Any) -> Any:
            self.sent.append(list(commands))
            return execute(connection, commands, *rest)

        self.patch(MemoryConnection, "execute", noting)

    def waiting(self, number: int, clients: int) -> list[WaitingBatch]:
        """A batch for each bucket, of one event for each of so many States."""
        found = []
        for bucket, tab in enumerate(self.tabs):
            columns = [column(tab, "CounterGroup", [2.0], f"web/{client}", [NOW + number]) for client in range(clients)]
            content = encode_batch(bytes([1]) * 16, bucket, number, columns)
            found.append(WaitingBatch(number - 1, finish(reading_batch(content)), len(content), NONCE))
        return found

    def fold(self, waiting: list[WaitingBatch]) -> None:
        verdicts = self.successResultOf(ensureDeferred(self.ingest.submit(waiting)))
        self.assertEqual({verdict.word for verdict in verdicts}, {APPLIED})

    def test_many_buckets_are_two_conversations_with_the_store_and_so_many_commands_and_bytes(self) -> None:
        self.fold(self.waiting(1, 5))
        self.sent.clear()
        self.fold(self.waiting(2, 5))
        self.assertEqual([[command[0] for command in commands].count(b"EXEC") for commands in self.sent], [0, 1])
        reads, writes = self.sent
        # of all the guards, and of each bucket its marks, Types and States are read; its mark, States and count are written
        self.assertEqual((len(reads), len(writes)), (2 + 3 * BUCKETS, 2 + 3 * BUCKETS))
        self.assertLess(sum(len(encode(commands)) for commands in self.sent) / (5 * BUCKETS), 260)

    def test_a_batch_takes_so_many_calls_of_python_and_a_state_none(self) -> None:
        self.fold(self.waiting(1, 8))
        self.fold(self.waiting(2, 8))  # what is kept of names and buckets is made once
        few, many = self.calls(self.waiting(3, 4)), self.calls(self.waiting(4, 8))
        state = (many - few) / (4 * BUCKETS)
        self.assertLess(state, 0.5)  # none for each: what is done with all of them is written in C
        # what is ordinary takes fewer steps, where its States are folded in C
        self.assertLess((few - 4 * BUCKETS * state) / BUCKETS, 175 if counter_group._rows is None else 18)

    def test_a_bucket_by_itself_takes_so_many_calls_and_a_state_none(self) -> None:
        if counter_group._rows is None:
            raise SkipTest("_rows is not built: needs a compiler")
        for number in (1, 2):
            self.fold(self.waiting(number, 400)[:1])
        few, many = self.calls(self.waiting(3, 40)[:1]), self.calls(self.waiting(4, 400)[:1])
        self.assertLess(many - few, 10)
        self.assertLess(few, 185)  # the long way takes 310

    def test_an_ordinary_bucket_whose_short_way_fails_goes_the_other(self) -> None:
        self.fold(self.waiting(1, 2)[:1])

        def failing(*_: Any) -> Any:
            raise ValueError("a fault")

        with mock.patch.object(together, "fold_plain", failing):
            self.fold(self.waiting(2, 2)[:1])
        self.assertEqual((len(self.flushLoggedErrors(ValueError)), self.ingest.errors[PLAIN_FAILED]), (1, 1))

    def test_states_that_are_not_there_yet_take_few_calls_each_in_batches_of_several_types(self) -> None:
        tabs = [tab_in(bucket, number, BUCKETS) for bucket in range(BUCKETS) for number in range(3)]

        def mixed(number: int, clients: range) -> list[WaitingBatch]:
            found = []
            for bucket in range(BUCKETS):
                columns = [
                    column(tab, type, [2.0], f"web/{client}", [NOW + number])
                    for tab, type in zip(tabs[3 * bucket : 3 * bucket + 3], ("CounterGroup", "PercentileGroup", "UpDown"), strict=True)
                    for client in clients
                ]
                content = encode_batch(bytes([1]) * 16, bucket, number, columns)
                found.append(WaitingBatch(number - 1, finish(reading_batch(content)), len(content), NONCE))
            return found

        self.fold(mixed(1, range(4)))
        # half of the States are new, and of few in both: what is left is what each new one takes, and a half of one that is not
        few, many = self.calls(mixed(2, range(2, 6))), self.calls(mixed(3, range(14)))
        self.assertLess((many - few) / (3 * 10 * BUCKETS), 3)  # of UpDown, whose Handler is plain, nearly all

    def test_what_a_bucket_has_beside_arrays_takes_few_calls(self) -> None:
        if counter_group._rows is None:
            raise SkipTest("_rows is not built: needs a compiler")
        some = BUCKETS // 4  # of more, others have their turns in between
        others = [tab_in(bucket, 1, BUCKETS) for bucket in range(some)]

        def mixed(number: int, clients: int) -> list[WaitingBatch]:
            found = []
            for bucket, (tab, other) in enumerate(zip(self.tabs[:some], others, strict=True)):
                columns = [column(tab, "CounterGroup", [2.0], f"web/{client}", [NOW + number]) for client in range(8)]
                columns += [column(other, "Cardinality", ["text"], f"web/{client}", [NOW + number]) for client in range(clients)]
                content = encode_batch(bytes([1]) * 16, bucket, number, columns)
                batch = plain_batch(content) or finish(reading_batch(content))
                found.append(WaitingBatch(number - 1, batch, len(content), NONCE))
            return found

        self.fold(mixed(1, 2))
        self.fold(mixed(2, 2))
        few, many = self.calls(mixed(3, 1)), self.calls(mixed(4, 2))
        self.assertLess(few / some, 83)  # the long way takes 232
        self.assertLess((many - few) / some, 34)  # of a State of a sketch, most of them its Handler's

    def test_what_was_folded_at_the_edge_takes_few_calls(self) -> None:
        if counter_group._rows is None:
            raise SkipTest("_rows is not built: needs a compiler")
        handler, some = counter_group.CounterGroup(), BUCKETS // 4
        [dump] = handler.edge_array(np.zeros(40, np.int64), np.full(40, NOW), np.arange(40.0), 1)
        edge = AtEdge(handler.edge or 0, dump, NOW)

        def folded(number: int, clients: int) -> list[WaitingBatch]:
            found = []
            for bucket, tab in enumerate(self.tabs[:some]):
                columns = [column(tab, "CounterGroup", [2.0], f"web/{client}", [NOW + number]) for client in range(8)]
                columns += [Column(f"job/{one}", tab, "CounterGroup", np.array([NOW]).tobytes(), edge, 40) for one in range(clients)]
                content = encode_batch(bytes([1]) * 16, bucket, number, columns)
                batch = plain_batch(content) or finish(reading_batch(content))
                found.append(WaitingBatch(number - 1, batch, len(content), NONCE))
            return found

        self.fold(folded(1, 9))
        self.fold(folded(2, 9))
        few, many = self.calls(folded(3, 1)), self.calls(folded(4, 9))
        self.assertLess(few / some, 55)  # 81 with arrays
        self.assertLess((many - few) / (8 * some), 7.5)

    def calls(self, waiting: list[WaitingBatch]) -> int:
        """How many functions of Python are called to fold these; what is written in C is in none, which differs between versions."""
        count = 0

        def see(frame: FrameType, event: str, argument: Any) -> None:
            nonlocal count
            count += event == "call" and "/memory/" not in frame.f_code.co_filename

        before = sys.getprofile()
        sys.setprofile(see)
        try:
            self.fold(waiting)
        finally:
            sys.setprofile(before)
        return count
