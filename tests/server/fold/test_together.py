"""The cycles of several buckets in one transaction do what each would do alone, with one call of each Handler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.bounds import MAX_CYCLE_BYTES
from taba.server.fold.cycle import WaitingBatch
from taba.server.fold.in_all import Room
from taba.server.fold.together import MOST_AT_FAULT, Together
from taba.server.work.folding import TRIES_FOR_ONE
from tests.examples import examples

from ..samples import AGE, BUCKETS, MemoryStore, Spilling, Sum, Words, batch, bench_of, column, header, lookup_of, tab_in

LOOKUP = lookup_of(Sum(), Spilling(), Words())


class Counting(Sum):
    """A Sum that notes how many States each call was for."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[int] = []

    def load_array(self, dumps: Sequence[bytes]) -> Any:
        self.loads.append(len(dumps))
        return super().load_array(dumps)


def drawn(random: Random, numbers: dict[tuple[int, int], int]) -> dict[int, list[WaitingBatch]]:
    """What waits for some of the buckets, good and bad. `numbers`: by stream and bucket what comes next."""
    waiting: dict[int, list[WaitingBatch]] = {}
    for bucket in random.sample(range(BUCKETS), random.randint(1, BUCKETS)):
        its = waiting.setdefault(bucket, [])
        for _ in range(random.randint(1, 3)):
            stream = random.randint(1, 2)
            if random.random() < 0.1:
                its.append(header("mark", stream, bucket=bucket))
                continue
            number = numbers.get((stream, bucket), 1)
            columns = []
            for _ in range(random.randint(0, 4)):
                type = random.choice(["Sum", "Sum", "Spilling", "Words", "Nobody"])
                tab = tab_in(random.choice([bucket, bucket, bucket, 0]), {"Sum": 0, "Spilling": 1, "Words": 2, "Nobody": 3}[type])
                if random.random() < 0.05:
                    type = "Sum"
                values = [float(random.choice([1, 2, 13, 14, 5, 6, 7])) for _ in range(random.randint(1, 5))]
                times = [random.choice([1000.0, 999.0, -1.0 if random.random() < 0.1 else 1000.0]) for _ in values]
                columns.append(column(tab, type, values, f"web/{random.randint(1, 2)}", times))
            its.append(batch(stream, number + (random.random() < 0.1), columns, bucket=bucket))
            numbers[stream, bucket] = number + 1
    return waiting


def content_of(store: MemoryStore) -> dict[bytes, Any]:
    """What lies under the keys; dead letters of one cycle in any order."""
    return {key: sorted(value) if isinstance(value, list) else value for key, value in store.keys.items()}


