"""Each `./run` command in a fresh clone, with an environment of what it asks for alone: what it needs is what it says that it needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import ClassVar

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.patience import PATIENCE_SECONDS
from tests.sources import copy_parts, copy_sources, copy_types

MINUTES = 15  # for an environment, on a busy machine with cold caches


class FreshClone(SynchronousTestCase):
    """Commands that need the same environment share a clone, for each takes most of a minute to be made; others have theirs meanwhile."""

    home: ClassVar[Path]
    compiles: ClassVar[bool] = False  # what is in C, which is as much work as all else of its environment: one of them does

    @classmethod
    def setUpClass(cls) -> None:
        cls.home = Path(tempfile.mkdtemp(prefix="taba-fresh-"))
        cls.addClassCleanup(shutil.rmtree, cls.home)

    def clone(self) -> Path:
        clone = self.home / "clone"
        if not clone.exists():
            copy_sources(clone)
            if not self.compiles:
                copy_parts(clone)
        return clone

    def run_in_a_clone(self, *arguments: str, **others: str) -> str:
        """What the command prints."""
        clone = self.clone()
        # without what this run's own environment has: its path, its modules
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TABA_", "VIRTUAL_ENV", "PYTEST"))}
        environ["PATH"] = os.pathsep.join(part for part in environ["PATH"].split(os.pathsep) if ".venv" not in part)
        if not self.compiles:
            environ["CC"] = "false"  # what is there already stays
        environ.update(others)
        done = subprocess.run([clone / "run", *arguments], cwd=clone, env=environ, capture_output=True, text=True, timeout=60 * MINUTES)
        self.assertEqual(done.returncode, 0, f"{arguments}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return done.stdout


@pytest.mark.real
@pytest.mark.takes(seconds=90)
class FreshDemo(FreshClone):
    def test_demo(self) -> None:
        self.assertIn('"web.requests"', self.run_in_a_clone("demo", "--seconds", "5", "--once"))


@pytest.mark.real
@pytest.mark.takes(seconds=100)
class FreshBench(FreshClone):
    def test_bench(self) -> None:
        out = self.run_in_a_clone("bench", "--quick", "--only", "record", "states")
        for peer in ("prometheus", "statsd"):
            self.assertIn(peer, out.lower())


@pytest.mark.real
@pytest.mark.takes(seconds=240)
class FreshTests(FreshClone):
    compiles = True

    def test_test(self) -> None:
        self.assertIn("passed", self.run_in_a_clone("test", "tests/test_names.py", "tests/client/test_record.py"))

    def test_soak(self) -> None:
        self.assertIn("verdict: every event once", self.run_in_a_clone("soak", "--minutes", "0.1", "--rate", "5000"))

    def test_lint(self) -> None:
        self.run_in_a_clone("lint")

    def test_changelog(self) -> None:
        self.assertIn("## next", self.run_in_a_clone("changelog"))

    def test_check(self) -> None:
        copy_types(self.clone())
        self.assertRegex(self.run_in_a_clone("check", "tests/test_names.py"), r"(?s)[1-9]\d* passed.*Success: no issues found")

    def test_coverage(self) -> None:
        self.assertRegex(self.run_in_a_clone("coverage", "tests/test_names.py"), r"(?ms)[1-9]\d* passed.*^TOTAL .*%$")

    def test_search(self) -> None:
        self.assertRegex(self.run_in_a_clone("search", "tests/test_names.py"), r"[1-9]\d* passed")

    def test_matrix(self) -> None:
        # with this interpreter alone: an environment takes its time
        place = self.home / "one"
        place.mkdir()
        (place / "python{}.{}".format(*sys.version_info)).symlink_to(sys.executable)
        found = self.run_in_a_clone("matrix", "tests/test_names.py", PATH=f"{place}:/usr/bin:/bin", HOME=str(self.home))
        self.assertIn("passed", found)

    def test_simulate(self) -> None:
        self.run_in_a_clone("simulate", "--seeds", "1")

    def test_without_a_command_it_says_what_there_is(self) -> None:
        done = subprocess.run(["./run"], cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        self.assertEqual(done.returncode, 2)
        for command in ("demo", "test", "check", "bench", "lint", "matrix", "simulate", "soak", "coverage", "search", "changelog"):
            self.assertIn(f"./run {command}", done.stderr)

    def test_lint_takes_what_there_is(self) -> None:
        done = subprocess.run(
            ["./run", "lint", "pylint"], cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=PATIENCE_SECONDS
        )
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertEqual(done.stderr, "./run: lint takes ruff or mypy, or nothing for both; not 'pylint'\n")

    def test_no_run_of_a_time_that_is_none(self) -> None:
        for module, *words in (
            ("tests.faults.soak", "--minutes", "nan"),
            ("tests.faults.soak", "--load", "-1"),
            ("tests.fuzz", "--minutes", "nan"),
            ("simulation", "--hours", "nan"),
        ):
            command = [sys.executable, "-m", module, *words]
            done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
            self.assertEqual(done.returncode, 2, done)
            self.assertRegex(done.stderr, f"argument {words[0]}: invalid .* value: '{words[1]}'")
