"""What a process does besides being reached: when it looks for garbage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taba import listening
from taba.bounds import MiB
from taba.listening import (
    COLLECT_SECONDS,
    ENDED_BYTES,
    FEW_BYTES,
    LOOK_SECONDS,
    MOST_ENDED_BYTES,
    MOST_GROWN_BYTES,
    MOST_GROWN_SHARE,
    MOST_YOUNG_COLLECTIONS,
    NEVER,
    QUIET_SECONDS,
    YOUNG_COLLECTIONS,
    YOUNG_OBJECTS,
    freeze_when_running,
    memory_bytes,
)
from tests.patience import PATIENCE_SECONDS

# cycles that are alive in each quiet moment and garbage in the next, 40 lots of them: which are gone
CYCLES = """
import sys, weakref
from twisted.internet.task import Clock
from taba import listening
listening.MOST_ENDED_BYTES, listening.MOST_GROWN_BYTES, listening.LOOK_SECONDS, bytes, cycles = map(int, sys.argv[1:])
clock = Clock()
clock.callWhenRunning = lambda call: call()
gone = []
listening.ENDED_BYTES = bytes
listening.freeze_when_running(clock, lambda: listening.QUIET_SECONDS, lambda: len(gone))
class Cycle:
    def __init__(self):
        self.itself, self.content = self, bytearray(b"x") * bytes
seen = []
for _ in range(40):
    some = [Cycle() for _ in range(cycles)]
    seen.append(weakref.ref(some[0]))
    clock.advance(listening.COLLECT_SECONDS)
    gone += [None] * len(some)
    del some
