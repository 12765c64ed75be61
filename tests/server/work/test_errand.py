"""A fold that goes from child to child, and turn by turn: children that are functions here, on a clock of the test's own."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.handlers import ArrayHandler, Handler
from taba.server.keys import ABSENT, Framed
from taba.server.work.child import TURN_SECONDS, Child
from taba.server.work.errand import Errand
from taba.server.work.rows import Failed, Folded, ForeignWork, Work

from ..samples import Spilling, lookup_of

TOO_LONG_SECONDS = 2.0


class Seconds:
    """A clock that Handlers move: a value is how many tenths of a second it takes. `has_died`: the child did, at the last fold."""

    now = 0.0
    has_died = False

    @classmethod
    def take(cls, values: Sequence[float]) -> None:
        took = sum(values) / 10
        cls.now += took
        if 2 in values or took > TOO_LONG_SECONDS:
            cls.has_died = True


class Slow(Handler):
    """Its values, which take time; raises at 1, and a child dies at 2, or where one fold takes more than it may."""

    type = "Slow"

    def new_state(self) -> Any:
        return []

    def fold(self, state: Any, events: Any, now: float) -> Any:
        Seconds.take(events.values)
        if 1 in events.values:
            raise ValueError("1")
        return [*state, *events.values]


class SlowSpilling(Spilling):
    """All its values but 1 and 2, likewise; of arrays, with further parts."""

    def fold_array(self, states: Any, rows: Any, times: Any, values: Any, now: float) -> Any:
        Seconds.take(values.tolist())
        if (values == 1).any():
            raise ValueError("1")
        return super().fold_array(states, rows, times, values, now)


def run(handler: Handler, *rows: Sequence[float]) -> tuple[Errand, int, int]:
    """Fold each row into a State of its own; the errand, how many children died of it, and how many turns it had."""
    is_array = isinstance(handler, ArrayHandler)
    parts = {row: [ABSENT] * handler.further_parts for row in range(len(rows))} if isinstance(handler, ArrayHandler) else {}
    columns: list[Any] = []
    for row, values in enumerate(rows):
        packed: Any = struct.pack(f"<{len(values)}d", *values) if is_array else list(values)
        columns.append((row, struct.pack(f"<{len(values)}d", *range(len(values))), packed))
    errand = Errand(ForeignWork(handler.type, Work([ABSENT] * len(rows), columns), parts), is_array, handler.version)
    child = Child(lookup_of(handler, own=False), lambda place: None if Seconds.has_died else errand.come_to(place), lambda: Seconds.now)
    deaths = turns = 0
    while errand.lots:
        before, Seconds.has_died = errand.progress, False
        child.begin_turn()
        turns += 1
        for item in child.fold(handler.type, 1.0, *errand.request()):
            if Seconds.has_died:
                break
            errand.take(item)
        if Seconds.has_died:
            deaths += 1
            errand.suspect(ValueError("it died"))
        else:
            assert errand.progress > before
    return errand, deaths, turns


def lost(errand: Errand, row: int) -> list[int]:
    return sorted(place for _, places in errand.folded.spoiled.get(row, ()) for place in places)


VALUES = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, 7.0])
ROWS = st.lists(st.lists(VALUES, min_size=1, max_size=12), min_size=1, max_size=4)


class Turns(SynchronousTestCase):
    @given(ROWS)
    def test_what_takes_many_turns_is_folded_whole_and_culprits_alone_are_lost(self, rows: list[list[float]]) -> None:
        errand, deaths, _ = run(Slow(), *rows)
        for row, values in enumerate(rows):
            good = [value for value in values if value not in (1, 2)]
            self.assertEqual(Slow().load(errand.folded.states[row]) if row in errand.folded.states else [], good)
            self.assertEqual(row in errand.folded.failed, not good)
            if good:  # else the whole row has failed
                self.assertEqual(lost(errand, row), [place for place, value in enumerate(values) if value in (1, 2)])
        if deaths == 0:
            self.assertTrue(all(sum(values) / 10 <= TOO_LONG_SECONDS for values in rows))

    @given(ROWS)
    def test_the_same_of_arrays_with_further_parts(self, rows: list[list[float]]) -> None:
        errand, _, _ = run(SlowSpilling(), *rows)
        folded = errand.folded
        for row, values in enumerate(rows):
            parts = [folded.states.get(row, b""), *folded.parts.get(row, [])]
            kept = sorted(value for part in parts for (value,) in struct.iter_unpack("<d", part))
            self.assertEqual(kept, sorted(value for value in values if value not in (1, 2)))

    def test_no_turn_is_longer_than_its_bound_and_one_event(self) -> None:
        began = Seconds.now
        errand, deaths, turns = run(Slow(), [3.0] * 100)  # 30 s in one State: each fold of all of it would be a child's end
        self.assertEqual((deaths, errand.folded.failed, lost(errand, 0)), (1, {}, []))
        self.assertEqual(len(Slow().load(errand.folded.states[0])), 100)
        self.assertEqual(turns, 1 + 50)  # two Events of 0.3 s are more than a turn
        self.assertAlmostEqual(Seconds.now - began, 60.0)
        _, deaths, turns = run(Slow(), *[[3.0]] * 100)  # a State each
        self.assertEqual((deaths, turns), (0, 50))
        self.assertGreater(TURN_SECONDS, 0.3)

    def test_an_answer_that_says_nothing_of_its_rows_is_a_failure_and_no_loop(self) -> None:
        work = Work([ABSENT], [(0, struct.pack("<2d", 1, 2), ["a", "b"])])
        items: list[Any] = [17, [{}, {}, {}, {}, [], "x"], [{0: "x"}, {}, {}, {}, [], None], [{}, {}, {0: 5}, {}, [], None]]
        for item in items:
            errand = Errand(ForeignWork("Slow", work, {}), False, 1)
            errand.request()
            errand.take(item)
            self.assertEqual((errand.lots, errand.folded.states), ([], {}))
            self.assertEqual(errand.folded.failed, {0: Failed("handler_error", "the Handler's process gave no Folded")})
        errand = Errand(ForeignWork("Slow", work, {}), False, 1)
        errand.request()
        errand.suspect(ValueError("it died"))
        errand.request()
        for done in (0, -1, 3):  # no part of what was asked: as if it were all
            errand.take([{}, {}, {}, {}, [], done])
            self.assertEqual((errand.lots, errand.folded), ([], Folded({}, {}, {}, {})))

    def test_what_was_carried_stays_where_all_that_is_left_fails(self) -> None:
        errand, _, _ = run(Slow(), [7.0] * 3 + [2.0] + [1.0])
        self.assertEqual((Slow().load(errand.folded.states[0]), errand.folded.failed), ([7.0] * 3, {}))
        self.assertEqual(lost(errand, 0), [3, 4])
        self.assertEqual(Framed(1, 0, errand.folded.states[0]).version, Slow.version)
