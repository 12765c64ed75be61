"""The simulator itself: a seed says it all, worlds of fixed seeds stay right, every fault befalls somebody, and a trace is made short."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from argparse import ArgumentTypeError
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import pytest
from twisted.trial.unittest import SynchronousTestCase

from simulation.census import FOLDING, add, numbers
from simulation.clockwork import Process
from simulation.command import kinds
from simulation.faults import KINDS, Fault, silent
from simulation.machine import WITH_OPEN, WITH_OS
from simulation.names import AGENT
from simulation.play import play
from simulation.shrinking import shrink
from simulation.world import World

ROOT = Path(__file__).parent.parent.parent
# modules of the simulated parts that reach the machine as it is, and why that is all the same to a world
UNTOUCHED = {
    "taba.agent.status": "a status shows a process id",
    "taba.client": "the environment of a real process",
    "taba.client.identity": "slots; Clients here have names",
    "taba.client.own_ring": "which machine it is",
    "taba.descriptors": "the table of descriptors has room",
    "taba.directories": "the directory of the disk is there",
    "taba.handlers.lookup": "Handlers come from the world",
    "taba.options": "no options are read",
    "taba.parts": "which parts are in C, asked for once",
    "taba.server.starts": "no workers",
    "taba.server.work.boxing": "no child processes",
    "taba.server.work.child": "no child processes",
    "taba.server.work.faults": "no child processes",
    "taba.server.work.line": "no child processes",
    "taba.server.work.sandbox": "no child processes",
    "taba.shard.servers.binary": "no server is started",
    "taba.shard.servers.embedded": "no server is started",
    "taba.shard.servers.launch": "no server is started",
    "taba.shard.servers.pool": "no real connections",
    "taba.tokens": "no tokens",
}
# worlds whose Agents fold: one of all kinds of faults, two in which together everybody dies, one whose Server is stepped back
EVERYBODY = "kill agent,kill server,kill client,store dies,messages lost"
FOLDED = (
    ("--seed", "168"),
    ("--seed", "12", "--kinds", EVERYBODY),
    ("--seed", "18", "--kinds", EVERYBODY),
    ("--seed", "4", "--kinds", "other version,kill agent,kill server"),
)
# and one whose second Server merges nothing
UNFOLDED = ("--seed", "7", "--kinds", EVERYBODY)
# Few worlds of all kinds, and those of the kinds that need each other: together every kind of fault does something in them
DID_NOTHING = "did nothing, so not tried: "
WORLDS = (
    ("--seed", "168", "--seeds", "8"),
    ("--seed", "3", "--kinds", "buckets move,kill mover,mover's fuse,mover interrupted,mover stopped,mover naps"),
    ("--seed", "1", "--kinds", "buckets move,mover interrupted"),
    ("--seed", "1", "--kinds", "buckets move,sleeps before a step"),
    ("--seed", "3", "--kinds", "memory full,disk full,spool spoilt,server cut off,kill agent"),
    ("--seed", "1", "--kinds", "outbox removed,kill agent,server cut off"),
    ("--seed", "5", "--seeds", "3", "--kinds", "disk tears,file spoilt,memory full,server cut off,kill agent"),
    ("--seed", "1", "--seeds", "2", "--kinds", "one store goes back,server cut from store,all restart"),
    ("--seed", "1", "--kinds", "host boots,messages repeated,kill agent"),
    ("--seed", "1", "--kinds", "store fails over,replica lags"),
    ("--seed", "1", "--seeds", "3", "--kinds", "power fails,memory full,move's fuse,store has no memory"),
)
_LEFT_OUT = range(7, 14), range(28, 35), range(42, 49), range(69, 72), range(84, 91), range(98, 112), range(119, 127)
WITHOUT_MOST = ",".join(str(number) for some in _LEFT_OUT for number in some)
WITHOUT_LATE = ",".join(map(str, (*range(2, 6), *range(7, 67), *range(72, 124))))
# The kinds that there were when most of these worlds were found: with others among them the same seeds draw other faults
FIRST_KINDS = tuple(KINDS)[: tuple(KINDS).index("disk tears")]
OF_FIRST_KINDS = ("--kinds", ",".join(FIRST_KINDS))
SECOND_KINDS = tuple(KINDS)[: tuple(KINDS).index("move's fuse")]
THIRD_KINDS = tuple(KINDS)[: tuple(KINDS).index("power fails") + 1]
# worlds that found something once: what an Agent of a host that boots anew takes for ended, and for lost, and what the next Agent makes of
# that; what a full disk does not let go of, and what it does not take while a host boots anew; a sum that comes late; a world that was
# judged before what a store had lost was asked for; what Agents say for ever, and nobody folds; problems that were over;
# what is retained when a move has ended; a map that only a shard that left was told; what went with a spool's file and was applied before;
# what was dropped by who had no ring, beside what was dropped for another reason; what was counted at once, of too many lanes; a bucket
# that was moved to a shard that had been drained while its mover stood still; a sentence of the last two minutes, after long catching up;
# a step that an Agent's clock agreed with when it sent what came a minute and a half later
FOUND = (
    ("--seed", "3001", "--kinds", "host boots,server cut off"),
    ("--seed", "4001", "--kinds", "host boots,server cut off,kill agent,agent's fuse,memory full"),
    ("--seed", "7", "--kinds", "disk full,server cut off,memory full"),
    ("--seed", "7", "--kinds", "memory full,store fails over,replica lags,kill agent,server cut off"),
    ("--seed", "1000110"),
    ("--seed", "1000146", "--without", "0,1"),
    ("--seed", "2026112700100"),
    ("--seed", "2026112701016"),
    ("--seed", "2026112702070", "--without", "0,2,3,4"),
    ("--seed", "2026112708045"),
    ("--seed", "2026112708045", "--without", WITHOUT_MOST),
    ("--seed", "2026112712036"),
    ("--seed", "2026112710125", "--without", "1"),
    ("--seed", "2026112720164"),
    ("--seed", "2026112706029", "--without", "5,6,8,15,30,31,40,41,42,43,44,45,46"),
    ("--seed", "101", "--kinds", "agent's fuse,kill agent,spool spoilt,server cut off,memory full"),
    ("--folding", "--seed", "2026112730030", "--without", "0,1,2,3,6,7,10"),
    ("--folding", "--seed", "2026112730039"),
    ("--seed", "2026112708122"),
    ("--folding", "--seed", "2026112730429", "--kinds", ",".join(SECOND_KINDS)),
    ("--seed", "2026112731335", "--kinds", ",".join(THIRD_KINDS), "--without", WITHOUT_LATE),
)
RUN_SECONDS = 550  # a machine that has much else to do, too
# ./run simulate with one list of arguments after another, in one process: to begin one takes longer than many a world
IN_TURN = """
import json, sys
from simulation import command
command.prepare()
command.prepare = lambda: None
for arguments in json.loads(sys.argv[1]):
    print(f"{command.main(arguments)}", end="\\0", flush=True)
