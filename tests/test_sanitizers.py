"""The parts in C under those who find what tests alone do not: sanitizers of addresses, behaviour and threads, and gcc's analyzer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from taba.parts import FORMS

ROOT = Path(__file__).parent.parent
STRICT = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wstrict-prototypes", "-Wvla", f"-I{sysconfig.get_paths()['include']}"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]


class Run(NamedTuple):
    """Parts that are built with the sanitizers, and the tests that are run with them, of which none may be skipped."""

    parts: tuple[str, ...]
    tests: tuple[str, ...]
    wanted: str = ""  # of them, as pytest's -k


RECORDING = Run(
    ("taba.client._accelerator",),
    tuple(f"tests/client/test_{name}.py" for name in ("record", "processes", "harmless", "healing", "metering")),
    "Accelerated and not (system_call or interpreters or no_memory or allocation)",
)
FOLDING = Run(
    (
        "taba.agent._drain",
        "taba.batch._entries",
        "taba.batch._sections",
        "taba.handlers._fresh",
        "taba.handlers._latest",
        "taba.handlers._rows",
        "taba.handlers._spreads",
        "taba.server.ask._writing",
        "taba.server.fold._plain",
        "taba.shard.servers._wire",
    ),
    (
        "tests/agent/test_drain.py",
        "tests/agent/test_native.py",
        "tests/test_entries.py",
        "tests/test_sections.py",
        "tests/handlers/test_fresh.py",
        "tests/handlers/test_latest.py",
        "tests/handlers/test_rows.py",
        "tests/handlers/test_windows_in_c.py",
        "tests/server/ask/test_writing.py",
        "tests/server/fold/test_plain_parts.py",
        "tests/shard/test_wire.py",
    ),
)


def gcc() -> str:
    found = shutil.which("gcc")
    if found is None:
        raise SkipTest("needs gcc; on Debian and Ubuntu: apt-get install gcc")
    return found


def source_of(part: str) -> Path:
    return ROOT / (part.replace(".", "/") + ".c")


def run_all(case: SynchronousTestCase, command: Any, **how: Any) -> str:
    done: subprocess.CompletedProcess[str] = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, **how)
    case.assertEqual(done.returncode, 0, done.stdout[-4000:] + done.stderr[-8000:])
    return done.stdout


class EachPart(SynchronousTestCase):
    def test_each_part_in_c_is_tried_under_the_sanitizers(self) -> None:
        self.assertEqual(sorted(part for run in (RECORDING, FOLDING) for part in run.parts), sorted(FORMS))
        self.assertEqual(sorted(map(source_of, FORMS)), sorted((ROOT / "taba").rglob("*.c")))


@pytest.mark.real
class Analyzer(SynchronousTestCase):
    def test_the_analyzer_and_strict_warnings_find_nothing(self) -> None:
        # the analyzer goes through what was written; of what is optimised the warnings are those of the compiler
        for part in FORMS:
            for how in (["-fanalyzer", "-O1"], ["-O3"]):
                run_all(self, [gcc(), *STRICT, *how, "-c", str(source_of(part)), "-o", os.devnull])


@pytest.mark.real
class Ordering(SynchronousTestCase):
    """The ring's producer and whoever drains it, as two threads: which order each line relies on, whatever processor this is."""

    def build(self, *flags: str) -> str:
        program = Path(self.mktemp()).absolute()
        source = ROOT / "tests" / "client" / "ordering.c"
        run_all(self, [gcc(), *STRICT, "-Wno-unused-function", *flags, "-pthread", str(source), "-o", str(program)])
        return str(program)

    def test_all_that_is_read_was_released_before_and_nothing_is_written_over_before_it_was_read(self) -> None:
        for flags in (["-O1", "-fsanitize=thread"], ["-O3"]):
            self.assertEqual(run_all(self, [self.build(*flags)]), "in order\n", flags)

    def test_without_one_of_the_producers_orders_something_is_found(self) -> None:
        for order in ("RELEASES", "ACQUIRES"):
            program = self.build("-O1", "-fsanitize=thread", f"-DWITHOUT_{order}")
            done = subprocess.run([program], capture_output=True, text=True, timeout=600, check=False)
            self.assertNotEqual(done.returncode, 0, order)
            self.assertIn("data race", done.stderr, order)


@pytest.mark.real
@pytest.mark.takes(seconds=120)
class Sanitizers(SynchronousTestCase):
    def test_they_find_nothing_in_what_the_tests_of_recording_do(self) -> None:
        self.run_sanitized(RECORDING)

    def test_they_find_nothing_in_what_the_tests_of_drains_batches_folds_commands_and_answers_do(self) -> None:
        self.run_sanitized(FOLDING)

    def run_sanitized(self, run: Run) -> None:
        """In a copy of the tree in which nothing else is built."""
        folder = Path(self.mktemp()).absolute()
        for name in ("taba", "twisted", "tests"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "conftest.py", "corpus"))
        # few examples, the same each time: they are several times slower here, and the parts' own tests try more of them
        (folder / "tests" / "conftest.py").write_text("from tests.examples import load_profile\n\nload_profile()\n")
        libraries = []
        for part in run.parts:
            library = folder / (part.replace(".", "/") + sysconfig.get_config_var("EXT_SUFFIX"))
            run_all(self, [gcc(), *STRICT, *SANITIZERS, "-shared", "-fPIC", str(source_of(part)), "-o", str(library)])
            libraries.append(str(library))
        settings = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST")},
            "LD_PRELOAD": run_all(self, [gcc(), "-print-file-name=libasan.so"]).strip(),
            # the interpreter itself frees little at its end; and of each object the whole stack that made it takes a seventh of the time
            "ASAN_OPTIONS": "detect_leaks=0:malloc_context_size=4",
            "PYTHONMALLOC": "malloc",  # or the sanitizer sees Python's pools instead of objects
            "PYTHONPATH": str(folder),
            "HYPOTHESIS_PROFILE": "certain",
        }
        where = f"from importlib import import_module\nfor name in {run.parts}: print(import_module(name).__file__)"
        self.assertEqual(run_all(self, [sys.executable, "-c", where], env=settings, cwd=folder).split(), libraries)
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-c", os.devnull, "--rootdir", str(folder), "-p", "no:cacheprovider"]
        out = run_all(self, [*command, "-k", run.wanted, *run.tests], env=settings, cwd=folder)
        self.assertIn(" passed", out)
        self.assertNotIn("skipped", out)
