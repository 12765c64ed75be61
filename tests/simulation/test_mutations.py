"""The simulator can find faults: each of a list of them, put into the real code, is found within a few seeds."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import ClassVar

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.simulation.mutations import ALL, BESIDE, FOCUS, agent, bounds, edge, kinds, moving, others, store
from tests.simulation.test_simulation import ROOT

FEWEST = 25
TRIED_SEEDS = 40  # from the pinned one on: a change of the real code makes other worlds of the same seeds
RUN_SECONDS = 550


class MutationTests(SynchronousTestCase):
    """The faults of some rooms of the list. Each class is played beside the others."""

    rooms: ClassVar[tuple[ModuleType, ...]] = ()

    def find_each(self) -> None:
        names = names_of(self.rooms)
        command = [sys.executable, "-m", "tests.simulation.mutations", "--seeds", str(TRIED_SEEDS), "--pinned", *names]
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )
        self.assertNotIn("NOT FOUND", done.stdout)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual(done.stdout.count(": seed "), len(names), done.stdout)


def names_of(rooms: Iterable[ModuleType]) -> list[str]:
    homes = {room.__name__ for room in rooms}
    return [name for name, patch in ALL.items() if patch.__module__ in homes]


@pytest.mark.real
@pytest.mark.takes(seconds=60)
class AgentTests(MutationTests):
    rooms = (agent,)

    def test_each_fault_of_the_agent_is_found_from_its_pinned_seed_on(self) -> None:
        self.find_each()


@pytest.mark.real
@pytest.mark.takes(seconds=60)
class StoreTests(MutationTests):
    rooms = (store,)

    def test_each_fault_of_what_the_store_has_is_found_from_its_pinned_seed_on(self) -> None:
        self.find_each()


@pytest.mark.real
@pytest.mark.takes(seconds=60)
class MovingTests(MutationTests):
    rooms = (moving, edge)

    def test_each_fault_of_moves_and_of_folding_at_the_edge_is_found_from_its_pinned_seed_on(self) -> None:
        self.find_each()


@pytest.mark.real
@pytest.mark.takes(seconds=60)
class OtherTests(MutationTests):
    rooms = (bounds, kinds, others)

    def test_each_other_fault_is_found_from_its_pinned_seed_on(self) -> None:
        self.find_each()


# the command, with a fault in the real code
BROKEN = """
import sys
from simulation.command import main
from tests.simulation.mutations import applied
with applied(sys.argv[1]):
    sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.real
class ReportTests(SynchronousTestCase):
    def simulate(self, *arguments: str) -> str:
        command = [sys.executable, "-c", BROKEN, "nested_values_are_cut_in_the_wrong_place", *arguments]
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=RUN_SECONDS, check=False, env=environment)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        return done.stdout

    def test_a_failure_tells_its_seed_its_shortest_trace_and_the_command_that_shows_it_again(self) -> None:
        said = self.simulate("--seed", "1", "--kinds", "kill agent,server cut off")
        (number,) = re.findall(r"^seed (\d+) is wrong: .*folded twice", said, re.MULTILINE)
        self.assertRegex(said, r"(?m)^with 0 faults: .*folded twice")  # it needs none
        (again,) = re.findall(r"^to see it again: \./run simulate (--seed (\d+) --without [\d,]+ --kinds '.*')$", said, re.MULTILINE)
        self.assertEqual(again[1], number)
        self.assertIn(f"seed {number} is wrong: ", self.simulate(*shlex.split(again[0])))


class ListTests(SynchronousTestCase):
    def test_each_is_in_a_room_that_is_looked_through(self) -> None:
        tried = [name for some in MutationTests.__subclasses__() for name in names_of(some.rooms)]
        self.assertEqual(sorted(tried), sorted(ALL))

    def test_there_are_enough_and_each_has_its_seed(self) -> None:
        self.assertGreaterEqual(len(ALL), FEWEST)
        self.assertEqual(FOCUS.keys() | BESIDE.keys(), ALL.keys())
        self.assertEqual(FOCUS.keys() & BESIDE.keys(), set())
