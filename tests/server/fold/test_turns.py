"""Of a fold that takes long others have their turns in between: after so much, whatever it is, and the store is the same as without."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.server.fold import together
from taba.server.fold.cycle import Cycle, Reads, WaitingBatch
from taba.server.fold.deciding import fold_cycle
from taba.server.fold.sorting import Sorting
from taba.server.work import folding, pace
from taba.server.work.pace import EVENTS, MOST_AT_ONCE, Pause
from tests.examples import examples

from ..samples import AGE, BUCKETS, MemoryStore, Sum, Words, batch, bench_of, column, lookup_of, tab_in
from .test_together import LOOKUP, content_of, drawn


class Noting(Words):
    """Words that notes how many Events it folds."""

    def __init__(self) -> None:
        self.folded = 0

    def fold(self, state: Any, events: Any, now: float) -> Any:
        self.folded += len(events.values)
        return super().fold(state, events, now)


class NotingSum(Sum):
    """A Sum that notes how many Events it folds."""

    folded = 0

    def fold_array(self, states: Any, rows: Any, times: Any, values: Any, now: float) -> Any:
        self.folded += len(values)
        return super().fold_array(states, rows, times, values, now)


class Turns(SynchronousTestCase):
    def between(self, waiting: Sequence[WaitingBatch], handler: Any) -> tuple[list[int], int]:
        """How many columns were sorted, and Events folded, from each Pause to the next; and how many Events were buried in all."""
        store, done = MemoryStore(), [0]

        def measured(sorting: Sorting, *arguments: Any) -> Any:
            done[0] += 1
            return (yield from checked(sorting, *arguments))

        checked = Sorting._checked
        self.patch(Sorting, "_checked", measured)
        cycle = Cycle(0, waiting, BUCKETS)
        steps = fold_cycle(cycle, [store.run(command) for command in cycle.reads], bench_of(lookup_of(handler)), 1001.0, AGE)
        found, sent = [0], None
        try:
            while True:
                before = done[0] + handler.folded
                need = steps.send(sent)
                found[-1] += done[0] + handler.folded - before
                if isinstance(need, Pause):
                    found.append(0)
                sent = [store.run(command) for command in need.commands] if isinstance(need, Reads) else None
        except StopIteration as stop:
            self.assertEqual(stop.value.folded, handler.folded)
            return found, sum(stop.value.dead.values())

    def test_of_a_thousand_states_that_take_steps_of_their_own_so_many_are_folded_at_once(self) -> None:
        for handler, value in ((Noting(), "a text"), (NotingSum(), 1.0)):
            columns = [column(tab_in(0), handler.type, [value], f"web/{number}") for number in range(1000)]
            found, dead = self.between([batch(1, 1, columns)], handler)
            self.assertEqual((handler.folded, dead), (1000, 0))
            self.assertGreaterEqual(len(found), 10, found)
            self.assertLessEqual(max(found), MOST_AT_ONCE + 1, found)  # the last that was sorted, and a lot

    def test_of_many_events_of_one_state_so_many_are_folded_at_once_and_those_of_others_beside_them(self) -> None:
        at_once = MOST_AT_ONCE * EVENTS
        for handler, value in ((Noting(), "a text"), (NotingSum(), 1.0)):
            of_others = [column(tab_in(0), handler.type, [value] * 5, f"other/{number}") for number in range(3)]
            large = [column(tab_in(0), handler.type, [value] * (4 * at_once + 1), f"web/{number}") for number in range(2)]
            found, dead = self.between([batch(1, 1, [large[0], *of_others, large[1]])], handler)
            self.assertEqual((handler.folded, dead), (2 * (4 * at_once + 1) + 15, 0))
            self.assertGreaterEqual(len(found), 10)
            self.assertLessEqual(max(found), at_once + 5, found)  # those that were sorted, and a piece

    def test_of_many_events_of_one_state_that_are_bad_so_many_are_buried_at_once(self) -> None:
        handler, at_once = NotingSum(), MOST_AT_ONCE * EVENTS
        found, dead = self.between([batch(1, 1, [column(tab_in(0), "Sum", ["no number"] * 5 * at_once)])], handler)
        self.assertEqual((handler.folded, dead), (0, 5 * at_once))
        self.assertGreaterEqual(len(found), 5)

    @examples(20)
    @given(st.integers(0, 2**32), st.integers(1, 5))
    def test_whoever_has_turns_in_between_the_store_is_the_same(self, seed: int, most: int) -> None:
        waiting = drawn(Random(seed), {})
        whole, parted = MemoryStore(), MemoryStore()
        expected = whole.together(LOOKUP, waiting)
        self.assertEqual(whole.pauses, 0)
        for module in (pace, folding, together):
            self.patch(module, "MOST_AT_ONCE", most)
        try:
            found = parted.together(LOOKUP, waiting)
        finally:
            for module in (pace, folding, together):
                self.patch(module, "MOST_AT_ONCE", MOST_AT_ONCE)
        self.assertEqual(content_of(parted), content_of(whole))
        self.assertEqual([outcome.verdicts for outcome in found.values()], [outcome.verdicts for outcome in expected.values()])
