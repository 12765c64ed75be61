from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from taba.directories import make_directory, python_of, strangers_in

ROOT = Path(__file__).parents[1]


class Directories(SynchronousTestCase):
    def test_what_is_made_is_its_users_alone_whatever_the_umask_and_what_is_there_stays_as_it_is(self) -> None:
        top = Path(self.mktemp())
        top.mkdir()
        top.chmod(0o755)
        before = os.umask(0)
        try:
            make_directory(top / "state" / "taba" / "store")
            make_directory(top / "state" / "taba" / "store")
        finally:
            os.umask(before)
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (top, top / "state", top / "state/taba", top / "state/taba/store")]
        self.assertEqual(modes, [0o755, 0o700, 0o700, 0o700])

    def test_what_is_no_directory_is_an_error(self) -> None:
        file = Path(self.mktemp())
        file.write_text("x")
        self.assertRaises(OSError, make_directory, file)
        self.assertRaises(OSError, make_directory, file / "store")

    def test_a_directory_of_another_or_where_everybody_writes_is_relied_on_by_nobody(self) -> None:
        def why(owner: int, mode: int) -> str | None:
            status: Any = SimpleNamespace(st_uid=owner, st_mode=stat.S_IFDIR | mode)
            return strangers_in(status, 7)

        self.assertEqual([why(7, 0o700), why(7, 0o755), why(7, 0o770), why(0, 0o2775)], [None] * 4)
        self.assertEqual(why(8, 0o700), "belongs to user 8")
        for mode in (0o1777, 0o777, 0o702):
            self.assertEqual(why(7, mode), f"may be written to by everybody (mode {mode:04o})")


class ProcessesOfModules(SynchronousTestCase):
    """What a service starts runs nothing of the directory in which it was started."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        for module in ("json", "socket", "runpy", "h2", "taba"):
            (self.directory / f"{module}.py").write_text("raise SystemExit('somebody else said this')")

    def end_of(self, command: list[str]) -> tuple[str, str]:
        done = subprocess.run(command, cwd=self.directory, input='{"a": 1}', capture_output=True, text=True, timeout=60, check=False)
        return done.stdout, done.stderr

    def test_nothing_of_the_working_directory_is_imported(self) -> None:
        for version in {sys.version_info, (3, 10, 0)}:
            with mock.patch.object(sys, "version_info", version):
                command = python_of("json.tool", "--compact")
            self.assertEqual(self.end_of(command), ('{"a":1}\n', ""))
        self.assertIn("somebody else", self.end_of([sys.executable, "-m", "json.tool"])[1])  # as it would be

    def test_each_process_of_a_module_is_started_like_that(self) -> None:
        started = [str(path) for path in (ROOT / "taba").rglob("*.py") if re.search('executable, "-m"', path.read_text())]
        self.assertEqual(started, [])
        starting = {path.name for path in (ROOT / "taba").rglob("*.py") if "arguments = python_of(" in path.read_text()}
        self.assertEqual(starting, {"service.py", "line.py", "probing.py", "inputs.py"})