print("".join("-" if one() is None else "x" for one in seen))
"""

NOT = 1 << 60
SOME, LOOK = [("collect", 1), "freeze"], ["unfreeze", ("collect",), "freeze"]
ALL = [*SOME, *LOOK]


class Starting(Clock):
    """A clock that is a reactor, too, and has begun."""

    def callWhenRunning(self, call: object) -> None:
        call()  # type: ignore[operator]


class Collecting(SynchronousTestCase):
    def setUp(self) -> None:
        self.did: list[object] = []
        self.young = 0  # young collections since the last freeze
        gc = SimpleNamespace(
            collect=lambda *generation: self.did.append(("collect", *generation)),
            freeze=lambda: self.did.append("freeze"),
            unfreeze=lambda: self.did.append("unfreeze"),
            get_count=lambda: (0, 0, self.young),
            set_threshold=lambda *numbers: self.did.append(numbers),
        )
        self.resident = MiB
        self.patch(listening, "gc", gc)
        self.patch(listening, "resident_bytes", lambda: self.resident)
        self.memory = 1 << 40
        self.patch(listening, "memory_bytes", lambda: self.memory)
        self.clock = Starting()

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
        self.assertEqual(self.did, [("collect",), "freeze", (YOUNG_OBJECTS, YOUNG_COLLECTIONS, NEVER)])
        self.assertEqual(self.did_within(COLLECT_SECONDS), SOME)
        quiet[0] = QUIET_SECONDS - 0.01
        self.assertEqual(self.did_within(COLLECT_SECONDS), [])
        quiet[0] = QUIET_SECONDS
        self.assertEqual(self.did_within(COLLECT_SECONDS), SOME)

    def test_where_it_is_never_quiet_what_has_come_to_be_much_is_left_alone_all_the_same(self) -> None:
        freeze_when_running(self.clock, lambda: 0.0)
        for collections, did in ((MOST_YOUNG_COLLECTIONS - 1, []), (MOST_YOUNG_COLLECTIONS, SOME)):
            self.young = collections
            self.assertEqual(self.did_within(COLLECT_SECONDS), did)

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

    def test_it_is_sooner_where_so_much_may_be_of_connections_that_are_gone(self) -> None:
        ended = [0]
        freeze_when_running(self.clock, lambda: QUIET_SECONDS, lambda: ended[0])
        enough = MOST_ENDED_BYTES // ENDED_BYTES + 1
        for grown, gone, did in (
            (MOST_ENDED_BYTES + 1, enough - 1, SOME),  # others have it
            (MOST_ENDED_BYTES, enough, SOME),
            (MOST_ENDED_BYTES + 1, enough, ALL),
            (2 * MOST_ENDED_BYTES + 2, enough, SOME),  # none has gone since then
        ):
            self.resident, ended[0] = MiB + grown, gone
            self.assertEqual(self.did_within(COLLECT_SECONDS), did, (grown, gone))

    def test_where_there_is_little_memory_a_part_of_that_is_the_bound(self) -> None:
        self.memory = 256 * MiB
        freeze_when_running(self.clock, lambda: QUIET_SECONDS)
        for grown, did in ((self.memory // MOST_GROWN_SHARE, SOME), (self.memory // MOST_GROWN_SHARE + 1, ALL)):
            self.resident = MiB + grown
            self.assertEqual(self.did_within(COLLECT_SECONDS), did)

    def test_where_it_is_never_quiet_it_is_once_memory_has_grown_by_twice_the_bound(self) -> None:
        freeze_when_running(self.clock, lambda: 0.0)
        for resident, did in ((MiB + 2 * MOST_GROWN_BYTES, []), (MiB + 2 * MOST_GROWN_BYTES + 1, LOOK)):
            self.resident = resident
            self.assertEqual(self.did_within(COLLECT_SECONDS), did)

    def test_a_process_that_is_small_enough_has_all_looked_through_after_a_time_and_no_other(self) -> None:
        quiet = [QUIET_SECONDS]
        freeze_when_running(self.clock, lambda: quiet[0])
        self.resident = FEW_BYTES + 1
        self.assertEqual(self.did_within(LOOK_SECONDS), SOME)  # a clock that is moved on at once calls once
        quiet[0], self.resident = 0.0, FEW_BYTES
        self.assertEqual(self.did_within(COLLECT_SECONDS), [])  # it is time, and not quiet
        quiet[0] = QUIET_SECONDS
        self.assertEqual(self.did_within(COLLECT_SECONDS), ALL)
        self.assertEqual(self.did_within(COLLECT_SECONDS), SOME)


class Memory(SynchronousTestCase):
    def test_it_is_the_hosts_or_what_the_narrowest_of_its_groups_may_have(self) -> None:
        files = {"/proc/self/cgroup": "1:name=old:/x\n0::/outer/inner\n"}

        def read(path: object) -> str:
            if f"{path}" not in files:
                raise FileNotFoundError(path)
            return files[f"{path}"]

        self.patch(Path, "read_text", read)
        host = memory_bytes()
        self.assertGreater(host, 64 * MiB)
        for place, content, least in (
            ("", "max\n", host),
            ("/outer/inner", f"{64 * MiB}\n", 64 * MiB),
            ("/outer", f"{32 * MiB}\n", 32 * MiB),
            ("", f"{48 * MiB}\n", 32 * MiB),
        ):
            files[f"/sys/fs/cgroup{place}/memory.max"] = content
            self.assertEqual(memory_bytes(), least)
        files["/proc/self/cgroup"] = "1:name=old:/x\n"
        self.assertEqual(memory_bytes(), 48 * MiB)
        del files["/proc/self/cgroup"]
        self.assertEqual(memory_bytes(), host)


class Cycles(SynchronousTestCase):
    """With Python's own collector, in a process of its own: what was frozen while it lived and is garbage now goes."""

    def gone(self, *numbers: int) -> int:
        """How many of the lots are gone, each of which the collector had left alone; the last one has not been looked for."""
        command = [sys.executable, "-c", CYCLES, *map(str, numbers)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        self.assertEqual(ran.stderr, "")
        self.assertRegex(ran.stdout, "^-*x+$")  # those that came first, until the last look
        return ran.stdout.count("-")

    def test_those_of_connections_that_are_gone(self) -> None:
        self.assertGreater(self.gone(8 * MiB, NOT, NOT, MiB // 16, 32), 3)

    def test_a_few_with_much_memory(self) -> None:
        self.assertGreater(self.gone(NOT, 8 * MiB, NOT, MiB // 16, 32), 3)

    def test_a_few_small_ones_after_a_time(self) -> None:
        self.assertEqual(self.gone(NOT, NOT, 10, 0, 10), 39)

    def test_none_within_all_bounds(self) -> None:
        self.assertEqual(self.gone(NOT, NOT, NOT, 0, 10), 0)
