"""The parts in C of the fold, of the store's commands and of answers under those who find what tests alone do not."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig

import pytest

from tests.client import test_sanitizers as of_client
from tests.client.cases import ROOT
from tests.client.test_sanitizers import SANITIZERS, STRICT, gcc

SOURCES = (
    "taba/batch/_sections.c",
    "taba/handlers/_latest.c",
    "taba/handlers/_rows.c",
    "taba/handlers/_spreads.c",
    "taba/shard/servers/_wire.c",
    "taba/server/ask/_writing.c",
    "taba/server/fold/_plain.c",
)
TESTS = (
    "tests/test_sections.py",
    "tests/handlers/test_latest.py",
    "tests/handlers/test_rows.py",
    "tests/shard/test_wire.py",
    "tests/server/ask/test_writing.py",
    "tests/server/fold/test_plain_parts.py",
)


@pytest.mark.real
class SanitizerTests(of_client.SanitizerTests):
    test_the_sanitizers_find_nothing_in_what_the_tests_of_recording_do = None  # type: ignore[assignment]  # there
    test_the_sanitizers_find_nothing_in_what_the_tests_of_the_drain_do = None  # type: ignore[assignment]
    test_the_sanitizers_find_nothing_in_what_the_tests_of_the_edge_do = None  # type: ignore[assignment]

    def test_the_analyzer_and_strict_warnings_find_nothing(self) -> None:
        for source in SOURCES:
            for level in ("-O1", "-O3"):
                self.run_all([gcc(), *STRICT, "-fanalyzer", level, "-c", os.path.join(ROOT, source), "-o", os.devnull])

    def test_the_sanitizers_find_nothing_in_what_the_tests_of_these_parts_do(self) -> None:
        folder = os.path.abspath(self.mktemp())
        shutil.copytree(os.path.join(ROOT, "taba"), os.path.join(folder, "taba"), ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        for test in TESTS:
            os.makedirs(os.path.dirname(os.path.join(folder, test)), exist_ok=True)
            shutil.copy(os.path.join(ROOT, test), os.path.join(folder, test))
        libraries = []
        for source in SOURCES:
            library = os.path.join(folder, source.removesuffix(".c") + sysconfig.get_config_var("EXT_SUFFIX"))
            self.run_all([gcc(), *STRICT, *SANITIZERS, "-shared", "-fPIC", os.path.join(ROOT, source), "-o", library])
            libraries.append(library)
        preload = self.run_all([gcc(), "-print-file-name=libasan.so"]).strip()
        environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST")},
            "LD_PRELOAD": preload,
            "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter itself frees little at its end
            "PYTHONMALLOC": "malloc",  # or the sanitizer sees Python's pools instead of objects
            "PYTHONPATH": folder,
        }
        names = [source.removesuffix(".c").replace("/", ".") for source in SOURCES]
        where = f"from importlib import import_module\nfor name in {names}: print(import_module(name).__file__)"
        self.assertEqual(self.run_all([sys.executable, "-c", where], env=environ, cwd=folder).split(), libraries)
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-c", os.devnull, "--rootdir", folder, "-p", "no:cacheprovider"]
        out = self.run_all([*command, *TESTS], env=environ, cwd=folder)
        self.assertIn(" passed", out)
        self.assertNotIn("skipped", out)