"""


def simulate(case: SynchronousTestCase, worlds: Iterable[tuple[str, ...]]) -> list[str]:
    """What ./run simulate prints with each of these arguments; fails where one of them ends with something wrong."""
    given = [list(arguments) for arguments in worlds]
    command = [sys.executable, "-c", IN_TURN, json.dumps(given)]
    environment = {**os.environ, "PYTHONHASHSEED": "random"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=RUN_SECONDS, check=False, env=environment)
    case.assertEqual((done.returncode, done.stderr), (0, ""))
    said = done.stdout.split("\0")[:-1]
    case.assertEqual(len(said), len(given))
    for arguments, printed in zip(given, said, strict=True):
        case.assertTrue(printed.endswith("\n0"), (arguments, printed[-4000:]))
    return said


# what is in a process where a world was made: the modules of Taba that have `os`, and those whose `os` is exchanged. Then a world
IN_A_PROCESS = """
import os, sys, simulation.machine as machine
from simulation.command import prepare
from simulation.play import play
print(*[name for name, module in sys.modules.items() if name.startswith("taba") and getattr(module, "os", None) is os])
print(*machine.WITH_OS)
prepare()
print(f"digest {play(int(sys.argv[1])).digest:08x}")
"""


def _state(world: World) -> list[Any]:
    """What faults that last change."""
    stores = [
        (store.is_up, store.is_reading_only, store.is_full, store.cut_before, store.cut_after, store.late, store.lag)
        for store in world.stores
    ]
    servers = [(server.is_future, server.is_older) for server in world.servers]
    stopped = [part.process is not None and part.process.wakes > world.now for part in (*world.servers, *world.agents, *world.clients)]
    machine, second = world.machine, world.agents[1]
    around = dict(vars(world.network.weather)), set(world.network.cut), machine.is_memory_full, machine.is_disk_full, second.may_start
    return [stores, servers, stopped, *around, set(world.network.without_store), machine.disk_left]


SEED = 3  # a short world in which much happens


class SimulationTests(SynchronousTestCase):
    said: ClassVar[list[str]]

    @classmethod
    def setUpClass(cls) -> None:
        """One world twice, at once: as the command plays it, whose hashes are chance, and in another process."""
        commands = {"random": ["-m", "simulation", "--seed", str(SEED), "--trace"], "0": ["-c", IN_A_PROCESS, str(SEED)]}
        running = [
            subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONHASHSEED": hashes}
            )
            for hashes, command in commands.items()
        ]
        cls.said = [process.communicate(timeout=RUN_SECONDS)[0] for process in running]
        assert [process.returncode for process in running] == [0, 0], cls.said

    def test_a_world_is_right_and_the_same_seed_is_the_same_world_each_time(self) -> None:
        command, other = self.said
        self.assertIn("nothing is wrong\n", command)
        (digest,) = [line for line in command.splitlines() if line.startswith("digest")]
        self.assertEqual(other.splitlines()[-1], digest)

    def test_no_module_of_the_simulated_parts_reaches_the_machine_unseen(self) -> None:
        reaching, exchanged = (set(line.split()) for line in self.said[1].splitlines()[:2])
        self.assertEqual(reaching - exchanged - UNTOUCHED.keys(), set(), "list them in simulation/machine.py, or here with a reason")
        self.assertEqual((UNTOUCHED.keys() - reaching, exchanged - reaching), (set(), set()))

    def test_no_simulated_module_writes_by_a_name_that_is_not_exchanged(self) -> None:
        """`open` for writing, and what pathlib and shutil do, go past a module's `os`."""
        found = set()
        for name in WITH_OS:
            source = (ROOT / f"{name.replace('.', '/')}.py").read_text("utf-8")
            for call in ast.walk(ast.parse(source)):
                if not isinstance(call, ast.Call):
                    continue
                function, modes = call.func, [word.value for word in call.args[1:2] if isinstance(word, ast.Constant)]
                if isinstance(function, ast.Name) and function.id == "open" and set(f"{modes}") & set("wxa+"):
                    found.add(name)
                if isinstance(function, ast.Attribute) and not (isinstance(function.value, ast.Name) and function.value.id == "os"):
                    self.assertNotIn(function.attr, ("write_text", "write_bytes", "touch", "copyfile", "move", "rmtree"), name)
        self.assertEqual(found, set(WITH_OPEN))

    def test_a_kind_of_fault_that_was_drawn_and_did_nothing_is_named(self) -> None:
        fired = {"killed an agent": 1, "killed a server": 0}
        self.assertEqual(silent(["kill agent", "kill server", "disk full"], fired), ["kill server", "disk full"])
        self.assertEqual(silent(KINDS, {word: 1 for kind in KINDS.values() for word in kind.counted}), [])

    def test_of_faults_that_last_each_ends_by_itself_where_several_are_at_once(self) -> None:
        lasting = [kind for kind, made in KINDS.items() if "seconds" in made.shape(Random(1))]
        # of a command; or how far back; or the most that it may last
        for kind in ("mover stopped", "mover naps", "sleeps before a step", "store goes back", "one store goes back", "all restart"):
            lasting.remove(kind)
        for kind, first, second in [(kind, *pair) for kind in lasting for pair in ((8.0, 2.0), (3.0, 6.0))]:
            world = World(1, Random(1), types=FOLDING)
            self.addCleanup(shutil.rmtree, world.machine.root)
            world.agents[1].live = lambda: None  # type: ignore[method-assign]
            for store in world.stores:
                store.follow()
            for part in (*world.servers, *world.agents, *world.clients):
                part.process = part.process or Process(world, part.name)
            usual, felt = _state(world), []
            for number, (at, seconds) in enumerate(((0.0, first), (1.0, second))):
                detail = {**KINDS[kind].shape(Random(4)), "which": 3, "seconds": seconds}
                world.later(at, None, KINDS[kind].happen, world, Fault(number, at, kind, detail))
            for until in (0.5, max(first, 1.0 + second) - 0.1, max(first, 1.0 + second) + 0.1):
                world.advance(until)
                felt.append(_state(world) != usual)
            self.assertEqual(felt, [True, True, False], f"{kind} for {first} s, and for {second} s from then on")

    def test_a_kind_of_fault_that_there_is_not_is_said_in_words(self) -> None:
        with self.assertRaisesRegex(ArgumentTypeError, "'flood': takes kill agent, "):
            kinds("flood")

    def test_a_trace_is_made_as_short_as_what_makes_it_fail(self) -> None:
        gone = shrink(range(40), lambda without: not {7, 23} & without)
        self.assertEqual(set(range(40)) - gone, {7, 23})
        self.assertEqual(shrink([], lambda without: True), frozenset())

    def test_a_row_of_the_spool_that_damage_has_changed_is_no_more_spoilt(self) -> None:
        world = World(1, Random(1))
        self.addCleanup(shutil.rmtree, world.machine.root)
        os.mkdir(world.machine.disk)
        for content, spoilt in (("''", 0), ("x''", 0), ("NULL", 0), ("x'07'", 1)):
            with contextlib.closing(sqlite3.connect(os.path.join(world.machine.disk, f"{AGENT}.spool"))) as database, database:
                database.executescript("DROP TABLE IF EXISTS batches; CREATE TABLE batches (id INTEGER PRIMARY KEY, content)")
                database.execute(f"INSERT INTO batches VALUES (1, {content})")
            KINDS["spool spoilt"].happen(world, Fault(1, 1.0, "spool spoilt", {"which": 0}))
            self.assertEqual(world.fired["flipped a bit in the spool"], spoilt, content)
        with contextlib.closing(sqlite3.connect(os.path.join(world.machine.disk, f"{AGENT}.spool"))) as database, database:
            database.execute("PRAGMA writable_schema=ON")
            database.execute("UPDATE sqlite_master SET sql = CAST(x'435245415445cccd' AS TEXT)")  # of which SQLite's own words are no text
        KINDS["spool spoilt"].happen(world, Fault(1, 1.0, "spool spoilt", {"which": 0}))
        self.assertEqual(world.fired["flipped a bit in the spool"], 1)

    def test_a_fold_counts_as_one_whichever_way_its_bucket_goes(self) -> None:
        """Of a CounterGroup ordinary buckets are folded together, past what other Types go by."""
        folds = [play(1, kinds=(), types=(type,) * 3, duration=5.0).folds for type in ("CounterGroup", "TotalsCounter")]
        self.assertGreater(folds[0], 20)
        self.assertEqual(*folds)

    def test_a_census_knows_what_came_twice_in_any_order(self) -> None:
        runs: list[int] = []
        order = [5, 1, 2, 9, 3, 4, 8, 7, 6, 12]
        self.assertTrue(all(add(runs, number) for number in order))
        self.assertEqual(runs, [1, 9, 12, 12])
        self.assertFalse(any(add(runs, number) for number in order))
        self.assertEqual(numbers(runs), set(order))


