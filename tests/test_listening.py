"""What a process does besides being reached: when it looks for garbage."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

from twisted.internet import reactor
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from taba import listening
from taba.bounds import MiB
from taba.descriptors import Descriptors
from taba.errors import ConfigurationError
from taba.guard import Guard
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
    Front,
    freeze_when_running,
    listen_at,
)
from taba.options import listen
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
        self.thresholds = (700, 10, 10)
        self.young = 0  # young collections since the last freeze
        gc = SimpleNamespace(
            collect=lambda *generation: self.did.append(("collect", *generation)),
            freeze=lambda: self.did.append("freeze"),
            unfreeze=lambda: self.did.append("unfreeze"),
            get_count=lambda: (0, 0, self.young),
            get_threshold=lambda: self.thresholds,
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

    def test_a_collector_that_is_incremental_keeps_its_own_pace_and_is_left_alone_where_it_is_never_quiet(self) -> None:
        self.thresholds = (2000, 10, 0)  # as 3.14 has them; 0 is what it says whatever it is told
        quiet = [0.0]
        freeze_when_running(self.clock, lambda: quiet[0])
        self.assertEqual(self.did, [("collect",), "freeze", (YOUNG_OBJECTS, 10)])
        self.young = MOST_YOUNG_COLLECTIONS
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

    def test_it_goes_on_once_memory_can_be_told_again(self) -> None:
        freeze_when_running(self.clock, lambda: QUIET_SECONDS)

        def fail() -> int:
            raise OSError(errno.EMFILE, "Too many open files")

        self.patch(listening, "resident_bytes", fail)
        self.assertEqual(self.did_within(COLLECT_SECONDS), SOME)
        self.patch(listening, "resident_bytes", lambda: MiB + MOST_GROWN_BYTES + 1)
        self.assertEqual(self.did_within(COLLECT_SECONDS), ALL)

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
    """What control groups say, in trees of files as hosts and containers have them."""

    def told(self, groups: str, mounts: str, limits: dict[str, str]) -> int:
        with TemporaryDirectory() as root:
            for path, content in {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts, **limits}.items():
                (Path(root) / path).parent.mkdir(parents=True, exist_ok=True)
                (Path(root) / path).write_text(content)
            return listening.memory_bytes(Path(root))

    def test_the_least_limit_of_a_group_and_those_around_it_counts(self) -> None:
        mount = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
        around, own = "sys/fs/cgroup/system.slice", "sys/fs/cgroup/system.slice/taba.service"
        for limits, least in (
            ({around: "max\n", own: "50000000\n"}, 50_000_000),
            ({around: "40000000\n", own: "50000000\n"}, 40_000_000),
            ({own: "50000000\n", "sys/fs/cgroup": "30000000\n"}, 30_000_000),
        ):
            files = {f"{path}/memory.max": limit for path, limit in limits.items()}
            self.assertEqual(self.told("0::/system.slice/taba.service\n", mount, files), least)

    def test_of_version_1_as_well_also_beside_a_version_2_that_limits_nothing(self) -> None:
        mounts = (
            "31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
            "32 30 0:28 / /sys/fs/cgroup/memory rw shared:11 - cgroup cgroup rw,memory\n"
            "33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
        )
        groups = "5:cpu:/other\n4:memory:/taba/one\n0::/taba/one\n"
        limits = {
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/taba/one/memory.limit_in_bytes": "50000000\n",
            "sys/fs/cgroup/memory/other/memory.limit_in_bytes": "20000000\n",
            "sys/fs/cgroup/cpu/other/memory.limit_in_bytes": "10000000\n",
        }
        self.assertEqual(self.told(groups, mounts, limits), 50_000_000)

    def test_in_a_container_that_sees_its_own_group_as_the_top_however_it_is_called(self) -> None:
        one = "32 30 0:28 /docker/ab /sys/fs/cgroup/memory ro master:11 - cgroup cgroup rw,memory\n"
        two = "30 24 0:26 /docker/ab /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n"
        seen = "30 24 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n"
        for groups, mounts, file in (
            ("4:memory:/docker/ab\n", one, "sys/fs/cgroup/memory/memory.limit_in_bytes"),
            ("4:memory:/docker/ab/job\n", one, "sys/fs/cgroup/memory/job/memory.limit_in_bytes"),
            ("0::/docker/ab/job\n", two, "sys/fs/cgroup/job/memory.max"),
            ("0::/../elsewhere\n", seen, "sys/fs/cgroup/memory.max"),
            ("0::/docker/ab\n", seen, "sys/fs/cgroup/memory.max"),
        ):
            self.assertEqual(self.told(groups, mounts, {file: "50000000\n"}), 50_000_000)

    def test_where_nothing_is_limited_or_told_it_is_the_hosts(self) -> None:
        host = listening.memory_bytes(Path("/nowhere"))
        mount = "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
        self.assertEqual(self.told("0::/\n", mount, {"sys/fs/cgroup/memory.max": "max\n"}), host)
        self.assertEqual(self.told("", "", {}), host)
        self.assertEqual(self.told("0::/\nodd\n", "odd\n", {}), host)
        self.assertLessEqual(listening.memory_bytes(), host)


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


class OfAFile(TestCase):
    async def test_nobody_else_reaches_a_socket_before_it_has_its_mode_whatever_the_umask(self) -> None:
        modes: list[int] = []
        chmod = os.chmod

        def seen(path: str, mode: int) -> None:
            modes.append(stat.S_IMODE(os.stat(path).st_mode))
            chmod(path, mode)

        self.patch(os, "chmod", seen)
        self.addCleanup(os.umask, os.umask(0))
        with TemporaryDirectory() as directory:
            at = listen(f"unix:{directory}/s:mode=660")
            front = Front(at, Guard(None, None, at, time.monotonic))
            port = await listen_at(front, Factory(), reactor, Descriptors("Server", time.monotonic))
            self.assertEqual(stat.S_IMODE(os.stat(f"{directory}/s").st_mode), 0o660)
            await port.stopListening()
        self.assertEqual((modes, os.umask(0)), ([0o600], 0))

    async def test_a_socket_whose_directory_is_missing_is_not_called_taken(self) -> None:
        with TemporaryDirectory() as directory:
            at = listen(f"unix:{directory}/gone/s")
            front = Front(at, Guard(None, None, at, time.monotonic), None)
            with self.assertRaisesRegex(ConfigurationError, "takes an endpoint that is to be had here: No such file or directory$"):
                await listen_at(front, Factory(), reactor, Descriptors("Server", time.monotonic))
