"""What a process does besides being reached: when it looks for garbage."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taba import listening
from taba.bounds import MiB
from taba.listening import (
    COLLECT_SECONDS,
    LOOK_SECONDS,
    MOST_FROZEN,
    MOST_GROWN_BYTES,
    MOST_YOUNG_COLLECTIONS,
    QUIET_SECONDS,
    freeze_when_running,
)
from tests.patience import PATIENCE_SECONDS

# cycles that are alive in each quiet moment and garbage in the next, 40 lots of them: which are gone
CYCLES = """
import sys, weakref
from twisted.internet.task import Clock
from taba import listening
listening.MOST_FROZEN, listening.MOST_GROWN_BYTES, listening.LOOK_SECONDS, bytes, cycles = map(int, sys.argv[1:])
clock = Clock()
clock.callWhenRunning = lambda call: call()
listening.freeze_when_running(clock, lambda: listening.QUIET_SECONDS)
class Cycle:
    def __init__(self):
        self.itself, self.content = self, bytearray(b"x") * bytes
seen = []
for _ in range(40):
    some = [Cycle() for _ in range(cycles)]
    seen.append(weakref.ref(some[0]))
    clock.advance(listening.COLLECT_SECONDS)
    del some
print("".join("-" if one() is None else "x" for one in seen))
"""
NEVER = 1 << 60


SOME, ALL = [("collect", 1), "freeze"], [("collect", 1), "freeze", "unfreeze", ("collect",), "freeze"]


class Starting(Clock):
    """A clock that is a reactor, too, and has begun."""

    def callWhenRunning(self, call: object) -> None:
        call()  # type: ignore[operator]


class Collecting(SynchronousTestCase):
    def setUp(self) -> None:
        self.did: list[object] = []
        self.frozen = self.left_alone = 100
        self.counted = 0  # how often all were gone through
        gc = SimpleNamespace(
            collect=lambda *generation: self.did.append(("collect", *generation)),
            freeze=self.freeze,
            unfreeze=lambda: self.did.append("unfreeze"),
            get_objects=lambda: range(max(0, self.frozen - self.left_alone)),
            get_freeze_count=self.count,
            get_threshold=lambda: (700, 10, 10),
            set_threshold=lambda *numbers: self.did.append(numbers),
        )
        self.resident = MiB
        self.patch(listening, "gc", gc)
        self.patch(listening, "resident_bytes", lambda: self.resident)
        self.clock = Starting()

    def freeze(self) -> None:
        self.did.append("freeze")
        self.left_alone = self.frozen

    def count(self) -> int:
        self.counted += 1
        return self.frozen

    def did_within(self, seconds: float) -> list[object]:
        self.did.clear()
        self.clock.advance(seconds)
        return list(self.did)

    def test_who_does_not_say_when_it_is_quiet_has_pythons_own_thresholds(self) -> None:
        freeze_when_running(self.clock)
        self.assertEqual((self.did, self.clock.getDelayedCalls()), ([("collect",), "freeze"], []))

    def test_what_has_come_to_live_long_is_left_alone_when_it_is_quiet_and_not_before(self) -> None:
        quiet = [QUIET_SECONDS]
        freeze_when_running(self.clock, lambda: quiet[0])
        self.assertEqual(self.did, [("collect",), "freeze", (700, 10, MOST_YOUNG_COLLECTIONS)])
        self.assertEqual(self.did_within(COLLECT_SECONDS), [("collect", 1), "freeze"])
        quiet[0] = QUIET_SECONDS - 0.01
        self.assertEqual(self.did_within(COLLECT_SECONDS), [])
        quiet[0] = QUIET_SECONDS
        self.assertEqual(self.did_within(COLLECT_SECONDS), [("collect", 1), "freeze"])

    def test_all_is_looked_through_once_that_is_twice_as_much_and_beyond_its_bound(self) -> None:
        freeze_when_running(self.clock, lambda: QUIET_SECONDS)
        for frozen, did in (
            (100 + MOST_FROZEN, SOME),  # the bound
            (101 + MOST_FROZEN, ALL),  # one past it
            (2 * (101 + MOST_FROZEN), SOME),  # twice as much as then
            (2 * (101 + MOST_FROZEN) + 1, ALL),
            (100, SOME),
        ):
            self.frozen = frozen
            self.assertEqual(self.did_within(COLLECT_SECONDS), did)

    def test_those_that_are_left_alone_are_counted_only_where_they_may_be_too_many(self) -> None:
        freeze_when_running(self.clock, lambda: QUIET_SECONDS)
        for frozen in (MOST_FROZEN // 2, 100 + MOST_FROZEN):  # the bound
            self.frozen = frozen
            self.assertEqual((self.did_within(COLLECT_SECONDS), self.counted), (SOME, 1))
        self.left_alone = self.frozen = 100  # most are gone, which nobody has counted
        self.frozen = 101
        self.assertEqual((self.did_within(COLLECT_SECONDS), self.counted), (SOME, 2))
        self.assertEqual((self.did_within(COLLECT_SECONDS), self.counted), (SOME, 2))

    def test_all_is_looked_through_once_memory_has_grown_beyond_its_bound(self) -> None:
        freeze_when_running(self.clock, lambda: QUIET_SECONDS)
        for resident, did in (
            (MiB + MOST_GROWN_BYTES, SOME),  # the bound
            (MiB + MOST_GROWN_BYTES + 1, ALL),  # one past it
            (MiB + 2 * MOST_GROWN_BYTES + 1, SOME),  # as much since then
            (MiB, SOME),
        ):
            self.resident = resident
            self.assertEqual(self.did_within(COLLECT_SECONDS), did)

    def test_all_is_looked_through_after_a_time_which_is_longer_the_more_is_kept(self) -> None:
        quiet = [QUIET_SECONDS]
        freeze_when_running(self.clock, lambda: quiet[0])
        self.assertEqual(self.did_within(LOOK_SECONDS - COLLECT_SECONDS), SOME)  # a clock that is moved on at once calls once
        quiet[0] = 0.0
        self.assertEqual(self.did_within(COLLECT_SECONDS), [])  # it is time, and not quiet
        quiet[0], self.frozen = QUIET_SECONDS, 3 * MOST_FROZEN
        self.assertEqual(self.did_within(COLLECT_SECONDS), ALL)
        self.assertEqual(self.did_within(3 * LOOK_SECONDS - COLLECT_SECONDS), SOME)
        self.assertEqual(self.did_within(COLLECT_SECONDS), ALL)


class Cycles(SynchronousTestCase):
    """With Python's own collector, in a process of its own: what was frozen while it lived and is garbage now goes."""

    def gone(self, *numbers: int) -> int:
        """How many of the lots are gone, each of which the collector had left alone; the last one has not been looked for."""
        command = [sys.executable, "-c", CYCLES, *map(str, numbers)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        self.assertEqual(ran.stderr, "")
        self.assertRegex(ran.stdout, "^-*x+$")  # those that came first, until the last look
        return ran.stdout.count("-")

    def test_many_small_ones(self) -> None:
        self.assertGreater(self.gone(1000, NEVER, NEVER, 0, 5000), 5)

    def test_a_few_with_much_memory(self) -> None:
        self.assertGreater(self.gone(NEVER, 8 * MiB, NEVER, MiB // 16, 32), 3)

    def test_a_few_small_ones_after_a_time(self) -> None:
        self.assertEqual(self.gone(MOST_FROZEN, NEVER, 10, 0, 10), 39)

    def test_none_within_all_bounds(self) -> None:
        self.assertEqual(self.gone(MOST_FROZEN, NEVER, NEVER, 0, 10), 0)
