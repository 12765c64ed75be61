"""The simulator itself: a seed says it all, worlds of fixed seeds stay right, every fault befalls somebody, and a trace is made short."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.trial.unittest import SynchronousTestCase

from simulation.__main__ import kinds
from simulation.census import add, numbers
from simulation.faults import KINDS, Fault
from simulation.shrinking import shrink
from simulation.store import REPLICA_SECONDS

ROOT = Path(__file__).parent.parent.parent
# modules of the simulated parts that reach the machine as it is, and why that is all the same to a world
UNTOUCHED = {
    "taba.agent.status": "a status shows a process id",
    "taba.client": "the environment of a real process",
    "taba.client.identity": "slots; Clients here have names",
    "taba.client.pure": "which machine it is",
    "taba.handlers.lookup": "Handlers come from the world",
    "taba.options": "no options are read",
    "taba.server.keep.jobs": "no jobs run",
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
FIRST_SEED, SEEDS = 168, 14  # so few in which every kind of fault is drawn
# worlds of the kinds that found something once: what an Agent of a host that boots anew takes for ended, and for lost
FOUND = ((3001, "host boots,server cut off"), (4001, "host boots,server cut off,kill agent,agent's fuse,memory full"))
RUN_SECONDS = 400  # a machine that has much else to do, too


def simulate(*arguments: str) -> str:
    """What ./run simulate prints, and how it ended, on the last line."""
    command = [sys.executable, "-m", "simulation", *arguments]
    environment = {**os.environ, "PYTHONHASHSEED": "random"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=RUN_SECONDS, check=False, env=environment)
    return f"{done.stdout}{done.stderr}\nended with {done.returncode}"


class SimulationTests(SynchronousTestCase):
    def test_a_few_worlds_are_right_and_the_same_seed_is_the_same_world_each_time(self) -> None:
        once, again = simulate("--seed", "3", "--trace"), simulate("--seed", "3", "--trace")
        self.assertIn("nothing is wrong\n", once)
        self.assertTrue(once.endswith("ended with 0"), once[-2000:])
        same = [line for line in once.splitlines() if not line.startswith("seeds ")]  # which has how long it took
        self.assertEqual(same, [line for line in again.splitlines() if not line.startswith("seeds ")])
        self.assertIn("digest", once)

    def test_no_module_of_the_simulated_parts_reaches_the_machine_unseen(self) -> None:
        code = (
            "import os, sys, simulation.world, simulation.machine as machine;"
            "print(*[name for name, module in sys.modules.items() if name.startswith('taba') and getattr(module, 'os', None) is os]);"
            "print(*machine.WITH_OS)"
        )
        ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=RUN_SECONDS)
        reaching, exchanged = (set(line.split()) for line in ran.stdout.splitlines())
        self.assertEqual(reaching - exchanged - UNTOUCHED.keys(), set(), "list them in simulation/machine.py, or here with a reason")
        self.assertEqual((UNTOUCHED.keys() - reaching, exchanged - reaching), (set(), set()))

    def test_of_replicas_that_lag_twice_at_once_none_lags_for_ever(self) -> None:
        for seconds in ((4.0, 8.0), (8.0, 4.0), (8.0, 8.0)):
            ends: list[tuple[float, Callable[[], None]]] = []
            store = SimpleNamespace(lag=REPLICA_SECONDS)
            world: Any = SimpleNamespace(
                stores=[store], is_quiet=False, later=lambda after, process, call, ends=ends: ends.append((after, call))
            )
            for number, lasting in enumerate(seconds):
                KINDS["replica lags"].happen(world, Fault(number, 0.0, "replica lags", {"which": 0, "seconds": lasting}))
                self.assertEqual(store.lag, lasting / 4)
            for _, call in sorted(ends, key=lambda end: end[0]):
                call()
            self.assertEqual(store.lag, REPLICA_SECONDS)

    def test_a_kind_of_fault_that_there_is_not_is_said_in_words(self) -> None:
        with self.assertRaisesRegex(ArgumentTypeError, "'flood': takes kill agent, "):
            kinds("flood")

    def test_a_trace_is_made_as_short_as_what_makes_it_fail(self) -> None:
        gone = shrink(range(40), lambda without: not {7, 23} & without)
        self.assertEqual(set(range(40)) - gone, {7, 23})
        self.assertEqual(shrink([], lambda without: True), frozenset())

    def test_a_census_knows_what_came_twice_in_any_order(self) -> None:
        runs: list[int] = []
        order = [5, 1, 2, 9, 3, 4, 8, 7, 6, 12]
        self.assertTrue(all(add(runs, number) for number in order))
        self.assertEqual(runs, [1, 9, 12, 12])
        self.assertFalse(any(add(runs, number) for number in order))
        self.assertEqual(numbers(runs), set(order))


@pytest.mark.real
class ManyWorldsTests(SynchronousTestCase):
    """What `./run check` tries; a night tries some thousand times as much."""

    def test_worlds_of_fixed_seeds_are_right_and_no_kind_of_fault_is_left_out(self) -> None:
        for seed, of in FOUND:
            said = simulate("--seed", str(seed), "--kinds", of)
            self.assertTrue(said.endswith("ended with 0"), said[-4000:])
        said = simulate("--seed", str(FIRST_SEED), "--seeds", str(SEEDS))
        self.assertTrue(said.endswith("ended with 0"), said[-4000:])
        self.assertNotIn("never drawn", said)
        for kind in KINDS:
            self.assertRegex(said, rf"(?m)[:,] {re.escape(kind)} [1-9]\d*(,|$)")