class SeveralBuckets(SynchronousTestCase):
    @examples(40)
    @given(st.integers(0, 2**32))
    def test_the_store_is_the_same_as_after_the_cycle_of_each_bucket_alone(self, seed: int) -> None:
        random = Random(seed)
        alone, together = MemoryStore(), MemoryStore()
        numbers: dict[tuple[int, int], int] = {}
        for _ in range(random.randint(1, 4)):
            waiting = drawn(random, numbers)
            expected = {bucket: alone.cycle(LOOKUP, its, bucket) for bucket, its in waiting.items()}
            found = together.together(LOOKUP, waiting)
            self.assertEqual(list(found), list(expected))
            for bucket, outcome in found.items():
                # the fields of one HSET may come in another order: what they say is in the stores
                self.assertEqual(outcome._replace(times=(), commands=[]), expected[bucket]._replace(times=(), commands=[]))
                self.assertEqual(b"".join(outcome.times), b"".join(expected[bucket].times))
            self.assertEqual(content_of(together), content_of(alone))

    def test_a_type_is_loaded_folded_and_dumped_once_for_all_buckets(self) -> None:
        counting = Counting()
        waiting = {bucket: [batch(1, 1, [column(tab_in(bucket), "Sum", [1.0])], bucket=bucket)] for bucket in range(BUCKETS)}
        MemoryStore().together(lookup_of(counting), waiting)
        self.assertEqual(counting.loads, [BUCKETS])

    def test_where_one_state_is_at_fault_the_others_are_folded_many_at_a_time(self) -> None:
        counting, states = Counting(), 100
        waiting = {
            bucket: [batch(1, 1, [column(tab_in(bucket), "Sum", [1.0], f"web/{client}") for client in range(states)], bucket=bucket)]
            for bucket in range(BUCKETS)
        }
        columns = list(waiting[2][0].batch.columns)
        columns[7] = column(tab_in(2), "Sum", [13.0], "web/7")
        waiting[2][0] = batch(1, 1, columns, bucket=2)
        outcomes = MemoryStore().together(lookup_of(counting), waiting)
        self.assertEqual([outcome.folded for outcome in outcomes.values()], [states, states, states - 1, states])
        self.assertEqual(outcomes[2].dead, {"handler_error": 1})
        self.assertLess(len(counting.loads), 20)  # of 400 States, and not as many calls as these

    def test_where_so_many_events_are_at_fault_that_tries_may_run_out_who_has_such_is_folded_alone(self) -> None:
        # the least tries that must be enough: halved until it is found, both halves tried
        self.assertGreaterEqual(TRIES_FOR_ONE, 2 * math.log2(MAX_CYCLE_BYTES // 8))
        for at_fault, folded in ((MOST_AT_FAULT - 1, [0, 1, 2, 3]), (MOST_AT_FAULT, [2, 3]), (1500, [2, 3])):
            waiting = {bucket: [batch(1, 1, [column(tab_in(bucket), "Sum", [1.0])], bucket=bucket)] for bucket in range(BUCKETS)}
            waiting[0] = [batch(1, 1, [column(tab_in(0), "Sum", [13.0] * at_fault)], bucket=0)]
            waiting[1] = [batch(1, 1, [column(tab_in(1), "Sum", [1.0, 2.0, 13.0, 4.0, 5.0])], bucket=1)]
            alone, together = MemoryStore(), MemoryStore()
            outcomes = together.together(LOOKUP, waiting)
            self.assertEqual(list(outcomes), folded)
            for bucket in folded:
                alone.cycle(LOOKUP, waiting[bucket], bucket)
            self.assertEqual(content_of(together), content_of(alone))

    def test_they_share_the_room_that_is_left_in_all(self) -> None:
        waiting = {bucket: [batch(1, 1, [column(tab_in(bucket), "Sum", [1.0])], bucket=bucket)] for bucket in range(BUCKETS)}
        for tabs, clients, made in ((2, 9, 2), (9, 3, 3), (9, 9, 4), (0, 9, 0)):
            outcomes = MemoryStore().together(LOOKUP, waiting, Room(tabs, clients))
            self.assertEqual(sum(outcome.made[0] for outcome in outcomes.values()), made, (tabs, clients))
            self.assertEqual(sum(outcome.folded for outcome in outcomes.values()), made)

    def test_a_bucket_that_left_before_is_in_no_outcome(self) -> None:
        waiting = {bucket: [batch(1, 1, [column(tab_in(bucket), "Sum", [1.0])], bucket=bucket)] for bucket in (0, 3)}
        cycles = Together(waiting, BUCKETS, bench_of(LOOKUP))
        store = MemoryStore()
        steps = cycles.fold({3: [store.run(command) for command in cycles.reads[3]]}, 1001.0, AGE)
        reads: Any = next(steps)
        self.assertEqual(list(reads), [3])
        with self.assertRaises(StopIteration) as raised:
            steps.send({3: [store.run(command) for command in reads[3]]})
        self.assertEqual(list(raised.exception.value), [3])

    def test_work_that_is_done_elsewhere_is_refused(self) -> None:
        waiting = {0: [batch(1, 1, [column(tab_in(0), "Sum", [1.0])])]}
        store = MemoryStore()
        with self.assertRaises(TypeError):
            store.together(lookup_of(Sum(), own=False), waiting)
        self.assertEqual(store.keys, {})