# What `./run check` tries; a night tries some thousand times as much. Each in a class of its own: they are played at once
@pytest.mark.real
@pytest.mark.takes(seconds=70)
class FoundWorldsTests(SynchronousTestCase):
    def test_worlds_that_found_something_are_right(self) -> None:
        simulate(self, [(*arguments, *(() if "--kinds" in arguments else OF_FIRST_KINDS)) for arguments in FOUND])


@pytest.mark.real
@pytest.mark.takes(seconds=50)
class FixedWorldsTests(SynchronousTestCase):
    def test_worlds_of_fixed_seeds_are_right_and_no_kind_of_fault_is_left_out(self) -> None:
        idle = set(KINDS)
        for arguments, said in zip(WORLDS, simulate(self, WORLDS), strict=True):
            silent_ones = said.partition(DID_NOTHING)[2].partition("\n")[0]
            # of kinds that were not asked for nothing is said
            tried = set(kinds(arguments[-1])) if "--kinds" in arguments else set(KINDS)
            idle -= tried - {kind.partition(" (")[0] for kind in silent_ones.split(", ")}
        self.assertEqual(idle, set())


@pytest.mark.real
class FoldedWorldsTests(SynchronousTestCase):
    def test_worlds_whose_agents_fold_are_right_and_fold_and_where_a_server_merges_nothing_nobody_does(self) -> None:
        *folded, unfolded = simulate(self, [("--folding", *arguments) for arguments in (*FOLDED, UNFOLDED)])
        for said in folded:
            found = re.search(r"States folded at the edge (\d+)", said)
            self.assertGreater(int(found[1]) if found else 0, 10, said[-4000:])
        for killed in ("agent", "server", "client", "store"):
            self.assertTrue(any(re.search(rf"killed an? {killed} [1-9]", said) for said in folded), killed)
        self.assertNotIn("States folded at the edge", unfolded)
