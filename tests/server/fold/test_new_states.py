"""States that are not there yet are made many at once, as they are one by one: the same is written, and the same has no room."""

from __future__ import annotations

import tracemalloc
from random import Random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from taba.batch import Block, decoded_sections, encode_batch, reading_batch
from taba.handlers.lookup import find_handlers
from taba.server import keys
from taba.server.fold.bounds import DEFAULT_BOUNDS
from taba.server.fold.cycle import Cycle, Outcome, WaitingBatch
from taba.server.fold.deciding import Fold
from taba.server.work.bench import Bench
from taba.steps import finish

from ..samples import AGE, BUCKETS, NONCE, MemoryStore, column, tab_in

STREAM = bytes([1]) * 16
TYPES = ("CounterGroup", "Gauge", "PercentileGroup")
TABS = [tab_in(0, number) for number in range(9)]
LOOKUP = find_handlers()


def batches(chance: Random, count: int) -> list[WaitingBatch]:
    """So many that follow each other, of blocks, in which Tabs and Clients come again, and a Tab now and then with another Type."""
    found = []
    for number in range(1, count + 1):
        tabs, clients = chance.sample(range(len(TABS)), chance.randint(1, 5)), chance.sample(range(6), chance.randint(1, 3))
        columns = []
        for type in TYPES:
            for tab in tabs:
                if TYPES[tab % 3] == type or chance.random() < 0.03:
                    columns += [column(TABS[tab], type, [float(chance.randint(0, 9))], f"web/{client}") for client in clients]
        content = encode_batch(STREAM, 0, number, columns or [column(TABS[0], "CounterGroup", [1.0])])
        found.append(WaitingBatch(number - 1, finish(reading_batch(content)), len(content), NONCE))
    return found


def one_by_one(item: WaitingBatch) -> WaitingBatch:
    return item._replace(batch=item.batch._replace(columns=list(item.batch.columns)))


class NewStates(SynchronousTestCase):
    def test_many_at_once_are_made_as_one_by_one(self) -> None:
        beyond = at_once = 0
        for seed in range(20):
            chance = Random(seed)
            bounds = {"tabs": chance.choice((3, 6, 1000)), "clients": chance.choice((2, 4, 1000))}
            waiting = batches(chance, 6)
            at_once += sum(isinstance(part, Block) for item in waiting for part in decoded_sections(item.batch.columns))
            stores = MemoryStore(), MemoryStore()
            outcomes: list[list[Outcome]] = []
            for store, kind in zip(stores, (lambda item: item, one_by_one), strict=True):
                its = [kind(item) for item in waiting]
                outcomes.append([store.cycle(LOOKUP, lot, **bounds) for lot in (its[:1], its[1:4], its[4:])])
            for ours, theirs in zip(*outcomes, strict=True):
                for name in ("verdicts", "folded", "dead", "moved", "beyond", "made"):
                    self.assertEqual(getattr(ours, name), getattr(theirs, name), (seed, name))
                beyond += sum(ours.beyond.values())
            of_ours, of_theirs = (store.keys for store in stores)
            self.assertEqual(of_ours, of_theirs, seed)
            self.assertEqual({part.partition(b"\0")[0] for part in of_ours[keys.states(0)]}, {*of_ours[keys.tabs(0)]})
        self.assertTrue(beyond and at_once)

    def test_a_block_looks_up_its_own_tabs_and_never_goes_through_all_that_are_known(self) -> None:
        nobody: Any = None
        content = encode_batch(STREAM, 0, 1, [column(TABS[0], "Gauge", [1.0])])
        waiting = WaitingBatch(0, finish(reading_batch(content)), len(content), NONCE)
        fold = Fold(Cycle(0, [waiting], BUCKETS), [[None], [None], [None]], Bench(LOOKUP, nobody), 1.0, AGE, DEFAULT_BOUNDS)
        [block] = decoded_sections(waiting.batch.columns)
        assert isinstance(block, Block)
        fold.newcomers.types = dict.fromkeys([TABS[0], *map(str, range(10_000))], "Gauge")
        absent = [field.partition(b"\0") for field in block.fields]
        tracemalloc.start()
        try:
            self.assertTrue(fold.newcomers.make_all(block, absent))
            self.assertLess(tracemalloc.get_traced_memory()[1], 100_000)  # a set of all takes half a million
        finally:
            tracemalloc.stop()
