"""The C parts under those who find what tests alone do not: the address and undefined-behaviour sanitizers, and gcc's analyzer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from glob import glob
from typing import Any

import pytest
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.client.cases import ROOT

SOURCE = os.path.join(ROOT, "taba", "client", "_accelerator.c")
FRESH = os.path.join(ROOT, "taba", "handlers", "_fresh.c")
DRAIN = os.path.join(ROOT, "taba", "agent", "_drain.c")
STRICT = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wstrict-prototypes", "-Wvla", f"-I{sysconfig.get_paths()['include']}"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]


def gcc() -> str:
    found = shutil.which("gcc")
    if found is None:
        raise SkipTest("needs gcc; on Debian and Ubuntu: apt-get install gcc")
    return found


@pytest.mark.real
class SanitizerTests(SynchronousTestCase):
    def run_all(self, command: Any, **how: Any) -> Any:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, **how)
        self.assertEqual(done.returncode, 0, done.stdout[-4000:] + done.stderr[-8000:])
        return done.stdout

    def test_the_analyzer_and_strict_warnings_find_nothing(self) -> None:
        sources = sorted(glob(os.path.join(ROOT, "taba", "**", "*.c"), recursive=True))
        self.assertLessEqual({SOURCE, DRAIN, FRESH}, {*sources})
        for source in sources:
            for level in ("-O1", "-O3"):
                self.run_all([gcc(), *STRICT, "-fanalyzer", level, "-c", source, "-o", os.devnull])

    def test_the_sanitizers_find_nothing_in_what_the_tests_of_recording_do(self) -> None:
        folder = self.copied("taba", "taba/client", "taba/agent", "tests", "tests/client")
        wanted = "Accelerated and not (system_call or interpreters or no_memory or allocation)"
        tests = [f"tests/client/test_{name}.py" for name in ("record", "processes", "harmless", "healing", "metering")]
        self.run_sanitized(folder, SOURCE, "taba.client._accelerator", ["-k", wanted, *tests])

    def test_the_sanitizers_find_nothing_in_what_the_tests_of_the_drain_do(self) -> None:
        packages = ("taba", "taba/batch", "taba/client", "taba/agent", "taba/handlers", "twisted/plugins", "tests", "tests/agent")
        folder = self.copied(*packages)
        self.run_sanitized(folder, DRAIN, "taba.agent._drain", ["tests/agent/test_native.py", "tests/agent/test_drain.py"])

    def test_the_sanitizers_find_nothing_in_what_the_tests_of_the_edge_do(self) -> None:
        folder = self.copied("taba", "taba/handlers", "twisted/plugins", "tests", "tests/handlers")
        self.run_sanitized(folder, FRESH, "taba.handlers._fresh", ["tests/handlers/test_fresh.py"])

    def copied(self, *packages: str) -> str:
        """The Python and the headers of these in a folder of their own, nothing built."""
        folder: str = os.path.abspath(self.mktemp())
        for package in packages:
            os.makedirs(os.path.join(folder, package))
            for name in os.listdir(os.path.join(ROOT, package)):
                if name.endswith((".py", ".h")) and name != "conftest.py":
                    shutil.copy(os.path.join(ROOT, package, name), os.path.join(folder, package, name))
        return folder

    def run_sanitized(self, folder: str, source: str, module: str, arguments: list[str]) -> None:
        """Build it there, and run these tests with it."""
        library = os.path.join(folder, *module.split(".")) + sysconfig.get_config_var("EXT_SUFFIX")
        self.run_all([gcc(), *STRICT, *SANITIZERS, "-shared", "-fPIC", source, "-o", library])
        preload = subprocess.run([gcc(), "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout.strip()
        settings = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST")},
            "LD_PRELOAD": preload,
            "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter itself frees little at its end
            "PYTHONMALLOC": "malloc",  # or the sanitizer sees Python's pools instead of objects
            "PYTHONPATH": folder,
        }
        where = f"import {module} as a; print(a.__file__)"
        self.assertEqual(self.run_all([sys.executable, "-c", where], env=settings, cwd=folder).strip(), library)
        arguments = [name for name in arguments if not name.endswith(".py") or os.path.exists(os.path.join(folder, name))]
        pytest_command = [sys.executable, "-m", "pytest", "-q", "-x", "-c", os.devnull, "--rootdir", folder, "-p", "no:cacheprovider"]
        out = self.run_all([*pytest_command, *arguments], env=settings, cwd=folder)
        self.assertIn(" passed", out)
