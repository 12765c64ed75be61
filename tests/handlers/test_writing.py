"""docs/writing-handlers.md is true: its files make a package whose Handlers are found, and whose tests pass."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import ClassVar

import pytest
from twisted.trial.unittest import SynchronousTestCase

from taba.installing import install_command
from tests.patience import PATIENCE_SECONDS

from ..documents import Block, blocks
from ..sources import copy_sources

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "writing-handlers.md"
FILE = re.compile(r"# (\S+\.(?:py|toml))\n")


class WritingHandlers(SynchronousTestCase):
    directory: ClassVar[Path]
    found: ClassVar[list[Block]]

    @classmethod
    def setUpClass(cls) -> None:
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.directory, cls.found = Path(temporary.name), blocks(PAGE.read_text())
        for block in cls.found:
            if named := FILE.match(block.code):
                path = cls.directory / named[1]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.code)
        for package in ("acme", "tests"):  # its first commands
            (cls.directory / package / "__init__.py").write_text("")
        (cls.directory / "bin").mkdir()
        for name, module in (("taba", "-m taba.cli.main "), ("python", ""), ("pip", "-c pass ")):  # AsAUser installs it
            script = cls.directory / "bin" / name
            script.write_text(f'#!/bin/sh\nexec {sys.executable} {module}"$@"\n')
            script.chmod(0o755)

    def run_here(self, *command: str) -> str:
        environ = {**os.environ, "PYTHONPATH": f"{self.directory}:{ROOT}", "PATH": f"{self.directory}/bin:{os.environ['PATH']}"}
        done = subprocess.run(command, cwd=self.directory, env=environ, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_every_block_is_a_file_or_a_command(self) -> None:
        for block in self.found:
            self.assertTrue(block.language == "sh" or FILE.match(block.code), f"line {block.line}")

    @pytest.mark.real
    def test_its_commands_run(self) -> None:
        outputs = [self.run_here("sh", "-e", "-c", block.code) for block in self.found if block.language == "sh"]
        self.assertIn('{"longest": "coffee"}', outputs[1])
        self.assertEqual(json.loads(outputs[-1])["aggregate"], {"min": 1, "max": 50_000})

    def test_its_plugin_is_found(self) -> None:
        self.assertIn("Longest: version 1, from plugin acme_handlers", self.run_here("taba", "handlers", "--local"))

    @pytest.mark.real
    def test_the_contract_tells_a_handler_that_breaks_a_rule(self) -> None:
        broken = self.directory / "tests" / "broken.py"
        broken.write_text(
            "import unittest\nfrom acme.handlers import Longest\nfrom hypothesis import strategies as st\n"
            "from taba.handlers.testing import HandlerContract\n"
            "class Last(Longest):\n    def fold(self, state, events, now): return list(events.values)[-1]\n"
            "class TestLast(HandlerContract, unittest.TestCase):\n    handler = Last()\n    values = st.text(max_size=20)\n"
        )
        environ = {**os.environ, "PYTHONPATH": f"{self.directory}:{ROOT}"}
        command = [sys.executable, "-m", "unittest", "tests.broken"]
        done = subprocess.run(command, cwd=self.directory, env=environ, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        self.assertEqual(done.returncode, 1)
        failed = set(re.findall(r"^(?:FAIL|ERROR): (\w+)", done.stderr, re.MULTILINE))
        self.assertEqual(failed, {"test_folding_in_shuffled_pieces_agrees"})

    def test_without_hypothesis_the_contract_says_what_to_install(self) -> None:
        environ = {**os.environ, "PYTHONPATH": f"{self.directory}:{ROOT}"}
        program = (
            "import sys, unittest; sys.modules['hypothesis'] = None\n"
            "from acme.handlers import Longest\nfrom taba.handlers.testing import HandlerContract\n"
            "class TestLongest(HandlerContract, unittest.TestCase):\n    handler = Longest()\n"
            "unittest.main()"
        )
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, cwd=self.directory, env=environ, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        self.assertIn("the tests of a Handler need Hypothesis; install it with: pip install hypothesis", done.stderr)


@pytest.mark.real
class AsAUser(SynchronousTestCase):
    def test_the_page_from_its_first_line_to_its_last_in_an_environment_of_its_own(self) -> None:
        home = Path(tempfile.mkdtemp(prefix="taba-writing-"))
        self.addCleanup(shutil.rmtree, home)
        clone, place = copy_sources(home / "clone"), home / "acme-taba"
        place.mkdir()
        venv.create(home / "env", with_pip=True)
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TABA_"))}
        environ |= {"PATH": f"{home}/env/bin:/usr/bin:/bin", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "XDG_STATE_HOME": str(home / "state")}

        def run(command: str, folder: Path) -> str:
            done = subprocess.run(
                ["sh", "-e", "-c", command], cwd=folder, env=environ, capture_output=True, text=True, timeout=PATIENCE_SECONDS
            )
            self.assertEqual(done.returncode, 0, f"{command}\n{done.stdout}\n{done.stderr}")
            return done.stdout

        run(f"{install_command('all')} hypothesis", clone)
        outputs = []
        for block in blocks(PAGE.read_text()):
            if block.language == "sh":
                outputs.append(run(block.code, place))
            elif named := FILE.match(block.code):
                (place / named[1]).parent.mkdir(parents=True, exist_ok=True)
                (place / named[1]).write_text(block.code)
        local = next(output for output in outputs if "Longest: version 1" in output)
        self.assertIn("from entry point longest (acme-taba)", local)
        # and from elsewhere, where there is no such folder
        self.assertIn("from entry point longest (acme-taba)", run("taba handlers --local", home))
        self.assertIn("from plugin acme_handlers", run("taba handlers --local", place))
